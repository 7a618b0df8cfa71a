"""Files of Inception networks: keras.applications, torchvision (GoogLeNet and the third version) and timm (the third).

What differs between them, and how it is met:

- keras.applications names nothing but numbers its layers in the order they were made. The numbers may start anywhere.
- torchvision and timm scale in the batch normalisations of Inception v3, ours do not: the scale is multiplied into
  the kernel and the moving mean in front of it, which is exact.
- torchvision and timm count zeros beyond the border in averages: `padded_mean=True`.
- the auxiliary classifiers in torchvision's files are not read.
- torchvision's pretrained models bring images to the scale "tf" themselves (`transform_input`), which is left to the
  preprocessing here; timm's files want that scale too, but for the one called gluon.
"""

import re
from collections.abc import Iterable
from typing import Any

from zoo.weights.layouts import TORCH_NORM, Layout, Tensors, from_torch

_UNUSED = "auxiliary/"
_BRANCHES = {  # convolutions of each branch of Inception v3, by place of the block
    "stage0_block": (1, 2, 3, 1),
    "stage1_reduce": (1, 3),
    "stage1_block": (1, 3, 5, 1),
    "stage2_reduce": (2, 4),
    "stage2_block": (1, 3, 4, 1),
}
_BLOCKS = (
    *(f"stage0_block{index}" for index in range(3)),
    "stage1_reduce",
    *(f"stage1_block{index}" for index in range(4)),
    "stage2_reduce",
    *(f"stage2_block{index}" for index in range(2)),
)
_IN_ORDER = (
    *(f"stem_conv{index}" for index in range(5)),
    *(
        f"{block}_branch{branch}_conv{index}"
        for block in _BLOCKS
        for branch, count in enumerate(_BRANCHES[block.rstrip("0123456789")])
        for index in range(count)
    ),
)
_TORCH_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
_TORCH_BLOCKS = dict(zip(("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"), _BLOCKS, strict=True))
_TORCH_BRANCHES = {  # the same places -> names in torchvision
    "stage0_block": ("1x1", "5x5", "3x3dbl", "_pool"),
    "stage1_reduce": ("3x3", "3x3dbl"),
    "stage1_block": ("1x1", "7x7", "7x7dbl", "_pool"),
    "stage2_reduce": ("3x3", "7x7x3"),
    "stage2_block": ("1x1", "3x3", "3x3dbl", "_pool"),
}


def _numbered(name: str) -> str:
    layer, _, variable = name.partition("/")
    if layer == "predictions":
        return f"logits/{variable}"
    return name if re.fullmatch(r"(conv2d|batch_normalization)(_\d+)?", layer) else ""


def _by_number(tensors: Tensors) -> Tensors:
    """The n-th convolution in a file is the n-th that keras.applications makes, and so is the n-th normalisation."""
    places = {}
    for kind, suffix in (("conv2d", ""), ("batch_normalization", "_norm")):
        found = {name.partition("/")[0] for name in tensors}
        found = sorted((layer for layer in found if re.fullmatch(rf"{kind}(_\d+)?", layer)), key=_number)
        if len(found) == len(_IN_ORDER):
            places |= {layer: f"{ours}{suffix}" for layer, ours in zip(found, _IN_ORDER, strict=True)}
    ours = {}
    for name, tensor in tensors.items():
        layer, _, variable = name.partition("/")
        ours[f"{places.get(layer, layer)}/{variable}"] = tensor
    return ours


def _counted(names: Iterable[str]) -> bool:
    """As many convolutions of no name but a number as the third version has."""
    return sum(bool(re.fullmatch(r"conv2d(_\d+)?/kernel", name)) for name in names) == len(_IN_ORDER)


def _number(layer: str) -> int:
    return int(layer.rpartition("_")[2]) if layer[-1].isdigit() and "_" in layer else 0


def _variable(kind: str, variable: str) -> str:
    """End of our name for a variable of a torch convolution or the normalisation behind it; "" if unknown."""
    if kind == "bn" and variable in TORCH_NORM:
        return f"_norm/{TORCH_NORM[variable]}"
    return "/kernel" if (kind, variable) == ("conv", "weight") else ""


def _head(variable: str) -> str:
    return {"weight": "logits/kernel", "bias": "logits/bias"}.get(variable, "")


def _torch_v3(name: str) -> str:
    if name.startswith("AuxLogits."):
        return _UNUSED + name
    layer, _, variable = name.rpartition(".")
    if layer == "fc":
        return _head(variable)
    module, _, kind = layer.rpartition(".")
    end = _variable(kind, variable)
    if module in _TORCH_STEM and end:
        return f"stem_conv{_TORCH_STEM.index(module)}{end}"
    match = re.fullmatch(r"Mixed_(\d[a-e])\.branch(_pool|[^_]+)(?:_(\d)([ab]?))?", module)
    block = _TORCH_BLOCKS.get(match[1], "") if match else ""
    branches = _TORCH_BRANCHES.get(block.rstrip("0123456789"), ())
    if not end or match is None or match[2] not in branches:
        return ""
    index = int(match[3] or 1) - 1 + (match[4] == "b")
    return f"{block}_branch{branches.index(match[2])}_conv{index}{end}"


def _torch_v1(name: str) -> str:
    if re.match(r"aux[12]\.", name):
        return _UNUSED + name
    layer, _, variable = name.rpartition(".")
    if layer == "fc":
        return _head(variable)
    module, _, kind = layer.rpartition(".")
    end = _variable(kind, variable)
    stem = {"conv1": "stem_conv", "conv2": "stem_conv1", "conv3": "stem_conv2"}
    if module in stem and end:
        return f"{stem[module]}{end}"
    match = re.fullmatch(r"inception([345])([a-e])\.branch([1-4])(?:\.([01]))?", module)
    if not end or match is None:
        return ""
    index = int(match[4] or 0) if match[3] in "23" else 0
    return f"stage{int(match[1]) - 3}_block{'abcde'.index(match[2])}_branch{int(match[3]) - 1}_conv{index}{end}"


def _used(tensors: Tensors) -> Tensors:
    return from_torch({name: tensor for name, tensor in tensors.items() if not name.startswith(_UNUSED)})


def _without_scale(tensors: Tensors) -> Tensors:
    """Scales of the normalisations multiplied into the kernels and moving means before them."""
    ours = _used(tensors)
    folded = {}
    for name, tensor in ours.items():
        layer, _, variable = name.rpartition("/")
        scale = ours.get(f"{layer if variable == 'moving_mean' else f'{layer}_norm'}/gamma")
        if variable == "gamma":
            continue
        fits = scale is not None and variable in ("kernel", "moving_mean") and tensor.shape[-1] == len(scale)
        folded[name] = tensor * scale if fits else tensor
    return folded


def arguments(tensors: Tensors) -> dict[str, Any]:
    """The first version's stem and third branch, by the sizes of their kernels."""
    found: dict[str, Any] = {}
    if "stem_conv/kernel" in tensors:
        found["stem"] = "imagenet" if tensors["stem_conv/kernel"].shape[0] == 7 else "small"
    if found and "stage0_block0_branch2_conv1/kernel" in tensors:
        found["large"] = tensors["stage0_block0_branch2_conv1/kernel"].shape[0]
    return found


_KERAS_V3 = ("keras.applications InceptionV3", "inception_v3", _counted)
_OTHER_V3 = ("torchvision or timm Inception v3", "inception_v3", "Mixed_5b.branch1x1.conv.weight")
_OTHER_V1 = ("torchvision GoogLeNet", "inception_v1", "inception3a.branch1.conv.weight")

LAYOUTS = (
    Layout(*_KERAS_V3, _numbered, {"padded_mean": False}, _by_number, scaling="tf"),
    Layout(*_OTHER_V3, _torch_v3, {"padded_mean": True}, _without_scale, scaling="tf"),
    Layout(
        *_OTHER_V1,
        _torch_v1,
        adapt=_used,
        scaling="tf",
        pickle=("googlenet-1378be20.pth", "", "https://download.pytorch.org/models", "BSD-3-Clause"),
    ),
)
