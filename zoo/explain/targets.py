"""Which part of an answer is explained: a class, a detector's box, the class of a region, the answer of a node."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.explain.subject import Subject

PARTS = ("label", "box", "region", "node")


@dataclass(frozen=True, eq=False)
class Target:
    """One number of each answer.

    Attributes:
        index: of the class or output.
        box: of a detector: left, top, right, bottom in pixels.
        region: of a segmentation: bool (height, width).
        node: of a graph whose nodes answer each.
    """

    index: int
    box: tuple[float, ...] | None = None
    region: np.ndarray | None = None
    node: int | None = None

    def read(self, answers: Any) -> np.ndarray:
        """That number of each answer, (batch,) float64.

        A box's number is that of the found box that overlaps it and is sure of its class: the largest product of
        intersection over union and score.

        Source: Petsiuk et al., "Black-box Explanation of Object Detectors via Saliency Maps", CVPR 2021
        (arXiv:2006.03204), section 3.1, with the score of the explained class in place of the classes' similarity.
        """
        if self.box is not None:
            boxes, scores = found_boxes(answers)
            return (overlap(boxes, self.box) * _of_class(scores, self.index)).max(axis=1, initial=0.0)
        answers = np.asarray(answers)
        if self.region is not None:
            return answers[:, self.region, self.index].mean(axis=1, dtype=np.float64)
        if self.node is not None:
            return answers[:, self.node, self.index].astype(np.float64)
        return answers[:, self.index].astype(np.float64)


def found_boxes(answers: Any) -> tuple[np.ndarray, Any]:
    """Boxes (batch, count, 4) of a detector's answers, and their scores by class (see `_of_class`).

    Raises:
        ValueError: the answers are of another form.
    """
    if isinstance(answers, dict):
        parts = [answers.get(name) for name in ("boxes", "scores", "classes", "valid")]
    else:
        parts = [*answers, None, None][:4] if isinstance(answers, list | tuple) else [None] * 4
    boxes, scores, classes, valid = (None if part is None else np.asarray(part) for part in parts)
    if boxes is None or scores is None or boxes.ndim != 3 or boxes.shape[2] != 4 or scores.shape[:2] != boxes.shape[:2]:
        shapes = ", ".join("none" if part is None else str(part.shape) for part in (boxes, scores))
        raise ValueError(
            "a detector must answer boxes (batch, count, 4) and scores (batch, count, classes), or scores and classes "
            f"(batch, count) each, got {shapes}"
        )
    if scores.ndim == 2:
        shown = np.ones(scores.shape, bool) if valid is None else valid.astype(bool)
        return boxes, (np.where(shown, scores, 0.0), np.zeros(scores.shape, int) if classes is None else classes)
    return boxes, scores


def _of_class(scores: Any, index: int) -> np.ndarray:
    """Score of one class for each box (batch, count), from scores of all, or from a score and a class each."""
    if isinstance(scores, tuple):
        score, classes = scores
        return np.where(classes == index, score, 0.0).astype(np.float64)
    return scores[..., index].astype(np.float64)


def overlap(boxes: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """Intersection over union of boxes (..., 4) with one box, in [0, 1]."""
    boxes, one = np.asarray(boxes, np.float64), np.asarray(box, np.float64)
    sides = np.clip(np.minimum(boxes[..., 2:], one[2:]) - np.maximum(boxes[..., :2], one[:2]), 0, None)
    shared = sides.prod(axis=-1)
    areas = np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(axis=-1) + np.clip(one[2:] - one[:2], 0, None).prod()
    return shared / np.where(areas - shared > 0, areas - shared, 1)


def check_answers(subject: Subject, answers: Any) -> None:
    """Refuse answers that cannot be explained.

    Raises:
        ValueError: an answer is NaN or infinite, or of a form that the task does not have.
    """
    if subject.task == "detection":
        boxes, scores = found_boxes(answers)
        arrays = [boxes, scores[0] if isinstance(scores, tuple) else scores]
    else:
        arrays = [np.asarray(answers)]
        ranks = {"segmentation": (4,)}.get(subject.task, (2, 3) if subject.kind == "graph" else (2,))
        if arrays[0].ndim not in ranks:
            form = "(batch, height, width, classes)" if ranks == (4,) else "(batch, outputs)"
            raise ValueError(f"{subject.name!r} must answer {form}, got {arrays[0].shape}")
    for array in arrays:
        failed = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
        if len(failed):
            raise ValueError(
                f"{subject.name!r} answers NaN or infinity for row {failed[0]}; there is nothing to explain"
            )


def labels_of(subject: Subject, answers: Any) -> tuple[str, ...]:
    """The subject's labels, or numbers for the outputs that its answers have.

    Raises:
        ValueError: there are labels, but not one for each output.
    """
    if subject.task == "detection":
        _, scores = found_boxes(answers)
        count = int(scores[1].max(initial=0)) + 1 if isinstance(scores, tuple) else scores.shape[-1]
        count = max(count, len(subject.labels)) if isinstance(scores, tuple) else count
    else:
        count = np.shape(answers)[-1]
    if subject.labels and len(subject.labels) != count:
        raise ValueError(f"{subject.name!r} has {count} outputs but {len(subject.labels)} labels; name each of them")
    return subject.labels or tuple(map(str, range(count)))


def resolve(target: Any, answers: Any, subject: Subject, labels: tuple[str, ...]) -> list[Target]:
    """What is explained of each row.

    Args:
        target: class as index or label, None for each row's own; a dictionary with any of `label`, `box` (a detector's:
            left, top, right, bottom in pixels), `region` (a segmentation's: bool (height, width)) and `node` (a
            graph's); or a list of these, one per row.
        answers: of the model, a row each.
        subject: that gave them.
        labels: names of its outputs.

    Raises:
        ValueError: no such label, output, box, region or node.
    """
    rows = len(found_boxes(answers)[0]) if subject.task == "detection" else len(answers)
    each = target if isinstance(target, list | tuple) or (isinstance(target, np.ndarray) and target.ndim) else None
    if each is None:
        each = [target] * rows
    if len(each) != rows:
        raise ValueError(f"target has {len(each)} entries for {rows} rows; give one for all, or one for each")
    return [_resolved(one, row, answers, subject, labels) for row, one in enumerate(each)]


def _resolved(target: Any, row: int, answers: Any, subject: Subject, labels: tuple[str, ...]) -> Target:
    parts = target if isinstance(target, dict) else {"label": target}
    allowed = {"label", *{"detection": ["box"], "segmentation": ["region"]}.get(subject.task, [])}
    if subject.kind == "graph" and np.ndim(answers) == 3:
        allowed.add("node")
    unknown = sorted(set(parts) - allowed)
    if unknown:
        known = ", ".join(part for part in PARTS if part in allowed)
        raise ValueError(f"a target of {subject.name!r} has no {unknown[0]!r}; it may have {known}")
    index = None if parts.get("label") is None else _index(parts["label"], subject, labels)
    if subject.task == "detection":
        return _box(parts.get("box"), index, row, answers, subject)
    if subject.task == "segmentation":
        return _region(parts.get("region"), index, np.asarray(answers)[row], subject, labels)
    if "node" in allowed:
        return _node(parts.get("node"), index, np.asarray(answers)[row], subject)
    return Target(int(np.argmax(answers[row])) if index is None else index)


def _index(target: Any, subject: Subject, labels: tuple[str, ...]) -> int:
    known = list(labels)
    if isinstance(target, str):
        if target not in known:
            raise ValueError(f"{subject.name!r} has no label {target!r}; labels are {', '.join(known)}")
        return known.index(target)
    whole = isinstance(target, int | np.integer) and not isinstance(target, bool)
    if not whole or not 0 <= target < len(known):
        raise ValueError(f"target must be a label or an index from 0 to {len(known) - 1}, got {target!r}")
    return int(target)


def _box(box: Any, index: int | None, row: int, answers: Any, subject: Subject) -> Target:
    boxes, scores = found_boxes(answers)
    one = tuple(part[row] for part in scores) if isinstance(scores, tuple) else scores[row]
    if not boxes.shape[1]:
        if box is None or index is None:
            raise ValueError(f"{subject.name!r} finds no box in row {row}; give the box and its label")
    elif isinstance(one, tuple):
        score, classes = one
        if box is None and not score.max() > 0:
            raise ValueError(f"{subject.name!r} finds no box in row {row}; give the box and its label")
        near = score if box is None else overlap(boxes[row], box) * score
        best = int(np.argmax(near if index is None else np.where(classes == index, near, -1)))
        index = int(classes[best]) if index is None else index
    else:
        near = one if box is None else overlap(boxes[row], box)[:, None] * one
        near = near if index is None else near[:, index : index + 1]
        best, which = np.unravel_index(int(np.argmax(near)), near.shape)
        index = int(which) if index is None else index
    if box is None:
        box = boxes[row, best]
    box = tuple(np.asarray(box, np.float64).ravel().tolist())
    if len(box) != 4 or not np.isfinite(box).all() or box[2] <= box[0] or box[3] <= box[1]:
        raise ValueError(f"a box is left, top, right, bottom in pixels, right of left and below top, got {box}")
    return Target(int(index), box=box)


def _region(region: Any, index: int | None, answer: np.ndarray, subject: Subject, labels: tuple[str, ...]) -> Target:
    """The region as given, or where the answer is of the class; the largest class but background if not given."""
    winners = answer.argmax(axis=-1)  # (height, width)
    if region is not None:
        region = np.asarray(region)
        if region.shape != winners.shape or region.dtype != np.bool_ or not region.any():
            raise ValueError(
                f"a region of {subject.name!r} must be bool {winners.shape} with a True in it, "
                f"got {region.dtype} {region.shape}"
            )
    if index is None:
        shares = np.bincount(winners[... if region is None else region].ravel(), minlength=len(labels))
        if "background" in labels and np.count_nonzero(shares) > 1:
            shares[labels.index("background")] = 0
        index = int(shares.argmax())
    if region is None:
        region = winners == index
        if not region.any():
            raise ValueError(f"{subject.name!r} sees no {labels[index]!r}; give a region to explain")
    return Target(index, region=region)


def _node(node: Any, index: int | None, answer: np.ndarray, subject: Subject) -> Target:
    if node is None:
        raise ValueError(f"{subject.name!r} answers for each node; say which with target={{'node': …}}")
    if not isinstance(node, int | np.integer) or not 0 <= node < len(answer):
        raise ValueError(f"a node is an index from 0 to {len(answer) - 1}, got {node!r}")
    return Target(int(answer[node].argmax()) if index is None else index, node=int(node))
