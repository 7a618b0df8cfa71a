"""Conformal sets and intervals, by the thresholds that a bundle's manifest holds.

The rule is that of `zoo.evaluate.conformal`, which set and measured them: the most probable classes up to a total of
the threshold, the last one counted half (Romano, Sesia & Candès 2020; Angelopoulos & Bates 2021).
"""

import numpy as np

from serve.manifest import Manifest


def threshold(manifest: Manifest, precision: str | None) -> float | None:
    """The threshold of a stored form, None where the bundle has none for it."""
    found = manifest.conformal.get("thresholds", {}).get(precision or manifest.default)
    return None if found is None else float(found)


def members(probabilities: np.ndarray, limit: float) -> np.ndarray:
    """Which classes are in each row's set, bool (batch, classes); the most probable class always is."""
    ranked = np.asarray(probabilities, np.float64)
    order = np.argsort(-ranked, axis=1, kind="stable")
    ranked = np.take_along_axis(ranked, order, axis=1)
    inside = np.cumsum(ranked, axis=1) - ranked / 2 <= limit
    inside[:, 0] = True
    found = np.empty_like(inside)
    np.put_along_axis(found, order, inside, axis=1)
    return found
