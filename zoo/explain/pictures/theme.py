"""Colours by day and by night, and what every picture of an explanation is built from."""

from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

NARROW = 6.0  # inches, below which panels stand above each other and scales below them


@dataclass(frozen=True)
class Theme:
    """Colours of a picture; red speaks for an answer, blue against it, and both are told apart by all eyes."""

    ground: str
    ink: str
    quiet: str
    line: str
    speaks_for: str
    against: str
    stops: tuple[str, ...]  # of the colour map, from against to for
    colours: LinearSegmentedColormap = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "colours", LinearSegmentedColormap.from_list("contribution", self.stops))


LIGHT = Theme(
    ground="#ffffff",
    ink="#1d2422",
    quiet="#66706d",
    line="#dfe3e1",
    speaks_for="#c2272d",
    against="#2166ac",
    stops=("#2166ac", "#9cc3e0", "#ffffff", "#f2a99b", "#c2272d"),
)
DARK = Theme(
    ground="#1d2321",
    ink="#e7ecea",
    quiet="#9eaaa6",
    line="#3a4542",
    speaks_for="#ff7468",
    against="#63b0f4",
    stops=("#63b0f4", "#38607f", "#1d2321", "#8a4540", "#ff7468"),
)


def blank(width: float, height: float, theme: Theme) -> Figure:
    """An empty figure of a size in inches that needs no display."""
    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1, hspace=0.02, wspace=0.02)
    figure = Figure(figsize=(width, height), layout=layout, facecolor=theme.ground)
    FigureCanvasAgg(figure)
    return figure


def bare(axis: Any, theme: Theme) -> None:
    """No ticks, a faint frame."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_facecolor(theme.ground)
    for spine in axis.spines.values():
        spine.set_color(theme.line)


def plain(axis: Any, theme: Theme, grid: str | None = "x") -> None:
    """An axis with a faint grid along one direction and no frame but its lower edge."""
    axis.set_facecolor(theme.ground)
    axis.tick_params(labelsize=8.5, color=theme.line, labelcolor=theme.quiet)
    for side, spine in axis.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.line)
    if grid:
        axis.grid(axis=grid, color=theme.line, linewidth=0.7)
        axis.set_axisbelow(True)


def title(axis: Any, text: str, theme: Theme, size: float = 10.5) -> None:
    axis.set_title(literal(text), fontsize=size, color=theme.ink, loc="left", pad=7)


def heading(figure: Any, text: str, width: float, theme: Theme) -> None:
    """A title of a whole panel, `width` inches wide, from its left edge."""
    figure.suptitle(literal(fitted(text, width)), fontsize=10.5, color=theme.ink, x=0.012, ha="left")


def literal(text: str) -> str:
    """Text in which matplotlib sees no mathematics."""
    return text.replace("$", r"\$")


def fitted(text: str, width: float) -> str:
    """A title in one or two lines that fit so many inches; what is longer is cut."""
    return "\n".join(wrap(text, max(10, int(11.4 * width)), max_lines=2, placeholder=" …"))


def short(text: str, most: int) -> str:
    """At most so many letters."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def reach(values: np.ndarray, share: float = 0.998) -> float:
    """Size at which colours are full: so that a few outliers do not pale all else, and never 0."""
    sizes = np.abs(values[np.isfinite(values)])
    if not sizes.size or not sizes.max():
        return 1e-12
    limit = float(np.quantile(sizes, share))
    return limit if limit > sizes.max() / 20 else float(sizes.max())


def full(explanation: Any, row: int, values: np.ndarray, share: float = 0.998) -> float:
    """Size at which the colours of a row's values are full: `reach`, but never for what is rounding alone."""
    return max(reach(values, share), explanation.rounding(row))


def reading(explanation: Any, values: np.ndarray, limit: float, parts: str = "") -> str:
    """How the colours are to be read, such as `red words speak for it, blue against`."""
    both = bool((values < -limit / 100).any())
    red, s = f"red {parts}".strip(), "" if parts else "s"
    if explanation.unit == "similarity":
        return f"{red} make{s} the two alike{', blue unlike' if both else ''}"
    if explanation.task == "regression":
        return f"{red} raise{s} it{f', blue lower{s} it' if both else ''}"
    return f"{red} speak{s} for it{', blue against' if both else ''}"


def signed(value: float) -> str:
    """A contribution in three digits, always with its sign."""
    return f"{value:+.3g}".replace("-", "−")


def scale(figure: Any, axes: Any, limit: float, label: str, theme: Theme, **options: Any) -> None:
    """A colour bar from -limit to limit."""
    bar = figure.colorbar(ScalarMappable(Normalize(-limit, limit), theme.colours), ax=axes, pad=0.02, **options)
    bar.set_label(literal(label), fontsize=8.5, color=theme.quiet)
    bar.ax.locator_params(nbins=5)
    bar.ax.tick_params(labelsize=8, labelcolor=theme.quiet, color=theme.line)
    axis = bar.ax.xaxis if options.get("location") == "bottom" else bar.ax.yaxis
    axis.get_offset_text().set(size=8, color=theme.quiet)
    bar.outline.set_visible(False)  # type: ignore[operator]
