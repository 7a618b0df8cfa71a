"""Boxes in COCO's format: what is read, and what is said of files that cannot be right."""

import json

import numpy as np
import pytest
from PIL import Image

from zoo import data
from zoo.data import builtin, coco
from zoo.data.targets import NOTHING, Boxes


@pytest.fixture
def content():
    """Three images, the last without boxes; categories out of order and with gaps between their ids."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 3, "file_name": "b.png", "width": 40, "height": 30},
            {"id": 9, "file_name": "c.png", "width": 40, "height": 30},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 18, "bbox": [2, 3, 10, 12]},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [20.5, 4, 19.9, 26]},
            {"id": 3, "image_id": 3, "category_id": 1, "bbox": [0, 0, 40, 30], "iscrowd": 1},
            {"id": 4, "image_id": 3, "category_id": 1, "bbox": [5, 5, 5, 5], "iscrowd": 0},
        ],
    }


@pytest.fixture
def place(tmp_path, content):
    """Writes the annotations with images beside them; the path of the annotation file."""

    def write(folder="", file="annotations.json", images="images"):
        target = tmp_path / "set" / folder
        (tmp_path / "set" / images).mkdir(parents=True, exist_ok=True)
        target.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(content["images"]):
            pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / images / image["file_name"])
        (target / file).write_text(json.dumps(content))
        return target / file

    return write


def test_boxes_become_corners_and_crowds_are_left_out(place):
    rows = coco.read(place(), None)
    assert rows.labels == ("person", "dog") and rows.task == "detection"
    assert rows.x["image"].shape == (3, 30, 40, 3)
    assert rows.y.shape == (3, 2, 5) and rows.y.dtype == np.float32
    np.testing.assert_allclose(rows.y[0], [[2, 3, 12, 15, 1], [20.5, 4, 40, 30, 0]])
    np.testing.assert_array_equal(rows.y[1], [[5, 5, 10, 10, 0], [0, 0, 0, 0, NOTHING]])
    assert (rows.y[2, :, 4] == NOTHING).all()


def test_boxes_follow_their_images_to_another_size(place):
    rows = coco.read(place(), (60, 20, 1))
    assert rows.x["image"].shape == (3, 60, 20, 1)
    np.testing.assert_allclose(rows.y[0, 0], [1, 6, 6, 30, 1])
    moved = Boxes().resized(rows.y, (60, 20, 1), (30, 40, 3))
    np.testing.assert_allclose(moved, coco.read(place(), None).y, atol=1e-5)


@pytest.mark.parametrize(
    ("folder", "file", "images", "given"),
    [
        ("", "annotations.json", "", "file"),
        ("", "annotations.json", "images", "folder"),
        ("annotations", "instances_train2017.json", "train2017", "folder"),
        ("annotations", "instances_val.json", "images/val", "folder"),
    ],
)
def test_images_are_found_where_they_usually_are(place, folder, file, images, given):
    path = place(folder, file, images)
    source = path if given == "file" else path.parents[1 if folder else 0]
    assert len(coco.read(source, None).y) == 3


def test_files_for_each_split_keep_their_rows(place):
    place("annotations", "instances_train.json")
    folder = place("annotations", "instances_val.json").parents[1]
    rows = coco.read(folder, None)
    assert rows.part.tolist() == [0, 0, 0, 1, 1, 1]


WRONG = [
    (("annotations", 0, "bbox"), [2, 3, 0, 12], "annotation 1 .image 'a.png'.: its box .* has no area"),
    (("annotations", 0, "bbox"), [2, 3, 4, -1], "annotation 1 .image 'a.png'.: its box .* has no area"),
    (("annotations", 0, "bbox"), [31, 3, 11, 5], "annotation 1 .image 'a.png'.: .* outside the image of 40x30"),
    (("annotations", 0, "bbox"), [-3, 3, 9, 5], "annotation 1 .*outside the image"),
    (("annotations", 0, "bbox"), [40.5, 3, 0.4, 5], "annotation 1 .*beside the image"),
    (("annotations", 0, "bbox"), [1, 2, 3], "annotation 1 .*bbox must be"),
    (("annotations", 0, "bbox"), [1, 2, 3, float("nan")], "annotation 1 .*bbox must be"),
    (("annotations", 0, "bbox"), [1, 2, 3, "4"], "annotation 1 .*bbox must be"),
    (("annotations", 3, "category_id"), 5, "annotation 4 .image 'b.png'. has the category 5; .* 1 'person', 18 'dog'"),
    (("annotations", 3, "image_id"), 77, "annotation 4 is of image 77, which is not listed"),
    (("images", 1, "id"), 7, "two images have the id 7"),
    (("images", 1, "width"), 41, "b.png is 40x30 pixels, its annotations say 41x30"),
    (("images", 1, "width"), "40", "image 'b.png' says it is '40'x30 pixels"),
    (("images", 2, "file_name"), "missing.png", "lists the image 'missing.png', which is not in"),
    (("categories", 0, "name"), "person", "two categories have the id 1 or the name 'person'"),
    (("categories",), [], "lists no categories"),
    (("images",), [], "is of image 7, which is not listed"),
    (("annotations",), {}, "has no list 'annotations'"),
]


@pytest.mark.parametrize(("keys", "value", "message"), WRONG, ids=[f"{'.'.join(map(str, w[0]))}={w[1]}" for w in WRONG])
def test_what_cannot_be_right_is_named(content, place, keys, value, message):
    names = [image["file_name"] for image in content["images"]]
    *way, last = keys
    found = content
    for key in way:
        found = found[key]
    path = place()
    found[last] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        coco.read(path, None)
    assert str(path) in str(caught.value) or any(name in str(caught.value) for name in names)


def test_a_missing_key_is_named(content, place):
    del content["annotations"][1]["category_id"]
    with pytest.raises(ValueError, match="annotation 2 has no 'category_id'"):
        coco.read(place(), None)


def test_a_file_that_is_no_json_is_named(tmp_path):
    (tmp_path / "annotations.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"cannot read the annotations .*annotations.json"):
        data.load(tmp_path)


def test_what_is_written_is_read_again(tmp_path):
    rows = builtin.shapes_boxes()
    rows.x["image"], rows.y, rows.part = rows.x["image"][:30], rows.y[:30], rows.part[:30]
    coco.write(rows, tmp_path / "shapes")
    again = coco.read(tmp_path / "shapes", None)
    np.testing.assert_array_equal(again.x["image"], rows.x["image"])
    np.testing.assert_allclose(again.y, rows.y, atol=1e-5)
    assert again.labels == rows.labels


def test_generated_boxes_lie_inside_and_some_pictures_have_none():
    splits = data.load("shapes_boxes")
    y = np.concatenate([part.y for part in splits.splits.values()])
    real = y[y[..., 4] != NOTHING]
    assert len(y) == 1500 and 2000 < len(real) < 3000
    assert (real[:, :2] >= 0).all() and (real[:, 2:4] <= 64).all() and (real[:, 2:4] - real[:, :2] >= 8).all()
    assert 0.1 < (y[..., 4] == NOTHING).all(axis=1).mean() < 0.4
    assert "rows with" in splits.summary() and "leaks: none" in splits.summary()


def test_boxes_belong_to_detection(place):
    with pytest.raises(ValueError, match="holds boxes, which are for detection"):
        data.load(place(), task="classification")
