"""Bundles as callable models: one session each, and the store that finds them on disk. No HTTP."""

import logging
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from serve import manifest as bundles
from serve import session as sessions
from serve.errors import RequestError, did_you_mean
from serve.manifest import Bundle, BundleError, Port
from serve.protocol import DTYPES
from serve.session import Session

log = logging.getLogger("serve")

EXAMPLES = 16  # golden rows kept in memory, for the page


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Model:
    """One version of one model, ready to answer.

    Attributes:
        manifest: what the bundle says of itself.
        precision: name of the stored form that is loaded.
        engine: "onnxruntime" or "openvino", which computes the answers.
        examples: up to 16 golden rows by input name; empty without `golden.npz`.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: str | None = None,
        threads: int | None = None,
        max_batch: int = 1024,
        engine: str = "onnxruntime",
    ) -> None:
        """Load the session and ask it the golden requests.

        Args:
            bundle: a verified bundle.
            precision: "fp32", "fp16", "int8", "w8" or "w4"; the manifest's default if None.
            threads: threads one request may use; every core if None.
            max_batch: most rows of one request.
            engine: "onnxruntime", "openvino", or "auto" for the faster of them on this machine, which is measured on a
                golden row and remembered.

        Raises:
            BundleError: the ONNX file does not load, has other tensors than the manifest, or answers differently from
                the golden answers; or the engine is not installed.
            ValueError: no such engine.
        """
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.precision = precision or self.manifest.default
        self.max_batch = max_batch
        if self.precision not in self.manifest.precisions and self.precision in self.manifest.refused:
            raise BundleError(f"precision {self.precision!r} was not stored: {self.manifest.refused[self.precision]}")
        if engine not in sessions.ENGINES:
            raise ValueError(f"engine must be one of {', '.join(sessions.ENGINES)}, got {engine!r}")
        path, threads = bundle.model(self.precision), threads or cores()
        golden = self._golden()
        self._open(path, "onnxruntime" if engine == "auto" else engine, threads, golden)
        if engine == "auto" and golden and sessions.installed("openvino"):
            self._choose(path, threads, golden)
        self.examples = self._inputs(golden, EXAMPLES)

    @property
    def engine(self) -> str:
        return self._session.engine

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
        except Exception as error:  # the engines raise types of their own, which share no public base
            log.error(
                "model %s version %s failed in %s: %s", self.name, self.version, self.engine, type(error).__name__
            )
            message = (
                f"model {self.name!r} failed on inputs that passed its checks; the server's log has the request id"
            )
            raise RequestError("inference_failed", message, 500) from error

    def check(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compare raw inputs with the manifest.

        Returns:
            The same arrays in the form the engines take (text as object arrays).

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

    def _golden(self) -> dict[str, np.ndarray]:
        """Golden rows as `input/<name>` and `output/<name>`; empty if the bundle has none."""
        path = self.bundle.folder / "golden.npz"
        if not path.is_file():
            return {}
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    def _inputs(self, golden: dict[str, np.ndarray], rows: int | None = None) -> dict[str, np.ndarray]:
        return {port.name: golden[f"input/{port.name}"][:rows] for port in self.manifest.inputs} if golden else {}

    def _open(self, path: Path, engine: str, threads: int, golden: dict[str, np.ndarray]) -> None:
        """Load the file on an engine and compare it with the manifest and the golden answers."""
        self._session: Session = sessions.open_session(path, engine, threads)
        for kind, ports, found in (
            ("inputs", self.manifest.inputs, self._session.inputs),
            ("outputs", self.manifest.outputs, self._session.outputs),
        ):
            declared = {port.name: port.dtype for port in ports}
            if declared != found:
                raise BundleError(
                    f"{bundles.MANIFEST} declares {kind} {declared}, the ONNX file has {found}; export again"
                )
        if golden:
            self._check_golden(golden)

    def _check_golden(self, golden: dict[str, np.ndarray]) -> None:
        """Answer the golden rows, which also warms the session up."""
        parity = self.manifest.precisions[self.precision].parity
        for name, found in self.predict(self._inputs(golden)).items():
            truth = golden[f"output/{name}"]
            allowed = 2 * parity + 1e-3 * max(1.0, float(np.abs(truth).max(initial=0.0)))
            gap = float(np.abs(found - truth).max(initial=0.0)) if found.shape == truth.shape else float("inf")
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
                one = self.check(self._inputs(golden, 1))
                base, other = sessions.milliseconds([usual, self._session], one)
                if other > sessions.GAIN * base:
                    self._session = usual
        if known != self.engine:
            sessions.remember(key, self.engine)


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
        engine: str = "onnxruntime",
    ) -> None:
        """Scan the folder and load what can be trusted; a bad bundle is refused and logged, and the others are served.

        Args:
            folder: the store.
            precision: stored form to serve; each bundle's own default if None.
            threads: threads one request may use; every core if None.
            max_batch: most rows of one request.
            engine: what computes, as for `Model`.

        Raises:
            FileNotFoundError: no such folder.
            BundleError: the folder is itself a bundle.
            ValueError: no such engine.
        """
        if engine not in sessions.ENGINES:
            raise ValueError(f"engine must be one of {', '.join(sessions.ENGINES)}, got {engine!r}")
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
                    bundle = _read(version)
                    model = Model(bundle, precision=precision, threads=threads, max_batch=max_batch, engine=engine)
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
