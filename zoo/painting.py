"""Pictures that a model paints of texts: by the files of a bundle, or by those that are made of a run for the moment."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

TOGETHER = 64  # pictures that are painted at a time
_FILES = (".png", ".jpg", ".jpeg", ".webp", ".svg", ".pdf")


def paint(
    model: Any,
    texts: Sequence[str],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    precision: str | None = None,
    threads: int = 0,
    out: str | Path | None = None,
) -> np.ndarray:
    """Paint a picture of each text: codes drawn one after the other, and then what they stand for.

    Args:
        model: bundle or run of a model for "text-to-image", such as "dalle", or the path of one.
        texts: what the pictures are to show; the same text may be there several times.
        temperature: of the draw; 0 takes the likeliest code, 1 draws as the model says.
        top_k: likeliest codes of which one is drawn; 0 for all.
        top_p: probability that the codes have together of which one is drawn, in (0, 1].
        seed: of the draw; None for another one each time.
        precision: form of a bundle, such as "w8"; its default if None.
        threads: processor threads; 0 for all.
        out: file for a picture of all of them with their texts; None for none.

    Returns:
        uint8 `(texts, height, width, channels)`.

    Raises:
        ValueError: the model paints no pictures, there is no text, one is blank, or an argument is out of range.
    """
    from serve.painting import paint as together
    from serve.sampling import Ask
    from zoo.generation import opened

    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"texts must be a list of at least one text, got {texts!r}")
    random = np.random.default_rng(seed)
    asked = [
        Ask(temperature=temperature, top_k=top_k, top_p=top_p, seed=int(random.integers(2**63)))
        for _ in range(len(texts))
    ]
    if out is not None and (Path(out).suffix.lower() not in _FILES or not Path(out).parent.is_dir()):
        raise ValueError(
            f"out must be a file for a picture in a folder that exists, such as painted.png, got {str(out)!r}"
        )
    running = opened(model, precision, threads, paints=True)
    parts = [slice(start, start + TOGETHER) for start in range(0, len(texts), TOGETHER)]
    given = [str(text) for text in texts]
    notes: list[str] = []
    pictures = np.concatenate([together(running, given[part], asked[part], notes.append) for part in parts])
    for note in dict.fromkeys(notes):
        warnings.warn(note, stacklevel=2)
    if out is not None:
        from zoo.evaluate import painted_pictures

        painted_pictures.painted(pictures, list(texts), out)
    return pictures
