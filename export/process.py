"""Conversions need TensorFlow: they run here when it is the Keras backend, else in a process of their own."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from export import ExportError
from zoo.data.signature import Signature


def through_tensorflow(module: str, model: Any, signature: Signature | None, path: Path, **options: Any) -> None:
    """Call `module.write(model, signature, path, **options)` where Keras runs on TensorFlow.

    Args:
        module: dotted name of the converter.
        model: functional Keras model; on another backend it is saved, and loaded again in the other process.
        path: file to write, in a folder that may hold further temporary files.
        options: JSON values.

    Raises:
        ExportError: the conversion failed, or the model cannot be taken to another process.
    """
    if keras.config.backend() == "tensorflow":
        importlib.import_module(module).write(model, signature, path, **options)
        return
    modules = sorted({type(layer).__module__ for layer in (model, *dict(layer_paths(model)).values())})
    modules = [name for name in modules if name.partition(".")[0] != "keras"]
    if "__main__" in modules:
        raise ExportError(
            f"cannot export {model.name!r} from the {keras.config.backend()!r} backend: it has layers defined in the running "
            "script; move them to a module that can be imported, or run with KERAS_BACKEND=tensorflow"
        )
    saved, meaning = path.with_name("model.keras"), path.with_name("signature.json")
    model.save(saved)
    if signature is not None:
        signature.save(meaning)
    order = {
        "module": module,
        "imports": modules,
        "model": str(saved),
        "signature": str(meaning) if signature else None,
        "path": str(path),
        "options": options,
    }
    environment = {
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "PYTHONPATH": os.pathsep.join(part for part in sys.path if part),
    }
    command = [sys.executable, "-m", "export.process", json.dumps(order)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "Error: " in line]  # TensorFlow logs around them
        reason = (
            errors[-1].removeprefix("export.ExportError: ") if errors else f"the process ended with {done.returncode}"
        )
        raise ExportError(f"cannot export {model.name!r} through TensorFlow: {reason}")


def layer_paths(layer: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, layer) of every layer below one, such as ("encoder/block0", ...)."""
    for child in layer._flatten_layers(include_self=False, recursive=False):
        if not isinstance(child, keras.layers.InputLayer):
            yield prefix + child.name, child
            yield from layer_paths(child, f"{prefix}{child.name}/")


def _main(order: dict[str, Any]) -> None:
    for name in order["imports"]:
        importlib.import_module(name)
    model = keras.models.load_model(order["model"], compile=False)
    signature = Signature.load(order["signature"]) if order["signature"] else None
    importlib.import_module(order["module"]).write(model, signature, Path(order["path"]), **order["options"])


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
