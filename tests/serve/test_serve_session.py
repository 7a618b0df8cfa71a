"""Engines: the same answers from each, clear errors, and a choice that is measured once and remembered."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from small_bundles import image_graph, softmax, write_image, write_value

from serve import session
from serve.__main__ import main
from serve.manifest import BundleError, read
from serve.runtime import Model
from serve.store import Store

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    """Where choices are kept, away from the user's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "zooroad" / "engines.json"


@pytest.fixture
def bundle(tmp_path):
    return read(write_image(tmp_path / "store"))


def images(rows=3):
    return np.random.default_rng(0).integers(0, 256, (rows, 4, 4, 1)).astype(np.uint8)


class Timed:
    """A session that does nothing and notes when it is asked."""

    def __init__(self, engine, log):
        self.engine, self.log = engine, log
        self.inputs = self.outputs = {"x": "FP32"}

    def run(self, wanted, feed):
        self.log.append(self.engine)
        return []


def times_of(**milliseconds):
    """What `session.milliseconds` would say of engines as fast as stated."""
    return lambda sessions, feed: [milliseconds[each.engine] for each in sessions]


@needs_openvino
def test_openvino_gives_the_same_answers(bundle):
    found = {
        engine: Model(bundle, engine=engine, threads=1).predict({"image": images()})["probabilities"]
        for engine in ("onnxruntime", "openvino")
    }
    np.testing.assert_allclose(found["openvino"], found["onnxruntime"], atol=1e-6)


@needs_openvino
def test_openvino_takes_other_batches_and_missing_numbers(tmp_path):
    model = Model(read(write_value(tmp_path / "store")), engine="openvino", threads=1)
    assert model.engine == "openvino"
    for rows in (1, 5, 2):
        numbers = np.tile(np.array([[30, np.nan]], np.float32), (rows, 1))
        np.testing.assert_allclose(model.predict({"numbers": numbers})["value"], np.full((rows, 1), 130), rtol=1e-6)


@pytest.mark.parametrize("engine", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def test_several_threads_are_answered_at_once(bundle, engine):
    model = Model(bundle, engine=engine, threads=1)
    batches = [images(rows) for rows in range(1, 41)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda batch: model.predict({"image": batch})["probabilities"], batches))
    for batch, answers in zip(batches, found, strict=True):
        halves = [batch[:, :, :2].mean(axis=(1, 2, 3)) / 255 * 4, batch[:, :, 2:].mean(axis=(1, 2, 3)) / 255 * 4]
        np.testing.assert_allclose(answers, softmax(np.stack([0 * halves[0], *halves], axis=1)), atol=1e-5)


def test_openvino_that_is_not_installed_is_named(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BundleError, match="engine 'openvino' is not installed; run: pip install openvino"):
        Model(bundle, engine="openvino", threads=1)


def test_a_server_names_a_missing_openvino(bundle, tmp_path):
    (tmp_path / "openvino.py").write_text("raise ImportError('no such library')")
    command = [sys.executable, "-m", "serve", str(bundle.folder.parents[1]), "--engine", "openvino", "--port", "0"]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": path}
    )
    assert found.returncode == 1 and "Traceback" not in found.stderr
    message = "can be served:\n  sides/1: engine 'openvino' is not installed; run: pip install openvino"
    assert message in found.stderr and "make a bundle" not in found.stderr


def test_help_tells_precisions_and_engines(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["serve", "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    text = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    assert "fp32, fp16, int8, w8 or w4" in text
    assert "{onnxruntime,openvino,auto}" in text and "auto for the faster one here (default: onnxruntime)" in text


def test_auto_needs_no_openvino(bundle, monkeypatch, memory):
    monkeypatch.setattr(session, "installed", lambda engine: False)
    assert Model(bundle, engine="auto", threads=1).engine == "onnxruntime"
    assert not memory.exists()


@pytest.mark.parametrize("build", [Model, lambda bundle, engine: Store(bundle.folder.parents[1], engine=engine)])
def test_an_unknown_engine_is_named(bundle, build):
    with pytest.raises(ValueError, match="one of onnxruntime, openvino, auto, got 'tensorrt'"):
        build(bundle, engine="tensorrt")


@needs_openvino
@pytest.mark.parametrize(("other", "chosen"), [(5.0, "openvino"), (9.9, "onnxruntime"), (20.0, "onnxruntime")])
def test_auto_takes_the_faster_engine_and_remembers_it(bundle, monkeypatch, memory, other, chosen):
    monkeypatch.setattr(session, "milliseconds", times_of(onnxruntime=10.0, openvino=other))
    assert Model(bundle, engine="auto", threads=1).engine == chosen
    assert list(json.loads(memory.read_text()).values()) == [chosen]

    def again(sessions, feed):
        raise AssertionError("measured although the choice is known")

    monkeypatch.setattr(session, "milliseconds", again)
    assert Model(bundle, engine="auto", threads=1).engine == chosen


@needs_openvino
def test_a_choice_holds_for_its_file_and_threads(bundle, monkeypatch, memory, tmp_path):
    monkeypatch.setattr(session, "milliseconds", times_of(onnxruntime=10.0, openvino=1.0))
    Model(bundle, engine="auto", threads=1)
    monkeypatch.setattr(session, "milliseconds", times_of(onnxruntime=1.0, openvino=10.0))
    assert Model(bundle, engine="auto", threads=2).engine == "onnxruntime"
    assert Model(read(write_value(tmp_path / "store")), engine="auto", threads=1).engine == "onnxruntime"
    assert Model(bundle, engine="auto", threads=1).engine == "openvino"
    assert len(json.loads(memory.read_text())) == 3


@needs_openvino
def test_auto_stays_where_openvino_answers_otherwise(bundle, monkeypatch, memory, caplog):
    opened = session._OpenVino.run
    monkeypatch.setattr(session._OpenVino, "run", lambda self, *given: [a + 0.1 for a in opened(self, *given)])
    assert Model(bundle, engine="auto", threads=1).engine == "onnxruntime"
    assert "stays on ONNX Runtime: fp32 answers differ from golden.npz by 0.1" in caplog.text
    assert list(json.loads(memory.read_text()).values()) == ["onnxruntime"]


@pytest.mark.parametrize("content", ["{", "[1, 2]", '{"key": "unheard of"}', '"text"'])
def test_a_damaged_memory_is_written_anew(memory, content):
    memory.parent.mkdir(parents=True)
    memory.write_text(content)
    assert session.remembered("key") is None
    session.remember("key", "openvino")
    assert session.remembered("key") == "openvino"


def test_a_memory_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    session.remember("key", "openvino")
    assert session.remembered("key") is None


def test_a_user_without_a_home_is_no_error(monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    session.remember("key", "openvino")
    assert session.remembered("key") is None


@needs_openvino
def test_files_that_an_engine_cannot_load_are_named(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no protobuf")
    for engine, name in (("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO")):
        with pytest.raises(BundleError, match=f"bad.onnx does not load in {name}"):
            session.open_session(tmp_path / "bad.onnx", engine, 1)


def test_sessions_are_timed_in_turns_each_after_a_call_of_its_own():
    log = []
    found = session.milliseconds([Timed("a", log), Timed("b", log)], {}, repeats=4)
    assert log == ["a", "a", "b", "b"] * 4
    assert all(0 <= ms < 100 for ms in found)
    del log[:]
    session.milliseconds([Timed("a", log)], {}, repeats=1000, seconds=0)
    assert len(log) == 6  # three timed answers must do


@needs_openvino
def test_ports_are_named_alike_by_both_engines(tmp_path):
    image_graph(tmp_path / "model.onnx")
    for engine in ("onnxruntime", "openvino"):
        live = session.open_session(tmp_path / "model.onnx", engine, 1)
        assert (live.engine, live.inputs, live.outputs) == (engine, {"image": "UINT8"}, {"probabilities": "FP32"})
