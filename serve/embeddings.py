"""Embeddings as people and scripts read them, and what two of them say of each other."""

import base64
from typing import Any

import numpy as np

from serve.gallery import similarity
from serve.manifest import Manifest

NEEDED = ("embedding",)  # outputs of the model that are asked for
FORMS = ("numbers", "base64")


def answers(outputs: dict[str, np.ndarray], manifest: Manifest, form: str = "numbers") -> list[dict[str, Any]]:
    """Embeddings, one per row.

    Args:
        outputs: `embedding` (batch, length).
        manifest: the model's.
        form: "numbers", or "base64" of little-endian float32 numbers.

    Returns:
        `{"embedding", "length"}`.
    """
    found = outputs["embedding"].astype("<f4")
    return [
        {
            "embedding": base64.b64encode(row.tobytes()).decode() if form == "base64" else row.tolist(),
            "length": len(row),
        }
        for row in found
    ]


def table(predictions: list[dict[str, Any]], manifest: Manifest) -> list[list[Any]]:
    """Predictions as lines of a table, the first being the header."""
    rows = [
        np.frombuffer(base64.b64decode(row["embedding"]), "<f4").tolist()
        if isinstance(row["embedding"], str)
        else row["embedding"]
        for row in predictions
    ]
    return [[f"embedding_{place}" for place in range(predictions[0]["length"])], *rows]


def threshold(manifest: Manifest, precision: str | None = None) -> float | None:
    """Similarity above which a form of the model takes two rows for one identity; None where the bundle does not say."""
    limit = manifest.verification.get("thresholds", {}).get(precision or manifest.default)
    return None if limit is None else float(limit)


def compared(embeddings: np.ndarray, manifest: Manifest, precision: str | None = None) -> dict[str, Any]:
    """What two embeddings, `(2, length)`, say of each other.

    Returns:
        `{"similarity", "threshold", "same"}`; the last two are None where the bundle has no threshold.
    """
    found, limit = similarity(*embeddings), threshold(manifest, precision)
    return {"similarity": found, "threshold": limit, "same": None if limit is None else found > limit}
