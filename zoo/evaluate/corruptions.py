"""What happens to inputs in the field, at a chosen strength: `CORRUPTIONS[kind][name].apply(raw, strength, ...)`.

Raw inputs come in and go out as `zoo.data.signature` describes them, so any predict function can be judged. Strengths
that depend on the size of an image are shares of its shorter side, so that they mean the same for small and large
images. Kinds of corruption after Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions" (ICLR 2019, arXiv:1903.12261, section 4); the strengths are our own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Raw = dict[str, np.ndarray]


@dataclass(frozen=True)
class Corruption:
    """One way in which inputs go bad.

    Attributes:
        unit: what a strength counts.
        strengths: those of a table, from weak to strong.
        change: `(raw, strength, signature, generator) -> raw`, of which what does not change may be left out.
        neutral: strength at which nothing changes.
    """

    unit: str
    strengths: tuple[float, ...]
    change: Callable[[Raw, float, Any, np.random.Generator], Raw]
    neutral: float = 0.0

    def apply(self, raw: Raw, strength: float, signature: Any, seed: int = 0) -> Raw:
        """Corrupted copies of raw rows; the same seed corrupts alike."""
        return {**raw, **self.change(raw, strength, signature, np.random.default_rng(seed))}


def _pixels(images: np.ndarray) -> Raw:
    return {"image": np.clip(np.rint(images), 0, 255).astype(np.uint8)}


def _noise(raw, strength, signature, generator):
    """Gaussian noise on each value of each pixel."""
    return _pixels(raw["image"] + strength * generator.standard_normal(raw["image"].shape, np.float32))


def _blur(raw, strength, signature, generator):
    """Gaussian blur over both sides."""
    from scipy import ndimage

    sigma = strength / 100 * min(raw["image"].shape[1:3])
    return _pixels(ndimage.gaussian_filter(raw["image"].astype(np.float32), (0, sigma, sigma, 0), mode="nearest"))


def _brightness(raw, strength, signature, generator):
    """The same number added to every pixel."""
    return _pixels(raw["image"].astype(np.float32) + strength)


def _contrast(raw, strength, signature, generator):
    """Distances from each image's mean, multiplied."""
    images = raw["image"].astype(np.float32)
    mean = images.mean(axis=(1, 2), keepdims=True)
    return _pixels(mean + strength * (images - mean))


def _rotation(raw, strength, signature, generator):
    """Each image turned to the left or to the right; what comes in from beyond an edge is the edge's colour."""
    from scipy import ndimage

    angles = strength * generator.choice((-1, 1), len(raw["image"]))
    images = raw["image"].astype(np.float32)
    turned = [
        ndimage.rotate(image, angle, reshape=False, order=1, mode="nearest")
        for image, angle in zip(images, angles, strict=True)
    ]
    return _pixels(np.stack(turned))


def _shift(raw, strength, signature, generator):
    """Each image moved in a direction of its own, by parts of pixels too."""
    from scipy import ndimage

    distance = strength / 100 * min(raw["image"].shape[1:3])
    angles = generator.uniform(0, 2 * np.pi, len(raw["image"]))
    moved = [
        ndimage.shift(image, (distance * np.sin(angle), distance * np.cos(angle), 0), order=1, mode="nearest")
        for image, angle in zip(raw["image"].astype(np.float32), angles, strict=True)
    ]
    return _pixels(np.stack(moved))


def _number_noise(raw, strength, signature, generator):
    """Gaussian noise on each number, in standard deviations of its column; missing ones stay missing."""
    if "numbers" not in raw:
        return raw
    numbers = raw["numbers"].astype(np.float32)
    std = np.asarray(signature.preprocess.std, np.float32)
    return {**raw, "numbers": numbers + strength * std * generator.standard_normal(numbers.shape, np.float32)}


def _typos(raw, strength, signature, generator):
    """Words with two letters in the wrong order, one too many or one too few."""
    from zoo.data.messages import misspelt

    return _reworded(raw, lambda word: misspelt(word, generator) if generator.random() < strength else word)


def _lost_words(raw, strength, signature, generator):
    """Words left out; one of each text stays."""
    return _reworded(raw, lambda word: "" if generator.random() < strength else word)


def _reworded(raw, change):
    """Texts whose words are changed one by one; a text of which nothing would be left keeps its first word."""
    found = dict(raw)
    for name in ("text", "second"):
        if name in raw:
            rows = [" ".join(filter(None, map(change, text.split()))) or text.split()[0] for text in raw[name].tolist()]
            found[name] = np.array(rows, np.str_)
    return found


def _missing(raw, strength, signature, generator):
    """Cells lost at random."""
    lost = {name: generator.random(values.shape) < strength for name, values in raw.items()}
    return {name: _emptied(values, lost[name]) for name, values in raw.items()}


def _swapped(raw, strength, signature, generator):
    """Cells that hold another row's value of their column."""
    found = {}
    for name, values in raw.items():
        other = np.stack([column[generator.permutation(len(values))] for column in values.T], axis=1)
        found[name] = np.where(generator.random(values.shape) < strength, other, values)
    return found


def _emptied(values: np.ndarray, lost: np.ndarray) -> np.ndarray:
    return np.where(lost, np.asarray("" if values.dtype.kind in "USO" else np.nan, values.dtype), values)


def without_column(raw: Raw, column: str, signature: Any) -> Raw:
    """A table's rows in which one column is missing everywhere."""
    step = signature.preprocess
    name, columns = ("numbers", step.numbers) if column in step.numbers else ("categories", tuple(step.categories))
    lost = np.zeros(raw[name].shape, bool)
    lost[:, columns.index(column)] = True
    return {**raw, name: _emptied(raw[name], lost)}


CORRUPTIONS: dict[str, dict[str, Corruption]] = {
    "image": {
        "noise": Corruption("standard deviation, pixel values of 0 … 255", (8, 16, 32, 64, 96), _noise),
        "blur": Corruption("standard deviation, % of the shorter side", (1, 2, 4, 8, 16), _blur),
        "brightness": Corruption("added, pixel values of 0 … 255", (-128, -64, -32, 32, 64, 128), _brightness),
        "contrast": Corruption("times the contrast", (0.1, 0.25, 0.5, 0.75, 1.5, 2), _contrast, neutral=1.0),
        "rotation": Corruption("degrees, either way", (5, 10, 15, 30, 45), _rotation),
        "shift": Corruption("% of the shorter side, any direction", (2, 5, 10, 15, 25), _shift),
    },
    "table": {
        "noise": Corruption("standard deviations of each column", (0.1, 0.25, 0.5, 1, 2), _number_noise),
        "missing": Corruption("share of the cells", (0.1, 0.25, 0.5, 0.75, 0.9), _missing),
        "swapped": Corruption("share of the cells", (0.1, 0.25, 0.5, 0.75, 1), _swapped),
    },
    "text": {
        "typos": Corruption("share of the words", (0.05, 0.1, 0.25, 0.5, 1), _typos),
        "missing": Corruption("share of the words", (0.05, 0.1, 0.25, 0.5, 0.75), _lost_words),
    },
}
CORRUPTIONS["captioned"] = CORRUPTIONS["image"]  # the texts stay as they are
