"""Masked words as people and scripts read them: what could stand at each `[MASK]` of a text."""

from typing import Any

import numpy as np

from serve.manifest import Manifest
from serve.texts import Read

NEEDED = ("log_probabilities",)  # outputs of the model that are asked for
FORMS = ("tokens",)
_TOP = 5


def answers(outputs: dict[str, np.ndarray], manifest: Manifest, form: str, read: list[Read]) -> list[dict[str, Any]]:
    """The likeliest tokens for the masks of texts.

    Args:
        outputs: `log_probabilities` (batch, places, tokens).
        manifest: the model's, whose labels are the tokens.
        form: "tokens".
        read: what the tokenizer made of each text.

    Returns:
        `{"masks": [{"start", "end", "tokens": [{"token", "probability"}, …]}, …]}` with the characters of each mask, none where a
        text has none.
    """
    told = []
    for logs, own in zip(outputs["log_probabilities"], read, strict=True):
        masks = []
        for word in own.masks:
            best = np.argsort(-logs[word.place], kind="stable")[:_TOP]
            tokens = [
                {"token": manifest.labels[token], "probability": round(float(np.exp(logs[word.place, token])), 6)}
                for token in best
            ]
            masks.append({"start": word.start, "end": word.end, "tokens": tokens})
        told.append({"masks": masks})
    return told


def table(predictions: list[dict[str, Any]], manifest: Manifest) -> list[list[Any]]:
    """Predictions as lines of a table, the first being the header: a line for each mask, with its row counted from 1."""
    rows = [
        [row, mask["start"], mask["end"], *(value for token in mask["tokens"] for value in token.values())]
        for row, own in enumerate(predictions, 1)
        for mask in own["masks"]
    ]
    ranks = ["", *(f"_{rank}" for rank in range(2, _TOP + 1))]
    return [["row", "start", "end", *(name + rank for rank in ranks for name in ("token", "probability"))], *rows]
