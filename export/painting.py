"""A model that paints, as two: one that writes codes behind a text, and one that makes pictures of codes."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from export import ExportError, files, parity
from export.convert import OPSET, in_float32, write
from export.files import EXTERNAL_ABOVE
from zoo.architectures.dalle import drawn
from zoo.data.signature import Signature

PARTS = ("text", "words", "logits", "codes", "decoder_stem", "pixels")  # layers of a model that paints
DRAWER = "drawer.onnx"
_TRIED = 8  # pictures that are compared
_APART = 0.5  # pixel values that they may differ by, of 255


class Halves(NamedTuple):
    """The two, for which codes have the first numbers, and the tokens of texts those behind them.

    Attributes:
        texts: the whole model's inputs -> texts and codes behind them, in its own numbers.
        writer: texts and codes (batch, length + places) -> logits of the code behind each place, (…, codes).
        drawer: codes (batch, rows, columns) -> picture (batch, height, width, channels), pixel values in [0, 255].
        block: `picture` of a manifest's `generation`.
    """

    texts: Any
    writer: Any
    drawer: Any
    block: dict[str, int]

    def read(self, signature: Signature, rows: parity.Arrays) -> parity.Arrays:
        """What the writer reads of the whole model's raw inputs."""
        found = self.texts(parity.own_inputs(self.texts, signature, rows), training=False)
        kinds = self.writer.get_layer("words").input_dim
        return {"tokens": (keras.ops.convert_to_numpy(found) + self.block["text"]) % kinds}


def apart(model: Any) -> Halves:
    """The two halves of a model such as "dalle", with its weights.

    Args:
        model: Keras model with the layers `PARTS`.

    Raises:
        ExportError: it has other layers.
    """
    if not set(PARTS) <= {layer.name for layer in model.layers}:
        raise ExportError(
            f"{model.name!r} paints no pictures; a model that does, such as 'dalle', has {', '.join(PARTS)}"
        )
    model = in_float32(model)
    text, words, logits, shown, stem, pixels = (model.get_layer(name) for name in PARTS)
    codes, places = int(shown.output.shape[-1]), math.prod(shown.output.shape[1:3])
    length, first = text.output.shape[1] - places, words.input_dim - codes

    numbers = layers.Embedding(words.input_dim, words.output_dim, name=words.name)
    ends = layers.Dense(codes, name=logits.name)
    writer = _with(
        keras.Model(text.output, logits.output, name=model.name),
        keras.Input((length + places,), dtype="int32", name="tokens"),
        {words.name: numbers, logits.name: ends},
    )
    (table,), (kernel, bias) = words.get_weights(), logits.get_weights()
    numbers.set_weights([np.roll(table, codes, axis=0)])
    ends.set_weights([kernel[:, first:], bias[first:]])

    # a convolution of a picture that is 1 in one channel and 0 in the others takes a row of its kernel
    looked = layers.Embedding(codes, stem.filters, name=stem.name)
    parameters = _with(
        keras.Model(shown.output, pixels.output),
        keras.Input(shown.output.shape[1:3], dtype="int32", name="codes"),
        {stem.name: looked},
    )
    kernel, bias = stem.get_weights()
    looked.set_weights([kernel[0, 0] + bias])
    middle = parameters.output[..., : pixels.filters // 2]
    drawer = keras.Model(parameters.input, 255.0 * drawn(middle), name=f"{model.name}_drawer")
    block = {"text": codes, "padding": codes + text.vocabulary, "pad": text.pad, "places": places}
    return Halves(keras.Model(model.inputs, text.output), writer, drawer, block)


def _with(model: Any, given: Any, others: dict[str, Any]) -> Any:
    """The same layers on another input, some of them replaced."""
    return keras.models.clone_model(model, given, clone_function=lambda layer: others.get(layer.name, layer))


def write_drawer(
    halves: Halves, folder: Path, *, opset: int = OPSET, external_above: int = EXTERNAL_ABOVE
) -> dict[str, Any]:
    """Write the file that makes pictures of codes, compared with Keras.

    Args:
        halves: of `apart`.
        folder: of the bundle.
        opset, external_above: of `export.convert.write`.

    Returns:
        Names of the file and of its weights' file, and their bytes.

    Raises:
        ExportError: an operation has no ONNX form, or pictures differ.
    """
    path = folder / DRAWER
    write(halves.drawer, None, path, opset=opset, external_above=external_above, names=["picture"])
    shape = (_TRIED, *halves.drawer.inputs[0].shape[1:])
    codes = np.random.default_rng(0).integers(0, halves.block["text"], shape).astype(np.int32)
    found = parity.run(parity.session(path), {"codes": codes})["picture"]
    gap = parity.distance(found, parity.keras_answers(halves.drawer, None, {"codes": codes})["logits"])
    if not gap <= _APART:
        raise ExportError(f"pictures of codes differ by {gap:.3g} pixel values from Keras, allowed is {_APART:g}")
    weights = files.weights_of(path)
    size = sum(each.stat().st_size for each in (path, weights) if each.exists())
    return {"drawer": DRAWER, "drawer_weights": weights.name if weights.exists() else "", "bytes": size}
