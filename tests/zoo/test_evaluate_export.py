"""Calibration and conformal thresholds travel in the bundle and act in every exported file and in the server's answers."""

import dataclasses
import json
import subprocess
import sys

import keras
import numpy as np
import pytest

import export
import serve
import zoo
from export import ExportError, parity
from serve.manifest import BundleError, Manifest, read
from serve.runtime import Model
from zoo.data.signature import softmax
from zoo.evaluate import calibration, conformal
from zoo.evaluate.report import answers


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return zoo.train("mlp", "digits", out=folder / "mlp", epochs=4, width=(32,), quiet=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module", params=["temperature", "platt"])
def calibrated(request, run, store):
    number = {"temperature": "1", "platt": "2"}[request.param]
    options = dict(calibrate=request.param, conformal=0.9, float16=True, weight_bits=8, ort=True, litert=True)
    return export.to_bundle(run, store / "digits" / number, max_drop=0.05, **options)


@pytest.fixture(scope="module")
def expected(run):
    """Keras' answers to the test rows by method, calibrated by numpy."""
    held = answers(run.model, run.signature, run.data.validation.x)
    found = {}
    for method in ("temperature", "platt"):
        fitted = calibration.fit(method, run.data.validation.y, held)
        signature = dataclasses.replace(run.signature, calibration=fitted)
        found[method] = answers(run.model, signature, run.data.test.x)
    return found


def test_every_file_answers_as_calibrated_keras(calibrated, expected, run):
    manifest = read(calibrated.folder).manifest
    truth = expected[manifest.calibration["method"]]
    plain = answers(run.model, run.signature, run.data.test.x)
    moved = np.abs(truth - plain).max()
    assert moved > 0.2
    assert set(manifest.precisions) >= {"fp32", "fp16", "int8"} and "model.tflite" in manifest.edge
    for key, form in manifest.precisions.items():
        found = Model(calibrated, precision=key).predict(run.data.test.x)["probabilities"]
        assert np.abs(found - truth).max() < (1e-4 if key == "fp32" else 0.25 * moved), key
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-4)
        assert form.parity < (1e-4 if key == "fp32" else 0.1)
    for name, edge in manifest.edge.items():
        assert edge.difference < (1e-4 if name in ("model.tflite", "model.ort") else 0.25 * moved), name


def test_the_manifest_has_the_measured_constants(calibrated, expected, run):
    manifest = calibrated.manifest
    told, y = manifest.calibration, run.data.test.y
    held = answers(run.model, run.signature, run.data.validation.x)
    fitted = calibration.fit(told["method"], run.data.validation.y, held)
    np.testing.assert_allclose(told["scale"], fitted.scale, rtol=1e-3)
    assert told["ece_after"] == pytest.approx(calibration.reliability(y, expected[told["method"]]).ece.score, abs=2e-3)
    assert told["ece_after"] < told["ece_before"]
    card = (calibrated.folder / "README.md").read_text()
    assert (
        "were not calibrated" not in card and f"{told['ece_before']:.4f} before, {told['ece_after']:.4f} after" in card
    )
    assert "answers a set or an interval made to hold the truth for 90% of rows" in card


def test_thresholds_hold_for_each_form_and_coverage_is_measured(calibrated, run):
    told, data = calibrated.manifest.conformal, run.data
    assert set(told["thresholds"]) == set(calibrated.manifest.precisions) and told["rows"] == len(data.validation)
    for key in ("fp32", "int8"):
        live = Model(calibrated, precision=key)
        held, test = (live.predict(part.x)["probabilities"] for part in (data.validation, data.test))
        fitted = conformal.fit(data.validation.y, held, level=0.9)
        assert told["thresholds"][key] == pytest.approx(fitted.threshold, abs=1e-5)
        assert told["coverage"][key] == pytest.approx(
            conformal.measure(fitted, data.test.y, test).coverage.score, abs=0.01
        )


def test_the_server_answers_sets(calibrated, run, store):
    manifest = calibrated.manifest
    client = serve.create_app(store).test_client()
    rows = {"image": run.data.test.x["image"][:40].tolist()}
    told = client.post(f"/predict/digits?version={manifest.version}&top=10", json=rows).get_json()["predictions"]
    probabilities = Model(calibrated).predict({"image": run.data.test.x["image"][:40]})["probabilities"]
    rule = conformal.Conformal("aps", 0.9, manifest.conformal["thresholds"]["fp32"])
    for row, inside in zip(told, rule.sets(probabilities), strict=True):
        assert set(row["set"]) == {str(label) for label in np.flatnonzero(inside)}
        assert row["set"] == [each["label"] for each in row["top"]][: len(row["set"])]
    assert max(len(row["set"]) for row in told) > 1


def test_the_device_runner_reads_it(calibrated):
    done = subprocess.run(
        [sys.executable, calibrated.folder / "run.py", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["precision"] == "fp32"


def test_intervals_of_a_regression_are_served(tmp_path):
    run = zoo.train("mlp", "diabetes", out=tmp_path / "run", epochs=15, width=(8,), learning_rate=0.02, quiet=True)
    bundle = export.to_bundle(run, tmp_path / "store" / "illness" / "1", conformal=0.8, int8=False)
    assert bundle.manifest.calibration == {} and bundle.manifest.conformal["method"] == "residual"
    limit = bundle.manifest.conformal["thresholds"]["fp32"]
    row = dict(zip(run.signature.preprocess.numbers, run.data.test.x["numbers"][0].tolist(), strict=True))
    client = serve.create_app(tmp_path / "store").test_client()
    (told,) = client.post("/predict/illness", json=row).get_json()["predictions"]
    assert told["high"] - told["value"] == pytest.approx(limit, rel=1e-5) == told["value"] - told["low"]
    with pytest.raises(ExportError, match="a regression has no probabilities to calibrate"):
        export.to_bundle(run, tmp_path / "store" / "illness" / "2", calibrate="temperature")
    with pytest.raises(ExportError, match=r"a level of 0.99 needs at least 99 validation rows, got 66"):
        export.to_bundle(run, tmp_path / "store" / "illness" / "2", conformal=0.99)
    assert [path.name for path in (tmp_path / "store" / "illness").iterdir()] == ["1"]


def test_a_plain_bundle_says_that_it_is_not_calibrated(run, tmp_path):
    bundle = export.to_bundle(run, tmp_path / "digits" / "1", int8=False)
    assert bundle.manifest.calibration == bundle.manifest.conformal == {}
    assert "Probabilities were not calibrated." in (bundle.folder / "README.md").read_text()
    client = serve.create_app(tmp_path).test_client()
    rows = {"image": run.data.test.x["image"][:1].tolist()}
    assert "set" not in client.post("/predict/digits", json=rows).get_json()["predictions"][0]


@pytest.mark.parametrize("method", ["temperature", "platt"])
@pytest.mark.parametrize(("opset", "steep", "least"), [(13, 1, 0.05), (18, 1, 0.05), (18, 200, 0)])
def test_the_graph_holds_the_same_arithmetic(method, opset, steep, least, tmp_path):
    """Also where logits are in the hundreds, at the oldest and the usual opset."""
    splits = zoo.data.load("iris")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3, name="logits")(inputs))
    model.set_weights([steep * np.random.default_rng(0).normal(size=(4, 3)), np.zeros(3)])
    scale, bias = ((0.7,), ()) if method == "temperature" else ((0.7, 1.5, 3.0), (0.5, -1.0, 0.0))
    signature = dataclasses.replace(splits.signature, calibration=zoo.data.signature.Calibration(method, scale, bias))
    path = export.to_onnx(model, tmp_path / "model.onnx", signature=signature, golden=splits.test.x, opset=opset)
    found = parity.run(parity.session(path), splits.test.x)["probabilities"]
    logits = model.predict(signature.inputs(splits.test.x), verbose=0)
    np.testing.assert_allclose(found, signature.calibration(logits), atol=2e-5)
    assert np.abs(found - softmax(logits)).max() > least


def test_constants_of_a_wrong_kind_are_refused(calibrated):
    raw = json.loads(calibrated.manifest.to_json())
    for conformal_, message in (
        ({"method": "aps", "thresholds": {"fp32": "all"}}, "a conformal threshold is no number"),
        ({"method": "residual", "thresholds": {"fp32": 1.0}}, "method among"),
        ({"method": "aps"}, "and thresholds"),
        ([1], "are objects"),
    ):
        with pytest.raises(BundleError, match=message):
            Manifest.from_json(json.dumps({**raw, "conformal": conformal_}))


def test_scaling_that_does_harm_is_told(tmp_path):
    """Platt's targets leave 27 validation rows of a class at most 28 / 29: too modest for a model that was right before."""
    run = zoo.train("logistic_regression", "digits", out=tmp_path / "run", epochs=10, quiet=True)
    with pytest.warns(UserWarning, match=r"platt scaling raises the expected calibration error .* from 0.0\d+ to 0"):
        export.to_bundle(run, tmp_path / "digits" / "1", calibrate="platt", int8=False)


def test_what_cannot_be_calibrated_is_told(run, tmp_path):
    with pytest.raises(ExportError, match="cannot calibrate: method must be one of temperature, platt, got 'isotonic'"):
        export.to_bundle(run, tmp_path / "digits" / "1", calibrate="isotonic")
    assert not list((tmp_path / "digits").glob("*"))
