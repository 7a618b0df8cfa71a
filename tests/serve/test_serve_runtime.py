import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from small_bundles import (
    IMAGE,
    NUMBERS,
    PROBABILITIES,
    VALUE,
    softmax,
    value_graph,
    write_bundle,
    write_image,
    write_onnx,
    write_table,
    write_value,
)

from serve import store as stores
from serve.errors import RequestError
from serve.manifest import MANIFEST, BundleError, read, seal
from serve.runtime import Model
from serve.store import Store


def image(batch=1, value=0):
    return np.full((batch, 4, 4, 1), value, np.uint8)


def edit_manifest(folder, **changes):
    raw = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**raw, **changes}))
    seal(folder)


def test_predictions_are_the_models(store):
    images = image(3)
    images[1, :, :2] = 255
    found = store.get("sides").predict({"image": images})
    np.testing.assert_allclose(found["probabilities"], softmax([[0, 0, 0], [0, 4, 0], [0, 0, 0]]), atol=1e-6)


def test_tables_take_missing_numbers_and_text(store):
    numbers = np.array([[np.nan, 20], [30, np.nan]], np.float32)
    inputs = {"numbers": numbers, "categories": np.array([["blue"], ["unheard of"]])}
    found = store.get("paints").predict(inputs)["probabilities"]
    np.testing.assert_allclose(found, softmax([[4, 2, 5], [3, 7, 0]]), atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "code", "message"),
    [
        ({}, "missing_input", r"'image' is missing; send UINT8 of shape \(batch, 4, 4, 1\)"),
        ({"imagee": image()}, "unknown_input", "has no input 'imagee'; it has image. Did you mean 'image'"),
        ({"image": image().astype(np.float32)}, "bad_datatype", "must be UINT8"),
        ({"image": image()[0]}, "bad_shape", r"must be \(batch, 4, 4, 1\), got \(4, 4, 1\)"),
        ({"image": image()[:, :3]}, "bad_shape", r"got \(1, 3, 4, 1\)"),
        ({"image": image(0)}, "bad_batch", "must hold 1 … 1024 rows, got 0; send one"),
        ({"image": image(1025)}, "bad_batch", "got 1025; split it"),
    ],
)
def test_bad_inputs_are_named(store, inputs, code, message):
    with pytest.raises(RequestError, match=message) as caught:
        store.get("sides").predict(inputs)
    assert caught.value.code == code


def test_bad_table_inputs_are_named(store):
    model = store.get("paints")
    numbers, categories = np.zeros((2, 2), np.float32), np.array([["red"], ["red"]])
    for inputs, message in (
        ({"numbers": numbers, "categories": categories[:1]}, "equal batches, got {'numbers': 2, 'categories': 1}"),
        ({"numbers": numbers + np.float32(np.inf), "categories": categories}, "too large for FP32"),
        ({"numbers": numbers, "categories": numbers[:, :1]}, "must be text"),
    ):
        with pytest.raises(RequestError) as caught:
            model.predict(inputs)
        assert message in caught.value.message


def test_ranges_and_missing_values_are_checked_where_declared(tmp_path):
    folder = write_table(tmp_path)
    ports = json.loads((folder / MANIFEST).read_text())["inputs"]
    edit_manifest(folder, inputs=[{**ports[0], "range": [0, 120], "unit": "years", "columns": []}, ports[1]])
    (folder / "golden.npz").unlink()
    seal(folder)
    model = Model(read(folder), threads=1)
    for value, message in ((121, "must lie in 0 … 120 years, got 121.0"), (np.nan, "missing values")):
        with pytest.raises(RequestError, match=message):
            model.predict({"numbers": np.full((1, 2), value, np.float32), "categories": np.array([["red"]])})


def test_unknown_outputs_are_refused(store):
    with pytest.raises(RequestError, match="no output 'logits'; it has probabilities"):
        store.get("sides").predict({"image": image()}, ["logits"])


def test_the_latest_version_is_the_default_by_number(store):
    assert list(store.models["sides"]) == ["2", "9", "10"]
    assert store.get("sides").version == "10"
    assert store.get("sides", "9").version == "9"


def test_a_damaged_bundle_is_refused_and_the_others_serve(store, store_folder):
    assert sorted(store.models) == ["dose", "paints", "sides"]
    assert "'model.onnx' does not match its hash" in store.refused["damaged", "1"]
    assert str(store_folder) not in store.refused["damaged", "1"]
    with pytest.raises(RequestError, match=r"version '1' is refused: damaged/1: 'model\.onnx'") as caught:
        store.get("damaged")
    assert caught.value.status == 503


def test_an_older_version_serves_when_the_latest_is_refused(store_folder):
    (store_folder / "sides" / "10" / "model.onnx").write_bytes(b"changed")
    store = Store(store_folder, threads=1)
    assert store.get("sides").version == "9"
    with pytest.raises(RequestError, match="version '10' is refused"):
        store.get("sides", "10")


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("side", None, r"no model is called 'side' \(3 served\). Did you mean 'sides'"),
        ("sides", "11", "no version '11'; it has 2, 9, 10"),
        ("../store", None, "no model is called"),
    ],
)
def test_unknown_models_are_404_with_a_hint(store, name, version, message):
    with pytest.raises(RequestError, match=message) as caught:
        store.get(name, version)
    assert caught.value.status == 404


def test_the_index_tells_every_version(store):
    found = [(entry["name"], entry["version"], entry["state"]) for entry in store.index()]
    assert found == [
        ("damaged", "1", "UNAVAILABLE"),
        ("dose", "1", "READY"),
        ("paints", "1", "READY"),
        ("sides", "2", "READY"),
        ("sides", "9", "READY"),
        ("sides", "10", "READY"),
    ]


def test_a_bundle_being_written_is_left_alone(store_folder):
    (store_folder / "sides" / ".draft-11").mkdir()
    assert ("sides", ".draft-11") not in Store(store_folder, threads=1).refused


def test_what_is_no_bundles_folder_does_not_stop_the_others(store_folder, monkeypatch, caplog):
    (store_folder / "sides" / "²").mkdir()  # a digit, but no number
    (store_folder / "lost+found").mkdir()
    folders = stores._folders

    def forbidden(parent):
        if parent.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(parent))
        return folders(parent)

    monkeypatch.setattr(stores, "_folders", forbidden)  # root may read everything
    store = Store(store_folder, threads=1)
    assert sorted(store.models) == ["dose", "paints", "sides"] and ("sides", "²") in store.refused
    assert "lost+found cannot be read and is left out" in caplog.text


def test_a_moved_bundle_is_refused(store_folder):
    shutil.copytree(store_folder / "sides" / "2", store_folder / "copied" / "2")
    assert "declares itself sides/2; move it there" in Store(store_folder).refused["copied", "2"]


def test_other_tensors_than_the_manifests_are_refused(tmp_path):
    folder = write_image(tmp_path)
    ports = json.loads((folder / MANIFEST).read_text())["inputs"]
    edit_manifest(folder, inputs=[{**ports[0], "name": "picture"}])
    with pytest.raises(BundleError, match=r"declares inputs \{'picture': 'UINT8'\}, the ONNX file has \{'image'"):
        Model(read(folder))


def test_other_answers_than_the_golden_ones_are_refused(tmp_path):
    folder = write_image(tmp_path)
    with np.load(folder / "golden.npz") as stored:
        arrays = dict(stored)
    arrays["output/probabilities"][0] += 0.01
    np.savez(folder / "golden.npz", **arrays)
    seal(folder)
    with pytest.raises(BundleError, match=r"differ from golden.npz by 0.01 in 'probabilities'"):
        Model(read(folder))


def test_what_is_no_onnx_file_is_refused(tmp_path):
    folder = write_image(tmp_path)
    (folder / "model.onnx").write_bytes(b"nothing of the kind")
    seal(folder)
    with pytest.raises(BundleError, match=r"'model.onnx' is no ONNX file"):
        Model(read(folder))


def test_an_asked_precision_must_be_stored(tmp_path):
    folder = write_image(tmp_path)
    with pytest.raises(BundleError, match="has no precision 'int8'; it has fp32"):
        Model(read(folder), precision="int8")
    edit_manifest(folder, refused={"int8": "accuracy would fall by 3 points"})
    with pytest.raises(BundleError, match="was not stored: accuracy would fall by 3 points"):
        Model(read(folder), precision="int8")


def test_a_failure_inside_onnx_runtime_is_an_answer(tmp_path, caplog):
    folder = write_image(tmp_path)
    (folder / "golden.npz").unlink()
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=1),
        helper.make_node("Reshape", ["pixels", "shape"], ["probabilities"]),  # 16 values into 3
    ]
    write_onnx(folder / "model.onnx", nodes, {"shape": np.array([-1, 3])}, (IMAGE,), (PROBABILITIES,))
    seal(folder)
    with pytest.raises(RequestError, match="failed on inputs that passed its checks") as caught:
        Model(read(folder), threads=1).predict({"image": image()})
    assert caught.value.status == 500


def test_an_engine_that_fails_writes_nothing_of_the_inputs(tmp_path, capfd):
    folder = write_value(tmp_path)
    (folder / "golden.npz").unlink()
    nodes = [
        helper.make_node("Cast", ["numbers"], ["places"], to=7),
        helper.make_node("Gather", ["table", "places"], ["found"]),  # which tells the place that is not there
        helper.make_node("ReduceSum", ["found", "axis"], ["value"], keepdims=1),
    ]
    constants = {"table": np.zeros(3, np.float32), "axis": np.array([1])}
    write_onnx(folder / "model.onnx", nodes, constants, (NUMBERS,), (VALUE,))
    seal(folder)
    with pytest.raises(RequestError, match="failed on inputs that passed its checks"):
        Model(read(folder), threads=1).predict({"numbers": np.array([[1, 4711]], np.float32)})
    told = "".join(capfd.readouterr())
    assert "4711" not in told and "Gather" not in told


def test_a_store_must_be_a_folder_of_bundles(tmp_path, store_folder):
    with pytest.raises(FileNotFoundError, match="no folder called"):
        Store(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="is one bundle; give the store"):
        Store(store_folder / "sides" / "2")


def test_a_store_looks_again_at_its_folder(store, store_folder):
    old = store.get("sides", "2")
    write_image(store_folder, "11")
    shutil.rmtree(store_folder / "sides" / "9")
    shutil.rmtree(store_folder / "damaged")
    store.rescan()
    assert list(store.models["sides"]) == ["2", "10", "11"] and store.get("sides").version == "11"
    assert store.get("sides", "2") is old  # nothing about it changed, so it was not loaded again
    assert store.refused == {}
    shutil.rmtree(store_folder / "dose")
    store.rescan()
    assert sorted(store.models) == ["paints", "sides"]


def test_a_bundle_replaced_by_one_of_equal_sizes_and_times_is_noticed(tmp_path):
    folder = write_value(tmp_path / "store")
    store = Store(tmp_path / "store", threads=1)

    def steeper(path):  # 3 * age + weight
        value_graph(path)
        model = onnx.load(path)
        (weight,) = (each for each in model.graph.initializer if each.name == "weight")
        weight.CopyFrom(numpy_helper.from_array(np.array([[3], [1]], np.float32), "weight"))
        onnx.save(model, path)

    golden = ({"numbers": np.array([[30, 20]], np.float32)}, {"value": np.array([[110]], np.float32)})
    facts = {
        name: getattr(store.get("dose").manifest, name) for name in ("task", "kind", "inputs", "outputs", "labels")
    }
    other = write_bundle(tmp_path / "other", "dose", "1", steeper, golden, **facts)
    for path in other.iterdir():  # as rsync and cp -p do
        old = (folder / path.name).stat()
        assert path.stat().st_size == old.st_size
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
        path.replace(folder / path.name)
    store.rescan()
    assert store.get("dose").predict({"numbers": np.array([[1, 1]], np.float32)})["value"] == [[4]]
    served = store.get("dose")
    store.rescan()
    assert store.get("dose") is served


def test_what_changes_for_the_worse_is_refused_and_what_was_loaded_stays(store, store_folder):
    old = store.get("dose")
    (store_folder / "dose" / "1" / "model.onnx").write_bytes(b"changed")
    store.rescan()
    assert store.get("dose") is old
    (entry,) = [entry for entry in store.index() if entry["name"] == "dose"]
    assert entry["state"] == "READY" and "does not match its hash" in entry["reason"]
    with pytest.raises(RequestError, match="does not match its hash") as caught:
        store.load("dose")
    assert caught.value.status == 422


def test_versions_are_unloaded_until_they_are_loaded_again(store):
    store.unload("sides", "10")
    store.rescan()
    assert store.get("sides").version == "9"
    assert {"name": "sides", "version": "10", "state": "UNAVAILABLE", "reason": "unloaded"} in store.index()
    with pytest.raises(RequestError, match="was unloaded; load it with POST") as caught:
        store.get("sides", "10")
    assert caught.value.status == 404
    store.load("sides", "10")
    assert store.get("sides").version == "10"
    store.unload("sides")
    with pytest.raises(RequestError, match="was unloaded"):
        store.unload("sides")
    store.load("sides")
    assert list(store.models["sides"]) == ["2", "9", "10"]
    with pytest.raises(RequestError, match="no folder 'side'") as caught:
        store.load("side")
    assert caught.value.status == 404


def test_traffic_rules_choose_the_version_that_nobody_asked_for(store):
    class Rules:
        def choose(self, name, versions, key=None):
            assert versions == ["2", "9", "10"]
            return {"pinned": "2", None: "9"}[key], "10" if key else "11"

    store.traffic = Rules()
    assert store.resolve("sides") == ("9", None)  # there is no version 11
    assert store.resolve("sides", key="pinned") == ("2", "10")
    assert store.resolve("sides", "10") == ("10", None)
    assert store.get("sides").version == "9"


def test_golden_rows_may_be_more_than_one_request_may_hold(tmp_path):
    model = Model(read(write_image(tmp_path)), threads=1, max_batch=1)
    with pytest.raises(RequestError, match="must hold 1 … 1 rows, got 2"):
        model.predict({"image": image(2)})


def test_a_bundle_says_how_many_rows_its_answers_leave_memory_for(tmp_path):
    bundle = read(write_image(tmp_path))
    large = replace(bundle, manifest=replace(bundle.manifest, max_batch=3))
    assert [Model(large, threads=1, max_batch=most).max_batch for most in (1024, 2)] == [3, 2]
    with pytest.raises(RequestError, match="must hold 1 … 3 rows, got 4; split it"):
        Model(large, threads=1).predict({"image": image(4)})


def test_looking_at_a_store_loads_no_engine():
    code = "import serve.runtime, sys; print([m for m in ('onnxruntime', 'flask') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "[]"
