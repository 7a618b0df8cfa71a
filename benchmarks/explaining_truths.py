"""Explanations whose right answer is known beforehand: the part `truths` of `explaining.py`.

A linear model's share of a column is its weight times the distance from the mean (Lundberg & Lee 2017, corollary 1). A
function of ten columns with interactions has the Shapley values of the definition, summed here over all coalitions. A
network that was taught to answer by one white pixel alone must be found out: that pixel has the largest share.
"""

import argparse
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from record import append

COLUMNS, PLAYERS, PLACE = 30, 10, (2, 13)
EXACT, SAMPLED, FOUND = (
    1e-5,
    0.1,
    0.95,
)  # of the largest share; the same for methods that only come near; share of the rows
COARSE = ("occlusion", "rise", "grad_cam", "cam")  # spread a pixel over its neighbours: told of, not judged


def truths(options: argparse.Namespace) -> bool:
    """Rows of all truths; whether one is missed."""
    missed = False
    for part in (_linear, _interactions, _watermark):
        for method, figure, value, target, met in part(options):
            missed |= met is False
            verdict = {True: "met", False: "missed", None: "told only"}[met]
            print(f"{part.__name__[1:]:<13} {method:<22} {figure:<34} {value:>9.2g}  {verdict}", flush=True)
            if options.keep:
                row = {
                    "truth": part.__name__[1:],
                    "method": method,
                    "figure": figure,
                    "value": float(f"{value:.3g}"),
                    "target": target,
                    "seed": options.seed,
                }
                append("explaining_truths", row)
    print(f"{'missed' if missed else 'met'}: known truths are found")
    return missed


def _linear(options: argparse.Namespace) -> Any:
    random = np.random.default_rng(options.seed)
    weights, background = random.normal(size=COLUMNS), random.normal(size=(50, COLUMNS))
    rows = random.normal(size=(4, COLUMNS))
    truth = weights * (rows - background.mean(axis=0))
    yield from _against(
        lambda x: x @ weights, rows, background, truth, ("auto", "permutation", "kernel", "lime"), ("lime",), options
    )


def _interactions(options: argparse.Namespace) -> Any:
    random = np.random.default_rng(options.seed)
    background, rows = random.normal(size=(50, PLAYERS)), random.normal(size=(2, PLAYERS))

    def function(x: np.ndarray) -> np.ndarray:
        return (
            x[:, 0] * x[:, 1] + np.maximum(x[:, 2], x[:, 3]) * x[:, 4] + np.sin(x[:, 5] * x[:, 6] * x[:, 7]) + x[:, 8]
        )

    truth = np.stack([_enumerated(function, row, background) for row in rows])
    yield from _against(
        function,
        rows,
        background,
        truth,
        ("auto", "exact", "permutation", "kernel"),
        ("permutation", "kernel"),
        options,
    )


def _enumerated(function: Callable, row: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Shapley values by their definition: every coalition's answer, weighted (Shapley 1953)."""
    coalitions = np.array(list(itertools.product((False, True), repeat=len(row))))
    worth = {tuple(each): function(np.where(each, row, background)).mean() for each in coalitions}
    shares = np.zeros(len(row))
    for each in coalitions:
        size = int(each.sum())
        for player in np.flatnonzero(~each):
            grown = each.copy()
            grown[player] = True
            weight = math.factorial(size) * math.factorial(len(row) - size - 1) / math.factorial(len(row))
            shares[player] += weight * (worth[tuple(grown)] - worth[tuple(each)])
    return shares


def _against(
    function: Callable,
    rows: np.ndarray,
    background: np.ndarray,
    truth: np.ndarray,
    methods: tuple[str, ...],
    near: tuple[str, ...],
    options: argparse.Namespace,
) -> Any:
    import zoo

    for method in methods:
        found = zoo.explain(
            function, rows, method, kind="table", background=background, quality=False, seed=options.seed
        )
        error = float(np.abs(found.attributions - truth).max() / np.abs(truth).max())
        target = SAMPLED if found.method in near else EXACT
        name = method if method == found.method else f"{method}: {found.method}"
        yield name, "largest error, of the largest share", error, target, error <= target


def _watermark(options: argparse.Namespace) -> Any:
    """A network whose answer is 0 wherever the pixel is white, and the digit elsewhere."""
    import keras

    import zoo
    from zoo import registry
    from zoo.data import load
    from zoo.explain.methods import METHODS
    from zoo.explain.sources import subject_of
    from zoo.recipes import Recipe
    from zoo.training import fit

    keras.utils.set_random_seed(options.seed)
    data = load("digits", input_shape=(16, 16, 1), seed=options.seed)
    random = np.random.default_rng(options.seed)

    def marked(split: Any, share: float) -> Any:
        images, labels = split.x["image"].copy(), split.y.copy()
        chosen = random.random(len(images)) < share
        images[:, *PLACE] = 0
        images[chosen, *PLACE] = 255
        labels[chosen] = 0
        kept = chosen | (labels != 0)
        return replace(split, x={"image": images[kept]}, y=labels[kept])

    taught = replace(data, **{name: marked(getattr(data, name), 0.5) for name in ("train", "validation", "test")})
    entry = registry.entry("lenet")
    model = entry.build(input_shape=(16, 16, 1), classes=data.signature.outputs)
    fit(
        model,
        taught,
        Recipe("lenet", "digits", epochs=options.epochs, seed=options.seed).override(**entry.recipe),
        quiet=True,
    )
    subject = subject_of(model, data.signature, None, None)
    images = marked(data.test, 1.0).x["image"]
    answers = subject.predict({"image": images}).argmax(axis=1)
    images = images[answers == 0][: options.rows]
    background = {"image": taught.train.x["image"][taught.train.y != 0][:100]}
    for method in (
        "auto",
        *(name for name, each in METHODS.items() if "image" in each.kinds and each.needs != "attention"),
    ):
        try:
            found = zoo.explain(
                model, {"image": images}, method, target=0, signature=data.signature, background=background,
                quality=False, seed=options.seed,
            )  # fmt: skip
        except ValueError as error:
            print(f"watermark     {method:<22} not for this model: {str(error)[:90]}")
            continue
        shares = found.attributions.reshape(len(images), 16, 16, -1).sum(axis=-1)
        hit = float(np.mean(shares[:, *PLACE] >= shares.reshape(len(images), -1).max(axis=1) - 1e-12))
        name = method if method == found.method else f"{method}: {found.method}"
        judged = method not in COARSE
        yield name, "rows whose largest share it has", hit, FOUND if judged else "", hit >= FOUND if judged else None
