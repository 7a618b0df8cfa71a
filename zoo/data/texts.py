"""The step from texts to a model's tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from zoo.data import tokens

MOST = 256  # tokens of a text where nobody says how many
COVERED = 0.98  # share of the training texts that are not cut then


@dataclass(frozen=True)
class TextPreprocess:
    """A text to the numbers of its tokens, filled up or cut to a fixed number of them.

    Attributes:
        tokenizer: content of a `tokenizer.json`, with the length in it; see `zoo.data.tokens`.
        length: tokens of a row.
        pad: token behind the end of shorter texts.
        kind: "text".
        asked: what the tokenizer was made by, see `zoo.data.tokens.make`.
    """

    tokenizer: str
    length: int
    pad: int = 0
    kind: str = "text"
    asked: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one model input, `(length,)`."""
        return (self.length,)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each model input by name."""
        return {"tokens": self.shape}

    @classmethod
    def fit(cls, texts: Sequence[str], tokenizer: str = "", length: int = 0) -> "TextPreprocess":
        """A tokenizer made from training texts.

        Args:
            texts: the training split's.
            tokenizer: what kind, of which size, or a file; see `zoo.data.tokens.make`.
            length: tokens of a row; 0 for as many as 98 % of the texts have, at most 256.

        Raises:
            ValueError: there is no such tokenizer, or the length is too small.
        """
        content = tokens.make(tokenizer, texts)
        if not length:
            found = int(np.quantile(tokens.counts(content, texts), COVERED, method="higher"))
            special = tokens.opened(content).num_special_tokens_to_add(False)
            length = max(special + 1, min(found, MOST))
        content = tokens.fixed(content, length)
        return cls(content, length, tokens.padding(tokens.opened(content)), asked=tokenizer)

    @property
    def anew(self) -> "str | TextPreprocess":
        """What gives a tokenizer of the same kind for other training texts; this one itself where it was read from a file."""
        return self.asked if self.asked.partition(":")[0] in (*tokens.KINDS, "") else self

    @property
    def numbers(self) -> tuple[str, ...]:
        """None: a text has no columns."""
        return ()

    @property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """None, as `numbers`."""
        return {}

    @property
    def vocabulary(self) -> int:
        """Tokens that there are."""
        return max(self._opened.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def separator(self) -> int | None:
        """Token between two texts, None where there is none."""
        return tokens.separator(self._opened)

    @property
    def unknown(self) -> int | None:
        """Token for what the vocabulary has not, None where nothing is unknown."""
        return tokens.unknown(self._opened)

    @cached_property
    def _opened(self) -> Any:
        return tokens.opened(self.tokenizer)

    def __call__(self, raw: dict[str, np.ndarray]) -> np.ndarray:
        """Tokens int32 `(batch, length)` of `{"text": str (batch,)}`, or of `{"tokens": …}` these themselves."""
        if "tokens" in raw:
            return np.asarray(raw["tokens"], np.int32)
        return tokens.numbers(self._opened, map(str, raw["text"]))
