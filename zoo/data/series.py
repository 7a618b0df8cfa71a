"""One long series to forecast: read from a table with a column of times, checked, and cut into windows in order of time.

A window is a row: so many known steps of all columns (the context), and the next values of the target (the horizon).
Validation follows training and the test follows validation. The values that a window asks for all lie in its own part, so
that no model has learned from a value it is judged by; what it knows may reach back into the part before.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data import tables
from zoo.data.rows import TEST, TRAIN, VALIDATION, Rows
from zoo.data.signature import Forecast, Signature, lengths
from zoo.data.splits import check_shares

CONTEXT, HORIZON = 24, 12  # steps, where there is no season to go by
NAIVE, SEASONAL = "naive", "seasonal naive"
TIMES = ("time", "times", "date", "datetime", "timestamp", "year", "month", "day", "hour", "ds")
_LEAST = 0.2  # correlation from which a series counts as repeating itself


@dataclass(frozen=True)
class Recording:
    """One long series, before windows are cut.

    Attributes:
        name: of the data set.
        values: float32 `(times, columns)` in order of time, NaN where missing, which the target never is.
        numbers: names of the columns.
        target: the column to forecast.
        source, licence: where it comes from and its terms.
        context, horizon, season: usual sizes in steps, 0 to go by the values.
        generated: computed, not observed.
        time: the column of times and the step from row to row, see `serve.times.checked`; empty where not known.
    """

    name: str
    values: np.ndarray
    numbers: tuple[str, ...]
    target: str
    source: str
    licence: str = "not stated; the owner of the file decides"
    context: int = 0
    horizon: int = 0
    season: int = 0
    generated: bool = False
    time: dict[str, Any] = field(default_factory=dict)

    def cut(self, context: int, horizon: int, season: int, validation: float, test: float) -> Rows:
        """Windows, with the part that each belongs to.

        Args:
            context: known steps of a window; two seasons, or `CONTEXT`, if 0.
            horizon: values to forecast; one season, or `HORIZON`, if 0.
            season: steps after which the target repeats; found by autocorrelation of the training values if 0, 1 for none.
            validation, test: shares of the times, in [0, 1).

        Raises:
            ValueError: the series is too short, or a size is out of range.
        """
        check_shares(validation, test)
        for name, value in (("context", context), ("horizon", horizon), ("season", season)):
            if value < 0:
                raise ValueError(f"{name} must be at least 1, or 0 for the usual, got {name}={value}")
        place = self.numbers.index(self.target)
        times = len(self.values)
        ends = [times - round(times * (validation + test)), times - round(times * test), times]
        known = self.values[: ends[0], place].astype(np.float64)  # the target's values to learn from
        season = season or self.season or season_of(known)
        context = context or self.context or (2 * season if season > 1 else CONTEXT)
        horizon = horizon or self.horizon or (season if season > 1 else HORIZON)
        if context < season:
            raise ValueError(
                f"{self.source}: context={context} is less than a season of {season} steps, which a seasonal-naive forecast "
                f"needs; take context={season} or more, or season=1 for none"
            )
        for part, need, have in (
            ("training", context + horizon, ends[0]),
            *([("validation", horizon, ends[1] - ends[0])] if validation else []),
            *([("test", horizon, ends[2] - ends[1])] if test else []),
        ):
            if have < need:
                raise ValueError(
                    f"{self.source} has {times} time{'s' * (times > 1)}, {have} of them for {part}; context={context} and horizon={horizon} "
                    f"need {need} there: take smaller ones, or add times"
                )
        windows = np.lib.stride_tricks.sliding_window_view(self.values, context, axis=0)  # (starts, columns, context)
        origins = np.arange(context, times - horizon + 1)  # of the first value that is asked for
        y = np.lib.stride_tricks.sliding_window_view(self.values[:, place], horizon)[origins]
        part = np.full(len(origins), -1, np.int8)
        for split, start, end in zip((TRAIN, VALIDATION, TEST), [0, *ends[:2]], ends, strict=True):
            part[(origins >= start) & (origins + horizon <= end)] = split
        keep = part >= 0  # the rest asks for values of two parts
        return Rows(
            name=self.name,
            task="forecasting",
            x={"series": windows[origins[keep] - context].transpose(0, 2, 1).copy()},
            y=y[keep],
            labels=tuple(f"{self.target}+{step}" for step in range(1, horizon + 1)),
            source=self.source,
            licence=self.licence,
            numbers=self.numbers,
            part=part[keep],
            generated=self.generated,
            forecast=Forecast(self.target, season, _scale(known, season, self.source, self.target)),
            time=self.time,
        )


def simple(x: dict[str, np.ndarray], signature: Signature) -> dict[str, np.ndarray]:
    """What can be said of each window without learning, `(rows, horizon)` by name, in the target's unit.

    The last known value goes on, or the last known season does.

    Args:
        x: raw windows, `{"series": (rows, context, columns)}`.
        signature: of their data.

    Source: Hyndman & Athanasopoulos, "Forecasting: Principles and Practice", 3rd edition, section 5.2.
    """
    forecast, horizon = signature.forecast, signature.outputs
    known = x["series"][:, :, signature.preprocess.numbers.index(forecast.target)]
    found = {NAIVE: np.repeat(known[:, -1:], horizon, axis=1)}
    if forecast.season > 1:
        found[SEASONAL] = known[:, -forecast.season :][:, np.arange(horizon) % forecast.season]
    return found


def season_of(values: np.ndarray) -> int:
    """Steps after which values `(times,)` repeat themselves, 1 if they do not.

    The lag with the highest autocorrelation among those that stand out from the lags before them; a straight trend is
    taken away before.

    Source: Box, Jenkins & Reinsel, "Time Series Analysis", 3rd edition, section 2.1.5, for the estimate of the
    autocorrelation.
    """
    count = len(values)
    line = np.arange(count)
    rest = values - np.polyval(np.polyfit(line, values, 1), line) if count > 2 else values * 0
    total = np.sum(rest**2)
    if not total > 1e-12 * max(1.0, float(np.sum(values**2))):
        return 1
    spectrum = np.fft.rfft(rest, 2 * count)
    found = np.fft.irfft(spectrum * spectrum.conj())[: count // 3 + 2] / total  # at lag 0, 1, …
    best, height = 1, max(_LEAST, 2 / np.sqrt(count))
    for lag in range(2, len(found) - 1):
        if found[lag] > height and found[lag] >= found[lag + 1] and found[lag] - found[1:lag].min() > _LEAST / 2:
            best, height = lag, found[lag]
    return best


def _scale(known: np.ndarray, season: int, source: str, target: str) -> float:
    for lag in (season, 1):
        scale = float(np.abs(known[lag:] - known[:-lag]).mean()) if len(known) > lag else 0.0
        if scale > 0:
            return scale
    raise ValueError(
        f"{source}: target {target!r} is {known[0]:g} at every time to learn from; there is nothing to forecast"
    )


def read(path: Path, target: str | None) -> Recording:
    """The series in a `.csv` or `.parquet` file: a column of times, the target, and further columns of numbers.

    Times are dates or timestamps, or numbers or months in a column called so, such as "year". They rise by the same step
    from row to row, or from month to month.

    Raises:
        ValueError: the file is damaged, has no times, or has a row out of order, twice or missing; the message names it.
    """
    from serve import times

    table = tables.opened(path)
    names = table.column_names
    time = _time_column(path, table)
    target = tables.target_column(path, [name for name in names if name != time], target)
    values = tables.target_values(path, target, table[target])
    if values.dtype.kind not in "iuf":
        raise ValueError(f"{path}: target {target!r} holds {values[0].item()!r} in row 1; a forecast is about numbers")
    endless = ~np.isfinite(values.astype(np.float32))
    if endless.any():
        row = int(endless.argmax())
        raise ValueError(f"{path}: target {target!r} is {values[row].item()!r} in row {row + 1}; correct or fill it")
    try:
        step = times.checked(time, table[time].to_pylist(), lambda place: f"row {place + 1}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    columns = {target: values.astype(np.float32)}
    for name in names:
        if name not in (time, target):
            columns[name] = tables.column_values(path, name, table[name])
            if columns[name].dtype.kind == "U":
                raise ValueError(
                    f"{path}: column {name!r} holds text such as {columns[name][0].item()!r}; a forecast is made from "
                    "numbers, so remove the column, or write a file for each series"
                )
    first, last = (_shown(table[time][row].as_py()) for row in (0, -1))
    return Recording(
        name=path.stem,
        values=np.stack(list(columns.values()), axis=1),
        numbers=tuple(columns),
        target=target,
        source=f"{path.name}, {first} … {last}",
        time=step,
    )


def checked(
    path: Path, x: np.ndarray, arrays: dict[str, np.ndarray], asked: bool
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Series `(rows, time, columns)` of an `.npz` file as raw inputs, and the names of the columns.

    Args:
        path: file, for messages.
        x: floats.
        arrays: all that is in the file; `columns` may name them.
        asked: whether somebody said that these are series, and no pictures in 0 … 1.

    Raises:
        ValueError: a row is empty, a value is infinite, or the array may be pictures.
    """
    if not asked and not np.isnan(x).any() and x.min(initial=0) >= 0 and x.max(initial=0) <= 1:
        raise ValueError(
            f"{path}: x is {x.dtype} {x.shape} in 0 … 1, which may be images or series; store (255 * "
            "x).round().astype('uint8') for images, or say task='series-classification' (--task on the command line)"
        )
    values = x.astype(np.float32)
    endless = np.argwhere(np.isinf(values))
    if len(endless):
        row, step, column = endless[0] + 1
        raise ValueError(
            f"{path}: x is infinite in row {row}, step {step}, column {column}; replace it, NaN if unknown"
        )
    steps = lengths(values)
    if not steps.all():
        raise ValueError(f"{path}: row {int(steps.argmin()) + 1} of x has no number at any step; leave it out")
    names = tuple(map(str, arrays["columns"].tolist())) if "columns" in arrays else ()
    names = names or tuple(f"x{place}" for place in range(x.shape[2]))
    if len(names) != x.shape[2]:
        raise ValueError(f"{path}: columns names {len(names)} columns, x has {x.shape[2]}")
    return {"series": values[:, : steps.max()]}, names


def _time_column(path: Path, table: Any) -> str:
    from pyarrow import types

    names = table.column_names
    dated = [name for name in names if types.is_temporal(table[name].type)]
    named = [name for name in names if name.strip().lower() in TIMES]
    found = dated or named
    if len(found) != 1:
        wrong = f"several columns of times, {', '.join(map(repr, found))}; keep one of them"
        if not found:
            wrong = "no column of times; add one, or call it time, date or year"
        raise ValueError(f"{path} has {wrong}. Its columns are {', '.join(map(repr, names))}")
    return found[0]


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
