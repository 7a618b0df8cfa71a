"""Residual networks: each block adds its input to its output.

He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv:1512.03385), table 1, and
"Identity Mappings in Deep Residual Networks", ECCV 2016 (arXiv:1603.05027) for the second version, which
normalises before each convolution. Departures: the bottleneck's stride sits on its 3x3 convolution, as torchvision
and timm have it (`stride_first=True` puts it on the first 1x1, as the paper and keras.applications do), and small
images get a 3x3 stem without pooling (section 4.2 of the first paper).
"""

import keras
from keras import layers

from zoo.layers.heads import pooled_logits
from zoo.registry import Tensor, register

SMALL = 64  # pixels a side below which the stem keeps the resolution


def _conv(x, filters, size, stride, name, use_bias=False):
    """Convolution padded by size // 2 on every side, as torchvision and keras.applications do.

    "same" is that padding at stride 1; at stride 2 it would leave out the first row of an even image.
    """
    padding = "same" if stride == 1 else "valid"
    if size > 1 and stride > 1:
        x = layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
    return layers.Conv2D(filters, size, stride, padding, use_bias=use_bias, kernel_initializer="he_normal", name=name)(
        x
    )


def _norm(x, name, epsilon=1e-5, relu=True):
    x = layers.BatchNormalization(momentum=0.9, epsilon=epsilon, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def _stem(x, input_shape, stem, filters, **conv):
    """(batch, side, side, channels) -> (batch, side / 2, side / 2, filters), or the same side for small images."""
    small = stem == "small" or (stem == "auto" and min(input_shape[:2]) < SMALL)
    return _conv(x, filters, 3 if small else 7, 1 if small else 2, "stem_conv", **conv), small


def _pool(x):
    return layers.MaxPooling2D(3, 2, name="stem_pool")(layers.ZeroPadding2D(1, name="stem_pool_pad")(x))


def _check(stem, depth, width):
    if stem not in ("auto", "imagenet", "small"):
        raise ValueError(f"stem must be 'auto', 'imagenet' or 'small', got {stem!r}")
    if not depth or min(depth) < 1:
        raise ValueError(f"depth must hold at least one positive number of blocks, got depth={depth!r}")
    if width < 1:
        raise ValueError(f"width must be at least 1, got width={width!r}")


@register(
    "resnet50",
    task="image-classification",
    inputs={"image": Tensor("height", "width", "channels", unit="zero mean, unit variance")},
    paper="He, Zhang, Ren & Sun 2015",
    params=25_557_032,
    params_source="torchvision, timm",
    variants={
        "resnet18": dict(
            params=11_689_512,
            depth=(2, 2, 2, 2),
            bottleneck=False,
            weights={
                "timm": dict(
                    url="https://huggingface.co/timm/resnet18.a1_in1k/resolve/ebd61f9c7420e5b5b53262b8ce6bbe311e1e872a/model.safetensors",
                    checksum="sha256:80c49dee3da4822c009c5a7fe591e9223c5a2cfcf95a4067ca4dfb5a7b89c612",
                    licence="Apache-2.0, as the model card states",
                    inputs="torch",
                )
            },
        ),
        "resnet34": dict(
            params=21_797_672,
            depth=(3, 4, 6, 3),
            bottleneck=False,
            weights={
                "timm": dict(
                    url="https://huggingface.co/timm/resnet34.a1_in1k/resolve/601ed8a5ae6a24ba8ed1048847d860900c32273b/model.safetensors",
                    checksum="sha256:829a220f9529d2b1ffdc8719d3273463001e0daf411eaf1916865d9db62c0ed2",
                    licence="Apache-2.0, as the model card states",
                    inputs="torch",
                ),
            },
        ),
        "resnet101": dict(
            params=44_549_160,
            depth=(3, 4, 23, 3),
            weights={
                "keras": dict(
                    url="https://storage.googleapis.com/tensorflow/keras-applications/resnet/resnet101_weights_tf_dim_ordering_tf_kernels.h5",
                    checksum="md5:f1aeb4b969a6efcfb50fad2f0c20cfc5",
                    licence="MIT, as keras-applications states",
                    inputs="caffe",
                )
            },
        ),
        "resnet152": dict(
            params=60_192_808,
            depth=(3, 8, 36, 3),
            weights={
                "keras": dict(
                    url="https://storage.googleapis.com/tensorflow/keras-applications/resnet/resnet152_weights_tf_dim_ordering_tf_kernels.h5",
                    checksum="md5:100835be76be38e30d865e96f2aaae62",
                    licence="MIT, as keras-applications states",
                    inputs="caffe",
                )
            },
        ),
    },
    tiny=dict(input_shape=(8, 8, 3), classes=3, depth=(1, 1), width=4, bottleneck=True),
    aliases=("resnet",),
    data="digits",
    weights={
        "keras": dict(
            url="https://storage.googleapis.com/tensorflow/keras-applications/resnet/resnet50_weights_tf_dim_ordering_tf_kernels.h5",
            checksum="md5:2cb95161c43110f7111970584f804107",
            licence="MIT, as keras-applications states",
            inputs="caffe",
        ),
        "timm": dict(
            url="https://huggingface.co/timm/resnet50.a1_in1k/resolve/5d9e13b8fdab4d9718bcf2c8f5c3af01878367e8/model.safetensors",
            checksum="sha256:773525d5821de224f8f30c33377b7a795d7863e08522698200d3217d3f2a41bb",
            licence="Apache-2.0, as the model card states",
            inputs="torch",
        ),
    },
)
def resnet(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    depth: tuple[int, ...] = (3, 4, 6, 3),
    width: int = 64,
    bottleneck: bool = True,
    stem: str = "auto",
    stride_first: bool = False,
    dropout: float = 0.0,
) -> keras.Model:
    """Build a residual network of the first version.

    Args:
        input_shape: `(height, width, channels)` in pixels, any size.
        classes: number of logits.
        depth: blocks of each stage.
        width: filters of the stem and of the first stage's inner convolutions; they double with each stage.
        bottleneck: blocks of 1x1, 3x3, 1x1 convolutions with four times wider output, else of two 3x3.
        stem: "imagenet" (7x7 stride 2, pooling), "small" (3x3 stride 1), or "auto": small below 64 pixels a side.
        stride_first: the bottleneck's stride on its first convolution (keras.applications) rather than the 3x3.
        dropout: share of the features dropped in training, in [0, 1).

    Returns:
        Functional model, `(batch, height, width, channels) -> (batch, classes)` logits.

    Raises:
        ValueError: an argument is out of range.
    """
    _check(stem, depth, width)
    image = keras.Input(input_shape, name="image")
    x, small = _stem(image, input_shape, stem, width)
    x = _norm(x, "stem_conv")
    if not small:
        x = _pool(x)
    for stage, blocks in enumerate(depth):
        inner = width * 2**stage
        outer = inner * 4 if bottleneck else inner
        for block in range(blocks):
            name = f"stage{stage}_block{block}"
            stride = 2 if stage and not block else 1
            first = stride if stride_first or not bottleneck else 1
            y = _norm(_conv(x, inner, 1 if bottleneck else 3, first, f"{name}_conv0"), f"{name}_conv0")
            y = _conv(y, inner, 3, stride // first, f"{name}_conv1")
            if bottleneck:
                y = _conv(_norm(y, f"{name}_conv1"), outer, 1, 1, f"{name}_conv2")
            y = _norm(y, f"{name}_conv{2 if bottleneck else 1}", relu=False)
            if stride > 1 or x.shape[-1] != outer:
                x = _norm(_conv(x, outer, 1, stride, f"{name}_shortcut"), f"{name}_shortcut", relu=False)
            x = layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, y]))
    return keras.Model(image, pooled_logits(x, classes, dropout), name="resnet")


@register(
    "resnet50v2",
    task="image-classification",
    inputs={"image": Tensor("height", "width", "channels", unit="zero mean, unit variance")},
    paper="He, Zhang, Ren & Sun 2016",
    params=25_568_360,
    params_source="keras.applications",
    tiny=dict(input_shape=(8, 8, 3), classes=3, depth=(2, 1), width=4),
    data="digits",
    weights={
        "keras": dict(
            url="https://storage.googleapis.com/tensorflow/keras-applications/resnet/resnet50v2_weights_tf_dim_ordering_tf_kernels.h5",
            checksum="md5:3ef43a0b657b3be2300d5770ece849e0",
            licence="MIT, as keras-applications states",
            inputs="tf",
        )
    },
)
def resnet_v2(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    depth: tuple[int, ...] = (3, 4, 6, 3),
    width: int = 64,
    stem: str = "auto",
    dropout: float = 0.0,
) -> keras.Model:
    """Build a residual network of the second version, as keras.applications lays it out.

    Args:
        input_shape: `(height, width, channels)` in pixels, any size.
        classes: number of logits.
        depth: blocks of each stage; the last block of a stage, not the first of the next, halves the resolution.
        width: filters of the stem and of the first stage's inner convolutions; they double with each stage.
        stem: "imagenet" (7x7 stride 2, pooling), "small" (3x3 stride 1), or "auto": small below 64 pixels a side.
        dropout: share of the features dropped in training, in [0, 1).

    Returns:
        Functional model, `(batch, height, width, channels) -> (batch, classes)` logits.

    Raises:
        ValueError: an argument is out of range.
    """
    _check(stem, depth, width)
    image = keras.Input(input_shape, name="image")
    x, small = _stem(image, input_shape, stem, width, use_bias=True)
    if not small:
        x = _pool(x)
    for stage, blocks in enumerate(depth):
        inner = width * 2**stage
        for block in range(blocks):
            name = f"stage{stage}_block{block}"
            stride = 2 if block == blocks - 1 and stage < len(depth) - 1 else 1
            y = _norm(x, f"{name}_input", epsilon=1.001e-5)
            if block == 0:
                x = _conv(y, inner * 4, 1, stride, f"{name}_shortcut", use_bias=True)
            elif stride > 1:
                x = layers.MaxPooling2D(1, stride, name=f"{name}_shortcut_pool")(x)
            y = _norm(_conv(y, inner, 1, 1, f"{name}_conv0"), f"{name}_conv0", epsilon=1.001e-5)
            y = _norm(_conv(y, inner, 3, stride, f"{name}_conv1"), f"{name}_conv1", epsilon=1.001e-5)
            y = _conv(y, inner * 4, 1, 1, f"{name}_conv2", use_bias=True)
            x = layers.Add(name=f"{name}_add")([x, y])
    x = _norm(x, "final", epsilon=1.001e-5)
    return keras.Model(image, pooled_logits(x, classes, dropout), name="resnet_v2")
