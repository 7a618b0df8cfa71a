import json
import logging
import math
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from small_bundles import NUMBERS, VALUE, value_graph, write_bundle, write_image
from typer.testing import CliRunner
from werkzeug.serving import make_server

from serve import state as states
from serve.app import create_app
from serve.errors import RequestError
from serve.evidence import Arm, Bet, differs, exceeds, interval
from serve.guard import Guard
from serve.keys import KeyFile
from serve.rules import place_of
from serve.runtime import Store
from serve.traffic import Traffic
from zoo import remote

BOTH = ["1", "2"]
THREE = ["1", "2", "3"]


@pytest.fixture
def traffic():
    """Rules of model "digits", versions 1 and 2, kept nowhere; no thread of its own."""
    made = Traffic(seed=0, every=0)
    made.see("digits", BOTH)
    return made


def answer(traffic, version, count, *, failing=0, seconds=0.002, name="digits"):
    """Record `count` answers, of which the first `failing` are failures."""
    for number in range(count):
        status = 500 if number < failing else 200
        traffic.record(name, version, status=status, seconds=seconds, rows=1)


def events(traffic, name="digits"):
    return [event["event"] for event in traffic.history(name)][::-1]


# choosing


def test_the_latest_version_answers_and_a_pinned_one_before_it(traffic):
    assert traffic.choose("digits", BOTH) == ("2", None)
    traffic.pin("digits", "1")
    assert traffic.choose("digits", THREE) == ("1", None)
    traffic.clear("digits", "pin")
    assert traffic.choose("digits", THREE) == ("3", None)


@pytest.mark.parametrize("weight", [0.001, 0.1, 1 / 3, 0.5, 0.97, 1.0])
def test_a_canary_gets_its_share_exactly_at_every_moment(traffic, weight):
    traffic.canary("digits", "2", weight)
    got = 0
    for sent in range(1, 5001):
        got += traffic.choose("digits", BOTH)[0] == "2"
        assert abs(got - weight * sent) <= 2


def test_two_kinds_of_request_that_alternate_both_reach_the_canary(traffic):
    traffic.canary("digits", "2", 0.5)
    chosen = [traffic.choose("digits", BOTH)[0] for _ in range(2000)]
    assert 400 < chosen[::2].count("2") < 600


def test_a_client_stays_with_its_version_while_the_weight_grows(traffic):
    keys = [f"client {number}" for number in range(2000)]
    before = set()
    for weight in (0.05, 0.2, 0.8):
        traffic.canary("digits", "2", weight)
        chosen = {key for key in keys if traffic.choose("digits", BOTH, key)[0] == "2"}
        assert chosen == {key for key in keys if traffic.choose("digits", BOTH, key)[0] == "2"}
        assert before <= chosen
        assert len(chosen) / len(keys) == pytest.approx(weight, abs=4 * math.sqrt(weight * (1 - weight) / len(keys)))
        before = chosen


def test_places_of_keys_are_even_and_independent_between_rules():
    first, second = ([place_of(salt, str(key)) for key in range(4000)] for salt in ("a", "b"))
    assert sum(place < 0.5 for place in first) == pytest.approx(2000, abs=130)
    both = sum(a < 0.5 and b < 0.5 for a, b in zip(first, second, strict=True))
    assert both == pytest.approx(1000, abs=110)


def test_a_shadow_gets_its_share_of_copies_and_never_answers(traffic):
    traffic.pin("digits", "1")
    traffic.shadow("digits", "2", 0.25)
    chosen = [traffic.choose("digits", BOTH) for _ in range(1000)]
    assert {version for version, _ in chosen} == {"1"}
    assert 248 <= sum(shadow == "2" for _, shadow in chosen) <= 252
    traffic.clear("digits", "pin")
    assert traffic.choose("digits", BOTH) == ("2", None)  # it needs no copy of its own requests


def test_asking_for_the_default_counts_no_share(traffic):
    traffic.canary("digits", "2", 0.5)
    got = 0
    for sent in range(1, 201):
        assert traffic.default("digits", BOTH) == "1"
        got += traffic.choose("digits", BOTH)[0] == "2"
        assert abs(got - sent / 2) <= 2


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda t: t.pin("digits", "7"), "unknown_version", "no version '7'; it has 1, 2"),
        (lambda t: t.pin("digit", "1"), "unknown_model", "Did you mean 'digits'"),
        (lambda t: t.canary("digits", "2", 0), "bad_traffic", "above 0 and be at most 1"),
        (lambda t: t.canary("digits", "2", 1.5), "bad_traffic", "got 1.5"),
        (lambda t: t.canary("digits", "2", math.nan), "bad_traffic", "got nan"),
        (lambda t: t.experiment("digits", "1", "1"), "traffic_conflict", "name two versions"),
        (lambda t: t.experiment("digits", "1", "2", share=1), "bad_traffic", "between 0 and 1"),
        (lambda t: t.experiment("digits", "1", "2", alpha=0), "bad_traffic", "0.05 is usual"),
        (lambda t: t.experiment("digits", "1", "2", better="more"), "bad_traffic", "'higher' or 'lower'"),
        (lambda t: t.promote("digits"), "traffic_conflict", "neither a canary nor an experiment"),
        (lambda t: t.release("digits", "1"), "traffic_conflict", "held are: none"),
        (lambda t: t.clear("digits", "canari"), "bad_traffic", "Did you mean 'canary'"),
        (lambda t: t.watch("digits", slower=0.5), "bad_traffic", "slower=0.5 is out of range"),
        (lambda t: t.watch("digits", faster=2), "bad_traffic", "the settings are on, requests"),
        (lambda t: t.outcome("digits", 1, request="a", version="1"), "no_experiment", "no experiment"),
        (lambda t: t.outcome("digits", 7, request="a", version="1"), "bad_outcome", "got 7; scale it"),
    ],
)
def test_a_change_that_cannot_be_says_why_and_changes_nothing(traffic, change, code, message):
    before = traffic.describe("digits")
    with pytest.raises(RequestError, match=message) as caught:
        change(traffic)
    assert caught.value.code == code
    assert traffic.describe("digits") == before


def test_rules_that_contradict_each_other_are_refused(traffic):
    traffic.canary("digits", "2", 0.1)
    with pytest.raises(RequestError, match="a canary is running"):
        traffic.experiment("digits", "1", "2")
    with pytest.raises(RequestError, match="promote it"):
        traffic.pin("digits", "2")
    traffic.clear("digits")
    traffic.experiment("digits", "1", "2")
    with pytest.raises(RequestError, match="an experiment is running"):
        traffic.canary("digits", "2", 0.1)
    traffic.clear("digits")
    traffic.pin("digits", "2")
    with pytest.raises(RequestError, match="pinned, so it answers already"):
        traffic.canary("digits", "2", 0.1)


def test_a_cleared_canary_is_not_the_default_by_being_the_latest(traffic):
    traffic.canary("digits", "2", 0.1)
    traffic.clear("digits", "canary")
    assert traffic.choose("digits", BOTH) == ("1", None)
    assert "without promoting" in traffic.describe("digits")["held"]["2"]
    traffic.release("digits", "2")
    assert traffic.choose("digits", BOTH) == ("2", None)


def test_a_promoted_canary_is_the_default_and_follows_the_latest_again(traffic):
    traffic.canary("digits", "2", 0.1)
    assert traffic.promote("digits") == "2"
    assert traffic.describe("digits")["pin"] is None
    assert traffic.choose("digits", BOTH) == ("2", None)
    assert traffic.choose("digits", THREE) == ("3", None)
    traffic.canary("digits", "1", 0.1)
    traffic.promote("digits")
    assert traffic.choose("digits", THREE) == ("1", None)  # an older one has to be pinned


# taking back


def test_a_canary_that_fails_is_taken_back_with_the_reason_in_log_metric_and_history(traffic, caplog):
    traffic.canary("digits", "2", 0.2)
    answer(traffic, "1", 400, failing=2)
    answer(traffic, "2", 40, failing=0)
    with caplog.at_level(logging.WARNING, "serve"):
        for _ in range(40):
            answer(traffic, "2", 1, failing=1)
            if traffic.describe("digits")["canary"] is None:
                break
    assert traffic.describe("digits")["answers"]["2"]["failures"] < 12
    assert traffic.describe("digits")["shares"] == {"1": 1.0}
    (event,) = [event for event in traffic.history("digits") if event["event"] == "rolled_back"]
    assert event["version"] == "2"
    assert "requests failed, 2 of 400 at version 1 (p " in event["detail"]
    assert "digits version 2 is taken back, 1 answers" in caplog.text
    assert (
        "zoo_rollbacks",
        "counter",
        {"model": "digits", "version": "2", "cause": "failures"},
        1.0,
    ) in traffic.samples()
    assert ("zoo_version_held", "gauge", {"model": "digits", "version": "2"}, 1.0) in traffic.samples()


def test_a_version_that_just_arrived_is_compared_with_the_one_it_replaced(traffic):
    answer(traffic, "2", 300, failing=1)
    assert traffic.choose("digits", THREE) == ("3", None)
    assert traffic.describe("digits")["fresh"]["base"] == "2"
    answer(traffic, "3", 19, failing=19)
    assert traffic.choose("digits", THREE) == ("3", None)  # too few to judge
    answer(traffic, "3", 1, failing=1)
    assert traffic.choose("digits", THREE) == ("2", None)
    assert traffic.choose("digits", [*THREE, "4"]) == ("4", None)  # the next one has its own chance


def test_a_version_that_becomes_the_default_because_a_rule_ended_is_watched_too(traffic):
    traffic.pin("digits", "2")
    answer(traffic, "2", 200)
    assert traffic.choose("digits", THREE) == ("2", None)
    traffic.clear("digits", "pin")
    answer(traffic, "3", 20, failing=20)
    assert traffic.choose("digits", THREE) == ("2", None)
    traffic.release("digits", "3")
    answer(traffic, "3", 20, failing=20)
    assert traffic.choose("digits", THREE) == ("2", None)


def test_a_version_that_fails_alone_is_taken_back_without_a_comparison(traffic):
    traffic.choose("digits", THREE)
    answer(traffic, "3", 20, failing=20)
    assert traffic.choose("digits", THREE) == ("2", None)
    assert "too few to compare" in traffic.describe("digits")["held"]["3"]


def test_a_version_that_fails_as_often_as_the_old_one_stays(traffic):
    answer(traffic, "2", 200, failing=200)
    traffic.choose("digits", THREE)
    answer(traffic, "3", 200, failing=200)
    assert traffic.choose("digits", THREE) == ("3", None)


@pytest.mark.parametrize(("old", "new", "stays"), [(2500, 20, True), (0, 9, True), (0, 40, False)])
def test_only_a_version_that_fails_more_by_the_margin_is_taken_back(traffic, old, new, stays):
    answer(traffic, "2", 5000, failing=old)
    traffic.choose("digits", THREE)
    answer(traffic, "3", 1000 - new)
    answer(traffic, "3", new, failing=new)
    assert (traffic.choose("digits", THREE) == ("3", None)) == stays


@pytest.mark.parametrize("status", [400, 422, 429, 499, 503, 504])
def test_what_clients_and_load_do_counts_against_no_version(traffic, status):
    answer(traffic, "2", 200)
    traffic.choose("digits", THREE)
    for _ in range(200):
        traffic.record("digits", "3", status=status, seconds=0.002, rows=0)
    traffic.tick()
    assert traffic.choose("digits", THREE) == ("3", None)


def test_a_canary_that_is_slower_is_taken_back(traffic):
    traffic.canary("digits", "2", 0.1)
    answer(traffic, "1", 300, seconds=0.010)
    answer(traffic, "2", 120, seconds=0.080)
    assert traffic.describe("digits")["canary"]
    traffic.tick()
    assert traffic.describe("digits")["canary"] is None
    assert (
        "took longer than 60.8 ms" in traffic.history("digits")[0]["detail"]
    )  # 50 ms beyond a bucket's end at 10.8 ms


@pytest.mark.parametrize("seconds", [0.010, 0.040])
def test_a_canary_that_is_slower_by_less_than_allowed_stays(traffic, seconds):
    traffic.canary("digits", "2", 0.1)
    answer(traffic, "1", 1000, seconds=0.010)
    answer(traffic, "2", 1000, seconds=seconds)
    traffic.tick()
    assert traffic.describe("digits")["canary"]


def test_the_only_version_stays_whatever_it_does(traffic, caplog):
    traffic.see("lone", ["1"])
    traffic.see("lone", ["1", "2"])
    traffic.choose("lone", ["2"])
    answer(traffic, "2", 50, failing=50, name="lone")
    assert traffic.choose("lone", ["2"]) == ("2", None)
    with pytest.raises(RequestError, match="no version of 'lone' beside '2'"):
        traffic.rollback("lone")


def test_a_watch_ends_and_can_be_turned_off():
    now = [1000.0]
    traffic = Traffic(seed=0, every=0, clock=lambda: now[0])
    traffic.see("digits", BOTH)
    traffic.choose("digits", THREE)
    now[0] += 3601
    traffic.tick()
    assert events(traffic)[-1] == "settled"
    answer(traffic, "3", 50, failing=50)
    assert traffic.choose("digits", THREE) == ("3", None)
    traffic.watch("digits", on=False)
    traffic.canary("digits", "3", 0.5)
    answer(traffic, "2", 50)
    answer(traffic, "3", 50, failing=50)
    assert traffic.describe("digits")["canary"]


def test_equal_versions_are_taken_back_no_more_often_than_alpha():
    """Both fail at 5 %, and every failure is looked at."""
    taken = 0
    for seed in range(200):
        draw, traffic = random.Random(seed), Traffic(seed=seed, every=0)
        traffic.see("digits", BOTH)
        traffic.watch("digits", alpha=0.05, margin=0.0)
        traffic.canary("digits", "2", 0.3)
        for _ in range(800):
            version, _ = traffic.choose("digits", BOTH)
            traffic.record("digits", version, status=500 if draw.random() < 0.05 else 200, seconds=0.001, rows=1)
        taken += traffic.describe("digits")["canary"] is None
    assert taken <= 0.05 * 200


# the tests of an experiment


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


def run_experiment(traffic, rates, count, seed=0):
    """Requests through an experiment, with outcomes reported by request id."""
    draw = random.Random(seed)
    for number in range(count):
        version, _ = traffic.choose("digits", BOTH)
        traffic.record("digits", version, status=200, seconds=0.001, rows=1)
        assert traffic.outcome("digits", draw.random() < rates[version], version=version, request=f"{seed}-{number}")[
            "counted"
        ]


def test_an_experiment_finds_the_better_version_and_says_so_once(traffic):
    traffic.experiment("digits", "1", "2", metric="corrected", better="lower")
    run_experiment(traffic, {"1": 0.4, "2": 0.2}, 1500)
    told = traffic.describe("digits")["experiment"]
    assert told["outcome"]["verdict"] == "version 2 is better"
    assert told["outcome"]["p"] < 0.05
    low, high = told["outcome"]["difference_interval"]
    assert low < -0.2 < high < 0
    assert told["failures"]["verdict"] == "not decided yet"
    assert events(traffic).count("decided") == 1
    assert traffic.promote("digits") == "2"
    assert traffic.choose("digits", BOTH) == ("2", None)
    assert "'corrected' 0." in next(e["detail"] for e in traffic.history("digits") if e["event"] == "experiment_ended")


def test_a_treatment_that_fails_more_is_taken_back(traffic):
    traffic.experiment("digits", "1", "2", share=0.3)
    draw = random.Random(0)
    for sent in range(3000):
        version, _ = traffic.choose("digits", BOTH)
        failed = draw.random() < (0.06 if version == "2" else 0.01)
        traffic.record("digits", version, status=500 if failed else 200, seconds=0.001, rows=1)
        if sent % 50 == 0:
            traffic.tick()
    told = traffic.describe("digits")
    assert told["experiment"] is None
    assert "2" in told["held"]
    assert told["shares"] == {"1": 1.0}


def test_answers_of_versions_that_clients_named_are_no_part_of_the_experiment(traffic):
    traffic.experiment("digits", "1", "2")
    for _ in range(10):
        traffic.record("digits", "2", status=500, seconds=0.001, rows=1, chosen=False)
    assert traffic.describe("digits")["experiment"]["failures"]["treatment"]["count"] == 0
    traffic.record("digits", "2", status=500, seconds=0.001, rows=1)
    assert traffic.describe("digits")["experiment"]["failures"]["treatment"]["count"] == 1


def test_a_request_and_a_key_count_once_and_a_key_knows_its_version(traffic):
    traffic.experiment("digits", "1", "2")
    assert traffic.outcome("digits", 1, request="a", version="1") == {"counted": True}
    assert "counted before" in traffic.outcome("digits", 1, request="a", version="1")["reason"]
    given, _ = traffic.choose("digits", BOTH, "user 7")
    assert traffic.outcome("digits", 0.5, key="user 7") == {"counted": True}
    assert not traffic.outcome("digits", 1, key="user 7", version=given)["counted"]
    with pytest.raises(RequestError, match=f"was given version '{given}'"):
        traffic.outcome("digits", 1, key="user 7", version="1" if given == "2" else "2")
    with pytest.raises(RequestError, match="which version answered"):
        traffic.outcome("digits", 1, request="b")
    told = traffic.describe("digits")["experiment"]["outcome"]
    assert told["control"]["count"] + told["treatment"]["count"] == 2


# shadows


def test_a_shadow_is_compared_class_by_class(traffic):
    traffic.pin("digits", "1")
    traffic.shadow("digits", "2")
    labels = ["cat", "dog", "cow"]
    traffic.disagreed("digits", "1", "2", [0, 0, 1], [0, 1, 1], labels, [0.9, 0.6, 0.8], [0.8, 0.5, 0.5])
    traffic.disagreed("digits", "1", "2", [0], [1], labels, [0.9], [0.85])
    traffic.record("digits", "2", status=200, seconds=0.004, rows=4, shadow=True)
    told = traffic.describe("digits")["shadow"]
    compared = told["comparison"]
    assert (compared["rows"], compared["disagreements"], compared["disagreement_rate"]) == (4, 2, 0.5)
    assert compared["classes"] == [
        {"class": "cat", "rows": 3, "disagreements": 2, "disagreement_rate": 2 / 3},
        {"class": "dog", "rows": 1, "disagreements": 0, "disagreement_rate": 0.0},
    ]
    assert compared["pairs"] == [{"answered": "cat", "shadow": "dog", "rows": 2}]
    assert compared["confidence_difference"]["largest"] == pytest.approx(0.3)
    assert told["answers"]["requests"] == 1
    assert "2" not in traffic.describe("digits")["answers"]  # copies are no answers
    assert ("zoo_shadow_disagreements", "counter", {"model": "digits", "version": "2"}, 2.0) in traffic.samples()


# what outlives the server


def restarted(traffic, folder, versions=BOTH):
    traffic.close()
    again = Traffic(folder, seed=1, every=0)
    again.see("digits", versions)
    return again


def test_rules_counts_and_history_survive_a_restart(tmp_path):
    first = Traffic(tmp_path, seed=0, every=0)
    first.see("digits", THREE)
    first.pin("digits", "2")
    first.canary("digits", "3", 0.25)
    first.shadow("digits", "1", 0.5)
    first.watch("digits", slower=3)
    answer(first, "2", 70, failing=3)
    answer(first, "3", 30)
    first.disagreed("digits", "2", "1", [0, 1], [0, 2], ["a", "b", "c"], [0.5, 0.5], [0.5, 0.75])
    before, told = first.describe("digits"), first.history()
    again = restarted(first, tmp_path, THREE)
    assert again.describe("digits") == before
    assert again.history() == told
    keys = [str(number) for number in range(100)]
    assert [first.choose("digits", THREE, key)[0] for key in keys] == [
        again.choose("digits", THREE, key)[0] for key in keys
    ]
    again.close()


def test_an_experiment_goes_on_after_a_restart_where_it_was(tmp_path):
    first = Traffic(tmp_path, seed=0, every=0)
    first.see("digits", BOTH)
    first.experiment("digits", "1", "2", alpha=0.01)
    run_experiment(first, {"1": 0.5, "2": 0.55}, 300)
    given, _ = first.choose("digits", BOTH, "user")
    before = first.describe("digits")
    again = restarted(first, tmp_path)
    assert again.describe("digits") == before
    assert again.choose("digits", BOTH, "user")[0] == given
    assert "counted before" in again.outcome("digits", 1, version="1", request="0-0")["reason"]
    assert again.outcome("digits", 1, version="1", request="new")["counted"]
    again.close()


def test_a_version_that_was_taken_back_is_still_held_after_a_restart(tmp_path):
    first = Traffic(tmp_path, seed=0, every=0)
    first.see("digits", BOTH)
    first.choose("digits", THREE)
    answer(first, "3", 20, failing=20)
    again = restarted(first, tmp_path, THREE)
    assert again.choose("digits", THREE) == ("2", None)
    assert events(again) == ["arrived", "rolled_back"]
    again.close()


def test_a_version_that_arrives_while_the_server_is_down_is_watched(tmp_path):
    first = Traffic(tmp_path, seed=0, every=0)
    first.see("digits", BOTH)
    answer(first, "2", 200)
    again = restarted(first, tmp_path, THREE)
    assert again.describe("digits")["fresh"]["base"] == "2"
    answer(again, "3", 60, failing=10)
    again.tick()
    assert again.choose("digits", THREE) == ("2", None)
    assert "0 of 200 at version 2" in again.describe("digits")["held"]["3"]
    again.close()


def test_rules_about_versions_that_are_gone_are_told_and_wait(tmp_path, caplog):
    first = Traffic(tmp_path, seed=0, every=0)
    first.see("digits", THREE)
    first.pin("digits", "2")
    first.canary("digits", "3", 0.5)
    first.shadow("digits", "1")
    with caplog.at_level(logging.WARNING, "serve"):
        again = restarted(first, tmp_path, ["4"])
    assert again.choose("digits", ["4"]) == ("4", None)
    assert len(again.describe("digits")["ignored"]) == 3
    assert "the pin names version '2', which is not served" in caplog.text
    assert {again.choose("digits", [*THREE, "4"])[0] for _ in range(8)} == {"2", "3"}
    assert again.describe("digits")["ignored"] == []
    again.close()


def test_what_was_flushed_survives_a_kill(tmp_path):
    code = (
        "import sys, time; from serve.traffic import Traffic; t = Traffic(sys.argv[1], every=0.05);"
        "t.see('digits', ['1', '2']); t.pin('digits', '1');"
        "t.record('digits', '1', status=200, seconds=0.01, rows=1); print('up', flush=True); time.sleep(60)"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(tmp_path)]
    server = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout.readline() == "up\n"
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not rows(tmp_path, "SELECT * FROM tallies"):
            time.sleep(0.02)
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait(10)
        server.stdout.close()
    again = Traffic(tmp_path, every=0)
    again.see("digits", BOTH)
    assert again.state.problem == ""
    assert again.choose("digits", BOTH) == ("1", None)
    assert again.describe("digits")["answers"]["1"]["requests"] == 1
    again.close()


def rows(folder, query):
    """Rows of a state file that another process may be writing; none before it is there."""
    file = folder / states.FILE
    if not file.exists():
        return []
    connection = sqlite3.connect(file)
    try:
        return connection.execute(query).fetchall()
    except sqlite3.OperationalError:
        return []
    finally:
        connection.close()


def test_choosing_and_recording_never_wait_for_the_disk(tmp_path):
    traffic = Traffic(tmp_path, every=0)
    traffic.see("digits", BOTH)
    traffic.canary("digits", "2", 0.5)

    def requests():
        for _ in range(100):
            version, _ = traffic.choose("digits", BOTH, "key")
            traffic.record("digits", version, status=200, seconds=0.01, rows=1)

    with traffic.state._lock:  # as a write that hangs holds it
        flush = threading.Thread(target=traffic.flush)
        flush.start()
        worker = threading.Thread(target=requests, daemon=True)
        worker.start()
        worker.join(5)
        assert not worker.is_alive()
    flush.join(5)
    assert traffic.flush()
    traffic.close()


def test_the_thread_writes_without_being_asked_and_ends_with_its_owner(tmp_path):
    traffic = Traffic(tmp_path, every=0.02)
    assert traffic._thread is None
    traffic.see("digits", BOTH)
    traffic.pin("digits", "1")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not rows(tmp_path, "SELECT * FROM history WHERE event = 'pinned'"):
        time.sleep(0.02)
    assert rows(tmp_path, "SELECT model, version FROM history WHERE event = 'pinned'") == [("digits", "1")]
    thread = traffic._thread
    traffic.close()
    assert not thread.is_alive()


def test_a_folder_that_cannot_be_written_is_told_and_the_server_goes_on(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    traffic = Traffic(tmp_path / "file" / "state", every=0)
    traffic.see("digits", BOTH)
    traffic.pin("digits", "1")
    assert not traffic.flush()
    assert traffic.choose("digits", BOTH) == ("1", None)
    assert "cannot be written" in traffic.describe("digits")["state"]["problem"]
    assert caplog.text.count("cannot be written") == 1  # once, not every second
    assert ("zoo_state_saved", "gauge", {}, 0.0) in traffic.samples()
    (tmp_path / "file").unlink()
    assert traffic.flush()
    assert traffic.describe("digits")["state"] == {"saved": True, "problem": ""}
    again = restarted(traffic, tmp_path / "file" / "state")
    assert again.choose("digits", BOTH) == ("1", None)
    again.close()


def test_rules_in_a_folder_that_may_only_be_read_are_followed(tmp_path, monkeypatch):
    first = Traffic(tmp_path, every=0)
    first.see("digits", BOTH)
    first.pin("digits", "1")
    first.close()

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(states.os, "open", refuse)  # a superuser, as in a container, may write what is read-only
    monkeypatch.setattr(states.os, "access", lambda *_: False)
    traffic = Traffic(tmp_path, every=0)
    assert traffic.choose("digits", BOTH) == ("1", None)
    traffic.clear("digits")
    assert not traffic.flush()
    assert traffic.choose("digits", BOTH) == ("2", None)
    assert traffic.describe("digits")["state"]["problem"] == f"{tmp_path} cannot be written (Permission denied)"
    traffic.close()


def test_a_full_disk_is_told_and_everything_is_written_once_there_is_room(tmp_path, caplog):
    traffic = Traffic(tmp_path, every=0)
    traffic.see("digits", BOTH)
    assert traffic.flush()
    connection = traffic.state._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")  # what SQLite then says is what it says of a full disk
    for number in range(300):
        traffic.see(f"model {number}", BOTH)
        traffic.pin(f"model {number}", "1")
    assert not traffic.flush()
    assert "full" in traffic.describe("digits")["state"]["problem"]
    assert traffic.choose("model 7", BOTH) == ("1", None)
    traffic.tick()  # patient: it does not try again every second
    assert "full" in traffic.state.problem
    assert traffic.flush()  # its new connection has no such limit
    assert "saved again" in caplog.text
    again = Traffic(tmp_path, every=0)
    assert again.state.problem.startswith("another server writes")
    traffic.close()
    assert len(again.models()) == 301
    again.close()


@pytest.mark.parametrize(
    "damage", [lambda file: file.write_bytes(b"nonsense" * 1000), lambda file: file.write_bytes(flipped(file))]
)
def test_a_damaged_file_is_moved_aside_and_a_new_one_begun(tmp_path, damage, caplog):
    first = Traffic(tmp_path, every=0)
    first.see("digits", BOTH)
    first.pin("digits", "1")
    first.close()
    damage(tmp_path / states.FILE)
    again = Traffic(tmp_path, every=0)
    assert "was moved to" in caplog.text
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1
    again.see("digits", BOTH)
    again.pin("digits", "2")
    assert again.flush()
    third = restarted(again, tmp_path)
    assert third.describe("digits")["pin"] == "2"
    third.close()


def flipped(file):
    """The bytes of a file with the middle of every page overwritten."""
    data = bytearray(file.read_bytes())
    for start in range(4096, len(data), 4096):
        data[start : start + 100] = b"\xff" * 100
    return bytes(data)


def test_a_file_that_is_lost_while_the_server_runs_is_begun_anew_with_everything(tmp_path):
    traffic = Traffic(tmp_path, every=0)
    traffic.see("digits", BOTH)
    traffic.pin("digits", "1")
    answer(traffic, "1", 5)
    assert traffic.flush()
    traffic.state.close()
    for file in tmp_path.glob(f"{states.FILE}*"):
        file.unlink()
    traffic.shadow("digits", "2")
    assert traffic.flush()
    again = restarted(traffic, tmp_path)
    assert again.describe("digits")["pin"] == "1"
    assert again.describe("digits")["answers"]["1"]["requests"] == 5
    again.close()


def test_a_file_of_a_newer_scheme_is_left_alone(tmp_path, caplog):
    Traffic(tmp_path, every=0).close()
    connection = sqlite3.connect(tmp_path / states.FILE)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    traffic = Traffic(tmp_path, every=0)
    traffic.see("digits", BOTH)
    assert not traffic.flush()
    assert "is of scheme 99, this server knows" in traffic.state.problem
    traffic.close()
    assert rows(tmp_path, "PRAGMA user_version") == [(99,)]


def test_a_file_of_an_older_scheme_is_brought_up_and_keeps_its_rows(tmp_path, monkeypatch):
    first = Traffic(tmp_path, every=0)
    first.see("digits", BOTH)
    first.pin("digits", "1")
    first.close()
    more = "ALTER TABLE plans ADD COLUMN note TEXT NOT NULL DEFAULT 'none'"
    monkeypatch.setattr(states, "MIGRATIONS", (*states.MIGRATIONS, more))
    again = Traffic(tmp_path, every=0)
    again.see("digits", BOTH)
    assert again.choose("digits", BOTH) == ("1", None)
    again.close()
    assert rows(tmp_path, "SELECT model, note FROM plans") == [("digits", "none")]
    assert rows(tmp_path, "PRAGMA user_version") == [(len(states.MIGRATIONS),)]


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    Traffic(tmp_path, every=0).close()
    wrong = "CREATE TABLE extra (id INTEGER); INSERT INTO nowhere VALUES (1)"
    monkeypatch.setattr(states, "MIGRATIONS", (*states.MIGRATIONS, wrong))
    traffic = Traffic(tmp_path, every=0)
    assert "nowhere" in traffic.state.problem
    traffic.close()
    assert rows(tmp_path, "PRAGMA user_version") == [(len(states.MIGRATIONS) - 1,)]
    assert rows(tmp_path, "SELECT name FROM sqlite_master WHERE name = 'extra'") == []


def test_one_server_writes_and_the_next_takes_over(tmp_path):
    first = Traffic(tmp_path, every=0)
    first.see("digits", BOTH)
    first.pin("digits", "1")
    assert first.flush()
    second = Traffic(tmp_path, every=0)
    second.see("digits", BOTH)
    assert second.choose("digits", BOTH) == ("1", None)  # it reads what there is
    assert "another server writes" in second.describe("digits")["state"]["problem"]
    second.pin("digits", "2")
    assert not second.flush()
    first.close()
    assert second.flush()
    again = restarted(second, tmp_path)
    assert again.choose("digits", BOTH) == ("2", None)
    again.close()


def test_stored_rules_that_cannot_be_read_are_left_out(tmp_path, caplog):
    first = Traffic(tmp_path, every=0)
    first.see("digits", BOTH)
    first.see("other", BOTH)
    first.pin("other", "1")
    first.flush()
    first.close()
    connection = sqlite3.connect(tmp_path / states.FILE)
    with connection:
        connection.execute("UPDATE plans SET plan = '{\"pin\": 7}' WHERE model = 'digits'")
        connection.execute("INSERT INTO tallies VALUES ('digits', '1', 'answers', '[]')")
    connection.close()
    again = Traffic(tmp_path, every=0)
    assert "the stored rules of digits cannot be read" in caplog.text
    assert again.choose("digits", BOTH) == ("2", None)
    assert again.choose("other", BOTH) == ("1", None)
    again.close()


# over HTTP


@pytest.fixture
def served(store_folder, tmp_path):
    """A client of an app with keys, its traffic, and the headers of an operator and of a customer."""
    keys = KeyFile(tmp_path / "keys.json")
    _, admin = keys.make("operator", scopes=["predict", "admin"])
    _, customer = keys.make("customer", scopes=["predict"])
    traffic = Traffic(tmp_path / "state", seed=0, every=0)
    app = create_app(Store(store_folder, threads=1), guard=Guard(keys=keys.path), traffic=traffic)
    yield app, traffic, bearer(admin), bearer(customer)
    app.extensions["explainer"].close()
    traffic.close()


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


PIXELS = {"inputs": [{"name": "image", "shape": [1, 4, 4, 1], "datatype": "UINT8", "data": [0, 0, 255, 255] * 4}]}


def test_an_operator_changes_traffic_and_requests_follow(served):
    app, _, admin, customer = served
    client = app.test_client()

    answered = []

    def version(headers=customer):
        answer = client.post("/v2/models/sides/infer", json=PIXELS, headers=headers)
        assert answer.status_code == 200, answer.json
        answered.append(answer.json["model_version"])
        return answered[-1]

    def change(method, rule, **body):
        answer = client.open(f"/admin/traffic/sides{rule}", method=method, json=body or None, headers=admin)
        assert answer.status_code == 200, answer.json
        assert answer.json["state"]["saved"]
        return answer.json

    assert version() == "10"
    assert change("PUT", "/pin", version="9")["default"] == "9"
    assert version() == "9"
    assert change("PUT", "/canary", version="10", weight=0.5)["shares"] == {"9": 0.5, "10": 0.5}
    seen = [version() for _ in range(20)]
    assert 8 <= seen.count("10") <= 12
    mine = {**customer, "X-Traffic-Key": "user 7"}
    assert len({version(mine) for _ in range(6)}) == 1
    assert change("POST", "/promote")["pin"] == "10"
    assert version() == "10"
    assert change("POST", "/rollback", reason="too many lefts")["held"] == {"10": "too many lefts"}
    assert version() == "9"
    assert change("DELETE", "/held/10")["held"] == {}
    assert change("PUT", "/watch", slower=3.5)["watch"]["slower"] == 3.5
    assert change("PUT", "/shadow", version="2")["shadow"]["share"] == 1.0
    assert change("DELETE", "/shadow")["shadow"] is None
    assert change("DELETE", "")["default"] == "10"
    told = client.get("/admin/history/sides?limit=3", headers=admin).json
    assert [event["event"] for event in told] == ["default", "cleared", "cleared"]
    counted = client.get("/admin/traffic/sides", headers=admin).json["answers"]
    assert counted["9"]["requests"] == answered.count("9") - 1  # the canary's start began its count anew
    assert {each["model"] for each in client.get("/admin/traffic", headers=admin).json} == {"sides", "paints", "dose"}


def test_an_experiment_over_http(served):
    app, _, admin, customer = served
    client = app.test_client()
    body = {"control": "9", "treatment": "10", "metric": "clicked", "alpha": 0.1}
    assert client.put("/admin/traffic/sides/experiment", json=body, headers=admin).status_code == 200
    reports = []
    for number in range(12):
        answer = client.post("/v2/models/sides/infer", json=PIXELS | {"id": f"r{number}"}, headers=customer).json
        reports.append({"request": answer["id"], "version": answer["model_version"], "outcome": number % 2})
    told = client.post("/feedback/sides", json=reports[:11], headers=customer).json
    assert told == [{"counted": True}] * 11
    assert client.post("/feedback/sides", json=reports[11], headers=customer).json == {"counted": True}
    again = client.post("/feedback/sides", json=[reports[0], {"outcome": 5, "request": "x"}], headers=customer).json
    assert [each["counted"] for each in again] == [False, False]
    trial = client.get("/admin/traffic/sides", headers=admin).json["experiment"]
    assert trial["outcome"]["control"]["count"] + trial["outcome"]["treatment"]["count"] == 12
    assert trial["failures"]["control"]["count"] + trial["failures"]["treatment"]["count"] == 12


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("PUT", "/admin/traffic/sides/pin", {"version": "3"}, 404, "unknown_version"),
        ("PUT", "/admin/traffic/side/pin", {"version": "2"}, 404, "unknown_model"),
        ("PUT", "/admin/traffic/damaged/pin", {"version": "1"}, 503, "refused"),
        ("PUT", "/admin/traffic/sides/pin", {"version": 2}, 400, "bad_request"),
        ("PUT", "/admin/traffic/sides/pin", {"verson": "2"}, 400, "bad_request"),
        ("PUT", "/admin/traffic/sides/pin", None, 400, "bad_json"),
        ("PUT", "/admin/traffic/sides/canary", {"version": "2", "weight": 2}, 422, "bad_traffic"),
        ("PUT", "/admin/traffic/sides/watch", [1], 400, "bad_request"),
        ("PUT", "/admin/traffic/sides/watch", {"quick": 1}, 422, "bad_traffic"),
        ("POST", "/admin/traffic/dose/rollback", None, 409, "traffic_conflict"),
        ("DELETE", "/admin/traffic/sides/nothing", None, 422, "bad_traffic"),
        ("GET", "/admin/history?limit=0", None, 422, "bad_parameter"),
        ("POST", "/feedback/sides", {"outcome": 1, "request": "a"}, 409, "no_experiment"),
        ("POST", "/feedback/sides", [{"outcome": "much"}], 400, "bad_request"),
        ("POST", "/feedback/sides", [{"outcome": 1}] * 1001, 413, "too_many"),
    ],
)
def test_a_refusal_is_json_with_code_and_message(served, method, path, body, status, code):
    app, _, admin, _ = served
    answer = app.test_client().open(path, method=method, json=body, headers=admin)
    assert (answer.status_code, answer.json["error"]["code"]) == (status, code)
    assert answer.json["error"]["message"]


def test_versions_that_read_other_inputs_are_compared_only_by_force(served, store_folder):
    app, traffic, admin, _ = served
    golden = ({"numbers": np.array([[30, 20]], np.float32)}, {"value": np.array([[80]], np.float32)})
    facts = {"task": "regression", "kind": "table", "inputs": (NUMBERS,), "outputs": (VALUE,), "labels": ("mg",)}
    write_bundle(store_folder, "sides", "11", value_graph, golden, **facts)
    traffic.see("sides", ["2", "9", "10"])
    traffic.pin("sides", "10")
    app.extensions["store"].rescan()
    client = app.test_client()
    body = {"version": "11", "weight": 0.5}
    refused = client.put("/admin/traffic/sides/canary", json=body, headers=admin)
    assert (refused.status_code, refused.json["error"]["code"]) == (409, "inputs_differ")
    assert client.put("/admin/traffic/sides/canary", json={**body, "force": True}, headers=admin).status_code == 200


@pytest.mark.parametrize("path", ["/admin/traffic", "/admin/traffic/sides", "/admin/history", "/admin/workers"])
def test_admin_routes_are_for_operators(served, store, path):
    app, _, admin, customer = served
    client = app.test_client()
    assert client.get(path).status_code == 401
    assert client.get(path, headers=customer).status_code == 403
    assert client.get(path, headers=admin).status_code == 200
    open_app = create_app(store)
    assert open_app.test_client().get(path).json["error"]["code"] == "forbidden"


def test_workers_and_whether_the_state_is_saved(served):
    app, _, admin, _ = served
    told = app.test_client().get("/admin/workers", headers=admin).json
    assert told["ready"] is True
    assert told["state"] == {"saved": True, "problem": ""}


def start(store, keys, state):
    """A server of its own process, and its address."""
    code = (
        "import sys; from serve import Settings, run; store, keys, state = sys.argv[1:];"
        "run(Settings(store, port=0, keys=keys, state=state, workers=1, access_log=False))"
    )
    command = [sys.executable, "-c", code, str(store), str(keys), str(state)]
    root = Path(__file__).parents[2]
    server = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in server.stdout:
        if " at http://" in line:
            return server, line.split(" at ")[1].strip()
    raise AssertionError("the server ended")


def test_a_server_that_is_killed_comes_back_with_its_canary(tmp_path):
    for version in BOTH:
        write_image(tmp_path / "store", version)
    keys, state = KeyFile(tmp_path / "keys.json"), tmp_path / "state"
    _, admin = keys.make("operator", scopes=["predict", "admin"])
    server, url = start(tmp_path / "store", keys.path, state)
    try:

        def versions(headers, count=1):
            sent = {"headers": {**bearer(admin), "Content-Type": "application/json", **headers}, "method": "POST"}
            found = []
            for _ in range(count):
                request = urllib.request.Request(f"{url}/v2/models/sides/infer", json.dumps(PIXELS).encode(), **sent)
                with urllib.request.urlopen(request, timeout=20) as answer:
                    found.append(json.load(answer)["model_version"])
            return found

        assert versions({}) == ["2"]
        body = {"version": "2", "weight": 0.5}
        remote.ask("PUT", url, "/admin/traffic/sides/canary", bearer(admin)["Authorization"][7:], body)
        remote.ask("PUT", url, "/admin/traffic/sides/shadow", bearer(admin)["Authorization"][7:], {"version": "1"})
        assert 8 <= versions({}, 20).count("2") <= 12
        users = [{"X-Traffic-Key": f"user {number}"} for number in range(10)]
        before = [versions(user) for user in users]
        assert ["1"] in before and ["2"] in before
        server.kill()
        server.wait(10)
        server.stdout.close()
        server, url = start(tmp_path / "store", keys.path, state)
        assert [versions(user) for user in users] == before
        assert 8 <= versions({}, 20).count("2") <= 12
        told = remote.ask("GET", url, "/admin/traffic/sides", bearer(admin)["Authorization"][7:])
        assert told["shares"] == {"1": 0.5, "2": 0.5}
        assert told["shadow"]["comparison"]["rows"] >= 8
        assert told["shadow"]["comparison"]["confidence_difference"]["largest"] == 0.0
    finally:
        server.terminate()
        server.wait(20)
        server.stdout.close()


@contextmanager
def listening(app):
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def test_the_command_line_changes_a_running_server(served):
    app, traffic, admin, _ = served
    with listening(app) as url:
        environment = {"ZOO_URL": url, "ZOO_KEY": admin["Authorization"].removeprefix("Bearer ")}

        def zoo(*words):
            done = CliRunner().invoke(remote.traffic, words, env=environment)
            assert done.exception is None, done.exception
            return done.output

        assert "10       100.0%  no requests  (default)" in zoo("show", "sides")
        assert "(pinned, default)" in zoo("pin", "sides", "9")
        assert "10        25.0%" in zoo("canary", "sides", "10", "0.25")
        assert "shadow 2: nothing compared yet" in zoo("shadow", "sides", "2")
        traffic.record("sides", "2", status=500, seconds=0.001, rows=0, shadow=True)
        assert "shadow 2: 1 of 1 copies failed" in zoo("show", "sides")
        traffic.disagreed("sides", "9", "2", [0, 1], [0, 2], ["dark", "left", "right"], [0.5, 0.9], [0.5, 0.8])
        assert "another class for 50.00% of 2 rows, confidences differ by at most 0.1" in zoo("show", "sides")
        assert "left: 1 of 1 rows" in zoo("show", "sides")
        zoo("promote", "sides")
        assert "version 10 is held back: blurred" in zoo("rollback", "sides", "--reason", "blurred")
        zoo("release", "sides", "10")
        zoo("clear", "sides")
        assert "experiment: 10 against 9 by 'clicked', higher is better" in zoo(
            "experiment", "sides", "9", "10", "--metric", "clicked"
        )
        zoo("watch", "sides", "--set", "slower=3", "--set", "on=false")
        told = json.loads(zoo("show", "sides", "--json"))
        assert (told["watch"]["slower"], told["watch"]["on"]) == (3.0, False)
        assert "rolled_back version 10: operator: blurred" in zoo("history", "sides")
        assert json.loads(zoo("history", "--json", "--limit", "1"))[0]["event"] == "watch"
        assert zoo("workers").startswith("ready")
        refused = CliRunner().invoke(remote.traffic, ["pin", "sides", "77"], env=environment)
        assert "has no version '77'; it has 2, 9, 10" in str(refused.exception)
        refused = CliRunner().invoke(remote.traffic, ["show"], env={"ZOO_URL": url})
        assert "give the key with --key or ZOO_KEY" in str(refused.exception)
    gone = CliRunner().invoke(remote.traffic, ["show"], env={"ZOO_URL": url})
    assert "no server answers at" in str(gone.exception)


def test_the_help_of_the_command_line_teaches():
    told = CliRunner().invoke(remote.traffic, ["--help"]).output
    for word in ("zoo traffic canary digits 2 0.1", "zoo traffic promote digits", "ZOO_KEY"):
        assert word in told
    names = [command.callback.__name__ for command in remote.traffic.registered_commands]
    assert len(names) >= 12
    for name in names:
        assert f"Example: zoo traffic {name}" in CliRunner().invoke(remote.traffic, [name, "--help"]).output
