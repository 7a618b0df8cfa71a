"""Conformal sets hold the truth as often as they promise, on data made by hand and at random."""

import numpy as np
import pytest

from serve import sets
from zoo.evaluate import conformal


def answers(rows, random, classes=6):
    """Probabilities that are true of the labels drawn from them."""
    probabilities = random.dirichlet(np.full(classes, 0.6), rows)
    return (random.random((rows, 1)) > np.cumsum(probabilities, axis=1)).sum(axis=1), probabilities


def test_the_threshold_is_the_order_statistic_of_the_paper():
    y, probabilities = np.zeros(9, int), np.stack([np.arange(1, 10) / 10, 1 - np.arange(1, 10) / 10], axis=1)
    assert conformal.fit(y, probabilities, level=0.9, method="lac").threshold == pytest.approx(0.9)  # 9th of 9
    assert conformal.fit(y, probabilities, level=0.5, method="lac").threshold == pytest.approx(0.5)  # 5th of 9
    assert (conformal.needed(0.9), conformal.needed(0.95), conformal.needed(0.99)) == (9, 19, 99)


def test_scores_by_hand():
    row = np.array([[0.2, 0.5, 0.3]])
    np.testing.assert_allclose(conformal.scores(row, "lac"), [[0.8, 0.5, 0.7]])
    np.testing.assert_allclose(conformal.scores(row, "aps"), [[0.9, 0.25, 0.65]])
    np.testing.assert_allclose(conformal.scores(row, "raps", penalty=0.1, free=1), [[1.1, 0.25, 0.75]])


@pytest.mark.parametrize("method", ["lac", "aps", "raps", "residual"])
def test_coverage_is_what_was_promised(method):
    """Over many splits the mean coverage is ceil((n + 1) level) / (n + 1), Angelopoulos & Bates 2021, section 3.2."""
    random, held, repeats, level = np.random.default_rng(0), 99, 300, 0.85
    found = []
    for _ in range(repeats):
        if method == "residual":
            y = random.normal(size=held + 200)
            values = (y + random.standard_t(3, held + 200))[:, None]
        else:
            y, values = answers(held + 200, random)
        fitted = conformal.fit(y[:held], values[:held], level=level, method=method)
        found.append(conformal.measure(fitted, y[held:], values[held:]).coverage.score)
    error = np.std(found) / np.sqrt(repeats)
    assert abs(np.mean(found) - level) < 4 * error + 0.005  # a set is never empty, which adds a little
    assert error < 0.004


def test_sets_are_never_empty_and_grow_with_the_level():
    random = np.random.default_rng(1)
    y, probabilities = answers(2000, random)
    sizes = []
    for level in (0.3, 0.8, 0.99):
        fitted = conformal.fit(y[:1000], probabilities[:1000], level=level)
        inside = fitted.sets(probabilities[1000:])
        assert inside[np.arange(1000), probabilities[1000:].argmax(axis=1)].all()
        sizes.append(inside.sum(axis=1).mean())
    assert sizes == sorted(sizes) and sizes[0] < 1.2 < sizes[2]
    measured = conformal.measure(fitted, y[1000:], probabilities[1000:])
    assert sum(measured.sizes.values()) == 1000 and measured.size == pytest.approx(sizes[2])
    assert measured.coverage.low < 0.99 < measured.coverage.high + 0.01


def test_a_penalty_makes_large_sets_smaller():
    y, probabilities = answers(4000, np.random.default_rng(2), classes=30)
    large, small = (
        conformal.fit(y, probabilities, level=0.9, method=method, penalty=0.05, free=2).sets(probabilities).sum(axis=1)
        for method in ("aps", "raps")
    )
    assert small.max() < large.max()


def test_intervals_are_the_value_and_the_threshold():
    y = np.arange(19.0)
    fitted = conformal.fit(y, y[:, None] + 2, level=0.95, method="residual")
    assert fitted.threshold == 2
    low, high = fitted.interval(np.array([[10.0]]))
    assert (low, high) == (8, 12)
    measured = conformal.measure(fitted, y, y[:, None])
    assert measured.size == 4 and measured.coverage.score == 1
    assert measured.coverage.low == pytest.approx(0.025 ** (1 / 19))  # Clopper & Pearson, 19 of 19


@pytest.mark.parametrize("limit", [0.0, 0.4, 0.5, 0.9, 2.0])
def test_the_server_has_the_same_rule(limit):
    _, probabilities = answers(200, np.random.default_rng(3))
    probabilities[0] = 1 / 6  # all tied
    expected = conformal.Conformal("aps", 0.9, limit).sets(probabilities)
    assert (sets.members(probabilities, limit) == expected).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(method="naive"), "method must be one of lac, aps, raps, residual, got 'naive'"),
        (dict(level=1.0), r"level must be a share in \(0, 1\), got 1.0"),
        (dict(level=0.99), "a level of 0.99 needs at least 99 validation rows, got 20"),
        (
            dict(method="residual"),
            r"method 'residual' does not fit answers of shape \(20, 2\); give 'lac', 'aps' or 'raps'",
        ),
    ],
)
def test_bad_requests_are_told(given, message):
    with pytest.raises(ValueError, match=message):
        conformal.fit(np.zeros(20, int), np.full((20, 2), 0.5), **given)
