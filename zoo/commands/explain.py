"""`zoo explain`: why a model answered as it did, and what counts for it over a data set."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.commands.shared import quiet_backend, run_or_bundle

ROWS, SUMMARY_ROWS, BATCH = 4, 100, 8  # explained if not said otherwise: for themselves, for a summary, and at a time
SUFFIXES = (".png", ".svg", ".pdf", ".html", ".htm", ".json")
_INPUT, _HOW, _OUT = "What is explained", "How", "What is written"


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(explain)


def explain(
    model: Annotated[
        Path, typer.Argument(help="Bundle, such as store/digits/1 (no TensorFlow needed), or run folder.")
    ],
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A picture of your own.", rich_help_panel=_INPUT)
    ] = None,
    row: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help='A table\'s row, such as \'{"age": 61}\', of which what is left out is missing; or \'{"text": "…"}\'.',
            rich_help_panel=_INPUT,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Rows of this data set, by name or path; if not given, a bundle's example rows or a run's own data.",
            rich_help_panel=_INPUT,
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Of the data: test, validation or train.", rich_help_panel=_INPUT)
    ] = "test",
    rows: Annotated[
        int | None,
        typer.Option(help=f"How many; {ROWS}, and {SUMMARY_ROWS} for --summary, if not given.", rich_help_panel=_INPUT),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "--label",
            help="Class to explain, by label or number; if not given, each row's most probable one.",
            rich_help_panel=_INPUT,
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="auto chooses and says why. From answers alone: exact, permutation, kernel, partition, lime, occlusion, "
            "rise. For runs also: integrated_gradients, expected_gradients, deep, grad_cam, cam, attention_rollout …",
            rich_help_panel=_HOW,
        ),
    ] = "auto",
    seconds: Annotated[
        float | None,
        typer.Option(help="Time budget; then the best answer so far, with its error.", rich_help_panel=_HOW),
    ] = None,
    max_evals: Annotated[
        int | None, typer.Option(help="Evaluations per row at most; more are more exact.", rich_help_panel=_HOW)
    ] = None,
    quality: Annotated[
        bool | None,
        typer.Option(
            "--quality/--no-quality",
            help="Measure faithfulness and stability too, in about as much time again; for --summary if asked for.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="A bundle's fp32, fp16, int8, w8 or w4; its default if not given.", rich_help_panel=_HOW),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of whatever is drawn.", rich_help_panel=_HOW)] = 0,
    summary: Annotated[
        bool,
        typer.Option(
            "--summary",
            "--global",
            help="Not each row but what counts over all: importance with 95 % intervals, mean pictures by class.",
            rich_help_panel=_OUT,
        ),
    ] = False,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output",
            "--out",
            "-o",
            metavar="FILE",
            help="A picture (.png, .svg, .pdf), a page (.html) or all figures (.json), by its suffix; repeatable. "
            "explanation.png or summary.png if not given.",
            rich_help_panel=_OUT,
        ),
    ] = None,
    style: Annotated[
        str | None,
        typer.Option(
            help="Of the picture: overlay or map for images, bar or waterfall for tables, colour or bar for texts.",
            rich_help_panel=_OUT,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON alone.", rich_help_panel=_OUT)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.", rich_help_panel=_OUT)] = False,
) -> None:
    """Say why a model answered as it did, and how far that can be trusted.

    Each part of the input gets its share of the answer: columns of a table,
    pixels of a picture. With most methods the shares and the base, which is the
    answer with everything left out, add up to the answer; the additivity error
    says how exactly. Deletion and insertion say whether the parts named first
    are really those that count: deletion should be below that of a random
    order, insertion above it.

    Examples:
    zoo explain store/digits/1 --image digit.png -o why.html
    zoo explain store/wine/1 --row '{"alcohol": 13.1}' --style waterfall
    zoo explain runs/lenet-digits --method grad_cam --target 7
    zoo explain store/wine/1 --summary --data wine --seconds 60 -o what.png
    """
    if sum(given is not None for given in (row, image, data)) > 1:
        raise ValueError("--row is for tables, --image for pictures, --data for rows of a data set; give one of them")
    if summary and (style is not None or row is not None or image is not None):
        raise ValueError("--summary is over many rows and has its own picture; leave out --style, --row and --image")
    count = rows if rows is not None else SUMMARY_ROWS if summary else ROWS
    if count < 1:
        raise ValueError(f"--rows must be at least 1, got {rows}")
    written = output or ([] if as_json else [Path("summary.png" if summary else "explanation.png")])
    for path in written:
        _check(path)
    bundle = (model / "model.json").exists() or not (model / "recipe.json").exists()
    if not bundle:
        quiet_backend()
    subject, raw, notes = (_of_bundle if bundle else _of_run)(model, image, row, data, split, count)
    typer.echo("".join(f"note: {note}\n" for note in notes), nl=False, err=as_json)
    if not bundle and subject.signature.task == "text-to-text":
        if summary or as_json or method != "auto" or target is not None:
            raise ValueError(
                f"of {model}, which answers with a text, the attention is drawn for each row; leave out --summary, --json, "
                "--method and --target"
            )
        _draw_attention(subject, raw, written)
        return
    if style is not None:
        from zoo.explain.pictures import chosen

        chosen(subject.manifest.kind if bundle else subject.signature.preprocess.kind, style)
    options: dict[str, Any] = {
        "method": method,
        "target": _target(target, subject),
        "precision": precision,
        "max_evals": max_evals,
        "seed": seed,
        "quality": (not summary) if quality is None else quality,
    }
    with _bar(quiet or as_json) as progress:
        if summary:
            found = _summary(subject, raw, options, seconds, progress)
        else:
            from zoo.explain import explain as why

            found = why(subject, raw, seconds=seconds, progress=progress or False, **options)
    typer.echo(found.to_json() if as_json else str(found))
    for path in written:
        found.save(path) if summary else found.save(path, min(count, 64), style)
        typer.echo(f"written: {path}", err=as_json)


def _draw_attention(run: Any, raw: dict[str, Any], written: list[Path]) -> None:
    """Which tokens of a text each token of its answer looks at, as pictures."""
    from zoo.explain import crossings

    for path in written:
        if path.suffix.lower() not in crossings.SUFFIXES:
            raise ValueError(f"attention is drawn as {', '.join(crossings.SUFFIXES)}, got {str(path)!r}")
    found = crossings.looked(run.model, run.signature, raw)
    for text, row in zip(raw["text"], found, strict=True):
        typer.echo(f"{text} -> {row.written}")
    for path in written:
        typer.echo(f"written: {crossings.draw(found, path)}")


def _check(path: Path) -> None:
    """Refuse a file that could not be written, before time is spent on what should be in it."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--output must end in .png, .svg, .pdf, .html or .json, got {str(path)!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into; make it first")


def _of_bundle(
    path: Path, image: Path | None, row: str | None, data: str | None, split: str, count: int
) -> tuple[Any, dict[str, Any], list[str]]:
    """A bundle, the rows to explain, and notes on them."""
    from serve.manifest import read
    from zoo.explain import examples

    bundle = read(path)
    if row is not None:
        from serve.codec import json_batch
        from serve.tensors import decode_json

        raw, notes = json_batch(decode_json(row.encode()), bundle.manifest).take()
        return bundle, raw, notes
    if data is None:
        return bundle, examples(bundle, image, count), []
    quiet_backend()
    from zoo.data import load, names
    from zoo.evaluate.report import check_fit, knowledge

    known = knowledge(bundle)
    size = next((port.shape[1:] for port in bundle.manifest.inputs if port.name == "image"), None)
    target, text = (None, "") if data in names() else (known["target"], known["text"] or "")
    found = load(data, input_shape=size, target=target, text=text, seed=known["seed"] or 0, **known["windows"])
    check_fit(found, known)
    return bundle, _drawn(found, split, count), []


def _of_run(
    path: Path, image: Path | None, row: str | None, data: str | None, split: str, count: int
) -> tuple[Any, dict[str, Any], list[str]]:
    """A run, the rows to explain, and notes on them."""
    if row is not None:
        raise ValueError(
            f"--row takes the columns from a bundle and {path} is a run; export it first: zoo export {path}"
        )
    run: Any = run_or_bundle(path, data)
    if image is not None:
        step = run.signature.preprocess
        if step.kind != "image":
            raise ValueError(f"{path} takes no image but a {step.kind}; leave --image out")
        from zoo.data.images import open_image

        return run, {"image": open_image(image, step.shape)[None]}, []
    if data is None:
        return run, _drawn(run.data, split, count), []
    from zoo.training import load_data

    return run, _drawn(load_data(run, data), split, count), []


def _drawn(data: Any, split: str, count: int) -> dict[str, Any]:
    """So many rows of a split, drawn evenly over it since some data sets are sorted."""
    import numpy as np

    splits = data.splits
    if split not in splits:
        raise ValueError(f"--split must be one of {', '.join(splits)}, got {split!r}")
    rows = splits[split].x
    whole = len(next(iter(rows.values())))
    places = np.linspace(0, whole - 1, min(count, whole)).round().astype(int)
    return {name: values[places] for name, values in rows.items()}


def _target(text: str | None, subject: Any) -> Any:
    """A label, else a number, else what the text says in JSON."""
    if text is None:
        return None
    labels = getattr(subject, "manifest", None) or getattr(subject, "signature", None)
    if text in (labels.labels if labels is not None else ()):
        return text
    if text.lstrip("-").isdecimal():
        return int(text)
    if text.startswith("{"):
        import json

        try:
            return json.loads(text)
        except ValueError as error:
            raise ValueError(f"--target is no JSON: {error}") from None
    return text


def _summary(
    subject: Any, raw: dict[str, Any], options: dict[str, Any], seconds: float | None, progress: Callable | None
) -> Any:
    """The summary of all rows, or of as many as time allows; a batch that the clock cut is left out if it can be."""
    from zoo.explain import explain as why
    from zoo.explain.clock import Clock
    from zoo.explain.summary import summarise

    clock, many = Clock(seconds), []
    count = len(next(iter(raw.values())))
    for start in range(0, count, BATCH):
        if many and clock.over:
            break
        part = {name: values[start : start + BATCH] for name, values in raw.items()}
        rows = len(next(iter(part.values())))

        def inner(done: int, total: int, start: int = start, rows: int = rows) -> None:
            if progress is not None:
                progress(1000 * start + 1000 * rows * done // max(total, 1), 1000 * count)

        left = None if seconds is None else clock.left
        found = why(subject, part, seconds=left, progress=inner, **options)
        if found.complete or not many:
            many.append(found)
        inner(1, 1)
    told = summarise(many, options["seed"])
    if told.rows < count:
        typer.echo(f"note: the time was over after {told.rows} of {count} rows", err=True)
    return told


@contextmanager
def _bar(quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on the standard error, if somebody can see it."""
    import sys

    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("explaining"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("explaining", total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
