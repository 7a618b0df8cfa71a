"""Texts from a table to an answer: train, judge, export, explain, without anybody making tokens by hand."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import export
import zoo
from serve.manifest import read
from serve.runtime import Model
from zoo.data import load, messages
from zoo.evaluate import corruptions, evaluate
from zoo.evaluate.robustness import attacked
from zoo.explain import explain
from zoo.explain.sources import examples
from zoo.training import load as load_run
from zoo.training import load_data, train


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with 300 messages in a table."""
    folder = tmp_path_factory.mktemp("road")
    texts, kinds = messages.messages(300, seed=3)
    rows = [f'"{text}",{messages.LABELS[kind]}' for text, kind in zip(texts.tolist(), kinds.tolist(), strict=True)]
    (folder / "messages.csv").write_text("message,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(place):
    settings = {"width": 6, "epochs": 3, "learning_rate": 0.02, "tokenizer": "words:150", "tokens": 12, "quiet": True}
    return train("gru", place / "messages.csv", out=place / "run", **settings)


@pytest.fixture(scope="module")
def bundle(run, place):
    return export.to_bundle(run, place / "store" / "mail" / "1")


def test_the_model_is_built_for_the_tokens(run):
    step = run.signature.preprocess
    assert run.recipe.arguments["vocabulary"] == step.vocabulary <= 150
    assert run.recipe.arguments["input_shape"] == (12,) == run.model.input_shape[1:]
    assert run.model.inputs[0].name == "tokens" and run.model.inputs[0].dtype == "int32"


def test_a_run_folder_knows_its_tokenizer(run):
    again = load_run(run.folder)
    assert again.signature == run.signature
    assert json.loads((run.folder / "tokenizer.json").read_text())["truncation"]["max_length"] == 12
    splits = load_data(again)
    np.testing.assert_array_equal(splits.test.x["text"], run.data.test.x["text"])
    assert splits.signature == run.signature


def test_other_rows_are_not_taken_for_those_of_training(run, place):
    changed = place / "changed.csv"
    changed.write_text((place / "messages.csv").read_text().replace("prize", "price"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"differs from what .* was trained on"):
        load_data(run, changed)


def test_a_vocabulary_is_not_asked_for(place):
    with pytest.raises(
        TypeError, match="vocabulary follows from the texts, got vocabulary=9; say how large it may be with"
    ):
        train("gru", place / "messages.csv", out=place / "no", vocabulary=9)


def test_texts_are_for_models_of_tokens(place):
    with pytest.raises(ValueError, match=r"'mlp' is for classification, .*data 'messages' is text-classification"):
        train("mlp", place / "messages.csv", out=place / "no")


def test_the_bundle_takes_text_and_its_file_tokens(run, bundle):
    manifest = bundle.manifest
    assert [(port.name, port.dtype, port.shape) for port in manifest.inputs] == [("text", "BYTES", (-1,))]
    assert manifest.preprocess == {
        "kind": "text", "length": 12, "pad": 0, "asked": "words:150", "tokenizer": "tokenizer.json", "answer": 0,
        "pair": False, "marks": False,
    }  # fmt: skip
    live = onnxruntime.InferenceSession(bundle.model("fp32"), providers=["CPUExecutionProvider"])
    assert [(port.name, port.type, port.shape[1:]) for port in live.get_inputs()] == [("tokens", "tensor(int32)", [12])]
    assert "tokenizer.json" in (bundle.folder / "SHA256SUMS").read_text()
    assert manifest.precisions["fp32"].parity < 1e-5
    assert "cut behind 12 tokens" in (bundle.folder / "README.md").read_text()
    with np.load(bundle.folder / "golden.npz") as golden:
        assert golden["input/text"].tolist() == run.data.test.x["text"][:16].tolist()


def test_run_and_bundle_answer_alike(run, bundle):
    own, other = evaluate(run), evaluate(bundle, run.data)
    np.testing.assert_allclose(own.answers, other.answers, atol=1e-5)
    assert own.score.score == other.score.score == bundle.manifest.precisions["fp32"].score
    assert all(set(row) >= {"true", "answer", "text"} for row in own.worst_rows(2))


def test_a_bundle_is_judged_and_explained_without_keras(bundle, place):
    code = (
        "import sys; sys.modules['keras'] = sys.modules['tensorflow'] = None; import zoo; from zoo.evaluate import evaluate; "
        "from zoo.explain.sources import examples; from serve.manifest import read; "
        f"found = read({str(bundle.folder)!r}); print(evaluate(found, {str(place / 'messages.csv')!r}).score.score); "
        "print(zoo.explain(found, examples(found, rows=1), quality=False).additivity_error < 1e-6)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert float(told[0]) == bundle.manifest.precisions["fp32"].score and told[1] == "True"


def test_words_are_explained_alike_by_run_and_bundle(run, bundle):
    rows = {"text": np.array(["Claim your prize now, call me", "lunch at six?"])}
    own, other = (explain(model, rows, quality=False) for model in (run, bundle))
    assert other.names == (("Claim", "your", "prize", "now", ",", "call", "me"), ("lunch", "at", "six", "?"))
    np.testing.assert_allclose(own.attributions, other.attributions, atol=1e-5)
    assert own.additivity_error < 1e-5 and own.kind == "text"


def test_the_runner_replays_and_answers_texts(bundle, place):
    (place / "note.txt").write_text("You have won a prize, claim it now", encoding="utf-8")
    (place / "notes.json").write_text(json.dumps([{"text": "lunch at six?"}, {"text": "see you"}]))
    command = [
        sys.executable,
        str(bundle.folder / "run.py"),
        str(place / "note.txt"),
        str(place / "notes.json"),
        "--json",
    ]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert told["replay"]["difference"] <= told["replay"]["allowed"]
    texts = np.array(["You have won a prize, claim it now", "lunch at six?", "see you"])
    expected = Model(read(bundle.folder)).predict({"text": texts})["probabilities"].max(axis=1)
    np.testing.assert_allclose([answer["probability"] for answer in told["answers"]], expected, atol=1e-5)
    assert not any("note" in answer for answer in told["answers"])
    (place / "long.txt").write_text("lunch at six? " * 300)
    told = subprocess.run([*command[:2], str(place / "long.txt")], capture_output=True, text=True, check=True).stdout
    length = read(bundle.folder).manifest.preprocess["length"]
    assert told.rstrip().endswith(f"(only the first {length} tokens were read, the rest was cut off)")
    (place / "blank.txt").write_text(" \n")
    refused = subprocess.run([*command[:2], str(place / "blank.txt")], capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "row 1 has no text; write something" in refused.stderr


def test_the_tokenizer_of_a_file_stays_when_the_file_goes(run, place):
    file = place / "tokenizer.json"
    shutil.copyfile(run.folder / "tokenizer.json", file)
    settings = {"width": 2, "epochs": 1, "tokenizer": str(file), "quiet": True}
    other = train("gru", place / "messages.csv", out=place / "other", tokens=9, **settings)
    assert other.signature.preprocess.vocabulary == run.signature.preprocess.vocabulary
    file.unlink()
    assert load_data(load_run(place / "other")).signature == other.signature
    with pytest.raises(ValueError, match="there is no tokenizer at"):
        load(place / "messages.csv", tokenizer=str(Path(file)))


@pytest.mark.parametrize("name", list(corruptions.CORRUPTIONS["text"]))
def test_texts_go_bad_word_by_word(name):
    raw = {"text": messages.messages(20, seed=0)[0]}
    found = corruptions.CORRUPTIONS["text"][name]
    np.testing.assert_array_equal(found.apply(raw, 0.0, None)["text"], raw["text"])
    worst = found.apply(raw, 1.0, None)["text"].tolist()
    before = [text.split() for text in raw["text"].tolist()]
    if name == "missing":
        assert worst == [words[0] for words in before]
        return
    for words, text in zip(before, worst, strict=True):
        after = text.split()
        assert len(after) == len(words)
        assert all(len(a) != len(b) or sorted(a) == sorted(b) for a, b in zip(after, words, strict=True))


def test_texts_have_no_gradient_to_attack_them_by(run):
    with pytest.raises(ValueError, match="attacks are for images and tables, got text inputs"):
        attacked(run)


def test_examples_of_a_bundle_are_texts(bundle):
    assert examples(bundle, rows=2)["text"].shape == (2,)
    assert zoo.explain(bundle, examples(bundle, rows=1), quality=False).labels == messages.LABELS
