"""Why a model answered as it did: one call, one result, for every task, with figures for how far it can be trusted.

`zoo.explain(bundle, x)` runs on the bundle's ONNX file and needs no TensorFlow; `zoo.explain(model, x,
signature=...)` runs on a Keras model, and `zoo.explain(function, x, kind=...)` on any predict function. All explain the
answer a client gets: a probability, or a value in the target's unit.
"""

import sys
import time
from types import ModuleType
from typing import Any

import numpy as np

from zoo.explain import methods
from zoo.explain.attributions import Found, find, judge
from zoo.explain.clock import Clock
from zoo.explain.explanation import Explanation, Side
from zoo.explain.players import edges_of
from zoo.explain.sources import examples, subject_of
from zoo.explain.subject import ANSWERS, Raw, Subject, fingerprint
from zoo.explain.summary import Summary, summarise
from zoo.explain.targets import Target, check_answers, found_boxes, labels_of, resolve

__all__ = ["Explanation", "Subject", "Summary", "examples", "explain", "summarise"]

FINDING = 0.75  # of a time budget, if quality is asked for as well
QUALITY_SECONDS = 2.0  # that quality may take without a budget, or as long as the explanation itself if that is more


def explain(
    model: Any,
    x: Any,
    method: str = "auto",
    target: Any = None,
    *,
    signature: Any = None,
    background: Any = None,
    precision: str | None = None,
    kind: str | None = None,
    max_evals: int | None = None,
    seconds: float | None = None,
    quality: bool = True,
    progress: bool | Any = False,
    seed: int = 0,
) -> Explanation:
    """Share out each answer among the parts of the input it came from.

    What is left out is replaced: a table's columns by those of each background row in turn, pixels by the background's
    mean image, words by nothing, edges by no edge. `zoo.explain.apart.explain` does the same in a process of its own.

    Args:
        model: bundle, path of a bundle folder, run, Keras model giving logits, `Subject`, or predict function.
        x: raw inputs as in `Subject`, `{"image": uint8 (batch, height, width, channels)}` or `{"numbers": float32
            (batch, columns), "categories": str (batch, columns)}` …; a bare array stands for the only input.
            Missing numbers are NaN.
        method: "auto", or one of `zoo.explain.methods.METHODS`: "exact" (all coalitions, up to 15 players),
            "permutation", "kernel", "partition" (Shapley and Owen values), "lime", "occlusion", "rise", and for Keras
            models "integrated_gradients", "expected_gradients", "gradient_times_input", "deep", "grad_cam", "cam",
            "attention_rollout".
        target: class to explain, as an index or a label; None takes each row's own most probable class. A detector's
            box, a segmentation's region, a graph's node: a dictionary, see `zoo.explain.targets.resolve`. A list gives
            one per row.
        signature: `zoo.data.Signature`, for a Keras model.
        background: raw rows that stand for "unknown"; None takes the bundle's, a run's first training rows, or the
            training mean of the signature.
        precision: file of the bundle to explain, its default if None.
        kind: of the inputs, for a function or a Keras model without signature; see `Subject.of_function`.
        max_evals: evaluations per row at most; each is one model row per background row.
        seconds: time budget. When it ends, the best answer so far is returned, with its error and `complete=False`.
        quality: whether to measure faithfulness and stability too; it takes about as long again, at most.
        progress: True writes a line to the standard error, a function is called with (done, total).
        seed: of whatever is drawn.

    Returns:
        Contributions with the base they start from, the error by which they miss the answer, and how far to trust them.

    Raises:
        ValueError: inputs, method, target, background, `seconds` or `max_evals` do not fit the model, or it answers
            NaN.
        TypeError: the model is nothing that could be explained.
        ImportError: the method needs a package that is not installed.
    """
    started = time.perf_counter()
    budget = Clock(seconds)
    subject = subject_of(model, signature, background, precision, kind)
    raw = subject.check(x)
    method, why = methods.choose(method, subject, raw)
    answers = _answers(subject, raw)
    check_answers(subject, answers)
    labels = labels_of(subject, answers)
    targets = resolve(target, answers, subject, labels)
    prediction = np.array([target.read(_row(answers, row))[0] for row, target in enumerate(targets)])
    share = None if seconds is None else budget.left * (FINDING if quality else 1)
    found = find(method, subject, raw, targets, max_evals=max_evals, seed=seed, seconds=share, progress=progress)
    took = time.perf_counter() - started
    faithful, stable, figures = None, None, {}
    if quality:
        clock = Clock(max(QUALITY_SECONDS, took) if seconds is None else budget.left)
        faithful, stable, judged = judge(
            method, subject, raw, targets, found, max_evals=max_evals, seed=seed, clock=clock
        )
        figures = {"quality": {**judged, "seconds": time.perf_counter() - started - took}}
    return Explanation(
        name=subject.name,
        kind=subject.task if subject.task in ANSWERS else subject.kind,
        task=subject.task or _task(answers),
        inputs=raw,
        attributions=found.attributions,
        axes=_axes(subject, found),
        columns=subject.numbers if subject.kind == "series" else subject.columns,
        labels=labels,
        base=found.base,
        prediction=prediction,
        target=np.array([target.index for target in targets]),
        method=method,
        why=why,
        settings={**found.settings, "seed": seed, "background": subject.background_source, **figures},
        background_sha256=fingerprint(subject.background) if subject.background else "",
        additivity_error=_additivity(found, prediction),
        seconds=took,
        calls=len(prediction) + found.calls,
        names=found.names,
        about=_about(subject, raw, answers, targets),
        sides=_sides(subject, found),
        standard_error=found.standard_error,
        faithfulness=faithful,
        stability=stable,
        complete=found.complete,
    )


def _answers(subject: Subject, raw: Raw) -> Any:
    """Answers to all rows, in the form of the subject's own."""
    parts = [subject.predict(batch) for batch in subject.batches(raw)]
    if isinstance(parts[0], dict):
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if isinstance(parts[0], list | tuple):
        return tuple(np.concatenate(each) for each in zip(*parts, strict=True))
    return np.concatenate(parts)


def _row(answers: Any, row: int) -> Any:
    """The answers to one row, as to a batch of one."""
    if isinstance(answers, dict):
        return {name: values[row : row + 1] for name, values in answers.items()}
    if isinstance(answers, tuple):
        return tuple(values[row : row + 1] for values in answers)
    return answers[row : row + 1]


def _task(answers: np.ndarray) -> str:
    """What answers without a declared task are: shares that add up to 1, or values."""
    shares = answers.shape[-1] > 1 and answers.min() >= 0 and np.allclose(answers.sum(axis=-1), 1, atol=1e-3)
    return "classification" if shares else "regression"


def _additivity(found: Found, prediction: np.ndarray) -> float | None:
    if found.base is None:
        return None
    total = found.attributions.reshape(len(prediction), -1).sum(axis=1)
    return float(np.abs(found.base + total - (prediction if found.sum is None else found.sum)).max())


_AXES = {
    "image": ("height", "width", "channels"),
    "table": ("columns",),
    "text": ("tokens",),
    "series": ("time", "channels"),
}


def _axes(subject: Subject, found: Found) -> tuple[str, ...]:
    if subject.of is not None:
        return ("batch", "features")
    if subject.kind == "graph":
        return ("batch", subject.explained if found.games else "nodes")
    return ("batch", *_AXES[subject.kind])[: found.attributions.ndim]


def _about(subject: Subject, raw: Raw, answers: Any, targets: list[Target]) -> dict[str, np.ndarray]:
    """What the answers are about where a label does not tell, see `Explanation`."""
    if subject.task == "detection":
        boxes, scores = found_boxes(answers)
        sure = scores[0] if isinstance(scores, tuple) else scores.max(axis=-1)
        others = np.where((sure >= 0.5)[..., None], boxes, np.nan)
        return {"box": np.array([target.box for target in targets]), "others": others}
    if subject.task == "segmentation":
        return {"region": np.array([target.region for target in targets])}
    if subject.kind == "graph":
        each = [edges_of(adjacency)[0] for adjacency in raw["adjacency"]]
        most = max(len(edges) for edges in each)
        return {"edges": np.stack([np.pad(e, ((0, most - len(e)), (0, 0)), constant_values=-1) for e in each])}
    return {}


def _sides(subject: Subject, found: Found) -> tuple[Side, ...]:
    if subject.of is None:
        return ()
    inner = subject.of
    return tuple(
        Side(
            kind=inner.kind,
            inputs={inner.names[0]: side},
            shape=shape,
            axes=_AXES[inner.kind][: len(shape)],
            columns=inner.columns or inner.numbers,
            names=names if inner.kind == "text" and all(names) else (),
        )
        for side, (shape, names) in zip(("left", "right"), found.sides, strict=True)
    )


class _Verb(ModuleType):
    """Lets the package itself be called, as in `zoo.explain(bundle, x)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Explanation:
        return explain(*args, **kwargs)


sys.modules[__name__].__class__ = _Verb
