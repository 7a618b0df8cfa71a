"""The same store and app on a Ray cluster, on as many replicas and machines as the load asks for.

`python -m serve.cluster STORE` starts Ray on this machine, or joins a running cluster with `--address`. Every replica
is one process with the whole app; the store must be at the same path on every machine. Ray's proxies take HTTP. What
differs from one server is told in docs/serving.md.
"""

import asyncio
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from typing import Any

from serve.errors import RequestError, told_as_text
from serve.manifest import BundleError, load_trust
from serve.settings import ENGINES, Settings, parser

log = logging.getLogger("serve")

NAME = "zooroad"
BOARD = "zooroad-figures"  # name of the actor that gathers the replicas' metrics
ONGOING = 64  # requests that one replica is given at a time
EVERY = 2.0  # seconds between a replica's reports
FORGOTTEN = 3600.0  # seconds after which a replica that has gone is left out of the metrics
# routes that change one process' state, where every replica would have to change alike
SINGLE = ("/admin/", "/v2/repository/models/", "/jobs/")


class Board:
    """Metrics of every replica; an actor of which the cluster has one."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[float, bytes]] = {}

    def report(self, replica: str, text: bytes) -> bytes:
        """Keep a replica's metrics, and return those of all, told apart by the label `replica`.

        A replica that has gone counts on with its last figures, so that sums do not fall.
        """
        now = time.monotonic()
        self._told[replica] = (now, text)
        self._told = {name: told for name, told in self._told.items() if now - told[0] < FORGOTTEN}
        return joined({name: told[1] for name, told in self._told.items()})


def joined(texts: dict[str, bytes]) -> bytes:
    """Metrics of several processes in Prometheus' text format as one, each sample with the label `replica`."""
    from prometheus_client import Metric, generate_latest
    from prometheus_client.parser import text_string_to_metric_families

    families: dict[str, Metric] = {}
    for replica, text in sorted(texts.items()):
        for found in text_string_to_metric_families(text.decode()):
            family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
            for sample in found.samples:
                family.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)

    class Gathered:
        def collect(self) -> Iterable[Metric]:
            return families.values()

    return generate_latest(Gathered())


class Replica:
    """One process of the cluster: the store and the app, behind Ray's proxy."""

    def __init__(self, settings: Settings) -> None:
        """Load the store.

        Args:
            settings: every option, with paths that hold on every machine.

        Raises:
            BundleError: nothing in the store can be served.
        """
        from serve.app import create_app
        from serve.guard import configured
        from serve.lines import Lines, LinesHandler
        from serve.monitor import Monitor
        from serve.store import Store
        from serve.traffic import Traffic

        self._settings = settings
        self.store = Store(
            settings.store,
            precision=settings.precision,
            threads=settings.threads or max(1, int(settings.cpus)),
            engine=settings.engine or ENGINES[0],
            max_batch=settings.max_batch,
            texts=settings.texts,
            trust=load_trust(settings.trust) if settings.trust else (),
        )
        if not self.store.models:
            reasons = "".join(f"\n  {'/'.join(key)}: {reason}" for key, reason in self.store.refused.items())
            raise BundleError(f"no bundle in {str(settings.store)!r} can be served{reasons}")
        self.monitor = Monitor(tracing=settings.tracing)
        if settings.access_log:  # Ray keeps what a replica writes in a file of its session
            self.monitor.lines = Lines(sys.stderr.fileno())
            logging.getLogger().handlers = [LinesHandler(self.monitor.lines)]
        traffic = Traffic()
        if settings.rules is not None:
            traffic.follow(settings.rules)
        self.app = create_app(
            self.store,
            guard=configured(**settings.of("security")),
            monitor=self.monitor,
            traffic=traffic,
            max_body=settings.max_body,
            max_pixels=settings.max_pixels,
            explain_timeout=settings.explain_timeout,
        )
        self._ray: Any = import_module("ray")
        context = self._ray.get_runtime_context()
        self.name = f"{context.get_node_id()[:8]}-{context.get_actor_id()[:8]}"
        self._board = self._ray.get_actor(BOARD, namespace="serve")
        self._threads = ThreadPoolExecutor(8, "request")
        threading.Thread(target=self._tend, daemon=True).start()

    async def __call__(self, request: Any) -> Any:
        """Answer a Starlette request through the Flask app."""
        from starlette.responses import Response

        try:
            check(request.method, request.scope["path"])
            asked = environ(request.scope, await received(request, self._settings.max_body))
        except RequestError as error:
            status, headers, content = refused(request.scope["path"], error)
        else:
            loop = asyncio.get_running_loop()
            status, headers, content = await loop.run_in_executor(self._threads, self._answer, asked)
        response = Response(content, status)
        response.raw_headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        return response

    def check_health(self) -> None:
        """Tell Ray whether this replica can answer.

        Raises:
            RuntimeError: it cannot.
        """
        if not self.store.ready:
            raise RuntimeError("no model is served")

    def _answer(self, asked: dict[str, Any]) -> tuple[int, list[tuple[str, str]], bytes]:
        from werkzeug.wrappers import Response

        response = Response.from_app(self.app, asked, buffered=True)
        content = response.get_data()
        if asked["PATH_INFO"] == "/metrics" and response.status_code == 200:
            content = self._report()
            response.headers["Content-Length"] = str(len(content))
        return response.status_code, list(response.headers), content

    def _report(self) -> bytes:
        told: bytes = self._ray.get(self._board.report.remote(self.name, self.monitor.text()), timeout=10)
        return told

    def _tend(self) -> None:
        """Report figures, and look for new versions."""
        looked, watch = time.monotonic(), self._settings.watch
        while True:
            time.sleep(min(EVERY, watch or EVERY))
            try:
                self._report()
                if watch and time.monotonic() - looked >= watch:
                    self.store.rescan()
                    looked = time.monotonic()
            except Exception as error:  # the cluster or the disk may be better next time
                log.warning("tending a replica failed: %s: %s", type(error).__name__, error)


def check(method: str, path: str) -> None:
    """Refuse what would change one replica alone.

    Raises:
        RequestError: 501, it would.
    """
    if method != "GET" and path.startswith(SINGLE):
        message = (
            "this changes one process alone and is not answered by a cluster; change the store, or the --rules file"
        )
        raise RequestError("not_in_cluster", message, 501)


async def received(request: Any, limit: int) -> bytes:
    """The body of a Starlette request, of which no more is read than may be sent.

    Raises:
        RequestError: 413, it is larger than `limit` bytes.
    """
    parts, size = [], 0
    declared = request.headers.get("content-length", "")
    too_large = declared.isdecimal() and int(declared[:18]) > limit
    if not too_large:
        async for part in request.stream():
            size += len(part)
            parts.append(part)
            too_large = size > limit
            if too_large:
                break
    if too_large:
        raise RequestError("too_large", f"the body is larger than {limit} bytes; send less at a time", 413)
    return b"".join(parts)


def refused(path: str, error: RequestError) -> tuple[int, list[tuple[str, str]], bytes]:
    """An error as clients of the path read it."""
    body = (
        error.body
        if told_as_text(path)
        else json.dumps({"error": {"code": error.code, "message": error.message}}).encode()
    )
    return error.status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))], body


def environ(scope: dict[str, Any], body: bytes) -> dict[str, Any]:
    """A request in ASGI's form as WSGI has it (PEP 3333)."""
    host, port = scope.get("server") or ("localhost", 80)
    client = scope.get("client") or ("", 0)
    found: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": scope["path"].encode("utf-8").decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port or 80),
        "SERVER_PROTOCOL": f"HTTP/{scope.get('http_version', '1.1')}",
        "REMOTE_ADDR": client[0],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for raw, value in scope["headers"]:
        name = raw.decode("latin-1").upper()
        if "_" in name or name == "TRANSFER-ENCODING":  # X_Request_Id would pass for X-Request-Id
            continue
        name = name.replace("-", "_")
        key = name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"
        text = value.decode("latin-1")
        found[key] = f"{found[key]},{text}" if key in found else text
    found["CONTENT_LENGTH"] = str(len(body))
    return found


def run(settings: Settings) -> None:
    """Serve a store on Ray until SIGTERM or Ctrl-C, then take the app off the cluster.

    The store, and files such as keys, must be at the same path on every machine.

    Args:
        settings: with `cluster`, and what applies there.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        FileNotFoundError: no such folder.
        BundleError: no replica could serve anything.
    """
    if find_spec("ray") is None:
        raise ModuleNotFoundError("a cluster needs Ray, which is not installed; run: pip install 'zooroad[cluster]'")
    if not settings.store.is_dir():
        raise FileNotFoundError(
            f"no folder called {str(settings.store)!r}; make a bundle first: zoo export RUN STORE/NAME/1"
        )
    settings = settings.resolved()
    replicas, most = settings.replicas, settings.most_replicas or settings.replicas
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = settings.address or os.environ.get("RAY_ADDRESS") or None
    ray: Any = import_module("ray")
    serve: Any = import_module("ray.serve")
    stop = threading.Event()
    ray.init(address=address, include_dashboard=False if address is None else None, log_to_driver=False)
    kept = {
        number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)
    }  # Ray has its own until here
    try:
        serve.start(
            proxy_location={"every": "EveryNode", "head": "HeadOnly"}[settings.ingress],
            http_options={
                "host": settings.host,
                "port": settings.port,
                "request_timeout_s": max(settings.timeout, settings.explain_timeout),
            },
        )
        gathered = ray.remote(Board).options(name=BOARD, namespace="serve", num_cpus=0, get_if_exists=True)
        board = gathered.remote()  # it lives as long as this name for it does
        ray.get(board.__ray_ready__.remote())
        deployed = serve.deployment(Replica).options(
            name=NAME,
            ray_actor_options={"num_cpus": settings.cpus},
            max_ongoing_requests=ONGOING,
            max_queued_requests=settings.queue,
            graceful_shutdown_timeout_s=settings.drain,
            health_check_period_s=2,
            **(
                {"num_replicas": replicas}
                if most == replicas
                else {
                    "autoscaling_config": {"min_replicas": replicas, "max_replicas": most, "target_ongoing_requests": 8}
                }
            ),
        )
        serve.run(deployed.bind(settings), name=NAME, route_prefix="/")
        plural = "" if replicas == 1 else "s"
        print(
            f"serving {settings.store} with {replicas} replica{plural} at http://{settings.host}:{settings.port}\n"
            "stop with Ctrl-C",
            flush=True,
        )
        stop.wait()
        if address is None:
            serve.shutdown()
        else:  # others may use the cluster
            serve.delete(NAME)
    except RuntimeError as error:
        raise BundleError(f"the cluster does not serve {str(settings.store)!r}: {error}") from error
    finally:
        ray.shutdown()
        for number, handler in kept.items():
            signal.signal(number, handler)


def main() -> int:
    """Serve the store named on the command line; 0 after a stop that was asked for, 1 with a message otherwise."""
    given = vars(parser(cluster=True).parse_args())
    try:
        run(Settings(**given, cluster=True))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    from serve.cluster import main as named  # so that replicas find its classes by name

    sys.exit(named())
