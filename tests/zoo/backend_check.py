"""Run by test_backends.py in a process of its own: trains every builder and resumes a killed run on one backend.

With a second argument "detectors" it trains those alone, whose compilation takes minutes on JAX.
"""

import contextlib
import dataclasses
import functools
import json
import os
import sys
from pathlib import Path

import keras
import numpy as np
from PIL import Image
from stopping import Stop

import zoo
from zoo import data, registry
from zoo.data import lazy
from zoo.recipes import Recipe
from zoo.training import fit
from zoo.training.gradients import gradients
from zoo.training.run import _of_tokens as of_tokens

load = functools.cache(data.load)


def first(split, rows):
    """A part of a split."""
    return dataclasses.replace(split, x={name: values[:rows] for name, values in split.x.items()}, y=split.y[:rows])


def every_builder(*, detectors=False):
    found = {}
    images = load("digits")
    table = load("breast_cancer")
    names = {entry.family: name for name, entry in reversed(registry.entries().items())}.values()
    for name in names:
        entry = registry.entry(name)
        if ("detection" in entry.tasks) is not detectors:
            continue
        splits = images if "height" in next(iter(entry.inputs.values())).axes else table
        if splits.signature.task not in entry.tasks:  # whose targets no other data have
            options = {key: entry.recipe[key] for key in ("task", "tokenizer") if key in entry.recipe}
            splits = data.scaled(load(entry.data, **options), entry.recipe.get("scaling", ""))
        small = dataclasses.replace(splits, train=first(splits.train, 96), validation=first(splits.validation, 96))
        recipe = Recipe(name, splits.name, batch_size=16, learning_rate=0.01).override(**{**entry.recipe, "epochs": 3})
        arguments = {
            **entry.tiny,
            "input_shape": splits.signature.preprocess.shape,
            **({"classes": splits.signature.outputs} if "classes" in entry.signature else {}),
            **of_tokens(entry, splits.signature),
        }
        keras.utils.set_random_seed(0)
        model = entry.build(**arguments)
        history = fit(model, small, recipe, quiet=True)
        found[name] = [row["loss"] for row in history]
    return found


def resumed_equals_whole(folder, **given):
    settings = dict(epochs=3, batch_size=64, augment=("noise",), dropout=0.2, schedule="one_cycle", quiet=True) | given
    whole = zoo.train("mlp", data="digits", out=folder / "whole", **settings)
    try:
        zoo.train("mlp", data="digits", out=folder / "killed", save_every=5, callbacks=(Stop(29),), **settings)
        raise AssertionError("the run was not killed")
    except KeyboardInterrupt:
        pass
    again = zoo.train("mlp", data="digits", out=folder / "killed", resume=True, quiet=True)
    gap = max(
        np.abs(np.asarray(a) - np.asarray(b)).max()
        for a, b in zip(whole.model.weights, again.model.weights, strict=True)
    )
    return {
        "gap": float(gap),
        "losses": [[row["loss"] for row in run.history] for run in (whole, again)],
        "accuracies": [[row["accuracy"] for row in run.history] for run in (whole, again)],
    }


def let_go_equals_whole(folder):
    """Largest gap between weights of a run whose parts begin to learn one by one, and of the same run killed between."""
    splits = load("digits")
    recipe = Recipe("mlp", "digits", epochs=3, batch_size=256, freeze="backbone", unfreeze_every=1, rate_decay=0.5)

    def weights(**settings):
        keras.utils.set_random_seed(0)
        model = zoo.get("mlp", input_shape=splits.signature.preprocess.shape, classes=10, width=(16, 8))
        fit(model, splits, recipe, quiet=True, **settings)
        return model.get_weights()

    whole, gaps = weights(), []
    for batch in (8, 10):  # two epochs have 5 batches each, so the second is killed behind its last save
        place = folder / f"at{batch}"
        place.mkdir(parents=True)
        with contextlib.suppress(KeyboardInterrupt):
            weights(folder=place, save_every=2, callbacks=(Stop(batch),))
            raise AssertionError("the run was not killed")
        pairs = zip(whole, weights(folder=place, resume=True), strict=True)
        gaps.append(max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs))
    return gaps


def pictures_in_files(folder):
    """Loss of each epoch on pictures that stay in their files, and largest gap to weights learnt with them in memory."""
    os.environ["ZOO_CACHE"] = str(folder / "cache")
    random = np.random.default_rng(0)
    for label, colour in (("red", (200, 60, 60)), ("blue", (60, 60, 200))):
        (folder / "pictures" / label).mkdir(parents=True)
        for row in range(40):
            pixels = np.clip(colour + random.normal(0, 60, (12, 12, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / label / f"{row}.png")
    settings = dict(
        epochs=4, batch_size=16, input_shape=(8, 8, 3), width=(4, 6, 12, 8), learning_rate=0.01, augment=("flip", "colour"),
        schedule="milestones:3", freeze="stage0", unfreeze_every=2, rate_decay=0.5, quiet=True,
    )  # fmt: skip
    runs = []
    for share in (0, 1):
        lazy.SHARE = share
        runs.append(zoo.train("lenet", folder / "pictures", out=folder / f"share{share}", **settings))
    assert isinstance(runs[0].data.train.x["image"], lazy.Pictures)
    assert isinstance(runs[1].data.train.x["image"], np.ndarray)
    pairs = zip(*(run.model.get_weights() for run in runs), strict=True)
    gap = max(float(np.abs(files - memory).max()) for files, memory in pairs)
    return {"losses": [row["loss"] for row in runs[0].history], "gap": gap}


def pruned_share():
    """Share of the arithmetic that is left after pruning by gradients to a half, through recurrent and dense layers."""
    splits = load("digits")
    part = first(splits.train, 32)
    rows = keras.Input(splits.signature.preprocess.shape)
    x = keras.layers.Reshape((-1, 8))(rows)
    x = keras.layers.GRU(12)(keras.layers.Bidirectional(keras.layers.LSTM(8, return_sequences=True))(x))
    model = keras.Model(rows, keras.layers.Dense(10, name="logits")(x))
    small = zoo.compress.prune_channels(
        model, macs=0.5, importance="taylor", scope="global", data=dataclasses.replace(splits, train=part)
    )
    small(splits.signature.inputs(part.x))
    return zoo.compress.macs(small) / zoo.compress.macs(model)


def straight_through():
    """Largest gap between the gradient through rounded weights and activations and the one computed by hand."""
    random = np.random.default_rng(0)
    x = random.normal(size=(6, 4)).astype("float32")
    inputs = keras.Input((4,), name="inputs")
    plain = keras.Model(inputs, keras.layers.Dense(3, use_bias=False, name="logits")(inputs))
    kernel = random.normal(size=(4, 3)).astype("float32")
    plain.set_weights([kernel])
    model = zoo.compress.quantization_aware(plain, x[:3], weight_bits=3, activation_bits=4)
    _, [found] = gradients(
        model, lambda y, out: keras.ops.sum(keras.ops.square(out - y)), x, np.ones((6, 3), "float32")
    )
    weight_step = np.abs(kernel).max(axis=0) / 3
    rounded = np.round(kernel / weight_step) * weight_step
    low, high = min(x[:3].min(), 0), max(x[:3].max(), 0)
    step = (high - low) / 15
    zero = np.round(-low / step)
    seen = (np.clip(np.round(x / step) + zero, 0, 15) - zero) * step
    return float(np.abs(found - seen.T @ (2 * (seen @ rounded - 1))).max())


def compressed_training(folder):
    """Scores of a model, the same learning under rounding, and a student of it."""
    run = zoo.train("mlp", data="iris", out=folder / "teacher", epochs=8, width=(12, 8), learning_rate=0.01, quiet=True)
    tuned = zoo.compress.tune_quantized(run, folder / "tuned", epochs=2, weight_bits=4, quiet=True)
    student = zoo.compress.distill(
        run, "mlp", out=folder / "student", epochs=8, features=True, learning_rate=0.02, quiet=True
    )
    losses = [row["loss"] for row in student.history]
    return {"teacher": run.metrics["test"], "quantized": tuned.metrics["quantized"], "losses": losses}


if __name__ == "__main__":
    if sys.argv[2:] == ["detectors"]:
        print(json.dumps(every_builder(detectors=True)))
        sys.exit()
    report = {
        "backend": keras.backend.backend(),
        "losses": every_builder(),
        "pruned": pruned_share(),
        "straight_through": straight_through(),
        "compressed": compressed_training(Path(sys.argv[1])),
        "resume": resumed_equals_whole(Path(sys.argv[1])),
        "accumulated": resumed_equals_whole(
            Path(sys.argv[1]) / "accumulated",
            accumulate=2,
            averaging=0.9,
            schedule="poly:0.5",
            augment=("noise", "mixup:0.4"),
            unmixed=1,
        ),
        "pictures": pictures_in_files(Path(sys.argv[1])),
        "let_go": let_go_equals_whole(Path(sys.argv[1]) / "let_go"),
    }
    (Path(sys.argv[1]) / "report.json").write_text(json.dumps(report))
