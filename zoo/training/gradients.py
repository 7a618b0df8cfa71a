"""Gradients of a model's loss, the one file that knows which backend runs."""

import keras


def gradients(model, loss, x, y, training=False):
    """Loss and its gradient for each trainable weight.

    Args:
        model: built Keras model.
        loss: callable `(targets, outputs) -> scalar tensor`.
        x: model input, `(batch, ...)` float32.
        y: targets as the loss takes them.
        training: mode of dropout and batch statistics; what these keep may move in training mode.

    Returns:
        The loss as float and a list of numpy arrays, in the order of `model.trainable_variables`.
    """
    backend = keras.backend.backend()
    variables = model.trainable_variables
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=training))
        slopes = tape.gradient(value, [v.value for v in variables], unconnected_gradients="zero")
    elif backend == "jax":
        import jax

        def of_weights(weights):
            outputs, _ = model.stateless_call(
                weights, [v.value for v in model.non_trainable_variables], x, training=training
            )
            return loss(y, outputs)

        value, slopes = jax.value_and_grad(of_weights)([v.value for v in variables])
    else:
        import torch

        value = loss(y, model(x, training=training))
        slopes = torch.autograd.grad(value, [v.value for v in variables], allow_unused=True)
        slopes = [torch.zeros_like(v.value) if s is None else s for v, s in zip(variables, slopes, strict=True)]
    return float(keras.ops.convert_to_numpy(value)), [keras.ops.convert_to_numpy(s) for s in slopes]


def input_gradients(model, objective, x, y):
    """Each row's objective and its gradient for that row, in inference mode of dropout and batch statistics.

    Works on backend tensors as on numpy arrays, so that it can stand inside compiled code: in a training step, in a
    `keras.StatelessScope`, or in a function given to `compiled`.

    Args:
        model: built Keras model of one input.
        objective: callable `(y, outputs) -> (batch,)`.
        x: model input, `(batch, ...)` float32.
        y: what the objective compares with.

    Returns:
        Objectives `(batch,)` and gradients in the shape of `x`, both tensors of the backend.
    """
    backend = keras.backend.backend()
    x = keras.ops.convert_to_tensor(x)
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            values = objective(y, model(x, training=False))
        return values, tape.gradient(values, x, unconnected_gradients="zero")
    if backend == "jax":
        import jax

        weights = [v.value for v in model.trainable_variables], [v.value for v in model.non_trainable_variables]

        def total(x):
            outputs, _ = model.stateless_call(*weights, x, training=False)
            values = objective(y, outputs)
            return keras.ops.sum(values), values

        (_, values), slopes = jax.value_and_grad(total, has_aux=True)(x)
        return values, slopes
    import torch

    x = x.detach().requires_grad_()
    values = objective(y, model(x, training=False))
    (slopes,) = torch.autograd.grad(values.sum(), [x])
    return values.detach(), slopes


def compiled(function, model):
    """A function of arrays that reads the model's variables and changes none, compiled where the backend compiles.

    The weights are read at each call, so it stays right when the model is trained further.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=False)
    if backend == "jax":
        import jax

        variables = model.variables

        @jax.jit
        def pure(values, *arrays):
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                return function(*arrays)

        return lambda *arrays: pure([v.value for v in variables], *arrays)
    return function
