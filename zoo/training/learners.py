"""What is trained in a model's place, and how its loss on a batch is computed outside of a training step."""

import keras

from zoo import tasks


def computes_loss(model):
    """Whether a model says itself what its loss is, so that no function of targets and outputs does."""
    return type(model).compute_loss is not keras.Model.compute_loss


def loss_of(model, loss, x, y, training=False):
    """Loss of a model on a batch, a scalar tensor.

    Args:
        model: built Keras model.
        loss: callable `(targets, outputs) -> scalar tensor`; None for what the model's own training step would compute,
            penalties included: by the loss it is compiled with, or by what it says itself.
        x: model input, `(batch, ...)`.
        y: targets as the loss takes them.
        training: mode of dropout and batch statistics.
    """
    if loss is not None:
        return loss(y, model(x, training=training))
    x, y = keras.tree.map_structure(keras.ops.convert_to_tensor, (x, y))
    return model.compute_loss(x=x, y=y, y_pred=model(x, training=training), training=training)


def copy_to_train(model, data, recipe):
    """A copy of a model with its weights, and what is trained in the copy's place, see `zoo.tasks.Task.learner`."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy, tasks.get(data.signature.task).learner(copy, data, recipe)


def alike(network, outputs, *mixed):
    """A functional model of a network's class on the same layers, those beside its graph, such as a decoder, included.

    Args:
        network: functional Keras model.
        outputs: tensors of its graph that the new one gives.
        mixed: classes before the network's own.
    """
    functional = type(keras.Model(network.input, outputs))
    base = type(network) if isinstance(network, functional) else functional
    # the class' own __init__ would make new ones of what stands beside the graph
    kind = type(f"{base.__name__}InTraining", (*mixed, base), {"__init__": functional.__init__})
    model = kind(network.input, outputs, name=network.name)
    for name, part in vars(network).items():
        if isinstance(part, keras.Layer | keras.random.SeedGenerator) and name not in vars(model):
            setattr(model, name, part)
    return model
