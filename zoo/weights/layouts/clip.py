"""Files of CLIP: Hugging Face's, of both towers.

- Positions are a list there, the class token's first; ours are a grid of patches, and the class token has its own. A grid of
  another size than the model's is resampled, as for vision transformers; of a text's positions the model takes the first.
- Which token ends a text is in no file; it is the last of the authors' vocabulary.
"""

import math
import re

from zoo.weights.layouts import Layout, Tensors, from_torch
from zoo.weights.layouts.bert import first_positions
from zoo.weights.layouts.vit import placed

_OUTER = {
    "vision_model.embeddings.class_embedding": "image_class_token/token",
    "vision_model.embeddings.patch_embedding.weight": "image_patches/kernel",
    "vision_model.embeddings.position_embedding.weight": "image_positions/list",
    "vision_model.pre_layrnorm.weight": "image_norm/gamma",
    "vision_model.pre_layrnorm.bias": "image_norm/beta",
    "vision_model.post_layernorm.weight": "image_features/gamma",
    "vision_model.post_layernorm.bias": "image_features/beta",
    "visual_projection.weight": "image_projection/kernel",
    "text_model.embeddings.token_embedding.weight": "text_words/embeddings",
    "text_model.embeddings.position_embedding.weight": "text_positions/table",
    "text_model.final_layer_norm.weight": "text_features/gamma",
    "text_model.final_layer_norm.bias": "text_features/beta",
    "text_projection.weight": "text_projection/kernel",
    "logit_scale": "pairs/scale",
}
_INNER = {
    "layer_norm1.weight": "norm0/gamma",
    "layer_norm1.bias": "norm0/beta",
    "layer_norm2.weight": "norm1/gamma",
    "layer_norm2.bias": "norm1/beta",
    **{
        f"{theirs}.{variable}": f"{ours}/{known}"
        for theirs, ours in (
            ("self_attn.q_proj", "query"),
            ("self_attn.k_proj", "key"),
            ("self_attn.v_proj", "value"),
            ("self_attn.out_proj", "mixed"),
            ("mlp.fc1", "hidden"),
            ("mlp.fc2", "output"),
        )
        for variable, known in (("weight", "kernel"), ("bias", "bias"))
    },
}
_TOWERS = {"vision": "image", "text": "text"}
_BLOCK = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)")
# (0.48145466, 0.4578275, 0.40821073) and (0.26862954, 0.26130258, 0.27577711) of 1 in the authors' code
_SCALING = "122.7709383,116.7460125,104.09373615/68.5005327,66.6321579,70.32316305"


def _rename(name: str) -> str:
    block = _BLOCK.fullmatch(name)
    if not block:
        return _OUTER.get(name, "")
    found = _INNER.get(block[3], "")
    return f"{_TOWERS[block[1]]}_block{block[2]}_{found}" if found else ""


def _adapt(tensors: Tensors) -> Tensors:
    found = from_torch(tensors)
    if "image_positions/list" in found:
        places = found.pop("image_positions/list")
        found["image_class_token/position"], found["image_positions/grid"] = places[0], places[1:]
    return found


def arguments(tensors: Tensors) -> dict[str, object]:
    """Size of the patches and of the vectors in common, and what follows from the tables of tokens and positions."""
    found: dict[str, object] = {}
    if "image_patches/kernel" in tensors:
        found["patch"] = patch = tensors["image_patches/kernel"].shape[0]
        grid = tensors.get("image_positions/grid")
        if grid is not None and math.isqrt(grid[..., 0].size) ** 2 == grid[..., 0].size:
            side = patch * math.isqrt(grid[..., 0].size)
            found["input_shape"] = (side, side, tensors["image_patches/kernel"].shape[2])
    if "text_words/embeddings" in tensors:
        found["vocabulary"] = vocabulary = len(tensors["text_words/embeddings"])
        found["end"] = vocabulary - 1
    if "text_positions/table" in tensors:
        found["length"] = len(tensors["text_positions/table"])
    if "text_projection/kernel" in tensors:
        found["latent"] = tensors["text_projection/kernel"].shape[1]
    return found


def fit(tensors: Tensors, wanted: dict[str, tuple[int, ...]]) -> Tensors:
    """The first of a text's positions, and a picture's as a grid of the model's size."""
    found = {**tensors, **first_positions(tensors, wanted, "text_positions/table")}
    grid, shape = tensors.get("image_positions/grid"), wanted.get("image_positions/grid")
    if grid is not None and shape is not None and grid.shape[-1] == shape[-1]:
        found["image_positions/grid"] = placed(grid, shape)
    return found


HEAD = ()

_CONFIG = {
    "vision_config.hidden_size": "width",
    "vision_config.num_hidden_layers": "depth",
    "vision_config.num_attention_heads": "heads",
    "vision_config.layer_norm_eps": "epsilon",
    "vision_config.hidden_act": ("quick_gelu",),
    "text_config.hidden_size": "text_width",
    "text_config.num_hidden_layers": "text_depth",
    "text_config.num_attention_heads": "text_heads",
    "text_config.layer_norm_eps": "epsilon",
    "text_config.hidden_act": ("quick_gelu",),
}

LAYOUTS = (
    Layout(
        "Hugging Face CLIP",
        "clip",
        "vision_model.pre_layrnorm.weight",
        _rename,
        adapt=_adapt,
        scaling=_SCALING,
        config=_CONFIG,
    ),
    Layout("this package's CLIP", "clip", "pairs/scale", lambda name: name),
)
