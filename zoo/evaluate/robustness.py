"""Robustness as tables of score against strength: corruptions, attacks, input transformations, certificates.

`corrupted` and `certified` need a predict function only, so they judge models, runs and bundles alike; `attacked` and
`transformed` take gradients through a Keras model. Accuracies have 95 % Wilson intervals (Wilson 1927; Brown, Cai &
DasGupta 2001, section 3.1.1), other scores those of the bootstrap.
"""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo import tasks
from zoo.evaluate import attacks, masking, metrics, smoothing, transformations
from zoo.evaluate.corruptions import CORRUPTIONS, without_column
from zoo.evaluate.findings import Finding, over, table
from zoo.evaluate.report import SPLITS, Candidate, defined
from zoo.registry import suggest
from zoo.tasks import Interval

EPSILONS = {"image": (1.0, 2.0, 4.0, 8.0, 16.0, 32.0), "table": (0.05, 0.1, 0.25, 0.5, 1.0)}
_SHOWN = 3  # examples kept of each strength

# tasks whose targets are of tokens
_AT_TOKENS = ("token-classification", "masked-language-modelling", "language-modelling")


@dataclass(frozen=True)
class Point:
    """A score at one strength.

    Attributes:
        kind: what was done, such as "noise" or "pgd".
        strength: how much of it, in the unit of `Robustness.units`.
        score: with its 95 % interval.
        label: what tells points of one kind and strength apart, such as a column's name.
    """

    kind: str
    strength: float
    score: Interval
    label: str = ""


@dataclass(frozen=True)
class Robustness:
    """How a score falls with the strength of what is done to the rows.

    Attributes:
        what: "corruptions", "attacks", "transformations" or "certificates".
        name: of the model.
        metric: name of the score, larger is better.
        split: which rows.
        rows: how many.
        clean: score on the rows as they are.
        points: scores by kind and strength.
        units: of each kind's strength.
        findings: doubts about the measurement itself, such as gradients that hide rather than defend.
        settings: what the figures depend on.
        seconds: of the measurement.
        examples: of images, by kind, `(strengths, count, height, width, channels)` uint8 in the order of the points.
    """

    what: str
    name: str
    metric: str
    split: str
    rows: int
    clean: Interval
    points: tuple[Point, ...]
    units: dict[str, str]
    findings: tuple[Finding, ...]
    settings: dict[str, Any]
    seconds: float
    examples: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def curve(self, kind: str) -> list[Point]:
        """The points of one kind, in their order."""
        return [point for point in self.points if point.kind == kind]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds in their order."""
        return tuple(dict.fromkeys(point.kind for point in self.points))

    def score(self, kind: str, strength: float, label: str = "") -> Interval:
        """The score at one point.

        Raises:
            KeyError: it was not measured.
        """
        for point in self.points:
            if (point.kind, point.strength, point.label) == (kind, strength, label):
                return point.score
        raise KeyError(f"{kind!r} was not measured at strength {strength!r}{f' with {label!r}' if label else ''}")

    def __str__(self) -> str:
        rows = [("", "strength", self.metric, "95 % interval", "change")]
        rows.append(("unchanged", "", f"{self.clean.score:.4f}", _ends(self.clean), ""))
        for point in self.points:
            change = f"{point.score.score - self.clean.score:+.4f}"
            name = f"{point.kind} {point.label}".strip()
            strength = "" if np.isnan(point.strength) else f"{point.strength:g}"
            rows.append((name, strength, f"{point.score.score:.4f}", _ends(point.score), change))
        lines = [f"{self.what} of {self.name} on {self.rows} {self.split} rows", "", table(rows), ""]
        lines += [f"{kind}: {unit}" for kind, unit in self.units.items()]
        lines += [f"doubt: {finding}" for finding in self.findings]
        return "\n".join(lines)

    def to_json(self) -> str:
        """All figures as JSON text; examples are left out."""
        figures = {key: value for key, value in vars(self).items() if key != "examples"}
        figures["clean"] = asdict(self.clean)
        figures["points"] = [asdict(point) for point in self.points]
        figures["findings"] = [asdict(finding) for finding in self.findings]
        return json.dumps(defined(figures), indent=2) + "\n"

    def plot(self, path: str | Path) -> Path:
        """Picture of the curves, with examples where the inputs are images."""
        from zoo.evaluate import robustness_pictures

        return robustness_pictures.draw(self, path)


def corrupted(
    model: Any,
    data: Any = None,
    *,
    kinds: Iterable[str] | None = None,
    strengths: Sequence[float] | None = None,
    split: str = "test",
    rows: int | None = None,
    precision: str | None = None,
    target: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Robustness:
    """Score under corruptions of the inputs, from weak to strong.

    Images get noise, blur, other brightness and contrast, rotations and shifts; tables get noise, missing and swapped
    cells, and each column is left out in turn. See `zoo.evaluate.corruptions`.

    Args:
        model: Keras model, run, bundle, path of either, or `zoo.evaluate.report.Candidate` with any predict function.
        data: data set, its name or a path; a run knows its own.
        kinds: corruptions to measure, all of the inputs' kind if None; a table's columns are the kind "without".
        strengths: in place of the usual ones; they need a single kind.
        split: "test", "validation" or "train".
        rows: measure on the first so many rows only.
        precision: form of a bundle, its default if None.
        target: target column of a table of your own.
        seed: of what is random.
        progress: show a bar on standard error.

    Raises:
        ValueError: no such corruption or split, or model and data do not fit together.
    """
    started = time.perf_counter()
    candidate, x, y = _opened(model, data, split, rows, precision, target)
    signature = candidate.data.signature
    if signature.task in _AT_TOKENS:
        raise ValueError(
            f"{signature.task} is judged at each token of a text, and other words have other tokens; judge it by evaluate"
        )
    known = CORRUPTIONS.get(signature.preprocess.kind, {})
    columns = (*signature.preprocess.numbers, *signature.preprocess.categories) if "missing" in known else ()
    names = (*known, *["without"] * bool(columns))
    if not names:
        raise ValueError(
            f"no corruptions are known of {signature.preprocess.kind} inputs; judge the model by evaluate, on data that went bad"
        )
    chosen = tuple(names if kinds is None else kinds)
    for kind in chosen:
        if kind not in names:
            raise ValueError(
                f"no corruption of {signature.preprocess.kind} inputs is called {kind!r}; there are "
                f"{', '.join(names)}.{suggest(kind, names)}"
            )
    if strengths is not None and (len(chosen) != 1 or "without" in chosen):
        raise ValueError(
            f"strengths mean another thing for each corruption; give one kind with a strength, got {chosen}"
        )
    clean = _score(signature, y, candidate.predict(x, signature))
    points, examples = [], {}
    for kind in over(chosen, "corruptions", progress):
        if kind == "without":
            for column in columns:
                answers = candidate.predict(without_column(x, column, signature), signature)
                points.append(Point(kind, float("nan"), _score(signature, y, answers), column))
            continue
        shown = []
        usual = sorted({*known[kind].strengths, known[kind].neutral})
        for strength in usual if strengths is None else strengths:
            changed = known[kind].apply(x, strength, signature, seed)
            points.append(Point(kind, float(strength), _score(signature, y, candidate.predict(changed, signature))))
            shown.append(changed.get("image", np.zeros(0))[:_SHOWN])
        if "image" in x:
            examples[kind] = np.stack(shown)
    units = {kind: known[kind].unit for kind in chosen if kind != "without"}
    return Robustness(
        "corruptions", candidate.name, _metric(signature), split, len(y), clean, tuple(points), units, (),
        {"seed": seed}, time.perf_counter() - started, examples,
    )  # fmt: skip


def attacked(
    model: Any,
    data: Any = None,
    *,
    methods: Iterable[str] | None = None,
    epsilons: Sequence[float] | None = None,
    norm: str = "linf",
    steps: int = 20,
    restarts: int = 2,
    split: str = "test",
    rows: int | None = 500,
    against: Any = None,
    transform: str | None = None,
    precision: str | None = None,
    target: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Robustness:
    """Score under attack, by the strength of the attacker; with checks that the attack works.

    Beside each method stands "worst": rows that are right as they are and under every attack up to that strength.

    Args:
        model: Keras model, run or run folder; a bundle can only be attacked with random changes.
        data: data set, its name or a path; a run knows its own.
        methods: of "random", "fgsm", "pgd" and "margin", see `zoo.evaluate.attacks`; all that the model allows if None.
        epsilons: limits of the change: pixel values of 0 … 255 for images, standard deviations of each column for
            tables. If None those of `EPSILONS`, for "l2" times the root of the number of values that can be changed.
        norm: "linf" or "l2".
        steps, restarts: of PGD.
        split, rows, precision, target, seed, progress: as in `corrupted`.
        against: model, run or bundle that answers the attacked rows in place of the model they were made with, such as
            the INT8 bundle of a run: a transfer attack.
        transform: input transformation that the attacker knows of, such as "bits:4".

    Raises:
        TypeError: gradients were asked of a bundle.
        ValueError: an argument is out of range, or model and data do not fit together.
    """
    started = time.perf_counter()
    model = _run(model, data)
    candidate, x, y = _opened(model, data, split, rows, precision if against is None else None, target)
    signature = candidate.data.signature
    if signature.preprocess.kind not in ("image", "table"):
        raise ValueError(
            f"attacks are for images and tables, got {signature.preprocess.kind} inputs; corrupted takes texts too"
        )
    network = _network(model)
    gradients = hasattr(network, "predict_on_batch")
    if methods is None:
        allowed = ("random", *attacks.WHITE_BOX) if gradients else ("random",)
        methods = [m for m in allowed if m != "margin" or signature.task != "regression"]
    methods = list(methods)
    limits = tuple(float(e) for e in (_epsilons(signature, norm) if epsilons is None else epsilons))
    if not methods or not limits:
        raise ValueError("at least one attack and one epsilon are needed")
    for method in methods:
        attacks.check(method, min(limits), norm, signature)
    changed = _transformation(transform, signature)
    judge = candidate if against is None else Candidate.of(against, candidate.data, precision=precision)

    def answer(raw):
        return judge.predict(changed(raw) if changed else raw, signature)

    attacker = None
    if set(methods) & set(attacks.WHITE_BOX):
        attacker = attacks.Attacker(network, signature, norm, changed)
    first = answer(x)
    clean = _score(signature, y, first)
    classes = signature.task != "regression"
    points, losses, examples = {}, {}, {}
    standing = first.argmax(axis=-1) == y if classes else None
    for epsilon in over(sorted(limits), "attacks", progress):
        for method in methods:
            if method == "random":
                found = attacks.blind(answer, signature, x, y, epsilon, norm=norm, seed=seed)
            else:
                found = attacker(x, y, method, epsilon, steps=steps, restarts=restarts, seed=seed)
            answers = answer(found.raw)
            if classes:
                standing = standing & (answers.argmax(axis=-1) == y)
            points.setdefault(method, []).append(Point(method, epsilon, _score(signature, y, answers)))
            losses.setdefault(method, []).append((float(found.before.mean()), float(found.after.mean())))
            if "image" in x:
                examples.setdefault(method, []).append(found.raw["image"][:_SHOWN])
        if classes and len(methods) > 1:
            points.setdefault("worst", []).append(Point("worst", epsilon, wilson(int(standing.sum()), len(y))))
    findings = masking.still(losses, sorted(limits))
    if not gradients:
        findings.append(
            Finding(
                "random", "no other change was tried, and who attacks does not draw lots", "give the run of this bundle"
            )
        )
    if classes and against is None:  # that rows carry over badly to another model is no doubt about the attack
        findings += masking.doubts(points, len(y))
        if attacker is not None:
            findings += masking.unbounded(attacker, answer, x, y, methods, steps, norm)
    unit = _unit(signature, norm)
    settings = {
        "norm": norm, "steps": steps, "restarts": restarts, "step": "2.5 * epsilon / steps", "transform": transform,
        "against": None if against is None else judge.name, "loss": losses, "seed": seed,
    }  # fmt: skip
    return Robustness(
        "attacks", candidate.name, _metric(signature), split, len(y), clean,
        tuple(point for curve in points.values() for point in curve), {"epsilon": unit}, tuple(findings), settings,
        time.perf_counter() - started, {kind: np.stack(shown) for kind, shown in examples.items()},
    )  # fmt: skip


def transformed(
    model: Any,
    data: Any = None,
    *,
    epsilon: float = 16.0,
    names: Iterable[str] = transformations.USUAL,
    method: str = "pgd",
    norm: str = "linf",
    steps: int = 20,
    restarts: int = 2,
    split: str = "test",
    rows: int | None = 500,
    seed: int = 0,
    progress: bool = False,
) -> Robustness:
    """What input transformations save from an attacker who does not know of them, and from one who does.

    Args:
        model: Keras model, run or run folder that reads images.
        data: data set, its name or a path; a run knows its own.
        epsilon: limit of the change, pixel values of 0 … 255.
        names: transformations, such as "bits:4", "median:3" and "jpeg:50".
        method, norm, steps, restarts: of the attack, as in `attacked`.
        split, rows, seed, progress: as in `corrupted`.

    Returns:
        For "none" and each transformation the score on unchanged rows ("unchanged"), on rows attacked without
        knowledge of it ("unaware"), and on rows attacked through it or in the other way, whichever is worse ("aware").
    """
    started = time.perf_counter()
    model = _run(model, data)
    candidate, x, y = _opened(model, data, split, rows, None, None)
    signature = candidate.data.signature
    if not signature.one_label:
        raise ValueError(
            f"transformations are judged by classes, and the task is {signature.task}; take attacked(transform=...)"
        )
    network, names = _network(model), tuple(names)
    known = {name: _transformation(name, signature) for name in names}
    options = {"steps": steps, "restarts": restarts, "seed": seed}
    unaware = attacks.Attacker(network, signature, norm)(x, y, method, epsilon, **options).raw
    clean = _score(signature, y, candidate.predict(x, signature))
    broken = _score(signature, y, candidate.predict(unaware, signature))
    points = [Point("none", epsilon, clean, "unchanged"), Point("none", epsilon, broken, "unaware")]
    findings = []
    for name, change in over(list(known.items()), "transformations", progress):
        aware = attacks.Attacker(network, signature, norm, change)(x, y, method, epsilon, **options).raw
        answers = [candidate.predict(change(raw), signature) for raw in (x, unaware, aware)]
        right = [found.argmax(axis=-1) == y for found in answers]
        right[2] &= right[1]  # who knows of it may still send what those send who do not
        scores = [wilson(int(hits.sum()), len(y)) for hits in right]
        points += [
            Point(name, epsilon, score, label)
            for score, label in zip(scores, ("unchanged", "unaware", "aware"), strict=True)
        ]
        if scores[1].low > scores[2].high:
            findings.append(
                Finding(
                    name,
                    f"{scores[1].score:.3f} against an attacker who does not know of it, {scores[2].score:.3f} against one "
                    "who does",
                    "do not count on it (Athalye et al. 2018); train on attacked rows",
                )
            )
    settings = {"method": method, "norm": norm, **options}
    return Robustness(
        "transformations", candidate.name, _metric(signature), split, len(y), clean, tuple(points),
        {"epsilon": _unit(signature, norm)}, tuple(findings), settings, time.perf_counter() - started,
    )  # fmt: skip


def certified(
    model: Any,
    data: Any = None,
    *,
    sigmas: Sequence[float] | None = None,
    radii: Sequence[float] | None = None,
    draws: int = 1000,
    first: int = 100,
    alpha: float = 0.001,
    split: str = "test",
    rows: int | None = 100,
    precision: str | None = None,
    target: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Robustness:
    """Certified accuracy by radius: the share of rows that randomized smoothing answers right and for certain.

    Args:
        model: as in `corrupted`; train it with `adversarial="gaussian:SIGMA"`, or few rows will be certain.
        data: data set, its name or a path; a run knows its own.
        sigmas: standard deviations of the noise, see `zoo.evaluate.smoothing`, one curve each; 32 pixel values
            or half a standard deviation if None.
        radii: Euclidean, in the noise's unit; nine from 0 to the largest that the draws can show if None.
        draws, first, alpha: see `zoo.evaluate.smoothing.Smoothed.certify`.
        split, rows, precision, target, seed, progress: as in `corrupted`.

    Returns:
        Scores by radius; radius 0 is the accuracy of the smoothed classifier, where abstaining counts as wrong.
    """
    started = time.perf_counter()
    candidate, x, y = _opened(model, data, split, rows, precision, target)
    signature = candidate.data.signature
    if sigmas is None:
        sigmas = (32.0,) if signature.preprocess.kind == "image" else (0.5,)
    if not sigmas:
        raise ValueError("at least one sigma is needed")
    points, abstained = [], {}
    for sigma in over(list(sigmas), "certificates", progress):
        smoothed = smoothing.Smoothed(lambda raw: candidate.predict(raw, signature), signature, sigma)
        found = smoothed.certify(x, draws, first, alpha, seed)
        most = smoothing.largest_radius(max(sigmas), draws, alpha)
        for radius in np.linspace(0, most, 9) if radii is None else radii:
            hits = int(found.right(y, float(radius)).sum())
            points.append(Point(f"sigma {sigma:g}", float(radius), wilson(hits, len(y))))
        abstained[f"{sigma:g}"] = float(np.mean(found.classes == smoothing.ABSTAIN))
    clean = _score(signature, y, candidate.predict(x, signature))
    settings = {"draws": draws, "first": first, "alpha": alpha, "abstained": abstained, "seed": seed}
    unit = "pixel values of 0 … 255" if signature.preprocess.kind == "image" else "standard deviations of each column"
    return Robustness(
        "certificates", candidate.name, "accuracy", split, len(y), clean, tuple(points),
        {"radius": f"Euclidean, {unit}"}, (), settings, time.perf_counter() - started,
    )  # fmt: skip


def wilson(hits: int, rows: int) -> Interval:
    """A share with its 95 % score interval (Wilson 1927), which stays right near 0 and 1."""
    z = 1.959963984540054
    share = hits / rows
    middle = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    # rounding aside, the ends are 0 and 1 where no row or every row is hit
    low, high = (middle - half if hits else 0.0), (middle + half if hits < rows else 1.0)
    return Interval(share, float(low), float(high))


def _metric(signature):
    """Name of the score."""
    return tasks.get(signature.task).metric


def _score(signature, y, answers) -> Interval:
    if not signature.one_label:
        return metrics.intervals(signature.task, y, answers, (_metric(signature),))[_metric(signature)]
    return wilson(int(np.sum(answers.argmax(axis=-1) == y)), len(y))


def _ends(score: Interval) -> str:
    return f"[{score.low:.4f}, {score.high:.4f}]"


def _run(model, data):
    """A run behind a run folder's path; anything else as it is."""
    if isinstance(model, str | Path) and (Path(model) / "recipe.json").exists():
        from zoo.training import as_run

        return as_run(model, data)
    return model


def _network(model):
    """The Keras model of a run; anything else as it is."""
    return model.model if hasattr(model, "recipe") else model


def _opened(model, data, split, rows, precision, target):
    """The model with its data, and the rows to measure on."""
    if split not in SPLITS:
        raise ValueError(f"split must be 'train', 'validation' or 'test', got {split!r}")
    if rows is not None and rows < 1:
        raise ValueError(f"rows must be at least 1, got rows={rows!r}")
    if not isinstance(model, Candidate):
        model = Candidate.of(model, data, precision=precision, target=target)
    part = getattr(model.data, split)
    if not len(part):
        raise ValueError(f"data {model.data.name!r} has no {split} rows; choose another split")
    return model, {name: values[:rows] for name, values in part.x.items()}, part.y[:rows]


def _transformation(text, signature):
    if text is None:
        return None
    if signature.preprocess.kind != "image":
        raise ValueError(f"transformation {text!r} is for images, the model reads {signature.preprocess.kind} inputs")
    return transformations.parse(text)


def _epsilons(signature, norm):
    step = signature.preprocess
    usual = EPSILONS.get(step.kind, ())
    if norm == "linf":
        return usual
    values = np.prod(step.shape) if step.kind == "image" else len(step.numbers)
    return [float(f"{epsilon * np.sqrt(values):.2g}") for epsilon in usual]


def _unit(signature, norm):
    unit = "pixel values of 0 … 255" if signature.preprocess.kind == "image" else "standard deviations of each column"
    return f"{unit}, {'of each value' if norm == 'linf' else 'Euclidean length of the change'}"
