"""A language model from its export to the events of a running server."""

import asyncio
import json
import time

import keras
import pytest
import small_writers

from export.bundle import to_bundle
from serve.app import create_app
from serve.fleet import Call, Fleet
from serve.generation import Ask, Running, generate
from serve.store import Store
from zoo import data
from zoo.data import corpus

TEXT = "the cat sat"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A small GPT with random weights, as `zoo export` writes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus.library, "__defaults__", (8_000,))
        splits = data.load("stdlib_text", tokenizer="bpe:257", tokens=small_writers.PLACES)
    keras.utils.set_random_seed(0)
    model = small_writers.language_model(splits.signature.preprocess)
    folder = tmp_path_factory.mktemp("whole") / "writer" / "1"
    with pytest.warns(UserWarning, match="train it before anybody relies on it"):
        return to_bundle(model, folder, data=splits, architecture="gpt_nano", int8=False, runner=False)


@pytest.fixture(scope="module")
def expected(bundle):
    return generate(Running(bundle.folder, bundle.manifest, "fp32", threads=1), TEXT, Ask(most=8))


def events(body):
    return [json.loads(line[6:]) for line in body.decode().split("\n\n")[:-1]]


def test_it_streams_what_it_writes(bundle, expected):
    client = create_app(Store(bundle.folder.parents[1], threads=1)).test_client()
    sent = {"text_input": TEXT, "parameters": {"max_tokens": 8}}
    told = events(client.post("/v2/models/writer/generate_stream", json=sent).data)
    assert "".join(each["text_output"] for each in told) == expected
    assert told[-1]["finish_reason"] == "length" and told[-1]["tokens"] == 8
    assert client.post("/v2/models/writer/generate", json=sent).json["text_output"] == expected
    (row,) = client.post("/predict/writer?max_tokens=8", json={"text": TEXT}).json["predictions"]
    assert row["text"] == expected
    long = client.post("/v2/models/writer/generate", json={"text_input": TEXT * 9, "max_tokens": 3}).json
    assert "tokens were read" in long["notes"][0]
    assert client.get("/openapi.json").status_code == 200
    (scored,) = client.post("/v1/models/writer:predict", json={"instances": [TEXT]}).json["predictions"]
    assert len(scored["log_probability"]) == small_writers.PLACES


def test_workers_write_several_at_once_as_they_would_alone(bundle, expected):
    async def main():
        fleet = Fleet(bundle.folder.parents[1], workers=1, threads=1, watch=0)
        await fleet.start()
        loop, answers = asyncio.get_running_loop(), []
        for _ in range(5):
            body = json.dumps({"text_input": TEXT, "parameters": {"max_tokens": 8}}).encode()
            answers.append(loop.create_future())
            fleet.submit(Call("writer", "1", body, None, "generate", time.monotonic() + 30, answers[-1].set_result))
        found = [json.loads((await each).body)["text_output"] for each in answers]
        await fleet.stop()
        return found

    assert asyncio.run(main()) == [expected] * 5
