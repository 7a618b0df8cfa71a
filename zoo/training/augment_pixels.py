"""Augmentation of pictures as pixels, before they are scaled: what needs the range of 0 … 255, and quick resampling.

Each takes a Pillow image and a random generator and gives an image of the same size; none moves masks or boxes.
"""

import numpy as np

RATIO = (3 / 4, 4 / 3)  # width to height of what `resized_crop` cuts out
_GREY = 128  # what comes in from beyond an edge


def resized_crop(image, generator, least=0.08):
    """Cut out `least` to all of the area, up to a third wider or higher than the whole, and enlarge it (Szegedy et al. 2014).

    Source: section 6 of arXiv:1409.4842. Where ten draws do not fit in the image, all of it is taken.
    """
    width, height = image.size
    for _ in range(10):
        area = generator.uniform(least, 1.0)
        ratio = np.exp(generator.uniform(*np.log(RATIO)))
        wide, high = np.sqrt(area * ratio), np.sqrt(area / ratio)
        if wide <= 1 and high <= 1:
            left, top = generator.uniform(0, 1 - wide), generator.uniform(0, 1 - high)
            box = (left * width, top * height, (left + wide) * width, (top + high) * height)
            return image.resize(image.size, _bilinear(), box=box)
    return image


def randaugment(image, generator, count=2, magnitude=9):
    """Change an image in `count` ways drawn from fourteen, as strongly as `magnitude` in 0 … 10 says.

    Cubuk et al. 2020 (arXiv:1909.13719), with the ranges of AutoAugment (arXiv:1805.09501, table 6) and shifts of up to
    45 % of a side.
    """
    for place in generator.integers(0, len(_WAYS), int(count)):
        strength = min(magnitude, 10) / 10
        image = _WAYS[place](image, strength if generator.random() < 0.5 else -strength)
    return image


def apply(entries, images, generator):
    """Apply augmentations, written `name` or `name:figure:figure`, in order.

    Args:
        entries: of `BY_NAME`.
        images: uint8 `(batch, height, width, channels)`.
        generator: of random numbers.

    Raises:
        ValueError: the images are neither grey nor RGB.
    """
    from PIL import Image

    if images.shape[-1] not in (1, 3):
        raise ValueError(
            f"augment {entries[0]!r} is for grey and RGB images, got {images.shape[-1]} channels; leave it out"
        )
    changed = np.empty_like(images)
    for row, pixels in enumerate(images):
        image = Image.fromarray(pixels[..., 0] if images.shape[-1] == 1 else pixels)
        for entry in entries:
            name, *figures = entry.split(":")
            image = BY_NAME[name](image, generator, *map(float, figures))
        changed[row] = np.asarray(image, np.uint8).reshape(pixels.shape)
    return changed


def _bilinear():
    from PIL import Image

    return Image.Resampling.BILINEAR


def _moved(image, *matrix):
    """An affine map around the middle: where each pixel is taken from, `(a, b, c, d, e, f)` as Pillow has it."""
    from PIL import Image

    across, down = image.size[0] / 2, image.size[1] / 2
    a, b, c, d, e, f = matrix
    moved = (a, b, c + across - a * across - b * down, d, e, f + down - d * across - e * down)
    fill = _GREY if image.mode == "L" else (_GREY,) * 3
    return image.transform(image.size, Image.Transform.AFFINE, moved, _bilinear(), fillcolor=fill)


def _rotated(image, strength):
    angle = np.deg2rad(30 * strength)
    return _moved(image, np.cos(angle), np.sin(angle), 0, -np.sin(angle), np.cos(angle), 0)


def _operation(name, *arguments):
    def change(image, strength):
        from PIL import ImageOps

        return getattr(ImageOps, name)(image, *(argument(abs(strength)) for argument in arguments))

    return change


def _enhanced(name):
    def change(image, strength):
        from PIL import ImageEnhance

        return getattr(ImageEnhance, name)(image).enhance(1 + 0.9 * strength)

    return change


_WAYS = (
    lambda image, _: image,
    _operation("autocontrast"),
    _operation("equalize"),
    _operation("posterize", lambda strength: 8 - round(4 * strength)),
    _operation("solarize", lambda strength: 256 * (1 - strength)),
    _rotated,
    lambda image, strength: _moved(image, 1, 0.3 * strength, 0, 0, 1, 0),
    lambda image, strength: _moved(image, 1, 0, 0, 0.3 * strength, 1, 0),
    lambda image, strength: _moved(image, 1, 0, 0.45 * strength * image.size[0], 0, 1, 0),
    lambda image, strength: _moved(image, 1, 0, 0, 0, 1, 0.45 * strength * image.size[1]),
    _enhanced("Color"),
    _enhanced("Contrast"),
    _enhanced("Brightness"),
    _enhanced("Sharpness"),
)

BY_NAME = {"resized_crop": resized_crop, "randaugment": randaugment}
