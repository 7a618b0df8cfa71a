"""Reports of runs, models and bundles: which rows, which figures, what is written."""

import csv
import json

import numpy as np
import pytest
from typer.testing import CliRunner

import export
import zoo
from zoo.cli import app
from zoo.evaluate import compare, conformal
from zoo.evaluate.report import answers, judge
from zoo.training import tune


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A run and its bundle, of a seed that is not the usual one."""
    folder = tmp_path_factory.mktemp("table")
    run = zoo.train("mlp", "wine", out=folder / "run", epochs=10, width=(16,), seed=3, quiet=True)
    return run, export.to_bundle(run, folder / "store" / "wine" / "1", max_drop=1.0)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return zoo.train("logistic_regression", "digits", out=folder / "run", epochs=2, quiet=True)


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    folder = tmp_path_factory.mktemp("values")
    return zoo.train("mlp", "diabetes", out=folder / "run", epochs=15, width=(8,), learning_rate=0.02, quiet=True)


@pytest.fixture
def command(monkeypatch):
    monkeypatch.setenv("ZOO_DEBUG", "1")  # leaves the standard error of this process alone
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False).stdout


def test_a_bundle_is_judged_on_the_rows_its_run_was(table):
    run, bundle = table
    known = zoo.evaluate(run)
    for model in (bundle, bundle.folder, str(bundle.folder)):
        assert zoo.evaluate(model, "wine").fingerprint == known.fingerprint
    found = zoo.evaluate(bundle, "wine", precision="fp32")
    assert found.score == known.score and found.name.endswith("(fp32)")
    for name, interval in known.metrics.items():
        assert found.metrics[name].score == pytest.approx(interval.score, abs=1e-5)
    small = zoo.evaluate(bundle, "wine", precision="int8")
    assert (small.answers != found.answers).any() and small.fingerprint == known.fingerprint


def test_other_seeds_leave_the_split_as_it_was(table, tmp_path):
    run, _ = table
    tuned = tune(run, out=tmp_path / "tuned", epochs=1, seed=8, quiet=True)
    same, quick = zoo.data.load("wine", seed=3), dict(epochs=10, width=(16,), learning_rate=0.02, quiet=True)
    again = zoo.train("mlp", same, out=tmp_path / "run", seed=8, **quick)
    known = zoo.evaluate(run).fingerprint
    for place, other in enumerate((tuned, again)):
        bundle = export.to_bundle(other, tmp_path / "store" / f"wine{place}" / "1", max_drop=1.0)
        assert other.recipe.seed == 8 and zoo.evaluate(other.folder).fingerprint == known
        assert zoo.evaluate(bundle, "wine").fingerprint == known
    assert compare(run, again.folder).rows == len(run.data.test)


def test_a_bundle_of_other_shares_is_not_judged_on_rows_it_was_trained_on(tmp_path):
    most = zoo.data.load("wine", test=0.05)
    run = zoo.train("logistic_regression", most, out=tmp_path / "run", epochs=1, quiet=True)
    bundle = export.to_bundle(run, tmp_path / "store" / "wine" / "1", max_drop=1.0)
    with pytest.raises(ValueError, match=r"trained on splits of .wine. with other shares, .*.train.: 1"):
        zoo.evaluate(bundle, "wine")
    assert zoo.evaluate(bundle, most).fingerprint == zoo.evaluate(run).fingerprint


def test_a_model_that_answers_nan_is_not_judged():
    wine = zoo.data.load("wine")
    model = zoo.get("logistic_regression", input_shape=(13,), classes=3)
    model.set_weights([np.full(weight.shape, np.nan) for weight in model.get_weights()])
    with pytest.raises(ValueError, match="answers NaN or infinity to 36 of 36 test rows, row 0 the first"):
        zoo.evaluate(model, wine)


def test_the_score_is_one_of_the_metrics(images):
    found = zoo.evaluate(images)
    assert found.metrics[found.metric] == found.score
    assert f"accuracy on 359 test rows: {found.score}" in str(found) and "roc_auc" in str(found)
    told = json.loads(found.to_json())
    assert told["metrics"]["brier"]["score"] == found.metrics["brier"].score and told["accuracy"] == vars(found.score)


def test_the_worst_answers_are_wrong_and_worst_first(images):
    found = zoo.evaluate(images)
    rows = found.worst(500)
    wrong = found.answers.argmax(axis=1) != found.y
    assert len(rows) == wrong.sum() > 5 and wrong[rows].all()
    likely = found.answers[rows, found.y[rows]]
    assert (np.diff(likely) >= 0).all()
    told = found.worst_rows(3)
    assert [row["row"] for row in told] == rows[:3].tolist()
    assert all(row["true"] != row["answer"] and row["probability"] > row["probability_of_true"] for row in told)


def test_a_folder_of_images_has_their_pictures(images, tmp_path):
    page = zoo.evaluate(images).save(tmp_path / "judged")
    names = {path.name for path in page.parent.iterdir()}
    assert names == {
        "report.md", "metrics.json", "confusion.png", "reliability.png", "learning_curve.png", "worst.png", "worst.csv",
    }  # fmt: skip
    text = page.read_text()
    for name in names - {"report.md", "metrics.json", "worst.csv"}:
        assert f"({name})" in text and (page.parent / name).stat().st_size > 5_000
    assert "Expected calibration error" in text


def test_a_folder_of_a_table_has_the_worst_rows_with_their_columns(values, tmp_path):
    found = zoo.evaluate(values)
    page = found.save(tmp_path / "judged", worst=5)
    assert not (page.parent / "worst.png").exists() and not (page.parent / "reliability.png").exists()
    with (page.parent / "worst.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    errors = np.abs(np.ravel(found.answers) - found.y)
    assert len(rows) == 5
    assert abs(float(rows[0]["error"])) == pytest.approx(errors.max(), rel=1e-4)
    place = int(rows[0]["row"])
    assert float(rows[0]["bmi"]) == pytest.approx(float(values.data.test.x["numbers"][place][2]), rel=1e-5)
    assert "| row | true | answer | error |" in page.read_text()


def test_a_model_that_is_always_right_has_no_worst_rows(images, tmp_path):
    y = images.data.test.y[:40]
    found = judge(images.signature, y, np.eye(10, dtype=np.float32)[y], "test", x=None)
    assert found.worst_rows() == [] and found.score.low < 1 == found.score.score
    assert "All 40 rows are answered rightly." in found.save(tmp_path).read_text()


def test_intervals_of_a_regression_are_set_on_validation(values):
    found = zoo.evaluate(values)
    held = values.data.validation
    fitted = conformal.fit(held.y, answers(values.model, values.signature, held.x), level=0.9, method="residual")
    expected = np.abs(np.ravel(found.answers) - found.y) <= fitted.threshold
    assert found.intervals.coverage.score == pytest.approx(expected.mean())
    assert found.intervals.size == pytest.approx(2 * fitted.threshold) and "residual sets for 90%" in str(found)
    assert zoo.evaluate(values, split="validation").intervals is None
    assert json.loads(found.to_json())["intervals"]["level"] == 0.9


def test_what_is_not_defined_is_null_in_json(values):
    found = judge(values.signature, np.ones(5, np.float32), np.zeros((5, 1), np.float32), "test")
    assert json.loads(found.to_json())["r2"]["score"] is None


def test_the_commands(table, values, command, tmp_path):
    run, bundle = table
    told = command("evaluate", bundle.folder, "--data", "wine", "--precision", "int8", "--out", tmp_path / "page")
    assert "accuracy on 36 test rows" in told and (tmp_path / "page" / "report.md").exists()
    assert "train - test" in command("evaluate", values.folder, "--gap")
    told = command("compare", bundle.folder, bundle.folder, "--data", "wine", "--precision", "fp32,int8")
    assert "(fp32)" in told and "McNemar p" in told
    told = json.loads(command("compare", run.folder, bundle.folder, "--json", "--metric", "log_loss"))
    assert told["metric"] == "log_loss" and told["better"] is None
    told = command("calibrate", run.folder, "--method", "platt", "--picture", tmp_path / "reliability.png")
    assert "ECE, equal width" in told and (tmp_path / "reliability.png").stat().st_size > 10_000
    folds = ("validate", "logistic_regression", "--data", "wine", "--folds", 2, "--epochs", 2, "-q", "--json")
    assert len(json.loads(command(*folds))["scores"]["accuracy"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "RUN", "--gap", "--out", "a"), "--gap is a table of all splits"),
        (("compare", "RUN"), "give a second run or bundle, or --baseline"),
        (("compare", "RUN", "RUN", "--baseline"), "and not both"),
        (("compare", "RUN", "RUN", "--precision", "a,b,c"), "takes a form, or two with a comma, got 'a,b,c'"),
        (("compare", "RUN", "--baseline", "--split", "train"), "got --split train; leave it out"),
        (("validate", "mlp", "--curve", "a,b"), "--curve takes shares such as 0.1,0.25,0.5,1, got 'a,b'"),
        (("validate", "mlp", "--picture", "a.png"), "--picture is of a learning curve"),
        (("validate", "mlp", "--curve", "0.5,1", "--folds", "3"), "leave out --folds"),
        (("evaluate", "RUN", "--precision", "int8"), "one of a bundle's forms, got precision='int8'"),
        (("calibrate", "VALUES"), "answers values, calibration is about probabilities"),
        (("export", "RUN", "--onnx", "a.onnx", "--calibrate", "platt"), "are for bundles"),
    ],
)
def test_mistakes_are_told(arguments, message, table, values, command):
    folders = {"RUN": table[0].folder, "VALUES": values.folder}
    with pytest.raises(ValueError, match=message):
        command(*(folders.get(argument, argument) for argument in arguments))


def test_bad_splits_are_told(images):
    with pytest.raises(ValueError, match="split must be 'train', 'validation' or 'test', got 'all'"):
        zoo.evaluate(images, split="all")
    splits = zoo.data.load("digits", test=0.0)
    with pytest.raises(ValueError, match="has no test rows; choose another split"):
        zoo.evaluate(images.model, splits)


def test_counts_in_a_cell_are_short():
    from zoo.evaluate.pictures import shortened

    counts = {
        0: "0",
        9_999: "9999",
        10_000: "10.0k",
        99_950: "100k",
        999_499: "999k",
        999_600: "1.00M",
        14_394_830: "14.4M",
    }
    assert {count: shortened(count) for count in counts} == counts
    assert max(len(shortened(7 * 10**power)) for power in range(11)) == 5
