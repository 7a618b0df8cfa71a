"""Models in models, dense layers, embeddings, reshapes, merges, and layers that do nothing at inference."""

import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers
from keras.src.models.functional import Functional

from export.lowering import NotLoweredError, lowers
from export.lowering.activations import activate
from export.lowering.algebra import einsum
from export.lowering.arguments import floats, in_floats, is_float, together, trained, typed, value
from export.lowering.arrays import joined, transposed
from export.lowering.graph import Graph, Value, known, product
from export.lowering.normalization import by_length
from export.lowering.walk import lower_model, values_in

_IDENTITIES = (
    layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D, layers.AlphaDropout,
    layers.GaussianDropout, layers.GaussianNoise, layers.ActivityRegularization, layers.Identity,
)  # fmt: skip


@lowers(*_IDENTITIES)
def _identity(graph: Graph, layer: Any, x: Value) -> Value:
    return x


@lowers(Functional, keras.Sequential)
def _model(graph: Graph, model: Any, inputs: Any, mask: Any = None) -> Any:
    """A model inside another one: what it takes is cast to what its inputs are, and brings its masks along."""
    given = []
    masks = keras.tree.flatten(mask) if mask is not None else [None] * len(model.inputs)
    for one, own, tensor in zip(values_in(inputs), masks, model.inputs, strict=True):
        cast = typed(graph, one, keras.backend.standardize_dtype(tensor.dtype))
        if own is not None and own is not cast.mask:
            cast = graph.alias(cast)
            cast.mask = own
        given.append(cast)
    found = iter(lower_model(graph, model, given))
    return keras.tree.map_structure(lambda _: next(found), getattr(model, "_functional", model)._outputs_struct)


def matrix_product(graph: Graph, x: Value, kernel: str, bias: str | None) -> str:
    """x @ kernel + bias over the last axis; two axes become one Gemm, which ONNX Runtime has the fastest form of."""
    if x.rank == 2:
        return graph.add("Gemm", x, kernel, bias)
    made = graph.add("MatMul", x, kernel)
    return graph.add("Add", made, bias) if bias else made


@lowers(layers.Dense)
@in_floats
def _dense(graph: Graph, layer: Any, x: Value) -> Value:
    kernel = trained(graph, layer, "kernel")
    bias = graph.variable(layer.bias, "bias") if layer.use_bias else None
    made = Value(graph, matrix_product(graph, x, kernel, bias))
    made.shape, made.dtype = (*x.shape[:-1], layer.units), x.dtype
    return activate(graph, layer.activation, made)


@lowers(layers.Embedding)
def _embedding(graph: Graph, layer: Any, inputs: Value) -> Value:
    whole = inputs if inputs.dtype in ("int32", "int64") else typed(graph, inputs, "int32")
    table = trained(graph, layer, "embeddings")
    return Value(graph, graph.add("Gather", table, whole, axis=0))


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
    return transposed(graph, inputs, [0, *layer.dims])


@lowers(layers.RepeatVector)
def _repeat(graph: Graph, layer: Any, inputs: Value) -> Value:
    name = graph.add("Tile", graph.add("Unsqueeze", inputs, np.array([1])), np.array([1, layer.n, 1], np.int64))
    return value(graph, name, (inputs.shape[0], layer.n, inputs.shape[1]), inputs.dtype)


_MERGES = {
    layers.Add: "Add", layers.Multiply: "Mul", layers.Average: "Mean", layers.Maximum: "Max", layers.Minimum: "Min",
    layers.Subtract: "Sub",
}  # fmt: skip


@lowers(*_MERGES)
def _merge(graph: Graph, layer: Any, inputs: list[Value]) -> Value:
    operation = next(_MERGES[kind] for kind in type(layer).__mro__ if kind in _MERGES)
    if operation in ("Mul", "Max", "Min") and any(one.mask is not None for one in inputs):
        raise NotLoweredError("masked steps that do not count in the result")
    values = together(graph, *inputs)
    if not is_float(values[0].dtype):
        raise NotLoweredError("a merge of whole numbers")
    rank = max(one.rank for one in values)
    raised = [_raised(graph, one, rank) for one in values]

    def build(*names: str) -> str:
        if operation in ("Max", "Min", "Mean"):
            return graph.add(operation, *names)
        return functools.reduce(functools.partial(graph.add, operation), names)

    return graph.elementwise(build, *raised)


def _raised(graph: Graph, x: Value, rank: int) -> Value:
    """The value with as many axes as asked for, the new ones after the batch."""
    if x.rank == rank:
        return x
    axes = np.arange(1, 1 + rank - x.rank)
    return value(graph, graph.add("Unsqueeze", x, axes), (x.shape[0], *[1] * len(axes), *x.shape[1:]), x.dtype)


@lowers(layers.Concatenate)
def _concatenate(graph: Graph, layer: Any, inputs: list[Value]) -> Value:
    return joined(graph, together(graph, *inputs), layer.axis)


@lowers(layers.Rescaling)
def _rescaling(graph: Graph, layer: Any, inputs: Value) -> Value:
    x = floats(graph, inputs)
    scale, offset = np.asarray(layer.scale, np.float32), np.asarray(layer.offset, np.float32)

    def build(name: str) -> str:
        scaled = graph.add("Mul", name, scale)
        return scaled if not offset.any() else graph.add("Add", scaled, offset)

    return graph.elementwise(build, x) if scale.ndim == offset.ndim == 0 else Value(graph, build(x.name))


@lowers(layers.Dot)
@in_floats
def _dot(graph: Graph, layer: Any, inputs: Sequence[Value]) -> str:
    x, y = inputs
    axes = (layer.axes, layer.axes) if isinstance(layer.axes, int) else tuple(layer.axes)
    a, b = axes[0] % x.rank, axes[1] % y.rank
    if layer.normalize:
        x, y = by_length(graph, x, a), by_length(graph, y, b)
    first, second = list("abcdef"[: x.rank]), list("auvwxy"[: y.rank])
    second[b] = first[a]
    kept = [letter for letter in first + second[1:] if letter != first[a]]
    made = einsum(graph, f"{''.join(first)},{''.join(second)}->{''.join(kept)}", x, y)
    return graph.add("Unsqueeze", made, np.array([1])) if len(kept) == 1 else made
