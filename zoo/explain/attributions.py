"""Contributions of a batch by any method, with their errors and the time they may take."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zoo.explain import methods, quality
from zoo.explain.clock import Clock
from zoo.explain.players import Game, game
from zoo.explain.subject import Raw, Subject
from zoo.explain.targets import Target

JUDGED = 2 * (quality.STEPS + 1) * (quality.ORDERS + 1)  # coalitions that faithfulness asks of one row


@dataclass
class Found:
    """Contributions of a batch.

    Attributes:
        attributions: (batch, ...) in the shape of the rows; a pair's sides behind each other (batch, features).
        base: (batch,), None for a method that has none.
        settings: figures of the method.
        standard_error: of the contributions, in their shape.
        complete: False if the time ended it.
        calls: model rows evaluated.
        sum: what base and contributions add up to (batch,), where that is not the answer.
        names: each row's own names of its parts.
        sides: of a pair, the shape of either side and each row's names of its parts.
        games: of the rows, and their contributions by player.
    """

    attributions: np.ndarray
    base: np.ndarray | None
    settings: dict[str, Any]
    standard_error: np.ndarray | None
    complete: bool
    calls: int
    sum: np.ndarray | None = None
    names: tuple[tuple[str, ...], ...] = ()
    sides: tuple[tuple[tuple[int, ...], tuple[tuple[str, ...], ...]], ...] = ()
    games: list[tuple[Game, np.ndarray]] = field(default_factory=list)


def find(
    method: str,
    subject: Subject,
    raw: Raw,
    targets: Sequence[Target],
    *,
    max_evals: int | None,
    seed: int,
    seconds: float | None,
    progress: Any,
) -> Found:
    """Contributions of all rows.

    Args:
        method: name of one that suits the subject.
        subject: what is explained.
        raw: rows to explain.
        targets: what of each row's answer.
        max_evals: evaluations per row at most, None for the method's own number.
        seed: of whatever is drawn.
        seconds: for all rows together, each gets the same share of what is left; None for no limit.
        progress: as of `Clock`.
    """
    if methods.METHODS[method].needs == "predict":
        return _by_games(method, subject, raw, targets, max_evals, seed, Clock(seconds, progress), bool(progress))
    return _by_model(method, subject, raw, targets, max_evals, seed, Clock(seconds, progress))


def _by_games(
    method: str,
    subject: Subject,
    raw: Raw,
    targets: Sequence[Target],
    max_evals: int | None,
    seed: int,
    clock: Clock,
    told: bool,
) -> Found:
    solve = methods.METHODS[method].function
    played, solved = [], []
    for row, target in enumerate(targets):
        one = row_of(raw, row)
        asked = methods.evaluations(method, len(subject.columns), max_evals)
        made = game(subject, one, target, asked)
        own = _share(clock, row, len(targets), told)
        solved.append(solve(made, max_evals=max_evals, seed=seed, clock=own))
        played.append(made)
    values, sides = stacked([each.spread(s.values) for each, s in zip(played, solved, strict=True)], played)
    error = None
    if any(s.standard_error is not None for s in solved):
        known = [np.zeros(len(s.values)) if s.standard_error is None else s.standard_error for s in solved]
        error, _ = stacked([each.spread(e) for each, e in zip(played, known, strict=True)], played)
    named = subject.kind in ("text", "graph") and all(each.names or not each.players for each in played)
    return Found(
        attributions=values,
        base=np.array([s.base for s in solved]) if methods.METHODS[method].additive else None,
        settings={**played[-1].settings, **solved[-1].settings},
        standard_error=error,
        complete=all(s.complete for s in solved),
        calls=sum(each.calls for each in played),
        names=tuple(each.names for each in played) if named else (),
        sides=sides,
        games=[(each, s.values) for each, s in zip(played, solved, strict=True)],
    )


def _share(clock: Clock, row: int, rows: int, told: bool) -> Clock:
    """A clock for one row: its share of the time that is left, telling of all rows."""
    seconds = None if clock.seconds is None else clock.left / (rows - row)
    return Clock(seconds, (lambda done, total: clock.tell(row * total + done, rows * total)) if told else False)


def stacked(
    rows: list[np.ndarray], games: Sequence[Game]
) -> tuple[np.ndarray, tuple[tuple[tuple[int, ...], tuple[tuple[str, ...], ...]], ...]]:
    """Contributions of rows as one array, short rows filled with zeros; and the sides of a pair."""
    if not games or not games[0].sides:
        return _filled(rows), ()
    parts, sides = [], []
    for side in (0, 1):
        shapes = [each.sides[side][0] for each in games]
        start = [int(np.prod(each.sides[0][0])) if side else 0 for each in games]
        cut = [row[at : at + int(np.prod(s))].reshape(s) for row, at, s in zip(rows, start, shapes, strict=True)]
        whole = _filled(cut)
        parts.append(whole.reshape(len(rows), -1))
        sides.append((whole.shape[1:], tuple(each.sides[side][1] for each in games)))
    return np.concatenate(parts, axis=1), tuple(sides)


def _filled(rows: list[np.ndarray]) -> np.ndarray:
    if len({row.shape for row in rows}) == 1:
        return np.stack(rows)
    longest = max(len(row) for row in rows)
    return np.stack([np.pad(row, (0, longest - len(row))) for row in rows])


def _by_model(
    method: str,
    subject: Subject,
    raw: Raw,
    targets: Sequence[Target],
    max_evals: int | None,
    seed: int,
    clock: Clock,
) -> Found:
    wanted = methods.METHODS[method]
    settings = {}
    if max_evals is not None:
        if not wanted.limit:
            raise ValueError(f"{method} takes no max_evals, its number of evaluations is fixed; leave it out")
        settings[wanted.limit] = max_evals
    found = wanted.function(
        subject, raw, np.array([target.index for target in targets]), seed=seed, clock=clock, **settings
    )
    values, sides = np.asarray(found.values, np.float64), ()
    if not (np.isfinite(values).all() and (found.base is None or np.isfinite(found.base).all())):
        raise ValueError(
            f"{method} meets NaN or infinity between the rows and the background; give a background that the model can judge, "
            "or take a method that needs predictions only"
        )
    if subject.of is not None:
        shape = values.shape[2:]
        sides = ((shape, ()), (shape, ()))
        values = values.reshape(len(values), -1)
    return Found(
        attributions=values,
        base=found.base,
        settings=found.settings,
        standard_error=found.standard_error,
        complete=found.complete,
        calls=found.calls,
        sum=found.prediction,
        sides=sides,
    )


def row_of(raw: Raw, row: int) -> Raw:
    """One row as a batch of one."""
    return {name: values[row : row + 1] for name, values in raw.items()}


def judge(
    method: str,
    subject: Subject,
    raw: Raw,
    targets: Sequence[Target],
    found: Found,
    *,
    max_evals: int | None,
    seed: int,
    clock: Clock,
) -> tuple[dict[str, float] | None, float | None, dict[str, Any]]:
    """Faithfulness and stability of what was found, and the figures behind them.

    Returns:
        Mean faithfulness of the rows, see `quality.faithfulness`; stability, see `quality.stability`; the figures:
        `rows` of faithfulness, those of stability, and the `model_rows` evaluated.
    """
    games = found.games or [
        (made, by_player(made, subject, found.attributions[row]))
        for row, made in enumerate(
            game(subject, row_of(raw, row), target, JUDGED) for row, target in enumerate(targets)
        )
    ]
    before = sum(made.calls for made, _ in games)
    judged = [quality.faithfulness(made, values, seed=seed, clock=clock) for made, values in games]
    known = [each for each in judged if each is not None]
    mean = {name: float(np.mean([each[name] for each in known])) for name in known[0]} if known else None
    calls = sum(made.calls for made, _ in games) - before

    def again(noisy: Raw) -> np.ndarray | None:
        nonlocal calls
        seconds = None if clock.seconds is None else clock.left
        other = find(method, subject, noisy, targets, max_evals=max_evals, seed=seed, seconds=seconds, progress=False)
        calls += other.calls
        return other.attributions if other.complete or not found.complete else None

    stable, figures = quality.stability(again, subject, raw, found.attributions, seed=seed, clock=clock)
    return mean, stable, {"rows": judged, **figures, "model_rows": calls}


def by_player(made: Game, subject: Subject, values: np.ndarray) -> np.ndarray:
    """Contributions of one row by player, from a map that may be coarser than the row or shared by its channels."""
    if subject.kind == "image" and "tile_side" in made.settings:
        shape = made.spread(np.zeros(made.players)).shape[:2]
        if values.shape[:2] != shape:
            down, across = (np.arange(n) * values.shape[axis] // n for axis, n in enumerate(shape))
            values = values[np.ix_(down, across)]
    elif subject.kind == "series" and values.ndim == 1:
        shape = made.spread(np.zeros(made.players)).shape
        values = np.broadcast_to((values / shape[1])[:, None], shape)
    return made.gather(values)
