"""Steps between the layers of a transformer's block."""

from keras import layers


def norm(x, epsilon, name):
    """Each place's vector with mean 0 and variance 1, then scaled and moved as learned."""
    return layers.LayerNormalization(epsilon=epsilon, name=name)(x)


def dropped(x, dropout, name):
    """x, in training without a share `dropout` of it; no layer where that is 0."""
    return layers.Dropout(dropout, name=f"{name}_dropout")(x) if dropout else x
