"""Requests for continued texts, or painted pictures, as clients write them, and what they are told: JSON, or events. No HTTP, no
model.

Sources:
    https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_generate.md
    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    https://platform.openai.com/docs/api-reference/completions
"""

import math
import secrets
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from serve import pictures, protocol, texts
from serve.errors import RequestError, did_you_mean, shown
from serve.manifest import Manifest, Port
from serve.sampling import HOTTEST, LARGEST, Ask
from serve.tensors import decode_json

if TYPE_CHECKING:
    from serve.generation import Piece
    from serve.runtime import Declared

# what a body may be: the generate extension's, the same for a stream, OpenAI's, the rows of `/predict`
KINDS = ("generate", "generate_stream", "completions", "rows")
EVENTS = "text/event-stream; charset=utf-8"
LAST = b"data: [DONE]\n\n"  # how OpenAI's clients know that a stream is whole
MOST_BEAMS = 8
MOST_STOPS = 16
LONGEST_STOP = 200  # characters


@dataclass(frozen=True)
class Parameter:
    """One thing that a request may say of its continuation.

    Attributes:
        field: of `serve.sampling.Ask`.
        whole: whether it is a whole number.
        least, most: limits; of `max_tokens` the model has one of its own.
        help: what it is.
        above: whether `least` itself is too little.
    """

    field: str
    whole: bool
    least: float
    most: float
    help: str
    above: bool = False

    def read(self, name: str, value: Any) -> Any:
        """A value as `Ask` takes it.

        Raises:
            RequestError: it is of another kind, or out of range.
        """
        fits = type(value) is int or (type(value) is float and not self.whole and math.isfinite(value))
        if not (fits and self.least <= value <= self.most) or (self.above and value == self.least):
            kind = "a whole number" if self.whole else "a number"
            low = f"above {self.least:g}, at most " if self.above else f"{self.least:g} … "
            message = f"{name!r} must be {kind} {low}{int(self.most):,}, got {shown(value)}"
            raise RequestError("bad_parameter", message)
        return value if self.whole else float(value)


PARAMETERS = {
    "max_tokens": Parameter("most", True, 1, LARGEST, "tokens that are written at most"),
    "temperature": Parameter(
        "temperature", False, 0, HOTTEST, "0 takes the likeliest token, 1 draws as the model says"
    ),
    "top_k": Parameter("top_k", True, 0, LARGEST, "draws among so many of the likeliest tokens, 0 among all"),
    "top_p": Parameter("top_p", False, 0, 1, "draws among the likeliest tokens of so much probability", above=True),
    "beams": Parameter("beams", True, 1, MOST_BEAMS, "ways that are followed at a time, for the likeliest of them"),
    "seed": Parameter("seed", True, 0, 2**63 - 1, "makes drawn texts come again"),
}
STOP = "stop"  # the one parameter that is no number: a text, or a list of them
_OF_TEXTS = ("max_tokens", STOP)  # which mean nothing for a picture
# what OpenAI's clients may say and this server does not do, with what it may say
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
}
IGNORED = ("user", "stream_options", "metadata", "store", "service_tier")


def known(given: dict[str, Any]) -> dict[str, Any]:
    """Of the parameters of an infer request those that say how texts are continued; others are anybody's own."""
    return {name: value for name, value in given.items() if name in (*PARAMETERS, STOP)}


def ask_of(given: dict[str, Any], manifest: Manifest, **usual: Any) -> Ask:
    """Parameters of a request as the generator takes them.

    Args:
        given: by name; null counts as not given.
        manifest: the model's.
        usual: values of what is not given, by name, where they are others than `Ask` has.

    Raises:
        RequestError: an unknown parameter, or a value of another kind or out of range; the message names it.
    """
    there = [name for name in (*PARAMETERS, STOP) if not (paints(manifest) and name in _OF_TEXTS)]
    for name in given:
        if name not in there:
            message = f"no parameter is called {name!r:.60}; there are {', '.join(there)}.{did_you_mean(name, there)}"
            raise RequestError("bad_parameter", message)
    sent = {name: value for name, value in given.items() if value is not None}
    if paints(manifest):  # what is likeliest at each place is a dull picture
        usual = {"temperature": 1.0, **usual}
    if sent.get("beams", 1) != 1:  # these follow the likeliest
        usual.pop("temperature", None)
    given = usual | sent
    found = {PARAMETERS[name].field: PARAMETERS[name].read(name, given[name]) for name in given if name != STOP}
    if STOP in given:
        found[STOP] = _stops(given[STOP])
    limit = manifest.generation.get("length")
    if limit and "max_tokens" in sent and found["most"] > limit:
        message = f"'max_tokens' is {found['most']}, and {manifest.name!r} has room for {limit} at most; ask for fewer"
        raise RequestError("bad_parameter", message)
    room = manifest.preprocess.get("answer") or limit
    if room and writes(manifest) and "max_tokens" not in sent:  # an answer is as long as it is
        found["most"] = room
    if found.get("beams", 1) > 1 and found.get("temperature", 0.0) > 0:
        message = "'beams' follow the likeliest texts, and 'temperature' draws one; send one of them"
        raise RequestError("bad_parameter", message)
    try:
        return Ask(**found)
    except ValueError as error:
        raise RequestError("bad_parameter", str(error)) from None


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    good = isinstance(stops, list) and len(stops) <= MOST_STOPS
    if not good or not all(isinstance(text, str) and 0 < len(text) <= LONGEST_STOP for text in stops):
        message = f"{STOP!r} must be a text of 1 … {LONGEST_STOP} characters, or a list of at most {MOST_STOPS}, got {shown(value)}"
        raise RequestError("bad_parameter", message)
    return tuple(stops)


class Asked(ABC):
    """One request, and how its answer is written.

    Attributes:
        texts: what is to be continued.
        ask: how.
        stream: whether the answer goes out as it comes.
        written: texts so far, in the same order.
        tokens: of each of them.
        read: tokens of what is continued, for each.
        ends: why each ended, "" for one that goes on.
        pictures: what was painted of each, None for one that goes on, or is a text.
    """

    stream = False
    header_length: int | None = None  # of an answer with binary tensors

    def __init__(self, given: list[str], ask: Ask, name: str) -> None:
        """Check the texts.

        Args:
            given: what is to be continued.
            ask: how.
            name: of the field that holds them, for messages.

        Raises:
            RequestError: one is empty, too long or no Unicode.
        """
        for row, text in enumerate(given, 1):
            texts.check_one(text, repr(name) if len(given) == 1 else f"row {row} of {name!r}")
        self.texts, self.ask = given, ask
        self.written = [""] * len(given)
        self.tokens = [0] * len(given)
        self.read = [0] * len(given)
        self.ends = [""] * len(given)
        self.pictures: list[np.ndarray | None] = [None] * len(given)
        self.notes: dict[str, None] = {}

    @property
    def ended(self) -> bool:
        """Whether every text has ended."""
        return all(self.ends)

    def say(self, place: int, piece: "Piece") -> bytes:
        """Take the next piece of a text; returns what goes to the client now, b"" if nothing does."""
        self.written[place] += piece.text
        self._count(place, piece)
        return self.answer() if self.ended else b""

    def _count(self, place: int, piece: "Piece") -> None:
        self.tokens[place], self.ends[place], self.pictures[place] = piece.tokens, piece.done, piece.picture
        self.read[place] += piece.read
        if piece.note:
            self.notes[piece.note if len(self.texts) == 1 else f"row {place + 1}: {piece.note}"] = None

    def output(self, port: Port) -> np.ndarray:
        """Texts, or pictures, as the values of a port of that shape."""
        if port.dtype == "BYTES":
            return np.array(self.written, object).reshape(-1, *[1] * (len(port.shape) - 1))
        return np.stack([picture for picture in self.pictures if picture is not None])

    @abstractmethod
    def answer(self) -> bytes:
        """The body of the answer, once every text has ended."""


class Streamed(Asked):
    """A request whose answer goes out as it comes, where `stream` says so."""

    def say(self, place: int, piece: "Piece") -> bytes:
        if not self.stream:
            return super().say(place, piece)
        self._count(place, piece)  # what went out need not be kept
        return self.event(place, piece) if piece.text or piece.done else b""

    @abstractmethod
    def event(self, place: int, piece: "Piece") -> bytes:
        """A piece as an event, the last one with what belongs to the end."""


class Generate(Streamed):
    """A request of the generate extension: one text."""

    def __init__(self, body: bytes | memoryview, model: "Declared", *, stream: bool) -> None:
        """Read the body.

        Raises:
            RequestError: it does not follow the extension; the message names the field.
        """
        sent = _object(body)
        text, given = sent.pop("text_input", None), sent.pop("parameters", None)
        self._id = sent.pop("id", None)
        if not isinstance(text, str):
            message = f"'text_input' must be the text to continue, got {shown(text)}"
            raise RequestError("missing_input" if text is None else "bad_value", message)
        if not isinstance(given, dict | None):
            raise RequestError("bad_parameter", f"'parameters' must be an object, got {shown(given)}")
        if not isinstance(self._id, str | None):
            raise RequestError("bad_request", f"'id' must be text, got {shown(self._id)}", 400)
        given = sent | (given or {})  # the extension takes what it does not know for parameters
        given.pop("stream", None)  # the path says it
        super().__init__([text], ask_of(given, model.manifest), "text_input")
        self.stream = stream
        self._told = {"model_name": model.name, "model_version": model.version}
        if self._id is not None:
            self._told["id"] = self._id

    def _end(self) -> dict[str, Any]:
        notes = {"notes": list(self.notes)} if self.notes else {}
        return {"finish_reason": self.ends[0], "tokens": self.tokens[0], **notes}

    def event(self, place: int, piece: "Piece") -> bytes:
        end = self._end() if piece.done else {}
        return event(msgspec.json.encode({**self._told, "text_output": piece.text, **end}))

    def answer(self) -> bytes:
        return msgspec.json.encode({**self._told, "text_output": self.written[0], **self._end()})


class Completions(Streamed):
    """A request of OpenAI's completions: one prompt or several."""

    def __init__(self, body: bytes | memoryview, model: "Declared") -> None:
        """Read the body.

        Raises:
            RequestError: it asks for what is not done here, or does not follow the interface; the message names the field.
        """
        sent = _object(body)
        prompt, stream = sent.pop("prompt", None), sent.pop("stream", None)
        sent.pop("model", None)
        given = [prompt] if isinstance(prompt, str) else prompt
        if not (isinstance(given, list) and given and all(isinstance(text, str) for text in given)):
            raise RequestError("bad_value", f"'prompt' must be a text or a list of texts, got {shown(prompt)}")
        if len(given) > model.max_batch:
            message = f"a request must hold 1 … {model.max_batch} prompts, got {len(given)}; split it"
            raise RequestError("bad_batch", message, 413)
        if not isinstance(stream, bool | None):
            raise RequestError("bad_parameter", f"'stream' must be true or false, got {shown(stream)}")
        for name, neutral in NEUTRAL.items():
            value = sent.pop(name, None)
            if value is not None and value not in neutral:
                raise RequestError("bad_parameter", f"{name!r} is not done here, got {shown(value)}; leave it out")
        for name in IGNORED:
            sent.pop(name, None)
        super().__init__(given, ask_of(sent, model.manifest, max_tokens=16, temperature=1.0), "prompt")
        self.stream = bool(stream)
        self._told = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model.name,
            "model_version": model.version,
        }

    def _choice(self, place: int, text: str) -> dict[str, Any]:
        reason = {"": None, "length": "length"}.get(self.ends[place], "stop")
        return {"text": text, "index": place, "logprobs": None, "finish_reason": reason}

    def _noted(self) -> dict[str, Any]:
        return {"notes": list(self.notes)} if self.notes else {}

    def event(self, place: int, piece: "Piece") -> bytes:
        noted = self._noted() if self.ended else {}
        told = event(msgspec.json.encode({**self._told, "choices": [self._choice(place, piece.text)], **noted}))
        return told + LAST if self.ended else told

    def answer(self) -> bytes:
        choices = [self._choice(place, text) for place, text in enumerate(self.written)]
        read, made = sum(self.read), sum(self.tokens)
        usage = {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
        return msgspec.json.encode({**self._told, "choices": choices, "usage": usage, **self._noted()})


class Rows(Asked):
    """Texts with parameters for all of them: what `/predict` and jobs ask, see `pack` and `unpack`."""

    def __init__(self, given: list[str], parameters: dict[str, Any], manifest: Manifest) -> None:
        super().__init__(given, ask_of(parameters, manifest), manifest.inputs[0].name)

    def answer(self) -> bytes:
        rows: list[dict[str, Any]] = [
            {"text": text, "tokens": tokens, "finish_reason": end}
            if picture is None
            else {"image": pictures.url(pictures.png(picture)), "tokens": tokens}
            for text, tokens, end, picture in zip(self.written, self.tokens, self.ends, self.pictures, strict=True)
        ]
        return msgspec.json.encode({"rows": rows, "notes": list(self.notes)})


class Tensors(Asked):
    """An infer request, v2 or v1, to a model whose output is the generated text, or the painted picture."""

    def __init__(self, kind: str, body: bytes | memoryview, header_length: int | None, model: "Declared") -> None:
        """Read the body.

        Raises:
            RequestError: it does not follow the protocol, or is not what the model takes.
        """
        v1 = kind == "v1"
        self._request = protocol.decode_v1(body, model.manifest) if v1 else protocol.decode(body, header_length)
        feed = model.check(self._request.inputs)
        model.wanted(self._request.names)
        (rows,) = feed.values()
        asked = known(self._request.parameters) if not v1 else {}
        super().__init__(
            [str(text) for text in rows.ravel()], ask_of(asked, model.manifest), model.manifest.inputs[0].name
        )
        self._model, self._v1 = model, v1

    def answer(self) -> bytes:
        port = self._model.manifest.outputs[0]
        outputs = {port.name: self.output(port)}
        if self._v1:
            return protocol.encode_v1(self._model.manifest, outputs, self._request)
        body, self.header_length = protocol.encode(
            self._model.name, self._model.version, self._model.manifest, outputs, self._request, list(self.notes)
        )
        return body


def read(kind: str, body: bytes | memoryview, header_length: int | None, model: "Declared") -> Asked:
    """A request as the kind of its route says.

    Args:
        kind: one of `KINDS`, or "v2" or "v1".
        body: as it came, decompressed.
        header_length: bytes of JSON before binary tensors; None for JSON alone.
        model: what answers.

    Raises:
        RequestError: it cannot be answered.
    """
    if kind in ("generate", "generate_stream"):
        return Generate(body, model, stream=kind == "generate_stream")
    if kind == "completions":
        return Completions(body, model)
    if kind == "rows":
        sent = _object(body)
        return Rows(sent["texts"], sent["parameters"], model.manifest)
    return Tensors(kind, body, header_length, model)


def writes(manifest: Manifest) -> bool:
    """Whether what is written, or painted, is all that a model answers, on the infer routes too, as a translation is."""
    return paints(manifest) or (bool(manifest.generation) and [port.dtype for port in manifest.outputs] == ["BYTES"])


def paints(manifest: Manifest) -> bool:
    """Whether what a model makes of a text is a picture."""
    return "picture" in manifest.generation


def check(kind: str, manifest: Manifest) -> None:
    """Refuse to continue texts by a model that does not.

    Raises:
        RequestError: it does not.
    """
    if paints(manifest) and kind in KINDS and kind != "rows":
        message = f"{manifest.name!r} paints pictures of texts, and continues none; ask at /predict"
        raise RequestError("not_generative", message)
    if kind in KINDS and not manifest.generation:
        message = (
            f"{manifest.name!r} is made for {manifest.task.replace('-', ' ')} and continues no texts; ask at /predict"
        )
        raise RequestError("not_generative", message)


class _Addressed(msgspec.Struct):
    """What of a completion request is read before its model is known."""

    model: str
    stream: bool | None = None


_ADDRESSED = msgspec.json.Decoder(_Addressed)


def addressed(body: bytes) -> tuple[str, bool]:
    """Model of a completion request, and whether a stream is wanted.

    Raises:
        RequestError: the body does not say it.
    """
    found = decode_json(body, _ADDRESSED)
    return found.model, bool(found.stream)


def event(body: bytes) -> bytes:
    """JSON as a server-sent event."""
    return b"data: %b\n\n" % body


def refusal(body: bytes, kind: str) -> bytes:
    """The body of an error as clients of such requests read it."""
    if kind != "completions":
        return body
    told = msgspec.json.decode(body)
    return msgspec.json.encode({"error": {"code": told["code"], "message": told["error"]}})


def failure(body: bytes, kind: str) -> bytes:
    """The body of an error as the end of a stream that has begun."""
    return event(refusal(body, kind)) + (LAST if kind == "completions" else b"")


def pack(rows: list[str], parameters: dict[str, Any]) -> bytes:
    """The body of a request of kind "rows"."""
    return msgspec.json.encode({"texts": rows, "parameters": parameters})


def unpack(body: bytes) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows `{"text", "tokens", "finish_reason"}`, or `{"image", "tokens"}`, and notes of the answer to one."""
    told = msgspec.json.decode(body)
    return told["rows"], told["notes"]


def table(predictions: list[dict[str, Any]]) -> list[list[Any]]:
    """Continuations, or pictures as data URLs, as lines of a table, the first being the header."""
    if "image" in predictions[0]:
        return [["image"], *([row["image"]] for row in predictions)]
    return [["text", "finish_reason"], *([row["text"], row["finish_reason"]] for row in predictions)]


def _object(body: bytes | memoryview) -> dict[str, Any]:
    sent = decode_json(body)
    if not isinstance(sent, dict):
        raise RequestError("bad_request", f"the body must be a JSON object, got {shown(sent)}", 400)
    return sent
