"""Times of a series, each row a step behind the one before it: what training and a server refuse alike."""

import calendar
import math
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from itertools import pairwise
from typing import Any

import numpy as np

_START = datetime(1970, 1, 1, tzinfo=UTC)


def checked(
    name: str, values: Sequence[Any], row: Callable[[int], str], known: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The step from row to row.

    Args:
        name: of the column of times.
        values: its cells: dates, numbers or texts, None or "" where missing.
        row: what a message calls the row at a place, such as "row 3".
        known: what this returned for the rows that a model was trained on, whose step is then asked for.

    Returns:
        `column`, its name; `step`, a number; and `unit`, "seconds" or "months" of dates, "" of numbers.

    Raises:
        ValueError: a row has no time, is twice, out of order, or not one step behind the row before it.
    """
    numbers = (
        not known["unit"] if known else all(isinstance(value, int | float) for value in values if value is not None)
    )
    found = [_read(name, value, row(place), numbers) for place, value in enumerate(values)]
    told = [f"{value:g}" if isinstance(value, float) else str(value).strip()[:40] for value in values]
    times = np.array(found if numbers else [_seconds(day) for day in found], np.float64)
    gaps = np.diff(times)
    for place in np.flatnonzero(gaps <= 0).tolist()[:1]:
        earlier = np.flatnonzero(times[: place + 1] == times[place + 1]).tolist()
        if earlier:
            raise ValueError(
                f"{row(place + 1)} has the time {told[place + 1]} of {row(earlier[0])}; keep one of them, and write a "
                "file for each series if there are several"
            )
        raise ValueError(
            f"{row(place + 1)} ({told[place + 1]}) is earlier than the row before it ({told[place]}); "
            f"sort the rows by {name!r}"
        )
    unit = "" if numbers else "seconds"
    in_months = None if numbers else _months(found)
    if in_months is not None and (known["unit"] == "months" if known else len(_uneven(gaps, _usual(gaps)))):
        gaps, unit = np.diff(in_months), "months"
    step = known or {"column": name, "step": _usual(gaps), "unit": unit}
    wrong = _uneven(gaps, step["step"])
    if unit != step["unit"]:  # months are asked for, and these are other times
        wrong = [place for place, days in enumerate(pairwise(found)) if _months(days) is None] or [0]
    if wrong and len(gaps):
        place = wrong[0]
        follows = (
            f"{row(place + 1)} ({told[place + 1]}) follows {row(place)} ({told[place]}) by {span(gaps[place], unit)}"
        )
        usual = span(step["step"], step["unit"])
        if known:
            raise ValueError(
                f"{follows}, and the model was trained on rows {usual} apart; send such rows, and none left out"
            )
        raise ValueError(
            f"{follows}, most rows by {usual}; add the rows between with values for them, or number the rows "
            f"1, 2, 3 … in {name!r} where gaps do not matter"
        )
    return step


def span(gap: float, unit: str) -> str:
    """A distance between two times in words."""
    sizes = {"seconds": ((86_400, "day"), (3_600, "hour"), (60, "minute"), (0, "second")), "months": ((0, "month"),)}
    for size, word in sizes.get(unit, ()):
        if gap >= size:
            count = gap / (size or 1)
            return f"{count:g} {word}{'' if count == 1 else 's'}"
    return f"{gap:g}"


def _read(name: str, value: Any, row: str, numbers: bool) -> Any:
    """A date, or a number where times are numbers."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"column {name!r} has no time in {row}; fill it in, or remove the row")
    if numbers:
        try:
            if math.isfinite(number := float(value)):
                return number
        except ValueError:
            pass
        raise ValueError(f"column {name!r} has {str(value)[:40]!r} in {row}, which is no number as the other times are")
    if isinstance(value, date):
        return value
    for rest in ("", "-01", "-01-01"):  # of a month or a year its first day
        try:
            return datetime.fromisoformat(f"{str(value).strip()}{rest}")
        except ValueError:
            pass
    raise ValueError(
        f"column {name!r} has {str(value)[:40]!r} in {row}, which is no time; write 2020-01-31, 2020-01 or "
        "2020-01-31 18:00:00"
    )


def _seconds(day: date) -> float:
    """Seconds since 1970, of local times as of those in UTC."""
    time = day if isinstance(day, datetime) else datetime(day.year, day.month, day.day)
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _START).total_seconds()


def _months(days: Sequence[date]) -> np.ndarray | None:
    """Number of the month of each date, where all are on one day of different months, or on their last; else None."""
    same = len({day.day for day in days}) == 1
    last = all(day.day == calendar.monthrange(day.year, day.month)[1] for day in days)
    found = np.array([12 * day.year + day.month for day in days])
    return found if (same or last) and (np.diff(found) > 0).all() else None


def _usual(gaps: np.ndarray) -> float:
    return float(np.median(gaps)) if len(gaps) else 0.0


def _uneven(gaps: np.ndarray, step: float) -> list[int]:
    return np.flatnonzero(~np.isclose(gaps, step, rtol=1e-6)).tolist()
