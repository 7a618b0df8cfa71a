"""Pictures that stay in their files until they are read, where all of them decoded would not fit in memory.

`read` gives an array where that takes at most `SHARE` of the machine's memory, and `Pictures` where it takes more. These
stand wherever such an array does: indexing them reads rows, in several threads, as uint8 of the same values. Only
`pick` and `joined` choose rows without reading them.
"""

import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data import cache
from zoo.machine import cores, memory

SHARE = (
    0.25  # of the machine's memory, up to which pictures are decoded once and kept; splitting them takes as much again
)
CHUNK = 256  # pictures that are decoded together

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Facts:
    """What one pass over all files finds out, a row for each file.

    Attributes:
        digests: hash of each picture, uint8 `(files, 16)`, that of `zoo.data.rows.digests`.
        sums, squares: of the values of each channel and of their squares, int64 `(files, channels)`.
    """

    digests: np.ndarray
    sums: np.ndarray
    squares: np.ndarray


@dataclass
class _Files:
    """Files of pictures, the shapes they are brought to one after the other, and what is known of them."""

    paths: list[str]
    shapes: tuple[Shape, ...]
    facts: Facts | None = field(default=None, repr=False)


class Pictures:
    """Rows of pictures in files; reads like a uint8 array `(rows, height, width, channels)`.

    An index, a slice or an array of rows reads these, in any form that numpy takes; `numpy.asarray` reads all.

    Args:
        files: the pictures.
        rows: which of them, and in which order.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, files: _Files, rows: np.ndarray):
        self.files, self.rows = files, rows

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self.rows), *self.files.shapes[-1])

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        first, *rest = index if isinstance(index, tuple) else (index,)
        if first is Ellipsis or first is None:
            return np.asarray(self)[index]
        found = self._read(self.rows[first])
        if not rest:
            return found
        return found[(*rest,)] if np.ndim(self.rows[first]) == 0 else found[(slice(None), *rest)]

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self), CHUNK):
            yield from self[start : start + CHUNK]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("pictures that are in files cannot be an array without being read; leave copy=False out")
        return self._read(self.rows).astype(dtype or self.dtype, copy=False)

    def __repr__(self) -> str:
        return f"Pictures(shape={self.shape}, in files)"

    def pick(self, rows: Any) -> "Pictures":
        """Some of the rows, unread: whatever would index an array of them."""
        return Pictures(self.files, self.rows[rows])

    def resized(self, shape: Shape) -> "Pictures":
        """The same pictures, each brought to another shape after it was brought to its own."""
        return Pictures(_Files(self.files.paths, (*self.files.shapes, shape)), self.rows)

    def digests(self) -> list[bytes]:
        """16-byte hash of each row, see `zoo.data.rows.digests`."""
        return [digest.tobytes() for digest in self._facts().digests[self.rows]]

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Sum of each channel's values over all rows, and of their squares, int64 `(channels,)`."""
        facts = self._facts()
        return facts.sums[self.rows].sum(axis=0), facts.squares[self.rows].sum(axis=0)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        paths, shapes = self.files.paths, self.files.shapes
        if np.ndim(rows) == 0:
            return _decoded(paths[int(rows)], shapes)
        found = np.empty((*rows.shape, *shapes[-1]), np.uint8)
        flat = found.reshape(-1, *shapes[-1])

        def fill(place: int) -> None:
            flat[place] = _decoded(paths[rows.flat[place]], shapes)

        for start in range(0, len(flat), CHUNK):
            for _ in _threads(os.getpid()).map(fill, range(start, min(len(flat), start + CHUNK))):
                pass
        return found

    def _facts(self) -> Facts:
        if self.files.facts is None:
            self.files.facts = _known(self.files)
        return self.files.facts


def read(files: Sequence[Path | str], shape: Shape) -> "np.ndarray | Pictures":
    """Pictures of files, uint8 `(files, height, width, channels)`, decoded if they fit into `SHARE` of the memory.

    Args:
        files: one for each row.
        shape: that each is brought to.

    Raises:
        ValueError: a file is no readable image; the message names it. Of pictures that stay in their files this comes
            when they are read first.
    """
    found = Pictures(_Files(list(map(str, files)), (shape,)), np.arange(len(files)))
    return found if found.nbytes > SHARE * memory() else np.asarray(found)


def pick(values: "np.ndarray | Pictures", rows: Any) -> "np.ndarray | Pictures":
    """`values[rows]`, but unread where the values are pictures in files."""
    return values.pick(rows) if isinstance(values, Pictures) else values[rows]


def joined(parts: "Sequence[np.ndarray | Pictures]") -> "np.ndarray | Pictures":
    """The rows of several arrays one after the other; unread where all are pictures of the same files."""
    first = parts[0]
    if isinstance(first, Pictures) and all(isinstance(part, Pictures) and part.files is first.files for part in parts):
        return Pictures(first.files, np.concatenate([part.rows for part in parts]))
    return np.concatenate(parts)


@functools.lru_cache(maxsize=1)
def _threads(process: int) -> ThreadPoolExecutor:
    """Threads that decode, of this process: one that was forked has none of its parent's."""
    return ThreadPoolExecutor(cores(), thread_name_prefix="pictures")


def _decoded(path: str, shapes: tuple[Shape, ...]) -> np.ndarray:
    from zoo.data import images

    found = images.open_image(Path(path), shapes[0])
    for shape in shapes[1:]:
        found = images.resize(found[None], shape)[0]
    return found


def _known(files: _Files) -> Facts:
    """Facts of all files, from the cache folder if none of them has changed since they were last read."""
    about = hashlib.blake2b(repr(files.shapes).encode(), digest_size=16)
    for path in files.paths:
        state = os.stat(path)
        about.update(f"{os.path.abspath(path)}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    kept = cache.folder("pictures", f"{about.hexdigest()}.npz")
    if kept.is_file():
        try:
            with np.load(kept, allow_pickle=False) as stored:
                return Facts(stored["digests"], stored["sums"], stored["squares"])
        except (OSError, ValueError, KeyError, EOFError):  # cut short, or of another version: read the pictures again
            pass
    facts = _passed(files)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_name(f"{kept.stem}.{os.getpid()}.part.npz")
        np.savez(part, digests=facts.digests, sums=facts.sums, squares=facts.squares)
        part.replace(kept)
    except OSError:  # a folder that cannot be written to costs another pass next time
        pass
    return facts


def _passed(files: _Files) -> Facts:
    """Facts of all files, each of which is decoded once."""
    count, channels = len(files.paths), files.shapes[-1][2]
    facts = Facts(
        np.zeros((count, 16), np.uint8), np.zeros((count, channels), np.int64), np.zeros((count, channels), np.int64)
    )

    def look(row: int) -> None:
        pixels = _decoded(files.paths[row], files.shapes)
        facts.digests[row] = np.frombuffer(hashlib.blake2b(pixels.tobytes(), digest_size=16).digest(), np.uint8)
        flat = pixels.reshape(-1, channels)
        facts.sums[row] = flat.sum(axis=0, dtype=np.int64)
        facts.squares[row] = np.square(flat, dtype=np.uint32).sum(axis=0, dtype=np.int64)

    for start in _shown(range(0, count, CHUNK), f"reading {count:,} pictures once"):
        for _ in _threads(os.getpid()).map(look, range(start, min(count, start + CHUNK))):
            pass
    return facts


def _shown(items: range, what: str) -> Iterable[int]:
    """The items, with a progress bar where standard error is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, description=what, console=console, transient=True) if console.is_terminal else items
