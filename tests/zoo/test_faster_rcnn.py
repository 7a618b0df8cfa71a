"""Faster R-CNN: each stage says what torchvision's says, from a file in torchvision's names."""

import re
from pathlib import Path

import keras
import make_faster_rcnn as made
import numpy as np
import pytest
import references
from keras import ops
from plain import bilinear
from safetensors.numpy import save_file

import zoo
from zoo.layers.detection import NonMaxSuppression
from zoo.layers.matching import NOTHING, UNUSED, box_loss, matched, sampled
from zoo.layers.regions import Proposals, PyramidAlign, moved, moves

GOLDEN = Path(__file__).parent.parent / "golden" / "faster_rcnn.npz"
PAIRS = made.PROPOSALS * made.CLASSES


def loaded(file):
    arguments = {"input_shape": (made.HEIGHT, made.WIDTH, 3), "anchors": made.ANCHORS, "proposals": made.PROPOSALS}
    model = zoo.get("faster_rcnn", weights=str(file), candidates=PAIRS, **arguments)
    model.get_layer("proposals").candidates = made.CANDIDATES
    return model


def stages(model, images):
    """What each stage gives, by the names of the golden file."""
    said = model.said(images, False)
    boxes, valid = said["proposals"]
    assert np.asarray(valid).all()
    found = {f"{name}{level}": x for name in ("logits", "deltas") for level, x in enumerate(said[name])}
    found |= {f"map{level}": x for level, x in enumerate(said["maps"])}
    found |= {"proposals": boxes, "regions": model.get_layer("regions")(said["maps"], boxes)}
    found["class_logits"], found["class_deltas"] = model.head(said["maps"], boxes)
    raw = model(images, training=False)
    scores = ops.sigmoid(raw[..., 4:5]) * ops.sigmoid(raw[..., 5:])
    answers = NonMaxSuppression(made.FOUND, 0.5, 0.05)(raw[..., :4], scores)
    found |= {"boxes": answers[0], "scores": answers[1], "labels": answers[2] + 1}
    return {name: ops.convert_to_numpy(x) for name, x in found.items()}


def compare(found, wanted):
    for name, array in wanted.items():
        if name != "map4":  # the regions take nothing from it
            np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-4, err_msg=name)


@pytest.fixture(scope="module")
def tensors():
    golden = np.load(GOLDEN)
    rows = zip(golden["names"], golden["shapes"], strict=True)
    return made.weights({str(name): tuple(int(n) for n in shape if n) for name, shape in rows})


@pytest.fixture(scope="module")
def from_golden(tensors, tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(tensors, file)
    return loaded(file), np.load(GOLDEN)


def test_every_stage_says_what_torchvision_says(from_golden):
    model, golden = from_golden
    found = stages(model, made.images())
    found["map0"], found["regions"] = found["map0"][:, ::4, ::4], found["regions"][:, ::6]
    compare(found, {name.removeprefix("out/"): golden[name] for name in golden.files if name.startswith("out/")})
    assert not any(weight.path.startswith("stem_conv_norm") for weight in model.trainable_weights)


def test_names_of_older_releases(from_golden, tensors, tmp_path):
    def older(name):
        if ".fpn." in name:
            return re.sub(r"\.0\.(weight|bias)$", r".\1", name)
        return name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")

    assert sum(older(name) != name for name in tensors) == 2 * (4 + 4 + 1)
    save_file({older(name): tensor for name, tensor in tensors.items()}, tmp_path / "older.safetensors")
    for one, other in zip(
        from_golden[0].get_weights(), loaded(tmp_path / "older.safetensors").get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def nothing_left_to_chance(monkeypatch):
    for stage in ("ANCHORS", "REGIONS"):
        monkeypatch.setattr(f"zoo.architectures.faster_rcnn.{stage}_LEARNED", 10**6)
        monkeypatch.setattr(f"zoo.architectures.faster_rcnn.{stage}_TRUE", 1.0)


def losses(model, images, things):
    said, truth = model(images, training=True), ops.convert_to_tensor(things)
    return [*model.first_losses(said, truth, 0), *model.second_losses(said, truth, 0)]


def test_losses_are_those_of_torchvision(from_golden, nothing_left_to_chance):
    model, golden = from_golden
    found = [float(loss) for loss in losses(model, made.images(3), made.things())]
    np.testing.assert_allclose(found, golden["losses"], rtol=1e-4)


@pytest.mark.slow
def test_losses_and_their_gradients_live(tmp_path, nothing_left_to_chance):
    if not references.installed("torch", "torchvision"):
        pytest.skip("needs torch and torchvision")
    from zoo.training.gradients import gradients
    from zoo.weights import layouts

    shapes, _ = made.torch_answers()
    save_file(made.weights(shapes, seed=5), tmp_path / "model.safetensors")
    model = loaded(tmp_path / "model.safetensors")
    wanted, slopes = made.torch_losses(seed=5)
    found = [float(loss) for loss in losses(model, made.images(3), made.things())]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    value, own = gradients(
        model,
        lambda truth, said: model.compute_loss(None, truth, said),
        made.images(3),
        made.things(),
        training=True,
    )
    assert abs(value - wanted.sum()) < 1e-3
    own = {weight.path: slope for weight, slope in zip(model.trainable_weights, own, strict=True)}
    entry = zoo.registry.entry("faster_rcnn")
    _, theirs, unknown = layouts.convert(slopes, entry, tmp_path)
    assert not unknown and set(theirs) == set(own)
    for name, slope in theirs.items():
        length = np.linalg.norm(slope)
        assert length > 0, name
        assert np.linalg.norm(own[name] - slope) < 1e-3 * length, name


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_every_stage_says_what_torchvision_says_live(seed, tmp_path):
    if not references.installed("torch", "torchvision"):
        pytest.skip("needs torch and torchvision")
    shapes, wanted = made.torch_answers(seed)
    save_file(made.weights(shapes, seed), tmp_path / "model.safetensors")
    compare(stages(loaded(tmp_path / "model.safetensors"), made.images()), wanted)


@pytest.mark.slow
def test_as_many_parameters_as_torchvision():
    if not references.installed("torch", "torchvision"):
        pytest.skip("needs torch and torchvision")
    vision = references.torchvision().models.detection
    model = vision.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    theirs = sum(weight.numel() for weight in model.parameters())
    ours = zoo.registry.entry("faster_rcnn").params
    assert theirs == ours == 41_808_406
    assert zoo.get("faster_rcnn", frozen=True).count_params() - ours == sum(
        buffer.numel() for name, buffer in model.named_buffers() if "running" in name
    )


def random_boxes(random, count, side):
    start = random.uniform(0, side, (count, 2))
    return np.concatenate([start, start + random.uniform(1, side, (count, 2))], axis=-1).astype("float32")


def overlap(a, b):
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    both = max(width, 0) * max(height, 0)
    return both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both)


@pytest.mark.parametrize("weak", [False, True])
def test_boxes_are_matched_as_the_paper_says(weak):
    random = np.random.default_rng(0)
    boxes, truth = random_boxes(random, 80, 20), random_boxes(random, 4, 20)
    boxes[:4] = np.repeat(truth[:2], 2, axis=0) + random.uniform(0, 0.4, (4, 4))
    truth[3] = [19.5, 19.5, 20.5, 20.5]  # overlaps little with anything
    valid = np.array([True, True, False, True])
    labels, which = (np.asarray(x)[0] for x in matched(truth[None], valid[None], boxes[None], 0.3, 0.6, weak))
    table = np.array(
        [[overlap(thing, box) if there else -1 for box in boxes] for thing, there in zip(truth, valid, strict=True)]
    )
    best = table.max(axis=0)
    wanted = np.where(best >= 0.6, 1, np.where(best < 0.3, NOTHING, UNUSED))
    if weak:
        for thing in np.flatnonzero(valid):
            wanted[np.isclose(table[thing], table[thing].max())] = 1
    np.testing.assert_array_equal(labels, wanted)
    np.testing.assert_array_equal(which[best > 0], table.argmax(axis=0)[best > 0])
    assert {UNUSED, NOTHING, 1} == set(labels)
    assert (labels[table[3].argmax()] == 1) == weak


def test_an_image_without_things_is_background():
    nothing, valid = np.zeros((1, 2, 4), "float32"), np.zeros((1, 2), bool)
    boxes = random_boxes(np.random.default_rng(1), 9, 20)[None]
    for weak in (False, True):
        assert not np.asarray(matched(nothing, valid, boxes, 0.3, 0.7, weak)[0]).any()


def test_samples_have_a_limited_share_of_true_boxes():
    labels = np.full((3, 100), UNUSED, "int32")
    labels[0, :40], labels[0, 40:90] = 1, NOTHING  # more of both than are wanted
    labels[1, :3], labels[1, 10:80] = 7, NOTHING  # few true ones
    labels[2, 20:25] = NOTHING  # few of all
    seeds = [np.asarray(sampled(labels, 32, 0.25, seed)) for seed in range(100)]
    for places, chosen in seeds:
        for row, (true, false) in enumerate([(8, 24), (3, 29), (0, 5)]):
            own = places[row][chosen[row].astype(bool)]
            assert len(set(own)) == len(own) == true + false
            assert (labels[row, own] > 0).sum() == true and (labels[row, own] == NOTHING).sum() == false
            assert (labels[row, own[:true]] > 0).all()
    drawn = np.concatenate([places[0][chosen[0].astype(bool)] for places, chosen in seeds])
    assert set(drawn) == set(range(90))


def test_moves_are_undone():
    random = np.random.default_rng(2)
    boxes, truth = random_boxes(random, 30, 20), random_boxes(random, 30, 20)
    np.testing.assert_allclose(moved(boxes, moves(boxes, truth, (10.0, 5.0)), (10.0, 5.0)), truth, atol=1e-3)
    grown = np.asarray(moved(boxes, np.full((30, 4), 50.0, "float32")))
    np.testing.assert_allclose(grown[:, 2:] - grown[:, :2], (boxes[:, 2:] - boxes[:, :2]) * 1000 / 16, rtol=1e-3)


def test_the_loss_of_boxes_is_a_parabola_near_0():
    deltas = np.array([[[0.05, 0, 0, 0], [0, -2, 0, 0], [9, 9, 9, 9]]], "float32")
    true = np.array([[True, True, False]])
    found = float(box_loss(deltas, np.zeros_like(deltas), true, 4.0))
    assert abs(found - (0.5 * 0.05**2 * 9 + 2 - 0.5 / 9) / 4) < 1e-6


def test_regions_are_cut_out_of_the_map_that_fits_them():
    random = np.random.default_rng(3)
    maps = [random.normal(size=(2, *shape, 3)).astype("float32") for shape in ((60, 80), (30, 40), (15, 20))]
    scales, size, samples = (1 / 4, 1 / 8, 1 / 16), 3, 2
    boxes = np.array(
        [[[1, 2, 40, 30], [10, 10, 130, 131], [0, 0, 320, 240], [7, 8, 7, 8], [319.5, 239.7, 320, 240]],
         [[20, 9, 131, 121], [20, 9, 132, 121], [0, 0, 319, 100], [300, 200, 320, 240], [5, 5, 6, 200]]], "float32"
    )  # fmt: skip
    found = np.asarray(PyramidAlign(scales, size, samples)(maps, boxes))
    used = set()
    for image, number in np.ndindex(2, 5):
        left, top, right, bottom = boxes[image, number]
        side = np.sqrt((right - left) * (bottom - top))
        level = int(np.clip(np.floor(4 + np.log2(max(side, 1e-9) / 224) + 1e-6), 2, 4)) - 2
        used.add(level)
        left, top, right, bottom = boxes[image, number] * scales[level]
        steps = (np.arange(size * samples) + 0.5) / (size * samples)
        ys, xs = top + max(bottom - top, 1) * steps, left + max(right - left, 1) * steps
        points = np.array([[bilinear(maps[level][image], y, x) for x in xs] for y in ys])
        cells = points.reshape(size, samples, size, samples, 3).mean(axis=(1, 3))
        np.testing.assert_allclose(found[image, number], cells, atol=1e-4)
    assert used == {0, 1, 2}


def test_anchors_are_rounded_as_published():
    """The table that Girshick's code prints for areas of 128, 256 and 512 pixels a side, less its half a pixel."""
    layer = Proposals((600, 800), (128, 256, 512))
    wanted = [[-91, -45, 91, 45], [-64, -64, 64, 64], [-45, -91, 45, 91]]
    for level, factor in enumerate((1, 2, 4)):
        anchors = np.asarray(layer.anchors(level, 3, 2))
        assert anchors.shape == (18, 4)
        np.testing.assert_allclose(anchors[:3], np.array(wanted) * factor, atol=2)
        np.testing.assert_array_equal(anchors[3:6] - anchors[:3], [[400, 0, 400, 0]] * 3)
        np.testing.assert_array_equal(anchors[6:9] - anchors[:3], [[0, 200, 0, 200]] * 3)


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="anchors must hold 3 positive sides"):
        zoo.get("faster_rcnn", depth=(1, 1))
    with pytest.raises(ValueError, match="proposals must be at least 1"):
        zoo.get("faster_rcnn", proposals=0)


def test_training_lowers_the_loss_and_keeps_what_is_frozen():
    keras.utils.set_random_seed(0)
    entry = zoo.registry.entry("faster_rcnn")
    x = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype("float32")
    y = np.full((4, 2, 5), -1, "float32")
    y[:3, 0] = [[4, 4, 20, 24, 0], [10, 2, 30, 20, 1], [2, 12, 16, 30, 2]]
    model = entry.build(**entry.tiny)
    model.compile("adam", loss=None, jit_compile=False)
    rows = model.fit(x, y, epochs=30, batch_size=4, verbose=0).history
    assert np.mean(rows["loss"][-5:]) < 0.8 * np.mean(rows["loss"][:5])
    assert model.test_on_batch(x, y) == model.test_on_batch(x, y)
    frozen = entry.build(**entry.tiny, frozen=True)
    before = {weight.path: np.array(weight) for weight in frozen.weights}
    frozen.compile("sgd", loss=None, run_eagerly=True)
    frozen.train_on_batch(x, y)
    for weight in frozen.weights:
        assert np.array_equal(before[weight.path], np.array(weight)) == ("_norm/" in weight.path), weight.path


def test_a_new_number_of_classes_gets_a_fresh_head(tensors, from_golden, tmp_path):
    save_file(tensors, tmp_path / "model.safetensors")
    model = zoo.get(
        "faster_rcnn",
        weights=str(tmp_path / "model.safetensors"),
        classes=2,
        anchors=made.ANCHORS,
        input_shape=(64, 64, 3),
    )
    assert model.output_shape == (None, 1000, 7)
    np.testing.assert_array_equal(
        model.get_layer("features").get_weights()[0], from_golden[0].get_layer("features").get_weights()[0]
    )
