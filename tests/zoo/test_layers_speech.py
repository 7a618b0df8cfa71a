import keras
import numpy as np
import pytest

from zoo.layers.speech import CTCGreedyDecode


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
