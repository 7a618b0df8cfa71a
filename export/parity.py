"""The gate every exported file passes: run at batch 1 and n, compared with Keras, and if it differs, where first."""

import contextlib
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
from keras.src.models import Functional

from export import ExportError
from export.edges import INPUT
from export.lowering.walk import nodes_of
from zoo import tasks
from zoo.data.audio import AudioPreprocess
from zoo.data.lazy import Pictures
from zoo.data.signature import CaptionedPreprocess, ImagePreprocess, Preprocess, Signature
from zoo.data.texts import TextPreprocess

TOLERANCE = 1e-4
ODD = 13  # size at which open axes are tried once more
LARGE = 2**27  # bytes from which a file is loaded with an eye on memory
TIES = 0.002  # share of the whole numbers of an answer that may differ, where figures are equal up to a rounding
CHUNK = 64  # rows per call, so that large images fit in memory

Arrays = dict[str, np.ndarray]


def sample(model: Any, signature: Signature | None, rows: int = 5, seed: int = 0, free: int = 8) -> Arrays:
    """Random inputs by name that a file must answer: raw ones with a signature, else the model's own.

    Args:
        model: functional Keras model.
        signature: what it is exported with.
        rows: size of the batch.
        seed: of the values.
        free: size of each axis that the model leaves open.
    """
    random = np.random.default_rng(seed)
    if signature is None:
        return {t.name: _own(random, (rows, *(size or free for size in t.shape[1:])), t, model) for t in model.inputs}
    return _drawn(random, signature.preprocess, rows)


def _drawn(random: np.random.Generator, step: Preprocess, rows: int) -> Arrays:
    """Random inputs that a preprocessing takes; tokens in place of texts."""
    if isinstance(step, CaptionedPreprocess):
        return _drawn(random, step.image, rows) | _drawn(random, step.text, rows)
    if isinstance(step, AudioPreprocess):
        waves = random.uniform(-1, 1, (rows, step.samples)).astype(np.float32)
        waves[0, -(step.samples // 3) :] = np.nan  # a row that ends earlier
        return {"audio": waves}
    if isinstance(step, TextPreprocess):
        texts: Arrays = {}
        for name, (length,) in step.shapes.items():
            tokens = random.integers(0, step.vocabulary, (rows, length), dtype=np.int32)
            tokens[tokens == step.pad] = (step.pad + 1) % step.vocabulary
            tokens[np.arange(length) >= random.integers(1, length + 1, (rows, 1))] = step.pad
            texts[name] = tokens
        return texts
    if isinstance(step, ImagePreprocess):
        return {"image": random.integers(0, 256, (rows, *step.shape), dtype=np.uint8)}
    if step.kind == "series":
        spread = random.standard_normal((rows, *step.shape))
        series = (np.asarray(step.mean) + spread * np.asarray(step.std)).astype(np.float32)
        series[0, 0, 0] = np.nan
        series[-1, (step.shape[0] + 1) // 2 :] = np.nan  # a row that ends earlier
        return {"series": series}
    drawn: Arrays = {}
    if step.numbers:
        spread = random.standard_normal((rows, len(step.numbers)))
        drawn["numbers"] = (np.asarray(step.mean) + spread * np.asarray(step.std)).astype(np.float32)
        drawn["numbers"][0] = np.nan
    if step.categories:
        columns = [random.choice([*values, "", "never seen"], rows) for values in step.categories.values()]
        drawn["categories"] = np.stack(columns, axis=1)
    return drawn


def _own(random: np.random.Generator, shape: tuple[int, ...], tensor: Any, model: Any) -> np.ndarray:
    """Values for one input; whole numbers stay below the vocabulary of an embedding that reads them."""
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if "float" in dtype:
        return random.standard_normal(shape).astype(dtype if dtype != "bfloat16" else "float32")
    readers = [layer for layer in model.layers if isinstance(layer, keras.layers.Embedding)]
    sizes = [
        layer.input_dim for layer in readers if any(t is tensor for n in layer._inbound_nodes for t in n.input_tensors)
    ]
    return random.integers(0, min(sizes, default=2), shape).astype(dtype)


def checked(model: Any, signature: Signature | None, rows: Any, what: str, length: int | None = None) -> Arrays:
    """Rows by input name in the types that a file takes.

    Args:
        model: functional Keras model.
        signature: what it is exported with.
        rows: raw inputs with a signature, else the model's own; (rows, ...) by name.
        what: they are, for the message.
        length: size that every axis must have which the model leaves open, any if None.

    Raises:
        ExportError: no rows, other inputs or shapes than the model's, or values it cannot take.
    """
    if signature is not None and isinstance(rows, Mapping) and "text" in rows:
        rows = signature.fed(dict(rows))
    ports = _ports(model, signature, length)
    if not isinstance(rows, Mapping) or rows.keys() != ports.keys():
        given = ", ".join(map(str, rows)) if isinstance(rows, Mapping) else f"a {type(rows).__name__}"
        raise ExportError(
            f"the {what} rows must be arrays by input name; the model takes {', '.join(ports)}, got {given}"
        )
    found: dict[str, Any] = {
        name: values if isinstance(values, Pictures) else np.asarray(values) for name, values in rows.items()
    }
    counts = {name: len(values) if values.ndim else 0 for name, values in found.items()}
    if min(counts.values()) == 0:
        raise ExportError(f"the {what} rows are empty; give some, such as {what}=data.train.x")
    if len(set(counts.values())) > 1:
        raise ExportError(f"the {what} rows differ in number: {counts}; give as many for each input")
    for name, (shape, dtype) in ports.items():
        values = found[name]
        sizes = values.shape[1:]
        if len(sizes) != len(shape) or any(want not in (None, got) for want, got in zip(shape, sizes, strict=True)):
            raise ExportError(
                f"the {what} rows of {name!r} must be (rows, {', '.join(str(size or 'any') for size in shape)}), "
                f"got {values.shape}"
            )
        if dtype == "str":
            if values.dtype.kind not in "UO":
                raise ExportError(f"the {what} rows of {name!r} must hold text, got {values.dtype}")
            found[name] = values.astype(str)
            continue
        if isinstance(values, Pictures):  # right already, and not to be read at once
            continue
        if values.dtype.kind not in "biufV":  # V is bfloat16
            raise ExportError(f"the {what} rows of {name!r} must hold numbers, got {values.dtype}")
        if "float" in dtype:
            missing = np.isnan(values) if signature else False  # a missing number in a table
            if not (np.isfinite(values) | missing).all():
                raise ExportError(f"the {what} rows of {name!r} hold NaN or infinity; leave those rows out")
        elif not np.array_equal(values.astype(dtype), values):
            raise ExportError(f"the {what} rows of {name!r} must hold {dtype} numbers, got others in {values.dtype}")
        found[name] = values.astype(dtype)
    return found


def alike(rows: Arrays) -> bool:
    """Whether there are several rows and all of them are the same."""
    first = {name: np.broadcast_to(values[:1], values.shape) for name, values in rows.items()}
    return all(
        len(values) > 1 and np.array_equal(values, first[name], equal_nan=values.dtype.kind == "f")
        for name, values in rows.items()
    )


def check_numbers(**given: Any) -> None:
    """Refuse what is no number, such as a text or NaN.

    Raises:
        ExportError: one is not.
    """
    for name, value in given.items():
        if not isinstance(value, int | float) or math.isnan(value):
            raise ExportError(f"{name} must be a number, got {name}={value!r}")


def _ports(
    model: Any, signature: Signature | None, length: int | None
) -> dict[str, tuple[tuple[int | None, ...], str]]:
    """Shape without the batch, None where any size fits, and type of each input of a file."""
    if signature is None:
        sizes = {t.name: tuple(length if size is None else size for size in t.shape[1:]) for t in model.inputs}
        return {t.name: (sizes[t.name], _stored(t)) for t in model.inputs}
    step = signature.preprocess
    if step.kind == "audio":
        return {"audio": (step.shape, "float32")}
    if isinstance(step, TextPreprocess):
        return {name: (shape, "int32") for name, shape in step.shapes.items()}
    if step.kind == "series":
        return {"series": (step.shape, "float32")}
    if isinstance(step, ImagePreprocess):
        return {"image": (step.shape, "uint8")}
    if isinstance(step, CaptionedPreprocess):
        return {"image": (step.shape, "uint8"), "tokens": (step.text.shape, "int32")}
    columns = {"numbers": (len(step.numbers), "float32"), "categories": (len(step.categories), "str")}
    return {name: ((count,), dtype) for name, (count, dtype) in columns.items() if count}


def _stored(tensor: Any) -> str:
    """Type of one of the model's own inputs in numpy, which has no bfloat16."""
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    return "float32" if dtype == "bfloat16" else dtype


def keras_answers(model: Any, signature: Signature | None, inputs: Arrays) -> Arrays:
    """What Keras answers to these inputs, decoded as the file does: output name -> (batch, ...).

    Raises:
        ExportError: Keras fails on them.
    """
    rows = len(next(iter(inputs.values())))
    chunks: list[Arrays] = []
    for start in range(0, rows, CHUNK):
        own = own_inputs(model, signature, {name: values[start : start + CHUNK] for name, values in inputs.items()})
        try:
            answers = _through(model, own)
        except Exception as error:  # of a layer of the user's own, or because of the size
            raise ExportError(
                f"Keras cannot run {model.name!r} on the rows: {' '.join(str(error).split())[:300]}"
            ) from error
        outputs = [keras.ops.convert_to_numpy(keras.ops.cast(answer, "float32")) for answer in answers]
        if signature is None:
            chunks.append(dict(zip(output_names(model), outputs, strict=True)))
            continue
        raw = outputs[0] if len(outputs) == 1 else outputs
        given = own[0] if len(own) == 1 else dict(zip((t.name for t in model.inputs), own, strict=True))
        chunks.append(tasks.get(signature.task).answers_of(raw, given, signature))
    return {name: np.concatenate([part[name] for part in chunks]) for name in chunks[0]}


def output_names(model: Any) -> list[str]:
    """Names of the outputs in an exported file: `logits` for one, the model's own for several, numbered if alike."""
    if len(model.outputs) == 1:
        return ["logits"]
    names: list[str] = []
    for name in model.output_names:  # outputs of one layer share its name
        fresh, number = name, 0
        while fresh in names:
            number += 1
            fresh = f"{name}_{number}"
        names.append(fresh)
    return names


def own_inputs(model: Any, signature: Signature | None, inputs: Arrays) -> list[Any]:
    """The model's own inputs as tensors, in its order."""
    given = signature.inputs(inputs) if signature else inputs
    if not isinstance(given, dict):
        given = {model.inputs[0].name: given}
    return [keras.ops.convert_to_tensor(given[tensor.name]) for tensor in model.inputs]


def _through(
    model: Any, inputs: list[Any], note: Callable[[str, Any, Any], None] | None = None, scope: str = ""
) -> list[Any]:
    """Outputs of a functional model; unlike a call of the model, it drops each tensor after its last use.

    Args:
        model: functional or sequential Keras model.
        inputs: tensors in its order.
        note: called with the path, the node and the first result of each operation, also of those in models inside.
        scope: what the paths begin with.
    """
    nodes = nodes_of(model)
    last = {id(tensor): place for place, node in enumerate(nodes) for tensor in node.input_tensors}
    last |= {id(tensor): len(nodes) for tensor in model.outputs}
    live = {id(tensor): value for tensor, value in zip(model.inputs, inputs, strict=True)}
    for place, node in enumerate(nodes):
        args, kwargs = node.arguments.fill_in(live)
        kwargs = {name: value for name, value in kwargs.items() if name != "training" and value is not None}
        path = scope + node.operation.name
        if note and len(args) == 1 and not kwargs and _is_chain(node.operation, args[0]):
            found = _through(node.operation, [args[0]], note, f"{path}/")
        else:
            options = {"training": False} if getattr(node.operation, "_call_has_training_arg", False) else {}
            found = keras.tree.flatten(node.operation(*args, **kwargs, **options))
        if note:
            note(path, node, found[0])
        live.update((id(tensor), value) for tensor, value in zip(node.outputs, found, strict=True))
        for tensor in node.input_tensors:
            if last[id(tensor)] == place:
                live.pop(id(tensor), None)
    return [live[id(tensor)] for tensor in model.outputs]


def _is_chain(operation: Any, given: Any) -> bool:
    """Whether an operation is a model with a graph of its own that takes this one tensor."""
    return (
        isinstance(operation, Functional | keras.Sequential) and len(operation.inputs) == 1 and hasattr(given, "dtype")
    )


def session(model: str | Path | bytes) -> onnxruntime.InferenceSession:
    """CPU session of a file.

    Raises:
        ExportError: ONNX Runtime refuses the file.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if len(model) > LARGE if isinstance(model, bytes) else Path(model).stat().st_size > LARGE:
        # the last level stores every convolution kernel a second time; what it changes is the order in memory
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises many types of its own
        raise ExportError(
            f"the exported file does not load in ONNX Runtime {onnxruntime.__version__}: {error}"
        ) from error


def run(live: onnxruntime.InferenceSession, inputs: Arrays) -> Arrays:
    """Answers of a file by output name, in chunks of rows."""
    names = [output.name for output in live.get_outputs()]
    rows = len(next(iter(inputs.values())))
    chunks = []
    for start in range(0, rows, CHUNK):
        part = {name: wire(values[start : start + CHUNK]) for name, values in inputs.items()}
        chunks.append(live.run(names, part))
    if len(chunks) == 1:  # also what has no batch axis
        return dict(zip(names, chunks[0], strict=True))
    return {name: np.concatenate(parts) for name, parts in zip(names, zip(*chunks, strict=True), strict=True)}


def wire(values: np.ndarray) -> np.ndarray:
    return values.astype(object) if values.dtype.kind == "U" else values


def difference(live: onnxruntime.InferenceSession, inputs: Arrays, expected: Arrays) -> float:
    """Largest distance from the expected answers, at batch 1 and the whole batch; see `distance`."""
    one = {name: values[:1] for name, values in inputs.items()}
    first = {name: values[:1] for name, values in expected.items()}
    try:
        found = [(run(live, inputs), expected), (run(live, one), first)]
    except Exception as error:
        raise ExportError(f"the exported file does not run: {error}") from error
    return max(distance(answers[name], truth[name]) for answers, truth in found for name in truth)


def distance(found: np.ndarray, truth: np.ndarray) -> float:
    """Largest absolute difference; infinite where only one of the two is not finite, or the shapes differ.

    Of whole numbers and booleans, which name things, the share that differ.
    """
    if found.shape != truth.shape:
        return float("inf")
    if truth.dtype.kind in "biu":
        return float(np.mean(found != truth)) if truth.size else 0.0
    found, truth = found.astype(np.float64), truth.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gaps = np.where((found == truth) | (np.isnan(found) & np.isnan(truth)), 0, np.abs(found - truth))
    return float(gaps.max(initial=0)) if np.isfinite(gaps).all() else float("inf")


def gate(
    model: Any, signature: Signature | None, path: str | Path, inputs: Arrays, tolerance: float = TOLERANCE
) -> float:
    """Largest absolute difference between a file and Keras.

    A model with open axes is tried at another, odd size, too.

    Args:
        model: functional Keras model.
        signature: what the file was exported with.
        path: ONNX file.
        inputs: rows to compare on, by input name.
        tolerance: largest difference allowed, relative to the largest answer where that is above 1.

    Raises:
        ExportError: the difference is above the tolerance; the message names the first layer that differs.
    """
    live = session(path)
    trials = [(inputs, keras_answers(model, signature, inputs))]
    if not _finite(trials[0][1]):
        raise ExportError(
            f"cannot export {model.name!r}: Keras itself answers NaN or infinity; train it again before exporting"
        )
    if signature is None and any(None in tensor.shape[1:] for tensor in model.inputs):
        other = sample(model, None, rows=3, free=ODD)
        with contextlib.suppress(ExportError):  # not every size fits every model
            trials.append((other, keras_answers(model, None, other)))
    largest = 0.0
    for rows, truth in trials:
        figures = {name: values for name, values in truth.items() if values.dtype.kind == "f"}
        gap = difference(live, rows, figures)
        allowed = tolerance * max(1.0, *(float(np.abs(values).max(initial=0)) for values in figures.values()))
        if not gap <= allowed:
            place = first_difference(model, signature, path, rows, tolerance)
            raise ExportError(
                f"the exported {model.name!r} differs from Keras by {gap:.3g}, allowed is {allowed:.3g}; {place}; "
                "nothing was written"
            )
        for name, values in truth.items():
            unlike = 0.0 if name in figures else difference(live, rows, {name: values})
            if not unlike <= TIES:
                raise ExportError(
                    f"{unlike:.2%} of {name!r} of the exported {model.name!r} differ from Keras, allowed are {TIES:.1%}; "
                    "nothing was written"
                )
        largest = max(largest, gap)
    return largest


def _finite(answers: Arrays) -> bool:
    return all(np.isfinite(values).all() for values in answers.values())


def first_difference(
    model: Any, signature: Signature | None, path: str | Path, inputs: Arrays, tolerance: float
) -> str:
    """A sentence naming the first Keras layer, or operation between layers, whose value in the file differs.

    Args:
        model: functional Keras model.
        signature: what the file was exported with.
        path: ONNX file, in a folder that may be written to.
        inputs: rows to compare on, by input name.
        tolerance: largest difference that does not count, relative to the largest value where that is above 1.
    """
    path = Path(path)
    proto = onnx.load(path, load_external_data=False)
    facts = {fact.key: fact.value for fact in proto.metadata_props}
    values: dict[str, str] = json.loads(facts.get("layers", "{}"))
    made = {name for node in proto.graph.node for name in node.output}
    before = {INPUT, *(f"{INPUT}/{tensor.name}" for tensor in model.inputs)}
    for name in sorted({*values.values(), *before} & made - {output.name for output in proto.graph.output}):
        proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".open-", suffix=".onnx") as file:
        file.write(proto.SerializeToString())
        file.flush()
        live = session(file.name)
    rows = len(next(iter(inputs.values())))
    for part in (*(slice(start, start + CHUNK) for start in range(0, rows, CHUNK)), slice(0, 1)):
        some = {name: given[part] for name, given in inputs.items()}
        found = run(live, some)
        own = own_inputs(model, signature, some)
        names = [INPUT] if len(own) == 1 else [f"{INPUT}/{tensor.name}" for tensor in model.inputs]
        if signature and any(
            distance(found[name], keras.ops.convert_to_numpy(value)) > tolerance
            for name, value in zip(names, own, strict=True)
        ):
            return "the preprocessing before the first layer differs"
        place = _first_of(model, own, found, values, tolerance)
        if place:
            return place
    if signature:
        return f"every layer agrees, what follows them to {tasks.get(signature.task).output!r} differs"
    return "no layer was found to differ"


def _first_of(model: Any, own: list[Any], found: Arrays, values: dict[str, str], tolerance: float) -> str:
    """The same for one batch; "" if all agree. Of a layer used several times it is the last use that counts."""
    truths: dict[str, tuple[Any, np.ndarray]] = {}

    def note(path: str, node: Any, result: Any) -> None:
        truths.pop(path, None)
        if values.get(path) in found and hasattr(result, "dtype"):
            truths[path] = node, keras.ops.convert_to_numpy(keras.ops.cast(result, "float32"))

    _through(model, own, note)
    for path, (node, truth) in truths.items():
        gap = _gap_in_any_layout(found[values[path]], truth)
        finite = np.abs(truth[np.isfinite(truth)])
        if gap > tolerance * max(1.0, float(finite.max(initial=0))):
            kind = "layer" if isinstance(node.operation, keras.layers.Layer) else "operation"
            return f"the first {kind} that differs is {path!r} ({type(node.operation).__name__}), by {gap:.3g}"
    return ""


def _gap_in_any_layout(found: np.ndarray, truth: np.ndarray) -> float:
    """The file keeps images channels first between layers; Keras has them last."""
    gap = distance(found, truth)
    return min(gap, distance(np.moveaxis(found, 1, -1), truth)) if found.ndim > 2 else gap
