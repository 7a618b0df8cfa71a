"""The rules of all models and how they change: by an operator, by a file, and by themselves when a version does badly.

A model has, in this order: an experiment (two versions, drawn at random), or a canary (a share of the requests goes to
one version), or the default version: the pinned one, else the latest that is not held back. Any of them may have a
shadow, a version that computes a copy of some requests and answers nobody.
"""

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from serve import declared
from serve.counts import Tally
from serve.credentials import Watched
from serve.errors import RequestError, did_you_mean
from serve.evidence import Arm, Bet
from serve.experiment import Experiment, check_share
from serve.ledger import Ledger
from serve.rules import Canary, Fresh, Plan, Rules, Shadow
from serve.watch import Watch

logger = logging.getLogger("serve")

KNOWN = 100  # versions of a model that are remembered


class Rollouts:
    """Rules of all models. Methods may be called from any thread.

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
            folder: where rules, counts and history are kept; nowhere if None, or if it cannot be written, which is told
                in the log and in `describe`.
            seed: of the draws; of the system's randomness if None.
            clock: seconds since 1970.
            every: seconds between two writes; 0 for none but those of `flush`.
        """
        self.rollbacks: Counter[tuple[str, str, str]] = Counter()
        self._clock = clock
        self._draw = random.Random(seed).random
        self._lock = threading.Lock()
        self._rules: dict[str, Rules] = {}
        self._file: Watched[dict[str, declared.Declared]] | None = None
        self._ledger = Ledger(folder, self._lock, self.tick, clock=clock, every=every)
        self._plans, self._tallies = self._ledger.plans, self._ledger.tallies
        self.state = self._ledger.state

    # by an operator

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
            RequestError: 404, no such model or version; 409, it is the pinned one, the only one, or an experiment runs;
                422, the weight is no share.
        """
        check_share("weight", weight)
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
                self._ledger.count_anew(name, version, rules.default)
            plan.canary.weight = weight
            self._changed(name, "canary", version, f"gets {weight:.4g} of the requests")

    def shadow(self, name: str, version: str, share: float = 1.0) -> None:
        """Copy a share of the requests to a version and compare its answers with those that are given.

        Args:
            name: the model's.
            version: gets the copies.
            share: in (0, 1].

        Raises:
            RequestError: 404, no such model or version; 409, it answers every request itself; 422, the share is none.
        """
        check_share("share", share)
        with self._lock:
            plan = self._plan(name, version)
            if self._rules[name].default == version and plan.canary is None and plan.experiment is None:
                raise _conflict(
                    f"version {version!r} of {name!r} answers every request itself, so there is nothing to compare it with; "
                    "shadow another version, or pin another one first"
                )
            if plan.shadow is None or plan.shadow.version != version:
                plan.shadow = Shadow(version, share, self._clock())
                self._ledger.compare_anew(name, version)
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

        Whether the outcomes differ and whether the failures do are tested with alpha / 2 each, so that versions which
        are alike in both are told apart with probability at most alpha, however often somebody looks. A treatment that
        fails more is taken back by itself; a difference of outcomes is told, and `promote` or `clear` is the
        operator's.

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
            RequestError: 404, no such model or version; 409, a canary or an experiment is there; 422, an argument is
                out of range.
        """
        bets = [Bet(share, Arm(), Arm()) for _ in range(2)]
        trial = Experiment("", control, treatment, share, metric, better, alpha, 0.0, bets[0], bets[1])
        trial.check()
        with self._lock:
            self._plan(name, control)
            plan = self._plan(name, treatment)
            if plan.canary is not None or plan.experiment is not None:
                what = "a canary" if plan.canary else "an experiment"
                raise _conflict(f"{what} is running; clear it, or promote it, first")
            trial.since = self._clock()
            trial.id = f"{name}-{int(trial.since)}-{int(self._draw() * 2**32):08x}"
            plan.experiment = trial
            plan.fresh = None
            for version in (control, treatment):
                plan.held.pop(version, None)
            self._ledger.count_anew(name, control, treatment)
            detail = f"against version {control}, {share:.4g} of the requests, by {metric!r} ({better} is better)"
            self._changed(name, "experiment", treatment, detail)
            return trial.id

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
            self._ledger.count_anew(name, version)
            self._changed(name, "released", version, "")
            self._watch_default(name, before)

    def clear(self, name: str, what: str = "all") -> None:
        """End a rule: "pin", "canary", "shadow", "experiment" or "held"; or "all", after which the latest answers.

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

    # by a file

    def follow(self, path: str | Path) -> None:
        """Take the rules of the models that a file names from it, now and whenever it changes; see `serve.declared`.

        Rules that were applied before, by an earlier server too, are left as they are: what was taken back stays so
        until the file says something else of the model.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it cannot be used.
        """
        self._file = Watched(Path(path), declared.load)
        with self._lock:
            self._declare(self._file.content)
        self._ledger.wake()

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
            self._end_experiment(name, plan)
            canary, shadow = plan.canary, plan.shadow
            rules.apply(plan, self._clock())
            plan.declared = text
            if plan.canary is not None and plan.canary is not canary:
                self._ledger.count_anew(name, plan.canary.version, *filter(None, [plan.pin]))
            if plan.shadow is not None and plan.shadow is not shadow:
                self._ledger.compare_anew(name, plan.shadow.version)
            if name in self._rules:
                self._rules[name] = Rules(name, plan, self._rules[name].versions, self._draw)
            self._ledger.tell(name, "declared", "", text or "the file names the model no more")
            self._ledger.wake()

    # by themselves

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
        return self._ledger.flush(patient)

    def close(self) -> None:
        """Write what changed and let go of the file; nothing is written any more."""
        self._ledger.close()

    # inside, with the lock held

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
            self._ledger.count_anew(name, rules.default)
            self._ledger.tell(name, "arrived", rules.default, f"answers in place of version {base}, and is watched")
            rules = Rules(name, plan, listed, self._draw)
        if new:
            plan.known = (plan.known + new)[-KNOWN:]
            plan.held = {version: why for version, why in plan.held.items() if version in plan.known}
            self._ledger.keep(name, plan.known)
        previous = self._rules.get(name)
        self._rules[name] = rules
        for message in rules.ignored:
            if previous is None or message not in previous.ignored:
                logger.warning("%s: %s", name, message)
                self._ledger.tell(name, "ignored", "", message)
        self._ledger.wake()
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
        self._ledger.count_anew(name, rules.default)
        self._changed(name, "default", rules.default, f"answers in place of version {before}, and is watched")

    def _changed(self, name: str, event: str, version: str, detail: str) -> None:
        """Apply a changed plan."""
        rules = self._rules[name]
        self._rules[name] = Rules(name, rules.plan, rules.versions, self._draw)
        self._ledger.tell(name, event, version, detail)
        self._ledger.wake()

    def _judge(self, name: str, rules: Rules, *, latency: bool) -> None:
        """Take the watched version back if it does worse than the one it is to replace."""
        version, watch = rules.watched, rules.plan.watch
        if version is None or not watch.on:
            return
        nothing = Tally()
        new = self._tallies.get((name, version, "answers"), nothing)
        old = self._tallies.get((name, rules.baseline, "answers"), nothing)
        found = watch.verdict(new, old, rules.baseline, latency=latency)
        if found is not None:
            self._take_back(name, version, *found)

    def _take_back(self, name: str, version: str, cause: str, reason: str) -> None:
        """Give a version no more requests until it is released, if another one can have them."""
        rules = self._rules[name]
        plan = rules.plan
        if not self._others(name, version):
            if not rules.told_kept:
                rules.told_kept = True
                self._ledger.tell(name, "kept", version, f"{reason}; there is no other version to go back to")
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
        for test, winner, p in trial.decide():
            said = f"version {winner} fails less"
            if test == "outcome":
                said = f"{trial.metric!r} is better at version {winner}"
            self._ledger.tell(name, "decided", winner, f"{said} (p {p:.2g})")
            plan = self._plans[name]
            if test == "failures" and winner == trial.control and plan.experiment is trial and plan.watch.on:
                first, second = trial.failures.first, trial.failures.second
                detail = (
                    f"{second.total:.0f} of {second.count} requests failed, {first.total:.0f} of {first.count} at the "
                    "control"
                )
                self._take_back(name, trial.treatment, "experiment", detail)

    def _end_experiment(self, name: str, plan: Plan) -> None:
        trial = plan.experiment
        if trial is None:
            return
        plan.experiment = None
        self._ledger.forget(trial.id)
        self._ledger.tell(name, "experiment_ended", trial.treatment, trial.summary())


def _conflict(message: str) -> RequestError:
    return RequestError("traffic_conflict", message, 409)
