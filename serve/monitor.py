"""Figures of requests, their log lines and traces; never what was in them.

Counting costs a request one dictionary look-up and a few additions; Prometheus' own objects are made when somebody asks
for the figures. `METRICS` is the one list of what there is.
"""

import logging
import os
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import Any

import msgspec

from serve.lines import Lines
from serve.memory import resident
from serve.tracing import TRACEPARENT, tracer

log = logging.getLogger("serve")
access = logging.getLogger("serve.access")

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
WORKER_STATES = ("starting", "ready", "dead")
COLUMNS = 50  # columns of one version whose drift is published, worst first
# statuses of requests turned away for what the server is or allows, not for what they hold
TURNED_AWAY = frozenset((401, 403, 408, 413, 429, 431, 503, 504))


@dataclass(frozen=True)
class Metric:
    """One metric: its Prometheus type, its labels and what it says."""

    kind: str
    labels: tuple[str, ...]
    help: str


_VERSION = ("model", "version")

METRICS = {
    "zoo_requests_total": Metric("counter", (*_VERSION, "route", "status"), "Requests answered."),
    "zoo_request_seconds": Metric("histogram", (*_VERSION, "route"), "Time from a request's arrival to its answer."),
    "zoo_errors_total": Metric("counter", (*_VERSION, "code"), "Requests answered with an error, by its code."),
    "zoo_rejected_total": Metric(
        "counter", ("model", "reason"), "Requests turned away: no key, too many, too large, queue full, too late."
    ),
    "zoo_inferences_total": Metric(
        "counter", (*_VERSION, "role", "status"), "Inferences finished, as an answer or as a shadow of one."
    ),
    "zoo_rows_total": Metric("counter", _VERSION, "Rows predicted."),
    "zoo_tokens_total": Metric("counter", _VERSION, "Tokens of texts that were written."),
    "zoo_first_token_seconds": Metric("histogram", _VERSION, "Time from a request for a text to its first token."),
    "zoo_texts_writing": Metric("gauge", _VERSION, "Requests whose texts the workers write at the moment."),
    "zoo_compute_seconds": Metric("histogram", _VERSION, "Time that a request's batch took in its worker."),
    "zoo_queue_seconds": Metric("histogram", _VERSION, "Time of an inference outside the worker: queue and transport."),
    "zoo_queue_length": Metric("gauge", (), "Inferences that wait for a free worker, over all models."),
    "zoo_queue_bytes": Metric("gauge", (), "Bytes of the inferences that wait."),
    "zoo_model_queue_length": Metric("gauge", _VERSION, "Inferences of a version that wait for a free worker."),
    "zoo_batch_rows": Metric("histogram", _VERSION, "Rows of each batch that a worker ran."),
    "zoo_model_workers": Metric("gauge", _VERSION, "Workers that have a version in memory."),
    "zoo_workers": Metric("gauge", ("state",), "Worker processes by state."),
    "zoo_worker_restarts_total": Metric("counter", (), "Worker processes started in place of lost ones."),
    "zoo_resident_memory_bytes": Metric("gauge", ("process",), "Memory held by the front and by each worker."),
    "zoo_model_served": Metric("gauge", _VERSION, "1 if the version is served, 0 if refused."),
    "zoo_models_memory_bytes": Metric("gauge", (), "Memory that the models in all workers take."),
    "zoo_traffic_share": Metric("gauge", _VERSION, "Share of a model's requests that a version is given, 0 to 1."),
    "zoo_version_held": Metric("gauge", _VERSION, "1 for a version that was taken out of traffic."),
    "zoo_experiment_p": Metric("gauge", ("model", "test"), "Always-valid p-value of a running A/B test."),
    "zoo_shadow_rows_total": Metric("counter", _VERSION, "Rows that a shadow version answered too."),
    "zoo_shadow_disagreements_total": Metric(
        "counter", _VERSION, "Rows on which a shadow named another class, or a value that is too far away."
    ),
    "zoo_shadow_value_difference": Metric(
        "gauge", _VERSION, "Mean difference of a shadow's values, in standard deviations of those answered."
    ),
    "zoo_rollbacks_total": Metric("counter", (*_VERSION, "cause"), "Versions taken out of traffic automatically."),
    "zoo_state_saved": Metric("gauge", (), "1 if rules of traffic are written to disk, 0 if that fails."),
    "zoo_drift_rows": Metric("gauge", _VERSION, "Rows in the window that drift is judged on."),
    "zoo_drift_state": Metric(
        "gauge", _VERSION, "0 stable, 1 shifted, 2 drifted, -1 not judged: few rows seen or in the baseline."
    ),
    "zoo_drift_psi": Metric(
        "gauge", (*_VERSION, "part", "column"), "Population stability index of a column, chance taken off."
    ),
    "zoo_cache_hits_total": Metric("counter", (), "Answers taken from the response cache."),
    "zoo_cache_misses_total": Metric("counter", (), "Look-ups in the response cache that found nothing."),
    "zoo_log_lines_dropped_total": Metric("counter", (), "Log lines given up because nothing took them in time."),
    "zoo_draining": Metric("gauge", (), "1 while the server finishes its last requests."),
    "zoo_build_info": Metric("gauge", ("zooroad", "python"), "1, with the versions in use."),
}


class Monitor:
    """Counts of one server, and its access log. May be used from several threads.

    Attributes:
        lines: where log lines go without waiting; the logger `serve.access` if None.
        trace: what makes a span of an answered request; None without tracing.
    """

    def __init__(self, *, tracing: bool = False, provider: Any = None) -> None:
        """Start with every figure at 0.

        Args:
            tracing: make an OpenTelemetry span of each request.
            provider: of OpenTelemetry's tracers. If None, the one this program has set up, or else one that sends spans
                by OTLP over HTTP, as OpenTelemetry's environment variables say.

        Raises:
            ModuleNotFoundError: tracing without OpenTelemetry's packages.
        """
        self.lines: Lines | None = None
        self.trace = tracer(provider) if tracing else None
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, str, str, int], list] = {}
        self._errors: dict[tuple[str, str, str], int] = {}
        self._rejected: dict[tuple[str, str], int] = {}
        self._inferences: dict[tuple[str, str, bool, int], list] = {}
        self._batches: dict[tuple[str, str], list] = {}
        self._rows: dict[tuple[str, str], int] = {}
        self._written: dict[tuple[str, str], list] = {}  # tokens, and a histogram of the time to the first
        self._index: list[dict[str, Any]] = []
        self._store: Any = None
        self._traffic: Any = None
        self._drift: Any = None
        self._second, self._stamp = 0, ""
        self._encode = msgspec.json.Encoder().encode
        self._registry: Any = None

    def watch(self, *, store: Any = None, traffic: Any = None, drift: Any = None) -> None:
        """Name the objects whose state is published with the counts, read whenever somebody asks for the figures.

        Args:
            store: a `Store`, or a `Fleet`, whose workers and queues are then told too.
            traffic: a `Traffic`.
            drift: a `Drift`.
        """
        self._store = store or self._store
        self._traffic = traffic or self._traffic
        self._drift = drift or self._drift

    def served(self, index: list[dict[str, Any]]) -> None:
        """Publish which versions of a repository index are served, where no store is watched."""
        self._index = index

    def rows(self, model: str, version: str, count: int) -> None:
        """Count rows predicted in this process; those of a fleet come through `observe`."""
        if not hasattr(self._store, "observers"):
            with self._lock:
                self._rows[model, version] = self._rows.get((model, version), 0) + count

    def batch(self, model: str, version: str, rows: int) -> None:
        """Count one batch that a worker ran."""
        with self._lock:
            tally = self._batches.get((model, version))
            if tally is None:
                tally = self._batches[model, version] = [0] * (len(ROWS) + 1) + [0]
            tally[bisect_left(ROWS, rows)] += 1
            tally[-1] += rows

    def written(self, model: str, version: str, tokens: int, first: float | None) -> None:
        """Count a text.

        Args:
            model, version: what wrote it.
            tokens: that it has.
            first: seconds from the request to the first of them; None if there is none.
        """
        with self._lock:
            tally = self._written.get((model, version))
            if tally is None:
                tally = self._written[model, version] = [0, _histogram()]
            tally[0] += tokens
            if first is not None:
                tally[1][bisect_left(SECONDS, first)] += 1
                tally[1][-1] += first

    def observe(self, call: Any, answer: Any) -> None:
        """Count a `Call` that the fleet has finished with an `Answer`."""
        key = (call.model, answer.version or call.version, call.shadow, answer.status)
        waited = time.monotonic() - call.started - answer.seconds
        with self._lock:
            tally = self._inferences.get(key)
            if tally is None:
                tally = self._inferences[key] = [_histogram(), _histogram(), 0, 0]
            tally[2] += answer.rows
            tally[3] += 1
            if waited >= 0:  # otherwise it came from the cache, with the time it took when it was computed
                compute, queue = tally[0], tally[1]
                compute[bisect_left(SECONDS, answer.seconds)] += 1
                compute[-1] += answer.seconds
                queue[bisect_left(SECONDS, waited)] += 1
                queue[-1] += waited
        if answer.tokens:
            self.written(key[0], key[1], answer.tokens, answer.first)

    def answered(
        self,
        *,
        model: str,
        version: str,
        route: str,
        status: int,
        seconds: float,
        code: str = "",
        traceparent: str = "",
        **line: Any,
    ) -> None:
        """Count one answered request, write its log line, and make a span of it where traces are on.

        Args:
            model, version: what was asked, empty when no served model was.
            route: the route's pattern, never the raw path.
            status: HTTP status.
            seconds: time taken.
            code: of the error, such as "bad_shape", when it was answered with one.
            traceparent: the W3C header of that name as it came.
            line: further fields of the log line, such as the request id.
        """
        key = (model, version, route, status)
        with self._lock:
            tally = self._requests.get(key)
            if tally is None:
                tally = self._requests[key] = _histogram()
            tally[bisect_left(SECONDS, seconds)] += 1
            tally[-1] += seconds
            if status >= 400 or code:  # what began well may end with an error too
                code = code or f"http_{status}"
                self._errors[model, version, code] = self._errors.get((model, version, code), 0) + 1
                if status in TURNED_AWAY:
                    self._rejected[model, code] = self._rejected.get((model, code), 0) + 1
        if self.lines is None and self.trace is None and not access.isEnabledFor(logging.INFO):
            return
        parent = TRACEPARENT.fullmatch(traceparent) if traceparent else None
        if self.trace is not None:
            self.trace(parent, model, version, route, status, seconds, line.get("method", ""))
        entry = {
            "time": self._now(),
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 2),
            "model": model,
            "version": version,
            **line,
        }
        if code:
            entry["code"] = code
        if parent is not None:
            entry["trace_id"], entry["parent_id"] = parent[1], parent[2]
        if self.lines is not None:
            self.lines.write(self._encode(entry))
        else:
            access.info(self._encode(entry).decode())

    def text(self) -> bytes:
        """Every metric in Prometheus' text format."""
        from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

        if self._registry is None:
            registry = CollectorRegistry()
            ProcessCollector(registry=registry)
            registry.register(_Collector(self.collect))
            self._registry = registry
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Any]:
        """Every metric of `METRICS` that has something to say, as Prometheus' client takes them."""
        gathered: dict[str, list[tuple[tuple[str, ...], Any]]] = {}

        def put(name: str, *labels: str, value: Any) -> None:
            gathered.setdefault(name, []).append((labels, value))

        self._counted(put)
        for source in (self._of_process, self._of_store, self._of_traffic, self._of_drift):
            try:
                source(put)
            except Exception as error:  # one part that fails must not hide the figures of the others
                log.error("figures of %s are missing: %s: %s", source.__name__[4:], type(error).__name__, error)
        for name, values in gathered.items():
            yield _family(name, values)

    def _counted(self, put: Callable[..., None]) -> None:
        with self._lock:
            requests = [(key, tally.copy()) for key, tally in self._requests.items()]
            inferences = [(key, [*map(list.copy, tally[:2]), *tally[2:]]) for key, tally in self._inferences.items()]
            batches = [(key, tally.copy()) for key, tally in self._batches.items()]
            written = [(pair, tokens, first.copy()) for pair, (tokens, first) in self._written.items()]
            errors, rejected, rows = dict(self._errors), dict(self._rejected), dict(self._rows)
        times: dict[tuple[str, str, str], list] = {}
        for (model, version, route, status), tally in requests:
            put("zoo_requests_total", model, version, route, str(status), value=sum(tally[:-1]))
            _add(times, (model, version, route), tally)
        for key, tally in times.items():
            put("zoo_request_seconds", *key, value=(SECONDS, tally))
        compute: dict[tuple[str, str], list] = {}
        queue: dict[tuple[str, str], list] = {}
        for (model, version, shadow, status), (computed, waited, count, finished) in inferences:
            role = "shadow" if shadow else "answer"
            put("zoo_inferences_total", model, version, role, str(status), value=finished)
            _add(compute, (model, version), computed)
            _add(queue, (model, version), waited)
            rows[model, version] = rows.get((model, version), 0) + count
        for name, tallies in (("zoo_compute_seconds", compute), ("zoo_queue_seconds", queue)):
            for pair, tally in tallies.items():
                put(name, *pair, value=(SECONDS, tally))
        for pair, tokens, first in written:
            put("zoo_tokens_total", *pair, value=tokens)
            put("zoo_first_token_seconds", *pair, value=(SECONDS, first))
        for pair, tally in batches:
            put("zoo_batch_rows", *pair, value=(ROWS, tally))
        for name, counts in (("zoo_rows_total", rows), ("zoo_errors_total", errors), ("zoo_rejected_total", rejected)):
            for labels, count in counts.items():
                put(name, *labels, value=count)

    def _of_process(self, put: Callable[..., None]) -> None:
        python = ".".join(map(str, sys.version_info[:3]))
        try:
            own = version_of("zooroad")
        except PackageNotFoundError:  # run from its sources
            own = ""
        put("zoo_build_info", own, python, value=1)
        put("zoo_resident_memory_bytes", "front", value=resident(os.getpid()))
        put("zoo_log_lines_dropped_total", value=self.lines.dropped if self.lines is not None else 0)

    def _of_store(self, put: Callable[..., None]) -> None:
        index = self._index if self._store is None else self._store.index()
        for entry in index:
            put("zoo_model_served", entry["name"], entry["version"], value=int(entry["state"] == "READY"))
        if self._store is None:
            return
        put("zoo_draining", value=int(self._store.draining))
        if not hasattr(self._store, "state"):
            return
        state = self._store.state()
        waiting = held = 0
        for name, versions in state["queues"].items():
            for version, queue in versions.items():
                put("zoo_model_queue_length", name, version, value=queue["waiting"])
                put("zoo_texts_writing", name, version, value=queue["writing"])
                put("zoo_model_workers", name, version, value=queue["workers"])
                waiting += queue["waiting"]
                held += queue["bytes"]
        put("zoo_queue_length", value=waiting)
        put("zoo_queue_bytes", value=held)
        workers = state["workers"]
        for kind in WORKER_STATES:
            put("zoo_workers", kind, value=sum(worker["state"] == kind for worker in workers))
        put("zoo_worker_restarts_total", value=sum(worker["restarts"] for worker in workers))
        put("zoo_models_memory_bytes", value=state["memory"]["models"])
        for number, worker in enumerate(workers):
            put("zoo_resident_memory_bytes", f"worker {number}", value=worker["resident"])
        if state["cache"] is not None:
            put("zoo_cache_hits_total", value=state["cache"]["hits"])
            put("zoo_cache_misses_total", value=state["cache"]["misses"])

    def _of_traffic(self, put: Callable[..., None]) -> None:
        if self._traffic is None:
            return
        for name, kind, labels, value in self._traffic.samples():
            full = f"{name}_total" if kind == "counter" else name
            put(full, *(labels[label] for label in METRICS[full].labels), value=value)

    def _of_drift(self, put: Callable[..., None]) -> None:
        if self._drift is None or self._store is None:
            return
        for name, versions in list(self._store.models.items()):
            for version in list(versions):
                told = self._drift.describe(name, version)
                state = {"stable": 0, "shifted": 1, "drifted": 2}.get(told["state"], -1)
                put("zoo_drift_state", name, version, value=state)
                put("zoo_drift_rows", name, version, value=told["rows"])
                for feature in told["features"][:COLUMNS]:
                    put("zoo_drift_psi", name, version, feature["part"], feature["name"], value=feature["psi"])

    def _now(self) -> str:
        """UTC, with milliseconds; the part that changes once a second is kept."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
            self._second = second
        return f"{self._stamp}{int((now - second) * 1000):03d}+00:00"


def _histogram() -> list:
    """A count for each bucket and the one above, and the sum."""
    return [0] * (len(SECONDS) + 1) + [0.0]


def _add(sums: dict, key: tuple, tally: list) -> None:
    sums[key] = [a + b for a, b in zip(sums[key], tally, strict=True)] if key in sums else tally


def _family(name: str, values: list[tuple[tuple[str, ...], Any]]) -> Any:
    """One metric in the form of Prometheus' client."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    metric = METRICS[name]
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(name, metric.help, labels=metric.labels)
        for labels, (edges, tally) in values:
            reached, buckets = 0, []
            for edge, count in zip((*map(str, map(float, edges)), "+Inf"), tally, strict=False):
                reached += count
                buckets.append((edge, reached))
            histogram.add_metric(labels, buckets, tally[-1])
        return histogram
    made = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}[metric.kind](
        name, metric.help, labels=metric.labels
    )
    for labels, value in values:
        made.add_metric(labels, value)
    return made


def code_of(body: bytes) -> str:
    """The code in the body of an answered error; "" if there is none."""
    try:
        told = msgspec.json.decode(body)
        inner = told["error"] if isinstance(told["error"], dict) else told
        return str(inner["code"])
    except (msgspec.DecodeError, TypeError, KeyError):
        return ""


class _Collector:
    """A function as what a Prometheus registry asks."""

    def __init__(self, collect: Callable[[], Iterator[Any]]) -> None:
        self.collect = collect

    def describe(self) -> Iterable[Any]:
        """Nothing is promised ahead, so that registering costs nothing."""
        return ()
