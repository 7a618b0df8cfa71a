"""How each operation of `keras.ops` passes channels on: one rule per kind."""

import numpy as np
from keras.src.ops import core, nn
from keras.src.ops import numpy as array_ops

from zoo.compress.identities import Flow, NotFollowedError, follows
from zoo.compress.layer_rules import broadcast, joined, new_shape, reshaped


def _named(module, names):
    return [getattr(module, name) for name in names.split() if hasattr(module, name)]


_OF_ONE = [
    *_named(nn, "Relu Relu6 Sigmoid Silu Gelu Elu Selu Celu LeakyRelu Softplus Softsign HardSigmoid HardSilu HardTanh "
                "LogSigmoid Squareplus TanhShrink SoftShrink HardShrink SparsePlus"),
    *_named(array_ops, "Absolute Abs Negative Exp Expm1 Log Log1p Log2 Log10 Sqrt Square Reciprocal Sin Cos Tan Tanh Sinh "
                       "Cosh Arctan Arcsinh Sign Floor Ceil Round Clip Isnan Isfinite Isinf LogicalNot ZerosLike OnesLike"),
    *_named(core, "Cast StopGradient"),
]  # fmt: skip
_OF_SEVERAL = _named(
    array_ops,
    "Add Subtract Multiply Divide TrueDivide Maximum Minimum Power FloorDivide Mod Where Greater GreaterEqual Less "
    "LessEqual Equal NotEqual LogicalAnd LogicalOr LogicalXor Arctan2 SquaredDifference",
)
_REDUCTIONS = _named(array_ops, "Mean Sum Max Min Prod Var Std Any All")


@follows(*_OF_ONE)
def of_one(walk, operation, x, *options, **named):
    if any(isinstance(each, Flow) for each in options):
        raise NotFollowedError(operation.name)
    return x.axes


@follows(*_OF_SEVERAL)
def of_several(walk, operation, *operands):
    return broadcast(walk, [np.empty(()) if x is None else x for x in operands])


@follows(*_REDUCTIONS)
def reduction(walk, operation, x):
    axes = range(x.rank) if operation.axis is None else np.atleast_1d(operation.axis)
    gone = {int(axis) % x.rank for axis in axes}
    walk.fix(*(x.axes[axis] for axis in gone))
    kept = [None if axis in gone else row for axis, row in enumerate(x.axes)]
    return tuple(row for axis, row in enumerate(kept) if axis not in gone or operation.keepdims)


@follows(nn.Softmax, nn.LogSoftmax)
def softmax(walk, operation, x):
    axis = operation.axis % x.rank if isinstance(operation.axis, int) else None
    walk.fix(*(row for place, row in enumerate(x.axes) if axis in (None, place)))
    return tuple(None if axis in (None, place) else row for place, row in enumerate(x.axes))


@follows(nn.AveragePool, nn.MaxPool)
def pool(walk, operation, x):
    walk.fix(*x.axes[1:-1])
    return (*(None,) * (x.rank - 1), x.axes[-1])


@follows(array_ops.Concatenate)
def concatenate(walk, operation, inputs):
    return joined(walk, inputs, operation.axis)


@follows(array_ops.Stack)
def stack(walk, operation, inputs):
    axes = list(broadcast(walk, inputs))
    axes.insert(operation.axis % (len(axes) + 1), None)
    return tuple(axes)


@follows(array_ops.Split)
def split(walk, operation, x):
    axis = operation.axis % x.rank
    row, parts = x.axes[axis], len(walk.shapes)
    if row is None:
        return [x.axes] * parts
    if not isinstance(operation.indices_or_sections, int):
        raise NotFollowedError(operation.name)
    rows = row.reshape(parts, -1)
    for other in rows[1:]:
        walk.unite(rows[0], other)
    return [(*x.axes[:axis], each, *x.axes[axis + 1 :]) for each in rows]


@follows(array_ops.Transpose)
def transpose(walk, operation, x):
    return tuple(x.axes[axis] for axis in operation.axes or reversed(range(x.rank)))


@follows(array_ops.Swapaxes)
def swapaxes(walk, operation, x):
    order = list(range(x.rank))
    one, other = operation.axis1 % x.rank, operation.axis2 % x.rank
    order[one], order[other] = other, one
    return tuple(x.axes[axis] for axis in order)


@follows(array_ops.Moveaxis)
def moveaxis(walk, operation, x):
    order = np.moveaxis(np.empty(range(1, x.rank + 1)), operation.source, operation.destination).shape
    return tuple(x.axes[size - 1] for size in order)


@follows(array_ops.Reshape)
def reshape(walk, operation, x):
    axes = reshaped(walk, x, walk.shapes[0])
    given = tuple(-1 if size is None else size for size in operation.newshape)
    walk.resize(operation, newshape=lambda count: new_shape(count, given, axes))
    return axes


@follows(array_ops.Squeeze)
def squeeze(walk, operation, x):
    if operation.axis is None:
        raise NotFollowedError(operation.name)
    gone = {int(axis) % x.rank for axis in np.atleast_1d(operation.axis)}
    walk.fix(*(x.axes[axis] for axis in gone))
    return tuple(row for axis, row in enumerate(x.axes) if axis not in gone)


@follows(array_ops.ExpandDims)
def expand_dims(walk, operation, x):
    rank = len(walk.shapes[0])
    new = {int(axis) % rank for axis in np.atleast_1d(operation.axis)}
    rows = iter(x.axes)
    return tuple(None if axis in new else next(rows) for axis in range(rank))


@follows(array_ops.GetItem)
def get_item(walk, operation, x, key):
    several = isinstance(key, tuple) or (isinstance(key, list) and any(isinstance(each, slice) for each in key))
    keys = list(key) if several else [key]  # a model read from a file has a list in place of a tuple
    if not all(each is None or each is Ellipsis or isinstance(each, int | slice) for each in keys):
        raise NotFollowedError(operation.name)
    used = sum(each is not None and each is not Ellipsis for each in keys)
    if Ellipsis not in keys:
        keys.append(Ellipsis)
    at = keys.index(Ellipsis)
    keys[at : at + 1] = [slice(None)] * (x.rank - used)
    axes, rows = [], iter(x.axes)
    for each in keys:
        if each is None:
            axes.append(None)
            continue
        row = next(rows)
        if each != slice(None):
            walk.fix(row)
            row = None
        if not isinstance(each, int):
            axes.append(row)
    return tuple(axes)


@follows(array_ops.Matmul)
def matmul(walk, operation, x, y):
    if not (isinstance(x, Flow) and isinstance(y, Flow) and min(x.rank, y.rank) > 1):
        raise NotFollowedError(operation.name)
    if x.axes[-1] is not None or y.axes[-2] is not None:
        walk.unite(x.axes[-1], y.axes[-2])
    batch = broadcast(walk, [Flow(each.shape[:-2], each.axes[:-2]) for each in (x, y)]) if x.rank + y.rank > 4 else ()
    return (*batch, x.axes[-2], y.axes[-1])


@follows(array_ops.Einsum)
def einsum(walk, operation, *operands):
    letters, arrow, outcome = operation.subscripts.replace(" ", "").partition("->")
    terms = letters.split(",")
    if not arrow or "." in letters or any(len(set(term)) < len(term) for term in [*terms, outcome]):
        raise NotFollowedError(operation.name)
    known = {}
    for term, x in zip(terms, operands, strict=True):
        rows = x.axes if isinstance(x, Flow) else (None,) * len(term)
        for letter, row in zip(term, rows, strict=True):
            if letter not in known:
                known[letter] = row
            elif known[letter] is not None or row is not None:
                known[letter] = walk.unite(known[letter], row)
    return tuple(known[letter] for letter in outcome)


@follows(nn.DotProductAttention)
def dot_product_attention(walk, operation, query, key, value, bias=None, mask=None, scale=None, **options):
    if query.shape[2] != key.shape[2]:
        raise NotFollowedError(operation.name)
    for x in (query, key, value):
        walk.fix(*x.axes[:2])
    walk.fix(*(each for each in (bias, mask) if isinstance(each, Flow)))
    heads = broadcast(walk, [Flow(x.shape[2:3], x.axes[2:3]) for x in (query, key, value)])[0]
    sizes = (query.axes[3], key.axes[3])
    if scale is None:  # it is taken from the size of a head, which must then stay
        walk.fix(*sizes)
    elif any(row is not None for row in sizes):
        walk.unite(*sizes)
    return (None, None, heads, value.axes[3])
