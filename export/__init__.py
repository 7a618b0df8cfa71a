"""Models to bundles: ONNX with its preprocessing inside, INT8, device files; each is compared with Keras first.

Importing this package loads nothing heavy; each verb loads what it needs when it is first used.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "to_onnx": "export.convert",
    "to_litert": "export.litert",
    "to_ort": "export.ort",
    "to_bundle": "export.bundle",
}

__all__ = ["ExportError", *_HOME]


class ExportError(ValueError):
    """The model cannot be exported, or its export does not answer as the model does; nothing was written."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'export' has no attribute {name!r}; its verbs are {', '.join(_HOME)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
