"""The rules of a model's traffic as values: what is stored, what was counted, and how the rules pick a version."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from serve.errors import RequestError
from serve.evidence import Bet

RECENT = 20_000  # requests after which a version's counts are halved, so that they speak of lately
EDGES = tuple(2e-5 * 1.15**step for step in range(110))  # seconds, 20 us to 83 s: upper ends of the latency buckets
PAIRS = 1000  # kinds of disagreement told apart


class Watch(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """When a canary, an experiment's treatment or a version that just arrived is taken back by itself.

    It is compared with the version it is to replace. Failures are answers of status 5xx, but for 503 (the server was full)
    and 504 (the client set the time); what a client does wrong counts against no version.

    Attributes:
        on: False to take nothing back.
        requests: least requests before failures decide.
        alpha: probability, in (0, 1), of taking back a version that fails as rarely as the old one, though it is looked at
            after every failure; it holds for as far back as counts reach, see `RECENT`.
        margin: failures more per request, in [0, 1), that are put up with.
        most_failures: share of failures, in (0, 1], above which no comparison is needed if the old version has had too few
            requests for one.
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


class Canary(msgspec.Struct):
    """A version that gets a share of the requests, `weight` in (0, 1]."""

    version: str
    weight: float
    since: float


class Shadow(msgspec.Struct):
    """A version that gets copies of a share of the requests, in (0, 1], and answers nobody."""

    version: str
    share: float
    since: float


class Experiment(msgspec.Struct):
    """Two versions drawn at random, compared by an outcome that clients report and by failures."""

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


class Fresh(msgspec.Struct):
    """A version that became the default a short while ago, and the one it replaced."""

    version: str
    base: str
    since: float


class Plan(msgspec.Struct):
    """The rules of one model, as they are stored."""

    pin: str | None = None
    canary: Canary | None = None
    shadow: Shadow | None = None
    experiment: Experiment | None = None
    fresh: Fresh | None = None
    held: dict[str, str] = {}
    watch: Watch = Watch()
    known: list[str] = []
    declared: str = ""  # the rules of a file that were applied last, as JSON; see `declared`


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


class Comparison(msgspec.Struct):
    """What a shadow would have answered otherwise, row by row.

    Attributes:
        against: version that answered -> rows, and rows where the shadow named another class.
        classes: class that was answered -> rows, and rows where the shadow named another.
        pairs: "answered>shadow" -> rows, for the kinds of disagreement seen first.
        gap: sum of the differences of confidence over rows that had both; `gap_rows` of them, `gap_most` the largest.
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

    def add(self, version: str, answered: Sequence[int], shadow: Sequence[int]) -> None:
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

    def confident(self, answered: Sequence[float], shadow: Sequence[float]) -> None:
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
        }


class Picker:
    """Picks a share of a sequence of requests: never more than two away from the share, at places nobody can foresee.

    Each stretch of 1 / share requests holds one pick at a random place of it. An even spacing would be as exact, but a
    client that alternates two kinds of request would send all of one kind to one version.
    """

    __slots__ = ("_draw", "_mark", "_position", "share")

    def __init__(self, share: float, draw: Callable[[], float]) -> None:
        self.share = share
        self._draw = draw
        self._position = 0.0
        self._mark = draw()

    def pick(self) -> bool:
        self._position += self.share
        if self._position < self._mark or self._position <= 0:
            return False
        self._position -= 1
        self._mark = self._draw()
        return True


class Rules:
    """A plan, applied to the versions that are there; replaced whenever either changes."""

    __slots__ = (
        "baseline", "canary", "canary_share", "default", "experiment", "ignored", "plan", "salt", "shadow", "shadow_share",
        "told_kept", "versions", "watched",
    )  # fmt: skip

    def __init__(self, name: str, plan: Plan, versions: list[str], draw: Callable[[], float]) -> None:
        self.plan, self.versions, self.told_kept = plan, versions, False
        self.ignored: list[str] = []
        trial = plan.experiment
        self.experiment = trial if trial and self._served("experiment", trial.control, trial.treatment) else None
        self.canary = plan.canary.version if plan.canary and self._served("canary", plan.canary.version) else None
        self.shadow = plan.shadow.version if plan.shadow and self._served("shadow", plan.shadow.version) else None
        candidate = self.experiment.treatment if self.experiment else self.canary
        if plan.pin is not None and self._served("pin", plan.pin):
            self.default = plan.pin
        else:
            free = [version for version in versions if version not in plan.held]
            settled = [version for version in free if version != candidate]
            self.default = (settled or free or versions)[-1]
        if self.canary == self.default:
            self.canary = None
        weight = plan.canary.weight if plan.canary and self.canary else 0.0
        self.canary_share = Picker(weight, draw)
        self.shadow_share = Picker(plan.shadow.share if plan.shadow and self.shadow else 0.0, draw)
        # of the version alone: a client stays where it is while the weight grows
        self.salt = f"{name}/{self.canary}"
        self.watched: str | None = None
        self.baseline = self.default
        if self.experiment:
            self.watched, self.baseline = self.experiment.treatment, self.experiment.control
        elif self.canary:
            self.watched = self.canary
        elif plan.fresh and plan.fresh.version == self.default:
            self.watched, self.baseline = plan.fresh.version, plan.fresh.base

    def _served(self, rule: str, *versions: str) -> bool:
        missing = [version for version in versions if version not in self.versions]
        if missing:
            self.ignored.append(
                f"the {rule} names version {' and '.join(map(repr, missing))}, which is not served; it is ignored until then"
            )
        return not missing

    def choose(self, key: str | None, draw: Callable[[], float]) -> tuple[str, str | None]:
        trial = self.experiment
        if trial is not None:
            place = place_of(trial.id, key) if key else draw()
            version = trial.treatment if place < trial.share else trial.control
        elif self.canary is not None:
            share = self.canary_share
            picked = place_of(self.salt, key) < share.share if key else share.pick()
            version = self.canary if picked else self.default
        else:
            version = self.default
        if self.shadow is None or self.shadow == version or not self.shadow_share.pick():
            return version, None
        return version, self.shadow

    def shares(self) -> dict[str, float]:
        """Share of the requests that each version is to answer."""
        if self.experiment:
            share = self.experiment.share
            return {self.experiment.control: 1 - share, self.experiment.treatment: share}
        weight = self.canary_share.share
        return {self.default: 1 - weight} | ({self.canary: weight} if self.canary else {})


def place_of(salt: str, key: str) -> float:
    """The place in [0, 1) that a key has for good, as good as random and different for each salt."""
    return int.from_bytes(blake2b(f"{salt}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()) / 2**64
