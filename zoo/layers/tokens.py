"""What turns the maps of an image into a sequence for a transformer: learned positions, and a token for the class."""

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable("zoo")
class Positions(layers.Layer):
    """Adds a learned vector to each place of a map: (batch, rows, columns, width) in and out.

    Its weight `grid` (rows, columns, width) starts as the authors of ViT have it: normal, standard deviation 0.02.
    """

    def build(self, shape):
        start = keras.initializers.RandomNormal(stddev=0.02)
        self.grid = self.add_weight(shape=shape[1:], initializer=start, name="grid")

    def call(self, x):
        return x + self.grid


@keras.saving.register_keras_serializable("zoo")
class ClassToken(layers.Layer):
    """Puts a learned vector in front of each sequence: (batch, length, width) -> (batch, 1 + length, width).

    The vector is the sum of its weights `token`, which starts at 0, and `position`, the token's own place, both (width,).
    """

    def build(self, shape):
        start = keras.initializers.RandomNormal(stddev=0.02)
        self.token = self.add_weight(shape=shape[-1:], initializer="zeros", name="token")
        self.position = self.add_weight(shape=shape[-1:], initializer=start, name="position")

    def call(self, x):
        first = ops.zeros_like(x[:, :1]) + (self.token + self.position)  # (batch, 1, width)
        return ops.concatenate([first, x], axis=1)
