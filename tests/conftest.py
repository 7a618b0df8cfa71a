"""Seeds and one quiet, CPU-only environment for every test."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.setdefault("MPLBACKEND", "Agg")

import random

import numpy as np
import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "also_jax: passes on JAX too, where tests/zoo/test_on_jax.py runs it once more")


@pytest.fixture(autouse=True)
def seed():
    random.seed(0)
    np.random.seed(0)  # libraries under test draw from the global state
    import sys

    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(0)
