"""What is inside a model, by the names of its layers: parts from input to head, and the pyramid of maps of an image model."""

import re
from collections.abc import Iterable
from itertools import takewhile
from typing import Any, NamedTuple

from zoo.registry import get

HEAD = "logits"  # layer that a new number of classes replaces
BACKBONE = "backbone"  # every part that `before_task` names
_PART = re.compile(r"((?:encoder_|decoder_)?(?:stage|block|layer|hidden|down|up)\d+|bottom|neck|pyramid)\d*(?:_|$)")
_TASK = re.compile(r"up\d+|neck|pyramid|head")  # parts that make an answer of what a backbone gives
_HEADS = re.compile(r"(?:head\d*|anchors)_")  # layers of the head where `logits` has no weights, as a detector's
_STAGE = re.compile(r"stage(\d+)_")
_BLOCK = re.compile(r"((?:stage\d+_)?block\d+|stage\d+)(?:_|$)")


class Level(NamedTuple):
    """One map of a pyramid.

    Attributes:
        name: layer that gives it.
        stride: pixels of the image per place of the map, each way.
        channels: of the map.
    """

    name: str
    stride: int
    channels: int


def parts(model: Any) -> dict[str, list[Any]]:
    """Layers with weights by part, from the input to the head.

    Parts are named by the layers: `stage0`, `block3`, `hidden1` …, of a U-Net `down0` …, `bottom` and `up0` …, of a detector
    `neck` or `pyramid`. `stem` is what comes before the first of them, `top` what comes behind the last. `head` is the layer
    `logits`; in a detector everything behind its neck or pyramid; the last layer where nothing is called so. A layer
    between two parts belongs to the one before it.

    Args:
        model: Keras model with `layers`.

    Raises:
        ValueError: no layer has weights.
    """
    weighted = [layer for layer in model.layers if layer.weights]
    if not weighted:
        raise ValueError(f"model {model.name!r} has no layer with weights")
    begin = next((place for place, layer in enumerate(weighted) if layer.name == HEAD), None)
    if begin is None:
        heads = (place for place, layer in enumerate(weighted) if _HEADS.match(layer.name))
        begin = next(heads, len(weighted) - 1)
    body = weighted[:begin]
    names = [match[1] if (match := _PART.match(layer.name)) else "" for layer in body]
    first = next((place for place, name in enumerate(names) if name), len(names))
    last = max((place for place, name in enumerate(names) if name), default=-1)
    found: dict[str, list[Any]] = {}
    part = "stem"
    for place, (layer, name) in enumerate(zip(body, names, strict=True)):
        part = "stem" if place < first else "top" if place > last else name or part
        found.setdefault(part, []).append(layer)
    return {**found, "head": weighted[begin:]}


def before_task(names: Iterable[str]) -> list[str]:
    """Those of a model's parts that are its backbone: all before the head, a neck, a pyramid or a decoder."""
    return list(takewhile(lambda name: not _TASK.fullmatch(name), names))


def features(model: Any, stages: Any = None, *, weights: str | None = None, **arguments: Any) -> Any:
    """The backbone of an image model, which gives its pyramid of maps in place of logits.

    A level is the last map of a resolution: of the last stage that has it, or of the stem where no stage does. Only maps
    through which everything behind them passes count, so that a level is the end of a residual block and not its middle.
    A transformer's levels are its blocks, its tokens laid out as a map without those of no place.

    Args:
        model: public name, such as "resnet50", or a functional Keras model, whose weights are then shared.
        stages: places in the pyramid to keep, 0 for the finest and -1 for the coarsest; all if None.
        weights: as of `zoo.get`, for a name.
        arguments: the builder's, for a name, such as `input_shape=(256, 256, 3)`.

    Returns:
        `keras.Model`, `(batch, height, width, channels)` -> a list of maps, finest first; its attribute `pyramid` has a
        `Level` for each.

    Raises:
        KeyError: no such model.
        TypeError: `weights` or arguments beside a model that is built already.
        ValueError: the model has no maps, or no such stage.
    """
    import keras

    if isinstance(model, str):
        model = get(model, weights=weights, **arguments)
    elif weights is not None or arguments:
        raise TypeError(
            f"{', '.join([*['weights'] * (weights is not None), *arguments])} is for a model by name; leave it out"
        )
    if not getattr(model, "inputs", None) or len(model.inputs[0].shape) != 4:
        raise ValueError(
            f"features needs a functional model of images, got {getattr(model, 'name', type(model).__name__)!r}"
        )
    steps = _steps(model.inputs, model.outputs)
    staged = [(int(match[1]), place) for place, step in enumerate(steps) if (match := _STAGE.match(step.layer.name))]
    staged = staged or [(0, place) for place, step in enumerate(steps) if step.layer.name.startswith("bottom_")]
    if staged:  # what reads the stages, such as a neck or a decoder, is no part of the backbone
        steps = _steps(model.inputs, [steps[max(staged)[1]].tensor])
    found = _tokens(steps) or _maps(steps)
    if not found:
        raise ValueError(f"model {model.name!r} has no maps that everything behind them passes through, so no pyramid")
    if stages is not None:
        chosen = [stages] if isinstance(stages, int) else list(stages)
        if not chosen or not all(isinstance(place, int) and -len(found) <= place < len(found) for place in chosen):
            known = ", ".join(f"{place} {level.name}" for place, (level, _) in enumerate(found))
            raise ValueError(f"stages must be among {known}, got stages={stages!r}")
        found = [found[place] for place in chosen]
    backbone = keras.Model(model.input, [tensor for _, tensor in found], name=f"{model.name}_features")
    backbone.pyramid = tuple(level for level, _ in found)
    if hasattr(model, "pretrained"):
        backbone.pretrained = model.pretrained
    return backbone


class _Step(NamedTuple):
    """A tensor on the way, the layer that gives it, its stride (0 where unknown), and whether all goes through it."""

    tensor: Any
    layer: Any
    stride: float
    alone: bool


def _steps(inputs: list[Any], outputs: list[Any]) -> list[_Step]:
    """Every tensor between inputs and outputs of a functional model, in the order of computation."""
    order: list[Any] = []
    readers: dict[int, list[int]] = {}
    strides: dict[int, float] = {id(tensor): 1.0 for tensor in inputs}
    done = set(strides)
    waiting = outputs[::-1]
    while waiting:
        tensor = waiting[-1]
        sources = [] if id(tensor) in done else _sources(tensor)
        missing = [source for source in sources if id(source) not in done]
        if missing:
            waiting.extend(missing)
            continue
        waiting.pop()
        if id(tensor) in done:
            continue
        done.add(id(tensor))
        layer = tensor._keras_history.operation
        strides[id(tensor)] = max((strides[id(source)] for source in sources), default=0.0) * _factor(layer)
        for source in sources:
            readers.setdefault(id(source), []).append(len(order))
        order.append(tensor)
    found = []
    open_until = max((max(readers[id(tensor)]) for tensor in inputs if id(tensor) in readers), default=0)
    for place, tensor in enumerate(order):
        found.append(_Step(tensor, tensor._keras_history.operation, strides[id(tensor)], open_until <= place))
        open_until = max([open_until, *readers.get(id(tensor), [])])
    return found


def _sources(tensor: Any) -> list[Any]:
    layer, node, _ = tensor._keras_history
    return list(layer._inbound_nodes[node].input_tensors)


def _factor(layer: Any) -> float:
    """By how much a layer's output is coarser than its input; 0 where places are not kept apart evenly."""
    kind = type(layer).__name__
    if re.match(r"Global|Adaptive|Grid|Resizing|Flatten|Reshape|Permute|CenterCrop", kind):
        return 0.0
    if kind.startswith("UpSampling"):
        return 1 / max(layer.size)
    strides = getattr(layer, "strides", None)
    step = max(strides) if isinstance(strides, tuple | list) and strides else 1
    return 1 / step if "Transpose" in kind else float(step)


def _maps(steps: list[_Step]) -> list[tuple[Level, Any]]:
    """The last map of each resolution."""
    blocks: dict[str, _Step] = {}
    for place, step in enumerate(steps):
        if step.alone and len(step.tensor.shape) == 4 and step.stride >= 1:
            if re.match(r"ZeroPadding|Cropping|Dropout|SpatialDropout", type(step.layer).__name__):
                continue
            match = _BLOCK.match(step.layer.name)
            key = match[1] if match and "block" in match[1] else f"{place}"
            blocks.pop(key, None)
            blocks[key] = step  # the end of a block, whose middle may be wider
    levels: dict[int, _Step] = {}
    for step in blocks.values():
        stride = round(step.stride)
        staged = bool(_BLOCK.match(step.layer.name))
        if staged or stride not in levels or not _BLOCK.match(levels[stride].layer.name):
            levels[stride] = step
    return [(Level(s.layer.name, stride, s.tensor.shape[-1]), s.tensor) for stride, s in sorted(levels.items())]


def _tokens(steps: list[_Step]) -> list[tuple[Level, Any]]:
    """The output of each block of a transformer, as a map; empty for other models."""
    from keras import layers

    blocks: dict[str, _Step] = {}
    grid: _Step | None = None
    for step in steps:
        match = _BLOCK.match(step.layer.name)
        if len(step.tensor.shape) == 4 and step.stride > 1 and not blocks:
            grid = step
        elif len(step.tensor.shape) == 3 and step.alone and match and "block" in match[1]:
            blocks[match[1]] = step
    if grid is None or not blocks:
        return []
    height, width = grid.tensor.shape[1:3]
    found = []
    for step in blocks.values():
        more = step.tensor.shape[1] - height * width  # tokens that stand for no place, such as the class token
        x, name = step.tensor, step.layer.name
        if more:
            x = layers.Cropping1D((more, 0), name=f"{name}_places")(x)
        x = layers.Reshape((height, width, x.shape[-1]), name=f"{name}_map")(x)
        found.append((Level(name, round(grid.stride), x.shape[-1]), x))
    return found
