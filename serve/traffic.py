"""Which version answers a request that names none, and what is learned from its answer. Knows no HTTP.

`Traffic.choose` decides, `Traffic.record` learns how it went; both take a few microseconds and touch no disk.
"""

import time
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from serve.counts import Comparison, Tally
from serve.errors import RequestError
from serve.rollouts import Rollouts
from serve.rules import Plan, place_of

NOT_ANSWERED = {401, 403, 404, 429, 499, 503}  # no version had to do with it


class Traffic(Rollouts):
    """Rules, counts and history of all models, see `Rollouts`. Methods may be called from any thread."""

    # on the way of every request

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
            chosen: the rules chose the version; an answer of a version that the client named is no part of an
                experiment.
            shadow: it was a copy, whose answer nobody saw.
        """
        if status in NOT_ANSWERED:
            return
        with self._lock:
            tally = self._tallies.get((name, version, "shadow" if shadow else "answers"))
            if tally is None:
                tally = self._tallies[name, version, "shadow" if shadow else "answers"] = Tally()
                self._ledger.wake()
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
        labels: Sequence[str],
        values: Sequence[float],
        shadow_values: Sequence[float],
    ) -> None:
        """Compare the two answers to one request.

        Args:
            name: the model's.
            version, shadow: the version that answered, and the one that got the copy.
            classes, shadow_classes: most probable class of each row; None of models that answer values.
            labels: names of the classes.
            values, shadow_values: probability of that class, in [0, 1], or the value.
        """
        if len(values) != len(shadow_values):
            return
        with self._lock:
            key = (name, shadow, "comparison")
            comparison = self._ledger.comparisons.get(key)
            if comparison is None:
                comparison = self._ledger.comparisons[key] = Comparison()
                self._ledger.wake()
            if labels and not comparison.labels:
                comparison.labels = list(labels)
            if classes is not None and shadow_classes is not None:
                comparison.add(version, classes, shadow_classes)
                comparison.confident(values, shadow_values)
            elif classes is None and shadow_classes is None:
                comparison.add_values(version, values, shadow_values)

    def observe(self, call: Any, answer: Any) -> None:
        """An observer for `Fleet.observers`: counts a finished call.

        It reads `model`, `version`, `chosen`, `shadow`, `cancelled` and `started` of the call, `status` and `rows` of
        the answer.
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

    # what clients report

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
            RequestError: 409, no experiment runs, or the key was given another version; 422, an argument is missing or
                out of range.
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
            if not self._ledger.first(trial.id, int.from_bytes(digest, signed=True)):
                return {
                    "counted": False,
                    "reason": f"an outcome of this {'key' if key else 'request'} was counted before",
                }
            trial.outcomes.add(version == trial.treatment, float(value))
            self._decide(name, trial)
            return {"counted": True}

    # what is known

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
                "experiment": plan.experiment.told() if plan.experiment else None,
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
                comparison = self._ledger.comparisons.get((name, plan.shadow.version, "comparison"), Comparison())
                told["shadow"] |= {"answers": tally.told(), "comparison": comparison.told()}
        return told | {"state": self.saved()}

    def saved(self) -> dict[str, Any]:
        """Whether rules outlive the server: `saved`, and `problem` if they do not."""
        problem = self.state.problem
        return {"saved": not problem, "problem": problem}

    def history(self, name: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """What happened, newest first: time (seconds since 1970), model, event, version, detail."""
        with self._lock:
            events = [event for event in self._ledger.history if name in (None, event.model)]
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
            for (name, version, _), comparison in self._ledger.comparisons.items():
                put("zoo_shadow_rows", float(comparison.rows), "counter", model=name, version=version)
                put("zoo_shadow_disagreements", float(comparison.differ), "counter", model=name, version=version)
                relative = comparison.values.told()["of_spread"]
                if relative is not None:
                    put("zoo_shadow_value_difference", relative, model=name, version=version)
        return found
