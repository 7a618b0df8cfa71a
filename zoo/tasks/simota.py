"""The loss of detectors that answer at places: SimOTA decides which places answer for which thing.

Ge et al., "YOLOX" (arXiv:2107.08430), section 2.1, after Ge et al., "OTA: Optimal Transport Assignment for Object
Detection" (arXiv:2103.14259). Everything has a fixed shape, so it compiles.
"""

import keras
from keras import losses, ops

from zoo.layers.detection import intersection_over_union

EPSILON = 1e-7
FAR = 1e5  # added to the cost of a place outside a thing's box or not near its centre: taken only if there is no other
NEVER = 1e9
MOST = 10  # places whose overlaps are summed to say how many places a thing gets


@keras.saving.register_keras_serializable("zoo")
class SimOTA(losses.Loss):
    """Overlap, objectness and class of the places that are assigned to things, over their number.

    Called on targets (batch, most, 5), each left, top, right, bottom in pixels and a class, -1 for no thing; and on
    outputs (batch, places, 5 + classes) as `zoo.layers.detection.PlaceBoxes` gives them.

    Args:
        places: centre (x, y) in pixels and stride of each place, (places, 3).
        radius: strides from a thing's centre, along each axis, within which places are near it.
        overlap: weight of the overlap's part.
        l1: weight of the absolute error of centre and log sides in strides; YOLOX gives it 1 in its last epochs.
    """

    def __init__(self, places, radius: float = 2.5, overlap: float = 5.0, l1: float = 0.0, name="simota", **kwargs):
        super().__init__(name=name, **kwargs)
        self.places = [list(map(float, place)) for place in places]
        self.radius = radius
        self.overlap = overlap
        self.l1 = l1

    def call(self, y_true, y_pred):
        y_true, y_pred = ops.cast(y_true, "float32"), ops.cast(y_pred, "float32")
        things, real = y_true[..., :4], y_true[..., 4] >= 0
        kinds = ops.one_hot(ops.cast(ops.maximum(y_true[..., 4], 0.0), "int32"), y_pred.shape[-1] - 5)
        chosen, overlaps = self.assign(things, real, kinds, ops.stop_gradient(y_pred))
        taken = ops.max(chosen, axis=1)  # (batch, places)
        goal = ops.einsum("bmp,bmc->bpc", chosen, things)
        share = ops.sum(chosen * overlaps, axis=1)[..., None]
        wanted = ops.einsum("bmp,bmc->bpc", chosen, kinds) * share

        found = _pairwise(y_pred[..., :4], goal)
        lost = self.overlap * (1.0 - found**2) + ops.sum(_cross_entropy(wanted, y_pred[..., 5:]), axis=-1)
        if self.l1:
            gaps = ops.abs(self.relative(y_pred[..., :4]) - self.relative(goal, taken))
            lost = lost + self.l1 * ops.sum(gaps, axis=-1)
        total = ops.sum(taken * lost + _cross_entropy(taken, y_pred[..., 4]), axis=-1)  # (batch,)
        # over the places taken in the whole batch, as the mean over images divides by their number again
        rows = ops.cast(ops.shape(y_true)[0], "float32")
        return total * rows / ops.maximum(ops.sum(taken), 1.0)

    def assign(self, things, real, kinds, outputs):
        """Which places answer for which thing.

        Args:
            things: corners (batch, most, 4).
            real: which of them there are, bool (batch, most).
            kinds: their classes, one-hot (batch, most, classes).
            outputs: of the network, (batch, places, 5 + classes).

        Returns:
            0 or 1 for each pair (batch, most, places), at most one thing for a place; and the overlap of each pair.
        """
        places = ops.convert_to_tensor(self.places, "float32")
        x, y, reach = places[:, 0], places[:, 1], self.radius * places[:, 2]
        left, top, right, bottom = (things[..., side, None] for side in range(4))  # (batch, most, 1)
        inside = _all(x > left, x < right, y > top, y < bottom)  # (batch, most, places)
        across, down = ops.abs(x - (left + right) / 2), ops.abs(y - (top + bottom) / 2)
        near = _all(across < reach, down < reach)
        real = real[..., None]
        candidates = ops.any(_all(ops.logical_or(inside, near), real), axis=1, keepdims=True)
        pairs = ops.logical_and(candidates, real)

        overlaps = ops.where(pairs, intersection_over_union(things, outputs[..., :4]), 0.0)
        sure = ops.sqrt(ops.sigmoid(outputs[..., 4:5]) * ops.sigmoid(outputs[..., 5:]))
        sure = ops.clip(sure, EPSILON, 1 - EPSILON)  # (batch, places, classes)
        gain = ops.einsum("bmc,bpc->bmp", kinds, ops.log(1 - sure) - ops.log(sure))
        cost = gain - ops.sum(ops.log(1 - sure), axis=-1)[:, None] - 3.0 * ops.log(overlaps + 1e-8)
        cost = ops.where(ops.logical_and(inside, near), cost, cost + FAR)
        cost = ops.where(pairs, cost, NEVER)

        most = min(MOST, len(self.places))
        counts = ops.floor(ops.sum(ops.top_k(overlaps, most)[0], axis=-1, keepdims=True))
        counts = ops.maximum(counts, 1.0)  # (batch, most, 1)
        cheapest = ops.top_k(-cost, most)[1]
        number = ops.arange(len(self.places))
        chosen = ops.zeros_like(pairs)
        for rank in range(most):
            here = ops.equal(number, ops.cast(cheapest[..., rank, None], number.dtype))
            chosen = ops.logical_or(chosen, ops.logical_and(here, counts > rank))
        chosen = ops.cast(ops.logical_and(chosen, pairs), "float32")
        # a place that several things chose stays with the one that it costs least
        contested = ops.sum(chosen, axis=1, keepdims=True) > 1
        best = ops.one_hot(ops.argmin(cost, axis=1), cost.shape[1], axis=1)
        return ops.where(contested, best, chosen), overlaps

    def relative(self, boxes, real=None):
        """Centre less the place's corner, and logarithm of the sides, in strides: (batch, places, 4)."""
        places = ops.convert_to_tensor(self.places, "float32")
        stride = places[:, 2:]
        sides = (boxes[..., 2:] - boxes[..., :2]) / stride
        if real is not None:  # no box at all has no logarithm
            sides = ops.where(real[..., None] > 0, sides, 1.0)
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2
        return ops.concatenate([(centre - places[:, :2]) / stride + 0.5, ops.log(sides + 1e-8)], axis=-1)

    def get_config(self):
        facts = {"places": self.places, "radius": self.radius, "overlap": self.overlap, "l1": self.l1}
        return {**super().get_config(), **facts}


def _all(*conditions):
    found = conditions[0]
    for condition in conditions[1:]:
        found = ops.logical_and(found, condition)
    return found


def _pairwise(first, second):
    """Intersection over union of each box with the one at its place: (batch, places)."""
    low = ops.maximum(first[..., :2], second[..., :2])
    high = ops.minimum(first[..., 2:], second[..., 2:])
    both = ops.prod(ops.maximum(high - low, 0.0), axis=-1)
    areas = [ops.prod(box[..., 2:] - box[..., :2], axis=-1) for box in (first, second)]
    return both / (areas[0] + areas[1] - both + 1e-16)


def _cross_entropy(wanted, logits):
    """Binary cross-entropy on logits, which stays finite."""
    return ops.maximum(logits, 0.0) - logits * wanted + ops.softplus(-ops.abs(logits))
