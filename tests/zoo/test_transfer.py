"""Training that begins with pretrained weights: which parts learn, from when on, and how fast."""

import dataclasses
import re

import keras
import numpy as np
import pytest
from stopping import Stop

import zoo
from zoo import data as datasets
from zoo import recipes, registry
from zoo.backbone import before_task, parts
from zoo.training import find_learning_rate, fit, optimisers, tune
from zoo.training.transfer import Freezing

SMALL = {"depth": (1, 1), "width": 4, "bottleneck": False}
LENET = {"input_shape": (8, 8, 1), "width": (2, 3, 6, 5)}  # compiled faster than a network with normalisation


@pytest.fixture(scope="module")
def small():
    digits = datasets.load("digits")
    cut = {
        name: dataclasses.replace(part, x={"image": part.x["image"][:96]}, y=part.y[:96])
        for name, part in digits.splits.items()
    }
    return dataclasses.replace(digits, **cut)


class Watch(keras.callbacks.Callback):
    """Every weight at the end of each epoch, and before the first."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_begin(self, logs=None):
        if not self.seen:
            self.on_epoch_end(0)

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append({weight.path: np.asarray(weight).copy() for weight in self.model.weights})

    def moved(self):
        """Beginnings of the layers' names whose weights changed, for each epoch."""
        return [
            sorted({path.split("_")[0].split("/")[0] for path in now if not np.array_equal(was[path], now[path])})
            for was, now in zip(self.seen, self.seen[1:], strict=False)
        ]


def _model(small):
    keras.utils.set_random_seed(0)
    return registry.get("resnet18", input_shape=small.signature.preprocess.shape, classes=10, **SMALL)


def test_parts_are_named_by_the_layers():
    def names(name):
        return {part: len(layers) for part, layers in parts(registry.get(name, **registry.entry(name).tiny)).items()}

    assert list(names("resnet50")) == ["stem", "stage0", "stage1", "head"]
    assert list(names("lenet")) == ["stage0", "stage1", "hidden0", "top", "head"]
    assert list(names("mlp")) == ["hidden0", "hidden1", "head"]
    model = registry.get("vgg11", **registry.entry("vgg11").tiny)
    found = [layer for layers in parts(model).values() for layer in layers]
    assert found == [layer for layer in model.layers if layer.weights]


@pytest.mark.parametrize(
    ("name", "still", "learns", "begins"),
    [
        ("yolo_nano", ["stem", "stage0", "stage1", "stage2", "stage3"], ["neck", "head"], r"neck|head\d"),
        ("faster_rcnn", ["stem", "stage0", "stage1"], ["pyramid", "head"], r"pyramid\d?|anchors|head|features"),
        ("unet", ["down0", "down1", "bottom"], ["up1", "up0", "head"], r"up\d|logits"),
    ],
)
def test_a_backbone_ends_before_what_makes_boxes_or_masks_of_its_maps(name, still, learns, begins):
    model = registry.get(name, **registry.entry(name).tiny)
    found = parts(model)
    assert list(found) == [*still, *learns]
    assert [layer for layers in found.values() for layer in layers] == [
        layer for layer in model.layers if layer.weights
    ]
    recipe = recipes.Recipe(name, "d", freeze="backbone", unfreeze_every=1, rate_decay=0.5, epochs=20)
    freezing = Freezing(model, recipe)
    assert freezing.starts == list(range(1, len(still) + 1))

    freezing.begin(0)
    moving = {re.split("[_/]", variable.path)[0] for variable in model.trainable_variables}
    assert all(re.fullmatch(begins, part) for part in moving)
    assert sum(len(layer.trainable_weights) for part in learns for layer in found[part]) == len(
        model.trainable_variables
    )
    freezing.begin(1)
    assert [part for part, layers in found.items() if not layers[0].trainable] == still[:-1]
    freezing.end()

    rates = dict(
        zip((v.path for v in model.trainable_variables), freezing.factors(model.trainable_variables), strict=True)
    )
    for distance, part in enumerate(reversed([*still, *learns])):
        of_part = {rates[weight.path] for layer in found[part] for weight in layer.trainable_weights}
        assert of_part == {0.5**distance}, part


def test_the_last_convolution_of_a_classifier_is_backbone_and_not_head():
    found = parts(registry.get("mobilenet_v2", **registry.entry("mobilenet_v2").tiny))
    assert [layer.name for layer in found["head"]] == ["logits"] and "top" in before_task(found)


def test_a_schedule_is_asked_once_a_step(monkeypatch):
    asked = []
    monkeypatch.setattr(optimisers.Schedule, "__call__", lambda self, step: asked.append(step) or 0.5)
    recipe = recipes.Recipe("m", "d", optimizer="adamw", weight_decay=0.1)
    variables = [keras.Variable(np.ones(2, np.float32)) for _ in range(20)]
    made = optimisers.optimiser(recipe, 10)
    made.build(variables)
    asked.clear()
    made.apply([np.zeros(2, np.float32)] * 20, variables)
    assert len(asked) == 2  # for the decay of all, and for the step of all
    np.testing.assert_allclose([np.asarray(variable) for variable in variables], 1 - 0.1 * 0.5, rtol=1e-6)


def test_what_is_frozen_stands_still_with_its_statistics(small):
    model, watch = _model(small), Watch()
    recipe = recipes.Recipe("resnet18", "digits", epochs=1, freeze="stage0", weight_decay=0.1)
    fit(model, small, recipe, callbacks=(watch,), quiet=True)
    assert watch.moved() == [["logits", "stage1"]]
    assert all(layer.trainable for layer in model.layers)


def test_parts_are_let_go_from_the_head_to_the_input(small):
    model, watch = _model(small), Watch()
    recipe = recipes.Recipe("resnet18", "digits", epochs=4, freeze="backbone", unfreeze_every=1)
    history = fit(model, small, recipe, callbacks=(watch,), quiet=True)
    assert watch.moved() == [
        ["logits"],
        ["logits", "stage1"],
        ["logits", "stage0", "stage1"],
        ["logits", "stage0", "stage1", "stem"],
    ]
    assert [row["epoch"] for row in history] == [0, 1, 2, 3]


@pytest.mark.parametrize("killed", [2, 3])  # where another part begins to learn, and between two
def test_a_killed_run_goes_on_exactly_while_parts_are_let_go(small, tmp_path, killed):
    settings = dict(
        epochs=5, freeze="backbone", unfreeze_every=2, rate_decay=0.5, batch_size=48, schedule="one_cycle", quiet=True
    )
    whole = zoo.train("lenet", small, out=tmp_path / "whole", **settings, **LENET)
    with pytest.raises(KeyboardInterrupt):
        zoo.train("lenet", small, out=tmp_path / "cut", callbacks=(Stop(epoch=killed),), **settings, **LENET)
    again = zoo.train("lenet", small, out=tmp_path / "cut", resume=True, quiet=True)
    assert [row["loss"] for row in again.history] == [row["loss"] for row in whole.history]
    for ours, theirs in zip(again.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", recipes.OPTIMIZERS)
def test_each_variable_learns_at_its_own_rate(name):
    """A factor does what a learning rate times that factor does, decay included."""

    def after(rate, factors):
        variables = [keras.Variable(np.ones(3, np.float32)) for _ in factors or (1,)]
        recipe = recipes.Recipe("m", "d", optimizer=name, learning_rate=rate, schedule="constant", weight_decay=0.1)
        made = optimisers.optimiser(recipe, 10, 0, factors)
        made.build(variables)
        for _ in range(3):
            made.apply([np.full(3, 2.0, np.float32)] * len(variables), variables)
        return [np.asarray(variable)[0] for variable in variables]

    quarter, whole = after(0.1, (0.25, 1.0))
    np.testing.assert_allclose(quarter, after(0.025, ()), rtol=1e-6)
    np.testing.assert_allclose(whole, after(0.1, ()), rtol=1e-6)


def test_rates_fall_from_the_head_to_the_input(small):
    model = _model(small)
    freezing = Freezing(model, recipes.Recipe("m", "d", rate_decay=0.5))
    found = dict(
        zip((v.path for v in model.trainable_variables), freezing.factors(model.trainable_variables), strict=True)
    )
    assert found["logits/kernel"] == 1
    assert found["stage1_block0_conv0/kernel"] == 0.5
    assert found["stage0_block0_conv0_norm/gamma"] == 0.25
    assert found["stem_conv/kernel"] == 0.125


def test_a_schedule_goes_on_when_a_part_is_let_go():
    recipe = recipes.Recipe("m", "d", epochs=10, schedule="cosine", learning_rate=0.1)
    whole, rest = optimisers.optimiser(recipe, 20), optimisers.optimiser(recipe, 20, done=60)
    assert float(rest._learning_rate(5)) == pytest.approx(float(whole._learning_rate(65)))


def test_a_range_test_leaves_still_what_stands_still(small):
    recipe = recipes.Recipe("resnet18", "digits", freeze="backbone", batch_size=16, optimizer="adam")
    model = _model(small)
    assert find_learning_rate(model, small, recipe, low=1e-4, steps=30).suggested > 0
    assert all(layer.trainable for layer in model.layers)


def test_tuning_a_run_lets_everything_learn(small, tmp_path):
    run = zoo.train("lenet", small, out=tmp_path / "run", epochs=1, freeze="backbone", quiet=True, **LENET)
    tuned = tune(run, out=tmp_path / "tuned", epochs=1, quiet=True)
    assert tuned.recipe.freeze == ""
    assert not np.array_equal(tuned.model.get_layer("stage0_conv").get_weights()[0],
                              run.model.get_layer("stage0_conv").get_weights()[0])  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": "stage7"}, r"freeze names the last part that stands still, one of stem, stage0, stage1, backbone"),
        ({"unfreeze_every": 2}, "unfreeze_every=2 has nothing to let go; say what stands still at first"),
        ({"rate_decay": 0.0}, r"rate_decay must be in \(0, 1\], got 0.0"),
        ({"freeze": "backbone", "unfreeze_every": 1, "averaging": 0.9}, "averaging goes on over all epochs"),
        ({"freeze": "backbone", "unfreeze_every": 1, "schedule": "plateau"}, "schedule 'plateau' goes on over all"),
    ],
)
def test_settings_that_cannot_be_are_refused(small, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        zoo.train("resnet18", small, out=tmp_path / "run", quiet=True, **settings, **SMALL)
