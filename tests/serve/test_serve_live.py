from types import SimpleNamespace

import pytest

from serve.live import SECONDS, Live


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def live(clock):
    return Live(clock)


def test_figures_are_of_the_last_minute(live, clock):
    for _ in range(30):
        live.answered("m", "1", 200, 0.010)
    clock.now += 9
    live.answered("m", "1", 500, 0.010)
    live.answered("m", "2", 200, 0.001)
    told = live.describe("m")
    assert told["1"]["requests"] == pytest.approx(3.1) and told["1"]["errors"] == pytest.approx(0.1)
    assert told["2"]["requests"] == pytest.approx(1.0) and told["2"]["errors"] == 0
    clock.now += SECONDS - 9
    assert live.describe("m")["1"]["requests"] == pytest.approx(0.02, abs=0.005)  # only the one of 51 s ago
    clock.now += 60
    assert live.describe("m") == {}
    assert live.describe("other") == {}


@pytest.mark.parametrize("seconds", [1e-7, 0.00012, 0.003, 0.0449, 0.7, 12.0])
def test_quantiles_are_right_within_their_buckets(live, seconds):
    for _ in range(100):
        live.answered("m", "1", 200, seconds)
    told = live.describe("m")["1"]
    assert told["p50_ms"] == told["p99_ms"]
    if seconds > 1e-5:
        assert told["p50_ms"] == pytest.approx(seconds * 1000, rel=0.19)


def test_the_slowest_hundredth_is_seen(live):
    for at in range(1000):
        live.answered("m", "1", 200, 0.5 if at % 50 == 0 else 0.002)
    told = live.describe("m")["1"]
    assert told["p50_ms"] == pytest.approx(2, rel=0.19) and told["p99_ms"] == pytest.approx(500, rel=0.19)


def test_history_is_by_the_second_over_all_versions(live, clock):
    live.answered("m", "1", 200, 0.01)
    clock.now += 10
    live.answered("m", "1", 200, 0.01)
    live.answered("m", "2", 200, 0.01)
    counts = live.history("m")
    assert len(counts) == SECONDS
    assert {at: count for at, count in enumerate(counts) if count} == {SECONDS - 11: 1, SECONDS - 1: 2}
    clock.now += SECONDS
    assert sum(live.history("m")) == 0


def test_calls_of_the_fleet_are_counted_without_shadows(live):
    answer = SimpleNamespace(status=200, version="2")
    live.observe(SimpleNamespace(model="m", version="1", shadow=False, started=0.0), answer)
    live.observe(SimpleNamespace(model="m", version="1", shadow=True, started=0.0), answer)
    assert sum(live.history("m")) == 1 and list(live.describe("m")) == ["2"]


def test_versions_that_nobody_asks_any_more_are_forgotten(live, clock):
    for version in range(200):
        live.answered("m", str(version), 200, 0.01)
        clock.now += 5
    assert len(live._seen["m"]) <= SECONDS / 5 + 1
    assert list(live.describe("m"))[-1] == "199" and sum(live.history("m")) == SECONDS / 5 - 1
