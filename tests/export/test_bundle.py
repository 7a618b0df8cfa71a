import json
import math
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import export
from export import ExportError, bundle, devices, parity
from export.litert import compare
from serve.drift import BASELINE, summarise
from serve.drift import read as read_baseline
from serve.manifest import BundleError, Manifest, read
from zoo import registry

FILES = {"model.onnx", "model.int8.onnx", "model.json", "golden.npz", "background.npz", "drift.json", "README.md", "LICENSES", "SHA256SUMS", "run.py"}  # fmt: skip


@pytest.fixture(scope="module")
def digits_bundle(lenet, digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "digits" / "1"
    return export.to_bundle(
        lenet, folder, data=digits, architecture="lenet", training={"seed": 0}, licence="Apache-2.0"
    )


@pytest.fixture(scope="module")
def mixed_bundle(perceptron_of_mixed, mixed, tmp_path_factory):
    return export.to_bundle(perceptron_of_mixed, tmp_path_factory.mktemp("store") / "mixed" / "7", data=mixed)


def test_a_bundle_holds_what_it_says(digits_bundle, digits, lenet):
    manifest = digits_bundle.manifest
    assert {path.name for path in digits_bundle.folder.iterdir()} == FILES
    assert (manifest.name, manifest.version, manifest.architecture, manifest.kind) == ("digits", "1", "lenet", "image")
    assert manifest.labels == tuple("0123456789") and manifest.refused == {}
    facts = manifest.training
    assert facts["data"]["sha256"] == digits.sha256 and facts["seed"] == 0
    assert facts["versions"]["keras"] == keras.__version__
    scores = {}
    for key, precision in manifest.precisions.items():
        path = digits_bundle.model(key)
        assert precision.bytes == path.stat().st_size
        found = parity.run(parity.session(path), digits.test.x)["probabilities"].argmax(axis=1)
        scores[key] = precision.score
        assert precision.score == pytest.approx((found == digits.test.y).mean())
    assert scores["fp32"] > 0.8 and scores["int8"] > scores["fp32"] - 0.03
    logits = keras.ops.convert_to_numpy(lenet(digits.signature.inputs(digits.test.x)))
    assert scores["fp32"] == pytest.approx((logits.argmax(axis=1) == digits.test.y).mean())
    assert manifest.precisions["fp32"].parity <= 1e-4 < manifest.precisions["int8"].parity


@pytest.mark.parametrize("which", ["digits_bundle", "mixed_bundle"])
def test_golden_rows_replay(which, request):
    found = request.getfixturevalue(which)
    with np.load(found.folder / "golden.npz", allow_pickle=False) as arrays:
        inputs = {name.removeprefix("input/"): arrays[name] for name in arrays.files if name.startswith("input/")}
        expected = {name.removeprefix("output/"): arrays[name] for name in arrays.files if name.startswith("output/")}
    assert set(inputs) == {port.name for port in found.manifest.inputs}
    for precision in found.manifest.precisions:
        live = parity.session(found.model(precision))
        gap = parity.difference(live, inputs, expected)
        assert gap == pytest.approx(found.manifest.precisions[precision].parity, abs=1e-6)


def test_background_is_from_the_training_split(digits_bundle, digits):
    with np.load(digits_bundle.folder / "background.npz", allow_pickle=False) as arrays:
        assert arrays.files == ["input/image"] and len(arrays["input/image"]) == bundle.BACKGROUND
        assert (arrays["input/image"] == digits.train.x["image"][: bundle.BACKGROUND]).all()


def test_table_ports_and_drift(mixed_bundle, mixed):
    manifest = mixed_bundle.manifest
    numbers, categories = manifest.inputs
    assert (numbers.dtype, numbers.columns) == ("FP32", ("height", "depth"))
    assert (categories.dtype, categories.columns) == ("BYTES", ("colour", "kind"))
    assert manifest.choices == {"colour": ("green", "red"), "kind": ("a", "b", "c")}
    drift = json.loads((mixed_bundle.folder / "drift.json").read_text())
    values = mixed.validation.x["numbers"][:, 0]
    height = drift["inputs"]["numbers"]["height"]
    assert height["missing"] == pytest.approx(np.isnan(values).mean())
    known = values[~np.isnan(values)]
    assert height["shares"][0] == pytest.approx((known < height["edges"][0]).mean(), abs=1e-5)
    assert len(height["shares"]) == len(height["edges"]) + 1 and sum(height["shares"]) == pytest.approx(1, abs=1e-4)
    colour = drift["inputs"]["categories"]["colour"]
    assert colour["missing"] == pytest.approx((mixed.validation.x["categories"][:, 0] == "").mean())
    assert sum(colour["values"].values()) + colour["missing"] + colour["unknown"] == pytest.approx(1)
    assert sum(drift["outputs"]["classes"].values()) == pytest.approx(1) and drift["rows"] == len(mixed.validation)


def test_image_drift_is_the_histogram_of_validation_pixels(digits_bundle, digits):
    drift = json.loads((digits_bundle.folder / "drift.json").read_text())["inputs"]["image"]["channel0"]
    pixels = digits.validation.x["image"]
    assert drift["shares"][0] == pytest.approx((pixels < 16).mean(), abs=1e-5)
    assert len(drift["edges"]) == len(drift["shares"]) + 1


def test_image_drift_has_the_light_of_each_validation_picture(digits_bundle, digits):
    described = json.loads((digits_bundle.folder / "drift.json").read_text())["inputs"]["image"]
    assert described.keys() == {"channel0", "brightness", "contrast", "sharpness"}
    means = digits.validation.x["image"].mean(axis=(1, 2, 3))
    assert described["brightness"]["edges"] == pytest.approx(np.quantile(means, np.arange(0.1, 1, 0.1)), rel=1e-5)


def test_the_card_states_the_measured_figures(digits_bundle, mixed_bundle, digits):
    card = (digits_bundle.folder / "README.md").read_text()
    for precision in digits_bundle.manifest.precisions.values():
        assert f"{precision.score:.4f}" in card and f"{precision.bytes:,}" in card
    assert digits.sha256 in card and "curl -F image=@picture.png" in card and "Seed 0." in card
    body = (mixed_bundle.folder / "README.md").read_text().split("-d '")[1].split("' http")[0]
    assert set(json.loads(body)) <= {"height", "depth", "colour", "kind"}
    assert "generated, not observed" in (mixed_bundle.folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["mixed", "digits"])
def test_a_server_counts_the_baselines_own_rows_as_they_are(name, request):
    made, rows = request.getfixturevalue(f"{name}_bundle"), request.getfixturevalue(name).validation.x
    known, manifest = read_baseline(made.folder), made.manifest
    counts = np.zeros(known.size, int)
    for start in range(0, len(next(iter(rows.values()))), 32):
        some = {key: values[start : start + 32] for key, values in rows.items()}
        answers = parity.run(parity.session(made.model("fp32")), some)
        counts += np.frombuffer(summarise(some, answers, manifest, known)["counts"], "<u4").astype(int)
    for feature in known.features:
        own = counts[feature.start : feature.stop]
        np.testing.assert_allclose(own / own.sum(), feature.shares, atol=2e-5, err_msg=feature.name)


def test_the_card_tells_whether_drift_can_be_noticed(mixed_bundle, mixed, digits_bundle, digits):
    for bundle_, data in ((mixed_bundle, mixed), (digits_bundle, digits)):
        judged = len(data.validation) >= BASELINE
        body = (bundle_.folder / "README.md").read_text()
        assert ("has the baseline to compare with" in body, "there are too few to compare with" in body) == (
            judged,
            not judged,
        )
    assert len(mixed.validation) < BASELINE <= len(digits.validation)
    licences = (digits_bundle.folder / "LICENSES").read_text()
    assert "Apache-2.0" in licences and digits.licence in licences


def test_regression_bundle_says_why_there_is_no_int8(tmp_path):
    model = registry.get("logistic_regression", input_shape=(10,), classes=1)
    with pytest.warns(UserWarning, match=r"the model scores -\d.* no better than always the same answer \(-0.0"):
        found = export.to_bundle(model, tmp_path / "bmi" / "1", data="diabetes", max_drop=-1.0)
    assert "**The model scores -" in (found.folder / "README.md").read_text()
    assert found.manifest.metric == "r2" and found.manifest.outputs[0].name == "value"
    assert set(found.manifest.precisions) == {"fp32"} and "score falls from" in found.manifest.refused["int8"]
    assert f"No INT8 file: {found.manifest.refused['int8']}" in (found.folder / "README.md").read_text()
    drift = json.loads((found.folder / "drift.json").read_text())
    assert sum(drift["outputs"]["value"]["shares"]) == pytest.approx(1, abs=1e-4)


def test_every_form_is_measured_against_the_float_one(perceptron_of_mixed, mixed, tmp_path):
    found = export.to_bundle(
        perceptron_of_mixed,
        tmp_path / "mixed" / "1",
        data=mixed,
        float16=True,
        weight_bits=(8, 4),
        ort=True,
        max_drop=1.0,
    )
    manifest = found.manifest
    assert set(manifest.precisions) == {"fp32", "fp16", "int8", "w8", "w4"} and manifest.refused == {}
    sizes = {key: precision.bytes for key, precision in manifest.precisions.items()}
    assert sizes["fp16"] < 0.7 * sizes["fp32"] and sizes["w4"] < sizes["w8"] < sizes["fp32"]
    y = mixed.test.y
    answers = {
        key: parity.run(parity.session(found.model(key)), mixed.test.x)["probabilities"].argmax(axis=1) for key in sizes
    }
    card = (found.folder / "README.md").read_text()
    assert manifest.precisions["fp32"].changes == {} and "- INT8 answers" in card
    for key in ("fp16", "int8", "w8", "w4"):
        changes = manifest.precisions[key].changes
        assert changes["flips"] == (answers[key] != answers["fp32"]).sum()
        assert changes["lost"] - changes["won"] == (answers["fp32"] == y).sum() - (answers[key] == y).sum()
        assert set(changes["per_class"]) == {"no", "yes"} and manifest.precisions[key].ms > 0
    assert set(manifest.edge) == {"model.ort", "model.int8.ort", "model.w8.ort", "model.w4.ort"}
    for edge in manifest.edge.values():
        assert edge.score == manifest.precisions[edge.precision].score and edge.inputs == ("numbers", "categories")
    assert "ai.onnx.ml;" in (found.folder / "operators.config").read_text()


def test_weights_beside_the_file_belong_to_the_bundle(perceptron_of_mixed, mixed, tmp_path):
    from serve.runtime import Model

    found = export.to_bundle(
        perceptron_of_mixed, tmp_path / "mixed" / "1", data=mixed, int8=True, external_above=1000, max_drop=1
    )
    whole = found.manifest.precisions["fp32"]
    files = [found.folder / "model.onnx", found.folder / "model.onnx.data"]
    assert whole.weights == "model.onnx.data" and whole.bytes == sum(path.stat().st_size for path in files)
    assert "model.onnx.data" in (found.folder / "SHA256SUMS").read_text()
    rows = {name: values[:3] for name, values in mixed.test.x.items()}
    served = Model(found).predict(rows)["probabilities"]
    np.testing.assert_allclose(
        served, parity.keras_answers(perceptron_of_mixed, mixed.signature, rows)["probabilities"], atol=1e-4
    )
    with files[1].open("r+b") as file:
        file.seek(100)
        file.write(b"changed")
    with pytest.raises(BundleError, match=r"'model.onnx.data' does not match its hash"):
        read(found.folder)
    files[1].unlink()
    with pytest.raises(BundleError, match=r"'model.onnx.data' is listed but missing"):
        read(found.folder)
    sums = found.folder / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(True) if "onnx.data" not in line))
    with pytest.raises(BundleError, match=r"precision 'fp32' names 'model.onnx.data', which the bundle does not hold"):
        read(found.folder)


def test_what_fit_found_brings_its_precision(perceptron_of_mixed, mixed, tmp_path):
    from zoo.recipes import Recipe

    model = perceptron_of_mixed
    run = SimpleNamespace(model=model, recipe=Recipe(model="mlp", data="mixed"), metrics={}, data=mixed, signature=mixed.signature)  # fmt: skip
    fitted = SimpleNamespace(model=model, run=run, precision="w8", limits=SimpleNamespace(drop=0.5))
    found = export.to_bundle(fitted, tmp_path / "mixed" / "1", int8=False)
    assert list(found.manifest.precisions) == ["fp32", "w8"] and found.manifest.default == "w8"
    assert found.model().name == "model.w8.onnx" and found.manifest.architecture == "mlp"
    with pytest.raises(
        ExportError, match=r"precision 'w8' was chosen for this bundle and did not pass: the score falls"
    ):
        export.to_bundle(fitted, tmp_path / "mixed" / "2", max_drop=-1)
    for options, message in (
        (dict(precision="fp64"), "no precision is called 'fp64'; it is one of fp32, fp16, int8, w8, w4"),
        (dict(weight_bits=2), "weight_bits must be 8 or 4, got 2"),
    ):
        with pytest.raises(ExportError, match=message):
            export.to_bundle(model, tmp_path / "mixed" / "2", data=mixed, **options)
    assert [path.name for path in (tmp_path / "mixed").iterdir()] == ["1"]


def test_ranges_learnt_in_training_are_those_of_the_int8_file(lenet, digits, digits_bundle, tmp_path):
    from zoo.recipes import Recipe

    run = SimpleNamespace(model=lenet, recipe=Recipe(model="lenet", data="digits"), metrics={}, data=digits, signature=digits.signature, folder=tmp_path)  # fmt: skip
    narrow = {layer.name: [-0.05, 0.05] for layer in lenet.layers}
    (tmp_path / "ranges.json").write_text(json.dumps(narrow))
    found = export.to_bundle(run, tmp_path / "digits" / "1", max_drop=1.0)
    usual = digits_bundle.manifest.precisions["int8"].parity
    assert found.manifest.precisions["int8"].parity > 5 * usual
    (tmp_path / "ranges.json").write_text('{"no such layer": [0, 1]}')
    found = export.to_bundle(run, tmp_path / "digits" / "2", max_drop=1.0)
    assert "ranges names 'no such layer'" in found.manifest.refused["int8"]


def test_manifests_of_the_first_format_are_read(digits_bundle):
    raw = json.loads((digits_bundle.folder / "model.json").read_text())
    assert raw.pop("calibration") == raw.pop("conformal") == raw.pop("verification") == {}
    raw |= {"format": 1, "edge": {"model.int8.tflite": {"bytes": 5, "difference": 0.5, "agreement": 0.9}}}
    del raw["preprocess"]
    for precision in raw["precisions"].values():
        for name in ("weights", "ms", "changes"):
            del precision[name]
    manifest = Manifest.from_json(json.dumps(raw))
    assert manifest.edge["model.int8.tflite"].precision == "int8" and manifest.precisions["fp32"].changes == {}
    with pytest.raises(BundleError, match=r"model.json has format 7, this reader knows 6"):
        Manifest.from_json(json.dumps(raw | {"format": 7}))


def test_run_facts_go_into_the_manifest(perceptron_of_mixed, mixed, digits_bundle, tmp_path, monkeypatch):
    from zoo.recipes import Recipe

    monkeypatch.setattr(bundle, "_ROOM", 7 * 4 * perceptron_of_mixed.output_shape[-1])

    recipe = Recipe(model="mlp", data="mixed", seed=5)
    scores = {"test": 0.5, "baseline": float("nan")}
    run = SimpleNamespace(
        model=perceptron_of_mixed, recipe=recipe, metrics=scores, data=mixed, signature=mixed.signature
    )
    found = export.to_bundle(run, tmp_path / "mixed" / "1", int8=False)
    assert found.manifest.architecture == "mlp" and found.manifest.training["seed"] == 5
    assert found.manifest.training["recipe"]["data"] == "mixed" and "int8" not in found.manifest.refused
    assert found.manifest.training["metrics"] == {"test": 0.5, "baseline": None}
    assert (found.manifest.max_batch, digits_bundle.manifest.max_batch) == (7, 0)


def test_a_run_and_other_data_are_refused(mixed, digits, lenet, tmp_path):
    run = SimpleNamespace(model=lenet, recipe=None, metrics={}, data=None, signature=mixed.signature)
    with pytest.raises(ExportError, match="'digits' is not what the run was trained on"):
        export.to_bundle(lenet, tmp_path / "digits" / "1", data=digits, run=run)
    with pytest.raises(ExportError, match="a bundle needs data"):
        export.to_bundle(lenet, tmp_path / "digits" / "1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "max_drop", "reason"),
    [
        ({}, 0.05, ""),
        ({"bytes": 10**7}, 1.0, "it has 10,000,000 bytes, the float file has "),
        ({"agreement": 0.9}, 0.05, "its agreement with Keras is 0.900, at least 0.95 is asked for"),
        ({"agreement": 0.9}, 0.1, ""),
        ({"agreement": math.nan}, 0.05, "its agreement with Keras is nan"),
    ],
)
def test_an_int8_file_for_devices_is_smaller_and_answers_alike(
    lenet, digits, tmp_path, monkeypatch, changed, max_drop, reason
):
    def compared(model, signature, path, *arguments, **options):
        found = compare(model, signature, path, *arguments, **options)
        return replace(found, **changed) if "int8" in path.name else found

    monkeypatch.setattr(devices, "compare", compared)
    refused = {}
    kept = devices.write_devices(lenet, tmp_path, digits, ("int8",), {}, max_drop, refused)
    assert reason in refused.get("model.int8.tflite", "") and len(refused) == bool(reason)
    assert ("model.int8.tflite" in kept) == (tmp_path / "model.int8.tflite").exists() == (not reason)


def test_device_files_are_written_and_measured(perceptron_of_mixed, mixed, tmp_path):
    found = export.to_bundle(perceptron_of_mixed, tmp_path / "mixed" / "1", data=mixed, litert=True)
    assert found.manifest.edge.keys() | found.manifest.refused.keys() == {"model.tflite", "model.int8.tflite"}
    figures = found.manifest.edge["model.tflite"]
    assert figures.bytes == (found.folder / "model.tflite").stat().st_size and figures.difference < 1e-4
    assert figures.inputs == ("features",) and figures.score == found.manifest.precisions["fp32"].score
    assert (
        f"| model.tflite | {figures.score:.4f} | {figures.agreement:.4f} |" in (found.folder / "README.md").read_text()
    )


def test_a_version_is_never_overwritten(digits_bundle, lenet, digits):
    before = (digits_bundle.folder / "SHA256SUMS").read_bytes()
    with pytest.raises(ExportError, match=r"versions are never overwritten; the next free one is .*digits/2"):
        export.to_bundle(lenet, digits_bundle.folder, data=digits)
    assert (digits_bundle.folder / "SHA256SUMS").read_bytes() == before


@pytest.mark.parametrize("folder", ["1", "digits/latest", "store/bad name/1", "store/../1"])
def test_misnamed_folder(folder, lenet, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match="whole number as version"):
        export.to_bundle(lenet, folder, data=digits)
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_behind_when_a_step_fails(lenet, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle.baseline, "describe", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.to_bundle(lenet, tmp_path / "digits" / "1", data=digits, int8=False)
    assert not list(tmp_path.iterdir())


def test_bad_facts_and_empty_splits(lenet, digits, tmp_path):
    with pytest.raises(ExportError, match="training must hold JSON values only"):
        export.to_bundle(lenet, tmp_path / "digits" / "1", data=digits, int8=False, training={"model": lenet})
    empty = replace(digits, test=replace(digits.test, x={"image": digits.test.x["image"][:0]}, y=digits.test.y[:0]))
    with pytest.raises(ExportError, match="data 'digits' has no rows for test"):
        export.to_bundle(lenet, tmp_path / "digits" / "1", data=empty)
    assert not list(tmp_path.iterdir())


def test_a_changed_bundle_is_refused(mixed_bundle, tmp_path):
    import shutil

    copy = tmp_path / "7"
    shutil.copytree(mixed_bundle.folder, copy)
    with (copy / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match=r"'model.onnx' does not match its hash"):
        read(copy)
