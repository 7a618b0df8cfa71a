"""The token that comes next: the likeliest, one that is drawn, or those of the likeliest whole answers."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ask:
    """How a text is continued.

    Attributes:
        most: tokens at most.
        temperature: logits are divided by it before one is drawn; 0 takes the likeliest.
        top_k: only the likeliest so many may be drawn; 0 for all.
        top_p: only the likeliest that together have this probability, in (0, 1], may be drawn.
        beams: answers that are followed at once, of which the likeliest for its length is given; 1 for none but one.
        stop: texts before which the answer ends.
        seed: of the drawing; None for another one each time.
    """

    most: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 1
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ValueError: a value is out of its range, or of another kind.
        """
        for name, least in (("most", 1), ("top_k", 0), ("beams", 1)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= LARGEST:
                raise ValueError(f"{name} must be a whole number from {least} to {LARGEST}, got {name}={value!r:.60}")
        if type(self.temperature) not in (int, float) or not 0 <= self.temperature <= HOTTEST:
            raise ValueError(f"temperature must be a number from 0 to {HOTTEST}, got {self.temperature!r:.60}")
        if type(self.top_p) not in (int, float) or not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be a number above 0 and up to 1, got {self.top_p!r:.60}")
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop must be texts that are not empty, got {self.stop!r:.60}")
        if self.seed is not None and (type(self.seed) is not int or not 0 <= self.seed < 2**63):
            raise ValueError(f"seed must be a whole number from 0 to 2^63 - 1, got {self.seed!r:.60}")
        if self.beams > 1 and self.temperature:
            raise ValueError(
                f"beams follow the likeliest answers and draw nothing, got beams={self.beams} and "
                f"temperature={self.temperature!r}; leave one of them out"
            )


LARGEST = 100_000
HOTTEST = 100.0


def drawn(logits: np.ndarray, ask: Ask, random: np.random.Generator) -> int:
    """A token by its probability, with one number from the generator.

    Args:
        logits: float (vocabulary,).
        ask: its `temperature` (above 0), `top_k` and `top_p`, which take effect in this order.
        random: where the number comes from.

    Raises:
        FloatingPointError: a logit is not a number.

    Source: Fan, Lewis & Dauphin 2018 (arXiv:1805.04833), section 5.2, for `top_k`; Holtzman et al. 2019
    (arXiv:1904.09751), section 3.1, for `top_p`.
    """
    if np.isnan(logits.max()):
        raise FloatingPointError("the model gave a logit that is not a number")
    tokens = np.arange(len(logits))
    if 0 < ask.top_k < len(logits):
        least = np.partition(logits, -ask.top_k)[-ask.top_k]  # tokens that are equally likely all stay
        tokens = np.flatnonzero(logits >= least)
        logits = logits[tokens]
    weights = np.exp((logits - logits.max()).astype(np.float64) / ask.temperature)
    if ask.top_p < 1:
        total = weights.sum()
        # all that are less likely than this have together less than 1 - top_p, so that only the others are sorted
        able = np.flatnonzero(weights >= total * (1 - ask.top_p) / len(weights))
        able = able[np.argsort(-weights[able], kind="stable")]
        count = int(np.searchsorted(np.cumsum(weights[able]), ask.top_p * total)) + 1
        able = np.sort(able[:count])
        tokens, weights = tokens[able], weights[able]
    sums = np.cumsum(weights)
    place = int(np.searchsorted(sums, random.random() * sums[-1], side="right"))
    return int(tokens[min(place, len(tokens) - 1)])


class Beams:
    """The likeliest answers to one text, a token longer with every call.

    An answer's score is the sum of its tokens' log-probabilities, divided by their number where it has ended. The search is
    over when as many have ended as there are beams and the best that goes on is worse than the worst of them.

    Source: the scores and the end are those of Hugging Face transformers 5, `GenerationMixin._beam_search`, with its
    default `length_penalty=1.0` and `early_stopping=False`.
    """

    def __init__(self, width: int, most: int, end: int) -> None:
        """Begin behind a text.

        Args:
            width: answers that are followed.
            most: tokens of an answer.
            end: token that ends one; -1 for none.
        """
        self.width, self.most, self.end = width, most, end
        self._answers: list[list[int]] = [[]]
        self._scores = np.zeros(1)
        self._ended: list[tuple[float, list[int]]] = []

    def advance(self, logits: np.ndarray) -> tuple[list[int], list[int]]:
        """Go on by one token.

        Args:
            logits: (answers, vocabulary), of the text itself in the first call.

        Returns:
            For each answer that goes on, which one it continues, and its new token; both empty when the search is over.
        """
        logits = logits.astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        chances = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)) + self._scores[:, None]
        count = min(2 * self.width, chances.size)  # as many may end, and the search goes on
        flat = chances.ravel()
        best = np.argpartition(-flat, count - 1)[:count]
        best = best[np.lexsort((best, -flat[best]))]
        parents, tokens = np.divmod(best, chances.shape[1])
        length = len(self._answers[0]) + 1
        over = (tokens == self.end) | (length >= self.most)
        for place in np.flatnonzero(over[: self.width]):
            answer = [*self._answers[parents[place]], int(tokens[place])]
            self._ended.append((float(flat[best[place]]) / length, answer))
        self._ended = sorted(self._ended, key=lambda one: -one[0])[: self.width]
        on = np.flatnonzero(~over)[: self.width]
        if not len(on):
            return [], []
        self._answers = [[*self._answers[parents[place]], int(tokens[place])] for place in on]
        self._scores = flat[best[on]]
        full = len(self._ended) == self.width
        if full and self._scores[0] / length <= self._ended[-1][0]:
            return [], []
        return parents[on].tolist(), tokens[on].tolist()

    @property
    def answer(self) -> list[int]:
        """Tokens of the best answer so far, with the one that ends it."""
        return self._ended[0][1] if self._ended else self._answers[0]
