"""The app on Ray: what can be told without a cluster, and two nodes on this machine."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from small_bundles import write_image

from serve import cluster
from serve.monitor import Monitor

ROOT = Path(__file__).parents[2]


def test_metrics_of_replicas_are_told_apart_and_add_up():
    texts = {}
    for replica, count in (("a", 3), ("b", 4)):
        monitor = Monitor()
        for _ in range(count):
            monitor.answered(model="m", version="1", route="/r", status=200, seconds=0.01)
        texts[replica] = monitor.text()
    told = cluster.joined(texts).decode()
    found = dict(re.findall(r'zoo_requests_total\{model="m",replica="(\w)",.*?\} (\S+)', told))
    assert found == {"a": "3.0", "b": "4.0"}
    assert told.count("# TYPE zoo_requests_total counter") == 1
    assert len(re.findall(r'zoo_request_seconds_bucket\{le="\+Inf",', told)) == 2


def test_a_board_keeps_the_last_figures_of_each_replica():
    board, texts = cluster.Board(), []
    for count in (1, 2):
        monitor = Monitor()
        for _ in range(count):
            monitor.answered(model="m", version="1", route="/r", status=200, seconds=0.01)
        texts.append(monitor.text())
    board.report("gone", texts[0])
    board.report("live", texts[0])
    told = board.report("live", texts[1]).decode()
    found = dict(re.findall(r'zoo_requests_total\{model="m",replica="(\w+)",.*?\} (\S+)', told))
    assert found == {"gone": "1.0", "live": "2.0"}


def test_asgi_requests_become_wsgi_ones():
    scope = {
        "method": "POST",
        "path": "/predict/é",
        "query_string": b"top=3",
        "headers": [(b"content-type", b"application/json"), (b"x-request-id", b"a"), (b"accept", b"b"), (b"accept", b"c"),
                    (b"x_request_id", b"forged"), (b"content-length", b"999")],
        "client": ("10.0.0.1", 5),
        "server": ("host", 80),
        "scheme": "https",
        "http_version": "1.1",
    }  # fmt: skip
    found = cluster.environ(scope, b"{}")
    assert found["PATH_INFO"].encode("latin-1").decode() == "/predict/é" and found["QUERY_STRING"] == "top=3"
    assert (found["CONTENT_TYPE"], found["CONTENT_LENGTH"]) == ("application/json", "2")
    assert (found["HTTP_X_REQUEST_ID"], found["HTTP_ACCEPT"], found["REMOTE_ADDR"]) == ("a", "b,c", "10.0.0.1")
    assert found["wsgi.input"].read() == b"{}" and found["wsgi.url_scheme"] == "https"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicas": 0}, "replicas must lie in 1 … most, got replicas=0, most=0"),
        ({"replicas": 3, "most": 2}, "replicas must lie in 1 … most, got replicas=3, most=2"),
        ({"cpus": 0}, "cpus must be above 0"),
        ({"proxies": "some"}, "proxies must be 'every' or 'head', got 'some'"),
    ],
)
def test_options_that_cannot_be_used_are_refused_before_ray_starts(tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(cluster, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match=re.escape(message)):
        cluster.run(tmp_path, **options)


def test_without_ray_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'zooroad\[cluster\]'"):
        cluster.run(tmp_path)


def ask(url, body=None, method=None):
    """Status, headers and body of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def until(condition, seconds=40):
    """Wait until it holds; fails when it does not in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if condition():
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"{condition} does not hold after {seconds} s")


def replicas():
    """Processes of this machine that answer for the app."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::ServeReplica:zooroad:zooroad"):
                found.append(int(path.parent.name))
        except OSError:
            pass
    return found


@pytest.fixture
def two_nodes(monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed")
    if not Path("/proc/self/cmdline").exists():
        pytest.skip("processes are looked for in /proc")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING", "0")  # the one proxy gives work to both machines
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    made = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    made.add_node(**small)
    yield made.address
    made.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray
def test_two_nodes_answer_together(two_nodes, tmp_path):
    write_image(tmp_path / "store")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "serve.cluster", str(tmp_path / "store"), "--address", two_nodes]
    command += ["--port", str(port), "--replicas", "2", "--cpus", "1", "--proxies", "head", "--watch", "0.5"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT)
    try:
        told = server.stdout.readline()
        assert "with 2 replicas" in told, (tmp_path / "log").read_text()[-2000:]
        url = f"http://127.0.0.1:{port}"
        light = [[0] * 2 + [255] * 2] * 4
        body = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 4, 4, 1], "data": light}]}
        for number in range(40):
            status, headers, answer = ask(f"{url}/v2/models/sides/infer", body | {"id": str(number)})
            assert status == 200 and headers["x-request-id"]
            found = json.loads(answer)
            assert found["id"] == str(number) and found["outputs"][0]["data"][2] > 0.9
        assert ask(f"{url}/v2/models/none/infer", body)[0] == 404
        assert ask(f"{url}/admin/traffic/sides", {}, "POST")[0] == 501

        def counted():
            text = ask(f"{url}/metrics")[2].decode()
            return re.findall(
                r'zoo_requests_total\{model="sides",replica="(\w+)-\w+",route="[^"]*infer",status="200".*?\} (\S+)',
                text,
            )

        until(lambda: sum(float(count) for _, count in counted()) == 40)
        assert len({node for node, _ in counted()}) == 2  # both machines answered, and the figures know it

        shutil.copytree(write_image(tmp_path / "later", "2"), tmp_path / "store" / "sides" / "2")
        until(lambda: json.loads(ask(f"{url}/v2/models/sides")[2])["versions"] == ["1", "2"])

        before = replicas()
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        until(lambda: len(replicas()) == 2 and before[0] not in replicas())
        until(lambda: all(ask(f"{url}/v2/models/sides/infer", body)[0] == 200 for _ in range(10)))
    finally:
        server.terminate()
        try:
            assert server.wait(30) == 0, (tmp_path / "log").read_text()[-2000:]
        finally:
            server.kill()
            server.stdout.close()
    until(lambda: not replicas(), 15)
