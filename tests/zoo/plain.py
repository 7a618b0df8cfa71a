"""Plain numpy versions of what several tests compare with."""

import numpy as np


def bilinear(image, y, x):
    """Value of an image (height, width, channels) between its pixels; 0 from a pixel outside on."""
    height, width, channels = image.shape
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(channels)
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    above = image[top, left] * (1 - across) + image[top, right] * across
    return above * (1 - down) + (image[bottom, left] * (1 - across) + image[bottom, right] * across) * down
