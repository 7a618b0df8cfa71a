import io
import json
import os
import signal
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_serve_host import serving
from waiting import until

from serve import jobs as module
from serve.app import create_app
from serve.codec import Batch
from serve.errors import RequestError
from serve.guard import Guard
from serve.jobs import Jobs
from serve.keys import KeyFile
from serve.store import Store

ROWS = [{"age": number, "weight": 20} for number in range(100)]


def counting(rows, size=0):
    """Rows whose input is their own number."""
    return Batch(rows, size, lambda first, stop: ({"number": np.arange(first, stop)}, []))


def doubled(inputs):
    return [{"twice": int(number) * 2} for number in inputs["number"]]


@pytest.fixture
def jobs():
    made = []

    def make(**options):
        made.append(Jobs(**options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def submit(jobs, rows=5, answer=doubled, kind="predict", size=0, **options):
    return jobs.submit(kind, counting(rows, size), answer, **{"model": "m", "version": "1", "most": 64, **options})


def ended(jobs, job):
    until(lambda: job.ended is not None)
    return jobs.describe(job)


def test_rows_are_answered_in_pieces_and_in_order(jobs):
    sizes = []

    def answer(inputs):
        sizes.append(len(inputs["number"]))
        return doubled(inputs)

    keeper = jobs()
    job = submit(keeper, 1000, answer, most=100)
    told = ended(keeper, job)
    assert (told["state"], told["done"], told["progress"]) == ("done", 1000, 1.0)
    assert [row["twice"] for row in keeper.results(job)] == list(range(0, 2000, 2))
    assert sizes[0] == module.FIRST_PIECE and len(sizes) > 1 and max(sizes) <= 100


def test_slow_pieces_become_smaller(jobs, monkeypatch):
    monkeypatch.setattr(module, "LONG", 0.0)
    monkeypatch.setattr(module, "SHORT", 0.0)
    sizes = []
    keeper = jobs()
    job = submit(keeper, 100, lambda inputs: sizes.append(len(inputs["number"])) or doubled(inputs))
    ended(keeper, job)
    assert sizes[:6] == [32, 16, 8, 4, 2, 1]


def test_jobs_take_turns(jobs):
    gate, order = threading.Event(), []

    def answer(name):
        def run(inputs):
            gate.wait(10)
            order.append(name)
            return doubled(inputs)

        return run

    keeper = jobs()
    both = [submit(keeper, 4, answer(name), most=1) for name in "ab"]
    gate.set()
    for job in both:
        ended(keeper, job)
    assert "".join(order) == "abababab"


def test_pieces_stand_back_while_requests_wait_but_not_for_ever(jobs, monkeypatch):
    monkeypatch.setattr(module, "POLITE", 0.05)
    busy, keeper = threading.Event(), jobs()
    asked = []
    keeper.busy = lambda: asked.append(1) or busy.is_set()
    busy.set()
    job = submit(keeper, 2, most=1)
    assert ended(keeper, job)["state"] == "done"
    assert len(asked) > 4  # looked again and again before each piece


def test_a_piece_is_asked_again_when_its_worker_dies(jobs):
    died = []

    def answer(inputs):
        if len(died) < 2:
            died.append(1)
            raise RequestError("inference_crashed", "the worker died", 500)
        return doubled(inputs)

    keeper = jobs()
    job = submit(keeper, 5, answer)
    assert ended(keeper, job)["state"] == "done"
    assert [row["twice"] for row in keeper.results(job)] == [0, 2, 4, 6, 8]


def test_rows_that_always_kill_their_worker_fail_the_job(jobs, monkeypatch):
    monkeypatch.setattr(module, "CRASHED", 3)

    def answer(inputs):
        if 2 in inputs["number"]:
            raise RequestError("inference_crashed", "the worker died", 500)
        return doubled(inputs)

    keeper = jobs()
    job = submit(keeper, 5, answer, most=1)
    told = ended(keeper, job)
    assert (told["state"], told["done"]) == ("failed", 2)
    assert told["error"] == {"code": "inference_crashed", "message": "after 2 of 5 rows: the worker died"}
    assert [row["twice"] for row in keeper.results(job)] == [0, 2]


def test_a_piece_whose_worker_died_is_halved(jobs):
    sizes = []

    def answer(inputs):
        sizes.append(len(inputs["number"]))
        if len(sizes) in (1, 2, 5):
            raise RequestError("inference_crashed", "the worker died", 500)
        return doubled(inputs)

    keeper = jobs()
    job = submit(keeper, 21, answer)
    assert ended(keeper, job)["state"] == "done"
    assert sizes == [21, 10, 5, 5, 11, 5, 6]
    assert [row["twice"] for row in keeper.results(job)] == list(range(0, 42, 2))


def test_a_busy_server_is_waited_for_within_limits(jobs, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    tries = []

    def answer(inputs):
        tries.append(1)
        raise RequestError("overloaded", "the queue is full", 503)

    keeper = jobs()
    told = ended(keeper, submit(keeper, 1, answer))
    assert told["error"]["code"] == "overloaded"
    assert len(tries) > 1


def test_a_fault_ends_the_job_and_nothing_else_and_is_told_without_inputs(jobs, caplog):
    words = {"answer": "secret"}

    def answer(inputs):
        raise KeyError(words["answer"])

    keeper = jobs()
    told = ended(keeper, submit(keeper, 1, answer))
    assert told["error"]["code"] == "internal" and "secret" not in str(told) + caplog.text
    assert ended(keeper, submit(keeper))["state"] == "done"


def test_a_bad_row_in_the_first_piece_is_told_at_once_a_later_one_fails_the_job(jobs):
    def read(bad):
        def rows(first, stop):
            if first <= bad < stop:
                raise RequestError("bad_value", f"row {bad + 1}: no")
            return {"number": np.arange(first, stop)}, []

        return rows

    keeper = jobs()
    options = dict(model="m", version="1", most=64)
    with pytest.raises(RequestError, match="row 4: no"):
        keeper.submit("predict", Batch(100, 0, read(3)), doubled, **options)
    told = ended(keeper, keeper.submit("predict", Batch(100, 0, read(90)), doubled, **options))
    assert told["error"] == {"code": "bad_value", "message": "after 32 of 100 rows: row 91: no"}


def test_number_and_size_of_jobs_are_bounded(jobs):
    gate = threading.Event()

    def answer(inputs):
        gate.wait(10)
        return doubled(inputs)

    keeper = jobs(most=3, each=2, rows=10, held=1000)
    with pytest.raises(RequestError, match="at most 10 rows, got 11") as caught:
        submit(keeper, 11)
    assert caught.value.status == 413
    first = submit(keeper, 1, answer, client="a")
    submit(keeper, 1, answer, client="a")
    with pytest.raises(RequestError, match="2 jobs of yours are not finished") as caught:
        submit(keeper, 1, client="a")
    assert caught.value.status == 429 and "Retry-After" in caught.value.headers
    with pytest.raises(RequestError, match="as many jobs as it can"):
        submit(keeper, 1, client="b", size=1001)
    submit(keeper, 1, answer, client="b")
    with pytest.raises(RequestError, match="as many jobs as it can") as caught:
        submit(keeper, 1, client="c")
    assert caught.value.status == 503 and "Retry-After" in caught.value.headers
    gate.set()
    ended(keeper, first)
    submit(keeper, 1, client="a")  # the oldest finished one makes room
    with pytest.raises(RequestError, match="no such job"):
        keeper.get(first.id)


def test_results_are_bounded(jobs):
    keeper = jobs(held=10_000)
    told = ended(keeper, submit(keeper, 1000, lambda inputs: [{"text": "x" * 100}] * len(inputs["number"])))
    assert (told["state"], told["error"]["code"]) == ("failed", "too_large")


def test_age_is_bounded(jobs):
    gate = threading.Event()
    keeper = jobs(age=0.2)
    slow = submit(keeper, 2, lambda inputs: gate.wait(10) and doubled(inputs), most=1)
    until(lambda: time.monotonic() - slow.started > 0.25)
    assert keeper.describe(keeper.get(slow.id))["error"]["code"] == "too_slow"
    gate.set()
    done = submit(keeper, 1)
    ended(keeper, done)
    until(lambda: time.monotonic() - done.ended > 0.25)
    with pytest.raises(RequestError, match="no such job"):
        keeper.get(done.id)


def test_a_deleted_job_stops(jobs):
    begun, gate, seen = threading.Event(), threading.Event(), []

    def answer(inputs):
        seen.extend(inputs["number"])
        begun.set()
        gate.wait(10)
        return doubled(inputs)

    keeper = jobs()
    job = submit(keeper, 10, answer, most=1)
    assert begun.wait(10)
    keeper.delete(job.id)
    gate.set()
    ended(keeper, submit(keeper, 1))
    assert seen == [0]
    assert keeper.state() == {"queued": 0, "running": 0, "done": 1, "failed": 0, "bytes": len(b'[{"twice":0}]')}


# ---- over HTTP


@pytest.fixture
def app(store):
    app = create_app(store, explain_target="fake_explainers:echo")
    yield app
    app.extensions["jobs"].close()
    app.extensions["explainer"].close()


@pytest.fixture
def client(app):
    return app.test_client()


def finished(client, location, **options):
    answers = []

    def over():
        answers.append(client.get(location, **options))
        return answers[-1].status_code != 200 or answers[-1].mimetype == "text/csv" or "error" in answers[-1].json or answers[-1].json["state"] == "done"  # fmt: skip

    until(over)
    return answers[-1]


def test_many_rows_are_taken_and_polled(client):
    taken = client.post("/jobs/dose", json=ROWS * 20)
    assert taken.status_code == 202
    assert taken.headers["Location"] == f"/jobs/{taken.json['id']}"
    assert (taken.json["rows"], taken.json["model"], taken.json["version"]) == (2000, "dose", "1")
    done = finished(client, taken.headers["Location"]).json
    assert (done["state"], done["done"], done["progress"]) == ("done", 2000, 1.0)
    assert [row["value"] for row in done["predictions"][:3]] == [20, 22, 24]
    assert len(done["predictions"]) == 2000
    assert 'zoo_rows_total{model="dose",version="1"} 2000.0' in client.get("/metrics").text


def test_a_csv_file_becomes_a_csv_file(client):
    lines = ["age,weight", *(f"{row['age']},{row['weight']}" for row in ROWS)]
    taken = client.post("/jobs/dose", data="\n".join(lines), content_type="text/csv")
    answer = finished(client, taken.headers["Location"], headers={"Accept": "text/csv"})
    assert answer.content_type == "text/csv; charset=utf-8; header=present"
    assert answer.text.split() == ["milligram", *(f"{2 * row['age'] + 20}.0" for row in ROWS)]


def test_image_files_become_labels(client):
    files = []
    for half in (slice(0, 2), slice(2, 4)):
        pixels, file = np.zeros((4, 4), np.uint8), io.BytesIO()
        pixels[:, half] = 255
        Image.fromarray(pixels).save(file, "PNG")
        files.append((io.BytesIO(file.getvalue()), "one.png"))
    taken = client.post("/jobs/sides?top=1&version=9", data={"image": files})
    done = finished(client, taken.headers["Location"]).json
    assert done["version"] == "9"
    assert [row["label"] for row in done["predictions"]] == ["left", "right"]
    assert [len(row["top"]) for row in done["predictions"]] == [1, 1]


def test_rows_are_explained_without_their_pictures(client):
    taken = client.post("/jobs/dose?kind=explain&method=exact", json=ROWS[:3])
    done = finished(client, taken.headers["Location"]).json
    assert [told["sum"] for told in done["explanations"]] == [20, 21, 22]
    assert {told["method"] for told in done["explanations"]} == {"exact"}
    assert not any("picture" in told for told in done["explanations"])


def test_a_job_is_deleted(client):
    location = client.post("/jobs/dose", json=ROWS).headers["Location"]
    assert client.delete(location).status_code == 204
    for answer in (client.get(location), client.delete(location)):
        assert (answer.status_code, answer.json["error"]["code"]) == (404, "unknown_job")


def test_a_job_keeps_the_version_it_began_with(app, client, store):
    begun, gate = threading.Event(), threading.Event()
    jobs = app.extensions["jobs"]
    jobs.busy = lambda: begun.set() or not gate.is_set()
    pixels = np.zeros((64, 4, 4, 1), int).tolist()
    location = client.post("/jobs/sides?version=9", json={"image": pixels}).headers["Location"]
    assert begun.wait(10)
    store.unload("sides", "9")
    gate.set()
    told = finished(client, location).json
    assert told["state"] == "failed"
    assert told["error"]["code"] in ("unknown_version", "unloaded")


@pytest.mark.parametrize(
    ("path", "options", "status", "code", "message"),
    [
        ("/jobs/dos", {"json": ROWS}, 404, "unknown_model", "Did you mean 'dose'"),
        ("/jobs/dose?kind=train", {"json": ROWS}, 422, "bad_parameter", "predict, explain, got 'train'"),
        ("/jobs/dose", {"json": [{"age": "x"}]}, 422, "bad_value", "column 'age'"),
        ("/jobs/dose", {"data": b"age\nx", "content_type": "text/csv"}, 422, "bad_value", "line 2, column 'age'"),
        ("/jobs/sides", {"json": {"image": []}}, 422, "bad_batch", "at least one row"),
        ("/jobs/dose?kind=explain", {"json": ROWS * 6}, 413, "too_many_rows", "at most 500 rows, got 600"),
        ("/jobs/sides?kind=explain&label=up", {"json": {}}, 422, "bad_parameter", "dark, left, right"),
    ],
)
def test_mistakes_are_told_at_once(client, path, options, status, code, message):
    answer = client.post(path, **options)
    assert (answer.status_code, answer.json["error"]["code"]) == (status, code)
    assert message in answer.json["error"]["message"]


def test_a_body_with_too_many_rows_is_sent_on_to_jobs(store_folder):
    client = create_app(store_folder, max_batch=2, threads=1).test_client()
    answer = client.post("/predict/dose", json=ROWS[:3])
    assert answer.status_code == 413 and "send more to /jobs/dose" in answer.json["error"]["message"]


def test_only_the_owner_of_a_job_sees_it(store_folder, tmp_path):
    keys = KeyFile(tmp_path / "keys.json")
    tokens = [keys.make(name, scopes)[1] for name, scopes in (("a", ("predict", "explain")), ("b", ("predict",)))]
    one, other = ({"Authorization": f"Bearer {token}"} for token in tokens)
    app = create_app(Store(store_folder, threads=1), guard=Guard(keys=tmp_path / "keys.json"))
    client = app.test_client()
    assert client.post("/jobs/dose", json=ROWS).status_code == 401
    location = client.post("/jobs/dose", json=ROWS, headers=one).headers["Location"]
    assert client.get(location).status_code == 401
    assert client.get(location, headers=other).status_code == 404
    assert client.delete(location, headers=other).status_code == 404
    assert client.post("/jobs/dose?kind=explain", json=ROWS[:1], headers=other).status_code == 403
    assert finished(client, location, headers=one).json["state"] == "done"
    assert [job["id"] for job in client.get("/jobs", headers=one).json] == [location.removeprefix("/jobs/")]
    assert client.get("/jobs", headers=other).json == []
    app.extensions["jobs"].close()


def test_without_keys_jobs_are_found_by_their_id_only(client):
    assert client.get("/jobs").status_code == 403


def workers(process):
    """Process ids of a server's workers."""
    children = [
        int(id) for file in Path(f"/proc/{process.pid}/task").glob("*/children") for id in file.read_text().split()
    ]
    return [id for id in children if b"serve.worker" in Path(f"/proc/{id}/cmdline").read_bytes()]


@pytest.mark.skipif(not list(Path("/proc/self/task").glob("*/children")), reason="needs Linux, to find the workers")
def test_a_job_survives_the_death_of_every_worker(store_folder):
    with serving(store_folder) as (process, port):
        address = f"http://127.0.0.1:{port}"
        rows = "age,weight\n" + "".join(f"{number},20\n" for number in range(40_000))
        sent = urllib.request.Request(f"{address}/jobs/dose", rows.encode(), {"Content-Type": "text/csv"})
        with urllib.request.urlopen(sent, timeout=30) as answer:
            location = answer.headers["Location"]

        def look():
            with urllib.request.urlopen(address + location, timeout=30) as answer:
                return json.load(answer)

        until(lambda: look()["done"] > 0)
        killed = workers(process)
        assert killed
        for id in killed:
            os.kill(id, signal.SIGKILL)
        until(lambda: look()["state"] in ("done", "failed"), 30)
        told = look()
        assert told["state"] == "done", told.get("error")
        assert [row["value"] for row in told["predictions"]] == [2 * number + 20 for number in range(40_000)]
        assert workers(process) and not set(workers(process)) & set(killed)
