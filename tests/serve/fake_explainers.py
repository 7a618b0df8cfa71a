"""Stand-ins for `zoo.explain.explain`, named as targets of the explainer's process."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np


def echo(bundle, inputs, *, precision, method, target, quality, seconds):
    """Tells what it was called with and in which process."""
    print("a library that prints must not disturb the answers")
    told = {
        "name": bundle.manifest.name,
        "shapes": {name: list(array.shape) for name, array in inputs.items()},
        "missing": [str(value) for array in inputs.values() if array.dtype.kind == "U" for value in array.flat],
        "sum": float(np.nansum(inputs["numbers"])) if "numbers" in inputs else 0.0,
        "precision": precision,
        "method": method,
        "target": target,
        "quality": quality,
        "budget": seconds,
        "complete": False,
        "faithfulness": {"deletion": 0.25, "deletion_random": 0.5},
        "process": os.getpid(),
    }
    return _explanation(told)


def _explanation(told):
    """Its picture is no picture: it ends in how it was asked for."""
    return SimpleNamespace(
        to_json=lambda inputs: json.dumps(told),
        plot=lambda file, **how: file.write(b"\x89PNG picture " + json.dumps(how).encode()),
    )


def hang_once(bundle, inputs, **options):
    """Hangs the first time, which a file beside the store remembers."""
    mark = bundle.folder.parents[2] / "hung"
    if not mark.exists():
        mark.touch()
        time.sleep(60)
    return echo(bundle, inputs, **options)


def die_once(bundle, inputs, **options):
    """Ends its process the first time, as a crash in native code would."""
    mark = Path(bundle.folder.parents[2] / "died")
    if not mark.exists():
        mark.touch()
        os._exit(7)
    return echo(bundle, inputs, **options)


def patient(bundle, inputs, *, seconds, **options):
    """Works until its budget ends, as on a model that is too slow, and then gives the best so far."""
    time.sleep(seconds)
    told = {"complete": False, "method": "permutation", "faithfulness": {"deletion": 0.2, "deletion_random": 0.5}}
    return _explanation(told)


def without_matplotlib(bundle, inputs, **options):
    raise ImportError("No module named 'matplotlib'")


def refuse(bundle, inputs, *, method, **options):
    raise ValueError(f"no method is called {method!r}")


def fail(bundle, inputs, **options):
    raise RuntimeError("numerics")
