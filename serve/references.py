"""Which other files an ONNX file would have an engine open. Standard library only.

An ONNX file is a protobuf message whose tensors may name a file that holds their values. The walk below follows every
field that can hold a tensor, wherever a parser would find one, and steps over all else, so it costs a look at each node
and none at the weights.
Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto (field numbers).
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

DEEPEST = 100  # messages within messages, which is also where protobuf's own parsers stop
# message -> field that holds a message -> its kind
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_VARINT, _EIGHT, _LENGTH, _START, _END, _FOUR = range(6)


def referenced(path: Path) -> set[str]:
    """Names, as written in an ONNX file, of the files its tensors lie in; empty where it holds all of them itself.

    Raises:
        ValueError: the file is no protobuf message, or nests more than 100 deep.
    """
    if path.stat().st_size == 0:
        return set()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return set(_locations(content))


def _locations(content: mmap.mmap) -> Iterator[str]:
    waiting = [("model", 0, len(content), 0)]
    while waiting:
        kind, at, stop, depth = waiting.pop()
        if depth > DEEPEST:
            raise ValueError(f"it nests more than {DEEPEST} messages")
        fields = _FIELDS.get(kind, {})
        texts: dict[int, str] = {}
        while at < stop:
            tag, at = _varint(content, at, stop)
            wire = tag & 7
            if wire == _LENGTH:
                size, at = _varint(content, at, stop)
                if size > stop - at:
                    raise ValueError(f"a field at byte {at} is longer than the message around it")
                if kind == "entry":
                    texts[tag >> 3] = content[at : at + size].decode("utf-8", "surrogateescape")
                elif tag >> 3 in fields:
                    waiting.append((fields[tag >> 3], at, at + size, depth + 1))
                at += size
            elif wire == _VARINT:
                _, at = _varint(content, at, stop)
            elif wire in (_EIGHT, _FOUR):
                at += 8 if wire == _EIGHT else 4
                if at > stop:
                    raise ValueError(f"a field at byte {at} is longer than the message around it")
            else:  # groups, which ONNX does not have and a parser might read otherwise than this one
                raise ValueError(f"a field before byte {at} has wire type {wire}, which ONNX does not use")
        if texts.get(1) == "location":
            yield texts.get(2, "")


def _varint(content: mmap.mmap, at: int, stop: int) -> tuple[int, int]:
    """A number of up to 64 bits and the place behind it."""
    value = shift = 0
    while at < stop and shift < 70:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"a number at byte {at} has no end")
