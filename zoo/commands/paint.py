"""`zoo paint`: pictures of texts."""

from pathlib import Path
from typing import Annotated

import typer

from zoo.commands.shared import quiet_backend


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(paint)


def paint(
    what: Annotated[Path, typer.Argument(help="Run folder or bundle of a model that paints pictures of texts.")],
    text: Annotated[list[str], typer.Option(help="What a picture is to show; repeatable.")],
    out: Annotated[Path, typer.Option(help="File for the pictures with their texts.")] = Path("painted.png"),
    each: Annotated[int, typer.Option(min=1, help="Pictures of each text.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest codes, 1 draws as the model says.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw among so many of the likeliest; 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest of so much probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of the drawing.")] = None,
    precision: Annotated[str | None, typer.Option(help="Form of a bundle, such as w8.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Processor threads; 0 for all.")] = 0,
) -> None:
    """Paint pictures of texts by a model that was trained on pictures with captions.

    Example: zoo paint runs/dalle_nano-captioned_shapes --text "a large red ring" --each 5 --out ring.png
    """
    if not what.is_dir():
        raise ValueError(
            f"{what} is neither a run folder nor a bundle, such as runs/dalle_nano-captioned_shapes or store/dalle/1"
        )
    quiet_backend()
    from zoo.painting import paint as painted

    texts = [asked for asked in text for _ in range(each)]
    drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    painted(what, texts, **drawn, precision=precision, threads=threads, out=out)
    typer.echo(f"{len(texts)} picture{'s' * (len(texts) > 1)} in {out}")
