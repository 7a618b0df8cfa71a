"""Versions that come, change and go while calls are answered."""

import asyncio
import os
import shutil
import signal

import numpy as np
import pytest
from small_fleets import error, expected, images, number, pids, probabilities, run, until, write_sides, write_slow

from serve.errors import RequestError
from serve.manifest import seal


def test_a_new_version_takes_over_under_load(folder):
    write_sides(folder)

    async def work(fleet, client):
        versions, stop = [], False

        async def one(seed):
            while not stop:
                answer = await client.ask("sides", {"image": images(seed)})
                gain = {"1": 4.0, "2": 2.0}[answer.version]
                np.testing.assert_allclose(probabilities(answer), expected(images(seed), gain), atol=1e-6)
                versions.append(answer.version)
                seed += 1

        clients = [asyncio.create_task(one(1000 * number)) for number in range(8)]
        await until(lambda: len(versions) > 50)
        draft = write_sides(folder.parent / "elsewhere", "2", gain=2.0)
        shutil.copytree(draft, folder / "sides" / "2")
        await until(lambda: versions.count("2") > 50)
        assert set(versions[versions.index("2") + len(clients) :]) == {"2"}  # but for those under way, all go to it
        shutil.rmtree(folder / "sides" / "1")
        await until(lambda: list(fleet.models["sides"]) == ["2"])
        await until(lambda: all(worker["models"] == ["sides/2"] for worker in fleet.state()["workers"]))
        stop = True
        await asyncio.gather(*clients)
        with pytest.raises(RequestError, match="has no version '1'; it has 2"):
            client.send("sides", {"image": images(0)}, "1")

    run(folder, work, workers=2, watch=0.05)


def test_a_bad_new_version_is_refused_and_the_old_one_stays(folder):
    write_sides(folder)

    async def work(fleet, client):
        bad = write_sides(folder, "2")
        with np.load(bad / "golden.npz") as stored:
            arrays = dict(stored)
        arrays["output/probabilities"] = arrays["output/probabilities"][:, ::-1]
        np.savez(bad / "golden.npz", **arrays)
        seal(bad)
        damaged = write_sides(folder, "3")
        (damaged / "model.onnx").write_bytes(b"changed")
        await asyncio.to_thread(fleet.rescan)
        assert "differ from golden.npz" in fleet.refused["sides", "2"]
        assert fleet.refused["sides", "3"].startswith("sides/3: 'model.onnx' does not match its hash")
        assert (await client.ask("sides", {"image": images(0)})).version == "1"
        states = {entry["version"]: entry["state"] for entry in fleet.index()}
        assert states == {"1": "READY", "2": "UNAVAILABLE", "3": "UNAVAILABLE"}
        shutil.rmtree(damaged)
        write_sides(folder, "3")
        await asyncio.to_thread(fleet.rescan)
        assert (await client.ask("sides", {"image": images(0)})).version == "3"
        assert ("sides", "3") not in fleet.refused
        shutil.rmtree(bad)
        await asyncio.to_thread(fleet.rescan)
        assert fleet.refused == {}

    run(folder, work)


def test_files_that_change_in_place_are_loaded_again_or_refused(folder):
    place = write_sides(folder)

    async def work(fleet, client):
        old = fleet.models["sides"]["1"]
        shutil.rmtree(place)
        write_sides(folder, gain=1.0)
        await asyncio.to_thread(fleet.rescan)
        assert fleet.models["sides"]["1"] is not old
        answer = await client.ask("sides", {"image": images(0)})
        np.testing.assert_allclose(probabilities(answer), expected(images(0), 1.0), atol=1e-6)
        assert [worker["models"] for worker in fleet.state()["workers"]] == [["sides/1"]]
        (place / "model.onnx").write_bytes(b"changed")
        await asyncio.to_thread(fleet.rescan)
        (entry,) = fleet.index()
        assert entry["state"] == "READY" and "does not match its hash" in entry["reason"]
        answer = await client.ask("sides", {"image": images(0)})
        np.testing.assert_allclose(probabilities(answer), expected(images(0), 1.0), atol=1e-6)
        os.kill(pids(fleet)[0], signal.SIGKILL)  # the next worker finds the damaged files only
        answer = await client.ask("sides", {"image": images(0)})
        assert error(answer) == (503, "refused")
        assert fleet.models == {}

    run(folder, work)


def test_a_folder_that_is_being_copied_is_left_alone(folder):
    write_sides(folder)

    async def work(fleet, client):
        draft = write_sides(folder.parent / "elsewhere", "2")
        place = folder / "sides" / "2"
        place.mkdir()
        for path in sorted(draft.iterdir()):
            await fleet._scan(settled=False)
            assert ("sides", "2") not in fleet.refused and "2" not in fleet.models["sides"]
            shutil.copy(path, place / path.name)
        await fleet._scan(settled=False)
        await fleet._scan(settled=False)
        assert list(fleet.models["sides"]) == ["1", "2"]

    run(folder, work)


def test_versions_are_unloaded_and_loaded_on_request(folder):
    write_sides(folder)
    write_sides(folder, "2")

    async def work(fleet, client):
        await asyncio.to_thread(fleet.unload, "sides", "2")
        await asyncio.to_thread(fleet.rescan)  # does not bring it back
        assert (await client.ask("sides", {"image": images(0)})).version == "1"
        assert fleet.state()["workers"][0]["models"] == ["sides/1"]
        with pytest.raises(RequestError, match="was unloaded; load it with POST /v2/repository/models/sides/load"):
            fleet.get("sides", "2")
        await asyncio.to_thread(fleet.load, "sides", "2")
        assert (await client.ask("sides", {"image": images(0)})).version == "2"
        with pytest.raises(RequestError, match="no folder 'sides/9'") as caught:
            await asyncio.to_thread(fleet.load, "sides", "9")
        assert caught.value.status == 404
        (folder / "sides" / "2" / "model.onnx").write_bytes(b"changed")
        with pytest.raises(RequestError, match="does not match its hash") as caught:
            await asyncio.to_thread(fleet.load, "sides", "2")
        assert caught.value.status == 422
        assert (await client.ask("sides", {"image": images(0)})).version == "2"
        with pytest.raises(TypeError, match="from another thread"):
            fleet.rescan()

    run(folder, work)


def test_a_version_whose_files_are_gone_bad_stays_with_the_workers_that_have_it(folder):
    place = write_slow(folder)

    async def work(fleet, client):
        (place / "model.onnx").write_bytes(b"changed")
        await asyncio.to_thread(fleet.rescan)
        os.kill(pids(fleet)[0], signal.SIGKILL)
        await until(
            lambda: [(w["restarts"], w["state"]) for w in fleet.state()["workers"]] == [(1, "ready"), (0, "ready")]
        )
        loads = []
        load = fleet._load
        fleet._load = lambda worker, served: (loads.append(served), load(worker, served))[1]
        answers = await asyncio.gather(*(client.ask("slow", number(1e4)) for _ in range(20)))
        assert {answer.status for answer in answers} == {200}
        assert loads == []  # what cannot be opened is not tried with every call

    run(folder, work, workers=2, batch_seconds=0)


def test_what_waits_for_a_version_is_answered_before_it_is_unloaded(folder):
    write_slow(folder)
    write_sides(folder)

    async def work(fleet, client):
        busy = client.send("slow", number(2e5))[1]
        await until(lambda: fleet.state()["workers"][0]["outstanding"])
        waiting = [client.send("sides", {"image": images(seed)})[1] for seed in range(3)]
        await asyncio.to_thread(fleet.unload, "sides")
        for seed, future in enumerate(waiting):
            np.testing.assert_allclose(probabilities(await future), expected(images(seed)), atol=1e-6)
        assert (await busy).status == 200
        (worker,) = fleet.state()["workers"]
        assert worker["models"] == ["slow/1"] and worker["restarts"] == 0

    run(folder, work)


def test_calls_that_named_no_version_go_to_another_one_when_theirs_is_lost(folder):
    write_sides(folder)
    place = write_sides(folder, "2", gain=2.0)

    async def work(fleet, client):
        os.kill(pids(fleet)[0], signal.SIGSTOP)
        (chosen, answered), (named, refused) = (client.send("sides", {"image": images(0)}) for _ in range(2))
        assert chosen.version == named.version == "2"
        chosen.chosen = True
        await until(lambda: fleet.state()["workers"][0]["outstanding"] == 2)
        shutil.rmtree(place)
        await asyncio.to_thread(fleet.rescan)
        os.kill(pids(fleet)[0], signal.SIGKILL)
        answer = await answered
        assert answer.version == "1"
        np.testing.assert_allclose(probabilities(answer), expected(images(0)), atol=1e-6)
        assert error(await refused) == (503, "refused")

    run(folder, work)
