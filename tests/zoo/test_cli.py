"""The commands as a user types them; what a user can cause never ends in a traceback."""

import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from zoo.cli import main

ZOO = str(Path(sys.executable).with_name("zoo"))


def typed(*arguments, folder=None):
    """A command in a process of its own."""
    return subprocess.run([ZOO, *arguments], cwd=folder, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture
def zoo(monkeypatch, capsys):
    """The same in this process, which has loaded already what commands load."""
    for name, module in list(sys.modules.items()):
        if name.startswith("zoo.") and hasattr(module, "quiet_backend"):  # it takes the standard error of its process
            monkeypatch.setattr(module, "quiet_backend", lambda: None)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments, folder=None):
        if folder:
            monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["zoo", *arguments])
        capsys.readouterr()
        with warnings.catch_warnings(), pytest.raises(SystemExit) as end:
            warnings.simplefilter("default")  # commands print them
            main()
        said, code = capsys.readouterr(), end.value.code
        return SimpleNamespace(
            returncode=1 if isinstance(code, str) else code or 0,
            stdout=said.out,
            stderr=said.err + (code if isinstance(code, str) else ""),
        )

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    done = typed(
        "train", "mlp", "--data", "wine", "--epochs", "15", "--set", "width=(16,)", "--out", "run", folder=folder
    )
    assert done.returncode == 0, done.stderr
    assert "accuracy on" in done.stdout and "baseline" in done.stdout
    return folder


def test_road_on_a_table(trained, zoo):
    for arguments, expected in (
        (("evaluate", "run"), "accuracy on"),
        (("compress", "run", "--channels", "0.5", "--epochs", "3", "--out", "small", "-q"), "on test rows"),
        (("changes", "run", "small", "--rows", "2", "--out", "changes", "-q"), "rank correlation of Shapley values"),
        (("export", "small", "store/wine/1"), "bundle in"),
        (("evaluate", "store/wine/1", "--data", "wine", "--json"), '"accuracy"'),
        (("explain", "store/wine/1", "--rows", "2", "--out", "why.png"), "additivity error"),
    ):
        done = zoo(*arguments, folder=trained)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        assert expected in done.stdout, arguments
    assert (trained / "changes/changes.png").stat().st_size > 10_000
    assert '"per_class"' in (trained / "changes/changes.json").read_text()
    assert (trained / "why.png").stat().st_size > 10_000
    row = ("--row", '{"alcohol": 13.1}', "--label", "class_2", "--out", "row.png")
    done = zoo("explain", "store/wine/1", *row, folder=trained)
    assert done.returncode == 0 and "row 0: class_2" in done.stdout
    assert "not sent, so taken as missing: malic_acid" in done.stdout
    done = zoo("explain", "store/wine/1", "--row", '{"alcool": 13.1}', folder=trained)
    assert done.returncode == 1 and "Did you mean 'alcohol'" in done.stderr
    done = zoo("evaluate", "store/wine/1", "--data", "iris", folder=trained)
    assert done.returncode == 1 and "the model was trained for the labels" in done.stderr


def test_export_writes_the_forms_asked_for(trained, zoo):
    asked = ("--float16", "--weight-bits", "8", "--edge", "--precision", "fp16", "--max-drop", "0.1")
    done = zoo("export", "run", "store/forms/1", *asked, folder=trained)
    assert done.returncode == 0, done.stderr
    for file in ("model.onnx", "model.fp16.onnx", "model.int8.ort", "model.tflite"):
        assert f"\n{file} " in f"\n{done.stdout}" and (trained / "store/forms/1" / file).is_file()
    replay = subprocess.run(
        [sys.executable, "store/forms/1/run.py"], cwd=trained, capture_output=True, text=True, check=False
    )
    assert replay.returncode == 0 and "model.fp16.onnx, fp16" in replay.stdout
    done = zoo("export", "run", "--onnx", "alone.onnx", folder=trained)
    assert done.returncode == 0 and "alone.onnx" in done.stdout and (trained / "alone.onnx").is_file()
    for arguments, message in (
        (("run",), "give a version folder such as store/digits/1, or --onnx model.onnx"),
        (("run", "store/forms/1"), "the next free one is"),
        (("run", "store/forms/2", "--weight-bits", "3"), "weight_bits must be 8 or 4, got 3"),
        (("run", "store/forms/2", "--precision", "fp8"), "no precision is called 'fp8'"),
    ):
        done = zoo("export", *arguments, folder=trained)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in (trained / "store/forms").iterdir()] == ["1"]


def test_show_lists_what_set_takes(zoo):
    told = zoo("show", "mlp").stdout
    for part in ("dropout=0.3", "learning_rate=0.002", "cosine", "mixed_bfloat16"):
        assert part in told
    assert max(map(len, told.partition("trained on")[2].splitlines())) <= 80


@pytest.mark.parametrize(("name", "shown"), [("lenet", {"scaling"}), ("lstm", {"task", "horizon", "tokenizer"})])
def test_show_leaves_out_settings_for_other_inputs(name, shown, zoo):
    found = {line.strip().partition("=")[0] for line in zoo("show", name).stdout.splitlines() if "=" in line}
    assert found & {"scaling", "task", "horizon", "tokenizer"} == shown


@pytest.mark.parametrize(
    "command",
    [
        "names",
        "show",
        "train",
        "evaluate",
        "compress",
        "changes",
        "export",
        "explain",
        "segment",
        "zero-shot",
        "paint",
        "serve",
        "demo",
        "data",
    ],
)
def test_help_teaches(command, zoo):
    done = zoo(command, "--help")
    assert done.returncode == 0
    assert len(done.stdout) > 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "resnt18"), "Did you mean 'resnet18'"),
        (("names", "zzz*"), "no model matches 'zzz*'"),
        (("train", "mlp", "--data", "digts"), "Did you mean 'digits'"),
        (("train", "mlp", "--data", "digits", "--set", "epochs"), "--set takes KEY=VALUE"),
        (("train", "mlp", "--data", "digits", "--set", "learning_rat=1"), "Did you mean 'learning_rate'"),
        (("train", "mlp", "--data", "digits", "--out", "/proc/run"), "/proc/run: no such file or directory"),
        (("data", "digits", "--input-shape", "big"), "--input-shape takes height,width,channels"),
        (("evaluate", "nowhere"), "nowhere is neither a run folder nor a bundle"),
        (("explain", "nowhere", "--row", "{}", "--image", "a.png"), "give one of them"),
        (("export", "nowhere", "store/a/1"), "holds no finished run"),
        (("explain", "nowhere"), "is not a bundle"),
        (
            ("compress", "nowhere", "--out", "a"),
            "give one of --channels, --zeros, --macs, --bits, --student, or a budget",
        ),
        (("compress", "nowhere", "--out", "a", "--bits", "8", "--max-ms", "1"), "leave out --bits"),
        (("changes", "nowhere", "elsewhere"), "is not a bundle"),
        (("changes", "nowhere", "elsewhere", "--precisions", "int8"), "takes two names with a comma"),
        (("segment", "nowhere", "a.png"), "there is no picture a.png; name a file or a folder"),
        (("serve", "nowhere"), "nowhere"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message, tmp_path, zoo):
    done = zoo(*arguments, folder=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.startswith("error: ")


def test_a_mistake_ends_its_process_in_one_line(tmp_path):
    done = typed("evaluate", "nowhere", folder=tmp_path)
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: nowhere is neither a run folder nor a bundle")


def test_names_load_nothing_heavy():
    code = "import sys, zoo.cli; sys.argv=['zoo','names']\ntry: zoo.cli.main()\nexcept SystemExit: pass\nprint('heavy', 'keras' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "heavy False False"
