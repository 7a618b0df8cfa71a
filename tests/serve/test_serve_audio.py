"""Recordings over HTTP: files of sound, what is refused, transcripts with times, and figures that drift is watched by."""

import io

import numpy as np
import pytest
import small_bundles
import soundfile
from onnx import helper
from small_bundles import write_bundle

from serve import audio, codec, drift, transcripts
from serve.app import create_app
from serve.errors import RequestError
from serve.manifest import Port, read
from serve.store import Store
from zoo.data import audio as trained
from zoo.data import recordings

RATE, SAMPLES, STEPS = 1000, 800, 4
LABELS = ("blank", " ", "a", "b")
AUDIO = Port(
    "audio", "FP32", (-1, SAMPLES), ("batch", "samples"), (-1, 1), "amplitude, 1000 a second, NaN behind the end"
)
SYMBOLS = Port("symbols", "INT32", (-1, STEPS), ("batch", "steps"), (-1, 3), "index of the label")
PROBABILITIES = Port("probabilities", "FP32", (-1, STEPS, 4), ("batch", "steps", "symbols"), (0, 1), "probability")
SAID = np.array([[0.1, 0, 0.9, 0], [0, 0.7, 0, 0.3], [0, 0, 0.2, 0.8], [1, 0, 0, 0]], np.float32)  # "a b"


def graph(path):
    """The same answer to every recording."""
    nodes = [
        helper.make_node("Shape", ["audio"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["rows"]),
    ]
    for name, size in (("symbols", "steps"), ("probabilities", "sizes")):
        nodes += [
            helper.make_node("Concat", ["rows", size], [f"all_{name}"], axis=0),
            helper.make_node("Expand", [f"own_{name}", f"all_{name}"], [name]),
        ]
    constants = {
        "zero": np.array([0]), "one": np.array([1]), "steps": np.array([STEPS]), "sizes": np.array([STEPS, 4]),
        "own_symbols": np.array([2, 1, 3, -1], np.int32), "own_probabilities": SAID,
    }  # fmt: skip
    small_bundles.write_onnx(path, nodes, constants, (AUDIO,), (SYMBOLS, PROBABILITIES))


def rows(*lengths, seed=0):
    waves = np.full((len(lengths), SAMPLES), np.nan, np.float32)
    random = np.random.default_rng(seed)
    for row, length in zip(waves, lengths, strict=True):
        row[:length] = random.uniform(-0.5, 0.5, length)
    return waves


def answered(count):
    return {
        "symbols": np.tile(np.array([2, 1, 3, -1], np.int32), (count, 1)),
        "probabilities": np.tile(SAID, (count, 1, 1)),
    }


def write_heard(store):
    return write_bundle(
        store, "heard", "1", graph, ({"audio": rows(800, 300)}, answered(2)),
        task="speech-recognition", kind="audio", inputs=(AUDIO,), outputs=(SYMBOLS, PROBABILITIES),
        labels=LABELS, preprocess={"rate": RATE, "samples": SAMPLES, "kind": "audio"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_heard(tmp_path_factory.mktemp("heard"))


@pytest.fixture(scope="module")
def manifest(folder):
    return read(folder).manifest


@pytest.fixture(scope="module")
def client(folder):
    app = create_app(Store(folder.parents[1], threads=1), explain_target="fake_explainers:echo")
    yield app.test_client()
    app.extensions["explainer"].close()


def sound(wave, rate=RATE, format="WAV", subtype="PCM_16"):
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=format, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["audio/wav", "audio/x-wav", "audio/flac", "application/octet-stream", "", "form"])
def test_a_file_is_answered_with_its_text_and_times(client, kind):
    body = sound(rows(700)[0, :700], format="FLAC" if "flac" in kind else "WAV")
    if kind == "form":
        answer = client.post("/predict/heard", data={"audio": (io.BytesIO(body), "speech.wav")})
    else:
        answer = client.post("/predict/heard", data=body, content_type=kind)
    assert answer.status_code == 200, answer.text
    assert answer.json["predictions"] == [
        {
            "text": "a b",
            "confidence": 0.8,
            "words": [
                {"word": "a", "start": 0.0, "end": 0.2, "confidence": 0.9},
                {"word": "b", "start": 0.4, "end": 0.6, "confidence": 0.8},
            ],
        }
    ]
    assert answer.json["notes"] == []


def test_amplitudes_as_json_and_the_form_of_the_answer(client):
    wave = rows(200)[0, :200].tolist()
    answer = client.post("/predict/heard?form=text", json={"audio": wave})
    assert answer.json["predictions"] == [{"text": "a b", "confidence": 0.8}]
    several = client.post(
        "/predict/heard", json=[{"audio": wave}, {"audio": wave[:150]}], headers={"Accept": "text/csv"}
    )
    assert several.text == "text,confidence\r\na b,0.8\r\na b,0.8\r\n"
    examples = client.get("/models/heard/examples").json
    assert [len(row["audio"]) for row in examples] == [800, 300]
    assert client.post("/predict/heard", json=examples[1]).status_code == 200


def test_several_texts_are_followed_for_the_likeliest(manifest, client):
    shares = np.array([[[0.6, 0, 0.4, 0], [0.6, 0, 0.4, 0], [0, 1, 0, 0], [0.1, 0, 0, 0.9]]], np.float32)
    (best,) = transcripts.answers({"probabilities": shares}, manifest)
    assert best["text"] == "b"  # "a b" is likelier, 0.64 to 0.36, over three paths of 0.24, 0.24 and 0.16
    (found,) = transcripts.answers({"probabilities": shares}, manifest, beams=4)
    assert found["text"] == "a b" and found["confidence"] == 0.4
    assert [(word["start"], word["end"], word["confidence"]) for word in found["words"]] == [
        (0.0, 0.2, 0.4),
        (0.6, 0.8, 0.9),
    ]
    wave = rows(300)[0, :300].tolist()
    assert client.post("/predict/heard?beams=8", json={"audio": wave}).json["predictions"][0]["text"] == "a b"
    for wrong in ("0", "9", "many", "2.5"):
        answer = client.post(f"/predict/heard?beams={wrong}", json={"audio": wave})
        assert answer.status_code == 422 and "'beams' must be a whole number 1 … 8, got" in answer.text


def test_tensors_hold_nan_behind_the_end(client):
    wave = rows(300)
    sent = {"inputs": [{"name": "audio", "shape": [1, SAMPLES], "datatype": "FP32", "data": _listed(wave)}]}
    answer = client.post("/v2/models/heard/infer", json=sent)
    assert answer.status_code == 200, answer.text
    assert answer.json["outputs"][0]["data"] == [2, 1, 3, -1]
    wave[0, 100] = np.nan
    sent["inputs"][0]["data"] = _listed(wave)
    answer = client.post("/v2/models/heard/infer", json=sent)
    assert answer.status_code == 422 and "missing values before its end" in answer.json["error"]


def _listed(wave):
    return [None if np.isnan(value) else float(value) for value in wave.ravel()]


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b"RIFF and no more", "bad_audio", "the body is not a sound file that can be read; send 16-bit WAV or FLAC"),
        (
            sound(np.ones(700) / 2)[:744],
            "bad_audio",
            "is cut off: 700 of 1,400 bytes of sound are there; send the whole",
        ),
        (sound(np.zeros(500)), "silent", "the recording is silent"),
        (sound(np.full(500, 5e-4)), "silent", "the recording is silent"),
        (sound(np.zeros(0)), "too_short", "the recording has 0.00 s, the least is 0.1 s"),
        (sound(rows(50)[0, :50]), "too_short", "the recording has 0.05 s, the least is 0.1 s"),
        (sound(np.ones(1000) / 2), "too_long", "the recording has 1.00 s, the model takes at most 0.80 s"),
        (sound(np.ones(500) / 2, rate=900), "bad_audio", "has 900 samples per second, not 1000 … 384000"),
        (sound(np.full(500, np.nan), subtype="FLOAT"), "not_finite", "the recording holds NaN or infinity"),
        (sound(np.append(np.ones(500), np.inf), subtype="FLOAT"), "not_finite", "holds NaN or infinity; send finite"),
        (sound(rows(700)[0, :700], format="FLAC")[:300], "bad_audio", "not a sound file that can be read"),
    ],
)
def test_what_cannot_be_heard_is_refused_in_words(client, body, code, message):
    answer = client.post("/predict/heard", data=body, content_type="audio/wav")
    assert answer.status_code == 422 and answer.json["error"]["code"] == code
    assert message in answer.json["error"]["message"]


def test_a_file_that_was_written_to_a_pipe_says_no_length(manifest):
    body = bytearray(sound(np.ones(700) / 2))
    body[4:8] = body[40:44] = b"\xff" * 4
    assert np.isfinite(audio.read(bytes(body), manifest)[0]).sum() == 700


def test_samples_that_are_clipped_are_told(manifest):
    wave = np.full(500, 0.5)
    wave[100:110] = -40
    found, notes = audio.read(sound(wave, subtype="FLOAT"), manifest)
    assert found[105] == -1 and notes == ["10 of 500 samples were beyond -1 … 1 and were clipped"]


def test_other_bodies_are_refused_with_what_to_send(client):
    answer = client.post("/predict/heard", data=b"\x89PNG", content_type="image/png")
    assert answer.status_code == 415 and "send a sound file, as with curl -F audio=@speech.wav" in answer.text
    for wrong in ({"sound": [0.5]}, {"audio": "x"}, []):
        assert client.post("/predict/heard", json=wrong).status_code == 400
    answer = client.post("/predict/heard", json={"audio": [[0.5, 0.5]]})
    assert answer.status_code == 422 and "send one channel" in answer.text
    answer = client.post("/predict/heard", json={"audio": [2.0] * 200})
    assert answer.status_code == 422 and answer.json["error"]["code"] == "out_of_range"


@pytest.mark.parametrize(("rate", "channels"), [(RATE, 1), (2205, 1), (8000, 2), (1500, 1)])
def test_a_file_is_read_as_in_training(tmp_path, manifest, rate, channels):
    wave = np.random.default_rng(0).uniform(-0.9, 0.9, (round(0.5 * rate), channels)).astype("float32")
    (tmp_path / "a.wav").write_bytes(sound(wave, rate))
    found, notes = audio.read((tmp_path / "a.wav").read_bytes(), manifest)
    expected = recordings.open_audio(tmp_path / "a.wav", RATE)
    np.testing.assert_array_equal(found[: len(expected)], expected)
    assert np.isnan(found[len(expected) :]).all() and len(found) == SAMPLES
    assert (f"converted from {rate} to 1000 samples per second" in notes) == (rate != RATE)
    assert ("the mean of 2 channels was taken" in notes) == (channels == 2)
    np.testing.assert_array_equal(audio.resample(wave[:, 0], rate, RATE), trained.resample(wave[:, 0], rate, RATE))


def test_a_word_ends_at_a_space_and_repeats_are_joined(manifest):
    best = [2, 2, 0, 2, 1, 1, 3, 0]
    shares = np.full((1, 8, 4), 0.1, np.float32)
    shares[0, np.arange(8), best] = [0.7, 0.6, 0.7, 0.7, 0.7, 0.7, 0.5, 0.7]
    (told,) = transcripts.answers({"probabilities": shares}, manifest)
    assert told["text"] == "aa b" and told["confidence"] == 0.5
    assert [(word["word"], word["start"], word["end"]) for word in told["words"]] == [("aa", 0.0, 0.4), ("b", 0.6, 0.7)]
    np.testing.assert_allclose([word["confidence"] for word in told["words"]], [0.7, 0.5], atol=1e-6)
    silent = transcripts.answers({"probabilities": np.eye(4)[[[0, 0]]]}, manifest)
    assert silent == [{"text": "", "confidence": 1.0, "words": []}]


def test_only_the_row_that_is_wrong_is_named():
    with pytest.raises(RequestError, match="input 'audio' is silent"):
        audio.check(np.array([[0.5] * 200, [0.0] * 200], np.float32), RATE, "input 'audio'")
    with pytest.raises(RequestError, match=r"has 0\.00 s"):
        audio.check(np.full((1, 200), np.nan, np.float32), RATE, "input 'audio'")


def test_recordings_are_watched_by_length_loudness_and_pitch():
    time = np.arange(SAMPLES) / RATE
    waves = np.full((2, SAMPLES), np.nan, np.float32)
    waves[0, :500] = np.sin(2 * np.pi * 100 * time[:500] + 0.1)
    waves[1] = 0.1 * np.sin(2 * np.pi * 50 * time + 0.1)
    found = drift.audio_summaries(waves, RATE)
    np.testing.assert_allclose(found["seconds"], [0.5, 0.8])
    np.testing.assert_allclose(found["loudness in dB"], [-3.01, -23.01], atol=0.01)
    np.testing.assert_allclose(found["share of zero crossings"], [0.2, 0.1], atol=0.005)
    told = drift.answer_summaries(answered(1), "speech-recognition", LABELS)
    assert told["symbols"].tolist() == [3] and told["mean probability of the best path"] == pytest.approx([0.85])


def test_a_row_goes_to_json_and_back(manifest):
    waves = rows(300)
    row = codec.to_row({"audio": waves}, 0, manifest)
    back, _ = codec.json_batch(row, manifest).take()
    np.testing.assert_allclose(back["audio"], waves, atol=1e-5)
