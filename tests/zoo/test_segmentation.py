"""Segmentation before and after training: pictures and masks, files, augmentation, losses, metrics, tiles."""

import keras
import numpy as np
import pytest
from PIL import Image

import zoo
from zoo import tasks
from zoo.data import masks, shapes, targets
from zoo.data.signature import ImagePreprocess, Signature
from zoo.evaluate import segment
from zoo.recipes import Recipe
from zoo.tasks import losses
from zoo.training import augment
from zoo.training.run import Run

TASK = tasks.get("segmentation")


def signature_of(shape, labels=("background", "thing")):
    channels = shape[-1]
    return Signature("segmentation", labels, ImagePreprocess(*shape[:2], (127.5,) * channels, (64.0,) * channels))


# ---- data


def test_drawn_shapes_are_where_masks_and_boxes_say():
    drawn, again = shapes.draw(40, 48, least=0, most=4, seed=3), shapes.draw(40, 48, least=0, most=4, seed=3)
    assert np.array_equal(drawn.images, again.images) and np.array_equal(drawn.masks, again.masks)
    assert {len(boxes) for boxes in drawn.boxes} >= {0, 1, 2, 3}
    for mask, boxes, labels in zip(drawn.masks, drawn.boxes, drawn.labels, strict=True):
        covered = np.zeros_like(mask)
        for (left, top, right, bottom), label in zip(boxes.astype(int), labels, strict=True):
            inside = mask[top:bottom, left:right]
            assert set(np.unique(inside)) <= {0, label + 1}
            edges = (inside[0], inside[-1], inside[:, 0], inside[:, -1])
            assert all((edge == label + 1).any() for edge in edges)  # the box is as small as it can be
            covered[top:bottom, left:right] = inside
        assert np.array_equal(covered, mask)


def test_a_drawn_shape_has_the_area_of_its_kind():
    drawn = shapes.draw(60, 96, least=1, most=1, seed=1)
    fills = {}  # share of the circle around its centre that a shape covers
    for mask, boxes, labels in zip(drawn.masks, drawn.boxes, drawn.labels, strict=True):
        if labels[0] == 0:
            left, top, right, bottom = boxes[0]
            fills.setdefault(0, []).append((mask > 0).sum() / (np.pi * (right - left) * (bottom - top) / 4))
    assert np.mean(fills[0]) == pytest.approx(1, abs=0.02)
    with pytest.raises(ValueError, match="size must be at least 32"):
        shapes.draw(1, 16)


def test_summary_counts_pictures_with_a_label_and_shares_of_pixels():
    data = zoo.data.load("cells")
    assert data.train.y.dtype == np.uint8 and data.train.y.shape[1:] == (64, 64)
    text = data.summary()
    assert "rows with" in text and "cell " in text
    share = np.mean(np.concatenate([split.y for split in data.splits.values()]) == 1)
    assert f"{share:.1%}" in text


def test_every_split_gets_its_share_of_rare_labels():
    y = np.zeros((60, 4, 4), np.uint8)
    y[:15, 0, 0] = 2
    y[:40, 1, 1] = 1
    kinds = targets.of("segmentation").strata(y, 3)
    assert (kinds[:15] == 2).all() and (kinds[15:40] == 1).all() and (kinds[40:] == 0).all()
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 1), dtype=np.uint8)
    rows = zoo.data.Rows("few", "segmentation", {"image": images}, y, ("none", "some", "rare"), "here")
    data = zoo.data.from_rows(rows)
    assert [int((split.y == 2).any(axis=(1, 2)).sum()) for split in data.splits.values()] == [10, 2, 3]


def test_resizing_takes_the_mask_along():
    data = zoo.data.load("shapes", input_shape=(32, 32, 3))
    assert data.train.x["image"].shape[1:] == (32, 32, 3) and data.train.y.shape[1:] == (32, 32)
    mask = np.array([[[0, 1], [2, 3]]], np.uint8)
    grown = targets.of("segmentation").resized(mask, (2, 2, 1), (4, 6, 1))
    assert np.array_equal(grown[0], np.repeat(np.repeat(mask[0], 2, 0), 3, 1))


def written(folder, rows=12, size=(6, 8), highest=2):
    random = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for row in range(rows):
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / "images" / f"{row}.png")
        mask = random.integers(0, highest + 1, size, dtype=np.uint8)
        Image.fromarray(mask).save(folder / "masks" / f"{row}.png")
    return folder


def test_folders_of_images_and_masks_are_read(tmp_path):
    folder = written(tmp_path / "own")
    data = zoo.data.load(folder)
    assert data.signature.task == "segmentation" and data.signature.labels == ("background", "class1", "class2")
    (folder / "labels.txt").write_text("soil\nwater\nroof\n")
    assert zoo.data.load(folder, task="segmentation").signature.labels == ("soil", "water", "roof")
    rows = masks.read(folder, (3, 4, 3))
    first = np.asarray(Image.open(folder / "masks" / "0.png"))
    assert np.array_equal(rows.y[0], first[1::2, 1::2]) and rows.x["image"].shape[1:] == (3, 4, 3)


def test_masks_of_0_and_255_are_two_classes_and_palettes_are_indices(tmp_path):
    folder = written(tmp_path / "two", highest=0)
    for file in (folder / "masks").iterdir():
        image = Image.fromarray(np.where(np.arange(48).reshape(6, 8) % 3, 0, 255).astype(np.uint8))
        image.save(file)
    rows = masks.read(folder, None)
    assert rows.labels == ("background", "class1") and set(np.unique(rows.y)) == {0, 1}
    image = Image.fromarray(np.full((6, 8), 2, np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 9, 9, 9, 200, 10, 10])
    image.save(folder / "masks" / "0.png")
    rows = masks.read(folder, None)
    assert set(np.unique(rows.y)) == {0, 2, targets.UNKNOWN}  # where there are others, 255 is what nobody knows


def test_bad_masks_are_refused_with_their_file(tmp_path):
    folder = written(tmp_path / "bad")
    (folder / "labels.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"masks.0\.png has the index 2, labels.txt names 2 labels"):
        masks.read(folder, None)
    (folder / "labels.txt").unlink()
    Image.fromarray(np.zeros((5, 8), np.uint8)).save(folder / "masks" / "3.png")
    with pytest.raises(ValueError, match=r"masks.3\.png is 8x5 pixels, its image 8x6"):
        masks.read(folder, None)
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(folder / "masks" / "3.png")
    with pytest.raises(ValueError, match=r"masks.3\.png has pixels of mode 'RGB'"):
        masks.read(folder, None)
    (folder / "masks" / "3.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"cannot read the mask .*3\.png"):
        masks.read(folder, None)
    (folder / "masks" / "3.png").unlink()
    with pytest.raises(ValueError, match=r"images.3\.png has no mask"):
        masks.read(folder, None)


def test_masks_may_come_as_arrays(tmp_path):
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (30, 5, 6, 1), dtype=np.uint8), random.integers(0, 3, (30, 5, 6))
    y[0, 0, 0] = targets.UNKNOWN
    np.savez(tmp_path / "own.npz", x=x, y=y, labels=["a", "b", "c"])
    data = zoo.data.load(tmp_path / "own.npz")
    assert data.signature.task == "segmentation" and data.signature.labels == ("a", "b", "c")
    assert sum(int((split.y == targets.UNKNOWN).sum()) for split in data.splits.values()) == 1
    np.savez(tmp_path / "own.npz", x=x, y=y)
    assert zoo.data.load(tmp_path / "own.npz").signature.labels == ("background", "class1", "class2")
    for wrong, message in (
        (dict(y=y, labels=["a", "b"]), "the mask in row 1 has indices in 0 … 2, there are 2 labels"),
        (dict(y=y - 1), "indices in -1 …"),
        (dict(y=y[:, :4]), r"masks must be whole numbers of shape \(30, 5, 6\)"),
        (dict(y=y.astype("float32")), "masks must be whole numbers"),
    ):
        np.savez(tmp_path / "own.npz", x=x, **wrong)
        with pytest.raises(ValueError, match=message):
            zoo.data.load(tmp_path / "own.npz")


# ---- augmentation


@pytest.mark.parametrize("name", ["shift", "crop", "flip", "rotate", "cutmix", "noise", "colour"])
def test_masks_move_with_their_images(name):
    random = np.random.default_rng(4)
    blocks = random.integers(0, 3, (8, 4, 4)).repeat(8, axis=1).repeat(8, axis=2)  # (8, 32, 32)
    one_hot = np.eye(3, dtype=np.float32)[blocks]
    before = one_hot.copy()
    images, found = augment.apply((name,), one_hot * 10, one_hot, np.random.default_rng(0))
    assert np.array_equal(one_hot, before)  # what came in is as it was
    assert found.shape == one_hot.shape and set(np.unique(found)) == ({0, 1} if name != "none" else set())
    known = found.sum(axis=-1) == 1
    agree = (images.argmax(axis=-1) == found.argmax(axis=-1))[known]
    assert agree.mean() > (0.93 if name in ("rotate", "crop") else 0.999)  # rounding along edges
    if name not in ("noise", "colour"):
        assert (found != one_hot).any()
    assert known.all() == (name not in ("shift", "rotate"))


def test_mixup_blends_masks_by_the_weight_of_the_images():
    one_hot = np.eye(2, dtype=np.float32)[np.random.default_rng(0).integers(0, 2, (6, 5, 5))]
    images, found = augment.apply(("mixup",), one_hot * 3, one_hot, np.random.default_rng(1))
    np.testing.assert_allclose(images, 3 * found, atol=1e-6)


# ---- losses and metrics


def test_losses_of_masks():
    y = np.random.default_rng(0).integers(0, 3, (2, 4, 5)).astype(np.uint8)
    truth = TASK.encode(y, 3)
    logits = np.random.default_rng(1).normal(size=truth.shape).astype("float32")
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    both, total = (truth * shares).sum((1, 2)), (truth + shares).sum((1, 2))
    dice = 1 - ((2 * both + 1) / (total + 1)).mean(-1)
    entropy = -np.log((truth * shares).sum(-1)).mean((1, 2))
    assert float(losses.get("dice")(truth, logits)) == pytest.approx(dice.mean(), rel=1e-5)
    assert float(TASK.loss("", 0.0)(truth, logits)) == pytest.approx(entropy.mean(), rel=1e-5)
    assert float(losses.get("combined")(truth, logits)) == pytest.approx((dice + entropy).mean(), rel=1e-5)
    perfect = 50 * truth
    assert float(losses.get("combined")(truth, perfect)) == pytest.approx(0, abs=1e-5)


def test_pixels_that_nobody_knows_cost_and_count_nothing():
    y = np.random.default_rng(0).integers(0, 3, (2, 4, 5)).astype(np.uint8)
    hidden = y.copy()
    hidden[:, :2] = targets.UNKNOWN
    logits = 60 * TASK.encode(y, 3)
    wrong = logits.copy()
    wrong[:, :2] = np.roll(logits[:, :2], 1, axis=-1)
    for name in ("cross_entropy", "dice", "combined"):
        assert float(losses.get(name)(TASK.encode(hidden, 3), wrong)) == pytest.approx(0, abs=1e-4)
    (metric,) = TASK.metrics()
    metric.update_state(TASK.encode(hidden, 3), wrong)
    assert float(metric.result()) == pytest.approx(1)
    assert TASK.score(hidden, TASK.answer(wrong, None)) == 1 and TASK.score(y, TASK.answer(wrong, None)) < 1
    assert not TASK.wrong(hidden, TASK.answer(wrong, None)).any()


def test_figures_of_masks_are_those_of_sets_of_pixels():
    random = np.random.default_rng(2)
    y, found = (random.integers(0, 3, (7, 6, 5)).astype(np.uint8) for _ in range(2))
    y[3] = found[3]
    ious = [((y == c) & (found == c)).sum() / ((y == c) | (found == c)).sum() for c in range(3)]
    dices = [2 * ((y == c) & (found == c)).sum() / ((y == c).sum() + (found == c).sum()) for c in range(3)]
    measures = TASK.measures(y, found)
    whole = np.ones((1, len(y)))
    assert measures["mean_iou"](whole)[0] == pytest.approx(np.mean(ious))
    assert measures["mean_dice"](whole)[0] == pytest.approx(np.mean(dices))
    assert measures["pixel_accuracy"](whole)[0] == pytest.approx((y == found).mean())
    matrix, per_class = TASK.tables(y, found, ("a", "b", "c"))
    assert matrix.sum() == y.size and np.trace(matrix) == (y == found).sum()
    for place, row in enumerate(per_class.values()):
        assert row["iou"] == pytest.approx(ious[place]) and row["dice"] == pytest.approx(dices[place])
        assert row["iou_low"] < row["iou"] < row["iou_high"] and row["rows"] == (y == place).any(axis=(1, 2)).sum()
    one = [np.mean([((y[3] == c) & (found[3] == c)).any() for c in range(3)]), TASK.losses(y, found)[3]]
    assert one[1] == 0 and TASK.losses(y, found)[0] > 0.5


def test_the_keras_metric_is_the_score_over_all_batches():
    random = np.random.default_rng(2)
    y = random.integers(0, 3, (5, 6, 5)).astype(np.uint8)
    y[0, :2] = targets.UNKNOWN
    logits = random.normal(size=(*y.shape, 3)).astype("float32")
    (metric,) = TASK.metrics()
    assert float(metric.result()) == 0
    for _ in range(2):
        for rows in (slice(0, 2), slice(2, 5)):
            metric.update_state(TASK.encode(y[rows], 3), logits[rows])
        assert float(metric.result()) == pytest.approx(TASK.score(y, TASK.answer(logits, None)), abs=1e-6)
        metric.reset_state()


def test_an_answer_that_never_changes_is_the_commonest_label_everywhere():
    y = np.ones((4, 3, 3), np.uint8)
    y[:, 0] = 0
    signature = signature_of((3, 3, 1))
    assert np.array_equal(TASK.constant(y, 2, 2), np.ones((2, 3, 3), np.uint8))
    assert tasks.idle(signature, y, y) == pytest.approx((6 / 9) / 2)


# ---- the network


def test_the_papers_own_network_has_the_papers_weights():
    model = zoo.get("unet", input_shape=(512, 512, 1), classes=2)
    convolutions = [layer for layer in model.layers if "Conv" in type(layer).__name__]
    assert len(convolutions) == 23 and model.count_params() == 31_030_658
    assert model.get_layer("bottom_relu1").output.shape == (None, 32, 32, 1024)
    maps = 2 * (1024 + 2 * (64 + 128 + 256 + 512))  # each normalised in place of its bias: a scale and an offset
    normalised = zoo.get("unet", input_shape=(512, 512, 1), classes=2, normalised=True)
    assert sum(int(np.prod(weight.shape)) for weight in normalised.trainable_weights) == 31_030_658 + maps


def test_images_below_one_step_of_the_poolings_are_refused():
    with pytest.raises(ValueError, match="at least 16 pixels a side for 4 poolings"):
        zoo.get("unet", input_shape=(15, 64, 3))
    with pytest.raises(ValueError, match="width and depth must be at least 1"):
        zoo.get("unet", depth=0)


def test_padding_keeps_the_image_in_the_middle():
    model = zoo.get("unet", input_shape=(21, 18, 1), width=2, depth=2, classes=2)
    assert model.get_layer("stem_pad").padding == ((1, 2), (1, 1)) == model.get_layer("head_cut").cropping


# ---- tiles


def small_run(shape, classes=2):
    keras.utils.set_random_seed(0)
    model = zoo.get("unet", input_shape=shape, width=4, depth=1, classes=classes)
    return Run(model, signature_of(shape), Recipe("unet", "none"), None, [], {})


def test_tiles_give_what_the_whole_picture_gives_away_from_its_borders():
    part = small_run((48, 48, 3))
    image = np.random.default_rng(0).integers(0, 256, (150, 117, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(image).resize((117, 150)))
    whole = zoo.get("unet", input_shape=image.shape, width=4, depth=1, classes=2)
    whole.set_weights(part.model.get_weights())
    raw = whole.predict_on_batch(part.signature.inputs({"image": image[None]}))
    truth = TASK.answer(raw, None)[0]
    assert 0.1 < truth.mean() < 0.9
    found = segment(part, image, overlap=32, batch=2)
    edge = 10  # pixels that the network looks around one, at most
    assert np.array_equal(found[edge:-edge, edge:-edge], truth[edge:-edge, edge:-edge])
    assert (segment(part, image, overlap=4) == truth).mean() > 0.97  # blended, not equal: tiles see too little
    assert (found == truth).mean() > 0.99


def test_tiles_read_and_write_files_larger_than_they_hold(tmp_path):
    part = small_run((32, 32, 1))
    random = np.random.default_rng(1)
    picture = np.lib.format.open_memmap(tmp_path / "picture.npy", "w+", np.uint8, (70, 90, 1))
    picture[:] = random.integers(0, 256, picture.shape, dtype=np.uint8)
    mask = np.lib.format.open_memmap(tmp_path / "mask.npy", "w+", np.uint8, (70, 90))
    assert segment(part, picture, out=mask) is mask
    Image.fromarray(picture[..., 0]).save(tmp_path / "picture.png")
    assert np.array_equal(mask, segment(part, tmp_path / "picture.png"))
    small = np.full((9, 40, 1), 7, np.uint8)
    assert segment(part, small).shape == (9, 40)


def test_a_run_answers_tiles_of_other_sizes():
    part, other = small_run((32, 32, 3)), small_run((48, 64, 3))
    other.model.set_weights(part.model.get_weights())
    image = np.random.default_rng(2).integers(0, 256, (100, 130, 3), dtype=np.uint8)
    found = segment(part, image, tile=(48, 64), overlap=32)
    assert np.array_equal(found, segment(other, image, overlap=32)) and 0.1 < found.mean() < 0.9
    with pytest.raises(ValueError, match=r"tiles of 33x33 pixels, which its poolings do not divide.*multiple.*, 32x32"):
        segment(part, image, tile=33)
    with pytest.raises(ValueError, match="tile must be a number of pixels, or height and width, got tile=0"):
        segment(part, image, tile=0)


def test_tiles_refuse_what_they_cannot_take():
    part = small_run((32, 32, 1))
    image = np.zeros((40, 40, 1), np.uint8)
    for given, options, message in (
        (image[..., 0], {}, "image must be uint8"),
        (image[:0], {}, "image has no pixels"),
        (image.astype("float32"), {}, "image must be uint8"),
        (image, {"overlap": 32}, "overlap must be 0 … 31"),
        (image, {"batch": 0}, "batch at least 1"),
        (image, {"out": np.zeros((4, 4), np.uint8)}, r"out must be uint8 \(40, 40\)"),
        (image, {"precision": "int8"}, "a precision is one of a bundle's forms"),
    ):
        with pytest.raises(ValueError, match=message):
            segment(part, given, **options)
