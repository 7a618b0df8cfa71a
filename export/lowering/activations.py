"""Activations, as layers and as the `activation` argument of other layers."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import activations, layers

from export.lowering import lowers
from export.lowering.graph import Graph, Value
from export.lowering.walk import lower_function

Build = Callable[[Graph, str], str]


def number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def _gelu(graph: Graph, x: str) -> str:
    """Hendrycks & Gimpel 2016 (arXiv:1606.08415), exact; below opset 20 in the form that ONNX Runtime fuses."""
    if graph.opset >= 20:
        return graph.add("Gelu", x)
    inside = graph.add("Erf", graph.add("Div", x, number(math.sqrt(2))))
    return graph.add("Mul", graph.add("Mul", x, graph.add("Add", inside, number(1))), number(0.5))


def _gelu_tanh(graph: Graph, x: str) -> str:
    if graph.opset >= 20:
        return graph.add("Gelu", x, approximate="tanh")
    cube = graph.add("Mul", graph.add("Mul", graph.add("Mul", x, x), x), number(0.044715))
    inside = graph.add("Tanh", graph.add("Mul", graph.add("Add", x, cube), number(math.sqrt(2 / math.pi))))
    return graph.add("Mul", graph.add("Mul", x, graph.add("Add", inside, number(1))), number(0.5))


def _silu(graph: Graph, x: str) -> str:
    return graph.add("Mul", x, graph.add("Sigmoid", x))


def _hard_sigmoid(graph: Graph, x: str) -> str:
    return graph.add("HardSigmoid", x, alpha=1 / 6, beta=0.5)


def _clip(graph: Graph, x: str, low: float, high: float) -> str:
    return graph.add("Clip", x, number(low), number(high))


def _squareplus(graph: Graph, x: str) -> str:
    root = graph.add("Sqrt", graph.add("Add", graph.add("Mul", x, x), number(4)))
    return graph.add("Mul", graph.add("Add", x, root), number(0.5))


def _simple(operation: str, **attributes: Any) -> Build:
    return lambda graph, x: graph.add(operation, x, **attributes)


# None of these depends on the order of the axes.
ELEMENTWISE: dict[Any, Build] = {
    activations.linear: lambda graph, x: x,
    activations.relu: _simple("Relu"),
    activations.relu6: lambda graph, x: _clip(graph, x, 0, 6),
    activations.leaky_relu: _simple("LeakyRelu", alpha=0.2),
    activations.elu: _simple("Elu", alpha=1.0),
    activations.celu: _simple("Celu", alpha=1.0),
    activations.selu: _simple("Selu"),
    activations.gelu: _gelu,
    activations.silu: _silu,
    activations.mish: lambda graph, x: graph.add("Mul", x, graph.add("Tanh", graph.add("Softplus", x))),
    activations.tanh: _simple("Tanh"),
    activations.sigmoid: _simple("Sigmoid"),
    activations.hard_sigmoid: _hard_sigmoid,
    activations.hard_silu: lambda graph, x: graph.add("Mul", x, _hard_sigmoid(graph, x)),
    activations.hard_tanh: lambda graph, x: _clip(graph, x, -1, 1),
    activations.softplus: _simple("Softplus"),
    activations.softsign: _simple("Softsign"),
    activations.exponential: _simple("Exp"),
    activations.log_sigmoid: lambda graph, x: graph.add("Neg", graph.add("Softplus", graph.add("Neg", x))),
    activations.squareplus: _squareplus,
    activations.tanh_shrink: lambda graph, x: graph.add("Sub", x, graph.add("Tanh", x)),
}
OVER_LAST_AXIS = {activations.softmax: "Softmax", activations.log_softmax: "LogSoftmax"}


def activate(graph: Graph, function: Any, x: Value) -> Value:
    """Write an activation function over a value, whose shape must be set."""
    if function is None or function is activations.linear:
        return x
    if function in ELEMENTWISE:
        return like(x, graph.elementwise(lambda name: ELEMENTWISE[function](graph, name), x))
    if function in OVER_LAST_AXIS:
        return like(x, softmax(graph, OVER_LAST_AXIS[function], x, -1))
    return lower_function(graph, function, x)


def like(x: Value, made: Value) -> Value:
    """A value with the shape and dtype of another, for what is written in several steps."""
    made.shape, made.dtype = x.shape, x.dtype
    return made


def softmax(graph: Graph, operation: str, x: Value, axis: int) -> Value:
    """Softmax over one axis, in whichever order of axes the value has."""
    axis %= x.rank
    if x.channels_first:
        order = [0, x.rank - 1, *range(1, x.rank - 1)]  # place in ONNX order -> axis of Keras
        return graph.first(graph.add(operation, x.first, axis=order.index(axis)))
    return Value(graph, graph.add(operation, x, axis=axis))


@lowers(layers.Activation)
def _activation(graph: Graph, layer: Any, x: Value) -> Value:
    return activate(graph, layer.activation, x)


@lowers(layers.ReLU)
def _relu(graph: Graph, layer: Any, x: Value) -> Value:
    def build(name: str) -> str:
        if layer.negative_slope == 0 and layer.threshold == 0:
            return _clip(graph, name, 0, layer.max_value) if layer.max_value is not None else graph.add("Relu", name)
        above = graph.add("Greater", name, number(layer.threshold))
        below = graph.add("Mul", graph.add("Sub", name, number(layer.threshold)), number(layer.negative_slope))
        kept = name if layer.max_value is None else graph.add("Min", name, number(layer.max_value))
        return graph.add(
            "Where", graph.add("Or", above, graph.add("Equal", name, number(layer.threshold))), kept, below
        )

    return graph.elementwise(build, x)


@lowers(layers.LeakyReLU)
def _leaky(graph: Graph, layer: Any, x: Value) -> Value:
    return graph.elementwise(lambda name: graph.add("LeakyRelu", name, alpha=float(layer.negative_slope)), x)


@lowers(layers.ELU)
def _elu(graph: Graph, layer: Any, x: Value) -> Value:
    return graph.elementwise(lambda name: graph.add("Elu", name, alpha=float(layer.alpha)), x)


@lowers(layers.PReLU)
def _prelu(graph: Graph, layer: Any, x: Value) -> str:
    return graph.add("PRelu", x, graph.variable(layer.alpha, "alpha"))


@lowers(layers.Softmax)
def _softmax(graph: Graph, layer: Any, x: Value, mask: Value | None = None) -> Value:
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    if mask is not None:
        away = graph.add("Where", mask.name, number(0), number(-3e38))
        x = like(x, Value(graph, graph.add("Add", x, away)))
    if len(axes) == 1:
        return softmax(graph, "Softmax", x, axes[0])
    axes = sorted(axis % x.rank for axis in axes)
    largest = graph.reduce("ReduceMax", x, axes, keepdims=True)
    powers = graph.add("Exp", graph.add("Sub", x, largest))
    return Value(graph, graph.add("Div", powers, graph.reduce("ReduceSum", powers, axes, keepdims=True)))


_OPERATIONS = {
    "Relu": activations.relu, "Relu6": activations.relu6, "Selu": activations.selu, "Sigmoid": activations.sigmoid,
    "Silu": activations.silu, "Softplus": activations.softplus, "Softsign": activations.softsign, "Tanh": activations.tanh,
    "HardSigmoid": activations.hard_sigmoid, "HardSilu": activations.hard_silu, "HardTanh": activations.hard_tanh,
    "LogSigmoid": activations.log_sigmoid, "TanhShrink": activations.tanh_shrink,
}  # fmt: skip


def _register_operations() -> None:
    """The same functions where a model calls them from `keras.ops`; those with arguments of their own follow below."""
    from keras.src.ops import nn, numpy

    def emitter(function: Any) -> Any:
        return lambda graph, operation, x: activate(graph, function, x)

    for name, function in _OPERATIONS.items():
        lowers(getattr(nn, name, None) or getattr(numpy, name))(emitter(function))

    @lowers(nn.Gelu)
    def gelu(graph: Graph, operation: Any, x: Value) -> Value:
        build = _gelu_tanh if operation.approximate else _gelu
        return graph.elementwise(lambda name: build(graph, name), x)

    @lowers(nn.LeakyRelu)
    def leaky(graph: Graph, operation: Any, x: Value) -> Value:
        return graph.elementwise(lambda name: graph.add("LeakyRelu", name, alpha=float(operation.negative_slope)), x)

    @lowers(nn.Elu)
    def elu(graph: Graph, operation: Any, x: Value) -> Value:
        return graph.elementwise(lambda name: graph.add("Elu", name, alpha=float(operation.alpha)), x)

    @lowers(nn.Celu)
    def celu(graph: Graph, operation: Any, x: Value) -> Value:
        return graph.elementwise(lambda name: graph.add("Celu", name, alpha=float(operation.alpha)), x)

    @lowers(nn.Softmax)
    def softmax_operation(graph: Graph, operation: Any, x: Value) -> Value:
        if not isinstance(operation.axis, int):
            axes = range(x.rank) if operation.axis is None else operation.axis
            return _softmax(graph, layers.Softmax(axis=list(axes)), x)
        return softmax(graph, "Softmax", x, operation.axis)

    @lowers(nn.LogSoftmax)
    def log_softmax_operation(graph: Graph, operation: Any, x: Value) -> Value:
        return softmax(graph, "LogSoftmax", x, operation.axis)


_register_operations()
