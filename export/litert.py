"""Keras model to LiteRT (`.tflite`) for phones and microcontrollers: float, half, 8-bit weights, or integers."""

import contextlib
import importlib
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from export import ExportError, files, parity
from export.convert import check, in_float32
from export.lowering.walk import nodes_of
from export.process import layer_paths, through_tensorflow
from zoo import tasks
from zoo.data.signature import EDGE, STEEPEST, Calibration, ImagePreprocess, Signature, TablePreprocess

PRECISIONS = {
    "fp32": "float",
    "fp16": "weights in 16-bit floats",
    "w8": "weights in 8 bits, sums in float",
    "int8": "8-bit integers throughout",
}
AGREEMENT = 0.95
MAX_DROP = 0.005
_CALIBRATION = 256  # rows that set the 8-bit ranges
_TIMED = 30  # answers timed, after as many as a tenth of them to warm up
_SAME = 1e-12  # variance below which an answer counts as constant

Score = Callable[[parity.Arrays], float]


@dataclass(frozen=True)
class Comparison:
    """How a LiteRT file answers beside Keras.

    Attributes:
        difference: largest absolute difference of an answer.
        agreement: share of answers with the same largest element; for single values, the share of their variance
            explained. Of several outputs the lowest.
        bytes: size of the file.
        ms: median milliseconds of one row in LiteRT, on the threads asked for.
        score, keras_score: score of the file's and of Keras' answers; None if none was asked for.
    """

    difference: float
    agreement: float
    bytes: int
    ms: float
    score: float | None = None
    keras_score: float | None = None


def to_litert(
    model: Any,
    path: str | Path,
    *,
    signature: Signature | None = None,
    precision: str = "fp32",
    length: int | None = None,
    calibration: parity.Arrays | None = None,
    validation: parity.Arrays | None = None,
    score: Score | None = None,
    max_drop: float = MAX_DROP,
    tolerance: float = parity.TOLERANCE,
    agreement: float = AGREEMENT,
) -> Path:
    """Write a Keras model as a LiteRT file that has been run and gives the same answers.

    With a signature the file takes `image` uint8, or `numbers` float32 with NaN where missing, and gives
    `probabilities` or `value`. LiteRT has no text, and 8 bits cannot hold columns of different units at once: a table
    with text columns, and every table in "int8" or "w8", takes `features`, which are `signature.inputs(raw)`. Without a
    signature it is the model's own tensors, and `logits`, or each output by its layer's name. The batch axis is free.
    In an INT8 file floats go in and come out as 8-bit numbers, whose scale and zero point its tensors state; `run`
    applies them. Whole numbers stay what they are.

    Args:
        model: functional Keras model on any backend.
        path: file to write; it appears only when the comparison passed.
        signature: preprocessing, labels and task to put inside the file.
        precision: "fp32"; "fp16", half the size; "w8", a quarter of the size, weights in 8 bits and sums in float;
            "int8", integers throughout, for devices without floating point.
        length: what every axis becomes that the model leaves open, the batch excepted: steps of a sequence, height
            and width of an image. Needed if there is one. Recurrent layers are unrolled to this many steps.
        calibration: rows that set the 8-bit ranges, from the training split: raw inputs with a signature, else by
            input name. Needed for "int8".
        validation: rows for the comparison with Keras; the calibration rows, or else random ones if None.
        score: answers on the validation rows -> figure, larger is better. A file other than "fp32" must not lose more
            than `max_drop` of Keras' figure; without a score it must agree on `agreement` of the rows.
        max_drop: largest loss of the score, in its own unit.
        tolerance: largest difference of a "fp32" file, relative to the largest answer where that is above 1.
        agreement: least agreement with Keras where there is no score, see `Comparison`.

    Returns:
        The path written; `compare` gives the figures.

    Raises:
        ExportError: an unknown precision, no calibration rows for INT8, rows of another shape or that are all alike, an
            open axis without `length`, an operation without LiteRT form, or answers that differ too much.
    """
    path = Path(path)
    if precision not in PRECISIONS:
        raise ExportError(f"no LiteRT precision is called {precision!r}; it is one of {', '.join(PRECISIONS)}")
    check(model, signature)
    parity.check_numbers(max_drop=max_drop, tolerance=tolerance, agreement=agreement)
    model = in_float32(model)
    _check_length(model, length)
    if calibration is not None:
        calibration = parity.checked(model, signature, calibration, "calibration", length)
        if precision == "int8" and parity.alike(calibration):
            raise ExportError(
                "the calibration rows are all alike, which says nothing about ranges; give rows of the training data"
            )
    if validation is not None:
        validation = parity.checked(model, signature, validation, "validation", length)
    if precision == "int8" and calibration is None:
        raise ExportError(
            "an INT8 file needs calibration rows, got none; give calibration=data.train.x or a part of it"
        )
    task = None if signature is None else tasks.get(signature.task)
    if task is not None and task.paints:
        raise ExportError(
            f"{model.name!r} paints pictures code by code, which no file for devices does; export a bundle, whose run.py does"
        )
    if signature is not None and signature.preprocess.kind == "captioned":
        raise ExportError(
            f"{model.name!r} takes images with texts, which has no file for devices; make a classifier of it with zoo zero-shot, "
            "which has one"
        )
    if task is not None and task.writes and len(model.inputs) > 1:
        raise ExportError(
            f"{model.name!r} writes its answer token by token, which no file for devices does; export a bundle, whose run.py does"
        )
    if score is not None and validation is None:
        raise ExportError("a score needs the rows it is for; give validation=data.validation.x")
    rows = validation or calibration or parity.sample(model, signature, free=length or 8)
    with files.draft(path) as draft:
        own = None
        if precision == "int8" and calibration is not None:
            own = draft.with_name("calibration.npz")
            first = {name: values[:_CALIBRATION] for name, values in calibration.items()}
            np.savez(own, allow_pickle=False, **_own(signature, first, ("features",)))
        options = {"precision": precision, "length": length, "calibration": str(own) if own else None}
        through_tensorflow("export.litert", model, signature, draft, **options)
        if precision == "w8" and not _has_integers(draft):
            raise ExportError(f"nothing to shorten in {model.name!r}: no layer has enough weights; choose 'fp16'")
        truth = parity.keras_answers(model, signature, rows)
        found = compare(model, signature, draft, rows, truth=truth, score=score, timed=0)
        if precision == "fp32":
            largest = max(float(np.abs(values).max()) for values in truth.values())
            allowed = tolerance * max(1.0, largest)
            if not found.difference <= allowed:
                raise ExportError(
                    f"the LiteRT file of {model.name!r} differs from Keras by {found.difference:.3g}, "
                    f"allowed is {allowed:.3g}; nothing was written"
                )
        else:
            _gate(model, precision, found, max_drop, agreement)
    return path


def _gate(model: Any, precision: str, found: Comparison, max_drop: float, agreement: float) -> None:
    """Refuse a file that lost too much."""
    name = model.name
    other = "give more calibration rows, or choose 'w8'" if precision == "int8" else "choose 'fp32'"
    if found.score is not None and found.keras_score is not None:
        if not found.keras_score - found.score <= max_drop:
            raise ExportError(
                f"the score of the {precision} LiteRT file of {name!r} falls from {found.keras_score:.4f} to "
                f"{found.score:.4f}, by more than {max_drop}; {other}"
            )
    elif not found.agreement >= agreement:
        raise ExportError(
            f"the {precision} LiteRT file of {name!r} agrees with Keras on {found.agreement:.3f} of the rows, at least "
            f"{agreement} is asked for; {other}"
        )


def compare(
    model: Any,
    signature: Signature | None,
    path: str | Path,
    inputs: parity.Arrays,
    *,
    truth: parity.Arrays | None = None,
    score: Score | None = None,
    threads: int | None = None,
    timed: int = _TIMED,
) -> Comparison:
    """Run a LiteRT file at batch 1 and on all rows, beside Keras.

    Args:
        model: the Keras model it was written from.
        signature: what it was exported with.
        path: LiteRT file.
        inputs: raw inputs with a signature, else the model's own by name.
        truth: Keras' answers to these inputs, where they are known already.
        score: answers by output name -> figure, larger is better.
        threads: threads of LiteRT, every core if None.
        timed: answers of one row to time; with 0 `ms` is NaN.
    """
    truth = parity.keras_answers(model, signature, inputs) if truth is None else truth
    live = _Live(path, threads)
    own = _own(signature, inputs, live.inputs)
    one = {name: values[:1] for name, values in own.items()}
    try:
        found, first = live.run(own), live.run(one)
    except RuntimeError as error:
        raise ExportError(f"the LiteRT file of {model.name!r} does not run: {error}") from error
    pairs = [(found[name], truth[name]) for name in truth] + [(first[name], truth[name][:1]) for name in truth]
    return Comparison(
        difference=max(parity.distance(answer, value.astype(answer.dtype)) for answer, value in pairs),
        agreement=min(agreement_of(found[name], truth[name]) for name in truth),
        bytes=Path(path).stat().st_size,
        ms=live.median_ms(one, timed) if timed else float("nan"),
        score=score(found) if score else None,
        keras_score=score(truth) if score else None,
    )


def agreement_of(found: np.ndarray, truth: np.ndarray) -> float:
    """Share of answers with the same largest element; of single values, the share of their variance explained; of whole
    numbers, the share that are equal.
    """
    if truth.dtype.kind in "biu":
        return 1 - parity.distance(found.astype(truth.dtype), truth)
    if truth.shape[-1] > 1:
        return float((found.argmax(-1) == truth.argmax(-1)).mean())
    spread = float(truth.var())
    missed = float(np.mean((found - truth) ** 2))
    return 1 - missed / spread if spread > _SAME else float(missed <= _SAME)


def run(path: str | Path, inputs: parity.Arrays, threads: int | None = None) -> parity.Arrays:
    """Answers of a LiteRT file by output name, (batch, ...), with scales and zero points applied; figures are float32.

    Args:
        path: LiteRT file as `to_litert` writes it.
        inputs: what the file takes, by input name, batch first.
        threads: threads of LiteRT, every core if None.
    """
    return _Live(path, threads).run(inputs)


def inputs_of(path: str | Path) -> tuple[str, ...]:
    """Names of what a LiteRT file takes."""
    return tuple(_Live(path).inputs)


def _has_integers(path: Path) -> bool:
    """Whether a LiteRT file holds anything in 8 bits."""
    return any(detail["dtype"] is np.int8 for detail in _Live(path).interpreter.get_tensor_details())


class _Live:
    """A loaded LiteRT file."""

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(str(path), num_threads=threads or os.cpu_count() or 1)
        self.runner = self.interpreter.get_signature_runner()
        self.inputs: dict[str, Any] = self.runner.get_input_details()
        self.outputs: dict[str, Any] = self.runner.get_output_details()

    def run(self, inputs: parity.Arrays) -> parity.Arrays:
        rows = len(next(iter(inputs.values())))
        chunks = []
        for start in range(0, rows, parity.CHUNK):
            part = {name: values[start : start + parity.CHUNK] for name, values in inputs.items()}
            chunks.append(
                {name: _read(self.outputs[name], value) for name, value in self.runner(**self._feed(part)).items()}
            )
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in self.outputs}

    def median_ms(self, inputs: parity.Arrays, timed: int) -> float:
        feed = self._feed(inputs)
        times = []
        for _ in range(timed + 1 + timed // 10):
            started = time.perf_counter()
            self.runner(**feed)
            times.append(time.perf_counter() - started)
        return 1000 * float(np.median(times[-timed:]))

    def _feed(self, inputs: parity.Arrays) -> parity.Arrays:
        """Arrays in the file's types, with scales and zero points applied; each batch has a copy of its own."""
        feed = {}
        for name, detail in self.inputs.items():
            values, (scale, zero) = inputs[name], detail["quantization"]
            if scale:
                limits = np.iinfo(detail["dtype"])
                values = np.clip(np.rint(values / scale + zero), limits.min, limits.max)
            feed[name] = values.astype(detail["dtype"])
        return feed


def _read(detail: Any, values: np.ndarray) -> np.ndarray:
    scale, zero = detail["quantization"]
    if not scale and values.dtype.kind in "biu":  # names of things
        return values
    found = values.astype(np.float32)
    return (found - np.float32(zero)) * np.float32(scale) if scale else found


def _check_length(model: Any, length: int | None) -> None:
    open_axes = [(tensor.name, tuple(tensor.shape)) for tensor in model.inputs if None in tensor.shape[1:]]
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
        raise ExportError(f"length must be a whole number of at least 1, got length={length!r}")
    if open_axes and length is None:
        name, shape = open_axes[0]
        raise ExportError(
            f"cannot export {model.name!r} to LiteRT: input {name!r} has shape {shape}, and on devices only the batch "
            "is free; give length=, such as length=64"
        )
    if length is not None and not open_axes:
        raise ExportError(f"{model.name!r} leaves no axis open, so it has no use for length={length}; leave it out")


def _own(signature: Signature | None, inputs: parity.Arrays, names: Any) -> parity.Arrays:
    """What a file with inputs of these names takes, from raw inputs; images as they are."""
    if signature is None or isinstance(signature.preprocess, ImagePreprocess):
        return inputs
    if signature.preprocess.kind == "text":
        return signature.fed(inputs)
    if signature.preprocess.kind == "audio":
        return {"audio": signature.inputs(inputs)}
    if signature.preprocess.kind == "series":
        return {"features": signature.inputs(inputs)}
    return {"features": signature.inputs(inputs)} if "features" in names else {"numbers": inputs["numbers"]}


def write(
    model: Any, signature: Signature | None, path: Path, precision: str, length: int | None, calibration: str | None
) -> None:
    """Write a LiteRT file that nobody has run yet; needs the TensorFlow backend."""
    import tensorflow as tf

    step = signature.preprocess if signature else None
    specs = [
        tf.TensorSpec(
            (None, *(length if size is None else size for size in tensor.shape[1:])), tensor.dtype, tensor.name
        )
        for tensor in model.inputs
    ]
    if isinstance(step, ImagePreprocess):
        dtype = "float32" if precision == "int8" else "uint8"
        specs = [tf.TensorSpec(specs[0].shape, dtype, "image")]
    elif step is not None and step.kind in ("audio", "series"):
        if precision in ("int8", "w8"):
            raise ExportError(
                f"cannot export {model.name!r} to LiteRT in {precision}: the end of a row is NaN, which 8 bits have not; "
                "take fp32 or fp16"
            )
        specs = [tf.TensorSpec(specs[0].shape, "float32", "audio" if step.kind == "audio" else "features")]
    elif isinstance(step, TablePreprocess):
        takes_features = precision in ("int8", "w8") or bool(step.categories)
        specs = [tf.TensorSpec(specs[0].shape, "float32", "features" if takes_features else "numbers")]

    def call(*given: Any) -> dict[str, Any]:
        if isinstance(step, ImagePreprocess | TablePreprocess) and specs[0].name != "features":
            given = (_standardised(given[0], step, specs[0].name),)
        answers = keras.tree.flatten(model(list(given) if len(given) > 1 else given[0], training=False))
        if signature is None:
            return dict(zip(parity.output_names(model), answers, strict=True))
        task = tasks.get(signature.task)
        if tasks.decodes(task):
            raw = answers[0] if len(answers) == 1 else answers
            return task.decode_of(raw, given[0] if len(given) == 1 else given, signature) or {}
        if signature.task == "regression":
            return {"value": answers[0] * signature.target_std + signature.target_mean}
        return {task.output: _probabilities(answers[0], signature.calibration)}

    holder = tf.Module()
    holder.values = [variable.value for variable in model.variables]
    with _unrolled(model), _one_zero(), _near_masks() if precision == "int8" else contextlib.nullcontext():
        try:
            function = tf.function(call, input_signature=specs, autograph=False).get_concrete_function()
        except Exception as error:  # of a layer of the user's own
            reason = " ".join(str(error).split())[:300]
            raise ExportError(f"cannot export {model.name!r} to LiteRT: TensorFlow cannot run it: {reason}") from error
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], holder)
    if precision != "fp32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "fp16":
        converter.target_spec.supported_types = [tf.float16]
    if calibration is not None:
        with np.load(calibration, allow_pickle=False) as arrays:
            rows = {spec.name: arrays[spec.name].astype(spec.dtype.as_numpy_dtype) for spec in specs}
        count = len(next(iter(rows.values())))
        converter.representative_dataset = lambda: (
            {name: values[row : row + 1] for name, values in rows.items()} for row in range(count)
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8 if isinstance(step, ImagePreprocess) else tf.int8
        converter.inference_output_type = tf.int8
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TensorFlow calibrates with an interpreter that it deprecates
            content = converter.convert()
    except Exception as error:
        raise ExportError(f"cannot export {model.name!r} to LiteRT: {_reason(error, model, function.graph)}") from error
    path.write_bytes(content)


def _probabilities(logits: Any, calibration: Calibration | None) -> Any:
    """Probabilities of logits, calibrated if asked, as TensorFlow operations."""
    import tensorflow as tf

    if calibration is None:
        return tf.nn.softmax(logits)
    if calibration.method == "temperature":
        return tf.nn.softmax(logits * calibration.scale[0])
    within = tf.clip_by_value(tf.nn.softmax(logits), EDGE, 1 - EDGE)
    moved = (tf.math.log(within) - tf.math.log(1 - within)) * tf.constant(calibration.scale, tf.float32)
    alone = tf.sigmoid(tf.clip_by_value(moved + tf.constant(calibration.bias, tf.float32), -STEEPEST, STEEPEST))
    return alone / tf.reduce_sum(alone, axis=-1, keepdims=True)


def _standardised(given: Any, step: ImagePreprocess | TablePreprocess, name: str) -> Any:
    """The model's own input from raw pixels or numbers, as TensorFlow operations."""
    import tensorflow as tf

    mean, std = tf.constant(step.mean, tf.float32), tf.constant(step.std, tf.float32)
    values = tf.cast(given, tf.float32)
    if name == "numbers":
        values = tf.where(tf.math.is_nan(values), mean, values)
    scaled = (values - mean) / std
    return tf.gather(scaled, step.order, axis=-1) if isinstance(step, ImagePreprocess) and step.order else scaled


@contextlib.contextmanager
def _unrolled(model: Any) -> Iterator[None]:
    """Recurrent layers without loops, which LiteRT can neither quantize nor run on a batch of any size."""
    recurrent = [layer for layer in model._flatten_layers() if hasattr(layer, "unroll")]
    before = [layer.unroll for layer in recurrent]
    backward = [layer for layer in recurrent if layer.go_backwards]
    try:
        for layer in recurrent:
            layer.unroll = True
        for layer in backward:  # Keras, unrolled, puts zeros at masked steps as if they stood in the order of time
            layer.go_backwards, layer.call = False, _turned(layer.call)
        yield
    finally:
        for layer in backward:
            layer.go_backwards = True
            del layer.call
        for layer, unroll in zip(recurrent, before, strict=True):
            layer.unroll = unroll


def _turned(call: Any) -> Any:
    """A recurrent layer's call on steps and mask from the last to the first."""

    def turned(sequences: Any, initial_state: Any = None, mask: Any = None, **options: Any) -> Any:
        mask = None if mask is None else keras.ops.flip(mask, axis=1)
        return call(keras.ops.flip(sequences, axis=1), initial_state=initial_state, mask=mask, **options)

    return turned


@contextlib.contextmanager
def _near_masks() -> Iterator[None]:
    """Masked attention scores are -20; Keras' own -1e9 and less would leave 8 bits nothing for the others."""
    places = {
        "keras.src.backend.tensorflow.nn": "_get_large_negative",
        "keras.src.layers.activations.softmax": "_large_negative_number",
    }
    before = {}
    for module, name in places.items():
        home = importlib.import_module(module)
        if hasattr(home, name):  # private to Keras, so it may go; the comparison then tells
            before[home, name] = getattr(home, name)
            setattr(home, name, lambda dtype: -20.0)
    try:
        yield
    finally:
        for (home, name), function in before.items():
            setattr(home, name, function)


@contextlib.contextmanager
def _one_zero() -> Iterator[None]:
    """Minus zero is zero: LiteRT has not what Keras' argmax tells them apart by."""
    home: Any = importlib.import_module("keras.src.backend.tensorflow.numpy")
    before = getattr(home, "signbit", None)
    if before is None:  # private to Keras, so it may go; the comparison then tells
        yield
        return
    home.signbit = lambda x: x < 0
    try:
        yield
    finally:
        home.signbit = before


def _reason(error: Exception, model: Any, graph: Any) -> str:
    """What the converter could not do and in which layers, out of its pages of text."""
    message = str(error) or type(error).__name__
    missing = re.findall(r"(?:Flex|Custom|Select) ops: ([\w, ]+)", message)
    missing = ", ".join(missing).split(", ") if missing else re.findall(r"'(?:tf|tfl)\.(\w+)' op", message)
    if not missing:
        return f"the converter failed: {' '.join(message.split())[:300]}"
    named = []
    for kind in dict.fromkeys(missing):
        places = ", ".join(map(repr, _places(kind, model, graph)))
        named.append(f"{kind} (in {places})" if places else kind)
    return f"LiteRT has no {', '.join(named)}; leave that out, or export to ONNX"


def _places(kind: str, model: Any, graph: Any) -> list[str]:
    """Layers, or operations between them, that a kind of TensorFlow operation belongs to."""
    layers = {layer.name for _, layer in layer_paths(model)}
    known = layers | {node.operation.name for node in nodes_of(model)}
    found = []
    for made in graph.get_operations():
        if made.type == kind:
            parts = [(part, re.sub(r"_\d+$", "", part)) for part in made.name.split("/")[:-1]]  # Keras numbers calls
            names = [plain if plain in layers else part for part, plain in parts]
            found.append("/".join(name for name in names if name in known))
    return [path for path in dict.fromkeys(found) if path]
