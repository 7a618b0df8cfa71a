"""The real process: `python -m serve`, over sockets, stopped by signals."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest


@contextmanager
def serving(store, *options):
    """A running server: (process, port)."""
    command = [sys.executable, "-m", "serve", str(store), "--port", "0", "--threads", "1", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
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


def received(connection):
    """Everything until the server closes the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def refuses(port, within):
    """Whether connections are refused before so many seconds are over."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:  # the server closed its port while this one waited there
            continue
        time.sleep(0.02)
    return False


def exchange(port, raw):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(raw)
        head, _, body = received(connection).partition(b"\r\n\r\n")
    return head.decode(), body


def test_it_answers_and_stops_on_sigterm_after_the_request_under_way(store_folder):
    body = b'{"age": 30, "weight": 20}'
    head = b"POST /predict/dose HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 25\r\n"
    with serving(store_folder) as (process, port):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=10) as answer:
            assert json.load(answer) == {"ready": True}
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(head + b"Expect: 100-continue\r\n\r\n")
            assert b"100 Continue" in connection.recv(100)  # the request has begun
            connection.sendall(body[:10])
            process.send_signal(signal.SIGTERM)
            assert refuses(port, within=5)  # and the server, which waits 10 s for it, takes no other
            connection.sendall(body[10:])
            assert b'"value":80.0' in received(connection)
        assert process.wait(timeout=10) == 0
        errors = process.stderr.read()
    assert "Traceback" not in errors
    lines = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert [line["status"] for line in lines] == [200, 200]


def test_broken_http_gets_errors_in_json(store_folder):
    with serving(store_folder) as (_, port):
        for raw, status, code in (
            (b"NONSENSE\r\n\r\n", "400", "bad_http"),
            (b"GET / HTTP/1.1\r\nX: " + b"x" * 2**18, "431", "headers_too_large"),
            (
                b"POST /predict/dose HTTP/1.1\r\nContent-Length: 99000000\r\n\r\n",
                "413",
                "too_large",
            ),
        ):
            head, body = exchange(port, raw)
            assert head.split()[1] == status
            assert json.loads(body)["error"]["code"] == code


def test_a_server_never_loads_a_training_library(store_folder):
    script = f"""
import sys
from serve.app import create_app
client = create_app({str(store_folder)!r}).test_client()
assert client.post("/predict/dose", json={{"age": 1}}).status_code == 200
assert client.post("/predict/sides", json={{"image": [[0] * 4] * 4}}).status_code == 200
assert client.get("/metrics").status_code == client.get("/").status_code == 200
heavy = {{"keras", "tensorflow", "torch", "jax", "shap", "sklearn", "scipy", "matplotlib", "onnx", "zoo", "export"}}
print(sorted(heavy & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("store", "message"),
    [("nowhere", "error: no folder called"), ("empty", "can be served; make a bundle first: zoo export")],
)
def test_a_store_with_nothing_to_serve_is_an_error(tmp_path, store, message):
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-m", "serve", str(tmp_path / store), "--port", "0"]
    found = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert found.returncode == 1
    assert message in found.stderr and "Traceback" not in found.stderr


def test_a_taken_port_is_an_error_in_words(store_folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "serve", str(store_folder), "--port", str(port)]
        found = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert found.returncode == 1
    assert f"error: cannot listen on 127.0.0.1:{port}" in found.stderr and "Traceback" not in found.stderr
