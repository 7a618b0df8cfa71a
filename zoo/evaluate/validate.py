"""How far a score depends on the rows: generalisation gap, k-fold cross-validation, learning curve over training rows.

Kohavi, "A Study of Cross-Validation and Bootstrap for Accuracy Estimation and Model Selection", IJCAI 1995.
"""

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo import data as datasets
from zoo import recipes, registry
from zoo.data import Data, Rows, lazy, targets
from zoo.data.rows import TEST, TRAIN, VALIDATION, digests
from zoo.data.splits import named
from zoo.evaluate import metrics
from zoo.evaluate.report import SPLITS, Candidate, Report, defined, evaluate
from zoo.tasks import Interval

_STRATA = 10  # groups of a regression's targets that every fold gets a share of


@dataclass(frozen=True)
class Gap:
    """Scores on rows that were learned from and on rows that were not.

    Attributes:
        name: model.
        rows: of each split.
        scores: split -> metric -> score with a 95 % interval.
        gaps: metric -> training minus test score, with a 95 % bootstrap interval.
    """

    name: str
    rows: dict[str, int]
    scores: dict[str, dict[str, Interval]]
    gaps: dict[str, Interval]

    def __str__(self) -> str:
        table = [["", *self.scores, "train - test"], ["rows", *(f"{count:,}" for count in self.rows.values()), ""]]
        for name, gap in self.gaps.items():
            table.append([name, *(str(scores[name]) for scores in self.scores.values()), str(gap)])
        return _aligned(table)

    def to_json(self) -> str:
        """Figures as JSON text."""
        scores = {split: _plain(found) for split, found in self.scores.items()}
        told = {"name": self.name, "rows": self.rows, "scores": scores, "gaps": _plain(self.gaps)}
        return json.dumps(defined(told), indent=2) + "\n"


def gap(model, data=None, *, precision: str | None = None, target: str | None = None, resamples: int = 1000) -> Gap:
    """Compare the scores on training, validation and test rows.

    Args:
        model, data, precision, target: as in `zoo.evaluate`.
        resamples: bootstrap samples, drawn in each split by itself.
    """
    candidate = Candidate.of(model, data, precision=precision, target=target)
    task = candidate.data.signature.task
    scores: dict[str, dict[str, Interval]] = {}
    drawn: dict[str, dict[str, np.ndarray]] = {}
    rows = {}
    for place, split in enumerate(SPLITS):
        part = getattr(candidate.data, split)
        if not len(part):
            if split != "validation":
                raise ValueError(f"data {candidate.data.name!r} has no {split} rows; a gap needs them")
            continue
        found = metrics.measures(task, part.y, candidate.answers(split))
        drawn[split] = metrics.replicates(found, len(part), resamples, place)
        whole = np.ones((1, len(part)))
        scores[split] = {
            name: Interval(float(measure(whole)[0]), *metrics.percentiles(drawn[split][name]))
            for name, measure in found.items()
        }
        rows[split] = len(part)
    gaps = {}
    for name in scores["train"]:
        if name in scores["test"]:
            moved = metrics.percentiles(drawn["train"][name] - drawn["test"][name])
            gaps[name] = Interval(scores["train"][name].score - scores["test"][name].score, *moved)
    return Gap(candidate.name, rows, scores, gaps)


@dataclass(frozen=True)
class Folds:
    """A model trained once for each fold and judged on that fold.

    Attributes:
        name: model, as in `zoo.get`.
        data: data set.
        metric: the task's own.
        rows: of the held-out part of each fold.
        scores: metric -> score on each fold, `(folds,)`.
        pooled: metric -> over all held-out answers together, with a 95 % bootstrap interval over rows.
        seconds: of training in all.
    """

    name: str
    data: str
    metric: str
    rows: list[int]
    scores: dict[str, np.ndarray]
    pooled: dict[str, Interval]
    seconds: float

    @property
    def mean(self) -> float:
        """Mean of the task's metric over folds."""
        return float(self.scores[self.metric].mean())

    @property
    def spread(self) -> float:
        """Standard deviation of the task's metric between folds. It is no standard error: folds share training rows."""
        return float(self.scores[self.metric].std(ddof=1))

    def __str__(self) -> str:
        folds = range(len(self.rows))
        lines = [
            f"{self.name} on {self.data}: {self.metric} {self.mean:.4f}, standard deviation {self.spread:.4f} between "
            f"{len(self.rows)} folds; trained for {self.seconds:.0f} s",
            f"{'':<18}{'mean':>10}{'spread':>10}  "
            + "".join(f"{f'fold {fold + 1}':>10}" for fold in folds)
            + "  all held-out rows",
            f"{'rows':<18}{'':>20}  " + "".join(f"{count:>10,}" for count in self.rows) + f"  {sum(self.rows):,}",
        ]
        for name, found in self.scores.items():
            lines.append(
                f"{name:<18}{found.mean():>10.4f}{found.std(ddof=1):>10.4f}  "
                + "".join(f"{score:>10.4f}" for score in found)
                + f"  {self.pooled[name]}"
            )
        return "\n".join(lines)

    def to_json(self) -> str:
        """Figures as JSON text."""
        told = {
            "name": self.name,
            "data": self.data,
            "metric": self.metric,
            "mean": self.mean,
            "spread": self.spread,
            "rows": self.rows,
            "scores": {name: found.tolist() for name, found in self.scores.items()},
            "pooled": _plain(self.pooled),
            "seconds": self.seconds,
        }
        return json.dumps(defined(told), indent=2) + "\n"


def cross_validate(
    model,
    data=None,
    *,
    folds: int = 5,
    seed: int = 0,
    use_test: bool = False,
    validation: float = 0.15,
    quiet: bool = False,
    **overrides: Any,
) -> Folds:
    """Train once per fold, by the model's recipe, and judge on the fold that was left out.

    Folds are stratified by class (by tenths of the targets for a regression), equal rows are in one fold, and scaling
    is learned from each fold's own training rows. The best epoch is chosen on rows taken from these, never on the fold.

    Args:
        model: public name, or a run or run folder whose recipe is repeated.
        data: as in `zoo.train`.
        folds: at least 2.
        seed: of the folds; that of weights and order is the recipe's, or `overrides`'.
        use_test: deal out all rows; otherwise the test rows stay unseen, for a last look.
        validation: share of each fold's training rows that choose the epoch.
        quiet: no progress.
        overrides: settings of the recipe or arguments of the model, as in `zoo.train`.

    Raises:
        ValueError: too few rows, or a share or number out of range.
    """
    if folds < 2:
        raise ValueError(f"folds must be at least 2, got folds={folds!r}")
    if not 0 < validation < 1:
        raise ValueError(
            f"validation must be a share in (0, 1), which chooses the epoch, got validation={validation!r}"
        )
    name, splits, overrides = _source(model, data, overrides)
    if splits.signature.task == "embedding":
        raise ValueError(
            "folds are judged together, and embeddings of two trainings cannot be compared; train with several seeds instead"
        )
    if splits.signature.forecast is not None:
        raise ValueError(
            "folds of one series would learn from what comes after them; evaluate walks forward over the test part instead"
        )
    if splits.signature.task == "language-modelling":
        raise ValueError(
            "folds would part what is of one file, so that a model had read next to what it is judged on; train with several "
            "seeds instead"
        )
    rows = _rows(splits, SPLITS if use_test else SPLITS[:2])
    place = deal(rows, folds, seed)
    reports: list[Report] = []
    seconds = 0.0
    with _counted(folds, "fold", quiet) as told:
        for fold in range(folds):
            part = np.where(place == fold, TEST, TRAIN).astype(np.int8)
            own = datasets.from_rows(
                dataclasses.replace(rows, part=part), seed=seed, validation=validation, **_reading(splits)
            )
            report, took = _trained(name, own, overrides)
            seconds += took
            reports.append(report)
            told(f"{report.metric} {report.score.score:.4f}")
    known = [name for name in reports[0].metrics if all(name in report.metrics for report in reports)]
    scores = {each: np.array([report.metrics[each].score for report in reports]) for each in known}
    pooled = metrics.intervals(
        rows.task, np.concatenate([r.y for r in reports]), np.concatenate([r.answers for r in reports])
    )
    return Folds(
        name, splits.name, reports[0].metric, [r.rows for r in reports], scores, {n: pooled[n] for n in known}, seconds
    )


def deal(rows: Rows, folds: int, seed: int) -> np.ndarray:
    """Fold of each row, `(rows,)`: every fold gets its share of each class, and equal rows are in one fold.

    Raises:
        ValueError: a class has fewer different rows than there are folds.
    """
    first: dict[bytes, int] = {}
    group = np.array([first.setdefault(digest, row) for row, digest in enumerate(digests(rows.x))])
    heads, sizes = np.unique(group, return_counts=True)
    kind = targets.of(rows.task)
    strata = rows.y[heads] if rows.task == "regression" else kind.strata(rows.y[heads], len(rows.labels))
    if rows.task == "regression":
        order = np.argsort(strata, kind="stable")
        strata = np.empty(len(heads), np.int64)
        strata[order] = np.arange(len(heads)) * min(_STRATA, max(1, len(heads) // folds)) // len(heads)
    random = np.random.default_rng(seed)
    fold_of = np.zeros(len(group), np.int64)
    total = np.zeros(folds, np.int64)
    for stratum in np.unique(strata):
        own = random.permutation(np.flatnonzero(strata == stratum))
        if len(own) < folds:
            what = named(rows, kind, heads[own], stratum)
            raise ValueError(f"{what} has {len(own)} different rows, too few for {folds} folds")
        own = own[np.argsort(-sizes[own], kind="stable")]
        count = np.zeros(folds, np.int64)
        for head in own:
            fold = min(range(folds), key=lambda each: (count[each], total[each], each))
            fold_of[heads[head]] = fold
            count[fold] += sizes[head]
            total[fold] += sizes[head]
    return fold_of[group]


@dataclass(frozen=True)
class Growth:
    """Scores of a model trained on growing shares of the training rows.

    Attributes:
        name, data: model and data set.
        metric: the task's own.
        rows: training rows of each point.
        train, validation, test: score with 95 % interval at each point.
    """

    name: str
    data: str
    metric: str
    rows: list[int]
    train: list[Interval] = field(default_factory=list)
    validation: list[Interval] = field(default_factory=list)
    test: list[Interval] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """What more rows would bring."""
        last, before = self.test[-1], self.test[-2]
        if last.score > before.high:
            return "The test score still grows with more rows: collect more."
        if self.train[-1].score > last.high:
            return "More rows no longer help clearly, yet training rows are fitted better: regularise or augment."
        return "More rows no longer help clearly, and training rows are not fitted better: a larger model may."

    def __str__(self) -> str:
        table = [["training rows", *SPLITS]]
        for rows, *scores in zip(self.rows, self.train, self.validation, self.test, strict=True):
            table.append([f"{rows:,}", *map(str, scores)])
        head = f"{self.name} on {self.data}, {self.metric} with 95 % intervals"
        return "\n".join([head, _aligned(table), self.verdict])

    def to_json(self) -> str:
        """Figures as JSON text."""
        told: dict[str, Any] = {"name": self.name, "data": self.data, "metric": self.metric, "rows": self.rows}
        told |= {split: [vars(score) for score in getattr(self, split)] for split in SPLITS}
        return json.dumps(defined({**told, "verdict": self.verdict}), indent=2) + "\n"

    def plot(self, path: str | Path) -> Path:
        """Picture of the scores against the number of training rows."""
        from zoo.evaluate import pictures

        return pictures.growth(self, path)


def learning_curve(
    model,
    data=None,
    *,
    shares: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0),
    seed: int = 0,
    quiet: bool = False,
    **overrides: Any,
) -> Growth:
    """Train on growing shares of the training rows, each holding the smaller ones, and judge on the same rows.

    Args:
        model: public name, or a run or run folder whose recipe is repeated.
        data: as in `zoo.train`.
        shares: of the training rows, growing, in (0, 1]; at least two.
        seed: of the choice of rows.
        quiet: no progress.
        overrides: settings of the recipe or arguments of the model. Epochs are passes, so that fewer rows mean fewer
            steps.

    Raises:
        ValueError: shares out of order or range, or so small that a class has no row.
    """
    if len(shares) < 2 or list(shares) != sorted(set(shares)) or not 0 < shares[0] <= shares[-1] <= 1:
        raise ValueError(f"shares must be two or more growing numbers in (0, 1], got {shares!r}")
    name, splits, overrides = _source(model, data, overrides)
    for split in SPLITS:
        if not len(getattr(splits, split)):
            raise ValueError(f"data {splits.name!r} has no {split} rows; a learning curve needs them")
    order = _spread_out(splits.train.y, splits.signature, seed)
    found: dict[str, list[Interval]] = {split: [] for split in SPLITS}
    counts = []
    with _counted(len(shares), "share", quiet) as told:
        for share in shares:
            chosen = order[: max(1, round(share * len(order)))]
            kind = targets.of(splits.signature.task)
            if not kind.present(splits.train.y[chosen], splits.signature.outputs).any(axis=0).all():
                raise ValueError(f"a share of {share:g} leaves a class without training rows; begin with a larger one")
            report, _ = _trained(name, _with_train(splits, chosen), overrides, found)
            counts.append(len(chosen))
            told(f"{len(chosen):,} rows: {report.metric} {report.score.score:.4f}")
    return Growth(name, splits.name, report.metric, counts, **found)


def _spread_out(y: np.ndarray, signature: Any, seed: int) -> np.ndarray:
    """An order of the rows in which every beginning has about the same share of each class."""
    random = np.random.default_rng(seed)
    if signature.task == "regression":
        return random.permutation(len(y))
    place, strata = np.empty(len(y)), targets.of(signature.task).strata(y, signature.outputs)
    for label in np.unique(strata):
        own = random.permutation(np.flatnonzero(strata == label))
        place[own] = (np.arange(len(own)) + random.random()) / len(own)
    return np.argsort(place, kind="stable")


def _with_train(splits: Data, chosen: np.ndarray) -> Data:
    """The same splits with these training rows alone, and scaling learned from them."""
    rows = _rows(splits, SPLITS)
    part = np.concatenate([np.full(len(getattr(splits, name)), code) for name, code in _CODES.items()]).astype(np.int8)
    keep = np.concatenate([np.sort(chosen), np.arange(len(splits.train), len(rows.y))])
    x = {key: lazy.pick(values, keep) for key, values in rows.x.items()}
    return datasets.from_rows(dataclasses.replace(rows, x=x, y=rows.y[keep], part=part[keep]), **_reading(splits))


def _reading(splits: Data) -> dict[str, Any]:
    """How a tokenizer is made anew from other training rows; nothing where inputs are no texts."""
    step = splits.signature.preprocess
    return {"tokenizer": step.anew, "tokens": step.length} if step.kind == "text" else {}


_CODES = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


def _rows(splits: Data, parts: tuple[str, ...]) -> Rows:
    """Rows of some splits together, in their order."""
    signature = splits.signature
    step = signature.preprocess
    if signature.task == "token-classification":
        raise ValueError(
            f"the labels of {splits.name!r} are those of the tokens of one tokenizer, which another part of its rows would not "
            "make; train with several seeds instead"
        )
    found = [getattr(splits, part) for part in parts if len(getattr(splits, part))]
    table = step.kind != "image"
    return Rows(
        name=splits.name,
        task=signature.task,
        x={key: lazy.joined([split.x[key] for split in found]) for key in splits.train.x},
        y=np.concatenate([split.y for split in found]),
        labels=signature.labels,
        source=splits.source,
        licence=splits.licence,
        numbers=step.numbers if table else (),
        categories=tuple(step.categories) if table else (),
        generated=splits.generated,
        forecast=signature.forecast,
        rate=getattr(step, "rate", 0),
    )


def _source(model, data, overrides: dict[str, Any]) -> tuple[str, Data, dict[str, Any]]:
    """Public name, splits and settings of what is to be trained again and again."""
    from zoo.training import as_run

    is_name = isinstance(model, str) and not (Path(model) / "recipe.json").exists()
    if not is_name:
        run = as_run(model, data)
        recipe = run.recipe
        kept = {key: getattr(recipe, key) for key in recipes.SETTINGS if key not in ("target", "expected")}
        own = {key: value for key, value in recipe.arguments.items() if key not in recipes.FOLLOWING}
        return recipe.model, run.data, {**own, **kept, **overrides}
    entry = registry.entry(model)
    source = data if data is not None else entry.data
    given = source.name if isinstance(source, Data) else str(source)
    asked = {key: overrides[key] for key in ("seed", "split_seed", "target") if overrides.get(key) is not None}
    recipe = recipes.find(entry.name, given, entry.recipe).override(**asked)
    shape = overrides.pop("input_shape", recipe.arguments.get("input_shape"))
    splits = datasets.load(source, input_shape=shape, **recipe.data_options)
    overrides.pop("target", None)
    return entry.name, splits, overrides


def _trained(
    name: str, own: Data, overrides: dict[str, Any], found: dict[str, list[Interval]] | None = None
) -> tuple[Report, float]:
    """The report of a model trained on these splits, on their test rows, and the seconds it took."""
    from zoo.training import train

    step = own.signature.preprocess
    if step.kind == "image":
        overrides = {**overrides, "input_shape": step.shape}
    with tempfile.TemporaryDirectory() as folder:
        run = train(name, own, out=Path(folder) / "run", quiet=True, **overrides)
        for split in found or ():
            found[split].append(evaluate(run, split=split).score)
        return evaluate(run), run.metrics["seconds"]


@contextmanager
def _counted(total: int, what: str, quiet: bool) -> Iterator[Any]:
    """A function that tells on standard error what one more part gave, and the time left."""
    import time

    from rich.console import Console

    console = Console(stderr=True, quiet=quiet)
    started, done = time.perf_counter(), 0

    def tell(result: str) -> None:
        nonlocal done
        done += 1
        left = (time.perf_counter() - started) / done * (total - done)
        console.print(
            f"{what} {done}/{total}  {result}" + (f"  about {left:.0f} s left" if left else ""), highlight=False
        )

    yield tell


def _aligned(table: list[list[str]]) -> str:
    """Rows of text as columns."""
    width = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(f"{cell:<{size}}" for cell, size in zip(row, width, strict=True)) for row in table)
    return "\n".join(line.rstrip() for line in lines)


def _plain(scores: dict[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: vars(score) for name, score in scores.items()}
