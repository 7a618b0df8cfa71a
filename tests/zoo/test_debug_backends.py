"""The tools that take gradients work on JAX as on TensorFlow; in a process of its own."""

import json

import pytest
from processes import python

CODE = """
import json, sys
import keras
from keras import layers, ops
from zoo.evaluate.debugging import activations, check_gradients, flow, overfit

class Deaf(layers.Layer):
    def call(self, x):
        return ops.stop_gradient(x)

class Bent(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight((shape[-1],), "ones", name="scale")

    def call(self, x):
        # the value of x * scale, with half of the gradient for the scale
        held = ops.stop_gradient(self.scale + 0.0)
        return x * (0.5 * self.scale + 0.5 * held)

def planted(*hidden):
    x = start = keras.Input((4,), name="inputs")
    for layer in hidden:
        x = layer(x)
    return keras.Model(start, layers.Dense(3, name="logits")(x), name="planted")

sound = check_gradients("mlp", "iris", width=(6,), rows=2, directions=2)
bent = check_gradients(planted(layers.Dense(5, activation="tanh", name="first"), Bent(name="bent")), "iris", rows=2)
deaf = check_gradients(planted(layers.Dense(5, name="first"), Deaf(name="deaf")), "iris", rows=2, directions=2)
silent = flow(planted(layers.Dense(5, name="first"), Deaf(name="deaf")), "iris", steps=3)
json.dump({
    "backend": keras.backend.backend(),
    "precision": sound.precision,
    "worst": max(row.own for row in sound.layers if row.own == row.own),
    "sound": len(sound.findings),
    "bent": [str(f) for f in bent.findings],
    "deaf": [f.where for f in deaf.findings],
    "floatx": keras.config.floatx(),
    "learnt": overfit("mlp", "iris", width=(16,), dropout=0.5).reached,
    "silent": [str(f) for f in silent.findings],
    "flows": [str(f) for f in flow("mlp", "iris", steps=3, dropout=0.2).findings],
    "dead": len(activations("mlp", "iris", rows=20).layers),
}, open(sys.argv[1], "w"))
"""


@pytest.fixture(scope="module", params=["tensorflow", "jax"])
def found(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("debug") / "found.json"
    python("-c", CODE, path, backend=request.param)
    result = json.loads(path.read_text())
    assert result["backend"] == request.param
    return result


def test_a_sound_model_agrees_in_float64(found):
    assert found["precision"] == "float64" and found["worst"] < 1e-6 and found["sound"] == 0
    assert found["floatx"] == "float32"


def test_planted_mistakes_are_found_in_their_layer(found):
    (finding,) = found["bent"]  # one and no other
    assert finding.startswith("bent: the gradient of its scale is wrong by 0.5")
    assert found["deaf"] == ["deaf"]


def test_training_tools_run(found):
    assert found["learnt"] and found["flows"] == [] and found["dead"] >= 4
    assert any(finding.startswith("first/kernel, first/bias: no gradient") for finding in found["silent"])
