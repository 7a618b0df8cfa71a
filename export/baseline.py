"""What inputs and answers look like on the validation split, for a server to notice when they change."""

from typing import Any

import numpy as np

from serve.drift import answer_summaries, audio_summaries, image_summaries, series_summaries, text_summaries
from zoo import tasks

_PIXELS = np.arange(0, 257, 16)
_CONFIDENCE = np.linspace(0, 1, 11).round(1)
_DECILES = np.arange(0.1, 1.0, 0.1)


def describe(answers: dict[str, np.ndarray], splits: Any) -> dict[str, Any]:
    """Shares by bin of each raw input and of the answers, on the validation split.

    Args:
        answers: of the float file to the validation split, by output name.
        splits: `zoo.data.Data`, with tokens in place of texts.

    Returns:
        `{"rows", "split", "inputs": {"image" | "numbers" | "categories" | "text" | "series" | "audio": {name: bins}}, "outputs"}`, where a name
        is a column, a channel or summary of pictures (`brightness`, `contrast`, `sharpness`), or a summary of texts, whose
        tokens for padding and for the unknown then stand beside it (`pad`, `unknown`).
        Bins are `{"edges", "shares"}`: with inner edges only there is one more share than edges, the outer bins being
        open. Columns also have the share `missing`.
    """
    inputs = splits.validation.x
    step = splits.signature.preprocess
    described: dict[str, Any] = {}
    if "image" in inputs:
        images = inputs["image"]
        described["image"] = _channels(images) | _summaries(images)
    if "numbers" in inputs:
        described["numbers"] = {column: _numbers(inputs["numbers"][:, i]) for i, column in enumerate(step.numbers)}
    if "categories" in inputs:
        described["categories"] = {
            column: _categories(inputs["categories"][:, i], values)
            for i, (column, values) in enumerate(step.categories.items())
        }
    facts: dict[str, Any] = {"rows": len(splits.validation), "split": "validation"}
    if "tokens" in inputs:
        special = {"pad": splits.signature.text.pad, "unknown": splits.signature.text.unknown}
        found = text_summaries(inputs["tokens"], **special)
        described["text"] = {name: _quantiles(values) for name, values in found.items()}
        facts |= special
    if "series" in inputs:
        found = series_summaries(inputs["series"], step.numbers)
        described["series"] = {name: _quantiles(values) for name, values in found.items()}
    if "audio" in inputs:
        found = audio_summaries(inputs["audio"], step.rate)
        described["audio"] = {name: _quantiles(values) for name, values in found.items()}
        facts["rate"] = step.rate
    return {**facts, "inputs": described, "outputs": _answers(answers, splits.signature)}


def _shares(counts: np.ndarray) -> list[float]:
    return (counts / max(1, counts.sum())).round(6).tolist()


def _channels(images: np.ndarray) -> dict[str, dict[str, Any]]:
    """Bins of each channel's values, a few hundred pictures at a time."""
    counts = np.zeros((images.shape[-1], len(_PIXELS) - 1), np.int64)
    for start in range(0, len(images), 256):
        some = images[start : start + 256]
        counts += [np.histogram(some[..., channel], _PIXELS)[0] for channel in range(len(counts))]
    return {f"channel{place}": {"edges": _PIXELS.tolist(), "shares": _shares(own)} for place, own in enumerate(counts)}


def _summaries(images: np.ndarray) -> dict[str, dict[str, Any]]:
    """Bins of one number per picture, a few hundred pictures at a time."""
    parts = [image_summaries(images[start : start + 256]) for start in range(0, len(images), 256)]
    return {name: _quantiles(np.concatenate([part[name] for part in parts])) for name in parts[0]}


def _quantiles(values: np.ndarray) -> dict[str, Any]:
    """Bins between the deciles; equal deciles (a constant or repeated value) are one edge."""
    edges = np.unique(np.quantile(values, _DECILES)) if len(values) else np.zeros(0)
    bins = np.searchsorted(edges, values, side="right")
    return {"edges": edges.astype(float).tolist(), "shares": _shares(np.bincount(bins, minlength=len(edges) + 1))}


def _numbers(values: np.ndarray) -> dict[str, Any]:
    missing = np.isnan(values)
    return {**_quantiles(values[~missing]), "missing": float(missing.mean())}


def _categories(values: np.ndarray, known: tuple[str, ...]) -> dict[str, Any]:
    missing = values == ""
    return {
        "values": {value: float((values == value).mean()) for value in known},
        "missing": float(missing.mean()),
        "unknown": float((~np.isin(values, known) & ~missing).mean()),
    }


def _answers(named: dict[str, np.ndarray], signature: Any) -> dict[str, Any]:
    summaries = answer_summaries(named, signature.task, signature.labels)
    if summaries:
        return {"summaries": {name: _quantiles(values) for name, values in summaries.items()}}
    if not signature.one_number:
        return {}
    answers = tasks.get(signature.task).scored(named)
    if signature.task == "regression":
        return {"value": _quantiles(answers[:, 0])}
    rates = np.bincount(answers.argmax(axis=1), minlength=signature.outputs) / len(answers)
    return {
        "classes": dict(zip(signature.labels, rates.tolist(), strict=True)),
        "confidence": {
            "edges": _CONFIDENCE.tolist(),
            "shares": _shares(np.histogram(answers.max(axis=1).clip(0, 1), _CONFIDENCE)[0]),
        },
    }
