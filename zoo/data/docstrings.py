"""Paragraphs of the documentation strings in Python's own library, and which part of it each is from."""

import ast
import platform
import re
import sysconfig
from pathlib import Path

import numpy as np

# parts of the library that every version since 3.11 has, by the packages and modules that they are made of
TOPICS = {
    "asyncio": ("asyncio",),
    "decimal": ("_pydecimal.py",),
    "email": ("email", "mailbox.py"),
    "http": ("http", "urllib"),
    "importlib": ("importlib",),
    "logging": ("logging",),
    "unittest": ("unittest", "doctest.py"),
    "xml": ("xml", "xmlrpc"),
}
_LEAST = 8  # words of a paragraph


def paragraphs() -> tuple[np.ndarray, np.ndarray, tuple[str, ...], str]:
    """Paragraphs of at least eight words, without examples, each once for each topic.

    Returns:
        Texts `(rows,)`, indices of their topics int64 `(rows,)`, the topics, and the version of Python they are from.

    Raises:
        FileNotFoundError: the library of this interpreter is not there as source.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    texts: list[str] = []
    topics: list[int] = []
    for number, places in enumerate(TOPICS.values()):
        seen: set[str] = set()
        files = [file for place in places for file in _files(root / place)]
        if not files:
            raise FileNotFoundError(
                f"Python's library in {root} has no {places[0]} as source; install it, or use other data"
            )
        for file in files:
            for text in _of(file):
                if text not in seen:
                    seen.add(text)
                    texts.append(text)
                    topics.append(number)
    return np.array(texts), np.array(topics, np.int64), tuple(TOPICS), platform.python_version()


def _files(place: Path) -> list[Path]:
    return sorted(place.rglob("*.py")) if place.is_dir() else [place] if place.is_file() else []


def _of(file: Path) -> list[str]:
    """Paragraphs of a file's documentation strings, in its order."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        ast.get_docstring(node) or "" for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, kinds)
    ]
    parts = [" ".join(part.split()) for text in found for part in re.split(r"\n\s*\n", text)]
    return [part for part in parts if len(part.split()) >= _LEAST and ">>>" not in part]
