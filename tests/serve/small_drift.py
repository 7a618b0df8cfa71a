"""Baselines of answers, and what a worker would count of pictures."""

import numpy as np

from serve import drift


def deciles(values):
    """Bins of about a tenth of the values each, as an export writes them."""
    edges = np.unique(np.quantile(values, np.arange(0.1, 1, 0.1)))
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    return {"edges": edges.tolist(), "shares": (counts / len(values)).tolist()}


def baseline_of(answers, manifest):
    """The baseline of answers that are more than a label or a value."""
    found = drift.answer_summaries(answers, manifest.task, manifest.labels)
    rows = len(next(iter(answers.values())))
    summaries = {name: deciles(values) for name, values in found.items()}
    raw = {"rows": rows, "split": "validation", "inputs": {}, "outputs": {"summaries": summaries}}
    return drift.Baseline(raw, manifest)


def judged(baseline, manifest, images, answers):
    """The verdict on pictures that came fifty at a time."""
    counts = np.zeros(baseline.size, int)
    for start in range(0, len(images), 50):
        rows = slice(start, start + 50)
        told = drift.summarise(
            {"image": images[rows]}, {name: values[rows] for name, values in answers.items()}, manifest, baseline
        )
        counts += np.frombuffer(told["counts"], "<u4").astype(int)
    return drift.compare(baseline, counts)
