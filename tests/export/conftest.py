import keras
import numpy as np
import pytest

import zoo.data
from zoo import registry
from zoo.data import Data, Rows, from_rows


def fit(name: str, data: Data, epochs: int, **arguments) -> keras.Model:
    """A small model of the zoo, trained just enough to be better than chance."""
    keras.utils.set_random_seed(0)
    signature = data.signature
    model = registry.get(name, input_shape=signature.preprocess.shape, classes=signature.outputs, **arguments)
    regression = signature.task == "regression"
    loss = "mse" if regression else keras.losses.CategoricalCrossentropy(from_logits=True)
    targets = signature.targets(data.train.y)
    model.compile("adam", loss, jit_compile=False)
    y = targets if regression else np.eye(signature.outputs)[targets]
    model.fit(signature.inputs(data.train.x), y, batch_size=32, epochs=epochs, verbose=0)
    return model


@pytest.fixture(scope="session")
def digits() -> Data:
    return zoo.data.load("digits")


@pytest.fixture(scope="session")
def lenet(digits) -> keras.Model:
    return fit("lenet", digits, epochs=6)


@pytest.fixture(scope="session")
def perceptron_of_mixed(mixed) -> keras.Model:
    """Its matrices are large enough to be stored in few bits."""
    return fit("mlp", mixed, epochs=3, width=(96, 64))


@pytest.fixture(scope="session")
def mixed() -> Data:
    """A table with missing numbers and two text columns, one value of which decides the class."""
    random = np.random.default_rng(0)
    numbers = random.normal([10, -3], [5, 0.1], (300, 2)).astype(np.float32)
    numbers[random.random((300, 2)) < 0.1] = np.nan
    categories = np.stack([random.choice(["red", "green", ""], 300), random.choice(["a", "b", "c"], 300)], axis=1)
    y = ((np.nan_to_num(numbers[:, 0], nan=10) > 10) ^ (categories[:, 0] == "red")).astype(np.int64)
    rows = Rows(
        name="mixed",
        x={"numbers": numbers, "categories": categories},
        y=y,
        task="classification",
        labels=("no", "yes"),
        source="drawn at random",
        licence="none needed",
        numbers=("height", "depth"),
        categories=("colour", "kind"),
        generated=True,
    )
    return from_rows(rows)
