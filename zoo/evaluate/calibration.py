"""Are probabilities as often right as they say, and the constants that make them so.

Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks", ICML 2017: reliability diagram and expected
calibration error (section 2), temperature scaling (section 4.2). Platt, "Probabilistic Outputs for Support Vector
Machines", 1999, with the targets of section 2.2; for several classes one against the rest (Zadrozny & Elkan 2002).
"""

from dataclasses import dataclass

import numpy as np

from zoo.data.signature import Calibration
from zoo.evaluate import conformal, metrics
from zoo.evaluate.report import Candidate, defined
from zoo.tasks import Interval

METHODS = ("temperature", "platt")
BINS = 15  # Guo et al. 2017, section 5
_SIMULATIONS = 1000
_COLDEST, _HOTTEST = 0.02, 50.0  # temperatures that are searched


@dataclass(frozen=True)
class Reliability:
    """How confidence and accuracy agree, in bins of the confidence (the most probable class' probability).

    The error of a perfectly calibrated model is not 0 in a finite sample: every bin's accuracy scatters. `floor` says
    how large it would be with these confidences, and `p` how often it would be at least the error found
    (Bröcker & Smith 2007; Vaicenavicius et al. 2019).

    Attributes:
        scheme: "width", bins of equal width; "mass", bins of equally many rows.
        edges: of the bins, `(bins + 1,)`.
        counts: rows in each bin.
        confidence, accuracy: means in each bin, NaN where it is empty.
        ece: mean over rows of the gap between the two, with a 95 % basic bootstrap interval: what resampling adds to
            the error is taken off, as the sample added it too (Davison & Hinkley 1997, section 2.4). It begins at 0
            where a perfectly calibrated model is not ruled out.
        floor: mean error of a perfectly calibrated model.
        p: share of perfectly calibrated models with at least this error.
    """

    scheme: str
    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    ece: Interval
    floor: float
    p: float

    def __str__(self) -> str:
        return f"{self.ece}, {self.floor:.4f} if perfectly calibrated, p {self.p:.3f}"

    def described(self) -> dict:
        """Figures for JSON."""
        return {
            "scheme": self.scheme,
            "ece": vars(self.ece),
            "floor": self.floor,
            "p": self.p,
            "bins": [
                {
                    "low": float(low),
                    "high": float(high),
                    "rows": int(rows),
                    "confidence": float(c),
                    "accuracy": float(a),
                }
                for low, high, rows, c, a in zip(
                    self.edges[:-1], self.edges[1:], self.counts, self.confidence, self.accuracy, strict=True
                )
            ],
        }


def reliability(
    y: np.ndarray,
    probabilities: np.ndarray,
    *,
    scheme: str = "width",
    bins: int = BINS,
    resamples: int = metrics.RESAMPLES,
    seed: int = 0,
) -> Reliability:
    """Reliability diagram and expected calibration error.

    Args:
        y: class indices `(rows,)`.
        probabilities: `(rows, classes)`.
        scheme: "width", bins of equal width; "mass", bins of equally many rows.
        bins: at most so many; fewer where confidences are alike.
        resamples: bootstrap samples, and simulated perfectly calibrated models.
        seed: of both.

    Raises:
        ValueError: unknown scheme, no rows, or answers that are no probabilities.
    """
    if scheme not in ("width", "mass"):
        raise ValueError(f"scheme must be 'width' or 'mass', got {scheme!r}")
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins!r}")
    _check_probabilities(probabilities)
    confidence = probabilities.max(axis=1).astype(np.float64)
    hits = (probabilities.argmax(axis=1) == y).astype(np.float64)
    edges = np.linspace(0, 1, bins + 1)
    if scheme == "mass":
        inner = np.quantile(confidence, np.arange(1, bins) / bins)
        edges = np.unique(np.concatenate([[0.0], inner, [1.0]]))
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, len(edges) - 2)  # a bin holds its upper end
    own = np.eye(len(edges) - 1)[place]  # (rows, bins)
    gap = confidence - hits

    def error(weights: np.ndarray, gap: np.ndarray = gap) -> np.ndarray:
        return np.abs((weights * gap) @ own).sum(axis=1) / weights.sum(axis=1)

    score = float(error(np.ones((1, len(y))))[0])
    drawn = metrics.replicates({"ece": error}, len(y), resamples, seed)["ece"]
    low, high = metrics.percentiles(drawn)
    random = np.random.default_rng(seed)
    perfect = np.concatenate(
        [
            error(np.ones((count, len(y))), confidence - (random.random((count, len(y))) < confidence))
            for count in _chunks(_SIMULATIONS, len(y))
        ]
    )
    counts = own.sum(axis=0)
    with np.errstate(invalid="ignore"):
        means = (confidence @ own) / counts, (hits @ own) / counts
    p = (1 + float((perfect >= score).sum())) / (1 + len(perfect))
    lowest = 0.0 if p >= 0.025 else max(0.0, 2 * score - high)
    ece = Interval(score, lowest, max(0.0, 2 * score - low))
    return Reliability(scheme, edges, counts.astype(np.int64), *means, ece, float(perfect.mean()), p)


def _chunks(total: int, rows: int) -> list[int]:
    size = max(1, 2**22 // rows)
    return [min(size, total - start) for start in range(0, total, size)]


def _check_probabilities(probabilities: np.ndarray) -> None:
    if probabilities.ndim != 2 or probabilities.shape[1] < 2 or not len(probabilities):
        raise ValueError(
            f"calibration is about probabilities (rows, classes), got {probabilities.shape}; "
            "for values see zoo.evaluate.conformal"
        )
    if not (np.isfinite(probabilities).all() and np.allclose(probabilities.sum(axis=1), 1, atol=1e-3)):
        raise ValueError("calibration is about probabilities that sum to 1, got others; apply the softmax first")


def fit(method: str, y: np.ndarray, probabilities: np.ndarray) -> Calibration:
    """Constants that make probabilities right as often as they say, on rows the model was not trained on.

    Args:
        method: "temperature", which never changes the most probable class; or "platt", which may.
        y: class indices `(rows,)`.
        probabilities: plain softmax `(rows, classes)`.

    Raises:
        ValueError: unknown method; or nothing to learn from: every row is right, so that any sharper answer looks
            better, or a class has no row.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    _check_probabilities(probabilities)
    y = np.asarray(y, np.int64)
    logits = to_logits(probabilities)
    return _temperature(y, logits) if method == "temperature" else _platt(y, logits)


def to_logits(probabilities: np.ndarray) -> np.ndarray:
    """Logits of probabilities, up to what a softmax takes away."""
    return np.log(np.maximum(probabilities, 1e-30, dtype=np.float64))


def _temperature(y: np.ndarray, logits: np.ndarray) -> Calibration:
    """The temperature of least log loss."""
    from scipy.optimize import minimize_scalar

    if (logits.argmax(axis=1) == y).all():
        raise ValueError(
            f"a temperature needs rows that are answered wrongly, and all {len(y)} validation rows are right; "
            "give more validation rows, or take method 'platt'"
        )
    rows = np.arange(len(y))

    def loss(log_scale: float) -> float:
        scaled = logits * np.exp(log_scale)
        scaled -= scaled.max(axis=1, keepdims=True)
        return float(np.mean(np.log(np.exp(scaled).sum(axis=1)) - scaled[rows, y]))

    # convex in the scale, so that there is one minimum
    found = minimize_scalar(
        loss, bounds=(-np.log(_HOTTEST), -np.log(_COLDEST)), method="bounded", options={"xatol": 1e-6}
    )
    return Calibration("temperature", (float(np.exp(found.x)),))


def _platt(y: np.ndarray, logits: np.ndarray) -> Calibration:
    """Slope and offset of each class against the rest, of least log loss on Platt's targets."""
    from scipy.optimize import minimize

    odds = Calibration("platt", ()).odds(logits).astype(np.float64)
    scale, bias = [], []
    for label in range(logits.shape[1]):
        own = y == label
        positive = int(own.sum())
        if not 0 < positive < len(y):
            raise ValueError(
                f"Platt scaling needs validation rows of every class, class {label} has {positive} of {len(y)}; "
                "give more rows, or take method 'temperature'"
            )
        target = np.where(own, (positive + 1) / (positive + 2), 1 / (len(y) - positive + 2))
        given = odds[:, label]

        def loss(line: np.ndarray, given: np.ndarray = given, target: np.ndarray = target) -> tuple[float, np.ndarray]:
            moved = line[0] * given + line[1]
            slope = 1 / (1 + np.exp(-np.clip(moved, -500, 500))) - target
            value = np.mean(np.logaddexp(0, moved) - target * moved)
            return float(value), np.array([np.mean(slope * given), np.mean(slope)])

        found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS")
        scale.append(float(found.x[0]))
        bias.append(float(found.x[1]))
    return Calibration("platt", tuple(scale), tuple(bias))


@dataclass(frozen=True)
class Calibrated:
    """What calibration, fitted on the validation split, does on the test split.

    Attributes:
        name: model.
        calibration: the constants.
        rows: validation and test rows.
        before, after: reliability on the test split, in bins of equal width.
        mass_before, mass_after: the same in bins of equally many rows.
        metrics_before, metrics_after: every metric on the test split.
        sets: conformal sets from the calibrated validation answers, measured on the test split; empty where there were
            too few validation rows for `level`.
        level: share of rows whose set should hold the truth.
    """

    name: str
    calibration: Calibration
    rows: tuple[int, int]
    before: Reliability
    after: Reliability
    mass_before: Reliability
    mass_after: Reliability
    metrics_before: dict[str, Interval]
    metrics_after: dict[str, Interval]
    sets: "tuple[conformal.Coverage, ...]" = ()
    level: float = 0.9

    def __str__(self) -> str:
        method = self.calibration.method
        constant = f" {1 / self.calibration.scale[0]:.4f}" if method == "temperature" else ""
        lines = [
            f"{method}{constant} from {self.rows[0]} validation rows, judged on {self.rows[1]} test rows",
            f"  ECE, equal width  {self.before}",
            f"             after  {self.after}",
            f"  ECE, equal mass   {self.mass_before}",
            f"             after  {self.mass_after}",
        ]
        for name in ("log_loss", "brier", "accuracy"):
            lines.append(f"  {name:<16}  {self.metrics_before[name]} -> {self.metrics_after[name]}")
        needed = conformal.needed(self.level)
        few = f"  no conformal sets: a level of {self.level:g} needs {needed} validation rows"
        return "\n".join([*lines, *([few] if self.rows[0] < needed else (f"  {coverage}" for coverage in self.sets))])

    def to_json(self) -> str:
        """Figures as JSON text."""
        import json

        told = {
            "name": self.name,
            "calibration": vars(self.calibration),
            "rows": {"validation": self.rows[0], "test": self.rows[1]},
            "before": self.before.described(),
            "after": self.after.described(),
            "mass_before": self.mass_before.described(),
            "mass_after": self.mass_after.described(),
            "metrics_before": {name: vars(value) for name, value in self.metrics_before.items()},
            "metrics_after": {name: vars(value) for name, value in self.metrics_after.items()},
            "sets": [coverage.described() for coverage in self.sets],
        }
        return json.dumps(defined(told), indent=2, allow_nan=False) + "\n"

    def plot(self, path):
        """Reliability diagrams before and after."""
        from zoo.evaluate import pictures

        after = f"after {self.calibration.method} scaling"
        return pictures.reliability({"before": self.before, after: self.after}, path)


def calibrate(
    model,
    data=None,
    *,
    method: str = "temperature",
    precision: str | None = None,
    target: str | None = None,
    level: float = 0.9,
    sets: tuple[str, ...] = ("lac", "aps", "raps"),
) -> Calibrated:
    """Fit a calibration on the validation split and judge it on the test split.

    Args:
        model: Keras model, run, bundle, or the path of a run folder or bundle. What a bundle answers is calibrated as
            it comes, on top of a calibration that it may hold already.
        data: as in `zoo.evaluate`.
        method: "temperature" or "platt".
        precision: form of a bundle.
        target: target column of a table.
        level: of the conformal sets, in (0, 1).
        sets: methods of conformal sets to measure.

    Raises:
        ValueError: no classes, or the validation split says nothing about the constants, see `fit`.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be a share in (0, 1), got {level!r}")
    candidate = Candidate.of(model, data, precision=precision, target=target)
    splits = candidate.data
    if not splits.signature.one_label:
        found = "values" if splits.signature.task == "regression" else f"a {splits.signature.task}"
        raise ValueError(
            f"{candidate.name} answers {found}, calibration is about probabilities of one label; zoo.evaluate tells how good it is"
        )
    if not len(splits.validation) or not len(splits.test):
        raise ValueError(f"data {splits.name!r} has no validation or no test rows; calibration needs both")
    held, test = candidate.answers("validation"), candidate.answers("test")
    found = fit(method, splits.validation.y, held)
    held_after, after = (found(to_logits(answers)) for answers in (held, test))
    y, task = splits.test.y, splits.signature.task
    enough = conformal.needed(level) <= len(splits.validation)
    measured = [
        conformal.measure(conformal.fit(splits.validation.y, held_after, level=level, method=kind), y, after)
        for kind in (sets if enough else ())
    ]
    return Calibrated(
        candidate.name,
        found,
        (len(splits.validation), len(splits.test)),
        reliability(y, test),
        reliability(y, after),
        reliability(y, test, scheme="mass"),
        reliability(y, after, scheme="mass"),
        metrics.intervals(task, y, test),
        metrics.intervals(task, y, after),
        tuple(measured),
        level,
    )
