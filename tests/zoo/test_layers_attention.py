"""Attention and positions: against plain numpy on both backends, through ONNX, saved, pruned, refused."""

import attention_check
import keras
import numpy as np
import onnxruntime
import pytest
from keras import layers, ops

import export
import zoo
from zoo.compress import channel_groups, macs, prune_channels
from zoo.explain.activations import attention_rollout
from zoo.explain.clock import Clock
from zoo.explain.sources import subject_of
from zoo.layers.attention import Attention
from zoo.layers.positions import LearnedPositions, RelativeBias, Rotary, WavePositions


@pytest.mark.also_jax
@pytest.mark.parametrize("check", list(attention_check.CHECKS))
def test_layers_agree_with_plain_numpy(check):
    attention_check.CHECKS[check]()


def network(length, causal=False, window=0, pairs="halves"):
    """Two blocks with every kind of positions, which read which tokens are there."""
    tokens = keras.Input((length,), dtype="int32", name="tokens")
    x = LearnedPositions(12, name="learned")(layers.Embedding(9, 12, name="embedding")(tokens))
    x = WavePositions(name="waves")(x)
    bias = RelativeBias(3, 8, 16, causal=causal, name="bias")(x, x)
    present = ops.not_equal(tokens, 0)
    for block in range(2):
        query, key, value = (layers.Dense(12, name=f"block{block}_{part}")(x) for part in ("query", "key", "value"))
        query, key = (
            Rotary(3, pairs=pairs, name=f"block{block}_{part}_turned")(turned)
            for part, turned in (("query", query), ("key", key))
        )
        attention = Attention(3, causal=causal, window=window, name=f"block{block}_attention")
        x = x + layers.Dense(12, name=f"block{block}_mixed")(attention(query, key, value, present=present, bias=bias))
    return keras.Model(tokens, layers.Dense(2, name="logits")(x), name="network")


TOKENS = np.array([[3, 1, 2, 8, 5, 4, 7, 1], [2, 7, 4, 1, 0, 0, 0, 0], [0] * 8], np.int32)


@pytest.mark.parametrize("length", [8, None])
@pytest.mark.parametrize(
    "settings", [{}, {"causal": True}, {"window": 2}, {"causal": True, "window": 3, "pairs": "neighbours"}]
)
def test_files_answer_as_keras_does(tmp_path, length, settings):
    model = weighted(network(length, **settings))
    export.to_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for tokens in (TOKENS, TOKENS[1:2], *([] if length else [TOKENS[:, :3]])):
        truth = ops.convert_to_numpy(model(tokens))
        assert np.isfinite(truth).all()
        np.testing.assert_allclose(session.run(None, {"tokens": tokens})[0], truth, atol=2e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(ops.convert_to_numpy(loaded(TOKENS)), ops.convert_to_numpy(model(TOKENS)))


def test_weights_are_dropped_in_training_only():
    given = [attention_check.drawn(4, 6, 8, seed=seed) for seed in range(3)]
    layer = Attention(2, dropout=0.5)
    plain = ops.convert_to_numpy(Attention(2)(*given))
    np.testing.assert_allclose(ops.convert_to_numpy(layer(*given)), plain, atol=1e-6)
    one, two = (ops.convert_to_numpy(layer(*given, training=True)) for _ in range(2))
    assert np.abs(one - two).max() > 0.1
    many = np.mean([ops.convert_to_numpy(layer(*given, training=True)) for _ in range(400)], axis=0)
    np.testing.assert_allclose(many, plain, atol=0.25)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Attention(0), "heads must be at least 1, window at least 0 and dropout a share"),
        (lambda: Attention(2)(*[keras.Input((3, 5))] * 3), r"a multiple of heads=2, got \[5, 5, 5\]"),
        (lambda: LearnedPositions(4, name="places")(keras.Input((5, 2))), "'places' has 4 positions, got 5 tokens"),
        (lambda: Rotary(2)(keras.Input((3, 6))), "an even number of values to turn, got width 6, heads=2, share=1.0"),
        (lambda: Rotary(2, pairs="both"), "pairs must be 'halves' or 'neighbours'"),
        (lambda: RelativeBias(2, buckets=2), "buckets must be at least 4 and distance above 0"),
        (lambda: RelativeBias(2, distance=8), "distance above 8, which have a bucket each, got buckets=32, distance=8"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def weighted(model, seed=0):
    random = np.random.RandomState(seed)
    model.set_weights([random.normal(0, 0.4, weight.shape) for weight in model.get_weights()])
    return model


def answers(model, tokens=TOKENS):
    return ops.convert_to_numpy(model(tokens, training=False))


def test_heads_are_removed_whole(tmp_path):
    model = weighted(network(8))
    for block in range(2):  # the second of three heads does nothing, and is the least by its weights
        for name, axis in (("query", 1), ("key", 1), ("value", 1), ("mixed", 0)):
            layer = model.get_layer(f"block{block}_{name}")
            kernel = ops.convert_to_numpy(layer.kernel).copy()
            kernel[(slice(None),) * axis + (slice(4, 8),)] *= 1e-3 if name != "mixed" else 0
            layer.kernel.assign(kernel)
    together = {"bias", *(f"block{block}_{part}" for block in range(2) for part in ("query", "key", "value"))}
    [group] = [group for group in channel_groups(model) if set(group.layers) == together]  # they share their bias
    assert group.channels == 3
    small = prune_channels(model, 0.34, keep=("embedding", "logits", "*_mixed"))
    assert [small.get_layer(name).heads for name in ("bias", "block0_attention", "block1_query_turned")] == [2, 2, 2]
    assert small.get_layer("block0_query").units == 8 and small.get_layer("bias").table.shape == (8, 2)
    np.testing.assert_allclose(answers(small), answers(model), atol=1e-5)
    export.to_onnx(small, tmp_path / "small.onnx")


def encoder(**arguments):
    sizes = {"vocabulary": 9, "width": 8, "depth": 2, "heads": 4, "length": 8, "separator": 1, **arguments}
    return weighted(zoo.get("bert_tiny", input_shape=(8,), classes=3, **sizes))


def test_an_encoder_becomes_narrower(tmp_path):
    model = encoder()
    small = prune_channels(model, 0.5)
    assert small.get_layer("block0_attention").heads == 2 and small.get_layer("block1_hidden").units == 16
    assert small.get_layer("words").output_dim == 4 and small.get_layer("positions").table.shape == (8, 4)
    assert macs(small) < macs(model) / 2
    assert answers(small).shape == (3, 3)
    export.to_onnx(small, tmp_path / "small.onnx")


def test_arithmetic_is_counted():
    length, width, hidden = 128, 768, 3072
    blocks = 12 * (length * (4 * width**2 + 2 * width * hidden) + 2 * length**2 * width)
    with keras.StatelessScope(initialize_variables=False):
        model = zoo.get("bert_base", input_shape=(length,))
    assert macs(model) == blocks + width**2 + 2 * width
    keras.utils.clear_session()


def test_rollout_finds_which_tokens_are_read():
    subject = subject_of(encoder(depth=1), None, None, None, kind="text")
    found = attention_rollout(subject, subject.check(TOKENS), np.array([0, 1, 2]), clock=Clock())
    assert found.values.shape == (3, 8) and found.settings["positions_read"] == 1
    assert (found.values[1, 4:] == 0).all()  # padding gets no attention
    np.testing.assert_allclose(found.values.sum(axis=1), 1, atol=1e-6)
