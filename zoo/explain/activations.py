"""Maps of where a network looks, from its own activations: Grad-CAM, CAM and attention rollout.

They show places and add up to nothing, so there is no base. The score they explain is the model's output before the
softmax, as in the papers: a probability near 1 has hardly a gradient left.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.explain.network import Attributed, Network
from zoo.explain.probes import Change, called, changed, differentiable, first_of, layers_of, recorded, takes
from zoo.explain.subject import Raw, Subject
from zoo.registry import suggest

SEEN = 1e-6  # of the largest gradient, above which an answer reads a position
_PLAIN = re.compile(r"(Alpha|Gaussian)?Dropout|Identity|Softmax|Activation|Flatten|Reshape")
_PASSING = re.compile(r"(Average|Max)Pooling\dD|(Alpha|Gaussian|Spatial)?Dropout(\dD)?|ZeroPadding\dD|Identity|Reshape")


def grad_cam(
    subject: Subject, raw: Raw, targets: np.ndarray, *, seed: int = 0, clock: Any, layer: str = ""
) -> Attributed:
    """Where a convolutional network found what speaks for a class: (batch, height, width), or (batch, time).

    The maps of one layer, each weighted by the mean gradient of the class score for it, are added up; what speaks
    against the class is cut off, and the sum is enlarged to the input's size, linearly between the cells.

    Args:
        subject: with a Keras model.
        raw: images or series to explain.
        targets: index of the explained output (batch,).
        seed: not used, nothing is drawn.
        clock: not asked, it is one pass forwards and one backwards.
        layer: name of the layer to look at; the last that gives maps of more than one place if empty.

    Raises:
        ValueError: no layer gives maps, or none has that name.

    Source: Selvaraju et al. 2017 (arXiv:1610.02391), section 3, equations 1 and 2.
    """
    network = Network(subject, raw, "grad_cam", logits=True)
    _, given = network.start(raw)
    size = _size(subject, raw)
    chosen, call_number, shape = _map_layer(network, given, len(size), layer)

    def run(delta: list[Any], fixed: list[Any]) -> tuple[Any, list[Any]]:
        *inputs, places = fixed
        seen: list[Any] = []
        count = 0

        def add(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal count
            result = call(*args, **kwargs)
            count += 1
            if count != call_number:
                return result
            seen.append(result)
            return result + delta[0]

        with changed({chosen: add}):
            output = network.run(inputs)
        return network.answer(output, places), seen

    zeros = np.zeros((len(targets), *shape), np.float32)
    _, [slopes], [maps] = network.in_chunks(
        differentiable(network.model, run), [zeros], [*given, targets.astype(np.int32)]
    )
    inner = tuple(range(1, 1 + len(size)))
    weights = slopes.mean(axis=inner, keepdims=True, dtype=np.float64)
    coarse = np.maximum((weights * maps).sum(axis=-1), 0)
    settings = {"layer": chosen.name, "cells": list(coarse.shape[1:]), "unit": network.unit}
    return Attributed(enlarged(coarse, size), None, settings, calls=network.calls)


def _map_layer(network: Network, given: list[np.ndarray], rank: int, name: str) -> tuple[Any, int, tuple[int, ...]]:
    """Layer whose maps are looked at, which of its calls, and the shape of a row of them."""
    from keras import ops

    one = [ops.convert_to_tensor(values[:1]) for values in given]
    calls: list[tuple[Any, int, tuple[int, ...]]] = []
    for layer, result in recorded(network.model, lambda: network.run(one)):
        shape = tuple(getattr(result, "shape", ()))
        number = 1 + sum(each is layer for each, _, _ in calls)
        calls.append((layer, number, shape[1:] if len(shape) == rank + 2 and shape[0] == 1 else ()))
    if name:
        named = [each for each in calls if each[0].name == name]
        if not named:
            raise ValueError(
                f"{network.subject.name!r} has no layer {name!r}.{suggest(name, sorted({c[0].name for c in calls}))}"
            )
        if not named[-1][2]:
            raise ValueError(f"layer {name!r} of {network.subject.name!r} gives no maps; take a convolution's name")
        return named[-1]
    attention = [layer for layer in layers_of(network.model) if takes(layer, "return_attention_scores")]
    inside = {id(inner) for layer in attention for inner in layers_of(layer)}  # their axes are heads, not places
    for each in reversed(calls):
        layer, _, shape = each
        skipped = hasattr(layer, "_functional") or hasattr(layer, "_operations") or id(layer) in inside
        if shape and int(np.prod(shape[:-1])) > 1 and not skipped and not _PASSING.fullmatch(type(layer).__name__):
            return each
    raise ValueError(
        f"grad_cam needs a layer that gives maps of more than one place, and {network.subject.name!r} has none; "
        "take integrated_gradients or a method that needs predictions only"
    )


@dataclass(frozen=True)
class Head:
    """The end of a model whose maps are its scores, place by place.

    Attributes:
        pool: global average pooling.
        maps: symbolic tensor that it averages, (batch, ..., channels).
        dense: layer from the means to the outputs; None where the means are the outputs.
        path: names of the models around the pooling, with a slash behind each.
    """

    pool: Any
    maps: Any
    dense: Any
    path: str = ""

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Kernel (channels, outputs) and bias (outputs,)."""
        from keras import ops

        if self.dense is None:
            channels = self.maps.shape[-1]
            return np.eye(channels, dtype=np.float32), np.zeros(channels, np.float32)
        kernel = ops.convert_to_numpy(self.dense.kernel.value).astype(np.float32)
        bias = ops.convert_to_numpy(self.dense.bias.value) if self.dense.use_bias else np.zeros(kernel.shape[1])
        return kernel, bias.astype(np.float32)


def head_of(model: Any) -> Head:
    """The head of a Keras model that has global average pooling and at most one dense layer behind its maps.

    Raises:
        ValueError: it ends otherwise; the message says how.
    """
    name = getattr(model, "name", type(model).__name__)

    def refuse(why: str) -> ValueError:
        return ValueError(
            f"class activation maps need global average pooling and one dense layer at the end, and {name!r} {why}; "
            "grad_cam takes any convolutional network"
        )

    if not getattr(model, "outputs", None):
        raise refuse("has no graph")
    tensor, dense, path, ends = model.outputs[0], None, "", []
    while True:
        layer, node, place = tensor._keras_history
        kind = type(layer).__name__
        if hasattr(layer, "outputs") and layer.outputs:  # a model inside
            path += f"{layer.name}/"
            tensor = layer.outputs[place]
            continue
        inputs = layer._inbound_nodes[node].input_tensors
        if re.fullmatch(r"GlobalAveragePooling[12]D", kind) and getattr(layer, "data_format", "") != "channels_first":
            return Head(layer, inputs[0], dense, path)
        linear = getattr(getattr(layer, "activation", None), "__name__", "linear") in ("linear", "softmax")
        whole = getattr(layer, "quantization_mode", None) is None
        if kind == "Dense" and dense is None and linear and whole and len(tensor.shape) == 2:
            dense = layer
        elif not (_PLAIN.fullmatch(kind) and linear and _is_row(tensor) and _is_row(inputs[0])):
            raise refuse(f"ends in {' behind '.join([*ends, f'{layer.name!r} ({kind})'])}")
        ends.append(f"{layer.name!r}")
        tensor = inputs[0]


def _is_row(tensor: Any) -> bool:
    """Whether a symbolic tensor has one axis of numbers behind the batch, others being 1."""
    return sum(size != 1 for size in tensor.shape[1:]) <= 1


def cam(subject: Subject, raw: Raw, targets: np.ndarray, *, seed: int = 0, clock: Any) -> Attributed:
    """Score of a class at each place: (batch, height, width), or (batch, time) of a series.

    Its mean over the places, before it is enlarged, is the score without its bias. A bundle that was exported with
    `activation_map` gives it without Keras.

    Args:
        subject: with a Keras model that ends in global average pooling and one dense layer, or with maps of its own.
        raw: images or series to explain.
        targets: index of the explained output (batch,).
        seed: not used, nothing is drawn.
        clock: not asked, it is one pass forwards.

    Raises:
        ValueError: the model ends otherwise, the message says how; or a bundle has maps of the most probable class
            only.

    Source: Zhou et al. 2016 (arXiv:1512.04150), section 2, equation 2; as there, without the bias.
    """
    if subject.model is None and subject.maps is not None:
        return _of_file(subject, raw, targets)
    from keras import ops

    network = Network(subject, raw, "cam", logits=True)
    head = head_of(network.model)
    _, given = network.start(raw)
    parts = [
        pooled(network.model, head, [ops.convert_to_tensor(values[start : start + network.chunk]) for values in given])
        for start in range(0, len(targets), network.chunk)
    ]
    outputs, maps = (np.concatenate(each) for each in zip(*parts, strict=True))
    kernel, bias = head.weights()
    coarse = np.einsum("b...c,cb->b...", maps, kernel[:, targets])
    inner = tuple(range(1, coarse.ndim))
    scores = outputs[np.arange(len(targets)), targets]
    settings = {
        "layer": head.maps._keras_history.operation.name,
        "cells": list(coarse.shape[1:]),
        "unit": network.unit,
        "head_error": float(np.abs(coarse.mean(axis=inner) + bias[targets] - scores).max()),
    }
    return Attributed(enlarged(coarse, _size(subject, raw)), None, settings, calls=len(targets))


def _of_file(subject: Subject, raw: Raw, targets: np.ndarray) -> Attributed:
    """Maps that a bundle's file gives beside its answers."""
    assert subject.maps is not None
    coarse, size = np.asarray(subject.maps(raw), np.float64), _size(subject, raw)
    rows = np.arange(len(targets))
    if coarse.ndim == len(size) + 2:
        coarse = np.stack([coarse[row, ..., target] for row, target in zip(rows, targets, strict=True)])
    else:
        other = np.flatnonzero(np.asarray(subject.predict(raw)).argmax(axis=1) != targets)
        if len(other):
            raise ValueError(
                f"{subject.name!r} gives the map of the most probable class only, and row {other[0]} is asked for "
                "another; export it with activation_map='all'"
            )
    settings = {"layer": "activation_map", "cells": list(coarse.shape[1:]), "unit": "model output"}
    return Attributed(enlarged(coarse, size), None, settings, calls=len(targets))


def pooled(model: Any, head: Head, inputs: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """A model's output (rows, outputs), and the maps (rows, ..., channels) that its head averages.

    Args:
        model: Keras model with that head.
        head: see `head_of`.
        inputs: tensors in the model's order.
    """
    from keras import ops

    seen: list[Any] = []

    def look(call: Callable[..., Any], maps: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(maps)
        return call(maps, *args, **kwargs)

    with changed({head.pool: look}):
        output = called(model, inputs)
    return ops.convert_to_numpy(first_of(output)), ops.convert_to_numpy(seen[-1]).astype(np.float64)


def attention_rollout(subject: Subject, raw: Raw, targets: np.ndarray, *, seed: int = 0, clock: Any) -> Attributed:
    """How much of each input position reaches the answer through the attention layers.

    The scores of each self-attention layer are averaged over its heads, mixed half and half with the identity that
    stands for the shortcut around it, and multiplied from the first layer to the last. The rows of the product that the
    answer reads are averaged: a class token's alone, or those of all positions; a gradient tells which these are.

    Args:
        subject: with a Keras model that has self-attention layers which can give their scores.
        raw: texts, series or images to explain.
        targets: index of the explained output (batch,); it only matters for which rows are read.
        seed: not used, nothing is drawn.
        clock: not asked, it is one pass forwards and one backwards.

    Returns:
        Shares that sum to 1 over the positions: (batch, length) of tokens, (batch, time) of a series, and for patches
        of an image (batch, height, width).

    Raises:
        ValueError: no such layers, layers of different lengths, or positions that are no places of the input.

    Source: Abnar & Zuidema 2020 (arXiv:2005.00928), section 3, attention rollout.
    """
    network = Network(subject, raw, "attention_rollout", logits=True)
    _, given = network.start(raw)
    layers = [layer for layer in layers_of(network.model) if takes(layer, "return_attention_scores")]
    if not layers:
        raise ValueError(
            f"attention_rollout needs attention layers that give their scores, such as keras.layers.MultiHeadAttention, "
            f"and {subject.name!r} has none"
        )

    number, length, features = _attentions(network, given, layers)

    def run(delta: list[Any], fixed: list[Any]) -> tuple[Any, list[Any]]:
        *inputs, places = fixed
        scores: list[Any] = []
        with changed({layer: _scoring(scores, number, delta[0]) for layer in layers}):
            output = network.run(inputs)
        return network.answer(output, places), [found for found, _ in scores]

    zeros = np.zeros((len(targets), length, features), np.float32)
    function = differentiable(network.model, run)
    _, [slopes], scores = network.in_chunks(function, [zeros], [*given, targets.astype(np.int32)])
    product = np.broadcast_to(np.eye(length), (len(targets), length, length))
    for each in scores:
        mixed = (each.mean(axis=1) if each.ndim == 4 else each).astype(np.float64) + np.eye(length)
        product = mixed / mixed.sum(axis=-1, keepdims=True) @ product
    reading = np.abs(slopes).max(axis=2)
    read = reading > SEEN * reading.max(axis=1, keepdims=True)
    read |= ~read.any(axis=1, keepdims=True)  # an answer that depends on nothing
    shares = (product * read[..., None]).sum(axis=1) / read.sum(axis=1, keepdims=True)
    settings = {
        "layers": len(scores),
        "positions": length,
        "positions_read": int(read.sum(axis=1).max()),
        "unit": "share of attention",
    }
    return Attributed(_placed(subject, raw, shares), None, settings, calls=network.calls)


def _scoring(scores: list[Any], number: int, delta: Any) -> Change:
    """Calls of self-attention add their scores (batch, heads, queries, keys) and result to the list, others pass.

    Zeros added to the result of the last one, by its number, let a gradient tell which positions the answer reads.
    """

    def score(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        wanted = kwargs.pop("return_attention_scores", False)
        result, found = call(*args, **kwargs, return_attention_scores=True)
        if len(found.shape) in (3, 4) and found.shape[-1] == found.shape[-2]:
            scores.append((found, result))
            if len(scores) == number:
                result = result + delta
        return (result, found) if wanted else result

    return score


def _attentions(network: Network, given: list[np.ndarray], layers: list[Any]) -> tuple[int, int, int]:
    """Number of calls of self-attention, of positions that all of them see, and of features that the last one gives."""
    from keras import ops

    scores: list[Any] = []
    with changed({layer: _scoring(scores, 0, None) for layer in layers}):
        network.run([ops.convert_to_tensor(values[:1]) for values in given])
    lengths = sorted({int(found.shape[-1]) for found, _ in scores})
    if len(lengths) != 1:
        what = f"positions of {', '.join(map(str, lengths))}" if lengths else "attention between two inputs only"
        raise ValueError(
            f"attention_rollout multiplies the scores of self-attention layers of one length, and "
            f"{network.subject.name!r} has {what}; take integrated_gradients"
        )
    return len(scores), lengths[0], int(scores[-1][1].shape[-1])


def _placed(subject: Subject, raw: Raw, shares: np.ndarray) -> np.ndarray:
    """Shares of positions (batch, positions) in the places of the input."""
    size = _size(subject, raw)
    positions = shares.shape[1]
    for classes in (0, 1):  # tokens for the class, in front
        own = positions - classes
        if len(size) == 1 and own == size[0]:
            return shares[:, classes:]
        grids = [(rows, own // rows) for rows in range(1, own + 1) if own % rows == 0] if len(size) == 2 else []
        for grid in grids:
            if size[0] % grid[0] == 0 and size[1] % grid[1] == 0 and size[0] // grid[0] == size[1] // grid[1]:
                cells = size[0] // grid[0] * (size[1] // grid[1])
                return enlarged(shares[:, classes:].reshape(-1, *grid), size) / cells
    raise ValueError(
        f"attention_rollout found {positions} positions, which are neither the {' x '.join(map(str, size))} places of "
        f"{subject.name!r}'s input nor square patches of them"
    )


def _size(subject: Subject, raw: Raw) -> tuple[int, ...]:
    """(height, width) of images, (time,) of series, (length,) of tokens."""
    [values] = [raw[name] for name in subject.names][:1]
    return values.shape[1:3] if subject.kind == "image" else values.shape[1:2]


def enlarged(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Maps (batch, ...) at another size, linearly between the middles of the cells and constant outside them."""
    for axis, count in enumerate(size, start=1):
        cells = maps.shape[axis]
        where = np.clip((np.arange(count) + 0.5) * cells / count - 0.5, 0, cells - 1)
        low = np.floor(where).astype(int)
        high = np.minimum(low + 1, cells - 1)
        share = (where - low).reshape(-1, *[1] * (maps.ndim - 1 - axis))
        maps = np.take(maps, low, axis) * (1 - share) + np.take(maps, high, axis) * share
    return maps
