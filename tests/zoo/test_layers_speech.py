from pathlib import Path

import keras
import make_log_mel
import numpy as np
import pytest
import references

from zoo.layers.speech import IMPOSSIBLE, BlankPadding, ClearPadding, CTCGreedyDecode, EvenFrames, LogMel, mel_filters

GOLDEN = Path(__file__).parent.parent / "golden"


def arrays(*tensors):
    return [keras.ops.convert_to_numpy(tensor) for tensor in tensors]


@pytest.mark.parametrize("kind", list(make_log_mel.KINDS))
def test_frames_are_those_of_transformers(kind):
    rate, window, hop, mels, samples = make_log_mel.KINDS[kind]
    with np.load(GOLDEN / "log_mel.npz") as golden:
        expected = golden[kind]
    frames, mask = arrays(*LogMel(rate, window, hop, mels)(make_log_mel.waves(samples)))
    assert frames.shape == expected.shape and mask.all() and mask.shape == frames.shape[:2]
    assert np.ptp(expected) > 10
    np.testing.assert_allclose(frames, expected, atol=2e-3)  # the quiet wave is near the rounding of float32
    np.testing.assert_allclose(frames[0], expected[0], atol=1e-4)


@pytest.mark.slow
def test_frames_are_those_of_transformers_live():
    if not references.installed("transformers"):
        pytest.skip("compares with transformers itself, which is not installed")
    for rate, window, hop, mels in ((22_050, 0.03, 0.01, 30), (8000, 0.032, 0.016, 16), (12_000, 0.02, 0.02, 26)):
        # of odd rates transformers rounds the half, and so moves every frequency
        expected = make_log_mel.frames(rate, window, hop, mels, 3000)[0]
        frames, _ = arrays(*LogMel(rate, window, hop, mels)(make_log_mel.waves(3000)[:1]))
        np.testing.assert_allclose(frames[0], expected, atol=2e-4)


def test_frames_are_those_of_a_fourier_transform_by_hand():
    layer = LogMel(rate=4000, window=0.025, hop=0.01, mels=12, floor=1e-3)
    audio = np.random.default_rng(0).normal(size=(2, 501)).astype("float32")
    audio[1, 200:] = 0
    frames, _ = arrays(*layer(audio))
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(100) / 100)
    starts = range(0, 501 - 100 + 1, 40)
    power = np.abs([[np.fft.rfft(wave[s : s + 100] * hann, 128) for s in starts] for wave in audio]) ** 2
    expected = np.log(np.maximum(power @ np.array(mel_filters(4000, 65, 12)), 1e-3))
    assert frames.shape == (2, 11, 12) and np.isclose(expected, np.log(1e-3)).any()
    np.testing.assert_allclose(frames, expected, atol=1e-4)


def test_every_frequency_but_the_ends_is_in_two_bands_that_add_up_to_one():
    filters = np.array(mel_filters(16_000, 257, 20))
    edges = (
        np.flatnonzero(filters[:, 0] == filters[:, 0].max())[0],
        np.flatnonzero(filters[:, -1] == filters[:, -1].max())[0],
    )
    np.testing.assert_allclose(filters[edges[0] + 1 : edges[1]].sum(axis=1), 1, atol=1e-9)
    assert filters.shape == (257, 20) and filters.min() == 0 and filters.max() <= 1


def test_a_padded_row_has_the_frames_of_itself_and_then_zeros():
    layer = LogMel(rate=4000, mels=8)
    wave = np.random.default_rng(0).normal(size=700).astype("float32")
    for samples in (100, 139, 140, 333):
        alone, _ = arrays(*layer(wave[None, :samples]))
        room = np.full((1, 700), np.nan, "float32")
        room[0, :samples] = wave[:samples]
        frames, mask = arrays(*layer(room))
        count = 1 + (samples - 100) // 40
        assert layer.frames(samples) == count == alone.shape[1]
        assert mask[0].tolist() == [True] * count + [False] * (16 - count)
        np.testing.assert_allclose(frames[0, :count], alone[0], atol=1e-5)
        assert (frames[0, count:] == 0).all()
    assert layer.frames(np.array([99, 100, 139, 140])).tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize("wrong", [dict(hop=0.03), dict(hop=1e-5), dict(mels=0), dict(floor=0.0)])
def test_what_cannot_be_frames_is_refused(wrong):
    with pytest.raises(ValueError, match="hop must be at least one sample, window at least the hop"):
        LogMel(rate=8000, **wrong)


def test_frames_are_read_alike_however_loud():
    random = np.random.default_rng(0)
    frames = random.normal(3, 5, (2, 7, 4)).astype("float32")
    frames[1] = frames[0] - 4  # the logarithm of a quieter recording
    mask = np.arange(7) < np.array([[5], [5]])
    (found,) = arrays(EvenFrames()(frames, mask))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    np.testing.assert_allclose([found[:, :5].mean(), found[:, :5].std()], [0, 1], atol=1e-5)
    assert (found[:, 5:] == 0).all()


def test_padding_is_cleared_and_says_blank():
    random = np.random.default_rng(0)
    mask = np.array([[True, True, False], [True, False, False]])
    (maps,) = arrays(ClearPadding()(random.normal(size=(2, 3, 4, 5)), mask))
    assert (maps[~mask] == 0).all() and (maps[mask] != 0).all()
    (logits,) = arrays(BlankPadding(1)(random.normal(size=(2, 3, 4)), mask))
    assert (logits[~mask] == [IMPOSSIBLE, 0, IMPOSSIBLE, IMPOSSIBLE]).all() and np.abs(logits[mask]).max() < 9
    assert np.isfinite(np.float16(IMPOSSIBLE))


@pytest.mark.parametrize("blank", [0, 4])
def test_best_path_is_that_of_keras(blank):
    random = np.random.default_rng(0)
    scores = random.normal(size=(6, 12, 5)).astype("float32")
    scores[:, 1::2] = scores[:, ::2]  # repeats
    lengths = np.array([12, 7, 1, 9, 12, 3], "int32")
    found = keras.ops.convert_to_numpy(CTCGreedyDecode(blank)(scores, lengths))
    truth = keras.ops.convert_to_numpy(keras.ops.ctc_decode(scores, lengths, mask_index=blank)[0])[0]
    width = truth.shape[1]
    assert found.shape == (6, 12) and found.dtype == np.int32
    np.testing.assert_array_equal(found[:, :width], truth)
    assert (found[:, width:] == -1).all() and (found >= 0).any()


def test_without_lengths_every_step_counts():
    best = np.array([[1, 1, 0, 1, 2, 2], [0, 0, 0, 0, 0, 0]])
    found = CTCGreedyDecode()(np.eye(3, dtype="float32")[best])
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(found), [[1, 1, 2, -1, -1, -1], [-1] * 6])


def test_a_negative_blank_is_refused():
    with pytest.raises(ValueError, match="blank must be at least 0"):
        CTCGreedyDecode(-1)
