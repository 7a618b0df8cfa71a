"""What all connections share: limits, threads for the app, the clock, and what can be known of a request by its URL.

A connection itself is in `connections`, which one thread's event loop runs.
"""

import asyncio
import logging
import queue
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from serve.errors import RequestError
from serve.fleet import Fleet
from serve.heads import STATUS_LINES, lines
from serve.monitor import Monitor

log = logging.getLogger("serve")

INFER = re.compile(
    rb"/v2/models/([^/?]+)(?:/versions/([^/?]+))?/(infer|generate|generate_stream)(?:\?.*)?"
    rb"|/v1/models/([^/?:]+)(?:/versions/([^/?:]+))?:predict(?:\?.*)?"
    rb"|/v1/completions(?:\?.*)?"
)
KNOWN_URLS = 1024  # infer paths remembered, so that no client can fill the memory with them
BUSY = {"Retry-After": "1"}

# model ("" where the body names it), version, protocol, the route's pattern
Inference = tuple[str, str | None, str, str]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may ask of the front.

    Attributes:
        body: bytes of a body, as sent and unpacked.
        head: bytes of a request line with all headers.
        url: bytes of an URL.
        headers: header lines of a request.
        buffered: bytes of bodies that all connections together may hold.
        connections: open connections; one more is answered with 503.
        pipelined: requests that a client may send ahead of their answers before the front stops reading.
        head_seconds: time to send a request line with all headers.
        body_seconds: time to send a body, prolonged by 1 s for each `pace` bytes, up to this value at any moment.
        pace: bytes per second that a client must send.
        idle_seconds: time until the first byte of a connection's next request.
        write_seconds: time in which a client must take what waits to be sent.
        unread: bytes of a stream that may wait for its client; one who reads more slowly is hung up on.
        linger_seconds: time in which a client may finish sending after the last answer, so that it sees the answer.
        retire_seconds: time in which an idle connection may still send a request when the server stops.
        request_seconds: time for an inference unless the client sends X-Request-Timeout.
    """

    body: int = 16 * 2**20
    head: int = 32 * 2**10
    url: int = 8 * 2**10
    headers: int = 100
    buffered: int = 512 * 2**20
    connections: int = 10_000
    pipelined: int = 16
    head_seconds: float = 10.0
    body_seconds: float = 20.0
    pace: int = 1000
    idle_seconds: float = 75.0
    write_seconds: float = 30.0
    unread: int = 256 * 2**10
    linger_seconds: float = 2.0
    retire_seconds: float = 0.5
    request_seconds: float = 30.0


class Threads:
    """A bounded queue worked off by daemon threads, which cannot keep the process from ending."""

    def __init__(self, count: int, waiting: int, name: str) -> None:
        self._count, self._waiting, self._name = count, waiting, name
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._started = 0

    def submit(self, job: Callable[[], None]) -> None:
        """Queue a job, from one thread only.

        Raises:
            RequestError: 503, the queue is full.
        """
        if self._jobs.qsize() >= self._waiting:
            message = f"{self._waiting} requests are waiting already; try again in a moment"
            raise RequestError("overloaded", message, 503, dict(BUSY))
        self._jobs.put(job)
        if self._started < self._count:
            self._started += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True).start()

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            except Exception as error:  # a job answers its own errors; a thread must not die of what is left
                log.error("a request failed with %s", type(error).__name__)
            del job  # while this thread waits for the next one, nothing of the last stays in memory


class Guest(Protocol):
    """What the front knows of a connection; see `connections.Connection`.

    Attributes:
        expires: `time.monotonic()` seconds at which its time limit is over.
    """

    expires: float

    def expire(self) -> None: ...

    def retire(self) -> None: ...

    def abort(self) -> None: ...


class Front:
    """What all connections share: the fleet, the app and its threads, the limits, the figures.

    Attributes:
        connections: open connections.
        draining: True once the server is stopping; every answer then closes its connection.
    """

    def __init__(
        self,
        fleet: Fleet,
        app: Callable[..., Iterable[bytes]],
        *,
        monitor: Monitor,
        guard: Any = None,
        limits: Limits | None = None,
        threads: int = 16,
        waiting: int = 64,
    ) -> None:
        """Prepare to answer; `start` in the loop's thread begins.

        Args:
            fleet: answers inferences.
            app: WSGI app for every other request.
            monitor: counts requests and writes their log lines.
            guard: says who may ask what; everybody may predict if None.
            limits: what one client may ask.
            threads: requests that the app works on at a time.
            waiting: requests that may wait for one of them.
        """
        self.fleet, self.app, self.monitor, self.guard = fleet, app, monitor, guard
        self.limits = limits or Limits()
        self.connections: set[Guest] = set()
        self.draining = False
        self.buffered = 0
        self.now = time.monotonic()
        self.loop: asyncio.AbstractEventLoop
        self._threads = Threads(threads, waiting, "app")
        self._operations = Threads(4, 256, "operations")  # never behind people's requests
        self._urls: dict[bytes, Inference] = {}
        self._names: dict[bytes, str] = {}
        self._origins: dict[str | None, bytes] = {}
        self._prefix, self._count = secrets.token_hex(6), 0
        self._empty: asyncio.Event | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._second = -1
        times = (
            self.limits.head_seconds,
            self.limits.body_seconds,
            self.limits.idle_seconds,
            self.limits.write_seconds,
            self.limits.retire_seconds,
        )
        self._step = min(0.5, *(each / 4 for each in times))

    def start(self) -> None:
        """Begin to watch the clock, in the loop's thread."""
        self.loop = asyncio.get_running_loop()
        self._sweep()

    async def drain(self, seconds: float) -> None:
        """Close each connection once it has been idle for a moment and its requests are answered.

        Args:
            seconds: most time to wait for that.
        """
        self.draining = True
        self._empty = asyncio.Event()
        for connection in list(self.connections):
            connection.retire()
        with suppress(TimeoutError):
            if self.connections:
                await asyncio.wait_for(self._empty.wait(), seconds)

    def stop(self) -> None:
        """End every connection and the clock."""
        for connection in list(self.connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()

    def forget(self, connection: Guest) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        if self._empty is not None and not self.connections:
            self._empty.set()

    def _sweep(self) -> None:
        """Renew the clock and the date; end what has taken too long."""
        self.now = now = time.monotonic()
        second = int(time.time())
        if second != self._second:
            self._second = second
            self.date = b"Date: %b\r\n" % formatdate(second, usegmt=True).encode()
            self.fine = b"%b%bContent-Type: application/json\r\n" % (STATUS_LINES[200], self.date)
        for connection in [each for each in self.connections if each.expires < now]:
            connection.expire()
        self._sweeper = self.loop.call_later(self._step, self._sweep)

    def request_id(self) -> str:
        """A new request's id: unique, and cheaper than a UUID."""
        self._count += 1
        return f"{self._prefix}{self._count:010x}"

    def inference(self, url: bytes) -> Inference | None:
        """What an URL asks for, if it is an inference's."""
        known = self._urls.get(url)
        if known is not None:
            return known
        found = INFER.fullmatch(url)
        if found is None:
            return None
        model, version = (found[1], found[2]) if found[1] else (found[4], found[5])
        verb = found[3].decode() if found[1] else ""
        base = f"/v{2 if found[1] else 1}/models/<model>" + ("/versions/<version>" if version else "")
        made = (
            unquote_to_bytes(model or b"").decode("utf-8", "replace"),
            None if version is None else unquote_to_bytes(version).decode("utf-8", "replace"),
            ("v2" if verb == "infer" else verb) if verb else "v1" if model else "completions",
            f"{base}/{verb}" if verb else f"{base}:predict" if model else "/v1/completions",
        )
        if len(self._urls) >= KNOWN_URLS:
            self._urls.clear()
        self._urls[url] = made
        return made

    def header_name(self, raw: bytes) -> str:
        """A header's name in lower case."""
        known = self._names.get(raw)
        if known is None:
            known = raw.decode("latin-1").lower()
            if len(self._names) < KNOWN_URLS:
                self._names[raw] = known
        return known

    def policy(self, origin: str | None) -> bytes:
        """Security headers, and CORS for an allowed origin, as lines."""
        known = self._origins.get(origin)
        if known is None:
            headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
            if self.guard is not None:
                headers |= self.guard.response_headers(origin, page=False)
            known = lines(headers.items())
            if len(self._origins) >= KNOWN_URLS:
                self._origins.clear()
            self._origins[origin] = known
        return known

    def work(self, path: str, job: Callable[[], None]) -> None:
        """Queue a job for the app's threads; figures, health and administration never wait behind other requests.

        Raises:
            RequestError: 503, too many are waiting.
        """
        operation = path in {"/metrics", "/healthz"} or path.startswith(("/admin/", "/v2/health/"))
        (self._operations if operation else self._threads).submit(job)

    def aside(self, job: Callable[[], None]) -> None:
        """Queue a short computation.

        Raises:
            RequestError: 503, too many are waiting.
        """
        self._operations.submit(job)
