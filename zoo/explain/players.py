"""One answer as a game: players are columns, tiles, words, stretches of time, nodes or edges, there or left out."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zoo.explain.sources import similarity
from zoo.explain.subject import Raw, Subject
from zoo.explain.targets import Target

SINGLE = 100  # an 8x8 image can be explained pixel by pixel, a 28x28 one cannot in bounded time
TILES = 32  # tiles a side at most
SEGMENTS = 64  # stretches of time at most
CELLS = 256  # stretches of time times channels at most
ROWS = 200_000  # model rows per explained table row at most, by taking fewer background rows
WORDS = re.compile(r"\s*(?:[぀-ヿ㐀-鿿豈-﫿]|\w+(?:['’-]\w+)*|[^\w\s])")
"""A word with the space before it; a mark, and a character of a script without spaces, is a word of its own."""


@dataclass
class Game:
    """One answer as a function of which players are present.

    Attributes:
        players: their number.
        tree: `(rows, columns)` of a grid that they lie on, player `row * columns + column`: tiles of an image,
            stretches of time by channel, words in one row; a linkage matrix (players - 1, 4) as of scipy; None without
            order.
        play: masks bool (coalitions, players) -> answers (coalitions,), averaged over the background.
        spread: contributions per player (players,) -> contributions in the shape of the input row.
        distance: of each player from the background (players,). Those at 0 contribute nothing; of two others the farther
            is expected to contribute more, as to first order a contribution is gradient times distance. Bool where only
            that is known.
        settings: figures of the game.
        calls: model rows evaluated so far.
        gather: contributions in the shape of the input row -> their sums per player (players,).
        names: of the players, empty for tiles and stretches of time.
        sides: of a pair, the shape of either side's contributions and the names of its players.
        rows: background rows that each coalition is answered with, and averaged over.
        play_rows: masks and the number of one background row for each (coalitions,) -> answers with that row alone;
            None where there is but one.
    """

    players: int
    tree: tuple[int, int] | np.ndarray | None
    play: Callable[[np.ndarray], np.ndarray]
    spread: Callable[[np.ndarray], np.ndarray]
    distance: np.ndarray
    settings: dict[str, Any]
    calls: int = 0
    gather: Callable[[np.ndarray], np.ndarray] = field(default=lambda values: values)
    names: tuple[str, ...] = ()
    sides: tuple[tuple[tuple[int, ...], tuple[str, ...]], ...] = ()
    rows: int = 1
    play_rows: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None

    @property
    def varying(self) -> np.ndarray:
        """Players whose value differs from the background (players,) bool."""
        return self.distance > 0


@dataclass
class _Parts:
    """The players of one row, and the raw rows that coalitions of them give."""

    players: int
    build: Callable[[np.ndarray], Raw]
    distance: np.ndarray
    tree: tuple[int, int] | None = None
    spread: Callable[[np.ndarray], np.ndarray] = lambda values: values
    gather: Callable[[np.ndarray], np.ndarray] = lambda values: values
    settings: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    repeats: int = 1  # rows per coalition
    build_rows: Callable[[np.ndarray, np.ndarray], Raw] | None = None  # of one background row each


def game(subject: Subject, row: Raw, target: int | Target, evaluations: int) -> Game:
    """The game behind one row and one number of its answer.

    Args:
        subject: whose answer it is.
        row: raw inputs, a batch of one.
        target: which number of the answer, as an index of the outputs or in full.
        evaluations: coalitions that will be asked for; a table with many takes fewer background rows.
    """
    target = target if isinstance(target, Target) else Target(int(target))
    if subject.of is not None:
        return _pair(subject, subject.of, row)
    parts = _parts(subject, row, evaluations)
    chunk = max(1, subject.batch(row) // parts.repeats)

    def play(masks: np.ndarray) -> np.ndarray:
        answers = [
            target.read(subject.predict(parts.build(masks[start : start + chunk])))
            for start in range(0, len(masks), chunk)
        ]
        made.calls += parts.repeats * len(masks)
        return np.concatenate(answers).reshape(len(masks), parts.repeats).mean(axis=1)

    def play_rows(masks: np.ndarray, rows: np.ndarray) -> np.ndarray:
        size = chunk * parts.repeats
        made.calls += len(masks)
        return np.concatenate(
            [
                target.read(subject.predict(parts.build_rows(masks[start : start + size], rows[start : start + size])))
                for start in range(0, len(masks), size)
            ]
        )

    made = Game(
        parts.players,
        parts.tree,
        play,
        parts.spread,
        parts.distance,
        parts.settings,
        gather=parts.gather,
        names=parts.names,
        rows=parts.repeats,
        play_rows=play_rows if parts.build_rows and parts.repeats > 1 else None,
    )
    return made


def count(subject: Subject, raw: Raw) -> int:
    """Players of the row that has the most."""
    if subject.kind == "table":
        return len(subject.columns)
    rows = (
        {name: values[row : row + 1] for name, values in raw.items()} for row in range(len(next(iter(raw.values()))))
    )
    if subject.of is not None:
        return max(sum(_parts(subject.of, side, 1).players for side in _sides(subject.of, row)) for row in rows)
    if subject.kind in ("image", "series"):  # all rows have the same size
        return _parts(subject, next(rows), 1).players
    return max(_parts(subject, row, 1).players for row in rows)


def _parts(subject: Subject, row: Raw, evaluations: int) -> _Parts:
    if subject.kind == "table":
        return _table(subject, row, evaluations)
    makers = {"image": _image, "text": _words if "text" in row else _tokens, "series": _series, "graph": _graph}
    return makers[subject.kind](subject, row)


def _table(subject: Subject, row: Raw, evaluations: int) -> _Parts:
    rows = len(next(iter(subject.background.values())))
    few = max(1, min(rows, ROWS // evaluations))
    background = {name: values[:few] for name, values in subject.background.items()}
    ends = np.cumsum([values.shape[1] for values in background.values()]).tolist()
    places = {name: slice(end - background[name].shape[1], end) for name, end in zip(background, ends, strict=True)}

    def build(masks: np.ndarray) -> Raw:
        made = {}
        for name, values in background.items():
            own = masks[:, None, places[name]]  # (coalitions, 1, columns)
            made[name] = np.where(own, row[name][None], values[None]).reshape(-1, values.shape[1])
        return made

    def build_rows(masks: np.ndarray, rows: np.ndarray) -> Raw:
        return {name: np.where(masks[:, places[name]], row[name], values[rows]) for name, values in background.items()}

    def differs(name: str) -> np.ndarray:
        own, others = row[name], background[name]
        same = own == others
        if own.dtype.kind == "f":
            same |= np.isnan(own) & np.isnan(others)
        return ~same.all(axis=0)

    settings = {"background_rows": few}
    return _Parts(
        len(subject.columns),
        build,
        np.concatenate([differs(name) for name in background]),
        settings=settings,
        names=subject.columns,
        repeats=few,
        build_rows=build_rows,
    )


def _image(subject: Subject, row: Raw) -> _Parts:
    image = row["image"][0]
    fill = _fill(subject, "image", image)
    side, grid = tiles(*image.shape[:2])
    owner = _owners(image.shape[:2], (side, side), grid[1])  # (height, width)
    cells = np.bincount(owner.ravel())
    settings = {"tile_side": side, "tiles": grid[0] * grid[1], **_left_out(subject)}
    return _Parts(
        players=grid[0] * grid[1],
        build=lambda masks: {"image": np.where(masks[:, owner][..., None], image, fill)},
        distance=np.bincount(owner.ravel(), _distance(image, fill).sum(axis=-1).ravel()),
        tree=grid,
        spread=lambda values: np.repeat((values / cells)[owner][..., None] / image.shape[2], image.shape[2], axis=-1),
        gather=lambda values: np.bincount(owner.ravel(), _flat(values, 2).ravel()),
        settings=settings,
    )


def tiles(height: int, width: int) -> tuple[int, tuple[int, int]]:
    """Pixels a side of a tile, and tiles by row and column."""
    side = 1 if height * width <= SINGLE else math.ceil(max(height, width) / TILES)
    return side, (math.ceil(height / side), math.ceil(width / side))


def _series(subject: Subject, row: Raw) -> _Parts:
    series = row["series"][0]
    time, channels = series.shape
    fill = _fill(subject, "series", series)
    if subject.gaps:  # what is left out keeps its length
        to_end = np.cumsum(~np.isnan(series).all(axis=1)[::-1])[::-1] > 0
        fill = np.where(to_end[:, None], fill, np.asarray(np.nan, fill.dtype))
    most = time if time * channels <= SINGLE else max(2, min(SEGMENTS, CELLS // channels))
    length = math.ceil(time / most)
    segments = math.ceil(time / length)
    owner = _owners((time, channels), (length, 1), channels)
    cells = np.bincount(owner.ravel())
    far = np.nan_to_num(_distance(series, fill))  # each channel in a unit of its own
    return _Parts(
        players=segments * channels,
        build=lambda masks: {"series": np.where(masks[:, owner], series, fill)},
        distance=np.bincount(owner.ravel(), (far / np.maximum(far.mean(axis=0), 1e-300)).ravel()),
        tree=(segments, channels),
        spread=lambda values: (values / cells)[owner],
        gather=lambda values: np.bincount(owner.ravel(), values.ravel()),
        settings={"segment_length": length, "segments": segments, **_left_out(subject)},
    )


def _words(subject: Subject, row: Raw) -> _Parts:
    of_each = {name: _pieces(subject, str(values[0])) for name, values in row.items()}  # one text, or both of a pair
    words = [word for own in of_each.values() for word in own]
    pieces = np.array(words, object)
    gaps = np.array([_gap(word, subject.gap) for word in words], object)
    ends = np.cumsum([len(own) for own in of_each.values()])[:-1]

    def build(masks: np.ndarray) -> Raw:
        shown = np.split(np.where(masks, pieces, gaps), ends, axis=1)
        parts = zip(of_each, shown, strict=True)
        return {name: np.array(["".join(each).strip() for each in part.tolist()]) for name, part in parts}

    settings = {"left_out": "without the word" if subject.gap is None else f"{subject.gap!r} in its place"}
    names = tuple(word.strip() for word in words)
    return _Parts(len(words), build, np.array(pieces != gaps, bool), (1, len(words)), settings=settings, names=names)


def _pieces(subject: Subject, text: str) -> list[str]:
    """What a text is left out by."""
    words = list(subject.split(text)) if subject.split else WORDS.findall(text)
    if subject.split and "".join(words) != text:
        raise ValueError(f"the pieces that split gives must join to the text, got {words!r} for {text!r}")
    return words


def _gap(word: str, gap: str | None) -> str:
    """What stands in place of a word: nothing, or the gap behind the word's own space."""
    return "" if gap is None else word[: len(word) - len(word.lstrip())] + gap


def _tokens(subject: Subject, row: Raw) -> _Parts:
    tokens = row["tokens"][0]
    places = np.flatnonzero(tokens != subject.padding)
    gap = np.asarray(subject.gap, tokens.dtype)

    def build(masks: np.ndarray) -> Raw:
        made = np.repeat(tokens[None], len(masks), axis=0)
        made[:, places] = np.where(masks, tokens[places], gap)
        return {"tokens": made}

    def spread(values: np.ndarray) -> np.ndarray:
        whole = np.zeros(len(tokens))
        whole[places] = values
        return whole

    return _Parts(
        players=len(places),
        build=build,
        distance=tokens[places] != gap,
        tree=(1, len(places)),
        spread=spread,
        gather=lambda values: values[places],
        settings={"left_out": f"token {int(gap)} in its place"},
    )


def _graph(subject: Subject, row: Raw) -> _Parts:
    nodes, adjacency = row["nodes"][0], row["adjacency"][0]
    if subject.explained == "edges":
        return _edges(nodes, adjacency)
    given = subject.background.get("nodes")
    fill = np.zeros_like(nodes[0]) if given is None else given.mean(axis=(0, 1))  # (features,)

    def build(masks: np.ndarray) -> Raw:
        links = adjacency * masks[:, :, None] * masks[:, None, :]
        return {"nodes": np.where(masks[..., None], nodes, fill), "adjacency": links}

    settings = {"left_out": f"{'zeros' if given is None else 'the mean node'} in its place, without its edges"}
    linked = (adjacency != 0).any(axis=0) | (adjacency != 0).any(axis=1)
    names = tuple(map(str, range(len(nodes))))
    return _Parts(len(nodes), build, (nodes != fill).any(axis=1) | linked, settings=settings, names=names)


def edges_of(adjacency: np.ndarray) -> tuple[np.ndarray, bool]:
    """Edges of a graph (edges, 2) without loops, and whether each stands for both directions.

    Args:
        adjacency: (nodes, nodes), an edge from the row's node to the column's where it is not 0.
    """
    both = bool((adjacency == adjacency.T).all())
    links = np.triu(adjacency, 1) if both else adjacency * ~np.eye(len(adjacency), dtype=bool)
    return np.argwhere(links != 0), both


def _edges(nodes: np.ndarray, adjacency: np.ndarray) -> _Parts:
    edges, both = edges_of(adjacency)
    start, end = edges.T
    weights, back = adjacency[start, end], adjacency[end, start]

    def build(masks: np.ndarray) -> Raw:
        links = np.repeat(adjacency[None], len(masks), axis=0)
        links[:, start, end] = np.where(masks, weights, 0)
        if both:
            links[:, end, start] = np.where(masks, back, 0)
        return {"nodes": np.repeat(nodes[None], len(masks), axis=0), "adjacency": links}

    names = tuple(f"{one}{'–' if both else '→'}{other}" for one, other in edges.tolist())
    return _Parts(len(edges), build, np.ones(len(edges), bool), settings={"left_out": "without the edge"}, names=names)


def _sides(side: Subject, row: Raw) -> tuple[Raw, Raw]:
    return {side.names[0]: row["left"]}, {side.names[0]: row["right"]}


def _pair(subject: Subject, side: Subject, row: Raw) -> Game:
    """Players of the left side, then of the right; the answer is the similarity of what both embed to."""
    left, right = (_parts(side, each, 1) for each in _sides(side, row))
    chunk = max(1, side.batch(row) // max(left.repeats, right.repeats))

    def embeddings(parts: _Parts, masks: np.ndarray) -> np.ndarray:
        """Of either side (coalitions, length), each coalition of it embedded once."""
        unique, places = np.unique(masks, axis=0, return_inverse=True)
        found = [side.predict(parts.build(unique[at : at + chunk])) for at in range(0, len(unique), chunk)]
        made.calls += parts.repeats * len(unique)
        whole = np.concatenate(found).astype(np.float64)
        return whole.reshape(len(unique), parts.repeats, -1)[places.ravel()]  # (coalitions, repeats, length)

    def play(masks: np.ndarray) -> np.ndarray:
        one, two = embeddings(left, masks[:, : left.players]), embeddings(right, masks[:, left.players :])
        return similarity(one, two).mean(axis=1)

    def spread(values: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [left.spread(values[: left.players]).ravel(), right.spread(values[left.players :]).ravel()]
        )

    shape = left.spread(np.zeros(left.players)).shape
    size = math.prod(shape)

    def gather(values: np.ndarray) -> np.ndarray:
        return np.concatenate([left.gather(values[:size].reshape(shape)), right.gather(values[size:].reshape(shape))])

    made = Game(
        players=left.players + right.players,
        tree=_above(left.tree, right.tree),
        play=play,
        spread=spread,
        distance=np.concatenate([left.distance, right.distance]),
        settings=left.settings,
        gather=gather,
        names=left.names + right.names,
        sides=tuple((part.spread(np.zeros(part.players)).shape, part.names) for part in (left, right)),
    )
    return made


def _above(one: tuple[int, int] | None, two: tuple[int, int] | None) -> tuple[int, int] | None:
    """One grid of two: below each other where they have as many columns, else beside each other as single rows."""
    if one is None or two is None:
        return None
    if one[1] == two[1]:
        return one[0] + two[0], one[1]
    return 1, one[0] * one[1] + two[0] * two[1]


def _owners(shape: tuple[int, int], size: tuple[int, int], columns: int) -> np.ndarray:
    """Number of the cell that each place of a grid lies in, cells of `size` counted row by row."""
    return (np.arange(shape[0])[:, None] // size[0]) * columns + np.arange(shape[1])[None] // size[1]


def _distance(own: np.ndarray, fill: np.ndarray) -> np.ndarray:
    """Between numbers of any type, float64."""
    return np.abs(own.astype(np.float64) - fill.astype(np.float64))


def _flat(values: np.ndarray, rank: int) -> np.ndarray:
    """Contributions summed over the axes behind the first `rank`."""
    return values.sum(axis=tuple(range(rank, values.ndim))) if values.ndim > rank else values


def _fill(subject: Subject, name: str, own: np.ndarray) -> np.ndarray:
    """What stands in place of what is left out: the background's mean, or each channel's own mean of the row."""
    if name in subject.background:
        given = subject.background[name]
        return given[0] if len(given) == 1 else given.mean(axis=0, dtype=np.float64).astype(given.dtype)
    mean = own.mean(axis=tuple(range(own.ndim - 1)), dtype=np.float64)
    return np.broadcast_to(np.rint(mean) if own.dtype.kind in "iu" else mean, own.shape).astype(own.dtype)


def _left_out(subject: Subject) -> dict[str, str]:
    return {} if subject.background else {"left_out": "the row's own mean of each channel in its place"}
