"""Files of MobileNetV2: keras.applications, torchvision and timm.

They differ in padding and epsilon, which our builder takes as arguments. Keras and torchvision number the blocks in one
row, timm by stage as we do; torch has the filters of a depthwise convolution in the place of its channels.
"""

import re

from zoo.weights.layouts import TORCH_NORM, Layout, Tensors, from_torch

DEPTH = (1, 2, 3, 4, 3, 3, 1)  # blocks of each stage
_PLACES = [f"stage{stage}_block{block}" for stage, blocks in enumerate(DEPTH) for block in range(blocks)]
_KERAS = {"Conv1": "stem_conv", "bn_Conv1": "stem_conv_norm", "Conv_1": "head_conv", "Conv_1_bn": "head_conv_norm"}
_HEADS = ("predictions", "Logits", "logits")  # names the head had in the releases of keras.applications
_FIRST = ("depthwise", "project")  # convolutions of a block of the first stage, in order
_OTHERS = ("expand", "depthwise", "project")
_TIMM = {"conv_pw": "expand", "conv_dw": "depthwise", "conv_pwl": "project"}


def _keras(name: str) -> str:
    layer, _, variable = name.partition("/")
    variable = "kernel" if variable == "depthwise_kernel" else variable
    if layer in _HEADS:
        return f"logits/{variable}"
    if layer in _KERAS:
        return f"{_KERAS[layer]}/{variable}"
    match = re.fullmatch(r"(?:expanded_conv|block_(\d+))_(expand|depthwise|project)(_BN)?", layer)
    if not match or int(match[1] or 0) >= len(_PLACES):
        return ""
    return f"{_PLACES[int(match[1] or 0)]}_{match[2]}{'_norm' if match[3] else ''}/{variable}"


def _torchvision(name: str) -> str:
    layer, _, variable = name.rpartition(".")
    if layer == "classifier.1":
        return f"logits/{'kernel' if variable == 'weight' else variable}"
    match = re.fullmatch(r"features\.(0|18)\.([01])", layer)
    if match:
        return _variable("stem_conv" if match[1] == "0" else "head_conv", match[2] == "1", variable)
    match = re.fullmatch(r"features\.(\d+)\.conv\.(\d)(?:\.([01]))?", layer)
    if not match or not 1 <= int(match[1]) <= len(_PLACES):
        return ""
    parts = _FIRST if match[1] == "1" else _OTHERS
    # convolution and normalisation are one module, but for the last pair, which stands open
    place = int(match[2])
    norm = match[3] == "1" if match[3] else place == len(parts)
    if place > len(parts):
        return ""
    return _variable(f"{_PLACES[int(match[1]) - 1]}_{parts[min(place, len(parts) - 1)]}", norm, variable)


def _timm(name: str) -> str:
    layer, _, variable = name.rpartition(".")
    if layer == "classifier":
        return f"logits/{'kernel' if variable == 'weight' else variable}"
    if layer in ("conv_stem", "bn1", "conv_head", "bn2"):
        return _variable("stem_conv" if layer in ("conv_stem", "bn1") else "head_conv", "bn" in layer, variable)
    match = re.fullmatch(r"blocks\.(\d)\.(\d)\.(?:(conv_pw|conv_dw|conv_pwl)|bn([123]))", layer)
    if not match:
        return ""
    stage, block, conv, number = match.groups()
    parts = _OTHERS if stage != "0" else _FIRST
    if number and int(number) > len(parts):
        return ""
    part = parts[int(number) - 1] if number else "project" if stage == "0" and conv == "conv_pw" else _TIMM[conv]
    return _variable(f"stage{stage}_block{block}_{part}", bool(number), variable)


def _variable(layer: str, norm: bool, variable: str) -> str:
    if norm:
        return f"{layer}_norm/{TORCH_NORM[variable]}" if variable in TORCH_NORM else ""
    return f"{layer}/kernel" if variable == "weight" else ""


def _from_torch(tensors: Tensors) -> Tensors:
    return {
        name: tensor.swapaxes(2, 3) if name.endswith("_depthwise/kernel") and tensor.ndim == 4 else tensor
        for name, tensor in from_torch(tensors).items()
    }


_TENSORFLOW = {"symmetric": False, "epsilon": 1e-3}
_TORCH = {"symmetric": True, "epsilon": 1e-5}

LAYOUTS = (
    Layout("keras.applications MobileNetV2", "mobilenet_v2", "bn_Conv1/gamma", _keras, _TENSORFLOW, scaling="tf"),
    Layout(
        "torchvision MobileNetV2",
        "mobilenet_v2",
        "features.1.conv.0.0.weight",
        _torchvision,
        _TORCH,
        _from_torch,
        "torch",
    ),
    Layout("timm MobileNetV2", "mobilenet_v2", "blocks.0.0.conv_dw.weight", _timm, _TORCH, _from_torch, "torch"),
)
