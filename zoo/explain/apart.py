"""Explanations in a process of their own: one that crashes, hangs or breaks its process leaves this one as it was.

The server does the same for its clients with `serve.explainer`, which keeps its process; here each call has a fresh
one. The two processes exchange JSON, .npz and .keras files.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from zoo.explain.explanation import Explanation

SECONDS = 600.0
_BUILT_IN = {kind.__name__: kind for kind in (ValueError, TypeError, ImportError, MemoryError)}
_TAIL = 500  # characters of what a process wrote before it died


def explain(model: Any, x: Any, *, at_most: float = SECONDS, **options: Any) -> Explanation:
    """What `zoo.explain` gives, found in another process.

    Args:
        model: bundle, path of a bundle folder, run, or Keras model with `signature=` or `kind=`. Its own layers must
            be in modules that can be imported.
        x: raw inputs.
        at_most: seconds for all of it, starting the process and loading the backend included; then it is stopped.
            The option `seconds` is a budget that gives a partial answer instead.
        options: of `zoo.explain`, such as `method`, `target`, `background` and `seed`.

    Raises:
        TimeoutError: it took longer.
        RuntimeError: the process died; the message has the reason as far as it is known.
        TypeError: the model or an option is a function or lives in the running script, and cannot be taken to another
            process.
        ValueError, ImportError: as of `zoo.explain`.
    """
    if not at_most > 0:
        raise ValueError(f"at_most must be above 0 seconds, got at_most={at_most!r}")
    with tempfile.TemporaryDirectory(prefix="explain-") as name:
        folder = Path(name)
        order = _described(model, options.pop("signature", None), folder)
        arrays: dict[str, np.ndarray] = {}
        order |= {"x": _packed(x, arrays), "options": _packed(options, arrays)}
        np.savez(folder / "arrays.npz", **arrays)
        (folder / "order.json").write_text(json.dumps(order), encoding="utf-8")
        log, process = _finished(folder, at_most)
        answer = folder / "answer.json"
        if not answer.is_file():
            how = f"signal {-process.returncode}" if process.returncode < 0 else f"status {process.returncode}"
            said = " ".join(log.read_text(encoding="utf-8", errors="replace").split())[-_TAIL:]
            raise RuntimeError(
                f"the process that explains died with {how}; this one goes on. It said last: {said or 'nothing'}"
            )
        found = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in found:
        kind, message = found["error"]
        raise _BUILT_IN.get(kind, RuntimeError)(message if kind in _BUILT_IN else f"{kind}: {message}")
    return Explanation.from_json(found["explanation"])


def _finished(folder: Path, at_most: float) -> tuple[Path, subprocess.Popen[bytes]]:
    """The other process after its end, and the file with what it wrote."""
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "zoo.explain.apart", folder],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            process.wait(at_most)
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                f"the explanation took longer than {at_most:g} seconds in its process and was stopped; give it more with "
                "at_most=, or less to do"
            ) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also what it started itself
            process.wait()
    return log, process


def _environment() -> dict[str, str]:
    """This process's environment, with its Keras backend and search path."""
    given = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path), "MPLBACKEND": "Agg"}
    given.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "keras" in sys.modules:
        given["KERAS_BACKEND"] = sys.modules["keras"].config.backend()
    return given


def _described(model: Any, signature: Any, folder: Path) -> dict[str, Any]:
    """How another process finds a model."""
    if isinstance(model, str | Path):
        return {"bundle": str(Path(model).absolute())}
    if hasattr(model, "manifest"):
        return {"bundle": str(Path(model.folder).absolute())}
    if hasattr(model, "model") and hasattr(model, "signature"):  # a run
        model, signature = model.model, signature or model.signature
    if not hasattr(model, "predict_on_batch"):
        raise TypeError(
            f"a {type(model).__name__} cannot be taken to another process; give a bundle, a run or a Keras model, or call "
            "zoo.explain itself"
        )
    layers = model._flatten_layers(include_self=True, recursive=True)
    modules = sorted({type(layer).__module__ for layer in layers} - {"__main__"})
    if any(type(layer).__module__ == "__main__" for layer in layers):
        raise TypeError(
            f"{model.name!r} has layers defined in the running script, which another process cannot load; move them to a "
            "module that can be imported"
        )
    model.save(folder / "model.keras")
    if signature is not None:
        signature.save(folder / "signature.json")
    return {"imports": [name for name in modules if name.partition(".")[0] != "keras"]}


def _packed(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """An argument in JSON types; arrays are put aside under a number."""
    if isinstance(value, np.ndarray):
        name = str(len(arrays))
        arrays[name] = value.astype(str) if value.dtype == object else value
        return {"array": name}
    if isinstance(value, dict):
        return {"fields": {str(key): _packed(each, arrays) for key, each in value.items()}}
    if isinstance(value, list | tuple):
        return [_packed(each, arrays) for each in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be taken to another process; call zoo.explain itself")


def _unpacked(value: Any, arrays: Any) -> Any:
    if isinstance(value, list):
        return [_unpacked(each, arrays) for each in value]
    if isinstance(value, dict):
        if "array" in value:
            return arrays[value["array"]]
        return {key: _unpacked(each, arrays) for key, each in value["fields"].items()}
    return value


def _explained(order: dict[str, Any], folder: Path) -> Explanation:
    """Inside the other process."""
    from zoo.explain import explain as verb

    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        x, options = _unpacked(order["x"], arrays), _unpacked(order["options"], arrays)
    if "bundle" in order:
        return verb(order["bundle"], x, **options)
    for name in order["imports"]:
        import_module(name)
    import keras

    from zoo.data.signature import Signature

    path = folder / "signature.json"
    signature = Signature.load(path) if path.is_file() else None
    model = keras.models.load_model(folder / "model.keras", compile=False)
    return verb(model, x, signature=signature, **options)


def _main(folder: Path) -> None:
    order = json.loads((folder / "order.json").read_text(encoding="utf-8"))
    try:
        found: dict[str, Any] = {"explanation": _explained(order, folder).to_json()}
    except Exception as error:  # the caller gets to know of any
        found = {"error": [type(error).__name__, str(error)]}
    draft = folder / "draft"
    draft.write_text(json.dumps(found), encoding="utf-8")
    draft.rename(folder / "answer.json")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
