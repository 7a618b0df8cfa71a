"""When a new version is taken back by itself, as values: the settings, and what they make of two versions' counts."""

from math import exp, log

import msgspec

from serve.counts import Tally
from serve.errors import RequestError
from serve.evidence import Arm, differs, exceeds


class Watch(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """When a canary, an experiment's treatment or a version that just arrived is taken back by itself.

    It is compared with the version it is to replace. Failures are answers of status 5xx, but for 503 (the server was
    full) and 504 (the client set the time); what a client does wrong counts against no version.

    Attributes:
        on: False to take nothing back.
        requests: least requests before failures decide.
        alpha: probability, in (0, 1), of taking back a version that fails as rarely as the old one, though it is looked
            at after every failure; it holds for as far back as counts reach, see `RECENT`.
        margin: failures more per request, in [0, 1), that are put up with.
        most_failures: share of failures, in (0, 1], above which no comparison is needed if the old version has had too
            few requests for one.
        slow_requests: least requests of both versions before latency decides.
        quantile: in (0, 1); latency is compared there.
        slower: factor, at least 1, by which the new version's quantile may be above the old one's.
        slower_seconds: what it may be above it in any case, in seconds.
        fresh_seconds: how long a version is watched after it became the default, in seconds.
    """

    on: bool = True
    requests: int = 20
    alpha: float = 0.01
    margin: float = 0.01
    most_failures: float = 0.5
    slow_requests: int = 100
    quantile: float = 0.95
    slower: float = 2.0
    slower_seconds: float = 0.05
    fresh_seconds: float = 3600.0

    def check(self) -> None:
        """Compare the numbers with what they may be.

        Raises:
            RequestError: one is out of its range.
        """
        limits = {
            "requests": self.requests >= 1,
            "alpha": 0 < self.alpha < 1,
            "margin": 0 <= self.margin < 1,
            "most_failures": 0 < self.most_failures <= 1,
            "slow_requests": self.slow_requests >= 1,
            "quantile": 0 < self.quantile < 1,
            "slower": self.slower >= 1,
            "slower_seconds": self.slower_seconds >= 0,
            "fresh_seconds": self.fresh_seconds >= 0,
        }
        for name, fine in limits.items():
            if not fine:
                raise RequestError(
                    "bad_traffic", f"{name}={getattr(self, name)!r} is out of range; the defaults are {Watch()}"
                )

    def verdict(self, new: Tally, old: Tally, baseline: str, *, latency: bool) -> tuple[str, str] | None:
        """Why a version is to be taken back, None if it may stay.

        Args:
            new: its counts.
            old: those of the version it is to replace.
            baseline: the name of that version.
            latency: whether to compare how long answers took, too.

        Returns:
            The cause, "failures" or "latency", and the figures in words.
        """
        needed = log(1 / self.alpha)
        if new.failures and new.requests >= self.requests:
            rate = new.failures / new.requests
            told = f"{new.failures} of {new.requests} requests failed"
            if old.requests >= self.requests:
                evidence = 0.0
                if rate > old.failures / old.requests + self.margin:
                    evidence = differs(Arm(new.requests, new.failures), Arm(old.requests, old.failures))
                if evidence >= needed:
                    at_old = f"{old.failures} of {old.requests} at version {baseline} (p {exp(-evidence):.2g})"
                    return "failures", f"{told}, {at_old}"
            elif rate > self.most_failures:
                few = f"more than {self.most_failures:.0%}, and version {baseline} has had too few to compare"
                return "failures", f"{told}, {few}"
        if latency and min(new.requests, old.requests) >= self.slow_requests:
            base = old.quantile(self.quantile)
            assert base is not None  # it has answers
            limit = max(self.slower * base, base + self.slower_seconds)
            slow, count = new.slower_than(limit), sum(new.seconds)
            if exceeds(slow, count, 1 - self.quantile) >= needed:
                return "latency", (
                    f"{slow} of {count} requests took longer than {limit * 1000:.3g} ms; at version {baseline} "
                    f"{self.quantile:.0%} are answered in {base * 1000:.3g} ms"
                )
        return None
