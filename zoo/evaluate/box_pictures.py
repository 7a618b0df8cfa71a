"""Pictures of boxes: what is there and what was answered, and precision against recall."""

from pathlib import Path

import numpy as np

_COLOURS = ("#e6550d", "#3182bd", "#31a354", "#756bb1", "#d6409f", "#8c6d31", "#17a2b8", "#636363")
_COLUMNS = 4


def shown(
    images: np.ndarray,
    things: list[np.ndarray],
    boxes: list[np.ndarray],
    labels: tuple[str, ...],
    titles: list[str],
    path: str | Path,
) -> Path:
    """Images with true boxes dashed in white and answered ones in their class's colour, with their scores.

    Args:
        images: uint8 `(rows, height, width, channels)`.
        things: true boxes of each, `(count, 5)`.
        boxes: answered boxes of each, `(count, 6)`.
        labels: class names.
        titles: one above each image.
        path: of the picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    columns = max(1, min(_COLUMNS, len(images)))
    lines = -(-len(images) // columns)
    figure = Figure(figsize=(2.9 * columns, 3.2 * lines + 0.5), dpi=110, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    used = set()
    for axis, image, truth, found, title in zip(axes, images, things, boxes, titles, strict=False):
        height, width = image.shape[:2]
        axis.imshow(image[..., 0] if image.shape[-1] == 1 else image[..., :3], cmap="gray", vmin=0, vmax=255)
        axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        axis.set_title(title, fontsize=8)
        for left, top, right, bottom, _ in truth:
            place = (left - 0.5, top - 0.5), right - left, bottom - top
            axis.add_patch(Rectangle(*place, fill=False, edgecolor="black", linewidth=2.2))
            axis.add_patch(Rectangle(*place, fill=False, edgecolor="white", linewidth=1.2, linestyle=(0, (4, 3))))
        for left, top, right, bottom, score, kind in found:
            colour = _COLOURS[int(kind) % len(_COLOURS)]
            used.add(int(kind))
            place = (left - 0.5, top - 0.5), right - left, bottom - top
            axis.add_patch(Rectangle(*place, fill=False, edgecolor=colour, linewidth=1.8, clip_on=True))
            axis.text(
                np.clip(left, 0, width - 1),
                np.clip(top, 0.08 * height, height),
                f"{score:.2f}",
                fontsize=7,
                color="white",
                va="bottom",
                clip_on=True,
                bbox=dict(facecolor=colour, edgecolor="none", pad=1),
            )
    handles = [Rectangle((0, 0), 1, 1, fill=False, edgecolor="#888888", linestyle=(0, (4, 3)))]
    handles += [Rectangle((0, 0), 1, 1, fill=False, edgecolor=_COLOURS[kind % len(_COLOURS)]) for kind in sorted(used)]
    named = ["true", *(labels[kind] for kind in sorted(used))]
    figure.legend(handles, named, loc="outside lower center", ncols=min(6, len(named)), fontsize=8, frameon=False)
    figure.savefig(path)
    return Path(path)


def curves(matches: list, labels: tuple[str, ...], path: str | Path, limit: int = 0) -> Path:
    """Precision against recall of each class at one limit of overlap, at most eight classes."""
    from matplotlib.figure import Figure

    from zoo.evaluate.detections import LIMITS

    figure = Figure(figsize=(5.2, 4.2), dpi=110, layout="constrained")
    axis = figure.subplots()
    for place, (own, label) in enumerate(zip(matches[: len(_COLOURS)], labels, strict=False)):
        if not own.things.sum():
            continue
        weights = np.ones((1, len(own.things)))
        recall, precision = (values[0] for values in own.curve(weights, limit))
        if len(recall):
            recall = np.concatenate([[0], recall, recall[-1:]])
            precision = np.concatenate([precision[:1], precision, [0]])
        score = own.precision(weights, limit)[0]
        axis.plot(recall, precision, color=_COLOURS[place], label=f"{label}, {score:.3f}", drawstyle="steps-pre")
    axis.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axis.set_title(f"boxes that overlap by {LIMITS[limit]:.2f} or more", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(title="class, average precision", loc="lower left", fontsize=8, title_fontsize=8)
    figure.savefig(path)
    return Path(path)
