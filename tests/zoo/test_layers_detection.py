import keras
import numpy as np
import pytest
from plain import bilinear

from zoo.layers.detection import NonMaxSuppression, RoIAlign


def overlap(a, b):
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    both = max(width, 0) * max(height, 0)
    return both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both)


def greedy(boxes, scores, limit, threshold, count):
    """(score, class, anchor) of what stays in one image, by the textbook loop."""
    stays = []
    for kind in range(scores.shape[1]):
        chosen = []
        for anchor in np.argsort(-scores[:, kind], kind="stable"):
            if scores[anchor, kind] <= threshold or len(chosen) == count:
                break
            if all(overlap(boxes[anchor], boxes[other]) <= limit for other in chosen):
                chosen.append(anchor)
        stays += [(scores[anchor, kind], kind, anchor) for anchor in chosen]
    return sorted(stays, key=lambda one: -one[0])[:count]


@pytest.mark.parametrize(("count", "limit", "threshold"), [(5, 0.3, 0.1), (50, 0.5, 0.4), (9, 0.0, 0.0), (3, 1.0, 0.0)])
def test_suppression_is_the_textbook_loop(count, limit, threshold):
    random = np.random.default_rng(0)
    start = random.uniform(0, 10, (3, 30, 2))
    boxes = np.concatenate([start, start + random.uniform(1, 8, start.shape)], axis=-1).astype("float32")
    scores = random.random((3, 30, 4)).astype("float32")
    layer = NonMaxSuppression(count=count, overlap=limit, score=threshold)
    found = [keras.ops.convert_to_numpy(one) for one in layer(boxes, scores)]
    for image in range(3):
        stays = greedy(boxes[image], scores[image], limit, threshold, count)
        valid = found[3][image]
        assert valid.sum() == len(stays) and valid[: len(stays)].all()
        np.testing.assert_array_equal(found[2][image][valid], [kind for _, kind, _ in stays])
        np.testing.assert_allclose(found[1][image][valid], [score for score, _, _ in stays])
        np.testing.assert_allclose(found[0][image][valid], boxes[image][[anchor for *_, anchor in stays]])
        assert not found[0][image][~valid].any() and not found[1][image][~valid].any()


def test_only_the_best_anchors_compete():
    boxes = np.array([[[0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10]]], "float32")
    scores = np.array([[[0.2, 0.1], [0.3, 0.9], [0.1, 0.4]]], "float32")
    found = NonMaxSuppression(count=4, candidates=2)(boxes, scores)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(found[1]), [[0.9, 0.4, 0.3, 0.1]], atol=1e-6)


@pytest.mark.parametrize(
    "box", [(1.0, 2.0, 13.0, 9.0), (-9.0, -4.0, 6.0, 8.0), (12.0, 10.0, 40.0, 30.0), (3.0, 3.0, 3.0, 3.0)]
)
def test_features_under_a_box_are_means_of_points(box):
    size, samples, scale = 3, 2, 0.5
    features = np.random.default_rng(1).normal(size=(2, 6, 8, 3)).astype("float32")
    boxes = np.tile(np.array(box, "float32"), (2, 1, 1))
    found = keras.ops.convert_to_numpy(RoIAlign(size, scale, samples)(features, boxes))
    assert found.shape == (2, 1, size, size, 3)
    left, top, right, bottom = (number * scale for number in box)
    steps = (np.arange(size * samples) + 0.5) / (size * samples)
    ys, xs = top - 0.5 + (bottom - top) * steps, left - 0.5 + (right - left) * steps
    for image in range(2):
        points = np.array([[bilinear(features[image], y, x) for x in xs] for y in ys])
        cells = points.reshape(size, samples, size, samples, 3).mean(axis=(1, 3))
        np.testing.assert_allclose(found[image, 0], cells, atol=1e-5)


def test_settings_are_checked_and_survive_saving():
    with pytest.raises(ValueError, match="overlap must be in"):
        NonMaxSuppression(overlap=1.2)
    with pytest.raises(ValueError, match="scale above 0"):
        RoIAlign(scale=0)
    layer = NonMaxSuppression(count=7, overlap=0.2, score=0.3, candidates=50)
    again = NonMaxSuppression.from_config(layer.get_config())
    assert (again.count, again.overlap, again.score, again.candidates) == (7, 0.2, 0.3, 50)
    assert RoIAlign.from_config(RoIAlign(5, 0.25, 3).get_config()).samples == 3
