"""Optimisers and learning-rate schedules by the names a recipe uses."""

import inspect

import keras
from keras import ops, optimizers

from zoo.training.transfer import paced

_CLASSES = {
    "sgd": (optimizers.SGD, {}),
    "momentum": (optimizers.SGD, {"momentum": 0.9}),
    "nesterov": (optimizers.SGD, {"momentum": 0.9, "nesterov": True}),
    "adagrad": (optimizers.Adagrad, {}),
    "adadelta": (optimizers.Adadelta, {}),
    "rmsprop": (optimizers.RMSprop, {}),
    "adam": (optimizers.Adam, {}),
    "adamw": (optimizers.AdamW, {}),
    "nadam": (optimizers.Nadam, {}),
    "lion": (optimizers.Lion, {}),
}


def _cosine(p):
    """Half a cosine wave from 1 to 0 (Loshchilov & Hutter 2016, equation 5)."""
    return 0.5 * (1 + ops.cos(3.141592653589793 * p))


def _restarts(p):
    """Three cosine cycles, each twice as long as the one before (Loshchilov & Hutter 2016, T_mult = 2)."""
    position = 7 * p + 1  # cycles begin at 1, 2 and 4 and end at 8
    start = 2 ** ops.floor(ops.log(position + 1e-6) / 0.6931471805599453)
    return _cosine(position / start - 1)


def _one_cycle(p):
    """From 1/25 up to 1 in the first 30 %, then down to 1e-5 by cosines (Smith & Topin 2017)."""
    up = 1 / 25 + (1 - 1 / 25) * (1 - _cosine(p / 0.3))
    down = 1e-5 + (1 - 1e-5) * _cosine((p - 0.3) / 0.7)
    return ops.where(p < 0.3, up, down)


def _milestones(epochs, *done):
    """Divided by 10 when so many epochs are done."""
    return 0.1 ** sum(ops.cast(epochs >= each, "float32") for each in done)


# Share of the highest rate after so many epochs, with the figures that stand behind its name.
_BY_EPOCH = {
    "milestones": _milestones,
    "decay": lambda epochs, factor, every: factor ** ops.floor(epochs / every),
}

# Share of the highest rate at a share p of the steps after warm-up, with the figure that stands behind its name.
_SHAPED = {
    "cosine": lambda p, least: least + (1 - least) * _cosine(p),
    "poly": lambda p, power: (1 - p) ** power,
}

# Share of the highest rate at a share p in [0, 1) of the steps after warm-up.
_SHAPES = {
    "step": lambda p: 0.1 ** ops.floor(3 * p),  # divided by 10 after each third (He et al. 2015, section 3.4)
    "exponential": lambda p: 0.01**p,
    "cosine": _cosine,
    "warm_restarts": _restarts,
    "one_cycle": _one_cycle,
}


@keras.saving.register_keras_serializable("zoo")
class Schedule(optimizers.schedules.LearningRateSchedule):
    """Learning rate by step: a linear warm-up, then a named shape over the rest of the run; `epoch` is steps of one."""

    def __init__(self, shape, peak, steps, warmup_steps=0, done=0, epoch=1):
        self.shape, self.peak, self.steps, self.warmup_steps, self.done = shape, peak, steps, warmup_steps, done
        self.epoch = epoch

    def __call__(self, step):
        step = ops.cast(step, "float32") + self.done
        rest = max(self.steps - self.warmup_steps, 1)
        p = ops.clip((step - self.warmup_steps) / rest, 0.0, 1.0)
        name, *figures = self.shape.split(":")
        if figures and name in _BY_EPOCH:
            scale = _BY_EPOCH[name](step / self.epoch, *map(float, figures))
        elif figures:
            scale = _SHAPED[name](p, float(figures[0]))
        else:
            scale = _SHAPES[name](p) if name in _SHAPES else 1.0
        if self.warmup_steps:
            scale = ops.where(step < self.warmup_steps, (step + 1) / self.warmup_steps, scale)
        return self.peak * scale

    def get_config(self):
        return {
            "shape": self.shape,
            "peak": self.peak,
            "steps": self.steps,
            "warmup_steps": self.warmup_steps,
            "done": self.done,
            "epoch": self.epoch,
        }


def optimiser(recipe, steps_per_epoch, done=0, factors=()):
    """The Keras optimiser a recipe asks for, with its schedule over `epochs * steps_per_epoch` steps.

    Args:
        recipe: `zoo.recipes.Recipe`.
        steps_per_epoch: batches of an epoch.
        done: steps of the run that another optimiser took before.
        factors: share of the learning rate for each variable, in the order it is built with; () for the same.
    """
    steps = recipe.epochs * steps_per_epoch  # Keras counts batches here, also where several make one step
    rate = recipe.learning_rate
    warmup = int(recipe.warmup * steps)
    if recipe.schedule not in ("constant", "plateau") or warmup:
        if recipe.schedule == "plateau":
            raise ValueError("schedule 'plateau' changes the rate between epochs and cannot warm up; set warmup=0")
        rate = Schedule(recipe.schedule, recipe.learning_rate, steps, warmup, done, steps_per_epoch)
    kind, settings = _CLASSES[recipe.optimizer]
    if recipe.momentum is not None and recipe.optimizer in ("momentum", "nesterov", "rmsprop"):
        settings = {**settings, "momentum": recipe.momentum}
    if recipe.epsilon is not None:
        if "epsilon" not in inspect.signature(kind).parameters:
            raise ValueError(
                f"optimizer {recipe.optimizer!r} divides by nothing, got epsilon={recipe.epsilon}; leave it out"
            )
        settings = {**settings, "epsilon": recipe.epsilon}
    if keras.backend.backend() != "torch":  # which steps and decays all variables at once
        kind, settings = paced(kind), {**settings, "factors": factors}
    return kind(
        rate,
        weight_decay=recipe.weight_decay or (0.0 if recipe.optimizer == "adamw" else None),  # AdamW takes no None
        global_clipnorm=recipe.clip_norm,
        gradient_accumulation_steps=recipe.accumulate if recipe.accumulate > 1 else None,
        use_ema=bool(recipe.averaging),
        **({"ema_momentum": recipe.averaging} if recipe.averaging else {}),
        **settings,
    )
