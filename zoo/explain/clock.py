"""How long an explanation may take, and a line that says how far it is."""

import sys
import time
from collections.abc import Callable

PATIENCE = 0.5  # seconds between two lines of progress
SHARE = 0.1  # of the time left that one call of the model may take
LONGEST = 1.0  # seconds of one call where somebody waits for progress


class Clock:
    """A time budget that every solver asks between two calls of the model.

    A budget does not interrupt a call: it is overrun by one call at most, and calls are sized to a tenth of what is
    left.
    """

    def __init__(
        self,
        seconds: float | None = None,
        progress: bool | Callable[[int, int], None] = False,
        label: str = "explaining",
    ):
        """Start the clock.

        Args:
            seconds: of work from now on, 0 or more; None for no limit.
            progress: True writes a line to the standard error, a function is called with (done, total).
            label: first words of the line.

        Raises:
            ValueError: `seconds` is negative or not a number.
        """
        if seconds is not None and not seconds >= 0:
            raise ValueError(f"seconds must be 0 or more, or None for no limit, got seconds={seconds!r}")
        self.seconds = seconds
        self.started = time.perf_counter()
        self._progress = progress
        self._label = label
        self._told = self.started
        self._written = False
        self._rate = 0.0  # coalitions per second of the last call

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    @property
    def left(self) -> float:
        """Seconds of the budget that are left, infinite without one."""
        return float("inf") if self.seconds is None else max(0.0, self.seconds - self.elapsed)

    @property
    def over(self) -> bool:
        """Whether the budget is used up."""
        return self.left <= 0

    def portion(self, wanted: int) -> int:
        """Coalitions to ask for in the next call: all that are wanted, unless time or patience is limited."""
        if self.seconds is None and not self._progress:
            return wanted
        longest = min(LONGEST, SHARE * self.left) if self._progress else SHARE * self.left
        return max(1, min(wanted, int(self._rate * longest)))

    def measure(self, play: Callable) -> Callable:
        """The same function of coalitions, whose speed the next `portion` follows."""

        def timed(masks, *more):
            before = time.perf_counter()
            answers = play(masks, *more)
            self._rate = len(masks) / max(time.perf_counter() - before, 1e-9)
            return answers

        return timed

    def tell(self, done: int, total: int) -> None:
        """Say how far the work is.

        Args:
            done, total: evaluations; the last line is written when they are equal.
        """
        if callable(self._progress):
            self._progress(done, total)
        elif self._progress:
            now = time.perf_counter()
            last = done >= total
            if now - self._told < PATIENCE and not (last and self._written):
                return
            self._told, self._written = now, not last
            rate = done / max(now - self.started, 1e-9)
            text = f"{self._label}: {done:,} of {total:,} evaluations, {rate:,.0f} a second"
            sys.stderr.write(f"\r{text:<78}" + ("\n" if last else ""))
            sys.stderr.flush()
