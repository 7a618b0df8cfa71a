"""Attention and positions against plain numpy; run by test_layers_attention.py."""

import itertools

import numpy as np
from keras import ops

from zoo.layers.attention import Attention
from zoo.layers.positions import LearnedPositions, RelativeBias, Rotary, WavePositions


def drawn(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def plain_attention(query, key, value, heads, *, scale=None, causal=False, window=0, present=None, bias=None):
    """Row by row and head by head, in float64; also the weights (batch, heads, queries, keys)."""
    batch, queries, width = query.shape
    keys, size = key.shape[1], width // heads
    found = np.zeros(query.shape)
    weights = np.zeros((batch, heads, queries, keys))
    for row, head, place in itertools.product(range(batch), range(heads), range(queries)):
        own, at = place + keys - queries, slice(head * size, (head + 1) * size)
        scores = key[row, :, at].astype(np.float64) @ query[row, place, at] * (scale or 1 / np.sqrt(size))
        if bias is not None:
            scores = scores + bias[0, head, place]
        seen = [
            (present is None or present[row, other])
            and not (causal and other > own)
            and not (window and abs(other - own) > window)
            for other in range(keys)
        ]
        scores = np.where(seen, scores, -np.inf) if any(seen) else np.zeros(keys)
        share = np.exp(scores - scores.max())
        weights[row, head, place] = share = share / share.sum()
        found[row, place, at] = share @ value[row, :, at]
    return found, weights


PRESENT = np.array([[True] * 7, [True] * 4 + [False] * 3, [False] * 7])
KINDS = {
    "self": {},
    "padded": {"present": PRESENT},
    "causal": {"causal": True},
    "causal and padded": {"causal": True, "present": PRESENT},
    "window": {"window": 2},
    "window and padded": {"window": 2, "present": PRESENT},
    "causal window": {"causal": True, "window": 2},
    "scaled": {"scale": 1.0},
    "biased": {"bias": drawn(1, 3, 7, 7, seed=4)},
    "biased, causal and padded": {"bias": drawn(1, 3, 7, 7, seed=4), "causal": True, "present": PRESENT},
}


def attention(kind):
    """Of three heads in a width of 15; rows with padding and one of nothing else."""
    given = [drawn(3, 7, 15, seed=seed) for seed in range(3)]
    settings = {name: KINDS[kind][name] for name in ("causal", "window", "scale") if name in KINDS[kind]}
    tensors = {name: KINDS[kind][name] for name in ("present", "bias") if name in KINDS[kind]}
    layer = Attention(3, **settings)
    expected, weights = plain_attention(*given, 3, **KINDS[kind])
    np.testing.assert_allclose(ops.convert_to_numpy(layer(*given, **tensors)), expected, atol=2e-6)
    found, scores = layer(*given, **tensors, return_attention_scores=True)
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, atol=2e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(scores), weights, atol=1e-6)


def cross_attention():
    """Two sequences of other lengths."""
    query, key, value = drawn(2, 3, 10), drawn(2, 8, 10, seed=1), drawn(2, 8, 10, seed=2)
    present = np.arange(8)[None] < np.array([[8], [5]])
    expected, _ = plain_attention(query, key, value, 5, present=present)
    np.testing.assert_allclose(
        ops.convert_to_numpy(Attention(5)(query, key, value, present=present)), expected, atol=2e-6
    )


def cached_attention():
    """Each query alone, with the keys up to its place as a cache, finds what it finds among all."""
    given = [drawn(2, 6, 12, seed=seed) for seed in range(3)]
    for window in (0, 2):
        layer = Attention(3, causal=True, window=window)
        whole = ops.convert_to_numpy(layer(*given))
        for place in range(6):
            query, key, value = given[0][:, place : place + 1], given[1][:, : place + 1], given[2][:, : place + 1]
            found = ops.convert_to_numpy(layer(query, key, value))
            np.testing.assert_allclose(found[:, 0], whole[:, place], atol=2e-6)


def padding_has_no_influence():
    """Not in the last digit, whatever stands there."""
    given = [drawn(1, 7, 12, seed=seed) for seed in range(3)]
    present = np.arange(7)[None] < 4
    other = [values.copy() for values in given]
    for values in other[1:]:
        values[:, 4:] = 1e4 * drawn(1, 3, 12, seed=9)
    layer = Attention(4)
    one, two = (ops.convert_to_numpy(layer(*values, present=present)) for values in (given, other))
    assert np.array_equal(one, two)


def waves():
    for width in (8, 7):
        table = [
            [
                (np.sin if value % 2 == 0 else np.cos)(place / 10000 ** (2 * (value // 2) / width))
                for value in range(width)
            ]
            for place in range(500)
        ]
        x = drawn(2, 500, width)
        np.testing.assert_allclose(ops.convert_to_numpy(WavePositions()(x)), x + np.array(table), atol=1e-4)
        later = ops.convert_to_numpy(WavePositions()(x[:, :3], start=11))
        np.testing.assert_allclose(later, x[:, :3] + np.array(table)[11:14], atol=1e-5)


def plain_rotary(x, heads, pairs, share, start=0):
    found, size = x.astype(np.float64), x.shape[2] // heads
    turned = int(size * share)
    for place, head, pair in itertools.product(range(x.shape[1]), range(heads), range(turned // 2)):
        one, other = (pair, pair + turned // 2) if pairs == "halves" else (2 * pair, 2 * pair + 1)
        one, other = one + head * size, other + head * size
        angle = (place + start) * 10000 ** (-2 * pair / turned)
        a, b = x[:, place, one].astype(np.float64), x[:, place, other].astype(np.float64)
        found[:, place, one] = a * np.cos(angle) - b * np.sin(angle)
        found[:, place, other] = a * np.sin(angle) + b * np.cos(angle)
    return found


def rotary():
    x = drawn(2, 9, 24)
    for heads, pairs, share in itertools.product((1, 3), ("halves", "neighbours"), (1.0, 0.25)):
        layer = Rotary(heads, share=share, pairs=pairs)
        np.testing.assert_allclose(ops.convert_to_numpy(layer(x)), plain_rotary(x, heads, pairs, share), atol=1e-5)
        later = ops.convert_to_numpy(layer(x[:, 4:], start=4))
        np.testing.assert_allclose(later, ops.convert_to_numpy(layer(x))[:, 4:], atol=1e-5)


def learned():
    layer, x = LearnedPositions(10), drawn(2, 10, 4)
    whole = ops.convert_to_numpy(layer(x))
    table = ops.convert_to_numpy(layer.table)
    np.testing.assert_allclose(whole, x + table, atol=1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(layer(x[:, :3], start=5)), x[:, :3] + table[5:8], atol=1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(layer(x[:, :3])), x[:, :3] + table[:3], atol=1e-6)


# bucket of distances 0, 1, 2 … 140 as transformers 5.23.0 counts them: (buckets, distance, causal) -> first distance of each
FIRSTS = {
    (32, 128, True): [*range(16), 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113],
    (32, 128, False): [*range(8), 8, 12, 16, 23, 32, 46, 64, 91],
    (10, 40, False): [0, 1, 2, 6, 15],
}


def relative():
    """Buckets on both sides of the query, and the numbers that stand for them."""
    for (buckets, distance, causal), firsts in FIRSTS.items():
        layer = RelativeBias(2, buckets=buckets, distance=distance, causal=causal)
        x = np.zeros((1, 141, 1), np.float32)
        bias = ops.convert_to_numpy(layer(x, x))
        table = ops.convert_to_numpy(layer.table)
        of = np.searchsorted(firsts, np.arange(141), side="right") - 1
        behind = table[of]  # (distances, heads)
        np.testing.assert_array_equal(bias[0, :, 140, ::-1].T, behind)
        ahead = table[np.where(np.arange(141) > 0, of + buckets // 2, 0)] if not causal else table[np.zeros(141, int)]
        np.testing.assert_array_equal(bias[0, :, 0].T, ahead)
        one = ops.convert_to_numpy(layer(x[:, :1], x))  # behind a cache the query stands at the last key
        np.testing.assert_array_equal(one[:, :, 0], bias[:, :, 140])


CHECKS = {
    **{f"attention, {kind}": (lambda kind=kind: attention(kind)) for kind in KINDS},
    **{check.__name__: check for check in (cross_attention, cached_attention, padding_has_no_influence)},
    **{check.__name__: check for check in (waves, rotary, learned, relative)},
}
