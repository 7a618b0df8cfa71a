"""Pictures of models that paint: where a picture's codes were not expected, and what was painted of texts."""

import textwrap
from pathlib import Path

import numpy as np

from zoo.tasks.text_to_image import bits_of_places


def by_place(report, path: str | Path) -> Path:
    """Mean bits of the codes in the order in which they are written.

    Args:
        report: `zoo.evaluate.Report` of the task "text-to-image".
        path: of the picture.
    """
    from matplotlib.figure import Figure

    bits = bits_of_places(report.answers).mean(axis=0)
    figure = Figure(figsize=(7, 3.6), dpi=110, layout="constrained")
    axis = figure.subplots()
    axis.bar(np.arange(len(bits)), bits, width=1.0, color="#0072b2", label="given the text and the codes in front")
    alone = report.per_class["all"]["bits by frequency"]
    axis.axhline(alone, color="#d55e00", label=f"by its frequency alone, {alone:.2f}")
    axis.set(xlabel="place of the code, row by row", ylabel="bits of a code", xlim=(-0.5, len(bits) - 0.5))
    axis.legend(loc="lower right", fontsize=8)
    figure.savefig(path)
    return Path(path)


def shown(report, rows: list[int], path: str | Path) -> Path:
    """Images and their texts, each with the mean bits of its codes and the error of what is drawn of them.

    Args:
        report: `zoo.evaluate.Report` of the task "text-to-image".
        rows: places in the split.
        path: of the picture.
    """
    rows = rows[:15]
    bits, errors = bits_of_places(report.answers).mean(axis=1), report.answers[:, -1]
    told = [f"{report.x['text'][row]} — {bits[row]:.2f} bits, error {errors[row]:.1f}" for row in rows]
    return painted(report.x["image"][rows], told, path)


def painted(images: np.ndarray, texts: list[str], path: str | Path) -> Path:
    """Images uint8 `(rows, height, width, channels)`, each above its text, five side by side."""
    from matplotlib.figure import Figure

    columns = min(5, len(images))
    lines = -(-len(images) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.7 * lines), dpi=110, layout="constrained")
    places = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in places:
        axis.set(xticks=[], yticks=[], frame_on=False)
    for axis, image, text in zip(places, images, texts, strict=False):
        axis.imshow(image if image.shape[-1] == 3 else np.repeat(image[..., :1], 3, axis=-1))
        axis.set_xlabel("\n".join(textwrap.wrap(str(text), 26, max_lines=4, placeholder=" …")), fontsize=8)
    figure.savefig(path)
    return Path(path)
