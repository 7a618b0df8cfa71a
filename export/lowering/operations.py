"""`keras.ops` element by element and over axes: arithmetic, comparisons, elementary functions, reductions."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from keras.src.ops import core as ops_core
from keras.src.ops import linalg, nn
from keras.src.ops import math as ops_math
from keras.src.ops import numpy as ops

from export.lowering import lowers
from export.lowering.arguments import (
    axes_of,
    broadcast,
    calculable,
    floats,
    indices,
    is_float,
    like,
    need,
    scalar,
    together,
    typed,
    value,
    value_of,
)
from export.lowering.graph import Graph, Value, stored

Build = Callable[..., str]


def _binary(graph: Graph, build: Build, x: Value, y: Value) -> Value:
    """A node of two broadcast values, in the axis order they have."""
    if x.rank == y.rank or min(x.rank, y.rank) > 0:
        made = graph.elementwise(build, x, y)
    elif y.rank == 0:
        made = graph.elementwise(lambda name: build(name, y.name), x)
    else:
        made = graph.elementwise(lambda name: build(x.name, name), y)
    made.shape, made.dtype = broadcast(x.shape, y.shape), x.dtype
    return made


def _both(operation: str, floating: bool = False) -> Any:
    def emit(graph: Graph, call: Any, x1: Any, x2: Any) -> Value:
        x, y = together(graph, x1, x2, floating=floating)
        return _binary(graph, lambda a, b: graph.add(operation, a, b), x, y)

    return emit


def add(graph: Graph, x: Any, y: Any) -> Value:
    return _both("Add")(graph, None, x, y)


def subtract(graph: Graph, x: Any, y: Any) -> Value:
    return _both("Sub")(graph, None, x, y)


def multiply(graph: Graph, x: Any, y: Any) -> Value:
    return _both("Mul")(graph, None, x, y)


for _kind, _operation in (
    (ops.Add, "Add"), (ops.Subtract, "Sub"), (ops.Maximum, "Max"), (ops.Minimum, "Min"),
    (ops.Fmax, "Max"), (ops.Fmin, "Min"), (ops.BitwiseAnd, "BitwiseAnd"), (ops.BitwiseOr, "BitwiseOr"),
    (ops.BitwiseXor, "BitwiseXor"),
):  # fmt: skip
    lowers(_kind)(_both(_operation))
for _kind in (ops.Divide, ops.TrueDivide):
    lowers(_kind)(_both("Div", floating=True))


@lowers(ops.Multiply)
def _multiply(graph: Graph, call: Any, x1: Any, x2: Any) -> Value:
    x, y = together(graph, x1, x2)
    return _binary(graph, lambda a, b: graph.add("And" if x.dtype == "bool" else "Mul", a, b), x, y)


@lowers(ops.Power)
def _power(graph: Graph, call: Any, x1: Any, x2: Any) -> Value:
    x, y = (calculable(graph, one) for one in together(graph, x1, x2))
    if isinstance(x2, int | float) and x2 == 2:
        return multiply(graph, x, x)
    return _binary(graph, lambda a, b: graph.add("Pow", a, b), x, y)


def _modulo(graph: Graph, x: Value, y: Value) -> Value:
    """What is left after rounding the quotient down: it has the sign of the divisor."""
    if not is_float(x.dtype):
        return _binary(graph, lambda a, b: graph.add("Mod", a, b), x, y)
    quotient = _binary(graph, lambda a, b: graph.add("Floor", graph.add("Div", a, b)), x, y)
    return subtract(graph, x, multiply(graph, quotient, y))


@lowers(ops.Mod)
def _mod(graph: Graph, call: Any, x1: Any, x2: Any) -> Value:
    return _modulo(graph, *together(graph, x1, x2))


@lowers(ops.Fmod)
def _fmod(graph: Graph, call: Any, x1: Any, x2: Any) -> Value:
    x, y = together(graph, x1, x2)
    return _binary(graph, lambda a, b: graph.add("Mod", a, b, fmod=1), x, y)


@lowers(ops.FloorDivide)
def _floor_divide(graph: Graph, call: Any, x1: Any, x2: Any) -> Value:
    x, y = together(graph, x1, x2)
    if is_float(x.dtype):
        return _binary(graph, lambda a, b: graph.add("Floor", graph.add("Div", a, b)), x, y)
    return _binary(graph, lambda a, b: graph.add("Div", a, b), subtract(graph, x, _modulo(graph, x, y)), y)


@lowers(ops.DivideNoNan)
def _divide_no_nan(graph: Graph, call: Any, x1: Any, x2: Any) -> Value:
    x, y = together(graph, x1, x2, floating=True)
    empty = graph.add("Equal", y, scalar(0, y.dtype))
    safe = like(y, graph.add("Where", empty, scalar(1, y.dtype), y))
    quotient = _binary(graph, lambda a, b: graph.add("Div", a, b), x, safe)
    return value(graph, graph.add("Where", empty, scalar(0, y.dtype), quotient), quotient.shape, quotient.dtype)


def _compared(operation: str, refuted: bool = False) -> Any:
    def emit(graph: Graph, call: Any, x1: Any, x2: Any) -> Value:
        x, y = together(graph, x1, x2)
        if x.dtype == "bool" and operation != "Equal":
            x, y = typed(graph, x, "int32"), typed(graph, y, "int32")

        def build(a: str, b: str) -> str:
            made = graph.add(operation, a, b)
            return graph.add("Not", made) if refuted else made

        return _binary(graph, build, x, y)

    return emit


for _kind, _operation in (
    (ops.Equal, "Equal"), (ops.Greater, "Greater"), (ops.GreaterEqual, "GreaterOrEqual"), (ops.Less, "Less"),
    (ops.LessEqual, "LessOrEqual"),
):  # fmt: skip
    lowers(_kind)(_compared(_operation))
lowers(ops.NotEqual)(_compared("Equal", refuted=True))


def _logical(operation: str) -> Any:
    def emit(graph: Graph, call: Any, x1: Any, x2: Any) -> Value:
        x, y = (value_of(graph, one, "bool") for one in (x1, x2))
        return _binary(graph, lambda a, b: graph.add(operation, a, b), x, y)

    return emit


for _kind, _operation in ((ops.LogicalAnd, "And"), (ops.LogicalOr, "Or"), (ops.LogicalXor, "Xor")):
    lowers(_kind)(_logical(_operation))


@lowers(ops.LogicalNot)
def _not(graph: Graph, call: Any, x: Any) -> Value:
    return graph.elementwise(lambda name: graph.add("Not", name), value_of(graph, x, "bool"))


def where(graph: Graph, condition: Any, x1: Any, x2: Any) -> Value:
    """x1 where a condition holds, else x2."""
    x, y = together(graph, x1, x2)
    made = graph.add("Where", value_of(graph, condition, "bool"), x, y)
    return value(graph, made, broadcast(value_of(graph, condition).shape, x.shape, y.shape), x.dtype)


@lowers(ops.Where)
def _where(graph: Graph, call: Any, condition: Any, x1: Any = None, x2: Any = None) -> Value:
    need(x1 is not None and x2 is not None, "the places where a condition holds")
    return where(graph, condition, x1, x2)


@lowers(ops.Select)
def _select(graph: Graph, call: Any, condlist: Any, choicelist: Any, default: Any = 0) -> Value:
    made = default
    for condition, choice in zip(reversed(condlist), reversed(choicelist), strict=True):
        made = where(graph, condition, choice, made)
    return made


@lowers(ops.Isclose)
def _isclose(graph: Graph, call: Any, x1: Any, x2: Any, rtol: Any = 1e-5, atol: Any = 1e-8) -> Value:
    need(not call.equal_nan, "NaN as equal")
    x, y = together(graph, x1, x2, floating=True)
    gap = like(x, graph.add("Abs", subtract(graph, x, y)))
    size = like(y, graph.add("Abs", y))
    return _compared("LessOrEqual")(graph, None, gap, add(graph, multiply(graph, size, rtol), atol))


@lowers(ops.Logaddexp)
def _logaddexp(graph: Graph, call: Any, x1: Any, x2: Any) -> Value:
    x, y = together(graph, x1, x2, floating=True)
    largest = _binary(graph, lambda a, b: graph.add("Max", a, b), x, y)
    gap = graph.add("Neg", graph.add("Abs", subtract(graph, x, y)))
    return add(graph, largest, like(largest, graph.add("Softplus", gap)))


@lowers(ops.Arctan2)
def _arctan2(graph: Graph, call: Any, x1: Any, x2: Any) -> Value:
    y, x = together(graph, x1, x2, floating=True)
    zero, pi = scalar(0, x.dtype), scalar(math.pi, x.dtype)
    left = graph.add("Less", x, zero)
    upright = graph.add("Equal", x, zero)
    safe = graph.add("Where", upright, scalar(1, x.dtype), x)
    angle = graph.add("Atan", graph.add("Div", y, safe))
    below = graph.add("Less", y, zero)
    turned = graph.add("Where", below, graph.add("Sub", angle, pi), graph.add("Add", angle, pi))
    found = graph.add("Where", left, turned, angle)
    half = graph.add("Mul", graph.add("Sign", y), scalar(math.pi / 2, x.dtype))
    return value(graph, graph.add("Where", upright, half, found), broadcast(x.shape, y.shape), x.dtype)


@lowers(ops.Hypot)
def _hypot(graph: Graph, call: Any, x1: Any, x2: Any) -> Value:
    x, y = together(graph, x1, x2, floating=True)
    return _binary(
        graph, lambda a, b: graph.add("Sqrt", graph.add("Add", graph.add("Mul", a, a), graph.add("Mul", b, b))), x, y
    )


def _unary(build: Callable[[Graph, str, str], str], floating: bool = True) -> Any:
    def emit(graph: Graph, call: Any, x: Any) -> Value:
        given = floats(graph, x) if floating else calculable(graph, x)
        made = graph.elementwise(lambda name: build(graph, name, given.dtype), given)
        made.dtype = "" if floating else given.dtype
        return made

    return emit


def _named(operation: str, floating: bool = True) -> Any:
    return _unary(lambda graph, name, dtype: graph.add(operation, name), floating)


_FUNCTIONS = {
    ops.Sqrt: "Sqrt", ops.Exp: "Exp", ops.Log: "Log", ops.Sin: "Sin", ops.Cos: "Cos", ops.Tan: "Tan", ops.Sinh: "Sinh",
    ops.Cosh: "Cosh", ops.Arcsin: "Asin", ops.Arccos: "Acos", ops.Arctan: "Atan", ops.Arcsinh: "Asinh",
    ops.Arccosh: "Acosh", ops.Arctanh: "Atanh", ops.Floor: "Floor", ops.Ceil: "Ceil", ops.Reciprocal: "Reciprocal",
    ops_math.Erf: "Erf",
}  # fmt: skip
for _kind, _operation in _FUNCTIONS.items():
    lowers(_kind)(_named(_operation))
for _kind, _operation in (
    (ops.Abs, "Abs"), (ops.Absolute, "Abs"), (ops.Fabs, "Abs"), (ops.Negative, "Neg"), (ops.Sign, "Sign"),
    (ops.BitwiseNot, "BitwiseNot"), (ops.BitwiseInvert, "BitwiseNot"),
):  # fmt: skip
    lowers(_kind)(_named(_operation, floating=False))


@lowers(ops.Copy, ops_core.StopGradient, ops.Conj, ops.Conjugate, ops.Real)
def _same(graph: Graph, call: Any, x: Any) -> Value:
    return graph.elementwise(lambda name: name, value_of(graph, x))


lowers(ops.Square)(_unary(lambda graph, x, dtype: graph.add("Mul", x, x), floating=False))
lowers(ops_math.Rsqrt)(_unary(lambda graph, x, dtype: graph.add("Reciprocal", graph.add("Sqrt", x))))
lowers(ops_math.Erfc)(_unary(lambda graph, x, dtype: graph.add("Sub", scalar(1, dtype), graph.add("Erf", x))))
lowers(ops.Log1p)(_unary(lambda graph, x, dtype: graph.add("Log", graph.add("Add", x, scalar(1, dtype)))))
lowers(ops.Expm1)(_unary(lambda graph, x, dtype: graph.add("Sub", graph.add("Exp", x), scalar(1, dtype))))
lowers(ops.Exp2)(_unary(lambda graph, x, dtype: graph.add("Pow", scalar(2, dtype), x)))
lowers(ops.Log2)(_unary(lambda graph, x, dtype: graph.add("Mul", graph.add("Log", x), scalar(1 / math.log(2), dtype))))
lowers(ops.Log10)(
    _unary(lambda graph, x, dtype: graph.add("Mul", graph.add("Log", x), scalar(1 / math.log(10), dtype)))
)
lowers(ops.Deg2rad)(_unary(lambda graph, x, dtype: graph.add("Mul", x, scalar(math.pi / 180, dtype))))
lowers(ops.Rad2deg)(_unary(lambda graph, x, dtype: graph.add("Mul", x, scalar(180 / math.pi, dtype))))
lowers(ops.Trunc)(
    _unary(lambda graph, x, dtype: graph.add("Mul", graph.add("Sign", x), graph.add("Floor", graph.add("Abs", x))))
)
lowers(ops.Cbrt)(
    _unary(
        lambda graph, x, dtype: graph.add(
            "Mul", graph.add("Sign", x), graph.add("Pow", graph.add("Abs", x), scalar(1 / 3, dtype))
        )
    )
)
lowers(ops.Isnan)(_named("IsNaN"))
lowers(ops.Isinf)(_named("IsInf"))
lowers(ops.Isposinf)(_unary(lambda graph, x, dtype: graph.add("IsInf", x, detect_negative=0)))
lowers(ops.Isneginf)(_unary(lambda graph, x, dtype: graph.add("IsInf", x, detect_positive=0)))
lowers(ops.Isfinite)(
    _unary(lambda graph, x, dtype: graph.add("Not", graph.add("Or", graph.add("IsNaN", x), graph.add("IsInf", x))))
)


@lowers(ops.Round)
def _round(graph: Graph, call: Any, x: Any) -> Value:
    given = value_of(graph, x)
    need(is_float(given.dtype), "rounding whole numbers")
    scale = scalar(10.0**call.decimals, given.dtype)

    def build(name: str) -> str:
        if call.decimals == 0:
            return graph.add("Round", name)
        return graph.add("Div", graph.add("Round", graph.add("Mul", name, scale)), scale)

    return graph.elementwise(build, given)


@lowers(ops.NanToNum)
def _nan_to_num(graph: Graph, call: Any, x: Any) -> Value:
    given = floats(graph, x)
    limits = np.finfo(stored(given.dtype))
    high = float(limits.max) if call.posinf is None else call.posinf
    low = float(limits.min) if call.neginf is None else call.neginf

    def build(name: str) -> str:
        name = graph.add("Where", graph.add("IsNaN", name), scalar(call.nan, given.dtype), name)
        name = graph.add("Where", graph.add("IsInf", name, detect_negative=0), scalar(high, given.dtype), name)
        return graph.add("Where", graph.add("IsInf", name, detect_positive=0), scalar(low, given.dtype), name)

    return graph.elementwise(build, given)


@lowers(ops.Clip)
def _clip(graph: Graph, call: Any, x: Any) -> Value:
    given = value_of(graph, x)
    made = given
    for operation, limit in (("Max", call.x_min), ("Min", call.x_max)):
        if limit is not None:
            bound = value_of(graph, limit, made.dtype)
            made = _binary(graph, lambda a, b, operation=operation: graph.add(operation, a, b), made, bound)
    return made


@lowers(ops_core.Cast)
def _cast(graph: Graph, call: Any, x: Any) -> Value:
    return typed(graph, value_of(graph, x), call.dtype)


@lowers(ops_core.ConvertToTensor)
def _convert(graph: Graph, call: Any, x: Any) -> Value:
    given = value_of(graph, x)
    return typed(graph, given, call.dtype or given.dtype)


@lowers(ops_core.SaturateCast)
def _saturate(graph: Graph, call: Any, x: Any) -> Value:
    given = value_of(graph, x)
    if is_float(call.dtype):
        return typed(graph, given, call.dtype)
    limits = np.iinfo(call.dtype)
    low, high = scalar(limits.min, given.dtype), scalar(limits.max, given.dtype)
    clipped = like(given, graph.add("Min", graph.add("Max", given, low), high))
    return typed(graph, clipped, call.dtype)


# Reductions


def reduced(graph: Graph, operation: str, x: Value, axis: Any, keepdims: bool = False) -> Value:
    """A reduction over some axes, None for all."""
    axes = axes_of(axis, x.rank)
    shape = [1 if place in axes else size for place, size in enumerate(x.shape) if keepdims or place not in axes]
    if not axes:
        return x
    if x.channels_first and keepdims:
        made = graph.first(graph.reduce(operation, x.first, sorted(x.place(axis) for axis in axes), True))
    else:
        made = Value(graph, graph.reduce(operation, x, axes, keepdims))
    made.shape, made.dtype = tuple(shape), x.dtype
    return made


def _reduction(operation: str, prepare: Callable[[Graph, Any], Value]) -> Any:
    return lambda graph, call, x: reduced(graph, operation, prepare(graph, x), call.axis, call.keepdims)


lowers(ops.Sum)(_reduction("ReduceSum", calculable))
lowers(ops.Prod)(_reduction("ReduceProd", calculable))
lowers(ops.Mean)(_reduction("ReduceMean", floats))
lowers(ops.Amax)(_reduction("ReduceMax", calculable))
lowers(ops.Amin)(_reduction("ReduceMin", calculable))


def _extreme(operation: str, pair: str) -> Any:
    def emit(graph: Graph, call: Any, x: Any) -> Value:
        made = reduced(graph, operation, calculable(graph, x), call.axis, call.keepdims)
        if call.initial is not None:
            made = like(made, graph.add(pair, made, scalar(call.initial, made.dtype)))
        return made

    return emit


lowers(ops.Max)(_extreme("ReduceMax", "Max"))
lowers(ops.Min)(_extreme("ReduceMin", "Min"))


def _holds(operation: str) -> Any:
    def emit(graph: Graph, call: Any, x: Any) -> Value:
        numbers = typed(graph, value_of(graph, x, "bool"), "int32")
        return typed(graph, reduced(graph, operation, numbers, call.axis, call.keepdims), "bool")

    return emit


lowers(ops.Any)(_holds("ReduceMax"))
lowers(ops.All)(_holds("ReduceMin"))


def variance(graph: Graph, x: Value, axis: Any, keepdims: bool) -> Value:
    middle = subtract(graph, x, reduced(graph, "ReduceMean", x, axis, True))
    return reduced(graph, "ReduceMean", multiply(graph, middle, middle), axis, keepdims)


@lowers(ops.Var)
def _variance(graph: Graph, call: Any, x: Any) -> Value:
    return variance(graph, floats(graph, x), call.axis, call.keepdims)


@lowers(ops.Std)
def _deviation(graph: Graph, call: Any, x: Any) -> Value:
    return graph.elementwise(
        lambda name: graph.add("Sqrt", name), variance(graph, floats(graph, x), call.axis, call.keepdims)
    )


@lowers(nn.Moments)
def _moments(graph: Graph, call: Any, x: Any) -> tuple[Value, Value]:
    given = floats(graph, x)
    return (
        reduced(graph, "ReduceMean", given, call.axes, call.keepdims),
        variance(graph, given, call.axes, call.keepdims),
    )


@lowers(ops.Ptp)
def _spread(graph: Graph, call: Any, x: Any) -> Value:
    given = value_of(graph, x)
    return subtract(
        graph,
        reduced(graph, "ReduceMax", given, call.axis, call.keepdims),
        reduced(graph, "ReduceMin", given, call.axis, call.keepdims),
    )


@lowers(ops.CountNonzero)
def _count(graph: Graph, call: Any, x: Any) -> Value:
    return reduced(graph, "ReduceSum", typed(graph, value_of(graph, x, "bool"), "int32"), call.axis)


@lowers(ops.Average)
def _average(graph: Graph, call: Any, x: Any, weights: Any = None) -> Value:
    given = floats(graph, x)
    if weights is None:
        return reduced(graph, "ReduceMean", given, call.axis)
    weight = value_of(graph, weights, given.dtype)
    need(weight.rank == given.rank, "weights of one axis")
    total = reduced(graph, "ReduceSum", multiply(graph, given, weight), call.axis)
    return _binary(graph, lambda a, b: graph.add("Div", a, b), total, reduced(graph, "ReduceSum", weight, call.axis))


@lowers(ops_math.Logsumexp)
def _logsumexp(graph: Graph, call: Any, x: Any) -> Value:
    given = floats(graph, x)
    largest = reduced(graph, "ReduceMax", given, call.axis, True)
    powers = graph.elementwise(lambda name: graph.add("Exp", name), subtract(graph, given, largest))
    powers.shape, powers.dtype = given.shape, given.dtype
    total = reduced(graph, "ReduceSum", powers, call.axis, True)
    made = add(graph, like(total, graph.add("Log", total)), largest)
    if call.keepdims:
        return made
    axes = axes_of(call.axis, given.rank)
    kept = [size for axis, size in enumerate(given.shape) if axis not in axes]
    return value(graph, graph.add("Squeeze", made, np.array(axes, np.int64)), kept, given.dtype)


@lowers(linalg.Norm)
def _norm(graph: Graph, call: Any, x: Any) -> Value:
    given = floats(graph, x)
    axes = axes_of(call.axis, given.rank)
    order = call.ord
    if order is None or (order == 2 and len(axes) == 1) or (order == "fro" and len(axes) == 2):
        return reduced(graph, "ReduceL2", given, axes, call.keepdims)
    need(len(axes) == 1, f"the matrix norm {order!r}")
    if order == 1:
        return reduced(graph, "ReduceL1", given, axes, call.keepdims)
    size = graph.elementwise(lambda name: graph.add("Abs", name), given)
    size.shape, size.dtype = given.shape, given.dtype
    if order in (math.inf, "inf"):
        return reduced(graph, "ReduceMax", size, axes, call.keepdims)
    if order == -math.inf:
        return reduced(graph, "ReduceMin", size, axes, call.keepdims)
    need(isinstance(order, int | float) and order > 0, f"the norm of order {order!r}")
    powers = like(size, graph.add("Pow", size, scalar(order, size.dtype)))
    total = reduced(graph, "ReduceSum", powers, axes, call.keepdims)
    return like(total, graph.add("Pow", total, scalar(1 / order, size.dtype)))


# Places of extremes, and order


def _place(operation: str) -> Any:
    def emit(graph: Graph, call: Any, x: Any) -> Value:
        given = calculable(graph, x)
        name, axis = given.name, call.axis
        if axis is None:
            name, axis = graph.reshape(name, [None]), 0
        found = graph.add(operation, name, axis=axis, keepdims=int(call.keepdims))
        if call.axis is None and call.keepdims:
            found = graph.reshape(found, [1] * given.rank)
        return Value(graph, graph.cast(found, "int32"))

    return emit


lowers(ops.Argmax)(_place("ArgMax"))
lowers(ops.Argmin)(_place("ArgMin"))


def ordered(graph: Graph, x: Value, axis: int | None, count: Any = None, largest: bool = False) -> tuple[str, str]:
    """(values, places) along an axis, sorted; the smallest first unless the largest are asked for.

    Equal values keep their order. `count` limits how many there are.
    """
    name, place, known = x.name, 0, None
    if axis is None:
        name = graph.reshape(name, [None])
    else:
        place = axis % x.rank
        known = x.shape[place]
    if count is None:
        count = np.array([known], np.int64) if known is not None else graph.size(name, place)
    values, places = graph.add_many("TopK", 2, name, count, axis=place, largest=int(largest), sorted=1)
    return values, places


@lowers(ops.Sort)
def _sort(graph: Graph, call: Any, x: Any) -> Value:
    given = calculable(graph, x)
    made = Value(graph, ordered(graph, given, call.axis)[0])
    made.dtype = given.dtype
    return made


@lowers(ops.Argsort)
def _argsort(graph: Graph, call: Any, x: Any) -> Value:
    return Value(graph, graph.cast(ordered(graph, calculable(graph, x), call.axis)[1], "int32"))


@lowers(ops_math.TopK)
def _top_k(graph: Graph, call: Any, x: Any) -> tuple[str, str]:
    values, places = ordered(graph, value_of(graph, x), -1, np.array([call.k], np.int64), largest=True)
    return values, graph.cast(places, "int32")


@lowers(ops_math.InTopK)
def _in_top_k(graph: Graph, call: Any, targets: Any, predictions: Any) -> Value:
    scores = value_of(graph, predictions)
    own = graph.add("GatherElements", scores, graph.add("Unsqueeze", indices(graph, targets), np.array([1])), axis=1)
    above = typed(graph, value(graph, graph.add("Greater", scores, own), scores.shape, "bool"), "int32")
    return Value(graph, graph.add("Less", reduced(graph, "ReduceSum", above, 1), scalar(call.k, "int32")))


@lowers(ops.Median)
def _median(graph: Graph, call: Any, x: Any) -> Value:
    given = floats(graph, x)
    axes = axes_of(call.axis, given.rank)
    need(len(axes) == 1 and given.shape[axes[0]] is not None, "the median over several or free axes")
    size = given.shape[axes[0]] or 0
    low, high = np.array([(size - 1) // 2], np.int64), np.array([size // 2], np.int64)
    values = ordered(graph, given, axes[0])[0]
    both = graph.add("Add", *(graph.add("Gather", values, place, axis=axes[0]) for place in (low, high)))
    middle = graph.add("Mul", both, scalar(0.5, given.dtype))
    return Value(graph, middle if call.keepdims else graph.add("Squeeze", middle, np.array(axes, np.int64)))


@lowers(ops.Cumsum)
def _cumsum(graph: Graph, call: Any, x: Any) -> Value:
    given = calculable(graph, x)
    name = given.name if call.axis is not None else graph.reshape(given, [None])
    made = Value(graph, graph.add("CumSum", name, np.array(call.axis or 0, np.int64)))
    made.dtype = given.dtype
    return made


@lowers(ops.Cumprod)
def _cumprod(graph: Graph, call: Any, x: Any) -> Value:
    """Doubling steps: after the n-th, each place holds the product of the 2^n up to and including it."""
    given = calculable(graph, x)
    need(call.axis is not None and given.shape[call.axis] is not None, "the running product over a free axis")
    axis, made, step = call.axis % given.rank, given.name, 1
    while step < (given.shape[axis] or 0):
        ends, pads = np.array([-step], np.int64), np.zeros(2 * given.rank, np.int64)
        pads[axis] = step
        before = graph.add("Slice", made, np.array([0]), ends, np.array([axis]))
        made = graph.add("Mul", made, graph.add("Pad", before, pads, scalar(1, given.dtype)))
        step *= 2
    return like(given, made)


@lowers(ops.SearchSorted)
def _search(graph: Graph, call: Any, sorted_sequence: Any, values: Any) -> Value:
    borders, given = together(graph, sorted_sequence, values)
    need(borders.rank == 1, "borders of several axes")
    return Value(graph, bucket(graph, given, borders, "Greater" if call.side == "left" else "GreaterOrEqual"))


@lowers(ops.Digitize)
def _digitize(graph: Graph, call: Any, x: Any, bins: Any) -> Value:
    given, borders = together(graph, x, bins)
    return Value(graph, bucket(graph, given, borders, "GreaterOrEqual"))


def bucket(graph: Graph, x: Value, borders: Value, beyond: str) -> str:
    """How many borders each value is beyond: int32."""
    wide = graph.add("Unsqueeze", x, np.array([x.rank], np.int64))
    above = graph.cast(graph.add(beyond, wide, borders), "int32")
    return graph.reduce("ReduceSum", above, [x.rank])
