"""A detection over HTTP: boxes with labels and scores; figures that tell whether answers drift."""

import numpy as np
import pytest
import small_bundles
from onnx import TensorProto, helper
from small_bundles import write_bundle
from small_drift import baseline_of, judged

from serve import codec
from serve.app import create_app
from serve.manifest import Port, read
from serve.store import Store

AXES = ("batch", "height", "width")
PICTURE = Port("image", "UINT8", (-1, 6, 8, 1), (*AXES, "channels"), (0, 255), "pixel value")
BOXES = Port("boxes", "FP32", (-1, 3, 4), ("batch", "boxes", "corners"), unit="pixels: left, top, right, bottom")
SCORES = Port("scores", "FP32", (-1, 3), ("batch", "boxes"), (0, 1), "probability")
CLASSES = Port("classes", "INT32", (-1, 3), ("batch", "boxes"), (0, 1), "index of the label")
LABELS = ("cat", "dog")
PLACES = np.array([[0, 0, 4, 3], [4.5, 1, 8, 6], [0, 0, 0, 0]], np.float32)
SHARES = np.array([1, 0.4, 0], np.float32)
KINDS = np.array([1, 0, 0], np.int32)


def graph(path):
    """The same boxes in every picture, the surer the brighter its first pixel is."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["pixels"], ["brightest"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Div", ["brightest", "most"], ["share"]),
        helper.make_node("Unsqueeze", ["share", "one"], ["column"]),
        helper.make_node("Mul", ["column", "shares"], ["scores"]),
        helper.make_node("Shape", ["image"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["rows"]),
        helper.make_node("Concat", ["rows", "box_sizes"], ["all_boxes"], axis=0),
        helper.make_node("Expand", ["places", "all_boxes"], ["boxes"]),
        helper.make_node("Concat", ["rows", "class_sizes"], ["all_classes"], axis=0),
        helper.make_node("Expand", ["kinds", "all_classes"], ["classes"]),
    ]
    constants = {
        "most": np.float32(255), "one": np.array([1]), "zero": np.array([0]), "shares": SHARES, "places": PLACES,
        "kinds": KINDS, "box_sizes": np.array([3, 4]), "class_sizes": np.array([3]),
    }  # fmt: skip
    small_bundles.write_onnx(path, nodes, constants, (PICTURE,), (BOXES, SCORES, CLASSES))


def pixels(*brightness):
    images = np.zeros((len(brightness), 6, 8, 1), np.uint8)
    images[:, 2, 3, 0] = brightness
    return images


def answered(images):
    share = images.max(axis=(1, 2, 3)).astype(np.float32) / 255
    rows = len(images)
    return {
        "boxes": np.tile(PLACES, (rows, 1, 1)),
        "scores": share[:, None] * SHARES,
        "classes": np.tile(KINDS, (rows, 1)),
    }


def write_boxes(store):
    images = pixels(255, 100)
    return write_bundle(
        store, "pets", "1", graph, ({"image": images}, answered(images)),
        task="detection", kind="image", inputs=(PICTURE,), outputs=(BOXES, SCORES, CLASSES), labels=LABELS,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_boxes(tmp_path_factory.mktemp("boxes"))


@pytest.fixture(scope="module")
def client(folder):
    app = create_app(Store(folder.parents[1], threads=1), explain_target="fake_explainers:echo")
    yield app.test_client()
    app.extensions["explainer"].close()


def sent(brightness=255):
    return {"image": pixels(brightness)[0].tolist()}


def test_boxes_come_with_labels_and_scores_in_pixels_of_a_picture_of_known_size(client):
    (found,) = client.post("/predict/pets", json=sent()).json["predictions"]
    assert (found["height"], found["width"]) == (6, 8)
    (box,) = found["boxes"]
    assert (box["label"], box["score"], box["box"]) == ("dog", 1.0, [0, 0, 4, 3])
    assert box["colour"].startswith("#")
    (none,) = client.post("/predict/pets", json=sent(100)).json["predictions"]
    assert none["boxes"] == []


def test_all_boxes_come_on_demand(client):
    (found,) = client.post("/predict/pets?form=all", json=sent()).json["predictions"]
    assert [(box["label"], round(box["score"], 3)) for box in found["boxes"]] == [("dog", 1.0), ("cat", 0.4)]
    assert found["boxes"][0]["colour"] != found["boxes"][1]["colour"]
    refused = client.post("/predict/pets?form=png", json=sent())
    assert refused.status_code == 422 and "form must be one of sure, all" in refused.json["error"]["message"]


def test_a_table_has_a_line_for_each_box(client):
    text = client.post("/predict/pets?form=all", json=sent(), headers={"Accept": "text/csv"}).text
    assert text.split("\r\n")[:3] == [
        "row,label,score,left,top,right,bottom", "0,dog,1.0,0.0,0.0,4.0,3.0", "0,cat,0.4,4.5,1.0,8.0,6.0",
    ]  # fmt: skip


def test_the_description_knows_the_boxes(client):
    told = client.get("/openapi.json").json
    forms = {each["name"]: each["schema"] for each in told["paths"]["/predict/{model}"]["post"]["parameters"]}
    assert {"sure", "all"} <= set(forms["form"]["enum"])
    assert "boxes" in told["components"]["schemas"]["Prediction"]["properties"]


def test_the_protocols_give_the_three_tensors(client):
    body = {
        "inputs": [{"name": "image", "shape": [1, 6, 8, 1], "datatype": "UINT8", "data": pixels(255).ravel().tolist()}]
    }
    found = {each["name"]: each for each in client.post("/v2/models/pets/infer", json=body).json["outputs"]}
    assert {name: (each["datatype"], each["shape"]) for name, each in found.items()} == {
        "boxes": ("FP32", [1, 3, 4]), "scores": ("FP32", [1, 3]), "classes": ("INT32", [1, 3]),
    }  # fmt: skip
    assert found["classes"]["data"] == [1, 0, 0]


def test_pictures_with_other_things_than_before_are_drift(folder):
    usual, manifest = pixels(*np.random.default_rng(0).integers(0, 256, 600)), read(folder).manifest
    known = baseline_of(answered(usual), manifest)
    assert [feature.name for feature in known.features] == ["boxes of cat", "boxes of dog", "score of boxes"]
    assert judged(known, manifest, usual, answered(usual))["state"] == "stable"
    bright = pixels(*[255] * 600)
    told = judged(known, manifest, bright, answered(bright))
    assert told["state"] == "drifted" and "boxes" in told["verdict"]


def test_people_are_answered_from_the_three_tensors_alone(folder):
    manifest = read(folder).manifest
    assert codec.needed(manifest) == ["boxes", "scores", "classes"]
    assert codec.forms(manifest) == ("sure", "all")
