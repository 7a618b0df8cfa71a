"""Normalisation by statistics of the training rows, of features or groups of them, and by length."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers
from keras.src.ops import nn

from export.lowering import lowers
from export.lowering.arguments import axes_of, floats, in_floats, like, need, scalar, value, value_of
from export.lowering.arrays import static
from export.lowering.graph import Graph, Scaled, Value, array_of
from export.lowering.operations import add, multiply, reduced, subtract


@lowers(layers.BatchNormalization)
@in_floats
def _batch_normalization(graph: Graph, layer: Any, x: Value, mask: Value | None = None) -> Value:
    spread = np.sqrt(array_of(layer.moving_variance).astype(np.float64) + layer.epsilon)
    scale = (array_of(layer.gamma) if layer.scale else 1.0) / spread
    shift = (array_of(layer.beta) if layer.center else 0.0) - array_of(layer.moving_mean) * scale
    axis = layer.axis % x.rank
    last = axis == x.rank - 1
    if last and x.consumers == 1 and (folded := _folded(graph, x, scale, shift)):
        return folded
    first = last and x.channels_first
    shape = (-1, *[1] * (x.rank - 2 if first else x.rank - 1 - axis))
    factor = graph.weight(scale.astype(np.float32).reshape(shape), "scale")
    scaled = graph.add("Mul", x.first if first else x.name, factor)
    moved = graph.add("Add", scaled, graph.weight(shift.astype(np.float32).reshape(shape), "shift"))
    return graph.first(moved) if first else Value(graph, moved)


def _folded(graph: Graph, x: Value, scale: np.ndarray, shift: np.ndarray) -> Value | None:
    """A scale and shift per channel put into the convolution or product right before, None if there is none."""
    name = x.first if x.channels_first else x.name
    node = graph.producer.get(name)
    if node is None or node.op_type not in ("Conv", "Gemm", "ConvTranspose") or node.input[1] not in graph.weights:
        return None
    kernel = graph.weights[node.input[1]]
    channel = 0 if node.op_type == "Conv" else 1
    if kernel.shape[channel] != len(scale):
        return None
    shape = [1] * len(kernel.shape)
    shape[channel] = -1
    bias = np.asarray(graph.weights[node.input[2]]) if len(node.input) > 2 else 0.0
    with graph.within(node.name.rpartition("/")[0]):
        node.input[1] = graph.weight(Scaled(kernel, scale.reshape(shape)), "folded_kernel")
        moved = graph.weight((bias * scale + shift).astype(np.float32), "folded_bias")
    if len(node.input) > 2:
        node.input[2] = moved
    else:
        node.input.append(moved)
    for path in [path for path, known in graph.values.items() if known is x]:
        del graph.values[path]  # its tensor now holds the normalised values
    return like(x, graph.first(name) if x.channels_first else name)


@lowers(nn.BatchNorm)
def _batch_norm(
    graph: Graph, call: Any, x: Any, mean: Any, variance: Any, offset: Any = None, scale: Any = None
) -> Value:
    given = floats(graph, x)
    shape = [1] * given.rank
    for axis in axes_of(call.axis, given.rank):
        shape[axis] = given.shape[axis] or 1

    def wide(one: Any) -> Value:
        numbers = value_of(graph, one, given.dtype)
        return value(graph, graph.reshape(numbers, list(shape)), shape, given.dtype)

    root = graph.add("Sqrt", graph.add("Add", wide(variance), scalar(call.epsilon, given.dtype)))
    made = like(given, graph.add("Div", subtract(graph, given, wide(mean)), root))
    made = multiply(graph, made, wide(scale)) if scale is not None else made
    return add(graph, made, wide(offset)) if offset is not None else made


@lowers(layers.LayerNormalization)
@in_floats
def _layer_normalization(graph: Graph, layer: Any, inputs: Value) -> str:
    gamma = graph.variable(layer.gamma, "gamma") if layer.scale else None
    beta = graph.variable(layer.beta, "beta") if layer.center else None
    return _normalized(graph, inputs, layer.axis, layer.epsilon, gamma, beta)


@lowers(nn.LayerNorm)
def _layer_norm(graph: Graph, call: Any, x: Any, gamma: Any = None, beta: Any = None) -> str:
    need(not call.rms_scaling, "normalising by the root mean square")
    given = floats(graph, x)
    small = keras.config.epsilon() if call.epsilon is None else call.epsilon
    weights = (None if one is None else value_of(graph, one, given.dtype).name for one in (gamma, beta))
    return _normalized(graph, given, call.axis, small, *weights)


def _normalized(
    graph: Graph, x: Value, axis: Any, epsilon: float, gamma: str | None = None, beta: str | None = None
) -> str:
    """Mean 0 and variance 1 over some axes, then scaled and moved by weights of these axes' sizes.

    Ba, Kiros & Hinton 2016 (arXiv:1607.06450).
    """
    axes = axes_of(axis, x.rank)
    sizes = [x.shape[axis] for axis in axes]
    if axes == list(range(axes[0], x.rank)) and graph.opset >= 17 and None not in sizes:
        ones = gamma or graph.constant(np.ones(static(tuple(sizes)), np.float32), "gamma")
        return graph.add("LayerNormalization", x, ones, beta, axis=axes[0], epsilon=float(epsilon))
    middle = graph.add("Sub", x, graph.reduce("ReduceMean", x, axes, keepdims=True))
    variance = graph.reduce("ReduceMean", graph.add("Mul", middle, middle), axes, keepdims=True)
    made = graph.add("Div", middle, graph.add("Sqrt", graph.add("Add", variance, scalar(epsilon))))
    wide = [x.shape[place] if place in axes else 1 for place in range(x.rank)]
    made = graph.add("Mul", made, graph.reshape(gamma, wide)) if gamma else made
    return graph.add("Add", made, graph.reshape(beta, wide)) if beta else made


@lowers(layers.GroupNormalization)
@in_floats
def _group_normalization(graph: Graph, layer: Any, inputs: Value) -> Value:
    """Wu & He 2018: instance normalisation of a reshaped value, which ONNX Runtime has a node for."""
    need(layer.axis % inputs.rank == inputs.rank - 1 and inputs.rank > 2, "groups of another axis than the last")
    groups = static(inputs.shape[-1:])[0] if layer.groups == -1 else layer.groups
    flat = graph.add("Reshape", inputs.first, np.array([0, groups, -1], np.int64))
    ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
    even = graph.add("InstanceNormalization", flat, ones, zeros, epsilon=float(layer.epsilon))
    made = graph.add("Reshape", even, graph.add("Shape", inputs.first))
    shape = (-1, *[1] * (inputs.rank - 2))
    if layer.scale:
        made = graph.add("Mul", made, graph.variable(layer.gamma, "gamma", lambda array: array.reshape(shape)))
    if layer.center:
        made = graph.add("Add", made, graph.variable(layer.beta, "beta", lambda array: array.reshape(shape)))
    return graph.first(made)


@lowers(nn.RMSNorm)
def _root_mean_square(graph: Graph, call: Any, x: Any, scale: Any = None) -> Value:
    """Zhang & Sennrich 2019 (arXiv:1910.07467), in the form that ONNX Runtime computes in one node."""
    given = floats(graph, x)
    axes = axes_of(call.axis, given.rank)
    small = keras.config.epsilon() if call.epsilon is None else call.epsilon
    weight = None if scale is None else value_of(graph, scale, given.dtype)
    if graph.opset >= 23 and axes == list(range(axes[0], given.rank)) and weight is not None:
        return like(given, graph.add("RMSNormalization", given, weight, axis=axes[0], epsilon=small))
    square = graph.reduce("ReduceMean", graph.add("Pow", given, scalar(2, given.dtype)), axes, True)
    root = graph.add("Sqrt", graph.add("Add", square, scalar(small, given.dtype)))
    made = like(given, graph.add("Div", given, root))
    if weight is None:
        return made
    if weight.rank > 1 or axes != [given.rank - 1]:
        shape = [given.shape[place] if place in axes else 1 for place in range(given.rank)]
        weight = value(graph, graph.reshape(weight, shape), shape, given.dtype)
    return multiply(graph, made, weight)


@lowers(nn.Normalize)
def _normalize(graph: Graph, call: Any, x: Any) -> Value:
    need(call.order in (1, 2), f"normalising by the norm of order {call.order!r}")
    epsilon = keras.config.epsilon() if call.epsilon is None else call.epsilon
    return by_length(graph, floats(graph, x), call.axis, epsilon, call.order)


def by_length(graph: Graph, x: Value, axis: int | Sequence[int], epsilon: float | None = None, order: int = 2) -> Value:
    """A value divided by its norm of order 1 or 2 over some axes, or by a small number where that is larger."""
    length = reduced(graph, f"ReduceL{order}", x, axis, True)
    small = scalar(keras.config.epsilon() if epsilon is None else epsilon, x.dtype)
    return like(x, graph.add("Div", x, graph.add("Max", length, small)))
