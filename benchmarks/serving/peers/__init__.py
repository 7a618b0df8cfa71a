"""Other servers: what each needs, how it is started in its best documented setting, and which bodies it takes."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Setting:
    """Processes that compute, ONNX Runtime threads in each, and what else is set."""

    workers: int
    threads: int
    batching: bool = True

    def __str__(self) -> str:
        return f"{self.workers}x{self.threads}{'' if self.batching else ' unbatched'}"


Start = Callable[[Path, int, Setting, Path], tuple[list[object], dict[str, str]]]


def environment(folder: Path, requirements: Path) -> Path:
    """Interpreter of a virtual environment with pinned packages, made first unless it holds these already.

    Raises:
        RuntimeError: they cannot be installed; the message holds the end of what pip printed.
    """
    mark, digest = folder / ".requirements", hashlib.sha256(requirements.read_bytes()).hexdigest()
    python = folder / "bin" / "python"
    if mark.is_file() and mark.read_text() == digest:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", "--only-binary", ":all:", "-r", requirements],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"pip could not install {requirements}: {done.stderr[-600:]}")
    mark.write_text(digest)
    return python


@dataclass(frozen=True)
class Peer:
    """A server to compare with.

    Attributes:
        name: of the peer, and of the way it is used if there are several.
        package: of its folder here and of its environment, and whose version is recorded.
        forms: "json" and "binary" to the form of its body and the path it is sent to; what is missing is not offered
            by its HTTP interface.
        ready: path that answers 200 once it is ready.
        start: interpreter, port, setting and a scratch folder to a command and its environment variables.
        settings: those that are tried; the best of them counts, for each figure alone.
        documented: whether it is used as its documentation says; others are measured, and not a target.
    """

    name: str
    package: str
    forms: Mapping[str, tuple[str, str]]
    ready: str
    start: Start
    settings: tuple[Setting, ...]
    documented: bool = True

    @property
    def requirements(self) -> Path:
        return FOLDER / self.package / "requirements.txt"

    def python(self, environments: Path) -> Path:
        """Interpreter of the peer's own environment, made first if it is not there or other versions are asked for.

        Raises:
            RuntimeError: it cannot be installed; the message holds the end of what pip printed.
        """
        return environment(environments / self.package, self.requirements)

    def version(self) -> str:
        """Version of the peer, as its requirements pin it."""
        pins = dict(line.split("==") for line in self.requirements.read_text().lower().split() if "==" in line)
        return pins[self.package]


def cores() -> int:
    return len(os.sched_getaffinity(0))


def _fastapi(python: Path, port: int, setting: Setting, scratch: Path) -> tuple[list[object], dict[str, str]]:
    options = ["--workers", setting.workers, "--no-access-log", "--log-level", "error"]
    server = [
        "-m",
        "uvicorn",
        "app:app",
        "--host",
        "127.0.0.1",
        "--port",
        port,
        "--loop",
        "uvloop",
        "--http",
        "httptools",
    ]
    return [python, *server, *options], {"PYTHONPATH": str(FOLDER / "fastapi")}


def _litserve(python: Path, port: int, setting: Setting, scratch: Path) -> tuple[list[object], dict[str, str]]:
    return [python, FOLDER / "litserve" / "app.py"], {}


def _bentoml(python: Path, port: int, setting: Setting, scratch: Path) -> tuple[list[object], dict[str, str]]:
    command = [python, "-m", "bentoml", "serve", "service:Peer", "--host", "127.0.0.1", "--port", port]
    home = {"BENTOML_HOME": str(scratch / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    return [*command, "--working-dir", FOLDER / "bentoml"], home


def _mlserver(python: Path, port: int, setting: Setting, scratch: Path) -> tuple[list[object], dict[str, str]]:
    folder = scratch / "mlserver"
    (folder / "model").mkdir(parents=True, exist_ok=True)
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": port + 1,
        "metrics_port": port + 2,
        "parallel_workers": setting.workers if setting.workers > 1 else 0,
        "use_structured_logging": False,
    }
    model = {"name": "model", "implementation": "peer_runtime.Runtime"}
    if setting.batching:
        model |= {"max_batch_size": 64, "max_batch_time": 0.001}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model" / "model-settings.json").write_text(json.dumps(model))
    return [python.with_name("mlserver"), "start", folder], {"PYTHONPATH": str(FOLDER / "mlserver")}


def _ray(python: Path, port: int, setting: Setting, scratch: Path) -> tuple[list[object], dict[str, str]]:
    fast = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}
    return [python, FOLDER / "ray" / "app.py"], {**fast, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": ""}


SPREAD, WIDE = Setting(cores(), 1), Setting(1, cores())
V2 = "/v2/models/model/infer"
BARE = {"json": ("plain", "/bare"), "binary": ("raw", "/raw")}

PEERS = {
    peer.name: peer
    for peer in (
        Peer("fastapi", "fastapi", {"json": ("plain", "/predict")}, "/health", _fastapi, (SPREAD, WIDE)),
        Peer("fastapi-bare", "fastapi", BARE, "/health", _fastapi, (SPREAD, WIDE), documented=False),
        Peer("litserve", "litserve", {"json": ("plain", "/predict")}, "/health", _litserve, (SPREAD, WIDE)),
        Peer(
            "mlserver",
            "mlserver",
            {"json": ("v2", V2)},
            "/v2/health/ready",
            _mlserver,
            (SPREAD, WIDE, Setting(1, cores(), batching=False)),
        ),
        Peer("bentoml", "bentoml", {"json": ("plain", "/predict")}, "/readyz", _bentoml, (SPREAD, WIDE)),
        Peer("ray", "ray", {"json": ("plain", "/"), "binary": ("raw", "/raw")}, "/-/healthz", _ray, (SPREAD, WIDE)),
    )
}


def launch(
    peer: Peer, python: Path, port: int, setting: Setting, model: Path, scratch: Path
) -> tuple[list[object], dict[str, str]]:
    """Command and environment variables that serve an ONNX file on a peer."""
    command, extra = peer.start(python, port, setting, scratch)
    common = {
        "PEER_MODEL": str(model),
        "PEER_THREADS": str(setting.threads),
        "PEER_WORKERS": str(setting.workers),
        "PEER_PORT": str(port),
    }
    return command, {**common, **extra}
