import keras
import numpy as np
import pytest

import export
from export import ExportError, litert
from zoo import registry
from zoo.data.signature import Signature, TablePreprocess


def test_float_file_takes_pixels(lenet, digits, tmp_path):
    path = export.to_litert(lenet, tmp_path / "model.tflite", signature=digits.signature)
    pixels = digits.test.x["image"][:7]
    truth = keras.ops.convert_to_numpy(keras.ops.softmax(lenet(digits.signature.inputs({"image": pixels}))))
    np.testing.assert_allclose(litert.run(path, pixels), truth, atol=1e-5)
    assert litert.compare(lenet, digits.signature, path, digits.test.x).agreement == 1


def test_int8_file_is_integer_throughout(lenet, digits, tmp_path):
    path = export.to_litert(
        lenet, tmp_path / "model.tflite", signature=digits.signature, int8=True, calibration=digits.train.x
    )
    live = litert._interpreter(path)
    types = {detail["dtype"] for detail in live.get_tensor_details()}
    assert np.float32 not in types and live.get_input_details()[0]["dtype"] == np.uint8
    found = litert.compare(lenet, digits.signature, path, digits.test.x)
    assert found.agreement >= 0.97 and 1e-4 < found.difference < 0.2


def test_table_in_float_fills_missing_numbers_and_int8_takes_features(mixed, tmp_path):
    numbers = Signature("regression", ("y",), TablePreprocess(("a", "b"), (5.0, 1.0), (2.0, 3.0)), 10.0, 4.0)
    model = registry.get("logistic_regression", input_shape=(2,), classes=1)
    model.set_weights([np.array([[1.0], [0.0]]), np.array([0.0])])
    path = export.to_litert(model, tmp_path / "float.tflite", signature=numbers)
    found = litert.run(path, np.array([[np.nan, 1], [7, np.nan]], np.float32))
    np.testing.assert_allclose(found, [[10], [14]], atol=1e-5)
    mlp = registry.get("mlp", input_shape=mixed.signature.preprocess.shape, classes=2, width=(4,))
    path = export.to_litert(
        mlp, tmp_path / "int8.tflite", signature=mixed.signature, int8=True, calibration=mixed.train.x, agreement=0.8
    )
    assert litert.compare(mlp, mixed.signature, path, mixed.test.x).difference < 0.2


def test_refusals_leave_the_older_file(lenet, digits, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"older")
    with pytest.raises(ExportError, match="INT8 file needs calibration rows"):
        export.to_litert(lenet, path, signature=digits.signature, int8=True)
    with pytest.raises(ExportError, match=r"agrees with Keras on [01]\.\d+ of the rows, at least 1.1"):
        few = {"image": digits.train.x["image"][:20]}
        export.to_litert(lenet, path, signature=digits.signature, int8=True, calibration=few, agreement=1.1)
    with pytest.raises(ExportError, match="differs from Keras by"):
        export.to_litert(lenet, path, signature=digits.signature, tolerance=-1)
    assert path.read_bytes() == b"older" and [p.name for p in tmp_path.iterdir()] == ["model.tflite"]
