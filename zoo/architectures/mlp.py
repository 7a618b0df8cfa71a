"""Multilayer perceptron: fully connected layers with ReLU.

Rumelhart, Hinton & Williams, "Learning representations by back-propagating errors", Nature 323 (1986) 533-536.
Departure: ReLU (Glorot et al. 2011) in place of the sigmoid.
"""

import keras
from keras import layers

from zoo.registry import Tensor, register


@register(
    "mlp",
    task=("classification", "image-classification", "regression"),
    inputs={"inputs": Tensor("features", unit="zero mean, unit variance")},
    paper="Rumelhart, Hinton & Williams 1986",
    params=109_386,
    params_source="784*128+128 + 128*64+64 + 64*10+10",
    variants={
        "mlp_shallow": dict(params=101_770, width=(128,)),
        "mlp_deep": dict(params=142_410, width=(128, 128, 128, 64)),
        "mlp_wide": dict(params=235_146, width=(256, 128)),
    },
    tiny=dict(input_shape=(4,), width=(6, 5), classes=3),
    data="digits",
)
def mlp(
    input_shape: tuple[int, ...] = (784,), width: tuple[int, ...] = (128, 64), classes: int = 10, dropout: float = 0.0
) -> keras.Model:
    """Build a multilayer perceptron.

    Args:
        input_shape: shape of one input, flattened first: `(features,)` or `(height, width, channels)`.
        width: units of each hidden layer.
        classes: number of logits, or of values to regress.
        dropout: share of hidden units dropped in training, in [0, 1).

    Returns:
        Functional model, `(batch, *input_shape) -> (batch, classes)` logits.

    Raises:
        ValueError: a width or `classes` is below 1, or `dropout` is outside [0, 1).
    """
    if not width or min(width) < 1:
        raise ValueError(f"width must hold at least one positive number of units, got width={width!r}")
    if classes < 1:
        raise ValueError(f"classes must be at least 1, got classes={classes}")
    inputs = keras.Input(input_shape, name="inputs")
    x = layers.Flatten(name="flatten")(inputs)
    for index, units in enumerate(width):
        last = index == len(width) - 1
        x = layers.Dense(units, name=f"hidden{index}")(x)
        x = layers.ReLU(name="features" if last else f"hidden{index}_relu")(x)
        if dropout:
            x = layers.Dropout(dropout, name=f"hidden{index}_dropout")(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name="mlp")
