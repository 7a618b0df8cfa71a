import base64
import json
import struct

import numpy as np
import pytest

from serve import protocol, tensors
from serve.errors import RequestError
from serve.manifest import Manifest, Port
from serve.protocol import Request, Wanted

NUMBERS = Port("numbers", "FP32", (-1, 2), ("batch", "columns"))
WORDS = Port("words", "BYTES", (-1, 1), ("batch", "columns"))
SCORES = Port("scores", "FP32", (-1, 3), ("batch", "classes"))
NOTE = Port("note_bytes", "BYTES", (-1,), ("batch",))


def manifest(*inputs, outputs=(SCORES,), labels=("a", "b", "c")):
    return Manifest("m", "3", "by hand", "classification", "table", inputs, outputs, labels, "accuracy", {})


def body(**tensor):
    return json.dumps({"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2], **tensor}]}).encode()


def binary(data, **tensor):
    parameters = {"binary_data_size": len(data)}
    described = {"name": "x", "shape": [2], "datatype": "FP32", "parameters": parameters, **tensor}
    header = json.dumps({"inputs": [described]}).encode()
    return header + data, len(header)


def nested(depth, value):
    return [nested(depth - 1, value)] if depth else value


def elements(*texts):
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def refused(*request):
    with pytest.raises(RequestError) as caught:
        protocol.decode(*request)
    return caught.value


def answer(request, outputs, declared=(SCORES,)):
    """The answer as (JSON, bytes behind it)."""
    encoded, length = protocol.encode("m", "3", manifest(outputs=declared), outputs, request)
    length = len(encoded) if length is None else length
    return json.loads(encoded[:length]), encoded[length:]


def test_flat_and_nested_data_are_the_same():
    flat = protocol.decode(body(shape=[1, 2, 2], data=[1, 2, 3, 4.5])).inputs
    deep = protocol.decode(body(shape=[1, 2, 2], data=[[[1, 2], [3, 4.5]]])).inputs
    assert flat["x"].dtype == np.float32
    np.testing.assert_array_equal(flat["x"], [[[1, 2], [3, 4.5]]])
    np.testing.assert_array_equal(flat["x"], deep["x"])


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("BOOL", [True, False]),
        ("UINT8", [0, 255]),
        ("INT8", [-128, 127]),
        ("UINT16", [0, 2**16 - 1]),
        ("INT32", [-(2**31), 2**31 - 1]),
        ("UINT64", [0, 2**64 - 1]),
        ("INT64", [-(2**63), 2**63 - 1]),
        ("FP16", [1.5, -2.0]),
        ("FP64", [0.1, 1e300]),
        ("BF16", [1.5, -2.0]),
        ("BYTES", ["", "é"]),
    ],
)
def test_every_datatype_keeps_its_values_in_json_and_binary(datatype, data):
    array = protocol.decode(body(datatype=datatype, data=data)).inputs["x"]
    assert array.tolist() == data
    assert array.dtype == tensors.DTYPES[datatype]
    port = Port("y", datatype, (-1,), ("batch",))
    for as_bytes in (False, True):
        encoded, length = protocol.encode(
            "m", "3", manifest(outputs=(port,)), {"y": array}, Request({}, [Wanted("y", as_bytes)])
        )
        assert (length is not None) == as_bytes
        assert protocol.unpack(encoded, length)["y"].tolist() == data


def test_a_body_of_countless_lists_is_refused_unless_their_form_is_known():
    with pytest.raises(RequestError, match="more than 500000 lists and objects"):
        tensors.decode_json(b"[" + b"[],{}," * 250_000 + b"0]")
    assert len(tensors.decode_json(b"[" + b"[0,0,0,0]," * 250_000 + b"0]")) == 250_001


LONG = [  # data that is taken, and data that is not, by datatype and shape
    ("FP32", [3, 2], [[1, None], [3, 4.5], [-1e-3, 1e300]]),
    ("FP32", [3, 2], [1, 2, 3, 4, 5, 6]),
    ("FP32", [1, 1, 1], [[[7]]]),
    ("BF16", [2, 1], [[1.00390625], [None]]),
    ("UINT8", [2, 2], [[0, 255], [3, 4]]),
    ("INT64", [2], [-(2**63), 2**63 - 1]),
    ("BOOL", [2, 1], [[True], [False]]),
    ("BYTES", [2, 2], [["[,]", "\\"], ['"]', None]]),
    ("BYTES", [3], ["", "é,", '\\"[']),
    ("FP32", [2, 2], [[1, 2], [3]]),
    ("FP32", [2, 2], [[1, 2, 3], [4]]),
    ("FP32", [2, 2], [[1, 2], [3, "4"]]),
    ("FP32", [2, 2], [[1, 2], [3, {}]]),
    ("FP32", [2, 1], [[], []]),
    ("FP32", [2, 0], [[1], [2]]),
    ("FP32", [0], [1]),
    ("FP32", [1], []),
    ("BYTES", [2, 1], [[], []]),
    ("FP32", [2], [True, 1]),
    ("UINT8", [2], [256, 1]),
    ("UINT8", [2], [0.5, 1]),
    ("INT8", [2], [-129, 1]),
    ("INT64", [2], [10**400, 1]),
    ("FP32", [2], [10**400, 1]),
    ("BYTES", [2], ["a", 1]),
    ("BYTES", [2], [["a"], ["b", "c"]]),
]


@pytest.mark.parametrize(("datatype", "shape", "data"), LONG)
def test_long_data_is_read_as_short_data_is(datatype, shape, data, monkeypatch):
    sent = [body(datatype=datatype, shape=shape, data=data)]
    sent.append(json.dumps(json.loads(sent[0]), indent=3).encode())

    def read(request):
        try:
            return protocol.decode(request).inputs["x"]
        except RequestError as error:
            assert (error.status, error.message[:9]) == (422, "input 'x'")
            return None

    short = read(sent[0])
    monkeypatch.setattr(tensors, "SMALL", 0)
    monkeypatch.setattr(protocol, "SMALL", 0)
    for long in map(read, sent):
        assert (short is None) == (long is None)
        if short is not None:
            assert (long.dtype, long.shape) == (short.dtype, short.shape)
            np.testing.assert_array_equal(long, short)


@pytest.mark.parametrize("block", [5, 64, tensors.BLOCK])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_flat_bytes_are_read_whatever_block_they_fall_into(block, separators, monkeypatch):
    monkeypatch.setattr(tensors, "BLOCK", block)
    values = [0, 9, 10, 99, 100, 255, *np.random.default_rng(0).integers(0, 256, 500).tolist()]
    text = json.dumps(values, separators=separators).encode()
    assert tensors.bytes_of(text).tolist() == values
    assert tensors.bytes_of(b"[7]").tolist() == [7]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "[256]",
        "[1000]",
        "[01]",
        "[00]",
        "[012]",
        "[1,052,3]",
        "[-1]",
        "[1.0]",
        "[1,,2]",
        "[,1]",
        "[1,]",
        "[1 2]",
        "[1,2",
        "[[1]]",
        "[1,null]",
    ],
)
def test_what_is_no_flat_list_of_bytes_is_left_to_the_careful_reader(text):
    assert tensors.bytes_of(text.encode()) is None


@pytest.mark.parametrize(
    "text",
    [
        '{"inputs":[{"name":"x","shape":[2],"datatype":"UINT8","data":[1,2]}]}',
        ' { "id" : "a" , "inputs" : [ { "datatype" : "UINT8" , "shape" : [ 2 ] , "name" : "x" , "data" : [ 1 , 2 ] } ] } ',
        '{"inputs":[{"data":[1,2],"name":"x","shape":[2],"datatype":"UINT8","parameters":{}}],"id":"a"}',
        '{"inputs":[{"name":"x","shape":[2],"datatype":"UINT8","data":[3,4],"data":[1,2]}]}',
        '{"parameters":{"data":[3]},"inputs":[{"name":"x","shape":[2],"datatype":"UINT8","data":[1,2]}]}',
        '{"inputs":[{"name":"x","shape":[2],"datatype":"UINT8","data":[1,2]},{"name":"y","shape":[1],"datatype":"BYTES","data":["]"]}]}',
        '{"inputs":[{"name":"x\\u0041","shape":[2],"datatype":"UINT8","data":[1,2]}]}',
        '{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[[1,2]]}]}',
    ],
)
def test_long_numbers_set_aside_change_nothing(text, monkeypatch):
    short = protocol.decode(text.encode())
    monkeypatch.setattr(tensors, "SMALL", 0)
    monkeypatch.setattr(protocol, "SMALL", 0)
    long = protocol.decode(memoryview(text.encode()))
    assert (short.id, list(short.inputs)) == (long.id, list(long.inputs))
    for name, array in short.inputs.items():
        np.testing.assert_array_equal(array, long.inputs[name])
    for cut in range(1, len(text.strip())):  # what is no JSON is none in either way
        with pytest.raises(RequestError):
            protocol.decode(text[:cut].encode())


def test_long_lists_that_have_not_their_shape_are_refused_before_they_are_built(monkeypatch):
    monkeypatch.setattr(tensors, "_lists", lambda kind, depth: pytest.fail("the lists were built"))
    for data, shape in (
        (b"[" + b"[]," * 20_000 + b"[]]", [20_001]),
        (b"[" + b"[[[[1]]]]," * 20_000 + b"[[[[1]]]]]", [20_001]),
        (b"[" + b"{}," * 20_000 + b"{}]", [7]),
        (b"[" + b"1," * 20_000 + b"1]", [2**31 - 1, 0]),
        (b"[" + b"1," * 20_000 + b"1]", [2**31 - 1, 2**31 - 1]),
    ):
        described = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": %b, "data": %b}]}'
        assert refused(described % (json.dumps(shape).encode(), data)).status == 422
    words = b"[" + b'[[[[["a"]]]]],' * 10_000 + b'[[[[["a"]]]]]]'
    described = b'{"inputs": [{"name": "x", "datatype": "BYTES", "shape": [10001, 1, 1, 1, 1, 1], "data": %b}]}'
    assert "too many lists" in refused(described % words).message


def test_null_is_missing():
    numbers = protocol.decode(body(data=[None, 2])).inputs
    np.testing.assert_array_equal(numbers["x"], np.array([np.nan, 2], np.float32))
    for data in ([None, "é"], [[None], ["é"]]):
        assert protocol.decode(body(datatype="BYTES", data=data)).inputs["x"].tolist() == ["", "é"]


def test_brain_floats_are_rounded_to_the_nearest_and_ties_to_even():
    # 1 + 2**-8 lies between the neighbours 1 and 1 + 2**-7, 1 + 3 * 2**-8 between 1 + 2**-7 and 1 + 2**-6
    data = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 3.4e38, None]
    found = protocol.decode(body(shape=[5], datatype="BF16", data=data)).inputs["x"]
    np.testing.assert_array_equal(found, np.array([1, 1 + 2**-6, 1 + 2**-7, np.inf, np.nan], np.float32))


def test_outputs_id_and_parameters_are_returned():
    request = protocol.decode(
        json.dumps(
            {
                "id": "seven",
                "inputs": [],
                "outputs": [
                    {"name": "y"},
                    {"name": "z", "parameters": {"binary_data": False, "classification": 2}},
                ],
                "parameters": {"binary_data_output": True, "own": 1},
            }
        ).encode()
    )
    assert (request.inputs, request.id, request.names) == ({}, "seven", ["y", "z"])
    assert request.outputs == [Wanted("y", True, 0), Wanted("z", False, 2)]
    assert request.parameters["own"] == 1
    assert protocol.decode(body()).names is None


@pytest.mark.parametrize(
    ("tensor", "code", "message"),
    [
        ({"datatype": "FLOAT"}, "bad_datatype", "'FLOAT'; known are BOOL"),
        ({"data": [1, 2, 3]}, "bad_shape", r"shape \[2\] but 3 values"),
        ({"shape": [-1]}, "bad_shape", "sizes are counts"),
        ({"shape": [2**70, 0]}, "bad_shape", "sizes are counts"),
        ({"shape": [0, *[2**31 - 1] * 3], "data": []}, "bad_shape", "which no array can have"),
        ({"shape": [1] * 65, "data": [1]}, "bad_shape", "65 axes, at most 32"),
        ({"data": nested(40, 1.0)}, "bad_shape", "40 lists deep, at most 32"),
        ({"datatype": "BYTES", "data": nested(64, "a")}, "bad_shape", "64 lists deep, at most 32"),
        ({"data": [[1], [2, 3]]}, "bad_shape", "ragged"),
        ({"data": [[1], 2]}, "bad_shape", "ragged"),
        ({"data": ["1", "2"]}, "bad_data", "FP32 values, got '1'"),
        ({"data": ["a" * 10_000, *[0] * 100]}, "bad_data", "FP32 values, got 'aaa"),
        ({"data": [None, "2"]}, "bad_data", "FP32 values, got '2'"),
        ({"data": [True, False]}, "bad_data", "FP32 values, got True"),
        ({"data": [1, {}]}, "bad_data", "FP32 values, got {}"),
        ({"data": "12"}, "bad_data", "no JSON list"),
        ({"data": None}, "bad_data", "no JSON list"),
        ({"datatype": "UINT8", "data": [0, 256]}, "out_of_range", "0 … 256; UINT8 is 0 … 255"),
        ({"datatype": "UINT8", "data": [[0], [-1]]}, "out_of_range", "-1 … 0"),
        ({"datatype": "UINT8", "data": [0, 1.5]}, "bad_data", "UINT8 values, got 1.5"),
        ({"datatype": "UINT8", "data": [0, None]}, "bad_data", "UINT8 values, got None"),
        ({"datatype": "BOOL", "data": [0, 1]}, "bad_data", "BOOL values, got 0"),
        ({"datatype": "INT64", "data": [0, 2**70]}, "out_of_range", "INT64 is"),
        ({"datatype": "INT64", "data": [0, 10**4200]}, "out_of_range", "INT64 is"),
        ({"data": [0, 10**400]}, "out_of_range", "too large for FP32"),
        ({"datatype": "BYTES", "data": ["a", 1]}, "bad_data", "BYTES values, got 1"),
        ({"datatype": "BYTES", "data": [["a"], ["b", "c"]]}, "bad_shape", "ragged"),
        ({"parameters": {"binary_data_size": 8}}, "bad_data", "both data and binary_data_size"),
    ],
)  # fmt: skip
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
        (b'{"inputs": []} \x00\x01', "as Inference-Header-Content-Length"),
        (b"[" * 100_000, "cannot be used"),
        (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": ' + b"[" * 100_000, "nests too deeply"),
        (b"{}", "inputs"),
        (b'{"inputs": [{"name": 3}]}', "inputs"),
        (b'{"inputs": [], "parameters": {"binary_data_output": "yes"}}', "true or false, got 'yes'"),
        (b'{"inputs": [], "outputs": [{"name": "y"}, {"name": "y"}]}', "asked for twice"),
        (b'{"inputs": [], "outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]}', "shared memory"),
        (body(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 8}), "shared memory"),
    ],
)
def test_bad_requests_are_a_400(request_body, message):
    error = refused(request_body)
    assert error.status == 400
    assert message in error.message


def test_classification_of_no_class_is_refused():
    request = {"inputs": [], "outputs": [{"name": "y", "parameters": {"classification": 0}}]}
    assert refused(json.dumps(request).encode()).code == "bad_parameter"


def test_an_input_given_twice_is_refused():
    tensor = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
    assert "given twice" in refused(json.dumps({"inputs": [tensor, tensor]}).encode()).message


def test_too_large_for_float32_becomes_infinite():
    assert np.isinf(protocol.decode(body(data=[1e300, 2])).inputs["x"][0])


def test_a_binary_tensor_is_a_view_on_the_body_where_its_bytes_lie_aligned():
    pixels = np.arange(12, dtype=np.uint8)
    sent, length = protocol.pack({"pixels": pixels, "numbers": np.float32([[1, 2]])})
    found = protocol.decode(memoryview(sent), length).inputs
    np.testing.assert_array_equal(found["pixels"], pixels)
    assert np.shares_memory(found["pixels"], np.frombuffer(sent, np.uint8))
    for shift in range(4):  # wherever the header ends
        header = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32",
                                         "parameters": {"binary_data_size": 8}}]}).encode() + b" " * shift  # fmt: skip
        x = protocol.decode(header + np.float32([1, 2]).tobytes(), len(header)).inputs["x"]
        assert x.flags.aligned
        np.testing.assert_array_equal(x, [[1, 2]])


def test_json_and_binary_inputs_go_together():
    described = [
        {"name": "a", "shape": [1], "datatype": "INT8", "parameters": {"binary_data_size": 1}},
        {"name": "b", "shape": [2], "datatype": "FP32", "data": [1, 2]},
        {"name": "c", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": 11}},
    ]
    header = json.dumps({"inputs": described}).encode()
    found = protocol.decode(header + b"\xff" + elements(b"\xc3\xa9", b"\0"), len(header)).inputs
    assert {name: array.tolist() for name, array in found.items()} == {"a": [-1], "b": [1, 2], "c": ["é", "\0"]}


@pytest.mark.parametrize(
    ("request_body", "code", "message"),
    [
        (binary(bytes(7)), "bad_shape", "2 FP32 values needs 8 bytes, binary_data_size is 7"),
        (binary(bytes(8), parameters={"binary_data_size": 9}), "bad_data", "size 9, but 8 bytes"),
        (binary(bytes(8), parameters={"binary_data_size": -1}), "bad_data", "size -1"),
        (binary(bytes(8), parameters={"binary_data_size": 4}, shape=[1]), "bad_data", "4 bytes are left"),
        (binary(b"\0\2", datatype="BOOL"), "bad_data", "bytes of 0 or 1"),
        (binary(bytes(8), parameters={"binary_data_size": 8.5}), "bad_request", "Expected `int"),
        (binary(elements(b"a"), datatype="BYTES"), "bad_shape", "at least 8 bytes"),
        (binary(elements(b"a", b"b", b"c"), datatype="BYTES"), "bad_shape", "2 whole elements in 15 bytes"),
        (binary(elements(b"a") + b"\xff\0\0\0b", datatype="BYTES"), "bad_data", "element 1 says it has 255 bytes, 1 are"),
        (binary(elements(b"aaaaaaaa") + b"\1", datatype="BYTES"), "bad_data", "element 1 says"),
        (binary(elements(b"a", b"\xff"), datatype="BYTES"), "bad_data", "element 1 is not UTF-8"),
        (binary(b"", shape=[2**31 - 1] * 4), "bad_shape", "binary_data_size is 0"),
        ((body(), 0), "bad_header", "is 0, the body has"),
        ((body(), 10**9), "bad_header", "is 1000000000, the body has"),
        ((body() + b"!", len(body())), "bad_data", "1 bytes are left after the last"),
        ((body(data=None, parameters={"binary_data_size": 8}),), "bad_data", "both data and"),
    ],
)  # fmt: skip
def test_bad_binary_data_is_refused(request_body, code, message):
    error = refused(*request_body)
    assert (error.code, error.status // 100) == (code, 4)
    assert message in error.message


def test_a_binary_tensor_without_bytes_behind_the_json_is_refused():
    described = {"name": "x", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    error = refused(json.dumps({"inputs": [described]}).encode())
    assert "but 0 bytes of binary data are left" in error.message


def test_answers_are_flat_and_nan_is_null():
    told, rest = answer(Request({}, id="seven"), {"scores": np.array([[0.5, np.nan, np.inf]], np.float32)})
    assert rest == b""
    assert told == {
        "model_name": "m",
        "model_version": "3",
        "id": "seven",
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [1, 3], "data": [0.5, None, None]}],
    }


def test_an_answer_has_only_what_was_asked_for_each_in_its_form():
    ports = (SCORES, NOTE, Port("half", "BF16", (-1, 1), ("batch", "one")))
    outputs = {"scores": np.float32([[1, 2, 3]]), "note_bytes": np.array(["é"], object), "half": np.float32([[1.5]])}
    told, rest = answer(Request({}, [Wanted("note_bytes", True), Wanted("half", True)]), outputs, ports)
    assert [(out["name"], out["datatype"], out["parameters"]) for out in told["outputs"]] == [
        ("note_bytes", "BYTES", {"binary_data_size": 6}),
        ("half", "BF16", {"binary_data_size": 2}),
    ]
    assert rest == b"\2\0\0\0\xc3\xa9" + b"\xc0\x3f"
    told, rest = answer(Request({}, binary=True), outputs, ports)
    assert [out["name"] for out in told["outputs"]] == ["scores", "note_bytes", "half"]
    assert len(rest) == 12 + 6 + 2


def test_classification_gives_value_index_and_label_highest_first():
    scores = np.float32([[0.25, 0.5, 0.25], [np.nan, 0, 1]])
    for count, data in ((2, ["0.5:1:b", "0.25:0:a", "1.0:2:c", "0.0:1:b"]), (9, None)):
        told, _ = answer(Request({}, [Wanted("scores", False, count)]), {"scores": scores})
        (output,) = told["outputs"]
        assert (output["datatype"], output["shape"]) == ("BYTES", [2, min(count, 3)])
        assert data is None or output["data"] == data
    told, rest = answer(Request({}, [Wanted("scores", True, 1)]), {"scores": scores})
    assert rest == elements(b"0.5:1:b", b"1.0:2:c")


def test_classification_has_labels_only_where_there_is_one_for_each_value():
    port = Port("y", "INT64", (-1, 2, 2), ("batch", "a", "b"))
    values = np.array([[[2**62, 2**62 + 1], [0, -5]]])
    told, _ = answer(Request({}, [Wanted("y", False, 2)]), {"y": values}, (port,))
    assert told["outputs"][0]["data"] == [f"{2**62 + 1}:1", f"{2**62}:0"]
    with pytest.raises(RequestError, match="text, which has no classification"):
        answer(Request({}, [Wanted("note_bytes", False, 1)]), {"note_bytes": np.array(["a"], object)}, (NOTE,))


def test_an_unknown_output_is_refused():
    with pytest.raises(RequestError, match="no output 'z'; it has scores"):
        answer(Request({}, [Wanted("z")]), {"scores": np.float32([[1, 2, 3]])})


def test_a_packed_request_is_read_back_bit_for_bit():
    inputs = {
        "numbers": np.float32([[np.nan, 1e-40], [np.inf, -0.0]]),
        "words": np.array([["a"], ["日本"]]),
        "flags": np.array([True, False]),
        "wide": np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::2],
    }
    sent, length = protocol.pack(inputs, ["scores"])
    request = protocol.decode(sent, length)
    assert request.outputs == [Wanted("scores", True)]
    assert request.inputs["numbers"].tobytes() == inputs["numbers"].tobytes()
    for name in ("words", "flags", "wide"):
        np.testing.assert_array_equal(request.inputs[name], inputs[name])
    assert protocol.decode(*protocol.pack(inputs)).outputs is None


ONE, TWO = manifest(NUMBERS), manifest(NUMBERS, WORDS)


@pytest.mark.parametrize(
    ("declared", "sent", "expected"),
    [
        (ONE, {"instances": [[1, 2], [3, None]]}, {"numbers": [[1, 2], [3, None]]}),
        (ONE, {"instances": [{"numbers": [1, 2]}]}, {"numbers": [[1, 2]]}),
        (ONE, {"inputs": [[1, 2]], "signature_name": "serving_default"}, {"numbers": [[1, 2]]}),
        (ONE, {"inputs": {"numbers": [[1, 2]]}, "signature_name": ""}, {"numbers": [[1, 2]]}),
        (TWO, {"instances": [{"numbers": [1, 2], "words": ["a"]}] * 2}, {"numbers": [[1, 2]] * 2, "words": [["a"]] * 2}),
        (TWO, {"inputs": {"numbers": [[1, 2]], "words": [["a"]]}}, {"numbers": [[1, 2]], "words": [["a"]]}),
        (manifest(WORDS), {"instances": [["a"], [{"b64": "w6k="}]]}, {"words": [["a"], ["é"]]}),
        (manifest(NOTE), {"instances": [{"b64": "w6k="}]}, {"note_bytes": ["é"]}),
        (manifest(NOTE), {"instances": [{"note_bytes": {"b64": "w6k="}}]}, {"note_bytes": ["é"]}),
    ],
)  # fmt: skip
def test_v1_rows_and_columns(declared, sent, expected):
    request = protocol.decode_v1(json.dumps(sent).encode(), declared)
    assert request.columns == ("inputs" in sent)
    assert request.inputs.keys() == expected.keys()
    for name, values in expected.items():
        array = request.inputs[name]
        assert array.dtype == (object if name != "numbers" else np.float32)
        np.testing.assert_array_equal(array, np.array(values, array.dtype))


@pytest.mark.parametrize(
    ("declared", "sent", "code", "message"),
    [
        (ONE, {}, "bad_request", "either 'instances'"),
        (ONE, {"instances": [[1, 2]], "inputs": [[1, 2]]}, "bad_request", "either 'instances'"),
        (ONE, {"instances": [[1, 2]], "signature_name": "train"}, "unknown_signature", "'train'; the only one"),
        (ONE, {"instances": 3}, "bad_request", "list of one row or more, got 3"),
        (ONE, {"instances": []}, "bad_request", "list of one row or more, got []"),
        (ONE, {"instances": [[1, 2], [3]]}, "bad_shape", "ragged"),
        (ONE, {"instances": [["a", "b"]]}, "bad_data", "FP32 values, got 'a'"),
        (ONE, {"instances": [{"number": [1, 2]}]}, "unknown_input", "no input 'number'; it has numbers"),
        (ONE, {"instances": [{"b64": "AAAA"}]}, "bad_data", "only BYTES inputs"),
        (TWO, {"instances": [[1, 2]]}, "bad_request", "instance 0 must be an object with 'numbers', 'words'"),
        (TWO, {"instances": [{"numbers": [1, 2], "words": ["a"]}, {"numbers": [1, 2]}]}, "bad_request", "instance 1 must"),
        (TWO, {"inputs": [[1, 2]]}, "bad_request", "so 'inputs' is an object"),
        (manifest(WORDS), {"instances": [[{"b64": "?"}]]}, "bad_data", "not base64"),
        (manifest(WORDS), {"instances": [[{"b64": "/w=="}]]}, "bad_data", "not base64 of UTF-8"),
        (manifest(WORDS), {"instances": [[{"c64": ""}]]}, "bad_data", "holds an object"),
        (manifest(WORDS), {"instances": nested(200, "a")}, "bad_shape", "lists deep"),
    ],
)  # fmt: skip
def test_bad_v1_requests_are_refused(declared, sent, code, message):
    with pytest.raises(RequestError) as caught:
        protocol.decode_v1(json.dumps(sent).encode(), declared)
    assert (caught.value.code, caught.value.status // 100) == (code, 4)
    assert message in caught.value.message


@pytest.mark.parametrize("row", [[1, 2], [1], [[1], [2]], 1, ["a", "b"], [1, None], []])
@pytest.mark.parametrize("rows", [1, 3])
def test_long_v1_rows_are_read_as_short_ones_are(row, rows, monkeypatch):
    sent = json.dumps({"instances": [row] * rows}).encode()

    def read():
        try:
            array = protocol.decode_v1(sent, ONE).inputs["numbers"]
        except RequestError:
            return None
        return array if array.shape[1:] == (2,) else None  # the model refuses other shapes

    short = read()
    monkeypatch.setattr(tensors, "SMALL", 0)
    long = read()
    if row == [[1], [2]]:
        with pytest.raises(
            RequestError, match=rf"must be \(batch, 2\) in nested lists, got lists of {2 * rows} values"
        ):
            protocol.decode_v1(sent, ONE)
    assert (short is None) == (long is None)
    if short is not None:
        np.testing.assert_array_equal(short, long)


def test_v1_answers_have_the_form_of_the_request():
    outputs = {"scores": np.float32([[1, 2, np.nan], [4, 5, 6]]), "note_bytes": np.array(["é", ""], object)}
    encoded = base64.b64encode("é".encode()).decode()
    one, two = manifest(NUMBERS), manifest(NUMBERS, outputs=(SCORES, NOTE))
    rows, columns = Request({}), Request({}, columns=True)
    assert json.loads(protocol.encode_v1(one, outputs, rows)) == {"predictions": [[1, 2, None], [4, 5, 6]]}
    assert json.loads(protocol.encode_v1(one, outputs, columns)) == {"outputs": [[1, 2, None], [4, 5, 6]]}
    assert json.loads(protocol.encode_v1(two, outputs, rows)) == {
        "predictions": [
            {"scores": [1, 2, None], "note_bytes": {"b64": encoded}},
            {"scores": [4, 5, 6], "note_bytes": {"b64": ""}},
        ]
    }
    assert json.loads(protocol.encode_v1(two, outputs, columns)) == {
        "outputs": {"scores": [[1, 2, None], [4, 5, 6]], "note_bytes": [{"b64": encoded}, {"b64": ""}]}
    }


def test_metadata_in_each_protocol():
    declared = manifest(NUMBERS, WORDS)
    assert protocol.model_metadata(declared, ["1", "3"])["inputs"][1] == {
        "name": "words", "datatype": "BYTES", "shape": (-1, 1),
    }  # fmt: skip
    assert protocol.model_configuration(declared, 64)["input"] == [
        {"name": "numbers", "data_type": "TYPE_FP32", "dims": (2,)},
        {"name": "words", "data_type": "TYPE_STRING", "dims": (1,)},
    ]
    signature = protocol.model_metadata_v1(declared)["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["words"]["dtype"] == "DT_STRING"
    assert signature["outputs"]["scores"]["tensor_shape"]["dim"] == [
        {"size": "-1", "name": ""},
        {"size": "3", "name": ""},
    ]


@pytest.mark.parametrize("small", [0, tensors.SMALL])
def test_every_mutated_body_is_read_or_refused_by_a_4xx(small, monkeypatch):
    monkeypatch.setattr(tensors, "SMALL", small)
    choose = np.random.default_rng(7)
    text = [body(), body(datatype="BYTES", data=["a", "b"]), body(shape=[2, 1], data=[[1], [2]])]
    mixed = [binary(np.float32([1, 2]).tobytes()), binary(elements(b"a", b"bc"), datatype="BYTES")]
    v1 = [{"instances": [[1, 2]]}, {"inputs": {"numbers": [[1, 2]]}}, {"instances": [{"numbers": [1, 2]}]}]
    seeds = [(each, None) for each in text] + mixed + [(json.dumps(each).encode(), "v1") for each in v1]
    pieces = [
        b"[",
        b"]",
        b"null",
        b"-1",
        b"9" * 400,
        b'"',
        b"{}",
        b"1e999",
        b"\xff",
        b"\\ud800",
        b'"BF16"',
        b"[[[[",
        b"0",
        b"",
    ]
    read = 0
    for _ in range(20_000):
        sent, length = seeds[choose.integers(len(seeds))]
        start = int(choose.integers(len(sent)))
        stop = start + int(choose.integers(4))
        changed = sent[:start] + pieces[choose.integers(len(pieces))] + sent[stop:]
        try:
            if length == "v1":
                protocol.decode_v1(changed, ONE)
            else:
                protocol.decode(changed, length if length is None else length + len(changed) - len(sent))
            read += 1
        except RequestError as error:
            assert 400 <= error.status < 500
    assert 100 < read < 10_000
