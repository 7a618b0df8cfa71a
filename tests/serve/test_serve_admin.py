"""Traffic changed over HTTP and from the command line."""

import json
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from small_bundles import NUMBERS, VALUE, value_graph, write_bundle, write_image
from test_serve_traffic import BOTH
from typer.testing import CliRunner
from werkzeug.serving import make_server

from serve.app import create_app
from serve.guard import Guard
from serve.keys import KeyFile
from serve.store import Store
from serve.traffic import Traffic
from zoo import remote


@pytest.fixture
def served(store_folder, tmp_path):
    """A client of an app with keys, its traffic, and the headers of an operator and of a customer."""
    keys = KeyFile(tmp_path / "keys.json")
    _, admin = keys.make("operator", scopes=["predict", "admin"])
    _, customer = keys.make("customer", scopes=["predict"])
    traffic = Traffic(tmp_path / "state", seed=0, every=0)
    app = create_app(Store(store_folder, threads=1), guard=Guard(keys=keys.path), traffic=traffic)
    yield app, traffic, bearer(admin), bearer(customer)
    app.extensions["explainer"].close()
    traffic.close()


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


PIXELS = {"inputs": [{"name": "image", "shape": [1, 4, 4, 1], "datatype": "UINT8", "data": [0, 0, 255, 255] * 4}]}


def test_an_operator_changes_traffic_and_requests_follow(served):
    app, _, admin, customer = served
    client = app.test_client()

    answered = []

    def version(headers=customer):
        answer = client.post("/v2/models/sides/infer", json=PIXELS, headers=headers)
        assert answer.status_code == 200, answer.json
        answered.append(answer.json["model_version"])
        return answered[-1]

    def change(method, rule, **body):
        answer = client.open(f"/admin/traffic/sides{rule}", method=method, json=body or None, headers=admin)
        assert answer.status_code == 200, answer.json
        assert answer.json["state"]["saved"]
        return answer.json

    assert version() == "10"
    assert change("PUT", "/pin", version="9")["default"] == "9"
    assert version() == "9"
    assert change("PUT", "/canary", version="10", weight=0.5)["shares"] == {"9": 0.5, "10": 0.5}
    seen = [version() for _ in range(20)]
    assert 8 <= seen.count("10") <= 12
    mine = {**customer, "X-Traffic-Key": "user 7"}
    assert len({version(mine) for _ in range(6)}) == 1
    assert change("POST", "/promote")["pin"] == "10"
    assert version() == "10"
    assert change("POST", "/rollback", reason="too many lefts")["held"] == {"10": "too many lefts"}
    assert version() == "9"
    assert change("DELETE", "/held/10")["held"] == {}
    assert change("PUT", "/watch", slower=3.5)["watch"]["slower"] == 3.5
    assert change("PUT", "/shadow", version="2")["shadow"]["share"] == 1.0
    assert change("DELETE", "/shadow")["shadow"] is None
    assert change("DELETE", "")["default"] == "10"
    told = client.get("/admin/history/sides?limit=3", headers=admin).json
    assert [event["event"] for event in told] == ["default", "cleared", "cleared"]
    counted = client.get("/admin/traffic/sides", headers=admin).json["answers"]
    assert counted["9"]["requests"] == answered.count("9") - 1  # the canary's start began its count anew
    assert {each["model"] for each in client.get("/admin/traffic", headers=admin).json} == {"sides", "paints", "dose"}


def test_an_experiment_over_http(served):
    app, _, admin, customer = served
    client = app.test_client()
    body = {"control": "9", "treatment": "10", "metric": "clicked", "alpha": 0.1}
    assert client.put("/admin/traffic/sides/experiment", json=body, headers=admin).status_code == 200
    reports = []
    for number in range(12):
        answer = client.post("/v2/models/sides/infer", json=PIXELS | {"id": f"r{number}"}, headers=customer).json
        reports.append({"request": answer["id"], "version": answer["model_version"], "outcome": number % 2})
    told = client.post("/feedback/sides", json=reports[:11], headers=customer).json
    assert told == [{"counted": True}] * 11
    assert client.post("/feedback/sides", json=reports[11], headers=customer).json == {"counted": True}
    again = client.post("/feedback/sides", json=[reports[0], {"outcome": 5, "request": "x"}], headers=customer).json
    assert [each["counted"] for each in again] == [False, False]
    trial = client.get("/admin/traffic/sides", headers=admin).json["experiment"]
    assert trial["outcome"]["control"]["count"] + trial["outcome"]["treatment"]["count"] == 12
    assert trial["failures"]["control"]["count"] + trial["failures"]["treatment"]["count"] == 12


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("PUT", "/admin/traffic/sides/pin", {"version": "3"}, 404, "unknown_version"),
        ("PUT", "/admin/traffic/side/pin", {"version": "2"}, 404, "unknown_model"),
        ("PUT", "/admin/traffic/damaged/pin", {"version": "1"}, 503, "refused"),
        ("PUT", "/admin/traffic/sides/pin", {"version": 2}, 400, "bad_request"),
        ("PUT", "/admin/traffic/sides/pin", {"verson": "2"}, 400, "bad_request"),
        ("PUT", "/admin/traffic/sides/pin", None, 400, "bad_json"),
        ("PUT", "/admin/traffic/sides/canary", {"version": "2", "weight": 2}, 422, "bad_traffic"),
        ("PUT", "/admin/traffic/sides/watch", [1], 400, "bad_request"),
        ("PUT", "/admin/traffic/sides/watch", {"quick": 1}, 422, "bad_traffic"),
        ("POST", "/admin/traffic/dose/rollback", None, 409, "traffic_conflict"),
        ("DELETE", "/admin/traffic/sides/nothing", None, 422, "bad_traffic"),
        ("GET", "/admin/history?limit=0", None, 422, "bad_parameter"),
        ("POST", "/feedback/sides", {"outcome": 1, "request": "a"}, 409, "no_experiment"),
        ("POST", "/feedback/sides", [{"outcome": "much"}], 400, "bad_request"),
        ("POST", "/feedback/sides", [{"outcome": 1}] * 1001, 413, "too_many"),
    ],
)
def test_a_refusal_is_json_with_code_and_message(served, method, path, body, status, code):
    app, _, admin, _ = served
    answer = app.test_client().open(path, method=method, json=body, headers=admin)
    assert (answer.status_code, answer.json["error"]["code"]) == (status, code)
    assert answer.json["error"]["message"]


def test_versions_that_read_other_inputs_are_compared_only_by_force(served, store_folder):
    app, traffic, admin, _ = served
    golden = ({"numbers": np.array([[30, 20]], np.float32)}, {"value": np.array([[80]], np.float32)})
    facts = {"task": "regression", "kind": "table", "inputs": (NUMBERS,), "outputs": (VALUE,), "labels": ("mg",)}
    write_bundle(store_folder, "sides", "11", value_graph, golden, **facts)
    traffic.see("sides", ["2", "9", "10"])
    traffic.pin("sides", "10")
    app.extensions["store"].rescan()
    client = app.test_client()
    body = {"version": "11", "weight": 0.5}
    refused = client.put("/admin/traffic/sides/canary", json=body, headers=admin)
    assert (refused.status_code, refused.json["error"]["code"]) == (409, "inputs_differ")
    assert client.put("/admin/traffic/sides/canary", json={**body, "force": True}, headers=admin).status_code == 200


@pytest.mark.parametrize("path", ["/admin/traffic", "/admin/traffic/sides", "/admin/history", "/admin/workers"])
def test_admin_routes_are_for_operators(served, store, path):
    app, _, admin, customer = served
    client = app.test_client()
    assert client.get(path).status_code == 401
    assert client.get(path, headers=customer).status_code == 403
    assert client.get(path, headers=admin).status_code == 200
    open_app = create_app(store)
    assert open_app.test_client().get(path).json["error"]["code"] == "forbidden"


def test_workers_and_whether_the_state_is_saved(served):
    app, _, admin, _ = served
    told = app.test_client().get("/admin/workers", headers=admin).json
    assert told["ready"] is True
    assert told["state"] == {"saved": True, "problem": ""}


def start(store, keys, state):
    """A server of its own process, and its address."""
    code = (
        "import sys; from serve import Settings, run; store, keys, state = sys.argv[1:];"
        "run(Settings(store, port=0, keys=keys, state=state, workers=1, access_log=False))"
    )
    command = [sys.executable, "-c", code, str(store), str(keys), str(state)]
    root = Path(__file__).parents[2]
    server = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in server.stdout:
        if " at http://" in line:
            return server, line.split(" at ")[1].strip()
    raise AssertionError("the server ended")


def test_a_server_that_is_killed_comes_back_with_its_canary(tmp_path):
    for version in BOTH:
        write_image(tmp_path / "store", version)
    keys, state = KeyFile(tmp_path / "keys.json"), tmp_path / "state"
    _, admin = keys.make("operator", scopes=["predict", "admin"])
    server, url = start(tmp_path / "store", keys.path, state)
    try:

        def versions(headers, count=1):
            sent = {"headers": {**bearer(admin), "Content-Type": "application/json", **headers}, "method": "POST"}
            found = []
            for _ in range(count):
                request = urllib.request.Request(f"{url}/v2/models/sides/infer", json.dumps(PIXELS).encode(), **sent)
                with urllib.request.urlopen(request, timeout=20) as answer:
                    found.append(json.load(answer)["model_version"])
            return found

        assert versions({}) == ["2"]
        body = {"version": "2", "weight": 0.5}
        remote.ask("PUT", url, "/admin/traffic/sides/canary", bearer(admin)["Authorization"][7:], body)
        remote.ask("PUT", url, "/admin/traffic/sides/shadow", bearer(admin)["Authorization"][7:], {"version": "1"})
        assert 8 <= versions({}, 20).count("2") <= 12
        users = [{"X-Traffic-Key": f"user {number}"} for number in range(10)]
        before = [versions(user) for user in users]
        assert ["1"] in before and ["2"] in before
        server.kill()
        server.wait(10)
        server.stdout.close()
        server, url = start(tmp_path / "store", keys.path, state)
        assert [versions(user) for user in users] == before
        assert 8 <= versions({}, 20).count("2") <= 12
        told = remote.ask("GET", url, "/admin/traffic/sides", bearer(admin)["Authorization"][7:])
        assert told["shares"] == {"1": 0.5, "2": 0.5}
        assert told["shadow"]["comparison"]["rows"] >= 8
        assert told["shadow"]["comparison"]["confidence_difference"]["largest"] == 0.0
    finally:
        server.terminate()
        server.wait(20)
        server.stdout.close()


@contextmanager
def listening(app):
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def test_the_command_line_changes_a_running_server(served):
    app, traffic, admin, _ = served
    with listening(app) as url:
        environment = {"ZOO_URL": url, "ZOO_KEY": admin["Authorization"].removeprefix("Bearer ")}

        def zoo(*words):
            done = CliRunner().invoke(remote.traffic, words, env=environment)
            assert done.exception is None, done.exception
            return done.output

        assert "10       100.0%  no requests  (default)" in zoo("show", "sides")
        assert "(pinned, default)" in zoo("pin", "sides", "9")
        assert "10        25.0%" in zoo("canary", "sides", "10", "0.25")
        assert "shadow 2: nothing compared yet" in zoo("shadow", "sides", "2")
        traffic.record("sides", "2", status=500, seconds=0.001, rows=0, shadow=True)
        assert "shadow 2: 1 of 1 copies failed" in zoo("show", "sides")
        traffic.disagreed("sides", "9", "2", [0, 1], [0, 2], ["dark", "left", "right"], [0.5, 0.9], [0.5, 0.8])
        assert "another class for 50.00% of 2 rows, confidences differ by at most 0.1" in zoo("show", "sides")
        assert "left: 1 of 1 rows" in zoo("show", "sides")
        zoo("shadow", "sides", "10")
        traffic.disagreed("sides", "9", "10", None, None, ("dose",), [1.0, 3.0], [1.0, 3.5])
        told = zoo("show", "sides")
        assert "another value for 50.00% of 2 rows, by more than 0.1, a tenth of the values' spread" in told
        assert "0.25 on average, at most 0.5" in told
        zoo("promote", "sides")
        assert "version 10 is held back: blurred" in zoo("rollback", "sides", "--reason", "blurred")
        zoo("release", "sides", "10")
        zoo("clear", "sides")
        assert "experiment: 10 against 9 by 'clicked', higher is better" in zoo(
            "experiment", "sides", "9", "10", "--metric", "clicked"
        )
        zoo("watch", "sides", "--set", "slower=3", "--set", "on=false")
        told = json.loads(zoo("show", "sides", "--json"))
        assert (told["watch"]["slower"], told["watch"]["on"]) == (3.0, False)
        assert "rolled_back version 10: operator: blurred" in zoo("history", "sides")
        assert json.loads(zoo("history", "--json", "--limit", "1"))[0]["event"] == "watch"
        assert zoo("workers").startswith("ready")
        refused = CliRunner().invoke(remote.traffic, ["pin", "sides", "77"], env=environment)
        assert "has no version '77'; it has 2, 9, 10" in str(refused.exception)
        refused = CliRunner().invoke(remote.traffic, ["show"], env={"ZOO_URL": url})
        assert "give the key with --key or ZOO_KEY" in str(refused.exception)
    gone = CliRunner().invoke(remote.traffic, ["show"], env={"ZOO_URL": url})
    assert "no server answers at" in str(gone.exception)


def test_the_help_of_the_command_line_teaches():
    told = CliRunner().invoke(remote.traffic, ["--help"]).output
    for word in ("zoo traffic canary digits 2 0.1", "zoo traffic promote digits", "ZOO_KEY"):
        assert word in told
    names = [command.callback.__name__ for command in remote.traffic.registered_commands]
    assert len(names) >= 12
    for name in names:
        assert f"Example: zoo traffic {name}" in CliRunner().invoke(remote.traffic, [name, "--help"]).output
