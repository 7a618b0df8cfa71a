"""Files of BERT: Hugging Face's, of the encoder alone or with one of its heads.

- A file with a head holds the encoder under `bert.`; one of the encoder alone does not.
- Files made from TensorFlow's have gamma and beta in normalisations, others weight and bias.
- The matrix that gives logits of words is that of the embeddings; where a file holds it twice, both must be the same.
- What a model does not read is left out: the pooler, a head for another use, and what tells whether one text follows another.
- Which token separates texts is in no file; it is 102 in the vocabularies of the authors, which have more than that.
"""

import re

import numpy as np

from zoo.weights.layouts import Layout, Tensors, from_torch

_SEPARATOR = 102
_OUTER = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "segments",
    "embeddings.LayerNorm": "embedded_norm",
    "pooler.dense": "features",
    "classifier": "logits",
    "cls.predictions": "logits",
    "cls.predictions.transform.dense": "prediction",
    "cls.predictions.transform.LayerNorm": "features_norm",
    "cls.predictions.decoder": "left_out/decoder",
    "cls.seq_relationship": "left_out/next",
}
_INNER = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "mixed",
    "attention.output.LayerNorm": "norm0",
    "intermediate.dense": "hidden",
    "output.dense": "output",
    "output.LayerNorm": "norm1",
}
_VARIABLES = {"weight": "kernel", "bias": "bias"}
_OF_NORMS = {"weight": "gamma", "bias": "beta", "gamma": "gamma", "beta": "beta"}
_TABLES = {"words": "embeddings", "segments": "embeddings", "positions": "table"}
_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
_OF_HEADS = ("prediction/", "features/", "logits/")


def _rename(name: str) -> str:
    layer, _, variable = name.removeprefix("bert.").rpartition(".")
    block = _BLOCK.fullmatch(layer)
    found = _INNER.get(block[2], "") if block else _OUTER.get(layer, "")
    known = {"weight": _TABLES[found]} if found in _TABLES else _OF_NORMS if "norm" in found else _VARIABLES
    if not found or variable not in known:
        return ""
    whole = found.replace("features_norm", "features")
    return f"block{block[1]}_{whole}/{known[variable]}" if block else f"{whole}/{known[variable]}"


def _adapt(tensors: Tensors) -> Tensors:
    twice = tensors.get("left_out/decoder/kernel")
    if twice is not None and not np.array_equal(twice, tensors["words/embeddings"]):
        raise ValueError(
            "cls.predictions.decoder.weight is not the matrix of the embeddings, which gives the logits here; a head with "
            "one of its own has no place in the model"
        )
    return {name: tensor for name, tensor in from_torch(tensors).items() if not name.startswith("left_out/")}


def arguments(tensors: Tensors) -> dict[str, object]:
    """Size of the vocabulary and number of positions; and the head, where the file has one for tokens."""
    found: dict[str, object] = {}
    if "words/embeddings" in tensors:
        vocabulary = len(tensors["words/embeddings"])
        found |= {"vocabulary": vocabulary, "separator": _SEPARATOR if vocabulary > _SEPARATOR else -1}
    if "positions/table" in tensors:
        length = len(tensors["positions/table"])
        found |= {"length": length, "input_shape": (length,)}
    if "logits/kernel" in tensors and "features/kernel" not in tensors:
        found["head"] = "tokens"
    return found


def fit(tensors: Tensors, wanted: dict[str, tuple[int, ...]]) -> Tensors:
    """The first of the positions, and nothing of heads that the model does not have."""
    found = {name: tensor for name, tensor in tensors.items() if name in wanted or not name.startswith(_OF_HEADS)}
    return found | first_positions(tensors, wanted)


def first_positions(tensors: Tensors, wanted: dict[str, tuple[int, ...]], name: str = "positions/table") -> Tensors:
    """As many of the positions of that name as the model has.

    Raises:
        ValueError: the file has fewer.
    """
    table, shape = tensors.get(name), wanted.get(name)
    if table is None or shape is None:
        return {}
    if len(table) < shape[0]:
        raise ValueError(
            f"the weights have {len(table)} positions, the model {shape[0]}; pass length={len(table)} or less, and cut "
            "longer texts"
        )
    return {name: table[: shape[0]]}


def HEAD(arguments: dict[str, object]) -> tuple[str, ...]:
    """Only a head for classes is replaced; that for words has none."""
    classes = arguments.get("head", "classification") in ("classification", "tokens")
    return ("logits/kernel", "logits/bias") if classes else ()


def TOP(arguments: dict[str, object]) -> tuple[str, ...]:
    """The pooler, which only whole texts are classified through."""
    whole = arguments.get("head", "classification") == "classification"
    return ("features/kernel", "features/bias") if whole else ()


_CONFIG = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "layer_norm_eps": "epsilon",
    "hidden_act": ("gelu", "gelu_python"),
}

LAYOUTS = (
    Layout(
        "Hugging Face BERT", "bert", "bert.embeddings.word_embeddings.weight", _rename, adapt=_adapt, config=_CONFIG
    ),
    Layout(
        "Hugging Face BERT without head",
        "bert",
        "embeddings.word_embeddings.weight",
        _rename,
        adapt=_adapt,
        config=_CONFIG,
    ),
    Layout("this package's BERT", "bert", "segments/embeddings", lambda name: name),
)
