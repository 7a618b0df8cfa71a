"""Which version answers a request that names none, and what happens to a version that does badly. Knows no HTTP.

`Traffic.choose` decides, `Traffic.record` learns how it went; both take a few microseconds and touch no disk. Rules, counts
and history are written behind, once a second, by `state.State`, and are there again after a restart.

A model has, in this order: an experiment (two versions, drawn at random), or a canary (a share of the requests goes to one
version), or the default version: the pinned one, else the latest that is not held back. Any of them may have a shadow, a
version that computes a copy of some requests and answers nobody.
"""

import logging
import random
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from math import exp, log
from pathlib import Path
from typing import Any

import msgspec

from serve import declared
from serve.credentials import Watched
from serve.errors import RequestError, did_you_mean
from serve.evidence import Arm, Bet, differs, exceeds, interval
from serve.rules import EDGES, Canary, Comparison, Experiment, Fresh, Plan, Rules, Shadow, Tally, Watch, place_of
from serve.state import Event, State, TallyKey

logger = logging.getLogger("serve")

SOURCE = "testing by betting: Waudby-Smith & Ramdas 2024, Shafer 2021; valid at every look, p below alpha at most alpha of the time"
KNOWN = 100  # versions of a model that are remembered
UNITS = 50_000  # requests or keys of an experiment remembered as reported: this many to twice as many
NOT_ANSWERED = {401, 403, 404, 429, 499, 503}  # no version had to do with it


class Traffic:
    """Rules, counts and history of all models. Methods may be called from any thread.

    Attributes:
        state: where they are kept, and why they are not if they are not.
        rollbacks: (model, version, cause) -> versions taken back since the start; the cause is "failures", "latency",
            "experiment" or "operator".
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        seed: int | None = None,
        clock: Callable[[], float] = time.time,
        every: float = 1.0,
    ) -> None:
        """Read what an earlier server left.

        Args:
            folder: where rules, counts and history are kept; nowhere if None, or if it cannot be written, which is told in the
                log and in `describe`.
            seed: of the draws; of the system's randomness if None.
            clock: seconds since 1970.
            every: seconds between two writes; 0 for none but those of `flush`.
        """
        self.state = State(folder)
        self.rollbacks: Counter[tuple[str, str, str]] = Counter()
        self._clock, self._every = clock, every
        self._draw = random.Random(seed).random
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._rules: dict[str, Rules] = {}
        self._plans: dict[str, Plan] = {}
        self._tallies: dict[TallyKey, Tally] = {}
        self._comparisons: dict[TallyKey, Comparison] = {}
        self._history: deque[Event] = deque(maxlen=1000)
        self._reported: dict[str, tuple[set[int], set[int]]] = {}
        self._new_events: deque[Event] = deque(maxlen=1000)
        self._new_reports: deque[tuple[str, int]] = deque(maxlen=2 * UNITS)
        self._forgotten: list[str] = []
        self._written_plans: dict[str, str] = {}
        self._written_tallies: dict[TallyKey, int] = {}
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._file: Watched[dict[str, declared.Declared]] | None = None
        self._load()

    # --- on the way of every request

    def choose(self, name: str, versions: list[str], key: str | None = None) -> tuple[str, str | None]:
        """The version that answers a request, and the one that gets a copy of it, None if none does.

        Args:
            name: the model's.
            versions: those that can answer, oldest first, at least one.
            key: what stays the same for one client, who then stays with one version; None if nothing is known of it.
        """
        with self._lock:
            rules = self._rules.get(name)
            if rules is None or rules.versions != versions:
                rules = self._see(name, versions)
            return rules.choose(key, self._draw)

    def default(self, name: str, versions: list[str]) -> str:
        """The version that answers unless a canary or an experiment draws another; no share is counted by asking."""
        with self._lock:
            rules = self._rules.get(name)
            if rules is None or rules.versions != versions:
                rules = self._see(name, versions)
            return rules.experiment.control if rules.experiment else rules.default

    def record(
        self,
        name: str,
        version: str,
        *,
        status: int,
        seconds: float,
        rows: int,
        chosen: bool = True,
        shadow: bool = False,
    ) -> None:
        """Count one answer.

        Args:
            name, version: which version answered.
            status: HTTP status.
            seconds: from the request to its answer.
            rows: rows predicted.
            chosen: the rules chose the version; an answer of a version that the client named is no part of an experiment.
            shadow: it was a copy, whose answer nobody saw.
        """
        if status in NOT_ANSWERED:
            return
        with self._lock:
            tally = self._tallies.get((name, version, "shadow" if shadow else "answers"))
            if tally is None:
                tally = self._tallies[name, version, "shadow" if shadow else "answers"] = Tally()
                self._wake()
            failed = tally.add(status, seconds, rows)
            if shadow:
                return
            rules = self._rules.get(name)
            if rules is None:
                return
            trial = rules.experiment
            if trial is not None and chosen and (version in (trial.treatment, trial.control)):
                trial.failures.add(version == trial.treatment, float(failed))
            if failed and version == rules.watched:
                self._judge(name, rules, latency=False)

    def disagreed(
        self,
        name: str,
        version: str,
        shadow: str,
        classes: Sequence[int] | None,
        shadow_classes: Sequence[int] | None,
        labels: Sequence[str] = (),
        confidences: Sequence[float] | None = None,
        shadow_confidences: Sequence[float] | None = None,
    ) -> None:
        """Compare the two answers to one request.

        Args:
            name: the model's.
            version, shadow: the version that answered, and the one that got the copy.
            classes, shadow_classes: most probable class of each row.
            labels: names of the classes.
            confidences, shadow_confidences: probability of that class, in [0, 1].
        """
        with self._lock:
            key = (name, shadow, "comparison")
            comparison = self._comparisons.get(key)
            if comparison is None:
                comparison = self._comparisons[key] = Comparison()
                self._wake()
            if labels and not comparison.labels:
                comparison.labels = list(labels)
            if classes is not None and shadow_classes is not None and len(classes) == len(shadow_classes):
                comparison.add(version, classes, shadow_classes)
                if confidences is not None and shadow_confidences is not None:
                    comparison.confident(confidences, shadow_confidences)

    def observe(self, call: Any, answer: Any) -> None:
        """An observer for `Fleet.observers`: counts a finished call.

        It reads `model`, `version`, `chosen`, `shadow`, `cancelled` and `started` of the call, `status` and `rows` of the answer.
        """
        if not call.cancelled:
            self.record(
                call.model,
                call.version,
                status=answer.status,
                seconds=time.monotonic() - call.started,
                rows=answer.rows,
                chosen=call.chosen,
                shadow=call.shadow,
            )

    # --- changes

    def follow(self, path: str | Path) -> None:
        """Take the rules of the models that a file names from it, now and whenever it changes; see `serve.declared`.

        Rules that were applied before, by an earlier server too, are left as they are: what was taken back stays so until
        the file says something else of the model.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it cannot be used.
        """
        self._file = Watched(Path(path), declared.load)
        with self._lock:
            self._declare(self._file.content)
        self._wake()

    def check_free(self, name: str) -> None:
        """Refuse to change what a file rules.

        Raises:
            RequestError: 409, the model is one of those.
        """
        if self._file is not None and name in self._file.content:
            raise _conflict(
                f"the traffic of {name!r} is ruled by the file {self._file.path.name!r}, for every replica alike; change that file"
            )

    def _declare(self, wanted: dict[str, declared.Declared]) -> None:
        """Apply a file, with the lock held."""
        gone = [name for name, plan in self._plans.items() if plan.declared and name not in wanted]
        for name, rules in [*wanted.items(), *((name, declared.Declared()) for name in gone)]:
            plan = self._plans.setdefault(name, Plan())
            text = "" if name in gone else msgspec.json.encode(rules).decode()
            if plan.declared == text and name not in gone:
                continue
            now = self._clock()
            self._end_experiment(name, plan)
            canary, shadow = rules.canary, rules.shadow
            if canary is None:
                plan.canary = None
            elif plan.canary is None or plan.canary.version != canary.version:
                plan.canary = Canary(canary.version, canary.weight, now)
                self._restart_counts(name, canary.version, *filter(None, [rules.pin]))
            else:
                plan.canary.weight = canary.weight
            if shadow is None:
                plan.shadow = None
            elif plan.shadow is None or plan.shadow.version != shadow.version:
                plan.shadow = Shadow(shadow.version, shadow.share, now)
                self._tallies[name, shadow.version, "shadow"] = Tally()
                self._comparisons[name, shadow.version, "comparison"] = Comparison()
            else:
                plan.shadow.share = shadow.share
            plan.pin, plan.watch, plan.fresh, plan.held, plan.declared = rules.pin, rules.watch, None, {}, text
            if name in self._rules:
                self._rules[name] = Rules(name, plan, self._rules[name].versions, self._draw)
            self._tell(name, "declared", "", text or "the file names the model no more")
            self._wake()

    def see(self, name: str, versions: Sequence[str]) -> None:
        """Tell which versions of a model can answer, oldest first; `choose` does it too."""
        with self._lock:
            rules = self._rules.get(name)
            if versions and (rules is None or rules.versions != list(versions)):
                self._see(name, versions)

    def pin(self, name: str, version: str) -> None:
        """Make a version the default until it is unpinned, whatever arrives.

        Raises:
            RequestError: 404, no such model or version; 409, it is the canary, the treatment or the control.
        """
        with self._lock:
            plan = self._plan(name, version)
            if plan.canary is not None and plan.canary.version == version:
                raise _conflict(f"version {version!r} is the canary; promote it, or clear the canary first")
            if plan.experiment is not None:
                raise _conflict("an experiment decides between two versions; clear it, or promote one of them")
            plan.pin, plan.fresh = version, None
            plan.held.pop(version, None)
            self._changed(name, "pinned", version, "")

    def canary(self, name: str, version: str, weight: float) -> None:
        """Send a share of the requests to a version; what it does badly is held against it, see `Watch`.

        Args:
            name: the model's.
            version: gets the share. A version that was the default because it is the latest is so no more.
            weight: in (0, 1].

        Raises:
            RequestError: 404, no such model or version; 409, it is the pinned one, the only one, or an experiment runs; 422, the weight
                is no share.
        """
        _check_share("weight", weight, 1.0)
        with self._lock:
            plan = self._plan(name, version)
            if plan.experiment is not None:
                raise _conflict("an experiment is running; clear it first")
            if plan.pin == version:
                raise _conflict(f"version {version!r} is pinned, so it answers already; pin another one first")
            if not self._others(name, version):
                raise _conflict(f"there is no version of {name!r} beside {version!r} that could get the other requests")
            if plan.canary is None or plan.canary.version != version:
                plan.canary = Canary(version, weight, self._clock())
                plan.held.pop(version, None)
                plan.fresh = None
                rules = Rules(name, plan, self._rules[name].versions, self._draw)
                self._restart_counts(name, version, rules.default)
            plan.canary.weight = weight
            self._changed(name, "canary", version, f"gets {weight:.4g} of the requests")

    def shadow(self, name: str, version: str, share: float = 1.0) -> None:
        """Copy a share of the requests to a version and compare its answers with those that are given.

        Args:
            name: the model's.
            version: gets the copies.
            share: in (0, 1].

        Raises:
            RequestError: 404, no such model or version; 422, the share is none.
        """
        _check_share("share", share, 1.0)
        with self._lock:
            plan = self._plan(name, version)
            if plan.shadow is None or plan.shadow.version != version:
                plan.shadow = Shadow(version, share, self._clock())
                self._tallies[name, version, "shadow"] = Tally()
                self._comparisons[name, version, "comparison"] = Comparison()
            plan.shadow.share = share
            self._changed(name, "shadow", version, f"gets copies of {share:.4g} of the requests")

    def experiment(
        self,
        name: str,
        control: str,
        treatment: str,
        *,
        share: float = 0.5,
        metric: str = "outcome",
        better: str = "higher",
        alpha: float = 0.05,
    ) -> str:
        """Draw between two versions, and compare the outcomes that clients report with `outcome`, and the failures.

        Whether the outcomes differ and whether the failures do are tested with alpha / 2 each, so that versions which are alike in
        both are told apart with probability at most alpha, however often somebody looks. A treatment that fails more is taken
        back by itself; a difference of outcomes is told, and `promote` or `clear` is the operator's.

        Args:
            name: the model's.
            control: the version that is in use.
            treatment: the version on trial.
            share: of the treatment, in (0, 1).
            metric: what the outcome is, for people.
            better: "higher" or "lower".
            alpha: in (0, 1).

        Returns:
            The experiment's id.

        Raises:
            RequestError: 404, no such model or version; 409, a canary or an experiment is there; 422, an argument is out of range.
        """
        _check_share("share", share, 1.0)
        if share == 1:
            raise RequestError("bad_traffic", "share must lie between 0 and 1, got 1; 0.5 compares soonest")
        if not 0 < alpha < 1:
            raise RequestError("bad_traffic", f"alpha must lie between 0 and 1, got {alpha!r}; 0.05 is usual")
        if better not in ("higher", "lower"):
            raise RequestError("bad_traffic", f"better must be 'higher' or 'lower', got {better!r:.40}")
        if not 0 < len(metric) <= 100:
            raise RequestError("bad_traffic", "metric must be a name of 1 to 100 characters, such as 'clicked'")
        if control == treatment:
            raise _conflict(f"control and treatment are both version {control!r}; name two versions")
        with self._lock:
            self._plan(name, control)
            plan = self._plan(name, treatment)
            if plan.canary is not None or plan.experiment is not None:
                what = "a canary" if plan.canary else "an experiment"
                raise _conflict(f"{what} is running; clear it, or promote it, first")
            now = self._clock()
            identity = f"{name}-{int(now)}-{int(self._draw() * 2**32):08x}"
            bets = [Bet(share, Arm(), Arm()) for _ in range(2)]
            plan.experiment = Experiment(
                identity, control, treatment, share, metric, better, alpha, now, bets[0], bets[1]
            )
            plan.fresh = None
            for version in (control, treatment):
                plan.held.pop(version, None)
            self._restart_counts(name, control, treatment)
            detail = f"against version {control}, {share:.4g} of the requests, by {metric!r} ({better} is better)"
            self._changed(name, "experiment", treatment, detail)
            return identity

    def outcome(
        self, name: str, value: float, *, version: str | None = None, key: str | None = None, request: str | None = None
    ) -> dict[str, Any]:
        """Count the outcome of one answer in the experiment that runs.

        Args:
            name: the model's.
            value: in [0, 1]; 0 or 1 for no and yes.
            version: that answered, as the answer told; not needed with a key.
            key: of the client, if the request had one; its first outcome counts.
            request: the request's id otherwise; it counts once.

        Returns:
            `counted`, and if it was not, `reason`.

        Raises:
            RequestError: 409, no experiment runs, or the key was given another version; 422, an argument is missing or out of range.
        """
        if not 0 <= value <= 1:
            raise RequestError("bad_outcome", f"an outcome must lie in 0 … 1, got {value!r}; scale it")
        unit = key or request
        if not unit:
            raise RequestError(
                "bad_outcome", "say whose outcome it is: the key the request was sent with, or its request id"
            )
        with self._lock:
            rules = self._rules.get(name)
            trial = rules.experiment if rules else None
            if trial is None:
                raise RequestError("no_experiment", f"no experiment is running on {name!r:.80}", 409)
            if key:
                given = trial.treatment if place_of(trial.id, key) < trial.share else trial.control
                if version not in (None, given):
                    message = f"this key was given version {given!r}, not {version!r:.40}; report what the answer said"
                    raise RequestError("wrong_version", message, 409)
                version = given
            if version is None:
                raise RequestError("bad_outcome", "say which version answered; it is in every answer, as model_version")
            if version not in (trial.treatment, trial.control):
                message = f"version {version!r:.40} is not in the experiment, which compares {trial.control!r} and {trial.treatment!r}"
                return {"counted": False, "reason": message}
            digest = blake2b(
                f"{trial.id}\0{'key' if key else 'id'}\0{unit}".encode("utf-8", "surrogatepass"), digest_size=8
            ).digest()
            if not self._first(trial.id, int.from_bytes(digest, signed=True)):
                return {
                    "counted": False,
                    "reason": f"an outcome of this {'key' if key else 'request'} was counted before",
                }
            trial.outcomes.add(version == trial.treatment, float(value))
            self._decide(name, trial)
            return {"counted": True}

    def watch(self, name: str, **changes: Any) -> None:
        """Change when a new version is taken back by itself; see `Watch` for the names.

        Raises:
            RequestError: 404, no such model; 422, no such setting, or it is out of range.
        """
        with self._lock:
            plan = self._plan(name)
            try:
                watch = msgspec.convert(msgspec.to_builtins(plan.watch) | changes, Watch)
            except msgspec.ValidationError as error:
                names = ", ".join(Watch.__struct_fields__)
                raise RequestError("bad_traffic", f"{str(error)[:200].lower()}; the settings are {names}") from None
            watch.check()
            plan.watch = watch
            self._changed(name, "watch", "", ", ".join(f"{key}={value}" for key, value in changes.items()))

    def promote(self, name: str, version: str | None = None) -> str:
        """Make the canary, or a version of the experiment, the default, and watch it against the one before.

        Args:
            name: the model's.
            version: the canary or the treatment if None.

        Returns:
            The version that is the default now.

        Raises:
            RequestError: 404, no such model or version; 409, there is nothing to promote.
        """
        with self._lock:
            plan = self._plan(name, *([version] if version else []))
            rules = self._rules[name]
            trial = plan.canary.version if plan.canary else plan.experiment.treatment if plan.experiment else None
            version = version or trial
            if version is None:
                raise _conflict(f"{name!r} has neither a canary nor an experiment; pin a version instead")
            before = plan.experiment.control if plan.experiment else rules.default
            self._end_experiment(name, plan)
            plan.canary = None
            plan.held.pop(version, None)
            free = [known for known in rules.versions if known not in plan.held]
            plan.pin = None if plan.pin is None and version == free[-1] else version
            plan.fresh = Fresh(version, before, self._clock()) if version != before else None
            self._changed(name, "promoted", version, f"in place of version {before}")
            return version

    def rollback(self, name: str, reason: str = "") -> str:
        """Take back the canary, else the treatment, else the default version, and hold it until it is released.

        Args:
            name: the model's.
            reason: for the history.

        Returns:
            The version that is the default now.

        Raises:
            RequestError: 404, no such model; 409, there is no other version.
        """
        with self._lock:
            self._plan(name)
            rules = self._rules[name]
            version = rules.experiment.treatment if rules.experiment else rules.canary or rules.default
            if not self._others(name, version):
                raise _conflict(f"there is no version of {name!r} beside {version!r} that could answer instead")
            self._take_back(name, version, "operator", reason or "by hand")
            return self._rules[name].default

    def release(self, name: str, version: str) -> None:
        """Let a version that was taken back answer again, as soon as the rules choose it.

        Raises:
            RequestError: 404, no such model; 409, the version is not held.
        """
        with self._lock:
            plan = self._plan(name)
            if version not in plan.held:
                held = ", ".join(plan.held) or "none"
                raise _conflict(f"version {version!r:.40} of {name!r} is not held back; held are: {held}")
            before = self._rules[name].default
            del plan.held[version]
            self._restart_counts(name, version)
            self._changed(name, "released", version, "")
            self._watch_default(name, before)

    def clear(self, name: str, what: str = "all") -> None:
        """End a rule: "pin", "canary", "shadow", "experiment", "held", or "all", after which the latest version answers.

        A canary or a treatment that would become the default by that, being the latest, is held back unless it is all.

        Raises:
            RequestError: 404, no such model; 422, no such rule.
        """
        rules = ("pin", "canary", "shadow", "experiment", "held")
        if what not in (*rules, "all"):
            message = f"{what!r:.40} is no rule; the rules are {', '.join(rules)} and all.{did_you_mean(what, rules)}"
            raise RequestError("bad_traffic", message)
        with self._lock:
            plan = self._plan(name)
            trial = plan.experiment.treatment if plan.experiment else plan.canary.version if plan.canary else None
            before = self._rules[name].default
            for rule in rules if what == "all" else (what,):
                if rule == "held":
                    plan.held.clear()
                elif rule == "experiment":
                    self._end_experiment(name, plan)
                else:
                    setattr(plan, rule, None)
            self._changed(name, "cleared", "", what)
            ended = plan.canary is None and plan.experiment is None
            if what != "all" and ended and trial == self._rules[name].default and self._others(name, trial):
                plan.held[trial] = f"its {what} was cleared without promoting it"
                self._changed(name, "held", trial, plan.held[trial])
            self._watch_default(name, before)

    # --- what is known

    def models(self) -> list[str]:
        """Models that have been seen, or have stored rules."""
        with self._lock:
            return sorted({*self._rules, *self._plans})

    def describe(self, name: str) -> dict[str, Any]:
        """Rules, counts and tests of one model, ready for JSON; the defaults for a model that nobody asked yet."""
        with self._lock:
            rules = self._rules.get(name)
            plan = self._plans.get(name) or Plan()
            told: dict[str, Any] = {
                "model": name,
                "versions": rules.versions if rules else [],
                "default": rules.default if rules else None,
                "shares": rules.shares() if rules else {},
                "pin": plan.pin,
                "canary": msgspec.to_builtins(plan.canary),
                "shadow": msgspec.to_builtins(plan.shadow),
                "experiment": self._experiment_told(plan.experiment) if plan.experiment else None,
                "fresh": msgspec.to_builtins(plan.fresh),
                "held": dict(plan.held),
                "file": self._file.path.name if self._file and name in self._file.content else None,
                "watch": msgspec.to_builtins(plan.watch),
                "ignored": rules.ignored
                if rules
                else ["no version of the model has been served since the start; its rules are kept"]
                if name in self._plans
                else [],
                "answers": {
                    version: tally.told()
                    for (model, version, kind), tally in self._tallies.items()
                    if model == name and kind == "answers"
                },
            }
            if plan.shadow is not None:
                tally = self._tallies.get((name, plan.shadow.version, "shadow"), Tally())
                comparison = self._comparisons.get((name, plan.shadow.version, "comparison"), Comparison())
                told["shadow"] |= {"answers": tally.told(), "comparison": comparison.told()}
        return told | {"state": self.saved()}

    def saved(self) -> dict[str, Any]:
        """Whether rules outlive the server: `saved`, and `problem` if they do not."""
        problem = self.state.problem
        return {"saved": not problem, "problem": problem}

    def history(self, name: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """What happened, newest first: time (seconds since 1970), model, event, version, detail."""
        with self._lock:
            events = [event for event in self._history if name in (None, event.model)]
        return [msgspec.to_builtins(event) for event in events[::-1][:limit]]

    def samples(self) -> list[tuple[str, str, dict[str, str], float]]:
        """Figures for Prometheus: name, "gauge" or "counter", labels, value."""
        found: list[tuple[str, str, dict[str, str], float]] = []

        def put(name: str, value: float, kind: str = "gauge", **labels: str) -> None:
            found.append((name, kind, labels, value))

        if self.state.folder is not None:
            put("zoo_state_saved", float(not self.state.problem))
        with self._lock:
            for (name, version, cause), count in self.rollbacks.items():
                put("zoo_rollbacks", float(count), "counter", model=name, version=version, cause=cause)
            for name, rules in self._rules.items():
                for version, share in rules.shares().items():
                    put("zoo_traffic_share", share, model=name, version=version)
                for version in rules.plan.held:
                    put("zoo_version_held", 1.0, model=name, version=version)
                if rules.experiment:
                    for test, bet in (("outcome", rules.experiment.outcomes), ("failures", rules.experiment.failures)):
                        put("zoo_experiment_p", min(1.0, 2 * bet.p), model=name, test=test)
            for (name, version, _), comparison in self._comparisons.items():
                put("zoo_shadow_rows", float(comparison.rows), "counter", model=name, version=version)
                put("zoo_shadow_disagreements", float(comparison.differ), "counter", model=name, version=version)
        return found

    # --- behind the requests

    def tick(self) -> None:
        """Judge what only time shows (latency, the end of a watch) and write; a thread does it once a second."""
        changed = self._file is not None and self._file.look()
        with self._lock:
            if changed and self._file is not None:
                self._declare(self._file.content)
            now = self._clock()
            for name, rules in list(self._rules.items()):
                plan = rules.plan
                if plan.fresh is not None and now - plan.fresh.since > plan.watch.fresh_seconds:
                    version, plan.fresh = plan.fresh.version, None
                    self._changed(name, "settled", version, "it did no worse than the version before")
                elif rules.watched is not None:
                    self._judge(name, rules, latency=True)
                if plan.experiment is not None:
                    self._decide(name, plan.experiment)
        self.flush(patient=True)

    def flush(self, patient: bool = False) -> bool:
        """Write what changed.

        Args:
            patient: leave a file alone that could not be written a short while ago.

        Returns:
            Whether everything is on disk.
        """
        with self._flushing:
            if not patient:
                self.state.retry()
            begun = self.state.begun
            done = self._write()
            if done and self.state.begun != begun:  # the file was lost and begun anew
                with self._lock:
                    self._written_plans.clear()
                    self._written_tallies.clear()
                done = self._write()
            return done

    def close(self) -> None:
        """Write what changed and let go of the file; nothing is written any more."""
        self._stop.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=10)
        self.flush()
        with self._flushing:
            self.state.close()

    # --- inside, with the lock held

    def _load(self) -> None:
        saved = self.state.load(self._history.maxlen or 0, 2 * UNITS)
        for name, text in saved.plans.items():
            try:
                self._plans[name] = msgspec.json.decode(text, type=Plan)
            except msgspec.DecodeError as error:
                logger.error("the stored rules of %s cannot be read (%s); it starts without", name, error)
                continue
            self._written_plans[name] = text
        for key, text in saved.tallies.items():
            try:
                if key[2] == "comparison":
                    self._comparisons[key] = msgspec.json.decode(text, type=Comparison)
                    self._written_tallies[key] = self._comparisons[key].rows
                else:
                    tally = msgspec.json.decode(text, type=Tally)
                    if len(tally.seconds) == len(EDGES) + 1:
                        self._tallies[key] = tally
                        self._written_tallies[key] = tally.requests
            except msgspec.DecodeError as error:
                logger.error("stored counts of %s version %s cannot be read (%s)", key[0], key[1], error)
        self._history.extend(saved.events)
        for identity, unit in saved.reported:
            self._reported.setdefault(identity, (set(), set()))[0].add(unit)

    def _see(self, name: str, versions: Iterable[str]) -> Rules:
        """Apply a model's plan to the versions that are there now."""
        listed = list(versions)
        if not listed:
            raise self._unknown(name)
        plan = self._plans.setdefault(name, Plan())
        new = [version for version in listed if version not in plan.known]
        before = [version for version in listed if version in plan.known and version not in plan.held]
        rules = Rules(name, plan, listed, self._draw)
        if before and rules.default in new:
            base = before[-1]
            plan.fresh = Fresh(rules.default, base, self._clock())
            self._restart_counts(name, rules.default)
            self._tell(name, "arrived", rules.default, f"answers in place of version {base}, and is watched")
            rules = Rules(name, plan, listed, self._draw)
        if new:
            plan.known = (plan.known + new)[-KNOWN:]
            plan.held = {version: why for version, why in plan.held.items() if version in plan.known}
            for counted in (self._tallies, self._comparisons):
                for key in [key for key in counted if key[0] == name and key[1] not in plan.known]:
                    del counted[key]
        previous = self._rules.get(name)
        self._rules[name] = rules
        for message in rules.ignored:
            if previous is None or message not in previous.ignored:
                logger.warning("%s: %s", name, message)
                self._tell(name, "ignored", "", message)
        self._wake()
        return rules

    def _plan(self, name: str, *versions: str) -> Plan:
        """The plan of a model that has been seen and has these versions."""
        rules = self._rules.get(name)
        if rules is None:
            raise self._unknown(name)
        for version in versions:
            if version not in rules.versions:
                message = f"model {name!r} has no version {version!r:.40}; it has {', '.join(rules.versions)}"
                raise RequestError("unknown_version", message, 404)
        return rules.plan

    def _unknown(self, name: str) -> RequestError:
        message = f"no model is called {name!r:.80} ({len(self._rules)} have traffic).{did_you_mean(name, self._rules)}"
        return RequestError("unknown_model", message, 404)

    def _others(self, name: str, version: str) -> list[str]:
        """Versions that could answer in place of one."""
        rules = self._rules[name]
        return [other for other in rules.versions if other != version and other not in rules.plan.held]

    def _watch_default(self, name: str, before: str) -> None:
        """Watch a version that became the default because a rule ended, against the one that was it before."""
        rules = self._rules[name]
        plan = rules.plan
        if rules.default in (before, plan.pin) or plan.canary or plan.experiment:
            return
        plan.fresh = Fresh(rules.default, before, self._clock())
        self._restart_counts(name, rules.default)
        self._changed(name, "default", rules.default, f"answers in place of version {before}, and is watched")

    def _changed(self, name: str, event: str, version: str, detail: str) -> None:
        """Apply a changed plan."""
        rules = self._rules[name]
        self._rules[name] = Rules(name, rules.plan, rules.versions, self._draw)
        self._tell(name, event, version, detail)
        self._wake()

    def _tell(self, name: str, event: str, version: str, detail: str) -> None:
        entry = Event(self._clock(), name, event, version, detail)
        self._history.append(entry)
        self._new_events.append(entry)
        logger.info("traffic of %s: %s %s %s", name, event, version, detail)

    def _restart_counts(self, name: str, *versions: str) -> None:
        for version in versions:
            self._tallies[name, version, "answers"] = Tally()
            self._written_tallies.pop((name, version, "answers"), None)

    def _judge(self, name: str, rules: Rules, *, latency: bool) -> None:
        """Take the watched version back if it does worse than the one it is to replace."""
        version, watch = rules.watched, rules.plan.watch
        if version is None or not watch.on:
            return
        nothing = Tally()
        new = self._tallies.get((name, version, "answers"), nothing)
        old = self._tallies.get((name, rules.baseline, "answers"), nothing)
        needed = log(1 / watch.alpha)
        if new.failures and new.requests >= watch.requests:
            rate = new.failures / new.requests
            told = f"{new.failures} of {new.requests} requests failed"
            if old.requests >= watch.requests:
                if rate <= old.failures / old.requests + watch.margin:
                    evidence = 0.0
                else:
                    evidence = differs(Arm(new.requests, new.failures), Arm(old.requests, old.failures))
                if evidence >= needed:
                    told += f", {old.failures} of {old.requests} at version {rules.baseline} (p {exp(-evidence):.2g})"
                    self._take_back(name, version, "failures", told)
                    return
            elif rate > watch.most_failures:
                told += (
                    f", more than {watch.most_failures:.0%}, and version {rules.baseline} has had too few to compare"
                )
                self._take_back(name, version, "failures", told)
                return
        if latency and min(new.requests, old.requests) >= watch.slow_requests:
            base = old.quantile(watch.quantile)
            assert base is not None  # it has answers
            limit = max(watch.slower * base, base + watch.slower_seconds)
            slow, count = new.slower_than(limit), sum(new.seconds)
            if exceeds(slow, count, 1 - watch.quantile) >= needed:
                self._take_back(
                    name,
                    version,
                    "latency",
                    f"{slow} of {count} requests took longer than {limit * 1000:.3g} ms; at version {rules.baseline} "
                    f"{watch.quantile:.0%} are answered in {base * 1000:.3g} ms",
                )

    def _take_back(self, name: str, version: str, cause: str, reason: str) -> None:
        """Give a version no more requests until it is released, if another one can have them."""
        rules = self._rules[name]
        plan = rules.plan
        if not self._others(name, version):
            if not rules.told_kept:
                rules.told_kept = True
                self._tell(name, "kept", version, f"{reason}; there is no other version to go back to")
                logger.warning("%s version %s does badly, and there is no other: %s", name, version, reason)
            return
        if plan.canary is not None and plan.canary.version == version:
            plan.canary = None
        if plan.experiment is not None and plan.experiment.treatment == version:
            self._end_experiment(name, plan)
        base = rules.baseline if version == rules.watched else None
        if plan.pin == version:
            plan.pin = base if base in rules.versions and base != version else None
        plan.fresh = None
        plan.held[version] = reason
        self.rollbacks[name, version, cause] += 1
        self._changed(name, "rolled_back", version, f"{cause}: {reason}")
        default = self._rules[name].default
        logger.warning("%s version %s is taken back, %s answers (%s): %s", name, version, default, cause, reason)

    def _decide(self, name: str, trial: Experiment) -> None:
        """Tell, once, what the tests of an experiment have shown."""
        needed = log(2 / trial.alpha)
        if "outcome" not in trial.decided and trial.outcomes.highest >= needed:
            trial.decided["outcome"] = winner = self._winner(trial, trial.outcomes, trial.better)
            detail = f"{trial.metric!r} is better at version {winner} (p {2 * trial.outcomes.p:.2g})"
            self._tell(name, "decided", winner, detail)
        if "failures" not in trial.decided and trial.failures.highest >= needed:
            trial.decided["failures"] = winner = self._winner(trial, trial.failures, "lower")
            detail = f"version {winner} fails less (p {2 * trial.failures.p:.2g})"
            self._tell(name, "decided", winner, detail)
            plan = self._plans[name]
            if winner == trial.control and plan.experiment is trial and plan.watch.on:
                first, second = trial.failures.first, trial.failures.second
                detail = f"{second.total:.0f} of {second.count} requests failed, {first.total:.0f} of {first.count} at the control"
                self._take_back(name, trial.treatment, "experiment", detail)

    @staticmethod
    def _winner(trial: Experiment, bet: Bet, better: str) -> str:
        return trial.treatment if ((bet.difference or 0.0) > 0) == (better == "higher") else trial.control

    def _end_experiment(self, name: str, plan: Plan) -> None:
        trial = plan.experiment
        if trial is None:
            return
        told = self._experiment_told(trial)
        parts = [f"{trial.metric!r} {trial.outcomes.first.mean} against {trial.outcomes.second.mean}"]
        parts += [f"{test} {told[test]['verdict']} (p {told[test]['p']:.2g})" for test in ("outcome", "failures")]
        plan.experiment = None
        self._reported.pop(trial.id, None)
        self._forgotten.append(trial.id)
        self._tell(name, "experiment_ended", trial.treatment, ", ".join(parts))

    def _experiment_told(self, trial: Experiment) -> dict[str, Any]:
        """An experiment's figures: each test with its p-value, means, intervals and what they say."""
        told: dict[str, Any] = {
            name: getattr(trial, name)
            for name in ("id", "control", "treatment", "share", "metric", "better", "alpha", "since")
        }
        for test, bet in (("outcome", trial.outcomes), ("failures", trial.failures)):
            # a quarter of alpha for each of two arms in two tests
            bounds = [interval(arm, trial.alpha / 4) for arm in (bet.first, bet.second)]
            winner = trial.decided.get(test)
            told[test] = {
                "control": {"count": bet.first.count, "mean": bet.first.mean, "interval": bounds[0]},
                "treatment": {"count": bet.second.count, "mean": bet.second.mean, "interval": bounds[1]},
                "difference": bet.difference,
                "difference_interval": (bounds[1][0] - bounds[0][1], bounds[1][1] - bounds[0][0]),
                "p": min(1.0, 2 * bet.p),
                "verdict": f"version {winner} is better" if winner else "not decided yet",
            }
        return told | {"source": SOURCE}

    def _first(self, identity: str, unit: int) -> bool:
        """Whether a unit has not been reported; it is now."""
        new, old = self._reported.setdefault(identity, (set(), set()))
        if unit in new or unit in old:
            return False
        if len(new) >= UNITS:
            new, old = self._reported[identity] = (set(), new)
        new.add(unit)
        self._new_reports.append((identity, unit))
        return True

    def _write(self) -> bool:
        """One save of what differs from the file; what fails is offered again."""
        if self.state.folder is None:
            return False
        with self._lock:
            plans: dict[str, str | None] = {}
            for name, plan in self._plans.items():
                text = msgspec.json.encode(plan).decode()
                if self._written_plans.get(name) != text:
                    plans[name] = text
            counts = {key: tally.requests for key, tally in self._tallies.items()}
            counts |= {key: comparison.rows for key, comparison in self._comparisons.items()}
            stored: dict[TallyKey, Tally | Comparison] = {**self._tallies, **self._comparisons}
            tallies: dict[TallyKey, str | None] = {
                key: msgspec.json.encode(stored[key]).decode()
                for key, count in counts.items()
                if self._written_tallies.get(key) != count
            }
            tallies |= {key: None for key in self._written_tallies if key not in counts}
            events, reports = list(self._new_events), list(self._new_reports)
            forgotten = list(self._forgotten)
        if not (plans or tallies or events or reports or forgotten):
            return not self.state.problem
        if not self.state.save(plans, tallies, events, reports, forgotten):
            return False
        with self._lock:
            self._written_plans |= {name: text for name, text in plans.items() if text is not None}
            for key, written in tallies.items():
                if written is None:
                    self._written_tallies.pop(key, None)
                else:
                    self._written_tallies[key] = counts[key]
            for queue, done in ((self._new_events, events), (self._new_reports, reports)):
                for _ in range(min(len(done), len(queue))):
                    queue.popleft()
            del self._forgotten[: len(forgotten)]
        return True

    def _wake(self) -> None:
        """Start the thread that judges and writes, when there is first something to do."""
        if self._thread is None and self._every > 0 and not self._stop.is_set():
            arguments = (weakref.ref(self), self._stop, self._every)
            self._thread = threading.Thread(target=_tend, args=arguments, name="traffic", daemon=True)
            self._thread.start()


def _tend(reference: "weakref.ref[Traffic]", stop: threading.Event, every: float) -> None:
    """Tick until the traffic is closed or forgotten."""
    while not stop.wait(every):
        traffic = reference()
        if traffic is None:
            return
        try:
            traffic.tick()
        except Exception as error:  # the next second has another try; a thread that ended would write nothing any more
            logger.error("rules could not be judged or written: %s", type(error).__name__, exc_info=error)
        del traffic


def _check_share(name: str, value: float, most: float) -> None:
    if not (isinstance(value, (int, float)) and 0 < value <= most):
        raise RequestError(
            "bad_traffic", f"{name} must lie above 0 and be at most {most:g}, got {value!r:.40}; 0.1 is a tenth"
        )


def _conflict(message: str) -> RequestError:
    return RequestError("traffic_conflict", message, 409)
