"""What compression changed: every figure against a planted truth, between models of any kind."""

import dataclasses
import json
import math

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import zoo
from zoo import data as datasets
from zoo.cli import app
from zoo.compress import changes
from zoo.compress.differences import ClassChange, calibration_error, mcnemar, rank_correlation
from zoo.evaluate.report import answers


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mlp"
    return zoo.train("mlp", data="digits", out=folder, epochs=5, width=(32,), learning_rate=0.01, quiet=True)


@pytest.fixture(scope="module")
def iris(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "iris"
    return zoo.train("mlp", data="iris", out=folder, epochs=12, width=(12, 8), learning_rate=0.02, quiet=True)


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "values"
    return zoo.train("logistic_regression", data="diabetes", out=folder, epochs=20, quiet=True)


def copy(run, **changed):
    """A copy of a run's model with other weights in some layers, as arrays by `layer/weight`."""
    model = keras.models.clone_model(run.model)
    model.set_weights(run.model.get_weights())
    for name, value in changed.items():
        layer, weight = name.split("__")
        getattr(model.get_layer(layer), weight).assign(value)
    return model


def test_a_model_differs_in_nothing_from_itself(run):
    found = changes(run, copy(run), run.data, explained=3, quiet=True)
    assert found.scores[0] == found.scores[1] and found.change.score == found.change.low == found.change.high == 0
    assert found.p_value == 1 and not len(found.flips)
    assert found.mean_change == found.largest_change == 0
    assert found.calibration[0] == found.calibration[1] > 0
    assert all(each.change == 0 for each in found.per_class) and sum(each.rows for each in found.per_class) == 359
    np.testing.assert_allclose(found.explanations.correlations, 1)
    assert found.explanations.median == found.explanations.low == pytest.approx(1)
    assert "right before and wrong now" not in str(found)


def test_a_broken_class_is_found(run):
    bias = run.model.get_layer("logits").bias.numpy().copy()
    bias[3] = -50  # so that no row is a 3 any more
    found = changes(run, copy(run, logits__bias=bias), run.data, explained=0, quiet=True)
    y, was = run.data.test.y, answers(run.model, run.signature, run.data.test.x).argmax(axis=1)
    threes = np.flatnonzero((y == 3) & (was == 3))
    assert found.negative_flips.tolist() == threes.tolist()
    assert set(found.flips) == set(np.flatnonzero(was == 3))
    worst, *others = found.per_class
    assert worst == ClassChange("3", int((y == 3).sum()), len(threes), 0)
    assert worst.after == 0 and worst.change == -len(threes) / (y == 3).sum()
    assert all(each.change >= 0 for each in others)  # what was taken for a 3 may be right now
    assert found.p_value == mcnemar(len(threes), len(found.positive_flips)) < 0.001
    assert found.change.score == pytest.approx((len(found.positive_flips) - len(threes)) / len(y))
    assert found.change.low < found.change.score < found.change.high < 0
    assert set(found.worst) <= set(threes)  # more than twelve are lost, so these are all that is shown
    fall = found.before[found.worst, 3] - found.after[found.worst, 3]
    assert np.all(np.diff(fall) <= 0) and fall[0] == (found.before[threes, 3] - found.after[threes, 3]).max()
    text = str(found)
    assert "more than chance gives" in text and f"row {found.worst[0]}: is 3, was 3" in text
    assert text.index("\n3 ") < min(text.index(f"\n{digit} ") for digit in "012456789")
    assert "not compared: no rows were asked for" in text


def test_probabilities_move_without_a_flip(run):
    weights = run.model.get_layer("logits")
    sharp = copy(run, logits__kernel=3 * weights.kernel, logits__bias=3 * weights.bias)
    found = changes(run, sharp, run.data, explained=0, quiet=True)
    one, two = (answers(model, run.signature, run.data.test.x) for model in (run.model, sharp))
    assert not len(found.flips) and found.scores[0] == found.scores[1]
    assert found.mean_change == pytest.approx(np.abs(one - two).mean())
    assert found.largest_change == pytest.approx(np.abs(one - two).max())
    assert found.calibration[0] != found.calibration[1]


def test_the_calibration_error_is_that_of_its_definition():
    random = np.random.default_rng(0)
    answer = random.dirichlet(np.ones(4) * 0.5, 500)
    y = random.integers(0, 4, 500)
    confidence, right = answer.max(1), answer.argmax(1) == y
    expected = 0.0
    for place in range(15):  # Guo et al. 2017, equation 3; the bins are (m / 15, (m + 1) / 15]
        inside = (confidence > place / 15) & (confidence <= (place + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(y, answer) == pytest.approx(expected)
    sure = np.eye(4)[y]
    assert calibration_error(y, sure) == 0 and calibration_error((y + 1) % 4, sure) == 1


def test_mcnemar_counts_coins():
    exact = 2 * sum(math.comb(12, k) for k in range(3)) / 2**12
    assert mcnemar(10, 2) == mcnemar(2, 10) == pytest.approx(exact)
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1


def test_ranks_are_compared_where_something_matters():
    one = np.array([1.0, 2, 3, 4, 5, 0])
    assert rank_correlation(one, np.array([1.0, 2, 3, 5, 4, 0])) == pytest.approx(0.9)  # 1 - 6 * 2 / (5 * 24)
    assert rank_correlation(one, -one) == pytest.approx(-1)
    assert rank_correlation(one, 10 * one) == pytest.approx(1)
    assert math.isnan(rank_correlation(one, np.zeros(6))) and math.isnan(rank_correlation(one[:1], one[:1]))


def test_other_reasons_for_the_same_kind_of_answer_are_seen(values):
    """A linear model whose columns change places gives other reasons; the expected ones are its own products."""
    kernel = values.model.get_layer("logits").kernel.numpy()
    swapped = copy(values, logits__kernel=kernel[::-1])
    found = changes(values, swapped, values.data, explained=6, quiet=True)
    assert found.explanations.method == "exact" and len(found.explanations.rows) == 6
    few = np.random.default_rng(0)
    few.choice(len(values.data.test), 6, replace=False)
    background = few.choice(len(values.data.train), 8, replace=False)
    mean = values.signature.inputs({"numbers": values.data.train.x["numbers"][background]}).mean(axis=0)
    for row, correlation in zip(found.explanations.rows, found.explanations.correlations, strict=True):
        x = values.signature.inputs({"numbers": values.data.test.x["numbers"][row : row + 1]})[0]
        expected = rank_correlation((x - mean) * kernel[:, 0], (x - mean) * kernel[::-1, 0])
        assert correlation == pytest.approx(expected, abs=0.03)
    assert found.explanations.median < 0.9


def test_values_have_errors_and_no_classes(values, tmp_path):
    target = values.signature.target_std
    shifted = copy(values, logits__bias=values.model.get_layer("logits").bias + 10 / target)
    found = changes(values, shifted, values.data, explained=2, quiet=True)
    gap = np.ravel(found.before) - values.data.test.y
    assert found.mean_change == pytest.approx(10, rel=1e-4) and found.quantiles["99%"] == pytest.approx(10, rel=1e-4)
    assert found.errors["bias"] == pytest.approx((gap.mean(), gap.mean() + 10), rel=1e-4)
    assert found.errors["rmse"] == pytest.approx(
        (np.sqrt(np.mean(gap**2)), np.sqrt(np.mean((gap + 10) ** 2))), rel=1e-4
    )
    assert found.p_value is found.calibration is None and found.per_class == ()
    np.testing.assert_allclose(found.explanations.correlations, 1)  # a shift changes no reason
    growth = np.abs(gap + 10) - np.abs(gap)
    assert growth[found.worst[0]] == pytest.approx(growth.max(), rel=1e-3)
    told = json.loads(found.to_json())
    assert told["errors"]["bias"]["after"] == found.errors["bias"][1]
    assert not {"flips", "per_class", "mcnemar_p", "calibration"} & set(told)
    assert "rows whose error grew most" in str(found) and "class" not in str(found)
    assert found.plot(tmp_path / "values.png").stat().st_size > 10_000


def test_models_of_every_kind_are_compared(run, tmp_path):
    from export import to_bundle, to_onnx

    to_bundle(run, tmp_path / "store/digits/1", litert=False, max_drop=1.0)
    raw = to_onnx(run.model, tmp_path / "raw.onnx", signature=run.signature)
    bare = to_onnx(run.model, tmp_path / "bare.onnx")
    for other in (run.folder, str(tmp_path / "store/digits/1"), raw, bare):
        found = changes(run, other, explained=0, quiet=True)
        assert found.largest_change < 1e-4 and not len(found.flips), other
        assert found.names[1].startswith(str(other))
    found = changes(
        tmp_path / "store/digits/1", tmp_path / "store/digits/1", precisions=("fp32", "int8"), explained=2, quiet=True
    )
    assert [name.rpartition(" ")[2] for name in found.names] == ["(fp32)", "(int8)"]
    assert 0 < found.mean_change < 0.01 and found.data == "digits"
    assert 0.8 < found.explanations.low < 1
    with pytest.raises(ValueError, match="neither model knows its data"):
        changes(raw, bare)
    assert changes(raw, bare, "digits", explained=0).rows == 359
    with pytest.raises(ValueError, match=r"raw.onnx takes image and gives probabilities.*, the data has numbers"):
        changes(raw, raw, "iris")
    with pytest.raises(ValueError, match=r"bare.onnx cannot read the rows"):
        changes(bare, bare, "iris")


def test_images_of_another_size_are_read_in_that_size(run, tmp_path):
    small = zoo.train(
        "mlp", data="digits", out=tmp_path / "small", epochs=3, input_shape=(6, 6, 1), learning_rate=0.01, quiet=True
    )
    found = changes(run.folder, tmp_path / "small", quiet=True)
    assert found.scores[1].score == small.metrics["test"]
    assert found.explanations is None and "different sizes" in str(found)


def test_the_picture_shows_what_was_lost(run, tmp_path):
    from PIL import Image

    bias = run.model.get_layer("logits").bias.numpy().copy()
    bias[3] = -50
    found = changes(run, copy(run, logits__bias=bias), run.data, explained=0, quiet=True)
    with Image.open(found.plot(tmp_path / "lost.png")) as picture:
        tall, pixels = picture.height, np.asarray(picture.convert("RGB"))
    assert (pixels == (0xC2, 0x27, 0x2D)).all(-1).sum() > 1000  # a red bar
    same = changes(run, copy(run), run.data, explained=0, quiet=True)
    with Image.open(same.plot(tmp_path / "same.png")) as picture:
        assert picture.height < tall  # no row of images
        assert not (np.asarray(picture.convert("RGB")) == (0xC2, 0x27, 0x2D)).all(-1).any()


def test_json_holds_the_figures_and_no_nan(run):
    found = changes(run, copy(run), run.data, explained=1, quiet=True)
    empty = dataclasses.replace(found, per_class=(*found.per_class, ClassChange("none", 0, 0, 0)))
    told = json.loads(empty.to_json(), parse_constant=pytest.fail)
    assert told["per_class"]["none"] == {"rows": 0, "before": None, "after": None, "change": None}
    assert told["score"]["before"]["score"] == found.scores[0].score and told["flips"]["rows"] == []
    assert "none " not in str(empty)


def test_the_command_line_prints_and_writes(iris, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DEBUG", "1")  # leaves the standard error of this process alone
    asked = ["changes", str(iris.folder), str(iris.folder), "--rows", "2", "--out", str(tmp_path / "new"), "-q"]
    told = CliRunner().invoke(app, asked, catch_exceptions=False).stdout
    assert "rank correlation of Shapley values 1.000" in told and f"picture: {tmp_path}" in told
    found = json.loads(CliRunner().invoke(app, [*asked, "--json"], catch_exceptions=False).stdout)
    assert found == json.loads((tmp_path / "new/changes.json").read_text()) and found["mcnemar_p"] == 1
    assert (tmp_path / "new/changes.png").stat().st_size > 10_000
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file; give a folder"):
        CliRunner().invoke(app, [*asked[:5], "--out", str(tmp_path / "file")], catch_exceptions=False)


def few(run, rows):
    """A run's data with some rows of the test split alone."""
    part = run.data.test
    small = datasets.Split({name: values[rows] for name, values in part.x.items()}, part.y[rows])
    return dataclasses.replace(run.data, test=small)


def test_what_cannot_be_compared_is_refused(run, iris, tmp_path):
    silent = copy(iris, logits__kernel=np.zeros((8, 3)), logits__bias=np.zeros(3))
    broken = copy(iris, logits__bias=np.full(3, np.nan))
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    for given, error, message in (
        (dict(after=iris.model, split="all"), ValueError, "split must be 'train', 'validation' or 'test', got 'all'"),
        (dict(after=iris.model, explained=-1), ValueError, "got explained=-1"),
        (dict(after=3), TypeError, "a run, a run folder, a Keras model, a bundle or an ONNX file is needed, got a int"),
        (dict(after=broken), ValueError, r"answers NaN or infinity for 30 of 30 rows, the first is row 0"),
        (
            dict(before=silent, after=iris),
            ValueError,
            r"no better than always the same answer \(0\.3\d+\); train it first",
        ),
        (dict(after=run), ValueError, "trained for the labels 0, 1, .*, data 'iris' has setosa"),
        (dict(after=run.model, data=iris.data), ValueError, "the model maps"),
        (
            dict(after=iris.model, precisions=(None, "int8")),
            ValueError,
            "'int8' is about the files of a bundle, 'mlp' is none",
        ),
        (dict(after=iris.model, data=few(iris, slice(0, 0))), ValueError, "has no test rows"),
        (dict(after=iris.model, data=few(iris, [4, 4, 4])), ValueError, "the 3 test rows of 'iris' are all alike"),
        (dict(after=tmp_path / "none.onnx"), FileNotFoundError, "there is no ONNX file"),
        (dict(after=tmp_path / "broken.onnx"), ValueError, "cannot be run: .*; export it again"),
        (dict(after=tmp_path), ValueError, "is not a bundle"),
    ):
        with pytest.raises(error, match=message):
            changes(**{"before": iris, "quiet": True, **given})


def test_runs_on_different_rows_are_refused(iris, tmp_path):
    other = zoo.train("mlp", data="iris", out=tmp_path / "other", epochs=2, seed=1, quiet=True)
    with pytest.raises(ValueError, match="trained on different rows of 'iris'"):
        changes(iris, other, quiet=True)
