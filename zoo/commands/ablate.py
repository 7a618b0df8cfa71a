"""`zoo ablate`: what each part of a recipe is worth."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from zoo.commands.shared import quiet_backend, read_settings


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(ablate)


def ablate(
    model: Annotated[str, typer.Argument(help="Public name, run folder or recipe.json.")],
    data: Annotated[str | None, typer.Option(help="Data set name, folder, CSV, Parquet or .npz file.")] = None,
    target: Annotated[str | None, typer.Option(help="Target column of a table.")] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A part to turn off, such as augment, rotate or dropout; repeatable."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE …",
            help="A variant; several changes of one variant stand in one text, separated by blanks; repeatable.",
        ),
    ] = None,
    base: Annotated[
        list[str] | None,
        typer.Option("--base", metavar="KEY=VALUE", help="A setting of the base and all variants; repeatable."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of every training.")] = None,
    seeds: Annotated[int, typer.Option(help="Trainings of each variant.")] = 3,
    split: Annotated[str, typer.Option(help="Rows to judge on: test or validation.")] = "test",
    out: Annotated[Path | None, typer.Option(help="Folder; ablations/<model> if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """Train a recipe and its variants with several seeds on the same splits, and compare them.

    Finished trainings in the folder are kept: repeat the command to go on, or to add variants and seeds.

    Example: zoo ablate mlp --data digits --drop dropout --set "width=(32,)" --set "width=(256,) dropout=0.5"
    """
    from zoo.registry import entry

    if not Path(model).exists():
        entry(model)  # a misspelt name is told before TensorFlow is loaded
    if not drop and not settings:
        raise ValueError('an ablation needs a variant: add --drop dropout, or --set "width=(16,)"')
    quiet_backend()
    from zoo.evaluate.ablation import ablate as tool

    variants = {text: read_settings(shlex.split(text)) for text in settings or []}
    given = read_settings(base)
    for key, value in (("epochs", epochs), ("target", target)):
        if value is not None:
            given[key] = value
    out = out or Path("ablations") / Path(model).stem
    found = tool(
        model, data, out=out, drop=drop or (), variants=variants, seeds=seeds, split=split, quiet=as_json, **given
    )
    typer.echo(found.to_json().rstrip() if as_json else f"\n{found}\n\ntable and picture in {out}")
