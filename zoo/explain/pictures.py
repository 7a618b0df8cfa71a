"""Pictures of explanations: each image beside its contributions, and bars for columns."""

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

FOR, AGAINST, INK, FAINT = "#c2272d", "#2166ac", "#222222", "#8a8a8a"
BARS = 12  # columns shown one by one, the rest in one bar
_COLOURS = LinearSegmentedColormap.from_list("contribution", [AGAINST, "#9cc3e0", "#ffffff", "#f2a99b", FOR])


def draw(explanation: Any, rows: int) -> Figure:
    """Figure of the first rows of an explanation."""
    return _images(explanation, rows) if explanation.kind == "image" else _tables(explanation, rows)


def _answer(explanation: Any, row: int) -> str:
    value = explanation.prediction[row]
    if explanation.task == "regression":
        return f"{explanation.label(row)} = {value:.4g}"
    return f"“{explanation.label(row)}”  {value:.1%}"


def _images(explanation: Any, rows: int) -> Figure:
    figure = Figure(
        figsize=(7.6, 3.3 * rows + 0.5), layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08), facecolor="white"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 2, squeeze=False)
    for row in range(rows):
        image = explanation.inputs["image"][row]
        values = explanation.attributions[row].sum(axis=-1)  # (height, width)
        limit = max(float(np.quantile(np.abs(values), 0.998)), 1e-12)
        plain, shares = axes[row]
        _show(plain, image)
        plain.set_title(f"model says {_answer(explanation, row)}", fontsize=11, color=INK, loc="left")
        shares.imshow(_faint(image), cmap="gray", vmin=0, vmax=1)
        strength = np.minimum(np.abs(values) / limit, 1) ** 0.6  # so that small contributions let the image through
        drawn = shares.imshow(values, cmap=_COLOURS, vmin=-limit, vmax=limit, alpha=strength, interpolation="nearest")
        label = explanation.label(row)
        shares.set_title(f"speaks for “{label}” (red), against (blue)", fontsize=11, color=INK, loc="left")
        scale = ScalarMappable(drawn.norm, _COLOURS)
        bar = figure.colorbar(scale, ax=shares, shrink=0.86, pad=0.02)
        bar.set_label(f"contribution to {explanation.unit}, per pixel", fontsize=8.5, color=INK)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)
        for axis in (plain, shares):
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_color("#cccccc")
    _caption(figure, explanation)
    return figure


def _faint(image: np.ndarray) -> np.ndarray:
    """The image in light greys, dark strokes on white (height, width), in 0.8 … 1."""
    grey = image.mean(axis=-1)
    grey = grey / max(1.0, grey.max())
    return 0.8 + 0.2 * (1 - grey if grey.mean() < 0.5 else grey)


def _show(axis: Any, image: np.ndarray) -> None:
    if image.shape[-1] == 3:
        axis.imshow(image)
    else:
        grey = image.mean(axis=-1)
        axis.imshow(grey, cmap="gray", vmin=0, vmax=max(1.0, grey.max()))


def _tables(explanation: Any, rows: int) -> Figure:
    shown = min(len(explanation.columns), BARS + (len(explanation.columns) > BARS))
    figure = Figure(
        figsize=(8.2, (0.34 * shown + 1.25) * rows + 0.3),
        layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08),
        facecolor="white",
    )
    FigureCanvasAgg(figure)
    for row, axis in enumerate(figure.subplots(rows, 1, squeeze=False)[:, 0]):
        names, values = _bars(explanation, row)
        places = np.arange(len(values))[::-1]
        colours = [FOR if value > 0 else AGAINST for value in values]
        if len(explanation.columns) > BARS:
            colours[-1] = FAINT
        axis.barh(places, values, color=colours, height=0.66)
        reach = max(float(np.abs(values).max(initial=0)), 1e-12)
        for place, value in zip(places, values, strict=True):
            side = 1 if value >= 0 else -1
            axis.text(
                value + side * reach * 0.02,
                place,
                f"{value:+.3g}".replace("-", "−"),
                va="center",
                ha="left" if side > 0 else "right",
                fontsize=8.5,
                color=INK,
            )
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        axis.set_xlim(low - reach * (0.2 if low else 0.02), high + reach * (0.2 if high else 0.02))
        axis.set_yticks(places, names, fontsize=9, color=INK)
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.tick_params(axis="y", length=0)
        axis.tick_params(axis="x", labelsize=8, color=FAINT)
        axis.grid(axis="x", color="#e6e6e6", linewidth=0.7)
        axis.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
        what = (
            explanation.label(row)
            if explanation.task == "regression"
            else f"the probability of “{explanation.label(row)}”"
        )
        axis.set_xlabel(f"contribution to {what}", fontsize=9, color=INK)
        base = f"{explanation.base[row]:.4g}" if explanation.task == "regression" else f"{explanation.base[row]:.1%}"
        axis.set_title(
            f"model says {_answer(explanation, row)}, from {base} for the background",
            fontsize=11,
            color=INK,
            loc="left",
        )
    _caption(figure, explanation)
    return figure


def _bars(explanation: Any, row: int) -> tuple[list[str], np.ndarray]:
    """Labels and values of the bars, largest first, the smallest columns in one bar."""
    values = explanation.attributions[row]
    order = np.argsort(-np.abs(values), kind="stable")
    names = [_named(explanation, row, index) for index in order[:BARS]]
    shown = values[order[:BARS]]
    if len(order) > BARS:
        names.append(f"{len(order) - BARS} other columns together")
        shown = np.append(shown, values[order[BARS:]].sum())
    return names, shown


def _named(explanation: Any, row: int, index: int) -> str:
    cells = np.concatenate(
        [
            explanation.inputs[name][row].astype(object)
            for name in ("numbers", "categories")
            if name in explanation.inputs
        ]
    )
    cell = cells[index]
    missing = cell == "" or (isinstance(cell, float) and np.isnan(cell))
    text = "missing" if missing else cell if isinstance(cell, str) else f"{cell:.4g}"
    return f"{explanation.columns[index]} = {text}"


def _caption(figure: Figure, explanation: Any) -> None:
    figure.supxlabel(
        f"{explanation.name}, Shapley values by {explanation.method}; they miss the answer by {explanation.additivity_error:.1g} at most",
        fontsize=8,
        color=FAINT,
        x=0.01,
        ha="left",
    )
