"""The step from texts to a model's tokens, and from answers that are texts to what is foretold of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from zoo.data import tokens
from zoo.data.targets import NOTHING

MOST = 256  # tokens of a text where nobody says how many, and of an answer
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
        answer: tokens of an answer, the one that starts it included; 0 where texts are not answered by texts.
        marks: whether `[MASK]` in a text is that token; elsewhere it is these letters.
        pair: whether a row is two texts, which the tokenizer puts one behind the other with a token between.
    """

    tokenizer: str
    length: int
    pad: int = 0
    kind: str = "text"
    asked: str = ""
    answer: int = 0
    pair: bool = False
    marks: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one model input, `(length,)`."""
        return (self.length,)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each model input by name."""
        return {"tokens": self.shape, "answer": (self.answer,)} if self.answer else {"tokens": self.shape}

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        tokenizer: str = "",
        length: int = 0,
        answers: Sequence[str] = (),
        second: Sequence[str] = (),
    ) -> "TextPreprocess":
        """A tokenizer made from training texts.

        Of texts with answers it is made from both, and both end with a token of their own. There are then places for the
        longest of either, at most 256.

        Args:
            texts: the training split's.
            tokenizer: what kind, of which size, or a file; see `zoo.data.tokens.make`.
            length: tokens of a row; 0 for as many as 98 % of the texts have, at most 256.
            answers: to the texts, where these are answered by texts; "" for the tokenizer is then "bpe", which can write
                every text.
            second: the other text of each row, where rows are pairs.

        Raises:
            ValueError: there is no such tokenizer, or the length is too small; or none that says where an answer, or the first
                text of a pair, ends.
        """
        if len(answers):
            content = _ended(tokenizer or "bpe", [*texts, *answers])
        else:
            content = tokens.make(tokenizer, [*texts, *second])
        if len(second):
            tokens.check_pairs(content, tokenizer)
        if not length:
            share = 1.0 if len(answers) else COVERED
            found = int(np.quantile(tokens.counts(content, texts, second), share, method="higher"))
            special = tokens.opened(content).num_special_tokens_to_add(bool(len(second)))
            length = max(special + 1, min(found, MOST))
        places = 0
        if len(answers):  # the first token is the start, whatever stands in front of other texts
            places = min(int(tokens.counts(content, answers).max()) - len(tokens.borders(content)[:-1]) + 1, MOST)
        content = tokens.fixed(content, length)
        return cls(
            content,
            length,
            tokens.padding(tokens.opened(content)),
            asked=tokenizer,
            answer=places,
            pair=len(second) > 0,
        )

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
    def mask(self) -> int | None:
        """Token for one that is hidden, None where there is none."""
        return tokens.mask(self._opened)

    @property
    def special(self) -> tuple[int, ...]:
        """Tokens that no text is made of."""
        return tokens.special(self._opened)

    @property
    def unknown(self) -> int | None:
        """Token for what the vocabulary has not, None where nothing is unknown."""
        return tokens.unknown(self._opened)

    @property
    def start(self) -> int:
        """Token that an answer starts with: the one in front of every text, or the padding where there is none."""
        return self._borders[0] if len(self._borders) > 1 else self.pad

    @property
    def end(self) -> int | None:
        """Token behind an answer, None where no text has one."""
        return self._borders[-1] if self._borders else None

    @cached_property
    def _borders(self) -> list[int]:
        return tokens.borders(self.tokenizer)

    @cached_property
    def _opened(self) -> Any:
        found = tokens.opened(self.tokenizer)
        found.encode_special_tokens = not self.marks
        return found

    @cached_property
    def _uncut(self) -> Any:
        tokenizer = tokens.opened(self.tokenizer)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def __call__(self, raw: dict[str, np.ndarray]) -> np.ndarray | dict[str, np.ndarray]:
        """Tokens int32 `(batch, length)` of `{"text": str (batch,)}`, of a pair with `second`; or of `{"tokens": …}` these themselves.

        Where texts are answered, `{"tokens": …, "answer": int32 (batch, places)}`: its start, and of `{"answer": str (batch,)}`
        the tokens behind it.
        """
        if "tokens" in raw:
            found = np.asarray(raw["tokens"], np.int32)
        else:
            found = tokens.numbers(self._opened, map(str, raw["text"]), map(str, raw["second"]) if self.pair else ())
        if not self.answer:
            return found
        given = np.asarray(raw.get("answer", np.full(len(found), "")))
        if given.dtype.kind in "iu":
            return {"tokens": found, "answer": given.astype(np.int32)}
        begun = np.full((len(found), self.answer), self.pad, np.int32)
        begun[:, 0] = self.start
        if "answer" in raw:
            for row, own in zip(begun, self._said(given), strict=True):
                row[1 : 1 + len(own)] = own[: len(row) - 1]
        return {"tokens": found, "answer": begun}

    def lost(self, texts: Sequence[str], second: Sequence[str] = ()) -> tuple[int, float]:
        """How many texts, or pairs, are cut, and which share of all their tokens is unknown, special ones left out."""
        rows = list(zip(texts, second, strict=True)) if self.pair else list(texts)
        found = [each.ids for each in self._uncut.encode_batch_fast(rows)]
        every = np.concatenate(found)
        strange = every == self.unknown
        there = strange | ~np.isin(every, self.special)
        return sum(len(each) > self.length for each in found), float(strange.sum() / max(1, there.sum()))

    def following(self, answers: Sequence[str]) -> np.ndarray:
        """Targets of answers, see `zoo.data.targets.Answers`; int32 `(rows, 1 + places)`."""
        y = np.full((len(answers), 1 + self.answer), NOTHING, np.int32)
        for row, own in zip(y, self._said(answers), strict=True):
            kept = own[: self.answer - 1]
            row[1 : 1 + len(kept)] = kept
            row[0] = kept == own and self.unknown not in own
        return y

    def written(self, numbers: Sequence[int]) -> str:
        """The text of an answer's tokens, up to the one that ends it."""
        found = [int(number) for number in numbers]
        found = found[: found.index(self.end)] if self.end in found else found
        return str(self._opened.decode([number for number in found if number >= 0]))

    def _said(self, answers: Sequence[str]) -> list[list[int]]:
        """Tokens of each answer with its end, and without its start."""
        first = len(self._borders) - 1
        return [each.ids[first:] for each in self._uncut.encode_batch_fast([str(text) for text in answers])]


def _ended(tokenizer: str, texts: Sequence[str]) -> str:
    """A tokenizer that puts a token behind each text, by which an answer ends."""
    content = tokens.make(tokenizer, texts)
    if tokenizer.partition(":")[0] in tokens.KINDS:
        return tokens.ended(content)
    if not tokens.borders(content):
        raise ValueError(
            f"{tokenizer} puts no token behind a text, such as </s> or [SEP], by which an answer would end; take another one, "
            "or one that is made here, such as tokenizer=bpe:4000"
        )
    return content
