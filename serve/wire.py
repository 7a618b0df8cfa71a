"""What the server's front and its workers say to each other over a socket pair: frames of a header and raw bodies.

A frame is two lengths (8 bytes each, little endian), a MessagePack header, and from the next multiple of 64 bytes the
bodies of a batch one after another. A body that holds binary tensors is placed so that they begin at such a multiple
too, as engines like to read them.
"""

import os
import select
import struct
import time
from typing import Any

import msgspec
import numpy as np

PREFIX = struct.Struct("<QQ")  # bytes of the header, bytes of all bodies
ALIGNMENT = 64
# seconds of looking for the other side's next frame before sleeping: to wake up takes longer than to look
GLANCE = 200e-6
BUFFER = 2**20  # bytes that are received at a time

# Of one request: size in bytes, size of the JSON before its binary tensors (None without), "v2" or "v1".
Item = tuple[int, int | None, str]
# Of a text that is being continued: its number, HTTP status, size in bytes, size of the JSON before binary tensors, tokens
# so far, rows once it has ended and 0 before, headers.
Part = tuple[int, int, int, int | None, int, int, dict[str, str] | None]
# Of one answer: HTTP status, size in bytes, size of the JSON before binary tensors, rows, classes, values, headers.
Result = tuple[int, int, int | None, int, list[int] | None, list[float] | None, dict[str, str] | None]


class Run(msgspec.Struct, array_like=True, tag="run", gc=False):
    """Answer a batch; its bodies follow.

    Attributes:
        alone: nothing else is asked at the time, so the next frame is worth looking for.
    """

    batch: int
    slot: int
    alone: bool
    items: list[Item]


class Load(msgspec.Struct, array_like=True, tag="load"):
    """Verify and open a bundle under a number; other batches are answered meanwhile.

    Attributes:
        digest: of the bundle that the front verified, whose signature it may have checked; any bundle will do if empty.
    """

    slot: int
    folder: str
    options: dict[str, Any]
    digest: str = ""


class Unload(msgspec.Struct, array_like=True, tag="unload"):
    """Forget what was opened under a number."""

    slot: int


class Begin(msgspec.Struct, array_like=True, tag="begin", gc=False):
    """Continue a text; the request's body follows.

    Attributes:
        number: under which its parts come back.
        kind: how the body is to be read, see `serve.continuations`.
    """

    number: int
    slot: int
    header_length: int | None
    kind: str


class Drop(msgspec.Struct, array_like=True, tag="drop", gc=False):
    """Nobody waits for a text any more."""

    number: int


class Hello(msgspec.Struct, array_like=True, tag="hello"):
    """The worker has started."""


class Loaded(msgspec.Struct, array_like=True, tag="loaded"):
    """A bundle is open, or refused for a reason.

    Attributes:
        engine: what computes.
        memory: bytes by which the process grew, at least the size of the model's files.
        seconds: time of one golden row, 0 without golden rows.
        reason: why it is refused, empty if it is open.
    """

    slot: int
    engine: str = ""
    memory: int = 0
    seconds: float = 0.0
    reason: str = ""


class Ran(msgspec.Struct, array_like=True, tag="ran", gc=False):
    """Answers to a batch, in the order of its items; their bodies follow.

    Attributes:
        seconds: that the worker took.
        drift: what `serve.drift` counted of the batch, None if it counted nothing.
    """

    batch: int
    seconds: float
    results: list[Result]
    drift: dict[str, Any] | None = None


class Said(msgspec.Struct, array_like=True, tag="said", gc=False):
    """What a step added to the texts of one version; bodies follow."""

    slot: int
    parts: list[Part]


_encoder = msgspec.msgpack.Encoder()
to_worker = msgspec.msgpack.Decoder(Run | Load | Unload | Begin | Drop)
to_front = msgspec.msgpack.Decoder(Hello | Loaded | Ran | Said)


def frame(message: msgspec.Struct, bodies: list[bytes] | None = None) -> list[bytes]:
    """A message without alignment of each body, in pieces to be sent one after another."""
    return _frame(message, bodies or [], sum(map(len, bodies or ())))


def run_frame(batch: int, slot: int, alone: bool, requests: list[tuple[bytes, int | None, str]]) -> list[bytes]:
    """A batch of (body, header length, protocol), in pieces to be sent one after another."""
    items: list[Item] = []
    pieces: list[bytes] = []
    end = 0
    for body, header_length, protocol in requests:
        size = len(body)
        items.append((size, header_length, protocol))
        if header_length is not None and (gap := -(end + header_length) % ALIGNMENT):
            pieces.append(bytes(gap))
            end += gap
        pieces.append(body)
        end += size
    return _frame(Run(batch, slot, alone, items), pieces, end)


def _frame(message: msgspec.Struct, pieces: list[bytes], size: int) -> list[bytes]:
    header = _encoder.encode(message)
    gap = bytes(-(PREFIX.size + len(header)) % ALIGNMENT)
    return [PREFIX.pack(len(header), size) + header + gap, *pieces]


def places(items: list[Item]) -> list[int]:
    """Where each body of a batch begins, counted from the first."""
    found = []
    end = 0
    for size, header_length, _ in items:
        if header_length is not None:
            end += -(end + header_length) % ALIGNMENT
        found.append(end)
        end += size
    return found


class Inbox:
    """Bytes as they are received, cut into frames.

    Args:
        decoder: of the messages.
        kept: bytes of a buffer that, once a large frame needed it, stays for the next one.
    """

    def __init__(self, decoder: msgspec.msgpack.Decoder, kept: int = BUFFER) -> None:
        self._decoder = decoder
        self._kept = kept
        self._buffer = _aligned(BUFFER)
        self._held = 0  # bytes that are received and not dropped
        self._size = 0  # bytes of the frame at the beginning, as far as is known

    def room(self) -> memoryview:
        """Where the next bytes are to be written."""
        return self._buffer[self._held :]

    def missing(self) -> memoryview:
        """Where the rest of a frame is to be written that has begun, empty if none has."""
        return self._buffer[self._held : self._size]

    def add(self, count: int) -> None:
        """So many bytes were written."""
        self._held += count

    def take(self) -> tuple[Any, memoryview] | None:
        """The first frame's message and its bodies, which are overwritten after `drop`; None until it is whole."""
        if self._held < PREFIX.size:
            return None
        head, rest = PREFIX.unpack_from(self._buffer)
        end = PREFIX.size + head
        start = end + -end % ALIGNMENT
        self._size = start + rest
        if self._size > len(self._buffer):
            self._resize(self._size)
        if self._held < self._size:
            return None
        return self._decoder.decode(self._buffer[PREFIX.size : end]), self._buffer[start : self._size]

    def drop(self) -> None:
        """Forget the frame that was taken."""
        left = self._held - self._size
        if left:
            self._buffer[:left] = bytes(self._buffer[self._size : self._held])
        self._held, self._size = left, 0
        if len(self._buffer) > self._kept >= left:
            self._resize(max(BUFFER, left))

    def _resize(self, size: int) -> None:
        buffer = _aligned(size)
        buffer[: self._held] = self._buffer[: self._held]
        self._buffer = buffer


def glance(poll: select.poll) -> bool:
    """Look for a moment whether something has arrived."""
    end = time.perf_counter() + GLANCE
    while not poll.poll(0):
        if time.perf_counter() > end:
            return False
        os.sched_yield()
    return True


def _aligned(size: int) -> memoryview:
    """A buffer that begins at a multiple of `ALIGNMENT` bytes."""
    whole = np.empty(size + ALIGNMENT, np.uint8)
    start = -whole.ctypes.data % ALIGNMENT
    return whole.data[start : start + size]
