"""Evidence and intervals that may be looked at after every outcome."""

import math
import random

import pytest

from serve.evidence import Arm, Bet, differs, exceeds, interval


def ever(runs, count, alpha, rates, share, seed=0):
    """Share of runs in which a bet, looked at after every outcome, ever calls two arms different."""
    draw, called = random.Random(seed).random, 0
    for _ in range(runs):
        bet = Bet(share, Arm(), Arm())
        for number in range(count):
            second = draw() < share
            bet.add(second, float(draw() < rates(number)[second]))
        called += bet.p <= alpha
    return called / runs


@pytest.mark.parametrize(
    ("rates", "share"),
    [
        (lambda number: (0.5, 0.5), 0.5),
        (lambda number: (0.01, 0.01), 0.1),  # where a normal approximation fails
        (lambda number: (0.1, 0.1), 0.9),
        (lambda number: (0.1 + 0.8 * (number % 400 > 200),) * 2, 0.3),  # day and night
    ],
    ids=["even", "rare", "mostly treated", "changing"],
)
def test_looking_after_every_outcome_calls_equal_arms_different_no_more_often_than_alpha(rates, share):
    alpha, runs = 0.1, 600
    assert ever(runs, 600, alpha, rates, share) <= alpha + 2.5 * math.sqrt(alpha * (1 - alpha) / runs)


def test_a_fixed_size_test_looked_at_that_often_calls_them_different_far_too_often():
    """The same harness finds the usual z-test out, so it can tell."""
    draw, called, runs = random.Random(0).random, 0, 200
    for _ in range(runs):
        counts, sums = [0, 0], [0, 0]
        for _ in range(600):
            second = draw() < 0.5
            counts[second] += 1
            sums[second] += draw() < 0.5
            rate = sum(sums) / sum(counts)
            if min(counts) > 10 and 0 < rate < 1:
                error = math.sqrt(rate * (1 - rate) * (1 / counts[0] + 1 / counts[1]))
                if abs(sums[0] / counts[0] - sums[1] / counts[1]) > 1.645 * error:
                    called += 1
                    break
    assert called / runs > 0.3


def test_a_difference_is_found_and_sooner_if_it_is_larger():
    assert ever(60, 1500, 0.05, lambda number: (0.5, 0.65), 0.5) > 0.9
    assert ever(60, 150, 0.05, lambda number: (0.5, 0.9), 0.5) > 0.9


def test_outcomes_between_zero_and_one_are_bets_as_well():
    draw = random.Random(0)
    same, other = Bet(0.5, Arm(), Arm()), Bet(0.5, Arm(), Arm())
    for _ in range(3000):
        second = draw.random() < 0.5
        same.add(second, draw.random())
        other.add(second, draw.random() ** (0.7 if second else 1))
    assert same.p > 0.05 > other.p
    assert other.difference == pytest.approx(1 / 1.7 - 0.5, abs=0.03)


@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_an_interval_holds_the_mean_at_every_moment_at_once(rate):
    draw, missed, runs, alpha = random.Random(1).random, 0, 150, 0.1
    for _ in range(runs):
        arm, out = Arm(), False
        for number in range(1, 401):
            arm.count += 1
            arm.total += draw() < rate
            if number % 8 == 0:
                low, high = interval(arm, alpha)
                out |= not low <= rate <= high
        missed += out
    assert missed / runs <= alpha + 2.5 * math.sqrt(alpha * (1 - alpha) / runs)


def test_an_interval_closes_in_on_the_mean():
    assert interval(Arm(), 0.05) == (0.0, 1.0)
    assert interval(Arm(100, 0.0), 0.05)[0] == 0.0
    widths = [high - low for low, high in (interval(Arm(count, count / 4), 0.05) for count in (10, 100, 10_000))]
    assert widths[0] > 2 * widths[1] > 10 * widths[2]
    low, high = interval(Arm(10_000, 2500.0), 0.05)
    assert low < 0.25 < high


def test_evidence_for_a_rollback_is_strong_where_it_is_plain_and_absent_where_there_is_none():
    assert differs(Arm(20, 20), Arm(1000, 0)) > math.log(1e6)
    assert differs(Arm(100, 5), Arm(10_000, 500)) == 0.0
    assert differs(Arm(), Arm(10, 5)) == 0.0
    assert exceeds(60, 100, 0.05) > math.log(1e6)
    assert exceeds(5, 100, 0.05) == 0.0
