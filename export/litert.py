"""Keras model to LiteRT (`.tflite`) for phones and microcontrollers, in float or in 8-bit integers throughout."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from export import ExportError, parity
from export.convert import check
from export.process import through_tensorflow
from zoo import tasks
from zoo.data.signature import ImagePreprocess, Signature, TablePreprocess

AGREEMENT = 0.95
_SAME = 1e-12  # variance below which an answer counts as constant


@dataclass(frozen=True)
class Comparison:
    """How a LiteRT file answers beside Keras.

    Attributes:
        difference: largest absolute difference of an answer.
        agreement: share of rows with the same most likely class; for one output, the share of its variance explained.
    """

    difference: float
    agreement: float


def to_litert(
    model: Any,
    path: str | Path,
    *,
    signature: Signature | None = None,
    int8: bool = False,
    calibration: parity.Arrays | None = None,
    tolerance: float = parity.TOLERANCE,
    agreement: float = AGREEMENT,
) -> Path:
    """Write a Keras model as a LiteRT file that has been run and gives the same answers.

    With a signature the file takes `image` uint8, or `numbers` float32 with NaN where missing, and gives
    `probabilities` or `value`. LiteRT has no text, and 8 bits cannot hold columns of different units at once: a table
    with text columns, and every table in INT8, takes `features`, which are `signature.inputs(raw)`. Without a
    signature it is the model's own tensors, and `logits`. The batch axis is free. An INT8 file has 8-bit inputs and
    outputs, whose scale and zero point its tensors state; `run` applies them.

    Args:
        model: functional Keras model with one input, on any backend, giving logits.
        path: file to write; it appears only when the comparison passed.
        signature: preprocessing, labels and task to put inside the file.
        int8: integers throughout, for devices without floating point.
        calibration: rows that set the 8-bit ranges, from the training split: raw inputs with a signature, else by
            input name. Needed for `int8`; a float file is compared on random rows without them.
        tolerance: largest difference of a float file, relative to the largest answer where that is above 1.
        agreement: least agreement of an INT8 file with Keras on the calibration rows, see `Comparison`.

    Returns:
        The path written; `compare` gives the figures.

    Raises:
        ExportError: no calibration rows for INT8, an operation without LiteRT form, or answers that differ too much.
    """
    path = Path(path)
    check(model, signature)
    if len(model.inputs) != 1:
        raise ExportError(
            f"cannot export {model.name!r} to LiteRT: it has {len(model.inputs)} inputs, one is supported"
        )
    if int8 and not calibration:
        raise ExportError(
            "an INT8 file needs calibration rows, got none; give calibration=data.train.x or a part of it"
        )
    rows = calibration or parity.sample(model, signature)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        draft = Path(folder) / "model.tflite"
        own = None
        if int8:
            own = Path(folder) / "calibration.npz"
            np.savez(own, rows=_own(signature, rows, int8))
        through_tensorflow("export.litert", model, signature, draft, calibration=str(own) if own else None)
        found = compare(model, signature, draft, rows)
        if int8 and not found.agreement >= agreement:
            raise ExportError(
                f"the INT8 LiteRT file of {model.name!r} agrees with Keras on {found.agreement:.3f} of the rows, at least "
                f"{agreement} is asked for; give more calibration rows, or export it in float"
            )
        if not int8:
            truth = _truth(model, signature, rows)
            allowed = tolerance * max(1.0, float(np.abs(truth).max()))
            if not found.difference <= allowed:
                raise ExportError(
                    f"the LiteRT file of {model.name!r} differs from Keras by {found.difference:.3g}, allowed is {allowed:.3g}"
                )
        draft.replace(path)
    return path


def compare(model: Any, signature: Signature | None, path: str | Path, inputs: parity.Arrays) -> Comparison:
    """Run a LiteRT file at batch 1 and on all rows, beside Keras.

    Args:
        model: the Keras model it was written from.
        signature: what it was exported with.
        path: LiteRT file.
        inputs: raw inputs with a signature, else the model's own by name.
    """
    truth = _truth(model, signature, inputs)
    own = _own(signature, inputs, _takes_features(path))
    found = run(path, own)
    difference = max(float(np.abs(found - truth).max()), float(np.abs(run(path, own[:1]) - truth[:1]).max()))
    if truth.shape[-1] > 1:
        return Comparison(difference, float((found.argmax(-1) == truth.argmax(-1)).mean()))
    spread = float(truth.var())
    missed = float(np.mean((found - truth) ** 2))
    return Comparison(difference, 1 - missed / spread if spread > _SAME else float(missed <= _SAME))


def run(path: str | Path, rows: np.ndarray) -> np.ndarray:
    """Answers of a LiteRT file, float32 (batch, outputs), with scales and zero points applied, in chunks of rows."""
    live = _interpreter(path)
    chunks = [rows[start : start + parity.CHUNK] for start in range(0, len(rows), parity.CHUNK)]
    return np.concatenate([_invoke(live, chunk) for chunk in chunks])


def _invoke(live: Any, rows: np.ndarray) -> np.ndarray:
    [given], [answered] = live.get_input_details(), live.get_output_details()
    if tuple(given["shape"]) != rows.shape:
        live.resize_tensor_input(given["index"], rows.shape)
    live.allocate_tensors()
    scale, zero = given["quantization"]
    if scale:
        limits = np.iinfo(given["dtype"])
        rows = np.clip(np.rint(rows / scale + zero), limits.min, limits.max)
    live.set_tensor(given["index"], rows.astype(given["dtype"]))
    live.invoke()
    found = live.get_tensor(answered["index"]).astype(np.float32)
    scale, zero = answered["quantization"]
    return (found - np.float32(zero)) * np.float32(scale) if scale else found


def _interpreter(path: str | Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(str(path), num_threads=os.cpu_count() or 1)


def _takes_features(path: str | Path) -> bool:
    return "features" in _interpreter(path).get_input_details()[0]["name"]


def _truth(model: Any, signature: Signature | None, inputs: parity.Arrays) -> np.ndarray:
    return next(iter(parity.keras_answers(model, signature, inputs).values()))


def _own(signature: Signature | None, inputs: parity.Arrays, features: bool) -> np.ndarray:
    """The one array that a file takes, from raw inputs; images as they are."""
    if signature is None or isinstance(signature.preprocess, ImagePreprocess):
        return next(iter(inputs.values()))
    return signature.inputs(inputs) if features or _text(signature) else inputs["numbers"]


def _text(signature: Signature) -> bool:
    return isinstance(signature.preprocess, TablePreprocess) and bool(signature.preprocess.categories)


def write(model: Any, signature: Signature | None, path: Path, calibration: str | None) -> None:
    """Write a LiteRT file that nobody has run yet; needs the TensorFlow backend."""
    import tensorflow as tf

    step = signature.preprocess if signature else None
    own = model.inputs[0]
    name, dtype, shape = own.name, own.dtype, tuple(own.shape)
    if isinstance(step, ImagePreprocess):
        name, dtype = "image", "uint8" if calibration is None else "float32"
    elif isinstance(step, TablePreprocess):
        name = "numbers" if calibration is None and not step.categories else "features"
    weights = [(variable, keras.ops.convert_to_numpy(variable)) for variable in model.variables]

    def call(given: Any) -> dict[str, Any]:
        x = given
        if step is not None and name != "features":
            mean, std = tf.constant(step.mean, tf.float32), tf.constant(step.std, tf.float32)
            x = tf.cast(x, tf.float32)
            x = (tf.where(tf.math.is_nan(x), mean, x) if name == "numbers" else x) - mean
            x /= std
        constants = [(variable, tf.constant(value)) for variable, value in weights]
        with keras.StatelessScope(state_mapping=constants):  # calibration cannot read variables
            logits = model(x, training=False)
        if signature is None:
            return {"logits": logits}
        if signature.task == "regression":
            return {"value": logits * signature.target_std + signature.target_mean}
        return {tasks.get(signature.task).output: tf.nn.softmax(logits)}

    function = tf.function(call, input_signature=[tf.TensorSpec(shape, dtype, name=name)], autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], tf.Module())
    if calibration is not None:
        with np.load(calibration, allow_pickle=False) as arrays:
            rows = arrays["rows"].astype(np.float32)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([row[None]] for row in rows)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8 if isinstance(step, ImagePreprocess) else tf.int8
        converter.inference_output_type = tf.int8
    try:
        content = converter.convert()
    except Exception as error:
        raise ExportError(f"cannot export {model.name!r} to LiteRT: the converter failed: {error}") from error
    path.write_bytes(content)
