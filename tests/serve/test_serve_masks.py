"""A segmentation over HTTP: masks as pictures, runs and shares; figures that tell whether answers drift."""

import base64
import functools
import io

import numpy as np
import pytest
import small_bundles
from onnx import TensorProto, helper
from PIL import Image
from small_bundles import write_bundle
from small_drift import baseline_of, judged
from waiting import until

from serve import codec, drift, masks
from serve.app import create_app
from serve.manifest import BundleError, Manifest, Port, read
from serve.runtime import Model
from serve.store import Store

AXES = ("batch", "height", "width")
PICTURE = Port("image", "UINT8", (-1, 6, 8, 1), (*AXES, "channels"), (0, 255), "pixel value")
SHARES = Port("probabilities", "FP32", (-1, 6, 8, 3), (*AXES, "classes"), (0, 1), "probability")
MASK = Port("mask", "UINT8", (-1, 6, 8), AXES, (0, 2), "index of the likeliest label")
LABELS = ("background", "grey", "white")


def graph(path):
    """Dark pixels are background, those from 64 on grey, those from 192 on white."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "step"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "centres"], ["gap"]),
        helper.make_node("Mul", ["gap", "gap"], ["squared"]),
        helper.make_node("Neg", ["squared"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        helper.make_node("ArgMax", ["logits"], ["best"], axis=-1, keepdims=0),
        helper.make_node("Cast", ["best"], ["mask"], to=TensorProto.UINT8),
    ]
    constants = {"step": np.float32(128), "centres": np.array([0, 1, 2], np.float32)}
    small_bundles.write_onnx(path, nodes, constants, (PICTURE,), (SHARES, MASK))


def pixels(rows=2):
    """Each row a picture with a white square in it, of another size, and a grey line below."""
    images = np.zeros((rows, 6, 8, 1), np.uint8)
    for row in range(rows):
        images[row, : 1 + row % 3, :4] = 255
        images[row, 5] = 128
    return images


def answered(images):
    logits = -np.square(images.astype(np.float32) / 128 - np.arange(3, dtype=np.float32))
    return {"probabilities": small_bundles.softmax(logits), "mask": logits.argmax(-1).astype(np.uint8)}


def write_masks(store, name="scenes", **changed):
    images = pixels()
    return write_bundle(
        store, name, "1", graph, ({"image": images}, answered(images) | changed),
        task="segmentation", kind="image", inputs=(PICTURE,), outputs=(SHARES, MASK), labels=LABELS,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_masks(tmp_path_factory.mktemp("masks"))


@pytest.fixture(scope="module")
def client(folder):
    app = create_app(Store(folder.parents[1], threads=1), explain_target="fake_explainers:echo")
    yield app.test_client()
    app.extensions["explainer"].close()


def sent(row=0):
    return {"image": pixels(3)[row].tolist()}


def test_a_mask_comes_as_a_small_picture_with_shares(client):
    answer = client.post("/predict/scenes", json=sent(2)).json
    (found,) = answer["predictions"]
    assert found["label"] == "white" and (found["height"], found["width"]) == (6, 8)
    shares = {part["label"]: part["share"] for part in found["shares"]}
    assert shares == pytest.approx({"background": 28 / 48, "white": 12 / 48, "grey": 8 / 48}, abs=1e-5)
    assert [part["label"] for part in found["shares"]] == ["background", "white", "grey"]
    assert found["shares"][2]["colour"] == masks.COLOURS[1]
    head, _, data = found["mask"].partition(",")
    assert head == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert np.array_equal(np.asarray(image), answered(pixels(3))["mask"][2])
    assert image.convert("RGBA").getpixel((7, 0))[3] == 0  # background lets the picture through
    assert image.convert("RGB").getpixel((0, 5)) == (0xE6, 0x9F, 0x00)


def test_a_mask_comes_as_runs_or_not_at_all(client):
    (found,) = client.post("/predict/scenes?form=runs", json=sent(1)).json["predictions"]
    flat = [value for value, length in found["runs"] for _ in range(length)]
    assert np.array_equal(np.reshape(flat, (6, 8)), answered(pixels(2))["mask"][1]) and "mask" not in found
    (found,) = client.post("/predict/scenes?form=none", json=sent()).json["predictions"]
    assert "mask" not in found and "runs" not in found and found["shares"]
    refused = client.post("/predict/scenes?form=gif", json=sent())
    assert refused.status_code == 422 and "form must be one of png, runs, none" in refused.json["error"]["message"]


def test_a_picture_is_answered_by_a_picture_to_whom_asks_for_one(client):
    file = io.BytesIO()
    Image.fromarray(pixels(3)[2, ..., 0]).save(file, "PNG")
    answer = client.post(
        "/predict/scenes", data=file.getvalue(), content_type="image/png", headers={"Accept": "image/png"}
    )
    assert answer.mimetype == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.data))), answered(pixels(3))["mask"][2])


def test_a_table_has_the_share_of_each_label(client):
    text = client.post("/predict/scenes", json=sent(), headers={"Accept": "text/csv"}).text
    assert text.split("\r\n")[:2] == ["label,share_background,share_grey,share_white", "grey,0.75,0.166667,0.083333"]


def test_jobs_give_masks_too(client):
    file = io.BytesIO()
    Image.fromarray(pixels(1)[0, ..., 0]).save(file, "PNG")
    job = client.post("/jobs/scenes?form=runs", data=file.getvalue(), content_type="image/png").json
    asked = functools.partial(client.get, f"/jobs/{job['id']}")
    until(lambda: asked().json["state"] not in ("queued", "running"))
    told = asked().json
    assert told["state"] == "done" and told["predictions"][0]["runs"][0] == [2, 4]


def test_the_protocols_give_every_tensor_that_is_asked_for(client):
    image = pixels(1)
    body = {"inputs": [{"name": "image", "shape": [1, 6, 8, 1], "datatype": "UINT8", "data": image.ravel().tolist()}]}
    both = client.post("/v2/models/scenes/infer", json=body).json["outputs"]
    assert [(each["name"], each["datatype"], each["shape"]) for each in both] == [
        ("probabilities", "FP32", [1, 6, 8, 3]),
        ("mask", "UINT8", [1, 6, 8]),
    ]
    (one,) = client.post("/v2/models/scenes/infer", json={**body, "outputs": [{"name": "mask"}]}).json["outputs"]
    assert one["data"] == answered(image)["mask"].ravel().tolist()


def test_people_are_answered_without_the_probabilities(folder):
    manifest = Manifest.from_json((folder / "model.json").read_text())
    assert codec.needed(manifest) == ["mask"]
    assert codec.answers({"mask": answered(pixels(3))["mask"]}, manifest, top=5)[2]["label"] == "white"


def test_the_description_knows_the_forms(client):
    paths = client.get("/openapi.json").json["paths"]
    told = paths["/predict/{model}"]["post"]
    forms = {each["name"]: each["schema"] for each in told["parameters"]}
    assert {"png", "runs", "none"} <= set(forms["form"]["enum"])
    assert "image/png" in told["responses"]["200"]["content"]


def test_golden_masks_may_differ_in_a_few_pixels_and_no_more(tmp_path):
    truth = answered(pixels())["mask"]
    assert Model(read(write_masks(tmp_path / "same")), threads=1).engine
    wrong = truth.copy()
    wrong[:, :3] = (wrong[:, :3] + 1) % 3
    with pytest.raises(BundleError, match=r"differ from golden.npz by 0\.5 in 'mask'"):
        Model(read(write_masks(tmp_path / "other", mask=wrong)), threads=1)


def test_masks_that_cover_more_than_they_did_are_drift(folder):
    usual, manifest = pixels(600), read(folder).manifest
    known = baseline_of(answered(usual), manifest)
    assert [feature.name for feature in known.features] == ["share of background", "share of grey", "share of white"]
    assert judged(known, manifest, usual, answered(usual))["state"] == "stable"
    bright = usual.copy()
    bright[:, 1:5, :6] = 255
    told = judged(known, manifest, bright, answered(bright))
    assert told["state"] == "drifted" and "share of" in told["verdict"]
    alone = drift.summarise({"image": usual[:5]}, {"mask": answered(usual[:5])["mask"]}, manifest, known)
    assert np.frombuffer(alone["counts"], "<u4").sum() == 15  # counted also where probabilities were not asked for


def test_colours_go_on_beyond_the_palette():
    found = {masks.colour(place) for place in range(40)}
    assert len(found) == 40 and all(len(each) == 7 for each in found)
