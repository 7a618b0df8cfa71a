"""Pretrained weights: files of keras.applications, torchvision, timm and this package, by path or by declared name.

A file is read without running anything in it, translated to the names of our layers, and compared with the model in
full before the first value is set.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data import cache
from zoo.data.signature import ImagePreprocess, Signature
from zoo.registry import suggest
from zoo.weights import files, layouts

__all__ = ["Pretrained", "Source", "build_with", "to_convert"]

log = logging.getLogger("zoo.weights")
_WORDS = "words/embeddings"  # end of the names of matrices with a row for each token


@dataclass(frozen=True)
class Source:
    """Where the file behind a declared name comes from.

    Attributes:
        url: address; its last part names the file.
        checksum: `algorithm:hexadecimal digest`, as the publisher states it; "" where that is not known.
        licence: terms of the weights, and who states them.
        inputs: how the images were scaled that they were trained on, see `zoo.data.signature.read_scaling`.
    """

    url: str
    checksum: str
    licence: str
    inputs: str


@dataclass(frozen=True)
class Pretrained:
    """What `build_with` found out, left on the model as its attribute `pretrained`.

    Attributes:
        path: the file.
        arguments: the builder's arguments, with those that the file decided.
        scaling: how the weights expect images to be scaled, see `zoo.data.signature.read_scaling`; "" where nobody says.
        licence: terms of the weights, "" where nobody says.
        notes: what was loaded, what is fresh and what was adapted, a sentence each.
    """

    path: Path
    arguments: dict[str, Any]
    scaling: str
    licence: str = ""
    notes: tuple[str, ...] = ()


def build_with(entry: Any, weights: str | Path, arguments: dict[str, Any]) -> Any:
    """Build a model of the registry and load weights into it.

    The file decides what `arguments` leaves open, such as the number of classes and the stem. `classes` given and
    different from the file's, or a file without head, leaves a fresh head on the loaded backbone. Images of another number of channels than the
    file's three get an adapted first convolution, see `first_kernels`.

    Args:
        entry: `zoo.registry.Entry` of the model.
        weights: path of a `.safetensors`, `.h5` or `.keras` file, of the index of several, of a folder that holds
            `model.safetensors` or its index, or a name declared in `entry.weights`.
        arguments: builder arguments, as given by the caller.

    Returns:
        `keras.Model` with the weights set, and `Pretrained` as its attribute `pretrained`.

    Raises:
        ValueError: no such weights, or the file does not fit; the message lists what differs.
        OSError: a named file could not be downloaded; the message says where to put it.
    """
    path = _locate(entry, str(weights))
    layout, tensors, unknown = layouts.convert(files.read(path), entry, path)
    arguments = _complete(entry, path, layout, tensors, arguments)
    model = entry.build(**arguments)
    variables = {variable.path: variable for layer in model.layers for variable in layer.weights}
    classes = arguments.get("classes")  # an embedding has none, and its last layer is no head that could be fresh
    fresh = () if classes is None else _fresh(entry, arguments, tensors, variables)
    wanted = {name: tuple(variable.shape) for name, variable in variables.items() if name not in fresh}
    given = {name: tensor for name, tensor in tensors.items() if name not in fresh}
    given = layouts.fitted(entry, given, wanted)
    adapted = first_kernels(model, wanted, given)
    given |= adapted
    _compare(entry, path, layout, wanted, given, unknown)
    for name, tensor in given.items():
        variables[name].assign(tensor)
    notes = [f"{len(given)} tensors loaded from {path} ({layout.title})"]
    if fresh:
        head = layouts.head(entry, arguments)[0]
        had = f"{tensors[head].shape[-1]} classes" if head in tensors else "no head"
        more = sorted({name.partition("/")[0] for name in fresh if name in layouts.top(entry, arguments)}, reverse=True)
        what = f"the layers {', '.join(more)} and the head for {classes} classes are fresh: train them"
        notes.append(f"the file has {had}, so {what if more else f'the head for {classes} classes is fresh: train it'}")
    for name, tensor in given.items():
        if name.endswith(_WORDS) and len(tensor) < len(tensors[name]):
            over = len(tensors[name]) - len(tensor)
            notes.append(f"the last {over} rows of {name}, which no token has, are left out")
    for name, tensor in adapted.items():
        how = (
            "summed over its channels"
            if tensor.shape[-2] == 1
            else f"repeated over the channels, times 3/{tensor.shape[-2]}"
        )
        notes.append(f"the file's {name} is for RGB; for {tensor.shape[-2]} channels it is {how}")
    for note in notes:
        log.info("%s: %s", entry.name, note)
    licence = entry.weights.get(str(weights), {}).get("licence", "")
    model.pretrained = Pretrained(
        path, arguments, _scaling(entry, str(weights), layout, path), licence, notes=tuple(notes)
    )
    return model


def _fresh(
    entry: Any, arguments: dict[str, Any], tensors: dict[str, np.ndarray], variables: dict[str, Any]
) -> tuple[str, ...]:
    """Variables that the file cannot give, as it has no head or one for another number of classes."""
    head, top = layouts.head(entry, arguments), layouts.top(entry, arguments)
    if not head:
        return ()
    if top and not any(name in tensors for name in top):  # without what is in front of it a head says nothing
        return (*top, *head)
    if head[0] not in tensors:
        return head
    return head if tensors[head[0]].shape[-1] != variables[head[0]].shape[-1] else ()


def first_kernels(
    model: Any, wanted: dict[str, tuple[int, ...]], given: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Kernels for RGB, adapted to a model of another number of channels.

    One channel takes the sum over the three, which answers as the same grey in all three would; other numbers repeat the
    three in turn, times 3 / channels, so that what follows stays about as large. That is how timm adapts them.

    Args:
        model: Keras model; only convolutions that read its input itself, but for layers without weights such as a padding,
            are adapted.
        wanted: shapes of its variables by name.
        given: tensors of the file by name.

    Returns:
        The adapted kernels `(height, width, channels, filters)` by name; none where they fit as they are.
    """
    found = {}
    for layer in _first_layers(model):
        name = f"{layer.name}/kernel"
        if name not in wanted or name not in given:
            continue
        kernel, shape = given[name], wanted[name]
        if kernel.ndim == len(shape) == 4 and kernel.shape[2] == 3 != shape[2]:
            channels = shape[2]
            if channels == 1:
                found[name] = kernel.sum(axis=2, keepdims=True)
            else:
                found[name] = kernel[:, :, np.arange(channels) % 3] * np.float32(3 / channels)
    return found


def _first_layers(model: Any) -> list[Any]:
    """Layers with weights that read an input of the model, directly or through layers without weights."""
    raw = {id(tensor) for tensor in model.inputs}
    found = []
    for layer in model.layers:
        if not raw.isdisjoint(id(tensor) for node in layer._inbound_nodes for tensor in node.input_tensors):
            if layer.weights:
                found.append(layer)
            else:
                raw.update(id(tensor) for node in layer._inbound_nodes for tensor in node.output_tensors)
    return found


def _scaling(entry: Any, weights: str, layout: layouts.Layout, path: Path) -> str:
    """How the images are scaled that weights expect: as declared, as the run says that wrote them, or as usual."""
    if weights in entry.weights:
        return Source(**entry.weights[weights]).inputs
    beside = path.with_name("signature.json")
    if path.name == "model.keras" and beside.is_file():
        step = Signature.load(beside).preprocess
        return step.declaration if isinstance(step, ImagePreprocess) else ""
    return layout.scaling


def _locate(entry: Any, weights: str) -> Path:
    """The file behind a declared name or a path."""
    if weights in entry.weights:
        source = Source(**entry.weights[weights])
        place = cache.folder("weights", entry.name, weights)
        new = not (place / source.url.rsplit("/", 1)[-1]).exists()
        path = cache.fetch(source.url, source.checksum, place)
        if new:
            log.warning("weights %r of %s: licence %s; inputs %s", weights, entry.name, source.licence, source.inputs)
        return path
    path = Path(weights).expanduser()
    for name in ("model.safetensors.index.json", "model.safetensors"):  # a folder as Hugging Face saves one
        if (path / name).is_file():
            return path / name
    if path.is_dir():
        raise ValueError(f"{path} is a folder, {_inside(path)}")
    if not path.is_file():
        declared = f"it has {', '.join(map(repr, entry.weights))}" if entry.weights else "it has none by name"
        raise ValueError(
            f"{entry.name!r} has no weights called {weights!r} and there is no such file.{suggest(weights, entry.weights)} "
            f"Give a path or a declared name; {declared}{''.join(f'. {told}' for told in to_convert(entry))}"
        )
    return path


def _inside(folder: Path) -> str:
    """What to do with a folder, by the files of weights in it."""
    kinds = (".safetensors", ".keras", ".h5", ".hdf5", *files.PICKLED)
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in kinds)
    if any(re.fullmatch(r".+-\d+-of-\d+\.safetensors", name) for name in names):
        return (
            f"whose weights lie in several files ({', '.join(names[:3])}); put model.safetensors.index.json beside them"
        )
    if names:
        usual = "model.keras" if "model.keras" in names else names[0]
        return f"give the file of weights in it, such as {folder / usual}"
    return "and no file of weights is in it; give the file, or the folder that it is in"


def to_convert(entry: Any) -> list[str]:
    """What is published for a model as a pickle only, which is never opened, and how to convert it; a sentence each."""
    told = []
    for layout in layouts.known():
        if layout.pickle and layout.family == entry.family:
            names, inside, place, terms = layout.pickle
            told.append(
                f"{layout.title} is published as a pickle, which can run code when read and is not opened here: get {names} "
                f"from {place} ({terms}), and convert it where you trust it: {files.conversion(names.split(',')[0], inside)}"
            )
    return told


def _complete(
    entry: Any, path: Path, layout: layouts.Layout, tensors: dict[str, np.ndarray], arguments: dict[str, Any]
) -> dict[str, Any]:
    """The caller's arguments, with those the file decides."""
    found = dict(arguments)
    for name, value in layout.arguments.items():
        if found.setdefault(name, value) != value:
            raise ValueError(
                f"{path} is a {layout.title} file, which was made with {name}={value!r}, got {name}={found[name]!r}; leave it out"
            )
    found |= _told(entry, path, layout, found)
    decided = layouts.decided(entry, tensors)
    if "length" in found and decided.get("input_shape") == (decided.get("length"),):
        decided["input_shape"] = (found["length"],)  # texts as long as there are positions
    found = {**decided, **found}
    head = next(iter(layouts.head(entry, found)), "")
    if head and head not in tensors and "classes" not in found and "classes" in entry.signature:
        raise ValueError(f"{path} has no head, so the number of classes is unknown; pass classes=... for a fresh one")
    if head in tensors and "classes" in entry.signature:
        found.setdefault("classes", int(tensors[head].shape[-1]))
    return found


def _told(entry: Any, path: Path, layout: layouts.Layout, arguments: dict[str, Any]) -> dict[str, Any]:
    """Builder arguments by the `config.json` beside the file, such as heads, which the tensors do not show."""
    config = files.config(path) if layout.config else {}
    found: dict[str, Any] = {}
    for name, ours in layout.config.items():
        value: Any = config
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            continue
        says = f"the config.json beside {path} says {name}={value!r}"
        if isinstance(ours, tuple):
            if value not in ours:
                raise ValueError(
                    f"{says}, {entry.name} has {' or '.join(map(repr, ours))} alone. Nothing was loaded; take weights that "
                    "were trained so"
                )
            continue
        if type(value) not in (int, float):
            raise ValueError(f"{says}, which is no number; fetch or save it again")
        has = {**entry.arguments, **arguments, **found}.get(ours, value)
        if has != value:
            raise ValueError(f"{says}, {entry.name} has {ours}={has!r}. Nothing was loaded; pass {ours}={value!r}")
        found[ours] = value
    return found


def _compare(
    entry: Any,
    path: Path,
    layout: layouts.Layout,
    wanted: dict[str, tuple],
    given: dict[str, np.ndarray],
    unknown: list[str],
) -> None:
    """Raise a ValueError that lists every way in which file and model differ, or names the vocabulary that is another one."""
    for name in wanted:
        if name.endswith(_WORDS) and name in given and len(given[name]) != wanted[name][0]:
            beside = path.with_name("tokenizer.json")
            raise ValueError(
                f"{path} ({layout.title}) has a vocabulary of {len(given[name]):,} tokens, the model one of {wanted[name][0]:,}, and "
                "what the rows of the embeddings stand for is known to the file's own tokenizer alone. Nothing was loaded; leave "
                f"vocabulary out, and take that tokenizer: tokenizer={beside if beside.is_file() else 'FOLDER/tokenizer.json'}"
            )
    missing = [name for name in wanted if name not in given]
    surplus = [*(name for name in given if name not in wanted), *unknown]
    shapes = [
        f"{name} is {given[name].shape} in the file and {shape} in the model"
        for name, shape in wanted.items()
        if name in given and given[name].shape != shape
    ]
    endless = [name for name, tensor in given.items() if not np.isfinite(tensor).all()]
    if not (missing or surplus or shapes or endless):
        return
    parts = []
    blocks = layouts.blocks(given), layouts.blocks(wanted)
    if blocks[0] != blocks[1]:
        parts.append(f"its stages have {blocks[0]} blocks, the model's {blocks[1]}")
    for title, names in (
        ("missing", missing),
        ("not in the model", surplus),
        ("of another shape", shapes),
        ("not finite", endless),
    ):
        if names:
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            parts.append(f"{title} ({len(names)}): {', '.join(names[:6])}{more}")
    raise ValueError(
        f"{path} ({layout.title}) does not fit {entry.name}: {'; '.join(parts)}. Nothing was loaded; "
        f"take the model and arguments the file was made with"
    )
