"""Calibration against truths made by hand, and against scikit-learn."""

import json

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

import zoo
from zoo.data.signature import Calibration, Signature, TablePreprocess, softmax
from zoo.evaluate import calibrate, reliability
from zoo.evaluate.calibration import fit, to_logits


def simulated(rows, temperature=1.0, classes=5, seed=0):
    """Labels drawn from softmax(logits), and the probabilities of a model whose logits are `temperature` times these."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (rows, classes))
    y = (random.random((rows, 1)) > np.cumsum(softmax(logits), axis=1)).sum(axis=1)
    return np.minimum(y, classes - 1), softmax(logits * temperature)


@pytest.mark.parametrize("scheme", ["width", "mass"])
def test_perfect_probabilities_have_no_error_beyond_chance(scheme):
    y, probabilities = simulated(4000)
    found = reliability(y, probabilities, scheme=scheme)
    assert found.ece.score < 0.03 and found.ece.low == 0 and found.p > 0.05
    assert found.floor == pytest.approx(found.ece.score, abs=0.012) and found.counts.sum() == 4000


@pytest.mark.parametrize("scheme", ["width", "mass"])
def test_overconfidence_is_found(scheme):
    y, probabilities = simulated(4000, temperature=3)
    found = reliability(y, probabilities, scheme=scheme)
    gap = probabilities.max(axis=1).mean() - (probabilities.argmax(axis=1) == y).mean()
    assert found.ece.score == pytest.approx(gap, abs=0.01) and gap > 0.15  # too sure in every bin
    assert found.ece.low > 0.1 and found.p < 0.01


@pytest.mark.parametrize(("scheme", "strategy"), [("width", "uniform"), ("mass", "quantile")])
def test_bins_are_those_of_scikit_learn(scheme, strategy):
    y, probabilities = simulated(900, temperature=2)
    found = reliability(y, probabilities, scheme=scheme, bins=10)
    hits, confidence = probabilities.argmax(axis=1) == y, probabilities.max(axis=1)
    accuracy, mean = calibration_curve(hits, confidence, n_bins=10, strategy=strategy)
    filled = found.counts > 0
    np.testing.assert_allclose(found.accuracy[filled], accuracy)
    np.testing.assert_allclose(found.confidence[filled], mean, rtol=1e-6)


def test_the_interval_holds_the_true_error_of_most_samples():
    """The true error is that of 200,000 rows; simulation has the nominal 95 % at about 90 %."""
    truth = reliability(*simulated(200_000, temperature=2, seed=99), resamples=1).ece.score
    held = 0
    for seed in range(60):
        interval = reliability(*simulated(500, temperature=2, seed=seed), resamples=200).ece
        held += interval.low <= truth <= interval.high
    assert held >= 48  # binomial: at 90 %, fewer are 1 case in 300


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_is_recovered(temperature):
    y, probabilities = simulated(20_000, temperature=temperature)
    found = fit("temperature", y, probabilities)
    assert 1 / found.scale[0] == pytest.approx(temperature, rel=0.03)
    after = found(to_logits(probabilities))
    assert (after.argmax(axis=1) == probabilities.argmax(axis=1)).all()
    assert reliability(y, after).ece.score < 0.015
    np.testing.assert_allclose(after, softmax(to_logits(probabilities) * found.scale[0]), atol=1e-6)


@pytest.mark.parametrize("classes", [2, 4])
def test_platt_is_a_logistic_regression_on_his_targets(classes):
    y, probabilities = simulated(600, temperature=2, classes=classes)
    found = fit("platt", y, probabilities)
    odds = np.log(probabilities.astype(float)) - np.log(1 - probabilities.astype(float))
    for label in range(classes):
        positive = (y == label).sum()
        target = np.where(y == label, (positive + 1) / (positive + 2), 1 / (len(y) - positive + 2))
        twice = np.concatenate([odds[:, label]] * 2)[:, None]
        model = LogisticRegression(C=1e10, tol=1e-10, max_iter=1000)
        model.fit(twice, np.repeat([1, 0], len(y)), np.concatenate([target, 1 - target]))
        assert found.scale[label] == pytest.approx(model.coef_[0, 0], rel=2e-3)
        assert found.bias[label] == pytest.approx(model.intercept_[0], abs=2e-3)
    assert reliability(y, found(to_logits(probabilities))).ece.score < reliability(y, probabilities).ece.score / 2


def test_two_classes_are_one_sigmoid():
    found = Calibration("platt", (1.5, 1.5), (-0.3, 0.3))(np.array([[0.0, 2.0], [1.0, -1.0]], np.float32))
    expected = 1 / (1 + np.exp(-(1.5 * np.array([2.0, -2.0]) + 0.3)))
    np.testing.assert_allclose(found[:, 1], expected, rtol=1e-4)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)


def test_extreme_logits_stay_probabilities():
    logits = np.array([[1e4, -1e4, 0], [0, 0, 0]], np.float32)
    for calibration in (Calibration("temperature", (5.0,)), Calibration("platt", (50.0,) * 3, (9.0,) * 3)):
        found = calibration(logits)
        assert np.isfinite(found).all() and found[0, 0] > 0.99
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def test_a_signature_keeps_its_calibration(tmp_path):
    step = TablePreprocess(("a",), (0.0,), (1.0,))
    for calibration in (None, Calibration("temperature", (0.5,)), Calibration("platt", (1.0, 2.0), (0.0, 0.1))):
        signature = Signature("classification", ("no", "yes"), step, calibration=calibration)
        signature.save(tmp_path / "signature.json")
        assert Signature.load(tmp_path / "signature.json") == signature
    old = json.loads((tmp_path / "signature.json").read_text())
    del old["calibration"]
    assert Signature.from_dict(old).calibration is None


class Scores:
    """A classifier that a plain function computes, with the face of a Keras model."""

    name, input_shape, output_shape = "scores", (None, 30), (None, 2)

    def predict_on_batch(self, x):
        lean = 4 * (x[:, 0] + x[:, 1] + x[:, 7])  # far too sure
        return np.stack([lean, -lean], axis=1)


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_constants_come_from_validation_and_are_judged_on_test(method, tmp_path):
    splits = zoo.data.load("breast_cancer")
    found = calibrate(Scores(), splits, method=method, level=0.8)
    held = softmax(Scores().predict_on_batch(splits.signature.inputs(splits.validation.x)))
    assert found.calibration == fit(method, splits.validation.y, held)
    test = softmax(Scores().predict_on_batch(splits.signature.inputs(splits.test.x)))
    assert found.before.ece == reliability(splits.test.y, test).ece
    assert found.metrics_after["log_loss"].score < found.metrics_before["log_loss"].score
    assert found.after.ece.score < found.before.ece.score
    assert {coverage.conformal.method for coverage in found.sets} == {"lac", "aps", "raps"}
    assert all(coverage.coverage.high > 0.8 for coverage in found.sets)
    told = json.loads(found.to_json())
    assert told["calibration"]["method"] == method and told["rows"] == {"validation": 86, "test": len(splits.test)}
    assert "ECE, equal mass" in str(found) and found.plot(tmp_path / "a.png").stat().st_size > 10_000


def test_a_level_that_needs_more_rows_is_told():
    found = calibrate(Scores(), zoo.data.load("breast_cancer"), level=0.99)
    assert found.sets == () and "no conformal sets: a level of 0.99 needs 99 validation rows" in str(found)
    with pytest.raises(ValueError, match=r"level must be a share in \(0, 1\), got 1"):
        calibrate(Scores(), zoo.data.load("breast_cancer"), level=1)


def test_bad_requests_are_told():
    y, probabilities = simulated(50)
    right = np.eye(5)[y] * 0.9 + 0.02
    for call, message in (
        (lambda: fit("isotonic", y, probabilities), "method must be one of temperature, platt, got 'isotonic'"),
        (lambda: fit("temperature", y, right), "all 50 validation rows are right; give more"),
        (lambda: fit("platt", np.ones(50, int), probabilities), "rows of every class, class 0 has 0 of 50"),
        (lambda: fit("platt", y, probabilities * 2), "probabilities that sum to 1"),
        (lambda: reliability(y, probabilities[:, :1]), r"probabilities \(rows, classes\), got \(50, 1\)"),
        (lambda: reliability(y, probabilities, scheme="equal"), "scheme must be 'width' or 'mass', got 'equal'"),
        (lambda: reliability(y, probabilities, bins=0), "bins must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
