"""`run.py` of a bundle, run as on a device: by its path, in a process of its own."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

import export
from export import edge_runner, parity
from serve.manifest import seal

SOURCE = Path(edge_runner.__file__)


@pytest.fixture(scope="module")
def image_bundle(lenet, digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "digits" / "1"
    return export.to_bundle(lenet, folder, data=digits, litert=True, ort=True, max_drop=0.05)


@pytest.fixture(scope="module")
def table_bundle(perceptron_of_mixed, mixed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "mixed" / "1"
    return export.to_bundle(perceptron_of_mixed, folder, data=mixed, litert=True, max_drop=1.0)


def start(folder, *arguments, cwd=None):
    """A finished `run.py`, which sees no package of this project."""
    command = [sys.executable, "-I", str(folder / "run.py"), "--seconds", "0.01", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def inside(folder, monkeypatch, *arguments):
    """The same in this process, which is faster: its report."""
    monkeypatch.setattr(sys, "argv", ["run.py", "--bundle", str(folder), "--seconds", "0.01", *map(str, arguments)])
    return edge_runner.work(edge_runner.arguments())


def test_it_is_one_file_for_old_pythons_that_imports_nothing_of_ours(image_bundle):
    assert (image_bundle.folder / "run.py").read_bytes() == SOURCE.read_bytes()
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 9))
    names = {a.name.partition(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module.partition(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert names - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "ai_edge_litert", "PIL", "tokenizers"}
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Match)]


def test_it_reports_from_any_folder(image_bundle, tmp_path):
    done = start(image_bundle.folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "digits 1 (lenet, image-classification)"
    assert [line.split()[0] for line in lines[1:]] == ["hashes", "file", "engine", "replay", "start", "latency", "latency", "memory"]  # fmt: skip
    report = json.loads(start(image_bundle.folder, "--json", "--threads", 1, "--batch", 8, cwd=tmp_path).stdout)
    assert report["files_verified"] == len(list(image_bundle.folder.iterdir())) - 1
    assert report["replay"]["rows"] == 16 and report["replay"]["difference"] <= report["replay"]["allowed"] < 0.01
    assert [timed["batch"] for timed in report["latency"]] == [1, 8] and report["threads"] == 1
    assert all(0 < timed["median_ms"] <= timed["p95_ms"] for timed in report["latency"])
    assert 20 < report["peak_mb"] < 500 and report["import_s"] > 0 and report["load_ms"] > 0


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        ((), "model.onnx"),
        (("--precision", "int8"), "model.int8.onnx"),
        (("--format", "ort"), "model.ort"),
        (("--format", "ort", "--precision", "int8"), "model.int8.ort"),
        (("--format", "tflite"), "model.tflite"),
        (("--format", "tflite", "--precision", "int8"), "model.int8.tflite"),
    ],
)
def test_every_file_replays_and_answers(image_bundle, digits, monkeypatch, tmp_path, arguments, file):
    rows = digits.test.x["image"][:20]
    np.save(tmp_path / "rows.npy", rows)
    found = inside(image_bundle.folder, monkeypatch, tmp_path / "rows.npy", "--batch", 8, *arguments)
    assert (
        found["file"] == file
        and "latency" not in found
        and found["bytes"] == (image_bundle.folder / file).stat().st_size
    )
    truth = parity.run(parity.session(image_bundle.model()), {"image": rows})["probabilities"]
    near = np.array([answer["probability"] for answer in found["answers"]])
    assert (np.abs(near - truth.max(axis=1)) < (0.2 if "int8" in file else 1e-3)).mean() >= 0.95
    assert len(found["answers"][0]["top"]) == 3


def test_pictures_and_pixels_of_each_form(image_bundle, digits, monkeypatch, tmp_path):
    pixels = digits.test.x["image"][0]
    Image.fromarray(pixels[..., 0]).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", pixels)
    np.save(tmp_path / "c.npy", pixels[..., 0].astype(np.float64))
    np.savez(tmp_path / "d.npz", image=pixels[None])
    (tmp_path / "e.json").write_text(json.dumps({"image": pixels.tolist()}))
    paths = sorted(tmp_path.iterdir())
    found = inside(image_bundle.folder, monkeypatch, *paths)["answers"]
    truth = parity.run(parity.session(image_bundle.model()), {"image": pixels[None]})["probabilities"][0]
    assert [answer["source"] for answer in found] == [str(path) for path in paths]
    for answer in found:
        assert answer["label"] == str(truth.argmax()) and answer["probability"] == pytest.approx(truth.max(), abs=1e-5)


@pytest.mark.parametrize("form", ["onnx", "tflite"])
def test_rows_of_a_table(table_bundle, mixed, monkeypatch, tmp_path, form):
    (tmp_path / "rows.csv").write_text("colour,height,other,kind\nred,12.5,x,a\n,,y,never seen\n")
    (tmp_path / "rows.json").write_text('[{"colour": "red", "height": 12.5, "kind": "a"}, {"kind": "never seen"}]')
    found = inside(table_bundle.folder, monkeypatch, tmp_path / "rows.csv", tmp_path / "rows.json", "--format", form)
    raw = {
        "numbers": np.array([[12.5, np.nan], [np.nan, np.nan]], np.float32),
        "categories": np.array([["red", "a"], ["", "never seen"]]),
    }
    truth = parity.run(parity.session(table_bundle.model()), raw)["probabilities"]
    for answer, row in zip(found["answers"], [*truth, *truth], strict=True):
        assert answer["probability"] == pytest.approx(row.max(), abs=1e-4)


def test_what_is_wrong_is_said(image_bundle, table_bundle, monkeypatch, tmp_path):
    (tmp_path / "rows.csv").write_text("weight\n3\n")
    (tmp_path / "text.csv").write_text("height\ntall\n")
    (tmp_path / "rows.txt").write_text("1")
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    np.save(tmp_path / "large.npy", np.full((8, 8, 1), 300.0))
    np.save(tmp_path / "shape.npy", np.zeros((2, 5, 8, 1), np.uint8))
    for bundle, arguments, message in (
        (image_bundle, ("rows.txt",), "rows.txt is no picture, .wav, .npy"),
        (image_bundle, ("nothing.npy",), "no file called"),
        (image_bundle, ("damaged.png",), "damaged.png cannot be read: "),
        (image_bundle, ("large.npy",), "'image' must hold whole numbers in 0 ... 255"),
        (image_bundle, ("shape.npy",), r"'image' must be \(batch, 8, 8, 1\), got \(2, 5, 8, 1\)"),
        (image_bundle, ("--precision", "fp16"), "no .onnx file in 'fp16', it has fp32, int8"),
        (table_bundle, ("--format", "ort"), "the bundle has no .ort file; it has .onnx, .tflite"),
        (table_bundle, ("rows.csv",), "no column is one of the model's; it takes height, depth, colour, kind"),
        (table_bundle, ("text.csv",), "column 'height' must hold numbers, got 'tall'"),
        (
            table_bundle,
            ("damaged.png",),
            "the model takes columns, of .csv or .json files, not pictures such as damaged.png",
        ),
    ):
        given = [tmp_path / name if Path(name).suffix else name for name in arguments]
        with pytest.raises(edge_runner.Refusal, match=message):
            inside(bundle.folder, monkeypatch, *given)


def test_altered_files_are_refused(image_bundle, monkeypatch, tmp_path):
    copy = tmp_path / "1"
    shutil.copytree(image_bundle.folder, copy)
    (copy / "note.txt").write_text("mine")
    with pytest.raises(edge_runner.Refusal, match=r"note.txt does not belong to the bundle"):
        inside(copy, monkeypatch)
    (copy / "note.txt").unlink()
    with (copy / "model.int8.onnx").open("ab") as file:
        file.write(b"x")
    done = start(copy)
    assert done.returncode == 1 and done.stderr.startswith("error: model.int8.onnx was altered") and not done.stdout
    (copy / "model.int8.onnx").unlink()
    with pytest.raises(edge_runner.Refusal, match=r"model.int8.onnx is missing"):
        inside(copy, monkeypatch)
    with pytest.raises(edge_runner.Refusal, match="is not a bundle: it has no SHA256SUMS"):
        inside(tmp_path, monkeypatch)


def test_other_answers_than_the_golden_ones_are_refused(table_bundle, monkeypatch, tmp_path):
    copy = tmp_path / "1"
    shutil.copytree(table_bundle.folder, copy)
    with np.load(copy / "golden.npz") as stored:
        arrays = dict(stored)
    arrays["output/probabilities"] = arrays["output/probabilities"][:, ::-1]
    np.savez(copy / "golden.npz", **arrays)
    seal(copy)
    with pytest.raises(edge_runner.Refusal, match=r"the answers to the golden rows differ by .* in 'probabilities'"):
        inside(copy, monkeypatch)


HEARD = {
    "kind": "audio",
    "task": "speech-recognition",
    "preprocess": {"rate": 8000},
    "inputs": [{"name": "audio", "shape": [-1, 4000], "axes": ["batch", "samples"], "dtype": "FP32", "range": [-1, 1]}],
}


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (np.zeros(2000), "is silent; check the microphone and record it again"),
        (np.full(2000, 5e-4), "is silent"),
        (np.zeros(0), r"has 0\.00 s, the least is 0\.1 s"),
        (np.full(4800, 0.5), r"has 0\.60 s, the model takes at most 0\.50 s; cut it into parts"),
        (np.full(700, 0.5), r"has 0\.09 s, the least is 0\.1 s; give a longer one"),
        (np.where(np.arange(2000) == 1000, np.nan, 0.5), "has values that are not finite before its end"),
        (np.full(2000, np.inf), "has values that are not finite before its end"),
    ],
)
def test_what_a_server_would_not_hear_is_refused(tmp_path, wave, message):
    np.save(tmp_path / "a.npy", wave)
    with pytest.raises(edge_runner.Refusal, match=rf"a\.npy {message}"):
        edge_runner.read(tmp_path / "a.npy", HEARD)
    if np.isfinite(wave).all():
        soundfile.write(tmp_path / "a.wav", wave, 8000, subtype="PCM_16")
        with pytest.raises(edge_runner.Refusal, match=rf"a\.wav {message}"):
            edge_runner.read(tmp_path / "a.wav", HEARD)


def test_a_wav_file_is_as_long_as_it_says_unless_it_was_written_to_a_pipe(tmp_path):
    file = tmp_path / "a.wav"
    soundfile.write(file, np.full(2000, 0.5), 8000, subtype="PCM_16")
    body = bytearray(file.read_bytes())
    file.write_bytes(body[:2044])
    with pytest.raises(edge_runner.Refusal, match=r"a\.wav is cut off: 2,000 of 4,000 bytes of sound are there; copy"):
        edge_runner.read(file, HEARD)
    body[4:8] = body[40:44] = b"\xff" * 4
    file.write_bytes(body[:2044])
    assert np.isfinite(edge_runner.read(file, HEARD)[0]["audio"]).sum() == 1000
    for start in (b"", b"hello", body[:20]):
        file.write_bytes(start)
        with pytest.raises(edge_runner.Refusal, match=r"cannot be read: it ends too early; save it as 16-bit WAV"):
            edge_runner.read(file, HEARD)


def test_a_series_is_brought_to_the_steps_of_the_model(tmp_path):
    port = {"name": "series", "shape": [-1, 8, 2], "axes": ["batch", "time", "columns"], "dtype": "FP32", "range": None}
    series = {"kind": "series", "task": "forecasting", "inputs": [port]}
    steps = np.arange(24.0).reshape(12, 2)
    np.save(tmp_path / "a.npy", steps)
    found, note = edge_runner.read(tmp_path / "a.npy", series)
    np.testing.assert_array_equal(found["series"], steps[None, -8:])
    assert note == "the forecast is made from the last 8 of 12 steps"
    with pytest.raises(edge_runner.Refusal, match=r"a\.npy has 12 steps, the model takes at most 8; give a part of"):
        edge_runner.read(tmp_path / "a.npy", {**series, "task": "classification"})
    np.save(tmp_path / "a.npy", steps[None, :8])
    assert edge_runner.read(tmp_path / "a.npy", series)[1] == ""
    np.save(tmp_path / "a.npy", steps[:5])
    with pytest.raises(
        edge_runner.Refusal, match=r"a\.npy: a forecast needs the last 8 steps, got 5; give more of the"
    ):
        edge_runner.read(tmp_path / "a.npy", series)


def test_beams_of_texts_are_found_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(edge_runner, "verify", lambda folder: 1)
    monkeypatch.setattr(edge_runner, "choose", lambda *given: (tmp_path / "model.onnx", "fp32", {}))
    for block, cure in (
        ({"files": {}}, "of texts they are for a server or zoo generate; leave it out"),
        ({}, "leave it"),
    ):
        told = {"format": 6, "task": "language-modelling", "generation": block}
        (tmp_path / "model.json").write_text(json.dumps(told))
        with pytest.raises(edge_runner.Refusal, match=f"this model is for language-modelling; {cure}"):
            inside(tmp_path, monkeypatch, "--beams", 2)
