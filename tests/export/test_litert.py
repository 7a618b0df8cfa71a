import keras
import numpy as np
import pytest
from keras import layers

import export
from export import ExportError, litert
from zoo import registry, tasks
from zoo.data import Rows, from_rows, shapes
from zoo.data.signature import Signature, TablePreprocess
from zoo.data.targets import Boxes


def accuracy(rows):
    return lambda answers: float((answers["probabilities"].argmax(-1) == rows.y).mean())


def sequences(kind):
    """A small model over tokens of any length, with two inputs."""
    keras.utils.set_random_seed(0)
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    extra = keras.Input((3,), name="extra")
    x = layers.Embedding(20, 8, mask_zero=kind == "lstm")(tokens)
    if kind == "lstm":
        x = layers.Bidirectional(layers.LSTM(6))(x)
    else:
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
        x = layers.LayerNormalization()(x + layers.Dense(8)(layers.Dense(16, "gelu")(x)))
        x = layers.GlobalAveragePooling1D()(x)
    x = layers.Concatenate()([x, extra])
    return keras.Model([tokens, extra], layers.Dense(4, name="logits")(x), name=kind)


def test_float_file_takes_pixels(lenet, digits, tmp_path):
    path = export.to_litert(lenet, tmp_path / "model.tflite", signature=digits.signature)
    pixels = {"image": digits.test.x["image"][:7]}
    truth = keras.ops.convert_to_numpy(keras.ops.softmax(lenet(digits.signature.inputs(pixels))))
    np.testing.assert_allclose(litert.run(path, pixels)["probabilities"], truth, atol=1e-5)
    found = litert.compare(lenet, digits.signature, path, digits.test.x, score=accuracy(digits.test), threads=1)
    assert found.agreement == 1 and found.score == found.keras_score > 0.8
    assert found.bytes == path.stat().st_size and 0 < found.ms < 1000


def test_int8_file_is_integer_throughout(lenet, digits, tmp_path):
    path = export.to_litert(
        lenet, tmp_path / "model.tflite", signature=digits.signature, precision="int8", calibration=digits.train.x,
        validation=digits.validation.x, score=accuracy(digits.validation), max_drop=0.02,
    )  # fmt: skip
    live = litert._Live(path)
    types = {detail["dtype"] for detail in live.interpreter.get_tensor_details()}
    assert np.float32 not in types and live.inputs["image"]["dtype"] == np.uint8
    assert live.outputs["probabilities"]["dtype"] == np.int8
    found = litert.compare(lenet, digits.signature, path, digits.test.x)
    assert found.agreement >= 0.97 and 1e-4 < found.difference < 0.2


def test_smaller_weights_make_smaller_files(lenet, digits, tmp_path):
    rows = {name: values[:200] for name, values in digits.test.x.items()}
    sizes = {}
    for precision in ("fp32", "fp16", "w8"):
        path = export.to_litert(
            lenet, tmp_path / f"{precision}.tflite", signature=digits.signature, precision=precision, validation=rows
        )
        sizes[precision] = path.stat().st_size
        assert litert.compare(lenet, digits.signature, path, rows, timed=0).agreement >= 0.99
    assert sizes["w8"] < 0.45 * sizes["fp32"] and sizes["fp16"] < 0.6 * sizes["fp32"]


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_tokens_of_a_fixed_length_and_two_inputs(kind, tmp_path):
    model = sequences(kind)
    random = np.random.default_rng(0)
    rows = {
        "tokens": random.integers(1, 20, (64, 9)).astype(np.int32),
        "extra": random.standard_normal((64, 3)).astype(np.float32),
    }
    before = [layer.unroll for layer in model._flatten_layers() if hasattr(layer, "unroll")]
    path = export.to_litert(model, tmp_path / "float.tflite", length=9)
    assert litert.compare(model, None, path, rows, timed=0).difference < 1e-4
    path = export.to_litert(
        model, tmp_path / "int8.tflite", length=9, precision="int8", calibration=rows, agreement=0.85
    )
    inputs = litert._Live(path).inputs
    assert inputs["tokens"]["dtype"] == np.int32 and inputs["extra"]["dtype"] == np.int8
    assert before == [layer.unroll for layer in model._flatten_layers() if hasattr(layer, "unroll")]


def test_masks_leave_attention_its_8_bits(tmp_path):
    keras.utils.set_random_seed(0)
    steps = keras.Input((7, 8), name="steps")
    attended = layers.MultiHeadAttention(2, 8)(steps, steps, use_causal_mask=True)
    model = keras.Model(steps, layers.Dense(3)(layers.LayerNormalization()(steps + attended)))
    rows = {"steps": np.random.default_rng(0).standard_normal((128, 7, 8)).astype(np.float32)}
    path = export.to_litert(model, tmp_path / "int8.tflite", precision="int8", calibration=rows, agreement=0.9)
    truth = keras.ops.convert_to_numpy(model(rows["steps"]))
    assert np.abs(litert.run(path, rows)["logits"] - truth).mean() < 0.05 * truth.std()


def test_table_in_float_fills_missing_numbers_and_int8_takes_features(mixed, tmp_path):
    numbers = Signature("regression", ("y",), TablePreprocess(("a", "b"), (5.0, 1.0), (2.0, 3.0)), 10.0, 4.0)
    model = registry.get("logistic_regression", input_shape=(2,), classes=1)
    model.set_weights([np.array([[1.0], [0.0]]), np.array([0.0])])
    path = export.to_litert(model, tmp_path / "float.tflite", signature=numbers)
    found = litert.run(path, {"numbers": np.array([[np.nan, 1], [7, np.nan]], np.float32)})
    np.testing.assert_allclose(found["value"], [[10], [14]], atol=1e-5)
    mlp = registry.get("mlp", input_shape=mixed.signature.preprocess.shape, classes=2, width=(4,))
    path = export.to_litert(
        mlp,
        tmp_path / "int8.tflite",
        signature=mixed.signature,
        precision="int8",
        calibration=mixed.train.x,
        agreement=0.8,
    )
    assert litert.compare(mlp, mixed.signature, path, mixed.test.x, timed=0).difference < 0.2


def test_boxes_of_a_two_stage_detector(tmp_path):
    entry = registry.entry("faster_rcnn")
    drawn = shapes.draw(12, 32, least=0, most=2, seed=3)
    drawn.images[3:5] = [[[[0]]], [[[255]]]]  # pictures of nothing, in which every place looks alike
    y = Boxes.padded(drawn.boxes, drawn.labels)
    rows = Rows("drawn", "detection", {"image": drawn.images}, y, ("a", "b", "c"), "drawn here", generated=True)
    signature = from_rows(rows).signature
    keras.utils.set_random_seed(0)
    model = entry.build(**entry.tiny)
    pixels = {"image": drawn.images}
    path = export.to_litert(model, tmp_path / "model.tflite", signature=signature, validation=pixels)
    answers = tasks.get("detection").answers(model.predict(signature.inputs(pixels), verbose=0), signature)
    found = litert.run(path, pixels)
    assert (answers["scores"][:, 0] > 0.05).all()
    for name, values in answers.items():
        np.testing.assert_allclose(found[name], values, atol=1e-3, err_msg=name)


def test_8_bit_weights_do_not_mix_columns_of_different_units(tmp_path):
    keras.utils.set_random_seed(0)
    step = TablePreprocess(("large", "small"), (700.0, 0.1), (300.0, 0.01))
    signature = Signature("classification", ("a", "b", "c"), step)
    model = registry.get("mlp", input_shape=(2,), classes=3, width=(600,))  # large enough to be stored in 8 bits
    drawn = np.random.default_rng(0).standard_normal((200, 2)) * step.std + step.mean
    rows = {"numbers": drawn.astype(np.float32)}
    path = export.to_litert(model, tmp_path / "w8.tflite", signature=signature, precision="w8", validation=rows)
    assert litert.inputs_of(path) == ("features",)
    assert litert.compare(model, signature, path, rows, timed=0).difference < 0.01


def test_refusals_leave_the_older_file(lenet, digits, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"older")
    given = dict(signature=digits.signature)
    few = {"image": digits.train.x["image"][:20]}
    for options, message in (
        (dict(precision="int4"), "no LiteRT precision is called 'int4'; it is one of fp32, fp16, w8, int8"),
        (dict(precision="int8"), "INT8 file needs calibration rows"),
        (dict(precision="int8", calibration={"image": few["image"][:0]}), "the calibration rows are empty"),
        (dict(precision="int8", calibration={"picture": few["image"]}), "the model takes image, got picture"),
        (dict(calibration={"image": few["image"][:, :5]}), r"'image' must be \(rows, 8, 8, 1\), got \(20, 5, 8, 1\)"),
        (dict(length=3), "leaves no axis open"),
        (dict(precision="w8", score=accuracy(digits.test)), "a score needs the rows it is for"),
        (dict(tolerance=-1), "differs from Keras by"),
    ):
        with pytest.raises(ExportError, match=message):
            export.to_litert(lenet, path, **given, **options)
    with pytest.raises(ExportError, match=r"agrees with Keras on [01]\.\d+ of the rows, at least 1.1"):
        export.to_litert(lenet, path, **given, precision="int8", calibration=few, agreement=1.1)
    worse = dict(validation=few, score=lambda answers: -float(np.abs(answers["probabilities"][0, 0] - 0.3)))
    with pytest.raises(
        ExportError, match=r"the score of the int8 LiteRT file of 'lenet' falls from .* by more than -9"
    ):
        export.to_litert(lenet, path, **given, precision="int8", calibration=few, **worse, max_drop=-9)
    assert path.read_bytes() == b"older" and [p.name for p in tmp_path.iterdir()] == ["model.tflite"]


def test_open_axes_and_operations_without_litert_form_are_named(tmp_path):
    with pytest.raises(ExportError, match=r"input 'tokens' has shape \(None, None\).*give length=, such as length=64"):
        export.to_litert(sequences("lstm"), tmp_path / "model.tflite")
    picture = keras.Input((5, 5, 5, 1))
    model = keras.Model(picture, layers.Flatten()(layers.MaxPooling3D(2)(picture)))
    with pytest.raises(ExportError, match="LiteRT has no MaxPool3D"):
        export.to_litert(model, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())
