"""`python -m serve STORE`: the server without the `zoo` command, and with the same options as `zoo serve`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from serve.guard import configured
from serve.host import in_bytes, run
from serve.manifest import load_trust
from serve.session import ENGINES

GUARD = (  # options that `serve.guard.configured` takes
    "keys", "anonymous", "key_rate", "peer_rate", "proxies", "origins", "jwt_key", "jwt_audience", "jwt_issuer",
    "jwt_scopes",
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """What the command line takes; each option's `dest` is an argument of `start`."""
    made = argparse.ArgumentParser(prog="python -m serve", description="Serve the bundles of a store over HTTP.")
    add = made.add_argument
    add("store", nargs="?", default="store", help="folder with <name>/<version> bundles (default: %(default)s)")
    add("--tune", action="store_true", help="measure STORE/MODEL on this machine, write the best settings, and end")

    add("--cluster", action="store_true", help="on Ray, with --workers replicas; see python -m serve.cluster --help")

    group = made.add_argument_group("connections")
    add = group.add_argument
    add("--host", default="127.0.0.1", help="address to listen on, 0.0.0.0 for all (default: %(default)s)")
    add("--port", type=int, default=8000, help="TCP port, 0 for a free one (default: %(default)s)")
    add("--connections", type=int, default=10_000, help="open connections (default: %(default)s)")
    add("--max-body", default="16MB", metavar="SIZE", help="largest request body (default: %(default)s)")
    add("--max-pixels", type=int, default=25_000_000, help="most pixels of an image (default: %(default)s)")
    add("--timeout", type=float, default=30.0, metavar="SECONDS", help="of an inference (default: %(default)s)")
    add(
        "--explain-timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="of an explanation (default: %(default)s)",
    )
    add(
        "--drain",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="to finish requests at a stop (default: %(default)s)",
    )

    group = made.add_argument_group("computation")
    add = group.add_argument
    add("--precision", help="stored form to serve: fp32, fp16, int8, w8 or w4 (default: each bundle's own)")
    add("--engine", choices=ENGINES, help="what computes; auto for the faster one here (default: onnxruntime)")
    add("--workers", type=int, help="processes that compute (default: one per core)")
    add("--threads", type=int, help="threads of each of them (default: the cores divided among the workers)")
    add("--max-batch", type=int, default=1024, help="most rows of a request (default: %(default)s)")
    add("--queue", type=int, default=2048, help="inferences that wait for one version (default: %(default)s)")
    add("--memory", metavar="SIZE", help="for models, in all workers; the least used leave first (default: no limit)")
    add("--cache", default="0", metavar="SIZE", help="of answers kept for requests that come again (default: none)")
    add("--watch", type=float, default=1.0, metavar="SECONDS", help="between looks at the store, 0 for none")
    add("--state", type=Path, metavar="FOLDER", help="keeps traffic rules over a restart (default: STORE/.state)")
    add("--no-access-log", dest="access_log", action="store_false", help="no JSON line for each request")
    add("--tracing", action="store_true", help="make OpenTelemetry spans")

    group = made.add_argument_group("security")
    add = group.add_argument
    add("--keys", type=Path, metavar="FILE", help="API keys made by zoo keys; without, admin routes are off")
    add("--anonymous", metavar="SCOPES", help="open without a key, such as predict,metrics")
    add("--key-rate", metavar="RATE[/BURST]", help="requests a second of each key")
    add("--peer-rate", metavar="RATE[/BURST]", help="requests a second of each address without a key")
    add("--proxies", type=int, default=0, help="reverse proxies in front whose X-Forwarded-For is believed")
    add("--origin", dest="origins", action="append", default=[], help="web origin whose pages may call; repeatable")
    add("--jwt-key", type=Path, metavar="FILE", help="take JSON Web Tokens too: PEM public key, JWKS file or secret")
    add("--jwt-audience", help="audience that such tokens are made for")
    add("--jwt-issuer", help="issuer they must come from (default: any)")
    add("--jwt-scopes", default="scope", help="claim that lists their scopes (default: %(default)s)")
    add("--trust", type=Path, metavar="PUB", help="serve bundles signed by this key, or by one of a folder, alone")
    return made


def start(
    store: str | Path,
    *,
    tune: bool = False,
    cluster: bool = False,
    max_body: str = "16MB",
    memory: str | None = None,
    cache: str = "0",
    trust: Path | None = None,
    **options: Any,
) -> None:
    """Serve, or tune, with options as a command line has them.

    Args:
        store: folder of bundles; with `tune` a model's folder in it.
        tune: measure and end.
        cluster: serve on Ray, with as many replicas as `workers` says.
        max_body, memory, cache: sizes in words, such as "16MB".
        trust: file or folder of public keys.
        options: other arguments of `serve.guard.configured` and of `serve.host.run`.

    Raises:
        ValueError, OSError: as `run` does.
    """
    if tune:
        from serve import tune as tuner

        tuner.tune(store, precision=options.get("precision"))
        return
    settings = {name: options.pop(name) for name in GUARD if name in options}
    if cluster:
        from serve import cluster as on_ray

        taken = {name: options[name] for name in ("host", "port", "precision", "max_batch", "watch") if name in options}
        limits: dict[str, Any] = {name: options[name] for name in ("max_pixels", "explain_timeout") if name in options}
        limits["max_body"] = in_bytes("--max-body", max_body)
        engine = options.get("engine") or ENGINES[0]
        replicas = options.get("workers") or 1
        on_ray.run(store, replicas=replicas, engine=engine, trust=trust, settings=settings, limits=limits, **taken)
        return
    guard = configured(**settings)
    run(
        store,
        max_body=in_bytes("--max-body", max_body),
        memory=None if memory is None else in_bytes("--memory", memory),
        cache=in_bytes("--cache", cache),
        guard=guard,
        trust=load_trust(trust) if trust else (),
        **options,
    )


def main() -> int:
    """Do what the command line says; 0 after a stop that was asked for, 1 with a message otherwise."""
    try:
        start(**vars(parser().parse_args()))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
