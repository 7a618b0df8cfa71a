"""Positions and class tokens: what they give, and that pruning, export and explanations know them."""

import keras
import numpy as np
import onnxruntime
import pytest
from keras import layers

import export
import zoo
from zoo.compress import channel_groups, cost, prune_channels
from zoo.explain.activations import attention_rollout, grad_cam
from zoo.explain.clock import Clock
from zoo.explain.sources import subject_of
from zoo.layers.tokens import ClassToken, Positions


def drawn(model, seed=0):
    """The same model with weights drawn at random."""
    random = np.random.default_rng(seed)
    model.set_weights([random.normal(0, 0.5, weight.shape) for weight in model.get_weights()])
    return model


def sequence():
    image = keras.Input((4, 6, 3), name="image")
    x = Positions(name="positions")(layers.Conv2D(8, 2, 2, name="patches")(image))
    x = ClassToken(name="class_token")(layers.Reshape((6, 8), name="sequence")(x))
    x = layers.GlobalAveragePooling1D(name="mean")(layers.Dense(5, activation="gelu", name="mixed")(x))
    return drawn(keras.Model(image, layers.Dense(2, name="logits")(x), name="sequence"))


def pixels(rows=4, shape=(4, 6, 3)):
    return np.random.default_rng(1).normal(size=(rows, *shape)).astype(np.float32)


def answers(model, x):
    return keras.ops.convert_to_numpy(model(x, training=False))


def test_each_place_gets_its_vector_and_the_token_stands_in_front():
    model = sequence()
    maps = answers(keras.Model(model.input, model.get_layer("patches").output), pixels())
    found = answers(keras.Model(model.input, model.get_layer("class_token").output), pixels())
    (grid,), (token, position) = (
        model.get_layer("positions").get_weights(),
        model.get_layer("class_token").get_weights(),
    )
    assert found.shape == (4, 7, 8)
    np.testing.assert_allclose(found[:, 1:], (maps + grid).reshape(4, 6, 8), atol=1e-6)
    np.testing.assert_allclose(found[:, 0], np.tile(token + position, (4, 1)), atol=1e-6)


def test_removing_what_is_dead_changes_no_output():
    model, dead = sequence(), [0, 2, 5, 7]
    for name in ("patches", "positions", "class_token"):
        for weight in model.get_layer(name).weights:
            value = np.array(weight)
            value[..., dead] = 0
            weight.assign(value)
    small = prune_channels(model, 0.5, keep=("logits", "mixed"))
    assert [weight.shape for weight in small.get_layer("positions").weights] == [(2, 3, 4)]
    assert [weight.shape for weight in small.get_layer("class_token").weights] == [(4,), (4,)]
    np.testing.assert_allclose(answers(small, pixels()), answers(model, pixels()), atol=1e-5)


def test_a_token_without_a_fixed_number_of_places_is_exported(tmp_path):
    tokens = keras.Input((None, 4), name="tokens")
    model = drawn(keras.Model(tokens, ClassToken(name="class_token")(tokens), name="front"))
    assert model.output_shape == (None, None, 4)
    export.to_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 4), (5, 2, 4)):
        x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
        np.testing.assert_allclose(session.run(None, {"tokens": x})[0], answers(model, x), atol=1e-6)


def transformer(**arguments):
    sizes = {"patch": 4, "width": 8, "depth": 2, "heads": 2, **arguments}
    return drawn(zoo.get("vit_tiny", input_shape=(8, 8, 1), classes=3, **sizes))


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_heads_units_and_width_of_a_vision_transformer_can_be_removed(tmp_path, pool):
    model = transformer(pool=pool, heads=4)
    groups = {group.layers: group.channels for group in channel_groups(model)}
    assert groups[("block0_attention",)] == 4 and groups[("block1_hidden",)] == 32
    assert any(names[0] == "patches" and "block1_output" in names and size == 8 for names, size in groups.items())
    small = prune_channels(model, 0.5)
    assert small.get_layer("block0_attention")._query_dense.kernel.shape == (4, 2, 2)
    assert small.get_layer("positions").grid.shape == (2, 2, 4)
    assert sum(row.macs for row in cost(small)) < sum(row.macs for row in cost(model)) / 2
    small.compile("adam", "mse", run_eagerly=True)
    small.fit(pixels(4, (8, 8, 1)), np.zeros((4, 3)), epochs=1, verbose=0)
    export.to_onnx(small, tmp_path / "small.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    x = pixels(3, (8, 8, 1))
    found = session.run(None, {session.get_inputs()[0].name: x})[0]
    np.testing.assert_allclose(found, answers(small, x), atol=1e-4)


@pytest.mark.parametrize(("pool", "positions", "read"), [("token", 5, 1), ("mean", 4, 4)])
def test_rollout_finds_what_the_answer_reads(pool, positions, read):
    subject = subject_of(transformer(pool=pool), None, None, None, kind="image")
    raw = subject.check(pixels(2, (8, 8, 1)))
    found = attention_rollout(subject, raw, np.array([0, 2]), clock=Clock())
    settings = found.settings
    assert (settings["layers"], settings["positions"], settings["positions_read"]) == (2, positions, read)
    assert found.values.shape == (2, 8, 8) and found.values.min() >= 0
    assert found.values.sum(axis=(1, 2)).max() <= 1 + 1e-6


def test_rollout_points_at_the_patch_that_the_token_attends_to():
    model = transformer(depth=1)
    for layer in model.layers:
        if layer.name == "block0_attention":
            layer.set_weights([np.zeros(weight.shape) for weight in layer.get_weights()])
            # the token's query is constant, and only one place has a key that fits it
            layer._query_dense.bias.assign(np.ones(layer._query_dense.bias.shape))
            layer._key_dense.kernel.assign(np.ones(layer._key_dense.kernel.shape) * np.eye(8)[0][:, None, None] * 30)
    normal = model.get_layer("block0_norm0")
    normal.set_weights([np.ones(8), np.zeros(8)])
    model.get_layer("patches").set_weights([np.zeros((4, 4, 1, 8)), np.eye(8)[3]])
    grid = np.zeros((2, 2, 8))
    grid[1, 0, 0] = 5
    model.get_layer("positions").set_weights([grid])
    model.get_layer("class_token").set_weights([np.eye(8)[4], np.zeros(8)])
    subject = subject_of(model, None, None, None, kind="image")
    raw = subject.check(pixels(1, (8, 8, 1)))
    values = attention_rollout(subject, raw, np.array([0]), clock=Clock()).values[0]
    assert values[4:, :4].sum() > 0.5 * values.sum()
    assert np.unravel_index(values.argmax(), values.shape)[0] >= 4


def test_grad_cam_takes_maps_of_places_and_not_of_heads():
    subject = subject_of(transformer(), None, None, None, kind="image")
    raw = subject.check(pixels(1, (8, 8, 1)))
    settings = grad_cam(subject, raw, np.array([1]), clock=Clock()).settings
    assert (settings["layer"], settings["cells"]) == ("positions", [2, 2])
