"""Prefix beam search: the likeliest text of a recogniser's probabilities, over all ways in which it may be timed.

The best path takes the likeliest symbol of each step; a text may be likelier whose probability is spread over many paths.
Of that text again the likeliest path tells when its symbols were said. Loads numpy alone.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

BLANK, SPACE = 0, 1  # indices of labels
NEVER = -math.inf


class Found(NamedTuple):
    """One text.

    Attributes:
        symbols: of the text.
        score: logarithm of its probability, bonuses added.
    """

    symbols: tuple[int, ...]
    score: float


def search(
    probabilities: np.ndarray,
    width: int = 16,
    *,
    bonus: Callable[[tuple[int, ...]], float] | None = None,
    least: float = 1e-6,
) -> list[Found]:
    """Texts of one row, the best first.

    Source: Hannun, Maas, Jurafsky & Ng 2014, "First-Pass Large Vocabulary Continuous Speech Recognition using
    Bi-Directional Recurrent DNNs" (arXiv:1408.2873), algorithm 1.

    Args:
        probabilities: `(steps, symbols)`, the first symbol being the blank and the second the space.
        width: texts that are kept after each step.
        bonus: prefix -> what is added to its score when its last symbol has come, such as the logarithm of that symbol's
            probability after those before it, or a word's when it ends; 0 for nothing. See `of_words`.
        least: probability below which a symbol is not tried at a step.

    Returns:
        At most `width` texts.

    Raises:
        ValueError: `width` is below 1, or `probabilities` are no such array.
    """
    if width < 1 or np.ndim(probabilities) != 2 or np.shape(probabilities)[1] < 2:
        raise ValueError(
            f"probabilities must be (steps, symbols) and width at least 1, got {np.shape(probabilities)} and {width}"
        )
    with np.errstate(divide="ignore"):
        logs = np.log(np.asarray(probabilities, np.float64))
    floor = math.log(least) if least > 0 else NEVER
    given: dict[tuple[int, ...], float] = {(): 0.0}  # what bonuses have added to each prefix
    # prefix -> log probability of all its paths that end in a blank, and of those that do not
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, NEVER)}
    for line in logs:
        tried = [int(symbol) for symbol in np.flatnonzero(line >= floor) if line[symbol] > NEVER]
        new: dict[tuple[int, ...], tuple[float, float]] = {}

        def put(
            prefix: tuple[int, ...], place: int, value: float, new: dict[tuple[int, ...], tuple[float, float]] = new
        ) -> None:
            before = list(new.get(prefix, (NEVER, NEVER)))
            before[place] = _sum(before[place], value)
            new[prefix] = (before[0], before[1])

        for prefix, (blank, other) in beams.items():
            for symbol in tried:
                now = float(line[symbol])
                if symbol == BLANK:
                    put(prefix, 0, now + _sum(blank, other))
                    continue
                longer = (*prefix, symbol)
                if prefix and symbol == prefix[-1]:
                    put(prefix, 1, now + other)
                    put(longer, 1, now + blank)  # a symbol twice needs a blank between
                else:
                    put(longer, 1, now + _sum(blank, other))
                if longer not in given:
                    given[longer] = given[prefix] + (bonus(longer) if bonus else 0.0)
        scores = {prefix: _sum(*ends) + given[prefix] for prefix, ends in new.items()}
        ranked = sorted(scores, key=lambda prefix, scores=scores: (-scores[prefix], prefix))  # type: ignore[misc]
        beams = {prefix: new[prefix] for prefix in ranked[:width] if scores[prefix] > NEVER}
    return [Found(prefix, _sum(*ends) + given[prefix]) for prefix, ends in beams.items()]


def of_words(words: Sequence[str], labels: Sequence[str], bonus: float = 2.0) -> Callable[[tuple[int, ...]], float]:
    """A bonus for each known word when the space behind it comes, and as much taken for each unknown one.

    Args:
        words: that are known.
        labels: the recogniser's symbols.
        bonus: added to the logarithm of a text's probability.
    """
    known = set(words)

    def given(prefix: tuple[int, ...]) -> float:
        if prefix[-1] != SPACE:
            return 0.0
        word = "".join(labels[symbol] for symbol in prefix[:-1]).rpartition(" ")[2]
        return 0.0 if not word else bonus if word in known else -bonus

    return given


def path(probabilities: np.ndarray, symbols: Sequence[int]) -> np.ndarray:
    """The likeliest of the ways in which a text may be timed.

    Args:
        probabilities: `(steps, symbols)`, the first symbol being the blank.
        symbols: of the text.

    Returns:
        A symbol for each step, int64 `(steps,)`; with repeats joined and blanks left out they are the text.

    Raises:
        ValueError: there are fewer steps than the text needs.

    Source: Graves et al. 2006, "Connectionist Temporal Classification", equations 6 and 7 with the largest term in place of
    the sum (Viterbi 1967).
    """
    states = np.full(2 * len(symbols) + 1, BLANK)  # a blank before, between and behind the symbols
    states[1::2] = symbols
    new = np.concatenate([[False, False], states[2:] != states[:-2]])[
        : len(states)
    ]  # which the blank before may be left out of
    with np.errstate(divide="ignore"):
        logs = np.log(np.asarray(probabilities, np.float64))[:, states]  # (steps, states)
    begun = np.where(np.arange(len(states)) < 2, logs[0], NEVER)
    best, moves = begun, []
    for line in logs[1:]:
        one, two = (np.concatenate([np.full(back, NEVER), best])[: len(best)] for back in (1, 2))
        ways = np.stack([best, one, np.where(new, two, NEVER)])
        moves.append(ways.argmax(axis=0))
        best = ways.max(axis=0) + line
    at = len(states) - 1
    if at and best[at - 1] > best[at]:
        at -= 1
    if best[at] == NEVER:
        raise ValueError(
            f"a text of {len(symbols)} symbols cannot be said in {len(logs)} steps; give one that was found there"
        )
    places = [at]
    for move in reversed(moves):
        at -= int(move[at])
        places.append(at)
    return states[places[::-1]]


def paths(probabilities: np.ndarray, beams: int = 1) -> np.ndarray:
    """Of each row the best path, or for several beams the likeliest path of the likeliest text; int64 `(rows, steps)`.

    Args:
        probabilities: `(rows, steps, symbols)`.
        beams: texts that are kept after each step; 1 takes the likeliest symbol of each.
    """
    if beams == 1:
        return probabilities.argmax(axis=-1)
    found = [search(row, beams) for row in probabilities]  # nothing where probabilities are NaN
    return np.stack(
        [path(row, texts[0].symbols if texts else ()) for row, texts in zip(probabilities, found, strict=True)]
    )


def _sum(one: float, other: float) -> float:
    """Logarithm of the sum of two numbers that are given by their logarithms."""
    high, low = max(one, other), min(one, other)
    return high if low == NEVER else high + math.log1p(math.exp(low - high))
