"""Parameters and multiply-accumulates against published and hand-made counts."""

import math

import keras
import numpy as np
import pytest
from keras import layers

import zoo
from zoo.compress import cost, macs


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet18", 1.814e9),
        ("resnet34", 3.664e9),
        ("resnet50", 4.089e9),
        ("resnet101", 7.801e9),
        pytest.param("resnet152", 11.514e9, marks=pytest.mark.slow),
    ],
)
def test_resnets_cost_what_torchvision_publishes(name, published):
    # https://docs.pytorch.org/vision/stable/models.html, column GFLOPS: 1.81, 3.66, 4.09, 7.80, 11.51
    assert macs(zoo.get(name)) == pytest.approx(published, rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "builder"),
    [
        ("resnet50v2", "ResNet50V2"),
        ("mobilenet_v2", "MobileNetV2"),
        ("vgg16", "VGG16"),
        ("vgg19", "VGG19"),
        ("inception_v3", "InceptionV3"),
    ],
)
def test_networks_cost_what_those_of_keras_applications_cost(name, builder):
    ours, theirs = zoo.get(name), getattr(keras.applications, builder)(weights=None, classifier_activation=None)
    assert macs(ours) == macs(theirs) > 1e8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "billions"), [("iresnet18", 2.6), ("face_embedding", 6.3), ("iresnet100", 12.1)]
)  # README of InsightFace's arcface_torch, column FLOPs: 2.6G, 6.3G, 12.1G
def test_face_networks_cost_what_insightface_publishes(name, billions):
    assert round(macs(zoo.get(name)) / 1e9, 1) == billions


@pytest.mark.parametrize(
    ("name", "side", "published"),
    [
        ("yolo_nano", 416, "1.08"),
        pytest.param("yolo_tiny", 416, "6.45", marks=pytest.mark.slow),
        pytest.param("yolo_small", 640, "26.8", marks=pytest.mark.slow),
    ],
)
def test_detectors_cost_what_yolox_publishes(name, side, published):
    # README of YOLOX, column FLOPs (G). They are those of `get_model_info` in yolox/utils/model_utils.py: twice what thop
    # counts, which is our MACs, one more for each output that a bias is added to, and two for each output of a batch
    # normalisation (thop 0.0.31, count_convNd and count_bn of thop/vision/basic_hooks.py; SiLU is not counted there).
    model = zoo.get(name, input_shape=(side, side, 3))
    biased = [layer for layer in model.layers if isinstance(layer, layers.Conv2D) and layer.use_bias]
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    besides = sum(math.prod(layer.output.shape[1:]) * (1 + (layer in norms)) for layer in biased + norms)
    assert f"{2 * (macs(model) + besides) / 1e9:.3g}" == published
    assert f"{2 * macs(model) / 1e9:.3g}" != published  # what is counted besides shows in the figure


def test_rows_add_up_to_the_parameters():
    model = zoo.get("lenet")
    rows = cost(model)
    assert [row.layer for row in rows] == [layer.name for layer in model.layers]
    assert sum(row.params for row in rows) == model.count_params() == 61_706
    assert {row.layer: row.macs for row in rows if row.macs} == {
        "stage0_conv": 28 * 28 * 5 * 5 * 1 * 6,
        "stage1_conv": 10 * 10 * 5 * 5 * 6 * 16,
        "hidden0": 5 * 5 * 16 * 120,
        "features": 120 * 84,
        "logits": 84 * 10,
    }
    assert rows[1] == ("stage0_conv", "Conv2D", (28, 28, 6), 156, 28 * 28 * 5 * 5 * 6)


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (layers.Conv2D(6, 3, strides=2), (9, 9, 4), 4 * 4 * 3 * 3 * 4 * 6),
        (layers.Conv2D(6, 3, groups=2), (9, 9, 4), 7 * 7 * 3 * 3 * 2 * 6),
        (layers.Conv1D(5, 3, padding="same"), (7, 2), 7 * 3 * 2 * 5),
        (layers.Conv2DTranspose(5, 2, strides=2), (4, 4, 3), 4 * 4 * 2 * 2 * 3 * 5),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), (5, 5, 4), 3 * 3 * 3 * 3 * 4 * 2),
        (layers.SeparableConv2D(6, 3), (5, 5, 4), 3 * 3 * (3 * 3 * 4 + 4 * 6)),
        (layers.Dense(5), (7, 3), 7 * 3 * 5),
        (layers.BatchNormalization(), (7, 3), 0),
        (layers.Embedding(10, 4), (7,), 0),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_multiply_accumulates_of_a_layer(layer, shape, expected):
    inputs = keras.Input(shape)
    assert macs(keras.Model(inputs, layer(inputs))) == expected


def test_a_shared_layer_costs_arithmetic_twice_and_parameters_once():
    shared = layers.Dense(4)
    inputs = keras.Input((4,))
    rows = cost(keras.Model(inputs, shared(shared(inputs))))
    assert [(row.params, row.macs) for row in rows[1:]] == [(20, 16), (0, 16)]


def test_nested_models_are_opened():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="inside")], name="inner")
    inputs = keras.Input((4,))
    row = cost(keras.Model(inputs, inner(inputs)))[-1]
    assert (row.layer, row.macs) == ("inner/inside", 12)


@keras.saving.register_keras_serializable("test_costs")
class Opaque(layers.Layer):
    """Hides its arithmetic behind a call that symbols cannot pass."""

    def build(self, shape):
        self.kernel = self.add_weight((shape[-1], 4))

    def call(self, x):
        return keras.ops.matmul(keras.ops.convert_to_tensor(np.asarray(x)), self.kernel)

    def compute_output_spec(self, x):
        return keras.KerasTensor((*x.shape[:-1], 4))


def test_unknown_layers_are_not_counted_as_free():
    inputs = keras.Input((7, 3))
    model = keras.Model(inputs, Opaque(name="memory")(inputs))
    assert cost(model)[-1].macs is None
    with pytest.raises(ValueError, match=r"cannot count .* 'memory' \(Opaque\)"):
        macs(model)


class Bilinear(layers.Layer):
    """A custom layer of known operations: x W x', and a dense layer on top."""

    def build(self, shape):
        self.kernel = self.add_weight((shape[-1], shape[-1]))
        self.head = layers.Dense(2)

    def call(self, x):
        return self.head(keras.ops.matmul(keras.ops.matmul(x, self.kernel), keras.ops.transpose(x, (0, 2, 1))))


def test_custom_layers_are_opened():
    inputs = keras.Input((7, 3))
    assert macs(keras.Model(inputs, Bilinear()(inputs))) == 7 * 3 * 3 + 7 * 3 * 7 + 7 * 7 * 2


def attended(x):
    y = layers.Dense(6)(x)  # 7 * 3 * 6
    return layers.MultiHeadAttention(4, 5, value_dim=2)(y, y)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (layers.LSTM(4), 7 * 4 * (3 * 4 + 4 * 4)),
        (layers.GRU(4, return_sequences=True), 7 * 3 * (3 * 4 + 4 * 4)),
        (layers.SimpleRNN(4), 7 * (3 * 4 + 4 * 4)),
        (layers.Bidirectional(layers.LSTM(4)), 2 * 7 * 4 * (3 * 4 + 4 * 4)),
        (layers.RNN([layers.GRUCell(4), layers.LSTMCell(2)]), 7 * (3 * (3 * 4 + 4 * 4) + 4 * (4 * 2 + 2 * 2))),
        (layers.TimeDistributed(layers.Dense(5)), 7 * 3 * 5),
        # projections of 7 places: query and key 6 x 20, value 6 x 8, output 8 x 6; then 7 x 7 pairs in 4 heads
        (attended, 7 * 3 * 6 + 7 * (2 * 6 * 20 + 6 * 8 + 8 * 6) + 7 * 7 * 4 * (5 + 2)),
        # query and output 3 x 12, key and value 3 x 6; each of 7 x 7 pairs in 6 heads
        (lambda x: layers.GroupQueryAttention(2, 6, 3)(x, x), 7 * (2 * 3 * 12 + 2 * 3 * 6) + 7 * 7 * 6 * (2 + 2)),
        (lambda x: layers.Attention()([x, x]), 7 * 7 * (3 + 3)),
        (lambda x: layers.Dot(axes=2)([x, x]), 7 * 7 * 3),
        (layers.EinsumDense("abc,cde->abde", output_shape=(None, 2, 5)), 7 * 3 * 2 * 5),
        (layers.EinsumDense("...c,cd->...d", output_shape=(5,)), 7 * 3 * 5),
        (lambda x: keras.ops.einsum("abc,adc->abd", x, x), 7 * 7 * 3),
        (lambda x: x @ keras.ops.transpose(x, (0, 2, 1)), 7 * 7 * 3),
        (lambda x: keras.ops.tensordot(x, np.ones((3, 5), "float32"), 1), 7 * 3 * 5),
        (
            lambda x: keras.ops.dot_product_attention(*[keras.ops.reshape(x, (-1, 7, 3, 1))] * 3),
            7 * 7 * 3 * 2,
        ),
        (lambda x: layers.ConvLSTM1D(4, 3, padding="same")(layers.Reshape((7, 3, 1))(x)), 7 * 3 * (3 * 16 + 3 * 4 * 16)),
    ],
)  # fmt: skip
def test_multiply_accumulates_by_hand(build, expected):
    inputs = keras.Input((7, 3))
    assert macs(keras.Model(inputs, build(inputs))) == expected


def test_an_unknown_size_is_not_counted():
    inputs = keras.Input((None, None, 3))
    assert cost(keras.Model(inputs, layers.Conv2D(4, 3)(inputs)))[-1].macs is None
