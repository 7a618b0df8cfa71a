"""How gradients and updates are spread over the layers in the first steps of training.

Vanishing and exploding gradients: Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural
networks" (AISTATS 2010), section 4.2. Updates are healthy at about a thousandth of the weight: Li, Karpathy & Johnson,
"CS231n, Neural Networks Part 3", section "Ratio of weights:updates"; only what is far from that is reported.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from zoo import tasks
from zoo.evaluate.debugging.subject import reported_anyway, subject
from zoo.evaluate.findings import Finding, listed, named, over, table
from zoo.evaluate.report import defined
from zoo.training.fit import Batches, compile_for
from zoo.training.gradients import gradients
from zoo.training.learners import copy_to_train

VANISHED = 1e-4  # of the largest gradient among the kernels, per weight
EXPLODED = 1e3  # norm, as `zoo.training.callbacks.GradientHealth` has it
JUMP = 5  # times the first loss, which the batches' own differences do not reach
FAST, SLOW = 0.5, 1e-7  # update of a step in parts of the weight


@dataclass(frozen=True)
class WeightFlow:
    """One trainable weight over the steps.

    Attributes:
        weight: its path.
        shape: its shape.
        norms: norm of its gradient in each step.
        updates: norm of its change in each step, in parts of its own norm before it; NaN where that is zero.
    """

    weight: str
    shape: tuple[int, ...]
    norms: tuple[float, ...]
    updates: tuple[float, ...]

    @property
    def kernel(self) -> bool:
        """Whether it mixes its inputs, as a bias or a scale does not."""
        return len(self.shape) > 1

    @property
    def density(self) -> float:
        """Median over the steps of the root mean square of its gradient."""
        return float(np.median(self.norms) / np.sqrt(np.prod(self.shape)))

    @property
    def update(self) -> float:
        """Median over the steps of its relative change."""
        known = [value for value in self.updates if not np.isnan(value)]
        return float(np.median(known)) if known else float("nan")


@dataclass(frozen=True)
class Flow:
    """What the first steps show.

    Attributes:
        model: its name.
        learning_rate: of the recipe.
        losses: loss of each step.
        weights: one row per trainable weight, from the input on.
        findings: what is wrong.
    """

    model: str
    learning_rate: float
    losses: tuple[float, ...]
    weights: tuple[WeightFlow, ...]
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        rows = [("weight", "shape", "gradient norm", "per weight", "update/weight")]
        for row in self.weights:
            if row.kernel:
                rows.append(
                    (
                        row.weight,
                        "x".join(map(str, row.shape)),
                        f"{np.median(row.norms):.2e}",
                        f"{row.density:.2e}",
                        f"{row.update:.2e}",
                    )
                )
        return (
            f"{self.model}, {len(self.losses)} steps at learning rate {self.learning_rate:g}: "
            f"loss {self.losses[0]:.4g} to {self.losses[-1]:.4g}\n{table(rows)}\n"
            + listed(self.findings, "gradients and updates are spread well over the layers")
        )

    def to_json(self) -> str:
        """All figures as JSON text; what is not defined is null."""
        return json.dumps(defined(asdict(self)), indent=2) + "\n"

    def plot(self, path: str | Path) -> Path:
        """Picture of gradients and updates by layer."""
        from zoo.evaluate.debugging import pictures

        return pictures.flow(self, path)


def flow(model: Any, data: Any = None, *, steps: int = 20, progress: bool = False, **overrides: Any) -> Flow:
    """Train a copy of a model for some steps by its recipe, and measure gradients and updates of each weight.

    Warm-up and schedule are left out, so that every step has the recipe's learning rate.

    Args:
        model: public name, run folder, run or Keras model; it stays as it is.
        data: name, path or `zoo.data.Data`, as in `zoo.train`.
        steps: batches.
        progress: show a progress bar.
        overrides: settings of the recipe, or arguments of the builder of a named model.

    Returns:
        Figures per weight and step, with vanishing and exploding gradients and unfit updates named.

    Raises:
        ValueError: `steps` is below 2, or model and data do not fit together.
    """
    if steps < 2:
        raise ValueError(f"the flow needs at least 2 steps, got steps={steps}")
    run = subject(model, data, **overrides)
    task = tasks.get(run.signature.task)
    recipe = run.recipe.override(schedule="constant", warmup=0.0, averaging=0.0)
    _, network = copy_to_train(run.model, run.data, recipe)
    compile_for(network, recipe, task, steps)
    batches = Batches(run.data, recipe)
    variables = network.trainable_variables
    losses: list[float] = []
    norms: list[list[float]] = [[] for _ in variables]
    updates: list[list[float]] = [[] for _ in variables]
    for step in over(range(steps), "steps", progress):
        if step % batches.steps == 0:
            batches.at(step // batches.steps)
        batch = batches[step % batches.steps]
        _, slopes = gradients(network, None, *batch[:2], training=True)
        before = [np.array(keras.ops.convert_to_numpy(v)) for v in variables]
        with reported_anyway():
            losses.append(float(network.train_on_batch(*batch, return_dict=True)["loss"]))
        network.reset_metrics()
        for index, variable in enumerate(variables):
            norms[index].append(float(np.linalg.norm(slopes[index])))
            size = np.linalg.norm(before[index])
            change = np.linalg.norm(keras.ops.convert_to_numpy(variable) - before[index])
            updates[index].append(float(change / size) if size else float("nan"))
        if not np.isfinite(losses[-1]):
            break
    found = tuple(
        WeightFlow(v.path, tuple(v.shape), tuple(n), tuple(u))
        for v, n, u in zip(variables, norms, updates, strict=True)
    )
    findings = _findings(found, losses, recipe.learning_rate)
    return Flow(recipe.model, recipe.learning_rate, tuple(losses), found, tuple(findings))


def _findings(weights: tuple[WeightFlow, ...], losses: list[float], rate: float) -> list[Finding]:
    found = []
    if not np.isfinite(losses[-1]):
        found.append(
            Finding(
                f"step {len(losses)}",
                f"the loss becomes {losses[-1]}",
                f"lower learning_rate (now {rate:g}), set clip_norm=1.0, or look for a division or logarithm without a floor",
            )
        )
    elif max(losses) > JUMP * losses[0] or np.mean(losses[-4:]) > 2 * np.mean(losses[:4]):
        found.append(
            Finding(
                "loss",
                f"goes from {losses[0]:.3g} up to {max(losses):.3g}",
                f"lower learning_rate (now {rate:g}); zoo.training.find_learning_rate suggests one",
            )
        )
    kernels = [row for row in weights if row.kernel]
    none = [row.weight for row in weights if not any(row.norms)]
    if none:
        found.append(
            Finding(
                named(none),
                "no gradient in any step",
                "look for a layer that is not connected, stop_gradient, rounding, or units that are all dead",
            )
        )
    often = [row for row in weights if row.weight not in none and row.norms.count(0.0) >= len(losses) / 4]
    if often:
        steps = max(row.norms.count(0.0) for row in often)
        found.append(
            Finding(
                named([row.weight for row in often]),
                f"no gradient in {steps} of {len(losses)} steps",
                f"units are dead on whole batches: lower learning_rate (now {rate:g}), and count them with activations",
            )
        )
    densest = max((row.density for row in kernels if np.isfinite(row.density)), default=0.0)
    vanishing = [row for row in kernels if row.weight not in none and row.density < VANISHED * densest]
    if vanishing:
        least = min(row.density for row in vanishing)
        found.append(
            Finding(
                named([row.weight for row in vanishing]),
                f"the gradient vanishes, down to {least / densest:.1e} of the largest one per weight",
                "use ReLU with He initialisation, batch or layer normalisation, or shortcuts around layers",
            )
        )
    exploding = [row.weight for row in weights if not np.median(row.norms) <= EXPLODED]
    if exploding:
        found.append(
            Finding(
                named(exploding),
                f"the gradient explodes, its norm is above {EXPLODED:g}",
                "set clip_norm=1.0, lower learning_rate, standardise the inputs, or initialise with smaller weights",
            )
        )
    for unfit, what, advice in (
        ([row for row in kernels if row.update > FAST], f"changes by more than {FAST:g} of its size in a step", "lower"),
        ([row for row in kernels if row.update < SLOW and row.weight not in none],
         f"changes by less than {SLOW:g} of its size in a step", "raise"),
    ):  # fmt: skip
        if unfit:
            extreme = (max if advice == "lower" else min)(row.update for row in unfit)
            found.append(
                Finding(
                    named([row.weight for row in unfit]),
                    f"{what} ({extreme:.1e})",
                    f"{advice} learning_rate (now {rate:g}) towards updates of about 1e-3",
                )
            )
    return found
