"""Both backends train every model, and a killed run goes on exactly; one process per backend."""

import json
from pathlib import Path

import numpy as np
import pytest
from processes import python

BACKENDS = ("tensorflow", "jax")


@pytest.fixture(scope="module", params=BACKENDS)
def report(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    python(Path(__file__).with_name("backend_check.py"), folder, backend=request.param, timeout=1500)
    found = json.loads((folder / "report.json").read_text())
    assert found["backend"] == request.param
    return found


def test_every_model_trains(report):
    for name, losses in report["losses"].items():
        assert np.isfinite(losses).all(), name
        assert losses[-1] < losses[0], f"{name} did not learn: {losses}"


@pytest.mark.slow  # minutes of compilation on JAX
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_detector_trains(backend, tmp_path):
    script = Path(__file__).with_name("backend_check.py")
    told = python(script, tmp_path, "detectors", backend=backend, timeout=1200)
    found = json.loads(told.splitlines()[-1])
    assert len(found) >= 2
    for name, losses in found.items():
        assert np.isfinite(losses).all() and losses[-1] < losses[0], f"{name} did not learn: {losses}"


@pytest.mark.parametrize("settings", ["resume", "accumulated"])
def test_a_killed_run_goes_on_exactly(report, settings):
    assert report[settings]["gap"] == 0
    for figure in ("losses", "accuracies"):  # also of the epoch that was cut in two
        whole, again = report[settings][figure]
        assert whole == again
    assert whole[-1] > whole[0]  # it learns


def test_pictures_in_files_train_as_those_in_memory(report):
    assert report["pictures"]["gap"] == 0
    assert report["pictures"]["losses"][-1] < 0.8 * report["pictures"]["losses"][0]


def test_a_killed_run_goes_on_exactly_while_parts_begin_to_learn(report):
    assert report["let_go"] == [0, 0]


def test_the_gradient_passes_what_is_rounded(report):
    assert report["straight_through"] < 1e-4


def test_models_learn_under_rounding_and_from_a_teacher(report):
    found = report["compressed"]
    assert found["quantized"] > found["teacher"] - 0.1 > 0.7
    assert found["losses"][-1] < 0.8 * found["losses"][0]


def test_gradients_prune_to_a_target(report):
    assert 0.35 < report["pruned"] <= 0.5
