"""A network and attacks on it that find the same on both backends; test_on_jax.py compares them."""

import keras
import numpy as np

import zoo
from zoo import data, recipes
from zoo.data.signature import ImagePreprocess, Signature
from zoo.evaluate import attacks
from zoo.training import fit

SIGNATURE = Signature("image-classification", ("a", "b", "c"), ImagePreprocess(6, 6, (90.0, 120.0), (40.0, 60.0)))


def network():
    """A convolutional network whose weights no backend draws."""
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(4, 3, activation="gelu")(inputs)
    x = keras.layers.BatchNormalization()(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    random = np.random.default_rng(0)
    model.set_weights([np.abs(random.normal(0, 0.3, weight.shape)) if "variance" in weight.path
                       else random.normal(0, 0.3, weight.shape) for weight in model.weights])  # fmt: skip
    return model


def rows():
    """Images with the classes that the network gives them."""
    x = {"image": np.random.default_rng(1).integers(0, 256, (40, 6, 6, 2)).astype(np.uint8)}
    return x, np.asarray(network().predict_on_batch(SIGNATURE.inputs(x))).argmax(axis=1)


def found():
    """Losses after each attack, and those of training on attacked rows."""
    x, y = rows()
    losses = {}
    for norm, epsilon in (("linf", 12.0), ("l2", 60.0)):
        attack = attacks.Attacker(network(), SIGNATURE, norm)
        for method in attacks.WHITE_BOX:
            losses[f"{method} {norm}"] = attack(x, y, method, epsilon, steps=5).after.tolist()
    digits = data.load("digits")
    model = zoo.get("mlp", input_shape=(8, 8, 1), classes=10, width=(32,), dropout=0.0)
    random = np.random.default_rng(2)
    model.set_weights([random.normal(0, 0.15, weight.shape) for weight in model.get_weights()])
    recipe = recipes.Recipe("mlp", "digits", epochs=3, learning_rate=3e-3, adversarial="pgd:16:3")
    history = fit(model, digits, recipe, quiet=True)
    return {"backend": keras.backend.backend(), "trained": [row["loss"] for row in history], **losses}
