"""FP32 ONNX to static INT8, kept only if the score holds; the layers that hurt most are left in float.

Ranges come from calibration rows or from quantization-aware training. Where the score falls too far with every layer in
8 bits, each layer is tried alone in 8 bits and ranked by how far the logits move, and the least set of layers that
holds the score is left in float.
"""

import difflib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from export import ExportError, files, parity
from export.calibration import Range, Seen, observe
from export.qdq import Network

MAX_DROP = 0.003
METHODS = ("minmax", "mse", "entropy", "percentile")  # of calibration, in the order that "auto" tries them
_RANKED = 64  # rows on which single layers are ranked

Score = Callable[[parity.Arrays], float]


class RefusedError(ExportError):
    """No INT8 file was written; the message has the reason with its figures."""


@dataclass(frozen=True)
class LayerHarm:
    """What one layer alone in 8 bits does to the answers.

    Attributes:
        layer: Keras layer.
        harm: mean absolute change of the logits, as a share of their standard deviation.
        kept: whether the file has it in float.
    """

    layer: str
    harm: float
    kept: bool


@dataclass(frozen=True)
class Quantized:
    """What became of an INT8 conversion.

    Attributes:
        kept_float: Keras layers left in float, most harmful first.
        before, after: score in float and in INT8 on the rows of the gate.
        method: how the ranges were taken; "given" if none were calibrated.
        layers: number of Keras layers with weights that could be in 8 bits.
        harms: every layer's harm alone, most harmful first; empty where all layers passed at once.
    """

    kept_float: tuple[str, ...]
    before: float
    after: float
    method: str = "minmax"
    layers: int = 0
    harms: tuple[LayerHarm, ...] = ()

    def __str__(self) -> str:
        """The decision as a table."""
        head = (
            f"{self.layers - len(self.kept_float)} of {self.layers} layers in 8 bits ({self.method}), "
            f"score {self.before:.4f} -> {self.after:.4f}"
        )
        width = max((len(each.layer) for each in self.harms), default=0)
        rows = [f"  {each.layer:<{width}}  {each.harm:.4f}  {'float' if each.kept else 'int8'}" for each in self.harms]
        return "\n".join([head, *rows])


def quantize(
    source: str | Path,
    path: str | Path,
    *,
    calibration: parity.Arrays | None,
    validation: parity.Arrays,
    score: Score,
    max_drop: float = MAX_DROP,
    method: str = "auto",
    ranges: Mapping[str, Range] | None = None,
    keep_float: Iterable[str] = (),
) -> Quantized:
    """Write the INT8 form of a float ONNX file, if it may lose at most `max_drop` of its score.

    Args:
        source: float ONNX file as `export.to_onnx` writes it.
        path: INT8 file to write; it appears only when it is good enough, and an older one stays otherwise.
        calibration: raw inputs of training rows, from which the activation ranges are taken, (rows, ...) by name. None
            if `ranges` has every one.
        validation: raw inputs of rows that decide whether the file is good enough.
        score: answers on the validation rows -> figure, larger is better.
        max_drop: largest loss of that figure, in its own unit.
        method: of calibration: "minmax", "mse", "entropy" or "percentile", see `export.calibration.clip`; or "auto",
            the first of these with which every layer can be in 8 bits, or else the one that moves the logits least.
        ranges: (lowest, highest) value by Keras layer whose output is rounded (the activation behind a convolution), or
            by tensor name, as from quantization-aware training; they take the place of calibration there.
        keep_float: Keras layers to leave in float in any case.

    Returns:
        What is in the file, and how harmful each layer is where that was looked into.

    Raises:
        RefusedError: nothing to quantize, or the score falls further than allowed with any choice of layers.
        ExportError: no calibration rows, rows of another shape or type or that are all alike, or NaN inside the model.
        ValueError: unknown method, `ranges` or `keep_float` name no layer of the model, or `keep_float` all of them.
    """
    if method not in ("auto", *METHODS):
        raise ValueError(f"method must be one of auto, {', '.join(METHODS)}, got {method!r}")
    parity.check_numbers(max_drop=max_drop)
    model = onnx.load(str(source))
    network = Network(model)
    if not network.layers:
        raise RefusedError("nothing to quantize: it has no convolution and no dense layer that could run in 8 bits")
    if isinstance(keep_float, str):
        raise ValueError(f"keep_float must hold names of layers, got {keep_float!r}; give [{keep_float!r}]")
    forced = _known(tuple(dict.fromkeys(keep_float)), network.layers, "keep_float")
    if len(forced) == len(network.layers):
        raise ValueError(f"keep_float names all {len(forced)} layers that can be in 8 bits; leave one out")
    live = parity.session(source)
    for name, rows in {"calibration": calibration, "validation": validation}.items():
        if rows is not None:
            _check_rows(live, rows, name)
    before = score(parity.run(live, validation))
    if not np.isfinite(before):
        raise RefusedError(
            f"the score of the float model on the validation rows is {before}, which says nothing of 8 bits; "
            "give rows that it can answer"
        )
    given = _given(model, network, ranges or {})
    with files.draft(path) as draft:
        trials = []
        for name, seen in _ranges(model, network, calibration, method, given):
            trials.append(_Trial(name, network, seen, validation, score, draft))
            if before - trials[-1].score(forced) <= max_drop:  # False for NaN
                break
        else:
            trials = [min(trials, key=lambda each: each.change(forced))] if len(trials) > 1 else trials
        trial = trials[-1]
        kept, harms = _search(trial, forced, before, max_drop)
        after = trial.score(kept)
    return Quantized(kept, before, after, trial.method, len(network.layers), _table(harms, kept))


class _Trial:
    """Files of one network with different layers in float; the weights are rounded once."""

    def __init__(
        self,
        method: str,
        network: Network,
        seen: dict[str, Seen],
        validation: parity.Arrays,
        score: Score,
        path: Path,
    ) -> None:
        self.method, self.network, self.seen, self.path = method, network, seen, path
        self.integers = network.integers(seen)
        self.validation, self._score = validation, score
        self.scores: dict[frozenset[str], float] = {}
        self.order = list(network.layers)
        self.truth: np.ndarray | None = None

    def write(self, kept: Collection[str], logits: bool = False) -> onnxruntime.InferenceSession:
        """Write the file with these layers in float; its session, with the logits as an output on demand."""
        proto, weights = self.network.write(self.network.place(kept), self.integers, self.seen)
        if logits:
            _open_logits(proto)
        files.write(proto, weights, self.path)
        return parity.session(self.path)

    def score(self, kept: Collection[str]) -> float:
        """Score with these layers in float, from the file that it leaves behind."""
        live = self.write(kept)
        key = frozenset(kept)
        if key not in self.scores:
            self.scores[key] = self._score(parity.run(live, self.validation))
        return self.scores[key]

    def change(self, kept: Collection[str]) -> float:
        """Mean absolute change of the logits with these layers in float, over their standard deviation."""
        rows = {name: values[:_RANKED] for name, values in self.validation.items()}
        if self.truth is None:
            self.truth = _logits(self.write(self.order, logits=True), rows)
        found = _logits(self.write(kept, logits=True), rows)
        change = float(np.abs(found - self.truth).mean()) / max(float(self.truth.std()), 1e-12)
        return change if np.isfinite(change) else float("inf")


def _search(
    trial: _Trial,
    forced: tuple[str, ...],
    before: float,
    max_drop: float,
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Layers to leave in float, most harmful first, and the harm of every layer if it was looked into."""

    def passes(kept: Collection[str]) -> bool:
        return before - trial.score(kept) <= max_drop  # False for NaN

    if passes(forced):
        return forced, {}
    if max_drop < 0:
        raise _refusal(trial, before, max_drop)
    harms = _harms(trial)
    ranked = [*forced, *sorted(set(trial.order) - set(forced), key=lambda layer: (-harms[layer], layer))]
    # fewest of the most harmful layers that pass; everything in float is no INT8 file
    few, many = len(forced), len(ranked) - 1
    if not passes(ranked[:many]):
        raise _refusal(trial, before, max_drop)
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if passes(ranked[:middle]) else (middle, many)
    kept = ranked[:many]
    for layer in reversed(kept[len(forced) : -1]):  # the last one is needed, the others may not be
        fewer = [each for each in kept if each != layer]
        if passes(fewer):
            kept = fewer
    return tuple(kept), harms


def _refusal(trial: _Trial, before: float, max_drop: float) -> RefusedError:
    tried = sorted(trial.scores.items(), key=lambda item: len(item[0]))
    figures = "; ".join(
        f"{value:.4f} with {', '.join(layer for layer in trial.order if layer in kept) or 'no layer'} left in float"
        if len(kept) <= 8
        else f"{value:.4f} with {len(kept)} of {len(trial.order)} layers left in float"
        for kept, value in tried
    )
    return RefusedError(f"the score falls from {before:.4f} by more than {max_drop}: {figures}")


def _harms(trial: _Trial) -> dict[str, float]:
    """Mean absolute change of the logits, over their deviation, with each layer alone in 8 bits."""
    return {layer: trial.change(set(trial.order) - {layer}) for layer in trial.order}


def _open_logits(proto: onnx.ModelProto) -> None:
    """Make `logits` an output where the file decodes them."""
    made = {name for node in proto.graph.node for name in node.output}
    if "logits" in made and all(output.name != "logits" for output in proto.graph.output):
        proto.graph.output.append(onnx.helper.make_empty_tensor_value_info("logits"))


def _logits(live: onnxruntime.InferenceSession, inputs: parity.Arrays) -> np.ndarray:
    """Logits, or every float output of a file that has none, in one row each, (rows, values)."""
    answers = parity.run(live, inputs)
    chosen = [answers["logits"]] if "logits" in answers else [a for a in answers.values() if a.dtype.kind == "f"]
    return np.concatenate([values.reshape(len(values), -1).astype(np.float64) for values in chosen], axis=1)


def _table(harms: Mapping[str, float], kept: Collection[str]) -> tuple[LayerHarm, ...]:
    ranked = sorted(harms, key=lambda layer: (-harms[layer], layer))
    return tuple(LayerHarm(layer, harms[layer], layer in kept) for layer in ranked)


def _check_rows(live: onnxruntime.InferenceSession, rows: parity.Arrays, what: str) -> None:
    """Refuse rows that the file cannot read, and calibration rows from which no range can be learned."""
    expected = {port.name: tuple(port.shape[1:]) for port in live.get_inputs()}
    if rows.keys() != expected.keys():
        raise ExportError(f"the {what} rows must have the inputs {sorted(expected)}, got {sorted(rows)}")
    kinds = {name: type(values).__name__ for name, values in rows.items() if not isinstance(values, np.ndarray)}
    if kinds:
        raise ExportError(f"the {what} rows must be numpy arrays by input, got {kinds}")
    counts = {name: len(values) for name, values in rows.items()}
    if min(counts.values()) == 0 or len(set(counts.values())) > 1:
        raise ExportError(f"the {what} rows must be as many for every input and at least one, got {counts}")
    for name, shape in expected.items():
        found = rows[name].shape[1:]
        fits = len(found) == len(shape) and all(
            not isinstance(want, int) or want == got for want, got in zip(shape, found, strict=True)
        )
        if not fits:
            raise ExportError(
                f"the {what} rows of input {name!r} must be (rows, {', '.join(map(str, shape))}), "
                f"got {rows[name].shape}"
            )
    for port in live.get_inputs():
        dtype = {"float": "float32", "double": "float64"}.get(port.type[7:-1], port.type[7:-1])  # of tensor(float)
        got = rows[port.name].dtype
        if got.kind not in "UO" if dtype == "string" else got != dtype:
            raise ExportError(f"the {what} rows of input {port.name!r} must be {dtype}, got {got}")
    if what == "calibration" and parity.alike(rows):
        raise ExportError(
            f"the {max(counts.values())} calibration rows are all alike, which says nothing about ranges; "
            "give rows of the training data"
        )


def _ranges(
    model: onnx.ModelProto,
    network: Network,
    calibration: parity.Arrays | None,
    method: str,
    given: Mapping[str, Seen],
) -> Iterator[tuple[str, dict[str, Seen]]]:
    """Range of every tensor that may be rounded, given or calibrated, one method after the other."""
    tensors = network.tensors()
    if calibration is None:
        missing = [name for name in tensors if name not in given]
        if missing:
            raise ExportError(
                f"no calibration rows, and ranges lacks {len(missing)} of the {len(tensors)} values that are rounded: "
                f"{', '.join(missing[:3])}; give calibration rows of the training data"
            )
        yield "given", {name: given[name] for name in tensors}
        return
    first, *others = METHODS if method == "auto" else (method,)
    for methods in ((first,), others):
        if methods:
            for name, seen in observe(model, tensors, calibration, methods=methods).items():
                # where training has shown the rounding to the model, its biases have learnt what would be corrected
                yield name, {**seen, **{tensor: given[tensor] for tensor in seen if tensor in given}}


def _given(model: onnx.ModelProto, network: Network, ranges: Mapping[str, Range]) -> dict[str, Seen]:
    """Given ranges by tensor name; a layer's range also serves the ReLU behind it."""
    tensors = network.tensors()
    facts = {fact.key: fact.value for fact in model.metadata_props}
    layers: dict[str, str] = json.loads(facts.get("layers", "{}"))
    found: dict[str, Seen] = {}
    for name, (lowest, highest) in ranges.items():
        if not (np.isfinite([lowest, highest]).all() and lowest <= highest):
            raise ValueError(f"ranges[{name!r}] must be finite with low <= high, got ({lowest!r}, {highest!r})")
        tensor = layers.get(name, name)
        if not {tensor} & {*network.maker, *network.readers, *tensors}:
            _known((name,), [*layers, *tensors], "ranges")
        low, high = min(lowest, 0.0), max(highest, 0.0)
        for same in network.moved(tensor):
            if same in tensors:
                found[same] = Seen(low, high)
            elif same in network.maker:
                behind = network.behind_clip(network.maker[same])
                if behind in tensors:
                    found.setdefault(behind, Seen(0.0, high))
    return found


def _known(names: tuple[str, ...], known: Collection[str], what: str) -> tuple[str, ...]:
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{what} names {name!r}, which is no layer with a value in 8 bits.{hint}")
    return names
