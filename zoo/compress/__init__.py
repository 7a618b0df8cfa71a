"""Smaller models: zeroed weights, removed channels, and what a model costs.

`MagnitudePruning` zeroes single weights while a model is trained: the compressed file shrinks, the latency does not.
`prune_channels` removes whole channels: parameters, file and latency shrink. `shrink` does either to a training run
and fine-tunes it. Importing this package loads nothing heavy; each name loads what it needs when it is first used.
"""

from importlib import import_module
from typing import Any

_HOME = {  # no file here may have the name of a verb: importing it would hide the verb
    "prune_channels": "zoo.compress.channels",
    "channel_groups": "zoo.compress.channels",
    "MagnitudePruning": "zoo.compress.magnitude",
    "zero_weights": "zoo.compress.magnitude",
    "zeros_report": "zoo.compress.magnitude",
    "sparsity": "zoo.compress.magnitude",
    "compressed_bytes": "zoo.compress.magnitude",
    "shrink": "zoo.compress.runs",
    "distill": "zoo.compress.distillation",
    "distill_defensively": "zoo.compress.defensive",
    "quantization_aware": "zoo.compress.awareness",
    "finish": "zoo.compress.awareness",
    "tune_quantized": "zoo.compress.awareness",
    "changes": "zoo.compress.differences",
    "fit": "zoo.compress.budget",
    "BudgetError": "zoo.compress.budget",
    "cost": "zoo.compress.costs",
    "macs": "zoo.compress.costs",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'zoo.compress' has no attribute {name!r}; it has {', '.join(_HOME)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
