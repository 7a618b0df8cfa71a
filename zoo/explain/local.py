"""What a model does around one input: a local linear fit (LIME), a sliding gap (occlusion), random masks (RISE).

None of them adds up to the answer, unless at most one player varies, whose the whole difference is. All see the answer
as a game (`players.Game`) and stop at the clock.
"""

import math

import numpy as np

from zoo.explain.clock import Clock
from zoo.explain.players import SINGLE, Game
from zoo.explain.solving import Asked, Solved

LIME_EVALS = 1000
LIME_WIDTH = 0.25  # of the kernel, in cosine distance: Ribeiro's own code for texts and images
LIME_RIDGE = 1.0  # penalty on the squared weights, as in the same code
RISE_EVALS = 4000  # Petsiuk et al. 2018, for VGG16
RISE_CELLS = 7  # cells a side of the small random grids, as there
RISE_SHOWN = 0.5  # share of the cells that are shown, as there
OCCLUDED = 0.125  # side of the sliding gap as a share of the grid's, where that has more than SINGLE tiles


def lime(game: Game, *, max_evals: int | None, seed: int, clock: Clock) -> Solved:
    """Weights of a linear model that fits the answers near the input.

    Each sample keeps a random number of players, chosen at random, and counts by exp(-distance² / width²) with the
    cosine distance to the whole input. The linear model is found by ridge regression with a free intercept.

    Args:
        game: of any number of players.
        max_evals: evaluations at most, 1,000 if None.
        seed: of the samples.
        clock: stops between two calls of the model.

    Returns:
        The weights, with standard errors that allow for a bad fit (sandwich form); NaN where there are fewer samples
        than players. `settings["r2"]` is the share of the answers' variance that the fit explains, in (-inf, 1].

    Raises:
        ValueError: `max_evals` is below 2.

    Source: Ribeiro, Singh & Guestrin 2016 (arXiv:1602.04938), Sections 3.3 and 3.4, without the selection of features.
    """
    asked = Asked(game, max_evals, clock)
    trivial = asked.trivial()
    if trivial is not None:
        return trivial
    count = asked.players
    limit = max_evals or LIME_EVALS
    random = np.random.default_rng(seed)
    masks, answers = [np.ones((1, count), bool)], [np.array([asked.full])]
    while asked.evaluations < limit and not clock.over:
        few = clock.portion(limit - asked.evaluations)
        ranks = random.permuted(np.tile(np.arange(count), (few, 1)), axis=1)
        masks.append(ranks < random.integers(0, count + 1, (few, 1)))
        answers.append(asked.ask(masks[-1], limit))
    shown, answer = np.concatenate(masks).astype(np.float64), np.concatenate(answers)
    distance = 1 - np.sqrt(shown.sum(axis=1) / count)
    weight = np.exp(-((distance / LIME_WIDTH) ** 2))
    x = shown - np.average(shown, axis=0, weights=weight)
    y = answer - np.average(answer, weights=weight)
    inverse = np.linalg.inv((x * weight[:, None]).T @ x + LIME_RIDGE * np.eye(count))
    values = inverse @ (x.T @ (weight * y))
    left = y - x @ values
    error = np.full(count, np.nan)
    if len(answer) > count + 1:
        scores = inverse @ (x * (weight * left)[:, None]).T  # (players, samples)
        error = np.sqrt((scores**2).sum(axis=1) * len(answer) / (len(answer) - count - 1))
    total = (weight * y**2).sum()
    r2 = float(1 - (weight * left**2).sum() / total) if total > 0 else 1.0
    return asked.solved(values, error, asked.evaluations >= limit, samples=len(answer), r2=r2)


def occlusion(game: Game, *, max_evals: int | None, seed: int, clock: Clock, window: int | None = None) -> Solved:
    """How much the answer drops when a stretch of the input is left out, averaged over those that cover a player.

    On a grid a square slides over it, else players are left out one by one. Squares side by side are evaluated first,
    those between them later.

    Args:
        game: of any number of players.
        max_evals: evaluations at most; too few for all squares make them larger and fewer.
        seed: of the order between squares side by side and the others.
        clock: stops between two calls of the model. A player that no square has covered yet gets 0.
        window: side of the square in tiles; one tile on grids of up to 100, else an eighth of the shorter side. A gap
            much smaller than what the model looks for changes nothing.

    Returns:
        Drops per player. They have no standard error.

    Raises:
        ValueError: `max_evals` does not suffice for players without order, or the window does not fit on the grid.

    Source: Zeiler & Fergus 2014 (arXiv:1311.2901), Section 4.2.
    """
    grid = game.tree if isinstance(game.tree, tuple) else None
    if grid is None and window not in (None, 1):
        raise ValueError(f"players without a grid are left out one by one, got window={window!r}")
    rows, columns = grid or (1, game.players)
    if window is None:
        window = max(1, round(OCCLUDED * min(rows, columns))) if rows * columns > SINGLE else 1
    if not 1 <= window <= max(rows, columns):
        raise ValueError(f"window must be 1 to {max(rows, columns)} tiles, got {window!r}")
    asked = Asked(game, max_evals, clock)
    trivial = asked.trivial()
    if trivial is not None:
        return trivial
    most = math.inf if max_evals is None else max_evals - 2
    random = np.random.default_rng(seed)
    step = 1
    while len(gaps := _gaps(rows, columns, max(window, step), step, asked.varying, random)) > most:
        step += 1
        if grid is None or step > max(rows, columns):
            raise ValueError(f"occlusion needs {len(gaps) + 2} evaluations here, got max_evals={max_evals}")
    drops = np.empty(0)
    while len(drops) < len(gaps) and not clock.over:
        part = gaps[len(drops) : len(drops) + clock.portion(len(gaps) - len(drops))]
        drops = np.concatenate([drops, asked.full - asked.ask(~part, len(gaps) + 2)])
    seen = gaps[: len(drops)]
    values = (drops @ seen) / np.maximum(seen.sum(axis=0), 1)
    settings = {"window": max(window, step), "step": step}
    return asked.solved(values, complete=len(drops) == len(gaps), **settings)


def _gaps(
    rows: int, columns: int, window: int, step: int, varying: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """What different squares on a grid cover of the tiles that vary (squares, tiles), those side by side first."""
    places = []
    for length in (rows, columns):
        side = min(window, length)
        starts = np.unique(np.append(np.arange(0, length - side, step), length - side))
        beside = np.isin(starts, np.append(np.arange(0, length - side, side), length - side))
        at = np.arange(length)
        places.append(((at >= starts[:, None]) & (at < starts[:, None] + side), beside))
    (down, first_down), (across, first_across) = places
    squares = (down[:, None, :, None] & across[None, :, None, :]).reshape(-1, rows * columns)
    later = ~(first_down[:, None] & first_across).ravel()
    squares = squares[np.lexsort((random.random(len(later)), later))][:, varying]
    first = np.sort(np.unique(squares, axis=0, return_index=True)[1])
    return squares[first[squares[first].any(axis=1)]]


def rise(game: Game, *, max_evals: int | None, seed: int, clock: Clock) -> Solved:
    """How much higher the answer is, on average over random masks, where a player is shown.

    On a grid the masks are small random grids, enlarged smoothly and shifted at random; else each player is shown at
    random. Departures: players are shown or not, so enlarged masks are cut at their middle instead of dimming pixels;
    and the mean of all answers is taken off, so that a player without influence gets 0.

    Args:
        game: of any number of players.
        max_evals: evaluations at most, 4,000 if None.
        seed: of the masks.
        clock: stops between two calls of the model.

    Returns:
        Mean answer where a player is shown minus the mean of all, with standard errors; NaN where nothing was drawn.

    Raises:
        ValueError: `max_evals` is below 2.

    Source: Petsiuk, Das & Saenko 2018 (arXiv:1806.07421), Section 3.
    """
    asked = Asked(game, max_evals, clock)
    trivial = asked.trivial()
    if trivial is not None:
        return trivial
    limit = max_evals or RISE_EVALS
    random = np.random.default_rng(seed)
    grid = game.tree if isinstance(game.tree, tuple) and min(game.tree) > RISE_CELLS else None
    shown, answers = [np.empty((0, asked.players), bool)], [np.empty(0)]
    while asked.evaluations < limit and not clock.over:
        few = clock.portion(limit - asked.evaluations)
        drawn = _blobs(few, grid, random) if grid else random.random((few, game.players)) < RISE_SHOWN
        shown.append(drawn[:, asked.varying])
        answers.append(asked.ask(shown[-1], limit))
    masks, answer = np.concatenate(shown), np.concatenate(answers)
    count = masks.sum(axis=0)
    values, error = np.zeros(asked.players), np.full(asked.players, np.nan)
    if len(answer):
        left = answer - answer.mean()
        values = (left @ masks) / np.maximum(count, 1)
        scores = masks * (left[:, None] - values) / np.maximum(count, 1) - left[:, None] / len(answer)
        error = np.where(count > 1, np.sqrt((scores**2).sum(axis=0)), np.nan)
    return asked.solved(values, error, asked.evaluations >= limit, masks=len(answer))


def _blobs(number: int, grid: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Random smooth masks (number, tiles): cells are drawn, enlarged by linear interpolation, shifted and cut."""
    cells = random.random((number, RISE_CELLS + 2, RISE_CELLS + 2)) < RISE_SHOWN
    made = cells.astype(np.float64)
    each = np.arange(number)[:, None]
    for axis, length in enumerate(grid):
        at = np.arange(length) * RISE_CELLS / length + random.random((number, 1))  # in cells, shifted by up to one
        low = at.astype(int)  # (number, length)
        part = (at - low)[..., None]
        made = np.moveaxis(made, axis + 1, 1)
        made = made[each, low] * (1 - part) + made[each, low + 1] * part
        made = np.moveaxis(made, 1, axis + 1)
    return made.reshape(number, -1) > 0.5
