"""The command line: one thin command per verb. Everything heavy is imported inside the command that needs it."""

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.commands import (
    ablate,
    debug,
    evaluate,
    explain,
    generate,
    matrix,
    paint,
    robustness,
    segment,
    serve,
    zero_shot,
)
from zoo.commands.shared import quiet_backend, read_settings, with_data
from zoo.remote import traffic

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="One name, the whole road: get, train, judge, shrink, export, explain and serve a neural network.",
    epilog="Start with: zoo demo · zoo names · zoo train mlp --data digits",
)

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting or model argument (zoo show NAME); repeatable."),
]
Moved = Annotated[str | None, typer.Option("--data", help="Where the run's data is, if it has moved.")]


def main() -> None:
    """Run the command line; what a user can cause ends in one line of text and status 1."""
    import os
    import warnings

    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        app()
    except (ValueError, TypeError, LookupError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("ZOO_DEBUG"):
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        if isinstance(error, OSError) and error.strerror and error.filename:
            message = f"{error.filename}: {error.strerror.lower()}"
        if isinstance(error, ModuleNotFoundError):
            message = f"{error}; install all that zoo can use: pip install 'zooroad[all]'"
        sys.exit(f"error: {message}\n(ZOO_DEBUG=1 shows where it arose)")


@app.command()
def names(
    pattern: Annotated[str, typer.Argument(help="Shell-style pattern.")] = "*",
    task: Annotated[str | None, typer.Option(help="Keep models for this task.")] = None,
) -> None:
    """List the models.

    Example: zoo names "res*" --task image-classification
    """
    from zoo.registry import entry
    from zoo.registry import names as all_names

    found = all_names(pattern, task)
    if not found:
        raise ValueError(f"no model matches {pattern!r}; `zoo names` lists them all")
    width = max(map(len, found))
    for name in found:
        e = entry(name)
        aliases = f"  (also {', '.join(e.aliases)})" if e.aliases else ""
        typer.echo(f"{name:<{width}}  {e.params:>12,} parameters  {', '.join(e.tasks)}{aliases}")


@app.command()
def show(
    name: str,
    layers: Annotated[bool, typer.Option("--layers", help="Also each layer's size and multiplications.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="With --layers, an argument of the model; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --layers, print the layers as JSON alone.")] = False,
) -> None:
    """Show what is known of a model: paper, parameters, weights, and all that --set takes when it is trained.

    Example: zoo show resnet18 --layers --set input_shape=32,32,3
    """
    import shutil
    import textwrap

    from zoo import recipes, registry
    from zoo.weights import to_convert

    entry = registry.entry(name)
    if (settings or as_json) and not layers:
        raise ValueError("--set and --json are about the layers; add --layers")
    arguments = read_settings(settings)
    if as_json:
        _show_layers(entry, arguments, True)
        return
    typer.echo(registry.show(name))
    for told in to_convert(entry):
        typer.echo(f"{'weights':<10}  {told}")
    recipe = recipes.find(entry.name, entry.data, entry.recipe)
    typer.echo(f"\ntrained on {entry.data} with these settings, which --set changes:" if entry.data else "\nsettings:")
    given = {**recipe.arguments, **{key: getattr(recipe, key) for key in recipes.SETTINGS}}
    taken = {*entry.inputs, *entry.alternatives}
    # options of their own, what is no setting, and what is about other inputs than the model's
    hidden = {"target", "seed", "epochs", "weights", "expected", "literature"}
    hidden |= {key for key, inputs in recipes.ABOUT.items() if not taken & {*inputs}}
    if len(entry.tasks) == 1:
        hidden.add("task")
    width = shutil.get_terminal_size().columns
    for key, value in given.items():
        if key not in hidden:
            text = f"{key}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
            among = f"  {', '.join(recipes.CHOICES[key])}" if key in recipes.CHOICES else ""
            line = f"{text:<24}{among}" if among else text
            typer.echo(textwrap.fill(line, width, initial_indent="  ", subsequent_indent=" " * 28))
    _show_published(entry.name, width)
    if layers:
        _show_layers(entry, arguments, False)


def _show_published(name: str, width: int) -> None:
    """Print the recipes of the literature that a model has."""
    import textwrap

    from zoo.recipes import SETTINGS
    from zoo.recipes.literature import LITERATURE

    for key, found in LITERATURE.get(name, {}).items():
        typer.echo(f"\nrecipe of the literature, not run here: zoo train {name} --data FOLDER --recipe {key}")
        arguments = found.settings.get("arguments", {})
        given = {**arguments, **{setting: value for setting, value in found.settings.items() if setting in SETTINGS}}
        told = ", ".join(f"{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in given.items())
        rows = {
            "data": found.data,
            "published": found.published,
            "source": found.source,
            "settings": told,
            "otherwise": "; ".join(found.departures),
        }
        for title, text in rows.items():
            typer.echo(textwrap.fill(f"{title:<10} {text}", width, initial_indent="  ", subsequent_indent=" " * 13))


def _show_layers(entry: Any, arguments: dict[str, object], as_json: bool) -> None:
    """Print what each layer of a model costs."""
    quiet_backend()
    import math

    from zoo.compress import cost

    model = entry.build(**arguments)
    rows = cost(model)
    trained = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    total = sum(row.macs or 0 for row in rows)
    if as_json:
        import json

        described = {
            "params": sum(row.params for row in rows),
            "trainable": trained,
            "macs": total,
            "flops": 2 * total,
            "layers": [row._asdict() for row in rows],
        }
        typer.echo(json.dumps({"name": entry.name, **described}, indent=2))
        return
    width = max(len(row.layer) for row in rows)
    typer.echo(
        f"\n{'layer':<{width}}  {'kind':<22} {'output':<20} {'parameters':>12} {'multiplications':>16} {'share':>6}"
    )
    for row in rows:
        macs = "?" if row.macs is None else f"{row.macs:,}"
        share = f"{row.macs / total:.1%}" if row.macs else ""
        typer.echo(
            f"{row.layer:<{width}}  {row.kind:<22} {row.output_shape!s:<20} {row.params:>12,} {macs:>16} {share:>6}"
        )
    typer.echo(f"{'all':<{width}}  {'':<22} {'':<20} {sum(row.params for row in rows):>12,} {total:>16,}")
    typer.echo(
        f"{trained:,} of the parameters are trained; {2 * total:,} floating point operations, two a multiplication"
    )
    unknown = sum(row.macs is None for row in rows)
    if unknown:
        typer.echo(
            f"{unknown} layers are not counted, because a size is not known; set it, as in --set input_shape=32,32,3"
        )


@app.command()
def data(
    source: Annotated[
        str, typer.Argument(help="Name, folder of images or of .txt files, CSV, Parquet, .npz or .txt file.")
    ] = "",
    target: Annotated[str | None, typer.Option(help="Target column of a table.")] = None,
    task: Annotated[
        str | None, typer.Option(help="What a file is for where it does not say it itself, such as forecasting.")
    ] = None,
    text: Annotated[
        str, typer.Option(help="Column of a table whose texts are read, and nothing else; two, as a,b, are pairs.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Of the splits.")] = 0,
    input_shape: Annotated[
        str | None, typer.Option(metavar="H,W,C", help="Size and channels that images are brought to.")
    ] = None,
) -> None:
    """Show a data set: splits, class balance, leaks between splits, source and licence; without a name, list them.

    Example: zoo data patients.csv --target ill
    """
    from zoo import data as datasets

    if not source:
        typer.echo("\n".join(datasets.names()))
        return
    shape = None
    if input_shape:
        try:
            shape = tuple(map(int, input_shape.split(",")))
        except ValueError:
            raise ValueError(
                f"--input-shape takes height,width,channels such as 32,32,3, got {input_shape!r}"
            ) from None
    typer.echo(datasets.load(source, target=target, task=task, text=text, seed=seed, input_shape=shape).summary())


@app.command()
def train(
    model: str,
    data: Annotated[
        str | None,
        typer.Option(help="Data set name, folder of images or of .txt files, CSV, Parquet, .npz or .txt file."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/<model>-<data> if not given.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training rows.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, splits, order and augmentation.")] = None,
    target: Annotated[str | None, typer.Option(help="Target column of a table of your own.")] = None,
    task: Annotated[
        str | None, typer.Option(help="What a file is for where it does not say it itself, such as forecasting.")
    ] = None,
    text: Annotated[
        str, typer.Option(help="Column of a table whose texts are read, and nothing else; two, as a,b, are pairs.")
    ] = "",
    weights: Annotated[str | None, typer.Option(help="Pretrained weights: a name or a file.")] = None,
    recipe: Annotated[
        str, typer.Option(metavar="NAME", help="A published recipe for full data, such as imagenet (zoo show NAME).")
    ] = "",
    settings: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a killed run, exactly.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is in the folder.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard logs.")] = False,
    diagnose: Annotated[bool, typer.Option("--diagnose", help="Measure gradients and dead units.")] = False,
    save_every: Annotated[int, typer.Option(help="Batches between two saves inside an epoch.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Train a model and write a run folder with model, history, pictures and report.

    Example: zoo train resnet18 --data digits --epochs 20 --set augment=shift,noise
    """
    from zoo.registry import entry

    found = entry(model)  # a misspelt name or setting is told before TensorFlow is loaded
    if recipe:
        from zoo.recipes import literature

        literature.find(found.name, recipe)
    given = {"epochs": epochs, "seed": seed, "target": target, "task": task, "text": text or None}
    overrides = {**read_settings(settings), **{key: value for key, value in given.items() if value is not None}}
    quiet_backend()
    from zoo.training import train as run

    run(
        model,
        data,
        recipe=recipe,
        out=out,
        resume=resume,
        overwrite=overwrite,
        quiet=quiet,
        weights=weights,
        tensorboard=tensorboard,
        diagnose=diagnose,
        save_every=save_every,
        **overrides,
    )


@app.command()
def compress(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Option(help="Folder of the smaller run.")],
    channels: Annotated[float | None, typer.Option(help="Share of the channels to remove, in (0, 1).")] = None,
    zeros: Annotated[float | None, typer.Option(help="Share of the weights to set to zero, in (0, 1).")] = None,
    macs: Annotated[
        float | None, typer.Option(help="Share of the multiplications to keep by removing channels, or their number.")
    ] = None,
    importance: Annotated[str, typer.Option(help="Of channels: magnitude, batch_norm or taylor.")] = "magnitude",
    scope: Annotated[
        str, typer.Option(help="Remove channels from each layer alike, or by one global ranking.")
    ] = "layer",
    steps: Annotated[int, typer.Option(help="Remove channels in so many parts, fine-tuning after each.")] = 1,
    bits: Annotated[
        int | None, typer.Option(help="Train on while weights are rounded to 2 to 8 bits; 8 prepares an INT8 export.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(metavar="NAME", help="Train this smaller model from the run's answers.")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Search for a form that loses at most so much of the validation score.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="The same, with an ONNX file of at most 500KB or 2MB.")
    ] = None,
    max_ms: Annotated[float | None, typer.Option(help="The same, with at most so many milliseconds a request.")] = None,
    trials: Annotated[int, typer.Option(help="Models that a search may train.")] = 4,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of fine-tuning, 10 if not given; a student's are its recipe's.")
    ] = None,
    data: Moved = None,
    settings: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a killed run, given the same options.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is in the folder.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")] = False,
) -> None:
    """Make a run's model smaller: within a budget, or in one way of your choice.

    --channels or --macs removes channels: a smaller file and a lower latency. --zeros sets weights to zero: a smaller
    compressed file, the same latency. --bits teaches the model to be rounded, for an INT8 file that holds its score.
    --student trains a smaller model from this one; --set then also takes temperature, alpha and features=True.

    Examples: zoo compress runs/resnet18-digits --max-drop 0.01 --max-size 1MB --max-ms 2 --out runs/fit;
    zoo compress runs/resnet18-digits --channels 0.5 --out runs/small;
    zoo compress runs/resnet18-digits --student lenet --out runs/student
    """
    ways = {"--channels": channels, "--zeros": zeros, "--macs": macs, "--bits": bits, "--student": student}
    chosen = [name for name, value in ways.items() if value is not None]
    budget = {"max_drop": max_drop, "max_size": _bytes(max_size), "max_ms": max_ms}
    given = {name: value for name, value in budget.items() if value is not None}
    if given and chosen:
        raise ValueError(f"--max-drop, --max-size and --max-ms search by themselves; leave out {', '.join(chosen)}")
    if not given and len(chosen) != 1:
        raise ValueError(
            f"give one of {', '.join(ways)}, or a budget (--max-drop, --max-size, --max-ms); got {', '.join(chosen) or 'none'}"
        )
    if given and (scope, steps, settings, resume) != ("layer", 1, None, False):
        raise ValueError("a search has no use for --scope, --steps, --set and --resume; leave them out")
    quiet_backend()
    if given:
        from zoo.compress import fit

        found = fit(
            with_data(run, data),
            out=out,
            trials=trials,
            epochs=epochs or 10,
            importance=importance,
            overwrite=overwrite,
            quiet=quiet,
            **given,
        )
        if quiet:
            typer.echo(str(found))
        typer.echo(
            f"export it with: zoo export {found.run.folder} store/NAME/1 --precision {found.precision} --max-drop {found.limits.drop:g}"
        )
        typer.echo(f"what changed beyond the score: zoo changes {run} {found.point.file}")
        return
    from zoo.compress import distill, shrink, tune_quantized, zeros_report

    source = with_data(run, data)
    common: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "quiet": quiet, **read_settings(settings)}
    if student is not None:
        small = distill(source, student, source.data, out=out, **common, **({"epochs": epochs} if epochs else {}))
    elif bits is not None:
        small = tune_quantized(source, out, weight_bits=bits, epochs=epochs or 10, **common)
        typer.echo(f"{small.metrics['quantized']:.4f} on test rows with weights of {bits} bits")
    else:
        small = shrink(
            source,
            out,
            channels=channels,
            zeros=zeros,
            macs=macs,
            importance=importance,
            scope=scope,
            steps=steps,
            epochs=epochs or 10,
            **common,
        )
        if zeros is not None and quiet:
            typer.echo("\n".join(zeros_report(small.model, source.model).splitlines()[-2:]))
    if student is not None and small.model.count_params() > source.model.count_params():
        typer.echo(
            f"{student} has more parameters than its teacher ({source.model.count_params():,}); a smaller one saves more"
        )
    typer.echo(
        f"{small.metrics['test']:.4f} on test rows ({source.metrics['test']:.4f} before), "
        f"{small.model.count_params():,} parameters, in {out}\n"
        f"what changed beyond the score: zoo changes {run} {out}"
    )


@app.command()
def changes(
    before: Annotated[Path, typer.Argument(help="Run folder, bundle or ONNX file.")],
    after: Annotated[Path, typer.Argument(help="The compressed one: run folder, bundle or ONNX file.")],
    data: Annotated[str | None, typer.Option(help="Data; a run and a bundle know their own.")] = None,
    split: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
    precisions: Annotated[
        str,
        typer.Option(metavar="BEFORE,AFTER", help="Files of bundles, such as fp32,int8; their defaults if not given."),
    ] = ",",
    rows: Annotated[int, typer.Option(help="How many rows to explain by both models, 0 for none.")] = 16,
    out: Annotated[Path | None, typer.Option(help="Folder for changes.png and changes.json.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Tell what compression changed beyond the score: classes that pay, flipped rows, calibration, reasons.

    Examples: zoo changes runs/lenet-digits runs/small --out changes;
    zoo changes store/digits/1 store/digits/1 --precisions fp32,int8
    """
    of = precisions.split(",")
    if len(of) != 2:
        raise ValueError(f"--precisions takes two names with a comma between, such as fp32,int8, got {precisions!r}")
    if out is not None and out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file; give a folder for changes.png and changes.json")
    quiet_backend()
    from zoo.compress import changes as compare

    chosen = (of[0] or None, of[1] or None)
    found = compare(before, after, data, split=split, precisions=chosen, explained=rows, quiet=quiet)
    typer.echo(found.to_json().rstrip() if as_json else str(found))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "changes.json").write_text(found.to_json(), encoding="utf-8")
        picture = found.plot(out / "changes.png")
        if not as_json:
            typer.echo(f"\npicture: {picture}")


def _bytes(text: str | None) -> float | None:
    """Bytes of a size such as 500KB or 2MB, in powers of 1024."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9.]+)\s*([KMG]?)I?B?", text.strip().upper())
    try:
        return float(found[1]) * 1024 ** " KMG".index(found[2] or " ") if found else float(text)
    except ValueError:
        raise ValueError(f"--max-size takes bytes, or a size such as 500KB or 2MB, got {text!r}") from None


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    bundle: Annotated[Path | None, typer.Argument(help="New version folder, such as store/digits/1.")] = None,
    onnx: Annotated[Path | None, typer.Option(metavar="FILE", help="Only an ONNX file, and no bundle.")] = None,
    int8: Annotated[
        bool, typer.Option("--int8/--no-int8", help="Also all in 8 bits: a quarter of the size, faster.")
    ] = True,
    float16: Annotated[bool, typer.Option("--float16", help="Also weights in 16 bits: half the size.")] = False,
    weight_bits: Annotated[
        list[int] | None,
        typer.Option(metavar="8|4", help="Also large matrices in so many bits, for transformers; repeatable."),
    ] = None,
    litert: Annotated[bool, typer.Option("--litert/--no-litert", help="Also LiteRT files, for phones.")] = True,
    ort: Annotated[bool, typer.Option("--ort/--no-ort", help="Also .ort files, for minimal ONNX Runtimes.")] = False,
    runner: Annotated[
        bool, typer.Option("--runner/--no-runner", help="Also run.py: checks and times itself on a device.")
    ] = True,
    edge: Annotated[bool, typer.Option("--edge", help="All that devices can use: --litert --ort --runner.")] = False,
    precision: Annotated[
        str | None, typer.Option(help="What the server uses unless asked: fp32, fp16, int8, w8 or w4.")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Most that a smaller form may lose of the validation score (0.003).")
    ] = None,
    calibrate: Annotated[
        str | None, typer.Option(metavar="METHOD", help="Calibrated probabilities in every file: temperature or platt.")
    ] = None,
    conformal: Annotated[
        float | None, typer.Option(metavar="LEVEL", help="Sets that hold the truth so often, such as 0.9, in /predict.")
    ] = None,
    data: Moved = None,
    activation_map: Annotated[
        str | None,
        typer.Option(metavar="top|all", help="Also maps of where the class was seen, as an output of the ONNX files."),
    ] = None,
    sign: Annotated[Path | None, typer.Option(metavar="KEY", help="Private key to sign it with; see zoo sign.")] = None,
) -> None:
    """Write a bundle: ONNX in FP32 and INT8 with preprocessing inside, manifest, golden rows, hashes, model card.

    Each smaller form is measured on real rows and kept only if it holds the score; what is refused is told, with
    figures.

    Example: zoo export runs/resnet18-digits store/digits/1 --float16 --edge
    """
    if (bundle is None) == (onnx is None):
        raise ValueError("give a version folder such as store/digits/1, or --onnx model.onnx, and not both")
    if onnx is not None and (calibrate is not None or conformal is not None):
        raise ValueError("--calibrate and --conformal are for bundles; give a version folder in place of --onnx")
    quiet_backend()
    import export as exporter
    from zoo import registry

    source = with_data(run, data)
    if onnx is not None:
        exporter.to_onnx(
            source.model,
            onnx,
            signature=source.signature,
            tolerance=registry.tolerance(source.recipe.model),
            activation_map=activation_map or False,
        )
        typer.echo(f"{onnx}  {onnx.stat().st_size / 1024:,.0f} KB, preprocessing inside; answers as Keras does")
        return
    assert bundle is not None
    made = exporter.to_bundle(
        source,
        bundle,
        int8=int8,
        float16=float16,
        weight_bits=weight_bits,
        litert=litert or edge,
        ort=ort or edge,
        runner=runner or edge,
        precision=precision,
        max_drop=max_drop,
        calibrate=calibrate,
        conformal=conformal,
        activation_map=activation_map or False,
        sign=sign,
    )
    manifest = made.manifest
    for form in manifest.precisions.values():
        score = "" if form.score is None else f"{manifest.metric} {form.score:.4f}  "
        speed = "" if form.ms is None else f"{form.ms:.3f} ms  "
        typer.echo(f"{form.file:<20} {form.bytes / 1024:>10,.0f} KB  {score}{speed}parity {form.parity:.1e}")
    for file, figures in manifest.edge.items():
        score = "" if figures.score is None else f"{manifest.metric} {figures.score:.4f}  "
        speed = "" if figures.ms is None else f"{figures.ms:.3f} ms  "
        typer.echo(
            f"{file:<20} {figures.bytes / 1024:>10,.0f} KB  {score}{speed}agreement with Keras {figures.agreement:.4f}"
        )
    for name, reason in manifest.refused.items():
        typer.echo(f"{name} was refused: {reason}")
    typer.echo(f"bundle in {bundle}; serve it with: zoo serve {bundle.parent.parent}")
    if runner or edge:
        typer.echo(f"check it on a device with numpy and onnxruntime: python {bundle / 'run.py'}")


ablate.register(app)
debug.register(app)
evaluate.register(app)
explain.register(app)
matrix.register(app)
robustness.register(app)
segment.register(app)
generate.register(app)
serve.register(app)
zero_shot.register(app)
paint.register(app)
app.add_typer(traffic, name="traffic")


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="Image model to take down the road.")] = "resnet18",
    out: Annotated[
        Path, typer.Option(help="Folder for everything it makes; replaced if it is an older demo's.")
    ] = Path("demo"),
    epochs: Annotated[int | None, typer.Option(help="Training epochs; the recipe's if not given.")] = None,
) -> None:
    """The whole road on real handwritten digits: train, report, prune, INT8, bundle, explain, serve one request."""
    quiet_backend()
    from zoo.demo import run

    run(model, out, epochs)


if __name__ == "__main__":
    main()
