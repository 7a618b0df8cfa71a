"""Labels of the words of a text: marked parts of it as they are stored, and a label for each of a tokenizer's words.

Labels are "O" for a word outside, and "B-kind" and "I-kind" for the first and every further word of a marked part (BIO; Ramshaw &
Marcus 1995, arXiv:cmp-lg/9505040, with the B of Sang & Veenstra 1999, arXiv:cs/9907006). Words are those that the tokenizer
cuts into pieces; only the first piece of each has a label (Devlin et al. 2019, arXiv:1810.04805, section 5.3).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zoo.data import tokens
from zoo.data.rows import OPEN, PARTS, TRAIN, Rows
from zoo.data.targets import NOTHING, Tags
from zoo.data.text_files import as_array
from zoo.data.texts import TextPreprocess

TASK = "token-classification"
OUTSIDE = "O"
SUFFIX = ".conll"
_NAMES = PARTS | {"valid": PARTS["validation"], "dev": PARTS["validation"]}
_NEW_DOCUMENT = "-DOCSTART-"


class Word(NamedTuple):
    """A word of a text: the place of its first piece, and its characters from `start` to before `end`."""

    place: int
    start: int
    end: int


def tags_of(kinds: Iterable[str]) -> tuple[str, ...]:
    """Every label there is for these kinds of marked parts."""
    return (OUTSIDE, *(f"{border}-{kind}" for kind in kinds for border in "BI"))


def kinds_of(labels: Sequence[str]) -> list[str]:
    """Kinds of marked parts that all these labels are for."""
    return [label.partition("-")[2] for label in labels[1::2]]


def words(step: TextPreprocess, texts: Sequence[str], cut: bool = True) -> list[list[Word]]:
    """The words of each text, as far as they are in the tokens that the model takes, or all of them."""
    tokenizer = tokens.opened(step.tokenizer)
    if not cut:
        tokenizer.no_truncation()
    encoded = tokenizer.encode_batch([str(text) for text in texts])
    return [_words(one.word_ids, one.offsets) for one in encoded]


def _words(numbers: Sequence[int | None], offsets: Sequence[tuple[int, int]]) -> list[Word]:
    found: list[Word] = []
    last = None
    for place, (number, (start, end)) in enumerate(zip(numbers, offsets, strict=True)):
        if number is not None and number == last:
            found[-1] = found[-1]._replace(end=end)
        elif number is not None:
            found.append(Word(place, start, end))
        last = number
    return found


def tagged(step: TextPreprocess, texts: Sequence[str], spans: np.ndarray) -> np.ndarray:
    """Labels of the words of texts at the places of their first pieces, see `zoo.data.targets.Tags`.

    A word that is partly in a marked part counts as in it.

    Args:
        step: tokenizer with its length.
        texts: (rows,).
        spans: int32 (rows, most, 3): first character, the one behind the last, and index of the label "B-kind".

    Returns:
        int32 (rows, length), `NOTHING` at further pieces, special tokens and padding; behind these a column for each word that
        is cut, as many as the row with most of them has.
    """
    kept, every = words(step, texts), words(step, texts, cut=False)
    most = max(len(whole) - len(own) for own, whole in zip(kept, every, strict=True))
    y = np.full((len(texts), step.length + most), NOTHING, np.int32)
    for row, own, whole, marked in zip(y, kept, every, spans.tolist(), strict=True):
        begun = set()
        places = [*(word.place for word in own), *range(step.length, step.length + len(whole) - len(own))]
        for word, place in zip(whole, places, strict=True):
            row[place] = 0
            for first, stop, label in marked:
                if label != NOTHING and word.start < stop and word.end > first:
                    row[place] = label + (first in begun)
                    begun.add(first)
                    break
    return y


def entities(labels: Sequence[int]) -> set[tuple[int, int, int]]:
    """Marked parts that a sequence of labels holds: index of "B-kind", first word and the one behind the last.

    A part begins with B, and with I where no part of its kind was before it; so does conlleval (Sang & Buchholz 2000,
    arXiv:cs/0009008), and what counts by it.

    Args:
        labels: indices of labels, 0 for outside, odd for B and the next even one for I of the same kind.
    """
    found, kind, begin = set(), 0, 0
    for place, label in enumerate((*labels, 0)):
        own = label - 1 + label % 2 if label else 0  # of B
        if kind and (own != kind or label % 2):
            found.add((kind, begin, place))
            kind = 0
        if own and not kind:
            kind, begin = own, place
    return found


def is_folder(path: Path) -> bool:
    """Whether a folder holds files in columns for its splits."""
    return any((path / f"{name}{SUFFIX}").is_file() for name in _NAMES)


def read(path: Path) -> Rows:
    """Rows of a file in columns as those of CoNLL, or of a folder of such files.

    A line is a word, any other columns and its label; an empty line ends a text. Words are joined by spaces. A folder holds
    `train.conll` and any of `validation.conll` (or `valid`, `dev`) and `test.conll`.

    Raises:
        ValueError: a line has no label, or one of another form; the message names the line.
    """
    files = {path: OPEN}
    if path.is_dir():
        files = {path / f"{name}{SUFFIX}": part for name, part in _NAMES.items()}
        files = {file: part for file, part in files.items() if file.is_file()}
        if TRAIN not in files.values():
            raise ValueError(f"{path} has no train{SUFFIX} to learn from; add it")
    read_in = [(part, *text) for file, part in files.items() for text in _texts(file)]
    kinds = sorted({kind for _, _, marked in read_in for _, _, kind in marked})
    if not kinds:
        raise ValueError(f"{path} has no word with another label than {OUTSIDE}; there is nothing to learn")
    labels = tags_of(kinds)
    spans = [[(start, end, labels.index(f"B-{kind}")) for start, end, kind in marked] for _, _, marked in read_in]
    return Rows(
        path.stem,
        TASK,
        {"text": as_array([text for _, text, _ in read_in], str(path))},
        Tags.padded(spans),
        labels,
        source=path.name,
        part=np.array([part for part, _, _ in read_in], np.int8),
    )


def _texts(file: Path) -> list[tuple[str, list[tuple[int, int, str]]]]:
    """Texts of a file with their marked parts: first character, the one behind the last, and kind."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8 text; save it as UTF-8") from None
    found, own = [], []
    for number, line in enumerate((*lines, ""), 1):
        columns = line.split()
        if columns and columns[0] != _NEW_DOCUMENT:
            border, _, kind = columns[-1].partition("-")
            if len(columns) < 2 or not ((border in ("B", "I") and kind) or columns[-1] == OUTSIDE):
                raise ValueError(
                    f"{file}, line {number}: {line!r} must be a word and its label, {OUTSIDE}, B-kind or I-kind, with spaces or a tab "
                    "between; write it so"
                )
            own.append((columns[0], border, kind))
        elif own:
            found.append(_joined(own))
            own = []
    if not found:
        raise ValueError(f"{file} has no words; write one on each line, and its label behind it")
    return found


def _joined(own: list[tuple[str, str, str]]) -> tuple[str, list[tuple[int, int, str]]]:
    text, marked, last = "", [], ""
    for word, border, kind in own:
        text += " " * bool(text)
        start, text = len(text), text + word
        if kind and kind == last and border == "I":
            marked[-1] = (marked[-1][0], len(text), kind)
        elif kind:
            marked.append((start, len(text), kind))
        last = kind
    return text, marked
