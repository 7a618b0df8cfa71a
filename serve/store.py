"""Stores: every bundle under `folder/<name>/<version>/` that may be served, what is refused and why. No HTTP."""

import logging
import re
import threading
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from serve import manifest as bundles
from serve.errors import RequestError, did_you_mean
from serve.manifest import Bundle, BundleError
from serve.runtime import Model
from serve.session import check_engine
from serve.writing import GENERATOR, MOST

log = logging.getLogger("serve")


class Shelf(ABC):
    """Versions of models by name: what is served, what is refused and why. Says nothing of where they compute.

    Attributes:
        folder: the store, `folder/<name>/<version>/`.
        models: name -> version -> model, versions oldest first by numeric order. It is replaced, never changed, so that
            any thread may read it.
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

    @abstractmethod
    def load(self, name: str, version: str | None = None) -> None:
        """Load a version from disk, or every version of the model; where models compute decides how."""

    @abstractmethod
    def unload(self, name: str, version: str | None = None) -> None:
        """Stop serving a version, or the whole model, until it is loaded again."""

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
            draw: False for the version that most requests get, where nothing is predicted and no share is to be
                counted.

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
        texts: int = MOST,
        generator: str = GENERATOR,
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
            texts: texts that each model writes at a time.
            generator: "module:name" of what writes them.
            traffic: decides between versions when a request names none; the latest answers if None.
            trust: public keys, of which one must have signed a bundle; see `serve.manifest.load_trust`.

        Raises:
            FileNotFoundError: no such folder.
            BundleError: the folder is itself a bundle.
            ValueError: no such engine.
        """
        super().__init__(folder, traffic=traffic)
        self._options: dict[str, Any] = dict(
            precision=precision,
            threads=threads,
            max_batch=max_batch,
            engine=check_engine(engine),
            most_texts=texts,
            generator=generator,
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

    Tools that copy keep the time of the last write; that of the last change to the file's entry is the system's own.
    Inode numbers are left out, because some network file systems invent them anew at every look.
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
