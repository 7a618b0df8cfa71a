"""A segmentation goes the whole road: trained, judged, pruned, exported, quantised, explained, served, watched."""

import io
import json

import keras
import numpy as np
import onnxruntime
import pytest
from PIL import Image
from typer.testing import CliRunner

import export
import zoo
from export import ExportError
from serve.app import create_app
from serve.manifest import read
from serve.store import Store
from zoo import tasks
from zoo.cli import app
from zoo.data import Rows, from_rows, shapes
from zoo.evaluate import attacks, segment
from zoo.evaluate.report import judge

LABELS = ("background", *shapes.SHAPES)


@pytest.fixture(scope="module")
def data():
    drawn = shapes.draw(400, 32, most=2, seed=5)
    return from_rows(
        Rows("drawn", "segmentation", {"image": drawn.images}, drawn.masks, LABELS, "drawn here", generated=True)
    )


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("road") / "run"
    return zoo.train(
        "unet", data, out=folder, quiet=True, width=6, depth=2, normalised=True, epochs=12, batch_size=8,
        learning_rate=5e-3, loss="combined", augment=("flip", "shift"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    return export.to_bundle(run, store / "drawn" / "1", int8=True, float16=True, max_drop=0.1)


def test_the_run_beats_its_baseline_and_says_of_what(run):
    assert run.metrics["test"] > run.metrics["baseline"] + 0.05 > 0.05
    text = (run.folder / "report.md").read_text()
    assert "| mean_iou | score |" in text and "logistic regression of each pixel's colour" in text
    assert {"val_iou", "iou"} <= set(run.history[0])
    again = zoo.load(run.folder)
    assert zoo.evaluate(again.model, run.data).score.score == pytest.approx(run.metrics["test"])


def test_the_report_shows_masks(run, tmp_path):
    report = zoo.evaluate(run)
    assert report.answers.dtype == np.uint8 and report.answers.shape == report.y.shape
    assert set(report.per_class["circle"]) == {"iou", "iou_low", "iou_high", "dice", "dice_low", "dice_high", "rows"}
    assert report.metrics["mean_dice"].score > report.score.score
    page = report.save(tmp_path / "report").read_text()
    for name in ("examples.png", "worst.png", "confusion.png", "worst.csv"):
        assert name in page and (tmp_path / "report" / name).stat().st_size > 100
    worst = report.worst_rows(3)
    assert worst[0]["mean_iou"] <= worst[1]["mean_iou"] <= worst[2]["mean_iou"]
    figures = json.loads(report.to_json())
    assert figures["mean_iou"]["low"] < figures["mean_iou"]["score"] < figures["mean_iou"]["high"]


def test_two_segmentations_are_compared_row_by_row(run, data):
    task = tasks.get("segmentation")
    known = zoo.evaluate(run)
    idle = judge(
        data.signature, data.test.y, task.constant(data.train.y, len(data.test), 4), "test", x=data.test.x, name="idle"
    )
    found = zoo.evaluate.compare(idle, known, metric="mean_dice")
    assert found.better == known.name and found.mcnemar is None and found.p < 0.01


def test_the_bundle_answers_masks_and_probabilities(run, bundle):
    manifest = bundle.manifest
    assert [(port.name, port.dtype, port.sizes) for port in manifest.outputs] == [
        ("probabilities", "FP32", "(batch, 32, 32, 4)"),
        ("mask", "UINT8", "(batch, 32, 32)"),
    ]
    assert {"fp32", "int8", "fp16"} <= set(manifest.precisions) and manifest.metric == "mean_iou"
    assert manifest.precisions["int8"].others["mask"] < 0.2 and manifest.precisions["fp32"].parity < 1e-4
    live = onnxruntime.InferenceSession(bundle.model("fp32"), providers=["CPUExecutionProvider"])
    images = run.data.test.x["image"]
    probabilities, mask = live.run(None, {"image": images})
    np.testing.assert_array_equal(probabilities.argmax(-1), mask)
    task = tasks.get("segmentation")
    assert task.score(run.data.test.y, mask) == pytest.approx(run.metrics["test"], abs=1e-3)
    assert zoo.evaluate(bundle, run.data, precision="int8").score.score > run.metrics["test"] - 0.15
    card = (bundle.folder / "README.md").read_text()
    assert "`mask` UINT8 (batch, 32, 32)" in card and "every answer is made of these" in card


def test_int8_is_refused_where_the_iou_falls(run, tmp_path):
    found = export.to_bundle(run, tmp_path / "strict" / "1", max_drop=-0.5, runner=False)
    assert "falls" in found.manifest.refused["int8"] and "int8" not in found.manifest.precisions


def test_what_is_for_one_label_is_refused_in_words(run, tmp_path):
    for options, message in (
        ({"calibrate": "temperature"}, "no probabilities of one label to calibrate"),
        ({"conformal": 0.9}, "conformal sets hold labels or values"),
        ({"activation_map": True}, "activation"),
    ):
        with pytest.raises(ExportError, match=message):
            export.to_bundle(run, tmp_path / "no" / "1", int8=False, **options)
    with pytest.raises(ValueError, match="the task is segmentation"):
        attacks.check("fgsm", 1.0, "linf", run.signature)
    with pytest.raises(ValueError, match="class_weights needs one class for each row"):
        zoo.train("unet", run.data, out=tmp_path / "run", class_weights=True, width=2, depth=1, epochs=1, quiet=True)
    wrong = zoo.get("unet", input_shape=(32, 32, 3), width=2, depth=1, classes=3)
    with pytest.raises(ValueError, match=r"to \(32, 32, 3\), segmentation of the data maps .* to \(32, 32, 4\)"):
        zoo.evaluate(wrong, run.data)


def test_devices_get_both_tensors(run, tmp_path):
    pytest.importorskip("ai_edge_litert", reason="LiteRT files need ai-edge-litert")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("LiteRT files are written by TensorFlow")
    from export import litert

    path = export.to_litert(run.model, tmp_path / "model.tflite", signature=run.signature)
    found = litert.run(path, {"image": run.data.test.x["image"][:3]})
    assert found["probabilities"].shape == (3, 32, 32, 4) and found["mask"].shape == (3, 32, 32)
    assert found["mask"].dtype == np.uint8
    np.testing.assert_array_equal(found["probabilities"].argmax(-1), found["mask"])


@pytest.mark.parametrize("form", ["run", "bundle"])
def test_a_region_of_a_mask_is_explained(run, bundle, form):
    row = int(np.argmax((zoo.evaluate(run).answers > 0).sum(axis=(1, 2))))
    raw = {"image": run.data.test.x["image"][row : row + 1]}
    found = zoo.explain(run if form == "run" else bundle, raw, method="partition", max_evals=60, quality=False)
    region = found.about["region"][0]
    assert found.task == "segmentation" and region.shape == (32, 32) and region.any()
    assert abs(float(np.ravel(found.prediction)[0])) <= 1
    assert found.attributions.shape[:3] == (1, 32, 32)


def test_the_store_serves_masks_and_watches_them(run, bundle):
    store = bundle.folder.parents[1]
    app = create_app(Store(store, threads=1), explain_target="fake:none")
    client = app.test_client()
    file = io.BytesIO()
    image = run.data.test.x["image"][0]
    Image.fromarray(image).save(file, "PNG")
    answer = client.post(
        "/predict/drawn", data=file.getvalue(), content_type="image/png", headers={"Accept": "image/png"}
    )
    expected = tasks.get("segmentation").answer(
        run.model.predict_on_batch(run.signature.inputs({"image": image[None]})), run.signature
    )
    found = np.asarray(Image.open(io.BytesIO(answer.data)))
    assert (found == expected[0]).mean() > 0.99
    app.extensions["explainer"].close()
    told = json.loads((bundle.folder / "drift.json").read_text())["outputs"]["summaries"]
    assert list(told) == [f"share of {label}" for label in LABELS]
    assert read(bundle.folder).manifest.labels == LABELS


def test_tiles_may_be_answered_by_a_bundle(run, bundle):
    image = shapes.draw(1, 100, seed=9).images[0]
    of_run, of_bundle = segment(run, image), segment(bundle, image, precision="fp32")
    assert of_run.shape == (100, 100) and (of_run == of_bundle).mean() > 0.999
    with pytest.raises(ValueError, match="the bundle takes tiles of 32x32 pixels and no others, got tile=64"):
        segment(bundle, image, tile=64)


def test_the_command_line_writes_masks(run, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.commands.segment.quiet_backend", lambda: None)  # pytest's own standard error stays
    Image.fromarray(shapes.draw(1, 150, least=4, most=5, seed=9).images[0]).save(tmp_path / "scene.png")
    for place, what in enumerate((run.folder, bundle.folder)):
        arguments = ("segment", what, tmp_path / "scene.png", "--out", tmp_path / str(place))
        done = CliRunner().invoke(app, [str(part) for part in arguments], catch_exceptions=False)
        assert done.exit_code == 0 and "150 x 150 pixels, 81 tiles" in done.output
    masks = [np.asarray(Image.open(tmp_path / place / "scene.mask.png")) for place in "01"]
    assert (masks[0] == masks[1]).mean() > 0.999 and np.array_equal(masks[0], segment(run, tmp_path / "scene.png"))
