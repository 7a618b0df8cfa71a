"""Models of texts: the server makes the tokens, says what was cut, and refuses what says nothing."""

import json

import numpy as np
import pytest
from onnx import helper
from small_bundles import PROBABILITIES, softmax, write_bundle, write_onnx

from serve import drift, protocol, texts
from serve.app import create_app
from serve.errors import RequestError
from serve.manifest import MANIFEST, BundleError, Port, read, seal
from serve.runtime import Model
from serve.store import Store
from serve.worker import answer
from zoo.data import TextPreprocess

TEXT = Port("text", "BYTES", (-1,), ("batch",))
TOKENS = Port("tokens", "INT32", (-1, 4), ("batch", "length"))
WORDS = ["good bad fine"] * 3 + ["good bad"] * 2 + ["good"]  # so that they have the tokens 2, 3 and 4 in this order
WEIGHT = np.zeros((5, 3), np.float32)
WEIGHT[2:] = [[0, 0, 2], [2, 0, 0], [0, 1, 1]]  # what each of them adds to the logits


def graph(path):
    """Softmax of the sum of each token's row of `WEIGHT`."""
    nodes = [
        helper.make_node("Gather", ["weight", "tokens"], ["each"]),
        helper.make_node("ReduceSum", ["each", "axis"], ["logits"], keepdims=0),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    constants = {"weight": WEIGHT, "axis": np.array([1])}
    write_onnx(path, nodes, constants, (TOKENS,), (PROBABILITIES,))


def write_mood(store):
    """The bundle of a model of four tokens."""
    step = TextPreprocess.fit(WORDS, length=4)
    made = write_bundle(
        store, "mood", "1", graph,
        (
            {"text": np.array(["good fine", "bad"])},
            {"probabilities": softmax([[0, 1, 3], [2, 0, 0]])},
        ),
        task="text-classification", kind="text", inputs=(TEXT,), outputs=(PROBABILITIES,),
        labels=("negative", "neutral", "positive"),
        preprocess={"kind": "text", "length": 4, "pad": 0, "tokenizer": "tokenizer.json"},
    )  # fmt: skip
    (made / "tokenizer.json").write_text(step.tokenizer, encoding="utf-8")
    seal(made)
    return made


@pytest.fixture
def folder(tmp_path):
    return write_mood(tmp_path)


@pytest.fixture
def client(folder):
    app = create_app(Store(folder.parents[1], threads=1), explain_target="fake_explainers:echo")
    yield app.test_client()
    app.extensions["explainer"].close()


def test_tokens_are_those_of_training(folder):
    step = TextPreprocess.fit(WORDS, length=4)
    rows = ["Good, BAD!", "fine fine fine fine fine", "unheard of", "[PAD] good"]
    made = texts.Tokenizer(folder / "tokenizer.json")
    tokens, cut = made(rows)
    np.testing.assert_array_equal(tokens, step({"text": np.array(rows)}))
    assert cut == [False, True, False, False]


def test_infer_says_which_texts_were_cut(client, folder):
    long = "fine " * 9
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["good", long]}]}
    cut = {"notes": "row 2: only the first 4 tokens were read, the rest was cut off"}
    assert client.post("/v2/models/mood/infer", json=body).json["parameters"] == cut
    body["inputs"][0]["data"][1] = "bad"
    assert "parameters" not in client.post("/v2/models/mood/infer", json=body).json
    model = Model(read(folder), threads=1)
    requests = [protocol.pack({"text": np.array(texts)}) for texts in (["good", long], ["good"], [long])]
    items = [(number, length, "v2") for number, (_, length) in enumerate(requests)]
    told = answer(model, items, [memoryview(body) for body, _ in requests])  # as one batch of a worker
    notes = [json.loads(bytes(body)[: facts[2]]).get("parameters") for facts, body in told]
    assert notes == [cut, None, {"notes": cut["notes"].replace("row 2", "row 1")}]


def test_the_protocol_takes_text_in_json_and_binary(client):
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["good fine", "bad"]}]}
    answer = client.post("/v2/models/mood/infer", json=body)
    found = np.array(answer.json["outputs"][0]["data"]).reshape(2, 3)
    np.testing.assert_allclose(found, softmax([[0, 1, 3], [2, 0, 0]]), rtol=1e-6)
    packed, length = protocol.pack({"text": np.array(["good fine", "bad"], object)})
    headers = {"Inference-Header-Content-Length": str(length), "Content-Type": "application/octet-stream"}
    again = client.post("/v2/models/mood/infer", data=packed, headers=headers)
    unpacked = protocol.unpack(again.data, int(again.headers["Inference-Header-Content-Length"]))
    np.testing.assert_allclose(unpacked["probabilities"], found, rtol=1e-6)
    first = client.post("/v1/models/mood:predict", json={"instances": ["good fine", "bad"]})
    np.testing.assert_allclose(first.json["predictions"], found, rtol=1e-6)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("good fine", "text/plain"),
        ('{"text": "good fine"}', "application/json"),
        ("id,text\n7,good fine\n", "text/csv"),
    ],
)
def test_people_send_text_in_any_form(client, body, kind):
    told = client.post("/predict/mood", data=body, content_type=kind).json
    assert told["predictions"][0]["label"] == "positive"
    assert told["predictions"][0]["probability"] == pytest.approx(softmax([0, 1, 3])[2], abs=1e-6)


def test_a_note_says_what_was_cut(client):
    rows = [{"text": "good"}, {"text": "bad bad good good fine"}, {"text": "bad bad good good"}]
    told = client.post("/predict/mood", json=rows).json
    assert told["notes"] == ["row 2: only the first 4 tokens were read, the rest was cut off"]
    assert told["predictions"][1] == told["predictions"][2]
    assert client.post("/predict/mood", json=rows[:1]).json["notes"] == []


def test_a_row_answers_the_same_in_any_company(folder):
    model = Model(read(folder), threads=1)
    rows = np.array(["good", "fine " * 9, "bad good", "unheard"], object)
    together = model.predict({"text": rows})["probabilities"]
    alone = [model.predict({"text": rows[place : place + 1]})["probabilities"][0] for place in range(4)]
    np.testing.assert_array_equal(together, np.stack(alone))


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("", 422, "row 2 of 'text' is empty; write something"),
        (" \n\t", 422, "row 2 of 'text' is empty; write something"),
        ("x" * (texts.LONGEST + 1), 413, "row 2 of 'text' has 100,001 characters, at most 100,000 are read"),
    ],
)
def test_a_text_that_says_nothing_or_too_much(client, text, status, message):
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["good", text]}]}
    answer = client.post("/v2/models/mood/infer", json=body)
    assert answer.status_code == status and message in answer.json["error"]
    assert client.post("/predict/mood", json={"text": text}).status_code == status


def test_half_a_character_is_refused(folder):
    with pytest.raises(RequestError, match="row 1 of 'text' is no Unicode text"):
        Model(read(folder), threads=1).predict({"text": np.array(["good \ud800"], object)})


@pytest.mark.parametrize("value", [5, None, ["good"]])
def test_what_is_no_text(client, value):
    answer = client.post("/predict/mood", json={"text": value})
    assert answer.status_code == 422 and 'send {"text": "some text"}' in answer.json["error"]["message"]


def test_examples_can_be_sent_back(client):
    rows = client.get("/models/mood/examples").json
    assert rows == [{"text": "good fine"}, {"text": "bad"}]
    assert client.post("/predict/mood", json=rows).status_code == 200


def _changed(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    seal(folder)


def test_a_bundle_without_its_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    seal(folder)
    with pytest.raises(BundleError, match=r"names the tokenizer 'tokenizer.json', which the bundle does not hold"):
        read(folder)


@pytest.mark.parametrize("name", ["../tokenizer.json", "/etc/passwd", "other.json"])
def test_a_tokenizer_outside_the_bundle_is_refused(folder, name):
    _changed(folder, lambda manifest: manifest["preprocess"].update(tokenizer=name))
    with pytest.raises(BundleError, match=r"names the tokenizer .* which the bundle does not hold"):
        read(folder)


def test_the_name_of_a_tokenizer_is_text(folder):
    _changed(folder, lambda manifest: manifest["preprocess"].update(tokenizer=["tokenizer.json"]))
    with pytest.raises(BundleError, match="the name of the tokenizer is no text"):
        read(folder)


def test_a_damaged_tokenizer_is_refused_when_the_model_is_loaded(folder):
    (folder / "tokenizer.json").write_text("{}")
    seal(folder)
    with pytest.raises(BundleError, match=r"tokenizer.json cannot be used"):
        Model(read(folder), threads=1)


def test_drift_watches_length_and_unknown_tokens(folder):
    tokens = texts.Tokenizer(folder / "tokenizer.json")
    usual = ["good bad fine", "good", "bad fine", "good good good"] * 25
    found = drift.text_summaries(tokens(usual)[0], 0, 1)
    assert found["length in tokens"][:4].tolist() == [3, 1, 2, 3]
    assert drift.text_summaries(tokens(["good alien", "alien"])[0], 0, 1)["share of unknown tokens"].tolist() == [
        0.5,
        1,
    ]
    bins = {
        "length in tokens": {"edges": [1.5, 2.5], "shares": [0.25, 0.25, 0.5]},
        "share of unknown tokens": {"edges": [0.5], "shares": [1.0, 0.0]},
    }
    raw = {"rows": 100, "split": "validation", "pad": 0, "unknown": 1, "inputs": {"text": bins}, "outputs": {}}
    (folder / drift.FILE).write_text(json.dumps(raw))
    seal(folder)
    model, baseline = Model(read(folder), threads=1), drift.read(folder)
    seen = []
    model.watcher = lambda feed, outputs: seen.append(drift.summarise(feed, outputs, model.manifest, baseline))
    model.predict({"text": np.array(usual[:50], object)})
    model.predict({"text": np.array(["alien words here", "alien"], object)})
    counts = [np.frombuffer(each["counts"], "<u4").tolist() for each in seen]
    assert counts == [[13, 12, 25, 50, 0], [1, 0, 1, 0, 2]]
