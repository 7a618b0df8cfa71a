"""The gate every exported file passes: run it at batch 1 and n, compare with Keras, name the first layer that differs."""

import contextlib
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime

from export import ExportError
from export.edges import BEFORE
from zoo import tasks
from zoo.data.signature import ImagePreprocess, Signature

TOLERANCE = 1e-4
ODD = 13  # size at which open axes are tried once more
LARGE = 2**27  # bytes from which a file is loaded with an eye on memory
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
    step = signature.preprocess
    if isinstance(step, ImagePreprocess):
        return {"image": random.integers(0, 256, (rows, *step.shape), dtype=np.uint8)}
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


def keras_answers(model: Any, signature: Signature | None, inputs: Arrays) -> Arrays:
    """What Keras answers to these inputs, decoded as the file does: output name -> float32 (batch, ...)."""
    own = {model.inputs[0].name: signature.inputs(inputs)} if signature else inputs
    outputs = _call(model, own)
    if signature is None:
        return dict(zip(["logits"] if len(outputs) == 1 else model.output_names, outputs, strict=True))
    task = tasks.get(signature.task)
    return {task.output: task.answer(outputs[0], signature)}


def _call(model: Any, inputs: Arrays) -> list[np.ndarray]:
    """Outputs of a functional model in their order, float32, in chunks of rows."""
    rows = len(next(iter(inputs.values())))
    chunks = []
    for start in range(0, rows, CHUNK):
        part = [inputs[tensor.name][start : start + CHUNK] for tensor in model.inputs]
        answers = _through(model, [keras.ops.convert_to_tensor(values) for values in part])
        chunks.append([keras.ops.convert_to_numpy(keras.ops.cast(a, "float32")) for a in answers])
    return [np.concatenate(parts) for parts in zip(*chunks, strict=True)]


def _through(model: Any, inputs: list[Any]) -> list[Any]:
    """Outputs of a functional model; unlike a call of the model, it drops each tensor after its last use."""
    nodes = [n for depth in sorted(model._nodes_by_depth, reverse=True) for n in model._nodes_by_depth[depth]]
    last = {id(tensor): place for place, node in enumerate(nodes) for tensor in node.input_tensors}
    last |= {id(tensor): len(nodes) for tensor in model.outputs}
    live = {id(tensor): value for tensor, value in zip(model.inputs, inputs, strict=True)}
    for place, node in enumerate(nodes):
        if node.is_input:
            continue
        args, kwargs = node.arguments.fill_in(live)
        kwargs.pop("training", None)
        options = {"training": False} if getattr(node.operation, "_call_has_training_arg", False) else {}
        found = keras.tree.flatten(node.operation(*args, **kwargs, **options))
        live.update((id(tensor), value) for tensor, value in zip(node.outputs, found, strict=True))
        for tensor in node.input_tensors:
            if last[id(tensor)] == place:
                live.pop(id(tensor), None)
    return [live[id(tensor)] for tensor in model.outputs]


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
    return {name: np.concatenate(parts) for name, parts in zip(names, zip(*chunks, strict=True), strict=True)}


def wire(values: np.ndarray) -> np.ndarray:
    return values.astype(object) if values.dtype.kind == "U" else values


def difference(live: onnxruntime.InferenceSession, inputs: Arrays, expected: Arrays) -> float:
    """Largest absolute difference from the expected answers, at batch 1 and at the whole batch; infinite if not finite."""
    one = {name: values[:1] for name, values in inputs.items()}
    first = {name: values[:1] for name, values in expected.items()}
    try:
        found = [(run(live, inputs), expected), (run(live, one), first)]
    except Exception as error:
        raise ExportError(f"the exported file does not run: {error}") from error
    return max(_gap(answers[name], truth[name]) for answers, truth in found for name in truth)


def _gap(found: np.ndarray, truth: np.ndarray) -> float:
    if found.shape != truth.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found.astype(np.float64) - truth).max(initial=0))


def gate(
    model: Any, signature: Signature | None, path: str | Path, inputs: Arrays, tolerance: float = TOLERANCE
) -> float:
    """Largest absolute difference between a file and Keras.

    Args:
        model: functional Keras model.
        signature: what the file was exported with.
        path: ONNX file.
        inputs: rows to compare on, by input name.
        tolerance: largest difference allowed, relative to the largest answer where that is above 1.

    Raises:
        ExportError: the difference is above the tolerance; the message names the first layer that differs.
    """
    expected = keras_answers(model, signature, inputs)
    if not all(np.isfinite(values).all() for values in expected.values()):
        raise ExportError(
            f"cannot export {model.name!r}: Keras itself answers NaN or infinity; train it again before exporting"
        )
    live = session(path)
    gap = difference(live, inputs, expected)
    allowed = tolerance * max(1.0, *(float(np.abs(values).max()) for values in expected.values()))
    if gap <= allowed and signature is None and any(None in tensor.shape[1:] for tensor in model.inputs):
        other = sample(model, None, rows=3, free=ODD)
        truth = None
        with contextlib.suppress(Exception):  # not every size fits every model; Keras refuses those in many ways
            truth = keras_answers(model, None, other)
        if truth is not None:
            inputs, gap = other, difference(live, other, truth)
    if gap > allowed:
        place = first_difference(model, signature, path, inputs, tolerance)
        raise ExportError(
            f"the exported {model.name!r} differs from Keras by {gap:.3g}, allowed is {allowed:.3g}; {place}; nothing was written"
        )
    return gap


def first_difference(
    model: Any, signature: Signature | None, path: str | Path, inputs: Arrays, tolerance: float
) -> str:
    """A sentence naming the first Keras layer whose value in the file differs."""
    proto = onnx.load(str(path))
    facts = {fact.key: fact.value for fact in proto.metadata_props}
    values: dict[str, str] = json.loads(facts.get("layers", "{}"))
    layers = [layer for layer in model.layers if layer.name in values and len(layer._inbound_nodes) == 1]
    for value in [*(values[layer.name] for layer in layers), f"{BEFORE}/output"]:
        if value not in {output.name for output in proto.graph.output} and _produced(proto, value):
            proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(value))
    found = run(session(proto.SerializeToString()), inputs)
    own = {model.inputs[0].name: signature.inputs(inputs)} if signature else inputs
    if signature and _gap(found[f"{BEFORE}/output"], own[model.inputs[0].name]) > tolerance:
        return "the preprocessing before the first layer differs"
    given = model.inputs[0] if len(model.inputs) == 1 else {tensor.name: tensor for tensor in model.inputs}
    truths = _call(keras.Model(given, [layer.output for layer in layers]), own) if layers else []
    for layer, truth in zip(layers, truths, strict=True):
        gap = _gap_in_any_layout(found[values[layer.name]], truth)
        if gap > tolerance * max(1.0, float(np.abs(truth).max())):
            return f"the first layer that differs is {layer.name!r} ({type(layer).__name__}), by {gap:.3g}"
    return (
        f"every layer agrees, what follows them to {tasks.get(signature.task).output!r} differs"
        if signature
        else "no layer was found to differ"
    )


def _produced(proto: onnx.ModelProto, value: str) -> bool:
    return any(value in node.output for node in proto.graph.node)


def _gap_in_any_layout(found: np.ndarray, truth: np.ndarray) -> float:
    """The file keeps images channels first between layers; Keras has them last."""
    gap = _gap(found, truth)
    return min(gap, _gap(np.moveaxis(found, 1, -1), truth)) if found.ndim > 2 else gap
