"""Whether a model can learn one batch by heart. One that cannot has a bug; more data or more epochs will not help it.

The test is common practice; Goodfellow, Bengio & Courville, "Deep Learning" (2016), section 11.5, give it as "fit a
tiny dataset". Everything that is meant to keep a model from learning by heart is left out: dropout, noise,
augmentation, label smoothing, weight decay and penalties.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from zoo import tasks
from zoo.evaluate.debugging.subject import few_rows, reported_anyway, subject
from zoo.evaluate.findings import Finding, listed, named, over
from zoo.evaluate.report import defined
from zoo.training.fit import Method, compile_for
from zoo.training.learners import computes_loss, loss_of

RATES = (3e-3, 3e-2, 3e-4)  # of Adam, tried in this order
NEAR_ZERO = 0.02  # of the loss of the best answer that never changes, or at the start where there is no such answer
BY_HEART = 0.95  # score that will do in that case
NOISE = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.GaussianDropout,
    keras.layers.AlphaDropout,
)


@dataclass(frozen=True)
class Overfit:
    """What came of learning one batch by heart.

    Attributes:
        model: its name.
        rows: rows of the batch.
        reached: whether the loss came near zero, or the score near one where no answer that never changes is known.
        loss: the task's loss on the batch at the end of the best try, in training mode.
        idle: loss of the best answer that never changes, or at the start for boxes and embeddings, which have none.
        goal: loss that counts as near zero.
        metric: name of `score`.
        score: on the batch itself, at the end of the best try.
        curves: loss of each step, by learning rate in the order tried.
        findings: what is wrong, most likely cause first.
        beside: what `idle` is the loss of.
    """

    model: str
    rows: int
    reached: bool
    loss: float
    idle: float
    goal: float
    metric: str
    score: float
    curves: dict[float, list[float]]
    findings: tuple[Finding, ...]
    beside: str = "an answer that never changes"

    def __str__(self) -> str:
        steps = len(list(self.curves.values())[-1])
        did = f"learns {self.rows} rows by heart" if self.reached else f"cannot learn {self.rows} rows by heart"
        return (
            f"{self.model} {did}: loss {self.loss:.4g} after {steps} steps at learning rate {list(self.curves)[-1]:g} "
            f"(goal {self.goal:.4g}, {self.beside} {self.idle:.4g}), {self.metric} {self.score:.4f}\n"
            + listed(self.findings, "nothing is wrong")
        )

    def to_json(self) -> str:
        """All figures as JSON text."""
        return json.dumps(defined(asdict(self)), indent=2) + "\n"

    def plot(self, path: str | Path) -> Path:
        """Picture of the loss by step."""
        from zoo.evaluate.debugging import pictures

        return pictures.overfit(self, path)


class _Own(Method):
    """Learns by a loss that the caller gives."""

    def __init__(self, loss: Any) -> None:
        self.given = loss

    def loss(self, loss: Any) -> Any:
        return self.given


def overfit(
    model: Any,
    data: Any = None,
    *,
    rows: int | None = None,
    steps: int = 300,
    rates: tuple[float, ...] = RATES,
    loss: Any = None,
    progress: bool = False,
    **overrides: Any,
) -> Overfit:
    """Train a copy of a model on a single batch and see whether its loss comes near zero.

    Args:
        model: public name, run folder, run or Keras model; it stays as it is, and its weights are where the test
            starts.
        data: name, path or `zoo.data.Data`, as in `zoo.train`.
        rows: rows of the batch, all different; 32 if None, fewer for a model too small to hold so many.
        steps: steps of Adam at each learning rate.
        rates: learning rates to try one after the other until one succeeds.
        loss: `(targets, outputs) -> loss` to learn by, the recipe's if None; success is measured by the task's own. Not
            for a model that computes its loss itself.
        progress: show a progress bar.
        overrides: settings of the recipe, or arguments of the builder of a named model.

    Returns:
        The curves and, where the batch is not learnt, what may be the cause.

    Raises:
        ValueError: a number is out of range, or model and data do not fit together.
    """
    if steps < 10 or not rates or min(rates) <= 0 or (rows is not None and rows < 2):
        raise ValueError(
            f"the test needs at least 10 steps, 2 rows and positive rates, got steps={steps}, rows={rows}, rates={rates}"
        )
    run = subject(model, data, **overrides)
    signature, task = run.signature, tasks.get(run.signature.task)
    network = _without_noise(run.model)
    learner = task.learner(network, run.data, run.recipe)
    if loss is not None and computes_loss(learner):
        raise ValueError(f"{network.name!r} computes its loss itself, so it cannot learn by another; leave loss out")
    size = sum(int(np.prod(v.shape)) for v in network.trainable_variables)
    chosen = few_rows(run, rows or max(4, min(32, size // (2 * signature.outputs))))
    part = run.data.train
    x = signature.inputs({key: values[chosen] for key, values in part.x.items()})
    y = task.encode(signature.targets(part.y[chosen]), signature.outputs)
    own, constant = task.loss_for(learner, run.recipe.loss, 0.0), task.idle_raw(y)

    def lost() -> float:
        if own is None:
            return _number(loss_of(learner, None, x, y, training=True))
        # as an array: of a tensor Keras sees that it comes from a softmax, and takes what stands before that
        return _number(own(y, keras.ops.convert_to_numpy(learner(x, training=True))))

    start = learner.get_weights()
    idle = lost() if constant is None else _number(own(y, constant))
    learner.set_weights(start)
    if not idle > 0:
        raise ValueError(f"the {len(chosen)} rows of the batch all have the same target; give more rows, or other data")
    goal = NEAR_ZERO * idle
    recipe = run.recipe.override(
        optimizer="adam", schedule="constant", warmup=0.0, weight_decay=0.0, l1=0.0, l2=0.0, clip_norm=None,
        label_smoothing=0.0, averaging=0.0,
    )  # fmt: skip

    inner = keras.Model(network.input, network.output)  # a learner may give something else in training mode
    curves: dict[float, list[float]] = {}
    best: dict[str, Any] = {"loss": np.inf, "weights": start, "outputs": None}
    score, reached = float("nan"), False
    for rate in rates:
        learner.set_weights(start)
        compile_for(learner, recipe.override(learning_rate=rate), task, steps, _Own(loss) if loss else None)
        curve = curves[rate] = []
        for _ in over(range(steps), f"learning rate {rate:g}", progress):
            with reported_anyway():
                curve.append(float(learner.train_on_batch(x, y, return_dict=True)["loss"]))
            learner.reset_metrics()
            if not np.isfinite(curve[-1]) or (loss is None and curve[-1] <= goal):
                break
        found, trained = lost(), learner.get_weights()
        outputs = keras.ops.convert_to_numpy(inner(x, training=True))
        if best["outputs"] is None or found < best["loss"] or not np.isfinite(best["loss"]):
            best = {"loss": found, "weights": trained, "outputs": outputs}
            known = np.isfinite(outputs).all()
            score = task.score(part.y[chosen], task.answer(outputs, signature)) if known else float("nan")
        reached = best["loss"] <= goal or (constant is None and score >= BY_HEART)
        if reached:
            break
    findings = _untrained(learner, start, best["weights"] if max(map(len, curves.values())) >= 10 else None)
    if not reached:
        findings = [
            *(finding for part in keras.tree.flatten(x) if part.dtype.kind == "f" for finding in _in_rows(part)),
            *_in_loss(curves, best["loss"], idle, bool(loss)),
            *_in_outputs(best, signature.task),
            *findings,
        ]
        if size < len(chosen) * signature.outputs:
            findings.append(
                Finding(
                    "size",
                    f"{size:,} trainable weights for {len(chosen)} rows with {signature.outputs} outputs each",
                    f"too few to learn every row by heart: give rows={max(2, size // (2 * signature.outputs))}, or widen it",
                )
            )
        if not findings:
            findings.append(
                Finding(
                    "cause",
                    f"the loss stays at {best['loss']:.3g}, and no usual cause is seen",
                    "check the gradients, look at the activations, and compare this batch's targets with its inputs",
                )
            )
    return Overfit(
        run.recipe.model,
        len(chosen),
        bool(reached),
        float(best["loss"]),
        idle,
        goal,
        task.metric,
        float(score),
        curves,
        tuple(findings),
        "the loss at the start" if constant is None else Overfit.beside,
    )


def _number(value: Any) -> float:
    return float(np.mean(keras.ops.convert_to_numpy(value)))


def _without_noise(model: Any) -> Any:
    """A copy with the same weights and no dropout or noise."""

    def quiet(layer: Any) -> Any:
        config = layer.get_config()
        if isinstance(layer, NOISE):
            config["rate"] = 0.0
        if isinstance(layer, keras.layers.GaussianNoise):
            config["stddev"] = 0.0
        for key in ("dropout", "recurrent_dropout"):  # of recurrent and attention layers
            if isinstance(config.get(key), float):
                config[key] = 0.0
        return layer.__class__.from_config(config)

    copy = keras.models.clone_model(model, clone_function=quiet, recursive=True)
    copy.set_weights(model.get_weights())
    return copy


def _untrained(network: Any, start: list[np.ndarray], end: list[np.ndarray] | None) -> list[Finding]:
    """Weights that are not trained, and weights that are but stood still."""
    found = []
    frozen = [layer.name for layer in network.layers if not layer.trainable and layer.weights]
    if frozen:
        found.append(
            Finding(
                named(frozen),
                "not trained, its trainable is False" if len(frozen) == 1 else "not trained, their trainable is False",
                "set trainable = True unless freezing is meant",
            )
        )
    if end is not None:
        still = [
            variable.path
            for variable, before, after in zip(network.weights, start, end, strict=True)
            if variable.trainable and np.array_equal(before, after)
        ]
        if still:
            found.append(
                Finding(
                    named(still),
                    "no gradient reaches it in any step" if len(still) == 1 else "no gradient reaches them in any step",
                    "look for a layer that is not connected, stop_gradient, rounding, or units that are all dead",
                )
            )
    return found


def _in_rows(x: np.ndarray) -> list[Finding]:
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).sum())
        return [Finding("inputs", f"{bad} values are not numbers", "clean the rows, or fill what is missing")]
    if np.abs(x).max() > 100:
        return [
            Finding(
                "inputs",
                f"values up to {np.abs(x).max():.3g} standard deviations from the mean",
                "limit outliers or take their logarithm before training",
            )
        ]
    return []


def _in_loss(curves: dict[float, list[float]], own: float, idle: float, given: bool) -> list[Finding]:
    found = []
    last = list(curves.values())[-1]
    broken = [f"{rate:g}" for rate, curve in curves.items() if not np.isfinite(curve[-1])]
    if broken:
        found.append(
            Finding(
                "loss",
                f"not a number at learning rate {named(broken)}",
                "look for a logarithm, root or division without a floor, and for inputs that are not standardised",
            )
        )
    lowest = min(np.nanmin(curve) for curve in curves.values())
    if lowest < 0:
        found.append(
            Finding(
                "loss",
                f"falls below zero, to {lowest:.3g}, while the task's own loss ends at {own:.3g}",
                "an error is never negative: turn the sign of the loss",
            )
        )
    elif given and own > idle and np.isfinite(last[-1]) and last[-1] < 0.5 * last[0]:
        found.append(
            Finding(
                "loss",
                f"falls from {last[0]:.3g} to {last[-1]:.3g}, while the task's own loss ends at {own:.3g}, worse than an answer "
                f"that never changes ({idle:.3g})",
                "it does not measure the task: check its sign, the order of its arguments and the form of its targets",
            )
        )
    flat = [curve for curve in curves.values() if np.isfinite(curve).all() and np.ptp(curve) <= 1e-6 * abs(curve[0])]
    if len(flat) == len(curves):
        found.append(
            Finding("loss", "the same in every step", "nothing is trained: see which weights a gradient reaches")
        )
    return found


def _in_outputs(best: dict[str, Any], task: str) -> list[Finding]:
    outputs = best["outputs"]
    if not np.isfinite(outputs).all():
        return []
    found = []
    size = np.abs(outputs).max()
    if np.ptp(outputs, axis=0).max() <= 1e-4 * max(size, 1e-12):
        found.append(
            Finding(
                "outputs",
                "the same for every row",
                "the inputs do not reach the head: look for dead units, zero weights and activations that are saturated",
            )
        )
    shares = task != "regression" and outputs.min() >= 0 and outputs.max() <= 1 + 1e-5
    if shares and np.allclose(outputs.sum(axis=-1), 1, atol=1e-3):
        found.append(
            Finding(
                "outputs",
                "probabilities that sum to one, while the loss takes logits",
                "leave the softmax out of the last layer, or the loss has a floor above zero",
            )
        )
    elif outputs.min() >= 0 and np.mean(outputs == 0) > 0.2:
        found.append(
            Finding(
                "outputs",
                f"never negative, and {np.mean(outputs == 0):.0%} are exactly zero",
                "leave the ReLU out of the last layer: a zero output gets no gradient",
            )
        )
    return found
