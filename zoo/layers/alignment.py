"""Attention of recurrent translators: which steps of a text an answer's next token is about."""

import keras
from keras import KerasTensor, layers, ops

from zoo.layers.attention import AWAY

SCORES = ("dot", "concat")


@keras.saving.register_keras_serializable("zoo")
class Alignment(layers.Layer):
    """Values weighted by how well their keys fit: (batch, queries, units) -> (batch, queries, width of the values).

    Dense layers in front make keys from values, and queries: with the score "dot" that is the paper's "dot", and with a dense
    layer for the keys its "general". "concat" sums query and key, each of which has had its half of the paper's matrix; its
    weight `direction` (units,) makes the score of their tanh. It is additive attention.

    With a window a query sees only keys around a place. Where no place is told, that is its own (the paper's "local-m"), at
    most the last key that exists; else a share of the row's length, whose window is a bell besides ("local-p").

    Args:
        score: "dot" or "concat".
        window: how many places away from its own, or the told one, a key may be; 0 for any.

    Raises:
        ValueError: an argument is out of range.

    Source: Luong, Pham & Manning 2015 (arXiv:1508.04025), sections 3.1 and 3.2, equations 7 to 10; Bahdanau, Cho & Bengio 2014
    (arXiv:1409.0473), section A.1.2.
    """

    def __init__(self, score: str = "dot", window: int = 0, **kwargs) -> None:
        super().__init__(**kwargs)
        if score not in SCORES or window < 0:
            raise ValueError(
                f"score must be one of {', '.join(map(repr, SCORES))} and window at least 0, got score={score!r}, "
                f"window={window!r}"
            )
        self.score, self.window = score, window
        self.supports_masking = True

    def build(self, query_shape, key_shape, *_):
        if query_shape[-1] != key_shape[-1]:
            raise ValueError(
                f"queries and keys must have as many units, got {query_shape[-1]} and {key_shape[-1]}; put a dense layer "
                "in front of the keys"
            )
        if self.score == "concat":
            start = keras.initializers.RandomNormal(stddev=query_shape[-1] ** -0.5)
            self.direction = self.add_weight(shape=query_shape[-1:], initializer=start, name="direction")

    def call(self, query, key, value, present=None, place=None, start=0, return_attention_scores=False):
        """What the queries find.

        Args:
            query: (batch, queries, units).
            key: (batch, keys, units).
            value: (batch, keys, width).
            present: (batch, keys) bool, which keys exist; None for all. A query that may see none gets the mean of all.
            place: (batch, queries, 1), around which share of the keys that exist a query looks; None for its own place.
            start: own place of the first query, a whole number or a tensor, (batch, 1) where rows differ.
            return_attention_scores: whether the weights (batch, 1, queries, keys) are wanted, too.
        """
        if self.score == "concat":
            both = ops.expand_dims(query, 2) + ops.expand_dims(key, 1)  # (batch, queries, keys, units)
            scores = ops.sum(ops.tanh(both) * self.direction, axis=-1)
        else:
            scores = ops.einsum("bqd,bkd->bqk", query, key)
        if present is None:
            present = ops.ones_like(key[..., 0], dtype="bool")
        seen = ops.expand_dims(present, 1)  # (batch, 1, keys)
        if self.window:
            away = self._away(ops.shape(query)[1], present, place, start, scores.dtype)
            seen = ops.logical_and(seen, ops.abs(away) <= self.window)
        weights = ops.softmax(ops.where(seen, scores, ops.cast(AWAY, scores.dtype)), axis=-1)
        if self.window and place is not None:
            weights = weights * ops.exp(-2 * ops.square(away / self.window))  # equation 10, deviation window / 2
        found = ops.matmul(weights, value)
        return (found, ops.expand_dims(weights, 1)) if return_attention_scores else found

    def _away(self, queries, present, place, start, dtype):
        """How far each key is from where each query looks, (batch, queries, keys), in places."""
        count = ops.sum(ops.cast(present, dtype), axis=-1, keepdims=True)  # (batch, 1)
        if place is None:
            own = ops.cast(ops.arange(queries) + start, dtype)  # (queries,) or (batch, queries)
            centre = ops.expand_dims(ops.minimum(own, ops.maximum(count - 1, 0)), -1)
        else:
            centre = place * ops.expand_dims(count, -1)
        return ops.cast(ops.arange(ops.shape(present)[1]), dtype) - centre

    def compute_mask(self, *_, **__):
        return None

    def compute_output_spec(self, query, key, value, present=None, place=None, start=0, return_attention_scores=False):
        found = KerasTensor((*query.shape[:2], value.shape[-1]), self.compute_dtype)
        weights = KerasTensor((query.shape[0], 1, query.shape[1], key.shape[1]), self.compute_dtype)
        return (found, weights) if return_attention_scores else found

    def get_config(self):
        return {**super().get_config(), "score": self.score, "window": self.window}
