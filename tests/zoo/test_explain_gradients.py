import dataclasses
import gc
import threading
import weakref

import explain_check
import keras
import numpy as np
import pytest
from keras import layers, ops
from processes import python

from zoo import registry
from zoo.data.signature import Calibration, ImagePreprocess, Signature, TablePreprocess
from zoo.explain.clock import Clock
from zoo.explain.deep import deep
from zoo.explain.gradients import _lattice, expected_gradients, gradient_times_input, integrated_gradients
from zoo.explain.network import Network
from zoo.explain.probes import PASSES, changed
from zoo.explain.sources import of_function, subject_of

ALL = [gradient_times_input, integrated_gradients, expected_gradients, deep]
ADDING = ALL[1:]


def total(found):
    return found.base + found.values.reshape(len(found.values), -1).sum(axis=1)


def linear():
    """10 * (3 a - b + 2 [colour = red] + 0.5) + 100 over standardised columns a and b."""
    step = TablePreprocess(("a", "b"), (1.0, 2.0), (2.0, 4.0), {"colour": ("green", "red")})
    signature = Signature("regression", ("price",), step, target_mean=100.0, target_std=10.0)
    model = registry.get("logistic_regression", input_shape=(4,), classes=1)
    model.set_weights([np.array([[3.0], [-1.0], [0.0], [2.0]]), np.array([0.5])])
    background = {"numbers": np.array([[1, 2], [3, 2]], np.float32), "categories": np.array([["green"], ["red"]])}
    return subject_of(model, signature, background, None)


@pytest.fixture(scope="module")
def images():
    """A model of images with its subject and rows."""
    background = np.random.default_rng(3).normal(size=(20, 8, 8, 2)).astype("float32")
    subject = subject_of(explain_check.image_model(), None, background, None, kind="image")
    return subject, subject.check(explain_check.rows()[0])


@pytest.mark.parametrize("method", ALL)
def test_a_linear_model_gives_weight_times_distance_from_the_mean(method):
    subject = linear()
    raw = subject.check({"numbers": np.array([[5, 6], [np.nan, 2]]), "categories": np.array([["red"], ["blue"]])})
    found = method(subject, raw, np.array([0, 0]), clock=Clock())
    means = 10 * np.array([3 * 0.5, 0, 2 * 0.5])  # of the background's contributions
    expected = 10 * np.array([[3 * 2, -1, 2], [0, 0, 0]]) - means
    np.testing.assert_allclose(found.values, expected, atol=1e-3)
    if found.base is not None:
        np.testing.assert_allclose(found.base, 105 + means.sum(), atol=1e-3)
        np.testing.assert_allclose(total(found), subject.predict(raw)[:, 0], atol=1e-3)
    assert found.prediction is None and found.settings["unit"] == "answer"


def test_the_gradient_is_that_of_finite_differences(images):
    subject, raw = images
    network = Network(subject, raw, "test")
    points, given = network.start(raw)
    targets = np.array([0, 1, 2])
    answers, [slopes] = network.gradients()(points, given, targets)
    np.testing.assert_allclose(answers, subject.predict(raw)[range(3), targets], atol=1e-6)
    step = 1e-2
    for place in ((0, 0, 0), (3, 4, 1), (7, 7, 0)):
        moved = [raw["image"].copy(), raw["image"].copy()]
        moved[0][:, *place] -= step
        moved[1][:, *place] += step
        low, high = (subject.predict({"image": each})[range(3), targets].astype(float) for each in moved)
        np.testing.assert_allclose(slopes[:, *place], (high - low) / (2 * step), atol=2e-4)


def test_integrated_gradients_add_up_within_the_tolerance(images):
    subject, raw = images
    targets = np.array([0, 1, 2])
    answers = subject.predict(raw)[range(3), targets]
    errors = []
    for tolerance in (0.1, 1e-3, 1e-4):
        found = integrated_gradients(subject, raw, targets, clock=Clock(), tolerance=tolerance, steps=3000)
        errors.append(np.abs(total(found) - answers).max())
        assert errors[-1] == pytest.approx(found.settings["completeness_error"], abs=1e-6)
        assert found.complete and errors[-1] <= tolerance + 1e-6
    loose = integrated_gradients(subject, raw, targets, clock=Clock(), tolerance=0.1)
    assert loose.settings["gradients"] == 7 < found.settings["gradients"]  # one interval, and more where needed


def test_integrated_gradients_say_when_their_steps_or_time_did_not_suffice(images):
    subject, raw = images
    few = integrated_gradients(subject, raw, np.zeros(3, int), clock=Clock(), tolerance=1e-9, steps=20)
    assert not few.complete and few.settings["gradients"] <= 20
    late = integrated_gradients(subject, raw, np.zeros(3, int), clock=Clock(0), tolerance=1e-9)
    assert not late.complete and late.settings["gradients"] == 7
    assert late.settings["completeness_error"] > 0
    with pytest.raises(ValueError, match="needs a tolerance above 0 and at least 7 steps, got tolerance=0"):
        integrated_gradients(subject, raw, np.zeros(3, int), clock=Clock(), tolerance=0)


def test_expected_gradients_add_up_and_are_less_noisy_than_independent_samples(images):
    subject, raw = images
    targets = np.array([0, 1, 2])
    answers = subject.predict(raw)[range(3), targets]
    truth = expected_gradients(subject, raw, targets, clock=Clock(), samples=8_000, seed=99)
    assert truth.settings["sampling_error"] < 1e-3
    errors = {}
    for samples, adjust in ((200, True), (30, True), (30, False)):
        found = [
            expected_gradients(subject, raw, targets, clock=Clock(), samples=samples, adjust=adjust, seed=seed)
            for seed in range(6)
        ]
        errors[samples, adjust] = np.sqrt(np.mean([np.square(each.values - truth.values) for each in found]))
        missed = max(np.abs(total(each) - answers).max() for each in found)
        assert missed == pytest.approx(max(e.settings["sampling_error"] for e in found) if not adjust else 0, abs=1e-6)
    network = Network(subject, raw, "test")
    [x], given = network.start(raw)
    [background] = network.references([x], raw)
    function, plain = network.gradients(), []
    for seed in range(6):
        random = np.random.default_rng(seed)
        start = background[0, random.integers(0, 20, 600)]
        gap = np.repeat(x, 200, axis=0) - start
        along = random.random((600, 1, 1, 1), np.float32)
        _, [slopes] = function([start + along * gap], [np.repeat(given[0], 200, axis=0)], np.repeat(targets, 200))
        plain.append((slopes * gap).reshape(3, 200, 8, 8, 2).mean(axis=1) - truth.values)
    assert errors[200, True] < 0.8 * np.sqrt(np.mean(np.square(plain)))
    assert errors[30, True] < errors[30, False]


def test_expected_gradients_repeat_with_their_seed_and_stop_with_the_clock(images):
    subject, raw = images
    runs = [expected_gradients(subject, raw, np.zeros(3, int), clock=Clock(), seed=seed) for seed in (4, 4, 5)]
    np.testing.assert_allclose(runs[0].values, runs[1].values, atol=1e-6)  # one may be compiled, the other not
    assert np.abs(runs[0].values - runs[2].values).max() > 1e-4
    assert runs[0].settings["samples"] == 200 and runs[0].settings["background_rows"] == 20 and runs[0].complete
    late = expected_gradients(subject, raw, np.zeros(3, int), clock=Clock(0), samples=1000)
    assert not late.complete and 0 < late.settings["samples"] < 1000
    np.testing.assert_allclose(total(late), subject.predict(raw)[:, 0], atol=1e-6)
    with pytest.raises(ValueError, match="at least 2 samples, got samples=1"):
        expected_gradients(subject, raw, np.zeros(3, int), clock=Clock(), samples=1)


def test_expected_gradients_are_right_on_average_and_each_row_gets_what_it_would_alone(images):
    subject, raw = images
    targets = np.array([0, 1, 2])
    truth = expected_gradients(subject, raw, targets, clock=Clock(), samples=8_000, seed=99).values
    found = np.stack(
        [
            expected_gradients(subject, raw, targets, clock=Clock(), samples=20, adjust=False, seed=seed).values
            for seed in range(100)
        ]
    )
    doubt = found.std(axis=0, ddof=1) / 10
    assert np.sqrt(np.mean(np.square((found.mean(axis=0) - truth) / doubt))) < 1.2
    together = expected_gradients(subject, raw, targets, clock=Clock(), samples=50)
    for row in range(3):
        one = {"image": raw["image"][row : row + 1]}
        alone = expected_gradients(subject, one, targets[row : row + 1], clock=Clock(), samples=50)
        np.testing.assert_allclose(alone.values[0], together.values[row], atol=1e-6)


@pytest.mark.parametrize("samples", [30, 45, 64])
def test_points_lie_evenly_along_the_way_and_among_background_rows(samples):
    random = np.random.default_rng(0)
    points, references = [random.normal(size=(2, 4, 1))], [random.normal(size=(1, 30, 4, 1))]
    who, along = _lattice(points, references, samples, 5)
    assert who.shape == along.shape == (2, samples)
    for row in range(2):
        assert np.floor(np.sort(along[row]) * samples).astype(int).tolist() == list(range(samples))
        times = np.bincount(who[row], minlength=30)
        assert times.min() >= samples // 30 and times.max() <= samples // 30 + 1
        near = np.argsort(np.square(points[0][row] - references[0][0]).sum(axis=(1, 2)))
        place = np.empty(30, int)
        place[near] = np.arange(30)
        for side in (place[who[row]] < 15, place[who[row]] >= 15):  # near and far rows are seen from everywhere
            assert np.diff(np.sort(along[row][side]), prepend=0, append=1).max() < 5 / samples
    others = [_lattice(points, references, samples, seed) for seed in range(200)]
    assert np.mean([o[1] for o in others], axis=0) == pytest.approx(np.full((2, samples), 0.5), abs=0.1)


@pytest.mark.parametrize("method", [expected_gradients, integrated_gradients])
def test_what_is_compiled_follows_the_model_and_goes_with_it(method):
    def attributed(model):
        background = np.random.default_rng(3).normal(size=(5, 8, 8, 2)).astype("float32")
        subject = subject_of(model, None, background, None, kind="image")
        raw = subject.check(explain_check.rows()[0])
        return method(subject, raw, np.array([0, 1, 2]), clock=Clock()).values

    model = explain_check.image_model()
    first = attributed(model)
    for _ in range(PASSES):
        last = attributed(model)
    np.testing.assert_allclose(last, first, atol=1e-5)

    def trained(model):
        model.set_weights([0.8 * values for values in model.get_weights()])

    def rebuilt(model):
        model.get_layer("first").activation = keras.activations.tanh
        model.make_predict_function(force=True)

    other = explain_check.image_model()
    for change in (trained, rebuilt):
        change(model)
        change(other)
        own = attributed(model)
        assert np.abs(own - last).max() > 1e-3
        np.testing.assert_allclose(own, attributed(other), atol=1e-5)
        last = own
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_the_base_is_remembered_until_a_weight_changes():
    model = explain_check.image_model()
    background = np.random.default_rng(3).normal(size=(20, 8, 8, 2)).astype("float32")
    subject = subject_of(model, None, background, None, kind="image")
    raw = subject.check(explain_check.rows()[0])
    calls = []

    def check(subject, background):
        found = expected_gradients(subject, raw, np.array([0, 1, 2]), clock=Clock(), samples=50)
        expected = subject.predict({"image": background}).mean(axis=0)
        np.testing.assert_allclose(found.base, expected, atol=1e-6)
        np.testing.assert_allclose(total(found), subject.predict(raw)[range(3), range(3)], atol=1e-6)
        calls.append(found.calls)
        return expected

    first = check(subject, background)
    check(subject, background)
    assert calls[-1] == 3 * 51  # gradients alone
    check(subject_of(model, None, background[:10], None, kind="image"), background[:10])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.train_on_batch(background, np.full((20, 3), 4.0, "float32"))
    assert np.abs(check(subject, background) - first).max() > 1e-3
    assert calls[-1] == 3 * 51 + 20
    bias = model.get_layer("logits").bias
    bias.assign(bias + np.array([0.01, 0, 0], "float32"))
    second = check(subject, background)
    bias.assign(bias - np.array([0.01, 0, 0], "float32"))
    third = check(subject, background)
    assert np.abs(third - second).max() > 1e-4
    model.get_layer("first").activation = keras.activations.tanh
    model.make_predict_function(force=True)
    assert np.abs(check(subject, background) - third).max() > 1e-4


def test_deep_is_the_rescale_rule_on_a_small_network():
    inputs = keras.Input((2,), name="inputs")
    hidden = layers.Dense(2, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, layers.Dense(1, name="logits")(hidden))
    kernel, bias, last = np.array([[1.0, -2.0], [3.0, 1.0]]), np.array([0.5, 1.0]), np.array([[2.0], [-1.0]])
    model.set_weights([kernel, bias, last, np.array([0.25])])
    x, start = np.array([[1.0, 2.0]]), np.array([[0.0, -1.0]])
    subject = subject_of(model, None, {"numbers": start.astype("float32")}, None, kind="table")
    found = deep(subject, subject.check(x), np.array([0]), clock=Clock())
    before, after = start @ kernel + bias, x @ kernel + bias
    slope = (np.maximum(after, 0) - np.maximum(before, 0)) / (after - before)
    expected = (x - start) * ((slope * last.T) @ kernel.T)
    np.testing.assert_allclose(found.values, expected, rtol=1e-5)
    np.testing.assert_allclose(total(found), subject.predict(subject.check(x))[:, 0], rtol=1e-5)


def mixed(kind):
    """A model with a layer on which gradients alone do not add up."""
    image = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", activation="relu")(image)
    if kind == "depthwise":
        x = layers.Activation("relu6")(layers.DepthwiseConv2D(3)(x))
    elif kind == "normalised":
        x = layers.LayerNormalization()(layers.BatchNormalization()(x))
    elif kind == "excited":
        gate = layers.Dense(6, activation="sigmoid")(layers.GlobalAveragePooling2D()(x))
        x = layers.Multiply()([x, layers.Reshape((1, 1, 6))(gate)])
    elif kind == "operations":
        x = ops.silu(x) * ops.tanh(x)
    elif kind == "pooled":
        x = layers.MaxPooling2D(2)(x)
    elif kind == "recurrent":
        x = layers.LSTM(5, return_sequences=True)(layers.Reshape((36, 6))(x))
        return explain_check.weighted(keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling1D()(x))))
    elif kind == "nested":
        inner = keras.Sequential([keras.Input((6, 6, 6)), layers.Conv2D(4, 3, activation="swish"), layers.ReLU()])
        x = inner(x)
    return explain_check.weighted(keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))), scale=3)


@pytest.mark.parametrize("kind", ["depthwise", "normalised", "excited", "operations", "pooled", "recurrent", "nested"])
def test_deep_adds_up_through_any_layer(kind):
    random = np.random.default_rng(0)
    background = random.normal(size=(3, 6, 6, 3)).astype("float32")
    subject = subject_of(mixed(kind), None, background, None, kind="image")
    raw = subject.check(random.normal(size=(2, 6, 6, 3)).astype("float32"))
    answers = subject.predict(raw)
    found = deep(subject, raw, answers.argmax(axis=1), clock=Clock())
    change = np.abs(answers.max(axis=1) - found.base).max()
    assert change > 0.005
    assert np.abs(total(found) - answers.max(axis=1)).max() < 1e-3
    assert found.settings["background_rows"] == 3 and found.complete


@pytest.mark.parametrize("method", ADDING)
def test_tokens_are_explained_from_their_embeddings(method):
    model = explain_check.token_model()
    subject = subject_of(model, None, None, None, kind="text")
    raw = subject.check(explain_check.rows()[1])
    answers = subject.predict(raw)
    found = method(subject, raw, np.array([0, 1, 2]), clock=Clock())
    assert found.values.shape == (3, 6) and (found.values[0, 4:] == 0).all()  # padding stays padding
    assert np.abs(found.values[:, :4]).max() > 0.01
    np.testing.assert_allclose(total(found), answers[range(3), range(3)], atol=2e-3)
    assert "call" not in vars(model.get_layer("embedding"))  # the model is as it was
    np.testing.assert_array_equal(subject.predict(raw), answers)


def test_calibrated_probabilities_are_what_is_explained():
    step = ImagePreprocess(8, 8, (100.0,), (50.0,))
    model = registry.get("logistic_regression", input_shape=(8, 8, 1), classes=3)
    explain_check.weighted(model, scale=3)
    image = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    for calibration in (Calibration("temperature", (0.4,)), Calibration("platt", (0.5, 2.0, 1.0), (0.1, 0.0, -0.3))):
        subject = subject_of(model, Signature("image-classification", ("a", "b", "c"), step, calibration=calibration), None, None)  # fmt: skip
        raw = subject.check(image)
        found = integrated_gradients(subject, raw, np.array([1, 2]), clock=Clock())
        assert found.settings["unit"] == "answer" and found.prediction is None
        np.testing.assert_allclose(total(found), subject.predict(raw)[[0, 1], [1, 2]], atol=1e-3)


def test_what_has_no_gradients_is_refused():
    predictor = of_function(lambda x: x[:, :2], "table", background=np.zeros((1, 3), np.float32), name="rules")
    with pytest.raises(ValueError, match="deep looks into a Keras model, and 'rules' has only its answers"):
        deep(predictor, predictor.check(np.zeros((1, 3))), np.array([0]), clock=Clock())
    tokens = keras.Input((4,), dtype="int32", name="tokens")
    hot = layers.Flatten()(layers.CategoryEncoding(5, output_mode="one_hot")(tokens))
    subject = subject_of(keras.Model(tokens, layers.Dense(2)(hot), name="hot"), None, None, None, kind="text")
    with pytest.raises(ValueError, match=r"no keras\.layers\.Embedding of 'hot' reads its input 0 of int"):
        integrated_gradients(subject, subject.check(np.ones((1, 4), "int32")), np.array([0]), clock=Clock())


def test_a_background_of_another_shape_is_refused(images):
    subject, _ = images
    with pytest.raises(ValueError, match=r"background rows in the shape of the explained ones, \(6, 6, 2\), got \(8, 8, 2\)"):  # fmt: skip
        image = keras.Input((None, None, 2))
        model = keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(image)))
        other = subject_of(model, None, subject.references["image"], None, kind="image")
        expected_gradients(other, other.check(np.zeros((1, 6, 6, 2), "float32")), np.array([0]), clock=Clock())


def test_a_layer_is_changed_for_its_own_thread_alone():
    layer = layers.ReLU()
    seen = []
    with changed({layer: lambda call, x: call(x) + 5}):
        worker = threading.Thread(target=lambda: seen.append(float(layer(ops.ones(1))[0])))
        worker.start()
        worker.join()
        seen.append(float(layer(ops.ones(1))[0]))
    seen.append(float(layer(ops.ones(1))[0]))
    assert seen == [1, 6, 1] and "call" not in vars(layer)


def test_both_backends_explain_alike(tmp_path):
    backend = "jax" if keras.backend.backend() == "tensorflow" else "tensorflow"
    python(explain_check.__file__, "explained", tmp_path / "found.npz", backend=backend)
    ours = explain_check.explained()
    with np.load(tmp_path / "found.npz") as theirs:
        assert str(theirs["backend"]) == backend and set(theirs.files) == {*ours, "backend"}
        for name, values in ours.items():
            np.testing.assert_allclose(theirs[name], values, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_deep_agrees_with_shap_where_shap_works(tmp_path):
    python(explain_check.__file__, "shap_deep", tmp_path / "shap.npz")  # it changes TensorFlow for the whole process
    with np.load(tmp_path / "shap.npz") as theirs:
        expected = theirs["values"]
    images, background = explain_check.rows()[0], explain_check.references()
    model = explain_check.relu_model()
    subject = of_function(lambda x: keras.ops.convert_to_numpy(model(x)), "image", background=background)
    subject = dataclasses.replace(subject, model=model)
    for target in range(3):
        found = deep(subject, {"image": images}, np.full(3, target), clock=Clock())
        np.testing.assert_allclose(found.values, expected[..., target], atol=1e-4)
