"""Running Keras code on symbolic tensors so that its `keras.ops` can be lowered, loops and sizes at run time included.

Plain symbolic tensors of Keras have no numbers for free sizes, cannot be put into the slots of a slice, do not meet
variables or arrays on the left of an operator, and give loops no graph of their own. While `tracing` is open they do.
"""

import functools
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import KerasTensor
from keras.src.backend.common.variables import Variable
from keras.src.layers import layer as layer_module
from keras.src.ops import operation as operation_module
from keras.src.ops.node import Node
from keras.src.utils.naming import auto_name
from onnx import helper

from export.lowering import NotLoweredError, lowers
from export.lowering.arguments import indices, typed, value, value_of
from export.lowering.arrays import counted, expanded, filled, flipped, item, padded, sized
from export.lowering.graph import Graph, Value, onnx_type
from export.lowering.images import resized


class Later(keras.Operation):  # type: ignore[misc]
    """A call that is written by a function given to it, `write(graph, *args)`."""

    def __init__(self, what: str, write: Callable[..., Any], results: Any) -> None:
        super().__init__(name=auto_name(what))
        self.write = write
        self.results = results

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self.results

    def call(self, *args: Any) -> Any:
        raise NotLoweredError(f"{self.name} exists in exported files only")


@lowers(Later)
def _later(graph: Graph, call: Any, *args: Any) -> Any:
    return call.write(graph, *args)


def _later_call(what: str, write: Callable[..., Any], results: Any, *args: Any) -> Any:
    return Later(what, write, results).symbolic_call(*args)


def _symbols_in(*given: Any) -> list[KerasTensor]:
    return [leaf for leaf in keras.tree.flatten(given) if isinstance(leaf, KerasTensor)]


def _symbolic(*given: Any) -> bool:
    return bool(_symbols_in(*given))


class Traced:
    """A function of tensors as nodes, with the tensors from outside that it reads.

    Attributes:
        nodes: in the order they run.
        inputs: symbols it takes.
        captured: symbols of the graph around it.
        result: structure of what it gives, of symbols and constants.
    """

    def __init__(self, made: Sequence[Node], inputs: Sequence[KerasTensor], result: Any) -> None:
        """Keep what the result needs of the nodes that were made while the function ran."""
        self.inputs, self.result = list(inputs), result
        self.outputs = _symbols_in(result)
        self.nodes: list[Node] = []
        wanted = {id(tensor): tensor for tensor in self.outputs}
        for node in reversed(made):
            if any(id(tensor) in wanted for tensor in node.outputs):
                self.nodes.append(node)
                for tensor in node.outputs:
                    wanted.pop(id(tensor), None)
                wanted |= {id(tensor): tensor for tensor in node.input_tensors}
        self.nodes.reverse()
        own = {id(tensor) for tensor in self.inputs}
        self.captured = [tensor for place, tensor in wanted.items() if place not in own]

    def write(self, graph: Graph, inputs: Sequence[Value], captured: Sequence[Value] = ()) -> Any:
        """The structure of the result with values in it."""
        from export.lowering.walk import lower_nodes

        symbols, values = [*self.inputs, *self.captured], [*inputs, *captured]
        made = lower_nodes(graph, self.nodes, symbols, values, self.outputs)
        found = {id(symbol): one for symbol, one in zip(self.outputs, made, strict=True)}  # orders of dictionaries vary

        def value_in(leaf: Any) -> Value | None:
            return found[id(leaf)] if isinstance(leaf, KerasTensor) else None if leaf is None else value_of(graph, leaf)

        return keras.tree.map_structure(value_in, self.result)


class Trace:
    """What is traced at the moment: the nodes it made, and the sizes it asked for."""

    def __init__(self) -> None:
        self.made: list[Node] = []
        self._sizes: dict[tuple[int, int], tuple[KerasTensor, KerasTensor]] = {}

    def size(self, x: KerasTensor, axis: int) -> KerasTensor:
        key = (id(x), axis)
        if key not in self._sizes:

            def write(graph: Graph, given: Value) -> str:
                return graph.cast(graph.reshape(graph.size(given, axis), []), "int32")

            self._sizes[key] = (_later_call("size", write, KerasTensor((), "int32"), x), x)
        return self._sizes[key][0]

    def body(self, function: Callable[..., Any], given: Any, inputs: Sequence[KerasTensor] | None = None) -> Traced:
        """Trace `function(*given)`, which may read tensors of the graph around it; `inputs` are those in `given`."""
        before, sizes = len(self.made), dict(self._sizes)
        result = function(*given)
        self._sizes = sizes  # sizes taken inside exist there only
        return Traced(self.made[before:], _symbols_in(given) if inputs is None else inputs, result)


@contextmanager
def tracing() -> Iterator[Trace]:
    """Let Keras code run on symbolic tensors as described above; layers and their states stay as they were.

    Functions of Keras are replaced meanwhile; other threads get the old ones through them, and trace one at a time.
    """
    trace = Trace()
    owner = threading.get_ident()
    changed: list[tuple[Any, str, Any]] = []

    def change(place: Any, name: str, new: Any) -> None:
        changed.append((place, name, vars(place).get(name, _ABSENT)))
        setattr(place, name, new)

    def in_this_thread(stand_in: Callable[..., Any], original: Any) -> Callable[..., Any]:
        @functools.wraps(original)
        def either(*args: Any, **kwargs: Any) -> Any:
            return (stand_in if threading.get_ident() == owner else original)(*args, **kwargs)

        return either

    def node(*args: Any, **kwargs: Any) -> Node:
        trace.made.append(Node(*args, **kwargs))
        return trace.made[-1]

    with _LOCK:
        try:
            for place in (operation_module, layer_module):
                change(place, "Node", in_this_thread(node, Node))
            for original, stand_in in _replacements(trace):
                name = original.__name__
                for module in _MODULES:
                    if getattr(module, name, None) is original:
                        change(module, name, in_this_thread(stand_in, original))
            for name, function in _OPERATORS.items():
                change(Variable, name, _with_symbols(vars(Variable)[name], function))
            change(Variable, "__getitem__", _picked(vars(Variable)["__getitem__"], trace))
            change(KerasTensor, "__getitem__", _picked(vars(KerasTensor)["__getitem__"], trace))
            change(KerasTensor, "__array_ufunc__", None)  # arrays on the left leave the operator to the symbol
            change(KerasTensor, "__jax_array__", None)
            del KerasTensor.__jax_array__
            with keras.StatelessScope():
                yield trace
        finally:
            for place, name, old in reversed(changed):
                if old is not _ABSENT:
                    setattr(place, name, old)
                elif name in vars(place):
                    delattr(place, name)
            for made in reversed(trace.made):
                _remove(made.operation._inbound_nodes, made)
                for tensor in made.input_tensors:
                    if tensor._keras_history.operation is not None:
                        _remove(tensor._keras_history.operation._outbound_nodes, made)


class _Operations:
    """Stands in for the backend that preprocessing layers compute with: the same names in `keras.ops`."""

    def __getattr__(self, name: str) -> Any:
        if name in ("numpy", "math", "nn", "core", "linalg"):
            return self
        own = {"image": keras.ops.image, "random": keras.random, "_backend": keras.config.backend()}
        return own[name] if name in own else getattr(keras.ops, name)


@contextmanager
def through_operations(layer: Any) -> Iterator[None]:
    """Let a preprocessing layer, which computes with a backend of its own choice, use `keras.ops`."""
    own = vars(layer).get("backend")
    if type(own).__name__ != "DynamicBackend":
        yield
        return
    vars(layer)["backend"] = _Operations()
    try:
        yield
    finally:
        vars(layer)["backend"] = own


_ABSENT = object()
_LOCK = threading.RLock()


def _remove(nodes: list[Node], node: Node) -> None:
    nodes[:] = [one for one in nodes if one is not node]


def _modules() -> list[types.ModuleType]:
    source = keras.src
    return [
        keras.ops, keras.ops.numpy, keras.ops.image, keras.random, source.ops, source.ops.core, source.ops.numpy,
        source.ops.image, source.random, source.random.random,
    ]  # fmt: skip


_MODULES = _modules()


def _operators() -> dict[str, Callable[[Any, Any], Any]]:
    """Dunder name -> what it computes of (self, other)."""
    ops = keras.ops
    pairs = {
        "add": ops.add, "sub": ops.subtract, "mul": ops.multiply, "truediv": ops.divide, "mod": ops.mod,
        "floordiv": ops.floor_divide, "pow": ops.power, "matmul": ops.matmul,
    }  # fmt: skip
    found: dict[str, Callable[[Any, Any], Any]] = {}
    for name, function in pairs.items():
        found[f"__{name}__"] = function
        found[f"__r{name}__"] = _swapped(function)
    compared = {"lt": ops.less, "le": ops.less_equal, "gt": ops.greater, "ge": ops.greater_equal}
    return found | {f"__{name}__": function for name, function in compared.items()}


def _swapped(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda own, other: function(other, own)


_OPERATORS = _operators()


def _with_symbols(old: Any, function: Callable[[Any, Any], Any]) -> Any:
    """An operator of variables that also takes symbols."""

    def inner(self: Any, other: Any) -> Any:
        return function(self.value, other) if isinstance(other, KerasTensor) else old(self, other)

    return inner


def _picked(old: Any, trace: Trace) -> Any:
    """`x[key]` where the key may hold symbols."""

    def inner(self: Any, key: Any) -> Any:
        parts = list(key) if isinstance(key, tuple) else [key]
        if not any(_symbolic(_open(part)) for part in parts):
            return old(self, key)
        if isinstance(key, KerasTensor) and key.shape:
            return keras.ops.take(self, key, axis=0)
        return _get_item(trace, self, parts)

    return inner


def _open(part: Any) -> Any:
    return [part.start, part.stop, part.step] if isinstance(part, slice) else [part]


def _get_item(trace: Trace, x: Any, parts: list[Any]) -> Any:
    plain = tuple(
        slice(None)
        if isinstance(part, slice) and _symbolic(_open(part))
        else 0
        if isinstance(part, KerasTensor)
        else part
        for part in parts
    )
    shape = list(keras.ops.get_item.__wrapped__(KerasTensor(x.shape), plain).shape)
    axis = 0
    before = parts[: parts.index(Ellipsis)] if any(part is Ellipsis for part in parts) else parts
    for part in before:
        if isinstance(part, slice) and _symbolic(_open(part)):
            shape[axis] = None
        axis += not isinstance(part, int | KerasTensor)
    axis = len(shape) - 1
    for part in reversed(parts[len(before) :]):
        if isinstance(part, slice) and _symbolic(_open(part)):
            shape[axis] = None
        axis -= not isinstance(part, int | KerasTensor)
    kinds = [type(part) for part in parts]

    def write(graph: Graph, given: Any, *opened: Any) -> str:
        key = [slice(*pieces) if kind is slice else pieces[0] for kind, pieces in zip(kinds, opened, strict=True)]
        return item(graph, value_of(graph, given), tuple(key))

    return _later_call("get_item", write, KerasTensor(shape, x.dtype), x, *(_open(part) for part in parts))


def _replacements(trace: Trace) -> list[tuple[Any, Any]]:
    """(function of Keras, what it does while tracing)."""
    ops = keras.ops

    def replaces(original: Any) -> Callable[[Any], Any]:
        def mark(new: Any) -> Any:
            found.append((original, new))
            return new

        return mark

    found: list[tuple[Any, Any]] = []
    old = {name: getattr(ops, name) for name in _NAMES}
    old_resize = ops.image.resize

    @replaces(ops.shape)
    def shape(x: Any) -> Any:
        if not isinstance(x, KerasTensor):
            return old["shape"](x)
        return tuple(trace.size(x, axis) if size is None else size for axis, size in enumerate(x.shape))

    @replaces(ops.get_item)
    def get_item(x: Any, key: Any) -> Any:
        return x[key]

    @replaces(ops.reshape)
    def reshaped(x: Any, newshape: Any) -> Any:
        if not _symbolic(newshape):
            return old["reshape"](x, newshape)
        return _later_call("reshape", _write_reshape, KerasTensor(_plain(newshape), x.dtype), x, list(newshape))

    @replaces(ops.broadcast_to)
    def broadcast_to(x: Any, shape: Any) -> Any:
        if not _symbolic(shape):
            return old["broadcast_to"](x, shape)
        return _later_call("broadcast_to", _write_broadcast, KerasTensor(_plain(shape), x.dtype), x, list(shape))

    @replaces(ops.tile)
    def tile(x: Any, repeats: Any) -> Any:
        if not _symbolic(repeats):
            return old["tile"](x, repeats)
        repeats = list(repeats) if isinstance(repeats, list | tuple) else [repeats]
        return _later_call("tile", _write_tile, KerasTensor([None] * len(x.shape), x.dtype), x, repeats)

    @replaces(ops.pad)
    def pad(x: Any, pad_width: Any, mode: str = "constant", constant_values: Any = None) -> Any:
        if not _symbolic(pad_width):
            return old["pad"](x, pad_width, mode, constant_values)
        if isinstance(pad_width, KerasTensor) or len(pad_width) != len(x.shape):
            raise NotLoweredError("widths of padding that are no pair for each axis")
        pairs = [list(pair) for pair in pad_width]
        shape = [None if size is None or _symbolic(pair) else size + sum(pair) for size, pair in zip(
            x.shape, pairs, strict=True)]  # fmt: skip

        def write(graph: Graph, x: Any, pairs: Any, filling: Any) -> str:
            return padded(graph, value_of(graph, x), pairs, mode, filling)

        return _later_call("pad", write, KerasTensor(shape, x.dtype), x, pairs, constant_values)

    def full_of(number: Any, name: str) -> Callable[..., Any]:
        def full(shape: Any, dtype: Any = None) -> Any:
            if not _symbolic(shape):
                return old[name](shape, dtype=dtype)
            return _full(shape, number, dtype or keras.config.floatx())

        return full

    replaces(ops.zeros)(full_of(0, "zeros"))
    replaces(ops.ones)(full_of(1, "ones"))

    @replaces(ops.full)
    def full(shape: Any, fill_value: Any, dtype: Any = None) -> Any:
        if not _symbolic(shape, fill_value):
            return old["full"](shape, fill_value, dtype=dtype)
        return _full(shape, fill_value, dtype or keras.config.floatx())

    @replaces(ops.arange)
    def arange(start: Any, stop: Any = None, step: Any = None, dtype: Any = None) -> Any:
        if not _symbolic(start, stop, step):
            return old["arange"](start, stop, step, dtype)
        ends = (0, start, 1) if stop is None else (start, stop, 1 if step is None else step)
        kind = dtype or ("int32" if not any(isinstance(end, float) for end in ends) else keras.config.floatx())
        kind = keras.backend.standardize_dtype(kind)

        def write(graph: Graph, start: Any, stop: Any, step: Any) -> Value:
            return counted(graph, start, stop, step, kind)

        return _later_call("arange", write, KerasTensor((None,), kind), *ends)

    @replaces(ops.image.resize)
    def resize(
        images: Any,
        size: Any,
        interpolation: str = "bilinear",
        antialias: bool = False,
        crop_to_aspect_ratio: bool = False,
        pad_to_aspect_ratio: bool = False,
        fill_mode: str = "constant",
        fill_value: float = 0.0,
        data_format: Any = None,
    ) -> Any:
        if not _symbolic(size):
            return old_resize(
                images, size, interpolation, antialias, crop_to_aspect_ratio, pad_to_aspect_ratio, fill_mode,
                fill_value, data_format,
            )  # fmt: skip
        if crop_to_aspect_ratio or pad_to_aspect_ratio:
            raise NotLoweredError("proportions of a size known at run time only")
        layout = data_format or keras.config.image_data_format()
        first = 1 if layout == "channels_last" else 2
        shape = (*images.shape[:first], *_plain(size), *images.shape[first + 2 :])

        def write(graph: Graph, images: Any, size: Any) -> Value:
            return resized(graph, images, size, interpolation, antialias, layout)

        return _later_call("resize", write, KerasTensor(shape, images.dtype), images, list(size))

    @replaces(ops.custom_gradient)
    def custom_gradient(f: Any) -> Any:
        return lambda *args, **kwargs: f(*args, **kwargs)[0]

    @replaces(ops.cond)
    def cond(pred: Any, true_fn: Any, false_fn: Any) -> Any:
        if not _symbolic(pred):
            return true_fn() if bool(pred) else false_fn()
        return keras.tree.map_structure(lambda a, b: ops.where(pred, a, b), true_fn(), false_fn())

    @replaces(ops.switch)
    def switch(index: Any, branches: Any, *operands: Any) -> Any:
        made = branches[-1](*operands)
        for place in reversed(range(len(branches) - 1)):
            made = keras.tree.map_structure(
                lambda a, b, place=place: ops.where(index <= place, a, b), branches[place](*operands), made
            )
        return made

    @replaces(ops.while_loop)
    def while_loop(cond: Any, body: Any, loop_vars: Any, maximum_iterations: Any = None) -> Any:
        return _while(trace, cond, body, loop_vars, maximum_iterations)

    @replaces(ops.fori_loop)
    def fori_loop(lower: Any, upper: Any, body_fun: Any, init_val: Any) -> Any:
        if not _symbolic(lower, upper, init_val):
            for place in range(int(lower), int(upper)):
                init_val = body_fun(place, init_val)
            return init_val
        count = upper - lower
        return _scan(trace, lambda state, _, place: (body_fun(place + lower, state), []), init_val, None, count)[0]

    @replaces(ops.scan)
    def scan(f: Any, init: Any, xs: Any = None, length: Any = None, reverse: bool = False, unroll: Any = 1) -> Any:
        count = length if length is not None else shape(keras.tree.flatten(xs)[0])[0]
        return _scan(trace, lambda state, x, _: f(state, x), init, xs, count, reverse)

    def mapped(f: Any, xs: Any) -> Any:
        count = shape(keras.tree.flatten(xs)[0])[0]
        return _scan(trace, lambda state, x, _: (state, f(x)), [], xs, count)[1]

    replaces(ops.map)(mapped)
    replaces(ops.vectorized_map)(mapped)

    @replaces(keras.random.normal)
    def normal(shape: Any, mean: Any = 0.0, stddev: Any = 1.0, dtype: Any = None, seed: Any = None) -> Any:
        return _drawn("RandomNormalLike", shape, dtype) * stddev + mean

    @replaces(keras.random.uniform)
    def uniform(shape: Any, minval: Any = 0.0, maxval: Any = 1.0, dtype: Any = None, seed: Any = None) -> Any:
        return _drawn("RandomUniformLike", shape, dtype) * (maxval - minval) + minval

    for name in ("categorical", "randint", "truncated_normal", "shuffle", "gamma", "binomial", "beta", "dropout"):

        def refuse(*args: Any, name: str = name, **kwargs: Any) -> Any:
            raise NotLoweredError(f"keras.random.{name} has no ONNX form")

        replaces(getattr(keras.random, name))(refuse)
    return found


_NAMES = ("shape", "reshape", "broadcast_to", "tile", "pad", "zeros", "ones", "full", "arange")


def _plain(sizes: Any) -> tuple[int | None, ...]:
    """A shape in which what is known at run time only is None."""
    return tuple(None if isinstance(size, KerasTensor) or size in (-1, None) else int(size) for size in sizes)


def _write_reshape(graph: Graph, x: Any, sizes: Any) -> str:
    return graph.reshape(value_of(graph, x), sized(graph, sizes))


def _write_broadcast(graph: Graph, x: Any, sizes: Any) -> str:
    return expanded(graph, value_of(graph, x), sized(graph, sizes))


def _write_tile(graph: Graph, x: Any, repeats: Any) -> str:
    return graph.add("Tile", value_of(graph, x), graph.shape([size or 1 for size in sized(graph, repeats)]))


def _full(shape: Any, number: Any, dtype: Any) -> Any:
    kind = keras.backend.standardize_dtype(dtype)
    sizes = list(shape) if isinstance(shape, list | tuple) else [shape]

    def write(graph: Graph, sizes: Any, number: Any) -> str:
        wanted = [1 if size is None else size for size in sized(graph, sizes)]
        if isinstance(number, Value):
            return expanded(graph, value_of(graph, number, kind), wanted)
        return filled(graph, wanted, number, kind)

    return _later_call("full", write, KerasTensor(_plain(sizes), kind), sizes, number)


def _drawn(operation: str, shape: Any, dtype: Any) -> Any:
    """Random numbers, new ones at each run."""
    kind = keras.backend.standardize_dtype(dtype or keras.config.floatx())
    sizes = list(shape) if isinstance(shape, list | tuple) else [shape]

    def write(graph: Graph, sizes: Any) -> str:
        wanted = [1 if size is None else size for size in sized(graph, sizes)]
        return graph.add(operation, filled(graph, wanted, 0, kind), dtype=onnx_type(kind))

    return _later_call("random", write, KerasTensor(_plain(sizes), kind), sizes)


# Loops


def _symbol_of(leaf: Any) -> KerasTensor:
    """A symbol with the shape and dtype of a tensor, array or number."""
    if isinstance(leaf, KerasTensor | Variable) or hasattr(leaf, "dtype"):
        return KerasTensor(leaf.shape, keras.backend.standardize_dtype(leaf.dtype))
    array = np.asarray(leaf)
    return KerasTensor(array.shape, {"b": "bool", "i": "int32"}.get(array.dtype.kind, keras.config.floatx()))


def _row_of(leaf: Any) -> KerasTensor:
    return KerasTensor(leaf.shape[1:], keras.backend.standardize_dtype(leaf.dtype))


def _while(trace: Trace, cond: Any, body: Any, loop_vars: Any, maximum: Any) -> Any:
    many = isinstance(loop_vars, list | tuple)
    symbols = keras.tree.map_structure(_symbol_of, list(loop_vars) if many else [loop_vars])
    test = trace.body(cond, symbols)

    def step(*given: Any) -> Any:
        result = body(*given)
        return list(result) if isinstance(result, list | tuple) else [result]

    traced = trace.body(step, symbols)
    results = keras.tree.map_structure(lambda tensor: KerasTensor(tensor.shape, tensor.dtype), symbols)
    kinds = [tensor.dtype for tensor in keras.tree.flatten(symbols)]

    def write(graph: Graph, given: Any, outside: Any, tested: Any) -> Any:
        start = [value_of(graph, leaf, kind) for leaf, kind in zip(keras.tree.flatten(given), kinds, strict=True)]
        first = test.write(graph, start, tested)

        def turn(inner: Graph, place: Value, state: list[Value]) -> tuple[list[Value], list[Value], Value]:
            new = keras.tree.flatten(traced.write(inner, state, outside))
            new = [typed(inner, value_of(inner, leaf), kind) for leaf, kind in zip(new, kinds, strict=True)]
            return new, [], test.write(inner, new, tested)

        count = None if maximum is None else np.array(maximum, np.int64)
        states, _ = _loop(graph, count, value_of(graph, first, "bool"), start, turn)
        return keras.tree.pack_sequence_as(given, states)

    given = list(loop_vars) if many else [loop_vars]
    made = _later_call("while_loop", write, results, given, traced.captured, test.captured)
    return type(loop_vars)(made) if many and not hasattr(loop_vars, "_fields") else made[0] if not many else made


def _scan(trace: Trace, f: Any, init: Any, xs: Any, count: Any, reverse: bool = False) -> Any:
    """(last state, results of all steps) of `f(state, x, place) -> (state, result)`."""
    state = keras.tree.map_structure(_symbol_of, init)
    steps = None if xs is None else keras.tree.map_structure(_row_of, xs)
    traced = trace.body(f, [state, steps, KerasTensor((), "int32")])
    kinds = [tensor.dtype for tensor in keras.tree.flatten(state)]
    length = None if isinstance(count, KerasTensor) else int(count)
    stacked = keras.tree.map_structure(
        lambda leaf: KerasTensor((length, *_symbol_of(leaf).shape), _symbol_of(leaf).dtype), traced.result[1]
    )
    results = (keras.tree.map_structure(lambda tensor: KerasTensor(tensor.shape, tensor.dtype), state), stacked)

    def write(graph: Graph, init: Any, xs: Any, count: Any, outside: Any) -> Any:
        start = [value_of(graph, leaf, kind) for leaf, kind in zip(keras.tree.flatten(init), kinds, strict=True)]
        rows = [value_of(graph, leaf) for leaf in keras.tree.flatten(xs) if leaf is not None]
        turns = graph.reshape(indices(graph, count), []) if isinstance(count, Value) else np.array(count, np.int64)
        last = graph.add("Sub", turns, np.array(1, np.int64)) if reverse else ""

        def turn(inner: Graph, place: Value, state: list[Value]) -> tuple[list[Value], list[Value], None]:
            where = inner.add("Sub", last, place) if reverse else place.name
            row = [value(inner, inner.add("Gather", x, where, axis=0), x.shape[1:], x.dtype) for x in rows]
            number = typed(inner, value(inner, where, (), "int64"), "int32")
            found = traced.write(inner, [*state, *row, number], outside)
            new = [typed(inner, one, kind) for one, kind in zip(keras.tree.flatten(found[0]), kinds, strict=True)]
            return new, keras.tree.flatten(found[1]), None

        states, ys = _loop(graph, turns, None, start, turn)
        ys = [value(graph, flipped(graph, y, [0]), y.shape, y.dtype) for y in ys] if reverse else ys
        return keras.tree.pack_sequence_as(init, states), keras.tree.pack_sequence_as(traced.result[1], ys)

    return _later_call("scan", write, results, init, xs, count, traced.captured)


Turn = Callable[[Graph, Value, list[Value]], tuple[list[Value], list[Value], Value | None]]


def _loop(
    graph: Graph, count: Any, first: Value | None, start: list[Value], turn: Turn
) -> tuple[list[Value], list[Value]]:
    """Write an ONNX Loop.

    Args:
        graph: where to write.
        count: int64 scalar, how often at most; None for no limit.
        first: whether to begin at all; None for always.
        start: state before the first turn.
        turn: writes one turn from its number and the state: new state, results to collect, whether to go on.

    Returns:
        The last state, and the collected results with a new axis in front.
    """
    inner = graph.body()
    place = value(inner, graph.unique("turn"), (), "int64")
    going = graph.unique("going")
    state = [value(inner, graph.unique("state"), one.shape, one.dtype) for one in start]
    new, results, more = turn(inner, place, state)
    on = inner.add("Identity", more if more is not None else going, label="goes_on")
    after = [inner.add("Identity", one, label="next_state") for one in new]
    given = [inner.add("Identity", one, label="result") for one in results]

    def described(name: str, dtype: str) -> Any:
        return helper.make_tensor_value_info(name, onnx_type(dtype), None)

    takes = [described(place.name, "int64"), described(going, "bool")]
    takes += [described(one.name, one.dtype) for one in state]
    gives = [described(on, "bool"), *(described(name, one.dtype) for name, one in zip(after, new, strict=True))]
    gives += [described(name, one.dtype) for name, one in zip(given, results, strict=True)]
    for info in takes[:2] + gives[:1]:
        info.type.tensor_type.shape.SetInParent()
    body = inner.finish(graph.unique("body"), takes, gives)
    begin = first if first is not None else np.array(True)
    made = graph.add_many("Loop", len(new) + len(results), count, begin, *start, body=body)
    states = [value(graph, name, one.shape, one.dtype) for name, one in zip(made, start, strict=False)]
    collected = [
        value(graph, name, (None, *one.shape), one.dtype) for name, one in zip(made[len(new) :], results, strict=True)
    ]
    return states, collected


def _relayed(name: str) -> Any:
    """Loops that a functional model holds itself are traced like those inside layers."""

    def emit(graph: Graph, call: Any, *args: Any) -> Any:
        from export.lowering.walk import lower_function

        def again(*given: Any) -> Any:
            match name:
                case "while":
                    return keras.ops.while_loop(call.cond, call.body, *given, call.maximum_iterations)
                case "fori":
                    return keras.ops.fori_loop(call.lower, call.upper, call.body_fun, *given)
                case "scan":
                    return keras.ops.scan(*given, length=call.length, reverse=call.reverse)
                case "map":
                    return keras.ops.map(*given)
                case "vectorized":
                    return keras.ops.vectorized_map(call.function, *given)
                case "switch":
                    return keras.ops.switch(*given)
            return keras.ops.cond(*given)

        return lower_function(graph, again, *args)

    return emit


for _kind, _name in (
    (keras.src.ops.core.WhileLoop, "while"), (keras.src.ops.core.ForiLoop, "fori"), (keras.src.ops.core.Scan, "scan"),
    (keras.src.ops.core.Map, "map"), (keras.src.ops.core.VectorizedMap, "vectorized"),
    (keras.src.ops.core.Switch, "switch"), (keras.src.ops.core.Cond, "cond"),
):  # fmt: skip
    lowers(_kind)(_relayed(_name))
