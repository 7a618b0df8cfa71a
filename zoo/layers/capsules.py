"""Capsules: vectors whose direction says how something looks and whose length says whether it is there.

Sabour, Frosst & Hinton, "Dynamic Routing Between Capsules", NeurIPS 2017 (arXiv:1710.09829), equations 1 to 3.
"""

import math

import keras
from keras import layers, ops

EPSILON = 1e-7  # below a squared length, so that its root and logarithm have finite slopes


def squash(x):
    """Vectors along the last axis, shortened to a length below 1 (equation 1)."""
    squared = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return x * squared / ((1 + squared) * ops.sqrt(squared + EPSILON))


def route(votes, iterations):
    """What class capsules receive when capsules send their votes to the classes that agree with them (procedure 1).

    Args:
        votes: what each capsule says of each class, `(batch, classes, capsules, length)`.
        iterations: how often the shares are computed; 1 gives each class the same.

    Returns:
        Vectors `(batch, classes, length)` before they are squashed.
    """
    agreement = ops.zeros_like(votes[..., 0])  # (batch, classes, capsules)
    for iteration in range(iterations):
        received = ops.einsum("bji,bjik->bjk", ops.softmax(agreement, axis=1), votes)
        if iteration < iterations - 1:
            agreement = agreement + ops.einsum("bjik,bjk->bji", votes, squash(received))
    return received


@keras.saving.register_keras_serializable("zoo")
class Squash(layers.Layer):
    """Vectors along the last axis, shortened to a length below 1."""

    def call(self, x):
        return squash(x)


@keras.saving.register_keras_serializable("zoo")
class ClassCapsules(layers.Layer):
    """Log-odds of the length of one capsule per class: (batch, capsules, length) -> (batch, classes).

    A capsule that received s has the length |s|^2 / (1 + |s|^2), whose log-odds are log |s|^2.

    Args:
        classes: how many.
        length: values of each class capsule.
        iterations: of routing.
        hidden: units of the decoder's layers, () for none. The decoder belongs to the model, see `CapsuleNetwork`; that
            every copy of a graph may build it, its sizes are kept here.
        reconstruction: weight of the decoder's loss.
    """

    def __init__(self, classes, length, iterations, hidden=(), reconstruction=0.0, **kwargs):
        super().__init__(**kwargs)
        self.classes, self.length, self.iterations = classes, length, iterations
        self.hidden, self.reconstruction = tuple(hidden), reconstruction
        self.seen = None  # class capsules of the training step that runs

    def build(self, shape):
        # with equal shares the squared length received is then about that of a single capsule
        spread = self.classes / math.sqrt(shape[1] * self.length)
        self.kernel = self.add_weight(
            (shape[1], shape[2], self.length, self.classes), keras.initializers.RandomNormal(0, spread), name="kernel"
        )

    def received(self, x):
        """What each class capsule receives, (batch, classes, length)."""
        return route(ops.einsum("bid,idkj->bjik", x, self.kernel), self.iterations)

    def call(self, x, training=None):
        received = self.received(x)
        self.seen = squash(received) if training else None
        return ops.log(ops.sum(ops.square(received), axis=-1) + EPSILON)

    def get_config(self):
        own = ("classes", "length", "iterations", "hidden", "reconstruction")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}
