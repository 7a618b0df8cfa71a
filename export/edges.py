"""What surrounds the model inside its ONNX file: raw inputs to model input, and logits to named answers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from zoo import tasks
from zoo.data.audio import AudioPreprocess
from zoo.data.signature import (
    EDGE,
    STEEPEST,
    Calibration,
    CaptionedPreprocess,
    ImagePreprocess,
    SeriesPreprocess,
    Signature,
    TablePreprocess,
)
from zoo.data.texts import TextPreprocess

BEFORE, AFTER = "preprocess", "postprocess"  # name scopes of the nodes added here
INPUT = f"{BEFORE}/output"  # what the model itself takes; of several inputs the name follows behind a slash


def add_edges(proto: onnx.ModelProto, signature: Signature) -> None:
    """Put the signature's preprocessing before, and its decoding after, a graph with the model's inputs and `logits`."""
    graph = proto.graph
    own = {port.name: INPUT if len(graph.input) == 1 else f"{INPUT}/{port.name}" for port in graph.input}
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = own.get(name, name)
    del graph.input[:]
    step = signature.preprocess
    makers: dict[str, Any] = {
        "image": _image, "table": _table, "text": _tokens, "series": _series, "audio": _audio, "captioned": _captioned,
    }  # fmt: skip
    before = makers[step.kind](graph, step)
    after = _answer(graph, signature)
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    if not any(entry.domain == "ai.onnx.ml" for entry in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))


def _constant(graph: onnx.GraphProto, name: str, values: object, dtype: type = np.float32) -> str:
    graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype), name))
    return name


def _node(op: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), [output], name=output, domain=domain, **attributes)


def _standardise(
    graph: onnx.GraphProto, value: str, mean: object, std: object, scope: str
) -> tuple[list[onnx.NodeProto], str]:
    """(value - mean) / std in the order that numpy has it, so that no answer moves by a rounding."""
    centred, scaled = f"{scope}/centred", f"{scope}/scaled"
    return [
        _node("Sub", [value, _constant(graph, f"{scope}/mean", mean)], centred),
        _node("Div", [centred, _constant(graph, f"{scope}/std", std)], scaled),
    ], scaled


def _image(graph: onnx.GraphProto, step: ImagePreprocess, made: str = INPUT) -> list[onnx.NodeProto]:
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", *step.shape]))
    taken, pixels = "image", f"{BEFORE}/pixels"
    before: list[onnx.NodeProto] = []
    if step.order:  # the model's order of channels, while they are bytes
        taken = f"{BEFORE}/ordered"
        order = _constant(graph, f"{BEFORE}/order", step.order, np.int64)
        before = [_node("Gather", ["image", order], taken, axis=3)]
    nodes, scaled = _standardise(graph, pixels, step.ordered(step.mean), step.ordered(step.std), BEFORE)
    cast = _node("Cast", [taken], pixels, to=TensorProto.FLOAT)
    return [*before, cast, *nodes, _node("Identity", [scaled], made)]


def _captioned(graph: onnx.GraphProto, step: CaptionedPreprocess) -> list[onnx.NodeProto]:
    graph.input.append(helper.make_tensor_value_info("tokens", TensorProto.INT32, ["batch", step.text.length]))
    pixels = _image(graph, step.image, f"{INPUT}/image")
    return [*pixels, _node("Identity", ["tokens"], f"{INPUT}/tokens")]


def _table(graph: onnx.GraphProto, step: TablePreprocess) -> list[onnx.NodeProto]:
    nodes: list[onnx.NodeProto] = []
    parts: list[str] = []
    if step.numbers:
        graph.input.append(helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["batch", len(step.numbers)]))
        missing, filled = f"{BEFORE}/missing", f"{BEFORE}/filled"
        nodes.append(_node("IsNaN", ["numbers"], missing))
        mean = _constant(graph, f"{BEFORE}/fill", step.mean)
        nodes.append(_node("Where", [missing, mean, "numbers"], filled))
        standardised, scaled = _standardise(graph, filled, step.mean, step.std, BEFORE)
        nodes += standardised
        parts.append(scaled)
    if step.categories:
        graph.input.append(
            helper.make_tensor_value_info("categories", TensorProto.STRING, ["batch", len(step.categories)])
        )
    for position, values in enumerate(step.categories.values()):
        if not values:  # never filled in training: no feature, and ONNX takes no encoder without keys
            continue
        scope = f"{BEFORE}/category{position}"
        index = _constant(graph, f"{scope}/position", [position], np.int64)
        places = _constant(graph, f"{scope}/places", np.arange(len(values)), np.int64)
        nodes += [
            _node("Gather", ["categories", index], f"{scope}/column", axis=1),
            _node(
                "LabelEncoder",
                [f"{scope}/column"],
                f"{scope}/code",
                domain="ai.onnx.ml",
                keys_strings=list(values),
                values_int64s=list(range(len(values))),
                default_int64=-1,
            ),
            _node("Equal", [f"{scope}/code", places], f"{scope}/equal"),
            _node("Cast", [f"{scope}/equal"], f"{scope}/one_hot", to=TensorProto.FLOAT),
        ]
        parts.append(f"{scope}/one_hot")
    return [*nodes, _node("Concat", parts, INPUT, axis=1)]


def _audio(graph: onnx.GraphProto, step: AudioPreprocess) -> list[onnx.NodeProto]:
    """Amplitudes as they are."""
    graph.input.append(helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["batch", step.samples]))
    return [_node("Identity", ["audio"], INPUT)]


def _series(graph: onnx.GraphProto, step: SeriesPreprocess) -> list[onnx.NodeProto]:
    """A missing value takes its column's mean up to the last step that has any number; what stands behind stays NaN."""
    graph.input.append(helper.make_tensor_value_info("series", TensorProto.FLOAT, ["batch", *step.shape]))
    names = ("missing", "known", "number", "count", "to_end", "some", "hole", "filled")
    missing, known, number, count, to_end, some, hole, filled = (f"{BEFORE}/{name}" for name in names)
    columns = _constant(graph, f"{BEFORE}/columns", [2], np.int64)
    time = _constant(graph, f"{BEFORE}/time", 1, np.int64)
    standardised, scaled = _standardise(graph, filled, step.mean, step.std, BEFORE)
    return [
        _node("IsNaN", ["series"], missing),
        _node("Not", [missing], known),
        _node("Cast", [known], number, to=TensorProto.FLOAT),
        _node("ReduceSum", [number, columns], count, keepdims=1),  # (batch, time, 1)
        _node("CumSum", [count, time], to_end, reverse=1),
        _node("Cast", [to_end], some, to=TensorProto.BOOL),
        _node("And", [missing, some], hole),
        _node("Where", [hole, _constant(graph, f"{BEFORE}/fill", step.mean), "series"], filled),
        *standardised,
        _node("Identity", [scaled], INPUT),
    ]


def _tokens(graph: onnx.GraphProto, step: TextPreprocess) -> list[onnx.NodeProto]:
    """Tokens as they are; who runs the file makes them from texts."""
    shapes = step.shapes
    for name, shape in shapes.items():
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", *shape]))
    return [_node("Identity", [name], INPUT if len(shapes) == 1 else f"{INPUT}/{name}") for name in shapes]


def _answer(graph: onnx.GraphProto, signature: Signature) -> list[onnx.NodeProto]:
    task = tasks.get(signature.task)
    if tasks.decodes(task):  # it is in the graph already
        return []
    name = task.output
    if signature.task == "regression":
        scaled = f"{AFTER}/scaled"
        nodes = [
            _node("Mul", ["logits", _constant(graph, f"{AFTER}/std", signature.target_std)], scaled),
            _node("Add", [scaled, _constant(graph, f"{AFTER}/mean", signature.target_mean)], name),
        ]
    elif signature.calibration is None:
        nodes = [_node("Softmax", ["logits"], name, axis=-1)]
    else:
        nodes = _calibrated(graph, signature.calibration, name)
    nodes[-1].name = f"{AFTER}/{name}"
    others = [output for output in graph.output if output.name != "logits"]
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", signature.outputs]))
    graph.output.extend(others)
    return nodes


def _calibrated(graph: onnx.GraphProto, calibration: Calibration, name: str) -> list[onnx.NodeProto]:
    """Logits to probabilities by the same steps as `Calibration` itself."""

    def constant(what: str, values: object, dtype: type = np.float32) -> str:
        return _constant(graph, f"{AFTER}/{what}", values, dtype)

    if calibration.method == "temperature":
        scaled = f"{AFTER}/scaled"
        scale = constant("scale", calibration.scale[0])
        return [_node("Mul", ["logits", scale], scaled), _node("Softmax", [scaled], name, axis=-1)]
    steps = ("likely", "within", "for", "rest", "against", "odds", "sloped", "moved", "clipped", "alone", "total")
    likely, within, ahead, rest, against, odds, sloped, moved, clipped, alone, total = (f"{AFTER}/{s}" for s in steps)
    return [
        _node("Softmax", ["logits"], likely, axis=-1),
        _node("Clip", [likely, constant("least", EDGE), constant("most", 1 - EDGE)], within),
        _node("Log", [within], ahead),
        _node("Sub", [constant("one", 1), within], rest),
        _node("Log", [rest], against),
        _node("Sub", [ahead, against], odds),
        _node("Mul", [odds, constant("scale", calibration.scale)], sloped),
        _node("Add", [sloped, constant("bias", calibration.bias)], moved),
        _node("Clip", [moved, constant("lowest", -STEEPEST), constant("highest", STEEPEST)], clipped),
        _node("Sigmoid", [clipped], alone),
        _node("ReduceSum", [alone, constant("axis", [-1], np.int64)], total, keepdims=1),
        _node("Div", [alone, total], name),
    ]
