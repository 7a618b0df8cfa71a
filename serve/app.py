"""The Flask app: routes and nothing else.

What they do is in `runtime`, `protocol`, `codec`, `explainer` and `monitor`.
"""

import io
import logging
import re
import time
import traceback
import uuid
from pathlib import Path
from typing import Any

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from serve.admin import admin_routes
from serve.drift import Drift
from serve.errors import RequestError, told_as_text
from serve.explainer import TARGET, Explainer
from serve.gallery import Gallery
from serve.guard import Guard, protect
from serve.jobs import Jobs
from serve.live import Live
from serve.monitor import Monitor
from serve.openapi import openapi_routes
from serve.people import people_routes
from serve.standard import reply, standard_routes
from serve.store import Shelf, Store
from serve.streaming import streaming_routes
from serve.traffic import Traffic

log = logging.getLogger("serve")

CODES = {400: "bad_request", 404: "unknown_path", 405: "wrong_method", 413: "too_large", 415: "unsupported_media"}
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def create_app(
    store: str | Path | Shelf,
    *,
    guard: Guard | None = None,
    monitor: Monitor | None = None,
    traffic: Any = None,
    drift: Any = None,
    jobs: Jobs | None = None,
    gallery: Gallery | None = None,
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
        store: folder of bundles, or a `Store` or a `Fleet`, which then keeps its own precision, threads, engine and
            max_batch.
        guard: says who may ask for what; everybody may predict and explain, and nobody else, if None.
        monitor: counts requests and writes their log lines; a new one if None.
        traffic: a `Traffic`, which holds rules between versions; one that keeps nothing on disk if None.
        drift: a `Drift`, which tells how far inputs and answers are from the validation split's; one of the store if
            None.
        jobs: keeps background jobs; with standard limits if None.
        gallery: keeps the identities that are enrolled for models that embed; one in memory if None.
        precision: stored form to serve, such as "int8"; each bundle's default if None.
        threads: threads one request may use; every core if None.
        engine: "onnxruntime", "openvino" where it is installed, or "auto" for the faster one on this machine.
        max_body: largest request body in bytes.
        max_pixels: most pixels an image file may declare.
        max_batch: most rows of one request.
        explain_timeout: seconds one explanation may take.
        explain_target: "module:function" that the explainer's process calls.

    Returns:
        The Flask app. `app.extensions["store"]`, `["monitor"]`, `["explainer"]`, `["jobs"]` and `["live"]` are the
        objects behind it.

    Raises:
        FileNotFoundError: no such folder.
        BundleError: the folder is itself a bundle.
        ValueError: no such engine.
    """
    if isinstance(store, str | Path):
        store = Store(store, precision=precision, threads=threads, max_batch=max_batch, engine=engine)
    app = Flask(__name__, static_folder="page", static_url_path="/page")
    app.config["MAX_CONTENT_LENGTH"] = max_body
    explainer = Explainer(target=explain_target, timeout=explain_timeout)
    monitor = monitor or Monitor()
    jobs = jobs or Jobs()
    live = Live()
    app.extensions.update(store=store, monitor=monitor, explainer=explainer, jobs=jobs, live=live)
    guard = guard or Guard()
    traffic = traffic or Traffic()
    drift = drift or Drift(store.folder)
    drift.follow(store)
    monitor.watch(store=store, traffic=traffic, drift=drift)
    _surround(app, monitor)
    protect(app, guard)
    _unpacked(app)
    _figures(app, store, live)
    _health_routes(app, store, monitor)
    standard_routes(app, store, monitor)
    streaming_routes(app, store, monitor, guard)
    people_routes(
        app,
        store,
        monitor,
        explainer,
        jobs,
        live,
        guard=guard,
        traffic=traffic,
        drift=drift,
        gallery=gallery,
        max_pixels=max_pixels,
    )
    admin_routes(app, store, traffic, guard)
    openapi_routes(app, store)
    return app


def _unpacked(app: Flask) -> None:
    """Unpack bodies, once it is known that the client may send one."""

    @app.before_request
    def _unpack_body() -> None:
        if "Content-Encoding" in request.headers:
            _unpack(app.config["MAX_CONTENT_LENGTH"])


def _unpack(limit: int) -> None:
    """Put the unpacked body in place of a packed one; `serve.connections` does this itself, other WSGI hosts do not."""
    from serve.packing import unpack

    encoding = request.headers["Content-Encoding"].lower()
    if encoding not in ("gzip", "x-gzip", "deflate", "identity"):
        message = f"bodies packed with {encoding[:40]!r} are not read; use gzip or deflate, or send it as it is"
        raise RequestError("unsupported_media", message, 415, {"Accept-Encoding": "gzip, deflate"})
    if encoding != "identity":
        request.stream = io.BytesIO(unpack(request.get_data(cache=False), limit))


def _surround(app: Flask, monitor: Monitor) -> None:
    """Request ids, figures, the access log and errors in JSON."""

    @app.before_request
    def _begin() -> None:
        g.start = time.perf_counter()
        sent = request.headers.get("X-Request-Id", "")
        g.request_id = sent if REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
        g.model = None

    @app.after_request
    def _end(response: Response) -> Response:
        response.headers["X-Request-Id"] = g.request_id
        if not request.path.startswith("/page/"):
            response.headers.setdefault("Cache-Control", "no-store")
        monitor.answered(
            model=g.model.name if g.model else "",
            version=g.model.version if g.model else "",
            route=request.url_rule.rule if request.url_rule else "unknown",
            status=response.status_code,
            seconds=time.perf_counter() - g.start,
            code=g.get("code", ""),
            traceparent=request.headers.get("traceparent", ""),
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
            message = f"nothing is at {request.path[:100]!r}; the page at / lists the models, /docs the routes"
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
        g.code = code
        as_text = told_as_text(request.path)
        body = {"error": message, "code": code} if as_text else {"error": {"code": code, "message": message}}
        response = reply(body, status)
        response.headers.update(headers or {})
        return response


def _figures(app: Flask, store: Shelf, live: Live) -> None:
    """Feed the figures of the last minute: from the fleet where there is one, else from the answers of this app."""
    observers = getattr(store, "observers", None)
    if observers is not None:
        observers.append(live.observe)
        return

    @app.after_request
    def _count(response: Response) -> Response:
        if (
            g.get("model") is not None
            and request.method == "POST"
            and not request.path.startswith(("/jobs/", "/explain/"))
        ):
            live.answered(g.model.name, g.model.version, response.status_code, time.perf_counter() - g.start)
        return response


def _health_routes(app: Flask, store: Shelf, monitor: Monitor) -> None:
    @app.get("/healthz")
    def healthz() -> Response:
        """Whether the server is ready, and how many models it serves and refuses."""
        return reply({"ready": store.ready, "models": len(store.models), "refused": len(store.refused)})

    @app.get("/metrics")
    def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(monitor.text(), content_type="text/plain; version=0.0.4; charset=utf-8")
