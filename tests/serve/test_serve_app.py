import base64
import io
import json
import logging
import re
import threading
import time

import numpy as np
import pytest
import small_bundles
from PIL import Image
from small_bundles import LABELS, softmax

from serve.app import create_app
from serve.manifest import seal
from serve.store import Store

RIGHT = [[0, 0, 255, 255]] * 4  # pixels of the image model's label "right"


@pytest.fixture
def app(store):
    app = create_app(store, max_body=20_000, explain_target="fake_explainers:echo")
    yield app
    app.extensions["explainer"].close()


@pytest.fixture
def client(app):
    return app.test_client()


def picture(pixels=RIGHT, scale=1):
    file = io.BytesIO()
    Image.fromarray(np.kron(np.array(pixels, np.uint8), np.ones((scale, scale), np.uint8))).save(file, "PNG")
    return file.getvalue()


def tensor(data, shape, name="image", datatype="UINT8"):
    return {"inputs": [{"name": name, "shape": shape, "datatype": datatype, "data": data}]}


def test_server_and_model_metadata(client):
    assert client.get("/v2").json["name"] == "zooroad"
    assert client.get("/v2/models/paints/versions/1").json == {
        "name": "paints",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "numbers", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "categories", "datatype": "BYTES", "shape": [-1, 1]},
        ],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}],
    }


def test_health(client, store):
    assert client.get("/v2/health/live").json == {"live": True}
    assert client.get("/v2/health/ready").status_code == 200
    assert client.get("/v2/models/sides/ready").json == {"name": "sides", "version": "10", "ready": True}
    assert client.get("/healthz").json == {"ready": True, "models": 3, "refused": 1}
    store.draining = True
    assert client.get("/v2/health/ready").status_code == 503
    assert client.get("/v2/models/sides/ready").status_code == 503
    assert client.get("/v2/health/live").status_code == 200


def test_an_empty_store_is_alive_but_not_ready(tmp_path):
    client = create_app(tmp_path).test_client()
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/health/ready").status_code == 503


def test_repository_index(client):
    entries = client.post("/v2/repository/index").json
    assert [entry["state"] for entry in entries] == ["UNAVAILABLE"] + ["READY"] * 5
    assert "does not match its hash" in entries[0]["reason"]
    assert len(client.post("/v2/repository/index", json={"ready": True}).json) == 5


def test_infer(client):
    body = {"id": "seven", **tensor([RIGHT, np.zeros((4, 4), int).tolist()], [2, 4, 4, 1])}
    answer = client.post("/v2/models/sides/infer", json=body).json
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("sides", "10", "seven")
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("probabilities", "FP32", [2, 3])
    np.testing.assert_allclose(output["data"], softmax([[0, 0, 4], [0, 0, 0]]).ravel(), atol=1e-6)


def test_infer_a_version(client):
    body = tensor([0] * 16, [1, 4, 4, 1])
    assert client.post("/v2/models/sides/versions/9/infer", json=body).json["model_version"] == "9"


def test_predict_agrees_for_pixels_a_file_and_a_form(client):
    expected = softmax([0, 0, 4])
    answers = [
        client.post("/predict/sides", json={"image": RIGHT}),
        client.post("/predict/sides", data=picture(), content_type="image/png"),
        client.post("/predict/sides", data={"image": (io.BytesIO(picture()), "right.png")}),
    ]
    for answer in answers:
        assert (answer.json["model"], answer.json["version"], answer.json["notes"]) == ("sides", "10", [])
        (row,) = answer.json["predictions"]
        assert row["label"] == "right"
        assert {entry["label"]: entry["probability"] for entry in row["top"]} == {
            label: pytest.approx(share, abs=1e-5) for label, share in zip(LABELS, expected, strict=True)
        }


def test_predict_several_files_with_top_and_version(client):
    left = [[255, 255, 0, 0]] * 4
    files = [(io.BytesIO(picture(RIGHT, 5)), "a.png"), (io.BytesIO(picture(left, 5)), "b.png")]
    answer = client.post("/predict/sides?top=1&version=2&max_token=5", data={"image": files}).json
    assert answer["version"] == "2"
    unknown = "no parameter is called 'max_token', so it was left out. Did you mean 'max_tokens'?"
    assert answer["notes"] == [unknown]
    assert [row["label"] for row in answer["predictions"]] == ["right", "left"]
    assert [len(row["top"]) for row in answer["predictions"]] == [1, 1]


def test_predict_rows(client):
    row = {"age": 30, "weight": 20, "colour": "blue"}
    assert client.post("/predict/paints", json=row).json["predictions"][0]["label"] == "silk"
    answer = client.post("/predict/paints", json=[row, {"age": 30, "colour": "mauve"}]).json
    assert [each["label"] for each in answer["predictions"]] == ["silk", "gloss"]
    assert answer["notes"] == [
        "not sent, so taken as missing: weight",
        "column 'colour': 'mauve' was not seen in training and counts as missing",
    ]
    assert client.post("/predict/dose", json={"age": 30}).json["predictions"] == [
        {"value": 130.0, "target": "milligram"}
    ]


def test_models_and_examples_describe_what_the_page_needs(client):
    models = {entry["name"]: entry for entry in client.get("/models").json}
    assert [version["version"] for version in models["sides"]["versions"]] == ["10", "9", "2"]
    assert models["paints"]["choices"] == {"colour": ["red", "blue"]}
    assert models["paints"]["inputs"][0]["columns"] == ["age", "weight"]
    assert models["damaged"]["versions"][0]["state"] == "UNAVAILABLE"
    examples = client.get("/models/paints/examples").json
    assert examples == [
        {"age": 30.0, "weight": 20.0, "colour": "blue"},
        {"age": None, "weight": 80.0, "colour": None},
    ]
    assert client.post("/predict/paints", json=examples).status_code == 200
    assert client.get("/models/sides/examples").json[1]["image"][0] == [[0], [0], [255], [255]]


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code", "message"),
    [
        ("get", "/nowhere", {}, 404, "unknown_path", "nothing is at '/nowhere'"),
        ("get", "/page/../app.py", {}, 404, "unknown_path", "nothing is at"),
        ("get", "/predict/sides", {}, 405, "wrong_method", "GET is not answered here; use POST"),
        ("post", "/predict/side", {"json": {}}, 404, "unknown_model", "Did you mean 'sides'"),
        ("post", "/predict/sides?version=3", {"json": {}}, 404, "unknown_version", "it has 2, 9, 10"),
        ("post", "/predict/damaged", {"json": {}}, 503, "refused", "does not match its hash"),
        ("post", "/predict/sides", {"json": {"image": [[0] * 3] * 3}}, 422, "bad_shape", "(batch, 4, 4, 1), got (1, 3, 3"),
        ("post", "/predict/sides", {"json": {"image": [[300] * 4] * 4}}, 422, "out_of_range", "UINT8 is 0 … 255"),
        ("post", "/predict/sides", {"data": b"{", "content_type": "application/json"}, 400, "bad_json", "not JSON"),
        ("post", "/predict/sides", {"data": b"a=1", "content_type": "text/csv"}, 415, "unsupported_media", "no columns that a CSV file"),
        ("post", "/predict/sides", {"data": b"GIF", "content_type": "image/gif"}, 422, "bad_image", "not an image"),
        ("post", "/predict/sides", {"data": {"a": "text"}, "content_type": "multipart/form-data"}, 400, "bad_request", "no file"),
        ("post", "/predict/sides", {"data": bytes(20_001), "content_type": "image/png"}, 413, "too_large", "larger than 20000"),
        ("post", "/predict/paints", {"data": b"", "content_type": "image/png"}, 415, "unsupported_media", "as JSON, such as"),
        ("post", "/predict/paints", {"json": {"hue": 1}}, 422, "unknown_column", "no column is called 'hue'"),
        ("post", "/predict/paints", {"json": []}, 400, "bad_request", "one object per row"),
        ("post", "/predict/dose", {"data": b'{"age": NaN}', "content_type": "application/json"}, 400, "bad_json", "send null"),
        ("post", "/predict/dose?top=0", {"json": {"age": 1}}, 422, "bad_parameter", "above 0, got '0'"),
        ("post", "/explain/dose", {"json": [{"age": 1}, {"age": 2}]}, 422, "bad_batch", "one row"),
        ("post", "/explain/sides?label=up", {"json": {"image": RIGHT}}, 422, "bad_parameter", "dark, left, right"),
    ],
)  # fmt: skip
def test_bad_requests_get_a_status_a_code_and_a_cure(client, method, path, options, status, code, message):
    answer = getattr(client, method)(path, **options)
    assert (answer.status_code, answer.json["error"]["code"]) == (status, code)
    assert message in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("path", "options", "status", "code"),
    [
        ("/v2/models/side/infer", {"json": {}}, 404, "unknown_model"),
        ("/v2/models/sides/infer", {"json": {}}, 400, "bad_request"),
        ("/v2/models/sides/infer", {"data": b"nonsense"}, 400, "bad_json"),
        ("/v2/models/sides/infer", {"json": tensor([0] * 16, [4, 4, 1])}, 422, "bad_shape"),
        ("/v2/models/sides/infer", {"json": tensor([0] * 16, [1, 4, 4, 1], datatype="FP32")}, 422, "bad_datatype"),
        ("/v2/models/sides/infer", {"json": {}, "headers": {"Inference-Header-Content-Length": "9"}}, 400, "bad_header"),
        ("/v2/models/sides", {}, 405, "wrong_method"),
        ("/v2/none", {}, 404, "unknown_path"),
    ],
)  # fmt: skip
def test_the_protocol_gives_its_errors_as_text(client, path, options, status, code):
    answer = client.post(path, **options)
    assert (answer.status_code, answer.json["code"]) == (status, code)
    assert isinstance(answer.json["error"], str)


def test_pixels_are_limited(store):
    client = create_app(store, max_pixels=100).test_client()
    answer = client.post("/predict/sides", data=picture(RIGHT, 3), content_type="image/png")
    assert (answer.status_code, answer.json["error"]["code"]) == (413, "too_many_pixels")


def test_rows_are_limited(store_folder):
    client = create_app(store_folder, max_batch=2, threads=1).test_client()
    assert client.post("/predict/dose", json=[{"age": 1}] * 3).status_code == 413
    files = [(io.BytesIO(picture()), "a.png") for _ in range(3)]
    assert client.post("/predict/sides", data={"image": files}).status_code == 413


def test_an_unexpected_failure_is_told_without_its_details(app, client, monkeypatch, caplog):
    def fail(inputs, outputs=None, *, deadline=None):
        raise KeyError(str(inputs))

    monkeypatch.setattr(app.extensions["store"].get("dose"), "predict", fail)
    answer = client.post("/predict/dose", json={"age": 4711}, headers={"X-Request-Id": "abc"})
    assert (answer.status_code, answer.json["error"]["code"]) == (500, "internal")
    assert "request id abc" in answer.json["error"]["message"]
    assert "request abc failed with KeyError" in caplog.text
    assert "4711" not in caplog.text + answer.text


def test_explain_gives_figures_and_a_picture(client):
    answer = client.post("/explain/paints?method=exact&label=silk", json={"age": 30, "colour": "red"}).json
    assert (answer["model"], answer["version"], answer["method"], answer["target"]) == ("paints", "1", "exact", 2)
    assert answer["picture"].startswith("data:image/png;base64,")


def test_an_explanation_is_judged_unless_the_client_declines(client):
    asked = {"age": 30, "colour": "red"}
    assert client.post("/explain/paints", json=asked).json["quality"] is True
    assert client.post("/explain/paints?quality=false", json=asked).json["quality"] is False
    refused = client.post("/explain/paints?quality=maybe", json=asked)
    assert refused.status_code == 422 and "true or false, got 'maybe'" in refused.json["error"]["message"]


def test_the_picture_is_made_for_the_page_that_asks(client):
    def picture(query):
        told = client.post(f"/explain/paints?{query}", json={"age": 30}).json["picture"]
        return base64.b64decode(told.partition(",")[2])

    assert picture("").endswith(b'{"dark": false, "width": 8.4}')
    assert picture("theme=dark&width=4.5").endswith(b'{"dark": true, "width": 4.5}')
    for query, message in {"theme=grey": "light or dark, got 'grey'", "width=3.9": "4 … 20 inches, got '3.9'"}.items():
        refused = client.post(f"/explain/paints?{query}", json={"age": 30})
        assert refused.status_code == 422 and message in refused.json["error"]["message"]
    for width in ("nan", "wide", "", "21"):
        assert client.post(f"/explain/paints?width={width}", json={"age": 30}).status_code == 422


def test_a_hung_explainer_leaves_predictions_alone(store):
    app = create_app(store, explain_target="fake_explainers:hang_once", explain_timeout=3)
    statuses = []
    thread = threading.Thread(
        target=lambda: statuses.append(app.test_client().post("/explain/dose", json={"age": 1}).status_code)
    )
    thread.start()
    time.sleep(0.3)
    began = time.perf_counter()
    assert app.test_client().post("/predict/dose", json={"age": 1}).status_code == 200
    assert time.perf_counter() - began < 1
    assert thread.is_alive()
    thread.join()
    assert statuses == [504]
    app.extensions["explainer"].close()


def test_the_true_explainer_explains_the_served_answer(store_folder):
    pytest.importorskip("zoo.explain")
    folder = store_folder / "dose" / "1"
    np.savez(folder / "background.npz", **{"input/numbers": np.array([[40, 70], [20, 50]], np.float32)})
    seal(folder)
    app = create_app(Store(store_folder, threads=1), explain_timeout=60)
    told = app.test_client().post("/explain/dose", json={"age": 30, "weight": 20})
    app.extensions["explainer"].close()
    assert told.status_code == 200, told.text
    # 2 * age + weight: against a mean of 30 and 60, age gives 0 and weight -40
    np.testing.assert_allclose(np.ravel(told.json["attributions"]), [0, -40], atol=1e-3)
    assert np.ravel(told.json["base"])[0] == pytest.approx(120)
    assert np.ravel(told.json["prediction"])[0] == pytest.approx(80)
    assert told.json["additivity_error"] < 1e-3
    assert told.json["seconds"] >= 0 and told.json["method"]


def test_metrics_count_by_model_route_and_status(client):
    client.post("/predict/dose", json=[{"age": 1}, {"age": 2}])
    client.post("/predict/dose", json={"age": "x"})
    client.get("/nowhere/1")
    client.get("/nowhere/2")
    text = client.get("/metrics").text
    assert 'zoo_requests_total{model="dose",route="/predict/<model>",status="200",version="1"} 1.0' in text
    assert 'zoo_requests_total{model="dose",route="/predict/<model>",status="422",version="1"} 1.0' in text
    assert 'zoo_requests_total{model="",route="unknown",status="404",version=""} 2.0' in text
    assert 'zoo_request_seconds_count{model="dose",route="/predict/<model>",version="1"} 2.0' in text
    assert 'zoo_rows_total{model="dose",version="1"} 2.0' in text
    assert 'zoo_model_served{model="damaged",version="1"} 0.0' in text
    assert "process_resident_memory_bytes" in text


def test_each_app_has_metrics_of_its_own(store):
    first, second = create_app(store).test_client(), create_app(store).test_client()
    first.get("/healthz")
    assert 'route="/healthz"' in first.get("/metrics").text
    assert 'route="/healthz"' not in second.get("/metrics").text


def test_access_log_has_the_request_id_and_no_inputs(client, caplog):
    caplog.set_level(logging.INFO, "serve.access")
    answer = client.post("/predict/paints?top=1", json={"colour": "secret"}, headers={"X-Request-Id": "abc-1"})
    assert answer.headers["X-Request-Id"] == "abc-1"
    line = json.loads(caplog.records[-1].message)
    assert {key: line[key] for key in ("request_id", "method", "route", "status", "model", "version")} == {
        "request_id": "abc-1",
        "method": "POST",
        "route": "/predict/<model>",
        "status": 200,
        "model": "paints",
        "version": "1",
    }
    assert line["ms"] > 0 and line["received"] > 0 and line["sent"] > 0
    assert "secret" not in caplog.text


def test_a_request_id_that_could_forge_log_lines_is_replaced(client):
    given = client.get("/healthz", headers={"X-Request-Id": 'a"b c'}).headers["X-Request-Id"]
    assert re.fullmatch("[0-9a-f]{32}", given)


def test_the_page_and_its_files_load_nothing_from_elsewhere(client):
    with client.get("/") as page:
        assert page.mimetype == "text/html"
        assert "default-src 'self'" in page.headers["Content-Security-Policy"]
        assert page.headers["X-Content-Type-Options"] == "nosniff"
        linked = re.findall(r'(?:href|src)="(/page/[^"]+)"', page.text)
    assert sorted(linked) == ["/page/app.js", "/page/common.css", "/page/style.css"]
    for path in ("/", *linked):
        with client.get(path) as answer:
            assert answer.status_code == 200
            assert not re.search(r"https?://|style=\"", answer.text.replace("http://www.w3.org/2000/svg", ""))


def test_a_model_with_an_activation_map_shows_where_it_looked(tmp_path):
    small_bundles.write_map(tmp_path)
    small_bundles.write_map(tmp_path, "blurred", cells=1)
    image = np.zeros((4, 4, 1), np.uint8)
    image[:, 2:] = 200
    app = create_app(Store(tmp_path, threads=1), explain_timeout=60)
    client = app.test_client()
    try:
        maps = {told["name"]: told["maps"] for told in client.get("/models").json}
        assert maps == {"seen": True, "blurred": False}  # one place shows nothing
        found = client.post("/explain/seen?method=cam&quality=false", json={"image": image.tolist()})
        assert found.status_code == 200, found.text
        np.testing.assert_allclose(np.squeeze(found.json["attributions"]), image[..., 0])
        assert found.json["method"] == "cam" and found.json["faithfulness"] is None and found.json["base"] is None
        assert found.json["picture"].startswith("data:image/png")
        assert client.post("/predict/seen", json={"image": image.tolist()}).json["predictions"][0]["label"] == "right"
    finally:
        app.extensions["explainer"].close()
