"""Activations, as layers and as the `activation` argument of other layers."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import activations, layers
from keras.src.ops import nn, numpy

from export.lowering import lowers
from export.lowering.arguments import axes_of, floats, in_floats, like, need, scalar, value_of
from export.lowering.graph import Graph, Value
from export.lowering.operations import ordered
from export.lowering.walk import lower_function

Build = Callable[[Graph, str], str]


def _gelu(graph: Graph, x: str) -> str:
    """Hendrycks & Gimpel 2016 (arXiv:1606.08415), exact; below opset 20 in the form that ONNX Runtime fuses."""
    if graph.opset >= 20:
        return graph.add("Gelu", x)
    inside = graph.add("Erf", graph.add("Div", x, scalar(math.sqrt(2))))
    return graph.add("Mul", graph.add("Mul", x, graph.add("Add", inside, scalar(1))), scalar(0.5))


def _gelu_tanh(graph: Graph, x: str) -> str:
    """The same, nearly; below opset 20 in the form that ONNX Runtime fuses."""
    if graph.opset >= 20:
        return graph.add("Gelu", x, approximate="tanh")
    curve = graph.add("Add", graph.add("Mul", graph.add("Mul", x, scalar(0.044715)), x), scalar(1))
    inside = graph.add("Tanh", graph.add("Mul", graph.add("Mul", x, scalar(math.sqrt(2 / math.pi))), curve))
    return graph.add("Mul", graph.add("Mul", x, scalar(0.5)), graph.add("Add", inside, scalar(1)))


def _silu(graph: Graph, x: str) -> str:
    return graph.add("Mul", x, graph.add("Sigmoid", x))


def _hard_sigmoid(graph: Graph, x: str) -> str:
    return graph.add("HardSigmoid", x, alpha=1 / 6, beta=0.5)


def _clip(graph: Graph, x: str, low: float, high: float) -> str:
    return graph.add("Clip", x, scalar(low), scalar(high))


def _squareplus(graph: Graph, x: str, curve: float = 4) -> str:
    root = graph.add("Sqrt", graph.add("Add", graph.add("Mul", x, x), scalar(curve)))
    return graph.add("Mul", graph.add("Add", x, root), scalar(0.5))


def _simple(operation: str, **attributes: Any) -> Build:
    return lambda graph, x: graph.add(operation, x, **attributes)


# None of these depends on the order of the axes.
ELEMENTWISE: dict[Any, Build] = {
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


def softmax(graph: Graph, operation: str, x: Value, axis: Any) -> Value:
    """Softmax or LogSoftmax over one axis, several or all (None), in whichever order of axes the value has."""
    axes = axes_of(axis, x.rank)
    if len(axes) == 1:
        if x.channels_first:
            return graph.first(graph.add(operation, x.first, axis=x.place(axes[0])))
        return Value(graph, graph.add(operation, x, axis=axes[0]))
    need(operation == "Softmax", "the logarithm of a softmax over several axes")
    largest = graph.reduce("ReduceMax", x, axes, keepdims=True)
    powers = graph.add("Exp", graph.add("Sub", x, largest))
    return Value(graph, graph.add("Div", powers, graph.reduce("ReduceSum", powers, axes, keepdims=True)))


@lowers(layers.Activation)
@in_floats
def _activation(graph: Graph, layer: Any, x: Value) -> Value:
    return activate(graph, layer.activation, x)


@lowers(layers.ReLU)
@in_floats
def _relu(graph: Graph, layer: Any, x: Value) -> Value:
    def build(name: str) -> str:
        if layer.negative_slope == 0 and layer.threshold == 0:
            return _clip(graph, name, 0, layer.max_value) if layer.max_value is not None else graph.add("Relu", name)
        above = graph.add("Greater", name, scalar(layer.threshold))
        below = graph.add("Mul", graph.add("Sub", name, scalar(layer.threshold)), scalar(layer.negative_slope))
        kept = name if layer.max_value is None else graph.add("Min", name, scalar(layer.max_value))
        return graph.add(
            "Where", graph.add("Or", above, graph.add("Equal", name, scalar(layer.threshold))), kept, below
        )

    return graph.elementwise(build, x)


@lowers(layers.LeakyReLU, nn.LeakyRelu)
@in_floats
def _leaky(graph: Graph, call: Any, x: Value) -> Value:
    return graph.elementwise(lambda name: graph.add("LeakyRelu", name, alpha=float(call.negative_slope)), x)


@lowers(layers.ELU, nn.Elu)
@in_floats
def _elu(graph: Graph, call: Any, x: Value) -> Value:
    return graph.elementwise(lambda name: graph.add("Elu", name, alpha=float(call.alpha)), x)


@lowers(nn.Celu)
@in_floats
def _celu(graph: Graph, call: Any, x: Value) -> Value:
    return graph.elementwise(lambda name: graph.add("Celu", name, alpha=float(call.alpha)), x)


@lowers(layers.PReLU)
@in_floats
def _prelu(graph: Graph, layer: Any, x: Value) -> Any:
    if x.channels_first and len(layer.alpha.shape) == x.rank - 1:
        slope = graph.variable(layer.alpha, "alpha_first", lambda array: np.moveaxis(array, -1, 0))
        return graph.first(graph.add("PRelu", x.first, slope))
    return graph.add("PRelu", x, graph.variable(layer.alpha, "alpha"))


@lowers(layers.Softmax)
@in_floats
def _softmax(graph: Graph, layer: Any, x: Value, mask: Value | None = None) -> Value:
    if mask is not None:
        away = graph.add("Where", mask.name, scalar(0), scalar(-3e38))
        x = like(x, graph.add("Add", x, away))
    return softmax(graph, "Softmax", x, layer.axis)


_OPERATIONS = {
    nn.Relu: activations.relu, nn.Relu6: activations.relu6, nn.Selu: activations.selu,
    nn.Sigmoid: activations.sigmoid, nn.Silu: activations.silu, nn.Softplus: activations.softplus,
    nn.Softsign: activations.softsign, numpy.Tanh: activations.tanh, nn.HardSigmoid: activations.hard_sigmoid,
    nn.HardSilu: activations.hard_silu, nn.HardTanh: activations.hard_tanh, nn.LogSigmoid: activations.log_sigmoid,
    nn.TanhShrink: activations.tanh_shrink,
}  # fmt: skip


@lowers(*_OPERATIONS)
@in_floats
def _operation(graph: Graph, call: Any, x: Value) -> Value:
    return activate(graph, _OPERATIONS[type(call)], x)


@lowers(nn.Gelu)
@in_floats
def _gelu_operation(graph: Graph, call: Any, x: Value) -> Value:
    build = _gelu_tanh if call.approximate else _gelu
    return graph.elementwise(lambda name: build(graph, name), x)


@lowers(nn.Softmax)
@in_floats
def _softmax_operation(graph: Graph, call: Any, x: Value) -> Value:
    return softmax(graph, "Softmax", x, call.axis)


@lowers(nn.LogSoftmax)
@in_floats
def _log_softmax_operation(graph: Graph, call: Any, x: Value) -> Value:
    return softmax(graph, "LogSoftmax", x, call.axis)


@lowers(nn.Glu)
def _glu(graph: Graph, call: Any, x: Any) -> str:
    given = value_of(graph, x)
    half = given.shape[call.axis]
    need(half is not None, "gates of a free size")
    sizes = np.array([(half or 0) // 2] * 2, np.int64)
    kept, gate = graph.add_many("Split", 2, given, sizes, axis=call.axis)
    return graph.add("Mul", kept, graph.add("Sigmoid", gate))


@lowers(nn.SoftShrink)
def _soft_shrink(graph: Graph, call: Any, x: Any) -> Value:
    return graph.elementwise(
        lambda name: graph.add("Shrink", name, lambd=float(call.threshold), bias=float(call.threshold)),
        floats(graph, x),
    )


@lowers(nn.HardShrink)
def _hard_shrink(graph: Graph, call: Any, x: Any) -> Value:
    return graph.elementwise(
        lambda name: graph.add("Shrink", name, lambd=float(call.threshold), bias=0.0), floats(graph, x)
    )


@lowers(nn.Threshold)
def _threshold(graph: Graph, call: Any, x: Any) -> Value:
    given = floats(graph, x)

    def build(name: str) -> str:
        above = graph.add("Greater", name, scalar(call.threshold, given.dtype))
        return graph.add("Where", above, name, scalar(call.default_value, given.dtype))

    return graph.elementwise(build, given)


@lowers(nn.SparsePlus)
def _sparse_plus(graph: Graph, call: Any, x: Any) -> Value:
    """0 below -1, x above 1, (x + 1)^2 / 4 between: the square of the clipped half, plus what is above 1."""
    given = floats(graph, x)
    one = scalar(1, given.dtype)

    def build(name: str) -> str:
        half = graph.add("Mul", graph.add("Add", graph.add("Clip", name, -one, one), one), scalar(0.5, given.dtype))
        return graph.add("Add", graph.add("Mul", half, half), graph.add("Relu", graph.add("Sub", name, one)))

    return graph.elementwise(build, given)


@lowers(nn.SparseSigmoid)
def _sparse_sigmoid(graph: Graph, call: Any, x: Any) -> Value:
    return graph.elementwise(lambda name: graph.add("HardSigmoid", name, alpha=0.5, beta=0.5), floats(graph, x))


@lowers(nn.Squareplus)
def _squareplus_operation(graph: Graph, call: Any, x: Any) -> Value:
    return graph.elementwise(lambda name: _squareplus(graph, name, call.b), floats(graph, x))


@lowers(nn.Sparsemax)
def _sparsemax(graph: Graph, call: Any, x: Any) -> Value:
    """Projection onto the simplex, Martins & Astudillo 2016 (arXiv:1602.02068), with the threshold of Keras.

    The paper takes the last sum of the support; Keras adds up all sums of the support.
    """
    given = floats(graph, x)
    axis = call.axis % given.rank
    need(axis == given.rank - 1 and given.shape[axis] is not None, "sparsemax over another axis than the last")
    size = given.shape[axis] or 0
    one = scalar(1)
    values = ordered(graph, given, axis, largest=True)[0]
    sums = graph.add("CumSum", values, np.array(axis, np.int64))
    bound = graph.add("Div", graph.add("Sub", sums, one), np.arange(1, size + 1, dtype=np.float32))
    support = graph.cast(graph.add("Greater", values, bound), "float32")
    count = graph.reduce("ReduceSum", support, [axis], keepdims=True)
    total = graph.reduce("ReduceSum", graph.add("Mul", sums, support), [axis], keepdims=True)
    threshold = graph.add("Div", graph.add("Sub", total, one), count)
    return like(given, graph.add("Relu", graph.add("Sub", given, threshold)))
