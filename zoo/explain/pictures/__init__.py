"""Pictures of explanations, one file per kind of input; each row of a batch is a panel of its own.

A kind's file has `STYLES`, `height(explanation, row, width, style)` in inches and
`panel(figure, explanation, row, width, style, theme)`, which draws the row into a figure or a part of one.
"""

from collections.abc import Sequence
from textwrap import wrap
from types import ModuleType
from typing import Any

from matplotlib.figure import Figure

from zoo.explain.explanation import WIDTH
from zoo.explain.pictures import graphs, images, pairs, series, tables, texts
from zoo.explain.pictures.theme import DARK, LIGHT, Theme, blank, literal

NARROWEST, WIDEST = 4.0, 20.0  # inches
MOST_ROWS = 64  # of a picture: more make a file that nothing opens
_LINE = 0.18  # inches of a line below the rows
_KINDS: dict[str, ModuleType] = {
    "image": images,
    "detection": images,
    "segmentation": images,
    "table": tables,
    "text": texts,
    "series": series,
    "graph": graphs,
    "pair": pairs,
}


def of(kind: str) -> ModuleType:
    """The file that draws explanations of a kind.

    Raises:
        ValueError: no file does.
    """
    if kind not in _KINDS:
        raise ValueError(f"no picture is known for {kind!r}; kinds are {', '.join(_KINDS)}")
    return _KINDS[kind]


def chosen(kind: str, style: str | None) -> str:
    """The style of that name, or the usual one of a kind if None.

    Raises:
        ValueError: the kind has no such style.
    """
    styles = of(kind).STYLES
    if style is not None and style not in styles:
        raise ValueError(f"no style {style!r} for {kind} inputs; styles are {', '.join(styles)}")
    return style or styles[0]


def draw(explanation: Any, rows: int = 4, style: str | None = None, dark: bool = False, width: float = WIDTH) -> Figure:
    """Figure of the first rows of an explanation.

    Args:
        explanation: with its inputs.
        rows: panels at most, 1 … 64.
        style: one of the kind's `STYLES`, the first if None.
        dark: colours for a dark page.
        width: inches, 4 … 20; letters keep their size.

    Raises:
        ValueError: `rows` is not 1 … 64, `width` not 4 … 20, no such style, or the explanation has no inputs.
    """
    if not 1 <= rows <= MOST_ROWS:
        raise ValueError(f"rows must be 1 … {MOST_ROWS}, got rows={rows}; give a slice of the batch to see later rows")
    if not NARROWEST <= width <= WIDEST:
        raise ValueError(f"width must be {NARROWEST:g} … {WIDEST:g} inches, got width={width}")
    style = chosen(explanation.kind, style)
    if not explanation.inputs:
        raise ValueError(
            "the explanation was read without its inputs, so it cannot be drawn; write it with inputs=True"
        )
    shown = range(min(rows, len(explanation)))
    return assemble(explanation, shown, style, DARK if dark else LIGHT, _caption(explanation, width), width)


def assemble(
    explanation: Any, shown: Sequence[int], style: str, theme: Theme, caption: list[str], width: float = WIDTH
) -> Figure:
    """Panels of some rows above each other, with lines of small text below."""
    kind = of(explanation.kind)
    heights = [kind.height(explanation, row, width, style) for row in shown]
    figure = blank(width, sum(heights) + _LINE * len(caption) + 0.14, theme)
    panels = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for row, panel in zip(shown, panels, strict=True):
        panel.set_facecolor(theme.ground)
        kind.panel(panel, explanation, row, width, style, theme)
    if caption:
        text = literal("\n".join(caption))
        figure.supxlabel(text, fontsize=8, color=theme.quiet, x=0.012, ha="left")
    return figure


def _caption(explanation: Any, width: float) -> list[str]:
    """What was done and how far it can be trusted, in lines that fit the picture."""
    told = [text for text in explanation.trust() if not text.endswith(("model rows", " s"))]
    return wrap(" · ".join([f"{explanation.name}, {explanation.method}", *told]), int(17.2 * width))
