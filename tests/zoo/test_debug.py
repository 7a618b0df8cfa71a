"""Planted bugs are found and named; sound models give no alarm."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from keras import layers, ops

from zoo import data
from zoo.data import rows as raw
from zoo.evaluate.debugging import activations, check_gradients, flow, overfit


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def iris():
    return data.load("iris")


def network(*hidden, inputs=4, outputs=3):
    x = start = keras.Input((inputs,), name="inputs")
    for layer in hidden:
        x = layer(x)
    return keras.Model(start, layers.Dense(outputs, name="logits")(x), name="planted")


def text(found):
    return "\n".join(map(str, found.findings))


class Deaf(layers.Layer):
    """Passes its input on and no gradient back."""

    def call(self, x):
        return ops.stop_gradient(x)


class Bent(layers.Layer):
    """Multiplies by a weight, and gets the gradient of it wrong by a factor."""

    def build(self, shape):
        self.scale = self.add_weight((shape[-1],), "ones", name="scale")

    def call(self, x):
        @ops.custom_gradient
        def product(x, scale):
            def backward(*slopes, upstream=None):
                upstream = slopes[0] if upstream is None else upstream
                return upstream * scale, 1.5 * ops.sum(upstream * x, axis=0)

            return x * scale, backward

        return product(x, self.scale + 0.0)  # TensorFlow allows no variable as an argument


# One batch by heart


@pytest.mark.parametrize("name", ["lenet", "mlp"])
def test_sound_models_learn_a_batch_of_images_by_heart(name, digits):
    found = overfit(name, digits if name == "mlp" else None, dropout=0.5)
    assert found.reached and found.loss <= found.goal < found.idle and found.score == 1
    assert found.findings == () and "nothing is wrong" in str(found)


def test_a_small_linear_model_gets_a_batch_it_can_hold():
    found = overfit("logistic_regression", "diabetes")
    assert found.reached and found.rows == 5 and found.metric == "r2" and not found.findings


def test_a_loss_of_the_wrong_sign_is_named(iris, tmp_path):
    right = keras.losses.CategoricalCrossentropy(from_logits=True)
    found = overfit("mlp", iris, width=(8,), loss=lambda y, out: -right(y, out), steps=40)
    assert not found.reached and found.score < 0.5
    assert "falls below zero" in text(found) and "turn the sign" in text(found)
    assert found.plot(tmp_path / "curve.png").stat().st_size > 10_000
    assert json.loads(found.to_json())["reached"] is False


def test_a_layer_that_no_gradient_passes_is_named(iris):
    model = network(layers.Dense(2, activation="tanh", name="first"), Deaf(name="deaf"))
    found = overfit(model, iris, rows=30, steps=40)
    assert "first/kernel, first/bias: no gradient reaches them" in text(found)


def test_a_frozen_layer_is_named(iris):
    frozen = layers.Dense(8, activation="relu", name="stone", trainable=False)
    found = overfit(network(frozen), iris, steps=20, rates=(0.003,))
    assert "stone: not trained, its trainable is False; set trainable = True" in text(found)


def test_probabilities_in_place_of_logits_are_named(iris):
    model = network(layers.Dense(16, activation="relu"))
    softmax = keras.Model(model.input, layers.Softmax()(model.output), name="softmax")
    found = overfit(softmax, iris, rows=8, steps=100, rates=(0.01,))
    assert not found.reached and "leave the softmax out" in text(found)


def test_dead_units_leave_the_same_output_for_every_row(iris):
    dead = layers.Dense(8, activation="relu", bias_initializer=keras.initializers.Constant(-100))
    found = overfit(network(dead), iris, steps=20)
    assert not found.reached and "the same for every row" in text(found)


def test_a_model_too_small_for_the_batch_is_told_so(iris):
    found = overfit("logistic_regression", iris, rows=90, steps=20)
    assert not found.reached and "15 trainable weights for 90 rows" in text(found) and "rows=" in text(found)


def test_overfit_leaves_the_model_as_it_is(iris):
    model = network(layers.Dense(8, activation="relu"))
    before = model.get_weights()
    overfit(model, iris, steps=10, rates=(0.01,))
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_overfit_refuses_what_is_no_test(iris):
    with pytest.raises(ValueError, match="at least 10 steps, 2 rows and positive rates, got steps=3"):
        overfit("mlp", iris, steps=3)
    with pytest.raises(ValueError, match="'lenet' is for image-classification, data 'iris' is classification"):
        overfit("lenet", iris)
    with pytest.raises(
        TypeError, match=r"'widht' is neither a training setting nor an argument of 'mlp'\. Did you mean 'width'"
    ):
        overfit("mlp", iris, widht=3)


# Gradients against finite differences


@pytest.mark.parametrize(("name", "source"), [("lenet", "digits"), ("mlp", "diabetes"), ("resnet18", "digits")])
def test_gradients_of_sound_models_agree(name, source, tmp_path):
    tiny = {"resnet18": dict(width=4, depth=(1, 1), bottleneck=False)}.get(name, {})
    found = check_gradients(name, source, rows=2, **tiny)
    assert found.precision == "float64" and not found.findings, str(found)
    errors = [row.own for row in found.layers if not np.isnan(row.own)]
    assert len(errors) >= 4 and max(errors) < 1e-6
    assert found.layers[-1].layer == "loss" and keras.config.floatx() == "float32"
    assert found.plot(tmp_path / "errors.png").stat().st_size > 10_000


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_a_wrong_custom_gradient_is_found_in_its_layer_alone(iris, precision):
    before, after = (layers.Dense(5, activation="tanh", name=name) for name in ("before", "after"))
    found = check_gradients(network(before, Bent(name="bent"), after), iris, precision=precision)
    assert [row.layer for row in found.layers if row.own > found.tolerance] == ["bent"]
    (finding,) = found.findings
    assert finding.where == "bent" and "scale is wrong by 0.33" in finding.what
    assert "custom_gradient" in finding.advice


def test_a_wrong_gradient_of_a_layer_without_weights_is_found(iris):
    found = check_gradients(network(layers.Dense(5, name="before"), Deaf(name="deaf")), iris)
    assert [finding.where for finding in found.findings] == ["deaf"]
    errors = {row.layer: row for row in found.layers}
    assert errors["before"].whole == 1 and errors["before"].own < 1e-6 and errors["logits"].whole < 1e-6


def test_a_loss_with_a_wrong_gradient_is_found(iris):
    def half(y, out):
        return ops.mean(ops.square(y - out)) + ops.mean(ops.stop_gradient(ops.square(out)))

    found = check_gradients(network(layers.Dense(5, name="before")), iris, loss=half)
    assert [finding.where for finding in found.findings] == ["loss"]


def test_units_exactly_at_their_kink_are_no_mistake(iris):
    model = network(layers.Dense(6, activation="relu", kernel_initializer="zeros", name="kinked"))
    found = check_gradients(model, iris)
    assert not found.findings, str(found)


def test_maps_that_fresh_biases_leave_at_their_kink_are_no_mistake(digits):
    found = check_gradients("resnet50v2", digits, width=4, depth=(2, 1))
    assert not found.findings, str(found)


def test_the_check_refuses_what_it_cannot_follow(iris):
    with pytest.raises(ValueError, match="got rows=0, directions=3"):
        check_gradients("mlp", iris, rows=0)


# Flow of gradients and updates


def test_a_sound_model_flows_well(digits, tmp_path):
    found = flow("mlp", digits, steps=10)
    assert not found.findings, str(found)
    assert len(found.losses) == 10 and found.losses[-1] < found.losses[0]
    kernels = [row for row in found.weights if row.kernel]
    assert [row.weight.split("/")[0] for row in kernels] == ["hidden0", "hidden1", "logits"]
    assert all(1e-4 < row.update < 0.1 for row in kernels)
    assert found.plot(tmp_path / "flow.png").stat().st_size > 10_000
    assert len(json.loads(found.to_json())["weights"]) == 6


def test_batch_normalisation_is_measured_as_it_is_trained(digits):
    found = flow("resnet18", digits, steps=4, width=4, depth=(2, 2, 2), bottleneck=False)
    assert not [f for f in found.findings if "explodes" in f.what or "vanishes" in f.what], str(found)


def test_vanishing_gradients_are_named(iris):
    deep = [layers.Dense(8, activation="sigmoid", name=f"deep{i}") for i in range(9)]
    found = flow(network(*deep), iris, steps=4)
    (finding,) = [f for f in found.findings if "vanishes" in f.what]
    assert "deep0/kernel" in finding.where and "logits" not in finding.where and "normalisation" in finding.advice


def test_exploding_gradients_and_updates_are_named(iris):
    wild = keras.initializers.RandomNormal(stddev=30, seed=0)
    deep = [layers.Dense(8, activation="relu", kernel_initializer=wild, name=f"deep{i}") for i in range(4)]
    found = flow(network(*deep), iris, steps=4)
    assert "explodes" in text(found) and "clip_norm" in text(found)


def test_a_learning_rate_that_is_too_high_or_too_low_is_named(iris):
    high = flow("mlp", iris, steps=10, width=(8,), learning_rate=3.0, optimizer="adam")
    assert "lower learning_rate (now 3)" in text(high)
    low = flow("mlp", iris, steps=4, width=(8,), learning_rate=1e-9, optimizer="adam")
    assert "raise learning_rate (now 1e-09)" in text(low)


def test_gradients_that_are_zero_on_many_batches_are_named(digits):
    found = flow("mlp", digits, steps=20, learning_rate=3.0, optimizer="adam")
    assert "hidden0/kernel" in text(found) and "units are dead on whole batches" in text(found)


def test_a_layer_without_any_gradient_is_named(iris):
    found = flow(network(layers.Dense(5, name="before"), Deaf(name="deaf")), iris, steps=3)
    assert "before/kernel, before/bias: no gradient in any step" in text(found)


# What the layers answer


def planted_units(dead=(), wide=()):
    """A layer of ten ReLU units and one of six tanh units with bugs in some of them."""
    model = network(layers.Dense(10, activation="relu", name="relu"), layers.Dense(6, activation="tanh", name="tanh"))
    kernel, bias = (np.array(w) for w in model.get_layer("relu").get_weights())
    kernel, bias = 0.2 * kernel, np.full_like(bias, 1.0)
    bias[list(dead)] = -100.0
    model.get_layer("relu").set_weights([kernel, bias])
    kernel, bias = (np.array(w) for w in model.get_layer("tanh").get_weights())
    bias[list(wide)] = 50.0
    model.get_layer("tanh").set_weights([kernel, bias])
    return model


def test_planted_dead_units_are_found_exactly(iris, tmp_path):
    found = activations(planted_units(dead=(2, 7)), iris)
    units = {row.layer: row for row in found.layers}
    assert units["relu"].dead == (2, 7) and units["relu"].units == 10 and found.rows == len(iris.train)
    (finding,) = found.findings
    assert finding.where == "relu" and "2 of 10 ReLU units" in finding.what and "unit 2, unit 7" in finding.what
    assert "leaky ReLU" in finding.advice
    assert found.plot(tmp_path / "spread.png").stat().st_size > 10_000


def test_saturated_units_are_found_exactly(iris):
    found = activations(planted_units(wide=(0, 3, 5)), iris)
    units = {row.layer: row for row in found.layers}
    assert units["tanh"].saturated == (0, 3, 5) and "standardise the inputs" in text(found)


def test_healthy_units_give_no_alarm(iris):
    found = activations(planted_units(), iris)
    assert not found.findings, str(found)


def test_figures_do_not_depend_on_how_the_rows_fall_into_batches(digits):
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(3, 3, activation="relu", name="conv"),
                              layers.Flatten(), layers.Dense(10)])  # fmt: skip
    found = activations(model, digits, rows=300, row=290)
    x = digits.signature.inputs({"image": digits.train.x["image"][:300]})
    answers = keras.ops.convert_to_numpy(model.get_layer("conv")(x))
    conv = found.layers[0]
    assert conv.mean == pytest.approx(answers.mean(), rel=1e-4) and conv.highest == pytest.approx(answers.max())
    assert conv.active == pytest.approx(np.mean(answers > 0))
    np.testing.assert_allclose(found.maps["conv"], answers[290], rtol=1e-4, atol=1e-5)


def test_maps_and_filters_of_an_image_are_drawn(digits, tmp_path):
    found = activations("lenet", data.load("digits", input_shape=(32, 32, 1)), rows=64)
    assert list(found.maps) == ["stage0_conv", "stage0_pool", "stage1_conv", "stage1_pool"]
    assert found.filters.shape == (5, 5, 1, 6)
    for picture in (found.plot, found.plot_filters, found.plot_histograms):
        assert picture(tmp_path / "picture.png").stat().st_size > 4000
    with pytest.raises(ValueError, match="the model has no layer 'stage0_cnv'"):
        activations("lenet", layers=("stage0_cnv",))
    with pytest.raises(ValueError, match="no convolution over an image"):
        activations("mlp", digits, rows=8).plot_filters(tmp_path / "none.png")


def test_values_that_are_no_numbers_are_named_at_the_first_layer_that_makes_them(iris):
    logarithm = layers.Lambda(ops.log, name="logarithm")
    found = activations(network(layers.Dense(4, name="before"), logarithm, layers.Dense(4, name="after")), iris)
    assert [f.where for f in found.findings] == ["logarithm"]


def test_rows_that_differ_are_chosen_from_all_classes(iris):
    from zoo.evaluate.debugging.subject import few_rows, subject

    same = {key: np.repeat(values[:3], 20, axis=0) for key, values in iris.train.x.items()}
    doubled = dataclasses.replace(iris, train=data.Split(same, np.repeat(iris.train.y[:3], 20)))
    chosen = few_rows(subject("mlp", doubled), 8)
    assert len(chosen) == 3 and len(set(raw.digests({k: v[chosen] for k, v in same.items()}))) == 3
    chosen = few_rows(subject("mlp", iris), 9)
    assert np.bincount(iris.train.y[chosen]).tolist() == [3, 3, 3]
