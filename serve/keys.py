"""API keys as they are stored: made, rotated and revoked in one JSON file.

A token is `zk_<id>_<secret>` with 256 random bits in the secret. The file holds a SHA-256 of each token: a secret that
cannot be guessed needs no slow hash.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from serve.errors import did_you_mean

SCOPES = ("predict", "explain", "admin", "metrics")
FORMAT = 1
TOKEN = re.compile(r"zk_([0-9a-f]{8})_[0-9a-f]{64}")


@dataclass(frozen=True)
class Rate:
    """A token bucket's size.

    Attributes:
        per_second: requests a second in the long run, above 0.
        burst: requests at once after a pause, at least 1.
    """

    per_second: float
    burst: int

    def __post_init__(self) -> None:
        if not (0 < self.per_second < math.inf) or self.burst < 1:
            raise ValueError(
                f"a rate is above 0 requests a second with a burst of at least 1, got {self.per_second:g} and {self.burst}"
            )


def rate(per_second: float | None, burst: int | None = None) -> Rate | None:
    """A limit as the command line gives it; a burst of one second's requests if none is said, no limit without a rate.

    Raises:
        ValueError: out of range, or a burst without a rate.
    """
    if per_second is None:
        if burst is not None:
            raise ValueError(f"a burst of {burst} means nothing without a rate; give requests a second too")
        return None
    return Rate(per_second, max(1, math.ceil(per_second)) if burst is None and per_second > 0 else burst or 0)


@dataclass(frozen=True)
class Key:
    """What is stored of one API key; the token itself is not.

    Attributes:
        id: eight hexadecimal digits, which stand in the token and in logs.
        name: who has it, as text for people.
        sha256: of the whole token, hexadecimal.
        scopes: among `SCOPES`.
        models: names it may ask, all if empty.
        created, expires, revoked: UTC times as ISO 8601, or None.
        rate: requests a second, None for the server's own limit.
        burst: requests at once, None with `rate`.
        replaces: id of the key it was rotated from, or "".
    """

    id: str
    name: str
    sha256: str
    scopes: tuple[str, ...]
    models: tuple[str, ...] = ()
    created: str = ""
    expires: str | None = None
    revoked: str | None = None
    rate: float | None = None
    burst: int | None = None
    replaces: str = ""

    def state(self, now: datetime | None = None) -> str:
        """ "active", "expired" or "revoked"."""
        if self.revoked is not None:
            return "revoked"
        ends = seconds(self.expires)
        return "expired" if ends is not None and ends <= (now or datetime.now(UTC)).timestamp() else "active"


def seconds(moment: str | None) -> float | None:
    return None if moment is None else datetime.fromisoformat(moment).timestamp()


class KeyFile:
    """API keys in a JSON file, which is replaced whole at every change."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def read(self) -> list[Key]:
        """Every key, oldest first.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a key file, or one that others than its owner can write to.
        """
        with self.path.open("rb") as file:
            if os.name == "posix" and stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o022:
                raise ValueError(
                    f"{self.path} can be written by others, who could add keys; run: chmod 600 {self.path}"
                )
            text = file.read()
        try:
            raw = json.loads(text)
            if raw["format"] != FORMAT:
                raise ValueError(f"format {raw['format']!r} is not {FORMAT}")
            keys = [_key(entry) for entry in raw["keys"]]
            if len({key.id for key in keys}) < len(keys):
                raise ValueError("two keys have one id")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"{self.path} is not a key file: {error}; make one with: zoo keys make NAME") from error
        return keys

    def make(
        self,
        name: str,
        scopes: Iterable[str] = ("predict",),
        *,
        models: Iterable[str] = (),
        lasts: timedelta | None = None,
        limit: Rate | None = None,
    ) -> tuple[Key, str]:
        """Add a key.

        Args:
            name: who gets it.
            scopes: what it may do.
            models: names it may ask, all if empty.
            lasts: time until it expires, never if None.
            limit: its own rate, the server's for keys if None.

        Returns:
            The stored key and the token, which exists nowhere else.

        Raises:
            ValueError: an unknown scope, no scope, no name, or a time that is not above 0.
        """
        key, token = _new(name, scopes, models=tuple(models), lasts=lasts, limit=limit)
        with self._changing(create=True) as keys:
            keys.append(key)
        return key, token

    def rotate(self, id: str, *, overlap: timedelta = timedelta(days=7)) -> tuple[Key, str]:
        """Add a successor with the same rights; the old key works on until the overlap is over.

        Args:
            id: of the key to replace.
            overlap: time in which both work, 0 or more. A key that expires earlier still does.

        Returns:
            The successor and its token. It expires as long after now as the old one did after its making.

        Raises:
            LookupError: no such key.
            ValueError: it is revoked, expired or rotated already.
        """
        if overlap < timedelta(0):
            raise ValueError(f"the overlap must be 0 or more, got {overlap}")
        with self._changing() as keys:
            old = _find(keys, id)
            if old.state() != "active":
                raise ValueError(f"key {id} is {old.state()}; make a new one with: zoo keys make {old.name!r}")
            heirs = [key.id for key in keys if key.replaces == id and key.revoked is None]
            if heirs:
                raise ValueError(f"key {id} was rotated already; its successor is {heirs[0]}")
            lasts = None
            if old.expires is not None:
                lasts = datetime.fromisoformat(old.expires) - datetime.fromisoformat(old.created)
            limit = None if old.rate is None else rate(old.rate, old.burst)
            key, token = _new(old.name, old.scopes, models=old.models, lasts=lasts, limit=limit, replaces=old.id)
            ends = _moment(overlap)
            if old.expires is None or datetime.fromisoformat(ends) < datetime.fromisoformat(old.expires):
                keys[keys.index(old)] = replace(old, expires=ends)
            keys.append(key)
        return key, token

    def revoke(self, id: str) -> Key:
        """End a key at once; a running server notices within a second.

        Raises:
            LookupError: no such key.
        """
        with self._changing() as keys:
            old = _find(keys, id)
            gone = replace(old, revoked=old.revoked or _moment(timedelta(0)))
            keys[keys.index(old)] = gone
        return gone

    @contextlib.contextmanager
    def _changing(self, create: bool = False) -> Iterator[list[Key]]:
        """The keys, written back when all went well; one process at a time."""
        lock = self.path.with_name(f"{self.path.name}.lock")
        with lock.open("a") as held:
            lock.chmod(0o600)
            with contextlib.suppress(ImportError):  # no fcntl on Windows
                import fcntl

                fcntl.flock(held, fcntl.LOCK_EX)
            keys = [] if create and not self.path.exists() else self.read()
            yield keys
            with tempfile.NamedTemporaryFile(  # made with mode 0600
                "w", dir=self.path.parent, prefix=f".{self.path.name}-", delete=False, encoding="utf-8"
            ) as draft:
                try:
                    json.dump({"format": FORMAT, "keys": [asdict(key) for key in keys]}, draft, indent=1)
                    draft.flush()
                    os.fsync(draft.fileno())
                    Path(draft.name).replace(self.path)
                except BaseException:
                    Path(draft.name).unlink(missing_ok=True)
                    raise


def _new(
    name: str,
    scopes: Iterable[str],
    *,
    models: tuple[str, ...],
    lasts: timedelta | None,
    limit: Rate | None,
    replaces: str = "",
) -> tuple[Key, str]:
    """A key and its token."""
    if lasts is not None and lasts <= timedelta(0):
        raise ValueError(f"a key must last longer than 0 seconds, got {lasts}")
    id = secrets.token_hex(4)
    token = f"zk_{id}_{secrets.token_hex(32)}"
    key = Key(
        id=id,
        name=name,
        sha256=hashlib.sha256(token.encode()).hexdigest(),
        scopes=tuple(dict.fromkeys(scopes)),
        models=models,
        created=_moment(timedelta(0)),
        expires=None if lasts is None else _moment(lasts),
        rate=limit.per_second if limit else None,
        burst=limit.burst if limit else None,
        replaces=replaces,
    )
    return _checked(key), token


def _key(entry: dict[str, Any]) -> Key:
    """A key from its JSON."""
    return _checked(Key(**{**entry, "scopes": tuple(entry["scopes"]), "models": tuple(entry["models"])}))


def _checked(key: Key) -> Key:
    if not (isinstance(key.id, str) and re.fullmatch(r"[0-9a-f]{8}", key.id)):
        raise ValueError(f"a key's id is eight hexadecimal digits, got {key.id!r}")
    if not (isinstance(key.sha256, str) and re.fullmatch(r"[0-9a-f]{64}", key.sha256)):
        raise ValueError(f"key {key.id} has no SHA-256 of its token")
    if not isinstance(key.name, str) or not key.name.strip() or not key.name.isprintable():
        raise ValueError(f"a key needs a name that says who has it, got {key.name!r}")
    if not key.scopes:
        raise ValueError(f"a key needs a scope, one of {', '.join(SCOPES)}")
    for scope in key.scopes:
        if scope not in SCOPES:
            raise ValueError(f"no scope is called {scope!r}; known are {', '.join(SCOPES)}")
    if not all(isinstance(model, str) for model in key.models):
        raise ValueError(f"models of a key are names, got {key.models!r}")
    for moment in (key.created, key.expires, key.revoked):
        if moment is not None and datetime.fromisoformat(moment).tzinfo is None:
            raise ValueError(f"times of a key are in UTC such as 2030-01-31T00:00:00+00:00, got {moment!r}")
    rate(key.rate, key.burst)
    return key


def _find(keys: list[Key], id: str) -> Key:
    for key in keys:
        if key.id == id:
            return key
    raise LookupError(f"no key has the id {id!r} ({len(keys)} are known).{did_you_mean(id, [key.id for key in keys])}")


def _moment(later: timedelta) -> str:
    return (datetime.now(UTC) + later).isoformat(timespec="seconds")
