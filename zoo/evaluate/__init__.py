"""Evaluation: how good a model or a bundle is on rows it never saw. The package itself is the verb.

`zoo.evaluate(model)` judges one model; `gap`, `cross_validate` and `learning_curve` tell how much the figure depends on
the rows; `compare` and `against_baseline` say which of two is better; `calibrate` whether probabilities can be
believed; `segment` answers pictures larger than a segmentation's input.
"""

import sys
from types import ModuleType

from zoo.evaluate.calibration import Calibrated, Reliability, calibrate, reliability
from zoo.evaluate.compare import Comparison, against_baseline, compare
from zoo.evaluate.report import Report, evaluate, latency
from zoo.evaluate.tiles import segment
from zoo.evaluate.validate import Folds, Gap, Growth, cross_validate, gap, learning_curve

__all__ = [
    "Calibrated",
    "Comparison",
    "Folds",
    "Gap",
    "Growth",
    "Reliability",
    "Report",
    "against_baseline",
    "calibrate",
    "compare",
    "cross_validate",
    "evaluate",
    "gap",
    "latency",
    "learning_curve",
    "reliability",
    "segment",
]


class _Verb(ModuleType):
    """Lets `zoo.evaluate(...)` call the function, also after `import zoo.evaluate`."""

    def __call__(self, *args, **kwargs):
        return evaluate(*args, **kwargs)


sys.modules[__name__].__class__ = _Verb
