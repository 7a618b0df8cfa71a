import math
import os
import time

import numpy as np
import pytest

from zoo import registry
from zoo.data.signature import Signature, TablePreprocess
from zoo.explain import apart, explain


def test_a_function_answers_from_another_process():
    assert apart.run("math:hypot", 3.0, 4.0) == 5.0
    assert apart.run("os:getpid") != os.getpid()


def test_a_crash_is_told_and_stays_there():
    with pytest.raises(RuntimeError, match="the process of os:abort died with signal 6; this one goes on"):
        apart.run("os:abort")
    with pytest.raises(RuntimeError, match="the process of os:_exit died with status 3"):
        apart.run("os:_exit", 3)


def test_a_process_that_hangs_is_stopped():
    started = time.perf_counter()
    with pytest.raises(TimeoutError, match=r"time:sleep took longer than 0\.5 seconds in its process and was stopped"):
        apart.run("time:sleep", 600, at_most=0.5)
    assert time.perf_counter() - started < 60
    with pytest.raises(ValueError, match="at_most must be above 0 seconds, got at_most=0"):
        apart.run("time:sleep", 0, at_most=0)


def test_errors_come_back_as_what_they_are():
    with pytest.raises(ValueError, match=r"nonnegative|math domain"):
        apart.run("math:sqrt", -1.0)
    with pytest.raises(RuntimeError, match="operator:truediv failed with ZeroDivisionError: "):
        apart.run("operator:truediv", 1, 0)


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
