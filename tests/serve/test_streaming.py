"""Requests for continued texts, what they are told, and how those of one model share its steps."""

import json
import threading

import numpy as np
import pytest
from fake_generation import FAKE, LENGTH, Running, write_teller

from serve import continuations, protocol
from serve.continuations import addressed, read
from serve.errors import RequestError, UnreadError
from serve.generation import Piece
from serve.manifest import Port
from serve.manifest import read as read_bundle
from serve.runtime import Model
from serve.writing import Shared, Writing


@pytest.fixture
def model(tmp_path):
    return Model(read_bundle(write_teller(tmp_path)), threads=1, generator=FAKE, max_batch=3, most_texts=2)


def asked(model, kind="generate", /, **body):
    return read(kind, json.dumps(body).encode(), None, model)


def events(told):
    """JSON of server-sent events, and what is not JSON as it is."""
    assert told.endswith(b"\n\n")
    lines = told[:-2].split(b"\n\n")
    assert all(line.startswith(b"data: ") and b"\n" not in line for line in lines)
    return [json.loads(line[6:]) if line[6:7] == b"{" else line[6:].decode() for line in lines]


def test_parameters_arrive_where_they_are_meant_to(model):
    given = dict(max_tokens=7, temperature=0.5, top_k=3, top_p=0.9, stop=["a", "b"], seed=5)
    ask = asked(model, text_input="once", parameters=given).ask
    assert (ask.most, ask.temperature, ask.top_k, ask.top_p, ask.stop, ask.seed) == (7, 0.5, 3, 0.9, ("a", "b"), 5)
    beside = asked(model, text_input="once", parameters={"stop": "a", "stream": True}, max_tokens=7, seed=None).ask
    assert (beside.most, beside.stop, beside.seed) == (7, ("a",), None)
    assert asked(model, text_input="once", parameters={"beams": 4}).ask.beams == 4


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({}, "missing_input", "'text_input' must be the text to continue, got None"),
        ({"text_input": 5}, "bad_value", "'text_input' must be the text to continue, got 5"),
        ({"text_input": " \n"}, "bad_value", "'text_input' is empty; write something"),
        ({"text_input": "x" * 100_001}, "too_large", "'text_input' has 100,001 characters, at most 100,000 are read"),
        ({"text_input": "\ud800"}, "bad_json", "the body is not JSON"),
        ({"text_input": "a", "parameters": []}, "bad_parameter", "'parameters' must be an object, got []"),
        ({"text_input": "a", "id": 5}, "bad_request", "'id' must be text, got 5"),
        (
            {"text_input": "a", "max_token": 5},
            "bad_parameter",
            "no parameter is called 'max_token'; there are max_tokens, temperature, top_k, top_p, beams, seed, stop. "
            "Did you mean 'max_tokens'",
        ),
    ],
)  # fmt: skip
def test_bodies_that_are_no_request(model, body, code, message):
    with pytest.raises(RequestError) as caught:
        asked(model, **body)
    assert caught.value.code == code and message in caught.value.message


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_tokens", 0, "'max_tokens' must be a whole number 1 … 100,000, got 0"),
        ("max_tokens", "many", "'max_tokens' must be a whole number 1 … 100,000, got 'many'"),
        ("max_tokens", 1.5, "must be a whole number"),
        ("max_tokens", True, "must be a whole number"),
        ("max_tokens", LENGTH + 1, "'max_tokens' is 501, and 'teller' has room for 500 at most; ask for fewer"),
        ("temperature", -0.1, "'temperature' must be a number 0 … 100, got -0.1"),
        ("temperature", [1], "'temperature' must be a number"),
        ("top_k", -1, "'top_k' must be a whole number 0 … 100,000, got -1"),
        ("top_p", 0, "'top_p' must be a number above 0, at most 1, got 0"),
        ("top_p", 1.1, "'top_p' must be a number above 0, at most 1, got 1.1"),
        ("beams", 9, "'beams' must be a whole number 1 … 8, got 9"),
        ("seed", -1, "'seed' must be a whole number 0 … 9,223,372,036,85"),
        ("stop", [""], "'stop' must be a text of 1 … 200 characters, or a list of at most 16, got ['']"),
        ("stop", 5, "'stop' must be a text"),
        ("stop", ["a"] * 17, "'stop' must be a text"),
    ],
)
def test_parameters_that_cannot_be_meant(model, name, value, message):
    with pytest.raises(RequestError) as caught:
        asked(model, text_input="a", parameters={name: value})
    assert caught.value.code == "bad_parameter" and message in caught.value.message


def test_beams_draw_nothing(model):
    with pytest.raises(RequestError, match="'beams' follow the likeliest texts, and 'temperature' draws one"):
        asked(model, text_input="a", parameters={"beams": 2, "temperature": 1})


def test_a_whole_answer_says_what_it_is_and_why_it_ended(model):
    request = asked(model, text_input="once", id="mine")
    assert request.say(0, Piece("one ", 1, "", "a note")) == b""
    assert json.loads(request.say(0, Piece("two", 2, "end"))) == {
        "model_name": "teller", "model_version": "1", "id": "mine", "text_output": "one two", "finish_reason": "end",
        "tokens": 2, "notes": ["a note"],
    }  # fmt: skip


def test_a_stream_says_each_piece_and_then_why_it_ended(model):
    request = asked(model, "generate_stream", text_input="once")
    told = [request.say(0, piece) for piece in (Piece("é\n", 1), Piece("", 2), Piece("!", 3, "length"))]
    names = {"model_name": "teller", "model_version": "1"}
    assert events(b"".join(told)) == [
        {**names, "text_output": "é\n"},
        {**names, "text_output": "!", "finish_reason": "length", "tokens": 3},
    ]
    assert told[1] == b"" and request.ended


def test_completions_are_as_openai_has_them(model):
    whole = asked(model, "completions", model="teller", prompt=["a", "b"], n=1, echo=False, user="me", logprobs=None)
    assert (whole.ask.most, whole.ask.temperature, whole.stream) == (16, 1.0, False)
    whole.say(1, Piece("two", 3, "end", read=4))
    told = json.loads(whole.say(0, Piece("one", 2, "length")))
    assert told["object"] == "text_completion" and told["model"] == "teller" and told["id"].startswith("cmpl-")
    assert told["choices"] == [
        {"text": "one", "index": 0, "logprobs": None, "finish_reason": "length"},
        {"text": "two", "index": 1, "logprobs": None, "finish_reason": "stop"},
    ]
    assert told["usage"] == {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9} and "notes" not in told
    likeliest = asked(model, "completions", model="teller", prompt="a", beams=2)
    told = json.loads(likeliest.say(0, Piece("one", 2, "length", "only the end of it was read")))
    assert told["notes"] == ["only the end of it was read"] and likeliest.ask.temperature == 0
    stream = asked(model, "completions", model="teller", prompt="a", stream=True, max_tokens=2)
    first, last = stream.say(0, Piece("one", 1, note="cut")), stream.say(0, Piece("", 2, "stop"))
    assert [choice["choices"][0]["finish_reason"] for choice in events(first)] == [None]
    *_, end, done = events(last)
    assert end["choices"][0]["finish_reason"] == "stop" and done == "[DONE]" and end["notes"] == ["cut"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": None}, "'prompt' must be a text or a list of texts, got None"),
        ({"prompt": [[1, 2]]}, "'prompt' must be a text or a list of texts"),
        ({"prompt": ["a", ""]}, "row 2 of 'prompt' is empty; write something"),
        ({"prompt": ["a"] * 4}, "a request must hold 1 … 3 prompts, got 4; split it"),
        ({"prompt": "a", "n": 2}, "'n' is not done here, got 2; leave it out"),
        ({"prompt": "a", "logprobs": 3}, "'logprobs' is not done here, got 3; leave it out"),
        ({"prompt": "a", "stream": "yes"}, "'stream' must be true or false, got 'yes'"),
        ({"prompt": "a", "max_tokens": 0}, "'max_tokens' must be a whole number"),
    ],
)
def test_completions_that_are_not_done(model, body, message):
    with pytest.raises(RequestError) as caught:
        asked(model, "completions", model="teller", **body)
    assert message in caught.value.message


def test_a_completion_names_its_model():
    assert addressed(b'{"prompt": [1], "model": "teller", "stream": true}') == ("teller", True)
    assert addressed(b'{"model": "teller"}') == ("teller", False)
    with pytest.raises(RequestError, match="the body cannot be used: Object missing required field `model`"):
        addressed(b'{"prompt": "a"}')


def test_a_text_longer_than_the_context_is_noted_by_its_row(model):
    rows = read("rows", continuations.pack(["a", "b"], {"max_tokens": 2}), None, model)
    rows.say(1, Piece("x", 1, "length", "only the end of it was read"))
    found, notes = continuations.unpack(rows.say(0, Piece("y", 1, "length")))
    assert found[1] == {"text": "x", "tokens": 1, "finish_reason": "length"}
    assert notes == ["row 2: only the end of it was read"]


def parts(writing):
    return {key: (part.body, part.tokens, part.rows) for key, part in writing.step()}


def test_texts_share_their_steps_and_places(model):
    writing = Writing(Running(None, None, "fp32"), most=2)
    for key, most in (("first", 2), ("second", 3), ("third", 1)):
        writing.add(key, asked(model, "generate_stream", text_input="a", max_tokens=most))
    spoken = [[(key, events(part.body)[0]["text_output"]) for key, part in writing.step()] for _ in range(3)]
    assert spoken[0] == [("first", "1/2 "), ("second", "1/2 ")]  # the third waits for a place
    assert spoken[1] == [("first", "2/2 "), ("second", "2/2 ")]
    assert spoken[2] == [("second", "3/2 "), ("third", "1/2 ")]
    assert writing.idle and writing.rows == 0


def test_each_beam_takes_a_place_and_more_than_there_are_run_alone(model):
    writing = Writing(Running(None, None, "fp32"), most=4)
    for key, beams in (("two", 2), ("other two", 2), ("one", 1), ("many", 8), ("last", 1)):
        writing.add(key, asked(model, text_input="a", max_tokens=1, beams=beams))
    assert [list(parts(writing)) for _ in range(4)] == [["two", "other two"], ["one"], ["many"], ["last"]]


def test_a_text_that_is_dropped_gives_its_place_to_the_next(model):
    writing = Writing(Running(None, None, "fp32"), most=1)
    for key in ("first", "second"):
        writing.add(key, asked(model, "generate_stream", text_input="a", max_tokens=9))
    assert set(parts(writing)) == {"first"}
    writing.drop("first")
    writing.drop("nobody")
    assert set(parts(writing)) == {"second"}
    writing.drop("second")
    assert writing.idle and parts(writing) == {}


def test_many_texts_of_one_request_hold_up_no_other(model):
    writing = Writing(Running(None, None, "fp32"), most=1)
    many = read("rows", continuations.pack(["a", "b", "c"], {"max_tokens": 1}), None, model)
    writing.add(1, many)
    writing.add(2, asked(model, text_input="d", max_tokens=1))
    assert [list(parts(writing)) for _ in range(4)] == [[1], [2], [1], [1]]
    assert writing.idle and many.written == ["1/1 "] * 3


def test_a_text_that_is_refused_fails_alone(model):
    writing = Writing(Running(None, None, "fp32"), most=9)
    for key, text in (("good", "a"), ("bad", "refuse")):
        writing.add(key, asked(model, text_input=text, max_tokens=1))
    found = dict(writing.step())
    assert found["bad"].error.message == "the text has nothing to go on from" and found["bad"].last
    assert json.loads(found["good"].body)["text_output"] == "1/1 "


def test_a_generator_that_fails_ends_what_it_wrote_and_takes_the_next(model, caplog):
    writing = Writing(Running(None, None, "fp32"), most=2)
    for key, text in (("one", "a"), ("two", "fail so"), ("three", "b")):
        writing.add(key, asked(model, text_input=text, max_tokens=1))
    found = dict(writing.step())
    assert {key: part.error.code for key, part in found.items()} == {
        "one": "inference_failed",
        "two": "inference_failed",
    }
    assert "ZeroDivisionError" in caplog.text and "fail so" not in caplog.text
    assert parts(writing)["three"][1:] == (1, 1) and writing.idle


def test_a_text_that_cannot_be_read_fails_alone_and_nothing_is_lost(model, caplog):
    generator = Running(None, None, "fp32")
    writing = Writing(generator, most=9)
    writing.add("good", asked(model, text_input="a", max_tokens=2))
    assert parts(writing)["good"][1] == 1
    writing.add("bad", asked(model, text_input="b", max_tokens=2))
    usual, generator.step = generator.step, lambda: (_ for _ in ()).throw(UnreadError([2], MemoryError("b")))
    found = dict(writing.step())
    assert found.keys() == {"bad"} and found["bad"].error.code == "inference_failed" and "UnreadError" in caplog.text
    generator.step = usual
    assert parts(writing)["good"][1:] == (2, 1) and writing.idle


def test_threads_that_wait_for_tokens_make_them_for_each_other(model):
    found = {}

    def follow(name):
        gate.wait(5)
        body = json.dumps({"text_input": "slow", "parameters": {"max_tokens": 20}}).encode()
        found[name] = b"".join(part.body for part in model.follow("generate_stream", body))

    gate = threading.Barrier(2)
    threads = [threading.Thread(target=follow, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for told in found.values():
        said = [each["text_output"] for each in events(told)]
        assert [token.split("/")[0] for token in said] == [str(number) for number in range(1, 21)]
        assert "/2" in "".join(said)


def test_who_stops_reading_leaves_its_place(model):
    shared = Shared(Writing(running := Running(None, None, "fp32")))
    reading = shared.follow(asked(model, "generate_stream", text_input="a"), "generate_stream")
    assert events(next(reading).body)[0]["text_output"] == "1/1 "
    assert not running.idle
    reading.close()
    assert running.idle


def test_a_stream_that_has_begun_ends_with_an_event_of_its_error(model):
    shared = Shared(Writing(Running(None, None, "fp32")))
    reading = shared.follow(asked(model, "generate_stream", text_input="a"), "generate_stream")
    next(reading)
    shared._writing._generator.step = lambda: 1 / 0
    (last,) = list(reading)
    assert [event["code"] for event in events(last.body)] == ["inference_failed"]
    with pytest.raises(RequestError, match="the model failed while it continued this text"):
        next(shared.follow(asked(model, text_input="a"), "generate"))


def test_the_deadline_ends_a_text(model):
    with pytest.raises(RequestError, match="not answered by its deadline"):
        next(model.follow("generate", b'{"text_input": "a"}', 0.0))


def test_a_model_that_continues_nothing_says_so(tmp_path):
    from small_bundles import write_text

    model = Model(read_bundle(write_text(tmp_path)), threads=1)
    with pytest.raises(RequestError, match="'mood' is made for classification and continues no texts; ask at /predict"):
        model.follow("generate", b'{"text_input": "a"}')


WRITTEN = Port("output", "BYTES", (-1,), ("batch",))
READ = Port("text", "BYTES", (-1,), ("batch",))


def write_translator(store):
    """The bundle of a model that answers its texts alone."""
    from fake_generation import BLOCK
    from small_bundles import text_graph, write_bundle

    golden = ({"text": np.array(["good end"])}, {"output": np.array(["1/1 2/1 "])})
    return write_bundle(
        store, "translator", "1", text_graph, golden,
        task="translation", kind="text", inputs=(READ,), outputs=(WRITTEN,), labels=(), generation={**BLOCK, "length": 12},
    )  # fmt: skip


def test_infer_routes_of_a_model_that_writes_answer_its_texts(tmp_path):
    model = Model(read_bundle(write_translator(tmp_path)), threads=1, generator=FAKE, most_texts=2)
    found = model.predict({"text": np.array(["end", "end", "end"], object)})
    assert found["output"].tolist() == ["1/2 2/2 ", "1/2 2/2 ", "1/1 2/1 "]
    packed, length = protocol.pack({"text": np.array(["end", "a"], object)})
    request = read("v2", packed, length, model)
    request.say(1, Piece("one", 1, "end"))
    body = request.say(0, Piece("two", 1, "end"))
    assert protocol.unpack(body, request.header_length)["output"].tolist() == ["two", "one"]
    v1 = read("v1", b'{"instances": ["end"]}', None, model)
    assert json.loads(v1.say(0, Piece("one", 1, "end"))) == {"predictions": ["one"]}
    sent = {
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}],
        "parameters": {"max_tokens": 3},
    }
    assert read("v2", json.dumps(sent).encode(), None, model).ask.most == 3
    with pytest.raises(RequestError, match="has no input 'txt'"):
        read("v2", json.dumps(sent).replace('"text"', '"txt"').encode(), None, model)


def test_a_writer_whose_golden_texts_come_out_otherwise_is_refused(tmp_path):
    from serve.manifest import BundleError, seal

    folder = write_translator(tmp_path)
    np.savez(folder / "golden.npz", **{"input/text": np.array(["end"]), "output/output": np.array(["other"])})
    seal(folder)
    with pytest.raises(BundleError, match=r"fp32 answers otherwise than golden.npz in 100% of the rows"):
        Model(read_bundle(folder), threads=1, generator=FAKE)
