"""The one error a client can cause, and the one that hurts some of those who are answered together."""

import json
from difflib import get_close_matches
from typing import Any


class RequestError(ValueError):
    """A request that cannot be answered.

    Attributes:
        code: short machine-readable reason, such as "bad_shape".
        status: HTTP status that says the same.
        headers: extra HTTP headers of the answer, such as `Retry-After`.
    """

    def __init__(self, code: str, message: str, status: int = 422, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.headers = headers or {}

    @property
    def message(self) -> str:
        """What is wrong, what was received, what to do."""
        return str(self)

    @property
    def body(self) -> bytes:
        """The error as the inference protocols write it: the text under "error", and the code beside it."""
        return json.dumps({"error": self.message, "code": self.code}, ensure_ascii=False).encode()


class UnreadError(Exception):
    """Texts that could not be read, so that they never begin; what else is written goes on with the next step.

    Attributes:
        rows: their numbers.
    """

    def __init__(self, rows: list[int], cause: Exception) -> None:
        super().__init__(f"the text could not be read: {type(cause).__name__}: {cause}")
        self.rows = rows


def told_as_text(path: str) -> bool:
    """Whether clients of a path read "error" as text, with the code beside it; others, OpenAI's too, as an object of both."""
    return path.startswith(("/v2", "/v1")) and not path.startswith("/v1/completions")


def late() -> RequestError:
    """Nobody waits for the answer any more."""
    message = "the request was not answered by its deadline; allow more time, or send fewer rows"
    return RequestError("deadline_exceeded", message, 504)


def shown(value: Any) -> str:
    """A client's value for a message, cut to 60 characters."""
    try:
        return f"{value!r:.60}"
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "an integer of thousands of digits"


def did_you_mean(name: str, known: Any) -> str:
    """' Did you mean ...?' for the nearest known names, or an empty string."""
    near = get_close_matches(name, list(known), n=2, cutoff=0.5) if len(name) <= 100 else []  # the work grows with it
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
