"""Seconds of contenders that take turns, so that a busy machine is busy for all of them."""

import statistics
import time
from collections.abc import Callable

Runner = Callable[[], object]


def in_turns(runners: dict[str, Runner], rounds: int) -> dict[str, float]:
    """Median seconds of each, after two calls that are not counted."""
    for run in runners.values():
        run()
        run()
    seconds: dict[str, list[float]] = {key: [] for key in runners}
    for _ in range(rounds):
        for key, run in runners.items():
            started = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - started)
    return {key: statistics.median(values) for key, values in seconds.items()}
