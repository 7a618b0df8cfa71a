import json
import os
import subprocess
import sys

import keras
import numpy as np
import onnx
import pytest

import export
from export import ExportError, convert, parity
from export.lowering.graph import Graph, Value
from export.lowering.walk import lower_model
from zoo import registry
from zoo.data.signature import ImagePreprocess, Signature, TablePreprocess

IMAGES = Signature("image-classification", ("a", "b", "c"), ImagePreprocess(8, 8, (30.0, 90.0, 0.5), (50.0, 7.0, 1.0)))


def shapes(values):
    return {v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in values}


@pytest.mark.parametrize("name", ["perceptron", "logistic_regression", "mlp", "lenet", "resnet50", "resnet50v2"])
def test_own_inputs_to_logits(name, tmp_path):
    model = registry.get(name, **registry.entry(name).tiny)
    for weight in model.weights:  # statistics and biases that a wrong folding would lose
        weight.assign(np.random.default_rng(1).uniform(0.1, 0.9, weight.shape))
    path = export.to_onnx(model, tmp_path / "model.onnx")
    graph = onnx.load(path).graph
    assert shapes(graph.output) == {"logits": ["batch", 3]}
    assert shapes(graph.input) == {model.inputs[0].name: ["batch", *model.inputs[0].shape[1:]]}
    rows = parity.sample(model, None, rows=3, seed=7)
    truth = keras.ops.convert_to_numpy(model(next(iter(rows.values()))))
    found = parity.run(parity.session(path), rows)["logits"]
    np.testing.assert_allclose(found, truth, rtol=1e-4, atol=1e-4)


def test_file_takes_pixels_and_gives_probabilities(tmp_path):
    model = registry.get("resnet50", input_shape=(8, 8, 3), classes=3, depth=(1, 1), width=4)
    path = export.to_onnx(model, tmp_path / "model.onnx", signature=IMAGES)
    proto = onnx.load(path)
    assert proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert shapes(proto.graph.input) == {"image": ["batch", 8, 8, 3]}
    pixels = np.random.default_rng(2).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    scaled = (pixels.astype(np.float32) - IMAGES.preprocess.mean) / IMAGES.preprocess.std
    truth = keras.ops.convert_to_numpy(keras.ops.softmax(model(scaled.astype(np.float32))))
    found = parity.run(parity.session(path), {"image": pixels})["probabilities"]
    np.testing.assert_allclose(found, truth, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def test_table_with_missing_and_unknown_values(mixed, tmp_path):
    model = registry.get("mlp", input_shape=mixed.signature.preprocess.shape, classes=2, width=(5,))
    path = export.to_onnx(model, tmp_path / "model.onnx", signature=mixed.signature)
    raw = {
        "numbers": np.array([[np.nan, -3.1], [12, np.nan], [9, -3]], np.float32),
        "categories": np.array([["red", "b"], ["", "c"], ["violet", "a"]]),
    }
    truth = keras.ops.convert_to_numpy(keras.ops.softmax(model(mixed.signature.inputs(raw))))
    found = parity.run(parity.session(path), raw)["probabilities"]
    np.testing.assert_allclose(found, truth, atol=1e-6)


def test_a_text_column_without_values_in_training_gives_no_feature(tmp_path):
    step = TablePreprocess(("a",), (1.0,), (2.0,), {"empty": (), "kind": ("x", "y")})
    signature = Signature("classification", ("no", "yes"), step)
    model = registry.get("mlp", input_shape=step.shape, classes=2, width=(4,))
    path = export.to_onnx(model, tmp_path / "model.onnx", signature=signature)
    raw = {"numbers": np.array([[1], [5]], np.float32), "categories": np.array([["", "y"], ["new", "x"]])}
    truth = keras.ops.convert_to_numpy(keras.ops.softmax(model(np.array([[0, 0, 1], [2, 1, 0]], np.float32))))
    np.testing.assert_allclose(parity.run(parity.session(path), raw)["probabilities"], truth, atol=1e-6)


def test_regression_answers_in_the_targets_unit(tmp_path):
    step = TablePreprocess(("a", "b"), (0.0, 0.0), (1.0, 1.0))
    signature = Signature("regression", ("price",), step, target_mean=100.0, target_std=20.0)
    model = registry.get("logistic_regression", input_shape=(2,), classes=1)
    model.set_weights([np.array([[1.0], [2.0]]), np.array([0.5])])
    path = export.to_onnx(model, tmp_path / "model.onnx", signature=signature)
    found = parity.run(parity.session(path), {"numbers": np.array([[1, 1]], np.float32)})
    np.testing.assert_allclose(found["value"], [[170.0]], rtol=1e-6)  # 3.5 standard deviations of 20 above 100


def test_names_and_facts_in_the_file(lenet, digits, tmp_path):
    proto = onnx.load(export.to_onnx(lenet, tmp_path / "model.onnx", signature=digits.signature))
    facts = {fact.key: fact.value for fact in proto.metadata_props}
    assert json.loads(facts["labels"]) == list("0123456789")
    assert facts["task"] == "image-classification" and facts["keras"] == keras.__version__
    weighted = [node for node in proto.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    found = [convert.layer_of(node) for node in weighted]
    assert found == ["stage0_conv", "stage1_conv", "hidden0", "features", "logits"]
    assert json.loads(facts["layers"])["logits"] == "logits"


def test_layers_keep_their_names_when_others_are_called_alike(tmp_path):
    inputs = keras.Input((4,), name="x")
    shared = keras.layers.Dense(4, name="dense")
    y = shared(keras.layers.Dense(4, name="dense_1")(shared(inputs)))
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="dense")], name="inner")
    path = export.to_onnx(keras.Model(inputs, inner(y)), tmp_path / "model.onnx")
    names = [node.name for node in onnx.load(path).graph.node if node.op_type == "Gemm"]
    assert [name.rpartition("/")[0] for name in names] == ["dense", "dense_1", "dense", "inner/dense"]


def test_two_inputs_and_two_outputs(tmp_path):
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    total = keras.layers.Add(name="total")([a, b])
    double = keras.layers.Rescaling(2.0, name="double")(b)
    path = export.to_onnx(keras.Model([a, b], [total, double]), tmp_path / "model.onnx")
    rows = {"a": np.ones((2, 3), np.float32), "b": np.full((2, 3), 5, np.float32)}
    found = parity.run(parity.session(path), rows)
    assert found["total"].tolist() == [[6] * 3] * 2 and found["double"].tolist() == [[10] * 3] * 2


def test_weights_above_the_limit_go_to_a_file_beside(lenet, digits, tmp_path):
    whole = export.to_onnx(lenet, tmp_path / "whole.onnx", signature=digits.signature)
    split = export.to_onnx(lenet, tmp_path / "split.onnx", signature=digits.signature, external_above=10_000)
    assert sorted(os.listdir(tmp_path)) == ["split.onnx", "split.onnx.data", "whole.onnx"]
    assert split.stat().st_size < 20_000 < 4 * lenet.count_params() <= (tmp_path / "split.onnx.data").stat().st_size
    rows = {"image": digits.test.x["image"][:7]}
    found = [parity.run(parity.session(path), rows)["probabilities"] for path in (whole, split)]
    assert np.array_equal(*found)
    onnx.checker.check_model(whole, full_check=True)
    onnx.checker.check_model(split, full_check=True)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_half_precision_is_exported_in_float32(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        model = registry.get("resnet50", **registry.entry("resnet50").tiny)
    finally:
        keras.config.set_dtype_policy("float32")
    weights = model.get_weights()
    proto = onnx.load(export.to_onnx(model, tmp_path / "model.onnx"))
    kinds = {tensor.data_type for tensor in proto.graph.initializer if tensor.dims}
    assert kinds <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    assert not [node for node in proto.graph.node if node.op_type == "Cast"]
    rows = parity.sample(model, None, rows=3, seed=7)
    truth = keras.ops.convert_to_numpy(keras.ops.cast(model(next(iter(rows.values()))), "float32"))
    found = parity.run(parity.session(tmp_path / "model.onnx"), rows)["logits"]
    np.testing.assert_allclose(found, truth, atol=0.05 * np.abs(truth).max())  # what half precision is worth
    assert all(np.array_equal(one, other) for one, other in zip(weights, model.get_weights(), strict=True))


def test_normalisation_and_padding_become_part_of_the_convolution(tmp_path):
    model = registry.get("resnet50", **registry.entry("resnet50").tiny)
    operations = [node.op_type for node in onnx.load(export.to_onnx(model, tmp_path / "model.onnx")).graph.node]
    assert not {"BatchNormalization", "Pad", "Mul"} & set(operations)
    assert operations.count("Transpose") == 1  # of the image; no other tensor changes its order


def test_a_shared_layer_is_stored_once_and_folded_for_one_use_only(tmp_path):
    inputs = keras.Input((6,), name="x")
    shared = keras.layers.Dense(6, name="shared")
    norm = keras.layers.BatchNormalization(name="norm")
    y = shared(norm(shared(inputs)))
    model = keras.Model(inputs, y)
    for weight in model.weights:
        weight.assign(np.random.default_rng(3).uniform(0.2, 0.9, weight.shape))
    graph = onnx.load(export.to_onnx(model, tmp_path / "model.onnx")).graph
    assert sorted(tensor.name for tensor in graph.initializer if len(tensor.dims) == 2) == [
        "shared/folded_kernel",
        "shared/kernel",
    ]


@pytest.mark.parametrize("layer", ["hidden0", "features"])
def test_a_wrong_file_is_refused_and_names_the_layer(layer, tmp_path, monkeypatch):
    model = registry.get("lenet", input_shape=(8, 8, 1), classes=3)
    honest = convert.write

    def planted(model, signature, path, **options):
        honest(model, signature, path, **options)
        proto = onnx.load(path)
        [weight] = [t for t in proto.graph.initializer if t.name == f"{layer}/kernel"]
        changed = onnx.numpy_helper.to_array(weight) + 0.05
        weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
        onnx.save(proto, path)

    monkeypatch.setattr(convert, "write", planted)
    older = tmp_path / "model.onnx"
    older.write_bytes(b"older")
    with pytest.raises(ExportError, match=f"first layer that differs is '{layer}' \\(Dense\\)"):
        export.to_onnx(model, older)
    assert older.read_bytes() == b"older" and os.listdir(tmp_path) == ["model.onnx"]


def test_an_operation_without_onnx_form_names_its_layer(tmp_path):
    inputs = keras.Input((4,), name="x")
    outputs = keras.layers.Lambda(keras.ops.erfinv, name="odd")(inputs)
    with pytest.raises(ExportError, match=r"layer 'odd/erfinv'.*uses the TensorFlow operation 'Erfinv'"):
        export.to_onnx(keras.Model(inputs, outputs), tmp_path / "model.onnx")


def test_what_cannot_be_right_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    mlp = registry.get("mlp", input_shape=(4,), classes=3)
    with pytest.raises(ExportError, match=r"the signature gives \(8, 8, 3\), the model takes \(4,\); build the model"):
        export.to_onnx(mlp, path, signature=IMAGES)
    with pytest.raises(ExportError, match=r"signature has 3 outputs.*classes=3"):
        export.to_onnx(registry.get("mlp", input_shape=(8, 8, 3), classes=4), path, signature=IMAGES)
    with pytest.raises(ExportError, match="'probabilities' ends in a softmax"):
        image = keras.Input((8, 8, 3))
        flat = keras.layers.Flatten()(image)
        outputs = keras.layers.Dense(3, activation="softmax", name="probabilities")(flat)
        export.to_onnx(keras.Model(image, outputs), path, signature=IMAGES)
    with pytest.raises(ExportError, match="no inputs of its own"):
        export.to_onnx(keras.Sequential([keras.layers.Dense(2)]), path)
    with pytest.raises(ExportError, match=r"opset must be a whole number from 13 to .*, got opset=9"):
        export.to_onnx(mlp, path, opset=9)
    mlp.get_layer("logits").bias.assign([np.nan, 0, 0])
    with pytest.raises(ExportError, match="Keras itself answers NaN"):
        export.to_onnx(mlp, path)
    assert not list(tmp_path.iterdir())


def test_outputs_of_one_layer_get_names_of_their_own(tmp_path):
    inputs = keras.Input((5, 4), name="x")
    model = keras.Model(inputs, keras.layers.LSTM(3, return_state=True, name="memory")(inputs))
    graph = onnx.load(export.to_onnx(model, tmp_path / "model.onnx")).graph
    assert list(shapes(graph.output)) == ["memory", "memory_1", "memory_2"]


def test_a_sequential_model(tmp_path):
    layers = [keras.Input((4,), name="x"), keras.layers.Dense(5, "relu"), keras.layers.Dense(2)]
    path = export.to_onnx(keras.Sequential(layers), tmp_path / "model.onnx")
    assert shapes(onnx.load(path).graph.output) == {"logits": ["batch", 2]}


def test_weights_that_keras_holds_in_8_bits(tmp_path):
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Dense(5, "relu")(inputs)))
    for layer in model.layers[1:]:
        layer.quantize("int8")
    graph = onnx.load(export.to_onnx(model, tmp_path / "model.onnx")).graph
    assert [t.data_type for t in graph.initializer if len(t.dims) == 2] == [onnx.TensorProto.INT8] * 2


def test_a_layer_that_keeps_its_state_is_refused(tmp_path):
    inputs = keras.Input((5, 4), batch_size=2)
    graph = Graph(convert.OPSET)
    value = Value(graph, graph.unique("x"))
    value.shape, value.dtype = (2, 5, 4), "float32"
    model = keras.Model(inputs, keras.layers.GRU(3, stateful=True, name="memory")(inputs))
    with pytest.raises(ExportError, match="'memory' keeps its state between calls; build it with stateful=False"):
        lower_model(graph, model, [value])


def test_half_precision_that_cannot_be_copied_names_the_layer(tmp_path):
    inputs = keras.Input((4,), name="x")
    odd = keras.layers.Lambda(lambda x: x + 1, name="odd", dtype="mixed_float16")
    with pytest.raises(ExportError, match="'odd' computes in half precision and has no copy in float32; build"):
        export.to_onnx(keras.Model(inputs, odd(inputs)), tmp_path / "model.onnx")


@pytest.mark.parametrize("opset", [13, 17, 23])
def test_any_opset_and_open_axes(opset, tmp_path):
    image = keras.Input((None, None, 2), name="image")
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = keras.layers.Conv2DTranspose(3, 3, strides=2, padding="same", activation="gelu")(image)
    y = keras.layers.LSTM(3)(keras.layers.Embedding(9, 4, mask_zero=True)(tokens))
    model = keras.Model([image, tokens], x + y[:, None, None], name="open")
    proto = onnx.load(export.to_onnx(model, tmp_path / "model.onnx", opset=opset))
    assert [entry.version for entry in proto.opset_import if not entry.domain] == [opset]
    assert shapes(proto.graph.input) == {
        "image": ["batch", "image_height", "image_width", 2],
        "tokens": ["batch", "tokens_length"],
    }
    assert shapes(proto.graph.output) == {"logits": ["batch", "logits_height", "logits_width", 3]}
    rows = {"image": np.ones((2, 5, 3, 2), np.float32), "tokens": np.array([[1, 2, 0], [3, 0, 0]], np.int32)}
    found = parity.run(parity.session(tmp_path / "model.onnx"), rows)["logits"]
    np.testing.assert_allclose(found, model([rows["image"], rows["tokens"]]), atol=1e-5)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_sequential_models(policy, tmp_path):
    dense = keras.layers.Dense(3, dtype=policy)
    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(5, "relu"), dense])
    path = export.to_onnx(model, tmp_path / "model.onnx")
    rows = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    gap = np.abs(parity.run(parity.session(path), rows)["logits"] - np.asarray(model(rows["x"]), np.float32)).max()
    assert gap < (1e-5 if policy == "float32" else 5e-3)


def test_weights_beside_an_older_file_go_with_it(tmp_path):
    model = registry.get("mlp", input_shape=(4,), classes=3)
    path = export.to_onnx(model, tmp_path / "model.onnx", external_above=0)
    first = (tmp_path / "model.onnx.data").read_bytes()
    model.get_layer("logits").bias.assign([1, 2, 3])
    export.to_onnx(model, path, external_above=0)
    assert (tmp_path / "model.onnx.data").read_bytes() != first
    (tmp_path / "moved").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    rows = parity.sample(model, None)
    truth = parity.keras_answers(model, None, rows)["logits"]
    moved = tmp_path / "moved" / "model.onnx"
    np.testing.assert_allclose(parity.run(parity.session(moved), rows)["logits"], truth, atol=1e-5)
    export.to_onnx(model, moved)
    assert os.listdir(tmp_path / "moved") == ["model.onnx"]
    (tmp_path / "moved" / "model.onnx.data").write_text("somebody else's")
    export.to_onnx(model, moved)
    assert (tmp_path / "moved" / "model.onnx.data").read_text() == "somebody else's"


def test_verbs_load_when_asked_for():
    assert callable(export.to_onnx) and "to_bundle" in dir(export)
    with pytest.raises(AttributeError, match="its verbs are to_onnx, to_litert, to_ort, to_bundle"):
        export.to_onxx  # noqa: B018


JAX = """
import numpy as np, keras, export
from zoo import registry
from zoo.data.signature import Signature, TablePreprocess
from scaled import Scaled
assert keras.config.backend() == "jax"
inputs = keras.Input((4,), name="inputs")
model = keras.Model(inputs, keras.layers.Dense(3, name="logits")(Scaled(3.0)(inputs)), name="scaled")
signature = Signature("classification", ("a", "b", "c"), TablePreprocess(tuple("wxyz"), (1.0,) * 4, (2.0,) * 4))
export.to_onnx(model, "model.onnx", signature=signature)
raw = {"numbers": np.array([[1, 2, 3, np.nan]], np.float32)}
np.save("truth.npy", keras.ops.convert_to_numpy(keras.ops.softmax(model(signature.inputs(raw)))))
"""
LAYER = """
import keras
@keras.saving.register_keras_serializable("scaled")
class Scaled(keras.layers.Layer):
    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor
    def call(self, x):
        return x * self.factor
    def get_config(self):
        return {**super().get_config(), "factor": self.factor}
"""


def test_a_model_on_jax_with_its_own_layer(tmp_path):
    pytest.importorskip("jax")
    (tmp_path / "scaled.py").write_text(LAYER)
    places = [str(tmp_path), os.getcwd(), *[p for p in sys.path if p]]
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(places)}
    command = [sys.executable, "-c", JAX]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    raw = {"numbers": np.array([[1, 2, 3, np.nan]], np.float32)}
    found = parity.run(parity.session(tmp_path / "model.onnx"), raw)["probabilities"]
    np.testing.assert_allclose(found, np.load(tmp_path / "truth.npy"), atol=1e-5)
