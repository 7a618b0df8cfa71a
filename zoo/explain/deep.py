"""DeepLIFT and DeepSHAP on any layers: what an answer changed by is passed back as multipliers instead of gradients.

A row and a reference go through the model together. Linear layers pass gradients on. An activation passes on the
change of its result over the change of its input (the rescale rule). Whatever mixes several numbers otherwise, as a
pooling, a product, a normalisation, attention or a recurrent layer, passes on its gradient averaged along the line
between the two inputs that it saw, so that its share, too, adds up to what its result changed by.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.explain.gradients import base_of, other_unit
from zoo.explain.network import Attributed, Network
from zoo.explain.probes import Change, changed, differentiable, layers_of
from zoo.explain.subject import Raw, Subject

REFERENCES = 50  # background rows per explained row
NODES = 8  # points of the line through a layer that mixes
MANY_NODES = 32  # for cheap layers with corners or steep places
SMALL = 1e-4  # change of an activation's input below which its gradient stands for the quotient

_LINEAR = re.compile(
    r"Add|Average|(Global)?AveragePooling\dD|BatchNormalization|Concatenate|Cropping\dD|(Alpha|Gaussian|Spatial)?Dropout(\dD)?"
    r"|Flatten|GaussianNoise|Identity|InputLayer|Normalization|Permute|RepeatVector|Rescaling|Reshape|Resizing|Subtract"
    r"|UpSampling\dD|ZeroPadding\dD"
)
_WEIGHTED = re.compile(r"Dense|EinsumDense|(Depthwise|Separable)?Conv\dD(Transpose)?")
_ALONE = re.compile(r"Activation|ELU|LeakyReLU|PReLU|ReLU")
_CHEAP = re.compile(r"(Global)?MaxPooling\dD|(Group|Layer|RMS|Unit)Normalization|Softmax")
_ELEMENTWISE = re.compile(
    r"celu|elu|exponential|gelu|(hard|soft)_shrink|(hard|log)_sigmoid|hard_(silu|swish|tanh)|leaky_relu|linear|mish|relu6?"
    r"|selu|sigmoid|silu|soft(plus|sign)|sparse_plus|squareplus|swish|tanh(_shrink)?|threshold"
)
"""Layers and activations of Keras by what their results depend on; the names of activations are their functions'."""


def deep(
    subject: Subject,
    raw: Raw,
    targets: np.ndarray,
    *,
    seed: int = 0,
    clock: Any,
    references: int = REFERENCES,
    nodes: int = NODES,
) -> Attributed:
    """DeepLIFT's contributions averaged over background rows, (batch, ...): fast, approximate Shapley values.

    They are exact Shapley values where the model is additive or one activation behind a linear layer decides.

    Args:
        subject: with a Keras model.
        raw: rows to explain.
        targets: index of the explained output (batch,).
        seed: of the choice of background rows.
        clock: stops between background rows; the first is always finished.
        references: background rows per explained row at most.
        nodes: points at which a layer that mixes is averaged; the sum's error falls quickly with them.

    Raises:
        ValueError: the model has no gradients, a number is below 1, or a layer cannot take a row and a reference in
            one batch; the message names the layer.

    Source: Shrikumar, Greenside & Kundaje 2017 (arXiv:1704.02685), section 3.5.2, rescale rule; Lundberg & Lee 2017
        (arXiv:1705.07874), section 4.2, Deep SHAP; Chen, Lundberg & Lee 2022, "Explaining a series of models by
        propagating Shapley values", Nature Communications 13: 4512, for other layers.
    """
    if references < 1 or nodes < 1:
        raise ValueError(f"deep needs at least 1 reference and 1 node, got references={references!r}, nodes={nodes!r}")
    network = Network(subject, raw, "deep")
    points, given = network.start(raw)
    others = network.references(points, raw)
    order = np.random.default_rng(seed).permutation(others[0].shape[1])[:references]
    rules = rules_of(network.model)
    function = differentiable(network.model, functools.partial(_together, network, rules, nodes))
    rows, used = np.arange(len(targets)), 0
    values = [np.zeros(x.shape) for x in points]
    block = max(1, network.chunk // (2 * len(targets)))
    answers = network.answered[rows, targets]
    while used < len(order) and not (used and clock.over):
        some = order[used : used + block]
        place, who = np.repeat(rows, len(some)), np.tile(some, len(rows))
        starts = [start[place % len(start), who] for start in others]
        fixed = [g[place] for g in given]
        _, slopes, _ = network.in_chunks(
            function, [x[place] for x in points], [*starts, *fixed, targets[place].astype(np.int32)]
        )
        for k, (slope, x, start) in enumerate(zip(slopes, points, starts, strict=True)):
            share = slope * (x[place] - start)
            values[k] += share.reshape(len(rows), len(some), *x.shape[1:]).sum(axis=1, dtype=np.float64)
        used += len(some)
        clock.tell(used, len(order))
    base = base_of(network, [start[:, order[:used]] for start in others], given, targets)
    values = [each / used for each in values]
    total = sum(each.reshape(len(rows), -1).sum(axis=1) for each in values)
    settings = {
        "background_rows": used,
        "nodes": nodes,
        "averaged_layers": sum(rule.startswith("average") for rule in rules.values()),
        "completeness_error": float(np.abs(answers - base - total).max()),
        "unit": network.unit,
    }
    complete = used == len(order)
    return Attributed(network.spread(values), base, settings, other_unit(network, answers), 2 * network.calls, complete)


def rules_of(model: Any) -> dict[Any, str]:
    """Rule of each layer or operation: "activation", "alone", "average" or "average finely"; linear ones have none."""
    found: dict[Any, str] = {}

    def visit(layer: Any) -> None:
        kind = type(layer).__name__ if type(layer).__module__.startswith("keras.") else ""
        activation = getattr(getattr(layer, "activation", None), "__name__", "")
        plain = bool(_ELEMENTWISE.fullmatch(activation))
        if hasattr(layer, "_functional") or hasattr(layer, "_operations"):
            for inner in _operations(layer):
                visit(inner)
        elif _LINEAR.fullmatch(kind) or (_WEIGHTED.fullmatch(kind) and activation == "linear"):
            return
        elif _WEIGHTED.fullmatch(kind) and plain:
            found[layer] = "activation"
        elif _ALONE.fullmatch(kind) and (kind != "Activation" or plain):
            found[layer] = "alone"
        else:
            found[layer] = "average finely" if _CHEAP.fullmatch(kind) else "average"

    operations = _operations(model)
    for operation in operations or layers_of(model):
        visit(operation)
    return found


def _operations(model: Any) -> list[Any]:
    """Layers and operations of a model's graph; the layers directly inside one without a graph."""
    graph = getattr(model, "_functional", None) or model
    if hasattr(graph, "_operations"):
        return list(graph._operations)
    return list(model._flatten_layers(include_self=False, recursive=False))


def _together(network: Network, rules: dict[Any, str], nodes: int, points: list[Any], fixed: list[Any]) -> Any:
    """Answers to the points, whose gradients are multipliers against the references among the other tensors."""
    from keras import ops

    count = len(points)
    starts, given, targets = fixed[:count], fixed[count:-1], fixed[-1]
    both = [ops.concatenate([x, ops.stop_gradient(b)]) for x, b in zip(points, starts, strict=True)]
    twice = [ops.concatenate([values, values]) for values in given]
    changes: dict[Any, Change] = {}
    for layer, rule in rules.items():
        if rule == "alone":
            changes[layer] = _rescaled
        elif rule != "activation":
            changes[layer] = functools.partial(_averaged, layer.name, MANY_NODES if rule == "average finely" else nodes)
    activations = {layer: _rescaled for layer, rule in rules.items() if rule == "activation"}
    with changed(changes), changed(activations, "activation"):
        output = network.forward(both, twice)
    answers = _averaged("output", MANY_NODES, network.answer, output, ops.concatenate([targets, targets]))
    return answers[: points[0].shape[0]], []


def _rescaled(call: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
    """An activation's result, whose gradient is the change of the result over the change of the input.

    The first half of the rows are explained, the second half are what they are compared with.
    """
    from keras import ops

    rows = x.shape[0] // 2
    result = call(x, *args, **kwargs)
    own, start = x[:rows], x[rows:]
    gap = ops.stop_gradient(own - start)
    large = ops.abs(gap) > SMALL
    quotient = ops.stop_gradient((result[:rows] - result[rows:]) / ops.where(large, gap, ops.ones_like(gap)))
    through = ops.where(large, quotient * _moving(own), _moving(result[:rows]))
    return ops.concatenate([ops.stop_gradient(result[:rows]) + through, ops.stop_gradient(result[rows:])])


def _averaged(name: str, nodes: int, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A layer's result, whose gradient is the average of those along the line from what it is compared with.

    Raises:
        ValueError: a result has no batch axis to tell explained rows from the others.
    """
    import keras
    from keras import ops

    abscissas, weights = np.polynomial.legendre.leggauss(nodes)
    given = keras.tree.flatten((args, kwargs))
    rows = next((x.shape[0] for x in given if _moves(x)), 0) // 2
    if not rows:  # of integers, such as what makes a mask
        return call(*args, **kwargs)

    def along(share: float) -> tuple[Any, Any]:
        def at(x: Any) -> Any:
            if not hasattr(x, "shape") or len(x.shape) == 0 or x.shape[0] != 2 * rows:
                return x
            own, start = x[:rows], x[rows:]
            if not _moves(x):
                return own
            return ops.stop_gradient(start + share * (own - start)) + _moving(own)

        return keras.tree.map_structure(at, (args, kwargs))

    result = call(*args, **kwargs)
    flat = keras.tree.flatten(result)
    if any(x.shape[0] != 2 * rows for x in flat):
        raise ValueError(
            f"deep cannot go through {name!r}: its result has the shapes {[tuple(x.shape) for x in flat]} for "
            f"{2 * rows} rows; take integrated_gradients or expected_gradients"
        )
    through = [0.0] * len(flat)
    for place, weight in zip(abscissas, weights, strict=True):
        inner_args, inner_kwargs = along((float(place) + 1) / 2)
        found = keras.tree.flatten(call(*inner_args, **inner_kwargs))
        through = [
            so_far + float(weight) / 2 * _moving(x) if _moves(x) else 0.0
            for so_far, x in zip(through, found, strict=True)
        ]
    whole = [
        ops.concatenate([ops.stop_gradient(x[:rows]) + part, ops.stop_gradient(x[rows:])]) if _moves(x) else x
        for x, part in zip(flat, through, strict=True)
    ]
    return keras.tree.pack_sequence_as(result, whole)


def _moving(x: Any) -> Any:
    """Zeros that have the gradient of `x`."""
    from keras import ops

    return x - ops.stop_gradient(x)


def _moves(x: Any) -> bool:
    """Whether something is a tensor of floats with a batch axis."""
    import keras

    return hasattr(x, "shape") and len(x.shape) > 0 and "float" in keras.backend.standardize_dtype(x.dtype)
