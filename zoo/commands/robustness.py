"""`zoo robustness`: how a score falls under corruptions, attacks, and how far it is certain not to."""

from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.commands.shared import quiet_backend, run_or_bundle

MEASURES = {  # options that each takes beside those of all
    "corruptions": ("kind", "strength", "precision", "target"),
    "attacks": ("kind", "epsilon", "norm", "steps", "restarts", "against", "transform", "precision", "target"),
    "transformations": ("kind", "epsilon", "norm", "steps", "restarts"),
    "certificates": ("sigma", "draws", "alpha", "precision", "target"),
}


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(robustness)


def robustness(
    what: Annotated[Path, typer.Argument(help="Run folder or bundle.")],
    measure: Annotated[
        str, typer.Argument(help="corruptions, attacks, transformations or certificates.")
    ] = "corruptions",
    data: Annotated[str | None, typer.Option("--data", help="Data; a run knows its own.")] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="A corruption (noise), an attack (random, fgsm, pgd, margin) or a transformation (bits:4); repeatable."
        ),
    ] = None,
    strength: Annotated[
        list[float] | None, typer.Option(help="Of the one corruption given by --kind; repeatable.")
    ] = None,
    epsilon: Annotated[
        list[float] | None,
        typer.Option(help="Limit of an attack: pixel values of 0 … 255, or standard deviations; repeatable."),
    ] = None,
    norm: Annotated[str | None, typer.Option(help="linf limits each value, l2 the length of the change.")] = None,
    steps: Annotated[int | None, typer.Option(help="Gradient steps of an attack; 20 if not given.")] = None,
    restarts: Annotated[int | None, typer.Option(help="Climbs of an attack; 2 if not given.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="Bundle or run that answers what was made to attack this one.")
    ] = None,
    transform: Annotated[
        str | None, typer.Option(help="Transformation that the attacker knows of, such as bits:4.")
    ] = None,
    sigma: Annotated[
        list[float] | None,
        typer.Option(help="Noise of certificates, in pixel values or standard deviations; 32 or 0.5; repeatable."),
    ] = None,
    draws: Annotated[int | None, typer.Option(help="Noisy copies of each row; 1000 if not given.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Probability that a certificate is wrong; 0.001.")] = None,
    rows: Annotated[
        int | None, typer.Option(help="Rows to measure on; all for corruptions, 500 for attacks, 100 for certificates.")
    ] = None,
    split: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
    precision: Annotated[str | None, typer.Option(help="A bundle's: fp32, fp16, int8, w8 or w4.")] = None,
    target: Annotated[str | None, typer.Option(help="Target column of a table, if another one.")] = None,
    seed: Annotated[int, typer.Option(help="Of all that is random.")] = 0,
    picture: Annotated[Path | None, typer.Option(help="Write the picture here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Measure how a score falls when inputs go bad: a table of score against strength, with a picture.

    corruptions: noise, blur, brightness, rotation …; missing cells and columns of a table. attacks: changes made
    against the model through its gradients, which needs a run; a bundle only gets random ones. transformations: what
    coarser images save. certificates: randomized smoothing, a radius within which an answer is certain not to change.

    Examples: zoo robustness store/digits/1 --data digits --picture corruptions.png;
    zoo robustness runs/lenet-digits attacks --kind fgsm --kind pgd --epsilon 8 --epsilon 16;
    zoo robustness store/digits/1 certificates --data digits --sigma 32 --draws 1000
    """
    given: dict[str, Any] = {
        "kind": kind, "strength": strength, "epsilon": epsilon, "norm": norm, "steps": steps, "restarts": restarts,
        "against": against, "transform": transform, "sigma": sigma, "draws": draws, "alpha": alpha,
        "precision": precision, "target": target,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value not in (None, [])}
    if measure not in MEASURES:
        raise ValueError(f"robustness is measured by {', '.join(MEASURES)}, got {measure!r}")
    idle = [f"--{name}" for name in given if name not in MEASURES[measure]]
    if idle:
        raise ValueError(f"{measure} have no use for {', '.join(idle)}; leave out what they do not read")
    if measure == "transformations" and len(epsilon or []) > 1:
        raise ValueError(f"transformations are measured at one --epsilon, got {', '.join(map(str, epsilon or []))}")
    quiet_backend()
    from zoo.evaluate import robustness as measures

    model = run_or_bundle(what, data)
    common: dict[str, Any] = {"split": split, "seed": seed, "progress": not quiet}
    if rows is not None:
        common["rows"] = rows
    if measure == "corruptions":
        found = measures.corrupted(model, data, **_named(given, kind="kinds", strength="strengths"), **common)
    elif measure == "attacks":
        found = measures.attacked(model, data, **_named(given, kind="methods", epsilon="epsilons"), **common)
    elif measure == "transformations":
        if "epsilon" in given:
            [given["epsilon"]] = given["epsilon"]
        found = measures.transformed(model, data, **_named(given, kind="names"), **common)
    else:
        found = measures.certified(model, data, **_named(given, sigma="sigmas"), **common)
    typer.echo(found.to_json().rstrip() if as_json else str(found))
    if picture:
        typer.echo(f"picture: {found.plot(picture)}", err=as_json)


def _named(given: dict[str, Any], **names: str) -> dict[str, Any]:
    """Options by the names of the function's arguments."""
    return {names.get(name, name): value for name, value in given.items()}
