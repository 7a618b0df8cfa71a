"""How long files take to answer, measured in turns so that a busy machine slows all of them alike."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from export.parity import Arrays, wire


def milliseconds(
    paths: Sequence[str | Path],
    inputs: Arrays,
    *,
    rows: int = 1,
    threads: int = 1,
    rounds: int = 5,
    seconds: float = 0.1,
) -> list[float]:
    """Milliseconds that each ONNX file takes for one request in ONNX Runtime on the CPU.

    Args:
        paths: ONNX files with the same inputs.
        inputs: rows by input name, repeated to fill a request.
        rows: rows of a request.
        threads: threads of one request.
        rounds: turns that each file takes.
        seconds: length of a turn, at least five requests.

    Returns:
        For each file the lowest of its turns' medians: other work on the machine only ever adds time.
    """
    request = {name: wire(np.resize(values, (rows, *values.shape[1:]))) for name, values in inputs.items()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    live = [onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]) for path in paths]
    for session in live:
        session.run(None, request)
    turns = [[_turn(session, request, seconds) for session in live] for _ in range(rounds)]
    return [min(medians) for medians in zip(*turns, strict=True)]


def _turn(session: onnxruntime.InferenceSession, request: Arrays, seconds: float) -> float:
    took: list[float] = []
    started = time.perf_counter()
    while len(took) < 5 or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        session.run(None, request)
        took.append(time.perf_counter() - before)
    return 1000 * float(np.median(took))
