"""The server's process: the front on an event loop, the fleet behind it, and a drain on SIGTERM."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from importlib.util import find_spec
from typing import Any

from serve.connections import Connection
from serve.drift import Drift
from serve.fleet import Fleet
from serve.guard import Guard, configured
from serve.http import Front, Limits
from serve.lines import Lines, LinesHandler
from serve.manifest import BundleError, load_trust
from serve.monitor import Monitor
from serve.settings import Settings
from serve.traffic import Traffic
from serve.tune import remembered

LAST = 0.5  # seconds for streams that are ended to reach their readers
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
        """Make the app; what exists then stays, so the garbage collector need not look at it while requests wait."""
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


def run(settings: Settings, *, guard: Guard | None = None, limits: Limits | None = None) -> None:
    """Serve a store until SIGTERM or Ctrl-C, then finish the requests under way and return.

    Without workers, threads, engine and ahead, what `serve.tune` wrote for the store on this machine is used. A second
    signal ends the requests under way at once.

    Args:
        settings: every option.
        guard: says who may ask for what, in place of the settings' security options.
        limits: every limit of `serve.http`, in place of max_body, connections and timeout.

    Raises:
        FileNotFoundError: no such folder.
        BundleError: nothing in the folder can be served; the message says why.
        OSError: the address cannot be listened on, or worker processes do not start.
        ValueError: an option cannot be used.
        ModuleNotFoundError: tracing without OpenTelemetry.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if limits is None:
        connections = _allowed(settings.connections)
        limits = Limits(body=settings.max_body, connections=connections, request_seconds=settings.timeout)
    guard = guard or configured(**settings.of("security"))
    chosen = {name: getattr(settings, name) for name in ("workers", "threads", "engine", "ahead")}
    chosen = {name: value for name, value in chosen.items() if value is not None} or remembered(settings.store)
    fleet = Fleet(
        settings.store,
        **chosen,
        precision=settings.precision,
        texts=settings.texts,
        max_batch=settings.max_batch,
        queue=settings.queue,
        timeout=settings.timeout,
        memory=settings.memory,
        cache=settings.cache,
        watch=settings.watch,
        trust=load_trust(settings.trust) if settings.trust else (),
    )
    monitor = Monitor(tracing=settings.tracing)
    fleet.traffic = traffic = Traffic(settings.state or settings.store / ".state")
    if settings.rules is not None:
        traffic.follow(settings.rules)
    drift = Drift(settings.store)
    drift.follow(fleet)
    monitor.watch(store=fleet, traffic=traffic, drift=drift)
    fleet.observers += [monitor.observe, traffic.observe]
    fleet.batches.append(monitor.batch)

    def make() -> Any:
        from serve.app import create_app
        from serve.gallery import Gallery

        return create_app(
            fleet,
            guard=guard,
            monitor=monitor,
            traffic=traffic,
            drift=drift,
            gallery=Gallery(settings.state or settings.store / ".state"),
            max_body=limits.body,
            max_pixels=settings.max_pixels,
            max_batch=settings.max_batch,
            explain_timeout=settings.explain_timeout,
        )

    app = LazyApp(make)
    if settings.access_log:
        monitor.lines = Lines(sys.stderr.fileno())
        logging.getLogger().handlers = [LinesHandler(monitor.lines)]
    try:
        with asyncio.Runner(loop_factory=event_loop) as runner:
            runner.run(_serve(fleet, app, guard, monitor, limits, settings))
    finally:
        traffic.close()
        if monitor.lines is not None:
            monitor.lines.close()


async def _serve(
    fleet: Fleet, app: LazyApp, guard: Guard, monitor: Monitor, limits: Limits, settings: Settings
) -> None:
    loop = asyncio.get_running_loop()
    host, port, drain = settings.host, settings.port, settings.drain
    front = Front(fleet, app, guard=guard, monitor=monitor, limits=limits)
    try:  # the port is taken before models are loaded, and listened on after
        server = await loop.create_server(partial(Connection, front), host, port, backlog=BACKLOG, start_serving=False)
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
        if fleet.interrupt():  # whoever reads is told why nothing more comes
            await front.drain(LAST)
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


def event_loop() -> asyncio.AbstractEventLoop:
    """A new event loop: uvloop's where it is installed, asyncio's own otherwise."""
    if find_spec("uvloop") is None:
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


def _allowed(connections: int) -> int:
    """Raise this process' limit of open files as far as needed and possible; returns the connections it leaves."""
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
