"""What a region-based detector learns from: which boxes are which true ones, how many of them count, and the losses.

Lists of true boxes are filled up to a fixed length; `valid` says which of them are boxes at all. The arithmetic is that
of torchvision's Faster R-CNN.
"""

import keras
from keras import ops

from zoo.layers.detection import intersection_over_union

BETA = 1 / 9  # error up to which the smooth loss of boxes is a parabola; Girshick's code, and torchvision's
NOTHING, UNUSED = 0, -1  # labels of boxes that are background, and of those that nothing is learned from


def matched(truth, valid, boxes, low, high, weak=False):
    """Which true box each box is, or that it is none.

    Source: Ren et al. 2015 (arXiv:1506.01497), section 3.1.2.

    Args:
        truth: true boxes (batch, things, 4).
        valid: which of these are boxes, bool (batch, things).
        boxes: (batch, boxes, 4), or (1, boxes, 4) where they are the same in every image.
        low: overlap below which a box is background.
        high: overlap from which on it is the true box that it overlaps most; between the two it is not used.
        weak: whether the boxes that overlap a true one most of all are true as well, however little that is.

    Returns:
        Labels int32 (batch, boxes): 1 for a true box, `NOTHING` or `UNUSED`; and the index of the true box it overlaps
        most, int32 (batch, boxes).
    """
    overlaps = intersection_over_union(truth, boxes)  # (batch, things, boxes)
    overlaps = ops.where(valid[..., None], overlaps, -1.0)
    best = ops.max(overlaps, axis=1)
    true = best >= high
    if weak:
        highest = ops.max(overlaps, axis=2, keepdims=True)
        most = ops.logical_and(ops.equal(overlaps, highest), highest > 0)
        true = ops.logical_or(true, ops.any(most, axis=1))
    labels = ops.where(true, 1, ops.where(best < low, NOTHING, UNUSED))
    return ops.cast(labels, "int32"), ops.cast(ops.argmax(overlaps, axis=1), "int32")


def sampled(labels, count, share, seed):
    """A random choice of boxes with a limited share of true ones.

    Source: Ren et al. 2015 (arXiv:1506.01497), section 3.1.3.

    Args:
        labels: int32 (batch, boxes): above 0 for a true box, `NOTHING` or `UNUSED`.
        count: boxes to choose in each image.
        share: largest share of true ones, in [0, 1].
        seed: of `keras.random`.

    Returns:
        Places int32 (batch, count) of the chosen boxes, true ones first, and which of them are chosen at all, bool
        (batch, count): there may be fewer.
    """
    count = min(count, labels.shape[1])
    draw = keras.random.uniform(ops.shape(labels), seed=seed)
    true = ops.where(labels > NOTHING, draw, -1.0)
    limit = int(count * share)
    least = ops.top_k(true, limit)[0][:, -1:] if limit else 2.0
    true = ops.logical_and(labels > NOTHING, true >= least)
    rank = ops.where(true, draw + 2.0, ops.where(ops.equal(labels, NOTHING), draw, -1.0))
    found, places = ops.top_k(rank, count)
    return places, found >= 0


def picked(values, places):
    """Rows of values (batch, rows, ...) at places (batch, count)."""
    for _ in range(len(values.shape) - 2):
        places = places[..., None]
    return ops.take_along_axis(values, places, axis=1)


def box_loss(deltas, wanted, true, count):
    """Smooth absolute error of the deltas of true boxes, summed, over the number of boxes learned from.

    Source: Girshick 2015 (arXiv:1504.08083), equations 2 and 3.

    Args:
        deltas: (batch, boxes, 4) that the network gave.
        wanted: (batch, boxes, 4) that were right.
        true: which boxes are true ones, bool (batch, boxes).
        count: boxes learned from in the whole batch, background included.
    """
    error = ops.abs(deltas - wanted)
    smooth = ops.where(error < BETA, 0.5 * error * error / BETA, error - 0.5 * BETA)
    return ops.sum(ops.where(true[..., None], smooth, 0.0)) / count


def mean_of(losses, chosen):
    """Mean of losses (batch, boxes) over the chosen boxes of the whole batch."""
    chosen = ops.cast(chosen, losses.dtype)
    return ops.sum(losses * chosen) / ops.maximum(ops.sum(chosen), 1.0)
