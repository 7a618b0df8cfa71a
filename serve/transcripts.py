"""Transcripts as people and scripts read them: the text, how sure the model is, and when each word was said."""

from itertools import groupby
from typing import Any

import numpy as np

from serve.beam_search import BLANK, SPACE, paths
from serve.manifest import Manifest

NEEDED = ("probabilities",)  # outputs of the model that are asked for
FORMS = ("words", "text")


def answers(
    outputs: dict[str, np.ndarray], manifest: Manifest, form: str = "words", beams: int = 1
) -> list[dict[str, Any]]:
    """Texts along the best path, one per row.

    Args:
        outputs: `probabilities` (batch, steps, symbols).
        manifest: the model's.
        form: "words" or "text".
        beams: texts that are followed at once, for the likeliest of them; its words are where its own likeliest path has them.

    Returns:
        `{"text", "confidence"}`; "words" adds `words`, `[{"word", "start", "end", "confidence"}, …]`, in seconds from the
        beginning. A word's confidence is the probability of its least sure symbol where this is surest, a text's that of its
        least sure word; of no text at all that of the blank where it is least sure.
    """
    seconds = manifest.inputs[0].shape[1] / manifest.preprocess["rate"] / outputs["probabilities"].shape[1]
    told = []
    for shares, best in zip(outputs["probabilities"], paths(outputs["probabilities"], beams), strict=True):
        sure = np.take_along_axis(shares, best[:, None], axis=1)[:, 0]
        words = _words(best.tolist(), sure.tolist(), manifest.labels, seconds)
        row: dict[str, Any] = {
            "text": " ".join(word["word"] for word in words),
            "confidence": min((word["confidence"] for word in words), default=round(float(sure.min()), 6)),
        }
        told.append(row | ({"words": words} if form == "words" else {}))
    return told


def _words(best: list[int], sure: list[float], labels: tuple[str, ...], seconds: float) -> list[dict[str, Any]]:
    """Words of one row, by the symbol of each step and its probability; each step lasts so many seconds."""
    words: list[dict[str, Any]] = []
    step, inside = 0, False
    for symbol, run in groupby(best):
        start, step = step, step + len(list(run))
        inside &= symbol != SPACE
        if symbol in (BLANK, SPACE):
            continue
        if not inside:
            words.append({"word": "", "start": round(start * seconds, 3), "end": 0.0, "confidence": 1.0})
            inside = True
        word = words[-1]
        word["word"] += labels[symbol]
        word["end"] = round(step * seconds, 3)
        word["confidence"] = round(min(word["confidence"], max(sure[start:step])), 6)
    return words


def table(predictions: list[dict[str, Any]], manifest: Manifest) -> list[list[Any]]:
    """Predictions as lines of a table, the first being the header."""
    return [["text", "confidence"], *([row["text"], row["confidence"]] for row in predictions)]
