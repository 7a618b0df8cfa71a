"""Segmentation of images: the class of every pixel, softmax over logits `(batch, height, width, classes)`."""

import numpy as np

from zoo.data.targets import UNKNOWN
from zoo.tasks import Output, Task, baselines, log_shares

_SHARES = 1000  # bootstrap samples
_PIXELS = 2**24  # of training pictures that the baseline looks at
_TOGETHER = 64  # pictures that it answers at once


class Segmentation(Task):
    """Cross-entropy of each pixel, mean intersection over union; probabilities and the mask of the likeliest class out.

    Scored answers are masks, uint8 `(rows, height, width)`. Pixels whose true class is `UNKNOWN` count nowhere.
    """

    metric = "mean_iou"
    monitor = "val_iou"
    mode = "max"
    output = "mask"
    baseline_name = "logistic regression of each pixel's colour"
    picture = "Confusion of pixels"
    pictorial = True

    def raw_shape(self, signature):
        return (*signature.preprocess.shape[:2], signature.outputs)

    def loss(self, name, label_smoothing):
        from zoo.tasks import losses

        return losses.get(name or "cross_entropy", label_smoothing)

    def idle_raw(self, y):
        return log_shares(y)

    def metrics(self):
        from zoo.tasks.mean_iou import MeanIoU

        return [MeanIoU()]

    def encode(self, targets, outputs):
        """One-hot `(batch, height, width, outputs)`, all zeros where the class is not known, so that nothing is lost."""
        table = np.zeros((UNKNOWN + 1, outputs), np.float32)
        table[:outputs] = np.eye(outputs)
        return table[targets]

    def outputs(self, signature):
        height, width = signature.preprocess.shape[:2]
        classes = signature.outputs
        return (
            Output(
                "probabilities", "FP32", (height, width, classes), ("height", "width", "classes"), (0, 1), "probability"
            ),
            Output(
                "mask", "UINT8", (height, width), ("height", "width"), (0, classes - 1), "index of the likeliest label"
            ),
        )

    def decode(self, raw, signature):
        from keras import ops

        return {"probabilities": ops.softmax(raw, axis=-1), "mask": ops.cast(ops.argmax(raw, axis=-1), "uint8")}

    def answer(self, raw, signature):
        return np.asarray(raw).argmax(axis=-1).astype(np.uint8)

    def measures(self, y, scored):
        """Mean intersection over union and mean Dice of the classes that are in the truth or in the answers, all
        pictures together (Everingham et al. 2010, section 4.1.3: the VOC challenge), and the share of pixels that are
        right.
        """
        both, true, found = _areas(y, scored)
        return {
            "mean_iou": lambda weights: _mean(*_iou(weights @ both, weights @ true, weights @ found)),
            "mean_dice": lambda weights: _mean(*_dice(weights @ both, weights @ true, weights @ found)),
            "pixel_accuracy": lambda weights: (
                (weights @ both).sum(axis=1) / np.maximum((weights @ true).sum(axis=1), 1)
            ),
        }

    def losses(self, y, scored):
        """One minus the mean intersection over union of the classes that are in the picture or in its answer."""
        return 1 - _mean(*_iou(*_areas(y, scored)))

    def wrong(self, y, scored):
        return ((y != scored) & (y != UNKNOWN)).any(axis=(1, 2))

    def constant(self, known, rows, outputs):
        commonest = np.bincount(known.ravel(), minlength=outputs)[:outputs].argmax()
        return np.full((rows, *known.shape[1:]), commonest, np.uint8)

    def baseline(self, data):
        """Of at most 10,000 pixels, from as many pictures as have 2^24 pixels together."""
        height, width, channels = data.signature.preprocess.shape
        rows = min(len(data.train), max(1, _PIXELS // (height * width)))
        pixels = data.signature.inputs({name: values[:rows] for name, values in data.train.x.items()})
        y = data.train.y[:rows].ravel()
        known = np.flatnonzero(y != UNKNOWN)
        answer = baselines.fitted(pixels.reshape(-1, channels)[known], y[known])
        guessed = np.empty(data.test.y.shape, np.uint8)
        for start in range(0, len(guessed), _TOGETHER):
            some = data.signature.inputs({n: v[start : start + _TOGETHER] for n, v in data.test.x.items()})
            guessed[start : start + len(some)] = answer.predict(some.reshape(-1, channels)).reshape(some.shape[:3])
        return self.score(data.test.y, guessed)

    def tables(self, y, scored, labels):
        """Pixels by true and answered class; and intersection over union and Dice of each class with 95 % intervals."""
        from zoo.evaluate import metrics

        classes = len(labels)
        matrix = _pairs(y, scored, classes).sum(axis=0)
        both, true, found = _areas(y, scored, classes)
        drawn = [(w @ both, w @ true, w @ found) for w in metrics.draws(len(y), _SHARES, 0)]
        whole = [part.sum(axis=0)[None] for part in (both, true, found)]
        per_class = {label: {} for label in labels}
        for name, measure in (("iou", _iou), ("dice", _dice)):
            values, there = measure(*whole)
            samples = np.concatenate([np.where(ok, each, np.nan) for each, ok in (measure(*areas) for areas in drawn)])
            for place, label in enumerate(labels):
                low, high = metrics.percentiles(samples[:, place])
                score = float(values[0, place]) if there[0, place] else float("nan")
                per_class[label] |= {name: score, f"{name}_low": low, f"{name}_high": high}
        for place, label in enumerate(labels):
            per_class[label]["rows"] = int((true[:, place] > 0).sum())
        return matrix, per_class

    def told(self, y, scored, labels):
        one, other = y[None], scored[None]
        judged = y != UNKNOWN
        return {
            "true": _listed(y, labels),
            "answer": _listed(scored, labels),
            "mean_iou": 1 - float(self.losses(one, other)[0]),
            "pixels_wrong": int(((y != scored) & judged).sum()),
            "share_wrong": float(((y != scored) & judged).sum() / max(1, judged.sum())),
        }

    def plot(self, report, path):
        from zoo.evaluate import pictures

        return pictures.confusion(report.confusion, report.labels, path)

    def show(self, report, rows, path):
        from zoo.evaluate import mask_pictures

        scores = 1 - self.losses(report.y[rows], report.answers[rows])
        return mask_pictures.beside(
            report.x["image"][rows], report.y[rows], report.answers[rows], report.labels, rows, scores, path
        )


def _pairs(y: np.ndarray, scored: np.ndarray, classes: int) -> np.ndarray:
    """Pixels of each picture by true and answered class, int64 `(rows, classes, classes)`."""
    found = np.empty((len(y), classes, classes), np.int64)
    for row, (truth, answer) in enumerate(zip(y, scored, strict=True)):
        known = truth != UNKNOWN
        codes = truth[known].astype(np.int64) * classes + answer[known]
        found[row] = np.bincount(codes, minlength=classes**2).reshape(classes, classes)
    return found


def _areas(y: np.ndarray, scored: np.ndarray, classes: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of each class that truth and answer share, that the truth has, and that the answer has, `(rows, classes)`."""
    if not classes:
        classes = 1 + max(int(np.max(y, where=y != UNKNOWN, initial=0)), int(np.max(scored, initial=0)))
    pairs = _pairs(y, scored, classes).astype(np.float64)
    return np.diagonal(pairs, axis1=1, axis2=2), pairs.sum(axis=2), pairs.sum(axis=1)


def _iou(both: np.ndarray, true: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intersection over union, and whether there is any."""
    either = true + found - both
    return both / np.maximum(either, 1e-300), either > 0


def _dice(both: np.ndarray, true: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Twice the intersection over the sum of both areas (Dice 1945), and whether there is any."""
    total = true + found
    return 2 * both / np.maximum(total, 1e-300), total > 0


def _mean(values: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Mean over the classes that are there, 1 where none is."""
    count = there.sum(axis=1)
    return np.where(count > 0, np.where(there, values, 0).sum(axis=1) / np.maximum(count, 1), 1.0)


def _listed(mask: np.ndarray, labels: tuple[str, ...]) -> str:
    """Labels in a mask with their shares of it, largest first."""
    counts = np.bincount(mask.ravel(), minlength=UNKNOWN + 1)[: len(labels)]
    order = [place for place in np.argsort(-counts, kind="stable") if counts[place]]
    return ", ".join(f"{labels[place]} {counts[place] / mask.size:.0%}" for place in order)


TASK = Segmentation()
