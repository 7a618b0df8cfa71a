"""Augmentation of training batches with boxes, which move with their images; see `zoo.training.augment`.

Targets are `(batch, most, 5)`: left, top, right, bottom in pixels and the class, -1 where there is no box. A box that
moves over an edge is cut there, and is gone with less than a quarter of its area left.
"""

import numpy as np

from zoo.data.targets import NOTHING

VISIBLE = 0.25
ROOM = 120  # most boxes of a mosaic; of more, the largest stay


def flip(images, targets, generator):
    """Mirror half of the images left to right."""
    turned = generator.random((len(images), 1, 1)) < 0.5
    width = images.shape[2]
    mirrored = targets.copy()
    mirrored[..., 0], mirrored[..., 2] = width - targets[..., 2], width - targets[..., 0]
    mirrored = np.where(turned & (targets[..., 4:] != NOTHING), mirrored, targets)
    return np.where(turned[..., None], images[:, :, ::-1], images), mirrored


def shift(images, targets, generator, most=None):
    """Move each image by up to `most` pixels, or an eighth of its side and at least one."""
    sides = np.array(images.shape[2:0:-1])
    reach = np.maximum(1, sides // 8 if most is None else np.minimum(int(most), sides))
    offsets = generator.integers(-reach, reach + 1, (len(images), 2)).astype(np.float64)  # right, down
    return _moved(images, targets, np.ones(len(images)), offsets)


def crop(images, targets, generator):
    """Cut out 70 to 100 % of each image's area and enlarge it to the old size (Szegedy et al. 2014)."""
    share = np.sqrt(generator.uniform(0.7, 1.0, len(images)))
    left_top = generator.random((len(images), 2)) * (1 - share[:, None]) * images.shape[2:0:-1]
    return _moved(images, targets, 1 / share, -left_top / share[:, None])


def mosaic(images, targets, generator, share=0.5, least=0.5, most=1.5):
    """Put four images of the batch around a point in the place of `share` of them, each `least` to `most` its size.

    The sizes are those that YOLOX has for its nano (arXiv:2107.08430, its configuration).
    Bochkovskiy et al., "YOLOv4" (arXiv:2004.10934), section 3.3. What no image covers is 0. The targets have room for
    four times as many boxes, 120 at most.
    """
    rows, height, width = images.shape[:3]
    room = min(4 * targets.shape[1], max(ROOM, targets.shape[1]))
    made = images.copy()
    boxes = np.zeros((rows, room, 5), targets.dtype)
    boxes[..., 4] = NOTHING
    boxes[:, : targets.shape[1]] = targets[:, :room]
    for row in np.flatnonzero(generator.random(rows) < share):
        others = [row, *generator.integers(0, rows, 3)]
        across, down = (generator.uniform(0.25, 0.75) * side for side in (width, height))
        zooms = generator.uniform(least, most, 4)
        columns, lines = round(across), round(down)
        found = []
        made[row] = 0
        for place, (other, zoom) in enumerate(zip(others, zooms, strict=True)):
            right, below = place % 2 == 1, place >= 2
            window = (
                columns if right else 0,
                lines if below else 0,
                width if right else columns,
                height if below else lines,
            )
            offset = (columns - (not right) * zoom * width, lines - (not below) * zoom * height)
            made[row, window[1] : window[3], window[0] : window[2]] = _seen(images[other], zoom, offset, window)
            found.append(_cut(targets[other], zoom, offset, window))
        everything = np.concatenate(found)
        area = np.prod(everything[:, 2:4] - everything[:, :2], axis=1) * (everything[:, 4] != NOTHING)
        everything = everything[np.argsort(-area, kind="stable")[:room]]
        boxes[row] = (0, 0, 0, 0, NOTHING)
        boxes[row, : len(everything)] = everything
    return made, boxes


def _moved(images, targets, zooms, offsets):
    """Each image enlarged around its upper left corner and moved right and down, with its boxes."""
    window = (0, 0, images.shape[2], images.shape[1])
    steps = list(zip(zooms, offsets, strict=True))
    made = [_seen(image, *how, window) for image, how in zip(images, steps, strict=True)]
    return np.stack(made), np.stack([_cut(boxes, *how, window) for boxes, how in zip(targets, steps, strict=True)])


def _seen(image, zoom, offset, window):
    """What a window (left, top, right, bottom) sees of an enlarged and moved image, 0 beside it."""
    for axis, side in ((0, 1), (1, 0)):  # rows go down
        places = (np.arange(window[side], window[side + 2]) + 0.5 - offset[side]) / zoom - 0.5
        size = image.shape[axis]
        inside = (places >= -0.5) & (places <= size - 0.5)
        places = np.clip(places, 0, size - 1)
        low = np.minimum(places.astype(np.int64), max(size - 2, 0))
        shape = [1, 1, 1]
        shape[axis] = -1
        share = (places - low).astype(np.float32).reshape(shape)
        image = image.take(low, axis) * (1 - share) + image.take(np.minimum(low + 1, size - 1), axis) * share
        image *= inside.reshape(shape)
    return image


def _cut(boxes, zoom, offset, window):
    """Boxes `(most, 5)` enlarged and moved, cut at a window's edges; without the class where too little is left."""
    made = boxes.copy()
    made[:, :4] = boxes[:, :4] * zoom + np.tile(np.asarray(offset, boxes.dtype), 2)
    whole = np.prod(made[:, 2:4] - made[:, :2], axis=1)
    for side in range(4):
        made[:, side] = np.clip(made[:, side], window[side % 2], window[side % 2 + 2])
    left = np.prod(made[:, 2:4] - made[:, :2], axis=1)
    gone = (boxes[:, 4] == NOTHING) | (left < VISIBLE * whole) | (left <= 0)
    made[gone] = (0, 0, 0, 0, NOTHING)
    return made


BY_NAME = {"flip": flip, "shift": shift, "crop": crop, "mosaic": mosaic}
