"""Running text for language models: pieces of files, and which token follows which in them."""

import platform
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zoo.data import tokens
from zoo.data.targets import NOTHING
from zoo.data.texts import TextPreprocess

PIECE = 256  # characters
_OF = 10  # files of which one is tested on and one validated on
_LARGEST = 60_000  # characters of a file


def library(most: int = _LARGEST) -> tuple[np.ndarray, np.ndarray, str]:
    """Source of the modules of Python's own library that are one file, in pieces of 256 characters.

    Pieces that occur twice, such as licences, are there once. Larger files are left out, so that none outweighs others.

    Args:
        most: characters of a file.

    Returns:
        Texts `(rows,)`; the file that each is from, int64 `(rows,)`; and the version of Python.

    Raises:
        FileNotFoundError: the library of this interpreter is not there as source.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [file.read_text(encoding="utf-8") for file in sorted(root.glob("*.py"))]
    files = [text for text in files if len(text) <= most]
    if not files:
        raise FileNotFoundError(f"Python's library in {root} is not there as source; install it, or use other data")
    found: dict[str, int] = {}
    for number, text in enumerate(files):
        for start in range(0, len(text) - PIECE + 1, PIECE):
            found.setdefault(text[start : start + PIECE], number)
    return np.array(list(found)), np.array(list(found.values()), np.int64), platform.python_version()


def dealt(files: np.ndarray) -> np.ndarray:
    """The split of each piece by its file: of ten files in a row one is tested on and one validated on, int8 `(rows,)`."""
    part = np.zeros(len(files), np.int8)
    part[files % _OF == _OF // 2] = 1
    part[files % _OF == _OF - 1] = 2
    return part


def followed(step: TextPreprocess, texts: Sequence[str]) -> np.ndarray:
    """Targets of a language model, see `zoo.data.targets.Following`; int32 `(rows, 1 + length)`.

    Args:
        step: tokenizer with its length.
        texts: `(rows,)`.

    Raises:
        ValueError: the tokenizer has a token for what it does not know, which would be easy to foretell.
    """
    if step.unknown is not None:
        raise ValueError(
            "language modelling needs a tokenizer that knows every text, such as bpe:1000 or bpe:257, whose tokens are single "
            "bytes; this one has a token for what it does not know"
        )
    y = np.full((len(texts), 1 + step.length), NOTHING, np.int32)
    encoded = tokens.opened(step.tokenizer).encode_batch([str(text) for text in texts])
    for row, one in zip(y, encoded, strict=True):
        count = int(np.sum(one.attention_mask))
        row[1:count] = one.ids[1:count]
        ends = [end for (_, end), special in zip(one.offsets, one.special_tokens_mask, strict=True) if not special]
        # a token that opens the text foretells its first character, too
        row[0] = ends[-1] - (0 if one.special_tokens_mask[0] else ends[0]) if ends else 0
    return y


def spelled(step: TextPreprocess) -> tuple[str, ...]:
    """Every token in the order of its number, as it is written in the vocabulary."""
    tokenizer = tokens.opened(step.tokenizer)
    return tuple(tokenizer.id_to_token(number) or "" for number in range(step.vocabulary))
