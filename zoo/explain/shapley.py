"""Shapley values of one answer, as a game whose players are columns, pixels or square tiles of pixels."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.explain.subject import Raw, Subject
from zoo.registry import suggest

METHODS = {"table": ("exact", "permutation"), "image": ("permutation", "partition")}
EXACT_AUTO, EXACT_MOST = 10, 15  # columns; 2 ** 15 coalitions
PERMUTED_PIXELS = 100  # an 8x8 image can be permuted pixel by pixel, a 28x28 one cannot in bounded time
PERMUTATIONS = 10  # random orders, each walked forwards and backwards
PARTITION_EVALS = 500
TILES = 32  # tiles a side at most
ROWS = 200_000  # model rows per explained table row at most, by taking fewer background rows
CHUNK_BYTES = 32 * 2**20  # masked inputs held at once


def choose(method: str, subject: Subject) -> tuple[str, str]:
    """Method to use and why.

    Raises:
        ValueError: the method is unknown or not for this kind of input.
    """
    known = METHODS[subject.kind]
    if method != "auto":
        if method not in known:
            everything = sorted({name for names in METHODS.values() for name in names})
            hint = suggest(method, ["auto", *known]) if method not in everything else ""
            raise ValueError(
                f"no method {method!r} for {subject.kind} inputs; methods are auto, {', '.join(known)}.{hint}"
            )
        return method, "asked for"
    if subject.kind == "table":
        count = len(subject.columns)
        if count <= EXACT_AUTO:
            return "exact", f"{count} columns have only {2**count:,} coalitions: all are evaluated"
        return "permutation", f"{count} columns have too many coalitions: random orders sample them"
    pixels = math.prod(subject.shape[:2])
    if pixels <= PERMUTED_PIXELS:
        return "permutation", f"{pixels} pixels are few enough to be put in random orders one by one"
    return (
        "partition",
        f"{pixels:,} pixels are too many one by one: a tree of halves spends its evaluations where they matter",
    )


@dataclass
class Game:
    """One answer as a function of which players are present.

    Attributes:
        players: number of columns or tiles.
        tree: `(rows, columns)` of the grid of tiles, None for a table.
        play: masks bool (coalitions, players) -> answers (coalitions,), averaged over the background.
        spread: contributions per player (players,) -> contributions in the shape of the input row.
        varying: players whose value differs from the background (players,) bool; the others contribute nothing.
        calls: model rows evaluated so far.
    """

    players: int
    tree: tuple[int, int] | None
    play: Callable[[np.ndarray], np.ndarray]
    spread: Callable[[np.ndarray], np.ndarray]
    varying: np.ndarray
    settings: dict[str, Any]
    calls: int = 0


def budget(method: str, subject: Subject, max_evals: int | None) -> int:
    """Coalitions that a method will ask of one row, at most.

    Raises:
        ValueError: too many columns for "exact", or `max_evals` below what the method needs.
    """
    count = math.prod(_grid(subject)[1]) if subject.kind == "image" else len(subject.columns)
    if method == "exact":
        if count > EXACT_MOST:
            raise ValueError(
                f"exact takes at most {EXACT_MOST} columns, {subject.name!r} has {count}; use method='permutation'"
            )
        if max_evals is not None and max_evals < 2**count:
            raise ValueError(
                f"exact needs {2**count} evaluations for {count} columns, got max_evals={max_evals}; use method='permutation'"
            )
        return 2**count
    least = 2 * count + 1 if method == "permutation" else 4
    if max_evals is not None and max_evals < least:
        raise ValueError(
            f"{method} needs at least {least} evaluations for {count} columns or tiles, got max_evals={max_evals}"
        )
    return max_evals or (PERMUTATIONS * least if method == "permutation" else PARTITION_EVALS)


def game(subject: Subject, row: Raw, target: int, evaluations: int) -> Game:
    """The game behind one row (batch of one) and one output."""
    return _image(subject, row, target) if subject.kind == "image" else _table(subject, row, target, evaluations)


def _table(subject: Subject, row: Raw, target: int, evaluations: int) -> Game:
    rows = len(next(iter(subject.background.values())))
    few = max(1, min(rows, ROWS // evaluations))
    background = {name: values[:few] for name, values in subject.background.items()}
    sizes = {name: values.shape[1] for name, values in background.items()}
    ends = dict(zip(sizes, np.cumsum(list(sizes.values())).tolist(), strict=True))

    def play(masks: np.ndarray) -> np.ndarray:
        chunk = max(1, CHUNK_BYTES // (few * 64 * len(subject.columns)))
        answers = []
        for start in range(0, len(masks), chunk):
            part = masks[start : start + chunk]
            raw = {}
            for name, values in background.items():
                own = part[:, None, ends[name] - sizes[name] : ends[name]]  # (coalitions, 1, columns)
                raw[name] = np.where(own, row[name][None], values[None]).reshape(-1, sizes[name])
            answers.append(subject.predict(raw)[:, target].reshape(len(part), few).mean(axis=1, dtype=np.float64))
        found.calls += few * len(masks)
        return np.concatenate(answers)

    differs = [(row[name] != values).any(axis=0) for name, values in background.items()]
    settings = {"background_rows": few}
    found = Game(len(subject.columns), None, play, lambda values: values, np.concatenate(differs), settings)
    return found


def _grid(subject: Subject) -> tuple[int, tuple[int, int]]:
    """Pixels a side of a tile, and tiles by row and column."""
    height, width = subject.shape[:2]
    side = 1 if height * width <= PERMUTED_PIXELS else math.ceil(max(height, width) / TILES)
    return side, (math.ceil(height / side), math.ceil(width / side))


def _image(subject: Subject, row: Raw, target: int) -> Game:
    image, mean = row["image"][0], subject.background["image"][0]
    height, width, channels = image.shape
    side, grid = _grid(subject)
    owner = (np.arange(height)[:, None] // side) * grid[1] + np.arange(width)[None] // side  # (height, width)
    sizes = np.bincount(owner.ravel())

    def play(masks: np.ndarray) -> np.ndarray:
        chunk = max(1, CHUNK_BYTES // (image.size * 8))
        answers = []
        for start in range(0, len(masks), chunk):
            shown = masks[start : start + chunk][:, owner]  # (coalitions, height, width)
            answers.append(subject.predict({"image": np.where(shown[..., None], image, mean)})[:, target])
        found.calls += len(masks)
        return np.concatenate(answers).astype(np.float64)

    def spread(values: np.ndarray) -> np.ndarray:
        pixels = (values / sizes)[owner] / channels  # (height, width)
        return np.repeat(pixels[..., None], channels, axis=-1)

    differs = np.bincount(owner.ravel(), (image != mean).any(axis=-1).ravel()) > 0
    found = Game(grid[0] * grid[1], grid, play, spread, differs, {"tile_side": side, "tiles": grid[0] * grid[1]})
    return found


def solve(game: Game, method: str, max_evals: int | None, seed: int) -> tuple[np.ndarray, float, dict[str, Any]]:
    """Contributions in the shape of the input row, the answer with every player left out, and the settings used.

    Raises:
        ImportError: shap is not installed and the method needs it.
    """
    if method == "exact":
        values, base = _exact(game)
        return game.spread(values), base, {**game.settings, "coalitions": 2**game.players}
    shap = _shap()
    settings = dict(game.settings)
    with _seeded(seed):
        if method == "permutation":
            players = np.flatnonzero(game.varying)
            if not len(players):
                return (
                    game.spread(np.zeros(game.players)),
                    float(game.play(np.zeros((1, game.players), bool))[0]),
                    settings,
                )
            evaluations = max_evals or PERMUTATIONS * (2 * len(players) + 1)
            settings["orders"] = evaluations // (2 * len(players) + 1)
            masker = shap.maskers.Independent(np.zeros((1, len(players))))
            explainer = shap.explainers.Permutation(_among(game, players), masker, seed=seed)
        else:
            players = np.arange(game.players)
            evaluations = max_evals or PARTITION_EVALS
            masker = shap.maskers.Partition(np.zeros((1, game.players)), clustering=_halves(*game.tree))
            explainer = shap.explainers.Partition(_among(game, players), masker)
        found = explainer(np.ones((1, len(players))), max_evals=evaluations, batch_size=64, silent=True)
    values = np.zeros(game.players)
    values[players] = found.values[0]
    settings["evaluations"] = evaluations
    return game.spread(values), float(np.ravel(found.base_values)[0]), settings


def _exact(game: Game) -> tuple[np.ndarray, float]:
    """Shapley's sum over all coalitions, (players,), and the empty coalition's answer."""
    count = game.players
    codes = np.arange(2**count)
    masks = (codes[:, None] >> np.arange(count)) & 1 == 1  # (coalitions, players)
    answers = game.play(masks)
    sizes = masks.sum(axis=1)
    weight = np.array([1 / (count * math.comb(count - 1, size)) for size in range(count)])
    values = np.empty(count)
    for player in range(count):
        without = codes[~masks[:, player]]
        values[player] = weight[sizes[without]] @ (answers[without | (1 << player)] - answers[without])
    return values, float(answers[0])


def _among(game: Game, players: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The game as shap wants it: a function of 0/1 rows over some players, the others always present."""

    def play(present: np.ndarray) -> np.ndarray:
        masks = np.ones((len(present), game.players), bool)
        masks[:, players] = present > 0.5
        return game.play(masks)

    return play


def _halves(rows: int, columns: int) -> np.ndarray:
    """Tree over the tiles of a grid that halves the longer side, as a scipy linkage matrix (tiles - 1, 4)."""
    links: list[tuple[float, float, float, float]] = []

    def cut(top: int, bottom: int, left: int, right: int) -> int:
        height, width = bottom - top, right - left
        if height == width == 1:
            return top * columns + left
        if height >= width:
            middle = top + height // 2
            halves = cut(top, middle, left, right), cut(middle, bottom, left, right)
        else:
            middle = left + width // 2
            halves = cut(top, bottom, left, middle), cut(top, bottom, middle, right)
        links.append((*halves, height * width, height * width))
        return rows * columns + len(links) - 1

    cut(0, rows, 0, columns)
    return np.array(links, np.float64)


def _shap() -> Any:
    try:
        import shap
    except ImportError as error:
        raise ImportError("explain needs shap, which is not installed; run: pip install 'zooroad[explain]'") from error
    return shap


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """shap draws from numpy's global generator; give it a seed and put the caller's state back."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
