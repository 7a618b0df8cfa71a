"""A load generator: one process, one epoll loop, raw requests built beforehand, the same for every server.

It is cheap because it shares the machine with the server: an answer costs one receive, one search for its length and one
send. Two ways to drive: closed, where each connection asks again when it has its answer, and open, where requests are due
at a fixed rate whatever the answers do, and are timed from when they were due.
"""

import math
import re
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.IGNORECASE)
CLOSING = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)
STEP = 1.02  # neighbouring classes of the histogram differ by 2 %
SHORTEST = 1e-5  # seconds; the first class
_SCALE = 1 / math.log(STEP)
REMEMBERED = 20_000  # bodies known to be right, so that equal ones are not read again


@dataclass(frozen=True)
class Question:
    """A request and what makes its answer right.

    Attributes:
        raw: everything that is sent.
        right: reads the head and body of an answer with status 200; may raise, which counts as wrong.
    """

    raw: bytes
    right: Callable[[bytes, bytes], bool]


@dataclass
class Figures:
    """What came of a drive.

    Attributes:
        seconds: from the first question to the last answer.
        statuses: how many answers had which HTTP status.
        good: answers with status 200, that were not late if a limit was given.
        checked, wrong: answers read, and those of them that were not right.
        first_wrong: beginning of the first of these.
        first_of: the number of a question by the status it was answered with.
        lost: questions whose connection ended or stayed silent before the answer was whole.
        unasked: questions of an open drive that were due, but found no free connection within its limit.
        counts: answers by class of latency.
        own_cores: processor cores the generator itself used.
    """

    seconds: float = 0.0
    statuses: Counter = field(default_factory=Counter)
    good: int = 0
    checked: int = 0
    wrong: int = 0
    first_wrong: str = ""
    first_of: dict[int, int] = field(default_factory=dict)
    lost: int = 0
    unasked: int = 0
    counts: Counter = field(default_factory=Counter)
    own_cores: float = 0.0

    @property
    def answers(self) -> int:
        return sum(self.statuses.values())

    @property
    def rate(self) -> float:
        """Good answers per second."""
        return self.good / self.seconds if self.seconds else 0.0

    def latency(self, share: float) -> float:
        """Seconds within which this share of the answers with status 200 came, to 2 %; not a number without any."""
        left = share * sum(self.counts.values())
        for step in sorted(self.counts):
            left -= self.counts[step]
            if left <= 0:
                return SHORTEST * STEP ** (step + 1)
        return math.nan

    @property
    def clean(self) -> bool:
        """Whether every question had an answer with status 200 and none was wrong."""
        return not self.wrong and not self.lost and set(self.statuses) == {200}

    def __add__(self, after: "Figures") -> "Figures":
        """Of two drives, one after the other."""
        seconds = self.seconds + after.seconds
        used = self.seconds * self.own_cores + after.seconds * after.own_cores
        return Figures(
            seconds,
            self.statuses + after.statuses,
            self.good + after.good,
            self.checked + after.checked,
            self.wrong + after.wrong,
            self.first_wrong or after.first_wrong,
            {**after.first_of, **self.first_of},
            self.lost + after.lost,
            self.unasked + after.unasked,
            self.counts + after.counts,
            used / seconds if seconds else 0.0,
        )

    def __str__(self) -> str:
        parts = [
            f"{self.rate:.0f}/s",
            f"p50 {1000 * self.latency(0.5):.2f} ms",
            f"p99 {1000 * self.latency(0.99):.2f} ms",
        ]
        parts += [f"{count} of status {status}" for status, count in sorted(self.statuses.items()) if status != 200]
        parts += [f"{name} {getattr(self, name)}" for name in ("wrong", "lost", "unasked") if getattr(self, name)]
        parts.append(f"generator on {self.own_cores:.2f} cores")
        return ", ".join(parts)


class _Line:
    """One connection."""

    __slots__ = ("busy", "due", "head", "number", "question", "received", "rest", "socket")

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.number = connected.fileno()
        self.busy = False
        self.due = 0.0
        self.question = 0
        self.received = b""
        self.rest: memoryview | None = None


def whole(data: bytes) -> tuple[int, bytes, bytes, bool] | None:
    """(status, head, body, whether the connection is to be closed) of a complete answer, None if more must come.

    Raises:
        ValueError: this is no HTTP/1 answer.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    if not data.startswith(b"HTTP/1."):
        raise ValueError(f"no HTTP/1 answer: {data[:40]!r}")
    head = data[: end + 2]
    closing = CLOSING.search(head) is not None
    length = LENGTH.search(head)
    if length is not None:
        stop = end + 4 + int(length[1])
        return (int(data[9:12]), head, data[end + 4 : stop], closing) if len(data) >= stop else None
    if CHUNKED.search(head):
        body = _unchunked(data, end + 4)
        return None if body is None else (int(data[9:12]), head, body, closing)
    if data[9:12] in (b"204", b"304"):
        return int(data[9:12]), head, b"", closing
    raise ValueError(f"an answer without a length: {data[:40]!r}")


def _unchunked(data: bytes, place: int) -> bytes | None:
    parts = []
    while True:
        end = data.find(b"\r\n", place)
        if end < 0:
            return None
        size = int(data[place:end].split(b";")[0], 16)
        if len(data) < end + 4 + size:
            return None
        if size == 0:
            return b"".join(parts)
        parts.append(data[end + 2 : end + 2 + size])
        place = end + 4 + size


class Drive:
    """A run of questions against one port of this machine."""

    def __init__(
        self,
        port: int,
        questions: Sequence[Question],
        connections: int,
        *,
        check_every: int = 25,
        patience: float = 30.0,
        late: float | None = None,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            port: TCP port on 127.0.0.1.
            questions: asked in turn, over and over.
            connections: kept alive, at least 1.
            check_every: every how many answers one is read and compared; 1 for all.
            patience: seconds without an answer after which a question counts as lost.
            late: seconds past which an answer is not good, None for no limit.
        """
        self.port = port
        self.questions = questions
        self.connections = connections
        self.check_every = check_every
        self.patience = patience
        self.late = late
        self._known: set[tuple[int, bytes]] = set()

    def run(self, seconds: float, *, rate: float | None = None, backlog: float = 1.0, most: int = 10**8) -> Figures:
        """Ask for some time, then wait for the answers that are still due.

        Args:
            seconds: of asking.
            rate: questions per second of an open drive; None for a closed one.
            backlog: seconds a question of an open drive may wait for a free connection.
            most: questions after which asking ends early.

        Returns:
            What came of it.

        Raises:
            ConnectionError: no connection can be made at all.
        """
        self.figures = Figures()
        self._poll = select.epoll()
        self._lines: dict[int, _Line] = {}
        self._idle: deque[_Line] = deque()
        self._asked = self._turn = 0
        self._again = rate is None
        self._most = most
        self._reconnect_at = 0.0
        used = time.process_time()
        try:
            for _ in range(self.connections):
                self._connect()
            began = self._last = time.perf_counter()
            self._stop = began + seconds
            self._loop(began, rate, backlog)
        finally:
            for line in self._lines.values():
                line.socket.close()
            self._poll.close()
        self.figures.own_cores = (time.process_time() - used) / (time.perf_counter() - began)
        return self.figures

    def _loop(self, began: float, rate: float | None, backlog: float) -> None:
        waiting: deque[float] = deque()
        arrived = 0
        last_look = now = began
        if rate is None:
            while self._idle:
                self._ask(self._idle.popleft(), now)
        while True:
            asking = now < self._stop and self._asked < self._most
            if not asking:
                self._again = False
                if self._asked >= self._most or not self._lines:
                    self.figures.unasked += len(waiting)
                    waiting.clear()
                if not waiting and not any(line.busy for line in self._lines.values()):
                    self.figures.seconds = self._last - began
                    return
            timeout = 0.05
            if rate is not None:
                due = int((min(now, self._stop) - began) * rate) + 1 if asking else arrived
                waiting.extend(began + number / rate for number in range(arrived, due))
                arrived = due
                while waiting and waiting[0] < now - backlog:
                    waiting.popleft()
                    self.figures.unasked += 1
                while waiting and self._idle:
                    self._ask(self._idle.popleft(), waiting.popleft())
                timeout = 0.001
            for number, events in self._poll.poll(timeout):
                self._serve(self._lines[number], events)
            now = time.perf_counter()
            if now - last_look > 0.25:
                last_look = now
                self._mend(now)

    def _mend(self, now: float) -> None:
        """Give up silent connections, and make up for those that were lost."""
        for line in [line for line in self._lines.values() if line.busy and now - line.due > self.patience]:
            self._lose(line)
        while len(self._lines) < self.connections and now < self._stop:
            try:
                self._connect()
            except OSError:
                return
            if self._again:
                self._ask(self._idle.pop(), now)

    def _connect(self) -> None:
        connected = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setblocking(False)
        line = _Line(connected)
        self._lines[line.number] = line
        self._poll.register(line.number, select.EPOLLIN)
        self._idle.append(line)

    def _drop(self, line: _Line) -> None:
        del self._lines[line.number]
        self._poll.unregister(line.number)
        line.socket.close()
        if not line.busy:
            self._idle.remove(line)

    def _lose(self, line: _Line) -> None:
        self.figures.lost += 1
        self._drop(line)

    def _ask(self, line: _Line, due: float) -> None:
        line.busy, line.due, line.question = True, due, self._turn
        raw = self.questions[self._turn].raw
        self._turn = (self._turn + 1) % len(self.questions)
        self._asked += 1
        try:
            sent = line.socket.send(raw)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lose(line)
            return
        if sent < len(raw):
            line.rest = memoryview(raw)[sent:]
            self._poll.modify(line.number, select.EPOLLIN | select.EPOLLOUT)

    def _serve(self, line: _Line, events: int) -> None:
        if events & select.EPOLLOUT and line.rest is not None:
            try:
                line.rest = line.rest[line.socket.send(line.rest) :]
            except BlockingIOError:
                pass
            except OSError:
                self._lose(line)
                return
            if not line.rest:
                line.rest = None
                self._poll.modify(line.number, select.EPOLLIN)
        if not events & ~select.EPOLLOUT:
            return
        try:
            data = line.socket.recv(262_144)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            if line.busy:
                self._lose(line)
            else:
                self._drop(line)
            return
        line.received = line.received + data if line.received else data
        try:
            answer = whole(line.received)
        except ValueError as error:
            self.figures.wrong += 1
            self.figures.first_wrong = self.figures.first_wrong or str(error)
            self._lose(line)
            return
        if answer is not None:
            line.received = b""
            self._count(line, *answer)

    def _count(self, line: _Line, status: int, head: bytes, body: bytes, closing: bool) -> None:
        figures, now = self.figures, time.perf_counter()
        figures.statuses[status] += 1
        self._last = now
        took = now - line.due
        if status != 200:
            figures.first_of.setdefault(status, line.question)
        else:
            if self.late is None or took <= self.late:
                figures.good += 1
            figures.counts[int(math.log(took / SHORTEST) * _SCALE) if took > SHORTEST else 0] += 1
            if figures.good % self.check_every == 0:
                self._check(line.question, head, body)
        line.busy = False
        if closing:
            self._idle.append(line)
            self._drop(line)
            self._mend(now)
        elif self._again and now < self._stop and self._asked < self._most:
            self._ask(line, now)
        else:
            self._idle.append(line)

    def _check(self, question: int, head: bytes, body: bytes) -> None:
        self.figures.checked += 1
        if (question, body) in self._known:
            return
        try:
            right = self.questions[question].right(head, body)
        except Exception as error:  # whatever an answer holds, it is only wrong
            right = False
            body = f"{type(error).__name__}: {error} in {body[:200]!r}".encode()
        if not right:
            self.figures.wrong += 1
            self.figures.first_wrong = self.figures.first_wrong or f"question {question}: {body[:300]!r}"
        elif len(self._known) < REMEMBERED and len(body) < 4096:
            self._known.add((question, body))
