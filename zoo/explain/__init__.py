"""Why a model answered as it did: Shapley values over any predict function, with a figure for how well they add up.

`zoo.explain(bundle, x)` runs on the bundle's ONNX file and needs no TensorFlow; `zoo.explain(model, x,
signature=...)` runs on a Keras model. Both explain the answer a client gets: a probability, or a value in the
target's unit.
"""

import sys
import time
from types import ModuleType
from typing import Any

import numpy as np

from zoo.explain import shapley
from zoo.explain.explanation import Explanation
from zoo.explain.subject import Subject, examples, fingerprint, subject_of

__all__ = ["Explanation", "examples", "explain"]


def explain(
    model: Any,
    x: Any,
    method: str = "auto",
    target: int | str | None = None,
    *,
    signature: Any = None,
    background: dict[str, np.ndarray] | None = None,
    precision: str | None = None,
    max_evals: int | None = None,
    seed: int = 0,
) -> Explanation:
    """Share out each answer among the columns or pixels it came from.

    What is left out is replaced: a table's columns by those of each background row in turn, pixels by the
    background's mean image. The contributions of a row add up to its answer minus the background's.

    Args:
        model: bundle, path of a bundle folder, run, Keras model giving logits, or `Subject`.
        x: raw inputs, `{"image": uint8 (batch, height, width, channels)}` or `{"numbers": float32 (batch, columns),
            "categories": str (batch, columns)}`; a bare array stands for the images, or for the numbers of a table
            that has no categories. Missing numbers are NaN.
        method: "exact" (all coalitions, up to 15 columns), "permutation" (columns or pixels in random orders),
            "partition" (images, Owen values on a tree of halves), or "auto".
        target: class to explain, as an index or a label; None takes each row's own most probable class.
        signature: `zoo.data.Signature`, for a Keras model.
        background: raw rows that stand for "unknown"; None takes the bundle's, or the training mean of the signature.
        precision: file of the bundle to explain, its default if None.
        max_evals: coalitions evaluated per row at most; each is one model row per background row.
        seed: of the random orders.

    Returns:
        Contributions with the base they start from and the error by which they miss the answer.

    Raises:
        ValueError: inputs, method, target or `max_evals` do not fit the model.
        ImportError: the method needs shap, which is not installed.

    Source: Lundberg & Lee 2017 (arXiv:1705.07874); Owen 1977 for the tree.
    """
    started = time.perf_counter()
    subject = model if isinstance(model, Subject) else subject_of(model, signature, background, precision)
    raw = subject.check(x)
    method, why = shapley.choose(method, subject)
    answers = subject.predict(raw)
    failed = np.flatnonzero(~np.isfinite(answers).all(axis=1))
    if len(failed):
        raise ValueError(f"{subject.name!r} answers NaN or infinity for row {failed[0]}; there is nothing to explain")
    targets = _targets(target, answers, subject)
    rows, settings = [], {}
    for row, index in enumerate(targets):
        one = {name: values[row : row + 1] for name, values in raw.items()}
        game = shapley.game(subject, one, int(index), shapley.budget(method, subject, max_evals))
        values, base, settings = shapley.solve(game, method, max_evals, seed)
        rows.append((values, base, game.calls))
    attributions = np.stack([values for values, _, _ in rows])
    base = np.array([base for _, base, _ in rows])
    prediction = answers[np.arange(len(answers)), targets].astype(np.float64)
    total = attributions.reshape(len(attributions), -1).sum(axis=1)
    return Explanation(
        name=subject.name,
        kind=subject.kind,
        task=subject.task,
        inputs=raw,
        attributions=attributions,
        axes=("batch", "height", "width", "channels") if subject.kind == "image" else ("batch", "columns"),
        columns=subject.columns,
        labels=subject.labels,
        base=base,
        prediction=prediction,
        target=targets,
        method=method,
        why=why,
        settings={**settings, "seed": seed, "background": subject.background_source},
        background_sha256=fingerprint(subject.background),
        additivity_error=float(np.abs(base + total - prediction).max()),
        seconds=time.perf_counter() - started,
        calls=len(answers) + sum(calls for _, _, calls in rows),
    )


def _targets(target: int | str | None, answers: np.ndarray, subject: Subject) -> np.ndarray:
    """Index of the explained output for each row, (batch,)."""
    if target is None:
        return answers.argmax(axis=1)
    known = list(subject.labels)
    if isinstance(target, str):
        if target not in known:
            raise ValueError(f"{subject.name!r} has no label {target!r}; labels are {', '.join(known)}")
        target = known.index(target)
    if not 0 <= target < len(known):
        raise ValueError(f"target must be a label or an index from 0 to {len(known) - 1}, got {target!r}")
    return np.full(len(answers), target)


class _Verb(ModuleType):
    """Lets the package itself be called, as in `zoo.explain(bundle, x)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Explanation:
        return explain(*args, **kwargs)


sys.modules[__name__].__class__ = _Verb
