"""What must outlive the server: traffic rules, counts and history in one SQLite file. Never in the way of an answer.

A folder that cannot be written, a full disk or another server on the same file make `State.problem` say so, and the
server goes on with what it has in memory; what was not written is offered again at the next save.
"""

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

log = logging.getLogger("serve")

FILE = "traffic.sqlite"
KEPT_EVENTS = 10_000  # of history; older ones are dropped
PATIENCE = 60.0  # seconds between two tries to write where writing failed

# the scheme of version n is what the first n of these make; a change is one more, never an edit
MIGRATIONS = (
    """
    CREATE TABLE plans (model TEXT PRIMARY KEY, plan TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE tallies (
        model TEXT, version TEXT, kind TEXT, tally TEXT NOT NULL, PRIMARY KEY (model, version, kind)
    ) WITHOUT ROWID;
    CREATE TABLE history (
        id INTEGER PRIMARY KEY, time REAL NOT NULL, model TEXT NOT NULL, event TEXT NOT NULL, version TEXT NOT NULL,
        detail TEXT NOT NULL
    );
    CREATE INDEX history_of_model ON history (model, id);
    CREATE TABLE reported (id INTEGER PRIMARY KEY, experiment TEXT NOT NULL, unit INTEGER NOT NULL);
    """,
)

TallyKey = tuple[str, str, str]  # model, version, kind


class Event(msgspec.Struct, frozen=True):
    """One line of history.

    Attributes:
        time: seconds since 1970.
        model: whose traffic it was.
        event: what happened, such as "canary" or "rolled_back".
        version: of the model, empty if it was about none.
        detail: why, or with which figures, in words.
    """

    time: float
    model: str
    event: str
    version: str
    detail: str


class Saved(NamedTuple):
    """Everything a file holds: plans and tallies as JSON, history and reported units oldest first."""

    plans: dict[str, str]
    tallies: dict[TallyKey, str]
    events: list[Event]
    reported: list[tuple[str, int]]


class State:
    """The file. Methods may be called from any thread; one server at a time writes.

    Attributes:
        folder: where the file is, None to keep nothing.
        problem: why nothing is being saved, empty while it is.
        begun: how many times a new file was begun, into which everything has to be written.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.problem = "" if folder else "no folder for the state was given; rules last until the server stops"
        self.begun = 0
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._owner = -1  # descriptor of the lock file, held while this server writes
        self._next_try = 0.0

    def load(self, events: int = 1000, reported: int = 100_000) -> Saved:
        """Read what an earlier server left; nothing if it left nothing, or if `problem` then tells why not.

        Args:
            events: most lines of history, the newest.
            reported: most reported units, the newest.
        """
        nothing = Saved({}, {}, [], [])
        if self.folder is None:
            return nothing
        with self._lock:
            file = self.folder / FILE
            try:
                connection = self._open() or self._open_to_read()
                if connection is None:
                    return nothing
                try:
                    return _read(connection, events, reported)
                finally:
                    if connection is not self._connection:
                        connection.close()
            except sqlite3.DatabaseError as error:
                self._close()
                self._say(f"{file} cannot be read ({error})")
                if _damaged(error):
                    self._move_aside(file)
                return nothing

    def save(
        self,
        plans: dict[str, str | None],
        tallies: dict[TallyKey, str | None],
        events: Iterable[Event],
        reported: Iterable[tuple[str, int]],
        forgotten: Iterable[str] = (),
    ) -> bool:
        """Write changes in one transaction.

        Args:
            plans: JSON by model, None where it is to be deleted.
            tallies: JSON by model, version and kind, None where it is to be deleted.
            events: new lines of history.
            reported: experiments and units whose outcome was counted.
            forgotten: experiments whose units need not be known any more.

        Returns:
            Whether they are on disk; if not, `problem` says why, and the caller keeps them for the next time.
        """
        if self.folder is None:
            return False
        with self._lock:
            if self._connection is None and time.monotonic() < self._next_try:
                return False
            try:
                connection = self._open()
                if connection is None:
                    return False
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    _write(connection, plans, tallies, events, reported, forgotten)
            except sqlite3.Error as error:
                self._close()
                self._say(f"{self.folder / FILE} cannot be written ({error})")
                if _damaged(error):
                    self._move_aside(self.folder / FILE)
                return False
            if self.problem:
                log.warning("the state is saved again in %s", self.folder)
                self.problem = ""
            return True

    def close(self) -> None:
        """Let go of the file, so that another server may write it."""
        with self._lock:
            self._close()

    def retry(self) -> None:
        """Let the next save try at once, however short ago one failed."""
        self._next_try = 0.0

    def _open(self) -> sqlite3.Connection | None:
        """The connection that may write, or None and a problem."""
        if self._connection is not None:
            return self._connection
        assert self.folder is not None
        file = self.folder / FILE
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._own():
                self._say(f"another server writes {file}; stop it, or give this one a folder of its own with --state")
                return None
        except OSError as error:
            self._say(f"{self.folder} cannot be written ({error.strerror or error})")
            return None
        connection = sqlite3.connect(file, timeout=1, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")  # a power cut may lose the last second, never the file
            found = connection.execute("PRAGMA user_version").fetchone()[0]
            if found > len(MIGRATIONS):
                self._say(f"{file} is of scheme {found}, this server knows {len(MIGRATIONS)}; update zooroad")
                connection.close()
                self._disown()
                return None
            for number in range(found, len(MIGRATIONS)):
                connection.executescript(f"BEGIN;{MIGRATIONS[number]};PRAGMA user_version={number + 1};COMMIT;")
        except sqlite3.Error:
            connection.close()
            self._disown()
            raise
        self.begun += found == 0
        self._connection = connection
        return connection

    def _open_to_read(self) -> sqlite3.Connection | None:
        """A connection for a file that must not be written, if there is one of this scheme."""
        assert self.folder is not None
        file = self.folder / FILE
        if not file.is_file():
            return None
        alone = "&immutable=1" if not os.access(self.folder, os.W_OK) else ""  # no -shm file can be made there
        connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro{alone}", uri=True, timeout=1)
        if connection.execute("PRAGMA user_version").fetchone()[0] != len(MIGRATIONS):
            connection.close()
            return None
        return connection

    def _own(self) -> bool:
        """Whether this server is the one that writes; the system takes the lock back when a process ends."""
        assert self.folder is not None
        try:
            from fcntl import LOCK_EX, LOCK_NB, flock
        except ImportError:  # Windows, where SQLite's own locks must do
            return True
        if self._owner < 0:
            owner = os.open(self.folder / f"{FILE}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                flock(owner, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                os.close(owner)
                return False
            self._owner = owner
        return True

    def _disown(self) -> None:
        if self._owner >= 0:
            os.close(self._owner)
            self._owner = -1

    def _close(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
        self._disown()

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            log.error("%s; rules and history last until the server stops", problem)
        self.problem = problem
        self._next_try = time.monotonic() + (1.0 if "another server" in problem else PATIENCE)

    def _move_aside(self, file: Path) -> None:
        """Give a damaged file another name, so that a new one can be begun."""
        aside = file.with_name(f"{FILE}.damaged-{int(time.time())}")
        try:
            file.rename(aside)
        except OSError:
            return
        for ending in ("-wal", "-shm"):
            file.with_name(f"{FILE}{ending}").unlink(missing_ok=True)
        log.error("%s was moved to %s, and a new one begun", file, aside.name)
        self.retry()


def _damaged(error: sqlite3.Error) -> bool:
    """Whether the file itself is at fault, and not the disk, a lock or a permission."""
    return type(error) is sqlite3.DatabaseError


def _read(connection: sqlite3.Connection, events: int, reported: int) -> Saved:
    told = connection.execute(
        "SELECT time, model, event, version, detail FROM history ORDER BY id DESC LIMIT ?", (events,)
    )
    units = connection.execute("SELECT experiment, unit FROM reported ORDER BY id DESC LIMIT ?", (reported,))
    tallies = connection.execute("SELECT model, version, kind, tally FROM tallies")
    return Saved(
        dict(connection.execute("SELECT model, plan FROM plans")),
        {(model, version, kind): tally for model, version, kind, tally in tallies},
        [Event(*row) for row in told][::-1],
        units.fetchall()[::-1],
    )


def _write(
    connection: sqlite3.Connection,
    plans: dict[str, str | None],
    tallies: dict[TallyKey, str | None],
    events: Iterable[Event],
    reported: Iterable[tuple[str, int]],
    forgotten: Iterable[str],
) -> None:
    gone: list[Any] = [(model,) for model, plan in plans.items() if plan is None]
    connection.executemany("DELETE FROM plans WHERE model = ?", gone)
    kept: list[Any] = [(model, plan) for model, plan in plans.items() if plan is not None]
    connection.executemany("INSERT OR REPLACE INTO plans VALUES (?, ?)", kept)
    gone = [key for key, tally in tallies.items() if tally is None]
    connection.executemany("DELETE FROM tallies WHERE model = ? AND version = ? AND kind = ?", gone)
    kept = [(*key, tally) for key, tally in tallies.items() if tally is not None]
    connection.executemany("INSERT OR REPLACE INTO tallies VALUES (?, ?, ?, ?)", kept)
    told = [(event.time, event.model, event.event, event.version, event.detail) for event in events]
    connection.executemany("INSERT INTO history (time, model, event, version, detail) VALUES (?, ?, ?, ?, ?)", told)
    if told:
        connection.execute("DELETE FROM history WHERE id <= (SELECT max(id) FROM history) - ?", (KEPT_EVENTS,))
    connection.executemany("DELETE FROM reported WHERE experiment = ?", [(name,) for name in forgotten])
    connection.executemany("INSERT INTO reported (experiment, unit) VALUES (?, ?)", list(reported))
