"""Which channels of a graph are one: every axis of every tensor is followed from where it is made to where it is read.

Every place along an axis has an identity. A rule per layer kind (`layer_rules`, `operation_rules`, `own_rules`) says which
identities a call passes on, which it makes, and along which axes of its weights they lie; what must have the same
length, such as two tensors that are added, becomes one identity. What ends as one is removed together or not at all,
which is the dependency grouping of Fang, Ma, Song, Mi & Wang, "DepGraph: Towards Any Structural Pruning" (CVPR 2023,
arXiv:2301.12900). An axis of which nothing is known, or that must stay as it is, has None in place of identities.
"""

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np

from zoo.compress.costs import graph, in_kind, multiplications, nodes

Axes = tuple["np.ndarray | None", ...]
_RULES: dict[type, Callable] = {}


class NotFollowedError(ValueError):
    """A rule cannot follow this call; all channels that reach it stay."""


@dataclass(frozen=True, eq=False)
class Flow:
    """A tensor on its way through the graph.

    Attributes:
        shape: its axes, the batch first, None where unknown.
        axes: identities along each axis, None where the axis stays.
    """

    shape: tuple
    axes: Axes

    @property
    def rank(self):
        return len(self.shape)


@dataclass(eq=False)
class Weight:
    """A weight whose places belong to identities.

    Attributes:
        layer: path of its layer, outer models first.
        variable: Keras variable.
        axes: identities along its axes.
        makes: axes along which it makes channels, so that its slices are their filters.
        reads: axes along which it reads channels; a bias or scale only goes with them.
        scale: whether it is the scale of a batch normalisation.
    """

    layer: str
    variable: keras.Variable
    axes: Axes
    makes: tuple[int, ...] = ()
    reads: tuple[int, ...] = ()
    scale: bool = False


def follows(*kinds):
    """Mark the function that follows calls of some layer or operation classes.

    It is called as `rule(walk, layer, *args, **kwargs)` with the arguments of the Keras call, tensors being `Flow`s,
    and returns the axes of the output, or a list of these for several outputs. `walk` is the `Identities` to tell what
    it finds; `NotFollowedError` may be raised before anything was told. Subclasses of a kind may compute something else
    and are not meant.
    """

    def mark(rule):
        _RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return mark


class Identities:
    """The identities of a model, by union-find over integers.

    Args:
        model: functional or built sequential model.
        keep: names or patterns of layers that keep what they make.

    Raises:
        TypeError: the model is not functional, or channels first.
        ValueError: a pattern in `keep` matches no layer.
    """

    def __init__(self, model, keep):
        from zoo.compress import layer_rules, operation_rules, own_rules  # noqa: F401 they fill the table of rules

        self.given = model
        self.model = graph(model)
        self.keep = keep
        self.weights = {}  # id of a variable -> Weight
        self.makers = {}  # (layer path, what it makes) -> (identities, channels of each)
        self.unfollowed = {}  # path of a layer that no rule follows -> its kind
        self.shapes = []  # of the outputs of the call that is followed
        self._parent = []
        self._fixed = []
        self._flows = {}  # id of a tensor -> Flow
        self._nested = {}  # id of a nested model -> (plain model, its input flows)
        self._edits = {}  # id of a layer -> changes of its configuration
        self._path, self._paths = "", []
        self._walk(self.model, [Flow(tuple(x.shape), (None,) * len(x.shape)) for x in self.model.inputs], "")
        for pattern in keep:
            if pattern != "logits" and not fnmatch.filter(self._paths, pattern):
                raise ValueError(
                    f"keep: {pattern!r} matches no layer of model {model.name!r}; it has {', '.join(self._paths)}"
                )
        for tensor in self.model.outputs:
            self.fix(self._flows[id(tensor)])
        self._fixed = {self.find(identity) for identity in self._fixed}

    # what rules tell

    def new(self, count):
        """Identities that did not exist before."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def make(self, layer, count, what="channels", channels=1):
        """Identities that a layer makes; a shared layer makes the same ones in each call.

        Args:
            layer: the layer.
            count: how many identities.
            what: tells apart what one layer makes several of.
            channels: how many channels of the weights each of them is.
        """
        key = (self._path, what)
        if key not in self.makers:
            self.makers[key] = (self.new(count), channels)
            if self._kept():
                self.fix(self.makers[key][0])
        return self.makers[key][0]

    def weigh(self, variable, *axes, makes=(), reads=(), scale=False):
        """Tell which identities lie along a weight's axes, see `Weight`; a shared one unites those of its calls."""
        if variable is None:
            return
        before = self.weights.get(id(variable))
        if before is not None:
            axes = tuple(self.unite(one, other) for one, other in zip(before.axes, axes, strict=True))
        self.weights[id(variable)] = Weight(self._path, variable, axes, makes, reads, scale)

    def resize(self, layer, /, **settings):
        """Tell which settings of a layer follow from what is left.

        Args:
            layer: the layer.
            settings: name in the layer's configuration -> identities whose number it is, or a function of a counting
                function `(identities, otherwise) -> int` that gives the value.
        """
        self._edits[id(layer)] = settings

    def unite(self, one, other):
        """Make two rows of identities one, and return it; with an axis that stays, both stay."""
        if one is None or other is None or len(one) != len(other):
            self.fix(one, other)
            return None
        for first, second in zip(one, other, strict=True):
            self._parent[self.find(first)] = self.find(second)
        return one

    def fix(self, *what):
        """Tell that identities, or all of a tensor's, must stay."""
        for each in what:
            if isinstance(each, Flow):
                self.fix(*each.axes)
            elif each is not None:
                self._fixed.extend(each)

    def find(self, identity):
        """The identity that stands for all that were united with this one."""
        parent = self._parent
        while parent[identity] != identity:
            parent[identity] = identity = parent[parent[identity]]
        return identity

    def apply(self, operation, shapes, *args, **kwargs):
        """Follow a call: the axes of each output.

        Raises:
            NotFollowedError: there is no rule for it.
        """
        if getattr(operation, "data_format", None) == "channels_first":
            raise TypeError(f"layer {self._path!r} is channels first; build the model channels last to remove channels")
        if type(operation) in (type(self.model), keras.Sequential):
            return self._enter(operation, [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, Flow)])
        rule = _RULES.get(type(operation))
        if rule is None:
            raise NotFollowedError(type(operation).__name__)
        outer, self.shapes = self.shapes, [tuple(shape) for shape in shapes]
        try:
            found = rule(self, operation, *args, **{k: v for k, v in kwargs.items() if k not in ("training", "mask")})
        finally:
            self.shapes = outer
        found = found if isinstance(found, list) else [found]
        if not all(map(_fits, found, shapes)):  # sizes that only the running model knows
            self.fix(*(row for axes in found for row in axes))
            raise NotFollowedError(type(operation).__name__)
        return found

    # the walk

    def _walk(self, model, given, prefix):
        """Follow all calls of a plain functional model."""
        for tensor, flow in zip(model.inputs, given, strict=True):
            self._flows[id(tensor)] = Flow(tuple(tensor.shape), flow.axes)
        self._paths.extend(prefix + layer.name for layer in model.layers)
        for node in nodes(model):
            args, kwargs = keras.tree.map_structure(
                lambda leaf: self._flows.get(id(leaf), leaf), (node.arguments.args, node.arguments.kwargs)
            )
            outer, self._path = self._path, prefix + node.operation.name
            made = self._call(node.operation, args, kwargs, [tuple(x.shape) for x in node.outputs])
            for tensor, axes in zip(node.outputs, made, strict=True):
                self._flows[id(tensor)] = Flow(tuple(tensor.shape), axes)
            if self._kept():
                self.fix(*(self._flows[id(x)] for x in node.outputs))
            self._path = outer

    def _call(self, operation, args, kwargs, shapes):
        flows = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, Flow)]
        for name, value in kwargs.items():
            if "mask" in name:
                self.fix(*(x for x in keras.tree.flatten(value) if isinstance(x, Flow)))
        try:
            return self.apply(operation, shapes, *args, **kwargs)
        except NotFollowedError:
            if any(row is not None for flow in flows for row in flow.axes) or getattr(operation, "weights", ()):
                self.unfollowed[self._path] = type(operation).__name__
            self.fix(*flows)
            return [(None,) * len(shape) for shape in shapes]

    def _enter(self, model, flows):
        """Follow a nested model; a second call unites its inputs with those of the first."""
        if id(model) in self._nested:
            plain, before = self._nested[id(model)]
            for one, other in zip(before, flows, strict=True):
                for first, second in zip(one.axes, other.axes, strict=True):
                    if first is not None or second is not None:
                        self.unite(first, second)
        else:
            plain = graph(model)
            self._nested[id(model)] = (plain, flows)
            self._walk(plain, flows, f"{self._path}/")
        return [self._flows[id(tensor)].axes for tensor in plain.outputs]

    def _kept(self):
        return any(fnmatch.fnmatchcase(self._path, pattern) for pattern in self.keep)

    # what can be removed, what it costs, and what is left

    def groups(self):
        """What makes an identity -> the identities that are made by the same and may be removed, in graph order."""
        makers = {}
        for key, (made, _) in self.makers.items():
            for identity in map(self.find, made):
                if identity not in self._fixed:
                    makers.setdefault(identity, {})[key] = None
        groups = {}
        for identity, keys in makers.items():
            groups.setdefault(tuple(keys), []).append(identity)
        return groups

    def stays(self, removed):
        """For every identity, whether it is left: (identities,) bool."""
        return np.array([self.find(identity) not in removed for identity in range(len(self._parent))], bool)

    def macs(self, removed):
        """Multiply-accumulates of one example without the identities in `removed`, as if the model was rebuilt.

        Raises:
            ValueError: the cost of a layer is not known.
        """
        stays = self.stays(removed)

        def left(shape, axes):
            return tuple(size if row is None else int(stays[row].sum()) for size, row in zip(shape, axes, strict=True))

        def of_weight(variable):
            found = self.weights.get(id(variable))
            return tuple(variable.shape) if found is None else left(variable.shape, found.axes)

        def of_tensor(tensor):
            found = self._flows.get(id(tensor))
            return tuple(tensor.shape) if found is None else left(tensor.shape, found.axes)

        return multiplications(self.model, of_tensor, of_weight)

    def rebuild(self, removed):
        """Model without the identities in `removed`, with the weights that are left."""
        stays = self.stays(removed)
        made = {}

        def count(axis, otherwise=None):
            return otherwise if axis is None else int(stays[axis].sum())

        def smaller(operation):
            if id(operation) in made:
                return made[id(operation)][1]
            if id(operation) in self._nested:
                new = clone(self._nested[id(operation)][0])
            elif isinstance(operation, keras.layers.Layer) or id(operation) in self._edits:
                config = operation.get_config()
                for name, value in self._edits.get(id(operation), {}).items():
                    config[name] = value(count) if callable(value) else count(value, config[name])
                new = type(operation).from_config(config)
            else:
                new = _copy(operation)
            made[id(operation)] = (operation, new)
            return new

        def clone(plain):
            def entry(x):
                shape = map(count, self._flows[id(x)].axes, x.shape)
                return keras.Input(batch_shape=tuple(shape), dtype=x.dtype, name=x.name)

            inputs = keras.tree.map_structure(entry, plain.input)
            return keras.models.clone_model(plain, input_tensors=inputs, clone_function=smaller)

        def inner(layer):  # a wrapper holds layers of which it has the configuration
            return keras.saving.serialize_keras_object(smaller(layer))

        self._inner = inner
        result = clone(self.model)
        for old, new in made.values():
            if isinstance(old, keras.layers.Layer) and old.weights and id(old) not in self._nested and new.built:
                new.set_weights([self._slice(weight, stays) for weight in old.weights])
        return in_kind(self.given, result)

    def smaller(self, layer):
        """Configuration of a wrapped layer without what is removed, for use in a function given to `resize`."""
        return self._inner(layer)

    def _slice(self, variable, stays):
        value = keras.ops.convert_to_numpy(variable)
        found = self.weights.get(id(variable))
        for axis, row in enumerate(found.axes if found else ()):
            if row is not None:
                value = np.compress(stays[row], value, axis)
        return value


def _fits(axes, shape):
    return len(axes) == len(shape) and all(
        row is None or len(row) == size for row, size in zip(axes, shape, strict=True)
    )


def _copy(operation):
    """An operation of `keras.ops` for a new graph; one that cannot tell its arguments is used in both."""
    try:
        return type(operation).from_config(operation.get_config())
    except (NotImplementedError, TypeError, ValueError):
        return operation
