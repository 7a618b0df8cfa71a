"""Pruning through each kind of structure: removing what is dead changes no output, and the result is ordinary Keras."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import export
from zoo.compress import channel_groups, cost, macs, prune_channels

IMAGE, ROWS, TOKENS = (8, 8, 3), (6, 5), (6,)


def network(shape, build, dtype="float32"):
    x = keras.Input(shape, dtype=dtype, name="rows")
    return keras.Model(x, layers.Dense(2, name="logits")(build(x)))


def pooled(x):
    return layers.GlobalAveragePooling2D()(x)


def last(x):
    return layers.GlobalAveragePooling1D()(x)


def grouped(groups, width=8):
    def build(x):
        x = layers.Conv2D(width, 3, name="before")(x)
        x = layers.Conv2D(width, 3, groups=groups, activation="relu", name="grouped")(x)
        return pooled(layers.Conv2D(4, 1, name="after")(x))

    return build


def multiplied(x):
    x = layers.Conv2D(6, 3, name="before")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    return pooled(layers.Conv2D(4, 1, name="after")(x))


def separable(x):
    return pooled(
        layers.SeparableConv2D(4, 3, depth_multiplier=2, name="second")(layers.SeparableConv2D(6, 3, name="first")(x))
    )


def transposed(x):
    return pooled(layers.Conv2DTranspose(4, 2, strides=2, name="second")(layers.Conv2DTranspose(6, 3, name="first")(x)))


def group_norm(x):
    x = layers.Conv2D(8, 3, name="before")(x)
    return pooled(layers.Activation("relu")(layers.GroupNormalization(4, name="norm")(x)))


def transformer(x):
    x = layers.Embedding(20, 8, mask_zero=True, name="tokens")(x)
    attended = layers.MultiHeadAttention(4, 3, name="attention")(x, x)
    x = layers.LayerNormalization()(layers.Add()([x, attended]))
    x = layers.Add()([x, layers.Dense(8, name="down")(layers.Dense(12, "gelu", name="up")(x))])
    return layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))


def shared_queries(x):
    attended = layers.GroupQueryAttention(3, 8, 4, name="attention")(x, x)
    return last(layers.Add()([x, attended]))


def heads_by_hand(x):
    def split(name):
        y = layers.Dense(12, name=name)(x)
        return ops.transpose(ops.reshape(y, (-1, 6, 4, 3)), (0, 2, 1, 3))  # batch, heads, places, size

    weights = ops.softmax(ops.matmul(split("query"), ops.swapaxes(split("key"), -1, -2)) * 0.5, axis=-1)
    joined = ops.reshape(ops.transpose(ops.matmul(weights, split("value")), (0, 2, 1, 3)), (-1, 6, 12))
    return last(layers.Dense(5, name="out")(joined))


def stacked(kind, **options):
    def build(x):
        x = kind(8, return_sequences=True, name="first", **options)(x)
        return kind(6, name="second", **options)(x)

    return build


def both_ways(merge):
    def build(x):
        first = layers.Bidirectional(layers.LSTM(6, return_sequences=True), merge_mode=merge, name="first")(x)
        return layers.GRU(4, name="second")(first)

    return build


def encoder_state(x):
    _, *states = layers.LSTM(6, return_state=True, name="first")(x)
    return layers.LSTM(6, name="second")(x, initial_state=states)


def convolution_lstm(x):
    x = layers.Reshape((2, 4, 8, 3))(x)
    return pooled(layers.ConvLSTM2D(6, 3, padding="same", name="first")(x))


def per_step(x):
    x = layers.TimeDistributed(layers.Dense(8, "relu"), name="first")(x)
    return last(layers.TimeDistributed(layers.Dense(4), name="second")(x))


def operations(x):
    x = layers.Conv2D(8, 3, name="before")(x)
    x = ops.relu(x) * 2.0 + ops.sigmoid(x) * ops.tanh(x)
    x = ops.concatenate([x, ops.maximum(x, 0.1 * x)], axis=-1)
    return ops.mean(layers.Conv2D(4, 1, name="after")(x), axis=(1, 2))


def gate(x):
    left, right = ops.split(layers.Dense(12, name="before")(x), 2, axis=-1)
    return last(left * ops.sigmoid(right))


def mixer(x):
    x = layers.Dense(8, name="width")(x)
    tokens = layers.Dense(6, name="token_down")(layers.Dense(10, "gelu", name="token_up")(layers.Permute((2, 1))(x)))
    return last(layers.Add()([x, layers.Permute((2, 1))(tokens)]))


def nested(x):
    entry = keras.Input((6, 6, 8))
    inner = layers.Conv2D(6, 1, name="inside")(layers.ReLU()(entry))
    inner = keras.Model(entry, inner, name="inner")
    return pooled(inner(layers.Conv2D(8, 3, name="before")(x)))


def einsum(x):
    x = layers.EinsumDense("abc,cde->abde", output_shape=(6, 4, 3), bias_axes="de", name="heads")(x)
    return last(layers.EinsumDense("...de,deo->...o", output_shape=(5,), bias_axes="o", name="out")(x))


def unet(x):
    down = layers.Conv2D(6, 3, padding="same", activation="relu", name="down")(x)
    deep = layers.Conv2D(8, 3, strides=2, padding="same", name="deep")(down)
    up = layers.Conv2DTranspose(6, 2, strides=2, name="up")(deep)
    return pooled(layers.Conv2D(5, 1, name="after")(layers.Concatenate()([down, up])))


# shape, network, and for each layer whose units die: which ones, and how many channels of its kernel are left
CASES = {
    "grouped_few": (IMAGE, grouped(2), {"before": ([0, 2, 4, 6], 4), "grouped": ([0, 1, 4, 5], 4)}),
    "grouped_many": (IMAGE, grouped(4), {"before": ([0, 1, 4, 5], 4), "grouped": ([0, 1, 4, 5], 4)}),
    "grouped_depthwise": (IMAGE, grouped(8), {"before": ([0, 1, 3, 5], 4), "grouped": ([0, 1, 3, 5], 4)}),
    "depth_multiplier": (IMAGE, multiplied, {"before": ([1, 2, 5], 3), "depthwise": ([2, 3, 4, 5, 10, 11], 3)}),
    "separable": (IMAGE, separable, {"first": ([0, 1, 2], 3), "second": ([0, 3], 2)}),
    "transposed": (IMAGE, transposed, {"first": ([0, 1, 2], 3), "second": ([0, 3], 2)}),
    "group_norm": (IMAGE, group_norm, {"before": ([0, 1, 6, 7], 4), "norm": ([0, 1, 6, 7], 4)}),
    "transformer": (TOKENS, transformer, {"attention": ([1, 3], 2), "up": ([0, 2, 4, 6, 8, 10], 6)}),
    "shared_queries": (ROWS, shared_queries, {"attention": ([2, 3, 4, 5], 4)}),
    "heads_by_hand": (ROWS, heads_by_hand, {n: ([0, 1, 2, 6, 7, 8], 6) for n in ("query", "key", "value")}),
    "lstm": (ROWS, stacked(layers.LSTM), {"first": ([0, 3, 4, 7], 4), "second": ([1, 2, 3], 3)}),
    "gru": (ROWS, stacked(layers.GRU), {"first": ([0, 3, 4, 7], 4), "second": ([1, 2, 3], 3)}),
    "gru_reset_before": (ROWS, stacked(layers.GRU, reset_after=False), {"first": ([0, 3, 4, 7], 4), "second": ([1, 2, 3], 3)}),
    "simple_rnn": (ROWS, stacked(layers.SimpleRNN), {"first": ([0, 3, 4, 7], 4), "second": ([1, 2, 3], 3)}),
    "bidirectional": (ROWS, both_ways("concat"), {"first": ([0, 3, 4], 3), "second": ([1, 2], 2)}),
    "bidirectional_sum": (ROWS, both_ways("sum"), {"first": ([0, 3, 4], 3), "second": ([1, 2], 2)}),
    "encoder_state": (ROWS, encoder_state, {"first": ([0, 3, 4], 3), "second": ([0, 3, 4], 3)}),
    "convolution_lstm": (IMAGE, convolution_lstm, {"first": ([0, 3, 4], 3)}),
    "per_step": (ROWS, per_step, {"first": ([0, 3, 4, 5], 4), "second": ([1, 2], 2)}),
    "operations": (IMAGE, operations, {"before": ([0, 3, 4, 5], 4), "after": ([1, 2], 2)}),
    "gate": (ROWS, gate, {"before": ([0, 2, 5, 6, 8, 11], 6)}),
    "mixer": (ROWS, mixer, {"token_up": ([0, 2, 5, 6, 8], 5)}),
    "nested": (IMAGE, nested, {"before": ([0, 2, 5, 6], 4), "inner/inside": ([1, 2, 4], 3)}),
    "einsum": (ROWS, einsum, {"heads": ([1], 2), "out": ([0, 4], 3)}),
    "unet": (IMAGE, unet, {"down": ([0, 2, 5], 3), "deep": ([0, 2, 5, 6], 4), "up": ([0, 1, 3], 3), "after": ([2, 3], 3)}),
}  # fmt: skip
KEEP = {  # only what the case is about is pruned
    "transformer": ("logits", "tokens", "down"),
    "mixer": ("logits", "width"),
    "einsum": ("logits",),
    "heads_by_hand": ("logits", "out"),
    "grouped_few": ("logits", "after"),
    "grouped_many": ("logits", "after"),
    "grouped_depthwise": ("logits", "after"),
    "depth_multiplier": ("logits", "after"),
}


def made(case):
    shape, build, dying = CASES[case]
    keras.utils.set_random_seed(0)
    model = network(shape, build, "int32" if shape == TOKENS else "float32")
    generator = np.random.default_rng(1)
    for weight in model.weights:
        if "seed" not in weight.path:
            value = generator.uniform(0.3, 0.9, weight.shape) * generator.choice([-1, 1], weight.shape)
            weight.assign(np.abs(value) if "variance" in weight.path else value)
    for name, (dead, _) in dying.items():
        for part in parts(find(model, name)):
            kill(part, dead)
    return model


def find(model, name):
    outer, _, inside = name.partition("/")
    layer = model.get_layer(outer)
    return find(layer, inside) if inside else layer


def parts(layer):
    if isinstance(layer, layers.Bidirectional):
        return [layer.forward_layer, layer.backward_layer]
    return [layer.layer] if isinstance(layer, layers.TimeDistributed) else [layer]


def kill(layer, dead):
    """Make units give zero, in the way of each kind."""

    def zero(variable, place):
        value = np.array(variable)
        value[place] = 0
        variable.assign(value)

    if isinstance(layer, layers.MultiHeadAttention | layers.GroupQueryAttention):
        shared = np.unique(np.array(dead) // 2) if isinstance(layer, layers.GroupQueryAttention) else dead
        for part, heads in (("query", dead), ("key", shared), ("value", shared)):
            zero(getattr(layer, f"_{part}_dense").kernel, (slice(None), heads))
        zero(layer._output_dense.kernel, dead)
    elif hasattr(layer, "cell"):
        units = layer.cell.recurrent_kernel.shape[-2]
        columns = [gate * units + unit for gate in range(layer.cell.kernel.shape[-1] // units) for unit in dead]
        for weight in (layer.cell.kernel, layer.cell.recurrent_kernel, layer.cell.bias):
            zero(weight, (..., columns))
    elif isinstance(layer, layers.Conv2DTranspose):
        zero(layer.kernel, (..., dead, slice(None)))
        zero(layer.bias, dead)
    elif isinstance(layer, layers.DepthwiseConv2D):
        zero(layer.kernel, (..., sorted({channel // 2 for channel in dead}), slice(None)))
        zero(layer.bias, dead)
    elif isinstance(layer, layers.EinsumDense) and layer.kernel.ndim == 3 and layer.name == "heads":
        zero(layer.kernel, (..., dead))
        zero(layer.kernel, (slice(None), [0, 2]))
        zero(layer.bias, (..., dead))
        zero(layer.bias, [0, 2])
    else:
        for name in ("pointwise_kernel", "kernel", "bias", "gamma", "beta"):
            if getattr(layer, name, None) is not None:
                zero(getattr(layer, name), (..., dead))


def left(layer):
    """Channels that a layer makes."""
    kernel = parts(layer)[0]
    if isinstance(kernel, layers.MultiHeadAttention | layers.GroupQueryAttention):
        return kernel._query_dense.kernel.shape[1]
    if hasattr(kernel, "cell"):
        return kernel.cell.recurrent_kernel.shape[-2]
    if isinstance(kernel, layers.Conv2DTranspose | layers.DepthwiseConv2D):
        return kernel.kernel.shape[-2]
    names = ("pointwise_kernel", "kernel", "gamma")
    return next(getattr(kernel, name) for name in names if hasattr(kernel, name)).shape[-1]


def rows(model, count=4):
    generator = np.random.default_rng(2)
    shape = (count, *model.inputs[0].shape[1:])
    if model.inputs[0].dtype == "int32":
        drawn = generator.integers(1, 20, shape).astype("int32")
        drawn[1, 4:] = 0  # padding
        return drawn
    return generator.normal(size=shape).astype("float32")


@pytest.mark.parametrize("case", CASES)
def test_removing_what_is_dead_changes_no_output(case):
    model = made(case)
    small = prune_channels(model, 0.5, keep=KEEP.get(case, ("logits",)))
    assert {name: left(find(small, name)) for name in CASES[case][2]} == {
        name: count for name, (_, count) in CASES[case][2].items()
    }
    x = rows(model)
    expected = ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(ops.convert_to_numpy(small(x)), expected, atol=1e-5 * max(1, np.abs(expected).max()))
    assert all(kind.__module__.startswith("keras.") for kind in {type(layer) for layer in small.layers})
    assert sum(row.macs for row in cost(small)) < macs(model)


@pytest.mark.parametrize(
    "case", ["grouped_many", "transformer", "bidirectional", "operations", "unet", "shared_queries"]
)
def test_the_result_trains_saves_and_exports(case, tmp_path):
    model = made(case)
    small = prune_channels(model, 0.5)
    small.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    x = rows(model)
    small.fit(x, np.array([0, 1, 1, 0]), epochs=1, verbose=0)
    small.save(tmp_path / "small.keras")
    expected = ops.convert_to_numpy(small(x))
    np.testing.assert_allclose(
        ops.convert_to_numpy(keras.models.load_model(tmp_path / "small.keras")(x)), expected, atol=1e-5
    )
    if keras.backend.backend() == "tensorflow":
        import onnxruntime

        session = onnxruntime.InferenceSession(export.to_onnx(small, tmp_path / "small.onnx"))
        (found,) = session.run(None, {session.get_inputs()[0].name: x})
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_heads_are_whole_and_queries_go_with_their_keys():
    groups = channel_groups(made("shared_queries"))
    assert (("attention",), 4) in groups
    assert channel_groups(made("heads_by_hand"), ("logits", "out")) == [(("key", "query", "value"), 4)]


@pytest.mark.parametrize("round_to", [1, 3, 6])
def test_round_to_counts_the_channels_of_heads(round_to):
    small = prune_channels(made("transformer"), 0.5, keep=KEEP["transformer"], round_to=round_to)
    assert small.get_layer("attention")._query_dense.kernel.shape[1] == 2  # heads of three


def test_unknown_layers_are_named_when_nothing_is_left():
    class Reverse(layers.Layer):
        def call(self, x):
            return x[..., ::-1]

    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(2, name="logits")(Reverse(name="turn")(layers.Dense(6)(x))))
    with pytest.raises(ValueError, match=r"no channels to remove.*unknown 'turn' \(Reverse\)"):
        prune_channels(model, 0.5)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(
    "case", ["unet", "transformer", "lstm", "nested", "separable", "shared_queries", "grouped_many"]
)
def test_the_target_is_reached_and_counted_exactly(case, scope):
    model = made(case)
    whole = macs(model)
    found = macs(prune_channels(model, macs=0.6, scope=scope))
    assert 0.3 * whole < found <= 0.6 * whole
    assert macs(prune_channels(model, macs=found)) <= found


def test_a_target_as_number_or_share_is_the_same():
    model = made("unet")
    half = round(0.5 * macs(model))
    assert macs(prune_channels(model, macs=half)) == macs(prune_channels(model, macs=0.5))


def test_milliseconds_are_what_the_user_measures():
    model = made("unet")
    small = prune_channels(model, milliseconds=0.3, measure=lambda m: macs(m) / macs(model))
    assert 0.15 < macs(small) / macs(model) <= 0.3
    with pytest.raises(ValueError, match=r"cannot reach 0.001 ms: the closest was .* ms with 100%"):
        prune_channels(model, milliseconds=0.001, measure=lambda m: macs(m) / macs(model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": 0.5, "macs": 0.5}, "give one of ratio, macs and milliseconds"),
        ({"macs": 0}, "macs must be above 0, got macs=0"),
        ({"macs": 0.001}, "cannot reach .* left with all groups at their smallest"),
        ({"milliseconds": 3.0}, "milliseconds needs measure"),
        ({"importance": "taylor"}, "'taylor' needs rows"),
        ({"importance": "taylor", "data": (np.zeros((4, 8, 8, 1)), np.zeros(4, int))}, r"shape \(4, 8, 8, 1\), model"),
        ({"importance": "taylor", "data": (np.zeros((0, 8, 8, 3)), np.zeros(0, int))}, "at least one, got 0 and 0"),
        ({"importance": "taylor", "data": (np.zeros((4, 8, 8, 3)), np.zeros(3, int))}, "got 4 and 3"),
        ({"importance": "taylor", "data": (np.zeros((4, 8, 8, 3)), np.zeros((4, 9)))}, "do not fit the output"),
        ({"importance": lambda kernel: np.ones(1)}, "importance must give 6 finite scores"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        prune_channels(made("unet"), **arguments)


def test_weights_that_are_no_numbers_are_refused():
    model = made("unet")
    model.get_layer("deep").bias.assign(np.full(8, np.nan))
    with pytest.raises(ValueError, match="deep/bias' has values that are not finite"):
        prune_channels(model, 0.5)


def test_a_model_that_was_never_built_is_refused():
    with pytest.raises(TypeError, match="a Sequential that was never built"):
        prune_channels(keras.Sequential([layers.Dense(3)]), 0.5)


def test_an_own_importance_decides():
    model = made("unet")
    small = prune_channels(model, 0.5, importance=lambda kernel: -np.arange(kernel.shape[-1]))
    kept = np.array(model.get_layer("deep").bias)[:4]
    np.testing.assert_array_equal(np.array(small.get_layer("deep").bias), kept)


def test_taylor_is_the_change_of_the_loss():
    x = keras.Input((3,))
    hidden = layers.Dense(4, name="hidden")
    model = keras.Model(x, layers.Dense(1, name="logits")(hidden(x)))
    hidden.set_weights([np.eye(3, 4, dtype="float32") * 5, np.array([0, 0, 0, 1], "float32")])
    model.get_layer("logits").set_weights([np.array([[1.0], [0.1], [3.0], [0.01]]), np.zeros(1)])
    rows = np.eye(3, dtype="float32")
    targets = np.array([[4.0], [0.0], [15.5]], "float32")  # the third unit is large, but the loss hardly asks for it
    # outputs 5.01, 0.51, 15.01; d loss / d output is 2/3 of the gap, times 5 w of the unit that the row is for
    by_hand = [2 / 3 * 1.01 * 5, 2 / 3 * 0.51 * 0.5, 2 / 3 * 0.49 * 15]
    assert by_hand[2] > by_hand[0] > by_hand[1]
    small = prune_channels(model, 0.5, importance="taylor", data=(rows, targets))
    np.testing.assert_allclose(np.array(small.get_layer("hidden").kernel), np.eye(3, 4)[:, [0, 2]] * 5)
