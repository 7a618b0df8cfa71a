"""Bundles of one model of each kind, written without Keras."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serve.manifest import MANIFEST, Manifest, Port, Precision, seal

IMAGE = Port("image", "UINT8", (-1, 4, 4, 1), ("batch", "height", "width", "channels"), (0, 255), "pixel value")
NUMBERS = Port("numbers", "FP32", (-1, 2), ("batch", "columns"), columns=("age", "weight"))
CATEGORIES = Port("categories", "BYTES", (-1, 1), ("batch", "columns"), columns=("colour",))
TEXT = Port("text", "BYTES", (-1, 1), ("batch", "texts"))
PROBABILITIES = Port("probabilities", "FP32", (-1, 3), ("batch", "classes"), (0, 1), "probability")
VALUE = Port("value", "FP32", (-1, 1), ("batch", "targets"))
ONNX_TYPE = {
    "UINT8": TensorProto.UINT8,
    "INT32": TensorProto.INT32,
    "FP32": TensorProto.FLOAT,
    "BYTES": TensorProto.STRING,
}
LABELS = ("dark", "left", "right")


def write_onnx(path, nodes, constants, inputs, outputs):
    """A graph whose edges are the given ports."""
    edges = [
        [helper.make_tensor_value_info(port.name, ONNX_TYPE[port.dtype], ["batch", *port.shape[1:]]) for port in ports]
        for ports in (inputs, outputs)
    ]
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", *edges, stored)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def image_graph(path):
    """Softmax of (0, mean brightness of the left half, of the right half), each times 4."""
    weight = np.zeros((4, 4, 3), np.float32)
    weight[:, :2, 1] = weight[:, 2:, 2] = 4 / 8 / 255
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    write_onnx(path, nodes, {"weight": weight.reshape(16, 3)}, (IMAGE,), (PROBABILITIES,))


def numbers_nodes():
    """Nodes that put 40 and 70 in place of missing numbers; their result is `known`."""
    return [
        helper.make_node("IsNaN", ["numbers"], ["missing"]),
        helper.make_node("Where", ["missing", "mean", "numbers"], ["known"]),
    ]


def table_graph(path):
    """Softmax of (age / 10, weight / 10, 5 if blue)."""
    scale = np.array([[0.1, 0, 0], [0, 0.1, 0]], np.float32)
    colours = np.array([[0, 0, 0], [0, 0, 5]], np.float32)  # red, blue
    nodes = [
        *numbers_nodes(),
        helper.make_node("OneHotEncoder", ["categories"], ["hot"], domain="ai.onnx.ml", cats_strings=["red", "blue"]),
        helper.make_node("Flatten", ["hot"], ["coloured"]),
        helper.make_node("MatMul", ["known", "scale"], ["a"]),
        helper.make_node("MatMul", ["coloured", "colours"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    constants = {"mean": np.array([40, 70], np.float32), "scale": scale, "colours": colours}
    write_onnx(path, nodes, constants, (NUMBERS, CATEGORIES), (PROBABILITIES,))


def text_graph(path):
    """Softmax of (4 if the text is "bad", 1, 4 if it is "good")."""
    nodes = [
        helper.make_node("OneHotEncoder", ["text"], ["hot"], domain="ai.onnx.ml", cats_strings=["bad", "good"]),
        helper.make_node("Flatten", ["hot"], ["known"]),
        helper.make_node("MatMul", ["known", "weight"], ["a"]),
        helper.make_node("Add", ["a", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    constants = {"weight": np.array([[4, 0, 0], [0, 0, 4]], np.float32), "bias": np.array([0, 1, 0], np.float32)}
    write_onnx(path, nodes, constants, (TEXT,), (PROBABILITIES,))


def value_graph(path):
    """2 * age + weight."""
    nodes = [*numbers_nodes(), helper.make_node("MatMul", ["known", "weight"], ["value"])]
    constants = {"mean": np.array([40, 70], np.float32), "weight": np.array([[2], [1]], np.float32)}
    write_onnx(path, nodes, constants, (NUMBERS,), (VALUE,))


def write_bundle(store, name, version, graph, golden, **facts):
    """A sealed bundle; `golden` is (inputs, outputs), both by port name."""
    folder = Path(store) / name / version
    folder.mkdir(parents=True)
    graph(folder / "model.onnx")
    inputs, outputs = golden
    arrays = {f"input/{k}": v for k, v in inputs.items()} | {f"output/{k}": v for k, v in outputs.items()}
    np.savez(folder / "golden.npz", **arrays)
    manifest = Manifest(
        name=name,
        version=version,
        architecture="by hand",
        metric="r2" if facts["task"] == "regression" else "accuracy",
        precisions={"fp32": Precision("model.onnx", (folder / "model.onnx").stat().st_size, 1e-6, 0.9)},
        **facts,
    )
    (folder / MANIFEST).write_text(manifest.to_json())
    seal(folder)
    return folder


def softmax(logits):
    grown = np.exp(np.asarray(logits, np.float32))
    return grown / grown.sum(axis=-1, keepdims=True)


def write_image(store, version="1", name="sides"):
    images = np.zeros((2, 4, 4, 1), np.uint8)
    images[1, :, 2:] = 255
    return write_bundle(
        store, name, version, image_graph,
        ({"image": images}, {"probabilities": softmax([[0, 0, 0], [0, 0, 4]])}),
        task="image-classification", kind="image", inputs=(IMAGE,), outputs=(PROBABILITIES,), labels=LABELS,
    )  # fmt: skip


def write_map(store, name="seen", cells=4):
    """`sides` with the brightness of each pixel, or of all as one cell, as its map, and a background to explain against."""

    def graph(path):
        image_graph(path)
        model = onnx.load(path)
        whole = helper.make_node("ReduceMean", ["pixels"], ["whole"], axes=[1, 2], keepdims=1)
        squeeze = helper.make_node("Squeeze", ["pixels" if cells > 1 else "whole", "last"], ["activation_map"])
        model.graph.node.extend([squeeze] if cells > 1 else [whole, squeeze])
        model.graph.initializer.append(numpy_helper.from_array(np.array([3]), "last"))
        model.graph.output.append(
            helper.make_tensor_value_info("activation_map", TensorProto.FLOAT, ["batch", cells, cells])
        )
        onnx.save(model, path)

    images = np.zeros((1, 4, 4, 1), np.uint8)
    images[0, :, 2:] = 200
    brightness = Port("activation_map", "FP32", (-1, cells, cells), ("batch", "height", "width"))
    logits = [[0, 0, 4 * 200 / 255]]
    bright = images[..., 0].astype(np.float32) if cells > 1 else np.full((1, 1, 1), 100, np.float32)
    folder = write_bundle(
        store, name, "1", graph,
        ({"image": images}, {"probabilities": softmax(logits), "activation_map": bright}),
        task="image-classification", kind="image", inputs=(IMAGE,), outputs=(PROBABILITIES, brightness), labels=LABELS,
    )  # fmt: skip
    return add_background(folder, image=np.zeros((1, 4, 4, 1), np.uint8))


def add_background(folder, **inputs):
    """Rows that explanations start from, by input name."""
    np.savez(folder / "background.npz", **{f"input/{name}": rows for name, rows in inputs.items()})
    seal(folder)
    return folder


def write_table(store):
    numbers = np.array([[30, 20], [np.nan, 80]], np.float32)
    return write_bundle(
        store, "paints", "1", table_graph,
        (
            {"numbers": numbers, "categories": np.array([["blue"], [""]])},
            {"probabilities": softmax([[3, 2, 5], [4, 8, 0]])},
        ),
        task="classification", kind="table", inputs=(NUMBERS, CATEGORIES), outputs=(PROBABILITIES,),
        labels=("matt", "gloss", "silk"), choices={"colour": ("red", "blue")},
    )  # fmt: skip


def write_value(store):
    return write_bundle(
        store, "dose", "1", value_graph,
        ({"numbers": np.array([[30, 20]], np.float32)}, {"value": np.array([[80]], np.float32)}),
        task="regression", kind="table", inputs=(NUMBERS,), outputs=(VALUE,), labels=("milligram",),
    )  # fmt: skip


def write_text(store):
    return write_bundle(
        store, "mood", "1", text_graph,
        (
            {"text": np.array([["good"], ["bad"]])},
            {"probabilities": softmax([[0, 1, 4], [4, 1, 0]])},
        ),
        task="classification", kind="text", inputs=(TEXT,), outputs=(PROBABILITIES,),
        labels=("negative", "neutral", "positive"),
    )  # fmt: skip
