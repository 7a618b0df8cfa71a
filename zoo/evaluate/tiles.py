"""Segmentation of pictures larger than a model's input, or than memory: overlapping tiles, blended.

Each tile counts for nothing in the outer quarter of its overlap with the next one, where a network sees least around a
pixel, and fades in over the two middle quarters; so the result is that of one pass over the whole picture wherever that
quarter is wider than the network looks around a pixel.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.evaluate.report import opened

_GRID = 16  # tiles begin at multiples of this, so that the poolings of a network fall on the same pixels in every tile


class Segmenter(NamedTuple):
    """A segmentation at hand.

    Attributes:
        predict: uint8 tiles `(batch, height, width, channels)` -> probabilities `(batch, height, width, classes)`.
        shape: of a tile, `(height, width, channels)`.
        labels: of the classes.
    """

    predict: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int, ...]
    labels: tuple[str, ...]


def segment(
    model: Any,
    image: Any,
    *,
    overlap: int | None = None,
    batch: int = 8,
    precision: str | None = None,
    tile: int | tuple[int, int] | None = None,
    out: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """The mask of a picture of any size, by tiles of the model's input size.

    Only a band of tiles is held at a time: with a `numpy.memmap` as `image` and another as `out` neither picture nor
    mask need fit in memory.

    Args:
        model: `zoo.training.Run` of a segmentation, its bundle, the path of either, or what `segmenter` returned.
        image: uint8 `(height, width, channels)`, anything that gives such an array by slices, or the path of a picture,
            see `zoo.data.large`.
        overlap: pixels that neighbouring tiles share at least; half a tile if None.
        batch: tiles per call of the model.
        precision: form of a bundle.
        tile: pixels a side of a tile, or `(height, width)`; the model's input size if None. A bundle has no other.
        out: uint8 `(height, width)` to write the mask to, from top to bottom in bands of whole rows; a new array if None.
        progress: called with the number of tiles that are done and of all.

    Returns:
        Index of the likeliest label of each pixel, uint8 `(height, width)`; `out` where it was given.

    Raises:
        ValueError: the model is for another task, the picture has other channels, or a number is out of range.
    """
    own = model if isinstance(model, Segmenter) else segmenter(model, precision, tile)
    predict, (tile_height, tile_width, channels) = own.predict, own.shape
    if isinstance(image, str | Path):
        from zoo.data.large import open_large

        image = open_large(Path(image), channels)
    if len(image.shape) != 3 or image.shape[2] != channels or image.dtype != np.uint8:
        raise ValueError(
            f"image must be uint8 (height, width, {channels}) as the model takes it, got {image.dtype} {tuple(image.shape)}"
        )
    height, width = image.shape[:2]
    if not height or not width:
        raise ValueError(f"image has no pixels: its shape is {tuple(image.shape)}")
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
        if progress:
            progress((place + 1) * len(columns), len(rows) * len(columns))
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


def segmenter(model: Any, precision: str | None = None, tile: int | tuple[int, int] | None = None) -> Segmenter:
    """A run or a bundle, opened once for any number of pictures.

    Args:
        model: `zoo.training.Run` of a segmentation, its bundle, or the path of either.
        precision: form of a bundle.
        tile: pixels a side of a tile, or `(height, width)`; the model's input size if None.

    Raises:
        ValueError: the model is for another task, or cannot have such tiles.
    """
    if isinstance(model, str | Path) and (Path(model) / "recipe.json").exists():
        from zoo.training import load

        model = load(model)
    size = None if tile is None else (tile, tile) if isinstance(tile, int) else tuple(tile)
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"tile must be a number of pixels, or height and width, got tile={tile!r}")
    if hasattr(model, "model") and hasattr(model, "signature"):  # a run
        _check(model.signature.task)
        if precision is not None:
            raise ValueError(f"a precision is one of a bundle's forms, got precision={precision!r}; leave it out")
        return _of_run(model, size)
    from serve.runtime import Model

    bundle = opened(model)
    _check(bundle.manifest.task)
    shape = bundle.manifest.inputs[0].shape[1:]
    if size not in (None, shape[:2]):
        raise ValueError(
            f"the bundle takes tiles of {shape[0]}x{shape[1]} pixels and no others, got tile={tile!r}; leave it out, or give "
            "the run"
        )
    runtime = Model(bundle, precision=precision)

    def of_bundle(tiles: np.ndarray) -> np.ndarray:
        return runtime.predict({"image": tiles}, ["probabilities"])["probabilities"]

    return Segmenter(of_bundle, tuple(shape), tuple(bundle.manifest.labels))


def _of_run(run: Any, size: tuple[int, ...] | None) -> Segmenter:
    from zoo import tasks

    network, signature = run.model, run.signature
    task, shape = tasks.get(signature.task), signature.preprocess.shape
    if size is not None and size != shape[:2]:
        network, shape = _resized(network, (*size, shape[2])), (*size, shape[2])

    def of_run(tiles: np.ndarray) -> np.ndarray:
        raw = network.predict_on_batch(signature.inputs({"image": tiles}))
        return task.answers(raw, signature)["probabilities"]

    return Segmenter(of_run, tuple(shape), tuple(signature.labels))


def _resized(network: Any, shape: tuple[int, ...]) -> Any:
    """The same layers and weights over an input of another size."""
    import keras

    try:
        found = keras.models.clone_model(network, input_tensors=keras.Input(shape, name="image"))
        if found.output_shape[1:3] != shape[:2]:
            raise ValueError(f"it answers {found.output_shape[1:3]}")
        found.set_weights(network.get_weights())
    except ValueError as error:
        raise ValueError(
            f"the network cannot take tiles of {shape[0]}x{shape[1]} pixels, which its poolings do not divide; take a multiple "
            f"of its input size, {network.input_shape[1]}x{network.input_shape[2]}"
        ) from error
    return found


def _check(task: str) -> None:
    if task != "segmentation":
        raise ValueError(f"only a segmentation has a class for each pixel, and the model's task is {task}")
