"""Figures and log lines about requests; never what was in them."""

import logging
from datetime import UTC, datetime
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

access = logging.getLogger("serve.access")


class Monitor:
    """Prometheus metrics of one app, in a registry of its own, and the access log."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        labels = ("model", "version", "route")
        self._requests = Counter("zoo_requests", "Requests answered.", (*labels, "status"), registry=self.registry)
        self._seconds = Histogram(
            "zoo_request_seconds", "Time to answer a request.", labels, buckets=SECONDS, registry=self.registry
        )
        self._rows = Counter("zoo_rows", "Rows predicted.", ("model", "version"), registry=self.registry)
        self._served = Gauge(
            "zoo_model_served",
            "1 if the version is served, 0 if refused.",
            ("model", "version"),
            registry=self.registry,
        )

    def served(self, index: list[dict[str, Any]]) -> None:
        """Publish which versions of the repository index are served."""
        for entry in index:
            self._served.labels(entry["name"], entry["version"]).set(entry["state"] == "READY")

    def rows(self, model: str, version: str, count: int) -> None:
        """Count predicted rows."""
        self._rows.labels(model, version).inc(count)

    def answered(self, *, model: str, version: str, route: str, status: int, seconds: float, **line: Any) -> None:
        """Count one answered request and write its log line.

        Args:
            model, version: what was asked, empty when no served model was.
            route: the route's pattern, never the raw path.
            status: HTTP status.
            seconds: time taken.
            line: further fields of the log line, such as the request id.
        """
        self._requests.labels(model, version, route, str(status)).inc()
        self._seconds.labels(model, version, route).observe(seconds)
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 2),
            "model": model,
            "version": version,
            **line,
        }
        access.info(msgspec.json.encode(entry).decode())

    def text(self) -> bytes:
        """Every metric in Prometheus' text format."""
        return generate_latest(self.registry)
