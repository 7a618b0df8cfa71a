"""Labels of words as people and scripts read them: the marked parts of a text, by their characters."""

from typing import Any

import numpy as np

from serve.manifest import Manifest
from serve.texts import Read

NEEDED = ("probabilities",)  # outputs of the model that are asked for
FORMS = ("spans", "words")
OUTSIDE = "O"


def answers(outputs: dict[str, np.ndarray], manifest: Manifest, form: str, read: list[Read]) -> list[dict[str, Any]]:
    """Marked parts of texts, one list per row.

    Args:
        outputs: `probabilities` (batch, places, labels).
        manifest: the model's.
        form: "spans", or "words" for every word with its own label.
        read: what the tokenizer made of each text.

    Returns:
        `{"spans": [{"label", "text", "start", "end", "probability"}, …]}`, with characters counted from 0 and `end` behind the
        last; a part is as probable as the least sure of its words. Or `{"words": [{"word", "start", "end", "label", "probability"},
        …]}`.
    """
    told = []
    for shares, own in zip(outputs["probabilities"], read, strict=True):
        best = shares.argmax(axis=1)
        words = [
            {
                "word": own.text[word.start : word.end],
                "start": word.start,
                "end": word.end,
                "label": manifest.labels[best[word.place]],
                "probability": round(float(shares[word.place, best[word.place]]), 6),
            }
            for word in own.words
        ]
        told.append({"words": words} if form == "words" else {"spans": _spans(words, own.text)})
    return told


def _spans(words: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """Words that go together: a part begins with B, and with I where no part of its kind was before."""
    spans: list[dict[str, Any]] = []
    last = ""
    for word in words:
        border, _, kind = word["label"].partition("-")
        if kind and border == "I" and kind == last:
            span = spans[-1]
            span |= {"end": word["end"], "probability": min(span["probability"], word["probability"])}
            span["text"] = text[span["start"] : span["end"]]
        elif kind:
            ends = {"start": word["start"], "end": word["end"]}
            spans.append({"label": kind, "text": word["word"], **ends, "probability": word["probability"]})
        last = kind
    return spans


def table(predictions: list[dict[str, Any]], manifest: Manifest) -> list[list[Any]]:
    """Predictions as lines of a table, the first being the header: a line for each part or word, with its row counted from 1."""
    form = next(iter(predictions[0]))
    columns = ["label", "text" if form == "spans" else "word", "start", "end", "probability"]
    rows = [[row, *(part[name] for name in columns)] for row, own in enumerate(predictions, 1) for part in own[form]]
    return [["row", *columns], *rows]
