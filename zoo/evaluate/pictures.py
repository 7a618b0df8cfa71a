"""Pictures of training and evaluation, drawn without a display."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def confusion(matrix: np.ndarray, labels: tuple[str, ...], path: str | Path) -> Path:
    """Confusion matrix with counts, coloured by share of the true class."""
    side = max(4.0, 1.6 + 0.45 * len(labels))
    figure = _figure(side + 0.8, side)
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(labels) <= 30:
        for row, column in np.ndindex(matrix.shape):
            if matrix[row, column]:
                colour = "white" if share[row, column] > 0.5 else "black"
                axes.text(column, row, matrix[row, column], ha="center", va="center", color=colour, fontsize=9)
        long = max(map(len, labels)) > 3
        axes.set_xticks(range(len(labels)), labels, rotation=45 if long else 0, ha="right" if long else "center")
        axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="predicted", ylabel="true", title=f"Confusion, {np.trace(matrix)} of {matrix.sum()} right")
    figure.colorbar(picture, ax=axes, label="share of the true class", shrink=0.8)
    figure.savefig(path)
    return Path(path)


def scatter(y: np.ndarray, answers: np.ndarray, label: str, path: str | Path) -> Path:
    """Predicted against true values, with the line of perfect answers."""
    figure = _figure(5, 4.6)
    axes = figure.subplots()
    y, answers = np.ravel(y), np.ravel(answers)
    ends = [min(y.min(), answers.min()), max(y.max(), answers.max())]
    axes.plot(ends, ends, color="grey", linewidth=1)
    axes.scatter(y, answers, s=14, alpha=0.7)
    axes.set(xlabel=f"true {label}", ylabel=f"predicted {label}", title="Predicted against true")
    figure.savefig(path)
    return Path(path)


def curves(history: list[dict[str, float]], metric: str, path: str | Path) -> Path:
    """Loss and metric by epoch, training and validation."""
    figure = _figure(9, 3.6)
    for axes, name in zip(figure.subplots(1, 2), ("loss", metric), strict=True):
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            values = [row.get(key) for row in history]
            axes.plot(range(1, len(values) + 1), values, label=label, marker="o" if len(values) < 3 else None)
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path)
    return Path(path)


def gradient_flow(rows: list[dict], path: str | Path) -> Path:
    """Gradient norm of each kernel by epoch, on a logarithmic scale."""
    kernels = list(dict.fromkeys(row["weight"] for row in rows if "kernel" in row["weight"]))
    figure = _figure(8, max(3.0, 1 + 0.16 * len(kernels)))
    axes = figure.subplots()
    epochs = sorted({row["epoch"] for row in rows})
    norms = np.full((len(kernels), len(epochs)), np.nan)
    for row in rows:
        if row["weight"] in kernels:
            norms[kernels.index(row["weight"]), epochs.index(row["epoch"])] = np.log10(row["norm"] + 1e-12)
    ends = (epochs[0] + 0.5, epochs[-1] + 1.5, len(kernels) - 0.5, -0.5)  # epochs are counted from 1 in pictures
    picture = axes.imshow(norms, aspect="auto", cmap="viridis", interpolation="nearest", extent=ends)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_yticks(range(len(kernels)), [k.removesuffix("/kernel") for k in kernels], fontsize=7)
    axes.set(xlabel="epoch", title="Gradient norm of each kernel")
    figure.colorbar(picture, ax=axes, label="log10 norm")
    figure.savefig(path)
    return Path(path)


def learning_rates(rates: np.ndarray, losses: np.ndarray, suggested: float, path: str | Path) -> Path:
    """Loss against learning rate, with the suggested rate marked."""
    figure = _figure(6, 3.8)
    axes = figure.subplots()
    axes.plot(rates, losses)
    axes.axvline(suggested, color="tab:red", linewidth=1, label=f"suggested {suggested:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="smoothed loss", title="Learning-rate range test")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
    return Path(path)
