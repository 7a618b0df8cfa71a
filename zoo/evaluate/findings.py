"""What a check found wrong, and what to do about it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        where: layer, column, split or setting.
        what: what is wrong with it, in figures.
        advice: what to do about it.
    """

    where: str
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.advice}"


def listed(findings: Sequence[Finding], clean: str) -> str:
    """Findings as lines to print, or what to say where there are none."""
    return "\n".join(f"- {finding}" for finding in findings) if findings else clean


def named(words: Sequence[Any], most: int = 8) -> str:
    """The first words of a list, and how many more there are."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(map(str, words[:most])) + more


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left; the first row is the head."""
    width = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        f"{row[0]:<{width[0]}}" + "".join(f"  {text:>{w}}" for text, w in zip(row[1:], width[1:], strict=True))
        for row in rows
    )


def over(items: Sequence, what: str, progress: bool) -> Iterable:
    """The items, with a progress bar where one is asked for and standard error is a terminal."""
    if not progress:
        return items
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, description=what, console=console, transient=True) if console.is_terminal else items
