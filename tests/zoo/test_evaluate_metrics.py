"""Metrics against scikit-learn, on the rows and on bootstrap samples of them."""

import numpy as np
import pytest
from sklearn import metrics as reference

from zoo.evaluate import metrics


def drawn(rows, classes, seed=0, absent=None):
    """Answers with ties, and targets in which one class may be absent."""
    random = np.random.default_rng(seed)
    y = random.integers(0, classes, rows)
    if absent is not None:
        y[y == absent] = (absent + 1) % classes
    logits = random.normal(size=(rows, classes))
    logits[np.arange(rows), y] += 1
    answers = np.round(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), 1) + 1e-3
    return y, (answers / answers.sum(axis=1, keepdims=True)).astype(np.float32)


def by_scikit_learn(y, answers):
    classes, answered = answers.shape[1], answers.argmax(axis=1)
    positive = answers[:, 1] if classes == 2 else answers
    found = {
        "accuracy": reference.accuracy_score(y, answered),
        "balanced_accuracy": np.mean([np.mean(answered[y == label] == label) for label in np.unique(y)]),
        "macro_f1": reference.f1_score(y, answered, average="macro"),
        "log_loss": reference.log_loss(y, answers, labels=range(classes)),
        "brier": reference.brier_score_loss(y, positive, labels=range(classes)),
    }
    known = [label for label in range(classes) if (y == label).any()]
    areas = [reference.roc_auc_score(y == label, answers[:, label]) for label in known]
    found["roc_auc"] = areas[1] if classes == 2 else np.mean(areas)
    return found


@pytest.mark.parametrize(("classes", "absent"), [(2, None), (5, None), (12, 3)])
def test_classification_is_that_of_scikit_learn(classes, absent):
    y, answers = drawn(240, classes, absent=absent)
    found = {
        name: measure(np.ones((1, 240)))[0] for name, measure in metrics.measures("classification", y, answers).items()
    }
    for name, expected in by_scikit_learn(y, answers).items():
        assert found[name] == pytest.approx(expected, abs=1e-6), name


@pytest.mark.parametrize("classes", [2, 5])
def test_weights_are_the_rows_drawn_again(classes):
    y, answers = drawn(60, classes)
    wanted = metrics.measures("classification", y, answers)
    (weights,) = metrics.draws(60, 5, seed=3)
    assert (weights.sum(axis=1) == 60).all()
    values = {name: measure(weights) for name, measure in wanted.items()}
    for sample, counts in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(60), counts)
        for name, expected in by_scikit_learn(y[rows], answers[rows]).items():
            assert values[name][sample] == pytest.approx(expected, abs=1e-6), (sample, name)


def test_top_k_counts_as_scikit_learn_where_nothing_is_tied():
    random = np.random.default_rng(0)
    y, answers = random.integers(0, 12, 300), random.dirichlet(np.ones(12), 300)
    found = metrics.intervals("classification", y, answers)
    for top in (3, 5):
        expected = reference.top_k_accuracy_score(y, answers, k=top, labels=range(12))
        assert found[f"top_{top}_accuracy"].score == pytest.approx(expected)
    assert "top_5_accuracy" not in metrics.measures("classification", y % 10, answers[:, :10])


def test_a_tie_is_decided_as_the_answer_is():
    answers = np.full((4, 4), 0.25, np.float32)
    found = metrics.intervals("classification", np.array([0, 1, 2, 3]), answers)
    assert found["accuracy"].score == 0.25 and found["top_3_accuracy"].score == 0.75


def test_regression_is_that_of_scikit_learn():
    random = np.random.default_rng(0)
    y = random.normal(5000, 3, 90).astype(np.float32)
    answers = (y + random.normal(0.5, 1, 90)).astype(np.float32)[:, None]
    wanted = metrics.measures("regression", y, answers)
    (weights,) = metrics.draws(90, 4, seed=0)
    for counts in (np.ones(90, int), *weights.astype(int)):
        rows = np.repeat(np.arange(90), counts)
        given = counts[None].astype(float)
        assert wanted["r2"](given)[0] == pytest.approx(reference.r2_score(y[rows], answers[rows, 0]), abs=1e-4)
        expected = reference.root_mean_squared_error(y[rows], answers[rows, 0])
        assert wanted["rmse"](given)[0] == pytest.approx(expected, rel=1e-4)
        assert wanted["mae"](given)[0] == pytest.approx(
            reference.mean_absolute_error(y[rows], answers[rows, 0]), rel=1e-4
        )
        assert wanted["bias"](given)[0] == pytest.approx(float(np.mean(answers[rows, 0] - y[rows])), rel=1e-3)


def test_an_interval_is_as_wide_as_theory_says():
    hits = np.arange(1000) < 700
    answers = np.stack([hits, ~hits], axis=1).astype(np.float32)
    found = metrics.intervals("classification", np.zeros(1000, int), answers, ("accuracy",))["accuracy"]
    half = 1.96 * np.sqrt(0.7 * 0.3 / 1000)
    assert found.low == pytest.approx(0.7 - half, abs=0.004) and found.high == pytest.approx(0.7 + half, abs=0.004)


def test_a_perfect_score_does_not_claim_to_be_certain():
    found = metrics.intervals("classification", np.zeros(30, int), np.tile([0.9, 0.1], (30, 1)))["accuracy"]
    assert found.score == found.high == 1 and found.low == pytest.approx(
        0.8843, abs=1e-3
    )  # Clopper & Pearson, 30 of 30
    none = metrics.intervals("classification", np.ones(30, int), np.tile([0.9, 0.1], (30, 1)))["accuracy"]
    assert none.score == none.low == 0 and none.high == pytest.approx(1 - 0.8843, abs=1e-3)


def test_the_seed_decides_whichever_metrics_are_wanted():
    y, answers = drawn(80, 3)
    whole = metrics.intervals("classification", y, answers, seed=1)
    assert metrics.intervals("classification", y, answers, ("brier",), seed=1)["brier"] == whole["brier"]
    assert metrics.intervals("classification", y, answers, ("brier",), seed=2)["brier"] != whole["brier"]


def test_what_is_not_defined_is_not_a_number():
    constant = metrics.intervals("regression", np.ones(9, np.float32), np.zeros((9, 1), np.float32))
    assert np.isnan(constant["r2"].score) and constant["rmse"].score == 1
    one_class = metrics.measures("classification", np.zeros(9, int), np.tile([0.6, 0.4], (9, 1)))
    assert "roc_auc" not in one_class


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: metrics.intervals("regression", np.ones(3), np.ones((3, 1)), ("auc",)),
            "there is no metric 'auc' here",
        ),
        (lambda: next(metrics.draws(0, 10, 0)), "no rows to judge"),
    ],
)
def test_bad_requests_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
