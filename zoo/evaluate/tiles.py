"""Segmentation of pictures larger than a model's input, or than memory: overlapping tiles, blended.

Each tile counts for nothing in the outer quarter of its overlap with the next one, where a network sees least around a
pixel, and fades in over the two middle quarters; so the result is that of one pass over the whole picture wherever that
quarter is wider than the network looks around a pixel.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zoo.evaluate.report import opened

_GRID = 16  # tiles begin at multiples of this, so that the poolings of a network fall on the same pixels in every tile


def segment(
    model: Any,
    image: Any,
    *,
    overlap: int | None = None,
    batch: int = 8,
    precision: str | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """The mask of a picture of any size, by tiles of the model's input size.

    Only a band of tiles is held at a time: with a `numpy.memmap` as `image` and another as `out` neither picture nor
    mask need fit in memory.

    Args:
        model: `zoo.training.Run` of a segmentation, its bundle, or the path of either.
        image: uint8 `(height, width, channels)`, anything that gives such an array by slices, or the path of a picture.
        overlap: pixels that neighbouring tiles share at least; half a tile if None.
        batch: tiles per call of the model.
        precision: form of a bundle.
        out: uint8 `(height, width)` to write the mask to; a new array if None.

    Returns:
        Index of the likeliest label of each pixel, uint8 `(height, width)`.

    Raises:
        ValueError: the model is for another task, the picture has other channels, or a number is out of range.
    """
    predict, (tile_height, tile_width, channels) = _model(model, precision)
    if isinstance(image, str | Path):
        from zoo.data.images import open_image

        size = open_image(Path(image), None)
        image = open_image(Path(image), (*size[:2], channels))
    if len(image.shape) != 3 or image.shape[2] != channels or image.dtype != np.uint8:
        raise ValueError(
            f"image must be uint8 (height, width, {channels}) as the model takes it, got {image.dtype} {tuple(image.shape)}"
        )
    height, width = image.shape[:2]
    shared = min(tile_height, tile_width) // 2 if overlap is None else overlap
    if not 0 <= shared < min(tile_height, tile_width) or batch < 1:
        raise ValueError(
            f"overlap must be 0 … {min(tile_height, tile_width) - 1} pixels for tiles of {tile_height}x{tile_width}, and "
            f"batch at least 1, got overlap={overlap}, batch={batch}"
        )
    if out is None:
        out = np.empty((height, width), np.uint8)
    elif out.shape != (height, width) or out.dtype != np.uint8:
        raise ValueError(f"out must be uint8 {(height, width)}, got {out.dtype} {tuple(out.shape)}")
    rows, columns = _starts(height, tile_height, shared), _starts(width, tile_width, shared)
    down, across = _fades(rows, height, tile_height), _fades(columns, width, tile_width)
    band: np.ndarray | None = None  # blended probabilities of the rows that are not done, from the top of this tile on
    for place, top in enumerate(rows):
        found = _row_of_tiles(predict, image, top, columns, across, (tile_height, tile_width), batch)
        found *= down[place][:, None, None]
        if band is not None:
            found[: len(band)] += band
        following = rows[place + 1] if place + 1 < len(rows) else height
        done = following - top
        out[top:following] = found[:done].argmax(axis=-1)  # weights add up to one in every pixel
        band = found[done:]
    return out


def _row_of_tiles(
    predict: Callable[[np.ndarray], np.ndarray],
    image: Any,
    top: int,
    columns: list[int],
    across: list[np.ndarray],
    tile: tuple[int, int],
    batch: int,
) -> np.ndarray:
    """Blended probabilities of one band of tiles, `(tile height, picture's width, classes)`."""
    width = image.shape[1]
    band: np.ndarray | None = None
    for first in range(0, len(columns), batch):
        lefts = columns[first : first + batch]
        answers = predict(np.stack([_cut(image, top, left, tile) for left in lefts]))
        if band is None:
            band = np.zeros((tile[0], width, answers.shape[-1]), np.float32)
        for left, answer, fade in zip(lefts, answers, across[first : first + batch], strict=True):
            part = min(tile[1], width - left)
            band[:, left : left + part] += answer[:, :part] * fade[:part, None]
    assert band is not None  # every picture has a column
    return band


def _cut(image: Any, top: int, left: int, tile: tuple[int, int]) -> np.ndarray:
    """A tile; beyond the picture's edge its last pixels are repeated."""
    found = np.asarray(image[top : top + tile[0], left : left + tile[1]])
    lack = [(0, size - had) for size, had in zip(tile, found.shape[:2], strict=True)]
    return np.pad(found, [*lack, (0, 0)], mode="edge") if any(map(any, lack)) else found


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    """First pixel of each tile along an axis."""
    step = tile - overlap
    step = max(1, step - step % _GRID if step >= _GRID else step)
    return list(range(0, max(1, size - tile + step), step))


def _fades(starts: list[int], size: int, tile: int) -> list[np.ndarray]:
    """Weights of each tile's pixels along an axis; those of all tiles add up to one in every pixel of the picture."""
    whole = np.zeros(starts[-1] + tile)
    found = []
    for place, start in enumerate(starts):
        fade = np.ones(tile)
        if place:
            fade = np.minimum(fade, _ramp(starts[place - 1] + tile - start, tile))
        if place + 1 < len(starts):
            fade = np.minimum(fade, _ramp(start + tile - starts[place + 1], tile)[::-1])
        found.append(fade)
        whole[start : start + tile] += fade
    return [(fade / whole[start : start + tile]).astype(np.float32) for start, fade in zip(starts, found, strict=True)]


def _ramp(shared: int, tile: int) -> np.ndarray:
    """Weights that rise from 0 to 1 over the two middle quarters of the pixels shared with the tile before."""
    places = np.arange(tile) + 0.5
    return np.clip((places - shared / 4) / max(1.0, shared / 2), 0 if shared > 3 else 0.5, 1)


def _model(model: Any, precision: str | None) -> tuple[Callable[[np.ndarray], np.ndarray], tuple[int, ...]]:
    """A function from tiles to probabilities, and the size of a tile."""
    if isinstance(model, str | Path) and (Path(model) / "recipe.json").exists():
        from zoo.training import load

        model = load(model)
    if hasattr(model, "model") and hasattr(model, "signature"):  # a run
        from zoo import tasks

        _check(model.signature.task)
        if precision is not None:
            raise ValueError(f"a precision is one of a bundle's forms, got precision={precision!r}; leave it out")
        signature, task = model.signature, tasks.get(model.signature.task)

        def of_run(tiles: np.ndarray) -> np.ndarray:
            raw = model.model.predict_on_batch(signature.inputs({"image": tiles}))
            return task.answers(raw, signature)["probabilities"]

        return of_run, signature.preprocess.shape
    from serve.runtime import Model

    bundle = opened(model)
    _check(bundle.manifest.task)
    runtime = Model(bundle, precision=precision)

    def of_bundle(tiles: np.ndarray) -> np.ndarray:
        return runtime.predict({"image": tiles}, ["probabilities"])["probabilities"]

    return of_bundle, bundle.manifest.inputs[0].shape[1:]


def _check(task: str) -> None:
    if task != "segmentation":
        raise ValueError(f"only a segmentation has a class for each pixel, and the model's task is {task}")
