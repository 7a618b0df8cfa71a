"""`zoo debug`: what is wrong with a model, its training or its data, and what to do about it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.commands.shared import quiet_backend, read_settings

debug = typer.Typer(
    no_args_is_help=True,
    help="""Find what is wrong with a model, its training or its data; every finding ends with what to do.

    \b
    zoo debug overfit mlp --data digits     can it learn one batch by heart?
    zoo debug gradients mlp                 is backpropagation right?
    zoo debug flow mlp                      do gradients vanish or explode?
    zoo debug activations runs/mlp-digits   dead units, feature maps, filters
    zoo debug leakage patients.csv          does the data give its answers away?
    zoo debug labels patients.csv           which labels look wrong?
    """,
)

What = Annotated[str, typer.Argument(metavar="MODEL", help="Public name or run folder.")]
DataOption = Annotated[str | None, typer.Option("--data", help="Data set name, folder, CSV, Parquet or .npz file.")]
Source = Annotated[
    str, typer.Argument(metavar="DATA", help="Data set name, folder, CSV, Parquet or .npz file; or a run.")
]
Target = Annotated[str | None, typer.Option(help="Target column of a table.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting or model argument (zoo show NAME); repeatable."),
]
Out = Annotated[Path | None, typer.Option(help="Folder for the figures as JSON, and the pictures.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Strict = Annotated[bool, typer.Option("--strict", help="End with status 1 if something is found.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(debug, name="debug")


@debug.command()
def overfit(
    model: What,
    data: DataOption = None,
    target: Target = None,
    rows: Annotated[int | None, typer.Option(help="Rows of the batch; 32, or what the model can hold.")] = None,
    steps: Annotated[int, typer.Option(help="Steps at each learning rate.")] = 300,
    settings: Set = None,
    out: Out = None,
    as_json: Json = False,
    strict: Strict = False,
) -> None:
    """Train on one batch alone: a model that cannot learn it by heart has a bug.

    Example: zoo debug overfit lenet --data digits --out overfit
    """
    _check_name(model)
    quiet_backend()
    from zoo.evaluate.debugging import overfit as tool

    found = tool(model, data, rows=rows, steps=steps, progress=True, **_given(settings, target))
    _tell(found, "overfit", out, as_json, strict)


@debug.command()
def gradients(
    model: What,
    data: DataOption = None,
    target: Target = None,
    rows: Annotated[int, typer.Option(help="Training rows to check on.")] = 4,
    directions: Annotated[int, typer.Option(help="Directions per tensor.")] = 3,
    precision: Annotated[str | None, typer.Option(help="float64 or float32; float64 where the layers allow.")] = None,
    settings: Set = None,
    out: Out = None,
    as_json: Json = False,
    strict: Strict = False,
) -> None:
    """Compare backpropagation with finite differences, layer by layer.

    Example: zoo debug gradients mlp --data digits
    """
    _check_name(model)
    quiet_backend()
    from zoo.evaluate.debugging import check_gradients as tool

    given = _given(settings, target)
    found = tool(model, data, rows=rows, directions=directions, precision=precision, progress=True, **given)
    _tell(found, "gradients", out, as_json, strict)


@debug.command()
def flow(
    model: What,
    data: DataOption = None,
    target: Target = None,
    steps: Annotated[int, typer.Option(help="Batches.")] = 20,
    settings: Set = None,
    out: Out = None,
    as_json: Json = False,
    strict: Strict = False,
) -> None:
    """Measure gradients and updates of every layer in the first steps.

    Example: zoo debug flow resnet18 --data digits --set learning_rate=0.1
    """
    _check_name(model)
    quiet_backend()
    from zoo.evaluate.debugging import flow as tool

    _tell(tool(model, data, steps=steps, progress=True, **_given(settings, target)), "flow", out, as_json, strict)


@debug.command()
def activations(
    model: What,
    data: DataOption = None,
    target: Target = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    rows: Annotated[int, typer.Option(help="Rows to look at.")] = 2048,
    row: Annotated[int, typer.Option(help="The one whose feature maps are drawn.")] = 0,
    layer: Annotated[list[str] | None, typer.Option(help="Layer to draw; repeatable.")] = None,
    settings: Set = None,
    out: Out = None,
    as_json: Json = False,
    strict: Strict = False,
) -> None:
    """Count dead and saturated units, and draw feature maps, filters and histograms.

    Example: zoo debug activations runs/lenet-digits --out seen
    """
    _check_name(model)
    quiet_backend()
    from zoo.evaluate.debugging import activations as tool

    found = tool(
        model,
        data,
        split=split,
        rows=rows,
        row=row,
        layers=tuple(layer) if layer else None,
        progress=True,
        **_given(settings, target),
    )
    pictures = {"histograms": found.plot_histograms}
    if found.filters is not None:
        pictures["filters"] = found.plot_filters
    _tell(found, "activations", out, as_json, strict, pictures)


@debug.command()
def leakage(
    data: Source,
    target: Target = None,
    text: Annotated[str, typer.Option(help="Column of a table whose texts are read; or two, as question,answer.")] = "",
    seed: Annotated[int, typer.Option(help="Of the splits.")] = 0,
    near: Annotated[bool, typer.Option("--near/--no-near", help="Also look for near copies.")] = True,
    out: Out = None,
    as_json: Json = False,
    strict: Strict = False,
) -> None:
    """Look for copies across splits, columns that give the target away, ids, times and groups.

    Example: zoo debug leakage patients.csv --target ill
    """
    from zoo.evaluate.leakage import leakage as tool

    found = tool(data, target=target, text=text, seed=seed, near=near, progress=True)
    _tell(found, "leakage", out, as_json, strict)


@debug.command()
def labels(
    data: Source,
    target: Target = None,
    seed: Annotated[int, typer.Option(help="Of the folds.")] = 0,
    folds: Annotated[int, typer.Option(help="Parts of the data that are answered in turn.")] = 5,
    model: Annotated[
        str | None, typer.Option(help="Public name to train for each fold; logistic regression if not given.")
    ] = None,
    settings: Set = None,
    out: Out = None,
    as_json: Json = False,
    strict: Strict = False,
) -> None:
    """List rows whose label looks wrong, by confident learning on rows a model has not learnt from.

    Example: zoo debug labels digits --out doubtful
    """
    quiet_backend()
    from zoo.evaluate.labels import doubtful_labels as tool

    found = tool(data, target=target, model=model, folds=folds, seed=seed, progress=True, **read_settings(settings))
    _tell(found, "labels", out, as_json, strict)


def _check_name(model: str) -> None:
    """Tell of a misspelt name before TensorFlow is loaded."""
    from zoo.registry import entry

    if not Path(model).exists():
        entry(model)


def _given(settings: list[str] | None, target: str | None) -> dict[str, Any]:
    return {**read_settings(settings), **({"target": target} if target else {})}


def _tell(
    found: Any, name: str, out: Path | None, as_json: bool, strict: bool, pictures: dict[str, Any] | None = None
) -> None:
    """Print what was found, write it where asked, and end with status 1 where that was asked."""
    typer.echo(found.to_json().rstrip() if as_json else str(found))
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(found.to_json(), encoding="utf-8")
        paths = [found.plot(out / f"{name}.png")]
        paths += [draw(out / f"{key}.png") for key, draw in (pictures or {}).items()]
        typer.echo(f"pictures: {', '.join(map(str, paths))}", err=as_json)
    if strict and found.findings:
        raise typer.Exit(1)
