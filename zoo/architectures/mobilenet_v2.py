"""MobileNetV2: inverted residuals, whose shortcuts join narrow maps and whose wide middle is convolved channel by channel.

Sandler, Howard, Zhu, Zhmoginov & Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018
(arXiv:1801.04381), table 2. The convolutions with stride 2 are padded like TensorFlow's "same", as in the authors' code
and keras.applications (`symmetric=True` pads both sides, as torchvision and timm do). Departure: small images keep
their resolution in the stem and in the second stage.
"""

import keras
from keras import layers

from zoo.layers.heads import pooled_logits
from zoo.registry import Tensor, register

SMALL = 64  # pixels a side below which the first two strides are 1
STAGES = ((16, 1), (24, 2), (32, 2), (64, 2), (96, 1), (160, 2), (320, 1))  # channels and stride, table 2
EXPANSION = 6  # of all blocks but those of the first stage


def _initial():
    """Variance by the values a filter gives: `he_normal` takes a depthwise kernel for one filter of all channels."""
    return keras.initializers.VarianceScaling(2.0, "fan_out")


def _multiple(channels):
    """The nearest multiple of 8, at least 8, that is not more than a tenth below."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def _norm(x, epsilon, name, relu=True):
    x = layers.BatchNormalization(momentum=0.9, epsilon=epsilon, name=f"{name}_norm")(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(x) if relu else x


def _pad(x, stride, symmetric, name):
    """The input of a 3x3 convolution and its padding."""
    if stride == 1 or not symmetric:
        return x, "same"
    return layers.ZeroPadding2D(1, name=f"{name}_pad")(x), "valid"


def _conv(x, filters, epsilon, name, relu=True):
    x = layers.Conv2D(filters, 1, use_bias=False, kernel_initializer=_initial(), name=name)(x)
    return _norm(x, epsilon, name, relu)


def _block(x, filters, expansion, stride, symmetric, epsilon, name):
    """(batch, side, side, channels) -> (batch, side / stride, side / stride, filters)."""
    y = x
    if expansion > 1:
        y = _conv(y, expansion * x.shape[-1], epsilon, f"{name}_expand")
    y, padding = _pad(y, stride, symmetric, f"{name}_depthwise")
    depthwise = f"{name}_depthwise"
    y = layers.DepthwiseConv2D(3, stride, padding, use_bias=False, depthwise_initializer=_initial(), name=depthwise)(y)
    y = _conv(_norm(y, epsilon, depthwise), filters, epsilon, f"{name}_project", relu=False)
    if stride > 1 or x.shape[-1] != filters:
        return y
    return layers.Add(name=f"{name}_add")([x, y])


@register(
    "mobilenet_v2",
    task="image-classification",
    inputs={"image": Tensor("height", "width", "channels", unit="zero mean, unit variance")},
    paper="Sandler, Howard, Zhu, Zhmoginov & Chen 2018",
    params=3_504_872,
    params_source="torchvision, timm; keras.applications, whose 3,538,984 include 34,112 moving statistics",
    tiny=dict(input_shape=(8, 8, 3), classes=3, depth=(1, 2, 1), width=0.25),
    aliases=("mobilenet",),
    data="digits",
    weights={
        "keras": dict(
            url="https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5",
            checksum="sha256:3e195a2857356cfc092cbbb460beb2a5bce279015d7792598b8d3d9e451902e3",
            licence="MIT, as keras-applications states",
            inputs="tf",
        ),
        "timm": dict(
            url="https://huggingface.co/timm/mobilenetv2_100.ra_in1k/resolve/f3ff81ba89de0bc46b546568ebeab2edef6b9d49/model.safetensors",
            checksum="sha256:55ea4fb3a96010b933710ebf44fc965b070d5cd054d3f35e44f2d1320b4a714e",
            licence="Apache-2.0, as the model card states",
            inputs="torch",
        ),
    },
)
def mobilenet_v2(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    depth: tuple[int, ...] = (1, 2, 3, 4, 3, 3, 1),
    width: float = 1.0,
    stem: str = "auto",
    symmetric: bool = False,
    epsilon: float = 1e-3,
    dropout: float = 0.0,
) -> keras.Model:
    """Build a MobileNetV2.

    Args:
        input_shape: `(height, width, channels)` in pixels, any size.
        classes: number of logits.
        depth: blocks of each stage, up to seven; fewer numbers leave out the last stages.
        width: factor of all channels, which are rounded to multiples of 8; the 1280 features do not shrink with it
            (section 6.1).
        stem: "imagenet" (strides of 32 in all), "small" (8 in all), or "auto": small below 64 pixels a side. The
            weights fit both.
        symmetric: convolutions with stride 2 padded on both sides (torchvision, timm) rather than like "same".
        epsilon: added to the variance in each normalisation; 1e-3 in the authors' code and keras.applications, 1e-5 in
            torchvision and timm.
        dropout: share of the features dropped in training, in [0, 1).

    Returns:
        Functional model, `(batch, height, width, channels) -> (batch, classes)` logits.

    Raises:
        ValueError: an argument is out of range.
    """
    if stem not in ("auto", "imagenet", "small"):
        raise ValueError(f"stem must be 'auto', 'imagenet' or 'small', got {stem!r}")
    if not 1 <= len(depth) <= len(STAGES) or min(depth) < 1:
        raise ValueError(f"depth must hold one to seven positive numbers of blocks, got depth={depth!r}")
    if not width > 0:
        raise ValueError(f"width must be a factor above 0, got width={width!r}")
    small = stem == "small" or (stem == "auto" and min(input_shape[:2]) < SMALL)
    image = keras.Input(input_shape, name="image")
    stride = 1 if small else 2
    x, padding = _pad(image, stride, symmetric, "stem_conv")
    x = layers.Conv2D(
        _multiple(32 * width), 3, stride, padding, use_bias=False, kernel_initializer=_initial(), name="stem_conv"
    )(x)
    x = _norm(x, epsilon, "stem_conv")
    for stage, ((filters, stride), blocks) in enumerate(zip(STAGES[: len(depth)], depth, strict=True)):
        for block in range(blocks):
            x = _block(
                x,
                _multiple(filters * width),
                EXPANSION if stage else 1,
                1 if block or (small and stage == 1) else stride,
                symmetric,
                epsilon,
                f"stage{stage}_block{block}",
            )
    x = _conv(x, _multiple(1280 * max(1.0, width)), epsilon, "head_conv")
    return keras.Model(image, pooled_logits(x, classes, dropout), name="mobilenet_v2")
