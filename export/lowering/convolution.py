"""Convolutions, pooling, padding and batch normalisation: everything with channels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import layers

from export.lowering import NotLoweredError, lowers
from export.lowering.activations import activate, like
from export.lowering.graph import Graph, Padded, Scaled, Value, array_of

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
    graph: Graph,
    layer: Any,
    x: Value,
    kernel: str,
    bias: str | None,
    groups: int,
    window: Sequence[int],
    plain: bool = False,
) -> str:
    """One Conv node; `plain` is a 1x1 without strides, the second half of a separable convolution."""
    strides, dilation = ([1] * len(window),) * 2 if plain else (list(layer.strides), list(layer.dilation_rate))
    source: Value = x
    padding: dict[str, Any] = {"pads": [0] * 2 * len(window)}
    if not plain and layer.padding == "same":
        padding = same_padding(spatial(layer, x), window, strides, dilation)
    elif not plain and layer.padding == "causal":
        padding = {"pads": [(window[0] - 1) * dilation[0], 0]}
    elif not plain and isinstance(x, Padded) and layer.data_format == "channels_last":
        source, padding = x.source, {"pads": flat(list(x.pads))}
    return graph.add(
        "Conv", _read(layer, source), kernel, bias,
        kernel_shape=list(window), strides=strides, dilations=dilation, group=groups, **padding,
    )  # fmt: skip


def _finish(graph: Graph, layer: Any, name: str, x: Value) -> Value:
    made = _give(graph, layer, name)
    made.shape, made.dtype = tuple(layer.compute_output_shape(x.shape)), x.dtype
    return activate(graph, layer.activation, made)


def _bias(graph: Graph, layer: Any) -> str | None:
    return graph.variable(layer.bias, "bias") if layer.use_bias else None


@lowers(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def _conv(graph: Graph, layer: Any, x: Value) -> Value:
    order = [layer.rank + 1, layer.rank, *range(layer.rank)]  # (space, in, out) -> (out, in, space)
    kernel = graph.variable(layer._kernel if layer.quantization_mode is None else _quantized(layer), "kernel",
                            lambda array: array.transpose(order)) if not layer.lora_enabled else graph.weight(
        array_of(layer.kernel).transpose(order), "kernel")  # fmt: skip
    return _finish(
        graph, layer, _convolve(graph, layer, x, kernel, _bias(graph, layer), layer.groups, layer.kernel_size), x
    )


def _quantized(layer: Any) -> Any:
    raise NotLoweredError(f"layer {layer.name!r} holds {layer.quantization_mode} weights")


def _depthwise_kernel(array: np.ndarray) -> np.ndarray:
    """(space, in, multiplier) -> (in * multiplier, 1, space)."""
    rank = array.ndim - 2
    moved = array.transpose([rank, rank + 1, *range(rank)])
    return moved.reshape(-1, 1, *array.shape[:rank])


@lowers(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def _depthwise(graph: Graph, layer: Any, x: Value) -> Value:
    kernel = graph.variable(layer.kernel, "kernel", _depthwise_kernel)
    groups = layer.kernel.shape[-2]
    return _finish(graph, layer, _convolve(graph, layer, x, kernel, _bias(graph, layer), groups, layer.kernel_size), x)


@lowers(layers.SeparableConv1D, layers.SeparableConv2D)
def _separable(graph: Graph, layer: Any, x: Value) -> Value:
    deep = graph.variable(layer.depthwise_kernel, "depthwise_kernel", _depthwise_kernel)
    groups = layer.depthwise_kernel.shape[-2]
    between = _give(graph, layer, _convolve(graph, layer, x, deep, None, groups, layer.kernel_size))
    between.shape = x.shape  # of its rank only
    order = [layer.rank + 1, layer.rank, *range(layer.rank)]
    kernel = graph.variable(layer.pointwise_kernel, "pointwise_kernel", lambda array: array.transpose(order))
    name = _convolve(graph, layer, between, kernel, _bias(graph, layer), 1, [1] * layer.rank, plain=True)
    return _finish(graph, layer, name, x)


@lowers(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
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
def _max_pool(graph: Graph, layer: Any, x: Value) -> Value:
    return _pool(graph, "MaxPool", layer, x)


@lowers(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D)
def _average_pool(graph: Graph, layer: Any, x: Value) -> Value:
    return _pool(graph, "AveragePool", layer, x)


def _global(graph: Graph, operation: str, layer: Any, x: Value) -> Value:
    name = graph.add(operation, _read(layer, x))
    if layer.keepdims:
        return _give(graph, layer, name)
    return Value(graph, graph.add("Flatten", name, axis=1))


@lowers(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D)
def _global_average(graph: Graph, layer: Any, x: Value, mask: Value | None = None) -> Value:
    mask = mask or x.mask
    if mask is None or x.rank != 3:
        return _global(graph, "GlobalAveragePool", layer, x)
    if layer.data_format != "channels_last":
        raise NotLoweredError("a mask with channels first")
    weight = graph.add("Unsqueeze", graph.cast(mask, "float32"), np.array([2]))
    total = graph.reduce("ReduceSum", graph.add("Mul", x, weight), [1], layer.keepdims)
    return Value(graph, graph.add("Div", total, graph.reduce("ReduceSum", weight, [1], layer.keepdims)))


@lowers(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D)
def _global_max(graph: Graph, layer: Any, x: Value) -> Value:
    return _global(graph, "GlobalMaxPool", layer, x)


@lowers(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D)
def _zero_padding(graph: Graph, layer: Any, x: Value) -> Value | str:
    pairs = [layer.padding] if isinstance(layer.padding[0], int) else list(layer.padding)
    if getattr(layer, "data_format", "channels_last") == "channels_last":
        return Padded(graph, x, pairs)
    return graph.add("Pad", x, np.array(flat([(0, 0), (0, 0), *pairs]), np.int64))


@lowers(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D)
def _cropping(graph: Graph, layer: Any, x: Value) -> Value:
    pairs = [layer.cropping] if isinstance(layer.cropping[0], int) else list(layer.cropping)
    last = getattr(layer, "data_format", "channels_last") == "channels_last"
    start = 2 if x.channels_first or not last else 1
    starts = np.array([before for before, _ in pairs], np.int64)
    ends = np.array([-after if after else np.iinfo(np.int64).max for _, after in pairs], np.int64)
    axes = np.arange(start, start + len(pairs))
    return graph.elementwise(lambda name: graph.add("Slice", name, starts, ends, axes), x)


@lowers(layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D)
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


@lowers(layers.BatchNormalization)
def _batch_normalization(graph: Graph, layer: Any, x: Value, mask: Value | None = None) -> Value:
    spread = np.sqrt(array_of(layer.moving_variance).astype(np.float64) + layer.epsilon)
    scale = (array_of(layer.gamma) if layer.scale else 1.0) / spread
    shift = (array_of(layer.beta) if layer.center else 0.0) - array_of(layer.moving_mean) * scale
    axis = layer.axis % x.rank
    if axis == x.rank - 1 and x.consumers == 1 and (folded := _fold(graph, x, scale, shift)):
        return folded
    if axis == x.rank - 1 and x.channels_first:
        shape: tuple[int, ...] = (-1, *[1] * (x.rank - 2))
        name = x.first
    else:
        shape, name = (-1, *[1] * (x.rank - 1 - axis)), x.name
    scaled = graph.add("Mul", name, graph.weight(scale.astype(np.float32).reshape(shape), "scale"))
    moved = graph.add("Add", scaled, graph.weight(shift.astype(np.float32).reshape(shape), "shift"))
    return graph.first(moved) if x.channels_first and axis == x.rank - 1 else Value(graph, moved)


def _fold(graph: Graph, x: Value, scale: np.ndarray, shift: np.ndarray) -> Value | None:
    """Put a scale and shift per channel into the convolution or product right before, if there is one."""
    name = x.first if x.channels_first else x.name
    node = graph.producer.get(name)
    if node is None or node.op_type not in ("Conv", "Gemm", "ConvTranspose") or node.input[1] not in graph.weights:
        return None
    kernel = graph.weights[node.input[1]]
    channel = 0 if node.op_type == "Conv" else 1
    if kernel.shape[channel] != len(scale):
        return None
    shape = [1] * len(kernel.shape)
    shape[channel] = -1
    bias = np.asarray(graph.weights[node.input[2]]) if len(node.input) > 2 else 0.0
    with graph.within(node.name.rpartition("/")[0]):
        node.input[1] = graph.weight(Scaled(kernel, scale.reshape(shape)), "folded_kernel")
        moved = graph.weight((bias * scale + shift).astype(np.float32), "folded_bias")
    if len(node.input) > 2:
        node.input[2] = moved
    else:
        node.input.append(moved)
    for path in [path for path, value in graph.values.items() if value is x]:
        del graph.values[path]  # its tensor now holds the normalised values
    return like(x, graph.first(name) if x.channels_first else Value(graph, name))
