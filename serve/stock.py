"""A store that an event loop looks at again and again, while calls are answered beside.

What arrives is verified, proven where it computes, and only then served in place of what was there.
"""

import asyncio
import logging
from abc import abstractmethod
from pathlib import Path
from typing import Any

from serve.errors import RequestError
from serve.manifest import Bundle, BundleError, Trust
from serve.store import Shelf, fingerprint, folders, read

log = logging.getLogger("serve")


class Stock(Shelf):
    """Versions that come and go on disk; see `Shelf` for its attributes. Where they compute is a subclass' to say."""

    def __init__(self, folder: str | Path, *, traffic: Any = None, trust: Trust = ()) -> None:
        """Look whether the folder can be a store.

        Args:
            folder: the store.
            traffic: decides between versions when a request names none; the latest answers if None.
            trust: public keys, of which one must have signed a bundle; see `serve.manifest.load_trust`.

        Raises:
            FileNotFoundError: no such folder.
            BundleError: the folder is itself a bundle.
        """
        super().__init__(folder, traffic=traffic)
        self._trust = trust
        self._turn = asyncio.Lock()
        self._seen: dict[tuple[str, str], Any] = {}
        self._unsettled: dict[tuple[str, str], Any] = {}

    @abstractmethod
    def _make(self, bundle: Bundle) -> Any:
        """A verified bundle as a model that is not served yet.

        Raises:
            BundleError: it cannot be served here.
            OSError: its files cannot be looked at.
        """

    @abstractmethod
    async def _prove(self, model: Any, lazy: bool) -> str:
        """Have a model opened where it computes; returns why it is refused, "" if it is not."""

    @abstractmethod
    def _retire(self, model: Any) -> None:
        """Let go of a model that is served no longer, once its calls are answered."""

    async def _load_now(self, name: str, version: str | None) -> None:
        found = await asyncio.to_thread(self._on_disk, name, version)
        async with self._turn:
            reasons = [reason for key, path in found.items() if (reason := await self._introduce(key, path))]
        if reasons:
            raise RequestError("refused", f"model {name!r} is refused: {'; '.join(reasons)}", 422)

    async def _unload_now(self, name: str, version: str | None) -> None:
        async with self._turn:
            leaving = [key for key in self.models.get(name, {}) if version in (None, key)]
            if not leaving:
                raise self._absent(name, version)
            for each in leaving:
                served = self._take(name, each)
                self.unloaded |= {(name, each)}
                self._retire(served)

    async def _watch(self, seconds: float) -> None:
        """Look at the folder again and again, with so many seconds between."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self._scan(settled=False)
            except Exception as error:  # such as a disk that fails; the next look may be better
                log.error("the store cannot be looked at: %s: %s", type(error).__name__, error)

    async def _scan(self, *, settled: bool) -> None:
        """Look at the folder once.

        Args:
            settled: whether a folder is complete at first sight; else it must look the same twice, since it may be
                being copied.
        """
        async with self._turn:
            found = await asyncio.to_thread(_look, self.folder)
            missing = [key for key in self._seen if key not in found]
            for key in await asyncio.to_thread(_gone, self.folder, missing):
                del self._seen[key]
                served = self._take(*key)
                if served is not None:
                    self._retire(served)
                self._forgive(*key)
                self.unloaded -= {key}
            fresh = {}
            for key, (path, state) in found.items():
                if key in self.unloaded or self._seen.get(key) == state:
                    self._unsettled.pop(key, None)
                elif settled or self._unsettled.get(key) == state:
                    fresh[key] = path
                else:
                    self._unsettled[key] = state
            if self.models:
                for key, path in fresh.items():  # one after another, since there are calls to answer beside
                    await self._introduce(key, path)
            else:
                await asyncio.gather(*(self._introduce(key, path, lazy=True) for key, path in fresh.items()))

    async def _introduce(self, key: tuple[str, str], path: Path, *, lazy: bool = False) -> str:
        """Verify a version, have the workers open it, and serve it then; returns why it is refused, "" if it is not.

        Args:
            key: name and version.
            path: of its folder.
            lazy: whether what finds no room in memory is left to be opened by its first call.
        """
        state, bundle = await asyncio.to_thread(_read, path, self._trust)
        self._seen[key] = state
        self._unsettled.pop(key, None)
        if isinstance(bundle, Exception):
            return self._refuse(*key, bundle)
        try:
            served = self._make(bundle)
        except (BundleError, OSError) as error:
            return self._refuse(*key, error)
        reason = await self._prove(served, lazy)
        if reason:
            return self._refuse(*key, BundleError(reason))
        former = self.models.get(key[0], {}).get(key[1])
        self._put(served, *key)
        if former is not None:
            self._retire(former)
        return ""


def _look(folder: Path) -> dict[tuple[str, str], tuple[Path, Any]]:
    return {key: (path, fingerprint(path)) for key, path in folders(folder).items()}


def _gone(folder: Path, keys: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Versions whose folders are no more, and not only out of sight because a disk fails."""
    gone = []
    for name, version in keys:
        try:
            (folder / name / version).stat()
        except (FileNotFoundError, NotADirectoryError):
            gone.append((name, version))
        except OSError as error:
            log.error("%s/%s cannot be looked at and stays: %s", name, version, error.strerror)
    return gone


def _read(path: Path, trust: Trust) -> tuple[Any, Bundle | Exception]:
    """A version's fingerprint, and its bundle or what is wrong with it."""
    state = fingerprint(path)
    try:
        return state, read(path, trust)
    except Exception as error:  # whatever is wrong with one bundle, the others are served
        return state, error
