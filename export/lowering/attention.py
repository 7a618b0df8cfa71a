"""Scaled dot-product attention, in the nodes that ONNX Runtime fuses.

Attention layers have no functions of their own: their projections and masks are lowered by what they are made of.
"""

import math
from typing import Any

import numpy as np
from keras.src.ops import nn

from export.lowering import lowers
from export.lowering.arguments import need, scalar, together, value, value_of
from export.lowering.graph import Graph, Value

# Keras masks with 0.7 of the largest float, so that a row without any valid key has equal weights.
_AWAY = -0.7 * float(np.finfo(np.float32).max)


@lowers(nn.DotProductAttention)
def _attention(
    graph: Graph, call: Any, query: Any, key: Any, value: Any, bias: Any = None, mask: Any = None, scale: Any = None
) -> str:
    """Values weighted by how well their keys fit: (batch, steps, heads, features) in and out."""
    need(call.attn_logits_soft_cap is None, "a soft cap on scores")
    q, k, v = together(graph, query, key, value, floating=True)
    k, v = (_repeated(graph, one, q) for one in (k, v))
    features = k.shape[3]
    need(scale is not None or features is not None, "heads of a free size")
    factor = 1 / math.sqrt(features or 1) if scale is None else float(scale)
    rows, columns = graph.add("Transpose", q, perm=[0, 2, 1, 3]), graph.add("Transpose", k, perm=[0, 2, 3, 1])
    scores = graph.add("Mul", graph.add("MatMul", rows, columns), scalar(factor))
    if bias is not None:
        scores = graph.add("Add", scores, value_of(graph, bias, q.dtype))
    if call.is_causal:
        scores = graph.add("Add", scores, _kept(graph, causal(graph, q, k)))
    if mask is not None:
        scores = graph.add("Add", scores, _kept(graph, value_of(graph, mask, "bool").name))
        if call.is_causal:  # both masks at once must not add up to minus infinity
            scores = graph.add("Max", scores, scalar(_AWAY))
    weights = graph.add("Softmax", scores, axis=-1)
    made = graph.add("MatMul", weights, graph.add("Transpose", v, perm=[0, 2, 1, 3]))
    return graph.add("Transpose", made, perm=[0, 2, 1, 3])


def _repeated(graph: Graph, x: Value, query: Value) -> Value:
    """Keys or values of fewer heads than the queries have, each used by several of them."""
    own, wanted = x.shape[2], query.shape[2]
    if own is None or wanted is None or own in (1, wanted):
        return x
    order = np.repeat(np.arange(own), wanted // own)
    return value(graph, graph.add("Gather", x, order, axis=2), (*x.shape[:2], wanted, x.shape[3]), x.dtype)


def _kept(graph: Graph, mask: str) -> str:
    """What to add to scores: 0 where a mask holds, far below everything elsewhere."""
    return graph.add("Where", mask, scalar(0), scalar(_AWAY))


def causal(graph: Graph, query: Value, key: Value) -> str:
    """Mask (steps of the query, steps of the key): each step sees itself and what is before it."""
    lines = []
    for given, axis in ((query, 1), (key, 0)):
        steps = given.shape[1]
        if steps is not None:
            lines.append(graph.constant(np.expand_dims(np.arange(steps), axis)))
        else:
            zero, one = np.array(0, np.int64), np.array(1, np.int64)
            line = graph.add("Range", zero, graph.reshape(graph.size(given.name, 1), []), one)
            lines.append(graph.add("Unsqueeze", line, np.array([axis])))
    return graph.add("GreaterOrEqual", *lines)
