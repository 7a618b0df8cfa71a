"""What a device needs to run a bundle, against an environment with TensorFlow: size, start, memory and latency.

    python benchmarks/edge.py [--model resnet18] [--data digits] [--runs 5] [--python PATH]

Builds the model, exports a bundle of it, and makes a fresh virtual environment with numpy and onnxruntime alone, in which
the bundle's own run.py answers one row. The same row is answered by the Keras model in this environment, as a compiled
function. Each figure is the median of fresh processes, taken in turns. Sizes are those of the installed files of numpy
and onnxruntime, and of keras and tensorflow, with all that they require. Appends a row to benchmarks/results/edge.csv.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from record import append

ROOT = Path(__file__).resolve().parents[1]
SMALLER, LESS_MEMORY, FASTER = 10.0, 4.0, 10.0  # targets: times smaller, less memory, sooner to answer

SIZE = """
import json, re, sys
from importlib.metadata import PackageNotFoundError, distribution
seen, waiting, size = set(), list(sys.argv[1:]), 0
while waiting:
    name = re.sub(r"[-_.]+", "-", waiting.pop().lower())
    if name in seen: continue
    try: found = distribution(name)
    except PackageNotFoundError: continue
    seen.add(name)
    paths = [found.locate_file(file) for file in found.files or ()]
    size += sum(path.stat().st_size for path in paths if path.is_file() and path.suffix != ".pyc")
    waiting += [re.match(r"[A-Za-z0-9._-]+", text)[0] for text in found.requires or () if "extra ==" not in text]
print(json.dumps({"mb": size / 1e6, "packages": len(seen)}))
"""

KERAS = """
import json, sys, time
started = time.perf_counter()
import keras, tensorflow as tf, numpy as np
imported = time.perf_counter()
model = keras.models.load_model(sys.argv[1], compile=False)
function = tf.function(lambda x: tf.nn.softmax(model(x, training=False)))
loaded = time.perf_counter()
row = np.load(sys.argv[2])
function(row).numpy()
answered = time.perf_counter()
memory = open("/proc/self/status").read().split("VmHWM:")[1].split()[0]
times = []
for _ in range(100):
    start = time.perf_counter(); function(row).numpy(); times.append(1000 * (time.perf_counter() - start))
print(json.dumps({"import_s": imported - started, "load_s": loaded - imported, "first_s": answered - loaded,
    "peak_mb": int(memory) * 1024 / 1e6, "ms": sorted(times)[50]}))
"""


def fresh_python(folder: Path) -> Path:
    """Interpreter of a new virtual environment that holds numpy and onnxruntime alone."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    constraints = ["-c", str(ROOT / "constraints.txt")] if (ROOT / "constraints.txt").exists() else []
    subprocess.run([python, "-m", "pip", "install", "-q", *constraints, "numpy", "onnxruntime"], check=True)
    return python


def answer(*command: object) -> tuple[dict, float]:
    """JSON that a process prints, and the seconds it took from start to end."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    started = time.perf_counter()
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, env=environment, cwd="/"
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout), time.perf_counter() - started


def make(folder: Path, name: str, data: str) -> tuple[Path, Path, Path]:
    """(bundle, Keras file, one row of the model's own input) of an untrained model."""
    import export
    import zoo.data
    from zoo import registry

    splits = zoo.data.load(data)
    signature = splits.signature
    model = registry.get(name, input_shape=signature.preprocess.shape, classes=signature.outputs)
    model.save(folder / "model.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it was never trained
        bundle = export.to_bundle(model, folder / "store" / data / "1", data=splits, int8=False)
    row = {key: values[:1] for key, values in splits.test.x.items()}
    np.save(folder / "own.npy", signature.inputs(row))
    np.save(folder / "raw.npy", next(iter(row.values())))
    return bundle.folder, folder / "model.keras", folder / "own.npy"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18", help="default: %(default)s")
    parser.add_argument("--data", default="digits", help="data set with one input (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="fresh processes of each (default: %(default)s)")
    parser.add_argument(
        "--python", type=Path, help="interpreter with numpy and onnxruntime (default: a fresh environment)"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle, keras_file, own = make(folder, given.model, given.data)
        python = given.python.absolute() if given.python else fresh_python(folder / "venv")
        small, _ = answer(python, "-c", SIZE, "numpy", "onnxruntime")
        large, _ = answer(sys.executable, "-c", SIZE, "keras", "tensorflow")
        edge, peer = [], []
        for _ in range(given.runs):
            found, wall = answer(python, bundle / "run.py", folder / "raw.npy", "--json")
            edge.append({**found, "wall_s": wall})
            found, _ = answer(sys.executable, "-c", KERAS, keras_file, own)
            peer.append({**found, "wall_s": found["import_s"] + found["load_s"] + found["first_s"]})
        timed, _ = answer(python, bundle / "run.py", "--json", "--seconds", 1)

    def median(rows: list[dict], key: str) -> float:
        return statistics.median(row[key] for row in rows)

    ratios = {
        "size_ratio": large["mb"] / small["mb"],
        "memory_ratio": median(peer, "peak_mb") / median(edge, "peak_mb"),
        "start_ratio": median(peer, "wall_s") / median(edge, "wall_s"),
    }
    row = {
        "model": given.model,
        "engine": edge[0]["engine"],
        "runs": given.runs,
        "edge_packages": small["packages"],
        "edge_mb": f"{small['mb']:.0f}",
        "edge_import_s": f"{median(edge, 'import_s'):.3f}",
        "edge_load_ms": f"{median(edge, 'load_ms'):.1f}",
        "edge_start_to_answer_s": f"{median(edge, 'wall_s'):.2f}",
        "edge_peak_mb": f"{median(edge, 'peak_mb'):.0f}",
        "edge_row_ms": f"{timed['latency'][0]['median_ms']:.3f}",
        "tensorflow_packages": large["packages"],
        "tensorflow_mb": f"{large['mb']:.0f}",
        "tensorflow_import_s": f"{median(peer, 'import_s'):.3f}",
        "tensorflow_load_ms": f"{1000 * median(peer, 'load_s'):.1f}",
        "tensorflow_start_to_answer_s": f"{median(peer, 'wall_s'):.2f}",
        "tensorflow_peak_mb": f"{median(peer, 'peak_mb'):.0f}",
        "tensorflow_row_ms": f"{median(peer, 'ms'):.3f}",
        **{key: f"{value:.1f}" for key, value in ratios.items()},
    }
    append("edge", row)
    passed = (
        ratios["size_ratio"] >= SMALLER and ratios["memory_ratio"] >= LESS_MEMORY and ratios["start_ratio"] >= FASTER
    )
    print(
        f"{'reached' if passed else 'MISSED'}: {SMALLER:g} times smaller, {LESS_MEMORY:g} times less memory, "
        f"{FASTER:g} times sooner to answer"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
