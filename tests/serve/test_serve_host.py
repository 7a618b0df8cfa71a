"""The real process: `python -m serve`, over sockets, stopped by signals."""

import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

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
    assert [line["status"] for line in lines if "route" in line] == [200, 200]


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


def infer(connection, body, *lines):
    """Status and body of one inference by the model "dose" over an open connection."""
    more = "".join(f"{line}\r\n" for line in lines)
    head = f"POST /v2/models/dose/infer HTTP/1.1\r\nHost: x\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(65536)
    head, _, found = answer.partition(b"\r\n\r\n")
    length = int(re.search(rb"Content-Length: (\d+)", head)[1])
    while len(found) < length:
        found += connection.recv(65536)
    return int(head.split()[1]), found


def ask(*numbers):
    tensor = {"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": numbers}
    return json.dumps({"inputs": [tensor]}).encode()


def children(process):
    """Ids of the processes that a process started."""
    return [
        int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and parent_of(entry) == process.pid
    ]


def parent_of(entry):
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended
        return None


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's /proc")


def test_inferences_in_json_and_binary_are_answered_by_the_fleet(store_folder):
    with serving(store_folder, "--workers", "1") as (_, port):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            for age in (30, 40):
                status, body = infer(connection, ask(age, 20))
                assert status == 200 and json.loads(body)["outputs"][0]["data"] == [2 * age + 20]
            tensor = {"name": "numbers", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
            head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
            body = head + struct.pack("<2f", 30, 20)
            status, found = infer(connection, body, f"Inference-Header-Content-Length: {len(head)}")
            assert status == 200 and found.endswith(struct.pack("<f", 80))
            status, body = infer(connection, ask("thirty", 20))
            assert status >= 400 and "numbers" in json.loads(body)["error"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            metrics = answer.read().decode()
    counted = 'zoo_requests_total{model="dose",route="/v2/models/<model>/infer",status="200",version="1"} 3.0'
    assert counted in metrics


def test_a_deadline_holds_for_simple_predictions_too(store_folder):
    with serving(store_folder, "--workers", "1") as (_, port):
        for seconds, expected in (("10", 200), ("1e-9", 504), ("soon", 400)):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            headers = {"Content-Type": "application/json", "X-Request-Timeout": seconds}
            connection.request("POST", "/predict/dose", b'{"age": 30, "weight": 20}', headers)
            answer = connection.getresponse()
            told = json.loads(answer.read())
            connection.close()
            assert answer.status == expected, told
            assert told.get("error", {}).get("code") == {504: "deadline_exceeded", 400: "bad_header"}.get(expected)


@needs_proc
def test_no_request_is_lost_when_workers_are_killed(store_folder):
    with (
        serving(store_folder, "--workers", "2") as (process, port),
        socket.create_connection(("127.0.0.1", port), timeout=10) as connection,
    ):
        for kills in range(3):
            workers = children(process)
            assert len(workers) == 2
            os.kill(workers[kills % 2], signal.SIGKILL)
            for age in range(20):
                status, body = infer(connection, ask(age, 1), "X-Request-Timeout: 10")
                assert status == 200 and json.loads(body)["outputs"][0]["data"] == [2 * age + 1]
            deadline = time.monotonic() + 10
            while workers[kills % 2] in children(process) or len(children(process)) != 2:
                assert time.monotonic() < deadline
                time.sleep(0.02)


@needs_proc
def test_the_front_computes_nothing_itself(store_folder):
    with serving(store_folder, "--workers", "1") as (process, port):
        for path in ("/", "/metrics", "/v2/models/dose", "/models"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10).close()
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            assert infer(connection, ask(1, 1))[0] == 200
        (worker,) = children(process)
        loaded = {pid: Path(f"/proc/{pid}/maps").read_text() for pid in (process.pid, worker)}
    assert "onnxruntime" in loaded[worker] and "onnxruntime" not in loaded[process.pid]


def test_what_is_slow_to_import_comes_after_the_start():
    script = "import sys, serve.host, serve.__main__; print(sorted({'flask', 'PIL', 'onnxruntime', 'prometheus_client', 'jwt', 'typer', 'pydantic'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("how", ["time is over", "second signal"])
def test_stopping_does_not_wait_for_ever(store_folder, how):
    drain = "0.2" if how == "time is over" else "1000"
    with serving(store_folder, "--workers", "1", "--drain", drain) as (process, port):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(
                b"POST /predict/dose HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
            )
            assert b"100 Continue" in connection.recv(100)
            process.send_signal(signal.SIGTERM)
            if how == "second signal":
                assert refuses(port, within=5)
                process.send_signal(signal.SIGTERM)
            assert received(connection) == b""
        assert process.wait(timeout=10) == 0


def test_an_interrupted_start_ends_at_once(store_folder):
    command = [sys.executable, "-m", "serve", str(store_folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 10
        while not children(process) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0 and "Traceback" not in errors


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--timeout", "0"), "--timeout must be above 0 seconds, got 0"),
        (("--connections", "0"), "--connections must be at least 1, got 0"),
        (("--max-body", "big"), "--max-body takes bytes"),
        (("--trust", "missing.pub"), "missing.pub"),
        (("--replicas", "2"), "--replicas is about a cluster"),
    ],
)
def test_options_out_of_range_are_errors_in_words(store_folder, option, message):
    command = [sys.executable, "-m", "serve", str(store_folder), "--port", "0", *option]
    found = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert found.returncode == 1
    assert found.stderr.startswith("error: ") and message in found.stderr and "Traceback" not in found.stderr
