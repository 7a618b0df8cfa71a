"""Which channels matter least, and how many of them reach a target.

Filters are ranked by their norm, as Li, Kadav, Durdanovic, Samet & Graf, "Pruning Filters for Efficient ConvNets"
(ICLR 2017, arXiv:1608.08710), departing in the L2 norm in place of L1; by the scale of their batch normalisation, as
Liu, Li, Shen, Huang, Yan & Zhang, "Learning Efficient Convolutional Networks through Network Slimming" (ICCV 2017,
arXiv:1708.06519); or by what the loss would change without them, to first order, as Molchanov, Mallya, Tyree, Frosio &
Kautz, "Importance Estimation for Neural Network Pruning" (CVPR 2019, arXiv:1906.10771).
"""

import math

import keras
import numpy as np

from zoo import tasks
from zoo.training.gradients import gradients
from zoo.training.learners import computes_loss

_BATCH = 16  # rows whose gradients are taken together; their sums are squared, so fewer rows tell more apart
_ROWS = 256


def scores(identities, importance, data=None, loss=None):
    """Identity -> importance; about 1 for an average channel, except for "taylor", which is in units of the loss.

    Args:
        identities: `Identities` of the model.
        importance: "magnitude", "batch_norm", "taylor", or a function of a kernel as array (..., channels) that gives a
            score for each channel.
        data: rows for "taylor", see `prune_channels`.
        loss: `(targets, outputs) -> scalar tensor` for "taylor".
    """
    for weight in identities.model.weights:
        if "float" in weight.dtype and not np.isfinite(keras.ops.convert_to_numpy(weight)).all():
            raise ValueError(f"weight {weight.path!r} has values that are not finite; train the model again")
    norm = importance if callable(importance) else _norms
    makers = [
        (weight.axes[axis], _measured(norm, weight, axis))
        for weight in identities.weights.values()
        for axis in weight.makes
        if weight.axes[axis] is not None
    ]
    found = _averages(identities, makers)
    if importance == "batch_norm":
        scales = [
            (weight.axes[0], np.abs(keras.ops.convert_to_numpy(weight.variable)))
            for weight in identities.weights.values()
            if weight.scale and weight.axes[0] is not None
        ]
        if not scales:
            raise ValueError(
                f"model {identities.model.name!r} has no BatchNormalization with a scale; use importance='magnitude'"
            )
        found |= _averages(identities, scales)
    if importance == "taylor":
        found = _taylor(identities, *_rows(identities.given, data, loss), found)
    return found


def _norms(kernel):
    """L2 norm over all axes but the last: (..., channels) -> (channels,)."""
    return np.sqrt(np.square(kernel).sum(axis=tuple(range(kernel.ndim - 1))))


def _measured(norm, weight, axis):
    kernel = np.moveaxis(keras.ops.convert_to_numpy(weight.variable), axis, -1)
    found = np.asarray(norm(kernel))
    if found.shape != kernel.shape[-1:] or not np.isfinite(found).all():
        raise ValueError(
            f"importance must give {kernel.shape[-1]} finite scores for the kernel {kernel.shape} of {weight.layer!r}, "
            f"one for each place of its last axis, got {found.shape}"
        )
    return found


def _averages(identities, measured):
    """Each layer's scores relative to their mean, averaged over the layers that lose the channel together."""
    values = {}
    for row, sizes in measured:
        relative = sizes / (np.abs(sizes).mean() or 1.0)
        for identity, value in zip(row, relative, strict=True):
            values.setdefault(identities.find(identity), []).append(value)
    return {identity: float(np.mean(many)) for identity, many in values.items()}


def _rows(model, data, loss):
    """Inputs, targets and loss from what the user gave."""
    if data is None:
        raise ValueError("importance='taylor' needs rows: give data=(inputs, targets), or zoo.data.Data")
    if hasattr(data, "signature"):
        signature, task = data.signature, tasks.get(data.signature.task)
        rows = np.random.default_rng(0).permutation(len(data.train.y))[:_ROWS]
        x = signature.inputs({name: values[rows] for name, values in data.train.x.items()})
        y = task.encode(signature.targets(data.train.y[rows]), signature.outputs)
        own = loss is None and computes_loss(model)
        loss = loss or task.loss_for(model, "", 0.0)
    else:
        if not isinstance(data, tuple | list) or len(data) != 2:
            raise TypeError(f"data must be (inputs, targets) or zoo.data.Data, got a {type(data).__name__}")
        x, y = data
        own = False
    given = keras.tree.flatten(x)
    for tensor, values in zip(model.inputs, given, strict=len(given) == len(model.inputs)):
        shape = tuple(np.shape(values))
        fits = len(shape) == len(tensor.shape) and all(
            size in (None, had) for size, had in zip(tensor.shape[1:], shape[1:], strict=True)
        )
        if not fits or len(given) != len(model.inputs):
            raise ValueError(f"data has inputs of shape {shape}, model {model.name!r} takes {tuple(tensor.shape)}")
        if shape[0] == 0 or shape[0] != len(y):
            raise ValueError(f"data must have as many targets as rows and at least one, got {shape[0]} and {len(y)}")
    if loss is None and not own:
        y = np.asarray(y)
        if np.issubdtype(y.dtype, np.integer):
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        elif y.shape[1:] == tuple(model.outputs[0].shape[1:]):
            loss = keras.losses.MeanSquaredError()
        else:
            raise ValueError(
                f"targets of shape {y.shape} do not fit the output {tuple(model.outputs[0].shape)}; give loss="
            )
    return x, y, loss


def _taylor(identities, x, y, loss, fallback):
    """Root of the mean square, over batches, of the first-order change of the loss when a channel is removed.

    Removing a channel takes it from the weights that read it, which changes the loss by minus the sum of weight times
    gradient over them. A channel that no trained weight reads is judged by the weights that make it; one that has none
    of these has the importance that `fallback` gives it, relative to the others' mean.
    """
    model = identities.given
    places = {id(variable): place for place, variable in enumerate(model.trainable_variables)}
    roles = {}
    for role in ("reads", "makes"):
        for weight in identities.weights.values():
            value = keras.ops.convert_to_numpy(weight.variable)
            for axis in getattr(weight, role):
                if weight.axes[axis] is not None and id(weight.variable) in places:
                    roots = np.array([identities.find(identity) for identity in weight.axes[axis]])
                    roles.setdefault(role, []).append((places[id(weight.variable)], axis, roots, value))
    squares = {role: np.zeros(len(identities.stays(()))) for role in roles}
    judged = {role: {int(root) for *_, roots, _ in parts for root in roots} for role, parts in roles.items()}
    batches = range(0, min(len(y), _ROWS), _BATCH)
    for start in batches:
        part = keras.tree.map_structure(keras.ops.convert_to_tensor, _cut((x, y), start, start + _BATCH))
        _, slopes = gradients(model, loss, *part)
        for role, weights in roles.items():
            total = np.zeros_like(squares[role])
            for place, axis, roots, value in weights:
                slope = np.moveaxis(value * slopes[place], axis, 0).reshape(len(roots), -1).sum(axis=1)
                np.add.at(total, roots, slope)
            squares[role] += np.square(total)
    found = {}
    for role in ("makes", "reads"):  # what reads a channel has the last word
        for root in judged.get(role, ()):
            found[root] = math.sqrt(squares[role][root] / len(batches))
    if not found:
        raise ValueError("no weight of the model is trainable, so there is no gradient; use importance='magnitude'")
    mean = float(np.mean(list(found.values())))
    return {identity: value * mean for identity, value in fallback.items()} | found


def _cut(structure, start, stop):
    return keras.tree.map_structure(lambda values: values[start:stop], structure)


def choose(identities, groups, score, share, scope, round_to):
    """Identities to remove.

    Args:
        identities: `Identities` of the model.
        groups: what `Identities.groups` gave.
        score: identity -> importance.
        share: of the identities to remove, in [0, 1].
        scope: "layer" for the same share of every group, "global" for one ranking of all.
        round_to: channels of which a multiple stays.
    """
    last = set()
    if scope == "global":
        every = sorted((identity for sets in groups.values() for identity in sets), key=score.__getitem__)
        last = set(every[: round(share * len(every))])
    removed = set()
    for makers, sets in groups.items():
        total = len(sets)
        channels = max(identities.makers[key][1] for key in makers)
        step = round_to // math.gcd(round_to, channels)
        wanted = total * (1 - share) if scope == "layer" else sum(identity not in last for identity in sets)
        kept = min(total, step * max(1, math.floor(wanted / step + 0.5)))
        removed.update(sorted(sets, key=score.__getitem__)[: total - kept])
    return removed


def reach_macs(identities, choice, target):
    """The smallest choice that leaves at most `target` multiply-accumulates.

    Args:
        identities: `Identities` of the model.
        choice: share in [0, 1] -> identities to remove.
        target: multiply-accumulates.

    Raises:
        ValueError: even the largest choice leaves more, or the cost of a layer is not known.
    """
    least = identities.macs(choice(1.0))
    if least > target:
        whole = identities.macs(set())
        raise ValueError(
            f"cannot reach {target:,} multiply-accumulates: {least:,} of {whole:,} ({least / whole:.1%}) are left with all "
            "groups at their smallest; ask for more, lower round_to or shorten keep"
        )
    low, high = 0.0, 1.0
    best = choice(high) if identities.macs(set()) > target else set()
    while high - low > 1e-4 and best:
        share = (low + high) / 2
        removed = choice(share)
        if identities.macs(removed) <= target:
            high, best = share, removed
        else:
            low = share
    return best


def reach_milliseconds(identities, choice, target, measure, steps=7):
    """The model with most channels, among those tried, whose latency is at most `target`.

    Args:
        identities: `Identities` of the model.
        choice: share in [0, 1] -> identities to remove.
        target: milliseconds.
        measure: model -> milliseconds.
        steps: how many halvings of the share to try.

    Raises:
        ValueError: no model that was tried is fast enough.
    """
    found = []

    def fast_enough(share):
        model = identities.rebuild(choice(share))
        found.append((float(measure(model)), share))
        return model if found[-1][0] <= target else None

    best = fast_enough(0.0)
    if best is not None:
        return best
    best = fast_enough(1.0)
    low, high = 0.0, 1.0
    for _ in range(steps if best is not None else 0):
        share = (low + high) / 2
        model = fast_enough(share)
        if model is None:
            low = share
        else:
            high, best = share, model
    if best is None:
        closest, share = min(found)
        raise ValueError(
            f"cannot reach {target} ms: the closest was {closest:.4g} ms with {share:.0%} of the removable channels gone, "
            f"{found[0][0]:.4g} ms with none gone; ask for more, lower round_to or shorten keep"
        )
    return best
