"""U-Net: a contracting path for what is there, an expanding path for where, joined at every size by copies.

Ronneberger, Fischer & Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015
(arXiv:1505.04597), figure 1. Its own network, for a grey image and two classes, has 31,030,658 weights in 23
convolutions, 64 maps at the top and 1,024 at the bottom; `unet(input_shape=(512, 512, 1), classes=2)` has exactly these.
Departures: convolutions are padded with zeros, so that the answer is as large as the image, where the paper's lose two
pixels each and copies are cropped; images of any size are padded to a multiple of 2 to the `depth` and the answer is cut
back; batch normalisation can be asked for, whose convolutions then have no biases.
"""

import keras
from keras import layers

from zoo.registry import Tensor, register


def _pair(x, maps, name, normalised):
    """Two 3x3 convolutions with ReLU."""
    for index in range(2):
        x = layers.Conv2D(
            maps, 3, padding="same", use_bias=not normalised, kernel_initializer="he_normal", name=f"{name}_conv{index}"
        )(x)
        if normalised:
            x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm{index}")(x)  # few batches, large pictures
        x = layers.ReLU(name=f"{name}_relu{index}")(x)
    return x


@register(
    "unet",
    task="segmentation",
    inputs={"image": Tensor("height", "width", "channels", unit="zero mean, unit variance")},
    paper="Ronneberger, Fischer & Brox 2015",
    params=31_031_940,
    params_source="figure 1, with 3 input channels (2 * 9 * 64 weights more) and 4 classes (2 * 65 more) in place of 1 and 2",
    tiny=dict(input_shape=(20, 20, 3), width=4, depth=2, classes=3),
    data="shapes",
)
def unet(
    input_shape: tuple[int, ...] = (64, 64, 3),
    width: int = 64,
    depth: int = 4,
    normalised: bool = False,
    dropout: float = 0.0,
    classes: int = 4,
) -> keras.Model:
    """Build a U-Net.

    Args:
        input_shape: `(height, width, channels)`, any size and any number of channels.
        width: maps of the topmost convolutions; every level down has twice as many.
        depth: poolings.
        normalised: batch normalisation behind every 3x3 convolution.
        dropout: share of the maps at the bottom that are dropped in training, in [0, 1); the paper does not give its own.
        classes: number of logits of each pixel.

    Returns:
        Functional model, `(batch, height, width, channels) -> (batch, height, width, classes)` logits, no softmax.

    Raises:
        ValueError: `width` or `depth` is below 1, or the image is smaller than one step of the poolings.
    """
    if width < 1 or depth < 1:
        raise ValueError(f"width and depth must be at least 1, got width={width}, depth={depth}")
    step = 2**depth
    height, across = input_shape[:2]
    if min(height, across) < step:
        raise ValueError(
            f"input_shape must be at least {step} pixels a side for {depth} poolings, got {tuple(input_shape)}; resize the "
            f"images, or pass a smaller depth"
        )
    image = keras.Input(input_shape, name="image")
    x = image
    surplus = [(-side % step // 2, -side % step - -side % step // 2) for side in (height, across)]
    if any(map(any, surplus)):
        x = layers.ZeroPadding2D(surplus, name="stem_pad")(x)
    copies = []
    for level in range(depth):
        x = _pair(x, width * 2**level, f"down{level}", normalised)
        copies.append(x)
        x = layers.MaxPooling2D(2, name=f"down{level}_pool")(x)
    x = _pair(x, width * 2**depth, "bottom", normalised)
    if dropout:
        x = layers.SpatialDropout2D(dropout, name="bottom_dropout")(x)
    for level in reversed(range(depth)):
        maps = width * 2**level
        x = layers.Conv2DTranspose(maps, 2, strides=2, kernel_initializer="he_normal", name=f"up{level}_enlarge")(x)
        x = layers.Concatenate(name=f"up{level}_join")([copies[level], x])
        x = _pair(x, maps, f"up{level}", normalised)
    if any(map(any, surplus)):
        x = layers.Cropping2D(surplus, name="head_cut")(x)
    x = layers.Identity(name="features")(x)
    return keras.Model(image, layers.Conv2D(classes, 1, name="logits")(x), name="unet")
