"""The rules of a model's traffic as values: what is stored, and how the rules pick a version."""

from collections.abc import Callable
from hashlib import blake2b

import msgspec

from serve.experiment import Experiment
from serve.watch import Watch


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
