"""The wheel, installed with the `serve` extra alone in an environment of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
import zipfile
from email import message_from_string
from pathlib import Path

import numpy as np
import pytest

from serve.manifest import seal

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def run(*command, folder):
    """A finished command, away from this environment's modules."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        command, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


def done(*command, folder):
    """Standard output of a command that must succeed."""
    found = run(*command, folder=folder)
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the sources, so that nothing is left beside them and nothing old gets in."""
    folder = tmp_path_factory.mktemp("build")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for package in ("zoo", "export", "serve"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    done(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", ".", "-w", "dist", folder=folder)
    [found] = (folder / "dist").iterdir()
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """`bin` folder of an environment with `zooroad[serve]` and nothing else."""
    folder = tmp_path_factory.mktemp("serve_only")
    done(sys.executable, "-m", "venv", "venv", folder=folder)
    binaries = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    constraints = str(ROOT / "constraints.txt")
    done(binaries / "python", "-m", "pip", "install", "-q", "-c", constraints, f"{wheel}[serve]", folder=folder)
    return binaries


def test_the_wheel_holds_every_file_and_extra(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        facts = message_from_string(archive.read(metadata).decode())
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in ("zoo", "export", "serve")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == sources
    assert {"zoo/py.typed", "export/py.typed", "serve/py.typed", "serve/page/index.html"} <= sources
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(facts.get_all("Provides-Extra")) == set(declared)


def test_serving_installs_no_training_library(installed, tmp_path):
    code = "import importlib.util as u; print(*(n for n in ('keras', 'tensorflow', 'shap', 'jax') if u.find_spec(n)))"
    assert done(installed / "python", "-c", code, folder=tmp_path).split() == []
    assert "resnet18" in done(installed / "zoo", "names", folder=tmp_path).split()
    refused = run(installed / "zoo", "train", "mlp", folder=tmp_path)
    assert refused.returncode == 1
    assert re.search(r"No module named '(keras|matplotlib)'; install all that zoo can use", refused.stderr)


def test_the_server_answers_there(installed, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "serve")
    from small_bundles import write_value

    bundle = write_value(tmp_path / "store")
    np.savez(bundle / "background.npz", **{"input/numbers": np.zeros((1, 2), np.float32)})
    seal(bundle)
    command = [installed / "zoo", "serve", "store", "--port", "0"]
    server = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        told = []
        for line in server.stdout:
            told.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            raise AssertionError("".join(told))

        def ask(path, body=None):
            sent = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(found[0] + path, sent, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()

        row = {"age": 30, "weight": 20}
        assert json.loads(ask("/predict/dose", row))["predictions"] == [{"value": 80.0, "target": "milligram"}]
        assert b"<html" in ask("/") and ask("/page/app.js")
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask("/explain/dose", row)
        with refused.value as answer:
            assert answer.status == 501 and "pip install 'zooroad[explain]'" in json.load(answer)["error"]["message"]
    finally:
        server.terminate()
        assert server.wait(timeout=20) == 0
        server.stdout.close()
