"""Files of GPT-2: Hugging Face's, of the network alone or with the matrix that gives logits, which is that of the embeddings.

- Matrices are (in, out), as ours are; queries, keys and values are one, here they are three.
- Old files hold the causal mask of each block, which is no weight.
"""

import re

import numpy as np

from zoo.weights.layouts import Layout, Tensors
from zoo.weights.layouts.bert import first_positions

_OUTER = {
    "wte.weight": "words/embeddings",
    "wpe.weight": "positions/table",
    "ln_f.weight": "features/gamma",
    "ln_f.bias": "features/beta",
    "lm_head.weight": "left_out/head",
}
_INNER = {
    "ln_1.weight": "norm0/gamma",
    "ln_1.bias": "norm0/beta",
    "attn.c_attn.weight": "together/kernel",
    "attn.c_attn.bias": "together/bias",
    "attn.c_proj.weight": "mixed/kernel",
    "attn.c_proj.bias": "mixed/bias",
    "ln_2.weight": "norm1/gamma",
    "ln_2.bias": "norm1/beta",
    "mlp.c_fc.weight": "hidden/kernel",
    "mlp.c_fc.bias": "hidden/bias",
    "mlp.c_proj.weight": "output/kernel",
    "mlp.c_proj.bias": "output/bias",
    "attn.bias": "left_out/mask",
    "attn.masked_bias": "left_out/mask_value",
}
_BLOCK = re.compile(r"h\.(\d+)\.(.+)")


def _rename(name: str) -> str:
    name = name.removeprefix("transformer.")
    block = _BLOCK.fullmatch(name)
    if not block:
        return _OUTER.get(name, "")
    found = _INNER.get(block[2], "")
    return f"block{block[1]}_{found}" if found else ""


def _adapt(tensors: Tensors) -> Tensors:
    head = tensors.get("left_out/head")
    if head is not None and not np.array_equal(head, tensors["words/embeddings"]):
        raise ValueError(
            "lm_head.weight is not the matrix of the embeddings, which gives the logits here; a head with one of its own has "
            "no place in the model"
        )
    found = {}
    for name, tensor in tensors.items():
        if "_together/" in name:
            for part, values in zip(("query", "key", "value"), np.split(tensor, 3, axis=-1), strict=True):
                found[name.replace("together", part)] = values
        elif "left_out/" not in name:
            found[name] = tensor
    return found


def arguments(tensors: Tensors) -> dict[str, object]:
    """Size of the vocabulary and number of positions."""
    found: dict[str, object] = {}
    if "words/embeddings" in tensors:
        found["vocabulary"] = len(tensors["words/embeddings"])
    if "positions/table" in tensors:
        length = len(tensors["positions/table"])
        found |= {"length": length, "input_shape": (length,)}
    return found


def fit(tensors: Tensors, wanted: dict[str, tuple[int, ...]]) -> Tensors:
    """The first of the positions."""
    return {**tensors, **first_positions(tensors, wanted)}


HEAD = ()

_CONFIG = {
    "n_embd": "width",
    "n_layer": "depth",
    "n_head": "heads",
    "layer_norm_epsilon": "epsilon",
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),  # three names of one function
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
}

LAYOUTS = (
    Layout("Hugging Face GPT-2", "gpt", "transformer.wte.weight", _rename, adapt=_adapt, config=_CONFIG),
    Layout("Hugging Face GPT-2 without head", "gpt", "wte.weight", _rename, adapt=_adapt, config=_CONFIG),
    Layout(
        "this package's GPT",
        "gpt",
        lambda names: {"words/embeddings", "positions/table"} <= set(names) and "segments/embeddings" not in names,
        lambda name: name,
    ),
)
