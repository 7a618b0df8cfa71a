"""Paired tests against counts by hand and against every permutation."""

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binomtest

import zoo
from zoo.data.signature import Signature, TablePreprocess
from zoo.evaluate import against_baseline, compare
from zoo.evaluate.compare import mcnemar
from zoo.evaluate.report import judge
from zoo.recipes import Recipe

STEP = TablePreprocess(("a",), (0.0,), (1.0,))
CLASSES = Signature("classification", ("no", "yes"), STEP)
VALUES = Signature("regression", ("price",), STEP, target_mean=0.0)


def classified(right, name, sure=0.9, x=None):
    """A report of a model that is right on these rows; the truth is class 1 everywhere else."""
    right = np.asarray(right, bool)
    y = np.arange(len(right)) % 2
    of_truth = np.where(right, sure, 1 - sure)
    answers = np.where(np.eye(2)[y] == 1, of_truth[:, None], 1 - of_truth[:, None]).astype(np.float32)
    return judge(CLASSES, y, answers, "test", name=name, x=x)


def valued(y, answers, name):
    return judge(VALUES, np.asarray(y, np.float32), np.asarray(answers, np.float32)[:, None], "test", name=name)


def test_mcnemar_by_hand():
    exact, mid = mcnemar(1, 7)
    assert exact == pytest.approx(2 * (1 + 8) / 2**8) and mid == pytest.approx(2 * (1 + 8) / 2**8 - 8 / 2**8)
    assert mcnemar(0, 0) == (1.0, 1.0)
    exact, mid = mcnemar(4, 4)
    assert exact == 1 and mid == pytest.approx(1 - 70 / 2**9)
    for one, other in ((3, 12), (40, 25)):
        assert mcnemar(one, other)[0] == pytest.approx(binomtest(one, one + other).pvalue)


def test_a_clear_winner_is_named():
    rows = np.arange(200)
    found = compare(classified(rows % 4 != 0, "old"), classified(rows % 20 != 0, "new"))
    assert found.better == "new" and found.difference.score == pytest.approx(0.2)
    assert found.first.score == 0.75 and found.second.score == 0.95
    assert (found.only_first, found.only_second) == (0, 40) and found.mcnemar < 1e-10
    assert found.p == pytest.approx(1 / 10_001)
    half = 1.96 * np.sqrt(0.2 * 0.8 / 200)  # a difference in {0, 1} for each row
    assert found.difference.low == pytest.approx(0.2 - half, abs=0.01)
    assert found.verdict.startswith("new is better by 0.2000 of accuracy, 95 % [0.1")


def test_where_smaller_is_better_the_smaller_one_wins():
    rows = np.arange(300)
    found = compare(
        classified(rows % 3 != 0, "modest", 0.7), classified(rows % 3 != 0, "boastful", 0.999), metric="log_loss"
    )
    assert found.difference.score > 0 and found.better == "modest"
    assert found.differences["accuracy"].score == 0 and found.mcnemar == 1
    reverse = compare(
        classified(rows % 3 != 0, "boastful", 0.999), classified(rows % 3 != 0, "modest", 0.7), metric="log_loss"
    )
    assert reverse.better == "modest" and reverse.difference.score == pytest.approx(-found.difference.score)


def test_equal_models_are_equal():
    one = classified(np.arange(50) % 5 != 0, "same")
    found = compare(one, one)
    assert found.better is None and found.p == 1 and found.names == ("same (1)", "same (2)")
    assert found.verdict.startswith("no difference shown: accuracy of same (2) is +0.0000")


def test_the_permutation_test_is_that_of_all_permutations():
    random = np.random.default_rng(5)
    y = random.normal(size=9)
    first, second = y + random.normal(0, 1, 9), y + random.normal(0.2, 0.4, 9)
    found = compare(valued(y, first, "a"), valued(y, second, "b"), metric="rmse", resamples=20_000)

    def gap(trade):
        one, other = np.where(trade, second, first), np.where(trade, first, second)
        return np.sqrt(np.mean((other - y) ** 2)) - np.sqrt(np.mean((one - y) ** 2))

    observed = abs(gap(np.zeros(9, bool)))
    exact = np.mean([abs(gap(np.array(t))) >= observed - 1e-9 for t in itertools.product([False, True], repeat=9)])
    assert 0.01 < exact < 0.9 and found.p == pytest.approx(exact, abs=0.012)
    assert found.mcnemar is None and found.only_first is None


def test_chance_alone_is_called_a_difference_as_rarely_as_promised():
    random = np.random.default_rng(0)
    called = 0
    for seed in range(200):
        one, other = (classified(random.random(80) < 0.7, name) for name in "ab")
        called += compare(one, other, resamples=200, seed=seed).better is not None
    assert called <= 20  # binomial: at 5 %, more are 1 case in 1,000


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (classified(np.ones(9), "b"), r"a and b cannot be compared: their rows are 10 and 9"),
        (valued(np.ones(10), np.ones(10), "b"), "their task are 'classification' and 'regression'"),
        (
            classified(np.ones(10), "b", x={"numbers": np.ones((10, 1), np.float32)}),
            "were judged on different test rows",
        ),
    ],
)
def test_other_rows_are_refused(other, message):
    x = {"numbers": np.zeros((10, 1), np.float32)}
    with pytest.raises(ValueError, match=message):
        compare(classified(np.ones(10), "a", x=x), other)


def test_no_verdict_about_a_metric_without_direction():
    one = valued(np.arange(9), np.arange(9) + 1, "a")
    for metric in ("bias", "accuracy"):
        with pytest.raises(
            ValueError, match=f"no verdict can be about '{metric}' here; it is about one of r2, rmse, mae"
        ):
            compare(one, one, metric=metric)


def test_pictures_may_be_of_another_size():
    right = np.arange(60) % 3 > 0
    small, large = ({"image": np.full((60, side, side, 1), 7, np.uint8)} for side in (8, 32))
    found = compare(classified(right, "small", x=small), classified(right, "large", x=large), resamples=100)
    assert found.difference.score == 0 and found.rows == 60
    other = classified(right, "other", x=large)
    for wrong in (replace(other, y=1 - other.y), classified(right, "other", x={"image": small["image"] + 1})):
        with pytest.raises(ValueError, match="judged on different test rows, as models of other splits are"):
            compare(classified(right, "small", x=small), wrong)


def test_models_of_other_splits_are_refused():
    def run(**seeds):
        return SimpleNamespace(model=None, signature=CLASSES, recipe=Recipe("mlp", "wine", **seeds), data=None)

    message = "was split by the seeds 0 and 3, so test rows of the one were training rows"
    for other in (run(seed=3), run(split_seed=3)):
        with pytest.raises(ValueError, match=message):
            compare(run(), other)
    with pytest.raises(ValueError, match="needs data"):
        compare(run(), run(seed=3, split_seed=0))


class Linear:
    """Logits of a fixed matrix, where Keras would be slow."""

    name = "linear"

    def __init__(self, side):
        self.input_shape, self.output_shape = (None, side, side, 1), (None, 10)
        self.kernel = np.random.default_rng(side).normal(size=(side * side, 10))

    def predict_on_batch(self, inputs):
        return inputs.reshape(len(inputs), -1) @ self.kernel


def test_a_model_of_other_picture_sizes_is_asked_the_same_pictures():
    data = zoo.data.load("digits", input_shape=(4, 4, 1), seed=3)
    recipe = Recipe("mlp", "digits", seed=3)
    mine = SimpleNamespace(model=Linear(4), signature=data.signature, recipe=recipe, data=data, history=[])
    found = compare(mine, Linear(8), resamples=100)
    assert found.rows == len(data.test) and found.names[1] == "linear"
    assert not np.array_equal(found.first.score, found.second.score)
    mine.recipe = replace(recipe, data="elsewhere/pictures")
    with pytest.raises(ValueError, match="'wine' is a table; give data like that it was trained on"):
        zoo.evaluate(Linear(8), "wine")
    with pytest.raises(ValueError, match=r"other sizes, \(4, 4, 1\) and \(8, 8, 1\), and data .*; give data="):
        compare(mine, Linear(8))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return zoo.train("mlp", "wine", out=tmp_path_factory.mktemp("run") / "mlp", epochs=12, width=(16,), quiet=True)


def test_against_the_baseline_entry_on_the_same_rows(run, tmp_path):
    found = against_baseline(run, epochs=3)
    assert found.names[0] == "logistic_regression" and found.rows == len(run.data.test)
    assert found.second == zoo.evaluate(run).score
    told = json.loads(found.to_json())
    assert told["difference"]["score"] == pytest.approx(found.second.score - found.first.score)
    assert told["verdict"] in str(found) and told["better"] in (None, *found.names)
    assert found.plot(tmp_path / "differences.png").stat().st_size > 10_000


def test_a_folder_and_its_run_are_one_model(run):
    found = compare(run.folder, run, resamples=200)
    assert found.difference.score == 0 and found.better is None and found.split == "test"
