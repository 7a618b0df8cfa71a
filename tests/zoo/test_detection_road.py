"""A detection goes the whole road: trained, judged, exported, quantised, explained, served, watched."""

import io
import json

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import export
import zoo
from serve.app import create_app
from serve.store import Store
from zoo import tasks
from zoo.data import Rows, from_rows, shapes
from zoo.data.targets import Boxes
from zoo.recipes import Recipe
from zoo.training.fit import Batches

SMALL = dict(width=8, depth=(1, 1, 1, 1))


@pytest.fixture(scope="module")
def data():
    drawn = shapes.draw(360, 32, least=0, most=1, seed=5)
    y = Boxes.padded(drawn.boxes, [np.zeros_like(labels) for labels in drawn.labels])
    return from_rows(Rows("drawn", "detection", {"image": drawn.images}, y, ("shape",), "drawn here", generated=True))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("road") / "run"
    return zoo.train(
        "yolo_tiny", data, out=folder, quiet=True, epochs=14, batch_size=16, learning_rate=5e-3, augment=("flip",),
        **SMALL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    return export.to_bundle(run, store / "drawn" / "1", int8=True, max_drop=0.2)


def test_the_run_beats_its_baseline_and_says_of_what(run):
    assert run.metrics["test"] > run.metrics["baseline"] + 0.1 > 0.1
    text = (run.folder / "report.md").read_text()
    assert "| map_50 | score |" in text and "the most similar training picture" in text
    assert {"val_precision", "precision"} <= set(run.history[0])
    again = zoo.load(run.folder)
    assert zoo.evaluate(again.model, run.data).score.score == pytest.approx(run.metrics["test"])


def test_the_report_shows_boxes(run, tmp_path):
    report = zoo.evaluate(run)
    assert report.answers.shape == (len(run.data.test), 100, 6)
    assert {"ap_50", "ap", "recall", "precision", "rows"} <= set(report.per_class["shape"])
    assert report.metrics["map"].score < report.score.score
    page = report.save(tmp_path / "report").read_text()
    for name in ("examples.png", "worst.png", "confusion.png", "worst.csv"):
        assert name in page and (tmp_path / "report" / name).stat().st_size > 100
    worst = report.worst_rows(3)
    assert worst[0]["f1"] <= worst[1]["f1"] <= worst[2]["f1"] < 1


def test_the_bundle_answers_boxes_by_the_node_that_onnx_has(run, bundle):
    manifest = bundle.manifest
    assert [(port.name, port.dtype, port.sizes) for port in manifest.outputs] == [
        ("boxes", "FP32", "(batch, 100, 4)"),
        ("scores", "FP32", "(batch, 100)"),
        ("classes", "INT32", "(batch, 100)"),
    ]
    assert manifest.metric == "map_50" and "int8" in manifest.precisions
    graph = onnx.load(bundle.model("fp32")).graph
    assert sum(node.op_type == "NonMaxSuppression" for node in graph.node) == 1
    live = onnxruntime.InferenceSession(bundle.model("fp32"), providers=["CPUExecutionProvider"])
    images = run.data.test.x["image"]
    found = dict(zip(("boxes", "scores", "classes"), live.run(None, {"image": images}), strict=True))
    task = tasks.get("detection")
    scored = task.scored(found)
    assert task.score(run.data.test.y, scored) == pytest.approx(run.metrics["test"], abs=1e-3)
    of_keras = zoo.evaluate(run).answers
    np.testing.assert_allclose(scored[..., 4], of_keras[..., 4], atol=1e-4)
    assert zoo.evaluate(bundle, run.data, precision="int8").score.score > run.metrics["test"] - 0.25


@pytest.mark.parametrize("form", ["run", "bundle"])
def test_the_score_of_a_box_is_explained(run, bundle, form):
    report = zoo.evaluate(run)
    row = int(report.answers[:, 0, 4].argmax())
    raw = {"image": run.data.test.x["image"][row : row + 1]}
    found = zoo.explain(run if form == "run" else bundle, raw, method="partition", max_evals=60, quality=False)
    assert found.kind == "detection" or found.task == "detection"
    np.testing.assert_allclose(found.about["box"][0], report.answers[row, 0, :4], atol=1e-2)
    assert float(np.ravel(found.prediction)[0]) == pytest.approx(report.answers[row, 0, 4], abs=1e-3)
    assert found.attributions.shape[:3] == (1, 32, 32) and np.abs(found.attributions).max() > 0


def test_the_store_serves_boxes_and_watches_them(run, bundle):
    app = create_app(Store(bundle.folder.parents[1], threads=1), explain_target="fake:none")
    report = zoo.evaluate(run)
    row = int(report.answers[:, 0, 4].argmax())
    file = io.BytesIO()
    Image.fromarray(run.data.test.x["image"][row]).save(file, "PNG")
    answer = app.test_client().post("/predict/drawn?form=all", data=file.getvalue(), content_type="image/png")
    first = answer.json["predictions"][0]["boxes"][0]
    assert first["label"] == "shape" and first["score"] == pytest.approx(report.answers[row, 0, 4], abs=1e-3)
    np.testing.assert_allclose(first["box"], report.answers[row, 0, :4], atol=0.01)
    app.extensions["explainer"].close()
    told = json.loads((bundle.folder / "drift.json").read_text())["outputs"]["summaries"]
    assert list(told) == ["boxes of shape", "score of boxes"]


def test_what_is_for_one_label_is_refused_in_words(run, tmp_path):
    for options, message in (
        ({"calibrate": "temperature"}, "no probabilities of one label to calibrate"),
        ({"conformal": 0.9}, "conformal sets hold labels or values"),
    ):
        with pytest.raises(export.ExportError, match=message):
            export.to_bundle(run, tmp_path / "no" / "1", int8=False, **options)
    with pytest.raises(ValueError, match="class_weights needs one class for each row"):
        zoo.train("yolo_tiny", run.data, out=tmp_path / "run", class_weights=True, epochs=1, quiet=True, **SMALL)


def test_batches_have_boxes_that_moved_with_their_images(data):
    def first(*augment):
        return Batches(data, Recipe("yolo_tiny", "drawn", batch_size=64, augment=augment))[0]

    x, y = first("mosaic")
    assert x.shape == (64, 32, 32, 3) and y.shape == (64, 4, 5)
    assert (y[..., 4] >= 0).sum(axis=1).max() > 1  # a picture of the data has one at most
    with pytest.raises(ValueError, match="'cutmix' does not move boxes"):
        first("cutmix")


def test_a_small_or_odd_image_is_padded():
    model = zoo.get("yolo_nano", input_shape=(17, 40, 1), classes=2, width=4, depth=(1, 1, 1, 1))
    assert model.output_shape == (None, 4 * 8 + 2 * 4 + 2, 7)
    said = keras.ops.convert_to_numpy(model(np.zeros((1, 17, 40, 1), "float32")))
    assert np.isfinite(said).all()
