"""What a network has to beat: linear models of scikit-learn, fitted on the same training rows.

The solver finds the optimum of what the entry `logistic_regression` approaches by steps.
"""

import warnings

import numpy as np

from zoo.data import Split, images, lazy
from zoo.data.signature import Signature

MOST = 10_000  # rows or pixels to fit on
_LARGE, _SMALL = 64 * 64, 32  # pixels of a picture beyond which it is brought to a side of so many
_TOGETHER = 1000  # rows that are read at once


def linear(
    inputs: np.ndarray, targets: np.ndarray, new: np.ndarray, *, values: bool = False, scores: bool = False
) -> np.ndarray:
    """Answers of a logistic (or ridge) regression to new rows.

    Args:
        inputs: `(rows, features)`; at most 10,000 of them are used.
        targets: class indices, or values, `(rows,)`.
        new: `(rows, features)`.
        values: whether targets are values.
        scores: whether each class' score is wanted, and not the class that has the highest.

    Returns:
        Class indices, or values, `(rows,)`; or scores `(rows, classes)`.
    """
    model = fitted(inputs, targets, values=values)
    return model.decision_function(new).reshape(len(new), -1) if scores else model.predict(new)


def fitted(inputs: np.ndarray, targets: np.ndarray, *, values: bool = False):
    """The regression of scikit-learn that `linear` asks; the arguments are those of `linear`."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge
    from threadpoolctl import threadpool_limits

    rows = np.random.default_rng(0).permutation(inputs.shape[0])[:MOST]
    model = Ridge() if values else LogisticRegression(max_iter=300)
    # several threads gain little on so few rows, and where others use the processor they take 200 times as long
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # 300 steps are near enough
        return model.fit(inputs[rows], targets[rows])


def learned(data) -> tuple[np.ndarray, np.ndarray]:
    """Training rows to fit on, as `flat` gives them, and their targets; of pictures no more than are used."""
    rows = slice(None)
    if "image" in data.train.x and len(data.train) > MOST:
        rows = np.random.default_rng(0).permutation(len(data.train))[:MOST]
    part = Split({name: lazy.pick(values, rows) for name, values in data.train.x.items()}, data.train.y[rows])
    return flat(part, data.signature), part.y


def words(data):
    """Training texts as weighted counts of their words, their targets, and the same of the test texts.

    Words and weights (Salton & Buckley 1988, term frequency times inverse document frequency) are the training split's.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    step = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]")
    known, new = (_joined(part.x) for part in (data.train, data.test))
    return step.fit_transform(known), data.train.y, step.transform(new)


def _joined(x: dict[str, np.ndarray]) -> list[str]:
    """Texts, those of a pair one behind the other."""
    return [" ".join(map(str, row)) for row in zip(*(x[name] for name in ("text", "second") if name in x), strict=True)]


def flat(split: Split, signature: Signature) -> np.ndarray:
    """The model's inputs of a split, one line of features for each row; large pictures are made small before.

    Of texts, how often each token is there.
    """
    step = signature.preprocess
    if step.kind == "text":
        tokens = signature.inputs(split.x)
        counts = np.zeros((len(tokens), step.vocabulary), np.float32)
        np.add.at(counts, (np.arange(len(tokens))[:, None], tokens), tokens != step.pad)
        return counts
    if step.kind != "image" or step.height * step.width <= _LARGE or step.shape[2] not in images.MODES:
        rows = signature.inputs(split.x).reshape(len(split), -1)
        return np.nan_to_num(rows) if step.kind == "series" else rows  # the mean behind the end of a series
    shape = (min(_SMALL, step.height), min(_SMALL, step.width), step.shape[2])
    parts = [
        images.resize(split.x["image"][start : start + _TOGETHER], shape) for start in range(0, len(split), _TOGETHER)
    ]
    return signature.inputs({"image": np.concatenate(parts)}).reshape(len(split), -1)
