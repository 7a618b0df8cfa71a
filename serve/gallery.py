"""Known identities by their embeddings: enrolled, removed and searched. One SQLite file; no pictures, no HTTP.

What is kept is a name, as it was given, and unit vectors for each version of a model, since those of two models cannot be
compared. Vectors of a face are biometric data: see SECURITY.md.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from serve.errors import RequestError

FILE = "gallery.sqlite"
MOST = 100_000  # embeddings of one version of a model
MOST_EACH = 64  # embeddings of one name
LONGEST = 128  # characters of a name

# the scheme of version n is what the first n of these make; a change is one more, never an edit
MIGRATIONS = (
    """
    CREATE TABLE embeddings (
        id INTEGER PRIMARY KEY, model TEXT NOT NULL, version TEXT NOT NULL, digest TEXT NOT NULL, name TEXT NOT NULL,
        embedding BLOB NOT NULL, enrolled REAL NOT NULL
    );
    CREATE INDEX embeddings_of_name ON embeddings (model, version, digest, name);
    """,
)


class Of(NamedTuple):
    """Whose embeddings are meant: a model, its version, and the digest of that bundle, so that no other takes its place."""

    model: str
    version: str
    digest: str = ""


class Match(NamedTuple):
    """A known identity and how similar its nearest embedding is, the cosine in -1 … 1."""

    name: str
    similarity: float


class Gallery:
    """Known identities. Methods may be called from any thread, and several processes may share a file."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """Open the gallery; the file is made with the first identity.

        Args:
            folder: where the file is, None to keep identities in memory until the process ends.
        """
        self.folder = None if folder is None else Path(folder)
        self._turn = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._seen = -1  # SQLite's count of what other connections have changed
        self._known: dict[Of, tuple[list[str], np.ndarray]] = {}

    def enrol(self, of: Of, name: str, embeddings: np.ndarray) -> int:
        """Add embeddings of an identity.

        Args:
            of: the version of the model that gave them.
            name: of the identity; those it has already stay.
            embeddings: `(count, length)`; they are brought to length 1.

        Returns:
            How many embeddings the name has now.

        Raises:
            RequestError: 422, a name that cannot be taken, embeddings that have no direction or another length than the
                ones before; 409, too many; 503, the file cannot be written.
        """
        name, unit = checked_name(name), _unit(embeddings)
        with self._turn, self._open(write=True) as connection:
            names, known = self._of(of)
            if len(names) and known.shape[1] != unit.shape[1]:
                message = f"the gallery has embeddings of {known.shape[1]} numbers, got {unit.shape[1]}"
                raise RequestError("bad_shape", message)
            held = names.count(name)
            if held + len(unit) > MOST_EACH or len(names) + len(unit) > MOST:
                message = (
                    f"a name may have {MOST_EACH} embeddings and a version of a model {MOST}; {name!r} has {held}, all "
                    f"together {len(names)}, and {len(unit)} more were sent; remove some first"
                )
                raise RequestError("gallery_full", message, 409)
            rows = [(*of, name, vector.astype("<f4").tobytes(), time.time()) for vector in unit]
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(
                    "INSERT INTO embeddings (model, version, digest, name, embedding, enrolled) VALUES (?, ?, ?, ?, ?, ?)",
                    rows,
                )
            self._known.pop(of, None)
            return held + len(unit)

    def remove(self, of: Of, name: str) -> int:
        """Forget an identity; the file no longer holds its embeddings.

        Returns:
            How many embeddings it had.

        Raises:
            RequestError: 503, the file cannot be written.
        """
        with self._turn, self._open(write=True) as connection:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                found = connection.execute(
                    "DELETE FROM embeddings WHERE model = ? AND version = ? AND digest = ? AND name = ?", (*of, name)
                ).rowcount
            if found:  # deleted pages were overwritten; what the write-ahead log still has goes too
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._known.pop(of, None)
            return int(found)

    def names(self, of: Of) -> dict[str, int]:
        """Embeddings of each name, names in alphabetical order.

        Raises:
            RequestError: 503, the file cannot be read.
        """
        with self._turn, self._open():
            found, _ = self._of(of)
            return {name: found.count(name) for name in sorted(set(found))}

    def search(self, of: Of, embeddings: np.ndarray, top: int = 5) -> list[list[Match]]:
        """The known identities nearest to each embedding.

        Args:
            of: the version of the model that gave the embeddings.
            embeddings: `(rows, length)`.
            top: most identities of each row.

        Returns:
            Matches of each row, the most similar first; each name once, by the nearest of its embeddings.

        Raises:
            RequestError: 422, embeddings that have no direction; 503, the file cannot be read.
        """
        unit = _unit(embeddings)
        with self._turn, self._open():
            names, known = self._of(of)
        if not names:
            return [[] for _ in unit]
        found = []
        for similarity in unit @ known.T:  # (names,)
            nearest: dict[str, float] = {}
            for place in np.argsort(-similarity, kind="stable"):
                nearest.setdefault(names[place], float(similarity[place]))
                if len(nearest) == top:
                    break
            found.append([Match(name, round(min(1.0, value), 6)) for name, value in nearest.items()])
        return found

    def close(self) -> None:
        """Let go of the file."""
        with self._turn:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _of(self, of: Of) -> tuple[list[str], np.ndarray]:
        """Names and unit vectors, `(names, length)`, as they are in the file now."""
        connection = self._connection
        if connection is None:
            return [], np.zeros((0, 0), np.float32)
        changed = connection.execute("PRAGMA data_version").fetchone()[0]
        if changed != self._seen:
            self._known.clear()
            self._seen = changed
        if of not in self._known:
            rows = connection.execute(
                "SELECT name, embedding FROM embeddings WHERE model = ? AND version = ? AND digest = ? ORDER BY id", of
            ).fetchall()
            vectors = [np.frombuffer(held, "<f4") for _, held in rows]
            self._known[of] = [name for name, _ in rows], np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)
        return self._known[of]

    @contextmanager
    def _open(self, write: bool = False) -> Iterator[Any]:
        """The connection, or None where there is no file to read; a fault of the file becomes an answer."""
        try:
            if self._connection is None and (write or self.folder is None or (self.folder / FILE).is_file()):
                self._connection = self._connect()
            yield self._connection
        except (sqlite3.Error, OSError) as error:
            self.close()
            what = "written" if write else "read"
            message = f"the gallery cannot be {what} ({error}); the operator has to look at its file"
            raise RequestError("gallery_failed", message, 503) from error

    def _connect(self) -> sqlite3.Connection:
        place = ":memory:"
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder / FILE
            file.touch(mode=0o600)  # whom it knows is nobody else's business
            place = str(file)
        connection = sqlite3.connect(place, timeout=5, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA secure_delete=ON")  # what is removed is overwritten
            found = connection.execute("PRAGMA user_version").fetchone()[0]
            if found > len(MIGRATIONS):
                raise sqlite3.DatabaseError(
                    f"its scheme is {found}, this server knows {len(MIGRATIONS)}: update zooroad"
                )
            for number in range(found, len(MIGRATIONS)):
                connection.executescript(f"BEGIN;{MIGRATIONS[number]};PRAGMA user_version={number + 1};COMMIT;")
        except sqlite3.Error:
            connection.close()
            raise
        return connection


def checked_name(name: str) -> str:
    """A name without blanks around it.

    Raises:
        RequestError: 422, it is empty, too long or holds characters that cannot be printed.
    """
    name = name.strip()
    if not 0 < len(name) <= LONGEST or not name.isprintable():
        raise RequestError("bad_name", f"a name has 1 … {LONGEST} printable characters, got {name[:40]!r}")
    return name


def similarity(left: np.ndarray, right: np.ndarray) -> float:
    """Cosine of the angle between two embeddings, in -1 … 1."""
    one, other = _unit(np.stack([left, right]))
    return round(float(np.clip(one @ other, -1, 1)), 6)


def _unit(embeddings: np.ndarray) -> np.ndarray:
    """Vectors of length 1, float32."""
    vectors = np.asarray(embeddings, np.float64)
    if vectors.ndim != 2 or not len(vectors):
        raise RequestError("bad_shape", f"embeddings are (count, length), got {vectors.shape}")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(vectors).all() and (lengths > 0).all()):
        raise RequestError("not_finite", "an embedding of zeros, NaN or infinity has no direction")
    return (vectors / lengths).astype(np.float32)
