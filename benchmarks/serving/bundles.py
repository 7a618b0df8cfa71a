"""The models that are served: a small MLP and a small CNN written node by node, and ResNet-50 by way of zoo and export.

They are untrained; what is measured is serving. Their answers differ from row to row, so that answers which
were mixed up are noticed. Made once and kept.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from serve.manifest import MANIFEST, BundleError, Manifest, Port, Precision, read, seal

MODELS = ("mlp", "cnn", "resnet50")
FEATURES = 16
CLASSES = {"mlp": 10, "cnn": 10, "resnet50": 1000}
PROBABILITIES = "probabilities"
ROWS = {"mlp": 64, "cnn": 64, "resnet50": 8}  # different questions


def cache() -> Path:
    """Folder for what is made once: bundles, and environments of the peers."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zooroad"


def rows(name: str, count: int | None = None, seed: int = 1) -> np.ndarray:
    """Inputs of a model, batch first."""
    random, count = np.random.default_rng(seed), count or ROWS[name]
    if name == "mlp":
        return random.normal(size=(count, FEATURES)).astype(np.float32).round(4)
    size, channels = {"cnn": (28, 1), "resnet50": (224, 3)}[name]
    coarse = random.integers(0, 256, (count, 7, 7, channels))  # blocks, in which networks see more than in noise
    return coarse.repeat(size // 7, 1).repeat(size // 7, 2).astype(np.uint8)


def expected(bundle: Path, inputs: np.ndarray) -> np.ndarray:
    """What ONNX Runtime answers, row by row."""
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    port = session.get_inputs()[0].name
    return np.concatenate([session.run([PROBABILITIES], {port: row[None]})[0] for row in inputs])


def make(name: str, store: Path, *, version: int = 1, seed: int = 0) -> Path:
    """The folder `store/<name>/<version>`, written unless it is there and whole.

    Args:
        name: "mlp", "cnn" or "resnet50".
        store: folder of bundles.
        version: number of the version.
        seed: of the weights.
    """
    folder = store / name / str(version)
    try:
        read(folder)
    except BundleError:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        return folder
    draft = store / f".{name}-{version}-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    if name == "resnet50":
        _resnet50(draft / "model.onnx", seed)
    else:
        {"mlp": _mlp, "cnn": _cnn}[name](draft / "model.onnx", seed)
    _describe(name, draft, version)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return draft.rename(folder)


def _describe(name: str, folder: Path, version: int) -> None:
    """Golden rows, manifest and hashes."""
    golden = rows(name, 4, seed=2)
    if name == "mlp":
        names = tuple(f"x{number}" for number in range(FEATURES))
        port = Port("numbers", "FP32", (-1, FEATURES), ("batch", "columns"), columns=names)
    else:
        shape = (-1, *golden.shape[1:])
        port = Port("image", "UINT8", shape, ("batch", "height", "width", "channels"), (0, 255), "pixel value")
    answer = expected(folder, golden)
    np.savez(folder / "golden.npz", **{f"input/{port.name}": golden, f"output/{PROBABILITIES}": answer})
    np.savez(folder / "background.npz", **{f"input/{port.name}": golden})
    classes = CLASSES[name]
    manifest = Manifest(
        name=name,
        version=str(version),
        architecture=name,
        task="classification" if name == "mlp" else "image-classification",
        kind="table" if name == "mlp" else "image",
        inputs=(port,),
        outputs=(Port(PROBABILITIES, "FP32", (-1, classes), ("batch", "classes"), (0, 1), "probability"),),
        labels=tuple(f"class {number}" for number in range(classes)),
        metric="accuracy",
        precisions={"fp32": Precision("model.onnx", (folder / "model.onnx").stat().st_size, 1e-5)},
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    seal(folder)


class _Graph:
    """Nodes and weights of a network in the making."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, kind: str, source: str, *weights: np.ndarray, **attributes: object) -> str:
        """A node that reads `source` and weights; the name of its result."""
        result = f"{kind.lower()}{len(self.nodes)}"
        names = [f"{result}_weight{number}" for number in range(len(weights))]
        self.weights += [numpy_helper.from_array(*each) for each in zip(weights, names, strict=True)]
        self.nodes.append(helper.make_node(kind, [source, *names], [result], **attributes))
        return result

    def draw(self, fan_in: int, *shape: int) -> np.ndarray:
        """Random weights for rectified inputs."""
        return self.random.normal(scale=(2 / fan_in) ** 0.5, size=shape).astype(np.float32)

    def save(self, path: Path, port: str, dtype: int, shape: tuple[int, ...], logits: str, classes: int) -> None:
        self.nodes.append(helper.make_node("Softmax", [logits], [PROBABILITIES], axis=-1))
        graph = helper.make_graph(
            self.nodes,
            path.stem,
            [helper.make_tensor_value_info(port, dtype, ["batch", *shape])],
            [helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["batch", classes])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, path)


def _mlp(path: Path, seed: int) -> None:
    """16 features, two hidden layers of 64, 10 classes."""
    graph, source = _Graph(seed), "numbers"
    for size, units in ((FEATURES, 64), (64, 64)):
        source = graph.add("Relu", graph.add("Gemm", source, graph.draw(size, size, units), graph.draw(size, units)))
    logits = graph.add("Gemm", source, graph.draw(64, 64, CLASSES["mlp"]))
    graph.save(path, "numbers", TensorProto.FLOAT, (FEATURES,), logits, CLASSES["mlp"])


def _cnn(path: Path, seed: int) -> None:
    """28 x 28 pixels, convolutions of 16 and 32 channels with stride 2, 10 classes."""
    graph = _Graph(seed)
    source = graph.add("Cast", "image", to=TensorProto.FLOAT)
    source = graph.add("Transpose", source, perm=[0, 3, 1, 2])
    source = graph.add("Mul", source, np.array(1 / 128, np.float32))
    for channels, filters in ((1, 16), (16, 32)):
        weights = graph.draw(9 * channels, filters, channels, 3, 3), graph.draw(9 * channels, filters)
        source = graph.add("Relu", graph.add("Conv", source, *weights, strides=[2, 2], pads=[1, 1, 1, 1]))
    logits = graph.add("Gemm", graph.add("Flatten", source), graph.draw(32 * 7 * 7, 32 * 7 * 7, CLASSES["cnn"]))
    graph.save(path, "image", TensorProto.UINT8, (28, 28, 1), logits, CLASSES["cnn"])


def _resnet50(path: Path, seed: int) -> None:
    """ResNet-50 with random weights for 224 x 224 pixels; needs the `export` extra."""
    import keras

    from export import to_onnx
    from zoo import registry
    from zoo.data.signature import ImagePreprocess, Signature

    keras.utils.set_random_seed(seed)
    model = registry.get("resnet50", input_shape=(224, 224, 3), classes=CLASSES["resnet50"])
    preprocess = ImagePreprocess(224, 224, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    # a head that sees what differs between rows; a random one gives every row the same class, with certainty
    head = model.get_layer("logits")
    seen = keras.Model(model.inputs, head.input).predict(preprocess({"image": rows("resnet50")}), verbose=0)
    kernel = np.random.default_rng(seed).normal(size=(seen.shape[1], CLASSES["resnet50"])).astype(np.float32)
    kernel *= 3 / ((seen - seen.mean(0)) @ kernel).std()
    head.set_weights([kernel, -seen.mean(0) @ kernel])
    labels = tuple(f"class {number}" for number in range(CLASSES["resnet50"]))
    to_onnx(model, path, signature=Signature("image-classification", labels, preprocess))
