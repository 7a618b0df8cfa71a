"""Which version answers whom, and what happens to one that does badly; no HTTP and no disk."""

import logging
import math
import random

import numpy as np
import pytest

from serve.errors import RequestError
from serve.rules import place_of
from serve.traffic import Traffic

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


def test_the_version_that_answers_cannot_be_its_own_shadow(traffic):
    traffic.pin("digits", "2")
    with pytest.raises(
        RequestError, match=r"version '2' of 'digits' answers every request itself.*pin another one first"
    ):
        traffic.shadow("digits", "2")
    assert traffic.describe("digits")["shadow"] is None
    traffic.canary("digits", "1", 0.5)  # whose answers it can be compared with
    traffic.shadow("digits", "2")
    assert traffic.describe("digits")["shadow"]["version"] == "2"


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


def test_a_shadow_of_a_regression_is_compared_by_the_spread_of_the_values(traffic):
    traffic.pin("digits", "1")
    traffic.shadow("digits", "2")
    nothing = traffic.describe("digits")["shadow"]["comparison"]
    assert nothing["value_difference"]["mean"] is nothing["disagreement_rate"] is None
    answered = np.resize([80.0, 120.0], 200)  # a spread of 20 from the second row on
    gaps = np.resize([1.0, -1.0, 0.5, 8.0], 200)  # of which the last is more than a tenth of 20
    for mine, gap in zip(answered.tolist(), gaps.tolist(), strict=True):
        traffic.disagreed("digits", "1", "2", None, None, ("dose",), [mine], [mine + gap])
    compared = traffic.describe("digits")["shadow"]["comparison"]
    assert (compared["rows"], compared["disagreements"]) == (200, 50)
    assert compared["against"] == {"1": {"rows": 200, "disagreements": 50}}
    assert compared["classes"] == [] and compared["confidence_difference"]["mean"] is None
    figures = {"mean": 2.625, "largest": 8.0, "spread": 20.0, "of_spread": 0.13125, "tolerance": 2.0}
    assert compared["value_difference"] == pytest.approx(figures)


def test_values_that_are_no_numbers_disagree_and_spoil_no_figure(traffic):
    traffic.pin("digits", "1")
    traffic.shadow("digits", "2")
    traffic.disagreed("digits", "1", "2", None, None, ("dose",), [1.0, 2.0, math.nan], [1.0, math.inf, math.nan])
    compared = traffic.describe("digits")["shadow"]["comparison"]
    assert (compared["rows"], compared["disagreements"]) == (3, 2)
    assert compared["value_difference"]["mean"] == 0.0


def test_answers_of_different_kinds_or_numbers_of_rows_are_not_compared(traffic):
    traffic.pin("digits", "1")
    traffic.shadow("digits", "2")
    traffic.disagreed("digits", "1", "2", [0], None, ("dose",), [0.9], [12.0])
    traffic.disagreed("digits", "1", "2", None, None, ("dose",), [1.0], [1.0, 2.0])
    assert traffic.describe("digits")["shadow"]["comparison"]["rows"] == 0
