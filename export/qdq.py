"""Where an ONNX graph becomes 8 bits: pairs of QuantizeLinear and DequantizeLinear, and integer weights.

A convolution or dense layer with constant weights is quantized with its input; a convolution's result is rounded too,
behind the ReLU that follows it. Additions, products, pooling and what only moves values join in where everything they
read is in 8 bits already, so that no value goes back to float inside a network. The last dense layer gives its result
in float: 8 bits of a logit would set the error of the whole model.

Activations are unsigned with a zero point, weights signed with one scale per output channel, biases 32 bits: the form
in which ONNX Runtime and OpenVINO have their fastest kernels on processors of today.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.calibration import IMAGES, Range, Seen, View
from export.convert import layer_of
from export.edges import AFTER, BEFORE

_JOINING = ("Add", "Mul", "Concat", "GlobalAveragePool", "AveragePool", "Sigmoid", "LeakyRelu")
_MOVING = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "DepthToSpace")
_LOSSLESS = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "DepthToSpace", "Identity")
_CLIPPING = ("Relu", "Clip")
_WEIGHTED = ("Conv", "Gemm", "MatMul")


@dataclass
class Weighted:
    """A node with constant weights that can run in 8 bits.

    Attributes:
        layer: Keras layer it was written for.
        axis: of the weights' output channels.
        bias: name of its constant bias; "" if it has none.
        rounds: whether its result is rounded to 8 bits too.
    """

    node: onnx.NodeProto
    layer: str
    weight: str
    axis: int
    bias: str
    rounds: bool

    @property
    def input(self) -> str:
        return self.node.input[0]

    def view(self, weights: Mapping[str, np.ndarray]) -> View:
        """How its input becomes a table of channels."""
        if self.node.op_type == "Conv":
            return IMAGES
        return (-1, weights[self.weight].shape[1 - self.axis]), (0,)


@dataclass
class Integers:
    """Weights and bias of one node in 8 and 32 bits."""

    values: np.ndarray
    scale: np.ndarray
    bias: np.ndarray | None


@dataclass
class Placed:
    """Which nodes run in 8 bits, and which tensors are rounded.

    Attributes:
        nodes: names of the nodes with weights.
        tensors: rounded tensors -> the tensor whose range they share, mostly their own.
    """

    nodes: set[str] = field(default_factory=set)
    tensors: dict[str, str] = field(default_factory=dict)


class Network:
    """A float graph, read once, from which any choice of layers can be written in 8 bits.

    Attributes:
        proto: the model without its weights.
        weights: initializers by name.
        weighted: nodes with weights by name, in the order of the graph.
        layers: nodes with weights by Keras layer, in the order of the graph.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(model)
        del self.proto.graph.initializer[:]
        self.nodes = list(self.proto.graph.node)
        self.outputs = {output.name for output in self.proto.graph.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.weighted = {found.node.name: found for found in self._weighted()}
        self.layers: dict[str, list[Weighted]] = {}
        for found in self.weighted.values():
            self.layers.setdefault(found.layer, []).append(found)

    def _weighted(self) -> Iterator[Weighted]:
        followed: set[str] = set()  # tensors that reach a later node with weights
        found = []
        for node in reversed(self.nodes):
            weighted = self._parse(node)
            ahead = any(name in followed for name in node.output)
            # a last convolution stays in float, since its result must
            if weighted and (ahead or not weighted.rounds):
                found.append(weighted)
            if ahead or self._multiplies(node):
                followed.update(node.input)
        yield from reversed(found)

    def _multiplies(self, node: onnx.NodeProto) -> bool:
        """Whether a node computes with constant weights, which need not have an 8-bit form."""
        if node.op_type not in _WEIGHTED or node.name.startswith((f"{BEFORE}/", f"{AFTER}/")):
            return False
        name = node.input[1]
        while name in self.maker and self.maker[name].op_type in _LOSSLESS:
            name = self.maker[name].input[0]
        return name in self.weights

    def _parse(self, node: onnx.NodeProto) -> Weighted | None:
        """What kind of node with weights this is; None if it is none, or has no 8-bit form."""
        if node.op_type not in _WEIGHTED or node.domain or node.name.startswith((f"{BEFORE}/", f"{AFTER}/")):
            return None
        kernel = self.weights.get(node.input[1])
        if kernel is None or kernel.dtype != np.float32 or node.input[0] in self.weights:
            return None
        bias = node.input[2] if len(node.input) > 2 else ""
        if bias and bias not in self.weights:
            return None
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "Conv":
            axis = 0
        elif kernel.ndim != 2:
            return None
        else:
            axis = 0 if given.get("transB") else 1
            if given.get("transA") or given.get("alpha", 1.0) != 1 or given.get("beta", 1.0) != 1:
                return None
            if bias and self.weights[bias].shape != (kernel.shape[axis],):
                return None
        return Weighted(node, layer_of(node) or node.name, node.input[1], axis, bias, node.op_type == "Conv")

    def place(self, float_layers: Collection[str] = ()) -> Placed:
        """Choose what runs in 8 bits when some Keras layers are left in float."""
        anchors = {name: each for name, each in self.weighted.items() if each.layer not in float_layers}
        wanted = dict.fromkeys(each.input for each in anchors.values())  # tensors that somebody reads in 8 bits
        placed = Placed(set(anchors), {name: name for name in wanted})
        joins = {node.name for node in reversed(self.nodes) if self._joins(node, wanted, float_layers)}
        for node in self.nodes:
            rounds = node.name in anchors and anchors[node.name].rounds
            known = [name for name in node.input if name in placed.tensors]
            if node.name in joins and not rounds:
                rounds = bool(known) and all(name in placed.tensors for name in self._values(node))
            if rounds:
                result = self.behind_clip(node)
                moved = node.op_type in _MOVING and result == node.output[0]
                placed.tensors[result] = placed.tensors[known[0]] if moved else result
        return placed

    def _joins(self, node: onnx.NodeProto, wanted: dict[str, None], float_layers: Collection[str]) -> bool:
        """Whether a node without weights could run in 8 bits for a reader's sake; its inputs are then wanted too."""
        if node.op_type not in (*_JOINING, *_MOVING) or node.domain or layer_of(node) in float_layers:
            return False
        if node.name.startswith((f"{BEFORE}/", f"{AFTER}/")) or len(self._values(node)) != len(self._floats(node)):
            return False
        if self.behind_clip(node) not in wanted or self.outputs & set(node.output):
            return False
        wanted |= dict.fromkeys(self._values(node))
        return True

    def _floats(self, node: onnx.NodeProto) -> list[str]:
        """Inputs that hold values to compute with, constants too."""
        return list(node.input[:1]) if node.op_type in (*_MOVING, "Sigmoid", "LeakyRelu") else list(node.input)

    def _values(self, node: onnx.NodeProto) -> list[str]:
        """Inputs that hold activations."""
        return [name for name in self._floats(node) if name not in self.weights]

    def behind_clip(self, node: onnx.NodeProto) -> str:
        """The result of a node, or of the ReLU that is its only reader: rounding does that ReLU's work."""
        result = node.output[0]
        readers = self.readers.get(result, [])
        if result in self.outputs or len(readers) != 1 or readers[0].op_type not in _CLIPPING:
            return result
        after = readers[0]
        if after.op_type == "Clip":
            low = self.weights.get(after.input[1]) if len(after.input) > 1 else None
            if low is None or low != 0:
                return result
        return result if after.output[0] in self.outputs else after.output[0]

    def moved(self, name: str) -> set[str]:
        """A tensor and all others that hold the same values in another order or shape."""
        found: set[str] = set()
        ahead = [name]
        while ahead:
            name = ahead.pop()
            if name not in found:
                found.add(name)
                ahead += [node.output[0] for node in self.readers.get(name, []) if node.op_type in _LOSSLESS]
                if name in self.maker and self.maker[name].op_type in _LOSSLESS:
                    ahead.append(self.maker[name].input[0])
        return found

    def tensors(self) -> dict[str, View | None]:
        """Tensors to calibrate for any choice of layers, with the view for their means where a bias is corrected."""
        views: dict[str, View | None] = dict.fromkeys(self._everything())
        for each in self.weighted.values():
            views[each.input] = each.view(self.weights)
        return views

    def _everything(self) -> Iterator[str]:
        """Tensors that some choice of layers rounds with a range of their own: leaving layers out adds none."""
        yield from dict.fromkeys(self.place().tensors.values())
        for each in self.weighted.values():
            yield each.input
            if each.rounds:
                yield self.behind_clip(each.node)

    def integers(self, seen: Mapping[str, Seen]) -> dict[str, Integers]:
        """Weights of every node in 8 bits, by node name; biases take up the mean error of the weights."""
        return {name: _integers(each, self.weights, seen) for name, each in self.weighted.items()}

    def write(
        self, placed: Placed, integers: Mapping[str, Integers], seen: Mapping[str, Seen]
    ) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
        """The graph with this choice in 8 bits, and its weights apart."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        graph = proto.graph
        rounded = {name: f"{name}/dequantized" for name in placed.tensors}
        weights: dict[str, np.ndarray] = {}
        nodes: list[onnx.NodeProto] = []
        held: dict[str, str] = {}  # weights in 8 bits -> the node they were written for

        def pair(name: str) -> None:
            given = [f"{name}/scale", f"{name}/zero_point"]
            weights.update(zip(given, scale_of(seen[placed.tensors[name]]), strict=True))
            whole = f"{name}/quantized"
            nodes.append(helper.make_node("QuantizeLinear", [name, *given], [whole], f"{name}/QuantizeLinear"))
            names = [whole, *given]
            nodes.append(helper.make_node("DequantizeLinear", names, [rounded[name]], f"{name}/DequantizeLinear"))

        for value in graph.input:
            if value.name in rounded:
                pair(value.name)
        for node in graph.node:
            for place, name in enumerate(node.input):
                if name in rounded:
                    node.input[place] = rounded[name]
            if node.name in placed.nodes:
                self._write_weights(node, integers[node.name], seen, weights, nodes)
                held[self.weighted[node.name].weight] = node.name
            elif node.input and node.input[0] in held and self._takes_columns(node, held[node.input[0]]):
                self._gather_weights(node, held[node.input[0]], nodes)
            nodes.append(node)
            for name in node.output:
                if name in rounded:
                    pair(name)
        del graph.node[:]
        graph.node.extend(nodes)
        read = {name for node in nodes for name in node.input}
        everything = _has_subgraph(nodes)  # which may read any of them
        weights |= {name: array for name, array in self.weights.items() if everything or name in read}
        return proto, weights

    def _gather_weights(self, node: onnx.NodeProto, owner: str, nodes: list[onnx.NodeProto]) -> None:
        """Let a Gather take columns of another node's weights in 8 bits: held once, widened where taken."""
        columns, steps, wide = (f"{node.name}/{part}" for part in ("columns", "steps", "wide"))
        index = node.input[1]
        nodes.append(helper.make_node("Gather", [f"{owner}/weight_int8", index], [columns], columns, axis=1))
        nodes.append(helper.make_node("Cast", [columns], [wide], wide, to=onnx.TensorProto.FLOAT))
        nodes.append(helper.make_node("Gather", [f"{owner}/weight_scale", index], [steps], steps, axis=0))
        node.CopyFrom(helper.make_node("Mul", [wide, steps], list(node.output), node.name))

    def _takes_columns(self, node: onnx.NodeProto, owner: str) -> bool:
        """Whether a node is a Gather of output channels along the last axis of a matrix."""
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        each = self.weighted[owner]
        return node.op_type == "Gather" and axis == each.axis == 1 and self.weights[each.weight].ndim == 2

    def _write_weights(
        self,
        node: onnx.NodeProto,
        integers: Integers,
        seen: Mapping[str, Seen],
        weights: dict[str, np.ndarray],
        nodes: list[onnx.NodeProto],
    ) -> None:
        each = self.weighted[node.name]
        names = [f"{node.name}/weight_int8", f"{node.name}/weight_scale", f"{node.name}/weight_zero_point"]
        zero = np.zeros(integers.scale.shape, np.int8)
        weights.update(zip(names, (integers.values, integers.scale, zero), strict=True))
        nodes.append(_dequantized(names, f"{node.name}/weight", each.axis))
        node.input[1] = nodes[-1].output[0]
        if integers.bias is None:
            return
        scale = (integers.scale * scale_of(seen[each.input])[0]).astype(np.float32)
        names = [f"{node.name}/bias_int32", f"{node.name}/bias_scale"]
        weights.update(zip(names, (integers.bias, scale), strict=True))
        nodes.append(_dequantized(names, f"{node.name}/bias", 0))
        node.input[2] = nodes[-1].output[0]


def _dequantized(names: list[str], base: str, axis: int) -> onnx.NodeProto:
    """Node that widens constants, with a scale for each place along an axis."""
    return helper.make_node("DequantizeLinear", names, [f"{base}_float"], f"{base}/DequantizeLinear", axis=axis)


def _has_subgraph(nodes: list[onnx.NodeProto]) -> bool:
    return any(attribute.type == onnx.AttributeProto.GRAPH for node in nodes for attribute in node.attribute)


def scale_of(seen: Seen | Range) -> tuple[np.ndarray, np.ndarray]:
    """Scale (float32) and zero point (uint8) of 256 levels spread over a range holding 0; 1 and 0 for an empty one."""
    low, high = (seen.low, seen.high) if isinstance(seen, Seen) else seen
    scale = np.float32((high - low) / 255)
    if not scale > np.finfo(np.float32).tiny:
        return np.array(1, np.float32), np.array(0, np.uint8)
    return np.array(scale, np.float32), np.array(np.clip(round(-low / float(scale)), 0, 255), np.uint8)


def _integers(each: Weighted, weights: Mapping[str, np.ndarray], seen: Mapping[str, Seen]) -> Integers:
    """Symmetric 8-bit weights, one scale per output channel; the bias in steps of weight scale x input scale."""
    kernel = np.moveaxis(weights[each.weight], each.axis, 0)  # (outputs, ...)
    rows = kernel.reshape(len(kernel), -1)
    bias = weights[each.bias].astype(np.float64) if each.bias else None
    step = float(scale_of(seen[each.input])[0])
    scale = np.abs(rows).max(axis=1).astype(np.float64) / 127
    if bias is not None:
        # a channel of tiny weights and a large bias: the bias must fit 32 bits, with room for what is added to it
        scale = np.maximum(scale, np.abs(bias) / (step * 2**24))
    scale = np.where(scale > np.finfo(np.float32).tiny, scale, 1.0).astype(np.float32)
    shape = (-1, *[1] * (kernel.ndim - 1))
    values = np.clip(np.round(kernel / scale.reshape(shape)), -127, 127).astype(np.int8)
    mean = seen[each.input].mean
    if bias is not None:
        if mean is not None:
            bias = bias + _mean_error(each, kernel - values * scale.reshape(shape), mean)
        bias = np.clip(np.round(bias / (scale.astype(np.float64) * step)), -(2**31), 2**31 - 1).astype(np.int32)
    return Integers(np.ascontiguousarray(np.moveaxis(values, 0, each.axis)), scale, bias)


def _mean_error(each: Weighted, error: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """What the rounding of the weights takes from each output on average: error of the weights x mean of the input.

    Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section 4.2,
    with the mean measured on the calibration rows.
    """
    if each.node.op_type != "Conv":
        return error @ mean
    group = next((a.i for a in each.node.attribute if a.name == "group"), 1)
    summed = error.reshape(*error.shape[:2], -1).sum(axis=2)  # (outputs, channels of a group)
    part = np.repeat(mean.reshape(group, -1), len(summed) // group, axis=0)  # (outputs, channels of a group)
    return (summed * part).sum(axis=1)
