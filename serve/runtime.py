"""Bundles as callable models: one session each, and the store that finds them on disk. No HTTP.

ONNX Runtime is imported when the first model is opened, so that a process which only looks at a store stays small.
"""

import logging
import os
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from serve import manifest as bundles
from serve import session as sessions
from serve.errors import RequestError, did_you_mean
from serve.manifest import Bundle, BundleError, Manifest, Port
from serve.session import ENGINES, Session
from serve.tensors import DTYPES

log = logging.getLogger("serve")

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
        self, inputs: dict[str, np.ndarray], outputs: list[str] | None = None, *, deadline: float | None = None
    ) -> dict[str, np.ndarray]: ...


class Declared:
    """What a manifest says of a model's tensors, and the checks that follow from it. Needs no session.

    Attributes:
        bundle: where the model comes from.
        manifest: what the bundle says of itself.
        precision: name of the stored form that is served.
        max_batch: most rows of one request.
    """

    def __init__(self, bundle: Bundle, *, precision: str | None = None, max_batch: int = 1024) -> None:
        """Remember the bundle.

        Raises:
            BundleError: the precision is not stored.
        """
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.precision = precision or self.manifest.default
        self.max_batch = max_batch
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
            RequestError: a missing or unknown input, another datatype or shape, values out of range, unequal batches, an
                empty batch or one that is too large.
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
            message = f"a request must hold 1 … {self.max_batch} rows, got {batch}; split it"
            raise RequestError("bad_batch", message, 413 if batch else 422)
        return feed

    def check_values(self, feed: dict[str, np.ndarray]) -> None:
        """The other half of `check`, which may be asked about the rows of several requests at once."""
        for name, array in feed.items():
            _check_values(array, self._inputs[name])

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
        watcher: sees the inputs and outputs of every run, see `serve.drift`; None if nobody watches.
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
                the golden answers; the bundle changed meanwhile; or the engine is not installed.
            ValueError: no such engine.
        """
        super().__init__(bundle, precision=precision, max_batch=max_batch)
        _known(engine)
        path, threads = bundle.model(self.precision), threads or cores()
        golden = golden_rows(bundle)
        self._open(path, "onnxruntime" if engine == "auto" else engine, threads, golden)
        if engine == "auto" and golden and sessions.installed("openvino"):
            self._choose(path, threads, golden)
        self.examples = self._golden_inputs(golden, EXAMPLES)
        bundle.confirm()

    @property
    def engine(self) -> str:
        return self._session.engine

    def predict(
        self, inputs: dict[str, np.ndarray], outputs: list[str] | None = None, *, deadline: float | None = None
    ) -> dict[str, np.ndarray]:
        """Check raw inputs and run them.

        Args:
            inputs: one array per input of the manifest, batch first.
            outputs: names wanted, all if None.
            deadline: `time.monotonic()` seconds; here the answer is computed at once, so that it is never late.

        Returns:
            Output arrays by name, batch first.

        Raises:
            RequestError: the inputs or output names are not the model's; the message names the input.
        """
        wanted = self.wanted(outputs)
        return self.run(wanted, self.check(inputs))

    def run(self, wanted: list[str], feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name for inputs that passed `check`.

        Raises:
            RequestError: 500, the engine failed.
        """
        try:
            outputs = dict(zip(wanted, self._session.run(wanted, feed), strict=True))
        except Exception as error:  # the engines raise types of their own, which share no public base
            log.error(
                "model %s version %s failed in %s: %s", self.name, self.version, self.engine, type(error).__name__
            )
            message = (
                f"model {self.name!r} failed on inputs that passed its checks; the server's log has the request id"
            )
            raise RequestError("inference_failed", message, 500) from error
        if self.watcher is not None:
            self.watcher(feed, outputs)
        return outputs

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
                one = self.check(self._golden_inputs(golden, 1))
                base, other = sessions.milliseconds([usual, self._session], one)
                if other > sessions.GAIN * base:
                    self._session = usual
        if known != self.engine:
            sessions.remember(key, self.engine)


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


def _check_values(array: np.ndarray, port: Port) -> None:
    """The values of one input, compared with its port."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        if np.isinf(array).any():
            raise RequestError("not_finite", f"input {port.name!r} holds values too large for {port.dtype}")
        if not port.columns:  # tables read NaN as missing, other inputs have no such meaning
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


class Shelf:
    """Versions of models by name: what is served, what is refused and why. Says nothing of where they compute.

    Attributes:
        folder: the store, `folder/<name>/<version>/`.
        models: name -> version -> model, versions oldest first by numeric order. It is replaced, never changed, so that any
            thread may read it.
        refused: (name, version) -> why it is not served; or, if an older state of it is, why the files on disk are not.
        unloaded: versions that were taken out on purpose; their files are left alone until they are loaded again.
        draining: True once the server is stopping; it is then not ready.
        traffic: decides between versions when a request names none; the latest answers if None.
        drift: a `Drift` that follows what is served; None if nobody watches.
    """

    drift: Any = None

    def __init__(self, folder: str | Path, *, traffic: Any = None) -> None:
        """Look whether the folder can be a store.

        Raises:
            FileNotFoundError: no such folder.
            BundleError: the folder is itself a bundle.
        """
        self.folder = Path(folder)
        self.models: dict[str, dict[str, Any]] = {}
        self.refused: dict[tuple[str, str], str] = {}
        self.unloaded: frozenset[tuple[str, str]] = frozenset()
        self.draining = False
        self.traffic = traffic
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"no folder called {str(folder)!r}; make a bundle first: zoo export RUN STORE/NAME/1"
            )
        if (self.folder / bundles.MANIFEST).is_file():
            raise BundleError(f"{str(folder)!r} is one bundle; give the store that holds <name>/<version> folders")

    @property
    def ready(self) -> bool:
        """Whether at least one model can answer and the server is not stopping."""
        return bool(self.models) and not self.draining

    def load(self, name: str, version: str | None = None) -> None:
        """Load a version from disk, or every version of the model; where models compute decides how."""
        raise NotImplementedError

    def unload(self, name: str, version: str | None = None) -> None:
        """Stop serving a version, or the whole model, until it is loaded again."""
        raise NotImplementedError

    def resolve(self, name: str, version: str | None = None, key: str | None = None) -> tuple[str, str | None]:
        """The version that answers a request, and the one that computes beside it unseen, None if none does.

        Args:
            name: the model's.
            version: as the request names it, None if it does not.
            key: what keeps a client at one version during an experiment, such as its identity.

        Raises:
            RequestError: 404, no such model or version; 503, it was refused.
        """
        versions = self.models.get(name)
        if version is None and versions:
            if self.traffic is None:
                return next(reversed(versions)), None
            chosen, shadow = self.traffic.choose(name, list(versions), key)
            return chosen, shadow if shadow in versions else None
        if versions and version in versions:
            return str(version), None
        raise self._absent(name, version)

    def get(self, name: str, version: str | None = None, *, key: str | None = None, draw: bool = True) -> Any:
        """A model by name; without a version the one that traffic rules choose, else the latest.

        Args:
            name: the model's.
            version: None for whichever answers.
            key: what keeps a client at one version during an experiment.
            draw: False for the version that most requests get, where nothing is predicted and no share is to be counted.

        Raises:
            RequestError: 404, no such model or version; 503, it was refused.
        """
        if version is None and not draw and self.traffic is not None and self.models.get(name):
            version = self.traffic.default(name, list(self.models[name]))
        else:
            version, _ = self.resolve(name, version, key)
        try:
            return self.models[name][version]
        except KeyError:  # it went in this moment, or a rule names a version that is gone
            raise self._absent(name, version) from None

    def index(self) -> list[dict[str, Any]]:
        """Every version found, as the v2 repository index: name, version, state and, when refused, the reason."""
        models, refused, unloaded = self.models, dict(self.refused), self.unloaded
        entries = {
            (name, version): {
                "name": name,
                "version": version,
                "state": "READY",
                "reason": refused.get((name, version), ""),
            }
            for name, versions in models.items()
            for version in versions
        }
        for name, version in unloaded:
            state = {"name": name, "version": version, "state": "UNAVAILABLE", "reason": "unloaded"}
            entries.setdefault((name, version), state)
        for (name, version), reason in refused.items():
            state = {"name": name, "version": version, "state": "UNAVAILABLE", "reason": reason}
            entries.setdefault((name, version), state)
        return sorted(entries.values(), key=lambda entry: (entry["name"], natural(entry["version"])))

    def _absent(self, name: str, version: str | None) -> RequestError:
        """Why there is no such model."""
        versions = self.models.get(name, {})
        refused = {v: reason for (n, v), reason in self.refused.items() if n == name}
        if refused and (version is None or version in refused):
            version = version or next(reversed(refused))
            message = f"model {name!r} version {version!r} is refused: {refused[version]}"
            return RequestError("refused", message, 503)
        if any(n == name and version in (None, v) for n, v in self.unloaded):
            message = f"model {name!r} was unloaded; load it with POST /v2/repository/models/{name}/load"
            return RequestError("unloaded", message, 404)
        if versions:
            message = f"model {name!r} has no version {version!r}; it has {', '.join(versions)}"
            return RequestError("unknown_version", message, 404)
        count = len(self.models)
        message = f"no model is called {name!r} ({count} served).{did_you_mean(name, self.models)}"
        return RequestError("unknown_model", message, 404)

    def _put(self, model: Any, name: str, version: str) -> None:
        versions = {**self.models.get(name, {}), version: model}
        ordered = {key: versions[key] for key in sorted(versions, key=natural)}
        models = {**self.models, name: ordered}
        self.models = {key: models[key] for key in sorted(models, key=natural)}
        self.unloaded -= {(name, version)}
        if self.drift is not None:
            self.drift.opened(model)
        self._forgive(name, version)

    def _take(self, name: str, version: str) -> Any:
        """Remove a model and return it, None if it is not there."""
        versions = dict(self.models.get(name, {}))
        model = versions.pop(version, None)
        kept = {key: value for key, value in self.models.items() if key != name or versions}
        self.models = {**kept, name: versions} if versions else kept
        if self.drift is not None:
            self.drift.forget(name, version)
        return model

    def _refuse(self, name: str, version: str, error: Exception) -> str:
        """Note why a version is not served; returns the reason."""
        reason = str(error).replace(str(self.folder / name / version), f"{name}/{version}")
        if not isinstance(error, ValueError):
            reason = f"{type(error).__name__}: {reason}"
        self.refused = {**self.refused, (name, version): reason}
        log.error("%s/%s is refused: %s", name, version, reason)
        return reason

    def _forgive(self, name: str, version: str) -> None:
        self.refused = {key: reason for key, reason in self.refused.items() if key != (name, version)}

    def _on_disk(self, name: str, version: str | None) -> dict[tuple[str, str], Path]:
        """Folders of a model, or of one version of it.

        Raises:
            RequestError: 404, there is none.
        """
        found = {
            key: path for key, path in folders(self.folder).items() if key[0] == name and version in (None, key[1])
        }
        if not found:
            wanted = name if version is None else f"{name}/{version}"
            raise RequestError("unknown_model", f"the store has no folder {wanted!r}; put a bundle there first", 404)
        return found


class Store(Shelf):
    """Every bundle under `folder/<name>/<version>/` that may be served, loaded in this process."""

    def __init__(
        self,
        folder: str | Path,
        *,
        precision: str | None = None,
        threads: int | None = None,
        max_batch: int = 1024,
        engine: str = "onnxruntime",
        traffic: Any = None,
        trust: bundles.Trust = (),
    ) -> None:
        """Scan the folder and load what can be trusted; a bad bundle is refused and logged, and the others are served.

        Args:
            folder: the store.
            precision: stored form to serve; each bundle's own default if None.
            threads: threads one request may use; every core if None.
            max_batch: most rows of one request.
            engine: what computes, as for `Model`.
            traffic: decides between versions when a request names none; the latest answers if None.
            trust: public keys, of which one must have signed a bundle; see `serve.manifest.load_trust`.

        Raises:
            FileNotFoundError: no such folder.
            BundleError: the folder is itself a bundle.
            ValueError: no such engine.
        """
        super().__init__(folder, traffic=traffic)
        self._options: dict[str, Any] = dict(
            precision=precision, threads=threads, max_batch=max_batch, engine=_known(engine)
        )
        self._trust = trust
        self._seen: dict[tuple[str, str], Any] = {}
        self._turn = threading.RLock()
        self.rescan()

    def load(self, name: str, version: str | None = None) -> None:
        """Load a version from disk, again if it is served already; every version of the model if none is given.

        Raises:
            RequestError: 404, the store has no such folder; 422, it was refused, and what was served before still is.
        """
        with self._turn:
            reasons = [
                reason for key, path in self._on_disk(name, version).items() if (reason := self._open(key, path))
            ]
        if reasons:
            raise RequestError("refused", f"model {name!r} is refused: {'; '.join(reasons)}", 422)

    def unload(self, name: str, version: str | None = None) -> None:
        """Stop serving a version, or the whole model, until it is loaded again.

        Raises:
            RequestError: 404, it is not served.
        """
        with self._turn:
            served = [key for key in self.models.get(name, {}) if version in (None, key)]
            if not served:
                raise self._absent(name, version)
            for each in served:
                self._take(name, each)
                self.unloaded |= {(name, each)}

    def rescan(self) -> None:
        """Look at the folder once: load what is new or changed, drop what is gone."""
        with self._turn:
            found = folders(self.folder)
            for key in [key for key in self._seen if key not in found]:
                del self._seen[key]
                self._take(*key)
                self._forgive(*key)
                self.unloaded -= {key}
            for key, path in found.items():
                if key not in self.unloaded and self._seen.get(key) != fingerprint(path):
                    self._open(key, path)

    def _open(self, key: tuple[str, str], path: Path) -> str:
        """Load one version; returns why it is refused, empty if it is served."""
        self._seen[key] = fingerprint(path)
        try:
            model = Model(read(path, self._trust), **self._options)
        except Exception as error:  # whatever is wrong with one bundle, the others are served
            return self._refuse(*key, error)
        self._put(model, *key)
        return ""


def _known(engine: str) -> str:
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    return engine


def folders(store: Path) -> dict[tuple[str, str], Path]:
    """Every version's folder by (name, version), in numeric order."""
    found = {}
    for name in _folders(store):
        try:
            versions = _folders(name)
        except PermissionError:  # such as lost+found, where the store is a disk of its own
            log.warning("%s cannot be read and is left out", name.name)
            continue
        except OSError:  # it went between the two looks
            continue
        found.update({(name.name, version.name): version for version in versions})
    return found


def fingerprint(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Names, sizes in bytes and times of a folder's files: what changes when a bundle is written again.

    Tools that copy keep the time of the last write; that of the last change to the file's entry is the system's own. Inode
    numbers are left out, because some network file systems invent them anew at every look.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        try:
            state = path.stat()
        except OSError:  # it is being moved or deleted
            continue
        found.append((path.relative_to(folder).as_posix(), state.st_size, state.st_mtime_ns, state.st_ctime_ns))
    return tuple(found)


def _folders(parent: Path) -> list[Path]:
    """Sub-folders in numeric order; hidden ones, such as a bundle being written, are left out."""
    found = [path for path in parent.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))]
    return sorted(found, key=lambda path: natural(path.name))


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key with numbers by value: 9 before 10, 1.9 before 1.10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.findall(r"\d+|\D+", name)]


def read(folder: Path, trust: bundles.Trust = ()) -> Bundle:
    """Verified bundle whose place in the store is the name and version it declares.

    Args:
        folder: `<name>/<version>` in a store.
        trust: public keys, of which one must have signed it.

    Raises:
        BundleError: the bundle may not be loaded, or lies elsewhere than it says.
    """
    bundle = bundles.read(folder, trust=trust)
    declared = (bundle.manifest.name, bundle.manifest.version)
    if declared != (folder.parent.name, folder.name):
        raise BundleError(f"{folder} declares itself {'/'.join(declared)}; move it there or export it again")
    return bundle
