import json
import math
import time

import keras
import numpy as np
import pytest
from misbehaving import Same

from zoo import registry
from zoo.data.signature import Signature, TablePreprocess
from zoo.explain import apart, explain


@pytest.fixture
def model():
    return keras.Sequential([keras.Input((2,)), Same(), keras.layers.Dense(1)])


ROWS = np.array([[5, 6], [1, 2]], np.float32)


@pytest.mark.parametrize(("asked", "how"), [("abort", "signal 6"), ("exit", "status 3")])
def test_a_crash_is_told_and_stays_there(model, asked, how, monkeypatch):
    monkeypatch.setenv("MISBEHAVE", asked)
    with pytest.raises(RuntimeError, match=f"the process that explains died with {how}; this one goes on"):
        apart.explain(model, ROWS, kind="table")


def test_a_process_that_hangs_is_stopped(model, monkeypatch):
    monkeypatch.setenv("MISBEHAVE", "hang")
    started = time.perf_counter()
    with pytest.raises(TimeoutError, match=r"took longer than 0\.5 seconds in its process and was stopped"):
        apart.explain(model, ROWS, kind="table", at_most=0.5)
    assert time.perf_counter() - started < 60
    with pytest.raises(ValueError, match="at_most must be above 0 seconds, got at_most=0"):
        apart.explain(model, ROWS, kind="table", at_most=0)


def test_an_error_comes_back(model, monkeypatch):
    monkeypatch.setenv("MISBEHAVE", "fail")
    with pytest.raises(RuntimeError, match=r"(?s)ZeroDivisionError: .*so it was asked for"):
        apart.explain(model, ROWS, kind="table", background=ROWS)


def test_arguments_arrive_as_they_were_sent():
    sent = {
        "numbers": np.array([[np.nan, np.inf, 1e-7]], np.float32),
        "texts": np.array([["a", "ß"]], object),
        "list": [1, "b", None, (True, 2.5)],
        "number": np.float64(0.1),
    }
    arrays = {}
    got = apart._unpacked(json.loads(json.dumps(apart._packed(sent, arrays))), arrays)
    np.testing.assert_array_equal(got["numbers"], sent["numbers"])
    assert got["numbers"].dtype == np.float32 and got["texts"].tolist() == [["a", "ß"]]
    assert got["list"] == [1, "b", None, [True, 2.5]] and got["number"] == 0.1
    with pytest.raises(TypeError, match="a function cannot be taken to another process"):
        apart._packed({"progress": lambda done, total: None}, {})


def test_a_function_cannot_be_explained_apart():
    with pytest.raises(TypeError, match="a builtin_function_or_method cannot be taken to another process"):
        apart.explain(math.sqrt, np.zeros((1, 3)), kind="table")


def test_an_explanation_is_the_same_from_another_process():
    step = TablePreprocess(("a", "b"), (1.0, 2.0), (2.0, 4.0))
    signature = Signature("regression", ("price",), step, target_mean=100.0, target_std=10.0)
    model = registry.get("mlp", input_shape=(2,), classes=1, width=(4,))
    rows = np.array([[5, 6], [np.nan, 2]], np.float32)
    options = dict(signature=signature, method="integrated_gradients", seed=3)
    ours, theirs = explain(model, rows, **options), apart.explain(model, rows, **options)
    np.testing.assert_allclose(theirs.attributions, ours.attributions, atol=1e-5)
    assert (theirs.method, theirs.name, theirs.background_sha256) == (ours.method, ours.name, ours.background_sha256)
    with pytest.raises(ValueError, match="no method 'integrate_gradients'"):
        apart.explain(model, rows, signature=signature, method="integrate_gradients")
