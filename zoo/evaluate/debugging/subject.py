"""What the tools look at: a model with the splits and the recipe it is trained by."""

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from zoo import data as datasets
from zoo import recipes, registry
from zoo.data import Data
from zoo.data.rows import digests
from zoo.training.run import Run, as_run


def subject(model: Any, data: Any = None, **overrides: Any) -> Run:
    """A model with its splits and recipe; a name is built with fresh weights, all else is taken as it is.

    Args:
        model: public name, run folder, `zoo.training.Run` or Keras model.
        data: data set name, path or `zoo.data.Data`; what the model knows if None.
        overrides: settings of `zoo.recipes.Recipe`; of a name also arguments of its builder.

    Raises:
        KeyError: no such model.
        TypeError: no such setting or argument.
        ValueError: model and data do not fit together.
    """
    built = isinstance(model, str) and not Path(model).is_dir() and "/" not in model
    if not built:
        run = as_run(model, data)
        return dataclasses.replace(run, recipe=run.recipe.override(**overrides))
    entry = registry.entry(model)
    source = data if data is not None else entry.data
    name = source.name if isinstance(source, Data) else str(source)
    given = {key: value for key, value in overrides.items() if key in entry.signature}
    settings = {key: value for key, value in overrides.items() if key not in given}
    recipe = recipes.find(entry.name, name, entry.recipe).override(**settings)
    arguments = {**recipe.arguments, **given}
    shape = arguments.get("input_shape")
    splits = datasets.load(source, input_shape=shape, target=recipe.target or None, seed=recipe.seed)
    signature = splits.signature
    if signature.task not in entry.tasks:
        fitting = ", ".join(registry.names(task=signature.task)[:8])
        raise ValueError(
            f"{entry.name!r} is for {', '.join(entry.tasks)}, data {splits.name!r} is {signature.task}; try {fitting}"
        )
    arguments |= {"input_shape": signature.preprocess.shape, "classes": signature.outputs}
    keras.utils.set_random_seed(recipe.seed)
    network = registry.get(entry.name, **arguments)
    return Run(network, signature, dataclasses.replace(recipe, arguments=arguments), None, [], {}, splits)


def few_rows(run: Run, rows: int, split: str = "train") -> np.ndarray:
    """Indices of a few different rows of a split, of all classes alike, in seeded order.

    Raises:
        ValueError: the split is empty.
    """
    part = getattr(run.data, split)
    if not len(part):
        raise ValueError(f"data {run.data.name!r} has no {split} rows; give data with some")
    order = np.random.default_rng(run.recipe.seed).permutation(len(part))[: max(50 * rows, 1000)]
    seen = digests({key: values[order] for key, values in part.x.items()})
    _, first = np.unique(seen, return_index=True)
    order = order[np.sort(first)]
    if run.signature.task != "regression":
        turn = np.zeros(len(order), int)  # how many rows of the same class stand before
        for label in np.unique(part.y[order]):
            own = part.y[order] == label
            turn[own] = np.arange(own.sum())
        order = order[np.argsort(turn, kind="stable")]
    return order[:rows]


@contextlib.contextmanager
def reported_anyway() -> Iterator[None]:
    """Silences what Keras warns of during a step and the tools tell in their findings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Gradients do not exist for variables", UserWarning)
        warnings.filterwarnings("ignore", ".*does not represent logits", UserWarning)
        yield
