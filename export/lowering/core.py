"""Dense layers, embeddings, merges, reshapes, normalisation over features, and layers that do nothing at inference."""

from typing import Any

import keras
import numpy as np
from keras import layers

from export.lowering import NotLoweredError, lowers
from export.lowering.activations import activate, like, number
from export.lowering.graph import Graph, Value, array_of, known, product
from export.lowering.walk import lower_model

_IDENTITIES = (
    layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D, layers.AlphaDropout,
    layers.GaussianDropout, layers.GaussianNoise, layers.ActivityRegularization, layers.Identity,
    layers.RandomBrightness, layers.RandomContrast, layers.RandomFlip, layers.RandomRotation,
    layers.RandomTranslation, layers.RandomZoom,
)  # fmt: skip


@lowers(*_IDENTITIES)
def _identity(graph: Graph, layer: Any, x: Value) -> Value:
    return x


@lowers(keras.Model, keras.Sequential)
def _model(graph: Graph, model: Any, inputs: Any, mask: Any = None) -> Any:
    """A functional model inside another one."""
    inner = model if not isinstance(model, keras.Sequential) else model._functional
    if not hasattr(inner, "_nodes_by_depth"):
        raise NotLoweredError(f"{model.name!r} has no graph")
    given = [leaf for leaf in keras.tree.flatten(inputs) if isinstance(leaf, Value)]
    found = iter(lower_model(graph, inner, given))
    return keras.tree.map_structure(lambda _: next(found), inner._outputs_struct)


lowers(keras.src.models.functional.Functional)(_model)


def matrix_product(graph: Graph, x: Value, kernel: str, bias: str | None) -> str:
    """x @ kernel + bias over the last axis; two axes become one Gemm, which ONNX Runtime has the fastest form of."""
    if x.rank == 2:
        return graph.add("Gemm", x, kernel, bias)
    made = graph.add("MatMul", x, kernel)
    return graph.add("Add", made, bias) if bias else made


@lowers(layers.Dense)
def _dense(graph: Graph, layer: Any, x: Value) -> Value:
    if layer.quantization_mode is not None:
        raise NotLoweredError(f"layer {layer.name!r} holds {layer.quantization_mode} weights")
    kernel = (
        graph.weight(array_of(layer.kernel), "kernel")
        if layer.lora_enabled
        else graph.variable(layer._kernel, "kernel")
    )
    bias = graph.variable(layer.bias, "bias") if layer.use_bias else None
    made = Value(graph, matrix_product(graph, x, kernel, bias))
    made.shape, made.dtype = (*x.shape[:-1], layer.units), x.dtype
    return activate(graph, layer.activation, made)


@lowers(layers.Embedding)
def _embedding(graph: Graph, layer: Any, inputs: Value) -> Value:
    if layer.quantization_mode is not None:
        raise NotLoweredError(f"layer {layer.name!r} holds {layer.quantization_mode} weights")
    whole = inputs if inputs.dtype in ("int32", "int64") else graph.cast(inputs, "int32")
    table = graph.weight(array_of(layer.embeddings), "embeddings") if layer.lora_enabled else graph.variable(
        layer._embeddings, "embeddings")  # fmt: skip
    made = Value(graph, graph.add("Gather", table, whole, axis=0))
    if layer.mask_zero:
        zero = np.array(0, np.int64 if inputs.dtype == "int64" else np.int32)
        made.mask = like(inputs, Value(graph, graph.add("Not", graph.add("Equal", whole, zero))))
        made.mask.dtype = "bool"
    return made


@lowers(layers.Masking)
def _masking(graph: Graph, layer: Any, inputs: Value) -> Value:
    differs = graph.add("Not", graph.add("Equal", inputs, number(layer.mask_value)))
    kept = graph.reduce("ReduceMax", graph.cast(differs, "float32"), [inputs.rank - 1], keepdims=True)
    made = Value(graph, graph.add("Mul", inputs, kept))
    steps = graph.add("Squeeze", kept, np.array([inputs.rank - 1]))
    made.mask = like(inputs, Value(graph, graph.cast(steps, "bool")))
    made.mask.shape, made.mask.dtype = inputs.shape[:-1], "bool"
    return made


@lowers(layers.Flatten)
def _flatten(graph: Graph, layer: Any, inputs: Value) -> Value | str:
    if layer.data_format == "channels_first":
        raise NotLoweredError("flattening with channels first")
    if inputs.rank == 1:
        return graph.add("Unsqueeze", inputs, np.array([1]))
    return inputs if inputs.rank == 2 else graph.add("Flatten", inputs, axis=1)


@lowers(layers.Reshape)
def _reshape(graph: Graph, layer: Any, inputs: Value) -> str:
    target = [size if size != -1 else None for size in layer.target_shape]
    batch: int | str | None = inputs.shape[0]
    if batch is None:
        known_sizes = None not in target or (known(inputs.shape[1:]) and product(inputs.shape[1:]) is not None)
        if None in target and known_sizes:
            rest = product([size for size in target if size is not None]) or 1
            target[target.index(None)] = (product(inputs.shape[1:]) or 0) // rest
        batch = None if None not in target else graph.size(inputs, 0)
    return graph.reshape(inputs, [batch, *target])


@lowers(layers.Permute)
def _permute(graph: Graph, layer: Any, inputs: Value) -> str:
    return graph.add("Transpose", inputs, perm=[0, *layer.dims])


@lowers(layers.RepeatVector)
def _repeat(graph: Graph, layer: Any, inputs: Value) -> str:
    return graph.add("Tile", graph.add("Unsqueeze", inputs, np.array([1])), np.array([1, layer.n, 1], np.int64))


_MERGES = {
    layers.Add: "Sum", layers.Multiply: "Mul", layers.Average: "Mean", layers.Maximum: "Max", layers.Minimum: "Min",
    layers.Subtract: "Sub",
}  # fmt: skip


@lowers(*_MERGES)
def _merge(graph: Graph, layer: Any, inputs: list[Value]) -> Value:
    operation = (
        _MERGES[type(layer)] if type(layer) in _MERGES else next(_MERGES[k] for k in _MERGES if isinstance(layer, k))
    )
    rank = max(value.rank for value in inputs)
    raised = [_raise(graph, value, rank) for value in inputs]
    whole = not inputs[0].dtype.startswith(("float", "bfloat"))

    def build(*names: str) -> str:
        if operation in ("Max", "Min") or (operation == "Mean" and not whole):
            return graph.add(operation, *names)
        made = names[0]
        for name in names[1:]:
            made = graph.add("Add" if operation == "Sum" else operation, made, name)
        return made

    if operation == "Mean" and whole:
        raise NotLoweredError("the average of integers")
    made = graph.elementwise(build, *raised)
    made.mask = merged_mask(graph, inputs)
    return made


def _raise(graph: Graph, value: Value, rank: int) -> Value:
    """The value with as many axes as asked for, the new ones after the batch."""
    if value.rank == rank:
        return value
    axes = np.arange(1, 1 + rank - value.rank)
    made = Value(graph, graph.add("Unsqueeze", value, axes))
    made.shape, made.dtype = (value.shape[0], *[1] * len(axes), *value.shape[1:]), value.dtype
    return made


def merged_mask(graph: Graph, inputs: list[Value]) -> Value | None:
    """A step counts where it counts in any input; no mask if one input has none."""
    masks = [value.mask for value in inputs]
    if not masks or any(mask is None for mask in masks):
        return None
    made = masks[0]
    for mask in masks[1:]:
        if mask is not made and mask is not None and made is not None:
            made = like(made, Value(graph, graph.add("Or", made, mask)))
    return made


@lowers(layers.Concatenate)
def _concatenate(graph: Graph, layer: Any, inputs: list[Value]) -> Value:
    rank = inputs[0].rank
    axis = layer.axis % rank
    if any(value.mask is not None for value in inputs):
        raise NotLoweredError("a concatenation of masks")
    if any(value.channels_first for value in inputs):
        place = [0, rank - 1, *range(1, rank - 1)].index(axis)
        return graph.first(graph.add("Concat", *(value.first for value in inputs), axis=place))
    return Value(graph, graph.add("Concat", *inputs, axis=axis))


@lowers(layers.Rescaling)
def _rescaling(graph: Graph, layer: Any, inputs: Value) -> Value:
    x = inputs if inputs.dtype.startswith("float") else like(inputs, Value(graph, graph.cast(inputs, "float32")))
    scale, offset = np.asarray(layer.scale, np.float32), np.asarray(layer.offset, np.float32)

    def build(name: str) -> str:
        scaled = graph.add("Mul", name, scale)
        return scaled if not offset.any() else graph.add("Add", scaled, offset)

    return graph.elementwise(build, x) if scale.ndim == offset.ndim == 0 else Value(graph, build(x.name))


@lowers(layers.LayerNormalization)
def _layer_normalization(graph: Graph, layer: Any, inputs: Value) -> str:
    axes = sorted(axis % inputs.rank for axis in (layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]))
    trailing = axes == list(range(inputs.rank - len(axes), inputs.rank))
    shape = [inputs.shape[axis] or 1 for axis in axes]
    gamma = graph.variable(layer.gamma, "gamma") if layer.scale else graph.constant(np.ones(shape, np.float32), "gamma")
    beta = graph.variable(layer.beta, "beta") if layer.center else None
    if trailing and graph.opset >= 17:
        return graph.add("LayerNormalization", inputs, gamma, beta, axis=axes[0], epsilon=float(layer.epsilon))
    middle = graph.add("Sub", inputs, graph.reduce("ReduceMean", inputs, axes, keepdims=True))
    variance = graph.reduce("ReduceMean", graph.add("Mul", middle, middle), axes, keepdims=True)
    made = graph.add("Div", middle, graph.add("Sqrt", graph.add("Add", variance, number(layer.epsilon))))
    wide = np.array([inputs.shape[axis] if axis in axes else 1 for axis in range(inputs.rank)], np.int64)
    made = graph.add("Mul", made, graph.add("Reshape", gamma, wide))
    return graph.add("Add", made, graph.add("Reshape", beta, wide)) if beta else made
