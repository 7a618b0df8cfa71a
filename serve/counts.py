"""What versions did, counted: requests, failures and times of each, and what a shadow would have answered otherwise."""

from bisect import bisect_right
from collections.abc import Sequence
from math import isfinite, sqrt
from typing import Any

import msgspec

RECENT = 20_000  # requests after which a version's counts are halved, so that they speak of lately
EDGES = tuple(2e-5 * 1.15**step for step in range(110))  # seconds, 20 us to 83 s: upper ends of the latency buckets
PAIRS = 1000  # kinds of disagreement told apart
TOLERANCE = 0.1  # of the values' spread; versions that differ so much in every row have an R2 of 0.99 between them


class Tally(msgspec.Struct):
    """How one version did lately: counts, and a histogram of seconds by `EDGES`."""

    requests: int = 0
    failures: int = 0
    refused: int = 0
    rows: int = 0
    seconds: list[int] = msgspec.field(default_factory=lambda: [0] * (len(EDGES) + 1))

    def add(self, status: int, seconds: float, rows: int) -> bool:
        """Count one answer; True if the version failed."""
        if self.requests >= RECENT:
            self.requests, self.failures, self.refused = self.requests // 2, self.failures // 2, self.refused // 2
            self.seconds = [count // 2 for count in self.seconds]
        self.requests += 1
        self.rows += rows
        self.seconds[bisect_right(EDGES, seconds)] += 1
        if status < 400:
            return False
        if status < 500:
            self.refused += 1
        failed = status >= 500 and status != 504
        self.failures += failed
        return failed

    def quantile(self, share: float) -> float | None:
        """Seconds within which `share` of the answers came, to 15 %; None without answers."""
        left = share * sum(self.seconds)
        for edge, count in zip(EDGES, self.seconds, strict=False):
            left -= count
            if left <= 0 and count:
                return edge
        return EDGES[-1] if any(self.seconds) else None

    def slower_than(self, seconds: float) -> int:
        """Answers that certainly took longer."""
        return sum(self.seconds[bisect_right(EDGES, seconds) + 1 :])

    def told(self) -> dict[str, Any]:
        """For people: counts, the share of failures, milliseconds at three quantiles."""
        counts = {"requests": self.requests, "failures": self.failures, "refused": self.refused, "rows": self.rows}
        rate = {"failure_rate": self.failures / self.requests if self.requests else None}
        spans = {f"p{share}_ms": self.quantile(share / 100) for share in (50, 95, 99)}
        return counts | rate | {name: None if span is None else round(span * 1000, 3) for name, span in spans.items()}


class Values(msgspec.Struct):
    """How far a shadow's values are from those that were answered, both in the target's unit.

    Attributes:
        rows: with two finite values.
        gap: sum of the absolute differences; `most`, the largest.
        mean: of the values that were answered; `squares`, the sum of their squared distances from it.
    """

    rows: int = 0
    gap: float = 0.0
    most: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def spread(self) -> float:
        """Standard deviation of the values that were answered."""
        return sqrt(self.squares / self.rows) if self.rows else 0.0

    def add(self, answered: float, shadow: float) -> bool:
        """Count one row; True if the shadow's value is further away than what is put up with."""
        gap = abs(answered - shadow)
        if not isfinite(gap):
            return True
        self.rows += 1
        self.gap += gap
        self.most = max(self.most, gap)
        # in one pass: Welford, Technometrics 4 (1962) 419-420
        step = answered - self.mean
        self.mean += step / self.rows
        self.squares += step * (answered - self.mean)
        return gap > TOLERANCE * self.spread > 0

    def told(self) -> dict[str, float | None]:
        """For people: mean and largest difference, the spread, the mean in spreads, what is put up with."""
        if not self.rows:
            return dict.fromkeys(("mean", "largest", "spread", "of_spread", "tolerance"))
        mean, spread = self.gap / self.rows, self.spread
        return {
            "mean": mean,
            "largest": self.most,
            "spread": spread,
            "of_spread": mean / spread if spread else None,
            "tolerance": TOLERANCE * spread,
        }


class Comparison(msgspec.Struct):
    """What a shadow would have answered otherwise, row by row.

    A value disagrees if it is further away than `TOLERANCE` times the spread of the values answered so far.

    Attributes:
        differ: of `rows`, those where the shadow named another class, or a value that disagrees.
        against: version that answered -> rows, and those of them that differ.
        classes: class that was answered -> rows, and rows where the shadow named another.
        pairs: "answered>shadow" -> rows, for the kinds of disagreement seen first.
        gap: sum of the differences of confidence over rows that had both; `gap_rows` of them, `gap_most` the largest.
        values: differences of models that answer values.
    """

    rows: int = 0
    differ: int = 0
    against: dict[str, list[int]] = {}
    classes: dict[int, list[int]] = {}
    pairs: dict[str, int] = {}
    labels: list[str] = []
    gap: float = 0.0
    gap_rows: int = 0
    gap_most: float = 0.0
    values: Values = msgspec.field(default_factory=Values)

    def add(self, version: str, answered: Sequence[int], shadow: Sequence[int]) -> None:
        """Compare classes."""
        against = self.against.setdefault(version, [0, 0])
        against[0] += len(answered)
        self.rows += len(answered)
        for mine, other in zip(answered, shadow, strict=True):
            of_class = self.classes.setdefault(mine, [0, 0])
            of_class[0] += 1
            if mine != other:
                self.differ += 1
                against[1] += 1
                of_class[1] += 1
                pair = f"{mine}>{other}"
                if pair in self.pairs or len(self.pairs) < PAIRS:
                    self.pairs[pair] = self.pairs.get(pair, 0) + 1

    def add_values(self, version: str, answered: Sequence[float], shadow: Sequence[float]) -> None:
        """Compare values."""
        differ = sum(self.values.add(mine, other) for mine, other in zip(answered, shadow, strict=True))
        against = self.against.setdefault(version, [0, 0])
        against[0] += len(answered)
        against[1] += differ
        self.rows += len(answered)
        self.differ += differ

    def confident(self, answered: Sequence[float], shadow: Sequence[float]) -> None:
        """Compare the probabilities of the classes."""
        for mine, other in zip(answered, shadow, strict=True):
            gap = abs(mine - other)
            self.gap += gap
            self.gap_rows += 1
            self.gap_most = max(self.gap_most, gap)

    def told(self) -> dict[str, Any]:
        """For people, classes by name, the worst first."""

        def name(number: int) -> str:
            return self.labels[number] if 0 <= number < len(self.labels) else str(number)

        worst = sorted(self.classes.items(), key=lambda item: (-item[1][1] / item[1][0], -item[1][0]))
        pairs = sorted(self.pairs.items(), key=lambda item: -item[1])[:20]
        return {
            "rows": self.rows,
            "disagreements": self.differ,
            "disagreement_rate": self.differ / self.rows if self.rows else None,
            "against": {
                version: {"rows": rows, "disagreements": differ} for version, (rows, differ) in self.against.items()
            },
            "classes": [
                {"class": name(number), "rows": rows, "disagreements": differ, "disagreement_rate": differ / rows}
                for number, (rows, differ) in worst
            ],
            "pairs": [
                {"answered": name(int(mine)), "shadow": name(int(other)), "rows": rows}
                for (mine, other), rows in ((pair.split(">"), rows) for pair, rows in pairs)
            ],
            "confidence_difference": {
                "largest": self.gap_most if self.gap_rows else None,
                "mean": self.gap / self.gap_rows if self.gap_rows else None,
            },
            "value_difference": self.values.told(),
        }
