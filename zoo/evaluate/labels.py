"""Labels that look wrong, by confident learning on answers of models that have not learnt from the row.

Northcutt, Jiang & Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", Journal of Artificial
Intelligence Research 70 (2021) 1373-1411: a row counts as confidently of a class when its probability is at least the
mean probability of that class among the rows so labelled (section 3.1); the counts of these say how many labels are
wrong, and the rows in which another class is furthest ahead of the label are listed.
"""

import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data import Data, Split, lazy
from zoo.evaluate.findings import Finding, listed, over, table
from zoo.evaluate.leakage import splits_of
from zoo.evaluate.report import defined
from zoo.tasks import baselines

CLEAR = 0.5  # probability by which another class is ahead of the label


@dataclass(frozen=True)
class Doubt:
    """A row whose label looks wrong.

    Attributes:
        split, row: where it is.
        label: what it says.
        likely: what it looks like.
        margin: probability of the likely class - that of the label, in (0, 1].
    """

    split: str
    row: int
    label: str
    likely: str
    margin: float


@dataclass(frozen=True)
class Doubts:
    """Rows whose label looks wrong.

    Attributes:
        data: its name.
        rows: rows looked at.
        judge: whose answers decide.
        accuracy: share of the labels that these answers agree with, on rows not learnt from.
        doubts: the most doubtful row first.
        findings: what to do.
        images: the first doubtful images `(rows, height, width, channels)`; None for tables.
    """

    data: str
    rows: int
    judge: str
    accuracy: float
    doubts: tuple[Doubt, ...]
    findings: tuple[Finding, ...]
    images: np.ndarray | None = field(default=None, repr=False)

    def __str__(self) -> str:
        head = (
            f"{self.data}: {len(self.doubts)} of {self.rows} labels look wrong to {self.judge}, "
            f"which agrees with {self.accuracy:.1%} of them on rows it has not learnt from"
        )
        rows = [("row", "label", "looks like", "margin")]
        rows += [(f"{d.split} {d.row}", d.label, d.likely, f"{d.margin:.3f}") for d in self.doubts[:20]]
        return "\n".join([head, *([table(rows)] if self.doubts else []), listed(self.findings, "no label looks wrong")])

    def to_json(self) -> str:
        """All figures as JSON text."""
        raw = {key: value for key, value in vars(self).items() if key != "images"}
        raw |= {"doubts": [vars(d) for d in self.doubts], "findings": [vars(f) for f in self.findings]}
        return json.dumps(defined(raw), indent=2) + "\n"

    def plot(self, path: str | Path) -> Path:
        """Picture of the most doubtful images; for tables how often each label looks like another."""
        from zoo.evaluate import check_pictures

        if self.images is not None and len(self.images):
            return check_pictures.doubts(self.images, self.doubts, path)
        return check_pictures.doubt_counts(self.doubts, self.data, path)


def doubtful_labels(
    data: Any,
    *,
    target: str | None = None,
    model: str | None = None,
    folds: int = 5,
    seed: int = 0,
    progress: bool = False,
    **overrides: Any,
) -> Doubts:
    """Answer every row by a model that was trained without it, and list the labels that look wrong.

    Args:
        data: name, path or `zoo.data.Data` for classification; or a run or run folder.
        target: target column of a table.
        model: public name to train once per fold; scikit-learn's logistic regression if None.
        folds: parts that are answered in turn.
        seed: of the splits and folds.
        progress: show a progress bar.
        overrides: settings and arguments of the named model.

    Raises:
        ValueError: the data is no classification, or has fewer rows of a class than there are folds.
    """
    splits = splits_of(data, target, seed)
    signature = splits.signature
    if not signature.one_label:
        found = "values" if signature.task == "regression" else f"targets of a {signature.task}"
        raise ValueError(f"data {splits.name!r} has {found}, not labels; look at the worst errors of a run instead")
    if model is None and overrides:
        raise TypeError(f"{next(iter(overrides))!r} is a setting of a named model; name one with model=")
    places = [(name, row) for name, split in splits.splits.items() for row in range(len(split))]
    x = {key: lazy.joined([s.x[key] for s in splits.splits.values()]) for key in splits.train.x}
    y = np.concatenate([s.y for s in splits.splits.values()])
    counts = np.bincount(y, minlength=signature.outputs)
    if folds < 2 or counts.min() < folds:
        rare = signature.labels[int(counts.argmin())]
        raise ValueError(
            f"every class needs a row for each of at least 2 folds, got folds={folds} and {counts.min()} rows of {rare!r}"
        )
    fold = _deal(y, folds, seed)
    answers = np.zeros((len(y), signature.outputs))
    for index in over(range(folds), "folds", progress):
        held = fold == index
        answers[held] = _answers(splits, x, y, held, model, seed, overrides)
    found = doubtful(answers, y)
    doubts = tuple(
        Doubt(*places[row], signature.labels[y[row]], signature.labels[likely], margin) for row, likely, margin in found
    )
    images = x["image"][[row for row, _, _ in found[:24]]] if "image" in x else None
    judge = model or "logistic regression"
    agreed = float(np.mean(answers.argmax(axis=1) == y))
    return Doubts(splits.name, len(y), judge, agreed, doubts, tuple(_findings(doubts, len(y))), images)


def doubtful(answers: np.ndarray, y: np.ndarray) -> list[tuple[int, int, float]]:
    """Rows that are likelier of another class than their label: `(row, likely class, margin)`, largest margin first.

    As many rows of each label are listed as confident learning estimates there are wrong (section 3.2 of the paper,
    "prune by class"), those in which another class is furthest ahead; and all in which it is ahead by more than
    `CLEAR`.

    Args:
        answers: probabilities of models that have not learnt from the row, `(rows, classes)`.
        y: labels as class indices, `(rows,)`.
    """
    classes = answers.shape[1]
    usual = np.array([answers[y == label, label].mean() if (y == label).any() else np.inf for label in range(classes)])
    confident = np.where(answers >= usual, answers, -1.0)
    sure = confident.max(axis=1) >= 0
    joint = np.zeros((classes, classes))
    np.add.at(joint, (y[sure], confident.argmax(axis=1)[sure]), 1)
    right = joint.diagonal() / np.maximum(joint.sum(axis=1), 1)
    wrong = np.round((1 - right) * np.bincount(y, minlength=classes)).astype(int)  # labels of each class
    others = np.where(np.arange(classes) == y[:, None], -1.0, answers)
    likely, margins = others.argmax(axis=1), others.max(axis=1) - answers[np.arange(len(y)), y]
    found = []
    for label in range(classes):
        rows = np.flatnonzero((y == label) & (margins > 0))
        rows = rows[np.argsort(-margins[rows], kind="stable")]
        for row in rows[: max(wrong[label], (margins[rows] > CLEAR).sum())]:
            found.append((int(row), int(likely[row]), float(margins[row])))
    return sorted(found, key=lambda item: -item[2])


def _deal(y: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold of each row, every class spread alike."""
    random = np.random.default_rng(seed)
    fold = np.empty(len(y), int)
    for label in np.unique(y):
        own = random.permutation(np.flatnonzero(y == label))
        fold[own] = np.arange(len(own)) % folds
    return fold


def _answers(
    splits: Data,
    x: dict[str, np.ndarray],
    y: np.ndarray,
    held: np.ndarray,
    model: str | None,
    seed: int,
    overrides: dict[str, Any],
) -> np.ndarray:
    """Probabilities of the rows that are held out, by a model trained on the others."""
    known = Split({key: lazy.pick(values, ~held) for key, values in x.items()}, y[~held])
    asked = Split({key: lazy.pick(values, held) for key, values in x.items()}, y[held])
    if model is not None:
        from zoo.evaluate import evaluate
        from zoo.training import train

        # a tenth of the known rows chooses the epoch
        pick = _deal(known.y, 10, seed) == 0
        parts = [Split({k: lazy.pick(v, rows) for k, v in known.x.items()}, known.y[rows]) for rows in (~pick, pick)]
        own = replace(splits, train=parts[0], validation=parts[1], test=asked)
        with tempfile.TemporaryDirectory() as folder:
            run = train(model, own, out=Path(folder) / "fold", quiet=True, seed=seed, **overrides)
            return evaluate(run, own).answers
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    flat = [baselines.flat(part, splits.signature) for part in (known, asked)]
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # 300 steps are near enough
        fitted = LogisticRegression(max_iter=300, C=0.1).fit(flat[0], known.y)
    found = np.zeros((len(asked), splits.signature.outputs))
    found[:, fitted.classes_] = fitted.predict_proba(flat[1])
    return found


def _findings(doubts: tuple[Doubt, ...], rows: int) -> list[Finding]:
    if not doubts:
        return []
    return [
        Finding(
            "labels",
            f"{len(doubts)} of {rows} look wrong ({len(doubts) / rows:.1%})",
            "look at these rows, the first ones first, and correct or remove what is wrong; a hard but right row is on "
            "the list as well",
        )
    ]
