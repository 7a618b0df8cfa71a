"""Files that appear whole or not at all; ONNX files written weight by weight, never twice in memory."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from export import ExportError
from export.lowering.graph import Weight

EXTERNAL_ABOVE = 2_000_000_000  # bytes; protobuf messages end below 2 GiB
CHUNK = 2**24  # bytes of a weight that are written at a time
_GRAPH, _INITIALIZER, _RAW = 7, 5, 9  # field numbers of ModelProto.graph, GraphProto.initializer, TensorProto.raw_data


@contextlib.contextmanager
def draft(path: str | Path) -> Iterator[Path]:
    """A file in a temporary folder beside its place, which it takes when all went well, with the weights beside it.

    An older file stays otherwise; weights beside it that nothing reads any more are removed.

    Raises:
        ExportError: the place is a folder, or nothing can be written there.
    """
    path = Path(path)
    if path.is_dir():
        raise ExportError(f"cannot write {str(path)!r}: it is a folder; name a file in it")
    with beside(path) as folder:
        made = folder / path.name
        yield made
        orphan = weights_of(path)
        orphaned = orphan.exists() and not weights_of(made).exists() and _reads_beside(path)
        if weights_of(made).exists():
            weights_of(made).replace(orphan)
        made.replace(path)
        if orphaned:
            orphan.unlink()


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A temporary folder beside a place; the folders above that had to be made go, too, when the work fails.

    Raises:
        ExportError: nothing can be written there.
    """
    missing = [above for above in path.parents if not above.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=".export-"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ExportError(f"cannot write {str(path)!r}: {reason}; choose another folder") from error
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for above in missing:
            with contextlib.suppress(OSError):  # somebody else has written there meanwhile
                above.rmdir()
        raise
    shutil.rmtree(folder, ignore_errors=True)  # gone where it has taken the place itself


def weights_of(path: Path) -> Path:
    """File beside an ONNX file that holds its weights, where they are too large for it."""
    return path.with_name(f"{path.name}.data")


def _reads_beside(path: Path) -> bool:
    """Whether an ONNX file has its weights in the file beside it."""
    try:
        tensors = onnx.load(path, load_external_data=False).graph.initializer
    except Exception:  # missing, or no ONNX file
        return False
    return any(entry.value == weights_of(path).name for tensor in tensors for entry in tensor.external_data)


def write(
    proto: onnx.ModelProto, weights: Mapping[str, Weight], path: Path, external_above: int = EXTERNAL_ABOVE
) -> None:
    """Write a model whose weights are arrays beside it.

    Args:
        proto: model; its graph may have small initializers of its own.
        weights: name -> array, added as initializers.
        path: file to write. Above the limit the weights go to `<name>.data` beside it, 4096-byte aligned.
        external_above: bytes of weights from which that happens, at most what a file can hold.
    """
    if sum(array.nbytes for array in weights.values()) > min(external_above, EXTERNAL_ABOVE):
        _write_external(proto, weights, path)
        return
    heads = {name: _head(name, array) for name, array in weights.items()}
    small = proto.graph.SerializeToString()
    sizes = {name: len(heads[name]) + _field_size(_RAW, _size(array)) for name, array in weights.items()}
    length = len(small) + sum(_field_size(_INITIALIZER, size) for size in sizes.values())
    around = onnx.ModelProto()
    around.CopyFrom(proto)
    around.ClearField("graph")
    with path.open("wb") as file:
        file.write(around.SerializeToString())
        file.write(_tag(_GRAPH, length))
        file.write(small)
        for name, array in weights.items():
            file.write(_tag(_INITIALIZER, sizes[name]))
            file.write(heads[name])
            file.write(_tag(_RAW, _size(array)))
            for part in _bytes(array):
                file.write(part)


def _write_external(proto: onnx.ModelProto, weights: Mapping[str, Weight], path: Path) -> None:
    beside = weights_of(path)
    with beside.open("wb") as file:
        for name, array in weights.items():
            file.write(bytes(-file.tell() % 4096))
            tensor = proto.graph.initializer.add()
            tensor.ParseFromString(_head(name, array))
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in {"location": beside.name, "offset": file.tell(), "length": _size(array)}.items():
                tensor.external_data.add(key=key, value=str(value))
            for part in _bytes(array):
                file.write(part)
    path.write_bytes(proto.SerializeToString())


def _head(name: str, array: Weight) -> bytes:
    """A TensorProto without its values."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return TensorProto(name=name, data_type=kind, dims=array.shape).SerializeToString()


def _size(array: Weight) -> int:
    return array.nbytes


def _bytes(array: Weight) -> Iterator[memoryview]:
    """Values in little-endian order, in parts."""
    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1)
    step = max(1, CHUNK // max(1, flat.itemsize))
    for start in range(0, len(flat), step):
        yield flat[start : start + step].data.cast("B")


def _tag(field: int, length: int) -> bytes:
    """Protobuf key and length of a length-delimited field."""
    return _varint(field << 3 | 2) + _varint(length)


def _field_size(field: int, length: int) -> int:
    return len(_tag(field, length)) + length


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
