"""Pictures with texts that tell what they show: generated ones, and tables of files and captions."""

from pathlib import Path
from typing import Any

import numpy as np

from zoo.data import images, lazy, text_files
from zoo.data import shapes as drawing
from zoo.data.rows import TEST, TRAIN, VALIDATION, Rows
from zoo.data.targets import Captions

COLUMN, TEXT = "image", "caption"  # columns of a table of pictures
PAINTED = "text-to-image"  # the task of the same rows for models that paint
KINDS = ("circle", "square", "triangle", "ring", "cross")
COLOURS = {
    "red": (205, 40, 40),
    "green": (40, 170, 60),
    "blue": (45, 70, 205),
    "yellow": (230, 210, 50),
    "white": (245, 245, 245),
    "black": (15, 15, 15),
    "pink": (245, 130, 190),
    "purple": (120, 30, 150),
}
SIZES = {"small": 0.19, "large": 0.29}  # radius as a share of the picture's side
PLACES = {  # where the middle of the shape is, as a share of the picture's sides
    "on the left": (0.3, 0.5),
    "on the right": (0.7, 0.5),
    "at the top": (0.5, 0.3),
    "at the bottom": (0.5, 0.7),
    "in the middle": (0.5, 0.5),
}
UNSEEN = {"red": "ring", "green": "triangle", "blue": "square", "yellow": "circle", "white": "cross", "black": "ring"}
LABELS = tuple(f"{colour} {kind}" for colour in COLOURS for kind in KINDS)
_WHOLE = (
    "a {size} {colour} {kind} {place}",
    "{place} there is a {size} {colour} {kind}",
    "the picture shows a {size} {kind} {place}, it is {colour}",
)
_PARTS = (
    "a picture of a {colour} {kind}",
    "a {colour} {kind} {place}",
    "something {colour} {place}",
    "a {size} {kind}",
    "a {kind}",
)
_INCOMPLETE = 0.4  # share of the training captions that do not tell everything


def unseen(label: str) -> bool:
    """Whether a colour and kind, such as "red ring", are together in no training row of `captioned`."""
    colour, kind = label.split()
    return UNSEEN.get(colour) == kind


def captioned(train: int, validation: int, test: int, size: int = 32, seed: int = 0) -> tuple[Any, ...]:
    """Pictures of one shape each, and a sentence on its size, colour, kind and place.

    Eight colours and five kinds make 40 pairs, of which the six in `UNSEEN` are in test rows alone.
    Some sentences of training rows leave something out; all others tell everything.

    Args:
        train, validation, test: rows of each split.
        size: height and width in pixels.
        seed: the same seed draws the same rows.

    Returns:
        Images uint8 `(rows, size, size, 3)`, texts, targets as `zoo.data.targets.Captions` has them, where sentences that
        say the same have one number, and the split of each row.
    """
    random = np.random.default_rng(seed)
    part = np.repeat(np.array([TRAIN, VALIDATION, TEST], np.int8), (train, validation, test))
    known = [label for label in LABELS if not unseen(label)]
    pictures = np.empty((len(part), size, size, 3), np.uint8)
    texts, numbers = [], []
    for row, split in enumerate(part):
        colour, kind = str(random.choice(LABELS if split == TEST else known)).split()
        facts = {
            "size": str(random.choice(list(SIZES))),
            "colour": colour,
            "kind": kind,
            "place": str(random.choice(list(PLACES))),
        }
        pictures[row] = _drawn(random, size, **facts)
        templates = _PARTS if split == TRAIN and random.random() < _INCOMPLETE else _WHOLE
        template = str(random.choice(templates))
        texts.append(template.format(**facts))
        numbers.append(_number({name: fact for name, fact in facts.items() if f"{{{name}}}" in template}))
    return pictures, np.array(texts, np.str_), Captions.packed(np.arange(len(part)), np.array(numbers)), part


def labelled(rows: int, size: int = 32, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Pictures as those of `captioned`, and the place of each in `LABELS`.

    Returns:
        Images uint8 `(rows, size, size, 3)` and int64 `(rows,)`; every label equally often.
    """
    random = np.random.default_rng(seed)
    pictures = np.empty((rows, size, size, 3), np.uint8)
    for row in range(rows):
        colour, kind = LABELS[row % len(LABELS)].split()
        facts = {"size": str(random.choice(list(SIZES))), "place": str(random.choice(list(PLACES)))}
        pictures[row] = _drawn(random, size, colour=colour, kind=kind, **facts)
    return pictures, np.arange(rows) % len(LABELS)


def _drawn(random: np.random.Generator, side: int, size: str, colour: str, kind: str, place: str) -> np.ndarray:
    x, y = side * (np.array(PLACES[place]) + random.uniform(-0.03, 0.03, 2))
    radius = side * SIZES[size] * random.uniform(0.9, 1.1)
    shade = np.clip(np.array(COLOURS[colour]) + random.uniform(-12, 12, 3), 0, 255)
    return drawing.single(random, side, kind, shade, float(x), float(y), float(radius))


def _number(told: dict[str, str]) -> int:
    """A number for what a sentence tells, whatever its words."""
    number = 0
    for name, known in (("size", SIZES), ("colour", COLOURS), ("kind", KINDS), ("place", PLACES)):
        number = number * (len(known) + 1) + (1 + list(known).index(told[name]) if name in told else 0)
    return number


def is_table(names: list[str], target: str | None) -> bool:
    """Whether a table with these columns is one of pictures and their captions."""
    return COLUMN in names and TEXT in names and target in (None, TEXT)


def read(path: Path, files: list[Any], texts: list[Any], input_shape: tuple[int, ...] | None) -> Rows:
    """Rows of a table with a file and a caption in each line; a file with several captions has several lines.

    Args:
        path: the table; files are looked for beside it.
        files: names of picture files.
        texts: what they show; captions that differ in capitals and spaces alone are the same.
        input_shape: `(height, width, channels)` of every picture; None where all have the same size already.

    Raises:
        ValueError: a file is missing or cannot be read, or a caption is empty; the message names the line.
    """
    for row, file in enumerate(files, 1):
        if not isinstance(file, str) or not (path.parent / file).is_file():
            raise ValueError(f"{path}: row {row} names the image {file!r}, and there is no such file; correct the name")
    places = [path.parent / file for file in files]
    shape = images.check_shape(input_shape) if input_shape is not None else images.common_shape(places)
    captions = text_files.as_array([str(text or "") for text in texts], str(path))
    _, pictures = np.unique(files, return_inverse=True)
    _, meanings = np.unique([" ".join(text.lower().split()) for text in captions.tolist()], return_inverse=True)
    return Rows(
        name=path.stem,
        task="image-text",
        x={"image": lazy.read(places, shape), "text": captions},
        y=Captions.packed(pictures, meanings),
        labels=(),
        source=path.name,
    )
