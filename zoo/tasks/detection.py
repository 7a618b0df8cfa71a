"""Detection: boxes around things in images, each with a score and a class.

The raw output of every detector is `(batch, places, 5 + classes)`: left, top, right and bottom in pixels, then the
logits of there being a thing and of each class, of which the probabilities are multiplied. What differs between
detectors is how they learn, see `Detection.loss_for`.
"""

import keras
import numpy as np
from keras import ops

from zoo.data.targets import NOTHING
from zoo.layers.detection import NonMaxSuppression, intersection_over_union
from zoo.registry import suggest
from zoo.tasks import Output, Task
from zoo.tasks.simota import SimOTA

COUNT = 100  # boxes of an answer; COCO's evaluation looks at no more
OVERLAP, LEAST = 0.5, 0.05  # above which the worse box goes, up to which none is answered: torchvision's
COMPETING = 1000  # places with the highest scores, among which it is chosen
_PAIRS = 2**24  # of boxes that are compared at once
SURE = 0.5  # score from which on a box is shown to people
_BINS = 200  # of scores, in the metric followed while training
_CANDIDATES = 100  # boxes that it looks at
_LOSSES = {"simota": SimOTA, "simota_l1": lambda places: SimOTA(places, l1=1.0, name="simota_l1")}


class Detection(Task):
    """Mean average precision; boxes, scores and classes out.

    Scored answers are float32 `(rows, count, 6)`: left, top, right, bottom in pixels, score and class, best first, score
    0 where there is no box.
    """

    metric = "map_50"
    monitor = "val_precision"
    mode = "max"
    output = "boxes"
    baseline_name = "the boxes of the most similar training picture"
    picture = "Precision and recall"
    pictorial = True

    def raw_shape(self, signature):
        return None

    def loss(self, name, label_smoothing):
        raise ValueError("the loss of a detector depends on where its outputs are; call loss_for with the model")

    def loss_for(self, model, name, label_smoothing):
        """SimOTA for a model whose layer `logits` knows its places; none for one that computes its own loss.

        Raises:
            ValueError: no such loss, or it does not smooth labels.
        """
        if label_smoothing:
            raise ValueError(f"detectors take no label_smoothing, got {label_smoothing!r}; leave it out")
        if type(model).compute_loss is not keras.Model.compute_loss:
            if name:
                raise ValueError(f"{model.name!r} has a loss of its own, got loss={name!r}; leave it out")
            return None
        if name and name not in _LOSSES:
            raise ValueError(
                f"detection has no loss {name!r}; losses are {', '.join(_LOSSES)}.{suggest(name, _LOSSES)}"
            )
        return _LOSSES[name or "simota"](model.get_layer("logits").places())

    def metrics(self):
        return [RoughPrecision()]

    def encode(self, targets, outputs):
        return targets

    def outputs(self, signature):
        count, last = (COUNT,), signature.outputs - 1
        return (
            Output("boxes", "FP32", (COUNT, 4), ("boxes", "corners"), unit="pixels: left, top, right, bottom"),
            Output("scores", "FP32", count, ("boxes",), (0, 1), "probability, 0 where there is no box"),
            Output("classes", "INT32", count, ("boxes",), (0, last), "index of the label"),
        )

    def decode(self, raw, signature):
        choose = NonMaxSuppression(COUNT, OVERLAP, LEAST, COMPETING)
        boxes, scores, classes, _ = choose(raw[..., :4], _probabilities(raw))
        return {"boxes": boxes, "scores": scores, "classes": classes}

    def answers(self, raw, signature):
        """A few rows at a time, since every box is compared with every other."""
        rows = max(1, _PAIRS // min(raw.shape[1], COMPETING) ** 2)
        parts = [super(Detection, self).answers(raw[at : at + rows], signature) for at in range(0, len(raw), rows)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def scored(self, answers):
        parts = (answers["boxes"], answers["scores"][..., None], answers["classes"][..., None])
        return np.concatenate([np.asarray(part, np.float32) for part in parts], axis=-1)

    def measures(self, y, scored):
        from zoo.evaluate import detections

        return detections.measures(y, scored, _classes(y, scored))

    def losses(self, y, scored):
        """One minus the F1 score of the boxes shown in the picture, 0 where there is nothing and nothing is shown."""
        return np.array([1 - _agreement(*_pair(things, boxes)) for things, boxes in _sure(y, scored)])

    def wrong(self, y, scored):
        return self.losses(y, scored) > 0

    def constant(self, known, rows, outputs):
        """The mean box of each class, with the share of pictures that have one as its score."""
        answer = np.zeros((rows, outputs, 6), np.float32)
        for label in range(outputs):
            own = known[..., 4] == label
            if own.any():
                answer[:, label, :4] = known[own][:, :4].mean(axis=0)
                answer[:, label, 4] = own.any(axis=1).mean()
            answer[:, label, 5] = label
        return answer

    def baseline(self, data):
        """The true boxes of the training picture that is nearest in its pixels, brought to 16x16 at most."""
        from sklearn.neighbors import NearestNeighbors

        from zoo.data.images import resize

        small = tuple(min(16, side) for side in data.signature.preprocess.shape[:2])
        pixels = {}
        for part in ("train", "test"):
            images = getattr(data, part).x["image"]
            if images.shape[-1] in (1, 3, 4):
                images = resize(images, (*small, images.shape[-1]))
            pixels[part] = images.reshape(len(images), -1).astype(np.float32)
        nearest = NearestNeighbors(n_neighbors=1).fit(pixels["train"]).kneighbors(pixels["test"], return_distance=False)
        things = data.train.y[nearest[:, 0]]
        sure = (things[..., 4:] != NOTHING).astype(np.float32)
        return self.score(data.test.y, np.concatenate([things[..., :4], sure, things[..., 4:]], axis=-1))

    def tables(self, y, scored, labels):
        """Of each class its average precision with intervals, and what is found and right among the boxes shown."""
        from zoo.evaluate import detections, metrics

        pairs = [(things, boxes, *_pair(things, boxes)) for things, boxes in _sure(y, scored)]
        table = {}
        for label, (name, own) in enumerate(zip(labels, detections.match(y, scored, len(labels)), strict=True)):
            whole, limits = np.ones((1, len(y))), range(len(detections.LIMITS))
            drawn = metrics.replicates({"ap_50": lambda weights, own=own: own.precision(weights, 0)}, len(y), 1000, 0)
            low, high = metrics.percentiles(drawn["ap_50"])
            there = sum(int((things[:, 4] == label).sum()) for things, *_ in pairs)
            found = sum(int(found[things[:, 4] == label].sum()) for things, _, found, _ in pairs)
            told = sum(int((boxes[:, 5] == label).sum()) for _, boxes, *_ in pairs)
            table[name] = {
                "ap_50": float(own.precision(whole, 0)[0]),
                "ap_50_low": low,
                "ap_50_high": high,
                "ap": float(np.mean([own.precision(whole, limit)[0] for limit in limits])),
                "recall": found / there if there else float("nan"),
                "precision": found / told if told else float("nan"),
                "rows": int((own.things > 0).sum()),
            }
        return None, table

    def told(self, y, scored, labels):
        [(things, boxes)] = _sure(y[None], scored[None])
        found, right = _pair(things, boxes)
        return {
            "true": ", ".join(labels[int(thing[4])] for thing in things) or "nothing",
            "answer": ", ".join(f"{labels[int(box[5])]} {box[4]:.2f}" for box in boxes) or "nothing",
            "missed": int((~found).sum()),
            "wrong_boxes": int((~right).sum()),
            "f1": _agreement(found, right),
        }

    def plot(self, report, path):
        from zoo.evaluate import box_pictures, detections

        matches = detections.match(report.y, report.answers, len(report.labels))
        return box_pictures.curves(matches, report.labels, path)

    def show(self, report, rows, path):
        from zoo.evaluate import box_pictures

        pairs = _sure(report.y[rows], report.answers[rows])
        things, boxes = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        titles = []
        for row, (truth, own) in zip(rows, pairs, strict=True):
            found, right = _pair(truth, own)
            wrong = (~right).sum()
            told = f"{found.sum()} of {len(found)} found" if len(found) else "nothing there"
            titles.append(f"row {row}: {told}" + (f", {wrong} wrong" if wrong else ""))
        return box_pictures.shown(report.x["image"][rows], things, boxes, report.labels, titles, path)


def _probabilities(raw):
    """Of each class at each place, (batch, places, classes)."""
    return ops.sigmoid(raw[..., 4:5]) * ops.sigmoid(raw[..., 5:])


def _classes(y, scored):
    return 1 + max(0, int(y[..., 4].max(initial=NOTHING)), int(scored[..., 5].max(initial=0)))


def _sure(y, scored):
    """Of each row its things, and the boxes that are shown."""
    return [
        (things[things[:, 4] != NOTHING], boxes[boxes[:, 4] >= SURE]) for things, boxes in zip(y, scored, strict=True)
    ]


def _pair(things, boxes):
    from zoo.evaluate.detections import paired

    return paired(things, boxes)


def _agreement(found, right):
    """F1 score of one picture's boxes."""
    total = len(found) + len(right)
    return 2 * float(found.sum()) / total if total else 1.0


@keras.saving.register_keras_serializable("zoo")
class RoughPrecision(keras.metrics.Metric):
    """About the average precision at an overlap of one half, all classes together, cheap enough for every batch.

    Boxes are left out where any better one of their class overlaps them, itself left out or not (Bolya et al. 2019,
    "YOLACT", arXiv:1904.02689, section 5), a thing is found by the best box that overlaps it most, and scores are
    counted in bins.
    """

    def __init__(self, name="precision", **kwargs):
        super().__init__(name=name, **kwargs)
        self.things = self.add_variable((), "zeros", name="things")
        self.counts = self.add_variable((2 * _BINS,), "zeros", name="counts")  # of wrong boxes, then of right ones

    def update_state(self, y_true, y_pred, sample_weight=None):
        y_true = ops.cast(y_true, "float32")
        raw = ops.cast(y_pred, "float32")
        scores = _probabilities(raw)
        best, kinds = ops.max(scores, axis=-1), ops.cast(ops.argmax(scores, axis=-1), "float32")
        best, places = ops.top_k(best, min(_CANDIDATES, raw.shape[1]))  # (batch, boxes)
        kinds = ops.take_along_axis(kinds, places, axis=1)
        boxes = ops.take_along_axis(raw[..., :4], places[..., None], axis=1)
        alike = ops.equal(kinds[:, :, None], kinds[:, None, :])
        order = ops.arange(best.shape[1])
        better = order[None, :] < order[:, None]
        near = intersection_over_union(boxes, boxes) > OVERLAP
        hidden = ops.any(ops.logical_and(ops.logical_and(alike, near), better), axis=-1)
        there = ops.cast(ops.logical_and(ops.logical_not(hidden), best > LEAST), "float32")

        shared = intersection_over_union(boxes, y_true[..., :4])  # (batch, boxes, things)
        shared = ops.where(ops.equal(kinds[..., None], y_true[:, None, :, 4]), shared, 0.0)
        mine = ops.one_hot(ops.argmax(shared, axis=-1), shared.shape[-1], dtype="float32")
        mine = mine * ops.cast(ops.max(shared, axis=-1, keepdims=True) >= 0.5, "float32") * there[..., None]
        first = mine * ops.cast(ops.cumsum(mine, axis=1) <= 1.0, "float32")
        right = ops.max(first, axis=-1)
        bins = ops.cast(ops.clip(best * _BINS, 0, _BINS - 1), "int32") + _BINS * ops.cast(right > 0, "int32")
        found = ops.segment_sum(ops.reshape(there, (-1,)), ops.reshape(bins, (-1,)), num_segments=2 * _BINS)
        self.counts.assign(self.counts + ops.cast(found, self.counts.dtype))
        real = ops.cast(y_true[..., 4] >= 0, self.things.dtype)
        self.things.assign(self.things + ops.sum(real))

    def result(self):
        wrong, right = (ops.cumsum(ops.flip(self.counts[half : half + _BINS])) for half in (0, _BINS))
        precision = right / ops.maximum(wrong + right, 1.0)  # (bins,), from the surest down
        order = ops.arange(_BINS)
        best = ops.max(ops.where(order[None, :] >= order[:, None], precision[None], 0.0), axis=1)
        gained = right - ops.concatenate([ops.zeros((1,), right.dtype), right[:-1]])
        return ops.sum(gained * best) / ops.maximum(self.things, 1.0)


TASK = Detection()
