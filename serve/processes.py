"""Worker processes as the front sees them: started, listened to, ended."""

import asyncio
import contextlib
import itertools
import os
import select
import socket
import subprocess
import sys
import time
from collections import deque
from typing import Any, Protocol

from serve import wire
from serve.calls import Batch, Call, Served

JOINED = 4096  # bytes of a body up to which a batch is copied together, which is cheaper than many pieces
LAST_SECONDS = 2.0  # for processes that were told to end
PIECES = 512  # that the system takes at a time; more than 1024 it refuses


class Employer(Protocol):
    """Who is told of a worker's frames and of its end."""

    def received(self, worker: "Worker", message: Any, bodies: memoryview) -> None: ...

    def lost(self, worker: "Worker") -> None: ...


class Worker:
    """One worker process and its end of the socket."""

    def __init__(self, employer: Employer, number: int) -> None:
        self._employer = employer
        self.number = number
        self.state = "starting"  # then "ready", at last "dead"
        self.born = time.monotonic()
        self.slots: dict[int, Served] = {}
        self.loading: dict[int, tuple[Served, float, asyncio.Future[str]]] = {}
        self.batches: deque[Batch] = deque()
        self.texts: dict[int, tuple[Served, Call]] = {}  # that it writes, by number
        self.heard = 0.0  # when it last told of them
        self._inbox = wire.Inbox(wire.to_front)
        self._unsent: deque[bytes | memoryview] = deque()
        self._writing = False  # the loop tells when there is room to send
        ours, theirs = socket.socketpair()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "serve.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # where this process finds modules, so that the worker finds the same
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self._socket = ours
        self._poll = select.poll()
        self._poll.register(ours, select.POLLIN)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(ours, self._receive)

    def send(self, pieces: list[bytes]) -> None:
        """Write a frame, at once as far as there is room."""
        self._unsent.extend(pieces if len(pieces[-1]) > JOINED else [b"".join(pieces)])
        if not self._writing:
            self._flush()

    def _flush(self) -> None:
        waits = False
        while self._unsent and not waits:
            try:
                sent = self._socket.sendmsg(itertools.islice(self._unsent, PIECES))
            except BlockingIOError:
                waits = True
            except OSError:  # the worker is gone, which is told where it is listened to
                self._unsent.clear()
            else:
                while self._unsent and sent >= len(self._unsent[0]):
                    sent -= len(self._unsent.popleft())
                if sent:
                    self._unsent[0] = memoryview(self._unsent[0])[sent:]
        if waits and not self._writing:
            self._loop.add_writer(self._socket, self._flush)
        elif self._writing and not waits:
            self._loop.remove_writer(self._socket)
        self._writing = waits

    def glance(self) -> None:
        """Look for an answer for a moment, and handle it."""
        if wire.glance(self._poll):
            self._receive()

    def _receive(self) -> None:
        try:
            count = self._socket.recv_into(self._inbox.room())
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self.close()
            self._employer.lost(self)
            return
        self._inbox.add(count)
        while (taken := self._inbox.take()) is not None:
            try:
                self._employer.received(self, *taken)
            finally:
                self._inbox.drop()

    def close(self) -> None:
        """Hang up, which ends the worker when it is well."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._writing = False
            self._unsent.clear()
            self._socket.close()

    def kill(self) -> None:
        """End the process; what it had is found when its socket closes."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    @property
    def cautious(self) -> bool:
        """Whether it tries a request over which another one died."""
        return any(call.attempts and not call.first for _, call in self.texts.values())

    def held(self) -> int:
        """Bytes of memory of the models it has or opens."""
        return sum(each.memory for each in self.slots.values()) + sum(each[0].memory for each in self.loading.values())


def reap(processes: list[subprocess.Popen]) -> None:
    """Wait for processes that were told to end; kill those that take longer."""
    end = time.monotonic() + LAST_SECONDS
    for process in processes:
        try:
            process.wait(max(0.01, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
