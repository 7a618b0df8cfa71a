"""Metrics of answers against targets, on any number of bootstrap samples at once.

A bootstrap sample is a row of weights: how often each row of the data was drawn. Every metric below is written for
such weights, `(samples, rows)`, so that a thousand samples are a few matrix products and no loop.

Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 6 and 13 (percentile intervals).
"""

from collections.abc import Callable, Iterator

import numpy as np

from zoo import tasks
from zoo.tasks import Interval

RESAMPLES = 1000
LOWER = ("log_loss", "brier", "rmse", "mae")  # smaller is better; "bias" is best at 0, all others are better larger
SHARES = ("accuracy", "top_3_accuracy", "top_5_accuracy")  # shares of rows
_VALUES = 2**22  # weights at a time
_MOST_CURVES = 30  # classes up to which ROC curves are taken, one per class
_LEAST = float(np.finfo(np.float32).eps)  # smallest probability in a logarithm; answers are float32

Measure = Callable[[np.ndarray], np.ndarray]  # weights (samples, rows) -> (samples,)


def measures(task: str, y: np.ndarray, answers: np.ndarray) -> dict[str, Measure]:
    """The metrics of a task, the task's own first.

    Classification has accuracy, balanced accuracy (mean recall of the classes present), macro F1 (of the classes
    present or answered), top-3 accuracy from 4 and top-5 from 11 classes, log loss (nats), the Brier score (Brier
    1950; sum over classes of the squared error, halved for two classes), and up to 30 classes the area under the ROC
    curve, one class against the rest and averaged. Regression has R2, RMSE, MAE and bias (mean of answer - target).
    Other tasks say in their own files which they have.

    Args:
        task: task name.
        y: class indices `(rows,)`, or values, or what else `zoo.data.targets` has.
        answers: probabilities `(rows, classes)`, or values `(rows, 1)`, or what else the task scores.
    """
    return tasks.get(task).measures(y, answers)


def intervals(
    task: str,
    y: np.ndarray,
    answers: np.ndarray,
    names: tuple[str, ...] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Each metric with its 95 % percentile bootstrap interval over rows.

    Where every row is right, or none, all samples are alike and say nothing: the interval is then that of Clopper &
    Pearson 1934.

    Args:
        task: task name.
        y, answers: as in `measures`.
        names: metrics wanted, all if None.
        resamples: bootstrap samples.
        seed: the same seed draws the same samples, whichever metrics are wanted.
    """
    wanted = _chosen(measures(task, y, answers), names)
    found = replicates(wanted, len(y), resamples, seed)
    whole = np.ones((1, len(y)))
    result = {}
    for name, measure in wanted.items():
        score = float(measure(whole)[0])
        low, high = percentiles(found[name])
        if name in SHARES and score in (0.0, 1.0):
            least = 0.025 ** (1 / len(y))
            low, high = (least, 1.0) if score else (0.0, 1 - least)
        result[name] = Interval(score, low, high)
    return result


def replicates(wanted: dict[str, Measure], rows: int, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """Each measure on bootstrap samples of so many rows, `(resamples,)`."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    for weights in draws(rows, resamples, seed):
        for name, measure in wanted.items():
            found[name].append(measure(weights))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def draws(rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Weights of bootstrap samples, float64 `(some, rows)` at a time, `resamples` in all."""
    if rows < 1:
        raise ValueError("there are no rows to judge; choose another split")
    random = np.random.default_rng(seed)
    size = max(1, _VALUES // rows)
    for start in range(0, resamples, size):
        count = min(size, resamples - start)
        drawn = random.integers(0, rows, (count, rows)) + rows * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows).astype(np.float64)


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of values, those that are not defined left out; NaN if none is."""
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def losses(task: str, y: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """How wrong each answer is, `(rows,)`, such as minus the log of the true class' probability, or the absolute error."""
    return tasks.get(task).losses(y, answers)


def _chosen(known: dict[str, Measure], names: tuple[str, ...] | None) -> dict[str, Measure]:
    for name in names or ():
        if name not in known:
            raise ValueError(f"there is no metric {name!r} here; metrics are {', '.join(known)}")
    return known if names is None else {name: known[name] for name in names}


def _mean(values: np.ndarray) -> Measure:
    values = values.astype(np.float64)
    return lambda weights: weights @ values / weights.sum(axis=1)


def of_values(y: np.ndarray, answers: np.ndarray) -> dict[str, Measure]:
    """Metrics of a regression, see `measures`."""
    y = y.reshape(len(y), -1).astype(np.float64)  # a forecast has several values for each row
    gap = answers.reshape(y.shape).astype(np.float64) - y
    centred = y - y.mean()  # so that the spread is no difference of large numbers
    squared, moved = _mean((gap**2).mean(axis=1)), _mean(centred.mean(axis=1))
    wide = _mean((centred**2).mean(axis=1))

    def r2(weights: np.ndarray) -> np.ndarray:
        spread = wide(weights) - moved(weights) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(spread > 0, 1 - squared(weights) / spread, np.nan)

    return {
        "r2": r2,
        "rmse": lambda weights: np.sqrt(squared(weights)),
        "mae": _mean(np.abs(gap).mean(axis=1)),
        "bias": _mean(gap.mean(axis=1)),
    }


def of_classes(y: np.ndarray, answers: np.ndarray) -> dict[str, Measure]:
    """Metrics of a classification, see `measures`."""
    y = np.asarray(y, np.int64)
    rows, classes = answers.shape
    answers = answers.astype(np.float64)
    answered = answers.argmax(axis=1)
    hits = (answered == y).astype(np.float64)
    truth = answers[np.arange(rows), y]
    by_truth, by_answer = _Groups(y, classes), _Groups(answered, classes)

    def balanced(weights: np.ndarray) -> np.ndarray:
        rows_of = by_truth.sums(weights)
        with np.errstate(invalid="ignore"):
            return np.nanmean(np.where(rows_of > 0, by_truth.sums(weights * hits) / rows_of, np.nan), axis=1)

    def macro_f1(weights: np.ndarray) -> np.ndarray:
        both = by_truth.sums(weights) + by_answer.sums(weights)
        with np.errstate(invalid="ignore"):
            return np.nanmean(np.where(both > 0, 2 * by_truth.sums(weights * hits) / both, np.nan), axis=1)

    found: dict[str, Measure] = {"accuracy": _mean(hits), "balanced_accuracy": balanced, "macro_f1": macro_f1}
    for top in (3, 5):
        if classes > (3 if top == 3 else 10):
            tied = (answers == truth[:, None]) & (np.arange(classes) < y[:, None])  # as argmax takes the first of them
            ahead = (answers > truth[:, None]).sum(axis=1) + tied.sum(axis=1)
            found[f"top_{top}_accuracy"] = _mean(ahead < top)
    squares = (answers**2).sum(axis=1) - 2 * truth + 1
    found["log_loss"] = _mean(-np.log(np.maximum(truth, _LEAST)))
    found["brier"] = _mean(squares / 2 if classes == 2 else squares)
    if 2 <= classes <= _MOST_CURVES:
        curves = [_Curve(answers[:, label], y == label) for label in ((1,) if classes == 2 else range(classes))]
        known = [curve for curve in curves if 0 < curve.positive.sum() < rows]
        if known:
            found["roc_auc"] = lambda weights: _nanmean([curve.area(weights) for curve in known])
    return found


def _nanmean(parts: list[np.ndarray]) -> np.ndarray:
    stacked = np.stack(parts)
    known = np.isfinite(stacked)
    count = known.sum(axis=0)
    return np.where(count, np.where(known, stacked, 0).sum(axis=0) / np.maximum(count, 1), np.nan)


class _Groups:
    """Sums of weights over the rows of each class."""

    def __init__(self, labels: np.ndarray, classes: int):
        self.order = np.argsort(labels, kind="stable")
        self.present, self.starts = np.unique(labels[self.order], return_index=True)
        self.classes = classes

    def sums(self, weights: np.ndarray) -> np.ndarray:
        """`(samples, rows)` -> `(samples, classes)`."""
        found = np.zeros((len(weights), self.classes))
        found[:, self.present] = np.add.reduceat(weights[:, self.order], self.starts, axis=1)
        return found


class _Curve:
    """One ROC curve: how often a positive row scores higher than a negative one, ties counted half (Bamber 1975)."""

    def __init__(self, scores: np.ndarray, positive: np.ndarray):
        self.order = np.argsort(scores, kind="stable")
        self.positive = positive[self.order].astype(np.float64)
        _, self.starts = np.unique(scores[self.order], return_index=True)

    def area(self, weights: np.ndarray) -> np.ndarray:
        """`(samples, rows)` -> `(samples,)`, NaN where a sample has rows of one kind only."""
        weights = weights[:, self.order]
        positive = np.add.reduceat(weights * self.positive, self.starts, axis=1)  # (samples, different scores)
        negative = np.add.reduceat(weights, self.starts, axis=1) - positive
        below = np.cumsum(negative, axis=1) - negative / 2
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        return np.where(pairs > 0, (positive * below).sum(axis=1) / np.maximum(pairs, 1e-300), np.nan)
