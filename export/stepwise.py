"""A model that answers for every place of a text, as one that takes a step: the same layers, called again on new inputs.

What does not depend on the text that is being written is the encoder; whatever of it the rest reads, keys and values
included, crosses over. In the rest, the decoder, every causal `Attention` gets the keys and values of earlier places, every
layer that asks for `start` gets where the new tokens stand, and every recurrent layer gets its state. All other layers
are taken to look at each place alone; whether that holds is found by `gate`, which compares with the model itself.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import KerasTensor, layers, ops

from export import ExportError
from export.convert import OPSET, in_float32, write
from export.files import EXTERNAL_ABOVE
from export.lowering import lowers
from export.lowering.graph import Graph
from export.lowering.walk import nodes_of
from zoo.layers.attention import AWAY, Attention
from zoo.layers.positions import LearnedPositions, RelativeBias

WRITTEN = ("answer", "tokens")  # inputs that hold the text that is being written; the first that a model has
NEW = "_new"
MICROSOFT = "com.microsoft"  # operators of ONNX Runtime


class Steps(NamedTuple):
    """A model in steps.

    Attributes:
        decoder: `tokens` (batch, new), `cached` (batch, 1), caches, states and what crosses -> `logits` (batch, vocabulary)
            of what follows the last new token, and by the name of each cache and state with `_new` behind it the one after.
        encoder: the model's other inputs -> what crosses; None where there are none.
        block: `caches`, `states`, `crossing`, `source` and `length` of a manifest's `generation`.
    """

    decoder: Any
    encoder: Any
    block: dict[str, Any]


@keras.saving.register_keras_serializable("zoo")
class Ends(layers.Layer):  # type: ignore[misc]
    """Where each row's last new token stands: (batch, 1) int32."""

    def call(self, tokens: Any, cached: Any) -> Any:
        return cached + (ops.shape(tokens)[1] - 1)

    def compute_output_spec(self, tokens: Any, cached: Any) -> KerasTensor:
        return KerasTensor(cached.shape, "int32")


@keras.saving.register_keras_serializable("zoo")
class StepBias(layers.Layer):  # type: ignore[misc]
    """What a `RelativeBias` adds to the scores of new tokens, (batch, heads, new, places), up to the last that any row has."""

    def __init__(self, of: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.of = of

    def call(self, tokens: Any, ends: Any) -> Any:
        new = ops.shape(tokens)[1]
        own = ends + (ops.arange(new) + (1 - new))  # (batch, new)
        stands = ops.arange(ops.max(ends) + 1)
        return ops.transpose(self.of.between(stands - own[:, :, None]), (0, 3, 1, 2))

    def compute_output_spec(self, tokens: Any, ends: Any) -> KerasTensor:
        return KerasTensor((tokens.shape[0], self.of.heads, tokens.shape[1], None), "float32")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "of": keras.saving.serialize_keras_object(self.of)}


@keras.saving.register_keras_serializable("zoo")
class StepAttention(layers.Layer):  # type: ignore[misc]
    """Causal attention of new tokens to themselves and to cached places, among which they are written.

    Args:
        heads, scale, window: of the `Attention` that it stands for.
    """

    def __init__(self, heads: int, scale: float = 0.0, window: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.heads, self.scale, self.window = heads, scale, window

    def call(self, query: Any, key: Any, value: Any, keys: Any, values: Any, ends: Any, bias: Any = None) -> Any:
        """What the new tokens find, (batch, new, width), and the caches with their keys and values in them.

        Args:
            query, key, value: of new tokens, (batch, new, width).
            keys, values: caches, (batch, heads, places, `padded(size of a head)`), with room for the new tokens.
            ends: of `Ends`.
            bias: of `StepBias`, or None.
        """
        width, new, room = query.shape[-1], ops.shape(query)[1], ops.shape(keys)[2]
        size = width // self.heads
        own = ends + (ops.arange(new) + (1 - new))  # (batch, new)
        placed = ops.one_hot(own, room)  # (batch, new, places)
        split = (ops.reshape(x, (-1, new, self.heads, size)) for x in (query, key, value))
        query, key, value = (ops.pad(x, ((0, 0), (0, 0), (0, 0), (0, padded(size) - size))) for x in split)
        free = 1 - ops.sum(placed, axis=1)[:, None, :, None]
        keys, values = (
            old * free + ops.einsum("bnp,bnhd->bhpd", placed, x) for old, x in ((keys, key), (values, value))
        )
        scores = ops.einsum("bnhd,bhpd->bhnp", query, keys) * (self.scale or size**-0.5)
        back = own[:, :, None] - ops.arange(room)
        seen = ops.logical_and(back >= 0, back <= (self.window or room))[:, None]
        if bias is not None:
            scores = scores + ops.pad(bias, ((0, 0), (0, 0), (0, 0), (0, room - ops.shape(bias)[3])))
        found = ops.einsum("bhnp,bhpd->bnhd", ops.softmax(ops.where(seen, scores, AWAY), axis=-1), values)
        return ops.reshape(found[..., :size], (-1, new, width)), keys, values

    def compute_output_spec(
        self, query: Any, key: Any, value: Any, keys: Any, values: Any, ends: Any, bias: Any = None
    ) -> tuple[KerasTensor, ...]:
        caches = (KerasTensor(one.shape, self.compute_dtype) for one in (keys, values))
        return KerasTensor(query.shape, self.compute_dtype), *caches

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "heads": self.heads, "scale": self.scale, "window": self.window}


def padded(size: int) -> int:
    """Values of a head in a cache: those behind its own are 0, since ONNX Runtime's attention wants a multiple of 8."""
    return size + -size % 8


@lowers(StepAttention)
def _attention(
    graph: Graph, call: Any, query: Any, key: Any, value: Any, keys: Any, values: Any, ends: Any, bias: Any = None
) -> tuple[str, ...]:
    """One node, which computes for the places alone that a row has, and writes into the caches where they are bound as outputs."""
    width = query.shape[-1]
    size = width // call.heads
    more = padded(size) - size

    def wide(x: Any) -> Any:
        if not more:
            return x
        split = graph.add("Reshape", x, np.array([0, 0, call.heads, size], np.int64))
        split = graph.add("Pad", split, np.array([0] * 7 + [more], np.int64))
        return graph.add("Reshape", split, np.array([0, 0, call.heads * padded(size)], np.int64))

    lengths = graph.reshape(ends, [None])
    total = graph.add("Add", graph.add("ReduceMax", lengths, keepdims=0), np.array(1, np.int32))
    graph.domains[MICROSOFT] = 1
    found, *caches = graph.add_many(
        "GroupQueryAttention", 3, *(wide(x) for x in (query, key, value)), keys, values, lengths, total, None, None, None,
        bias, domain=MICROSOFT, num_heads=call.heads, kv_num_heads=call.heads, scale=call.scale or size**-0.5,
        local_window_size=call.window + 1 if call.window else -1,
    )  # fmt: skip
    if more:
        found = graph.add("Reshape", found, np.array([0, 0, call.heads, padded(size)], np.int64))
        found = graph.add("Slice", found, np.array([0]), np.array([size]), np.array([3]))
        found = graph.add("Reshape", found, np.array([0, 0, width], np.int64))
    return found, *caches


def split(model: Any) -> Steps:
    """A decoder that takes a step, and the encoder in front of it.

    Args:
        model: functional Keras model whose one output is logits (batch, places, vocabulary).

    Raises:
        ExportError: it has no text that could be written, or a layer looks ahead or cannot take a step; the message names it.
    """
    return _Walk(model).steps()


class _Walk:
    def __init__(self, model: Any) -> None:
        self.model = in_float32(model)
        self.nodes = nodes_of(self.model)
        inputs = {tensor.name: tensor for tensor in self.model.inputs}
        name = next((name for name in WRITTEN if name in inputs), "")
        shape = tuple(self.model.outputs[0].shape)
        if not name or len(self.model.outputs) != 1 or len(shape) != 3:
            raise self._error(
                f"it takes {', '.join(inputs)} and gives {[tuple(t.shape) for t in self.model.outputs]}; a model that writes "
                f"takes {' or '.join(WRITTEN)} and gives logits (batch, places, vocabulary)"
            )
        self.written = inputs[name]
        self.tokens = keras.Input((None,), dtype="int32", name="tokens")
        self.cached = keras.Input((1,), dtype="int32", name="cached")
        self.new: dict[int, Any] = {id(self.written): self.tokens}  # old tensor -> the step's
        self.states: dict[str, Any] = {}  # inputs by name
        self.caches: dict[str, Any] = {}
        self.past: dict[int, list[str]] = {}  # node of an attention -> names of its caches
        self.crossing: dict[int, tuple[str, Any, Any]] = {}  # old tensor -> name, old tensor, input
        self.results: dict[str, Any] = {}
        self.begin: dict[str, str] = {}  # state -> what crosses, which it begins with
        self.groups: dict[int, list[Any]] = {}  # node -> linear layers on the same tensor, itself included
        self.parts: dict[int, Any] = {}  # node of such a layer -> what it gives
        self.ends: Any = None
        self.last: dict[int, Any] = {}

    def _error(self, what: str) -> ExportError:
        return ExportError(f"cannot take {self.model.name!r} apart into steps: {what}")

    def steps(self) -> Steps:
        own = self._written_nodes()
        mixing = [node for node in own if self._mixes(node)]
        needed: set[int] = {id(t) for node in mixing for t in node.input_tensors}
        for node in reversed(own):
            if any(id(tensor) in needed for tensor in node.outputs):
                needed |= {id(tensor) for tensor in node.input_tensors}
        for node in mixing:
            if isinstance(node.operation, Attention):
                self._cache(node)
        mixers = {id(node) for node in mixing}
        tails = [id(node) not in mixers and not any(id(tensor) in needed for tensor in node.outputs) for node in own]
        self._group(own, tails)
        for node, tail in zip(own, tails, strict=True):
            args, kwargs = (
                keras.tree.map_structure(lambda leaf, tail=tail: self._replaced(leaf, tail), part)
                for part in (node.arguments.args, node.arguments.kwargs)
            )
            try:
                made = self._call(node, args, kwargs)
            except ExportError:
                raise
            except Exception as error:  # a shape that is fixed in a layer
                raise self._error(f"layer {node.operation.name!r} does not take new tokens alone: {error}") from error
            for tensor, new in zip(node.outputs, keras.tree.flatten(made), strict=True):
                self.new[id(tensor)] = new
                if tail:
                    self.last[id(tensor)] = new
        logits = self._last(self.model.outputs[0])[:, 0]
        return self._assembled(logits)

    def _written_nodes(self) -> list[Any]:
        """Nodes that depend on what is being written."""
        known, own = {id(self.written)}, []
        for node in self.nodes:
            if any(id(tensor) in known for tensor in node.input_tensors):
                own.append(node)
                known |= {id(tensor) for tensor in node.outputs}
        self.known = known
        if id(self.model.outputs[0]) not in known:
            raise self._error("its output does not depend on the text that is being written")
        return own

    def _depends(self, tensor: Any) -> bool:
        return isinstance(tensor, KerasTensor) and id(tensor) in self.known

    def _mixes(self, node: Any) -> bool:
        """Whether a node brings places together, or asks where they are."""
        operation = node.operation
        if isinstance(operation, Attention):
            return operation.causal and self._depends(self._given(node)["key"])
        return isinstance(operation, layers.RNN | RelativeBias) or _starts(operation)

    @staticmethod
    def _given(node: Any) -> dict[str, Any]:
        signature = inspect.signature(node.operation.call)
        return signature.bind_partial(*node.arguments.args, **node.arguments.kwargs).arguments

    def _replaced(self, leaf: Any, tail: bool) -> Any:
        """What stands in a step for a tensor of the model."""
        if not isinstance(leaf, KerasTensor):
            return leaf
        if not self._depends(leaf):
            return _Crossing(leaf)
        return self._last(leaf) if tail else self.new[id(leaf)]

    def _last(self, tensor: Any) -> Any:
        """Its last place alone, with an axis for it."""
        if id(tensor) not in self.last:
            self.last[id(tensor)] = self.new[id(tensor)][:, -1:]
        return self.last[id(tensor)]

    def _cross(self, given: Any) -> Any:
        """Arguments with inputs of the decoder in place of what the encoder gives."""

        def leaf(one: Any) -> Any:
            if not isinstance(one, _Crossing):
                return one
            old = one.tensor
            if id(old) not in self.crossing:
                name = self._unique(f"{old._keras_history.operation.name}")
                made = keras.Input(tuple(old.shape[1:]), name=name)  # files give numbers alone
                floats = "float" in keras.backend.standardize_dtype(old.dtype)
                self.crossing[id(old)] = (name, old, made)
                self.new[id(old)] = made if floats else ops.cast(made, old.dtype)
            return self.new[id(old)]

        return keras.tree.map_structure(leaf, given)

    def _unique(self, name: str) -> str:
        taken = {"tokens", "cached", "logits", *self.caches, *self.states, *(one[0] for one in self.crossing.values())}
        found, number = name, 0
        while found in taken:
            number += 1
            found = f"{name}_{number}"
        return found

    def _call(self, node: Any, args: Any, kwargs: Any) -> Any:
        operation = node.operation
        kwargs = {name: value for name, value in kwargs.items() if name != "training"}
        if isinstance(operation, Attention) and self._depends(self._given(node)["key"]):
            if not operation.causal:
                raise self._error(f"{operation.name!r} looks ahead in the text that is being written")
            given = inspect.signature(operation.call).bind_partial(*args, **kwargs).arguments
            return self._attention(node, self._cross(given))
        if isinstance(operation, RelativeBias):
            return StepBias(operation, name=f"{operation.name}_step")(self.tokens, self._ends())
        if isinstance(operation, layers.RNN):
            given = inspect.signature(operation.call).bind_partial(*args, **kwargs).arguments
            return self._recurrent(operation, given)
        if isinstance(
            operation,
            layers.Bidirectional | layers.MultiHeadAttention | layers.Attention | layers.GlobalAveragePooling1D,
        ):
            raise self._error(
                f"{operation.name!r} ({type(operation).__name__}) has no step; a model that writes has causal Attention of "
                "zoo.layers and recurrent layers"
            )
        args, kwargs = self._cross((args, kwargs))
        if id(node) in self.groups:
            return self._together(node, args[0])
        if _starts(operation):
            kwargs["start"] = self.cached
        return operation(*args, **kwargs)

    def _group(self, nodes: Sequence[Any], tails: Sequence[bool]) -> None:
        """Find linear layers that read one tensor, such as those of queries, keys and values: together they are one product.

        A step reads every weight for a few rows only, so what each product costs beside that counts.
        """
        groups: dict[tuple[int, bool, bool], list[Any]] = {}
        for node, tail in zip(nodes, tails, strict=True):
            layer = node.operation
            plain = type(layer) is layers.Dense and layer.activation is keras.activations.linear
            if plain and layer.quantization_mode is None:
                groups.setdefault((id(node.input_tensors[0]), tail, layer.use_bias), []).append(node)
        self.groups = {id(node): group for group in groups.values() if len(group) > 1 for node in group}

    def _together(self, node: Any, x: Any) -> Any:
        """What one layer of a group gives."""
        group = self.groups[id(node)]
        if id(node) not in self.parts:
            dense = [one.operation for one in group]
            one = layers.Dense(
                sum(layer.units for layer in dense), use_bias=dense[0].use_bias, name=f"{dense[0].name}_all"
            )
            made = one(x)
            weights = [np.concatenate([ops.convert_to_numpy(layer.kernel) for layer in dense], axis=1)]
            if one.use_bias:
                weights.append(np.concatenate([ops.convert_to_numpy(layer.bias) for layer in dense]))
            one.set_weights(weights)
            ends = np.cumsum([layer.units for layer in dense])[:-1].tolist()
            self.parts |= {id(each): part for each, part in zip(group, ops.split(made, ends, axis=-1), strict=True)}
        return self.parts[id(node)]

    def _cache(self, node: Any) -> None:
        """Inputs for the keys and values of a causal layer."""
        layer, width = node.operation, self._given(node)["query"].shape[-1]
        self.past[id(node)] = []
        for what in ("keys", "values"):
            name = self._unique(f"{layer.name}_{what}")
            self.caches[name] = keras.Input((layer.heads, None, padded(width // layer.heads)), name=name)
            self.past[id(node)].append(name)

    def _ends(self) -> Any:
        """Where the last new tokens stand."""
        if self.ends is None:
            self.ends = Ends(name="ends")(self.tokens, self.cached)
        return self.ends

    def _attention(self, node: Any, given: dict[str, Any]) -> Any:
        """A causal layer. Which of its keys exist needs no saying: there is no padding among new tokens."""
        layer = node.operation
        past = [self.caches[name] for name in self.past[id(node)]]
        step = StepAttention(layer.heads, layer.scale, layer.window, name=layer.name)
        parts = [given[name] for name in ("query", "key", "value")]
        found, *caches = step(*parts, *past, self._ends(), bias=given.get("bias"))
        self.results |= {f"{name}{NEW}": one for name, one in zip(self.past[id(node)], caches, strict=True)}
        return found

    def _recurrent(self, layer: Any, given: dict[str, Any]) -> Any:
        """A recurrent layer that begins with its state, and gives the one after."""
        if layer.go_backwards or not layer.return_sequences:
            raise self._error(f"{layer.name!r} does not give a value for each place from the first on")
        initial = given.get("initial_state")
        initial = [] if initial is None else keras.tree.flatten(initial)
        if any(isinstance(one, KerasTensor) for one in initial):
            raise self._error(f"{layer.name!r} begins with a state that depends on the text that is being written")
        sizes = keras.tree.flatten(layer.cell.state_size)
        begun, names = [], []
        for place, size in enumerate(sizes):
            name = self._unique(f"{layer.name}_state{place}")
            self.states[name] = keras.Input((size,), name=name)
            names.append(name)
            begun.append(self.states[name])
            self.begin[name] = ""
            if initial:
                self._cross(initial[place])
                self.begin[name] = self.crossing[id(initial[place].tensor)][0]
        step = type(layer).from_config({**layer.get_config(), "return_state": True})
        step.cell, step.built = layer.cell, True
        made, *states = step(self._cross(given["sequences"]), initial_state=begun)
        for name, state in zip(names, states, strict=True):
            self.results[f"{name}{NEW}"] = state
        if layer.return_state:
            return [made, *states]
        return made

    def _assembled(self, logits: Any) -> Steps:
        entering = [name for name, _, _ in self.crossing.values()]
        read = {id(t) for node in _nodes_behind([logits, *self.results.values()]) for t in node.input_tensors}
        kept = {
            name: made for name, _, made in self.crossing.values() if id(made) in read
        }  # others are first states alone
        inputs = {"tokens": self.tokens, "cached": self.cached, **self.caches, **self.states, **kept}
        used = {name: tensor for name, tensor in inputs.items() if id(tensor) in read}
        decoder = keras.Model(used, {"logits": logits, **self.results}, name=f"{self.model.name}_decoder")
        encoder, source = None, ""
        if self.crossing:
            given = [tensor for tensor in self.model.inputs if tensor is not self.written]
            outputs = {name: old for name, old, _ in self.crossing.values()}
            encoder = keras.Model(given, outputs, name=f"{self.model.name}_encoder")
            source = given[0].name
        block = {
            "caches": [{"name": name, "shape": [t.shape[1], -1, t.shape[3]]} for name, t in self.caches.items()],
            "states": [
                {"name": name, "shape": [t.shape[1]], "first": self.begin[name]} for name, t in self.states.items()
            ],
            "crossing": [name for name in entering if name in kept],
            "source": source,
            "length": self._length(),
        }
        return Steps(decoder, encoder, block)

    def _length(self) -> int:
        """Places that the model has learned; 0 for any number."""
        known = [
            node.operation
            for node in self.nodes
            if isinstance(node.operation, LearnedPositions) and self._depends(node.input_tensors[0])
        ]
        sizes = [layer.length for layer in known] + [size for size in self.written.shape[1:] if size]
        return min(sizes, default=0)


@dataclass(frozen=True)
class _Crossing:
    """A tensor of the encoder among a call's arguments."""

    tensor: Any


def _starts(operation: Any) -> bool:
    """Whether a layer asks where its first token stands."""
    return hasattr(operation, "call") and "start" in inspect.signature(operation.call).parameters


def _nodes_behind(tensors: Sequence[Any]) -> list[Any]:
    """Nodes that tensors are made by."""
    found: dict[int, Any] = {}
    waiting = list(tensors)
    while waiting:
        operation, index, _ = waiting.pop()._keras_history
        node = operation._inbound_nodes[index]
        if id(node) not in found:
            found[id(node)] = node
            waiting += node.input_tensors
    return list(found.values())


def write_steps(
    steps: Steps, folder: Path, names: tuple[str, str] = ("decoder.onnx", "encoder.onnx"), **options: Any
) -> None:
    """Write the decoder's file, and the encoder's where there is one, which nobody has run yet.

    Args:
        steps: of `split`.
        folder: where to.
        names: of the two files.
        options: `opset` and `external_above` of `export.convert.write`.

    Raises:
        ExportError: an operation has no ONNX form; the message names the layer.
    """
    options = {"opset": OPSET, "external_above": EXTERNAL_ABOVE, **options}
    for model, name in zip((steps.decoder, steps.encoder), names, strict=True):
        if model is not None:
            known = {id(tensor): name for name, tensor in model._outputs_struct.items()}
            outputs = [known[id(tensor)] for tensor in model.outputs]
            write(model, None, folder / name, names=outputs, **options)
