"""Rows of results: a CSV file per benchmark, each row with date, hardware and versions."""

import csv
import platform
from datetime import UTC, datetime
from pathlib import Path

from zoo.machine import cores, processor, versions

FOLDER = Path(__file__).parent / "results"
PACKAGES = ("zooroad", "keras", "tensorflow", "jax", "onnxruntime", "numpy", "flask", "uvloop", "httptools")


def append(name: str, row: dict[str, object], device: str = "", packages: tuple[str, ...] = PACKAGES) -> None:
    """Add a row to `results/<name>.csv` and print it.

    Args:
        name: of the benchmark.
        row: what was measured.
        device: what it ran on, the processor if empty.
        packages: whose versions matter.

    Raises:
        ValueError: the file has other columns.
    """
    installed = " ".join(f"{package}={number}" for package, number in versions(*packages).items())
    row = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": device or f"{processor()}, {cores()} cores",
        "versions": f"python={platform.python_version()} {installed}",
        **row,
    }
    path = FOLDER / f"{name}.csv"
    FOLDER.mkdir(exist_ok=True)
    new = not path.exists()
    if not new:
        with path.open(newline="", encoding="utf-8") as file:
            columns = next(csv.reader(file), None)
        if columns != list(row):
            raise ValueError(f"{path} has other columns than this benchmark writes; move it away")
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(
        "\n".join(f"{key:<24}{value}" for key, value in row.items() if key not in ("date", "versions")),
        "\n",
        flush=True,
    )
