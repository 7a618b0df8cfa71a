"""Clients of other projects, unchanged, against the real server process."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_bundles import LABELS, softmax, write_image, write_table, write_value

from serve.keys import KeyFile

ml_dtypes = pytest.importorskip("ml_dtypes", reason="it comes with tritonclient")
triton = pytest.importorskip("tritonclient.http", reason="pip install 'tritonclient[http]'")
InferenceServerClient, InferenceServerException = triton.InferenceServerClient, triton.InferenceServerException
InferInput, InferRequestedOutput = triton.InferInput, triton.InferRequestedOutput

KSERVE = "ZOO_KSERVE_PYTHON"  # an interpreter that has kserve, whose pins do not fit beside this project's
PIXELS = np.zeros((2, 4, 4, 1), np.uint8)
PIXELS[1, :, 2:] = 255
SCORES = softmax([[0, 0, 0], [0, 0, 4]])
NUMBERS = np.array([[30, 20], [np.nan, 80]], np.float32)
COLOURS = np.array([["blue"], [""]], object)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """host:port of a server process with two versions of an image model, a table model and a regression; and an admin's key."""
    folder = tmp_path_factory.mktemp("clients") / "store"
    write_image(folder, "1")
    write_image(folder, "2")
    write_table(folder)
    write_value(folder)
    keys = KeyFile(folder.parent / "keys.json")
    _, token = keys.make("operator", scopes=["predict", "admin"])
    state = str(folder.parent / "state")
    command = [sys.executable, "-m", "serve", str(folder), "--port", "0", "--threads", "1", "--state", state]
    command += ["--keys", str(keys.path), "--anonymous", "predict,metrics"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        for line in process.stdout:
            if found := re.search(r"http://(127\.0\.0\.1:\d+)", line):
                yield found[1], token
                break
        else:
            raise AssertionError("the server ended before it announced its address")
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def address(server):
    return server[0]


@pytest.fixture
def client(address):
    with InferenceServerClient(address, connection_timeout=10, network_timeout=10) as client:
        yield client


def pixels(binary=True):
    image = InferInput("image", PIXELS.shape, "UINT8")
    image.set_data_from_numpy(PIXELS, binary_data=binary)
    return [image]


def rows(binary):
    numbers = InferInput("numbers", NUMBERS.shape, "FP32")
    numbers.set_data_from_numpy(NUMBERS if binary else np.nan_to_num(NUMBERS, nan=40), binary_data=binary)
    colours = InferInput("categories", COLOURS.shape, "BYTES")
    colours.set_data_from_numpy(COLOURS, binary_data=binary)
    return [numbers, colours]


def test_triton_health_and_metadata(client):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("sides") and client.is_model_ready("sides", "1")
    assert not client.is_model_ready("side") and not client.is_model_ready("sides", "9")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("sides")["versions"] == ["1", "2"]
    assert client.get_model_metadata("paints", "1")["inputs"][1]["datatype"] == "BYTES"
    assert client.get_model_config("sides")["input"] == [
        {"name": "image", "data_type": "TYPE_UINT8", "dims": [4, 4, 1]}
    ]
    index = client.get_model_repository_index()
    assert [(each["name"], each["version"], each["state"]) for each in index] == [
        ("dose", "1", "READY"), ("paints", "1", "READY"), ("sides", "1", "READY"), ("sides", "2", "READY"),
    ]  # fmt: skip


@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
def test_triton_infer_in_binary_and_json(client, binary_in, binary_out):
    outputs = [InferRequestedOutput("probabilities", binary_data=binary_out)]
    answer = client.infer("sides", pixels(binary_in), outputs=outputs, request_id="seven")
    np.testing.assert_allclose(answer.as_numpy("probabilities"), SCORES, atol=1e-6)
    told = answer.get_response()
    assert (told["id"], told["model_name"], told["model_version"]) == ("seven", "sides", "2")
    assert ("data" in told["outputs"][0]) != binary_out
    answer = client.infer("paints", rows(binary_in), outputs=outputs)
    assert answer.as_numpy("probabilities").argmax(1).tolist() == [2, 1]


def test_triton_infer_without_outputs_asks_for_all_in_binary(client):
    answer = client.infer("sides", pixels(), model_version="1")
    assert answer.get_response()["model_version"] == "1"
    np.testing.assert_allclose(answer.as_numpy("probabilities"), SCORES, atol=1e-6)


@pytest.mark.parametrize("binary", [True, False])
def test_triton_classification(client, binary):
    wanted = [InferRequestedOutput("probabilities", binary_data=binary, class_count=2)]
    found = client.infer("sides", pixels(), outputs=wanted).as_numpy("probabilities")
    assert found.shape == (2, 2)
    value, index, label = (found[1, 0].decode() if binary else found[1, 0]).split(":")
    assert (int(index), label) == (2, LABELS[2])
    assert float(value) == pytest.approx(float(SCORES[1, 2]), abs=1e-6)


@pytest.mark.parametrize("packed", ["gzip", "deflate"])
def test_triton_compression_both_ways(client, packed):
    many = np.repeat(PIXELS, 500, axis=0)
    image = InferInput("image", many.shape, "UINT8")
    image.set_data_from_numpy(many)
    wanted = [InferRequestedOutput("probabilities", binary_data=False)]
    answer = client.infer(
        "sides", [image], outputs=wanted, request_compression_algorithm=packed, response_compression_algorithm=packed
    )
    np.testing.assert_allclose(answer.as_numpy("probabilities"), np.repeat(SCORES, 500, axis=0), atol=1e-6)


def test_triton_requests_side_by_side(address):
    with InferenceServerClient(address, concurrency=8) as client:
        waiting = [client.async_infer("sides", pixels(), request_id=str(number)) for number in range(64)]
        for number, each in enumerate(waiting):
            answer = each.get_result(timeout=20)
            assert answer.get_response()["id"] == str(number)
            np.testing.assert_allclose(answer.as_numpy("probabilities"), SCORES, atol=1e-6)


def test_triton_sees_errors_with_their_text(client):
    small = InferInput("image", [1, 2], "UINT8")
    small.set_data_from_numpy(np.zeros((1, 2), np.uint8))
    for call, status, text in (
        (lambda: client.infer("side", pixels()), "404", "Did you mean 'sides'"),
        (lambda: client.infer("sides", pixels(), model_version="9"), "404", "no version '9'"),
        (lambda: client.infer("sides", [small]), "422", "must be (batch, 4, 4, 1)"),
        (lambda: client.infer("sides", pixels(), outputs=[InferRequestedOutput("y")]), "422", "no output 'y'"),
        (lambda: client.get_model_metadata("side"), "404", "Did you mean 'sides'"),
        (lambda: client.load_model("sides"), "401", "needs a credential"),
        (lambda: client.unload_model("sides"), "401", "needs a credential"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert caught.value.status().split()[-1] == status
        assert text in caught.value.message()


def test_triton_loads_and_unloads_with_a_key(client, server):
    key = {"Authorization": f"Bearer {server[1]}"}
    client.unload_model("dose", headers=key)
    assert not client.is_model_ready("dose")
    assert "dose" not in {each["name"] for each in client.get_model_repository_index() if each["state"] == "READY"}
    with pytest.raises(InferenceServerException, match="dose"):
        client.get_model_metadata("dose")
    client.load_model("dose", headers=key)
    assert client.is_model_ready("dose")
    numbers = InferInput("numbers", [1, 2], "BF16")  # which widens to FP32 without loss
    numbers.set_data_from_numpy(np.array([[30, 20]], ml_dtypes.bfloat16))
    assert client.infer("dose", [numbers]).as_numpy("value").tolist() == [[80]]
    with pytest.raises(InferenceServerException, match="not taken"):
        client.load_model("dose", headers=key, config="{}")


def test_triton_asyncio(address):
    from tritonclient.http.aio import InferenceServerClient as AsyncClient

    async def ask():
        async with AsyncClient(address) as client:
            assert await client.is_server_ready()
            answers = await asyncio.gather(*(client.infer("sides", pixels()) for _ in range(8)))
            return [answer.as_numpy("probabilities") for answer in answers]

    for found in asyncio.run(ask()):
        np.testing.assert_allclose(found, SCORES, atol=1e-6)


KSERVE_CLIENT = """
import asyncio, sys
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

url = sys.argv[1]
pixels = np.zeros((2, 4, 4, 1), np.uint8)
pixels[1, :, 2:] = 255
logits = np.exp([[0, 0, 0], [0, 0, 4.0]])
expected = logits / logits.sum(1, keepdims=True)

async def main():
    async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=10)) as client:
        assert await client.is_server_live(url) and await client.is_server_ready(url)
        assert await client.is_model_ready(url, "sides") and not await client.is_model_ready(url, "side")
        for binary_in in (True, False):
            for binary_out in (True, False):
                image = InferInput("image", list(pixels.shape), "UINT8")
                image.set_data_from_numpy(pixels, binary_data=binary_in)
                request = InferRequest("sides", [image], request_id="seven", parameters={"binary_data_output": binary_out})
                answer = await client.infer(url, request, model_name="sides")
                assert answer.id == "seven" and answer.model_name == "sides", answer
                np.testing.assert_allclose(answer.outputs[0].as_numpy(), expected, atol=1e-6)
        text = InferInput("categories", [1, 1], "BYTES")
        text.set_data_from_numpy(np.array([["blue"]], object), binary_data=True)
        numbers = InferInput("numbers", [1, 2], "FP32")
        numbers.set_data_from_numpy(np.array([[30, 20]], np.float32), binary_data=True)
        answer = await client.infer(url, InferRequest("paints", [numbers, text]), model_name="paints")
        assert answer.outputs[0].as_numpy().argmax(1).tolist() == [2]
        try:
            await client.infer(url, InferRequest("side", [numbers]), model_name="side")
        except Exception as error:
            assert "Did you mean 'sides'" in str(error), error
        else:
            raise AssertionError("no error")
    async with InferenceRESTClient(RESTConfig(protocol="v1", timeout=10)) as client:
        assert await client.is_server_live(url)
        assert await client.is_model_ready(url, "sides")
        answer = await client.infer(url, {"instances": pixels.tolist()}, model_name="sides")
        np.testing.assert_allclose(answer["predictions"], expected, atol=1e-6)

asyncio.run(main())
print("done")
"""


@pytest.mark.skipif(
    KSERVE not in os.environ,
    reason=f"kserve 0.21 wants protobuf below 7, psutil below 6, pandas and python-dateutil below 3: name a Python that has it in {KSERVE}",
)
def test_kserve_v2_and_v1(address):
    python = shutil.which(os.environ[KSERVE])
    assert python, f"{KSERVE} names no interpreter"
    found = subprocess.run(
        [python, "-c", KSERVE_CLIENT, f"http://{address}"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path("/"),
    )
    assert found.stdout.strip() == "done", found.stderr
