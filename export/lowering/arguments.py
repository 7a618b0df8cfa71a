"""Arguments of `keras.ops` calls as values.

Numbers, arrays and variables become constants; types are promoted as Keras promotes them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras.src.backend import result_type

from export.lowering import NotLoweredError
from export.lowering.graph import Graph, Value, array_of, onnx_type, stored


def dtype_of(given: Any) -> Any:
    """What Keras promotes from: a dtype, or the type of a Python number."""
    if type(given) in (bool, int, float):  # not a scalar of numpy, which has a dtype
        return type(given)
    if isinstance(given, list | tuple):
        return _listed(np.asarray(given)).dtype.name
    return keras.backend.standardize_dtype(given.dtype)


def _listed(array: np.ndarray) -> np.ndarray:
    """An array from a list has the types that Keras gives it."""
    return array.astype({"f": "float32", "i": "int32"}.get(array.dtype.kind, array.dtype))


def is_float(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat"))


def value_of(graph: Graph, given: Any, dtype: str | None = None) -> Value:
    """A value from a value, variable, tensor, array, list or number, in a dtype if one is asked for."""
    if isinstance(given, Value):
        return given if dtype is None else typed(graph, given, dtype)
    if isinstance(given, keras.Variable) and dtype in (None, keras.backend.standardize_dtype(given.dtype)):
        made = Value(graph, graph.variable(given, given.name))
        made.shape, made.dtype = tuple(given.shape), keras.backend.standardize_dtype(given.dtype)
        return made
    if isinstance(given, keras.KerasTensor):
        raise NotLoweredError("a tensor from outside the traced function")
    array = array_of(given) if hasattr(given, "dtype") else _listed(np.asarray(given))
    if dtype is not None:
        array = array.astype(stored(dtype))
    made = Value(graph, graph.constant(array))
    made.shape, made.dtype = array.shape, dtype or array.dtype.name
    return made


def typed(graph: Graph, value: Value, dtype: str) -> Value:
    """The value in another dtype, with its mask; half precision and float32 are the same here."""
    if onnx_type(value.dtype) == onnx_type(dtype):
        return value
    made = graph.elementwise(lambda name: graph.cast(name, dtype), value)
    made.shape, made.dtype, made.mask = value.shape, dtype, value.mask
    return made


def calculable(graph: Graph, given: Any) -> Value:
    """The value in a type that ONNX Runtime calculates in: whole numbers in 32 or 64 bits with a sign."""
    found = value_of(graph, given)
    if found.dtype in ("bool", "int8", "int16", "uint8", "uint16"):
        return typed(graph, found, "int32")
    return typed(graph, found, "int64") if found.dtype in ("uint32", "uint64") else found


def together(graph: Graph, *given: Any, floating: bool = False) -> list[Value]:
    """Values of one dtype, the one Keras promotes them to.

    Args:
        graph: where casts are written.
        given: arguments of a call.
        floating: whether whole numbers become floats.
    """
    dtype = result_type(*(dtype_of(one) for one in given))
    if floating and not is_float(dtype):
        dtype = result_type(dtype, float)
    return [value_of(graph, one, dtype) for one in given]


def floats(graph: Graph, given: Any) -> Value:
    """The value as a float."""
    return together(graph, given, floating=True)[0]


def like(source: Value, made: Value | str) -> Value:
    """What was made, a value or a name, with the shape and dtype of another value."""
    made = Value(source.graph, made) if isinstance(made, str) else made
    made.shape, made.dtype = source.shape, source.dtype
    return made


def value(graph: Graph, name: str, shape: Sequence[int | None], dtype: str) -> Value:
    """A value of a name, for what is written in several steps."""
    made = Value(graph, name)
    made.shape, made.dtype = tuple(shape), dtype
    return made


def trained(
    graph: Graph, layer: Any, name: str, change: Callable[[np.ndarray], np.ndarray] = lambda array: array
) -> str:
    """Name of the constant that holds a layer's main weight, with its low-rank adaptation if that is on.

    Args:
        graph: where to write.
        layer: dense, convolution or embedding layer.
        name: of the weight, such as "kernel".
        change: from the axis order of Keras to that of ONNX.
    """
    need(layer.quantization_mode is None, f"{layer.quantization_mode} weights")
    if layer.lora_enabled:
        return graph.weight(change(array_of(getattr(layer, name))), name)
    return graph.variable(getattr(layer, f"_{name}"), name, change)


def in_floats(emit: Callable[..., Any]) -> Callable[..., Any]:
    """A layer's function that calculates in floats, whatever the layer is given; `lower_call` casts back."""

    @functools.wraps(emit)
    def inner(graph: Graph, layer: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        given = [leaf for leaf in keras.tree.flatten(inputs) if isinstance(leaf, Value)]
        if all(is_float(one.dtype) for one in given):
            return emit(graph, layer, inputs, *args, **kwargs)
        cast = keras.tree.map_structure(lambda one: floats(graph, one) if isinstance(one, Value) else one, inputs)
        return keras.tree.map_structure(functools.partial(_as_float, graph), emit(graph, layer, cast, *args, **kwargs))

    return inner


def _as_float(graph: Graph, made: Value | str) -> Value:
    found = Value(graph, made) if isinstance(made, str) else made
    found.dtype = found.dtype or "float32"
    return found


def indices(graph: Graph, given: Any) -> str:
    """Name of an int64 tensor."""
    return typed(graph, value_of(graph, given), "int64").name


def axes_of(axis: Any, rank: int) -> list[int]:
    """Axes of a reduction as numbers from 0, all of them for None."""
    if axis is None:
        return list(range(rank))
    return sorted(one % rank for one in (axis if isinstance(axis, list | tuple) else [axis]))


def scalar(number: float, dtype: str = "float32") -> np.ndarray:
    """A number in the type in which values of a Keras dtype are written."""
    return np.array(number, stored(dtype))


def need(condition: Any, reason: str) -> None:
    """Refuse what has no form here.

    Raises:
        NotLoweredError: the condition does not hold.
    """
    if not condition:
        raise NotLoweredError(reason)


def broadcast(*shapes: Sequence[int | None]) -> tuple[int | None, ...]:
    """Shape that values of these shapes broadcast to."""
    rank = max(len(shape) for shape in shapes)
    made: list[int | None] = []
    for place in range(rank):
        sizes = [shape[place - rank] for shape in shapes if rank - place <= len(shape)]
        fixed = [size for size in sizes if size not in (1, None)]
        made.append(fixed[0] if fixed else None if None in sizes else 1)
    return tuple(made)
