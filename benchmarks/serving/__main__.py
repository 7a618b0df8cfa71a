"""Measurements of the server.

python -m benchmarks.serving throughput | soak | faults | fuzz  [--help]
"""

import argparse
import sys
from importlib import import_module

COMMANDS = ("throughput", "soak", "faults", "fuzz")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    modules = {name: import_module(f"benchmarks.serving.{name}") for name in COMMANDS}
    for name, module in modules.items():
        first, _, _rest = module.__doc__.partition("\n")
        command = commands.add_parser(
            name,
            help=first.replace("%", "%%"),
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.options(command)
    given = parser.parse_args()
    return modules[given.command].main(given)


if __name__ == "__main__":
    sys.exit(main())
