"""Keras model to ONNX file: traced by TensorFlow, converted by tf2onnx, and compared with Keras before it is kept.

This is the only file that touches tf2onnx. Nodes are named after the Keras layer they come from
(`stage0_conv/convolution`), so that errors and INT8 can name layers.
"""

import contextlib
import importlib
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
from onnx import numpy_helper

from export import ExportError, parity
from export.edges import add_edges
from export.process import layer_paths, through_tensorflow
from zoo.data.signature import Signature

OPSET = 18


def to_onnx(
    model: Any,
    path: str | Path,
    *,
    signature: Signature | None = None,
    opset: int = OPSET,
    golden: dict[str, np.ndarray] | None = None,
    tolerance: float = parity.TOLERANCE,
) -> Path:
    """Write a Keras model as an ONNX file that has been run and gives the same answers.

    Without a signature, inputs and outputs are the model's own: float tensors in, `logits` out. With one, the file
    takes raw inputs (`image` uint8, or `numbers` float32 with NaN where missing and `categories` strings) and gives
    `probabilities` (batch, classes), or `value` (batch, 1) in the target's unit. The batch axis is free.

    Args:
        model: functional Keras model on any backend, giving logits.
        path: file to write; it appears only when everything agreed, and an older file stays otherwise.
        signature: preprocessing, labels and task to put inside the file.
        opset: version of the ONNX operator set, at least 13.
        golden: inputs to compare with Keras on, by name, each (batch, ...) with the same batch; drawn at random if None.
        tolerance: largest difference allowed, relative to the largest answer where that is above 1.

    Returns:
        The path written.

    Raises:
        ExportError: an operation has no ONNX form, the file does not run, or its answers differ; the message names
            the first Keras layer that differs.
    """
    path = Path(path)
    if opset < 13:
        raise ExportError(f"opset must be at least 13, got opset={opset}")
    check(model, signature)
    golden = golden or parity.sample(model, signature)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        draft = Path(folder) / "model.onnx"
        through_tensorflow("export.convert", model, signature, draft, opset=opset)
        parity.gate(model, signature, draft, golden, tolerance)
        draft.replace(path)
    return path


def check(model: Any, signature: Signature | None) -> None:
    """Refuse what cannot become a file that is right.

    Raises:
        ExportError: the model has no graph of its own, ends in a softmax, or does not fit the signature.
    """
    name = getattr(model, "name", type(model).__name__)
    if not getattr(model, "inputs", None):
        raise ExportError(
            f"cannot export {name!r}: it has no inputs of its own ({type(model).__name__}); build it as a functional keras.Model"
        )
    if signature is None:
        return
    last = model.outputs[0]._keras_history.operation
    if getattr(getattr(last, "activation", None), "__name__", "") == "softmax" or isinstance(
        last, keras.layers.Softmax
    ):
        raise ExportError(
            f"cannot export {name!r}: layer {last.name!r} ends in a softmax, which the file adds itself; let the model give logits"
        )
    expected, outputs = (None, *signature.preprocess.shape), (None, signature.outputs)
    shapes = [tuple(tensor.shape) for tensor in model.inputs]
    if shapes != [expected]:
        raise ExportError(
            f"cannot export {name!r}: the signature gives one input {expected}, the model takes {shapes}; "
            f"build the model with input_shape={signature.preprocess.shape}"
        )
    if len(model.outputs) != 1 or tuple(model.outputs[0].shape) != outputs:
        raise ExportError(
            f"cannot export {name!r}: the signature has {signature.outputs} outputs, the model gives "
            f"{[tuple(tensor.shape) for tensor in model.outputs]}; build the model with classes={signature.outputs}"
        )


def write(model: Any, signature: Signature | None, path: Path, opset: int) -> None:
    """Write an ONNX file that nobody has run yet; needs the TensorFlow backend."""
    proto = _convert(model, opset)
    if signature is not None:
        add_edges(proto, signature)
    proto.producer_name, proto.producer_version = "zooroad", importlib.import_module("zoo").__version__
    proto.graph.name = model.name
    facts = {"layers": json.dumps(_values(proto, model)), "keras": keras.__version__}
    if signature is not None:
        facts |= {"task": signature.task, "labels": json.dumps(signature.labels, ensure_ascii=False)}
    onnx.helper.set_model_props(proto, facts)
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"cannot export {model.name!r}: the converted graph is not valid ONNX: {error}") from error
    onnx.save(proto, path)


def _convert(model: Any, opset: int) -> onnx.ModelProto:
    """ONNX graph of the model alone, by tf2onnx."""
    import tensorflow as tf
    import tf2onnx

    inputs = [tensor.name for tensor in model.inputs]
    outputs = ["logits"] if len(model.outputs) == 1 else list(model.output_names)

    def call(*tensors: Any) -> dict[str, Any]:
        given = tensors[0] if len(tensors) == 1 else dict(zip(inputs, tensors, strict=True))
        answers = keras.tree.flatten(model(given, training=False))
        return {name: tf.cast(answer, tf.float32) for name, answer in zip(outputs, answers, strict=True)}

    specs = [tf.TensorSpec(t.shape, t.dtype, name=t.name) for t in model.inputs]
    function = tf.function(call, input_signature=specs, autograph=False)
    with _layer_scopes(model):
        traced = function.get_concrete_function()
    constants = {t.name: value.numpy() for value, t in traced.graph.captures if t.dtype != tf.resource}
    log = logging.getLogger("tf2onnx")
    level = log.level
    log.setLevel(logging.CRITICAL)  # what it could not convert is found below, with the layer's name
    try:
        proto, _ = tf2onnx.convert.from_function(function, input_signature=specs, opset=opset)
    except Exception as error:
        raise ExportError(f"cannot export {model.name!r}: the converter failed: {error}") from error
    finally:
        log.setLevel(level)
    _check_operations(proto, model.name)
    graph = proto.graph
    for value in [value for value in graph.input if value.name in constants]:
        graph.input.remove(value)
        graph.initializer.append(numpy_helper.from_array(np.asarray(constants[value.name]), value.name))
    del graph.value_info[:]
    for value in graph.input:
        _set_shape(value, model.inputs[inputs.index(value.name)].shape)
    for value in graph.output:
        _set_shape(value, model.outputs[outputs.index(value.name)].shape)
    return proto


@contextlib.contextmanager
def _layer_scopes(model: Any) -> Iterator[None]:
    """While tracing, name each operation after its layer's path, exactly (TensorFlow alone appends numbers)."""
    import tensorflow as tf

    def scoped(call: Any, scope: str) -> Any:
        def inner(*args: Any, **kwargs: Any) -> Any:
            with tf.name_scope(scope):  # a trailing slash makes the name absolute
                return call(*args, **kwargs)

        return inner

    paths = dict(layer_paths(model))
    try:
        for path, layer in paths.items():
            vars(layer)["call"] = scoped(layer.call, f"{path}/")
        yield
    finally:
        for layer in paths.values():
            vars(layer).pop("call", None)


def _check_operations(proto: onnx.ModelProto, name: str) -> None:
    for node in proto.graph.node:
        if not node.domain and not onnx.defs.has(node.op_type):
            raise ExportError(
                f"cannot export {name!r}: layer {node.name.partition('/')[0]!r} uses the TensorFlow operation "
                f"{node.op_type!r}, which has no ONNX form here; express the layer with other keras.ops"
            )


def _set_shape(value: onnx.ValueInfoProto, shape: tuple[int | None, ...]) -> None:
    """Declare sizes, the free first axis as "batch"."""
    dims = value.type.tensor_type.shape
    dims.SetInParent()
    del dims.dim[:]
    for axis, size in enumerate(shape):
        dim = dims.dim.add()
        if size is not None:
            dim.dim_value = size
        else:
            dim.dim_param = "batch" if axis == 0 else f"{value.name}_axis{axis}"


def _values(proto: onnx.ModelProto, model: Any) -> dict[str, str]:
    """ONNX value that holds each top-level layer's output, for layers that were not folded into their neighbours."""
    names = {layer.name for layer in model.layers}
    return {
        layer: output
        for node in proto.graph.node
        if (layer := node.name.partition("/")[0]) in names
        for output in node.output[:1]
    }


def layer_of(node: onnx.NodeProto, initializers: set[str]) -> str:
    """Path of the Keras layer whose weights a node uses, or that it was traced from; "" if none is known."""
    weights = [name for name in node.input if name in initializers and "/" in name]
    return (weights or [node.name])[0].rpartition("/")[0].partition("/")[0]
