"""Open Inference Protocol v2 in JSON: bytes to named arrays and back. Pure functions, no HTTP, no model.

Source: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

import math
from typing import Any

import msgspec
import numpy as np

from serve.errors import RequestError, shown
from serve.manifest import Manifest, Port

DTYPES: dict[str, type[np.generic]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}
LARGEST_SIZE = 2**31 - 1  # of one axis; larger sizes cannot come with data that fits a request body
MOST_AXES = 32  # that NumPy iterates over


class Tensor(msgspec.Struct):
    """One input of a request as it stands in the JSON."""

    name: str
    shape: list[int]
    datatype: str
    data: Any
    parameters: dict[str, Any] = {}


class Wanted(msgspec.Struct):
    """One output a request asks for."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct):
    """Body of an infer request."""

    inputs: list[Tensor]
    id: str | None = None
    parameters: dict[str, Any] = {}
    outputs: list[Wanted] | None = None


_REQUEST = msgspec.json.Decoder(InferRequest)


def decode_json(body: bytes, decoder: Any = None) -> Any:
    """Parse JSON within msgspec's depth limit.

    Args:
        body: the request body.
        decoder: an `msgspec.json.Decoder`; any JSON value if None.

    Raises:
        RequestError: 400, not JSON, nested too deeply, or not of the decoder's type.
    """
    if not body:
        raise RequestError("bad_json", "the body is empty; send JSON", 400)
    try:
        return msgspec.json.decode(body) if decoder is None else decoder.decode(body)
    except msgspec.ValidationError as error:
        raise RequestError("bad_request", f"the body cannot be used: {error}", 400) from None
    except RecursionError:
        raise RequestError("bad_json", "the body nests too deeply; send flat data with a shape", 400) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"the body is not JSON: {error}; NaN and Infinity are not JSON, send null for a missing value"
        raise RequestError("bad_json", message, 400) from None


def decode(body: bytes) -> tuple[dict[str, np.ndarray], list[str] | None, str | None]:
    """Read an infer request.

    Returns:
        Named arrays (BYTES as object arrays of str), names of the outputs asked for (None for all), and the request's id.

    Raises:
        RequestError: the body does not follow the protocol; the message names the tensor.
    """
    request = decode_json(body, _REQUEST)
    arrays: dict[str, np.ndarray] = {}
    for tensor in request.inputs:
        if tensor.name in arrays:
            raise RequestError("bad_request", f"input {tensor.name!r} is given twice; give each input once", 400)
        arrays[tensor.name] = _array(tensor)
    wanted = None if request.outputs is None else [output.name for output in request.outputs]
    return arrays, wanted, request.id


def _array(tensor: Tensor) -> np.ndarray:
    if tensor.datatype not in DTYPES:
        message = f"input {tensor.name!r} has datatype {tensor.datatype!r}; known are {', '.join(DTYPES)}"
        raise RequestError("bad_datatype", message)
    if "binary_data_size" in tensor.parameters or not isinstance(tensor.data, list):
        message = f"input {tensor.name!r} has no JSON list as its data; binary tensors are not served, send JSON"
        raise RequestError("bad_data", message)
    if len(tensor.shape) > MOST_AXES:
        raise RequestError(
            "bad_shape", f"input {tensor.name!r} has {len(tensor.shape)} axes, at most {MOST_AXES} are read"
        )
    if not all(0 <= size <= LARGEST_SIZE for size in tensor.shape):
        raise RequestError("bad_shape", f"input {tensor.name!r} has shape {tensor.shape}; sizes are counts, 0 or more")
    array = to_array(tensor.data, tensor.datatype, f"input {tensor.name!r}")
    if array.size != math.prod(tensor.shape):
        message = f"input {tensor.name!r} has shape {tensor.shape} but {array.size} values in its data"
        raise RequestError("bad_shape", message)
    return array.reshape(tensor.shape)


def to_array(data: Any, datatype: str, what: str) -> np.ndarray:
    """Nested or flat JSON list to an array of a protocol datatype, without rounding, wrapping or parsing of text.

    `null` becomes NaN in floating-point data and "" in BYTES.

    Raises:
        RequestError: ragged lists, or a value that the datatype cannot hold.
    """
    dtype = np.dtype(DTYPES[datatype])
    try:
        array = np.array(data, dtype=object if datatype == "BYTES" else None)
    except ValueError:
        raise RequestError("bad_shape", f"{what} is ragged; give lists of equal length") from None
    if array.ndim > MOST_AXES:
        raise RequestError("bad_shape", f"{what} nests {array.ndim} lists deep, at most {MOST_AXES} are read")
    if datatype == "BYTES":
        if not all(isinstance(value, str) or value is None for value in array.flat):
            raise RequestError("bad_data", f"{what} must hold strings in lists of equal length")
        return np.where(array == None, "", array)  # noqa: E711 - element by element
    allowed = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}[dtype.kind]
    if array.size == 0:
        return array.astype(dtype)
    if dtype.kind == "f" and array.dtype == object and all(type(v) in (int, float, type(None)) for v in array.flat):
        try:
            array = array.astype(np.float64)
        except OverflowError:
            raise RequestError("out_of_range", f"{what} holds a number too large for {datatype}") from None
    if array.dtype.kind not in allowed:
        raise RequestError("bad_data", f"{what} must hold {datatype} values, got {_first_not(array, allowed)}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            message = f"{what} holds {int(array.min())} … {int(array.max())}; {datatype} is {limits.min} … {limits.max}"
            raise RequestError("out_of_range", message)
    with np.errstate(over="ignore"):  # too large for FP32 becomes infinite, which the runtime refuses by name
        return array.astype(dtype)


def _first_not(array: np.ndarray, allowed: str) -> str:
    """Short description of a value that is not allowed, for a message."""
    value = next((v for v in array.flat if np.asarray(v).dtype.kind not in allowed), array.flat[0])
    return shown(value.item() if isinstance(value, np.generic) else value)


def encode(
    name: str, version: str, ports: tuple[Port, ...], outputs: dict[str, np.ndarray], request_id: str | None = None
) -> bytes:
    """Write the answer to an infer request; NaN and infinities become `null`."""
    types = {port.name: port.dtype for port in ports}
    answer: dict[str, Any] = {"model_name": name, "model_version": version}
    if request_id is not None:
        answer["id"] = request_id
    answer["outputs"] = [
        {"name": key, "datatype": types[key], "shape": list(array.shape), "data": array.ravel().tolist()}
        for key, array in outputs.items()
    ]
    return msgspec.json.encode(answer)


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
    return {"name": port.name, "datatype": port.dtype, "shape": list(port.shape)}
