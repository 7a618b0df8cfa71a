"""Boxes in COCO's format: one JSON file that lists images, categories and annotations, and the images beside it.

Format: https://cocodataset.org/#format-data, object detection. Boxes there are left, top, width and height.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data import images, lazy
from zoo.data.rows import OPEN, PARTS, Rows
from zoo.data.targets import NOTHING, Boxes

OVER = 1.0  # pixels by which a box may leave its image, as rounded ones do; it is cut there
_PART = re.compile(rf"(?:^|[_-])({'|'.join(PARTS)})\d*$")  # such as instances_train2017
_BESIDE = "put the images beside it, into the folder images, or into one of the same name, such as train2017"


def files_in(folder: Path) -> list[tuple[Path, int]]:
    """The annotation files of a folder with the split each is for; empty if the folder is in another format.

    They are `annotations.json`; or `train.json`, `val.json` and `test.json`, with whatever stands before that or digits
    behind, such as `instances_train2017.json`; all in the folder itself or in its folder `annotations`.
    """
    found = [
        file for place in (folder, folder / "annotations") if place.is_dir() for file in sorted(place.glob("*.json"))
    ]
    own = [file for file in found if file.stem.startswith("instances")] or found
    parts = [(file, PARTS[match[1]]) for file in own if (match := _PART.search(file.stem))]
    return parts or [(file, OPEN) for file in own if file.name == "annotations.json"]


def read(path: Path, input_shape: tuple[int, ...] | None) -> Rows:
    """Rows of an annotation file, or of a folder with one for each split.

    An image without annotations is a row without boxes. Crowds (`iscrowd`) are left out. Boxes may leave their image by
    a pixel and are cut there.

    Args:
        path: file or folder, see `files_in`.
        input_shape: `(height, width, channels)` of every image; None where all have the same size already.

    Raises:
        ValueError: a file is not in this format, or something in it cannot be right; the message names file and
            annotation.
    """
    sources = files_in(path) if path.is_dir() else [(path, OPEN)]
    if not sources:
        raise ValueError(f"{path} holds no annotations.json, nor train.json; give the annotation file itself")
    pictures: list[Path] = []
    boxes, kinds, parts, sizes = [], [], [], []
    labels: tuple[str, ...] = ()
    for file, part in sources:
        known, found = _annotations(file)
        if labels and known != labels:
            raise ValueError(f"{file} has the categories {', '.join(known)}, {sources[0][0]} has {', '.join(labels)}")
        labels = known
        pictures += [picture for picture, *_ in found]
        sizes += [size for _, size, *_ in found]
        boxes += [own for *_, own, _ in found]
        kinds += [own for *_, own in found]
        parts += [part] * len(found)
    shape = images.check_shape(input_shape) if input_shape is not None else images.common_shape(pictures)
    for row, (picture, (width, height)) in enumerate(zip(pictures, sizes, strict=True)):
        actual = images.open_image(picture, None)
        if actual[:2] != (height, width):
            raise ValueError(
                f"the image {picture} is {actual[1]}x{actual[0]} pixels, its annotations say {width}x{height}; "
                "correct them, or give the image they are for"
            )
        across, down = shape[1] / width, shape[0] / height
        boxes[row] = boxes[row] * np.array([across, down, across, down])
    return Rows(
        name=path.stem,
        task="detection",
        x={"image": lazy.read(pictures, shape)},
        y=Boxes.padded(boxes, kinds),
        labels=labels,
        source=path.resolve().name,
        part=np.array(parts, np.int8),
    )


def write(rows: Rows, folder: Path) -> Path:
    """Write rows of images with boxes as PNG files and `annotations.json`, which `read` takes; the path of that."""
    from PIL import Image

    (folder / "images").mkdir(parents=True)
    pixels, annotations = rows.x["image"], []
    _, height, width, channels = pixels.shape
    listed = [{"id": row, "file_name": f"{row:06}.png", "width": width, "height": height} for row in range(len(pixels))]
    for image, about in zip(pixels, listed, strict=True):
        Image.fromarray(image[..., 0] if channels == 1 else image).save(folder / "images" / about["file_name"])
    for row, place in np.argwhere(rows.y[..., 4] != NOTHING).tolist():
        left, top, right, bottom, kind = rows.y[row, place].tolist()
        annotations.append(
            {
                "id": len(annotations),
                "image_id": row,
                "category_id": int(kind),
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": 0,
            }
        )
    categories = [{"id": index, "name": label} for index, label in enumerate(rows.labels)]
    path = folder / "annotations.json"
    content = {"images": listed, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _annotations(file: Path) -> tuple[tuple[str, ...], list[tuple[Path, tuple[int, int], np.ndarray, np.ndarray]]]:
    """Labels, and of each image its path, (width, height), corners (count, 4) and labels' indices (count,)."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the annotations {file}: {error}; repair the file") from error
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise ValueError(f"{file} is not in COCO's format: it has no list {part!r}; give an annotation file")
    index, labels = _categories(file, content["categories"])
    found: dict[Any, tuple[str, tuple[int, int], list, list]] = {}
    for image in content["images"]:
        key, name = _of(file, "image", image, "id"), _of(file, "image", image, "file_name")
        size = (_of(file, "image", image, "width"), _of(file, "image", image, "height"))
        if not isinstance(key, int) or not isinstance(name, str):
            raise ValueError(
                f"{file}: an image's id must be an integer and its file_name text, got {key!r} and {name!r}"
            )
        if not all(isinstance(side, int) and side > 0 for side in size):
            raise ValueError(f"{file}: image {name!r} says it is {size[0]!r}x{size[1]!r} pixels; give its real size")
        if key in found:
            raise ValueError(f"{file}: two images have the id {key!r}; give each its own")
        found[key] = (name, size, [], [])
    for annotation in content["annotations"]:
        key, kind = (_of(file, "annotation", annotation, name) for name in ("image_id", "category_id"))
        where = f"{file}: annotation {annotation.get('id', '?')}"
        if not isinstance(key, int) or key not in found:
            raise ValueError(f"{where} is of image {key!r}, which is not listed; add the image, or remove it")
        name, size, boxes, kinds = found[key]
        if not isinstance(kind, int) or kind not in index:
            raise ValueError(
                f"{where} (image {name!r}) has the category {kind!r}; the categories are "
                f"{', '.join(f'{number} {labels[place]!r}' for number, place in list(index.items())[:20])}"
            )
        if not annotation.get("iscrowd"):
            boxes.append(_corners(_of(file, "annotation", annotation, "bbox"), size, f"{where} (image {name!r})"))
            kinds.append(index[kind])
    if not found:
        raise ValueError(f"{file} lists no images")
    folder = _folder(file, next(iter(found.values()))[0])
    rows = []
    for name, size, boxes, kinds in found.values():
        if not (folder / name).is_file():
            raise ValueError(f"{file} lists the image {name!r}, which is not in {folder}; add it, or remove its entry")
        rows.append((folder / name, size, np.array(boxes, np.float64).reshape(-1, 4), np.array(kinds, np.int64)))
    return labels, rows


def _categories(file: Path, listed: list) -> tuple[dict[int, int], tuple[str, ...]]:
    """Index of each category's id, and the names in the order of the ids."""
    names: dict[int, str] = {}
    for category in listed:
        key, name = _of(file, "category", category, "id"), _of(file, "category", category, "name")
        if not isinstance(key, int) or not isinstance(name, str):
            raise ValueError(f"{file}: a category's id must be an integer and its name text, got {key!r} and {name!r}")
        if key in names or name in names.values():
            raise ValueError(f"{file}: two categories have the id {key} or the name {name!r}; give each its own")
        names[key] = name
    if not names:
        raise ValueError(f"{file} lists no categories; a detector needs at least one")
    return {key: place for place, key in enumerate(sorted(names))}, tuple(names[key] for key in sorted(names))


def _of(file: Path, what: str, entry: Any, name: str) -> Any:
    if not isinstance(entry, dict) or name not in entry:
        about = f" {entry['id']!r}" if isinstance(entry, dict) and "id" in entry else ""
        raise ValueError(f"{file}: {what}{about} has no {name!r}; give it one")
    return entry[name]


def _corners(box: Any, size: tuple[int, int], where: str) -> list[float]:
    """Left, top, right, bottom of a box, cut at the edges of its image."""
    numbers = isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box)
    if not numbers or not all(map(math.isfinite, box)):
        raise ValueError(f"{where}: bbox must be [left, top, width, height] in pixels, got {box!r}")
    left, top, width, height = box
    if width <= 0 or height <= 0:
        raise ValueError(f"{where}: its box {box} has no area; correct its width and height, or remove it")
    if min(left, top) < -OVER or left + width > size[0] + OVER or top + height > size[1] + OVER:
        raise ValueError(
            f"{where}: its box {box} as [left, top, width, height] reaches outside the image of {size[0]}x{size[1]} "
            "pixels; correct it"
        )
    corners = [max(left, 0), max(top, 0), min(left + width, size[0]), min(top + height, size[1])]
    if corners[0] >= corners[2] or corners[1] >= corners[3]:
        raise ValueError(f"{where}: its box {box} lies beside the image of {size[0]}x{size[1]} pixels; correct it")
    return corners


def _folder(file: Path, name: str) -> Path:
    """Where the images of an annotation file are, found by the first of them."""
    above = file.parent.parent if file.parent.name == "annotations" else file.parent
    part = file.stem.rpartition("_")[2]
    places = [file.parent, above, above / "images", above / part, above / "images" / part]
    for place in places:
        if (place / name).is_file():
            return place
    raise ValueError(f"{file} lists the image {name!r}, which is not there; {_BESIDE}")
