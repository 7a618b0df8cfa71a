"""Quantization-aware training: a model learns while weights and activations are rounded as an INT8 file rounds them.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
(arXiv:1712.05877): weights symmetric with one scale per output channel, activations unsigned with one scale per tensor
whose range is a moving average of what training shows, rounding with a straight-through gradient. Where it may matter
that a batch normalisation is folded into the convolution before it: with one scale per channel, rounding the kernel and
rounding the folded kernel give the same numbers, since both kernel and scale are multiplied by the same factor per
channel; so the layers stay as they are, and only the tensor between the two is not rounded. A normalisation behind
which the exporter folds into the next convolution is rounded slightly differently.
"""

import fnmatch
import json
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers, ops

from zoo.compress.costs import graph
from zoo.data import Data
from zoo.evaluate.report import defined, judge
from zoo.training import Run, as_run, check_folder, check_trained, tune
from zoo.training.fit import Method

# Attributes that hold kernels, each with the axes of its output channels.
KERNELS = {
    layers.Dense: {"kernel": (-1,)},
    layers.Conv1D: {"kernel": (-1,)},
    layers.Conv2D: {"kernel": (-1,)},
    layers.Conv3D: {"kernel": (-1,)},
    layers.Conv1DTranspose: {"kernel": (-2,)},
    layers.Conv2DTranspose: {"kernel": (-2,)},
    layers.Conv3DTranspose: {"kernel": (-2,)},
    layers.DepthwiseConv1D: {"kernel": (-2, -1)},
    layers.DepthwiseConv2D: {"kernel": (-2, -1)},
    layers.SeparableConv1D: {"depthwise_kernel": (-2, -1), "pointwise_kernel": (-1,)},
    layers.SeparableConv2D: {"depthwise_kernel": (-2, -1), "pointwise_kernel": (-1,)},
}
# Layers that choose or move values: what comes out lies on the grid of what went in.
MOVES = (
    layers.Flatten, layers.Reshape, layers.Permute, layers.RepeatVector, layers.Identity, layers.Dropout,
    layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D, layers.ActivityRegularization,
    layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D, layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D, layers.ZeroPadding1D, layers.ZeroPadding2D,
    layers.ZeroPadding3D, layers.Cropping1D, layers.Cropping2D, layers.Cropping3D,
)  # fmt: skip
CALIBRATION = 256  # rows that set the ranges before training
RANGES = "ranges.json"  # in the run folder
_TINY = 1e-12  # smallest step between two numbers of a grid


def rounded_weights(kernel, bits, channels):
    """A kernel on its symmetric grid, one scale per output channel; the gradient passes as if nothing was rounded.

    Args:
        kernel: tensor.
        bits: width of the integers; 8 gives -127 … 127.
        channels: axes of the output channels.
    """
    channels = {axis % len(kernel.shape) for axis in channels}
    others = tuple(axis for axis in range(len(kernel.shape)) if axis not in channels)
    bound = ops.max(ops.abs(ops.stop_gradient(kernel)), axis=others, keepdims=True)
    step = ops.maximum(bound / (2 ** (bits - 1) - 1), _TINY)
    return kernel + ops.stop_gradient(ops.round(kernel / step) * step - kernel)


def rounded_activations(x, low, high, bits):
    """A tensor on the unsigned grid from `low` <= 0 to `high` >= 0, which holds zero exactly.

    The gradient passes inside the range and is zero outside.
    """
    levels = 2**bits - 1
    step = ops.maximum((high - low) / levels, _TINY)
    zero = ops.clip(ops.round(-low / step), 0, levels)
    inside = ops.clip(x, -zero * step, (levels - zero) * step)
    place = ops.clip(ops.round(x / step) + zero, 0, levels)
    return inside + ops.stop_gradient((place - zero) * step - inside)


@keras.saving.register_keras_serializable("zoo")
class RoundedActivations(layers.Layer):
    """Rounds what passes to a grid of unsigned integers whose range follows training as a moving average.

    Until it has seen a range, by training or calibration, it passes everything unchanged.

    Args:
        bits: width of the integers.
        momentum: share of the old range that each training batch leaves, in [0, 1).
    """

    def __init__(self, bits=8, momentum=0.99, **kwargs):
        super().__init__(**kwargs)
        self.bits, self.momentum = bits, momentum
        self.supports_masking = True

    def build(self, shape):
        for name in ("low", "high", "seen"):
            setattr(self, name, self.add_weight((), "zeros", trainable=False, name=name))

    def call(self, x, training=False):
        if training:
            here = ops.stop_gradient(x)
            keep = ops.where(self.seen > 0, self.momentum, 0.0)
            low, high = ops.minimum(ops.min(here), 0.0), ops.maximum(ops.max(here), 0.0)
            self.low.assign(keep * self.low + (1 - keep) * low)
            self.high.assign(keep * self.high + (1 - keep) * high)
            self.seen.assign(1.0)
        return ops.where(self.seen > 0, rounded_activations(x, self.low.value, self.high.value, self.bits), x)

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        return {**super().get_config(), "bits": self.bits, "momentum": self.momentum}


@keras.saving.register_keras_serializable("zoo")
class RoundedWeights(layers.Wrapper):
    """Computes a layer with its kernels rounded; the kernels themselves stay as they are and learn.

    Args:
        layer: one of the kinds in `KERNELS`.
        bits: width of the integers.
    """

    def __init__(self, layer, bits=8, **kwargs):
        super().__init__(layer, **kwargs)
        self.bits = bits
        self.supports_masking = layer.supports_masking

    def call(self, x):
        rounded = {
            id(getattr(self.layer, name)): rounded_weights(getattr(self.layer, name).value, self.bits, channels)
            for name, channels in KERNELS[type(self.layer)].items()
        }
        # the layer reads these in place of its own; the inner scope must hold every variable, as it hides the outer one
        values = [(variable, rounded.get(id(variable), variable.value)) for variable in self.layer.variables]
        with keras.StatelessScope(state_mapping=values):
            return self.layer.call(x)

    def compute_output_shape(self, shape):
        return self.layer.compute_output_shape(shape)

    def get_config(self):
        return {**super().get_config(), "bits": self.bits}


class Finished(NamedTuple):
    """What quantization-aware training leaves.

    Attributes:
        model: plain Keras model with the learnt weights.
        ranges: `(low, high)` of the tensor that leaves each layer, by layer name.
        kept_float: layers with weights that were not rounded.
    """

    model: Any
    ranges: dict[str, tuple[float, float]]
    kept_float: tuple[str, ...]


def quantization_aware(
    model: keras.Model,
    data: Any = None,
    *,
    weight_bits: int = 8,
    activation_bits: int | None = 8,
    exclude: tuple[str, ...] | list[str] = (),
    momentum: float = 0.99,
    freeze_batch_norm: bool = False,
) -> keras.Model:
    """A copy of a model that computes with rounded weights and activations, to be trained and then handed to `finish`.

    Dense layers and convolutions get rounded kernels; every tensor that an INT8 file stores in 8 bits is rounded where
    it leaves its layer, after the batch normalisation and the ReLU that are folded into it. Layers of other kinds
    (recurrent ones, attention) keep float weights.

    Args:
        model: functional or built sequential model; it stays as it is.
        data: rows that set the first ranges: `zoo.data.Data` (of its training rows) or model inputs, (batch, …); None
            lets the first training batches set them.
        weight_bits: width of the weights' integers, 2 to 8.
        activation_bits: width of the activations' integers, 2 to 8; None leaves activations in float.
        exclude: names or patterns of layers left in float.
        momentum: of the moving average of the ranges, in [0, 1).
        freeze_batch_norm: leave batch normalisation as the model has learnt it, in place of going on with it.

    Returns:
        Functional model with the same inputs and outputs, not compiled.

    Raises:
        TypeError: the model is not functional.
        ValueError: an argument is out of range, the model has nothing to round or cannot be copied, or the rows are
            missing, of another shape, not finite or all equal.

    Source: Jacob et al. 2017, sections 2.1 and 3.
    """
    for name, bits in (("weight_bits", weight_bits), ("activation_bits", activation_bits)):
        if bits is None and name == "activation_bits":
            continue
        if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
            raise ValueError(f"{name} must be a whole number from 2 to 8, got {name}={bits!r}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got momentum={momentum!r}")
    rows = None if data is None else _rows(data, model)
    plain = _copy(model)
    if any(isinstance(layer, RoundedActivations | RoundedWeights) for layer in plain.layers):
        raise ValueError(f"model {model.name!r} is rounded already; finish it first")
    broken = [
        layer.name for layer in plain.layers if not all(np.isfinite(weight).all() for weight in layer.get_weights())
    ]
    if broken:
        raise ValueError(
            f"the weights of {', '.join(broken[:3])} are NaN or infinite; train the model again with a lower learning rate"
        )
    names = [layer.name for layer in plain.layers]
    for pattern in exclude:
        if not fnmatch.filter(names, pattern):
            raise ValueError(
                f"exclude: {pattern!r} matches no layer of model {model.name!r}; it has {', '.join(names)}"
            )

    def excluded(layer):
        return any(fnmatch.fnmatchcase(layer.name, pattern) for pattern in exclude)

    chosen = {layer.name for layer in plain.layers if type(layer) in KERNELS and not excluded(layer)}
    if not chosen:
        raise ValueError(
            f"model {model.name!r} has no dense layer or convolution to round"
            + (f" besides {', '.join(exclude)}" if exclude else "")
        )
    points = _points(plain, excluded) if activation_bits else {}
    rounders: dict[str, RoundedActivations] = {}
    count: dict[str, int] = {}

    def rounder(tensor, layer_name):
        made = RoundedActivations(activation_bits, momentum, name=f"{layer_name}_range")
        rounders[layer_name] = made
        return made(tensor)

    entering: dict[int, Any] = {}

    def read(tensor):
        operation = tensor._keras_history.operation if isinstance(tensor, keras.KerasTensor) else None
        if not isinstance(operation, layers.InputLayer) or (operation.name, 0) not in points:
            return tensor
        if id(tensor) not in entering:
            entering[id(tensor)] = rounder(tensor, points[operation.name, 0][0])
        return entering[id(tensor)]

    def call(layer, *args, **kwargs):
        args, kwargs = keras.tree.map_structure(read, (args, kwargs))
        out = layer(*args, **kwargs)
        name = layer.layer.name if isinstance(layer, RoundedWeights) else layer.name
        turn = count[name] = count.get(name, -1) + 1
        return rounder(out, points[name, turn][0]) if (name, turn) in points else out

    def rounded(layer):
        if layer.name in chosen:
            return RoundedWeights(layer, weight_bits, name=f"{layer.name}_rounded")
        if freeze_batch_norm and isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
        return layer

    result = keras.models.clone_model(plain, clone_function=rounded, call_function=call)
    if rows is not None and points:
        _calibrate(plain, points, rounders, rows)
    return result


def finish(model: keras.Model) -> Finished:
    """The plain model behind a rounded one, with its weights, and the ranges that its activations had.

    Args:
        model: what `quantization_aware` gave, trained.

    Raises:
        ValueError: the model is not a rounded one.
    """
    wrapped = {layer.name: layer for layer in model.layers if isinstance(layer, RoundedWeights)}
    if not wrapped:
        raise ValueError(f"model {model.name!r} is not rounded; make it so with quantization_aware(model)")

    def plain(layer):
        inner = layer.layer if isinstance(layer, RoundedWeights) else layer
        return inner if isinstance(inner, RoundedActivations) else type(inner).from_config(inner.get_config())

    def call(layer, *args, **kwargs):
        return args[0] if isinstance(layer, RoundedActivations) else layer(*args, **kwargs)

    result = keras.models.clone_model(model, clone_function=plain, call_function=call)
    for layer in model.layers:
        inner = layer.layer if isinstance(layer, RoundedWeights) else layer
        if inner.weights and not isinstance(inner, RoundedActivations):
            copy = result.get_layer(inner.name)
            copy.set_weights(inner.get_weights())
            if not isinstance(inner, layers.BatchNormalization):
                copy.trainable = inner.trainable
            else:
                copy.trainable = True  # it may have been frozen for the rounding alone
    inner = {layer.layer.name for layer in wrapped.values()}
    kept = tuple(layer.name for layer in result.layers if _kernels_of(layer) and layer.name not in inner)
    return Finished(result, _ranges(model), kept)


def tune_quantized(
    run: Any,
    out: str | Path,
    *,
    data: Any = None,
    epochs: int = 10,
    weight_bits: int = 8,
    activation_bits: int | None = 8,
    exclude: tuple[str, ...] | list[str] = (),
    freeze_batch_norm: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    callbacks: tuple = (),
    save_every: int = 0,
    **overrides: Any,
) -> Run:
    """Fine-tune a run's model under quantization and write a new run folder.

    Args:
        run: run, run folder or trained Keras model; it stays as it is.
        out: folder of the new run.
        data: data of a Keras model; a run knows its own.
        epochs: epochs of fine-tuning.
        weight_bits, activation_bits, exclude, freeze_batch_norm: as for `quantization_aware`.
        resume: go on with the killed run in `out`, given the same arguments.
        overwrite: replace a run folder that is there.
        quiet: no progress bar and no lines.
        callbacks: Keras callbacks.
        save_every: batches between two saves inside an epoch.
        overrides: settings of `zoo.recipes.Recipe`; a tenth of the run's learning rate by default.

    Returns:
        The new run, its model a plain one. Its metrics also hold `quantized`, the score on the test rows with rounding;
        `ranges.json` in its folder has the range of each activation, for the INT8 export.

    Raises:
        ValueError: a setting is out of range, the model has nothing to round or was never trained, or `out` is its own
            folder or has no run to resume.
        FileExistsError: the folder holds a run already.
    """
    source = as_run(run, data)
    check_folder(out, resume=resume, overwrite=overwrite, source=source)
    check_trained(source)
    if not resume:
        overrides = {"learning_rate": source.recipe.learning_rate / 10, "epochs": epochs, **overrides}
    method = Awareness(
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        exclude=tuple(exclude),
        freeze_batch_norm=freeze_batch_norm,
    )
    network = _copy(source.model)
    tuned = tune(
        source, network, out=out, resume=resume, overwrite=overwrite, quiet=quiet,
        callbacks=callbacks, save_every=save_every, method=method, **overrides,
    )  # fmt: skip
    tuned.metrics["quantized"] = method.score(tuned)
    folder = Path(out)
    (folder / "metrics.json").write_text(json.dumps(defined(tuned.metrics), indent=2) + "\n", encoding="utf-8")
    (folder / RANGES).write_text(json.dumps(method.ranges, indent=2) + "\n", encoding="utf-8")
    return tuned


class Awareness(Method):
    """Learning under quantization; the settings are those of `quantization_aware`."""

    def __init__(self, **settings):
        self.settings = settings

    def check(self, network, data, recipe):
        self.network = network
        self.model = quantization_aware(network, data, **self.settings)

    def begin(self, network, data, recipe):
        if getattr(self, "network", None) is not network:
            self.check(network, data, recipe)
        return self.model

    def finish(self):
        learnt = finish(self.model)
        self.ranges = {name: list(ends) for name, ends in learnt.ranges.items()}
        self.network.set_weights(learnt.model.get_weights())

    def score(self, run):
        """Score of the rounded model on the test rows."""
        from zoo.evaluate.report import answers

        part = run.data.test
        report = judge(run.signature, part.y, answers(self.model, run.signature, part.x), "test")
        return report.score.score


def _copy(model):
    """A fresh functional model of the same layers and weights."""
    try:
        copy = keras.models.clone_model(graph(model))
    except (TypeError, ValueError, NotImplementedError) as error:
        if not hasattr(model, "layers") or (isinstance(error, TypeError) and "functional" in str(error)):
            raise
        reason = " ".join(str(error).split("\n\n")[0].split())  # Keras goes on with an example
        raise ValueError(
            f"model {model.name!r} cannot be copied: {reason} Give its own layers a get_config that returns all arguments"
        ) from error
    copy.set_weights(graph(model).get_weights())  # a model may hold more, for its training
    return copy


def _calls(model):
    """Each `(layer, input tensors, output tensors)` of a functional model, inputs included, in the order they run."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            yield node.operation, list(node.input_tensors), list(node.outputs)


def _kernels_of(layer):
    return any(len(weight.shape) > 1 for weight in layer.weights)


def _points(model, excluded):
    """Where activations are rounded: `(layer, call) -> (name, tensor)` of the plain model.

    What leaves a layer is rounded unless the next layer is computed in the same step (normalisation behind a
    convolution, ReLU behind anything), its values lie on the grid already, or it leads to the model's output alone.
    """
    readers: dict[int, list] = {}
    for layer, inputs, _ in _calls(model):
        for tensor in inputs:
            readers.setdefault(id(tensor), []).append(layer)
    ends = {id(tensor) for tensor in model.outputs}
    found, turns = {}, {}
    for layer, _, outputs in _calls(model):
        turn = turns[layer.name] = turns.get(layer.name, -1) + 1
        if len(outputs) != 1 or isinstance(layer, MOVES) or not str(outputs[0].dtype).startswith("float"):
            continue
        if id(outputs[0]) in ends or excluded(layer) or _fused(layer, readers.get(id(outputs[0]), [])):
            continue
        found[layer.name, turn] = (layer.name if not turn else f"{layer.name}_{turn}", outputs[0])
    return found


def _fused(layer, readers):
    """Whether an INT8 file never stores what leaves this layer."""
    if len(readers) != 1:
        return False
    linear = getattr(layer, "activation", None) in (None, keras.activations.linear)
    if isinstance(readers[0], layers.BatchNormalization):
        return type(layer) in KERNELS and linear
    after = readers[0]
    relu = isinstance(after, layers.ReLU) and not after.negative_slope
    relu = relu or getattr(after, "activation", None) in (keras.activations.relu, keras.activations.relu6)
    return (
        isinstance(after, layers.ReLU | layers.Activation)
        and relu
        and linear
        and not isinstance(layer, layers.InputLayer)
    )


def _calibrate(plain, points, rounders, rows):
    """Set the first ranges to the smallest and largest value of each point."""
    stage = keras.Model(plain.inputs, [tensor for _, tensor in points.values()])
    names = [name for name, _ in points.values()]
    ends = np.zeros((len(names), 2))  # zero is in every range
    for start in range(0, len(rows), 64):
        for place, part in enumerate(keras.tree.flatten(stage.predict_on_batch(rows[start : start + 64]))):
            ends[place] = np.minimum(ends[place, 0], part.min()), np.maximum(ends[place, 1], part.max())  # NaN stays
    bad = [name for name, pair in zip(names, ends, strict=True) if not np.isfinite(pair).all()]
    if bad:
        raise ValueError(
            f"the activations of {', '.join(bad[:3])} are NaN or infinite on these rows; look at the rows, or train again"
        )
    for name, (low, high) in zip(names, ends, strict=True):
        layer = rounders[name]
        layer.low.assign(low)
        layer.high.assign(high)
        layer.seen.assign(1.0)


def _rows(data, model):
    """Model inputs that set the ranges."""
    if len(model.inputs) > 1:
        raise ValueError(
            f"quantization-aware training is for models of one input, {model.name!r} takes {len(model.inputs)}; export it, "
            "which rounds it afterwards"
        )
    if isinstance(data, Data):
        rows = data.signature.inputs({name: values[:CALIBRATION] for name, values in data.train.x.items()})
    else:
        rows = np.asarray(data)
    shape = tuple(model.input_shape[1:])
    fits = len(rows.shape) == len(shape) + 1 and all(
        want in (None, got) for want, got in zip(shape, rows.shape[1:], strict=True)
    )
    if not fits:
        raise ValueError(
            f"the rows that set the ranges must be (batch, {', '.join(map(str, shape))}), got {rows.shape}"
        )
    if not len(rows):
        raise ValueError("there are no rows to set the ranges; give at least some tens of training rows")
    rows = rows.astype(np.float32)
    if not np.isfinite(rows).all():
        raise ValueError(
            "the rows that set the ranges hold NaN or infinity; give prepared model inputs, or zoo.data.Data"
        )
    if len(rows) > 1 and (rows == rows[:1]).all():
        raise ValueError(
            f"the {len(rows)} rows that set the ranges are all equal, so the ranges would fit that row alone; give different rows"
        )
    return rows


def _ranges(model):
    """`(low, high)` by layer name."""
    return {
        layer.name.removesuffix("_range"): (
            float(ops.convert_to_numpy(layer.low)),
            float(ops.convert_to_numpy(layer.high)),
        )
        for layer in model.layers
        if isinstance(layer, RoundedActivations)
    }
