"""What the server's front and its workers say to each other over a socket pair: frames of a header and raw bodies.

A frame is two lengths (8 bytes each, little endian), a MessagePack header, and the bodies of a batch one after another. A
body that holds binary tensors is placed so that they begin at a multiple of 64 bytes, as engines like to read them.
"""

import struct
from typing import Any

import msgspec

PREFIX = struct.Struct("<QQ")  # bytes of the header, bytes of all bodies
ALIGNMENT = 64

# Of one request: size in bytes, size of the JSON before its binary tensors (None without), "v2" or "v1".
Item = tuple[int, int | None, str]
# Of one answer: HTTP status, size in bytes, size of the JSON before binary tensors, rows, classes, confidences, headers.
Result = tuple[int, int, int | None, int, list[int] | None, list[float] | None, dict[str, str] | None]


class Run(msgspec.Struct, array_like=True, tag="run", gc=False):
    """Answer a batch; its bodies follow."""

    batch: int
    slot: int
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


_encoder = msgspec.msgpack.Encoder()
to_worker = msgspec.msgpack.Decoder(Run | Load | Unload)
to_front = msgspec.msgpack.Decoder(Hello | Loaded | Ran)


def frame(message: msgspec.Struct, bodies: list[bytes] | None = None) -> list[bytes]:
    """A message without alignment of its bodies, in pieces to be sent one after another."""
    header = _encoder.encode(message)
    bodies = bodies or []
    return [PREFIX.pack(len(header), sum(map(len, bodies))), header, *bodies]


def run_frame(batch: int, slot: int, requests: list[tuple[bytes, int | None, str]]) -> list[bytes]:
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
    header = _encoder.encode(Run(batch, slot, items))
    return [PREFIX.pack(len(header), end), header, *pieces]


def places(items: list[Item]) -> list[int]:
    """Where each body of a batch begins, counted from the end of the header."""
    found = []
    end = 0
    for size, header_length, _ in items:
        if header_length is not None:
            end += -(end + header_length) % ALIGNMENT
        found.append(end)
        end += size
    return found
