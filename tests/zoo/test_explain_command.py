import json
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from serve.manifest import MANIFEST, Manifest, Port, Precision, seal
from zoo.cli import main
from zoo.explain.explanation import Explanation


def write(folder, nodes, constants, port, output, rows, **facts):
    """A sealed bundle around a graph written by hand, with its background and example rows."""
    folder.mkdir(parents=True)
    kinds = {"UINT8": TensorProto.UINT8, "FP32": TensorProto.FLOAT}
    given, answer = (
        helper.make_tensor_value_info(each.name, kinds[each.dtype], ["batch", *each.shape[1:]])
        for each in (port, output)
    )
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", [given], [answer], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    for file, content in (("background.npz", rows[6:]), ("golden.npz", rows[:6])):
        np.savez(folder / file, **{f"input/{port.name}": content})
    manifest = Manifest(
        name=folder.parent.name,
        version=folder.name,
        architecture="by hand",
        inputs=(port,),
        outputs=(output,),
        precisions={"fp32": Precision("model.onnx", 1, 0.0)},
        **facts,
    )
    (folder / MANIFEST).write_text(manifest.to_json())
    seal(folder)
    return folder


@pytest.fixture
def prices(tmp_path):
    """price = 2 a - 3 b + 0.5 c."""
    return write(
        tmp_path / "prices" / "1",
        [helper.make_node("MatMul", ["numbers", "weight"], ["value"])],
        {"weight": np.array([[2], [-3], [0.5]], np.float32)},
        Port("numbers", "FP32", (-1, 3), ("batch", "columns"), columns=("a", "b", "c")),
        Port("value", "FP32", (-1, 1), ("batch", "targets")),
        np.random.default_rng(0).standard_normal((26, 3)).astype(np.float32),
        task="regression",
        kind="table",
        labels=("price",),
        metric="r2",
        training={"recipe": {"target": "price", "seed": 0}},
    )


@pytest.fixture
def halves(tmp_path):
    """Whether the upper or the lower half of a small picture is brighter."""
    weight = np.zeros((36, 2), np.float32)
    weight[:18, 0] = weight[18:, 1] = 0.002
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    return write(
        tmp_path / "halves" / "1",
        nodes,
        {"weight": weight},
        Port("image", "UINT8", (-1, 6, 6, 1), ("batch", "height", "width", "channels")),
        Port("probabilities", "FP32", (-1, 2), ("batch", "classes")),
        np.random.default_rng(1).integers(0, 256, (12, 6, 6, 1), dtype=np.uint8),
        task="image-classification",
        kind="image",
        labels=("upper", "lower"),
        metric="accuracy",
    )


@pytest.fixture
def zoo(monkeypatch, capsys, tmp_path):
    """Runs the command line in an empty folder and gives what it printed, or how it failed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "zoo.commands.explain.quiet_backend", lambda: None
    )  # it takes over the process's standard error

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["zoo", "explain", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return (printed.out, printed.err) if ended.value.code in (0, None) else str(ended.value.code)

    return run


def test_example_rows_are_explained_and_everything_asked_for_is_written(zoo, prices, tmp_path):
    out, _ = zoo(prices, "--rows", 2, "-o", "why.png", "-o", "why.html", "-o", "why.json", "--style", "waterfall")
    assert "exact (3 columns" in out and out.count(": price") == 2 and "additivity error" in out
    assert [line for line in out.splitlines() if line.startswith("written")] == [
        "written: why.png",
        "written: why.html",
        "written: why.json",
    ]
    assert (tmp_path / "why.png").read_bytes().startswith(b"\x89PNG")
    found = Explanation.from_json((tmp_path / "why.json").read_text())
    with np.load(prices / "background.npz") as background, np.load(prices / "golden.npz") as golden:
        away = golden["input/numbers"][:2] - background["input/numbers"].mean(axis=0)
    np.testing.assert_allclose(found.attributions, away * [2, -3, 0.5], atol=1e-4)
    assert found.answer(1) in (tmp_path / "why.html").read_text()
    assert found.faithfulness["deletion"] < found.faithfulness["insertion"]


def test_a_row_of_ones_own_and_json_alone(zoo, prices, tmp_path):
    out, err = zoo(prices, "--row", '{"a": 1, "b": 2, "c": 0}', "--json", "--no-quality")
    told = json.loads(out)
    assert told["prediction"] == pytest.approx([-4]) and told["faithfulness"] is None
    assert err == "" and list(tmp_path.glob("*.png")) == []
    some = ("--row", '{"a": 1, "c": 0}', "--no-quality", "--method", "exact")
    refused = zoo(prices, *some)  # this model answers NaN to a missing number
    assert "answers NaN or infinity for row 0" in refused


def test_a_picture_of_ones_own_and_a_label(zoo, halves, tmp_path):
    Image.fromarray(np.pad(np.full((3, 6), 255, np.uint8), ((0, 3), (0, 0)))).save(tmp_path / "bright.png")
    out, _ = zoo(halves, "--image", "bright.png", "--label", "lower", "--max-evals", 200)
    assert "row 0: lower 0.00" in out and "written: explanation.png" in out
    by_number, _ = zoo(halves, "--image", "bright.png", "--target", "1", "--max-evals", 200)
    assert "row 0: lower 0.00" in by_number


def test_a_summary_over_example_rows(zoo, halves, tmp_path):
    out, err = zoo(halves, "--summary", "--rows", 6, "-o", "what.png", "-o", "what.json", "--max-evals", 80)
    told = json.loads((tmp_path / "what.json").read_text())
    assert "what counts over 6 rows" in out and err == "" and told["rows"] == 6
    assert sum(mean["rows"] for mean in told["classes"].values()) == 6 and np.shape(told["importance"]) == (6, 6)


def test_a_summary_over_a_data_set_of_ones_own(zoo, prices, tmp_path):
    random = np.random.default_rng(2)
    rows = random.standard_normal((60, 3))
    prices_of = rows @ [2, -3, 0.5]
    lines = [",".join(f"{value:.4f}" for value in (*row, price)) for row, price in zip(rows, prices_of, strict=True)]
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,c,price", *lines]))
    out, _ = zoo(prices, "--summary", "--data", "rows.csv", "--split", "train", "--rows", 20)
    assert "what counts over 20 rows" in out
    names = [line.split()[0] for line in out.splitlines()[1:4]]
    assert names == ["b", "a", "c"] and "written: summary.png" in out
    refused = zoo(prices, "--data", "rows.csv", "--split", "never")
    assert "--split must be one of train, validation, test, got 'never'" in refused


def test_no_time_gives_an_honest_answer(zoo, halves):
    out, _ = zoo(halves, "--rows", 1, "--seconds", 0)
    assert "stopped by the time budget, the best so far" in out
    out, _ = zoo(halves, "--summary", "--rows", 6, "--seconds", 0, "--method", "permutation", "-o", "a.json")
    assert "some rows were cut by the time budget" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--row", "{}", "--image", "a.png"), "give one of them"),
        (("--image", "a.png"), "takes no image"),
        (("--row", "{"), "JSON"),
        (("--target", "cost"), "no label 'cost'; labels are price"),
        (("--target", "{"), "--target is no JSON"),
        (("--method", "magic"), "no method 'magic' for table inputs"),
        (("--method", "grad_cam"), "grad_cam"),
        (("--style", "pie"), "no style 'pie' for table inputs; styles are bar, waterfall"),
        (("-o", "why.gif"), "--output must end in .png, .svg, .pdf, .html or .json, got 'why.gif'"),
        (("-o", "nowhere/why.png"), "there is no folder nowhere to write why.png into"),
        (("--rows", "0"), "--rows must be at least 1, got 0"),
        (("--seconds", "-1"), "seconds must be 0 or more"),
        (("--max-evals", "1"), "evaluations"),
        (("--summary", "--style", "bar"), "leave out --style"),
        (("--precision", "int4"), "no precision 'int4'"),
        (("--data", "nothing.csv"), "nothing.csv"),
    ],
)
def test_mistakes_end_in_one_line(zoo, prices, arguments, message):
    told = zoo(prices, *arguments)
    assert isinstance(told, str) and told.startswith("error: ") and message in told and "Traceback" not in told


def test_what_is_no_model_is_refused(zoo, tmp_path):
    assert "is not a bundle" in zoo(tmp_path)
