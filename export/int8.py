"""FP32 ONNX to static INT8: unsigned activations, signed per-channel weights, kept only if the score holds.

The preprocessing and everything from the output head on stay in float (a softmax in 8 bits sets the error of the
whole model). If the score still falls too far, the layers that disturb the logits most are left in float.
"""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from export import ExportError, parity
from export.convert import layer_of
from export.edges import AFTER, BEFORE

MAX_DROP = 0.005
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_BATCH = 32  # calibration rows per run

Score = Callable[[parity.Arrays], float]


class RefusedError(ExportError):
    """No INT8 file was written; the message has the reason with its figures."""


@dataclass(frozen=True)
class Quantized:
    """What became of an INT8 conversion.

    Attributes:
        kept_float: Keras layers left in float beyond the output head, most harmful first.
        before, after: score in float and in INT8 on the rows of the gate.
    """

    kept_float: tuple[str, ...]
    before: float
    after: float


class _Rows:
    """Calibration rows in batches, as ONNX Runtime asks for them."""

    def __init__(self, inputs: parity.Arrays) -> None:
        rows = len(next(iter(inputs.values())))
        self.batches = iter(
            {name: parity.wire(values[start : start + _BATCH]) for name, values in inputs.items()}
            for start in range(0, rows, _BATCH)
        )

    def get_next(self) -> parity.Arrays | None:
        return next(self.batches, None)


def quantize(
    source: str | Path,
    path: str | Path,
    *,
    calibration: parity.Arrays,
    validation: parity.Arrays,
    score: Score,
    max_drop: float = MAX_DROP,
) -> Quantized:
    """Write the INT8 form of a float ONNX file, if it may lose at most `max_drop` of its score.

    Args:
        source: float ONNX file as `export.to_onnx` writes it.
        path: INT8 file to write.
        calibration: raw inputs of training rows, from which the activation ranges are taken.
        validation: raw inputs of rows that decide whether the file is good enough.
        score: answers on the validation rows -> figure, larger is better.
        max_drop: largest loss of that figure, in its own unit.

    Raises:
        RefusedError: nothing to quantize, or the score falls further than allowed with any choice of layers.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(str(prepared)).graph
        layers, tail = _layers(graph)
        edges = [node.name for node in graph.node if node.name.startswith((f"{BEFORE}/", f"{AFTER}/"))]
        before = score(parity.run(parity.session(source), validation))

        def attempt(kept: tuple[str, ...], only: str = "") -> float:
            """Write `path` with these layers in float, or with one layer alone in INT8; its score."""
            wanted = layers[only] if only else None
            left = [node for layer in kept for node in layers[layer]]
            left += [n.name for n in graph.node if n.name.partition("/")[0] in kept]
            _quantize(prepared, path, calibration, [*edges, *tail, *left], wanted)
            return 0.0 if only else score(parity.run(parity.session(path), validation))

        tried: dict[tuple[str, ...], float] = {(): attempt(())}
        if not before - tried[()] <= max_drop:
            truth = _logits(prepared, validation)
            harm = {}
            for layer in layers:
                attempt((), only=layer)
                harm[layer] = float(np.abs(_logits(path, validation) - truth).mean())
            order = sorted(harm, key=lambda layer: -harm[layer])
            count = 1
            while count < len(order) and not before - tried[next(reversed(tried))] <= max_drop:
                tried[tuple(order[:count])] = attempt(tuple(order[:count]))
                count *= 2
    kept, after = next(reversed(tried.items()))
    if not before - after <= max_drop:  # also when the score is not a number
        Path(path).unlink(missing_ok=True)
        figures = "; ".join(
            f"{value:.4f} with {', '.join(key) or 'no layer'} left in float" for key, value in tried.items()
        )
        raise RefusedError(f"the score falls from {before:.4f} by more than {max_drop}: {figures}")
    return Quantized(kept, before, after)


def _layers(graph: onnx.GraphProto) -> tuple[dict[str, list[str]], list[str]]:
    """Nodes with weights by Keras layer, the output head left out, and the names of the nodes from the head on."""
    initializers = {tensor.name for tensor in graph.initializer}
    weighted = [n for n in graph.node if n.op_type in _WEIGHTED and any(name in initializers for name in n.input)]
    if len(weighted) < 2:
        layer = layer_of(weighted[0], initializers) if weighted else ""
        reason = (
            f"its only layer with weights, {layer!r}, is the output head"
            if weighted
            else "it has no convolution and no dense layer"
        )
        raise RefusedError(f"nothing to quantize: {reason}, and the head stays in float")
    head = weighted[-1]
    reached = set(head.output)
    tail = [head.name]
    for node in graph.node:
        if reached & set(node.input):
            reached |= set(node.output)
            tail.append(node.name)
    layers: dict[str, list[str]] = {}
    for node in weighted[:-1]:
        layers.setdefault(layer_of(node, initializers) or node.name, []).append(node.name)
    return layers, tail


def _quantize(
    source: Path, path: str | Path, calibration: parity.Arrays, exclude: list[str], only: list[str] | None
) -> None:
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # ONNX Runtime advises at every call to do what was done above
    try:
        quantize_static(
            str(source),
            str(path),
            _Rows(calibration),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=exclude,
            nodes_to_quantize=only,
        )
    finally:
        root.setLevel(level)


def _logits(path: str | Path, inputs: parity.Arrays) -> np.ndarray:
    """Logits that a file computes before its decoding, (batch, outputs)."""
    proto = onnx.load(str(path))
    proto.graph.output.append(onnx.helper.make_empty_tensor_value_info("logits"))
    return parity.run(parity.session(proto.SerializeToString()), inputs)["logits"]
