"""Tasks: what a model is trained for decides its loss, its metric and how its output is read.

A task object answers for every model that is trained for it; architecture files know nothing of losses or metrics.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np

_FILES = {
    "classification": "classification",
    "image-classification": "classification",
    "regression": "regression",
}


class Task(Protocol):
    """What training, evaluation and export ask of a task.

    Attributes:
        metric: name of the score, larger is better.
        monitor: Keras metric followed while training.
        mode: "max" or "min", the better direction of `monitor`.
        output: name of the tensor that answers hold.
    """

    metric: str
    monitor: str
    mode: str
    output: str

    def loss(self, name: str, label_smoothing: float) -> Any:
        """Keras loss on `(targets, raw outputs)`; `name` is "" for the task's own."""

    def metrics(self) -> list[Any]:
        """Fresh Keras metrics."""

    def encode(self, targets: np.ndarray, outputs: int) -> np.ndarray:
        """Targets as the loss wants them, `(batch, outputs)` float32."""

    def answer(self, raw: np.ndarray, signature: Any) -> np.ndarray:
        """The model's raw outputs as a client reads them: probabilities, or values in the target's unit."""

    def score(self, y: np.ndarray, answer: np.ndarray) -> float:
        """The task's score of answers against true targets."""


@dataclass(frozen=True)
class Interval:
    """A score with a 95 % interval."""

    score: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.score:.4f} [{self.low:.4f}, {self.high:.4f}]"


def get(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: no such task.
    """
    if name not in _FILES:
        raise ValueError(f"there is no task {name!r}; tasks are {', '.join(_FILES)}")
    return import_module(f"zoo.tasks.{_FILES[name]}").TASK


def idle(signature: Any, known: np.ndarray, y: np.ndarray) -> float:
    """Score of an answer that never changes: the mean of the targets known from training, or their commonest class.

    Args:
        signature: `zoo.data.Signature`, with task and labels.
        known: training targets.
        y: targets to be scored on.
    """
    if signature.task == "regression":
        constant = np.full((len(y), 1), np.mean(known))
    else:
        constant = np.tile(np.bincount(known, minlength=signature.outputs), (len(y), 1))
    return get(signature.task).score(y, constant)


def interval(task: Task, y: np.ndarray, answer: np.ndarray, resamples: int = 1000, seed: int = 0) -> Interval:
    """Score with a percentile bootstrap interval over rows (Efron & Tibshirani 1993, chapter 13)."""
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, len(y), (resamples, len(y)))
    scores = [task.score(y[rows], answer[rows]) for rows in draws]
    low, high = np.nanpercentile(scores, [2.5, 97.5])
    return Interval(task.score(y, answer), float(low), float(high))
