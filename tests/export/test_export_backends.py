"""Models of the JAX and PyTorch backends export as those of TensorFlow do; one process per backend."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from backend_export import CHOOSING
from kinds import KINDS

from zoo import registry

pytestmark = pytest.mark.slow
# kinds that Keras computes otherwise on a backend than on the two others, or does not have there
OWN = {
    "jax": set(),
    "torch": {"average_pool1d_same", "resizing_bicubic_free_size", "image_resize_lanczos3", "pad_symmetric", "cross"},
}


@pytest.fixture(scope="module", params=OWN)
def report(request, tmp_path_factory):
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    folder = tmp_path_factory.mktemp(request.param)
    script = Path(__file__).with_name("backend_export.py")
    environment = {**os.environ, "KERAS_BACKEND": request.param, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, script, folder], env=environment, capture_output=True, text=True, timeout=3600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((folder / "report.json").read_text())
    assert found["backend"] == request.param
    return found


def test_every_builder_exports_and_becomes_a_bundle(report):
    for name, found in report["builders"].items():
        assert found["float32"] <= 1e-4, name
        # the file is float32, so they differ by what half precision is worth, which has 3 bits fewer as bfloat16
        for policy, most in (("mixed_float16", 0.05), ("mixed_bfloat16", 0.1)):
            assert name in CHOOSING or found[policy] <= most, (name, policy, found[policy])
        rounded = [] if "int8" in registry.entry(name).skip else ["int8", "model.int8.ort"]
        half = [] if name in CHOOSING else ["fp16"]
        assert {"fp32", "model.ort", *half, *rounded} <= set(found["forms"]), name
        assert report["backend"] in found["versions"]
    assert {"model.tflite", "model.int8.tflite"} <= set(report["builders"]["lenet"]["forms"])


def test_layer_kinds_need_no_tensorflow(report):
    assert set(report["kinds"]) <= OWN[report["backend"]], report["kinds"]
    assert len(KINDS) - len(report["kinds"]) > 300
