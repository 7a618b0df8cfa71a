"""Boxes move with what is inside them."""

import numpy as np
import pytest

from zoo.data.targets import NOTHING
from zoo.training import augment

SIDES = (48, 64)


@pytest.fixture
def batch():
    """Images of 48x64 pixels that are 1, 2 or 3 inside of boxes and 0 outside, the last without any."""
    random = np.random.default_rng(0)
    images = np.zeros((12, *SIDES, 1), np.float32)
    targets = np.zeros((12, 3, 5), np.float32)
    targets[..., 4] = NOTHING
    for row in range(11):
        for place in range(row % 3 + 1):
            left, top = random.integers(1, 10) + 21 * place, random.integers(1, 24)
            right, bottom = left + random.integers(8, 12), top + random.integers(8, 20)
            images[row, top:bottom, left:right] = place + 1
            targets[row, place] = (left, top, right, bottom, place)
    return images, targets


def filled(image, box):
    """How far the pixels inside a box, its outermost line left out, are from those of its class."""
    left, top, right, bottom = box[:4]
    inner = image[round(top + 1) : round(bottom - 1), round(left + 1) : round(right - 1), 0]
    return np.abs(inner - (box[4] + 1)).max(initial=0)


@pytest.mark.parametrize("name", ["flip", "shift", "crop", "mosaic"])
def test_boxes_hold_what_they_held(batch, name):
    images, targets = batch
    before = images.copy(), targets.copy()
    made, boxes = augment.apply((name,), images, targets, np.random.default_rng(2))
    np.testing.assert_array_equal(images, before[0])
    np.testing.assert_array_equal(targets, before[1])
    assert made.shape == images.shape and made.dtype == boxes.dtype == np.float32
    assert not np.array_equal(made, images)
    real = boxes[boxes[..., 4] != NOTHING]
    assert len(real) >= 15 and np.isfinite(boxes).all()
    assert (real[:, :2] >= 0).all() and (real[:, 2] <= SIDES[1]).all() and (real[:, 3] <= SIDES[0]).all()
    assert (real[:, 2:4] > real[:, :2]).all()
    assert not boxes[boxes[..., 4] == NOTHING][:, :4].any()
    for image, own in zip(made, boxes, strict=True):
        seen = np.zeros(SIDES, bool)
        for box in own[own[:, 4] != NOTHING]:
            assert filled(image, box) < 0.02, (name, box)
            left, top, right, bottom = box[:4]
            seen[int(max(top - 1, 0)) : int(bottom + 2), int(max(left - 1, 0)) : int(right + 2)] = True
        if name == "flip":
            assert not image[~seen].any()


def test_a_mosaic_shows_several_images_and_has_room_for_their_boxes(batch):
    images, targets = batch
    _, boxes = augment.apply(("mosaic",), images, targets, np.random.default_rng(2))
    assert boxes.shape == (12, 12, 5)
    assert ((boxes[..., 4] != NOTHING).sum(axis=1) > 3).any()
    untouched = (boxes[:, :3] == targets).all(axis=(1, 2))
    assert 2 <= untouched.sum() <= 10


def test_boxes_of_which_little_is_left_are_gone():
    from zoo.training.augment_boxes import _cut

    boxes = np.array([[0, 0, 8, 8, 0], [2, 2, 8, 8, 1], [8, 0, 16, 8, 2]], np.float32)
    cut = _cut(boxes, 1.0, (-5.0, 0.0), (0, 0, 16, 16))
    np.testing.assert_array_equal(cut[:, 4], [0, 1, 2])
    np.testing.assert_array_equal(cut[0, :4], [0, 0, 3, 8])
    assert _cut(boxes, 1.0, (-6.5, 0.0), (0, 0, 16, 16))[:, 4].tolist() == [NOTHING, 1, 2]


@pytest.mark.parametrize("name", ["rotate", "mixup", "cutmix"])
def test_what_does_not_move_boxes_is_refused(batch, name):
    with pytest.raises(ValueError, match=f"'{name}' does not move boxes"):
        augment.apply((name,), *batch, np.random.default_rng(0))


def test_a_mosaic_needs_boxes():
    with pytest.raises(ValueError, match="the targets have none"):
        augment.apply(("mosaic",), np.zeros((4, 8, 8, 3)), np.eye(4), np.random.default_rng(0))
