"""Words of a text, each on the colour of its attribution, or the ones that count most as bars."""

from functools import lru_cache
from typing import Any

import numpy as np

from zoo.explain.pictures.tables import bars, what
from zoo.explain.pictures.theme import Theme, bare, full, heading, literal, reading, scale, short

STYLES = ("colour", "bar")
BARS = 12  # words shown as bars
MOST_LINES = 40  # of a text in a picture; the page shows it whole
_SIZE = 11.0  # points of the text
_LINE = 0.31  # inches from line to line
_MARGIN = 1.25  # inches beside the text, for the colour bar and the edges


def height(explanation: Any, row: int, width: float, style: str) -> float:
    """Inches that a row needs."""
    if style == "bar":
        return 0.31 * min(max(len(explanation.parts(row)), 1), BARS) + 1.15
    lines = len(_lines(words(explanation, row), width - _MARGIN))
    return max(_LINE * min(lines, MOST_LINES) + 0.55, 1.45)


def words(explanation: Any, row: int) -> tuple[str, ...]:
    """The parts of a row's text as they are read; token numbers where there are no names."""
    if explanation.names:
        return tuple(word.replace("\n", " ") for word in explanation.names[row])
    tokens = explanation.inputs.get("tokens")
    if tokens is not None:
        return tuple(str(token) for token in tokens[row].tolist())
    return tuple(str(place) for place in range(explanation.attributions.shape[1]))


def panel(figure: Any, explanation: Any, row: int, width: float, style: str, theme: Theme, limit: float = 0.0) -> None:
    """Draw one row; colours are full at `limit`, the row's own largest if 0."""
    read, values = words(explanation, row), explanation.parts(row)
    axis = figure.subplots()
    told = f"model says {explanation.answer(row)}"
    if style == "bar":
        order = np.argsort(-np.abs(values), kind="stable")[:BARS]
        errors = None if explanation.standard_error is None else explanation.standard_error[row][order]
        bars(axis, [short(read[at].strip() or "␣", 30) for at in order], values[order], errors, width, theme)
        axis.set_xlabel(literal(f"contribution to {what(explanation, row)}"), fontsize=8.5, color=theme.quiet)
    else:
        limit = limit or full(explanation, row, values)
        _colour(axis, read, values, limit, width - _MARGIN, height(explanation, row, width, style) - 0.55, theme)
        scale(figure, axis, limit, explanation.unit, theme, shrink=0.95, aspect=12)
        told += f": {reading(explanation, values, limit, 'words')}"
    heading(figure, told, width, theme)


def _colour(
    axis: Any, read: tuple[str, ...], values: np.ndarray, limit: float, wide: float, tall: float, theme: Theme
) -> None:
    """The text in lines; the axis is measured in inches from its upper left corner."""
    bare(axis, theme)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_xlim(0, wide)
    axis.set_ylim(max(tall, _LINE), 0)
    lines = _lines(read, wide)
    for number, line in enumerate(lines[:MOST_LINES]):
        for at, x in line:
            shade = theme.colours(0.5 + 0.5 * float(np.clip(values[at] / limit, -1, 1)))
            axis.text(
                x + 0.05,
                (number + 0.5) * _LINE,
                literal(read[at].strip() or "␣"),
                va="center_baseline",
                fontsize=_SIZE,
                color=theme.ink if np.abs(values[at]) < 0.6 * limit else theme.ground,
                bbox={"boxstyle": "round,pad=0.22,rounding_size=0.25", "facecolor": shade, "edgecolor": "none"},
            )
    if len(lines) > MOST_LINES:
        axis.text(0.05, MOST_LINES * _LINE, "…", fontsize=_SIZE, color=theme.quiet)


def _lines(read: tuple[str, ...], wide: float) -> list[list[tuple[int, float]]]:
    """Words broken into lines: index and left edge in inches of each."""
    lines: list[list[tuple[int, float]]] = [[]]
    x = 0.0
    for at, word in enumerate(read):
        size = _inches(word.strip() or "␣") + 0.16
        if lines[-1] and x + size > wide:
            lines.append([])
            x = 0.0
        lines[-1].append((at, x))
        x += size
    return lines


@lru_cache(maxsize=4096)
def _inches(word: str) -> float:
    """Width of a word in the picture's font."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    path = TextPath((0, 0), literal(word), size=_SIZE, prop=FontProperties())
    return float(path.get_extents().width) / 72 if len(path.vertices) else 0.05
