"""Logistic regression: one linear layer, the baseline that any network has to beat.

Cox, "The regression analysis of binary sequences", Journal of the Royal Statistical Society B 20 (1958) 215-242;
several classes by the softmax. With one output and a squared loss it is linear regression.
"""

import keras
from keras import layers

from zoo.registry import Tensor, register


@register(
    "logistic_regression",
    task=("classification", "image-classification", "regression"),
    inputs={"inputs": Tensor("features", unit="zero mean, unit variance")},
    paper="Cox 1958",
    params=62,
    params_source="30*2 + 2",
    tiny=dict(input_shape=(4,), classes=3),
    data="breast_cancer",
    recipe=dict(learning_rate=0.03, epochs=60),
)
def logistic_regression(input_shape: tuple[int, ...] = (30,), classes: int = 2) -> keras.Model:
    """Build a linear classifier, or a linear regression with `classes=1`.

    Args:
        input_shape: shape of one input, flattened first: `(features,)` or `(height, width, channels)`.
        classes: number of logits, or of values to regress.

    Returns:
        Functional model, `(batch, *input_shape) -> (batch, classes)` logits.

    Raises:
        ValueError: `classes` is below 1.
    """
    if classes < 1:
        raise ValueError(f"classes must be at least 1, got classes={classes}")
    inputs = keras.Input(input_shape, name="inputs")
    features = layers.Flatten(name="flatten")(inputs)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(features), name="logistic_regression")
