"""How long files take to answer, measured in turns so that a busy machine slows all of them alike."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from export.parity import Arrays, wire
from serve import session


def milliseconds(
    paths: Sequence[str | Path],
    inputs: Arrays,
    *,
    rows: int = 1,
    threads: int = 1,
    repeats: int = 200,
    seconds: float = 0.5,
) -> list[float]:
    """Median milliseconds that each ONNX file takes for one request in ONNX Runtime on the CPU.

    Args:
        paths: ONNX files with the same inputs.
        inputs: rows by input name, repeated to fill a request.
        rows: rows of a request.
        threads: threads of one request.
        repeats: requests to each file, at least 3.
        seconds: most time to spend on a file.
    """
    request = {name: wire(np.resize(values, (rows, *values.shape[1:]))) for name, values in inputs.items()}
    live = [session.open_session(Path(path), "onnxruntime", threads) for path in paths]
    return session.milliseconds(live, request, repeats=repeats, seconds=seconds)
