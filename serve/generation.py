"""Texts that are continued token by token, many at once: rows come and go between two steps. numpy and ONNX Runtime only.

The decoder's file takes the new tokens of each row, how many places of it are `cached`, and these; it gives the logits of
what follows and the new places. A row's places stand in one array from its first on, so that rows of any length share a
call, and nothing is copied from one step to the next but the new place. Rows that are read for the first time go through
the same file, those of equal length together.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from serve.errors import UnreadError
from serve.manifest import BundleError, Manifest
from serve.sampling import Ask, Beams, drawn

__all__ = ["Ask", "Piece", "Running", "generate"]

STEP = 64  # places by which the arrays grow; four times as many are made at first, where a row may need them
KEPT = 2**27  # bytes of caches that are kept for the next text when there is none
BEFORE = 8  # tokens in front of the answer that are read again with it: how it joins the text is theirs to say
HALF = "\ufffd"  # what stands where a character is not whole yet


@dataclass
class Piece:
    """What a step adds to a row's text.

    Attributes:
        text: new characters, whole ones only; with beams all of them come at the end.
        tokens: how many the answer has so far.
        done: "" while it goes on; then "stop" (a text of `Ask.stop` came), "length" (as long as asked, or as the model can)
            or "end" (the model ended it).
        note: what people should know, with the first piece of a row.
        picture: uint8 (height, width, channels), with the last piece of a row that is painted.
        read: tokens of the text that were read, with the first piece of a row.
    """

    text: str
    tokens: int
    done: str = ""
    note: str = ""
    picture: np.ndarray | None = None
    read: int = 0


@dataclass
class Row:
    number: int
    ask: Ask
    tokens: list[int]  # that the decoder reads first
    text: "Text"
    random: np.random.Generator
    most: int
    read: int  # tokens of the text
    note: str = ""
    source: dict[str, np.ndarray] = field(default_factory=dict)  # what the encoder reads
    beams: Beams | None = None
    made: int = 0


class Running:
    """Texts that are being continued, all in one batch.

    A step costs about the same for one row as for several, since it reads every weight once. A text and a seed give the
    same answer whatever else is in the batch, up to the rounding of sums.
    """

    def __init__(self, folder: str | Path, manifest: Manifest, precision: str | None = None, threads: int = 0) -> None:
        """Open the files of a bundle.

        Args:
            folder: of the bundle.
            manifest: its manifest, with a block `generation`.
            precision: form of the weights; the manifest's default if None, or where that is no form of the decoder, "fp32".
            threads: processor threads a step may use; 0 for all.

        Raises:
            BundleError: the bundle has no decoder in this precision, or it does not load.
        """
        folder = Path(folder)
        self.block = block = manifest.generation
        if not block:
            raise BundleError(f"{manifest.name!r} continues no texts; it was exported without a decoder")
        files = block["files"]
        chosen = precision or (manifest.default if manifest.default in files else "fp32")
        if chosen not in files:
            raise BundleError(f"{manifest.name!r} has no decoder in {chosen!r}; it has {', '.join(files)}")
        self.precision = chosen
        self._decoder = session(folder / files[chosen]["decoder"], threads)
        encoder = files[chosen].get("encoder", "")
        self._encoder = session(folder / encoder, threads) if encoder else None
        self._tokenizer, self._cut = _tokenizer(folder, manifest, encoder != "" or "picture" in block)
        self.length: int = block["length"]
        self._end: int = block["end"]
        self._numbers = 0
        self._waiting: list[Row] = []
        self._owners: list[Row] = []  # one for each row of the arrays, several for one with beams
        self._tokens = np.zeros((0, 1), np.int32)  # the newest of each, which is not cached yet
        self._cached = np.zeros((0, 1), np.int32)
        self._caches = {
            one["name"]: np.zeros((0, one["shape"][0], 0, one["shape"][2]), np.float32) for one in block["caches"]
        }
        self._held: dict[str, np.ndarray] = {}  # states, and what the encoder gave
        self._pieces: list[tuple[int, Piece]] = []  # of a step that did not end
        self._call: _Call | None = None  # the last step, and what it is of
        self._call_of: tuple[int, ...] = ()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._owners

    @property
    def rows(self) -> list[int]:
        """Numbers of the rows that have begun or wait, in the order they came."""
        return sorted({row.number for row in (*self._owners, *self._waiting)})

    def add(self, text: str, ask: Ask = Ask()) -> int:  # noqa: B008  # frozen
        """Take a text; the next step reads it.

        Returns:
            The number that its pieces carry.

        Raises:
            ValueError: the text has nothing to go on from.
        """
        self._numbers += 1
        row = self._row(self._numbers, text, ask)
        if ask.beams > 1:
            row.beams = Beams(ask.beams, row.most, self._end)
        self._waiting.append(row)
        return row.number

    def _row(self, number: int, text: str, ask: Ask) -> Row:
        """A text as the decoder begins with it."""
        random = np.random.default_rng(ask.seed)
        if self._encoder is not None:
            tokens, ids, count, note = list(self.block["start"]), *self._whole(text)
            source = {self.block["source"]: np.array([ids], np.int32)}
            most = min(ask.most, self.length - len(tokens) + 1) if self.length else ask.most
            said = Text(self._tokenizer, [], ask.stop)
            return Row(number, ask, tokens, said, random, most, count, note, source)
        tokens = self._read(text)
        note, room = "", min(ask.most, self.length // 2) if self.length else 0
        if self.length and len(tokens) > self.length - room:
            kept = max(self.length - room, 1)
            note = f"only the last {kept} of the text's {len(tokens)} tokens were read, so that {room} fit behind them"
            tokens = tokens[-kept:]
        most = min(ask.most, self.length - len(tokens) + 1) if self.length else ask.most
        said = Text(self._tokenizer, tokens[-BEFORE:], ask.stop)
        return Row(number, ask, tokens, said, random, most, len(tokens), note)

    def _whole(self, text: str) -> tuple[list[int], int, str]:
        """Tokens of a text that is read to its end and filled up, how many of them are its own, and a note where it was cut.

        Raises:
            ValueError: the text is blank.
        """
        if not text.strip():
            raise ValueError("the text is blank; write something")
        read = self._tokenizer.encode(text)
        note = f"only the first {self._cut} tokens of the text were read, the rest was cut off"
        return read.ids, sum(read.attention_mask), note if read.overflowing else ""

    def _read(self, text: str) -> list[int]:
        """Tokens of a text that is to be continued: without those that end it."""
        read = self._tokenizer.encode(text)
        count = len(read.ids)
        while count and read.special_tokens_mask[count - 1]:
            count -= 1
        found = list(read.ids[:count]) or list(self.block["start"])
        if not found:
            raise ValueError("the text is empty, and this model has no token to begin with; write its first words")
        return found

    def drop(self, row: int) -> None:
        """Leave a row; one that has ended has left already."""
        self._waiting = [one for one in self._waiting if one.number != row]
        self._pieces = [piece for piece in self._pieces if piece[0] != row]
        kept = [place for place, one in enumerate(self._owners) if one.number != row]
        self._arrange(kept, [self._owners[place] for place in kept])

    def step(self) -> list[tuple[int, Piece]]:
        """One token for every row, and the first one for those that wait.

        Returns:
            For each row its number and what is new; a row whose piece is `done` is gone.

        Raises:
            UnreadError: rows that waited cannot be read and are gone; what the others got comes with the next step.
        """
        if self._owners:
            count = len(self._owners)
            self._reserve(count, int(self._cached.max()) + 1)
            arrays = (*self._caches.values(), *self._held.values())
            key = (count, *map(id, arrays))
            if self._call is None or self._call_of != key:
                self._call, self._call_of = self._bound(slice(0, count), 1), key
            logits = self._call(self._tokens, self._cached)
            self._cached += 1
            self._pieces += self._choose(logits, 0)
        while self._waiting:
            first = len(self._waiting[0].tokens)
            group = [row for row in self._waiting if len(row.tokens) == first]
            self._waiting = [row for row in self._waiting if len(row.tokens) != first]
            begin = len(self._owners)
            try:
                logits = self._begin(group)
            except Exception as error:  # of the engine, or of memory: a long text needs more of it than those that run
                raise UnreadError([row.number for row in group], error) from error
            self._pieces += self._choose(logits, begin)
        pieces, self._pieces = self._pieces, []
        return pieces

    def _begin(self, group: list[Row]) -> np.ndarray:
        """Read the texts of rows of equal length, which stand last from then on; the logits behind them."""
        size, length, begin = len(group), len(group[0].tokens), len(self._owners)
        found: dict[str, np.ndarray] = {}
        if self._encoder is not None:
            names = [port.name for port in self._encoder.get_outputs()]
            source = {name: np.concatenate([row.source[name] for row in group]) for name in group[0].source}
            found = dict(zip(names, self._encoder.run(names, source), strict=True))
        held = {name: found[name] for name in self.block["crossing"]}
        for one in self.block["states"]:
            held[one["name"]] = found[one["first"]] if one["first"] else np.zeros((size, *one["shape"]), np.float32)
        tokens = np.array([row.tokens for row in group], np.int32)
        self._reserve(begin + size, length + min(max(row.most for row in group), 4 * STEP))
        for name, value in held.items():
            if name not in self._held:
                self._held[name] = np.zeros((0, *value.shape[1:]), value.dtype)
            self._held[name] = _longer(self._held[name], begin + size)
            self._held[name][begin : begin + size] = value
        logits = self._bound(slice(begin, begin + size), length)(tokens, np.zeros((size, 1), np.int32))
        self._owners += group
        self._tokens = np.concatenate([self._tokens, tokens[:, -1:]])
        self._cached = np.concatenate([self._cached, np.full((size, 1), length, np.int32)])
        return logits

    def _bound(self, rows: slice, new: int) -> "_Call":
        """The decoder on some rows of the arrays, and so many new tokens of each."""
        caches, held = ({name: x[rows] for name, x in arrays.items()} for arrays in (self._caches, self._held))
        return _Call(
            self._decoder, caches, held, [one["name"] for one in self.block["states"]], rows.stop - rows.start, new
        )

    def _choose(self, logits: np.ndarray, begin: int) -> list[tuple[int, Piece]]:
        """The next token of each row from `begin` on; rows that have ended leave."""
        likeliest = logits.argmax(axis=1).tolist()
        pieces: list[tuple[int, Piece]] = []
        places, owners = list(range(begin)), self._owners[:begin]
        tokens = self._tokens[:begin, 0].tolist()
        place = begin
        while place < len(self._owners):
            row, own = self._owners[place], place - begin
            width = 1
            row.made += 1
            if row.beams is not None:
                width = next(
                    (n for n, one in enumerate(self._owners[place:]) if one is not row), len(self._owners) - place
                )
                parents, following = row.beams.advance(logits[own : own + width])
                pieces.append((row.number, self._searched(row) if not following else Piece("", row.made)))
            else:
                ask = row.ask
                token = drawn(logits[own], ask, row.random) if ask.temperature else likeliest[own]
                piece = self._piece(row, token)
                pieces.append((row.number, piece))
                parents, following = ([], []) if piece.done else ([0], [token])
            if row.made == 1:
                pieces[-1][1].note, pieces[-1][1].read = row.note, row.read
            places += [place + parent for parent in parents]
            owners += [row] * len(parents)
            tokens += following
            place += width
        self._arrange(places, owners)
        self._tokens = np.array(tokens, np.int32).reshape(-1, 1)
        return pieces

    def _piece(self, row: Row, token: int) -> Piece:
        if token == self._end:
            return Piece(row.text.rest(), row.made - 1, "end")
        text, stopped = row.text.add(token)
        if stopped:
            return Piece(text, row.made, "stop")
        if row.made >= row.most:
            return Piece(text + row.text.rest(), row.made, "length")
        return Piece(text, row.made)

    def _searched(self, row: Row) -> Piece:
        """All of the best answer, when its search is over."""
        assert row.beams is not None
        answer, said = row.beams.answer, ""
        done = "end" if answer[-1] == self._end else "length"
        answer = answer[:-1] if done == "end" else answer
        for token in answer:
            text, stopped = row.text.add(token)
            said += text
            if stopped:
                return Piece(said, len(answer), "stop")
        return Piece(said + row.text.rest(), len(answer), done)

    def _arrange(self, places: Sequence[int], owners: list[Row]) -> None:
        """Keep these rows of the arrays, in this order; one may be kept several times."""
        self._reserve(len(places), 0)
        moved = [new for new, old in enumerate(places) if new != old]
        if moved:
            old = [places[new] for new in moved]
            longest = int(self._cached[old].max())
            for array in self._caches.values():
                array[moved, :, :longest] = array[old, :, :longest]
            for array in self._held.values():
                array[moved] = array[old]
        self._tokens, self._cached = self._tokens[list(places)], self._cached[list(places)]
        self._owners = owners
        if not owners and sum(array.nbytes for array in self._caches.values()) > KEPT:
            self._caches = {name: array[:0, :, :0].copy() for name, array in self._caches.items()}
            self._held, self._call = {}, None

    def _reserve(self, rows: int, places: int) -> None:
        """Make the arrays large enough."""
        filled = int(self._cached.max(initial=0))
        for name, array in self._caches.items():
            size, room = array.shape[0], array.shape[2]
            if rows <= size and places <= room:
                continue
            wider = max(room, -(-places // STEP) * STEP)
            made = np.zeros((max(rows, size), array.shape[1], wider, array.shape[3]), np.float32)
            made[:size, :, :filled] = array[:, :, :filled]
            self._caches[name] = made
        self._held = {name: _longer(array, rows) for name, array in self._held.items()}


class _Call:
    """A decoder with its arrays bound: a further step of the same rows binds nothing again.

    Args:
        session: of the decoder.
        caches: arrays in which new places are written.
        held: what else it reads, by name.
        states: names among `held` of what is another after each run.
        rows, new: how many rows there are, and new tokens of each.
    """

    def __init__(
        self,
        session: Any,
        caches: dict[str, np.ndarray],
        held: dict[str, np.ndarray],
        states: list[str],
        rows: int,
        new: int,
    ) -> None:
        self._session, self._binding = session, session.io_binding()
        self._tokens, self._cached = np.empty((rows, new), np.int32), np.empty((rows, 1), np.int32)
        inputs = {"tokens": self._tokens, "cached": self._cached, **caches, **held}
        ports = {port.name: port for port in session.get_outputs()}
        self._logits = np.empty((rows, ports["logits"].shape[-1]), np.float32)
        self._states = [(held[name], np.empty_like(held[name])) for name in states]
        following = {**caches, **{name: after for name, (_, after) in zip(states, self._states, strict=True)}}
        outputs = {"logits": self._logits} | {f"{name}_new": array for name, array in following.items()}
        self._kept = (inputs, outputs)  # whose memory is bound
        asked = {port.name for port in session.get_inputs()}  # a recurrent one asks for no places
        for name, array in inputs.items():
            if name in asked:
                self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def __call__(self, tokens: np.ndarray, cached: np.ndarray) -> np.ndarray:
        """Logits (rows, vocabulary) behind tokens, which the next call overwrites."""
        self._tokens[:], self._cached[:] = tokens, cached
        self._session.run_with_iobinding(self._binding)
        for before, after in self._states:
            before[:] = after
        return self._logits


class Text:
    """Tokens that become characters, as soon as these are whole."""

    def __init__(self, tokenizer: Any, before: list[int], stop: tuple[str, ...]) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._tokens = list(before)
        self._known = self._said(self._tokens)
        self._held = ""  # what may be the beginning of a text to stop at

    def _said(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)

    def add(self, token: int) -> tuple[str, bool]:
        """New characters, and whether a text to stop at came, which is not among them."""
        self._tokens.append(token)
        said = self._said(self._tokens)
        whole = said.rstrip(HALF)
        if len(whole) <= len(self._known):
            return "", False
        fresh, self._known = whole[len(self._known) :], whole
        if whole == said and len(self._tokens) > 2 * BEFORE:
            self._tokens = self._tokens[-BEFORE:]
            self._known = self._said(self._tokens)
        return self._until(fresh)

    def _until(self, fresh: str) -> tuple[str, bool]:
        text = self._held + fresh
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        begun = max((_begun(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun], False

    def rest(self) -> str:
        """What was held back, when nothing more comes."""
        held, self._held = self._held, ""
        return held


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of another."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


def _longer(array: np.ndarray, rows: int) -> np.ndarray:
    """An array of at least so many rows, with what it held."""
    if len(array) >= rows:
        return array
    made = np.zeros((rows, *array.shape[1:]), array.dtype)
    made[: len(array)] = array
    return made


def session(path: Path, threads: int) -> Any:
    """A file in ONNX Runtime, whose threads wait busily within a step, which is hundreds of short tasks, and sleep behind it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4  # its messages may quote what a client sent
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own types, which share no public base
        raise BundleError(f"{path.name} does not load in ONNX Runtime: {error}") from error


def _tokenizer(folder: Path, manifest: Manifest, fixed: bool) -> tuple[Any, int]:
    """The bundle's tokenizer and its length; unless `fixed`, texts are neither filled up nor cut by it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise BundleError("texts need the library tokenizers; run: pip install tokenizers") from error
    name = manifest.preprocess.get("tokenizer", "")
    try:
        read = Tokenizer.from_file(str(folder / name))
        length = int((read.padding or {"length": 0})["length"] or 0)
    except Exception as error:  # the library raises bare exceptions
        raise BundleError(f"{name!r} cannot be used: {error}; export the bundle again") from error
    read.encode_special_tokens = True  # who writes "[PAD]" means these letters
    if not fixed:
        read.no_padding()
        read.no_truncation()
    return read, length


def generate(running: Running, text: str, ask: Ask = Ask()) -> str:  # noqa: B008  # frozen
    """What follows a text, whole: the simple loop over `Running.step`.

    Raises:
        ValueError: the text has nothing to go on from.
    """
    own, said = running.add(text, ask), ""
    while True:
        for number, piece in running.step():
            if number == own:
                said += piece.text
                if piece.done:
                    return said
