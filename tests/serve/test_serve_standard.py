import gzip
import json
import zlib

import numpy as np
import pytest
from small_bundles import softmax

from serve import protocol
from serve.app import create_app
from serve.guard import Guard
from serve.keys import KeyFile

RIGHT = [[[[0], [0], [255], [255]]] * 4]
PIXELS = np.array(RIGHT, np.uint8)
SCORES = softmax([[0, 0, 4]])


@pytest.fixture
def client(store):
    app = create_app(store, max_body=20_000)
    yield app.test_client()
    app.extensions["explainer"].close()


def binary(**parameters):
    header = {
        "inputs": [
            {"name": "image", "shape": [1, 4, 4, 1], "datatype": "UINT8", "parameters": {"binary_data_size": 16}}
        ]
    }
    header = json.dumps({**header, **parameters}).encode()
    return {"data": header + PIXELS.tobytes(), "headers": {"Inference-Header-Content-Length": str(len(header))}}


def test_binary_tensors_in_both_directions(client):
    answer = client.post("/v2/models/sides/infer", **binary(parameters={"binary_data_output": True}))
    assert (answer.status_code, answer.mimetype) == (200, "application/octet-stream")
    length = int(answer.headers["Inference-Header-Content-Length"])
    np.testing.assert_allclose(protocol.unpack(answer.data, length)["probabilities"], SCORES, atol=1e-6)
    assert json.loads(answer.data[:length])["outputs"][0]["parameters"] == {"binary_data_size": 12}


def test_binary_in_and_json_out(client):
    answer = client.post("/v2/models/sides/versions/9/infer", **binary(id="a"))
    assert "Inference-Header-Content-Length" not in answer.headers
    assert (answer.json["id"], answer.json["model_version"]) == ("a", "9")
    np.testing.assert_allclose(answer.json["outputs"][0]["data"], SCORES[0], atol=1e-6)


def test_classification(client):
    wanted = [{"name": "probabilities", "parameters": {"classification": 1}}]
    (output,) = client.post("/v2/models/sides/infer", **binary(outputs=wanted)).json["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1, 1])
    value, index, label = output["data"][0].split(":")
    assert (index, label) == ("2", "right")
    assert float(value) == pytest.approx(float(SCORES[0, 2]), abs=1e-6)


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_packed_bodies_are_unpacked_within_the_limit(client, pack):
    encoding = {"Content-Encoding": "gzip" if pack is gzip.compress else "deflate"}
    sent = binary()
    headers = {**sent["headers"], **encoding}
    assert client.post("/v2/models/sides/infer", data=pack(sent["data"]), headers=headers).status_code == 200
    bomb = client.post("/v2/models/sides/infer", data=pack(bytes(10_000_000)), headers=headers)
    assert (bomb.status_code, bomb.json["code"]) == (413, "too_large")
    damaged = client.post("/v2/models/sides/infer", data=pack(sent["data"])[:-9], headers=headers)
    assert (damaged.status_code, damaged.json["code"]) == (400, "bad_body")
    other = client.post("/v2/models/sides/infer", data=b"", headers={"Content-Encoding": "br"})
    assert (other.status_code, other.headers["Accept-Encoding"]) == (415, "gzip, deflate")


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"Inference-Header-Content-Length": "-1"}, "count of bytes, got '-1'"),
        ({"Inference-Header-Content-Length": "9" * 30}, "count of bytes"),
        ({"Inference-Header-Content-Length": "0"}, "is 0"),
    ],
)
def test_a_bad_header_length_is_refused(client, headers, message):
    answer = client.post("/v2/models/sides/infer", data=binary()["data"], headers=headers)
    assert (answer.status_code, answer.json["code"]) == (400, "bad_header")
    assert message in answer.json["error"]


def test_the_server_names_its_extensions(client):
    told = client.get("/v2").json
    assert {"binary_tensor_data", "classification", "model_repository"} <= set(told["extensions"])
    assert told["version"]


def test_configuration(client):
    told = client.get("/v2/models/paints/config").json
    assert (told["name"], told["max_batch_size"]) == ("paints", 1024)
    assert told["input"][1] == {"name": "categories", "data_type": "TYPE_STRING", "dims": [1]}


@pytest.mark.parametrize("path", ["/v2", "/v2/models/sides", "/v2/models/sides/config", "/v1/models/sides/metadata"])
def test_what_seldom_changes_has_a_tag(client, path):
    first = client.get(path)
    assert first.headers["Cache-Control"] == "no-cache"
    again = client.get(path, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    assert client.get(path, headers={"If-None-Match": '"other"'}).json == first.json


def test_answers_and_states_are_not_kept(client):
    for answer in (client.get("/v2/models/sides/ready"), client.post("/v2/models/sides/infer", **binary())):
        assert answer.status_code == 200
        assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("change", ["load", "unload"])
def test_nobody_loads_or_unloads_without_keys(client, change):
    answer = client.post(f"/v2/repository/models/sides/{change}")
    assert (answer.status_code, answer.json["code"]) == (403, "forbidden")
    assert "zoo keys make" in answer.json["error"]


def test_load_and_unload_with_a_key(store, tmp_path):
    keys = KeyFile(tmp_path / "keys.json")
    _, token = keys.make("operator", scopes=["predict", "admin"])
    client = create_app(store, guard=Guard(keys=keys.path)).test_client()
    unload, load = ("/v2/repository/models/sides/" + each for each in ("unload", "load"))
    assert client.post(unload).status_code == 401
    key = {"Authorization": f"Bearer {token}"}

    def answering():
        sent = binary()
        return client.post("/v2/models/sides/infer", data=sent["data"], headers={**sent["headers"], **key}).json[
            "model_version"
        ]

    one = {"parameters": {"version": "10", "unload_dependents": False}}
    assert client.post(unload, headers=key, json=one).json == {}
    assert answering() == "9"
    assert client.post(unload, headers=key).status_code == 200
    assert client.get("/v2/models/sides/ready", headers=key).status_code >= 400
    assert client.post(load, headers=key, json={}).status_code == 200
    assert answering() == "10"
    for path, sent, status in (
        (load, {"parameters": {"config": "{}"}}, 400),
        (load, {"parameters": {"version": 10}}, 400),
        (load, {"parameters": []}, 200),
        (load, {"parameters": [1]}, 400),
        (load, [], 400),
        ("/v2/repository/models/nothing/load", {}, 404),
        ("/v2/repository/models/..%2fsides/load", {}, 404),
    ):
        assert client.post(path, headers=key, json=sent).status_code == status, (path, sent)


def test_the_index_can_be_limited_to_what_is_ready(client):
    assert len(client.post("/v2/repository/index", json={"ready": True}).json) == 5
    assert len(client.post("/v2/repository/index", json={"ready": False}).json) == 6
    for sent in ({"ready": 1}, []):
        assert client.post("/v2/repository/index", json=sent).status_code == 400


def test_v1_predict_in_rows_and_columns(client):
    expected = pytest.approx(SCORES.tolist()[0], abs=1e-6)
    assert client.post("/v1/models/sides:predict", json={"instances": RIGHT}).json == {"predictions": [expected]}
    assert client.post("/v1/models/sides/versions/9:predict", json={"inputs": RIGHT}).json == {"outputs": [expected]}
    row = {"numbers": [30, 20], "categories": ["blue"]}
    answer = client.post("/v1/models/paints:predict", json={"instances": [row, row]})
    assert np.argmax(answer.json["predictions"], axis=1).tolist() == [2, 2]


def test_v1_status_and_metadata(client):
    assert client.get("/v1/models").json == {"models": ["dose", "paints", "sides"]}
    told = client.get("/v1/models/sides").json
    assert told["ready"] is True
    assert [(each["version"], each["state"]) for each in told["model_version_status"]] == [
        (version, "AVAILABLE") for version in ("10", "9", "2")
    ]
    (one,) = client.get("/v1/models/sides/versions/9").json["model_version_status"]
    assert one == {"version": "9", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    told = client.get("/v1/models/damaged").json
    assert told["ready"] is False
    assert "does not match its hash" in told["model_version_status"][0]["status"]["error_message"]
    assert client.get("/v1/models/sides/versions/9/metadata").json["model_spec"]["version"] == "9"


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "code"),
    [
        ("post", "/v1/models/side:predict", {"instances": RIGHT}, 404, "unknown_model"),
        ("post", "/v1/models/sides/versions/3:predict", {"instances": RIGHT}, 404, "unknown_version"),
        ("post", "/v1/models/sides:predict", {"instances": [[1]]}, 422, "bad_shape"),
        ("post", "/v1/models/sides:predict", {"instances": []}, 400, "bad_request"),
        ("post", "/v1/models/sides:classify", {}, 405, "wrong_method"),
        ("post", "/v1/models/damaged:predict", {"instances": RIGHT}, 503, "refused"),
        ("get", "/v1/models/side", None, 404, "unknown_model"),
        ("get", "/v1/models/sides/versions/3", None, 404, "unknown_version"),
    ],
)
def test_v1_errors_are_text(client, method, path, sent, status, code):
    answer = getattr(client, method)(path, **({} if sent is None else {"json": sent}))
    assert (answer.status_code, answer.json["code"]) == (status, code)
    assert isinstance(answer.json["error"], str)
