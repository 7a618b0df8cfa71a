"""Routes that continue texts: the generate extension of the v2 protocol, and OpenAI's completions.

What bodies mean is in `continuations`. In a server with workers `connections` answers these routes before they come here.
"""

import time
from collections.abc import Iterator

from flask import Flask, Response, request

from serve.continuations import EVENTS, addressed
from serve.guard import Guard
from serve.heads import deadline_of
from serve.monitor import Monitor
from serve.runtime import ModelLike
from serve.standard import model_of, reply
from serve.store import Shelf
from serve.writing import Part


def streaming_routes(app: Flask, store: Shelf, monitor: Monitor, guard: Guard) -> None:
    """Add the routes.

    Args:
        app: the app.
        store: whose models answer.
        monitor: counts tokens.
        guard: says which models a credential is for.
    """

    @app.post("/v2/models/<model>/generate")
    @app.post("/v2/models/<model>/versions/<version>/generate")
    def generate(model: str, version: str | None = None) -> Response:
        """Continue a text, and answer the whole of it."""
        return answered(model_of(store, model, version), "generate", stream=False)

    @app.post("/v2/models/<model>/generate_stream")
    @app.post("/v2/models/<model>/versions/<version>/generate_stream")
    def generate_stream(model: str, version: str | None = None) -> Response:
        """Continue a text, and tell it as it is written, in server-sent events.

        The last event says why it ended. Errors before the first event are ordinary ones; later ones are an event.
        """
        return answered(model_of(store, model, version), "generate_stream", stream=True)

    @app.post("/v1/completions")
    def completions() -> Response:
        """Continue prompts as OpenAI's interface does, whole or in server-sent events."""
        model, stream = addressed(request.get_data())
        guard.check_model(request.headers, model)
        return answered(model_of(store, model, None), "completions", stream=stream)

    def answered(found: ModelLike, kind: str, *, stream: bool) -> Response:
        begun = time.monotonic()
        parts = found.follow(kind, request.get_data(), deadline_of(request.headers.get("X-Request-Timeout")))
        first = next(parts)  # what is refused is refused here
        counted = counting(found, parts, first, begun)
        if stream:
            response = Response(counted, content_type=EVENTS)
            response.headers["X-Accel-Buffering"] = "no"
            return response
        return reply(b"".join(counted))

    def counting(found: ModelLike, parts: Iterator[Part], first: Part, begun: float) -> Iterator[bytes]:
        """Bodies of the parts; what was written is counted once they end, or their reader leaves."""
        part, since = first, time.monotonic() - begun
        try:
            yield part.body
            for part in parts:
                yield part.body
        finally:
            parts.close()  # type: ignore[attr-defined]  # they are a generator's
            if not hasattr(store, "observers"):
                monitor.rows(found.name, found.version, part.rows)
                monitor.written(found.name, found.version, part.tokens, since if part.tokens else None)
