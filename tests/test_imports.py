"""Who may load whom (docs/design.md), seen in fresh interpreters."""

import subprocess
import sys

import pytest

HEAVY = "keras tensorflow jax torch shap flask onnx onnxruntime sklearn matplotlib pyarrow PIL"
LIMITS = {
    "zoo": f"numpy {HEAVY}",
    "zoo.registry": f"numpy {HEAVY}",
    "zoo.recipes": f"numpy {HEAVY}",
    "zoo.cli": f"numpy {HEAVY}",
    "zoo.compress": f"numpy {HEAVY}",
    "zoo.data": HEAVY,
    "zoo.explain": "keras tensorflow jax torch shap flask onnx sklearn",
    "serve.manifest": f"numpy {HEAVY}",
    "serve.app": "keras tensorflow jax torch shap onnx sklearn matplotlib",
    "export": f"numpy {HEAVY}",
    "zoo.architectures.resnet": "export serve zoo.data zoo.training flask onnx shap",
    "zoo.training": "export serve flask onnx onnxruntime shap",
    "zoo.evaluate": "export serve flask onnx onnxruntime shap",
    "export.bundle": "flask shap",
}


@pytest.mark.parametrize("module", LIMITS)
def test_importing_loads_no_more_than_allowed(module):
    code = f"import {module}, sys; print(*[m for m in {LIMITS[module].split()} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout.strip() == ""
