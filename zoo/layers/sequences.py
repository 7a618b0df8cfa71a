"""Where a sequence ends: rows of different lengths stand in one array, and the mask of Keras says which steps count."""

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable("zoo")
class Steps(layers.Layer):
    """NaN to 0 in a series (batch, time, columns), with a mask (batch, time) of the steps that are not NaN throughout."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, x):
        return ops.where(ops.isnan(x), ops.zeros_like(x), x)

    def compute_mask(self, x, mask=None):
        return ops.logical_not(ops.all(ops.isnan(x), axis=-1))

    def compute_output_shape(self, shape):
        return shape


@keras.saving.register_keras_serializable("zoo")
class OwnScale(layers.Layer):
    """A series (batch, time, columns) by its own mean and standard deviation, and both of its first column, each (batch, 1).

    Steps that are NaN do not count and stay NaN.

    Source: Kim et al. 2022, "Reversible Instance Normalization for Accurate Time-Series Forecasting against Distribution
    Shift", section 3.2, without the learned scale.
    """

    def call(self, x):
        known = ops.logical_not(ops.isnan(x))
        count = ops.maximum(ops.sum(ops.cast(known, x.dtype), axis=1, keepdims=True), 1.0)
        zero = ops.zeros_like(x)
        mean = ops.sum(ops.where(known, x, zero), axis=1, keepdims=True) / count  # (batch, 1, columns)
        gap = ops.where(known, x - mean, zero)
        spread = ops.sqrt(ops.sum(ops.square(gap), axis=1, keepdims=True) / count + 1e-5)
        return (x - mean) / spread, mean[:, 0, :1], spread[:, 0, :1]


@keras.saving.register_keras_serializable("zoo")
class OwnLevel(layers.Layer):
    """Values (batch, outputs) back from the scale of `OwnScale`: times its second, plus its first number of each row.

    No layer of Keras does that: with as many rows as outputs, its addition on TensorFlow takes (batch, 1) for a bias.
    """

    def call(self, x, mean, spread):
        return x * spread + mean


@keras.saving.register_keras_serializable("zoo")
class TokenEmbedding(layers.Embedding):
    """A learned vector for each token: int (batch, length) -> (batch, length, units), with a mask of those that are not `pad`.

    Keras' own embedding has a mask for the padding 0 alone.
    """

    def __init__(self, vocabulary, units, pad=0, **kwargs):
        kwargs = {key: value for key, value in kwargs.items() if key not in ("input_dim", "output_dim", "mask_zero")}
        super().__init__(vocabulary, units, **kwargs)
        self.pad = pad
        self.supports_masking = True

    def compute_mask(self, tokens, mask=None):
        return ops.not_equal(tokens, self.pad)

    def get_config(self):
        return {**super().get_config(), "vocabulary": self.input_dim, "units": self.output_dim, "pad": self.pad}
