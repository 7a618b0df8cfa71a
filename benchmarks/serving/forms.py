"""How a question is put to a server and its answer read: one pair of functions for each form of body."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from benchmarks.serving.load import Question
from serve.manifest import Manifest

TOLERANCE = 1e-4  # of probabilities, which batches of other sizes compute in another order

Builder = Callable[[Manifest, np.ndarray], tuple[bytes, dict[str, str]]]
Reader = Callable[[bytes, bytes], np.ndarray]


@dataclass(frozen=True)
class Form:
    """A way to write a question and to read the answer: body and headers, and head and body back to numbers."""

    build: Builder
    read: Reader


def _v2(manifest: Manifest, array: np.ndarray) -> tuple[bytes, dict[str, str]]:
    port = manifest.inputs[0]
    tensor = {"name": port.name, "shape": array.shape, "datatype": port.dtype, "data": array.ravel().tolist()}
    return msgspec.json.encode({"inputs": [tensor]}), {"Content-Type": "application/json"}


def _read_v2(head: bytes, body: bytes) -> np.ndarray:
    output = msgspec.json.decode(body)["outputs"][0]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def _v2_binary(manifest: Manifest, array: np.ndarray) -> tuple[bytes, dict[str, str]]:
    port, data = manifest.inputs[0], array.tobytes()
    tensor = {
        "name": port.name,
        "shape": array.shape,
        "datatype": port.dtype,
        "parameters": {"binary_data_size": len(data)},
    }
    header = msgspec.json.encode({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))}
    return header + data, headers


def _read_v2_binary(head: bytes, body: bytes) -> np.ndarray:
    lines = (line.partition(b":") for line in head.lower().split(b"\r\n"))
    length = next(int(value) for name, _, value in lines if name == b"inference-header-content-length")
    output = msgspec.json.decode(body[:length])["outputs"][0]
    size = output["parameters"]["binary_data_size"]
    return np.frombuffer(body[length : length + size], np.float32).reshape(output["shape"])


def _plain(manifest: Manifest, array: np.ndarray) -> tuple[bytes, dict[str, str]]:
    return msgspec.json.encode({"data": array.tolist()}), {"Content-Type": "application/json"}


def _read_plain(head: bytes, body: bytes) -> np.ndarray:
    answer = msgspec.json.decode(body)
    return np.array(answer["data"] if isinstance(answer, dict) else answer, np.float32)


def _raw(manifest: Manifest, array: np.ndarray) -> tuple[bytes, dict[str, str]]:
    return array.tobytes(), {"Content-Type": "application/octet-stream"}


def _read_raw(head: bytes, body: bytes) -> np.ndarray:
    return np.frombuffer(body, np.float32)


FORMS = {
    "v2": Form(_v2, _read_v2),
    "v2-binary": Form(_v2_binary, _read_v2_binary),
    "plain": Form(_plain, _read_plain),
    "raw": Form(_raw, _read_raw),
}


def raw_request(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """Everything that is sent for a POST."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def questions(
    form: str,
    path: str,
    manifest: Manifest,
    rows: np.ndarray,
    answers: np.ndarray,
    headers: dict[str, str] | None = None,
) -> list[Question]:
    """One question per row, each right if its answer is that row's."""
    made = []
    for row, expected in zip(rows, answers, strict=True):
        body, kind = FORMS[form].build(manifest, row[None])
        right = _close(FORMS[form].read, expected)
        made.append(Question(raw_request(path, body, {**kind, **(headers or {})}), right))
    return made


def _close(read: Reader, expected: np.ndarray) -> Callable[[bytes, bytes], bool]:
    def right(head: bytes, body: bytes) -> bool:
        found = read(head, body).ravel()
        return found.shape == expected.shape and bool(np.abs(found - expected).max() <= TOLERANCE)

    return right
