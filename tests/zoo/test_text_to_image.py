"""Texts to images: the paper's equations in numpy, the figures, and a small model that learns and is judged."""

import json
import math

import keras
import numpy as np
import pytest
from PIL import Image

import zoo
from zoo import data as datasets
from zoo import tasks
from zoo.architectures import dalle
from zoo.data import captions, from_rows
from zoo.data.rows import Rows
from zoo.evaluate.report import answers
from zoo.tasks.text_to_image import parts
from zoo.training import load, load_data

TASK = tasks.get("text-to-image")
TINY = {"codes": 6, "filters": 6, "poolings": 3, "anneal": 6, "width": 8, "depth": 1, "heads": 2}
PLACES = 16  # of pictures of 32 pixels a side, which are halved three times


def small():
    pictures, texts, y, part = captions.captioned(96, 24, 40, seed=0)
    x = {"image": pictures, "text": texts}
    return from_rows(
        Rows("small", captions.PAINTED, x, y, (), "small", part=part, generated=True), tokenizer="wordpiece"
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "dalle"
    return zoo.train("dalle", small(), out=folder, epochs=2, batch_size=32, quiet=True, **TINY)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    return zoo.get("dalle", input_shape=(8, 4, 3), vocabulary=9, length=5, **{**TINY, "poolings": 1})


def rows_for(model, rows=3):
    random = np.random.default_rng(1)
    tokens = random.integers(1, 9, (rows, 5)).astype(np.int32)
    tokens[0, 3:] = 0
    return {"tokens": tokens, "image": random.uniform(0, 1, (rows, 8, 4, 3)).astype(np.float32)}


def of(model, name, x):
    return keras.Model(model.inputs, model.get_layer(name).output).predict_on_batch(x)


def test_the_likelihood_of_pixels_is_a_density_and_the_papers():
    pixels = np.linspace(0, 1, 21, dtype=np.float32)
    middle, scale = np.float32(0.4), np.float32(-0.7)
    found = keras.ops.convert_to_numpy(dalle.logit_laplace(pixels, middle, scale))
    x, b = 0.8 * pixels + 0.1, math.exp(scale)
    expected = np.exp(-np.abs(np.log(x / (1 - x)) - middle) / b) / (2 * b * x * (1 - x))
    np.testing.assert_allclose(np.exp(-found), expected, rtol=1e-5)
    x = np.linspace(0.001, 0.999, 4_001, dtype=np.float32)  # farther than pixels reach
    density = np.exp(-keras.ops.convert_to_numpy(dalle.logit_laplace((x - 0.1) / 0.8, middle, scale)))
    assert density.sum() * (x[1] - x[0]) == pytest.approx(1, abs=2e-3)


def test_a_pixel_comes_back_from_its_own_middle():
    pixels = np.linspace(0, 1, 11).astype(np.float32)
    x = 0.8 * pixels + 0.1
    found = keras.ops.convert_to_numpy(dalle.drawn(np.log(x / (1 - x))))
    np.testing.assert_allclose(found, pixels, atol=1e-6)
    assert keras.ops.convert_to_numpy(dalle.drawn(np.array([-9.0, 9.0]))).tolist() == [0, 1]


def test_relaxed_codes_are_drawn_as_often_as_they_are_likely_and_cool_to_one_hot():
    random = np.random.default_rng(0)
    logits = np.log(np.array([0.1, 0.2, 0.7], np.float32))
    drawn = random.uniform(1e-6, 1 - 1e-6, (20_000, 3)).astype(np.float32)
    cold = keras.ops.convert_to_numpy(dalle.relaxed(logits, drawn, 1 / 16))
    counts = np.bincount(cold.argmax(axis=1), minlength=3) / len(drawn)
    np.testing.assert_allclose(counts, [0.1, 0.2, 0.7], atol=0.015)
    noisy = (logits - np.log(-np.log(drawn))) / 1.0
    expected = np.exp(noisy) / np.exp(noisy).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(dalle.relaxed(logits, drawn, 1.0)), expected, rtol=1e-4)
    warm = keras.ops.convert_to_numpy(dalle.relaxed(logits, drawn, 1.0))
    assert cold.max(axis=1).mean() > 0.95 > warm.max(axis=1).mean()


def test_the_temperature_falls_by_half_a_cosine_and_answers_take_the_likeliest_code(monkeypatch):
    seen = []
    monkeypatch.setattr(dalle, "relaxed", lambda logits, drawn, temperature: seen.append(float(temperature)) or logits)
    layer = dalle.Relaxed(4)
    logits = np.random.default_rng(0).standard_normal((2, 3, 3, 5)).astype(np.float32)
    for _ in range(7):
        layer(logits, training=True)
    expected = [1 / 16 + 15 / 16 * (1 + math.cos(math.pi * min(step / 4, 1))) / 2 for step in range(7)]
    np.testing.assert_allclose(seen, expected, rtol=1e-5)
    found = keras.ops.convert_to_numpy(layer(logits))
    np.testing.assert_array_equal(found, np.eye(5)[logits.argmax(axis=-1)])
    assert len(seen) == 7 and float(layer.count) == 7


def test_the_divergence_is_from_all_codes_alike_and_its_weight_rises():
    layer = dalle.Divergence(2, weight=3.0, values=10)
    logits = np.random.default_rng(0).standard_normal((2, 2, 3, 4)).astype(np.float32)
    share = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    whole = (share * np.log(share * 4)).sum(axis=(1, 2, 3))[:, None] * 3 / 10
    np.testing.assert_allclose(layer(logits), whole, rtol=1e-4)
    for part in (0, 0.5, 1, 1):
        np.testing.assert_allclose(layer(logits, training=True), part * whole, rtol=1e-4)
    np.testing.assert_allclose(layer(np.zeros((1, 2, 2, 4), np.float32)), [[0]], atol=1e-6)


def test_padding_has_a_token_for_each_place_and_codes_follow_in_one_vocabulary():
    layer = dalle.OneText(9)
    logits = np.zeros((1, 2, 2, 3), np.float32)
    logits[0, 0, 1, 2] = logits[0, 1, 1, 1] = 1
    found = keras.ops.convert_to_numpy(layer(np.array([[4, 8, 0, 0]], np.int32), logits))
    assert found.tolist() == [[4, 8, 11, 12, 13, 15, 13, 14]]


def test_codes_of_a_row_and_of_a_column_share_a_vector():
    layer = dalle.TextAndGrid(2, 3, 4)
    layer.build((None, 14, 5))
    layer.set_weights([np.random.default_rng(0).standard_normal(w.shape) for w in layer.weights])
    found = keras.ops.convert_to_numpy(layer(np.zeros((1, 14, 5), np.float32)))[0]
    text, row, column = (np.asarray(weight) for weight in (layer.text, layer.row, layer.column))
    np.testing.assert_allclose(found[:2], text, atol=1e-6)
    np.testing.assert_allclose(found[2:].reshape(3, 4, 5), row + column, atol=1e-6)
    later = keras.ops.convert_to_numpy(layer(np.zeros((2, 3, 5), np.float32), start=np.array([[1], [4]], np.int32)))
    np.testing.assert_array_equal(later, [found[1:4], found[4:7]])


def test_figures_are_those_of_the_parts_of_the_model(model):
    x = rows_for(model)
    text, nats, codes, rest = parts(np.asarray(model.predict_on_batch(x)), 5)
    whole, logits = of(model, "text", x), of(model, "logits", x)
    np.testing.assert_array_equal(codes, whole[:, 5:] - 14)
    assert whole[0, 3:5].tolist() == [12, 13] and nats.shape == (3, 8) and text.shape == (3, 4)
    likely = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = -np.take_along_axis(likely[:, :-1], whole[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(np.concatenate([text, nats], axis=1), expected, atol=1e-4)
    middle, scale = np.split(of(model, "pixels", x), 2, axis=-1)
    drawn = keras.ops.convert_to_numpy(dalle.drawn(middle))
    np.testing.assert_allclose(rest[:, 1], np.abs(drawn - x["image"]).mean(axis=(1, 2, 3)), atol=1e-5)
    values = keras.ops.convert_to_numpy(dalle.logit_laplace(x["image"], middle, np.maximum(scale, -5)))
    np.testing.assert_allclose(rest[:, 0], values.mean(axis=(1, 2, 3)), rtol=1e-4)


def test_no_place_looks_ahead(model):
    x = rows_for(model)
    writer = keras.Model(model.get_layer("text").output, model.get_layer("logits").output)
    whole = of(model, "text", x)
    before = writer.predict_on_batch(whole)
    whole[:, 9] = 14 + (whole[:, 9] - 13) % 6
    after = writer.predict_on_batch(whole)
    np.testing.assert_allclose(after[:, :9], before[:, :9], atol=1e-5)
    assert np.abs(after[:, 9:] - before[:, 9:]).max(axis=(0, 2)).min() > 1e-5


def test_the_loss_weighs_text_by_an_eighth_and_counts_for_each_value(model):
    figures = np.random.default_rng(0).uniform(0, 2, (4, 4 + 2 * 8 + 3)).astype(np.float32)
    found = keras.ops.convert_to_numpy(TASK.loss_for(model, "", 0.0)(np.zeros((4, 2)), figures))
    codes = figures[:, :4].mean(axis=1) / 8 + figures[:, 4:12].mean(axis=1) * 7 / 8
    np.testing.assert_allclose(found, figures[:, -3] + figures[:, -1] + codes * 8 / 96, rtol=1e-5)


def test_neither_half_learns_from_the_others_loss(model):
    from zoo.training.gradients import gradients

    assert {weight.path.split("/")[0] for weight in model.trainable_weights} > {"code_logits", "words"}
    x = rows_for(model)

    def moved(columns):
        _, found = gradients(model, lambda _, figures: keras.ops.sum(figures[:, columns]), x, None)
        paths = [weight.path.split("/")[0] for weight in model.trainable_variables]
        return {path for path, slopes in zip(paths, found, strict=True) if np.abs(slopes).max() > 0}

    transformer, autoencoder = moved(slice(0, 12)), moved(slice(-1, None))
    assert "words" in transformer and "code_logits" not in transformer
    assert "code_logits" in autoencoder and "words" not in autoencoder


def scored(nats, codes, rest=(0.5, 8.0)):
    nats, codes = np.asarray(nats, np.float32), np.asarray(codes, np.float32)
    return np.concatenate([nats, codes, np.tile(np.float32(rest), (len(nats), 1))], axis=1)


def test_what_is_saved_is_counted_against_the_frequencies_of_the_codes():
    bit = math.log(2)
    given = scored(np.full((2, 2), bit / 2), [[0, 1], [1, 0]])  # a bit each by frequency, half a bit as foretold
    found = {name: float(f(np.ones((1, 2)))[0]) for name, f in TASK.measures(np.zeros((2, 2)), given).items()}
    assert found == pytest.approx(
        {"bits_saved": 0.5, "bits_per_code": 0.5, "reconstruction_error": 8.0, "bits_per_value": 0.5 / bit}
    )
    skewed = scored(np.zeros((2, 4)), [[0, 0, 0, 1], [0, 0, 0, 1]])
    table = TASK.tables(np.zeros((2, 2)), skewed, ())[1]
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert table["all"]["bits by frequency"] == pytest.approx(entropy) and table["all"]["codes in use"] == 2
    same = scored(np.zeros((3, 2)), np.full((3, 2), 4))
    assert TASK.score(np.zeros((3, 2)), same) == 0  # codes that say nothing save nothing
    weighted = TASK.measures(np.zeros((2, 2)), scored([[bit] * 2, [0, 0]], [[0, 1], [1, 0]]))["bits_saved"]
    np.testing.assert_allclose(weighted(np.array([[1, 1], [0, 2], [2, 0]])), [0.5, 1, 0], atol=1e-6)


def test_the_same_rows_are_for_painting_where_that_is_asked(tmp_path):
    random = np.random.default_rng(0)
    for number in range(24):
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"{number}.png")
    table = tmp_path / "pictures.csv"
    table.write_text("image,caption\n" + "".join(f"{n}.png,picture {n % 5}\n" for n in range(24)))
    data = datasets.load(table, task="text-to-image")
    assert data.signature.task == "text-to-image" and "pictures" in data.summary()
    assert datasets.load(table).signature.task == "image-text"
    with pytest.raises(ValueError, match="'digits' is for image-classification, got task='image-text'"):
        datasets.load("digits", task="text-to-image")


def test_training_judges_and_is_read_back(run):
    assert run.metrics.keys() >= {"train", "validation", "test", "baseline"} and run.metrics["baseline"] == 0
    again = load(run.folder)
    rows = {name: values[:5] for name, values in run.data.test.x.items()}
    expected = answers(run.model, run.signature, rows)
    assert expected.shape == (5, 2 * PLACES + 2)
    np.testing.assert_allclose(answers(again.model, again.signature, rows), expected, atol=1e-4)
    assert float(again.model.get_layer("codes").count) == float(run.model.get_layer("codes").count) > 0
    assert run.recipe.arguments["length"] == run.signature.text.length and run.recipe.scaling == "0/255"
    assert load_data(again).sha256 == run.data.sha256 if run.recipe.data in datasets.names() else True
    report = zoo.evaluate(run)
    report.save(run.folder / "report")
    figures = json.loads((run.folder / "report" / "metrics.json").read_text())
    assert figures["per_class"]["all"]["codes in use"] <= 6
    for name in ("examples.png", "worst.png", "confusion.png"):
        assert (run.folder / "report" / name).stat().st_size
    assert "bits_per_code" in str(report)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "mse"}, "has one loss, without label_smoothing, got loss='mse'"),
        ({"label_smoothing": 0.1}, "without label_smoothing, got loss='', label_smoothing=0.1"),
        ({"augment": ("shift",)}, "augment 'shift' changes pictures, and what their texts tell"),
        ({"scaling": "fitted"}, "must be drawn from pixels in .0, 1., got scaling='.*'; leave scaling at 0/255"),
    ],
)
def test_what_does_not_suit_painting_is_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        zoo.train("dalle", small(), out=tmp_path / "run", epochs=1, quiet=True, **TINY, **settings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"codes": 0}, "codes must be at least 1, got 0"),
        ({"divergence": -1.0}, r"divergence must be at least 0, got hidden=0, poolings=3, divergence=-1\.0"),
        ({"width": 10, "heads": 4}, "width must be a multiple of heads, got width=10, heads=4"),
        (
            {"input_shape": (20, 32, 3)},
            r"multiples of 8 for 3 poolings, got \(20, 32, 3\); resize the images, or pass fewer",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        zoo.get("dalle", **given)


def test_the_file_answers_as_keras_does(run, tmp_path):
    import onnxruntime

    import export

    export.to_onnx(run.model, tmp_path / "model.onnx", signature=run.signature)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    rows = {name: values[:4] for name, values in run.data.test.x.items()}
    found = dict(
        zip([port.name for port in session.get_outputs()], session.run(None, run.signature.fed(rows)), strict=True)
    )
    np.testing.assert_allclose(TASK.scored(found), answers(run.model, run.signature, rows), atol=1e-3)
