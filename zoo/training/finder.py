"""Learning-rate range test: how the loss answers to a rate that grows from step to step.

Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017 (arXiv:1506.01186), section 3.3.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo import tasks
from zoo.evaluate.pictures import learning_rates
from zoo.recipes import Recipe
from zoo.training.fit import Batches, compile_for
from zoo.training.learners import copy_to_train
from zoo.training.transfer import Freezing


@dataclass(frozen=True)
class RateTest:
    """What a range test found.

    Attributes:
        rates: learning rate of each step.
        losses: loss of each step, smoothed.
        suggested: the rate at which the loss falls fastest.
    """

    rates: np.ndarray
    losses: np.ndarray
    suggested: float

    def __str__(self) -> str:
        return (
            f"learning_rate={self.suggested:.2g} (the loss falls fastest there; it diverges above {self.rates[-1]:.2g})"
        )

    def plot(self, path: str | Path) -> Path:
        """Picture of loss against rate."""
        return learning_rates(self.rates, self.losses, self.suggested, path)


def find_learning_rate(
    model, data, recipe: Recipe, *, low: float = 1e-6, high: float = 10.0, steps: int = 100
) -> RateTest:
    """Train a copy of a model for some steps while the rate grows exponentially, and see where the loss falls fastest.

    Args:
        model: Keras model for the data's task; it stays as it is.
        data: `zoo.data.Data`.
        recipe: its optimiser, loss, batch size and augmentation are used.
        low, high: first and last rate.
        steps: batches; the test ends early when the loss is four times its lowest.

    Returns:
        Rates, smoothed losses, and the rate to put into a recipe.

    Raises:
        ValueError: the range is empty, or the loss falls nowhere in it.
    """
    if not 0 < low < high or steps < 10:
        raise ValueError(
            f"the test needs 0 < low < high and at least 10 steps, got low={low}, high={high}, steps={steps}"
        )
    copy, learner = copy_to_train(model, data, recipe)
    task = tasks.get(data.signature.task)
    freezing = Freezing(copy, recipe, learner)
    freezing.begin(0)
    constant = recipe.override(schedule="constant", warmup=0.0, learning_rate=low)
    compile_for(learner, constant, task, steps, freezing=freezing)
    batches = Batches(data, recipe)
    rates = low * (high / low) ** (np.arange(steps) / (steps - 1))
    losses: list[float] = []
    smooth = 0.0
    for step, rate in enumerate(rates):
        if step % batches.steps == 0:
            batches.at(step // batches.steps)
        learner.optimizer.learning_rate.assign(rate)
        loss = float(learner.train_on_batch(*batches[step % batches.steps], return_dict=True)["loss"])
        learner.reset_metrics()
        smooth = 0.9 * smooth + 0.1 * loss
        losses.append(smooth / (1 - 0.9 ** (step + 1)))
        if not np.isfinite(loss) or losses[-1] > 4 * min(losses):
            break
    found = np.array(losses)
    finite = np.isfinite(found)
    rates, found = rates[: len(found)][finite], found[finite]
    slope = np.gradient(found, np.log(rates))
    lowest = int(found.argmin())
    if lowest < 3:
        raise ValueError(f"the loss falls nowhere between {low:g} and {high:g}; lower low")
    return RateTest(rates, found, float(rates[int(slope[:lowest].argmin())]))
