"""What is said does not depend on what stands behind it, in Keras and in the exported file; sizes and mistakes."""

import keras
import numpy as np
import onnxruntime
import pytest

import export
import zoo
from zoo import compress

SMALL = dict(rate=4000, classes=5, mels=12, filters=4, width=6, depth=2)
LENGTHS = (640, 421, 180, 100)
AUDIO = ((640,), (None,))


@pytest.fixture(scope="module")
def models():
    """One recogniser of a fixed and one of any length, with the same random weights and statistics."""
    random = np.random.default_rng(0)
    found = [zoo.get("speech_ctc", input_shape=shape, **SMALL) for shape in AUDIO]
    for weight in found[0].weights:
        scale = (0.5, 2) if "variance" in weight.path or "gamma" in weight.path else (-0.6, 0.6)
        weight.assign(random.uniform(*scale, weight.shape))
    found[1].set_weights(found[0].get_weights())
    return found


@pytest.fixture(scope="module")
def audio():
    random = np.random.default_rng(1)
    waves = np.full((len(LENGTHS), 640), np.nan, "float32")
    for row, length in enumerate(LENGTHS):
        waves[row, :length] = random.normal(size=length)
    return waves


def answer(model, audio):
    return keras.ops.convert_to_numpy(model(audio, training=False))


def test_a_padded_row_answers_as_itself(models, audio):
    fixed, free = models
    padded = answer(fixed, audio)
    assert padded.shape == (4, 7, 5) and np.ptp(padded[0], axis=0).min() > 1e-3
    for row, length in enumerate(LENGTHS):
        alone = answer(free, audio[row : row + 1, :length])
        steps = -(-(1 + (length - 100) // 40) // 2)
        assert alone.shape == (1, steps, 5)
        np.testing.assert_allclose(padded[row, :steps], alone[0], atol=2e-6)
        assert (padded[row, steps:, 0] == 0).all() and (padded[row, steps:, 1:] < -1e4).all()


def test_the_exported_file_does_so_too(models, audio, tmp_path):
    fixed = models[0]
    live = []
    for place, model in enumerate(models):
        export.to_onnx(model, tmp_path / f"{place}.onnx", golden={"audio": np.nan_to_num(audio)})
        live.append(onnxruntime.InferenceSession(tmp_path / f"{place}.onnx", providers=["CPUExecutionProvider"]))
    (padded,) = live[0].run(None, {"audio": audio})
    np.testing.assert_allclose(padded, answer(fixed, audio), atol=1e-5)
    for row, length in enumerate(LENGTHS):
        (alone,) = live[1].run(None, {"audio": audio[row : row + 1, :length]})
        np.testing.assert_allclose(padded[row, : alone.shape[1]], alone[0], atol=1e-5)


def test_channels_can_be_removed_and_padding_still_says_nothing(models, audio):
    small = compress.prune_channels(models[0], 0.5)
    assert small.count_params() < 0.8 * models[0].count_params()
    found = answer(small, audio)
    assert found.shape == (4, 7, 5) and (found[2, 2:, 0] == 0).all() and (found[2, 2:, 1:] < -1e4).all()
    np.testing.assert_allclose(found[2], answer(small, audio[2:3])[0], atol=2e-6)


def test_padding_changes_neither_the_loss_nor_the_statistics_of_training(models, audio):
    fixed, free = models
    y = np.array([[1, 2, 0]], "float32")
    loss = keras.losses.CTC()
    short = audio[1:2, :421]
    states = []
    for model, given in ((fixed, audio[1:2]), (free, short)):
        before = model.get_weights()
        value = float(loss(y, model(given, training=True)))
        states.append((value, [np.array(w) for w in model.non_trainable_weights if "moving" in w.path]))
        model.set_weights(before)
    assert states[0][0] == pytest.approx(states[1][0], rel=1e-5) and states[0][0] > 1
    for one, other in zip(states[0][1], states[1][1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_count_of_parameters_follows_the_formula():
    for mels, filters, width, depth, classes in ((12, 4, 6, 2, 5), (21, 3, 8, 1, 4)):
        model = zoo.get(
            "speech_ctc", input_shape=(800,), rate=4000, mels=mels, filters=filters, width=width, depth=depth,
            classes=classes,
        )  # fmt: skip
        bands = (mels + 3) // 4
        convolutions = 121 * filters * (1 + filters) + 4 * filters
        first = 6 * (bands * filters * width + width**2 + 2 * width)
        rest = (depth - 1) * (6 * (2 * width**2 + 2 * width) + 2 * width)
        expected = convolutions + first + rest + (width + 1) * classes
        assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == expected


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(depth=0), "depth must be at least 1, got depth=0"),
        (dict(input_shape=(99,)), "at least the 100 samples of a window, got"),
        (dict(input_shape=(8, 8, 1)), "input_shape must be"),
        (dict(hop=0.05), "hop must be at least one sample"),
    ],
)
def test_mistakes_are_said(wrong, message):
    with pytest.raises(ValueError, match=message):
        zoo.get("speech_ctc", **{"input_shape": (640,), **SMALL, **wrong})
