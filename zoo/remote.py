"""`zoo traffic`: commands that speak to a running server over its admin routes. Imports no part of the server."""

import json
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

if TYPE_CHECKING:
    from urllib.error import HTTPError

TIMEOUT = 30  # seconds for one answer

traffic = typer.Typer(
    no_args_is_help=True,
    help="""Decide which version of a model answers, on a running server.

    Requests that name no version go to the latest one. A version that just
    arrived, a canary and an experiment's treatment are compared with the
    version they are to replace, and taken back by themselves if they fail more
    or are slower.

    A careful change from version 1 to version 2:

    \b
    zoo traffic pin digits 1          before version 2 is put into the store
    zoo traffic shadow digits 2       see where its answers differ
    zoo traffic canary digits 2 0.1   give it a tenth of the requests
    zoo traffic show digits           see how it does
    zoo traffic promote digits        or: zoo traffic rollback digits
    """,
    epilog="The key is one made with: zoo keys make NAME --scope admin · export ZOO_KEY=zk_… ZOO_URL=https://…",
)

Name = Annotated[str, typer.Argument(metavar="MODEL", help="The model's name in the store.")]
Version = Annotated[str, typer.Argument(metavar="VERSION", help="One of its versions.")]
Url = Annotated[str, typer.Option("--url", envvar="ZOO_URL", help="Where the server is.")]
Key = Annotated[
    str | None,
    typer.Option(
        "--key", envvar="ZOO_KEY", help="API key of scope admin; better in the environment than in a command."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
HERE = "http://127.0.0.1:8000"


def ask(method: str, url: str, path: str, key: str | None, body: Any = None) -> Any:
    """Send one request to a server.

    Args:
        method: HTTP method.
        url: the server's address, with http:// or https://.
        path: segments joined by slashes, quoted where needed.
        key: API key, None to send none.
        body: what to send as JSON, None for no body.

    Returns:
        The answer's JSON.

    Raises:
        ValueError: the address is none, or the server refuses; the message is the server's.
        ConnectionError: no server answers there.
    """
    from urllib.error import HTTPError, URLError
    from urllib.request import HTTPRedirectHandler, Request, build_opener

    class Stay(HTTPRedirectHandler):
        """Follows no redirect: the key would go along to whoever it leads to."""

        def redirect_request(self, *_: Any) -> None:
            return None

    if not url.startswith(("http://", "https://")):
        raise ValueError(f"--url must begin with http:// or https://, got {url!r}; for example {HERE}")
    headers = {"Accept": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    if data is not None:
        headers["Content-Type"] = "application/json"
    request = Request(url.rstrip("/") + path, data, headers, method=method)
    try:
        with build_opener(Stay).open(request, timeout=TIMEOUT) as answer:
            return json.load(answer)
    except HTTPError as error:
        with error:
            raise ValueError(_message(error)) from None
    except (URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError(
            f"no server answers at {url} ({reason}); start one with zoo serve, or give --url or ZOO_URL"
        ) from None
    except json.JSONDecodeError:
        raise ValueError(f"what answers at {url} is no zoo server; give its address with --url or ZOO_URL") from None


def _message(error: "HTTPError") -> str:
    """What a server says of a refusal, and what to do about a missing key."""
    try:
        told = json.load(error)["error"]
        message = told["message"] if isinstance(told, dict) else str(told)
    except (ValueError, KeyError, TypeError):
        message = f"the server answered {error.code} {error.reason}"
    if error.code == 401:
        message += "; give the key with --key or ZOO_KEY"
    return message


def _path(*parts: str) -> str:
    return "/admin/" + "/".join(quote(part, safe="") for part in parts)


def _change(method: str, url: str, key: str | None, parts: tuple[str, ...], body: Any = None) -> None:
    """Change something and show what is now."""
    typer.echo(told(ask(method, url, _path("traffic", *parts), key, body)))


def told(rules: dict[str, Any]) -> str:
    """A model's rules and counts for people, one line per version and rule."""
    lines = [f"{rules['model']}: versions {' '.join(rules['versions']) or 'none'}"]
    for version in rules["versions"]:
        share = rules["shares"].get(version, 0.0)
        answers = rules["answers"].get(version)
        figures = "no requests"
        if answers and answers["requests"]:
            figures = f"{answers['requests']:,} requests" if answers["requests"] > 1 else "1 request"
            figures += f", {answers['failure_rate']:.2%} failed, half within {answers['p50_ms']:.3g} ms, 95 % within {answers['p95_ms']:.3g} ms"
        role = ", ".join(_roles(rules, version))
        lines.append(f"  {version:<8} {share:>6.1%}  {figures}{f'  ({role})' if role else ''}")
    if rules["shadow"]:
        lines += _shadow_told(rules["shadow"])
    if rules["experiment"]:
        lines += _experiment_told(rules["experiment"])
    lines += [f"  version {version} is held back: {reason}" for version, reason in rules["held"].items()]
    lines += [f"  note: {message}" for message in rules["ignored"]]
    if rules.get("file"):
        lines.append(f"  ruled by the file {rules['file']}; change it there")
    if not rules["state"]["saved"]:
        lines.append(f"  not saved: {rules['state']['problem']}")
    return "\n".join(lines)


def _roles(rules: dict[str, Any], version: str) -> list[str]:
    trial = rules["experiment"] or {}
    return [
        role
        for role, holder in (
            ("pinned", rules["pin"]),
            ("default", rules["default"]),
            ("canary", (rules["canary"] or {}).get("version")),
            ("shadow", (rules["shadow"] or {}).get("version")),
            ("control", trial.get("control")),
            ("treatment", trial.get("treatment")),
            ("watched", (rules["fresh"] or {}).get("version")),
        )
        if holder == version
    ]


def _shadow_told(shadow: dict[str, Any]) -> list[str]:
    compared, answers = shadow["comparison"], shadow["answers"]
    lines = []
    if answers["requests"]:
        lines.append(
            f"  shadow {shadow['version']}: {answers['failures']:,} of {answers['requests']:,} copies failed, "
            f"95 % within {answers['p95_ms']:.3g} ms"
        )
    if not compared["rows"]:
        return [*lines, f"  shadow {shadow['version']}: nothing compared yet"]
    values = compared["value_difference"]
    if values["mean"] is not None:
        return [
            *lines,
            f"  shadow {shadow['version']}: another value for {compared['disagreement_rate']:.2%} of {compared['rows']:,} "
            f"rows, by more than {values['tolerance']:.3g}, a tenth of the values' spread; {values['mean']:.3g} on "
            f"average, at most {values['largest']:.3g}",
        ]
    gap = compared["confidence_difference"]["largest"]
    lines += [
        f"  shadow {shadow['version']}: another class for {compared['disagreement_rate']:.2%} of {compared['rows']:,} rows"
        + ("" if gap is None else f", confidences differ by at most {gap:.3g}")
    ]
    worst = [entry for entry in compared["classes"] if entry["disagreements"]][:5]
    lines += [
        f"    {entry['class']}: {entry['disagreements']:,} of {entry['rows']:,} rows ({entry['disagreement_rate']:.2%})"
        for entry in worst
    ]
    return lines


def _experiment_told(trial: dict[str, Any]) -> list[str]:
    lines = [
        f"  experiment: {trial['treatment']} against {trial['control']} by {trial['metric']!r}, {trial['better']} is better"
    ]
    for test, name in (("outcome", trial["metric"]), ("failures", "failures")):
        figures = trial[test]
        means = [
            "none yet" if arm["mean"] is None else f"{arm['mean']:.4g} of {arm['count']:,}"
            for arm in (figures["control"], figures["treatment"])
        ]
        low, high = figures["difference_interval"]
        lines.append(
            f"    {name}: control {means[0]}, treatment {means[1]}; difference within {low:+.3g} … {high:+.3g}, "
            f"p {figures['p']:.3g} of {trial['alpha']:g}: {figures['verdict']}"
        )
    return lines


@traffic.command()
def show(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="All models if not given.")] = "",
    url: Url = HERE,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show versions, their shares, failures, latencies and tests.

    Example: zoo traffic show digits
    """
    found = ask("GET", url, _path("traffic", *([model] if model else [])), key)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo("\n".join(told(rules) for rules in (found if isinstance(found, list) else [found])))


@traffic.command()
def pin(model: Name, version: Version, url: Url = HERE, key: Key = None) -> None:
    """Make a version the default, whatever arrives in the store, until zoo traffic clear MODEL pin.

    Example: zoo traffic pin digits 1
    """
    _change("PUT", url, key, (model, "pin"), {"version": version})


@traffic.command()
def canary(
    model: Name,
    version: Version,
    weight: Annotated[float, typer.Argument(help="Share of the requests, such as 0.1; up to 1.")],
    force: Annotated[bool, typer.Option("--force", help="Even if the versions read different inputs.")] = False,
    url: Url = HERE,
    key: Key = None,
) -> None:
    """Send a share of the requests to a version; say it again with another share to change it.

    Clients that send the header X-Traffic-Key stay with their version while the share grows.

    Example: zoo traffic canary digits 2 0.1
    """
    _change("PUT", url, key, (model, "canary"), {"version": version, "weight": weight, "force": force})


@traffic.command()
def shadow(
    model: Name,
    version: Version,
    share: Annotated[float, typer.Argument(help="Share of the requests to copy, up to 1.")] = 1.0,
    url: Url = HERE,
    key: Key = None,
) -> None:
    """Copy requests to a version that answers nobody, and count where its answers differ.

    Example: zoo traffic shadow digits 2 0.5
    """
    _change("PUT", url, key, (model, "shadow"), {"version": version, "share": share})


@traffic.command()
def experiment(
    model: Name,
    control: Annotated[str, typer.Argument(metavar="CONTROL", help="The version that is in use.")],
    treatment: Annotated[str, typer.Argument(metavar="TREATMENT", help="The version on trial.")],
    metric: Annotated[str, typer.Option(help="What clients report, such as clicked; 0 to 1.")] = "outcome",
    better: Annotated[str, typer.Option(help="higher or lower.")] = "higher",
    share: Annotated[float, typer.Option(help="Of the treatment.")] = 0.5,
    alpha: Annotated[float, typer.Option(help="Chance of telling two equal versions apart.")] = 0.05,
    force: Annotated[bool, typer.Option("--force", help="Even if the versions read different inputs.")] = False,
    url: Url = HERE,
    key: Key = None,
) -> None:
    """Draw between two versions at random and test which does better; look as often as you like.

    Clients report each answer's outcome, 0 to 1, with POST /feedback/MODEL and
    {"request": id, "version": version, "outcome": 1}, as the answer names them,
    or with {"key": what it sent as X-Traffic-Key, "outcome": 1}; the first
    outcome of a key counts.

    Example: zoo traffic experiment digits 1 2 --metric corrected --better lower
    """
    body = {
        "control": control,
        "treatment": treatment,
        "metric": metric,
        "better": better,
        "share": share,
        "alpha": alpha,
        "force": force,
    }
    _change("PUT", url, key, (model, "experiment"), body)


@traffic.command()
def promote(
    model: Name,
    version: Annotated[
        str | None, typer.Argument(metavar="[VERSION]", help="The canary or the treatment if not given.")
    ] = None,
    url: Url = HERE,
    key: Key = None,
) -> None:
    """Make the canary, or a version of the experiment, the default; it is watched for a while.

    Example: zoo traffic promote digits
    """
    _change("POST", url, key, (model, "promote"), {"version": version})


@traffic.command()
def rollback(
    model: Name,
    reason: Annotated[str, typer.Option(help="For the history.")] = "",
    url: Url = HERE,
    key: Key = None,
) -> None:
    """Take back the canary, else the treatment, else the default version, and hold it back.

    Example: zoo traffic rollback digits --reason "blurred images are all eights"
    """
    _change("POST", url, key, (model, "rollback"), {"reason": reason})


@traffic.command()
def release(model: Name, version: Version, url: Url = HERE, key: Key = None) -> None:
    """Let a version that is held back answer again.

    Example: zoo traffic release digits 2
    """
    _change("DELETE", url, key, (model, "held", version))


@traffic.command()
def clear(
    model: Name,
    rule: Annotated[
        str, typer.Argument(metavar="[RULE]", help="pin, canary, shadow, experiment or held; all of them if not given.")
    ] = "all",
    url: Url = HERE,
    key: Key = None,
) -> None:
    """End a rule. Without one, all: the latest version answers then.

    Example: zoo traffic clear digits shadow
    """
    _change("DELETE", url, key, (model, rule))


@traffic.command()
def watch(
    model: Name,
    settings: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Such as slower=3 or on=false; repeatable.")
    ],
    url: Url = HERE,
    key: Key = None,
) -> None:
    """Change when a new version is taken back by itself; zoo traffic show MODEL --json has the settings.

    Example: zoo traffic watch digits --set slower=3 --set margin=0.02
    """
    changes = {}
    for pair in settings:
        name, separator, value = pair.partition("=")
        try:
            changes[name] = json.loads(value)
        except json.JSONDecodeError:
            separator = ""
        if not separator:
            raise ValueError(f"--set takes KEY=VALUE with a number, true or false, got {pair!r}; such as slower=3")
    _change("PUT", url, key, (model, "watch"), changes)


@traffic.command()
def history(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="All models if not given.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most lines, the newest first.")] = 20,
    url: Url = HERE,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Tell what happened, and why.

    Example: zoo traffic history digits
    """
    events = ask("GET", url, _path("history", *([model] if model else [])) + f"?limit={limit}", key)
    if as_json:
        typer.echo(json.dumps(events, indent=2))
        return
    for event in events:
        moment = datetime.fromtimestamp(event["time"]).isoformat(" ", timespec="seconds")
        version = f" version {event['version']}" if event["version"] else ""
        detail = f": {event['detail']}" if event["detail"] else ""
        typer.echo(f"{moment}  {event['model']}  {event['event']}{version}{detail}")


@traffic.command()
def workers(url: Url = HERE, key: Key = None, as_json: AsJson = False) -> None:
    """Show the server's workers, queues and memory.

    Example: zoo traffic workers
    """
    found = ask("GET", url, _path("workers"), key)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo("ready" if found["ready"] else "draining" if found["draining"] else "not ready")
    for worker in found["workers"]:
        models = " ".join(worker["models"]) or "no model yet"
        memory = f", {worker['resident'] / 2**20:,.0f} MB" if worker.get("resident") else ""
        typer.echo(f"  worker {worker['pid']}: {worker['state']}, {worker['restarts']} restarts{memory}: {models}")
    for model, versions in found.get("queues", {}).items():
        for version, queue in versions.items():
            typer.echo(f"  {model} version {version}: {queue['waiting']} wait, {queue['seconds'] * 1000:.3g} ms each")
    if not found["state"]["saved"]:
        typer.echo(f"  traffic rules are not saved: {found['state']['problem']}")
