"""Pictures of images and texts: how near each of some images is to each of some texts; and what is nearest to a row's."""

import textwrap
from pathlib import Path

import numpy as np

from zoo.tasks.image_text import matches

_MOST = 12  # images and texts in the matrix
_NEAREST = 3


def similarity(report, path: str | Path) -> Path:
    """Cosines of some images with their texts, the right ones framed; without the images where they are not at hand.

    Args:
        report: `zoo.evaluate.Report` of the task "image-text".
        path: of the picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    right, _, texts = matches(report.y)
    rows = np.sort(texts)[:_MOST]
    cosines = report.answers[rows, 0] @ report.answers[rows, 1].T
    figure = Figure(figsize=(4.2 + 0.62 * len(rows), 1.9 + 0.5 * len(rows)), dpi=110, layout="constrained")
    beside, axis = figure.subplots(1, 2, width_ratios=[1, len(rows)])
    found = axis.imshow(cosines, cmap="viridis", aspect="auto")
    middle = (found.get_clim()[0] + found.get_clim()[1]) / 2
    for (row, column), cosine in np.ndenumerate(cosines):
        colour = "black" if cosine > middle else "white"
        axis.text(column, row, f"{cosine:.2f}", ha="center", va="center", color=colour, fontsize=7)
        if right[rows[row], rows[column]]:
            axis.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor="#e6550d", lw=2))
    told = [str(report.x["text"][row]) if report.x is not None else f"row {row}" for row in rows]
    axis.set_yticks([])
    axis.set_xticks(range(len(rows)), ["\n".join(textwrap.wrap(text, 34)) for text in told], fontsize=7)
    axis.tick_params(axis="x", labelrotation=60)
    for label in axis.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    _column(beside, None if report.x is None else report.x["image"][rows])
    figure.colorbar(found, ax=axis, label="cosine", shrink=0.8)
    places = report.per_class["image to text"]
    axis.set_title(
        f"Images and texts of {len(rows)} rows; nearest text of all is right for {places['at 1']:.1%}", fontsize=10
    )
    figure.savefig(path)
    return Path(path)


def _column(axis, pictures) -> None:
    """Pictures below each other, in line with the rows of the matrix beside them."""
    axis.axis("off")
    if pictures is None:
        return
    for row, picture in enumerate(pictures):
        place = axis.inset_axes((0, 1 - (row + 0.96) / len(pictures), 1, 0.92 / len(pictures)))
        place.imshow(_drawable(picture))
        place.axis("off")


def shown(report, rows: list[int], path: str | Path) -> Path:
    """Of each row its image, its text, and the texts of the split that are nearest to the image.

    Args:
        report: `zoo.evaluate.Report` of the task "image-text".
        rows: places in the split.
        path: of the picture.
    """
    from matplotlib.figure import Figure

    right, _, texts = matches(report.y)
    rows = rows[:8]
    columns = min(2, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(6.4 * columns, 1.75 * lines), dpi=110, layout="constrained")
    places = figure.subplots(lines, 2 * columns, squeeze=False, width_ratios=[1, 3] * columns)
    for axis in places.ravel():
        axis.axis("off")
    for place, row in enumerate(rows):
        line, column = divmod(place, columns)
        picture, beside = places[line, 2 * column], places[line, 2 * column + 1]
        picture.imshow(_drawable(report.x["image"][row]))
        cosines = report.answers[texts, 1] @ report.answers[row, 0]
        beside.text(0, 0.97, f"row {row}: {_short(report.x['text'][row])}", fontsize=8, va="top", weight="bold")
        for rank, near in enumerate(np.argsort(-cosines, kind="stable")[:_NEAREST]):
            verdict = "#31a354" if right[row, texts[near]] else "#de2d26"
            told = f"{cosines[near]:.2f}  {_short(report.x['text'][texts[near]])}"
            beside.text(0, 0.68 - 0.24 * rank, told, fontsize=8, va="top", color=verdict)
    figure.savefig(path)
    return Path(path)


def _short(text) -> str:
    return textwrap.shorten(str(text), 62, placeholder=" …")


def _drawable(picture: np.ndarray) -> np.ndarray:
    """A picture as matplotlib draws it: grey ones as RGB."""
    return np.repeat(picture, 3, axis=-1) if picture.shape[-1] == 1 else picture
