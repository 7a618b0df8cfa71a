"""From the names and conventions of a file to those of our layers.

Our ResNets keep torchvision's arithmetic. What differs elsewhere is folded into the values, so the outputs are equal:

- keras.applications ResNet adds a bias before each batch normalisation: it is subtracted from the moving mean.
- its epsilon is 1.001e-5, ours 1e-5: the difference is added to the moving variance.
- its bottleneck has the stride on the first convolution: `stride_first=True`.
- torch stores convolutions as (out, in, height, width) and dense layers as (out, in).
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

_EPSILON_GAP = 1.001e-5 - 1e-5
_HEADS = ("predictions", "probs", "fc1000")  # names the head had in the releases of keras.applications
_TORCH = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


@dataclass(frozen=True)
class Layout:
    """One way to name and store the tensors of a family.

    Attributes:
        title: what to call it.
        family: builder it belongs to; "" for any.
        marker: tensor that only this layout has.
        rename: tensor name in the file -> `layer/variable` of ours, "" if unknown.
        arguments: builder arguments that the layout fixes.
    """

    title: str
    family: str
    marker: str
    rename: Callable[[str], str]
    arguments: dict[str, Any] = field(default_factory=dict)


def _keras_v1(name: str) -> str:
    layer, _, variable = name.partition("/")
    if layer in _HEADS:
        return f"logits/{variable}"
    if layer in ("conv1_conv", "conv1_bn"):
        return f"stem_conv{'_norm' if layer == 'conv1_bn' else ''}/{variable}"
    match = re.fullmatch(r"conv([2-9])_block(\d+)_([0-3])_(conv|bn)", layer)
    return f"{_block(match)}{'_norm' if match[4] == 'bn' else ''}/{variable}" if match else ""


def _keras_v2(name: str) -> str:
    layer, _, variable = name.partition("/")
    if layer in _HEADS:
        return f"logits/{variable}"
    if layer in ("conv1_conv", "post_bn"):
        return f"{'stem_conv' if layer == 'conv1_conv' else 'final_norm'}/{variable}"
    match = re.fullmatch(r"conv([2-9])_block(\d+)_preact_bn", layer)
    if match:
        return f"stage{int(match[1]) - 2}_block{int(match[2]) - 1}_input_norm/{variable}"
    match = re.fullmatch(r"conv([2-9])_block(\d+)_([0-3])_(conv|bn)", layer)
    return f"{_block(match)}{'_norm' if match[4] == 'bn' else ''}/{variable}" if match else ""


def _block(match: re.Match) -> str:
    place = "shortcut" if match[3] == "0" else f"conv{int(match[3]) - 1}"
    return f"stage{int(match[1]) - 2}_block{int(match[2]) - 1}_{place}"


def _torch(name: str) -> str:
    layer, _, variable = name.rpartition(".")
    if layer == "fc":
        return f"logits/{'kernel' if variable == 'weight' else variable}"
    match = re.fullmatch(r"(?:layer([1-9])\.(\d+)\.)?(?:(conv|bn)([1-3])|downsample\.([01]))", layer)
    if not match or variable not in _TORCH:
        return ""
    stage, block, kind, number, downsample = match.groups()
    norm = kind == "bn" or downsample == "1"
    if stage is None:
        if number != "1":
            return ""
        place = "stem_conv"
    else:
        place = f"stage{int(stage) - 1}_block{block}_{'shortcut' if downsample else f'conv{int(number) - 1}'}"
    if norm:
        return f"{place}_norm/{_TORCH[variable]}"
    return f"{place}/kernel" if variable == "weight" else f"{place}/{variable}"


LAYOUTS = (
    Layout("keras.applications ResNet", "resnet", "conv1_bn/gamma", _keras_v1, {"stride_first": True}),
    Layout("keras.applications ResNetV2", "resnet_v2", "post_bn/gamma", _keras_v2),
    Layout("torchvision or timm ResNet", "resnet", "bn1.weight", _torch, {"stride_first": False}),
    Layout("this package", "", "logits/kernel", lambda name: name),
)


def convert(tensors: dict[str, np.ndarray], entry: Any, path: Path) -> tuple[Layout, dict[str, np.ndarray], list[str]]:
    """Recognise a file's layout and translate its tensors.

    Returns:
        The layout, the tensors by `layer/variable` of ours, and the names that could not be translated.

    Raises:
        ValueError: the layout is unknown, or belongs to another family than the model's.
    """
    layout = next((layout for layout in LAYOUTS if layout.marker in tensors), None)
    if layout is None:
        raise ValueError(
            f"{path} is in no known layout: it starts with {', '.join(sorted(tensors)[:4])}; "
            f"known are {', '.join(layout.title for layout in LAYOUTS)}"
        )
    if layout.family not in ("", entry.family):
        raise ValueError(
            f"{path} is a {layout.title} file, which does not fit {entry.name}; take a model of the family {layout.family!r}"
        )
    found = {name: layout.rename(name) for name in tensors}
    unknown = [name for name, ours in found.items() if not ours]
    ours = {found[name]: tensor for name, tensor in tensors.items() if found[name]}
    if layout.rename is _torch:
        ours = {name: _from_torch(name, tensor) for name, tensor in ours.items()}
    if layout.rename is _keras_v1:
        ours = _fold(ours)
    return layout, ours, unknown


def _from_torch(name: str, tensor: np.ndarray) -> np.ndarray:
    if name.endswith("/kernel"):
        return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
    return tensor


def _fold(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Convolution biases into the moving means that follow them, and the epsilon into the variances."""
    folded = {}
    for name, tensor in tensors.items():
        layer, _, variable = name.rpartition("/")
        if variable == "bias" and f"{layer}_norm/moving_mean" in tensors:
            continue
        bias = tensors.get(f"{layer.removesuffix('_norm')}/bias") if variable == "moving_mean" else None
        if bias is not None and bias.shape == tensor.shape:
            folded[name] = tensor - bias
        elif variable == "moving_variance":
            folded[name] = (tensor.astype(np.float64) + _EPSILON_GAP).astype(np.float32)
        else:
            folded[name] = tensor
    return folded


def blocks(names: Iterable[str]) -> tuple[int, ...]:
    """Blocks of each stage, from tensor names; empty for models without stages."""
    found = {
        (int(match[1]), int(match[2])) for match in map(re.compile(r"stage(\d+)_block(\d+)_").match, names) if match
    }
    return tuple(sum(1 for stage, _ in found if stage == index) for index in sorted({stage for stage, _ in found}))
