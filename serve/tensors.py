"""Tensors as they stand in requests and answers: JSON lists and raw bytes to arrays and back. Knows no request.

What a client sends is compared with its shape before anything large is made of it.
"""

import math
import re
import struct
from functools import cache
from typing import Any

import msgspec
import numpy as np

from serve.errors import RequestError, shown
from serve.manifest import Port

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
    "BF16": np.float32,
    "BYTES": np.object_,
}
LARGEST_SIZE = 2**31 - 1  # of one axis; larger sizes cannot come with data that fits a request body
MOST_LISTS = 500_000  # lists and objects of a body whose form is not known in advance
MOST_AXES = 32  # that NumPy iterates over


def decode_json(body: bytes | memoryview | msgspec.Raw, decoder: Any = None) -> Any:
    """Parse JSON within msgspec's depth limit.

    Args:
        body: the request body.
        decoder: an `msgspec.json.Decoder`; any JSON value if None.

    Raises:
        RequestError: 400, not JSON, nested too deeply, or not of the decoder's type; 413, so many lists and objects
            that they would take a hundred times the body's memory.
    """
    if not body:
        raise RequestError("bad_json", "the body is empty; send JSON", 400)
    if decoder is None and len(memoryview(body)) > MOST_LISTS:
        text = np.frombuffer(body, np.uint8)
        if np.count_nonzero((text == ord("[")) | (text == ord("{"))) > MOST_LISTS:
            message = f"the body holds more than {MOST_LISTS} lists and objects; send fewer rows, flat data or a file"
            raise RequestError("too_large", message, 413)
    try:
        return msgspec.json.decode(body) if decoder is None else decoder.decode(body)
    except msgspec.ValidationError as error:
        raise RequestError("bad_request", f"the body cannot be used: {error}", 400) from None
    except RecursionError:
        raise RequestError("bad_json", "the body nests too deeply; send flat data with a shape", 400) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError("bad_json", f"the body is not JSON: {error}; {_cure(bytes(body), error)}", 400) from None


def _cure(body: bytes, error: Exception) -> str:
    """What to do about a body that is no JSON."""
    if b"NaN" in body or b"Infinity" in body:
        return "NaN and Infinity are not JSON, send null for a missing value"
    if "trailing" in str(error):
        return "send one value, and the length of JSON in front of binary tensors as Inference-Header-Content-Length"
    return "send one whole JSON value in UTF-8, or say with the header Content-Type what it is"


def from_binary(body: bytes | memoryview, offset: int, size: int, datatype: str, count: int, what: str) -> np.ndarray:
    """A flat array over `size` bytes of the body; its own memory only where the bytes lie unaligned."""
    if datatype == "BYTES":
        return _from_elements(body, offset, size, count, what)
    dtype = np.dtype(np.uint16 if datatype == "BF16" else DTYPES[datatype])
    if size != count * dtype.itemsize:
        message = (
            f"{what} of {count} {datatype} values needs {count * dtype.itemsize} bytes, binary_data_size is {size}"
        )
        raise RequestError("bad_shape", message)
    array = np.frombuffer(body, dtype, count, offset) if count else np.empty(0, dtype)
    if datatype == "BF16":  # the upper half of a float32
        return (array.astype(np.uint32) << 16).view(np.float32)
    if datatype == "BOOL" and array.view(np.uint8).max(initial=0) > 1:
        raise RequestError("bad_data", f"{what} must hold bytes of 0 or 1, as BOOL is")
    return array if array.flags.aligned else array.copy()


def _from_elements(body: bytes | memoryview, offset: int, size: int, count: int, what: str) -> np.ndarray:
    """BYTES: each element is 4 bytes of little-endian length and that many bytes of UTF-8."""
    if size < 4 * count:
        message = f"{what} of {count} BYTES values needs at least {4 * count} bytes, binary_data_size is {size}"
        raise RequestError("bad_shape", message)
    values: list[str] = []
    end = offset + size
    while offset < end and len(values) < count:
        start = offset + 4
        length = int.from_bytes(body[offset:start], "little")
        offset = start + length
        if offset > end:
            message = f"{what}: element {len(values)} says it has {length} bytes, {max(0, end - start)} are left"
            raise RequestError("bad_data", message)
        try:
            values.append(str(body[start:offset], "utf-8"))
        except UnicodeDecodeError:
            raise RequestError("bad_data", f"{what}: element {len(values)} is not UTF-8 text") from None
    if offset != end or len(values) != count:
        message = f"{what} has {len(values)} whole elements in {size} bytes, its shape has {count}"
        raise RequestError("bad_shape", message)
    array = np.empty(count, object)
    array[:] = values
    return array


_OPENING = re.compile(rb"[\[ \t\r\n]*")
_LEAVES: dict[str, Any] = {"b": bool, "i": int, "u": int, "f": float | None, "O": str | None}
_TYPES: dict[str, set[type]] = {
    "b": {bool},
    "i": {int},
    "u": {int},
    "f": {int, float, type(None)},
    "O": {str, type(None)},
}
_DEEPEST = 8  # lists read by a decoder of their own
SMALL = 2**15  # bytes of JSON that are decoded before their structure is known
BLOCK = 2**17  # bytes of JSON that are read at a time
_ZERO, _COMMA = np.uint8(ord("0")), np.uint8(ord(","))
_CONTENT = bytes(set(range(256)) - set(b"[],"))
_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"')


@cache
def _lists(kind: str, depth: int) -> msgspec.json.Decoder:
    """A decoder of lists, `depth` deep, of what a NumPy kind holds."""
    nested: Any = _LEAVES[kind]
    for _ in range(depth):
        nested = list[nested]
    return msgspec.json.Decoder(nested)


def from_json(raw: msgspec.Raw, datatype: str, what: str, shape: list[int] | None = None) -> np.ndarray:
    """JSON lists to an array, as `to_array` does, but with the types checked while parsing.

    Long data must be flat or nest as `shape` says, if that is given.
    """
    dtype = np.dtype(DTYPES[datatype])
    depth = _OPENING.match(raw).group().count(b"[")  # type: ignore[union-attr] # matches always
    if not depth:
        message = f"{what} has no JSON list as its data; send a list, or binary data with binary_data_size"
        raise RequestError("bad_data", message)
    if shape is not None and len(memoryview(raw)) > _small(depth):
        text = bytes(raw)
        if datatype == "UINT8" and depth == 1 and (bytewise := bytes_of(text)) is not None:
            return bytewise
        return _from_long_json(text, datatype, shape, what)
    if depth <= _DEEPEST:
        try:
            values = _lists(dtype.kind, depth).decode(raw)
            if datatype == "UINT8" and depth == 1:
                return np.frombuffer(bytes(values), np.uint8)  # twice as fast as np.array
            with np.errstate(over="ignore"):  # as in `to_array`
                array = np.array(values, dtype)
        except (msgspec.DecodeError, ValueError, OverflowError):
            pass  # what is wrong, if anything, is found and said below
        else:
            if datatype == "BF16":
                return round_bf16(array)
            if array.ndim == depth:
                if datatype == "BYTES":
                    array[array == None] = ""  # noqa: E711 - element by element
                return array
    return to_array(decode_json(raw), datatype, what)


def bytes_of(text: bytes) -> np.ndarray | None:
    """A flat JSON list of numbers from 0 to 255, read by NumPy in half of the time; None if it is anything else.

    Args:
        text: from one bracket to the other, without spaces at either end.
    """
    if b" " in text:  # to find none is fast, to replace none is not
        text = text.replace(b", ", b",")
    whole, start, end = np.frombuffer(text, np.uint8), 1, len(text) - 1
    parts = []
    while start < end:
        stop = text.rfind(b",", start, start + BLOCK) if end - start > BLOCK else end
        if stop < 0:
            return None
        block = whole[start - 1 : stop + 1]  # numbers and commas, between two of the latter or the brackets
        digits = block - _ZERO
        places = np.flatnonzero(digits > 9)
        if np.count_nonzero(block == _COMMA) + (start == 1) + (stop == end) != len(places):
            return None
        ends, sizes = places[1:], places[1:] - places[:-1]  # of numbers with the comma behind
        if sizes.min() < 2 or sizes.max() > 4:
            return None
        sizes = sizes.astype(np.uint8)
        two, three = sizes > 2, sizes > 3  # digits at least
        tens = digits.take(ends - 2) * two.view(np.uint8)
        hundreds = digits.take(ends - 3, mode="wrap") * three.view(np.uint8)
        values = digits.take(ends - 1) + tens * np.uint8(10)
        leading = two & (hundreds == 0) & (three | (tens == 0))  # zeros, which JSON does not allow
        if leading.any() or hundreds.max() > 2 or ((hundreds == 2) & (values > 55)).any():
            return None
        values += hundreds * np.uint8(100)
        parts.append(values)
        start = stop + 1
    return np.concatenate(parts) if parts else None


def _small(depth: int) -> int:
    """Bytes of JSON up to which lists of this depth are faster built than compared."""
    return SMALL if depth < 3 else SMALL // 32


def _from_long_json(text: bytes, datatype: str, shape: list[int], what: str, *, flat: bool = True) -> np.ndarray:
    """The same for long data: its structure is compared with the shape before anything is made of it.

    Lists of lists take fifty times the bytes they have in JSON, and seconds; here none is made but of values.
    """
    bare = _STRINGS.sub(b"", text) if datatype == "BYTES" else text
    structure = bare.translate(None, _CONTENT)
    count = math.prod(shape)
    nests = structure == _structure(shape, len(structure))
    if not nests and not (flat and structure == _structure([count], len(structure))):
        if b'"' in bare or b"{" in bare:
            raise RequestError(
                "bad_data", f"{what} must hold {datatype} values in lists, got something else between them"
            )
        if (found := structure.count(b",") + 1) != count:
            raise RequestError("bad_shape", f"{what} has shape {shape} but {found} values in its data")
        message = f"{what} nests its lists otherwise than its shape {shape}; send flat data or lists of that shape"
        raise RequestError("bad_shape", message)
    depth = len(shape) if nests else 1
    if depth > 1 and datatype != "BYTES":
        text, depth = b"[%b]" % text.translate(None, b"[]"), 1
    elif depth > _DEEPEST or structure.count(b"[") > 4 * count + MOST_AXES:
        raise RequestError("bad_shape", f"{what} has too many lists for its {count} values; send flat data")
    try:
        values = _lists(np.dtype(DTYPES[datatype]).kind, depth).decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError("bad_data", f"{what} must hold {datatype} values: {error}") from None
    array = _listed_array(values, datatype, what)
    if array.size != count:  # a list of one value and one of none have the same structure
        raise RequestError("bad_shape", f"{what} has shape {shape} but {array.size} values in its data")
    return array


def _listed_array(values: list[Any], datatype: str, what: str) -> np.ndarray:
    """Lists whose types are known to be right."""
    if datatype == "BYTES":
        return to_array(values, datatype, what)
    try:
        if datatype == "UINT8":
            return np.frombuffer(bytes(values), np.uint8)
        with np.errstate(over="ignore"):  # as in `to_array`
            array = np.array(values, DTYPES[datatype])
    except (ValueError, OverflowError):
        return to_array(values, datatype, what)
    return round_bf16(array) if datatype == "BF16" else array


def _structure(shape: list[int], length: int) -> bytes:
    """Brackets and commas of lists of a shape; nothing if there would be more or fewer than `length`."""
    if 0 in shape:
        shape = shape[: shape.index(0) + 1]
    lists, total = 1, 0
    for size in shape:
        total += lists * (2 + max(size - 1, 0))
        lists *= size
    if total != length:
        return b""
    made = b""
    for size in reversed(shape):
        made = b"[%b%b]" % ((made + b",") * (size - 1), made if size else b"")
    return made


def to_array(data: Any, datatype: str, what: str) -> np.ndarray:
    """Nested or flat JSON list to an array of a protocol datatype, without wrapping or parsing of text.

    `null` becomes NaN in floating-point data and "" in BYTES.

    Raises:
        RequestError: ragged lists, or a value that the datatype cannot hold.
    """
    dtype = np.dtype(DTYPES[datatype])
    array = np.array(data, object)  # of the client's own values: no other type would keep text and numbers apart
    if array.ndim > MOST_AXES:
        raise RequestError("bad_shape", f"{what} nests {array.ndim} lists deep, at most {MOST_AXES} are read")
    values = array.ravel().tolist()
    wrong = set(map(type, values)) - _TYPES[dtype.kind]
    if list in wrong:
        raise RequestError("bad_shape", f"{what} is ragged; give lists of equal length")
    if wrong:
        value = next(value for value in values if type(value) in wrong)
        raise RequestError("bad_data", f"{what} must hold {datatype} values, got {shown(value)}")
    if datatype == "BYTES":
        array[array == None] = ""  # noqa: E711 - element by element
        return array
    if dtype.kind in "iu" and values:
        limits, low, high = np.iinfo(dtype), min(values), max(values)
        if low < limits.min or high > limits.max:
            message = f"{what} holds {shown(low)} … {shown(high)}; {datatype} is {limits.min} … {limits.max}"
            raise RequestError("out_of_range", message)
    try:
        with np.errstate(over="ignore"):  # too large for FP32 becomes infinite, which the runtime refuses by name
            array = (array.astype(np.float64) if dtype.kind == "f" else array).astype(dtype)
    except OverflowError:
        raise RequestError("out_of_range", f"{what} holds a number too large for {datatype}") from None
    return round_bf16(array) if datatype == "BF16" else array


def _bf16(array: np.ndarray) -> np.ndarray:
    """float32 to the bits of BF16 as uint16, rounded to nearest with ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)


def round_bf16(array: np.ndarray) -> np.ndarray:
    """float32 values rounded to those that BF16 has."""
    return (_bf16(array).astype(np.uint32) << 16).view(np.float32)


def to_binary(array: np.ndarray, datatype: str) -> bytes:
    """Raw little-endian values, row after row."""
    if datatype == "BYTES":
        texts = [value.encode() for value in array.ravel().tolist()]
        return b"".join(part for text in texts for part in (struct.pack("<I", len(text)), text))
    return _bf16(array).tobytes() if datatype == "BF16" else array.astype(DTYPES[datatype], copy=False).tobytes()


def rows_of(raw: msgspec.Raw, port: Port) -> np.ndarray:
    """An array of one input from lists that have no shape beside them."""
    what, sizes = f"input {port.name!r}", list(port.shape[1:])
    if len(memoryview(raw)) <= _small(len(port.shape)) or min(sizes, default=1) < 1:
        return from_json(raw, port.dtype, what)
    text, per_row = bytes(raw), math.prod(sizes)
    values = text.count(b",") + 1
    shape = [values // per_row, *sizes]
    try:
        return _from_long_json(text, port.dtype, shape, what, flat=False).reshape(shape)
    except RequestError as error:
        if error.code != "bad_shape":
            raise
        message = f"{what} must be {port.sizes} in nested lists, got lists of {values} values that nest otherwise"
        raise RequestError("bad_shape", message) from None


def starts_with_lists(raw: msgspec.Raw) -> bool:
    """Whether the first value in a JSON list is not an object."""
    text = memoryview(raw)
    opening = _OPENING.match(text).end()  # type: ignore[union-attr] # matches always
    return opening > 0 and bytes(text[opening : opening + 1]) != b"{"
