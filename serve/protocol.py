"""Open Inference Protocol v2 and TensorFlow Serving's v1: bytes to named arrays and back. No HTTP, no model.

Sources:
    https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
    https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
    https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md
    https://www.tensorflow.org/tfx/serving/api_rest

Arrays here are as the engines take them: BYTES are object arrays of str, and BF16, which NumPy lacks, is float32.
"""

import base64
import binascii
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from serve.errors import RequestError, shown
from serve.manifest import Manifest, Port
from serve.tensors import (
    DTYPES,
    LARGEST_SIZE,
    MOST_AXES,
    SMALL,
    bytes_of,
    decode_json,
    from_binary,
    from_json,
    rows_of,
    starts_with_lists,
    to_array,
    to_binary,
)

EXTENSIONS = ("binary_tensor_data", "classification", "model_repository", "model_configuration")
SIGNATURE = "serving_default"  # the one signature of every model, as TensorFlow Serving calls it


@dataclass(slots=True)
class Wanted:
    """One output a request asks for.

    Attributes:
        name: of the output.
        binary: whether it goes after the JSON as raw bytes.
        classification: how many of the highest values to give as "value:index:label" instead of the values; 0 for the
            values themselves.
    """

    name: str
    binary: bool = False
    classification: int = 0


@dataclass(slots=True)
class Request:
    """An infer request.

    Attributes:
        inputs: arrays by name; binary ones are views on the body where its bytes lie aligned.
        outputs: what is asked for; None for every output.
        id: comes back in the answer; None if not sent.
        parameters: of the request as a whole.
        binary: whether outputs go out as raw bytes where `outputs` does not say.
        columns: for v1 only: whether the inputs came as columns, and the outputs go out as columns.
    """

    inputs: dict[str, np.ndarray]
    outputs: list[Wanted] | None = None
    id: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    binary: bool = False
    columns: bool = False

    @property
    def names(self) -> list[str] | None:
        """Names of the outputs asked for; None for every output."""
        return [output.name for output in self.outputs] if self.outputs else None


class _TensorParameters(msgspec.Struct):
    binary_data_size: int | None = None
    shared_memory_region: str | None = None


class _Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw = msgspec.Raw(b"")
    parameters: _TensorParameters | None = None


class _OutputParameters(msgspec.Struct):
    binary_data: bool | None = None
    classification: int | None = None
    shared_memory_region: str | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: _OutputParameters | None = None


class _Infer(msgspec.Struct):
    """Body of an infer request."""

    inputs: list[_Tensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[_Output] | None = None


class _Answer(msgspec.Struct):
    """Body of the answer to an infer request."""

    outputs: list[_Tensor]


class _Predict(msgspec.Struct):
    """Body of a v1 predict request."""

    instances: msgspec.Raw = msgspec.Raw(b"")
    inputs: msgspec.Raw = msgspec.Raw(b"")
    signature_name: str | None = None


_INFER = msgspec.json.Decoder(_Infer)
_ANSWER = msgspec.json.Decoder(_Answer)
_PREDICT = msgspec.json.Decoder(_Predict)
_FIRST_DATA = re.compile(
    rb'\s*\{\s*(?:"id"\s*:\s*"[^"\\]*"\s*,\s*)?"inputs"\s*:\s*\[\s*\{\s*'
    rb'(?:"(?:name|datatype)"\s*:\s*"[^"\\]*"\s*,\s*|"shape"\s*:\s*\[[\s\d,]*\]\s*,\s*)*'
    rb'"data"\s*:\s*(?=\[)'
)
_CLOSING = re.compile(rb"\]")
_NUMBERS = b"0123456789+-.eE, \t\r\n"


def decode(body: bytes | memoryview, header_length: int | None = None) -> Request:
    """Read a v2 infer request.

    Args:
        body: the request body, decompressed.
        header_length: bytes of JSON at its start (`Inference-Header-Content-Length`); the rest holds the binary tensors
            in the order of the inputs. None if the body is JSON only.

    Raises:
        RequestError: the body does not follow the protocol; the message names the tensor.
    """
    ready: np.ndarray | None = None
    if header_length is None:
        (request, ready), offset = _read(body), len(body)
    else:
        if not 0 < header_length <= len(body):
            message = (
                f"Inference-Header-Content-Length is {header_length}, the body has {len(body)} bytes; it counts the bytes "
                "of JSON in front of the binary data, after decompression"
            )
            raise RequestError("bad_header", message, 400)
        request, offset = decode_json(body[:header_length], _INFER), header_length
    arrays: dict[str, np.ndarray] = {}
    for tensor in request.inputs:
        if tensor.name in arrays:
            raise RequestError("bad_request", f"input {tensor.name!r} is given twice; give each input once", 400)
        arrays[tensor.name], offset = _array(tensor, body, offset, "input", ready)
        ready = None
    if offset != len(body):
        message = f"{len(body) - offset} bytes are left after the last binary tensor; the sizes must add up to the body"
        raise RequestError("bad_data", message)
    parameters = request.parameters or {}
    binary = parameters.get("binary_data_output", False)
    if not isinstance(binary, bool):
        raise RequestError("bad_request", f"binary_data_output must be true or false, got {shown(binary)}", 400)
    outputs = None if request.outputs is None else _wanted(request.outputs, binary)
    return Request(arrays, outputs, request.id, parameters, binary)


def _read(body: bytes | memoryview) -> tuple[_Infer, np.ndarray | None]:
    """The JSON of a request; long flat numbers of the first input are set aside first, and so not read twice.

    Returns:
        The request, and the first input's data where it is an array already.
    """
    found = _FIRST_DATA.match(body) if len(body) > SMALL else None
    closing = _CLOSING.search(body, found.end()) if found is not None else None
    if found is None or closing is None:
        return decode_json(body, _INFER), None
    start, end = found.end(), closing.end()
    data = bytes(body[start:end])
    ready = bytes_of(data) if b'"UINT8"' in found.group() else None
    if ready is None and data.translate(None, _NUMBERS) != b"[]":  # text, nested lists, null
        return decode_json(body, _INFER), None
    request = decode_json(b"".join((body[:start], b"[]", body[end:])), _INFER)
    first = request.inputs[0]
    if bytes(first.data) != b"[]":  # it is given again, and the last one counts
        return request, None
    first.data = msgspec.Raw(data)
    return request, ready if first.datatype == "UINT8" else None


def _wanted(outputs: list[_Output], binary: bool) -> list[Wanted]:
    wanted: list[Wanted] = []
    for output in outputs:
        parameters = output.parameters or _OutputParameters()
        if any(output.name == other.name for other in wanted):
            raise RequestError("bad_request", f"output {output.name!r} is asked for twice; ask once", 400)
        if parameters.shared_memory_region is not None:
            raise RequestError("unsupported", f"output {output.name!r}: shared memory is not served; leave it out", 400)
        count = parameters.classification
        if count is not None and count < 1:
            message = f"output {output.name!r} asks for {count} classes; classification must be 1 or more"
            raise RequestError("bad_parameter", message)
        wanted.append(
            Wanted(
                output.name,
                binary if parameters.binary_data is None else parameters.binary_data,
                min(count or 0, LARGEST_SIZE),
            )
        )
    return wanted


def _array(
    tensor: _Tensor, body: bytes | memoryview, offset: int, kind: str, ready: np.ndarray | None = None
) -> tuple[np.ndarray, int]:
    """A tensor from JSON or from the body at `offset`; and the offset behind it.

    Args:
        ready: the tensor's data where it has been read from JSON.
    """
    datatype, shape = tensor.datatype, tensor.shape
    what = f"{kind} {tensor.name!r}"
    if datatype not in DTYPES:
        raise RequestError("bad_datatype", f"{what} has datatype {datatype!r:.60}; known are {', '.join(DTYPES)}")
    if len(shape) > MOST_AXES:
        raise RequestError("bad_shape", f"{what} has {len(shape)} axes, at most {MOST_AXES} are read")
    count = 1
    for size in shape:
        if not 0 <= size <= LARGEST_SIZE:
            message = f"{what} has shape {shown(shape)}; sizes are counts from 0 to {LARGEST_SIZE}"
            raise RequestError("bad_shape", message)
        count *= size
    parameters = tensor.parameters
    if parameters is not None and parameters.shared_memory_region is not None:
        raise RequestError("unsupported", f"{what}: shared memory is not served; send JSON or binary data", 400)
    if parameters is not None and parameters.binary_data_size is not None:
        size = parameters.binary_data_size
        if memoryview(tensor.data):
            raise RequestError("bad_data", f"{what} has both data and binary_data_size; send one of them")
        if not 0 <= size <= len(body) - offset:
            message = (
                f"{what} has binary_data_size {shown(size)}, but {len(body) - offset} bytes of binary data are left; send "
                "them after the JSON and its length as Inference-Header-Content-Length"
            )
            raise RequestError("bad_data", message)
        array, offset = from_binary(body, offset, size, datatype, count, what), offset + size
    else:
        array = from_json(tensor.data, datatype, what, shape) if ready is None else ready
        if array.size != count:
            raise RequestError("bad_shape", f"{what} has shape {shape} but {array.size} values in its data")
    try:
        return array.reshape(shape), offset
    except ValueError:  # an axis of 0 beside axes whose product no array can have
        raise RequestError("bad_shape", f"{what} has shape {shape}, which no array can have") from None


def encode(
    name: str,
    version: str,
    manifest: Manifest,
    outputs: dict[str, np.ndarray],
    request: Request,
    notes: Sequence[str] = (),
) -> tuple[bytes, int | None]:
    """Write the answer to a v2 infer request.

    Args:
        name: of the model.
        version: that answered.
        manifest: the model's; it has the datatypes, and the labels for classification.
        outputs: arrays by name, batch first; at least those the request asks for.
        request: what is answered: its id, and which outputs in which form.
        notes: what people should know, such as texts that were cut; they go out as the parameter "notes".

    Returns:
        The body, and the bytes of JSON at its start if binary tensors follow (`Inference-Header-Content-Length`). In
        JSON, NaN and infinities are `null`.

    Raises:
        RequestError: an output has no such name, or classification is asked of text.
    """
    types = {port.name: port.dtype for port in manifest.outputs}
    wanted = request.outputs or [Wanted(key, request.binary) for key in types if key in outputs]
    described, binary = [], []
    for want in wanted:
        if want.name not in outputs:
            message = f"model {name!r} has no output {want.name!r}; it has {', '.join(types)}"
            raise RequestError("unknown_output", message)
        array, datatype = outputs[want.name], types[want.name]
        if want.classification:
            array, datatype = _classified(want, array, datatype, manifest.labels), "BYTES"
        entry: dict[str, Any] = {"name": want.name, "datatype": datatype, "shape": array.shape}
        if want.binary:
            binary.append(to_binary(array, datatype))
            entry["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            entry["data"] = array.ravel().tolist()
        described.append(entry)
    answer: dict[str, Any] = {"model_name": name, "model_version": version}
    if request.id is not None:
        answer["id"] = request.id
    if notes:
        answer["parameters"] = {"notes": "; ".join(notes)}  # whose values are plain, by the protocol
    answer["outputs"] = described
    header = msgspec.json.encode(answer)
    return (b"".join((header, *binary)), len(header)) if binary else (header, None)


def _classified(want: Wanted, array: np.ndarray, datatype: str, labels: tuple[str, ...]) -> np.ndarray:
    """The highest values of each row, highest first, as "value:index:label"; of equal values the first comes first."""
    if datatype == "BYTES":
        raise RequestError("bad_parameter", f"output {want.name!r} is text, which has no classification; leave it out")
    rows = array.reshape(len(array), math.prod(array.shape[1:]))
    ranks = np.where(np.isnan(rows), -np.inf, rows) if rows.dtype.kind == "f" else rows
    count, last = min(want.classification, rows.shape[1]), rows.shape[1] - 1
    order = (last - np.argsort(ranks[:, ::-1], axis=1, kind="stable")[:, ::-1])[:, :count]
    endings = [f":{label}" for label in labels] if rows.shape[1] == len(labels) else [""] * rows.shape[1]
    texts = [[f"{row[i]!s}:{i}{endings[i]}" for i in best] for row, best in zip(rows, order.tolist(), strict=True)]
    return np.array(texts, object).reshape(len(rows), count)


_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items() if name not in ("BF16", "BYTES")}


def pack(
    inputs: dict[str, np.ndarray], outputs: list[str] | None = None, parameters: dict[str, Any] | None = None
) -> tuple[bytes, int]:
    """Write a v2 infer request with binary tensors that asks for a binary answer.

    Args:
        inputs: arrays by name; text as arrays of str.
        outputs: names wanted; every output if None.
        parameters: of a model that writes or paints, such as "temperature".

    Returns:
        The body and its `Inference-Header-Content-Length`.
    """
    described, binary = [], []
    for name, given in inputs.items():
        array = np.asarray(given)
        datatype = _NAMES.get(array.dtype, "BYTES")
        binary.append(to_binary(array, datatype))
        size = {"binary_data_size": len(binary[-1])}
        described.append({"name": name, "datatype": datatype, "shape": array.shape, "parameters": size})
    request: dict[str, Any] = {"inputs": described, "parameters": {**(parameters or {}), "binary_data_output": True}}
    if outputs is not None:
        request["outputs"] = [{"name": name} for name in outputs]
    header = msgspec.json.encode(request)
    header += b" " * (-len(header) % 16)  # so that the first tensor lies aligned, and is not copied by its reader
    return b"".join((header, *binary)), len(header)


def unpack(body: bytes | memoryview, header_length: int | None) -> dict[str, np.ndarray]:
    """Read the answer to a v2 infer request.

    Raises:
        RequestError: the body is no such answer.
    """
    header = body if header_length is None else body[:header_length]
    offset, arrays = len(header), {}
    for tensor in decode_json(header, _ANSWER).outputs:
        arrays[tensor.name], offset = _array(tensor, body, offset, "output")
    return arrays


def decode_v1(body: bytes | memoryview, manifest: Manifest) -> Request:
    """Read a predict request of TensorFlow Serving's REST interface, in rows (`instances`) or in columns (`inputs`).

    Args:
        body: the request body, decompressed.
        manifest: the model's; v1 bodies carry neither datatypes nor shapes, and no names where there is one input.

    Raises:
        RequestError: the body does not follow the protocol; the message names the input.
    """
    request = decode_json(body, _PREDICT)
    if request.signature_name not in (None, "", SIGNATURE):
        message = f"no signature is called {request.signature_name!r:.60}; the only one is {SIGNATURE!r}"
        raise RequestError("unknown_signature", message, 400)
    columns = bool(memoryview(request.inputs))
    if columns == bool(memoryview(request.instances)):
        message = "a predict request has either 'instances', a list of rows, or 'inputs', the inputs as columns"
        raise RequestError("bad_request", message, 400)
    raw, ports = (request.inputs if columns else request.instances), manifest.inputs
    if len(ports) == 1 and ports[0].dtype != "BYTES" and starts_with_lists(raw):
        array = rows_of(raw, ports[0])
        if array.size or columns:
            return Request({ports[0].name: array}, columns=columns)
    data = decode_json(raw)
    named = _columns(data, ports) if columns else _rows(data, ports)
    arrays = {}
    for name, values in named.items():
        port = next((port for port in ports if port.name == name), None)
        if port is None:
            message = f"model {manifest.name!r} has no input {name!r:.60}; it has {', '.join(p.name for p in ports)}"
            raise RequestError("unknown_input", message)
        arrays[name] = to_array(_unwrapped(values, port), port.dtype, f"input {name!r}")
    return Request(arrays, columns=columns)


def _columns(data: Any, ports: tuple[Port, ...]) -> dict[str, Any]:
    if isinstance(data, dict) and not (len(ports) == 1 and data.keys() == {"b64"}):
        return data
    if len(ports) == 1:
        return {ports[0].name: data}
    message = f"the model has {len(ports)} inputs, so 'inputs' is an object with {_listed(ports)}, got {shown(data)}"
    raise RequestError("bad_request", message, 400)


def _rows(data: Any, ports: tuple[Port, ...]) -> dict[str, list[Any]]:
    if not isinstance(data, list) or not data:
        raise RequestError("bad_request", f"'instances' must be a list of one row or more, got {shown(data)}", 400)
    if len(ports) == 1 and not any(isinstance(row, dict) and row.keys() != {"b64"} for row in data):
        return {ports[0].name: data}
    for number, row in enumerate(data):
        if not isinstance(row, dict) or row.keys() != data[0].keys():
            message = f"instance {number} must be an object with {_listed(ports)}, as each instance, got {shown(row)}"
            raise RequestError("bad_request", message, 400)
    return {name: [row[name] for row in data] for name in data[0]}


def _listed(ports: tuple[Port, ...]) -> str:
    return ", ".join(repr(port.name) for port in ports)


def _unwrapped(values: Any, port: Port, depth: int = 0) -> Any:
    """The same lists with {"b64": ...} as the text it stands for."""
    if isinstance(values, list) and depth <= MOST_AXES:
        return [_unwrapped(value, port, depth + 1) for value in values]
    if not isinstance(values, dict):
        return values
    text = values.get("b64")
    if values.keys() != {"b64"} or not isinstance(text, str) or port.dtype != "BYTES":
        message = f'input {port.name!r} holds an object; only BYTES inputs take one, as {{"b64": "<base64>"}}'
        raise RequestError("bad_data", message)
    try:
        return base64.b64decode(text, validate=True).decode()
    except (binascii.Error, ValueError):
        raise RequestError("bad_data", f"input {port.name!r} holds b64 that is not base64 of UTF-8 text") from None


def encode_v1(manifest: Manifest, outputs: dict[str, np.ndarray], request: Request) -> bytes:
    """Write the answer to a v1 predict request, in the form in which it asked: rows or columns.

    NaN and infinities become `null`. Text of an output whose name ends in "_bytes" goes out as {"b64": ...}, as
    TensorFlow Serving does.
    """
    lists = {port.name: _jsonable(outputs[port.name], port) for port in manifest.outputs if port.name in outputs}
    if len(lists) == 1:
        (values,) = lists.values()
        return msgspec.json.encode({"outputs" if request.columns else "predictions": values})
    if request.columns:
        return msgspec.json.encode({"outputs": lists})
    rows = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    return msgspec.json.encode({"predictions": rows})


def _jsonable(array: np.ndarray, port: Port) -> list[Any]:
    if port.dtype == "BYTES" and port.name.endswith("_bytes"):
        wrapped = [{"b64": base64.b64encode(str(text).encode()).decode()} for text in array.flat]
        return np.array(wrapped, object).reshape(array.shape).tolist()
    return array.tolist()


def model_metadata(manifest: Manifest, versions: list[str]) -> dict[str, Any]:
    """What `GET /v2/models/<model>` answers."""
    return {
        "name": manifest.name,
        "versions": versions,
        "platform": "onnxruntime_onnx",
        "inputs": [_metadata(port) for port in manifest.inputs],
        "outputs": [_metadata(port) for port in manifest.outputs],
    }


def _metadata(port: Port) -> dict[str, Any]:
    return {"name": port.name, "datatype": port.dtype, "shape": port.shape}


def model_configuration(manifest: Manifest, max_batch: int) -> dict[str, Any]:
    """What `GET /v2/models/<model>/config` answers: shapes are without the batch, as Triton's clients expect."""

    def described(port: Port) -> dict[str, Any]:
        kind = "STRING" if port.dtype == "BYTES" else port.dtype
        return {"name": port.name, "data_type": f"TYPE_{kind}", "dims": port.shape[1:]}

    return {
        "name": manifest.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": max_batch,
        "version_policy": {"all": {}},
        "input": [described(port) for port in manifest.inputs],
        "output": [described(port) for port in manifest.outputs],
    }


_V1_TYPES = {"BOOL": "DT_BOOL", "FP16": "DT_HALF", "FP32": "DT_FLOAT", "FP64": "DT_DOUBLE", "BF16": "DT_BFLOAT16"}
_V1_TYPES |= {"BYTES": "DT_STRING"}


def model_metadata_v1(manifest: Manifest) -> dict[str, Any]:
    """What `GET /v1/models/<model>/metadata` answers."""

    def described(port: Port) -> dict[str, Any]:
        sizes = [{"size": str(size), "name": ""} for size in port.shape]
        kind = _V1_TYPES.get(port.dtype, f"DT_{port.dtype}")
        return {"dtype": kind, "tensor_shape": {"dim": sizes, "unknown_rank": False}, "name": port.name}

    signature = {
        "inputs": {port.name: described(port) for port in manifest.inputs},
        "outputs": {port.name: described(port) for port in manifest.outputs},
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {"name": manifest.name, "signature_name": "", "version": manifest.version},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
    }


def model_status_v1(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """What `GET /v1/models/<model>` answers, newest version first.

    Args:
        entries: of the v2 repository index, of this model.
    """
    versions = [
        {
            "version": entry["version"],
            "state": "AVAILABLE" if entry["state"] == "READY" else "END",
            "status": {
                "error_code": "OK" if entry["state"] == "READY" else "UNAVAILABLE",
                "error_message": entry["reason"],
            },
        }
        for entry in reversed(entries)
    ]
    return {"model_version_status": versions}
