"""Recipes of the literature: each runs on a small folder in the form it is for, and says what it is and is not."""

import dataclasses

import keras
import numpy as np
import pytest
from PIL import Image

import zoo
from zoo import recipes, registry
from zoo.data import builtin, coco
from zoo.recipes.literature import LITERATURE, find
from zoo.training import augment, augment_boxes, augment_pixels, load, optimisers
from zoo.training.fit import Batches, fit
from zoo.training.run import untrained

QUICK = ("resnet18", "resnet50v2", "vgg11", "inception_v1", "inception_v3", "mobilenet_v2", "capsnet", "vit_small")
QUICK += ("unet", "yolo_tiny", "faster_rcnn", "face_embedding")
EVERY = [(model, name) for model, own in LITERATURE.items() for name in own]


def _pictures(folder, count, shape, random):
    folder.mkdir(parents=True)
    for row in range(count):
        pixels = random.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels[..., 0] if shape[2] == 1 else pixels).save(folder / f"{folder.name}_{row:04d}.png")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The folder or the name of data of a task in the form that users have it, by model."""
    place, random = tmp_path_factory.mktemp("given"), np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4)):
        for label in "abc":
            _pictures(place / "classes" / part / label, count, (8, 8, 3), random)
    for name in "abcdefghij":
        _pictures(place / "people" / name, 4, (8, 8, 3), random)
    lines = [f"{name}\t0\t1\n" for name in "abcd"] + [f"{a}\t2\t{b}\t3\n" for a, b in ("ab", "bc", "cd", "da")]
    (place / "people" / "pairs.txt").write_text("1\t4\n" + "".join(lines), encoding="utf-8")
    _pictures(place / "cells" / "images", 20, (20, 20, 1), random)
    (place / "cells" / "masks").mkdir()
    for file in (place / "cells" / "images").iterdir():
        Image.fromarray(random.integers(0, 2, (20, 20), dtype=np.uint8)).save(place / "cells" / "masks" / file.name)
    boxes = builtin.BUILTIN["shapes_boxes"]()
    few = {"x": {"image": boxes.x["image"][:24]}, "y": boxes.y[:24], "part": boxes.part[:24]}
    coco.write(dataclasses.replace(boxes, **few), place / "boxes")
    return {
        "image-classification": place / "classes",
        "embedding": place / "people",
        "segmentation": place / "cells",
        "detection": place / "boxes",
    }


@pytest.fixture
def eager():
    """No graphs, whose making takes longer than these few steps."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`")
@pytest.mark.parametrize(
    ("model", "name"),
    [pytest.param(*case, marks=() if case[0] in QUICK else pytest.mark.slow, id="-".join(case)) for case in EVERY],
)
def test_it_trains_on_a_folder_of_its_form(model, name, given, eager):
    entry = registry.entry(model)
    source = given[entry.tasks[0]]
    tiny = {key: value for key, value in entry.tiny.items() if key != "classes"}
    if model == "unet":
        tiny["input_shape"] = (20, 20, 1)
    run = untrained(model, source, recipe=name, epochs=1, batch_size=8, unmixed=0, **tiny)
    settings = find(model, name).settings
    for key in settings.keys() - {"arguments", "epochs", "batch_size", "unmixed"}:
        assert getattr(run.recipe, key) == settings[key]
    assert run.recipe.literature == name and run.recipe.expected is None
    before = run.model.get_weights()
    history = fit(run.model, run.data, run.recipe, quiet=True, keep="last")
    assert np.isfinite(history[0]["loss"])
    moved = [not np.array_equal(one, two) for one, two in zip(before, run.model.get_weights(), strict=True)]
    assert np.mean(moved) > 0.5


def test_it_is_trained_by_name_and_kept_in_the_run(given, tmp_path):
    settings = {"epochs": 1, "batch_size": 8, "input_shape": (8, 8, 3), "depth": (1, 1), "width": 4, "quiet": True}
    source = given["image-classification"]
    run = zoo.train("resnet18", data=source, recipe="imagenet", out=tmp_path / "run", **settings)
    assert load(tmp_path / "run").recipe == run.recipe
    assert run.recipe.literature == "imagenet" and run.recipe.schedule == "milestones:30:60"
    assert run.signature.preprocess.scaling == "torch" and run.recipe.momentum is None


@pytest.mark.parametrize(
    ("model", "name", "data", "message"),
    [
        ("resnet18", "imagenett", "digits", "no recipe of the literature called 'imagenett'; it has imagenet. Did you"),
        ("mlp", "imagenet", "digits", "'mlp' has no recipe of the literature called 'imagenet'; it has none"),
        (
            "resnet18",
            "imagenet",
            None,
            "recipe 'imagenet' is for data of your own, ImageNet .*; say where they are with data=",
        ),
    ],
)
def test_what_is_not_there_is_told(model, name, data, message):
    with pytest.raises(ValueError, match=message):
        untrained(model, data, recipe=name)


@pytest.mark.parametrize(("model", "name"), EVERY, ids=str)
def test_it_builds_its_settings_and_says_where_they_are_from(model, name):
    published = find(model, name)
    entry = registry.entry(model)
    assert entry.name == model and published.data and published.published and published.source
    assert "expected" not in published.settings
    recipe = recipes.find(model, "own", entry.recipe, name)
    assert recipe.arguments.keys() <= entry.signature.keys() and "input_shape" in recipe.arguments
    optimiser = optimisers.optimiser(recipe, 100)
    rates = (
        [float(optimiser._learning_rate(step)) for step in range(0, recipe.epochs * 100, 50)]
        if (recipe.schedule != "constant")
        else [recipe.learning_rate]
    )
    assert max(rates) == pytest.approx(recipe.learning_rate, rel=0.02) and min(rates) >= 0


def _rates(schedule, epochs=10, **settings):
    recipe = recipes.Recipe("m", "d", epochs=epochs, schedule=schedule, learning_rate=1.0, **settings)
    schedule = optimisers.optimiser(recipe, 100)._learning_rate
    again = type(schedule).from_config(schedule.get_config())
    assert float(again(333)) == float(schedule(333))
    return lambda step: float(schedule(step))


def test_schedules_with_figures():
    rate = _rates("milestones:3:8")
    assert [rate(step) for step in (299, 300, 799, 800)] == pytest.approx([1, 0.1, 0.1, 0.01])
    rate = _rates("decay:0.5:2")
    assert [rate(step) for step in (199, 200, 999)] == pytest.approx([1, 0.5, 0.5**4])
    rate = _rates("poly:0.5")
    assert [rate(step) for step in (0, 750)] == pytest.approx([1, 0.5])
    rate = _rates("cosine:0.05", warmup=0.1)
    assert [rate(step) for step in (49, 100, 550, 1000)] == pytest.approx([0.5, 1, 0.525, 0.05])
    for wrong in ("milestones", "milestones:x", "decay:2:1", "decay:0.5", "poly:", "cosine:5", "step:3"):
        with pytest.raises(ValueError, match="schedule must be one of constant, step"):
            recipes.Recipe("m", "d", schedule=wrong)


def test_accumulated_batches_step_as_one_large_batch():
    slopes = np.random.default_rng(0).standard_normal((8, 3)).astype("float32")

    def trained(accumulate):
        variable = keras.Variable(np.ones(3, "float32"))
        settings = {"optimizer": "momentum", "schedule": "milestones:1", "learning_rate": 0.1, "weight_decay": 0.0}
        recipe = recipes.Recipe("m", "d", epochs=2, accumulate=accumulate, **settings)
        optimiser = optimisers.optimiser(recipe, 2 * accumulate)
        for rows in np.split(slopes, 4 * accumulate):
            optimiser.apply([keras.ops.convert_to_tensor(rows.mean(axis=0))], [variable])
        return variable.numpy()

    np.testing.assert_allclose(trained(1), trained(2), rtol=1e-5)


def test_momentum_and_epsilon_reach_the_optimiser():
    made = optimisers.optimiser(recipes.Recipe("m", "d", optimizer="rmsprop", momentum=0.8, epsilon=1.0), 10)
    assert made.momentum == 0.8 and made.epsilon == 1.0
    assert optimisers.optimiser(recipes.Recipe("m", "d", optimizer="momentum"), 10).momentum == 0.9
    with pytest.raises(ValueError, match="optimizer 'momentum' divides by nothing, got epsilon"):
        optimisers.optimiser(recipes.Recipe("m", "d", optimizer="momentum", epsilon=1.0), 10)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("entry", ["resized_crop", "resized_crop:0.5", "randaugment", "randaugment:3:10"])
def test_pixels_are_augmented_in_their_range(entry, channels):
    images = np.random.default_rng(0).integers(0, 256, (6, 12, 10, channels), dtype=np.uint8)
    before = images.copy()
    changed, again = (augment_pixels.apply([entry], images, np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(images, before) and np.array_equal(changed, again)
    assert changed.shape == images.shape and changed.dtype == np.uint8 and not np.array_equal(changed, images)


def test_every_way_of_randaugment_changes_a_picture_as_far_as_it_is_strong():
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(40, 200, (16, 16, 3), dtype=np.uint8))
    for place, way in enumerate(augment_pixels._WAYS):
        far = [np.abs(np.asarray(way(image, s), int) - np.asarray(image, int)).mean() for s in (0.0, 0.1, 1.0)]
        if place == 0:
            assert far == [0, 0, 0]
        elif place > 2:  # the first two spread the range, however strong
            assert far[0] == 0 and far[1] <= far[2] and far[2] > 1
        assert way(image.convert("L"), -0.7).size == image.size


def test_a_crop_takes_the_area_it_says():
    across = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))[None, ..., None]
    spans = []
    for seed in range(60):
        cut = augment_pixels.apply(["resized_crop:0.25"], across, np.random.default_rng(seed))[0, 32, :, 0].astype(
            float
        )
        spans.append((cut[-1] - cut[0]) / 255)  # share of the width that is left
    assert 0.4 < min(spans) < 0.6 and max(spans) <= 1


def test_figures_behind_augmentations():
    images = np.random.default_rng(0).standard_normal((8, 16, 16, 3)).astype("float32")
    targets = np.eye(8, dtype="float32")
    for entry in ("shift:2", "erase:1", "mixup:0.8", "cutmix:0.5", "mixup_or_cutmix:0.8:1"):
        changed, _ = augment.apply([entry], images, targets, np.random.default_rng(3))
        assert changed.shape == images.shape and not np.array_equal(changed, images)
    kept, _ = augment.apply(["erase:0"], images, targets, np.random.default_rng(3))
    assert np.array_equal(kept, images)
    moved, _ = augment.apply(["shift:2"], np.ones_like(images), targets, np.random.default_rng(3))
    assert (moved[:, 2:-2, 2:-2] == 1).all() and (moved == 0).any()
    boxes = np.tile(np.float32([2, 2, 12, 12, 0]), (8, 1, 1))
    whole, _ = augment_boxes.mosaic(images, boxes, np.random.default_rng(0), 1.0, 0.1, 2.0)
    none, same = augment_boxes.mosaic(images, boxes, np.random.default_rng(0), 0.0)
    assert all(not np.array_equal(one, two) for one, two in zip(whole, images, strict=True))
    assert np.array_equal(none, images) and np.array_equal(same[:, :1], boxes)
    for wrong in ("flip:1", "mixup:x", "mixup:1:2", "erase:-1", "twirl"):
        with pytest.raises(ValueError, match="augment must be among resized_crop"):
            recipes.Recipe("m", "d", augment=(wrong,))


def test_the_last_epochs_are_not_mixed():
    data = zoo.data.load("digits")
    recipe = recipes.Recipe("lenet", "digits", epochs=3, unmixed=1, augment=("resized_crop", "mixup:1"), batch_size=64)
    batches = Batches(data, recipe)
    for epoch, mixed in ((0, True), (1, True), (2, False)):
        batches.at(epoch)
        assert bool(((batches[0][1] > 0).sum(axis=1) > 1).any()) == mixed


def test_pixels_are_not_augmented_where_targets_would_have_to_move():
    recipe = recipes.Recipe("unet", "shapes", augment=("resized_crop",))
    with pytest.raises(
        ValueError, match="augment 'resized_crop' is for images of one class each, the task is segmentation"
    ):
        Batches(zoo.data.load("shapes"), recipe)
