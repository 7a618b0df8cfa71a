"""Streams on real sockets: their form, slow readers and those that leave; and the whole server, stopped by a signal."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from fake_generation import write_teller
from small_bundles import write_value
from test_serve_http import SHORT, Reader, received, served, serving
from waiting import until

from serve.errors import RequestError
from serve.fleet import Answer
from serve.guard import Guard
from serve.http import Limits
from serve.keys import KeyFile

__all__ = ["served"]  # a fixture
STREAM = "/v2/models/slow/generate_stream"


def post(path=STREAM, body=b'{"text_input": "a"}', *lines, version="1.1"):
    more = "".join(f"{line}\r\n" for line in lines)
    return f"POST {path} HTTP/{version}\r\nHost: x\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


def event(**told):
    return b"data: " + json.dumps(told).encode() + b"\n\n"


def say(served, call, *bodies, last=b"", status=200, error=None):
    for body in bodies:
        served.call(call.said, body)
    if last:
        served.call(call.done, Answer(status, last, version="7", rows=1))
    if error is not None:
        served.call(call.done, Answer.of(error))


def chunks(file):
    """Bodies of chunks until the empty one."""
    found = []
    while size := int(file.readline(), 16):
        found.append(file.read(size))
        assert file.readline() == b"\r\n"
    assert file.readline() == b"\r\n"
    return found


def head(file):
    lines = iter(lambda: file.readline().rstrip(), b"")
    status, *headers = [line.decode() for line in lines]
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in headers)


def test_events_go_out_as_they_come_and_the_connection_stays(served):
    with served.connect() as connection:
        connection.sendall(post(STREAM, b'{"text_input": "a"}', "X-Request-Id: mine"))
        (call,) = served.fleet.wait()
        assert (call.protocol, call.model, call.body) == ("generate_stream", "slow", b'{"text_input": "a"}')
        file = connection.makefile("rb")
        for number in range(3):
            say(served, call, event(n=number))
            if not number:
                status, headers = head(file)
            size = int(file.readline(), 16)
            assert file.read(size) == event(n=number) and file.readline() == b"\r\n"
        say(served, call, last=event(end=True))
        assert chunks(file) == [event(end=True)]
        assert status == 200 and headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["transfer-encoding"] == "chunked" and headers["x-request-id"] == "mine"
        assert headers["cache-control"] == "no-store" and headers["x-accel-buffering"] == "no"
        assert "content-length" not in headers and "connection" not in headers
        connection.sendall(post("/v2/models/echo/infer", b"again"))
        assert Reader(connection).answer()[0] == 200
    line = served.monitor.lines[0]
    assert line["route"] == "/v2/models/<model>/generate_stream" and line["version"] == "7" and line["code"] == ""
    assert (line["status"], line["sent"]) == (
        200,
        sum(len(event(n=number)) for number in range(3)) + len(event(end=True)),
    )


def test_one_event_alone_is_a_stream_too(served):
    with served.connect() as connection:
        connection.sendall(post())
        say(served, served.fleet.wait()[0], last=event(end=True))
        file = connection.makefile("rb")
        assert head(file)[0] == 200 and chunks(file) == [event(end=True)]


def test_an_error_before_the_first_event_is_an_ordinary_one(served):
    with served.connect() as connection:
        connection.sendall(post())
        say(served, served.fleet.wait()[0], error=RequestError("bad_value", "no text"))
        status, headers, body = Reader(connection).answer()
        assert status == 422 and headers["content-type"] == "application/json"
        assert json.loads(body) == {"error": "no text", "code": "bad_value"}


def test_a_later_error_is_an_event_and_counted(served):
    with served.connect() as connection:
        connection.sendall(post())
        (call,) = served.fleet.wait()
        say(served, call, event(n=1), error=RequestError("inference_crashed", "it died", 500))
        file = connection.makefile("rb")
        head(file)
        assert chunks(file) == [event(n=1), event(error="it died", code="inference_crashed")]
    assert served.monitor.lines[0]["status"] == 200 and served.monitor.lines[0]["code"] == "inference_crashed"


def test_completions_name_their_model_in_the_body(served):
    with served.connect() as connection:
        file = connection.makefile("rb")
        connection.sendall(post("/v1/completions", b'{"model": "slow", "prompt": "a", "stream": true}'))
        call = served.fleet.wait()[0]
        assert (call.model, call.protocol, call.chosen) == ("slow", "completions", True)
        say(served, call, event(n=1), error=RequestError("inference_crashed", "it died", 500))
        head(file)
        *_, told = chunks(file)
        assert told == b'data: {"error":{"code":"inference_crashed","message":"it died"}}\n\ndata: [DONE]\n\n'
        connection.sendall(post("/v1/completions", b'{"model": "echo", "prompt": "a"}'))
        status, headers = head(file)
        assert status == 200 and headers["content-type"] == "application/json"
        assert json.loads(file.read(int(headers["content-length"])))["protocol"] == "completions"
        connection.sendall(post("/v1/completions", b'{"prompt": "a"}'))
        status, headers = head(file)
        error = json.loads(file.read(int(headers["content-length"])))["error"]  # as OpenAI's clients read it
        assert status == 400 and error["code"] == "bad_request" and "required field `model`" in error["message"]
        connection.sendall(post("/v1/completions", b'{"model": "slow", "prompt": ""}'))
        say(served, served.fleet.wait(3)[2], error=RequestError("bad_value", "no prompt"))
        status, headers = head(file)
        told = json.loads(file.read(int(headers["content-length"])))
        assert status == 422 and told == {"error": {"code": "bad_value", "message": "no prompt"}}
    assert [line["code"] for line in served.monitor.lines] == ["inference_crashed", "", "bad_request", "bad_value"]


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v2/models/echo/generate", "/v2/models/<model>/generate"),
        ("/v2/models/echo/versions/3/generate", "/v2/models/<model>/versions/<version>/generate"),
        ("/v2/models/echo/versions/3/generate_stream?a=b", "/v2/models/<model>/versions/<version>/generate_stream"),
        ("/v1/completions", "/v1/completions"),
    ],
)
def test_paths(served, path, route):
    with served.connect() as connection:
        connection.sendall(post(path, b'{"model": "echo"}'))
        assert connection.recv(1)
        until(lambda: served.monitor.lines)
    call = served.fleet.calls[0]
    assert call.model == "echo" and call.version == ("3" if "versions" in path else "latest for None")
    assert served.monitor.lines[0]["route"] == route


def test_http_1_0_gets_its_events_without_chunks(served):
    with served.connect() as connection:
        connection.sendall(post(version="1.0"))
        (call,) = served.fleet.wait()
        say(served, call, event(n=1), last=event(end=True))
        head_, _, body = received(connection).partition(b"\r\n\r\n")
        assert b"Connection: close" in head_ and b"chunked" not in head_
        assert body == event(n=1) + event(end=True)


def test_a_client_that_leaves_cancels_its_stream(served):
    with served.connect() as connection:
        connection.sendall(post())
        (call,) = served.fleet.wait()
        say(served, call, event(n=1))
        connection.recv(10)
    until(lambda: say(served, call, event(n=2)) or call.cancelled, SHORT)
    assert [line["status"] for line in served.monitor.lines] == [499]
    say(served, call, event(n=3), last=event(end=True))  # nobody is there, and nothing happens


def test_who_sends_no_more_still_reads_its_stream(served):
    with served.connect() as connection:
        connection.sendall(post())
        (call,) = served.fleet.wait()
        say(served, call, event(n=1))
        connection.shutdown(socket.SHUT_WR)
        time.sleep(0.2)  # in which an interim answer would have been sent between the events
        say(served, call, last=event(end=True))
        file = connection.makefile("rb")
        head(file)
        assert chunks(file) == [event(n=1), event(end=True)]


def test_a_slow_reader_is_hung_up_on_and_a_fast_one_is_not_held_up():
    with serving(Limits(unread=2**20)) as served, served.connect() as slow, served.connect() as fast:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for connection in (slow, fast):
            connection.sendall(post())
        stuck, quick = served.fleet.wait(2)
        file = fast.makefile("rb")
        sent = 0
        while not stuck.cancelled:
            assert sent < 64 * 2**20, "what nobody reads is held without end"
            say(served, stuck, event(text="x" * 2**16))
            sent += 2**16
            if sent == 2**20:
                say(served, quick, event(n=1), last=event(end=True))
                head(file)
                assert chunks(file) == [event(n=1), event(end=True)]
        assert [line["status"] for line in served.monitor.lines] == [200, 499]


def test_pipelined_requests_wait_for_the_end_of_a_stream(served):
    with served.connect() as connection:
        connection.sendall(post() + post("/v2/models/echo/infer", b"next"))
        (call,) = served.fleet.wait()
        say(served, call, event(n=1), last=event(end=True))
        file = connection.makefile("rb")
        head(file)
        chunks(file)
        status, headers = head(file)
        assert status == 200 and json.loads(file.read(int(headers["content-length"])))["body"] == "next"


def test_a_stream_closes_its_connection_when_the_server_is_stopping(served):
    with served.connect() as connection:
        connection.sendall(post())
        (call,) = served.fleet.wait()
        say(served, call, event(n=1))
        served.front.draining = True
        say(served, call, last=event(end=True))
        assert received(connection).endswith(event(end=True) + b"\r\n0\r\n\r\n")


def test_keys_cover_the_models_that_bodies_name(tmp_path):
    _, token = KeyFile(tmp_path / "keys.json").make("one", models=["echo"])
    with serving(guard=Guard(keys=tmp_path / "keys.json")) as served:
        for model, path, status in (
            ("echo", "/v1/completions", b"200"),
            ("other", "/v1/completions", b"403"),
            ("other", "/v2/models/other/generate", b"403"),
        ):
            body = json.dumps({"model": model, "prompt": "a"}).encode()
            raw = post(path, body, f"Authorization: Bearer {token}", "Connection: close")
            assert served.exchange(raw).split()[1] == status
        assert served.exchange(post("/v1/completions", b"{}", "Connection: close")).split()[1] == b"401"


SERVER = """
import functools, sys
import serve.host
serve.host.Fleet = functools.partial(serve.host.Fleet, generator="fake_generation:Running")
from serve.settings import Settings
serve.host.run(Settings(sys.argv[1], port=0, workers=1, threads=1, drain=float(sys.argv[2])))
"""


@contextmanager
def whole(store, drain=10.0):
    """A running server whose generator is no model's: (process, port)."""
    path = f"import sys; sys.path[:0] = {sys.path!r}"
    process = subprocess.Popen(
        [sys.executable, "-c", path + SERVER, str(store), str(drain)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                yield process, int(found[1])
                break
        else:
            raise AssertionError(process.stderr.read())
    finally:
        process.kill()
        process.communicate()


def open_stream(port, text, most):
    connection = socket.create_connection(("127.0.0.1", port), timeout=SHORT)
    body = json.dumps({"text_input": text, "parameters": {"max_tokens": most}}).encode()
    connection.sendall(post("/v2/models/teller/generate_stream", body))
    return connection, connection.makefile("rb")


def test_a_server_that_stops_finishes_short_texts_and_tells_long_ones(tmp_path):
    write_teller(tmp_path)
    write_value(tmp_path)
    with whole(tmp_path, drain=1.5) as (process, port):
        short, short_file = open_stream(port, "slow", 20)
        long, long_file = open_stream(port, "slow", 500)
        assert head(short_file)[0] == head(long_file)[0] == 200
        process.send_signal(signal.SIGTERM)
        *_, end = chunks(short_file)
        assert json.loads(end[6:])["finish_reason"] == "length"
        *_, end = chunks(long_file)
        assert json.loads(end[6:]) == {"error": "the server is stopping; try again", "code": "stopping"}
        short.close()
        long.close()
        assert process.wait(timeout=10) == 0
        errors = process.stderr.read()
    lines = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    told = [(line["route"], line["status"], line.get("code")) for line in lines if "route" in line]
    route = "/v2/models/<model>/generate_stream"
    assert told == [(route, 200, None), (route, 200, "stopping")]
    assert "slow" not in errors and "Traceback" not in errors
