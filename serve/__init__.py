"""Answers from bundles: the manifest reader, the runtime and the Flask app. Loads no Keras and no TensorFlow."""

from importlib import import_module
from typing import Any

_HOME = {
    "create_app": "serve.app",
    "run": "serve.host",
    "Model": "serve.runtime",
    "Settings": "serve.settings",
    "Store": "serve.store",
    "read": "serve.manifest",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'serve' has no attribute {name!r}; it has {', '.join(_HOME)}")
    return getattr(import_module(_HOME[name]), name)
