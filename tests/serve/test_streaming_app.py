"""Continued texts from the Flask app alone, where a store answers in place: routes, rows of people, figures, refusals."""

import json
import logging

import pytest
from fake_generation import FAKE, write_teller
from small_bundles import write_text
from test_streaming import events, write_translator
from waiting import until

from serve.app import create_app
from serve.guard import Guard
from serve.keys import KeyFile
from serve.store import Store


@pytest.fixture
def folder(tmp_path):
    for version in ("1", "2"):
        write_teller(tmp_path, version)
    write_text(tmp_path)
    write_translator(tmp_path)
    return tmp_path


@pytest.fixture
def app(folder):
    app = create_app(Store(folder, threads=1, generator=FAKE, max_batch=4))
    yield app
    app.extensions["jobs"].close()
    app.extensions["explainer"].close()


@pytest.fixture
def client(app):
    return app.test_client()


def test_a_text_is_continued_whole(client):
    sent = {"text_input": "once", "parameters": {"max_tokens": 3}}
    told = {"model_name": "teller", "text_output": "1/1 2/1 3/1 ", "finish_reason": "length", "tokens": 3}
    assert client.post("/v2/models/teller/generate", json=sent).json == {**told, "model_version": "2"}
    assert client.post("/v2/models/teller/versions/1/generate", json=sent).json == {**told, "model_version": "1"}


def test_a_text_is_continued_in_events(client):
    sent = {"text_input": "end", "parameters": {"max_tokens": 3}}
    answer = client.post("/v2/models/teller/generate_stream", json=sent, buffered=False)
    assert answer.content_type == "text/event-stream; charset=utf-8" and answer.content_length is None
    parts = list(answer.iter_encoded())
    assert [events(part) for part in parts] == [
        [{"model_name": "teller", "model_version": "2", "text_output": "1/1 "}],
        [{"model_name": "teller", "model_version": "2", "text_output": "2/1 ", "finish_reason": "end", "tokens": 2}],
    ]


def test_a_reader_that_leaves_ends_its_text(app, client):
    answer = client.post("/v2/models/teller/generate_stream", json={"text_input": "once"}, buffered=False)
    parts = answer.iter_encoded()
    next(parts)
    model = app.extensions["store"].models["teller"]["2"]
    assert not model.writing.idle
    answer.close()
    assert model.writing.idle


def test_completions(client):
    sent = {"model": "teller", "prompt": "once", "max_tokens": 2, "temperature": 0}
    told = client.post("/v1/completions", json=sent).json
    assert told["choices"] == [{"text": "1/1 2/1 ", "index": 0, "logprobs": None, "finish_reason": "length"}]
    answer = client.post("/v1/completions", json={**sent, "stream": True})
    *pieces, done = events(answer.data)
    assert [piece["choices"][0]["text"] for piece in pieces] == ["1/1 ", "2/1 "] and done == "[DONE]"
    assert client.post("/v1/completions", json={**sent, "model": "teler"}).status_code == 404


@pytest.mark.parametrize(
    ("path", "sent", "status", "code", "message"),
    [
        ("/v2/models/teller/generate", {"text_input": ""}, 422, "bad_value", "'text_input' is empty"),
        ("/v2/models/teller/generate_stream", {"text_input": ""}, 422, "bad_value", "'text_input' is empty"),
        ("/v2/models/teller/generate_stream", {"text_input": "refuse"}, 422, "bad_value", "nothing to go on from"),
        ("/v2/models/teller/generate_stream", {"text_input": "fail"}, 500, "inference_failed", "the model failed"),
        ("/v2/models/teller/generate", {"text_input": "a", "top_p": 2}, 422, "bad_parameter", "'top_p' must be"),
        ("/v2/models/mood/generate", {"text_input": "a"}, 422, "not_generative", "continues no texts"),
        ("/v2/models/nobody/generate", {"text_input": "a"}, 404, "unknown_model", "no model is called"),
        ("/v1/completions", {"prompt": "a"}, 400, "bad_request", "missing required field `model`"),
    ],
)
def test_refusals_are_ordinary_errors(client, path, sent, status, code, message):
    answer = client.post(path, json=sent)
    told = answer.json["error"] if path == "/v1/completions" else {**answer.json, "message": answer.json["error"]}
    assert (answer.status_code, told["code"]) == (status, code)
    assert message in told["message"] and answer.content_type == "application/json"


def test_people_get_what_follows_their_texts(client):
    told = client.post("/predict/teller?max_tokens=2&version=1", json={"text": "once cut"}).json
    assert told == {
        "model": "teller", "version": "1",
        "predictions": [{"text": "1/1 2/1 ", "tokens": 2, "finish_reason": "length"}],
        "notes": ["only the end of it was read"],
    }  # fmt: skip
    two = client.post("/predict/teller?max_tokens=1", data="text\nonce\nend\n", content_type="text/csv").json
    assert [row["text"] for row in two["predictions"]] == ["1/2 ", "1/2 "]
    stopped = client.post("/predict/teller?stop=3&stop=9", data="once", content_type="text/plain").json
    assert stopped["predictions"] == [{"text": "1/1 2/1 ", "tokens": 3, "finish_reason": "stop"}]
    table = client.post("/predict/teller?max_tokens=1", json={"text": "a"}, headers={"Accept": "text/csv"})
    assert table.text == "text,finish_reason\r\n1/1 ,length\r\n"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("max_tokens=many", "'max_tokens' must be a whole number 1 … 100,000, got 'many'"),
        ("temperature=-1", "'temperature' must be a number 0 … 100, got -1.0"),
        ("top_p=nan", "'top_p' must be a number above 0, at most 1, got 'nan'"),
        ("stop=", "'stop' must be a text of 1 … 200 characters"),
    ],
)
def test_people_are_told_what_is_wrong_with_a_parameter(client, query, message):
    answer = client.post(f"/predict/teller?{query}", json={"text": "a"})
    assert answer.status_code == 422 and message in answer.json["error"]["message"]
    assert client.post(f"/jobs/teller?{query}", json={"text": "a"}).status_code in (202, 422)


def test_a_model_that_writes_answers_its_texts_everywhere(client):
    told = client.post("/predict/translator", json=[{"text": "end"}]).json
    assert told["predictions"] == [{"text": "1/1 2/1 ", "tokens": 2, "finish_reason": "end"}]
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["end"]}]}
    (output,) = client.post("/v2/models/translator/infer", json=body).json["outputs"]
    assert output == {"name": "output", "datatype": "BYTES", "shape": [1], "data": ["1/1 2/1 "]}
    assert client.post("/v1/models/translator:predict", json={"instances": ["end"]}).json == {
        "predictions": ["1/1 2/1 "]
    }
    assert client.post("/v2/models/translator/generate", json={"text_input": "end"}).json["tokens"] == 2


def test_jobs_continue_many_texts(app, client):
    rows = [{"text": "end"}] * 6
    at = client.post("/jobs/teller?max_tokens=9", json=rows).headers["Location"]
    until(lambda: client.get(at).json["state"] == "done")
    predictions = client.get(at).json["predictions"]
    assert len(predictions) == 6 and {row["finish_reason"] for row in predictions} == {"end"}
    lines = client.get(at, headers={"Accept": "text/csv"}).text.splitlines()
    assert lines[0] == "text,finish_reason" and len(lines) == 7


def test_a_text_is_not_explained(client):
    for path in ("/explain/teller", "/jobs/teller?kind=explain"):
        answer = client.post(path, json={"text": "a"})
        assert answer.status_code == 422 and answer.json["error"]["code"] == "cannot_explain"
        assert "'teller' writes texts, of which each token has reasons of its own" in answer.json["error"]["message"]


def test_figures_count_tokens_and_log_lines_hold_no_text(app, client, caplog):
    with caplog.at_level(logging.INFO, "serve.access"):
        sent = {"text_input": "once upon", "parameters": {"max_tokens": 3}}
        client.post("/v2/models/teller/generate", json=sent)
        assert client.post("/v2/models/teller/generate_stream", json=sent).data
        client.post("/predict/teller?max_tokens=4", json={"text": "once upon"})
    lines = [json.loads(record.message) for record in caplog.records if record.name == "serve.access"]
    assert [line["route"] for line in lines][:2] == [
        f"/v2/models/<model>/{verb}" for verb in ("generate", "generate_stream")
    ]
    assert "once" not in caplog.text and "1/1" not in caplog.text
    text = client.get("/metrics").text
    version = '{model="teller",version="2"}'
    assert f"zoo_tokens_total{version} 10.0" in text
    assert f"zoo_first_token_seconds_count{version} 2.0" in text
    assert f"zoo_rows_total{version} 3.0" in text


def test_keys_and_rates_hold(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    _, token = KeyFile(path).make("one", models=["mood"])
    client = create_app(Store(folder, threads=1, generator=FAKE), guard=Guard(keys=path)).test_client()
    headers = {"Authorization": f"Bearer {token}"}
    sent = {"model": "teller", "prompt": "a", "text_input": "a"}
    for route in ("/v2/models/teller/generate", "/v2/models/teller/generate_stream", "/v1/completions"):
        assert client.post(route, json=sent).status_code == 401
        assert client.post(route, json=sent, headers=headers).status_code == 403


def test_the_page_is_told_which_models_continue_texts(client):
    told = {model["name"]: (model["writes"], model["length"]) for model in client.get("/models").json}
    assert told == {"teller": ("continuation", 500), "mood": ("", 0), "translator": ("answer", 12)}


def test_the_document_lists_the_routes(client):
    told = client.get("/openapi.json").json
    for path in ("/v2/models/{model}/generate", "/v2/models/{model}/generate_stream", "/v1/completions"):
        body = told["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert body["schema"]["$ref"].startswith("#/components/schemas/") and len(body["examples"]) == 2
        for name, example in body["examples"].items():
            assert client.post(path.replace("{model}", name), json=example["value"]).status_code == 200
    assert "text/event-stream" in told["paths"]["/v1/completions"]["post"]["responses"]["200"]["content"]
    names = {each["name"] for each in told["paths"]["/predict/{model}"]["post"]["parameters"]}
    assert {"max_tokens", "temperature", "top_k", "top_p", "beams", "seed", "stop"} <= names
