"""Where a text-to-text model looks: the weights of the attention by which each token of an answer reads the tokens of its text."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.explain.activations import takes
from zoo.explain.subject import Raw

SUFFIXES = (".png", ".svg", ".pdf")
_SPACES = str.maketrans({" ": "␣", "Ġ": "␣", "▁": "␣"})  # as tokenizers write them
_MOST = 60  # tokens of a side whose names are shown


class Looked(NamedTuple):
    """Of one row.

    Attributes:
        text: tokens that were read.
        answer: tokens that the model wrote, the one that ends it included where it did.
        written: the same as a text.
        weights: (answer, text), means over heads and layers; a row sums to 1, but that of a local window to less.
    """

    text: tuple[str, ...]
    answer: tuple[str, ...]
    written: str
    weights: np.ndarray


def looked(model: Any, signature: Any, raw: Raw) -> list[Looked]:
    """Where a Keras model looks while it writes its own answers.

    Args:
        model: with attention from the answer to the text.
        signature: `zoo.data.Signature` with the tokenizer.
        raw: `{"text": str (batch,)}`, and what else there is, which is not read.

    Raises:
        ValueError: the model has no such attention.
    """
    import keras

    from zoo.evaluate.translations import written

    step = signature.preprocess
    texts = written(model, signature, raw["text"])
    inputs = step({"text": raw["text"], "answer": np.array(texts)})
    calls = crossing(model)
    if not calls:
        raise ValueError(f"no attention of {model.name!r} reads the text for an answer, so there is none to be drawn")
    parts = [part for _, part in calls]
    tensors = {id(tensor): tensor for part in parts for tensor in keras.tree.flatten(part) if _symbolic(tensor)}
    found = keras.Model(model.inputs, list(tensors.values())).predict_on_batch(inputs)
    values = dict(zip(tensors, found if isinstance(found, list) else [found], strict=True))
    total = 0.0
    for layer, given in calls:
        args, kwargs = keras.tree.map_structure(lambda part: values.get(id(part), part), given)
        weights = keras.ops.convert_to_numpy(layer(*args, **kwargs, return_attention_scores=True)[1])
        total = total + weights.mean(axis=1) / len(calls)  # (batch, places, length)
    rows = []
    for source, said, share, text in zip(inputs["tokens"], inputs["answer"], total, texts, strict=True):
        there = source != step.pad
        count = int(np.argmax(said[1:] == step.end)) + 1 if step.end in said[1:] else len(said) - 1
        names = [_name(signature.labels[token]) for token in source[there]]
        answer = [_name(signature.labels[token]) for token in said[1 : 1 + count]]
        rows.append(Looked(tuple(names), tuple(answer), text, share[:count][:, there]))
    return rows


def crossing(model: Any) -> list[tuple[Any, tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Attention layers whose query depends on the answer and whose key does not, each with its arguments, as symbols."""
    return [
        (layer, (node.arguments.args, node.arguments.kwargs))
        for layer in model.layers
        if takes(layer, "return_attention_scores")
        for node in layer._inbound_nodes
        if _reads(node.arguments.args[0], "answer") and not _reads(node.arguments.args[1], "answer")
    ]


def _reads(tensor: Any, name: str) -> bool:
    """Whether a symbolic tensor depends on the model's input of that name."""
    stack, seen = [tensor], set()
    while stack:
        operation, index, _ = stack.pop()._keras_history
        if (id(operation), index) not in seen:
            seen.add((id(operation), index))
            if operation.name == name:
                return True
            stack.extend(operation._inbound_nodes[index].input_tensors)
    return False


def _symbolic(tensor: Any) -> bool:
    import keras

    return isinstance(tensor, keras.KerasTensor)


def _name(token: str) -> str:
    return token.translate(_SPACES)


def draw(rows: list[Looked], path: str | Path) -> Path:
    """Picture of texts from left to right against answers from top to bottom, a panel for each row.

    Args:
        rows: of `looked`.
        path: of a .png, .svg or .pdf file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wide = max(4.0, 0.22 * max(len(row.text) for row in rows) + 1.2)
    high = [max(1.6, 0.22 * len(row.answer) + 0.8) for row in rows]
    figure = Figure(figsize=(wide, sum(high)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), 1, squeeze=False, height_ratios=high)[:, 0]
    for panel, row in zip(panels, rows, strict=True):
        picture = panel.imshow(row.weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        if len(row.text) <= _MOST:
            turned = np.median([len(token) for token in row.text]) > 1
            panel.set_xticks(range(len(row.text)), row.text, rotation=90 if turned else 0, fontsize=8)
        if len(row.answer) <= _MOST:
            panel.set_yticks(range(len(row.answer)), row.answer, fontsize=8)
        panel.set(xlabel="text", ylabel="answer")
    figure.colorbar(picture, ax=panels, label="share of attention", shrink=min(1.0, 3 / sum(high)))
    figure.savefig(path)
    return Path(path)
