"""Boxes as people and scripts read them: what stands where in the picture, and how sure the model is."""

from typing import Any

import numpy as np

from serve.manifest import Manifest
from serve.masks import colour

NEEDED = ("boxes", "scores", "classes")  # outputs of the model that are asked for
FORMS = ("sure", "all")
SURE = 0.5  # score from which on a box is given in the usual form


def answers(outputs: dict[str, np.ndarray], manifest: Manifest, form: str = "sure") -> list[dict[str, Any]]:
    """Boxes with labels and scores, one list per row.

    Args:
        outputs: `boxes` (batch, count, 4) as left, top, right, bottom in pixels of the model's input, `scores` and
            `classes` (batch, count); score 0 where there is no box.
        manifest: the model's.
        form: "sure" for boxes with a score of 0.5 or more, "all" for all that the model answers.

    Returns:
        `{"boxes": [{"label", "score", "box", "colour"}, …], "height", "width"}`, the highest score first; height and
        width are those of the picture that the corners count pixels of.
    """
    _, height, width, _ = manifest.inputs[0].shape
    least = SURE if form == "sure" else np.finfo(np.float32).tiny
    rows = zip(*(outputs[name] for name in NEEDED), strict=True)
    return [
        {
            "boxes": [
                {
                    "label": manifest.labels[kind],
                    "score": round(float(score), 6),
                    "box": [round(float(place), 3) for place in box],
                    "colour": colour(1 + kind),  # the first is for a background
                }
                for box, score, kind in zip(boxes, scores, classes.tolist(), strict=True)
                if score >= least
            ],
            "height": height,
            "width": width,
        }
        for boxes, scores, classes in rows
    ]


def table(predictions: list[dict[str, Any]], manifest: Manifest) -> list[list[Any]]:
    """Predictions as lines of a table, the first being the header: one line for each box."""
    return [
        ["row", "label", "score", "left", "top", "right", "bottom"],
        *(
            [row, found["label"], found["score"], *found["box"]]
            for row, prediction in enumerate(predictions)
            for found in prediction["boxes"]
        ),
    ]
