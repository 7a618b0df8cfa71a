"""Masks as people and scripts read them: a small PNG or run lengths, and how much of the picture each label covers."""

import io
from typing import Any

import numpy as np
from PIL import Image

from serve.manifest import Manifest
from serve.pictures import url

NEEDED = ("mask",)  # outputs of the model that are asked for; probabilities would be many times as many bytes
FORMS = ("png", "runs", "none")
BACKGROUND = "background"  # a first label of this name is transparent in the PNG
# Okabe & Ito 2008, "Color universal design": told apart by colour-blind readers too
COLOURS = ("#26282c", "#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#f0e442", "#0072b2")


def answers(outputs: dict[str, np.ndarray], manifest: Manifest, form: str = "png") -> list[dict[str, Any]]:
    """Masks with what they cover, one per row.

    Args:
        outputs: `mask` (batch, height, width), index of the label of each pixel.
        manifest: the model's.
        form: "png", "runs" or "none".

    Returns:
        `{"label", "shares": [{"label", "share", "colour"}, …], "height", "width"}`, labels in the picture by their share
        of it, largest first; `label` is the largest that is not the background, if there is one. "png" adds `mask`, a
        data URL of a PNG whose pixels are the indices of the labels; "runs" adds `runs`, `[index, length]` from left to
        right and top to bottom.
    """
    return [_answer(mask, manifest.labels, form) for mask in outputs["mask"]]


def _answer(mask: np.ndarray, labels: tuple[str, ...], form: str) -> dict[str, Any]:
    counts = np.bincount(mask.ravel(), minlength=len(labels))
    order = [int(place) for place in np.argsort(-counts, kind="stable") if counts[place]]
    named = [place for place in order if labels[place] != BACKGROUND] or order
    told: dict[str, Any] = {
        "label": labels[named[0]],
        "shares": [
            {"label": labels[place], "share": round(float(counts[place] / mask.size), 6), "colour": colour(place)}
            for place in order
        ],
        "height": mask.shape[0],
        "width": mask.shape[1],
    }
    if form == "png":
        told["mask"] = url(png(mask, labels))
    elif form == "runs":
        told["runs"] = runs(mask)
    return told


def colour(place: int) -> str:
    """Colour of a label, as in CSS."""
    if place < len(COLOURS):
        return COLOURS[place]
    import colorsys

    channels = colorsys.hsv_to_rgb(place * 0.618 % 1, 0.65, 0.9)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)


def png(mask: np.ndarray, labels: tuple[str, ...]) -> bytes:
    """A mask (height, width) as a PNG with a palette; what a reader of indices gets back is the mask."""
    image = Image.frombytes("P", mask.shape[::-1], np.ascontiguousarray(mask, np.uint8).tobytes())
    image.putpalette([part for place in range(len(labels)) for part in bytes.fromhex(colour(place)[1:])])
    file = io.BytesIO()
    clear = {"transparency": 0} if labels[0] == BACKGROUND else {}
    image.save(file, "PNG", **clear)
    return file.getvalue()


def runs(mask: np.ndarray) -> list[list[int]]:
    """Run lengths of a mask, `[[index, length], …]` in row order."""
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=np.int16(-1)))
    lengths = np.diff(starts, append=flat.size)
    return [[int(value), int(length)] for value, length in zip(flat[starts], lengths, strict=True)]


def table(predictions: list[dict[str, Any]], manifest: Manifest) -> list[list[Any]]:
    """Predictions as lines of a table, the first being the header: the share that each label covers."""
    shares = [{each["label"]: each["share"] for each in row["shares"]} for row in predictions]
    return [
        ["label", *(f"share_{label}" for label in manifest.labels)],
        *(
            [row["label"], *(own.get(label, 0.0) for label in manifest.labels)]
            for row, own in zip(predictions, shares, strict=True)
        ),
    ]
