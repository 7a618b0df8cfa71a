"""How much memory a NumPy archive would take, asked before anything of it is unpacked. Standard library only."""

import ast
import lzma
import math
import re
import struct
import zipfile
import zlib
from pathlib import Path

LARGEST = 2**30  # bytes that all arrays of one archive may take
_HEADER = 10_000  # bytes of an array's header, as NumPy itself limits it
_MEMBERS = 1000
_TYPE = re.compile(r"[<>|=]?([biufcSU])(\d{1,9})")


def check(path: Path, largest: int = LARGEST) -> None:
    """Refuse an archive that unpacks to too much, holds pickled objects, or is damaged.

    Args:
        path: an `.npz` file.
        largest: bytes that its arrays may take together.

    Raises:
        ValueError: the message says which member and why.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len({member.filename for member in members}) < len(members):
                raise ValueError("two members have one name")
            if len(members) > _MEMBERS:
                raise ValueError(f"it has {len(members)} members, at most {_MEMBERS} are read")
            total = sum(member.file_size for member in members)
            if total > largest:
                raise ValueError(f"it unpacks to {total} bytes, at most {largest} are read")
            for member in members:
                if member.flag_bits & 1:
                    raise ValueError(f"{member.filename!r} is encrypted")
                with archive.open(member) as file:
                    _check_array(file.read(12 + _HEADER), member.filename, member.file_size)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, EOFError, OSError) as error:
        raise ValueError(f"it is no archive that can be read: {error}") from error


def _check_array(start: bytes, name: str, stored: int) -> None:
    """Compare what an array's header promises with the bytes that are there."""
    if start[:6] != b"\x93NUMPY" or len(start) < 12:
        raise ValueError(f"{name!r} is no array")
    wide = start[6] >= 2  # version 1 has two bytes of length, later ones four
    head = 12 if wide else 10
    length = struct.unpack_from("<I" if wide else "<H", start, 8)[0]
    if length > _HEADER or head + length > len(start):
        raise ValueError(f"{name!r} has a header of {length} bytes")
    try:
        header = ast.literal_eval(start[head : head + length].decode("utf-8").strip())
        kind, shape = header["descr"], header["shape"]
        known = _TYPE.fullmatch(kind) if isinstance(kind, str) else None
        counts = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise ValueError(f"{name!r} has a header that cannot be read") from error
    if known is None:
        raise ValueError(f"{name!r} holds values of type {kind!r}; only numbers and text are read, no objects")
    if not counts:
        raise ValueError(f"{name!r} has shape {shape!r}")
    size = int(known[2]) * (4 if known[1] == "U" else 1)
    if math.prod(shape) * size != stored - head - length:
        raise ValueError(
            f"{name!r} promises {math.prod(shape)} values of {size} bytes and holds {stored - head - length} bytes"
        )
