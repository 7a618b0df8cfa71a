"""Recurrent networks answer as PyTorch's do with its weights, and padded rows as they do alone, in Keras and in ONNX."""

from functools import partial

import keras
import make_recurrent
import numpy as np
import onnxruntime
import pytest
import references
from safetensors.numpy import save_file

import export
import zoo

golden = partial(references.golden, make_recurrent.PLACE)  # weights of the reference, and what it answers
NAMES = ("simple_rnn", "lstm", "gru", "bidirectional_lstm", "bidirectional_gru")
SMALL = dict(width=4, depth=2, classes=3)


def answers(model, rows):
    return keras.ops.convert_to_numpy(model(rows, training=False))


def loaded(folder, kind, weights):
    """Our network with a file of torch's weights, which says how large it is."""
    cell, depth, both = make_recurrent.KINDS[kind]
    save_file(weights, folder / "model.safetensors")
    model = zoo.get(cell, weights=folder / "model.safetensors", bidirectional=both)
    assert len([layer for layer in model.layers if layer.name in ("layer0", "layer1")]) == depth
    return model


def padded(lengths, columns=3, seed=0):
    """A series of each length, NaN behind its end."""
    rows = np.random.default_rng(seed).standard_normal((len(lengths), max(lengths), columns)).astype("float32")
    for row, length in zip(rows, lengths, strict=True):
        row[length:] = np.nan
    return rows


def words(lengths, vocabulary=9, pad=2):
    """Tokens of each length, `pad` behind their end."""
    rows = np.random.default_rng(0).integers(3, vocabulary, (len(lengths), max(lengths))).astype("int32")
    for row, length in zip(rows, lengths, strict=True):
        row[length:] = pad
    return rows


@pytest.mark.also_jax
@pytest.mark.parametrize("kind", list(make_recurrent.KINDS))
def test_answers_are_those_of_torch(tmp_path, kind):
    weights, expected = golden(kind)
    assert np.abs(expected).max() > 0.1
    assert np.abs(answers(loaded(tmp_path, kind, weights), make_recurrent.series()) - expected).max() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(make_recurrent.KINDS))
def test_answers_are_those_of_torch_live(tmp_path, kind):
    if not references.installed("torch"):
        pytest.skip("compares with torch itself, which is not installed")
    shapes, expected = make_recurrent.torch_answers(kind, seed=5)
    model = loaded(tmp_path, kind, references.weights(shapes, seed=5))
    assert np.abs(answers(model, make_recurrent.series()) - expected).max() <= 1e-4


def test_the_comparison_would_notice_another_order_of_gates(tmp_path):
    weights, expected = golden("gru/1")
    model = loaded(tmp_path, "gru/1", weights)
    kernel = model.get_layer("layer0").cell.kernel
    kernel.assign(np.roll(kernel.numpy(), 5, axis=1))
    assert np.abs(answers(model, make_recurrent.series()) - expected).max() > 1e-2


def test_files_of_other_networks_are_refused(tmp_path):
    weights, _ = golden("gru/1")
    save_file(weights, tmp_path / "gru.safetensors")
    with pytest.raises(ValueError, match=r"does not fit lstm: missing \(3\): layer0/lstm_cell/kernel"):
        zoo.get("lstm", weights=tmp_path / "gru.safetensors")
    save_file({**weights, "rnn.weight_hr_l0": np.ones((2, 5), "float32")}, tmp_path / "projected.safetensors")
    with pytest.raises(ValueError, match=r"not in the model \(1\): rnn\.weight_hr_l0"):
        zoo.get("gru", weights=tmp_path / "projected.safetensors")


def test_weights_of_a_network_of_tokens_are_read(tmp_path):
    tokens = {"embedding.weight": np.random.default_rng(0).standard_normal((7, 5)).astype("float32")}
    weights, _ = golden("lstm/1")
    tokens |= {name: tensor[:, :1].repeat(5, 1) if "weight_ih" in name else tensor for name, tensor in weights.items()}
    save_file(tokens, tmp_path / "tokens.safetensors")
    model = zoo.get("lstm", weights=tmp_path / "tokens.safetensors")
    assert model.input_shape == (None, None) and model.inputs[0].dtype == "int32"
    assert np.array_equal(model.get_layer("embedding").embeddings, tokens["embedding.weight"])


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_padded_row_answers_as_it_does_alone(tmp_path, name, relative):
    model = zoo.get(name, input_shape=(None, 3), relative=relative, **SMALL)
    lengths = (7, 3, 1, 5)
    rows = padded(lengths)
    together = answers(model, rows)
    alone = np.concatenate([answers(model, rows[i : i + 1, :length]) for i, length in enumerate(lengths)])
    assert np.abs(together - alone).max() <= 1e-6
    assert np.abs(together - answers(model, np.nan_to_num(rows))).max() > 1e-3  # zeros would count
    export.to_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for chosen in (rows, rows[2:], rows[1:3, :4]):
        [found] = session.run(None, {"series": chosen})
        assert np.abs(found - answers(model, chosen)).max() <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_no_gradient(name):
    """One step on a padded batch moves the weights as the same step on rows of their own length does."""
    moved = []
    for steps in (3, 8):
        keras.utils.set_random_seed(1)
        model = zoo.get(name, input_shape=(None, 3), **SMALL)
        model.compile(keras.optimizers.SGD(0.5), "mean_squared_error", run_eagerly=True)
        rows = np.pad(padded((3, 3), seed=4), ((0, 0), (0, steps - 3), (0, 0)), constant_values=np.nan)
        model.train_on_batch(rows, np.ones((2, 3), "float32"))
        moved.append(model.get_weights())
    assert max(np.abs(one - other).max() for one, other in zip(*moved, strict=True)) <= 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_read_through_an_embedding(tmp_path, name):
    model = zoo.get(name, input_shape=(None,), vocabulary=9, pad=2, **SMALL)
    assert [tensor.name for tensor in model.inputs] == list(zoo.registry.entry(name).alternatives) == ["tokens"]
    lengths = (6, 4, 1)
    rows = words(lengths)
    model.compile("sgd", "mean_squared_error", run_eagerly=True)
    before = model.get_weights()
    model.train_on_batch(rows, np.eye(3, dtype="float32"))
    assert not any(np.array_equal(one, other) for one, other in zip(before, model.get_weights(), strict=True))
    alone = np.concatenate([answers(model, rows[i : i + 1, :length]) for i, length in enumerate(lengths)])
    assert np.abs(answers(model, rows) - alone).max() <= 1e-6
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert np.array_equal(answers(again, rows), answers(model, rows))
    export.to_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    [found] = session.run(None, {"tokens": rows})
    assert np.abs(found - alone).max() <= 1e-5


def test_a_relative_forecast_moves_with_its_series():
    model = zoo.get("lstm", input_shape=(6, 2), relative=True, **SMALL)
    rows = np.random.default_rng(0).standard_normal((2, 6, 2)).astype("float32")
    moved = answers(model, rows * np.array([20, 3], "float32") + np.array([500, 7], "float32"))
    assert np.abs(moved - (20 * answers(model, rows) + 500)).max() < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cell": "rnn"}, "cell must be 'simple_rnn', 'lstm', 'gru', got 'rnn'"),
        ({"depth": 0}, "width and depth must be at least 1, got width=64, depth=0"),
        ({"input_shape": (4,)}, r"input_shape must be \(time, columns\) of a series; tokens need vocabulary"),
        ({"input_shape": (4, None)}, "the number of columns must be known"),
        ({"input_shape": (4, 2), "vocabulary": 5}, r"input_shape must be \(length,\) of tokens, got \(4, 2\)"),
        ({"input_shape": (4,), "vocabulary": 5, "pad": 5}, "pad must be a token below vocabulary=5, got 5"),
        ({"input_shape": (4,), "vocabulary": 5, "relative": True}, "relative=True is for series"),
        ({"dropout": 1.0}, "dropout must be a share"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        zoo.get("lstm", **arguments)
