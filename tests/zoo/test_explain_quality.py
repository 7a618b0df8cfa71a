"""How far explanations say they can be trusted, what a time budget does to them, and what cannot be explained."""

import time

import numpy as np
import pytest

from zoo.explain import Subject, explain, players, quality
from zoo.explain.clock import Clock
from zoo.explain.methods import METHODS

WEIGHTS = np.array([4.0, -2, 1, 0, 3, -1, 0.5, 2])


def weigh(x):
    return x.astype(np.float64) @ WEIGHTS


def table(predict=weigh, background=None, **facts):
    return Subject.of_function(
        predict, "table", background=np.zeros((1, 8)) if background is None else background, **facts
    )


def the_game(values=None):
    row = {"numbers": np.ones((1, 8), np.float32) if values is None else np.asarray([values], np.float32)}
    return players.game(table(), row, 0, 100)


def test_deletion_and_insertion_are_areas_under_the_curve():
    found = quality.faithfulness(the_game(), WEIGHTS, seed=0, clock=Clock())
    best = np.sort(WEIGHTS)[::-1]
    falling = WEIGHTS.sum() - np.concatenate([[0], np.cumsum(best)])
    rising = np.concatenate([[0], np.cumsum(best)])
    assert found["deletion"] == pytest.approx(np.trapezoid(falling, dx=1 / 8))
    assert found["insertion"] == pytest.approx(np.trapezoid(rising, dx=1 / 8))
    middle, away = WEIGHTS.sum() / 2, 6 * found["deletion_random_spread"] / np.sqrt(found["orders"])
    assert found["deletion_random"] == pytest.approx(middle, abs=away) and found["orders"] == quality.ORDERS
    assert found["deletion"] < found["deletion_random"] - 2 * found["deletion_random_spread"]
    assert found["insertion"] > found["insertion_random"] + 2 * found["insertion_random_spread"]


def test_wrong_contributions_are_no_better_than_random_ones():
    wrong = quality.faithfulness(the_game(), -WEIGHTS, seed=0, clock=Clock())
    assert wrong["deletion"] > wrong["deletion_random"] and wrong["insertion"] < wrong["insertion_random"]


def test_parts_that_are_as_the_background_are_not_taken_out():
    game = the_game([1, 1, 0, 0, 0, 0, 0, 0])
    found = quality.faithfulness(game, WEIGHTS, seed=0, clock=Clock())
    assert found["deletion"] == pytest.approx(-0.5)  # answers 2, then -2 without the first, then 0
    assert quality.faithfulness(the_game([1] + [0] * 7), WEIGHTS, seed=0, clock=Clock()) is None


def test_a_linear_model_is_explained_in_a_stable_way_and_a_jumping_one_is_not():
    random = np.random.default_rng(0)
    rows, background = random.normal(size=(4, 8)), random.normal(size=(20, 8))
    steady = explain(table(background=background), rows)
    assert steady.stability > 0.95

    def jumps(x):
        return (np.floor(x * 60) % 2 * [1, 2, 3, 4, 5, 6, 7, 8]).sum(axis=1)

    restless = explain(table(jumps, background), rows)
    assert restless.stability < steady.stability - 0.3
    figures = steady.settings["quality"]
    assert figures["stability"]["repeats"] == quality.REPEATS and 0 < figures["stability"]["relative_change"] < 0.3
    assert len(figures["rows"]) == 4 and figures["model_rows"] > 0
    assert steady.faithfulness["deletion"] == pytest.approx(np.mean([each["deletion"] for each in figures["rows"]]))


def test_noise_keeps_types_missing_numbers_and_text():
    generator = np.random.default_rng(0)
    mixed = Subject.of_function(
        lambda raw: np.zeros(len(raw["numbers"])), "table",
        background={"numbers": np.array([[1, 10], [3, 10]]), "categories": np.array([["a"], ["b"]])},
    )  # fmt: skip
    raw = mixed.check({"numbers": [[2, np.nan]], "categories": [["a"]]})
    noisy = quality.disturb(mixed, raw, generator)
    assert noisy["numbers"].dtype == np.float32 and np.isnan(noisy["numbers"][0, 1])
    assert 0 < abs(noisy["numbers"][0, 0] - 2) < 10 * quality.NOISE and noisy["categories"].tolist() == [["a"]]
    image = Subject.of_function(lambda x: x[:, 0, 0, 0], "image")
    raw = {"image": np.array([0, 128, 255] * 100, np.uint8).reshape(1, 10, 10, 3)}
    noisy = quality.disturb(image, raw, generator)["image"].astype(int)
    moved = np.abs(noisy - raw["image"])
    assert noisy.dtype == int and 0 < moved.max() < 40 and moved.mean() < 10


def test_rank_correlation_shares_ranks_and_knows_no_order_of_equals():
    assert quality.rank_correlation(np.array([1.0, 2, 3, 0]), np.array([10.0, 20, 30, 0])) == pytest.approx(1)
    assert quality.rank_correlation(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == pytest.approx(-1)
    assert np.isnan(quality.rank_correlation(np.ones(3), np.array([3.0, 2, 1])))
    from scipy.stats import spearmanr

    one, two = np.random.default_rng(0).integers(1, 5, (2, 50)).astype(float)
    assert quality.rank_correlation(one, two) == pytest.approx(spearmanr(one, two).statistic)


def test_quality_can_be_left_out():
    asked = []

    def listen(x):
        asked.append(len(x))
        return weigh(x)

    found = explain(table(listen), np.ones((1, 8)), quality=False)
    assert found.faithfulness is None and found.stability is None and "quality" not in found.settings
    assert sum(asked) == found.calls


@pytest.fixture
def slow(monkeypatch):
    """Time stands still but for the rows that the model evaluates: a hundredth of a second each."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def predict(x):
        now[0] += 0.01 * len(x)
        return np.tanh(x.astype(np.float64) @ np.linspace(-1, 1, x.shape[1]) / 3)

    predict.now = now
    return predict


@pytest.mark.parametrize("method", ["permutation", "kernel"])
def test_a_budget_ends_the_work_and_says_so(slow, method):
    random = np.random.default_rng(1)
    subject, rows = table(slow, np.zeros((1, 12))), random.normal(size=(2, 12))
    found = explain(subject, rows, method, seconds=2.0)
    assert not found.complete and slow.now[0] < 2.6
    assert np.isfinite(found.attributions).all() and found.additivity_error < 1e-9
    assert "stopped by the time budget" in str(found)
    slow.now[0] = 0.0
    longer = explain(subject, rows, method, seconds=1000.0)
    assert longer.complete
    exactly = explain(subject, rows, "exact", quality=False).attributions
    assert np.abs(longer.attributions - exactly).max() < np.abs(found.attributions - exactly).max()


def test_every_row_gets_its_share_of_the_time(slow):
    found = explain(
        table(slow, np.zeros((1, 12))), np.random.default_rng(1).normal(size=(4, 12)), "permutation", seconds=4.0
    )
    assert (np.abs(found.attributions).max(axis=1) > 0).all() and not found.complete


@pytest.mark.parametrize("method", ["auto", "permutation", "kernel", "lime", "occlusion", "rise"])
def test_no_time_at_all_gives_an_honest_answer_or_a_clear_error(method):
    background, row = np.zeros((1, 30)), np.random.default_rng(2).normal(size=(1, 30))

    def curved(x):
        return np.tanh(x.sum(axis=1, dtype=np.float64))

    try:
        found = explain(curved, row, method, kind="table", background=background, seconds=0)
    except ValueError as error:
        assert "seconds" in str(error) or "time" in str(error)
        return
    assert not found.complete and np.isfinite(found.attributions).all()
    if METHODS[found.method].additive:
        missed = abs(found.base[0] + found.attributions.sum() - found.prediction[0])
        assert found.additivity_error == pytest.approx(missed)
    else:
        assert found.base is None and found.additivity_error is None
    assert found.faithfulness is None and found.stability is None and "nan" not in str(found)


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_a_budget_is_a_number_of_seconds(seconds):
    with pytest.raises(ValueError, match="seconds must be 0 or more"):
        explain(table(), np.ones((1, 8)), seconds=seconds)


def test_progress_is_told_over_all_rows():
    told = []
    explain(
        table(),
        np.random.default_rng(0).normal(size=(3, 8)),
        "permutation",
        progress=lambda done, total: told.append(done / total),
    )
    assert told == sorted(told) and told[-1] == 1 and told[0] < 0.5


@pytest.mark.parametrize("method", ["exact", "permutation", "kernel", "lime", "occlusion", "rise"])
def test_a_background_of_one_row_and_constant_columns(method):
    row = np.ones((1, 8))
    row[0, 5:] = 0  # as the background
    found = explain(table(), row, method, quality=False)
    np.testing.assert_allclose(found.attributions[0, 5:], 0, atol=1e-12)
    if METHODS[method].additive:
        np.testing.assert_allclose(found.attributions[0], [*WEIGHTS[:5], 0, 0, 0], atol=1e-6)


@pytest.mark.parametrize("method", ["exact", "permutation", "kernel", "partition", "lime", "occlusion", "rise"])
def test_a_row_that_is_the_background_has_no_contributions(method):
    image = np.full((1, 9, 9, 1), 7, np.uint8)
    if method == "exact":
        image = image[:, :3, :3]
    found = explain(lambda images: images[:, 0, 0, 0] / 7, image, method, kind="image", background=image)
    assert (found.attributions == 0).all() and found.prediction[0] == 1
    assert (found.base[0] == 1) if METHODS[method].additive else found.base is None
    assert found.faithfulness is None


def test_a_background_that_the_model_cannot_judge_is_named():
    def picky(x):
        return np.where(np.isnan(x).any(axis=1), np.nan, x.sum(axis=1))

    with pytest.raises(ValueError, match="answers NaN or infinity when something is left out"):
        explain(picky, np.ones((1, 3)), kind="table", background=np.full((2, 3), np.nan))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("shapely", "no method 'shapely' for table inputs; methods are auto, exact"),
        ("partition", "no method 'partition' for table inputs; methods are auto, exact"),
        ("grad_cam", "no method 'grad_cam' for table inputs"),
        ("deep", "deep looks into a Keras model, and 'function' has only its answers; methods for 'function' are auto"),
    ],
)
def test_methods_that_do_not_fit(method, message):
    with pytest.raises(ValueError, match=message):
        explain(table(), np.ones((1, 8)), method)


def test_the_seed_decides_what_is_drawn():
    random = np.random.default_rng(3)
    rows, background = random.normal(size=(2, 14)), random.normal(size=(5, 14))

    def curved(x):
        return np.tanh(x[:, :7].sum(axis=1) * x[:, 7:].prod(axis=1))

    state = np.random.get_state()[1].copy()
    one, same, other = (explain(curved, rows, kind="table", background=background, seed=seed) for seed in (1, 1, 2))
    assert (one.attributions == same.attributions).all() and one.faithfulness == same.faithfulness
    assert (one.attributions != other.attributions).any() and (np.random.get_state()[1] == state).all()
