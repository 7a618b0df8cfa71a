"""`python -m serve STORE`: the server without the `zoo` command."""

import argparse
import sys

from serve.host import run
from serve.session import ENGINES


def main() -> int:
    """Serve the store named on the command line; 0 after a stop that was asked for, 1 with a message otherwise."""
    parser = argparse.ArgumentParser(prog="python -m serve", description="Serve the bundles of a store over HTTP.")
    parser.add_argument("store", help="folder with <name>/<version> bundles")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="TCP port, 0 for a free one (default: %(default)s)")
    parser.add_argument(
        "--precision", help="stored form to serve: fp32, fp16, int8, w8 or w4 (default: each bundle's own)"
    )
    parser.add_argument("--threads", type=int, help="threads per request (default: every core)")
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default=ENGINES[0],
        help="what computes: openvino where it is installed, auto for the faster one here (default: %(default)s)",
    )
    given = parser.parse_args()
    try:
        run(
            given.store,
            host=given.host,
            port=given.port,
            precision=given.precision,
            threads=given.threads,
            engine=given.engine,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
