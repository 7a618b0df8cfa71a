"""Pictures of training and evaluation, drawn without a display."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from zoo.evaluate.metrics import LOWER


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
                text = shortened(int(matrix[row, column]))
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
        long = max(map(len, labels)) > 3
        axes.set_xticks(range(len(labels)), labels, rotation=45 if long else 0, ha="right" if long else "center")
        axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="predicted", ylabel="true", title=f"Confusion, {np.trace(matrix):,} of {matrix.sum():,} right")
    figure.colorbar(picture, ax=axes, label="share of the true class", shrink=0.8)
    figure.savefig(path)
    return Path(path)


def shortened(count: int) -> str:
    """A count in at most five characters: `9999`, `93.8k`, `1.44M`, `144M`."""
    if count < 10_000:
        return str(count)
    size, unit = next(pair for pair in ((10**9, "G"), (10**6, "M"), (10**3, "k")) if count >= 0.9995 * pair[0])
    return f"{count / size:#.3g}".rstrip(".") + unit


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


def by_place(bits: np.ndarray, path: str | Path) -> Path:
    """Mean bits of the tokens at each place of a text, `(places,)`: how much a language model makes of what is before."""
    figure = _figure(6, 4)
    axes = figure.subplots()
    axes.plot(np.arange(1, len(bits) + 1), bits, linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="tokens before it", ylabel="bits of a token", title=f"Bits by place, {bits.mean():.3f} in the mean")
    axes.grid(alpha=0.3)
    figure.savefig(path)
    return Path(path)


def forecasts(report, rivals: dict[str, np.ndarray], path: str | Path) -> Path:
    """Some forecasts with the truth and what went before, and the error by step beside simple forecasts.

    Args:
        report: `zoo.evaluate.Report` of a forecasting task.
        rivals: simple forecasts of the same windows, `(rows, steps)` by name; may be empty.
        path: file to write.
    """
    figure = _figure(11, 4)
    wide, narrow = figure.subplots(1, 2, width_ratios=(2, 1))
    forecast, (rows, steps) = report.signature.forecast, report.y.shape
    if report.split == "train":  # windows in no order: the first one
        truth, origins = report.y[0], [0]
    else:
        truth, origins = np.concatenate([report.y[:, 0], report.y[-1, 1:]]), list(range(0, rows, max(steps, rows // 5)))
    before = np.zeros(0)
    if report.x is not None:
        column = report.signature.preprocess.numbers.index(forecast.target)
        before = report.x["series"][0, :, column]
    wide.plot(np.arange(-len(before), len(truth)), [*before, *truth], color="grey", linewidth=1.2, label="truth")
    for place, origin in enumerate(origins):
        span = np.arange(origin, origin + steps)
        label = "forecast" if not place else None
        colour = f"C{place % 2}"
        wide.plot(span, report.answers[origin], color=colour, marker="o", markersize=3, linewidth=1.4, label=label)
        wide.axvline(origin - 0.5, color=colour, linewidth=0.6, linestyle=":")
    wide.set(xlabel="step, 0 is the first to forecast", ylabel=forecast.target)
    wide.set_title("Forecasts made at the dotted lines", fontsize=11)
    wide.legend()
    for name, answers in {"this model": report.answers, **rivals}.items():
        style = {} if name == "this model" else {"linestyle": "--"}
        narrow.plot(np.arange(1, steps + 1), np.abs(answers - report.y).mean(axis=0), label=name, **style)
    narrow.set(xlabel="steps ahead", ylabel=f"mean absolute error, {forecast.target}")
    narrow.set_ylim(bottom=0)
    narrow.set_title(f"Error by step, {rows} origins", fontsize=11)
    narrow.xaxis.set_major_locator(MaxNLocator(integer=True))
    narrow.legend()
    figure.savefig(path)
    return Path(path)


def curves(history: list[dict[str, float]], metric: str, path: str | Path) -> Path:
    """Loss and metric by epoch, training and validation."""
    figure = _figure(9, 3.6)
    for axes, name in zip(figure.subplots(1, 2), ("loss", metric), strict=True):
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            values = [row.get(key, np.nan) for row in history]
            if np.isnan(values).all():  # some losses are not defined for rows that training has not seen
                continue
            axes.plot(range(1, len(values) + 1), values, label=label, marker="o" if len(values) < 3 else None)
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path)
    return Path(path)


def worst(rows: list[dict], images: np.ndarray, path: str | Path) -> Path:
    """Images of wrong answers, each with the true and the answered class.

    Args:
        rows: what `Report.worst_rows` gives.
        images: uint8 `(rows, height, width, channels)`, in the same order.
        path: file to write.
    """
    across = min(6, max(2, len(rows)))
    down = max(1, -(-len(rows) // across))
    figure = _figure(1.55 * across, 1.9 * down + 0.6)
    figure.suptitle(f"The {len(rows)} most wrong answers" if rows else "No wrong answers", fontsize=11)
    places = np.ravel(figure.subplots(down, across, squeeze=False))
    for axes in places:
        axes.axis("off")
    for axes, row, image in zip(places, rows, images, strict=False):
        flat = image.shape[-1] not in (3, 4)
        axes.imshow(image[..., 0] if flat else image, cmap="gray" if flat else None, vmin=0, vmax=255)
        answer = f"{_short(row['answer'])} {row['probability']:.0%}"
        axes.set_title(f"{_short(row['true'])}, not {answer}\nrow {row['row']}", fontsize=8)
    figure.savefig(path)
    return Path(path)


def _short(text: str, letters: int = 11) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"


def reliability(found: dict, path: str | Path) -> Path:
    """Reliability diagrams side by side: accuracy against confidence, and the rows in each bin below.

    Args:
        found: title -> `zoo.evaluate.Reliability`.
        path: file to write.
    """
    figure = _figure(4.4 * len(found), 5)
    grid = figure.subplots(2, len(found), sharex=True, sharey="row", height_ratios=(3, 1), squeeze=False)
    for column, (title, one) in enumerate(found.items()):
        above, below = grid[:, column]
        middle, width = (one.edges[1:] + one.edges[:-1]) / 2, np.diff(one.edges)
        filled = one.counts > 0
        above.bar(middle[filled], one.accuracy[filled], width[filled] * 0.94, color="tab:blue", label="accuracy")
        above.bar(
            middle[filled],
            (one.confidence - one.accuracy)[filled],
            width[filled] * 0.94,
            one.accuracy[filled],
            color="none",
            edgecolor="tab:red",
            hatch="//",
            label="gap to the confidence",
        )
        above.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
        above.set(xlim=(0, 1), ylim=(0, 1.02))
        above.set_title(f"{title}\nECE {one.ece.score:.4f} [{one.ece.low:.4f}, {one.ece.high:.4f}]", fontsize=10)
        below.bar(middle, one.counts, width * 0.94, color="tab:grey")
        below.set(xlabel="confidence", yscale="log", ylim=(0.7, 2 * max(each.counts.max() for each in found.values())))
    grid[0, 0].set_ylabel("accuracy")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=2)
    grid[1, 0].set_ylabel("rows")
    figure.savefig(path)
    return Path(path)


def differences(found: dict, names: tuple[str, str], path: str | Path) -> Path:
    """Difference of each metric with its interval, in units of the interval's half width, so that all fit one axis.

    Args:
        found: metric -> `Interval` of second - first.
        names: of the two models.
        path: file to write.
    """
    figure = _figure(7.5, 1.3 + 0.42 * len(found))
    axes = figure.subplots()
    shown = {name: value for name, value in found.items() if value.high > value.low}
    for place, value in enumerate(shown.values()):
        half = (value.high - value.low) / 2
        clear = value.low > 0 or value.high < 0
        axes.plot([value.low / half, value.high / half], [place, place], color="tab:blue" if clear else "grey")
        axes.plot(value.score / half, place, "o", color="tab:blue" if clear else "grey")
        told = f"{value.score:+.4g}".replace("-", "−")
        axes.annotate(
            told, (value.score / half, place), (0, 6), textcoords="offset points", ha="center", fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(shown)), [f"{name}\n(smaller is better)" if name in LOWER else name for name in shown])
    axes.set_ylim(len(shown) - 0.4, -0.7)
    axes.set(xlabel="second - first, in half widths of its 95 % interval (blue: 0 is outside)")
    axes.set_title(f"{_short(names[1], 40)}\nagainst {_short(names[0], 40)}", fontsize=10)
    figure.savefig(path)
    return Path(path)


def growth(found, path: str | Path) -> Path:
    """Scores against training rows, with their intervals.

    Args:
        found: `zoo.evaluate.Growth`.
        path: file to write.
    """
    figure = _figure(6.2, 4)
    axes = figure.subplots()
    for name, colour in (("train", "tab:orange"), ("validation", "tab:green"), ("test", "tab:blue")):
        scores = getattr(found, name)
        axes.plot(found.rows, [score.score for score in scores], marker="o", color=colour, label=name)
        axes.fill_between(
            found.rows, [s.low for s in scores], [s.high for s in scores], color=colour, alpha=0.15, linewidth=0
        )
    axes.set(xscale="log", xlabel="training rows", ylabel=found.metric, title=f"{found.name} on {found.data}")
    axes.set_xticks(found.rows, [f"{count:,}" for count in found.rows], rotation=30, ha="right")
    axes.minorticks_off()
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
