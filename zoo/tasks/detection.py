"""Detection: boxes around things in images, each with a score and a class.

The raw output of every detector is `(batch, places, 5 + classes)`: left, top, right and bottom in pixels, then the
logits of there being a thing and of each class, of which the probabilities are multiplied. What differs between
detectors is how they learn, see `Detection.loss_for`.
"""

import numpy as np

from zoo.data.targets import NOTHING
from zoo.registry import suggest
from zoo.tasks import Output, Task, baselines

COUNT = 100  # boxes of an answer; COCO's evaluation looks at no more
OVERLAP, LEAST = 0.5, 0.05  # above which the worse box goes, up to which none is answered: torchvision's
COMPETING = 1000  # places with the highest scores, among which it is chosen
_PAIRS = 2**24  # of boxes that are compared at once
SURE = 0.5  # score from which on a box is shown to people
_LOSSES = {"simota": 0.0, "simota_l1": 1.0}  # weight of the absolute error


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
    smooth = False

    def raw_shape(self, signature):
        return None

    def loss(self, name, label_smoothing):
        raise ValueError("the loss of a detector depends on where its outputs are; call loss_for with the model")

    def loss_for(self, model, name, label_smoothing):
        """SimOTA for a model whose layer `logits` knows its places; none for one that computes its own loss.

        Raises:
            ValueError: no such loss, or it does not smooth labels.
        """
        from zoo.training.learners import computes_loss

        if label_smoothing:
            raise ValueError(f"detectors take no label_smoothing, got {label_smoothing!r}; leave it out")
        if computes_loss(model):
            if name:
                raise ValueError(f"{model.name!r} has a loss of its own, got loss={name!r}; leave it out")
            return None
        if name and name not in _LOSSES:
            raise ValueError(
                f"detection has no loss {name!r}; losses are {', '.join(_LOSSES)}.{suggest(name, _LOSSES)}"
            )
        from zoo.tasks.simota import SimOTA

        name = name or "simota"
        return SimOTA(model.get_layer("logits").places(), l1=_LOSSES[name], name=name)

    def metrics(self):
        from zoo.tasks.rough_precision import RoughPrecision

        return [RoughPrecision()]

    def outputs(self, signature):
        count, last = (COUNT,), signature.outputs - 1
        return (
            Output("boxes", "FP32", (COUNT, 4), ("boxes", "corners"), unit="pixels: left, top, right, bottom"),
            Output("scores", "FP32", count, ("boxes",), (0, 1), "probability, 0 where there is no box"),
            Output("classes", "INT32", count, ("boxes",), (0, last), "index of the label"),
        )

    def decode(self, raw, signature):
        from zoo.layers.detection import NonMaxSuppression

        choose = NonMaxSuppression(COUNT, OVERLAP, LEAST, COMPETING)
        boxes, scores, classes, _ = choose(raw[..., :4], probabilities(raw))
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
        """The true boxes of the training picture that is nearest in its pixels, brought to 16x16 at most.

        At most 10,000 training pictures are looked at.
        """
        from sklearn.neighbors import NearestNeighbors

        from zoo.data import lazy
        from zoo.data.images import resize

        small = tuple(min(16, side) for side in data.signature.preprocess.shape[:2])
        pixels = {}
        for part in ("train", "test"):
            images = getattr(data, part).x["image"]
            if part == "train":
                images = lazy.pick(images, slice(baselines.MOST))
            if images.shape[-1] in (1, 3, 4):
                images = resize(images, (*small, images.shape[-1]))
            pixels[part] = np.asarray(images).reshape(len(images), -1).astype(np.float32)
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


def probabilities(raw):
    """Of each class at each place, (batch, places, classes)."""
    from keras import ops

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


TASK = Detection()
