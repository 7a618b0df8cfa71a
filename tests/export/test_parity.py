"""The gate: what it compares, and what it says of the first layer that differs."""

import keras
import numpy as np
import onnx
import pytest
from keras import layers, ops

import export
from export import ExportError, lowering, parity
from export.lowering.walk import nodes_of
from zoo import registry


def branches():
    """Two inputs; models inside each other, one of them used twice; an operation; a layer with several results."""
    inner = keras.Sequential(
        [keras.Input((6,)), layers.Dense(5, name="deep"), layers.LayerNormalization(name="norm")], name="inner"
    )
    outer = keras.Input((6,))
    tower = keras.Model(outer, layers.Dense(4, name="last")(inner(outer)), name="tower")
    left, right = keras.Input((6,), name="left"), keras.Input((None, 3), name="right")
    steps, state = layers.GRU(4, return_sequences=True, return_state=True, name="steps")(right)
    x = ops.subtract(tower(left), tower(2 * left)) + state + ops.max(steps, axis=1)
    return keras.Model([left, right], layers.Dense(3, name="logits")(layers.ReLU(name="relu")(x)), name="branches")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("GRU", "first layer that differs is 'steps' (GRU)"),
        ("LayerNormalization", "first layer that differs is 'tower/inner/norm' (LayerNormalization)"),
        ("Subtract", "first operation that differs is 'subtract"),
        ("ReLU", "first layer that differs is 'relu' (ReLU)"),
    ],
)
def test_a_fault_in_one_function_is_found(kind, message, tmp_path, monkeypatch):
    """A function that writes one kind of layer gets it wrong; the layer is named by its path."""
    model = branches()
    operation, *_ = [each for each in every_operation(model) if type(each).__name__ == kind]
    honest = lowering.emitter_of(operation)

    def wrong(graph, operation, *args, **kwargs):
        first, *others = keras.tree.flatten(honest(graph, operation, *args, **kwargs))
        name = first if isinstance(first, str) else first.name
        off = graph.add("Mul", name, np.float32(1.3), label="off")
        return (off, *others) if others else off

    monkeypatch.setitem(lowering._EMITTERS, type(operation), wrong)
    with pytest.raises(ExportError) as caught:
        export.to_onnx(model, tmp_path / "model.onnx")
    assert message in str(caught.value) and "nothing was written" in str(caught.value)
    assert not list(tmp_path.iterdir())


def every_operation(model):
    for node in nodes_of(model):
        yield node.operation
        if isinstance(node.operation, keras.Model):
            yield from every_operation(node.operation)


def test_a_file_that_is_right_at_one_size_only_is_refused(tmp_path, monkeypatch):
    steps = keras.Input((None, 3), name="steps")
    model = keras.Model(steps, layers.GlobalAveragePooling1D(name="mean")(steps))

    def wrong(graph, layer, value, **_):
        return graph.add("Div", graph.reduce("ReduceSum", value.name, [1]), np.float32(8))  # the usual trial's size

    monkeypatch.setitem(lowering._EMITTERS, layers.GlobalAveragePooling1D, wrong)
    with pytest.raises(ExportError, match="first layer that differs is 'mean'"):
        export.to_onnx(model, tmp_path / "model.onnx")


def test_a_file_that_is_wrong_at_batch_1_only_is_refused(tmp_path, monkeypatch):
    rows = keras.Input((3,), name="rows")
    model = keras.Model(rows, layers.ReLU(name="relu")(rows))

    def wrong(graph, layer, value, **_):
        count = graph.add("Cast", graph.size(value.name, 0), to=onnx.TensorProto.FLOAT)
        lonely = graph.add("Cast", graph.add("Less", count, np.float32(2)), to=onnx.TensorProto.FLOAT)
        return graph.add("Add", graph.add("Relu", value.name), lonely)

    monkeypatch.setitem(lowering._EMITTERS, layers.ReLU, wrong)
    with pytest.raises(ExportError, match=r"differs from Keras by 1, .* first layer that differs is 'relu' \(ReLU\)"):
        export.to_onnx(model, tmp_path / "model.onnx")


def test_a_tolerance_may_be_declared_with_its_reason(tmp_path, monkeypatch):
    rows = keras.Input((3,), name="rows")
    model = keras.Model(rows, layers.ReLU(name="relu")(rows))
    monkeypatch.setitem(
        lowering._EMITTERS, layers.ReLU, lambda graph, layer, value, **_: graph.add("Add", graph.add("Relu", value.name), np.float32(1e-3))
    )  # fmt: skip
    with pytest.raises(ExportError, match=r"differs from Keras by 0\.001, allowed is 0\.000"):
        export.to_onnx(model, tmp_path / "model.onnx")
    assert export.to_onnx(model, tmp_path / "model.onnx", tolerance=2e-3).is_file()
    declared = '@register("loose", task="classification", inputs={}, paper="", params=1, tiny={}, tolerance=(2e-3, WHY))\ndef loose(width: int = 1): ...\n'
    path = tmp_path / "loose.py"
    path.write_text(declared.replace("WHY", "'sums of 10,000 terms'"))
    [entry] = registry._read(path, "loose")
    monkeypatch.setattr(registry, "entries", lambda: {"loose": entry})
    assert registry.tolerance("loose") == 2e-3 and "0.002 in ONNX: sums of 10,000 terms" in registry.show("loose")
    assert registry.tolerance("a model of one's own") == parity.TOLERANCE
    path.write_text(declared.replace("WHY", "''"))
    with pytest.raises(TypeError, match=r"'loose' in loose: a tolerance above 0.0001 needs its reason"):
        list(registry._read(path, "loose"))


def test_rows_are_brought_into_the_types_of_the_file():
    tokens, other = keras.Input((None,), dtype="int32", name="tokens"), keras.Input((2,), name="other")
    model = keras.Model([tokens, other], ops.sum(tokens, 1, keepdims=True) + ops.cast(other, "int32"))
    rows = parity.checked(model, None, {"tokens": [[1, 2]], "other": [[3, 4.5]]}, "golden")
    assert rows["tokens"].dtype == np.int32 and rows["other"].dtype == np.float32
    for given, message in (
        (
            {"tokens": [[1, 2]], "other": [[1, 2], [3, 4]]},
            r"the golden rows differ in number: \{'tokens': 1, 'other': 2\}",
        ),
        ({"tokens": [[1, 2]], "other": [[1]]}, r"of 'other' must be \(rows, 2\), got \(1, 1\)"),
        ({"tokens": [[1, 2]], "other": [["a", "b"]]}, "of 'other' must hold numbers, got <U1"),
        ({"tokens": [[1, 2]], "other": [[np.inf, 1]]}, "of 'other' hold NaN or infinity"),
        ({"tokens": [[1.5, 2]], "other": [[1, 1]]}, "of 'tokens' must hold int32 numbers, got others in float64"),
        ({"tokens": [[1, 2]]}, "the model takes tokens, other, got tokens"),
        ({"tokens": [], "other": []}, "the golden rows are empty"),
        ([[1, 2]], "the model takes tokens, other, got a list"),
    ):
        with pytest.raises(ExportError, match=message):
            parity.checked(model, None, given, "golden")
    with pytest.raises(ExportError, match=r"of 'tokens' must be \(rows, 7\), got \(1, 2\)"):
        parity.checked(model, None, {"tokens": [[1, 2]], "other": [[3, 4]]}, "golden", length=7)
