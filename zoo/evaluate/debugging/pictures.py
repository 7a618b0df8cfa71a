"""Pictures of the debugging tools, drawn without a display."""

from pathlib import Path
from typing import Any

import numpy as np

from zoo.evaluate.check_pictures import BLUE, GREY, RED, new_figure


def overfit(found: Any, path: str | Path) -> Path:
    """Loss on the one batch by step, with the goal; logarithmic unless the loss goes below zero."""
    figure = new_figure(7, 4)
    axes = figure.subplots()
    negative = False
    for rate, curve in found.curves.items():
        axes.plot(range(1, len(curve) + 1), curve, label=f"learning rate {rate:g}")
        negative |= np.nanmin(curve) <= 0
    axes.axhline(found.idle, color=GREY, linestyle=":", label="best answer that never changes")
    axes.axhline(found.goal, color="black", linestyle="--", linewidth=1, label="near zero")
    verdict = "learnt by heart" if found.reached else "NOT learnt by heart"
    axes.set(
        xlabel="step", ylabel="loss", title=f"{found.model}: one batch of {found.rows} rows is {verdict}",
        yscale="symlog" if negative else "log",
    )  # fmt: skip
    if negative:
        axes.set_ylim(top=10 * max(found.idle, 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path)
    return Path(path)


def differences(found: Any, path: str | Path) -> Path:
    """Relative error of each layer's gradient on a logarithmic scale, with the tolerance."""
    rows = found.layers
    figure = new_figure(8, max(2.6, 1.2 + 0.24 * len(rows)))
    axes = figure.subplots()
    floor = found.tolerance * 1e-8
    for key, marker, label in (("own", "o", "its own backward pass"), ("whole", "s", "gradient of the whole loss")):
        places = [place for place, row in enumerate(rows) if not np.isnan(getattr(row, key))]
        errors = [max(getattr(rows[place], key), floor) for place in places]
        colours = [RED if error > found.tolerance else BLUE for error in errors]
        axes.scatter(np.minimum(errors, 10), places, marker=marker, c=colours, label=label, alpha=0.8)
    axes.axvline(found.tolerance, color="black", linestyle="--", linewidth=1, label=f"tolerance {found.tolerance:g}")
    axes.set_yticks(range(len(rows)), [row.layer for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set(
        xscale="log", xlabel="largest relative error", title=f"{found.model}: gradients against finite differences"
    )
    axes.grid(alpha=0.3, axis="x")
    legend = axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    for handle in legend.legend_handles[:2]:
        handle.set_color(GREY)
    figure.savefig(path)
    return Path(path)


def flow(found: Any, path: str | Path) -> Path:
    """Gradient per weight and relative update of each kernel: median over the steps, and their range."""
    rows = [row for row in found.weights if row.kernel] or list(found.weights)
    figure = new_figure(11, max(2.8, 1.3 + 0.24 * len(rows)))
    left, right = figure.subplots(1, 2, sharey=True)
    densities = [np.array(row.norms) / np.sqrt(np.prod(row.shape)) for row in rows]
    floor = 1e-8 * max([value for own in densities for value in own[np.isfinite(own)]] + [1e-12])  # stands for zero
    for place, (row, density) in enumerate(zip(rows, np.maximum(densities, floor), strict=True)):
        updates = np.array(row.updates)
        updates = np.maximum(updates[np.isfinite(updates)], 1e-10)
        for axes, values in ((left, density[np.isfinite(density)]), (right, updates)):
            if len(values):
                axes.plot([values.min(), values.max()], [place, place], color=BLUE, alpha=0.35, linewidth=4)
                axes.plot(np.median(values), place, "o", color=BLUE)
    right.axvspan(1e-4, 1e-2, color="#2e8b57", alpha=0.12, label="usual range")
    right.axvline(1e-3, color="#2e8b57", linewidth=1)
    left.set_yticks(range(len(rows)), [row.weight.removesuffix("/kernel") for row in rows], fontsize=8)
    left.set_ylim(len(rows) - 0.5, -0.5)
    left.set(xscale="log", xlabel="root mean square of the gradient", title=f"Gradients over {len(found.losses)} steps")
    right.set(xscale="log", xlabel="update / weight", title=f"Updates at learning rate {found.learning_rate:g}")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3, axis="x")
    figure.savefig(path)
    return Path(path)


def _image(values: np.ndarray) -> np.ndarray:
    """An input as it can be shown: three channels scaled to 0 … 1, otherwise the first channel."""
    low, high = values.min(), values.max()
    scaled = (values - low) / (high - low or 1)
    return scaled if values.shape[-1] == 3 else scaled[..., 0]


def feature_maps(found: Any, path: str | Path, most: int = 10) -> Path:
    """One row's feature maps, a line of pictures per layer, those that vary most over the picture first."""
    mapped = {name: values for name, values in found.maps.items() if values.ndim == 3}
    figure = new_figure(1.6 + 1.0 * (most + 1), 0.5 + 1.25 * len(mapped))
    grid = figure.subplots(len(mapped), most + 1, squeeze=False)
    for axes in grid.ravel():
        axes.axis("off")
    grid[0, 0].imshow(_image(found.row), cmap="gray")
    grid[0, 0].set_title("input", fontsize=8)
    units = {own.layer: own for own in found.layers}
    for line, (name, values) in zip(grid, mapped.items(), strict=True):
        order = np.argsort(-values.std(axis=(0, 1)), kind="stable")
        shown = order[:most]
        limit = float(np.abs(values[..., shown]).max()) or 1.0
        signed = values.min() < 0
        dead = set(units[name].dead)
        for axes, unit in zip(line[1:], shown, strict=False):
            axes.imshow(
                values[..., unit], cmap="RdBu_r" if signed else "magma", vmin=-limit if signed else 0, vmax=limit
            )
            axes.set_title(f"{unit}{' dead' if unit in dead else ''}", fontsize=7, pad=2)
        more = f"\n{len(shown)} of {values.shape[-1]} maps" if values.shape[-1] > most else f"\n{values.shape[-1]} maps"
        line[0].text(
            0.5, -0.12 if line[0] is grid[0, 0] else 0.5, name + more, ha="center",
            va="top" if line[0] is grid[0, 0] else "center", fontsize=7, transform=line[0].transAxes,
        )  # fmt: skip
    figure.suptitle(f"{found.model}: feature maps of one row", fontsize=10)
    figure.savefig(path)
    return Path(path)


def histograms(found: Any, path: str | Path) -> Path:
    """How the values of each layer are spread over the rows, with dead and saturated units named."""
    units = {own.layer: own for own in found.layers}
    columns = min(4, len(found.samples))
    lines = -(-len(found.samples) // columns)
    figure = new_figure(3.0 * columns, 2.3 * lines + 0.3)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid[len(found.samples) :]:
        axes.axis("off")
    for axes, (name, values) in zip(grid, found.samples.items(), strict=False):
        own = units[name]
        finite = values[np.isfinite(values)]
        axes.hist(finite, bins=60, color=RED if own.dead or own.saturated else BLUE)
        axes.set_yscale("log")
        note = f"{len(own.dead)} dead" if own.dead else f"{len(own.saturated)} saturated" if own.saturated else ""
        axes.set_title(f"{name}{f': {note} of {own.units}' if note else ''}", fontsize=8)
        axes.tick_params(labelsize=7)
    figure.suptitle(f"{found.model}: values of each layer over {found.rows} rows", fontsize=10)
    figure.savefig(path)
    return Path(path)


def filters(kernel: np.ndarray, model: str, path: str | Path, most: int = 64) -> Path:
    """Filters of a first convolution: colours where it reads three channels, else weights of its first channel."""
    count = min(most, kernel.shape[-1])
    columns = min(8, count)
    lines = -(-count // columns)
    figure = new_figure(1.0 * columns + 0.6, 1.0 * lines + 0.7)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    limit = float(np.abs(kernel).max()) or 1.0
    for index, axes in enumerate(grid):
        axes.axis("off")
        if index < count:
            own = kernel[..., index]
            if own.shape[-1] == 3:
                axes.imshow(0.5 + own / (2 * limit))
            else:
                axes.imshow(own[..., 0], cmap="RdBu_r", vmin=-limit, vmax=limit)
    size = "x".join(map(str, kernel.shape[:2]))
    figure.suptitle(f"{model}: {count} of {kernel.shape[-1]} first filters, {size}", fontsize=9)
    figure.savefig(path)
    return Path(path)
