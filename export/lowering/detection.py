"""The layers of detectors that ONNX has nodes for."""

from typing import Any

import numpy as np

from export.lowering import lowers
from export.lowering.arguments import need, scalar, value
from export.lowering.graph import Graph, Value
from export.lowering.walk import lower_function
from zoo.layers.detection import NonMaxSuppression, RoIAlign
from zoo.layers.regions import PyramidAlign

_ROI_ALIGN = range(16, 22)  # opsets whose node ONNX Runtime runs; that of opset 22 it has no code for


@lowers(NonMaxSuppression)
def _non_max_suppression(graph: Graph, layer: NonMaxSuppression, boxes: Value, scores: Value) -> Any:
    """One node says which boxes stay; ranking them is lowered as the layer has it."""
    best, wins = lower_function(graph, layer.best_anchors, boxes, scores)
    by_class = graph.add("Transpose", wins, perm=[0, 2, 1])
    chosen = graph.add(
        "NonMaxSuppression", best, by_class, np.array([layer.count], np.int64), scalar(layer.overlap),
        scalar(layer.score),
    )  # fmt: skip
    none = graph.add("Expand", np.array(False), graph.add("Shape", by_class))
    rows = graph.add("Slice", graph.add("Shape", chosen), np.array([0]), np.array([1]))
    stays = graph.add("ScatterND", none, chosen, graph.add("Expand", np.array(True), rows))
    kept = value(graph, stays, (wins.shape[0], wins.shape[2], wins.shape[1]), "bool")
    return lower_function(graph, layer.ranked, best, wins, kept)


@lowers(RoIAlign)
def _roi_align(graph: Graph, layer: RoIAlign, features: Value, boxes: Value) -> str:
    need(graph.opset in _ROI_ALIGN, "cutting out features under boxes in one node needs opset 16 to 21")
    count = boxes.shape[1] if boxes.shape[1] is not None else graph.size(boxes.name, 1)
    batch = graph.size(boxes.name, 0)
    zero, one = np.array(0, np.int64), np.array(1, np.int64)
    rows = graph.add("Range", zero, graph.reshape(batch, []), one)
    wide = graph.add("Expand", graph.add("Unsqueeze", rows, np.array([1])), graph.shape([1, count]))
    made = graph.add(
        "RoiAlign", features.first, graph.reshape(boxes, [None, 4]), graph.reshape(wide, [None]),
        coordinate_transformation_mode="half_pixel", mode="avg", output_height=layer.size, output_width=layer.size,
        sampling_ratio=layer.samples, spatial_scale=float(layer.scale),
    )  # fmt: skip
    made = graph.add("Transpose", made, perm=[0, 2, 3, 1])
    return graph.reshape(made, [batch, count, layer.size, layer.size, features.shape[-1]])


@lowers(PyramidAlign)
def _pyramid_align(graph: Graph, layer: PyramidAlign, features: list[Value], boxes: Value) -> str:
    """Each map cuts out the boxes that belong to it, and no others; then they are put back in order."""
    need(graph.opset in _ROI_ALIGN, "cutting out features under boxes in one node needs opset 16 to 21")
    levels = graph.reshape(lower_function(graph, layer.levels, boxes), [None])
    batch, flat = graph.size(boxes.name, 0), graph.reshape(boxes, [None, 4])
    rows = graph.add("Range", np.array(0, np.int64), graph.reshape(batch, []), np.array(1, np.int64))
    images = graph.reshape(
        graph.add("Expand", graph.add("Unsqueeze", rows, np.array([1])), graph.shape([1, boxes.shape[1] or 1])), [None]
    )
    cut, places = [], []
    for level, (x, scale) in enumerate(zip(features, layer.scales, strict=True)):
        own = graph.add("NonZero", graph.add("Equal", levels, np.array(level, np.int32)))
        place = graph.reshape(own, [None])
        cut.append(graph.add(
            "RoiAlign", x.first, graph.add("Gather", flat, place, axis=0), graph.add("Gather", images, place, axis=0),
            coordinate_transformation_mode="output_half_pixel", mode="avg", output_height=layer.size,
            output_width=layer.size, sampling_ratio=layer.samples, spatial_scale=float(scale),
        ))  # fmt: skip
        places.append(place)
    order = graph.add("Concat", *places, axis=0)
    count = graph.reshape(graph.add("Shape", order), [])
    back = graph.add("Range", np.array(0, np.int64), count, np.array(1, np.int64))
    back = graph.add("ScatterElements", order, order, back, axis=0)
    made = graph.add("Gather", graph.add("Concat", *cut, axis=0), back, axis=0)
    made = graph.add("Transpose", made, perm=[0, 2, 3, 1])
    return graph.reshape(made, [batch, boxes.shape[1], layer.size, layer.size, features[0].shape[-1]])
