"""Pictures that a model paints of texts, code by code."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

TOGETHER = 64  # pictures that are painted at a time
LAYERS = ("text", "logits", "codes", "pixels")  # of a model that paints


def paint(
    model: Any,
    texts: Sequence[str],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
    out: str | Path | None = None,
) -> np.ndarray:
    """Paint a picture of each text: codes drawn one after the other, and then what they stand for.

    Args:
        model: run, or folder of a run, of a model for "text-to-image", such as "dalle".
        texts: what the pictures are to show; the same text may be there several times.
        temperature: of the draw; 0 takes the likeliest code, 1 draws as the model says.
        top_k: likeliest codes of which one is drawn; 0 for all.
        seed: of the draw; None for another one each time.
        out: file for a picture of all of them with their texts; None for none.

    Returns:
        uint8 `(texts, height, width, channels)`.

    Raises:
        ValueError: the model paints no pictures, there is no text, or an argument is out of range.
    """
    if temperature < 0 or top_k < 0:
        raise ValueError(f"temperature and top_k must be at least 0, got temperature={temperature!r}, top_k={top_k!r}")
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"texts must be a list of at least one text, got {texts!r}")
    run = _opened(model)
    generator = np.random.default_rng(seed)
    halves = _halves(run)
    tokens = run.signature.text({"text": np.array(list(texts), np.str_)})
    starts = range(0, len(tokens), TOGETHER)
    found = [_painted(*halves, tokens[start : start + TOGETHER], temperature, top_k, generator) for start in starts]
    pictures = np.concatenate(found)
    if out is not None:
        from zoo.evaluate import painted_pictures

        painted_pictures.painted(pictures, list(texts), out)
    return pictures


def _opened(model: Any) -> Any:
    if not isinstance(model, str | Path):
        return model
    from zoo.training import load

    return load(model)


def _halves(run: Any) -> tuple[Any, Any, Any]:
    """The layer that makes one text of tokens and codes, a model of such texts to logits, and one of codes to pixels."""
    import keras

    network = getattr(run, "model", None)
    if not set(LAYERS) <= {layer.name for layer in getattr(network, "layers", ())}:
        name = getattr(network or run, "name", type(run).__name__)
        raise ValueError(
            f"pictures are painted by the run of a model such as 'dalle', got {name!r}; train one, such as with "
            "`zoo train dalle_nano`"
        )
    text, logits, codes, pixels = (network.get_layer(name) for name in LAYERS)
    return text, keras.Model(text.output, logits.output), keras.Model(codes.output, pixels.output)


def _painted(
    text: Any, writer: Any, drawer: Any, tokens: np.ndarray, temperature: float, top_k: int, generator: Any
) -> np.ndarray:
    from keras import ops

    from zoo.architectures.dalle import drawn

    length = tokens.shape[1]
    first = text.vocabulary + length
    rows, columns, codes = drawer.input_shape[1:]
    whole = np.full((len(tokens), length + rows * columns), first, np.int32)
    whole[:, :length] = np.where(tokens == text.pad, text.vocabulary + np.arange(length), tokens)
    for place in range(length, whole.shape[1]):
        logits = writer.predict_on_batch(whole)[:, place - 1, first:]
        whole[:, place] = first + chosen(logits, temperature, top_k, generator)
    shown = np.eye(codes, dtype=np.float32)[whole[:, length:] - first].reshape(-1, rows, columns, codes)
    middle, _ = np.split(drawer.predict_on_batch(shown), 2, axis=-1)
    return np.rint(255 * ops.convert_to_numpy(drawn(middle))).astype(np.uint8)


def chosen(logits: np.ndarray, temperature: float, top_k: int, generator: np.random.Generator) -> np.ndarray:
    """A code for each row of logits `(rows, codes)`, int64 `(rows,)`; the arguments are those of `paint`."""
    if not temperature:
        return logits.argmax(axis=1)
    if top_k:
        least = np.sort(logits, axis=1)[:, -min(top_k, logits.shape[1]), None]
        logits = np.where(logits >= least, logits, -np.inf)
    return (logits / temperature + generator.gumbel(size=logits.shape)).argmax(axis=1)
