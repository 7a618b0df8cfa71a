"""Which of two models is better on the same rows, by how much, and whether chance alone would do.

McNemar 1947 on the rows that one of the two has right (exact binomial, and the mid-p of Fagerland, Lydersen & Laake
2013); for any metric the paired bootstrap, and a permutation test in which the two models trade their answers row by
row (Good 2005, section 3.2; p with the counted identity, Phipson & Smyth 2010).
"""

import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from zoo import tasks
from zoo.data import load, names
from zoo.evaluate import metrics
from zoo.evaluate.report import Candidate, Report, defined, evaluate, judge, knowledge, opened
from zoo.tasks import Interval

_ALPHA = 0.05


@dataclass(frozen=True)
class Comparison:
    """Two models on the same rows.

    Attributes:
        names: of the two.
        split: which rows.
        rows: how many.
        metric: what the verdict is about.
        first, second: the metric of each, with 95 % intervals.
        difference: second - first, with its 95 % paired bootstrap interval.
        p: of the permutation test: how often a difference at least so large comes about by chance alone; for embeddings, of
            which pairs are judged, twice the share of bootstrap samples in which the difference has the other sign.
        differences: the same for every metric, in passing: without a test, and many at once.
        only_first, only_second: rows that one of the two alone answers rightly; None where an answer is not one class.
        mcnemar: exact p of these counts, None likewise.
        mcnemar_mid: their mid-p, which is less conservative.
    """

    names: tuple[str, str]
    split: str
    rows: int
    metric: str
    first: Interval
    second: Interval
    difference: Interval
    p: float
    differences: dict[str, Interval] = field(default_factory=dict)
    only_first: int | None = None
    only_second: int | None = None
    mcnemar: float | None = None
    mcnemar_mid: float | None = None

    @property
    def better(self) -> str | None:
        """Name of the better one; None where the permutation test does not tell them apart at 5 %."""
        if not self.p < _ALPHA:
            return None
        gain = -self.difference.score if self.metric in metrics.LOWER else self.difference.score
        return self.names[1] if gain > 0 else self.names[0]

    @property
    def verdict(self) -> str:
        """One sentence."""
        size = abs(self.difference.score)
        low, high = sorted((self.difference.low, self.difference.high), key=abs)
        if self.better is None:
            return (
                f"no difference shown: {self.metric} of {self.names[1]} is {self.difference.score:+.4f} against "
                f"{self.names[0]}, 95 % [{self.difference.low:+.4f}, {self.difference.high:+.4f}], p {self.p:.3g}"
            )
        return (
            f"{self.better} is better by {size:.4f} of {self.metric}, 95 % [{abs(low):.4f}, {abs(high):.4f}], p {self.p:.3g}"
            if low * high > 0
            else f"{self.better} is better by {size:.4f} of {self.metric}, p {self.p:.3g}, though the 95 % interval of the "
            f"difference [{self.difference.low:+.4f}, {self.difference.high:+.4f}] holds 0"
        )

    def __str__(self) -> str:
        width = max(map(len, self.names))
        lines = [
            f"{self.metric} on the same {self.rows} {self.split} rows, 95 % intervals",
            f"  {self.names[0]:<{width}}  {self.first}",
            f"  {self.names[1]:<{width}}  {self.second}",
        ]
        if self.mcnemar is not None:
            lines.append(
                f"  right by one alone: {self.only_first} {self.names[0]}, {self.only_second} {self.names[1]}; "
                f"McNemar p {self.mcnemar:.3g}, mid-p {self.mcnemar_mid:.3g}"
            )
        lines.append(self.verdict)
        others = {name: value for name, value in self.differences.items() if name != self.metric}
        width = max(map(len, others))
        lines += ["", "second - first:", *(f"  {name:<{width}}  {value}" for name, value in others.items())]
        return "\n".join(lines)

    def to_json(self) -> str:
        """Figures as JSON text."""
        told = {
            name: vars(value) if isinstance(value, Interval) else value
            for name, value in vars(self).items()
            if name != "differences"
        }
        told["differences"] = {name: vars(value) for name, value in self.differences.items()}
        return json.dumps(defined({**told, "better": self.better, "verdict": self.verdict}), indent=2) + "\n"

    def plot(self, path: str | Path) -> Path:
        """Picture of the differences of all metrics with their intervals."""
        from zoo.evaluate import pictures

        return pictures.differences(self.differences, self.names, path)


def compare(
    first,
    second,
    data=None,
    *,
    metric: str | None = None,
    split: str = "test",
    precision: str | tuple[str | None, str | None] | None = None,
    target: str | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two models on the same rows.

    Args:
        first, second: anything that `zoo.evaluate` takes, or a `Report` of it.
        data: as in `zoo.evaluate`, for both; a run knows its own, and where one of the two is a run that is the data
            of both.
        metric: of the verdict, the task's own if None.
        split: rows to compare on.
        precision: form of a bundle, or one for each of the two.
        target: target column of a table.
        resamples: bootstrap samples and permutations.
        seed: of both.

    Raises:
        ValueError: the two were judged on different rows or tasks, or there is no such metric.
    """
    forms = precision if isinstance(precision, tuple) else (precision, precision)
    models = [_opened(first), _opened(second)]
    knowing = next((model for model in models if getattr(model, "data", None) is not None), None)
    if data is None:
        _check_seeds(models)
    reports = []
    for model, form in zip(models, forms, strict=True):
        if isinstance(model, Report):
            reports.append(model)
            continue
        own = data
        if data is None and knowing is not None and getattr(model, "data", None) is None:
            own = _shared(knowing, model)
        reports.append(evaluate(model, own, split=split, precision=form, target=target))
    return of_reports(reports[0], reports[1], metric=metric, resamples=resamples, seed=seed)


def _opened(model):
    """A run folder as a run with its data, a bundle's path as a bundle; anything else as it is."""
    if not isinstance(model, str | Path):
        return model
    if (Path(model) / "recipe.json").exists():
        from zoo.training.run import as_run

        return as_run(model)
    return opened(model)


def _shared(run, model):
    """A run's data for a model that knows none, read again where that takes pictures of another size."""
    own = run.data.signature.preprocess.shape
    if hasattr(model, "predict_on_batch"):
        size = tasks.main_shape(model)
    else:
        size = next((port.shape[1:] for port in opened(model).manifest.inputs if port.name == "image"), own)
    source = run.recipe.data
    if len(size) != 3 or len(own) != 3 or size == own:
        return run.data
    if not source or (source not in names() and not Path(source).expanduser().exists()):
        raise ValueError(
            f"the two take pictures of other sizes, {own} and {size}, and data {source!r} of the run cannot be read again in "
            "the other; give data=, a name or a path (--data on the command line)"
        )
    return load(source, input_shape=size, **run.recipe.data_options)


def _check_seeds(models: list) -> None:
    """Refuse two models of which one has been trained on test rows of the other."""
    seeds = {knowledge(model).get("seed") for model in models if not isinstance(model, Report)} - {None}
    if len(seeds) > 1:
        raise ValueError(
            f"the data of the two was split by the seeds {' and '.join(map(str, sorted(seeds)))}, so test rows of the one were "
            "training rows of the other; train both with the same split_seed, or give data that neither has seen"
        )


def of_reports(
    first: Report, second: Report, *, metric: str | None = None, resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare two reports; see `compare`."""
    _check_same_rows(first, second)
    task, y, rows = first.task, first.y, first.rows
    metric = metric or first.metric
    ones, others = (metrics.measures(task, y, report.answers) for report in (first, second))
    if metric not in ones or metric == "bias":
        raise ValueError(
            f"no verdict can be about {metric!r} here; it is about one of {', '.join(name for name in ones if name != 'bias')}"
        )
    both = {f"first {name}": measure for name, measure in ones.items()}
    both |= {f"second {name}": measure for name, measure in others.items()}
    drawn = metrics.replicates(both, rows, resamples, seed)
    whole = np.ones((1, rows))
    differences = {}
    for name in ones:
        score = float(others[name](whole)[0] - ones[name](whole)[0])
        low, high = metrics.percentiles(drawn[f"second {name}"] - drawn[f"first {name}"])
        differences[name] = Interval(score, low, high)
    if task == "embedding":  # of which no row has an answer of its own that two models could trade
        gaps = drawn[f"second {metric}"] - drawn[f"first {metric}"]
        p = min(1.0, 2 * (1 + min((gaps <= 0).sum(), (gaps >= 0).sum())) / (1 + len(gaps)))
    else:
        p = _permutation(task, y, first.answers, second.answers, metric, differences[metric].score, resamples, seed)
    counts = {}
    if first.signature.one_label:
        right = [report.answers.argmax(axis=1) == y for report in (first, second)]
        alone = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
        exact, mid = mcnemar(*alone)
        counts = {"only_first": alone[0], "only_second": alone[1], "mcnemar": exact, "mcnemar_mid": mid}
    intervals = (report.metrics[metric] for report in (first, second))
    names = (first.name, second.name) if first.name != second.name else (f"{first.name} (1)", f"{second.name} (2)")
    return Comparison(names, first.split, rows, metric, *intervals, differences[metric], p, differences, **counts)


def _check_same_rows(first: Report, second: Report) -> None:
    for what in ("task", "labels", "split", "rows"):
        if getattr(first, what) != getattr(second, what):
            raise ValueError(
                f"{first.name} and {second.name} cannot be compared: their {what} are {getattr(first, what)!r} and "
                f"{getattr(second, what)!r}; judge both on the same rows"
            )
    sizes = {report.x["image"].shape[1:] for report in (first, second) if report.x and "image" in report.x}
    resized = len(sizes) == 2  # pictures of another size have other pixels, so that their order of labels must tell
    if not np.array_equal(first.y, second.y) or (first.fingerprint != second.fingerprint and not resized):
        raise ValueError(
            f"{first.name} and {second.name} were judged on different {first.split} rows, as models of other splits "
            "are; train both with the same split_seed, or give data that neither has seen"
        )


def mcnemar(only_first: int, only_second: int) -> tuple[float, float]:
    """Two-sided exact p and mid-p that two models are equally often right.

    Args:
        only_first, only_second: rows that one of the two alone answers rightly.
    """
    from scipy.stats import binom

    total, fewer = only_first + only_second, min(only_first, only_second)
    if not total:
        return 1.0, 1.0
    exact = min(1.0, 2 * float(binom.cdf(fewer, total, 0.5)))
    if only_first == only_second:  # Fagerland et al. 2013, section "McNemar mid-p test"
        return 1.0, 1 - float(binom.pmf(fewer, total, 0.5)) / 2
    return exact, exact - float(binom.pmf(fewer, total, 0.5))


def _permutation(
    task: str,
    y: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    metric: str,
    found: float,
    resamples: int,
    seed: int,
) -> float:
    """Two-sided p of a difference when the two models trade their answers at random, row by row."""
    rows = len(y)
    measure = metrics.measures(task, np.concatenate([y, y]), np.concatenate([first, second]))[metric]
    random = np.random.default_rng([seed, 1])
    size = max(1, 2**21 // rows)
    extreme = 0
    for start in range(0, resamples, size):
        trade = random.random((min(size, resamples - start), rows)) < 0.5
        one = np.concatenate([~trade, trade], axis=1).astype(np.float64)
        moved = measure(1 - one) - measure(one)
        extreme += int((np.abs(moved) >= abs(found) - 1e-12).sum())
    return (1 + extreme) / (1 + resamples)


def against_baseline(
    model,
    data=None,
    *,
    entry: str = "logistic_regression",
    metric: str | None = None,
    precision: str | None = None,
    target: str | None = None,
    quiet: bool = True,
    **overrides,
) -> Comparison:
    """Train the baseline entry on the same training rows, and compare on the same test rows.

    Args:
        model: anything that `zoo.evaluate` takes.
        data: as in `zoo.evaluate`.
        entry: name of the baseline.
        metric: of the verdict, the task's own if None.
        precision: form of a bundle.
        target: target column of a table.
        quiet: no progress bar.
        overrides: settings of the baseline's run, such as `epochs`.

    Returns:
        The comparison, the baseline first.
    """
    from zoo.training import train

    candidate = Candidate.of(model, data, precision=precision, target=target)
    splits = candidate.data
    with tempfile.TemporaryDirectory() as folder:
        run = train(entry, splits, out=Path(folder) / "baseline", quiet=quiet, **overrides)
        first = evaluate(run)
    found = judge(
        splits.signature, splits.test.y, candidate.answers("test"), "test", x=splits.test.x, name=candidate.name
    )
    return of_reports(replace(first, name=entry), found, metric=metric)
