"""Augmentation of training batches, in numpy: each takes and gives `(images, targets)` with a random generator.

Images are standardised float32 `(batch, height, width, channels)`, so what comes in from beyond an edge is 0, the
mean. Targets are one-hot, as mixing needs. Some take figures, such as "mixup:0.8". What works on pixels comes before all
of these and is in `augment_pixels`. A batch's draw depends on its seed, epoch and position alone.

One-hot masks `(batch, height, width, classes)` move with their images, each pixel taking the class of the nearest; what
comes in from beyond an edge is all zeros, which losses and metrics take for not known. Boxes are in `augment_boxes`.
"""

import numpy as np
from scipy import ndimage

from zoo.training import augment_boxes


def shift(images, targets, generator, most=None):
    """Move each image by up to `most` pixels, or an eighth of its side and at least one."""
    moved, masks = np.zeros_like(images), np.zeros_like(targets) if _masks(targets) else targets
    height, width = images.shape[1:3]
    reach = [max(1, side // 8 if most is None else min(int(most), side)) for side in (height, width)]
    for row in range(len(images)):
        down, right = (int(generator.integers(-r, r + 1)) for r in reach)
        rows, columns = slice(max(down, 0), height + min(down, 0)), slice(max(right, 0), width + min(right, 0))
        source = slice(max(-down, 0), height - max(down, 0)), slice(max(-right, 0), width - max(right, 0))
        moved[row, rows, columns] = images[row][source]
        if _masks(targets):
            masks[row, rows, columns] = targets[row][source]
    return moved, masks


def crop(images, targets, generator):
    """Cut out 70 to 100 % of each image's area and enlarge it to the old size (Szegedy et al. 2014)."""
    height, width = images.shape[1:3]
    cut, masks = np.empty_like(images), np.empty_like(targets) if _masks(targets) else targets
    for row in range(len(images)):
        scale = np.sqrt(generator.uniform(0.7, 1.0))
        top, left = generator.uniform(0, (1 - scale) * height), generator.uniform(0, (1 - scale) * width)
        place = (scale, scale, 1), (top, left, 0)
        cut[row] = ndimage.affine_transform(images[row], *place, order=1, mode="nearest")
        if _masks(targets):
            masks[row] = ndimage.affine_transform(targets[row], *place, order=0, mode="nearest")
    return cut, masks


def flip(images, targets, generator):
    """Mirror half of the images left to right; not for digits or text."""
    turned = generator.random((len(images), 1, 1, 1)) < 0.5
    if _masks(targets):
        targets = np.where(turned, targets[:, :, ::-1], targets)
    return np.where(turned, images[:, :, ::-1], images), targets


def rotate(images, targets, generator):
    """Turn each image by up to 15 degrees."""
    angles = [generator.uniform(-15, 15) for _ in images]
    if _masks(targets):
        turned = zip(targets, angles, strict=True)
        targets = np.stack([ndimage.rotate(mask, angle, reshape=False, order=0) for mask, angle in turned])
    turned = zip(images, angles, strict=True)
    return np.stack([ndimage.rotate(image, angle, reshape=False, order=1) for image, angle in turned]), targets


def noise(images, targets, generator):
    """Add Gaussian noise of a tenth of the images' standard deviation."""
    return images + 0.1 * generator.standard_normal(images.shape, np.float32), targets


def colour(images, targets, generator):
    """Scale and move each channel of each image: contrast by 20 %, brightness by 0.2 standard deviations."""
    shape = (len(images), 1, 1, images.shape[-1])
    contrast = generator.uniform(0.8, 1.2, shape).astype(np.float32)
    return images * contrast + generator.uniform(-0.2, 0.2, shape).astype(np.float32), targets


def mixup(images, targets, generator, alpha=0.2):
    """Blend each image and target with another of the batch, weight ~ Beta(alpha, alpha) (Zhang et al. 2017)."""
    weight = np.float32(generator.beta(alpha, alpha))
    other = generator.permutation(len(images))
    return weight * images + (1 - weight) * images[other], weight * targets + (1 - weight) * targets[other]


def cutmix(images, targets, generator, alpha=1.0):
    """Paste a box of another image of the batch, its target by area, which is ~ Beta(alpha, alpha) (Yun et al. 2019)."""
    height, width = images.shape[1:3]
    side = np.sqrt(1 - generator.beta(alpha, alpha))
    top, left = generator.integers(0, height), generator.integers(0, width)
    rows = slice(max(0, int(top - side * height / 2)), min(height, int(top + side * height / 2)))
    columns = slice(max(0, int(left - side * width / 2)), min(width, int(left + side * width / 2)))
    other = generator.permutation(len(images))
    mixed = images.copy()
    mixed[:, rows, columns] = images[other, rows, columns]
    if _masks(targets):
        pasted = targets.copy()
        pasted[:, rows, columns] = targets[other, rows, columns]
        return mixed, pasted
    share = np.float32(max(0, rows.stop - rows.start) * max(0, columns.stop - columns.start) / (height * width))
    return mixed, (1 - share) * targets + share * targets[other]


def mixup_or_cutmix(images, targets, generator, blended=0.8, pasted=1.0):
    """One of the two for the whole batch, each in half of the batches, with these values of alpha (Touvron et al. 2021)."""
    if generator.random() < 0.5:
        return mixup(images, targets, generator, blended)
    return cutmix(images, targets, generator, pasted)


def erase(images, targets, generator, share=0.25):
    """Put noise in place of a box of 2 to 33 % of the area of `share` of the images (Zhong et al. 2017)."""
    if _masks(targets):
        raise ValueError("augment 'erase' hides what a mask tells of; leave it out")
    height, width = images.shape[1:3]
    changed = images.copy()
    for row in np.flatnonzero(generator.random(len(images)) < share):
        area, ratio = generator.uniform(0.02, 1 / 3), np.exp(generator.uniform(-1, 1) * np.log(3.3))
        high, wide = (max(1, int(side)) for side in (height * np.sqrt(area * ratio), width * np.sqrt(area / ratio)))
        top, left = (generator.integers(0, max(1, free + 1)) for free in (height - high, width - wide))
        place = changed[row, top : top + high, left : left + wide]
        place[...] = generator.standard_normal(place.shape, np.float32)
    return changed, targets


def mosaic(images, targets, generator, *figures):
    """Refuse targets without boxes; those with boxes are in `augment_boxes`."""
    raise ValueError("augment 'mosaic' puts four images with boxes into one, the targets have none; use cutmix")


def _masks(targets):
    """Whether targets are masks, which move with the images."""
    return targets.ndim == 4


def apply(names, images, targets, generator):
    """Apply augmentations, written `name` or `name:figure:figure`, in order.

    Raises:
        ValueError: the inputs are not images, or one cannot move boxes.
    """
    boxes = images.ndim == 4 and targets.ndim == 3
    for entry in names:
        name, *figures = entry.split(":")
        if images.ndim != 4 and name not in ("noise", "mixup"):
            raise ValueError(
                f"augment {name!r} needs images, got inputs of shape {images.shape[1:]}; use noise or mixup"
            )
        if boxes and name not in (*augment_boxes.BY_NAME, "noise", "colour"):
            raise ValueError(
                f"augment {name!r} does not move boxes; use some of {', '.join(augment_boxes.BY_NAME)}, noise, colour"
            )
        change = augment_boxes.BY_NAME.get(name) if boxes else None
        images, targets = (change or globals()[name])(images, targets, generator, *map(float, figures))
    return images.astype(np.float32, copy=False), targets
