"""Forecasts as people and scripts read them."""

from typing import Any

import numpy as np

from serve.manifest import Manifest

NEEDED = ("forecast",)  # outputs of the model that are asked for
FORMS = ("values", "steps")


def answers(outputs: dict[str, np.ndarray], manifest: Manifest, form: str = "values") -> list[dict[str, Any]]:
    """The next values, one list per row.

    Args:
        outputs: `forecast` (batch, steps).
        manifest: the model's.
        form: "values", or "steps" for an object with a name for each step.

    Returns:
        `{"target", "forecast"}`.
    """
    target = manifest.labels[0].rpartition("+")[0]
    rows = outputs["forecast"].astype(float).tolist()
    return [
        {
            "target": target,
            "forecast": dict(zip(manifest.labels, row, strict=True)) if form == "steps" else row,
        }
        for row in rows
    ]


def table(predictions: list[dict[str, Any]], manifest: Manifest) -> list[list[Any]]:
    """Predictions as lines of a table, the first being the header."""
    rows = [row["forecast"] for row in predictions]
    return [[*manifest.labels], *(list(row.values()) if isinstance(row, dict) else row for row in rows)]
