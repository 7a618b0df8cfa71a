"""Keras model to ONNX file: written layer by layer, and compared with Keras before it is kept.

Nodes are named after the Keras layer they come from (`stage0_conv/Conv`), so that errors and INT8 can name layers.
"""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
from onnx import helper

from export import ExportError, files, maps, parity
from export.edges import AFTER, add_edges
from export.lowering import NotLoweredError
from export.lowering.graph import Graph, Value, onnx_type
from export.lowering.walk import lower_function, lower_model
from export.process import layer_paths, through_tensorflow
from zoo import tasks
from zoo.data.signature import Signature

OPSET = 18
DTYPES = {"FP32": "float32", "UINT8": "uint8", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}


def to_onnx(
    model: Any,
    path: str | Path,
    *,
    signature: Signature | None = None,
    opset: int = OPSET,
    golden: dict[str, np.ndarray] | None = None,
    tolerance: float = parity.TOLERANCE,
    external_above: int = files.EXTERNAL_ABOVE,
    activation_map: bool | str = False,
) -> Path:
    """Write a Keras model as an ONNX file that has been run and gives the same answers.

    Without a signature, inputs and outputs are the model's own: float tensors in, `logits` out. With one, the file
    takes raw inputs (`image` uint8, or `numbers` float32 with NaN where missing and `categories` strings) and gives
    `probabilities` (batch, classes), or `value` (batch, 1) in the target's unit, or what else the task's `outputs` name:
    of a segmentation `probabilities` (batch, height, width, classes) and `mask` uint8 (batch, height, width). The batch
    axis is free.

    Args:
        model: functional Keras model on any backend, giving logits.
        path: file to write; it appears only when everything agreed, and an older file stays otherwise.
        signature: preprocessing, labels and task to put inside the file.
        opset: version of the ONNX operator set, 13 or newer.
        golden: inputs to compare with Keras on, by name, each (batch, ...) with the same batch; drawn at random if
            None.
        tolerance: largest difference allowed, relative to the largest answer where that is above 1.
        external_above: bytes of weights from which they are written to `<path>.data` beside the file.
        activation_map: also the output `activation_map`, which shows where the network found what speaks for a class:
            True or "top" for the most probable class, (batch, height, width), or "all" for every class, (batch, height,
            width, classes). Each is the class's logit less its bias, place by place, and has it as its mean (Zhou et
            al. 2016, arXiv:1512.04150). The model must end in global average pooling and at most one dense layer.

    Returns:
        The path written.

    Raises:
        ExportError: an operation has no ONNX form, the file does not run, or its answers differ; the message names
            the first Keras layer that differs. The model has no activation maps.
    """
    path = Path(path)
    check(model, signature)
    classes = maps.wanted(activation_map)
    if classes:
        maps.check(model)
    _check_options(opset, tolerance, external_above)
    model = in_float32(model)
    golden = parity.sample(model, signature) if golden is None else parity.checked(model, signature, golden, "golden")
    with files.draft(path) as draft:
        options: dict[str, Any] = {"opset": opset, "external_above": external_above, "activation_map": classes}
        try:
            write(model, signature, draft, **options)
        except NotLoweredError:  # on another backend than TensorFlow
            through_tensorflow("export.convert", model, signature, draft, **options)
        parity.gate(model, signature, draft, golden, tolerance)
        if classes:
            maps.gate(model, signature, draft, golden, classes, tolerance)
    return path


def _check_options(opset: int, tolerance: float, external_above: int) -> None:
    newest = onnx.defs.onnx_opset_version()
    if not _is_whole(opset) or not 13 <= opset <= newest:
        raise ExportError(f"opset must be a whole number from 13 to {newest}, got opset={opset!r}")
    parity.check_numbers(tolerance=tolerance)
    if tolerance < 0:
        raise ExportError(f"tolerance must be at least 0, got tolerance={tolerance!r}")
    if not _is_whole(external_above) or external_above < 0:
        raise ExportError(
            f"external_above must be a whole number of bytes, at least 0, got external_above={external_above!r}"
        )


def _is_whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def check(model: Any, signature: Signature | None) -> None:
    """Refuse what cannot become a file that is right.

    Raises:
        ExportError: the model has no graph of its own, a fixed batch or an input called as an output, ends in a
            softmax, or does not fit the signature.
    """
    name = getattr(model, "name", type(model).__name__)
    if not getattr(model, "inputs", None):
        raise ExportError(
            f"cannot export {name!r}: it has no inputs of its own ({type(model).__name__}); build it as a functional keras.Model"
        )
    for tensor in model.inputs:
        if tensor.shape[0] is not None:
            raise ExportError(
                f"cannot export {name!r}: input {tensor.name!r} has a fixed batch of {tensor.shape[0]}, and that of a "
                "file is free; build the model with shape= in place of batch_shape="
            )
    if signature is None:
        taken = {tensor.name for tensor in model.inputs} & set(parity.output_names(model))
        if taken:
            raise ExportError(
                f"cannot export {name!r}: {sorted(taken)[0]!r} is the name of an input and of an output of the file; "
                "call the input otherwise, or put a keras.layers.Identity behind it"
            )
        return
    last = model.outputs[0]._keras_history.operation
    if getattr(getattr(last, "activation", None), "__name__", "") == "softmax" or isinstance(
        last, keras.layers.Softmax
    ):
        raise ExportError(
            f"cannot export {name!r}: layer {last.name!r} ends in a softmax, which the file adds itself; let the model give logits"
        )
    expected, own = signature.shapes, tasks.get(signature.task).raw_shape(signature)
    shapes = tasks.input_shapes(model)
    if expected != shapes:
        raise ExportError(
            f"cannot export {name!r}: the signature gives {tasks.shapes_told(expected)}, the model takes "
            f"{tasks.shapes_told(shapes)}; build the model with input_shape={signature.preprocess.shape}"
        )
    found = [tuple(tensor.shape) for tensor in model.outputs]
    if own is not None and found != [(None, *own)]:
        what = f"{own[0]} outputs" if len(own) == 1 else f"outputs of {own}"
        raise ExportError(
            f"cannot export {name!r}: the signature has {what}, the model gives {found}; "
            f"build the model with classes={signature.outputs}"
        )


def in_float32(model: Any) -> Any:
    """The model itself, or a copy that computes in float32 where layers compute in half precision.

    The weights of a mixed-precision model are float32 already, so the copy is the more exact of the two; half
    precision on CPUs runs in few ONNX operators, so a file in float16 is made from the float32 one.
    """
    if all(layer.compute_dtype == "float32" for _, layer in layer_paths(model) if "float" in layer.compute_dtype):
        return model

    def exact(layer: Any) -> Any:
        try:
            return type(layer).from_config(_without_half(layer.get_config()))
        except Exception as error:  # a function in the configuration, or one that its class does not take back
            raise ExportError(
                f"cannot export {model.name!r}: layer {layer.name!r} computes in half precision and has no copy in "
                "float32; build the model with dtype policy 'float32' and load these weights"
            ) from error

    twin = keras.models.clone_model(model, clone_function=exact, recursive=True)
    twin.set_weights([array.astype("float32") if array.dtype.kind == "V" else array for array in model.get_weights()])
    for _, layer in layer_paths(twin):
        if hasattr(layer, "finalize_state"):  # statistics that are kept beside the weights
            layer.finalize_state()
    return twin


def _without_half(config: Any) -> Any:
    """A layer's configuration with every half-precision policy in it replaced by float32."""
    match config:
        case {"class_name": "DTypePolicy" | "FloatDTypePolicy"}:
            return "float32"
        case dict():
            return {key: _without_half(value) for key, value in config.items()}
        case list() | tuple():
            return type(config)(_without_half(value) for value in config)
        case "mixed_float16" | "mixed_bfloat16" | "float16" | "bfloat16":
            return "float32"
    return config


def write(
    model: Any,
    signature: Signature | None,
    path: Path,
    opset: int,
    external_above: int = files.EXTERNAL_ABOVE,
    activation_map: str = "",
    names: Sequence[str] | None = None,
) -> None:
    """Write an ONNX file that nobody has run yet; `names` are those of its outputs where they are not the model's.

    Raises:
        ExportError: an operation has no ONNX form; the message names the layer.
        NotLoweredError: a layer needs the TensorFlow backend to be converted.
    """
    graph = Graph(opset)
    proto = _convert(graph, model, activation_map, signature, names)
    if signature is not None:
        add_edges(proto, signature)
    proto.producer_name, proto.producer_version = "zooroad", importlib.import_module("zoo").__version__
    produced = {name for node in proto.graph.node for name in node.output}
    layers = {path: value.written for path, value in graph.values.items() if value.written in produced}
    facts = {"layers": json.dumps(layers), "keras": keras.__version__}
    if signature is not None:
        facts |= {"task": signature.task, "labels": json.dumps(signature.labels, ensure_ascii=False)}
    helper.set_model_props(proto, facts)
    read = _reads(proto.graph.node)
    files.write(proto, {name: array for name, array in graph.weights.items() if name in read}, path, external_above)


def _convert(
    graph: Graph, model: Any, activation_map: str, signature: Signature | None, public: Sequence[str] | None = None
) -> onnx.ModelProto:
    """ONNX graph of the model with what its task decodes in `keras.ops`, without its weights."""
    inputs, described = [], []
    for tensor in model.inputs:
        value = Value(graph, graph.unique(tensor.name))
        value.shape, value.dtype = tuple(tensor.shape), keras.backend.standardize_dtype(tensor.dtype)
        inputs.append(value)
        described.append(_describe(tensor.name, value.dtype, value.shape))
    names, answers = list(public or parity.output_names(model)), []
    values = lower_model(graph, model, inputs)
    for name, value in zip(names, values, strict=True):
        _name_output(graph, value, name, names, values)
        answers.append(_describe(name, "float32", value.shape))
    if signature is not None:
        own = inputs[0] if len(inputs) == 1 else dict(zip((t.name for t in model.inputs), inputs, strict=True))
        names, answers = _decoded(graph, signature, names, answers, values, own)
    if activation_map:
        answers.append(maps.add(graph, model, activation_map))
        names = [*names, maps.NAME]
    imports = [helper.make_opsetid("", graph.opset), *(helper.make_opsetid(*entry) for entry in graph.domains.items())]
    body = helper.make_graph(_needed(graph.nodes, names), model.name, described, answers)
    version = helper.find_min_ir_version_for(imports, ignore_unknown=True)
    return helper.make_model(body, opset_imports=imports, ir_version=version)


def _decoded(
    graph: Graph,
    signature: Signature,
    names: list[str],
    answers: list[onnx.ValueInfoProto],
    values: list[Value],
    inputs: Value | dict[str, Value],
) -> tuple[list[str], list[onnx.ValueInfoProto]]:
    """Names and descriptions of the outputs after the task's own decoding, if it has one."""
    task = tasks.get(signature.task)
    if not tasks.decodes(task):
        return names, answers
    for value in values:
        value.consumers += 1
    raw = values[0] if len(values) == 1 else values
    with graph.within(AFTER):
        made = lower_function(graph, lambda given, own: task.decode_of(given, own, signature), raw, inputs)
    described = []
    for output in task.outputs(signature):
        value = made[output.name]
        dtype = DTYPES[output.dtype]
        last = value.name if value.dtype == dtype else graph.cast(value, dtype)
        graph.append(helper.make_node("Identity", [last], [output.name], name=graph.unique(output.name)))
        sizes = [
            size if size >= 0 else known or f"{output.name}_{axis}"
            for size, axis, known in zip(output.shape, output.axes, value.shape[1:], strict=True)
        ]
        described.append(helper.make_tensor_value_info(output.name, onnx_type(dtype), ["batch", *sizes]))
    return [output.name for output in task.outputs(signature)], described


def _name_output(graph: Graph, value: Value, name: str, public: list[str], values: list[Value]) -> None:
    """Give a tensor its public name and float32; an input, or a tensor with a public name already, is copied."""
    last = value.name if value.dtype in ("float32", "float16", "bfloat16") else graph.cast(value, "float32")
    if last not in graph.producer or last in public:
        graph.append(helper.make_node("Identity", [last], [name], name=graph.unique(f"{name}/Identity")))
        return
    _rename(graph.nodes, last, name)
    for known in [*graph.values.values(), *values]:
        known.rename(last, name)


def _rename(nodes: Any, old: str, new: str) -> None:
    """Call a tensor otherwise, also inside the loops and branches that read it."""
    for node in nodes:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _rename(attribute.g.node, old, new)


def _describe(name: str, dtype: str, shape: tuple[int | None, ...]) -> onnx.ValueInfoProto:
    """Type and sizes of an input or output; the first axis is "batch" where it is free."""
    free = {3: ["batch", "length"], 2: ["batch", "length"], 4: ["batch", "height", "width"]}.get(len(shape), ["batch"])
    dims: list[int | str] = []
    for axis, size in enumerate(shape):
        label = free[axis] if axis < len(free) else f"axis{axis}"
        dims.append(size if size is not None else label if label == "batch" else f"{name}_{label}")
    return helper.make_tensor_value_info(name, onnx_type(dtype), dims)


def _reads(nodes: Any) -> set[str]:
    """Names that nodes read, also inside their loops and branches."""
    found: set[str] = set()
    for node in nodes:
        found.update(node.input)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found |= _reads(attribute.g.node) | {value.name for value in attribute.g.output}
    return found


def _needed(nodes: list[onnx.NodeProto], outputs: list[str]) -> list[onnx.NodeProto]:
    """Nodes that the outputs depend on, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= _reads([node])
            kept.append(node)
    return kept[::-1]


def layer_of(node: onnx.NodeProto) -> str:
    """Name of the Keras layer that a node was written for; "" if none is known."""
    return node.name.partition("/")[0] if "/" in node.name else ""
