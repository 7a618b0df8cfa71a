"""Attention of recurrent translators against the paper's equations in plain numpy; run by test_layers_alignment.py."""

import itertools

import numpy as np
from keras import ops

from zoo.layers.alignment import Alignment

PRESENT = np.array([[True] * 7, [True] * 4 + [False] * 3, [True] + [False] * 6])


def drawn(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def plain(query, key, value, score, *, direction=None, present=None, window=0, place=None, start=0):
    """Row by row and step by step, in float64: what is found, and the weights (batch, queries, keys)."""
    batch, queries, _ = query.shape
    keys = key.shape[1]
    found, weights = np.zeros((batch, queries, value.shape[2])), np.zeros((batch, queries, keys))
    for row, step in itertools.product(range(batch), range(queries)):
        there = [s for s in range(keys) if present is None or present[row, s]]
        centre = min(start + step, len(there) - 1) if place is None else len(there) * place[row, step, 0]  # equation 9
        seen = [s for s in there if not window or centre - window <= s <= centre + window]
        h = query[row, step].astype(np.float64)
        if score == "concat":  # equation 8, whose matrix has been multiplied before
            scores = [direction @ np.tanh(h + key[row, s]) for s in seen]
        else:
            scores = [h @ key[row, s] for s in seen]
        share = np.exp(np.array(scores) - max(scores))
        share /= share.sum()  # equation 7, over the window
        if place is not None and window:
            share = share * np.exp(-((np.array(seen) - centre) ** 2) / (2 * (window / 2) ** 2))  # equation 10
        weights[row, step, seen] = share
        found[row, step] = share @ value[row, seen]
    return found, weights


def check(score, window, placed):
    query, key, value = drawn(3, 5, 6), drawn(3, 7, 6, seed=1), drawn(3, 7, 4, seed=2)
    place = 1 / (1 + np.exp(-drawn(3, 5, 1, seed=3))) if placed else None
    for present, start in ((None, 0), (PRESENT, 0), (PRESENT, 2)):
        layer = Alignment(score, window)
        layer.build(query.shape, key.shape)
        direction = ops.convert_to_numpy(layer.direction) if score == "concat" else None
        known = {"present": present, "place": place, "start": start}
        found, weights = layer(query, key, value, **known, return_attention_scores=True)
        expected = plain(query, key, value, score, direction=direction, window=window, **known)
        np.testing.assert_allclose(ops.convert_to_numpy(found), expected[0], atol=2e-6)
        np.testing.assert_allclose(ops.convert_to_numpy(weights)[:, 0], expected[1], atol=2e-6)
        np.testing.assert_allclose(ops.convert_to_numpy(layer(query, key, value, **known)), expected[0], atol=2e-6)


def one_by_one():
    """A step alone finds what it finds among all, given where it stands; also where rows stand elsewhere."""
    query, key, value = drawn(3, 5, 6), drawn(3, 7, 6, seed=1), drawn(3, 7, 4, seed=2)
    layer = Alignment("dot", 2)
    whole = ops.convert_to_numpy(layer(query, key, value, present=PRESENT))
    steps = np.array([[3], [0], [4]])
    given = np.take_along_axis(query, steps[..., None], axis=1)
    alone = ops.convert_to_numpy(layer(given, key, value, present=PRESENT, start=steps.astype(np.int32)))
    np.testing.assert_allclose(alone, np.take_along_axis(whole, steps[..., None], axis=1), atol=2e-6)


KINDS = [
    ("dot", 0, False),
    ("concat", 0, False),
    ("dot", 2, False),
    ("concat", 1, False),
    ("dot", 2, True),
    ("concat", 3, True),
]
CHECKS = {**{str(kind): (lambda kind=kind: check(*kind)) for kind in KINDS}, "one_by_one": one_by_one}
