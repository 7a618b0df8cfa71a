"""Images: resizing to exact sizes, cropping, warping, patches.

Every resampling that ONNX has no exact form for is a product with one matrix for the rows and one for the columns. The
matrices are what Keras itself makes of unit images, so they are right for whichever backend the model runs on.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras import layers
from keras.src.ops import image as image_ops

from export.lowering import lowers
from export.lowering.algebra import along
from export.lowering.arguments import floats, is_float, like, need, scalar, value, value_of
from export.lowering.arrays import sized, static
from export.lowering.convolution import convolution
from export.lowering.graph import Graph, Value

Size = Sequence[Any]


def resized(
    graph: Graph,
    x: Value,
    size: Size,
    interpolation: str,
    antialias: bool = False,
    data_format: str = "channels_last",
) -> Value:
    """Images (batch, height, width, channels), or channels first, in another size.

    Args:
        graph: where to write.
        x: float images.
        size: (height, width), numbers or scalar values.
        interpolation: "nearest", "bilinear", "bicubic", "lanczos3" or "lanczos5".
        antialias: whether shrinking averages over the pixels that a new one covers.
        data_format: of the images.
    """
    need(x.rank == 4, "a single image without a batch")
    first = 1 if data_format == "channels_last" else 2
    wanted = sized(graph, list(size))
    old = x.shape[first : first + 2]
    new = [None if isinstance(one, str) else one for one in wanted]
    last = data_format == "channels_last"
    if interpolation == "nearest":
        for axis, (before, after) in enumerate(zip(old, wanted, strict=True)):
            x = _nearest(graph, x, first + axis, before, after)
        return x
    if antialias or interpolation != "bilinear":
        if None in (*old, *new):
            need(last, "free sizes with channels first")
            return _resampled(graph, x, [1 if one is None else one for one in wanted], interpolation, antialias)
        for axis, (before, after) in enumerate(zip(old, new, strict=True)):
            if before != after or antialias:
                x = along(
                    graph, x, first + axis, _resampling(int(before or 0), int(after or 0), interpolation, antialias)
                )
        return x
    source = x.first if last else x.name
    front = graph.add("Slice", graph.add("Shape", source), np.array([0]), np.array([2]))
    whole = graph.add("Concat", front, graph.shape([one for one in wanted if one is not None]), axis=0)
    name = graph.add("Resize", source, None, None, whole, coordinate_transformation_mode="half_pixel", mode="linear")
    made = graph.first(name) if last else Value(graph, name)
    made.shape = (*x.shape[:first], *new, *x.shape[first + 2 :])
    made.dtype = x.dtype
    return made


def _nearest(graph: Graph, x: Value, axis: int, before: int | None, after: int | str | None) -> Value:
    """The nearest of the lines along an axis: chosen by Keras, or by its rule where only a run can tell a size."""
    shape = (*x.shape[:axis], after if isinstance(after, int) else None, *x.shape[axis + 1 :])
    if before is not None and isinstance(after, int):
        line = np.arange(before, dtype=np.float32).reshape(1, before, 1, 1)
        places = keras.ops.image.resize(line, (after, 1), interpolation="nearest", data_format="channels_last")
        order: Any = keras.ops.convert_to_numpy(places).reshape(-1).astype(np.int64)
    else:
        sizes = graph.size(x.name, axis), graph.shape([after if after is not None else 1])
        old, new = (graph.cast(size, "float32") for size in sizes)
        counted = graph.add("Range", scalar(0), graph.reshape(new, []), scalar(1))
        middle = graph.add("Mul", graph.add("Add", counted, scalar(0.5)), graph.add("Div", old, new))
        order = graph.cast(graph.add("Min", graph.add("Floor", middle), graph.add("Sub", old, scalar(1))), "int64")
    return value(graph, graph.add("Gather", x, order, axis=axis), shape, x.dtype)


def _resampling(before: int, after: int, interpolation: str, antialias: bool) -> np.ndarray:
    """Matrix (after, before) that Keras resizes a line with."""
    unit = np.eye(before, dtype=np.float32).reshape(1, before, 1, before)
    made = keras.ops.image.resize(
        unit, (after, 1), interpolation=interpolation, antialias=antialias, data_format="channels_last"
    )
    return keras.ops.convert_to_numpy(made)[0, :, 0, :]


def _resampled(graph: Graph, x: Value, wanted: Sequence[int | str], interpolation: str, antialias: bool) -> Value:
    """Images with channels last times matrices that are computed from their sizes at run time."""
    need(interpolation in ("bilinear", "bicubic"), f"interpolation {interpolation!r} of a free size")
    rows, columns = (
        _matrix(graph, graph.size(x.name, axis), graph.shape([size]), interpolation, antialias)
        for axis, size in ((1, wanted[0]), (2, wanted[1]))
    )
    name = graph.add("MatMul", columns, x)  # (batch, height, new width, channels)
    sizes = graph.sizes(x)
    lines = graph.add("MatMul", rows, graph.add("Reshape", name, np.array([0, 0, -1], np.int64)))
    name = graph.reshape(lines, [sizes[0], *wanted, sizes[3]])
    new = [None if isinstance(size, str) else size for size in wanted]
    return value(graph, name, (x.shape[0], *new, x.shape[3]), x.dtype)


def _matrix(graph: Graph, before: str, after: str, interpolation: str, antialias: bool) -> str:
    """Matrix (after, before) of the triangle or of Keys' cubic kernel, weights outside left out.

    Source: Keys 1981, "Cubic convolution interpolation for digital image processing", with a = -1/2.
    """
    one = scalar(1)
    zero, step = np.array(0, np.int64), np.array(1, np.int64)
    new, old = (
        graph.cast(graph.add("Range", zero, graph.reshape(size, []), step), "float32") for size in (after, before)
    )
    scale = graph.add("Div", graph.cast(before, "float32"), graph.cast(after, "float32"))
    half = scalar(0.5)
    place = graph.add("Sub", graph.add("Mul", graph.add("Add", new, half), scale), half)
    if not antialias and keras.config.backend() == "tensorflow":  # which looks weights up in a table of 1024 steps
        steps = scalar(1024)
        place = graph.add("Div", graph.add("Round", graph.add("Mul", place, steps)), steps)
    far = graph.add("Abs", graph.add("Sub", graph.add("Unsqueeze", place, np.array([1])), old))
    if antialias:
        far = graph.add("Div", far, graph.add("Max", scale, one))
    if interpolation == "bilinear":
        weights = graph.add("Relu", graph.add("Sub", one, far))
    else:
        near = _polynomial(graph, far, (1.5, -2.5, 0.0, 1.0))
        middle = _polynomial(graph, far, (-0.5, 2.5, -4.0, 2.0))
        outer = graph.add("Where", graph.add("Less", far, scalar(2)), middle, scalar(0))
        weights = graph.add("Where", graph.add("Less", far, one), near, outer)
    return graph.add("Div", weights, graph.reduce("ReduceSum", weights, [1], keepdims=True))


def _polynomial(graph: Graph, x: str, factors: Sequence[float]) -> str:
    """Horner's rule, the highest power first."""
    name = graph.constant(scalar(factors[0]))
    for factor in factors[1:]:
        name = graph.add("Add", graph.add("Mul", name, x), scalar(factor))
    return name


def _boxed(old: Sequence[int], new: Sequence[int], least: bool) -> list[int]:
    """(height, width) of the largest box inside an image, or the smallest around it, of another image's proportions."""
    (height, width), (tall, wide) = old, new
    sizes = int(width * tall / wide), int(height * wide / tall)
    if least:
        return [max(min(height, sizes[0]), 1), max(min(width, sizes[1]), 1)]
    return [max(height, sizes[0]), max(width, sizes[1])]


def _resize(
    graph: Graph,
    x: Value,
    size: Size,
    interpolation: str,
    antialias: bool,
    crop: bool,
    pad: bool,
    fill_value: float,
    data_format: str | None,
) -> Value:
    data_format = data_format or keras.config.image_data_format()
    if crop or pad:
        first = 1 if data_format == "channels_last" else 2
        old = static(x.shape[first : first + 2])
        box = _boxed(old, [int(one) for one in size], least=crop)
        starts = [abs(have - wanted) // 2 for have, wanted in zip(old, box, strict=True)]
        axes = np.array([first, first + 1])
        if crop:
            ends = [start + length for start, length in zip(starts, box, strict=True)]
            name = graph.add("Slice", x, np.array(starts), np.array(ends), axes)
            sizes = box
        else:
            pads = np.zeros((2, 4), np.int64)
            pads[:, first : first + 2] = starts
            name = graph.add("Pad", x, pads.reshape(-1), scalar(fill_value, x.dtype))
            sizes = [have + 2 * start for have, start in zip(old, starts, strict=True)]
        x = value(graph, name, (*x.shape[:first], *sizes, *x.shape[first + 2 :]), x.dtype)
    return resized(graph, x, size, interpolation, antialias, data_format)


@lowers(image_ops.Resize)
def _resize_operation(graph: Graph, call: Any, images: Any) -> Value:
    x = value_of(graph, images)
    need(x.dtype.startswith("float") or call.interpolation == "nearest", "resizing whole numbers")
    return _resize(
        graph, x, call.size, call.interpolation, call.antialias, call.crop_to_aspect_ratio, call.pad_to_aspect_ratio,
        call.fill_value, call.data_format,
    )  # fmt: skip


@lowers(layers.Resizing)
def _resizing(graph: Graph, layer: Any, data: Value) -> Value:
    made = _resize(
        graph, floats(graph, data), (layer.height, layer.width), layer.interpolation, layer.antialias,
        layer.crop_to_aspect_ratio, layer.pad_to_aspect_ratio, layer.fill_value, layer.data_format,
    )  # fmt: skip
    if is_float(data.dtype):
        return made
    limits = np.iinfo(data.dtype)  # whole numbers stay whole
    return like(made, graph.add("Clip", graph.add("Round", made), scalar(limits.min), scalar(limits.max)))


@lowers(layers.CenterCrop)
def _center_crop(graph: Graph, layer: Any, data: Value) -> Value:
    """The middle of images that are large enough; of others the largest box of the right proportions, resized."""
    x = floats(graph, data)
    need(x.rank == 4, "a single image without a batch")
    first = 1 if layer.data_format == "channels_last" else 2
    wanted, old = (layer.height, layer.width), x.shape[first : first + 2]
    if None not in old:
        large = all(int(have or 0) >= size for have, size in zip(old, wanted, strict=True))
        box: Any = wanted if large else _boxed([int(have or 0) for have in old], wanted, least=True)
        starts: Any = np.array([(int(have or 0) - size) // 2 for have, size in zip(old, box, strict=True)])
        ends: Any = starts + np.array(box)
    else:
        large = False
        sizes = graph.shape([graph.size(x.name, first), graph.size(x.name, first + 1)])
        target = np.array(wanted, np.int64)
        turned = graph.add("Gather", sizes, np.array([1, 0]), axis=0)
        scaled = graph.add("Div", graph.add("Mul", turned, target), target[::-1].copy())
        inside = graph.add("Max", graph.add("Min", sizes, scaled), np.array(1, np.int64))
        enough = graph.cast(graph.add("GreaterOrEqual", sizes, target), "int32")
        enough = graph.add("Equal", graph.reduce("ReduceMin", enough, [0]), scalar(1, "int32"))
        size = graph.add("Where", enough, target, inside)
        starts = graph.add("Div", graph.add("Sub", sizes, size), np.array(2, np.int64))
        ends = graph.add("Add", starts, size)
    name = graph.add("Slice", x, starts, ends, np.array([first, first + 1]))
    middle = value(
        graph, name, (*x.shape[:first], *(wanted if large else (None, None)), *x.shape[first + 2 :]), x.dtype
    )
    return middle if large else resized(graph, middle, wanted, "bilinear", data_format=layer.data_format)


@lowers(image_ops.RGBToGrayscale)
def _grayscale(graph: Graph, call: Any, images: Any) -> Value:
    """Luma of ITU-R BT.601."""
    x = floats(graph, images)
    axis = -1 if (call.data_format or keras.config.image_data_format()) == "channels_last" else -3
    return along(graph, x, axis, np.array([[0.2989, 0.5870, 0.1140]]))


@lowers(image_ops.ExtractPatches)
def _patches(graph: Graph, call: Any, images: Any) -> Value:
    """A convolution with a kernel that copies each place of a patch into a channel of its own."""
    x = floats(graph, images)
    need((call.data_format or keras.config.image_data_format()) == "channels_last", "patches with channels first")
    size = (call.size, call.size) if isinstance(call.size, int) else tuple(call.size)
    need(x.rank == 4 and len(size) == 2, "patches of another rank")
    channels = static(x.shape[-1:])[0]
    count = size[0] * size[1] * channels
    kernel = np.eye(count, dtype=np.float32).reshape(*size, channels, count)
    settings = SimpleNamespace(
        strides=call.strides or size,
        padding=call.padding,
        data_format="channels_last",
        dilation_rate=call.dilation_rate,
    )
    return convolution(graph, settings, x, kernel)


@lowers(image_ops.AffineTransform)
def _affine(graph: Graph, call: Any, images: Any, transform: Any) -> Value:
    """Each new pixel (x, y) from ((a0 x + a1 y + a2) / k, (b0 x + b1 y + b2) / k) with k = c0 x + c1 y + 1."""
    x, numbers = floats(graph, images), floats(graph, transform)
    last = (call.data_format or keras.config.image_data_format()) == "channels_last"
    need(x.rank == 4 and graph.opset >= 16, "warping a single image, or with an opset below 16")
    modes = {"constant": "zeros", "nearest": "border", "reflect": "reflection"}
    need(call.fill_mode in modes, f"fill mode {call.fill_mode!r}")
    height, width = static(x.shape[1:3] if last else x.shape[2:])
    if numbers.rank == 1:
        sizes = [x.shape[0] if x.shape[0] is not None else graph.size(x.name, 0), 8]
        numbers = value(graph, graph.add("Expand", numbers, graph.shape(sizes)), (x.shape[0], 8), numbers.dtype)
    rows = graph.add("Concat", numbers, graph.add("Slice", graph.add("Mul", numbers, scalar(0)), np.array(
        [0]), np.array([1]), np.array([1])), axis=1)  # fmt: skip
    rows = graph.add("Add", rows, np.array([0] * 8 + [1], np.float32))  # c2 is 1
    rows = graph.reshape(rows, [None, 3, 3])
    ys, xs = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    points = np.stack([xs, ys, np.ones_like(xs)], axis=0).reshape(3, -1).astype(np.float32)
    moved = graph.add("Transpose", graph.add("MatMul", rows, points), perm=[0, 2, 1])  # (batch, pixels, 3)
    place = graph.add("Slice", moved, np.array([0]), np.array([2]), np.array([2]))
    place = graph.add("Div", place, graph.add("Slice", moved, np.array([2]), np.array([3]), np.array([2])))
    side = np.array([width, height], np.float32)
    grid = graph.add("Add", graph.add("Mul", place, 2 / side), 1 / side - 1)  # pixel centres, -1 to 1 from edge to edge
    grid = graph.reshape(grid, [None, height, width, 2])
    source = x.first if last else x.name
    filling = scalar(call.fill_value)
    shifted = call.fill_mode == "constant" and call.fill_value != 0
    source = graph.add("Sub", source, filling) if shifted else source
    mode = call.interpolation if call.interpolation == "nearest" else "linear" if graph.opset >= 20 else "bilinear"
    made = graph.add("GridSample", source, grid, mode=mode, padding_mode=modes[call.fill_mode], align_corners=0)
    made = graph.add("Add", made, filling) if shifted else made
    return like(x, made) if not last else graph.first(made)


def _sides(call: Any, what: str, height: int, width: int) -> list[int]:
    """(top, left, bottom, right), one of each pair perhaps given by the size that is wanted."""
    found = []
    for before, after, target, have in (
        ("top", "bottom", call.target_height, height),
        ("left", "right", call.target_width, width),
    ):
        first, last = getattr(call, f"{before}_{what}"), getattr(call, f"{after}_{what}")
        gap = None if target is None else target - have if what == "padding" else have - target
        found.append((first if first is not None else gap - last, last if last is not None else gap - first))
    (top, bottom), (left, right) = found
    return [top, left, bottom, right]


def _spatial(call: Any, x: Value) -> int:
    need(x.rank == 4, "a single image without a batch")
    return 1 if (call.data_format or keras.config.image_data_format()) == "channels_last" else 2


@lowers(image_ops.PadImages)
def _pad_images(graph: Graph, call: Any, images: Any) -> str:
    x = value_of(graph, images)
    first = _spatial(call, x)
    pads = np.zeros((2, 4), np.int64)
    pads[:, first : first + 2] = np.reshape(_sides(call, "padding", *static(x.shape[first : first + 2])), (2, 2))
    return graph.add("Pad", x, pads.reshape(-1))


@lowers(image_ops.CropImages)
def _crop_images(graph: Graph, call: Any, images: Any) -> str:
    x = value_of(graph, images)
    first = _spatial(call, x)
    height, width = static(x.shape[first : first + 2])
    top, left, bottom, right = _sides(call, "cropping", height, width)
    ends = np.array([height - bottom, width - right])
    return graph.add("Slice", x, np.array([top, left]), ends, np.array([first, first + 1]))
