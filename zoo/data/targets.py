"""What the true targets of each task look like before any model sees them. numpy only.

A data set's `y` is one array with a row for each row of `x`, so that `y[rows]`, `len(y)` and hashing mean the same for
every task:

- classes: int64 `(rows,)`, index of the label
- values: float32 `(rows,)`, in the target's own unit; `(rows, steps)` of a forecast
- masks: uint8 `(rows, height, width)`, index of the label of each pixel, `UNKNOWN` where nobody knows it
- boxes: float32 `(rows, most, 5)`, left, top, right, bottom in pixels and the index of the label; `NOTHING` in place of
  the index where a row has fewer
- identities: int64 `(rows, 1 + most)`, whose picture it is and the numbers of the pairs it is judged in, `NOTHING` where
  it is in fewer
- symbols: int64 `(rows, most)`, index of the label of each symbol of a text, `NOTHING` behind its end
- tags: int32 `(rows, length + cut)`, index of the label of each word of a text at its first token, `NOTHING` at all others;
  words that are cut stand behind these
- hidden: int32 `(rows, length)`, the token at each place of a text that is hidden, `NOTHING` at all others
- captions: int64 `(rows, 2)`, the number of the row's picture and that of what its text says

Targets of which a row may hold any number (such as boxes) are padded to the largest number of any row, by entries that
say so themselves.
"""

from collections.abc import Sequence

import numpy as np

UNKNOWN = 255  # in a mask: a pixel that is neither learned from nor judged
NOTHING = -1  # label of a box that is none; number of a pair that is none
_IN_FOLD = 2**32  # numbers that the pairs of one fold may have
_FEW = 10  # rows that a kind of row needs, to be dealt to the splits on its own


class Kind:
    """Targets of one task.

    Attributes:
        dtype: of `y`.
        least: labels that there must be.
        each: whether every label must be in a row of every split that is dealt out.
        timed: whether rows follow each other in time, so that those to be judged by keep their order.
        together: what rows of one number in `whole` have in common, one and several of them.
    """

    dtype: type = np.int64
    least = 1
    each = False
    timed = False
    together = ("identity", "identities")

    def present(self, y: np.ndarray, classes: int) -> np.ndarray:
        """Which labels are in which row, bool `(rows, classes)`; `(rows, 0)` where targets are no labels."""
        return np.zeros((len(y), 0), bool)

    def counts(self, y: np.ndarray, classes: int) -> np.ndarray:
        """How often each label is there, counted in its own unit (rows, pixels, boxes), `(classes,)`."""
        return self.present(y, classes).sum(axis=0)

    def strata(self, y: np.ndarray, classes: int) -> np.ndarray:
        """Kind of each row, int64 `(rows,)`; every split gets its share of each.

        Where a row holds several labels, the rarest of them decides; kinds of fewer than ten rows go together.
        """
        present = self.present(y, classes)
        if not present.shape[1]:
            return np.zeros(len(y), np.int64)
        order = np.argsort(present.sum(axis=0), kind="stable")
        found = np.where(present.any(axis=1), order[present[:, order].argmax(axis=1)], classes)
        sizes = np.bincount(found, minlength=classes + 1)
        return np.where(sizes[found] < _FEW, classes + 1, found)

    def resized(self, y: np.ndarray, was: tuple[int, ...], now: tuple[int, ...]) -> np.ndarray:
        """Targets that follow their pictures from one `(height, width, channels)` to another."""
        return y

    def encoded(self, y: np.ndarray) -> np.ndarray:
        """Targets in the type that travels to a task's `encode`."""
        return y

    def whole(self, y: np.ndarray) -> np.ndarray | None:
        """A number for each row, `(rows,)`: rows of one number belong in one split; None where any row may be anywhere."""
        return None

    def numbered(self, y: np.ndarray, learned: np.ndarray) -> np.ndarray:
        """The same targets, numbered as suits training; `learned` says which rows are trained on, bool `(rows,)`."""
        return y


class Classes(Kind):
    """One label for each row."""

    least = 2
    each = True

    def present(self, y: np.ndarray, classes: int) -> np.ndarray:
        return y[:, None] == np.arange(classes)

    def strata(self, y: np.ndarray, classes: int) -> np.ndarray:
        return y.astype(np.int64)

    def encoded(self, y: np.ndarray) -> np.ndarray:
        return y.astype(np.int64)


class Values(Kind):
    """One number for each row."""

    dtype = np.float32


class Futures(Values):
    """The next values of a series, one for each step; rows are in the order of time and are not dealt out."""

    timed = True


class Masks(Kind):
    """One label for each pixel."""

    dtype = np.uint8
    least = 2

    def present(self, y: np.ndarray, classes: int) -> np.ndarray:
        return np.stack([(y == label).any(axis=(1, 2)) for label in range(classes)], axis=1)

    def counts(self, y: np.ndarray, classes: int) -> np.ndarray:
        return np.bincount(y.ravel(), minlength=UNKNOWN + 1)[:classes]

    def resized(self, y: np.ndarray, was: tuple[int, ...], now: tuple[int, ...]) -> np.ndarray:
        """Each pixel takes the label of the pixel whose centre is nearest."""
        places = [
            np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1)
            for old, new in zip(was[:2], now[:2], strict=True)
        ]
        return y[:, places[0]][:, :, places[1]]


class Boxes(Kind):
    """Any number of labelled boxes for each row."""

    dtype = np.float32

    def present(self, y: np.ndarray, classes: int) -> np.ndarray:
        return (y[..., 4, None] == np.arange(classes)).any(axis=1)

    def counts(self, y: np.ndarray, classes: int) -> np.ndarray:
        return (y[..., 4, None] == np.arange(classes)).sum(axis=(0, 1))

    def resized(self, y: np.ndarray, was: tuple[int, ...], now: tuple[int, ...]) -> np.ndarray:
        """Corners at the same places of the new picture."""
        down, across = now[0] / was[0], now[1] / was[1]
        return y * np.array([across, down, across, down, 1], np.float32)

    @staticmethod
    def padded(boxes: "list[np.ndarray]", labels: "list[np.ndarray]") -> np.ndarray:
        """Boxes `(count, 4)` and labels `(count,)` of each row as one array, with room for at least one in each."""
        y = np.zeros((len(boxes), max([1, *map(len, boxes)]), 5), np.float32)
        y[..., 4] = NOTHING
        for row, (own, kinds) in enumerate(zip(boxes, labels, strict=True)):
            y[row, : len(own), :4] = own
            y[row, : len(own), 4] = kinds
        return y


class Symbols(Kind):
    """A text for each row; the labels are the blank, which is in none, the space, and then every other symbol."""

    least = 3

    def present(self, y: np.ndarray, classes: int) -> np.ndarray:
        found = (y[..., None] == np.arange(classes)).any(axis=1)
        found[:, :2] = True  # blanks and spaces are everywhere, and never rare
        return found

    def counts(self, y: np.ndarray, classes: int) -> np.ndarray:
        return np.bincount(y[y != NOTHING].ravel(), minlength=classes)

    @staticmethod
    def padded(texts: "list[list[int]]") -> np.ndarray:
        """Texts as indices of labels, as one array with room for at least one in each."""
        y = np.full((len(texts), max([1, *map(len, texts)])), NOTHING, np.int64)
        for row, text in zip(y, texts, strict=True):
            row[: len(text)] = text
        return y


class Following(Kind):
    """How many characters of a text are to be foretold, then the token behind each of its tokens, `NOTHING` where none is.

    The first token is not foretold. They follow from the text once a tokenizer is there; until then a row has the number,
    from 1 on, of the file or stretch of text that it is a piece of, 0 where it is a text of its own.
    """

    dtype = np.int32
    least = 0
    together = ("file or stretch of text", "files or stretches of text")

    def whole(self, y: np.ndarray) -> np.ndarray | None:
        return y[:, 0] if y.shape[1] == 1 and y.any() else None

    def encoded(self, y: np.ndarray) -> np.ndarray:
        return y[:, 1:]


class Captions(Kind):
    """Which picture and which text belong together: those of one row, and of rows that share either.

    All rows of a picture are in one split.
    """

    least = 0
    together = ("picture", "pictures")

    def whole(self, y: np.ndarray) -> np.ndarray | None:
        return y[:, 0]

    @staticmethod
    def packed(pictures: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Numbers of pictures `(rows,)` and of texts `(rows,)`, equal where they are the same, as one array."""
        return np.stack([pictures, texts], axis=1).astype(np.int64)


class Answers(Following):
    """Whether its tokens are the whole answer, 0 where it was cut or has parts that the tokenizer does not know; then its
    tokens with the one that ends it, `NOTHING` behind that. They too follow once a tokenizer is there.
    """


class Hidden(Following):
    """The true tokens at the places of a text that are hidden, `NOTHING` at all others; int32 `(rows, length)`.

    They are drawn once a tokenizer is there.
    """

    def encoded(self, y: np.ndarray) -> np.ndarray:
        return y


class Tags(Kind):
    """The label of each word of a text at the place of its first token, `NOTHING` at all others; int32 `(rows, length + cut)`.

    Behind the tokens of a row are the labels of the words that are cut, which are judged and not learned.

    Until a tokenizer is there a row holds the marked parts of its text, int32 `(rows, most, 3)`: first character, the one behind
    the last, and the label that a part begins with, `NOTHING` where a row has fewer.
    """

    dtype = np.int32
    least = 3

    def present(self, y: np.ndarray, classes: int) -> np.ndarray:
        found = (_labels_in(y)[..., None] == np.arange(classes)).any(axis=1)
        if y.ndim == 3:  # words outside are everywhere, and any part may go on
            found[:, 0] = True
            found[:, 2::2] = found[:, 1::2]
        return found

    def counts(self, y: np.ndarray, classes: int) -> np.ndarray:
        found = _labels_in(y)
        return np.bincount(found[found != NOTHING], minlength=classes)

    @staticmethod
    def padded(spans: "list[list[tuple[int, int, int]]]") -> np.ndarray:
        """Marked parts of each text as one array, with room for at least one in each."""
        y = np.full((len(spans), max([1, *map(len, spans)]), 3), NOTHING, np.int32)
        for row, own in zip(y, spans, strict=True):
            if own:
                row[: len(own)] = own
        return y


def _labels_in(y: np.ndarray) -> np.ndarray:
    return y[..., 2] if y.ndim == 3 else y


class Identities(Kind):
    """Whose picture each row is. No identity is in two splits; those of training have the numbers from 0 on."""

    least = 0

    def encoded(self, y: np.ndarray) -> np.ndarray:
        return y[:, 0]

    def whole(self, y: np.ndarray) -> np.ndarray | None:
        return y[:, 0]

    def numbered(self, y: np.ndarray, learned: np.ndarray) -> np.ndarray:
        names, index = np.unique(y[:, 0], return_inverse=True)
        later = ~np.isin(np.arange(len(names)), index[learned])
        places = np.empty(len(names), np.int64)
        places[np.argsort(later, kind="stable")] = np.arange(len(names))
        return np.concatenate([places[index][:, None], y[:, 1:]], axis=1)

    @staticmethod
    def packed(identities: np.ndarray, pairs: Sequence[tuple[int, int, int]] = ()) -> np.ndarray:
        """Identities `(rows,)` and pairs of rows, `(row, row, fold)`, as one array."""
        of_row: list[list[int]] = [[] for _ in identities]
        for place, (one, other, fold) in enumerate(pairs):
            for row in (one, other):
                of_row[row].append(fold * _IN_FOLD + place)
        y = np.full((len(identities), 1 + max(map(len, of_row), default=0)), NOTHING, np.int64)
        y[:, 0] = identities
        for row, own in enumerate(of_row):
            y[row, 1 : 1 + len(own)] = own
        return y

    @staticmethod
    def pairs(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs that have both their rows here, int64 `(pairs, 2)`, and the fold of each."""
        rows, columns = np.nonzero(y[:, 1:] != NOTHING)
        numbers = y[rows, columns + 1]
        order = np.argsort(numbers, kind="stable")
        twice = np.flatnonzero(numbers[order][1:] == numbers[order][:-1])
        return np.stack([rows[order][twice], rows[order][twice + 1]], axis=1), numbers[order][twice] // _IN_FOLD


KINDS: dict[str, Kind] = {
    "classification": Classes(),
    "image-classification": Classes(),
    "series-classification": Classes(),
    "text-classification": Classes(),
    "regression": Values(),
    "forecasting": Futures(),
    "segmentation": Masks(),
    "detection": Boxes(),
    "embedding": Identities(),
    "speech-recognition": Symbols(),
    "language-modelling": Following(),
    "masked-language-modelling": Hidden(),
    "token-classification": Tags(),
    "text-to-text": Answers(),
    "image-text": Captions(),
    "text-to-image": Captions(),
}


def of(task: str) -> Kind:
    """The kind of targets that a task has."""
    return KINDS[task]
