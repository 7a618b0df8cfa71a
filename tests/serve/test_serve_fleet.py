"""The front's half of inference: queues, batches, deadlines, workers that die or hang."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_bundles import VALUE, Port, softmax, write_bundle, write_onnx, write_table
from small_fleets import (
    COUNT,
    FOREVER,
    Client,
    alive,
    change,
    error,
    expected,
    images,
    number,
    pids,
    probabilities,
    run,
    until,
    write_sides,
    write_slow,
)

from serve import protocol, wire
from serve.errors import RequestError
from serve.fleet import Call, Fleet
from serve.traffic import Traffic


def test_answers_are_the_models(folder):
    write_sides(folder)

    async def work(fleet, client):
        rows = [images(seed, rows=1 + seed % 3) for seed in range(40)]
        seen = []
        fleet.observers.append(lambda call, answer: seen.append((call.model, answer.rows)))
        answers = await asyncio.gather(
            *(client.ask("sides", {"image": each}, json_body=i % 2) for i, each in enumerate(rows))
        )
        for each, answer in zip(rows, answers, strict=True):
            np.testing.assert_allclose(probabilities(answer), expected(each), atol=1e-6)
            assert answer.version == "1" and answer.rows == len(each)
            assert answer.classes == expected(each).argmax(axis=1).tolist()
            np.testing.assert_allclose(answer.values, expected(each).max(axis=1), atol=1e-6)
        assert sorted(seen) == sorted(("sides", len(each)) for each in rows)

    run(folder, work, workers=2)


def test_the_front_loads_no_engine():
    code = "import serve.fleet, sys; print([m for m in ('onnxruntime', 'flask', 'keras', 'PIL') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "[]"


def test_what_waits_becomes_one_batch_and_a_bad_request_fails_alone(folder):
    write_slow(folder)
    write_sides(folder)

    async def work(fleet, client):
        given = []
        give = fleet._give
        fleet._give = lambda worker, served, calls, now: (given.append(len(calls)), give(worker, served, calls, now))
        slow = client.send("slow", number(2e5))[1]
        await until(lambda: given == [1])
        good = [client.send("sides", {"image": images(seed)})[1] for seed in range(5)]
        wrong = client.send("sides", {"image": images(1).astype(np.float32)})[1]
        misnamed = client.send("sides", {"picture": images(1)}, json_body=True)[1]
        await asyncio.gather(slow, wrong, misnamed, *good)
        assert given == [1, 7]
        for seed, answer in enumerate(good):
            np.testing.assert_allclose(probabilities(answer.result()), expected(images(seed)), atol=1e-6)
        assert error(wrong.result()) == (422, "bad_datatype")
        assert error(misnamed.result()) == (422, "unknown_input")

    run(folder, work)


def test_other_models_and_versions_are_refused_by_name(folder):
    write_sides(folder)

    async def work(fleet, client):
        for name, version, status in (("sidess", "1", 404), ("sides", "2", 404)):
            with pytest.raises(RequestError, match=r"Did you mean 'sides'|has no version '2'") as caught:
                client.send(name, {"image": images(0)}, version)
            assert caught.value.status == status

    run(folder, work)


def test_workers_killed_under_load_lose_no_request(folder):
    write_sides(folder)

    async def work(fleet, client):
        wrong, count, stop = [], 0, False

        async def one(start):
            nonlocal count
            seed = start
            while not stop:
                answer = await client.ask("sides", {"image": images(seed)})
                if answer.status != 200 or not np.allclose(probabilities(answer), expected(images(seed)), atol=1e-6):
                    wrong.append(answer)
                count += 1
                seed += 1

        clients = [asyncio.create_task(one(1000 * number)) for number in range(16)]
        killed = set()
        for turn in range(4):
            await until(
                lambda: all(worker["state"] == "ready" and worker["models"] for worker in fleet.state()["workers"])
            )
            before = count
            victim = pids(fleet)[turn % 2]
            os.kill(victim, signal.SIGKILL)
            killed.add(victim)
            await until(lambda before=before: count > before + 50)
        stop = True
        await asyncio.gather(*clients)
        assert wrong == []
        await until(lambda: sum(worker["restarts"] for worker in fleet.state()["workers"]) == 4)
        await until(lambda: not killed & set(pids(fleet)))

    run(folder, work, workers=2)


def test_a_worker_that_hangs_is_killed_and_the_others_calls_are_answered(folder):
    write_slow(folder)
    write_sides(folder)

    async def work(fleet, client):
        (pid,) = pids(fleet)
        hanging = client.send("slow", number(FOREVER))[1]
        await until(lambda: fleet.state()["workers"][0]["outstanding"])
        behind = client.send("sides", {"image": images(7)})[1]
        np.testing.assert_allclose(probabilities(await behind), expected(images(7)), atol=1e-6)
        assert error(await hanging) == (500, "inference_crashed")
        assert pids(fleet) != [pid] and not alive(pid)

    run(folder, work, hang=0.3)


def test_a_request_that_kills_workers_is_given_up_and_takes_no_other_with_it(folder):
    write_slow(folder)

    async def work(fleet, client):
        await client.ask("slow", number(1))
        held = client.send("slow", number(3e5))[1]
        await until(lambda: fleet.state()["workers"][0]["outstanding"])
        poison, deadly = client.send("slow", number(FOREVER))
        good = [client.send("slow", number(value))[1] for value in range(5)]
        await held
        for _ in range(2):  # whatever has the poison dies
            await until(
                lambda: (
                    any(poison in batch.calls for worker in fleet._workers for batch in worker.batches)
                    and fleet._workers[0].state == "ready"
                )
            )
            os.kill(fleet._workers[0].process.pid, signal.SIGKILL)
            await until(lambda: not fleet._workers[0].batches or poison.finished)
        assert error(await deadly) == (500, "inference_crashed")
        for value, future in enumerate(good):
            answer = await future
            assert answer.status == 200
            assert protocol.unpack(answer.body, answer.header_length)["value"] == 2 * value
        with pytest.raises(RequestError, match="2 worker processes died over this request") as caught:
            client.send("slow", number(FOREVER))
        assert caught.value.code == "inference_crashed"

    run(folder, work)


def test_a_call_is_late_at_its_deadline_wherever_it_is(folder):
    write_slow(folder)

    async def work(fleet, client):
        computing = client.send("slow", number(FOREVER), seconds=0.3)[1]
        await until(lambda: fleet.state()["workers"][0]["outstanding"])
        start = time.monotonic()
        waiting = client.send("slow", number(1), seconds=0.2)[1]
        assert error(await waiting) == (504, "deadline_exceeded")
        assert time.monotonic() - start < 1
        assert error(await computing) == (504, "deadline_exceeded")
        assert fleet.state()["queues"]["slow"]["1"]["waiting"] == 0

    run(folder, work)


def test_a_cancelled_call_is_not_computed(folder):
    write_slow(folder)

    async def work(fleet, client):
        given = []
        give = fleet._give
        fleet._give = lambda worker, served, calls, now: (given.extend(calls), give(worker, served, calls, now))
        busy = client.send("slow", number(2e5))[1]
        await until(lambda: given)
        gone, future = client.send("slow", number(FOREVER))
        gone.cancelled = True
        after = client.send("slow", number(4))[1]
        assert (await busy).status == (await after).status == 200
        assert gone not in given
        assert error(await future) == (499, "cancelled")

    run(folder, work)


def test_a_full_queue_sheds_load(folder):
    write_slow(folder)

    async def work(fleet, client):
        busy = client.send("slow", number(3e5))[1]
        await until(lambda: fleet.state()["workers"][0]["outstanding"])
        kept = [client.send("slow", number(1))[1] for _ in range(3)]
        with pytest.raises(RequestError, match="3 requests wait for model 'slow' already") as caught:
            client.send("slow", number(1))
        assert (caught.value.status, caught.value.code) == (503, "overloaded")
        assert int(caught.value.headers["Retry-After"]) >= 1
        assert {(await future).status for future in (busy, *kept)} == {200}
        assert (await client.ask("slow", number(1))).status == 200

    run(folder, work, queue=3)


def test_a_queue_is_bounded_in_bytes_too(folder):
    write_slow(folder)

    async def work(fleet, client):
        busy = client.send("slow", number(3e5))[1]
        await until(lambda: fleet.state()["workers"][0]["outstanding"])
        size = len(protocol.pack(number(1))[0])
        kept = [client.send("slow", number(1))[1] for _ in range(1000 // size)]
        with pytest.raises(RequestError, match="requests wait for model 'slow' already"):
            client.send("slow", number(1))
        assert {(await future).status for future in (busy, *kept)} == {200}
        assert fleet.state()["queues"]["slow"]["1"]["bytes"] == 0

    run(folder, work, queue_bytes=1000)


def test_a_call_that_would_be_late_is_refused_at_once(folder):
    write_slow(folder)

    async def work(fleet, client):
        fleet.models["slow"]["1"].pace = 1.0  # as if a call took a second
        futures = [client.send("slow", number(1))[1] for _ in range(3)]
        with pytest.raises(RequestError, match="already") as caught:
            client.send("slow", number(1), seconds=2.5)
        assert caught.value.headers["Retry-After"] == "3"
        assert {(await future).status for future in futures} == {200}

    run(folder, work)


def test_models_share_a_memory_budget(folder):
    for name in ("first", "second", "third"):
        place = write_sides(folder, name=name, gain=len(name))
        (place / "weights.bin").write_bytes(bytes(30 * 2**20))  # more than the process grows by all of them
        change(place, weights="weights.bin")
    budget = 70 * 2**20  # two of them

    async def work(fleet, client):
        held = set()
        for turn in range(3):
            for name in ("first", "second", "third"):
                answer = await client.ask(name, {"image": images(turn)})
                np.testing.assert_allclose(probabilities(answer), expected(images(turn), len(name)), atol=1e-6)
                (models,) = (worker["models"] for worker in fleet.state()["workers"])
                assert f"{name}/1" in models and len(models) <= 2
                assert fleet.state()["memory"]["models"] <= budget
                held.add(tuple(models))
        assert len(held) == 3

    run(folder, work, memory=budget)

    async def refused(fleet, client):
        assert not fleet.models
        assert "larger than the" in fleet.refused["first", "1"]

    run(folder, refused, memory=budget // 4)


def test_a_model_that_fits_nowhere_at_the_start_is_opened_by_its_first_call(folder):
    for name in ("first", "second"):
        place = write_sides(folder, name=name)
        (place / "weights.bin").write_bytes(bytes(30 * 2**20))
        change(place, weights="weights.bin")

    async def work(fleet, client):
        (models,) = (worker["models"] for worker in fleet.state()["workers"])
        assert len(models) == 1
        assert sorted(fleet.models) == ["first", "second"]
        for name in ("first", "second"):
            np.testing.assert_allclose(
                probabilities(await client.ask(name, {"image": images(3)})), expected(images(3)), atol=1e-6
            )

    run(folder, work, memory=50 * 2**20)


def test_models_can_be_called_from_any_thread(folder):
    write_sides(folder)
    write_table(folder)

    async def work(fleet, client):
        def one(seed):
            found = fleet.get("sides").predict({"image": images(seed, 2)})
            np.testing.assert_allclose(found["probabilities"], expected(images(seed, 2)), atol=1e-6)

        await asyncio.gather(*(asyncio.to_thread(one, seed) for seed in range(20)))
        paints = fleet.get("paints")
        inputs = {"numbers": np.array([[np.nan, 20]], np.float32), "categories": np.array([["blue"]], object)}
        found = await asyncio.to_thread(paints.predict, inputs, ["probabilities"])
        np.testing.assert_allclose(found["probabilities"], softmax([[4, 2, 5]]), atol=1e-6)
        assert len(paints.examples["numbers"]) == 2 and paints.engine == "onnxruntime"
        for wrong, code in (
            ({}, "missing_input"),
            ({**inputs, "numbers": np.full((1, 2), np.inf, "f4")}, "not_finite"),
        ):
            with pytest.raises(RequestError) as caught:
                await asyncio.to_thread(paints.predict, wrong)
            assert (caught.value.status, caught.value.code) == (422, code)
        with pytest.raises(RequestError, match="not answered by its deadline") as caught:
            await asyncio.to_thread(lambda: paints.predict(inputs, deadline=time.monotonic() - 1))
        assert caught.value.status == 504

    run(folder, work, workers=2)


def test_the_same_request_is_answered_from_memory_until_the_model_changes(folder):
    place = write_sides(folder)

    async def work(fleet, client):
        first, again = [await client.ask("sides", {"image": images(0)}) for _ in range(2)]
        assert first.body == again.body and first.classes == again.classes
        assert fleet.state()["cache"]["hits"] == 1
        other = await client.ask("sides", {"image": images(1)})
        np.testing.assert_allclose(probabilities(other), expected(images(1)), atol=1e-6)
        bad = {"image": images(0).astype(np.float32)}
        assert [(await client.ask("sides", bad)).status for _ in range(2)] == [422, 422]
        assert fleet.state()["cache"]["hits"] == 1
        shutil.rmtree(place)
        write_sides(folder, gain=1.0)
        await asyncio.to_thread(fleet.rescan)
        assert fleet.state()["cache"]["bytes"] == 0
        changed = await client.ask("sides", {"image": images(0)})
        np.testing.assert_allclose(probabilities(changed), expected(images(0), 1.0), atol=1e-6)
        for seed in range(100):
            await client.ask("sides", {"image": images(seed)})
        assert 0 < fleet.state()["cache"]["bytes"] <= 20_000

    run(folder, work, cache=20_000)


class Rules:
    """Version 1 answers, version 2 computes beside it."""

    def __init__(self):
        self.told = []

    def choose(self, name, versions, key=None):
        return "1", "2"

    def disagreed(self, name, version, shadow, classes, shadow_classes, labels, values, shadow_values):
        self.told.append((name, version, shadow, classes, shadow_classes, labels, values, shadow_values))


def test_a_shadow_computes_beside_and_its_classes_are_compared(folder):
    write_sides(folder)
    write_sides(folder, "2", gain=-4.0)
    rules = Rules()

    async def work(fleet, client):
        seen = []
        fleet.observers.append(lambda call, answer: seen.append((call.shadow, answer.version)))
        version, shadow = fleet.resolve("sides")
        white = {"image": np.full((1, 4, 4, 1), 255, np.uint8)}
        answer = await client.ask("sides", white, version, shadow=shadow)
        np.testing.assert_allclose(probabilities(answer), expected(white["image"]), atol=1e-6)
        await until(lambda: rules.told)
        (told,) = rules.told
        assert told[:6] == ("sides", "1", "2", [1], [0], ("dark", "left", "right"))
        white_is_left, white_is_dark = told[6:]
        assert 0.4 < white_is_left[0] < 0.5 and white_is_dark[0] > 0.9
        assert seen == [(False, "1"), (True, "2")]

    run(folder, work, traffic=rules)


def test_a_shadow_of_a_regression_is_compared_by_its_values(folder):
    for version, bias in (("1", 0), ("2", 6)):
        write_bundle(
            folder, "dose", version,
            lambda path, bias=bias: write_onnx(
                path,
                [helper.make_node("Add", ["numbers", "bias"], ["value"])],
                {"bias": np.array([bias], np.float32)},
                (COUNT,),
                (VALUE,),
            ),
            (number(1), {"value": np.array([[1 + bias]], np.float32)}),
            task="regression", kind="table", inputs=(COUNT,), outputs=(VALUE,), labels=("milligram",),
        )  # fmt: skip
    traffic = Traffic(seed=0, every=0)

    async def work(fleet, client):
        rows = np.array([[80], [90], [40]], np.float32)
        await client.ask("dose", {"numbers": rows}, "1", shadow="2")
        await until(traffic.samples)
        figures = {name: value for name, _, labels, value in traffic.samples() if labels["version"] == "2"}
        assert figures["zoo_shadow_rows"] == 3 and figures["zoo_shadow_disagreements"] == 2  # one row has no spread yet
        assert figures["zoo_shadow_value_difference"] == pytest.approx(6 / np.std([80, 90, 40]))

    run(folder, work, traffic=traffic)


def test_a_canary_that_fails_in_its_workers_is_taken_back(folder):
    write_bundle(
        folder, "dose", "1",
        lambda path: write_onnx(path, [helper.make_node("Identity", ["numbers"], ["value"])], {}, (COUNT,), (VALUE,)),
        (number(1), {"value": np.array([[1]], np.float32)}),
        task="regression", kind="table", inputs=(COUNT,), outputs=(VALUE,), labels=("milligram",),
    )  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["numbers"], ["place"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "place"], ["value"]),  # fails on any number above 1
    ]
    write_bundle(
        folder, "dose", "2",
        lambda path: write_onnx(path, nodes, {"table": np.array([0, 1], np.float32)}, (COUNT,), (VALUE,)),
        (number(1), {"value": np.array([[1]], np.float32)}),
        task="regression", kind="table", inputs=(COUNT,), outputs=(VALUE,), labels=("milligram",),
    )  # fmt: skip
    traffic = Traffic(seed=0, every=0)

    async def work(fleet, client):
        fleet.observers.append(traffic.observe)
        traffic.see("dose", ["1", "2"])
        traffic.canary("dose", "2", 0.5)
        statuses = [(await client.ask("dose", number(5))).status for _ in range(100)]
        assert statuses.count(500) == 20 and statuses[-50:] == [200] * 50
        assert "20 of 20 requests failed" in traffic.describe("dose")["held"]["2"]
        assert traffic.rollbacks["dose", "2", "failures"] == 1

    run(folder, work, traffic=traffic)


def test_a_canary_that_is_slow_in_its_workers_is_taken_back(folder):
    write_slow(folder)
    write_slow(folder, "2", factor=1e5)
    traffic = Traffic(seed=0, every=0)

    async def work(fleet, client):
        fleet.observers.append(traffic.observe)
        traffic.see("slow", ["1", "2"])
        traffic.canary("slow", "2", 0.5)
        traffic.watch("slow", slow_requests=20, slower_seconds=0.01)
        versions = []
        while "held" not in traffic.describe("slow") or "2" not in traffic.describe("slow")["held"]:
            assert len(versions) < 200
            versions.append((await client.ask("slow", number(1))).version)
            traffic.tick()
        assert versions.count("1") >= 20 and versions.count("2") >= 20
        assert "requests took longer than" in traffic.describe("slow")["held"]["2"]
        assert traffic.rollbacks["slow", "2", "latency"] == 1
        assert {(await client.ask("slow", number(1))).version for _ in range(20)} == {"1"}

    run(folder, work, traffic=traffic)


@pytest.mark.parametrize(("available", "workers"), [(1, None), (2, None), (16, None), (2, 1), (16, 3)])
def test_workers_have_no_more_threads_than_there_are_cores(tmp_path, monkeypatch, available, workers):
    monkeypatch.setattr("serve.fleet.cores", lambda: available)
    fleet = Fleet(tmp_path, workers=workers)
    assert 1 <= fleet.count * fleet.threads <= available


def test_stopping_answers_what_is_under_way(folder):
    write_slow(folder)

    async def main():
        fleet = Fleet(folder, workers=1, threads=1, watch=0)
        await fleet.start()
        client = Client(fleet)
        futures = [client.send("slow", number(1e5))[1] for _ in range(3)]
        await fleet.stop(drain=10)
        assert [future.result().status for future in futures] == [200, 200, 200]
        assert not fleet.ready
        with pytest.raises(RequestError, match="the server is stopping"):
            client.send("slow", number(1))

    asyncio.run(main())

    async def late(fleet, client):
        computing = client.send("slow", number(FOREVER))[1]
        waiting = client.send("slow", number(FOREVER))[1]
        await fleet.stop(drain=0.1)
        assert error(computing.result()) == error(waiting.result()) == (503, "stopping")

    run(folder, late)


def test_workers_that_do_not_start_are_an_error(folder, monkeypatch):
    write_sides(folder)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(OSError, match="worker processes end at once, with code 1"):
        run(folder, None)


def test_a_worker_ends_with_its_parent_even_while_it_hangs(folder):
    write_slow(folder)
    code = f"""
import asyncio, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from serve.fleet import Fleet
from small_fleets import Client, FOREVER, number, pids, until

async def main():
    fleet = Fleet({str(folder)!r}, workers=2, threads=1)
    await fleet.start()
    Client(fleet).send("slow", number(FOREVER))
    await until(lambda: fleet.state()["workers"][0]["outstanding"])
    print(*pids(fleet), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2 and all(map(alive, workers))
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    end = time.monotonic() + 5
    while any(map(alive, workers)):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_calls_may_be_submitted_while_late_ones_are_told(folder):
    write_slow(folder)

    async def work(fleet, client):
        busy = client.send("slow", number(3e5))[1]
        await until(lambda: fleet.state()["workers"][0]["outstanding"])
        again = []

        def done(answer):
            again.append(answer.status)
            if len(again) < 20:
                send(0.01 if len(again) < 10 else 20)

        def send(seconds):
            body, length = protocol.pack(number(1))
            fleet.submit(Call("slow", "1", body, length, "v2", time.monotonic() + seconds, done))

        for _ in range(10):
            send(0.01)
        await busy
        await until(lambda: len(again) == 29)
        assert again.count(504) == 19 and again.count(200) == 10

    run(folder, work)


def test_tensors_of_any_size_come_back_whole(folder):
    given = Port("given", "FP32", (-1, -1), ("batch", "values"))
    back = Port("back", "FP32", (-1, -1), ("batch", "values"))

    def graph(path):
        edges = [[helper.make_tensor_value_info(p.name, TensorProto.FLOAT, ["batch", "values"])] for p in (given, back)]
        nodes = [helper.make_node("Neg", ["given"], ["back"])]
        opsets = [helper.make_opsetid("", 17)]
        graph = helper.make_graph(nodes, "graph", *edges)
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)

    write_bundle(
        folder, "negative", "1", graph, ({"given": np.ones((1, 2), "f4")}, {"back": -np.ones((1, 2), "f4")}),
        task="regression", kind="table", inputs=(given,), outputs=(back,), labels=("value",),
    )  # fmt: skip

    async def work(fleet, client):
        sizes = [1, 3_000_000, 7, 200_000, 200_000, 50_000, 0, 11] * 3
        sent = [np.random.default_rng(seed).random((1, size), np.float32) for seed, size in enumerate(sizes)]
        answers = await asyncio.gather(*(client.ask("negative", {"given": array}) for array in sent))
        for array, answer in zip(sent, answers, strict=True):
            assert answer.status == 200
            np.testing.assert_array_equal(protocol.unpack(answer.body, answer.header_length)["back"], -array)
        (worker,) = fleet._workers
        assert len(worker._inbox.room()) <= wire.BUFFER  # what a large answer took is given back

    run(folder, work)
