"""The two sides of a pair, each drawn as its own kind: texts above each other, anything else side by side."""

from types import ModuleType
from typing import Any

from zoo.explain.pictures import images, series, tables, texts
from zoo.explain.pictures.theme import NARROW, Theme, full, heading

STYLES = ("sides",)
_KINDS: dict[str, ModuleType] = {"image": images, "text": texts, "table": tables, "series": series}


def _drawn(explanation: Any) -> list[tuple[ModuleType, Any, str]]:
    """Module, explanation and style of either side."""
    if len(explanation.sides) != 2:
        raise ValueError(f"a pair has two sides, this explanation has {len(explanation.sides)}; give its sides")
    sides = [explanation.side(index) for index in (0, 1)]
    return [(_KINDS[side.kind], side, "map" if side.kind == "image" else _KINDS[side.kind].STYLES[0]) for side in sides]


def _pictures(explanation: Any) -> bool:
    return all(side.kind == "image" for side in explanation.sides)


def height(explanation: Any, row: int, width: float, style: str) -> float:
    """Inches that a row needs."""
    if _pictures(explanation) and width >= NARROW:
        return max(kind.height(side, row, width / 2, own) for kind, side, own in _drawn(explanation)) + 0.3
    above = 0.3 if _pictures(explanation) else 0.0
    return sum(kind.height(side, row, width, own) for kind, side, own in _drawn(explanation)) + above


def panel(figure: Any, explanation: Any, row: int, width: float, style: str, theme: Theme) -> None:
    """Draw one row."""
    drawn = _drawn(explanation)
    if _pictures(explanation) and width >= NARROW:
        halves, wide = figure.subfigures(1, 2), width / 2
    else:
        heights = [kind.height(side, row, width, own) for kind, side, own in drawn]
        halves, wide = figure.subfigures(2, 1, height_ratios=heights), width
    limit = full(explanation, row, explanation.attributions[row])  # one for both, so that colours can be compared
    for half, (kind, side, own) in zip(halves, drawn, strict=True):
        half.set_facecolor(theme.ground)
        kind.panel(half, side, row, wide, own, theme, **({} if kind is tables else {"limit": limit}))
    if _pictures(explanation):  # which alone do not tell the answer
        heading(figure, f"model says {explanation.answer(row)}", width, theme)
