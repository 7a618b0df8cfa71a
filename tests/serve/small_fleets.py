"""Small bundles in a fleet of few workers, and a client in its own loop."""

import asyncio
import json
import time
from functools import partial
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper
from small_bundles import IMAGE, PROBABILITIES, VALUE, Port, softmax, write_bundle, write_image, write_onnx

from serve import protocol
from serve.fleet import Call, Fleet
from serve.manifest import MANIFEST, seal

COUNT = Port("numbers", "FP32", (-1, 1), ("batch", "columns"), columns=("rounds",))


def slow_graph(path, factor=1.0):
    """Twice the input, after as many rounds of a loop as the largest input says, times `factor`."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["kept"], ["same"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("kept", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("same", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["numbers"], ["most"], keepdims=0),
        helper.make_node("Mul", ["most", "factor"], ["many"]),
        helper.make_node("Cast", ["many"], ["rounds"], to=TensorProto.INT64),
        helper.make_node("Loop", ["rounds", "", "numbers"], ["looped"], body=body),
        helper.make_node("Add", ["looped", "numbers"], ["value"]),
    ]
    write_onnx(path, nodes, {"factor": np.float32(factor)}, (COUNT,), (VALUE,))


def write_slow(store, version="1", factor=1.0):
    return write_bundle(
        store, "slow", version, partial(slow_graph, factor=factor),
        ({"numbers": np.array([[3]], np.float32)}, {"value": np.array([[6]], np.float32)}),
        task="regression", kind="table", inputs=(COUNT,), outputs=(VALUE,), labels=("nothing",),
    )  # fmt: skip


FOREVER = 1e12  # rounds of the slow model


def write_sides(store, version="1", name="sides", gain=4.0):
    """Softmax of gain x (0, brightness of the left half, of the right half)."""
    folder = write_image(store, version, name)
    weight = np.zeros((4, 4, 3), np.float32)
    weight[:, :2, 1] = weight[:, 2:, 2] = gain / 8 / 255
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    write_onnx(folder / "model.onnx", nodes, {"weight": weight.reshape(16, 3)}, (IMAGE,), (PROBABILITIES,))
    with np.load(folder / "golden.npz") as stored:
        arrays = dict(stored)
    arrays["output/probabilities"] = expected(arrays["input/image"], gain)
    np.savez(folder / "golden.npz", **arrays)
    seal(folder)
    return folder


def change(folder, **facts):
    """Other facts of the stored form in a bundle's manifest."""
    raw = json.loads((folder / MANIFEST).read_text())
    raw["precisions"]["fp32"].update(facts)
    (folder / MANIFEST).write_text(json.dumps(raw))
    seal(folder)


def expected(images, gain=4.0):
    left = images[:, :, :2].mean(axis=(1, 2, 3)) / 255
    right = images[:, :, 2:].mean(axis=(1, 2, 3)) / 255
    return softmax(np.stack([0 * left, gain * left, gain * right], axis=1).astype(np.float32))


def images(seed, rows=1):
    return np.random.default_rng(seed).integers(0, 256, (rows, 4, 4, 1), np.uint8)


def number(value):
    return {"numbers": np.array([[value]], np.float32)}


class Client:
    """Calls of a fleet from its own loop."""

    def __init__(self, fleet):
        self.fleet = fleet

    def send(self, model, inputs, version=None, *, seconds=20.0, shadow=None, json_body=False):
        """Submit a call; gives it and a future of the answer."""
        version = version or self.fleet.resolve(model)[0]
        body, length = as_json(inputs) if json_body else protocol.pack(inputs)
        future = asyncio.get_running_loop().create_future()
        call = Call(model, version, body, length, "v2", time.monotonic() + seconds, future.set_result)
        self.fleet.submit(call, shadow)
        return call, future

    async def ask(self, *given, **more):
        return await asyncio.wait_for(self.send(*given, **more)[1], 30)


def as_json(inputs):
    types = {np.dtype(np.uint8): "UINT8", np.dtype(np.float32): "FP32"}
    described = [
        {"name": k, "datatype": types[v.dtype], "shape": v.shape, "data": v.ravel().tolist()} for k, v in inputs.items()
    ]
    return json.dumps({"inputs": described}).encode(), None


def run(store, work, **options):
    """Run `work(fleet, client)` in a loop of its own, with a fleet that is stopped afterwards."""

    async def main():
        fleet = Fleet(store, **{"workers": 1, "threads": 1, "watch": 0, **options})
        await fleet.start()
        try:
            await asyncio.wait_for(work(fleet, Client(fleet)), 60)
        finally:
            await fleet.stop()
        for worker in fleet.state()["workers"]:
            assert not alive(worker["pid"])

    asyncio.run(main())


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def until(condition, seconds=25.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        await asyncio.sleep(0.005)


def pids(fleet):
    return [worker["pid"] for worker in fleet.state()["workers"]]


def error(answer):
    return answer.status, json.loads(answer.body)["code"]


def probabilities(answer):
    assert answer.status == 200, bytes(answer.body)
    return protocol.unpack(answer.body, answer.header_length)["probabilities"]
