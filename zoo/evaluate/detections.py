"""Average precision of boxes, on any number of bootstrap samples at once, from the matches that pycocotools makes.

Lin et al., "Microsoft COCO: Common Objects in Context" (arXiv:1405.0312), and its evaluation code: boxes are matched
with things of their class in the order of their scores, at ten limits of overlap, and precision is averaged over 101
recalls. What is accumulated here from those matches is the same for equal weights, and a test holds it to that.

Truth is `(rows, most, 5)`, see `zoo.data.targets`; answers are `(rows, count, 6)`: left, top, right, bottom, score and
class, score 0 where there is no box.
"""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from zoo.data.targets import NOTHING

LIMITS = tuple(np.linspace(0.5, 0.95, 10).round(2).tolist())  # of intersection over union
RECALLS = np.linspace(0, 1, 101)
_VALUES = 2**22  # weights at a time
MOST = 100  # boxes of an image and class that count, those with the highest scores


@dataclass(frozen=True)
class Matches:
    """What became of the boxes of one class.

    Attributes:
        rows: image of each box, in falling order of score.
        scores: of each box.
        hits: bool `(limits, boxes)`: whether it is a thing's first match.
        things: how many there are in each image, `(rows,)`.
    """

    rows: np.ndarray
    scores: np.ndarray
    hits: np.ndarray
    things: np.ndarray

    def curve(self, weights: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Recall and precision after each box.

        Args:
            weights: how often each image counts, `(samples, rows)`.
            limit: place in `LIMITS`.

        Returns:
            Two arrays `(samples, boxes)`; precision is the best that is reached at that recall or a higher one.
        """
        drawn = weights[:, self.rows]
        found = np.cumsum(drawn * self.hits[limit], axis=1)
        shown = np.cumsum(drawn, axis=1)
        recall = found / np.maximum(weights @ self.things, 1e-300)[:, None]
        precision = found / np.maximum(shown, 1e-300)
        return recall, np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]

    def precision(self, weights: np.ndarray, limit: int) -> np.ndarray:
        """Average precision `(samples,)`, NaN where a sample has no such thing."""
        found = []
        size = max(1, _VALUES // max(1, len(self.rows)))
        for start in range(0, len(weights), size):
            for reached, height in zip(*self.curve(weights[start : start + size], limit), strict=True):
                places = np.searchsorted(reached, RECALLS, side="left")
                found.append(np.append(height, 0.0)[places].mean())
        return np.where(weights @ self.things > 0, found, np.nan)


def match(y: np.ndarray, answers: np.ndarray, classes: int) -> list[Matches]:
    """The matches of each class, by pycocotools.

    Args:
        y: truth.
        answers: boxes with scores and classes.
        classes: how many there are.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise ImportError(
            "judging boxes needs pycocotools, which is not installed; run: pip install 'zooroad[train]'"
        ) from None
    images = [{"id": row} for row in range(len(y))]
    things = [
        {"id": number, "image_id": row, "category_id": int(thing[4]), **_box(thing), "iscrowd": 0}
        for number, (row, thing) in enumerate(_listed(y, y[..., 4] != NOTHING), 1)
    ]
    found = [
        {"id": number, "image_id": row, "category_id": int(box[5]), **_box(box), "score": float(box[4])}
        for number, (row, box) in enumerate(_listed(answers, answers[..., 4] > 0), 1)
    ]
    categories = [{"id": label} for label in range(classes)]
    with contextlib.redirect_stdout(io.StringIO()):  # it tells how long each step took
        truth, boxes = COCO(), COCO()
        for index, annotations in ((truth, things), (boxes, found)):
            index.dataset = {"images": images, "annotations": annotations, "categories": categories}
            index.createIndex()
        judge = COCOeval(truth, boxes, "bbox")
        judge.params.iouThrs = np.array(LIMITS)
        judge.params.maxDets = [MOST]
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.evaluate()
    table = [judge.evalImgs[label * len(y) : (label + 1) * len(y)] for label in range(classes)]
    return [_of_class(line, y[..., 4] == label) for label, line in enumerate(table)]


def _of_class(line: list, present: np.ndarray) -> Matches:
    own = [(row, image) for row, image in enumerate(line) if image is not None]
    rows = np.concatenate([[row] * len(image["dtScores"]) for row, image in own] or [[]]).astype(np.int64)
    scores = np.concatenate([image["dtScores"] for _, image in own] or [[]]).astype(np.float64)
    hits = np.concatenate([image["dtMatches"] > 0 for _, image in own] or [np.zeros((len(LIMITS), 0))], axis=1)
    order = np.argsort(-scores, kind="mergesort")
    return Matches(rows[order], scores[order], hits[:, order].astype(bool), present.sum(axis=1).astype(np.float64))


def _listed(arrays: np.ndarray, there: np.ndarray) -> list[tuple[int, np.ndarray]]:
    rows, places = np.nonzero(there)
    return list(zip(rows.tolist(), arrays[rows, places], strict=True))


def _box(corners: np.ndarray) -> dict:
    left, top, right, bottom = map(float, corners[:4])
    return {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}


def measures(y: np.ndarray, answers: np.ndarray, classes: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Mean average precision over the classes that are there, as functions of bootstrap weights `(samples, rows)`.

    `map_50` and `map_75` are at that limit of overlap, `map` is the mean over all ten of `LIMITS`.
    """
    found = match(y, answers, classes)

    def mean(limits: range) -> Callable[[np.ndarray], np.ndarray]:
        def measure(weights: np.ndarray) -> np.ndarray:
            table = np.array([[own.precision(weights, limit) for own in found] for limit in limits])
            known = np.isfinite(table)  # (limits, classes, samples)
            return np.where(known, table, 0).sum(axis=(0, 1)) / np.maximum(known.sum(axis=(0, 1)), 1)

        return measure

    fifty, seventy_five = (range(LIMITS.index(limit), LIMITS.index(limit) + 1) for limit in (0.5, 0.75))
    return {"map_50": mean(fifty), "map": mean(range(len(LIMITS))), "map_75": mean(seventy_five)}


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes `(n, 4)` and `(m, 4)`: `(n, m)`, in [0, 1]."""
    first, second = (np.asarray(boxes, np.float64)[:, :4] for boxes in (first, second))
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=-1) for boxes in (first, second)]
    return both / np.maximum(areas[0][:, None] + areas[1][None] - both, 1e-300)


def paired(things: np.ndarray, boxes: np.ndarray, limit: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Which things and which boxes of one image belong together, best score first.

    Args:
        things: `(things, 5)`, without padding.
        boxes: `(boxes, 6)`, without padding.
        limit: least intersection over union.

    Returns:
        Of each thing whether it was found, and of each box whether it is right, bool.
    """
    found, right = np.zeros(len(things), bool), np.zeros(len(boxes), bool)
    shared = overlaps(boxes, things)
    for box in np.argsort(-boxes[:, 4], kind="stable"):
        free = np.where(~found & (things[:, 4] == boxes[box, 5]), shared[box], -1.0)
        if len(free) and free.max() >= limit:
            found[free.argmax()] = right[box] = True
    return found, right
