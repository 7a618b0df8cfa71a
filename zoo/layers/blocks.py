"""The block of a transformer that normalises first, and the steps between the layers of others."""

import keras
from keras import layers

from zoo.layers.attention import Attention


def norm(x, epsilon, name):
    """Each place's vector with mean 0 and variance 1, then scaled and moved as learned."""
    return layers.LayerNormalization(epsilon=epsilon, name=name)(x)


def dropped(x, dropout, name):
    """x, in training without a share `dropout` of it; no layer where that is 0."""
    return layers.Dropout(dropout, name=f"{name}_dropout")(x) if dropout else x


def pre_norm(x, heads, hidden, name, *, activation, causal=True, epsilon=1e-5, dropout=0.0, deviations=None):
    """Attention and two dense layers, each on a normalised copy that is added to x: (batch, length, width) in and out.

    Args:
        heads: of the attention.
        hidden: units of the first dense layer behind it.
        name: in front of those of the layers.
        activation: of that dense layer.
        causal: whether a place sees those before it alone.
        epsilon: of the normalisations.
        dropout: share that is left out of what is added, and of the attention.
        deviations: of weights at the start: of queries, keys and values, of `hidden`, and of what is added to x; None for
            uniform ones by the number of inputs and outputs (Glorot).

    Source: Radford et al. 2019, section 2.3.
    """

    def dense(x, units, part, kind, activation=None):
        start = keras.initializers.RandomNormal(stddev=deviations[kind]) if deviations else "glorot_uniform"
        return layers.Dense(units, activation=activation, kernel_initializer=start, name=f"{name}_{part}")(x)

    width = x.shape[-1]
    y = norm(x, epsilon, f"{name}_norm0")
    parts = [dense(y, width, part, 0) for part in ("query", "key", "value")]
    y = Attention(heads, causal=causal, dropout=dropout, name=f"{name}_attention")(*parts)
    y = dense(y, width, "mixed", 2)
    x = layers.Add(name=f"{name}_add0")([x, dropped(y, dropout, f"{name}_mixed")])
    y = norm(x, epsilon, f"{name}_norm1")
    y = dense(y, hidden, "hidden", 1, activation)
    y = dense(y, width, "output", 2)
    return layers.Add(name=f"{name}_add1")([x, dropped(y, dropout, f"{name}_output")])
