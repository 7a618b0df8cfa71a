"""Distillation: the loss is that of the papers, and a student takes over what its teacher knows."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from scipy.special import log_softmax
from stopping import Stop
from typer.testing import CliRunner

import zoo
from zoo import data as datasets
from zoo.cli import app
from zoo.compress import distill
from zoo.compress.distillation import TaughtLoss, Teacher
from zoo.evaluate.report import answers


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    return zoo.train("mlp", data="digits", out=folder, epochs=8, width=(64, 32), learning_rate=0.01, quiet=True)


@pytest.fixture(scope="module")
def iris(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "iris"
    return zoo.train("mlp", data="iris", out=folder, epochs=12, width=(12, 8), learning_rate=0.02, quiet=True)


def agreement(run, other):
    """Share of the test rows to which two runs give the same class."""
    found = [answers(each.model, each.signature, run.data.test.x).argmax(axis=1) for each in (run, other)]
    return float(np.mean(found[0] == found[1]))


def shuffled(data):
    """The same rows, whose labels in the training split say nothing."""
    y = np.random.default_rng(0).permutation(data.train.y)
    return dataclasses.replace(data, train=dataclasses.replace(data.train, y=y))


@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 1.0), (4.0, 0.9), (0.5, 0.0)])
def test_the_loss_is_that_of_the_papers(temperature, alpha):
    random = np.random.default_rng(0)
    labels = np.eye(4, dtype=np.float32)[random.integers(0, 4, 6)]
    said, logits = random.normal(size=(2, 6, 4)).astype(np.float32) * 3
    features, own = random.normal(size=(2, 6, 5)).astype(np.float32)
    hard = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    loss = TaughtLoss(hard, 4, temperature, alpha, (2, 3), weight=0.5)
    found = loss(np.concatenate([labels, said, features], axis=1), np.concatenate([logits, own], axis=1))

    theirs, ours = log_softmax(said / temperature, axis=1), log_softmax(logits / temperature, axis=1)
    soft = temperature**2 * np.sum(np.exp(theirs) * (theirs - ours), axis=1)  # Hinton et al. 2015, section 2
    smooth = 0.9 * labels + 0.1 / 4
    entropy = -np.sum(smooth * log_softmax(logits, axis=1), axis=1)
    gap = (features - own) ** 2  # Romero et al. 2014, equation 3, as a mean per layer
    expected = alpha * soft + (1 - alpha) * entropy + 0.5 * (gap[:, :2].mean(1) + gap[:, 2:].mean(1))
    np.testing.assert_allclose(float(found), expected.mean(), rtol=1e-5)


def test_the_loss_of_values_is_the_squared_distance_to_both():
    y, said, found = np.random.default_rng(0).normal(size=(3, 5, 1)).astype(np.float32)
    loss = TaughtLoss(keras.losses.MeanAbsoluteError(), 1, None, 0.25)(np.concatenate([y, said], 1), found)
    expected = 0.25 * np.mean((said - found) ** 2) + 0.75 * np.mean(np.abs(y - found))
    np.testing.assert_allclose(float(loss), expected, rtol=1e-5)


def test_a_student_learns_from_the_teacher_what_its_labels_do_not_say(teacher, tmp_path):
    before = teacher.model.get_weights()
    common = dict(epochs=5, width=(24,), dropout=0.0, learning_rate=0.01, quiet=True)
    alone = zoo.train("mlp", shuffled(teacher.data), out=tmp_path / "alone", **common)
    student = distill(teacher, "mlp", shuffled(teacher.data), out=tmp_path / "student", alpha=1.0, **common)
    assert alone.metrics["test"] < 0.3
    assert student.metrics["test"] > 0.85
    assert agreement(teacher, student) > 0.85
    for old, new in zip(before, teacher.model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    stored = zoo.load(tmp_path / "student")
    assert stored.metrics == student.metrics and stored.recipe.arguments["width"] == (24,)
    noted = json.loads((tmp_path / "student/distillation.json").read_text())
    assert noted["temperature"] == 4.0 and noted["alpha"] == 1.0
    assert noted["teacher_sha256"] == Teacher(teacher.folder).fingerprint() != Teacher(student).fingerprint()


def test_a_student_of_another_family_matches_features_and_stays_as_it_was_built(teacher, tmp_path):
    student = distill(
        teacher.folder,
        "lenet",
        out=tmp_path / "lenet",
        epochs=2,
        quiet=True,
        features={"features": "features", "hidden0": "stage1_conv"},  # a dense layer for a map: places are averaged
        augment=("noise",),
    )
    built = zoo.get("lenet", input_shape=(8, 8, 1), classes=10)
    assert [layer.name for layer in student.model.layers] == [layer.name for layer in built.layers]
    assert student.model.output_shape == (None, 10)
    assert student.history[-1]["loss"] < student.history[0]["loss"]
    assert student.metrics["test"] > 0.5


def test_features_come_nearer_to_the_teachers(teacher, tmp_path):
    """How well a linear map of the student's features gives those of the teacher, which is what is learnt."""
    inputs = teacher.signature.inputs(teacher.data.test.x)

    def features(run):
        stage = keras.Model(run.model.inputs, run.model.get_layer("features").output)
        return np.asarray(stage.predict_on_batch(inputs))

    theirs = features(teacher)

    def unexplained(run):
        ours = np.concatenate([features(run), np.ones((len(theirs), 1))], axis=1)
        gap = theirs - ours @ np.linalg.lstsq(ours, theirs, rcond=None)[0]
        return np.mean(gap**2) / np.var(theirs, axis=0).mean()

    common = dict(epochs=8, width=(16,), dropout=0.0, learning_rate=0.01, alpha=0.0, quiet=True)
    plain = distill(teacher, "mlp", out=tmp_path / "plain", **common)
    matched = distill(teacher, "mlp", out=tmp_path / "matched", features=True, **common)
    assert unexplained(matched) < 0.8 * unexplained(plain)


def test_teacher_and_student_read_images_of_different_sizes(teacher, tmp_path):
    student = distill(
        teacher,
        "mlp",
        out=tmp_path / "small",
        input_shape=(6, 6, 1),
        epochs=3,
        dropout=0.0,
        learning_rate=0.01,
        quiet=True,
    )
    assert student.model.input_shape == (None, 6, 6, 1)
    assert student.metrics["test"] > 0.6


def test_a_keras_model_teaches_and_a_keras_model_learns(teacher, tmp_path):
    learner = zoo.get("logistic_regression", input_shape=(8, 8, 1), classes=10)
    before = learner.get_weights()
    student = distill(teacher.model, learner, teacher.data, out=tmp_path / "own", epochs=3, quiet=True)
    assert student.metrics["test"] > 0.6
    for old, new in zip(before, learner.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_values_are_distilled_too(tmp_path):
    expert = zoo.train("logistic_regression", data="diabetes", out=tmp_path / "expert", epochs=20, quiet=True)
    noise = shuffled(expert.data)
    student = distill(
        expert,
        "mlp",
        noise,
        out=tmp_path / "student",
        alpha=1.0,
        epochs=15,
        width=(16,),
        dropout=0.0,
        learning_rate=0.01,
        quiet=True,
    )
    own, theirs = (np.ravel(answers(run.model, run.signature, run.data.test.x)) for run in (student, expert))
    assert np.corrcoef(own, theirs)[0, 1] > 0.9
    assert student.metrics["test"] > 0.3


def test_a_bundle_teaches(iris, tmp_path):
    from export import to_bundle

    to_bundle(iris, tmp_path / "store/iris/1", int8=False, litert=False)
    student = distill(
        tmp_path / "store/iris/1", "logistic_regression", shuffled(iris.data), out=tmp_path / "student", alpha=1.0,
        epochs=30, learning_rate=0.05, quiet=True,
    )  # fmt: skip
    assert agreement(iris, student) > 0.8
    with pytest.raises(ValueError, match=r"features of the bundle .* are out of reach"):
        distill(tmp_path / "store/iris/1", "mlp", "iris", out=tmp_path / "no", features=True, quiet=True)


def test_the_command_line_teaches(iris, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DEBUG", "1")  # leaves the standard error of this process alone
    asked = ["compress", str(iris.folder), "--student", "mlp", "--epochs", "2", "--out", str(tmp_path / "new"), "-q"]
    settings = ["--set", "temperature=2.5", "--set", "features=True", "--set", "width=(6,)"]
    told = CliRunner().invoke(app, [*asked, *settings], catch_exceptions=False).stdout
    student = zoo.load(tmp_path / "new")
    assert f"{student.metrics['test']:.4f} on test rows" in told and len(student.history) == 2
    noted = json.loads((tmp_path / "new/distillation.json").read_text())
    assert noted["temperature"] == 2.5 and noted["features"] == {"features": "features"}


def test_a_killed_run_goes_on_exactly_and_only_with_the_same_teacher(iris, tmp_path):
    common = dict(features=True, quiet=True, save_every=1)
    settings = dict(epochs=3, width=(6,), dropout=0.2, seed=3)
    whole = distill(iris, "mlp", out=tmp_path / "whole", **common, **settings)
    with pytest.raises(KeyboardInterrupt):
        distill(iris, "mlp", out=tmp_path / "killed", callbacks=(Stop(6),), **common, **settings)
    with pytest.raises(ValueError, match="distilled with another temperature"):
        distill(iris, "mlp", out=tmp_path / "killed", temperature=2.0, resume=True, **common)
    with pytest.raises(ValueError, match="distilled with another teacher_sha256"):
        distill(whole, "mlp", out=tmp_path / "killed", resume=True, **common)
    again = distill(iris, "mlp", out=tmp_path / "killed", resume=True, **common)
    for a, b in zip(whole.model.weights, again.model.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert whole.history == again.history


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temperature": 0}, ValueError, "temperature must be above 0, got temperature=0"),
        ({"alpha": 1.5}, ValueError, r"alpha must be a weight in \[0, 1\], got alpha=1.5"),
        ({"feature_weight": -1}, ValueError, "feature_weight must be at least 0"),
        ({"student": "mlpp"}, KeyError, "Did you mean 'mlp'"),
        ({"student": 3}, TypeError, "a run, a run folder or a Keras model is needed, got a int"),
        ({"teacher": 3}, TypeError, "teacher must be a run, a run folder, a bundle or a Keras model, got a int"),
        ({"data": "wine"}, ValueError, "knows the labels setosa, .*, data 'wine' has class_0"),
        ({"data": "diabetes"}, ValueError, "was trained for classification, data 'diabetes' is regression"),
        ({"features": ("hiden0",)}, ValueError, "has no layer 'hiden0'.* Did you mean 'hidden0"),
        ({"features": {"features": "nothing"}}, ValueError, "the student 'mlp' has no layer 'nothing'"),
        ({"student": "lenet"}, ValueError, "'lenet' is for image-classification, data 'iris' is classification"),
        ({"widht": (3,)}, TypeError, "Did you mean 'width'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(iris, tmp_path, arguments, error, message):
    given = {"teacher": iris, "student": "mlp", "data": None, "quiet": True, "epochs": 1, **arguments}
    with pytest.raises(error, match=message):
        distill(given.pop("teacher"), given.pop("student"), out=tmp_path / "new", **given)
    assert not (tmp_path / "new").exists()


def spoilt(run, value):
    model = keras.models.clone_model(run.model)
    model.set_weights([np.full(weight.shape, value, np.float32) for weight in run.model.get_weights()])
    return dataclasses.replace(run, model=model)


def test_teachers_that_know_nothing_and_data_without_rows_are_refused(iris, tmp_path):
    common = dict(out=tmp_path / "new", epochs=1, quiet=True)
    with pytest.raises(ValueError, match=r"scores 0\.\d+ on the validation rows, no better than always"):
        distill(spoilt(iris, 0.0), "mlp", **common)
    with pytest.raises(ValueError, match=r"answers NaN or infinity for \d+ of \d+ validation rows"):
        distill(spoilt(iris, np.nan), "mlp", **common)
    rows = iris.data.validation
    empty = datasets.Split({name: values[:0] for name, values in rows.x.items()}, rows.y[:0])
    with pytest.raises(ValueError, match="no rows for training or validation"):
        distill(iris, "mlp", dataclasses.replace(iris.data, validation=empty), **common)
    with pytest.raises(ValueError, match="reads other columns"):
        step = dataclasses.replace(iris.signature.preprocess, numbers=("a", "b", "c", "d"))
        other = dataclasses.replace(iris.signature, preprocess=step)
        distill(dataclasses.replace(iris, signature=other), "mlp", data=iris.data, **common)
    assert not (tmp_path / "new").exists()
    before = (iris.folder / "metrics.json").read_text()
    for learner in ("mlp", iris):
        with pytest.raises(ValueError, match="holds the run itself"):
            distill(iris.folder, learner, out=iris.folder, epochs=1, overwrite=True, quiet=True)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="choose another folder"):
        distill(iris, "mlp", out=tmp_path, epochs=1, overwrite=True, quiet=True)
    assert (iris.folder / "metrics.json").read_text() == before and not (iris.folder / "distillation.json").exists()
