"""Files of recurrent networks of PyTorch: one `nn.RNN`, `nn.LSTM` or `nn.GRU`, a linear head, and an embedding of tokens.

- Torch keeps a matrix and a bias of its own for what comes in and for the state, Keras adds the two biases up; only a GRU
  has both, since its reset gate acts on one of them.
- A GRU's gates are reset, update, new in torch, and update, reset, new in Keras; an LSTM's are in the same order.
- The parts may have any names in the module that was saved; the head is what is called so, `fc`, `linear`, `output` …
"""

import re

import numpy as np

from zoo.weights.layouts import Layout, Tensors

_CELLS = {1: "simple_rnn_cell", 3: "gru_cell", 4: "lstm_cell"}  # by the gates
_RECURRENT = re.compile(r"(?:.+\.)?(weight|bias)_(ih|hh)_l(\d+)(_reverse)?")
_HEAD = re.compile(r"(?:.+\.)?(?:head|fc|linear|dense|out|output|classifier|decoder|logits)\.(weight|bias)")
_EMBEDDING = re.compile(r"(?:.+\.)?(?:emb|embed|embedding|embeddings|encoder)\.weight")
_OURS = re.compile(r"layer(\d+)/(?:forward_layer\d+/)?\w+_cell/recurrent_kernel")


def _rename(name: str) -> str:
    if found := _RECURRENT.fullmatch(name):
        what, source, layer, backward = found.groups()
        return f"layer{layer}/{'backward' if backward else 'forward'}/{what}_{source}"
    if found := _HEAD.fullmatch(name):
        return f"logits/{'kernel' if found[1] == 'weight' else 'bias'}"
    return "embedding/embeddings" if _EMBEDDING.fullmatch(name) else ""


def _adapt(tensors: Tensors) -> Tensors:
    both = any("/backward/" in name for name in tensors)
    found = {
        name: tensor.T if name == "logits/kernel" else tensor
        for name, tensor in tensors.items()
        if "/weight_" not in name and "/bias_" not in name
    }
    for name, states in tensors.items():
        if not name.endswith("/weight_hh"):
            continue
        layer, way, _ = name.split("/")
        gates = states.shape[0] // states.shape[1]
        if gates not in _CELLS or f"{layer}/{way}/weight_ih" not in tensors:
            found[name] = states  # a network of another kind, which the comparison with the model will name
            continue
        place = f"{layer}/{way}_{layer}/{_CELLS[gates]}" if both else f"{layer}/{_CELLS[gates]}"
        none = np.zeros(len(states), np.float32)
        biases = [_ordered(tensors.get(f"{layer}/{way}/bias_{source}", none), gates) for source in ("ih", "hh")]
        found[f"{place}/kernel"] = _ordered(tensors[f"{layer}/{way}/weight_ih"], gates).T
        found[f"{place}/recurrent_kernel"] = _ordered(states, gates).T
        found[f"{place}/bias"] = np.stack(biases) if gates == 3 else biases[0] + biases[1]
    return found


def _ordered(rows: np.ndarray, gates: int) -> np.ndarray:
    """Rows by gate, a GRU's in the order of Keras."""
    if gates != 3:
        return rows
    reset, update, new = np.split(rows, 3)
    return np.concatenate([update, reset, new])


def arguments(tensors: Tensors) -> dict[str, object]:
    """Sizes of the network, and the number of columns or of tokens."""
    kernels = {int(match[1]): tensor for name, tensor in tensors.items() if (match := _OURS.fullmatch(name))}
    if not kernels:
        return {}
    found: dict[str, object] = {"depth": len(kernels), "width": kernels[min(kernels)].shape[0]}
    if "embedding/embeddings" in tensors:
        return {**found, "vocabulary": len(tensors["embedding/embeddings"]), "input_shape": (None,)}
    first = [tensor for name, tensor in tensors.items() if re.fullmatch(r"layer0/.*_cell/kernel", name)]
    return {**found, "input_shape": (None, first[0].shape[0])}


LAYOUTS = (
    Layout(
        "PyTorch recurrent network",
        "recurrent",
        lambda names: any(name.endswith("weight_ih_l0") for name in names),
        _rename,
        adapt=_adapt,
    ),
)
