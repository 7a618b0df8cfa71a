"""A look inside Keras models, on any backend: layers that answer through functions of ours, and gradients."""

import inspect
import operator
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

Arrays = list[np.ndarray]
Change = Callable[..., Any]  # (the layer's own call, *args, **kwargs) -> what the layer gives instead
PASSES = 16  # through a model's layers in Python, about as long as TensorFlow takes to compile them

_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def changed(changes: Mapping[Any, Change], attribute: str = "") -> Iterator[None]:
    """Within it, layers answer through functions of ours; in this thread only, so that training beside it goes on.

    Args:
        changes: layer or operation -> `function(call, *args, **kwargs)`, where `call` is the layer's own.
        attribute: name of what is replaced in a layer, its `call` if empty.
    """
    owner = threading.get_ident()

    def replaced(call: Callable[..., Any], change: Change) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != owner:
                return call(*args, **kwargs)
            return change(call, *args, **kwargs)

        return run

    with _ONE_AT_A_TIME:
        before: list[tuple[dict[str, Any], str, Any]] = []
        try:
            for layer, change in changes.items():
                quantized = getattr(layer, "quantization_mode", None) is not None
                name = attribute or ("quantized_call" if quantized else "call")
                before.append((vars(layer), name, vars(layer).get(name)))
                vars(layer)[name] = replaced(getattr(layer, name), change)
            yield
        finally:
            for attributes, name, former in reversed(before):
                del attributes[name]
                if former is not None:
                    attributes[name] = former


def differentiable(
    model: Any, run: Callable[[list[Any], list[Any]], tuple[Any, list[Any]]], *, reused: bool = False
) -> Callable[[Arrays, Arrays], tuple[np.ndarray, Arrays, Arrays]]:
    """A function of arrays together with its gradients.

    Args:
        model: Keras model that `run` calls.
        run: (tensors to differentiate for, other tensors) -> (values (rows,), further tensors to look at).
        reused: whether it may be called often, and is worth compiling when it was.

    Returns:
        (arrays, other arrays) -> (values (rows,), gradient of each value for each array in the arrays' shapes, the
        further tensors); the gradient is that of the sum, since a value depends on its own row alone.
    """
    import keras

    from zoo.training.gradients import compiled, input_gradients

    def with_slopes(points: list[Any], fixed: list[Any]) -> tuple[Any, list[Any], list[Any]]:
        others = [keras.ops.convert_to_tensor(values) for values in fixed]
        return input_gradients(model, lambda tensors: run(tensors, others), points)

    function = compiled(with_slopes, model, reused, after=PASSES)
    return lambda points, fixed: keras.tree.map_structure(keras.ops.convert_to_numpy, function(points, fixed))


class Kept:
    """What was made for a model whose parts were these objects.

    What is made may hold the model, since it goes when the model goes; it should not hold rows.
    """

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts
        self._made: dict[Any, Any] = {}

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make()` gave for this key when it was first asked for."""
        with _ONE_AT_A_TIME:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]


def kept(model: Any) -> Kept:
    """What was made for a model, kept in it until one of its layers or variables is another object."""
    layers = layers_of(model)
    parts = [*layers, *model.variables]
    for layer in layers:
        own = vars(layer)
        parts += [own.get("call"), getattr(layer, "activation", None), getattr(layer, "quantization_mode", None)]
    with _ONE_AT_A_TIME:
        found = vars(model).get("_zoo_kept")
        if found is None or len(parts) != len(found.parts) or any(map(operator.is_not, parts, found.parts)):
            found = vars(model)["_zoo_kept"] = Kept(parts)
        return found


def called(model: Any, tensors: Sequence[Any]) -> Any:
    """A Keras model's output for its inputs in its order, in inference mode."""
    import keras

    structure = getattr(getattr(model, "_functional", None) or model, "_inputs_struct", None)
    if structure is None:
        return model(tensors[0] if len(tensors) == 1 else list(tensors), training=False)
    return model(keras.tree.pack_sequence_as(structure, list(tensors)), training=False)


def layers_of(model: Any) -> list[Any]:
    """Every layer inside a model, also inside other layers, the model itself left out."""
    return list(model._flatten_layers(include_self=False, recursive=True))


def recorded(model: Any, run: Callable[[], Any]) -> list[tuple[Any, Any]]:
    """(layer, what it gave) for every layer call while `run()` runs, in the order in which the calls end."""
    seen: list[tuple[Any, Any]] = []

    def recording(layer: Any) -> Change:
        def record(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            seen.append((layer, result))
            return result

        return record

    with changed({layer: recording(layer) for layer in layers_of(model)}):
        run()
    return seen


def takes(layer: Any, argument: str) -> bool:
    """Whether a layer's `call` has an argument of that name."""
    return argument in inspect.signature(type(layer).call).parameters


def first_of(output: Any) -> Any:
    if isinstance(output, Mapping):
        return next(iter(output.values()))
    return output[0] if isinstance(output, list | tuple) else output
