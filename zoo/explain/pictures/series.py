"""Signals over time, one line per channel, each moment on the colour of its attribution."""

from typing import Any

import numpy as np

from zoo.explain.pictures.theme import Theme, full, heading, literal, reading, scale, short

STYLES = ("signal",)
CHANNELS = 8  # shown, those that count most


def height(explanation: Any, row: int, width: float, style: str) -> float:
    """Inches that a row needs."""
    return 0.78 * len(_shown(explanation, row)) + 1.05


def signal(explanation: Any, row: int) -> np.ndarray:
    """Values of a row, (time, channels)."""
    given = explanation.inputs.get("series")
    if given is None:  # a model's series may go by another name
        given = next(values for values in explanation.inputs.values() if values.ndim in (2, 3))
    return given[row].reshape(len(given[row]), -1)


def channel_values(explanation: Any, row: int) -> np.ndarray:
    """Attributions of a row, (time, channels), or (time, 1) where they are shared by all channels."""
    values = explanation.attributions[row]
    return values.reshape(len(values), -1)


def _shown(explanation: Any, row: int) -> np.ndarray:
    """Channels to draw, in their own order."""
    values, given = channel_values(explanation, row), signal(explanation, row)
    if values.shape[1] != given.shape[1]:
        return np.arange(min(given.shape[1], CHANNELS))
    return np.sort(np.argsort(-np.abs(values).sum(axis=0), kind="stable")[:CHANNELS])


def panel(figure: Any, explanation: Any, row: int, width: float, style: str, theme: Theme, limit: float = 0.0) -> None:
    """Draw one row; colours are full at `limit`, the row's own largest if 0."""
    given, values, shown = signal(explanation, row), channel_values(explanation, row), _shown(explanation, row)
    times = explanation.about["times"][row] if "times" in explanation.about else np.arange(len(given))
    step = (float(times[-1]) - float(times[0])) / max(len(times) - 1, 1) or 1.0
    edges = (float(times[0]) - step / 2, float(times[-1]) + step / 2)
    limit = limit or full(explanation, row, values, 0.99)
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axis, channel in zip(axes, shown, strict=True):
        column = given[:, channel].astype(np.float64)
        shares = values[:, channel if values.shape[1] == given.shape[1] else 0]
        finite = column[np.isfinite(column)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        room = 0.12 * (high - low) or 1.0
        low, high = low - room, high + room
        axis.imshow(
            shares[None],
            cmap=theme.colours,
            vmin=-limit,
            vmax=limit,
            aspect="auto",
            extent=(*edges, low, high),
            interpolation="nearest",
            alpha=0.85,
        )
        axis.plot(times, column, color=theme.ink, linewidth=1.2, marker="." if len(column) < 3 else None)
        axis.set_xlim(*edges)
        axis.set_ylim(low, high)
        axis.set_facecolor(theme.ground)
        axis.tick_params(labelsize=8, color=theme.line, labelcolor=theme.quiet)
        for spine in axis.spines.values():
            spine.set_color(theme.line)
        if given.shape[1] > 1 or explanation.columns:
            name = explanation.columns[channel] if explanation.columns else f"channel {channel}"
            axis.set_ylabel(literal(short(name, 14)), fontsize=8.5, color=theme.ink)
    seconds = "times" in explanation.about
    axes[-1].set_xlabel("time, seconds" if seconds else "time, steps", fontsize=8.5, color=theme.quiet)
    rest = given.shape[1] - len(shown)
    more = f" ({rest} lesser channels left out)" if rest else ""
    told = f"model says {explanation.answer(row)}: {reading(explanation, values, limit)}{more}"
    heading(figure, told, width, theme)
    each = "" if values.shape[1] == given.shape[1] else ", all channels"
    scale(figure, axes.tolist(), limit, f"{explanation.unit}, per step{each}", theme, shrink=0.95)
