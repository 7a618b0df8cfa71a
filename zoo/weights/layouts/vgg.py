"""Files of VGG networks: keras.applications, torchvision and timm.

- Torch numbers convolutions, activations and poolings in one row, so where a stage ends is read off the gaps.
- Torch flattens the last map channels first: the rows of the first fully connected layer stand in another order there.
- timm keeps that layer as a convolution over the whole map, and the second as one of 1x1.
- Files without head lack the fully connected layers too.
"""

import math
import re

from zoo.weights.layouts import Layout, Tensors, from_torch

TOP = ("hidden/kernel", "hidden/bias", "features/kernel", "features/bias")
_KERAS = {"fc1": "hidden", "fc2": "features", "predictions": "logits"}
_TORCH = {
    "classifier.0": "hidden",
    "classifier.3": "features",
    "classifier.6": "logits",
    "pre_logits.fc1": "hidden",
    "pre_logits.fc2": "features",
    "head.fc": "logits",
}
_VARIABLES = {"W": "kernel", "b": "bias", "kernel": "kernel", "bias": "bias"}


def _keras(name: str) -> str:
    """The published files are of Keras 1, which called variables `block1_conv1_W_1`."""
    layer, _, variable = name.partition("/")
    variable = re.sub(r"_\d+$", "", variable).removeprefix(f"{layer}_")
    block = re.fullmatch(r"block([1-9])_conv([1-9])", layer)
    ours = f"stage{int(block[1]) - 1}_conv{int(block[2]) - 1}" if block else _KERAS.get(layer, "")
    return f"{ours}/{_VARIABLES[variable]}" if ours and variable in _VARIABLES else ""


def _torch(name: str) -> str:
    """Convolutions keep their number, `features.7/kernel`, until `_placed` has seen all of them."""
    layer, _, variable = name.rpartition(".")
    ours = _TORCH.get(layer, layer if re.fullmatch(r"features\.\d+", layer) else "")
    variable = {"weight": "kernel", "bias": "bias"}.get(variable, "")
    return f"{ours}/{variable}" if ours and variable else ""


def _placed(tensors: Tensors) -> Tensors:
    """Convolutions by stage, and dense kernels with their rows in the order of our maps."""
    names, last, stage, index = {}, -2, 0, -1
    for place in sorted(int(name[9:-7]) for name in tensors if re.fullmatch(r"features\.\d+/kernel", name)):
        stage, index = (stage, index + 1) if place == last + 2 else (stage + 1, 0)  # a pooling stands between
        names[f"features.{place}"] = f"stage{stage}_conv{index}"
        last = place
    ours = from_torch(
        {"/".join((names.get(layer, layer), variable)): tensors[f"{layer}/{variable}"]
         for layer, variable in (name.rsplit("/", 1) for name in tensors)}
    )  # fmt: skip
    for name in ("hidden/kernel", "features/kernel"):
        if name in ours and ours[name].ndim == 4:
            ours[name] = ours[name].reshape(-1, ours[name].shape[-1])
        elif name == "hidden/kernel" and arguments(ours):
            rows, units = ours[name].shape
            side = arguments(ours)["grid"]
            by_channel = ours[name].reshape(rows // side**2, side, side, units)
            ours[name] = by_channel.transpose(1, 2, 0, 3).reshape(rows, units)
    return ours


def arguments(tensors: Tensors) -> dict[str, int]:
    """Side of the map that the fully connected layers read, where it is a square."""
    kernels = sorted(name for name in tensors if re.fullmatch(r"stage\d_conv\d+/kernel", name))
    if not kernels or "hidden/kernel" not in tensors:
        return {}
    rows, channels = tensors["hidden/kernel"].shape[0], tensors[kernels[-1]].shape[-1]
    side = math.isqrt(rows // channels)
    return {"grid": side} if side and rows == side**2 * channels else {}


LAYOUTS = (
    Layout("keras.applications VGG", "vgg", "block1_conv1/kernel", _keras, scaling="caffe"),
    Layout("keras.applications VGG", "vgg", "block1_conv1/block1_conv1_W_1", _keras, scaling="caffe"),
    Layout("torchvision VGG", "vgg", "classifier.0.weight", _torch, adapt=_placed, scaling="torch"),
    Layout("timm VGG", "vgg", "pre_logits.fc1.weight", _torch, adapt=_placed, scaling="torch"),
    Layout("torchvision or timm VGG without head", "vgg", "features.0.weight", _torch, adapt=_placed, scaling="torch"),
)
