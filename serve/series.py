"""Series to the steps that a model takes: rows of different lengths are filled up, and what says nothing is refused."""

from typing import Any

import numpy as np

from serve import times
from serve.errors import RequestError, shown
from serve.manifest import Manifest
from serve.tensors import to_array


def read(body: Any, manifest: Manifest) -> tuple[np.ndarray, list[str]]:
    """Series of parsed JSON.

    Args:
        body: `{"series": [[value, …], …]}` with a list for each step, or a number where there is one column; null is a
            missing value. Or a list of such objects.
        manifest: the model's.

    Returns:
        float32 `(batch, time, columns)` with NaN behind the end of shorter rows, and notes on what was left out.

    Raises:
        RequestError: not a series of the model's columns, or too short or too long for it.
    """
    port = manifest.inputs[0]
    rows = body if isinstance(body, list) else [body]
    if not rows:
        raise RequestError("bad_request", cure(manifest), 400)
    found, notes = [], []
    for place, row in enumerate(rows, 1):
        where = f"row {place}: " if len(rows) > 1 else ""
        if not isinstance(row, dict) or list(row) != [port.name] or not isinstance(row[port.name], list):
            raise RequestError("bad_request", f"{where}{cure(manifest)}", 400)
        steps = row[port.name]
        if not steps:
            raise RequestError("bad_value", f"{where}the series is empty; send at least one step")
        if len(port.columns) == 1:
            steps = [step if isinstance(step, list) else [step] for step in steps]
        for number, step in enumerate(steps, 1):
            if not isinstance(step, list) or len(step) != len(port.columns):
                got = f"{len(step)} values" if isinstance(step, list) else shown(step)
                message = f"{where}step {number} must be {_values(manifest)}, got {got}"
                raise RequestError("bad_shape", message)
        series, told = fitted(to_array(steps, port.dtype, f"{where}{port.name!r}"), manifest, where)
        found.append(series)
        notes += told
    return np.stack(found), notes


def fitted(steps: np.ndarray, manifest: Manifest, where: str = "") -> tuple[np.ndarray, list[str]]:
    """One series `(steps, columns)` brought to as many steps as the model takes, and notes on what was left out.

    A forecast is made from the last steps; of what has an end no part is left out.

    Raises:
        RequestError: it is too short or too long, or has no value.
    """
    most = manifest.inputs[0].shape[1]
    notes = []
    if manifest.task == "forecasting":
        if len(steps) < most:
            message = f"{where}a forecast needs the last {most} steps, got {len(steps)}; send more of the past"
            raise RequestError("too_short", message)
        if len(steps) > most:
            notes.append(f"{where}the forecast is made from the last {most} of {len(steps)} steps")
            steps = steps[-most:]
    elif len(steps) > most:
        message = f"{where}the series has {len(steps)} steps, the model takes at most {most}; send a part of it"
        raise RequestError("too_long", message)
    check(steps[None], manifest, where)
    return np.pad(steps, ((0, most - len(steps)), (0, 0)), constant_values=np.nan), notes


def check(rows: np.ndarray, manifest: Manifest, where: str = "") -> None:
    """Refuse rows `(batch, time, columns)` that have no value at all, or of which a forecast would begin too early.

    Raises:
        RequestError: one does.
    """
    missing = np.isnan(rows).all(axis=2)
    empty = missing.all(axis=1)
    if empty.any():
        row = where or f"row {int(empty.argmax()) + 1}: "
        raise RequestError("bad_value", f"{row}every value of the series is missing; send some")
    if manifest.task == "forecasting" and missing[:, -1].any():
        row = where or f"row {int(missing[:, -1].argmax()) + 1}: "
        message = (
            f"{row}the last step has no value, and the forecast begins behind it; send the series up to its last value"
        )
        raise RequestError("bad_value", message)


def check_times(cells: list[str], lines: list[int], manifest: Manifest) -> None:
    """Refuse steps that do not follow each other as those in training did.

    Args:
        cells: of the column of times, one for each step.
        lines: their lines in the file.
        manifest: the model's, which knows the column.

    Raises:
        RequestError: a time is missing, twice, out of order, or not one step behind the one before it.
    """
    known = manifest.preprocess["time"]
    try:
        times.checked(known["column"], cells, lambda place: f"line {lines[place]}", known)
    except ValueError as error:
        raise RequestError("bad_time", str(error)) from None


def cure(manifest: Manifest) -> str:
    """What to send."""
    port = manifest.inputs[0]
    step = "value" if len(port.columns) == 1 else f"[{', '.join(port.columns[:3])}{', …' * (len(port.columns) > 3)}]"
    return f'send {{"{port.name}": [{step}, …]}} as JSON, or a CSV file with a line for each step (text/csv)'


def _values(manifest: Manifest) -> str:
    columns = manifest.inputs[0].columns
    named = f"{', '.join(columns[:5])}{' …' * (len(columns) > 5)}"
    return f"a list of {len(columns)} values ({named})" if len(columns) > 1 else f"a number ({named})"
