"""Who may load whom (docs/design.md), seen in fresh interpreters and in the sources."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

HEAVY = "keras tensorflow jax torch shap flask onnx onnxruntime sklearn matplotlib pyarrow PIL"
LIMITS = {
    "zoo": f"numpy {HEAVY}",
    "zoo.registry": f"numpy zoo.data serve export {HEAVY}",
    "zoo.recipes": f"numpy zoo.data serve export {HEAVY}",
    "zoo.cli": f"numpy {HEAVY}",
    "zoo.compress": f"numpy {HEAVY}",
    "zoo.data": f"serve export {HEAVY}",
    "zoo.explain": f"serve export {HEAVY}",
    "serve.manifest": f"numpy zoo export {HEAVY}",
    "serve.times": f"zoo export {HEAVY}",
    "serve.settings": f"numpy typer pydantic zoo export {HEAVY}",
    "serve.app": "keras tensorflow jax torch shap onnx sklearn matplotlib zoo export",
    "export": f"numpy {HEAVY}",
    "zoo.architectures.resnet": "export serve zoo.data zoo.training flask onnx shap",
    "zoo.training": "export serve flask onnx onnxruntime shap",
    "zoo.evaluate": "export serve flask onnx onnxruntime shap",
    "export.bundle": "flask shap",
}


def test_tasks_judge_without_keras():
    code = (
        "from zoo import tasks; import sys; [tasks.get(name) for name in tasks._FILES]; print('keras' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize("module", LIMITS)
def test_importing_loads_no_more_than_allowed(module):
    code = f"import {module}, sys; print(*[m for m in {LIMITS[module].split()} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout.strip() == ""


def imported(path):
    """Dotted names that a file imports anywhere, `from a import b` as `a.b`."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name, packages):
    return any(f"{name}.".startswith(f"{package}.") for package in packages.split())


RULES = [  # files, files that are excepted, what they may not import, what of that they may
    (
        "zoo/**",
        "zoo/cli.py zoo/commands zoo/demo.py zoo/matrix.py zoo/explain zoo/evaluate zoo/compress/budget.py "
        "zoo/generation.py zoo/painting.py zoo/data/series.py",
        "export serve flask",
        "",
    ),
    ("zoo/data/series", "", "export serve flask", "serve.times"),
    ("zoo/compress/budget", "", "serve flask", ""),
    ("zoo/explain/*", "", "export serve flask", "serve.manifest"),
    (
        "zoo/evaluate/*",
        "",
        "export serve flask",
        "serve.manifest serve.runtime serve.session serve.generation serve.beam_search serve.times",
    ),
    ("export/*", "", "flask serve", "serve.manifest serve.session serve.drift serve.generation serve.painting"),
    ("serve/*", "", "zoo export keras tensorflow torch jax", ""),
    ("zoo/data/*", "", "keras tensorflow jax torch zoo", "zoo.data zoo.machine zoo.registry"),
]


@pytest.mark.parametrize(("files", "excepted", "forbidden", "allowed"), RULES, ids=[rule[0] for rule in RULES])
def test_sources_import_no_more_than_allowed(files, excepted, forbidden, allowed):
    found = [path.relative_to(ROOT).as_posix() for path in ROOT.glob(f"{files.replace('**', '**/*')}.py")]
    found = [path for path in found if not path.startswith(tuple(excepted.split()))]
    assert found
    for path in found:
        assert [n for n in imported(path) if within(n, forbidden) and not within(n, allowed)] == [], path


@pytest.mark.parametrize(
    "path", [*(ROOT / "zoo" / "architectures").glob("*.py"), *(ROOT / "zoo" / "layers").glob("*.py")]
)
def test_architectures_and_layers_import_keras_and_the_registry_alone(path):
    for name in imported(path.relative_to(ROOT)):
        root = name.partition(".")[0]
        assert within(name, "keras zoo.registry zoo.layers") or root in sys.stdlib_module_names, name
