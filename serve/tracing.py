"""OpenTelemetry spans of answered requests. OpenTelemetry is imported when tracing is asked for."""

import os
import re
import time
from collections.abc import Callable
from typing import Any

TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def tracer(provider: Any) -> Callable[..., None]:
    """What makes a finished span of an answered request.

    Args:
        provider: of OpenTelemetry's tracers; what the program has set up, or else one by environment variables, if
            None.

    Raises:
        ModuleNotFoundError: OpenTelemetry's packages are not installed.
    """
    try:
        from opentelemetry import trace
    except ImportError as error:
        message = "traces need OpenTelemetry, which is not installed; run: pip install opentelemetry-sdk"
        raise ModuleNotFoundError(message) from error
    tracer = trace.get_tracer("zooroad.serve", tracer_provider=provider or _provider(trace))

    def record(
        parent: re.Match[str] | None,
        model: str,
        version: str,
        route: str,
        status: int,
        seconds: float,
        method: str,
    ) -> None:
        context = None
        if parent is not None and int(parent[1], 16) and int(parent[2], 16):
            sender = trace.SpanContext(
                int(parent[1], 16), int(parent[2], 16), is_remote=True, trace_flags=trace.TraceFlags(int(parent[3], 16))
            )
            context = trace.set_span_in_context(trace.NonRecordingSpan(sender))
        now = time.time_ns()
        span = tracer.start_span(
            f"{method} {route}".strip(),
            context=context,
            kind=trace.SpanKind.SERVER,
            start_time=now - int(seconds * 1e9),
            attributes={
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
                "zoo.model": model,
                "zoo.version": version,
            },
        )
        if status >= 500:
            span.set_status(trace.StatusCode.ERROR)
        span.end(now)

    return record


def _provider(trace: Any) -> Any:
    """Where spans go: what the program set up, or an OTLP exporter by OpenTelemetry's environment variables."""
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        message = "nothing takes the spans; run: pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
        raise ModuleNotFoundError(message) from error
    name = os.environ.get("OTEL_SERVICE_NAME", "zooroad")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
