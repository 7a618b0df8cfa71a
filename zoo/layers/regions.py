"""The two stages of region-based detectors: where there may be things, and what each of them is.

Boxes are corners (left, top, right, bottom) in pixels of the image. The arithmetic is that of torchvision's Faster
R-CNN, rounding of anchors and strides included; lists of boxes have a fixed length here, filled up with boxes that say
so themselves.
"""

import math

import keras
from keras import layers, ops

from zoo.layers.detection import NonMaxSuppression, averaged, between, neighbours

GROWTH = math.log(1000 / 16)  # largest logarithm by which a box grows in one stage, so that its exponential is finite
SURE = 40.0  # a logit whose sigmoid is 1 in float32


def moved(boxes, deltas, weights=(1.0, 1.0)):
    """Boxes moved and scaled as a network says: (..., 4) and (..., 4) -> (..., 4).

    Args:
        boxes: where from.
        deltas: shift of the centre in sides of the box (x, y), then the logarithm of the growth (width, height).
        weights: what shifts and growths were multiplied by.

    Source: Girshick et al. 2014 (arXiv:1311.2524), appendix C.
    """
    sides = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + 0.5 * sides
    centre = deltas[..., :2] / weights[0] * sides + centre
    half = 0.5 * ops.exp(ops.minimum(deltas[..., 2:] / weights[1], GROWTH)) * sides
    return ops.concatenate([centre - half, centre + half], axis=-1)


def moves(boxes, truth, weights=(1.0, 1.0)):
    """The deltas that move boxes onto true ones, the inverse of `moved`."""
    sides, true_sides = (ops.maximum(box[..., 2:] - box[..., :2], 1e-6) for box in (boxes, truth))
    shift = (truth[..., :2] + 0.5 * true_sides - boxes[..., :2] - 0.5 * sides) / sides
    return ops.concatenate([weights[0] * shift, weights[1] * ops.log(true_sides / sides)], axis=-1)


def inside(boxes, height, width):
    """Boxes cut at the image's edges."""
    return ops.minimum(ops.maximum(boxes, 0.0), ops.convert_to_tensor([width, height] * 2, "float32"))


def at_least(boxes, side):
    """Which boxes have both sides that long, bool (...)."""
    return ops.all(boxes[..., 2:] - boxes[..., :2] >= side, axis=-1)


@keras.saving.register_keras_serializable("zoo")
class Proposals(layers.Layer):
    """Boxes in which there may be something, from what a region proposal network says of its anchors.

    Call it with logits [(batch, height, width, anchors), ...] and deltas [(batch, height, width, 4 * anchors), ...],
    finest map first. It gives boxes (batch, count, 4), best first, and which of them are boxes at all (batch, count) as
    bool; the rest is 0. No gradient passes. While training there are twice as many of both candidates and boxes.

    Source: Ren et al. 2015 (arXiv:1506.01497), section 3; Lin et al. 2017 (arXiv:1612.03144), section 4.1.

    Args:
        image: height and width of the image in pixels.
        sizes: side of the anchors of each map in pixels.
        ratios: height over width of the anchors of a place.
        count: boxes for an image.
        candidates: anchors of each map that compete, those with the highest logits.
        overlap: intersection over union above which the worse box of a map is left out.
    """

    SMALLEST = 1e-3  # pixels a side

    def __init__(
        self,
        image: tuple[int, int],
        sizes: tuple[float, ...],
        ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        count: int = 1000,
        candidates: int = 1000,
        overlap: float = 0.7,
        **kwargs,
    ) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})  # half precision would round pixels
        self.image, self.sizes, self.ratios = tuple(image), tuple(sizes), tuple(ratios)
        self.count, self.candidates, self.overlap = count, candidates, overlap

    def anchors(self, level, height, width):
        """Anchors of a map in the order of its logits: (height * width * ratios, 4), partly outside the image."""
        cells = []
        for ratio in self.ratios:
            half = (self.sizes[level] / math.sqrt(ratio) / 2, self.sizes[level] * math.sqrt(ratio) / 2)
            cells.append([round(-half[0]), round(-half[1]), round(half[0]), round(half[1])])
        down, across = self.image[0] // height, self.image[1] // width
        x, y = ops.meshgrid(ops.arange(width) * across, ops.arange(height) * down)
        shifts = ops.cast(ops.reshape(ops.stack([x, y, x, y], axis=-1), (-1, 1, 4)), "float32")
        return ops.reshape(shifts + ops.convert_to_tensor(cells, "float32"), (-1, 4))

    def all_anchors(self, logits):
        """Anchors of all maps, one after the other: (anchors, 4)."""
        return ops.concatenate([self.anchors(level, *x.shape[1:3]) for level, x in enumerate(logits)], axis=0)

    def call(self, logits, deltas, training=False):
        count, candidates = (2 * self.count, 2 * self.candidates) if training else (self.count, self.candidates)
        found = [self.best_of(level, *pair, candidates) for level, pair in enumerate(zip(logits, deltas, strict=True))]
        most = max(boxes.shape[1] for boxes, _ in found)
        boxes = [ops.pad(boxes, [[0, 0], [0, most - boxes.shape[1]], [0, 0]]) for boxes, _ in found]
        scores = [ops.pad(scores, [[0, 0], [0, most - scores.shape[1]]]) for _, scores in found]
        # maps do not compete with each other, so each is an image of its own here
        boxes = ops.reshape(ops.stack(boxes, axis=1), (-1, most, 4))
        scores = ops.reshape(ops.stack(scores, axis=1), (-1, most, 1))
        suppress = NonMaxSuppression(count, self.overlap, 0.0, candidates, dtype="float32", name="suppression")
        boxes, scores, _, _ = suppress(boxes, scores)
        scores, places = ops.top_k(ops.reshape(scores, (-1, len(logits) * count)), count)
        boxes = ops.reshape(boxes, (-1, len(logits) * count, 4))
        return ops.take_along_axis(boxes, places[..., None], axis=1), scores > 0

    def best_of(self, level, logits, deltas, candidates):
        """Boxes (batch, candidates, 4) of one map and their scores (batch, candidates), 0 for boxes without area."""
        height, width, each = logits.shape[1:]
        count = height * width * each
        logits = ops.reshape(ops.stop_gradient(logits), (-1, count))
        deltas = ops.reshape(ops.stop_gradient(deltas), (-1, count, 4))
        best, places = ops.top_k(logits, min(candidates, count))
        anchors = ops.take(self.anchors(level, height, width), places, axis=0)
        boxes = inside(moved(anchors, ops.take_along_axis(deltas, places[..., None], axis=1)), *self.image)
        return boxes, ops.where(at_least(boxes, self.SMALLEST), ops.sigmoid(best), 0.0)

    def compute_output_spec(self, logits, deltas, training=False):
        shape = (logits[0].shape[0], self.count)
        return keras.KerasTensor((*shape, 4), "float32"), keras.KerasTensor(shape, "bool")

    def get_config(self):
        names = ("image", "sizes", "ratios", "count", "candidates", "overlap")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable("zoo")
class PyramidAlign(layers.Layer):
    """Features under boxes, each cut out of the map of a pyramid that fits its size.

    Call it with features [(batch, height, width, channels), ...], finest first, and boxes (batch, boxes, 4); it gives
    (batch, boxes, size, size, channels). A box of 224 pixels a side belongs to the map of a sixteenth, one of half that
    side to the next finer map. Boxes are not shifted by half a pixel, and are at least a pixel of the map wide and high.

    Source: Lin et al. 2017 (arXiv:1612.03144), equation 1; He et al. 2017 (arXiv:1703.06870), section 3.

    Args:
        scales: pixels of each map per pixel of the image, powers of 1/2.
        size: height and width of what is cut out.
        samples: points a side in each cell, which are averaged.
    """

    USUAL, LEVEL = 224, 4  # a box of so many pixels belongs to the map of 1 / 2 ** LEVEL

    def __init__(self, scales: tuple[float, ...], size: int = 7, samples: int = 2, **kwargs) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})  # half precision would round pixels
        self.scales, self.size, self.samples = tuple(scales), size, samples

    def levels(self, boxes):
        """Which map each box belongs to: int32 (batch, boxes)."""
        sides = ops.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
        side = ops.maximum(ops.sqrt(sides[..., 0] * sides[..., 1]), 1e-6)
        level = ops.floor(self.LEVEL + ops.log2(side / self.USUAL) + 1e-6)
        finest, coarsest = (int(-math.log2(self.scales[place])) for place in (0, -1))
        return ops.cast(ops.clip(level, finest, coarsest) - finest, "int32")

    def call(self, features, boxes):
        channels, levels = features[0].shape[-1], self.levels(boxes)
        sides = [(int(x.shape[1]), int(x.shape[2])) for x in features]
        starts = [sum(height * width for height, width in sides[:level]) for level in range(len(sides))]
        facts = [[*side, start, scale] for side, start, scale in zip(sides, starts, self.scales, strict=True)]
        facts = ops.take(ops.convert_to_tensor(facts, "float32"), levels, axis=0)[..., None]  # (batch, boxes, 4, 1)
        height, width, start, scale = (facts[:, :, place] for place in range(4))
        columns, column_weights = neighbours(self.points(boxes, 0, scale), width)
        rows, row_weights = neighbours(self.points(boxes, 1, scale), height)

        pixels = [ops.reshape(x, (-1, x.shape[1] * x.shape[2], channels)) for x in features]
        pixels = ops.concatenate(pixels, axis=1)
        images = ops.arange(ops.shape(pixels)[0]) * pixels.shape[1]
        start = (ops.cast(start, "int32") + ops.reshape(images, (-1, 1, 1)))[..., None]
        width = ops.cast(width, "int32")[..., None]
        pixels = ops.reshape(pixels, (-1, channels))
        total = between(pixels, start, width, (rows, row_weights), (columns, column_weights))
        return ops.reshape(
            averaged(total, self.size, self.samples), (-1, boxes.shape[1], self.size, self.size, channels)
        )

    def points(self, boxes, axis, scale):
        """Sampling points along one axis, in pixels of the map: (batch, boxes, size * samples)."""
        start, end = boxes[..., axis, None] * scale, boxes[..., axis + 2, None] * scale
        count = self.size * self.samples
        steps = (ops.arange(count, dtype="float32") + 0.5) / count
        return start + ops.maximum(end - start, 1.0) * steps

    def compute_output_shape(self, features_shape, boxes_shape):
        return (boxes_shape[0], boxes_shape[1], self.size, self.size, features_shape[0][-1])

    def get_config(self):
        return {**super().get_config(), "scales": self.scales, "size": self.size, "samples": self.samples}


@keras.saving.register_keras_serializable("zoo")
class RankBoxes(layers.Layer):
    """The likeliest pairs of a proposal and a class, each with the box that this class has there.

    Call it with logits (batch, proposals, 1 + classes), the first being nothing at all, deltas (batch, proposals,
    4 * (1 + classes)), proposals (batch, proposals, 4) and which of them are proposals at all. It gives (batch,
    candidates, 5 + classes), best first: left, top, right, bottom in pixels, the logit of there being a pair, and the
    logit of each class, which is very low for all but the pair's own.

    Source: Girshick 2015 (arXiv:1504.08083), sections 2.1 and 2.3.

    Args:
        image: height and width of the image in pixels.
        candidates: pairs for an image.
    """

    SMALLEST = 1e-2  # pixels a side
    WEIGHTS = (10.0, 5.0)  # of shifts and growths: deltas are trained at this scale

    def __init__(self, image: tuple[int, int], candidates: int = 1000, **kwargs) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})  # half precision would round pixels
        self.image, self.candidates = tuple(image), candidates

    def call(self, logits, deltas, proposals, valid):
        rows, classes = logits.shape[1], logits.shape[2] - 1
        count = min(self.candidates, rows * classes)
        shares = ops.softmax(logits)[..., 1:]
        deltas = ops.reshape(deltas, (-1, rows, classes + 1, 4))[:, :, 1:]
        boxes = inside(moved(proposals[:, :, None], deltas, self.WEIGHTS), *self.image)
        fits = ops.logical_and(at_least(boxes, self.SMALLEST), valid[..., None])
        shares = ops.reshape(ops.where(fits, shares, 0.0), (-1, rows * classes))
        best, places = ops.top_k(shares, count)
        boxes = ops.take_along_axis(ops.reshape(boxes, (-1, rows * classes, 4)), places[..., None], axis=1)
        known = best > 0
        share = ops.clip(best, 1e-12, 1 - 1e-7)
        own = ops.one_hot(places % classes, classes, dtype="bool")
        of_class = ops.where(own, (ops.log(share) - ops.log1p(-share))[..., None], -SURE)
        there = ops.where(known, SURE, -SURE)[..., None]
        return ops.concatenate([ops.where(known[..., None], boxes, 0.0), there, of_class], axis=-1)

    def compute_output_shape(self, logits_shape, deltas_shape, proposals_shape, valid_shape):
        classes = logits_shape[2] - 1
        return (logits_shape[0], min(self.candidates, logits_shape[1] * classes), 5 + classes)

    def get_config(self):
        return {**super().get_config(), "image": self.image, "candidates": self.candidates}
