import keras
import numpy as np
import onnx
import pytest

import export
from export import int8, parity
from export.convert import layer_of
from zoo import registry
from zoo.data.signature import Signature, TablePreprocess


def accuracy(y):
    return lambda answers: float((answers["probabilities"].argmax(axis=1) == y).mean())


def quantize(model, data, folder, **options):
    source = export.to_onnx(model, folder / "model.onnx", signature=data.signature)
    calibration = {name: values[:128] for name, values in data.train.x.items()}
    return int8.quantize(
        source,
        folder / "model.int8.onnx",
        calibration=calibration,
        validation=data.validation.x,
        score=accuracy(data.validation.y),
        **options,
    )


def test_only_the_middle_is_quantized(lenet, digits, tmp_path):
    result = quantize(lenet, digits, tmp_path)
    assert result.kept_float == () and result.before - result.after <= int8.MAX_DROP
    graph = onnx.load(tmp_path / "model.int8.onnx").graph
    made = {output: node for node in graph.node for output in node.output}
    fed = {node.name: [made[name].op_type for name in node.input if name in made] for node in graph.node}
    types = {tensor.name: tensor for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 2
    for node in convolutions:
        assert set(fed[node.name]) == {"DequantizeLinear"}
        data, weights = (made[name] for name in node.input[:2])
        assert types[data.input[2]].data_type == onnx.TensorProto.UINT8
        assert types[weights.input[2]].data_type == onnx.TensorProto.INT8
        assert len(types[weights.input[1]].dims) == 1 and types[weights.input[1]].dims[0] > 1  # a scale per channel
    [head] = [n for n in graph.node if n.op_type in ("MatMul", "Gemm") and layer_of(n, set(types)) == "logits"]
    assert head.input[1] in types and types[head.input[1]].data_type == onnx.TensorProto.FLOAT
    assert not any(name.startswith("preprocess/") for name in quantized_inputs(graph) if name != "preprocess/output")


def quantized_inputs(graph):
    return {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}


def spoiled():
    """A model whose hidden1 gets one huge constant beside small informative values: 8 bits lose the latter."""
    inputs = keras.Input((2,), name="inputs")
    x = keras.layers.Dense(3, name="hidden0")(inputs)
    x = keras.layers.Dense(4, activation="relu", name="hidden1")(x)
    x = keras.layers.Dense(4, activation="relu", name="hidden2")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="logits")(x), name="spoiled")
    kernel = np.zeros((2, 3))
    kernel[0, 0] = kernel[1, 1] = 1
    model.get_layer("hidden0").set_weights([kernel, np.array([0, 0, 5000.0])])
    model.get_layer("hidden1").set_weights([np.array([[1, -1, 0, 0], [0, 0, 1, -1], [0, 0, 0, 0]]), np.zeros(4)])
    model.get_layer("hidden2").set_weights([np.eye(4), np.zeros(4)])
    model.get_layer("logits").set_weights([np.array([[1, 0], [0, 1], [-1, 0], [0, -1]]) * 4.0, np.zeros(2)])
    return model


@pytest.fixture
def crosses():
    random = np.random.default_rng(0)
    numbers = random.standard_normal((400, 2)).astype(np.float32)
    raw = {"numbers": numbers}
    step = TablePreprocess(("a", "b"), (0.0, 0.0), (1.0, 1.0))
    return Signature("classification", ("no", "yes"), step), raw


def test_the_layer_that_hurts_is_left_in_float(crosses, tmp_path):
    signature, raw = crosses
    source = export.to_onnx(spoiled(), tmp_path / "model.onnx", signature=signature, golden=raw)
    y = parity.run(parity.session(source), raw)["probabilities"].argmax(axis=1)
    result = int8.quantize(
        source, tmp_path / "int8.onnx", calibration=raw, validation=raw, score=accuracy(y), max_drop=0.05
    )
    assert "hidden1" in result.kept_float and "hidden2" not in result.kept_float
    assert result.before == 1 and result.after >= 0.95
    found = parity.run(parity.session(tmp_path / "int8.onnx"), raw)["probabilities"]
    assert (found.argmax(axis=1) == y).mean() == result.after


def test_refused_with_figures_when_nothing_helps(lenet, digits, tmp_path):
    with pytest.raises(int8.RefusedError, match=r"falls from 0\.\d+ by more than -1: .* with no layer left in float; "):
        quantize(lenet, digits, tmp_path, max_drop=-1)
    assert not (tmp_path / "model.int8.onnx").exists()


def test_nothing_to_quantize(digits, tmp_path):
    model = registry.get("logistic_regression", input_shape=(8, 8, 1), classes=10)
    with pytest.raises(int8.RefusedError, match="only layer with weights, 'logits', is the output head"):
        quantize(model, digits, tmp_path)
    image = keras.Input((8, 8, 1))
    pooled = keras.layers.GlobalAveragePooling2D()(image)
    plain = keras.Model(image, keras.layers.RepeatVector(10)(pooled)[..., 0])
    with pytest.raises(int8.RefusedError, match="no convolution and no dense layer"):
        quantize(plain, digits, tmp_path)
