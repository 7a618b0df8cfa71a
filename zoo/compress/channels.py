"""Channel pruning: whole filters, units and heads are removed and a smaller, ordinary Keras model is left.

What must be removed together is found by `identities`, from a rule per layer kind (`layer_rules`, `operation_rules`);
what matters least, and how much of it reaches a target, is decided in `ranking`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from zoo.compress.identities import Identities
from zoo.compress.ranking import choose, reach_macs, reach_milliseconds, scores

IMPORTANCES = ("magnitude", "batch_norm", "taylor")
SCOPES = ("layer", "global")


class Group(NamedTuple):
    """Channels that are ranked against each other; removing one removes it from every layer named.

    Attributes:
        layers: the layers whose filters, units or heads make these channels, in graph order.
        channels: how many can be removed one by one; a head or a small group of a grouped convolution counts as one.
    """

    layers: tuple[str, ...]
    channels: int


def channel_groups(model: keras.Model, keep: tuple[str, ...] | list[str] = ("logits",)) -> list[Group]:
    """Groups of channels that `prune_channels` may shrink, in graph order.

    Args:
        model: functional or built sequential model, channels last.
        keep: names or patterns of layers that keep all their output channels.

    Raises:
        TypeError: the model is not functional.
        ValueError: a pattern in `keep` matches no layer.
    """
    return [
        Group(tuple(dict.fromkeys(layer for layer, _ in makers)), len(sets))
        for makers, sets in Identities(model, keep).groups().items()
    ]


def prune_channels(
    model: keras.Model,
    ratio: float | None = None,
    *,
    macs: float | None = None,
    milliseconds: float | None = None,
    measure: Callable[[keras.Model], float] | None = None,
    importance: str | Callable[[np.ndarray], np.ndarray] = "magnitude",
    scope: str = "layer",
    round_to: int = 1,
    keep: tuple[str, ...] | list[str] = ("logits",),
    data: Any = None,
    loss: Callable[[Any, Any], Any] | None = None,
) -> keras.Model:
    """Build a smaller model without the least important filters, units and heads; fine-tune it afterwards.

    Half of the channels everywhere leaves about a quarter of the parameters and of the arithmetic, because a
    convolution loses inputs and outputs. Accuracy drops, often to chance, until the result has been trained for some
    epochs. The given model is left as it is.

    Followed are convolutions of all kinds, dense, recurrent and embedding layers, attention (whole heads),
    normalisation, merging, reshaping, wrappers, nested functional models and the common `keras.ops`. Around any other
    layer channels are kept. Layer normalisation then takes mean and variance of the channels that are left.

    Args:
        model: functional or built sequential model, channels last.
        ratio: share of the removable channels to remove, in [0, 1); 0.5 if no target is given. Inputs and outputs of
            the model always stay.
        macs: target in place of `ratio`: multiply-accumulates to keep, as a share in (0, 1] or as a number above 1.
        milliseconds: target in place of `ratio`: what `measure` may give at most.
        measure: model -> milliseconds, such as the latency of the exported file.
        importance: "magnitude" (L2 norm of the filters, each layer's mean being 1, averaged over the layers that must
            lose the channel together), "batch_norm" (the same of the absolute scale of batch normalisation; groups
            without one are ranked by magnitude), "taylor" (change of the loss to first order, which needs `data`), or a
            function of a kernel, as array (..., channels), that gives a score for each channel.
        scope: "layer" removes the same share from every group; "global" ranks all groups together, so that some lose
            more.
        round_to: each group keeps a multiple of this many channels where it has as many, and at least one such
            multiple. Multiples of 8 or 16 suit vector units.
        keep: names or patterns (`"stage0_*"`) of layers that keep all their output channels; a layer inside a nested
            model is `outer/inner`.
        data: rows for "taylor": `(inputs, targets)`, targets being class numbers, or values of the output's shape; or
            `zoo.data.Data`, whose training rows are used. 256 rows are enough, more are left out.
        loss: for "taylor", `(targets, outputs) -> scalar tensor`; cross-entropy on logits for class numbers, squared
            error for values.

    Returns:
        Functional model with the same layer names and the remaining weights, not compiled.

    Raises:
        TypeError: the model is not functional, or not channels last.
        ValueError: an argument is out of range, a weight is not finite, a pattern in `keep` matches no layer, nothing
            can be removed, or the target cannot be reached, in which case the message says what came closest.
    """
    ratio = _check(ratio, macs, milliseconds, measure, importance, scope, round_to)
    identities = Identities(model, keep)
    groups = identities.groups()
    if not groups:
        unknown = ", ".join(f"{name!r} ({kind})" for name, kind in identities.unfollowed.items())
        raise ValueError(
            f"model {model.name!r} has no channels to remove: all belong to its inputs, its outputs, "
            f"keep={tuple(keep)!r} or layers that must keep them{f', such as the unknown {unknown}' if unknown else ''}"
        )
    score = scores(identities, importance, data, loss)

    def choice(share):
        return choose(identities, groups, score, share, scope, round_to)

    if milliseconds is not None:
        return reach_milliseconds(identities, choice, milliseconds, measure)
    if macs is not None:
        target = round(macs * identities.macs(set())) if macs <= 1 else round(macs)
        return identities.rebuild(reach_macs(identities, choice, target))
    removed = choice(ratio)
    if ratio and not removed:
        widest = max(len(sets) for sets in groups.values())
        raise ValueError(
            f"ratio={ratio!r} with round_to={round_to!r} removes no channel (the widest group has {widest}); "
            "raise ratio or lower round_to"
        )
    return identities.rebuild(removed)


def _check(ratio, macs, milliseconds, measure, importance, scope, round_to):
    """Refuse what is out of range; the share to remove, None where there is a target."""
    given = {
        name: value
        for name, value in (("ratio", ratio), ("macs", macs), ("milliseconds", milliseconds))
        if value is not None
    }
    if len(given) > 1:
        raise ValueError(f"give one of ratio, macs and milliseconds, got {given!r}")
    if ratio is not None and not 0 <= ratio < 1:
        raise ValueError(f"ratio must be a share in [0, 1), got ratio={ratio!r}; 0.5 removes half of the channels")
    for name, value in given.items():
        if name != "ratio" and not value > 0:
            raise ValueError(f"{name} must be above 0, got {name}={value!r}")
    if (milliseconds is None) != (measure is None):
        raise ValueError("milliseconds needs measure, a function model -> milliseconds, and measure needs milliseconds")
    if importance not in IMPORTANCES and not callable(importance):
        raise ValueError(
            f"importance must be {', '.join(map(repr, IMPORTANCES[:-1]))} or {IMPORTANCES[-1]!r}, or a function of a "
            f"kernel, got {importance!r}"
        )
    if scope not in SCOPES:
        raise ValueError(f"scope must be 'layer' or 'global', got {scope!r}")
    if round_to < 1:
        raise ValueError(f"round_to must be at least 1 channel, got round_to={round_to!r}")
    return ratio if given else 0.5
