"""Routes for people: bodies by media type, answers by what is accepted, and what the page asks for."""

import io

import numpy as np
import pytest
from PIL import Image
from small_bundles import write_text

from serve.app import create_app
from serve.guard import Guard
from serve.keys import KeyFile
from serve.store import Store

TABLE = "age,weight,colour\n30,20,blue\n30,,mauve\n"


@pytest.fixture
def app(store_folder):
    write_text(store_folder)
    app = create_app(Store(store_folder, threads=1), explain_target="fake_explainers:echo")
    yield app
    app.extensions["explainer"].close()


@pytest.fixture
def client(app):
    return app.test_client()


def test_a_csv_body_gives_json(client):
    told = client.post("/predict/paints?top=1", data=TABLE, content_type="text/csv; charset=utf-8").json
    assert [row["label"] for row in told["predictions"]] == ["silk", "gloss"]
    assert [len(row["top"]) for row in told["predictions"]] == [1, 1]
    assert told["notes"] == ["column 'colour': 'mauve' was not seen in training and counts as missing"]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/csv", "text/csv"),
        ("text/csv, application/json;q=0.5", "text/csv"),
        ("application/json", "application/json"),
        ("*/*", "application/json"),
        ("text/html", "application/json"),
    ],
)
def test_the_answer_is_csv_when_that_is_accepted(client, accept, kind):
    answer = client.post("/predict/paints?top=2", data=TABLE, content_type="text/csv", headers={"Accept": accept})
    assert (answer.status_code, answer.mimetype) == (200, kind)
    if kind == "text/csv":
        lines = answer.text.split()
        assert lines[0] == "label,probability,label_2,probability_2"
        assert [line.partition(",")[0] for line in lines[1:]] == ["silk", "gloss"]


@pytest.mark.parametrize(
    ("name", "kind", "body"),
    [
        ("rows.csv", "text/csv", TABLE),
        ("rows.csv", "application/vnd.ms-excel", TABLE),  # as some browsers call it
        ("rows.tsv", None, TABLE.replace(",", "\t")),
        ("rows.json", None, '[{"age": 30, "weight": 20, "colour": "blue"}, {"age": 30}]'),
    ],
)
def test_a_form_may_carry_a_file_of_rows(client, name, kind, body):
    file = (io.BytesIO(body.encode()), name, *([kind] if kind else []))
    told = client.post("/predict/paints", data={"file": file}).json
    assert [row["label"] for row in told["predictions"]] == ["silk", "gloss"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [("good", "text/plain"), ('{"text": "good"}', "application/json"), ("text\ngood\n", "text/csv")],
)
def test_a_text_model_takes_text(client, body, kind):
    told = client.post("/predict/mood", data=body, content_type=kind).json
    assert [row["label"] for row in told["predictions"]] == ["positive"]


def test_a_body_without_a_media_type_is_read_as_what_it_is(client):
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(file, "PNG")
    assert client.post("/predict/sides", data=file.getvalue()).status_code == 200
    assert client.post("/predict/paints", data=b' {"age": 30}').status_code == 200
    refused = client.post("/predict/paints", data=b"age\n30\n")
    assert refused.status_code == 415
    assert "or a CSV file with a header row (text/csv)" in refused.json["error"]["message"]


def test_a_text_file_comes_in_a_form(client):
    told = client.post("/predict/mood", data={"file": (io.BytesIO(b"bad"), "note.txt")}).json
    assert told["predictions"][0]["label"] == "negative"
    assert client.get("/models/mood/examples").json == [{"text": "good"}, {"text": "bad"}]


@pytest.mark.parametrize(
    ("model", "body", "kind", "status", "message"),
    [
        ("paints", "hello", "text/plain", 415, "takes no text; send its columns as JSON"),
        ("sides", "hello", "text/plain", 415, "takes no text; send an image file"),
        ("sides", TABLE, "text/csv", 415, "no columns that a CSV file could fill"),
        ("mood", "\x89PNG", "image/png", 415, "takes no image; send plain text"),
        ("mood", "", "text/plain", 422, "'text' is empty"),
        ("paints", "age,weight\n1,2\n3,4,5\n", "text/csv", 422, "line 3 has 3 cells, the header has 2"),
        ("paints", "age=1", "application/x-www-form-urlencoded", 415, "say what it is with the header Content-Type"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_cure(client, model, body, kind, status, message):
    answer = client.post(f"/predict/{model}", data=body, content_type=kind)
    assert (answer.status_code, message in answer.json["error"]["message"]) == (status, True), answer.json


def test_live_figures_tell_versions_rules_and_requests(app, client):
    assert client.get("/models/sides/live").json["versions"][0]["roles"] == ["default"]
    traffic = app.extensions["traffic"]
    traffic.canary("sides", "10", 0.25)
    traffic.shadow("sides", "2")
    for _ in range(3):
        assert client.post("/predict/sides?version=9", json={"image": [[0] * 4] * 4}).status_code == 200
    told = client.get("/models/sides/live").json
    versions = {each["version"]: each for each in told["versions"]}
    assert list(versions) == ["10", "9", "2"]
    assert versions["10"]["roles"] == ["canary"] and versions["10"]["share"] == 0.25
    assert versions["9"]["roles"] == ["default"] and versions["9"]["requests"] >= 0.5
    assert versions["2"]["roles"] == ["shadow"]
    assert versions["9"]["p50_ms"] > 0 and versions["2"]["p50_ms"] is None
    assert {each["drift"]["state"] for each in versions.values()} == {"unknown"}  # these bundles have no baseline
    assert sum(told["history"]) == 3
    assert client.get("/models/nothing/live").status_code == 404


def test_a_key_for_one_model_sees_no_other(store_folder, tmp_path):
    _, token = KeyFile(tmp_path / "keys.json").make("one", models=("dose",))
    client = create_app(Store(store_folder, threads=1), guard=Guard(keys=tmp_path / "keys.json")).test_client()
    held = {"Authorization": f"Bearer {token}"}
    assert [entry["name"] for entry in client.get("/models", headers=held).json] == ["dose"]
    assert client.get("/models/sides/live", headers=held).status_code == 403
    assert client.get("/models").status_code == 401
    for path in ("/", "/page/app.js"):  # the page itself asks for the key
        with client.get(path) as answer:
            assert answer.status_code == 200
