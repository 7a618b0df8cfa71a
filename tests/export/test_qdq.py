"""Which nodes become 8 bits, and with which integers, on graphs written by hand."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import calibration, files, parity
from export.calibration import Seen
from export.qdq import Network, scale_of
from serve import session


def graph(nodes, weights, shape, opset=18):
    """A model from `x` of the given shape to `logits`."""
    ports = [("x", ["batch", *shape]), ("logits", None)]
    edges = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)] for name, sizes in ports]
    stored = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()]
    return helper.make_model(
        helper.make_graph(nodes, "graph", *edges, stored),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=9,
    )


def dense(kernel, bias):
    return graph(
        [helper.make_node("Gemm", ["x", "kernel", "bias"], ["logits"], "logits/Gemm")],
        {"kernel": kernel, "bias": bias},
        [len(kernel)],
    )


def convolved(channels=8, groups=1):
    """Convolution and ReLU, pooling, dense layer."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "k", "b"], ["conv"], "conv/Conv", kernel_shape=[3, 3], group=groups),
        helper.make_node("Relu", ["conv"], ["relu"], "relu/Relu"),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"], "pool/GlobalAveragePool"),
        helper.make_node("Flatten", ["pool"], ["flat"], "flat/Flatten"),
        helper.make_node("Gemm", ["flat", "head"], ["logits"], "logits/Gemm"),
    ]
    weights = {
        "k": random.standard_normal((channels, channels // groups, 3, 3)) / 3,
        "b": random.standard_normal(channels),
        "head": random.standard_normal((channels, 4)),
    }
    return graph(nodes, weights, [channels, 6, 6])


def residual():
    """Two blocks of convolutions with a sum, the second one's shortcut being a convolution of its own."""
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((8, 8, 3, 3)) / 8 for name in ("k0", "k1", "k2", "k3", "k4")}
    weights |= {f"b{place}": random.standard_normal(8) / 8 for place in range(5)}
    weights["head"] = random.standard_normal((8, 4))

    def conv(place, source):
        names = [source, f"k{place}", f"b{place}"]
        return helper.make_node("Conv", names, [f"conv{place}"], f"conv{place}/Conv", pads=[1] * 4)

    nodes = [
        conv(0, "x"),
        helper.make_node("Relu", ["conv0"], ["relu0"], "relu0/Relu"),
        conv(1, "relu0"),
        helper.make_node("Add", ["relu0", "conv1"], ["add1"], "add1/Add"),
        helper.make_node("Relu", ["add1"], ["relu1"], "relu1/Relu"),
        conv(2, "relu1"),
        helper.make_node("Relu", ["conv2"], ["relu2"], "relu2/Relu"),
        conv(3, "relu2"),
        conv(4, "relu1"),
        helper.make_node("Add", ["conv4", "conv3"], ["add2"], "add2/Add"),
        helper.make_node("Relu", ["add2"], ["relu3"], "relu3/Relu"),
        helper.make_node("GlobalAveragePool", ["relu3"], ["pool"], "pool/GlobalAveragePool"),
        helper.make_node("Flatten", ["pool"], ["flat"], "flat/Flatten"),
        helper.make_node("Gemm", ["flat", "head"], ["logits"], "logits/Gemm"),
    ]
    return graph(nodes, weights, [8, 6, 6])


def written(model, x, path, float_layers=()):
    """The file in 8 bits and its graph."""
    network = Network(model)
    seen = calibration.observe(model, network.tensors(), {"x": x})["minmax"]
    files.write(*network.write(network.place(float_layers), network.integers(seen), seen), path)
    return path, onnx.load(path).graph


def fused(path):
    """Kinds of node that ONNX Runtime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_name("optimized.onnx"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(path.with_name("optimized.onnx")).graph.node]


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero"), [(-1, 1.55, 0.01, 100), (0, 2.55, 0.01, 0), (-2.55, 0, 0.01, 255), (0, 0, 1, 0)]
)
def test_scale_and_zero_point_of_a_range(low, high, scale, zero):
    found = scale_of((low, high))
    np.testing.assert_allclose(found[0], scale, rtol=1e-6)
    assert found[1] == zero and found[0].dtype == np.float32 and found[1].dtype == np.uint8


def test_integers_of_a_dense_layer():
    kernel = np.array([[1.27, -0.2], [-0.5, 2.54], [0.0, 0.011]])
    network = Network(dense(kernel, [0.3, -0.7]))
    found = network.integers({"x": Seen(-1, 1.55)})["logits/Gemm"]
    np.testing.assert_allclose(found.scale, [0.01, 0.02], rtol=1e-6)  # largest weight of a column / 127
    assert found.values.dtype == np.int8 and found.values.tolist() == [[127, -10], [-50, 127], [0, 1]]
    assert found.bias.dtype == np.int32 and found.bias.tolist() == [3000, -3500]  # in steps of 0.01 * scale


def test_a_large_bias_beside_tiny_weights_fits_32_bits():
    network = Network(dense(np.full((3, 1), 1e-9), [50.0]))
    found = network.integers({"x": Seen(0, 1)})["logits/Gemm"]
    assert abs(int(found.bias[0])) < 2**25
    np.testing.assert_allclose(found.bias[0] * found.scale[0] / 255, 50, rtol=1e-6)


def test_a_bias_takes_up_the_mean_error_of_a_dense_layer():
    random = np.random.default_rng(0)
    kernel, bias, mean = random.standard_normal((50, 7)), random.standard_normal(7), random.uniform(1, 2, 50)
    network = Network(dense(kernel, bias))
    plain = network.integers({"x": Seen(0, 4)})["logits/Gemm"]
    found = network.integers({"x": Seen(0, 4, mean)})["logits/Gemm"]
    step = found.scale * 4 / 255
    truth = mean @ kernel.astype(np.float32) + bias
    np.testing.assert_allclose(mean @ (found.values * found.scale) + found.bias * step, truth, atol=step.max())
    assert np.abs(mean @ (plain.values * plain.scale) + plain.bias * step - truth).max() > 4 * step.max()


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_a_bias_takes_up_the_mean_error_of_a_convolution(groups):
    model = convolved(8, groups)
    network = Network(model)
    mean = np.random.default_rng(1).uniform(1, 2, 8)
    seen = {name: Seen(0, 4) for name in network.tensors()} | {"x": Seen(0, 4, mean)}
    found = network.integers(seen)["conv/Conv"]
    step = found.scale * 4 / 255
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    inputs = np.repeat(mean.reshape(groups, -1), 8 // groups, axis=0)  # (outputs, channels of the group)

    def answers(kernel, bias):
        """Outputs for an image with the mean in every pixel."""
        return (kernel.sum(axis=(2, 3)) * inputs).sum(axis=1) + bias

    kernel = found.values * found.scale[:, None, None, None]
    np.testing.assert_allclose(
        answers(kernel, found.bias * step), answers(weights["k"], weights["b"]), atol=1.1 * step.max()
    )


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_convolutions_run_in_8_bits_and_agree(groups, tmp_path):
    x = np.random.default_rng(1).standard_normal((64, 8, 6, 6)).astype(np.float32)
    model = convolved(8, groups)
    path, made = written(model, x, tmp_path / "int8.onnx")
    truth = parity.run(parity.session(model.SerializeToString()), {"x": x})["logits"]
    gap = np.abs(parity.run(parity.session(path), {"x": x})["logits"] - truth)
    assert 0 < gap.max() < 0.03 * np.abs(truth).max()
    kinds = fused(path)
    assert "QLinearConv" in kinds and "Conv" not in kinds and "Gemm" not in kinds
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.initializer}
    assert stored["conv/Conv/weight_int8"].dtype == np.int8 and stored["conv/Conv/weight_scale"].shape == (8,)
    assert stored["conv/Conv/bias_int32"].dtype == np.int32
    assert "k" not in stored and "b" not in stored and "head" not in stored
    assert "conv/scale" not in stored and "relu/scale" in stored  # rounded once, behind the ReLU


def test_no_value_goes_back_to_float_inside_a_residual_network(tmp_path):
    x = np.random.default_rng(1).standard_normal((32, 8, 6, 6)).astype(np.float32)
    model = residual()
    path, made = written(model, x, tmp_path / "int8.onnx")
    kinds = fused(path)
    assert kinds.count("QLinearConv") == 5 and kinds.count("QLinearAdd") == 2
    assert kinds.count("QuantizeLinear") == 1 and not {"Conv", "Add", "Relu"} & set(kinds)
    truth = parity.run(parity.session(model.SerializeToString()), {"x": x})["logits"]
    found = parity.run(parity.session(path), {"x": x})["logits"]
    assert np.abs(found - truth).max() < 0.03 * np.abs(truth).max()
    assert made.output[0].name == "logits" and "logits/scale" not in {t.name for t in made.initializer}


def test_openvino_sums_inside_convolutions(tmp_path):
    openvino = pytest.importorskip("openvino")
    x = np.random.default_rng(1).standard_normal((32, 8, 6, 6)).astype(np.float32)
    model = residual()
    path, _ = written(model, x, tmp_path / "int8.onnx")
    network = openvino.Core().read_model(str(path))

    def roundings():
        return sum(node.get_type_name() == "FakeQuantize" for node in network.get_ops())

    before = roundings()
    session._sum_in_convolutions(network)
    assert before - roundings() == 2  # one of each sum, though both inputs of the second are convolutions
    truth = parity.run(parity.session(model.SerializeToString()), {"x": x})["logits"]
    [found] = session.open_session(path, "openvino", 1).run(["logits"], {"x": x})
    assert np.abs(found - truth).max() < 0.03 * np.abs(truth).max()


def test_a_layer_left_in_float_keeps_its_weights(tmp_path):
    x = np.random.default_rng(1).standard_normal((8, 8, 6, 6)).astype(np.float32)
    path, made = written(residual(), x, tmp_path / "int8.onnx", float_layers=("conv1",))
    kinds = fused(path)
    assert kinds.count("QLinearConv") == 4
    assert {"k1", "b1"} < {tensor.name for tensor in made.initializer}
    assert "k0" not in {tensor.name for tensor in made.initializer}


def test_a_convolution_with_nothing_behind_it_stays_in_float(tmp_path):
    model = convolved()
    nodes = [node for node in model.graph.node if node.name == "conv/Conv"]
    nodes[0].output[0] = "logits"
    alone = graph(nodes, {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}, [8, 6, 6])
    assert not Network(alone).layers


def test_a_convolution_in_front_of_weights_without_an_8_bit_form_runs_in_8_bits(tmp_path):
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["conv"], "conv/Conv", kernel_shape=[3, 3]),
        helper.make_node("Reshape", ["conv", "rows"], ["sequence"], "sequence/Reshape"),
        helper.make_node("MatMul", ["sequence", "votes"], ["logits"], "votes/MatMul"),
    ]
    weights = {"k": random.standard_normal((4, 8, 3, 3)) / 9, "votes": random.standard_normal((1, 16, 5))}
    model = graph(nodes, weights, [8, 6, 6])
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 4, 16]), "rows"))
    x = random.standard_normal((16, 8, 6, 6)).astype(np.float32)
    path, found = written(model, x, tmp_path / "model.onnx")
    assert "QLinearConv" in fused(path)
    assert {tensor.name: tensor.data_type for tensor in found.initializer}["votes"] == TensorProto.FLOAT


def test_products_without_constant_weights_are_left_alone():
    nodes = [helper.make_node("MatMul", ["x", "x"], ["logits"], "square/MatMul")]
    assert not Network(graph(nodes, {}, [4, 4])).layers


@pytest.mark.parametrize("change", [{"alpha": 2.0}, {"beta": 0.5}, {"transA": 1}])
def test_a_gemm_that_does_more_than_multiply_is_left_alone(change):
    model = dense(np.ones((3, 3)), np.zeros(3))
    model.graph.node[0].attribute.extend(helper.make_attribute(key, value) for key, value in change.items())
    assert not Network(model).layers


def test_a_layer_used_twice_has_integers_for_each_use(tmp_path):
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gemm", ["x", "kernel", "bias"], ["once"], "shared/Gemm"),
        helper.make_node("Gemm", ["once", "kernel", "bias"], ["logits"], "shared/Gemm_1"),
    ]
    weights = {"kernel": random.standard_normal((4, 4)), "bias": random.standard_normal(4)}
    model = graph(nodes, weights, [4])
    x = random.standard_normal((50, 4)).astype(np.float32)
    path, made = written(model, x, tmp_path / "int8.onnx")
    assert list(Network(model).layers) == ["shared"]
    biases = [numpy_helper.to_array(t) for t in made.initializer if t.name.endswith("bias_int32")]
    assert len(biases) == 2 and not np.array_equal(*biases)  # their inputs have steps of their own
    truth = parity.run(parity.session(model.SerializeToString()), {"x": x})["logits"]
    assert np.abs(parity.run(parity.session(path), {"x": x})["logits"] - truth).max() < 0.03 * np.abs(truth).max()
