"""`zoo serve`, whose options are those of `serve.settings`; `zoo sign` and `zoo keys`, which belong to it."""

import re
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer

from serve.settings import Option, in_words, listed, options

keys = typer.Typer(no_args_is_help=True, help="Make, list, rotate and revoke the API keys of a server.")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(serve)
    app.command()(sign)
    app.add_typer(keys, name="keys")


def serve(**given: Any) -> None:
    """Serve every bundle of a store: the Open Inference Protocol, simple routes, metrics and a page to try it.

    Examples: zoo serve store --host 0.0.0.0 --keys keys.json; zoo serve --tune store/digits;
    zoo serve store --cluster --replicas 4
    """
    from serve.__main__ import start
    from serve.settings import Settings

    start(Settings(**given))


def _sentence(option: Option) -> str:
    default = f" (default: {option.shown})" if option.shown else ""
    return f"{option.help[0].upper()}{option.help[1:]}{default}."


def _parameter(option: Option) -> Parameter:
    """An option of `serve` in typer's form."""
    kind: Any = str if option.size else option.kind
    if option.repeated:
        kind = list[kind]
    default = in_words(option.default) if option.size and option.default is not None else option.default
    on = option.kind is bool and option.default
    declared = typer.Option(
        f"{option.flag}/--no-{option.flag[2:]}" if on else option.flag,
        help=_sentence(option),
        metavar=None if option.kind is bool else "|".join(option.choices) or option.metavar,
        show_default=False,
        rich_help_panel=option.group.capitalize() or None,
    )
    return Parameter(
        option.name,
        Parameter.KEYWORD_ONLY,
        default=list(default) if option.repeated else default,
        annotation=Annotated[kind | None if option.optional else kind, declared],
    )


def _store(option: Option) -> Parameter:
    declared = typer.Argument(metavar="STORE", help=_sentence(option), show_default=False)
    return Parameter(option.name, Parameter.KEYWORD_ONLY, default=option.default, annotation=Annotated[Path, declared])


serve.__signature__ = Signature([_store(options()[0]), *map(_parameter, listed())])  # type: ignore[attr-defined]


def sign(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle to sign, such as store/digits/1.")] = None,
    key: Annotated[Path | None, typer.Option(help="Private key file, such as release.key.")] = None,
    new_key: Annotated[
        Path | None, typer.Option(metavar="NAME", help="Make a pair of keys, NAME.key and NAME.pub, and sign nothing.")
    ] = None,
) -> None:
    """Sign a bundle, so that servers started with --trust take it and no other.

    A private key is encrypted with the password in the environment variable ZOO_KEY_PASSWORD, where that is set.

    Examples: zoo sign --new-key release; zoo sign store/digits/1 --key release.key;
    zoo serve store --trust release.pub
    """
    from export import sign as signing

    if new_key is not None:
        if bundle is not None or key is not None:
            raise ValueError("--new-key makes keys and signs nothing; leave out the bundle and --key")
        private, public = signing.make_key(new_key)
        typer.echo(f"{private}  private: keep it where only releases are made\n{public}  public: give it to servers")
        return
    if bundle is None or key is None:
        raise ValueError("give a bundle and its --key, or --new-key NAME to make keys")
    typer.echo(f"{bundle} is signed by key {signing.sign(bundle, key)}")


KeyStore = Annotated[Path, typer.Option("--keys", metavar="FILE", help="Key file, as for zoo serve --keys.")]


@keys.command()
def make(
    name: Annotated[str, typer.Argument(help="Who gets the key.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="predict (if not given), explain, admin or metrics; repeatable.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model it may ask; all if not given; repeatable.")] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long it lasts, such as 90d or 12h; for ever if not given.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second; the server's limit if not given.")] = None,
    burst: Annotated[int | None, typer.Option(help="Requests at once; one second's if not given.")] = None,
    file: KeyStore = Path("keys.json"),
) -> None:
    """Make a key and show its token, this once.

    Example: zoo keys make shop --scope predict --scope explain --model digits --expires 90d --rate 50
    """
    from serve import keys as stored

    lasts = None if expires is None else _span(expires, "--expires")
    limit = stored.rate(rate, burst)
    made, token = stored.KeyFile(file).make(name, scope or ("predict",), models=model or (), lasts=lasts, limit=limit)
    _show_token(made, token, file)


@keys.command("list")
def list_keys(file: KeyStore = Path("keys.json")) -> None:
    """List the keys; tokens are not stored, and cannot be shown."""
    from serve.keys import KeyFile

    typer.echo(f"{'id':<9} {'state':<8} {'expires':<17} {'requests/s':<11} {'scopes':<24} {'models':<20} name")
    for key in KeyFile(file).read():
        limit = "" if key.rate is None else f"{key.rate:g} ({key.burst})" if key.burst else f"{key.rate:g}"
        ends = key.expires[:16].replace("T", " ") if key.expires else "never"
        scopes, models = " ".join(key.scopes), " ".join(key.models) or "all"
        typer.echo(f"{key.id:<9} {key.state():<8} {ends:<17} {limit:<11} {scopes:<24} {models:<20} {key.name}")


@keys.command()
def rotate(
    id: Annotated[str, typer.Argument(help="Of the key to replace; zoo keys list shows it.")],
    overlap: Annotated[str, typer.Option(metavar="TIME", help="How long the old key still works.")] = "7d",
    file: KeyStore = Path("keys.json"),
) -> None:
    """Make a successor with the same rights; both keys work until the overlap is over."""
    from serve.keys import KeyFile

    made, token = KeyFile(file).rotate(id, overlap=_span(overlap, "--overlap"))
    typer.echo(f"key {id} works for {overlap} more, or until it expires", err=True)
    _show_token(made, token, file)


@keys.command()
def revoke(
    id: Annotated[str, typer.Argument(help="Of the key to end; zoo keys list shows it.")],
    file: KeyStore = Path("keys.json"),
) -> None:
    """End a key; running servers refuse it within a second."""
    from serve.keys import KeyFile

    gone = KeyFile(file).revoke(id)
    typer.echo(f"key {gone.id} of {gone.name} is revoked")


def _span(text: str, option: str) -> Any:
    """A time such as 90d, 12h, 30m or 45s."""
    from datetime import timedelta

    found = re.fullmatch(r"(\d{1,6})([dhms])", text.strip())
    if found is None:
        raise ValueError(f"{option} takes a number with d, h, m or s, such as 90d or 12h, got {text!r}")
    return timedelta(seconds=int(found[1]) * {"d": 86_400, "h": 3600, "m": 60, "s": 1}[found[2]])


def _show_token(key: Any, token: str, file: Path) -> None:
    """The token alone on standard output, so that it can go into a secret store; all else beside it."""
    ends = f"until {key.expires[:16].replace('T', ' ')} UTC" if key.expires else "until it is revoked"
    typer.echo(
        f"key {key.id} of {key.name}: {', '.join(key.scopes)}; good {ends}; stored as a hash in {file}", err=True
    )
    typer.echo("this is the only time the token is shown:", err=True)
    typer.echo(token)
