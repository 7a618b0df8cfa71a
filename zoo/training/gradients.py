"""Gradients of a model for its weights and its inputs, the one file that knows which backend runs."""

import itertools

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
