"""`keras.ops` that move values around: shapes, slices, gathering, scattering, padding, joining."""

import itertools
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras.src.ops import core, nn
from keras.src.ops import math as ops_math
from keras.src.ops import numpy as ops

from export.lowering import NotLoweredError, lowers
from export.lowering.arguments import (
    floats,
    indices,
    is_float,
    like,
    need,
    scalar,
    together,
    typed,
    value,
    value_of,
)
from export.lowering.graph import Graph, Shape, Value, first_order, known
from export.lowering.operations import multiply, reduced

_END = np.iinfo(np.int64).max

# Shapes


def sized(graph: Graph, given: Any) -> list[int | str | None]:
    """Sizes of a shape as `Graph.reshape` takes them: numbers, names of int64 tensors (1,), None for what is left."""
    sizes = list(given) if isinstance(given, list | tuple) else [given]
    return [number(graph, size) if isinstance(size, Value) or size not in (-1, None) else None for size in sizes]


def number(graph: Graph, given: Any) -> int | str:
    """A whole number, or the name of an int64 tensor (1,) for a scalar value."""
    return graph.reshape(indices(graph, given), [1]) if isinstance(given, Value) else int(given)


@lowers(ops.Reshape)
def _reshape(graph: Graph, call: Any, x: Any) -> str:
    return graph.reshape(value_of(graph, x), sized(graph, call.newshape))


@lowers(ops.Ravel)
def _ravel(graph: Graph, call: Any, x: Any) -> str:
    return graph.reshape(value_of(graph, x), [None])


@lowers(ops.ExpandDims)
def _expand(graph: Graph, call: Any, x: Any) -> str:
    given = value_of(graph, x)
    axes = call.axis if isinstance(call.axis, list | tuple) else [call.axis]
    rank = given.rank + len(axes)
    return graph.add("Unsqueeze", given, np.array(sorted(axis % rank for axis in axes), np.int64))


@lowers(ops.Squeeze)
def _squeeze(graph: Graph, call: Any, x: Any) -> str:
    given = value_of(graph, x)
    if call.axis is None:
        axes = [axis for axis, size in enumerate(given.shape) if size == 1]
    else:
        axes = [axis % given.rank for axis in (call.axis if isinstance(call.axis, list | tuple) else [call.axis])]
    return graph.add("Squeeze", given, np.array(axes, np.int64)) if axes else given.name


def transposed(graph: Graph, x: Value, order: Sequence[int]) -> str:
    order = [axis % x.rank for axis in order]
    if order == list(range(x.rank)):
        return x.name
    if x.rank > 2 and order == first_order(x.rank):
        return x.first
    return graph.add("Transpose", x, perm=order)


@lowers(ops.Transpose)
def _transpose(graph: Graph, call: Any, x: Any) -> str:
    given = value_of(graph, x)
    return transposed(graph, given, call.axes if call.axes is not None else range(given.rank)[::-1])


@lowers(ops.Swapaxes)
def _swap(graph: Graph, call: Any, x: Any) -> str:
    given = value_of(graph, x)
    order = list(range(given.rank))
    order[call.axis1], order[call.axis2] = order[call.axis2], order[call.axis1]
    return transposed(graph, given, order)


@lowers(ops.Moveaxis)
def _move(graph: Graph, call: Any, x: Any) -> str:
    given = value_of(graph, x)
    pairs = [[axis] if isinstance(axis, int) else list(axis) for axis in (call.source, call.destination)]
    sources, places = ([axis % given.rank for axis in axes] for axes in pairs)
    order = [axis for axis in range(given.rank) if axis not in sources]
    for place, source in sorted(zip(places, sources, strict=True)):
        order.insert(place, source)
    return transposed(graph, given, order)


@lowers(ops.BroadcastTo)
def _broadcast(graph: Graph, call: Any, x: Any) -> str:
    return expanded(graph, value_of(graph, x), sized(graph, call.shape))


def expanded(graph: Graph, x: Value, sizes: Sequence[int | str | None]) -> str:
    """Broadcast to sizes; None keeps what is there."""
    return graph.add("Expand", x, graph.shape([1 if size is None else size for size in sizes]))


def filled(graph: Graph, sizes: Sequence[int | str], number: float, dtype: str) -> str:
    """A tensor of one number."""
    return graph.add("Expand", scalar(number, dtype), graph.shape(sizes))


def _like(number: float) -> Any:
    def emit(graph: Graph, call: Any, x: Any, fill_value: Any = number) -> Value:
        given = value_of(graph, x)
        dtype = call.dtype or given.dtype
        shape = graph.shape([int(s) for s in given.shape if s is not None]) if known(given.shape) else graph.add(
            "Shape", given)  # fmt: skip
        return Value(graph, graph.add("Expand", value_of(graph, fill_value, dtype), shape))

    return emit


lowers(ops.ZerosLike)(_like(0))
lowers(ops.EmptyLike)(_like(0))
lowers(ops.OnesLike)(_like(1))
lowers(ops.FullLike)(_like(0))


def counted(graph: Graph, start: Any, stop: Any, step: Any, dtype: str) -> Value:
    """Numbers from a start, before a stop, in steps."""
    whole = "int64" if not is_float(dtype) else "float32"
    ends = [value_of(graph, end, whole) for end in (start, stop, step)]
    return Value(graph, graph.cast(graph.add("Range", *(graph.reshape(end, []) for end in ends)), dtype))


# Joining and splitting


@lowers(ops.Concatenate)
def _concatenate(graph: Graph, call: Any, xs: Any) -> Value:
    return joined(graph, together(graph, *xs), call.axis)


def joined(graph: Graph, values: Sequence[Value], axis: int) -> Value:
    rank = values[0].rank
    if axis is None:
        return Value(graph, graph.add("Concat", *(graph.reshape(one, [None]) for one in values), axis=0))
    axis %= rank
    if rank > 2 and any(one.channels_first for one in values):
        made = graph.first(graph.add("Concat", *(one.first for one in values), axis=values[0].place(axis)))
    else:
        made = Value(graph, graph.add("Concat", *values, axis=axis))
    made.dtype = values[0].dtype
    return made


@lowers(ops.Append)
def _append(graph: Graph, call: Any, x1: Any, x2: Any) -> Value:
    return joined(graph, together(graph, x1, x2), call.axis)


@lowers(ops.Hstack)
def _hstack(graph: Graph, call: Any, xs: Any) -> Value:
    values = together(graph, *xs)
    return joined(graph, values, 0 if values[0].rank == 1 else 1)


@lowers(ops.Stack)
def _stack(graph: Graph, call: Any, x: Any) -> str:
    values = together(graph, *x)
    axis = call.axis % (values[0].rank + 1)
    return graph.add("Concat", *(graph.add("Unsqueeze", one, np.array([axis])) for one in values), axis=axis)


@lowers(core.Unstack)
def _unstack(graph: Graph, call: Any, x: Any) -> list[str]:
    given = value_of(graph, x)
    count = call.num or given.shape[call.axis]
    need(count is not None, "taking a free axis apart")
    return [graph.add("Gather", given, np.array(place, np.int64), axis=call.axis) for place in range(count or 0)]


@lowers(ops.Split)
def _split(graph: Graph, call: Any, x: Any) -> list[str]:
    given = value_of(graph, x)
    axis, where = call.axis % given.rank, call.indices_or_sections
    if isinstance(where, int):
        size = given.shape[axis]
        need(size is not None, "splitting a free axis")
        return graph.add_many("Split", where, given, np.array([(size or 0) // where] * where, np.int64), axis=axis)
    borders = [0, *(int(place) for place in where), _END]
    return [
        graph.add("Slice", given, np.array([start]), np.array([end]), np.array([axis]))
        for start, end in itertools.pairwise(borders)
    ]


@lowers(ops.Vstack)
def _vstack(graph: Graph, call: Any, xs: Any) -> Value:
    values = together(graph, *xs)
    if values[0].rank == 1:
        values = [value(graph, graph.reshape(one, [1, None]), (1, *one.shape), one.dtype) for one in values]
    return joined(graph, values, 0)


@lowers(ops.ArraySplit)
def _array_split(graph: Graph, call: Any, x: Any) -> list[str]:
    given, where = value_of(graph, x), call.indices_or_sections
    size = given.shape[call.axis]
    if isinstance(where, int):
        need(size is not None, "splitting a free axis")
        where = np.cumsum([len(part) for part in np.array_split(np.arange(size or 0), where)])[:-1].tolist()
    return _split(graph, SimpleNamespace(axis=call.axis, indices_or_sections=tuple(where)), given)


@lowers(ops.Meshgrid)
def _meshgrid(graph: Graph, call: Any, *x: Any) -> list[str]:
    lines = [value_of(graph, one) for one in x]
    need(all(one.rank <= 1 for one in lines), "a grid of several axes")
    order = list(range(len(lines)))
    if call.indexing == "xy" and len(order) > 1:
        order[:2] = [1, 0]
    sizes = [size for axis in order for size in graph.sizes(lines[axis])]
    whole = graph.shape(sizes)
    made = []
    for axis, line in enumerate(lines):
        shape: list[int | None] = [1] * len(lines)
        shape[order.index(axis)] = None
        made.append(graph.add("Expand", graph.reshape(line, shape), whole))
    return made


# Slices


@lowers(ops.GetItem)
def _get(graph: Graph, call: Any, x: Any, key: Any) -> str:
    return item(graph, value_of(graph, x), key)


def item(graph: Graph, x: Value, key: Any) -> str:
    """x[key], of numbers, slices (whose ends may be values), new axes and at most one ellipsis."""
    parts = list(key) if isinstance(key, list | tuple) else [key]
    taken = sum(part is not None and part is not Ellipsis for part in parts)
    if not any(part is Ellipsis for part in parts):
        parts.append(Ellipsis)
    place = next(index for index, part in enumerate(parts) if part is Ellipsis)
    parts[place : place + 1] = [slice(None)] * (x.rank - taken)
    axis = 0
    squeezed: list[tuple[int, Any]] = []
    added: list[int] = []
    cuts: list[tuple[int, slice]] = []
    for part in parts:
        if part is None:
            added.append(axis + len(added) - len(squeezed))
            continue
        if isinstance(part, slice):
            if part != slice(None):
                cuts.append((axis, part))
        else:
            need(isinstance(part, int | np.integer) or (isinstance(part, Value) and part.rank == 0), "a list of places")
            squeezed.append((axis, part))
        axis += 1
    name = x.name
    if cuts:
        name = _cut(graph, name, cuts)
    for axis, part in reversed(squeezed):
        where = indices(graph, part) if isinstance(part, Value) else np.array(int(part), np.int64)
        name = graph.add("Gather", name, where, axis=axis)
    return graph.add("Unsqueeze", name, np.array(added, np.int64)) if added else name


def _cut(graph: Graph, name: str, cuts: Sequence[tuple[int, slice]]) -> str:
    """Slices of several axes at once."""
    starts: list[int | str] = []
    ends: list[int | str] = []
    steps = []
    for _, part in cuts:
        step = 1 if part.step is None else int(part.step)
        for made, end, missing in (
            (starts, part.start, 0 if step > 0 else _END),
            (ends, part.stop, _END if step > 0 else -_END),
        ):
            made.append(missing if end is None else number(graph, end))
        steps.append(step)
    axes = np.array([axis for axis, _ in cuts], np.int64)
    return graph.add("Slice", name, graph.shape(starts), graph.shape(ends), axes, np.array(steps, np.int64))


@lowers(core.Slice)
def _slice(graph: Graph, call: Any, inputs: Any, start_indices: Any) -> str:
    given = value_of(graph, inputs)
    starts = indices(graph, start_indices) if isinstance(start_indices, Value) else graph.shape(
        [0 if size is None else size for size in sized(graph, start_indices)])  # fmt: skip
    lengths = graph.shape([_END // 2 if size is None else size for size in sized(graph, call.shape)])
    ends = graph.add("Add", starts, lengths)
    return graph.add("Slice", given, starts, ends, np.arange(given.rank, dtype=np.int64))


@lowers(core.SliceUpdate)
def _slice_update(graph: Graph, call: Any, inputs: Any, start_indices: Any, updates: Any) -> str:
    given, new = together(graph, inputs, updates)
    if isinstance(start_indices, Value):
        part = [
            graph.add("Gather", indices(graph, start_indices), np.array([axis]), axis=0) for axis in range(given.rank)
        ]
        starts: list[int | str | None] = list(part)
    else:
        starts = sized(graph, start_indices)
    cut = [axis for axis in range(given.rank) if starts[axis] != 0 or given.shape[axis] != new.shape[axis]]
    need(all(new.shape[axis] is not None for axis in cut), "an update of free size")
    if not cut:
        return new.name
    order = cut + [axis for axis in range(given.rank) if axis not in cut]
    sizes = [new.shape[axis] or 0 for axis in cut]
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in sizes), indexing="ij"), axis=-1)
    places = graph.add("Add", grid, graph.shape([0 if starts[axis] is None else starts[axis] or 0 for axis in cut]))
    made = value(
        graph,
        graph.add("ScatterND", transposed(graph, given, order), places, transposed(graph, new, order)),
        [given.shape[axis] for axis in order],
        given.dtype,
    )
    return transposed(graph, made, [order.index(axis) for axis in range(given.rank)])


# Gathering and scattering


@lowers(ops.Take)
def _take(graph: Graph, call: Any, x: Any, indices: Any) -> str:
    given = value_of(graph, x)
    places = value_of(graph, indices)
    places = places if places.dtype in ("int32", "int64") else typed(graph, places, "int64")
    if call.axis is None:
        return graph.add("Gather", graph.reshape(given, [None]), places, axis=0)
    return graph.add("Gather", given, places, axis=call.axis)


@lowers(ops.TakeAlongAxis)
def _take_along(graph: Graph, call: Any, x: Any, indices: Any) -> str:
    given, places = value_of(graph, x), value_of(graph, indices)
    if call.axis is None:
        return graph.add("GatherElements", graph.reshape(given, [None]), graph.reshape(places, [None]), axis=0)
    axis = call.axis % given.rank
    wide = [size for place, size in enumerate(given.shape) if place != axis]
    asked = [size for place, size in enumerate(places.shape) if place != axis]
    need(given.rank == places.rank, "places of another rank")
    names = [given.name, typed(graph, places, "int64").name]
    for which, (own, other) in enumerate(((wide, asked), (asked, wide))):
        if any(a == 1 and b != 1 for a, b in zip(own, other, strict=True)):
            pattern = graph.add("Shape", names[1 - which])
            ones = np.ones(given.rank, np.int64)
            keep = np.arange(given.rank) != axis
            names[which] = graph.add("Expand", names[which], graph.add("Where", keep, pattern, ones))
    return graph.add("GatherElements", names[0], names[1], axis=axis)


def one_hot(graph: Graph, x: Value, classes: int, axis: int, dtype: str) -> Value:
    """1 at the place of each number, 0 elsewhere; all 0 for numbers outside."""
    place = axis % (x.rank + 1)
    whole = x if x.dtype in ("int32", "int64") else typed(graph, x, "int32")
    row = np.arange(classes, dtype=whole.dtype).reshape(-1, *[1] * (x.rank - place))
    found = graph.add("Equal", graph.add("Unsqueeze", whole, np.array([place], np.int64)), row)
    shape = (*x.shape[:place], classes, *x.shape[place:])
    return value(graph, graph.cast(found, dtype), shape, dtype)


@lowers(nn.OneHot)
def _one_hot(graph: Graph, call: Any, x: Any) -> Value:
    need(not call.sparse, "a sparse tensor")
    return one_hot(graph, value_of(graph, x), call.num_classes, call.axis, call.dtype or keras.config.floatx())


@lowers(nn.MultiHot)
def _multi_hot(graph: Graph, call: Any, inputs: Any) -> Value:
    given = value_of(graph, inputs)
    need(not call.sparse, "a sparse tensor")
    dtype = call.dtype or keras.config.floatx()
    ones = one_hot(graph, typed(graph, given, "int32"), call.num_classes, call.axis, "int32")
    return typed(graph, reduced(graph, "ReduceMax", ones, 1 if given.rank > 1 else 0), dtype)


@lowers(ops.Bincount)
def _bincount(graph: Graph, call: Any, x: Any) -> Value:
    given = value_of(graph, x)
    need(call.minlength and not call.sparse and call.weights is None, "counts of free length")
    ones = one_hot(graph, given, call.minlength, -1, "int32")
    return reduced(graph, "ReduceSum", ones, -2)


def scattered(graph: Graph, target: str, places: str, updates: Value, how: str | None) -> str:
    """Updates written into a target, or combined with it where `how` is "add", "mul", "max" or "min"."""
    need(how is None or graph.opset >= (18 if how in ("max", "min") else 16), f"scattering with {how!r} needs opset 18")
    return graph.add("ScatterND", target, places, updates, reduction=how)


@lowers(core.Scatter)
def _scatter(graph: Graph, call: Any, indices: Any, values: Any) -> str:
    updates = value_of(graph, values)
    sizes = [1 if size is None else size for size in sized(graph, call.shape)]
    target = filled(graph, sizes, 0, updates.dtype)
    return scattered(graph, target, typed(graph, value_of(graph, indices), "int64").name, updates, "add")


@lowers(core.ScatterUpdate)
def _scatter_update(graph: Graph, call: Any, inputs: Any, indices: Any, updates: Any) -> str:
    given = value_of(graph, inputs)
    new = value_of(graph, updates, given.dtype)
    places = typed(graph, value_of(graph, indices), "int64").name
    return scattered(graph, given.name, places, new, call.reduction)


def _segment(how: str) -> Any:
    """Rows with the same number combined; rows with a number outside go nowhere."""

    def emit(graph: Graph, call: Any, data: Any, segment_ids: Any) -> str:
        rows, numbers = value_of(graph, data), typed(graph, value_of(graph, segment_ids), "int64")
        count = call.num_segments
        need(isinstance(count, int) and numbers.rank == 1, "segments of a free number")
        floating = is_float(rows.dtype)
        limits: Any = np.finfo("float32") if floating else np.iinfo(rows.dtype)
        infinite = floating and keras.config.backend() == "jax"  # what a place that no row goes to is left with
        least, most = (-math.inf, math.inf) if infinite else (limits.min, limits.max)
        start = {"add": 0, "mul": 1, "max": least, "min": most}[how]
        outside = graph.add(
            "Or",
            graph.add("Less", numbers, scalar(0, "int64")),
            graph.add("GreaterOrEqual", numbers, scalar(count, "int64")),
        )
        places = graph.add("Where", outside, scalar(count, "int64"), numbers)
        rest = [size if size is not None else graph.size(rows.name, axis) for axis, size in enumerate(rows.shape)][1:]
        target = filled(graph, [count + 1, *rest], start, rows.dtype)
        made = scattered(graph, target, graph.add("Unsqueeze", places, np.array([1])), rows, how)
        return graph.add("Slice", made, np.array([0]), np.array([count]), np.array([0]))

    return emit


for _kind, _how in (
    (ops_math.SegmentSum, "add"), (ops_math.SegmentProd, "mul"), (ops_math.SegmentMax, "max"),
    (ops_math.SegmentMin, "min"),
):  # fmt: skip
    lowers(_kind)(_segment(_how))


# Padding, repeating, turning


@lowers(ops.Pad)
def _pad(graph: Graph, call: Any, x: Any, constant_values: Any = None) -> str:
    given = value_of(graph, x)
    pairs = np.broadcast_to(np.asarray(call.pad_width, np.int64), (given.rank, 2)).tolist()
    return padded(graph, given, pairs, call.mode, constant_values)


def padded(graph: Graph, x: Value, pairs: Sequence[Sequence[Any]], mode: str, filling: Any = None) -> str:
    """A border around a value: (before, after) of each axis, numbers or scalar values."""
    if mode == "symmetric":
        name = x.name
        for axis, (before, after) in enumerate(pairs):
            need(isinstance(before, int) and isinstance(after, int), "a mirrored border of free width")
            name = _mirrored(graph, name, axis, before, after)
        return name
    need(mode in ("constant", "reflect", "edge"), f"padding mode {mode!r}")
    pads = graph.shape([number(graph, pair[side]) for side in (0, 1) for pair in pairs])
    around = value_of(graph, 0 if filling is None else filling, x.dtype) if mode == "constant" else None
    return graph.add("Pad", x, pads, around, mode=mode)


def _mirrored(graph: Graph, name: str, axis: int, before: int, after: int) -> str:
    """The border repeated in a mirror, the last value twice."""
    where, back = np.array([axis]), np.array([-1])
    parts = [name]
    if before:
        parts.insert(0, graph.add("Slice", name, np.array([before - 1]), np.array([-_END]), where, back))
    if after:
        parts.append(graph.add("Slice", name, np.array([_END]), np.array([-after - 1]), where, back))
    return graph.add("Concat", *parts, axis=axis) if len(parts) > 1 else name


def flipped(graph: Graph, x: Value | str, axes: Sequence[int]) -> str:
    count = len(axes)
    return graph.add(
        "Slice",
        x,
        np.array([_END] * count),
        np.array([-_END] * count),
        np.array(axes, np.int64),
        np.array([-1] * count),
    )


@lowers(ops.Flip)
def _flip(graph: Graph, call: Any, x: Any) -> str:
    given = value_of(graph, x)
    axes = range(given.rank) if call.axis is None else [call.axis] if isinstance(call.axis, int) else call.axis
    return flipped(graph, given, [axis % given.rank for axis in axes])


@lowers(ops.Diff)
def _difference(graph: Graph, call: Any, a: Any) -> str:
    given = value_of(graph, a)
    need(given.dtype != "bool", "differences of truth values")
    axis, name = np.array([call.axis % given.rank]), given.name
    for _ in range(call.n):
        later = graph.add("Slice", name, np.array([1]), np.array([_END]), axis)
        name = graph.add("Sub", later, graph.add("Slice", name, np.array([0]), np.array([-1]), axis))
    return name


@lowers(ops.Rot90)
def _quarter_turns(graph: Graph, call: Any, array: Any) -> str:
    given = value_of(graph, array)
    first, second = (axis % given.rank for axis in call.axes)
    order = list(range(given.rank))
    order[first], order[second] = second, first
    match call.k % 4:
        case 1:
            return graph.add("Transpose", flipped(graph, given, [second]), perm=order)
        case 2:
            return flipped(graph, given, [first, second])
        case 3:
            return flipped(graph, graph.add("Transpose", given, perm=order), [second])
    return given.name


@lowers(ops.Roll)
def _roll(graph: Graph, call: Any, x: Any) -> str:
    given = value_of(graph, x)
    if call.axis is None:
        line = value(graph, graph.reshape(given, [None]), (None,), given.dtype)
        return graph.reshape(_rolled(graph, line, 0, call.shift), graph.sizes(given))
    shifts = call.shift if isinstance(call.shift, list | tuple) else [call.shift]
    axes = call.axis if isinstance(call.axis, list | tuple) else [call.axis]
    made = given
    for shift, axis in zip(shifts, axes, strict=True):
        made = like(given, _rolled(graph, made, axis % given.rank, int(shift)))
    return made.name


def _rolled(graph: Graph, x: Value, axis: int, shift: int) -> str:
    size = x.shape[axis]
    if size is not None:
        cut: Any = np.array([-shift % max(size, 1)], np.int64)
    else:
        cut = graph.add("Mod", np.array([-shift], np.int64), graph.size(x.name, axis))
    where = np.array([axis])
    first = graph.add("Slice", x, cut, np.array([_END]), where)
    return graph.add("Concat", first, graph.add("Slice", x, np.array([0]), cut, where), axis=axis)


@lowers(ops.Tile)
def _tile(graph: Graph, call: Any, x: Any) -> str:
    given = value_of(graph, x)
    repeats: list[int | str] = [1 if size is None else size for size in sized(graph, call.repeats)]
    name = given.name
    if len(repeats) > given.rank:
        name = graph.add("Unsqueeze", name, np.arange(len(repeats) - given.rank, dtype=np.int64))
    return graph.add("Tile", name, graph.shape([*[1] * (given.rank - len(repeats)), *repeats]))


@lowers(ops.Repeat)
def _repeat(graph: Graph, call: Any, x: Any) -> str:
    given = value_of(graph, x)
    if call.axis is None:
        given = value(graph, graph.reshape(given, [None]), (None,), given.dtype)
    axis = (call.axis or 0) % given.rank
    counts = np.ravel(call.repeats) if not isinstance(call.repeats, Value) else None
    need(counts is not None and (counts.size == 1 or given.shape[axis] is not None), "repeating a free axis unevenly")
    if counts is not None and counts.size > 1:
        return graph.add("Gather", given, np.repeat(np.arange(counts.size), counts), axis=axis)
    times = int(counts[0]) if counts is not None else 1
    wide = graph.add("Unsqueeze", given, np.array([axis + 1], np.int64))
    copies = graph.add("Tile", wide, np.array([times if place == axis + 1 else 1 for place in range(given.rank + 1)]))
    sizes: list[int | str | None] = [
        size if size is not None else graph.size(given.name, place) for place, size in enumerate(given.shape)
    ]
    size = given.shape[axis]
    sizes[axis] = None if size is None else size * times
    return graph.reshape(copies, sizes)


@lowers(ops.Tril)
def _lower(graph: Graph, call: Any, x: Any) -> Value:
    return _triangle(graph, value_of(graph, x), call.k, 0)


@lowers(ops.Triu)
def _upper(graph: Graph, call: Any, x: Any) -> Value:
    return _triangle(graph, value_of(graph, x), call.k, 1)


def _triangle(graph: Graph, x: Value, k: Any, upper: int) -> Value:
    need(graph.opset >= 14, "a triangle needs opset 14")
    wide = x if is_float(x.dtype) else typed(graph, x, "int64")
    return like(wide, graph.add("Trilu", wide, np.array(int(k), np.int64), upper=upper))


@lowers(ops.Diagonal)
def _diagonal(graph: Graph, call: Any, x: Any) -> str:
    return diagonal(graph, value_of(graph, x), call.offset, call.axis1, call.axis2)


def diagonal(graph: Graph, x: Value, offset: int, axis1: int, axis2: int) -> str:
    first, second = axis1 % x.rank, axis2 % x.rank
    rows, columns = x.shape[first], x.shape[second]
    if rows is None or columns is None:
        raise NotLoweredError("the diagonal of a free size")
    rest = [axis for axis in range(x.rank) if axis not in (first, second)]
    count = min(rows + min(offset, 0), columns - max(offset, 0))
    row, column = np.arange(count) - min(offset, 0), np.arange(count) + max(offset, 0)
    sizes: list[int | str | None] = [x.shape[a] if x.shape[a] is not None else graph.size(x.name, a) for a in rest]
    moved = graph.reshape(transposed(graph, x, [*rest, first, second]), [*sizes, rows * columns])
    return graph.add("Gather", moved, row * columns + column, axis=len(rest))


@lowers(ops.Trace)
def _trace(graph: Graph, call: Any, x: Any) -> str:
    given = value_of(graph, x)
    return graph.reduce("ReduceSum", diagonal(graph, given, call.offset, call.axis1, call.axis2), [given.rank - 2])


@lowers(ops.Diag)
def _diag(graph: Graph, call: Any, x: Any) -> str:
    given = value_of(graph, x)
    if given.rank == 2:
        return diagonal(graph, given, call.k, 0, 1)
    size = given.shape[0]
    need(size is not None and call.k == 0, "a diagonal matrix of free size")
    return multiply(graph, given, value_of(graph, np.eye(size or 0, dtype=scalar(0, given.dtype).dtype))).name


@lowers(nn.DepthToSpace)
def _depth_to_space(graph: Graph, call: Any, x: Any) -> Value:
    return _blocks(graph, call, x, "DepthToSpace", mode="DCR")


@lowers(nn.SpaceToDepth)
def _space_to_depth(graph: Graph, call: Any, x: Any) -> Value:
    return _blocks(graph, call, x, "SpaceToDepth")


def _blocks(graph: Graph, call: Any, x: Any, operation: str, **settings: str) -> Value:
    given = floats(graph, x)
    last = call.data_format == "channels_last"
    name = graph.add(operation, given.first if last else given.name, blocksize=call.block_size, **settings)
    made = graph.first(name) if last else Value(graph, name)
    made.dtype = given.dtype
    return made


def static(shape: Shape) -> list[int]:
    """Sizes that must all be known.

    Raises:
        NotLoweredError: one is free.
    """
    need(known(shape), f"the free size in {shape}")
    return [int(size) for size in shape if size is not None]
