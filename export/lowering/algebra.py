"""Products of tensors, linear systems and Fourier transforms."""

import math
import string
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras.src.ops import linalg
from keras.src.ops import math as ops_math
from keras.src.ops import numpy as ops

from export.lowering import lowers
from export.lowering.activations import activate
from export.lowering.arguments import calculable, floats, in_floats, like, need, together, value, value_of
from export.lowering.arrays import static, transposed
from export.lowering.graph import Graph, Value
from export.lowering.operations import multiply, subtract

# Products


@lowers(ops.Matmul)
def _matmul(graph: Graph, call: Any, x1: Any, x2: Any) -> str:
    x, y = _factors(graph, x1, x2)
    return graph.add("MatMul", x, y)


def _factors(graph: Graph, *given: Any) -> list[Value]:
    """Values of one type that products exist for."""
    return [calculable(graph, one) for one in together(graph, *given)]


def einsum(graph: Graph, equation: str, *values: Value) -> str:
    """A sum of products; two operands without repeated letters become one MatMul, which is faster than Einsum."""
    letters = sorted({letter for letter in equation if letter.isalpha()})
    if any(letter.isupper() for letter in letters):  # ONNX has small ones
        need(len(letters) <= len(string.ascii_lowercase), "more letters than the alphabet has")
        equation = equation.translate(dict(zip(map(ord, letters), string.ascii_lowercase, strict=False)))
    if len(values) == 2 and (made := _as_product(graph, equation, *values)):
        return made
    return graph.add("Einsum", *values, equation=equation)


def _as_product(graph: Graph, equation: str, x: Value, y: Value) -> str | None:
    left, _, result = equation.partition("->")
    first, _, second = left.partition(",")
    if "." in equation or any(len(set(term)) < len(term) for term in (first, second, result)) or "->" not in equation:
        return None
    sizes = {**dict(zip(first, x.shape, strict=True)), **dict(zip(second, y.shape, strict=True))}
    batch = [letter for letter in result if letter in first and letter in second]
    inner = [letter for letter in first if letter in second and letter not in result]
    rows = [letter for letter in first if letter not in second]
    columns = [letter for letter in second if letter not in first]
    if set(rows + columns) - set(result) or not inner:
        return None
    if not batch and len(inner) == 1 and len(columns) == 1:  # a product with one matrix keeps the rows as they are
        rows_in_order, matrix = [*rows, *inner], [*inner, *columns]
        made = graph.add("MatMul", _arranged(graph, x, first, rows_in_order), _arranged(graph, y, second, matrix))
        return _given_back(graph, made, [*rows, *columns], result, x.dtype)
    groups = [*batch, rows, inner], [*batch, inner, columns]
    names = []
    for given, letters, parts in ((x, first, groups[0]), (y, second, groups[1])):
        order = [letter for part in parts for letter in part]
        name = _arranged(graph, given, letters, order)
        names.append(_grouped(graph, given, letters, name, [list(part) for part in parts]))
    made = graph.add("MatMul", *names)
    if len(rows) != 1 or len(columns) != 1:
        wanted: list[int | str | None] = []
        for letter in [*batch, *rows, *columns]:
            source, letters = (x, first) if letter in first else (y, second)
            size = sizes[letter]
            wanted.append(size if size is not None else graph.size(source.name, letters.index(letter)))
        made = graph.reshape(made, wanted)
    return _given_back(graph, made, [*batch, *rows, *columns], result, x.dtype)


def _arranged(graph: Graph, x: Value, letters: str, order: Sequence[str]) -> str:
    return transposed(graph, x, [letters.index(letter) for letter in order])


def _grouped(graph: Graph, x: Value, letters: str, name: str, parts: Sequence[Sequence[str]]) -> str:
    """One axis for each group of letters."""
    if all(len(part) == 1 for part in parts):
        return name
    wanted: list[int | str | None] = []
    for part in parts:
        known = [x.shape[letters.index(letter)] for letter in part]
        if None not in known:
            wanted.append(math.prod(size for size in known if size is not None))
        elif len(part) == 1:
            wanted.append(graph.size(x.name, letters.index(part[0])))
        elif None not in wanted:
            wanted.append(None)
        else:
            sizes = [size if size is not None else graph.size(x.name, letters.index(letter)) for letter, size in zip(
                part, known, strict=True)]  # fmt: skip
            wanted.append(graph.add("ReduceProd", graph.shape(sizes), keepdims=1))
    return graph.reshape(name, wanted)


def _given_back(graph: Graph, name: str, order: Sequence[str], result: str, dtype: str) -> str:
    if list(result) == list(order):
        return name
    return graph.add("Transpose", name, perm=[list(order).index(letter) for letter in result])


@lowers(ops.Einsum)
def _einsum(graph: Graph, call: Any, *operands: Any, **options: Any) -> str:
    values = _factors(graph, *operands)
    return einsum(graph, call.subscripts.replace(" ", ""), *values)


@lowers(keras.layers.EinsumDense)
@in_floats
def _einsum_dense(graph: Graph, layer: Any, inputs: Value) -> Value:
    need(layer.quantization_mode is None and not layer.lora_enabled, "weights of another kind")
    equation = layer.equation.replace(" ", "")
    if "..." in equation:
        kernel = value(graph, graph.variable(layer._kernel, "kernel"), layer._kernel.shape, inputs.dtype)
        made = graph.add("Einsum", inputs, kernel, equation=equation)
    else:
        made = projected(graph, equation, inputs, layer._kernel)
    if layer.bias is not None:
        made = graph.add("Add", made, graph.variable(layer.bias, "bias"))
    found = value(graph, made, layer.compute_output_shape(inputs.shape), inputs.dtype)
    return activate(graph, layer.activation, found)


def projected(graph: Graph, equation: str, x: Value, kernel: Any) -> str:
    """A value times a weight: where letters allow it, one MatMul with the weight as a matrix, made once."""
    left, _, result = equation.partition("->")
    first, _, second = left.partition(",")
    shape = dict(zip(second, kernel.shape, strict=True))
    inner = [letter for letter in second if letter in first]
    columns = [letter for letter in second if letter not in first]
    rows = [letter for letter in first if letter not in second]
    plain = list(first) == rows + inner and list(result) == rows + columns
    if not plain or any(letter in result for letter in inner):
        given = value(graph, graph.variable(kernel, "whole_kernel"), kernel.shape, x.dtype)
        return einsum(graph, equation, x, given)
    order = [second.index(letter) for letter in (*inner, *columns)]
    deep = math.prod(shape[letter] for letter in inner)
    matrix = graph.variable(kernel, "kernel", lambda array: array.transpose(order).reshape(deep, -1))
    kept = [0] * len(rows)  # a size of 0 in a reshape is the size that is there
    flat = x.name if len(inner) == 1 else graph.add("Reshape", x, np.array([*kept, deep], np.int64))
    made = graph.add("MatMul", flat, matrix)
    if len(columns) == 1:
        return made
    return graph.add("Reshape", made, np.array([*kept, *(shape[letter] for letter in columns)], np.int64))


def _one_free(sizes: Sequence[int | str | None]) -> list[int | str | None]:
    """The same sizes, the only one that is known at run time left to the reshape itself."""
    free = [place for place, size in enumerate(sizes) if isinstance(size, str)]
    return [None if place in free and len(free) == 1 else size for place, size in enumerate(sizes)]


@lowers(ops.Tensordot)
def _tensordot(graph: Graph, call: Any, x1: Any, x2: Any) -> str:
    x, y = _factors(graph, x1, x2)
    if isinstance(call.axes, int):
        pairs = list(zip(range(x.rank - call.axes, x.rank), range(call.axes), strict=True))
    else:
        both = [[axis] if isinstance(axis, int) else list(axis) for axis in call.axes]
        pairs = [(a % x.rank, b % y.rank) for a, b in zip(*both, strict=True)]
    first = list(string.ascii_lowercase[: x.rank])
    second = list(string.ascii_lowercase[x.rank : x.rank + y.rank])
    for a, b in pairs:
        second[b] = first[a]
    summed = {first[a] for a, _ in pairs}
    kept = [letter for letter in first + second if letter not in summed]
    return einsum(graph, f"{''.join(first)},{''.join(second)}->{''.join(kept)}", x, y)


@lowers(ops.Dot)
def _dot(graph: Graph, call: Any, x1: Any, x2: Any) -> Any:
    x, y = _factors(graph, x1, x2)
    if min(x.rank, y.rank) == 0:
        return multiply(graph, x, y)
    if x.rank <= 2 and y.rank <= 2:
        return graph.add("MatMul", x, y)
    return _tensordot(graph, SimpleNamespace(axes=[[x.rank - 1], [max(y.rank - 2, 0)]]), x, y)


@lowers(ops.Inner)
def _inner(graph: Graph, call: Any, x1: Any, x2: Any) -> str:
    x, y = _factors(graph, x1, x2)
    return _tensordot(graph, SimpleNamespace(axes=[[x.rank - 1], [y.rank - 1]]), x, y)


@lowers(ops.Outer)
def _outer(graph: Graph, call: Any, x1: Any, x2: Any) -> Value:
    x, y = _factors(graph, x1, x2)
    tall = value(graph, graph.reshape(x, [None, 1]), (None, 1), x.dtype)
    return multiply(graph, tall, value(graph, graph.reshape(y, [1, None]), (1, None), y.dtype))


@lowers(ops.Vdot)
def _vdot(graph: Graph, call: Any, x1: Any, x2: Any) -> str:
    x, y = _factors(graph, x1, x2)
    return graph.add("MatMul", graph.reshape(x, [None]), graph.reshape(y, [None]))


@lowers(ops.Cross)
def _cross(graph: Graph, call: Any, x1: Any, x2: Any) -> Value:
    x, y = together(graph, x1, x2)
    plain = {call.axisa % x.rank, call.axisb % y.rank, call.axisc % x.rank} == {x.rank - 1} and x.rank == y.rank
    need(plain and x.shape[-1] == y.shape[-1] == 3, "a cross product over another axis than the last")

    def turned(given: Value, order: list[int]) -> Value:
        return like(given, graph.add("Gather", given, np.array(order), axis=given.rank - 1))

    return subtract(
        graph,
        multiply(graph, turned(x, [1, 2, 0]), turned(y, [2, 0, 1])),
        multiply(graph, turned(x, [2, 0, 1]), turned(y, [1, 2, 0])),
    )


@lowers(ops_math.CDist)
def _distances(graph: Graph, call: Any, x: Any, y: Any) -> str:
    a, b = together(graph, x, y)
    rows, columns = (graph.add("Unsqueeze", one, np.array([axis])) for one, axis in ((a, a.rank - 1), (b, b.rank - 2)))
    gap = graph.add("Sub", rows, columns)
    return graph.reduce("ReduceL2", gap, [a.rank])


def along(graph: Graph, x: Value, axis: int, matrix: np.ndarray) -> Value:
    """Each line along an axis times a constant matrix (new size, old size)."""
    axis %= x.rank
    sizes: list[int | str | None] = list(x.shape)
    sizes = [size if size is not None else graph.size(x.name, place) for place, size in enumerate(sizes)]
    constant = graph.weight(matrix.astype(np.float32), "matrix")
    made = [*x.shape[:axis], matrix.shape[0], *x.shape[axis + 1 :]]
    if axis == x.rank - 1:
        return value(graph, graph.add("MatMul", x, graph.weight(matrix.T.astype(np.float32), "matrix")), made, x.dtype)
    if axis == x.rank - 2:
        return value(graph, graph.add("MatMul", constant, x), made, x.dtype)
    after = x.shape[axis + 1 :]
    flat = math.prod(size for size in after if size is not None) if None not in after else None
    rows = graph.reshape(x, [*_front(sizes[:axis], flat), matrix.shape[1], flat])
    product = graph.add("MatMul", constant, rows)
    whole = [*sizes[:axis], matrix.shape[0], *sizes[axis + 1 :]]
    return value(graph, graph.reshape(product, _one_free(whole)), made, x.dtype)


def _front(sizes: Sequence[int | str | None], flat: int | None) -> list[int | str | None]:
    return list(sizes) if flat is None else _one_free(sizes)


# Linear systems


def solved(graph: Graph, a: Value, b: Value) -> Value:
    """x of a x = b by Gauss-Jordan elimination with the largest pivot of each column, written out step by step."""
    size = static(a.shape[-2:])[0]
    need(size <= 32, f"a linear system of {size} unknowns")
    table = graph.add("Concat", a, b, axis=a.rank - 1)
    rows = np.arange(size).reshape(size, 1)
    for step in range(size):
        column = graph.add("Gather", table, np.array([step]), axis=a.rank - 1)  # (..., size, 1)
        eligible = graph.add("Where", rows >= step, graph.add("Abs", column), np.array(-1, np.float32))
        best = graph.add("ArgMax", eligible, axis=a.rank - 2, keepdims=1)  # (..., 1, 1)
        is_best, is_step = graph.add("Equal", best, rows), rows == step
        pick = graph.reduce(
            "ReduceSum", graph.add("Where", is_best, table, np.array(0, np.float32)), [a.rank - 2], True
        )
        here = graph.add("Gather", table, np.array([step]), axis=a.rank - 2)
        swapped = graph.add("Where", is_best, here, table)
        pivot = graph.add("Gather", pick, np.array([step]), axis=a.rank - 1)
        row = graph.add("Div", pick, pivot)
        factors = graph.add("Gather", swapped, np.array([step]), axis=a.rank - 1)
        table = graph.add("Where", is_step, row, graph.add("Sub", swapped, graph.add("Mul", factors, row)))
    made = graph.add("Slice", table, np.array([size]), np.array([np.iinfo(np.int64).max]), np.array([a.rank - 1]))
    return value(graph, made, b.shape, b.dtype)


@lowers(linalg.Solve)
def _solve(graph: Graph, call: Any, a: Any, b: Any) -> str:
    left, right = together(graph, a, b, floating=True)
    if right.rank == left.rank:
        return solved(graph, left, right).name
    tall = value(graph, graph.add("Unsqueeze", right, np.array([right.rank])), (*right.shape, 1), right.dtype)
    return graph.add("Squeeze", solved(graph, left, tall), np.array([right.rank]))


@lowers(linalg.Inv)
def _inverse(graph: Graph, call: Any, x: Any) -> str:
    given = floats(graph, x)
    size = static(given.shape[-2:])[0]
    sizes: list[int | str] = [*graph.sizes(given)[:-2], size, size]
    unit = graph.add("Expand", np.eye(size, dtype=np.float32), graph.shape(sizes))
    return solved(graph, given, value(graph, unit, given.shape, given.dtype)).name


@lowers(linalg.Det)
def _determinant(graph: Graph, call: Any, x: Any) -> str:
    return graph.add("Det", floats(graph, x))


# Fourier transforms


def _transformed(graph: Graph, x: str, onesided: bool = False) -> str:
    """DFT of (batch, steps, 1) or (batch, steps, 2) over the steps: (batch, frequencies, 2)."""
    need(graph.opset >= 17, "a Fourier transform needs opset 17")
    if graph.opset >= 20:
        return graph.add("DFT", x, None, np.array(1, np.int64), onesided=int(onesided))
    return graph.add("DFT", x, axis=1, onesided=int(onesided))


def _parts(graph: Graph, pairs: str) -> tuple[str, str]:
    real, imaginary = (graph.add("Gather", pairs, np.array(place, np.int64), axis=-1) for place in (0, 1))
    return real, imaginary


def _paired(graph: Graph, x: Any) -> tuple[str, int]:
    """(..., 2) from real and imaginary parts, and the rank of these."""
    real, imaginary = together(graph, *x, floating=True)
    wide = [graph.add("Unsqueeze", part, np.array([part.rank])) for part in (real, imaginary)]
    return graph.add("Concat", *wide, axis=real.rank), real.rank


@lowers(ops_math.FFT)
def _fft(graph: Graph, call: Any, x: Any) -> list[str]:
    """The transform over the last axis; ONNX has it for one axis before the last."""
    name, rank = _paired(graph, x)
    real = value_of(graph, x[0])
    if rank == 2:
        return list(_parts(graph, _transformed(graph, name)))
    flat = _transformed(graph, graph.reshape(name, [None, static(real.shape[-1:])[0], 2]))
    sizes = graph.sizes(real)
    return [graph.reshape(part, [*sizes]) for part in _parts(graph, flat)]


@lowers(ops_math.RFFT)
def _rfft(graph: Graph, call: Any, x: Any) -> tuple[str, str]:
    given = floats(graph, x)
    need(given.rank == 2 and call.fft_length is None, "a transform of more than (batch, steps), or of another length")
    wide = graph.add("Unsqueeze", given, np.array([2]))
    return _parts(graph, _transformed(graph, wide, onesided=True))


@lowers(ops_math.STFT)
def _stft(graph: Graph, call: Any, x: Any) -> tuple[str, str]:
    """Windows times the matrix of the transform, which for the lengths of speech is as fast as anything."""
    given = floats(graph, x)
    width, length = call.sequence_length, call.fft_length
    name = given.name
    pads = np.zeros(2 * given.rank, np.int64)
    if call.center:
        pads[[given.rank - 1, -1]] = length // 2
        name = graph.add("Pad", name, pads, mode="reflect")
    steps = given.shape[-1]
    need(steps is not None, "windows over a free length")
    total = (steps or 0) + (length // 2 * 2 if call.center else 0)
    starts = np.arange(0, total - length + 1, call.sequence_stride)
    frames = graph.add("Gather", name, starts[:, None] + np.arange(length), axis=given.rank - 1)
    window = np.ones(width)
    if isinstance(call.window, str):
        edge = {"hann": 0.5, "hamming": 0.54}[call.window]
        window = edge - (1 - edge) * np.cos(2 * np.pi * np.arange(width) / width)
    elif call.window is not None:
        window = np.asarray(keras.ops.convert_to_numpy(call.window), np.float64)
    left = (length - width) // 2
    window = np.pad(window, (left, length - width - left))
    angles = 2 * np.pi * np.outer(np.arange(length), np.arange(length // 2 + 1)) / length
    real, imaginary = (
        graph.add("MatMul", frames, graph.weight((window[:, None] * wave).astype(np.float32), "waves"))
        for wave in (np.cos(angles), -np.sin(angles))
    )
    return real, imaginary


@lowers(ops_math.ExtractSequences)
def _sequences(graph: Graph, call: Any, x: Any) -> str:
    given = value_of(graph, x)
    steps = static(given.shape[-1:])[0]
    starts = np.arange(0, steps - call.sequence_length + 1, call.sequence_stride)
    return graph.add("Gather", given, starts[:, None] + np.arange(call.sequence_length), axis=given.rank - 1)
