"""What several commands need: a quiet terminal, settings from `KEY=VALUE`, runs and bundles by their path."""

import re
import sys
from pathlib import Path
from typing import Any


def quiet_backend() -> None:
    """Drop the log lines that TensorFlow's C++ side writes to the terminal whatever its log level is.

    Python's own standard error keeps the terminal; file descriptor 2, which C++ writes to, becomes a pipe, and what
    comes out of it is passed on unless it is an information, warning or error line of the log.
    """
    import os
    import threading

    if os.environ.get("ZOO_DEBUG"):
        return
    terminal = os.fdopen(os.dup(2), "w", buffering=1)
    source, sink = os.pipe()
    os.dup2(sink, 2)
    os.close(sink)
    noise = re.compile(
        r"[IWE]\d{4} |WARNING: All log messages before absl|To enable the following instr|\t \[\[\{\{node"
        r"|INFO: Created TensorFlow Lite|fully_quantize: \d"
    )

    def pass_on() -> None:
        with os.fdopen(source, errors="replace") as lines:
            for line in lines:
                if not noise.match(line):
                    terminal.write(line)

    threading.Thread(target=pass_on, daemon=True).start()
    sys.stderr = terminal


def read_settings(pairs: list[str] | None) -> dict[str, object]:
    """`KEY=VALUE` texts as a dictionary; model arguments are read as Python literals where they are ones."""
    import ast

    from zoo.recipes import SETTINGS

    found: dict[str, object] = {}
    for pair in pairs or []:
        key, separator, value = pair.partition("=")
        if not separator:
            raise ValueError(f"--set takes KEY=VALUE, got {pair!r}; for example --set learning_rate=0.01")
        found[key] = value
        if key not in SETTINGS:
            try:
                found[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                found[key] = value  # plain text such as stem=small
    return found


def run_or_bundle(path: Path, data: str | None) -> object:
    """A run, with its own data unless other data is named; or the path of a bundle."""
    if (path / "model.json").exists():
        return path
    if not (path / "recipe.json").exists():
        raise FileNotFoundError(
            f"{path} is neither a run folder nor a bundle, such as runs/mlp-digits or store/digits/1"
        )
    from zoo.training import load

    return load(path) if data else with_data(path, None)


def with_data(path: Path, data: str | None) -> Any:
    """A run with the splits it was trained on, read from `data` if they have moved."""
    import dataclasses

    from zoo.training import load, load_data

    run = load(path)
    return dataclasses.replace(run, data=load_data(run, data))
