"""What test_explain_gradients.py compares between backends and with shap; as a script it writes one function's arrays."""

import sys

import keras
import numpy as np
from keras import layers

from zoo.explain import activations, deep, gradients
from zoo.explain.clock import Clock
from zoo.explain.sources import subject_of

METHODS = {
    "gradient_times_input": gradients.gradient_times_input,
    "integrated_gradients": gradients.integrated_gradients,
    "expected_gradients": gradients.expected_gradients,
    "deep": deep.deep,
    "grad_cam": activations.grad_cam,
    "cam": activations.cam,
    "attention_rollout": activations.attention_rollout,
}


def image_model():
    image = keras.Input((8, 8, 2), name="image")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="first")(image)
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.Conv2D(5, 3, padding="same", activation="gelu", name="second")(x)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    return weighted(keras.Model(image, layers.Dense(3, name="logits")(x), name="images"))


def token_model():
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    x = layers.Embedding(11, 4, mask_zero=True, name="embedding")(tokens)
    x = layers.Add(name="sum")([x, layers.MultiHeadAttention(2, 3, name="attention")(x, x)])
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.GlobalAveragePooling1D(name="features")(x)
    return weighted(keras.Model(tokens, layers.Dense(3, name="logits")(x), name="tokens"))


def weighted(model, scale=1.0):
    """The model with weights that are the same on every backend."""
    random = np.random.default_rng(1)
    for variable in model.weights:
        values = random.normal(size=variable.shape) / np.sqrt(max(np.prod(variable.shape[:-1]), 1))
        variable.assign(values + ("gamma" in variable.name or "variance" in variable.name) * 2.0 if len(variable.shape) < 2 else scale * values)  # fmt: skip
    return model


def rows(count=3):
    random = np.random.default_rng(2)
    images = random.normal(size=(count, 8, 8, 2)).astype("float32")
    tokens = random.integers(1, 11, (count, 6)).astype("int32")
    tokens[0, 4:] = 0
    return images, tokens


def references():
    return np.random.default_rng(3).normal(size=(4, 8, 8, 2)).astype("float32")


def explained():
    """Name of model and method -> attributions."""
    images, tokens = rows()
    subjects = [
        (subject_of(image_model(), None, references(), None, kind="image"), images, list(METHODS)[:-1]),
        (subject_of(token_model(), None, None, None, kind="text"), tokens, [*list(METHODS)[:4], "attention_rollout"]),
    ]
    found = {}
    for subject, x, methods in subjects:
        raw = subject.check(x)
        for name in methods:
            found[f"{subject.name}/{name}"] = METHODS[name](subject, raw, np.array([0, 1, 2]), clock=Clock()).values
    return found


def relu_model():
    image = keras.Input((8, 8, 2))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(image)
    x = layers.Flatten()(layers.Conv2D(3, 3, strides=2, activation="relu")(x))
    return weighted(keras.Model(image, layers.Dense(3)(layers.Dense(5, activation="relu")(x))))


def shap_deep():
    """Contributions to the three logits, (batch, height, width, channels, 3), by shap's DeepExplainer."""
    import shap

    return {"values": np.asarray(shap.DeepExplainer(relu_model(), references()).shap_values(rows()[0]))}


if __name__ == "__main__":
    name, path = sys.argv[1:]
    np.savez(path, backend=keras.backend.backend(), **globals()[name]())
