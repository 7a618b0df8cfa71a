"""What traffic remembers: plans, counts and history of all models, written behind by a thread of its own.

Nothing here is in the way of a request: what changed is written once a second by `state.State`, and is there again
after a restart.
"""

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from serve.counts import EDGES, Comparison, Tally
from serve.rules import Plan
from serve.state import Event, State, TallyKey

logger = logging.getLogger("serve")

UNITS = 50_000  # requests or keys of an experiment remembered as reported: this many to twice as many
EVENTS = 1000  # of history kept in memory


class Ledger:
    """Plans, counts and history. All but `flush` and `close` are for whoever holds the lock.

    Attributes:
        state: the file.
        plans: rules by model.
        tallies: (model, version, "answers" or "shadow") -> counts.
        comparisons: (model, version, "comparison") -> what a shadow would have answered otherwise.
        history: what happened, oldest first.
    """

    def __init__(
        self,
        folder: str | Path | None,
        lock: threading.Lock,
        tick: Callable[[], None],
        *,
        clock: Callable[[], float] = time.time,
        every: float = 1.0,
    ) -> None:
        """Read what an earlier server left.

        Args:
            folder: where it is kept; nowhere if None, or if it cannot be written, which `state.problem` tells.
            lock: of the owner; taken to look at what is to be written, never while it is written.
            tick: method of the owner, called again and again once there is something to do, until the owner is gone.
            clock: seconds since 1970.
            every: seconds between two ticks; 0 for none.
        """
        self.state = State(folder)
        self.plans: dict[str, Plan] = {}
        self.tallies: dict[TallyKey, Tally] = {}
        self.comparisons: dict[TallyKey, Comparison] = {}
        self.history: deque[Event] = deque(maxlen=EVENTS)
        self._lock, self._clock, self._every = lock, clock, every
        self._flushing = threading.Lock()
        self._reported: dict[str, tuple[set[int], set[int]]] = {}
        self._new_events: deque[Event] = deque(maxlen=EVENTS)
        self._new_reports: deque[tuple[str, int]] = deque(maxlen=2 * UNITS)
        self._forgotten: list[str] = []
        self._written_plans: dict[str, str] = {}
        self._written_tallies: dict[TallyKey, int] = {}
        self._tick = weakref.WeakMethod(tick)
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._load()

    def wake(self) -> None:
        """Start the thread that ticks, when there is first something to do."""
        if self._thread is None and self._every > 0 and not self._stop.is_set():
            arguments = (self._tick, self._stop, self._every)
            self._thread = threading.Thread(target=_tend, args=arguments, name="traffic", daemon=True)
            self._thread.start()

    def tell(self, name: str, event: str, version: str, detail: str) -> None:
        """Add a line to the history and to the log."""
        entry = Event(self._clock(), name, event, version, detail)
        self.history.append(entry)
        self._new_events.append(entry)
        logger.info("traffic of %s: %s %s %s", name, event, version, detail)

    def count_anew(self, name: str, *versions: str) -> None:
        """Begin the counts of versions at 0."""
        for version in versions:
            self.tallies[name, version, "answers"] = Tally()
            self._written_tallies.pop((name, version, "answers"), None)

    def compare_anew(self, name: str, shadow: str) -> None:
        """Begin the counts of a shadow, and its comparison, at 0."""
        self.tallies[name, shadow, "shadow"] = Tally()
        self.comparisons[name, shadow, "comparison"] = Comparison()
        for kind in ("shadow", "comparison"):
            self._written_tallies.pop((name, shadow, kind), None)

    def keep(self, name: str, versions: Iterable[str]) -> None:
        """Drop the counts of a model's other versions."""
        kept = set(versions)
        counted: dict[TallyKey, Any]
        for counted in (self.tallies, self.comparisons):
            for key in [key for key in counted if key[0] == name and key[1] not in kept]:
                del counted[key]

    def first(self, experiment: str, unit: int) -> bool:
        """Whether the outcome of a unit has not been reported; it is now."""
        new, old = self._reported.setdefault(experiment, (set(), set()))
        if unit in new or unit in old:
            return False
        if len(new) >= UNITS:
            new, old = self._reported[experiment] = (set(), new)
        new.add(unit)
        self._new_reports.append((experiment, unit))
        return True

    def forget(self, experiment: str) -> None:
        """Drop the units of an experiment that has ended."""
        self._reported.pop(experiment, None)
        self._forgotten.append(experiment)

    def flush(self, patient: bool = False) -> bool:
        """Write what changed.

        Args:
            patient: leave a file alone that could not be written a short while ago.

        Returns:
            Whether everything is on disk.
        """
        with self._flushing:
            if not patient:
                self.state.retry()
            begun = self.state.begun
            done = self._write()
            if done and self.state.begun != begun:  # the file was lost and begun anew
                with self._lock:
                    self._written_plans.clear()
                    self._written_tallies.clear()
                done = self._write()
            return done

    def close(self) -> None:
        """Write what changed and let go of the file; nothing is written any more."""
        self._stop.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=10)
        self.flush()
        with self._flushing:
            self.state.close()

    def _load(self) -> None:
        saved = self.state.load(EVENTS, 2 * UNITS)
        for name, text in saved.plans.items():
            try:
                self.plans[name] = msgspec.json.decode(text, type=Plan)
            except msgspec.DecodeError as error:
                logger.error("the stored rules of %s cannot be read (%s); it starts without", name, error)
                continue
            self._written_plans[name] = text
        for key, text in saved.tallies.items():
            try:
                if key[2] == "comparison":
                    self.comparisons[key] = msgspec.json.decode(text, type=Comparison)
                    self._written_tallies[key] = self.comparisons[key].rows
                else:
                    tally = msgspec.json.decode(text, type=Tally)
                    if len(tally.seconds) == len(EDGES) + 1:
                        self.tallies[key] = tally
                        self._written_tallies[key] = tally.requests
            except msgspec.DecodeError as error:
                logger.error("stored counts of %s version %s cannot be read (%s)", key[0], key[1], error)
        self.history.extend(saved.events)
        for experiment, unit in saved.reported:
            self._reported.setdefault(experiment, (set(), set()))[0].add(unit)

    def _write(self) -> bool:
        """One save of what differs from the file; what fails is offered again."""
        if self.state.folder is None:
            return False
        with self._lock:
            plans: dict[str, str | None] = {}
            for name, plan in self.plans.items():
                text = msgspec.json.encode(plan).decode()
                if self._written_plans.get(name) != text:
                    plans[name] = text
            counts = {key: tally.requests for key, tally in self.tallies.items()}
            counts |= {key: comparison.rows for key, comparison in self.comparisons.items()}
            stored: dict[TallyKey, Tally | Comparison] = {**self.tallies, **self.comparisons}
            tallies: dict[TallyKey, str | None] = {
                key: msgspec.json.encode(stored[key]).decode()
                for key, count in counts.items()
                if self._written_tallies.get(key) != count
            }
            tallies |= {key: None for key in self._written_tallies if key not in counts}
            events, reports = list(self._new_events), list(self._new_reports)
            forgotten = list(self._forgotten)
        if not (plans or tallies or events or reports or forgotten):
            return not self.state.problem
        if not self.state.save(plans, tallies, events, reports, forgotten):
            return False
        with self._lock:
            self._written_plans |= {name: text for name, text in plans.items() if text is not None}
            for key, written in tallies.items():
                if written is None:
                    self._written_tallies.pop(key, None)
                else:
                    self._written_tallies[key] = counts[key]
            for queue, done in ((self._new_events, events), (self._new_reports, reports)):
                for _ in range(min(len(done), len(queue))):
                    queue.popleft()
            del self._forgotten[: len(forgotten)]
        return True


def _tend(tick: "weakref.WeakMethod[Callable[[], None]]", stop: threading.Event, every: float) -> None:
    """Tick until the ledger is closed or its owner forgotten."""
    while not stop.wait(every):
        method = tick()
        if method is None:
            return
        try:
            method()
        except Exception as error:  # the next second has another try; a thread that ended would write nothing any more
            logger.error("rules could not be judged or written: %s", type(error).__name__, exc_info=error)
        del method
