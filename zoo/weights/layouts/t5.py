"""Files of T5, version 1.0 and 1.1: Hugging Face's.

- The embeddings may lie there three or four times, for the encoder, the decoder and, in version 1.0, the logits.
- Of two matrices in front of the dense layer, which version 1.1 has, the first goes through the activation.
- Matrices of tokens have rows up to a multiple of 128, which no token of the tokenizer stands for.
"""

import re

import numpy as np

from zoo.weights.layouts import Layout, Tensors, from_torch

_OUTER = {
    "shared.weight": "words/embeddings",
    "encoder.embed_tokens.weight": "left_out/encoder",
    "decoder.embed_tokens.weight": "left_out/decoder",
    "lm_head.weight": "logits/kernel",
    "encoder.final_layer_norm.weight": "encoder_norm/scale",
    "decoder.final_layer_norm.weight": "features/scale",
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": "left_out/bias",  # old files; never used
}
_INNER = {
    "q": "query/kernel",
    "k": "key/kernel",
    "v": "value/kernel",
    "o": "mixed/kernel",
    "wi": "hidden/kernel",
    "wi_0": "hidden/kernel",
    "wi_1": "gate/kernel",
    "wo": "output/kernel",
}
_PARTS = {"SelfAttention": "_self", "EncDecAttention": "_cross", "DenseReluDense": ""}
_BLOCK = re.compile(r"(encoder|decoder)\.block\.(\d+)\.layer\.(\d)\.(?:(\w+)\.)?(\w+)\.weight")
_ROWS = 128  # of which matrices of tokens have a multiple


def _rename(name: str) -> str:
    block = _BLOCK.fullmatch(name)
    if name in _OUTER or not block:
        return _OUTER.get(name, "")
    side, number, place, part, inner = block.groups()
    if inner == "relative_attention_bias":
        return f"{side}_bias/table"
    if inner == "layer_norm":
        last = place == ("1" if side == "encoder" else "2")
        return f"{side}_block{number}{'' if last else ('_self', '_cross')[int(place)]}_norm/scale"
    return f"{side}_block{number}{_PARTS[part]}_{_INNER[inner]}" if part in _PARTS and inner in _INNER else ""


def _adapt(tensors: Tensors) -> Tensors:
    words, gated = tensors.get("words/embeddings"), any("_gate/" in name for name in tensors)
    copies = ["left_out/encoder", "left_out/decoder", *([] if gated else ["logits/kernel"])]
    if any(name in tensors and not np.array_equal(tensors[name], words) for name in copies):
        raise ValueError(
            "encoder.embed_tokens, decoder.embed_tokens or lm_head is not the matrix of the embeddings, which both sides share "
            "here; a file with several has no place in the model"
        )
    return from_torch(
        {name: tensor for name, tensor in tensors.items() if name not in copies and name != "left_out/bias"}
    )


def arguments(tensors: Tensors) -> dict[str, object]:
    """Size of the vocabulary."""
    return {"vocabulary": len(tensors["words/embeddings"])} if "words/embeddings" in tensors else {}


def fit(tensors: Tensors, wanted: dict[str, tuple[int, ...]]) -> Tensors:
    """Without the last rows of tokens, where a tokenizer has no number for them."""
    found = dict(tensors)
    for name, axis in (("words/embeddings", 0), ("logits/kernel", 1)):
        if name in found and name in wanted:
            count = wanted[name][axis]
            if found[name].shape[axis] == -(-count // _ROWS) * _ROWS:
                found[name] = found[name].take(range(count), axis=axis)
    return found


HEAD = ()

_CONFIG = {
    "d_model": "width",
    "num_layers": "depth",
    "num_heads": "heads",
    "layer_norm_epsilon": "epsilon",
    "relative_attention_num_buckets": "buckets",
    "relative_attention_max_distance": "distance",
    "feed_forward_proj": ("relu", "gated-gelu"),  # which of them, the tensors tell
}

LAYOUTS = (
    Layout(
        "Hugging Face T5",
        "t5",
        lambda names: {"shared.weight", "encoder.final_layer_norm.weight"} <= set(names),
        _rename,
        adapt=_adapt,
        config=_CONFIG,
    ),
    Layout(
        "this package's T5",
        "t5",
        lambda names: {"encoder_bias/table", "decoder_bias/table"} <= set(names),
        lambda name: name,
    ),
)
