import io
import json
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from processes import python

import zoo
from serve.manifest import MANIFEST, Manifest, Port, Precision, read, seal
from zoo.explain import examples, explain, methods, players, shapley
from zoo.explain.clock import Clock
from zoo.explain.subject import Subject


def write_bundle(folder, nodes, constants, inputs, output, background, **facts):
    """A sealed bundle around a graph written by hand, without Keras."""
    folder.mkdir(parents=True)
    kinds = {"UINT8": TensorProto.UINT8, "FP32": TensorProto.FLOAT, "BYTES": TensorProto.STRING}
    edges = [
        [helper.make_tensor_value_info(p.name, kinds[p.dtype], ["batch", *p.shape[1:]]) for p in ports]
        for ports in (inputs, (output,))
    ]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 2)]
    graph = helper.make_graph(nodes, "graph", *edges, stored)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "model.onnx")
    np.savez(folder / "background.npz", **{f"input/{name}": values for name, values in background.items()})
    manifest = Manifest(
        name=folder.parent.name,
        version=folder.name,
        architecture="by hand",
        inputs=inputs,
        outputs=(output,),
        metric="r2",
        precisions={"fp32": Precision("model.onnx", 1, 0.0)},
        **facts,
    )
    (folder / MANIFEST).write_text(manifest.to_json())
    seal(folder)
    return read(folder)


@pytest.fixture
def linear(tmp_path):
    """value = 2 a - 3 b + 0.5 c, and a background whose means are 1, -2 and 4."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((40, 3))
    background = (rows - rows.mean(axis=0) + [1, -2, 4]).astype(np.float32)
    numbers = Port("numbers", "FP32", (-1, 3), ("batch", "columns"), columns=("a", "b", "c"))
    return write_bundle(
        tmp_path / "store" / "line" / "1",
        [helper.make_node("MatMul", ["numbers", "weight"], ["value"])],
        {"weight": np.array([[2], [-3], [0.5]], np.float32)},
        (numbers,),
        Port("value", "FP32", (-1, 1), ("batch", "targets")),
        {"numbers": background},
        task="regression",
        kind="table",
        labels=("price",),
    )


@pytest.mark.parametrize("method", ["exact", "permutation"])
def test_a_linear_model_gives_weight_times_distance_from_the_mean(linear, method):
    found = explain(linear, np.array([[3, 0, 4], [1, -2, 10]], np.float32), method)
    np.testing.assert_allclose(found.attributions, [[4, -6, 0], [0, 0, 3]], atol=1e-4)
    np.testing.assert_allclose(found.base, [2 * 1 + 3 * 2 + 0.5 * 4] * 2, atol=1e-4)
    np.testing.assert_allclose(found.prediction, [8, 13], atol=1e-4)
    assert found.additivity_error < 1e-4 and found.axes == ("batch", "columns") and found.label(0) == "price"


@pytest.fixture
def colours(tmp_path):
    """Probability from one number and one text column that matter together, and a text column that does not matter."""
    numbers = Port("numbers", "FP32", (-1, 1), ("batch", "columns"), columns=("age",))
    categories = Port("categories", "BYTES", (-1, 2), ("batch", "columns"), columns=("colour", "noise"))
    nodes = [
        helper.make_node("Gather", ["categories", "first"], ["colour"], axis=1),
        helper.make_node(
            "LabelEncoder", ["colour"], ["red"], domain="ai.onnx.ml",
            keys_strings=["red"], values_floats=[1.0], default_float=0.0,
        ),
        helper.make_node("Mul", ["numbers", "red"], ["score"]),
        helper.make_node("Neg", ["score"], ["other"]),
        helper.make_node("Concat", ["other", "score"], ["logits"], axis=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]  # fmt: skip
    background = {
        "numbers": np.array([[0], [1], [-1], [2]], np.float32),
        "categories": np.array([["red", "x"], ["blue", "y"], ["", "x"], ["red", "y"]]),
    }
    return write_bundle(
        tmp_path / "store" / "colours" / "1",
        nodes,
        {"first": np.array([0])},
        (numbers, categories),
        Port("probabilities", "FP32", (-1, 2), ("batch", "classes")),
        background,
        task="classification",
        kind="table",
        labels=("no", "yes"),
    )


ROW = {"numbers": np.array([[1.5]], np.float32), "categories": np.array([["red", "x"]])}


def by_definition(bundle, row, target):
    """Shapley values from all orders of the columns, each averaged over the background: an independent reference."""
    from itertools import permutations

    import onnxruntime

    live = onnxruntime.InferenceSession(bundle.model(), providers=["CPUExecutionProvider"])
    with np.load(bundle.folder / "background.npz") as arrays:
        background = {name[6:]: arrays[name].astype(object) for name in arrays.files}

    def value(present):
        numbers, categories = background["numbers"].copy(), background["categories"].copy()
        for column in present:
            if column == 0:
                numbers[:] = row["numbers"]
            else:
                categories[:, column - 1] = row["categories"][0, column - 1]
        [answers] = live.run(None, {"numbers": numbers.astype(np.float32), "categories": categories})
        return answers[:, target].mean()

    totals, orders = np.zeros(3), list(permutations(range(3)))
    for order in orders:
        for place, column in enumerate(order):
            totals[column] += value(order[: place + 1]) - value(order[:place])
    return totals / len(orders)


def test_text_columns_are_whole_columns_and_exact_is_the_definition(colours):
    found = explain(colours, ROW)
    assert found.method == "exact" and found.label(0) == "yes" and "3 columns have only 8 coalitions" in found.why
    np.testing.assert_allclose(found.attributions[0], by_definition(colours, ROW, 1), atol=1e-6)
    assert found.attributions[0, 2] == pytest.approx(0, abs=1e-9) and found.columns == ("age", "colour", "noise")
    assert abs(found.attributions[0, :2]).min() > 0.05
    assert found.calls == 1 + 8 * 4
    against = explain(colours, ROW, target="no")
    np.testing.assert_allclose(against.attributions, -found.attributions, atol=1e-6)


def subject(shape, predict, background):
    return Subject(
        "made up", "image", "image-classification", ("no", "yes"), shape, (), (), predict, background, "given"
    )


def table(columns, predict, background):
    names = tuple(f"c{i}" for i in range(columns))
    return Subject("made up", "table", "regression", ("y",), (), names, (), predict, {"numbers": background}, "given")


def curved(raw):
    x = raw["numbers"].astype(np.float64)
    return (np.tanh(x[:, 0] * x[:, 1]) + x[:, 2] * np.abs(x[:, 3]) + x[:, 4] ** 2)[:, None]


def test_enumeration_agrees_with_shap():
    shap = pytest.importorskip("shap")
    random = np.random.default_rng(3)
    background, row = (
        random.standard_normal((20, 5)).astype(np.float32),
        random.standard_normal((1, 5)).astype(np.float32),
    )
    game = players.game(table(5, curved, background), {"numbers": row}, 0, 32)
    found = shapley.exact(game, max_evals=None, seed=0, clock=Clock())
    masker = shap.maskers.Independent(background, max_samples=100)
    theirs = shap.explainers.Exact(lambda x: curved({"numbers": x})[:, 0], masker)(row)
    np.testing.assert_allclose(found.values, theirs.values[0], atol=1e-6)
    assert found.base == pytest.approx(float(theirs.base_values[0]))


def test_permutation_comes_near_the_exact_values():
    random = np.random.default_rng(4)
    background, row = (
        random.standard_normal((20, 5)).astype(np.float32),
        random.standard_normal((1, 5)).astype(np.float32),
    )
    both = []
    for method, evals in (("exact", None), ("permutation", 200 * 11)):
        game = players.game(table(5, curved, background), {"numbers": row}, 0, 2200)
        solve = methods.METHODS[method].function
        both.append(solve(game, max_evals=evals, seed=0, clock=Clock()).values)
    np.testing.assert_allclose(both[1], both[0], atol=0.1)
    assert np.abs(both[0]).max() > 0.5


def corner(raw):
    """How bright the top left quarter is, squashed to a probability."""
    image = raw["image"]
    side = image.shape[1] // 4
    bright = image[:, :side, :side].astype(np.float64).mean(axis=(1, 2, 3)) / 255
    return np.stack([1 - bright, bright], axis=1)


@pytest.mark.parametrize(
    ("side", "channels", "method"), [(8, 1, "permutation"), (28, 1, "partition"), (96, 3, "partition")]
)
def test_images_of_any_size_point_at_the_pixels_that_count(side, channels, method):
    image = np.random.default_rng(0).integers(60, 255, (side, side, channels), dtype=np.uint8)
    seen = subject((side, side, channels), corner, {"image": np.zeros((1, side, side, channels), np.uint8)})
    assert methods.choose("auto", seen, {"image": image[None]})[0] == method
    game = players.game(seen, {"image": image[None]}, 1, 500)
    found = methods.METHODS[method].function(game, max_evals=None, seed=0, clock=Clock())
    values = game.spread(found.values)
    assert values.shape == image.shape and found.base == 0
    assert values.sum() == pytest.approx(corner({"image": image[None]})[0, 1], abs=1e-6)
    quarter = side // 4
    assert values[:quarter, :quarter].sum() == pytest.approx(values.sum(), rel=0.15)
    if method == "permutation":  # the game is additive, so the answer is known for each pixel
        np.testing.assert_allclose(values[:2, :2, 0], image[:2, :2, 0] / 255 / 4, atol=1e-6)
        assert np.abs(values[2:]).max() < 1e-9


def test_a_model_that_answers_nan_is_not_explained(linear):
    with pytest.raises(ValueError, match="'line' answers NaN or infinity for row 1; there is nothing to explain"):
        explain(linear, np.array([[0, 0, 0], [np.nan, 0, 0]], np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(method="permutaton"), "no method 'permutaton' for table inputs.*Did you mean 'permutation'"),
        (dict(method="partition"), "no method 'partition' for table inputs; methods are auto, exact, permutation"),
        (dict(target="cost"), "no label 'cost'; labels are price"),
        (dict(target=3), "index from 0 to 0, got 3"),
        (dict(method="permutation", max_evals=1), "max_evals must be at least 2"),
        (dict(method="exact", max_evals=3), "exact needs 8 evaluations"),
        (
            dict(background={"numbers": np.zeros((2, 4))}),
            r"background does not fit: .*must be \(batch, 3\), got \(2, 4\)",
        ),
        (dict(precision="int8"), "no precision 'int8'"),
    ],
)
def test_wrong_options(linear, options, message):
    with pytest.raises(ValueError, match=message):
        explain(linear, np.zeros((1, 3)), **options)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 4)), r"input 'numbers' of 'line' must be \(batch, 3\), got \(2, 4\)"),
        (np.zeros((0, 3)), "at least one, got {'numbers': 0}"),
        ({"image": np.zeros((1, 3))}, "takes the inputs 'numbers', got 'image'"),
        (np.array([["a", "b", "c"]]), "must be numbers, got <U1"),
        (np.array([[np.inf, 0, 0]]), "holds infinity; a missing number is NaN"),
    ],
)
def test_wrong_inputs(linear, x, message):
    with pytest.raises(ValueError, match=message):
        explain(linear, x)


def test_wrong_images_and_texts(colours):
    with pytest.raises(ValueError, match="takes numbers and categories; give"):
        explain(colours, np.zeros((1, 1)))
    with pytest.raises(ValueError, match="'categories' of 'colours' must be text"):
        explain(colours, {**ROW, "categories": np.zeros((1, 2))})
    with pytest.raises(ValueError, match="same number of rows"):
        explain(colours, {**ROW, "numbers": np.zeros((2, 1))})
    seen = subject((8, 8, 1), corner, {"image": np.zeros((1, 8, 8, 1), np.uint8)})
    with pytest.raises(ValueError, match=r"must be uint8 pixels, 0 … 255, got float64"):
        seen.check(np.zeros((1, 8, 8, 1)))
    with pytest.raises(TypeError, match=r"an object cannot be explained; give .* a Keras model with signature="):
        explain(object(), np.zeros((1, 1)))
    with pytest.raises(
        ValueError, match="one of a bundle's forms, got precision='int8' for a builtin_function_or_method; leave"
    ):
        explain(len, np.zeros((1, 1)), kind="table", precision="int8")


def test_exact_has_a_limit():
    many = table(16, curved, np.zeros((1, 16), np.float32))
    row = {"numbers": np.ones((1, 16), np.float32)}
    assert methods.choose("auto", many, row)[0] == "permutation"
    with pytest.raises(ValueError, match="exact takes at most 15 players"):
        explain(many, row, "exact")


def test_a_bundle_without_background_says_so(linear):
    (linear.folder / "background.npz").unlink()
    with pytest.raises(ValueError, match=r"has no background\.npz; export it again, or give the rows yourself"):
        explain(linear, np.zeros((1, 3)))
    assert explain(linear, np.zeros((1, 3)), background={"numbers": np.zeros((1, 3))}).additivity_error < 1e-5


@pytest.mark.parametrize("method", ["exact", "permutation", "kernel"])
def test_shap_is_not_needed(linear, monkeypatch, method):
    monkeypatch.setitem(sys.modules, "shap", None)
    assert explain(linear, np.zeros((1, 3)), method).additivity_error < 1e-5


def test_same_seed_same_values_and_the_callers_generator_is_kept(linear):
    x = np.array([[3, 0, 4]], np.float32)
    np.random.seed(5)
    state = np.random.get_state()[1].copy()
    first, second = (explain(linear, x, "permutation", seed=1).attributions for _ in range(2))
    assert (first == second).all() and (np.random.get_state()[1] == state).all()


def test_text_json_and_pictures(colours, linear, tmp_path):
    found = explain(linear, np.array([[3, 0, 4]], np.float32))
    assert "additivity error" in str(found) and "price 8.0000 = base 10.0000 -2.0000, most by b -6.0000" in str(found)
    content = json.loads(found.to_json())
    assert content["attributions"] == found.attributions.tolist() and content["target"][0]["label"] == "price"
    assert json.loads(found.save(tmp_path / "why.json").read_text()) == content
    assert len(content["background_sha256"]) == 64
    assert content["background_sha256"] != explain(colours, ROW).background_sha256
    buffer = io.BytesIO()
    figure = explain(colours, ROW).plot(buffer)
    assert buffer.getvalue().startswith(b"\x89PNG")
    written = {text.get_text() for text in figure.axes[0].get_yticklabels()}
    assert written == {"colour = red", "age = 1.5", "noise = x"}
    assert "“yes”" in figure.subfigs[0].get_suptitle()


def test_image_picture_shows_image_and_contributions(tmp_path):
    from zoo.explain.explanation import Explanation

    values = np.zeros((1, 8, 8, 1))
    values[0, 2, 3] = 0.5
    found = Explanation(
        name="m", kind="image", task="image-classification", inputs={"image": np.eye(8, dtype=np.uint8)[None, :, :, None]},
        attributions=values, axes=("batch", "height", "width", "channels"), columns=(), labels=("no", "yes"),
        base=np.array([0.25]), prediction=np.array([0.75]), target=np.array([1]), method="permutation", why="asked for",
        settings={}, background_sha256="", additivity_error=0.0, seconds=0.0, calls=1,
    )  # fmt: skip
    figure = found.plot(tmp_path / "why.png")
    assert (tmp_path / "why.png").read_bytes().startswith(b"\x89PNG")
    plain, shares = figure.axes[:2]
    assert plain.get_title(loc="left") == "model says “yes” 75.0%"
    drawn = shares.images[-1].get_array()
    assert drawn[2, 3] == 0.5 and np.count_nonzero(drawn) == 1


def test_a_bundle_is_explained_without_tensorflow(linear, tmp_path):
    code = (
        "import sys, zoo, numpy as np\n"
        f"found = zoo.explain({str(linear.folder)!r}, np.ones((1, 3)), method='permutation')\n"
        "found.plot(sys.argv[1])\n"
        "print(*[name for name in ('tensorflow', 'keras', 'torch', 'jax', 'flask') if name in sys.modules])\n"
    )
    assert python("-c", code, tmp_path / "why.png") == ""
    assert (tmp_path / "why.png").read_bytes().startswith(b"\x89PNG")


def test_example_rows_and_pictures(colours, tmp_path):
    from PIL import Image

    image = Port("image", "UINT8", (-1, 2, 2, 1), ("batch", "height", "width", "channels"))
    answer = Port("value", "FP32", (-1, 1), ("batch", "targets"))
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "flat"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axis"], ["value"]),
    ]
    constants = {"flat": np.array([-1, 4]), "axis": np.array([1])}
    background = {"image": np.zeros((1, 2, 2, 1), np.uint8)}
    facts = dict(task="regression", kind="image", labels=("light",))
    folder = tmp_path / "store" / "light" / "1"
    bundle = write_bundle(folder, nodes, constants, (image,), answer, background, **facts)
    Image.fromarray(np.repeat(np.array([[0, 100], [200, 40]], np.uint8), 2, axis=1)).save(tmp_path / "picture.png")
    raw = examples(bundle, tmp_path / "picture.png")
    assert raw["image"].shape == (1, 2, 2, 1)
    found = explain(bundle, raw)
    np.testing.assert_allclose(found.attributions, raw["image"], atol=1e-4)
    np.savez(folder / "golden.npz", **{"input/image": background["image"], "output/value": np.zeros((1, 1))})
    assert list(examples(bundle, rows=3)) == ["image"]
    with pytest.raises(ValueError, match="'colours' takes no image but a table"):
        examples(colours, tmp_path / "picture.png")
    with pytest.raises(ValueError, match="cannot read the image"):
        examples(bundle, tmp_path / "store")


def test_the_package_is_a_verb(linear):
    assert zoo.explain(linear, np.zeros(3)).attributions.shape == (1, 3)
