"""Gradients of a model for its weights and its inputs, the one file that knows which backend runs."""

import itertools

import keras
import numpy as np

from zoo.training.learners import loss_of


def gradients(model, loss, x, y, training=False):
    """Loss and its gradient for each trainable weight; the model stays as it is.

    Args:
        model, loss, x, y, training: as of `zoo.training.learners.loss_of`.

    Returns:
        The loss as float and a list of numpy arrays, in the order of `model.trainable_variables`.
    """
    backend = keras.backend.backend()
    variables = model.trainable_variables
    others = model.non_trainable_variables if training and backend != "jax" else ()
    kept = [np.array(keras.ops.convert_to_numpy(variable)) for variable in others]  # batch statistics and seeds
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = loss_of(model, loss, x, y, training)
        slopes = tape.gradient(value, [v.value for v in variables], unconnected_gradients="zero")
    elif backend == "jax":
        import jax

        def of_weights(weights):
            held = list(zip(variables, weights, strict=True))
            with keras.StatelessScope(state_mapping=held, collect_losses=True):
                return loss_of(model, loss, x, y, training)

        value, slopes = jax.value_and_grad(of_weights)([v.value for v in variables])
    else:
        import torch

        value = loss_of(model, loss, x, y, training)
        slopes = torch.autograd.grad(value, [v.value for v in variables], allow_unused=True)
        slopes = [torch.zeros_like(v.value) if s is None else s for v, s in zip(variables, slopes, strict=True)]
    for variable, before in zip(others, kept, strict=True):
        variable.assign(before)
    return float(keras.ops.convert_to_numpy(value)), [keras.ops.convert_to_numpy(s) for s in slopes]


def input_gradients(model, function, points):
    """What a function of rows gives, and the gradient of each row's value for that row.

    Works on backend tensors as on numpy arrays, so that it can stand inside compiled code: in a training step, in a
    `keras.StatelessScope`, or in a function given to `compiled`. Variables that `function` changes keep their values
    on JAX, so it should call the model in inference mode.

    Args:
        model: Keras model that `function` calls.
        function: points -> (values `(batch,)`, further tensors to look at or None); a value may depend on its own row
            alone.
        points: a tensor `(batch, ...)`, or a list of them.

    Returns:
        The values, gradients in the shapes of the points, and the further tensors, all tensors of the backend.
    """
    backend = keras.backend.backend()
    points = keras.tree.map_structure(keras.ops.convert_to_tensor, points)
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(points)
            values, seen = function(points)
        return values, tape.gradient(values, points, unconnected_gradients="zero"), seen
    if backend == "jax":
        import jax

        held = [(variable, variable.value) for variable in model.variables]

        def total(points):
            with keras.StatelessScope(state_mapping=held):
                values, seen = function(points)
            return keras.ops.sum(values), (values, seen)

        (_, (values, seen)), slopes = jax.value_and_grad(total, has_aux=True)(points)
        return values, slopes, seen
    import torch

    points = keras.tree.map_structure(lambda point: point.detach().requires_grad_(), points)
    values, seen = function(points)
    flat = keras.tree.flatten(points)
    slopes = torch.autograd.grad(values.sum(), flat, allow_unused=True) if values.requires_grad else [None] * len(flat)
    slopes = [torch.zeros_like(x) if slope is None else slope for x, slope in zip(flat, slopes, strict=True)]
    return values.detach(), keras.tree.pack_sequence_as(points, slopes), seen


def compiled(function, model, reused=True, after=0):
    """A function of arrays that reads the model's variables and changes none, compiled where that pays.

    The weights are read at each call, so it stays right when the model is trained further.

    Args:
        function: of arrays or lists of them; each new shape is compiled anew.
        model: whose variables it reads.
        reused: False for a function of few calls, which TensorFlow has run before it could have compiled it. JAX
            compiles it anyway, since its single operations are compiled too.
        after: calls that TensorFlow runs as they are before it compiles, where nobody knows how many there will be;
            different numbers of rows then share what is compiled.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow" and reused:
        import tensorflow as tf

        fast = tf.function(function, jit_compile=False, reduce_retracing=after > 0)
        calls = itertools.count()

        def either(*arrays):
            return (function if next(calls) < after else fast)(*arrays)

        return either if after else fast
    if backend == "jax":
        import jax

        variables = model.variables

        @jax.jit
        def pure(values, *arrays):
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                return function(*arrays)

        return lambda *arrays: pure([v.value for v in variables], *arrays)
    return function
