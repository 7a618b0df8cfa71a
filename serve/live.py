"""Figures of the last minute by model and version, for the page: requests, errors and times.

Plain counters, no HTTP.
"""

import time
from collections.abc import Callable
from math import frexp
from typing import Any

SECONDS = 60  # that are looked back on
STEPS = 4  # buckets of times between a number and its double, so that quantiles are right within 19 %
LOWEST = -17  # the first buckets hold times below 2 ** -17 seconds, 8 microseconds
BUCKETS = STEPS * (5 - LOWEST)  # the last ones hold times up to 2 ** 5 seconds, and above


class _Second:
    """What happened to one version within one second."""

    __slots__ = ("at", "errors", "requests", "times")

    def __init__(self) -> None:
        self.at = -1
        self.clear(-1)

    def clear(self, at: int) -> None:
        self.at, self.requests, self.errors = at, 0, 0
        self.times = [0] * BUCKETS


class Live:
    """Counts answers by the second; a lost count under threads is possible and of no matter for figures to look at."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start empty.

        Args:
            clock: gives seconds that never run backwards.
        """
        self._clock = clock
        self._seen: dict[str, dict[str, list[_Second]]] = {}

    def answered(self, model: str, version: str, status: int, seconds: float) -> None:
        """Count one answer.

        Args:
            model, version: what answered; the caller makes sure that they exist.
            status: HTTP status; 500 and above are errors.
            seconds: time taken.
        """
        versions = self._seen.setdefault(model, {})
        now = int(self._clock())
        ring = versions.get(version)
        if ring is None:
            for other, past in list(versions.items()):  # of those that are gone nothing is shown any more
                if max(second.at for second in past) <= now - SECONDS:
                    versions.pop(other, None)
            ring = versions.setdefault(version, [_Second() for _ in range(SECONDS)])
        second = ring[now % SECONDS]
        if second.at != now:
            second.clear(now)
        second.requests += 1
        if status >= 500:
            second.errors += 1
        second.times[_bucket(seconds)] += 1

    def observe(self, call: Any, answer: Any) -> None:
        """Count a call that the fleet has finished; shadows are left out, since nobody waits for them."""
        if not call.shadow:
            version = answer.version or call.version
            self.answered(call.model, version, answer.status, time.monotonic() - call.started)

    def describe(self, model: str) -> dict[str, dict[str, float | None]]:
        """Figures of the last minute by version.

        Returns:
            For each version that answered within the minute: `requests` and `errors` per second, over the part of the
            minute since its first answer, and `p50_ms` and `p99_ms`.
        """
        now = int(self._clock())
        told: dict[str, dict[str, float | None]] = {}
        for version, ring in list(self._seen.get(model, {}).items()):
            recent = [second for second in ring if 0 <= now - second.at < SECONDS]
            requests = sum(second.requests for second in recent)
            if not requests:
                continue
            span = min(SECONDS, now - min(second.at for second in recent) + 1)
            times = [sum(column) for column in zip(*(second.times for second in recent), strict=True)]
            told[version] = {
                "requests": round(requests / span, 3),
                "errors": round(sum(second.errors for second in recent) / span, 3),
                "p50_ms": _quantile(times, 0.5),
                "p99_ms": _quantile(times, 0.99),
            }
        return told

    def history(self, model: str) -> list[int]:
        """Requests in each of the last 60 seconds, the present one last, all versions together."""
        now = int(self._clock())
        counts = [0] * SECONDS
        for ring in list(self._seen.get(model, {}).values()):
            for second in ring:
                if 0 <= now - second.at < SECONDS:
                    counts[SECONDS - 1 - (now - second.at)] += second.requests
        return counts


def _bucket(seconds: float) -> int:
    """Index of a time: its power of two, and the quarter within it."""
    fraction, exponent = frexp(seconds)  # seconds = fraction * 2 ** exponent, 0.5 <= fraction < 1
    index = STEPS * (exponent - 1 - LOWEST) + int((2 * fraction - 1) * STEPS)
    return min(max(index, 0), BUCKETS - 1)


def _quantile(times: list[int], share: float) -> float | None:
    """Milliseconds below which a share of the times lies, the middle of its bucket; None without times."""
    wanted = share * sum(times)
    for index, count in enumerate(times):
        wanted -= count
        if count and wanted <= 0:
            power, quarter = divmod(index, STEPS)
            return round(2.0 ** (power + LOWEST) * (1 + (quarter + 0.5) / STEPS) * 1000, 3)
    return None
