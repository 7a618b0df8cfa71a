"""The app on Ray: what can be told without a cluster, and two nodes on this machine."""

import asyncio
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
from typing import NamedTuple

import pytest
from small_bundles import write_image

from serve import cluster
from serve.errors import RequestError
from serve.monitor import Monitor
from serve.settings import Settings

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


def test_without_ray_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'zooroad\[cluster\]'"):
        cluster.run(Settings(tmp_path, cluster=True))


def test_a_missing_store_is_told_before_ray_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "find_spec", lambda name: name)
    with pytest.raises(FileNotFoundError, match=r"no folder called .*; make a bundle first"):
        cluster.run(Settings(tmp_path / "nowhere", cluster=True))


class Sent:
    """A request as Starlette has it, whose body comes in parts."""

    def __init__(self, *parts, declared=None):
        self.parts, self.read = parts, 0
        self.headers = {} if declared is None else {"content-length": str(declared)}

    async def stream(self):
        for part in self.parts:
            self.read += 1
            yield part


def test_no_more_of_a_body_is_read_than_may_be_sent():
    assert asyncio.run(cluster.received(Sent(b"ab", b"", b"cd", declared=4), 4)) == b"abcd"
    for sent, read in ((Sent(b"ab", b"cd", b"e", b"f"), 3), (Sent(b"abcde", declared=5), 0)):
        with pytest.raises(RequestError, match="larger than 4 bytes; send less") as refused:
            asyncio.run(cluster.received(sent, 4))
        assert refused.value.status == 413 and sent.read == read


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/admin/traffic/a/pin"),
        ("POST", "/v2/repository/models/a/load"),
        ("POST", "/jobs/a"),
        ("DELETE", "/jobs/1"),
    ],
)
def test_what_would_change_one_replica_is_refused(method, path):
    with pytest.raises(RequestError) as refused:
        cluster.check(method, path)
    status, headers, body = cluster.refused(path, refused.value)
    error = json.loads(body)["error"]
    told = error if path.startswith("/v2") else error["message"]  # clients of the protocol read text
    assert status == 501 and "is not answered by a cluster; change the store" in told
    assert dict(headers)["Content-Length"] == str(len(body))
    cluster.check("GET", path)


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
    yield Nodes(made.address, Path(made.head_node.get_session_dir_path()))
    made.shutdown()


class Nodes(NamedTuple):
    address: str
    session: Path  # where Ray keeps what its processes write


def logged(session):
    """Lines that the replicas wrote about requests."""
    texts = [path.read_text() for path in (session / "logs").glob("worker-*.err")]
    return [json.loads(line) for text in texts for line in text.splitlines() if '"route"' in line]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray
def test_two_nodes_answer_together(two_nodes, tmp_path):
    write_image(tmp_path / "store")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "serve.cluster", str(tmp_path / "store"), "--address", two_nodes.address]
    command += ["--port", str(port), "--replicas", "2", "--cpus", "1", "--ingress", "head", "--watch", "0.5"]
    command += ["--max-body", "100KB", "--threads", "1", "--timeout", "20", "--drain", "5", "--queue", "100"]
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
        assert ask(f"{url}/v2/models/sides/infer", {"inputs": [], "id": "x" * 200_000})[0] == 413
        until(lambda: len([line for line in logged(two_nodes.session) if line["status"] == 200]) == 40)

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
