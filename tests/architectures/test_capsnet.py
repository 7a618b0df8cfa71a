"""Capsules against the paper's equations in plain numpy, and what is special in their training."""

import keras
import numpy as np
import pytest
from keras import ops

import zoo
from zoo.compress import macs, prune_channels
from zoo.layers import capsules
from zoo.tasks import losses

SMALL = dict(input_shape=(12, 10, 2), classes=4, width=6, capsules=2, length=(4, 6), hidden=(8,), kernel=3)


def _random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _array(tensor):
    return ops.convert_to_numpy(tensor)


def _squash(s):
    """Equation 1 for one vector."""
    norm = np.linalg.norm(s)
    return norm**2 / (1 + norm**2) * s / norm


def _routed(votes, iterations):
    """Procedure 1 for one example: votes (capsules, classes, length) -> vectors (classes, length) after squashing."""
    b = np.zeros(votes.shape[:2])
    for _ in range(iterations):
        c = np.exp(b) / np.exp(b).sum(axis=1, keepdims=True)
        v = np.stack([_squash(sum(c[i, j] * votes[i, j] for i in range(len(votes)))) for j in range(votes.shape[1])])
        b = b + np.einsum("ijk,jk->ij", votes, v)
    return v


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return zoo.get("capsnet", **SMALL)


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_routing_follows_procedure_1(iterations):
    votes = _random(3, 7, 4, 6)  # batch, capsules, classes, length
    found = _array(capsules.squash(capsules.route(ops.transpose(votes, (0, 2, 1, 3)), iterations)))
    expected = np.stack([_routed(each.astype(np.float64), iterations) for each in votes])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_routing_sends_votes_to_the_class_where_they_agree():
    votes = _random(1, 2, 8, 6)
    votes[0, 1] = votes[0, 1, :1]  # all capsules say the same of the second class
    shares = [np.linalg.norm(_array(capsules.route(votes, n))[0], axis=-1) for n in (1, 3)]
    assert shares[1][1] / shares[1][0] > 1.3 * shares[0][1] / shares[0][0]


def test_squashing_keeps_directions_and_bounds_lengths():
    vectors = np.concatenate([_random(5, 8) * scale for scale in (1e-4, 1, 1e4)])
    found = _array(capsules.squash(vectors))
    np.testing.assert_allclose(found[5:], [_squash(vector) for vector in vectors[5:].astype(np.float64)], atol=1e-6)
    assert (np.linalg.norm(found, axis=-1) <= 1 + 1e-6).all()
    assert np.array_equal(_array(capsules.squash(np.zeros((1, 8), np.float32))), np.zeros((1, 8)))


def test_logits_are_log_odds_of_the_lengths_of_the_class_capsules(model):
    images = _random(3, *SMALL["input_shape"])
    primary = _array(keras.Model(model.input, model.get_layer("features").output)(images)).astype(np.float64)
    votes = np.einsum("bid,idkj->bijk", primary, _array(model.get_layer("logits").kernel))
    lengths = np.linalg.norm([_routed(each, 3) for each in votes], axis=-1)
    np.testing.assert_allclose(_array(ops.sigmoid(model(images))), lengths, atol=1e-5)


def test_primary_capsules_are_neighbouring_channels_of_one_place(model):
    images = _random(2, *SMALL["input_shape"])
    layers = [model.get_layer(name).output for name in ("primary_conv", "features")]
    maps, found = (_array(each) for each in keras.Model(model.input, layers)(images))
    assert maps.shape == (2, 4, 3, 8) and found.shape == (2, 24, 4)
    np.testing.assert_allclose(found[1, (2 * 3 + 1) * 2 + 1], _squash(maps[1, 2, 1, 4:]), atol=1e-5)


def test_margin_loss_follows_equation_4():
    lengths = np.array([[0.95, 0.05, 0.5], [0.3, 0.8, 0.2]])
    targets = np.array([[1, 0, 0], [1, 0, 0]], np.float32)
    found = losses.get("margin")(targets, np.log(lengths / (1 - lengths)).astype(np.float32))
    expected = [0.5 * 0.4**2, 0.6**2 + 0.5 * (0.7**2 + 0.1**2)]
    assert float(found) == pytest.approx(np.mean(expected), abs=1e-6)


def test_the_decoder_sees_the_true_class_in_training(model):
    """The loss of a step is the margin loss, and the drawing's error with all but the true capsule hidden."""
    images, truth = _random(5, *SMALL["input_shape"]), np.array([3, 1, 0, 0, 2])
    targets = np.eye(4, dtype=np.float32)[truth]
    model.compile("sgd", losses.get("margin"), run_eagerly=True)
    raw = model(images, training=True)
    margin = float(model.loss(targets, raw))
    drawn = _array(model.reconstruct(images, truth))
    error = np.mean(np.sum(np.square(drawn - images), axis=(1, 2, 3)))
    found = float(model.compute_loss(images, targets, raw, training=True))
    assert found == pytest.approx(margin + 5e-5 * error, rel=1e-5)
    assert model.get_layer("logits").seen is None  # no tensor of the step is left behind
    assert model.test_on_batch(images, targets) == pytest.approx(margin, rel=1e-5)


def test_a_teachers_answers_behind_the_targets_are_not_drawn(model):
    images, truth = _random(4, *SMALL["input_shape"]), np.arange(4)
    error = np.mean(np.sum(np.square(_array(model.reconstruct(images, truth)) - images), axis=(1, 2, 3)))
    targets = np.hstack([np.eye(4, dtype=np.float32), _random(4, 4)])
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    copy.compile("sgd", lambda targets, raw: 0.0 * ops.sum(raw, axis=-1))
    found = copy.compute_loss(images, targets, copy(images, training=True), training=True)
    assert float(found) == pytest.approx(5e-5 * error, rel=1e-4)


def test_the_decoder_sees_the_longest_capsule_otherwise(model):
    images = _random(5, *SMALL["input_shape"])
    longest = _array(model(images)).argmax(axis=-1)
    drawn = _array(model.reconstruct(images))
    np.testing.assert_allclose(drawn, _array(model.reconstruct(images, longest)), atol=1e-6)
    assert drawn.shape == images.shape
    assert np.abs(drawn - _array(model.reconstruct(images, (longest + 1) % 4))).max() > 1e-3


def test_what_the_decoder_learns_from_reaches_the_capsules():
    images = _random(4, *SMALL["input_shape"])[[0, 1, 2, 3, 0, 1, 2, 3]]
    truth = np.arange(8) % 4
    kernels, errors = [], []
    for weight in (0.0, 1.0):
        keras.utils.set_random_seed(0)
        model = zoo.get("capsnet", **{**SMALL, "reconstruction": weight})
        model.compile(keras.optimizers.Adam(1e-2), losses.get("margin"))
        for _ in range(60):
            model.train_on_batch(images, np.eye(4, dtype=np.float32)[truth])
        kernels.append(_array(model.get_layer("stem_conv").kernel))
        errors.append(float(np.square(_array(model.reconstruct(images, truth)) - images).mean()))
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-2
    assert errors[1] < 0.5 * errors[0]


def test_copies_and_files_keep_the_decoder(model, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    images = _random(2, *SMALL["input_shape"])
    expected = _array(model.reconstruct(images))
    for other in (loaded, copy):
        assert np.array_equal(_array(other(images)), _array(model(images)))
        assert np.array_equal(_array(other.reconstruct(images)), expected)


def test_own_files_are_loaded_with_or_without_another_number_of_classes(model, tmp_path):
    model.save(tmp_path / "model.keras")
    arguments = {name: value for name, value in SMALL.items() if name != "classes"}
    images = _random(2, *SMALL["input_shape"])
    again = zoo.get("capsnet", weights=tmp_path / "model.keras", **arguments)
    assert np.array_equal(_array(again(images)), _array(model(images)))
    other = zoo.get("capsnet", weights=tmp_path / "model.keras", classes=3, **arguments)
    assert other.output_shape == (None, 3)
    assert np.array_equal(*(_array(each.get_layer("primary_conv").kernel) for each in (other, model)))


def test_sizes_of_the_paper():
    model = zoo.get("capsnet")
    assert model.get_layer("features").output.shape[1:] == (32 * 6 * 6, 8)
    assert model.get_layer("logits").kernel.shape == (1152, 8, 16, 10)
    assert model.decoder.count_params() == 1_411_344
    assert zoo.get("capsnet", hidden=()).count_params() == 8_215_568 - 1_411_344 == 6_804_224


def test_kinds_of_primary_capsules_are_removed_whole(model):
    """Half of the kinds less answers like the whole network with their votes left out."""
    smaller = prune_channels(model, 0.5, keep=("logits", "stem_conv"))
    assert smaller.get_layer("primary_conv").filters == 4
    assert smaller.get_layer("logits").kernel.shape == (12, 4, 6, 4)
    kept = smaller.get_layer("primary_conv").get_weights()[0]
    whole = model.get_layer("primary_conv").get_weights()[0]
    left = [np.array_equal(whole[..., 4 * kind : 4 * kind + 4], kept) for kind in range(2)]
    assert sorted(left) == [False, True]
    less = keras.models.clone_model(model)
    less.set_weights(model.get_weights())
    kernel = _array(less.get_layer("logits").kernel).copy()
    kernel[left.index(False) :: 2] = 0
    less.get_layer("logits").kernel.assign(kernel)
    images = _random(3, *SMALL["input_shape"])
    np.testing.assert_allclose(_array(smaller(images)), _array(less(images)), atol=1e-5)
    stem = 10 * 8 * 9 * 2 * 6
    assert 2 * (macs(smaller) - stem) == macs(model) - stem


def test_multiplications_are_counted(model):
    places, kinds = 4 * 3, 2
    convolutions = 10 * 8 * 9 * 2 * 6 + places * 9 * 6 * 8
    votes = places * kinds * 4 * 6 * 4
    routing = (3 + 2) * places * kinds * 6 * 4  # three times what classes receive, twice how far votes agree
    assert macs(model) == convolutions + votes + routing


def test_what_cannot_be_built_or_drawn_is_refused():
    with pytest.raises(ValueError, match="length must be two numbers"):
        zoo.get("capsnet", length=(8,))
    with pytest.raises(ValueError, match="must be at least 1, got 256, 32, 9, 0 and"):
        zoo.get("capsnet", iterations=0)
    assert not hasattr(zoo.get("capsnet", **{**SMALL, "hidden": ()}), "reconstruct")
