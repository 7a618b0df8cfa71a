"""Pooling that Keras lacks."""

import math

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable("zoo")
class GridAverage(layers.Layer):
    """Averages a map to a number of places: (batch, height, width, channels) -> (batch, rows, columns, channels).

    Place i of a row is the mean of the map's places from floor(i height / rows) up to ceil((i + 1) height / rows), so a map
    that is smaller than the grid is repeated; torch calls it adaptive. Keras' AdaptiveAveragePooling2D finds these borders
    in float32, which XLA rounds to places outside of the map.

    Args:
        grid: (rows, columns).
    """

    def __init__(self, grid: tuple[int, int] = (7, 7), **kwargs) -> None:
        super().__init__(**kwargs)
        self.grid = tuple(grid)

    def build(self, shape):
        self.down, self.across = (_shares(size, count) for size, count in zip(shape[1:3], self.grid, strict=True))

    def call(self, x):
        down, across = (ops.convert_to_tensor(shares, x.dtype) for shares in (self.down, self.across))
        height, width, channels = x.shape[1:]
        rows = self.grid[0]
        x = ops.matmul(down, ops.reshape(x, (-1, height, width * channels)))  # (batch, rows, width * channels)
        return ops.matmul(across, ops.reshape(x, (-1, rows, width, channels)))  # (batch, rows, columns, channels)

    def compute_output_shape(self, shape):
        return (shape[0], *self.grid, shape[-1])

    def get_config(self):
        return {**super().get_config(), "grid": self.grid}


def _shares(size, count):
    """What each of `size` places adds to each of `count` means: [[share, …], …]."""
    found = []
    for place in range(count):
        first, last = place * size // count, math.ceil((place + 1) * size / count)
        found.append([1 / (last - first) if first <= source < last else 0.0 for source in range(size)])
    return found
