"""The walk over a Keras graph: each call in order, its arguments as ONNX values, its outputs remembered."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras.src.backend import get_keras_mask, set_keras_mask

from export import ExportError
from export.lowering import NotLoweredError, emitter_of
from export.lowering.arguments import typed
from export.lowering.graph import Graph, Value, onnx_type

Bindings = dict[int, Value]  # id of a KerasTensor -> its value


def nodes_of(model: Any) -> list[Any]:
    """Nodes of a functional or sequential model in the order they run.

    Raises:
        NotLoweredError: the model is subclassed, so it has no graph.
    """
    function = getattr(model, "_functional", model)  # a sequential model holds one
    if not hasattr(function, "_nodes_by_depth"):
        raise NotLoweredError(f"{model.name!r} has no graph")
    layers = function._nodes_by_depth
    return [node for depth in sorted(layers, reverse=True) for node in layers[depth] if not node.is_input]


def lower_model(graph: Graph, model: Any, inputs: Sequence[Value]) -> list[Value]:
    """Write a functional or sequential model, and return the values of its outputs.

    Args:
        graph: where to write, its scope being the model's path.
        model: Keras model with a graph.
        inputs: values in the order of `model.inputs`.

    Raises:
        ExportError: an operation has no ONNX form; the message names the layer.
        NotLoweredError: the model has no graph, or a layer needs TensorFlow to be converted.
    """
    return lower_nodes(graph, nodes_of(model), model.inputs, inputs, model.outputs)


def lower_nodes(
    graph: Graph, nodes: Sequence[Any], symbols: Sequence[Any], values: Sequence[Value], outputs: Sequence[Any]
) -> list[Value]:
    """Write nodes of a Keras graph.

    Args:
        graph: where to write; the paths of the layers begin with its scope.
        nodes: in the order they run.
        symbols: tensors that the nodes read from outside.
        values: what these are.
        outputs: tensors wanted, made by the nodes or among the symbols.

    Returns:
        The values of the outputs.
    """
    bound: Bindings = {id(tensor): value for tensor, value in zip(symbols, values, strict=True)}
    counts = _consumers(nodes, outputs)
    for tensor, value in zip(symbols, values, strict=True):
        value.consumers = max(value.consumers, counts.get(id(tensor), 0))
    prefix = f"{graph.scope}/" if graph.scope else ""
    for node in nodes:
        path = prefix + node.operation.name
        with graph.within(path):
            args, kwargs = (_fill(graph, bound, part) for part in (node.arguments.args, node.arguments.kwargs))
            try:
                found = lower_call(graph, node.operation, args, kwargs, node.outputs)
            except (ExportError, NotLoweredError):
                raise
            except Exception as error:
                kind = type(node.operation).__name__
                raise ExportError(f"cannot export: layer {path!r} ({kind}) could not be written: {error}") from error
        if found:
            graph.values[path] = found[0]
        for tensor, value in zip(node.outputs, found, strict=True):
            value.consumers += counts.get(id(tensor), 0)
            bound[id(tensor)] = value
    return [bound[id(tensor)] for tensor in outputs]


def lower_call(graph: Graph, operation: Any, args: Any, kwargs: Any, outputs: Sequence[Any]) -> list[Value]:
    """Write one call of a layer or operation.

    Args:
        graph: where to write, its scope being the layer's path.
        operation: Keras layer or operation.
        args, kwargs: of the call, tensors being values.
        outputs: what the call gives, for shapes and dtypes.
    """
    is_layer = isinstance(operation, keras.layers.Layer)
    if is_layer:
        args, kwargs = _completed(operation, args, kwargs)
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
    if is_layer and operation.supports_masking:
        _pass_masks(graph, operation, args, kwargs, values)
    return values


def _completed(layer: Any, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """A layer's arguments as its function here takes them: the first by place, with masks, without `training`."""
    kwargs = {name: value for name, value in kwargs.items() if name != "training"}
    first = next(iter(inspect.signature(layer.call).parameters), None)
    if not args and first in kwargs:
        args = (kwargs.pop(first),)
    return args, {**kwargs, **_masks(layer, args, kwargs)}


def _masks(layer: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Masks that Keras hands to a layer's `call` where it has arguments for them and none are given."""
    signature = inspect.signature(layer.call)
    try:
        given = signature.bind_partial(*args, **kwargs).arguments
    except TypeError:
        return {}
    tensors = {name: value for name, value in given.items() if values_in(value)}
    takers = {"mask": next(iter(tensors))} if len(tensors) == 1 else {f"{name}_mask": name for name in tensors}
    found = {
        taker: keras.tree.map_structure(_mask, tensors[name])
        for taker, name in takers.items()
        if taker in signature.parameters and given.get(taker) is None
    }
    return {taker: masks for taker, masks in found.items() if values_in(masks)}


def _mask(leaf: Any) -> Value | None:
    return leaf.mask if isinstance(leaf, Value) else None


def _pass_masks(graph: Graph, layer: Any, args: Any, kwargs: Any, values: Sequence[Value]) -> None:
    """Give a layer's results the masks that Keras gives them, unless they have masks already."""
    before = kwargs.get("mask")
    if before is None and args:
        before = keras.tree.map_structure(_mask, args[0])
    own = type(layer).compute_mask is not keras.layers.Layer.compute_mask
    if all(value.mask is not None for value in values) or not (values_in(before) or (own and _begins(layer))):
        return
    masks = lower_function(graph, layer.compute_mask, args[0], before) if own else before
    for value, mask in zip(values, keras.tree.flatten(masks), strict=False):
        if value.mask is None:
            value.mask = mask


def _begins(layer: Any) -> bool:
    """Whether a layer may give a mask to what has none."""
    return not isinstance(layer, keras.src.layers.merging.base_merge.Merge)


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
    known += [value.mask for value in known if value.mask is not None]
    known = list({id(value): value for value in known}.values())
    symbols = [
        keras.KerasTensor(value.shape, value.dtype, name=f"argument{place}") for place, value in enumerate(known)
    ]
    table = {id(value): symbol for value, symbol in zip(known, symbols, strict=True)}
    given = keras.tree.map_structure(lambda leaf: table.get(id(leaf), leaf), values)
    for value, symbol in zip(known, symbols, strict=True):
        if value.mask is not None:
            set_keras_mask(symbol, table[id(value.mask)])
    from export.lowering.tracing import tracing

    def with_masks(*given: Any) -> Any:
        result = function(*given)
        leaves = enumerate(keras.tree.flatten(result))
        masks = {place: get_keras_mask(leaf) for place, leaf in leaves if isinstance(leaf, keras.KerasTensor)}
        return result, {place: mask for place, mask in masks.items() if mask is not None}

    try:
        with tracing() as trace:
            traced = trace.body(with_masks, given, symbols)
    except Exception as error:  # custom code may fail on symbols in any way
        raise NotLoweredError(f"{graph.scope}: {error}") from error
    result, masks = traced.write(graph, known)
    leaves = keras.tree.flatten(result)
    for place, mask in masks.items():
        leaves[place].mask = mask
    return result


def _expand(graph: Graph, operation: Any, args: Any, kwargs: Any) -> Any:
    """Write an operation through the `keras.ops` it consists of, or else through the converter behind."""
    from export.lowering.tracing import through_operations

    if isinstance(operation, keras.layers.Layer) and hasattr(operation, "call"):
        options = {"training": False} if operation._call_has_training_arg else {}
        quantized = getattr(operation, "quantization_mode", None) is not None
        call = functools.partial(operation.quantized_call if quantized else operation.call, **options)
        try:
            with through_operations(operation):
                return lower_function(graph, lambda given, named: call(*given, **named), args, kwargs)
        except NotLoweredError:
            pass
    if keras.config.backend() != "tensorflow":
        raise NotLoweredError(f"{graph.scope} ({type(operation).__name__}) needs TensorFlow to be converted")
    from export.lowering.fallback import convert  # loads TensorFlow

    return convert(graph, operation, args, kwargs)


def _fill(graph: Graph, bound: Bindings, structure: Any) -> Any:
    """A call's arguments with values in place of tensors."""

    def leaf(given: Any) -> Any:
        if isinstance(given, keras.KerasTensor):
            if id(given) not in bound:
                raise ExportError(
                    f"cannot export: layer {graph.scope!r} reads a tensor that is no part of the model it is in; "
                    "make that tensor an input of the model"
                )
            return bound[id(given)]
        return given

    return keras.tree.map_structure(leaf, structure)


def _consumers(nodes: Sequence[Any], outputs: Sequence[Any]) -> dict[int, int]:
    """Id of a tensor -> how many nodes and outputs read it."""
    counts = {id(tensor): 1 for tensor in outputs}
    for node in nodes:
        for tensor in node.input_tensors:
            counts[id(tensor)] = counts.get(id(tensor), 0) + 1
    return counts


def values_in(structure: Any) -> list[Value]:
    """Values in a structure of arguments, in order."""
    return [leaf for leaf in keras.tree.flatten(structure) if isinstance(leaf, Value)]


def _value(graph: Graph, made: Value | str, tensor: Any) -> Value:
    """A value for what a call made, with the shape and dtype that Keras gives it."""
    value = Value(graph, made) if isinstance(made, str) else made
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if value.dtype and onnx_type(value.dtype) != onnx_type(dtype):
        value = typed(graph, value, dtype)
    if value.shape and value.shape != tuple(tensor.shape):  # the shape of another value may be in use elsewhere
        value = Value(graph, value.name)
    value.shape, value.dtype = tuple(tensor.shape), dtype
    return value
