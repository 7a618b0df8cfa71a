"""Variants of a recipe are trained once, on the same splits, and judged with seeds and rows as chance."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from stopping import Stop

from zoo import data
from zoo.evaluate.ablation import _holm, _interval, ablate
from zoo.recipes import Recipe

QUICK = dict(epochs=3, batch_size=128, width=(12,), dropout=0.1, learning_rate=0.02)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A base, a variant without dropout, and one that cannot learn."""
    out = tmp_path_factory.mktemp("ablation") / "mlp"
    found = ablate(
        "mlp",
        "digits",
        out=out,
        drop=("dropout",),
        variants={"slow": {"learning_rate": 1e-7}},
        seeds=3,
        quiet=True,
        **QUICK,
    )
    return out, found


def test_a_part_that_matters_is_told_from_one_that_does_not(table):
    _, found = table
    base, dropped, slow = found.variants
    assert [v.name for v in found.variants] == ["base", "no dropout", "slow"] and found.metric == "accuracy"
    assert base.difference == 0 and base.p == 1 and len(base.scores) == 3 and base.parameters == 64 * 12 + 12 + 120 + 10
    assert (
        slow.difference < -0.4 and slow.p < 0.05 and slow.difference_high < 0 and slow.advice == "worse: keep the base"
    )
    assert dropped.p > 0.05 and "no difference shown, at most" in dropped.advice
    assert dropped.difference == pytest.approx(dropped.mean - base.mean)
    assert base.low < base.mean < base.high


def test_every_line_has_the_same_test_rows(table):
    out, found = table
    splits = data.load("digits")
    assert found.rows == len(splits.test)
    for folder in (out / "runs").glob("*/seed*"):
        assert json.loads((folder / "environment.json").read_text())["data"]["sha256"] == splits.sha256
        with np.load(folder / "answers.npz") as kept:
            assert kept["test"].shape == (found.rows, 10)
    for name, dropout in (("base", 0.1), ("no_dropout", 0.0), ("slow", 0.1)):
        for seed in (0, 1, 2):
            recipe = Recipe.load(out / "runs" / name / f"seed{seed}" / "recipe.json")
            assert recipe.seed == seed and recipe.split_seed == 0 and recipe.arguments["dropout"] == dropout


def test_the_table_is_written(table):
    out, found = table
    rows = list(csv.DictReader((out / "ablation.csv").read_text().splitlines()))
    assert [row["variant"] for row in rows] == ["base", "no dropout", "slow"]
    assert float(rows[2]["seed_1"]) == pytest.approx(found.variants[2].scores[1], abs=1e-5)
    assert rows[1]["changes"] == "dropout=0.0" and rows[2]["advice"] == "worse: keep the base"
    assert json.loads((out / "ablation.json").read_text())["variants"][1]["p"] == found.variants[1].p
    assert (out / "ablation.png").stat().st_size > 10_000
    assert "on the same 359 test rows, 3 seeds" in str(found)


def test_finished_trainings_are_not_repeated(table, monkeypatch, capsys):
    out, found = table
    import zoo.training

    asked = []
    original = zoo.training.train
    monkeypatch.setattr(
        zoo.training, "train", lambda *args, **kwargs: (asked.append(kwargs), original(*args, **kwargs))[1]
    )
    given = dict(out=out, drop=("dropout",), variants={"slow": {"learning_rate": 1e-7}}, **QUICK)
    again = ablate("mlp", "digits", seeds=3, **given)
    assert not asked and again.variants == found.variants
    assert "9/9 slow, seed 2" in capsys.readouterr().out
    with_more = {**given, "variants": {**given["variants"], "narrow": {"width": (4,)}}}
    more = ablate("mlp", "digits", seeds=1, quiet=True, **with_more)
    assert [(kwargs["seed"], kwargs["width"]) for kwargs in asked] == [(0, (4,))]
    assert [v.name for v in more.variants] == ["base", "no dropout", "slow", "narrow"]
    assert "1 seed, so that chance of other seeds is not in it" in str(more)


def test_a_killed_training_goes_on(table, monkeypatch, tmp_path):
    import zoo.training

    original, asked = zoo.training.train, []

    def killed(*args, **kwargs):
        asked.append(kwargs)
        return original(*args, **kwargs, callbacks=(Stop(epoch=2),) if len(asked) == 1 else ())

    monkeypatch.setattr(zoo.training, "train", killed)
    given = dict(out=tmp_path / "out", variants={"slow": {"learning_rate": 1e-7}}, seeds=1, quiet=True, **QUICK)
    with pytest.raises(KeyboardInterrupt):
        ablate("mlp", "digits", **given)
    found = ablate("mlp", "digits", **given)
    assert asked[1]["resume"] and len(asked) == 3
    _, whole = table
    assert [v.scores[0] for v in found.variants] == [whole.variants[0].scores[0], whole.variants[2].scores[0]]


def test_a_run_and_a_recipe_are_bases_too(table, tmp_path):
    out, found = table
    run = out / "runs" / "base" / "seed0"
    for place, base in enumerate((run, run / "recipe.json")):
        again = ablate(base, out=tmp_path / str(place), drop=("weight_decay",), seeds=(1,), quiet=True)
        assert again.rows > 0 and again.variants[0].parameters == found.variants[0].parameters
        plan = json.loads((tmp_path / str(place) / "plan.json").read_text())
        assert plan["base"]["learning_rate"] == 0.02 and plan["base"]["dropout"] == 0.1 and plan["split_seed"] == 0


def test_one_augmentation_is_dropped_by_its_name():
    from zoo import registry
    from zoo.evaluate.ablation import _without

    recipe, entry = Recipe("lenet", "digits", augment=("shift", "rotate")), registry.entry("lenet")
    assert _without("shift", recipe, entry) == {"augment": ("rotate",)}
    assert _without("augment", recipe, entry) == {"augment": ()}
    with pytest.raises(ValueError, match="dropout is 0\\.0 in the base already"):
        _without("dropout", recipe, entry)
    with pytest.raises(TypeError, match="nothing called 'augmnt' to drop from 'lenet'\\. Did you mean 'augment'"):
        _without("augmnt", recipe, entry)
    with pytest.raises(ValueError, match="cannot be turned off; say what it should be"):
        _without("width", recipe, entry)


def test_what_makes_no_sense_is_refused_before_any_training(table, tmp_path):
    out, _ = table
    free = dict(out=tmp_path / "none", quiet=True)
    cases = [
        (dict(free), ValueError, "an ablation needs a variant"),
        (dict(free, variants={"same": {"epochs": 60}}), ValueError, "is the base itself"),
        (dict(free, variants={"x": {"learning_rat": 1}}), TypeError, "Did you mean 'learning_rate'"),
        (dict(free, variants={"x": {"seed": 1}}), TypeError, "cannot change seed"),
        (dict(free, drop=("weight_decay",), seeds=0), ValueError, "seeds must be"),
        (dict(free, drop=("weight_decay",), split="train"), ValueError, "split must be"),
        (dict(out=out, drop=("weight_decay",), quiet=True), ValueError, "another base .*epochs 3 and now 60"),
        (dict(out=out, variants={"slow": {"epochs": 1}}, quiet=True, **QUICK), ValueError, "give it another name"),
        (dict(out=out / "runs", drop=("weight_decay",)), FileExistsError, "something else than an ablation"),
    ]
    for given, error, message in cases:
        with pytest.raises(error, match=message):
            ablate("mlp", "digits", **given)
    assert not (tmp_path / "none").exists()


def test_intervals_by_hand():
    rows = np.random.default_rng(0).normal(0.1, 0.02, 4000)
    # three seeds with mean 0.1 and variance 0.0004: error sqrt(0.0004 / 3 + 0.02 ** 2), 2 * (1 + 3) ** 2 = 32 degrees
    low, high, p = _interval(np.array([0.08, 0.1, 0.12]), rows)
    error = np.sqrt(0.0004 / 3 + 0.0004)
    assert (high - low) / 2 == pytest.approx(2.037 * error, rel=0.03) and (low + high) / 2 == pytest.approx(0.1)
    assert 1e-4 < p < 1e-3
    assert _interval(np.array([0.1]), rows)[1] == pytest.approx(0.1 + 1.96 * 0.02, rel=0.03)
    assert _interval(np.zeros(3), np.zeros(10)) == (0, 0, 1)


def test_intervals_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(1)
    hits, alarms = 0, 0
    for _ in range(1000):
        common = random.normal(0, 0.02)  # of the rows, alike for all seeds
        values = 0.05 + common + random.normal(0, 0.03, 3)
        low, high, _ = _interval(values, values.mean() + random.normal(0, 0.02, 200))
        hits += low <= 0.05 <= high
        alarms += _interval(values - 0.05, values.mean() + random.normal(0, 0.02, 200))[2] < 0.05
    assert 0.93 < hits / 1000 <= 1 and alarms / 1000 < 0.07


def test_holm_by_hand():
    assert _holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


def test_the_data_may_be_given_as_it_is(tmp_path):
    splits = data.load("iris")
    small = dataclasses.replace(splits, name="mine")
    found = ablate(
        "logistic_regression", small, out=tmp_path / "out", drop=("weight_decay",), seeds=1, quiet=True, epochs=2
    )
    assert found.data == "mine" and len(found.variants) == 2
