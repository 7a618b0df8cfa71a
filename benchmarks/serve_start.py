"""Seconds from start to ready, and memory of all processes, of the server without TensorFlow.

    python benchmarks/serve_start.py [STORE] [--python PATH] [--runs 5]

Makes a fresh virtual environment with the `serve` extra alone, starts `python -m serve STORE` in it, waits until
`/v2/health/ready` says so, asks every model for one answer and reads the memory of the front and its workers, what they
share counted once. Appends the median to benchmarks/results/serve_start.csv. Also measures what spinning threads would cost
and gain under light load, a request every 10 ms to the largest model: cores in use and median milliseconds per request,
with ONNX Runtime's default (spinning) and with the server's setting (not).
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from record import append
from serving.machine import resident_mb, tree

ROOT = Path(__file__).resolve().parents[1]
ALLOWED_SECONDS = 1.0
ALLOWED_MB = 250.0
ABSENT = ("tensorflow", "keras", "torch", "jax", "shap")
PACKAGES = ("flask", "uvloop", "onnxruntime", "numpy")


def fresh_python(folder: Path) -> Path:
    """Interpreter of a new virtual environment that holds the serve extra alone."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    constraints = ["-c", "constraints.txt"] if (ROOT / "constraints.txt").exists() else []
    built = (ROOT / "build").exists()
    subprocess.run([python, "-m", "pip", "install", "-q", *constraints, ".[serve]"], check=True, cwd=ROOT)
    if not built:  # setuptools leaves it, and would put files deleted since then into a later wheel
        shutil.rmtree(ROOT / "build", ignore_errors=True)
    return python


def facts(python: Path) -> dict[str, object]:
    """Versions in the environment, and which of the heavy packages it holds."""
    script = (
        "import json, importlib.util as u, importlib.metadata as m;"
        f"print(json.dumps([[p for p in {ABSENT!r} if u.find_spec(p)], {{p: m.version(p) for p in {PACKAGES!r}}}]))"
    )
    found = subprocess.run([python, "-c", script], check=True, capture_output=True, text=True, cwd="/")
    heavy, versions = json.loads(found.stdout)
    return {"heavy": heavy, "versions": versions}


def fetch(port: int, path: str, body: object = None) -> object:
    """JSON answer of the server under test."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def start_once(python: Path, store: Path) -> tuple[float, float]:
    """(seconds from process start to ready, MB of all its processes after one answer from every model)."""
    started = time.perf_counter()
    command = [python, "-m", "serve", str(store), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd="/")
    try:
        port = next((int(f[1]) for line in server.stdout if (f := re.search(r"http://[^:]+:(\d+)", line))), None)
        if port is None:
            raise SystemExit(f"the server did not start on {store}; run: {' '.join(map(str, command))}")
        assert fetch(port, "/v2/health/ready") == {"ready": True}
        ready = time.perf_counter() - started
        urllib.request.urlopen(f"http://127.0.0.1:{port}/page/app.js", timeout=30).close()  # the page was installed
        for model in fetch(port, "/models"):
            if "version" in model:  # otherwise it is refused
                for example in fetch(port, f"/models/{model['name']}/examples")[:1]:
                    fetch(port, f"/predict/{model['name']}", example)
        return ready, resident_mb(tree(server.pid))
    finally:
        server.terminate()
        server.wait(timeout=20)


def light_load(python: Path, store: Path, spinning: str) -> tuple[float, float]:
    """(cores in use, median ms per request) while a request comes every 10 ms."""
    script = f"""
import sys, time, numpy as np, onnxruntime as ort
from pathlib import Path
model = max(Path(sys.argv[1]).glob("*/*/model.onnx"), key=lambda path: path.stat().st_size)
options = ort.SessionOptions()
options.intra_op_num_threads = max(2, {os.cpu_count()})
options.add_session_config_entry("session.intra_op.allow_spinning", {spinning!r})
session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
with np.load(model.with_name("golden.npz")) as golden:
    feed = {{i.name: golden["input/" + i.name][:1] for i in session.get_inputs()}}
for _ in range(20): session.run(None, feed)
began, used, took = time.perf_counter(), time.process_time(), []
while time.perf_counter() - began < 3:
    start = time.perf_counter()
    session.run(None, feed)
    took.append(time.perf_counter() - start)
    time.sleep(0.01)
print((time.process_time() - used) / (time.perf_counter() - began), 1000 * sorted(took)[len(took) // 2])
"""
    found = subprocess.run([python, "-c", script, str(store)], check=True, capture_output=True, text=True)
    cores, milliseconds = map(float, found.stdout.split())
    return cores, milliseconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", nargs="?", type=Path, default=ROOT / "demo" / "store", help="default: %(default)s")
    parser.add_argument(
        "--python", type=Path, help="interpreter that has the serve extra (default: a fresh environment)"
    )
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    store = given.store.resolve()
    if not store.is_dir():
        raise SystemExit(f"no store at {store}; make one with `zoo demo`, or name another")
    with tempfile.TemporaryDirectory() as folder:
        python = given.python.absolute() if given.python else fresh_python(Path(folder) / "venv")
        environment = facts(python)
        measured = [start_once(python, store) for _ in range(given.runs)]
        spinning, resting = light_load(python, store, "1"), light_load(python, store, "0")
    ready = statistics.median(seconds for seconds, _ in measured)
    memory = max(mb for _, mb in measured)
    row = {
        "serving": " ".join(f"{name}={version}" for name, version in environment["versions"].items()),
        "heavy_packages": " ".join(environment["heavy"]) or "none",
        "models": len(list(store.glob("*/*/model.json"))),
        "runs": given.runs,
        "ready_s": f"{ready:.2f}",
        "memory_mb": f"{memory:.0f}",
        "spinning_cores": f"{spinning[0]:.2f}",
        "spinning_ms": f"{spinning[1]:.3f}",
        "not_spinning_cores": f"{resting[0]:.2f}",
        "not_spinning_ms": f"{resting[1]:.3f}",
    }
    append("serve_start", row, packages=())
    passed = ready < ALLOWED_SECONDS and memory < ALLOWED_MB
    print(f"{'within' if passed else 'OUTSIDE'} {ALLOWED_SECONDS:g} s and {ALLOWED_MB:g} MB")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
