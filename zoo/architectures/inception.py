"""Inception networks: blocks of parallel convolutions of several sizes, side by side.

Szegedy et al., "Going Deeper with Convolutions", CVPR 2015 (arXiv:1409.4842), table 1, for the first version, called
GoogLeNet; Szegedy, Vanhoucke, Ioffe, Shlens & Wojna, "Rethinking the Inception Architecture for Computer Vision", CVPR
2016 (arXiv:1512.00567), table 1 and section 6, for the third, as keras.applications and torchvision build it.
Departures: every convolution of the first version is followed by batch normalisation, in place of biases and local
response normalisation, and its third branch has 3x3 in place of 5x5 convolutions, as torchvision's weights have
(`large=5` is the paper's); the auxiliary classifiers, which are used in training only, are left out of both (files
that hold them are loaded without); small images keep their resolution in the stem.
"""

import keras
from keras import layers

from zoo.layers.heads import pooled_logits
from zoo.registry import Tensor, register

SMALL = {"inception_v1": 64, "inception_v3": 75}  # pixels a side below which the stem keeps the resolution
_V1 = (  # table 1: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, behind the pooling
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)
_V3_POOLED = (32, 64, 64)  # behind the pooling of each block of the first stage
_V3_SEVENS = (128, 160, 160, 192)  # inside the 7x1 branches of each block of the second


class _Block:
    """Branches that read the same tensor and end side by side; filters are given for the full width."""

    def __init__(self, name, share, scale):
        self.name, self.share, self.scale = name, share, scale
        self.branches = []

    def conv(self, x, place, filters, size, stride=1, padding="same"):
        """Convolution, batch normalisation and ReLU; `place` is the rest of its name."""
        name, filters = f"{self.name}_{place}", max(1, round(filters * self.share))
        x = layers.Conv2D(filters, size, stride, padding, use_bias=False, kernel_initializer="he_normal", name=name)(x)
        x = layers.BatchNormalization(momentum=0.9, epsilon=1e-3, scale=self.scale, name=f"{name}_norm")(x)
        return layers.ReLU(name=f"{name}_relu")(x)

    def branch(self, x, *convolutions):
        """A branch of convolutions one behind the other, each `(filters, size)`, or with stride and padding."""
        for index, convolution in enumerate(convolutions):
            x = self.conv(x, f"branch{len(self.branches)}_conv{index}", *convolution)
        self.branches.append(x)

    def fork(self, x, convolutions, ends):
        """A branch whose last convolutions stand side by side."""
        number = len(self.branches)
        for index, convolution in enumerate(convolutions):
            x = self.conv(x, f"branch{number}_conv{index}", *convolution)
        first = len(convolutions)
        sides = [self.conv(x, f"branch{number}_conv{first + i}", *end) for i, end in enumerate(ends)]
        self.branches.append(layers.Concatenate(name=f"{self.name}_branch{number}_join")(sides))

    def pooled(self, x, filters, mean=False, padded=False):
        """A branch that pools over 3x3 before its 1x1 convolution."""
        name = f"{self.name}_branch{len(self.branches)}_pool"
        if mean and padded:
            x = layers.AveragePooling2D(3, 1, name=name)(layers.ZeroPadding2D(1, name=f"{name}_pad")(x))
        else:
            x = (layers.AveragePooling2D if mean else layers.MaxPooling2D)(3, 1, padding="same", name=name)(x)
        self.branch(x, (filters, 1))

    def reduced(self, x, padding):
        """A branch that only pools, halving the resolution."""
        pool = layers.MaxPooling2D(3, 2, padding=padding, name=f"{self.name}_branch{len(self.branches)}_pool")
        self.branches.append(pool(x))

    def join(self):
        return layers.Concatenate(name=f"{self.name}_join")(self.branches)


def _pool(x, size, name):
    """Maximum over windows of stride 2 that may reach beyond the last row and column, as torchvision rounds up.

    Zero pads as well as minus infinity does, since x comes out of a ReLU.
    """
    pads = [(0, max(size - side, (side - size) % 2)) for side in x.shape[1:3]]
    if pads != [(0, 0), (0, 0)]:
        x = layers.ZeroPadding2D(pads, name=f"{name}_pad")(x)
    return layers.MaxPooling2D(size, 2, name=name)(x)


def _is_small(kind, input_shape, stem, depth, most):
    """Whether the stem is the small one; refuses what cannot be built."""
    if stem not in ("auto", "imagenet", "small"):
        raise ValueError(f"stem must be 'auto', 'imagenet' or 'small', got {stem!r}")
    if len(depth) != 3 or not all(1 <= blocks <= limit for blocks, limit in zip(depth, most, strict=True)):
        raise ValueError(f"depth must be three numbers of blocks from 1 to {most}, got depth={depth!r}")
    return stem == "small" or (stem == "auto" and min(input_shape[:2]) < SMALL[kind])


@register(
    "inception_v1",
    task="image-classification",
    inputs={"image": Tensor("height", "width", "channels", unit="zero mean, unit variance")},
    paper="Szegedy, Liu, Jia et al. 2014",
    params=6_624_904,
    params_source="torchvision without auxiliary classifiers",
    tiny=dict(input_shape=(8, 8, 3), classes=3, depth=(1, 1, 1), width=12),
    aliases=("googlenet",),
    data="digits",
)
def inception_v1(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    depth: tuple[int, int, int] = (2, 5, 2),
    width: int = 64,
    large: int = 3,
    stem: str = "auto",
    dropout: float = 0.0,
) -> keras.Model:
    """Build the first Inception network, GoogLeNet, with batch normalisation.

    Args:
        input_shape: `(height, width, channels)` in pixels, any size.
        classes: number of logits.
        depth: blocks of each stage, the first ones of up to (2, 5, 2).
        width: filters of the stem; those of all branches are in proportion.
        large: side in pixels of the third branch's convolutions: 3 as in torchvision's weights, 5 as in the paper.
        stem: "imagenet" (7x7 stride 2, pooling), "small" (3x3 stride 1), or "auto": small below 64 pixels a side.
        dropout: share of the features dropped in training, in [0, 1); the paper has 0.4.

    Returns:
        Functional model, `(batch, height, width, channels) -> (batch, classes)` logits.

    Raises:
        ValueError: an argument is out of range.
    """
    small = _is_small("inception_v1", input_shape, stem, depth, (2, 5, 2))
    share = width / 64
    image = keras.Input(input_shape, name="image")
    start = _Block("stem", share, True)
    if small:
        x = start.conv(image, "conv", 64, 3)
    else:
        x = layers.ZeroPadding2D(3, name="stem_conv_pad")(image)
        x = _pool(start.conv(x, "conv", 64, 7, 2, "valid"), 3, "stem_pool")
    x = start.conv(start.conv(x, "conv1", 64, 1), "conv2", 192, 3)
    for stage, blocks in enumerate(depth):
        x = _pool(x, 2 if stage == 2 else 3, f"stage{stage}_pool")
        for index, (one, three, threes, five, fives, pooled) in enumerate(_V1[stage][:blocks]):
            block = _Block(f"stage{stage}_block{index}", share, True)
            block.branch(x, (one, 1))
            block.branch(x, (three, 1), (threes, 3))
            block.branch(x, (five, 1), (fives, large))
            block.pooled(x, pooled)
            x = block.join()
    return keras.Model(image, pooled_logits(x, classes, dropout), name="inception_v1")


@register(
    "inception_v3",
    task="image-classification",
    inputs={"image": Tensor("height", "width", "channels", unit="zero mean, unit variance")},
    paper="Szegedy, Vanhoucke, Ioffe, Shlens & Wojna 2015",
    params=23_817_352,
    params_source="keras.applications: 23,851,784 with 34,432 moving means and variances",
    tiny=dict(input_shape=(8, 8, 3), classes=3, depth=(1, 1, 1), width=5),
    data="digits",
    weights={
        "keras": dict(
            url="https://storage.googleapis.com/tensorflow/keras-applications/inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels.h5",
            checksum="md5:9a0d58056eeedaa3f26cb7ebd46da564",
            licence="MIT, as keras-applications states",
            inputs="tf",
        )
    },
)
def inception_v3(
    input_shape: tuple[int, int, int] = (299, 299, 3),
    classes: int = 1000,
    depth: tuple[int, int, int] = (3, 4, 2),
    width: int = 32,
    stem: str = "auto",
    padded_mean: bool = False,
    dropout: float = 0.0,
) -> keras.Model:
    """Build the third Inception network, without scales in its batch normalisations.

    Args:
        input_shape: `(height, width, channels)` in pixels, any size; at least 75 a side for the stem "imagenet".
        classes: number of logits.
        depth: blocks of each stage, the first ones of up to (3, 4, 2), beside the two that halve the resolution.
        width: filters of the stem; those of all branches are in proportion.
        stem: "imagenet" (two reductions, no padding), "small" (one reduction, padded convolutions), or "auto": small
            below 75 pixels a side.
        padded_mean: whether zeros beyond the border count in the averages of the pooling branches, as in torchvision;
            in keras.applications they do not.
        dropout: share of the features dropped in training, in [0, 1).

    Returns:
        Functional model, `(batch, height, width, channels) -> (batch, classes)` logits.

    Raises:
        ValueError: an argument is out of range, or the image too small for the poolings of the stem "imagenet".
    """
    small = _is_small("inception_v3", input_shape, stem, depth, (3, 4, 2))
    if not small and min(input_shape[:2]) < SMALL["inception_v3"]:
        raise ValueError(
            f"input_shape must be at least {SMALL['inception_v3']} pixels a side for the poolings of stem='imagenet', "
            f"got {input_shape}; resize the images, or pass stem='small'"
        )
    share, padding = width / 32, "same" if small else "valid"
    image = keras.Input(input_shape, name="image")
    start = _Block("stem", share, False)
    x = start.conv(image, "conv0", 32, 3, 1 if small else 2, padding)
    x = start.conv(x, "conv1", 32, 3, 1, padding)
    x = start.conv(x, "conv2", 64, 3)
    if not small:
        x = layers.MaxPooling2D(3, 2, name="stem_pool0")(x)
    x = start.conv(x, "conv3", 80, 1)
    x = start.conv(x, "conv4", 192, 3, 1, padding)
    x = layers.MaxPooling2D(3, 2, padding=padding, name="stem_pool1")(x)

    for index, pooled in enumerate(_V3_POOLED[: depth[0]]):
        block = _Block(f"stage0_block{index}", share, False)
        block.branch(x, (64, 1))
        block.branch(x, (48, 1), (64, 5))
        block.branch(x, (64, 1), (96, 3), (96, 3))
        block.pooled(x, pooled, mean=True, padded=padded_mean)
        x = block.join()

    block = _Block("stage1_reduce", share, False)
    block.branch(x, (384, 3, 2, padding))
    block.branch(x, (64, 1), (96, 3), (96, 3, 2, padding))
    block.reduced(x, padding)
    x = block.join()
    for index, inner in enumerate(_V3_SEVENS[: depth[1]]):
        block = _Block(f"stage1_block{index}", share, False)
        block.branch(x, (192, 1))
        block.branch(x, (inner, 1), (inner, (1, 7)), (192, (7, 1)))
        block.branch(x, (inner, 1), (inner, (7, 1)), (inner, (1, 7)), (inner, (7, 1)), (192, (1, 7)))
        block.pooled(x, 192, mean=True, padded=padded_mean)
        x = block.join()

    block = _Block("stage2_reduce", share, False)
    block.branch(x, (192, 1), (320, 3, 2, padding))
    block.branch(x, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2, padding))
    block.reduced(x, padding)
    x = block.join()
    for index in range(depth[2]):
        block = _Block(f"stage2_block{index}", share, False)
        block.branch(x, (320, 1))
        block.fork(x, [(384, 1)], [(384, (1, 3)), (384, (3, 1))])
        block.fork(x, [(448, 1), (384, 3)], [(384, (1, 3)), (384, (3, 1))])
        block.pooled(x, 192, mean=True, padded=padded_mean)
        x = block.join()
    return keras.Model(image, pooled_logits(x, classes, dropout), name="inception_v3")
