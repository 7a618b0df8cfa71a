"""Channel pruning: whole filters and units are removed and a smaller, ordinary Keras model is left.

Every channel of every tensor in the graph gets an identity. Layers that keep channels apart (normalisation, elementwise
activation, pooling, flattening, depthwise convolution) pass identities on; convolutions and dense layers make new
ones; adding two tensors makes their channels one. What ends as one identity is removed together or not at all,
which is the dependency grouping of Fang, Ma, Song, Mi & Wang, "DepGraph: Towards Any Structural Pruning" (CVPR 2023,
arXiv:2301.12900). A layer this file does not know keeps all channels that reach or leave it.

Filters are ranked by their norm, as Li, Kadav, Durdanovic, Samet & Graf, "Pruning Filters for Efficient ConvNets"
(ICLR 2017, arXiv:1608.08710), or by the scale of their batch normalisation, as Liu, Li, Shen, Huang, Yan & Zhang,
"Learning Efficient Convolutional Networks through Network Slimming" (ICCV 2017, arXiv:1708.06519). Departure from
the former: the L2 norm in place of L1.
"""

import fnmatch
import math
from typing import NamedTuple

import keras
import numpy as np
from keras import layers

from zoo.compress.costs import calls, graph

CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
# Each output channel depends on the input channel at the same place alone, and there are no weights.
CHANNELWISE = (
    layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Identity,
    layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D, layers.AlphaDropout,
    layers.GaussianDropout, layers.GaussianNoise, layers.ActivityRegularization,
    layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D,
    layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D,
    layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D,
    layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D,
    layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D,
    layers.Cropping1D, layers.Cropping2D, layers.Cropping3D,
    layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D,
)  # fmt: skip
MERGES = (layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum)
ELEMENTWISE = {
    "linear", "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "tanh", "sigmoid",
    "hard_sigmoid", "hard_silu", "hard_tanh", "softplus", "softsign", "exponential", "log_sigmoid", "squareplus",
}  # fmt: skip


class Group(NamedTuple):
    """Channels that are ranked against each other; removing one removes it from every layer named.

    Attributes:
        layers: the layers whose filters or units make these channels, in graph order.
        channels: how many there are.
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
    return [Group(names, len(sets)) for names, sets in _Identities(model, keep).groups().items()]


def prune_channels(
    model: keras.Model,
    ratio: float = 0.5,
    *,
    importance: str = "magnitude",
    scope: str = "layer",
    round_to: int = 1,
    keep: tuple[str, ...] | list[str] = ("logits",),
) -> keras.Model:
    """Build a smaller model without the least important filters and units; fine-tune it afterwards.

    Half of the channels everywhere leaves about a quarter of the parameters and of the arithmetic, because a
    convolution loses inputs and outputs. Accuracy drops, often to chance, until the result has been trained for some
    epochs. The given model is left as it is.

    Args:
        model: functional or built sequential model, channels last. Convolutions, dense layers, residual additions,
            concatenations, squeeze and excitation, depthwise convolutions and batch normalisation are followed;
            around any other layer with mixing channels, grouped convolutions and nested models, channels are kept.
        ratio: share of the removable channels to remove, in [0, 1). Inputs and outputs of the model always stay.
        importance: "magnitude" (L2 norm of the filters, each layer's mean being 1, averaged over the layers that
            must lose the channel together) or "batch_norm" (the same of the absolute scale of batch normalisation;
            groups without one are ranked by magnitude).
        scope: "layer" removes the ratio from every group; "global" ranks all groups together, so that some lose more.
        round_to: each group keeps a multiple of this many channels where it has as many, and at least one such
            multiple. Multiples of 8 or 16 suit vector units.
        keep: names or patterns (`"stage0_*"`) of layers that keep all their output channels.

    Returns:
        Functional model with the same layer names and the remaining weights, not compiled.

    Raises:
        TypeError: the model is not functional, or not channels last.
        ValueError: an argument is out of range, a pattern in `keep` matches no layer, or nothing can be removed.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio must be a share in [0, 1), got ratio={ratio!r}; 0.5 removes half of the channels")
    if importance not in ("magnitude", "batch_norm"):
        raise ValueError(f"importance must be 'magnitude' or 'batch_norm', got {importance!r}")
    if scope not in ("layer", "global"):
        raise ValueError(f"scope must be 'layer' or 'global', got {scope!r}")
    if round_to < 1:
        raise ValueError(f"round_to must be at least 1 channel, got round_to={round_to!r}")
    identities = _Identities(model, keep)
    groups = identities.groups()
    if not groups:
        raise ValueError(
            f"model {model.name!r} has no channels to remove: all belong to its inputs, its outputs, "
            f"keep={tuple(keep)!r} or layers that must keep them"
        )
    if importance == "batch_norm" and not identities.scales:
        raise ValueError(f"model {model.name!r} has no BatchNormalization with a scale; use importance='magnitude'")
    score = identities.importance(importance)
    removed = _choose(groups, score, ratio, scope, round_to)
    if ratio and not removed:
        widest = max(len(sets) for sets in groups.values())
        raise ValueError(
            f"ratio={ratio!r} with round_to={round_to!r} removes no channel (the widest group has {widest}); "
            "raise ratio or lower round_to"
        )
    return identities.rebuild(removed)


def _choose(groups, score, ratio, scope, round_to):
    """Identities to remove."""
    last = set()
    if scope == "global":
        every = sorted((identity for sets in groups.values() for identity in sets), key=score.__getitem__)
        last = set(every[: round(ratio * len(every))])
    removed = set()
    for sets in groups.values():
        total = len(sets)
        wanted = total * (1 - ratio) if scope == "layer" else sum(identity not in last for identity in sets)
        kept = min(total, round_to * max(1, math.floor(wanted / round_to + 0.5)))
        removed.update(sorted(sets, key=score.__getitem__)[: total - kept])
    return removed


class _Identities:
    """Which channels of which tensors are one, by union-find over integers."""

    def __init__(self, model, keep):
        self.model = graph(model)
        self.calls = list(calls(self.model))
        self.parent = []
        self.fixed = []  # identities that must stay
        self.tensors = {}  # id of a tensor -> (channels,) identities of its last axis; absent where not followed
        self.entering = {}  # layer name -> identities its weights read
        self.leaving = {}  # layer name -> identities its weights make
        self.filters = []  # (identities, norms) of each layer that makes or filters channels
        self.scales = []  # (identities, scales) of each batch normalisation
        self.reshaped = {}  # name of a Reshape -> identities of its last axis
        names = [layer.name for layer, _, _ in self.calls]
        for pattern in keep:
            if pattern != "logits" and not fnmatch.filter(names, pattern):
                raise ValueError(
                    f"keep: {pattern!r} matches no layer of model {model.name!r}; it has {', '.join(names)}"
                )
        for layer, inputs, outputs in self.calls:
            result = self._follow(layer, inputs, outputs)
            if result is None or result.shape[0] != outputs[0].shape[-1]:
                for tensor in [*inputs, *outputs]:
                    self._fix(self.tensors.get(id(tensor)))
                self._fix(result)
            else:
                self.tensors[id(outputs[0])] = result
            if any(fnmatch.fnmatchcase(layer.name, pattern) for pattern in keep):
                self._fix(result)
        for tensor in self.model.outputs:
            self._fix(self.tensors.get(id(tensor)))

    def find(self, identity):
        while self.parent[identity] != identity:
            self.parent[identity] = identity = self.parent[self.parent[identity]]
        return identity

    def _new(self, count):
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def _unite(self, first, second):
        for one, other in zip(first, second, strict=True):
            self.parent[self.find(one)] = self.find(other)

    def _fix(self, identities):
        if identities is not None:
            self.fixed.extend(identities)

    def _follow(self, layer, inputs, outputs):
        """Identities of the output's last axis, or None for a layer whose channels must all stay."""
        kind = type(layer)  # exact: a subclass may compute something else
        if getattr(layer, "data_format", None) == "channels_first":
            raise TypeError(f"layer {layer.name!r} is channels first; build the model channels last to remove channels")
        known = [self.tensors.get(id(tensor)) for tensor in inputs]
        if kind is layers.InputLayer or len(outputs) != 1 or len(outputs[0].shape) < 2:
            return None
        if kind in MERGES:
            return self._merge(inputs, known)
        if kind is layers.Concatenate:
            return self._concatenate(layer, inputs, known)
        source = known[0] if known else None
        if len(inputs) != 1:
            return None
        if kind in CONVOLUTIONS or kind is layers.Dense:
            return self._make(layer, source)
        if source is None:
            return None
        if kind in DEPTHWISE or kind is layers.BatchNormalization or kind is layers.PReLU:
            return self._weigh(layer, inputs[0], source)
        if kind is layers.Flatten:
            places = math.prod(inputs[0].shape[1:-1]) if None not in inputs[0].shape[1:-1] else 0
            return np.tile(source, places)  # position-major, channel-minor; none known if a size is unknown
        if kind is layers.Reshape:
            if outputs[0].shape[-1] != inputs[0].shape[-1]:
                return None
            self.reshaped[layer.name] = source
            return source
        if kind in CHANNELWISE or (kind is layers.Activation and _elementwise(layer)):
            return source
        if kind is layers.Rescaling and np.ndim(layer.scale) == 0 and np.ndim(layer.offset) == 0:
            return source
        return None

    def _merge(self, inputs, known):
        """Sum, product and the like of tensors: equal places become one; a single channel may be broadcast."""
        if any(source is None for source in known) or len({len(tensor.shape) for tensor in inputs}) > 1:
            return None
        widest = max(known, key=len)
        for source in known:
            if len(source) == len(widest):
                self._unite(widest, source)
            else:
                self._fix(source)
        return widest

    def _concatenate(self, layer, inputs, known):
        rank = len(inputs[0].shape)
        if layer.axis in (-1, rank - 1):
            if any(tensor.shape[-1] is None for tensor in inputs):
                return None
            parts = [self._new(x.shape[-1]) if part is None else part for x, part in zip(inputs, known, strict=True)]
            for part, before in zip(parts, known, strict=True):
                if before is None:
                    self._fix(part)
            return np.concatenate(parts)
        if any(source is None for source in known):
            return None
        for source in known[1:]:
            self._unite(known[0], source)
        return known[0]

    def _make(self, layer, source):
        """Convolution or dense layer: reads its input's channels, makes new ones."""
        if getattr(layer, "groups", 1) > 1 or not _plain(layer):
            return None
        self._read(layer, source)
        if layer.name not in self.leaving:
            self.leaving[layer.name] = self._new(layer.kernel.shape[-1])
            self.filters.append((self.leaving[layer.name], _norms(layer.kernel)))
        if not _elementwise(layer):
            self._fix(self.leaving[layer.name])
        return self.leaving[layer.name]

    def _weigh(self, layer, tensor, source):
        """Depthwise convolution, batch normalisation, PReLU: weights per channel, channels passed on."""
        first = layer.name not in self.entering
        match layer:
            case layers.DepthwiseConv1D() | layers.DepthwiseConv2D():
                if layer.depth_multiplier != 1 or not _plain(layer) or not _elementwise(layer):
                    return None
                if first:
                    self.filters.append((source, _norms(layer.kernel[..., 0])))
            case layers.BatchNormalization():
                if layer.axis not in (-1, len(tensor.shape) - 1):
                    return None
                if first and layer.scale:
                    self.scales.append((source, np.abs(keras.ops.convert_to_numpy(layer.gamma))))
            case layers.PReLU():
                if len(tensor.shape) - 1 in (layer.shared_axes or ()):
                    return source
        self._read(layer, source)
        return source

    def _read(self, layer, source):
        """Note which channels a layer's weights read; a shared layer has one kernel, so one choice for all calls."""
        if layer.name not in self.entering:
            self.entering[layer.name] = source
            return
        before = self.entering[layer.name]
        if source is None or before is None:
            self._fix(source)
            self._fix(before)
        else:
            self._unite(before, source)

    def groups(self):
        """Names of the layers that make a channel -> identities of the channels they make together."""
        fixed = {self.find(identity) for identity in self.fixed}
        makers = {}
        for name, made in self.leaving.items():
            for identity in map(self.find, made):
                if identity not in fixed:
                    makers.setdefault(identity, {})[name] = None
        groups = {}
        for identity, names in makers.items():
            groups.setdefault(tuple(names), []).append(identity)
        return groups

    def importance(self, kind):
        """Identity -> importance, about 1 for an average channel."""
        found = {}
        for measured in (self.scales, self.filters) if kind == "batch_norm" else (self.filters,):
            values = {}
            for identities, sizes in measured:
                relative = sizes / (sizes.mean() or 1.0)
                for identity, value in zip(identities, relative, strict=True):
                    values.setdefault(self.find(identity), []).append(value)
            found = {**{identity: float(np.mean(many)) for identity, many in values.items()}, **found}
        return found

    def rebuild(self, removed):
        """Model without the identities in `removed`, with the weights that are left."""
        stays = np.array([self.find(identity) not in removed for identity in range(len(self.parent))], bool)

        def left(identities):
            return slice(None) if identities is None else np.flatnonzero(stays[identities])

        def smaller(layer):
            config = layer.get_config()
            if layer.name in self.leaving:
                size = "units" if isinstance(layer, layers.Dense) else "filters"
                config[size] = len(left(self.leaving[layer.name]))
            if layer.name in self.reshaped and config["target_shape"][-1] != -1:
                config["target_shape"] = (*config["target_shape"][:-1], len(left(self.reshaped[layer.name])))
            return type(layer).from_config(config)

        result = keras.models.clone_model(self.model, clone_function=smaller)
        for layer in self.model.layers:
            weights = layer.get_weights()
            entering, leaving = left(self.entering.get(layer.name)), left(self.leaving.get(layer.name))
            match layer:
                case layers.Dense() | layers.Conv1D() | layers.Conv2D() | layers.Conv3D() if layer.name in self.leaving:
                    kernel, *bias = weights
                    weights = [kernel[..., entering, :][..., leaving], *(vector[leaving] for vector in bias)]
                case layers.DepthwiseConv1D() | layers.DepthwiseConv2D() if layer.name in self.entering:
                    kernel, *bias = weights
                    weights = [kernel[..., entering, :], *(vector[entering] for vector in bias)]
                case _ if layer.name in self.entering:
                    weights = [weight[..., entering] for weight in weights]
            if weights:
                result.get_layer(layer.name).set_weights(weights)
        return result


def _norms(kernel):
    """L2 norm over all axes but the last: (..., channels) -> (channels,)."""
    kernel = keras.ops.convert_to_numpy(kernel)
    return np.sqrt(np.square(kernel).sum(axis=tuple(range(kernel.ndim - 1))))


def _plain(layer):
    """Whether the kernel is all there is: neither quantized nor with low-rank additions."""
    return getattr(layer, "quantization_mode", None) is None and not getattr(layer, "lora_enabled", False)


def _elementwise(layer):
    """Whether the layer's activation treats each channel by itself; a softmax does not."""
    name = getattr(layer.activation, "__name__", "")
    return name in ELEMENTWISE and layer.activation is getattr(keras.activations, name, None)
