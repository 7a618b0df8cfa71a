"""Quantization-aware training: the rounding is that of an INT8 file, and a model that learns under it keeps its score."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from keras import layers
from stopping import Stop
from typer.testing import CliRunner

import zoo
from export import int8, parity, to_onnx
from zoo import data as datasets
from zoo.cli import app
from zoo.compress import finish, quantization_aware, tune_quantized
from zoo.compress.awareness import RoundedActivations, RoundedWeights, rounded_activations, rounded_weights
from zoo.evaluate.report import answers
from zoo.recipes import Recipe
from zoo.training import fit


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mlp"
    return zoo.train("mlp", data="digits", out=folder, epochs=6, width=(48, 32), quiet=True)


def residual(shape=(8, 8, 1)):
    """Strided and depthwise convolution, batch normalisation, a residual sum, pooling and two dense layers."""
    image = keras.Input(shape, name="image")
    x = layers.Conv2D(12, 3, padding="same", use_bias=False, name="stem")(image)
    x = layers.ReLU(name="stem_relu")(layers.BatchNormalization(name="stem_norm")(x))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="deep")(x)
    y = layers.ReLU(name="deep_relu")(layers.BatchNormalization(name="deep_norm")(y))
    y = layers.BatchNormalization(name="wide_norm")(layers.Conv2D(12, 1, use_bias=False, name="wide")(y))
    x = layers.ReLU(name="sum_relu")(layers.Add(name="sum")([x, y]))
    x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", name="down")(x)
    x = layers.Dense(24, "relu", name="features")(layers.GlobalAveragePooling2D(name="pool")(x))
    return keras.Model(image, layers.Dense(10, name="logits")(x), name="residual")


@pytest.fixture(scope="module")
def taught(digits):
    """The residual model after two epochs, and rounded."""
    keras.utils.set_random_seed(1)
    model = residual()
    fit(model, digits, Recipe("mlp", "digits", epochs=2, learning_rate=0.01), quiet=True)
    return model, quantization_aware(model, digits)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("shape", "channels"), [((5, 3), (-1,)), ((3, 3, 4, 6), (-1,)), ((3, 3, 4, 2), (-2, -1))])
def test_weights_are_rounded_symmetrically_by_channel(bits, shape, channels):
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    kernel[..., 0] = 0  # a channel that has been pruned
    found = keras.ops.convert_to_numpy(rounded_weights(keras.ops.convert_to_tensor(kernel), bits, channels))
    columns = kernel.reshape(-1, int(np.prod([shape[axis] for axis in channels])))
    levels = 2 ** (bits - 1) - 1
    step = np.maximum(np.abs(columns).max(axis=0), 1e-12) / levels
    expected = np.clip(np.round(columns / step), -levels, levels) * step
    np.testing.assert_allclose(found.reshape(columns.shape), expected, rtol=1e-5, atol=1e-7)
    assert np.abs(found - kernel).max() <= 0.5001 * step.max()


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize(("low", "high"), [(0.0, 3.0), (-1.3, 0.9), (-2.0, 0.0), (0.0, 0.0)])
def test_activations_are_rounded_on_an_unsigned_grid_that_holds_zero(bits, low, high):
    x = np.concatenate([np.linspace(-4, 4, 400), [0.0]]).astype(np.float32)
    found = keras.ops.convert_to_numpy(rounded_activations(x, np.float32(low), np.float32(high), bits))
    step = np.float32(max((high - low) / (2**bits - 1), 1e-12))
    zero = np.round(-np.float32(low) / step)
    integers = np.clip(np.round(x / step) + zero, 0, 2**bits - 1)  # as QuantizeLinear in the ONNX specification
    np.testing.assert_allclose(found, (integers - zero) * step, atol=1e-6)
    assert found[-1] == 0 and len(np.unique(found)) <= 2**bits


def test_a_range_is_a_moving_average_and_inference_leaves_it():
    layer = RoundedActivations(momentum=0.75)
    first, second = np.array([[-1.0, 3.0]], np.float32), np.array([[-2.0, 7.0]], np.float32)
    np.testing.assert_array_equal(layer(first), first)  # nothing is known yet, so nothing is rounded
    layer(first, training=True)
    assert (float(layer.low.value), float(layer.high.value)) == (-1, 3)
    layer(second, training=True)
    assert (float(layer.low.value), float(layer.high.value)) == (-1.25, 4)
    assert np.max(layer(10 * second)) <= 4.01
    assert (float(layer.low.value), float(layer.high.value)) == (-1.25, 4)


def test_the_model_computes_as_its_int8_file(taught, digits, tmp_path):
    model, rounded = taught
    x = digits.signature.inputs(digits.test.x)
    calibration = digits.signature.inputs({name: rows[:256] for name, rows in digits.train.x.items()})
    source = to_onnx(model, tmp_path / "model.onnx")
    made = int8.quantize(
        source,
        tmp_path / "model.int8.onnx",
        calibration={"image": calibration},
        validation={"image": x},
        score=lambda _: 1.0,
        method="minmax",
        ranges=finish(rounded).ranges,
    )
    assert made.kept_float == ()
    exact, integers = (
        parity.run(parity.session(path), {"image": x})["logits"] for path in (source, tmp_path / "model.int8.onnx")
    )
    simulated = rounded.predict_on_batch(x)
    lost = np.abs(exact - integers).mean()
    assert np.abs(exact - simulated).mean() == pytest.approx(lost, rel=0.1)
    assert np.abs(simulated - integers).mean() < 0.25 * lost
    assert np.mean(simulated.argmax(1) == integers.argmax(1)) > 0.995


def test_finish_gives_the_plain_model_with_what_it_has_learnt(taught, digits, tmp_path):
    model, rounded = taught
    learnt = keras.models.clone_model(rounded)
    learnt.set_weights(rounded.get_weights())
    fit(learnt, digits, Recipe("mlp", "digits", epochs=1, learning_rate=0.001), quiet=True)
    plain, ranges, kept = finish(learnt)
    assert kept == ()
    assert [(layer.name, type(layer)) for layer in plain.layers] == [
        (layer.name, type(layer)) for layer in model.layers
    ]
    assert set(ranges) == {"image", "stem_relu", "deep_relu", "wide_norm", "sum_relu", "down", "pool", "features"}
    assert all(low <= 0 <= high and high > 0 for low, high in ranges.values())
    for name in ("stem", "wide_norm", "logits"):
        inner = learnt.get_layer(f"{name}_rounded").layer if name != "wide_norm" else learnt.get_layer(name)
        for now, before, first in zip(
            plain.get_layer(name).get_weights(), inner.get_weights(), model.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(now, before)
            assert np.abs(now - first).max() > 0
    plain.save(tmp_path / "plain.keras")
    loaded = keras.models.load_model(tmp_path / "plain.keras")
    x = digits.signature.inputs(digits.test.x)
    np.testing.assert_array_equal(loaded.predict_on_batch(x), plain.predict_on_batch(x))
    assert np.abs(plain.predict_on_batch(x) - learnt.predict_on_batch(x)).max() > 0


def test_a_rounded_model_is_saved_and_loaded(taught, digits, tmp_path):
    _, rounded = taught
    rounded.save(tmp_path / "rounded.keras")
    x = digits.signature.inputs(digits.test.x)
    loaded = keras.models.load_model(tmp_path / "rounded.keras")
    np.testing.assert_array_equal(loaded.predict_on_batch(x), rounded.predict_on_batch(x))


def test_excluded_layers_and_other_kinds_stay_float():
    steps = keras.Input((4, 3), name="steps")
    x = layers.Dense(5, name="first")(layers.LSTM(6, name="lstm")(steps))
    model = keras.Model(steps, layers.Dense(2, name="logits")(x))
    rounded = quantization_aware(model, exclude=("log*",))
    assert [layer.layer.name for layer in rounded.layers if isinstance(layer, RoundedWeights)] == ["first"]
    assert finish(rounded).kept_float == ("lstm", "logits")


def test_the_mask_of_a_text_arrives_behind_rounded_layers():
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.Dense(6, name="first")(layers.Embedding(9, 5, mask_zero=True, name="words")(tokens))
    model = keras.Model(tokens, layers.Dense(2, name="logits")(layers.LSTM(4, name="lstm")(x)))
    rows = np.random.default_rng(0).integers(1, 9, (32, 7)).astype(np.int32)
    rounded = quantization_aware(model, rows)
    assert any(isinstance(layer, RoundedActivations) for layer in rounded.layers)
    filled = np.pad(rows, ((0, 0), (0, 5)))  # with padding, which is not read
    np.testing.assert_allclose(rounded.predict_on_batch(filled), rounded.predict_on_batch(rows), atol=1e-6)


def test_a_layer_that_is_called_twice_is_rounded_once():
    shared = layers.Dense(4, "relu", name="shared")
    x = keras.Input((4,), name="numbers")
    model = keras.Model(x, layers.Dense(2, name="logits")(shared(shared(x))))
    rows = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    rounded = quantization_aware(model, rows)
    plain, ranges, _ = finish(rounded)
    assert set(ranges) == {"numbers", "shared", "shared_1"}
    np.testing.assert_allclose(plain.predict_on_batch(rows), model.predict_on_batch(rows), atol=1e-6)
    assert np.abs(rounded.predict_on_batch(rows) - model.predict_on_batch(rows)).max() < 0.05


def test_learning_under_rounding_wins_back_what_rounding_costs(run, tmp_path):
    weights = run.model.get_weights()
    part = run.data.test

    def accuracy(model):
        return float(np.mean(answers(model, run.signature, part.x).argmax(1) == part.y))

    hard = dict(weight_bits=2, activation_bits=3)
    before = accuracy(quantization_aware(run.model, run.data, **hard))
    tuned = tune_quantized(run, tmp_path / "tuned", epochs=4, quiet=True, **hard)
    after = tuned.metrics["quantized"]
    assert run.metrics["test"] - before > 0.1  # the rounding is hard
    assert after - before > 0.1
    for old, new in zip(weights, run.model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    stored = zoo.load(tmp_path / "tuned")
    assert stored.metrics == tuned.metrics and tuned.metrics["test"] == accuracy(tuned.model)
    ranges = json.loads((tmp_path / "tuned" / "ranges.json").read_text())
    assert set(ranges) == {"inputs", "hidden0_relu", "features"}
    assert [type(layer) for layer in stored.model.layers] == [type(layer) for layer in run.model.layers]


def test_the_command_line_rounds(run, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DEBUG", "1")  # leaves the standard error of this process alone
    asked = ["compress", str(run.folder), "--bits", "4", "--epochs", "1", "--out", str(tmp_path / "new"), "-q"]
    told = CliRunner().invoke(app, [*asked, "--set", "activation_bits=6"], catch_exceptions=False).stdout
    assert f"{zoo.load(tmp_path / 'new').metrics['quantized']:.4f} on test rows with weights of 4 bits" in told


def test_a_killed_run_goes_on_exactly(tmp_path):
    run = zoo.train("mlp", data="iris", out=tmp_path / "run", epochs=6, width=(12, 8), quiet=True)
    whole = tune_quantized(run, tmp_path / "whole", epochs=2, quiet=True)
    with pytest.raises(KeyboardInterrupt):
        tune_quantized(run, tmp_path / "killed", epochs=2, quiet=True, callbacks=(Stop(epoch=1),))
    again = tune_quantized(run, tmp_path / "killed", resume=True, quiet=True)
    for a, b in zip(whole.model.weights, again.model.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (tmp_path / "whole/ranges.json").read_text() == (tmp_path / "killed/ranges.json").read_text()
    assert whole.metrics["quantized"] == again.metrics["quantized"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_bits": 1}, "weight_bits must be a whole number from 2 to 8, got weight_bits=1"),
        ({"weight_bits": None}, "got weight_bits=None"),
        ({"activation_bits": 16}, "got activation_bits=16"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got momentum=1.0"),
        ({"exclude": ("hiden*",)}, r"'hiden\*' matches no layer .* hidden0"),
        ({"exclude": ("*",)}, "no dense layer or convolution to round besides"),
        ({"data": np.zeros((0, 8, 8, 1))}, "no rows"),
        ({"data": np.zeros((5, 9, 8, 1))}, r"must be \(batch, 8, 8, 1\), got \(5, 9, 8, 1\)"),
        ({"data": np.full((5, 8, 8, 1), np.nan)}, "hold NaN or infinity"),
        ({"data": np.ones((5, 8, 8, 1))}, "are all equal"),
    ],
)
def test_what_cannot_work_is_refused(run, arguments, message):
    with pytest.raises(ValueError, match=message):
        quantization_aware(run.model, **arguments)


class Opaque(layers.Layer):
    """A layer of the user's own that does not say how it is built."""

    def __init__(self, table):
        super().__init__(name="opaque")
        self.table = table

    def call(self, x):
        return x * self.table


def test_models_that_cannot_be_copied_or_are_no_graphs_are_refused(taught, run):
    numbers = keras.Input((3,))
    opaque = keras.Model(numbers, layers.Dense(2)(Opaque(np.ones(3, np.float32))(numbers)), name="own")
    with pytest.raises(ValueError, match=r"'own' cannot be copied: Object Opaque .* Give its own layers a get_config"):
        quantization_aware(opaque)

    class Plain(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(TypeError, match="functional"):
        quantization_aware(Plain())
    with pytest.raises(ValueError, match="rounded already"):
        quantization_aware(taught[1])
    with pytest.raises(ValueError, match="is not rounded"):
        finish(run.model)
    broken = keras.models.clone_model(run.model)
    broken.get_layer("logits").bias.assign(np.full(10, np.nan))
    with pytest.raises(ValueError, match="weights of logits are NaN or infinite"):
        quantization_aware(broken, run.data)
    huge = keras.models.clone_model(run.model)
    huge.get_layer("hidden0").bias.assign(np.full(huge.get_layer("hidden0").bias.shape, 3e38))
    huge.get_layer("hidden1").kernel.assign(np.ones(huge.get_layer("hidden1").kernel.shape))
    with pytest.raises(ValueError, match="activations of features are NaN or infinite"):
        quantization_aware(huge, run.data)


def test_an_untrained_model_or_a_folder_in_use_leaves_everything_as_it_was(run, tmp_path):
    fresh = keras.models.clone_model(run.model)
    for weight in fresh.weights:
        weight.assign(np.zeros(weight.shape))
    with pytest.raises(ValueError, match="train it first"):
        tune_quantized(fresh, tmp_path / "new", data=run.data, quiet=True)
    with pytest.raises(ValueError, match="got weight_bits=9"):
        tune_quantized(run, tmp_path / "new", weight_bits=9, quiet=True)
    few = dataclasses.replace(
        run.data, validation=datasets.Split({"image": run.data.validation.x["image"][:0]}, run.data.validation.y[:0])
    )
    with pytest.raises(ValueError, match="no rows for training or validation"):
        tune_quantized(dataclasses.replace(run, data=few), tmp_path / "new", quiet=True)
    assert not (tmp_path / "new").exists()
    before = (run.folder / "metrics.json").read_text()
    with pytest.raises(ValueError, match="holds the run itself"):
        tune_quantized(run, run.folder, overwrite=True, quiet=True)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="choose another folder"):
        tune_quantized(run, tmp_path, overwrite=True, quiet=True)
    assert (run.folder / "metrics.json").read_text() == before
