"""Losses by name; all take one-hot or real targets `(batch, …, outputs)` and raw outputs of the same shape."""

import keras
from keras import losses, ops

from zoo.registry import suggest


@keras.saving.register_keras_serializable("zoo")
class SoftDice(losses.Loss):
    """One minus the mean over classes of the soft Dice coefficient of each picture, in [0, 1).

    Source: Milletari et al. 2016, "V-Net" (arXiv:1606.04797), section 3, with the areas themselves in the denominator
    and not their squares, as in Sudre et al. 2017 (arXiv:1707.03237); one pixel is added to numerator and denominator,
    so that a class that is nowhere costs nothing. Pixels whose target is all zeros do not count.
    """

    def call(self, y_true, y_pred):
        space = tuple(range(1, len(y_pred.shape) - 1))
        known = ops.sum(y_true, axis=-1, keepdims=True)
        found = ops.softmax(y_pred, axis=-1) * known
        both = ops.sum(y_true * found, axis=space)  # (batch, classes)
        total = ops.sum(y_true, axis=space) + ops.sum(found, axis=space)
        return 1.0 - ops.mean((2.0 * both + 1.0) / (total + 1.0), axis=-1)


@keras.saving.register_keras_serializable("zoo")
class CrossEntropyAndDice(losses.Loss):
    """Cross-entropy of each pixel plus soft Dice of each picture (Isensee et al. 2021, nnU-Net, arXiv:1809.10486)."""

    def __init__(self, label_smoothing=0.0, **kwargs):
        super().__init__(**kwargs)
        self.label_smoothing = label_smoothing
        self._entropy = losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=label_smoothing, reduction=None
        )
        self._dice = SoftDice(reduction=None)

    def call(self, y_true, y_pred):
        entropy = self._entropy(y_true, y_pred)  # (batch, height, width)
        return ops.mean(entropy, axis=tuple(range(1, len(entropy.shape)))) + self._dice(y_true, y_pred)

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable("zoo")
class PerceptronCriterion(losses.Loss):
    """How far the best wrong class is ahead of the true one, 0 where the true class leads (Rosenblatt 1958).

    A tie counts as a mistake, so that learning starts from zero weights.
    """

    def call(self, y_true, y_pred):
        true = ops.sum(y_true * y_pred, axis=-1)  # (batch,)
        best_wrong = ops.max(y_pred - 1e9 * y_true, axis=-1)  # (batch,)
        return ops.where(best_wrong >= true, best_wrong - true, 0.0)


@keras.saving.register_keras_serializable("zoo")
class MarginLoss(losses.Loss):
    """How far the length of the true class's capsule is below 0.9, and those of the others above 0.1, squared.

    A raw output is the log-odds of a length. The others count half, so that they do not shrink all lengths at first.

    Source: Sabour, Frosst & Hinton, "Dynamic Routing Between Capsules" (arXiv:1710.09829), equation 4.
    """

    def call(self, y_true, y_pred):
        length = ops.sigmoid(y_pred)  # (batch, classes)
        there = y_true * ops.square(ops.relu(0.9 - length))
        absent = (1 - y_true) * ops.square(ops.relu(length - 0.1))
        return ops.sum(there + 0.5 * absent, axis=-1)  # (batch,)


LOSSES = {
    "cross_entropy": lambda smoothing: losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing),
    "binary_cross_entropy": lambda smoothing: losses.BinaryCrossentropy(from_logits=True, label_smoothing=smoothing),
    "focal": lambda smoothing: losses.CategoricalFocalCrossentropy(from_logits=True, label_smoothing=smoothing),
    "dice": lambda smoothing: SoftDice(name="dice"),
    "combined": lambda smoothing: CrossEntropyAndDice(smoothing, name="combined"),
    "perceptron": lambda smoothing: PerceptronCriterion(name="perceptron"),
    "margin": lambda smoothing: MarginLoss(name="margin"),
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
