"""The heads of requests and answers as text: status lines, header lines, and headers that hold numbers."""

import math
import re
import time
from collections.abc import Iterable
from http import HTTPStatus

from serve.errors import RequestError

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
LONGEST_WAIT = 3600.0  # seconds a client may ask for with X-Request-Timeout
STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}


def lines(headers: Iterable[tuple[str, str]]) -> bytes:
    """Headers as they are sent."""
    return "".join(f"{name}: {value}\r\n" for name, value in headers).encode("latin-1")


def seconds_of(text: str) -> float:
    """Seconds that a client gives its request, at most `LONGEST_WAIT`.

    Raises:
        RequestError: 400, it is no number above 0.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        message = f"X-Request-Timeout must be a number of seconds above 0, got {text[:40]!r}"
        raise RequestError("bad_header", message, 400)
    return min(seconds, LONGEST_WAIT)


def deadline_of(text: str | None) -> float | None:
    """`time.monotonic()` seconds when a client wants its answer; None if it does not say.

    Raises:
        RequestError: 400, it is no number above 0.
    """
    return None if text is None else time.monotonic() + seconds_of(text)


def length_of(text: str, size: int) -> int:
    """Bytes of JSON before binary tensors, in a body of so many bytes.

    Raises:
        RequestError: 400, it is no whole number in 0 … size.
    """
    if not (text.isascii() and text.isdigit() and int(text[:18]) <= size):
        message = f"Inference-Header-Content-Length must be 0 … {size}, the body's length, got {text[:40]!r}"
        raise RequestError("bad_header", message, 400)
    return int(text[:18])
