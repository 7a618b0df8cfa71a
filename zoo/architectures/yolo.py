"""YOLOX: a one-stage detector without anchor boxes, which says at each place of three maps what lies there and how far.

Ge, Liu, Wang, Li & Sun, "YOLOX: Exceeding YOLO Series in 2021" (arXiv:2107.08430): CSPDarknet with a focus stem and
pyramid pooling, path aggregation over strides 8, 16 and 32, and a head that tells class and box apart. Departures, none
of which changes a value: the stem's slicing and 3x3 convolution are the one 6x6 convolution of stride 2 that they are
together; pooling over 9 and 13 pixels repeats the pooling over 5; boxes leave the network in pixels. An image whose
sides are no multiple of 32 is padded to one on its right and bottom.
"""

import math

import keras
from keras import layers

from zoo.layers.detection import PlaceBoxes
from zoo.registry import Tensor, register

STRIDES = (8, 16, 32)
RARE = -math.log((1 - 0.01) / 0.01)  # logit of the share of places that hold something before anything is learnt


def _conv(x, filters, size, stride, name, depthwise=False):
    """Convolution padded by half its size, batch normalisation and SiLU."""
    padding = "same" if stride == 1 else "valid"
    if stride > 1:
        x = layers.ZeroPadding2D((size - 1) // 2, name=f"{name}_pad")(x)
    if depthwise:
        x = layers.DepthwiseConv2D(size, stride, padding, use_bias=False, depthwise_initializer="he_normal", name=name)(
            x
        )
    else:
        x = layers.Conv2D(filters, size, stride, padding, use_bias=False, kernel_initializer="he_normal", name=name)(x)
    x = layers.BatchNormalization(momentum=0.97, epsilon=1e-3, name=f"{name}_norm")(x)
    return layers.Activation("silu", name=f"{name}_silu")(x)


def _spatial(x, filters, stride, name, depthwise):
    """3x3 convolution, or one of each channel by itself and a 1x1 behind it."""
    if depthwise:
        x = _conv(x, x.shape[-1], 3, stride, f"{name}_depthwise", depthwise=True)
        return _conv(x, filters, 1, 1, name)
    return _conv(x, filters, 3, stride, name)


def _split(x, filters, blocks, name, depthwise, shortcut):
    """Cross-stage partial block: half of the channels pass through bottlenecks, half pass by."""
    y = _conv(x, filters // 2, 1, 1, f"{name}_enter_conv")
    bypass = _conv(x, filters // 2, 1, 1, f"{name}_bypass_conv")
    for block in range(blocks):
        z = _conv(y, filters // 2, 1, 1, f"{name}_block{block}_conv0")
        z = _spatial(z, filters // 2, 1, f"{name}_block{block}_conv1", depthwise)
        y = layers.Add(name=f"{name}_block{block}_add")([y, z]) if shortcut else z
    y = layers.Concatenate(name=f"{name}_concat")([y, bypass])
    return _conv(y, filters, 1, 1, f"{name}_merge_conv")


def _pyramid(x, name):
    """Pooling over 5, 9 and 13 pixels side by side."""
    filters = x.shape[-1]
    pooled = [_conv(x, filters // 2, 1, 1, f"{name}_conv0")]
    for index in range(3):
        pooled.append(layers.MaxPooling2D(5, 1, "same", name=f"{name}_pool{index}")(pooled[-1]))
    return _conv(layers.Concatenate(name=f"{name}_concat")(pooled), filters, 1, 1, f"{name}_conv1")


def _backbone(x, width, depth, depthwise):
    """Maps at strides 8, 16 and 32, of 4, 8 and 16 times `width` channels."""
    x = layers.ZeroPadding2D(2, name="stem_conv_pad")(x)
    x = layers.Conv2D(width, 6, 2, use_bias=False, kernel_initializer="he_normal", name="stem_conv")(x)
    x = layers.BatchNormalization(momentum=0.97, epsilon=1e-3, name="stem_conv_norm")(x)
    x = layers.Activation("silu", name="stem_conv_silu")(x)
    maps = []
    for stage, blocks in enumerate(depth):
        filters = width * 2 ** (stage + 1)
        x = _spatial(x, filters, 2, f"stage{stage}_conv", depthwise)
        last = stage == len(depth) - 1
        if last:
            x = _pyramid(x, f"stage{stage}_pyramid")
        x = _split(x, filters, blocks, f"stage{stage}", depthwise, shortcut=not last)
        maps.append(x)
    return maps[1:]


def _neck(maps, width, blocks, depthwise):
    """Path aggregation: from the coarse map down to the fine one, and back up."""
    fine, middle, coarse = maps
    options = dict(blocks=blocks, depthwise=depthwise, shortcut=False)

    def joined(x, y, name):
        return layers.Concatenate(name=f"{name}_concat_input")([x, y])

    def enlarged(x, name):
        return layers.UpSampling2D(2, name=f"{name}_enlarge")(x)

    top = _conv(coarse, 8 * width, 1, 1, "neck_lateral0_conv")
    middle = _split(joined(enlarged(top, "neck_down0"), middle, "neck_down0"), 8 * width, name="neck_down0", **options)
    middle = _conv(middle, 4 * width, 1, 1, "neck_lateral1_conv")
    fine = _split(joined(enlarged(middle, "neck_down1"), fine, "neck_down1"), 4 * width, name="neck_down1", **options)
    up = _spatial(fine, 4 * width, 2, "neck_up0_conv", depthwise)
    middle = _split(joined(up, middle, "neck_up0"), 8 * width, name="neck_up0", **options)
    up = _spatial(middle, 8 * width, 2, "neck_up1_conv", depthwise)
    coarse = _split(joined(up, top, "neck_up1"), 16 * width, name="neck_up1", **options)
    return fine, middle, layers.Identity(name="features")(coarse)


def _head(x, filters, classes, name, depthwise):
    """Box, objectness and class logits of each place: (batch, height, width, 5 + classes)."""
    x = _conv(x, filters, 1, 1, f"{name}_stem_conv")
    about = {}
    for branch in ("class", "box"):
        y = x
        for index in range(2):
            y = _spatial(y, filters, 1, f"{name}_{branch}_conv{index}", depthwise)
        about[branch] = y
    rare = keras.initializers.Constant(RARE)
    box = layers.Conv2D(4, 1, name=f"{name}_box")(about["box"])
    thing = layers.Conv2D(1, 1, bias_initializer=rare, name=f"{name}_object")(about["box"])
    kind = layers.Conv2D(classes, 1, bias_initializer=rare, name=f"{name}_class")(about["class"])
    return layers.Concatenate(name=f"{name}_concat")([box, thing, kind])


@register(
    "yolo_small",
    task="detection",
    inputs={"image": Tensor("height", "width", "channels", unit="zero mean, unit variance")},
    paper="Ge, Liu, Wang, Li & Sun 2021",
    params=8_968_255,
    params_source="paper, tables 3 and 4: 9.0 M, tiny 5.06 M, nano 0.91 M",
    variants={
        "yolo_tiny": dict(params=5_055_855, input_shape=(416, 416, 3), width=24),
        "yolo_nano": dict(params=912_159, input_shape=(416, 416, 3), width=16, depthwise=True),
    },
    tiny=dict(input_shape=(64, 64, 3), classes=3, width=8, depth=(1, 1, 1, 1)),  # smaller ones hardly learn to find
    aliases=("yolo",),
    data="shapes_boxes",
    recipe=dict(loss="simota"),
)
def yolo(
    input_shape: tuple[int, int, int] = (640, 640, 3),
    classes: int = 80,
    width: int = 32,
    depth: tuple[int, int, int, int] = (1, 3, 3, 1),
    depthwise: bool = False,
) -> keras.Model:
    """Build a YOLOX detector.

    Args:
        input_shape: `(height, width, channels)` in pixels, any size; sides that are no multiple of 32 are padded.
        classes: kinds of things to find.
        width: filters of the stem, even; they double with each of the four stages.
        depth: bottlenecks of each stage; the neck's blocks have as many as the first stage.
        depthwise: 3x3 convolutions of each channel by itself with a 1x1 behind, as the nano variant has them.

    Returns:
        Functional model, `(batch, height, width, channels) -> (batch, places, 5 + classes)`: left, top, right and
        bottom in pixels, then the logits of there being a thing and of each class. There is a place for every 8, 16
        and 32 pixels a side; the layer `logits` knows them.

    Raises:
        ValueError: an argument is out of range.
    """
    if width < 2 or width % 2 or classes < 1:
        raise ValueError(f"width must be even and classes at least 1, got width={width}, classes={classes}")
    if len(depth) != 4 or min(depth) < 1:
        raise ValueError(f"depth must hold four positive numbers of bottlenecks, got depth={depth!r}")
    x = image = keras.Input(input_shape, name="image")
    down, right = (-side % STRIDES[-1] for side in input_shape[:2])
    if down or right:
        x = layers.ZeroPadding2D(((0, down), (0, right)), name="padded")(x)
    maps = _neck(_backbone(x, width, depth, depthwise), width, depth[0], depthwise)
    found = [_head(x, 4 * width, classes, f"head{level}", depthwise) for level, x in enumerate(maps)]
    return keras.Model(image, PlaceBoxes(STRIDES, name="logits")(found), name="yolo")
