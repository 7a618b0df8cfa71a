"""INT8 files: what they hold, how they agree, which layers stay in float, and what is refused without a trace."""

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from keras import layers

import export
from export import ExportError, int8, parity
from zoo.data.signature import Signature, TablePreprocess


def accuracy(y):
    return lambda answers: float((answers["probabilities"].argmax(axis=1) == y).mean())


def quantize(model, data, folder, **options):
    source = export.to_onnx(model, folder / "model.onnx", signature=data.signature)
    given = {
        "calibration": {name: values[:128] for name, values in data.train.x.items()},
        "validation": data.validation.x,
        "score": accuracy(data.validation.y),
        **options,
    }
    return int8.quantize(source, folder / "model.int8.onnx", **given)


def test_every_layer_of_a_trained_network_runs_in_8_bits(lenet, digits, tmp_path):
    result = quantize(lenet, digits, tmp_path)
    assert result.kept_float == () and result.layers == 5 and result.before - result.after <= int8.MAX_DROP
    assert str(result).startswith("5 of 5 layers in 8 bits (minmax), score 0.")
    test = digits.test
    found, truth = (
        parity.run(parity.session(tmp_path / name), test.x)["probabilities"].argmax(axis=1)
        for name in ("model.int8.onnx", "model.onnx")
    )
    assert (truth == test.y).mean() - (found == test.y).mean() <= 0.003
    assert (tmp_path / "model.int8.onnx").stat().st_size < 0.4 * (tmp_path / "model.onnx").stat().st_size
    graph = onnx.load(tmp_path / "model.int8.onnx").graph
    made = {output: node for node in graph.node for output in node.output}
    types = {tensor.name: tensor for tensor in graph.initializer}
    weighted = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(weighted) == 5
    for node in weighted:
        assert {made[name].op_type for name in node.input} == {"DequantizeLinear"}
        data, weights = (made[name] for name in node.input[:2])
        assert types[data.input[2]].data_type == onnx.TensorProto.UINT8
        assert types[weights.input[2]].data_type == onnx.TensorProto.INT8
        assert len(types[weights.input[1]].dims) == 1 and types[weights.input[1]].dims[0] > 1  # a scale per channel
    rounded = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert "logits" not in rounded and not any(
        name.startswith("preprocess/") for name in rounded - {weighted[0].input[0]}
    )


def blocks():
    """Strided, depthwise, grouped and plain convolutions with sums and a concatenation."""
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(12, 3, strides=2, padding="same", activation="relu", name="stem")(image)
    y = layers.DepthwiseConv2D(3, padding="same", activation="relu6", name="deep")(x)
    y = layers.Conv2D(12, 1, name="wide")(y)
    x = layers.ReLU(name="sum_relu")(layers.Add(name="sum")([x, y]))
    y = layers.Conv2D(12, 3, groups=3, padding="same", activation="relu", name="grouped")(x)
    x = layers.Concatenate(name="both")([x, y])
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Flatten(name="features")(x)
    return keras.Model(image, layers.Dense(10, name="logits")(x), name="blocks")


@pytest.mark.parametrize("method", int8.METHODS)
def test_a_network_of_many_kinds_agrees(digits, method, tmp_path):
    keras.utils.set_random_seed(0)
    model = blocks()
    source = export.to_onnx(model, tmp_path / "model.onnx", signature=digits.signature)
    truth = parity.run(parity.session(source), digits.validation.x)["probabilities"]
    result = quantize(model, digits, tmp_path, method=method, score=accuracy(truth.argmax(axis=1)), max_drop=0.05)
    assert result.kept_float == () and result.layers == 5 and result.method == method
    found = parity.run(parity.session(tmp_path / "model.int8.onnx"), digits.validation.x)["probabilities"]
    # answers of a network that has learnt nothing lie close together: they move by little, and by something
    assert 0 < np.abs(found - truth).max() < 0.1 * (truth.max(axis=0) - truth.min(axis=0)).max()


def small(kind):
    """A network of one kind, of weights that were drawn at random."""
    shape = {"sequence": (16, 4), "volume": (6, 6, 6, 2), "columns": (8,), "shared": (8,)}.get(kind, (8, 8, 4))
    rows = x = keras.Input(shape, name="x")
    if kind == "sequence":
        x = layers.Conv1D(8, 3, padding="causal", activation="relu", name="first")(x)
        x = layers.Conv1D(8, 3, dilation_rate=2, padding="same", activation="relu", name="second")(x)
        x = layers.GlobalAveragePooling1D(name="mean")(x)
    elif kind == "volume":
        x = layers.Conv3D(8, 3, activation="relu", name="first")(x)
        x = layers.Flatten(name="flat")(layers.AveragePooling3D(2, name="pool")(x))
    elif kind == "columns":
        x = layers.Dense(16, activation="relu", name="first")(x)
        x = layers.Dense(16, activation="relu", name="second")(x)
    elif kind == "shared":
        twice = layers.Dense(8, activation="relu", name="twice")
        x = twice(twice(x))
    elif kind == "branches":
        x = layers.Conv2D(8, 3, padding="same", activation="relu6", name="first")(x)
        left = layers.Conv2D(8, 1, activation="relu", name="left")(x)
        right = layers.AveragePooling2D(3, 1, padding="same", name="smooth")(x)
        right = layers.Conv2D(4, 1, activation="relu", name="right")(right)
        x = layers.AveragePooling2D(2, name="pool")(layers.Concatenate(name="both")([left, right]))
        x = layers.Conv2D(8, 1, activation="relu6", name="last")(x)
        x = layers.GlobalAveragePooling2D(name="mean")(x)
    else:  # squeeze and excite
        x = layers.Conv2D(8, 3, padding="same", activation="swish", name="first")(x)
        gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
        gate = layers.Conv2D(4, 1, activation="relu", name="narrow")(gate)
        gate = layers.Conv2D(8, 1, activation="sigmoid", name="wide")(gate)
        x = layers.Conv2D(8, 1, name="last")(layers.Multiply(name="excite")([x, gate]))
        x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(rows, layers.Dense(3, name="logits")(x), name=kind)


@pytest.mark.parametrize("kind", ["sequence", "volume", "columns", "shared", "branches", "excited"])
def test_nothing_goes_back_to_float_inside_a_network(kind, tmp_path):
    keras.utils.set_random_seed(0)
    model = small(kind)
    rows = {"x": np.random.default_rng(0).standard_normal((64, *model.input_shape[1:])).astype(np.float32)}
    source = export.to_onnx(model, tmp_path / "model.onnx", golden={"x": rows["x"][:4]})
    path = tmp_path / "int8.onnx"
    result = int8.quantize(source, path, calibration=rows, validation=rows, score=lambda _: 1.0, method="minmax")
    assert result.kept_float == () and result.layers == sum(bool(layer.weights) for layer in model.layers)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    live = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QuantizeLinear") == 1  # of the input
    assert set(kinds) - {"QuantizeLinear", "Transpose", "Reshape", "Flatten", "Unsqueeze", "Squeeze"} <= {
        "QLinearConv",
        "QGemm",
        "QLinearAveragePool",
        "QLinearGlobalAveragePool",
        "QLinearConcat",
        "QLinearSigmoid",
        "QLinearMul",
    }
    truth = parity.run(parity.session(source), rows)["logits"]
    assert 0 < np.abs(live.run(["logits"], rows)[0] - truth).mean() < 0.03 * truth.std()


def spoiled():
    """A model whose hidden1 gets one huge constant beside small informative values: 8 bits lose the latter."""
    inputs = keras.Input((2,), name="inputs")
    x = layers.Dense(3, name="hidden0")(inputs)
    x = layers.Dense(4, activation="relu", name="hidden1")(x)
    x = layers.Dense(4, activation="relu", name="hidden2")(x)
    model = keras.Model(inputs, layers.Dense(2, name="logits")(x), name="spoiled")
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
    assert [each.layer for each in result.harms if each.kept] == list(result.kept_float)
    assert result.harms[0].layer == "hidden1" and {each.layer for each in result.harms} == {
        "hidden0",
        "hidden1",
        "hidden2",
        "logits",
    }
    assert result.harms[0].harm > 10 * result.harms[1].harm > 0
    assert str(result).splitlines()[1].split() == ["hidden1", f"{result.harms[0].harm:.4f}", "float"]
    found = parity.run(parity.session(tmp_path / "int8.onnx"), raw)["probabilities"]
    assert (found.argmax(axis=1) == y).mean() == result.after


def test_named_layers_stay_in_float(lenet, digits, tmp_path):
    result = quantize(lenet, digits, tmp_path, keep_float=["stage1_conv", "logits"])
    assert set(result.kept_float) == {"stage1_conv", "logits"}
    stored = {t.name for t in onnx.load(tmp_path / "model.int8.onnx").graph.initializer if t.data_type == 3}  # INT8
    layers_stored = {name.partition("/")[0] for name in stored if name.endswith("weight_int8")}
    assert layers_stored == {"stage0_conv", "hidden0", "features"}


def test_given_ranges_take_the_place_of_calibration(tmp_path):
    inputs = keras.Input((3,), name="x")
    hidden = layers.Dense(4, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="logits")(hidden), name="small")
    source = export.to_onnx(model, tmp_path / "model.onnx")
    rows = {"x": np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)}
    given = dict(validation=rows, score=lambda _: 1.0)
    path = tmp_path / "int8.onnx"
    result = int8.quantize(source, path, calibration=None, ranges={"x": (-1, 1.55), "hidden": (0, 5.1)}, **given)
    assert result.method == "given"
    scales = sorted(float(s) for s in scalars(path))
    np.testing.assert_allclose(scales, [0.01, 0.02], rtol=1e-6)
    int8.quantize(source, path, calibration=rows, ranges={"x": (-1, 1.55)}, **given)
    assert any(abs(scale - 0.01) < 1e-6 for scale in scalars(path))
    with pytest.raises(ExportError, match=r"no calibration rows, and ranges lacks 1 of the 2 values .*; give calib"):
        int8.quantize(source, path, calibration=None, ranges={"x": (-1, 1)}, **given)
    with pytest.raises(ValueError, match=r"ranges names 'hiden', which is no layer .* Did you mean 'hidden'"):
        int8.quantize(source, path, calibration=rows, ranges={"hiden": (-1, 1)}, **given)
    with pytest.raises(ValueError, match=r"ranges\['x'\] must be finite with low <= high, got \(2, 1\)"):
        int8.quantize(source, path, calibration=rows, ranges={"x": (2, 1)}, **given)


def scalars(path):
    """Scales of the rounded values in a file."""
    stored = onnx.load(path).graph.initializer
    return [onnx.numpy_helper.to_array(t) for t in stored if t.name.endswith("/scale") and not t.dims]


def test_refused_with_figures_when_nothing_helps(lenet, digits, tmp_path):
    source = export.to_onnx(lenet, tmp_path / "model.onnx", signature=digits.signature)
    truth = parity.run(parity.session(source), digits.validation.x)["probabilities"]
    old = tmp_path / "model.int8.onnx"
    old.write_bytes(b"old")
    message = (
        r"falls from 1\.0000 by more than 0\.003: 0\.0000 with no layer left in float; 0\.0000 with \w+, .* left in"
    )
    with pytest.raises(int8.RefusedError, match=message):
        quantize(lenet, digits, tmp_path, score=lambda found: float((found["probabilities"] == truth).all()))
    with pytest.raises(
        int8.RefusedError, match=r"falls from 0\.\d+ by more than -1: 0\.\d+ with no layer left in float"
    ):
        quantize(lenet, digits, tmp_path, max_drop=-1)
    assert old.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.int8.onnx", "model.onnx"]


def test_nothing_to_quantize(digits, tmp_path):
    image = keras.Input((8, 8, 1))
    pooled = layers.GlobalAveragePooling2D()(image)
    plain = keras.Model(image, layers.RepeatVector(10)(pooled)[..., 0])
    with pytest.raises(int8.RefusedError, match="no convolution and no dense layer"):
        quantize(plain, digits, tmp_path)


def rows_of(digits, change):
    """Calibration images, spoilt."""
    return {"image": change(digits.train.x["image"][:8].copy())}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:0], r"calibration rows must be as many for every input and at least one, got {'image': 0}"),
        (lambda x: x[:, :4], r"calibration rows of input 'image' must be \(rows, 8, 8, 1\), got \(8, 4, 8, 1\)"),
        (lambda x: x[..., 0], r"must be \(rows, 8, 8, 1\), got \(8, 8, 8\)"),
        (lambda x: np.repeat(x[:1], 8, axis=0), "the 8 calibration rows are all alike"),
        (np.zeros_like, "the 8 calibration rows are all alike"),
        (lambda x: x.astype(np.float32), "calibration rows of input 'image' must be uint8, got float32"),
        (lambda x: x.astype(str), "calibration rows of input 'image' must be uint8, got <U"),
        (lambda x: x.tolist(), "calibration rows must be numpy arrays by input, got {'image': 'list'}"),
    ],
)
def test_bad_rows_leave_the_old_file(lenet, digits, change, message, tmp_path):
    old = tmp_path / "model.int8.onnx"
    old.write_bytes(b"old")
    with pytest.raises(ExportError, match=message):
        quantize(lenet, digits, tmp_path, calibration=rows_of(digits, change))
    assert old.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.int8.onnx", "model.onnx"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"calibration": None}, ExportError, "no calibration rows"),
        ({"calibration": {"picture": np.zeros((3, 8, 8, 1))}}, ExportError, r"inputs \['image'\], got \['picture'\]"),
        ({"validation": {}}, ExportError, r"the validation rows must have the inputs \['image'\], got \[\]"),
        (
            {"method": "median"},
            ValueError,
            "method must be one of auto, minmax, mse, entropy, percentile, got 'median'",
        ),
        ({"keep_float": ["hiden0"]}, ValueError, "keep_float names 'hiden0', .* Did you mean 'hidden0'"),
        (
            {"keep_float": "hidden0"},
            ValueError,
            r"keep_float must hold names of layers, got 'hidden0'; give \['hidden0",
        ),
        (
            {"keep_float": ["stage0_conv", "stage1_conv", "hidden0", "features", "logits"]},
            ValueError,
            "keep_float names all 5 layers that can be in 8 bits; leave one out",
        ),
        ({"max_drop": "0.3"}, ExportError, "max_drop must be a number, got max_drop='0.3'"),
        ({"max_drop": float("nan")}, ExportError, "max_drop must be a number, got max_drop=nan"),
        ({"score": lambda _: float("nan")}, int8.RefusedError, "the score of the float model .* is nan, which says"),
    ],
)
def test_bad_options_leave_the_old_file(lenet, digits, options, error, message, tmp_path):
    old = tmp_path / "model.int8.onnx"
    old.write_bytes(b"old")
    with pytest.raises(error, match=message):
        quantize(lenet, digits, tmp_path, **options)
    assert old.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.int8.onnx", "model.onnx"]


def test_rows_that_give_nan_are_refused(tmp_path):
    inputs = keras.Input((2,), name="x")
    model = keras.Model(inputs, layers.Dense(2, name="logits")(keras.ops.log(inputs)), name="logarithm")
    source = export.to_onnx(model, tmp_path / "model.onnx", golden={"x": np.ones((2, 2), np.float32)})
    rows = {"x": np.array([[1, 2], [3, -1], [2, 2]], np.float32)}
    with pytest.raises(ExportError, match="the calibration rows give NaN or infinity in"):
        int8.quantize(source, tmp_path / "int8.onnx", calibration=rows, validation=rows, score=lambda _: 1.0)
    assert not (tmp_path / "int8.onnx").exists()
