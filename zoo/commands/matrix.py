"""`zoo matrix`: what works for which model, with figures."""

from datetime import date
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(matrix)


def matrix(
    pattern: Annotated[str, typer.Argument(help="Shell-style pattern of names.")] = "*",
    task: Annotated[str | None, typer.Option(help="Keep models for this task.")] = None,
    proven: Annotated[
        bool, typer.Option("--proven", help="Full size by the proven recipes: minutes for each model.")
    ] = False,
    families: Annotated[bool, typer.Option("--families", help="One model of each family.")] = False,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each training.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Page to write or bring up to date; JSON goes beside it. [default: docs/matrix.md, or docs/matrix-proven.md]"
        ),
    ] = None,
) -> None:
    """Run every model through every stage: build, train, save, prune, ONNX, INT8, edge, explain, serve.

    The page is written after each model; models on it that are not run now keep their rows. Ends with status 1 if a stage
    failed. A stage that does not apply to a model tells why.

    Example: zoo matrix "resnet*" --out matrix.md
    """
    from rich.console import Console

    from zoo import matrix as tool
    from zoo import registry
    from zoo.machine import processor, versions

    names = registry.names(pattern, task)
    if not names:
        raise ValueError(f"no model's name is like {pattern!r}; zoo names lists them")
    if families:
        names = sorted({registry.entry(name).family: name for name in reversed(names)}.values())
    page = tool.Page.open(out or Path("docs") / f"matrix{'-proven' if proven else ''}.md", proven=proven)
    packages = ", ".join(f"{key} {value}" for key, value in versions("zooroad", "keras", "tensorflow").items())
    console, failed = Console(highlight=False), 0
    with console.status("") as status:
        found = tool.matrix(names, proven=proven, epochs=epochs)
        for number, name in enumerate(names, start=1):
            status.update(f"{number} of {len(names)}: {name} …")
            _, row = next(found)
            page.add(name, row, f"{date.today():%Y-%m-%d}, {processor()}, {packages}")
            failed += _print(console, name, row)
    console.print(f"\n{page.path} and {page.beside}; {failed} stages failed")
    if failed:
        raise typer.Exit(1)


def _print(console, name, row) -> int:
    """Print one model's cells; how many failed."""
    from zoo.matrix import DONE, FAILED

    console.print(f"\n[bold]{name}[/bold]  {sum(cell.seconds for cell in row.values()):.0f} s")
    for stage, cell in row.items():
        told = cell.text if cell.state == DONE else f"{cell.state}: {cell.text}"
        console.print(f"  {stage:<8} {told}", markup=False, style="red" if cell.state == FAILED else None)
    return sum(cell.state == FAILED for cell in row.values())
