"""Files of Faster R-CNN: torchvision, the published ones and those of its releases since.

- torchvision sets the epsilon of its frozen batch normalisations to 0 when it loads the published weights, so that is
  what they were trained with: ours, 1e-5, is taken off the variances.
- it flattens what is cut out under a box channels first: the rows of the first dense layer stand in another order there.
- releases before 0.13 named the convolutions of pyramid and proposals without the number of the layer inside.
"""

import math
import re

import numpy as np

from zoo.weights.layouts import Layout, Tensors, blocks, from_torch
from zoo.weights.layouts import resnet as backbone

HEAD = ("head_logits/kernel", "head_logits/bias", "head_deltas/kernel", "head_deltas/bias")
_EPSILON = 1e-5  # of our batch normalisations
_BODY = "backbone.body."
_LAYERS = {
    "rpn.head.conv": "anchors_conv",
    "rpn.head.conv.0.0": "anchors_conv",
    "rpn.head.cls_logits": "anchors_logits",
    "rpn.head.bbox_pred": "anchors_deltas",
    "roi_heads.box_head.fc6": "head_dense",
    "roi_heads.box_head.fc7": "features",
    "roi_heads.box_predictor.cls_score": "head_logits",
    "roi_heads.box_predictor.bbox_pred": "head_deltas",
}


def _torch(name: str) -> str:
    if name.startswith(_BODY):
        return backbone._torch(name.removeprefix(_BODY))
    layer, _, variable = name.rpartition(".")
    variable = {"weight": "kernel", "bias": "bias"}.get(variable, "")
    match = re.fullmatch(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)(?:\.0)?", layer)
    ours = f"pyramid{'_inner' * (match[1] == 'inner')}{match[2]}" if match else _LAYERS.get(layer, "")
    return f"{ours}/{variable}" if ours and variable else ""


def _adapted(tensors: Tensors) -> Tensors:
    ours = from_torch(tensors)
    for name, tensor in ours.items():
        if name.endswith("/moving_variance"):
            ours[name] = (tensor.astype(np.float64) - _EPSILON).astype(np.float32)
    kernel, channels = ours.get("head_dense/kernel"), arguments(ours).get("pyramid", 0)
    if kernel is not None and channels and kernel.shape[0] % channels == 0:
        side = math.isqrt(kernel.shape[0] // channels)
        if side * side * channels == kernel.shape[0]:
            by_channel = kernel.reshape(channels, side, side, -1)
            ours["head_dense/kernel"] = by_channel.transpose(1, 2, 0, 3).reshape(kernel.shape)
    return ours


def arguments(tensors: Tensors) -> dict[str, object]:
    """How wide and deep the network is, by the shapes of its kernels."""

    def outputs(name: str) -> int:
        return int(tensors[f"{name}/kernel"].shape[-1])

    if any(f"{name}/kernel" not in tensors for name in ("stem_conv", "pyramid0", "features", "head_logits")):
        return {}
    return {
        **backbone.arguments(tensors),
        "classes": outputs("head_logits") - 1,
        "depth": blocks(tensors),
        "width": outputs("stem_conv"),
        "bottleneck": "stage0_block0_conv2/kernel" in tensors,
        "pyramid": outputs("pyramid0"),
        "hidden": outputs("features"),
    }


LAYOUTS = (
    Layout(
        "torchvision Faster R-CNN", "faster_rcnn", "roi_heads.box_predictor.cls_score.weight", _torch,
        {"frozen": True}, _adapted, scaling="torch",
        pickle=("fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", "", "https://download.pytorch.org/models", "BSD-3-Clause"),
    ),
    Layout("this package's Faster R-CNN", "faster_rcnn", HEAD[0], lambda name: name),
)  # fmt: skip
