"""Shapley values of one answer: by enumeration, from random orders, or as the best additive fit.

All solvers see the answer as a game (`players.Game`), ask for many coalitions in one call of the model, add up exactly,
and stop at the clock with the best answer so far.
"""

import math
from itertools import combinations

import numpy as np

from zoo.explain.clock import Clock
from zoo.explain.owen import partition
from zoo.explain.players import Game
from zoo.explain.solving import Asked, Solved

__all__ = ["Solved", "exact", "kernel", "partition", "permutation"]

EXACT_MOST = 15  # players; 2 ** 15 coalitions
PERMUTATIONS = 10  # random orders, each walked forwards and backwards
KERNEL_EVALS = 2048  # beyond two for each player, as in shap
MASK_BYTES = 64 * 2**20  # coalitions built at once


def exact(game: Game, *, max_evals: int | None, seed: int, clock: Clock) -> Solved:
    """Shapley's sum over all coalitions of the players that vary.

    Args:
        game: with at most 15 players that vary.
        max_evals: evaluations at most; fewer than there are coalitions is an error.
        seed: of the order in which coalitions are asked for, which counts only if the time ends first.
        clock: once it is over, what was answered is fitted as `kernel` does.

    Returns:
        Values without standard errors; these are NaN if the time ended.

    Raises:
        ValueError: too many players vary, or `max_evals` is too low.

    Source: Shapley, "A Value for n-Person Games", 1953.
    """
    count = int(np.count_nonzero(game.varying))
    if count > EXACT_MOST:
        raise ValueError(
            f"exact takes at most {EXACT_MOST} players that differ from the background, got {count}; "
            "use method='permutation'"
        )
    if max_evals is not None and max_evals < 2**count:
        raise ValueError(
            f"exact needs {2**count} evaluations for {count} players, got max_evals={max_evals}; "
            "use method='permutation'"
        )
    asked = Asked(game, max_evals, clock)
    return asked.trivial() or _enumerate(asked, clock, np.random.default_rng(seed))


def _enumerate(asked: Asked, clock: Clock, random: np.random.Generator) -> Solved:
    """Shapley values from all coalitions, small and large ones first; a fit if the time ends."""
    count = asked.players
    codes = np.arange(1, 2 ** (count - 1))  # each coalition without the last player, but the empty one
    sizes = _bits(codes, count).sum(axis=1)
    order = np.lexsort((random.random(len(codes)), np.minimum(sizes, count - sizes)))
    masks = _bits(codes[order], count)
    differences, answers = _pairs(asked, masks, clock, 2**count)
    done = len(differences)
    if done < len(masks):
        group = np.minimum(sizes, count - sizes)[order][:done] - 1
        mass = _mass(count)[0]
        weight = mass / np.maximum(np.bincount(group, minlength=len(mass)), 1)
        values, error = _fit(asked, masks[:done], differences, weight[group], np.zeros(done, bool))
        return asked.solved(values, error, complete=False)
    every = np.concatenate([np.zeros((1, count), bool), masks, ~masks, np.ones((1, count), bool)])
    answers = np.concatenate([[asked.base], answers[0], answers[1], [asked.full]])
    size = every.sum(axis=1)
    weight = np.array([1 / (count * math.comb(count - 1, k)) for k in range(count)] + [0.0])
    joined = weight[size - 1] * answers  # of a coalition that holds the player
    values = (every * joined[:, None]).sum(axis=0) - (~every * (weight[size] * answers)[:, None]).sum(axis=0)
    return asked.solved(values)


def _bits(codes: np.ndarray, count: int) -> np.ndarray:
    """Coalitions (codes, count) whose players are the binary digits of the codes."""
    return (codes[:, None] >> np.arange(count)) & 1 == 1


def _pairs(asked: Asked, masks: np.ndarray, clock: Clock, planned: int) -> tuple[np.ndarray, np.ndarray]:
    """Coalitions and their complements, until the time ends.

    Returns:
        Half of v(S) - v(complement of S) (pairs answered,), and both answers (2, pairs answered).
    """
    found = [np.empty((2, 0))]
    at = 0
    while at < len(masks) and not clock.over:
        most = max(1, MASK_BYTES // (2 * masks.shape[1]))
        part = masks[at : at + max(1, min(most, clock.portion(2 * (len(masks) - at)) // 2))]
        found.append(asked.ask(np.concatenate([part, ~part]), planned).reshape(2, -1))
        at += len(part)
    answers = np.concatenate(found, axis=1)
    return (answers[0] - answers[1]) / 2, answers


def permutation(game: Game, *, max_evals: int | None, seed: int, clock: Clock) -> Solved:
    """Shapley values from random orders of the players, each walked forwards and backwards.

    Players enter one by one; each gets what the answer changes by. Where the answer is a mean over background rows,
    each order is walked with a row of its own, every row as often as the others, for as many model rows. Walking an
    order both ways removes the error of every interaction of two players that is the same wherever they stand. The
    first order is halved again and again, so that it shares out what it knows even when evaluations or time do not
    suffice for a whole walk.

    Args:
        game: of any number of players.
        max_evals: evaluations at most; enough for 10 orders both ways if None. From 2 ** players on, all coalitions are
            enumerated.
        seed: of the orders.
        clock: stops between two calls of the model.

    Returns:
        Values with standard errors from the scatter between orders, NaN if only one was walked.

    Raises:
        ValueError: `max_evals` is below 2.

    Source: Castro, Gómez & Tejada, "Polynomial calculation of the Shapley value based on sampling", 2009; antithetic
    orders as in Mitchell et al. 2022 (arXiv:2104.12199).
    """
    asked = Asked(game, max_evals, clock)
    count = asked.players
    trivial = asked.trivial()
    if trivial is not None:
        return trivial
    random = np.random.default_rng(seed)
    walk = 2 * (count - 1)  # evaluations of one order both ways
    limit = max_evals or 3 + PERMUTATIONS * walk
    if count <= EXACT_MOST and limit >= 2**count:
        return _enumerate(asked, clock, random)
    wanted = max(1, (limit - 2) // walk)
    planned = min(limit, 2 + wanted * walk)
    if asked.by_rows and limit >= walk + 3 and not clock.over:
        return _row_walks(asked, (limit - 3) // walk, clock, random)
    total = _first_walk(asked, random.permutation(count), planned, clock)
    square, orders = total**2, 1
    while orders < wanted and not clock.over:
        few = max(1, min(wanted - orders, MASK_BYTES // (walk * count)))
        ranks = random.permuted(np.tile(np.arange(count), (few, 1)), axis=1)
        masks = (ranks[:, None, :] < np.arange(1, count)[:, None]).reshape(-1, count)  # all beginnings of the orders
        _, answers = _pairs(asked, masks, clock, planned)
        few = answers.shape[1] // (count - 1)  # walked to the end
        answers = answers[:, : few * (count - 1)].reshape(2, few, count - 1)
        gains = _gains(ranks[:few], _closed(answers, asked.base, asked.full))
        total += gains.sum(axis=0)
        square += (gains**2).sum(axis=0)
        orders += few
    values = total / orders
    scatter = np.maximum(square / orders - values**2, 0)
    error = np.sqrt(scatter / (orders - 1)) if orders > 1 else np.full(count, np.nan)
    return asked.solved(values, error, asked.evaluations + 2 > planned, orders=orders)


def _row_walks(asked: Asked, wanted: int, clock: Clock, random: np.random.Generator) -> Solved:
    """Contributions from orders that are each walked with one background row, each row as often as the others.

    The mean over the background and the mean over orders are one: many orders that see a row each tell more than few
    that see all rows, for as many model rows.
    """
    count, rows = asked.players, asked.rows
    walk = 2 * (count - 1)
    planned = 3 + wanted * walk
    alone = asked.ask_rows(np.zeros((rows, count), bool), np.arange(rows), planned)
    total, square, rounds = np.zeros((rows, count)), np.zeros((rows, count)), 0
    found = np.empty((0, count))
    while rounds < wanted and not clock.over:
        found = np.empty((0, count))  # of this round, one order for each row
        while len(found) < rows and not clock.over:
            left = rows - len(found)
            most = min(left, MASK_BYTES // (walk * count), clock.portion(left * walk) // walk)
            who = len(found) + np.arange(max(1, most))
            ranks = random.permuted(np.tile(np.arange(count), (len(who), 1)), axis=1)
            masks = (ranks[:, None, :] < np.arange(1, count)[:, None]).reshape(-1, count)
            behind = np.tile(np.repeat(who, count - 1), 2)
            answers = asked.ask_rows(np.concatenate([masks, ~masks]), behind, planned)
            curves = _closed(answers.reshape(2, len(who), count - 1), alone[who], asked.full)
            found = np.concatenate([found, _gains(ranks, curves)])
        if len(found) == rows:
            total, square, rounds = total + found, square + found**2, rounds + 1
    walks = total / rounds if rounds else found
    values = walks.mean(axis=0) if len(walks) else np.zeros(count)
    error = np.full(count, np.nan)
    if rounds > 1:
        scatter = np.maximum(square - total**2 / rounds, 0).mean(axis=0) / (rounds - 1)  # among orders of the same row
        error = np.sqrt(scatter / (rounds * rows))
    elif len(walks) > 1:
        error = walks.std(axis=0, ddof=1) / np.sqrt(len(walks))
    values += (asked.difference - values.sum()) / count  # rounding, and rows that the time did not suffice for
    return asked.solved(values, error, rounds == wanted, orders=rounds * rows)


def _closed(answers: np.ndarray, base: np.ndarray | float, full: float) -> np.ndarray:
    """Answers along orders and their complements (2, orders, players - 1), with those at both ends (…, players + 1)."""
    ends = np.empty((2, answers.shape[1], 1))
    ends[0, :, 0], ends[1, :, 0] = base, full
    return np.concatenate([ends, answers, ends[::-1]], axis=-1)


def _gains(ranks: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """What players change the answer by when they enter, averaged over the order and its reverse.

    Args:
        ranks: place of each player in each order (orders, players).
        answers: v(first k players) and v(all but the first k), for k from 0 to all (2, orders, players + 1).
    """
    steps = (np.diff(answers[0]) - np.diff(answers[1])) / 2  # (orders, players)
    return np.take_along_axis(steps, ranks, axis=1)


def _first_walk(asked: Asked, rank: np.ndarray, planned: int, clock: Clock) -> np.ndarray:
    """Contributions from one order both ways; stretches of it that were not evaluated share evenly."""
    count = len(rank)
    middles, stretches = [], [(0, count)]
    for start, end in stretches:  # grows: each stretch is halved before the halves of it are
        if end - start > 1:
            middles.append((start + end) // 2)
            stretches += [(start, middles[-1]), (middles[-1], end)]
    middles = np.array(middles[: (planned - asked.evaluations) // 2], int)
    _, found = _pairs(asked, rank < middles[:, None], clock, planned)
    known = np.concatenate([[0, count], middles[: found.shape[1]]])
    answers = np.concatenate([[[asked.base, asked.full], [asked.full, asked.base]], found], axis=1)
    order = np.argsort(known)
    curves = [np.interp(np.arange(count + 1), known[order], curve[order]) for curve in answers]
    return _gains(rank[None], np.array(curves)[:, None])[0]


def kernel(game: Game, *, max_evals: int | None, seed: int, clock: Clock) -> Solved:
    """Shapley values as the additive function that fits the answers best, small and large coalitions counting most.

    Coalitions are asked for in pairs with their complements. Sizes that the evaluations suffice for are enumerated,
    from the outside in; the others are sampled. The fit is weighted least squares among functions that add up exactly.

    Args:
        game: of any number of players; the fit takes time with the cube of those that vary.
        max_evals: evaluations at most, 2 for each player and 2,048 more if None. From 2 ** players on, all coalitions
            are enumerated.
        seed: of the sample.
        clock: stops between two calls of the model.

    Returns:
        Values with standard errors of the sampled part, NaN where there are fewer pairs than players.

    Raises:
        ValueError: `max_evals` is below 2.

    Source: Lundberg & Lee 2017 (arXiv:1705.07874), Section 4.1; pairs and the exact constraint as in Covert & Lee 2021
    (arXiv:2012.01536).
    """
    asked = Asked(game, max_evals, clock)
    trivial = asked.trivial()
    if trivial is not None:
        return trivial
    random = np.random.default_rng(seed)
    count = asked.players
    limit = max_evals or 2 * count + KERNEL_EVALS
    if count <= EXACT_MOST and limit >= 2**count:
        return _enumerate(asked, clock, random)
    masks, group, mass = _sample(count, (limit - 2) // 2, random)
    differences, _ = _pairs(asked, masks, clock, 2 + 2 * len(masks))
    done = len(differences)
    weight = mass / np.maximum(np.bincount(group[:done], minlength=len(mass)), 1)
    values, error = _fit(asked, masks[:done], differences, weight[group[:done]], group[:done] == 0)
    complete = done == len(masks)
    return asked.solved(values, None if complete and mass[0] == 0 else error, complete, pairs=done)


def _mass(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight in the fit of all pairs of sizes (k, count - k), and their number, for k from 1 to half of `count`."""
    size = np.arange(1, count // 2 + 1)
    twice = np.where(2 * size == count, 1, 2)
    pairs = np.array([math.comb(count, k) for k in size.tolist()], np.float64) * twice / 2
    return twice * (count - 1) / (size * (count - size)), pairs


def _sample(count: int, pairs: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coalitions, one of each pair.

    Returns:
        Masks (pairs, players), the group of each, and the weight in the fit of each group together. Group 0 is sampled,
        the others hold all pairs of a size.
    """
    mass, number = _mass(count)
    masks, whole = [np.empty((0, count), bool)], 0
    left = pairs
    while whole < len(mass) and left * mass[whole] >= number[whole] * mass[whole:].sum():
        size = whole + 1
        places = np.array(list(combinations(range(count), size)))
        if 2 * size == count:
            places = places[: len(places) // 2]  # those with the first player
        rows = np.zeros((len(places), count), bool)
        np.put_along_axis(rows, places, True, axis=1)
        masks.append(random.permutation(rows))
        left -= len(rows)
        whole += 1
    group = np.repeat(np.arange(1, whole + 1), number[:whole].astype(int))
    rest = mass[whole:]
    if len(rest):
        sizes = whole + 1 + random.choice(len(rest), left, p=rest / rest.sum())
        ranks = random.permuted(np.tile(np.arange(count), (left, 1)), axis=1)
        masks.append(ranks < sizes[:, None])
        group = np.concatenate([group, np.zeros(left, int)])
    return np.concatenate(masks), group, np.concatenate([[rest.sum()], mass[:whole]])


def _fit(
    asked: Asked, masks: np.ndarray, differences: np.ndarray, weights: np.ndarray, sampled: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The additive function nearest to the answers among those that add up.

    With u = mask - 1/2, half of v(S) - v(complement of S) is fitted by u @ values.

    Args:
        masks, differences, weights: of one coalition of each pair.
        sampled: pairs that were drawn; the others cause no error.

    Returns:
        Values and standard errors (players,).
    """
    count = asked.players
    even = asked.difference / count
    if not len(masks):
        return np.full(count, even), np.full(count, np.nan)
    u = masks - 0.5
    u -= u.mean(axis=1, keepdims=True)  # what adds the same to every player is known already
    left = differences - (masks.sum(axis=1) - count / 2) * even
    inverse = np.linalg.pinv((u * weights[:, None]).T @ u, rcond=1e-10, hermitian=True)
    beyond = inverse @ (u.T @ (weights * left))
    beyond -= beyond.mean()
    error = np.full(count, np.nan)
    drawn = np.count_nonzero(sampled)
    if drawn > 1 and len(masks) > count:
        scores = (weights * (left - u @ beyond))[sampled, None] * u[sampled]
        scores -= scores.mean(axis=0)
        spread = inverse @ scores.T  # (players, drawn)
        error = np.sqrt((spread**2).sum(axis=1) * len(masks) / (len(masks) - count))
    return even + beyond, error
