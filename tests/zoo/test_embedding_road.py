"""The whole road of an embedding: train, judge, export with its threshold, explain a pair, serve."""

import csv
import dataclasses
import json

import keras
import numpy as np
import pytest
from PIL import Image
from stopping import Stop

import export
import zoo
from export import edge_runner
from serve import embeddings
from serve.runtime import Model
from zoo.data import Split
from zoo.evaluate import verification
from zoo.recipes import Recipe
from zoo.tasks.embedding_losses import ClassCentres
from zoo.training.fit import fit

SMALL = dict(depth=(1, 1), width=8, latent=16, epochs=4, batch_size=64, learning_rate=4e-3, loss="arcface:0.3:16")


@pytest.fixture(scope="module")
def data():
    """A part of the numbers: 40 identities to learn, the others as they are."""
    found = zoo.data.load("digit_identities")
    kept = found.train.y[:, 0] < 40
    return dataclasses.replace(found, train=Split({"image": found.train.x["image"][kept]}, found.train.y[kept]))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return zoo.train("face_embedding", data, out=tmp_path_factory.mktemp("runs") / "faces", quiet=True, **SMALL)


@pytest.fixture(scope="module")
def bundle(run, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "faces" / "1"
    return export.to_bundle(run, folder, data=data, int8=True, max_drop=0.02)


def test_four_epochs_tell_new_identities_apart(run):
    assert run.metrics["test"] > run.metrics["baseline"] - 0.03 and run.metrics["test"] > 0.85
    assert run.history[-1]["val_pair_auc"] > run.history[0]["val_pair_auc"]
    assert all(np.isnan(row["val_loss"]) for row in run.history)  # nobody in validation has a centre


def test_centres_are_left_behind(run):
    assert not any(isinstance(layer, ClassCentres) for layer in run.model.layers)
    assert run.model.output_shape == (None, 16)


def test_a_report_shows_the_pairs_judged_wrongly(run, tmp_path):
    report = zoo.evaluate(run)
    assert report.score.low < report.score.score < report.score.high
    assert {"roc_auc", "equal_error_rate", "tar_at_far_0.01"} <= report.metrics.keys()
    report.save(tmp_path, worst=6)
    rows = list(csv.DictReader((tmp_path / "worst.csv").read_text().splitlines()))
    assert len(rows) == 6
    for row in rows:
        same = report.y[int(row["row"]), 0] == report.y[int(row["other_row"]), 0]
        assert (row["true"] == "one identity") == same and row["true"] != row["answer"]
    assert report.confusion.sum() == 3000
    assert np.trace(report.confusion) / 3000 == pytest.approx(report.score.score)
    for name in ("confusion.png", "worst.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 150


def test_two_models_are_compared_on_the_same_pairs(run, data):
    fresh = zoo.get("face_embedding", input_shape=(8, 16, 1), depth=(1,), width=4, latent=8)
    found = zoo.evaluate.compare(zoo.evaluate(fresh, data), zoo.evaluate(run), resamples=200)
    assert found.difference.low > 0 and found.p <= 2 / 201
    with pytest.raises(ValueError, match="embeddings of two trainings cannot be compared"):
        zoo.evaluate.cross_validate(run, data, quiet=True)


def _few(split, identities):
    rows = np.isin(split.y[:, 0], np.unique(split.y[:, 0])[:identities])
    return Split({"image": split.x["image"][rows]}, split.y[rows])


@pytest.fixture(scope="module")
def few(data):
    return dataclasses.replace(data, train=_few(data.train, 8), validation=_few(data.validation, 4))


def _network():
    keras.utils.set_random_seed(0)
    return zoo.get("face_embedding", input_shape=(8, 16, 1), depth=(1,), width=4, latent=8)


def test_a_killed_run_goes_on_exactly(few, tmp_path):
    recipe = Recipe("face_embedding", "digit_identities", epochs=3, batch_size=64, loss="arcface")
    whole = fit(_network(), few, recipe, quiet=True)
    with pytest.raises(KeyboardInterrupt):
        fit(_network(), few, recipe, folder=tmp_path, quiet=True, save_every=3, callbacks=(Stop(8),))
    again = fit(_network(), few, recipe, folder=tmp_path, quiet=True, resume=True)
    assert [row["loss"] for row in again] == pytest.approx([row["loss"] for row in whole], rel=1e-5)
    assert [row["val_pair_auc"] for row in again] == pytest.approx([row["val_pair_auc"] for row in whole], rel=1e-5)


@pytest.mark.parametrize("loss", ["triplet", "semi_hard_triplet:0.4"])
def test_triplets_need_nothing_behind_the_network(few, loss):
    recipe = Recipe("face_embedding", "digit_identities", epochs=2, batch_size=64, learning_rate=3e-3, loss=loss)
    history = fit(_network(), few, recipe, quiet=True)
    assert history[-1]["loss"] < history[0]["loss"] and np.isfinite(history[-1]["val_loss"])


def test_settings_that_an_embedding_cannot_have_are_refused(data, tmp_path):
    for wrong, message in (
        ({"augment": ("mixup",)}, "mixup mixes the targets of two rows"),
        ({"class_weights": True}, "class_weights needs one class for each row, the task is embedding"),
        ({"label_smoothing": 0.1}, "an embedding has no labels to smooth"),
    ):
        with pytest.raises(ValueError, match=message):
            zoo.train("face_embedding", data, out=tmp_path / "run", overwrite=True, quiet=True, **{**SMALL, **wrong})


def test_the_bundle_answers_as_keras_and_carries_its_thresholds(run, bundle, data):
    manifest = bundle.manifest
    assert [port.shape for port in manifest.outputs] == [(-1, 16)] and manifest.labels == ()
    assert set(manifest.verification["thresholds"]) == set(manifest.precisions) == {"fp32", "int8"}
    found = Model(bundle, threads=1).predict({"image": data.validation.x["image"]})["embedding"]
    exact = run.model.predict(data.signature.inputs(data.validation.x), verbose=0)
    assert np.abs(found - exact).max() < 1e-5
    judged = verification.verify(found, data.validation.y[:, 0])
    assert embeddings.threshold(manifest, "fp32") == pytest.approx(judged.threshold, abs=1e-5)
    assert "Two rows count as one identity where the cosine" in (bundle.folder / "README.md").read_text()
    assert "spread" in json.loads((bundle.folder / "drift.json").read_text())["outputs"]["summaries"]


def test_the_file_has_no_transpose_between_its_convolutions(bundle):
    import onnx

    nodes = [node.op_type for node in onnx.load(bundle.model("fp32")).graph.node]
    assert nodes.count("Transpose") == 2 and nodes.count("PRelu") == 3  # at the picture, and before the dense layer


def test_8_bits_pass_the_gate_on_verification(bundle, data):
    scores = {key: form.score for key, form in bundle.manifest.precisions.items()}
    assert scores["int8"] > scores["fp32"] - 0.03
    assert zoo.evaluate(bundle, data, precision="int8").score.score == pytest.approx(scores["int8"])
    assert bundle.manifest.precisions["int8"].changes["mean_change"] < 0.02


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_runner_on_a_device_compares_rows_with_the_first(bundle, data, tmp_path, monkeypatch, precision):
    images = data.test.x["image"]
    for row in range(3):
        Image.fromarray(images[row, ..., 0]).save(tmp_path / f"{row}.png")
    np.save(tmp_path / "rest.npy", images[3:8])
    files = sorted(map(str, tmp_path.iterdir()))
    monkeypatch.setattr("sys.argv", ["run.py", "--bundle", str(bundle.folder), "--precision", precision, *files])
    report = edge_runner.work(edge_runner.arguments())
    truth = Model(bundle, precision=precision, threads=1).predict({"image": images[:8]})["embedding"]
    told = report["answers"]
    np.testing.assert_allclose([one["embedding"] for one in told], truth, atol=1e-5)
    alike, limit = truth[1:] @ truth[0], bundle.manifest.verification["thresholds"][precision]
    np.testing.assert_allclose([one["similarity"] for one in told[1:]], alike, atol=1e-5)
    assert [one["same"] for one in told[1:]] == (alike > limit).tolist() and "same" not in told[0]
    lines = edge_runner.text(report).splitlines()[-8:]
    assert lines[0].startswith(f"{files[0]}: 16 numbers, {truth[0, 0]:.4f}, ") and "similarity" not in lines[0]
    assert f"similarity to the first row {alike[0]:.4f}, {'the same' if alike[0] > limit else 'another'}" in lines[1]


def test_a_pairs_similarity_is_explained_and_adds_up(bundle, data):
    x, identity = data.test.x["image"], data.test.y[:, 0]
    one, other = np.flatnonzero(identity == identity[0])[:2]
    found = zoo.explain(bundle, {"left": x[one][None], "right": x[other][None]}, seconds=1.0, quality=False)
    vectors = Model(bundle, threads=1).predict({"image": x[[one, other]]})["embedding"]
    assert found.prediction[0] == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-5)
    total = found.base[0] + np.sum(found.attributions[0])
    assert total == pytest.approx(found.prediction[0], abs=1e-6)


def test_pictures_of_people_do_not_travel_with_a_bundle(run, data, tmp_path):
    observed = dataclasses.replace(data, generated=False)
    bundle = export.to_bundle(run, tmp_path / "faces" / "1", data=observed, int8=False)
    own = {image.tobytes() for split in data.splits.values() for image in split.x["image"]}
    for file in ("golden.npz", "background.npz"):
        with np.load(bundle.folder / file) as stored:
            assert len(stored["input/image"]) >= 16
            assert not any(image.tobytes() in own for image in stored["input/image"])
