"""`zoo evaluate`, `zoo compare`, `zoo calibrate` and `zoo validate`: how good, which is best, how sure, how stable."""

from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.commands.shared import quiet_backend, read_settings, run_or_bundle

What = Annotated[Path, typer.Argument(help="Run folder or bundle.")]
DataOption = Annotated[str | None, typer.Option("--data", help="Data; a run knows its own.")]
Target = Annotated[str | None, typer.Option(help="Target column of a table, if another one.")]
Form = Annotated[str | None, typer.Option(help="A bundle's: fp32, fp16, int8, w8 or w4.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Picture = Annotated[Path | None, typer.Option(help="Write the picture here.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (evaluate, compare, calibrate, validate):
        app.command()(command)


def evaluate(
    what: What,
    data: DataOption = None,
    target: Target = None,
    split: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
    precision: Form = None,
    beams: Annotated[
        int, typer.Option(help="Transcripts, or a bundle's written answers, followed at once for the likeliest.")
    ] = 1,
    gap: Annotated[bool, typer.Option("--gap", help="Scores of all splits, and how far training is ahead.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for a page with all pictures and the worst answers.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write the confusion picture here.")] = None,
    as_json: Json = False,
) -> None:
    """Judge a run or a bundle on rows it never saw: every metric with a 95 % interval, and per class.

    Examples: zoo evaluate store/digits/1 --data digits --precision int8 --out judged;
    zoo evaluate runs/speech_ctc-spoken_digits --beams 8
    """
    quiet_backend()
    from zoo.evaluate import evaluate as judge
    from zoo.evaluate import gap as between

    model = run_or_bundle(what, data)
    if gap:
        if out or picture or split != "test" or beams != 1:
            raise ValueError("--gap is a table of all splits; leave out --out, --picture, --split and --beams")
        _tell(between(model, data, precision=precision, target=target), as_json)
        return
    found = judge(model, data, split=split, precision=precision, target=target, beams=beams)
    _tell(found, as_json)
    if picture:
        typer.echo(f"picture: {found.plot(picture)}", err=as_json)
    if out:
        typer.echo(f"page: {found.save(out)}", err=as_json)


def compare(
    first: What,
    second: Annotated[Path | None, typer.Argument(help="Run folder or bundle to compare with.")] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Compare with logistic regression, trained on the same rows.")
    ] = False,
    data: DataOption = None,
    target: Target = None,
    metric: Annotated[str | None, typer.Option(help="Of the verdict, such as log_loss; the task's own.")] = None,
    split: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
    precision: Annotated[
        str | None, typer.Option(metavar="FORM[,FORM]", help="Of bundles, one for both or one for each.")
    ] = None,
    picture: Picture = None,
    as_json: Json = False,
) -> None:
    """Say which of two models is better on the same rows, by how much, and whether chance alone would do.

    Examples: zoo compare runs/lenet-digits runs/mlp-digits; zoo compare runs/mlp-digits --baseline;
    zoo compare store/digits/1 store/digits/1 --data digits --precision fp32,int8
    """
    if baseline == (second is not None):
        raise ValueError("give a second run or bundle, or --baseline, and not both")
    forms = (precision or "").split(",")
    if len(forms) > (1 if baseline else 2):
        raise ValueError(f"--precision takes a form{'' if baseline else ', or two with a comma'}, got {precision!r}")
    if baseline and split != "test":
        raise ValueError(f"--baseline compares on the test rows, got --split {split}; leave it out")
    quiet_backend()
    from zoo.evaluate import against_baseline
    from zoo.evaluate import compare as between

    models: list[Any] = [run_or_bundle(path, data) for path in (first, second) if path is not None]
    if baseline:
        found = against_baseline(models[0], data, metric=metric, precision=precision, target=target)
    else:
        pair: Any = (forms[0] or None, forms[-1] or None)
        found = between(*models, data, metric=metric, split=split, precision=pair, target=target)
    _tell(found, as_json)
    if picture:
        typer.echo(f"picture: {found.plot(picture)}", err=as_json)


def calibrate(
    what: What,
    data: DataOption = None,
    target: Target = None,
    method: Annotated[str, typer.Option(help="temperature or platt.")] = "temperature",
    precision: Form = None,
    level: Annotated[float, typer.Option(help="Share of rows whose conformal set should hold the truth.")] = 0.9,
    picture: Picture = None,
    as_json: Json = False,
) -> None:
    """Tell whether probabilities are right as often as they say, and what scaling on the validation rows brings.

    `zoo export RUN BUNDLE --calibrate temperature --conformal 0.9` puts the constants into the exported files.

    Example: zoo calibrate runs/resnet18-digits --picture reliability.png
    """
    quiet_backend()
    from zoo.evaluate import calibrate as scale

    found = scale(run_or_bundle(what, data), data, method=method, precision=precision, target=target, level=level)
    _tell(found, as_json)
    if picture:
        typer.echo(f"picture: {found.plot(picture)}", err=as_json)


def validate(
    what: Annotated[str, typer.Argument(help="Name of a model, or the folder of a run whose recipe is repeated.")],
    data: Annotated[str | None, typer.Option(help="Data set name, folder of images, CSV, Parquet or .npz.")] = None,
    folds: Annotated[int, typer.Option(help="How often to train, each time leaving out another part.")] = 5,
    curve: Annotated[
        str | None,
        typer.Option(metavar="SHARES", help="Train on growing shares in place of folds, such as 0.1,0.25,0.5,1."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the folds or shares.")] = 0,
    use_test: Annotated[bool, typer.Option("--use-test", help="Deal out the test rows too.")] = False,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training rows.")] = None,
    target: Annotated[str | None, typer.Option(help="Target column of a table.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As in zoo train; repeatable.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Write the picture of --curve here.")] = None,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")] = False,
) -> None:
    """Train again and again by the same recipe: k-fold cross-validation, or a learning curve over training rows.

    Examples: zoo validate mlp --data wine --folds 10; zoo validate runs/lenet-digits --curve 0.1,0.25,0.5,1
    """
    if picture and not curve:
        raise ValueError("--picture is of a learning curve; add --curve, or leave it out")
    if curve and (use_test or folds != 5):
        raise ValueError("--curve trains on shares and judges on the test rows; leave out --folds and --use-test")
    given: dict[str, Any] = {**read_settings(settings), **({} if epochs is None else {"epochs": epochs})}
    if target is not None:
        given["target"] = target
    quiet_backend()
    from zoo.evaluate import cross_validate, learning_curve

    if curve is None:
        _tell(cross_validate(what, data, folds=folds, seed=seed, use_test=use_test, quiet=quiet, **given), as_json)
        return
    try:
        shares = tuple(map(float, curve.split(",")))
    except ValueError:
        raise ValueError(f"--curve takes shares such as 0.1,0.25,0.5,1, got {curve!r}") from None
    grown = learning_curve(what, data, shares=shares, seed=seed, quiet=quiet, **given)
    _tell(grown, as_json)
    if picture:
        typer.echo(f"picture: {grown.plot(picture)}", err=as_json)


def _tell(found: Any, as_json: bool) -> None:
    typer.echo(found.to_json().rstrip() if as_json else str(found))
