"""Routes of the standard protocols: Open Inference Protocol v2 with its model repository, and TensorFlow Serving's v1.

What bodies mean is in `protocol`. The two inference routes are also answered by `http`, before they come here.
"""

from collections.abc import Callable
from importlib.metadata import version as version_of
from typing import Any

import msgspec
from flask import Flask, Response, g, request

from serve import protocol, texts
from serve.errors import RequestError
from serve.monitor import Monitor
from serve.runtime import ModelLike
from serve.store import Shelf
from serve.tensors import decode_json

HEADER_LENGTH = "Inference-Header-Content-Length"


def reply(body: Any, status: int = 200) -> Response:
    """A JSON answer; bytes are JSON already."""
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return Response(data, status, mimetype="application/json")


def cached(response: Response) -> Response:
    """An answer that a client may keep, and asks for again with its tag: 304 while it is still the same."""
    response.headers["Cache-Control"] = "no-cache"
    response.add_etag()
    response.make_conditional(request)
    return response


def standard_routes(app: Flask, store: Shelf, monitor: Monitor) -> None:
    """Add the routes under /v2 and /v1.

    Args:
        app: the app.
        store: whose models answer.
        monitor: counts predicted rows.
    """
    _server_routes(app, store)
    _model_routes(app, store, monitor)
    _repository_routes(app, store)
    _v1_routes(app, store, monitor)


def _server_routes(app: Flask, store: Shelf) -> None:
    @app.get("/v2")
    @app.get("/v2/")
    def server() -> Response:
        """Name, version and protocol extensions of the server."""
        about = {"name": "zooroad", "version": version_of("zooroad"), "extensions": protocol.EXTENSIONS}
        return cached(reply(about))

    @app.get("/v2/health/live")
    def live() -> Response:
        """Whether the server answers at all."""
        return reply({"live": True})

    @app.get("/v2/health/ready")
    def ready() -> Response:
        """Whether at least one model can answer and the server is not stopping."""
        return reply({"ready": store.ready}, 200 if store.ready else 503)


def _model_routes(app: Flask, store: Shelf, monitor: Monitor) -> None:
    @app.get("/v2/models/<model>")
    @app.get("/v2/models/<model>/versions/<version>")
    def metadata(model: str, version: str | None = None) -> Response:
        """Versions of a model, and names, datatypes and shapes of its inputs and outputs."""
        found = model_of(store, model, version)
        return cached(reply(protocol.model_metadata(found.manifest, list(store.models.get(model, {})))))

    @app.get("/v2/models/<model>/config")
    @app.get("/v2/models/<model>/versions/<version>/config")
    def configuration(model: str, version: str | None = None) -> Response:
        """The model's configuration, in the form of Triton's."""
        found = model_of(store, model, version)
        return cached(reply(protocol.model_configuration(found.manifest, found.max_batch)))

    @app.get("/v2/models/<model>/ready")
    @app.get("/v2/models/<model>/versions/<version>/ready")
    def model_ready(model: str, version: str | None = None) -> Response:
        """Whether a model can answer."""
        found = model_of(store, model, version)
        return reply({"name": found.name, "version": found.version, "ready": store.ready}, 200 if store.ready else 503)

    @app.post("/v2/models/<model>/infer")
    @app.post("/v2/models/<model>/versions/<version>/infer")
    def infer(model: str, version: str | None = None) -> Response:
        """Answer a batch of rows, as JSON or as binary tensors."""
        found = model_of(store, model, version)
        asked = protocol.decode(request.get_data(), _header_length())
        answered = found.predict(asked.inputs, asked.names, parameters=asked.parameters)
        monitor.rows(found.name, found.version, len(next(iter(answered.values()))))
        body, length = protocol.encode(
            found.name, found.version, found.manifest, answered, asked, texts.notes_of(found.bundle, asked.inputs)
        )
        response = reply(body)
        if length is not None:
            response.mimetype = "application/octet-stream"
            response.headers[HEADER_LENGTH] = str(length)
        return response


def _repository_routes(app: Flask, store: Shelf) -> None:
    @app.post("/v2/repository/index")
    def index() -> Response:
        """Every version in the store: whether it can answer, and the reason if it cannot."""
        wanted = _options()
        only_ready = wanted.get("ready", False)
        if not isinstance(only_ready, bool):
            raise RequestError("bad_request", "'ready' must be true or false", 400)
        return reply([entry for entry in store.index() if entry["state"] == "READY" or not only_ready])

    @app.post("/v2/repository/models/<model>/load")
    def load(model: str) -> Response:
        """Load a model's versions, or the one in parameters.version, from the store's folder again."""
        return _changed(store.load, model, ())

    @app.post("/v2/repository/models/<model>/unload")
    def unload(model: str) -> Response:
        """Serve a model's versions, or the one in parameters.version, no longer."""
        return _changed(store.unload, model, ("unload_dependents",))

    def _changed(change: Callable[[str, str | None], None], model: str, ignored: tuple[str, ...]) -> Response:
        parameters = _options().get("parameters") or {}
        if not isinstance(parameters, dict):
            raise RequestError("bad_request", "'parameters' must be an object", 400)
        version = parameters.get("version")
        for name in parameters:
            if name not in ("version", *ignored):
                message = (
                    f"parameter {name!r:.60} is not taken: a model is what its bundle says; only 'version' may be given"
                )
                raise RequestError("bad_parameter", message, 400)
        if not isinstance(version, str | None):
            raise RequestError("bad_parameter", "parameter 'version' must be text, such as \"3\"", 400)
        change(model, version)
        return reply({})


def _v1_routes(app: Flask, store: Shelf, monitor: Monitor) -> None:
    @app.get("/v1/models")
    def models_v1() -> Response:
        """Names of the models that can answer."""
        return reply({"models": list(store.models)})

    @app.get("/v1/models/<model>")
    @app.get("/v1/models/<model>/versions/<version>")
    def status_v1(model: str, version: str | None = None) -> Response:
        """States of a model's versions."""
        entries = [each for each in store.index() if each["name"] == model and version in (None, each["version"])]
        if not entries:
            model_of(store, model, version)
        ready = store.ready and any(entry["state"] == "READY" for entry in entries)
        # KServe's clients read "ready", TensorFlow Serving's the list
        return reply({"name": model, "ready": ready, **protocol.model_status_v1(entries)})

    @app.get("/v1/models/<model>/metadata")
    @app.get("/v1/models/<model>/versions/<version>/metadata")
    def metadata_v1(model: str, version: str | None = None) -> Response:
        """The signature of a model: names, types and shapes of its inputs and outputs."""
        return cached(reply(protocol.model_metadata_v1(model_of(store, model, version).manifest)))

    @app.post("/v1/models/<model>:predict")
    @app.post("/v1/models/<model>/versions/<version>:predict")
    def predict_v1(model: str, version: str | None = None) -> Response:
        """Answer rows ("instances") or columns ("inputs") of JSON."""
        found = model_of(store, model, version)
        asked = protocol.decode_v1(request.get_data(), found.manifest)
        answered = found.predict(asked.inputs)
        monitor.rows(found.name, found.version, len(next(iter(answered.values()))))
        return reply(protocol.encode_v1(found.manifest, answered, asked))


def model_of(store: Shelf, name: str, version: str | None) -> ModelLike:
    """The model that answers the request under way, which its log line and figures name.

    Raises:
        RequestError: 404, no such model or version; 503, it was refused.
    """
    g.model = store.get(name, version, key=request.headers.get("X-Traffic-Key"), draw=request.method == "POST")
    return g.model


def _options() -> dict[str, Any]:
    """The JSON object in the body; an empty one if there is no body."""
    body = request.get_data()
    sent = decode_json(body) if body else {}
    if not isinstance(sent, dict):
        raise RequestError("bad_request", "the body must be a JSON object, or empty", 400)
    return sent


def _header_length() -> int | None:
    """What the request says of the JSON in front of its binary tensors; None for JSON alone."""
    text = request.headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise RequestError("bad_header", f"{HEADER_LENGTH} must be a count of bytes, got {text[:40]!r}", 400)
    return int(text)
