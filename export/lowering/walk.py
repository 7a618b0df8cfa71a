"""The walk over a Keras graph: each call in order, its arguments as ONNX values, its outputs remembered."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from export import ExportError
from export.lowering import NotLoweredError, emitter_of
from export.lowering.graph import Graph, Value

Bindings = dict[int, Value]  # id of a KerasTensor -> its value


def lower_model(graph: Graph, function: Any, inputs: Sequence[Value]) -> list[Value]:
    """Write a functional model or `keras.Function`, and return the values of its outputs.

    Args:
        graph: where to write.
        function: anything with the nodes of a Keras graph.
        inputs: values in the order of `function.inputs`.

    Raises:
        ExportError: an operation has no ONNX form; the message names the layer.
    """
    bound: Bindings = {id(tensor): value for tensor, value in zip(function.inputs, inputs, strict=True)}
    counts = _consumers(function)
    for tensor, value in zip(function.inputs, inputs, strict=True):
        value.consumers = max(value.consumers, counts.get(id(tensor), 0))
    prefix = f"{graph.scope}/" if graph.scope else ""
    for depth in sorted(function._nodes_by_depth, reverse=True):
        for node in function._nodes_by_depth[depth]:
            if node.is_input or not node.operation:
                continue
            args, kwargs = _fill(graph, bound, node.arguments.args), _fill(graph, bound, node.arguments.kwargs)
            with graph.within(prefix + node.operation.name):
                found = lower_call(graph, node.operation, args, kwargs, node.outputs)
            if found:
                graph.values[prefix + node.operation.name] = found[0]
            for tensor, value in zip(node.outputs, found, strict=True):
                value.consumers += counts.get(id(tensor), 0)
                bound[id(tensor)] = value
    return [bound[id(tensor)] for tensor in function.outputs]


def lower_call(graph: Graph, operation: Any, args: Any, kwargs: Any, outputs: Sequence[Any]) -> list[Value]:
    """Write one call of a layer or operation.

    Args:
        graph: where to write, its scope being the layer's path.
        operation: Keras layer or operation.
        args, kwargs: of the call, tensors being values.
        outputs: what the call gives, for shapes and dtypes.
    """
    kwargs = {key: value for key, value in kwargs.items() if key != "training"}
    emit = emitter_of(operation)
    found, written = None, len(graph.nodes)
    if emit is not None:
        try:
            found = emit(graph, operation, *args, **kwargs)
        except NotLoweredError:
            emit = None
    if emit is None:
        found = _expand(graph, operation, args, kwargs)
    values = [_value(graph, made, tensor) for made, tensor in zip(keras.tree.flatten(found), outputs, strict=True)]
    source = values_in((args, kwargs))
    new = {name for node in graph.nodes[written:] for name in node.output}
    for value in values:
        if value.written not in new and all(value is not one for one in source):
            value.consumers += 1  # another name for a tensor that others read, too
    if isinstance(operation, keras.layers.Layer) and operation.supports_masking and source:
        for value in values:
            if value.mask is None and not overrides_mask(operation):
                value.mask = source[0].mask
    return values


def overrides_mask(operation: Any) -> bool:
    """Whether a layer has a rule of its own for masks, which its emitter must follow."""
    return type(operation).compute_mask is not keras.layers.Layer.compute_mask


def lower_function(graph: Graph, function: Callable[..., Any], *values: Any) -> Any:
    """Write what a function of `keras.ops` computes, such as an activation or a custom layer's `call`.

    Args:
        graph: where to write.
        function: takes tensors where `values` has values, and gives tensors in any structure.
        values: structures of values and other arguments.

    Returns:
        The function's result, tensors being values.

    Raises:
        NotLoweredError: the function needs more than symbolic tensors can tell, such as a size at run time.
    """
    known = values_in(values)
    symbols = [
        keras.KerasTensor(value.shape, value.dtype, name=f"argument{place}") for place, value in enumerate(known)
    ]
    table = {id(value): symbol for value, symbol in zip(known, symbols, strict=True)}
    given = keras.tree.map_structure(lambda leaf: table.get(id(leaf), leaf), values)
    for value in list(known):
        if value.mask is not None:
            if id(value.mask) not in table:
                known.append(value.mask)
                symbols.append(keras.KerasTensor(value.mask.shape or value.shape[:2], "bool"))
                table[id(value.mask)] = symbols[-1]
            keras.src.backend.set_keras_mask(table[id(value)], table[id(value.mask)])
    from export.lowering.tracing import Traced, tracing

    try:
        with tracing(symbols):
            traced = Traced(symbols, [], function(*given))
    except Exception as error:  # custom code may fail on symbols in any way
        raise NotLoweredError(f"{graph.scope}: {error}") from error
    return traced.write(graph, known, [])


def _expand(graph: Graph, operation: Any, args: Any, kwargs: Any) -> Any:
    """Write an operation through the `keras.ops` it consists of, or else through the converter behind."""
    from export.lowering.tracing import through_operations

    if isinstance(operation, keras.layers.Layer) and hasattr(operation, "call"):
        try:
            call = functools.partial(operation.call, **_inference(operation))
            with through_operations(operation):
                named = {**kwargs, **_masks(operation, args, kwargs)}
                return lower_function(graph, lambda given, named: call(*given, **named), args, named)
        except NotLoweredError:
            pass
    from export.lowering.fallback import convert  # loads TensorFlow

    if keras.config.backend() != "tensorflow":
        raise NotLoweredError(f"{graph.scope} ({type(operation).__name__}) needs TensorFlow to be converted")
    return convert(graph, operation, args, kwargs)


def _masks(layer: Any, args: Any, kwargs: Any) -> dict[str, Value]:
    """Masks that Keras hands to a layer's `call` where it has arguments for them and none are given."""
    try:
        given = inspect.signature(layer.call).bind_partial(*args, **kwargs).arguments
    except TypeError:
        return {}
    tensors = {name: values for name, value in given.items() if (values := values_in(value))}
    names = (
        {"mask": next(iter(tensors.values()))} if len(tensors) == 1 else {f"{k}_mask": v for k, v in tensors.items()}
    )
    takes = inspect.signature(layer.call).parameters
    return {
        name: values[0].mask
        for name, values in names.items()
        if name in takes and given.get(name) is None and len(values) == 1 and values[0].mask is not None
    }


def _inference(operation: Any) -> dict[str, bool]:
    return {"training": False} if operation._call_has_training_arg else {}


def _fill(graph: Graph, bound: Bindings, structure: Any) -> Any:
    """A call's arguments with values in place of tensors; variables become constants."""

    def leaf(given: Any) -> Any:
        if isinstance(given, keras.KerasTensor):
            if id(given) not in bound:
                raise ExportError(
                    f"cannot export: a tensor in {graph.scope or 'the model'!r} comes from outside its inputs"
                )
            return bound[id(given)]
        return given

    return keras.tree.map_structure(leaf, structure)


def _consumers(function: Any) -> dict[int, int]:
    counts: dict[int, int] = {id(tensor): 1 for tensor in function.outputs}
    for nodes in function._nodes_by_depth.values():
        for node in nodes:
            for tensor in node.input_tensors:
                counts[id(tensor)] = counts.get(id(tensor), 0) + 1
    return counts


def values_in(structure: Any) -> list[Value]:
    """Values in a structure of arguments, in order."""
    return [leaf for leaf in keras.tree.flatten(structure) if isinstance(leaf, Value)]


def _value(graph: Graph, made: Value | str, tensor: Any) -> Value:
    """A new value for what a call made, with the shape and dtype that Keras gives it."""
    value = Value(graph, made) if isinstance(made, str) else made
    if value.shape and value.shape != tuple(tensor.shape):  # an identity of another shape would be a mistake here
        value = Value(graph, value.name)
    value.shape, value.dtype = tuple(tensor.shape), keras.backend.standardize_dtype(tensor.dtype)
    return value


def as_value(graph: Graph, given: Any, dtype: str = "float32") -> Value:
    """A value from a value, an array, a variable, or a number."""
    if isinstance(given, Value):
        return given
    from export.lowering.graph import array_of

    array = array_of(given) if hasattr(given, "dtype") else np.asarray(given, dtype)
    value = Value(graph, graph.constant(array))
    value.shape, value.dtype = array.shape, str(array.dtype)
    return value
