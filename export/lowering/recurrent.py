"""Recurrent layers as single ONNX nodes, exact under any mask; cells that ONNX does not know as loops over the cell.

ONNX can leave out steps at the end of a row only. So the valid steps of each row are moved to its beginning, the node
runs over as many, and its outputs are spread over the steps again as Keras does: a masked step repeats the output of
the last valid one before it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import activations, layers, ops
from keras.src.layers.rnn.conv_lstm import ConvLSTM

from export import ExportError
from export.lowering import lowers
from export.lowering.arguments import floats, in_floats, need, typed, value
from export.lowering.arrays import flipped
from export.lowering.graph import Graph, Value, array_of
from export.lowering.walk import lower_function

# Keras function -> (ONNX name, alpha, beta); Keras' hard sigmoid has a slope of 1/6.
_ACTIVATIONS: dict[Any, tuple[str, float | None, float | None]] = {
    activations.tanh: ("Tanh", None, None),
    activations.sigmoid: ("Sigmoid", None, None),
    activations.relu: ("Relu", None, None),
    activations.softsign: ("Softsign", None, None),
    activations.hard_sigmoid: ("HardSigmoid", 1 / 6, 0.5),
    activations.elu: ("Elu", 1.0, None),
    activations.linear: ("Affine", 1.0, 0.0),
}
_CELLS = {layers.SimpleRNNCell: ("RNN", 1), layers.GRUCell: ("GRU", 3), layers.LSTMCell: ("LSTM", 4)}


class Outcome(NamedTuple):
    """What one direction gives: outputs of all steps in the order of time (batch, steps, units), and last states."""

    steps: Value
    last: Value
    states: list[Value]


def _functions(layer: Any) -> list[Any]:
    """Activations in the order in which ONNX lists them."""
    cell = layer.cell
    match _CELLS[type(cell)][0]:
        case "LSTM":
            return [cell.recurrent_activation, cell.activation, cell.activation]
        case "GRU":
            return [cell.recurrent_activation, cell.activation]
    return [cell.activation]


def _is_known(layer: Any) -> bool:
    return type(getattr(layer, "cell", None)) in _CELLS and all(
        function in _ACTIVATIONS for function in _functions(layer)
    )


def _by_gate(kind: str, array: np.ndarray) -> np.ndarray:
    """Reorder the gates along the last axis, from input, forget, carry, output to input, output, forget, carry."""
    if kind != "LSTM":
        return array
    parts = np.split(array, 4, axis=-1)
    return np.concatenate([parts[0], parts[3], parts[1], parts[2]], axis=-1)


def _weights(graph: Graph, runs: Sequence[Any], kind: str, gates: int) -> list[str]:
    """Names of W, R and B, with an axis for the directions in front."""
    found: list[list[np.ndarray]] = [[], [], []]
    for layer in runs:
        cell = layer.cell
        found[0].append(_by_gate(kind, array_of(cell.kernel)).T)
        found[1].append(_by_gate(kind, array_of(cell.recurrent_kernel)).T)
        bias = np.zeros((2, gates * cell.units), np.float32)
        if cell.use_bias:
            given = array_of(cell.bias)
            bias[: given.ndim] = _by_gate(kind, given)  # two rows with `reset_after`, else one
        found[2].append(bias.reshape(-1))
    return [graph.weight(np.stack(arrays), label) for arrays, label in zip(found, "WRB", strict=True)]


def run(
    graph: Graph, runs: Sequence[Any], backwards: Sequence[bool], x: Value, states: Sequence[Any], mask: Value | None
) -> list[Outcome]:
    """Write one node for one layer, or for the two of a bidirectional one.

    Args:
        graph: where to write.
        runs: layers with cells of one kind and size.
        backwards: whether each goes from the last step to the first.
        x: (batch, steps, features).
        states: for each state of the cell the initial values of each direction (batch, units), or None.
        mask: (batch, steps), true where a step counts.
    """
    kind, gates = _CELLS[type(runs[0].cell)]
    units = runs[0].cell.units
    places = _Places(graph, x, mask) if mask is not None else None
    source = places.gathered(x) if places else x.name
    names = [_ACTIVATIONS[function] for layer in runs for function in _functions(layer)]
    start = [
        graph.add("Concat", *(graph.add("Unsqueeze", floats(graph, one), np.array([0])) for one in state), axis=0)
        for state in states
        if state is not None
    ]
    count = 2 if kind == "LSTM" else 1
    made = graph.add_many(
        kind, 1 + count,
        graph.add("Transpose", source, perm=[1, 0, 2]), *_weights(graph, runs, kind, gates),
        places.lengths if places else None, *start,
        hidden_size=units,
        direction="bidirectional" if len(runs) == 2 else "reverse" if backwards[0] else "forward",
        activations=[name for name, _, _ in names],
        activation_alpha=[alpha for _, alpha, _ in names if alpha is not None] or None,
        activation_beta=[beta for _, _, beta in names if beta is not None] or None,
        linear_before_reset=int(runs[0].cell.reset_after) if kind == "GRU" else None,
    )  # fmt: skip
    outcomes = []
    for direction, backward in enumerate(backwards):
        own = np.array(direction, np.int64)
        steps = graph.add("Gather", made[0], own, axis=1)  # (steps, batch, units)
        steps = graph.add("Transpose", steps, perm=[1, 0, 2])
        last = [graph.add("Gather", one, own, axis=0) for one in made[1:]]
        output = last[0]
        if places:
            zeros = runs[direction].zero_output_for_mask
            begin = graph.add("Gather", start[0], own, axis=0) if start and _starts_with_state(zeros) else None
            steps = places.spread(steps, backward, zeros, begin)
            output = places.kept(output, backward, zeros, begin)
            if start:
                last = [
                    graph.add("Where", places.any_valid, one, graph.add("Gather", begin, own, axis=0))
                    for one, begin in zip(last, start, strict=True)
                ]
            else:
                last = [graph.add("Where", places.any_valid, one, np.array(0, np.float32)) for one in last]
        shape = (*x.shape[:2], units)
        outcomes.append(
            Outcome(
                value(graph, steps, shape, x.dtype),
                value(graph, output, (x.shape[0], units), x.dtype),
                [value(graph, one, (x.shape[0], units), x.dtype) for one in last],
            )
        )
    return outcomes


class _Places:
    """Where the valid steps of each row are, and where they go.

    Attributes:
        lengths: int32 (batch,), how many are valid.
        any_valid: bool (batch, 1).
    """

    def __init__(self, graph: Graph, x: Value, mask: Value) -> None:
        self.graph = graph
        self.mask = typed(graph, mask, "bool").name
        whole = typed(graph, typed(graph, mask, "bool"), "int32").name
        self.lengths = graph.reduce("ReduceSum", whole, [1])
        self.any_valid = graph.add(
            "Greater", graph.add("Unsqueeze", self.lengths, np.array([1])), np.array(0, np.int32)
        )
        one = np.array(1, np.int64)
        number = graph.cast(whole, "int64")
        self.running = graph.add("CumSum", number, one)  # valid steps up to and including each
        self.before = graph.add("Sub", self.running, number)
        steps = graph.size(x.name, 1)
        self.wide = graph.add("Shape", number)
        line = graph.add("Range", np.array(0, np.int64), graph.reshape(steps, []), one)
        slot = graph.add("Where", self.mask, graph.add("Sub", self.running, one), steps)
        empty = graph.add("Expand", np.array(0, np.int64), graph.add("Add", self.wide, np.array([0, 1], np.int64)))
        order = graph.add("ScatterElements", empty, slot, graph.add("Expand", line, self.wide), axis=1)
        self.order = graph.add("Slice", order, np.array([0]), steps, np.array([1]))

    def _rows(self, x: Value | str, places: str) -> str:
        wide = self.graph.add("Unsqueeze", places, np.array([2]))
        return self.graph.add("GatherND", x, wide, batch_dims=1)

    def gathered(self, x: Value) -> str:
        """The valid steps of each row first."""
        return self._rows(x, self.order)

    def spread(self, steps: str, backward: bool, zeros: bool, begin: str | None) -> str:
        """Outputs of the valid steps at their places, masked steps repeating the last one reached, or 0.

        `begin` (batch, units) is repeated before the first valid step, 0 if None.
        """
        graph, one = self.graph, np.array(1, np.int64)
        if backward:
            total = graph.add("Unsqueeze", graph.cast(self.lengths, "int64"), np.array([1]))
            reached = graph.add("Less", self.before, total)
            slot = graph.add("Where", reached, self.before, np.array(0, np.int64))
        else:
            reached = graph.add("Greater", self.running, np.array(0, np.int64))
            slot = graph.add("Max", graph.add("Sub", self.running, one), np.array(0, np.int64))
        shown = graph.add("Unsqueeze", self.mask if zeros else reached, np.array([2]))
        other = graph.add("Unsqueeze", begin, np.array([1])) if begin else np.array(0, np.float32)
        return graph.add("Where", shown, self._rows(steps, slot), other)

    def kept(self, last: str, backward: bool, zeros: bool, begin: str | None) -> str:
        """The last output; `begin` or 0 for rows without a valid step, 0 if masked steps give 0 and the last is one."""
        graph = self.graph
        shown = self.any_valid
        if zeros:
            shown = graph.add("Gather", self.mask, np.array([0 if backward else -1]), axis=1)
        return graph.add("Where", shown, last, begin if begin else np.array(0, np.float32))


def _starts_with_state(zeros: bool) -> bool:
    """Whether masked steps repeat the first state, not the last output: that is what Keras does on JAX."""
    return not zeros and keras.config.backend() == "jax"


def _listed(states: Any) -> list[Any] | None:
    return None if states is None else list(states) if isinstance(states, list | tuple) else [states]


@lowers(layers.RNN, layers.SimpleRNN, layers.GRU, layers.LSTM, ConvLSTM)
@in_floats
def _recurrent(graph: Graph, layer: Any, sequences: Value, initial_state: Any = None, mask: Value | None = None) -> Any:
    if layer.stateful:
        raise ExportError(
            f"cannot export: layer {graph.scope!r} keeps its state between calls; build it with stateful=False and "
            "return_state=True, and pass the state in as an input"
        )
    states = _listed(initial_state)
    if not _is_known(layer):
        return lower_function(graph, lambda *given: _stepwise(layer, *given), sequences, states, mask)
    given = [[state] for state in states] if states else []
    outcome = run(graph, [layer], [layer.go_backwards], sequences, given, mask)[0]
    output = outcome.last
    if layer.return_sequences:
        output = outcome.steps
        if layer.go_backwards:
            output = value(graph, flipped(graph, output, [1]), output.shape, output.dtype)
    return (output, *outcome.states) if layer.return_state else output


def _stepwise(layer: Any, sequences: Any, initial_state: Any, mask: Any) -> Any:
    """A recurrent layer as a loop over its cell, in `keras.ops`."""
    states = initial_state if initial_state is not None else layer.get_initial_state(ops.shape(sequences)[0])
    rows = ops.transpose(sequences, [1, 0, *range(2, len(sequences.shape))])
    valid = None if mask is None else ops.transpose(ops.cast(mask, "bool"))
    one_state = not keras.tree.is_nested(states)
    states = [states] if one_state else list(states)
    blank = ops.zeros_like(layer.cell(rows[0], states)[0])

    def chosen(shown: Any, new: Any, old: Any) -> Any:
        return ops.where(ops.reshape(shown, (-1, *[1] * (len(new.shape) - 1))), new, old)

    def step(carried: Any, given: Any) -> Any:
        states, before = carried
        row, shown = given if mask is not None else (given, None)
        output, new = layer.cell(row, states)
        new = list(new) if keras.tree.is_nested(new) else [new]
        if shown is not None:
            new = keras.tree.map_structure(lambda a, b: chosen(shown, a, b), new, states)
            if _starts_with_state(layer.zero_output_for_mask):
                before = states[-1][0] if keras.tree.is_nested(states[0]) else states[0]
            output = chosen(shown, output, ops.zeros_like(output) if layer.zero_output_for_mask else before)
        return (new, output), output

    (states, last), steps = ops.scan(
        step, (states, blank), rows if valid is None else (rows, valid), reverse=layer.go_backwards
    )
    if layer.go_backwards:
        steps = ops.flip(steps, axis=0)  # in the order in which they were reached
    output = ops.transpose(steps, [1, 0, *range(2, len(steps.shape))]) if layer.return_sequences else last
    return (output, *states) if layer.return_state else output


@lowers(layers.Bidirectional)
@in_floats
def _bidirectional(
    graph: Graph, layer: Any, sequences: Value, initial_state: Any = None, mask: Value | None = None
) -> Any:
    forward, backward = layer.forward_layer, layer.backward_layer
    states = _listed(initial_state)
    need(not forward.go_backwards and backward.go_backwards, "a bidirectional layer whose forward layer goes backwards")
    half = len(states) // 2 if states else 0
    given = [[states[place], states[half + place]] for place in range(half)] if states else []
    alike = _is_known(forward) and _is_known(backward) and _alike(forward, backward)
    if alike:
        outcomes = run(graph, [forward, backward], [False, True], sequences, given, mask)
        outputs = [one.steps if forward.return_sequences else one.last for one in outcomes]
        last = [state for one in outcomes for state in one.states]
    else:
        outputs, last = [], []
        for place, one in enumerate((forward, backward)):
            own = [pair[place] for pair in given] if given else None
            found = _recurrent(graph, one, sequences, own, mask)
            found = found if isinstance(found, tuple) else (found,)
            output = found[0]
            if place and one.return_sequences:
                output = value(graph, flipped(graph, output, [1]), output.shape, output.dtype)
            outputs.append(output)
            last.extend(found[1:])
    mode = layer.merge_mode
    if mode is None:
        made: Any = tuple(outputs)
    elif mode == "concat":
        made = (graph.add("Concat", *outputs, axis=-1),)
    else:
        made = (graph.add({"mul": "Mul", "sum": "Add", "ave": "Mean"}[mode], *outputs),)
    if layer.return_state:
        return (*made, *last)
    return made if mode is None else made[0]


def _alike(forward: Any, backward: Any) -> bool:
    same = type(forward.cell) is type(backward.cell) and forward.cell.units == backward.cell.units
    reset = getattr(forward.cell, "reset_after", None) == getattr(backward.cell, "reset_after", None)
    return same and reset and forward.zero_output_for_mask == backward.zero_output_for_mask


@lowers(layers.TimeDistributed)
def _time_distributed(graph: Graph, layer: Any, inputs: Value, mask: Value | None = None) -> str:
    """The layer inside over all steps of all rows at once."""
    from export.lowering.walk import lower_call

    inner = layer.layer
    need(mask is None or not inner._call_has_mask_arg, "a mask over steps inside a layer over steps")
    sizes = graph.sizes(inputs)
    shape = (None, *inputs.shape[2:])
    flat = value(graph, graph.reshape(inputs, [None, *sizes[2:]]), shape, inputs.dtype)
    spec = keras.KerasTensor(inner.compute_output_shape(shape), inner.compute_dtype)
    with graph.within(f"{graph.scope}/{inner.name}"):
        made = lower_call(graph, inner, (flat,), {}, [spec])[0]
    rest = graph.sizes(made)[1:]
    return graph.reshape(made, [*sizes[:2], *rest])
