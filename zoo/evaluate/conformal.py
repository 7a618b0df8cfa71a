"""Sets and intervals that hold the truth as often as they promise, whatever the model (split conformal prediction).

Vovk, Gammerman & Shafer 2005; Angelopoulos & Bates, "A Gentle Introduction to Conformal Prediction and
Distribution-Free Uncertainty Quantification", 2021, sections 1 and 2. Each row of the validation split gets a score of
how badly its truth fits the answer; the threshold is the k-th smallest of n, k = ceil((n + 1) * level). The promise
holds on average over validation rows drawn like the rows to come. A validation split that has also chosen the epoch
bends it a little, so coverage is measured on rows that chose nothing.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from zoo.tasks import Interval

METHODS = ("lac", "aps", "raps", "residual")


@dataclass(frozen=True)
class Conformal:
    """A threshold and what it is a threshold of.

    Attributes:
        method: "lac", classes of probability at least `1 - threshold` (Sadinle, Lei & Wasserman 2019); "aps", the most
            probable classes up to a total of `threshold`, the last one counted half (Romano, Sesia & Candès 2020 count
            a random part of it; any rule keeps the promise, and this one gives the same set every time); "raps", the
            same with `penalty` added for each class beyond the first `free` (Angelopoulos et al. 2021); "residual",
            the value plus and minus `threshold`.
        level: share of rows whose set should hold the truth, in (0, 1).
        threshold: of the score, or in the target's unit.
        rows: validation rows it was set on.
        penalty: of "raps", in probability per class.
        free: classes of "raps" without penalty.
    """

    method: str
    level: float
    threshold: float
    rows: int = 0
    penalty: float = 0.01
    free: int = 1

    def sets(self, probabilities: np.ndarray) -> np.ndarray:
        """Which classes are in each row's set, bool `(rows, classes)`; the most probable class always is."""
        found = scores(probabilities, self.method, self.penalty, self.free) <= self.threshold
        found[np.arange(len(found)), probabilities.argmax(axis=1)] = True
        return found

    def interval(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end for each value, `(rows,)`."""
        values = np.ravel(values)
        return values - self.threshold, values + self.threshold


@dataclass(frozen=True)
class Coverage:
    """What sets or intervals do on rows that did not set them.

    Attributes:
        conformal: what was measured.
        rows: how many.
        coverage: share of rows whose set holds the truth, with the interval of Clopper & Pearson 1934.
        size: mean classes in a set, or width of an interval in the target's unit.
        sizes: rows by number of classes in their set; empty for intervals.
        per_class: coverage of the rows of each class; empty for intervals.
    """

    conformal: Conformal
    rows: int
    coverage: Interval
    size: float
    sizes: dict[int, int] = field(default_factory=dict)
    per_class: dict[int, float] = field(default_factory=dict)

    def __str__(self) -> str:
        what = "width" if self.conformal.method == "residual" else "classes"
        return (
            f"{self.conformal.method} sets for {self.conformal.level:.0%}: hold the truth in {self.coverage}, "
            f"{self.size:.4g} {what} on average"
        )

    def described(self) -> dict:
        """Figures for JSON."""
        return {
            "method": self.conformal.method,
            "level": self.conformal.level,
            "threshold": self.conformal.threshold,
            "rows": self.rows,
            "coverage": vars(self.coverage),
            "size": self.size,
            "sizes": {str(size): count for size, count in self.sizes.items()},
        }


def needed(level: float) -> int:
    """Fewest validation rows from which a level can be promised."""
    return math.ceil(round(level / (1 - level), 9))


def fit(
    y: np.ndarray,
    answers: np.ndarray,
    *,
    level: float = 0.9,
    method: str = "aps",
    penalty: float = 0.01,
    free: int = 1,
) -> Conformal:
    """Set the threshold on validation rows.

    Args:
        y: class indices `(rows,)`, or values in the target's unit.
        answers: probabilities `(rows, classes)`, or values `(rows, 1)`.
        level: share of rows whose set should hold the truth, in (0, 1).
        method: "lac", "aps" or "raps" for classes, "residual" for values; see `Conformal`.
        penalty, free: of "raps".

    Raises:
        ValueError: unknown method, one for another task, or too few rows for the level.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if not 0 < level < 1:
        raise ValueError(f"level must be a share in (0, 1), got {level!r}")
    is_value = answers.ndim < 2 or answers.shape[1] == 1
    if is_value != (method == "residual"):
        fitting = "'residual'" if is_value else "'lac', 'aps' or 'raps'"
        raise ValueError(f"method {method!r} does not fit answers of shape {answers.shape}; give {fitting}")
    rows = len(y)
    if rows < needed(level):
        raise ValueError(
            f"a level of {level:g} needs at least {needed(level)} validation rows, got {rows}; lower it, or give more rows"
        )
    if is_value:
        found = np.abs(np.ravel(answers).astype(np.float64) - np.ravel(y))
    else:
        found = scores(answers, method, penalty, free)[np.arange(rows), np.asarray(y, np.int64)]
    place = math.ceil(round((rows + 1) * level, 9))  # 0.9 * 10 is 9, not the 9.000000000000002 of floats
    return Conformal(method, level, float(np.sort(found)[place - 1]), rows, penalty, free)


def scores(probabilities: np.ndarray, method: str, penalty: float = 0.01, free: int = 1) -> np.ndarray:
    """How badly each class would fit as the truth, `(rows, classes)`; of equal ones the first class is first."""
    probabilities = np.asarray(probabilities, np.float64)
    if method == "lac":
        return 1 - probabilities
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1)
    total = np.cumsum(ranked, axis=1) - ranked / 2
    if method == "raps":
        total = total + penalty * np.maximum(np.arange(1, total.shape[1] + 1) - free, 0)
    found = np.empty_like(total)
    np.put_along_axis(found, order, total, axis=1)
    return found


def measure(conformal: Conformal, y: np.ndarray, answers: np.ndarray) -> Coverage:
    """Coverage and size on rows that did not set the threshold.

    Args:
        conformal: what `fit` gave.
        y: true targets.
        answers: as in `fit`.
    """
    rows = len(y)
    if conformal.method == "residual":
        low, high = conformal.interval(answers)
        held = (low <= np.ravel(y)) & (np.ravel(y) <= high)
        return Coverage(conformal, rows, share(int(held.sum()), rows), 2 * conformal.threshold)
    sets = conformal.sets(answers)
    held = sets[np.arange(rows), y]
    counts = np.bincount(sets.sum(axis=1))
    sizes = {size: int(count) for size, count in enumerate(counts) if count}
    per_class = {int(label): float(held[y == label].mean()) for label in np.unique(y)}
    return Coverage(conformal, rows, share(int(held.sum()), rows), float(sets.sum(axis=1).mean()), sizes, per_class)


def share(hits: int, rows: int) -> Interval:
    """A share of rows with its 95 % interval (Clopper & Pearson 1934)."""
    from scipy.stats import beta

    low = float(beta.ppf(0.025, hits, rows - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, rows - hits)) if hits < rows else 1.0
    return Interval(hits / rows, low, high)
