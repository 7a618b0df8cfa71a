"""Log lines on their way to a file that may be slow, as JSON."""

import logging
import os
import select
import threading
import time
from collections import deque

import msgspec


class Lines:
    """Lines on their way to a file that may be slow or gone; whoever writes one never waits.

    Attributes:
        dropped: lines given up, because too many were waiting or the file took no more.
    """

    def __init__(self, file: int, *, limit: int = 20_000, pause: float = 0.05) -> None:
        """Start the thread that writes.

        Args:
            file: descriptor, such as `sys.stderr.fileno()`.
            limit: lines that may wait.
            pause: seconds over which lines are gathered into one write.
        """
        self.dropped = 0
        self._file, self._limit, self._pause = file, limit, pause
        self._waiting: deque[bytes] = deque()
        self._lock = threading.Lock()  # of `dropped`, which both sides count
        self._arrived = threading.Event()
        self._asleep = True
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Queue one line, without its end."""
        if len(self._waiting) >= self._limit:
            with self._lock:
                self.dropped += 1
            return
        self._waiting.append(line)
        if self._asleep:
            self._asleep = False
            self._arrived.set()

    def close(self, timeout: float = 1.0) -> None:
        """Write what is waiting, for at most `timeout` seconds, and stop."""
        self._closing = True
        self._arrived.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            self._arrived.wait()
            self._arrived.clear()
            if not self._closing:
                time.sleep(self._pause)
            self._asleep = True  # before the queue is emptied, so that no line is forgotten
            held = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if held and not self._put(b"\n".join([*held, b""])):
                with self._lock:
                    self.dropped += len(held)
            if self._closing and not self._waiting:
                return

    def _put(self, data: bytes) -> bool:
        """Write all of it; False when the file takes no more."""
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._file, left) :]
            except BlockingIOError:
                if self._closing:
                    return False
                select.select((), (self._file,), (), 1.0)
            except OSError:
                return False
        return True


class LinesHandler(logging.Handler):
    """Log records as JSON lines beside the access log's."""

    def __init__(self, lines: Lines) -> None:
        super().__init__(logging.WARNING)
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record's line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{stamp}.{int(record.msecs):03d}+00:00",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            entry["error"] = record.exc_info[0].__name__  # its message may quote what a client sent
        self.lines.write(msgspec.json.encode(entry))
