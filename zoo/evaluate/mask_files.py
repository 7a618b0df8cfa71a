"""Masks of pictures of any size as files: an indexed PNG, written as its rows become known, and a picture of it."""

import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from zoo.data.large import open_large
from zoo.evaluate.tiles import Segmenter, segment

LARGEST = 2_000  # pixels a side of an overlay, at most
_SMALLEST = 480  # pixels of the longer side up to which a small picture is enlarged
_STRENGTH = 0.4  # share of a label's colour in the overlay
_LINE = 2  # pixels of the line around a region, in its full colour


@dataclass(frozen=True)
class Written:
    """What became of one picture.

    Attributes:
        picture: the file.
        height, width: of it, in pixels.
        mask: indexed PNG of the same size.
        overlay: picture of the mask over the picture; None where none was wanted.
        shares: of the picture that each label covers, by label.
        tiles: number of tiles.
        seconds: it took.
        whole: bytes that the picture took in memory as it was decoded whole; 0 where it was read in parts.
    """

    picture: Path
    height: int
    width: int
    mask: Path
    overlay: Path | None
    shares: dict[str, float]
    tiles: int
    seconds: float
    whole: int


def write(
    model: Segmenter,
    picture: Path,
    folder: Path,
    *,
    overlap: int | None = None,
    batch: int = 8,
    overlay: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Segment one picture and write `NAME.mask.png` and `NAME.overlay.png`.

    Args:
        model: what `zoo.evaluate.tiles.segmenter` returned.
        picture: file, see `zoo.data.large.open_large`.
        folder: to write to; made where it is not there.
        overlap, batch, progress: as of `zoo.evaluate.segment`.
        overlay: whether to draw the second file.

    Raises:
        ValueError: the picture cannot be read, or a number is out of range; then no file is left behind.
    """
    start = time.perf_counter()
    image = open_large(picture, model.shape[2])
    height, width = image.shape[:2]
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{picture.stem}.mask.png"
    part = place.with_suffix(".part")
    tiles = 0

    def told(done: int, count: int) -> None:
        nonlocal tiles
        tiles = count
        if progress:
            progress(done, count)

    try:
        with part.open("wb") as file:
            sheet = _Sheet(file, (height, width), model.labels, image if overlay else None)
            segment(model, image, overlap=overlap, batch=batch, out=sheet, progress=told)
            sheet.end()
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)
    shares = dict(zip(model.labels, (sheet.counts / (height * width)).tolist(), strict=True))
    drawn = None
    if overlay:
        rows, masks = (np.stack(lines) for lines in zip(*sheet.shown, strict=True))
        drawn = _draw(rows, masks, shares, folder / f"{picture.stem}.overlay.png")
    whole = getattr(image, "whole", 0)
    return Written(picture, height, width, place, drawn, shares, tiles, time.perf_counter() - start, whole)


class _Sheet:
    """Takes a mask from top to bottom, as `segment` writes it, and passes it on to a PNG with a palette.

    Attributes:
        counts: pixels of each label so far.
        shown: rows of the overlay so far: of the picture, uint8 `(columns, 3)`, and of the mask, `(columns,)`.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, file: BinaryIO, shape: tuple[int, int], labels: tuple[str, ...], image: Any):
        from zoo.evaluate.mask_pictures import palette

        self.file, self.shape, self.labels, self.image = file, shape, labels, image
        self.palette = palette(len(labels))
        self.counts = np.zeros(len(labels), np.int64)
        self.shown: list[tuple[np.ndarray, np.ndarray]] = []
        self.step = max(1, -(-max(shape) // LARGEST))  # pixels of the picture for each of the overlay
        self.packer = zlib.compressobj(6)
        file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", shape[1], shape[0], 8, 3, 0, 0, 0))
        self._chunk(b"PLTE", self.palette.tobytes())

    def __setitem__(self, rows: slice, mask: np.ndarray) -> None:
        mask = mask.astype(np.uint8)
        self.counts += np.bincount(mask.ravel(), minlength=len(self.counts))
        lines = np.zeros((len(mask), 1 + self.shape[1]), np.uint8)  # each begins with its filter, 0 for none
        lines[:, 1:] = mask
        self._chunk(b"IDAT", self.packer.compress(lines.tobytes()))
        if self.image is not None:
            first = -(-rows.start // self.step) * self.step
            self.shown += [self._line(top, mask[top - rows.start]) for top in range(first, rows.stop, self.step)]

    def end(self) -> None:
        """Write what is left."""
        self._chunk(b"IDAT", self.packer.flush())
        self._chunk(b"IEND", b"")

    def _chunk(self, kind: bytes, data: bytes) -> None:
        """One part of a PNG (ISO/IEC 15948, section 5.3); an empty IDAT is left out."""
        if data or kind == b"IEND":
            checksum = zlib.crc32(kind + data)
            self.file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum))

    def _line(self, top: int, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One row of the overlay: the mean of the picture's pixels that it stands for, and the mask's first label of them."""
        step, width = self.step, self.shape[1]
        pixels = np.asarray(self.image[top : top + step, 0:width], np.float32).mean(axis=0)
        edges = np.arange(0, width, step)
        pixels = np.add.reduceat(pixels, edges, axis=0) / np.diff([*edges, width])[:, None]
        shown = pixels[:, :3] if pixels.shape[1] >= 3 else pixels[:, :1].repeat(3, axis=1)
        return np.rint(shown).astype(np.uint8), mask[edges]


def laid_over(pixels: np.ndarray, mask: np.ndarray, labels: tuple[str, ...]) -> np.ndarray:
    """A picture with the regions of a mask in the labels' colours: translucent inside, full along their edges.

    The background is left as it is.

    Args:
        pixels: uint8 `(height, width, 3)`.
        mask: index of the label of each pixel, uint8 `(height, width)`.
        labels: of the indices.

    Returns:
        uint8 `(height, width, 3)`.
    """
    from zoo.evaluate.mask_pictures import palette

    edge = np.zeros(mask.shape, bool)
    for axis in (0, 1):
        for distance in range(1, _LINE + 1):
            for side in (-distance, distance):
                shifted = np.roll(mask, side, axis)
                unlike = shifted != mask
                stop = [slice(None), slice(None)]
                stop[axis] = slice(0, side) if side > 0 else slice(side, None)
                unlike[tuple(stop)] = False  # beyond the picture's border there is nothing
                edge |= unlike
    share = np.where(edge, 1, _STRENGTH) * _tinted(labels)[mask]
    found = pixels * (1 - share[..., None]) + palette(len(labels))[mask] * share[..., None]
    return np.rint(found).astype(np.uint8)


def _tinted(labels: tuple[str, ...]) -> np.ndarray:
    """Whether the overlay shows a label's colour; the background is left as it is."""
    return np.array([label != "background" for label in labels])


def _draw(pixels: np.ndarray, mask: np.ndarray, shares: dict[str, float], path: Path) -> Path:
    """The overlay, enlarged where it is small, over a line of labels with the shares of the picture that they cover."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from zoo.evaluate.mask_pictures import palette

    labels = tuple(shares)
    zoom = max(1, _SMALLEST // max(pixels.shape[:2]))
    pixels, mask = (part.repeat(zoom, axis=0).repeat(zoom, axis=1) for part in (pixels, mask))
    pixels = laid_over(pixels, mask, labels)
    high, wide = mask.shape
    patches = [
        Patch(facecolor=colour / 255 if tinted else "white", edgecolor="grey", label=f"{label} {shares[label]:.1%}")
        for colour, label, tinted in zip(palette(len(labels)), labels, _tinted(labels), strict=True)
        if shares[label]
    ]
    across = max(wide, 320)
    columns = max(1, min(len(patches), across // 150))
    below = 16 + 20 * -(-len(patches) // columns)
    figure = Figure(figsize=(across / 100, (high + below) / 100), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes(((across - wide) / 2 / across, below / (high + below), wide / across, high / (high + below)))
    axes.imshow(pixels, interpolation="nearest", aspect="auto")
    axes.axis("off")
    figure.legend(handles=patches, loc="lower center", ncols=columns, fontsize=9, frameon=False, borderaxespad=0.3)
    figure.savefig(path)
    return path
