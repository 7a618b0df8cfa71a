"""What compression changed beyond the score: which rows flip, which classes pay, how sure and why the model answers.

A smaller model with the same accuracy may be right on other rows than before, and it may be right for other reasons.
Hooker et al., "What Do Compressed Deep Neural Networks Forget?" (arXiv:1911.05248), for classes that pay more than
others; Yan et al., "Positive-Congruent Training" (arXiv:2011.09161), for negative flips; Guo et al., "On Calibration of
Modern Neural Networks" (arXiv:1706.04599), for the calibration error.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from zoo import data as datasets
from zoo import tasks
from zoo.data import Data, Signature, images
from zoo.data.lazy import Pictures
from zoo.evaluate.report import check_fit, knowledge, opened, predictor
from zoo.explain import explain
from zoo.explain.sources import subject_with
from zoo.recipes import DATA_OPTIONS
from zoo.training import as_run, load

Raw = dict[str, np.ndarray]

BINS = 15  # of confidence; Guo et al. 2017, section 5
BACKGROUND = 8  # training rows that stand for unknown columns of a table
RESAMPLES = 1000
_BATCH = 256  # rows per call of an ONNX file
_SHOWN = 12  # classes and rows printed
_RED, _BLUE, _GREY, _INK = "#c2272d", "#2166ac", "#b8b8b8", "#222222"


@dataclass(frozen=True)
class ClassChange:
    """Share of a class's rows that is found.

    Attributes:
        label: class name.
        rows: rows of the class.
        right_before, right_after: how many of them are answered right.
    """

    label: str
    rows: int
    right_before: int
    right_after: int

    @property
    def before(self) -> float:
        """Recall in [0, 1]; NaN for a class without rows."""
        return self.right_before / self.rows if self.rows else float("nan")

    @property
    def after(self) -> float:
        """Recall in [0, 1]; NaN for a class without rows."""
        return self.right_after / self.rows if self.rows else float("nan")

    @property
    def change(self) -> float:
        """Recall after less recall before."""
        return self.after - self.before


@dataclass(frozen=True)
class Agreement:
    """How alike the reasons for an answer are: Spearman's rank correlation of Shapley values, row by row.

    Attributes:
        rows: index of each explained row in the split.
        correlations: of each row, in [-1, 1]; NaN where a model's answer depends on nothing.
        method: of `zoo.explain`.
    """

    rows: np.ndarray
    correlations: np.ndarray
    method: str

    @property
    def median(self) -> float:
        return float(np.nanmedian(self.correlations)) if self.known else float("nan")

    @property
    def low(self) -> float:
        """The lowest 5 % of the rows are below."""
        return float(np.nanquantile(self.correlations, 0.05)) if self.known else float("nan")

    @property
    def known(self) -> int:
        """Rows that have a correlation."""
        return int(np.isfinite(self.correlations).sum())


@dataclass(frozen=True)
class Changes:
    """What differs between two models on the same rows.

    Attributes:
        names: of the model before and after.
        data, split, task: what they were asked about.
        labels: class names, or the target's name.
        metric: name of the score, larger is better.
        scores: before and after, with 95 % bootstrap intervals.
        change: score after less before, with the interval over the same resampled rows.
        p_value: of McNemar's exact test that as many rows become wrong as become right; None for regression.
        per_class: recall by class, the most harmed first; empty for regression.
        flips: rows whose class changes, by index in the split.
        negative_flips: rows that were right and are wrong.
        positive_flips: rows that were wrong and are right.
        mean_change: mean absolute change of a probability, or of the answer in the target's unit.
        largest_change: the largest one.
        calibration: expected calibration error before and after; None for regression.
        errors: for regression, figures by name, each before and after.
        quantiles: for regression, absolute change of the answer that 50, 90 and 99 % of the rows stay below.
        explanations: None where they could not be compared.
        note: why not.
        worst: rows by index, those that lost most first: probability of the true class, or growth of the error.
        y: true targets.
        before, after: answers to all rows, (rows, outputs).
        shown: raw inputs of the worst rows, in their order.
    """

    names: tuple[str, str]
    data: str
    split: str
    task: str
    labels: tuple[str, ...]
    metric: str
    scores: tuple[tasks.Interval, tasks.Interval]
    change: tasks.Interval
    p_value: float | None
    per_class: tuple[ClassChange, ...]
    flips: np.ndarray
    negative_flips: np.ndarray
    positive_flips: np.ndarray
    mean_change: float
    largest_change: float
    calibration: tuple[float, float] | None
    errors: dict[str, tuple[float, float]]
    quantiles: dict[str, float]
    explanations: Agreement | None
    note: str
    worst: np.ndarray
    y: np.ndarray = field(repr=False)
    before: np.ndarray = field(repr=False)
    after: np.ndarray = field(repr=False)
    shown: Raw = field(repr=False)

    @property
    def rows(self) -> int:
        return len(self.y)

    def __str__(self) -> str:
        return "\n".join([*self._head(), *(self._values() if self.p_value is None else self._classes())])

    def _head(self) -> list[str]:
        one, two = self.names
        return [
            f"{one} -> {two}, on {self.rows:,} {self.split} rows of {self.data}",
            f"{self.metric:<14}{self.scores[0]} -> {self.scores[1]}",
            f"{'change':<14}{self.change.score:+.4f} [{self.change.low:+.4f}, {self.change.high:+.4f}]",
        ]

    def _explained(self) -> str:
        if self.explanations is None:
            return f"{'reasons':<14}not compared: {self.note}"
        found = self.explanations
        if not found.known:
            return f"{'reasons':<14}not compared: the answers to the {len(found.rows)} rows depend on nothing"
        return (
            f"{'reasons':<14}rank correlation of Shapley values {found.median:.3f} in the median of {found.known} rows, "
            f"below {found.low:.3f} in 5 %"
        )

    def _classes(self) -> list[str]:
        lost, won, other = self._flip_counts()
        chance = "no more than chance gives" if self.p_value > 0.05 else "more than chance gives"
        lines = [
            f"{'flips':<14}{len(self.flips)} rows ({len(self.flips) / self.rows:.1%}) get another class: {lost} were right "
            f"and are wrong, {won} the reverse, {other} are wrong in another way",
            f"{'McNemar':<14}p = {self.p_value:.2g}: {lost} lost against {won} won, {chance}",
            f"{'probability':<14}moved by {self.mean_change:.4f} on average, {self.largest_change:.4f} at most",
            f"{'calibration':<14}error {self.calibration[0]:.4f} -> {self.calibration[1]:.4f} ({BINS} bins)",
            self._explained(),
            "",
        ]
        width = max(5, *(len(each.label) for each in self.per_class))
        lines.append(f"{'class':<{width}}  {'rows':>6}  {'before':>7}  {'after':>7}  {'change':>8}")
        known = [each for each in self.per_class if each.rows]
        for each in known[:_SHOWN]:
            lines.append(
                f"{each.label:<{width}}  {each.rows:>6,}  {each.before:>7.4f}  {each.after:>7.4f}  {each.change:>+8.4f}"
            )
        if len(known) > _SHOWN:
            rest = [each.change for each in known[_SHOWN:]]
            lines.append(f"{len(rest)} more classes change by {min(rest):+.4f} to {max(rest):+.4f}")
        if len(self.negative_flips):
            lines += ["", "right before and wrong now, the clearest first:"]
            lines += [f"  row {row}: {self._story(row)}" for row in self._lost_rows()]
        return lines

    def _values(self) -> list[str]:
        width = max(map(len, self.errors))
        return [
            f"{'answer':<14}moved by {self.mean_change:.4g} on average, {self.largest_change:.4g} at most; "
            + ", ".join(f"{value:.4g} at {share}" for share, value in self.quantiles.items()),
            self._explained(),
            "",
            f"{'error':<{width}}  {'before':>10}  {'after':>10}",
            *(f"{name:<{width}}  {one:>10.4g}  {two:>10.4g}" for name, (one, two) in self.errors.items()),
            "",
            "rows whose error grew most:",
            *(f"  row {row}: {self._story(row)}" for row in self.worst[:_SHOWN]),
        ]

    def _flip_counts(self) -> tuple[int, int, int]:
        """Rows lost, won, and wrong in another way."""
        lost, won = len(self.negative_flips), len(self.positive_flips)
        return lost, won, len(self.flips) - lost - won

    def _lost_rows(self) -> np.ndarray:
        """Negative flips among the worst rows, in that order."""
        return self.worst[np.isin(self.worst, self.negative_flips)][:_SHOWN]

    def _story(self, row: int) -> str:
        """One row in words."""
        if self.p_value is None:
            true, one, two = float(np.ravel(self.y[row])[0]), float(self.before[row, 0]), float(self.after[row, 0])
            return f"is {true:.4g}, was {one:.4g}, now {two:.4g}"
        parts = [f"is {self.labels[int(self.y[row])]}"]
        for word, found in (("was", self.before[row]), ("now", self.after[row])):
            parts.append(f"{word} {self.labels[int(found.argmax())]} {found.max():.0%}")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Every figure and the indices of the flipped rows, in JSON types; what is not known is None."""
        explained = self.explanations
        found: dict[str, Any] = {
            "before": self.names[0],
            "after": self.names[1],
            "data": self.data,
            "split": self.split,
            "task": self.task,
            "rows": self.rows,
            "metric": self.metric,
            "score": {"before": vars(self.scores[0]), "after": vars(self.scores[1]), "change": vars(self.change)},
            "mean_change": self.mean_change,
            "largest_change": self.largest_change,
            "explanations": {"note": self.note}
            if explained is None
            else {
                "method": explained.method,
                "median": explained.median,
                "lowest_5_percent": explained.low,
                "rows": explained.rows.tolist(),
                "correlations": explained.correlations.tolist(),
            },
            "worst": self.worst.tolist(),
        }
        if self.p_value is None:
            found["errors"] = {name: {"before": one, "after": two} for name, (one, two) in self.errors.items()}
            found["quantiles"] = self.quantiles
        else:
            found["mcnemar_p"] = self.p_value
            found["calibration"] = dict(zip(("before", "after"), self.calibration, strict=True))
            found["flips"] = {
                "rows": self.flips.tolist(),
                "negative": self.negative_flips.tolist(),
                "positive": self.positive_flips.tolist(),
            }
            found["per_class"] = {
                each.label: {"rows": each.rows, "before": each.before, "after": each.after, "change": each.change}
                for each in self.per_class
            }
        return _known_only(found)

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def plot(self, path: str | Path) -> Path:
        """Picture of the change by class, of each row's probability before and after, and of the rows lost."""
        return picture(self, path)


def changes(
    before: Any,
    after: Any,
    data: Any = None,
    *,
    split: str = "test",
    precisions: tuple[str | None, str | None] = (None, None),
    explained: int = 16,
    max_evals: int | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Changes:
    """Compare two models row by row: what the score alone does not tell of a compressed model.

    Args:
        before: run, run folder, Keras model, bundle, its folder, or ONNX file of `export.to_onnx`.
        after: the same, for the compressed model; they need not be of the same kind.
        data: data set, its name or a path; the rows that either of the two was trained on if None.
        split: "test" (held out), "validation" or "train".
        precisions: file of each where it is a bundle, such as "int8"; the bundle's default if None.
        explained: rows whose explanations are compared, drawn at random; 0 for none.
        max_evals: coalitions evaluated per explained row at most; each method's own number if None.
        seed: of the explained rows and of the explainer's random orders.
        quiet: show no progress.

    Returns:
        Figures, with table (`print`), picture (`plot`) and JSON (`to_json`).

    Raises:
        TypeError: a model of another kind.
        ValueError: the models do not fit the data or each other, the split is empty or its rows are all alike, a model
            answers NaN, or the one before is no better than an answer that never changes.

    Source: McNemar 1947 for the test, in its exact form; Guo et al. 2017, equation 3, for the calibration error;
    Spearman 1904 for the rank correlation.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split must be 'train', 'validation' or 'test', got {split!r}")
    if explained < 0:
        raise ValueError(f"explained must be a number of rows, at least 0, got explained={explained!r}")
    sides = [_side(model, precision) for model, precision in zip((before, after), precisions, strict=True)]
    splits = [_splits(side, sides, data) for side in sides]
    for own in splits:
        for side in sides:
            check_fit(own, side.known)
    signature, part = splits[0].signature, getattr(splits[0], split)
    if not signature.one_number:
        raise ValueError(
            f"changes are told of answers with one label or value, and the task is {signature.task}; "
            "compare the two with zoo.evaluate.compare"
        )
    _check_rows(splits, split)
    found = [side.ask(getattr(own, split).x, own.signature) for side, own in zip(sides, splits, strict=True)]
    for side, answer in zip(sides, found, strict=True):
        _check_answers(side.name, answer, signature)
    task = tasks.get(signature.task)
    idle = tasks.idle(signature, splits[0].train.y, part.y)
    score = task.score(part.y, found[0])
    if not score > idle:
        raise ValueError(
            f"{sides[0].name!r} scores {score:.4f} on the {split} rows, no better than always the same answer "
            f"({idle:.4f}); train it first"
        )
    agreement, note = None, "no rows were asked for"
    if explained:
        agreement, note = _agreement(sides, splits, split, found[0], explained, max_evals, seed, quiet)
    names = (sides[0].name, sides[1].name)
    return _judged(names, splits[0], split, found[0], found[1], agreement, note)


def calibration_error(y: np.ndarray, answer: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: mean gap of confidence and accuracy over bins of equal width, weighed by their rows.

    Args:
        y: class indices (rows,).
        answer: probabilities (rows, classes).
        bins: number of bins of the confidence, over (0, 1].

    Source: Guo et al. 2017, equation 3.
    """
    confidence, right = answer.max(axis=1).astype(np.float64), answer.argmax(axis=1) == y
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(place, confidence, bins) - np.bincount(place, right, bins)  # (bins,), each times its rows
    return float(np.abs(gap).sum() / len(y))


def mcnemar(lost: int, won: int) -> float:
    """Exact two-sided p-value that rows become wrong as often as right (McNemar 1947, with the binomial distribution).

    Args:
        lost: rows right before and wrong after.
        won: rows wrong before and right after.
    """
    return float(stats.binomtest(lost, lost + won, 0.5).pvalue) if lost + won else 1.0


@dataclass(frozen=True)
class _Side:
    """One of the two models: what it is called, how it is asked, and what it says of its data."""

    name: str
    ask: Callable[[Raw, Signature], np.ndarray]
    shape: tuple[int, ...] | None
    known: dict[str, Any]
    recipe: dict[str, Any]
    data: Callable[[], Data] | None


def _side(model: Any, precision: str | None) -> _Side:
    name = str(model) if isinstance(model, str | Path) else ""
    if isinstance(model, str | Path):
        path = Path(model)
        if path.suffix == ".onnx":
            return _Side(name, _of_file(path), None, {}, {}, None)
        model = load(path) if (path / "recipe.json").exists() else opened(path)
    if hasattr(model, "model") and hasattr(model, "signature"):  # a run
        recipe = dataclasses.asdict(model.recipe)
        name, data = name or str(model.folder or model.recipe.model), lambda: as_run(model).data
    elif hasattr(model, "predict_on_batch"):
        name, recipe, data = model.name, {}, None
    elif hasattr(model, "manifest"):
        precision = precision or model.manifest.default
        recipe = model.manifest.training.get("recipe", {})
        name = f"{name or model.folder} ({precision})"
        data = (lambda: _load(recipe["data"], recipe, None)) if recipe.get("data") else None
        ask, shape = predictor(model, precision)
        return _Side(name, ask, shape, knowledge(model), recipe, data)
    else:
        raise TypeError(
            f"a run, a run folder, a Keras model, a bundle or an ONNX file is needed, got a {type(model).__name__}"
        )
    if precision is not None:
        raise ValueError(f"precision {precision!r} is about the files of a bundle, {name!r} is none; leave it out")
    ask, shape = predictor(model)
    return _Side(name, ask, shape, knowledge(model), recipe, data)


def _load(source: Any, recipe: dict[str, Any], shape: tuple[int, ...] | None) -> Data:
    """Data as the models were trained on it: the same target and the same splits."""
    shape = shape if shape and len(shape) == 3 else None
    seeds = recipe.get("split_seed"), recipe.get("seed")
    seed = next((seed for seed in seeds if seed is not None), 0)
    given = {name: recipe[name] for name in DATA_OPTIONS if recipe.get(name)}
    found = datasets.load(source, input_shape=shape, target=recipe.get("target") or None, seed=seed, **given)
    return datasets.scaled(found, recipe.get("scaling", ""))


def _splits(side: _Side, sides: list[_Side], data: Any) -> Data:
    """The rows as one side reads them; images may be of another size than the other side's."""
    recipe = side.recipe or next((other.recipe for other in sides if other.recipe), {})
    if data is None:
        givers = [each.data for each in (side, *sides) if each.data is not None]
        if not givers:
            raise ValueError("neither model knows its data: give data=, such as 'digits' (--data on the command line)")
        found = givers[0]()
    else:
        found = data if isinstance(data, Data) else _load(data, recipe, side.shape)
    own = found.signature.preprocess
    if own.kind != "image" or side.shape in (None, own.shape) or len(side.shape) != 3:
        return found
    with contextlib.suppress(ValueError, OSError):
        again = _load(found.name, recipe, side.shape)  # read in this size, which is sharper than resized twice
        if all(np.array_equal(again.splits[name].y, each.y) for name, each in found.splits.items()):
            return again
    sized = {
        name: dataclasses.replace(each, x={"image": images.resize(each.x["image"], side.shape)})
        for name, each in found.splits.items()
    }
    step = dataclasses.replace(own, height=side.shape[0], width=side.shape[1])
    return dataclasses.replace(found, signature=dataclasses.replace(found.signature, preprocess=step), **sized)


def _of_file(path: Path) -> Callable[[Raw, Signature], np.ndarray]:
    """A function that asks an ONNX file, which takes raw inputs, or the model's own and gives logits."""
    import onnxruntime

    if not path.is_file():
        raise FileNotFoundError(f"there is no ONNX file {path}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        live = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common base
        raise ValueError(f"{path} cannot be run: {error}; export it again") from error
    inputs, outputs = [each.name for each in live.get_inputs()], [each.name for each in live.get_outputs()]

    def ask(raw: Raw, signature: Signature) -> np.ndarray:
        task = tasks.get(signature.task)
        takes_raw = set(inputs) == set(raw) and task.output in outputs
        if not takes_raw and (len(inputs) > 1 or "logits" not in outputs):
            raise ValueError(
                f"{path} takes {', '.join(inputs)} and gives {', '.join(outputs)}, the data has {', '.join(raw)} and "
                f"{task.output} is needed; export it with export.to_onnx(model, path, signature=...)"
            )
        parts = []
        for start in range(0, len(next(iter(raw.values()))), _BATCH):
            some = {name: values[start : start + _BATCH] for name, values in raw.items()}
            if not takes_raw:
                some = {inputs[0]: signature.inputs(some)}
            fed = {name: values.astype(object) if values.dtype.kind == "U" else values for name, values in some.items()}
            try:
                parts.append(live.run([task.output if takes_raw else "logits"], fed)[0])
            except Exception as error:
                raise ValueError(f"{path} cannot read the rows: {error}") from error
        found = np.concatenate(parts)
        return found if takes_raw else task.answer(found, signature)

    return ask


def _check_rows(splits: list[Data], split: str) -> None:
    one, two = (getattr(each, split) for each in splits)
    name = splits[0].name
    if not len(one):
        raise ValueError(f"data {name!r} has no {split} rows; nothing can be compared")
    if not np.array_equal(one.y, two.y):
        raise ValueError(
            f"the two models were trained on different rows of {name!r}, so these are not held out for both; "
            "give the data of one of them"
        )
    for values in one.x.values():
        if isinstance(values, Pictures):
            if len(set(values.digests())) > 1:
                return
            continue
        same = values[1:] == values[:1]
        if values.dtype.kind == "f":
            same |= np.isnan(values[1:]) & np.isnan(values[:1])
        if not same.all():
            return
    raise ValueError(f"the {len(one)} {split} rows of {name!r} are all alike, so nothing can be compared; give others")


def _check_answers(name: str, answer: np.ndarray, signature: Signature) -> None:
    if answer.ndim != 2 or answer.shape[1] != signature.outputs:
        raise ValueError(
            f"{name!r} answers {answer.shape[1:]} for each row, the data has {signature.outputs} outputs; "
            "give the data it was trained on"
        )
    failed = ~np.isfinite(answer).all(axis=1)
    if failed.any():
        raise ValueError(
            f"{name!r} answers NaN or infinity for {int(failed.sum())} of {len(answer)} rows, the first is row "
            f"{int(failed.argmax())}; there is nothing to compare"
        )


def _agreement(
    sides: list[_Side],
    splits: list[Data],
    split: str,
    answer: np.ndarray,
    explained: int,
    max_evals: int | None,
    seed: int,
    quiet: bool,
) -> tuple[Agreement | None, str]:
    """Rank correlation of the explanations of some rows, of the class that the model before gives each."""
    from rich.console import Console
    from rich.progress import track

    signature, part = splits[0].signature, getattr(splits[0], split)
    if signature.preprocess.shape != splits[1].signature.preprocess.shape:
        return None, "the models read images of different sizes"
    random = np.random.default_rng(seed)
    rows = np.sort(random.choice(len(part), min(explained, len(part)), replace=False))
    background = None
    if signature.preprocess.kind == "table":
        few = random.choice(len(splits[0].train), min(BACKGROUND, len(splits[0].train)), replace=False)
        background = {name: values[few] for name, values in splits[0].train.x.items()}

    def subject(side: _Side) -> Any:
        return subject_with(side.name, signature, lambda raw: side.ask(raw, signature), background)

    subjects = [subject(side) for side in sides]
    found, method = np.empty(len(rows)), ""
    shown = track(rows, f"explaining {len(rows)} rows", console=Console(stderr=True), transient=True, disable=quiet)
    for place, row in enumerate(shown):
        raw = {name: values[row : row + 1] for name, values in part.x.items()}
        target = int(answer[row].argmax())
        try:
            settings = {"max_evals": max_evals, "seed": seed, "quality": False}
            reasons = [explain(each, raw, target=target, **settings) for each in subjects]
        except ImportError as error:
            return None, str(error)
        method = reasons[0].method
        found[place] = rank_correlation(*(each.attributions[0] for each in reasons))
    return Agreement(rows, found, method), ""


def rank_correlation(one: np.ndarray, two: np.ndarray) -> float:
    """Spearman's correlation of the places to which either model gives a share; NaN where one gives the same to all.

    Args:
        one, two: contributions of one shape; an image's (height, width, channels) are taken pixel by pixel.
    """
    if one.ndim == 3:
        one, two = one.sum(axis=-1), two.sum(axis=-1)
    matters = (one != 0) | (two != 0)
    one, two = one[matters], two[matters]
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(two) == 0:
        return float("nan")
    return float(stats.spearmanr(one, two).statistic)


def _judged(
    names: tuple[str, str],
    data: Data,
    split: str,
    before: np.ndarray,
    after: np.ndarray,
    agreement: Agreement | None,
    note: str,
) -> Changes:
    """All figures of two sets of answers to the same rows."""
    signature, part = data.signature, getattr(data, split)
    task, y = tasks.get(signature.task), part.y
    moved = np.abs(after.astype(np.float64) - before)
    common: dict[str, Any] = {
        "names": names,
        "data": data.name,
        "split": split,
        "task": signature.task,
        "labels": signature.labels,
        "metric": task.metric,
        "scores": (tasks.interval(task, y, before, RESAMPLES), tasks.interval(task, y, after, RESAMPLES)),
        "change": _change(task, y, before, after),
        "mean_change": float(moved.mean()),
        "largest_change": float(moved.max()),
        "explanations": agreement,
        "note": note,
        "y": y,
        "before": before,
        "after": after,
    }
    none = np.empty(0, np.int64)
    if signature.task == "regression":
        errors = [np.abs(np.ravel(answer) - np.ravel(y)) for answer in (before, after)]
        worst = np.argsort(errors[0] - errors[1], kind="stable")[:_SHOWN]
        return Changes(
            p_value=None,
            per_class=(),
            flips=none,
            negative_flips=none,
            positive_flips=none,
            calibration=None,
            errors=_errors(errors, [np.ravel(answer) - np.ravel(y) for answer in (before, after)]),
            quantiles={f"{share:.0%}": float(np.quantile(moved, share)) for share in (0.5, 0.9, 0.99)},
            worst=worst,
            shown={name: values[worst] for name, values in part.x.items()},
            **common,
        )
    was, now = before.argmax(axis=1), after.argmax(axis=1)
    right, still = was == y, now == y
    lost, won = np.flatnonzero(right & ~still), np.flatnonzero(~right & still)
    fall = before[np.arange(len(y)), y] - after[np.arange(len(y)), y]
    # what was right and is wrong comes first; then whatever lost most
    worst = np.lexsort((-fall, ~(right & ~still)))[:_SHOWN]
    classes = [
        ClassChange(
            label, int((y == place).sum()), int((right & (y == place)).sum()), int((still & (y == place)).sum())
        )
        for place, label in enumerate(signature.labels)
    ]
    return Changes(
        p_value=mcnemar(len(lost), len(won)),
        per_class=tuple(sorted(classes, key=lambda each: (not each.rows, each.change if each.rows else 0, -each.rows))),
        flips=np.flatnonzero(was != now),
        negative_flips=lost,
        positive_flips=won,
        calibration=(calibration_error(y, before), calibration_error(y, after)),
        errors={},
        quantiles={},
        worst=worst,
        shown={name: values[worst] for name, values in part.x.items()},
        **common,
    )


def _change(task: tasks.Task, y: np.ndarray, before: np.ndarray, after: np.ndarray) -> tasks.Interval:
    """Change of the score with a percentile bootstrap interval; both models are scored on the same resampled rows."""
    draws = np.random.default_rng(0).integers(0, len(y), (RESAMPLES, len(y)))
    found = [task.score(y[rows], after[rows]) - task.score(y[rows], before[rows]) for rows in draws]
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return tasks.Interval(task.score(y, after) - task.score(y, before), float(low), float(high))


def _errors(errors: list[np.ndarray], gaps: list[np.ndarray]) -> dict[str, tuple[float, float]]:
    """Figures of the errors before and after, in the target's unit."""
    figures: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
        "rmse": lambda error, gap: np.sqrt(np.mean(error**2)),
        "mean absolute": lambda error, gap: np.mean(error),
        "median absolute": lambda error, gap: np.median(error),
        "95 % are below": lambda error, gap: np.quantile(error, 0.95),
        "largest": lambda error, gap: np.max(error),
        "bias": lambda error, gap: np.mean(gap),
    }
    return {
        name: (float(figure(errors[0], gaps[0])), float(figure(errors[1], gaps[1]))) for name, figure in figures.items()
    }


def _known_only(value: Any) -> Any:
    """The same with None in place of NaN, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _known_only(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_known_only(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def picture(found: Changes, path: str | Path) -> Path:
    """Draw what changed to a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lost = found._lost_rows()[:8] if "image" in found.shown else np.empty(0, np.int64)
    bars = min(len([each for each in found.per_class if each.rows]), 24)
    top = max(4.4, 0.26 * bars + 1.2)
    figure = Figure(figsize=(11, top + (2.0 if len(lost) else 0)), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    upper, *lower = figure.subfigures(2, 1, height_ratios=(top, 2.0)) if len(lost) else (figure,)
    left, right = upper.subplots(1, 2)
    if found.p_value is None:
        _draw_errors(found, left)
        _draw_moves(found, right)
    else:
        _draw_bars(found, left)
        _draw_probabilities(found, right)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    if lost.size:
        lower[0].suptitle("right before and wrong now, the clearest first", fontsize=10, color=_INK)
        for axes, row in zip(lower[0].subplots(1, 8), [*lost, *[None] * (8 - len(lost))], strict=True):
            axes.axis("off")
            if row is not None:
                _draw_image(axes, found.shown["image"][list(found.worst).index(row)])
                axes.set_title(_caption(found, row), fontsize=8, color=_INK)
    upper.suptitle(
        f"{found.names[0]} → {found.names[1]}\n{found.metric} {found.scores[0].score:.4f} → {found.scores[1].score:.4f} on "
        f"{found.rows:,} {found.split} rows of {found.data}",
        fontsize=11,
        color=_INK,
    )
    figure.savefig(path, format="png")
    return Path(path)


def _draw_bars(found: Changes, axes: Any) -> None:
    """Change of the recall by class, the most harmed on top."""
    known = [each for each in found.per_class if each.rows]
    shown = known if len(known) <= 24 else [*known[:16], *known[-8:]]
    places = np.arange(len(shown))[::-1]
    values = np.array([100 * each.change for each in shown])
    axes.barh(places, values, height=0.7, color=[_RED if value < 0 else _BLUE for value in values])
    reach = max(float(np.abs(values).max(initial=0)), 1.0)
    for place, value, each in zip(places, values, shown, strict=True):
        moved = each.right_after - each.right_before
        side = -1 if value < 0 else 1
        text = f"{moved:+d} of {each.rows}" if moved else f"0 of {each.rows}"
        axes.text(
            value + side * reach * 0.03, place, text.replace("-", "−"), va="center", fontsize=8, color=_INK,
            ha="right" if side < 0 else "left",
        )  # fmt: skip
    axes.axvline(0, color=_INK, linewidth=0.8)
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    axes.set_xlim(low - reach * (0.45 if low < 0 else 0.05), high + reach * 0.45)
    axes.set_yticks(places, [each.label for each in shown])
    spare = max(0.0, (5 - len(shown)) / 2)  # so that two bars do not fill the panel
    axes.set_ylim(-0.6 - spare, len(shown) - 0.4 + spare)
    if len(shown) < len(known):
        axes.axhline(7.5, color=_GREY, linestyle=":", linewidth=1)
    title = "recall by class" if len(shown) == len(known) else f"recall, the extremes of {len(known)} classes"
    axes.set_title(title, fontsize=10, color=_INK)
    axes.set_xlabel("change in percent points", fontsize=9)


def _draw_probabilities(found: Changes, axes: Any) -> None:
    """Probability of the true class before and after, one point per row."""
    rows = np.arange(found.rows)
    one, two = found.before[rows, found.y], found.after[rows, found.y]
    other = np.setdiff1d(found.flips, np.concatenate([found.negative_flips, found.positive_flips]))
    same = np.setdiff1d(rows, found.flips)
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, zorder=0)
    for some, colour, size, text in (
        (same, _GREY, 12, "same class"),
        (other, _INK, 22, "wrong in another way"),
        (found.positive_flips, _BLUE, 26, "wrong → right"),
        (found.negative_flips, _RED, 26, "right → wrong"),
    ):
        axes.scatter(one[some], two[some], s=size, color=colour, alpha=0.8, linewidths=0, label=f"{text}: {len(some)}")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    axes.set_title("probability of the true class", fontsize=10, color=_INK)
    axes.set_xlabel("before", fontsize=9)
    axes.set_ylabel("after", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _draw_errors(found: Changes, axes: Any) -> None:
    """Absolute error of each row before and after."""
    one, two = (np.abs(np.ravel(answer) - np.ravel(found.y)) for answer in (found.before, found.after))
    end = 1.03 * max(float(one.max()), float(two.max()))
    axes.plot([0, end], [0, end], color=_GREY, linewidth=1, zorder=0)
    axes.scatter(one, two, s=14, color=np.where(two > one, _RED, _BLUE), alpha=0.7, linewidths=0)
    axes.set(xlim=(0, end), ylim=(0, end), aspect="equal")
    axes.set_title(f"error of {found.labels[0]}: {np.mean(two > one):.0%} of the rows lose", fontsize=10, color=_INK)
    axes.set_xlabel("before", fontsize=9)
    axes.set_ylabel("after", fontsize=9)


def _draw_moves(found: Changes, axes: Any) -> None:
    """How far the answers move."""
    axes.hist(np.ravel(found.after - found.before), bins=30, color=_BLUE)
    axes.axvline(0, color=_INK, linewidth=0.8)
    axes.set_title(f"change of the answer, {found.mean_change:.4g} on average", fontsize=10, color=_INK)
    axes.set_xlabel(found.labels[0], fontsize=9)
    axes.set_ylabel("rows", fontsize=9)


def _caption(found: Changes, row: int) -> str:
    """A lost row over its image: the right answer before, the wrong one after."""
    lines = []
    for answer in (found.before[row], found.after[row]):
        label = found.labels[int(answer.argmax())]
        lines.append(f"“{label if len(label) < 14 else f'{label[:12]}…'}” {answer.max():.0%}")
    return "\n→ ".join(lines)


def _draw_image(axes: Any, image: np.ndarray) -> None:
    if image.shape[-1] == 3:
        axes.imshow(image)
    else:
        grey = image.mean(axis=-1)
        axes.imshow(grey, cmap="gray", vmin=0, vmax=max(1.0, float(grey.max())))
