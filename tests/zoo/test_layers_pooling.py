import keras
import numpy as np
import pytest

import export
import zoo
from zoo.layers.pooling import GridAverage


def by_hand(image, grid):
    """The mean of each window of one map, by loops."""
    height, width, channels = image.shape
    found = np.empty((*grid, channels))
    for row in range(grid[0]):
        for column in range(grid[1]):
            top, left = row * height // grid[0], column * width // grid[1]
            below, right = -(-(row + 1) * height // grid[0]), -(-(column + 1) * width // grid[1])
            found[row, column] = image[top:below, left:right].mean(axis=(0, 1))
    return found


@pytest.mark.parametrize(("size", "grid"), [((8, 8), (7, 7)), ((3, 5), (7, 7)), ((1, 1), (7, 7)), ((14, 10), (7, 3))])
def test_each_place_is_the_mean_of_its_window(size, grid):
    images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    found = keras.ops.convert_to_numpy(GridAverage(grid)(images))
    np.testing.assert_allclose(found, [by_hand(image, grid) for image in images], atol=1e-6)


def test_a_network_with_it_is_exported_saved_and_pruned(tmp_path):
    keras.utils.set_random_seed(0)
    model = zoo.get("vgg11", input_shape=(20, 24, 3), classes=3, depth=(1, 1), width=8, hidden=(6, 5), grid=3)
    export.to_onnx(model, tmp_path / "model.onnx")
    model.save(tmp_path / "model.keras")
    images = np.random.default_rng(0).normal(size=(2, 20, 24, 3)).astype(np.float32)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(images), model(images), atol=1e-6)
    small = zoo.compress.prune_channels(model, 0.5)
    assert small.get_layer("stage1_conv0").filters < model.get_layer("stage1_conv0").filters
    assert np.asarray(small(images)).shape == (2, 3)
    assert zoo.compress.macs(small) < zoo.compress.macs(model)
