"""Preprocessing layers that learn from data: normalisation, bins, categories."""

from typing import Any

import keras
import numpy as np
from keras import layers

from export.lowering import lowers
from export.lowering.arguments import need, typed, value, value_of
from export.lowering.arrays import one_hot
from export.lowering.graph import Graph, Value
from export.lowering.operations import bucket, multiply, reduced


@lowers(layers.Normalization)
def _normalization(graph: Graph, layer: Any, inputs: Value) -> Value:
    x = typed(graph, inputs, "float32")
    mean = np.asarray(keras.ops.convert_to_numpy(layer.mean), np.float32)
    deviation = np.sqrt(np.asarray(keras.ops.convert_to_numpy(layer.variance), np.float32))
    deviation = np.maximum(deviation, np.float32(keras.config.epsilon()))
    if layer.invert:
        name = graph.add("Add", graph.add("Mul", x, deviation), mean)
    else:
        name = graph.add("Div", graph.add("Sub", x, mean), deviation)
    return value(graph, name, x.shape, x.dtype)


def _encoded(graph: Graph, x: Value, mode: str, depth: int, dtype: str, weights: Any = None) -> Value:
    """Whole numbers as they are, or as ones at their places, or as counts of each."""
    if mode == "int":
        return typed(graph, x, dtype)
    if mode == "one_hot":
        if x.rank > 1 and x.shape[-1] == 1:
            x = value(graph, graph.add("Squeeze", x, np.array([x.rank - 1])), x.shape[:-1], x.dtype)
        return one_hot(graph, x, depth, -1, dtype)
    ones = one_hot(graph, x, depth, -1, "float32")
    if weights is not None:
        weight = value_of(graph, weights, "float32")
        wide = graph.add("Unsqueeze", weight, np.array([weight.rank]))
        ones = multiply(graph, ones, value(graph, wide, (*weight.shape, 1), "float32"))
    operation = "ReduceMax" if mode == "multi_hot" else "ReduceSum"
    return typed(graph, reduced(graph, operation, ones, 1 if x.rank > 1 else 0), dtype)


@lowers(layers.Discretization)
def _discretization(graph: Graph, layer: Any, inputs: Value) -> Value:
    need(not layer.sparse, "a sparse tensor")
    x = typed(graph, inputs, "float32")
    borders = np.asarray(layer.bin_boundaries, np.float32)
    places = value(graph, bucket(graph, x, value_of(graph, borders), "GreaterOrEqual"), x.shape, "int32")
    return _encoded(graph, places, layer.output_mode, len(borders) + 1, layer.output_dtype)


@lowers(layers.CategoryEncoding)
def _category_encoding(graph: Graph, layer: Any, inputs: Value, count_weights: Any = None) -> Value:
    need(not layer.sparse, "a sparse tensor")
    return _encoded(
        graph, typed(graph, inputs, "int32"), layer.output_mode, layer.num_tokens, layer.compute_dtype, count_weights
    )
