"""One request through a WSGI app: what it is told, and its answer as it goes onto the wire. Knows no connection."""

import io
import sys
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote_to_bytes

import httptools

from serve.errors import RequestError
from serve.heads import STATUS_LINES, lines
from serve.packing import accepts_gzip, pack

WORTH_PACKING = 1024  # bytes of an answer from which it is packed; the app's threads have more time than the event loop
PACKABLE = ("application/json", "application/openapi", "application/javascript", "image/svg", "text/")


def origin_form(url: bytes) -> bytes:
    """The path and query of a request's URL, which may name a host too.

    Raises:
        RequestError: 400, the URL cannot be read.
    """
    if url.startswith(b"/") or url == b"*":
        return url
    try:
        parsed = httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        raise RequestError("bad_http", "the URL cannot be read; ask for a path such as /v2", 400) from None
    return (parsed.path or b"/") + (b"?" + parsed.query if parsed.query else b"")


def environ_of(
    method: str,
    url: bytes,
    headers: dict[str, str],
    body: bytes,
    *,
    request_id: str,
    peer: str,
    here: tuple[Any, ...],
    old: bool,
) -> dict[str, Any]:
    """A request as the app reads it.

    Args:
        method: such as "GET".
        url: path and query, see `origin_form`.
        headers: by name in lower case.
        body: the request's, whole.
        request_id: takes the place of the client's own.
        peer: the client's address.
        here: host and port of this end.
        old: whether it is HTTP/1.0.
    """
    raw, _, query = url.partition(b"?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(raw).decode("latin-1"),
        "QUERY_STRING": query.decode("latin-1"),
        "REQUEST_URI": url.decode("latin-1"),
        "CONTENT_LENGTH": str(len(body)),
        "SERVER_PROTOCOL": "HTTP/1.0" if old else "HTTP/1.1",
        "SERVER_NAME": str(here[0]),
        "SERVER_PORT": str(here[1]),
        "REMOTE_ADDR": peer,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in headers.items():
        if "_" not in name:  # X_Request_Id would pass for X-Request-Id
            environ["HTTP_" + name.upper().replace("-", "_")] = value
    environ["HTTP_X_REQUEST_ID"] = request_id
    for name in ("HTTP_CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING"):
        environ.pop(name, None)
    if "HTTP_CONTENT_TYPE" in environ:
        environ["CONTENT_TYPE"] = environ.pop("HTTP_CONTENT_TYPE")
    return environ


def call(
    app: Callable[..., Iterable[bytes]], environ: dict[str, Any], accept: str | None
) -> tuple[bytes, bytes, bytes]:
    """Ask the app.

    Args:
        app: any WSGI app.
        environ: what `environ_of` gave.
        accept: the header Accept-Encoding, None without.

    Returns:
        Status line, header lines but for the date, and body; packed where that is worth it.

    Raises:
        Exception: whatever the app raises.
    """
    told: list[Any] = []
    written: list[bytes] = []

    def start_response(status: str, headers: list[tuple[str, str]], problem: Any = None) -> Callable[[bytes], None]:
        told[:] = [status, headers]
        return written.append

    found = app(environ, start_response)
    try:
        written.extend(found)
    finally:
        if hasattr(found, "close"):
            found.close()
    status, headers = told
    return _answer(status, headers, b"".join(written), environ["REQUEST_METHOD"], accept)


def _answer(
    status: str, headers: list[tuple[str, str]], body: bytes, method: str, accept: str | None
) -> tuple[bytes, bytes, bytes]:
    """Status line, header lines and body of what the app answered, packed where that is worth it."""
    code = int(status[:3])
    bodiless = method == "HEAD" or code in {204, 304}
    kept = [(name, value) for name, value in headers if name.lower() not in {"connection", "date", "transfer-encoding"}]
    if not bodiless:
        kept = [(name, value) for name, value in kept if name.lower() != "content-length"]
        lower = {name.lower(): value for name, value in kept}
        if lower.get("content-type", "").startswith(PACKABLE) and "content-encoding" not in lower:
            kept.append(("Vary", "Accept-Encoding"))
            if code == 200 and len(body) >= WORTH_PACKING and accepts_gzip(accept):
                body = pack(body)
                kept.append(("Content-Encoding", "gzip"))
                # the packed form is another one, which a strong tag must not claim to be the same
                kept = [(n, f"W/{v}" if n.lower() == "etag" and not v.startswith("W/") else v) for n, v in kept]
        kept.append(("Content-Length", str(len(body))))
    line = STATUS_LINES.get(code) or f"HTTP/1.1 {status}\r\n".encode("latin-1")
    return line, lines(kept), b"" if bodiless else body
