"""Pictures that are painted of texts, many at once: codes as in `serve.generation`, and a file that makes pictures of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serve.generation import Piece, Row, Running, Text, session
from serve.manifest import Manifest
from serve.sampling import Ask

__all__ = ["Painting", "paint"]


class Painting(Running):
    """Pictures that are being painted, all in one batch; each is the last piece of its row.

    Of an `Ask` nothing says how many codes there are, and `stop` has no meaning.
    """

    def __init__(self, folder: str | Path, manifest: Manifest, precision: str | None = None, threads: int = 0) -> None:
        """Open the files of a bundle; arguments and errors are those of `Running`."""
        super().__init__(folder, manifest, precision, threads)
        self._drawer = session(Path(folder) / self.block["files"][self.precision]["drawer"], threads)
        self._grid = tuple(self._drawer.get_inputs()[0].shape[1:])
        self._codes: dict[int, list[int]] = {}

    def drop(self, row: int) -> None:
        super().drop(row)
        self._codes.pop(row, None)

    def step(self) -> list[tuple[int, Piece]]:
        """One code for every row; those that wait are read first, and of those that are whole the picture is made.

        Returns:
            As `Running.step`.
        """
        pieces = super().step()
        whole = [(number, piece) for number, piece in pieces if piece.done]
        if whole:
            codes = np.array([self._codes.pop(number) for number, _ in whole], np.int32).reshape(-1, *self._grid)
            (found,) = self._drawer.run(None, {"codes": codes})
            for (_, piece), picture in zip(whole, np.rint(found).astype(np.uint8), strict=True):
                piece.picture = picture
        return pieces

    def _row(self, number: int, text: str, ask: Ask) -> Row:
        read, count, note = self._whole(text)
        picture = self.block["picture"]
        tokens = [
            picture["padding"] + place if token == picture["pad"] else picture["text"] + token
            for place, token in enumerate(read)
        ]
        self._codes[number] = []
        nothing = Text(self._tokenizer, [], ())
        return Row(number, ask, tokens, nothing, np.random.default_rng(ask.seed), picture["places"], count, note)

    def _piece(self, row: Row, token: int) -> Piece:
        self._codes[row.number].append(token)
        return Piece("", row.made, "end" if row.made == row.most else "")

    def _searched(self, row: Row) -> Piece:
        assert row.beams is not None
        self._codes[row.number] = row.beams.answer
        return Piece("", row.made, "end")


def paint(
    running: Painting, texts: Sequence[str], asked: Sequence[Ask], told: Callable[[str], object] = str
) -> np.ndarray:
    """A picture of each text, uint8 (texts, height, width, channels): the simple loop over `Painting.step`.

    Args:
        running: what paints.
        texts: to be painted.
        asked: how, one for each.
        told: called with what people should know, such as that a text was cut.

    Raises:
        ValueError: a text is blank.
    """
    found: dict[int, Any] = {running.add(text, ask): None for text, ask in zip(texts, asked, strict=True)}
    while not running.idle:
        for number, piece in running.step():
            found[number] = piece.picture
            if piece.note:
                told(piece.note)
    return np.stack(list(found.values()))
