"""A rough average precision of boxes, cheap enough to be followed while training."""

import keras
from keras import ops

from zoo.layers.detection import intersection_over_union
from zoo.tasks.detection import LEAST, OVERLAP, probabilities

_BINS = 200  # of scores
_CANDIDATES = 100  # boxes that are looked at


@keras.saving.register_keras_serializable("zoo")
class RoughPrecision(keras.metrics.Metric):
    """About the average precision at an overlap of one half, all classes together, cheap enough for every batch.

    Boxes are left out where any better one of their class overlaps them, itself left out or not (Bolya et al. 2019,
    "YOLACT", arXiv:1904.02689, section 5), a thing is found by the best box that overlaps it most, and scores are
    counted in bins.
    """

    def __init__(self, name="precision", **kwargs):
        super().__init__(name=name, **kwargs)
        self.things = self.add_variable((), "zeros", name="things")
        self.counts = self.add_variable((2 * _BINS,), "zeros", name="counts")  # of wrong boxes, then of right ones

    def update_state(self, y_true, y_pred, sample_weight=None):
        y_true = ops.cast(y_true, "float32")
        raw = ops.cast(y_pred, "float32")
        scores = probabilities(raw)
        best, kinds = ops.max(scores, axis=-1), ops.cast(ops.argmax(scores, axis=-1), "float32")
        best, places = ops.top_k(best, min(_CANDIDATES, raw.shape[1]))  # (batch, boxes)
        kinds = ops.take_along_axis(kinds, places, axis=1)
        boxes = ops.take_along_axis(raw[..., :4], places[..., None], axis=1)
        alike = ops.equal(kinds[:, :, None], kinds[:, None, :])
        order = ops.arange(best.shape[1])
        better = order[None, :] < order[:, None]
        near = intersection_over_union(boxes, boxes) > OVERLAP
        hidden = ops.any(ops.logical_and(ops.logical_and(alike, near), better), axis=-1)
        there = ops.cast(ops.logical_and(ops.logical_not(hidden), best > LEAST), "float32")

        shared = intersection_over_union(boxes, y_true[..., :4])  # (batch, boxes, things)
        shared = ops.where(ops.equal(kinds[..., None], y_true[:, None, :, 4]), shared, 0.0)
        mine = ops.one_hot(ops.argmax(shared, axis=-1), shared.shape[-1], dtype="float32")
        mine = mine * ops.cast(ops.max(shared, axis=-1, keepdims=True) >= 0.5, "float32") * there[..., None]
        first = mine * ops.cast(ops.cumsum(mine, axis=1) <= 1.0, "float32")
        right = ops.max(first, axis=-1)
        bins = ops.cast(ops.clip(best * _BINS, 0, _BINS - 1), "int32") + _BINS * ops.cast(right > 0, "int32")
        found = ops.segment_sum(ops.reshape(there, (-1,)), ops.reshape(bins, (-1,)), num_segments=2 * _BINS)
        self.counts.assign(self.counts + ops.cast(found, self.counts.dtype))
        real = ops.cast(y_true[..., 4] >= 0, self.things.dtype)
        self.things.assign(self.things + ops.sum(real))

    def result(self):
        wrong, right = (ops.cumsum(ops.flip(self.counts[half : half + _BINS])) for half in (0, _BINS))
        precision = right / ops.maximum(wrong + right, 1.0)  # (bins,), from the surest down
        order = ops.arange(_BINS)
        best = ops.max(ops.where(order[None, :] >= order[:, None], precision[None], 0.0), axis=1)
        gained = right - ops.concatenate([ops.zeros((1,), right.dtype), right[:-1]])
        return ops.sum(gained * best) / ops.maximum(self.things, 1.0)
