"""Numerical gradient check: backpropagation against finite differences, for each layer and for the whole loss.

Central differences along directions, (f(w + hd) - f(w - hd)) / 2h, in float64 where the model can run in it; see
Goodfellow, Bengio & Courville, "Deep Learning" (2016), section 11.5. Each layer is checked by itself, between its own
input and a random weighing of its outputs, so that a mistake is found in the layer that makes it and not in all layers
before it; then the loss is checked for the weights of each layer, which also sees what stands between the layers.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from zoo import tasks
from zoo.compress.costs import graph, nodes
from zoo.evaluate.debugging.subject import few_rows, subject
from zoo.evaluate.findings import Finding, listed, over, table
from zoo.evaluate.report import defined
from zoo.training.gradients import gradients

# type: steps along a direction of length one; largest relative error that is no mistake; how far the slopes to either
# side may differ before a point counts as a kink. A mistake shows at every step; rounding, and functions that a backend
# only approximates (XLA's tanh in float64 is good to 1e-7), show at short steps, and kinks and curves at long ones.
SETTINGS = {"float64": ((1e-5, 1e-3, 1e-2), 1e-4, 1e-2), "float32": ((3e-3, 3e-2), 0.1, 0.5)}
NUDGE = 1e-2  # standard deviation of what stands for weights of exactly zero while the check runs


@dataclass(frozen=True)
class LayerCheck:
    """Relative errors of one layer, 0 for equal and 1 for nothing in common; NaN where there is nothing to check.

    Attributes:
        layer: its name, "loss" for the loss itself.
        kind: its class.
        own: largest error of its own backward pass, from its outputs to its inputs and weights.
        worst: the tensor with that error: "input 0", or a weight's name.
        whole: error of the gradient of the whole loss for its weights.
    """

    layer: str
    kind: str
    own: float
    worst: str
    whole: float


@dataclass(frozen=True)
class GradientCheck:
    """What the check found.

    Attributes:
        model: its name.
        precision: "float64" or "float32".
        tolerance: largest relative error that is no mistake.
        layers: one row per layer in the order they run, the loss last.
        findings: what is wrong.
    """

    model: str
    precision: str
    tolerance: float
    layers: tuple[LayerCheck, ...]
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        rows = [("layer", "kind", "own backward", "in", "whole loss")]
        rows += [(row.layer, row.kind, _shown(row.own), row.worst, _shown(row.whole)) for row in self.layers]
        clean = f"backpropagation and finite differences agree within {self.tolerance:g} in every layer"
        return (
            f"{self.model}, largest relative error of the gradient in {self.precision}\n"
            f"{table(rows)}\n{listed(self.findings, clean)}"
        )

    def to_json(self) -> str:
        """All figures as JSON text; what was not checked is null."""
        return json.dumps(defined(asdict(self)), indent=2) + "\n"

    def plot(self, path: str | Path) -> Path:
        """Picture of the errors by layer."""
        from zoo.evaluate.debugging import pictures

        return pictures.differences(self, path)


def check_gradients(
    model: Any,
    data: Any = None,
    *,
    rows: int = 4,
    directions: int = 3,
    precision: str | None = None,
    tolerance: float | None = None,
    loss: Any = None,
    seed: int = 0,
    progress: bool = False,
    **overrides: Any,
) -> GradientCheck:
    """Compare the gradients of every layer with finite differences, in inference mode of dropout and batch statistics.

    Args:
        model: public name, run folder, run or Keras model; it stays as it is.
        data: name, path or `zoo.data.Data`, as in `zoo.train`.
        rows: training rows it is checked on.
        directions: directions per tensor; the first is the gradient itself, the others are random.
        precision: "float64" or "float32"; None takes float64, and float32 where a layer cannot run in it.
        tolerance: largest relative error that is no mistake; 1e-4 in float64, 0.1 in float32 if None.
        loss: `(targets, outputs) -> scalar`, the recipe's if None.
        seed: of the directions.
        progress: show a progress bar.
        overrides: settings of the recipe, or arguments of the builder of a named model.

    Returns:
        Errors per layer, and where the mistake is.

    Raises:
        TypeError: the model is not functional, so its layers have no known order.
        ValueError: a number is out of range, model and data do not fit together, or the task's loss is not smooth.
    """
    if rows < 1 or directions < 1 or precision not in (None, *SETTINGS):
        raise ValueError(
            f"the check needs a row, a direction and one of {', '.join(SETTINGS)}, "
            f"got rows={rows}, directions={directions}, precision={precision!r}"
        )
    run = subject(model, data, **overrides)
    signature, task = run.signature, tasks.get(run.signature.task)
    if not task.smooth:
        raise ValueError(
            f"finite differences say nothing of {run.model.name!r}: {signature.task} chooses anew with every weight what "
            "answers for what, and passes no gradient through that choice on purpose; see zoo debug flow and zoo debug overfit"
        )
    plain = graph(task.learner(run.model, run.data, run.recipe))
    chosen = few_rows(run, rows)
    part = run.data.train
    x = signature.inputs({key: values[chosen] for key, values in part.x.items()})
    y = task.encode(signature.targets(part.y[chosen]), signature.outputs)

    def measured(kind: str) -> list[LayerCheck]:
        with _floats(kind):
            network = _retyped(plain, kind)
            own = loss or task.loss_for(network, run.recipe.loss, run.recipe.label_smoothing)
            if isinstance(loss, keras.losses.Loss):
                own = type(loss).from_config(loss.get_config())  # one that computes in this float type
            return _measure(network, x.astype(kind), y.astype(kind), own, kind, directions, seed, progress)

    notes = []
    kind = precision or "float64"
    try:
        found = measured(kind)
    except Exception as error:  # layers of other people fail in their own ways
        if precision is not None:
            raise
        kind = "float32"
        found = measured(kind)
        notes = [
            Finding(
                "precision",
                f"a layer cannot run in float64 ({str(error).strip().splitlines()[0][:120]}), so errors below "
                f"{SETTINGS[kind][1]:g} are not seen",
                "make its constants follow its compute_dtype",
            )
        ]
    limit = SETTINGS[kind][1] if tolerance is None else tolerance
    return GradientCheck(run.recipe.model, kind, limit, tuple(found), tuple(_findings(found, limit) + notes))


def _measure(
    network: Any, x: np.ndarray, y: np.ndarray, loss: Any, kind: str, directions: int, seed: int, progress: bool
) -> list[LayerCheck]:
    generator = np.random.default_rng(seed)
    for variable in network.trainable_variables:  # fresh biases of zero put whole feature maps on the kink of ReLU
        start = keras.ops.convert_to_numpy(variable)
        variable.assign(np.where(start == 0, NUDGE * generator.normal(size=start.shape), start))
    plain = graph(network)
    calls: dict[int, Any] = {}
    for node in nodes(plain):
        calls.setdefault(id(node.operation), node)  # a layer that is called twice is checked at its first call
    tensors = {id(t): t for node in calls.values() for t in (*node.input_tensors, *node.output_tensors)}
    values = keras.Model(plain.input, list(tensors.values()))(x, training=False)
    values = dict(zip(tensors, map(keras.ops.convert_to_numpy, keras.tree.flatten(values)), strict=True))

    def error(variables: list, value: Callable, size: float, slopes: list) -> float:
        return _error(variables, slopes, value, size, kind, directions, generator)

    rows = []
    for node in over(list(calls.values()), "layers", progress):
        inputs = list({id(t): t for t in node.input_tensors}.values())
        local = _Held(
            keras.Model(inputs if len(inputs) > 1 else inputs[0], list(node.output_tensors)),
            [values[id(t)] for t in inputs],
        )
        weighing = [generator.normal(size=values[id(t)].shape).astype(kind) for t in node.output_tensors]
        own, worst = _largest(local, _weighted, weighing, error)
        rows.append([node.operation.name, type(node.operation).__name__, own, worst, float("nan"), node.operation])

    outputs = keras.ops.convert_to_numpy(network(x, training=False))
    end = [*_largest(_Held(None, [outputs]), loss, y, error)]
    start, slopes = gradients(network, loss, x, y)
    slopes = {id(v): slope for v, slope in zip(network.trainable_variables, slopes, strict=True)}

    def value() -> float:
        return _scalar(loss(y, network(x, training=False)))

    for row in over(rows, "whole loss", progress):
        own = [v for v in getattr(row[5], "trainable_variables", []) if id(v) in slopes]
        if own:
            row[4] = error(own, value, abs(start), [slopes[id(v)] for v in own])
    return [*(LayerCheck(*row[:5]) for row in rows), LayerCheck("loss", "loss", *end, float("nan"))]


def _largest(local: Any, loss: Any, y: Any, error: Callable) -> tuple[float, str]:
    """The largest error among the inputs and weights of a layer that holds its inputs, and where it is."""
    nothing = np.zeros((1, 1), "float32")
    start, slopes = gradients(local, loss, nothing, y)
    size = abs(start) if loss is not _weighted else _scalar(_weighted(y, local(nothing), absolute=True))
    worst, where = float("nan"), "-"
    inputs = set(map(id, local.held))
    for variable, slope in zip(local.trainable_variables, slopes, strict=True):
        found = error([variable], lambda: _scalar(loss(y, local(nothing))), size, [slope])
        if not np.isnan(found) and not found <= worst:
            worst, where = found, variable.name.replace("_", " ") if id(variable) in inputs else variable.name
    return worst, where


def _error(
    variables: list,
    slopes: list[np.ndarray],
    value: Callable[[], float],
    size: float,
    kind: str,
    directions: int,
    generator: np.random.Generator,
) -> float:
    """Largest relative error of the slopes of some variables, moved together; NaN where every direction meets a kink.

    Args:
        size: sum of the magnitudes that `value` adds up, which decides its rounding error.
    """
    steps, tolerance, kink = SETTINGS[kind]
    before = [keras.ops.convert_to_numpy(v) for v in variables]
    middle = value()
    errors = []
    for index in range(directions):
        ways = slopes if index == 0 else [generator.normal(size=s.shape) for s in slopes]
        length = np.sqrt(sum(float(np.sum(np.square(way, dtype="float64"))) for way in ways))
        if not np.isfinite(length):
            return float("inf")
        if length == 0:  # the gradient is zero; random directions tell whether that is right
            continue
        ways = [way / length for way in ways]
        expected = sum(float(np.sum(slope * way)) for slope, way in zip(slopes, ways, strict=True))
        found = []
        for step in steps:
            ends = []
            for sign in (1, -1):
                for variable, start, way in zip(variables, before, ways, strict=True):
                    variable.assign(start + sign * step * way)
                ends.append(value())
            sides = (ends[0] - middle) / step, (middle - ends[1]) / step
            numerical = (sides[0] + sides[1]) / 2
            noise = 8 * np.finfo(kind).eps * max(size, abs(middle)) / step
            scale = max(abs(expected), abs(numerical), noise / tolerance, np.finfo(kind).tiny)
            if not np.isfinite(numerical):
                found.append(float("inf"))
            elif abs(sides[0] - sides[1]) <= kink * scale:  # a kink, such as ReLU at zero, has no one slope
                found.append(abs(expected - numerical) / scale)
            if found and found[-1] <= tolerance:
                break
        if found:
            errors.append(min(found))
        for variable, start in zip(variables, before, strict=True):
            variable.assign(start)
    return max(errors, default=float("nan"))


class _Held(keras.Model):
    """A model that holds its inputs as trainable weights, so that they get gradients as weights do.

    Args:
        inner: functional model, None to give back the only input.
        values: its inputs; integers are held without a gradient.
    """

    def __init__(self, inner: Any, values: list[np.ndarray]) -> None:
        super().__init__()
        self.inner, self.held = inner, []
        for index, value in enumerate(values):
            floats = value.dtype.kind == "f"
            held = self.add_weight(
                value.shape, "zeros", dtype=str(value.dtype), trainable=floats, name=f"input_{index}"
            )
            held.assign(value)
            self.held.append(held)
        self.built = True

    def call(self, _: Any, training: bool = False) -> Any:
        values = [held + 0 for held in self.held]  # tensors: TensorFlow's custom gradients take no variables
        if self.inner is None:
            return values[0]
        return self.inner(values if len(values) > 1 else values[0], training=training)


def _weighted(weighing: list[np.ndarray], outputs: Any, absolute: bool = False) -> Any:
    """Sum of all outputs, each weighed; or of the magnitudes of its parts."""
    parts = [
        keras.ops.convert_to_tensor(weights) * keras.ops.cast(out, str(weights.dtype))
        for weights, out in zip(weighing, keras.tree.flatten(outputs), strict=True)
    ]
    return sum(keras.ops.sum(keras.ops.abs(part) if absolute else part) for part in parts)


def _scalar(value: Any) -> float:
    return float(keras.ops.convert_to_numpy(value))


@contextlib.contextmanager
def _floats(kind: str) -> Iterator[None]:
    """Lets Keras make new tensors of a float type; JAX cuts float64 short unless it is told not to."""
    before = keras.config.floatx()
    keras.config.set_floatx(kind)
    jax = None
    if keras.backend.backend() == "jax":
        import jax

        wide = jax.config.jax_enable_x64
        jax.config.update("jax_enable_x64", kind == "float64")
    try:
        yield
    finally:
        keras.config.set_floatx(before)
        if jax:
            jax.config.update("jax_enable_x64", wide)


def _retyped(model: Any, kind: str) -> Any:
    """A copy of a plain functional model with the same weights whose layers compute in a float type."""

    def retyped(value: Any) -> Any:
        if isinstance(value, dict):
            if value.get("class_name") in ("DTypePolicy", "FloatDTypePolicy"):
                return {**value, "config": {"name": kind}}
            return {key: kind if key == "dtype" and _is_float(item) else retyped(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(retyped, value))
        return value

    def copied(layer: Any) -> Any:
        return layer.__class__.from_config(retyped(layer.get_config()))

    def placed(tensor: Any) -> Any:
        return keras.Input(
            batch_shape=tensor.shape, dtype=kind if _is_float(tensor.dtype) else tensor.dtype, name=tensor.name
        )

    inputs = keras.tree.map_structure(placed, model.input)
    copy = keras.models.clone_model(model, input_tensors=inputs, clone_function=copied)
    copy.set_weights(model.get_weights())
    return copy


def _is_float(value: Any) -> bool:
    return isinstance(value, str) and "float" in value


def _findings(rows: list[LayerCheck], limit: float) -> list[Finding]:
    found = []
    for row in rows:
        if row.own > limit:
            found.append(
                Finding(
                    row.layer,
                    f"the gradient of its {row.worst} is wrong by {row.own:.2g} of its size",
                    "correct the backward pass of this layer: a custom_gradient, a stop_gradient, or rounding "
                    "(fine if it passes gradients on purpose)"
                    if row.layer != "loss"
                    else "correct the loss: it stops or bends the gradient",
                )
            )
    if not found:
        wrong = [row.layer for row in rows if row.whole > limit]
        if wrong:
            found.append(
                Finding(
                    wrong[-1],
                    f"the gradient of the loss for its weights is wrong by {max(row.whole for row in rows if row.whole > limit):.2g} "
                    "of its size, while each layer by itself is right",
                    "look at what stands between this layer and the loss",
                )
            )
    return found


def _shown(error: float) -> str:
    return "-" if np.isnan(error) else f"{error:.1e}"
