"""Certificates against truths: the bound against scipy's, the radius against the margin of a linear classifier."""

import numpy as np
import pytest
from scipy import stats

from zoo.data import Data, Split
from zoo.data.signature import ImagePreprocess, Signature, TablePreprocess
from zoo.evaluate import robustness
from zoo.evaluate.report import Candidate
from zoo.evaluate.smoothing import ABSTAIN, Smoothed, largest_radius, lower_bound

STD = np.array([0.5, 2.0, 10.0])
TABLE = Signature("classification", ("one", "two"), TablePreprocess(("a", "b", "c"), (1.0, -2.0, 30.0), tuple(STD)))
IMAGES = Signature("image-classification", ("one", "two"), ImagePreprocess(4, 4, (100.0,), (50.0,)))
WEIGHTS = np.array([1.5, -2.0, 0.7])


def points(rows=80):
    random = np.random.default_rng(0)
    return {"numbers": (random.normal(size=(rows, 3)) * STD + [1, -2, 30]).astype(np.float32)}


def margins(x):
    """Distance of each row from the border between the classes, in standard deviations; below 0 for class one."""
    return TABLE.inputs(x).astype(np.float64) @ WEIGHTS / np.linalg.norm(WEIGHTS)


def linear(x):
    return np.eye(2)[(margins(x) > 0).astype(int)]


@pytest.mark.parametrize(("hits", "draws", "alpha"), [(0, 50, 0.01), (1, 50, 0.01), (37, 50, 0.001), (50, 50, 0.05)])
def test_the_bound_is_that_of_clopper_and_pearson(hits, draws, alpha):
    theirs = stats.binomtest(hits, draws, alternative="greater").proportion_ci(1 - alpha, method="exact").low
    assert lower_bound(hits, draws, alpha) == pytest.approx(theirs, abs=1e-12)
    assert stats.binom.sf(hits - 1, draws, lower_bound(hits, draws, alpha)) == pytest.approx(alpha if hits else 1.0)


def test_no_certificate_of_a_linear_classifier_is_larger_than_its_margin():
    x, sigma = points(), 0.5
    found = Smoothed(linear, TABLE, sigma).certify(x, draws=2000, first=50, alpha=0.001)
    margin = margins(x)
    certain = found.classes != ABSTAIN
    assert certain.mean() > 0.9
    np.testing.assert_array_equal(found.classes[certain], (margin > 0)[certain])
    assert np.all(found.radii <= np.abs(margin))
    # smoothing a linear classifier changes nothing, so all that is lost is lost by counting: Phi(margin / sigma)
    expected = stats.norm.cdf(np.abs(margin) / sigma)
    near = (np.abs(margin) < 1.5 * sigma) & certain
    assert near.sum() > 20
    assert np.abs(found.bounds - expected)[near].max() < 0.07
    assert np.corrcoef(found.radii[near], np.abs(margin)[near])[0, 1] > 0.98


def test_a_moved_row_keeps_its_smoothed_answer_within_its_radius():
    x, sigma = points(12), 0.5
    smoothed = Smoothed(linear, TABLE, sigma)
    found = smoothed.certify(x, draws=1000, first=50)
    certain = found.classes != ABSTAIN
    assert certain.sum() > 8
    worst = -np.sign(margins(x))[:, None] * WEIGHTS / np.linalg.norm(WEIGHTS)  # straight to the border
    for share, same in ((0.9, True), (1.6, False)):
        far = {"numbers": (x["numbers"] + share * found.radii[:, None] * worst * STD).astype(np.float32)}
        answers = smoothed.answer(far, draws=4000)
        kept = (answers == found.classes) | (answers == ABSTAIN)
        assert kept[certain].all() == same


def test_missing_numbers_stay_missing_under_noise():
    x = points(1)
    x["numbers"][0, 1] = np.nan
    seen = []

    def predict(raw):
        seen.append(raw["numbers"])
        return np.eye(2)[np.zeros(len(raw["numbers"]), int)]

    Smoothed(predict, TABLE, 0.5).counts(x, 4000, np.random.default_rng(0))
    noisy = np.concatenate(seen)
    assert np.isnan(noisy[:, 1]).all()
    np.testing.assert_allclose(noisy[:, [0, 2]].std(axis=0) / STD[[0, 2]], 0.5, rtol=0.05)


def test_noisy_images_are_such_as_a_client_sends():
    def predict(raw):
        images = raw["image"]
        assert images.dtype == np.uint8 and images.shape[1:] == (4, 4, 1)
        seen.append(images)
        return np.eye(2)[(images.mean(axis=(1, 2, 3)) > 128).astype(int)]

    seen = []
    x = {"image": np.full((3, 4, 4, 1), [[[[70]]], [[[128]]], [[[250]]]], np.uint8)}
    found = Smoothed(predict, IMAGES, 20.0, batch=64).certify(x, draws=500, first=20, alpha=0.01)
    assert max(map(len, seen)) == 64
    assert np.concatenate(seen)[:, 0, 0, 0].std() > 60
    assert list(found.classes) == [0, ABSTAIN, 1]
    assert found.radii[1] == 0
    np.testing.assert_allclose(found.radii[[0, 2]], largest_radius(20.0, 500, 0.01))


def test_who_always_answers_alike_gets_the_largest_radius_and_who_tosses_coins_none():
    x = points(20)
    always = Smoothed(lambda raw: np.eye(2)[np.ones(len(raw["numbers"]), int)], TABLE, 1.0)
    found = always.certify(x, draws=100, first=10)
    np.testing.assert_allclose(found.radii, stats.norm.ppf(0.001 ** (1 / 100)))  # all 100 of 100
    assert (always.answer(x, draws=100) == 1).all()
    random = np.random.default_rng(5)
    coin = Smoothed(lambda raw: random.random((len(raw["numbers"]), 2)), TABLE, 1.0)
    assert (coin.certify(x, draws=400, first=50).classes == ABSTAIN).all()
    assert (coin.answer(x, draws=400) == ABSTAIN).all()


def test_the_table_counts_rows_that_are_right_and_certain():
    x = points(60)
    y = (margins(x) > 0).astype(np.int64)
    y[:6] = 1 - y[:6]
    data = Data("made", TABLE, *[Split(x, y)] * 3, "test", "none", "")
    candidate = Candidate(lambda raw, _: linear(raw), data, "linear")
    found = robustness.certified(candidate, sigmas=(0.25, 0.5), radii=(0, 0.2, 0.4), draws=300, first=30)
    single = Smoothed(linear, TABLE, 0.5).certify(x, 300, 30)
    for radius in (0, 0.2, 0.4):
        hits = int(np.sum((single.classes == y) & (single.radii >= radius)))
        assert found.score("sigma 0.5", radius) == robustness.wilson(hits, 60)
    assert found.clean.score == 0.9
    assert found.settings["abstained"]["0.5"] == np.mean(single.classes == ABSTAIN)
    curve = [point.score.score for point in found.curve("sigma 0.25")]
    assert curve == sorted(curve, reverse=True) and curve[0] <= 0.9
    usual = robustness.certified(candidate, draws=300, first=30, rows=10)
    assert usual.kinds == ("sigma 0.5",) and len(usual.points) == 9
    assert usual.points[-1].strength == pytest.approx(largest_radius(0.5, 300, 0.001))


@pytest.mark.parametrize(
    ("signature", "settings", "message"),
    [
        (Signature("regression", ("price",), TABLE.preprocess), {"sigma": 1.0}, "certifies classes"),
        (TABLE, {"sigma": 0.0}, "sigma must be above 0"),
        (Signature("classification", ("a", "b"), TablePreprocess((), (), (), {"c": ("x",)})), {"sigma": 1.0}, "none"),
    ],
)
def test_what_cannot_be_smoothed_is_refused(signature, settings, message):
    with pytest.raises(ValueError, match=message):
        Smoothed(linear, signature, **settings)


def test_counts_out_of_range_are_refused():
    with pytest.raises(ValueError, match="draws must be at least 1 and alpha in"):
        Smoothed(linear, TABLE, 1.0).certify(points(1), draws=0)
    with pytest.raises(ValueError, match="got draws=10, alpha"):
        Smoothed(linear, TABLE, 1.0).answer(points(1), draws=10, alpha=0.7)
