"""Running text for language models: pieces of files, and which token follows which in them."""

import platform
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zoo.data import text_files, tokens
from zoo.data.images import visible
from zoo.data.rows import Rows
from zoo.data.targets import NOTHING
from zoo.data.texts import TextPreprocess

TASK = "language-modelling"
PIECE = 256  # characters
_STRETCHES = 20  # that the text of too few files to be dealt whole is cut into
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
    texts, numbers = pieces([text if len(text) >= PIECE else "" for text in files])
    return np.array(texts), numbers, platform.python_version()


def pieces(files: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Texts in pieces of 256 characters, each there once, and the number of the text that each is from, int64 `(rows,)`.

    What is left behind the last whole piece of a text is left out; a shorter text is one piece. Blank ones are none.
    """
    found: dict[str, int] = {}
    for number, text in enumerate(files):
        for start in range(0, max(0, len(text) - PIECE) + 1, PIECE):
            piece = text[start : start + PIECE]
            if piece.strip():
                found.setdefault(piece, number)
    return list(found), np.array(list(found.values()), np.int64)


def is_folder(folder: Path, asked: bool) -> bool:
    """Whether a folder holds `.txt` files; and nothing else, unless it is `asked` for running text."""
    inside = visible(folder)
    found = [file for file in inside if file.suffix == ".txt" and file.is_file()]
    return bool(found) and (asked or len(found) == len(inside))


def read(path: Path) -> Rows:
    """Rows of a `.txt` file, or of those in a folder, in pieces; see `zoo.data.targets.Following` for what goes together.

    Pieces of one file stay in one split. One or two files are cut into consecutive stretches that do so.

    Raises:
        ValueError: a file is empty or no UTF-8.
    """
    files = [file for file in visible(path) if file.suffix == ".txt"] if path.is_dir() else [path]
    texts, numbers = pieces([text_files.contents(file) for file in files])
    if len(files) < 3:  # one for each split
        numbers = np.arange(len(texts)) * _STRETCHES // len(texts)
    name = path.resolve().name if path.is_dir() else path.stem
    x = {"text": text_files.as_array(texts, str(path), "piece")}
    return Rows(name, TASK, x, (1 + numbers[:, None]).astype(np.int32), (), source=path.resolve().name)


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
