"""What is marked `also_jax` holds on JAX too: those tests once more, all in one process of that backend."""

import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest
import robustness_check
from processes import python

FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What JAX finds, and what pytest said there."""
    pytest.importorskip("jax")
    folder = tmp_path_factory.mktemp("jax")
    files = [file for file in sorted(FOLDER.glob("test_*.py")) if "mark.also_jax" in file.read_text(encoding="utf-8")]
    return folder, python(FOLDER / "on_jax.py", folder, *files, backend="jax")


@pytest.mark.also_jax
def test_the_backend_is_the_one_asked_for():
    assert keras.backend.backend() == os.environ.get("KERAS_BACKEND", "tensorflow")


def test_what_is_marked_passes(told):
    assert " passed" in told[1] and "failed" not in told[1]


def test_attacks_find_the_same(told):
    here, there = robustness_check.found(), json.loads((told[0] / "attacks.json").read_text())
    assert there.pop("backend") == "jax" and here.pop("backend") == "tensorflow"
    trained = [found.pop("trained") for found in (here, there)]
    for name, values in here.items():
        np.testing.assert_allclose(there[name], values, rtol=1e-5, atol=1e-5, err_msg=name)
    for losses in trained:  # random starts differ between the backends
        assert losses[-1] < 0.8 * losses[0]
    np.testing.assert_allclose(*trained, rtol=0.1)
