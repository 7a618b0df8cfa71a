"""The same store and app on a Ray cluster, on as many replicas and machines as the load asks for.

`python -m serve.cluster STORE` starts Ray on this machine, or joins a running cluster with `--address`. Every replica is
one process with the whole app; the store must be at the same path on every machine. Ray's proxies take HTTP.
"""

import argparse
import asyncio
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
from pathlib import Path
from typing import Any

from serve.manifest import BundleError, load_trust

log = logging.getLogger("serve")

NAME = "zooroad"
BOARD = "zooroad-figures"  # name of the actor that gathers the replicas' metrics
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

    def __init__(
        self,
        store: str,
        options: dict[str, Any],
        trust: Path | None,
        settings: dict[str, Any],
        limits: dict[str, Any],
        watch: float,
    ) -> None:
        """Load the store.

        Args:
            store: folder of bundles.
            options: of `Store`: precision, threads, engine, max_batch.
            trust: file or folder of public keys, of which one must have signed a bundle; any bundle if None.
            settings: of `serve.guard.configured`.
            limits: of `serve.app.create_app`: max_body, max_pixels, explain_timeout.
            watch: seconds between two looks for new versions; 0 never looks.

        Raises:
            BundleError: nothing in the store can be served.
        """
        from serve.app import create_app
        from serve.guard import configured
        from serve.monitor import Monitor
        from serve.runtime import Store

        self.store = Store(store, **options, trust=() if trust is None else load_trust(trust))
        if not self.store.models:
            reasons = "".join(f"\n  {'/'.join(key)}: {reason}" for key, reason in self.store.refused.items())
            raise BundleError(f"no bundle in {store!r} can be served{reasons}")
        self.monitor = Monitor()
        self.app = create_app(self.store, guard=configured(**settings), monitor=self.monitor, **limits)
        self._ray: Any = import_module("ray")
        context = self._ray.get_runtime_context()
        self.name = f"{context.get_node_id()[:8]}-{context.get_actor_id()[:8]}"
        self._board = self._ray.get_actor(BOARD, namespace="serve")
        self._threads = ThreadPoolExecutor(8, "request")
        self._watch = watch
        threading.Thread(target=self._tend, daemon=True).start()

    async def __call__(self, request: Any) -> Any:
        """Answer a Starlette request through the Flask app."""
        from starlette.responses import Response

        body = await request.body()
        loop = asyncio.get_running_loop()
        asked = environ(request.scope, body)
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

        path = asked["PATH_INFO"]
        if asked["REQUEST_METHOD"] != "GET" and path.startswith(SINGLE):
            return refused(path)
        response = Response.from_app(self.app, asked, buffered=True)
        content = response.get_data()
        if path == "/metrics" and response.status_code == 200:
            content = self._report()
            response.headers["Content-Length"] = str(len(content))
        return response.status_code, list(response.headers), content

    def _report(self) -> bytes:
        told: bytes = self._ray.get(self._board.report.remote(self.name, self.monitor.text()), timeout=10)
        return told

    def _tend(self) -> None:
        """Report figures, and look for new versions."""
        looked = time.monotonic()
        while True:
            time.sleep(min(EVERY, self._watch or EVERY))
            try:
                self._report()
                if self._watch and time.monotonic() - looked >= self._watch:
                    self.store.rescan()
                    looked = time.monotonic()
            except Exception as error:  # the cluster or the disk may be better next time
                log.warning("tending a replica failed: %s: %s", type(error).__name__, error)


def refused(path: str) -> tuple[int, list[tuple[str, str]], bytes]:
    """The answer to what only one process could do."""
    import msgspec

    message = f"{path.split('/')[1]!r} changes one process and is not answered by a cluster; change the store instead"
    body = msgspec.json.encode({"error": {"code": "not_in_cluster", "message": message}})
    return 501, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))], body


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


def run(
    store: str | Path,
    *,
    address: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    most: int | None = None,
    cpus: float = 1.0,
    proxies: str = "every",
    watch: float = 2.0,
    trust: Path | None = None,
    settings: dict[str, Any] | None = None,
    limits: dict[str, Any] | None = None,
    precision: str | None = None,
    engine: str = "onnxruntime",
    max_batch: int = 1024,
) -> None:
    """Serve a store on Ray until SIGTERM or Ctrl-C, then take the app off the cluster.

    Args:
        store: folder of bundles, at the same path on every machine.
        address: of a running cluster, such as "10.0.0.1:6379", or "auto"; what RAY_ADDRESS says, or a new cluster of this
            machine, if None.
        host: address that proxies listen on.
        port: TCP port of the proxies.
        replicas: processes to start with, and to keep at least.
        most: processes that there may be under load; `replicas` if None.
        cpus: cores that one replica is given, and threads of its engine.
        proxies: "every" machine takes HTTP, or the "head" alone.
        watch: seconds between two looks for new versions; 0 never looks.
        settings: options of `serve.guard.configured`, such as `keys`; files must be readable on every machine.
        trust: file or folder of public keys, of which one must have signed a bundle; any bundle if None.
        limits: max_body, max_pixels and explain_timeout of `serve.app.create_app`.
        precision, engine, max_batch: as for `serve.runtime.Store`.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        FileNotFoundError: no such folder.
        ValueError: an option cannot be used.
        BundleError: no replica could serve anything.
    """
    if find_spec("ray") is None:
        raise ModuleNotFoundError("a cluster needs Ray, which is not installed; run: pip install 'zooroad[cluster]'")
    folder = Path(store).resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder called {str(store)!r}; make a bundle first: zoo export RUN STORE/NAME/1")
    most = replicas if most is None else most
    if not 1 <= replicas <= most:
        raise ValueError(f"replicas must lie in 1 … most, got replicas={replicas}, most={most}")
    if cpus <= 0:
        raise ValueError(f"cpus must be above 0, got {cpus}")
    if proxies not in ("every", "head"):
        raise ValueError(f"proxies must be 'every' or 'head', got {proxies!r}")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS") or None
    ray: Any = import_module("ray")
    serve: Any = import_module("ray.serve")
    stop = threading.Event()
    ray.init(address=address, include_dashboard=False if address is None else None, log_to_driver=False)
    kept = {
        number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)
    }  # Ray has its own until here
    try:
        serve.start(
            proxy_location={"every": "EveryNode", "head": "HeadOnly"}[proxies],
            http_options={"host": host, "port": port},
        )
        gathered = ray.remote(Board).options(name=BOARD, namespace="serve", num_cpus=0, get_if_exists=True)
        board = gathered.remote()  # it lives as long as this name for it does
        ray.get(board.__ray_ready__.remote())
        options = {"precision": precision, "engine": engine, "max_batch": max_batch, "threads": max(1, int(cpus))}
        guarded = {
            name: value.resolve() if isinstance(value, Path) else value for name, value in (settings or {}).items()
        }
        deployed = serve.deployment(Replica).options(
            name=NAME,
            ray_actor_options={"num_cpus": cpus},
            max_ongoing_requests=64,
            graceful_shutdown_timeout_s=10,
            health_check_period_s=2,
            **(
                {"num_replicas": replicas}
                if most == replicas
                else {
                    "autoscaling_config": {"min_replicas": replicas, "max_replicas": most, "target_ongoing_requests": 8}
                }
            ),
        )
        serve.run(
            deployed.bind(str(folder), options, trust and trust.resolve(), guarded, limits or {}, watch),
            name=NAME,
            route_prefix="/",
        )
        print(f"serving {folder} with {replicas} replicas at http://{host}:{port}\nstop with Ctrl-C", flush=True)
        stop.wait()
        if address is None:
            serve.shutdown()
        else:  # others may use the cluster
            serve.delete(NAME)
    except RuntimeError as error:
        raise BundleError(f"the cluster does not serve {str(store)!r}: {error}") from error
    finally:
        ray.shutdown()
        for number, handler in kept.items():
            signal.signal(number, handler)


def main() -> int:
    """Serve the store named on the command line; 0 after a stop that was asked for, 1 with a message otherwise."""
    made = argparse.ArgumentParser(prog="python -m serve.cluster", description="Serve the bundles of a store on Ray.")
    made.add_argument("store", help="folder with <name>/<version> bundles, at the same path on every machine")
    made.add_argument("--address", help="running cluster to join, or auto (default: start one on this machine)")
    made.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    made.add_argument("--port", type=int, default=8000, help="TCP port (default: %(default)s)")
    made.add_argument("--replicas", type=int, default=1, help="processes, at least (default: %(default)s)")
    made.add_argument("--most", type=int, help="processes under load (default: as --replicas)")
    made.add_argument("--cpus", type=float, default=1.0, help="cores of each process (default: %(default)s)")
    made.add_argument("--proxies", choices=("every", "head"), default="every", help="machines that take HTTP")
    made.add_argument("--watch", type=float, default=2.0, help="seconds between looks for new versions; 0 for none")
    made.add_argument("--keys", type=Path, help="API keys made by zoo keys, readable on every machine")
    made.add_argument("--trust", type=Path, help="serve bundles signed by this key, or by one of a folder, alone")
    made.add_argument("--precision", help="stored form to serve (default: each bundle's own)")
    made.add_argument("--engine", default="onnxruntime", help="what computes (default: %(default)s)")
    made.add_argument("--max-batch", type=int, default=1024, help="most rows of a request (default: %(default)s)")
    try:
        given = vars(made.parse_args())
        settings = {"keys": given.pop("keys")}
        run(**given, settings=settings)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    from serve.cluster import main as named  # so that replicas find its classes by name

    sys.exit(named())
