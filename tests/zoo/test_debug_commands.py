"""`zoo debug` and `zoo ablate` as a user types them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from zoo.cli import app


@pytest.fixture
def zoo(monkeypatch):
    """Runs a command in this process; what TensorFlow writes to the terminal is left alone."""
    for name in ("debug", "ablate"):
        monkeypatch.setattr(f"zoo.commands.{name}.quiet_backend", lambda: None)
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


COMMANDS = [
    (("overfit", "logistic_regression", "--data", "wine"), "by heart", ["overfit"]),
    (("gradients", "mlp", "--data", "wine", "--set", "width=(5,)"), "agree within", ["gradients"]),
    (("flow", "mlp", "--data", "wine", "--steps", 4), "spread well", ["flow"]),
    (("activations", "mlp", "--data", "wine", "--rows", 50), "mlp over 50 rows", ["activations", "histograms"]),
    (("leakage", "wine"), "nothing leaks", ["leakage"]),
    (("labels", "wine"), "labels look wrong", ["labels"]),
]


@pytest.mark.parametrize(("arguments", "said", "pictures"), COMMANDS, ids=[case[0][0] for case in COMMANDS])
def test_tools_print_and_write_what_they_found(zoo, arguments, said, pictures, tmp_path):
    done = zoo("debug", *arguments, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert said in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{arguments[0]}.json", *(f"{name}.png" for name in pictures),
    }  # fmt: skip
    assert "findings" in json.loads((tmp_path / "out" / f"{arguments[0]}.json").read_text())


def test_strict_ends_with_status_1_where_something_is_found(zoo, tmp_path):
    rows = "\n".join(f"{row * 37 % 101},{row % 2},{'yes' if row % 2 else 'no'}" for row in range(80))
    (tmp_path / "told.csv").write_text(f"a,told,target\n{rows}\n")
    arguments = ("debug", "leakage", tmp_path / "told.csv", "--json")
    done = zoo(*arguments)
    assert done.exit_code == 0 and json.loads(done.stdout)["findings"][0]["where"] == "column 'told'"
    assert zoo(*arguments, "--strict").exit_code == 1


def test_ablate_makes_a_table(zoo, tmp_path):
    out = tmp_path / "out"
    done = zoo(
        "ablate", "mlp", "--data", "wine", "--drop", "weight_decay", "--set", "width=(4,) dropout=0.5",
        "--base", "width=(8,)", "--epochs", 1, "--seeds", 1, "--out", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "no weight_decay" in done.stdout and "width=(4,) dropout=0.5" in done.stdout and "3/3" in done.stdout
    plan = json.loads((out / "plan.json").read_text())
    assert plan["variants"]["width=(4,) dropout=0.5"] == {"width": [4], "dropout": 0.5} and plan["base"]["width"] == [8]


def test_mistakes_end_in_one_line(tmp_path):
    command = str(Path(sys.executable).with_name("zoo"))
    for arguments, expected in (
        (("debug", "overfit", "mpl", "--data", "wine"), "Did you mean"),
        (("debug", "leakage", "wien"), "no data set is called 'wien'"),
        (("ablate", "mlp", "--data", "wine"), "an ablation needs a variant"),
    ):
        done = subprocess.run(
            [command, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 1 and expected in done.stderr and "Traceback" not in done.stderr, done.stderr
