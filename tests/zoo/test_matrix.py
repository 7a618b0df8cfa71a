"""The table of every model and stage: figures where a stage ran, reasons where it did not."""

import json
import subprocess

import numpy as np
import pytest

from zoo import matrix

REGRESSION = "logistic_regression"


@pytest.fixture(scope="module")
def row(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matrix")
    return matrix.walk(REGRESSION, folder), folder


def test_each_stage_has_a_figure_or_a_reason(row):
    cells, folder = row
    assert tuple(cells) == matrix.STAGES
    assert {stage: cell.state for stage, cell in cells.items() if cell.state != matrix.DONE} == {
        "prune": matrix.NONE
    }, cells
    assert all(cell.figures and cell.text for cell in cells.values() if cell.state == matrix.DONE)
    assert cells["build"].figures["parameters"] == 15
    assert cells["train"].figures["score"] > 0.9
    assert cells["onnx"].figures["parity"] <= 1e-4 and cells["edge"].figures["difference"] <= 1e-4
    assert cells["serve"].figures["difference"] <= 1e-4
    assert json.loads((folder / "cells.json").read_text())["save"]["figures"] == {"difference": 0.0}


def test_the_page_has_the_reasons_below_the_table(row, tmp_path):
    path = tmp_path / "docs" / "matrix.md"
    matrix.Page.open(path, proven=False).add(REGRESSION, row[0], "today")
    page = path.read_text()
    [line] = [line for line in page.splitlines() if line.startswith(f"| `{REGRESSION}`")]
    assert line.count(" | ") == len(matrix.STAGES) and "*does not apply*" in line and "15 parameters" in line
    assert f"- `{REGRESSION}`, prune: it has no channels between its inputs and its outputs" in page
    assert f"- today: `{REGRESSION}`" in page


def test_a_page_keeps_the_models_that_were_not_run_again(row, tmp_path):
    path = tmp_path / "matrix.md"
    matrix.Page.open(path, proven=False).add(REGRESSION, row[0], "yesterday")
    again = matrix.Page.open(path, proven=False)
    again.add("mlp", {**row[0], "train": matrix.Cell(matrix.DONE, "accuracy 1", {"score": np.float32(1)})}, "today")
    found = matrix.Page.open(path, proven=False)
    assert list(found.rows) == [REGRESSION, "mlp"] and found.rows[REGRESSION] == row[0]
    assert found.measured == {REGRESSION: "yesterday", "mlp": "today"}
    assert found.rows["mlp"]["train"].figures == {"score": 1.0}
    with pytest.raises(ValueError, match="is a page of tiny models; name another one"):
        matrix.Page.open(path, proven=True)


def test_a_stage_that_fails_takes_only_those_along_that_need_it(tmp_path, monkeypatch):
    def fail(self):
        raise ArithmeticError("no luck")

    monkeypatch.setattr(matrix._Road, "train", fail)
    cells = matrix.walk(REGRESSION, tmp_path)
    assert cells["build"].state == matrix.DONE
    assert (cells["train"].state, cells["train"].text) == (matrix.FAILED, "ArithmeticError: no luck")
    assert {cells[stage].state for stage in matrix.STAGES[2:]} == {matrix.NONE}
    assert cells["onnx"].text == "there is no trained model" and cells["serve"].text == "there is no bundle"


def test_a_process_that_hangs_is_ended_and_told_of():
    [(name, cells)] = matrix.matrix(["logistic_regression"], seconds=0.05)
    assert name == REGRESSION
    assert (cells["build"].state, cells["build"].text) == (matrix.FAILED, "it took more than 0.05 s")
    assert cells["serve"].text == "build failed"


def test_a_process_that_a_signal_ends_is_told_of(monkeypatch):
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, -11, "", "no luck")
    )
    [(_, cells)] = matrix.matrix(["logistic_regression"])
    assert cells["build"].text == "its process ended with -11; it said: no luck"


def test_a_misspelt_name_is_told_before_anything_runs():
    with pytest.raises(KeyError, match="Did you mean 'logistic_regression'"):
        next(matrix.matrix(["logistic_regresion"]))
