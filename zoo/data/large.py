"""Pictures of any size, read a part at a time where their format allows.

- `.npy`: mapped, so that only what is looked at is read.
- TIFF in several strips or tiles, of any compression that Pillow knows: each is decoded by itself, and those of the band
  of rows that is being read are kept.
- Whatever else Pillow reads is decoded whole, since a part of it cannot be told from the bytes.

The limit that Pillow sets against small files that grow in memory is lifted: a picture named here is meant. In its place
one that is decoded whole is refused where it would not fit in memory.
"""

import contextlib
import io
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.images import MODES, fit
from zoo.machine import memory

_SHARE = 0.8  # of the memory that a picture decoded whole may take
_COPIED = (258, 259, 262, 266, 277, 284, 292, 293, 317, 320, 338, 339, 347, 530, 531, 532)  # how a strip is stored
_WIDTH, _HEIGHT, _STRIPS, _TURNED, _ROWS, _LENGTHS, _PLANES = 256, 257, 273, 274, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_LENGTHS = 322, 323, 324, 325
_OLD_JPEG = 6  # a compression whose strips share what stands elsewhere


class Picture:
    """Looks like a uint8 array `(height, width, channels)` to whoever reads it by slices of rows and columns.

    Attributes:
        shape: `(height, width, channels)`.
        whole: bytes that it takes in memory as it is decoded whole; 0 where parts are read.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, image: Any, path: Path, channels: int):
        self.path, self.image, self.channels = path, image, channels
        self.shape = (image.height, image.width, channels)
        self.blocks = _blocks(image)
        self.kept: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self.most = 0  # blocks to keep
        self.whole = 0 if self.blocks else _decode(image, path)
        if not self.blocks and _orientation(image) != 1:
            from PIL import ImageOps

            self.image = ImageOps.exif_transpose(image)
            self.shape = (self.image.height, self.image.width, channels)

    def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray:
        (top, bottom, _), (left, right, _) = (one.indices(size) for one, size in zip(part, self.shape[:2], strict=True))
        if not self.blocks:
            size = (bottom - top, right - left, self.channels)
            return fit(self.image.crop((left, top, right, bottom)), size)
        high, wide = self.blocks["size"]
        found = np.empty((bottom - top, right - left, self.channels), np.uint8)
        band = (
            -(-bottom // high) - top // high + 1
        )  # rows of blocks that are read together, and the one that comes next
        self.most = max(self.most, band * -(-self.shape[1] // wide))
        for row in range(top // high, -(-bottom // high)):
            for column in range(left // wide, -(-right // wide)):
                block, y, x = self._block(row, column), row * high, column * wide
                first, last = max(top, y), min(bottom, y + high)
                start, end = max(left, x), min(right, x + wide)
                found[first - top : last - top, start - left : end - left] = block[
                    first - y : last - y, start - x : end - x
                ]
        return found

    def _block(self, row: int, column: int) -> np.ndarray:
        """One strip or tile, decoded."""
        place = row, column
        if place in self.kept:
            self.kept.move_to_end(place)
            return self.kept[place]
        high, wide = self.blocks["size"]
        if self.blocks["strips"]:
            high = min(high, self.shape[0] - row * high)
        number = row * -(-self.shape[1] // wide) + column
        block = self._decoded(number, high, wide)
        self.kept[place] = block
        if len(self.kept) > self.most:
            self.kept.popitem(last=False)
        return block

    def _decoded(self, number: int, high: int, wide: int) -> np.ndarray:
        """The strip or tile of a number, as a TIFF of its own that Pillow decodes."""
        from PIL import Image
        from PIL.TiffImagePlugin import ImageFileDirectory_v2

        tags = self.image.tag_v2
        length = self.blocks["lengths"][number]
        if not length:  # nothing was ever written there
            return np.zeros((high, wide, self.channels), np.uint8)
        own = ImageFileDirectory_v2()
        for tag in _COPIED:
            if tag in tags:
                own.tagtype[tag] = tags.tagtype[tag]
                own[tag] = tags[tag]
        for tag, value in ((_WIDTH, wide), (_HEIGHT, high), (_ROWS, high), (_STRIPS, 0), (_LENGTHS, length)):
            own[tag] = value
        try:
            with self.path.open("rb") as file:
                file.seek(self.blocks["offsets"][number])
                data = file.read(length)
            made = io.BytesIO()
            own.save(made)  # which counts the place of the strip from the end of what it writes
            made.write(data)
            with any_size(), Image.open(made) as image:
                return fit(image, (high, wide, self.channels))
        except (OSError, ValueError, SyntaxError, RuntimeError) as error:
            kind = "strip" if self.blocks["strips"] else "tile"
            raise ValueError(
                f"cannot read {kind} {number + 1} of {self.path}: {error}; write the picture again"
            ) from error


def open_large(path: Path, channels: int) -> Picture | np.ndarray:
    """A picture to be read by slices, uint8 `(height, width, channels)`.

    Args:
        path: of a picture that Pillow reads, or of a `.npy` with uint8 `(height, width[, channels])`.
        channels: that it is brought to; those of a `.npy` must be as many.

    Raises:
        ValueError: it cannot be read, has other channels, or would not fit in memory; the message names it.
    """
    if not path.is_file():
        raise ValueError(f"there is no picture {path}; name a file")
    if path.suffix.lower() == ".npy":
        return _mapped(path, channels)
    if channels not in MODES:
        raise ValueError(
            f"{path}: pictures have 1, 3 or 4 channels and the model takes {channels}; give a .npy, uint8 (height, width, "
            f"{channels})"
        )
    from PIL import Image, UnidentifiedImageError

    try:
        with any_size(), Image.open(path) as image:  # which closes the file and keeps what was read of it
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"its pixels have the mode {image.mode!r}, not 8 bits")
            return Picture(image, path, channels)
    except (OSError, ValueError, SyntaxError, MemoryError) as error:  # SyntaxError: a broken PNG
        reason = "it is no image" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"cannot read the image {path}: {reason}; repair or replace it") from error


@contextlib.contextmanager
def any_size() -> Iterator[None]:
    """Pillow without its limit on the number of pixels."""
    from PIL import Image

    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _mapped(path: Path, channels: int) -> np.ndarray:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"cannot read the array {path}: {error}; save it again with numpy.save") from error
    found = found[..., None] if found.ndim == 2 else found
    if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != channels or not found.size:
        raise ValueError(
            f"{path} must hold uint8 (height, width, {channels}) as the model takes it, got {found.dtype} {found.shape}"
        )
    return found


def _blocks(image: Any) -> dict[str, Any]:
    """Where the strips or tiles of a TIFF are and how large; empty where a picture has to be decoded whole."""
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None or tags.get(_PLANES, 1) != 1 or tags.get(259) == _OLD_JPEG:
        return {}
    if tags.get(_TURNED, 1) != 1:
        return {}
    strips = _TILES not in tags
    offsets, lengths = (tags.get(tag) for tag in ((_STRIPS, _LENGTHS) if strips else (_TILES, _TILE_LENGTHS)))
    if strips:
        size = (min(tags.get(_ROWS, image.height), image.height), image.width)
    else:
        size = (tags[_TILE_HEIGHT], tags[_TILE_WIDTH])
    count = -(-image.height // size[0]) * -(-image.width // size[1])
    if count < 2 or offsets is None or lengths is None or min(len(offsets), len(lengths)) < count:
        return {}
    return {"size": size, "strips": strips, "offsets": offsets, "lengths": lengths}


def _orientation(image: Any) -> int:
    from PIL import ExifTags

    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _decode(image: Any, path: Path) -> int:
    """Decode a whole picture; the bytes that it takes."""
    needed = image.width * image.height * (1 if image.mode in ("1", "L", "P") else 4)  # as Pillow holds pixels
    if _orientation(image) != 1:
        needed *= 2  # until the turned copy has taken its place
    if needed > _SHARE * memory():
        raise ValueError(
            f"it has to be decoded whole, which takes {needed / 1e9:.1f} GB of the {memory() / 1e9:.1f} GB of memory; "
            "save it as a TIFF of tiles or strips, or as .npy, which are read in parts"
        )
    image.load()
    return needed
