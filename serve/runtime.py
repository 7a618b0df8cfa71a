"""Bundles as callable models: one ONNX Runtime session each, and the store that finds them on disk. No HTTP."""

import logging
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from serve import manifest as bundles
from serve.errors import RequestError, did_you_mean
from serve.manifest import Bundle, BundleError, Port
from serve.protocol import DTYPES

log = logging.getLogger("serve")

EXAMPLES = 16  # golden rows kept in memory, for the page
ONNX_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Model:
    """One version of one model, ready to answer.

    Attributes:
        manifest: what the bundle says of itself.
        precision: name of the stored form that is loaded.
        examples: up to 16 golden rows by input name; empty without `golden.npz`.
    """

    def __init__(
        self, bundle: Bundle, *, precision: str | None = None, threads: int | None = None, max_batch: int = 1024
    ) -> None:
        """Load the session and ask it the golden requests.

        Args:
            bundle: a verified bundle.
            precision: "fp32", "int8" …; the manifest's default if None.
            threads: threads one request may use; every core if None.
            max_batch: most rows of one request.

        Raises:
            BundleError: the ONNX file does not load, has other tensors than the manifest, or answers differently from
                the golden answers.
        """
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.precision = precision or self.manifest.default
        self.max_batch = max_batch
        self._session = _session(bundle, self.precision, threads or cores())
        self._check_ports()
        self.examples = self._check_golden()

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> str:
        return self.manifest.version

    def predict(self, inputs: dict[str, np.ndarray], outputs: list[str] | None = None) -> dict[str, np.ndarray]:
        """Check raw inputs and run them.

        Args:
            inputs: one array per input of the manifest, batch first.
            outputs: names wanted, all if None.

        Returns:
            Output arrays by name, batch first.

        Raises:
            RequestError: the inputs or output names are not the model's; the message names the input.
        """
        known = [port.name for port in self.manifest.outputs]
        for name in outputs or ():
            if name not in known:
                message = f"model {self.name!r} has no output {name!r}; it has {', '.join(known)}"
                raise RequestError("unknown_output", message)
        feed = self.check(inputs)
        wanted = outputs or known
        try:
            return dict(zip(wanted, self._session.run(wanted, feed), strict=True))
        except Exception as error:  # ONNX Runtime raises its own types, which share no public base
            log.error("model %s version %s failed in ONNX Runtime: %s", self.name, self.version, type(error).__name__)
            message = (
                f"model {self.name!r} failed on inputs that passed its checks; the server's log has the request id"
            )
            raise RequestError("inference_failed", message, 500) from error

    def check(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compare raw inputs with the manifest.

        Returns:
            The same arrays in the form ONNX Runtime takes (text as object arrays).

        Raises:
            RequestError: a missing or unknown input, another datatype or shape, values out of range, unequal batches, an
                empty batch or one that is too large.
        """
        ports = {port.name: port for port in self.manifest.inputs}
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
        feed = {name: _checked(inputs[name], port) for name, port in ports.items()}
        batches = {name: len(array) for name, array in feed.items()}
        if len(set(batches.values())) > 1:
            message = f"inputs of one request must have equal batches, got {batches}"
            raise RequestError("bad_shape", message)
        batch = next(iter(batches.values()))
        if not 1 <= batch <= self.max_batch:
            message = f"a request must hold 1 … {self.max_batch} rows, got {batch}; split it"
            raise RequestError("bad_batch", message, 413 if batch else 422)
        return feed

    def _check_ports(self) -> None:
        for kind, ports, nodes in (
            ("inputs", self.manifest.inputs, self._session.get_inputs()),
            ("outputs", self.manifest.outputs, self._session.get_outputs()),
        ):
            declared = {port.name: port.dtype for port in ports}
            found = {node.name: ONNX_TYPES.get(node.type, node.type) for node in nodes}
            if declared != found:
                raise BundleError(
                    f"{bundles.MANIFEST} declares {kind} {declared}, the ONNX file has {found}; export again"
                )

    def _check_golden(self) -> dict[str, np.ndarray]:
        """Answer the golden rows, which also warms the session up; returns the first of them."""
        path = self.bundle.folder / "golden.npz"
        if not path.is_file():
            return {}
        with np.load(path, allow_pickle=False) as stored:
            golden = {name: stored[name] for name in stored.files}
        inputs = {port.name: golden[f"input/{port.name}"] for port in self.manifest.inputs}
        parity = self.manifest.precisions[self.precision].parity
        for name, found in self.predict(inputs).items():
            expected = golden[f"output/{name}"]
            allowed = 2 * parity + 1e-3 * max(1.0, float(np.abs(expected).max(initial=0.0)))
            gap = float(np.abs(found - expected).max(initial=0.0)) if found.shape == expected.shape else float("inf")
            if not gap <= allowed:
                raise BundleError(
                    f"{self.precision} answers differ from golden.npz by {gap:.3g} in {name!r}, at most {allowed:.3g} is "
                    "expected; this processor or ONNX Runtime computes otherwise: serve another precision or export here"
                )
        return {name: array[:EXAMPLES] for name, array in inputs.items()}


def _session(bundle: Bundle, precision: str, threads: int) -> onnxruntime.InferenceSession:
    if precision not in bundle.manifest.precisions and precision in bundle.manifest.refused:
        raise BundleError(f"precision {precision!r} was not stored: {bundle.manifest.refused[precision]}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # At 100 requests a second to a small model, spinning kept 0.4 to 0.7 cores busy against 0.01 to 0.03 without, for at
    # most 0.1 ms less per request (benchmarks/results/serve_start.csv).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    path = bundle.model(precision)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own types, which share no public base
        raise BundleError(f"{path.name} does not load in ONNX Runtime: {error}") from error


def _checked(array: np.ndarray, port: Port) -> np.ndarray:
    """One input, compared with its port."""
    expected = np.dtype(DTYPES[port.dtype])
    if port.dtype == "BYTES":
        if array.dtype.kind not in "UO":
            raise RequestError("bad_datatype", f"input {port.name!r} must be text (BYTES), got {array.dtype}")
        array = array.astype(object)
    elif array.dtype != expected:
        message = f"input {port.name!r} must be {port.dtype} ({expected}), got {array.dtype}"
        raise RequestError("bad_datatype", message)
    fits = len(array.shape) == len(port.shape) and all(
        want in (-1, got) for want, got in zip(port.shape, array.shape, strict=True)
    )
    if not fits:
        raise RequestError("bad_shape", f"input {port.name!r} must be {port.sizes}, got {array.shape}")
    if expected.kind != "f":
        return array if port.range is None or port.dtype == "BYTES" else _within(array, port)
    if np.isinf(array).any():
        raise RequestError("not_finite", f"input {port.name!r} holds values too large for {port.dtype}")
    if not port.columns and np.isnan(array).any():  # tables read NaN as missing, other inputs have no such meaning
        raise RequestError("not_finite", f"input {port.name!r} holds missing values, which this model cannot take")
    return array if port.range is None else _within(array, port)


def _within(array: np.ndarray, port: Port) -> np.ndarray:
    low, high = port.range or (-np.inf, np.inf)
    outside = (array < low) | (array > high)  # False for NaN
    if outside.any():
        unit = f" {port.unit}" if port.unit else ""
        message = f"input {port.name!r} must lie in {low:g} … {high:g}{unit}, got {array[outside].flat[0]}"
        raise RequestError("out_of_range", message)
    return array


class Store:
    """Every bundle under `folder/<name>/<version>/` that may be served.

    Attributes:
        models: name -> version -> model, versions oldest first by numeric order.
        refused: (name, version) -> why it is not served.
        draining: True once the server is stopping; it is then not ready.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        precision: str | None = None,
        threads: int | None = None,
        max_batch: int = 1024,
    ) -> None:
        """Scan the folder and load what can be trusted; a bad bundle is refused and logged, and the others are served.

        Args:
            folder: the store.
            precision: stored form to serve; each bundle's own default if None.
            threads: threads one request may use; every core if None.
            max_batch: most rows of one request.

        Raises:
            FileNotFoundError: no such folder.
            BundleError: the folder is itself a bundle.
        """
        self.folder = Path(folder)
        self.models: dict[str, dict[str, Model]] = {}
        self.refused: dict[tuple[str, str], str] = {}
        self.draining = False
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"no folder called {str(folder)!r}; make a bundle first: zoo export RUN STORE/NAME/1"
            )
        if (self.folder / bundles.MANIFEST).is_file():
            raise BundleError(f"{str(folder)!r} is one bundle; give the store that holds <name>/<version> folders")
        for name in _folders(self.folder):
            try:
                versions = _folders(name)
            except PermissionError:  # such as lost+found, where the store is a disk of its own
                log.warning("%s cannot be read and is left out", name.name)
                continue
            for version in versions:
                try:
                    model = Model(_read(version), precision=precision, threads=threads, max_batch=max_batch)
                except Exception as error:  # whatever is wrong with one bundle, the others are served
                    reason = str(error).replace(f"{version}", f"{name.name}/{version.name}")
                    if not isinstance(error, ValueError):
                        reason = f"{type(error).__name__}: {reason}"
                    self.refused[name.name, version.name] = reason
                    log.error("%s/%s is refused: %s", name.name, version.name, reason)
                else:
                    self.models.setdefault(name.name, {})[version.name] = model

    @property
    def ready(self) -> bool:
        """Whether at least one model can answer and the server is not stopping."""
        return bool(self.models) and not self.draining

    def get(self, name: str, version: str | None = None) -> Model:
        """A model by name, its latest version if none is given.

        Raises:
            RequestError: 404, no such model or version; 503, it was refused.
        """
        versions = self.models.get(name, {})
        if version is None and versions:
            return next(reversed(versions.values()))
        if version in versions:
            return versions[version]
        refused = {v: reason for (n, v), reason in self.refused.items() if n == name}
        if refused and (version is None or version in refused):
            version = version or next(reversed(refused))
            message = f"model {name!r} version {version!r} is refused: {refused[version]}"
            raise RequestError("refused", message, 503)
        if versions:
            message = f"model {name!r} has no version {version!r}; it has {', '.join(versions)}"
            raise RequestError("unknown_version", message, 404)
        count = len(self.models)
        message = f"no model is called {name!r} ({count} served).{did_you_mean(name, self.models)}"
        raise RequestError("unknown_model", message, 404)

    def index(self) -> list[dict[str, Any]]:
        """Every version found, as the v2 repository index: name, version, state and, when refused, the reason."""
        served = [
            {"name": name, "version": version, "state": "READY", "reason": ""}
            for name, versions in self.models.items()
            for version in versions
        ]
        refused = [
            {"name": name, "version": version, "state": "UNAVAILABLE", "reason": reason}
            for (name, version), reason in self.refused.items()
        ]
        return sorted(served + refused, key=lambda entry: (entry["name"], _natural(entry["version"])))


def _folders(parent: Path) -> list[Path]:
    """Sub-folders in numeric order; hidden ones, such as a bundle being written, are left out."""
    found = [path for path in parent.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))]
    return sorted(found, key=lambda path: _natural(path.name))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key with numbers by value: 9 before 10, 1.9 before 1.10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.findall(r"\d+|\D+", name)]


def _read(folder: Path) -> Bundle:
    """Verified bundle whose place in the store is the name and version it declares."""
    bundle = bundles.read(folder)
    declared = (bundle.manifest.name, bundle.manifest.version)
    if declared != (folder.parent.name, folder.name):
        raise BundleError(f"{folder} declares itself {'/'.join(declared)}; move it there or export it again")
    return bundle
