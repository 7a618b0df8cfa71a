"""What each layer of a model costs: parameters and multiply-accumulates (MACs) of one forward pass.

Only convolutions, products with a kernel and the like are counted, as torchvision, timm and the papers do:
normalisation, activations, pooling and additions count as zero. One MAC is two floating point operations, though
many tables call it one FLOP.
"""

import math
from typing import NamedTuple

import keras
from keras import layers


class Cost(NamedTuple):
    """One call of one layer.

    Attributes:
        layer: name; a layer inside a nested model is `outer/inner`.
        kind: class of the layer.
        output_shape: without the batch axis, None where unknown.
        params: scalars in all weights, trained or not; 0 from a shared layer's second call on.
        macs: multiply-accumulates for one example, None where this module cannot count the layer.
    """

    layer: str
    kind: str
    output_shape: tuple[int | None, ...]
    params: int
    macs: int | None


def cost(model: keras.Model) -> list[Cost]:
    """What each call of each layer costs for one example, in graph order.

    Args:
        model: functional or sequential model, with every spatial size known.

    Returns:
        One row per call.

    Raises:
        TypeError: the model is not functional, so its layers have no known order or shapes.
    """
    return list(_rows(graph(model), "", set()))


def macs(model: keras.Model) -> int:
    """Multiply-accumulates of one forward pass over one example.

    Args:
        model: functional or sequential model, with every spatial size known.

    Raises:
        TypeError: the model is not functional.
        ValueError: a layer's cost is not known to this module.
    """
    rows = cost(model)
    unknown = [f"{row.layer!r} ({row.kind})" for row in rows if row.macs is None]
    if unknown:
        raise ValueError(
            f"cannot count the multiply-accumulates of {', '.join(unknown)}; sum the other rows of cost(model)"
        )
    return sum(row.macs for row in rows)


def graph(model: keras.Model) -> keras.Model:
    """The plain functional model, not compiled, over the same layers.

    Raises:
        TypeError: the model is not functional.
    """
    if isinstance(model, keras.Sequential) and model.built:
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    if not hasattr(model, "_nodes_by_depth"):
        raise TypeError(
            f"model must be functional or a built Sequential, got {type(model).__name__}; "
            "call its layers on a keras.Input and make keras.Model(inputs, outputs)"
        )
    return keras.Model(model.input, model.output, name=model.name)


def calls(model):
    """Each `(layer, input tensors, output tensors)` of what `graph` returned, in the order they run."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            yield node.operation, list(node.input_tensors), list(node.outputs)


def _rows(model, prefix, seen):
    for layer, inputs, outputs in calls(model):
        name = prefix + layer.name
        if isinstance(layer, keras.Model):
            yield from _rows(graph(layer), f"{name}/", seen)
            continue
        weights = () if id(layer) in seen else getattr(layer, "weights", ())
        seen.add(id(layer))
        shape = tuple(outputs[0].shape[1:])
        params = sum(math.prod(weight.shape) for weight in weights)
        yield Cost(name, type(layer).__name__, shape, params, _macs(layer, inputs, shape))


def _macs(layer, inputs, output_shape):
    """Multiply-accumulates of one call, None if unknown."""
    spatial = output_shape[:-1] if getattr(layer, "data_format", None) != "channels_first" else output_shape[1:]
    try:
        match layer:
            case layers.Conv1DTranspose() | layers.Conv2DTranspose() | layers.Conv3DTranspose():
                shape = inputs[0].shape[1:-1] if layer.data_format == "channels_last" else inputs[0].shape[2:]
                return math.prod(layer.kernel.shape) * math.prod(shape)
            case layers.SeparableConv1D() | layers.SeparableConv2D():
                kernels = math.prod(layer.depthwise_kernel.shape) + math.prod(layer.pointwise_kernel.shape)
                return kernels * math.prod(spatial)
            case (
                layers.Conv1D()
                | layers.Conv2D()
                | layers.Conv3D()
                | layers.DepthwiseConv1D()
                | layers.DepthwiseConv2D()
            ):
                return math.prod(layer.kernel.shape) * math.prod(spatial)
            case layers.Dense():
                return math.prod(layer.kernel.shape) * math.prod(output_shape[:-1])
            case layers.Embedding():
                return 0
    except TypeError:  # a size that is not known before the model runs
        return None
    products = {"Matmul", "Dot", "Einsum", "Tensordot", "Attention", "AdditiveAttention"}
    matrices = any(len(weight.shape) > 1 for weight in getattr(layer, "weights", ()))
    return None if matrices or type(layer).__name__ in products else 0
