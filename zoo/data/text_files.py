"""Texts in files of the user: a column of a table, or a folder with one folder of `.txt` files for each class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zoo.data.rows import OPEN, PARTS, TRAIN, Rows
from zoo.registry import suggest

_MEMORY = 2**31  # bytes of all texts of a data set, as numpy holds them


def as_array(texts: Sequence[str], where: str, what: str = "text") -> np.ndarray:
    """Texts of a data set as an array `(rows,)`; `what` they are is for messages.

    Raises:
        ValueError: one is blank, or so long that all together would not fit in memory.
    """
    blank = next((row for row, text in enumerate(texts) if not text.strip()), None)
    if blank is not None:
        raise ValueError(f"{where}: the {what} in row {blank + 1} is empty; fill or remove the row")
    sizes = [len(text) for text in texts]
    if 4 * len(texts) * max(sizes, default=0) > _MEMORY:  # each takes as much as the longest, 4 bytes for a character
        longest = int(np.argmax(sizes))
        raise ValueError(
            f"{where}: the {what} in row {longest + 1} has {sizes[longest]:,} characters, too many for {len(texts):,} rows; shorten it"
        )
    return np.array(texts, np.str_)


def folders_in(folder: Path) -> dict[str, list[Path]]:
    """Files of text by the folder that they are in."""
    found = {path.name: sorted(path.glob("*.txt")) for path in sorted(folder.iterdir()) if path.is_dir()}
    return {name: files for name, files in found.items() if files}


def is_folder(folder: Path) -> bool:
    """Whether a folder, or its `train` folder, has folders of `.txt` files and of no others."""
    inside = folder / "train" if (folder / "train").is_dir() else folder
    found = [path for place in inside.iterdir() if place.is_dir() for path in place.glob("[!.]*")]
    return bool(found) and all(path.suffix == ".txt" for path in found)


def read_folder(path: Path) -> Rows:
    """Rows of a folder with one folder of `.txt` files for each class, or with `train` and others that have these.

    Raises:
        ValueError: a file is empty or no UTF-8, or a class is known from test or validation alone.
    """
    parts = {path / name: part for name, part in PARTS.items() if (path / name).is_dir()} or {path: OPEN}
    found = [
        (label, file, part)
        for place, part in parts.items()
        for label, files in folders_in(place).items()
        for file in files
    ]
    labels = tuple(sorted({label for label, _, _ in found}))
    learned = {label for label, _, part in found if part in (OPEN, TRAIN)}
    if set(labels) - learned:
        raise ValueError(
            f"{path}: class {min(set(labels) - learned)!r} has no text to train on; add some to {path / 'train'}"
        )
    texts = [contents(file).strip() for _, file, _ in found]
    return Rows(
        path.name,
        "text-classification",
        {"text": as_array(texts, str(path))},
        np.array([labels.index(label) for label, _, _ in found], np.int64),
        labels,
        source=path.name,
        part=np.array([part for _, _, part in found], np.int8),
    )


def contents(file: Path) -> str:
    """The text in a file.

    Raises:
        ValueError: it is empty or no UTF-8.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8 text; save it as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{file} holds a character NUL, which no text has; save it as UTF-8")
    if not text.strip():
        raise ValueError(f"{file} is empty; write its text, or remove it")
    return text


def column_of(path: Path, columns: dict[str, list | None], task: str | None, asked: str) -> str:
    """Name of the column whose texts are the input; "" where columns are categories and numbers.

    Args:
        path: file, for messages.
        columns: those besides the target, with their values where these are texts, None where they are not.
        task: as of `zoo.data.load`.
        asked: name of the column that is asked for, "" for none.

    Raises:
        ValueError: there is no such column of texts, or several could be meant.
    """
    if asked.count(",") == 1 and asked not in columns:  # a pair of columns
        names = [name.strip() for name in asked.split(",")]
        return ",".join(column_of(path, columns, task, name) for name in names)
    if asked and asked not in columns:
        raise ValueError(
            f"{path} has no column {asked!r} besides its target.{suggest(asked, columns)} It has {', '.join(columns)}"
        )
    if asked:
        if columns[asked] is None:
            raise ValueError(f"{path}: column {asked!r} holds no texts; name another one, or leave text= out")
        return asked
    if task not in (None, "classification", "text-classification"):
        return ""
    sure = task == "text-classification"
    found = [name for name, values in columns.items() if values is not None and (sure or _is_prose(values))]
    if len(found) == 1 and (sure or len(columns) == 1):
        return found[0]
    if found or sure:
        if not found:
            raise ValueError(f"{path}: no column besides the target holds texts; add one, or leave the task out")
        raise ValueError(
            f"{path}: column {found[0]!r} holds texts, and there are other columns; say text={found[0]!r} (--text {found[0]} on "
            "the command line) to read it alone, or remove it"
        )
    return ""


def _is_prose(values: list) -> bool:
    """Whether texts are of several words, and more than half of them different."""
    texts = [value for value in values if value]
    several = sum(len(text.split()) > 2 for text in texts)
    return bool(texts) and len(set(texts)) > max(20, len(texts) / 2) and several > len(texts) / 2


def of_column(
    path: Path,
    texts: list,
    chosen: str,
    y: np.ndarray,
    labels: tuple[str, ...],
    others: Sequence[str],
    second: list | None = None,
) -> Rows:
    """Rows of one column of texts, or of pairs with those of a second; `others` are not read, which the source says.

    Args:
        path: file.
        texts: values of the column, None where missing.
        chosen, y, labels: task, targets and labels, as `zoo.data.files.targets` gives them.
        others: names of the other columns.
        second: values of the column of the second texts, None where a row is one text.

    Raises:
        ValueError: the targets are values, or a text is missing.
    """
    if chosen != "classification":
        raise ValueError(
            f"{path}: the target holds {len(np.unique(y))} different numbers, and texts are for classification; "
            "give task='classification' if these are classes"
        )
    left_out = f"; columns not used: {', '.join(others)}" if others else ""
    x = {"text": as_array([text or "" for text in texts], str(path))}
    if second is not None:
        x["second"] = as_array([text or "" for text in second], str(path))
    return Rows(path.stem, "text-classification", x, y, labels, source=f"{path.name}{left_out}")


def of_texts(path: Path, texts: list, others: Sequence[str]) -> Rows:
    """Rows of texts alone, each one of its own; `others` are columns that are not read, which the source says.

    Raises:
        ValueError: a text is missing.
    """
    left_out = f"; columns not used: {', '.join(others)}" if others else ""
    x = {"text": as_array([text or "" for text in texts], str(path))}
    y = np.zeros((len(texts), 1), np.int32)
    return Rows(path.stem, "language-modelling", x, y, (), source=f"{path.name}{left_out}")


def answered(path: Path, texts: list, said: list, others: Sequence[str]) -> Rows:
    """Rows of texts and what they are answered by; `others` are columns that are not read, which the source says.

    Raises:
        ValueError: a text or an answer is missing.
    """
    left_out = f"; columns not used: {', '.join(others)}" if others else ""
    found = {"text": texts, "answer": said}
    x = {name: as_array([text or "" for text in part], str(path), name) for name, part in found.items()}
    y = np.zeros((len(texts), 1), np.int32)
    return Rows(path.stem, "text-to-text", x, y, (), source=f"{path.name}{left_out}")
