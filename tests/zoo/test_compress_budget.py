from pathlib import Path

import pytest

from zoo.compress.budget import Limits, Point, front, next_share


def measured(share, precision="fp32", fragile=0.0):
    """A model whose latency and size follow its arithmetic; below a share of `fragile` it loses its accuracy."""
    quick = {"fp32": 1.0, "int8": 0.4}[precision]
    score = 0.9 if share >= fragile else 0.5
    return Point(share, precision, score, 0.9 - score, int(1e6 * share * quick), 10 * share * quick, Path("x.onnx"))


def search(limits, fragile=0.0, trials=12, precisions=("fp32",)):
    """Points that a search goes through."""
    points = [measured(1.0, precision, 0.0) for precision in precisions]
    for _ in range(trials):
        share = next_share(points, limits)
        if share is None:
            break
        points += [measured(share, precision, fragile) for precision in precisions]
    return points


def test_the_first_guess_follows_from_the_excess_and_fits():
    points = search(Limits(0.01, ms=4.0))
    assert points[1].share == pytest.approx(0.38)
    assert Limits(0.01, ms=4.0).holds(points[1])


def test_nothing_is_trained_when_the_original_fits_in_some_form():
    assert len(search(Limits(0.01, ms=4.5), precisions=("fp32", "int8"))) == 2


def test_a_model_that_loses_its_accuracy_is_made_larger_until_it_fits_or_the_shares_meet():
    limits = Limits(0.01, ms=5.0)
    shares = [point.share for point in search(limits, fragile=0.3)]
    assert limits.holds(measured(shares[1], fragile=0.3))
    points = search(limits, fragile=0.6)  # what keeps the score is too slow
    assert not any(limits.holds(point) for point in points)
    lossless = min(p.share for p in points if p.drop == 0)
    lossy = max(p.share for p in points if p.drop > 0)
    assert 0.6 <= lossless < 1.25 * lossy < 1.25 * 0.6


def test_without_size_and_latency_the_search_goes_as_small_as_the_drop_allows():
    kept = [p for p in search(Limits(0.01), fragile=0.13) if p.drop == 0]
    assert 0.13 <= min(p.share for p in kept) < 0.13 * 1.25


def test_the_front_holds_what_nothing_beats():
    good, small = measured(1.0), measured(0.5)
    worse = Point(0.7, "fp32", 0.5, 0.4, 2_000_000, 20.0, Path("x.onnx"))
    assert front([good, small, worse]) == [small]  # equal score, smaller and faster
    better = Point(1.0, "fp32", 0.95, -0.05, 1_000_000, 10.0, Path("x.onnx"))
    assert front([better, small, worse]) == [better, small]
    assert front([small, small]) == [small, small]
