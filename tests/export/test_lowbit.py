"""Half-precision, 8- and 4-bit weights: error bounds, what is left alone, and files that are kept or refused."""

import keras
import numpy as np
import onnx
import pytest
from keras import layers
from onnx import TensorProto, helper, numpy_helper

import export
from export import ExportError, lowbit, parity
from zoo import registry


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A small transformer, exported: tokens in, logits out."""
    keras.utils.set_random_seed(0)
    tokens = keras.Input((12,), dtype="int32", name="tokens")
    x = layers.Embedding(300, 64, name="embedding")(tokens)
    y = layers.MultiHeadAttention(4, 16, name="attention")(x, x)
    x = layers.LayerNormalization(name="norm")(layers.Add(name="sum")([x, y]))
    x = layers.Dense(128, activation="gelu", name="wide")(x)
    x = layers.GlobalAveragePooling1D(name="mean")(layers.Dense(64, name="narrow")(x))
    model = keras.Model(tokens, layers.Dense(5, name="logits")(x), name="reader")
    rows = {"tokens": np.random.default_rng(0).integers(0, 300, (2, 12)).astype(np.int32)}
    return export.to_onnx(model, tmp_path_factory.mktemp("source") / "model.onnx", golden=rows)


@pytest.fixture
def rows():
    return {"tokens": np.random.default_rng(1).integers(0, 300, (16, 12)).astype(np.int32)}


def answers(path, rows):
    return parity.run(parity.session(path), rows)["logits"]


def change(path, source, rows):
    """Largest change of an answer, as a share of the largest answer."""
    truth = answers(source, rows)
    return np.abs(answers(path, rows) - truth).max() / np.abs(truth).max()


def kinds(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def unpacked(values, scales, zeros, bits, rows):
    """Weights as the definition of MatMulNBits reads them, (outputs, inputs)."""
    outputs, blocks, _ = values.shape
    if bits == 4:
        values = np.stack([values & 15, values >> 4], axis=-1).reshape(outputs, blocks, -1)
        zeros = zeros.reshape(outputs, -1)
        zeros = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(outputs, -1)[:, :blocks]
    zeros = zeros.reshape(outputs, blocks, 1).astype(np.float32)
    floats = (values.astype(np.float32) - zeros) * scales.reshape(outputs, blocks, 1)
    return floats.reshape(outputs, -1)[:, : rows.shape[1]]


def test_float16_is_half_the_size_and_agrees(source, rows, tmp_path):
    path = lowbit.to_float16(source, tmp_path / "model.fp16.onnx", golden=rows)
    assert change(path, source, rows) < 0.01
    assert path.stat().st_size < 0.6 * source.stat().st_size
    stored = {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert sum(kind == TensorProto.FLOAT16 for kind in stored.values()) > 10
    live = parity.session(path)
    assert [port.type for port in (*live.get_inputs(), *live.get_outputs())] == ["tensor(int32)", "tensor(float)"]


def test_float16_leaves_weights_beyond_its_range(tmp_path):
    inputs = keras.Input((3,), name="x")
    model = keras.Model(inputs, layers.Dense(2, name="large")(layers.Dense(4, name="small")(inputs)))
    model.get_layer("large").set_weights([np.full((4, 2), 1e5), np.zeros(2)])
    source = export.to_onnx(model, tmp_path / "model.onnx")
    path = lowbit.to_float16(source, tmp_path / "half.onnx")
    stored = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    assert {array.dtype.name for array in stored if array.shape == (4, 2)} == {"float32"}
    assert {array.dtype.name for array in stored if array.shape == (3, 4)} == {"float16"}
    assert np.isfinite(parity.run(parity.session(path), {"x": np.ones((1, 3), np.float32)})["logits"]).all()


@pytest.mark.parametrize(("bits", "block", "most"), [(8, None, 0.03), (8, 32, 0.02), (4, None, 0.3), (4, 16, 0.25)])
def test_weights_in_few_bits_agree_within_bounds(source, rows, bits, block, most, tmp_path):
    path = lowbit.to_low_bit(source, tmp_path / "small.onnx", bits=bits, block=block, golden=rows)
    assert 0 < change(path, source, rows) < most
    assert path.stat().st_size < (0.45 if bits == 8 else 0.4) * source.stat().st_size
    kind = "DynamicQuantizeMatMul" if bits == 8 and block is None else "MatMulNBits"
    assert kinds(path).count(kind) >= 4
    table = next(
        t for t in onnx.load(path).graph.initializer if t.name.endswith("/table_8bit/values") and t.dims[0] == 300
    )
    assert table.data_type == TensorProto.INT8  # the embedding


@pytest.mark.parametrize("inputs", [64, 70, 100])
@pytest.mark.parametrize(("bits", "block"), [(8, 32), (4, 32), (4, 16)])
def test_packed_weights_lose_what_rounding_to_equal_steps_does(inputs, bits, block):
    rows = np.random.default_rng(0).standard_normal((60, inputs)).astype(np.float32)
    rows[2, :block] = 0
    values, scales, zeros = lowbit.pack(rows, bits, block)
    blocks = -(-inputs // block)
    assert values.shape == (60, blocks, block * bits // 8) and values.dtype == np.uint8
    padded = np.zeros((60, blocks * block), np.float32)
    padded[:, :inputs] = rows
    grouped = padded.reshape(60, blocks, block)
    step = (np.maximum(grouped.max(axis=2), 0) - np.minimum(grouped.min(axis=2), 0)) / (2**bits - 1)
    found = np.zeros_like(padded)
    found[:, :inputs] = unpacked(values, scales, zeros, bits, rows)
    error = np.square(found.reshape(60, blocks, block) - grouped).mean(axis=2)
    assert (error <= np.square(step)).all()  # half a step, and as much again where the zero point is rounded
    assert error.mean() < 1.1 * np.square(step).mean() / 12  # that of rounding to equal steps
    assert (found[2, :block] == 0).all()


@pytest.mark.parametrize(("bits", "block"), [(8, None), (8, 32), (4, 32)])
def test_one_array_may_be_read_in_several_forms(bits, block, tmp_path):
    random = np.random.default_rng(0)
    weights = {"table": random.standard_normal((100, 64)), "square": random.standard_normal((64, 64)) / 8}
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["rows"], "embedding"),  # (batch, 64)
        helper.make_node("MatMul", ["rows", "square"], ["mixed"], "mix"),
        helper.make_node("Gemm", ["mixed", "square"], ["back"], "back", transB=1),
        helper.make_node("Gemm", ["back", "table"], ["logits"], "tied", transB=1),
    ]
    edges = [
        [helper.make_tensor_value_info(name, kind, shape)]
        for name, kind, shape in (("tokens", TensorProto.INT64, ["batch"]), ("logits", TensorProto.FLOAT, None))
    ]
    stored = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    opsets = [helper.make_opsetid("", 18)]
    source = tmp_path / "model.onnx"
    graph = helper.make_graph(nodes, "tied", *edges, stored)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), source)
    rows = {"tokens": np.arange(100)}
    path = lowbit.to_low_bit(source, tmp_path / "small.onnx", bits=bits, block=block, golden=rows, tolerance=1)
    assert 0 < change(path, source, rows) < (0.03 if bits == 8 else 0.2)
    assert not {"table", "square"} & {tensor.name for tensor in onnx.load(path).graph.initializer}


def test_too_small_for_8_or_4_bits(tmp_path):
    model = registry.get("mlp", input_shape=(4,), classes=3, width=(8,))
    source = export.to_onnx(model, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="no constant matrix of 4096 weights or more"):
        lowbit.to_low_bit(source, tmp_path / "small.onnx", bits=4)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_file_that_loses_too_much_is_refused_and_the_old_one_stays(source, rows, tmp_path):
    path = tmp_path / "small.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ExportError, match=r"answers 'logits' change by .*, allowed is "):
        lowbit.to_low_bit(source, path, bits=4, golden=rows, tolerance=1e-6)
    with pytest.raises(ExportError, match=r"score falls from 1\.0000 to 0\.0000, allowed is 0\.003"):
        truth = answers(source, rows)
        lowbit.to_low_bit(source, path, golden=rows, score=lambda found: float((found["logits"] == truth).all()))
    with pytest.raises(ExportError, match="answers 'logits' change by"):
        lowbit.to_float16(source, path, golden=rows, tolerance=0)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_blocks_are_tried_where_whole_rows_lose_too_much(source, rows, tmp_path):
    whole = change(lowbit.to_low_bit(source, tmp_path / "whole.onnx", golden=rows), source, rows)
    blocks = change(lowbit.to_low_bit(source, tmp_path / "blocks.onnx", block=64, golden=rows), source, rows)
    assert blocks < whole
    path = lowbit.to_low_bit(source, tmp_path / "small.onnx", golden=rows, tolerance=(blocks + whole) / 2)
    assert "MatMulNBits" in kinds(path) and "DynamicQuantizeMatMul" not in kinds(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 5}, "bits must be 8 or 4, got 5"),
        ({"block": 48}, "block must be 16, 32, 64, 128 or 256, got 48"),
        ({"score": lambda _: 1.0}, "a score needs the rows it is taken on"),
    ],
)
def test_options_that_make_no_sense(source, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        lowbit.to_low_bit(source, tmp_path / "small.onnx", **options)


@pytest.mark.parametrize(("opset", "large", "whole_rows"), [(17, 0, 1), (18, 0, 1), (18, 7680, 0)])
def test_by_row_no_row_changes_anothers_answer(opset, large, whole_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(lowbit, "_LARGE", large)
    random = np.random.default_rng(0)
    x = keras.Input((3, 80), name="x")
    hidden = layers.Dense(96, activation="relu", name="hidden")(x)
    model = keras.Model(x, layers.Dense(64, name="logits")(hidden), name="rows")
    source = export.to_onnx(model, tmp_path / "model.onnx", opset=opset)
    rows = {
        "x": random.normal(size=(4, 3, 80)).astype(np.float32) * np.array([1, 40, 0.01, 0], np.float32)[:, None, None]
    }
    found = {}
    for by_row in (True, False):
        path = lowbit.to_low_bit(source, tmp_path / f"{by_row}.onnx", bits=8, by_row=by_row, golden=rows)
        whole = answers(path, rows)
        alone = np.concatenate([answers(path, {"x": rows["x"][row : row + 1]}) for row in range(4)])
        found[by_row] = np.abs(whole - alone).max()
        truth = answers(source, rows)[2]  # small beside the others, whose range would drown it
        assert (np.abs(whole[2] - truth).max() < 0.03 * np.abs(truth).max()) == by_row
    assert found[True] == 0 < found[False]
    made = kinds(tmp_path / "True.onnx")
    assert (made.count("MatMulIntegerToFloat"), made.count("MatMulNBits")) == (whole_rows, 2 - whole_rows)
    blocks = [
        attribute.i
        for node in onnx.load(tmp_path / "True.onnx").graph.node
        for attribute in node.attribute
        if attribute.name == "block_size"
    ]
    assert blocks == [16, 32][whole_rows:]  # of 80 and 96 weights, the largest that fill up little
