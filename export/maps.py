"""Class activation maps inside the ONNX file: where a convolutional network found what speaks for a class.

They cost one small product on top of what the model computes anyway, with weights that the file holds already. The
score of a class is the mean of its map plus its bias, so a device can show the reason for every answer it gives.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from export import ExportError, parity
from export.lowering.arguments import trained
from export.lowering.graph import Graph
from serve.manifest import Port
from zoo.data.signature import Signature
from zoo.explain.activations import Head, head_of, pooled

NAME = "activation_map"
CLASSES = ("top", "all")  # the map of the most probable class, or of every class
_SMALLEST = 1e-3  # logits: classes that lie closer may change places by a rounding


def wanted(activation_map: Any) -> str:
    """Which classes get a map: "top", "all", or "" for none.

    Raises:
        ExportError: neither of these, nor True or False.
    """
    if isinstance(activation_map, bool) or activation_map == "":
        return "top" if activation_map else ""
    if activation_map not in CLASSES:
        raise ExportError(
            f"activation_map must be True, False, {' or '.join(map(repr, CLASSES))}, got {activation_map!r}"
        )
    return str(activation_map)


def check(model: Any) -> Head:
    """The end of a model that can have maps.

    Raises:
        ExportError: it has no global average pooling with at most one dense layer behind it, or several outputs.
    """
    try:
        found = head_of(model)
    except ValueError as error:
        raise ExportError(f"cannot export {NAME!r}: {error}") from error
    if len(model.outputs) != 1:
        raise ExportError(f"cannot export {NAME!r}: {model.name!r} has {len(model.outputs)} outputs; give it one")
    return found


def add(graph: Graph, model: Any, classes: str) -> ValueInfoProto:
    """Write the nodes behind the model's own and its `logits`, and describe what they give.

    Raises:
        ExportError: the model's end has no maps, or they are not in the graph.
    """
    head = check(model)
    path = head.path + head.maps._keras_history.operation.name
    if path not in graph.values:
        raise ExportError(
            f"cannot export {NAME!r}: what {head.pool.name!r} averages is no value of its own in the file"
        )
    maps = graph.values[path].name  # (batch, ..., channels)
    places, channels = tuple(head.maps.shape[1:-1]), head.maps.shape[-1]
    if all(size == 1 for size in places):
        warnings.warn(
            f"the {NAME} of {model.name!r} has one place and cannot show where a class was seen; leave it out, or train on "
            "larger inputs",
            stacklevel=2,
        )
    with graph.within(NAME):
        top = graph.add("ArgMax", "logits", axis=1, keepdims=0) if classes == "top" else ""
        if head.dense is None:
            # per row one channel: the product with its column of the identity
            kernel = graph.constant(np.eye(channels, dtype=np.float32), "identity") if top else ""
        else:
            with graph.within(head.path + head.dense.name):
                kernel = trained(graph, head.dense, "kernel")
        if not top:
            made = graph.add("MatMul", maps, kernel) if kernel else maps
            shape = [*places, model.outputs[0].shape[-1]]
        else:
            column = graph.add("Gather", kernel, top, axis=1)  # (channels, batch)
            column = graph.add("Unsqueeze", graph.add("Transpose", column, perm=[1, 0]), np.array([2]))
            flat = graph.reshape(maps, [graph.size(maps, 0), None, channels])
            made = graph.add("MatMul", flat, column)  # (batch, places, 1)
            sizes = [size if size is not None else graph.size(maps, axis) for axis, size in enumerate(places, start=1)]
            made = graph.reshape(made, [graph.size(maps, 0), *sizes])
            shape = list(places)
        graph.append(helper.make_node("Identity", [made], [NAME], name=graph.unique("Identity")))
    names = ("time",) if len(places) == 1 else ("height", "width")
    free = ["batch", *(size or f"{NAME}_{axis}" for size, axis in zip(shape, (*names, "classes"), strict=False))]
    return helper.make_tensor_value_info(NAME, TensorProto.FLOAT, free)


def truth(model: Any, signature: Signature | None, rows: parity.Arrays, classes: str) -> np.ndarray:
    """The maps as Keras has them, (batch, height, width) of the most probable class, or (..., classes) of all."""
    logits, maps = _every(model, signature, rows)
    return _of(maps, logits.argmax(axis=1)) if classes == "top" else maps


def gate(
    model: Any, signature: Signature | None, path: Path, rows: parity.Arrays, classes: str, tolerance: float
) -> None:
    """Compare the maps of a file with Keras.

    Raises:
        ExportError: they differ by more than the tolerance, relative to the largest value where that is above 1.
    """
    found = parity.run(parity.session(path), rows)[NAME]
    logits, maps = _every(model, signature, rows)
    if classes == "all":
        gap = parity.distance(found, maps)
    else:  # of classes that are equally probable up to a rounding, any will do
        best = logits.argmax(axis=1)
        likely = [np.flatnonzero(row >= row[place] - _SMALLEST) for row, place in zip(logits, best, strict=True)]
        gap = max(
            min(parity.distance(found[row : row + 1], _of(maps[row : row + 1], np.array([place]))) for place in places)
            for row, places in enumerate(likely)
        )
    allowed = tolerance * max(1.0, float(np.abs(maps).max(initial=0)))
    if not gap <= allowed:
        raise ExportError(
            f"the {NAME} of the exported {model.name!r} differs from Keras by {gap:.3g}, allowed is {allowed:.3g}; "
            "nothing was written"
        )


def _every(model: Any, signature: Signature | None, rows: parity.Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Logits (batch, classes), and the maps of all classes (batch, height, width, classes), as Keras has them."""
    head = check(model)
    kernel, _ = head.weights()
    outputs, parts = [], []
    for start in range(0, len(next(iter(rows.values()))), parity.CHUNK):
        some = {name: values[start : start + parity.CHUNK] for name, values in rows.items()}
        logits, maps = pooled(model, head, parity.own_inputs(model, signature, some))
        outputs.append(logits)
        parts.append((maps @ kernel).astype(np.float32))
    return np.concatenate(outputs), np.concatenate(parts)


def _of(maps: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Each row's map of one class."""
    return np.stack([each[..., place] for each, place in zip(maps, classes, strict=True)])


def port(model: Any, classes: str) -> Port:
    """What a manifest says of them."""
    head = check(model)
    sizes = [-1 if size is None else size for size in head.maps.shape[1:-1]]
    axes = ["time"] if len(sizes) == 1 else ["height", "width"]
    if classes == "all":
        sizes, axes = [*sizes, model.outputs[0].shape[-1]], [*axes, "classes"]
    of = "each class" if classes == "all" else "the most probable class"
    return Port(
        NAME, "FP32", (-1, *sizes), ("batch", *axes), unit=f"logit of {of} less its bias, which is the map's mean"
    )
