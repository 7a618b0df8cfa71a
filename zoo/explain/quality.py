"""How far an explanation can be trusted: what happens to the answer when the parts it names are taken out or put in.

Petsiuk, Das & Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018
(arXiv:1806.07421), section 4.3, for deletion and insertion; here against random orders of the same parts.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.explain.clock import Clock
from zoo.explain.players import Game
from zoo.explain.subject import Raw, Subject

STEPS = 16  # in which all parts are taken out
ORDERS = 8  # random ones to compare with
NOISE = 0.02  # standard deviation, as a share of how far an input varies
REPEATS = 2  # noisy copies of each row


def faithfulness(game: Game, values: np.ndarray, *, seed: int, clock: Clock) -> dict[str, float] | None:
    """Mean answer while the players are taken out or put in, by contribution and in random orders.

    Args:
        game: of the explained row.
        values: contributions of the players (players,), the largest first to go and to come.
        seed: of the random orders.
        clock: ends the random orders early, two of them are the least.

    Returns:
        `deletion` and `insertion`, area under the curve of answers over the share of players; the same for random
        orders as mean `…_random` and standard deviation `…_random_spread`, and the number of `orders`. Only players
        that differ from the background count. None if fewer than two do, or the time ended before there was anything to
        compare.
    """
    players = np.flatnonzero(game.varying)
    if len(players) < 2 or clock.over:
        return None
    steps = np.unique(np.linspace(0, len(players), min(STEPS, len(players)) + 1).round().astype(int))
    shares = steps / len(players)
    generator = np.random.default_rng(seed)

    def areas(order: np.ndarray) -> tuple[float, float]:
        rank = np.empty(len(players), int)
        rank[order] = np.arange(len(players))
        gone = rank[None] < steps[:, None]  # (steps, players that vary)
        masks = np.ones((2 * len(steps), game.players), bool)
        masks[:, players] = np.concatenate([~gone, gone])
        deletion, insertion = np.split(game.play(masks), 2)
        return float(np.trapezoid(deletion, shares)), float(np.trapezoid(insertion, shares))

    ours = areas(np.argsort(-values[players], kind="stable"))
    random = []
    while len(random) < ORDERS and not (len(random) >= 2 and clock.over):
        random.append(areas(generator.permutation(len(players))))
    found: dict[str, float] = {"orders": len(random)}
    for place, name in enumerate(("deletion", "insertion")):
        areas_found = np.array(random)[:, place]
        found[name] = ours[place]
        found[f"{name}_random"] = float(areas_found.mean())
        found[f"{name}_random_spread"] = float(areas_found.std(ddof=1))
    return found


def stability(
    again: Callable[[Raw], np.ndarray | None],
    subject: Subject,
    raw: Raw,
    attributions: np.ndarray,
    *,
    seed: int,
    clock: Clock,
) -> tuple[float | None, dict[str, Any]]:
    """How alike contributions stay when the input changes a little.

    Args:
        again: explains other rows in the same way and gives their contributions (batch, ...); None if the time ended
            it.
        subject: what is explained.
        raw: the explained rows.
        attributions: (batch, ...) of these.
        seed: of the noise.
        clock: no further copy is explained when it is over.

    Returns:
        Mean rank correlation of the contributions with those of the noisy copies, 1 where they are the same; None where
        nothing can be said. And the figures behind it: `noise`, `repeats` and the mean `relative_change`, the length of
        what changed over the length of the contributions.
    """
    if subject.kind == "text" or (subject.of is not None and subject.of.kind == "text"):
        return None, {"stability": "a text has no small noise"}
    generator = np.random.default_rng(seed)
    correlations, changes = [], []
    repeats = 0
    while repeats < REPEATS and not clock.over:
        try:
            noisy = again(disturb(subject, raw, generator))
        except ValueError as error:
            return None, {"stability": f"a noisy copy could not be explained: {error}"}
        if noisy is None:
            break
        repeats += 1
        for one, other in zip(attributions, noisy, strict=True):
            correlations.append(rank_correlation(one.ravel(), other.ravel()))
            length = float(np.linalg.norm(one))
            changes.append(float(np.linalg.norm(one - other)) / length if length else np.nan)
    known = [value for value in correlations if np.isfinite(value)]
    if not known:
        return None, {
            "stability": "the time ended before it" if not repeats else "no contribution differs from another"
        }
    relative = [value for value in changes if np.isfinite(value)]
    figures = {"noise": NOISE, "repeats": repeats, "relative_change": float(np.mean(relative)) if relative else None}
    return float(np.mean(known)), {"stability": figures}


def disturb(subject: Subject, raw: Raw, generator: np.random.Generator) -> Raw:
    """The rows with small Gaussian noise on their numbers; text and edges stay.

    The noise is `NOISE` times: 255 for bytes; how far an image, a channel of a series or a feature of nodes varies; the
    standard deviation of a column in the background, or the column's size where the background has one row.
    """
    noisy = {}
    for name, values in raw.items():
        if values.dtype.kind not in "iuf" or name == "adjacency":
            noisy[name] = values
            continue
        scale = NOISE * _reach(subject, name, values)
        changed = values + scale * generator.standard_normal(values.shape)
        if values.dtype.kind in "iu":
            limits = np.iinfo(values.dtype)
            changed = np.clip(np.rint(changed), limits.min, limits.max)
        noisy[name] = changed.astype(values.dtype)
    return noisy


def _reach(subject: Subject, name: str, values: np.ndarray) -> Any:
    if values.dtype == np.uint8:
        return 255.0
    if subject.kind != "table":
        axes = tuple(range(1, values.ndim - 1)) if name in ("series", "nodes") else tuple(range(1, values.ndim))
        return values.std(axis=axes, keepdims=True, dtype=np.float64)
    known = np.ma.masked_invalid(subject.background[name].astype(np.float64))
    std = known.std(axis=0).filled(0.0)
    sizes = np.abs(np.nan_to_num(values.astype(np.float64)))
    return np.where(std > 0, std, sizes) if len(known) == 1 else np.broadcast_to(std, values.shape)


def rank_correlation(one: np.ndarray, two: np.ndarray) -> float:
    """Spearman's correlation of the places to which either gives a share (places,); NaN where one gives all alike."""
    matters = (one != 0) | (two != 0)
    one, two = one[matters], two[matters]
    if len(one) < 2 or not np.ptp(one) > 0 or not np.ptp(two) > 0:
        return float("nan")
    return float(np.corrcoef(_ranks(one), _ranks(two))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[places]
