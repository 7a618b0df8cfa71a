"""Files of face recognition networks of InsightFace (`iresnet18` … `iresnet100`), saved as safetensors.

- Torch flattens the last map channels first: the rows of the dense layer stand in another order there.
- The last normalisation has a scale there, which is never trained, and none here: it is multiplied into the dense layer
  and the moving mean, which is exact.
- The published models take RGB images of 112x112 pixels, aligned by five points of the face, on the scale -1 … 1.
"""

import math
import re

import numpy as np

from zoo.weights.layouts import TORCH_NORM, Layout, Tensors, from_torch

_PLACES = {  # name in a block, or at the top where it begins with a slash -> our layer
    "bn1": "input_norm",
    "conv1": "conv0",
    "bn2": "conv0_norm",
    "prelu": "conv0_prelu",
    "conv2": "conv1",
    "bn3": "conv1_norm",
    "downsample.0": "shortcut",
    "downsample.1": "shortcut_norm",
    "/conv1": "stem_conv",
    "/bn1": "stem_conv_norm",
    "/prelu": "stem_conv_prelu",
    "/bn2": "final_norm",
    "/fc": "logits",
    "/features": "logits_norm",
}


def _torch(name: str) -> str:
    layer, _, variable = name.rpartition(".")
    match = re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", layer)
    ours = _PLACES.get(match[3] if match else f"/{layer}", "")
    if match and ours:
        ours = f"stage{int(match[1]) - 1}_block{match[2]}_{ours}"
    if ours.endswith("_prelu"):
        variable = {"weight": "alpha"}.get(variable, "")
    elif ours.endswith("_norm"):
        variable = TORCH_NORM.get(variable, "")
    else:
        variable = {"weight": "kernel", "bias": "bias"}.get(variable, "")
    return f"{ours}/{variable}" if ours and variable else ""


def _placed(tensors: Tensors) -> Tensors:
    """Slopes with the axes of a map, the dense layer's rows in our order and with the scale behind it."""
    ours = {
        name: tensor.reshape(1, 1, -1) if name.endswith("/alpha") else tensor
        for name, tensor in from_torch(tensors).items()
    }
    kernel, channels = ours.get("logits/kernel"), len(ours.get("final_norm/beta", ()))
    if kernel is not None and channels and kernel.shape[0] % channels == 0:
        side = math.isqrt(kernel.shape[0] // channels)
        if side**2 * channels == kernel.shape[0]:
            by_channel = kernel.reshape(channels, side, side, -1)
            ours["logits/kernel"] = by_channel.transpose(1, 2, 0, 3).reshape(kernel.shape)
    scale = ours.pop("logits_norm/gamma", np.float32(1))
    for name in ("logits/kernel", "logits/bias", "logits_norm/moving_mean"):
        if name in ours:
            ours[name] = ours[name] * scale
    return ours


def arguments(tensors: Tensors) -> dict[str, int]:
    """Length of an embedding and filters of the stem."""
    found = {}
    if "logits/bias" in tensors:
        found["latent"] = len(tensors["logits/bias"])
    if "stem_conv/kernel" in tensors:
        found["width"] = tensors["stem_conv/kernel"].shape[-1]
    return found


LAYOUTS = (
    Layout(
        "InsightFace",
        "face_embedding",
        "layer1.0.prelu.weight",
        _torch,
        adapt=_placed,
        scaling="tf",
        pickle=(
            "backbone.pth",
            "",
            "https://github.com/deepinsight/insightface/tree/master/recognition/arcface_torch",
            "for non-commercial research only",
        ),
    ),
)
