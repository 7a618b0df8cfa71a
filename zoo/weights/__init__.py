"""Pretrained weights: files of keras.applications, torchvision, timm and this package, by path or by declared name.

A file is read without running anything in it, translated to the names of our layers, and compared with the model in
full before the first value is set.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data import cache
from zoo.registry import suggest
from zoo.weights import files, layouts

__all__ = ["Source", "build_with"]

log = logging.getLogger("zoo.weights")

HEAD = ("logits/kernel", "logits/bias")


@dataclass(frozen=True)
class Source:
    """Where the file behind a declared name comes from.

    Attributes:
        url: address; its last part names the file.
        checksum: `algorithm:hexadecimal digest`, as the publisher states it.
        licence: terms of the weights, and who states them.
        inputs: scale of the images they were trained on, which a new run may keep or learn again.
    """

    url: str
    checksum: str
    licence: str
    inputs: str


def build_with(entry: Any, weights: str | Path, arguments: dict[str, Any]) -> Any:
    """Build a model of the registry and load weights into it.

    The file decides what `arguments` leaves open: the number of classes, the stem, and which convolution of a
    bottleneck has the stride. `classes` given and different from the file's leaves a fresh head on the loaded backbone.

    Args:
        entry: `zoo.registry.Entry` of the model.
        weights: path of a `.safetensors`, `.h5` or `.keras` file, or a name declared in `entry.weights`.
        arguments: builder arguments, as given by the caller.

    Returns:
        `keras.Model` with the weights set.

    Raises:
        ValueError: no such weights, or the file does not fit; the message lists what differs.
        OSError: a named file could not be downloaded; the message says where to put it.
    """
    path = _locate(entry, str(weights))
    layout, tensors, unknown = layouts.convert(files.read(path), entry, path)
    arguments = _complete(entry, path, layout, tensors, arguments)
    model = entry.build(**arguments)
    variables = {f"{layer.name}/{variable.name}": variable for layer in model.layers for variable in layer.weights}
    fresh = HEAD[0] not in tensors or tensors[HEAD[0]].shape[-1] != arguments["classes"]
    wanted = {name: tuple(variable.shape) for name, variable in variables.items() if not (fresh and name in HEAD)}
    given = {name: tensor for name, tensor in tensors.items() if not (fresh and name in HEAD)}
    _compare(entry, path, layout, wanted, given, unknown)
    for name, tensor in given.items():
        variables[name].assign(tensor)
    log.info("%s: %d tensors loaded from %s (%s)", entry.name, len(given), path, layout.title)
    if fresh:
        had = f"{tensors[HEAD[0]].shape[-1]} classes" if HEAD[0] in tensors else "no head"
        log.info(
            "%s: the file has %s, so the head for %d classes is fresh: train it", entry.name, had, arguments["classes"]
        )
    return model


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
    if not path.is_file():
        declared = f"it has {', '.join(map(repr, entry.weights))}" if entry.weights else "it has none by name"
        raise ValueError(
            f"{entry.name!r} has no weights called {weights!r} and there is no such file.{suggest(weights, entry.weights)} "
            f"Give a path or a declared name; {declared}"
        )
    return path


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
    if "stem" in entry.signature and "stem_conv/kernel" in tensors:
        found.setdefault("stem", "imagenet" if tensors["stem_conv/kernel"].shape[0] == 7 else "small")
    if "classes" not in found:
        if HEAD[0] not in tensors:
            raise ValueError(
                f"{path} has no head, so the number of classes is unknown; pass classes=... for a fresh one"
            )
        found["classes"] = int(tensors[HEAD[0]].shape[-1])
    return found


def _compare(
    entry: Any,
    path: Path,
    layout: layouts.Layout,
    wanted: dict[str, tuple],
    given: dict[str, np.ndarray],
    unknown: list[str],
) -> None:
    """Raise a ValueError that lists every way in which file and model differ."""
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
