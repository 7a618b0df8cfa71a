"""What the tools look at: a model with the splits and the recipe it is trained by."""

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data import lazy, targets
from zoo.data.rows import digests
from zoo.training.run import Run, as_run, untrained


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
    if isinstance(model, str) and not Path(model).is_dir() and "/" not in model:
        return untrained(model, data, **overrides)
    run = as_run(model, data)
    return dataclasses.replace(run, recipe=run.recipe.override(**overrides))


def few_rows(run: Run, rows: int, split: str = "train") -> np.ndarray:
    """Indices of a few different rows of a split, of all classes alike, in seeded order.

    Raises:
        ValueError: the split is empty.
    """
    part = getattr(run.data, split)
    if not len(part):
        raise ValueError(f"data {run.data.name!r} has no {split} rows; give data with some")
    order = np.random.default_rng(run.recipe.seed).permutation(len(part))[: max(50 * rows, 1000)]
    seen = digests({key: lazy.pick(values, order) for key, values in part.x.items()})
    _, first = np.unique(seen, return_index=True)
    order = order[np.sort(first)]
    if run.signature.task != "regression":
        turn = np.zeros(len(order), int)  # how many rows of the same class stand before
        strata = targets.of(run.signature.task).strata(part.y[order], run.signature.outputs)
        for label in np.unique(strata):
            own = strata == label
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
