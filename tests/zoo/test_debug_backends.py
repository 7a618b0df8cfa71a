"""The tools that take gradients work on every backend."""

import keras
import pytest
from keras import layers, ops

from zoo.evaluate.debugging import activations, check_gradients, flow, overfit

pytestmark = pytest.mark.also_jax


class Deaf(layers.Layer):
    """Passes its input on and no gradient back."""

    def call(self, x):
        return ops.stop_gradient(x)


class Bent(layers.Layer):
    """The value of x * scale, with half of the gradient for the scale."""

    def build(self, shape):
        self.scale = self.add_weight((shape[-1],), "ones", name="scale")

    def call(self, x):
        held = ops.stop_gradient(self.scale + 0.0)
        return x * (0.5 * self.scale + 0.5 * held)


def planted(*hidden):
    x = start = keras.Input((4,), name="inputs")
    for layer in hidden:
        x = layer(x)
    return keras.Model(start, layers.Dense(3, name="logits")(x), name="planted")


def deaf():
    return planted(layers.Dense(5, name="first"), Deaf(name="deaf"))


def test_a_sound_model_agrees_in_float64():
    found = check_gradients("mlp", "iris", width=(6,), rows=2, directions=2)
    assert found.precision == "float64" and not found.findings
    assert max(row.own for row in found.layers if row.own == row.own) < 1e-6
    assert keras.config.floatx() == "float32"


def test_planted_mistakes_are_found_in_their_layer():
    bent = planted(layers.Dense(5, activation="tanh", name="first"), Bent(name="bent"))
    (finding,) = check_gradients(bent, "iris", rows=2).findings  # one and no other
    assert str(finding).startswith("bent: the gradient of its scale is wrong by 0.5")
    (finding,) = check_gradients(deaf(), "iris", rows=2, directions=2).findings
    assert finding.where == "deaf"


def test_training_tools_run():
    assert overfit("mlp", "iris", width=(16,), dropout=0.5).reached
    assert flow("mlp", "iris", steps=3, dropout=0.2).findings == ()
    assert len(activations("mlp", "iris", rows=20).layers) >= 4
    silent = [str(finding) for finding in flow(deaf(), "iris", steps=3).findings]
    assert any(finding.startswith("first/kernel, first/bias: no gradient") for finding in silent)
