"""Activations that Keras has no name for."""

import keras


@keras.saving.register_keras_serializable("zoo")
def gelu_tanh(x):
    """GELU as GPT-2 has it, 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))); Keras' own `gelu` is the exact one.

    Source: Hendrycks & Gimpel 2016 (arXiv:1606.08415), section 2.
    """
    return keras.activations.gelu(x, approximate=True)


@keras.saving.register_keras_serializable("zoo")
def gelu_sigmoid(x):
    """GELU as CLIP has it, x * sigmoid(1.702 x).

    Source: Hendrycks & Gimpel 2016 (arXiv:1606.08415), section 2.
    """
    return x * keras.ops.sigmoid(1.702 * x)
