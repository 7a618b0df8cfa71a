"""What class activation maps cost on a device: latency and size of a network with and without them, side by side.

Run `python benchmarks/activation_map.py`; with `--keep` it appends a row per file to
`benchmarks/results/activation_map.csv`. It ends with status 1 when the map of the most probable class costs more than
a target below. The networks are untrained, and 8-bit files are calibrated on noise: neither changes the time.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from record import append

SLOWER = 1.03  # times the latency, at most
LARGER = 1.01  # times the size, at most


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """Rows of each precision and kind of map."""
    import export
    import zoo
    from export import int8
    from export.timing import milliseconds

    side = options.side
    model = zoo.get(options.model, input_shape=(side, side, 3), classes=options.classes)
    noise = np.random.default_rng(0).normal(size=(8, side, side, 3)).astype(np.float32)
    inputs = {model.inputs[0].name: noise}
    kinds = {"none": False, "top": "top", "all": "all"}
    rows = []
    for precision in ("fp32", "int8"):
        paths = {}
        for kind, option in kinds.items():
            source = folder / f"{kind}.onnx"
            if precision == "fp32":
                paths[kind] = export.to_onnx(model, source, activation_map=option, external_above=2**40)
                continue
            paths[kind] = folder / f"{kind}.int8.onnx"
            int8.quantize(
                source, paths[kind], calibration=inputs, validation=inputs, score=lambda _: 0.0, method="minmax"
            )
        one = {name: values[:1] for name, values in inputs.items()}
        times = milliseconds(
            list(paths.values()), one, threads=options.threads, repeats=options.repeats, seconds=options.seconds
        )
        found = dict(zip(paths, times, strict=True))
        for kind, path in paths.items():
            row = {
                "model": options.model,
                "side": side,
                "classes": options.classes,
                "threads": options.threads,
                "precision": precision,
                "map": kind,
                "bytes": path.stat().st_size,
                "milliseconds": round(found[kind], 4),
                "slower": round(found[kind] / found["none"], 4),
                "larger": round(path.stat().st_size / paths["none"].stat().st_size, 4),
            }
            rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--side", type=int, default=224, help="pixels a side")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30, help="rounds over the files, at least")
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing, at least")
    parser.add_argument("--keep", action="store_true", help="append to the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options, Path(folder))
    missed = False
    for row in rows:
        if options.keep:
            append("activation_map", row)
        print(
            f"{row['model']} {row['precision']} map {row['map']:<4}  {row['milliseconds']:.3f} ms ({row['slower']:.3f}x)  "
            f"{row['bytes'] / 1e6:.2f} MB ({row['larger']:.4f}x)"
        )
        missed |= row["map"] == "top" and (row["slower"] > SLOWER or row["larger"] > LARGER)
    print(f"{'missed' if missed else 'met'}: a map costs at most {SLOWER}x the time and {LARGER}x the size")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
