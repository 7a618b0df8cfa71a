"""The front on real sockets, with a fleet whose answers the test decides."""

import asyncio
import gzip
import json
import random
import re
import resource
import select
import socket
import struct
import threading
import time
import zlib
from contextlib import contextmanager, suppress
from functools import partial

import pytest
from waiting import until

from serve.connections import Connection
from serve.errors import RequestError
from serve.fleet import Answer
from serve.host import event_loop
from serve.http import Front, Limits
from serve.packing import accepts_gzip, unpack

SECRET = "what the client sent"
SHORT = 10  # seconds after which a test that waits has failed


class Fleet:
    """Answers at once with what it was asked; calls to "slow" wait for the test, others misbehave by name."""

    def __init__(self):
        self.calls = []
        self.held = threading.Event()
        self.ready = True
        self.models = {"echo": {}}
        self.shadow = None

    def resolve(self, name, version, key):
        if name == "nobody":
            raise RequestError("unknown_model", "no model is called 'nobody' (1 served).", 404)
        return version or f"latest for {key}", self.shadow

    def submit(self, call, shadow=None):
        self.shadowed = shadow
        if call.model == "full":
            raise RequestError("overloaded", "the queue is full", 503, {"Retry-After": "2"})
        if call.model == "broken":
            raise ZeroDivisionError(SECRET)
        self.calls.append(call)
        self.held.set()
        if call.model != "slow":
            call.done(self.answer(call))

    def answer(self, call):
        asked = {"version": call.version, "protocol": call.protocol, "body": call.body.decode("latin-1")}
        if call.model == "large":
            asked["more"] = "x" * int(call.body)
        body = json.dumps(asked).encode()
        return Answer(200, body, call.header_length, version=call.version, rows=1)

    def wait(self, count=1):
        """The calls, once there are so many."""
        deadline = time.monotonic() + SHORT
        while len(self.calls) < count:
            assert time.monotonic() < deadline, f"{len(self.calls)} calls came, {count} were expected"
            time.sleep(0.005)
        return self.calls


class Monitor:
    def __init__(self):
        self.lines = []

    def answered(self, **line):
        self.lines.append(line)

    def codes(self):
        return [line["code"] for line in self.lines]


def app(environ, start_response):
    """Tells what it was given."""
    body = environ["wsgi.input"].read()
    if environ["PATH_INFO"] == "/fail":
        raise ZeroDivisionError(SECRET)
    if environ["PATH_INFO"] == "/unchanged":
        start_response("304 Not Modified", [("ETag", '"a"')])
        return []
    if environ["PATH_INFO"].startswith("/wait"):
        app.entered.release()
        assert app.released.wait(SHORT)
    told = {name: value for name, value in environ.items() if isinstance(value, str)} | {"body": body.decode("latin-1")}
    answer = json.dumps(told).encode()
    start_response(
        "200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer))), ("ETag", '"b"')]
    )
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer]


@pytest.fixture
def gate():
    """Lets the test hold and release the app's "/wait"."""
    app.entered, app.released = threading.Semaphore(0), threading.Event()
    yield app
    app.released.set()


class Served:
    """A front in a thread of its own."""

    def __init__(self, front, fleet, monitor, loop, port):
        self.front, self.fleet, self.monitor, self.loop, self.port = front, fleet, monitor, loop, port

    def connect(self):
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=SHORT)
        return connection

    def exchange(self, raw):
        """Send, and read until the server closes."""
        with self.connect() as connection:
            connection.sendall(raw)
            return received(connection)

    def call(self, function, *arguments):
        """Run something in the loop's thread."""

        async def there():
            return function(*arguments)

        return asyncio.run_coroutine_threadsafe(there(), self.loop).result(SHORT)

    def do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)


@contextmanager
def serving(limits=None, make_loop=event_loop, **options):
    fleet, monitor = Fleet(), Monitor()
    front = Front(fleet, app, monitor=monitor, limits=limits, **options)
    loop = make_loop()
    started: list[int] = []
    ready, stop = threading.Event(), asyncio.Event()

    async def main():
        server = await loop.create_server(partial(Connection, front), "127.0.0.1", 0, backlog=4096)
        front.start()
        started.append(server.sockets[0].getsockname()[1])
        ready.set()
        await stop.wait()
        server.close()
        front.stop()
        await asyncio.sleep(0.01)  # the ends of connections are told

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    assert ready.wait(SHORT)
    try:
        yield Served(front, fleet, monitor, loop, started[0])
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(SHORT)
        loop.close()


@pytest.fixture(params=["uvloop", "asyncio"])
def served(request):
    factory = pytest.importorskip("uvloop").new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
    with serving(make_loop=factory) as served:
        yield served


def received(connection):
    """Everything until the server closes the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def answers(found):
    """(head, body) of each of several answers."""
    split = []
    while found:
        head, _, rest = found.partition(b"\r\n\r\n")
        length = int(re.search(rb"Content-Length: (\d+)", head)[1])
        split.append((head, rest[:length]))
        found = rest[length:]
    return split


class Reader:
    """Reads answers one after another."""

    def __init__(self, connection):
        self.file = connection.makefile("rb")

    def answer(self, method="POST"):
        """(status, headers by lower-case name, body)."""
        line = self.file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers = {}
        while (header := self.file.readline()) not in (b"\r\n", b""):
            name, _, value = header.decode().partition(":")
            assert name.lower() not in headers, header
            headers[name.lower()] = value.strip()
        bodiless = method == "HEAD" or line.split()[1] in (b"100", b"204", b"304")
        return int(line.split()[1]), headers, b"" if bodiless else self.file.read(int(headers["content-length"]))


def infer(body=b"{}", model="echo", *lines, path="/v2/models/{}/infer"):
    """An inference as bytes."""
    more = "".join(f"{line}\r\n" for line in lines)
    head = f"POST {path.format(model)} HTTP/1.1\r\nHost: x\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def get(path, *lines, method="GET"):
    more = "".join(f"{line}\r\n" for line in lines)
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode()


def one(served, raw, method="POST"):
    """The answer to one request."""
    with served.connect() as connection:
        connection.sendall(raw)
        return Reader(connection).answer(method)


def test_a_connection_is_kept_for_the_next_request(served):
    with served.connect() as connection:
        reader = Reader(connection)
        for body in (b"one", b"two"):
            connection.sendall(infer(body, "echo", "X-Request-Id: mine"))
            status, headers, answer = reader.answer()
            assert status == 200 and json.loads(answer)["body"] == body.decode()
            assert headers["x-request-id"] == "mine"
            assert headers["content-type"] == "application/json"
            assert headers["x-content-type-options"] == "nosniff"
            assert "connection" not in headers and "date" in headers
    assert [line["status"] for line in served.monitor.lines] == [200, 200]
    assert served.monitor.lines[0]["route"] == "/v2/models/<model>/infer"


def test_requests_in_pieces_are_put_together(served):
    raw = infer(b'{"a": 1}', "echo", "X-Request-Id: in-pieces")
    with served.connect() as connection:
        for byte in raw:
            connection.sendall(bytes([byte]))
        status, headers, answer = Reader(connection).answer()
    assert status == 200 and json.loads(answer)["body"] == '{"a": 1}' and headers["x-request-id"] == "in-pieces"


def test_pipelined_requests_are_answered_in_order(served):
    with served.connect() as connection:
        connection.sendall(infer(b"1", "slow") + get("/first") + infer(b"2") + get("/second"))
        (call,) = served.fleet.wait(1)
        assert not select.select([connection], [], [], 0.05)[0]  # the first is not answered, so no other is
        served.call(call.done, served.fleet.answer(call))
        reader = Reader(connection)
        told = [json.loads(reader.answer()[2]) for _ in range(4)]
    assert [each.get("PATH_INFO", each["body"]) for each in told] == ["1", "/first", "2", "/second"]


def test_thousands_of_pipelined_requests_are_answered(served):
    count = 5000
    with served.connect() as connection:
        sender = threading.Thread(target=connection.sendall, args=(b"".join(infer(b"%d" % n) for n in range(count)),))
        sender.start()
        reader = Reader(connection)
        assert [json.loads(reader.answer()[2])["body"] for _ in range(count)] == [str(n) for n in range(count)]
        sender.join()


def test_large_bodies_and_answers_arrive_whole(served):
    body = random.randbytes(5_000_000)
    with served.connect() as connection:
        sender = threading.Thread(target=connection.sendall, args=(infer(body) + infer(b"5000000", "large"),))
        sender.start()
        until(lambda: len(served.fleet.calls) == 1)  # its answer waits here, and stops the front for a while
        time.sleep(0.1)
        reader = Reader(connection)
        assert json.loads(reader.answer()[2])["body"] == body.decode("latin-1")
        assert json.loads(reader.answer()[2])["more"] == "x" * 5_000_000
        sender.join()


def test_a_chunked_body_is_one_body(served):
    head = b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    raw = head + b"3\r\nabc\r\n4;note=1\r\ndefg\r\n0\r\nX-Request-Id: late\r\n\r\n"
    status, headers, answer = one(served, raw)
    assert status == 200 and json.loads(answer)["body"] == "abcdefg"
    assert headers["x-request-id"] != "late"


def test_expect_continue_is_met_before_the_body(served):
    raw = infer(b"0123456789", "echo", "Expect: 100-continue")
    with served.connect() as connection:
        connection.sendall(raw[:-10])
        reader = Reader(connection)
        assert reader.answer()[0] == 100
        connection.sendall(raw[-10:])
        assert json.loads(reader.answer()[2])["body"] == "0123456789"


def test_expect_continue_comes_after_the_answer_before(served):
    raw = infer(b"0123456789", "echo", "Expect: 100-continue")
    with served.connect() as connection:
        connection.sendall(infer(b"", "slow") + raw[:-10])
        (call,) = served.fleet.wait(1)
        assert not select.select([connection], [], [], 0.05)[0]
        served.call(call.done, served.fleet.answer(call))
        reader = Reader(connection)
        assert reader.answer()[0] == 200
        assert reader.answer()[0] == 100
        connection.sendall(raw[-10:])
        assert reader.answer()[0] == 200


CHUNKED = b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"NONSENSE\r\n\r\n", 400, "bad_http"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad_http"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "bad_http"),
        (get("/", "Host: y"), 400, "bad_http"),
        (get("/", "A: b\r\n c"), 400, "bad_http"),
        (get("/", "A : b"), 400, "bad_http"),
        (get("/", "A: b\0c"), 400, "bad_http"),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400, "bad_http"),
        (infer(b"ab", "echo", "Content-Length: 2"), 400, "bad_http"),
        (infer(b"ab", "echo", "Transfer-Encoding: chunked"), 400, "bad_http"),
        (get("/", "Content-Length: -1"), 400, "bad_http"),
        (get("/", "Content-Length: 1e3"), 400, "bad_http"),
        (get("/", "Content-Length: 99999999999999999999999"), 400, "bad_http"),
        (get("/", "Transfer-Encoding: gzip, chunked"), 501, "unsupported_http"),
        (get("/", "Expect: 200-ok"), 417, "unsupported_http"),
        (CHUNKED + b"zz\r\n", 400, "bad_http"),
        (get("/" + "x" * 9000), 414, "url_too_long"),
        (get("/", "X: " + "x" * 40_000), 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 400_000, 431, "headers_too_large"),
        (get("/", *(f"X-{n}: 1" for n in range(101))), 431, "headers_too_large"),
        (get("/", "Content-Length: 20000"), 413, "too_large"),
        (get("/", "Content-Length: 20000", "Expect: 100-continue"), 413, "too_large"),
        (CHUNKED + b"4000\r\n" + b"x" * 0x4000, 413, "too_large"),
        (CHUNKED + b"1;" + b"x" * 600_000, 431, "headers_too_large"),
        (CHUNKED + b"1\r\nx\r\n0\r\nX: " + b"x" * 600_000, 431, "headers_too_large"),
    ],
)  # fmt: skip
def test_what_is_no_request_or_too_large_is_refused_in_json(raw, status, code):
    with serving(Limits(body=10_000)) as served:
        for before in (b"", infer(b"before")) if len(raw) < 1000 else (b"",):  # the answers before it are not lost
            *former, (head, body) = answers(served.exchange(before + raw))
            assert [each.split()[1] for each, _ in former] == [b"200"] * bool(before)
            assert int(head.split()[1]) == status
            told = json.loads(body)
            assert told.get("code") or told["error"]["code"] == code
            assert b"\r\nConnection: close" in head
        assert len(served.fleet.calls) == len(former)
        until(lambda: not served.front.connections)
        assert served.front.buffered == 0


def test_a_refused_client_that_goes_on_sending_sees_the_refusal():
    with serving(Limits(body=10_000)) as served, served.connect() as connection:
        connection.sendall(get("/", "Content-Length: 3000000"))
        connection.sendall(bytes(3_000_000))
        assert received(connection).startswith(b"HTTP/1.1 413")


def test_a_connection_may_be_opened_long_before_it_is_used():
    with serving(Limits(head_seconds=0.05)) as served, served.connect() as connection:
        time.sleep(0.5)
        connection.sendall(infer(b"1"))
        assert Reader(connection).answer()[0] == 200


def test_slow_clients_are_told_and_idle_ones_closed():
    limits = Limits(head_seconds=0.3, body_seconds=0.3, idle_seconds=0.3, pace=1000)
    with serving(limits) as served:
        for sent, code in ((b"GET / HTTP/1.1\r\nHo", b"408"), (infer(bytes(50))[:-40], b"408"), (b"", b"")):
            assert served.exchange(sent)[9:12] == code
        with served.connect() as connection:
            connection.sendall(infer(b"1"))
            assert received(connection).startswith(b"HTTP/1.1 200 OK")  # and then it is closed
        with served.connect() as connection:  # one byte at a time does not prolong it
            connection.sendall(infer(bytes(100))[:-100])
            begun = time.monotonic()
            while not select.select([connection], [], [], 0.05)[0]:
                connection.sendall(b"x")
                assert time.monotonic() - begun < SHORT
            assert received(connection)[9:12] == b"408"
        with served.connect() as connection:  # while a fast sender may take longer
            connection.sendall(infer(bytes(4000))[:-4000])
            for _ in range(10):
                connection.sendall(bytes(400))
                time.sleep(0.05)
            assert Reader(connection).answer()[0] == 200


def test_a_request_under_way_is_not_timed_out():
    limits = Limits(head_seconds=0.1, body_seconds=0.1, idle_seconds=0.1, write_seconds=0.1)
    with serving(limits) as served, served.connect() as connection:
        connection.sendall(infer(b"1", "slow"))
        (call,) = served.fleet.wait()
        assert not select.select([connection], [], [], 0.4)[0]
        served.call(call.done, served.fleet.answer(call))
        assert Reader(connection).answer()[0] == 200


def test_a_half_closed_client_gets_its_answer(served):
    with served.connect() as connection:
        connection.sendall(infer(b"1"))
        connection.shutdown(socket.SHUT_WR)
        assert received(connection).startswith(b"HTTP/1.1 200 OK")
    with served.connect() as connection:
        connection.sendall(infer(b"2", "slow") + infer(b"3"))
        connection.shutdown(socket.SHUT_WR)
        call = served.fleet.wait(2)[1]
        connection.settimeout(SHORT)
        assert connection.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"  # sent to see whether somebody is there
        assert not call.cancelled
        served.call(call.done, served.fleet.answer(call))
        found = received(connection)
        assert found.count(b"HTTP/1.1 200 OK") == 2 and found.count(b"Connection: close") == 1
    with served.connect() as connection:  # half a request is none
        connection.sendall(infer(b"1")[:-1])
        connection.shutdown(socket.SHUT_WR)
        assert received(connection) == b""


@pytest.mark.parametrize("how", ["close", "reset"])
def test_the_call_of_a_client_that_left_is_cancelled(served, how):
    with served.connect() as connection:
        connection.sendall(infer(b"1", "slow"))
        (call,) = served.fleet.wait()
        if how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(lambda: call.cancelled)
    served.call(call.done, served.fleet.answer(call))  # a late answer harms nobody
    assert [line["status"] for line in served.monitor.lines] == [499]
    assert not served.front.connections and served.front.buffered == 0


def test_a_client_that_does_not_read_is_not_read_from_and_then_dropped():
    with serving(Limits(write_seconds=0.4)) as served, served.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        size = 2_000_000
        connection.setblocking(False)
        ask = infer(b"%d" % size, "large") * 200
        connection.send(ask)
        until(lambda: served.front.connections)
        until(lambda: not served.front.connections)
        assert len(served.fleet.calls) < 10


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("GZIP", lambda body: gzip.compress(body[:7]) + gzip.compress(body[7:])),
        ("deflate", zlib.compress),
        ("deflate", lambda body: zlib.compress(body)[2:-4]),  # without its header
    ],
)
@pytest.mark.parametrize("size", [20, 20_000])
def test_packed_bodies_are_unpacked(served, encoding, pack, size):
    body = bytes(32 + (n * n * 7919 >> 3) % 90 for n in range(size))
    status, _, answer = one(served, infer(pack(body), "echo", f"Content-Encoding: {encoding}"))
    assert status == 200 and json.loads(answer)["body"] == body.decode()
    # the app, which knows who may send it, unpacks by itself
    told = json.loads(one(served, infer(pack(body), "", f"Content-Encoding: {encoding}", path="/other"))[2])
    assert told["HTTP_CONTENT_ENCODING"] == encoding and told["body"] == pack(body).decode("latin-1")


@pytest.mark.parametrize(
    ("encoding", "body", "status", "code"),
    [
        ("br", b"abc", 415, "unsupported_media"),
        ("gzip, gzip", b"abc", 415, "unsupported_media"),
        ("gzip", b"abc", 400, "bad_body"),
        ("gzip", gzip.compress(b"x" * 5000, mtime=0)[:-9], 400, "bad_body"),
        ("gzip", gzip.compress(b"x" * 5000, mtime=0)[:-8] + bytes(8), 400, "bad_body"),  # another checksum
        ("gzip", gzip.compress(bytes(50_000_000), mtime=0), 413, "too_large"),
        ("gzip", gzip.compress(bytes(2_000_000), mtime=0), 413, "too_large"),  # few enough bytes for the loop's thread
        ("deflate", zlib.compress(bytes(1_000_001)), 413, "too_large"),
    ],
)
def test_bombs_and_damaged_packed_bodies_are_refused(encoding, body, status, code):
    with serving(Limits(body=1_000_000)) as served, served.connect() as connection:
        connection.sendall(infer(body, "echo", f"Content-Encoding: {encoding}") + infer(b"next"))
        reader = Reader(connection)
        found, headers, answer = reader.answer()
        assert (found, json.loads(answer)["code"]) == (status, code)
        assert ("accept-encoding" in headers) == (status == 415)
        assert json.loads(reader.answer()[2])["body"] == "next"  # the connection goes on


def test_unpacking_stops_at_the_limit():
    packed = gzip.compress(bytes(1000))
    assert unpack(packed, 1000) == bytes(1000)
    with pytest.raises(RequestError, match="unpacks to more than 999 bytes"):
        unpack(packed, 999)
    with pytest.raises(RequestError, match="unpacks to more than 1999 bytes"):
        unpack(packed + packed, 1999)


@pytest.mark.parametrize("size", [10_000, 200_000])
def test_answers_are_packed_for_those_who_take_it_and_gain(served, size):
    for accept, packed in (
        ("gzip", True),
        ("deflate, gzip;q=0.5", True),
        ("*", True),
        ("deflate", False),
        ("gzip;q=0", False),
        ("identity, *;q=0", False),
    ):
        assert accepts_gzip(accept) == packed
        _, headers, answer = one(served, infer(b"%d" % size, "large", f"Accept-Encoding: {accept}"))
        assert (headers.get("content-encoding") == "gzip") == packed == (len(answer) < size)
        assert json.loads(gzip.decompress(answer) if packed else answer)["more"] == "x" * size
    assert "content-encoding" not in one(served, infer(b"{}", "echo", "Accept-Encoding: gzip"))[1]
    binary = infer(b"%d" % size, "large", "Accept-Encoding: gzip", "Inference-Header-Content-Length: 1")
    assert "content-encoding" not in one(served, binary)[1]


def test_large_answers_go_unpacked_when_no_thread_is_free(served, monkeypatch):
    def busy(job):
        raise RequestError("overloaded", "too many wait", 503)

    monkeypatch.setattr(served.front, "aside", busy)
    _, headers, answer = one(served, infer(b"200000", "large", "Accept-Encoding: gzip"))
    assert "content-encoding" not in headers and json.loads(answer)["more"] == "x" * 200_000
    status, _, answer = one(served, infer(gzip.compress(random.randbytes(5000)), "echo", "Content-Encoding: gzip"))
    assert status == 503 and json.loads(answer)["code"] == "overloaded"


def test_answers_of_the_app_are_packed(served):
    raw = get("/" + "x" * 3000, "Accept-Encoding: gzip")
    _, headers, answer = one(served, raw)
    assert headers["content-encoding"] == "gzip" and headers["vary"] == "Accept-Encoding"
    assert headers["etag"] == 'W/"b"'  # the packed form is not byte for byte the same
    assert json.loads(gzip.decompress(answer))["PATH_INFO"] == "/" + "x" * 3000
    _, headers, answer = one(served, get("/", "Accept-Encoding: gzip"))
    assert "content-encoding" not in headers and headers["etag"] == '"b"'


def test_binary_tensors_are_announced_both_ways(served):
    status, headers, _ = one(served, infer(b"{}\x01\x02", "echo", "Inference-Header-Content-Length: 2"))
    assert status == 200 and served.fleet.calls[0].header_length == 2
    assert headers["inference-header-content-length"] == "2"
    assert headers["content-type"] == "application/octet-stream"
    for wrong in ("5", "-1", "two", "1e0", "9" * 5000):
        status, _, answer = one(served, infer(b"{}\x01\x02", "echo", f"Inference-Header-Content-Length: {wrong}"))
        assert status == 400 and json.loads(answer)["code"] == "bad_header"


def test_the_client_chooses_the_time_limit():
    with serving(Limits(request_seconds=7)) as served:
        for lines, low, high in (
            ((), 6, 7),
            (("X-Request-Timeout: 0.5",), 0, 0.5),
            (("X-Request-Timeout: 1e9",), 3500, 3600),
        ):
            before = time.monotonic()
            assert one(served, infer(b"{}", "echo", *lines))[0] == 200
            assert low < served.fleet.calls[-1].deadline - before < high + 1
        for wrong in ("0", "-1", "soon", "nan", ""):
            status, _, answer = one(served, infer(b"{}", "echo", f"X-Request-Timeout: {wrong}"))
            assert status == 400 and "X-Request-Timeout must be a number of seconds" in json.loads(answer)["error"]


@pytest.mark.parametrize(
    ("path", "model", "version", "protocol"),
    [
        ("/v2/models/echo/infer", "echo", "latest for None", "v2"),
        ("/v2/models/echo/versions/3/infer?x=1", "echo", "3", "v2"),
        ("/v1/models/echo:predict", "echo", "latest for None", "v1"),
        ("/v1/models/echo/versions/3:predict", "echo", "3", "v1"),
        ("/v2/models/%C3%A9t%C3%A9%2F1/infer", "été/1", "latest for None", "v2"),
    ],
)
def test_the_inference_routes_of_both_protocols(served, path, model, version, protocol):
    assert one(served, infer(b"{}", path=path))[0] == 200
    (call,) = served.fleet.calls
    assert (call.model, call.version, call.protocol) == (model, version, protocol)


def test_what_the_fleet_refuses_is_told(served):
    status, headers, answer = one(served, infer(b"{}", "full"))
    assert (status, headers["retry-after"]) == (503, "2")
    assert json.loads(answer) == {"error": "the queue is full", "code": "overloaded"}
    assert one(served, infer(b"{}", "nobody"))[0] == 404
    status, headers, answer = one(served, infer(b"{}", "broken"))
    assert status == 500 and headers["x-request-id"] in json.loads(answer)["error"] and SECRET.encode() not in answer
    assert [line["model"] for line in served.monitor.lines] == ["full", "", "broken"]  # unknown names are no label


def test_the_log_says_where_it_failed_and_not_on_what(served, caplog):
    assert one(served, infer(b"{}", "broken"))[0] == 500
    assert one(served, get("/fail"))[0] == 500
    assert (
        caplog.text.count("failed with ZeroDivisionError") == 2
        and "in submit" in caplog.text
        and SECRET not in caplog.text
    )


def test_the_fleet_decides_who_answers_and_who_watches(served):
    served.fleet.shadow = "next"
    status, _, answer = one(served, infer(b"{}", "echo", "X-Traffic-Key: anna"))
    assert status == 200 and json.loads(answer)["version"] == "latest for anna"
    assert served.fleet.shadowed == "next"


class Guard:
    def admit(self, headers, scope, peer, model=""):
        if headers.get("authorization") != "Bearer good":
            raise RequestError("no_key", "a key is missing", 401, {"WWW-Authenticate": "Bearer"})
        self.asked = (scope, peer, model)
        return "key:1"

    def response_headers(self, origin, *, page=True):
        return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"} if origin == "https://a.example" else {}


def test_the_guard_is_asked_and_its_headers_sent():
    guard = Guard()
    with serving(guard=guard) as served:
        status, headers, _ = one(served, infer())
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert one(served, infer(b"not gzip", "echo", "Content-Encoding: gzip"))[0] == 401  # before it is unpacked
        assert not served.fleet.calls
        raw = infer(b"{}", "echo", "Authorization: Bearer good", "Origin: https://a.example")
        status, headers, answer = one(served, raw)
        assert status == 200 and json.loads(answer)["body"] == "{}"
        assert headers["access-control-allow-origin"] == "https://a.example"
        assert guard.asked == ("predict", "127.0.0.1", "echo")
        raw = infer(b"{}", "echo", "Authorization: Bearer good", "Origin: https://b.example")
        assert "access-control-allow-origin" not in one(served, raw)[1]


def test_a_large_body_is_refused_by_its_headers_and_admitted_once():
    guard = Guard()
    admit, asked = guard.admit, []
    guard.admit = lambda headers, *rest: (asked.append(rest), admit(headers, *rest))[1]
    with serving(guard=guard) as served:
        for line in ("Content-Length: 1000000", "Transfer-Encoding: chunked"):
            raw = f"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n"
            assert one(served, raw.encode())[0] == 401  # although nothing of it was sent
        assert not served.fleet.calls
        asked.clear()
        large = b'"' + bytes(1_000_000).replace(b"\0", b"a") + b'"'
        assert one(served, infer(large, "echo", "Authorization: Bearer good"))[0] == 200
        assert asked == [("predict", "127.0.0.1", "echo")]


def test_the_app_is_told_what_was_asked(served):
    raw = infer(
        b"body", "x", "Content-Type: text/plain", "X_Request_Id: smuggled", "A: 1", "a: 2", path="/a%20b/%C3%A9?q=1%20"
    )
    told = json.loads(one(served, raw)[2])
    expected = {
        "REQUEST_METHOD": "POST", "PATH_INFO": "/a b/Ã©", "QUERY_STRING": "q=1%20", "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "4", "REMOTE_ADDR": "127.0.0.1", "HTTP_A": "1, 2", "HTTP_HOST": "x", "body": "body",
        "SERVER_PORT": str(served.port), "SERVER_PROTOCOL": "HTTP/1.1", "SCRIPT_NAME": "",
    }  # fmt: skip
    assert {name: told[name] for name in expected} == expected
    assert "smuggled" not in json.dumps(told)
    assert json.loads(one(served, get("http://other.example/here?now"))[2])["PATH_INFO"] == "/here"


def test_answers_without_a_body(served):
    with served.connect() as connection:
        reader = Reader(connection)
        for raw, method, status in ((get("/", method="HEAD"), "HEAD", 200), (get("/unchanged"), "GET", 304)):
            connection.sendall(raw)
            found, headers, _ = reader.answer(method)
            assert found == status and ("content-length" in headers) == (method == "HEAD")
        connection.sendall(get("/"))  # what follows is not taken for a body
        assert reader.answer()[0] == 200


def test_a_failing_app_is_an_error_in_json(served):
    status, headers, answer = one(served, get("/fail"))
    assert status == 500 and headers["x-request-id"] in json.loads(answer)["error"]["message"]
    assert SECRET.encode() not in answer


def test_waiting_for_the_app_is_bounded_and_health_is_not(gate):
    with serving(threads=2, waiting=3) as served:
        connections = [served.connect() for _ in range(6)]
        for connection in connections[:2]:
            connection.sendall(get("/wait"))
            assert gate.entered.acquire(timeout=SHORT)
        for connection in connections[2:]:
            connection.sendall(get("/wait"))
        status, headers, answer = Reader(connections[5]).answer()  # of four, three may wait
        assert (status, headers["retry-after"]) == (503, "1")
        assert json.loads(answer)["error"]["code"] == "overloaded"
        assert one(served, get("/v2/health/live"))[2] == b'{"live":true}'
        assert one(served, get("/v2/health/ready"))[0] == 200
        assert one(served, get("/metrics"))[0] == 200
        assert one(served, infer())[0] == 200
        connections[4].close()  # one that waits goes away, and is not worked on
        until(lambda: len(served.front.connections) == 5)
        gate.released.set()
        for connection in connections[:4]:
            assert Reader(connection).answer()[0] == 200
            connection.close()
        connections[5].close()
        assert sum(gate.entered.acquire(timeout=0.01) for _ in range(4)) == 2
        served.fleet.ready = False
        status, _, answer = one(served, get("/v2/health/ready"))
        assert (status, answer) == (503, b'{"ready":false}')


def test_one_connection_too_many_is_told_so():
    with serving(Limits(connections=3)) as served:
        kept = [served.connect() for _ in range(3)]
        until(lambda: len(served.front.connections) == 3)
        with served.connect() as connection:
            status, headers, answer = Reader(connection).answer()
        assert (status, headers["retry-after"]) == (503, "1") and b"3 connections are open already" in answer
        kept.pop().close()
        until(lambda: len(served.front.connections) == 2)
        assert one(served, infer())[0] == 200
        for connection in kept:
            connection.close()


def test_bodies_of_all_connections_together_are_bounded():
    with serving(Limits(buffered=100_000)) as served:
        with served.connect() as first:
            first.sendall(infer(bytes(60_000))[:-1])
            until(lambda: served.front.buffered == 59_999)
            status, headers, _ = one(served, infer(bytes(60_000)))
            assert (status, headers["retry-after"]) == (503, "1")
            first.sendall(b"\0")
            assert Reader(first).answer()[0] == 200
        until(lambda: served.front.buffered == 0)
        assert one(served, infer(bytes(60_000)))[0] == 200


def test_two_thousand_connections_are_served(served):
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 4200:
        pytest.skip("this process may not open 4,200 files")
    connections = [served.connect() for _ in range(2000)]
    try:
        for connection in connections:
            connection.sendall(infer(b"1", "slow"))
        for call in list(served.fleet.wait(2000)):
            served.loop.call_soon_threadsafe(call.done, Answer(200, b"{}"))
        for connection in connections:
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")
    finally:
        for connection in connections:
            connection.close()
    until(lambda: not served.front.connections)


def test_http_1_0_and_upgrades(served):
    old = b"GET / HTTP/1.0\r\n"
    assert b"Connection: close" in served.exchange(old + b"\r\n")
    with served.connect() as connection:
        reader = Reader(connection)
        for _ in range(2):
            connection.sendall(old + b"Connection: keep-alive\r\n\r\n")
            assert reader.answer()[1]["connection"] == "keep-alive"
    found = served.exchange(get("/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAA"))
    assert found.startswith(b"HTTP/1.1 200 OK") and b"Connection: close" in found
    found = served.exchange(get("/", "Connection: close") + get("/"))
    assert found.count(b"HTTP/1.1 ") == 1


def test_draining_finishes_what_is_under_way():
    with serving(Limits(retire_seconds=1.5)) as served:
        quiet, idle, half, busy = (served.connect() for _ in range(4))
        with quiet, idle, half, busy:
            for connection in (quiet, idle, half, busy):
                connection.sendall(infer(b"1"))
                assert Reader(connection).answer()[0] == 200
            raw = infer(b"2")
            half.sendall(raw[:-1])
            busy.sendall(infer(b"3", "slow") + infer(b"4"))
            call = served.fleet.wait(5)[4]
            until(lambda: served.front.buffered == 2)  # of the one that is answered, and the one behind it
            drained = served.do(served.front.drain(SHORT))
            until(lambda: served.front.draining)
            idle.sendall(infer(b"5"))  # it was on its way when the server began to stop
            assert b"Connection: close" in received(idle)
            idle.close()
            half.sendall(raw[-1:])
            assert b"Connection: close" in received(half)
            half.close()
            assert received(quiet) == b""
            assert not drained.done()
            served.call(call.done, served.fleet.answer(call))
            first, second = answers(received(busy))
            assert b"Connection: close" not in first[0] and b"Connection: close" in second[0]
            busy.close()
            drained.result(SHORT)


def test_draining_ends_after_its_time(served):
    with served.connect() as connection:
        connection.sendall(infer(b"3", "slow"))
        (call,) = served.fleet.wait()
        served.do(served.front.drain(0.1)).result(SHORT)
        served.call(served.front.stop)
        assert received(connection) == b""
    until(lambda: call.cancelled)


def mutated(raw):
    """A few bytes changed, cut out, repeated or put in."""
    changed = bytearray(raw)
    for _ in range(random.choice((0, 1, 1, 2, 5))):
        place = random.randrange(len(changed))
        what = random.randrange(4)
        if what == 0:
            changed[place] = random.randrange(256)
        elif what == 1:
            del changed[place : place + random.randrange(1, 20)]
        elif what == 2:
            changed[place:place] = bytes(random.choices(b"\r\n:/ 0aZ;,\0\xff%", k=random.randrange(1, 12)))
        else:
            changed[place:place] = changed[max(0, place - random.randrange(1, 60)) : place]
        changed = changed or bytearray(b"x")
    return bytes(changed)


def test_mutated_requests_do_no_harm(caplog):
    seeds = [
        infer(b'{"a": 1}'),
        infer(gzip.compress(b"x" * 500), "echo", "Content-Encoding: gzip"),
        infer(b"{}12", "echo", "Inference-Header-Content-Length: 2", "X-Request-Timeout: 3", "Expect: 100-continue"),
        infer(b"1", path="/v1/models/{}/versions/2:predict"),
        CHUNKED + b"3\r\nabc\r\n0\r\n\r\n",
        get("/x?y=1", "Accept-Encoding: gzip"),
        get("/v2/health/live", "Connection: Upgrade", "Upgrade: h2c"),
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    ]
    with serving(Limits(body=10_000)) as served:
        for _ in range(1000):
            raw = b"".join(mutated(each) for each in random.choices(seeds, k=random.choice((1, 1, 2, 4))))
            with served.connect() as connection, suppress(OSError):  # closed while this side still sends
                connection.sendall(raw)
                connection.shutdown(socket.SHUT_WR)
                found = received(connection)
                assert found == b"" or found.startswith(b"HTTP/1.1 "), found
        until(lambda: not served.front.connections)
        assert served.front.buffered == 0
        statuses = {line["status"] for line in served.monitor.lines}
        assert {200, 400} <= statuses and not [each for each in statuses if each >= 500 and each != 501]
        assert one(served, infer())[0] == 200
    assert not caplog.records
