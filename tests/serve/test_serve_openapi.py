import re
import shutil
import threading

import numpy as np
import pytest
from fake_generation import FAKE, write_teller
from small_bundles import write_image
from test_serve_gallery import write_faces
from werkzeug.serving import make_server

from serve.app import create_app
from serve.openapi import document
from serve.store import Store

openapi_spec_validator = pytest.importorskip("openapi_spec_validator", reason="pip install openapi-spec-validator")
jsonschema = pytest.importorskip("jsonschema", reason="it comes with openapi-spec-validator")


@pytest.fixture
def app(store):
    app = create_app(store)
    yield app
    app.extensions["explainer"].close()


@pytest.fixture
def client(app):
    return app.test_client()


@pytest.fixture
def told(client):
    return client.get("/openapi.json").json


def operations(told):
    return [(path, method, each) for path, methods in told["paths"].items() for method, each in methods.items()]


def test_the_document_is_valid(told):
    assert told["openapi"] == "3.1.0"
    openapi_spec_validator.validate(told)


def test_every_route_is_listed_with_a_summary_and_its_path_parameters(app, told):
    routes = {
        (re.sub(r"<[^>]+>", "{}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        if rule.endpoint != "static" and rule.rule != "/v2/"
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    assert {(re.sub(r"{\w+}", "{}", path), method) for path, method, _ in operations(told)} == routes
    for path, _, operation in operations(told):
        assert " " in operation["summary"], path
        declared = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
        assert declared == set(re.findall(r"{(\w+)}", path))


def test_no_two_paths_differ_in_the_name_of_a_part_alone(told):
    shapes = [re.sub(r"{\w+}", "{}", path) for path in told["paths"]]
    assert len(shapes) == len(set(shapes))


def test_every_listed_schema_is_used_or_a_models_row(told):
    used = set(re.findall(r"#/components/schemas/([\w.-]+)", str(told)))
    assert used == set(told["components"]["schemas"])


def checked(value, schema, told):
    jsonschema.Draft202012Validator({**schema, "components": told["components"]}).validate(value)


def close(found, expected):
    """Equal, with numbers to five digits."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    return found == (pytest.approx(expected, abs=1e-5) if isinstance(expected, float) else expected)


def test_each_example_fits_its_schema_and_gets_the_answer_it_shows(client, told):
    seen = []
    for path, method, operation in operations(told):
        sent = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        got = operation["responses"].get("200", {}).get("content", {}).get("application/json", {})
        for key, example in sent.get("examples", {}).items():
            checked(example["value"], sent["schema"], told)
            if key not in got.get("examples", {}) or "summary" not in example:
                continue
            checked(got["examples"][key]["value"], got["schema"], told)
            where = path.replace("{model}", example["summary"]).replace("/versions/{version}", "")
            answer = client.open(where, method=method.upper(), json=example["value"])
            assert answer.status_code == 200, answer.text
            assert close(answer.json, got["examples"][key]["value"])
            seen.append((path, example["summary"]))
    for path in ("/v2/models/{model}/infer", "/v1/models/{model}:predict", "/predict/{model}"):
        assert [model for where, model in seen if where == path] == ["dose", "paints", "sides"]


def test_every_json_body_has_an_example(tmp_path):
    write_faces(tmp_path)
    write_teller(tmp_path)
    told = create_app(Store(tmp_path, threads=1, generator=FAKE)).test_client().get("/openapi.json").json
    bodies = {
        (path, method): operation["requestBody"]["content"]["application/json"]
        for path, method, operation in operations(told)
        if "requestBody" in operation
    }
    assert [where for where, body in bodies.items() if not body.get("examples")] == []
    for body in bodies.values():
        for example in body["examples"].values():
            checked(example["value"], body["schema"], told)


@pytest.mark.parametrize(
    ("path", "listed"),
    [
        ("/v2", "/v2"),
        ("/v2/health/ready", "/v2/health/ready"),
        ("/v2/models/paints", "/v2/models/{model}"),
        ("/v2/models/paints/config", "/v2/models/{model}/config"),
        ("/v2/models/sides/versions/9/ready", "/v2/models/{model}/versions/{version}/ready"),
        ("/v1/models", "/v1/models"),
        ("/v1/models/sides", "/v1/models/{model}"),
        ("/v1/models/sides/metadata", "/v1/models/{model}/metadata"),
        ("/models", "/models"),
        ("/models/paints/examples", "/models/{model}/examples"),
        ("/healthz", "/healthz"),
    ],
)
def test_answers_fit_their_schemas(client, told, path, listed):
    answer = client.get(path)
    schema = told["paths"][listed]["get"]["responses"][str(answer.status_code)]["content"]["application/json"]["schema"]
    assert schema
    checked(answer.json, schema, told)


def test_errors_fit_their_schemas(client, told):
    for path, listed in (
        ("/v2/models/none/infer", "/v2/models/{model}/infer"),
        ("/v1/models/none:predict", "/v1/models/{model}:predict"),
        ("/predict/none", "/predict/{model}"),
    ):
        answer = client.post(path, json={})
        assert answer.status_code == 404
        error = told["paths"][listed]["post"]["responses"]["default"]["content"]["application/json"]["schema"]
        checked(answer.json, error, told)
    with pytest.raises(jsonschema.ValidationError):
        checked(answer.json, {"$ref": "#/components/schemas/ErrorText"}, told)


def test_the_document_follows_the_store(store_folder, tmp_path):
    store = Store(store_folder, threads=1)
    client = create_app(store).test_client()
    first = client.get("/openapi.json")
    assert client.get("/openapi.json", headers={"If-None-Match": first.headers["ETag"]}).status_code == 304
    write_image(store_folder, name="other")
    store.load("other")
    second = client.get("/openapi.json", headers={"If-None-Match": first.headers["ETag"]})
    assert second.status_code == 200
    assert "other-row" in second.json["components"]["schemas"]
    empty = tmp_path / "empty"
    empty.mkdir()
    openapi_spec_validator.validate(create_app(empty).test_client().get("/openapi.json").json)


def test_a_row_schema_has_the_columns_and_refuses_others(told):
    schema = {"$ref": "#/components/schemas/paints-row"}
    checked({"age": 30, "weight": None, "colour": "blue"}, schema, told)
    for row in ({"hue": 1}, {"age": "30"}):
        with pytest.raises(jsonschema.ValidationError):
            checked(row, schema, told)
    assert told["components"]["schemas"]["paints-row"]["properties"]["colour"]["examples"] == ["red", "blue"]


def test_large_inputs_are_described_without_an_example(app, store, monkeypatch):
    monkeypatch.setattr("serve.openapi.MOST_VALUES", 4)
    told = document(app, store)
    examples = told["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]["application/json"][
        "examples"
    ]
    assert sorted(examples) == ["dose", "paints"]
    assert np.prod(examples["dose"]["value"]["inputs"][0]["shape"]) == 2


def test_golden_rows_that_left_the_disk_or_were_damaged_are_left_out(app, store, store_folder):
    (store_folder / "dose" / "1" / "golden.npz").unlink()
    (store_folder / "paints" / "1" / "golden.npz").write_bytes(b"PK damaged")
    told = document(app, store)
    sent = told["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]["application/json"]
    assert list(sent["examples"]) == ["sides"]


def test_admin_routes_say_that_they_need_a_key(told):
    for path, _, operation in operations(told):
        admin = path.startswith(("/admin", "/v2/repository/models"))
        assert (operation.get("security") == [{"key": []}]) == admin, path


def test_the_page_loads_nothing_from_elsewhere(client):
    with client.get("/docs") as page:
        assert page.mimetype == "text/html"
        linked = re.findall(r'(?:href|src)="(/page/[^"]+)"', page.text)
        assert sorted(linked) == ["/page/common.css", "/page/docs.css", "/page/docs.js"]
        assert not re.search(r"<script>|<style|style=|onclick", page.text)
    for path in ("/docs", *linked):
        with client.get(path) as answer:
            assert answer.status_code == 200
            assert not re.search(r"https?://|innerHTML", answer.text)


def test_the_page_finds_a_route_and_sends_its_example(app):
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"], timeout=30_000)
            page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
            page.set_default_timeout(10_000)
            errors = []
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(f"http://127.0.0.1:{server.port}/docs")
            page.wait_for_selector("details.route")
            assert "`" not in page.inner_text("header")
            assert "X-Request-Id" in page.locator("#about code").all_inner_texts()
            page.evaluate("document.querySelectorAll('details.route').forEach((route) => { route.open = true; })")
            page.wait_for_function("document.querySelectorAll('details.route[open] form').length > 30")
            told = page.evaluate(
                "[...document.querySelectorAll('details.route p, details.route li, details.route td')]"
                ".map((each) => each.textContent)"
            )
            assert [text for text in told if "`" in text] == []
            page.evaluate("document.querySelectorAll('details.route').forEach((route) => { route.open = false; })")
            made = page.evaluate(
                "(text) => prose(text).map((part) => part.outerHTML || part)",
                "a `<img src=x onerror=alert(1)>` and ` alone <b>",
            )
            assert made == ["a ", "<code>&lt;img src=x onerror=alert(1)&gt;</code>", " and ` alone <b>"]
            page.keyboard.press("/")
            page.keyboard.type("predict v1 models")
            assert page.inner_text("#count") == "2 routes"
            page.keyboard.press("Tab")  # from the filter over the key to the first route, without a mouse
            page.keyboard.press("Tab")
            page.keyboard.press("Enter")
            route = page.locator("#post_v1_models_model_predict")
            route.get_by_label("Example").select_option("sides")
            route.get_by_role("button", name="Send").click()
            playwright.expect(route.get_by_role("status")).to_have_text(re.compile("^200 "))
            assert '"predictions"' in route.get_by_label("Answer").inner_text()
            route.get_by_label("Body").fill("{")
            route.get_by_role("button", name="Send").click()
            playwright.expect(route.get_by_role("status")).to_have_text(re.compile("^400 "))
            assert "not JSON" in route.get_by_label("Answer").inner_text()
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            assert [error for error in errors if "400" not in error] == []
            browser.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
