"""Convolutions, pooling, padding, cropping and enlarging: everything with channels."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras import layers
from keras.src.ops import nn

from export.lowering import NotLoweredError, lowers
from export.lowering.activations import activate
from export.lowering.algebra import along
from export.lowering.arguments import floats, in_floats, need, trained, value, value_of
from export.lowering.arrays import static, transposed
from export.lowering.graph import Graph, Padded, Value, array_of

Pads = list[tuple[int, int]]


def spatial(layer: Any, x: Value) -> tuple[int | None, ...]:
    """Sizes of the axes that are neither batch nor channels."""
    return x.shape[1:-1] if layer.data_format == "channels_last" else x.shape[2:]


def same_padding(
    sizes: Sequence[int | None], window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> dict[str, Any]:
    """Attributes for TensorFlow's "same" padding: explicit where the sizes allow it."""
    pads: Pads = []
    for size, width, stride, spread in zip(sizes, window, strides, dilation, strict=True):
        reach = (width - 1) * spread + 1
        if stride == 1:
            total = reach - 1
        elif size is None:
            return {"auto_pad": "SAME_UPPER"}
        else:
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        pads.append((total // 2, total - total // 2))
    return {"pads": flat(pads)}


def flat(pads: Pads) -> list[int]:
    return [*(before for before, _ in pads), *(after for _, after in pads)]


def _read(layer: Any, x: Value) -> str:
    return x.first if layer.data_format == "channels_last" else x.name


def _give(graph: Graph, layer: Any, name: str) -> Value:
    return graph.first(name) if layer.data_format == "channels_last" else Value(graph, name)


def _convolve(
    graph: Graph, layer: Any, x: Value, kernel: str, bias: str | None, groups: int, window: Sequence[int]
) -> str:
    """One Conv node with a layer's strides, dilation and padding."""
    strides, dilation = list(layer.strides), list(layer.dilation_rate)
    source: Value = x
    padding: dict[str, Any] = {"pads": [0] * 2 * len(window)}
    if layer.padding == "same":
        padding = same_padding(spatial(layer, x), window, strides, dilation)
    elif layer.padding == "causal":
        padding = {"pads": [(window[0] - 1) * dilation[0], 0]}
    elif isinstance(x, Padded) and layer.data_format == "channels_last":
        source, padding = x.source, {"pads": flat(list(x.pads))}
    return graph.add(
        "Conv", _read(layer, source), kernel, bias,
        kernel_shape=list(window), strides=strides, dilations=dilation, group=groups, **padding,
    )  # fmt: skip


def _pointwise(rank: int, data_format: str) -> SimpleNamespace:
    """Settings of the second half of a separable convolution."""
    return SimpleNamespace(strides=(1,) * rank, dilation_rate=(1,) * rank, padding="valid", data_format=data_format)


def _finish(graph: Graph, layer: Any, name: str, x: Value) -> Value:
    made = _give(graph, layer, name)
    made.shape, made.dtype = tuple(layer.compute_output_shape(x.shape)), x.dtype
    return activate(graph, layer.activation, made)


def _bias(graph: Graph, layer: Any) -> str | None:
    return graph.variable(layer.bias, "bias") if layer.use_bias else None


@lowers(layers.Conv1D, layers.Conv2D, layers.Conv3D)
@in_floats
def _conv(graph: Graph, layer: Any, x: Value) -> Value:
    order = [layer.rank + 1, layer.rank, *range(layer.rank)]  # (space, in, out) -> (out, in, space)
    kernel = trained(graph, layer, "kernel", lambda array: array.transpose(order))
    return _finish(
        graph, layer, _convolve(graph, layer, x, kernel, _bias(graph, layer), layer.groups, layer.kernel_size), x
    )


def _depthwise_kernel(array: np.ndarray) -> np.ndarray:
    """(space, in, multiplier) -> (in * multiplier, 1, space)."""
    rank = array.ndim - 2
    moved = array.transpose([rank, rank + 1, *range(rank)])
    return moved.reshape(-1, 1, *array.shape[:rank])


@lowers(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
@in_floats
def _depthwise(graph: Graph, layer: Any, x: Value) -> Value:
    kernel = graph.variable(layer.kernel, "kernel", _depthwise_kernel)
    groups = layer.kernel.shape[-2]
    return _finish(graph, layer, _convolve(graph, layer, x, kernel, _bias(graph, layer), groups, layer.kernel_size), x)


@lowers(layers.SeparableConv1D, layers.SeparableConv2D)
@in_floats
def _separable(graph: Graph, layer: Any, x: Value) -> Value:
    deep = graph.variable(layer.depthwise_kernel, "depthwise_kernel", _depthwise_kernel)
    groups = layer.depthwise_kernel.shape[-2]
    between = _give(graph, layer, _convolve(graph, layer, x, deep, None, groups, layer.kernel_size))
    between.shape = x.shape  # of its rank only
    order = [layer.rank + 1, layer.rank, *range(layer.rank)]
    kernel = graph.variable(layer.pointwise_kernel, "pointwise_kernel", lambda array: array.transpose(order))
    settings = _pointwise(layer.rank, layer.data_format)
    name = _convolve(graph, settings, between, kernel, _bias(graph, layer), 1, [1] * layer.rank)
    return _finish(graph, layer, name, x)


@lowers(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
@in_floats
def _transpose(graph: Graph, layer: Any, x: Value) -> Value:
    order = [layer.rank + 1, layer.rank, *range(layer.rank)]  # (space, out, in) -> (in, out, space)
    kernel = graph.variable(layer.kernel, "kernel", lambda array: array.transpose(order))
    probe = 16  # output sizes grow by the stride with each input row, so one size tells the padding for all
    channels = layer.kernel.shape[-1]
    last = layer.data_format == "channels_last"
    shape = (1, *[probe] * layer.rank, channels) if last else (1, channels, *[probe] * layer.rank)
    result = layer.compute_output_shape(shape)
    pads: Pads = []
    more: list[int] = []
    for width, stride, spread, size in zip(
        layer.kernel_size, layer.strides, layer.dilation_rate, result[1:-1] if last else result[2:], strict=True
    ):
        excess = (probe - 1) * stride + (width - 1) * spread + 1 - size
        cut = max(excess, 0)
        pads.append((cut // 2, cut - cut // 2))
        more.append(max(-excess, 0))
    name = graph.add(
        "ConvTranspose", _read(layer, x), kernel, _bias(graph, layer),
        kernel_shape=list(layer.kernel_size), strides=list(layer.strides), dilations=list(layer.dilation_rate),
        pads=flat(pads), output_padding=more,
    )  # fmt: skip
    return _finish(graph, layer, name, x)


def _pool(graph: Graph, operation: str, layer: Any, x: Value) -> Value:
    window, strides = list(layer.pool_size), list(layer.strides)
    source: Value = x
    padding: dict[str, Any] = {"pads": [0] * 2 * len(window)}
    if layer.padding == "same":
        padding = same_padding(spatial(layer, x), window, strides, [1] * len(window))
    elif operation == "MaxPool" and isinstance(x, Padded) and _never_negative(graph, x.source) and _within(x, window):
        source, padding = x.source, {"pads": flat(list(x.pads))}  # zeros change no maximum of what has no negatives
    extra: dict[str, Any] = {"count_include_pad": 0} if operation == "AveragePool" else {}
    name = graph.add(operation, _read(layer, source), kernel_shape=window, strides=strides, **padding, **extra)
    return _give(graph, layer, name)


def _never_negative(graph: Graph, value: Value) -> bool:
    node = graph.producer.get(value.first) if value.channels_first else None
    return node is not None and node.op_type == "Relu"


def _within(x: Padded, window: Sequence[int]) -> bool:
    return all(max(pair) < width for pair, width in zip(x.pads, window, strict=True))


@lowers(layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D)
@in_floats
def _max_pool(graph: Graph, layer: Any, x: Value) -> Value:
    return _pool(graph, "MaxPool", layer, x)


@lowers(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D)
@in_floats
def _average_pool(graph: Graph, layer: Any, x: Value) -> Value:
    return _pool(graph, "AveragePool", layer, x)


def _global(graph: Graph, operation: str, layer: Any, x: Value) -> Value:
    name = graph.add(operation, _read(layer, x))
    if layer.keepdims:
        return _give(graph, layer, name)
    return Value(graph, graph.add("Flatten", name, axis=1))


@lowers(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D)
@in_floats
def _global_average(graph: Graph, layer: Any, x: Value, mask: Value | None = None) -> Value:
    if mask is None or x.rank != 3:
        return _global(graph, "GlobalAveragePool", layer, x)
    if layer.data_format != "channels_last":
        raise NotLoweredError("a mask with channels first")
    weight = graph.add("Unsqueeze", graph.cast(mask, "float32"), np.array([2]))
    total = graph.reduce("ReduceSum", graph.add("Mul", x, weight), [1], layer.keepdims)
    return Value(graph, graph.add("Div", total, graph.reduce("ReduceSum", weight, [1], layer.keepdims)))


@lowers(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D)
@in_floats
def _global_max(graph: Graph, layer: Any, x: Value) -> Value:
    return _global(graph, "GlobalMaxPool", layer, x)


@lowers(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D)
def _zero_padding(graph: Graph, layer: Any, x: Value) -> Value:
    pairs = [layer.padding] if isinstance(layer.padding[0], int) else list(layer.padding)
    made: Value = Padded(graph, x, pairs)
    if getattr(layer, "data_format", "channels_last") == "channels_first":
        made = Value(graph, graph.add("Pad", x, np.array(flat([(0, 0), (0, 0), *pairs]), np.int64)))
    made.dtype = x.dtype
    return made


@lowers(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D)
def _cropping(graph: Graph, layer: Any, x: Value) -> Value:
    pairs = [layer.cropping] if isinstance(layer.cropping[0], int) else list(layer.cropping)
    last = getattr(layer, "data_format", "channels_last") == "channels_last"
    start = 2 if x.channels_first or not last else 1
    starts = np.array([before for before, _ in pairs], np.int64)
    ends = np.array([-after if after else np.iinfo(np.int64).max for _, after in pairs], np.int64)
    axes = np.arange(start, start + len(pairs))
    made = graph.elementwise(lambda name: graph.add("Slice", name, starts, ends, axes), x)
    made.dtype = x.dtype
    return made


@lowers(layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D)
@in_floats
def _up_sampling(graph: Graph, layer: Any, x: Value) -> Value:
    how = getattr(layer, "interpolation", "nearest")
    if how not in ("nearest", "bilinear"):
        raise NotLoweredError(f"interpolation {how!r}")
    size = layer.size if isinstance(layer.size, tuple | list) else [layer.size]
    scales = np.array([1, 1, *size], np.float32)
    if how == "nearest":
        settings = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    else:
        settings = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    last = getattr(layer, "data_format", "channels_last") == "channels_last"
    name = graph.add("Resize", x.first if last else x.name, None, scales, **settings)
    return graph.first(name) if last else Value(graph, name)


# The same operations from `keras.ops`


def _settings(call: Any, rank: int, **more: Any) -> SimpleNamespace:
    """What the functions above read from a layer, for an operation."""

    def each(given: Any) -> tuple[int, ...]:
        return (given,) * rank if isinstance(given, int) else tuple(given)

    facts = {"rank": rank, "padding": call.padding, "data_format": call.data_format or keras.config.image_data_format()}
    for name in ("strides", "dilation_rate", "pool_size"):
        if hasattr(call, name):
            found = getattr(call, name)
            facts[name] = each(more["window"] if found is None else found)
    return SimpleNamespace(**{**facts, **more})


def _kernel(graph: Graph, kernel: Any, order: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """Name of a kernel in the axis order of ONNX, and its shape in that of Keras."""
    if isinstance(kernel, Value):
        return transposed(graph, kernel, order), tuple(static(kernel.shape))
    array = array_of(kernel)
    return graph.weight(array.astype(np.float32).transpose(order), "kernel"), array.shape


@lowers(nn.Conv)
def convolution(graph: Graph, call: Any, inputs: Any, kernel: Any) -> Value:
    x = floats(graph, inputs)
    rank = x.rank - 2
    name, shape = _kernel(graph, kernel, [rank + 1, rank, *range(rank)])
    settings = _settings(call, rank)
    channels = x.shape[-1] if settings.data_format == "channels_last" else x.shape[1]
    need(channels is not None, "a convolution of a free number of channels")
    groups = (channels or 1) // shape[-2]
    made = _convolve(graph, settings, x, name, None, groups, shape[:rank])
    return _give(graph, settings, made)


@lowers(nn.DepthwiseConv)
def _depthwise_operation(graph: Graph, call: Any, inputs: Any, kernel: Any) -> Value:
    x = floats(graph, inputs)
    rank = x.rank - 2
    if isinstance(kernel, Value):
        raise NotLoweredError("a depthwise kernel that is not constant")
    array = array_of(kernel)
    name = graph.weight(_depthwise_kernel(array.astype(np.float32)), "kernel")
    settings = _settings(call, rank)
    made = _convolve(graph, settings, x, name, None, array.shape[-2], array.shape[:rank])
    return _give(graph, settings, made)


def _pooling(operation: str) -> Any:
    def emit(graph: Graph, call: Any, inputs: Any) -> Value:
        x = floats(graph, inputs)
        return _pool(graph, operation, _settings(call, x.rank - 2, window=call.pool_size), x)

    return emit


lowers(nn.MaxPool)(_pooling("MaxPool"))
lowers(nn.AveragePool)(_pooling("AveragePool"))


def _bins(size: int, count: int) -> list[tuple[int, int]]:
    """Borders of windows that cover an axis evenly, overlapping where they must."""
    return [(place * size // count, -(-(place + 1) * size // count)) for place in range(count)]


def _adaptive(graph: Graph, x: Value, sizes: Any, data_format: str, largest: bool) -> Value:
    first = 1 if data_format == "channels_last" else 2
    rank = x.rank - 2
    wanted = (sizes,) * rank if isinstance(sizes, int) else tuple(sizes)
    made = x
    for place, count in enumerate(wanted):
        axis = first + place
        [size] = static(made.shape[axis : axis + 1])
        borders = _bins(size, count)
        if largest:
            parts = [
                graph.reduce(
                    "ReduceMax", graph.add("Slice", made, np.array([a]), np.array([b]), np.array([axis])), [axis], True
                )
                for a, b in borders
            ]
            shape = (*made.shape[:axis], count, *made.shape[axis + 1 :])
            made = value(graph, graph.add("Concat", *parts, axis=axis), shape, made.dtype)
        else:
            matrix = np.zeros((count, size), np.float32)
            for row, (a, b) in enumerate(borders):
                matrix[row, a:b] = 1 / (b - a)
            made = along(graph, made, axis, matrix)
    return made


@lowers(nn.AdaptiveAveragePool, nn.AdaptiveMaxPool)
def _adaptive_operation(graph: Graph, call: Any, inputs: Any) -> Value:
    data_format = call.data_format or keras.config.image_data_format()
    largest = isinstance(call, nn.AdaptiveMaxPool)
    return _adaptive(graph, floats(graph, inputs), call.output_size, data_format, largest)


@lowers(nn.ConvTranspose)
def _transposed_operation(graph: Graph, call: Any, inputs: Any, kernel: Any) -> Value:
    x = floats(graph, inputs)
    if isinstance(kernel, Value):
        raise NotLoweredError("a transposed convolution with a kernel that is not constant")
    array = array_of(kernel).astype(np.float32)
    rank = x.rank - 2

    def shape_after(shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return call.compute_output_spec(keras.KerasTensor(shape), keras.KerasTensor(array.shape)).shape

    settings = _settings(
        call, rank, kernel=array, kernel_size=array.shape[:rank], use_bias=False, activation=None,
        compute_output_shape=shape_after,
    )  # fmt: skip
    return _transpose(graph, settings, x)


@lowers(nn.SeparableConv)
def _separable_operation(graph: Graph, call: Any, inputs: Any, depthwise_kernel: Any, pointwise_kernel: Any) -> Value:
    need(call.data_format in (None, "channels_last"), "a separable convolution with channels first")
    deep = _depthwise_operation(graph, call, inputs, depthwise_kernel)
    channels = depthwise_kernel.shape[-2] * depthwise_kernel.shape[-1]
    deep.shape, deep.dtype = (*[None] * (value_of(graph, inputs).rank - 1), channels), "float32"
    return convolution(graph, _pointwise(deep.rank - 2, "channels_last"), deep, pointwise_kernel)
