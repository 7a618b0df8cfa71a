"""Columns of a table as bars, or as a waterfall from the base to the answer."""

from typing import Any

import numpy as np

from zoo.explain.pictures.theme import Theme, heading, literal, plain, short, signed

STYLES = ("bar", "waterfall")
LETTERS = 5.2  # of a label per inch of the picture
FIGURE = 0.62  # inches of a contribution's figure beside its bar
BARS = 12  # columns shown one by one where there are more than 13, the rest in one bar


def height(explanation: Any, row: int, width: float, style: str) -> float:
    """Inches that a row needs."""
    names, _, _ = leading(explanation, row, int(LETTERS * width))
    line = 0.38 if any("\n" in name for name in names) else 0.31
    return line * (len(names) + 2 * (style == "waterfall" and explanation.base is not None)) + 1.15


def panel(figure: Any, explanation: Any, row: int, width: float, style: str, theme: Theme) -> None:
    """Draw one row."""
    axis = figure.subplots()
    names, values, errors = leading(explanation, row, int(LETTERS * width))
    if style == "waterfall" and explanation.base is not None:
        _waterfall(axis, names, values, explanation, row, width, theme)
    else:
        bars(axis, names, values, errors, width, theme, rest=len(explanation.columns) > BARS + 1)
        axis.set_xlabel(literal(f"contribution to {what(explanation, row)}"), fontsize=8.5, color=theme.quiet)
    told = [f"model says {explanation.answer(row)}", explanation.way(row)]
    heading(figure, ", ".join(text for text in told if text), width, theme)


def bars(
    axis: Any,
    names: list[str],
    values: np.ndarray,
    errors: np.ndarray | None,
    width: float,
    theme: Theme,
    rest: bool = False,
) -> None:
    """Horizontal bars from the top, each with its figure; the last one grey if it stands for the rest.

    `width` is the whole picture's in inches; labels and figures take as much of it as they need.
    """
    places = np.arange(len(values))[::-1]
    colours = [theme.speaks_for if value > 0 else theme.against for value in values]
    if rest:
        colours[-1] = theme.quiet
    axis.barh(places, values, color=colours, height=0.64)
    if errors is not None:
        axis.errorbar(values, places, xerr=1.96 * errors, fmt="none", ecolor=theme.ink, elinewidth=1, capsize=2.5)
    margin = np.zeros(len(values)) if errors is None else np.nan_to_num(1.96 * errors)
    for place, value, more in zip(places, values, margin, strict=True):
        side = 1 if value >= 0 else -1
        axis.annotate(
            signed(value),
            (value + side * more, place),
            xytext=(4 * side, 0),
            textcoords="offset points",
            va="center",
            ha="left" if side > 0 else "right",
            fontsize=8.5,
            color=theme.ink,
        )
    low, high = min(0.0, float((values - margin).min())), max(0.0, float((values + margin).max()))
    letters = max((len(line) for name in names for line in name.split("\n")), default=0)
    left = max(width - 0.078 * letters - 0.3 - FIGURE * ((low < 0) + (high > 0)), 0.8)  # inches for the bars themselves
    room = FIGURE / left * max(high - low, 1e-12)
    axis.set_xlim(low - (room if low else room / 8), high + (room if high else room / 8))
    axis.set_ylim(-0.6, len(values) - 0.4)
    axis.locator_params(axis="x", nbins=max(2, int(left / 0.55)))  # as many figures as there is room for
    plain(axis, theme)
    axis.set_yticks(places, [literal(name) for name in names], fontsize=9, color=theme.ink)
    axis.tick_params(axis="y", length=0, labelcolor=theme.ink)
    axis.axvline(0, color=theme.ink, linewidth=0.8)


def _waterfall(
    axis: Any, names: list[str], values: np.ndarray, explanation: Any, row: int, width: float, theme: Theme
) -> None:
    """Each bar begins where the last one ended; the smallest contributions come first."""
    names, values, base = names[::-1], values[::-1], float(explanation.base[row])
    ends = base + np.cumsum(values)
    starts = np.r_[base, ends[:-1]]
    places = np.arange(len(values)) + 1
    colours = [theme.speaks_for if value > 0 else theme.against for value in values]
    axis.barh(places, values, left=starts, color=colours, height=0.64)
    low, high = float(np.r_[base, ends].min()), float(np.r_[base, ends].max())
    span = max(high - low, 1e-12)
    for place, start, end, value in zip(places, starts, ends, values, strict=True):
        wide = abs(value) > 1.1 / width * span
        axis.text(
            (start + end) / 2 if wide else max(start, end) + 0.012 * span,
            place,
            signed(value),
            va="center",
            ha="center" if wide else "left",
            fontsize=8.5,
            color=theme.ground if wide else theme.ink,
        )
    for place, end in zip(np.r_[0, places], np.r_[base, ends], strict=True):
        axis.plot([end, end], [place - 0.32, place + 1.32], color=theme.quiet, linewidth=0.8, zorder=0)
    top = len(values) + 1
    for place, value in ((0, base), (top, float(ends[-1]))):
        axis.plot([value], [place], marker="D", color=theme.ink, markersize=5)
        left = value > (low + high) / 2
        axis.text(
            value + (-0.17 if left else 0.17) / width * span,
            place,
            literal(explanation.amount(value)),
            va="center",
            ha="right" if left else "left",
            fontsize=9.5,
            color=theme.ink,
            fontweight="bold",
        )
    axis.set_xlim(low - 0.08 * span, high + 0.1 * span)
    axis.set_ylim(-0.6, top + 0.6)
    plain(axis, theme)
    ticks = ["background", *names, "answer"]
    axis.set_yticks(np.arange(top + 1), [literal(name) for name in ticks], fontsize=9)
    axis.tick_params(axis="y", length=0, labelcolor=theme.ink)
    axis.set_xlabel(literal(what(explanation, row)), fontsize=8.5, color=theme.quiet)


def leading(explanation: Any, row: int, letters: int) -> tuple[list[str], np.ndarray, np.ndarray | None]:
    """Labels with lines of so many letters, values and standard errors of the bars: largest first, smallest in one."""
    values = explanation.attributions[row]
    order = np.argsort(-np.abs(values), kind="stable")
    most = BARS if len(order) > BARS + 1 else len(order)
    names = [cell(explanation, row, index, letters) for index in order[:most]]
    shown = values[order[:most]]
    errors = None if explanation.standard_error is None else explanation.standard_error[row][order[:most]]
    if len(order) > most:
        rest = f"{len(order) - most} other columns"
        names.append(f"{rest} together" if len(rest) + 9 <= letters else rest)
        shown = np.append(shown, values[order[most:]].sum())
        if errors is not None:  # as if independent, which sampled orders nearly are
            errors = np.append(errors, np.sqrt(np.square(explanation.standard_error[row][order[most:]]).sum()))
    return names, shown, errors


def cells(explanation: Any, row: int) -> list[Any]:
    """A row's values, numbers before texts."""
    given = [explanation.inputs[name][row] for name in ("numbers", "categories") if name in explanation.inputs]
    return [value for values in given for value in values.tolist()]


def cell(explanation: Any, row: int, index: int, letters: int) -> str:
    """`column = value`, in two lines if that is longer than so many letters."""
    found = cells(explanation, row)
    column = explanation.columns[index]
    if index >= len(found):
        return short(column, letters)
    value = found[index]
    missing = value == "" or (isinstance(value, float) and np.isnan(value))
    text = "missing" if missing else value if isinstance(value, str) else f"{value:.4g}".replace("-", "−")
    one = f"{column} = {text}"
    return one if len(one) <= letters else f"{short(column, letters)}\n= {short(text, letters - 2)}"


def what(explanation: Any, row: int) -> str:
    """What the contributions add up to."""
    if explanation.kind == "pair":
        return "the similarity"
    label = explanation.label(row)
    return label if explanation.task == "regression" else f"the {explanation.unit} of “{label}”"
