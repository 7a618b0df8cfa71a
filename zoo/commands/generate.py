"""`zoo generate`: what a model writes behind a text."""

from pathlib import Path
from typing import Annotated

import typer

from zoo.commands.shared import quiet_backend


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(generate)


def generate(
    what: Annotated[Path, typer.Argument(help="Run folder or bundle of a model that writes texts.")],
    text: Annotated[
        str, typer.Option(help="How the text begins, or what is to be answered; - reads it from the input.")
    ],
    most: Annotated[int, typer.Option(help="Tokens at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token, 1 draws as the model says.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw among so many of the likeliest; 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest of so much probability.")] = 1.0,
    beams: Annotated[int, typer.Option(help="Answers that are followed at once, for the likeliest of them.")] = 1,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End before this text; repeatable.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the drawing.")] = None,
    precision: Annotated[str | None, typer.Option(help="Form of a bundle, such as w8.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Processor threads; 0 for all.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON alone.")] = False,
) -> None:
    """Print what a model writes behind a text, as it comes.

    Example: zoo generate store/nano/1 --text "def main(" --temperature 0.8 --seed 1
    """
    if not what.is_dir():
        raise ValueError(
            f"{what} is neither a run folder nor a bundle, such as runs/gpt_nano-stdlib_text or store/nano/1"
        )
    quiet_backend()
    import json
    import sys
    import time

    from zoo.generation import opened, pieces

    running = opened(what, precision, threads)
    begun = sys.stdin.read() if text == "-" else text
    ask = {"most": most, "temperature": temperature, "top_k": top_k, "top_p": top_p, "beams": beams, "seed": seed}
    if not temperature and (top_k or top_p < 1 or seed is not None):
        typer.echo("nothing is drawn at temperature 0, so that --top-k, --top-p and --seed change nothing", err=True)
    started, said, notes = time.perf_counter(), [], []
    for piece in pieces(running, begun, stop=tuple(stop or ()), **ask):
        if piece.note:
            notes.append(piece.note)
            typer.echo(piece.note, err=True)
        said.append(piece.text)
        if not as_json:
            typer.echo(piece.text, nl=False)
            sys.stdout.flush()
    seconds = time.perf_counter() - started
    facts = {"tokens": piece.tokens, "done": piece.done, "seconds": round(seconds, 3), "notes": notes}
    if as_json:
        typer.echo(json.dumps({"text": "".join(said), **facts}, ensure_ascii=False))
    else:
        rate = f"{piece.tokens / seconds:.0f} a second" if seconds else ""
        typer.echo(f"\n[{piece.tokens} tokens, {rate}, ended by {piece.done}]", err=True)
