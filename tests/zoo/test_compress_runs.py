"""Shrinking a run: a new run folder beside the old one."""

import dataclasses

import numpy as np
import pytest
from stopping import Stop
from typer.testing import CliRunner

import zoo
from zoo.cli import app
from zoo.compress import compressed_bytes, shrink, sparsity
from zoo.training import tune


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return zoo.train(
        "mlp", data="iris", out=tmp_path_factory.mktemp("runs") / "full", epochs=2, width=(12, 8), quiet=True
    )


def test_channels_shrink_the_model_and_leave_the_run_as_it_was(run, tmp_path):
    before = run.model.get_weights()
    small = shrink(run, tmp_path / "small", channels=0.5, epochs=1, quiet=True)
    assert [small.model.get_layer(name).units for name in ("hidden0", "hidden1", "logits")] == [6, 4, 3]
    loaded = zoo.load(tmp_path / "small")
    x = run.signature.inputs(run.data.test.x)
    np.testing.assert_allclose(loaded.model(x), small.model(x), rtol=1e-6)
    assert loaded.metrics["test"] == small.metrics["test"]
    for old, new in zip(before, run.model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_zeros_reach_the_share_and_leave_the_run_as_it_was(run, tmp_path):
    small = shrink(run, tmp_path / "sparse", zeros=0.5, epochs=2, quiet=True)
    rows = {row.layer: row for row in sparsity(small.model)}
    assert rows["hidden0"].zeros + rows["hidden1"].zeros == (4 * 12 + 12 * 8) / 2
    assert rows["logits"].zeros == 0
    assert sparsity(zoo.load(tmp_path / "sparse").model) == sparsity(small.model)
    assert sparsity(run.model)[-1].zeros == 0


def test_zeros_are_reported_as_what_they_are(run, tmp_path, capsys):
    small = shrink(run, tmp_path / "sparse", zeros=0.9, epochs=1)
    told = capsys.readouterr().out
    before, after = compressed_bytes(run.model), compressed_bytes(small.model)
    assert f"{after:,} compressed" in told and f"{before:,} compressed before" in told
    assert "zeros shrink the compressed file alone: memory and latency stay" in told
    stored = zoo.load(tmp_path / "sparse").metrics
    assert stored == small.metrics
    assert (stored["compressed_bytes"], stored["compressed_bytes_before"]) == (after, before) and after < before
    assert stored["zeros"] == sparsity(small.model)[-1].share


def test_the_command_line_says_what_zeros_are_worth(run, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DEBUG", "1")  # leaves the standard error of this process alone
    asked = ["compress", str(run.folder), "--zeros", "0.5", "--epochs", "1", "--out", str(tmp_path / "zeros"), "-q"]
    told = CliRunner().invoke(app, asked, catch_exceptions=False).stdout.splitlines()
    assert "compressed before" in told[0] and "latency stay as they were" in told[1]
    assert f"({run.metrics['test']:.4f} before)" in told[2]


@pytest.mark.parametrize("arguments", [{"macs": 0.5}, {"macs": 70, "importance": "taylor"}, {"channels": 0.4}])
def test_steps_end_where_one_step_does(run, tmp_path, arguments):
    small = shrink(run, tmp_path / "small", steps=2, epochs=3, quiet=True, **arguments)
    if "macs" in arguments:
        target = arguments["macs"] if arguments["macs"] > 1 else arguments["macs"] * zoo.compress.macs(run.model)
        assert 0.7 * target < zoo.compress.macs(small.model) <= target
    else:
        assert [small.model.get_layer(name).units for name in ("hidden0", "hidden1")] == [7, 5]
    assert len(small.history) == 2  # the last of 1 + 2 epochs
    assert zoo.load(tmp_path / "small").metrics["test"] == small.metrics["test"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0.5, "steps": 3, "epochs": 2}, "at most epochs=2"),
        ({"channels": 0.5, "steps": 0}, "got steps=0"),
        ({"zeros": 0.5, "steps": 2}, "1 for zeros"),
        ({"macs": 0.0001}, "cannot reach"),
    ],
)
def test_wrong_steps_and_targets_leave_no_folder(run, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        shrink(run, tmp_path / "wrong", quiet=True, **arguments)
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("arguments", [{"channels": 0.4}, {"zeros": 0.5}, {"macs": 0.5, "steps": 2}])
def test_a_killed_run_goes_on_as_if_it_had_never_stopped(run, tmp_path, monkeypatch, arguments):
    options = dict(epochs=4 if "steps" in arguments else 3, quiet=True, **arguments)
    killed = 5  # batches, of which an epoch has 4
    whole = shrink(run, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr(
            "zoo.compress.runs.tune", lambda *a, callbacks=(), **k: tune(*a, callbacks=(*callbacks, Stop(killed)), **k)
        )
        with pytest.raises(KeyboardInterrupt):
            shrink(run, tmp_path / "killed", **options)
    with pytest.raises(FileExistsError, match="resume it, overwrite it, or choose another folder"):
        shrink(run, tmp_path / "killed", **options)
    again = shrink(run, tmp_path / "killed", resume=True, **options)
    assert len(again.history) == len(whole.history)
    for one, other in zip(whole.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_taken_folder_is_refused_before_any_work(run, tmp_path, monkeypatch):
    taken, steps = tmp_path / "taken", dict(channels=0.5, steps=2, epochs=2, quiet=True)
    first = shrink(run, taken, **steps)
    files = {path.name: path.read_bytes() for path in taken.iterdir()}
    own = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    (tmp_path / "file").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr("zoo.compress.runs.fit", lambda *_, **__: pytest.fail("trained"))
        patch.setattr("zoo.compress.runs.prune_channels", lambda *_, **__: pytest.fail("pruned"))
        for out, options, error, message in (
            (taken, {}, FileExistsError, "is not empty; overwrite it, or choose another folder"),
            (taken, {"resume": True}, ValueError, "is finished, there is nothing to resume"),
            (tmp_path / "none", {"resume": True}, ValueError, "there is no run to resume in"),
            (tmp_path / "file", {"overwrite": True}, NotADirectoryError, "is a file"),
            (run.folder, {"overwrite": True}, ValueError, "holds the run itself, which stays as it is"),
        ):
            with pytest.raises(error, match=message):
                shrink(run, out, **steps, **options)
    assert files == {path.name: path.read_bytes() for path in taken.iterdir()}
    assert own == {path.name: path.read_bytes() for path in run.folder.iterdir()}
    assert not (tmp_path / "none").exists() and (tmp_path / "file").read_text() == "mine"
    second = shrink(run, taken, **{**steps, "channels": 0.25}, overwrite=True)
    assert second.model.count_params() > first.model.count_params()
    assert zoo.load(taken).model.count_params() == second.model.count_params()


def test_a_run_that_was_never_trained_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="never trained"):
        shrink(dataclasses.replace(run, history=[]), tmp_path / "wrong", channels=0.5)


@pytest.mark.parametrize("arguments", [{}, {"channels": 0.5, "zeros": 0.5}, {"macs": 0.5, "channels": 0.5}])
def test_one_of_the_two_is_needed(run, tmp_path, arguments):
    with pytest.raises(ValueError, match="takes either channels or macs or zeros"):
        shrink(run, tmp_path / "none", **arguments)


@pytest.mark.parametrize("arguments", [{"channels": 1.0}, {"zeros": 1.5}])
def test_a_share_out_of_range_leaves_no_folder(run, tmp_path, arguments):
    with pytest.raises(ValueError, match="must be a share"):
        shrink(run, tmp_path / "wrong", **arguments)
    assert not (tmp_path / "wrong").exists()


def test_the_package_gives_the_verb_each_time():
    assert callable(zoo.compress.shrink) and callable(zoo.compress.shrink)
    with pytest.raises(AttributeError, match="no attribute 'prune'; it has prune_channels"):
        zoo.compress.prune  # noqa: B018 the access is the test
