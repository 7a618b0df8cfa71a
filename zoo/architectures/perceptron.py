"""Perceptron: a linear threshold unit that changes its weights on mistakes alone.

Rosenblatt, "The Perceptron: A Probabilistic Model for Information Storage and Organization in the Brain",
Psychological Review 65 (1958) 386-408. Its rule is the gradient of the perceptron criterion (the loss declared
here): with batches of one and plain SGD at rate 1, a mistaken example is added to the weights of its class and
subtracted from those of the class that won. Departure: one weight vector per class, so that it takes any number of
classes (Duda & Hart's Kesler construction); with two classes the difference of the vectors is Rosenblatt's unit.
"""

import keras
from keras import layers

from zoo.registry import Tensor, register


@register(
    "perceptron",
    task=("classification", "image-classification"),
    inputs={"inputs": Tensor("features", unit="zero mean, unit variance")},
    paper="Rosenblatt 1958",
    params=62,
    params_source="30*2 + 2",
    tiny=dict(input_shape=(4,), classes=3),
    data="breast_cancer",
    recipe=dict(loss="perceptron", optimizer="sgd", learning_rate=1.0, schedule="constant", batch_size=1),
)
def perceptron(input_shape: tuple[int, ...] = (30,), classes: int = 2) -> keras.Model:
    """Build a perceptron; its weights start at zero, as the rule has it.

    Args:
        input_shape: shape of one input, flattened first: `(features,)` or `(height, width, channels)`.
        classes: number of scores, at least 2.

    Returns:
        Functional model, `(batch, *input_shape) -> (batch, classes)` scores; the largest is the answer.

    Raises:
        ValueError: `classes` is below 2.
    """
    if classes < 2:
        raise ValueError(f"classes must be at least 2, got classes={classes}; a perceptron separates classes")
    inputs = keras.Input(input_shape, name="inputs")
    features = layers.Flatten(name="flatten")(inputs)
    scores = layers.Dense(classes, kernel_initializer="zeros", name="logits")(features)
    return keras.Model(inputs, scores, name="perceptron")
