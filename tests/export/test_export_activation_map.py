import os
import re
import subprocess
import sys

import keras
import numpy as np
import onnx
import pytest
from keras import layers

import export
from export import ExportError, maps, parity
from serve.runtime import Model
from zoo import registry
from zoo.explain import Explanation, explain
from zoo.explain.activations import cam
from zoo.explain.clock import Clock
from zoo.explain.sources import subject_of


@pytest.fixture(scope="module")
def pooling(digits):
    """A small network with a global average pooling, trained just enough to be better than chance."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    x = image
    for place, width in enumerate((12, 24)):
        x = layers.Conv2D(width, 3, place + 1, padding="same", use_bias=False, name=f"stage{place}_conv")(x)
        x = layers.ReLU(name=f"stage{place}_relu")(layers.BatchNormalization(name=f"stage{place}_norm")(x))
    x = layers.GlobalAveragePooling2D(name="features")(x)
    model = keras.Model(image, layers.Dense(10, name="logits")(x), name="pooling")
    model.compile(keras.optimizers.Adam(0.02), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)  # fmt: skip
    model.fit(digits.signature.inputs(digits.train.x), digits.train.y, epochs=3, batch_size=64, verbose=0)
    return model


@pytest.fixture(scope="module")
def bundle(pooling, digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "digits" / "1"
    return export.to_bundle(pooling, folder, data=digits, float16=True, ort=True, max_drop=0.05, activation_map=True)


def logits_of(model, digits, rows):
    return keras.ops.convert_to_numpy(model(digits.signature.inputs(rows)))


def answers(path, rows):
    return parity.run(parity.session(path), rows)


@pytest.mark.parametrize("classes", ["all", "top"])
def test_the_map_is_that_of_keras_and_its_mean_is_the_logit(pooling, digits, tmp_path, classes):
    rows = {name: values[:20] for name, values in digits.test.x.items()}
    path = export.to_onnx(pooling, tmp_path / "model.onnx", signature=digits.signature, activation_map=classes)
    found, logits = answers(path, rows), logits_of(pooling, digits, rows)
    best, bias = logits.argmax(axis=1), pooling.get_layer("logits").bias.numpy()
    shown = found["activation_map"]
    assert list(found) == ["probabilities", "activation_map"]
    assert shown.shape == ((20, 4, 4, 10) if classes == "all" else (20, 4, 4))
    means = shown.mean(axis=(1, 2))
    np.testing.assert_allclose(
        means, logits - bias if classes == "all" else (logits - bias)[range(20), best], atol=1e-4
    )
    inner = keras.Model(pooling.inputs[0], pooling.get_layer("stage1_relu").output)
    features = keras.ops.convert_to_numpy(inner(digits.signature.inputs(rows)))
    expected = features @ pooling.get_layer("logits").kernel.numpy()
    own = expected if classes == "all" else expected[np.arange(20), ..., best]
    np.testing.assert_allclose(shown, own, atol=1e-4)
    subject = subject_of(pooling, digits.signature, None, None)
    coarse = shown[np.arange(20), ..., best] if classes == "all" else shown
    explained = cam(subject, subject.check(rows), best, clock=Clock()).values
    assert np.corrcoef(explained[:, ::2, ::2].ravel(), coarse.ravel())[0, 1] > 0.8  # the same, enlarged to 8 x 8


def test_the_map_costs_no_second_copy_of_the_weights(pooling, digits, tmp_path):
    plain = export.to_onnx(pooling, tmp_path / "plain.onnx", signature=digits.signature)
    for classes in maps.CLASSES:
        path = export.to_onnx(pooling, tmp_path / f"{classes}.onnx", signature=digits.signature, activation_map=classes)
        arrays = [onnx.load(file).graph.initializer for file in (plain, path)]
        sizes = [sum(np.prod(tensor.dims) for tensor in each) for each in arrays]
        assert sizes[1] - sizes[0] < 20  # some shapes and indices; the kernel alone has 240


def test_every_form_of_a_bundle_has_the_map(bundle, pooling, digits):
    manifest = bundle.manifest
    assert [port.name for port in manifest.outputs] == ["probabilities", "activation_map"]
    port = manifest.outputs[1]
    assert (port.shape, port.axes) == ((-1, 4, 4), ("batch", "height", "width")) and "most probable" in port.unit
    assert set(manifest.precisions) == {"fp32", "fp16", "int8"} and manifest.refused == {}
    rows = digits.test.x
    best = logits_of(pooling, digits, rows).argmax(axis=1)
    truth = answers(bundle.model("fp32"), rows)["activation_map"]
    for key, form in manifest.precisions.items():
        found = answers(bundle.model(key), rows)
        same = found["probabilities"].argmax(axis=1) == best
        assert same.mean() > 0.9
        assert np.corrcoef(found["activation_map"][same].ravel(), truth[same].ravel())[0, 1] > 0.97
        golden = {name: values[:16] for name, values in rows.items()}
        gap = np.abs(answers(bundle.model(key), golden)["activation_map"] - truth[:16]).max()
        assert form.others["activation_map"] == pytest.approx(gap, abs=1e-3)
    assert manifest.precisions["fp32"].others["activation_map"] < 1e-4
    assert "`activation_map` FP32 (batch, 4, 4)" in (bundle.folder / "README.md").read_text()


def test_the_int8_file_holds_the_last_kernel_once(bundle):
    proto = onnx.load(bundle.model("int8"))
    kernels = [t.data_type for t in proto.graph.initializer if tuple(t.dims) == (24, 10)]
    assert kernels == [onnx.TensorProto.INT8]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_server_answers_with_the_map_where_it_is_asked_for(bundle, digits, precision):
    model = Model(bundle, precision=precision)
    rows = {name: values[:3] for name, values in digits.test.x.items()}
    assert set(model.predict(rows)) == {"probabilities", "activation_map"}
    assert set(model.predict(rows, ["probabilities"])) == {"probabilities"}
    assert model.predict(rows, ["activation_map"])["activation_map"].shape == (3, 4, 4)


@pytest.mark.parametrize("options", [[], ["--precision", "int8"], ["--format", "ort"]])
def test_a_device_replays_the_map(bundle, options):
    run = subprocess.run(
        [sys.executable, bundle.folder / "run.py", *options], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "16 golden rows agree" in run.stdout


def test_models_that_have_no_map_are_refused(digits, lenet, pooling, tmp_path):
    with pytest.raises(
        ExportError, match=r"cannot export 'activation_map': .* 'lenet' ends in 'logits' behind 'features'"
    ):
        export.to_onnx(lenet, tmp_path / "model.onnx", signature=digits.signature, activation_map=True)
    with pytest.raises(ExportError, match="activation_map must be True, False, 'top' or 'all', got 'best'"):
        export.to_onnx(pooling, tmp_path / "model.onnx", signature=digits.signature, activation_map="best")
    with pytest.raises(ExportError, match="cannot export 'activation_map'"):
        export.to_bundle(lenet, tmp_path / "digits" / "1", data=digits, activation_map="all")
    assert not list(tmp_path.rglob("*.onnx"))


def test_a_file_whose_map_is_wrong_is_not_kept(pooling, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(maps.Head, "weights", lambda head: (head.dense.kernel.numpy() * 1.5, head.dense.bias.numpy()))
    with pytest.raises(ExportError, match=re.escape("the activation_map of the exported 'pooling' differs from Keras")):
        export.to_onnx(pooling, tmp_path / "model.onnx", signature=digits.signature, activation_map=True)
    assert not list(tmp_path.iterdir())


def test_residual_networks_of_the_zoo_and_models_without_signature_have_maps(tmp_path):
    model = registry.get("resnet18", input_shape=(64, 64, 3), classes=5)
    path = export.to_onnx(model, tmp_path / "model.onnx", activation_map="all")
    rows = {model.inputs[0].name: np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("float32")}
    found = answers(path, rows)
    np.testing.assert_allclose(found["activation_map"].mean(axis=(1, 2)), found["logits"], atol=1e-3)  # the bias is 0


def test_a_map_of_one_place_is_written_with_a_warning(tmp_path):
    image = keras.Input((2, 2, 1), name="image")
    one = layers.GlobalAveragePooling2D(name="features")(layers.Conv2D(3, 2, name="conv")(image))
    model = keras.Model(image, layers.Dense(4, name="logits")(one), name="tiny")
    with pytest.warns(UserWarning, match="the activation_map of 'tiny' has one place and cannot show where"):
        export.to_onnx(model, tmp_path / "model.onnx", activation_map=True)


def test_a_series_and_a_head_without_dense_layer_have_maps(tmp_path):
    series = keras.Input((None, 3), name="series")
    scores = layers.Conv1D(4, 3, padding="same", name="scores")(series)
    model = keras.Model(series, layers.GlobalAveragePooling1D(name="logits")(scores))
    rows = {"series": np.random.default_rng(0).normal(size=(2, 9, 3)).astype("float32")}
    truth = keras.ops.convert_to_numpy(model.get_layer("scores")(rows["series"]))
    for classes in maps.CLASSES:
        path = export.to_onnx(model, tmp_path / f"{classes}.onnx", activation_map=classes)
        best = truth.mean(axis=1).argmax(axis=1)
        expected = truth if classes == "all" else truth[np.arange(2), :, best]
        np.testing.assert_allclose(answers(path, rows)["activation_map"], expected, atol=1e-5)


def test_a_bundle_explains_itself_without_keras(bundle, pooling, digits, tmp_path):
    rows = digits.test.x["image"][:4]
    expected = explain(pooling, rows, "cam", signature=digits.signature)
    np.save(tmp_path / "rows.npy", rows)
    code = (
        "import sys, numpy as np; from zoo.explain import explain\n"
        f"found = explain({str(bundle.folder)!r}, np.load('rows.npy'), 'cam', quality=False).save('found.json')\n"
        "print(*{'keras', 'tensorflow', 'jax', 'torch'} & sys.modules.keys())"
    )
    places = os.pathsep.join([os.getcwd(), *filter(None, sys.path)])
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": places}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert (run.stdout.strip(), run.returncode) == ("", 0), run.stderr
    found = Explanation.from_json((tmp_path / "found.json").read_text())
    np.testing.assert_allclose(found.attributions, expected.attributions, atol=1e-4)
    assert found.axes == expected.axes and found.base is None and found.unit == expected.unit == "model output"


def test_maps_that_a_bundle_does_not_give_are_refused(bundle, pooling, digits, tmp_path):
    row = digits.test.x["image"][:1]
    other = (explain(bundle, row, quality=False).target[0] + 1) % 10
    with pytest.raises(
        ValueError, match="gives the map of the most probable class only, and row 0 is asked for another"
    ):
        explain(bundle, row, "cam", target=int(other))
    plain = export.to_bundle(pooling, tmp_path / "store" / "plain" / "1", data=digits, int8=False)
    with pytest.raises(ValueError, match="cam needs the Keras model, or a bundle exported with activation_map=True"):
        explain(plain, row, "cam")
