"""Seconds and peak memory of an ONNX export, against `model.export(format="onnx")` and the tf2onnx command line.

    python benchmarks/exporting.py [--models resnet50 bert_base resnet152] [--how zoo keras tf2onnx]

Each export runs in a process of its own, after the model is built. Memory is the peak of the resident set while
exporting, above what the process had before the model was built, in multiples of the weights; the model itself is part
of it. Ours includes loading the file in ONNX Runtime and comparing it with Keras, theirs only writes. For tf2onnx the
time to save the SavedModel that it reads is given, too.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import networks
from record import append

HOW = ("zoo", "keras", "tf2onnx")
TARGET_MEMORY, TARGET_SECONDS = 4.0, 1.2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=["resnet50", "bert_base", "resnet152"], help="names of the zoo, or bert_base"
    )
    parser.add_argument("--how", nargs="+", default=HOW, choices=HOW, help="which exporters")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one export")
    parser.add_argument("--gigabytes", type=float, default=20, help="memory at which an export is ended")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print("RESULT " + json.dumps(export(*given.worker, limit=given.gigabytes * 1e9)))
        return 0
    missed = False
    for model in given.models:
        figures = {how: measure(model, how, given.limit, given.gigabytes) for how in given.how}
        row: dict[str, object] = {"model": model, "weights_mb": round(figures["zoo"]["weights"] / 1e6, 1)}
        for how in HOW:
            found = figures.get(how, {})
            row |= {f"{how}_seconds": found.get("seconds", ""), f"{how}_memory": found.get("memory", "")}
        for how in HOW[1:]:
            theirs = figures.get(how, {}).get("seconds")
            row[f"seconds_against_{how}"] = round(figures["zoo"]["seconds"] / theirs, 3) if theirs else ""
        append("exporting", row, packages=("zooroad", "keras", "tensorflow", "tf2onnx", "onnx", "onnxruntime"))
        ratios = [row[f"seconds_against_{how}"] for how in HOW[1:] if row[f"seconds_against_{how}"] != ""]
        memories = [found["memory"] for found in figures.values() if "memory" in found]
        if model != "resnet50":  # its weights are few beside what loading ONNX Runtime takes
            missed |= figures["zoo"]["memory"] >= TARGET_MEMORY
        missed |= figures["zoo"]["memory"] > min(memories) or any(ratio > TARGET_SECONDS for ratio in ratios)
    return int(missed)


def measure(model: str, how: str, limit: float, gigabytes: float) -> dict[str, float]:
    """What one export in a fresh process took; no seconds if it reached the memory limit, nothing if it failed."""
    command = [sys.executable, __file__, "--worker", model, how, "--gigabytes", str(gigabytes)]
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        print(f"{how} on {model}: no end after {limit:.0f} s", file=sys.stderr)
        return {}
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        print(f"{how} on {model} failed: {done.stderr[-800:]}", file=sys.stderr)
        return {}
    return json.loads(lines[0].removeprefix("RESULT "))


def export(name: str, how: str, limit: float) -> dict[str, float]:
    """Build a model and export it here."""
    import keras  # noqa: F401
    import numpy as np
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import tensorflow  # noqa: F401

    before = resident(os.getpid())
    model = networks.build(name)
    if how != "zoo":  # model.export refuses a model that was never called
        model([np.ones((1, *(size or 8 for size in t.shape[1:])), t.dtype) for t in model.inputs])
    weights = sum(array.nbytes for array in model.get_weights())
    with tempfile.TemporaryDirectory() as folder, Peak(before, weights, limit) as peak:
        path = Path(folder) / "model.onnx"
        started = time.perf_counter()
        if how == "zoo":
            from export import to_onnx

            to_onnx(model, path)
        elif how == "keras":
            model.export(path, format="onnx", verbose=False)
        else:
            model.export(Path(folder) / "saved", format="tf_saved_model", verbose=False)
            command = [sys.executable, "-m", "tf2onnx.convert", "--saved-model", str(Path(folder) / "saved")]
            subprocess.run([*command, "--output", str(path), "--opset", "18"], check=True, capture_output=True)
        seconds = time.perf_counter() - started
        assert path.stat().st_size > 0.9 * weights
    return {"seconds": round(seconds, 2), "weights": weights, "memory": peak.multiple}


class Peak:
    """Largest resident set of this process and its children, sampled every 20 ms; above the limit both are ended."""

    def __init__(self, before: int, weights: int, limit: float) -> None:
        self.before, self.weights, self.limit, self.bytes = before, weights, limit, 0

    @property
    def multiple(self) -> float:
        """What was added to the memory from before, in multiples of the weights."""
        return round((self.bytes - self.before) / self.weights, 2)

    def __enter__(self) -> "Peak":
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.bytes = max(self.bytes, resident(os.getpid()) + sum(resident(child) for child in children()))
            if self.bytes > self.limit:
                print("RESULT " + json.dumps({"weights": self.weights, "memory": self.multiple}), flush=True)
                for child in children():
                    os.kill(child, signal.SIGKILL)
                os._exit(3)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def children() -> list[int]:
    found = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [int(number) for listed in found for number in listed.read_text().split()]


def resident(process: int) -> int:
    """Bytes of memory in use by a process."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # it has ended
        return 0


if __name__ == "__main__":
    sys.exit(main())
