"""Experiments as values: two versions drawn at random, and what the tests between them have shown so far."""

from math import log
from typing import Any

import msgspec

from serve.errors import RequestError
from serve.evidence import Bet, interval

SOURCE = (
    "testing by betting: Waudby-Smith & Ramdas 2024, Shafer 2021; valid at every look, p below alpha at most alpha of the "
    "time"
)


class Experiment(msgspec.Struct):
    """Two versions drawn at random, compared by an outcome that clients report and by failures.

    Attributes:
        id: its own, which also salts the places of keys.
        control: the version that is in use.
        treatment: the version on trial.
        share: of the treatment, in (0, 1).
        metric: what the outcome is, for people.
        better: "higher" or "lower".
        alpha: probability, in (0, 1), of telling versions apart that are alike in both tests.
        since: when it began, in seconds since 1970.
        outcomes: the bet on what clients report; the control is its first arm.
        failures: the bet on failures, likewise.
        decided: test -> version that won it.
    """

    id: str
    control: str
    treatment: str
    share: float
    metric: str
    better: str
    alpha: float
    since: float
    outcomes: Bet
    failures: Bet
    decided: dict[str, str] = {}

    def check(self) -> None:
        """Compare the settings with what they may be.

        Raises:
            RequestError: 422, one is out of its range; 409, both versions are the same.
        """
        check_share("share", self.share)
        if self.share == 1:
            raise RequestError("bad_traffic", "share must lie between 0 and 1, got 1; 0.5 compares soonest")
        if not 0 < self.alpha < 1:
            raise RequestError("bad_traffic", f"alpha must lie between 0 and 1, got {self.alpha!r}; 0.05 is usual")
        if self.better not in ("higher", "lower"):
            raise RequestError("bad_traffic", f"better must be 'higher' or 'lower', got {self.better!r:.40}")
        if not 0 < len(self.metric) <= 100:
            raise RequestError("bad_traffic", "metric must be a name of 1 to 100 characters, such as 'clicked'")
        if self.control == self.treatment:
            message = f"control and treatment are both version {self.control!r}; name two versions"
            raise RequestError("traffic_conflict", message, 409)

    def decide(self) -> list[tuple[str, str, float]]:
        """Tests that have decided since they were last asked: "outcome" or "failures", the version that won, p."""
        needed, news = log(2 / self.alpha), []
        for test, bet, better in (("outcome", self.outcomes, self.better), ("failures", self.failures, "lower")):
            if test not in self.decided and bet.highest >= needed:
                rises = (bet.difference or 0.0) > 0
                winner = self.treatment if rises == (better == "higher") else self.control
                self.decided[test] = winner
                news.append((test, winner, 2 * bet.p))
        return news

    def told(self) -> dict[str, Any]:
        """For people: each test with its p-value, means, intervals and what they say."""
        told: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("id", "control", "treatment", "share", "metric", "better", "alpha", "since")
        }
        for test, bet in (("outcome", self.outcomes), ("failures", self.failures)):
            # a quarter of alpha for each of two arms in two tests
            bounds = [interval(arm, self.alpha / 4) for arm in (bet.first, bet.second)]
            winner = self.decided.get(test)
            told[test] = {
                "control": {"count": bet.first.count, "mean": bet.first.mean, "interval": bounds[0]},
                "treatment": {"count": bet.second.count, "mean": bet.second.mean, "interval": bounds[1]},
                "difference": bet.difference,
                "difference_interval": (bounds[1][0] - bounds[0][1], bounds[1][1] - bounds[0][0]),
                "p": min(1.0, 2 * bet.p),
                "verdict": f"version {winner} is better" if winner else "not decided yet",
            }
        return told | {"source": SOURCE}

    def summary(self) -> str:
        """How it ended, in one line."""
        told = self.told()
        tests = [f"{test} {told[test]['verdict']} (p {told[test]['p']:.2g})" for test in ("outcome", "failures")]
        means = f"{self.metric!r} {self.outcomes.first.mean} against {self.outcomes.second.mean}"
        return ", ".join([means, *tests])


def check_share(name: str, value: float) -> None:
    """Compare a share of the requests with what it may be.

    Raises:
        RequestError: 422, it does not lie in (0, 1].
    """
    if not (isinstance(value, (int, float)) and 0 < value <= 1):
        message = f"{name} must lie above 0 and be at most 1, got {value!r:.40}; 0.1 is a tenth"
        raise RequestError("bad_traffic", message)
