"""Processes under test: started in a session of their own, waited for, measured, and ended by their ids."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")


class NotStarted(RuntimeError):
    """A server ended, or was not ready in time; the message holds the end of what it printed."""


def free_port(count: int = 1) -> int:
    """A TCP port of this machine that nothing listens on, nor on the `count` - 1 after it."""
    while True:
        with contextlib.ExitStack() as held:
            first = 0
            try:
                for number in range(count):
                    found = held.enter_context(socket.socket())
                    found.bind(("127.0.0.1", first + number if first else 0))
                    first = first or found.getsockname()[1]
            except (OSError, OverflowError):  # one of them is taken
                continue
            return first


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for process in found:
        found += children.get(process, ())
    return found


def resident_mb(processes: Sequence[int]) -> float:
    """Memory of processes in units of 10**6 bytes, what they share counted once; 0 for those that are gone."""
    total = 0
    for process in processes:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1e6


def cpu_seconds(processes: Sequence[int]) -> float:
    """Processor time of processes that are alive."""
    ticks = 0
    for process in processes:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def files(process: int) -> int:
    """Open files and connections of a process."""
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


class Server:
    """A server under test.

    Attributes:
        port: where it listens on 127.0.0.1.
        process: its first process.
        log: file that holds what it printed.
    """

    def __init__(self, process: subprocess.Popen, port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log

    @property
    def processes(self) -> list[int]:
        return tree(self.process.pid)

    @property
    def workers(self) -> list[int]:
        """Its processes that compute."""
        found = []
        for process in self.processes:
            with contextlib.suppress(OSError):
                if b"serve.worker" in Path(f"/proc/{process}/cmdline").read_bytes():
                    found.append(process)
        return found

    def printed(self, characters: int = 2000) -> str:
        """The end of what it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-characters:]

    def get(self, path: str, *, timeout: float = 10.0) -> tuple[int, bytes]:
        """Status and body of a GET."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=timeout) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def wait_ready(self, path: str, seconds: float) -> None:
        """Return once `path` is answered with 200.

        Raises:
            NotStarted: the process ended, or the time is over.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError):
                if self.get(path, timeout=2)[0] == 200:
                    return
            time.sleep(0.05)
        state = f"ended with {self.process.returncode}" if self.process.poll() is not None else "is not ready"
        raise NotStarted(f"{state} after {seconds:g} s at most; it printed: {self.printed()}")

    def stop(self, grace: float = 15.0) -> None:
        """End it and everything it started."""
        processes = self.processes
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(grace)
        for process in reversed([*processes, *self.processes][1:]):
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(process) == self.process.pid or process in processes:
                    os.kill(process, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def serving(
    command: Sequence[object],
    port: int,
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    ready: str = "/v2/health/ready",
    seconds: float = 60.0,
) -> Iterator[Server]:
    """Start a server, wait until it is ready, and stop it at the end.

    Args:
        command: program and arguments.
        port: where it will listen.
        log: file for what it prints.
        environment: variables beside those of this process.
        folder: where it is started.
        ready: path that answers 200 once it is ready.
        seconds: most time until then.

    Raises:
        NotStarted: it did not become ready.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    server = Server(process, port, log)
    try:
        server.wait_ready(ready, seconds)
        yield server
    finally:
        server.stop()
