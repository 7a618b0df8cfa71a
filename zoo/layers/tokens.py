"""What transformers read: what turns maps of an image into a sequence, and what tells them about tokens of a text."""

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


@keras.saving.register_keras_serializable("zoo")
class Present(layers.Layer):
    """Which places hold a token, and no padding: whole numbers (batch, length) -> bool (batch, length).

    Args:
        pad: number that stands for padding.
    """

    def __init__(self, pad: int = 0, **kwargs) -> None:
        super().__init__(**kwargs)
        self.pad = pad

    def call(self, tokens):
        return ops.not_equal(tokens, self.pad)

    def compute_output_spec(self, tokens):
        return keras.KerasTensor(tokens.shape, "bool")

    def get_config(self):
        return {**super().get_config(), "pad": self.pad}


@keras.saving.register_keras_serializable("zoo")
class Segments(layers.Layer):
    """Which part of a text each token is in: whole numbers (batch, length) -> int32 (batch, length).

    A part ends with a separator, which belongs to it; whatever follows the last part but one is in the last one.

    Args:
        separator: number of the token that ends a part; -1 where there is none, so that all tokens are in part 0.
        parts: how many are told apart.
    """

    def __init__(self, separator: int, parts: int = 2, **kwargs) -> None:
        super().__init__(**kwargs)
        self.separator, self.parts = separator, parts

    def call(self, tokens):
        ends = ops.cast(ops.equal(tokens, self.separator), "int32")
        return ops.minimum(ops.cumsum(ends, axis=1) - ends, self.parts - 1)

    def compute_output_spec(self, tokens):
        return keras.KerasTensor(tokens.shape, "int32")

    def get_config(self):
        return {**super().get_config(), "separator": self.separator, "parts": self.parts}


@keras.saving.register_keras_serializable("zoo")
class FirstToken(layers.Layer):
    """The vector at the first place: (batch, length, width) -> (batch, width)."""

    def call(self, x):
        return x[:, 0]

    def compute_output_spec(self, x):
        return keras.KerasTensor((x.shape[0], x.shape[-1]), x.dtype)


@keras.saving.register_keras_serializable("zoo")
class TokenOf(layers.Layer):
    """The vector where a token first stands, the last where it is missing: (batch, length, width) -> (batch, width).

    It is called with the vectors and the tokens, whole numbers (batch, length).

    Args:
        number: of the token that is looked for.
    """

    def __init__(self, number: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.number = number

    def call(self, x, tokens):
        found = ops.cumsum(ops.cast(ops.equal(tokens, self.number), "int32"), axis=1)
        before = ops.sum(ops.cast(ops.equal(found, 0), "int32"), axis=1, keepdims=True)  # how many stand in front of it
        place = ops.minimum(before, ops.shape(tokens)[1] - 1)
        return ops.take_along_axis(x, place[..., None], axis=1)[:, 0]

    def compute_output_spec(self, x, tokens):
        return keras.KerasTensor((x.shape[0], x.shape[-1]), x.dtype)

    def get_config(self):
        return {**super().get_config(), "number": self.number}
