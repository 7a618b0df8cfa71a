"""Files of vision transformers: timm, Hugging Face and torchvision.

- Queries, keys and values are one matrix in timm and torchvision and three in Hugging Face's files; ours are three, with
  the heads on an axis of their own.
- Positions are a list there, the class token's first; ours are a grid, and the class token has its own. A grid of
  another size than the model's is resampled.
- What Hugging Face keeps for pretraining, the pooler and the mask token, is left out: the answer is read before it.
"""

import logging
import math
import re

import numpy as np

from zoo.weights.layouts import Layout, Tensors, from_torch

log = logging.getLogger("zoo.weights")

_OUTER = {
    "patch_embed.proj": "patches",
    "cls_token": "class_token/token",
    "pos_embed": "positions/list",
    "norm": "features",
    "fc_norm": "features",
    "head": "logits",
    "embeddings.patch_embeddings.projection": "patches",
    "embeddings.cls_token": "class_token/token",
    "embeddings.position_embeddings": "positions/list",
    "embeddings.mask_token": "left_out/mask",
    "pooler.dense": "left_out/pooler",
    "layernorm": "features",
    "classifier": "logits",
    "conv_proj": "patches",
    "class_token": "class_token/token",
    "encoder.pos_embedding": "positions/list",
    "encoder.ln": "features",
    "heads.head": "logits",
}
_INNER = {
    "norm1": "norm0",
    "attn.qkv": "attention/together",
    "attn.proj": "attention/attention_output",
    "norm2": "norm1",
    "mlp.fc1": "hidden",
    "mlp.fc2": "output",
    "layernorm_before": "norm0",
    "attention.attention.query": "attention/query",
    "attention.attention.key": "attention/key",
    "attention.attention.value": "attention/value",
    "attention.output.dense": "attention/attention_output",
    "layernorm_after": "norm1",
    "intermediate.dense": "hidden",
    "output.dense": "output",
    "attention.q_proj": "attention/query",
    "attention.k_proj": "attention/key",
    "attention.v_proj": "attention/value",
    "attention.o_proj": "attention/attention_output",
    "ln_1": "norm0",
    "self_attention.in_proj": "attention/together",
    "self_attention.out_proj": "attention/attention_output",
    "ln_2": "norm1",
    "mlp.0": "hidden",
    "mlp.3": "output",
    "mlp.linear_1": "hidden",
    "mlp.linear_2": "output",
}
_BLOCK = re.compile(r"(?:blocks|encoder\.layer|layers|encoder\.layers\.encoder_layer)[._](\d+)\.(.+)")


def _rename(name: str) -> str:
    name = name.removeprefix("vit.")
    if name in _OUTER:
        return _OUTER[name]
    layer, _, variable = re.sub(r"in_proj_(weight|bias)$", r"in_proj.\1", name).rpartition(".")
    block = _BLOCK.fullmatch(layer)
    found = _INNER.get(block[2], "") if block else _OUTER.get(layer, "")
    if not found or variable not in ("weight", "bias"):
        return ""
    if "norm" in found or found == "features":
        variable = {"weight": "gamma", "bias": "beta"}[variable]
    elif variable == "weight":
        variable = "kernel"
    return f"block{block[1]}_{found}/{variable}" if block else f"{found}/{variable}"


def _adapt(tensors: Tensors) -> Tensors:
    found = {}
    for name, tensor in from_torch(tensors).items():
        if name.startswith("left_out/"):
            continue
        if "/together/" in name:
            for part, values in zip(("query", "key", "value"), np.split(tensor, 3, axis=-1), strict=True):
                found[name.replace("together", part)] = values
        elif name == "positions/list":
            places = tensor.reshape(-1, tensor.shape[-1])
            if "class_token/token" in tensors:
                found["class_token/position"], places = places[0], places[1:]
            found["positions/grid"] = places
        else:
            found[name] = tensor.reshape(-1) if name == "class_token/token" else tensor
    return found


def arguments(tensors: Tensors) -> dict[str, int | str]:
    """Size of the patches, and how the answer is read."""
    pool = {"pool": "token" if "class_token/token" in tensors else "mean"}
    return {"patch": tensors["patches/kernel"].shape[0], **pool} if "patches/kernel" in tensors else pool


def fit(tensors: Tensors, wanted: dict[str, tuple[int, ...]]) -> Tensors:
    """Matrices of attention by heads, and positions as a grid of the model's size."""
    found = dict(tensors)
    for name, tensor in tensors.items():
        shape = wanted.get(name, tensor.shape)
        if "_attention/" in name and tensor.ndim < len(shape) and tensor.size == math.prod(shape):
            found[name] = tensor.reshape(shape)
        elif name == "positions/grid" and tensor.shape[-1] == shape[-1]:
            found[name] = placed(tensor, shape)
    return found


def placed(grid: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Positions (rows, columns, width), from a list that stands for a square, as in timm, or for the model's own grid."""
    if grid.ndim == 2:
        side = math.isqrt(len(grid))
        if len(grid) == side**2:
            grid = grid.reshape(side, side, -1)
        elif grid.size == math.prod(shape):
            grid = grid.reshape(shape)
    if grid.ndim != 3 or grid.shape == shape:
        return grid
    log.info("positions of %d x %d patches are resampled to %d x %d", *grid.shape[:2], *shape[:2])
    return resampled(grid, *shape[:2])


def resampled(grid: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A grid (rows, columns, width) at another size, bicubically and without aliasing, as timm and Pillow do it."""
    down, across = _weights(grid.shape[0], rows), _weights(grid.shape[1], columns)
    return np.einsum("ro,cp,opw->rcw", down, across, grid.astype(np.float64), optimize=True).astype(np.float32)


def _weights(old: int, new: int) -> np.ndarray:
    """Share of each old place in each new one, (new, old).

    Source: Keys 1981, "Cubic Convolution Interpolation for Digital Image Processing", equation 15 with a = -1/2; where
    the grid shrinks, the kernel is as much wider.
    """
    step = old / new
    middles = (np.arange(new)[:, None] + 0.5) * step
    far = np.abs(np.arange(old) + 0.5 - middles) / max(step, 1)
    near = (1.5 * far - 2.5) * far**2 + 1
    beside = ((-0.5 * far + 2.5) * far - 4) * far + 2
    shares = np.where(far < 1, near, np.where(far < 2, beside, 0))
    return shares / shares.sum(axis=1, keepdims=True)


_AUTHORS = {"epsilon": 1e-6}
_FACE = {"epsilon": 1e-12}
_CONFIG = {"num_attention_heads": "heads", "hidden_act": ("gelu", "gelu_python")}

LAYOUTS = (
    Layout("timm ViT", "vit", "blocks.0.attn.qkv.weight", _rename, _AUTHORS, _adapt),
    Layout("Hugging Face ViT", "vit", "vit.embeddings.cls_token", _rename, _FACE, _adapt, "tf", config=_CONFIG),
    Layout("Hugging Face ViT without head", "vit", "embeddings.cls_token", _rename, _FACE, _adapt, config=_CONFIG),
    Layout("torchvision ViT", "vit", "encoder.pos_embedding", _rename, _AUTHORS, _adapt, "torch"),
)
