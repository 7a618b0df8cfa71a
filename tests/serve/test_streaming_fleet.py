"""Texts that workers write, beside the batches: places, queues, deadlines, deaths and stops."""

import asyncio
import json
import os
import signal
import time

import numpy as np
import pytest
from fake_generation import FAKE, write_teller
from small_fleets import error, expected, images, pids, probabilities, run, until, write_sides

from serve import protocol
from serve.errors import RequestError
from serve.fleet import Call
from serve.monitor import Monitor


@pytest.fixture
def store(tmp_path):
    write_teller(tmp_path)
    write_sides(tmp_path)
    return tmp_path


class Heard:
    """A call and what was said of it: its parts, and the answer once it came."""

    def __init__(self, fleet, text, most=5, *, seconds=20.0, stream=True, version=None, name="teller"):
        self.said, self.answer = [], None
        body = json.dumps({"text_input": text, "parameters": {"max_tokens": most}}).encode()
        kind = "generate_stream" if stream else "generate"
        version = version or fleet.resolve(name)[0]
        self.call = Call(name, version, body, None, kind, time.monotonic() + seconds, self._done)
        if stream:
            self.call.said = self.said.append
        fleet.submit(self.call)

    def _done(self, answer):
        self.answer = answer

    @property
    def tokens(self):
        """What was written, token by token."""
        bodies = [*self.said, *([self.answer.body] if self.answer and self.answer.status == 200 else [])]
        told = [json.loads(line[6:]) for body in bodies for line in body.split(b"\n\n")[:-1]]
        return "".join(each["text_output"] for each in told).split()

    async def end(self):
        await until(lambda: self.answer is not None)
        return self.answer


def serving(store, work, **options):
    run(store, work, generator=FAKE, **options)


def test_a_stream_comes_token_by_token_and_a_whole_answer_at_its_end(store):
    async def work(fleet, client):
        stream, whole = Heard(fleet, "a", 4), Heard(fleet, "b", 3, stream=False)
        answer = await stream.end()
        assert len(stream.said) == 3 and [token[0] for token in stream.tokens] == ["1", "2", "3", "4"]
        assert b'"finish_reason":"length","tokens":4' in answer.body
        assert (answer.status, answer.rows, answer.tokens, answer.version) == (200, 1, 4, "1")
        assert 0 < answer.first <= answer.seconds + 1
        told = json.loads((await whole.end()).body)
        assert told["text_output"].split()[2].startswith("3") and told["tokens"] == 3

    serving(store, work)


def test_two_clients_share_each_step(store):
    async def work(fleet, client):
        both = [Heard(fleet, "slow", 20) for _ in range(2)]
        for each in both:
            await each.end()
            assert each.tokens[5:15] == [f"{number}/2" for number in range(6, 16)]

    serving(store, work)


def test_other_models_are_answered_between_two_tokens(store):
    async def work(fleet, client):
        text = Heard(fleet, "slow", 200)
        await until(lambda: text.said)
        for seed in range(5):
            np.testing.assert_allclose(
                probabilities(await client.ask("sides", {"image": images(seed)})), expected(images(seed)), atol=1e-6
            )
        again = await client.ask("teller", {"text": np.array([["good"]], object)})  # and the same one's own batches
        assert protocol.unpack(again.body, again.header_length)["probabilities"].argmax() == 2
        assert text.answer is None and len(text.said) < 100
        text.call.cancelled = True

    serving(store, work)


def test_texts_wait_for_a_place_in_the_order_they_came(store):
    async def work(fleet, client):
        texts = [Heard(fleet, "slow", 10) for _ in range(3)]
        await until(lambda: all(text.said for text in texts[:2]))
        assert not texts[2].said and fleet.state()["queues"]["teller"]["1"] | {"bytes": 0, "seconds": 0} == {
            "waiting": 1, "writing": 2, "bytes": 0, "seconds": 0, "workers": 1,
        }  # fmt: skip
        for text in texts:
            await text.end()
        assert texts[2].tokens[-1] == "10/1"
        assert "/3" not in "".join(texts[0].tokens)

    serving(store, work, texts=2)


def test_a_full_queue_is_refused_with_a_time_to_wait(store):
    async def work(fleet, client):
        first = Heard(fleet, "slow", 400)
        await until(lambda: first.said)
        Heard(fleet, "a")
        with pytest.raises(RequestError, match="1 requests wait for model 'teller' already") as caught:
            Heard(fleet, "b")
        assert caught.value.status == 503 and int(caught.value.headers["Retry-After"]) >= 1
        assert probabilities(await client.ask("sides", {"image": images(0)})).shape == (1, 3)
        first.call.cancelled = True

    serving(store, work, texts=1, queue=1)


def test_a_client_that_leaves_gives_its_place_to_the_next(store):
    async def work(fleet, client):
        first, second = Heard(fleet, "slow", 400), Heard(fleet, "a", 3)
        await until(lambda: first.said)
        assert not second.said
        first.call.cancelled = True
        assert second.tokens[-1:] in ([], ["3/1"]) and (await second.end()).status == 200
        assert second.tokens == ["1/1", "2/1", "3/1"]
        assert error(await first.end()) == (499, "cancelled")
        assert fleet.state()["queues"]["teller"]["1"]["writing"] == 0

    serving(store, work, texts=1)


def test_the_deadline_ends_a_text_whether_it_has_begun_or_waits(store):
    async def work(fleet, client):
        first, second = Heard(fleet, "slow", 400, seconds=0.5), Heard(fleet, "slow", 5, seconds=0.3)
        assert error(await second.end()) == (504, "deadline_exceeded") and not second.said
        assert error(await first.end()) == (504, "deadline_exceeded") and first.said
        assert first.answer.tokens >= len(first.said)
        assert (await Heard(fleet, "a").end()).status == 200

    serving(store, work, texts=1)


def test_what_a_worker_refuses_is_answered_alone(store):
    async def work(fleet, client):
        good = Heard(fleet, "slow", 20)
        for text, status, code in (("", 422, "bad_value"), ("refuse", 422, "bad_value"), ("a", 422, "bad_parameter")):
            answer = await Heard(fleet, text, 0 if text == "a" else 5).end()
            assert error(answer) == (status, code)
        assert (await good.end()).status == 200

    serving(store, work)


def test_models_that_continue_nothing_are_refused_at_once(store):
    async def work(fleet, client):
        with pytest.raises(RequestError, match="'sides' is made for image classification and continues no texts"):
            Heard(fleet, "a", name="sides")

    serving(store, work)


def test_a_text_that_was_not_begun_goes_to_another_worker(store, tmp_path):
    async def work(fleet, client):
        once = Heard(fleet, f"die once {tmp_path / 'died'}", 3)
        answer = await once.end()
        assert answer.status == 200 and [token[0] for token in once.tokens] == ["1", "2", "3"]
        assert once.call.attempts == 1

    serving(store, work)


def test_a_text_that_was_begun_ends_with_an_error(store):
    async def work(fleet, client):
        text = Heard(fleet, "slow", 300)
        await until(lambda: text.said)
        os.kill(pids(fleet)[0], signal.SIGKILL)
        assert error(await text.end()) == (500, "inference_crashed")
        assert json.loads(text.answer.body)["error"].startswith("the worker process that wrote this text died")
        assert (await Heard(fleet, "a").end()).status == 200

    serving(store, work)


def test_a_text_that_kills_its_workers_takes_no_others_along_a_second_time(store):
    async def work(fleet, client):
        others = [Heard(fleet, "slow", 10, stream=False) for _ in range(3)]
        deadly = Heard(fleet, "die", 3)
        assert error(await deadly.end()) == (500, "inference_crashed")
        for other in others:
            assert (await other.end()).status == 200 and other.call.attempts == 1
        with pytest.raises(RequestError, match="2 worker processes died over this request"):
            Heard(fleet, "die", 3)

    serving(store, work)


def test_a_worker_that_hangs_over_a_text_is_replaced(store):
    async def work(fleet, client):
        stuck = Heard(fleet, "hang", seconds=30)
        assert error(await stuck.end()) == (500, "inference_crashed")
        assert (await Heard(fleet, "a").end()).status == 200

    serving(store, work, hang=0.3)


def test_a_version_that_is_replaced_finishes_its_texts(store):
    async def work(fleet, client):
        text = Heard(fleet, "slow", 60)
        await until(lambda: text.said)
        write_teller(store, "2")
        await asyncio.to_thread(fleet.rescan)
        await asyncio.to_thread(fleet.unload, "teller", "1")
        assert text.answer is None
        newer = Heard(fleet, "a")
        assert (await newer.end()).version == "2"
        assert (await text.end()).status == 200 and text.answer.version == "1"
        assert text.tokens[-1] == "60/1"  # each version has steps of its own
        await until(lambda: fleet.state()["workers"][0]["models"] == ["sides/1", "teller/2"])

    serving(store, work)


def test_a_stop_waits_for_texts_and_then_tells_them(store):
    async def work(fleet, client):
        short, long = Heard(fleet, "slow", 20), Heard(fleet, "slow", 500)
        await until(lambda: short.said and long.said)
        await fleet.stop(0.8)
        assert short.answer.status == 200
        assert error(long.answer) == (503, "stopping")

    serving(store, work)


def test_shadows_copy_no_texts(store):
    write_teller(store, "2")

    async def work(fleet, client):
        seen = []
        fleet.observers.append(lambda call, answer: seen.append((call.version, call.shadow)))
        body = b'{"text_input": "a"}'
        done = asyncio.get_running_loop().create_future()
        call = Call("teller", "1", body, None, "generate", time.monotonic() + 9, done.set_result)
        fleet.submit(call, "2")
        await done
        await asyncio.sleep(0.1)
        assert seen == [("1", False)]

    serving(store, work)


def test_tokens_and_the_time_to_the_first_are_counted(store):
    async def work(fleet, client):
        monitor = Monitor()
        monitor.watch(store=fleet)
        fleet.observers.append(monitor.observe)
        fleet.batches.append(monitor.batch)
        await Heard(fleet, "a", 5).end()
        left = Heard(fleet, "slow", 400)
        await until(lambda: len(left.said) > 3)
        text = monitor.text().decode()
        assert 'zoo_texts_writing{model="teller",version="1"} 1.0' in text
        left.call.cancelled = True
        await left.end()
        text = monitor.text().decode()
        version = '{model="teller",version="1"}'
        assert f"zoo_first_token_seconds_count{version} 2.0" in text
        tokens = float(text.split(f"zoo_tokens_total{version} ")[1].split()[0])
        assert tokens == 5 + left.answer.tokens >= 9
        steps = float(text.split(f"zoo_batch_rows_count{version} ")[1].split()[0])
        assert 9 <= steps <= tokens  # each step had one row
        assert 'zoo_inferences_total{model="teller",role="answer",status="499",version="1"} 1.0' in text

    serving(store, work)


def test_another_thread_reads_a_stream_or_leaves_it(store):
    async def work(fleet, client):
        served = fleet.models["teller"]["1"]
        body = json.dumps({"text_input": "a", "parameters": {"max_tokens": 3}}).encode()

        def whole():
            return [part.body for part in served.follow("generate_stream", body)]

        assert len(await asyncio.to_thread(whole)) == 3

        def some():
            reading = served.follow("generate_stream", b'{"text_input": "slow", "max_tokens": 400}')
            next(reading)
            reading.close()

        await asyncio.to_thread(some)
        await until(lambda: fleet.state()["queues"]["teller"]["1"]["writing"] == 0)

        def refused():
            with pytest.raises(RequestError, match="'text_input' is empty"):
                next(served.follow("generate", b'{"text_input": " "}'))

        await asyncio.to_thread(refused)

        def broken():
            reading = served.follow("generate_stream", b'{"text_input": "slow die later", "max_tokens": 400}')
            return list(reading)[-1].body

        assert b'"code": "inference_crashed"' in await asyncio.to_thread(broken)

    serving(store, work)
