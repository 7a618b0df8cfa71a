"""One name, the whole road: get, train, judge, shrink, export, explain and serve Keras 3 models.

Importing this package loads nothing heavy; each verb loads what it needs when it is first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.8.0"

_HOME = {
    "get": "zoo.registry",
    "names": "zoo.registry",
    "show": "zoo.registry",
    "register": "zoo.registry",
    "features": "zoo.backbone",
    "train": "zoo.training",
    "load": "zoo.training",
    "evaluate": "zoo.evaluate",
    "zero_shot": "zoo.matching",
    "explain": "zoo.explain",
    "generate": "zoo.generation",
    "paint": "zoo.painting",
    "compress": "zoo.compress",
    "data": "zoo.data",
}
_MODULES = {"compress", "data", "evaluate", "explain"}  # public as modules; the last two can be called themselves

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}; its verbs are {', '.join(_HOME)}")
    module = import_module(_HOME[name])
    return module if name in _MODULES else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
