"""Folders of images with a mask for each: `images/` and `masks/`, whose files have the same names but for the ending."""

from pathlib import Path

import numpy as np

from zoo.data import images, lazy
from zoo.data.rows import OPEN, PARTS, TRAIN, Rows
from zoo.data.targets import UNKNOWN, Masks

LABELS = "labels.txt"


def parts_in(folder: Path) -> list[tuple[Path, int]]:
    """Folders with images and masks and the split each is for; empty if the folder is in another format."""

    def holds(place: Path) -> bool:
        return (place / "images").is_dir() and (place / "masks").is_dir()

    parts = [(folder / name, part) for name, part in PARTS.items() if holds(folder / name)]
    if any(part == TRAIN for _, part in parts):
        return parts
    return [(folder, OPEN)] if holds(folder) else []


def read(path: Path, input_shape: tuple[int, ...] | None) -> Rows:
    """Rows of a folder with `images` and `masks` in it, or with `train`, `validation` and `test` folders of these.

    A mask is a PNG with one 8-bit number for each pixel, grey or with a palette: the index of the label, or 255 where it
    is not known. `labels.txt` has a label in each line, the first being that of index 0. Without it labels are
    `background`, `class1` and so on; and masks that hold 0 and 255 alone are taken for 0 and 1.

    Args:
        path: the folder.
        input_shape: `(height, width, channels)` of every image, which its mask follows; None where all have the same
            size already.

    Raises:
        ValueError: an image without a mask or the reverse, a mask of another size than its image, with several channels
            or with an index that no label has; the message names the file.
    """
    pairs = [(*pair, part) for place, part in parts_in(path) for pair in _pairs(place)]
    shape = images.check_shape(input_shape) if input_shape is not None else images.common_shape([i for i, *_ in pairs])
    masks = np.empty((len(pairs), *shape[:2]), np.uint8)
    named = _named(path / LABELS)
    seen = np.zeros(UNKNOWN + 1, bool)
    for row, (image, mask, _) in enumerate(pairs):
        size = images.open_image(image, None)[:2]
        found = _open_mask(mask)
        if found.shape != size:
            raise ValueError(
                f"the mask {mask} is {found.shape[1]}x{found.shape[0]} pixels, its image {size[1]}x{size[0]}; "
                "give a mask of the image's size"
            )
        values = np.unique(found)
        if named and values[values != UNKNOWN].max(initial=0) >= len(named):
            wrong = int(values[values != UNKNOWN].max())
            raise ValueError(
                f"the mask {mask} has the index {wrong}, {LABELS} names {len(named)} labels, 0 … {len(named) - 1}; "
                f"correct the mask, use {UNKNOWN} for pixels that are not known, or name the label"
            )
        seen[values] = True
        masks[row] = Masks().resized(found[None], size, shape)[0]
    if not named:
        if np.flatnonzero(seen).tolist() == [0, UNKNOWN]:
            masks[masks == UNKNOWN] = 1
            seen[1] = True
        highest = int(np.flatnonzero(seen[:UNKNOWN]).max(initial=0))
        named = ("background", *(f"class{place}" for place in range(1, highest + 1)))
    return Rows(
        name=path.resolve().name,
        task="segmentation",
        x={"image": lazy.read([image for image, *_ in pairs], shape)},
        y=masks,
        labels=named,
        source=f"{path.resolve().name}/",
        part=np.array([part for *_, part in pairs], np.int8),
    )


def checked(
    where: str, pictures: np.ndarray, y: np.ndarray, labels: tuple[str, ...]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Masks given as an array, as uint8 `(rows, height, width)`, and the labels' names.

    Args:
        where: file, for messages.
        pictures: uint8 `(rows, height, width, channels)`.
        y: whole numbers `(rows, height, width)`: indices of labels, 255 where not known.
        labels: their names, if known.

    Raises:
        ValueError: masks of another size than the images, of another type, or with an index that no label has; or more labels
            than a mask can hold.
    """
    if y.shape != pictures.shape[:3] or y.dtype.kind not in "biu":
        raise ValueError(
            f"{where}: masks must be whole numbers of shape {pictures.shape[:3]} as the images, got {y.dtype} {y.shape}"
        )
    if len(labels) > UNKNOWN:
        raise ValueError(
            f"{where} names {len(labels)} labels; a mask has 8 bits and {UNKNOWN} stands for what is not known, so there can be "
            f"{UNKNOWN} at most: join the rarest"
        )
    known = y[y != UNKNOWN]
    least, most = (int(known.min()), int(known.max())) if known.size else (0, 0)
    labels = labels or ("background", *(f"class{place}" for place in range(1, min(most, UNKNOWN - 1) + 1)))
    if least < 0 or most >= len(labels):
        row = int(((y != UNKNOWN) & ((y < 0) | (y >= len(labels)))).any(axis=(1, 2)).argmax())
        raise ValueError(
            f"{where}: the mask in row {row + 1} has indices in {least} … {most}, there are {len(labels)} labels; give "
            f"0 … {len(labels) - 1}, and {UNKNOWN} for pixels that are not known"
        )
    if len(labels) > 1 and least == most:
        only = repr(labels[least]) if known.size else "nothing that is known"
        raise ValueError(
            f"{where}: the masks hold {only} alone; give pictures that show at least two of the {len(labels)} labels"
        )
    return y.astype(np.uint8), labels


def _pairs(place: Path) -> list[tuple[Path, Path]]:
    """Each image with its mask, by name."""
    found = {}
    for kind in ("images", "masks"):
        files = [file for file in sorted((place / kind).iterdir()) if file.is_file() and not file.name.startswith(".")]
        found[kind] = {file.stem: file for file in files if file.name != "Thumbs.db"}
        if not files:
            raise ValueError(f"the folder {place / kind} is empty; add files, or remove it")
        if len(found[kind]) < len(files) and len({file.stem for file in files}) < len(files):
            twice = next(file for file in files if found[kind].get(file.stem) not in (file, None))
            raise ValueError(f"{twice} and {found[kind][twice.stem]} have the same name; rename one")
    for stem in sorted(found["images"].keys() ^ found["masks"].keys()):
        has, lacks = ("images", "masks") if stem in found["images"] else ("masks", "images")
        what = "mask" if lacks == "masks" else "image"
        raise ValueError(
            f"{found[has][stem]} has no {what}: {place / lacks} holds no file called {stem!r}; add or remove"
        )
    return [(file, found["masks"][stem]) for stem, file in found["images"].items()]


def _named(file: Path) -> tuple[str, ...]:
    if not file.is_file():
        return ()
    labels = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    if len(labels) < 2 or len(set(labels)) < len(labels) or len(labels) > UNKNOWN:
        raise ValueError(f"{file} must name 2 … {UNKNOWN} different labels, a line each, got {len(labels)}")
    return labels


def _open_mask(file: Path) -> np.ndarray:
    """Indices of a mask's pixels, uint8 `(height, width)`."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            mode = image.mode
            values = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
        raise ValueError(f"cannot read the mask {file}: {error}; repair or remove it") from error
    if mode not in ("1", "L", "P"):
        raise ValueError(
            f"the mask {file} has pixels of mode {mode!r}; save it with one 8-bit index for each pixel, grey or with a palette"
        )
    return values.astype(np.uint8)
