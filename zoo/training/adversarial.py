"""Training on attacked rows: each batch is replaced by rows that its own model finds hardest nearby.

Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks" (ICLR 2018, arXiv:1706.06083) for PGD;
Wong, Rice & Kolter, "Fast is better than free" (ICLR 2020, arXiv:2001.03994) for FGSM from a random start, without
which one-step training learns to fool its own attack; Cohen et al. (ICML 2019, arXiv:1902.02918, section 3.3) for
Gaussian noise, which a smoothed classifier should be trained with. The attack sees the model in inference mode (Pang et
al., "Bag of Tricks for Adversarial Training", ICLR 2021, arXiv:2010.00467). Validation rows are attacked too, so that
the best epoch is the most robust one (Rice, Wong & Kolter, ICML 2020, arXiv:2002.11569).
"""

import math
from functools import partial

import keras
from keras import ops

from zoo.evaluate.attacks import Region
from zoo.recipes import Perturbation
from zoo.training.gradients import input_gradients
from zoo.training.learners import alike, loss_of

STEP = 2.5  # a step is this times epsilon / steps, so that the far side of the ball can be reached (Madry et al. 2018)
FAST_STEP = 1.25  # the one step of FGSM from a random start, times epsilon (Wong et al. 2020, section 4)


def climb(x, slopes, start, region, size, epsilon, norm):
    """One step up the gradient, brought back into the ball around `start` and into the valid range.

    Args:
        x: where the step begins, `(batch, ...)`.
        slopes: gradient of the objective there.
        start: centre of the ball, the row as it was.
        region: `Region`.
        size: length of the step, in raw units.
        epsilon: radius of the ball, in raw units.
        norm: "linf" or "l2".

    Source: Madry et al. 2018, equation in section 2.1; Goodfellow et al. 2015, section 4, for the sign.
    """
    slopes = slopes * region.unit
    if norm == "linf":
        moved = x + size * region.unit * ops.sign(slopes)
        moved = ops.clip(moved, start - epsilon * region.unit, start + epsilon * region.unit)
    else:
        axes = tuple(range(1, len(x.shape)))
        # scaled first: the squares of small gradients would vanish in float32
        slopes = slopes / ops.maximum(ops.max(ops.abs(slopes), axis=axes, keepdims=True), 1e-37)
        length = ops.sqrt(ops.sum(ops.square(slopes), axis=axes, keepdims=True))
        moved = x + size * region.unit * slopes / ops.maximum(length, 1e-12)
        gap = (moved - start) / _divisor(region.unit)
        distance = ops.sqrt(ops.sum(ops.square(gap), axis=axes, keepdims=True))
        moved = start + (moved - start) * ops.minimum(1.0, epsilon / ops.maximum(distance, 1e-12))
    return within(moved, start, region)


def within(x, start, region):
    """`x` in the valid range; what augmentation has moved out of it before need not come back."""
    return ops.clip(x, ops.minimum(region.low, start), ops.maximum(region.high, start))


def scatter(start, region, epsilon, norm, uniform, normal):
    """Random points of the ball around `start`: uniform in the cube, or of uniform direction and volume in the ball.

    Args:
        start: rows `(batch, ...)`.
        region: `Region`.
        epsilon: radius, in raw units.
        norm: "linf" or "l2".
        uniform, normal: functions of a shape that draw from [0, 1) and from the standard normal distribution, float32.
    """
    shape = ops.shape(start)
    if norm == "linf":
        move = epsilon * (2 * uniform(shape) - 1)
    else:
        axes = tuple(range(1, len(start.shape)))
        move = ops.where(region.unit > 0, normal(shape), 0.0)
        length = ops.sqrt(ops.sum(ops.square(move), axis=axes, keepdims=True))
        share = uniform((shape[0], *[1] * len(axes))) ** (1 / math.prod(start.shape[1:]))
        move = move / ops.maximum(length, 1e-12) * epsilon * share
    return within(start + move * region.unit, start, region)


def _divisor(unit):
    return ops.where(unit > 0, unit, 1.0)


class Hardening:
    """What makes of a functional model's class one whose training and validation steps first attack their rows.

    Attributes:
        perturbation: what is done to the rows.
        region: where they may be moved to.
        seeds: of random starts and noise.
    """

    def perturbed(self, x, y):
        """The rows in the place of which the model is trained."""
        method, norm, strength, steps = self.perturbation
        x = ops.cast(x, "float32")
        if method == "gaussian":
            noise = strength * keras.random.normal(ops.shape(x), seed=self.seeds)
            return within(x + noise * self.region.unit, x, self.region)
        size = strength * (FAST_STEP if method == "fgsm" else STEP / steps)

        def losses(moved):
            return loss_of(self, None, moved, y), None  # of all rows together, of which each feels its own part

        def step(_, moved):
            _, slopes, _ = input_gradients(self, losses, moved)
            return climb(moved, slopes, x, self.region, size, strength, norm)

        uniform, normal = (partial(draw, seed=self.seeds) for draw in (keras.random.uniform, keras.random.normal))
        moved = ops.fori_loop(0, steps, step, scatter(x, self.region, strength, norm, uniform, normal))
        return ops.stop_gradient(moved)

    def train_step(self, *arguments):
        return super().train_step(*self._perturbed(*arguments))

    def test_step(self, *arguments):
        return super().test_step(*self._perturbed(*arguments))

    def _perturbed(self, *arguments):
        """The arguments of a step, `(data)` or on JAX `(state, data)`, with attacked rows."""
        *state, data = arguments
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        if not state:
            return (keras.utils.pack_x_y_sample_weight(self.perturbed(x, y), y, weight),)
        [(trained, others, *rest)] = state
        variables = [*self.trainable_variables, *self.non_trainable_variables]
        with keras.StatelessScope(state_mapping=list(zip(variables, [*trained, *others], strict=True))) as scope:
            x = self.perturbed(x, y)
        others = [scope.get_current_value(variable) for variable in self.non_trainable_variables]
        return (trained, others, *rest), keras.utils.pack_x_y_sample_weight(x, y, weight)


def hardened(network, data, recipe):
    """The model to train in place of the network where a recipe asks for it; layers and weights are shared.

    Raises:
        ValueError: the network has a training step of its own.
    """
    if type(network).train_step is not keras.Model.train_step:
        raise ValueError(
            f"adversarial training replaces the training step, and {network.name!r} has one of its own; leave adversarial out"
        )
    model = alike(network, network.output, Hardening)
    model.perturbation, model.region = Perturbation.parse(recipe.adversarial), Region.of(data.signature)
    model.seeds = keras.random.SeedGenerator(recipe.seed)  # a variable, so that a resumed run goes on with it
    return model
