"""Every layer kind exports and agrees with Keras, at other batches and sizes than the exporter saw."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from kinds import KINDS

import export
from export import parity
from export.convert import write
from export.lowering import NotLoweredError
from export.lowering.graph import Graph, Value
from export.lowering.tracing import tracing
from export.lowering.walk import lower_function


def operators(path):
    """Kinds of nodes in a file, those in loops included."""

    def of(nodes):
        for node in nodes:
            yield node.op_type
            for attribute in node.attribute:
                yield from of(attribute.g.node)

    return list(of(onnx.load(path).graph.node))


@pytest.mark.parametrize("name", KINDS)
def test_exports_and_agrees(name, tmp_path, monkeypatch):
    """Without the converter behind: each is written by our own functions."""
    monkeypatch.setattr("export.lowering.fallback.convert", None)
    kind = KINDS[name]
    model = kind.model()
    golden = kind.inputs(rows=3, size=8)
    path = export.to_onnx(model, tmp_path / "model.onnx", golden=golden, tolerance=kind.tolerance)
    live = parity.session(path)
    for rows, size in ((1, 5), (4, 13)) if kind.free else ((4, 0),):
        inputs = kind.inputs(rows, size, seed=rows)
        found = parity.run(live, inputs)
        for output, truth in parity.keras_answers(model, None, inputs).items():
            allowed = kind.tolerance * max(1.0, float(np.abs(truth).max()))
            np.testing.assert_allclose(found[output], truth, rtol=0, atol=allowed, err_msg=output)


def test_loose_tolerances_give_their_reason():
    assert [kind.name for kind in KINDS.values() if kind.tolerance > 1e-4 and not kind.why] == []
    assert len(KINDS) >= 300


@pytest.mark.parametrize("name", [name for name in KINDS if name.startswith(("lstm", "gru", "rnn"))])
def test_recurrent_layers_are_single_nodes(name, tmp_path):
    kind = KINDS[name]
    path = export.to_onnx(kind.model(), tmp_path / "model.onnx", golden=kind.inputs(rows=2, size=8))
    found = operators(path)
    fused = sum(found.count(operator) for operator in ("LSTM", "GRU", "RNN"))
    if "other_activations" in name:
        assert fused == 0 and found.count("Loop") == 1
    else:
        assert fused == (2 if "stack" in name else 1) and "Loop" not in found


@pytest.mark.parametrize(
    ("name", "operator", "count"),
    [
        ("resizing_bilinear_up", "Resize", 1),
        ("layer_norm", "LayerNormalization", 1),
        ("activation_gelu_erf", "Erf", 1),
        ("segment_sum", "ScatterND", 2),
        ("non_max_suppression", "NonMaxSuppression", 1),
        ("roi_align", "RoiAlign", 1),
        ("pyramid_align", "RoiAlign", 2),
        ("proposals", "NonMaxSuppression", 1),
        ("ode_fori_loop", "Loop", 1),
        ("rnn_bidirectional_gaps", "RNN", 1),
    ],
)
def test_the_node_that_onnx_has(name, operator, count, tmp_path):
    kind = KINDS[name]
    path = export.to_onnx(kind.model(), tmp_path / "model.onnx", golden=kind.inputs(rows=2, size=8))
    assert operators(path).count(operator) == count


@pytest.mark.parametrize(("approximate", "operator"), [(True, "FastGelu"), (False, "Gelu")])
def test_gelu_is_written_as_onnx_runtime_fuses_it(approximate, operator, tmp_path):
    x = keras.Input((8,))
    y = keras.ops.gelu(keras.layers.Dense(16)(x), approximate=approximate)
    path = export.to_onnx(keras.Model(x, keras.layers.Dense(3)(y)), tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert list(operators(tmp_path / "optimized.onnx")).count(operator) == 1


def test_tracing_leaves_keras_and_the_model_as_they_were(tmp_path):
    kind = KINDS["transformer_translation"]
    model = kind.model()
    parts = [layer for layer in model._flatten_layers() if layer is not model]
    before = [len(layer._inbound_nodes) for layer in parts]
    functions = [keras.ops.shape, keras.ops.reshape, keras.ops.fori_loop, keras.random.normal]
    export.to_onnx(model, tmp_path / "model.onnx", golden=kind.inputs(rows=2, size=8))
    assert [len(layer._inbound_nodes) for layer in parts] == before
    assert [keras.ops.shape, keras.ops.reshape, keras.ops.fori_loop, keras.random.normal] == functions
    assert "__array_ufunc__" not in vars(keras.KerasTensor) and "__jax_array__" in vars(keras.KerasTensor)


@pytest.mark.filterwarnings("ignore:Layer 'inner'")  # Keras warns that masks end there, and hands them on all the same
@pytest.mark.parametrize("by_keyword", [True, False])
def test_masks_reach_the_layers_of_a_model_inside(by_keyword, tmp_path):
    layers = keras.layers
    inner_input = keras.Input((None, 4))
    y = layers.LSTM(4, return_sequences=True)(layers.Dropout(0.2)(inner_input))
    y = layers.GlobalAveragePooling1D()(layers.Concatenate()([y, inner_input]))
    inner = keras.Model(inner_input, y, name="inner")
    words = keras.Input((None,), dtype="int32", name="words")
    embedded = layers.Embedding(9, 4, mask_zero=not by_keyword)(words)
    outputs = inner(embedded, mask=words > 3) if by_keyword else inner(embedded)
    golden = {"words": np.array([[5, 6, 0, 0], [1, 0, 7, 2]], "int32")}
    export.to_onnx(keras.Model(words, outputs), tmp_path / "model.onnx", golden=golden)


def test_random_numbers_are_drawn_anew_and_are_normal(tmp_path):
    drawn = type(KINDS["random_numbers"].model().layers[-1])
    inputs = keras.Input((500,)), keras.Input((500,))
    model = keras.Model(inputs, drawn()(*inputs))
    path = tmp_path / "model.onnx"
    write(model, None, path, opset=18)  # the gate would find two draws to differ
    live = parity.session(path)
    names = [put.name for put in live.get_inputs()]
    given = dict(zip(names, (np.full((40, 500), 3.0, "float32"), np.full((40, 500), 2.0, "float32")), strict=True))
    first, second = (parity.run(live, given)["logits"] for _ in range(2))
    assert abs(first.mean() - 3) < 0.1 and abs(first.std() - 2) < 0.1 and not np.allclose(first, second)


JAX = """
import sys
sys.modules["tensorflow"] = sys.modules["tf2onnx"] = None  # as if they were not installed
from kinds import KINDS
import export
for name in {names!r}:
    kind = KINDS[name]
    export.to_onnx(kind.model(), {path!r}, golden=kind.inputs(rows=2, size=6), tolerance=kind.tolerance)
"""


def test_models_on_jax_need_no_tensorflow(tmp_path):
    names = ["bert", "lstm_start_and_gaps", "windows"]
    root = Path(__file__).parents[2]
    code = JAX.format(names=names, path=str(tmp_path / "model.onnx"))
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "PYTHONPATH": os.pathsep.join([str(root / "tests/export"), str(root)]),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_tracing_that_fails_leaves_keras_as_it_was():
    functions = [keras.ops.shape, keras.ops.pad, keras.random.normal]
    dense = keras.layers.Dense(3)
    dense.build((None, 3))

    def failing(x):
        dense(x)
        raise ValueError("no")

    graph = Graph(18)
    x = Value(graph, graph.unique("x"))
    x.shape, x.dtype = (None, 3), "float32"
    with pytest.raises(NotLoweredError, match="no"):
        lower_function(graph, failing, x)
    assert [keras.ops.shape, keras.ops.pad, keras.random.normal] == functions
    assert dense._inbound_nodes == [] and graph.nodes == []


def test_other_threads_do_not_notice_tracing():
    with tracing() as trace, ThreadPoolExecutor(1) as pool:
        drawn = pool.submit(keras.random.randint, (2,), 0, 9).result()  # refused in the thread that traces
        x = keras.Input((4,))
        built = pool.submit(keras.layers.Dense(3), x).result()
        with pytest.raises(NotLoweredError, match="randint"):
            keras.random.randint((2,), 0, 9)
    assert drawn.shape == (2,) and trace.made == []
    assert keras.Model(x, built).layers[-1].units == 3
