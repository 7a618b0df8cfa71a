"""Smaller weights in an ONNX file without calibration: 16-bit floats, or 8- and 4-bit integers.

For transformers above all, whose file and time are mostly constant matrices. Inputs and outputs keep their types, and
each file is compared with its source before it is kept.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export import ExportError, files, parity
from export.edges import AFTER, BEFORE
from export.int8 import Score

MAX_DROP = 0.003
_SMALL = 4096  # values; smaller weights stay as they are
_LARGE = 2**20  # values; a product with more gains from rows that are rounded once for all of them
_HALF = 65504.0  # largest float16
_BLOCK = 64
_BLOCKS = (256, 128, 64, 32, 16)
_CONTRIB = "com.microsoft"
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)  # of a block's range that are tried for its 4-bit scale
# largest change of an answer that is taken for rounding, as a share of the largest answer, where no score is given
TOLERANCES = {16: 0.01, 8: 0.05, 4: 0.5}


_ROWS: dict[str, np.ndarray] = {  # constants of `_Rows`
    "axis": np.array([-1], np.int64),
    "step": np.array(1 / 127, np.float32),
    "zero": np.array(128, np.uint8),
}


class _ChangedError(ExportError):
    """The answers change more than is allowed."""


def to_float16(
    source: str | Path,
    path: str | Path,
    *,
    golden: parity.Arrays | None = None,
    tolerance: float = TOLERANCES[16],
) -> Path:
    """Write a file of half the size: weights in float16, computed in float32.

    Weights are widened once when the file is loaded, so that it runs as fast as its source: processors compute in
    float32, and ONNX Runtime would otherwise cast back and forth around every operation. Weights beyond the range of
    float16 stay in float32.

    Args:
        source: float ONNX file as `export.to_onnx` writes it.
        path: file to write; it appears only when its answers agree, and an older one stays otherwise.
        golden: raw inputs to compare on, by name; drawn at random if None.
        tolerance: largest change of an answer, as a share of the largest answer.

    Returns:
        The path written.

    Raises:
        ExportError: no weights to shorten, or the answers differ by more than the tolerance.
    """
    proto, weights = _read(source)
    widened: list[onnx.NodeProto] = []
    stored: dict[str, np.ndarray] = {}
    for name, array in weights.items():
        if (
            array.dtype != np.float32
            or array.size < 2
            or name.startswith((f"{BEFORE}/", f"{AFTER}/"))
            or not _fits(array)
        ):
            stored[name] = array
            continue
        stored[f"{name}/float16"] = array.astype(np.float16)
        widened.append(helper.make_node("Cast", [f"{name}/float16"], [name], f"{name}/Cast", to=TensorProto.FLOAT))
    if not widened:
        raise ExportError("nothing to shorten: the file has no float32 weights within the range of float16")
    nodes = [*widened, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return _keep(proto, stored, Path(source), Path(path), golden or _drawn(Path(source)), tolerance, None, 0.0)


def _fits(array: np.ndarray) -> bool:
    """Whether float16 holds an array with its usual relative precision."""
    largest = float(np.abs(array).max())
    return np.isfinite(largest) and largest <= _HALF and (largest == 0 or largest >= 1e-4)


def to_low_bit(
    source: str | Path,
    path: str | Path,
    *,
    bits: int = 8,
    block: int | None = None,
    by_row: bool = False,
    golden: parity.Arrays | None = None,
    score: Score | None = None,
    max_drop: float = MAX_DROP,
    tolerance: float | None = None,
) -> Path:
    """Write a file with its matrices in 8- or 4-bit integers, and embedding tables in 8 bits.

    In 8 bits a matrix has one scale per output, and what it is multiplied with is rounded to 8 bits at run time with
    the range it then has (`DynamicQuantizeMatMul`): the fastest form on processors. Where that loses too much, and in 4
    bits, a matrix has a scale and a zero point for every `block` weights (`MatMulNBits`), those of least squared error.

    Args:
        source: float ONNX file as `export.to_onnx` writes it.
        path: file to write; it appears only when its answers agree, and an older one stays otherwise.
        bits: 8 or 4.
        by_row: in 8 bits without blocks, round each row of what is multiplied with the range of its own, so that no row of a
            batch changes another's answer; more exact than `DynamicQuantizeMatMul`. Small matrices, and the last one, which
            a decoder asks for one row of a text, have blocks here, too: up to 256 weights, the fastest where rows are few.
        block: weights that share a scale: 16, 32, 64, 128 or 256; None for what is said above, with blocks of 64.
        golden: raw inputs to compare on, by name; drawn at random if None.
        score: answers on `golden` -> figure, larger is better; it decides instead of `tolerance` where given.
        max_drop: largest loss of that figure, in its own unit.
        tolerance: largest change of an answer, as a share of the largest answer; by bits if None.

    Returns:
        The path written.

    Raises:
        ExportError: no matrix that is large enough, or the answers change too much.
        ValueError: `bits` or `block` is none of the above, or a score without rows.
    """
    if bits not in (8, 4):
        raise ValueError(f"bits must be 8 or 4, got {bits!r}")
    if block is not None and block not in _BLOCKS:
        raise ValueError(f"block must be 16, 32, 64, 128 or 256, got {block!r}")
    if score is not None and golden is None:
        raise ValueError("a score needs the rows it is taken on; give golden=")
    rows = golden or _drawn(Path(source))
    allowed = TOLERANCES[bits] if tolerance is None else tolerance

    def write(form: int | None) -> Path:
        proto, stored = _shortened(source, bits, form, by_row)
        return _keep(proto, stored, Path(source), Path(path), rows, allowed, score, max_drop)

    if block is None and bits == 8:
        with contextlib.suppress(_ChangedError):
            return write(None)
    return write(block or _BLOCK)


def _shortened(
    source: str | Path, bits: int, block: int | None, by_row: bool = False
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A file's graph with integer weights, and its weights apart."""
    proto, weights = _read(source)
    stored = dict(weights)
    nodes: list[onnx.NodeProto] = []
    changed = 0
    opset = next((entry.version for entry in proto.opset_import if not entry.domain), 18)
    products = [node.output[0] for node in proto.graph.node if _kernel(node, weights) is not None]
    rounded = _Rows(opset < 18, products[-1]) if by_row and products else None
    for node in proto.graph.node:
        made = _matrix(node, weights, stored, bits, block, rounded) or _table(node, weights, stored)
        changed += made is not None
        nodes += made or [node]
    if not changed:
        raise ExportError(f"nothing to shorten: the file has no constant matrix of {_SMALL} weights or more")
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    if not any(entry.domain == _CONTRIB for entry in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
    subgraphs = any(attribute.type == onnx.AttributeProto.GRAPH for node in nodes for attribute in node.attribute)
    read = {name for node in nodes for name in node.input}
    return proto, {name: array for name, array in stored.items() if subgraphs or name in read}


def _read(source: str | Path) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    proto = onnx.load(str(source))
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    del proto.graph.initializer[:]
    return proto, weights


def _matrix(
    node: onnx.NodeProto,
    weights: dict[str, np.ndarray],
    stored: dict[str, np.ndarray],
    bits: int,
    block: int | None,
    rounded: "_Rows | None" = None,
) -> list[onnx.NodeProto] | None:
    """A product with a large constant matrix, with integer weights; None if it is none."""
    kernel = _kernel(node, weights)
    if kernel is None:
        return None
    turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    rows = np.ascontiguousarray(kernel if turned else kernel.T)  # (outputs, inputs)
    if block is None and rounded is not None and rounded.few(node, kernel):
        block = next((size for size in _BLOCKS if -rows.shape[1] % size <= rows.shape[1] / 8), _BLOCKS[-1])
    biased = len(node.input) > 2 and bool(node.input[2])
    result = f"{node.output[0]}/product" if biased else node.output[0]
    # one array may be read in several forms, as where an embedding's table also gives the logits
    base = f"{node.input[1]}/{'outputs_first/' if turned else ''}{bits}bit{f'_{block}' if block else ''}"
    names = [f"{base}/values", f"{base}/scales"]
    if block is None:
        scale = _row_scales(rows)
        stored |= dict(zip(names, (np.round(rows / scale).astype(np.int8).T, scale[:, 0]), strict=True))
        if rounded is not None:
            made = [*rounded.nodes(node.input[0], stored), *_of_rows(node, names, result)]
            return made if not biased else [*made, _biased(node, result)]
        product = helper.make_node(
            "DynamicQuantizeMatMul", [node.input[0], *names], [result], node.name, domain=_CONTRIB
        )
    else:
        names.append(f"{base}/zero_points")
        stored |= dict(zip(names, pack(rows, bits, block), strict=True))
        sizes = dict(K=rows.shape[1], N=rows.shape[0], bits=bits, block_size=block)
        # 4: products in 8-bit integers, the fastest
        product = helper.make_node(
            "MatMulNBits", [node.input[0], *names], [result], node.name, domain=_CONTRIB, accuracy_level=4, **sizes
        )
    return [product, _biased(node, result)] if biased else [product]


def _kernel(node: onnx.NodeProto, weights: dict[str, np.ndarray]) -> np.ndarray | None:
    """The large constant matrix of a product, as it is stored; None if there is none."""
    if node.op_type not in ("MatMul", "Gemm") or node.domain or len(node.input) < 2:
        return None
    kernel = weights.get(node.input[1])
    if kernel is None or kernel.ndim != 2 or kernel.dtype != np.float32 or kernel.size < _SMALL:
        return None
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    plain = not given.get("transA") and given.get("alpha", 1.0) == 1 and given.get("beta", 1.0) == 1
    return kernel if plain else None


def _biased(node: onnx.NodeProto, product: str) -> onnx.NodeProto:
    return helper.make_node("Add", [product, node.input[2]], [node.output[0]], f"{node.name}/bias")


class _Rows:
    """Tensors that are rounded by row, each once however many matrices it is multiplied with."""

    def __init__(self, attribute: bool, last: str) -> None:
        self._attribute = attribute  # whether axes are one, as before version 18 of the operator set
        self._last = last  # product of the file
        self._done: set[str] = set()

    def few(self, node: onnx.NodeProto, kernel: np.ndarray) -> bool:
        """Whether a product is better left to blocks: it has few rows, or its rounding would take as long as itself."""
        return kernel.size <= _LARGE or node.output[0] == self._last

    def nodes(self, name: str, stored: dict[str, np.ndarray]) -> list[onnx.NodeProto]:
        """Nodes that give a tensor in unsigned 8 bits around 128, and the peak of each of its rows; none the second time.

        A row of zeros is divided by its peak, 0, and what comes of it multiplied by that again.
        """
        if name in self._done:
            return []
        self._done.add(name)
        stored |= {f"rows/{key}": values for key, values in _ROWS.items()}
        own = f"{name}/rows"
        axes: dict[str, Any] = {"axes": [-1]} if self._attribute else {}
        largest = [f"{own}/size", *([] if self._attribute else ["rows/axis"])]
        return [
            helper.make_node("Abs", [name], [f"{own}/size"], f"{own}/Abs"),
            helper.make_node("ReduceMax", largest, [f"{own}/peak"], f"{own}/ReduceMax", **axes),
            helper.make_node("Div", [name, f"{own}/peak"], [f"{own}/share"], f"{own}/Div"),
            helper.make_node(
                "QuantizeLinear", [f"{own}/share", "rows/step", "rows/zero"], [f"{own}/values"], f"{own}/values"
            ),
        ]


def _of_rows(node: onnx.NodeProto, names: list[str], result: str) -> list[onnx.NodeProto]:
    """The product of a rounded tensor and a rounded matrix: the matrix' steps inside, the rows' peaks behind."""
    own, product = f"{node.input[0]}/rows", f"{node.output[0]}/columns"
    inputs = [f"{own}/values", names[0], "rows/step", names[1], "rows/zero"]
    return [
        helper.make_node("MatMulIntegerToFloat", inputs, [product], node.name, domain=_CONTRIB),
        helper.make_node("Mul", [product, f"{own}/peak"], [result], f"{node.name}/rows"),
    ]


def _row_scales(rows: np.ndarray) -> np.ndarray:
    """Steps of 127 levels on each side of 0, (rows, 1); 1 for rows of zeros."""
    scale = np.abs(rows).max(axis=1, keepdims=True) / 127
    return np.where(scale > np.finfo(np.float32).tiny, scale, 1).astype(np.float32)


def pack(rows: np.ndarray, bits: int, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights as `MatMulNBits` reads them.

    Args:
        rows: float weights, (outputs, inputs).
        bits: 8 or 4.
        block: neighbouring inputs that share a scale.

    Returns:
        Values (outputs, blocks, block * bits / 8) uint8, two 4-bit values to a byte with the first one low; scales
        (outputs * blocks) float32; zero points uint8, packed by output like the values.
    """
    outputs, inputs = rows.shape
    blocks = -(-inputs // block)
    padded = np.zeros((outputs, blocks * block), np.float32)
    padded[:, :inputs] = rows
    grouped = padded.reshape(outputs, blocks, block)
    values, scales, zeros = _rounded(grouped, bits)
    if bits == 4:
        if blocks % 2:
            zeros = np.concatenate([zeros, np.zeros((outputs, 1), np.uint8)], axis=1)
        values = values[..., ::2] | values[..., 1::2] << 4
        zeros = zeros[:, ::2] | zeros[:, 1::2] << 4
    return values, scales.reshape(-1), zeros.reshape(-1)


def _rounded(grouped: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks (outputs, blocks, block) in unsigned integers, with scales and zero points (outputs, blocks)."""
    top = 2**bits - 1
    low = np.minimum(grouped.min(axis=2), 0)
    high = np.maximum(grouped.max(axis=2), 0)
    best = np.full(low.shape, np.inf, np.float32)
    values = np.zeros(grouped.shape, np.uint8)
    scales = np.ones(low.shape, np.float32)
    zeros = np.zeros(low.shape, np.uint8)
    for share in _SHARES if bits == 4 else _SHARES[:1]:
        scale = ((high - low) * (share / top)).astype(np.float32)
        scale = np.where(scale > np.finfo(np.float32).tiny, scale, np.float32(1))
        zero = np.clip(np.round(-low * share / scale), 0, top)
        found = np.clip(np.round(grouped / scale[..., None]) + zero[..., None], 0, top)
        loss = np.square((found - zero[..., None]) * scale[..., None] - grouped).sum(axis=2)
        better = loss < best
        best = np.where(better, loss, best)
        values[better] = found[better].astype(np.uint8)
        scales[better] = scale[better]
        zeros[better] = zero[better].astype(np.uint8)
    return values, scales, zeros


def _table(
    node: onnx.NodeProto, weights: dict[str, np.ndarray], stored: dict[str, np.ndarray]
) -> list[onnx.NodeProto] | None:
    """An embedding, with its rows in 8 bits and a scale for each row; None if it is none."""
    if node.op_type != "Gather" or node.domain:
        return None
    table = weights.get(node.input[0])
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    if table is None or table.ndim != 2 or table.dtype != np.float32 or table.size < _SMALL or axis != 0:
        return None
    scale = _row_scales(table)
    base = f"{node.input[0]}/table_8bit"
    stored[f"{base}/values"] = np.round(table / scale).astype(np.int8)
    stored[f"{base}/scales"] = scale
    ids = node.input[1]
    return [
        helper.make_node("Gather", [f"{base}/values", ids], [f"{node.name}/rows"], node.name),
        helper.make_node(
            "Cast", [f"{node.name}/rows"], [f"{node.name}/float"], f"{node.name}/Cast", to=TensorProto.FLOAT
        ),
        helper.make_node("Gather", [f"{base}/scales", ids], [f"{node.name}/scales"], f"{node.name}/scales"),
        helper.make_node("Mul", [f"{node.name}/float", f"{node.name}/scales"], [node.output[0]], f"{node.name}/Mul"),
    ]


def _keep(
    proto: onnx.ModelProto,
    weights: dict[str, np.ndarray],
    source: Path,
    path: Path,
    rows: parity.Arrays,
    tolerance: float,
    score: Score | None,
    max_drop: float,
) -> Path:
    """Write a file beside its place, and move it there if its answers are good enough."""
    truth = parity.run(parity.session(source), rows)
    with files.draft(path) as draft:
        files.write(proto, weights, draft)
        found = parity.run(parity.session(draft), rows)
        if score is not None:
            before, after = score(truth), score(found)
            if not before - after <= max_drop:
                raise _ChangedError(f"the score falls from {before:.4f} to {after:.4f}, allowed is {max_drop}")
        else:
            _compare(found, truth, tolerance)
    return path


def _compare(found: parity.Arrays, truth: parity.Arrays, tolerance: float) -> None:
    for name, expected in truth.items():
        if expected.dtype.kind != "f":
            continue
        gap = float(np.abs(found[name].astype(np.float64) - expected).max(initial=0))
        allowed = tolerance * max(float(np.abs(expected).max(initial=0)), 1e-6)
        if not gap <= allowed:
            raise _ChangedError(
                f"answers {name!r} change by {gap:.3g}, allowed is {allowed:.3g}; give a score to decide by, more bits, "
                "or smaller blocks"
            )


def _drawn(source: Path, rows: int = 4) -> parity.Arrays:
    """Random inputs of a file by name, (rows, ...)."""
    random = np.random.default_rng(0)
    kinds: dict[str, Callable[[tuple[int, ...]], np.ndarray]] = {
        "tensor(float)": lambda shape: random.standard_normal(shape).astype(np.float32),
        "tensor(uint8)": lambda shape: random.integers(0, 256, shape, dtype=np.uint8),
        "tensor(int32)": lambda shape: random.integers(0, 2, shape, dtype=np.int32),
        "tensor(int64)": lambda shape: random.integers(0, 2, shape, dtype=np.int64),
        "tensor(bool)": lambda shape: random.integers(0, 2, shape).astype(bool),
        "tensor(string)": lambda shape: np.full(shape, "", dtype="U1"),
    }
    drawn = {}
    for port in parity.session(source).get_inputs():
        if port.type not in kinds:
            raise ExportError(f"input {port.name!r} is {port.type}, which cannot be drawn at random; give golden=")
        drawn[port.name] = kinds[port.type]((rows, *(s if isinstance(s, int) else 8 for s in port.shape[1:])))
    return drawn
