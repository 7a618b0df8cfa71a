"""Seconds of `import zoo` and `zoo names`, each in fresh processes; both have to stay under 0.3 s.

python benchmarks/start.py [--runs 20]
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from record import append

ALLOWED = 0.3
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import_zoo": [sys.executable, "-c", "import zoo"],
    "zoo_names": [str(Path(sys.executable).with_name("zoo")), "names"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    append("start", {"runs": runs, **{f"{name}_s": f"{value:.3f}" for name, value in median.items()}})
    return 0 if max(median.values()) < ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
