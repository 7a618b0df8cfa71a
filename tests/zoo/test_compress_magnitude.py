"""Magnitude pruning: zeros as many as scheduled, held through training on both backends."""

import keras
import numpy as np
import pytest
from keras import layers

import zoo
from zoo.compress import MagnitudePruning, compressed_bytes, sparsity

ROWS = 32


def network():
    image = keras.Input((6, 6, 1), name="image")
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.Dense(20, "relu", name="hidden")(layers.Flatten()(x))
    return keras.Model(image, layers.Dense(3, name="logits")(x))


def data():
    generator = np.random.default_rng(0)
    return generator.normal(size=(ROWS, 6, 6, 1)).astype("float32"), generator.integers(0, 3, ROWS)


class Watch(keras.callbacks.Callback):
    """Zeros in all prunable kernels after each batch, and whether a zero ever came back."""

    def on_train_begin(self, logs=None):
        self.zeros = []
        self.came_back = False
        self.before = None

    def on_train_batch_end(self, batch, logs=None):
        now = np.concatenate(
            [np.asarray(self.model.get_layer(name).kernel).ravel() == 0 for name in ("conv", "hidden")]
        )
        if self.before is not None and np.any(self.before & ~now):
            self.came_back = True
        self.before = now
        self.zeros.append(now.mean())


def train(pruning, epochs=4, eager=True, optimizer="adam", model=None, **compile_arguments):
    """Train for epochs of 4 steps each; the zeros after each step and the history."""
    model = model or network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, run_eagerly=eager, **compile_arguments)
    watch = Watch()
    x, y = data()
    history = model.fit(x, y, batch_size=ROWS // 4, epochs=epochs, verbose=0, callbacks=[pruning, watch])
    return model, watch, history.history


@pytest.mark.also_jax
def test_zeros_hold():
    """The whole promise, compiled."""
    model, watch, history = train(MagnitudePruning(0.6, every=1), eager=False)
    kernels = {row.layer: row for row in sparsity(model)}
    pruned, size = kernels["conv"].zeros + kernels["hidden"].zeros, kernels["conv"].weights + kernels["hidden"].weights
    assert abs(pruned / size - 0.6) < 1 / size, pruned / size
    assert watch.zeros == sorted(watch.zeros) and watch.zeros[-1] > 0.59, watch.zeros
    assert not watch.came_back
    assert history["sparsity"][-1] == 0.6 and history["sparsity"] == sorted(history["sparsity"])
    assert kernels["logits"].zeros == kernels["depthwise"].zeros == 0


def test_schedules():
    polynomial = MagnitudePruning(0.8, begin_epoch=2, end_epoch=10)
    linear = MagnitudePruning(0.8, schedule="linear", begin_epoch=2, end_epoch=10)
    shot = MagnitudePruning(0.8, schedule="one-shot", begin_epoch=2)
    for pruning in (polynomial, linear, shot):
        assert pruning.share(1.9, 20) == 0
        assert pruning.share(10, 20) == pruning.share(19, 20) == 0.8
    # Zhu & Gupta, equation 1: s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3 with s_i = 0
    assert polynomial.share(6, 20) == pytest.approx(0.8 - 0.8 * (1 - 4 / 8) ** 3)
    assert linear.share(6, 20) == pytest.approx(0.4)
    assert shot.share(2, 20) == 0.8
    assert MagnitudePruning(0.8).share(15, 20) == 0.8 > MagnitudePruning(0.8).share(14.9, 20)


def test_one_shot_prunes_before_the_first_step_and_a_late_start_waits():
    _, watch, _ = train(MagnitudePruning(0.5, schedule="one-shot"), epochs=1)
    assert min(watch.zeros) == max(watch.zeros) == pytest.approx(0.5, abs=0.01)
    _, watch, _ = train(MagnitudePruning(0.5, schedule="one-shot", begin_epoch=1.5), epochs=2)
    assert watch.zeros[:5] == [0] * 5
    assert watch.zeros[5:] == [pytest.approx(0.5, abs=0.01)] * 3


def test_masks_are_chosen_every_so_many_steps():
    _, watch, _ = train(MagnitudePruning(0.6, schedule="linear", end_epoch=4, every=4), epochs=4)
    assert len(set(watch.zeros)) == 5  # 0, and once an epoch


def test_the_smallest_weights_go():
    model = network()
    before = np.abs(model.get_layer("hidden").kernel.numpy())
    train(MagnitudePruning(0.3, schedule="one-shot", layers=["hid*"]), epochs=1, model=model)
    gone = model.get_layer("hidden").kernel.numpy() == 0
    assert gone.mean() == pytest.approx(0.3, abs=0.01)
    assert before[gone].max() <= before[~gone].min()


def test_scope_layer_takes_the_same_share_everywhere_and_global_does_not():
    def shares(scope):
        model = network()
        kernel = model.get_layer("conv").kernel
        kernel.assign(kernel * 100)
        train(MagnitudePruning(0.5, schedule="one-shot", scope=scope), epochs=1, model=model)
        return [row.share for row in sparsity(model) if row.layer in ("conv", "hidden")]

    assert shares("layer") == [0.5, 0.5]
    assert shares("global")[0] < 0.1


def test_head_and_depthwise_are_pruned_when_named():
    model, _, _ = train(MagnitudePruning(0.5, scope="layer", layers=("logits", "depthwise")), epochs=1)
    assert {row.layer for row in sparsity(model)[:-1] if row.zeros} == {"logits", "depthwise"}


def test_zeros_survive_a_moving_average_of_weights():
    optimizer = keras.optimizers.Adam(0.01, use_ema=True)
    model, _, _ = train(MagnitudePruning(0.5), optimizer=optimizer)
    kernels = {row.layer: row for row in sparsity(model)}
    assert (
        kernels["hidden"].zeros + kernels["conv"].zeros
        >= 0.5 * (kernels["hidden"].weights + kernels["conv"].weights) - 1
    )


def test_zeros_are_there_after_executions_of_several_steps():
    _, watch, _ = train(MagnitudePruning(0.5), eager=False, steps_per_execution=4)
    assert watch.zeros[-1] == pytest.approx(0.5, abs=0.01)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # how Keras learns the length
def test_data_of_unknown_length_prunes_from_the_second_epoch_on():
    tensorflow = pytest.importorskip("tensorflow")
    rows = tensorflow.data.Dataset.from_tensor_slices(data()).filter(lambda *_: True).batch(8)
    model = network()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    history = model.fit(rows, epochs=4, shuffle=False, verbose=0, callbacks=[MagnitudePruning(0.5)]).history["sparsity"]
    assert history[0] == 0
    assert 0 < history[1] < history[3] == 0.5


def test_the_model_stays_an_ordinary_one_and_compresses(tmp_path):
    model, _, _ = train(MagnitudePruning(0.9, schedule="one-shot"), epochs=1)
    plain = network()
    assert [weight.shape for weight in model.weights] == [weight.shape for weight in plain.weights]
    assert compressed_bytes(model) < 0.6 * compressed_bytes(plain)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert sparsity(loaded) == sparsity(model)


def test_training_again_keeps_what_is_zero():
    model, _, _ = train(MagnitudePruning(0.5, schedule="one-shot"), epochs=1)
    before = model.get_layer("hidden").kernel.numpy() == 0
    train(MagnitudePruning(0.7, schedule="one-shot"), epochs=1, model=model)
    assert np.all(model.get_layer("hidden").kernel.numpy()[before] == 0)


def test_nested_models_are_pruned_and_reported():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="inside")])
    inputs = keras.Input((4,))
    model = keras.Model(inputs, inner(inputs))
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(np.ones((2, 4)), np.ones((2, 4)), verbose=0, callbacks=[MagnitudePruning(0.5, schedule="one-shot")])
    assert [tuple(row) for row in sparsity(model)] == [("inside", 16, 8, 0.5), ("total", 16, 8, 0.5)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 1.0}, r"target must be a share in \(0, 1\), got target=1.0"),
        ({"target": 0}, "got target=0"),
        ({"schedule": "cubic"}, "polynomial, linear, constant, one-shot, got 'cubic'"),
        ({"scope": "model"}, "'global' or 'layer', got 'model'"),
        ({"begin_epoch": -1}, "got begin_epoch=-1"),
        ({"begin_epoch": 5, "end_epoch": 2}, "begin_epoch=5, end_epoch=2"),
        ({"every": 0}, "got every=0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MagnitudePruning(**arguments)


def test_layers_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match=r"'hiden' matches no layer .* has conv, depthwise, hidden, logits"):
        train(MagnitudePruning(0.5, layers=["hiden"]), epochs=1)


def test_a_model_with_nothing_to_prune_is_refused():
    with pytest.raises(ValueError, match="no convolution or dense layer besides 'logits'"):
        train(MagnitudePruning(0.5), epochs=1, model=zoo.get("logistic_regression", input_shape=(6, 6, 1), classes=3))
