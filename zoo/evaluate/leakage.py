"""Whether data give away in training what they ask for in the test: copies, near copies, telling columns, ids, times.

Kaufman, Rosset, Perlich & Stitelman, "Leakage in Data Mining", ACM TKDD 6 (2012); Kapoor & Narayanan, "Leakage and the
reproducibility crisis in machine-learning-based science", Patterns 4 (2023), whose kinds the checks below follow.

Near copies: the distances from a row to its nearest and third nearest training row are compared. Where rows are spread
evenly in d dimensions, (first / third) ** d is at most t by chance with probability 1 - (1 - t) ** 2 whatever the
density, and d is read from the data (Facco, d'Errico, Rodriguez & Laio, "Estimating the intrinsic dimension of datasets
by a minimal neighborhood information", Scientific Reports 7 (2017) 12140). Images are described by the low frequencies
of their cosine transform, which are what a perceptual hash rounds to bits (Zauner, "Implementation and benchmarking of
perceptual image hash functions", 2010, section 3.2.1); on small images bits are too coarse, so the numbers are kept.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo import data as datasets
from zoo.data import Data, lazy
from zoo.evaluate.columns import Column, columns
from zoo.evaluate.findings import Finding, listed, named, over
from zoo.evaluate.report import defined

CHANCE = 0.01  # probability of one false alarm among all rows of a data set
CLOSE = 0.3  # of the usual distance to the nearest training row
FEW = 20  # different values of a column that groups rows rather than measures them
MOST = 20_000  # training rows compared with, drawn from the seed
SIDE, LOW = 32, 8  # of the grey thumbnail in pixels, and of the frequencies kept


@dataclass(frozen=True)
class Copy:
    """A row that stands, or almost stands, in an earlier split.

    Attributes:
        split, row: where it is.
        earlier, there: where its like is.
        distance: between the two in parts of the usual distance to the nearest row; 0 for equal rows.
        mirrored: an image whose like is its mirror image.
        other_target: the two have different classes, or values.
    """

    split: str
    row: int
    earlier: str
    there: int
    distance: float
    other_target: bool
    mirrored: bool = False


@dataclass(frozen=True)
class Leakage:
    """What a data set gives away.

    Attributes:
        data: its name.
        copies: equal rows in two splits.
        near: rows of two splits that are almost equal.
        columns: what each column tells by itself, the most telling one first.
        findings: what is wrong.
        pairs: the first near copies as pictures, `(pairs, 2, height, width, channels)`; None for tables.
    """

    data: str
    copies: tuple[Copy, ...]
    near: tuple[Copy, ...]
    columns: tuple[Column, ...]
    findings: tuple[Finding, ...]
    pairs: np.ndarray | None = field(default=None, repr=False)

    def __str__(self) -> str:
        top = ", ".join(f"{column.name} {column.alone:.2f}" for column in self.columns[:5])
        lines = [
            f"{self.data}: {len(self.copies)} copies and {len(self.near)} near copies between splits",
            f"most telling columns by themselves (0 guesses, 1 knows the target): {top}",
            listed(self.findings, "nothing leaks that these checks can see"),
        ]
        return "\n".join(lines)

    def to_json(self) -> str:
        """All figures as JSON text."""
        raw = {
            "data": self.data,
            "copies": [vars(copy) for copy in self.copies],
            "near": [vars(copy) for copy in self.near],
            "columns": [vars(column) for column in self.columns],
            "findings": [vars(finding) for finding in self.findings],
        }
        return json.dumps(defined(raw), indent=2) + "\n"

    def plot(self, path: str | Path) -> Path:
        """Picture of the near copies side by side, or else of how much each column tells."""
        from zoo.evaluate import check_pictures

        if self.pairs is not None and len(self.pairs):
            return check_pictures.pairs(self.pairs, self.near, path)
        return check_pictures.columns(self.columns, self.data, path)


def leakage(
    data: Any, *, target: str | None = None, text: str = "", seed: int = 0, near: bool = True, progress: bool = False
) -> Leakage:
    """Look for what a data set gives away: copies across splits, columns that tell the target, ids and times.

    Args:
        data: name, path or `zoo.data.Data`; or a run or run folder, whose splits are then looked at.
        target: target column of a table.
        text: column of a table whose texts are read alone, or two with a comma between.
        seed: of the splits, and of the rows drawn from a large training split.
        near: also look for near copies, which takes time of rows times rows.
        progress: show a progress bar.

    Returns:
        What was found, with what to do about each.

    Raises:
        ValueError: there is no such data, or it has no rows for training.
    """
    splits = splits_of(data, target, seed, text)
    if not len(splits.train):
        raise ValueError(f"data {splits.name!r} has no training rows; give data with some")
    copies = tuple(
        Copy(split, row, earlier, there, 0.0, _differ(splits, split, row, earlier, there))
        for split, row, earlier, there in splits.leaks()
    )
    almost = _near(splits, copies, seed, progress) if near else ()
    told = columns(splits, seed, progress)
    findings = [*_of_copies(splits, copies, "equal"), *_of_copies(splits, almost, "almost equal")]
    findings += [finding for column in told for finding in column.findings(splits)]
    return Leakage(splits.name, copies, almost, told, tuple(findings), _pairs(splits, almost))


def splits_of(data: Any, target: str | None, seed: int, text: str = "") -> Data:
    """The splits of a data set, or those that a run or run folder was trained on."""
    if hasattr(data, "recipe") or (isinstance(data, str | Path) and (Path(data) / "recipe.json").exists()):
        from zoo.training import as_run

        return as_run(data).data
    tokenizer = "wordpiece" if "," in text else ""  # pairs need one that puts a token between
    return datasets.load(data, target=target, text=text, tokenizer=tokenizer, seed=seed)


def _differ(splits: Data, split: str, row: int, earlier: str, there: int) -> bool:
    one, other = splits.splits[split].y[row], splits.splits[earlier].y[there]
    return (
        bool(abs(one - other) > 1e-6 * abs(other))
        if splits.signature.task == "regression"
        else bool(np.any(one != other))
    )


def described(splits: Data, x: dict[str, np.ndarray]) -> np.ndarray:
    """Rows as points whose distances say how like they are, float32 `(rows, numbers)`.

    Images lose brightness and contrast; of tables the columns of many values are standardised. Columns of few values
    and categories are left out, since rows that agree in them lie on sheets, between which distances say nothing.
    """
    step = splits.signature.preprocess
    if step.kind != "image":
        many = _of_many_values(splits)
        return splits.signature.inputs(x)[:, : len(many)][:, many]
    from scipy.fft import dctn

    images = x["image"]
    found = np.empty((len(images), LOW, LOW), np.float32)
    for start in range(0, len(images), 256):
        grey = images[start : start + 256].mean(axis=-1, dtype=np.float32)
        waves = dctn(_thumbnails(grey), axes=(1, 2), norm="ortho")
        found[start : start + 256] = waves[:, :LOW, :LOW]
    found[:, 0, 0] = 0  # brightness
    points = found.reshape(len(images), -1)
    return points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-6)


def _of_many_values(splits: Data) -> np.ndarray:
    """Which number columns of a table have more than `FEW` different values, bool `(columns,)`."""
    numbers = splits.train.x.get("numbers", np.zeros((len(splits.train), 0), np.float32))
    return np.array([len(np.unique(column[np.isfinite(column)])) > FEW for column in numbers.T], bool)


def _sheet(splits: Data, name: str, row: int) -> list[Any]:
    """What a row of a table has in its columns of few values and its categories; nothing of an image."""
    x = splits.splits[name].x
    few = x["numbers"][row][~_of_many_values(splits)] if "numbers" in x else []
    return [*np.nan_to_num(few, nan=np.inf).tolist(), *(x["categories"][row].tolist() if "categories" in x else [])]


def _thumbnails(grey: np.ndarray) -> np.ndarray:
    """Grey images brought to at most `SIDE` pixels a side by averaging areas, `(rows, height, width)`."""
    for axis in (1, 2):
        length = grey.shape[axis]
        if length > SIDE:
            edges = np.linspace(0, length, SIDE + 1)
            total = np.concatenate([np.zeros_like(grey.take([0], axis)), grey.cumsum(axis, dtype=np.float64)], axis)
            below = np.floor(edges).astype(int)
            above = np.minimum(below + 1, length)
            share = np.expand_dims(edges - below, [i for i in range(3) if i != axis])
            at = total.take(below, axis) * (1 - share) + total.take(above, axis) * share
            grey = np.diff(at, axis=axis) * (SIDE / length)
    return grey


def _near(splits: Data, copies: tuple[Copy, ...], seed: int, progress: bool) -> tuple[Copy, ...]:
    """Rows of the later splits that are far nearer to a row of an earlier one than chance would have it."""
    random = np.random.default_rng(seed)
    known = {(copy.split, copy.row) for copy in copies}
    earlier: list[tuple[str, np.ndarray, np.ndarray]] = []
    found: list[Copy] = []
    for name, split in splits.splits.items():
        rows = np.arange(len(split))
        if len(rows) > MOST and name == "train":
            rows = np.sort(random.choice(rows, MOST, replace=False))
        points = described(splits, {key: lazy.pick(values, rows) for key, values in split.x.items()})
        if earlier and len(points):
            there = np.concatenate([p for _, _, p in earlier])
            owners = [(n, row) for n, own, _ in earlier for row in own.tolist()]
            fresh = np.array([(name, row) not in known for row in rows.tolist()])
            for mirrored in (False, True) if splits.signature.preprocess.kind == "image" else (False,):
                asked = points * _mirror() if mirrored else points
                for place, match, distance in _unlikely(asked[fresh], there, progress):
                    row = int(rows[fresh][place])
                    own, other = owners[match]
                    told = any((copy.split, copy.row) == (name, row) for copy in found)
                    if not told and _sheet(splits, name, row) == _sheet(splits, own, other):
                        found.append(
                            Copy(name, row, own, other, distance, _differ(splits, name, row, own, other), mirrored)
                        )
        earlier.append((name, rows, points))
    return tuple(sorted(found, key=lambda copy: copy.distance))


def _mirror() -> np.ndarray:
    """What turns the description of an image into that of its mirror image: odd waves along the width change sign."""
    return np.tile((-1.0) ** np.arange(LOW), LOW).astype(np.float32)


def _unlikely(points: np.ndarray, there: np.ndarray, progress: bool) -> list[tuple[int, int, float]]:
    """`(row, its like, distance in parts of the usual)` of the points that chance does not put so near."""
    if len(there) < 10 or not points.size:
        return []
    nearest, match = _neighbours(points, there, progress)
    usual = float(np.median(nearest[:, 0]))
    apart = (nearest[:, 0] > 0) & (nearest[:, 1] > nearest[:, 0])
    if not usual or apart.sum() < 10:
        return []
    dimension = np.log(2) / max(float(np.median(np.log(nearest[apart, 1] / nearest[apart, 0]))), 1e-3)
    ratio = nearest[:, 0] / np.maximum(nearest[:, 2], 1e-12)
    chance = 1 - (1 - np.minimum(ratio, 1) ** dimension) ** 2
    chosen = np.flatnonzero((chance < CHANCE / len(points)) & (nearest[:, 0] < CLOSE * usual))
    return [(int(i), int(match[i]), float(nearest[i, 0] / usual)) for i in chosen]


def _neighbours(points: np.ndarray, there: np.ndarray, progress: bool) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the three nearest of `there`, `(rows, 3)`, and which is the nearest."""
    points, there = points.astype(np.float64), there.astype(np.float64)
    squares = np.square(there).sum(axis=1)
    size = max(1, 2**22 // len(there))
    near, match = np.empty((len(points), 3)), np.empty(len(points), int)
    for start in over(range(0, len(points), size), "near copies", progress):
        own = points[start : start + size]
        far = np.square(own).sum(axis=1)[:, None] + squares - 2 * own @ there.T
        three = np.argpartition(far, 2, axis=1)[:, :3]
        exact = np.linalg.norm(own[:, None] - there[three], axis=2)  # the squares above lose small distances
        order = np.argsort(exact, axis=1)
        near[start : start + size] = np.take_along_axis(exact, order, axis=1)
        match[start : start + size] = np.take_along_axis(three, order, axis=1)[:, 0]
    return near, match


def _of_copies(splits: Data, copies: tuple[Copy, ...], how: str) -> list[Finding]:
    found = []
    for name, split in splits.splits.items():
        own = [copy for copy in copies if copy.split == name]
        if own:
            which = named([f"row {c.row} = {c.earlier} row {c.there}" for c in own], 4)
            torn = sum(copy.other_target for copy in own)
            differing = f"; {torn} of them with another target" if torn else ""
            found.append(
                Finding(
                    name,
                    f"{len(own)} of {len(split)} rows are {how} to rows of an earlier split ({which}){differing}",
                    f"its score is too good: keep like rows in one split, or remove them from {name}"
                    + (", and settle which target is right" if torn else ""),
                )
            )
    return found


def _pairs(splits: Data, near: tuple[Copy, ...], most: int = 8) -> np.ndarray | None:
    if splits.signature.preprocess.kind != "image":
        return None
    shown = near[:most]
    pictures = [
        np.stack([splits.splits[c.split].x["image"][c.row], splits.splits[c.earlier].x["image"][c.there]])
        for c in shown
    ]
    return np.stack(pictures) if pictures else np.zeros((0, 2, 1, 1, 1), np.uint8)
