"""How far a transcript is from what was said: least edits of words and of characters."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from zoo.data.targets import NOTHING

BLANK, SPACE = 0, 1  # indices of labels, as `zoo.data.recordings.spelled` has them


class Edits(NamedTuple):
    """What turns a truth into an answer."""

    replaced: int
    left_out: int
    put_in: int

    @property
    def count(self) -> int:
        return sum(self)


def paths(probabilities: np.ndarray, beams: int = 1) -> np.ndarray:
    """A symbol for each step of recordings, see `serve.beam_search.paths`."""
    from serve import beam_search

    return beam_search.paths(probabilities, beams)


def collapsed(best: np.ndarray) -> list[int]:
    """Symbols of the best path of one row `(steps,)`: repeats joined, then blanks left out (Graves et al. 2006)."""
    best = np.asarray(best, np.int64)
    new = np.concatenate([[True], best[1:] != best[:-1]])
    return best[new & (best != BLANK)].tolist()


def symbols(row: np.ndarray) -> list[int]:
    """Symbols of a target's row, without what fills it up."""
    return row[row != NOTHING].tolist()


def words(text: Sequence[int]) -> list[tuple[int, ...]]:
    """The words of a text as runs of symbols between spaces."""
    found: list[list[int]] = [[]]
    for symbol in text:
        if symbol == SPACE:
            found.append([])
        else:
            found[-1].append(symbol)
    return [tuple(word) for word in found if word]


def spelled(text: Sequence[int], labels: Sequence[str]) -> str:
    """Symbols as text, without spaces at its ends or several in a row."""
    return " ".join("".join(labels[symbol] for symbol in text).split())


def edits(truth: Sequence[Any], answer: Sequence[Any]) -> Edits:
    """The least number of replaced, left out and added items that turn one sequence into the other (Levenshtein 1966)."""
    before = [(place, Edits(0, 0, place)) for place in range(len(answer) + 1)]
    for row, wanted in enumerate(truth, 1):
        now = [(row, Edits(0, row, 0))]
        for place, given in enumerate(answer):
            if wanted == given:
                now.append(before[place])
                continue
            (swap, a), (skip, b), (more, c) = before[place], before[place + 1], now[place]
            now.append(
                min(
                    (swap + 1, a._replace(replaced=a.replaced + 1)),
                    (skip + 1, b._replace(left_out=b.left_out + 1)),
                    (more + 1, c._replace(put_in=c.put_in + 1)),
                    key=lambda each: each[0],
                )
            )
        before = now
    return before[-1][1]


def counted(y: np.ndarray, best: np.ndarray) -> dict[str, np.ndarray]:
    """Errors of each row.

    Args:
        y: targets `(rows, most)`, see `zoo.data.targets.Symbols`.
        best: the likeliest symbol of each step, `(rows, steps)`.

    Returns:
        Of "words" and of "characters": replaced, left out, put in, and how many there are, float64 `(rows, 4)`.
    """
    found: dict[str, list[tuple[int, ...]]] = {"words": [], "characters": []}
    for truth, answer in zip(map(symbols, y), map(collapsed, best), strict=True):
        told = [symbol for place, word in enumerate(words(answer)) for symbol in ((SPACE,) * bool(place) + word)]
        for unit, pair in {"words": (words(truth), words(answer)), "characters": (truth, told)}.items():
            found[unit].append((*edits(*pair), len(pair[0])))
    return {unit: np.array(rows, np.float64).reshape(-1, 4) for unit, rows in found.items()}
