"""Pictures that stay in their files: every stage sees what it would see with all of them in memory."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.data import Split, builtin, coco, images, lazy
from zoo.evaluate.columns import columns
from zoo.evaluate.labels import doubtful_labels
from zoo.evaluate.leakage import leakage
from zoo.training.fit import Batches, fit

SHAPE = (16, 12, 3)
ROWS = 30  # of each class


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Noisy pictures of two colours and several sizes and kinds, one of them twice."""
    place, random = tmp_path_factory.mktemp("own") / "tiles", np.random.default_rng(0)
    for colour, label in (([200, 60, 60], "red"), ([60, 60, 200], "blue")):
        (place / label).mkdir(parents=True)
        for row in range(ROWS):
            size = (*random.integers(10, 30, 2), 3)
            pixels = np.clip(np.array(colour) + random.normal(0, 60, size), 0, 255).astype(np.uint8)
            picture = Image.fromarray(pixels).convert("L" if row == 4 else "RGB")
            picture.save(place / label / f"{row}.{'png' if row % 2 else 'jpg'}")
    shutil.copy(place / "red" / "2.jpg", place / "red" / "again.jpg")
    return place


@pytest.fixture
def both(folder, monkeypatch):
    """The same data in files and in memory."""

    def load(source=folder, **options):
        found = []
        for share in (0, 1):
            monkeypatch.setattr(lazy, "SHARE", share)
            found.append(zoo.data.load(source, **{"input_shape": SHAPE, **options}))
        return found

    return load


def same(one, two):
    """Splits, signature and hash are the same, and only the first has its pictures in files."""
    assert one.sha256 == two.sha256 and one.signature == two.signature
    for split, other in zip(one.splits.values(), two.splits.values(), strict=True):
        assert isinstance(split.x["image"], lazy.Pictures) and isinstance(other.x["image"], np.ndarray)
        assert np.array_equal(split.x["image"], other.x["image"]) and np.array_equal(split.y, other.y)
    assert one.summary() == two.summary()


def test_a_folder_is_split_hashed_and_scaled_as_in_memory(both):
    same(*both())


def test_masks_boxes_and_people_are_read_as_in_memory(both, tmp_path):
    random = np.random.default_rng(0)
    shapes = zoo.data.load("shapes", input_shape=(16, 16, 3)).train
    boxes = builtin.BUILTIN["shapes_boxes"]()
    few = dataclasses.replace(boxes, x={"image": boxes.x["image"][:40]}, y=boxes.y[:40], part=boxes.part[:40])
    coco.write(few, tmp_path / "boxes")
    for row in range(30):
        for kind, pixels in (("images", shapes.x["image"][row]), ("masks", shapes.y[row])):
            (tmp_path / "masked" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "masked" / kind / f"{row}.png")
    for name in "abcdefgh":
        (tmp_path / "people" / name).mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(0, 256, SHAPE, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "people" / name / f"{name}_{number:04d}.png")
    same(*both(tmp_path / "boxes"))
    same(*both(tmp_path / "masked"))
    same(*both(tmp_path / "people", task="embedding"))


@pytest.mark.parametrize(
    "index",
    [
        *(3, -1, np.int64(2), slice(2, 9, 3), slice(None), [5, 0, 5], np.arange(4), np.array([[1, 2], [3, 4]])),
        *(np.arange(20) < 3, (2, 1), (slice(1, 4), ..., 0), ([1, 3], slice(2, 5), 1), (..., 2), (slice(0, 0),)),
    ],
    ids=str,
)
def test_rows_are_read_in_every_form_that_numpy_takes(both, index):
    stored, there = (data.train.x["image"] for data in both())
    stored, there = lazy.pick(stored, slice(20)), there[:20]
    assert np.array_equal(stored[index], there[index]) and stored[index].dtype == np.uint8
    assert stored.shape == there.shape and stored.nbytes == there.nbytes and stored.ndim == there.ndim


def test_choosing_joining_and_resizing_read_nothing(both, monkeypatch):
    stored, there = both()
    monkeypatch.setattr(images, "open_image", lambda *_: pytest.fail("a picture was read"))
    few, other = lazy.pick(stored.train.x["image"], [3, 1]), lazy.pick(stored.test.x["image"], slice(2))
    joined = images.resize(lazy.joined([few, other]), (8, 8, 3))
    monkeypatch.undo()
    expected = np.concatenate([there.train.x["image"][[3, 1]], there.test.x["image"][:2]])
    assert np.array_equal(joined, images.resize(expected, (8, 8, 3)))
    assert np.array_equal(list(iter(joined)), np.asarray(joined))


def test_pictures_are_looked_at_once_and_again_when_a_file_changes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(lazy, "SHARE", 0)
    own = shutil.copytree(folder, tmp_path / "tiles")
    first, opened = zoo.data.load(own, input_shape=SHAPE), []
    true = images.open_image
    monkeypatch.setattr(images, "open_image", lambda *given: opened.append(given) or true(*given))
    assert zoo.data.load(own, input_shape=SHAPE).sha256 == first.sha256 and not opened
    Image.fromarray(np.zeros(SHAPE, np.uint8)).save(own / "red" / "0.jpg")
    assert zoo.data.load(own, input_shape=SHAPE).sha256 != first.sha256 and len(opened) == 2 * ROWS + 1
    for file in (tmp_path / "cache" / "pictures").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert zoo.data.load(folder, input_shape=SHAPE).sha256 == first.sha256


def test_a_broken_picture_is_named_at_the_start_and_while_training(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(lazy, "SHARE", 0)
    own = shutil.copytree(folder, tmp_path / "tiles")
    whole = zoo.data.load(own, input_shape=SHAPE)
    (own / "blue" / "7.png").write_bytes((own / "blue" / "7.png").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cannot read the image .*blue.7\.png: .*; repair or remove it"):
        zoo.data.load(own, input_shape=SHAPE)
    model = zoo.get("lenet", input_shape=SHAPE, classes=2, width=(2, 2, 4, 4))
    recipe = zoo.recipes.Recipe("lenet", "tiles", epochs=1, batch_size=8)
    (part,) = [part for part in whole.splits.values() if any(path.endswith("/blue/7.png") for path in _paths(part))]
    sound = whole.test if part is not whole.test else whole.validation
    for parts in ({"train": part}, {"train": sound, "validation": part}):
        with pytest.raises(ValueError, match=r"cannot read the image .*blue.7\.png"):
            fit(model, dataclasses.replace(whole, **parts), recipe, quiet=True)


def _paths(split):
    pictures = split.x["image"]
    return [pictures.files.paths[row] for row in pictures.rows]


def test_training_gives_the_same_run_to_the_last_digit(both, tmp_path):
    settings = {"epochs": 2, "batch_size": 8, "augment": "crop,flip,noise,mixup", "width": (3, 4, 8, 6), "quiet": True}
    runs = [zoo.train("lenet", data, out=tmp_path / str(place), **settings) for place, data in enumerate(both())]
    for one, two in zip(*(run.model.get_weights() for run in runs), strict=True):
        assert np.array_equal(one, two)
    figures = [{**run.metrics, "seconds": 0} for run in runs]
    assert figures[0] == figures[1] and runs[0].history == runs[1].history
    reports = [zoo.evaluate(run) for run in runs]
    assert str(reports[0]) == str(reports[1]) and reports[0].fingerprint == reports[1].fingerprint
    reports[0].save(tmp_path / "report")


def test_the_next_batches_are_made_while_one_trains(both):
    stored, _ = both()
    recipe = zoo.recipes.Recipe("lenet", "tiles", batch_size=8)
    batches = Batches(stored, recipe)
    plain = Batches(
        dataclasses.replace(stored, train=Split({"image": np.asarray(stored.train.x["image"])}, stored.train.y)), recipe
    )
    first = batches[0]
    assert batches._coming and plain._makers is None
    found = [first, *(batches[index] for index in range(1, len(batches)))]
    for (x, y), place in zip(found, range(len(plain)), strict=True):
        assert np.array_equal(x, plain[place][0]) and np.array_equal(y, plain[place][1])
    for epoch in (1, 2):
        batches.at(epoch), plain.at(epoch)
        assert np.array_equal(batches[2][0], plain[2][0])


def test_data_are_judged_as_in_memory(both):
    one, two = both()
    assert columns(one) == columns(two)
    assert str(leakage(one)) == str(leakage(two))
    assert str(doubtful_labels(one)) == str(doubtful_labels(two))


def test_a_bundle_is_the_same(both, tmp_path):
    from export import to_bundle

    folders, explained = [], []
    for place, data in enumerate(both()):
        settings = {"epochs": 4, "width": (2, 2, 4, 4), "batch_size": 8, "quiet": True}
        run = zoo.train("lenet", data, out=tmp_path / f"r{place}", **settings)
        folders.append(to_bundle(run, tmp_path / f"s{place}" / "tiles" / "1").folder)
        told = json.loads(zoo.explain(run, data.test.x["image"][:1], method="occlusion").to_json())
        explained.append({key: told[key] for key in ("background_sha256", "inputs", "model_rows")})
    for name in ("drift.json", "model.onnx", "background.npz"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    assert explained[0] == explained[1]
