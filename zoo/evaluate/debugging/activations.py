"""What the layers of a model answer over a data set: dead and saturated units, and pictures of one row's activations.

A ReLU unit that is never above zero gets no gradient and cannot come back (Lu, Shin, Su & Karniadakis, "Dying ReLU and
Initialization", 2019, arXiv:1903.06733); a sigmoid or tanh at its end hardly gets one (Glorot & Bengio, AISTATS 2010).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from zoo.compress.costs import graph, nodes
from zoo.evaluate.debugging.subject import subject
from zoo.evaluate.findings import Finding, listed, named, over, table
from zoo.evaluate.report import defined
from zoo.registry import suggest

BATCH = 128
ENDS = {"relu": None, "sigmoid": (0.01, 0.99), "tanh": (-0.99, 0.99)}  # where a unit counts as saturated
ALMOST_ALWAYS = 0.95  # of all rows and places
SAMPLE = 20_000  # values per layer for the histograms


@dataclass(frozen=True)
class LayerUnits:
    """Units of one layer over all rows and, in a map, all places.

    Attributes:
        layer: its name.
        activation: "relu", "sigmoid", "tanh", or "" where nothing can be dead or saturated.
        units: places along the last axis.
        dead: units of a ReLU that are never above zero.
        saturated: units of a sigmoid or tanh that are at an end in `ALMOST_ALWAYS` of all cases.
        active: share of the values above zero (ReLU) or not at an end (sigmoid, tanh); NaN otherwise.
        mean, std, lowest, highest: of all values.
    """

    layer: str
    activation: str
    units: int
    dead: tuple[int, ...]
    saturated: tuple[int, ...]
    active: float
    mean: float
    std: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Activations:
    """What the layers answered.

    Attributes:
        model: its name.
        rows: rows looked at.
        layers: figures per layer, in the order they run.
        findings: what is wrong.
        maps: activations of one row by layer, without the batch axis.
        row: that row as the model sees it.
        samples: values of each layer for its histogram, drawn from all rows.
        filters: kernel of the first convolution over an image, `(height, width, in, out)`; None if there is none.
    """

    model: str
    rows: int
    layers: tuple[LayerUnits, ...]
    findings: tuple[Finding, ...]
    maps: dict[str, np.ndarray] = field(repr=False)
    row: np.ndarray = field(repr=False)
    samples: dict[str, np.ndarray] = field(repr=False)
    filters: np.ndarray | None = field(repr=False)

    def __str__(self) -> str:
        rows = [("layer", "activation", "units", "dead", "saturated", "active", "mean", "std")]
        for own in self.layers:
            dead = str(len(own.dead)) if own.activation == "relu" else "-"
            saturated = str(len(own.saturated)) if own.activation in ("sigmoid", "tanh") else "-"
            active = "-" if np.isnan(own.active) else f"{own.active:.1%}"
            rows.append(
                (own.layer, own.activation or "-", str(own.units), dead, saturated, active, f"{own.mean:.3g}",
                 f"{own.std:.3g}")
            )  # fmt: skip
        clean = "no unit is dead, no layer is saturated"
        return f"{self.model} over {self.rows} rows\n{table(rows)}\n{listed(self.findings, clean)}"

    def to_json(self) -> str:
        """The figures and findings as JSON text, without the activations themselves."""
        told = {
            "model": self.model,
            "rows": self.rows,
            "layers": [vars(own) for own in self.layers],
            "findings": [vars(finding) for finding in self.findings],
        }
        return json.dumps(defined(told), indent=2) + "\n"

    def plot(self, path: str | Path) -> Path:
        """Picture of one row's feature maps through the layers; of the histograms where there are no maps."""
        from zoo.evaluate.debugging import pictures

        if any(values.ndim == 3 for values in self.maps.values()):
            return pictures.feature_maps(self, path)
        return pictures.histograms(self, path)

    def plot_histograms(self, path: str | Path) -> Path:
        """Picture of how each layer's values are spread."""
        from zoo.evaluate.debugging import pictures

        return pictures.histograms(self, path)

    def plot_filters(self, path: str | Path) -> Path:
        """Picture of the first convolution's filters.

        Raises:
            ValueError: the model has none.
        """
        from zoo.evaluate.debugging import pictures

        if self.filters is None:
            raise ValueError(f"{self.model} has no convolution over an image, so there are no filters to draw")
        return pictures.filters(self.filters, self.model, path)


def activations(
    model: Any,
    data: Any = None,
    *,
    split: str = "train",
    rows: int = 2048,
    row: int = 0,
    layers: tuple[str, ...] | None = None,
    progress: bool = False,
    **overrides: Any,
) -> Activations:
    """Run rows through a model and look at what every layer answers.

    Args:
        model: public name, run folder, run or Keras model.
        data: name, path or `zoo.data.Data`, as in `zoo.train`.
        split: "train", "validation" or "test".
        rows: rows looked at, the first of the split.
        row: the one whose activations are kept for the picture.
        layers: names of the layers in the pictures; up to eight spread over the model if None.
        progress: show a progress bar.
        overrides: settings of the recipe, or arguments of the builder of a named model.

    Returns:
        Dead and saturated units per layer, and what the pictures show.

    Raises:
        TypeError: the model is not functional, so its layers have no known order.
        ValueError: no such split, row or layer, or model and data do not fit together.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split must be 'train', 'validation' or 'test', got {split!r}")
    run = subject(model, data, **overrides)
    part = getattr(run.data, split)
    rows = min(rows, len(part))
    if not 0 <= row < rows:
        raise ValueError(f"row must be one of the {rows} rows looked at, 0 … {rows - 1}, got {row}")
    plain = graph(run.model)
    calls = [node for node in nodes(plain) if len(node.output_tensors) == 1 and len(node.output_tensors[0].shape) > 1]
    names = [node.operation.name for node in calls]
    for name in layers or ():
        if name not in names:
            raise ValueError(f"the model has no layer {name!r}.{suggest(name, names)} It has {named(names, 40)}")
    outputs = {id(tensor) for tensor in plain.outputs}
    probe = keras.Model(plain.input, [node.output_tensors[0] for node in calls])
    counts = [
        _Count("" if id(node.output_tensors[0]) in outputs else _activation(node.operation), rows) for node in calls
    ]
    x = run.signature.inputs({key: values[:rows] for key, values in part.x.items()})
    kept: dict[str, np.ndarray] = {}
    for start in over(range(0, rows, BATCH), "rows", progress):
        here = x[start : start + BATCH]
        padded = np.concatenate([here, np.zeros((min(BATCH, rows) - len(here), *here.shape[1:]), np.float32)])
        for name, count, found in zip(names, counts, keras.tree.flatten(probe(padded, training=False)), strict=True):
            values = keras.ops.convert_to_numpy(found)[: len(here)].astype(np.float32)
            count.add(values)
            if start <= row < start + BATCH:
                kept[name] = values[row - start]
    found = tuple(count.result(name) for name, count in zip(names, counts, strict=True))
    shown = list(layers) if layers else _spread(names, kept)
    samples = {name: np.concatenate(count.sample) for name, count in zip(names, counts, strict=True)}
    return Activations(
        run.recipe.model,
        rows,
        found,
        tuple(_findings(found)),
        {name: kept[name] for name in shown},
        x[row],
        {name: samples[name] for name in (layers or _spread(names, samples))},
        _filters(run.model),
    )


class _Count:
    """Running figures of one layer.

    Args:
        activation: as in `LayerUnits`.
        rows: how many will be added in all.
    """

    def __init__(self, activation: str, rows: int) -> None:
        self.activation, self.rows = activation, rows
        self.seen, self.hits, self.moments, self.ends = 0, 0, np.zeros(2), [np.inf, -np.inf]
        self.sample: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> None:
        """Count a batch, `(rows, …, units)`."""
        flat = values.reshape(-1, values.shape[-1])
        if self.activation == "relu":
            hits = flat > 0
        elif self.activation:
            low, high = ENDS[self.activation]
            hits = (flat > low) & (flat < high)
        else:
            hits = np.zeros((1, flat.shape[1]), bool)
        self.seen += len(flat)
        self.hits = self.hits + hits.sum(axis=0)
        self.moments += [flat.sum(dtype="float64"), np.square(flat, dtype="float64").sum()]
        self.ends = [min(self.ends[0], float(flat.min())), max(self.ends[1], float(flat.max()))]
        every = max(1, values.size * self.rows // (len(values) * SAMPLE))
        self.sample.append(flat.ravel()[::every])

    def result(self, layer: str) -> LayerUnits:
        """The figures of all batches."""
        units = len(self.hits)
        share = self.hits / self.seen
        mean, square = self.moments / (self.seen * units)
        bounded = self.activation in ("sigmoid", "tanh")
        return LayerUnits(
            layer,
            self.activation,
            units,
            tuple(np.flatnonzero(share == 0).tolist()) if self.activation == "relu" else (),
            tuple(np.flatnonzero(share <= 1 - ALMOST_ALWAYS).tolist()) if bounded else (),
            float(share.mean()) if self.activation else float("nan"),
            float(mean),
            float(np.sqrt(max(square - mean**2, 0.0))),
            *self.ends,
        )


def _activation(operation: Any) -> str:
    """The bounded or one-sided activation an operation ends with, "" for none."""
    if isinstance(operation, keras.layers.ReLU):
        return "" if np.any(np.asarray(operation.negative_slope)) else "relu"
    if isinstance(operation, keras.layers.RNN):
        return ""  # its output is a gated product, which does not reach the ends of its activation
    function = getattr(operation, "activation", None)
    kinds = {
        keras.activations.relu: "relu",
        keras.activations.relu6: "relu",
        keras.activations.sigmoid: "sigmoid",
        keras.activations.hard_sigmoid: "sigmoid",
        keras.activations.tanh: "tanh",
    }
    if callable(function) and function in kinds:
        return kinds[function]
    names = {"Relu": "relu", "Relu6": "relu", "Sigmoid": "sigmoid", "HardSigmoid": "sigmoid", "Tanh": "tanh"}
    return "" if isinstance(operation, keras.layers.Layer) else names.get(type(operation).__name__, "")


def _spread(names: list[str], values: dict[str, np.ndarray], most: int = 8) -> list[str]:
    """Up to `most` layers spread over the model: those with feature maps where there are any."""
    mapped = [name for name in names if values[name].ndim == 3 and min(values[name].shape[:2]) > 1]
    chosen = list(dict.fromkeys(mapped or names))
    places = np.unique(np.linspace(0, len(chosen) - 1, min(most, len(chosen))).round().astype(int))
    return [chosen[place] for place in places]


def _filters(model: Any) -> np.ndarray | None:
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            return keras.ops.convert_to_numpy(layer.kernel)
    return None


def _findings(layers: tuple[LayerUnits, ...]) -> list[Finding]:
    found = []
    for own in layers:
        if not np.isfinite([own.lowest, own.highest, own.mean]).all():
            found.append(
                Finding(
                    own.layer,
                    "values that are not numbers, or no longer fit into float32",
                    "look for a division, logarithm or root without a floor in this layer, and lower learning_rate",
                )
            )
            break  # all later layers follow
        if own.dead:
            share = len(own.dead) / own.units
            which = named([f"unit {unit}" for unit in own.dead], 6)
            found.append(
                Finding(
                    own.layer,
                    f"{len(own.dead)} of {own.units} ReLU units are never above zero ({which})",
                    "they learn nothing more: lower learning_rate, use He initialisation or a leaky ReLU, and train again"
                    if share >= 0.1
                    else "they only cost time: remove them by channel pruning, or leave them",
                )
            )
        if len(own.saturated) >= 0.1 * own.units and own.saturated:
            found.append(
                Finding(
                    own.layer,
                    f"{len(own.saturated)} of {own.units} {own.activation} units are at an end in at least "
                    f"{ALMOST_ALWAYS:.0%} of the cases",
                    "they hardly get a gradient: standardise the inputs, initialise with smaller weights, "
                    "normalise before the activation, or use ReLU",
                )
            )
        if own.std <= 1e-6 * max(abs(own.mean), 1e-6) and not (own.activation == "relu" and own.dead):
            found.append(
                Finding(
                    own.layer,
                    f"always answers {own.mean:.3g}",
                    "nothing of the input passes here: look at its weights and at the layer before",
                )
            )
    return found
