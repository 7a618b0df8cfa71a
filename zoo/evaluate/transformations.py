"""Input transformations as a defence: coarser images, in which small changes made by an attacker may get lost.

Xu, Evans & Qi, "Feature Squeezing" (NDSS 2018, arXiv:1704.01155) for bit depth and the median; Guo, Rana, Cisse &
van der Maaten, "Countering Adversarial Images using Input Transformations" (ICLR 2018, arXiv:1711.00117) for JPEG.

They do not withstand an attacker who knows of them: Athalye, Carlini & Wagner, "Obfuscated Gradients Give a False
Sense of Security" (ICML 2018, arXiv:1802.00420, section 5.2) take the transformation's gradient for one and break
those of Guo et al.; He, Wei, Chen, Carlini & Song, "Adversarial Example Defenses: Ensembles of Weak Defenses are not
Strong" (WOOT 2017, arXiv:1706.04701) break feature squeezing. `zoo.evaluate.robustness.transformed` measures both
attackers.
"""

import io
from collections.abc import Callable

import numpy as np

Raw = dict[str, np.ndarray]


def bits(images: np.ndarray, depth: float) -> np.ndarray:
    """Pixels with 1 to 8 bits, spread over 0 … 255 again."""
    levels = 2 ** int(depth) - 1
    return np.rint(np.rint(images / 255 * levels) / levels * 255).astype(np.uint8)


def median(images: np.ndarray, side: float) -> np.ndarray:
    """Each pixel as the median of the square around it, channel by channel."""
    from scipy import ndimage

    return ndimage.median_filter(images, size=(1, int(side), int(side), 1), mode="nearest")


def jpeg(images: np.ndarray, quality: float) -> np.ndarray:
    """Images after JPEG compression, quality 1 to 95."""
    from PIL import Image

    found = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "JPEG", quality=int(quality))
        found.append(np.asarray(Image.open(file)).reshape(image.shape))
    return np.stack(found)


_LIMITS: dict[str, tuple[Callable[[np.ndarray, float], np.ndarray], int, int]] = {
    "bits": (bits, 1, 8),
    "median": (median, 2, 15),
    "jpeg": (jpeg, 1, 95),
}
USUAL = ("bits:4", "bits:2", "median:2", "median:3", "jpeg:75", "jpeg:25")


def parse(text: str) -> Callable[[Raw], Raw]:
    """The transformation of raw images that a text such as "bits:4", "median:3" or "jpeg:50" names.

    Raises:
        ValueError: it names none.
    """
    name, _, strength = text.partition(":")
    function, low, high = _LIMITS.get(name, (None, 0, 0))
    if function is None or not strength.isdecimal() or not low <= int(strength) <= high:
        known = ", ".join(f"{name}:{low} … {name}:{high}" for name, (_, low, high) in _LIMITS.items())
        raise ValueError(f"transformation must be one of {known}, got {text!r}")

    def transform(raw: Raw) -> Raw:
        images = raw["image"]
        if name == "jpeg" and images.shape[-1] not in (1, 3):
            raise ValueError(f"JPEG holds 1 or 3 channels, got images with {images.shape[-1]}; take bits or median")
        return {**raw, "image": function(images, int(strength))}

    return transform
