"""Losses by name; all take one-hot or real targets `(batch, outputs)` and raw outputs of the same shape."""

import keras
from keras import losses, ops

from zoo.registry import suggest


@keras.saving.register_keras_serializable("zoo")
class PerceptronCriterion(losses.Loss):
    """How far the best wrong class is ahead of the true one, 0 where the true class leads (Rosenblatt 1958).

    A tie counts as a mistake, so that learning starts from zero weights.
    """

    def call(self, y_true, y_pred):
        true = ops.sum(y_true * y_pred, axis=-1)  # (batch,)
        best_wrong = ops.max(y_pred - 1e9 * y_true, axis=-1)  # (batch,)
        return ops.where(best_wrong >= true, best_wrong - true, 0.0)


LOSSES = {
    "cross_entropy": lambda smoothing: losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing),
    "binary_cross_entropy": lambda smoothing: losses.BinaryCrossentropy(from_logits=True, label_smoothing=smoothing),
    "focal": lambda smoothing: losses.CategoricalFocalCrossentropy(from_logits=True, label_smoothing=smoothing),
    "perceptron": lambda smoothing: PerceptronCriterion(name="perceptron"),
    "mean_squared_error": lambda smoothing: losses.MeanSquaredError(),
    "mean_absolute_error": lambda smoothing: losses.MeanAbsoluteError(),
    "huber": lambda smoothing: losses.Huber(),
}


def get(name: str, label_smoothing: float = 0.0) -> losses.Loss:
    """The Keras loss of that name.

    Raises:
        ValueError: no such loss.
    """
    if name not in LOSSES:
        raise ValueError(f"there is no loss {name!r}; losses are {', '.join(LOSSES)}.{suggest(name, LOSSES)}")
    return LOSSES[name](label_smoothing)
