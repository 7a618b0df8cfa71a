"""The app behind waitress: connection limits, errors in JSON even for broken HTTP, and a drain on SIGTERM."""

import logging
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
from waitress import create_server, wasyncore
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer
from waitress.task import ErrorTask

from serve.app import create_app
from serve.manifest import BundleError
from serve.runtime import Store, cores

HTTP_CODES = {400: "bad_http", 413: "too_large", 431: "headers_too_large", 501: "unsupported_http"}


class _JsonErrorTask(ErrorTask):  # type: ignore[misc]  # waitress has no types
    """Waitress' own refusals, which never reach the app, in the form of the app's errors."""

    def execute(self) -> None:
        error = self.request.error
        message = f"{error.reason.lower()}: {error.body}"
        body = msgspec.json.encode({"error": {"code": HTTP_CODES.get(error.code, "http_error"), "message": message}})
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Channel(HTTPChannel):  # type: ignore[misc]
    error_task_class = _JsonErrorTask


def run(
    store: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int | None = None,
    max_body: int = 16 * 2**20,
    connections: int = 500,
    drain: float = 10.0,
    access_log: bool = True,
    **options: Any,
) -> None:
    """Serve a store until SIGTERM or Ctrl-C, then finish the requests under way and return.

    Args:
        store: folder of bundles.
        host: address to listen on; "0.0.0.0" for every network of the machine.
        port: TCP port; 0 lets the system choose one, which is printed.
        workers: requests worked on at a time; twice the cores, at least 8, if None.
        max_body: largest request body in bytes.
        connections: open connections; more wait in the system's queue.
        drain: seconds given to requests under way when stopping.
        access_log: one JSON line per request on standard error.
        options: further arguments of `create_app`, such as precision, threads, engine or explain_timeout.

    Raises:
        FileNotFoundError: no such folder.
        BundleError: nothing in the folder can be served; the message says why.
        OSError: the address cannot be listened on.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if access_log:
        _log_lines(logging.getLogger("serve.access"))
    app = create_app(store, max_body=max_body, **options)
    models: Store = app.extensions["store"]
    if not models.models:
        reasons = "".join(f"\n  {'/'.join(key)}: {reason}" for key, reason in models.refused.items())
        cure = ":" if reasons else "; make a bundle first: zoo export RUN STORE/NAME/1"
        raise BundleError(f"no bundle in {str(store)!r} can be served{cure}{reasons}")
    sockets: dict[int, Any] = {}
    try:
        create_server(
            app,
            map=sockets,
            host=host,
            port=port,
            threads=workers or max(8, 2 * cores()),
            connection_limit=connections,
            max_request_body_size=max_body + 2**16,  # the app refuses first, with its own limit in the message
            channel_timeout=60,
            expose_tracebacks=False,
            ident=None,
        )
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another port") from error
    servers = [each for each in sockets.values() if isinstance(each, BaseWSGIServer)]
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()
        for server in servers:
            server.pull_trigger()

    kept = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    for server in servers:
        server.channel_class = _Channel
    try:
        _announce(models, servers)
        while not stop.is_set():
            wasyncore.loop(timeout=1, use_poll=True, map=sockets, count=1)
        models.draining = True
        _finish(sockets, servers, drain)
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        app.extensions["explainer"].close()
        for server in servers:
            server.task_dispatcher.shutdown(timeout=1)
        wasyncore.close_all(sockets, ignore_all=True)


def _log_lines(logger: logging.Logger) -> None:
    """Bare messages of a logger on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)


def _announce(store: Store, servers: list[BaseWSGIServer]) -> None:
    for name, versions in store.models.items():
        model = store.get(name)
        print(
            f"  {name}: {model.manifest.architecture}, {model.precision} on {model.engine}, version {' '.join(versions)}"
        )
    plural = "" if len(store.models) == 1 else "s"
    for server in servers:
        host = server.effective_host
        address = f"[{host}]" if ":" in host else host
        print(f"serving {len(store.models)} model{plural} at http://{address}:{server.effective_port}")
    print("stop with Ctrl-C", flush=True)


def _finish(sockets: dict[int, Any], servers: list[BaseWSGIServer], seconds: float) -> None:
    """Accept no more connections, and keep the loop going until every request under way is answered."""
    for server in servers:
        wasyncore.dispatcher.close(server)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(
        channel.requests or channel.request or channel.total_outbufs_len
        for channel in sockets.values()
        if isinstance(channel, HTTPChannel)
    ):
        wasyncore.loop(timeout=0.1, use_poll=True, map=sockets, count=1)
