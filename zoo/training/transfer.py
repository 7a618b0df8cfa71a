"""Which parts of a network learn, from when on, and how fast: for training that begins with pretrained weights.

Howard & Ruder, "Universal Language Model Fine-tuning for Text Classification", ACL 2018 (arXiv:1801.06146), section 3.3:
gradual unfreezing from the head to the input, and rates that fall from part to part.
"""

import logging
from functools import cache
from typing import Any

import keras
import numpy as np

from zoo.backbone import BACKBONE, before_task, parts
from zoo.recipes import Recipe
from zoo.registry import suggest

log = logging.getLogger("zoo.training")


class Freezing:
    """Parts that stand still, part by part fewer as the epochs go by, and the rate of each.

    A layer that stands still keeps its weights, and its batch normalisation uses and keeps its moving statistics. All
    figures follow from recipe and epoch alone, so that a resumed run goes on exactly.

    Args:
        network: Keras model, whose layers tell the parts.
        recipe: its `freeze`, `unfreeze_every` and `rate_decay` are used.
        trained: the model that is trained in place of the network and has layers of the same names.

    Raises:
        ValueError: the network has no such part, or settings that do not go together.
    """

    def __init__(self, network: Any, recipe: Recipe, trained: Any = None) -> None:
        self.recipe = recipe
        if not (recipe.freeze or recipe.rate_decay != 1):  # any model will do, also one without names
            self.parts, self.frozen = {}, 0
            return
        own = {layer.name: layer for layer in (trained or network).layers}
        self.parts = {part: [own.get(layer.name, layer) for layer in layers] for part, layers in parts(network).items()}
        self.frozen = self._count(network.name)
        layers = [layer for found in self.parts.values() for layer in found]
        self._were = [(below, below.trainable) for layer in layers for below in layer._flatten_layers()]
        if recipe.rate_decay != 1 and keras.backend.backend() == "torch":  # which steps all variables at once
            raise ValueError("rate_decay works on the backends tensorflow and jax, got torch; leave it out")
        if recipe.unfreeze_every and (recipe.averaging or recipe.schedule == "plateau"):
            what = "averaging" if recipe.averaging else "schedule 'plateau'"
            raise ValueError(
                f"unfreeze_every begins a new optimiser with each part, and {what} goes on over all epochs; leave one out"
            )

    def _count(self, name: str) -> int:
        """Parts that stand still at first."""
        known = list(self.parts)[:-1]
        if not self.recipe.freeze:
            return 0
        if self.recipe.freeze == BACKBONE:
            return len(before_task(self.parts))
        if self.recipe.freeze not in known:
            raise ValueError(
                f"freeze names the last part that stands still, one of {', '.join([*known, BACKBONE])} for {name!r}, got "
                f"{self.recipe.freeze!r}.{suggest(self.recipe.freeze, known)}"
            )
        return known.index(self.recipe.freeze) + 1

    @property
    def starts(self) -> list[int]:
        """Epochs at which another part begins to learn."""
        every = self.recipe.unfreeze_every
        return [every * (part + 1) for part in range(self.frozen) if every and every * (part + 1) < self.recipe.epochs]

    def begin(self, epoch: int) -> int:
        """Let the parts of an epoch learn, and only these; the model must be compiled afterwards.

        Returns:
            The epoch at which they began, from which the optimiser counts.
        """
        before = [start for start in self.starts if start <= epoch]
        still = self.frozen - len(before)
        for layer, trainable in self._were if self.parts else ():
            layer.trainable = trainable
        for part in list(self.parts)[:still]:
            for layer in self.parts[part]:
                layer.trainable = False
        if self.frozen:
            log.info("from epoch %d on these stand still: %s", epoch + 1, ", ".join(list(self.parts)[:still]) or "none")
        return before[-1] if before else 0

    def end(self) -> None:
        """Leave every layer as it was."""
        for layer, trainable in self._were if self.parts else ():
            layer.trainable = trainable

    def factors(self, variables: list[Any]) -> list[float]:
        """Each variable's rate, as a share of the head's; empty where all are the same."""
        decay = self.recipe.rate_decay
        if decay == 1:
            return []
        far = {
            id(variable): distance
            for distance, layers in enumerate(reversed(self.parts.values()))
            for layer in layers
            for variable in layer.weights
        }
        return [decay ** far.get(id(variable), 0) for variable in variables]


class _Paced:
    """What makes of a Keras optimiser one with a factor for each variable's learning rate, all 1 where none are given."""

    def __init__(self, *args: Any, factors: tuple[float, ...] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.factors = tuple(factors)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        if self.factors:
            learning_rate = learning_rate * np.float32(self.factors[self._get_variable_index(variable)])
        super().update_step(gradient, variable, learning_rate)

    def _apply_weight_decay(self, variables: list[Any]) -> None:
        """Decay before the step, as Keras does it, by each variable's own rate.

        Keras asks the schedule anew for each variable: a quarter of the graph of a network with many small layers.
        """
        if not self.weight_decay:
            return
        rate = self.learning_rate
        for variable in variables:
            if self._use_weight_decay(variable):
                share = self.factors[self._get_variable_index(variable)] if self.factors else 1.0
                self.assign_sub(variable, variable * (self.weight_decay * share) * keras.ops.cast(rate, variable.dtype))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factors": self.factors}


@cache
def paced(kind: type) -> type:
    """An optimiser's class with a factor for each variable's rate, `factors` in the order it is built with."""
    name = f"Paced{kind.__name__}"
    return keras.saving.register_keras_serializable("zoo")(type(name, (_Paced, kind), {"__doc__": kind.__doc__}))
