"""Texts with answers from a table to a written answer: train, judge, export, judge again, draw, refuse."""

import csv
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

import export
from serve.generation import Ask, Running, generate
from zoo.cli import app
from zoo.data.answers import dates
from zoo.evaluate import evaluate, translations
from zoo.training import load as load_run
from zoo.training import load_data, train


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with 150 dates in a table."""
    folder = tmp_path_factory.mktemp("road")
    with (folder / "days.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("written", "answer"), *zip(*dates(150, seed=3), strict=True)])
    return folder


@pytest.fixture(scope="module")
def run(place):
    settings = {"width": 8, "depth": 1, "dropout": 0.0, "epochs": 2, "tokenizer": "characters", "tokens": 24}
    return train("seq2seq", place / "days.csv", task="text-to-text", out=place / "run", quiet=True, **settings)


@pytest.fixture(scope="module")
def bundle(run, place):
    with pytest.warns(
        UserWarning, match="no better than always the same answer"
    ):  # two short epochs make no answer right
        return export.to_bundle(run, place / "store" / "days" / "1")


def test_the_model_is_built_for_texts_and_answers(run):
    step = run.signature.preprocess
    assert run.recipe.arguments["places"] == step.answer == 12
    assert {tensor.name: tensor.shape[1:] for tensor in run.model.inputs} == {"tokens": (24,), "answer": (12,)}
    assert run.model.output_shape[1:] == (12, step.vocabulary)
    losses = [row["val_loss"] for row in run.history]
    assert losses[1] < losses[0] < np.log(step.vocabulary) + 0.5


def test_a_run_folder_gives_the_same_again(run):
    again = load_run(run.folder)
    assert again.signature == run.signature and again.recipe.task == "text-to-text"
    splits = load_data(again)
    np.testing.assert_array_equal(splits.test.y, run.data.test.y)
    np.testing.assert_array_equal(splits.test.x["answer"], run.data.test.x["answer"])


def test_a_bundle_scores_as_the_run_and_writes_as_it(run, bundle, place):
    of_run, of_bundle = evaluate(run.folder), evaluate(bundle, place / "days.csv")
    np.testing.assert_allclose(of_bundle.answers[..., 0], of_run.answers[..., 0], atol=1e-3)
    assert of_bundle.score == of_run.score and len(of_run.written) == 30
    assert of_bundle.written == of_run.written  # step by step with caches, and all places again for each token
    assert of_bundle.per_class["all"] == pytest.approx(of_run.per_class["all"])


def test_the_scored_file_gives_two_numbers_for_each_place(run, bundle):
    live = onnxruntime.InferenceSession(bundle.model("fp32"), providers=["CPUExecutionProvider"])
    assert [(port.name, port.type, port.shape) for port in live.get_outputs()] == [
        ("log_probability", "tensor(float)", ["batch", 12]),
        ("likeliest", "tensor(int32)", ["batch", 12]),
    ]


def test_several_answers_are_followed_by_the_files_that_write(run, bundle, place):
    report = evaluate(bundle, place / "days.csv", beams=3)
    running = Running(bundle.folder, bundle.manifest, "fp32")
    texts = run.data.test.x["text"].tolist()
    assert list(report.written) == [generate(running, text, Ask(most=11, beams=3)) for text in texts]
    assert list(report.written) != translations.written(bundle, run.signature, texts)
    with pytest.raises(ValueError, match="and for bundles that answer texts with texts, got beams=3; leave it out"):
        evaluate(run, beams=3)


def test_texts_are_answered_alone_as_in_a_batch(run, bundle):
    texts = run.data.test.x["text"][:3]
    together = translations.written(bundle, run.signature, texts)
    running = Running(bundle.folder, bundle.manifest, "fp32")
    assert [generate(running, text, Ask(most=11)) for text in texts.tolist()] == together


def test_a_bundle_without_the_files_that_write_says_so(run, bundle):
    bare = replace(bundle, manifest=replace(bundle.manifest, generation={}))
    with pytest.raises(ValueError, match="bundle 'days' has no files that write texts; export the run again"):
        translations.written(bare, run.signature, ["1 May 2000"])


def told(*arguments):
    app(list(map(str, arguments)), standalone_mode=False)


def test_the_command_draws_the_attention_and_refuses_the_rest(run, bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("zoo.commands.explain.quiet_backend", lambda: None)  # which takes this process's streams
    told("explain", run.folder, "--rows", 2, "-o", tmp_path / "attention.png")
    assert capsys.readouterr().out.count(" -> ") == 2
    assert (tmp_path / "attention.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="the attention is drawn for each row; leave out --summary"):
        told("explain", run.folder, "--summary")
    with pytest.raises(ValueError, match=r"attention is drawn as \.png, \.svg, \.pdf, got"):
        told("explain", run.folder, "-o", tmp_path / "a.html")
    with pytest.raises(ValueError, match="'days' answers with a text, and explanations share out one figure"):
        told("explain", bundle.folder, "--row", '{"text": "1 May 2000"}', "-o", tmp_path / "a.png")


def test_what_follows_from_the_texts_is_not_asked_for(place):
    with pytest.raises(TypeError, match="places follows from the longest answer, got places=9; leave it out"):
        train("seq2seq", place / "days.csv", task="text-to-text", out=place / "no", places=9)
