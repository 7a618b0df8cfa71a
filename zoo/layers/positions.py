"""Where a token stands, told to a transformer: added to its vector, turned into its queries and keys, or added to scores.

`start` is the place of the first token that a call sees, a whole number or a tensor, (batch, 1) where rows differ: behind a
cache it is how many the cache holds.
"""

import math

import keras
from keras import KerasTensor, layers, ops


@keras.saving.register_keras_serializable("zoo")
class LearnedPositions(layers.Layer):
    """Adds a learned vector to each place: (batch, places, width) in and out.

    Its weight `table` (length, width) starts normal with standard deviation 0.02, as in BERT and GPT-2.

    Args:
        length: most places.

    Raises:
        ValueError: there are more places.
    """

    def __init__(self, length: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.length = length

    def build(self, shape):
        if shape[1] is not None and shape[1] > self.length:
            raise ValueError(
                f"{self.name!r} has {self.length} positions, got {shape[1]} tokens; cut the text, or pass a larger length"
            )
        start = keras.initializers.RandomNormal(stddev=0.02)
        self.table = self.add_weight(shape=(self.length, shape[-1]), initializer=start, name="table")

    def call(self, x, start=0):
        if isinstance(start, int) and not start and x.shape[1] == self.length:
            return x + self.table
        return x + ops.take(self.table, ops.arange(ops.shape(x)[1]) + start, axis=0)

    def compute_output_spec(self, x, start=0):
        return KerasTensor(x.shape, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "length": self.length}


@keras.saving.register_keras_serializable("zoo")
class WavePositions(layers.Layer):
    """Adds sines and cosines of a place to its vector: (batch, places, width) in and out.

    Value 2i of place p is sin(p / 10000^(2i / width)), value 2i + 1 the cosine of the same.

    Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.5.
    """

    def call(self, x, start=0):
        width = x.shape[-1]
        rates = [10000 ** (-2 * pair / width) for pair in range((width + 1) // 2)]
        angles = _angles(ops.shape(x)[1], start, rates)  # (places, pairs)
        waves = ops.stack([ops.sin(angles), ops.cos(angles)], axis=-1)  # (places, pairs, 2)
        waves = ops.reshape(waves, (-1, ops.shape(x)[1], 2 * len(rates)))[..., :width]  # (1 or batch, places, width)
        return x + ops.cast(waves, x.dtype)

    def compute_output_spec(self, x, start=0):
        return KerasTensor(x.shape, self.compute_dtype)


@keras.saving.register_keras_serializable("zoo")
class Rotary(layers.Layer):
    """Turns pairs of values in each head by an angle that grows with the place: (batch, places, width) in and out.

    It belongs on queries and on keys; their products then depend on how far apart they are, and on nothing else.

    Args:
        heads: equal parts of the width.
        base: pair i of d values turns by base^(-2i / d) radians from one place to the next.
        share: part of each head's values that is turned, from its first on, in (0, 1]; GPT-NeoX has 1/4.
        pairs: "halves" pairs value i with value i + d/2, as GPT-NeoX and Llama do; "neighbours" pairs 2i with 2i + 1, as the
            paper and GPT-J do.

    Raises:
        ValueError: an argument is out of range, or an odd number of values is to be paired.

    Source: Su, Lu, Pan, Wen & Liu, "RoFormer" 2021 (arXiv:2104.09864), section 3.4.2.
    """

    def __init__(self, heads: int, base: float = 10000.0, share: float = 1.0, pairs: str = "halves", **kwargs) -> None:
        super().__init__(**kwargs)
        if pairs not in ("halves", "neighbours") or not 0 < share <= 1:
            raise ValueError(
                f"pairs must be 'halves' or 'neighbours' and share in (0, 1], got pairs={pairs!r}, share={share!r}"
            )
        self.heads, self.base, self.share, self.pairs = heads, base, share, pairs

    def build(self, shape):
        turned = int(shape[-1] // self.heads * self.share)
        if shape[-1] % self.heads or turned % 2 or not turned:
            raise ValueError(
                f"a head must have an even number of values to turn, got width {shape[-1]}, heads={self.heads}, "
                f"share={self.share}"
            )
        self.rates = [self.base ** (-2 * pair / turned) for pair in range(turned // 2)]

    def call(self, x, start=0):
        angles = _angles(ops.shape(x)[1], start, self.rates)[..., None, :]  # (places, 1, pairs), for all heads
        sine, cosine = ops.cast(ops.sin(angles), x.dtype), ops.cast(ops.cos(angles), x.dtype)
        own, width = len(self.rates), x.shape[-1]
        split = ops.reshape(x, (-1, ops.shape(x)[1], self.heads, width // self.heads))
        turned, rest = split[..., : 2 * own], split[..., 2 * own :]
        if self.pairs == "halves":
            one, other = turned[..., :own], turned[..., own:]
            made = ops.concatenate([one * cosine - other * sine, other * cosine + one * sine], axis=-1)
        else:
            one, other = turned[..., ::2], turned[..., 1::2]
            made = ops.stack([one * cosine - other * sine, other * cosine + one * sine], axis=-1)
            made = ops.reshape(made, (-1, ops.shape(x)[1], self.heads, 2 * own))
        if rest.shape[-1]:
            made = ops.concatenate([made, rest], axis=-1)
        return ops.reshape(made, (-1, ops.shape(x)[1], width))

    def compute_output_spec(self, x, start=0):
        return KerasTensor(x.shape, self.compute_dtype)

    def get_config(self):
        own = {"heads": self.heads, "base": self.base, "share": self.share, "pairs": self.pairs}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("zoo")
class RelativeBias(layers.Layer):
    """A learned number for each head and distance, to be added to scores: queries and keys -> (1, heads, queries, keys).

    Distances are put into buckets: near ones have one each, farther ones share one the more of them the farther they are.
    The last query stands where the last key stands. Its weight is `table` (buckets, heads).

    Args:
        heads: of the attention.
        buckets: how many; half of them are for keys behind the query, unless it is causal.
        distance: from which on all places are in one bucket.
        causal: whether keys behind the query, which are then not seen, need no buckets.

    Raises:
        ValueError: there are no far buckets.

    Source: Raffel et al. 2019, "T5" (arXiv:1910.10683), section 2.1; the buckets are those of Hugging Face's
    T5Attention, to the last one.
    """

    def __init__(self, heads: int, buckets: int = 32, distance: int = 128, causal: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        self.heads, self.buckets, self.distance, self.causal = heads, buckets, distance, causal
        own = buckets if causal else buckets // 2
        near = own // 2
        if near < 1 or distance <= near:
            raise ValueError(
                f"buckets must be at least {2 if causal else 4} and distance above {near}, which have a bucket each, got "
                f"buckets={buckets!r}, distance={distance!r}"
            )

        def bucket(far):
            if far < near:
                return far
            # 1e-9: powers of two lie on the border, where a rounding would move them down
            return min(own - 1, near + int(math.log(far / near) / math.log(distance / near) * (own - near) + 1e-9))

        self._of = [bucket(far) for far in range(distance + 1)]

    def build(self, query_shape, key_shape):
        start = keras.initializers.RandomNormal(stddev=0.02)
        self.table = self.add_weight(shape=(self.buckets, self.heads), initializer=start, name="table")

    def call(self, query, key):
        queries, keys = ops.shape(query)[1], ops.shape(key)[1]
        own = ops.arange(queries)[:, None] + (keys - queries)
        found = self.between(ops.arange(keys)[None] - own)  # (queries, keys, heads)
        return ops.transpose(found, (2, 0, 1))[None]

    def between(self, ahead):
        """By how many places each key lies behind the query, whole numbers of any shape -> what is added, (…, heads)."""
        far = ops.minimum(ops.maximum(-ahead, 0) if self.causal else ops.abs(ahead), self.distance)
        which = ops.take(ops.convert_to_tensor(self._of, "int32"), far, axis=0)
        if not self.causal:
            which = which + ops.cast(ahead > 0, "int32") * (self.buckets // 2)
        return ops.take(self.table, which, axis=0)

    def compute_output_spec(self, query, key):
        return KerasTensor((1, self.heads, query.shape[1], key.shape[1]), self.compute_dtype)

    def get_config(self):
        own = {"heads": self.heads, "buckets": self.buckets, "distance": self.distance, "causal": self.causal}
        return {**super().get_config(), **own}


def _angles(places, start, rates):
    """Angle of each place and pair, (places, pairs), or (batch, places, pairs) where rows differ, in radians."""
    places = ops.cast(ops.arange(places) + start, "float32")
    return places[..., None] * ops.convert_to_tensor(rates, "float32")
