"""Folders of images, and images to the size and channels a model takes."""

from pathlib import Path

import numpy as np

from zoo.data import lazy
from zoo.data.rows import OPEN, PARTS, TRAIN, Rows

MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def check_shape(input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape as three integers.

    Raises:
        ValueError: not `(height, width, channels)` with 1, 3 or 4 channels.
    """
    shape = tuple(map(int, input_shape))
    if len(shape) != 3 or min(shape) < 1 or shape[2] not in MODES:
        raise ValueError(
            f"input_shape must be (height, width, channels) with 1 (grey), 3 (RGB) or 4 (RGBA) channels, got {tuple(input_shape)!r}"
        )
    return shape


def fit(image, shape: tuple[int, int, int]) -> np.ndarray:
    """A Pillow image as uint8 `(height, width, channels)`, resized bilinearly, converted, without transparency."""
    from PIL import Image

    height, width, channels = shape
    if image.mode == "P":
        image = image.convert("RGBA")  # a palette may hold transparent colours, which only this mode keeps
    image = image.convert(MODES[channels])
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8).reshape(shape)


def resize(images: np.ndarray | lazy.Pictures, input_shape: tuple[int, ...] | None) -> np.ndarray | lazy.Pictures:
    """uint8 `(rows, height, width, channels)` fitted to `input_shape`; unchanged if that is None or its own shape."""
    if input_shape is None or images.shape[1:] == tuple(input_shape):
        return images
    from PIL import Image

    shape = check_shape(input_shape)
    if isinstance(images, lazy.Pictures):
        return images.resized(shape)
    found = np.empty((len(images), *shape), np.uint8)
    for row, image in enumerate(images):
        found[row] = fit(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), shape)
    return found


def read_folder(path: Path, input_shape: tuple[int, ...] | None) -> Rows:
    """Rows of a folder with one folder of images per class, or with `train`, `validation`, `test` folders of these.

    Args:
        path: the folder; hidden files in it, and those that macOS and Windows add by themselves, are skipped.
        input_shape: `(height, width, channels)` of every image; None where all have the same size already.

    Raises:
        ValueError: no classes, an empty class, or a file that is no readable image; the message names it.
    """
    places = [(path / name, part) for name, part in PARTS.items() if (path / name).is_dir()]
    if not any(part == TRAIN for _, part in places):
        places = [(path, OPEN)]
    listed = [
        (file, folder.name, part) for place, part in places for folder in visible(place) for file in pictures_in(folder)
    ]
    labels = tuple(sorted({label for _, label, _ in listed}))
    if len(labels) < 2:
        raise ValueError(
            f"{path} needs one folder of images for each of at least two classes, found {', '.join(map(repr, labels)) or 'none'}"
        )
    index = {label: place for place, label in enumerate(labels)}
    files = [file for file, _, _ in listed]
    shape = check_shape(input_shape) if input_shape is not None else common_shape(files)
    return Rows(
        name=path.resolve().name,
        task="image-classification",
        x={"image": lazy.read(files, shape)},
        y=np.array([index[label] for _, label, _ in listed], np.int64),
        labels=labels,
        source=f"{path.resolve().name}/",
        part=np.array([part for _, _, part in listed], np.int8),
    )


def open_image(file: Path, shape: tuple[int, int, int] | None):
    """One image as uint8 `(height, width, channels)`, upright as its camera says; its size alone if `shape` is None.

    Raises:
        ValueError: the file is no readable 8-bit image.
    """
    from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"its pixels have the mode {image.mode!r}, not 8 bits")
            if shape is None:
                turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)  # by a quarter
                size = image.size if turned else image.size[::-1]
                return (*size, 1 if image.mode in ("1", "L") else 3)
            return fit(ImageOps.exif_transpose(image), shape)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
        reason = "it is no image" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"cannot read the image {file}: {reason}; repair or remove it") from error


def visible(folder: Path) -> list[Path]:
    """Sorted entries of a folder without hidden ones, and without those that macOS and Windows add by themselves."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if not entry.name.startswith(".") and entry.name not in ("__MACOSX", "Thumbs.db")
    )


def pictures_in(folder: Path) -> list[Path]:
    """Sorted files of a class folder.

    Raises:
        ValueError: it is no folder, is empty, or holds folders.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} stands beside the folders of the classes; move it into one of them, or away")
    files = visible(folder)
    if not files:
        raise ValueError(f"the class folder {folder} is empty; add images, or remove it")
    for file in files:
        if file.is_dir():
            raise ValueError(f"{file} is a folder inside the class folder {folder}; a class folder holds images only")
    return files


def common_shape(files: list[Path]) -> tuple[int, int, int]:
    """The size of all images; grey only if all are grey.

    Raises:
        ValueError: they differ in size, or one cannot be read.
    """
    first, *rest = [open_image(file, None) for file in files]
    for file, shape in zip(files[1:], rest, strict=True):
        if shape[:2] != first[:2]:
            raise ValueError(
                f"images differ in size: {files[0]} is {first[0]}x{first[1]} pixels, {file} {shape[0]}x{shape[1]}; "
                f"say what size they shall get with input_shape=(height, width, channels), on the command line "
                f"such as --set input_shape=32,32,{max(shape[2] for shape in [first, *rest])}"
            )
    return (*first[:2], max(shape[2] for shape in [first, *rest]))
