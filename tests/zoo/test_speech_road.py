"""Speech goes the whole road: trained, judged, exported, quantised, served, watched."""

import io
import json

import keras
import numpy as np
import onnxruntime
import pytest
import soundfile

import export
import zoo
from export import edge_runner
from export.litert import compare
from serve import beam_search
from serve.app import create_app
from serve.store import Store
from zoo import tasks
from zoo.data import Rows, audio, from_rows, recordings, spoken
from zoo.evaluate import transcripts

SMALL = dict(mels=16, filters=4, width=24, depth=1, window=0.032, hop=0.016)


@pytest.fixture(scope="module")
def data():
    waves, texts = spoken.sentences(160, seed=7, most=1)
    texts = ["no" if text in spoken.WORDS[::2] else "o" for text in texts]
    y, labels = recordings.spelled(texts)
    rows = Rows("said", "speech-recognition", {"audio": audio.rows_of(waves)}, y, labels, "made here", rate=spoken.RATE)
    return from_rows(rows)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("road") / "run"
    return zoo.train(
        "speech_ctc", data, out=folder, quiet=True, epochs=10, batch_size=16, learning_rate=1e-2, **SMALL
    )  # fmt: skip


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    return export.to_bundle(run, tmp_path_factory.mktemp("store") / "said" / "1", int8=True, max_drop=0.2)


def test_the_run_learns_and_says_how_well(run):
    assert run.metrics["test"] > 0.3
    assert (
        run.recipe.arguments["rate"] == 8000 and run.recipe.arguments["input_shape"] == run.signature.preprocess.shape
    )
    page = (run.folder / "report.md").read_text()
    assert "| word_accuracy | score |" in page and "the text of the most similar training recording" in page
    again = zoo.load(run.folder)
    assert zoo.evaluate(again.model, run.data).score.score == pytest.approx(run.metrics["test"])


def test_the_report_shows_what_was_heard(run, tmp_path):
    report = zoo.evaluate(run)
    assert report.answers.shape == (len(run.data.test), run.model.output_shape[1], 2)
    assert report.per_class["words"]["error_rate"] == pytest.approx(1 - report.score.score)
    assert set(report.metrics) == {"word_accuracy", "character_accuracy", "exact"}
    page = report.save(tmp_path / "report").read_text()
    for name in ("confusion.png", "examples.png", "worst.png"):
        assert name in page and (tmp_path / "report" / name).stat().st_size > 5000
    shown = tasks.get("speech-recognition").show(report, [0, 1, 2], tmp_path / "shown.png")
    assert shown.stat().st_size > 10_000


def test_the_bundle_answers_as_keras_does(run, bundle):
    manifest = bundle.manifest
    steps, classes = run.model.output_shape[1:]
    assert [(port.name, port.dtype, port.shape) for port in manifest.outputs] == [
        ("symbols", "INT32", (-1, steps)),
        ("path_probability", "FP32", (-1, 1)),
        ("probabilities", "FP32", (-1, steps, classes)),
    ]
    assert manifest.kind == "audio" and manifest.preprocess["rate"] == 8000
    assert manifest.precisions["fp32"].parity < 1e-4
    assert "int8" in manifest.precisions or "score falls" in manifest.refused["int8"]
    live = onnxruntime.InferenceSession(bundle.model("fp32"), providers=["CPUExecutionProvider"])
    symbols, _, shares = live.run(None, {"audio": run.data.test.x["audio"]})
    for row, own in zip(symbols, shares, strict=True):
        assert row[row >= 0].tolist() == transcripts.collapsed(own.argmax(axis=1))
    found = zoo.evaluate(bundle, run.data)
    np.testing.assert_allclose(found.answers, zoo.evaluate(run).answers, atol=1e-3)
    best = [beam_search.search(own, 8)[0].score for own in shares[:5]]
    paths = np.log(shares[:5].max(axis=2)).sum(axis=1)
    assert (np.array(best) >= paths - 1e-4).all()


def said_of(shares, labels, beams=1):
    """What is said in recordings, by the search itself or along the best path."""
    texts = [beam_search.search(own, beams)[0].symbols for own in shares] if beams > 1 else None
    texts = texts or [transcripts.collapsed(own.argmax(axis=1)) for own in shares]
    return [transcripts.spelled(text, labels) for text in texts]


def test_several_texts_are_followed_by_whoever_judges(run):
    unsure = keras.models.clone_model(run.model)
    unsure.set_weights(run.model.get_weights())
    head = [layer for layer in unsure.layers if layer.weights][-1]
    head.set_weights([0.1 * weight for weight in head.get_weights()])
    answered = unsure.predict_on_batch(run.signature.inputs(run.data.test.x))
    shares, labels = (
        tasks.get("speech-recognition").answers(answered, run.signature)["probabilities"],
        run.signature.labels,
    )
    assert said_of(shares, labels, 4) != said_of(shares, labels)
    for beams in (1, 4):
        report = zoo.evaluate(unsure, run.data, beams=beams)
        told = [transcripts.spelled(transcripts.collapsed(row[:, 0]), labels) for row in report.answers]
        assert told == said_of(shares, labels, beams) and report.name.endswith("(4 beams)") == (beams == 4)
        np.testing.assert_allclose(
            report.answers[..., 1],
            np.take_along_axis(shares, report.answers[..., :1].astype(int), axis=2)[..., 0],
            atol=1e-6,
        )


def test_the_runner_on_a_device_reads_recordings(run, bundle, tmp_path, monkeypatch):
    x, labels = run.data.test.x["audio"], run.signature.labels
    live = onnxruntime.InferenceSession(bundle.model("fp32"), providers=["CPUExecutionProvider"])
    (shares,) = live.run(["probabilities"], {"audio": x[:4]})
    for row in range(3):
        soundfile.write(tmp_path / f"{row}.wav", x[row][~np.isnan(x[row])], 8000, subtype="PCM_16")
    np.save(tmp_path / "3.npy", x[3][~np.isnan(x[3])])
    arguments = ["run.py", "--bundle", str(bundle.folder), *sorted(map(str, tmp_path.iterdir()))]
    for beams in (1, 4):
        monkeypatch.setattr("sys.argv", [*arguments, "--beams", str(beams)])
        told = edge_runner.work(edge_runner.arguments())["answers"]
        assert [answer["text"] for answer in told] == said_of(shares, labels, beams)
    soundfile.write(tmp_path / "0.wav", x[0][:4000], 16000, subtype="PCM_16")
    with pytest.raises(
        edge_runner.Refusal, match=r"0\.wav has 16 bits and 16000 samples per second; convert it to 16 bits and 8000"
    ):
        edge_runner.work(edge_runner.arguments())
    unsure = np.random.default_rng(0).dirichlet(np.full(len(labels), 0.3), (20, 12))
    assert said_of(unsure, labels, 4) != said_of(unsure, labels)
    for beams in (1, 2, 4, 30):
        assert [edge_runner.heard(own, labels, beams) for own in unsure] == said_of(unsure, labels, beams)


def test_a_device_file_answers_as_keras_does_whatever_is_padded(run, tmp_path):
    rows = {"audio": run.data.test.x["audio"][:16]}
    path = export.to_litert(run.model, tmp_path / "model.tflite", signature=run.signature, validation=rows)
    found = compare(run.model, run.signature, path, rows)
    assert found.difference < 1e-3 and found.agreement == pytest.approx(1)
    with pytest.raises(export.ExportError, match="the end of a row is NaN, which 8 bits have not"):
        export.to_litert(
            run.model, tmp_path / "small.tflite", signature=run.signature, precision="w8", validation=rows
        )  # fmt: skip


def test_the_store_serves_what_was_said(run, bundle):
    app = create_app(Store(bundle.folder.parents[1], threads=1), explain_target="zoo.explain:explain")
    client = app.test_client()
    report = zoo.evaluate(run)
    for row in range(3):
        wave = run.data.test.x["audio"][row]
        file = io.BytesIO()
        soundfile.write(file, wave[~np.isnan(wave)], 8000, format="WAV", subtype="FLOAT")
        answer = client.post("/predict/said", data=file.getvalue(), content_type="audio/wav").json
        told = tasks.get("speech-recognition").told(report.y[row], report.answers[row], report.labels)
        assert answer["predictions"][0]["text"] == told["answer"] and not answer["notes"]
    app.extensions["explainer"].close()
    told = json.loads((bundle.folder / "drift.json").read_text())
    assert list(told["inputs"]["audio"]) == ["seconds", "loudness in dB", "share of zero crossings"]
    assert list(told["outputs"]["summaries"]) == ["symbols", "mean probability of the best path"]


def test_what_does_not_apply_is_refused_in_words(run, bundle, tmp_path):
    with pytest.raises(ValueError, match="beams must be at least 1, got beams=0"):
        zoo.evaluate(run, beams=0)
    for subject in (run, bundle):
        with pytest.raises(ValueError, match="a transcript is no single figure that could be shared out"):
            zoo.explain(subject, {"audio": run.data.test.x["audio"][:1]})
    with pytest.raises(ValueError, match="mixup mixes the targets of two rows, and texts cannot be mixed"):
        zoo.train("speech_ctc", run.data, out=tmp_path / "mixed", epochs=1, quiet=True, augment=("mixup",), **SMALL)
    with pytest.raises(ValueError, match=r"row \d+ of train has \d steps for a text of 2, 'no'; correct the text"):
        zoo.train(
            "speech_ctc", run.data, out=tmp_path / "fast", epochs=1, quiet=True, **{**SMALL, "hop": 0.2, "window": 0.2}
        )
