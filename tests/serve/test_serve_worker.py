import json

import numpy as np
import pytest
from onnx import helper
from small_bundles import (
    NUMBERS,
    softmax,
    write_bundle,
    write_image,
    write_onnx,
    write_table,
    write_value,
)

from serve import protocol, wire
from serve.manifest import Port, read
from serve.runtime import Model
from serve.worker import answer


@pytest.fixture
def paints(tmp_path):
    return Model(read(write_table(tmp_path)), threads=1, max_batch=6)


@pytest.fixture
def counted(paints, monkeypatch):
    """The table model, and how many rows each of its runs had."""
    runs = []
    run = paints.run
    monkeypatch.setattr(
        paints, "run", lambda wanted, feed: (runs.append(len(feed["numbers"])), run(wanted, feed))[1], raising=True
    )
    return paints, runs


def row(age=30.0, weight=20.0, colour="blue", rows=1):
    return {
        "numbers": np.full((rows, 2), (age, weight), np.float32),
        "categories": np.full((rows, 1), colour, object),
    }


def asked(model, *bodies):
    """Answers to bodies that are (bytes, header length) or (bytes, header length, protocol)."""
    items = [(len(body), length, *(kind or ["v2"])) for body, length, *kind in bodies]
    return answer(model, items, [memoryview(body) for body, *_ in bodies])


def plain(inputs, **more):
    described = []
    for name, array in inputs.items():
        datatype = {"f": "FP32", "O": "BYTES", "u": "UINT8"}[array.dtype.kind]
        data = {"name": name, "datatype": datatype, "shape": array.shape, "data": array.ravel().tolist()}
        described.append(data)
    return json.dumps({"inputs": described, **more}).encode(), None


def test_requests_of_a_batch_are_one_run_and_get_their_own_rows(counted):
    model, runs = counted
    bodies = [protocol.pack(row(age)) if age % 20 else plain(row(age), id=f"number {age}") for age in (10, 20, 30, 40)]
    answers = asked(model, *bodies)
    assert runs == [4]
    for age, (result, body) in zip((10, 20, 30, 40), answers, strict=True):
        status, size, header_length, rows, classes, values, headers = result
        truth = softmax([[age / 10, 2, 5]])
        np.testing.assert_allclose(protocol.unpack(body, header_length)["probabilities"], truth, atol=1e-6)
        assert (status, size, rows, headers) == (200, len(body), 1, None)
        assert classes == [int(truth.argmax())]
        assert values == pytest.approx([truth.max()])
        assert (header_length is None) == (age % 20 == 0)
    assert json.loads(answers[1][1])["id"] == "number 20"


def test_no_run_has_more_rows_than_allowed(counted):
    model, runs = counted
    answers = asked(model, *(protocol.pack(row(rows=rows)) for rows in (4, 3, 2, 1, 1)))
    assert runs == [4, 6, 1]
    assert [result[3] for result, _ in answers] == [4, 3, 2, 1, 1]


def test_a_request_with_bad_values_fails_alone_and_the_others_stay_together(counted):
    model, runs = counted
    answers = asked(
        model,
        protocol.pack(row()),
        protocol.pack(row(age=np.inf)),
        (b"{", None),
        protocol.pack({"numbers": row()["numbers"]}),
        plain(row(), outputs=[{"name": "logits"}]),
        protocol.pack(row(rows=7)),
        protocol.pack(row(colour="red")),
    )
    assert runs == [2]
    codes = [json.loads(body)["code"] if result[0] != 200 else None for result, body in answers]
    assert codes == [None, "not_finite", "bad_json", "missing_input", "unknown_output", "bad_batch", None]
    assert [result[0] for result, _ in answers] == [200, 422, 400, 422, 422, 413, 200]
    for position, logits in ((0, [[3, 2, 5]]), (6, [[3, 2, 0]])):
        found = protocol.unpack(answers[position][1], answers[position][0][2])
        np.testing.assert_allclose(found["probabilities"], softmax(logits), atol=1e-6)


def test_a_request_that_fails_in_the_engine_fails_alone(tmp_path):
    """The model repeats a row as often as the row says, which the engine refuses for numbers below 0."""

    def graph(path):
        nodes = [
            helper.make_node("Cast", ["numbers"], ["whole"], to=7),
            helper.make_node("ReduceMin", ["whole"], ["least"], keepdims=0),
            helper.make_node("Reshape", ["least", "one"], ["count"]),
            helper.make_node("Expand", ["zero", "count"], ["zeros"]),
            helper.make_node("ReduceSum", ["zeros"], ["none"], keepdims=0),
            helper.make_node("Add", ["numbers", "none"], ["sum"]),
            helper.make_node("Slice", ["sum", "zero_index", "one", "one"], ["value"]),
        ]
        constants = {"one": np.array([1]), "zero": np.zeros(1, np.float32), "zero_index": np.array([0])}
        write_onnx(path, nodes, constants, (NUMBERS,), (Port("value", "FP32", (-1, 1), ("batch", "targets")),))

    golden = ({"numbers": np.array([[1, 2]], np.float32)}, {"value": np.array([[1]], np.float32)})
    facts = dict(task="regression", kind="table", inputs=(NUMBERS,), labels=("number",))
    outputs = (Port("value", "FP32", (-1, 1), ("batch", "targets")),)
    model = Model(read(write_bundle(tmp_path, "first", "1", graph, golden, outputs=outputs, **facts)), threads=1)
    bodies = [protocol.pack({"numbers": np.array([[value, 9]], np.float32)}) for value in (1, 2, -3, 4)]
    answers = asked(model, *bodies)
    assert [result[0] for result, _ in answers] == [200, 200, 500, 200]
    assert json.loads(answers[2][1])["code"] == "inference_failed"
    for position, value in ((0, 1), (1, 2), (3, 4)):
        result, body = answers[position]
        assert protocol.unpack(body, result[2])["value"] == value
        assert result[4] is None and result[5] == [value]  # no classes in a regression


def test_both_protocols_share_a_run(tmp_path, monkeypatch):
    model = Model(read(write_value(tmp_path)), threads=1)
    runs = []
    run = model.run
    monkeypatch.setattr(model, "run", lambda wanted, feed: (runs.append(len(feed["numbers"])), run(wanted, feed))[1])
    v1 = (json.dumps({"instances": [[1.0, 2.0], [3.0, 4.0]]}).encode(), None, "v1")
    (first, told), (second, body) = asked(model, v1, protocol.pack({"numbers": np.array([[5, 6]], np.float32)}))
    assert runs == [3]
    assert json.loads(told) == {"predictions": [[4.0], [10.0]]} and first[3] == 2
    assert protocol.unpack(body, second[2])["value"] == 16


def test_binary_tensors_reach_the_model_without_a_copy(tmp_path, monkeypatch):
    model = Model(read(write_image(tmp_path)), threads=1)
    bodies = [protocol.pack({"image": np.full((1, 4, 4, 1), value, np.uint8)}) for value in (1, 2, 3)]
    sent = b"".join(wire.run_frame(1, 1, False, [(body, length, "v2") for body, length in bodies]))
    inbox = wire.Inbox(wire.to_worker)
    inbox.room()[: len(sent)] = sent
    inbox.add(len(sent))
    message, received = inbox.take()
    places = wire.places(message.items)
    fed = []
    arranged = model.arranged
    monkeypatch.setattr(model, "arranged", lambda inputs: (fed.append(arranged(inputs)), fed[-1])[1])
    views = [received[place : place + item[0]] for place, item in zip(places, message.items, strict=True)]
    answers = answer(model, message.items, views)
    assert [result[0] for result, _ in answers] == [200, 200, 200]
    for feed, value in zip(fed, (1, 2, 3), strict=True):
        assert feed["image"].ctypes.data % wire.ALIGNMENT == 0
        assert np.shares_memory(feed["image"], np.asarray(received)) and (feed["image"] == value).all()


@pytest.mark.parametrize("step", [1, 7, 100, 10**9])
def test_frames_are_whole_however_their_bytes_arrive(step):
    large = bytes(range(256)) * (wire.BUFFER // 256 + 1)  # more than is received at a time
    told = [wire.Ran(1, 0.5, [(200, 3, None, 1, None, None, None)]), wire.Hello()]
    if step >= 100:
        told.append(wire.Ran(2, 0.5, [(200, len(large), None, 1, None, None, None)]))
    contents = [[b"abc"], [], [large]]
    stream = b"".join(b"".join(wire.frame(*each)) for each in zip(told, contents, strict=False))
    inbox, found = wire.Inbox(wire.to_front), []
    while stream:
        room = inbox.missing() or inbox.room()
        count = min(step, len(room), len(stream))
        room[:count], stream = stream[:count], stream[count:]
        inbox.add(count)
        while (taken := inbox.take()) is not None:
            found.append((taken[0], bytes(taken[1])))
            inbox.drop()
    assert found == [(message, b"".join(bodies)) for message, bodies in zip(told, contents, strict=False)]


def test_an_unforeseen_failure_is_an_answer_without_its_reason(paints, monkeypatch, caplog):
    value = "what the client" + " sent"

    def fail(*given):
        raise KeyError(value)

    monkeypatch.setattr(protocol, "encode", fail)
    ((result, body),) = asked(paints, protocol.pack(row()))
    assert result[0] == 500 and json.loads(body)["code"] == "internal"
    assert value not in body.decode() + caplog.text and "KeyError" in caplog.text
