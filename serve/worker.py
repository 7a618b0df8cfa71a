"""A worker process: owns the sessions, answers batches of raw requests, knows no HTTP and no client.

`python -m serve.worker FD` reads frames (see `serve.wire`) from a socket it inherits and writes the answers to it. It
ends when the other end is closed, however that came about.
"""

import contextlib
import logging
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from serve import continuations, drift, protocol, wire
from serve.errors import RequestError
from serve.lines import Lines, LinesHandler
from serve.manifest import BundleError
from serve.memory import give_back, resident
from serve.runtime import Model, golden_rows
from serve.store import read
from serve.writing import Part, Writing

log = logging.getLogger("serve")

SHORT = 0.002  # seconds of a batch, above which it is of no matter how soon the next one is seen
LARGEST_KEPT = 64 * 2**20  # bytes of a receive buffer that is kept for the next batch


class _Part:
    """One request of a batch that passed the checks of names, datatypes and shapes."""

    __slots__ = ("feed", "index", "kind", "request", "rows", "wanted")

    def __init__(self, index: int, kind: str, request: Any, feed: dict[str, np.ndarray], wanted: list[str]) -> None:
        self.index = index
        self.kind = kind
        self.request = request
        self.feed = feed
        self.wanted = wanted
        self.rows = len(next(iter(feed.values())))


Answered = tuple[wire.Result, bytes]


def answer(model: Model, items: list[wire.Item], bodies: list[memoryview]) -> list[Answered]:
    """Answer a batch of raw requests to one model.

    Requests of equal shapes become one run of the engine, of at most `model.max_batch` rows. A request that cannot be
    answered fails alone.

    Args:
        model: what answers.
        items: what is known of each request.
        bodies: the requests as they came.

    Returns:
        What to tell of each answer, and its body.
    """
    answers: list[Answered | None] = [None] * len(items)
    groups: dict[tuple, list[_Part]] = {}
    for index, (_, header_length, kind) in enumerate(items):
        try:
            if kind == "v1":
                request = protocol.decode_v1(bodies[index], model.manifest)
            else:
                request = protocol.decode(bodies[index], header_length)
            feed = model.arranged(request.inputs)
            wanted = model.wanted(None if request.outputs is None else [output.name for output in request.outputs])
            part = _Part(index, kind, request, feed, wanted)
        except Exception as error:
            answers[index] = _failed(error, model)
        else:
            groups.setdefault(tuple(array.shape[1:] for array in feed.values()), []).append(part)
    for parts in groups.values():
        for chunk in _chunks(parts, model.max_batch):
            _run(model, chunk, answers)
    return [each for each in answers if each is not None]


def _chunks(parts: list[_Part], rows: int) -> list[list[_Part]]:
    """Consecutive requests of at most so many rows together."""
    chunks: list[list[_Part]] = [[]]
    held = 0
    for part in parts:
        if held + part.rows > rows and chunks[-1]:
            chunks.append([])
            held = 0
        chunks[-1].append(part)
        held += part.rows
    return chunks


def _run(model: Model, parts: list[_Part], answers: list[Answered | None]) -> None:
    """Answer requests of equal shapes in one run, or each alone where that fails."""
    feed = _joined(parts)
    try:
        model.check_values(feed)
    except RequestError as error:
        if len(parts) == 1:
            answers[parts[0].index] = _failed(error, model)
            return
        good = []
        for part in parts:
            try:
                model.check_values(part.feed)
            except RequestError as fault:
                answers[part.index] = _failed(fault, model)
            else:
                good.append(part)
        if not good:
            return
        parts, feed = good, _joined(good)
    wanted = parts[0].wanted
    if any(part.wanted != wanted for part in parts):
        asked = {name for part in parts for name in part.wanted}
        wanted = [name for name in model.wanted(None) if name in asked]
    try:
        fed, cut = model.fed(feed)
        outputs = model.run(wanted, fed)
        classes, values = _compared(model, outputs)
        start = 0
        for part in parts:
            end = start + part.rows
            own = outputs if len(parts) == 1 else {name: outputs[name][start:end] for name in part.wanted}
            answers[part.index] = _encoded(
                model,
                part,
                own,
                model.notes(cut[start:end]),
                classes and classes[start:end],
                values and values[start:end],
            )
            start = end
    except Exception as error:
        if len(parts) == 1:
            answers[parts[0].index] = _failed(error, model)
            return
        for part in parts:
            _run(model, [part], answers)


def _joined(parts: list[_Part]) -> dict[str, np.ndarray]:
    if len(parts) == 1:
        return parts[0].feed
    return {name: np.concatenate([part.feed[name] for part in parts]) for name in parts[0].feed}


def _compared(model: Model, outputs: dict[str, np.ndarray]) -> tuple[list[int] | None, list[float] | None]:
    """What a shadow is compared by, for each row: the class and its probability, or None and the value."""
    manifest = model.manifest
    found = outputs.get(manifest.outputs[0].name)
    if found is None or found.ndim != 2 or found.shape[1] != len(manifest.labels):
        return None, None
    if manifest.task == "forecasting":
        return None, found[:, 0].tolist()
    if manifest.task == "regression":
        return None, found[:, 0].tolist() if len(manifest.labels) == 1 else None
    classes = found.argmax(axis=1)
    return classes.tolist(), found[np.arange(len(found)), classes].tolist()


def _encoded(
    model: Model,
    part: _Part,
    outputs: dict[str, np.ndarray],
    notes: list[str],
    classes: list[int] | None,
    values: list[float] | None,
) -> Answered:
    header_length = None
    if part.kind == "v1":
        body = protocol.encode_v1(model.manifest, outputs, part.request)
    else:
        body, header_length = protocol.encode(model.name, model.version, model.manifest, outputs, part.request, notes)
    return (200, len(body), header_length, part.rows, classes, values, None), body


def _failed(error: Exception, model: Model) -> Answered:
    """The answer to a request that has none."""
    if not isinstance(error, RequestError):
        # the message may quote what the client sent, so only the type and the place are logged
        place = "".join(traceback.format_tb(error.__traceback__))
        log.error("%s/%s failed with %s at\n%s", model.name, model.version, type(error).__name__, place)
        error = RequestError("internal", "the server failed on this request; its log has the reason", 500)
    body = error.body
    return (error.status, len(body), None, 0, None, None, error.headers or None), body


def _body(part: Part) -> bytes:
    return part.body if part.error is None else part.error.body


def _described(number: Any, part: Part) -> wire.Part:
    """What is told of a part of a text."""
    size, error = len(_body(part)), part.error
    if error is not None:
        return number, error.status, size, None, part.tokens, 0, error.headers or None
    return number, 200, size, part.header_length, part.tokens, part.rows, None


class Worker:
    """The frames of one worker process."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._models: dict[int, Model] = {}
        self._sending = threading.Lock()
        self._seen: dict[str, Any] | None = None  # of the batch under way, for drift
        self._texts: dict[int, Writing] = {}  # by slot, where texts are being continued
        self._owners: dict[int, int] = {}  # number of a text -> slot
        self._loads: queue.SimpleQueue[wire.Load] = queue.SimpleQueue()
        self._inbox = wire.Inbox(wire.to_worker, LARGEST_KEPT)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def serve(self) -> None:
        """Answer frames until the other end is closed."""
        threading.Thread(target=self._watch, daemon=True).start()
        threading.Thread(target=self._open, daemon=True).start()
        self._send(wire.Hello())
        while (self._texts and not self._poll.poll(0)) or self._receive():
            while (taken := self._inbox.take()) is not None:
                start = time.perf_counter()
                message, bodies = taken
                if isinstance(message, wire.Run):
                    self._run(message, bodies, start)
                elif isinstance(message, wire.Begin):
                    self._begin(message, bodies)
                elif isinstance(message, wire.Drop):
                    self._drop(message.number)
                elif isinstance(message, wire.Load):
                    self._loads.put(message)
                else:
                    self._models.pop(message.slot, None)
                    give_back()
                self._inbox.drop()
            for slot in list(self._texts):  # a token of each text between any two batches
                self._step(slot)

    def _receive(self) -> bool:
        """Wait for more; False at the end of the stream."""
        missing = self._inbox.missing()
        if missing:
            count = self._socket.recv_into(missing, 0, socket.MSG_WAITALL)
        else:
            count = self._socket.recv_into(self._inbox.room())
        self._inbox.add(count)
        return count > 0

    def _run(self, message: wire.Run, bodies: memoryview, start: float) -> None:
        model = self._models[message.slot]
        parts = [
            bodies[place : place + item[0]]
            for place, item in zip(wire.places(message.items), message.items, strict=True)
        ]
        answers = answer(model, message.items, parts)
        seen, self._seen = self._seen, None
        done = wire.Ran(message.batch, time.perf_counter() - start, [result for result, _ in answers], seen)
        self._send(done, [body for _, body in answers])
        if message.alone and done.seconds < SHORT and not self._texts:
            wire.glance(self._poll)

    def _begin(self, message: wire.Begin, body: memoryview) -> None:
        """Take a text among those that are being continued."""
        model = self._models[message.slot]
        try:
            assert model.writing is not None
            model.writing.add(message.number, continuations.read(message.kind, body, message.header_length, model))
        except Exception as error:
            (status, size, _, _, _, _, headers), refusal = _failed(error, model)
            self._send(wire.Said(message.slot, [(message.number, status, size, None, 0, 0, headers)]), [refusal])
            return
        self._texts[message.slot] = model.writing
        self._owners[message.number] = message.slot

    def _drop(self, number: int) -> None:
        slot = self._owners.pop(number, None)
        if slot is not None:
            self._texts[slot].drop(number)
            self._tidy(slot)

    def _step(self, slot: int) -> None:
        """One token for every text of a version."""
        parts = self._texts[slot].step()
        # those that have nothing to say yet are told of too, so that the front sees that all goes on
        self._send(wire.Said(slot, [_described(*each) for each in parts]), [_body(part) for _, part in parts])
        for number, part in parts:
            if part.last:
                del self._owners[number]
        self._tidy(slot)

    def _tidy(self, slot: int) -> None:
        if self._texts[slot].idle:
            del self._texts[slot]
            if slot not in self._models:  # it was unloaded meanwhile
                give_back()

    def _count(self, summary: dict[str, Any]) -> None:
        self._seen = summary if self._seen is None else drift.merge(self._seen, summary)

    def _send(self, message: Any, bodies: list[bytes] | None = None) -> None:
        data = b"".join(wire.frame(message, bodies))
        with self._sending:
            self._socket.sendall(data)

    def _open(self) -> None:
        """Open bundles one after another, beside the batches."""
        while True:
            load = self._loads.get()
            before = resident(os.getpid())
            folder = Path(load.folder)
            try:
                bundle = read(folder)
                if load.digest not in ("", bundle.digest):
                    raise BundleError(f"{folder} changed after it was verified; load it again once it is whole")
                model = Model(bundle, **load.options)
                seconds = _row_seconds(model)
            except Exception as error:  # whatever is wrong with one bundle, the others are served
                reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                self._send(wire.Loaded(load.slot, reason=reason or type(error).__name__))
                continue
            baseline = drift.read(folder)
            if baseline is not None:
                model.watcher = drift.Sampler(model.manifest, baseline, self._count)
            self._models[load.slot] = model
            stored = model.manifest.precisions[model.precision]
            memory = max(resident(os.getpid()) - before, stored.bytes)
            self._send(wire.Loaded(load.slot, model.engine, memory, seconds))
            del bundle, model

    def _watch(self) -> None:
        """End the process when the other end is gone, even while an engine hangs."""
        poll = select.poll()
        poll.register(self._socket, getattr(select, "POLLRDHUP", select.POLLHUP))
        poll.poll()
        os._exit(0)


def _row_seconds(model: Model) -> float:
    """Time of one golden row, 0 without golden rows."""
    golden = golden_rows(model.bundle)
    if not golden:
        return 0.0
    row = {port.name: golden[f"input/{port.name}"][:1] for port in model.manifest.inputs}
    start = time.perf_counter()
    model.predict(row)
    return time.perf_counter() - start


def main() -> None:
    """Serve the socket whose number is the first argument."""
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C reaches the whole process group; the front says when to end
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, handlers=[LinesHandler(Lines(2))])
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.setblocking(True)
    import onnxruntime  # noqa: F401 - now rather than with the first model

    with contextlib.suppress(ConnectionError):
        Worker(connection).serve()


if __name__ == "__main__":
    main()
