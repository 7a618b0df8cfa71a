"""Images beside their attributions, with the box or the region that the answer is about."""

from typing import Any

import numpy as np
from matplotlib.patches import Rectangle

from zoo.explain.pictures.theme import NARROW, Theme, bare, fitted, full, reading, scale, title

STYLES = ("overlay", "map")  # the picture beside its coloured self; the attributions alone


def height(explanation: Any, row: int, width: float, style: str) -> float:
    """Inches that a row needs."""
    tall, wide = explanation.inputs["image"].shape[1:3]
    side = min(_side(width, style), 4.6)
    return min(max(side * tall / wide, 1.2), 6.0) + (0.55 if width >= NARROW else 1.0)


def _side(width: float, style: str) -> float:
    """Inches across for each image; the scale stands beside them, or below where there is little room."""
    room = width - (1.3 if width >= NARROW else 0.3)
    return room / 2 if style == "overlay" else room


def panel(figure: Any, explanation: Any, row: int, width: float, style: str, theme: Theme, limit: float = 0.0) -> None:
    """Draw one row; colours are full at `limit`, the row's own largest if 0."""
    image, values = explanation.inputs["image"][row], flat(explanation, row)
    limit = limit or full(explanation, row, values)
    if style == "overlay":
        plain, shares = figure.subplots(1, 2)
        show(plain, image)
        title(plain, fitted(f"model says {explanation.answer(row)}", _side(width, style)), theme)
        bare(plain, theme)
        _marks(plain, explanation, row, theme)
    else:
        shares = figure.subplots()
    overlay(shares, image, values, limit, theme)
    title(shares, fitted(reading(explanation, values, limit), _side(width, style)), theme)
    bare(shares, theme)
    _marks(shares, explanation, row, theme)
    unit = explanation.unit if explanation.additivity_error is None else f"{explanation.unit}, per pixel"
    if width >= NARROW:
        scale(figure, shares, limit, unit, theme, shrink=0.9)
    else:
        scale(figure, figure.axes, limit, unit, theme, location="bottom", shrink=0.8, aspect=30)


def flat(explanation: Any, row: int) -> np.ndarray:
    """Attributions of a row's pixels, (height, width)."""
    values = explanation.attributions[row]
    return values.sum(axis=-1) if values.ndim == 3 else values


def show(axis: Any, image: np.ndarray) -> None:
    """The image as it is; one channel in greys."""
    if image.shape[-1] == 3:
        axis.imshow(image if image.dtype == np.uint8 else _unit(image))
    else:
        most = 255 if image.dtype == np.uint8 else max(1.0, float(image.max()))
        axis.imshow(image.mean(axis=-1), cmap="gray", vmin=0, vmax=most)


def overlay(axis: Any, image: np.ndarray, values: np.ndarray, limit: float, theme: Theme) -> None:
    """Attributions over a faint image: small ones let it through."""
    axis.imshow(_faint(image, theme.ground), vmin=0, vmax=1)
    if values.shape != image.shape[:2]:  # a coarse map, stretched over the image
        rows = np.arange(image.shape[0]) * values.shape[0] // image.shape[0]
        columns = np.arange(image.shape[1]) * values.shape[1] // image.shape[1]
        values = values[np.ix_(rows, columns)]
    strength = np.minimum(np.abs(values) / limit, 1) ** 0.6
    axis.imshow(values, cmap=theme.colours, vmin=-limit, vmax=limit, alpha=strength, interpolation="nearest")


def _unit(image: np.ndarray) -> np.ndarray:
    low, high = float(image.min()), float(image.max())
    return (image - low) / max(high - low, 1e-12)


def _faint(image: np.ndarray, ground: str) -> np.ndarray:
    """The image in greys near the page's own colour (height, width, 3), in 0 … 1; what is rare stands out."""
    grey = image.astype(np.float64).mean(axis=-1)
    grey = grey / max(1.0, float(grey.max()))
    stroke = grey if grey.mean() < 0.5 else 1 - grey  # 0 is the commoner of dark and bright
    page = np.array([int(ground[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    towards = 0.0 if page.mean() > 0.5 else 1.0
    return page + (0.3 * stroke)[..., None] * (towards - page)


def _marks(axis: Any, explanation: Any, row: int, theme: Theme) -> None:
    """The box or the region that the answer is about."""
    about = explanation.about
    for box in about["others"][row] if "others" in about else ():
        if np.isfinite(box).all():
            _box(axis, box, edgecolor=theme.quiet, linewidth=0.9, linestyle=(0, (4, 3)))
    if "box" in about:
        _box(axis, about["box"][row], edgecolor="#ffffff", linewidth=3.4)
        _box(axis, about["box"][row], edgecolor="#0b7a52", linewidth=1.9)
    if "region" in about:
        region = about["region"][row]
        for colour, line in (("#ffffff", 3.2), ("#0b7a52", 1.8)):
            axis.contour(region.astype(float), levels=[0.5], colors=[colour], linewidths=line)


def _box(axis: Any, box: np.ndarray, **options: Any) -> None:
    left, top, right, bottom = (float(edge) for edge in box)
    axis.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, **options))
