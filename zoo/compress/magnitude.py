"""Magnitude pruning: the smallest weights become zero while the model is trained, and stay zero.

Zhu & Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression" (arXiv:1710.01878).
Zeros shrink a compressed file. They do not shrink the arrays in memory and give no latency on engines with dense
arithmetic, such as ONNX Runtime; `prune_channels` does.
"""

import fnmatch
import math
import zlib
from typing import NamedTuple

import keras
import numpy as np
from keras import layers as keras_layers

SCHEDULES = ("polynomial", "linear", "one-shot")
KERNELS = (keras_layers.Conv1D, keras_layers.Conv2D, keras_layers.Conv3D, keras_layers.Dense)
DEPTHWISE = (keras_layers.DepthwiseConv1D, keras_layers.DepthwiseConv2D)
UPDATES = 100  # times the masks are chosen anew along the ramp, where no interval is given


class MagnitudePruning(keras.callbacks.Callback):
    """Zeroes the smallest weights during `fit`, more and more of them along a schedule.

    After each training step the chosen weights are set to zero again, so nothing is added to the model: it saves,
    loads and exports as any other, at any time. A zero stays zero, also under momentum. With `steps_per_execution`
    above 1 the zeros hold at the end of each execution. Epoch logs gain `sparsity`, the share reached so far. List
    this callback after those that replace weights, such as `EarlyStopping(restore_best_weights=True)`.

    Args:
        target: share of the weights that end as zero, in (0, 1).
        schedule: "polynomial" (fast, then slower: most weights go early, while training can still mend it),
            "linear", or "one-shot" (all at `begin_epoch`, then plain fine-tuning).
        begin_epoch: when pruning starts, in epochs of this `fit`; fractions count steps.
        end_epoch: when the target is reached, in epochs; three quarters of the training by default. Without use for
            "one-shot".
        every: steps between two choices of the masks; a hundredth of the ramp by default.
        scope: "global" ranks the weights of all layers together, so that layers lose different shares; "layer"
            takes the same share from each.
        layers: names or patterns (`"stage3_*"`) of the layers to prune. By default every convolution and dense layer
            but `logits`; depthwise convolutions, being small and sensitive, only when named.

    Raises:
        ValueError: an argument is out of range; on `fit`, `layers` matches no layer that can be pruned.

    Source: Zhu & Gupta 2017, equation 1, for "polynomial", with initial sparsity 0.
    """

    def __init__(
        self,
        target: float = 0.5,
        *,
        schedule: str = "polynomial",
        begin_epoch: float = 0.0,
        end_epoch: float | None = None,
        every: int | None = None,
        scope: str = "global",
        layers: tuple[str, ...] | list[str] | None = None,
    ):
        super().__init__()
        if not 0 < target < 1:
            raise ValueError(f"target must be a share in (0, 1), got target={target!r}; 0.5 zeroes half of the weights")
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
        if scope not in ("global", "layer"):
            raise ValueError(f"scope must be 'global' or 'layer', got {scope!r}")
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
        self.layers = None if layers is None else tuple(layers)

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
        if self.schedule == "one-shot" or epoch >= end:
            return self.target
        progress = (epoch - self.begin_epoch) / (end - self.begin_epoch)
        return self.target * (1 - (1 - progress) ** (3 if self.schedule == "polynomial" else 1))

    def _end(self, epochs):
        return max(self.begin_epoch, 0.75 * epochs) if self.end_epoch is None else self.end_epoch

    def on_train_begin(self, logs=None):
        self._kernels = [layer.kernel for layer in _prunable(self.model, self.layers)]
        self._masks = None
        self._reached = 0.0
        self._chosen_at = -math.inf
        self._steps = self.params.get("steps")  # of an epoch; None while the length of the data is unknown
        self._batch = 0
        self._epoch = -1

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._update(epoch)

    def on_train_batch_end(self, batch, logs=None):
        self._batch = batch + 1
        if self._steps:
            self._update(self._epoch + self._batch / self._steps)
        else:
            self._apply()

    def on_epoch_end(self, epoch, logs=None):
        self._steps = self._steps or self._batch
        if logs is not None:
            logs["sparsity"] = self._reached

    def on_train_end(self, logs=None):
        self._update(self._epoch + 1)
        self._apply()  # an optimizer's moving average or another callback may have put other weights in place

    def _update(self, time):
        """Choose the masks anew when that is due at a time in epochs; zero the weights in any case."""
        epochs = self.params["epochs"]
        share = self.share(time, epochs)
        steps = self._steps or 1
        every = self.every or max(1, round((self._end(epochs) - self.begin_epoch) * steps / UPDATES))
        due = share == self.target or (time - self._chosen_at) * steps >= every - 0.5
        self._apply()
        if share > self._reached and due:
            kernels = [keras.ops.convert_to_numpy(kernel) for kernel in self._kernels]
            self._masks = _masks(kernels, share, self.scope)
            self._reached = share
            self._chosen_at = time
            self._apply()

    def _apply(self):
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()  # during an epoch the JAX trainer holds the weights outside the variables
        if self._masks is None:
            return
        for kernel, mask in zip(self._kernels, self._masks, strict=True):
            kernel.assign(keras.ops.where(mask, kernel.value, 0.0))


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


def _masks(kernels, share, scope):
    """True where a weight stays; the share is exact to one weight."""
    if scope == "layer":
        return [_smallest([kernel], share)[0] for kernel in kernels]
    return _smallest(kernels, share)


def _smallest(kernels, share):
    size = np.concatenate([np.abs(kernel).ravel() for kernel in kernels])
    stays = np.ones(len(size), bool)
    count = round(share * len(size))
    if count:
        stays[np.argpartition(size, count - 1)[:count]] = False
    ends = np.cumsum([kernel.size for kernel in kernels])[:-1]
    return [part.reshape(kernel.shape) for part, kernel in zip(np.split(stays, ends), kernels, strict=True)]


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
