"""What has no form of its own is converted alone by tf2onnx; needs TensorFlow as the Keras backend.

This is the only file that touches tf2onnx.
"""

import logging
from typing import Any

import keras
import numpy as np
import onnx
from onnx import numpy_helper

from export import ExportError
from export.lowering.arguments import value as as_value
from export.lowering.graph import Graph, Value, stored
from export.lowering.walk import values_in

_OPSET = 18  # the newest that tf2onnx 1.17 writes


def convert(graph: Graph, operation: Any, args: Any, kwargs: Any) -> Any:
    """Write one call of a layer or operation as TensorFlow computes it.

    Args:
        graph: where to write, its scope being the layer's path.
        operation: Keras layer or operation; its weights become constants.
        args, kwargs: of the call, tensors being values, whose masks go with them.

    Returns:
        The call's result, tensors being values with their masks.

    Raises:
        ExportError: TensorFlow operations are left that ONNX does not have; the message names the layer.
    """
    import tensorflow as tf
    import tf2onnx

    given = values_in((args, kwargs))
    masks = [value.mask for value in given if value.mask is not None]
    inputs = given + [mask for mask in masks if mask is not None]
    specs = [tf.TensorSpec(v.shape, stored(v.dtype), name=f"input{place}") for place, v in enumerate(inputs)]
    structure: list[Any] = []

    def call(*tensors: Any) -> dict[str, Any]:
        left = iter(tensors[len(given) :])
        for value, tensor in zip(given, tensors, strict=False):
            if value.mask is not None:
                keras.src.backend.set_keras_mask(tensor, next(left))
        table = {id(value): tensor for value, tensor in zip(given, tensors, strict=False)}
        filled = keras.tree.map_structure(lambda leaf: table.get(id(leaf), leaf), (args, kwargs))
        options = {"training": False} if getattr(operation, "_call_has_training_arg", False) else {}
        result = operation(*filled[0], **filled[1], **options)
        structure[:] = [result]
        answers = {}
        for place, tensor in enumerate(keras.tree.flatten(result)):
            answers[f"output{place}"] = tf.identity(tensor)
            mask = keras.src.backend.get_keras_mask(tensor)
            if mask is not None:
                answers[f"mask{place}"] = tf.identity(mask)
        return answers

    function = tf.function(call, input_signature=specs, autograph=False)
    place = f"layer {graph.scope!r} ({type(operation).__name__})"
    log = logging.getLogger("tf2onnx")
    level = log.level
    log.setLevel(logging.CRITICAL)  # what it could not convert is found below, with the layer's name
    try:
        traced = function.get_concrete_function()
        proto, _ = tf2onnx.convert.from_function(function, input_signature=specs, opset=min(graph.opset, _OPSET))
    except Exception as error:
        raise ExportError(f"cannot export: {place} could not be converted: {error}") from error
    finally:
        log.setLevel(level)
    for node in proto.graph.node:
        if not node.domain and not onnx.defs.has(node.op_type):
            raise ExportError(
                f"cannot export: {place} uses the TensorFlow operation {node.op_type!r}, which has no ONNX form here; "
                "express the layer with other keras.ops"
            )
    captured = {t.name: value.numpy() for value, t in traced.graph.captures if t.dtype != tf.resource}
    names = _splice(graph, proto, {f"input{i}": value.name for i, value in enumerate(inputs)}, captured)
    made = []
    for position, _ in enumerate(keras.tree.flatten(structure[0])):
        value = Value(graph, names[f"output{position}"])
        if f"mask{position}" in names:
            value.mask = as_value(graph, names[f"mask{position}"], given[0].shape[:2], "bool")
        made.append(value)
    left = iter(made)
    return keras.tree.map_structure(lambda _: next(left), structure[0])


def _splice(
    graph: Graph, proto: onnx.ModelProto, inputs: dict[str, str], captured: dict[str, np.ndarray]
) -> dict[str, str]:
    """Copy a converted graph in, under new names; new name of each of its outputs."""
    renamed = dict(inputs)
    for tensor in proto.graph.initializer:
        renamed[tensor.name] = graph.weight(numpy_helper.to_array(tensor), "constant")
    for value in proto.graph.input:
        if value.name in captured:
            renamed[value.name] = graph.weight(np.asarray(captured[value.name]), "constant")
    _copy(graph, proto.graph.node, renamed)
    for entry in proto.opset_import:
        if entry.domain:
            graph.domains[entry.domain] = entry.version
    return {output.name: renamed[output.name] for output in proto.graph.output}


def _copy(graph: Graph, nodes: Any, renamed: dict[str, str]) -> None:
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = graph.unique(node.op_type)
        for place, name in enumerate(node.output):
            renamed[name] = copy.name if len(node.output) == 1 else graph.unique(f"{node.op_type}_output{place}")
            copy.output[place] = renamed[name]
        _rename(copy, renamed)
        graph.append(copy)


def _rename(node: onnx.NodeProto, renamed: dict[str, str]) -> None:
    """New names for what a node reads, also inside its loops and branches, whose own names stay."""
    for place, name in enumerate(node.input):
        node.input[place] = renamed.get(name, name)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            body = attribute.g
            own = {n for inner in body.node for n in inner.output} | {v.name for v in body.input}
            own |= {tensor.name for tensor in body.initializer}
            outer = {name: new for name, new in renamed.items() if name not in own}
            for inner in body.node:
                _rename(inner, outer)
            for value in body.output:
                value.name = outer.get(value.name, value.name)
