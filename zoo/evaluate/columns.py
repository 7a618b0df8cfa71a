"""What each column of a data set tells by itself: of the target, of the row it stands in, of the time it was made."""

import re
from dataclasses import dataclass

import numpy as np

from zoo.data import Data, lazy
from zoo.evaluate.findings import Finding, over

TELLING = 0.98  # of the way from an answer that never changes to one that is always right
ALONE = 0.9  # the same, where no other column comes near: the second is below half
MOST = 20_000  # rows a column is judged on
FOLDS = 3
IDS = re.compile(r"(^|[_\W])(id|ids|uuid|guid|index|idx|row|nr|no|number|key)($|[_\W])", re.I)
TIMES = re.compile(r"(^|[_\W])(date|time|timestamp|datetime|year|month|day|created|updated)($|[_\W])", re.I)
GROUPS = re.compile(
    r"(^|[_\W])(patient|subject|user|customer|client|person|speaker|author|group|family|household|site|hospital|"
    r"device|session|store|account)($|[_\W])",
    re.I,
)
DATE = re.compile(r"\d{4}-\d{2}(-\d{2})?([T ]\d{2}:\d{2}.*)?$|\d{1,2}[./]\d{1,2}[./]\d{2,4}$")


@dataclass(frozen=True)
class Column:
    """One column by itself.

    Attributes:
        name: of the column; of an image the place of a pixel, or a property of the whole.
        alone: how well it predicts the target of rows that were not learnt from: 0 as well as an answer that never
            changes, 1 without a mistake.
        second: the best such figure among the other columns.
        role: "counter" or "id" (hardly any value twice), "time", "group" (values that stand for a person, a place, …),
            or "".
        shared: of a group, share of the test rows whose value stands in training too; of a time, share of the test
            rows that are not later than the last training row.
    """

    name: str
    alone: float
    second: float
    role: str
    shared: float

    def findings(self, splits: Data) -> list[Finding]:
        """What is wrong with it."""
        found = []
        where = f"column {self.name!r}" if splits.signature.preprocess.kind == "table" else self.name
        if self.alone >= TELLING or (self.alone >= ALONE and self.second < ALONE / 2):
            found.append(
                Finding(
                    where,
                    f"tells the target by itself ({self.alone:.3f} of the way from guessing to knowing; the next column "
                    f"{self.second:.3f})",
                    "find out how it is made: if it is known only after the target, or copied from it, remove it",
                )
            )
        if self.role in ("counter", "id"):
            what = "counts the rows" if self.role == "counter" else "has hardly any value twice, as an id has"
            tells = f", and tells {self.alone:.2f} of the target" if self.alone > 0.2 else ""
            found.append(
                Finding(
                    where, what + tells, "remove it: new rows have new values, and the order of a file says nothing"
                )
            )
        if self.role == "time" and self.shared > 0.5:
            found.append(
                Finding(
                    where,
                    f"looks like a time, and {self.shared:.0%} of the test rows are not later than the last training row",
                    "if the model is to predict the future, split by this column: the oldest rows for training",
                )
            )
        if self.role == "group" and self.shared > 0.5:
            found.append(
                Finding(
                    where,
                    f"looks like a group, and {self.shared:.0%} of the test rows belong to a group that was trained on",
                    "if the model is to work for new groups, keep each group in one split, and remove the column",
                )
            )
        return found


def columns(splits: Data, seed: int = 0, progress: bool = False) -> tuple[Column, ...]:
    """Each column by itself, the most telling one first.

    Args:
        splits: the data; of images every pixel up to 16 a side is a column, and brightness and contrast.
        seed: of the rows drawn from a large data set, and of the folds.
        progress: show a progress bar.
    """
    random = np.random.default_rng(seed)
    parts = [split for split in splits.splits.values() if len(split)]
    y = np.concatenate([part.y for part in parts])
    rows = np.sort(random.permutation(len(y))[:MOST])
    x = {key: lazy.joined([part.x[key] for part in parts]) for key in parts[0].x}
    if "image" in x:  # nothing but these rows is looked at
        x, y, rows = {"image": lazy.pick(x["image"], rows)}, y[rows], slice(None)
    x = _values(splits, x)
    fold = random.permutation(min(len(y), MOST)) % FOLDS
    raw = []
    for name, values in over(list(x.items()), "columns", progress):
        role, shared = "", 0.0
        if splits.signature.preprocess.kind == "table":
            later = values[-len(splits.test) :] if len(splits.test) else values
            role, shared = _role(name, values[: len(splits.train)], later)
        raw.append((name, _alone(splits, values[rows], y[rows], fold), role, shared))
    raw.sort(key=lambda row: -row[1])
    best = [row[1] for row in raw[:2]]
    return tuple(
        Column(name, alone, (best[1] if len(best) > 1 else 0.0) if index == 0 else best[0], role, shared)
        for index, (name, alone, role, shared) in enumerate(raw)
    )


def _values(splits: Data, x: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns by name, numbers as float64 and categories as text."""
    step = splits.signature.preprocess
    if step.kind != "image":
        found = {name: x["numbers"][:, place].astype(np.float64) for place, name in enumerate(step.numbers)}
        return found | {name: x["categories"][:, place] for place, name in enumerate(step.categories)}
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(x["image"]), 256):
        grey = x["image"][start : start + 256].mean(axis=-1, dtype=np.float32)
        places = [np.unique(np.linspace(0, side - 1, min(side, 16)).round().astype(int)) for side in grey.shape[1:]]
        some = {f"pixel ({row}, {column})": grey[:, row, column] for row in places[0] for column in places[1]}
        for name, values in {**some, "brightness": grey.mean(axis=(1, 2)), "contrast": grey.std(axis=(1, 2))}.items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


def _alone(splits: Data, values: np.ndarray, y: np.ndarray, fold: np.ndarray) -> float:
    """How far small trees on one column come from guessing (0) to knowing (1), each on the fold it has not learnt from.

    Classification counts the mean share that is right of each class, so that a rare class weighs as much as a common
    one.
    """
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    regression = splits.signature.task == "regression"
    settings = {"max_leaf_nodes": 64, "min_samples_leaf": 3, "random_state": 0}
    told = np.zeros(len(y))
    for index in range(FOLDS):
        held = fold == index
        own, other = values[~held], values[held]
        if values.dtype.kind == "U":
            own, other = _ordered(own, y[~held], other, splits)
        tree = (
            DecisionTreeRegressor(**settings)
            if regression
            else DecisionTreeClassifier(class_weight="balanced", **settings)
        )
        told[held] = tree.fit(own[:, None], y[~held]).predict(other[:, None])
    if regression:
        spread = np.square(y - y.mean(dtype="float64")).sum()
        return float(max(0.0, 1 - np.square(y - told).sum() / spread)) if spread else 0.0
    classes = np.unique(y)
    score = np.mean([(told[y == label] == label).mean() for label in classes])
    return float(max(0.0, (score - 1 / len(classes)) / (1 - 1 / len(classes)))) if len(classes) > 1 else 0.0


def _ordered(own: np.ndarray, y: np.ndarray, other: np.ndarray, splits: Data) -> tuple[np.ndarray, np.ndarray]:
    """Category values as numbers, ordered by what is usual with them; a value never seen is missing."""
    values, place = np.unique(own, return_inverse=True)
    counts = np.bincount(place)
    if splits.signature.task == "regression":
        usual = np.bincount(place, weights=y) / counts
    else:
        table = np.zeros((len(values), splits.signature.outputs))
        np.add.at(table, (place, y), 1)
        usual = table.argmax(axis=1) + table.max(axis=1) / (counts + 1) / 2
    rank = np.empty(len(values))
    rank[np.argsort(usual, kind="stable")] = np.arange(len(values))
    spot = np.minimum(np.searchsorted(values, other), len(values) - 1)
    return rank[place], np.where(values[spot] == other, rank[spot], np.nan)


def _role(name: str, own: np.ndarray, other: np.ndarray) -> tuple[str, float]:
    """Whether a column looks like an id, a counter, a time or a group, and how far the splits share it."""
    text = own.dtype.kind == "U"
    everything = np.concatenate([own, other])
    known = everything[everything != ""] if text else everything[np.isfinite(everything)]
    if len(known) < 20:
        return "", 0.0
    distinct = len(np.unique(known))
    unique = distinct > 0.95 * len(known)
    if text:
        dated = np.mean([bool(DATE.match(value)) for value in known[:200]]) > 0.9
        if dated:
            return "time", 1.0 if not _sortable(known) else float(np.mean(other[other != ""] <= own.max()))
        if unique:
            return "id", 0.0
        whole = True
    else:
        whole = bool((known == np.round(known)).all())
        if whole and unique and np.ptp(known) < 1.5 * len(known):
            return "counter", 0.0
        stamps = (
            whole and distinct > 20 and (_between(known, 5e8, 2.2e9) or _between(known, 5e11, 2.2e12) or _dates(known))
        )
        years = whole and bool(TIMES.search(name)) and _between(known, 1900, 2100)
        if stamps or years:
            return "time", float(np.mean(other[np.isfinite(other)] <= np.nanmax(own)))
        if whole and unique and IDS.search(name):
            return "id", 0.0
    several = 2 <= len(known) / distinct <= 50 and distinct >= 10
    if whole and several and (IDS.search(name) or GROUPS.search(name)):
        return "group", float(np.isin(other, own).mean())
    return "", 0.0


def _between(values: np.ndarray, low: float, high: float) -> bool:
    return bool(values.min() >= low and values.max() <= high)


def _dates(values: np.ndarray) -> bool:
    """Numbers such as 20240131."""
    months, days = values // 100 % 100, values % 100
    return _between(values, 1.9e7, 2.1e7) and _between(months, 1, 12) and _between(days, 1, 31)


def _sortable(values: np.ndarray) -> bool:
    """Whether dates as text sort as they follow each other in time."""
    return all(re.match(r"\d{4}-\d{2}", value) for value in values[:200])
