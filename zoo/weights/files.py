"""Tensors by name in a weights file, read without running anything in it."""

import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar")
_CONVERT = (
    "convert it where you trust it: {line}, or the dictionary of tensors in it, often under 'model' or 'state_dict'"
)
_MISTAKEN = (  # for weights: first bytes, endings for which they are right, what the file is and what to do
    (b"\x80", (), f"it is a pickle; {_CONVERT}"),
    (b"PK", (".keras",), f"it is a zip archive; if torch wrote it, {_CONVERT}"),
    (b"\x89HDF", (".h5", ".hdf5"), "it is an HDF5 file; give it the ending .h5"),
    (b"<", (), "it is a web page; fetch it again"),
    (b"version https://git-lfs", (), "it is a pointer of Git LFS to the file; fetch the file itself"),
)
_NAMES = {  # of the variables of a layer, in its order, where they are not kernel and bias
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "layer_normalization": ("gamma", "beta"),
    "rms_normalization": ("scale",),
    "p_re_lu": ("alpha",),
    "class_token": ("token", "position"),
    "positions": ("grid",),
    "embedding": ("embeddings",),
    "reversible_embedding": ("embeddings",),
    "learned_positions": ("table",),
    "relative_bias": ("table",),
    "bias": ("bias",),
    "pairs": ("scale",),
}


def read(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a `.safetensors`, `.h5` (old or new Keras) or `.keras` file, or of several by their `.index.json`.

    Returns:
        float32 arrays by name: `layer/variable` in Keras files, the module's dotted path in safetensors. Integers
        (counters, seeds) are left out.

    Raises:
        ValueError: the file is damaged, of another kind, or could run code when read.
    """
    suffix = path.suffix.lower()
    if suffix in PICKLED:
        raise ValueError(
            f"{path} is a pickle, which can run code when read, so it is not opened; {_CONVERT.format(line=conversion(path.name))}"
        )
    readers = {
        ".safetensors": _safetensors, ".json": _shards, ".h5": _hdf5_file, ".hdf5": _hdf5_file, ".keras": _keras,
    }  # fmt: skip
    if suffix not in readers:
        raise ValueError(f"{path} is of no known kind; give a .safetensors, .h5, .weights.h5 or .keras file")
    found = _tried(readers[suffix], path)
    if not found:
        raise ValueError(f"{path} holds no weights; save a model that has been built")
    return found


def config(path: Path) -> dict[str, Any]:
    """What the `config.json` of Hugging Face beside a file of weights says, {} where there is none.

    Raises:
        ValueError: it is damaged.
    """
    beside = path.with_name("config.json")
    if not beside.is_file():
        return {}
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{beside} is no JSON: {error}; fetch or save it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{beside} is no object of fields, got a {type(found).__name__}; fetch or save it again")
    return found


def conversion(name: str, inside: str = "") -> str:
    """The line of Python that makes a file which is read here of a pickle of torch.

    Args:
        name: of the file.
        inside: the index under which the tensors lie in it, such as "['model']"; "" where they lie at the top.
    """
    return f"safetensors.torch.save_file(torch.load({name!r}, weights_only=True){inside}, 'weights.safetensors')"


class _UnreadableError(Exception):
    """What a file cannot be read as, and why."""


def _tried(reader: Callable[[Path], dict[str, np.ndarray]], path: Path) -> dict[str, np.ndarray]:
    """What a reader finds in the file, or a ValueError that says what is wrong with this file."""
    try:
        return reader(path)
    except _UnreadableError as error:
        raise ValueError(f"{path} cannot be read as {error}; {_advice(path)}") from error


def _advice(path: Path) -> str:
    """What a file that cannot be read is by its first bytes, and what to do."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if not start:
        return "it is empty, fetch or save it again"
    for beginning, right, advice in _MISTAKEN:
        if start.startswith(beginning) and path.suffix.lower() not in right:
            return advice.format(line=conversion(path.name))
    return "fetch or save it again"


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    import ml_dtypes  # noqa: F401 it gives numpy the type bfloat16
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no dictionary
    except AttributeError as error:  # numpy has no such type
        raise ValueError(f"{path} holds numbers of a type that is not read ({error}); save it as float32") from error
    except (SafetensorError, OSError, TypeError) as error:
        raise _UnreadableError(f"safetensors: {error}") from error
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items() if tensor.dtype.kind not in "iub"}


def _shards(path: Path) -> dict[str, np.ndarray]:
    """Tensors of several safetensors files, which an index beside them names for each tensor."""
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(places.values()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _UnreadableError(f"the index of several safetensors files: {error!r}") from error
    found: dict[str, np.ndarray] = {}
    for name in names:
        shard = path.parent / str(name)
        if shard.name != name or shard.suffix != ".safetensors":
            raise ValueError(
                f"{path} names {name!r}, which is no safetensors file beside it; give the index as it was saved"
            )
        if not shard.is_file():
            raise ValueError(f"{path} names {name}, which is not there; put all {len(names)} files beside it")
        found |= _tried(_safetensors, shard)
    return found


def _keras(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            return _hdf5(io.BytesIO(archive.read("model.weights.h5")), path)
    except (zipfile.BadZipFile, KeyError) as error:
        raise _UnreadableError(f"a Keras model: {error}") from error


def _hdf5_file(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        return _hdf5(file, path)


def _hdf5(stream: BinaryIO, path: Path) -> dict[str, np.ndarray]:
    import h5py

    try:
        with h5py.File(stream, "r") as file:
            datasets: dict[str, h5py.Dataset] = {}
            file.visititems(lambda name, item: datasets.update({name: item} if isinstance(item, h5py.Dataset) else {}))
            for name, dataset in datasets.items():
                if dataset.external or dataset.is_virtual:
                    raise ValueError(
                        f"{path}: {name!r} lies in another file, which is not followed; save the weights in one file"
                    )
            rename = _new_name if any(name.startswith("layers/") for name in datasets) else _old_name
            found = {rename(file, name): dataset for name, dataset in datasets.items() if dataset.dtype.kind == "f"}
            return {name: dataset[()].astype(np.float32) for name, dataset in found.items() if name}
    except (OSError, RuntimeError, KeyError) as error:
        raise _UnreadableError(f"HDF5: {error}") from error


def _old_name(file, name: str) -> str:
    """`conv1_conv/conv1_conv/kernel:0` -> `conv1_conv/kernel`; a saved model has its weights under `model_weights`.

    Where a layer holds others, their names stay: `block0/block0/query/kernel` -> `block0/query/kernel`.
    """
    layer, *inner = name.removeprefix("model_weights/").partition(":")[0].split("/")
    if layer == "optimizer_weights" or not inner:
        return ""
    below = inner.index(layer) + 1 if layer in inner else len(inner) - 1
    return "/".join((layer, *inner[below:]))


def _new_name(file, name: str) -> str:
    """`layers/conv2d_3/vars/0` -> `conv1_conv/kernel`; the group knows the layer's name, the number its variable.

    Where a layer holds others, their names follow: `layers/attention/query_dense/vars/0` -> `block0/query/kernel`.
    """
    parts = name.split("/")
    if len(parts) < 4 or parts[0] != "layers" or parts[-2] != "vars":
        return ""
    groups = (file.get("/".join((*parts[:end], "vars"))) for end in range(2, len(parts) - 1))
    layers = [group.attrs.get("name", group.name.split("/")[-2]) for group in groups if group is not None]
    names = _NAMES.get(re.sub(r"_\d+$", "", parts[-3]), ("kernel", "bias"))
    if len(names) - len(file["/".join(parts[:-1])]) == 1 and names[0] == "gamma":  # a normalisation without scale
        names = names[1:]
    index = int(parts[-1])
    return "/".join((*layers, names[index] if index < len(names) else str(index)))
