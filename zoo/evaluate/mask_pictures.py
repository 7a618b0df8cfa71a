"""Pictures of masks: each image beside its true mask and the answered one."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from zoo.data.targets import UNKNOWN

# Okabe & Ito 2008, "Color universal design": told apart by colour-blind readers too; the first label stays dark
COLOURS = ("#26282c", "#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#f0e442", "#0072b2")
_NOT_KNOWN = "#ffffff"


def palette(classes: int) -> np.ndarray:
    """Colours of labels as uint8 `(classes, 3)`; beyond eight they are evenly spread hues."""
    from matplotlib.colors import hsv_to_rgb, to_rgb

    more = [hsv_to_rgb((place * 0.618 % 1, 0.65, 0.9)) for place in range(max(0, classes - len(COLOURS)))]
    found = [to_rgb(colour) for colour in COLOURS[:classes]] + [tuple(colour) for colour in more]
    return np.rint(255 * np.array(found)).astype(np.uint8)


def coloured(masks: np.ndarray, classes: int) -> np.ndarray:
    """Masks `(…)` of class indices as colours, uint8 `(…, 3)`; white where the class is not known."""
    table = np.full((UNKNOWN + 1, 3), 255, np.uint8)
    table[:classes] = palette(classes)
    return table[masks]


def beside(
    images: np.ndarray,
    truth: np.ndarray,
    answers: np.ndarray,
    labels: tuple[str, ...],
    rows: list[int],
    scores: np.ndarray,
    path: str | Path,
) -> Path:
    """Image, true mask, answered mask and where the two differ, a line for each row.

    Args:
        images: uint8 `(rows, height, width, channels)`.
        truth, answers: masks uint8 `(rows, height, width)`.
        labels: of the classes.
        rows: places of the rows, to be named.
        scores: mean intersection over union of each.
        path: file to write.
    """
    pairs = 2 if len(rows) > 1 else 1  # rows side by side
    down = -(-len(rows) // pairs)
    figure = Figure(figsize=(5.6 * pairs, 1.45 * down + 0.9), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(down, 4 * pairs, squeeze=False)
    for axes in places.ravel():
        axes.axis("off")
    classes = len(labels)
    unlike = (truth != answers) & (truth != UNKNOWN)
    for index, row in enumerate(rows):
        one = places[index // pairs, 4 * (index % pairs) : 4 * (index % pairs) + 4]
        flat = images.shape[-1] not in (3, 4)
        one[0].imshow(images[index][..., 0] if flat else images[index], cmap="gray" if flat else None, vmin=0, vmax=255)
        one[1].imshow(coloured(truth[index], classes), interpolation="nearest")
        one[2].imshow(coloured(answers[index], classes), interpolation="nearest")
        one[3].imshow(np.where(unlike[index], 0, 255), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        wrong = int(unlike[index].sum())
        titles = (
            f"row {row}",
            "truth",
            f"answer, IoU {scores[index]:.2f}",
            f"{wrong:,} pixel{'s' * (wrong != 1)} wrong",
        )
        for axes, title in zip(one, titles, strict=True):
            axes.set_title(title, fontsize=8)
        one[3].axis("on")
        one[3].set(xticks=[], yticks=[])
    patches = [
        Patch(facecolor=colour / 255, edgecolor="grey", label=label)
        for colour, label in zip(palette(classes), labels, strict=True)
    ]
    if (truth == UNKNOWN).any():
        patches.append(Patch(facecolor=_NOT_KNOWN, edgecolor="grey", label="not known"))
    figure.legend(handles=patches, loc="outside lower center", ncols=min(8, len(patches)), fontsize=8, frameon=False)
    figure.savefig(path)
    return Path(path)
