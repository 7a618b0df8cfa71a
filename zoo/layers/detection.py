"""What detectors do besides convolution: choose among overlapping boxes, and cut features out under boxes.

Boxes are corners (left, top, right, bottom). Both layers have a node of their own in exported files.
"""

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable("zoo")
class NonMaxSuppression(layers.Layer):
    """Chooses the best boxes of each class, leaving out those that overlap a better one of their class.

    Call it with boxes (batch, anchors, 4) and scores (batch, anchors, classes). It gives, best score first,
    boxes (batch, count, 4), scores (batch, count), classes (batch, count) as int32, and which of them are boxes at all
    (batch, count) as bool; the rest is 0.

    Args:
        count: how many boxes it gives for an image, of all classes together.
        overlap: intersection over union, in [0, 1], above which the worse box of a class is left out.
        score: boxes with a score up to this are left out.
        candidates: how many anchors compete, those with the highest scores of any class.
    """

    def __init__(
        self, count: int = 100, overlap: float = 0.5, score: float = 0.05, candidates: int = 1000, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        if count < 1 or candidates < 1:
            raise ValueError(f"count and candidates must be at least 1, got count={count}, candidates={candidates}")
        if not 0 <= overlap <= 1 or score < 0:
            raise ValueError(f"overlap must be in [0, 1] and score at least 0, got overlap={overlap}, score={score}")
        self.count = count
        self.overlap = overlap
        self.score = score
        self.candidates = candidates

    def call(self, boxes, scores):
        boxes, scores = self.best_anchors(boxes, scores)
        return self.ranked(boxes, scores, self.kept(boxes, scores))

    def best_anchors(self, boxes, scores):
        """The anchors that compete: boxes (batch, candidates, 4), scores (batch, candidates, classes)."""
        anchors = boxes.shape[1]
        if anchors is None:
            raise ValueError("the number of anchors must be known when the model is built")
        if anchors <= self.candidates:
            return boxes, scores
        places = ops.top_k(ops.max(scores, axis=-1), self.candidates)[1][..., None]
        return ops.take_along_axis(boxes, places, axis=1), ops.take_along_axis(scores, places, axis=1)

    def kept(self, boxes, scores):
        """Which boxes stay in each class: bool (batch, classes, anchors)."""
        overlaps = intersection_over_union(boxes, boxes)  # (batch, anchors, anchors)
        anchors = ops.arange(boxes.shape[1])
        left = ops.transpose(scores, (0, 2, 1))
        left = ops.where(left > self.score, left, -1.0)

        def choose(_, state):
            left, kept = state
            best = ops.argmax(left, axis=-1)[..., None]  # (batch, classes, 1)
            chosen = ops.logical_and(ops.equal(best, anchors), ops.max(left, axis=-1, keepdims=True) >= 0)
            near = ops.take_along_axis(overlaps, ops.broadcast_to(best, ops.shape(left)), axis=1) > self.overlap
            left = ops.where(ops.logical_or(chosen, near), -1.0, left)
            return left, ops.logical_or(kept, chosen)

        rounds = min(self.count, boxes.shape[1])
        return ops.fori_loop(0, rounds, choose, (left, ops.zeros_like(left, dtype="bool")))[1]

    def ranked(self, boxes, scores, kept):
        """The best boxes that stay, of all classes together."""
        anchors, classes = boxes.shape[1], scores.shape[2]
        count = min(self.count, anchors * classes)
        left = ops.where(kept, ops.transpose(scores, (0, 2, 1)), -1.0)
        found, places = ops.top_k(ops.reshape(left, (-1, classes * anchors)), count)
        valid = found >= 0
        chosen = ops.take_along_axis(boxes, (places % anchors)[..., None], axis=1)
        zero = [[0, 0], [0, self.count - count]]
        return (
            ops.pad(ops.where(valid[..., None], chosen, 0.0), [*zero, [0, 0]]),
            ops.pad(ops.where(valid, found, 0.0), zero),
            ops.pad(ops.where(valid, ops.cast(places // anchors, "int32"), 0), zero),
            ops.cast(ops.pad(ops.cast(valid, "int32"), zero), "bool"),
        )

    def compute_output_spec(self, boxes, scores):
        shape = (boxes.shape[0], self.count)
        return (
            keras.KerasTensor((*shape, 4), boxes.dtype),
            keras.KerasTensor(shape, scores.dtype),
            keras.KerasTensor(shape, "int32"),
            keras.KerasTensor(shape, "bool"),
        )

    def get_config(self):
        facts = {"count": self.count, "overlap": self.overlap, "score": self.score, "candidates": self.candidates}
        return {**super().get_config(), **facts}


@keras.saving.register_keras_serializable("zoo")
class PlaceBoxes(layers.Layer):
    """What a detector says at each place of its maps, with boxes as corners in pixels.

    Call it with maps (batch, height, width, 5 + classes), finest first, each with the offset of a box's centre from the
    upper left of its place and the logarithm of its sides, all in units of the map's stride, then logits. It gives
    (batch, places, 5 + classes): left, top, right, bottom in pixels, and the logits as they are: of there being a
    thing, and of each class.

    Source: Ge et al. 2021, "YOLOX" (arXiv:2107.08430), section 2.1.

    Args:
        strides: pixels of the image per pixel of each map.
    """

    LONGEST = 8.0  # logarithm of a box's side in strides, above which it grows no further: the exponential stays finite

    def __init__(self, strides: tuple[int, ...] = (8, 16, 32), **kwargs) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})  # half precision would round pixels
        self.strides = tuple(strides)

    def build(self, shapes):
        if len(shapes) != len(self.strides):
            raise ValueError(f"there must be a map for each of the strides {self.strides}, got {len(shapes)}")
        self.sides = [tuple(shape[1:3]) for shape in shapes]

    def places(self):
        """Centre (x, y) in pixels and stride of each place: [[x, y, stride], …], in the order of the output."""
        return [
            [(column + 0.5) * stride, (row + 0.5) * stride, stride]
            for stride, (height, width) in zip(self.strides, self.sides, strict=True)
            for row in range(height)
            for column in range(width)
        ]

    def call(self, maps):
        flat = [ops.reshape(x, (-1, side[0] * side[1], x.shape[-1])) for x, side in zip(maps, self.sides, strict=True)]
        x = ops.concatenate(flat, axis=1)
        places = ops.convert_to_tensor(self.places(), "float32")  # (places, 3)
        stride = places[:, 2:]
        centre = x[..., :2] * stride + (places[:, :2] - 0.5 * stride)
        half = 0.5 * stride * ops.exp(ops.minimum(x[..., 2:4], self.LONGEST))
        return ops.concatenate([centre - half, centre + half, x[..., 4:]], axis=-1)

    def compute_output_shape(self, shapes):
        return (shapes[0][0], sum(shape[1] * shape[2] for shape in shapes), shapes[0][-1])

    def get_config(self):
        return {**super().get_config(), "strides": self.strides}


def intersection_over_union(first, second):
    """Overlap of each box with each: (batch, n, 4) and (batch, m, 4) -> (batch, n, m), in [0, 1]."""
    first, second = ops.expand_dims(first, 2), ops.expand_dims(second, 1)
    low = ops.maximum(first[..., :2], second[..., :2])
    high = ops.minimum(first[..., 2:], second[..., 2:])
    both = ops.prod(ops.maximum(high - low, 0.0), axis=-1)
    areas = [ops.prod(ops.maximum(box[..., 2:] - box[..., :2], 0.0), axis=-1) for box in (first, second)]
    return ops.divide_no_nan(both, areas[0] + areas[1] - both)


def neighbours(points, size):
    """The two pixels around each point along an axis of `size` pixels, and their weights.

    The weights are 0 for points more than a pixel outside; `size` may differ from box to box.
    """
    limit = ops.cast(size, points.dtype)
    near = ops.cast(ops.logical_and(points >= -1.0, points <= limit), points.dtype)
    points = ops.minimum(ops.maximum(points, 0.0), limit - 1.0)
    low = ops.floor(points)
    high = ops.minimum(low + 1.0, limit - 1.0)
    share = points - low
    return [ops.cast(low, "int32"), ops.cast(high, "int32")], [(1.0 - share) * near, share * near]


def between(pixels, start, width, rows, columns):
    """Values between pixels, bilinearly.

    Args:
        pixels: of all maps in one list, (pixels, channels).
        start: place of each map's first pixel in it.
        width: pixels of a line of the map.
        rows, columns: places of the neighbours along either axis and their weights, as `neighbours` gives them.
    """
    total = 0.0
    for row, row_weight in zip(*rows, strict=True):
        for column, column_weight in zip(*columns, strict=True):
            places = start + row[..., :, None] * width + column[..., None, :]
            weights = row_weight[..., :, None] * column_weight[..., None, :]
            total = total + ops.take(pixels, places, axis=0) * weights[..., None]
    return total


def averaged(points, size, samples):
    """Mean of the points of each cell: (batch, boxes, size * samples, size * samples, channels) -> (all boxes, size, size, ...).

    By pooling, since devices take no mean of more than six axes.
    """
    cells = ops.reshape(points, (-1, size * samples, size * samples, points.shape[-1]))
    return ops.average_pool(cells, samples, strides=samples)


@keras.saving.register_keras_serializable("zoo")
class RoIAlign(layers.Layer):
    """Features under boxes, sampled between the pixels.

    Call it with features (batch, height, width, channels) and boxes (batch, boxes, 4) in pixels of the image; it gives
    (batch, boxes, size, size, channels).

    Source: He et al. 2017, "Mask R-CNN", section 3, with the half-pixel shift of its later implementations.

    Args:
        size: height and width of what is cut out.
        scale: pixels of the features per pixel of the image, such as 1 / 16.
        samples: points a side in each cell, which are averaged.
    """

    def __init__(self, size: int = 7, scale: float = 1.0, samples: int = 2, **kwargs) -> None:
        super().__init__(**kwargs)
        if size < 1 or samples < 1 or scale <= 0:
            raise ValueError(
                "size and samples must be at least 1 and scale above 0, "
                f"got size={size}, samples={samples}, scale={scale}"
            )
        self.size = size
        self.scale = scale
        self.samples = samples

    def call(self, features, boxes):
        batch, height, width, channels = ops.shape(features)
        x, y = self.points(boxes, 0), self.points(boxes, 1)  # (batch, boxes, size * samples)
        rows, row_weights = neighbours(y, height)
        columns, column_weights = neighbours(x, width)
        pixels = ops.reshape(features, (-1, channels))
        start = ops.reshape(ops.arange(batch) * (height * width), (-1, 1, 1, 1))
        total = between(pixels, start, width, (rows, row_weights), (columns, column_weights))
        return ops.reshape(averaged(total, self.size, self.samples), (batch, -1, self.size, self.size, channels))

    def points(self, boxes, axis):
        """Sampling points along one axis, in pixels of the features: (batch, boxes, size * samples)."""
        start = boxes[..., axis] * self.scale - 0.5
        length = (boxes[..., axis + 2] - boxes[..., axis]) * self.scale
        count = self.size * self.samples
        steps = (ops.arange(count, dtype="float32") + 0.5) / count
        return start[..., None] + length[..., None] * steps

    def compute_output_shape(self, features_shape, boxes_shape):
        return (features_shape[0], boxes_shape[1], self.size, self.size, features_shape[-1])

    def get_config(self):
        return {**super().get_config(), "size": self.size, "scale": self.scale, "samples": self.samples}
