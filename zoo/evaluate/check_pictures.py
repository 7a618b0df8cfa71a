"""Pictures of the checks on data and recipes, drawn without a display."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

RED, BLUE, GREY = "#c0392b", "#2c6fbb", "#8a8a8a"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def pairs(images: np.ndarray, near: Any, path: str | Path) -> Path:
    """Near copies side by side: the later split's row above, the earlier one's below."""
    count = len(images)
    figure = new_figure(1.5 * count + 0.4, 3.9)
    grid = figure.subplots(2, count, squeeze=False)
    for place, (two, copy) in enumerate(zip(images, near, strict=False)):
        labels = (f"{copy.split} {copy.row}", f"{copy.earlier} {copy.there}")
        for axes, values, label in zip(grid[:, place], two, labels, strict=True):
            axes.imshow(values if values.shape[-1] == 3 else values[..., 0], cmap="gray", vmin=0, vmax=255)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(label, fontsize=8)
        how = "mirrored" if copy.mirrored else f"distance {copy.distance:.2f}"
        grid[1, place].set_xlabel(how + ("\nother target" if copy.other_target else ""), fontsize=8)
    figure.suptitle(f"near copies across splits, {count} of {len(near)} (distance in parts of the usual)", fontsize=9)
    figure.savefig(path)
    return Path(path)


def columns(found: Any, name: str, path: str | Path, most: int = 20) -> Path:
    """How much of the target each column tells by itself, the most telling ones."""
    from zoo.evaluate.columns import TELLING

    shown = found[:most]
    figure = new_figure(7, max(2.4, 1.1 + 0.26 * len(shown)))
    axes = figure.subplots()
    colours = [RED if column.alone >= TELLING else BLUE for column in shown]
    axes.barh(range(len(shown)), [column.alone for column in shown], color=colours)
    notes = [f"{column.name} ({column.role})" if column.role else column.name for column in shown]
    axes.set_yticks(range(len(shown)), notes, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(TELLING, color="black", linestyle="--", linewidth=1, label=f"too telling, {TELLING:g}")
    axes.set(xlim=(0, 1.02), xlabel="0 guesses the target, 1 knows it", title=f"{name}: each column by itself")
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path)
    return Path(path)


def ablation(found: Any, path: str | Path) -> Path:
    """Scores of each seed with mean and interval, and differences to the base with their intervals."""
    lines = found.variants
    figure = new_figure(10.5, max(2.6, 1.4 + 0.42 * len(lines)))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
    for place, own in enumerate(lines):
        base = own.name == "base"
        clear = own.p < 0.05 and not base
        colour = GREY if base else (RED if own.difference < 0 else "#2e8b57") if clear else BLUE
        left.plot([own.low, own.high], [place, place], color=colour, linewidth=2)
        left.plot(own.mean, place, "o", color=colour, markersize=7)
        left.plot(own.scores, [place + 0.18] * len(own.scores), "|", color=colour, markersize=8, alpha=0.7)
        if not base:
            right.plot([own.difference_low, own.difference_high], [place, place], color=colour, linewidth=2)
            right.plot(own.difference, place, "o", color=colour, markersize=7)
            right.annotate(
                f"p {own.p:.2g}", (own.difference, place), xytext=(0, 7), textcoords="offset points", ha="center",
                fontsize=7, color=colour, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip
    right.axvline(0, color="black", linewidth=1)
    left.set_yticks(range(len(lines)), [own.name for own in lines])
    left.set_ylim(len(lines) - 0.5, -0.6)
    left.set(xlabel=f"{found.metric}, 95 % interval; marks are seeds", title=f"{found.model} on {found.data}")
    right.set(
        xlabel=f"difference to the base, 95 % interval, {len(found.seeds)} seeds", title="red worse, green better"
    )
    for axes in (left, right):
        axes.grid(alpha=0.3, axis="x")
    figure.savefig(path)
    return Path(path)


def doubts(images: np.ndarray, found: Any, path: str | Path) -> Path:
    """Images whose label looks wrong, with what it says and what they look like."""
    columns = min(8, len(images))
    lines = -(-len(images) // columns)
    figure = new_figure(1.45 * columns, 1.75 * lines + 0.4)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, values, doubt in zip(grid, images, found, strict=False):
        axes.imshow(values if values.shape[-1] == 3 else values[..., 0], cmap="gray", vmin=0, vmax=255)
        axes.set_title(f"{doubt.label}, or {doubt.likely}?", fontsize=9)
    figure.suptitle(f"labels that look wrong, {len(images)} of {len(found)}", fontsize=10)
    figure.savefig(path)
    return Path(path)


def doubt_counts(found: Any, name: str, path: str | Path, most: int = 20) -> Path:
    """How often each label looks like another one."""
    pairs_of: dict[str, int] = {}
    for doubt in found:
        key = f"{doubt.label}, looks like {doubt.likely}"
        pairs_of[key] = pairs_of.get(key, 0) + 1
    shown = sorted(pairs_of.items(), key=lambda item: -item[1])[:most] or [("none", 0)]
    figure = new_figure(7, max(2.2, 1.1 + 0.28 * len(shown)))
    axes = figure.subplots()
    axes.barh(range(len(shown)), [count for _, count in shown], color=BLUE)
    axes.set_yticks(range(len(shown)), [key for key, _ in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="rows", title=f"{name}: {len(found)} labels look wrong")
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path)
    return Path(path)
