"""Folds, shares and the gap: which rows go where, and what is made of the scores."""

import json

import numpy as np
import pytest

import zoo
from zoo import data
from zoo.data import Rows
from zoo.data.rows import digests
from zoo.evaluate import cross_validate, gap, learning_curve, metrics, validate
from zoo.tasks import Interval


def rows_of(y, x=None, task="classification"):
    y = np.asarray(y)
    x = np.arange(len(y), dtype=np.float32)[:, None] if x is None else np.asarray(x, np.float32)[:, None]
    labels = ("price",) if task == "regression" else tuple("abcdef"[: y.max() + 1])
    return Rows(name="made", task=task, x={"numbers": x}, y=y, labels=labels, source="made", numbers=("a",))


def test_folds_have_their_share_of_each_class():
    y = np.repeat([0, 1, 2], [100, 31, 7])
    fold = validate.deal(rows_of(y), 5, seed=0)
    for label, count in enumerate((100, 31, 7)):
        sizes = np.bincount(fold[y == label], minlength=5)
        assert sizes.sum() == count and sizes.max() - sizes.min() <= 1
    assert np.ptp(np.bincount(fold)) <= 1
    assert (validate.deal(rows_of(y), 5, seed=0) == fold).all() and (validate.deal(rows_of(y), 5, seed=1) != fold).any()


def test_equal_rows_are_in_one_fold():
    x = np.arange(120) // 3
    fold = validate.deal(rows_of(np.arange(120) % 2, x), 4, seed=0)
    for value in range(40):
        assert len(set(fold[x == value])) == 1


def test_folds_of_a_regression_have_small_and_large_targets():
    y = np.random.default_rng(0).exponential(100, 103).astype(np.float32)
    fold = validate.deal(rows_of(y, task="regression"), 5, seed=0)
    assert np.ptp(np.bincount(fold)) <= 1
    for each in range(5):
        assert (y[fold == each] < np.median(y)).sum() == pytest.approx(10, abs=1)


def test_too_few_rows_for_the_folds():
    with pytest.raises(ValueError, match="class 'b' has 2 different rows, too few for 3 folds"):
        validate.deal(rows_of([0] * 9 + [1] * 2), 3, seed=0)


def test_every_row_is_held_out_once_and_never_seen(monkeypatch):
    splits, seen = data.load("iris"), []
    trained = validate._trained

    def watched(name, own, overrides, found=None):
        seen.append(own)
        return trained(name, own, overrides, found)

    monkeypatch.setattr(validate, "_trained", watched)
    found = cross_validate("logistic_regression", "iris", folds=3, epochs=4, learning_rate=0.1, quiet=True)
    development = {*digests(splits.train.x), *digests(splits.validation.x)}
    held = [set(digests(own.test.x)) for own in seen]
    assert set.union(*held) == development and sum(map(len, held)) == len(development)
    for own in seen:
        parts = [set(digests(part.x)) for part in own.splits.values()]
        assert not (parts[0] & parts[2] or parts[1] & parts[2] or parts[0] & parts[1])
        assert not set(digests(splits.test.x)) & set.union(*parts)
        np.testing.assert_allclose(own.signature.preprocess.mean, own.train.x["numbers"].mean(axis=0), rtol=1e-5)
    assert sum(found.rows) == len(splits.train) + len(splits.validation) and len(found.rows) == 3
    assert found.mean == pytest.approx(np.mean(found.scores["accuracy"])) and found.mean > 0.6
    assert found.spread == pytest.approx(np.std(found.scores["accuracy"], ddof=1))
    hits = np.dot(found.scores["accuracy"], found.rows) / sum(found.rows)
    assert found.pooled["accuracy"].score == pytest.approx(hits)
    told = json.loads(found.to_json())
    assert told["mean"] == pytest.approx(found.mean) and f"{found.mean:.4f}" in str(found)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "regression"
    return zoo.train("mlp", "diabetes", out=folder, epochs=3, width=(8,), learning_rate=0.02, seed=2, quiet=True)


def test_a_runs_recipe_is_repeated(run):
    found = cross_validate(run, folds=2, use_test=True, epochs=2, quiet=True)
    assert sum(found.rows) == 442 and set(found.scores) == {"r2", "rmse", "mae", "bias"}
    again = cross_validate(run.folder, folds=2, use_test=True, epochs=2, quiet=True)
    assert (found.scores["rmse"] == again.scores["rmse"]).all()
    other = cross_validate(run, folds=2, use_test=True, epochs=2, width=(9,), quiet=True)
    assert (found.scores["rmse"] != other.scores["rmse"]).any()


def test_growing_shares_hold_the_smaller_ones(monkeypatch, tmp_path):
    seen, trained = [], validate._trained

    def watched(name, own, overrides, found=None):
        seen.append(own)
        return trained(name, own, overrides, found)

    monkeypatch.setattr(validate, "_trained", watched)
    found = learning_curve("logistic_regression", "wine", shares=(0.2, 0.5, 1.0), epochs=5, quiet=True)
    splits = data.load("wine")
    train = [set(digests(own.train.x)) for own in seen]
    assert train[0] < train[1] < train[2] == set(digests(splits.train.x))
    assert found.rows == [len(each) for each in train] and found.rows[0] == round(0.2 * len(splits.train))
    for own in seen:
        assert set(digests(own.test.x)) == set(digests(splits.test.x))
        counts = np.bincount(own.train.y) / len(own.train) - np.bincount(splits.train.y) / len(splits.train)
        assert np.abs(counts).max() < 0.05
    assert len(found.test) == 3 and found.verdict in str(found)
    assert json.loads(found.to_json())["rows"] == found.rows
    assert found.plot(tmp_path / "growth.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("train", "test", "verdict"),
    [
        ((1.0, 0.99), ((0.80, 0.76, 0.84), (0.90, 0.87, 0.93)), "still grows"),
        ((1.0, 1.0), ((0.90, 0.86, 0.94), (0.91, 0.88, 0.94)), "regularise or augment"),
        ((0.92, 0.91), ((0.90, 0.86, 0.94), (0.90, 0.87, 0.93)), "a larger model may"),
    ],
)
def test_what_more_rows_would_bring(train, test, verdict):
    fitted = [Interval(score, score - 0.03, min(1.0, score + 0.03)) for score in train]
    found = validate.Growth("mlp", "made", "accuracy", [100, 200], fitted, fitted, [Interval(*each) for each in test])
    assert verdict in found.verdict


def test_the_gap_is_training_minus_test(run):
    found = gap(run)
    scores = {split: zoo.evaluate(run, split=split).metrics for split in ("train", "validation", "test")}
    assert found.rows == {split: len(part) for split, part in run.data.splits.items()}
    for name, value in found.gaps.items():
        for split, known in scores.items():
            assert found.scores[split][name].score == pytest.approx(known[name].score)
        assert value.score == pytest.approx(scores["train"][name].score - scores["test"][name].score)
        assert value.low < value.score < value.high
    errors = [scores[split]["mae"] for split in ("train", "test")]
    half = np.hypot(*((one.high - one.low) / 2 for one in errors))  # independent rows: variances add
    assert (found.gaps["mae"].high - found.gaps["mae"].low) / 2 == pytest.approx(half, rel=0.1)
    assert json.loads(found.to_json())["rows"]["test"] == len(run.data.test) and "train - test" in str(found)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cross_validate("mlp", "iris", folds=1), "folds must be at least 2, got folds=1"),
        (lambda: cross_validate("mlp", "iris", validation=0), r"a share in \(0, 1\), which chooses the epoch"),
        (
            lambda: learning_curve("mlp", "iris", shares=(0.5,)),
            r"two or more growing numbers in \(0, 1\], got \(0.5,\)",
        ),
        (lambda: learning_curve("mlp", "iris", shares=(0.5, 0.2)), "growing numbers"),
        (lambda: learning_curve("mlp", "iris", shares=(0.01, 1), quiet=True), "a share of 0.01 leaves a class without"),
        (lambda: gap("nowhere"), "evaluate needs data"),
        (lambda: next(metrics.draws(0, 1, 0)), "no rows"),
    ],
)
def test_bad_requests_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
