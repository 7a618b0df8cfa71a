"""Keras graph to ONNX graph, operation by operation and without a backend in between.

A functional model is already a graph of layers and `keras.ops` calls. Each kind has one function here, marked
`@lowers(kind)`, which writes its ONNX nodes; the files are by topic, and adding a kind is adding a function.
What has none is expanded: its `call` is run on symbolic tensors, and the `keras.ops` it is made of are lowered instead.
What cannot be expanded either is converted alone by tf2onnx (`fallback`).
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

Emitter = Callable[..., Any]
_EMITTERS: dict[type, Emitter] = {}


class NotLoweredError(ValueError):
    """An operation has no form here for these arguments; it is expanded, or left to the converter behind."""


def lowers(*kinds: type) -> Callable[[Emitter], Emitter]:
    """Mark the function that writes the ONNX nodes of some layer or operation classes.

    It is called as `function(graph, operation, *args, **kwargs)` with the arguments of the Keras call, tensors being
    `Value`s and masks filled in, and returns a name (axis order of Keras), a `Value`, or a tuple of these for several
    outputs. A value of another dtype than Keras gives is cast; the masks of the results are what Keras makes of them.
    It may raise `NotLoweredError` before it adds a node.
    """

    def mark(function: Emitter) -> Emitter:
        for kind in kinds:
            _EMITTERS[kind] = function
        return function

    return mark


def emitter_of(operation: Any) -> Emitter | None:
    """The function for an operation's class, or for the base class whose `call` it uses unchanged."""
    _load()
    for kind in type(operation).__mro__:
        if kind in _EMITTERS:
            unchanged = getattr(type(operation), "call", None) is getattr(kind, "call", None)
            return _EMITTERS[kind] if unchanged else None
    return None


@functools.cache
def _load() -> None:
    """Read the files by topic once, Keras being loaded by then."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
