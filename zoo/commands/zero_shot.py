"""`zoo zero-shot`: a classifier of pictures whose classes are words."""

from pathlib import Path
from typing import Annotated

import typer

from zoo.commands.shared import quiet_backend


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("zero-shot")(zero_shot)


def zero_shot(
    run: Annotated[Path, typer.Argument(help="Run folder of a model of pictures and texts.")],
    data: Annotated[
        str, typer.Option(help="Pictures with labels to judge it by: a name, or a folder of images per label.")
    ],
    out: Annotated[Path | None, typer.Option(help="Run folder; RUN-zero-shot if not given.")] = None,
    template: Annotated[
        list[str] | None, typer.Option(help="Sentence with {} in place of the label; repeatable.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is in the folder.")] = False,
) -> None:
    """Make a classifier of the data's labels without training it, from what pictures and their captions taught.

    Example: zoo zero-shot runs/clip_nano-captioned_shapes --data coloured_shapes
    """
    quiet_backend()
    from zoo.matching import TEMPLATE
    from zoo.matching import zero_shot as made

    folder = out or run.with_name(f"{run.name}-zero-shot")
    found = made(run, template=tuple(template or [TEMPLATE]), data=data, out=folder, overwrite=overwrite)
    rows = len(found.data.test)
    typer.echo(
        f"{len(found.signature.labels)} labels, none of which it was trained on: accuracy {found.metrics['test']:.4f} on {rows:,} "
        f"test rows, {found.metrics['baseline']:.4f} by chance"
    )
    typer.echo(f"run in {folder}: zoo evaluate, explain and export take it as any other")
