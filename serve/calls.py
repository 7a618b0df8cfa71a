"""Calls on their way, the versions they wait for, and answers that are kept. Starts nothing and waits for nobody."""

import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import msgspec
import numpy as np

from serve import continuations, protocol
from serve.errors import RequestError
from serve.manifest import Bundle
from serve.runtime import EXAMPLES, Declared, golden_rows
from serve.writing import Part

BATCH_BYTES = 32 * 2**20  # a batch is closed by the request that reaches this


@dataclass(slots=True)
class Answer:
    """What became of a call.

    Attributes:
        status: HTTP status.
        body: as it goes to the client.
        header_length: bytes of JSON before binary tensors; None if the body is JSON only.
        headers: extra HTTP headers.
        version: that answered.
        rows: predicted rows.
        classes: predicted class of each row, None for models that tell no classes apart.
        values: probability of each of them; of models that answer one value for each row, that.
        seconds: that a worker took for the batch, or to write a text.
        tokens: that were written, also where the answer was not finished.
        first: seconds from the request to the first token; None without any.
    """

    status: int
    body: bytes
    header_length: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    version: str = ""
    rows: int = 0
    classes: list[int] | None = None
    values: list[float] | None = None
    seconds: float = 0.0
    tokens: int = 0
    first: float | None = None

    @classmethod
    def of(cls, error: RequestError) -> "Answer":
        """The answer to a request that cannot be answered."""
        return cls(error.status, error.body, headers=error.headers)

    @property
    def refusal(self) -> RequestError:
        """The same the other way round."""
        told = msgspec.json.decode(self.body)
        return RequestError(told.get("code", "failed"), told["error"], self.status, self.headers)


@dataclass(slots=True)
class Call:
    """One inference on its way.

    Attributes:
        model, version: what answers.
        body: the request as it came, decompressed.
        header_length: bytes of JSON before binary tensors; None if the body is JSON only.
        protocol: "v2" or "v1", or one of `serve.continuations.KINDS`: how the body is to be read.
        deadline: `time.monotonic()` seconds, after which nobody wants the answer.
        done: called once with the answer, in the loop's thread; after what `said` was called with, its body is the rest.
        said: called with each part of a stream before that; None for an answer that comes whole.
        cancelled: set by the owner when nobody waits any more; the call is then not computed if it still can be
            avoided.
        shadow: whether it only watches another version; it counts in no figure that clients see.
        chosen: whether traffic rules chose the version, and not the client; such calls are what an experiment compares.
        attempts: workers that died while they computed it.
        started: `time.monotonic()` when it was submitted.
        finished: whether `done` was called.
        begun: `time.monotonic()` when a worker was given it, for texts to be written.
        first: the same of the first token, 0 before.
        tokens: written so far.
        spoken: whether `said` was called.
    """

    model: str
    version: str
    body: bytes
    header_length: int | None
    protocol: str
    deadline: float
    done: Callable[[Answer], None]
    cancelled: bool = False
    shadow: bool = False
    attempts: int = 0
    started: float = 0.0
    finished: bool = False
    chosen: bool = False
    said: Callable[[bytes], None] | None = None
    begun: float = 0.0
    first: float = 0.0
    tokens: int = 0
    spoken: bool = False


class Asker(Protocol):
    """What answers a request while the asking thread waits; see `serve.fleet.Fleet.ask`."""

    def ask(
        self, name: str, version: str, body: bytes, header_length: int | None, deadline: float | None = None
    ) -> Answer: ...

    def follow(
        self, name: str, version: str, kind: str, body: bytes, deadline: float | None = None
    ) -> Iterator[Part]: ...


class Served(Declared):
    """One version that the fleet serves: its queue, and a model that can be called from any other thread.

    Attributes:
        slot: number under which workers know it; a version that is loaded again gets another one.
        engine: what computes, as the last worker that loaded it said.
        queue: calls that wait, oldest first.
        alone: calls over which a worker died; each is a batch of its own, and goes first.
        prompts: calls that wait for a place among the texts that are being written.
        queued: bytes that wait.
        outstanding: batches and texts that workers have.
        cost: seconds of a worker for one call, a running mean; 0 if not known.
        span: seconds from giving a text to a worker to its end, a running mean; 0 if not known.
        pace: seconds from giving a batch to a worker to having its answers, per call, a running mean; 0 if not known.
        memory: bytes that a worker grew by loading it; the size of its files before that.
        used: `time.monotonic()` of the last call.
        retired: whether it is served no longer, and is unloaded when its queue is empty.
        deaths: workers that died while they loaded it.
        stale: whether its files can be opened no longer, so that only workers that have it can answer.
    """

    def __init__(self, fleet: Asker, bundle: Bundle, slot: int, *, precision: str | None, max_batch: int) -> None:
        super().__init__(bundle, precision=precision, max_batch=max_batch)
        stored = self.manifest.precisions[self.precision]
        self._fleet = fleet
        self._examples: dict[str, np.ndarray] | None = None
        self.slot = slot
        self.engine = "onnxruntime"
        self.queue: deque[Call] = deque()
        self.alone: deque[Call] = deque()
        self.prompts: deque[Call] = deque()
        self.span = 0.0
        self.queued = 0
        self.outstanding = 0
        self.cost = (stored.ms or 0.0) / 1000
        files = [stored.file, *([stored.weights] if stored.weights else [])]
        self.memory = sum((bundle.folder / name).stat().st_size for name in files)
        self.pace = 0.0
        self.used = 0.0
        self.retired = False
        self.deaths = 0
        self.stale = False

    @property
    def waiting(self) -> int:
        """Calls that wait."""
        return len(self.queue) + len(self.alone) + len(self.prompts)

    @property
    def examples(self) -> dict[str, np.ndarray]:
        """Up to 16 golden rows by input name, read when first asked for; empty without `golden.npz`."""
        if self._examples is None:
            try:
                golden = golden_rows(self.bundle)
                self._examples = {port.name: golden[f"input/{port.name}"][:EXAMPLES] for port in self.manifest.inputs}
            except (OSError, ValueError, KeyError):  # none, or the folder has gone since
                self._examples = {}
        return self._examples

    def predict(
        self,
        inputs: dict[str, np.ndarray],
        outputs: list[str] | None = None,
        *,
        deadline: float | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> dict[str, np.ndarray]:
        """Check raw inputs and have a worker run them; waits, so not for the loop's own thread.

        Args:
            inputs: one array per input of the manifest, batch first.
            outputs: names wanted, all if None.
            deadline: `time.monotonic()` seconds by which the answer is wanted; the fleet's usual time if None.
            parameters: of the request, which a model that writes or paints reads.

        Returns:
            Output arrays by name, batch first.

        Raises:
            RequestError: the inputs or output names are not the model's; 503, too many requests wait; 504, too late.
        """
        self.wanted(outputs)
        body, header_length = protocol.pack(self.arranged(inputs), outputs, parameters)
        answer = self._fleet.ask(self.name, self.version, body, header_length, deadline)
        if answer.status != 200:
            raise answer.refusal
        return protocol.unpack(answer.body, answer.header_length)

    def writes(self, kind: str) -> bool:
        """Whether a request of such a kind is answered token by token."""
        return kind in continuations.KINDS or continuations.writes(self.manifest)

    def follow(self, kind: str, body: bytes, deadline: float | None = None) -> Iterator[Part]:
        """Have a worker answer a request for continued texts, and tell it as it comes; see `serve.runtime.Model.follow`."""
        continuations.check(kind, self.manifest)
        return self._fleet.follow(self.name, self.version, kind, body, deadline)

    def take(self, count: int, now: float, expired: Callable[[Call, float], bool]) -> list[Call]:
        """The next batch: at most so many calls, without those that nobody waits for."""
        while self.alone:
            call = self.alone.popleft()
            self.queued -= len(call.body)
            if not expired(call, now):
                return [call]
        batch: list[Call] = []
        size = 0
        while self.queue and len(batch) < count and size < BATCH_BYTES:
            call = self.queue.popleft()
            self.queued -= len(call.body)
            if not expired(call, now):
                batch.append(call)
                size += len(call.body)
        return batch


@dataclass(slots=True)
class Batch:
    """Calls that a worker has."""

    number: int
    served: Served
    calls: list[Call]
    began: float = 0.0  # when it became the oldest of its worker


class Cache:
    """Answers by request, least recently used first, within a number of bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = self.hits = self.misses = 0
        self._answers: OrderedDict[tuple, Answer] = OrderedDict()

    def get(self, key: tuple) -> Answer | None:
        answer = self._answers.get(key)
        if answer is None:
            self.misses += 1
        else:
            self.hits += 1
            self._answers.move_to_end(key)
        return answer

    def put(self, key: tuple, answer: Answer) -> None:
        size = _size(answer)
        if size > self.limit // 8 or key in self._answers:
            return
        self._answers[key] = replace(answer, seconds=0.0)
        self.size += size
        while self.size > self.limit:
            self.size -= _size(self._answers.popitem(last=False)[1])

    def forget(self, slot: int) -> None:
        """Drop what a version answered."""
        for key in [key for key in self._answers if key[0] == slot]:
            self.size -= _size(self._answers.pop(key))


def key_of(served: Served, call: Call) -> tuple:
    """What two calls have in common that get the same answer."""
    return served.slot, call.protocol, call.header_length, hashlib.sha256(call.body).digest()


def _size(answer: Answer) -> int:
    """Bytes an answer takes in the cache, about."""
    return len(answer.body) + 40 * answer.rows + 500
