"""Evaluation: how good a model or a bundle is on rows it never saw. The package itself is the verb."""

import sys
from types import ModuleType

from zoo.evaluate.report import Report, evaluate, latency

__all__ = ["Report", "evaluate", "latency"]


class _Verb(ModuleType):
    """Lets `zoo.evaluate(...)` call the function, also after `import zoo.evaluate`."""

    def __call__(self, *args, **kwargs):
        return evaluate(*args, **kwargs)


sys.modules[__name__].__class__ = _Verb
