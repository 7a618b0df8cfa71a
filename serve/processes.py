"""Worker processes as the front sees them: started, listened to, ended."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, Protocol

from serve import wire
from serve.calls import Batch, Served


class Employer(Protocol):
    """Who is told of a worker's frames and of its end."""

    def received(self, worker: "Worker", message: Any, bodies: memoryview) -> None: ...

    def lost(self, worker: "Worker") -> None: ...


class Worker(asyncio.BufferedProtocol):
    """One worker process and its end of the socket."""

    def __init__(self, employer: Employer, number: int) -> None:
        self._employer = employer
        self.number = number
        self.state = "starting"  # then "ready", at last "dead"
        self.born = time.monotonic()
        self.slots: dict[int, Served] = {}
        self.loading: dict[int, tuple[Served, float, asyncio.Future[str]]] = {}
        self.batches: deque[Batch] = deque()
        self._buffer = bytearray(2**16)
        self._end = 0
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
        self._transport: asyncio.Transport | None = None

    async def connect(self) -> None:
        """Listen to the worker."""
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: self, sock=self._socket)
        self._transport = transport

    def send(self, pieces: list[bytes]) -> None:
        """Write a frame."""
        assert self._transport is not None
        self._transport.writelines(pieces)

    def close(self) -> None:
        """Hang up, which ends the worker when it is well."""
        if self._transport is not None:
            self._transport.abort()

    def kill(self) -> None:
        """End the process; what it had is found when its socket closes."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    def held(self) -> int:
        """Bytes of memory of the models it has or opens."""
        return sum(each.memory for each in self.slots.values()) + sum(each[0].memory for each in self.loading.values())

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._end == len(self._buffer):
            grown = bytearray(2 * len(self._buffer))
            grown[: self._end] = self._buffer
            self._buffer = grown
        return memoryview(self._buffer)[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        self._end += nbytes
        prefix = wire.PREFIX.size
        start = 0
        view = memoryview(self._buffer)
        while self._end - start >= prefix:
            head, rest = wire.PREFIX.unpack_from(view, start)
            size = prefix + head + rest
            if self._end - start < size:
                if start + size > len(self._buffer):
                    left = self._end - start
                    grown = bytearray(size)
                    grown[:left] = view[start : self._end]
                    self._buffer, self._end = grown, left
                    return
                break
            message = wire.to_front.decode(view[start + prefix : start + prefix + head])
            self._employer.received(self, message, view[start + prefix + head : start + size])
            start += size
        if start:
            left = self._end - start
            if len(self._buffer) > 2**20 and left < 2**16:
                self._buffer = (
                    bytearray(2**16) if not left else bytearray(view[start : self._end].tobytes().ljust(2**16))
                )
            else:
                view[:left] = bytes(view[start : self._end])
            self._end = left

    def connection_lost(self, error: Exception | None) -> None:
        self._employer.lost(self)


def resident(pid: int) -> int:
    """Bytes of memory a process holds; 0 where the system does not tell, or it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def reap(processes: list[subprocess.Popen], seconds: float = 2.0) -> None:
    """Wait for processes that were told to end; kill those that take longer."""
    end = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(0.01, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
