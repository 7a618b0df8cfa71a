"""Texts of one model that are continued, or painted, together: who asked for which, and what each is told after a step. No HTTP."""

import itertools
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from serve.continuations import Asked, failure, paints
from serve.errors import RequestError, UnreadError, late
from serve.manifest import Manifest
from serve.sampling import Ask

if TYPE_CHECKING:
    from serve.generation import Piece

log = logging.getLogger("serve")

GENERATOR = "serve.generation:Running"
PAINTER = "serve.painting:Painting"
MOST = 16  # texts that are continued at a time, one with beams as often: each keeps what its tokens left in every layer


class Generator(Protocol):
    """What continues texts; see `serve.generation.Running`."""

    @property
    def idle(self) -> bool: ...

    def add(self, text: str, ask: Ask) -> int: ...

    def step(self) -> "list[tuple[int, Piece]]": ...

    def drop(self, row: int) -> None: ...


def opened(generator: str, folder: Path, manifest: Manifest, precision: str, threads: int) -> Generator | None:
    """The generator of a bundle, None for a model that continues no texts.

    Args:
        generator: "module:name" of its class; the usual one is another for pictures.
        folder: of the bundle.
        manifest: its manifest.
        precision: stored form that is served.
        threads: that a step may use.

    Raises:
        BundleError: its files do not load.
    """
    if not manifest.generation:
        return None
    if generator == GENERATOR and paints(manifest):
        generator = PAINTER
    module, _, name = generator.partition(":")
    made: Generator = getattr(import_module(module), name)(folder, manifest, precision, threads=threads)
    return made


class Part:
    """What one request is told after a step.

    Attributes:
        body: bytes for its client.
        tokens: of its texts so far.
        rows: how many texts it had, once all have ended; 0 before.
        header_length: bytes of JSON before binary tensors; None if the body is JSON only.
        error: why it ends without an answer.
    """

    __slots__ = ("body", "error", "header_length", "rows", "tokens")

    def __init__(
        self,
        body: bytes,
        tokens: int,
        rows: int = 0,
        header_length: int | None = None,
        error: RequestError | None = None,
    ) -> None:
        self.body, self.tokens, self.rows, self.header_length, self.error = body, tokens, rows, header_length, error

    @property
    def last(self) -> bool:
        """Whether nothing comes after it."""
        return self.rows > 0 or self.error is not None


class Writing:
    """Requests to one model that are answered together; for one thread.

    At most `most` texts are continued at a time, where each of a text's beams counts as one; a text with more of them runs
    alone. The others wait in the order in which their requests came; of a request with several texts one is taken in each turn,
    so that it holds up nobody with a single one.
    """

    def __init__(self, generator: Generator, most: int = MOST) -> None:
        self._generator, self._most = generator, most
        self._asked: dict[int, Asked] = {}
        self._waiting: deque[tuple[int, deque[int]]] = deque()  # and which of its texts
        self._rows: dict[int, tuple[int, int]] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing is asked."""
        return not self._asked

    @property
    def rows(self) -> int:
        """Texts that are being continued."""
        return len(self._rows)

    def add(self, key: int, asked: Asked) -> None:
        """Take a request, whose parts then come under the key."""
        self._asked[key] = asked
        self._waiting.append((key, deque(range(len(asked.texts)))))

    def drop(self, key: int) -> None:
        """Forget a request; nothing happens if there is none."""
        if self._asked.pop(key, None) is None:
            return
        self._waiting = deque(each for each in self._waiting if each[0] != key)
        for row in [row for row, (owner, _) in self._rows.items() if owner == key]:
            del self._rows[row]
            self._generator.drop(row)

    def step(self) -> list[tuple[int, Part]]:
        """One token for every text that has a place; what each request is told of it."""
        told: list[tuple[int, Part]] = []
        taken = sum(self._asked[key].ask.beams for key, _ in self._rows.values())
        while self._waiting:
            beams = self._asked[self._waiting[0][0]].ask.beams
            if taken and taken + beams > self._most:
                break
            taken += beams
            key, places = self._waiting.popleft()
            place, asked = places.popleft(), self._asked[key]
            if places:
                self._waiting.append((key, places))
            try:
                self._rows[self._generator.add(asked.texts[place], asked.ask)] = (key, place)
            except ValueError as error:
                told.append((key, self._failed(key, RequestError("bad_value", str(error)))))
        try:
            pieces = self._generator.step() if self._rows else []
        except Exception as error:  # the engine's own types, which share no public base
            hurt = error.rows if isinstance(error, UnreadError) else list(self._rows)
            # the message may quote what the client sent, so only the type and the place are logged
            cause = error.__cause__ or error
            place_of = "".join(traceback.format_tb(cause.__traceback__))
            log.error("texts could not be continued: %s at\n%s", type(cause).__name__, place_of)
            message = "the model failed while it continued this text; the server's log has the reason"
            lost = RequestError("inference_failed", message, 500)
            for key in dict.fromkeys(self._rows[row][0] for row in hurt):
                told.append((key, self._failed(key, lost)))
            return told
        gathered: dict[int, list[bytes]] = {}
        for row, piece in pieces:
            key, place = self._rows[row]
            gathered.setdefault(key, []).append(self._asked[key].say(place, piece))
            if piece.done:
                del self._rows[row]
        for key, bodies in gathered.items():
            asked = self._asked[key]
            rows = len(asked.texts) if asked.ended else 0
            if rows:
                del self._asked[key]
            told.append((key, Part(b"".join(bodies), sum(asked.tokens), rows, asked.header_length)))
        return told

    def _failed(self, key: int, error: RequestError) -> Part:
        asked = self._asked[key]
        with suppress(Exception):  # what failed in the generator may fail once more as its row leaves
            self.drop(key)
        return Part(b"", sum(asked.tokens), error=error)


class Shared:
    """The same for several threads, each of which waits for its own request: whoever needs the next token makes it for all."""

    def __init__(self, writing: Writing) -> None:
        self._writing = writing
        self._turn = threading.Lock()
        self._numbers = itertools.count()
        self._parts: dict[int, deque[Part]] = {}

    def follow(self, asked: Asked, kind: str, deadline: float | None = None) -> Iterator[Part]:
        """Parts of an answer as they come; leaving the loop early gives the place to others.

        Args:
            asked: the request.
            kind: as `asked` was read.
            deadline: `time.monotonic()` seconds, after which nobody wants the answer.

        Raises:
            RequestError: nothing was said yet, and nothing will be; later that is the last event.
        """
        begun = False
        own: deque[Part] = deque()
        with self._turn:
            key = next(self._numbers)
            self._parts[key] = own
            self._writing.add(key, asked)
        try:
            while True:
                while not own:
                    if deadline is not None and time.monotonic() > deadline:
                        own.append(Part(b"", 0, error=late()))
                        break
                    with self._turn:
                        if not own:
                            self._step()
                part = own.popleft()
                if part.error is not None:
                    if not begun:
                        raise part.error
                    part.body = failure(part.error.body, kind)
                if part.body or part.last:
                    begun = True
                    yield part
                if part.last:
                    return
        finally:
            with self._turn:
                self._writing.drop(key)
                del self._parts[key]

    def _step(self) -> None:
        for key, part in self._writing.step():
            self._parts[key].append(part)
