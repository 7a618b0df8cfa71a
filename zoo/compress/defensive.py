"""Defensive distillation: a network learns from the soft answers of its like, both at a high temperature.

Papernot, McDaniel, Wu, Jha & Swami, "Distillation as a Defense to Adversarial Perturbations against Deep Neural
Networks" (IEEE S&P 2016, arXiv:1511.04508). It does not defend: at temperature 1 the logits are so large
that the loss has no gradient left in float32, which stops FGSM and PGD on the loss; an attack on the logits' margin
succeeds as before (Carlini & Wagner, "Defensive Distillation is Not Robust to Adversarial Examples", 2016,
arXiv:1607.04311). `zoo.evaluate.robustness.attacked` shows both, the latter as "margin".
"""

from pathlib import Path
from typing import Any

import keras

from zoo.compress.distillation import distill
from zoo.training import Run, train
from zoo.training.fit import Method


class Tempered(Method):
    """Learning plainly, with logits divided by a temperature.

    The loss is multiplied by the square of the temperature, as in distillation, so that the same rates suit.

    Args:
        temperature: above 0.
    """

    def __init__(self, temperature: float) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got temperature={temperature!r}; the paper takes 20 to 100")
        self.temperature = temperature

    def check(self, network, data, recipe):
        if not data.signature.one_label:
            raise ValueError(f"a temperature softens classes of rows, and the task is {data.signature.task}")

    def loss(self, loss):
        return TemperedLoss(loss, self.temperature)


class TemperedLoss(keras.losses.Loss):
    """A loss on logits divided by a temperature, times the square of it."""

    def __init__(self, loss: keras.losses.Loss, temperature: float) -> None:
        super().__init__(name="tempered")
        self.hard, self.temperature = loss, temperature

    def call(self, y_true, y_pred):
        return self.temperature**2 * self.hard.call(y_true, y_pred / self.temperature)


def distill_defensively(
    model: str,
    data: Any = None,
    *,
    out: str | Path,
    temperature: float = 20.0,
    overwrite: bool = False,
    quiet: bool = False,
    **overrides: Any,
) -> Run:
    """Train a network at a temperature, and another of the same kind on its answers at that temperature.

    Args:
        model: public name of both.
        data: data set, its name or a path; the model's default data if None.
        out: folder of the distilled run; that of the first network is beside it, with `-teacher` behind its name.
        temperature: of both trainings; the distilled network is used at 1.
        overwrite: replace runs that are there.
        quiet: no progress bar and no lines.
        overrides: settings of `zoo.recipes.Recipe`, or arguments of the builder, for both.

    Returns:
        The distilled run.

    Raises:
        ValueError: the temperature is not above 0, or the task has no classes.
    """
    out = Path(out)
    common = {"overwrite": overwrite, "quiet": quiet, **overrides}
    first = train(model, data, out=out.with_name(f"{out.name}-teacher"), method=Tempered(temperature), **common)
    return distill(first, model, first.data, out=out, temperature=temperature, alpha=1.0, **common)
