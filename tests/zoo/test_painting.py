"""Pictures painted of texts: by a run, by a bundle's files as by the whole model, from a server, and by run.py."""

import asyncio
import base64
import io
import json
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from PIL import Image
from test_text_to_image import PLACES, TINY, small
from typer.testing import CliRunner

import zoo
from export import ExportError, painting, to_litert
from export.bundle import to_bundle
from export.convert import write
from serve import protocol
from serve.app import create_app
from serve.fleet import Call, Fleet
from serve.manifest import BundleError, Manifest, read, seal
from serve.painting import Painting
from serve.runtime import Model
from serve.sampling import Ask
from serve.store import Store
from zoo.architectures import dalle
from zoo.cli import app as commands

TEXTS = ["a large red ring", "a small blue cross at the top", "a green square"]
CODES = TINY["codes"]


@pytest.fixture(scope="module")
def splits():
    return small()


@pytest.fixture(scope="module")
def model(splits):
    """Random weights, large enough for other codes at every place."""
    keras.utils.set_random_seed(0)
    text = splits.signature.text
    made = zoo.get("dalle", input_shape=(32, 32, 3), vocabulary=text.vocabulary, length=text.length, **TINY)
    random = np.random.default_rng(0)
    made.set_weights([w + random.normal(scale=0.3, size=w.shape).astype("float32") for w in made.get_weights()])
    return made


@pytest.fixture(scope="module")
def bundle(model, splits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("painted") / "painter" / "1"
    with pytest.warns(UserWarning, match="train it before anybody relies on it"):
        return to_bundle(model, folder, data=splits, architecture="dalle", int8=False, float16=True)


@pytest.fixture(scope="module")
def client(bundle):
    return create_app(Store(bundle.folder.parents[1], threads=1)).test_client()


@pytest.fixture
def running(bundle):
    return Painting(bundle.folder, bundle.manifest, "fp32", threads=1)


def codes_by_keras(model, tokens):
    """The likeliest codes behind a text, the whole model being asked for each of them."""
    text, logits = model.get_layer("text"), model.get_layer("logits")
    writer, first = keras.Model(text.output, logits.output), logits.units - CODES
    whole = [token or text.vocabulary + place for place, token in enumerate(tokens.tolist())]
    for _ in range(PLACES):
        row = np.array([whole + [first] * (len(tokens) + PLACES - len(whole))], np.int32)
        whole.append(first + int(np.asarray(writer(row))[0, len(whole) - 1, first:].argmax()))
    return np.array(whole[len(tokens) :]) - first


def by_keras(model, signature, texts):
    """Pictures of the likeliest codes, pixel values that are not rounded."""
    codes = np.stack([codes_by_keras(model, row) for row in signature.text({"text": np.array(texts)})])
    shown = np.eye(CODES, dtype=np.float32)[codes].reshape(-1, 4, 4, CODES)
    drawer = keras.Model(model.get_layer("codes").output, model.get_layer("pixels").output)
    return codes, 255 * keras.ops.convert_to_numpy(dalle.drawn(drawer(shown)[..., :3]))


def finished(running):
    found = {}
    while not running.idle:
        found |= {number: piece.picture for number, piece in running.step() if piece.done}
    return found


def decoded(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))


def test_what_is_painted_without_doubt_is_the_likeliest_at_each_place(model, splits, bundle):
    codes, expected = by_keras(model, splits.signature, TEXTS)
    assert len(np.unique(codes)) > 2 and (codes[0] != codes[1]).any()
    found = zoo.paint(bundle, TEXTS, temperature=0)
    assert found.dtype == np.uint8 and found.shape == (3, 32, 32, 3)
    np.testing.assert_allclose(found, expected, atol=0.6)  # rounded, and weights of 0.3 make steep sigmoids
    assert bundle.manifest.generation["files"]["fp32"]["parity"] < 1e-4


def test_rows_come_and_go_and_a_seed_paints_the_same_whatever_else_is_painted(running):
    free = Ask(temperature=1.0, seed=5)
    alone = running.add(TEXTS[0], free)
    expected = finished(running)[alone]
    gone = running.add(TEXTS[1], Ask(temperature=1.0, seed=1))
    running.step()
    own, other = running.add(TEXTS[0], free), running.add(TEXTS[0], Ask(temperature=1.0, seed=6))
    running.step()
    running.drop(gone)
    found = finished(running)
    np.testing.assert_array_equal(found[own], expected)
    assert (found[other] != expected).any() and gone not in found and not running._codes


def test_beams_paint_what_is_likelier(model, splits, running):
    """Eight ways of this text together find codes that are at least as likely as those chosen one by one."""
    tokens = splits.signature.text({"text": np.array(TEXTS[:1])})[0]
    halves = painting.apart(model)

    def likelihood(codes):
        row = [token + CODES if token else halves.block["padding"] + place for place, token in enumerate(tokens)]
        whole = np.array([[*row, *codes]], np.int32)
        logits = keras.ops.log_softmax(halves.writer(whole), axis=-1)[0, len(row) - 1 : -1]
        return float(np.take_along_axis(np.asarray(logits), np.array(codes)[:, None], axis=1).sum())

    seen = []
    shown, running._searched = running._searched, lambda row: seen.append(row.beams.answer) or shown(row)
    running.add(TEXTS[0], Ask(beams=8))
    (picture,) = finished(running).values()
    assert picture.shape == (32, 32, 3)
    assert likelihood(seen[0]) >= likelihood(codes_by_keras(model, tokens).tolist()) - 1e-4


def test_a_run_paints_as_its_bundle_does(model, splits, bundle, tmp_path):
    class Run:
        signature = splits.signature

    Run.model = model
    expected = zoo.paint(bundle, TEXTS, seed=1, out=tmp_path / "painted.png")
    np.testing.assert_array_equal(zoo.paint(Run(), TEXTS, seed=1), expected)
    np.testing.assert_array_equal(zoo.paint(str(bundle.folder), TEXTS, seed=1), expected)
    assert (zoo.paint(bundle, TEXTS, seed=2) != expected).any()
    assert zoo.paint(bundle, TEXTS[:1], precision="fp16", top_k=3, top_p=0.9).shape == (1, 32, 32, 3)
    with Image.open(tmp_path / "painted.png") as picture:
        assert picture.width > 300
    with pytest.raises(ValueError, match="a run has its weights in fp32 only, got precision='fp16'; export it first"):
        zoo.paint(Run(), TEXTS, precision="fp16")


def test_what_cannot_be_painted_is_refused(model, splits, bundle, tmp_path):
    with pytest.raises(ValueError, match=r"temperature must be a number from 0 to 100.0, got -1"):
        zoo.paint(bundle, ["a ring"], temperature=-1)
    with pytest.raises(ValueError, match="texts must be a list of at least one text, got 'a ring'"):
        zoo.paint(bundle, "a ring")
    with pytest.raises(ValueError, match="the text is blank; write something"):
        zoo.paint(bundle, ["  "])
    with pytest.raises(
        ValueError, match="a bundle or a run paints pictures of texts, which have a tokenizer; got a Fun"
    ):
        zoo.paint(model, ["a ring"])
    with pytest.raises(ValueError, match="'painter' paints pictures of texts, and writes none; ask it with"):
        zoo.generate(bundle, "a ring")
    with pytest.raises(ValueError, match="'painter' paints a picture, and explanations share out one figure"):
        zoo.explain(bundle, {"text": np.array(["a ring"])})
    with pytest.raises(ExportError, match=r"'dalle' paints pictures code by code, which no file for devices does"):
        to_litert(model, tmp_path / "model.tflite", signature=splits.signature)
    with pytest.raises(ExportError, match=r"'\w+' paints no pictures; a model that does, such as 'dalle', has text,"):
        painting.apart(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))


def test_a_model_that_writes_paints_nothing(bundle, tmp_path):
    manifest = json.loads(bundle.manifest.to_json())
    manifest["generation"].pop("picture")
    (tmp_path / "1").mkdir()
    for file in bundle.folder.iterdir():
        (tmp_path / "1" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "1" / "model.json").write_text(json.dumps(manifest))
    seal(tmp_path / "1")
    with pytest.raises(ValueError, match="pictures are painted by a model such as 'dalle', got 'painter'; train one"):
        zoo.paint(tmp_path / "1", ["a ring"])


def test_the_bundle_takes_texts_and_gives_pictures(bundle):
    (taken,), (given,) = bundle.manifest.inputs, bundle.manifest.outputs
    assert (taken.name, taken.dtype, bundle.manifest.kind) == ("text", "BYTES", "text")
    assert (given.name, given.dtype, given.shape) == ("image", "UINT8", (-1, 32, 32, 3))
    card = (bundle.folder / "README.md").read_text()
    assert "-H 'Accept: image/png' -o picture.png" in card and "It paints what words of its training stood for" in card


def test_a_bundle_is_judged_as_its_model_is(model, splits, bundle):
    expected = zoo.evaluate(model, data=splits)
    np.testing.assert_allclose(zoo.evaluate(bundle, data=splits).answers, expected.answers, atol=1e-2, rtol=1e-4)


def test_it_is_served_as_it_paints(bundle, client):
    expected = zoo.paint(bundle, TEXTS[:2], temperature=0)
    told = client.post("/predict/painter?temperature=0", json=[{"text": text} for text in TEXTS[:2]]).json
    np.testing.assert_array_equal([decoded(row["image"]) for row in told["predictions"]], expected)
    assert [row["tokens"] for row in told["predictions"]] == [PLACES] * 2 and told["notes"] == []
    png = client.post("/predict/painter?temperature=0", json={"text": TEXTS[0]}, headers={"Accept": "image/png"})
    assert png.mimetype == "image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png.data))), expected[0])
    free = [client.post(f"/predict/painter?seed={seed}", json={"text": TEXTS[0]}).json for seed in (1, 1, 2)]
    first, again, other = (each["predictions"][0]["image"] for each in free)
    assert first == again != other
    table = client.post("/predict/painter", json=[{"text": TEXTS[0]}], headers={"Accept": "text/csv"}).text
    assert table.startswith('image\r\n"data:image/png;base64,')
    long = client.post("/predict/painter", json={"text": "a ring " * 40}).json
    assert "tokens of the text were read, the rest was cut off" in long["notes"][0]
    (entry,) = client.get("/models").json
    assert entry["writes"] == "picture" and entry["kind"] == "text"
    assert client.get("/openapi.json").status_code == 200


def test_infer_routes_give_pixels(bundle, client):
    expected = zoo.paint(bundle, TEXTS[:2], temperature=0)
    port = {"name": "text", "datatype": "BYTES", "shape": [2], "data": TEXTS[:2]}
    sent = {"inputs": [port], "parameters": {"temperature": 0}}
    (found,) = client.post("/v2/models/painter/infer", json=sent).json["outputs"]
    assert (found["datatype"], found["shape"]) == ("UINT8", [2, 32, 32, 3])
    np.testing.assert_array_equal(np.reshape(found["data"], found["shape"]), expected)
    sent["parameters"]["binary_data_output"] = True
    answer = client.post("/v2/models/painter/infer", json=sent)
    raw = protocol.unpack(answer.data, int(answer.headers["Inference-Header-Content-Length"]))["image"]
    np.testing.assert_array_equal(raw, expected)
    (row,) = client.post("/v1/models/painter:predict", json={"instances": TEXTS[:1]}).json["predictions"]
    assert np.shape(row) == (32, 32, 3)


@pytest.mark.parametrize(
    ("path", "sent", "message"),
    [
        (
            "/predict/painter?max_tokens=3",
            {"text": "a"},
            "no parameter is called 'max_tokens'; there are temperature, ",
        ),
        ("/predict/painter?stop=b", {"text": "a"}, "no parameter is called 'stop'; there are temperature, "),
        ("/predict/painter?temperature=-1", {"text": "a"}, "'temperature' must be a number 0 … 100, got -1"),
        ("/predict/painter", {"text": " "}, "'text' is empty; write something"),
        ("/explain/painter", {"text": "a"}, "'painter' paints pictures, of which each code has reasons of its own"),
        ("/v2/models/painter/generate", {"text_input": "a"}, "'painter' paints pictures of texts, and continues none"),
        (
            "/v1/completions",
            {"model": "painter", "prompt": "a"},
            "'painter' paints pictures of texts, and continues none",
        ),
    ],
)
def test_requests_that_cannot_be_answered_say_why(client, path, sent, message):
    answer = client.post(path, json=sent)
    assert answer.status_code in (400, 422) and message in answer.text


def test_a_job_paints_many(client):
    job = client.post("/jobs/painter?temperature=0", json=[{"text": text} for text in TEXTS]).json["id"]
    end = time.monotonic() + 30
    while (told := client.get(f"/jobs/{job}").json)["state"] != "done" and time.monotonic() < end:
        time.sleep(0.05)
    assert [decoded(row["image"]).shape for row in told["predictions"]] == [(32, 32, 3)] * 3


def test_workers_paint_several_at_once(bundle):
    async def main():
        fleet = Fleet(bundle.folder.parents[1], workers=1, threads=1, watch=0)
        await fleet.start()
        body = json.dumps({"texts": TEXTS, "parameters": {"temperature": 0}}).encode()
        answers = [asyncio.get_running_loop().create_future() for _ in range(3)]
        for answer in answers:
            fleet.submit(Call("painter", "1", body, None, "rows", time.monotonic() + 30, answer.set_result))
        found = [json.loads((await each).body)["rows"] for each in answers]
        await fleet.stop()
        return found

    expected = zoo.paint(bundle, TEXTS, temperature=0)
    for rows in asyncio.run(main()):
        np.testing.assert_array_equal([decoded(row["image"]) for row in rows], expected)


def test_pictures_that_come_out_otherwise_are_refused(bundle, tmp_path):
    folder = tmp_path / "painter" / "1"
    folder.mkdir(parents=True)
    for file in bundle.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    with np.load(folder / "golden.npz") as stored:
        golden = dict(stored)
    np.savez(folder / "golden.npz", **{**golden, "output/image": golden["output/image"] ^ 128})
    seal(folder)
    with pytest.raises(BundleError, match=r"fp32 answers otherwise than golden.npz in 100% of the rows"):
        Model(read(folder), threads=1)
    assert Model(read(folder), threads=1, precision="fp16").predict({"text": np.array(["a"])})["image"].any()
    told = subprocess.run(
        [sys.executable, folder / "run.py", "--seconds", "0"], capture_output=True, text=True, check=False
    )
    assert told.returncode == 1 and "the answers to the golden rows differ by 1" in told.stderr


BROKEN = {
    "names no file that makes pictures of codes": lambda block: block["files"]["fp32"].pop("drawer"),
    "or a picture has such a number": lambda block: block["picture"].update(places="many"),
    "names a file by what is no text": lambda block: block["files"]["fp32"].update(drawer=3),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_manifest_that_would_trip_the_painter_is_refused(bundle, reason):
    content = json.loads(bundle.manifest.to_json())
    BROKEN[reason](content["generation"])
    with pytest.raises(BundleError, match=reason):
        Manifest.from_json(json.dumps(content))


def test_pictures_of_codes_that_differ_from_keras_are_not_written(model, tmp_path, monkeypatch):
    halves = painting.apart(model)
    told = painting.write_drawer(halves, tmp_path)
    assert told["bytes"] == (tmp_path / "drawer.onnx").stat().st_size
    other = keras.models.clone_model(model)
    monkeypatch.setattr(
        painting, "write", lambda of, *rest, **options: write(painting.apart(other).drawer, *rest, **options)
    )
    with pytest.raises(ExportError, match=r"pictures of codes differ by .* pixel values from Keras, allowed is 0\.5"):
        painting.write_drawer(halves, tmp_path)


def test_run_py_paints(bundle, tmp_path):
    def run(*arguments):
        command = [sys.executable, bundle.folder / "run.py", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    told = run("--paint", TEXTS[0], "--temperature", "0", "--out", "ring.png")
    assert told.stdout.startswith("ring.png (painted in ") and not told.stderr
    expected = zoo.paint(bundle, TEXTS[:1], temperature=0)[0]
    with Image.open(tmp_path / "ring.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), expected)
    for name, seed in (("one", "1"), ("same", "1"), ("other", "2")):
        assert not run("--paint", TEXTS[0], "--seed", seed, "--out", f"{name}.png").returncode
    one, same, other = ((tmp_path / f"{name}.png").read_bytes() for name in ("one", "same", "other"))
    assert one == same != other
    told = run("--seconds", "0")
    assert "8 golden rows agree: largest difference 0," in told.stdout, told.stderr
    assert "give the text with --paint" in run("--continue", "a").stderr
    assert "the text is blank" in run("--paint", " ").stderr
    assert "--temperature must be a number from 0 to 100, got -1" in run("--paint", "a", "--temperature=-1").stderr


def test_the_command_paints_from_a_bundle(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.commands.paint.quiet_backend", lambda: None)
    out = tmp_path / "rings.png"
    told = CliRunner().invoke(
        commands, ["paint", str(bundle.folder), "--text", "a ring", "--each", "2", "--out", str(out)]
    )
    assert told.exit_code == 0 and f"2 pictures in {out}" in told.output.replace("\n", "") and out.stat().st_size
    long = " ".join(["ring"] * 60)
    with pytest.warns(UserWarning, match=r"only the first \d+ tokens of the text were read, the rest was cut off"):
        told = CliRunner().invoke(commands, ["paint", str(bundle.folder), "--text", long, "--out", str(out)])
    assert told.exit_code == 0 and f"1 picture in {out}" in told.output.replace("\n", "")
    for wrong in (tmp_path, tmp_path / "none" / "a.png", tmp_path / "rings.txt"):
        with pytest.raises(
            ValueError, match=r"out must be a file for a picture in a folder that exists, such as painted\.png"
        ):
            zoo.paint(bundle, ["a ring"], out=wrong)
    told = CliRunner().invoke(commands, ["paint", str(tmp_path / "none"), "--text", "a ring"])
    assert told.exit_code and "neither a run folder nor a bundle" in told.output.replace("\n", " ") + str(
        told.exception
    )


def test_texts_keep_their_codes_where_both_have_other_numbers(model, splits):
    whole, rows = painting.apart(model), {name: values[:4] for name, values in splits.test.x.items()}
    found = whole.read(splits.signature, rows)["tokens"]
    length, kinds = splits.signature.text.length, model.get_layer("words").input_dim
    assert found.shape == (4, length + PLACES) and found[:, length:].max() < CODES <= found[:, :length].min()
    text = keras.Model(model.inputs, model.get_layer("text").output)
    own = np.asarray(text(splits.signature.inputs(rows)))
    np.testing.assert_array_equal((own + CODES) % kinds, found)
    logits = keras.Model(model.get_layer("text").output, model.get_layer("logits").output)(own)
    np.testing.assert_allclose(whole.writer(found), logits[..., kinds - CODES :], atol=1e-5)
