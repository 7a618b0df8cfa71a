"""The server's process: the front on an event loop, the fleet behind it, and a drain on SIGTERM."""

import asyncio
import contextlib
import gc
import logging
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from serve.drift import Drift
from serve.fleet import Fleet
from serve.guard import Guard
from serve.http import Front, Limits
from serve.manifest import BundleError, Trust
from serve.monitor import Lines, LinesHandler, Monitor
from serve.traffic import Traffic
from serve.tune import remembered

BACKLOG = 4096  # connections the system may hold until they are accepted


class LazyApp:
    """The Flask app, made when it is first asked or warmed: its imports take longer than the rest of the start."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._app: Any = None
        self._turn = threading.Lock()

    def get(self) -> Any:
        """The app itself."""
        with self._turn:
            if self._app is None:
                self._app = self._make()
            return self._app

    def warm(self) -> None:
        """Make the app; what exists then stays, so that the garbage collector need not look at it while requests wait."""
        self.get()
        gc.collect()
        gc.freeze()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        return self.get()(environ, start_response)

    def close(self) -> None:
        """End what works beside requests: the explainer's process and background jobs."""
        if self._app is not None:
            self._app.extensions["jobs"].close()
            self._app.extensions["explainer"].close()


def run(
    store: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int | None = None,
    threads: int | None = None,
    precision: str | None = None,
    engine: str | None = None,
    ahead: int | None = None,
    max_batch: int = 1024,
    max_body: int = 16 * 2**20,
    max_pixels: int = 25_000_000,
    connections: int = 10_000,
    queue: int = 2048,
    timeout: float = 30.0,
    explain_timeout: float = 30.0,
    drain: float = 10.0,
    memory: int | None = None,
    cache: int = 0,
    watch: float = 1.0,
    state: str | Path | None = None,
    access_log: bool = True,
    tracing: bool = False,
    limits: Limits | None = None,
    guard: Guard | None = None,
    trust: Trust = (),
) -> None:
    """Serve a store until SIGTERM or Ctrl-C, then finish the requests under way and return.

    Args:
        store: folder of bundles.
        host: address to listen on; "0.0.0.0" for every network of the machine.
        port: TCP port; 0 lets the system choose one, which is printed.
        workers: processes that compute; one per core if None. Where this, threads, engine and ahead are all None, what
            `serve.tune` wrote for the store on this machine is used.
        threads: threads of the engine in each worker; the cores divided among the workers if None.
        precision: stored form to serve, such as "int8"; each bundle's default if None.
        engine: "onnxruntime", "openvino" where it is installed, or "auto" for the faster one on this machine;
            "onnxruntime" if None.
        ahead: batches that a worker is given before it has answered the first; 1 if None.
        max_batch: most rows of one request, and of one run of the engine.
        max_body: largest request body in bytes, as sent and unpacked.
        max_pixels: most pixels an image file may declare.
        connections: open connections, lowered to what the system allows this process; one more is answered with 503.
        queue: most inferences that wait for one version; more are answered with 503.
        timeout: seconds an inference may take, unless the client sends X-Request-Timeout.
        explain_timeout: seconds an explanation may take.
        drain: seconds given to requests under way when stopping; a second signal ends them at once.
        memory: bytes that models may take in all workers; those not used for longest leave first. No limit if None.
        cache: bytes of answers kept for requests that come again; 0 keeps none.
        watch: seconds between two looks for new versions in the store; 0 never looks.
        state: folder that keeps traffic rules and history over a restart; ".state" in the store if None.
        access_log: log as JSON on standard error, with one line per request; warnings in plain words otherwise.
        tracing: make an OpenTelemetry span of each request.
        limits: every limit of `serve.http`, in place of max_body, connections and timeout.
        guard: says who may ask for what; everybody may predict and explain, and nobody else, if None.
        trust: public keys, of which one must have signed a bundle; see `serve.manifest.load_trust`.

    Raises:
        FileNotFoundError: no such folder.
        BundleError: nothing in the folder can be served; the message says why.
        OSError: the address cannot be listened on, or worker processes do not start.
        ValueError: an option cannot be used.
        ModuleNotFoundError: tracing without OpenTelemetry.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for name, value in (("timeout", timeout), ("explain_timeout", explain_timeout), ("max_body", max_body)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    limits = limits or Limits(body=max_body, connections=_allowed(connections), request_seconds=timeout)
    guard = guard or Guard()
    settings: dict[str, Any] = {"workers": workers, "threads": threads, "engine": engine, "ahead": ahead}
    settings = {name: value for name, value in settings.items() if value is not None} or remembered(store)
    fleet = Fleet(
        store,
        **settings,
        precision=precision,
        max_batch=max_batch,
        queue=queue,
        timeout=timeout,
        memory=memory,
        cache=cache,
        watch=watch,
        trust=trust,
    )
    monitor = Monitor(tracing=tracing)
    fleet.traffic = traffic = Traffic(Path(store) / ".state" if state is None else state)
    drift = Drift(store)
    drift.follow(fleet)
    monitor.watch(store=fleet, traffic=traffic, drift=drift)
    fleet.observers += [monitor.observe, traffic.observe]
    fleet.batches.append(monitor.batch)

    def make() -> Any:
        from serve.app import create_app

        return create_app(
            fleet,
            guard=guard,
            monitor=monitor,
            traffic=traffic,
            drift=drift,
            max_body=limits.body,
            max_pixels=max_pixels,
            max_batch=max_batch,
            explain_timeout=explain_timeout,
        )

    app = LazyApp(make)
    if access_log:
        monitor.lines = Lines(sys.stderr.fileno())
        logging.getLogger().handlers = [LinesHandler(monitor.lines)]
    try:
        with asyncio.Runner(loop_factory=event_loop) as runner:
            runner.run(_serve(fleet, app, guard, monitor, limits, host, port, drain))
    finally:
        traffic.close()
        if monitor.lines is not None:
            monitor.lines.close()


async def _serve(
    fleet: Fleet, app: LazyApp, guard: Guard, monitor: Monitor, limits: Limits, host: str, port: int, drain: float
) -> None:
    loop = asyncio.get_running_loop()
    front = Front(fleet, app, guard=guard, monitor=monitor, limits=limits)
    try:  # the port is taken before models are loaded, and listened on after
        server = await loop.create_server(front.connection, host, port, backlog=BACKLOG, start_serving=False)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another port") from error
    stop, now = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (now if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    end = 0.0
    try:
        if not await _unless(stop, fleet.start()):
            return
        _check(fleet)
        front.start()
        await server.start_serving()
        _announce(fleet, server.sockets)
        threading.Thread(target=app.warm, name="app-import", daemon=True).start()
        await stop.wait()
        end = time.monotonic() + drain
        server.close()
        fleet.draining = True
        if not await _unless(now, front.drain(drain)):
            end = 0.0
    finally:
        server.close()
        front.stop()
        await fleet.stop(max(0.0, end - time.monotonic()))
        app.close()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Whether the work was done before the event came, which ends it."""
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
            return True
        return False
    finally:
        for task in (working, waiting):
            task.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)


def in_bytes(option: str, text: str) -> int:
    """Bytes of a size such as 500KB, 16MB or 2GB, in powers of 1024.

    Args:
        option: named in the message.
        text: a number with or without a unit.

    Raises:
        ValueError: no such size.
    """
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*(?:([KMGT]?)I?B)?", text.strip().upper())
    if found is None:
        raise ValueError(f"{option} takes bytes, or a size such as 500KB, 16MB or 2GB, got {text!r}")
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))


def event_loop() -> asyncio.AbstractEventLoop:
    """A new event loop: uvloop's where it is installed, asyncio's own otherwise."""
    if find_spec("uvloop") is None:
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


def _allowed(connections: int) -> int:
    """Raise this process' limit of open files as far as needed and possible; returns the connections it leaves."""
    if connections < 1:
        raise ValueError(f"connections must be at least 1, got {connections}")
    if find_spec("resource") is None:  # Windows
        return connections
    import resource

    own = 512  # files, pipes and sockets of the server itself, and connections that are being refused
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < connections + own and soft != resource.RLIM_INFINITY:
        soft = connections + own if hard == resource.RLIM_INFINITY else min(connections + own, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return max(1, min(connections, soft - own))
    return connections


def _check(fleet: Fleet) -> None:
    """Refuse to start with nothing to serve."""
    if not fleet.models:
        reasons = "".join(f"\n  {'/'.join(key)}: {reason}" for key, reason in fleet.refused.items())
        cure = ":" if reasons else "; make a bundle first: zoo export RUN STORE/NAME/1"
        raise BundleError(f"no bundle in {str(fleet.folder)!r} can be served{cure}{reasons}")


def _announce(fleet: Fleet, sockets: Iterable[socket.socket]) -> None:
    for name, versions in fleet.models.items():
        model = fleet.get(name)
        print(
            f"  {name}: {model.manifest.architecture}, {model.precision} on {model.engine}, version {' '.join(versions)}"
        )
    plural = "" if len(fleet.models) == 1 else "s"
    for each in sockets:
        host, port = each.getsockname()[:2]
        address = f"[{host}]" if ":" in host else host
        print(f"serving {len(fleet.models)} model{plural} at http://{address}:{port}")
    print("stop with Ctrl-C", flush=True)
