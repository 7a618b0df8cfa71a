"""Explanations in a process of their own: one that crashes, hangs or breaks its process leaves this one as it was.

The server does the same for its clients with `serve.explainer`, which keeps its process; here each call has a fresh one.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

SECONDS = 600.0
_BUILT_IN = {kind.__name__: kind for kind in (ValueError, TypeError, ImportError, MemoryError)}
_TAIL = 500  # characters of what a process wrote before it died


def explain(model: Any, x: Any, *, at_most: float = SECONDS, **options: Any) -> Any:
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
        TypeError: the model is a function or lives in the running script, and cannot be taken to another process.
        ValueError, ImportError: as of `zoo.explain`.
    """
    with tempfile.TemporaryDirectory(prefix="explain-") as folder:
        order = _described(model, options.pop("signature", None), Path(folder))
        return run("zoo.explain.apart:_explained", order, x, at_most=at_most, **options)


def run(target: str, *args: Any, at_most: float = SECONDS, **kwargs: Any) -> Any:
    """What a function returns in a fresh Python process with the same Keras backend and search path.

    Args:
        target: "module:function".
        args, kwargs: arguments that can be pickled.
        at_most: seconds until it is stopped.

    Raises:
        TimeoutError, RuntimeError: as of `explain`. A ValueError, TypeError, ImportError or MemoryError of the function is
            raised here too.
    """
    if not at_most > 0:
        raise ValueError(f"at_most must be above 0 seconds, got at_most={at_most!r}")
    with tempfile.TemporaryDirectory(prefix="apart-") as folder:
        order, answer, log = (Path(folder) / name for name in ("order", "answer", "log"))
        order.write_bytes(pickle.dumps((target, args, kwargs)))
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "zoo.explain.apart", order, answer],
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
                    f"{target} took longer than {at_most:g} seconds in its process and was stopped; give it more with "
                    "at_most=, or less to do"
                ) from None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # also what it started itself
                process.wait()
        if not answer.is_file():
            how = f"signal {-process.returncode}" if process.returncode < 0 else f"status {process.returncode}"
            said = " ".join(log.read_text(encoding="utf-8", errors="replace").split())[-_TAIL:]
            raise RuntimeError(
                f"the process of {target} died with {how}; this one goes on. It said last: {said or 'nothing'}"
            )
        kind, found = pickle.loads(answer.read_bytes())
    if kind:
        raise _BUILT_IN.get(kind, RuntimeError)(found if kind in _BUILT_IN else f"{target} failed with {kind}: {found}")
    return found


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
    path = folder / "model.keras"
    model.save(path)
    return {
        "model": str(path),
        "signature": signature,
        "imports": [name for name in modules if name.partition(".")[0] != "keras"],
    }


def _explained(order: Mapping[str, Any], x: Any, **options: Any) -> Any:
    """Inside the other process."""
    from zoo.explain import explain as verb

    if "bundle" in order:
        return verb(order["bundle"], x, **options)
    import keras

    for name in order["imports"]:
        import_module(name)
    return verb(keras.models.load_model(order["model"], compile=False), x, signature=order["signature"], **options)


def _main(order: str, answer: str) -> None:
    target, args, kwargs = pickle.loads(Path(order).read_bytes())
    module, _, name = target.partition(":")
    found: tuple[str, Any]
    try:
        found = "", getattr(import_module(module), name)(*args, **kwargs)
    except Exception as error:  # the caller gets to know of any
        found = type(error).__name__, str(error)
    draft = Path(answer).with_suffix(".draft")
    draft.write_bytes(pickle.dumps(found))
    draft.rename(answer)


if __name__ == "__main__":
    _main(*sys.argv[1:])
