"""SimOTA against a plain implementation that goes through things and places one by one."""

import keras
import numpy as np
import pytest

from zoo.layers.detection import PlaceBoxes
from zoo.tasks.simota import SimOTA

CLASSES = 3


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def cross_entropy(wanted, logit):
    return -(wanted * np.log(sigmoid(logit)) + (1 - wanted) * np.log(1 - sigmoid(logit)))


def overlap(first, second):
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    both = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return both / (sum(areas) - both)


def costs(thing, output, place):
    """Overlap of a thing with what a place says, what it costs to take that place, and whether it may be taken at all."""
    kind, (x, y, stride) = int(thing[4]), place
    inside = thing[0] < x < thing[2] and thing[1] < y < thing[3]
    centre = (thing[0] + thing[2]) / 2, (thing[1] + thing[3]) / 2
    near = abs(x - centre[0]) < 2.5 * stride and abs(y - centre[1]) < 2.5 * stride
    shared = overlap(thing[:4], output[:4])
    sure = [np.sqrt(sigmoid(output[4]) * sigmoid(logit)) for logit in output[5:]]
    cost = sum(-np.log(p if own == kind else 1 - p) for own, p in enumerate(sure)) - 3 * np.log(shared + 1e-8)
    return shared, cost + (0 if inside and near else 1e5), inside or near


def plain(targets, outputs, places, l1=0.0):
    """The loss of a batch, and which thing each place was given, -1 for none."""
    total, taken, given = 0.0, 0, np.full(outputs.shape[:2], -1)
    for row, (listed, output) in enumerate(zip(targets, outputs, strict=True)):
        things = listed[listed[:, 4] >= 0]
        table = [[costs(thing, said, place) for said, place in zip(output, places, strict=True)] for thing in things]
        allowed = [place for place in range(len(places)) if any(line[place][2] for line in table)]
        wishes = {place: [] for place in allowed}
        for index, line in enumerate(table):
            shared = sorted((line[place][0] for place in allowed), reverse=True)
            count = max(1, int(sum(shared[:10])))
            for place in sorted(allowed, key=lambda place, line=line: line[place][1])[:count]:
                wishes[place].append(index)
        for place, said in enumerate(output):
            asked = wishes.get(place, [])
            if len(asked) > 1:
                asked = [min(range(len(things)), key=lambda index, place=place: table[index][place][1])]
            total += cross_entropy(float(bool(asked)), said[4])
            if not asked:
                continue
            taken += 1
            given[row, place] = asked[0]
            thing, shared = things[asked[0]], table[asked[0]][place][0]
            total += 5 * (1 - shared**2)
            for kind, logit in enumerate(said[5:]):
                total += cross_entropy(shared if kind == int(thing[4]) else 0.0, logit)
            stride = places[place][2]
            for sign in (1, -1):  # of centres and of sides
                for side in range(2):
                    pairs = [
                        (box[side + 2] + sign * box[side]) / (2 if sign > 0 else 1) / stride for box in (said, thing)
                    ]
                    total += l1 * abs(pairs[0] - pairs[1] if sign > 0 else np.log(pairs[0]) - np.log(pairs[1]))
    return total / max(taken, 1), given


@pytest.fixture(scope="module")
def batch():
    """Targets of four images, the last without a thing; outputs near some of the boxes; places of an image of 48x64."""
    random = np.random.default_rng(3)
    layer = PlaceBoxes((8, 16))
    layer.build([(None, 6, 8, 8), (None, 3, 4, 8)])
    places = np.array(layer.places())
    targets = np.zeros((4, 4, 5), np.float32)
    targets[..., 4] = -1
    for row, count in enumerate((4, 1, 3, 0)):
        corner, side = random.uniform(0, 24, (count, 2)), random.uniform(8, 24, (count, 2))
        targets[row, :count] = np.column_stack([corner, corner + side, random.integers(0, CLASSES, count)])
    targets[0, 1, :4] = targets[0, 0, :4] + 2  # two things that want the same places
    outputs = random.normal(0, 1.5, (4, len(places), 5 + CLASSES)).astype(np.float32)
    centre = places[:, :2] + random.normal(0, 3, (4, len(places), 2))
    half = random.uniform(4, 14, (4, len(places), 2))
    outputs[..., :4] = np.concatenate([centre - half, centre + half], axis=-1)
    return targets, outputs, places


@pytest.mark.parametrize("l1", [0.0, 1.0])
def test_the_loss_is_that_of_the_plain_implementation(batch, l1):
    targets, outputs, places = batch
    expected, given = plain(targets, outputs.astype(np.float64), places, l1)
    counts = np.bincount(given[given >= 0])
    assert counts.max() > 1 and len(counts) > 2, "the example gives no thing several places"
    assert float(SimOTA(places, l1=l1)(targets, outputs)) == pytest.approx(expected, rel=1e-5)


def test_places_are_given_as_the_plain_implementation_gives_them(batch):
    targets, outputs, places = batch
    _, given = plain(targets, outputs.astype(np.float64), places)
    kinds = np.eye(CLASSES, dtype=np.float32)[np.maximum(targets[..., 4], 0).astype(int)]
    chosen, _ = SimOTA(places).assign(targets[..., :4], targets[..., 4] >= 0, kinds, outputs)
    chosen = keras.ops.convert_to_numpy(chosen)
    assert chosen.sum(axis=1).max() == 1
    np.testing.assert_array_equal(np.where(chosen.any(axis=1), chosen.argmax(axis=1), -1), given)


def test_images_without_things_ask_for_no_objects_alone(batch):
    targets, outputs, places = batch
    found = float(SimOTA(places)(targets[3:], outputs[3:]))
    assert found == pytest.approx(cross_entropy(0.0, outputs[3, :, 4].astype(np.float64)).sum(), rel=1e-5)


def test_more_room_for_things_changes_nothing(batch):
    targets, outputs, places = batch
    wider = np.concatenate([targets, np.tile(np.float32([0, 0, 0, 0, -1]), (4, 3, 1))], axis=1)
    loss = SimOTA(places)
    assert float(loss(wider, outputs)) == pytest.approx(float(loss(targets, outputs)), rel=1e-6)


def test_the_gradient_is_finite_where_boxes_are_far_off_or_without_area(batch):
    from zoo.training.gradients import input_gradients

    targets, outputs, places = batch
    wild = outputs.copy()
    wild[0, :, :4] = 0
    wild[1, :, :4] = np.float32([1e5, 1e5, 2e5, 2e5])
    wild[2, :, 4:] = 60
    model = keras.Sequential([keras.Input(outputs.shape[1:])])
    loss = SimOTA(places, l1=1.0)
    _, slopes, _ = input_gradients(model, lambda points: (loss.call(targets, points), None), wild)
    assert np.isfinite(keras.ops.convert_to_numpy(slopes)).all()


def test_boxes_are_decoded_as_the_paper_says():
    layer = PlaceBoxes((4, 8))
    maps = [np.zeros((1, 2, 3, 6), np.float32), np.zeros((1, 1, 2, 6), np.float32)]
    maps[0][0, 1, 2] = [0.5, 0.25, np.log(2), np.log(3), 7, 9]
    found = keras.ops.convert_to_numpy(layer(maps))
    np.testing.assert_allclose(found[0, 5], [10 - 4, 5 - 6, 10 + 4, 5 + 6, 7, 9], rtol=1e-6)
    np.testing.assert_allclose(found[0, 7], [8 - 4, -4, 8 + 4, 4, 0, 0], rtol=1e-6)
    assert layer.places()[5] == [10, 6, 4] and layer.places()[7] == [12, 4, 8] and len(layer.places()) == 8
