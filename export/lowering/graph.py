"""An ONNX graph while it is written: values that know their axis order, nodes named by Keras layer, shared constants.

Keras keeps channels last, ONNX convolutions want them first. A `Value` therefore holds up to two tensors, one per
order, and makes the missing one only when somebody reads it. Chains of convolutions, normalisations, activations and
poolings never ask for the other order, so no transpose appears between them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from onnx import helper

from export.lowering import NotLoweredError

Shape = tuple[int | None, ...]
_SMALL = 16  # scalars; constants up to this size are stored once, however often they are used


class Value:
    """A tensor of the Keras model.

    Attributes:
        shape: Keras axis order; None where a size is known only at run time.
        dtype: of Keras, such as "float32" or "int32"; "" until the call that made it is complete.
        mask: boolean value (batch, steps) that says which steps count, or None.
        consumers: how many calls read it; a value with one consumer may be folded into that.
    """

    def __init__(self, graph: "Graph", last: str = "", first: str = "") -> None:
        self.graph = graph
        self.scope: str = graph.scope
        self.shape: Shape = ()
        self.dtype = ""
        self.mask: Value | None = None
        self.consumers = 0
        self._last = last
        self._first = first

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def channels_first(self) -> bool:
        """Whether it exists with channels first only, so that an elementwise operation should stay in that order."""
        return bool(self._first) and not self._last

    @property
    def written(self) -> str:
        """Name of the tensor in whichever order it exists already."""
        return self._last or self._first

    def rename(self, old: str, new: str) -> None:
        """Follow a tensor that got another name."""
        self._last = new if self._last == old else self._last
        self._first = new if self._first == old else self._first

    @property
    def name(self) -> str:
        """Name of the tensor in the axis order of Keras."""
        if not self._last:
            self._last = self._transposed("channels_last", self._first, [0, *range(2, self.rank), 1])
        return self._last

    @property
    def first(self) -> str:
        """Name of the tensor with its last axis moved to place 1."""
        if not self._first:
            self._first = self._transposed("channels_first", self._last, first_order(self.rank))
        return self._first

    def place(self, axis: int) -> int:
        """Where an axis of Keras is in the order with channels first."""
        return first_order(self.rank).index(axis % self.rank)

    def _transposed(self, what: str, name: str, order: Sequence[int]) -> str:
        if self.rank <= 2:
            return name
        with self.graph.within(self.scope):
            return self.graph.add("Transpose", name, perm=list(order), label=what)


class Padded(Value):
    """Zeros around the spatial axes of a value, written as a node only if its reader cannot take them in itself.

    Attributes:
        source: what is padded.
        pads: (before, after) of each spatial axis.
    """

    def __init__(self, graph: "Graph", source: Value, pads: Sequence[tuple[int, int]]) -> None:
        super().__init__(graph)
        self.source = source
        self.pads = tuple(pads)

    @property
    def channels_first(self) -> bool:
        return bool(self._first) or self.source.channels_first

    @property
    def name(self) -> str:
        if not self._last:
            pairs = [(0, 0), *self.pads, (0, 0)]
            self._last = self._pad(self.source.name, pairs)
        return self._last

    @property
    def first(self) -> str:
        if not self._first:
            pairs = [(0, 0), (0, 0), *self.pads]
            self._first = self._pad(self.source.first, pairs)
        return self._first

    def _pad(self, name: str, pairs: Sequence[tuple[int, int]]) -> str:
        pads = np.array([*(before for before, _ in pairs), *(after for _, after in pairs)], np.int64)
        with self.graph.within(self.scope):
            return self.graph.add("Pad", name, pads)


class Scaled:
    """A weight times a scale per channel, computed when it is written so that it takes no memory before.

    Attributes:
        array: the weight.
        scale: numbers that broadcast against it, in double precision.
    """

    def __init__(self, array: "Weight", scale: np.ndarray) -> None:
        self.array = array
        self.scale = scale
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype = array.dtype
        self.nbytes: int = array.nbytes

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return (np.asarray(self.array) * self.scale).astype(dtype or self.dtype)


Weight = np.ndarray | Scaled
Operand = Value | str | np.ndarray | None  # "" or None is an optional input left out


class Graph:
    """Nodes and constants of one ONNX graph, or of the body of a loop or branch inside one.

    Attributes:
        opset: version of the ONNX operator set that is written.
        nodes: in the order they run.
        weights: name -> array, often a view of the model's own memory.
        scope: path of the Keras layer that is being written, such as "encoder/block0".
        domains: operator sets besides the standard one, by name.
    """

    def __init__(self, opset: int, parent: "Graph | None" = None) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.producer: dict[str, onnx.NodeProto] = {}
        self.scope: str = parent.scope if parent else ""
        self.weights: dict[str, Weight] = parent.weights if parent else {}
        self.domains: dict[str, int] = parent.domains if parent else {}
        self.values: dict[str, Value] = {}  # path of a layer -> what it gave last
        self._taken: set[str] = parent._taken if parent else set()
        self._variables: dict[tuple[int, str], tuple[str, Any]] = parent._variables if parent else {}
        self._constants: dict[tuple[str, Shape, bytes], str] = parent._constants if parent else {}

    @contextmanager
    def within(self, scope: str) -> Iterator[None]:
        """Name what is added after the layer of this path."""
        before, self.scope = self.scope, scope
        try:
            yield
        finally:
            self.scope = before

    def unique(self, label: str) -> str:
        """A name that nothing has yet, `scope/label`, with a number where that is taken."""
        wanted = name = f"{self.scope}/{label}" if self.scope else label
        number = 1
        while name in self._taken:
            name, number = f"{wanted}_{number}", number + 1
        self._taken.add(name)
        return name

    def add(self, operation: str, *inputs: Operand, domain: str = "", label: str = "", **attributes: Any) -> str:
        """Write a node with one output, and return the output's name.

        Args:
            operation: ONNX operator.
            inputs: values (read in the axis order of Keras), names, arrays (which become constants), or None.
            domain: operator set, if not the standard one.
            label: last part of the node's name; the operator if empty.
            attributes: of the node; None is left out.
        """
        return self.add_many(operation, 1, *inputs, domain=domain, label=label, **attributes)[0]

    def add_many(
        self, operation: str, outputs: int, *inputs: Operand, domain: str = "", label: str = "", **attributes: Any
    ) -> list[str]:
        """Write a node with several outputs, and return their names."""
        names = [self.operand(value) for value in inputs]
        while names and not names[-1]:
            names.pop()
        name = self.unique(label or operation)
        made = (
            [name] if outputs == 1 else [self.unique(f"{label or operation}_output{place}") for place in range(outputs)]
        )
        given = {key: value for key, value in attributes.items() if value is not None}
        self.append(helper.make_node(operation, names, made, name=name, domain=domain, **given))
        return made

    def append(self, node: onnx.NodeProto) -> None:
        """Write a node that was made elsewhere."""
        self.nodes.append(node)
        self.producer.update((output, node) for output in node.output)

    def operand(self, value: Operand) -> str:
        """Name of a value, name or array; an array becomes a constant."""
        match value:
            case None:
                return ""
            case Value():
                return value.name
            case np.ndarray() | np.generic():
                return self.constant(np.asarray(value))
        return value

    def constant(self, array: np.ndarray, label: str = "constant") -> str:
        """Name of a constant with these values; equal small ones share it."""
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= _SMALL else None
        if key in self._constants:
            return self._constants[key]
        name = self.weight(array, label)
        if key:
            self._constants[key] = name
        return name

    def weight(self, array: Weight, label: str) -> str:
        """Name of a new constant `scope/label`."""
        name = self.unique(label)
        self.weights[name] = array
        return name

    def variable(
        self, variable: Any, label: str, change: Callable[[np.ndarray], np.ndarray] = lambda array: array
    ) -> str:
        """Name of the constant that holds a Keras variable, stored once for all calls of a shared layer.

        Args:
            variable: Keras variable.
            label: last part of the name; a variable that is used in two forms needs two.
            change: from the axis order of Keras to that of ONNX.
        """
        key = (id(variable), label)
        if key not in self._variables:
            self._variables[key] = (
                self.weight(change(array_of(variable)), label),
                variable,
            )  # held, so that its id stays
        return self._variables[key][0]

    def first(self, name: str) -> Value:
        """A value that exists with channels first."""
        return Value(self, first=name)

    def alias(self, value: Value) -> Value:
        """The same tensor as another value, which may get another mask."""
        made = Value(self, value._last, value._first) if type(value) is Value else Value(self, value.name)
        made.shape, made.dtype = value.shape, value.dtype
        return made

    def elementwise(self, build: Callable[..., str], *values: Value) -> Value:
        """What `build(*names)` writes, in the axis order in which the values are, all of one rank.

        Args:
            build: names of tensors -> name of the result; must not depend on the order of the axes.
            values: read with channels first if one of them exists so only, else as in Keras.
        """
        alike = len({value.rank for value in values}) == 1
        if alike and any(value.channels_first for value in values):
            return self.first(build(*(value.first for value in values)))
        return Value(self, build(*(value.name for value in values)))

    def reduce(self, operation: str, name: Operand, axes: Sequence[int], keepdims: bool = False) -> str:
        """A reduction such as ReduceMean over some axes, in the form that the opset has."""
        if self.opset >= 18 or operation == "ReduceSum":
            return self.add(operation, name, np.array(axes, np.int64), keepdims=int(keepdims))
        return self.add(operation, name, axes=list(axes), keepdims=int(keepdims))

    def cast(self, name: Operand, dtype: str) -> str:
        """The tensor in another Keras dtype; half precision is written as float32."""
        return self.add("Cast", name, to=onnx_type(dtype))

    def sizes(self, value: Value) -> list[int | str]:
        """Each size in Keras order: a number, or the name of an int64 tensor (1,) where only a run can tell."""
        return [size if size is not None else self.size(value.name, axis) for axis, size in enumerate(value.shape)]

    def size(self, name: Operand, axis: int) -> str:
        """Name of an int64 tensor (1,) with a size that is known at run time."""
        return self.add("Gather", self.add("Shape", name), np.array([axis], np.int64), axis=0)

    def shape(self, sizes: Sequence[int | str]) -> str:
        """Name of an int64 vector from numbers and names of int64 tensors (1,)."""
        if all(isinstance(size, int) for size in sizes):
            return self.constant(np.array(sizes, np.int64))
        return self.add("Concat", *(np.array([s], np.int64) if isinstance(s, int) else s for s in sizes), axis=0)

    def reshape(self, name: Operand, sizes: Sequence[int | str | None]) -> str:
        """Reshape to numbers, names of int64 tensors (1,), and None for what is left.

        Raises:
            NotLoweredError: more than one is None.
        """
        if list(sizes).count(None) > 1:
            raise NotLoweredError("a shape with two free sizes")
        return self.add("Reshape", name, self.shape([-1 if size is None else size for size in sizes]))

    def body(self) -> "Graph":
        """An empty graph for the body of a loop or branch: it may read values of this one, and shares its constants."""
        return Graph(self.opset, self)

    def finish(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.GraphProto:
        """The graph as ONNX holds it, without its constants."""
        return helper.make_graph(self.nodes, name, list(inputs), list(outputs))


def stored(dtype: str) -> str:
    """Keras dtype in which values of one are written: half precision as float32, in which ONNX Runtime always runs."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def onnx_type(dtype: str) -> int:
    """ONNX element type in which values of a Keras dtype are written."""
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(object if dtype == "string" else stored(dtype))))


def array_of(variable: Any) -> np.ndarray:
    """Values of a Keras variable, tensor or array; half precision as float32."""
    import keras

    dtype = keras.backend.standardize_dtype(variable.dtype)
    if stored(dtype) != dtype:
        variable = keras.ops.cast(variable, stored(dtype))
    value = variable.value if isinstance(variable, keras.Variable) else variable
    if hasattr(value, "read_value"):  # a TensorFlow variable, which numpy would copy
        value = value.value()
    try:
        return np.asarray(value)  # on TensorFlow and JAX a view of the memory, not a copy
    except (TypeError, RuntimeError):  # a PyTorch parameter with a gradient, or on a device
        return np.asarray(keras.ops.convert_to_numpy(value))


def first_order(rank: int) -> list[int]:
    """Axes of Keras in the order with channels first."""
    return [0, rank - 1, *range(1, rank - 1)]


def known(shape: Shape) -> bool:
    return None not in shape


def product(sizes: Sequence[int | None]) -> int | None:
    """Product of sizes, None if one is unknown."""
    return None if None in sizes else math.prod(size for size in sizes if size is not None)
