"""`python -m serve STORE`: the server without the `zoo` command, and with the same options as `zoo serve`."""

import sys

from serve.settings import Settings, parser


def start(settings: Settings) -> None:
    """Serve, tune, or serve on a cluster, as the settings say.

    Raises:
        ValueError, OSError, ModuleNotFoundError: as `serve.host.run` does.
    """
    if settings.tune:
        from serve import tune

        tune.tune(settings.store, precision=settings.precision)
    elif settings.cluster:
        from serve import cluster

        cluster.run(settings)
    else:
        from serve import host

        host.run(settings)


def main() -> int:
    """Do what the command line says; 0 after a stop that was asked for, 1 with a message otherwise."""
    given = vars(parser().parse_args())
    try:
        start(Settings(**given))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
