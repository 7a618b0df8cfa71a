"""HTTP on one socket: requests as they arrive, the short way of an inference to the fleet, the app for everything else.

One thread runs the event loop and owns every connection; `httptools` parses. A connection answers its requests one
after the other, in the order they came. Nothing is decoded before its size is known to be within the limits.
"""

import asyncio
import logging
import math
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast
from urllib.parse import unquote_to_bytes

import httptools
import msgspec

from serve import wsgi
from serve.continuations import EVENTS, addressed, failure, refusal
from serve.errors import RequestError, told_as_text
from serve.fleet import Answer, Call
from serve.guard import ADMITTED, asked
from serve.heads import REQUEST_ID, STATUS_LINES, length_of, lines, seconds_of
from serve.http import BUSY, Front, Inference
from serve.monitor import code_of
from serve.packing import accepts_gzip, pack, unpack

log = logging.getLogger("serve")

PACKED = frozenset(("gzip", "x-gzip", "deflate"))
SMALL_BODY = 4096  # compressed bytes that the event loop unpacks itself: at most 4 MB come out, within milliseconds
WORTH_PACKING = 4096  # bytes of an answer from which gzip saves more time on a network than it takes here
SMALL_ANSWER = 65536  # bytes that the event loop packs itself
FIRST_PROBE = 0.05  # seconds after a client has sent its last byte until the first look whether it still listens
LONG_BODY = 65536  # bytes from which on the guard is asked before the body is read
CLOSE = b"Connection: close\r\n"
NEVER = math.inf


class _Refused(Exception):
    """Ends the parsing of a request; the connection holds the reason."""


# scope, model and identity that the guard admitted; why it did not; None if it was not asked yet
Verdict = tuple[str | None, str, str] | RequestError | None
# method, URL, headers, body, keep open, HTTP/1.0, what the guard said before the body came
Request = tuple[str, bytes, dict[str, str], bytes, bool, bool, Verdict]


class Connection(asyncio.Protocol):
    """One client's connection.

    Bytes arrive in `data_received`, which feeds the parser; a complete request goes to `_waiting`; `_advance` begins
    one at a time; its answer arrives in `_answered` (inference) or `_app_answered`, is written, and the next one
    begins.
    """

    __slots__ = (
        "_accept", "_body", "_busy", "_call", "_closing", "_discarding", "_eof", "_expecting", "_head", "_headers",
        "_held", "_keep", "_large", "_last", "_method", "_model", "_old", "_origin", "_parser", "_partial", "_paused",
        "_peer", "_probe", "_received", "_refusal", "_request_id", "_route", "_sent", "_size", "_started", "_streaming",
        "_trace", "_transport", "_undelivered", "_url", "_verdict", "_waiting", "_writable", "expires", "front",
    )  # fmt: skip

    def __init__(self, front: Front) -> None:
        self.front = front
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[Request | RequestError] = deque()
        self._peer = ""
        self.expires = NEVER
        # the message that is arriving
        self._url, self._size = b"", 0
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._partial = False  # a message has begun and is not complete
        self._head = False  # and its headers are not complete
        self._expecting = False  # and its client waits for "100 Continue"
        self._undelivered = 0  # bytes received since something was last handed on
        self._large = False  # the parser has been given more at once than a head may hold
        self._last = False  # nothing after this message is read
        self._verdict: Verdict = None
        self._refusal: Request | RequestError | None = None
        # the request that is being answered
        self._busy = False
        self._call: Call | None = None
        self._held = 0  # bytes of its body
        self._keep, self._old = True, False
        self._streaming = False  # its head and a part of its body are out
        self._sent = 0  # bytes of that part
        # the connection
        self._eof = self._paused = self._closing = self._discarding = False
        self._writable = True
        self._probe: asyncio.TimerHandle | None = None

    # what the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        front = self.front
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has another base
        self._peer = (transport.get_extra_info("peername") or ("",))[0]
        front.connections.add(self)
        self.expires = front.now + front.limits.idle_seconds  # pools open connections before they need them
        if len(front.connections) > front.limits.connections:
            if len(front.connections) > front.limits.connections + 100:  # nor is there room for refusals
                self.abort()
                return
            message = f"{front.limits.connections} connections are open already; try again in a moment"
            self._refuse_http(RequestError("overloaded", message, 503, dict(BUSY)))

    def connection_lost(self, error: Exception | None) -> None:
        front = self.front
        self._transport = None
        self.expires = NEVER
        if self._call is not None:
            self._call.cancelled = True
            self._count(499, self._sent)
        front.buffered -= self._size + self._held
        for waiting in self._waiting:
            front.buffered -= len(waiting[3]) if isinstance(waiting, tuple) else 0
        self._waiting.clear()
        self._size = self._held = 0
        if self._probe is not None:
            self._probe.cancel()
        front.forget(self)

    def data_received(self, data: bytes) -> None:
        if self._discarding or self._last:
            return
        size = len(data)
        self._undelivered += size
        self._large = size > self.front.limits.head
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # answered in HTTP/1.1, as an upgrade may be
            self._last = True
        except httptools.HttpParserCallbackError as error:
            if self._refusal is None:
                raise RuntimeError("the front failed on a message") from error.__context__
            self._waiting.append(self._refusal)
            self._last = True
        except httptools.HttpParserError as error:
            if not self._last:  # data after "Connection: close" is no request
                message = f"this is not HTTP/1.1 as the server reads it: {error}"
                self._waiting.append(RequestError("bad_http", message, 400))
                self._last = True
        else:
            if self._undelivered > self.front.limits.head and not self._last:
                self._waiting.append(self._too_long())
                self._last = True
        if self._waiting and not self._busy:
            self._advance()
        elif self._expecting and not self._busy:
            self._continue()
        if len(self._waiting) > self.front.limits.pipelined and not self._paused:
            self._pause()

    def eof_received(self) -> bool:
        """A client that sends no more may still read: its answer is sent, unless it turns out to be gone."""
        self._eof = True
        if self._discarding or not (self._busy or self._waiting):
            return False
        if not self._old:
            self._probe = self.front.loop.call_later(FIRST_PROBE, self._look, FIRST_PROBE)
        return True

    def pause_writing(self) -> None:
        self._writable = False
        self.expires = self.front.now + self.front.limits.write_seconds

    def resume_writing(self) -> None:
        self._writable = True
        self._rest()
        if self._waiting and not self._busy:
            self._advance()

    def _look(self, seconds: float) -> None:
        """Send an interim answer, which a client that is gone refuses: its requests are then dropped."""
        if self._transport is not None and self._busy and not self._streaming:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            seconds = min(2 * seconds, 1.0)
            self._probe = self.front.loop.call_later(seconds, self._look, seconds)

    # what the parser tells

    def on_message_begin(self) -> None:
        self._url, self._headers, self._body, self._size, self._verdict = b"", {}, [], 0, None
        self._partial = self._head = True
        if not self._busy:
            self.expires = self.front.now + self.front.limits.head_seconds

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head:  # a trailer
            return
        key = self.front.header_name(name)
        headers = self._headers
        if key not in headers:
            headers[key] = value.decode("latin-1")
            return
        if key == "host":
            raise self._refuse(RequestError("bad_http", "the header Host is given twice; give it once", 400))
        headers[key] += ("; " if key == "cookie" else ", ") + value.decode("latin-1")

    def on_headers_complete(self) -> None:
        limits, headers = self.front.limits, self._headers
        if len(self._url) > limits.url or len(headers) > limits.headers:
            raise self._refuse(self._too_long())
        if self._large or self._undelivered > limits.head:  # it may also have been a body, or other requests
            size = len(self._url) + sum(len(name) + len(value) + 4 for name, value in headers.items())
            if size > limits.head:
                raise self._refuse(self._too_long())
        self._head = False
        self._undelivered = 0
        length = headers.get("content-length")
        if length is not None and int(length) > limits.body:
            raise self._refuse(self._too_large())
        encoding = headers.get("transfer-encoding")
        if encoding is not None and encoding.lower() != "chunked":
            message = f"transfer encoding {encoding[:40]!r} is not read; send chunked, or a Content-Length"
            raise self._refuse(RequestError("unsupported_http", message, 501))
        if "host" not in headers and self._parser.get_http_version() != "1.0":
            raise self._refuse(RequestError("bad_http", "the header Host is missing; HTTP/1.1 needs it", 400))
        expected = headers.get("expect")
        if expected is not None:
            if expected.lower() != "100-continue":
                message = f"Expect: {expected[:40]!r} cannot be met; send 100-continue or leave it out"
                raise self._refuse(RequestError("unsupported_http", message, 417))
            self._expecting = self._parser.get_http_version() != "1.0"
        if self.front.guard is not None and (encoding or expected or int(length or 0) > LONG_BODY):
            self._ask_ahead()
        if not self._busy:
            self.expires = self.front.now + limits.body_seconds

    def _ask_ahead(self) -> None:
        """Ask the guard before a body that is or may be long is read; a refusal is answered and ends the connection."""
        front, method = self.front, self._parser.get_method().decode("latin-1")
        inference = front.inference(self._url) if method == "POST" else None
        path = unquote_to_bytes(self._url.partition(b"?")[0]).decode("utf-8", "replace")
        scope, model = ("predict", inference[0]) if inference is not None else asked(path)
        if scope is None or method == "OPTIONS":
            return
        try:
            self._verdict = (scope, model, front.guard.admit(self._headers, scope, self._peer, model))
        except RequestError as error:
            old = self._parser.get_http_version() == "1.0"
            self._refusal = (method, self._url, self._headers, b"", False, old, error)
            raise _Refused from None

    def on_body(self, body: bytes) -> None:
        front, size = self.front, len(body)
        self._body.append(body)
        self._size += size
        self._undelivered = 0
        self._expecting = False
        front.buffered += size
        if self._size > front.limits.body:
            raise self._refuse(self._too_large())
        if front.buffered > front.limits.buffered:
            message = "the server holds too many bodies at the moment; try again soon"
            raise self._refuse(RequestError("overloaded", message, 503, dict(BUSY)))
        if not self._busy:
            self.expires = min(self.expires + size / front.limits.pace, front.now + front.limits.body_seconds)

    def on_message_complete(self) -> None:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        parser = self._parser
        keep = parser.should_keep_alive()
        old = parser.get_http_version() == "1.0"
        method = parser.get_method().decode("latin-1")
        self._waiting.append((method, self._url, self._headers, body, keep, old, self._verdict))
        self._partial = self._expecting = False
        self._body, self._size, self._undelivered = [], 0, 0
        self._last = not keep

    def _refuse(self, error: RequestError) -> _Refused:
        self._refusal = error
        return _Refused()

    def _too_long(self) -> RequestError:
        limits = self.front.limits
        if len(self._url) > limits.url:
            return RequestError("url_too_long", f"an URL may have {limits.url} bytes; shorten it", 414)
        message = f"the headers may have {limits.head} bytes in {limits.headers} lines; send fewer"
        return RequestError("headers_too_large", message, 431)

    def _too_large(self) -> RequestError:
        message = f"the body is larger than {self.front.limits.body} bytes; send less at a time"
        return RequestError("too_large", message, 413)

    # one request after the other

    def _advance(self) -> None:
        """Begin the requests that wait, one at a time."""
        while self._waiting and not self._busy and self._writable and not self._closing:
            waiting = self._waiting.popleft()
            if isinstance(waiting, RequestError):
                self._refuse_http(waiting)
                return
            self._busy = True
            self.expires = NEVER
            self._begin(*waiting)
        if self._paused and len(self._waiting) <= self.front.limits.pipelined // 2:
            self._unpause()
        if self._expecting and not self._busy and not self._closing:
            self._continue()

    def _begin(
        self, method: str, url: bytes, headers: dict[str, str], body: bytes, keep: bool, old: bool, verdict: Verdict
    ) -> None:
        front = self.front
        self._started = time.perf_counter()
        self._held = self._received = len(body)
        self._method, self._keep, self._old = method, keep, old
        self._accept = headers.get("accept-encoding")
        self._origin = headers.get("origin")
        self._model, self._route = "", "unknown"
        self._trace = headers.get("traceparent", "")
        sent = headers.get("x-request-id")
        self._request_id = sent if sent is not None and REQUEST_ID.fullmatch(sent) else front.request_id()
        self._try(url, self._dispatch, url, headers, body, verdict)

    def _try(self, url: bytes, step: Callable[..., None], *arguments: Any) -> None:
        """Go one step on the way to an answer; whatever goes wrong is the answer."""
        try:
            step(*arguments)
        except RequestError as error:
            self._send_error(error, url)
        except Exception as error:
            self._log_failure(error)
            self._send_error(self._failed(), url)

    def _dispatch(self, url: bytes, headers: dict[str, str], body: bytes, verdict: Verdict) -> None:
        if self._method == "POST":
            inference = self.front.inference(url)
            if inference is not None:
                self._infer(inference, url, headers, body, verdict)
                return
        elif self._method == "GET" and url.startswith(b"/v2/health/"):
            if url == b"/v2/health/live":
                self._health("live", True)
                return
            if url == b"/v2/health/ready":
                self._health("ready", self.front.fleet.ready)
                return
        if isinstance(verdict, RequestError):
            raise verdict
        self._ask_app(url, headers, body, verdict)

    def _health(self, key: str, well: bool) -> None:
        """Health without a thread, so that probes are answered under any load."""
        self._route = f"/v2/health/{key}"
        self._send(200 if well else 503, msgspec.json.encode({key: well}))

    def _infer(self, inference: Inference, url: bytes, headers: dict[str, str], body: bytes, verdict: Verdict) -> None:
        """Admit an inference, unpack its body if it is packed, and submit it."""
        front = self.front
        model, _, _, self._route = inference
        if isinstance(verdict, RequestError):
            raise verdict
        if front.guard is not None and verdict is None:
            front.guard.admit(headers, "predict", self._peer, model)
        encoding = headers.get("content-encoding")
        if encoding is None or encoding.lower() == "identity":
            self._submit(inference, headers, body)
        elif encoding.lower() not in PACKED:
            message = f"bodies packed with {encoding[:40]!r} are not read; use gzip or deflate, or send it as it is"
            raise RequestError("unsupported_media", message, 415, {"Accept-Encoding": "gzip, deflate"})
        elif len(body) <= SMALL_BODY:
            self._submit(inference, headers, unpack(body, front.limits.body))
        else:
            front.aside(partial(self._unpack, inference, url, headers, body))

    def _unpack(self, inference: Inference, url: bytes, headers: dict[str, str], body: bytes) -> None:
        """In a thread: unpack a large body."""
        if self._transport is None:
            return

        def submit() -> None:
            if refusal is not None:
                raise refusal
            self._submit(inference, headers, unpacked)

        refusal, unpacked = None, b""
        try:
            unpacked = unpack(body, self.front.limits.body)
        except RequestError as error:
            refusal = error
        self._later(self._try, url, submit)

    def _submit(self, inference: Inference, headers: dict[str, str], body: bytes) -> None:
        """Hand an inference to the fleet.

        Raises:
            RequestError: the model is unknown, a header cannot be used, or the queue is full.
        """
        if self._transport is None:  # the client left while its body was unpacked
            return
        front = self.front
        name, version, protocol, _ = inference
        stream = protocol == "generate_stream"
        if protocol == "completions":
            name, stream = addressed(body)
            if front.guard is not None:
                front.guard.check_model(headers, name)
        seconds = front.limits.request_seconds
        if "x-request-timeout" in headers:
            seconds = seconds_of(headers["x-request-timeout"])
        length = None
        if "inference-header-content-length" in headers:
            length = length_of(headers["inference-header-content-length"], len(body))
        # not the identity: one API key may stand for all users of a product, who would then all get one version
        chosen, shadow = front.fleet.resolve(name, version, headers.get("x-traffic-key") or None)
        self._model = name
        call = Call(name, chosen, body, length, protocol, time.monotonic() + seconds, self._answered)
        call.chosen = version is None
        if stream:
            call.said = self._said
        self._call = call
        front.fleet.submit(call, shadow)

    def _said(self, body: bytes) -> None:
        """Write what a stream says, behind its head if it is the first."""
        transport = self._transport
        if transport is None:
            return
        if not self._streaming:
            self._open_stream(transport)
        self._sent += len(body)
        transport.write(body if self._old else b"%x\r\n%b\r\n" % (len(body), body))
        if transport.get_write_buffer_size() > self.front.limits.unread:
            log.warning("request %s is ended: its client reads too slowly", self._request_id)
            self.abort()

    def _open_stream(self, transport: asyncio.Transport) -> None:
        front = self.front
        self._streaming = True
        self._keep = self._keeps() and not self._old
        form = b"" if self._old else b"Transfer-Encoding: chunked\r\n"
        transport.write(
            b"%b%bContent-Type: %b\r\nX-Accel-Buffering: no\r\n%b%b%bX-Request-Id: %b\r\n\r\n"
            % (
                STATUS_LINES[200],
                front.date,
                EVENTS.encode(),
                front.policy(self._origin),
                form,
                b"" if self._keep else CLOSE,
                self._request_id.encode(),
            )
        )

    def _end_stream(self, call: Call, answer: Answer) -> None:
        """Write the last events of a stream, and go on to the next request or close."""
        transport = self._transport
        assert transport is not None
        good = answer.status == 200
        self._said(answer.body if good else failure(answer.body, call.protocol))
        if transport.is_closing():
            return
        self._call = None
        if not self._old:
            transport.write(b"0\r\n\r\n")
        # it began well and is told so; the code says how it ended
        self._count(200, self._sent, answer.version or call.version, b"" if good else answer.body)
        self._streaming, self._sent = False, 0
        self._release(self._keeps())

    def _answered(self, answer: Answer) -> None:
        """Write an inference's answer."""
        if self._transport is None:
            return
        front, call, body = self.front, self._call, answer.body
        assert call is not None
        if self._streaming or (call.said is not None and answer.status == 200):
            self._end_stream(call, answer)
            return
        self._call = None
        if answer.status != 200:
            body = answer.body = refusal(body, call.protocol)
        if len(body) >= WORTH_PACKING and answer.header_length is None and accepts_gzip(self._accept):
            if len(body) <= SMALL_ANSWER:
                self._write_inference(call, answer, pack(body), True)
                return
            with suppress(RequestError):  # no thread is free: it goes as it is
                front.aside(partial(self._pack, call, answer))
                return
        self._write_inference(call, answer, body, False)

    def _pack(self, call: Call, answer: Answer) -> None:
        """In a thread: compress a large answer."""
        packed = pack(answer.body)
        self._later(self._write_inference, call, answer, packed, True)

    def _write_inference(self, call: Call, answer: Answer, body: bytes, packed: bool) -> None:
        if self._transport is None:
            return
        front = self.front
        more = b"Content-Encoding: gzip\r\nVary: Accept-Encoding\r\n" if packed else b""
        if answer.headers:
            more += lines(answer.headers.items())
        if answer.header_length is not None:
            kind = b"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: %d\r\n"
            head = STATUS_LINES[answer.status] + front.date + kind % answer.header_length
        elif answer.status == 200:
            head = front.fine
        else:
            head = b"%b%bContent-Type: application/json\r\n" % (STATUS_LINES[answer.status], front.date)
        self._count(answer.status, len(body), answer.version or call.version, answer.body)
        self._write(
            b"%b%b%bX-Request-Id: %b\r\nContent-Length: %d\r\n"
            % (head, front.policy(self._origin), more, self._request_id.encode(), len(body)),
            body,
        )

    def _count(self, status: int, sent: int, version: str = "", body: bytes = b"") -> None:
        self.front.monitor.answered(
            model=self._model,
            version=version,
            route=self._route,
            status=status,
            seconds=time.perf_counter() - self._started,
            code=code_of(body) if body and (status >= 400 or self._streaming) else "",
            traceparent=self._trace,
            request_id=self._request_id,
            method=self._method,
            received=self._received,
            sent=sent,
        )

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Write one of the front's own answers."""
        front = self.front
        head = b"%b%bContent-Type: application/json\r\n%b%bX-Request-Id: %b\r\nContent-Length: %d\r\n" % (
            STATUS_LINES[status],
            front.date,
            front.policy(self._origin),
            lines((headers or {}).items()),
            self._request_id.encode(),
            len(body),
        )
        self._count(status, len(body), body=body)
        self._write(head, b"" if self._method == "HEAD" else body)

    def _send_error(self, error: RequestError, url: bytes) -> None:
        self._call = None
        self._send(error.status, error_body(error, url), error.headers)

    def _log_failure(self, error: Exception) -> None:
        """Type and place; the message may quote what the client sent."""
        place = "".join(traceback.format_tb(error.__traceback__))
        log.error("request %s failed with %s at\n%s", self._request_id, type(error).__name__, place)

    def _failed(self) -> RequestError:
        message = f"the server failed on this request; its log has the reason under request id {self._request_id}"
        return RequestError("internal", message, 500)

    def _refuse_http(self, error: RequestError) -> None:
        """Answer what is not a complete request, and read no further."""
        self._started = time.perf_counter()
        self._method, self._model, self._route, self._origin, self._trace = "", "", "http", None, ""
        self._request_id, self._received = self.front.request_id(), self._size
        self.front.buffered -= self._size
        self._body, self._size = [], 0
        self._last, self._busy, self._keep, self._old = True, True, False, False
        self._send_error(error, self._url)

    def _write(self, head: bytes, body: bytes) -> None:
        """Send an answer, and go on to the next request or close."""
        transport = self._transport
        assert transport is not None
        keep = self._keeps()
        if not keep:
            head += CLOSE
        elif self._old:
            head += b"Connection: keep-alive\r\n"
        if len(body) > SMALL_ANSWER:
            transport.writelines((head + b"\r\n", body))
        else:
            transport.write(b"%b\r\n%b" % (head, body))
        self._release(keep)

    def _keeps(self) -> bool:
        """Whether the connection stays open behind the answer under way."""
        return self._keep and (bool(self._waiting) or not (self._eof or self._last or self.front.draining))

    def _release(self, keep: bool) -> None:
        """An answer is written: go on to the next request, or close."""
        front = self.front
        front.buffered -= self._held
        self._held = 0
        self._busy = False
        if not keep:
            self._shut()
            return
        self._rest()
        if self._waiting or self._expecting:
            front.loop.call_soon(self._advance)  # not from here: answers may come at once, however many are waiting

    def _rest(self) -> None:
        """Set the time limit of a connection that has nothing to answer."""
        limits, now = self.front.limits, self.front.now
        if not self._writable or self._closing:
            self.expires = now + limits.write_seconds
        elif self._busy:
            self.expires = NEVER
        elif self._partial:
            self.expires = now + (limits.head_seconds if self._head else limits.body_seconds)
        else:
            self.expires = now + limits.idle_seconds

    def _close(self) -> None:
        """Close once everything is sent."""
        assert self._transport is not None
        self._closing = True
        self.expires = self.front.now + self.front.limits.write_seconds
        self._transport.close()

    def _shut(self) -> None:
        """End the answers, and close when the client does or after a while.

        Closing at once would, if the client is still sending, take from it the answer that it has not read yet.
        """
        transport = self._transport
        assert transport is not None
        if self._eof or not transport.can_write_eof():
            self._close()
            return
        self._closing = self._discarding = True
        self.expires = self.front.now + self.front.limits.linger_seconds
        transport.write_eof()

    def _pause(self) -> None:
        if self._transport is not None and not self._closing:
            self._paused = True
            self._transport.pause_reading()

    def _unpause(self) -> None:
        if self._transport is not None and not self._closing:
            self._paused = False
            self._transport.resume_reading()

    def _continue(self) -> None:
        self._expecting = False
        assert self._transport is not None
        self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # ends

    def expire(self) -> None:
        """The time limit is over."""
        if self._transport is None:
            return
        if self._closing or not self._writable or self._transport.get_write_buffer_size():
            self.abort()
        elif self._partial and not self._busy:
            what = "headers" if self._head else "body"
            message = f"the {what} came too slowly; send them again, faster"
            self._refuse_http(RequestError("request_timeout", message, 408))
        elif not self._busy:
            self._close()

    def retire(self) -> None:
        """The server is stopping: close soon if nothing is under way, after the answer otherwise.

        A request that is on its way to an idle connection at this moment would be lost if it were closed now.
        """
        if not (self._busy or self._partial or self._waiting or self._closing):
            self.expires = min(self.expires, time.monotonic() + self.front.limits.retire_seconds)

    def abort(self) -> None:
        """End at once."""
        if self._transport is not None:
            self._transport.abort()

    # everything else

    def _later(self, function: Callable[..., None], *arguments: Any) -> None:
        """From a thread: call in the loop's thread."""
        with suppress(RuntimeError):  # the loop is closed: the server has stopped
            self.front.loop.call_soon_threadsafe(function, *arguments)

    def _ask_app(
        self, url: bytes, headers: dict[str, str], body: bytes, admitted: tuple[str | None, str, str] | None
    ) -> None:
        """Call the WSGI app in a thread.

        Raises:
            RequestError: 503, too many requests are waiting for a thread; 400, the URL cannot be read.
        """
        assert self._transport is not None
        url = wsgi.origin_form(url)
        environ = wsgi.environ_of(
            self._method,
            url,
            headers,
            body,
            request_id=self._request_id,
            peer=self._peer,
            here=self._transport.get_extra_info("sockname") or ("", 0),
            old=self._old,
        )
        if admitted is not None:
            environ[ADMITTED] = admitted
        self.front.work(environ["PATH_INFO"], partial(self._call_app, environ, url))

    def _call_app(self, environ: dict[str, Any], url: bytes) -> None:
        """In a thread: one request through the app."""
        if self._transport is None:  # the client left while it waited
            return
        try:
            answer = wsgi.call(self.front.app, environ, self._accept)
        except Exception as error:
            self._log_failure(error)
            self._later(self._app_failed, url)
        else:
            self._later(self._app_answered, *answer)

    def _app_answered(self, status: bytes, head: bytes, body: bytes) -> None:
        if self._transport is not None:
            self._write(status + self.front.date + head, body)

    def _app_failed(self, url: bytes) -> None:
        if self._transport is not None:
            self._send_error(self._failed(), url)


def error_body(error: RequestError, url: bytes) -> bytes:
    """An error in the form that clients of the path read."""
    if told_as_text(url.decode("latin-1")):
        return error.body
    return msgspec.json.encode({"error": {"code": error.code, "message": error.message}})
