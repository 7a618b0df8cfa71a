"""Magnitude pruning: the smallest weights become zero, at once or while the model is trained.

Zhu & Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression" (arXiv:1710.01878);
Mishra et al., "Accelerating Sparse Deep Neural Networks" (arXiv:2104.08378) for N of every M weights. Zeros shrink a
compressed file. They do not shrink the arrays in memory and give no latency on engines with dense arithmetic, such as
ONNX Runtime; `prune_channels` does.
"""

import fnmatch
import math
import re
import zlib
from typing import NamedTuple

import keras
import numpy as np
from keras import layers as keras_layers

SCHEDULES = ("polynomial", "linear", "constant", "one-shot")
KERNELS = (keras_layers.Conv1D, keras_layers.Conv2D, keras_layers.Conv3D, keras_layers.Dense)
DEPTHWISE = (keras_layers.DepthwiseConv1D, keras_layers.DepthwiseConv2D)
UPDATES = 100  # times the masks are chosen anew between begin and end, where no interval is given


class MagnitudePruning(keras.callbacks.Callback):
    """Zeroes the smallest weights during `fit`, more and more of them along a schedule.

    After each training step the chosen weights are set to zero again, so nothing is added to the model: it saves,
    loads and exports as any other, at any time. A zero stays zero, also under momentum. With `steps_per_execution`
    above 1 the zeros hold at the end of each execution. Epoch logs gain `sparsity`, the share reached so far. List
    this callback after those that replace weights, such as `EarlyStopping(restore_best_weights=True)`. A run of
    `zoo.train` that was killed and resumed prunes as if it had never stopped.

    Args:
        target: share of the weights that end as zero, in (0, 1); half by default. With `pattern` it follows from that.
        schedule: "polynomial" (fast, then slower: most weights go early, while training can still mend it),
            "linear", "constant" (all at `begin_epoch`; until `end_epoch` the masks are chosen anew at each interval,
            so that a weight that training brings back above a kept one takes its place), or "one-shot" (all at
            `begin_epoch`, then plain fine-tuning).
        begin_epoch: when pruning starts, in epochs of this `fit`; fractions count steps.
        end_epoch: when the target is reached and the masks are final, in epochs; three quarters of the training by
            default. Without use for "one-shot".
        every: steps between two choices of the masks; a hundredth of the way from begin to end by default.
        scope: "global" ranks the weights of all layers together, so that layers lose different shares; "layer"
            takes the same share from each. With `pattern` the layers end equal and this decides which go first.
        pattern: "N:M" keeps the N largest of every M consecutive input weights of an output unit (along height, width
            and channels of a convolution, channels fastest), such as "2:4"; weights beyond the last full M stay.
        layers: names or patterns (`"stage3_*"`) of the layers to prune. By default every convolution and dense layer
            but `logits`; depthwise convolutions, being small and sensitive, only when named.

    Raises:
        ValueError: an argument is out of range; on `fit`, `layers` matches no layer that can be pruned.

    Source: Zhu & Gupta 2017, equation 1, for "polynomial", with initial sparsity 0; Mishra et al. 2021, section 3, for
    the pattern.
    """

    def __init__(
        self,
        target: float | None = None,
        *,
        schedule: str = "polynomial",
        begin_epoch: float = 0.0,
        end_epoch: float | None = None,
        every: int | None = None,
        scope: str = "global",
        pattern: str | None = None,
        layers: tuple[str, ...] | list[str] | None = None,
    ):
        super().__init__()
        target, self.group = _aim(target, pattern, scope)
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
        if begin_epoch < 0 or (end_epoch is not None and end_epoch < begin_epoch):
            raise ValueError(
                "epochs must satisfy 0 <= begin_epoch <= end_epoch, "
                f"got begin_epoch={begin_epoch!r}, end_epoch={end_epoch!r}"
            )
        if every is not None and every < 1:
            raise ValueError(f"every must be at least 1 step, got every={every!r}")
        self.target = target
        self.schedule = schedule
        self.begin_epoch = begin_epoch
        self.end_epoch = end_epoch
        self.every = every
        self.scope = scope
        self.pattern = pattern
        self.layers = None if layers is None else tuple(layers)
        self.reached = 0.0  # share that the masks in force were chosen for
        self.chosen_at = -math.inf  # when they were chosen, in epochs
        self._masks = None
        self._place = None

    def place(self, epochs: int, steps: int, epoch: int, batch: int) -> None:
        """Say where in a run the next `fit` begins; `zoo.train` does, and a resumed run is pruned from there on.

        Args:
            epochs: length of the whole run.
            steps: batches of a whole epoch.
            epoch: epoch that is begun or gone on with, from 0.
            batch: batches of it that were done before.
        """
        self._place = (epochs, steps, epoch, batch)

    def share(self, epoch: float, epochs: float) -> float:
        """Share of weights to be zero at a time.

        Args:
            epoch: time since the start, in epochs.
            epochs: length of the training, in epochs.

        Returns:
            Share in [0, target].
        """
        if epoch < self.begin_epoch:
            return 0.0
        end = self._end(epochs)
        if self.schedule in ("constant", "one-shot") or epoch >= end:
            return self.target
        progress = (epoch - self.begin_epoch) / (end - self.begin_epoch)
        return self.target * (1 - (1 - progress) ** (3 if self.schedule == "polynomial" else 1))

    def _end(self, epochs):
        return max(self.begin_epoch, 0.75 * epochs) if self.end_epoch is None else self.end_epoch

    def on_train_begin(self, logs=None):
        self._chosen = _prunable(self.model, self.layers)
        # the length of an epoch is None while that of the data is unknown
        epochs, steps, epoch, batch = self._place or (self.params["epochs"], self.params.get("steps"), 0, 0)
        self._place = None
        self._epochs, self._steps, self._skip = epochs, steps, batch
        if not epoch and not batch:
            self.reached, self.chosen_at, self._masks = 0.0, -math.inf, None
        elif self._masks is None and self.reached:  # resumed: the zeros are in the weights
            self._masks = [keras.ops.convert_to_numpy(layer.kernel) != 0 for layer in self._chosen]
        self._batch = batch
        self._epoch = epoch - 1

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._batch = self._skip
        if not self._skip:  # else the step before took care of it
            self._update(epoch)

    def on_train_batch_end(self, batch, logs=None):
        self._batch = self._skip + batch + 1
        if self._steps:
            self._update(self._epoch + self._batch / self._steps)
        else:
            self._apply()

    def on_epoch_end(self, epoch, logs=None):
        self._steps = self._steps or self._batch
        self._skip = 0
        if logs is not None:
            logs["sparsity"] = self.reached

    def on_train_end(self, logs=None):
        self._update(self._epoch + 1)
        self._apply()  # an optimizer's moving average or another callback may have put other weights in place

    def _update(self, time):
        """Choose the masks anew when that is due at a time in epochs; zero the weights in any case."""
        share = self.share(time, self._epochs)
        steps = self._steps or 1
        end = self._end(self._epochs)
        every = self.every or max(1, round((end - self.begin_epoch) * steps / UPDATES))
        waited = (time - self.chosen_at) * steps >= every - 0.5
        grows = share > self.reached and (share == self.target or waited)
        renewed = self.schedule == "constant" and self._masks is not None and waited and time < end
        if not renewed:  # a constant share is chosen from what the step has left, so that a weight may come back
            self._apply()
        if grows or renewed:
            self._sync()
            self._masks = _masks(self._chosen, share, self.scope, self.group)
            self.reached = share
            self.chosen_at = time
            self._apply()

    def _sync(self):
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()  # during an epoch the JAX trainer holds the weights outside the variables

    def _apply(self):
        self._sync()
        if self._masks is None:
            return
        for layer, mask in zip(self._chosen, self._masks, strict=True):
            layer.kernel.assign(keras.ops.where(mask, layer.kernel.value, 0.0))


def zero_weights(
    model: keras.Model,
    share: float | None = None,
    *,
    scope: str = "global",
    pattern: str | None = None,
    layers: tuple[str, ...] | list[str] | None = None,
) -> keras.Model:
    """A copy of a model whose smallest weights are zero, without any training; the given model stays as it is.

    Args:
        model: model with weights.
        share: share of the weights to set to zero, in (0, 1); half by default. With `pattern` it follows from that.
        scope: "global" ranks the weights of all layers together, "layer" takes the same share from each.
        pattern: "N:M" keeps the N largest of every M consecutive input weights of an output unit, such as "2:4".
        layers: names or patterns of layers, as for `MagnitudePruning`.

    Raises:
        ValueError: an argument is out of range, or `layers` matches no layer that can be pruned.
    """
    share, group = _aim(share, pattern, scope)
    _prunable(model, layers)  # what is wrong with them is told before the copy is made
    result = keras.models.clone_model(model)
    result.set_weights(model.get_weights())
    chosen = _prunable(result, layers)
    for layer, mask in zip(chosen, _masks(chosen, share, scope, group), strict=True):
        layer.kernel.assign(keras.ops.where(mask, layer.kernel.value, 0.0))
    return result


def _aim(share, pattern, scope):
    """Share of the weights to zero, and `(kept, of)` of the pattern or None."""
    if scope not in ("global", "layer"):
        raise ValueError(f"scope must be 'global' or 'layer', got {scope!r}")
    if pattern is None:
        share = 0.5 if share is None else share
        if not 0 < share < 1:
            raise ValueError(f"target must be a share in (0, 1), got target={share!r}; 0.5 zeroes half of the weights")
        return share, None
    parts = re.fullmatch(r"(\d+):(\d+)", str(pattern))
    if not parts or not 0 < int(parts[1]) < int(parts[2]):
        raise ValueError(f"pattern must be 'N:M' with 0 < N < M, such as '2:4', got pattern={pattern!r}")
    kept, of = map(int, parts.groups())
    if share is not None and share != 1 - kept / of:
        raise ValueError(
            f"pattern {pattern!r} zeroes {1 - kept / of:.4g} of the weights, got {share!r}; leave that out"
        )
    return 1 - kept / of, (kept, of)


def _flat(model):
    """Layers of a model, those of nested models included, each once."""
    found = {}
    for layer in model.layers:
        inner = _flat(layer) if isinstance(layer, keras.Model) else [layer]
        found.update((id(layer), layer) for layer in inner)
    return list(found.values())


def _prunable(model, patterns):
    """Layers whose kernel is to be pruned."""
    known = [layer for layer in _flat(model) if isinstance(layer, KERNELS + DEPTHWISE) and layer.built]
    if patterns is None:
        chosen = [layer for layer in known if isinstance(layer, KERNELS) and layer.name != "logits"]
        if not chosen:
            raise ValueError(
                f"model {model.name!r} has no convolution or dense layer besides 'logits'; "
                "pass layers=('logits',) to prune that one"
            )
        return chosen
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(layer.name, pattern) for layer in known):
            names = ", ".join(layer.name for layer in known)
            raise ValueError(
                f"layers: {pattern!r} matches no layer with a kernel; model {model.name!r} has {names or 'none'}"
            )
    return [layer for layer in known if any(fnmatch.fnmatchcase(layer.name, pattern) for pattern in patterns)]


def _masks(layers, share, scope, group=None):
    """Arrays that are True where a weight stays; the share is exact to one weight."""
    sizes = [np.abs(keras.ops.convert_to_numpy(layer.kernel)) for layer in layers]
    counts = [size.size for size in sizes]
    if group:
        kept, of = group
        candidates = [_candidates(size, _units(layer), kept, of) for size, layer in zip(sizes, layers, strict=True)]
        sizes = [np.where(may_go, size, np.inf) for size, may_go in zip(sizes, candidates, strict=True)]
        counts = [may_go.sum() * of / (of - kept) for may_go in candidates]  # weights in full groups
    if scope == "layer":
        return [_smallest([size], round(share * count))[0] for size, count in zip(sizes, counts, strict=True)]
    return _smallest(sizes, round(share * sum(counts)))


def _units(layer):
    """Output units of a kernel; a depthwise one makes each from a channel of its own."""
    return math.prod(layer.kernel.shape[-2 if isinstance(layer, DEPTHWISE) else -1 :])


def _candidates(size, units, kept, of):
    """True for all but the `kept` largest of every `of` consecutive input weights of an output unit."""
    rows = size.reshape(-1, units)  # (input weights, units)
    full = len(rows) // of * of
    groups = rows[:full].reshape(-1, of, units)
    smallest = np.argsort(groups, axis=1, kind="stable")[:, : of - kept]
    chosen = np.zeros(groups.shape, bool)
    np.put_along_axis(chosen, smallest, True, axis=1)
    found = np.zeros(rows.shape, bool)
    found[:full] = chosen.reshape(full, units)
    return found.reshape(size.shape)


def _smallest(sizes, count):
    """Arrays that are False at the `count` smallest places of all together."""
    flat = np.concatenate([size.ravel() for size in sizes])
    stays = np.ones(len(flat), bool)
    if count:
        stays[np.argpartition(flat, count - 1)[:count]] = False
    ends = np.cumsum([size.size for size in sizes])[:-1]
    return [part.reshape(size.shape) for part, size in zip(np.split(stays, ends), sizes, strict=True)]


class Sparsity(NamedTuple):
    """Zeros in one layer's kernel.

    Attributes:
        layer: name.
        weights: scalars in the kernel.
        zeros: how many of them are exactly zero.
        share: zeros / weights.
    """

    layer: str
    weights: int
    zeros: int
    share: float


def sparsity(model: keras.Model) -> list[Sparsity]:
    """Zeros in the kernel of each convolution and dense layer, and of all together in a last row called "total".

    Zeros make the compressed file smaller; the latency of a dense engine stays as it was.
    """
    rows = []
    for layer in _flat(model):
        if isinstance(layer, KERNELS + DEPTHWISE) and layer.built:
            kernel = keras.ops.convert_to_numpy(layer.kernel)
            zeros = int(kernel.size - np.count_nonzero(kernel))
            rows.append(Sparsity(layer.name, kernel.size, zeros, zeros / kernel.size))
    weights, zeros = sum(row.weights for row in rows), sum(row.zeros for row in rows)
    return [*rows, Sparsity("total", weights, zeros, zeros / max(weights, 1))]


def compressed_bytes(model: keras.Model) -> int:
    """Bytes of all weights after deflate, the method of zip and gzip: what zeros save in a download."""
    return sum(len(zlib.compress(np.ascontiguousarray(weight).tobytes())) for weight in model.get_weights())


def zeros_report(model: keras.Model, before: keras.Model | None = None) -> str:
    """What the zeros of a model are worth, as lines to print: their share, the bytes they save, and what stays.

    Args:
        model: with zeros.
        before: the model as it was without them, to compare with.
    """
    rows = sparsity(model)
    raw = sum(weight.nbytes for weight in model.get_weights())
    packed = compressed_bytes(model)
    lines = [f"{row.layer}: {row.share:.1%} of {row.weights:,} weights are zero" for row in rows[:-1] if row.zeros]
    total = rows[-1]
    lines.append(
        f"all kernels: {total.share:.1%} of {total.weights:,} weights are zero; {raw:,} bytes of weights, "
        f"{packed:,} compressed ({packed / max(raw, 1):.0%})"
        + (f", {compressed_bytes(before):,} compressed before" if before is not None else "")
    )
    lines.append(
        "zeros shrink the compressed file alone: memory and latency stay as they were; removing channels shrinks both"
    )
    return "\n".join(lines)
