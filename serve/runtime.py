"""A bundle as a callable model: its checks, and one session. No HTTP.

ONNX Runtime is imported when the first model is opened, so that a process which only looks at a store stays small.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from serve import audio, continuations, series, texts
from serve import manifest as bundles
from serve import session as sessions
from serve.errors import RequestError, did_you_mean
from serve.manifest import Bundle, BundleError, Manifest, Port
from serve.session import Session, check_engine
from serve.tensors import DTYPES
from serve.writing import GENERATOR, MOST, Part, Shared, Writing, opened

log = logging.getLogger("serve")

TRIED = 8  # golden texts that a model that writes must write again
MOST_APART = 0.5  # share of them that may come out otherwise; one other token changes all behind it
EXAMPLES = 16  # golden rows kept in memory, for the page


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ModelLike(Protocol):
    """What the app knows of a model, wherever its session lives; see `Model`."""

    bundle: Bundle
    manifest: Manifest
    precision: str
    max_batch: int

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def engine(self) -> str: ...

    @property
    def examples(self) -> dict[str, np.ndarray]: ...

    def check(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]: ...

    def predict(
        self,
        inputs: dict[str, np.ndarray],
        outputs: list[str] | None = None,
        *,
        deadline: float | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> dict[str, np.ndarray]: ...

    def follow(self, kind: str, body: bytes, deadline: float | None = None) -> Iterator[Part]: ...


class Declared:
    """What a manifest says of a model's tensors, and the checks that follow from it. Needs no session.

    Attributes:
        bundle: where the model comes from.
        manifest: what the bundle says of itself.
        precision: name of the stored form that is served.
        max_batch: most rows of one request, and of one run; fewer than asked where the bundle says so.
    """

    def __init__(self, bundle: Bundle, *, precision: str | None = None, max_batch: int = 1024) -> None:
        """Remember the bundle.

        Raises:
            BundleError: the precision is not stored.
        """
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.precision = precision or self.manifest.default
        self.max_batch = min(max_batch, self.manifest.max_batch or max_batch)
        if self.precision not in self.manifest.precisions and self.precision in self.manifest.refused:
            raise BundleError(f"precision {self.precision!r} was not stored: {self.manifest.refused[self.precision]}")
        bundle.model(self.precision)
        self._inputs = {port.name: port for port in self.manifest.inputs}
        self._outputs = [port.name for port in self.manifest.outputs]

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> str:
        return self.manifest.version

    def check(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compare raw inputs with the manifest.

        Returns:
            The same arrays in the form the engines take (text as object arrays).

        Raises:
            RequestError: a missing or unknown input, another datatype or shape, values out of range, unequal batches,
                an empty batch or one that is too large.
        """
        feed = self.arranged(inputs)
        self.check_values(feed)
        return feed

    def arranged(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The half of `check` that looks at names, datatypes and shapes, but at no value."""
        ports = self._inputs
        for name in inputs:
            if name not in ports:
                message = (
                    f"model {self.name!r} has no input {name!r}; it has {', '.join(ports)}.{did_you_mean(name, ports)}"
                )
                raise RequestError("unknown_input", message)
        for name, port in ports.items():
            if name not in inputs:
                message = f"input {name!r} is missing; send {port.dtype} of shape {port.sizes}"
                raise RequestError("missing_input", message)
        feed = {name: _shaped(inputs[name], port) for name, port in ports.items()}
        batches = {name: len(array) for name, array in feed.items()}
        batch = next(iter(batches.values()))
        if any(count != batch for count in batches.values()):
            message = f"inputs of one request must have equal batches, got {batches}"
            raise RequestError("bad_shape", message)
        if not 1 <= batch <= self.max_batch:
            message = (
                f"a request must hold 1 … {self.max_batch} rows, got {batch}; {'split it' if batch else 'send one'}"
            )
            raise RequestError("bad_batch", message, 413 if batch else 422)
        return feed

    def check_values(self, feed: dict[str, np.ndarray]) -> None:
        """The other half of `check`, which may be asked about the rows of several requests at once."""
        for name, array in feed.items():
            if self.manifest.kind == "audio":
                audio.check(array, int(self.manifest.preprocess["rate"]), f"input {name!r}")
            if self.manifest.kind == "series":
                series.check(array, self.manifest)
            _check_values(array, self._inputs[name], gaps=self.manifest.kind == "audio")
            if self.manifest.kind in ("text", "captioned") and array.dtype.kind == "O":
                texts.check(array.ravel().tolist(), name)

    def wanted(self, outputs: Iterable[str] | None) -> list[str]:
        """Names of the outputs asked for, every one of the model's if None.

        Raises:
            RequestError: the model has no such output.
        """
        if not outputs:
            return self._outputs
        asked = list(outputs)
        for name in asked:
            if name not in self._outputs:
                message = f"model {self.name!r} has no output {name!r}; it has {', '.join(self._outputs)}"
                raise RequestError("unknown_output", message)
        return asked


class Model(Declared):
    """One version of one model, ready to answer.

    Attributes:
        engine: "onnxruntime" or "openvino", which computes the answers.
        examples: up to 16 golden rows by input name; empty without `golden.npz`.
        watcher: sees what the file takes and gives in every run, see `serve.drift`; None if nobody watches.
        writing: texts that are being continued, for the one thread of a worker; None if the model continues none.
    """

    watcher: Callable[[dict[str, np.ndarray], dict[str, np.ndarray]], None] | None = None

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: str | None = None,
        threads: int | None = None,
        max_batch: int = 1024,
        engine: str = "onnxruntime",
        most_texts: int = MOST,
        generator: str = GENERATOR,
    ) -> None:
        """Load the session and ask it the golden requests.

        Args:
            bundle: a verified bundle.
            precision: "fp32", "fp16", "int8", "w8" or "w4"; the manifest's default if None.
            threads: threads one request may use; every core if None.
            max_batch: most rows of one request.
            engine: "onnxruntime", "openvino", or "auto" for the faster of them on this machine, which is measured on a
                golden row and remembered.
            most_texts: texts that are continued at a time, where the model does that.
            generator: "module:name" of what continues them.

        Raises:
            BundleError: the ONNX file does not load, has other tensors than the manifest, or answers differently from
                the golden answers; the bundle changed meanwhile; or the engine is not installed.
            ValueError: no such engine.
        """
        super().__init__(bundle, precision=precision, max_batch=max_batch)
        check_engine(engine)
        path, threads = bundle.model(self.precision), threads or cores()
        self._tokenizer = texts.opened(bundle.folder, self.manifest)
        made = opened(generator, bundle.folder, self.manifest, self.precision, threads)
        self.writing = None if made is None else Writing(made, most_texts)
        self._shared = None if self.writing is None else Shared(self.writing)
        golden = golden_rows(bundle)
        self._writes = continuations.writes(self.manifest)
        if self._writes:
            self._check_written(golden)
        else:
            self._open(path, "onnxruntime" if engine == "auto" else engine, threads, golden)
        if engine == "auto" and not self._writes and golden and sessions.installed("openvino"):
            self._choose(path, threads, golden)
        self.examples = self._golden_inputs(golden, EXAMPLES)
        bundle.confirm()

    @property
    def engine(self) -> str:
        return "onnxruntime" if self._writes else self._session.engine

    def predict(
        self,
        inputs: dict[str, np.ndarray],
        outputs: list[str] | None = None,
        *,
        deadline: float | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> dict[str, np.ndarray]:
        """Check raw inputs and run them.

        Args:
            inputs: one array per input of the manifest, batch first.
            outputs: names wanted, all if None.
            deadline: `time.monotonic()` seconds; here the answer is computed at once, so that it is never late.
            parameters: of the request; a model that writes or paints reads those of `serve.continuations`.

        Returns:
            Output arrays by name, batch first.

        Raises:
            RequestError: the inputs or output names are not the model's; the message names the input.
        """
        wanted = self.wanted(outputs)
        feed = self.check(inputs)
        return self._written(feed, continuations.known(parameters or {})) if self._writes else self.run(wanted, feed)

    def run(self, wanted: list[str], feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name for inputs that passed `check`, or what `fed` made of them.

        Raises:
            RequestError: 500, the engine failed.
        """
        fed, _ = self.fed(feed)
        try:
            outputs = dict(zip(wanted, self._session.run(wanted, fed), strict=True))
        except Exception as error:  # the engines raise types of their own, which share no public base
            log.error(
                "model %s version %s failed in %s: %s", self.name, self.version, self.engine, type(error).__name__
            )
            message = (
                f"model {self.name!r} failed on inputs that passed its checks; the server's log has the request id"
            )
            raise RequestError("inference_failed", message, 500) from error
        if self.watcher is not None:
            self.watcher(fed, outputs)
        return outputs

    def follow(self, kind: str, body: bytes, deadline: float | None = None) -> Iterator[Part]:
        """Answer a request for continued texts as it comes.

        Args:
            kind: how the body is to be read, one of `serve.continuations.KINDS`.
            body: as it came, decompressed.
            deadline: `time.monotonic()` seconds, after which nobody wants the answer.

        Raises:
            RequestError: the model continues no texts, or the request cannot be answered.
        """
        continuations.check(kind, self.manifest)
        assert self._shared is not None
        return self._shared.follow(continuations.read(kind, body, None, self), kind, deadline)

    def _written(self, feed: dict[str, np.ndarray], parameters: dict[str, Any]) -> dict[str, np.ndarray]:
        """Texts that the model writes, or pictures that it paints, where its infer routes answer these."""
        assert self._shared is not None
        (rows,), (port,) = feed.values(), self.manifest.outputs
        asked = continuations.Rows([str(text) for text in rows.ravel()], parameters, self.manifest)
        for _ in self._shared.follow(asked, "rows"):
            pass
        return {port.name: asked.output(port)}

    def _check_written(self, golden: dict[str, np.ndarray]) -> None:
        """Write golden rows' texts, of which near ties of two tokens may turn a few to others, and rounded weights many."""
        if not golden:
            return
        (port,) = self.manifest.outputs
        found = self._written(self.check(self._golden_inputs(golden, TRIED)), {"temperature": 0})[port.name]
        truth = golden[f"output/{port.name}"][:TRIED]
        if port.dtype == "BYTES":
            apart = float(np.mean(found != truth.astype(object)))
        else:  # of pixel values one more or less is a matter of rounding
            apart = float(np.mean(np.abs(found.astype(int) - truth).max(axis=(1, 2, 3)) > 1))
        if apart > MOST_APART and self.precision == "fp32":
            raise BundleError(
                f"{self.precision} answers otherwise than golden.npz in {apart:.0%} of the rows, at most {MOST_APART:.0%} is "
                "expected; this processor computes otherwise: serve another precision or export here"
            )

    def fed(self, feed: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[bool]]:
        """What the file takes, from checked raw inputs: these themselves, but the tokens of texts; and which of these are cut."""
        if self._tokenizer is None or "tokens" in feed:
            return feed, []
        own = dict(feed)
        rows = [own.pop(port.name).tolist() for port in self.manifest.inputs if port.dtype == "BYTES"]
        tokens, cut = self._tokenizer(*rows)
        return {"tokens": tokens, **own}, cut

    def notes(self, cut: Sequence[bool]) -> list[str]:
        """What is told of rows of which `fed` says that they are cut."""
        return texts.told(cut, self._tokenizer.length) if self._tokenizer is not None else []

    def _golden_inputs(self, golden: dict[str, np.ndarray], rows: int | None = None) -> dict[str, np.ndarray]:
        return {port.name: golden[f"input/{port.name}"][:rows] for port in self.manifest.inputs} if golden else {}

    def _open(self, path: Path, engine: str, threads: int, golden: dict[str, np.ndarray]) -> None:
        """Load the file on an engine and compare it with the manifest and the golden answers."""
        self._session: Session = sessions.open_session(path, engine, threads)
        for kind, ports, found in (
            ("inputs", self.manifest.inputs, self._session.inputs),
            ("outputs", self.manifest.outputs, self._session.outputs),
        ):
            declared = {port.name: port.dtype for port in ports}
            if kind == "inputs" and self._tokenizer is not None:
                declared = {"tokens": "INT32"} | {name: dtype for name, dtype in declared.items() if dtype != "BYTES"}
            if declared != found:
                raise BundleError(
                    f"{bundles.MANIFEST} declares {kind} {declared}, the ONNX file has {found}; export again"
                )
        if golden:
            self._check_golden(golden)

    def _check_golden(self, golden: dict[str, np.ndarray]) -> None:
        """Answer the golden rows, which also warms the session up."""
        form = self.manifest.precisions[self.precision]
        inputs = self._golden_inputs(golden)
        rows, size = len(next(iter(inputs.values()))), self.max_batch
        parts = [self.predict({k: v[i : i + size] for k, v in inputs.items()}) for i in range(0, rows, size)]
        for name in self._outputs:
            found = np.concatenate([part[name] for part in parts])
            truth = golden[f"output/{name}"]
            allowed = 2 * form.others.get(name, form.parity) + 1e-3 * max(1.0, float(np.abs(truth).max(initial=0.0)))
            if truth.dtype.kind in "biu":  # names of things: what counts is how many are others
                allowed = 2 * form.others.get(name, form.parity) + 2e-3
            gap = _gap(found, truth)
            if not gap <= allowed:
                raise BundleError(
                    f"{self.precision} answers differ from golden.npz by {gap:.3g} in {name!r}, at most {allowed:.3g} is "
                    f"expected; this processor or {self.engine} computes otherwise: serve another precision or export here"
                )

    def _choose(self, path: Path, threads: int, golden: dict[str, np.ndarray]) -> None:
        """Go over to OpenVINO if it answers alike, and faster; the choice is remembered for this machine."""
        key = sessions.key(bundles.digest(path), threads)
        known, usual = sessions.remembered(key), self._session
        if known == "onnxruntime":
            return
        try:
            self._open(path, "openvino", threads, golden)
        except (BundleError, RequestError) as error:
            log.warning("%s version %s stays on ONNX Runtime: %s", self.name, self.version, error)
            self._session = usual
        else:
            if known is None:
                one, _ = self.fed(self.check(self._golden_inputs(golden, 1)))
                base, other = sessions.milliseconds([usual, self._session], one)
                if other > sessions.GAIN * base:
                    self._session = usual
        if known != self.engine:
            sessions.remember(key, self.engine)


def _gap(found: np.ndarray, truth: np.ndarray) -> float:
    """Largest difference, of whole numbers the share that differ; infinite if the shapes do."""
    if found.shape != truth.shape:
        return float("inf")
    if truth.dtype.kind in "biu":
        return float(np.mean(found != truth)) if truth.size else 0.0
    return float(np.abs(found - truth).max(initial=0.0))


def golden_rows(bundle: Bundle) -> dict[str, np.ndarray]:
    """Golden rows as `input/<name>` and `output/<name>`; empty if the bundle has none."""
    path = bundle.folder / "golden.npz"
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _shaped(array: np.ndarray, port: Port) -> np.ndarray:
    """One input, compared with its port in datatype and shape."""
    if port.dtype == "BYTES":
        if array.dtype.kind not in "UO":
            raise RequestError("bad_datatype", f"input {port.name!r} must be text (BYTES), got {array.dtype}")
        array = array.astype(object, copy=False)
    elif array.dtype != DTYPES[port.dtype]:
        expected = np.dtype(DTYPES[port.dtype])
        message = f"input {port.name!r} must be {port.dtype} ({expected}), got {array.dtype}"
        raise RequestError("bad_datatype", message)
    fits = len(array.shape) == len(port.shape) and all(
        want in (-1, got) for want, got in zip(port.shape, array.shape, strict=True)
    )
    if not fits:
        raise RequestError("bad_shape", f"input {port.name!r} must be {port.sizes}, got {array.shape}")
    return array


def _check_values(array: np.ndarray, port: Port, gaps: bool = False) -> None:
    """The values of one input, compared with its port; `gaps` may be NaN."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        if np.isinf(array).any():
            raise RequestError("not_finite", f"input {port.name!r} holds values too large for {port.dtype}")
        if not port.columns and not gaps:  # tables read NaN as missing, other inputs have no such meaning
            raise RequestError("not_finite", f"input {port.name!r} holds missing values, which this model cannot take")
    if port.range is None or port.dtype == "BYTES":
        return
    low, high = port.range
    if array.dtype.kind in "iu":
        limits = np.iinfo(array.dtype)
        if low <= limits.min and limits.max <= high:
            return
    outside = (array < low) | (array > high)  # False for NaN
    if outside.any():
        unit = f" {port.unit}" if port.unit else ""
        message = f"input {port.name!r} must lie in {low:g} … {high:g}{unit}, got {array[outside].flat[0]}"
        raise RequestError("out_of_range", message)
