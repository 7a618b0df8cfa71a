"""Texts to the tokens that a model takes, by the `tokenizer.json` of its bundle; and what is refused before that."""

import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from serve.errors import RequestError
from serve.manifest import Bundle, BundleError, Manifest

MASKS = ("[MASK]", "<mask>")
LONGEST = 100_000  # characters of one text; what it has in tokens is not known before


class Word(NamedTuple):
    """Part of a text: the place of its first token, and its characters from `start` to before `end`."""

    place: int
    start: int
    end: int


class Read(NamedTuple):
    """What a tokenizer makes of a text: its words, and the masks in it, as far as a model sees them."""

    text: str
    words: tuple[Word, ...]
    masks: tuple[Word, ...]


class Tokenizer:
    """Texts as numbers, filled up or cut to the length that the file says.

    Attributes:
        length: tokens of a row.
    """

    def __init__(self, path: Path, marks: bool = False) -> None:
        """Read a `tokenizer.json`, which is data alone; `marks` says that `[MASK]` in a text is that token.

        Raises:
            BundleError: the library is not installed, or cannot read the file.
        """
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the workers are as many as the cores
        try:
            from tokenizers import Tokenizer as Read
        except ImportError as error:
            raise BundleError("texts need the library tokenizers; run: pip install tokenizers") from error
        try:
            self._read = Read.from_file(str(path))
            self._read.encode_special_tokens = not marks  # as in training: who writes "[PAD]" means these letters
            self.length = int((self._read.padding or {})["length"])
        except Exception as error:  # the library raises bare exceptions
            raise BundleError(f"{path.name} cannot be used: {error}; export the bundle again") from error

    def __call__(self, *texts: Iterable[str]) -> tuple[np.ndarray, list[bool]]:
        """Tokens int32 (texts, length), of two lists of texts those of the pairs; and which had more than the model takes."""
        read = self._read.encode_batch_fast(_rows(texts))
        return np.array([each.ids for each in read], np.int32), [bool(each.overflowing) for each in read]

    def read(self, texts: list[str]) -> list[Read]:
        """Words and masks of each text."""
        mask = next((n for n in map(self._read.token_to_id, MASKS) if n is not None), -1)
        found = []
        for text, each in zip(texts, self._read.encode_batch(texts), strict=True):
            words: list[Word] = []
            masks: list[Word] = []
            last = None
            for place, (number, own, (start, end)) in enumerate(
                zip(each.ids, each.word_ids, each.offsets, strict=True)
            ):
                if number == mask and end > start:
                    masks.append(Word(place, start, end))
                if own is not None and own == last:
                    words[-1] = words[-1]._replace(end=end)
                elif own is not None:
                    words.append(Word(place, start + len(text[start:end]) - len(text[start:end].lstrip()), end))
                last = own
            found.append(Read(text, tuple(words), tuple(masks)))
        return found


def _rows(texts: tuple[Iterable[str], ...]) -> list:
    return list(texts[0]) if len(texts) == 1 else list(zip(*texts, strict=True))


def opened(folder: Path, manifest: Manifest) -> Tokenizer | None:
    """The tokenizer of a bundle, None where its file takes no tokens."""
    name = manifest.preprocess.get("tokenizer")
    return Tokenizer(folder / name, manifest.preprocess.get("marks", False)) if name else None


def read(folder: Path, manifest: Manifest, texts: list[str]) -> list[Read]:
    """Words and masks of texts, for what tells of them by their characters."""
    return _opened(folder, manifest).read(texts)


def _opened(folder: Path, manifest: Manifest) -> Tokenizer:
    path = folder / manifest.preprocess["tokenizer"]
    return _remembered(path, path.stat().st_mtime_ns, manifest.preprocess.get("marks", False))


def check(texts: Iterable[str], name: str) -> None:
    """Refuse texts that say nothing, or too much.

    Raises:
        RequestError: one is empty, blank or too long.
    """
    for row, text in enumerate(texts, 1):
        check_one(text, f"row {row} of {name!r}")


def check_one(text: str, what: str) -> None:
    """Refuse a text that says nothing, or too much; `what` names it in the message.

    Raises:
        RequestError: it is empty, blank or too long.
    """
    if len(text) > LONGEST:
        message = f"{what} has {len(text):,} characters, at most {LONGEST:,} are read; send a part of it"
        raise RequestError("too_large", message, 413)
    if not text.strip():
        raise RequestError("bad_value", f"{what} is empty; write something")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # half of a character, which JSON can name
            raise RequestError("bad_encoding", f"{what} is no Unicode text; send UTF-8") from None


def notes(folder: Path, manifest: Manifest, inputs: Sequence[list[str]], first: int = 0) -> list[str]:
    """Which texts, or pairs of them, are cut, for people; `first` is the number of rows before them.

    Texts that `check` refuses are left to it.
    """
    if not inputs[0] or max(len(text) for texts in inputs for text in texts) > LONGEST:
        return []
    tokenizer = _opened(folder, manifest)
    return told(tokenizer(*inputs)[1], tokenizer.length, first)


def notes_of(bundle: Bundle, inputs: dict[str, np.ndarray], first: int = 0) -> list[str]:
    """`notes` of raw inputs by name; none for a model that takes no texts."""
    if "tokenizer" not in bundle.manifest.preprocess:
        return []
    rows = [inputs[port.name].tolist() for port in bundle.manifest.inputs if port.dtype == "BYTES"]
    return notes(bundle.folder, bundle.manifest, rows, first)


def told(cut: Sequence[bool], length: int, first: int = 0) -> list[str]:
    """The same of rows that are known to be `cut`, behind so many tokens."""
    numbers = [str(row) for row, long in enumerate(cut, first + 1) if long]
    if not numbers:
        return []
    rows = f"row{'s' if len(numbers) > 1 else ''} {', '.join(numbers[:20])}{' …' if len(numbers) > 20 else ''}"
    return [f"{rows}: only the first {length} tokens were read, the rest was cut off"]


@lru_cache(maxsize=8)
def _remembered(path: Path, _changed: int, marks: bool) -> Tokenizer:
    return Tokenizer(path, marks)
