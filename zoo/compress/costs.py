"""What each layer of a model costs: parameters and multiply-accumulates (MACs) of one forward pass.

Only convolutions, products with a kernel and products of two tensors are counted, as torchvision, timm and the papers
do: normalisation, activations, softmax, pooling, additions and look-ups count as zero. One MAC is two floating point
operations, though many tables call it one FLOP.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import keras
from keras import layers
from keras.src.models.functional import functional_like_constructor
from keras.src.ops import nn
from keras.src.ops import numpy as array_ops

from zoo.layers.attention import Attention
from zoo.layers.capsules import ClassCapsules
from zoo.layers.positions import LearnedPositions, RelativeBias, Rotary, WavePositions
from zoo.layers.regions import Proposals, PyramidAlign, RankBoxes

# Operations of `keras.ops` that multiply; without a rule below their cost is not known.
_PRODUCTS = {
    "Matmul", "Dot", "Einsum", "Tensordot", "Inner", "Outer", "Kron", "Vdot", "Vecdot", "DotProductAttention",
    "Conv", "ConvTranspose", "DepthwiseConv", "SeparableConv", "Correlate", "Solve", "Inv", "Cholesky", "Eig", "Eigh",
    "SVD", "QR", "LuFactor", "Lstsq", "SolveTriangular", "FFT", "FFT2", "RFFT", "STFT", "While", "Scan", "Map",
}  # fmt: skip


class Cost(NamedTuple):
    """One call of one layer.

    Attributes:
        layer: name; a layer inside a nested model is `outer/inner`.
        kind: class of the layer.
        output_shape: without the batch axis, None where unknown.
        params: scalars in all weights, trained or not; 0 from a shared layer's second call on.
        macs: multiply-accumulates for one example, None where this module cannot count the layer.
    """

    layer: str
    kind: str
    output_shape: tuple[int | None, ...]
    params: int
    macs: int | None


class _UnknownCostError(ValueError):
    """There is no rule for a layer, or a size is not known before the model runs."""


@dataclass(frozen=True)
class _Size:
    """Shape and element type of a tensor argument."""

    shape: tuple[int | None, ...]
    dtype: str


def cost(model: keras.Model) -> list[Cost]:
    """What each call of each layer costs for one example, in graph order.

    Args:
        model: functional or sequential model; the arithmetic of a layer is known where all its sizes are.

    Returns:
        One row per call.

    Raises:
        TypeError: the model is not functional, so its layers have no known order or shapes.
    """
    return list(_rows(graph(model), "", set(), _shape, _shape))


def macs(model: keras.Model) -> int:
    """Multiply-accumulates of one forward pass over one example.

    Args:
        model: functional or sequential model, with every size known.

    Raises:
        TypeError: the model is not functional.
        ValueError: a layer's cost is not known to this module.
    """
    return multiplications(graph(model), _shape, _shape)


def multiplications(model, of_tensor, of_weight):
    """Multiply-accumulates of a plain functional model whose tensors and weights have other shapes than they have.

    Args:
        model: what `graph` returned.
        of_tensor: Keras tensor -> shape with the batch axis.
        of_weight: variable -> shape.

    Raises:
        ValueError: a layer's cost is not known to this module.
    """
    rows = list(_rows(model, "", set(), of_tensor, of_weight))
    unknown = [f"{row.layer!r} ({row.kind})" for row in rows if row.macs is None]
    if unknown:
        raise ValueError(
            f"cannot count the multiply-accumulates of {', '.join(unknown)}, whose kind or size is not known; "
            "sum the other rows of cost(model)"
        )
    return sum(row.macs for row in rows)


def graph(model: keras.Model) -> keras.Model:
    """The plain functional model, not compiled, over the same layers.

    Raises:
        TypeError: the model is not functional.
    """
    if isinstance(model, keras.Sequential) and model.built:
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    if not hasattr(model, "_nodes_by_depth"):
        what = "Sequential that was never built" if isinstance(model, keras.Sequential) else type(model).__name__
        raise TypeError(
            f"model must be functional or a built Sequential, got a {what}; "
            "call its layers on a keras.Input and make keras.Model(inputs, outputs)"
        )
    return keras.Model(model.input, model.output, name=model.name)


def in_kind(model: keras.Model, plain: keras.Model) -> keras.Model:
    """A plain functional model as one of the class of `model`, which may have a way of its own to learn."""
    kind = type(model)
    if kind in (type(plain), keras.Sequential) or not functional_like_constructor(kind):
        return plain
    return kind(plain.input, plain.output, name=plain.name)


def nodes(model):
    """Each call of what `graph` returned, without its inputs, in the order they run."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)


def _shape(value):
    return tuple(value.shape)


def _rows(model, prefix, seen, of_tensor, of_weight):
    if not prefix:
        for tensor in model.inputs:
            yield Cost(tensor._keras_history.operation.name, "InputLayer", of_tensor(tensor)[1:], 0, 0)
    for node in nodes(model):
        layer, name = node.operation, prefix + node.operation.name
        if _is_graph(layer):
            yield from _rows(_opened(layer, node.input_tensors), f"{name}/", seen, of_tensor, of_weight)
            continue
        weights = () if id(layer) in seen else getattr(layer, "weights", ())
        seen.add(id(layer))
        params = sum(math.prod(of_weight(weight)) for weight in weights)
        args, kwargs = _map(
            lambda x: _Size(of_tensor(x), x.dtype), keras.KerasTensor, (node.arguments.args, node.arguments.kwargs)
        )
        shapes = [of_tensor(x) for x in node.outputs]
        yield Cost(name, type(layer).__name__, shapes[0][1:], params, _count(layer, of_weight, shapes, *args, **kwargs))


def _map(function, kind, structure):
    """`structure` with the values of a kind replaced."""
    if isinstance(structure, kind):
        return function(structure)
    if isinstance(structure, list | tuple):
        return type(structure)([_map(function, kind, each) for each in structure])
    if isinstance(structure, dict):
        return {key: _map(function, kind, each) for key, each in structure.items()}
    return structure


def _is_graph(layer):
    return isinstance(layer, keras.Sequential) or hasattr(layer, "_nodes_by_depth")


def _opened(model, inputs):
    """A nested model as a plain one, over the sizes with which it is called."""
    plain = graph(model)
    if [x.shape for x in plain.inputs] == [x.shape for x in inputs]:
        return plain
    entries = [keras.Input(batch_shape=x.shape, dtype=x.dtype) for x in inputs]
    return keras.models.clone_model(
        plain, input_tensors=keras.tree.pack_sequence_as(plain.input, entries), clone_function=lambda layer: layer
    )


# Rules: each takes the layer, a function variable -> shape, the shapes of its outputs and the arguments of its call.

_COUNTS = {}


def _counts(*kinds):
    def mark(rule):
        _COUNTS.update(dict.fromkeys(kinds, rule))
        return rule

    return mark


def _count(layer, of_weight, shapes, *args, **kwargs):
    """Multiply-accumulates of one call, None if unknown."""
    kind = next((kind for kind in type(layer).__mro__ if kind in _COUNTS), None)
    own = kind is not None and getattr(type(layer), "call", None) is not getattr(kind, "call", None)
    try:
        if kind is not None and not own:
            return _COUNTS[kind](layer, of_weight, shapes, *args, **kwargs)
        if not type(layer).__module__.startswith("keras."):
            return _inside(layer, of_weight, args, kwargs)
        matrices = any(len(weight.shape) > 1 for weight in getattr(layer, "weights", ()))
        return None if matrices or type(layer).__name__ in _PRODUCTS else 0
    except _UnknownCostError:
        return None


def _inside(layer, of_weight, args, kwargs):
    """The sum over the operations that a custom layer consists of."""
    inputs = []

    def entry(size):
        inputs.append(keras.Input(batch_shape=size.shape, dtype=size.dtype))
        return inputs[-1]

    given, named = _map(entry, _Size, (args, kwargs))
    try:
        function = keras.Function(inputs, layer.call(*given, **named))
    except Exception as error:  # custom code may fail on symbols in any way
        raise _UnknownCostError(str(error)) from error
    rows = list(_rows(function, "inside/", set(), _shape, of_weight))
    if any(row.macs is None for row in rows):
        raise _UnknownCostError(type(layer).__name__)
    return sum(row.macs for row in rows)


def _number(sizes):
    """Product of sizes."""
    if any(size is None for size in sizes):
        raise _UnknownCostError("a size is not known before the model runs")
    return math.prod(sizes)


def _whole(value):
    """Shape of one example of an argument, the batch counting as one; constants have no batch."""
    if isinstance(value, _Size):
        return tuple(1 if axis == 0 and size is None else size for axis, size in enumerate(value.shape))
    return tuple(getattr(value, "shape", ()))


def _spatial(layer, shape):
    return shape[1:-1] if layer.data_format == "channels_last" else shape[2:]


@_counts(layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def _convolution(layer, of_weight, shapes, x):
    return _number(of_weight(layer.kernel)) * _number(_spatial(layer, shapes[0]))


@_counts(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def _transposed(layer, of_weight, shapes, x):
    return _number(of_weight(layer.kernel)) * _number(_spatial(layer, x.shape))


@_counts(layers.SeparableConv1D, layers.SeparableConv2D)
def _separable(layer, of_weight, shapes, x):
    kernels = _number(of_weight(layer.depthwise_kernel)) + _number(of_weight(layer.pointwise_kernel))
    return kernels * _number(_spatial(layer, shapes[0]))


@_counts(layers.Dense)
def _dense(layer, of_weight, shapes, x):
    return _number(of_weight(layer.kernel)) * _number(shapes[0][1:-1])


@_counts(layers.PReLU)
def _slopes(layer, of_weight, shapes, x):
    return 0  # as any activation; its slopes may have the shape of a matrix and are none


@_counts(layers.EinsumDense)
def _einsum_dense(layer, of_weight, shapes, x):
    return _einsum(layer.equation, [_whole(x), of_weight(layer.kernel)])


def _einsum(equation, shapes):
    """One multiplication for each combination of all indices; `...` may stand for leading axes."""
    sizes = {}
    for letters, shape in zip(equation.replace(" ", "").partition("->")[0].split(","), shapes, strict=True):
        before, dots, after = letters.partition("...")
        free = len(shape) - len(before) - len(after) if dots else 0
        names = [*before, *(f"...{free - place}" for place in range(free)), *after]
        for name, size in zip(names, shape, strict=True):
            sizes[name] = size if sizes.get(name, 1) == 1 else sizes[name]
    return _number(sizes.values())


@_counts(layers.LSTM, layers.GRU, layers.SimpleRNN)
def _recurrent(layer, of_weight, shapes, x, **_):
    return _number(x.shape[1:2]) * _cell(layer.cell, of_weight)


@_counts(layers.RNN)
def _cells(layer, of_weight, shapes, x, **_):
    cells = layer.cell.cells if isinstance(layer.cell, layers.StackedRNNCells) else [layer.cell]
    return _number(x.shape[1:2]) * sum(_cell(cell, of_weight) for cell in cells)


def _cell(cell, of_weight):
    if type(cell) not in (layers.LSTMCell, layers.GRUCell, layers.SimpleRNNCell):
        raise _UnknownCostError(type(cell).__name__)
    return _number(of_weight(cell.kernel)) + _number(of_weight(cell.recurrent_kernel))


@_counts(layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D)
def _convolution_lstm(layer, of_weight, shapes, x, **_):
    places = _number(_spatial(layer, shapes[0][1:] if layer.return_sequences else shapes[0]))
    kernels = _number(of_weight(layer.cell.kernel)) + _number(of_weight(layer.cell.recurrent_kernel))
    return _number(x.shape[1:2]) * kernels * places


@_counts(layers.Bidirectional)
def _bidirectional(layer, of_weight, shapes, x, **kwargs):
    both = [_count(each, of_weight, shapes, x) for each in (layer.forward_layer, layer.backward_layer)]
    if None in both:
        raise _UnknownCostError(layer.name)
    return sum(both)


@_counts(layers.TimeDistributed)
def _time_distributed(layer, of_weight, shapes, x, **_):
    inner = layer.layer
    one = _Size((x.shape[0], *x.shape[2:]), x.dtype)
    if _is_graph(inner):
        plain = _opened(inner, [keras.KerasTensor(one.shape, one.dtype)])
        found = [row.macs for row in _rows(plain, "inside/", set(), _shape, of_weight)]
        found = None if None in found else sum(found)
    else:
        found = _count(inner, of_weight, [(shape[0], *shape[2:]) for shape in shapes], one)
    if found is None:
        raise _UnknownCostError(inner.name)
    return _number(x.shape[1:2]) * found


@_counts(layers.SpectralNormalization)
def _wrapped(layer, of_weight, shapes, x, **_):
    found = _count(layer.layer, of_weight, shapes, x)
    if found is None:
        raise _UnknownCostError(layer.layer.name)
    return found


@_counts(layers.MultiHeadAttention)
def _multi_head_attention(layer, of_weight, shapes, query, value, key=None, **_):
    places, read = _number(query.shape[1:-1]), _number((key or value).shape[1:-1])
    kernels = {
        name: _number(of_weight(getattr(layer, f"_{name}_dense").kernel))
        for name in ("query", "key", "value", "output", *(("gate",) if layer._use_gate else ()))
    }
    projections = places * (kernels["query"] + kernels["output"] + kernels.get("gate", 0))
    projections += read * (kernels["key"] + kernels["value"])
    seen = _number([(key or value).shape[axis] for axis in layer._attention_axes])  # by each query
    heads = of_weight(layer._query_dense.kernel)[1]
    return projections + places * seen * heads * (layer._key_dim + layer._value_dim)


@_counts(layers.GroupQueryAttention)
def _grouped_query_attention(layer, of_weight, shapes, query, value, key=None, **_):
    places, read = query.shape[1], (key or value).shape[1]
    kernels = {
        name: _number(of_weight(getattr(layer, f"_{name}_dense").kernel))
        for name in ("query", "key", "value", "output", *(("gate",) if layer.use_gate else ()))
    }
    _number([places, read])
    projections = places * (kernels["query"] + kernels["output"] + kernels.get("gate", 0))
    heads = of_weight(layer._query_dense.kernel)[1]
    return projections + read * (kernels["key"] + kernels["value"]) + places * read * heads * 2 * layer.head_dim


@_counts(layers.Attention, layers.AdditiveAttention)
def _attention(layer, of_weight, shapes, inputs, **_):
    query, value = inputs[:2]
    return _number([*query.shape[1:-1], value.shape[1], query.shape[-1] + value.shape[-1]])


@_counts(layers.Dot)
def _dot(layer, of_weight, shapes, inputs):
    axes = layer.axes if isinstance(layer.axes, int) else layer.axes[0]
    return _number(shapes[0][1:]) * _number([inputs[0].shape[axes]])


@_counts(array_ops.Matmul, array_ops.Dot)
def _matmul(operation, of_weight, shapes, x1, x2):
    return _number(_whole(_Size(shapes[0], ""))) * _number(_whole(x1)[-1:])


@_counts(array_ops.Einsum)
def _einsum_operation(operation, of_weight, shapes, *operands, **_):
    return _einsum(operation.subscripts, [_whole(x) for x in operands])


@_counts(array_ops.Tensordot)
def _tensordot(operation, of_weight, shapes, x1, x2):
    axes = operation.axes
    shape = _whole(x1)
    if isinstance(axes, int):
        summed = shape[len(shape) - axes :]
    else:
        summed = [shape[axis] for axis in ([axes[0]] if isinstance(axes[0], int) else axes[0])]
    return _number(_whole(_Size(shapes[0], ""))) * _number(summed)


@_counts(nn.DotProductAttention)
def _dot_product_attention(operation, of_weight, shapes, query, key, value, **_):
    places, heads, size = query.shape[1:]
    return _number([places, key.shape[1], heads]) * (_number([size]) + _number([value.shape[-1]]))


@_counts(nn.Conv)
def _convolution_operation(operation, of_weight, shapes, x, kernel):
    places = shapes[0][1:-1] if operation.data_format == "channels_last" else shapes[0][2:]
    return _number(_whole(kernel)) * _number(places)


@_counts(layers.Embedding)
def _look_up(layer, of_weight, shapes, x):
    return 0


@_counts(Attention)
def _heads(layer, of_weight, shapes, query, key, value, *_, **__):
    return _number([query.shape[1], key.shape[1], query.shape[2] + value.shape[2]])


@_counts(LearnedPositions, WavePositions, Rotary, RelativeBias)
def _places(layer, of_weight, shapes, *args, **_):
    return 0  # they look up and add


@_counts(layers.ReversibleEmbedding)
def _look_up_or_score(layer, of_weight, shapes, x, reverse=False):
    return _number([*shapes[0][1:], x.shape[-1]]) if reverse else 0


@_counts(ClassCapsules)
def _class_capsules(layer, of_weight, shapes, x):
    votes = _number(of_weight(layer.kernel))
    return votes + (2 * layer.iterations - 1) * votes // _number(x.shape[2:])


@_counts(PyramidAlign)
def _cut_out(layer, of_weight, shapes, maps, boxes):
    return 4 * layer.samples**2 * _number(shapes[0][1:])  # each sample is a mean of four pixels


@_counts(Proposals, RankBoxes)
def _boxes(layer, of_weight, shapes, *args):
    return 0  # they compare and choose
