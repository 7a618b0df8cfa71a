import json

import numpy as np
import pytest

from serve import protocol
from serve.errors import RequestError
from serve.manifest import Port


def body(**tensor):
    return json.dumps({"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2], **tensor}]}).encode()


def nested(depth, value):
    return [nested(depth - 1, value)] if depth else value


def refused(request):
    with pytest.raises(RequestError) as caught:
        protocol.decode(request)
    return caught.value


def test_flat_and_nested_data_are_the_same():
    flat, _, _ = protocol.decode(body(shape=[1, 2, 2], data=[1, 2, 3, 4.5]))
    nested, _, _ = protocol.decode(body(shape=[1, 2, 2], data=[[[1, 2], [3, 4.5]]]))
    assert flat["x"].dtype == np.float32
    np.testing.assert_array_equal(flat["x"], [[[1, 2], [3, 4.5]]])
    np.testing.assert_array_equal(flat["x"], nested["x"])


def test_null_is_missing():
    numbers, _, _ = protocol.decode(body(data=[None, 2]))
    np.testing.assert_array_equal(numbers["x"], np.array([np.nan, 2], np.float32))
    text, _, _ = protocol.decode(body(datatype="BYTES", data=[None, "é"]))
    assert text["x"].tolist() == ["", "é"]


def test_wanted_outputs_and_id_are_returned():
    request = {"id": "seven", "inputs": [], "outputs": [{"name": "y"}]}
    assert protocol.decode(json.dumps(request).encode()) == ({}, ["y"], "seven")


@pytest.mark.parametrize(
    ("tensor", "code", "message"),
    [
        ({"datatype": "FLOAT"}, "bad_datatype", "'FLOAT'; known are BOOL"),
        ({"data": [1, 2, 3]}, "bad_shape", r"shape \[2\] but 3 values"),
        ({"shape": [-1]}, "bad_shape", "sizes are counts"),
        ({"shape": [2**70, 0]}, "bad_shape", "sizes are counts"),
        ({"shape": [1] * 65, "data": [1]}, "bad_shape", "65 axes, at most 32"),
        ({"data": nested(40, 1.0)}, "bad_shape", "40 lists deep, at most 32"),
        ({"datatype": "BYTES", "data": nested(64, "a")}, "bad_shape", "64 lists deep, at most 32"),
        ({"data": [[1], [2, 3]]}, "bad_shape", "ragged"),
        ({"data": ["1", "2"]}, "bad_data", "FP32 values, got '1'"),
        ({"data": [None, "2"]}, "bad_data", "FP32 values, got"),
        ({"data": [True, False]}, "bad_data", "FP32 values, got True"),
        ({"data": "12"}, "bad_data", "no JSON list"),
        ({"datatype": "UINT8", "data": [0, 256]}, "out_of_range", "0 … 256; UINT8 is 0 … 255"),
        ({"datatype": "UINT8", "data": [0, -1]}, "out_of_range", "-1 … 0"),
        ({"datatype": "UINT8", "data": [0, 1.5]}, "bad_data", "UINT8 values, got"),
        ({"datatype": "INT64", "data": [0, 2**70]}, "bad_data", "INT64 values, got"),
        ({"data": [0, 10**400]}, "out_of_range", "too large for FP32"),
        ({"datatype": "BYTES", "data": ["a", 1]}, "bad_data", "strings in lists of equal length"),
        ({"datatype": "BYTES", "data": [["a"], ["b", "c"]]}, "bad_data", "strings in lists of equal length"),
        ({"parameters": {"binary_data_size": 8}}, "bad_data", "binary tensors are not served"),
    ],
)
def test_bad_tensors_are_refused_by_name(tensor, code, message):
    error = refused(body(**tensor))
    assert (error.code, error.status) == (code, 422)
    assert error.message.startswith("input 'x'")
    with pytest.raises(RequestError, match=message):
        raise error


@pytest.mark.parametrize(
    ("request_body", "message"),
    [
        (b"", "the body is empty; send JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"inputs": [NaN]}', "NaN and Infinity are not JSON"),
        (b"[" * 100_000, "cannot be used"),
        (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": ' + b"[" * 100_000, "nests too deeply"),
        (b"{}", "inputs"),
        (b'{"inputs": [{"name": 3}]}', "inputs"),
    ],
)
def test_bad_json_is_a_400(request_body, message):
    error = refused(request_body)
    assert error.status == 400
    assert message in error.message


def test_an_input_given_twice_is_refused():
    tensor = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
    assert "given twice" in refused(json.dumps({"inputs": [tensor, tensor]}).encode()).message


def test_too_large_for_float32_becomes_infinite():
    arrays, _, _ = protocol.decode(body(data=[1e300, 2]))
    assert np.isinf(arrays["x"][0])


def test_answers_are_flat_and_nan_is_null():
    ports = (Port("y", "FP32", (-1, 2), ("batch", "classes")),)
    encoded = protocol.encode("m", "3", ports, {"y": np.array([[0.5, np.nan]], np.float32)}, "seven")
    assert json.loads(encoded) == {
        "model_name": "m",
        "model_version": "3",
        "id": "seven",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0.5, None]}],
    }
