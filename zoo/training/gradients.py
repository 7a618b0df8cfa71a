"""Gradients of a model's loss, the one file that knows which backend runs."""

import keras


def gradients(model, loss, x, y):
    """Loss and its gradient for each trainable weight, in inference mode of dropout and batch statistics.

    Args:
        model: built Keras model.
        loss: callable `(targets, outputs) -> scalar tensor`.
        x: model input, `(batch, ...)` float32.
        y: targets as the loss takes them.

    Returns:
        The loss as float and a list of numpy arrays, in the order of `model.trainable_variables`.
    """
    backend = keras.backend.backend()
    variables = model.trainable_variables
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=False))
        slopes = tape.gradient(value, [v.value for v in variables], unconnected_gradients="zero")
    elif backend == "jax":
        import jax

        def of_weights(weights):
            outputs, _ = model.stateless_call(
                weights, [v.value for v in model.non_trainable_variables], x, training=False
            )
            return loss(y, outputs)

        value, slopes = jax.value_and_grad(of_weights)([v.value for v in variables])
    else:
        import torch

        value = loss(y, model(x, training=False))
        slopes = torch.autograd.grad(value, [v.value for v in variables], allow_unused=True)
        slopes = [torch.zeros_like(v.value) if s is None else s for v, s in zip(variables, slopes, strict=True)]
    return float(keras.ops.convert_to_numpy(value)), [keras.ops.convert_to_numpy(s) for s in slopes]
