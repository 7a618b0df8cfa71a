"""Channel pruning: what is removed, and that what is left computes the same where nothing was lost."""

import keras
import numpy as np
import pytest
from keras import layers

import zoo
from zoo.compress import channel_groups, macs, prune_channels


def vgg_like():
    image = keras.Input((8, 8, 3), name="image")
    x = image
    for index, filters in enumerate((6, 8)):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=index == 1, name=f"conv{index}")(x)
        x = layers.BatchNormalization(name=f"norm{index}")(x)
        x = layers.Activation("relu", name=f"relu{index}")(x)
        x = layers.MaxPooling2D(2, name=f"pool{index}")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dropout(0.5, name="dropout")(layers.Dense(10, "gelu", name="hidden")(x))
    return keras.Model(image, layers.Softmax()(layers.Dense(4, name="logits")(x)))


def dense_net():
    image = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv0")(image)
    x = layers.Concatenate(name="join0")([image, x, layers.Conv2D(6, 3, padding="same", name="conv1")(x)])
    x = layers.BatchNormalization(name="norm")(x)
    y = layers.Conv2D(13, 1, name="conv2")(x)
    x = layers.GlobalMaxPooling2D(name="features")(layers.Add(name="add")([layers.Conv2D(13, 1, name="conv3")(x), y]))
    return keras.Model(image, layers.Dense(3, name="logits")(x))


def mobile_net():
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, use_bias=False, name="conv0")(image)
    x = layers.BatchNormalization(name="norm0")(x)
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", name="depthwise")(x)
    x = layers.PReLU(shared_axes=[1, 2], name="prelu")(layers.BatchNormalization(name="norm1")(x))
    gate = layers.GlobalAveragePooling2D(name="squeeze")(x)
    gate = layers.Dense(4, "relu", name="reduce")(gate)
    gate = layers.Reshape((1, 1, 8), name="reshape")(layers.Dense(8, "sigmoid", name="expand")(gate))
    x = layers.Conv2D(6, 1, name="conv1")(layers.Multiply(name="excite")([x, gate]))
    x = layers.GlobalAveragePooling2D(name="features")(layers.ZeroPadding2D(1, name="pad")(x))
    return keras.Model(image, layers.Dense(3, name="logits")(x))


def siamese():
    left, right = keras.Input((5,), name="left"), keras.Input((5,), name="right")
    first, second = layers.Dense(6, "relu", name="first"), layers.Dense(8, "tanh", name="second")
    pair = layers.Subtract(name="gap")([second(first(left)), second(first(right))])
    return keras.Model({"left": left, "right": right}, layers.Dense(2, name="logits")(pair))


def sequential():
    return keras.Sequential(
        [keras.Input((6, 2)), layers.Conv1D(4, 3, activation="relu", name="conv"), layers.Flatten(), layers.Dense(3)]
    )


def resnet(**arguments):
    return zoo.get("resnet50", input_shape=(8, 8, 3), classes=3, width=4, **arguments)


# model, and by hand: which layers share a set of channels (makers first, then what carries weights for them)
NETWORKS = {
    "lenet": (
        lambda: zoo.get("lenet", input_shape=(16, 16, 1), width=(4, 6, 10, 8), classes=3),
        [["stage0_conv"], ["stage1_conv"], ["hidden0"], ["features"]],
    ),
    "mlp": (lambda: zoo.get("mlp", input_shape=(3, 2), width=(8, 6), classes=3), [["hidden0"], ["hidden1", "features"]]),
    "vgg_like": (vgg_like, [["conv0", "norm0"], ["conv1", "norm1"], ["hidden"]]),
    "resnet_basic": (
        lambda: resnet(depth=(2, 1), bottleneck=False),
        [
            ["stem_conv", "stem_conv_norm", "stage0_block0_conv1", "stage0_block0_conv1_norm", "stage0_block1_conv1",
             "stage0_block1_conv1_norm"],
            ["stage0_block0_conv0", "stage0_block0_conv0_norm"],
            ["stage0_block1_conv0", "stage0_block1_conv0_norm"],
            ["stage1_block0_conv0", "stage1_block0_conv0_norm"],
            ["stage1_block0_conv1", "stage1_block0_conv1_norm", "stage1_block0_shortcut", "stage1_block0_shortcut_norm"],
        ],
    ),
    "resnet_bottleneck": (
        lambda: resnet(depth=(1, 1), stem="imagenet"),
        [
            ["stem_conv", "stem_conv_norm"],
            *[
                group
                for block in ("stage0_block0", "stage1_block0")
                for group in (
                    [f"{block}_conv0", f"{block}_conv0_norm"],
                    [f"{block}_conv1", f"{block}_conv1_norm"],
                    [f"{block}_conv2", f"{block}_conv2_norm", f"{block}_shortcut", f"{block}_shortcut_norm"],
                )
            ],
        ],
    ),
    "resnet_v2": (
        lambda: zoo.get("resnet50v2", input_shape=(8, 8, 3), classes=3, depth=(2,), width=4),
        [
            ["stem_conv", "stage0_block0_input_norm"],
            ["stage0_block0_conv0", "stage0_block0_conv0_norm"],
            ["stage0_block0_conv1", "stage0_block0_conv1_norm"],
            ["stage0_block0_shortcut", "stage0_block0_conv2", "stage0_block1_conv2", "stage0_block1_input_norm",
             "final_norm"],
            ["stage0_block1_conv0", "stage0_block1_conv0_norm"],
            ["stage0_block1_conv1", "stage0_block1_conv1_norm"],
        ],
    ),
    "mobile_net": (mobile_net, [["conv0", "norm0", "depthwise", "norm1", "expand"], ["reduce"], ["conv1"]]),
    "siamese": (siamese, [["first"], ["second"]]),
    "sequential": (sequential, [["conv"]]),
}  # fmt: skip

MAKERS = (layers.Dense, layers.Conv1D, layers.Conv2D)


def scramble(model):
    """Give every weight a random value, so that no default hides a mistake; variances stay positive."""
    generator = np.random.default_rng(1)
    for layer in model.layers:
        drawn = [generator.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()]
        signed = [
            value * generator.choice([-1, 1], value.shape) if "variance" not in weight.name else value
            for value, weight in zip(drawn, layer.weights, strict=True)
        ]
        layer.set_weights(signed)
    return model


def kill(layer, dead):
    """Make a layer's channels emit zero: filter, bias, scale and offset, not the moving statistics."""
    for weight in layer.weights:
        if "moving" not in weight.name:
            value = np.array(weight)
            value[(..., dead, 0) if isinstance(layer, layers.DepthwiseConv2D) and value.ndim > 1 else (..., dead)] = 0
            weight.assign(value)


def rows(model, count=3):
    generator = np.random.default_rng(2)
    drawn = {x.name: generator.normal(size=(count, *x.shape[1:])).astype("float32") for x in model.inputs}
    return drawn if len(drawn) > 1 else next(iter(drawn.values()))


def width(layer):
    return layer.units if isinstance(layer, layers.Dense) else layer.filters


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("network", NETWORKS)
def test_removing_dead_channels_changes_no_output(network, scope):
    build, groups = NETWORKS[network]
    model = scramble(build())
    generator = np.random.default_rng(3)
    expected = {}
    for group in groups:
        channels = width(model.get_layer(group[0]))
        dead = generator.permutation(channels)[: channels // 2]
        for name in group:
            layer = model.get_layer(name)
            kill(layer, dead)
            if isinstance(layer, MAKERS):
                expected[name] = channels - channels // 2
    small = prune_channels(model, 0.5, scope=scope)
    assert {each: width(small.get_layer(each)) for each in expected} == expected
    x = rows(model)
    np.testing.assert_allclose(small(x), model(x), rtol=1e-5, atol=1e-5 * np.abs(model(x)).max())


def test_groups_are_those_made_by_hand():
    for build, groups in NETWORKS.values():
        model = build()
        makers = {frozenset(name for name in group if isinstance(model.get_layer(name), MAKERS)) for group in groups}
        assert {frozenset(group.layers) for group in channel_groups(model)} == makers


def test_channels_joined_by_concatenation_keep_their_places():
    model = scramble(dense_net())
    for name, dead in {"conv0": [0, 3], "conv1": [1, 2, 5]}.items():
        kill(model.get_layer(name), dead)
    norm = model.get_layer("norm")  # image 3, conv0 4, conv1 6 channels
    kill(norm, [3 + 0, 3 + 3, 3 + 4 + 1, 3 + 4 + 2, 3 + 4 + 5])
    small = prune_channels(model, 0.5, keep=("logits", "conv2"))
    assert [width(small.get_layer(name)) for name in ("conv0", "conv1", "conv2", "conv3")] == [2, 3, 13, 13]
    assert small.get_layer("norm").gamma.shape == (3 + 2 + 3,)
    np.testing.assert_allclose(small(rows(model)), model(rows(model)), rtol=1e-4, atol=1e-4)


def test_the_smallest_filters_go_and_the_rest_keep_their_order():
    model = zoo.get("mlp", input_shape=(2,), width=(5,), classes=2)
    model.get_layer("hidden0").set_weights([np.array([[5, 1, 4, 2, 3], [0, 0, 0, 0, 0]]), np.arange(5.0)])
    small = prune_channels(model, 0.4)
    kernel, bias = small.get_layer("hidden0").get_weights()
    assert kernel[0].tolist() == [5, 4, 3]
    assert bias.tolist() == [0, 2, 4]


def test_coupled_layers_are_ranked_together():
    model = resnet(depth=(1,), bottleneck=False)
    stem, second = model.get_layer("stem_conv"), model.get_layer("stage0_block0_conv1")
    stem.kernel.assign(np.ones(stem.kernel.shape) * [1.0, 2.0, 3.0, 10.0])  # alone, channels 0 and 1 would go
    second.kernel.assign(np.ones(second.kernel.shape) * [9.0, 1.0, 1.0, 1.0])
    small = prune_channels(model, 0.5)
    assert np.asarray(small.get_layer("stem_conv").kernel)[0, 0, 0].tolist() == [1.0, 10.0]


def test_batch_norm_importance_reads_the_scale():
    model = scramble(vgg_like())
    model.get_layer("norm0").gamma.assign([0.1, -5, 0.2, 4, 3, 0.3])
    small = prune_channels(model, 0.5, importance="batch_norm")
    assert small.get_layer("norm0").gamma.numpy().tolist() == [-5, 4, 3]


def test_global_scope_takes_more_from_uniformly_weak_groups_but_never_all():
    model = zoo.get("mlp", input_shape=(4,), width=(10, 10), classes=2)
    model.get_layer("hidden0").kernel.assign(np.tile([0.0] * 9 + [1.0], (4, 1)))
    model.get_layer("hidden1").kernel.assign(np.tile(np.linspace(1, 2, 10), (10, 1)))
    for ratio, left in ((0.5, [1, 9]), (0.95, [1, 1])):
        small = prune_channels(model, ratio, scope="global")
        assert [small.get_layer(name).units for name in ("hidden0", "hidden1")] == left


@pytest.mark.parametrize(("round_to", "left"), [(1, 5), (4, 4), (8, 8), (16, 10)])
def test_round_to_keeps_multiples(round_to, left):
    model = zoo.get("mlp", input_shape=(4,), width=(10, 64), classes=2)
    small = prune_channels(model, 0.5, round_to=round_to)
    assert small.get_layer("hidden0").units == left
    assert small.get_layer("hidden1").units == 32


def test_at_least_one_channel_stays():
    small = prune_channels(zoo.get("mlp", input_shape=(4,), width=(10,), classes=2), 0.99)
    assert small.get_layer("hidden0").units == 1


def test_half_the_channels_are_a_quarter_of_the_arithmetic():
    model = zoo.get("resnet18", input_shape=(8, 8, 1), classes=10, width=16)
    small = prune_channels(model, 0.5)
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]
    assert 3.8 < macs(model) / macs(small) < 4
    assert 3.8 < model.count_params() / small.count_params() < 4


def test_the_result_trains_saves_and_loads_and_the_original_stays(tmp_path):
    model = resnet(depth=(1, 1))
    before = [weight.copy() for weight in model.get_weights()]
    small = prune_channels(model, 0.5)
    small.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    x = rows(model, 4)
    started = small.get_weights()
    small.fit(x, np.array([0, 1, 2, 0]), epochs=1, verbose=0)
    assert all(np.any(old != new) for old, new in zip(started, small.get_weights(), strict=True))
    small.save(tmp_path / "small.keras")
    np.testing.assert_allclose(keras.models.load_model(tmp_path / "small.keras")(x), small(x), rtol=1e-6)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_pruning_twice_works():
    small = prune_channels(prune_channels(zoo.get("lenet"), 0.5), 0.5)
    assert [small.get_layer(name).filters for name in ("stage0_conv", "stage1_conv")] == [2, 4]


def test_inputs_by_name_stay_by_name():
    model = siamese()
    assert set(prune_channels(model, 0.5).input) == {"left", "right"}


def test_layers_without_training_stay_frozen():
    model = vgg_like()
    model.get_layer("conv0").trainable = False
    assert not prune_channels(model, 0.5).get_layer("conv0").trainable


@keras.saving.register_keras_serializable("test_compress")
class Reverse(layers.Layer):
    def call(self, x):
        return x[..., ::-1]


@keras.saving.register_keras_serializable("test_compress")
def relu(x):
    """Not the activation that its name says."""
    return keras.ops.flip(x, -1)


class MyReLU(layers.ReLU):
    pass


def around(between):
    """Convolutions before and after a tensor -> tensor function, so that the first one's channels pass through it."""
    image = keras.Input((8, 8, 3), name="image")
    x = between(layers.Conv2D(8, 3, name="before")(image))
    x = layers.Conv2D(8, 1, name="after")(x)
    return keras.Model(image, layers.Dense(2, name="logits")(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize(
    "between",
    [
        Reverse(),
        MyReLU(),
        layers.Softmax(),
        layers.Activation("softmax"),
        layers.Activation(relu),
        layers.BatchNormalization(axis=1),
        layers.Permute((1, 3, 2)),
        layers.Rescaling(np.arange(8.0).tolist()),
        lambda x: keras.ops.flip(x, -1),
        lambda x: x * np.arange(8.0),
    ],
    ids=lambda between: getattr(between, "name", "function"),
)
def test_channels_stay_around_what_is_not_followed(between):
    model = scramble(around(between))
    small = prune_channels(model, 0.5)
    assert [small.get_layer(name).filters for name in ("before", "after")] == [8, 4]
    dead = np.setdiff1d(np.arange(8), kept(small, model, "after"))
    kill(model.get_layer("after"), dead)
    np.testing.assert_allclose(small(rows(model)), model(rows(model)), rtol=1e-4, atol=1e-4)


def kept(small, model, name):
    """Which filters of a layer are left, found by their biases."""
    biases = model.get_layer(name).bias.numpy()
    return [int(np.flatnonzero(biases == bias)[0]) for bias in small.get_layer(name).bias.numpy()]


@pytest.mark.parametrize(("target", "left"), [((36, 8), 4), ((-1, 8), 4), ((36, -1), 4), ((-1, 4), 8), ((288, 1), 8)])
def test_reshape_passes_channels_on_where_they_stay_the_last_axis(target, left):
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, name="before")(image)
    x = layers.Dense(6, "relu", name="after")(layers.Reshape(target)(x))
    model = scramble(keras.Model(image, layers.Dense(2, name="logits")(layers.GlobalAveragePooling1D()(x))))
    kill(model.get_layer("before"), [1, 2, 5, 7] if left == 4 else [])
    kill(model.get_layer("after"), [0, 3, 4])
    small = prune_channels(model, 0.5)
    assert (small.get_layer("before").filters, small.get_layer("after").units) == (left, 3)
    np.testing.assert_allclose(small(rows(model)), model(rows(model)), rtol=1e-4, atol=1e-4)


def test_equal_scores_lose_the_ratio_too():
    small = prune_channels(vgg_like(), 0.5, importance="batch_norm", scope="global", keep=("logits", "hidden"))
    assert [small.get_layer(name).filters for name in ("conv0", "conv1")] == [1, 7]  # the first seven, but one stays


def test_a_softmax_convolution_keeps_its_channels():
    model = around(layers.Conv2D(8, 1, activation="softmax", name="middle"))
    assert [small.filters for small in map(prune_channels(model, 0.5).get_layer, ("before", "middle", "after"))] == [
        4,
        8,
        4,
    ]


def test_a_layer_shared_with_the_input_keeps_reading_all_of_it():
    image = keras.Input((4, 4, 6), name="image")
    shared = layers.Conv2D(6, 1, name="shared")
    model = keras.Model(image, layers.Dense(2)(layers.Flatten()(shared(shared(image)))))
    with pytest.raises(ValueError, match="no channels to remove"):
        prune_channels(model, 0.5)


def test_concatenation_of_places_makes_channels_one():
    image = keras.Input((4, 4, 3), name="image")
    parts = [layers.Conv2D(6, 1, name=f"conv{index}")(image) for index in range(2)]
    x = layers.Flatten()(layers.Concatenate(axis=1)(parts))
    model = keras.Model(image, layers.Dense(2, name="logits")(x))
    assert channel_groups(model) == [(("conv0", "conv1"), 6)]
    assert prune_channels(model, 0.5).get_layer("logits").kernel.shape == (4 * 4 * 2 * 3, 2)


def test_keep_takes_patterns():
    model = zoo.get("lenet")
    small = prune_channels(model, 0.5, keep=["stage*_conv"])
    assert [small.get_layer(name).filters for name in ("stage0_conv", "stage1_conv")] == [6, 16]
    assert small.get_layer("features").units == 42
    assert small.get_layer("logits").units == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": 1.0}, r"ratio must be a share in \[0, 1\), got ratio=1.0"),
        ({"ratio": -0.1}, "got ratio=-0.1"),
        ({"importance": "random"}, "'batch_norm' or 'taylor', or a function .* got 'random'"),
        ({"importance": "batch_norm"}, "no BatchNormalization"),
        ({"scope": "all"}, "'layer' or 'global', got 'all'"),
        ({"round_to": 0}, "got round_to=0"),
        ({"keep": ("hiden*",)}, r"'hiden\*' matches no layer .* hidden0"),
        ({"keep": ("logits", "hidden*")}, "no channels to remove"),
        ({"ratio": 0.01}, "removes no channel .* has 6"),
        ({"round_to": 64}, "raise ratio or lower round_to"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    model = zoo.get("mlp", input_shape=(4,), width=(6, 5), classes=3)
    with pytest.raises(ValueError, match=message):
        prune_channels(model, **arguments)


def test_ratio_zero_is_a_copy():
    model = scramble(vgg_like())
    np.testing.assert_array_equal(prune_channels(model, 0.0)(rows(model)), model(rows(model)))


def test_models_without_a_graph_are_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(TypeError, match="must be functional or a built Sequential, got a Own"):
        prune_channels(Own())
    with pytest.raises(TypeError, match="got a Sequential"):
        prune_channels(keras.Sequential([layers.Dense(2)]))


def test_channels_first_is_refused():
    image = keras.Input((3, 8, 8))
    x = layers.GlobalAveragePooling2D(data_format="channels_first", name="pool")(image)
    with pytest.raises(TypeError, match="'pool' is channels first"):
        prune_channels(keras.Model(image, layers.Dense(2)(layers.Dense(4)(x))))
