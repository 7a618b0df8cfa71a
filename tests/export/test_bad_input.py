"""Whatever is wrong with what a verb is given, it says so, and the older file stays as it was."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

import export
from export import ExportError
from zoo import registry


class Unknown(layers.Layer):
    """Has no configuration to copy it from."""

    def __init__(self, factor):
        super().__init__(name="unknown")
        self.factor = factor

    def call(self, x):
        return x * self.factor


class Python(layers.Layer):
    """Leaves the graph."""

    def compute_output_shape(self, shape):
        return shape

    def call(self, x):
        import tensorflow as tf

        return tf.ensure_shape(tf.py_function(lambda values: values * 2, [x], tf.float32), x.shape)


class Counting(layers.Layer):
    """Answers otherwise each time it is called."""

    calls = 0

    def call(self, x):
        self.calls += 1
        return x * self.calls


class Failing(layers.Layer):
    """Works on symbols only."""

    def compute_output_shape(self, shape):
        return shape

    def call(self, x):
        raise RuntimeError("out of order")


def around(layer, policy="float32"):
    rows = keras.Input((4,), name="rows")
    return keras.Model(rows, layers.Dense(3, dtype=policy)(layer(rows)), name="custom")


def four(**columns):
    return {"rows": np.ones((2, 4), np.float32), **columns}


MODELS = {
    "mlp": lambda: registry.get("mlp", input_shape=(4,), classes=3, width=(5,)),
    "none": lambda: None,
    "unbuilt": lambda: keras.Sequential([layers.Dense(2)]),
    "fixed batch": lambda: keras.Sequential([keras.Input(batch_shape=(2, 4), name="rows"), layers.Dense(2)]),
    "input called logits": lambda: keras.Sequential([keras.Input((4,), name="logits"), layers.Dense(2)]),
    "unknown half": lambda: around(Unknown(2.0), "mixed_float16"),
    "python": lambda: around(Python(name="python")),
    "counting": lambda: around(Counting(name="counting")),
    "failing": lambda: around(Failing(name="failing")),
    "nan": lambda: keras.Sequential(
        [keras.Input((4,), name="rows"), layers.Dense(2, bias_initializer=keras.initializers.Constant(np.nan))]
    ),
}
ONNX = [
    ("none", {}, "'NoneType': it has no inputs of its own"),
    ("unbuilt", {}, "it has no inputs of its own"),
    ("fixed batch", {}, "input 'rows' has a fixed batch of 2"),
    ("input called logits", {}, "'logits' is the name of an input and of an output"),
    ("unknown half", {}, "layer 'unknown' computes in half precision and has no copy"),
    ("python", {}, r"layer 'python' \(Python\) uses the TensorFlow operation 'EagerPyFunc'"),
    ("counting", {}, r"the first layer that differs is 'counting' \(Counting\)"),
    ("failing", {}, r"layer 'failing' \(Failing\) could not be converted: (.|\n)*out of order"),
    ("nan", {}, "Keras itself answers NaN or infinity"),
    ("mlp", {"golden": {}}, "the model takes inputs"),
    ("mlp", {"golden": {"inputs": np.ones((2, 5))}}, r"'inputs' must be \(rows, 4\), got \(2, 5\)"),
    ("mlp", {"golden": {"inputs": np.full((2, 4), np.nan)}}, "hold NaN or infinity"),
    ("mlp", {"opset": 12}, "opset must be a whole number from 13 to .*, got opset=12"),
    ("mlp", {"opset": "18"}, "got opset='18'"),
    ("mlp", {"tolerance": float("nan")}, "tolerance must be a number, got tolerance=nan"),
    ("mlp", {"tolerance": -1}, "tolerance must be at least 0"),
    ("mlp", {"external_above": 0.5}, "external_above must be a whole number of bytes"),
]
LITERT = [
    ("none", {}, "it has no inputs of its own"),
    ("unknown half", {}, "layer 'unknown' computes in half precision and has no copy"),
    ("python", {}, r"LiteRT has no EnsureShape \(in 'python'\), EagerPyFunc \(in 'python'\)"),
    ("failing", {}, "TensorFlow cannot run it: .*out of order"),
    ("mlp", {"precision": "int8"}, "needs calibration rows, got none"),
    ("mlp", {"precision": "int8", "calibration": {"inputs": np.ones((9, 4))}}, "calibration rows are all alike"),
    ("mlp", {"precision": "int8", "calibration": {"inputs": np.ones((9, 5))}}, r"must be \(rows, 4\), got \(9, 5\)"),
    ("mlp", {"precision": "w8"}, "nothing to shorten in 'mlp'"),
    ("mlp", {"max_drop": "a"}, "max_drop must be a number, got max_drop='a'"),
    ("mlp", {"length": 2}, "leaves no axis open"),
]


@pytest.mark.parametrize(
    ("verb", "model", "options", "message"),
    [("to_onnx", *case) for case in ONNX] + [("to_litert", *case) for case in LITERT],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "",
)
def test_a_file_is_refused_and_the_older_one_stays(verb, model, options, message, tmp_path):
    built = MODELS[model]()
    older = tmp_path / "model"
    older.write_bytes(b"older")
    with pytest.raises(ExportError, match=message):
        getattr(export, verb)(built, older, **options)
    assert older.read_bytes() == b"older" and [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("verb", ["to_onnx", "to_litert"])
def test_a_place_that_cannot_be_written(verb, tmp_path):
    model = MODELS["mlp"]()
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"older")
    for path, message in (
        (tmp_path / "folder", "it is a folder; name a file in it"),
        (tmp_path / "file" / "model", "choose another folder"),
        ("/proc/nowhere/model", "cannot write '/proc/nowhere/model': .*; choose another folder"),
    ):
        with pytest.raises(ExportError, match=message):
            getattr(export, verb)(model, path)
    assert (tmp_path / "file").read_bytes() == b"older" and not list((tmp_path / "folder").iterdir())


def constant(data):
    same = {name: np.repeat(values[:1], len(values), axis=0) for name, values in data.train.x.items()}
    return dataclasses.replace(data, train=dataclasses.replace(data.train, x=same))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "wine"}, r"data 'wine' is not for 'lenet', which takes \(None, 8, 8, 1\): .* is a table"),
        ({"data": "digts"}, "Did you mean 'digits'"),
        ({"max_drop": float("nan")}, "max_drop must be a number"),
        ({"weight_bits": "8"}, "weight_bits must be 8 or 4, got '8'"),
        ({"precision": "int4"}, "no precision is called 'int4'"),
        ({"opset": 3}, "opset must be a whole number"),
        ({"tolerance": 1e-12}, "differs from Keras by .*, allowed is 1e-12"),
        ({"folder": "/proc/store/digits/1"}, "cannot write '/proc/store/digits/1'"),
        ({"folder": "file/1"}, "cannot write 'file/1'"),
        ({"model": None}, "it has no inputs of its own"),
    ],
)
def test_a_bundle_is_refused_and_leaves_nothing(options, message, lenet, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"older")
    given = {"model": lenet, "folder": "store/digits/1", "data": digits, "int8": False, **options}
    with pytest.raises(ValueError, match=message):
        export.to_bundle(given.pop("model"), given.pop("folder"), **given)
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_bytes() == b"older"


def test_constant_training_rows_are_told_in_the_manifest(lenet, digits, tmp_path):
    found = export.to_bundle(lenet, tmp_path / "digits" / "1", data=constant(digits), litert=True)
    assert all("rows are all alike" in found.manifest.refused[name] for name in ("int8", "model.int8.tflite"))
    with pytest.raises(ExportError, match=r"precision 'int8' was chosen for this bundle and did not pass: .*all alike"):
        export.to_bundle(lenet, tmp_path / "digits" / "2", data=constant(digits), precision="int8")
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1"]
