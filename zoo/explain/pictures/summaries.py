"""Pictures of what counts over a data set: beeswarm and bars, mean pictures by class, lines over time."""

import math
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, Normalize
from matplotlib.figure import Figure

from zoo.explain.pictures.images import overlay
from zoo.explain.pictures.theme import DARK, LIGHT, Theme, bare, blank, literal, plain, reach, scale, short, title

COLUMNS = 15  # of a table, the ones that count most
WORDS = 20
CLASSES = 20
CHANNELS = 8
_POINTS = "cividis"  # colour map of values; not red and blue, which mean for and against
_GREY = "#8c9693"


def draw(summary: Any, dark: bool = False) -> Figure:
    """Figure of a summary."""
    theme = DARK if dark else LIGHT
    if summary.points is not None:
        return _table(summary, theme)
    if summary.axes == ("height", "width"):
        return _images(summary, theme)
    if summary.names:
        return _words(summary, theme)
    return _places(summary, theme)


def _importance(axis: Any, summary: Any, order: np.ndarray, colours: Any, theme: Theme) -> None:
    """Bars from the top with their intervals."""
    places = np.arange(len(order))[::-1]
    values = summary.importance[order]
    axis.barh(places, values, color=colours, height=0.62)
    known = np.isfinite(summary.low[order])
    spread = np.abs(np.stack([summary.low[order], summary.high[order]]) - values)[:, known]
    axis.errorbar(values[known], places[known], xerr=spread, fmt="none", ecolor=theme.ink, elinewidth=1.1, capsize=2.5)
    end = max(float(np.nanmax(np.r_[summary.high[order], values])), 1e-12)
    for place, value, high in zip(places, values, summary.high[order], strict=True):
        right = value if np.isnan(high) else max(high, value)
        axis.text(right + 0.02 * end, place, f"{value:.3g}", va="center", fontsize=8.5, color=theme.ink)
    axis.set_xlim(0, 1.2 * end)
    axis.set_ylim(-0.6, len(order) - 0.4)
    plain(axis, theme)
    axis.set_xlabel(literal(f"mean |contribution| to the {summary.unit}"), fontsize=8.5, color=theme.quiet)


def _table(summary: Any, theme: Theme) -> Figure:
    order = summary.order()[:COLUMNS]
    figure = blank(9.6, 0.42 * len(order) + 1.55, theme)
    swarm, sizes = figure.subplots(1, 2, width_ratios=(1.55, 1))
    places = np.arange(len(order))[::-1]
    colours = _map(theme)
    for place, column in zip(places, order, strict=True):
        values, ranks = summary.points[:, column], summary.cells[:, column]
        heights = place + _swarm(values, float(np.ptp(summary.points[:, order])))
        shades = np.where(np.isfinite(ranks)[:, None], colours(np.nan_to_num(ranks)), _rgba(_GREY))
        small = float(np.clip(600 / len(values), 3, 14))
        swarm.scatter(values, heights, s=small, c=shades, linewidths=0, alpha=0.9, rasterized=True)
    swarm.axvline(0, color=theme.ink, linewidth=0.8, zorder=0)
    swarm.set_ylim(-0.6, len(order) - 0.4)
    plain(swarm, theme)
    swarm.set_yticks(places, [literal(short(summary.names[at], 26)) for at in order], fontsize=9)
    swarm.tick_params(axis="y", length=0, labelcolor=theme.ink)
    swarm.set_xlabel(literal(f"contribution to the {summary.unit}, one point per row"), fontsize=8.5, color=theme.quiet)
    title(swarm, f"each of {summary.rows:,} rows", theme)
    _importance(sizes, summary, order, theme.quiet, theme)
    sizes.set_yticks([])
    title(sizes, "importance, 95 % interval", theme)
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), colours),
        ax=swarm,
        location="bottom",
        shrink=0.5,
        aspect=40,
        pad=0.02,
        anchor=(0, 0),
    )
    bar.set_ticks([0, 1], labels=["low value", "high value"])
    bar.ax.tick_params(labelsize=8, labelcolor=theme.quiet, length=0)
    bar.outline.set_visible(False)  # type: ignore[operator]
    rest = len(summary.names) - len(order)
    _caption(figure, summary, theme, f"{rest} columns that count less are not shown" if rest else "")
    return figure


def _swarm(values: np.ndarray, span: float) -> np.ndarray:
    """Offsets within ±0.4 that set points of nearly the same value beside each other."""
    bins = np.round(values / max(span, 1e-12) * 90).astype(int)
    offsets = np.zeros(len(values))
    crowd = max(int(np.unique(bins, return_counts=True)[1].max()), 8)
    for bin in np.unique(bins):
        own = np.flatnonzero(bins == bin)
        turns = np.arange(len(own))
        offsets[own] = np.where(turns % 2, -1, 1) * (turns + 1) // 2 * 0.8 / crowd
    return offsets


def _images(summary: Any, theme: Theme) -> Figure:
    shown = dict(sorted(summary.classes.items(), key=lambda each: -each[1].rows)[:CLASSES])
    labels = [label for label in summary.classes if label in shown]
    panels = len(labels) + 1
    wide = min(panels, 4) if panels != 6 else 3
    tall = math.ceil(panels / wide)
    height, width = summary.importance.shape
    cell = 2.15
    figure = blank(wide * cell + 1.1, tall * (cell * min(height / width, 2.5) + 0.35) + 0.45, theme)
    axes = figure.subplots(tall, wide, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    limit = reach(np.stack([shown[label].attributions for label in labels]))
    for axis, label in zip(axes.ravel(), labels, strict=False):
        axis.set_axis_on()
        overlay(axis, shown[label].image, shown[label].attributions, limit, theme)
        bare(axis, theme)
        title(axis, f"“{short(label, 15)}”, {shown[label].rows:,} rows", theme, 9.5)
    whole = axes.ravel()[len(labels)]
    whole.set_axis_on()
    whole.imshow(
        summary.importance, cmap=_sizes(theme), vmin=0, vmax=reach(summary.importance), interpolation="nearest"
    )
    bare(whole, theme)
    title(whole, "importance, all rows", theme, 9.5)
    label = f"mean contribution to the {summary.unit}, per pixel"
    scale(figure, axes.ravel().tolist(), limit, label, theme, shrink=0.9 if tall < 3 else 0.5, aspect=28)
    rest = len(summary.classes) - len(labels)
    _caption(figure, summary, theme, f"{rest} rarer classes are not shown" if rest else "")
    return figure


def _words(summary: Any, theme: Theme) -> Figure:
    order = summary.order()[:WORDS]
    figure = blank(8.4, 0.3 * len(order) + 1.35, theme)
    axis = figure.subplots()
    colours = [theme.speaks_for if summary.direction[at] > 0 else theme.against for at in order]
    _importance(axis, summary, order, colours, theme)
    names = [f"{short(summary.names[at] or '␣', 26)}  ({int(summary.counts[at])})" for at in order]
    axis.set_yticks(np.arange(len(order))[::-1], [literal(name) for name in names], fontsize=9)
    axis.tick_params(axis="y", length=0, labelcolor=theme.ink)
    title(axis, f"{summary.axes[0]} (rows that have it); red speaks for the answer on average, blue against", theme)
    rest = len(summary.names) - len(order)
    _caption(figure, summary, theme, f"{rest:,} more {summary.axes[0]} are not shown" if rest else "")
    return figure


def _places(summary: Any, theme: Theme) -> Figure:
    """Importance over time or position, a line per channel in its band."""
    values, low, high, direction = (
        each.reshape(len(each), -1) for each in (summary.importance, summary.low, summary.high, summary.direction)
    )
    shown = np.sort(np.argsort(-values.sum(axis=0), kind="stable")[:CHANNELS])
    times = np.arange(len(values)) if summary.times is None else summary.times
    figure = blank(8.4, 1.05 * len(shown) + 1.35, theme)
    axes = figure.subplots(len(shown), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axis, channel in zip(axes, shown, strict=True):
        axis.fill_between(times, low[:, channel], high[:, channel], color=theme.quiet, alpha=0.35, linewidth=0)
        axis.plot(times, values[:, channel], color=theme.ink, linewidth=1.3, marker="." if len(values) < 40 else None)
        axis.plot(times, direction[:, channel], color=theme.speaks_for, linewidth=1.0, linestyle=(0, (4, 2)))
        axis.axhline(0, color=theme.line, linewidth=0.8)
        plain(axis, theme, grid="both")
        axis.margins(x=0)
        if len(shown) > 1 or summary.columns:
            name = summary.columns[channel] if summary.columns else f"channel {channel}"
            axis.set_ylabel(literal(short(name, 14)), fontsize=8.5, color=theme.ink)
    unit = "seconds" if summary.times is not None else "steps" if summary.axes[0] == "time" else "position"
    axes[-1].set_xlabel(
        f"{'time' if summary.axes[0] == 'time' else summary.axes[0]}, {unit}", fontsize=8.5, color=theme.quiet
    )
    title(axes[0], f"importance with its 95 % interval; dashed: mean contribution to the {summary.unit}", theme)
    rest = values.shape[1] - len(shown)
    _caption(figure, summary, theme, f"{rest} channels that count less are not shown" if rest else "")
    return figure


def _map(theme: Theme) -> ListedColormap:
    """Colours of values, without those that the page would swallow."""
    from matplotlib import colormaps

    ends = (0.3, 1.0) if theme is DARK else (0.0, 0.88)
    return ListedColormap(colormaps[_POINTS](np.linspace(*ends, 256)))


def _sizes(theme: Theme) -> LinearSegmentedColormap:
    """From nothing, the page itself, to the strongest."""
    return LinearSegmentedColormap.from_list("sizes", [theme.ground, theme.quiet, theme.ink])


def _rgba(colour: str) -> np.ndarray:
    return np.array([*(int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)), 1.0])


def _caption(figure: Figure, summary: Any, theme: Theme, rest: str) -> None:
    told = [f"{summary.name}, {summary.method}, {summary.rows:,} rows", rest]
    text = literal(" · ".join(text for text in told if text))
    figure.supxlabel(text, fontsize=8, color=theme.quiet, x=0.012, ha="left")
