"""The score of a segmentation while it trains."""

import keras
from keras import ops


class MeanIoU(keras.metrics.Metric):
    """Mean intersection over union of the classes seen so far, of one-hot targets and logits, as the task itself scores."""

    def __init__(self, name="iou", **kwargs):
        super().__init__(name=name, **kwargs)
        self.areas = None  # both, true and found pixels of each class, made with the first batch

    def update_state(self, y_true, y_pred, sample_weight=None):
        if self.areas is None:
            shape, kinds = (y_pred.shape[-1],), ("both", "true", "found")
            self.areas = [self.add_variable(shape=shape, initializer="zeros", name=kind) for kind in kinds]
        y_true, y_pred = ops.convert_to_tensor(y_true, self.dtype), ops.convert_to_tensor(y_pred, self.dtype)
        known = ops.sum(y_true, axis=-1, keepdims=True)  # 0 where the class is not known
        found = ops.one_hot(ops.argmax(y_pred, axis=-1), y_pred.shape[-1], dtype=self.dtype) * known
        for area, pixels in zip(self.areas, (y_true * found, y_true, found), strict=True):
            area.assign(area + ops.sum(pixels, axis=(0, 1, 2)))

    def result(self):
        if self.areas is None:
            return ops.zeros(())
        both, true, found = (ops.convert_to_tensor(area) for area in self.areas)
        either = true + found - both
        there = ops.cast(either > 0, self.dtype)
        return ops.sum(there * both / ops.maximum(either, 1e-6)) / ops.maximum(ops.sum(there), 1.0)

    def reset_state(self):
        for area in self.areas or ():
            area.assign(ops.zeros(area.shape, self.dtype))
