"""The forms of a model beside its float file: which are wanted, whether they may stay, what each of them loses."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export import ExportError, files, lowbit, parity
from export import int8 as quantization
from export.edges import INPUT
from export.timing import milliseconds
from serve.manifest import Precision
from zoo import tasks

_BLENDED = 8  # pictures of people that one is made of, so that nobody can be recognised
GOLDEN = 16  # rows of the test split that every later reader can replay
CALIBRATION = 256  # rows of the training split that set the INT8 ranges
RANGES = "ranges.json"  # in a run folder, of quantization-aware training
FILES = {
    "fp32": "model.onnx",
    "fp16": "model.fp16.onnx",
    "int8": "model.int8.onnx",
    "w8": "model.w8.onnx",
    "w4": "model.w4.onnx",
}


def wanted(
    int8: bool, float16: bool, weight_bits: int | Sequence[int] | None, precision: str | None
) -> tuple[str, ...]:
    """Forms to store beside the float one; see `export.to_bundle` for the arguments.

    Raises:
        ExportError: one of them does not exist.
    """
    bits = () if weight_bits is None else (weight_bits,) if isinstance(weight_bits, int) else tuple(weight_bits)
    for number in bits:
        if number not in (8, 4):
            raise ExportError(f"weight_bits must be 8 or 4, got {number!r}")
    if precision is not None and precision not in FILES:
        raise ExportError(f"no precision is called {precision!r}; it is one of {', '.join(FILES)}")
    asked = {"int8": int8, "fp16": float16, "w8": 8 in bits, "w4": 4 in bits}
    return tuple(key for key in FILES if asked.get(key) or (key == precision != "fp32"))


def learnt_ranges(run: Any) -> dict[str, tuple[float, float]]:
    """Ranges of the activations that quantization-aware training left in the run's folder; empty without it."""
    folder = getattr(run, "folder", None)
    if folder is None or not (folder / RANGES).is_file():
        return {}
    stored = json.loads((folder / RANGES).read_text(encoding="utf-8"))
    inputs = {tensor.name for tensor in run.model.inputs}
    return {INPUT if layer in inputs else layer: (low, high) for layer, (low, high) in stored.items()}


def write_others(
    source: Path,
    forms: Sequence[str],
    splits: Any,
    validated: parity.Arrays,
    max_drop: float,
    ranges: dict[str, tuple[float, float]],
    refused: dict[str, str],
) -> dict[str, tuple[str, ...]]:
    """Write other forms beside the float file, and remove again what loses too much.

    Args:
        source: the float file.
        forms: keys of `FILES`.
        splits: `zoo.data.Data`.
        validated: the float file's answers to the validation split.
        max_drop: largest loss of the validation score.
        ranges: of activations, by tensor, that training has learnt; see `learnt_ranges`.
        refused: form -> why it was not kept.

    Returns:
        Layers left in float, by form that was kept and may have some.
    """
    task = tasks.get(splits.signature.task)
    part = splits.validation

    def score(answers: parity.Arrays) -> float:
        return task.score(part.y, task.scored(answers))

    kept: dict[str, tuple[str, ...]] = {}
    for key in forms:
        path = source.with_name(FILES[key])
        try:
            if key == "int8":
                rows = first_rows(splits.train, CALIBRATION)
                kept[key] = quantization.quantize(
                    source,
                    path,
                    calibration=rows,
                    validation=part.x,
                    score=score,
                    max_drop=max_drop,
                    ranges=ranges,
                ).kept_float
            elif key == "fp16":
                lowbit.to_float16(source, path, golden=first_rows(part, GOLDEN))
                before, after = score(validated), score(parity.run(parity.session(path), part.x))
                if not before - after <= max_drop:
                    raise ExportError(f"the score falls from {before:.4f} to {after:.4f}, allowed is {max_drop}")
            else:
                lowbit.to_low_bit(source, path, bits=int(key[1:]), golden=part.x, score=score, max_drop=max_drop)
        except ValueError as error:
            refused[key] = str(error)
            for left in (path, files.weights_of(path)):
                left.unlink(missing_ok=True)
    return kept


def measured(
    draft: Path,
    splits: Any,
    golden: parity.Arrays,
    expected: parity.Arrays,
    shown: parity.Arrays,
    kept_float: dict[str, tuple[str, ...]],
) -> dict[str, Precision]:
    """Size, parity, score, latency and changes of each form that was kept; `shown` is what it gives beside answers."""
    task = tasks.get(splits.signature.task)
    paths = {key: draft / file for key, file in FILES.items() if (draft / file).exists()}
    times = milliseconds(list(paths.values()), golden, repeats=3, seconds=0.05)
    found: dict[str, Precision] = {}
    first = np.zeros(0)
    exact = {name: truth for name, truth in expected.items() if truth.dtype.kind == "f"}
    others = {name: truth for name, truth in expected.items() if name not in exact} | shown
    for (key, path), ms in zip(paths.items(), times, strict=True):
        live = parity.session(path)
        answers = task.scored(parity.run(live, splits.test.x))
        first = answers if key == "fp32" else first
        weights = files.weights_of(path)
        found[key] = Precision(
            file=path.name,
            bytes=path.stat().st_size + (weights.stat().st_size if weights.exists() else 0),
            parity=parity.difference(live, golden, exact),
            others={name: parity.difference(live, golden, {name: truth}) for name, truth in others.items()},
            score=finite(task.score(splits.test.y, answers)),
            kept_float=kept_float.get(key, ()),
            weights=weights.name if weights.exists() else "",
            ms=round(ms, 4),
            changes={} if key == "fp32" else _changes(splits, first, answers),
        )
    return found


def finite(score: float) -> float | None:
    """A score as JSON can hold it."""
    return score if math.isfinite(score) else None


def _changes(splits: Any, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """What another form answers differently on the test split.

    Returns:
        For classes: rows with another answer (`flips`), of which right before and wrong now (`lost`) and the reverse
        (`won`), and by label the change of the share that is right (`per_class`). For values: the mean and the largest
        absolute change, in the target's unit. For embeddings: the same of one minus the cosine. For other answers: the share of what is scored that is another number.
    """
    if splits.signature.task in ("embedding", "image-text"):
        moved = 1 - (before * after).sum(axis=-1) / np.linalg.norm(before, axis=-1) / np.linalg.norm(after, axis=-1)
        return {"mean_change": float(moved.mean()), "largest_change": float(moved.max())}
    if splits.signature.task in ("speech-recognition", "token-classification"):
        before, after = before[..., 0], after[..., 0]  # the labels of all places, without their probabilities
    if tasks.get(splits.signature.task).writes:
        before, after = before[..., 1], after[..., 1]  # and without the likelihood of what follows
    if splits.signature.valued:
        moved = np.abs(after - before)
        return {"mean_change": float(moved.mean()), "largest_change": float(moved.max())}
    if not splits.signature.one_number:
        return {"share_changed": round(float(np.mean(before != after)), 6)}
    y, was, now = splits.test.y, before.argmax(axis=1), after.argmax(axis=1)
    shares = {}
    for place, label in enumerate(splits.signature.labels):
        own = y == place
        if own.any():
            shares[label] = round(float((now[own] == place).mean() - (was[own] == place).mean()), 6)
    return {
        "flips": int((was != now).sum()),
        "lost": int(((was == y) & (now != y)).sum()),
        "won": int(((was != y) & (now == y)).sum()),
        "per_class": shares,
    }


def shown_rows(splits: Any, part: str, count: int) -> parity.Arrays:
    """Rows that travel with a bundle, where everybody who has it can see them.

    They are the first of a split; but of pictures of people, who did not ask for that, each is the average of eight.
    """
    rows = getattr(splits, part)
    if splits.signature.task != "embedding" or splits.generated:
        return first_rows(rows, count)
    (pictures,) = rows.x.values()
    groups = np.random.default_rng(0).integers(0, len(pictures), (min(count, len(pictures)), _BLENDED))
    return {name: np.rint(pictures[groups].mean(axis=1)).astype(pictures.dtype) for name in rows.x}


def first_rows(split: Any, count: int) -> parity.Arrays:
    """The first rows of a split's inputs."""
    made = "tokens" if "text" in split.x else ""  # drawn for this split, where users give the text alone
    return {name: values[:count] for name, values in split.x.items() if name != made}
