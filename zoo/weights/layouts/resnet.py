"""Files of ResNets: keras.applications (both versions), torchvision and timm.

Our ResNets keep torchvision's arithmetic. What differs elsewhere is folded into the values, so the outputs are equal:

- keras.applications ResNet adds a bias before each batch normalisation: it is subtracted from the moving mean.
- its epsilon is 1.001e-5, ours 1e-5: the difference is added to the moving variance.
- its bottleneck has the stride on the first convolution: `stride_first=True`.
"""

import re

import numpy as np

from zoo.weights.layouts import TORCH_NORM, Layout, from_torch

_EPSILON_GAP = 1.001e-5 - 1e-5
_HEADS = ("predictions", "probs", "fc1000")  # names the head had in the releases of keras.applications


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
    if not match or variable not in TORCH_NORM:
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
        return f"{place}_norm/{TORCH_NORM[variable]}"
    return f"{place}/kernel" if variable == "weight" else f"{place}/{variable}"


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


def arguments(tensors: dict[str, np.ndarray]) -> dict[str, str]:
    """The stem, by the size of its kernel."""
    if "stem_conv/kernel" not in tensors:
        return {}
    return {"stem": "imagenet" if tensors["stem_conv/kernel"].shape[0] == 7 else "small"}


_FIRST = {"stride_first": True}
_SECOND = {"stride_first": False}

LAYOUTS = (
    Layout("keras.applications ResNet", "resnet", "conv1_bn/gamma", _keras_v1, _FIRST, _fold, scaling="caffe"),
    Layout("keras.applications ResNetV2", "resnet_v2", "post_bn/gamma", _keras_v2, scaling="tf"),
    Layout("torchvision or timm ResNet", "resnet", "bn1.weight", _torch, _SECOND, from_torch, scaling="torch"),
)
