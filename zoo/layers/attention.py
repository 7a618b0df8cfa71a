"""Attention between dense layers: who looks at whom, by heads. Queries, keys and values come from layers in front of it."""

import math

import keras
from keras import KerasTensor, layers, ops


@keras.saving.register_keras_serializable("zoo")
class Attention(layers.Layer):
    """Values weighted by how well their keys fit, for each head: (batch, queries, width) in and out.

    It has no weights. Dense layers in front make queries, keys and values, and one behind mixes what the heads found, so
    that each of them is pruned, rounded and adapted as any dense layer is. Query and key from one sequence are
    self-attention, from two cross-attention. A cache is a concatenation: keys and values of earlier places in front of the
    new ones; the last query then stands where the last key stands.

    Args:
        heads: equal parts of the width, each of which looks for itself.
        causal: whether a query sees no key behind its own place.
        window: how many places away a key may be; 0 for any.
        scale: of the products; 0 for 1 / sqrt(width of a head). T5 has 1.
        dropout: share of the weights that are dropped in training, in [0, 1).

    Raises:
        ValueError: an argument is out of range, or the widths are not one multiple of `heads`.

    Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.2; windows as of Beltagy, Peters & Cohan 2020
    (arXiv:2004.05150), section 3.1.
    """

    def __init__(
        self,
        heads: int,
        causal: bool = False,
        window: int = 0,
        scale: float = 0.0,
        dropout: float = 0.0,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if heads < 1 or window < 0 or not 0 <= dropout < 1:
            raise ValueError(
                f"heads must be at least 1, window at least 0 and dropout a share in [0, 1), got heads={heads!r}, "
                f"window={window!r}, dropout={dropout!r}"
            )
        self.heads, self.causal, self.window, self.scale, self.dropout = heads, causal, window, scale, dropout
        self.seed = keras.random.SeedGenerator() if dropout else None

    def call(
        self, query, key, value, present=None, bias=None, training=False, return_attention_scores=False
    ):  # the last name is Keras', by which explanations ask
        """What the queries find.

        Args:
            query: (batch, queries, width).
            key: (batch, keys, width).
            value: (batch, keys, width).
            present: (batch, keys) bool, which keys exist; None for all. A query that may see none gets the mean of all.
            bias: added to the scores, (1 or batch, heads, queries, keys); None for none.
            training: whether weights are dropped.
            return_attention_scores: whether the weights (batch, heads, queries, keys) are wanted, too.
        """
        queries, keys = ops.shape(query)[1], ops.shape(key)[1]
        split = [self._split(x) for x in (query, key, value)]
        either = bias is not None and keras.backend.backend() == "torch"  # its fused attention takes a bias or a mask
        ahead = self.causal and not self.window and query.shape[1] == key.shape[1] is not None and not either
        mask = self._mask(queries, keys, present, ahead)
        scale = self.scale or 1 / math.sqrt(split[0].shape[-1])
        weights = None
        if return_attention_scores or (training and self.dropout):
            weights = self._weights(*split[:2], scale, bias, self._mask(queries, keys, present, False))
            used = weights
            if training and self.dropout:
                used = keras.random.dropout(weights, self.dropout, seed=self.seed)
            found = ops.einsum("bhqk,bkhd->bqhd", used, split[2])
        else:
            if either and mask is not None:
                bias, mask = ops.where(mask, bias, ops.cast(AWAY, bias.dtype)), None
            found = ops.dot_product_attention(*split, bias=bias, mask=mask, scale=scale, is_causal=ahead)
        found = ops.reshape(found, (-1, queries, query.shape[-1]))  # heads are one width again
        return (found, weights) if return_attention_scores else found

    def _split(self, x):
        """(batch, places, width) -> (batch, places, heads, width of a head)."""
        return ops.reshape(x, (-1, ops.shape(x)[1], self.heads, x.shape[-1] // self.heads))

    def _mask(self, queries, keys, present, ahead):
        """Which query may see which key, for (batch, heads, queries, keys); `ahead` says that the causal part is elsewhere."""
        mask = None if present is None else present[:, None, None, :]
        if (self.causal and not ahead) or self.window:
            own = ops.arange(queries)[:, None] + (keys - queries)
            back = own - ops.arange(keys)[None]  # (queries, keys), how many places before the query the key stands
            seen = back >= (0 if self.causal else -self.window)
            if self.window:
                seen = ops.logical_and(seen, back <= self.window)
            mask = seen[None, None] if mask is None else ops.logical_and(mask, seen[None, None])
        return mask

    def _weights(self, query, key, scale, bias, mask):
        scores = ops.einsum("bqhd,bkhd->bhqk", query, key) * scale
        if bias is not None:
            scores = scores + ops.cast(bias, scores.dtype)
        if mask is not None:
            scores = ops.where(mask, scores, ops.cast(AWAY, scores.dtype))
        return ops.softmax(scores, axis=-1)

    def compute_output_spec(
        self, query, key, value, present=None, bias=None, training=False, return_attention_scores=False
    ):
        widths = [x.shape[-1] for x in (query, key, value)]
        if len(set(widths)) > 1 or widths[0] % self.heads:
            raise ValueError(
                f"queries, keys and values must be of one width, a multiple of heads={self.heads}, got {widths}"
            )
        found = KerasTensor(query.shape, self.compute_dtype)
        scores = KerasTensor((query.shape[0], self.heads, query.shape[1], key.shape[1]), self.compute_dtype)
        return (found, scores) if return_attention_scores else found

    def get_config(self):
        own = {"heads": self.heads, "causal": self.causal, "window": self.window}
        return {**super().get_config(), **own, "scale": self.scale, "dropout": self.dropout}


AWAY = -3e4  # score of a key that is not seen: its weight is exactly 0, in half precision too
