"""How each kind of layer passes channels on, makes them, and holds them in its weights: one rule per kind."""

import keras
import numpy as np
from keras import layers

from zoo.compress.identities import Flow, NotFollowedError, follows
from zoo.layers.activations import gelu_sigmoid, gelu_tanh

ELEMENTWISE = {
    "linear", "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "tanh", "sigmoid",
    "hard_sigmoid", "hard_silu", "hard_tanh", "softplus", "softsign", "exponential", "log_sigmoid", "squareplus",
}  # fmt: skip


def is_elementwise(activation):
    """Whether an activation treats each channel by itself; a softmax does not, and nothing is known of a user's own."""
    name = getattr(activation, "__name__", "")
    own = activation in (gelu_tanh, gelu_sigmoid)
    return own or (name in ELEMENTWISE and activation is getattr(keras.activations, name, None))


def _plain(layer):
    """Refuse a layer whose kernel is not all there is: quantized, or with low-rank additions."""
    if getattr(layer, "quantization_mode", None) is not None or getattr(layer, "lora_enabled", False):
        raise NotFollowedError(layer.name)


def _window(walk, x, last=None):
    """Axes after neighbouring places were mixed: only the channels are followed on."""
    walk.fix(*x.axes[1:-1])
    return (*(None,) * (len(walk.shapes[0]) - 1), x.axes[-1] if last is None else last)


def _closed(walk, layer, made):
    """Channels behind an activation that mixes them stay."""
    if not is_elementwise(getattr(layer, "activation", None)):
        walk.fix(made)


def _last_axis(layer, x):
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    if [axis % x.rank for axis in axes] != [x.rank - 1]:
        raise NotFollowedError(layer.name)


@follows(
    layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Identity, layers.Dropout, layers.AlphaDropout,
    layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D,
    layers.GaussianDropout, layers.GaussianNoise, layers.ActivityRegularization,
)  # fmt: skip
def same(walk, layer, x):
    return x.axes


@follows(
    layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D,
    layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D,
    layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D,
    layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D,
    layers.AdaptiveAveragePooling1D, layers.AdaptiveAveragePooling2D, layers.AdaptiveAveragePooling3D,
    layers.AdaptiveMaxPooling1D, layers.AdaptiveMaxPooling2D, layers.AdaptiveMaxPooling3D,
    layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D,
    layers.Cropping1D, layers.Cropping2D, layers.Cropping3D,
    layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D, layers.Resizing,
)  # fmt: skip
def window(walk, layer, x):
    return _window(walk, x)


@follows(layers.Activation)
def activation(walk, layer, x):
    if not is_elementwise(layer.activation):
        raise NotFollowedError(layer.name)
    return x.axes


@follows(layers.Softmax)
def softmax(walk, layer, x, mask=None):
    mixed = {axis % x.rank for axis in ([layer.axis] if isinstance(layer.axis, int) else layer.axis)}
    walk.fix(*(x.axes[axis] for axis in mixed))
    return tuple(None if axis in mixed else row for axis, row in enumerate(x.axes))


@follows(layers.Rescaling)
def rescaling(walk, layer, x):
    if np.ndim(layer.scale) or np.ndim(layer.offset):
        raise NotFollowedError(layer.name)
    return x.axes


@follows(layers.Dense)
def dense(walk, layer, x):
    _plain(layer)
    made = walk.make(layer, layer.units)
    walk.weigh(layer.kernel, x.axes[-1], made, makes=(1,), reads=(0,))
    walk.weigh(layer.bias, made)
    walk.resize(layer, units=made)
    _closed(walk, layer, made)
    return (*x.axes[:-1], made)


@follows(layers.EinsumDense)
def einsum_dense(walk, layer, x):
    _plain(layer)
    equation = layer.equation.replace(" ", "")
    if "..." in equation:
        before = equation.partition("...")[0]
        free = "0123456789"[: x.rank - len(equation.partition(",")[0].replace("...", ""))]
        equation = equation.replace("...", free) if before == "" else ""
    operands, _, outcome = equation.partition("->")
    letters, _, kernel = operands.partition(",")
    if not outcome or len(set(kernel)) < len(kernel) or len(set(letters)) < len(letters):
        raise NotFollowedError(layer.name)
    known = dict(zip(letters, x.axes, strict=True))
    made = {letter for letter in kernel if letter not in known}
    shape = dict(zip(kernel, layer.kernel.shape, strict=True))
    known |= {letter: walk.make(layer, shape[letter], letter) for letter in kernel if letter in made}
    for letter in known:
        if letter not in kernel and letter not in outcome:  # summed without a weight
            walk.fix(known[letter])
    walk.weigh(
        layer.kernel,
        *(known[letter] for letter in kernel),
        makes=tuple(place for place, letter in enumerate(kernel) if letter in made),
        reads=tuple(place for place, letter in enumerate(kernel) if letter not in made and letter not in outcome),
    )
    if layer.bias is not None:
        behind = outcome[len(outcome) - len(layer.bias.shape) :]
        walk.weigh(
            layer.bias,
            *(None if size == 1 else known[letter] for letter, size in zip(behind, layer.bias.shape, strict=True)),
        )
    axes = tuple(known[letter] for letter in outcome)
    sizes = tuple(layer.get_config()["output_shape"])
    rows = axes[len(axes) - len(sizes) :]
    walk.resize(layer, output_shape=lambda count: tuple(map(count, rows, sizes)))
    if not is_elementwise(layer.activation):
        walk.fix(*axes)
    return axes


@follows(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def convolution(walk, layer, x):
    _plain(layer)
    groups, filters, source = layer.groups, layer.filters, x.axes[-1]
    spatial = (None,) * len(layer.kernel_size)
    if groups == 1:
        read, made = source, walk.make(layer, filters)
        walk.resize(layer, filters=made)
    elif groups >= max(filters, x.shape[-1]) // groups:  # many small groups: one is removed whole
        whole = walk.make(layer, groups, channels=filters // groups)
        walk.unite(source, np.repeat(whole, x.shape[-1] // groups))
        read, made = None, np.repeat(whole, filters // groups)
        walk.resize(layer, filters=made, groups=whole)
    else:  # few large groups: the same places of each
        place = walk.make(layer, filters // groups, channels=groups)
        made, read = np.tile(place, groups), None
        if source is not None:
            parts = source.reshape(groups, -1)
            read = parts[0]
            for part in parts[1:]:
                walk.unite(read, part)
        walk.resize(layer, filters=made)
    walk.weigh(layer.kernel, *spatial, read, made, makes=(len(spatial) + 1,), reads=(len(spatial),))
    walk.weigh(layer.bias, made)
    _closed(walk, layer, made)
    return _window(walk, x, made)


@follows(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def transposed_convolution(walk, layer, x):
    _plain(layer)
    made = walk.make(layer, layer.filters)
    spatial = (None,) * len(layer.kernel_size)
    walk.weigh(layer.kernel, *spatial, made, x.axes[-1], makes=(len(spatial),), reads=(len(spatial) + 1,))
    walk.weigh(layer.bias, made)
    walk.resize(layer, filters=made)
    _closed(walk, layer, made)
    return _window(walk, x, made)


@follows(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def depthwise_convolution(walk, layer, x):
    _plain(layer)
    source = x.axes[-1]
    if source is None:
        return _window(walk, x)
    made = np.repeat(source, layer.depth_multiplier)
    spatial = (None,) * len(layer.kernel_size)
    walk.weigh(layer.kernel, *spatial, source, None, makes=(len(spatial),), reads=(len(spatial),))
    walk.weigh(layer.bias, made)
    _closed(walk, layer, made)
    return _window(walk, x, made)


@follows(layers.SeparableConv1D, layers.SeparableConv2D)
def separable_convolution(walk, layer, x):
    _plain(layer)
    source, made = x.axes[-1], walk.make(layer, layer.filters)
    spatial = (None,) * len(layer.kernel_size)
    between = None if source is None else np.repeat(source, layer.depth_multiplier)
    walk.weigh(layer.depthwise_kernel, *spatial, source, None)
    walk.weigh(layer.pointwise_kernel, *spatial, between, made, makes=(len(spatial) + 1,), reads=(len(spatial),))
    walk.weigh(layer.bias, made)
    walk.resize(layer, filters=made)
    _closed(walk, layer, made)
    return _window(walk, x, made)


@follows(layers.BatchNormalization)
def batch_normalization(walk, layer, x):
    _last_axis(layer, x)
    walk.weigh(layer.gamma, x.axes[-1], scale=True)
    for vector in (layer.beta, layer.moving_mean, layer.moving_variance):
        walk.weigh(vector, x.axes[-1])
    return x.axes


@follows(layers.LayerNormalization)
def layer_normalization(walk, layer, x):
    _last_axis(layer, x)  # mean and variance are then those of the channels that are left
    walk.weigh(layer.gamma, x.axes[-1])
    walk.weigh(layer.beta, x.axes[-1])
    return x.axes


@follows(layers.RMSNormalization)
def rms_normalization(walk, layer, x):
    _last_axis(layer, x)
    walk.weigh(layer.scale, x.axes[-1])
    return x.axes


@follows(layers.UnitNormalization)
def unit_normalization(walk, layer, x):
    _last_axis(layer, x)
    return x.axes


@follows(layers.GroupNormalization)
def group_normalization(walk, layer, x):
    _last_axis(layer, x)
    channels = x.axes[-1]
    if channels is None:
        return x.axes
    if 1 < layer.groups < len(channels):  # a group is removed whole, so that the others' statistics stay
        parts = channels.reshape(layer.groups, -1)
        for place in range(1, parts.shape[1]):
            walk.unite(parts[:, 0], parts[:, place])
        walk.resize(layer, groups=parts[:, 0])
    elif layer.groups == len(channels):
        walk.resize(layer, groups=channels)
    walk.weigh(layer.gamma, channels)
    walk.weigh(layer.beta, channels)
    return x.axes


@follows(layers.PReLU)
def prelu(walk, layer, x):
    last = x.axes[-1] if layer.alpha.shape[-1] == x.shape[-1] and layer.alpha.shape[-1] > 1 else None
    for axis, size in enumerate(layer.alpha.shape[:-1], 1):
        if size > 1:
            walk.fix(x.axes[axis])
    walk.weigh(layer.alpha, *(None,) * (x.rank - 2), last)
    return x.axes


@follows(layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum)
def merge(walk, layer, inputs):
    if len({x.rank for x in inputs}) > 1:  # such layers align from the batch on
        raise NotFollowedError(layer.name)
    return broadcast(walk, inputs)


def broadcast(walk, operands):
    """Axes of what is computed place by place: equal places become one, a single place may be repeated."""
    shapes = [x.shape if isinstance(x, Flow) else tuple(np.shape(x)) for x in operands]
    rank = max(map(len, shapes))
    axes = []
    for back in range(rank, 0, -1):
        rows = []
        for x, shape in zip(operands, shapes, strict=True):
            if back > len(shape):
                continue
            row = x.axes[-back] if isinstance(x, Flow) else None
            if shape[-back] == 1:
                walk.fix(row)
            else:
                rows.append(row)
        together = rows[0] if rows else None
        for row in rows[1:]:
            together = walk.unite(together, row) if together is not None or row is not None else None
        axes.append(together)
    return tuple(axes)


@follows(layers.Concatenate)
def concatenate(walk, layer, inputs):
    return joined(walk, inputs, layer.axis)


def joined(walk, inputs, axis):
    """Axes of tensors side by side along an axis."""
    axis %= inputs[0].rank
    axes = [row if place != axis else None for place, row in enumerate(inputs[0].axes)]
    for x in inputs[1:]:
        for place, row in enumerate(x.axes):
            if place != axis and (axes[place] is not None or row is not None):
                axes[place] = walk.unite(axes[place], row)
    rows = [x.axes[axis] for x in inputs]
    if any(row is not None for row in rows) and all(x.shape[axis] is not None for x in inputs):
        parts = [walk.new(x.shape[axis]) if row is None else row for x, row in zip(inputs, rows, strict=True)]
        walk.fix(*(part for part, row in zip(parts, rows, strict=True) if row is None))
        axes[axis] = np.concatenate(parts)
    else:
        walk.fix(*rows)
    return tuple(axes)


@follows(layers.Flatten)
def flatten(walk, layer, x):
    return reshaped(walk, x, walk.shapes[0])


@follows(layers.Reshape)
def reshape(walk, layer, x):
    axes = reshaped(walk, x, walk.shapes[0])
    given = layer.get_config()["target_shape"]
    walk.resize(layer, target_shape=lambda count: new_shape(count, given, axes[1:]))
    return axes


def new_shape(count, given, axes):
    """A target shape after removal; -1 stays."""
    return tuple(size if size == -1 else count(row, size) for size, row in zip(given, axes, strict=True))


def reshaped(walk, x, shape):
    """Axes after a reshape: axes are paired from the last one on, merged or split where their products agree."""
    axes = [None] * len(shape)
    source, target = x.rank, len(shape)
    while source or target:
        first, last = source, target
        one, other = 1, 1
        unknown = False
        while True:
            if first and last and x.shape[first - 1] is None and shape[last - 1] is None and (one, other) == (1, 1):
                first, last = first - 1, last - 1
                break
            if first and (one < other or last == 0 or (one == other == 1)):
                first -= 1
                unknown = unknown or x.shape[first] is None
                one *= x.shape[first] or 1
            elif last:
                last -= 1
                unknown = unknown or shape[last] is None
                other *= shape[last] or 1
            if unknown:
                first = last = 0
                break
            if (one == other and (first < source and last < target)) or not (first or last):
                break
        _segment(walk, x, shape, axes, range(first, source), range(last, target))
        source, target = first, last
    return tuple(axes)


def _segment(walk, x, shape, axes, sources, targets):
    """Carry identities over from some axes to those that hold the same places."""
    sources = [axis for axis in sources if x.shape[axis] != 1]
    targets = [axis for axis in targets if shape[axis] != 1]
    rows = {axis: x.axes[axis] for axis in sources if x.axes[axis] is not None}
    known = all(x.shape[axis] is not None for axis in sources) and all(shape[axis] is not None for axis in targets)
    if not rows:
        return
    if len(sources) == len(targets) == 1:
        axes[targets[0]] = rows[sources[0]]
    elif known and len(targets) == 1 and len(rows) == 1:
        ((axis, row),) = rows.items()
        places = [len(row) if each == axis else 1 for each in sources]
        axes[targets[0]] = np.broadcast_to(row.reshape(places), [x.shape[each] for each in sources]).ravel()
    elif known and len(sources) == 1 and len(targets) > 1:
        row = rows[sources[0]]
        found = np.vectorize(walk.find)(row)
        tiled = found.reshape(-1, shape[targets[-1]])
        if (tiled == tiled[0]).all():  # flattened before: the channels are the last axis again
            axes[targets[-1]] = row[: shape[targets[-1]]]
            return
        blocks = row.reshape(shape[targets[0]], -1)  # such as heads: a block is removed whole
        for place in range(1, blocks.shape[1]):
            walk.unite(blocks[:, 0], blocks[:, place])
        axes[targets[0]] = blocks[:, 0]
    else:
        walk.fix(*rows.values())


@follows(layers.Permute)
def permute(walk, layer, x):
    return (x.axes[0], *(x.axes[axis] for axis in layer.dims))


@follows(layers.RepeatVector)
def repeat_vector(walk, layer, x):
    return (x.axes[0], None, x.axes[1])


@follows(layers.Embedding)
def embedding(walk, layer, x):
    _plain(layer)
    made = walk.make(layer, layer.output_dim)
    walk.weigh(layer.embeddings, None, made, makes=(1,))
    walk.resize(layer, output_dim=made)
    return (*x.axes, made)


@follows(layers.ReversibleEmbedding)
def reversible_embedding(walk, layer, x, reverse=False):
    if not layer.tie_weights:
        raise NotFollowedError(layer.name)
    if not reverse:
        return embedding(walk, layer, x)
    walk.fix(*x.axes[:-1])
    made = walk.make(layer, layer.output_dim)
    walk.unite(made, x.axes[-1])
    return (*x.axes[:-1], None)


@follows(layers.Attention, layers.AdditiveAttention)
def attention(walk, layer, inputs, **options):
    query, value, key = (*inputs, inputs[1])[:3]
    for x in inputs:
        walk.fix(*x.axes[:-1])
    row = query.axes[-1]
    if row is not None or key.axes[-1] is not None:
        row = walk.unite(row, key.axes[-1])
    if isinstance(layer, layers.AdditiveAttention) and layer.use_scale:
        walk.weigh(layer.scale, row)
    made = (*(None,) * (query.rank - 1), value.axes[-1])
    return [made, *((None,) * len(shape) for shape in walk.shapes[1:])]


@follows(layers.MultiHeadAttention)
def multi_head_attention(walk, layer, query, value, key=None, **options):
    key = value if key is None else key
    if len(layer._output_dense.kernel.shape) != 3:
        raise NotFollowedError(layer.name)
    heads = walk.make(layer, layer.num_heads, "heads", channels=layer.key_dim)
    size, width = walk.shapes[0][-1], query.axes[-1]
    made = walk.make(layer, size)

    def output_shape(count):
        left = count(made)
        given = layer.get_config()["output_shape"]
        return None if given is None and left == count(width, size) else (left,)

    walk.resize(layer, num_heads=heads, output_shape=output_shape)
    return _heads(walk, layer, query, key, value, heads, heads, made)


@follows(layers.GroupQueryAttention)
def grouped_query_attention(walk, layer, query, value, key=None, **options):
    key = value if key is None else key
    shared = walk.make(layer, layer.num_key_value_heads, "heads", channels=layer.head_dim)
    heads = np.repeat(shared, layer.num_query_heads // layer.num_key_value_heads)
    made = walk.new(walk.shapes[0][-1]) if query.axes[-1] is None else query.axes[-1]
    if query.axes[-1] is None:  # its output is always as wide as its query
        walk.fix(made)
    walk.resize(layer, num_query_heads=heads, num_key_value_heads=shared)
    return _heads(walk, layer, query, key, value, heads, shared, made)


def _heads(walk, layer, query, key, value, heads, shared, made):
    """Weights of attention whose heads are removed whole; every query sees every key, so places stay."""
    for x in (query, key, value):
        walk.fix(*x.axes[:-1])
    gate = getattr(layer, "_gate_dense", None)
    for part, x, row in (
        (layer._query_dense, query, heads),
        (layer._key_dense, key, shared),
        (layer._value_dense, value, shared),
        *(((gate, query, heads),) if gate is not None else ()),
    ):
        _plain(part)
        walk.weigh(part.kernel, x.axes[-1], row, None, makes=(1,), reads=(0,))
        walk.weigh(part.bias, row, None)
    walk.weigh(layer._output_dense.kernel, heads, None, made, makes=(2,), reads=(0,))
    walk.weigh(layer._output_dense.bias, made)
    axes = (*(None,) * (query.rank - 1), made)
    scores = [(None, heads, *(None,) * (len(shape) - 2)) for shape in walk.shapes[1:]]
    return [axes, *scores]


@follows(layers.SimpleRNN, layers.LSTM, layers.GRU)
def recurrent(walk, layer, x, initial_state=None):
    return _recurrent(walk, layer, x, initial_state, "units", layer.units)


@follows(layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D)
def convolution_lstm(walk, layer, x, initial_state=None):
    return _recurrent(walk, layer, x, initial_state, "filters", layer.filters)


def _recurrent(walk, layer, x, initial_state, setting, units):
    """A unit is removed from all gates, from the state and from the output."""
    cell = layer.cell
    made = walk.make(layer, units, layer.name)
    gates = np.tile(made, cell.kernel.shape[-1] // units)
    free = (None,) * (len(cell.kernel.shape) - 2)
    walk.fix(*x.axes[:-1])
    walk.weigh(cell.kernel, *free, x.axes[-1], gates, makes=(len(free) + 1,), reads=(len(free),))
    walk.weigh(cell.recurrent_kernel, *free, made, gates, makes=(len(free) + 1,))
    if cell.bias is not None:
        walk.weigh(cell.bias, *(None,) * (len(cell.bias.shape) - 1), gates)
    walk.resize(layer, **{setting: made})
    if not is_elementwise(layer.activation) or not is_elementwise(
        getattr(layer, "recurrent_activation", layer.activation)
    ):
        walk.fix(made)
    for state in keras.tree.flatten(initial_state):
        if isinstance(state, Flow):
            walk.fix(*state.axes[:-1])
            walk.unite(state.axes[-1], made)
        elif state is not None:
            walk.fix(made)
    return [(*(None,) * (len(shape) - 1), made) for shape in walk.shapes]


@follows(layers.Bidirectional)
def bidirectional(walk, layer, x, initial_state=None):
    if initial_state is not None or len(walk.shapes) > 1 or layer.merge_mode is None:
        raise NotFollowedError(layer.name)
    both = []
    halves = (layer.forward_layer, layer.backward_layer)
    if any(type(each) not in (layers.LSTM, layers.GRU, layers.SimpleRNN) for each in halves):
        raise NotFollowedError(layer.name)
    for each in halves:
        shape = (*walk.shapes[0][:-1], each.units)
        both.append(walk.apply(each, [shape], x)[0])
    walk.resize(
        layer,
        layer=lambda count: walk.smaller(layer.forward_layer),
        backward_layer=lambda count: walk.smaller(layer.backward_layer),
    )
    together = walk.unite(both[0][-1], both[1][-1])  # both directions keep the same number of units
    if layer.merge_mode == "concat":
        return (*both[0][:-1], np.concatenate([axes[-1] for axes in both]))
    return (*both[0][:-1], together)


@follows(layers.TimeDistributed)
def time_distributed(walk, layer, x):
    one = Flow((x.shape[0], *x.shape[2:]), (x.axes[0], *x.axes[2:]))
    (axes,) = walk.apply(layer.layer, [(shape[0], *shape[2:]) for shape in walk.shapes], one)
    walk.resize(layer, layer=lambda count: walk.smaller(layer.layer))
    return (axes[0], x.axes[1], *axes[1:])


@follows(layers.Dot)
def dot(walk, layer, inputs):
    one, other = inputs
    first, second = (layer.axes, layer.axes) if isinstance(layer.axes, int) else layer.axes
    first, second = first % one.rank, second % other.rank
    if one.axes[first] is not None or other.axes[second] is not None:
        walk.unite(one.axes[first], other.axes[second])
    rest = [row for axis, row in enumerate(one.axes) if axis not in (0, first)]
    rest += [row for axis, row in enumerate(other.axes) if axis not in (0, second)]
    return (None, *rest) if rest else (None, None)
