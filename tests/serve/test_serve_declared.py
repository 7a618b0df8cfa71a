"""Traffic rules in a file: read, applied, followed, and kept apart from what operators do."""

import json
import logging
import os
import time

import pytest
from small_bundles import write_image
from test_serve_host import serving
from typer.testing import CliRunner

from serve.app import create_app
from serve.declared import load
from serve.errors import RequestError
from serve.guard import Guard
from serve.keys import KeyFile
from serve.store import Store
from serve.traffic import Traffic
from serve.watch import Watch
from zoo import remote

CAREFUL = {"sides": {"pin": "1", "canary": {"version": "2", "weight": 0.5}, "shadow": {"version": "3"}}}


@pytest.fixture
def file(tmp_path):
    """A function that writes the rules, as a whole and at once."""

    def write(rules):
        text = rules if isinstance(rules, str) else json.dumps(rules)
        draft = tmp_path / "draft"
        draft.write_text(text)
        return draft.replace(tmp_path / "traffic.json")

    return write


def following(path, folder=None):
    traffic = Traffic(folder, seed=1, every=0)
    traffic.follow(path)
    return traffic


def shares(traffic, versions, count=100):
    """How many of so many requests each version answers."""
    found = [traffic.choose("sides", versions)[0] for _ in range(count)]
    return {version: found.count(version) for version in sorted(set(found))}


def test_a_file_is_read_as_it_is_written(file):
    found = load(file({**CAREFUL, "dose": {"watch": {"slower": 3}}, "mood": {}}))
    assert found["sides"].canary.weight == 0.5 and found["sides"].shadow.share == 1.0
    assert found["dose"].watch == Watch(slower=3) and found["mood"].pin is None


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("", r"must hold a JSON object of rules by model, such as {\"digits\""),
        ("[]", "must hold a JSON object"),
        ("\xff", "must hold a JSON object"),
        ({"sides": {"pin": 1}}, "the rules of 'sides' cannot be used: Expected `str"),
        ({"sides": {"pinned": "1"}}, "unknown field `pinned`.*; they may have pin, canary, shadow, watch"),
        ({"sides": {"pin": "1", "canary": {"version": "2", "weight": 2}}}, "canary.weight must lie above 0"),
        ({"sides": {"shadow": {"version": "2", "share": 0}}}, "shadow.share must lie above 0"),
        ({"sides": {"canary": {"version": "2", "weight": 0.1}}}, "a canary needs a pin"),
        ({"sides": {"pin": "2", "canary": {"version": "2", "weight": 0.1}}}, "is the pin and the canary"),
        ({"sides": {"watch": {"slower": 0.5}}}, "slower"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_models_name(file, rules, message):
    with pytest.raises(ValueError, match=message):
        load(file(rules))


def test_the_rules_hold_from_the_first_request_on(file):
    traffic = following(file(CAREFUL))
    assert shares(traffic, ["1", "2", "3"]) == {"1": 50, "2": 50}
    assert traffic.choose("sides", ["1", "2", "3"])[1] == "3"
    assert traffic.choose("other", ["1", "2"]) == ("2", None)


def test_replicas_of_one_file_give_a_user_the_same_version(file):
    path = file(CAREFUL)
    first, second = following(path), following(path)
    users = [f"user {number}" for number in range(50)]
    found = [[traffic.choose("sides", ["1", "2"], user)[0] for user in users] for traffic in (first, second)]
    assert found[0] == found[1] and {"1", "2"} == set(found[0])


def test_rules_about_versions_that_are_to_come_wait(file):
    traffic = following(file(CAREFUL))
    assert shares(traffic, ["1"]) == {"1": 100}
    assert shares(traffic, ["1", "2"]) == {"1": 50, "2": 50}
    assert any("'3', which is not served" in message for message in traffic.describe("sides")["ignored"])


def test_a_changed_file_is_followed_and_a_bad_one_is_not(file, caplog):
    traffic = following(file(CAREFUL))
    assert shares(traffic, ["1", "2"]) == {"1": 50, "2": 50}
    file({"sides": {"pin": "1", "canary": {"version": "2", "weight": 0.1}}})
    traffic.tick()
    assert shares(traffic, ["1", "2"])["2"] in (9, 10, 11)
    with caplog.at_level(logging.ERROR):
        file({"sides": {"pin": 7}})
        traffic.tick()
    assert "what it said before stays in force" in caplog.text
    assert shares(traffic, ["1", "2"])["2"] in (9, 10, 11)
    file({"sides": {"pin": "1"}})
    traffic.tick()
    assert shares(traffic, ["1", "2"]) == {"1": 100}
    file({})
    traffic.tick()
    assert shares(traffic, ["1", "2"]) == {"2": 100}
    told = [event["detail"] for event in traffic.history("sides") if event["event"] == "declared"]
    assert told[0] == "the file names the model no more" and json.loads(told[1]) == {"pin": "1"} and len(told) == 4


def test_a_mounted_map_is_followed_through_its_links(tmp_path):
    for name, pin in (("first", "1"), ("second", "2")):  # as Kubernetes lays a ConfigMap down, and swaps it
        (tmp_path / name).mkdir()
        (tmp_path / name / "traffic.json").write_text(json.dumps({"sides": {"pin": pin}}))
    (tmp_path / "data").symlink_to("first")
    (tmp_path / "traffic.json").symlink_to("data/traffic.json")
    traffic = following(tmp_path / "traffic.json")
    assert shares(traffic, ["1", "2", "3"]) == {"1": 100}
    (tmp_path / "data_tmp").symlink_to("second")
    (tmp_path / "data_tmp").replace(tmp_path / "data")
    traffic.tick()
    assert shares(traffic, ["1", "2", "3"]) == {"2": 100}


def fail(traffic, version, count=40):
    for _ in range(count):
        traffic.record("sides", version, status=500, seconds=0.01, rows=1)


def test_what_a_replica_took_back_stays_so_until_the_file_changes(file, tmp_path):
    traffic = following(file(CAREFUL), tmp_path / "state")
    shares(traffic, ["1", "2"])
    fail(traffic, "2")
    assert shares(traffic, ["1", "2"]) == {"1": 100}
    file(json.dumps(CAREFUL, indent=1))  # another file, the same rules
    traffic.tick()
    assert shares(traffic, ["1", "2"]) == {"1": 100}
    traffic.close()
    again = following(tmp_path / "traffic.json", tmp_path / "state")  # after a restart too
    assert shares(again, ["1", "2"]) == {"1": 100} and "failures" not in again.describe("sides")["ignored"]
    assert "2" in again.describe("sides")["held"]
    file({"sides": {"pin": "1", "canary": {"version": "2", "weight": 0.4}}})
    again.tick()
    assert shares(again, ["1", "2"]) == {"1": 60, "2": 40}
    again.close()


def test_a_restart_without_the_model_in_the_file_ends_its_rules(file, tmp_path):
    following(file(CAREFUL), tmp_path / "state").close()
    again = following(file({}), tmp_path / "state")
    assert shares(again, ["1", "2"]) == {"2": 100}
    again.pin("sides", "1")
    again.close()
    after = following(tmp_path / "traffic.json", tmp_path / "state")
    assert shares(after, ["1", "2"]) == {"1": 100}  # an operator's rule is none of the file's
    after.close()


def test_operators_are_told_to_change_the_file(file, tmp_path):
    for version in ("1", "2"):
        write_image(tmp_path / "store", version)
        write_image(tmp_path / "store", version, name="free")
    keys = KeyFile(tmp_path / "keys.json")
    _, token = keys.make("operator", scopes=["admin"])
    headers = {"Authorization": f"Bearer {token}"}
    traffic = following(file(CAREFUL))
    store = Store(tmp_path / "store", threads=1)
    client = create_app(store, guard=Guard(keys=keys.path), traffic=traffic).test_client()
    for method, path, body in (
        ("PUT", "pin", {"version": "2"}),
        ("PUT", "canary", {"version": "2", "weight": 1.0}),
        ("PUT", "shadow", {"version": "2"}),
        ("PUT", "experiment", {"control": "1", "treatment": "2"}),
        ("PUT", "watch", {"on": False}),
        ("POST", "promote", {}),
        ("POST", "rollback", {}),
        ("DELETE", "canary", None),
        ("DELETE", "held/2", None),
    ):
        answer = client.open(f"/admin/traffic/sides/{path}", method=method, json=body, headers=headers)
        assert answer.status_code == 409, path
        assert "is ruled by the file 'traffic.json', for every replica alike" in answer.json["error"]["message"]
    told = client.get("/admin/traffic/sides", headers=headers).json
    assert told["shares"] == {"1": 0.5, "2": 0.5} and told["file"] == "traffic.json"
    assert "ruled by the file traffic.json; change it there" in remote.told(told)
    assert client.put("/admin/traffic/free/pin", json={"version": "1"}, headers=headers).json["file"] is None
    with pytest.raises(RequestError, match="change that file"):
        traffic.check_free("sides")


def test_a_server_follows_its_file(file, tmp_path):
    for version in ("1", "2"):
        write_image(tmp_path / "store", version)
    keys = KeyFile(tmp_path / "keys.json")
    _, token = keys.make("operator", scopes=["admin"])
    path = file({"sides": {"pin": "1"}})
    options = ("--workers", "1", "--keys", str(keys.path), "--rules", str(path), "--state", str(tmp_path / "state"))
    with serving(tmp_path / "store", *options) as (_, port):
        environment = {**os.environ, "ZOO_URL": f"http://127.0.0.1:{port}", "ZOO_KEY": token}

        def zoo(*words):
            return CliRunner().invoke(remote.traffic, words, env=environment)

        assert "(pinned, default)" in zoo("show", "sides").output
        assert "change that file" in str(zoo("pin", "sides", "2").exception)
        file({"sides": {"pin": "2"}})
        deadline = time.monotonic() + 20
        while json.loads(zoo("show", "sides", "--json").output)["pin"] != "2":
            assert time.monotonic() < deadline, "the file was not read again"
            time.sleep(0.05)


def test_a_server_does_not_start_with_rules_it_cannot_use(file, tmp_path):
    write_image(tmp_path / "store")
    with (
        pytest.raises(AssertionError, match=r"error: .*the rules of 'sides' cannot be used"),
        serving(tmp_path / "store", "--rules", str(file({"sides": {"pin": 1}}))),
    ):
        pass
