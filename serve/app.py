"""The Flask app: routes and nothing else. What they do is in `runtime`, `protocol`, `codec`, `explainer` and `monitor`."""

import logging
import re
import time
import traceback
import uuid
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import msgspec
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from serve import codec, protocol
from serve.errors import RequestError
from serve.explainer import TARGET, Explainer
from serve.monitor import Monitor
from serve.runtime import Model, Store

log = logging.getLogger("serve")

# style.css, app.js and pictures come from this server only; an explanation's picture is a data URL
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
CODES = {400: "bad_request", 404: "unknown_path", 405: "wrong_method", 413: "too_large", 415: "unsupported_media"}
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def create_app(
    store: str | Path | Store,
    *,
    precision: str | None = None,
    threads: int | None = None,
    engine: str = "onnxruntime",
    max_body: int = 16 * 2**20,
    max_pixels: int = 25_000_000,
    max_batch: int = 1024,
    explain_timeout: float = 30.0,
    explain_target: str = TARGET,
) -> Flask:
    """Build the server's app; it runs under any WSGI host.

    Args:
        store: folder of bundles, or a `Store`, which then keeps its own precision, threads, engine and max_batch.
        precision: stored form to serve, such as "int8"; each bundle's default if None.
        threads: threads one request may use; every core if None.
        engine: "onnxruntime", "openvino" where it is installed, or "auto" for the faster one on this machine.
        max_body: largest request body in bytes.
        max_pixels: most pixels an image file may declare.
        max_batch: most rows of one request.
        explain_timeout: seconds one explanation may take; the first one loads SHAP.
        explain_target: "module:function" that the explainer's process calls.

    Returns:
        The Flask app. `app.extensions["store"]`, `["monitor"]` and `["explainer"]` are the objects behind it.

    Raises:
        FileNotFoundError: no such folder.
        BundleError: the folder is itself a bundle.
        ValueError: no such engine.
    """
    if not isinstance(store, Store):
        store = Store(store, precision=precision, threads=threads, max_batch=max_batch, engine=engine)
    app = Flask(__name__, static_folder="page", static_url_path="/page")
    app.config["MAX_CONTENT_LENGTH"] = max_body
    explainer = Explainer(target=explain_target, timeout=explain_timeout)
    monitor = Monitor()
    monitor.served(store.index())
    app.extensions.update(store=store, monitor=monitor, explainer=explainer)
    _surround(app, monitor)
    _health_routes(app, store, monitor)
    _protocol_routes(app, store, monitor)
    _people_routes(app, store, monitor, explainer, max_pixels=max_pixels)
    return app


def _reply(body: Any, status: int = 200) -> Response:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return Response(data, status, mimetype="application/json")


def _surround(app: Flask, monitor: Monitor) -> None:
    """Request ids, security headers, figures, the access log and errors in JSON."""

    @app.before_request
    def _begin() -> None:
        g.start = time.perf_counter()
        sent = request.headers.get("X-Request-Id", "")
        g.request_id = sent if REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
        g.model = None

    @app.after_request
    def _end(response: Response) -> Response:
        response.headers.update(HEADERS)
        response.headers["X-Request-Id"] = g.request_id
        if not request.path.startswith("/page/"):
            response.headers.setdefault("Cache-Control", "no-store")
        monitor.answered(
            model=g.model.name if g.model else "",
            version=g.model.version if g.model else "",
            route=request.url_rule.rule if request.url_rule else "unknown",
            status=response.status_code,
            seconds=time.perf_counter() - g.start,
            request_id=g.request_id,
            method=request.method,
            received=request.content_length or 0,
            sent=response.content_length or 0,
        )
        return response

    @app.errorhandler(RequestError)
    def _refused(error: RequestError) -> Response:
        return _error(error.code, error.message, error.status, error.headers)

    @app.errorhandler(HTTPException)
    def _http(error: HTTPException) -> Response:
        status = error.code or 500
        headers = {}
        message = (error.description or error.name).lower().rstrip(".")
        if status == 404:
            message = f"nothing is at {request.path[:100]!r}; the page at / lists the models, the README the routes"
        if status == 405:
            allowed = ", ".join(sorted(set(getattr(error, "valid_methods", None) or ()) - {"HEAD", "OPTIONS"}))
            message = f"{request.method} is not answered here; use {allowed}"
            headers = {"Allow": allowed}
        if status == 413:
            limit = app.config["MAX_CONTENT_LENGTH"]
            parts = app.config["MAX_FORM_PARTS"]
            message = (
                f"the body is larger than {limit} bytes, or a form of more than {parts} parts; send less at a time"
            )
        return _error(CODES.get(status, "http_error"), message, status, headers)

    @app.errorhandler(Exception)
    def _unexpected(error: Exception) -> Response:
        # the message may quote what the client sent, so only the type and the place are logged
        place = "".join(traceback.format_tb(error.__traceback__))
        log.error("request %s failed with %s at\n%s", g.request_id, type(error).__name__, place)
        message = f"the server failed on this request; its log has the reason under request id {g.request_id}"
        return _error("internal", message, 500)

    def _error(code: str, message: str, status: int, headers: dict[str, str] | None = None) -> Response:
        # v2 clients read "error" as text, so there the code stands beside it
        v2 = request.path == "/v2" or request.path.startswith("/v2/")
        body = {"error": message, "code": code} if v2 else {"error": {"code": code, "message": message}}
        response = _reply(body, status)
        response.headers.update(headers or {})
        return response


def _health_routes(app: Flask, store: Store, monitor: Monitor) -> None:
    @app.get("/healthz")
    def healthz() -> Response:
        return _reply({"ready": store.ready, "models": len(store.models), "refused": len(store.refused)})

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(monitor.text(), content_type="text/plain; version=0.0.4; charset=utf-8")


def _protocol_routes(app: Flask, store: Store, monitor: Monitor) -> None:
    @app.get("/v2")
    @app.get("/v2/")
    def server() -> Response:
        return _reply({"name": "zooroad", "version": version_of("zooroad"), "extensions": []})

    @app.get("/v2/health/live")
    def live() -> Response:
        return _reply({"live": True})

    @app.get("/v2/health/ready")
    def ready() -> Response:
        return _reply({"ready": store.ready}, 200 if store.ready else 503)

    @app.post("/v2/repository/index")
    def index() -> Response:
        body = request.get_data()
        wanted = protocol.decode_json(body) if body else {}
        entries = store.index()
        if isinstance(wanted, dict) and wanted.get("ready") is True:
            entries = [entry for entry in entries if entry["state"] == "READY"]
        return _reply(entries)

    @app.get("/v2/models/<model>")
    @app.get("/v2/models/<model>/versions/<version>")
    def metadata(model: str, version: str | None = None) -> Response:
        found = _model(model, version)
        return _reply(protocol.model_metadata(found.manifest, list(store.models[model])))

    @app.get("/v2/models/<model>/ready")
    @app.get("/v2/models/<model>/versions/<version>/ready")
    def model_ready(model: str, version: str | None = None) -> Response:
        found = _model(model, version)
        return _reply({"name": found.name, "version": found.version, "ready": store.ready}, 200 if store.ready else 503)

    @app.post("/v2/models/<model>/infer")
    @app.post("/v2/models/<model>/versions/<version>/infer")
    def infer(model: str, version: str | None = None) -> Response:
        found = _model(model, version)
        if "Inference-Header-Content-Length" in request.headers:
            message = "binary tensors are not served; send JSON, as tritonclient does with binary_data=False"
            raise RequestError("unsupported_media", message, 415)
        inputs, outputs, request_id = protocol.decode(request.get_data())
        answered = found.predict(inputs, outputs)
        monitor.rows(found.name, found.version, len(next(iter(answered.values()))))
        return _reply(protocol.encode(found.name, found.version, found.manifest.outputs, answered, request_id))

    def _model(name: str, version: str | None) -> Model:
        g.model = store.get(name, version)
        return g.model


def _people_routes(app: Flask, store: Store, monitor: Monitor, explainer: Explainer, *, max_pixels: int) -> None:
    @app.get("/")
    def page() -> Response:
        return app.send_static_file("index.html")

    @app.get("/models")
    def models() -> Response:
        return _reply([_described(name) for name in dict.fromkeys(entry["name"] for entry in store.index())])

    @app.get("/models/<model>/examples")
    def examples(model: str) -> Response:
        found = _model(model)
        count = len(next(iter(found.examples.values()), ()))
        return _reply([codec.to_row(found.examples, row, found.manifest) for row in range(count)])

    @app.post("/predict/<model>")
    def predict(model: str) -> Response:
        found = _model(model)
        inputs, notes = _inputs(found)
        answered = found.predict(inputs)
        predictions = codec.answers(answered, found.manifest, top=_number("top", 5))
        monitor.rows(found.name, found.version, len(predictions))
        return _reply({"model": found.name, "version": found.version, "predictions": predictions, "notes": notes})

    @app.post("/explain/<model>")
    def explain(model: str) -> Response:
        found = _model(model)
        inputs, notes = _inputs(found)
        inputs = found.check(inputs)
        if any(len(array) != 1 for array in inputs.values()):
            raise RequestError("bad_batch", "an explanation is for one row; send one image or one object")
        label = request.args.get("label")
        if label is not None and label not in found.manifest.labels:
            raise RequestError(
                "bad_parameter", f"label must be one of {', '.join(found.manifest.labels)}, got {label!r}"
            )
        told = explainer.explain(
            found.bundle,
            inputs,
            precision=found.precision,
            method=request.args.get("method", "auto"),
            label=None if label is None else found.manifest.labels.index(label),
        )
        return _reply({"model": found.name, "version": found.version, **told, "notes": notes})

    def _model(name: str) -> Model:
        g.model = store.get(name, request.args.get("version"))
        return g.model

    def _inputs(model: Model) -> tuple[dict[str, Any], list[str]]:
        """Raw inputs from the body, by its media type."""
        kind = request.mimetype
        if kind == "multipart/form-data":
            files = [file for _, file in request.files.items(multi=True)]
            if len(files) > model.max_batch:
                raise RequestError(
                    "bad_batch", f"a request must hold 1 … {model.max_batch} images, got {len(files)}", 413
                )
            return codec.read_images([file.read() for file in files], model.manifest, max_pixels=max_pixels), []
        if kind.startswith("image/") or kind == "application/octet-stream":
            return codec.read_images([request.get_data()], model.manifest, max_pixels=max_pixels), []
        if kind == "application/json" or kind.endswith("+json") or not kind:
            return codec.read_json(protocol.decode_json(request.get_data()), model.manifest)
        message = (
            f"bodies of type {kind!r} are not read; say what it is with the header Content-Type: application/json, "
            "image/png or image/jpeg, or send a multipart form"
        )
        raise RequestError("unsupported_media", message, 415)

    def _number(parameter: str, default: int) -> int:
        text = request.args.get(parameter, str(default))
        if not (text.isascii() and text.isdigit() and int(text[:9]) > 0):
            raise RequestError("bad_parameter", f"{parameter} must be a whole number above 0, got {text[:40]!r}")
        return int(text[:9])

    def _described(name: str) -> dict[str, Any]:
        """What the page needs to know of a model."""
        versions = [{**entry, **_scores(entry)} for entry in reversed(store.index()) if entry["name"] == name]
        if name not in store.models:
            return {"name": name, "versions": versions}
        manifest = store.get(name).manifest
        ports = [msgspec.to_builtins(port) for port in manifest.inputs]
        return {
            "name": name,
            "version": manifest.version,
            "versions": versions,
            "architecture": manifest.architecture,
            "task": manifest.task,
            "kind": manifest.kind,
            "labels": manifest.labels,
            "metric": manifest.metric,
            "inputs": ports,
            "choices": manifest.choices,
            "training": {key: manifest.training.get("data", {}).get(key) for key in ("name", "source", "generated")},
        }

    def _scores(entry: dict[str, Any]) -> dict[str, Any]:
        model = store.models.get(entry["name"], {}).get(entry["version"])
        if model is None:
            return {}
        stored = model.manifest.precisions[model.precision]
        return {"precision": model.precision, "score": stored.score, "bytes": stored.bytes}
