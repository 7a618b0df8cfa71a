"""Texts to the tokens that a model takes, by the `tokenizer.json` of its bundle; and what is refused before that."""

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np

from serve.errors import RequestError
from serve.manifest import BundleError, Manifest

LONGEST = 100_000  # characters of one text; what it has in tokens is not known before


class Tokenizer:
    """Texts as numbers, filled up or cut to the length that the file says.

    Attributes:
        length: tokens of a row.
    """

    def __init__(self, path: Path) -> None:
        """Read a `tokenizer.json`, which is data alone.

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
            self._read.encode_special_tokens = True  # as in training: who writes "[PAD]" means these letters
            self.length = int((self._read.padding or {})["length"])
        except Exception as error:  # the library raises bare exceptions
            raise BundleError(f"{path.name} cannot be used: {error}; export the bundle again") from error

    def __call__(self, texts: Iterable[str]) -> np.ndarray:
        """Tokens int32 (texts, length)."""
        return np.array([each.ids for each in self._read.encode_batch_fast(list(texts))], np.int32)

    def cut(self, texts: Iterable[str]) -> list[bool]:
        """Which texts have more tokens than the model takes."""
        return [bool(each.overflowing) for each in self._read.encode_batch_fast(list(texts))]


def opened(folder: Path, manifest: Manifest) -> Tokenizer | None:
    """The tokenizer of a bundle, None where its file takes no tokens."""
    name = manifest.preprocess.get("tokenizer")
    return Tokenizer(folder / name) if name else None


def check(texts: Iterable[str], name: str) -> None:
    """Refuse texts that say nothing, or too much.

    Raises:
        RequestError: one is empty, blank or too long.
    """
    for row, text in enumerate(texts, 1):
        if len(text) > LONGEST:
            message = (
                f"row {row} of {name!r} has {len(text):,} characters, at most {LONGEST:,} are read; send a part of it"
            )
            raise RequestError("too_large", message, 413)
        if not text.strip():
            raise RequestError("bad_value", f"row {row} of {name!r} is empty; write something")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:  # half of a character, which JSON can name
                raise RequestError("bad_encoding", f"row {row} of {name!r} is no Unicode text; send UTF-8") from None


def notes(folder: Path, manifest: Manifest, texts: list[str], first: int = 0) -> list[str]:
    """Which texts are cut, for people; `first` is the number of rows before them.

    Texts that `check` refuses are left to it.
    """
    if not texts or max(map(len, texts)) > LONGEST:
        return []
    path = folder / manifest.preprocess["tokenizer"]
    tokenizer = _remembered(path, path.stat().st_mtime_ns)
    cut = [str(row) for row, long in enumerate(tokenizer.cut(texts), first + 1) if long]
    if not cut:
        return []
    rows = f"row{'s' if len(cut) > 1 else ''} {', '.join(cut[:20])}{' …' if len(cut) > 20 else ''}"
    return [f"{rows}: only the first {tokenizer.length} tokens were read, the rest was cut off"]


@lru_cache(maxsize=8)
def _remembered(path: Path, _changed: int) -> Tokenizer:
    return Tokenizer(path)
