"""VGG: stages of 3x3 convolutions, each followed by a pooling, and three fully connected layers.

Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015 (arXiv:1409.1556),
table 1, configurations A, B, D and E. Departures: the map that the fully connected layers read is averaged to 7x7 places,
as torchvision does, where the paper crops or rescales every image to 224 pixels; and no dropout unless it is asked for.
"""

import keras
from keras import layers

from zoo.layers.pooling import GridAverage
from zoo.registry import Tensor, register

GRID = 7  # places a side that the fully connected layers read, of images of 224 pixels


@register(
    "vgg16",
    task="image-classification",
    inputs={"image": Tensor("height", "width", "channels", unit="zero mean, unit variance")},
    paper="Simonyan & Zisserman 2014",
    params=138_357_544,
    params_source="keras.applications, torchvision",
    variants={
        "vgg11": dict(
            params=132_863_336,
            depth=(1, 1, 2, 2, 2),
            weights={
                "timm": dict(
                    url="https://huggingface.co/timm/vgg11.tv_in1k/resolve/38b46049b490ec2bdb6d4d32b8354c74977f3347/model.safetensors",
                    checksum="sha256:682c023808812148d4e60c76d80ad83dbeaf5d50eb1a952a0b836895003151e5",
                    licence="BSD-3-Clause, as the model card states",
                    inputs="torch",
                ),
            },
        ),
        "vgg13": dict(
            params=133_047_848,
            depth=(2, 2, 2, 2, 2),
            weights={
                "timm": dict(
                    url="https://huggingface.co/timm/vgg13.tv_in1k/resolve/main/model.safetensors",
                    checksum="",
                    licence="BSD-3-Clause, as the model card states",
                    inputs="torch",
                ),
            },
        ),
        "vgg19": dict(
            params=143_667_240,
            depth=(2, 2, 4, 4, 4),
            weights={
                "keras": dict(
                    url="https://storage.googleapis.com/tensorflow/keras-applications/vgg19/vgg19_weights_tf_dim_ordering_tf_kernels.h5",
                    checksum="md5:cbe5617147190e668d6c5d5026f83318",
                    licence="Creative Commons Attribution 4.0, as keras.applications passes on from the University of Oxford",
                    inputs="caffe",
                )
            },
        ),
    },
    tiny=dict(input_shape=(8, 8, 3), classes=3, depth=(1, 2), width=4, hidden=(6, 5)),
    data="digits",
    weights={
        "keras": dict(
            url="https://storage.googleapis.com/tensorflow/keras-applications/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels.h5",
            checksum="md5:64373286793e3c8b2b4e3219cbf3544b",
            licence="Creative Commons Attribution 4.0, as keras.applications passes on from the University of Oxford",
            inputs="caffe",
        )
    },
)
def vgg(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    depth: tuple[int, ...] = (2, 2, 3, 3, 3),
    width: int = 64,
    hidden: tuple[int, int] = (4096, 4096),
    grid: int = 0,
    dropout: float = 0.0,
) -> keras.Model:
    """Build a VGG network.

    Args:
        input_shape: `(height, width, channels)` in pixels, at least 2 to the power of the stages a side.
        classes: number of logits.
        depth: convolutions of each stage.
        width: filters of the first stage; they double with each stage, up to eight times.
        hidden: units of the two fully connected layers before the logits.
        grid: places a side of the map that these read: a larger map is averaged, a smaller one repeated. 0 is 7, as of an
            image of 224 pixels, and takes a smaller map as it is.
        dropout: share of the units dropped after each fully connected layer in training, in [0, 1); 0.5 in the paper.

    Returns:
        Functional model, `(batch, height, width, channels) -> (batch, classes)` logits.

    Raises:
        ValueError: an image is too small for the poolings, or another argument is out of range.
    """
    if not depth or min(depth) < 1:
        raise ValueError(f"depth must hold at least one positive number of convolutions, got depth={depth!r}")
    if len(hidden) != 2 or min(hidden) < 1:
        raise ValueError(f"hidden must be two positive numbers of units, got hidden={hidden!r}")
    if grid < 0 or width < 1:
        raise ValueError(f"grid must be at least 0 and width at least 1, got grid={grid!r}, width={width!r}")
    if min(input_shape[:2]) < 2 ** len(depth):
        raise ValueError(
            f"input_shape must be at least {2 ** len(depth)} pixels a side for {len(depth)} poolings, got {input_shape!r}; "
            "resize the images, or pass a depth of fewer stages"
        )
    image = keras.Input(input_shape, name="image")
    x = image
    for stage, convolutions in enumerate(depth):
        for index in range(convolutions):
            x = layers.Conv2D(
                width * min(2**stage, 8),
                3,
                padding="same",
                activation="relu",
                kernel_initializer="he_normal",
                name=f"stage{stage}_conv{index}",
            )(x)
        x = layers.MaxPooling2D(2, name=f"stage{stage}_pool")(x)
    height, width_left = x.shape[1:3]
    places = (grid, grid) if grid else (min(GRID, height), min(GRID, width_left))
    if places != (height, width_left):
        x = GridAverage(places, name="pool")(x)
    x = layers.Flatten(name="flatten")(x)
    for units, name in zip(hidden, ("hidden", "features"), strict=True):
        x = layers.Dense(units, activation="relu", kernel_initializer="he_normal", name=name)(x)
        if dropout:
            x = layers.Dropout(dropout, name=f"{name}_dropout")(x)
    return keras.Model(image, layers.Dense(classes, name="logits")(x), name="vgg")
