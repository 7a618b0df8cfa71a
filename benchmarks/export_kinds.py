"""How many layer kinds export and agree with Keras: ours, `model.export(format="onnx")`, `tf2onnx.convert.from_keras`.

The cases are those of `tests/export/kinds.py`. One passes when the file loads in ONNX Runtime, runs with a batch of 1
and of 4 and with other sizes than the tool saw, and differs by no more than the case allows. Every tool writes opset 18
on the TensorFlow backend, in processes of its own: a crash, or a case that takes longer than the limit, fails that case
alone. Run `python benchmarks/export_kinds.py`; it appends a row for each tool to `benchmarks/results/export_kinds.csv`,
prints which cases fail, and ends with status 1 when a target below is missed.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from record import append

TESTS = Path(__file__).parents[1] / "tests" / "export"
OPSET = 18
MORE = 20  # cases that ours must pass beyond `model.export`


def ours(model: Any, path: Path, kind: Any) -> None:
    import export

    export.to_onnx(model, path, opset=OPSET, golden=kind.inputs(rows=3, size=8), tolerance=kind.tolerance)


def keras_export(model: Any, path: Path, kind: Any) -> None:
    answers(model, kind.inputs(rows=3, size=8))  # it refuses a model that was never called
    model.export(str(path), format="onnx", opset_version=OPSET, verbose=False)


def tf2onnx_convert(model: Any, path: Path, kind: Any) -> None:
    import tensorflow as tf
    import tf2onnx

    specs = [tf.TensorSpec(tensor.shape, tensor.dtype, name=tensor.name) for tensor in model.inputs]
    tf2onnx.convert.from_keras(model, specs, opset=OPSET, output_path=str(path))


TOOLS: dict[str, Callable[[Any, Path, Any], None]] = {
    "ours": ours,
    "model.export": keras_export,
    "tf2onnx": tf2onnx_convert,
}


def judge(tool: str, kind: Any, folder: Path) -> str:
    """Empty if a case passes, else what went wrong, in a few words."""
    import onnxruntime

    path = folder / f"{tool}.onnx"
    model = kind.model()
    try:
        TOOLS[tool](model, path, kind)
    except Exception as error:
        return f"not exported: {type(error).__name__}"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        live = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception:
        return "does not load"
    for rows, size in ((1, 5), (4, 13)):
        inputs = kind.inputs(rows, size, seed=rows)
        try:
            found = live.run(None, named(live, inputs))
        except Exception:
            return f"does not run with a batch of {rows}"
        for answer, truth in zip(found, answers(model, inputs), strict=False):
            if answer.shape != truth.shape:
                return f"another shape with a batch of {rows}"
            gap = np.abs(answer.astype(np.float64) - truth).max(initial=0)
            if not gap <= kind.tolerance * max(1.0, float(np.abs(truth).max(initial=0))):
                return f"differs by {gap:.2g}"
    return ""


def named(live: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs under the names that a file has for them, in their order where it has others."""
    names = [put.name for put in live.get_inputs()]
    by_name = {name: next((own for own in inputs if name.partition(":")[0] == own), None) for name in names}
    if None in by_name.values():
        by_name = dict(zip(names, inputs, strict=False))
    return {name: inputs[own] for name, own in by_name.items() if own is not None}


def answers(model: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    import keras

    given = next(iter(inputs.values())) if len(inputs) == 1 else inputs
    outputs = keras.tree.flatten(model(given, training=False))
    return [keras.ops.convert_to_numpy(keras.ops.cast(output, "float32")) for output in outputs]


def work(tool: str, names: Sequence[str], limit: int) -> None:
    """Print `name, tab, verdict` of each case; the alarm ends the process when one takes too long."""
    import logging
    import warnings

    sys.path.insert(0, str(TESTS))
    from kinds import KINDS

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the tools print
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            signal.alarm(limit)
            verdict = judge(tool, KINDS[name], Path(folder))
            print(name, verdict, sep="\t", file=channel, flush=True)
    signal.alarm(0)


def run(tool: str, names: Sequence[str], limit: int) -> dict[str, str]:
    """Verdict of each case, with a new process after each that ended early."""
    found: dict[str, str] = {}
    environment = {
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    while left := [name for name in names if name not in found]:
        command = [sys.executable, __file__, "--work", tool, "--limit", str(limit), *left]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        lines = [line.split("\t") for line in done.stdout.decode().splitlines()]
        found.update((name, verdict) for name, verdict in lines)
        if done.returncode:
            culprit = left[len(lines)]
            found[culprit] = "took too long" if done.returncode == -signal.SIGALRM else "ended the process"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="names of cases; all of them if none is given")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--limit", type=int, default=20, help="seconds that one case may take")
    parser.add_argument("--dry", action="store_true", help="record nothing")
    parser.add_argument("--work", choices=TOOLS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.cases, options.limit)
        return
    sys.path.insert(0, str(TESTS))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from kinds import KINDS

    names = options.cases or list(KINDS)
    verdicts, passed = {}, {}
    for tool in options.tools:
        started = time.perf_counter()
        verdicts[tool] = run(tool, names, options.limit)
        seconds = time.perf_counter() - started
        passed[tool] = sum(not verdict for verdict in verdicts[tool].values())
        row = {"tool": tool, "cases": len(names), "passed": passed[tool], "seconds": round(seconds, 1)}
        failing = " ".join(name for name, verdict in verdicts[tool].items() if verdict)
        if options.dry:
            print(row)
        else:
            packages = ("zooroad", "keras", "tensorflow", "tf2onnx", "onnx", "onnxruntime")
            append("export_kinds", {**row, "failing": failing}, packages=packages)
    print(f"{'case':<44}" + "".join(f"{tool:<40}" for tool in options.tools))
    for name in names:
        row = [verdicts[tool][name] for tool in options.tools]
        if any(row):
            print(f"{name:<44}" + "".join(f"{verdict or 'passes':<40}" for verdict in row))
    missed = "ours" in passed and passed["ours"] < len(names)
    missed |= {"ours", "model.export"} <= set(passed) and passed["ours"] < passed["model.export"] + MORE
    sys.exit(int(missed and not options.cases))


if __name__ == "__main__":
    main()
