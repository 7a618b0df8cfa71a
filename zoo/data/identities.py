"""Pictures by whose they are: a folder of people's photographs with pairs to judge on, and handwritten numbers.

`pairs.txt` has the format of Labeled Faces in the Wild (Huang et al. 2007): a line `folds pairs`; then for each fold so
many lines `name number number`, two pictures of one person, and as many `name number name number`, of two. A picture is
`name/name_0001.jpg`, with four digits of its number.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np

from zoo.data import images, lazy
from zoo.data.rows import OPEN, TEST, TRAIN, VALIDATION, Rows
from zoo.data.targets import Identities

PAIRS = "pairs.txt"
_FOLDS = 10  # that pairs of a file without folds are dealt to
_NUMBERS = ((TRAIN, 64, 40), (VALIDATION, 16, 50), (TEST, 20, 50))  # split, numbers in it, pictures of each
_SHARES = (0.6, 0.8)  # of the written digits, up to which they are for training, and for validation

Picture = tuple[str, int]  # name of a person and number of the picture


def read_folder(path: Path, input_shape: tuple[int, ...] | None) -> Rows:
    """Rows of a folder with one folder of pictures for each person, and perhaps `pairs.txt`.

    People that `pairs.txt` names are the test split, with the pictures that stand in a pair; all others are dealt whole
    to training and validation. Without pairs, or with an empty file, people are dealt to all three splits.

    Args:
        path: the folder.
        input_shape: `(height, width, channels)` of every image; None where all have the same size already.

    Raises:
        ValueError: a line of `pairs.txt` that cannot be used, too few people, or a file that is no readable image; the
            message names line or file.
    """
    people = {place.name: images.pictures_in(place) for place in images.visible(path) if place.name != PAIRS}
    pairs = _read_pairs(path / PAIRS, people) if (path / PAIRS).is_file() else []
    judged = _pictures(path / PAIRS, pairs, people)
    named = {name for name, _ in judged}
    left = len(people) - len(named)
    if named and left < 2:
        raise ValueError(
            f"{path}: {PAIRS} names {len(named)} of its {len(people)} people, which leaves {left}; training and validation "
            "need at least two more people"
        )
    if not named and left < 4:
        raise ValueError(f"{path} has {left} people; training, validation and test need at least four")
    files = [file for name, own in people.items() if name not in named for file in own]
    files += judged.values()
    labels = {name: place for place, name in enumerate(sorted(people))}
    shape = images.check_shape(input_shape) if input_shape is not None else images.common_shape(files)
    first = len(files) - len(judged)
    rows = {picture: first + place for place, picture in enumerate(judged)}
    part = np.full(len(files), OPEN, np.int8)
    part[first:] = TEST
    return Rows(
        name=path.resolve().name,
        task="embedding",
        x={"image": lazy.read(files, shape)},
        y=Identities.packed(
            np.array([labels[file.parent.name] for file in files], np.int64),
            [(rows[one], rows[other], fold) for one, other, fold, _ in pairs],
        ),
        labels=(),
        source=f"{path.resolve().name}/",
        part=part,
    )


def _read_pairs(path: Path, people: dict[str, list[Path]]) -> list[tuple[Picture, Picture, int, int]]:
    """Pairs of pictures with their fold and their line."""
    lines = [
        (number, [cell.strip() for cell in (line.split("\t") if "\t" in line else line.split())])
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if line.strip()
    ]
    if not lines:
        return []
    number, header = lines.pop(0)
    if not 1 <= len(header) <= 2 or not all(cell.isdecimal() for cell in header):
        raise ValueError(
            f"{path}, line {number}: the first line must be the number of folds and of pairs in each, such as '10 300', "
            f"got {' '.join(header)!r}"
        )
    *folds, count = map(int, header)
    wanted = 2 * count * (folds[0] if folds else 1)
    if len(lines) != wanted:
        raise ValueError(
            f"{path}: line {number} promises {wanted} pairs, {count} of one person and {count} of two in each fold, "
            f"and {len(lines)} lines follow; mend one of them"
        )
    found = []
    for place, (number, cells) in enumerate(lines):
        same = place % (2 * count) < count
        form = "name number number" if same else "name number name number"
        numbers = cells[1:3] if same else cells[1::2]
        if len(cells) != (3 if same else 4) or not all(cell.isdecimal() for cell in numbers):
            raise ValueError(f"{path}, line {number}: {form!r} is due here, got {' '.join(cells)!r}")
        one = cells[0], int(numbers[0])
        other = cells[0 if same else 2], int(numbers[1])
        if (one[0] == other[0]) != same or one == other:
            raise ValueError(
                f"{path}, line {number}: two pictures of {'one person' if same else 'two people'} are due here, got "
                f"{' '.join(cells)!r}"
            )
        for name, _ in (one, other):
            if name not in people:
                raise ValueError(f"{path}, line {number}: there is no folder {name!r} beside this file")
        found.append((one, other, place // (2 * count) if folds and folds[0] > 1 else place % _FOLDS, number))
    return found


def _pictures(path: Path, pairs: list, people: dict[str, list[Path]]) -> dict[Picture, Path]:
    """Files of the pictures in pairs, in the order in which they occur."""
    stems: dict[str, dict[str, Path]] = defaultdict(dict)
    for name in {picture[0] for pair in pairs for picture in pair[:2]}:
        stems[name] = {file.stem: file for file in people[name]}
    found = {}
    for one, other, _, line in pairs:
        for name, number in (one, other):
            stem = f"{name}_{number:04d}"
            if stem not in stems[name]:
                raise ValueError(f"{path}, line {line}: there is no picture {stem} in {path.parent / name}")
            found[name, number] = stems[name][stem]
    return found


def handwritten_numbers(digits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures of the numbers 00 … 99, each of two handwritten digits side by side.

    No number is in two splits, and no written digit is in pictures of two splits.

    Args:
        digits: uint8 `(rows, height, width, 1)`.
        labels: digit of each, `(rows,)`.

    Returns:
        Pictures uint8 `(pictures, height, 2 * width, 1)`, their numbers int64, and their splits int8.
    """
    random = np.random.default_rng(0)
    pool = np.empty(len(labels), np.int8)
    for digit in range(10):
        rows = random.permutation(np.flatnonzero(labels == digit))
        pool[rows] = np.searchsorted(_SHARES, np.arange(len(rows)) / len(rows), side="right")
    left = random.permutation(100).tolist()
    pictures, identities, part = [], [], []
    for place, (split, count, copies) in enumerate(_NUMBERS):
        for number in sorted(left.pop() for _ in range(count)):
            tens, ones = (
                digits[random.choice(np.flatnonzero((labels == digit) & (pool == place)), copies)]
                for digit in divmod(number, 10)
            )
            pictures.append(np.concatenate([tens, ones], axis=2))
            identities += [number] * copies
            part += [split] * copies
    return np.concatenate(pictures), np.array(identities, np.int64), np.array(part, np.int8)
