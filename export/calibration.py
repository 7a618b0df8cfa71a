"""Ranges that the values inside an ONNX file take on given rows, read in batches with bounded memory.

Minimum, maximum and means are reduced inside the graph, so that a batch hands over a few numbers per tensor. The other
methods read the rows a second time into histograms, in batches small enough for all tensors to stay under 256 MB.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from export import ExportError, files, parity

BINS = 2048
PERCENTILE = 99.99  # share of the values, in percent, that the range of "percentile" covers
_BATCH = 32  # rows per run, at most
_BYTES = 256 * 2**20  # values of one run in the histogram pass
_LEVELS = 256  # of an 8-bit value

Range = tuple[float, float]
View = tuple[tuple[int, ...], tuple[int, ...]]  # shape to give a tensor, and the axes to average over

IMAGES: View = ((0, 0, -1), (0, 2))  # (batch, channels, …)


@dataclass(frozen=True)
class Seen:
    """What a tensor held on the calibration rows.

    Attributes:
        low, high: range to quantize, which holds 0.
        mean: average per channel, (channels,), for tensors asked for; it corrects biases.
    """

    low: float
    high: float
    mean: np.ndarray | None = None


def observe(
    model: onnx.ModelProto,
    tensors: Mapping[str, View | None],
    inputs: parity.Arrays,
    *,
    methods: Sequence[str] = ("minmax",),
) -> dict[str, dict[str, Seen]]:
    """Range of each tensor over the rows by method, and its mean per channel.

    Args:
        model: float graph with its weights.
        tensors: name -> how to see it as a table of channels, or None where no mean is wanted.
        inputs: raw inputs by name, (rows, ...).
        methods: some of "minmax", "entropy", "percentile" and "mse"; see `clip`.

    Raises:
        ExportError: a tensor holds NaN or infinity on these rows; the message names it.
    """
    extremes = _extremes(_session(_reduced(model, tensors)), tensors, inputs)
    for name, seen in extremes.items():
        if not np.isfinite([seen.low, seen.high]).all() or (seen.mean is not None and not np.isfinite(seen.mean).all()):
            raise ExportError(
                f"the calibration rows give NaN or infinity in {name!r}; give rows that the float model can answer"
            )
    found = {"minmax": extremes}
    if set(methods) - {"minmax"}:
        histograms = _histograms(_session(_opened(model, tensors)), extremes, inputs)
        for method in methods:
            found[method] = {
                name: Seen(*clip(histograms[name], (seen.low, seen.high), method), seen.mean)
                for name, seen in extremes.items()
            }
    return {method: found[method] for method in methods}


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Session of a graph that may be too large for one protobuf message."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        del model.graph.initializer[:]
        files.write(model, weights, path)
        return parity.session(path)


def _reduced(model: onnx.ModelProto, tensors: Mapping[str, View | None]) -> onnx.ModelProto:
    """The graph with extremes and means of the tensors as its outputs."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    graph = proto.graph
    del graph.output[:]
    for name, view in tensors.items():
        for op in ("ReduceMin", "ReduceMax", "ReduceMean"):
            graph.node.append(helper.make_node(op, [name], [f"{name}/{op}"], keepdims=0))
            graph.output.append(helper.make_empty_tensor_value_info(f"{name}/{op}"))
        if view is None:
            continue
        table, axes = view
        graph.initializer.append(numpy_helper.from_array(np.array(table, np.int64), f"{name}/table"))
        graph.node.append(helper.make_node("Reshape", [name, f"{name}/table"], [f"{name}/view"]))
        if opset_of(model) >= 18:
            graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), f"{name}/axes"))
            mean = helper.make_node("ReduceMean", [f"{name}/view", f"{name}/axes"], [f"{name}/mean"], keepdims=0)
        else:
            mean = helper.make_node("ReduceMean", [f"{name}/view"], [f"{name}/mean"], keepdims=0, axes=axes)
        graph.node.append(mean)
        graph.output.append(helper.make_empty_tensor_value_info(f"{name}/mean"))
    return proto


def _opened(model: onnx.ModelProto, tensors: Mapping[str, View | None]) -> onnx.ModelProto:
    """The graph with the tensors themselves as its outputs."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    del proto.graph.output[:]
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in tensors)
    return proto


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the standard operator set of a file."""
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _batches(inputs: parity.Arrays, size: int) -> Iterator[parity.Arrays]:
    for start in range(0, len(next(iter(inputs.values()))), size):
        yield {name: parity.wire(values[start : start + size]) for name, values in inputs.items()}


def _extremes(
    live: onnxruntime.InferenceSession, tensors: Mapping[str, View | None], inputs: parity.Arrays
) -> dict[str, Seen]:
    names = [output.name for output in live.get_outputs()]
    lows = dict.fromkeys(tensors, 0.0)  # a range holds 0, which padding and ReLU write
    highs = dict.fromkeys(tensors, 0.0)
    sums: dict[str, np.ndarray] = {}
    rows = 0
    for batch in _batches(inputs, _BATCH):
        found = dict(zip(names, live.run(names, batch), strict=True))
        count = len(next(iter(batch.values())))
        rows += count
        for name in tensors:
            lows[name] = float(np.minimum(lows[name], found[f"{name}/ReduceMin"]))
            highs[name] = float(np.maximum(highs[name], found[f"{name}/ReduceMax"]))
            if np.isnan(found[f"{name}/ReduceMean"]):  # which the extremes may have passed over
                lows[name] = float("nan")
            if tensors[name] is not None:
                sums[name] = sums.get(name, 0.0) + count * found[f"{name}/mean"].astype(np.float64)
    return {name: Seen(lows[name], highs[name], sums[name] / rows if name in sums else None) for name in tensors}


def _histograms(
    live: onnxruntime.InferenceSession, seen: Mapping[str, Seen], inputs: parity.Arrays
) -> dict[str, np.ndarray]:
    """Counts in `BINS` equal bins from low to high; zeros are left out, since 8 bits hold them exactly."""
    names = [output.name for output in live.get_outputs()]
    one = {name: parity.wire(values[:1]) for name, values in inputs.items()}
    size = max(1, min(_BATCH, _BYTES // max(1, sum(value.nbytes for value in live.run(names, one)))))
    counts = {name: np.zeros(BINS, np.int64) for name in seen}
    for batch in _batches(inputs, size):
        for name, values in zip(names, live.run(names, batch), strict=True):
            low, high = seen[name].low, seen[name].high
            if high > low:
                places = ((values[values != 0] - low) * (BINS / (high - low))).astype(np.int64)
                counts[name] += np.bincount(np.clip(places, 0, BINS - 1), minlength=BINS)
    return counts


def clip(counts: np.ndarray, limits: Range, method: str) -> Range:
    """Part of a tensor's range that is worth its 8 bits.

    Args:
        counts: histogram over equal bins of `limits`.
        limits: smallest and largest value, which hold 0 between them.
        method: "percentile" cuts 0.01 % of the values, half at each end (all of it at the upper end where nothing is
            negative); "entropy" takes the range whose 256 levels lose least information (Kullback-Leibler divergence;
            Migacz, "8-bit Inference with TensorRT", 2017); "mse" the one with the smallest mean squared error.

    Raises:
        ValueError: another method.
    """
    low, high = limits
    if method == "minmax" or not counts.sum():
        return limits
    if method == "percentile":
        return _percentile(counts, limits)
    if method not in ("entropy", "mse"):
        raise ValueError(f"method must be 'minmax', 'entropy', 'percentile' or 'mse', got {method!r}")
    width = (high - low) / len(counts)
    centres = low + (np.arange(len(counts)) + 0.5) * width
    best, chosen = np.inf, limits
    for share in np.linspace(0.05, 1, 96)[::-1]:
        # both ends come in together, an end that is nearer to 0 only when the other has reached it
        reach = share * max(-low, high)
        part = (float(max(low, -reach)), float(min(high, reach)))
        loss = (_divergence if method == "entropy" else _squared)(counts, centres, part)
        if loss < best:
            best, chosen = loss, part
    return chosen


def _percentile(counts: np.ndarray, limits: Range) -> Range:
    low, high = limits
    edges = np.linspace(low, high, len(counts) + 1)
    total = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
    outside = 1 - PERCENTILE / 100
    if low == 0:
        return 0.0, float(np.interp(1 - outside, total, edges))
    if high == 0:
        return float(np.interp(outside, total, edges)), 0.0
    return (
        min(0.0, float(np.interp(outside / 2, total, edges))),
        max(0.0, float(np.interp(1 - outside / 2, total, edges))),
    )


def _squared(counts: np.ndarray, centres: np.ndarray, part: Range) -> float:
    """Mean squared error of 256 levels over `part`."""
    step = (part[1] - part[0]) / (_LEVELS - 1)
    rounded = np.clip(np.round(centres / step) * step, *part)
    return float((counts * (centres - rounded) ** 2).sum() / counts.sum())


def _divergence(counts: np.ndarray, centres: np.ndarray, part: Range) -> float:
    """Kullback-Leibler divergence from the values, clipped to `part`, to the same values on 256 levels."""
    inside = (centres >= part[0]) & (centres <= part[1])
    kept = counts[inside].astype(np.float64)
    if len(kept) < _LEVELS:
        return np.inf
    clipped = kept.copy()
    clipped[0] += counts[centres < part[0]].sum()
    clipped[-1] += counts[centres > part[1]].sum()
    level = np.arange(len(kept)) * _LEVELS // len(kept)
    filled = kept > 0
    total = np.bincount(level, kept, _LEVELS)
    share = np.bincount(level, filled, _LEVELS)
    spread = np.where(filled, (total / np.maximum(share, 1))[level], 0.0)
    if not spread.sum():
        return np.inf
    p, q = clipped / clipped.sum(), spread / spread.sum()
    held = p > 0
    # a bin that holds only clipped values has no counterpart: it counts as one value, as in a smoothed histogram
    q = np.maximum(q, 1e-4 / kept.sum())
    return float((p[held] * np.log(p[held] / q[held])).sum())
