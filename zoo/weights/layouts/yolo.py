"""Files of YOLOX: checkpoints of the authors' repository saved as safetensors, and this package's own.

The authors' stem cuts the image into every second pixel, upper left, lower left, upper right and lower right, and runs
a 3x3 convolution over the four side by side; ours is the one 6x6 convolution of stride 2 that both are together.
"""

import re

import numpy as np

from zoo.weights.layouts import TORCH_NORM, Layout, Tensors, from_torch

_NECK = {
    "lateral_conv0": "neck_lateral0_conv",
    "reduce_conv1": "neck_lateral1_conv",
    "bu_conv2": "neck_up0_conv",
    "bu_conv1": "neck_up1_conv",
    "C3_p4": "neck_down0",
    "C3_p3": "neck_down1",
    "C3_n3": "neck_up0",
    "C3_n4": "neck_up1",
}
_SPLIT = {"conv1": "enter_conv", "conv2": "bypass_conv", "conv3": "merge_conv"}
_HEAD = {"cls_preds": "class", "reg_preds": "box", "obj_preds": "object"}
_KIND = {"": "", "pconv.": "", "dconv.": "_depthwise"}  # a depthwise convolution and the 1x1 behind it, or one for both


def _torch(name: str) -> str:
    match = re.fullmatch(r"(.+)\.(conv|bn)\.(\w+)", name)
    if match:
        place, kind, variable = match.groups()
        layer = _place(place)
        if not layer or variable not in TORCH_NORM or (kind == "conv" and variable != "weight"):
            return ""
        return f"{layer}/kernel" if kind == "conv" else f"{layer}_norm/{TORCH_NORM[variable]}"
    match = re.fullmatch(r"head\.(cls_preds|reg_preds|obj_preds)\.(\d)\.(weight|bias)", name)
    if match:
        return f"head{match[2]}_{_HEAD[match[1]]}/{'kernel' if match[3] == 'weight' else 'bias'}"
    return ""


def _place(name: str) -> str:
    """The layer of ours that a block of convolution and normalisation is."""
    if name == "backbone.backbone.stem.conv":
        return "stem_conv"
    match = re.fullmatch(r"head\.stems\.(\d)", name)
    if match:
        return f"head{match[1]}_stem_conv"
    match = re.fullmatch(r"head\.(cls|reg)_convs\.(\d)\.(\d)(?:\.([dp]conv))?", name)
    if match:
        branch = "class" if match[1] == "cls" else "box"
        return f"head{match[2]}_{branch}_conv{match[3]}{'_depthwise' if match[4] == 'dconv' else ''}"
    match = re.fullmatch(r"backbone\.backbone\.dark([2-5])\.(\d)\.?(.*)", name)
    if match:
        stage, index = int(match[1]) - 2, int(match[2])
        if index == 0:
            return f"stage{stage}_conv{'_depthwise' if match[3] == 'dconv' else ''}"
        if stage == 3 and index == 1:
            return {"conv1": "stage3_pyramid_conv0", "conv2": "stage3_pyramid_conv1"}.get(match[3], "")
        return _of_split(f"stage{stage}", match[3])
    match = re.fullmatch(r"backbone\.(\w+)(?:\.(.+))?", name)
    if match and match[1] in _NECK:
        ours, rest = _NECK[match[1]], match[2] or ""
        if ours.endswith("_conv"):
            return f"{ours}{'_depthwise' if rest == 'dconv' else ''}"
        return _of_split(ours, rest)
    return ""


def _of_split(ours: str, rest: str) -> str:
    if rest in _SPLIT:
        return f"{ours}_{_SPLIT[rest]}"
    match = re.fullmatch(r"m\.(\d+)\.conv([12])(?:\.([dp]conv))?", rest)
    if not match:
        return ""
    return f"{ours}_block{match[1]}_conv{int(match[2]) - 1}{'_depthwise' if match[3] == 'dconv' else ''}"


def _ours(tensors: Tensors) -> Tensors:
    """Torch's order of axes to ours, depthwise kernels apart, and the stem as one convolution."""
    found = from_torch(tensors)
    for name, tensor in found.items():
        if name.endswith("_depthwise/kernel") and tensor.ndim == 4:
            found[name] = tensor.transpose(0, 1, 3, 2)
    stem = found.get("stem_conv/kernel")
    if stem is not None and stem.shape[:2] == (3, 3) and stem.shape[2] % 4 == 0:
        rows, columns, incoming, filters = stem.shape
        parts = stem.reshape(rows, columns, 2, 2, incoming // 4, filters)  # (…, right, lower, channels, filters)
        found["stem_conv/kernel"] = np.ascontiguousarray(parts.transpose(0, 3, 1, 2, 4, 5)).reshape(
            2 * rows, 2 * columns, incoming // 4, filters
        )
    return found


def arguments(tensors: Tensors) -> dict[str, object]:
    """Width, depth, kind of convolutions and number of classes."""
    found: dict[str, object] = {}
    if "stem_conv/kernel" in tensors:
        found["width"] = int(tensors["stem_conv/kernel"].shape[-1])
    found["depthwise"] = "stage0_conv_depthwise/kernel" in tensors
    if "head0_class/kernel" in tensors:
        found["classes"] = int(tensors["head0_class/kernel"].shape[-1])
    return found


HEAD = tuple(f"head{level}_class/{variable}" for level in range(3) for variable in ("kernel", "bias"))

LAYOUTS = (
    Layout(
        "YOLOX",
        "yolo",
        "head.obj_preds.0.weight",
        _torch,
        adapt=_ours,
        scaling="bgr:0/1",
        pickle=(
            "yolox_nano.pth, yolox_tiny.pth or yolox_s.pth",
            "['model']",
            "https://github.com/Megvii-BaseDetection/YOLOX/releases/tag/0.1.1rc0",
            "Apache-2.0",
        ),
    ),
    Layout("this package's YOLO", "yolo", "head0_object/kernel", lambda name: name),
)
