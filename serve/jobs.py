"""Long work in the background: many rows, answered a few at a time whenever no interactive request is waiting.

Jobs live in the memory of the process that took them: a worker process that dies costs them nothing, since the piece it
held is asked again, but they end with the server. No HTTP and no models here; a job is rows and a function of them.
"""

import logging
import secrets
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from serve.codec import MOST_NOTES, Batch, Inputs
from serve.errors import RequestError

log = logging.getLogger("serve")

KINDS = ("predict", "explain")
FIRST_PIECE = 32  # rows; then what takes between the two times below
SHORT, LONG = (
    0.01,
    0.04,
)  # seconds of one piece, decoding included; about what an interactive request may wait for a job
POLITE = 0.5  # seconds that a piece lets interactive requests pass before it takes its turn all the same
CRASHED = 6  # times that workers may die over one job; a piece is halved each time, to tell its rows from bad luck
PATIENCE = 60.0  # seconds that a piece is tried again while the server is too busy for it
CRASHES = ("inference_crashed", "explainer_died")


@dataclass(eq=False)
class Job:
    """One job; what `describe` tells of it is all that leaves this module.

    Attributes:
        id: 128 random bits, so that a job without an owner is only found by whoever started it.
        owner: identity that may see it, "" for anybody who knows the id.
        client: what the limit per client counts by.
        answer: raw inputs of one piece to its results, one per row.
        done: rows answered.
        state: "queued", "running", "done" or "failed".
        results: encoded results, one list per piece.
    """

    kind: str
    model: str
    version: str
    owner: str
    client: str
    batch: Batch
    most: int
    answer: Callable[[Inputs], list[dict[str, Any]]]
    rows: int
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    state: str = "queued"
    done: int = 0
    piece: int = FIRST_PIECE
    pending: list[tuple[Inputs, int]] = field(default_factory=list)  # pieces decoded but not answered, and their rows
    attempts: int = 0
    crashes: int = 0
    first_attempt: float = 0.0
    not_before: float = 0.0
    notes: list[str] = field(default_factory=list)
    results: list[bytes] = field(default_factory=list)
    error: dict[str, str] | None = None
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None

    @property
    def held(self) -> int:
        """Bytes kept in memory: rows to come, and results."""
        return (0 if self.ended else self.batch.bytes) + sum(map(len, self.results))


class Jobs:
    """Jobs of one server, bounded in number, size and age; safe to use from several threads."""

    def __init__(
        self,
        *,
        most: int = 64,
        each: int = 8,
        rows: int = 100_000,
        held: int = 256 * 2**20,
        age: float = 3600.0,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start nothing yet; the first job of a kind starts its thread.

        Args:
            most: jobs kept, finished ones included.
            each: of them, jobs of one client; its oldest finished one makes room for a new one.
            rows: most rows of one job.
            held: bytes of rows and results kept in memory.
            age: seconds that a job may take, and that its results are kept afterwards.
            busy: whether interactive requests are waiting; pieces of jobs then stand back.
        """
        self.most, self.each, self.rows, self.held, self.age = most, each, rows, held, age
        self.busy = busy
        self._jobs: dict[str, Job] = {}
        self._turn = threading.Condition()
        self._queues: dict[str, deque[Job]] = {kind: deque() for kind in KINDS}
        self._threads: dict[str, threading.Thread] = {}
        self._closed = False

    def submit(
        self,
        kind: str,
        batch: Batch,
        answer: Callable[[Inputs], list[dict[str, Any]]],
        *,
        model: str,
        version: str,
        most: int,
        owner: str = "",
        client: str = "",
    ) -> Job:
        """Put a job in the queue.

        Args:
            kind: "predict" or "explain"; each kind has a queue of its own.
            batch: its rows; the first ones are decoded here, so that most mistakes are told at once.
            answer: raw inputs of one piece to its results, one per row.
            model, version: what answers.
            most: most rows of one piece.
            owner: identity that may see the job, "" for anybody who knows its id.
            client: what the limit per client counts by.

        Raises:
            RequestError: no rows, or some that cannot be read; 413, too many rows; 429, too many jobs of this client;
                503, too many jobs.
        """
        if not batch.count:
            raise RequestError("bad_batch", "a job must hold at least one row, got none; send some")
        if batch.count > self.rows:
            raise RequestError(
                "too_many_rows", f"a job holds at most {self.rows} rows, got {batch.count}; split it", 413
            )
        piece = min(FIRST_PIECE, most)
        first, notes = batch.take(piece)
        job = Job(kind, model, version, owner, client, batch, most, answer, batch.count, piece=piece)
        job.pending, job.notes = [(first, batch.count - batch.left)], notes
        with self._turn:
            self._forget_old()
            mine = [other for other in self._jobs.values() if other.client == client]
            ended = [other for other in mine if other.ended]
            if len(mine) >= self.each and not ended:
                message = f"{len(mine)} jobs of yours are not finished, more are not taken; wait for one, or delete one"
                raise RequestError("too_many_jobs", message, 429, {"Retry-After": "10"})
            if len(mine) >= self.each:
                del self._jobs[ended[0].id]
            if len(self._jobs) >= self.most or self._held() + batch.bytes > self.held or self._closed:
                message = "the server holds as many jobs as it can; try again later, or send fewer rows to /predict"
                raise RequestError("too_many_jobs", message, 503, {"Retry-After": "30"})
            self._jobs[job.id] = job
            self._queues[kind].append(job)
            if kind not in self._threads:
                self._threads[kind] = threading.Thread(
                    target=self._work, args=(kind,), name=f"jobs-{kind}", daemon=True
                )
                self._threads[kind].start()
            self._turn.notify_all()
        return job

    def get(self, id: str, owner: str = "") -> Job:
        """A job by id.

        Raises:
            RequestError: 404, there is none, or it belongs to somebody else, which is told in the same words.
        """
        with self._turn:
            self._forget_old()
            job = self._jobs.get(id)
        if job is None or job.owner != owner:
            message = f"there is no such job; results are kept for {self.age:g} seconds and only their owner sees them"
            raise RequestError("unknown_job", message, 404)
        return job

    def owned(self, owner: str) -> list[Job]:
        """Every job of an identity, oldest first."""
        with self._turn:
            self._forget_old()
            return [job for job in self._jobs.values() if job.owner == owner]

    def delete(self, id: str, owner: str = "") -> None:
        """Stop a job, after the piece it is at, and forget it and its results.

        Raises:
            RequestError: 404, as for `get`.
        """
        job = self.get(id, owner)
        with self._turn:
            self._jobs.pop(job.id, None)
            self._end(job, "deleted")

    def describe(self, job: Job) -> dict[str, Any]:
        """State and progress of a job, without its results."""
        until = time.monotonic() if job.ended is None else job.ended
        ends = job.created + timedelta(seconds=self.age + (until - job.started if job.ended else 0))
        told: dict[str, Any] = {
            "id": job.id,
            "kind": job.kind,
            "model": job.model,
            "version": job.version,
            "state": job.state,
            "rows": job.rows,
            "done": job.done,
            "progress": round(job.done / job.rows, 4),
            "created": job.created.isoformat(timespec="seconds"),
            "expires": ends.isoformat(timespec="seconds"),
            "seconds": round(until - job.started, 3),
            "notes": job.notes,
        }
        if job.error:
            told["error"] = job.error
        return told

    def results(self, job: Job) -> list[dict[str, Any]]:
        """What is answered so far, one entry per row."""
        return [row for piece in list(job.results) for row in msgspec.json.decode(piece)]

    def state(self) -> dict[str, int]:
        """Number of jobs by state, and bytes held."""
        with self._turn:
            self._forget_old()
            counts = dict.fromkeys(("queued", "running", "done", "failed"), 0)
            for job in self._jobs.values():
                counts[job.state] += 1
            return {**counts, "bytes": self._held()}

    def close(self) -> None:
        """Take no more jobs and end the threads after the pieces they are at."""
        with self._turn:
            self._closed = True
            self._turn.notify_all()
        for thread in self._threads.values():
            thread.join(timeout=2)

    def _held(self) -> int:
        return sum(job.held for job in self._jobs.values())

    def _forget_old(self) -> None:
        """Drop old results, and fail jobs that took too long. The lock is held."""
        now = time.monotonic()
        for job in list(self._jobs.values()):
            if job.ended is not None and now - job.ended > self.age:
                del self._jobs[job.id]
            elif job.ended is None and now - job.started > self.age:
                self._fail(job, "too_slow", f"the job was not finished within {self.age:g} seconds; send fewer rows")

    def _end(self, job: Job, state: str) -> None:
        if job.ended is None:
            job.state, job.ended, job.pending = state, time.monotonic(), []

    def _fail(self, job: Job, code: str, message: str) -> None:
        if job.ended is None:
            job.error = {"code": code, "message": message}
            self._end(job, "failed")

    def _work(self, kind: str) -> None:
        """Answer pieces of the jobs of one kind in turn: the main loop of a thread."""
        queue = self._queues[kind]
        while True:
            with self._turn:
                while not self._closed and not queue:
                    self._turn.wait()
                if self._closed:
                    return
                job = queue.popleft()
                if job.ended is not None:
                    continue
                wait = job.not_before - time.monotonic()
                if wait > 0 and all(other.not_before > time.monotonic() for other in queue):
                    self._turn.wait(min(wait, 0.2))
                job.state = "running"
            if wait <= 0:
                self._stand_back()
                self._piece(job)
            with self._turn:
                if job.ended is None:
                    queue.append(job)

    def _stand_back(self) -> None:
        """Let interactive requests pass."""
        deadline = time.monotonic() + POLITE
        while self.busy() and time.monotonic() < deadline and not self._closed:
            time.sleep(0.005)

    def _piece(self, job: Job) -> None:
        """Decode and answer the next rows of a job."""
        began = time.monotonic()
        try:
            pending = job.pending
            if not pending:
                left = job.batch.left
                inputs, notes = job.batch.take(job.piece)
                job.notes = list(dict.fromkeys(job.notes + notes))[:MOST_NOTES]
                pending.append((inputs, left - job.batch.left))
            inputs, rows = pending[0]
            job.first_attempt = job.first_attempt or began
            encoded = msgspec.json.encode(job.answer(inputs))
        except RequestError as error:
            self._again(job, error)
        except Exception as error:  # a fault of the server ends this job, not the thread; its message may quote inputs
            place = "".join(traceback.format_tb(error.__traceback__))
            log.error("job %s failed with %s at\n%s", job.id, type(error).__name__, place)
            with self._turn:
                self._fail(job, "internal", f"the server failed on this job; its log has the reason under job {job.id}")
        else:
            self._answered(job, rows, encoded, time.monotonic() - began)

    def _answered(self, job: Job, rows: int, encoded: bytes, seconds: float) -> None:
        with self._turn:
            if job.ended is not None:  # deleted or too old meanwhile
                return
            job.results.append(encoded)
            job.done += rows
            del job.pending[0]
            job.attempts, job.first_attempt = 0, 0.0
            if seconds < SHORT:
                job.piece = min(job.most, 2 * job.piece)
            elif seconds > LONG:
                job.piece = max(1, job.piece // 2)
            if job.done >= job.rows:
                self._end(job, "done")
            elif self._held() > self.held:
                self._fail(
                    job, "too_large", "the results are larger than the server keeps; ask for fewer labels or rows"
                )

    def _again(self, job: Job, error: RequestError) -> None:
        """Try a piece again if its worker died or the server was too busy, else fail the job."""
        now = time.monotonic()
        job.attempts += 1
        crashed = error.code in CRASHES
        job.crashes += crashed
        too_busy = error.status in (429, 503, 504) and error.code not in ("refused", "explain_timeout")
        with self._turn:
            if job.ended is not None:
                return
            if (crashed and job.crashes < CRASHED) or (too_busy and now - job.first_attempt < PATIENCE):
                if crashed:
                    job.pending[:1] = _halves(*job.pending[0])
                job.not_before = now + min(0.1 * 2**job.attempts, 5.0)
            else:
                where = f"after {job.done} of {job.rows} rows: " if job.done else ""
                self._fail(job, error.code, where + error.message)


def _halves(inputs: Inputs, rows: int) -> list[tuple[Inputs, int]]:
    """A piece in two, so that a row that kills workers stands alone in the end; one row stays as it is."""
    if rows == 1:
        return [(inputs, rows)]
    half = rows // 2
    first = {name: array[:half] for name, array in inputs.items()}
    return [(first, half), ({name: array[half:] for name, array in inputs.items()}, rows - half)]
