"""LeNet-5: two convolutions with subsampling and three fully connected layers.

LeCun, Bottou, Bengio & Haffner, "Gradient-Based Learning Applied to Document Recognition", Proceedings of the IEEE
86 (1998) 2278-2324, figure 2. Departures, as in common use: every map of C3 sees every map of S2, plain average
pooling without its trainable coefficient, and a softmax over logits in place of the radial basis output.
"""

import keras
from keras import layers

from zoo.registry import Tensor, register


@register(
    "lenet",
    task="image-classification",
    inputs={"image": Tensor("height", "width", "channels", unit="zero mean, unit variance")},
    paper="LeCun, Bottou, Bengio & Haffner 1998",
    params=61_706,
    params_source="156 + 2,416 + 48,120 + 10,164 + 850",
    tiny=dict(input_shape=(8, 8, 1), width=(2, 3, 6, 5), classes=3),
    aliases=("cnn",),
    data="digits",
)
def lenet(
    input_shape: tuple[int, int, int] = (32, 32, 1),
    width: tuple[int, int, int, int] = (6, 16, 120, 84),
    classes: int = 10,
    dropout: float = 0.0,
) -> keras.Model:
    """Build LeNet-5 for images of at least 4 pixels a side.

    Args:
        input_shape: `(height, width, channels)` in pixels. The paper's unpadded 5x5 convolutions need 16 pixels a
            side; where they do not fit, they are padded and keep the size.
        width: maps of C1 and C3, units of C5 and F6.
        classes: number of logits.
        dropout: share of F6 dropped in training, in [0, 1).

    Returns:
        Functional model, `(batch, height, width, channels) -> (batch, classes)` logits.

    Raises:
        ValueError: a side is below 4 pixels.
    """
    side = min(input_shape[:2])
    if side < 4:
        raise ValueError(
            f"input_shape must be at least 4 pixels a side for two poolings, got {input_shape}; resize the images"
        )
    padding = "valid" if side >= 16 else "same"
    image = keras.Input(input_shape, name="image")
    x = image
    for index, maps in enumerate(width[:2]):
        x = layers.Conv2D(maps, 5, padding=padding, activation="tanh", name=f"stage{index}_conv")(x)
        x = layers.AveragePooling2D(2, name=f"stage{index}_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(width[2], activation="tanh", name="hidden0")(x)
    x = layers.Dense(width[3], activation="tanh", name="features")(x)
    if dropout:
        x = layers.Dropout(dropout, name="features_dropout")(x)
    return keras.Model(image, layers.Dense(classes, name="logits")(x), name="lenet")
