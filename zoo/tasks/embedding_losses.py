"""How embeddings are learnt: from the angle to a centre of each identity, or from triplets of rows.

Losses take the index of each row's identity, `(batch, 1)`, and work on every backend.
"""

import math

import keras
from keras import layers, losses, ops

BINS = 400  # of similarities, over -1 … 1, in the metric followed while training
_EDGE = 1e-6  # cosines nearer to 1 have no angle in float32
_FAR = 8.0  # a squared distance beyond any of two embeddings


@keras.saving.register_keras_serializable("zoo")
class ClassCentres(layers.Layer):
    """Cosines of embeddings with a trained centre of each identity: `(batch, length) -> (batch, identities)`.

    Args:
        identities: how many to learn.
    """

    def __init__(self, identities, **kwargs):
        super().__init__(**kwargs)
        self.identities = identities

    def build(self, shape):
        self.centres = self.add_weight((self.identities, shape[-1]), "random_normal", name="centres")

    def call(self, embeddings):
        return ops.matmul(ops.normalize(embeddings, axis=-1), ops.transpose(ops.normalize(self.centres, axis=-1)))

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.identities)

    def get_config(self):
        return {**super().get_config(), "identities": self.identities}


@keras.saving.register_keras_serializable("zoo")
class ArcFace(losses.Loss):
    """Cross-entropy over cosines with class centres, the angle to the true one made larger by a margin.

    Source: Deng et al. 2019 (arXiv:1801.07698), equation 3; where angle and margin together pass 180 degrees, the
    cosine falls on by `margin * sin(margin)`, as in the authors' code. For a row whose identity has no centre, as all
    those of other people, the loss is not defined: NaN.

    Args:
        margin: radians, in [0, pi).
        scale: of the logits, above 0.
    """

    def __init__(self, margin=0.5, scale=64.0, name="arcface", **kwargs):
        super().__init__(name=name, **kwargs)
        if not (0 <= margin < math.pi and scale > 0):
            raise ValueError(f"margin must lie in [0, pi) and scale above 0, got margin={margin}, scale={scale}")
        self.margin, self.scale = margin, scale

    def call(self, y_true, y_pred):
        index = ops.cast(ops.reshape(y_true, (-1, 1)), "int32")
        true = ops.cast(ops.equal(index, ops.arange(y_pred.shape[-1], dtype="int32")), y_pred.dtype)
        logits = self.scale * ops.where(true > 0, with_margin(y_pred, self.margin), y_pred)
        found = ops.sum(true * (ops.logsumexp(logits, axis=-1, keepdims=True) - logits), axis=-1)
        return ops.where(ops.sum(true, axis=-1) > 0, found, float("nan"))

    def get_config(self):
        return {**super().get_config(), "margin": self.margin, "scale": self.scale}


def with_margin(cosines, margin):
    """Cosine of each angle enlarged by `margin` radians."""
    inside = ops.clip(cosines, -1 + _EDGE, 1 - _EDGE)
    turned = inside * math.cos(margin) - ops.sqrt(1 - ops.square(inside)) * math.sin(margin)
    return ops.where(inside > -math.cos(margin), turned, inside - margin * math.sin(margin))


@keras.saving.register_keras_serializable("zoo")
class Triplet(losses.Loss):
    """How much farther an anchor is from its own identity than from others, beyond a margin, in squared distances.

    "hard" takes, of each anchor, the farthest row of its identity and the nearest of another (Hermans, Beyer & Leibe,
    "In Defense of the Triplet Loss for Person Re-Identification", 2017, arXiv:1703.07737, section 2). "semi_hard"
    takes, for every pair of one identity, the nearest row of another that is farther than the pair is wide, or the
    farthest there is if none is (Schroff et al. 2015, section 3.2), and means over an anchor's pairs. Anchors without a
    row of their identity, or of another, in the batch count 0.

    Args:
        margin: of squared distances, which lie in 0 … 4.
        mining: "hard" or "semi_hard".
    """

    def __init__(self, margin=0.2, mining="hard", name="triplet", **kwargs):
        super().__init__(name=name, **kwargs)
        if mining not in ("hard", "semi_hard"):
            raise ValueError(f"mining must be 'hard' or 'semi_hard', got {mining!r}")
        self.margin, self.mining = margin, mining

    def call(self, y_true, y_pred):
        distances = squared_distances(y_pred)  # (batch, batch)
        alike = ops.equal(ops.reshape(y_true, (-1, 1)), ops.reshape(y_true, (1, -1)))
        other = ops.cast(ops.logical_not(alike), distances.dtype)
        own = ops.cast(alike, distances.dtype) - ops.eye(ops.shape(distances)[0], dtype=distances.dtype)
        there = ops.max(own, axis=1) * ops.max(other, axis=1)
        if self.mining == "hard":
            farthest = ops.max(distances * own, axis=1)
            nearest = ops.min(distances * other + _FAR * (1 - other), axis=1)
            return there * ops.relu(farthest - nearest + self.margin)
        # (anchor, own, other)
        beyond = ops.cast(distances[:, None, :] > distances[:, :, None], distances.dtype) * other[:, None, :]
        nearest = ops.min(distances[:, None, :] * beyond + _FAR * (1 - beyond), axis=2)
        farthest = ops.max(distances * other, axis=1, keepdims=True)
        negative = ops.where(ops.max(beyond, axis=2) > 0, nearest, farthest)
        found = ops.sum(own * ops.relu(distances - negative + self.margin), axis=1)
        return there * found / ops.maximum(ops.sum(own, axis=1), 1.0)

    def get_config(self):
        return {**super().get_config(), "margin": self.margin, "mining": self.mining}


def squared_distances(embeddings):
    """Squared distance of each embedding, brought to length 1, from each: `(batch, length) -> (batch, batch)`."""
    unit = ops.normalize(embeddings, axis=-1)
    return ops.relu(2.0 - 2.0 * ops.matmul(unit, ops.transpose(unit)))


@keras.saving.register_keras_serializable("zoo")
class PairArea(keras.metrics.Metric):
    """How often two rows of one identity are more alike than two of different ones, among the rows of each batch.

    Outputs may be embeddings or cosines with class centres; either way rows of one identity should point alike.
    """

    def __init__(self, name="pair_auc", **kwargs):
        super().__init__(name=name, **kwargs)
        self.counts = self.add_variable((2 * BINS,), "zeros", name="counts")  # pairs of two identities, then of one

    def update_state(self, y_true, y_pred, sample_weight=None):
        unit = ops.normalize(ops.cast(y_pred, "float32"), axis=-1)
        similarity = ops.matmul(unit, ops.transpose(unit))
        place = ops.cast(ops.clip((similarity + 1) * (BINS / 2), 0, BINS - 1), "int32")
        same = ops.equal(ops.reshape(y_true, (-1, 1)), ops.reshape(y_true, (1, -1)))
        place = place + BINS * ops.cast(same, "int32")
        once = 1 - ops.eye(ops.shape(similarity)[0], dtype="float32")  # a row with itself is no pair
        found = ops.segment_sum(ops.reshape(once, (-1,)), ops.reshape(place, (-1,)), num_segments=2 * BINS)
        self.counts.assign(self.counts + ops.cast(found, self.counts.dtype))

    def result(self):
        different, same = self.counts[:BINS], self.counts[BINS:]
        different, same = (part / ops.maximum(ops.sum(part), 1.0) for part in (different, same))
        return ops.sum(same * (ops.cumsum(different) - different / 2))
