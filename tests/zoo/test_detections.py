"""Average precision: equal to pycocotools', right on samples, and told by picture."""

import contextlib
import io

import numpy as np
import pytest

from zoo import tasks
from zoo.data import Rows, from_rows
from zoo.data.targets import NOTHING, Boxes
from zoo.evaluate import detections, metrics

CLASSES = 4
ROWS = 40


@pytest.fixture(scope="module")
def judged():
    """Truth and answers of 40 pictures, some without things, some without boxes, scores with ties; no thing of class 3."""
    random = np.random.default_rng(0)
    y = np.zeros((ROWS, 5, 5), np.float32)
    y[..., 4] = NOTHING
    scored = np.zeros((ROWS, 12, 6), np.float32)
    for row in range(ROWS):
        things, place = random.integers(0, 6), 0
        corner, side = random.uniform(0, 60, (things, 2)), random.uniform(5, 30, (things, 2))
        y[row, :things] = np.column_stack([corner, corner + side, random.integers(0, CLASSES - 1, things)])
        for thing in y[row, :things]:
            for _ in range(random.integers(0, 3)):
                moved = thing[:4] + random.normal(0, 1.5, 4)
                moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
                kind = thing[4] if random.random() < 0.8 else random.integers(0, CLASSES)
                scored[row, place] = (*moved, random.choice([0.3, 0.6, 0.9, random.random()]), kind)
                place += 1
        scored[row] = scored[row][np.argsort(-scored[row, :, 4], kind="stable")]
    return y, scored


def of_coco(y, scored, rows):
    """pycocotools' own summary of some rows: average precision at 0.5 … 0.95, at 0.5 and at 0.75, and of each class at 0.5."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def listed(arrays, there, **more):
        found = []
        for image, row in enumerate(rows):
            for each in arrays[row][there(arrays[row])]:
                left, top, right, bottom = map(float, each[:4])
                box = [left, top, right - left, bottom - top]
                own = {name: float(each[place]) for name, place in more.items()}
                kind = int(each[5 if more else 4])
                found.append({"id": len(found) + 1, "image_id": image, "category_id": kind, "bbox": box,
                              "area": box[2] * box[3], "iscrowd": 0, **own})  # fmt: skip
        return found

    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        kinds = [{"id": kind} for kind in range(CLASSES)]
        images = [{"id": image} for image in range(len(rows))]
        truth.dataset = {"images": images, "categories": kinds, "annotations": listed(y, lambda a: a[:, 4] != NOTHING)}
        answers = listed(scored, lambda a: a[:, 4] > 0, score=4)
        found.dataset = {"images": images, "categories": kinds, "annotations": answers}
        truth.createIndex()
        found.createIndex()
        judge = COCOeval(truth, found, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    each = judge.eval["precision"][0, :, :, 0, 2].mean(axis=0)
    return judge.stats[:3], each


def test_the_mean_over_classes_is_that_of_pycocotools(judged):
    y, scored = judged
    (whole, fifty, seventy_five), each = of_coco(y, scored, range(ROWS))
    found = detections.measures(y, scored, CLASSES)
    one = np.ones((1, ROWS))
    assert [found[name](one)[0] for name in ("map", "map_50", "map_75")] == pytest.approx([whole, fifty, seventy_five])
    assert 0.1 < whole < fifty < 0.9
    own = [matches.precision(one, 0)[0] for matches in detections.match(y, scored, CLASSES)]
    assert own[:3] == pytest.approx(each[:3]) and np.isnan(own[3]) and each[3] == -1


def test_a_bootstrap_sample_is_judged_as_if_its_rows_were_there(judged):
    y, scored = judged
    weights = next(metrics.draws(ROWS, 4, seed=1))
    found = detections.measures(y, scored, CLASSES)
    for sample in weights:
        drawn = np.repeat(np.arange(ROWS), sample.astype(int))
        (whole, fifty, _), _ = of_coco(y, scored, drawn)
        # the same picture twice has the same scores, whose order pycocotools may see otherwise
        assert found["map_50"](sample[None])[0] == pytest.approx(fifty, abs=0.02)
        assert found["map"](sample[None])[0] == pytest.approx(whole, abs=0.02)


def test_right_answers_score_one_and_none_score_nothing(judged):
    y, _ = judged
    task = tasks.get("detection")
    right = np.concatenate([y[..., :4], (y[..., 4:] != NOTHING).astype(np.float32), y[..., 4:]], axis=-1)
    assert task.score(y, right) == pytest.approx(1.0)
    assert task.losses(y, right).max() == 0 and not task.wrong(y, right).any()
    assert task.score(y, np.zeros((ROWS, 3, 6), np.float32)) == 0
    assert 0 <= task.score(y, task.constant(y, ROWS, CLASSES)) < 0.2


def test_tables_and_rows_tell_what_is_found(judged):
    y, scored = judged
    task = tasks.get("detection")
    labels = ("a", "b", "c", "d")
    matrix, table = task.tables(y, scored, labels)
    assert matrix is None and list(table) == list(labels)
    for row in (table["a"], table["b"], table["c"]):
        assert row["ap_50_low"] < row["ap_50"] < row["ap_50_high"] and row["ap"] < row["ap_50"]
    assert np.isnan(table["d"]["ap_50"]) and table["d"]["rows"] == 0
    worst = task.losses(y, scored).argmax()
    told = task.told(y[worst], scored[worst], labels)
    assert told["f1"] == pytest.approx(1 - task.losses(y, scored)[worst]) and told["missed"] + told["wrong_boxes"] > 0


def test_boxes_take_their_best_free_thing():
    things = np.array([[0, 0, 10, 10, 1], [20, 0, 30, 10, 1]], np.float32)
    boxes = np.array(
        [[0, 0, 10, 9, 0.6, 1], [0, 0, 10, 10, 0.9, 1], [20, 0, 30, 10, 0.8, 0], [20, 1, 30, 10, 0.7, 1]], np.float32
    )
    found, right = detections.paired(things, boxes)
    assert found.tolist() == [True, True] and right.tolist() == [False, True, False, True]


def test_the_metric_of_training_is_near_the_score(judged):
    from zoo.tasks.rough_precision import RoughPrecision

    y, scored = judged
    raw = np.zeros((ROWS, 12, 5 + CLASSES), np.float32)
    raw[..., :4], raw[..., 4] = scored[..., :4], 30
    raw[..., 5:] = -30
    likely = np.clip(scored[..., 4], 1e-6, 1 - 1e-6)
    np.put_along_axis(raw, 5 + scored[..., 5:6].astype(int), np.log(likely / (1 - likely))[..., None], axis=2)
    metric = RoughPrecision()
    for part in (slice(0, 16), slice(16, ROWS)):
        metric.update_state(y[part], raw[part])
    task = tasks.get("detection")
    kept = task.answer(raw, None)
    pooled = kept.copy()
    truth = y.copy()
    assert float(metric.result()) == pytest.approx(task.score(truth, pooled), abs=0.1)
    metric.reset_state()
    right = np.concatenate(
        [y[..., :4], np.where(y[..., 4:] == NOTHING, -30, 30), np.eye(CLASSES)[y[..., 4].astype(int)] * 60 - 30], -1
    )
    metric.update_state(y, right.astype(np.float32))
    assert float(metric.result()) == pytest.approx(1.0)


def plain_choice(boxes, scores, count, overlap, least):
    """Boxes of one picture (box, score, class), best first, by going through them one by one."""
    chosen = []
    for kind in range(scores.shape[1]):
        left = [(scores[place, kind], place) for place in range(len(boxes)) if scores[place, kind] > least]
        while left:
            best = max(left)
            chosen.append((*boxes[best[1]], best[0], kind))
            near = detections.overlaps(boxes[best[1]][None], boxes)[0]
            left = [each for each in left if each != best and near[each[1]] <= overlap]
    return sorted(chosen, key=lambda box: -box[4])[:count]


def test_answers_are_those_of_a_plain_choice():
    from zoo.tasks.detection import COUNT, LEAST, OVERLAP

    random = np.random.default_rng(5)
    raw = random.normal(0, 2, (3, 60, 5 + CLASSES)).astype(np.float32)
    corner = random.uniform(0, 40, (3, 60, 2))
    raw[..., :4] = np.concatenate([corner, corner + random.uniform(4, 20, (3, 60, 2))], axis=-1)
    found = tasks.get("detection").answer(raw, None)
    assert found.shape == (3, COUNT, 6)
    scores = 1 / (1 + np.exp(-raw[..., 4:5].astype(np.float64))) / (1 + np.exp(-raw[..., 5:].astype(np.float64)))
    for row in range(3):
        expected = plain_choice(raw[row, :, :4], scores[row], COUNT, OVERLAP, LEAST)
        assert 5 < len(expected) <= COUNT
        np.testing.assert_allclose(found[row, : len(expected)], np.array(expected), rtol=1e-4, atol=1e-5)
        assert not found[row, len(expected) :].any()


def test_a_loss_of_another_name_or_with_smooth_labels_is_refused():
    import zoo

    model = zoo.get("yolo_nano", input_shape=(32, 32, 3), classes=2, width=4, depth=(1, 1, 1, 1))
    task = tasks.get("detection")
    with pytest.raises(ValueError, match=r"no loss 'simotta'.*Did you mean 'simota'"):
        task.loss_for(model, "simotta", 0.0)
    with pytest.raises(ValueError, match="take no label_smoothing"):
        task.loss_for(model, "", 0.1)


def test_data_without_any_box_are_refused():
    images = np.random.default_rng(0).integers(0, 255, (30, 8, 8, 3), np.uint8)
    y = Boxes.padded([np.zeros((0, 4))] * 30, [np.zeros(0)] * 30)
    with pytest.raises(ValueError, match="drawn: no row for training shows anything of a, b; label some"):
        from_rows(Rows("drawn", "detection", {"image": images}, y, ("a", "b"), "drawn", generated=True))
