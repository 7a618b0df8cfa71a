"""Attacks against truths that can be computed by hand: linear models, whose worst case is known exactly."""

import keras
import numpy as np
import pytest
import robustness_check

import zoo
from zoo.data.signature import ImagePreprocess, Signature, TablePreprocess
from zoo.evaluate import attacks, masking, robustness, transformations
from zoo.evaluate.robustness import Point, wilson

SIDE = 5
IMAGES = Signature("image-classification", ("one", "two"), ImagePreprocess(SIDE, SIDE, (100.0,), (50.0,)))
TABLE = Signature(
    "classification",
    ("one", "two"),
    TablePreprocess(("a", "b", "c"), (1.0, -2.0, 30.0), (0.5, 2.0, 10.0), {"colour": ("red", "blue")}),
)


def linear(signature, scale=1.0, seed=0):
    """A linear classifier of two classes, with the difference of its weights and of its biases."""
    model = zoo.get("logistic_regression", input_shape=signature.preprocess.shape, classes=2)
    random = np.random.default_rng(seed)
    kernel, bias = (scale * random.normal(size=weight.shape).astype(np.float32) for weight in model.get_weights())
    model.set_weights([kernel, bias])
    return model, (kernel[:, 0] - kernel[:, 1]).astype(np.float64), float(bias[0] - bias[1])


def images(low=0, high=256, rows=60, seed=1):
    return {"image": np.random.default_rng(seed).integers(low, high, (rows, SIDE, SIDE, 1)).astype(np.uint8)}


def rows_of_table(rows=40):
    random = np.random.default_rng(2)
    numbers = (random.normal(size=(rows, 3)) * [0.5, 2, 10] + [1, -2, 30]).astype(np.float32)
    numbers[::7, 1] = np.nan
    return {"numbers": numbers, "categories": random.choice(["red", "blue", "green", ""], (rows, 1))}


def lead(signature, x, weights, bias, y):
    """How far the true class is ahead of the other, in logits."""
    inputs = signature.inputs(x).reshape(len(y), -1).astype(np.float64)
    return (inputs @ weights + bias) * np.where(y == 0, 1, -1)


@pytest.mark.parametrize("method", attacks.WHITE_BOX)
@pytest.mark.parametrize("epsilon", [3.0, 40.0])
def test_every_attack_finds_the_worst_case_of_a_linear_model(method, epsilon):
    model, weights, bias = linear(IMAGES)
    x = images()
    y = (IMAGES.inputs(x).reshape(60, -1) @ weights + bias < 0).astype(np.int64)
    found = attacks.Attacker(model, IMAGES)(x, y, method, epsilon)
    pixels = x["image"].reshape(60, -1).astype(np.float64)
    against = np.where(y == 0, 1, -1)[:, None] * weights / 50  # what one pixel value adds to the lead
    room = np.minimum(np.where(against > 0, pixels, 255 - pixels), epsilon)
    by_hand = lead(IMAGES, x, weights, bias, y) - (np.abs(against) * room).sum(axis=1)
    np.testing.assert_allclose(lead(IMAGES, found.raw, weights, bias, y), by_hand, atol=1e-4)
    np.testing.assert_array_equal(found.wrong, by_hand < 0)
    np.testing.assert_allclose(found.after, np.log1p(np.exp(-by_hand)), atol=1e-4)
    np.testing.assert_allclose(found.before, np.log1p(np.exp(-lead(IMAGES, x, weights, bias, y))), atol=1e-4)


def test_the_table_of_a_linear_model_is_the_one_computed_by_hand():
    model, weights, bias = linear(IMAGES)
    x = images(rows=200)
    y = (IMAGES.inputs(x).reshape(200, -1) @ weights + bias < 0).astype(np.int64)
    data = zoo.data.Data("made", IMAGES, *[zoo.data.Split(x, y)] * 3, "test", "none", "")
    found = robustness.attacked(model, data, epsilons=(2, 8, 24))
    pixels = x["image"].reshape(200, -1).astype(np.float64)
    against = np.where(y == 0, 1, -1)[:, None] * weights / 50
    for epsilon in (2, 8, 24):
        room = np.minimum(np.where(against > 0, pixels, 255 - pixels), epsilon)
        right = int(np.sum(lead(IMAGES, x, weights, bias, y) > (np.abs(against) * room).sum(axis=1)))
        for kind in ("fgsm", "pgd", "margin", "worst"):
            assert found.score(kind, epsilon) == wilson(right, 200)
        assert found.score("random", epsilon).score >= right / 200
    assert found.findings == () and found.clean.score == 1
    assert found.curve("pgd")[-1].score.score < 0.5


@pytest.mark.parametrize("method", attacks.WHITE_BOX)
def test_the_worst_change_of_given_length_follows_the_weights(method):
    model, weights, bias = linear(TABLE)
    x = rows_of_table()
    y = (TABLE.inputs(x) @ weights + bias < 0).astype(np.int64)
    found = attacks.Attacker(model, TABLE, "l2")(x, y, method, 0.3)
    there = ~np.isnan(x["numbers"])
    length = np.sqrt((there * weights[:3] ** 2).sum(axis=1))  # of the gradient over numbers that are there
    np.testing.assert_allclose(
        lead(TABLE, found.raw, weights, bias, y), lead(TABLE, x, weights, bias, y) - 0.3 * length, atol=1e-4
    )
    np.testing.assert_array_equal(np.isnan(found.raw["numbers"]), ~there)
    np.testing.assert_array_equal(found.raw["categories"], x["categories"])


@pytest.mark.parametrize("method", attacks.METHODS)
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 7.5), ("l2", 33.0)])
def test_attacked_images_stay_within_the_limit_and_are_whole_pixels(method, norm, epsilon):
    model, *_ = linear(IMAGES)
    x = images()
    y = np.arange(60) % 2
    if method == "random":
        found = attacks.blind(lambda raw: np.asarray(model(IMAGES.inputs(raw))), IMAGES, x, y, epsilon, norm=norm)
    else:
        found = attacks.Attacker(model, IMAGES, norm)(x, y, method, epsilon, steps=5)
    assert found.raw["image"].dtype == np.uint8
    move = found.raw["image"].reshape(60, -1).astype(float) - x["image"].reshape(60, -1)
    size = np.abs(move).max(axis=1) if norm == "linf" else np.linalg.norm(move, axis=1)
    assert size.max() <= epsilon
    assert size.max() > 0.7 * epsilon  # the limit is used


def test_epsilon_counts_standard_deviations_of_a_table():
    model, weights, bias = linear(TABLE)
    x = rows_of_table()
    y = (TABLE.inputs(x) @ weights + bias < 0).astype(np.int64)
    found = attacks.Attacker(model, TABLE)(x, y, "fgsm", 0.25)
    move = np.abs(found.raw["numbers"] - x["numbers"]) / [0.5, 2.0, 10.0]
    np.testing.assert_allclose(move[~np.isnan(move)], 0.25, atol=1e-5)


def test_an_attacker_who_knows_the_transformation_finds_its_worst_case():
    """One bit a pixel: a pixel's bit can be turned where it is near enough to the threshold, and nowhere else."""
    model, weights, bias = linear(IMAGES)
    x, epsilon = images(), 40
    transform = transformations.parse("bits:1")
    y = (IMAGES.inputs(transform(x)).reshape(60, -1) @ weights + bias < 0).astype(np.int64)
    aware = attacks.Attacker(model, IMAGES, transform=transform)(x, y, "margin", epsilon, steps=10)
    pixels = x["image"].reshape(60, -1).astype(np.int64)
    ends = [np.clip(pixels + move, 0, 255) for move in (-epsilon, epsilon)]
    reach = [transform({"image": end.reshape(60, SIDE, SIDE, 1).astype(np.uint8)}) for end in ends]
    reach = np.stack([IMAGES.inputs(raw).reshape(60, -1) for raw in reach])
    sign = np.where(y == 0, 1, -1)[:, None]
    by_hand = (reach * sign * weights).min(axis=0).sum(axis=1) + sign[:, 0] * bias
    np.testing.assert_allclose(lead(IMAGES, transform(aware.raw), weights, bias, y), by_hand, atol=1e-3)


def test_steps_and_restarts_find_no_less_than_one_step():
    model = robustness_check.network()
    x, y = robustness_check.rows()
    attack = attacks.Attacker(model, robustness_check.SIGNATURE)
    for epsilon in (8.0, 32.0):
        one, many, more = (
            attack(x, y, method, epsilon, restarts=restarts)
            for method, restarts in (("fgsm", 1), ("pgd", 1), ("pgd", 3))
        )
        assert one.before.mean() < one.after.mean() < many.after.mean()
        assert np.all(more.after[~more.wrong] >= more.before[~more.wrong] - 1e-6)
        assert more.wrong.mean() >= many.wrong.mean() >= one.wrong.mean() > 0


def test_values_of_a_regression_are_driven_away():
    signature = Signature("regression", ("price",), TABLE.preprocess, target_mean=5.0, target_std=2.0)
    model = zoo.get("mlp", input_shape=(5,), classes=1, width=(8,))
    x = rows_of_table()
    y = np.random.default_rng(3).normal(5, 2, 40).astype(np.float32)
    data = zoo.data.Data("made", signature, *[zoo.data.Split(x, y)] * 3, "test", "none", "")
    found = robustness.attacked(model, data, epsilons=(0.1, 0.5))
    assert found.metric == "r2" and found.kinds == ("random", "fgsm", "pgd")
    for kind in ("fgsm", "pgd"):
        assert found.score(kind, 0.5).score < found.score(kind, 0.1).score < found.clean.score
    with pytest.raises(ValueError, match="a margin is between classes"):
        robustness.attacked(model, data, methods=("margin",))


def saturated():
    """A linear model so sure of itself that its loss has no gradient."""
    model, weights, bias = linear(IMAGES, scale=1000.0)
    x = images(rows=100)
    y = (IMAGES.inputs(x).reshape(100, -1) @ weights + bias < 0).astype(np.int64)
    return model, zoo.data.Data("made", IMAGES, *[zoo.data.Split(x, y)] * 3, "test", "none", "")


def test_a_saturated_softmax_is_told_and_does_not_stop_the_margin():
    found = robustness.attacked(*saturated(), epsilons=(16,), methods=("pgd", "margin"))
    assert found.score("pgd", 16).score > found.score("margin", 16).score + 0.2
    assert found.score("worst", 16) == found.score("margin", 16)
    assert any("the softmax is saturated" in str(finding) for finding in found.findings)


def test_a_model_without_gradient_is_told():
    inputs = keras.Input((SIDE, SIDE, 1))
    steps = keras.ops.round(4 * inputs) / 4
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(steps)))
    x = images(rows=50)
    y = np.asarray(model(IMAGES.inputs(x))).argmax(axis=1)
    data = zoo.data.Data("made", IMAGES, *[zoo.data.Split(x, y)] * 3, "test", "none", "")
    found = robustness.attacked(model, data, epsilons=(8, 64), methods=("random", "fgsm", "pgd"))
    told = "\n".join(map(str, found.findings))
    assert "fgsm: at epsilon 8 the mean loss goes from" in told
    assert "with no limit at all it leaves" in told
    assert told in str(found).replace("doubt: ", "")


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"random": (0.5, 0.2), "pgd": (0.8, 0.2)}, "random changes do more harm than the gradient: at epsilon 1"),
        ({"fgsm": (0.9, 0.1), "pgd": (0.9, 0.3)}, "one step does more harm than many: at epsilon 2"),
        ({"pgd": (0.3, 0.6)}, "epsilon 2 leaves 0.600 right, the smaller 1 only 0.300"),
        ({"random": (0.9, 0.8), "fgsm": (0.8, 0.3), "pgd": (0.7, 0.1), "margin": (0.7, 0.11)}, None),
    ],
)
def test_doubts_about_attacks(scores, message):
    points = {
        kind: [Point(kind, strength, wilson(round(share * 100), 100)) for strength, share in enumerate(shares, 1)]
        for kind, shares in scores.items()
    }
    found = masking.doubts(points, 100)
    assert [message in str(finding) for finding in found] == [True] if message else found == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "cw"}, "attack must be one of fgsm, pgd, margin, random, got 'cw'"),
        ({"epsilon": 0.03}, "8/255 in a paper is epsilon=8 here"),
        ({"epsilon": -1}, "epsilon must be above 0"),
        ({"steps": 0}, "steps and restarts must be at least 1"),
        ({"method": "random"}, "random changes need no gradient"),
    ],
)
def test_what_is_no_attack_is_refused(settings, message):
    model, *_ = linear(IMAGES)
    with pytest.raises(ValueError, match=message):
        attacks.Attacker(model, IMAGES)(images(), np.zeros(60, int), **{"epsilon": 8.0, **settings})
