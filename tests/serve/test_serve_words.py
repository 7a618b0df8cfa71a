"""Answers about the words of a text, what could stand at a mask, and pairs of texts: as people and scripts get them."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from onnx import helper
from small_bundles import PROBABILITIES, softmax, write_bundle, write_onnx

from export import edge_runner
from serve import texts
from serve.app import create_app
from serve.manifest import Port, seal
from serve.store import Store
from zoo.data import TextPreprocess
from zoo.explain import explain

TEXT = Port("text", "BYTES", (-1,), ("batch",))
SECOND = Port("second", "BYTES", (-1,), ("batch",))
TOKENS = Port("tokens", "INT32", (-1, 8), ("batch", "length"))
LABELS = ("O", "B-name", "I-name", "B-day", "I-day")
WORDS = ["anna berg paid on may first"] * 3


def write(store, name, step, weight, *, outputs, task, labels, examples, places=True, inputs=(TEXT,), last="Softmax"):
    """The bundle of a model that gives each token its row of `weight`, of all places or the sum of them."""

    def graph(path):
        nodes = [helper.make_node("Gather", ["weight", "tokens"], ["each" if not places else "logits"])]
        constants = {"weight": weight}
        if not places:
            nodes.append(helper.make_node("ReduceSum", ["each", "axis"], ["logits"], keepdims=0))
            constants["axis"] = np.array([1])
        nodes.append(helper.make_node(last, ["logits"], [outputs[0].name], axis=-1))
        write_onnx(path, nodes, constants, (TOKENS,), outputs)

    logits = weight[step(examples)]
    logits = logits if places else logits.sum(axis=1)
    answers = np.log(softmax(logits)) if last == "LogSoftmax" else softmax(logits)
    made = write_bundle(
        store, name, "1", graph, (examples, {outputs[0].name: answers.astype(np.float32)}), task=task, kind="text", inputs=inputs,
        outputs=outputs, labels=labels,
        preprocess={
            "kind": "text", "length": 8, "pad": 0, "tokenizer": "tokenizer.json", "pair": step.pair, "marks": step.marks,
        },
    )  # fmt: skip
    (made / "tokenizer.json").write_text(step.tokenizer, encoding="utf-8")
    seal(made)
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    step = TextPreprocess.fit(WORDS, "wordpiece:80", 8)
    weight = np.zeros((step.vocabulary, 5), np.float32)
    for word, label in {"anna": 1, "berg": 2, "may": 3, "first": 4}.items():
        weight[step({"text": [word]})[0, 1], label] = 4
    weight[step({"text": ["first"]})[0, 1], 3] = 3.9
    shares = Port("probabilities", "FP32", (-1, 8, 5), ("batch", "places", "labels"), range=(0, 1))
    write(
        folder, "notes", step, weight, outputs=(shares,), task="token-classification", labels=LABELS,
        examples={"text": np.array(["anna paid"])},
    )  # fmt: skip
    vocabulary = tuple(step._opened.id_to_token(number) for number in range(step.vocabulary))
    weight = np.zeros((step.vocabulary, step.vocabulary), np.float32)
    weight[step.mask, [vocabulary.index("may"), vocabulary.index("paid")]] = [5, 4]
    logs = Port("log_probabilities", "FP32", (-1, 8, step.vocabulary), ("batch", "places", "tokens"))
    write(
        folder, "filled", replace(step, marks=True), weight, outputs=(logs,), task="masked-language-modelling", labels=vocabulary,
        examples={"text": np.array(["anna paid"])}, last="LogSoftmax",
    )  # fmt: skip
    both = TextPreprocess.fit(WORDS, "wordpiece:80", 8, second=WORDS)
    weight = np.zeros((both.vocabulary, 3), np.float32)
    weight[both({"text": ["anna"], "second": ["may"]})[0, 1], 2] = 2
    weight[both({"text": ["anna"], "second": ["may"]})[0, 3], 1] = 3
    write(
        folder, "pairs", both, weight, outputs=(PROBABILITIES,), task="text-classification", labels=("a", "b", "c"), places=False,
        examples={"text": np.array(["anna"]), "second": np.array(["may"])}, inputs=(TEXT, SECOND),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def client(store):
    app = create_app(Store(store, threads=1), explain_target="fake_explainers:echo")
    yield app.test_client()
    app.extensions["explainer"].close()


def test_marked_parts_have_their_characters(client):
    text = "  Anna Berg, on MAY first."
    told = client.post("/predict/notes", json={"text": text}).json["predictions"][0]
    assert [(span["label"], span["text"], text[span["start"] : span["end"]]) for span in told["spans"]] == [
        ("name", "Anna Berg", "Anna Berg"),
        ("day", "MAY first", "MAY first"),
    ]
    sure = softmax([0, 0, 0, 4, 0])[3], softmax([0, 0, 0, 3.9, 4])[4]
    assert told["spans"][1]["probability"] == pytest.approx(min(sure), abs=1e-6)
    words = client.post("/predict/notes?form=words", json=[{"text": text}, {"text": "berg"}]).json["predictions"]
    assert [word["label"] for word in words[0]["words"]] == ["B-name", "I-name", "O", "O", "B-day", "I-day"]
    assert words[1]["words"] == [
        {"word": "berg", "start": 0, "end": 4, "label": "I-name", "probability": pytest.approx(0.931, abs=1e-3)}
    ]
    lines = client.post(
        "/predict/notes", json=[{"text": text}, {"text": "berg"}], headers={"Accept": "text/csv"}
    ).text.split()
    assert lines[0] == "row,label,text,start,end,probability" and lines[-1].startswith("2,name,berg,0,4,0.93")


def test_the_likeliest_tokens_stand_at_each_mask(client):
    text = "anna [MASK] on [MASK]"
    masks = client.post("/predict/filled", json={"text": text}).json["predictions"][0]["masks"]
    assert [text[mask["start"] : mask["end"]] for mask in masks] == ["[MASK]", "[MASK]"]
    assert [token["token"] for token in masks[0]["tokens"][:2]] == ["may", "paid"]
    others = client.get("/v2/models/filled").json["outputs"][0]["shape"][-1] - 2
    share = np.exp(5) / (np.exp(5) + np.exp(4) + others)
    assert masks[0]["tokens"][0]["probability"] == pytest.approx(share, abs=1e-5)
    assert client.post("/predict/filled", json={"text": "anna"}).json["predictions"] == [{"masks": []}]
    lines = client.post("/predict/filled", json={"text": text}, headers={"Accept": "text/csv"}).text.splitlines()
    assert lines[0].startswith("row,start,end,token,probability,token_2") and len(lines) == 3
    spoken = client.post("/predict/notes?form=words", json={"text": "[MASK]"}).json["predictions"][0]["words"]
    assert len(spoken) == 3  # where nothing is hidden these are letters and marks


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ('{"text": "anna", "second": "may"}', "application/json"),
        ('[{"second": "may", "text": "anna"}]', "application/json"),
        ("id,second,text\n7,may,anna\n", "text/csv"),
    ],
)
def test_people_send_pairs(client, body, kind):
    told = client.post("/predict/pairs", data=body, content_type=kind).json
    assert told["predictions"][0]["label"] == "b"
    assert told["predictions"][0]["probability"] == pytest.approx(softmax([0, 3, 2])[1], abs=1e-6)


def test_scripts_send_pairs(client):
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [1], "data": [text]}
        for name, text in (("text", "anna"), ("second", "on"))
    ]
    answer = client.post("/v2/models/pairs/infer", json={"inputs": inputs}).json
    np.testing.assert_allclose(answer["outputs"][0]["data"], softmax([0, 0, 2]), rtol=1e-5)
    first = client.post("/v1/models/pairs:predict", json={"instances": [{"text": "anna", "second": "on"}]}).json
    np.testing.assert_allclose(first["predictions"][0], answer["outputs"][0]["data"], rtol=1e-6)
    long = client.post("/predict/pairs", json={"text": "anna berg paid on", "second": "may first anna"}).json
    assert long["notes"] == ["row 1: only the first 8 tokens were read, the rest was cut off"]


@pytest.mark.parametrize(
    ("body", "kind", "status", "message"),
    [
        ('{"text": "anna"}', "application/json", 422, 'send {"text": "some text", "second": "some text"}'),
        ('{"text": "anna", "second": " "}', "application/json", 422, "'second' is empty; write something"),
        ("anna", "text/plain", 415, 'takes two texts; send {"text": …, "second": …} as JSON'),
    ],
)
def test_half_a_pair_is_refused(client, body, kind, status, message):
    answer = client.post("/predict/pairs", data=body, content_type=kind)
    assert answer.status_code == status and message in answer.json["error"]["message"]


def run(store, name, tmp_path, row):
    """What the runner of a bundle says to a row."""
    (tmp_path / "in.json").write_text(json.dumps(row), encoding="utf-8")
    return subprocess.run(
        [sys.executable, edge_runner.__file__, str(tmp_path / "in.json"), "--bundle", str(store / name / "1"), "--json"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip


def test_the_runner_takes_pairs_and_tells_marked_parts(store, tmp_path, client):
    ran = run(store, "pairs", tmp_path, {"text": "anna", "second": "may"})
    assert '"label": "b"' in ran.stdout, ran.stderr
    text = "  Anna Berg, on MAY first."
    ran = run(store, "notes", tmp_path, {"text": text})
    spans = client.post("/predict/notes", json={"text": text}).json["predictions"][0]["spans"]
    for span in spans:
        assert f'"start": {span["start"]}' in ran.stdout and f'"text": "{span["text"]}"' in ran.stdout, ran.stderr
    ran = run(store, "filled", tmp_path, {"text": text})
    assert "has an answer for each place of a row" in ran.stdout + ran.stderr


def test_words_are_those_that_the_model_sees(store):
    folder = store / "notes" / "1"
    made = texts.Tokenizer(folder / "tokenizer.json")
    (read,) = made.read(["annaberg x paid on may first anna berg"])
    assert read.words[0][1:] == (0, 8) and read.words[1].place > 2  # a word of several tokens is one word
    assert len(read.words) < 8 and read.masks == ()  # what was cut off is not told


def test_the_words_of_both_texts_share_an_answer(store):
    row = {"text": np.array(["anna paid"]), "second": np.array(["on may"])}
    found = explain(str(store / "pairs" / "1"), row)
    assert found.names[0] == ("anna", "paid", "on", "may") and found.method == "exact"
    values = found.attributions[0]
    assert values.sum() + found.base[0] == pytest.approx(softmax([0, 3, 2])[1], abs=1e-6)
    # by hand: the answer is b, which may speaks for and anna against, and the others change nothing
    alone = [softmax([0, 3 * may, 2 * anna])[1] for anna, may in ((0, 0), (0, 1), (1, 0), (1, 1))]
    expected = [
        ((alone[2] - alone[0]) + (alone[3] - alone[1])) / 2,
        0,
        0,
        ((alone[1] - alone[0]) + (alone[3] - alone[2])) / 2,
    ]
    np.testing.assert_allclose(values, expected, atol=1e-6)


@pytest.mark.parametrize(("name", "what"), [("notes", "each word"), ("filled", "each place")])
def test_what_has_no_one_answer_is_not_explained(store, name, what):
    with pytest.raises(ValueError, match=f"answers for {what} of a text, and explanations share out one answer"):
        explain(str(store / name / "1"), {"text": np.array(["anna"])})
