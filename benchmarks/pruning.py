"""What removing half of the channels costs and gives: accuracy, ONNX file size, ONNX Runtime latency.

Trains a model, prunes it, fine-tunes it, exports both and times both in turn, so that a busy machine slows both alike.
Run `python benchmarks/pruning.py`; it appends a row to `benchmarks/results/pruning.csv` and ends with status 1 when a
target below is missed. `--macs 0.5` prunes to half of the arithmetic in place of half of the channels, and `--latency`
measures ResNet-50 with half of its arithmetic at 1 and 2 threads, untrained, into `benchmarks/results/pruned_latency.csv`.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from record import append

SMALLER = 2.5  # times, of the ONNX file
FASTER = 1.8  # times, median latency at batch 1
POINTS = 1.0  # of accuracy that may be lost; half of that at half of the arithmetic
HALF = 0.6  # times the latency, at most, at half of the arithmetic


def latency_at_half(options: argparse.Namespace, folder: Path) -> bool:
    """Rows of ResNet-50 with half of its arithmetic; whether a target is missed."""
    import export
    import zoo
    from export.timing import milliseconds

    whole = zoo.get("resnet50")
    round_to = options.round_to if options.round_to > 1 else 8
    small = zoo.compress.prune_channels(whole, macs=0.5, scope=options.scope, round_to=round_to)
    share = zoo.compress.macs(small) / zoo.compress.macs(whole)
    paths = {n: export.to_onnx(m, folder / f"{n}.onnx") for n, m in {"full": whole, "small": small}.items()}
    image = np.random.default_rng(options.seed).normal(size=(1, 224, 224, 3)).astype(np.float32)
    missed = False
    for threads in (1, 2):
        times = milliseconds(
            list(paths.values()), {whole.inputs[0].name: image}, threads=threads, repeats=50, seconds=5
        )
        found = dict(zip(paths, times, strict=True))
        ratio = found["small"] / found["full"]
        missed |= ratio > HALF
        append(
            "pruned_latency",
            {
                "threads": threads,
                "model": "resnet50",
                "scope": options.scope,
                "round_to": round_to,
                "macs_share": round(share, 4),
                "milliseconds": round(found["full"], 3),
                "milliseconds_small": round(found["small"], 3),
                "ratio": round(ratio, 3),
            },
        )
        print(f"{'missed' if ratio > HALF else 'met'}: at most {HALF} of the latency, {threads} threads: {ratio:.3f}")
    return missed


def measure(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """One row of the results."""
    import export
    import zoo
    from export.timing import milliseconds
    from zoo.evaluate.report import answers, judge
    from zoo.training import tune

    overrides = {"epochs": options.epochs} if options.epochs else {}
    run = zoo.train(options.model, data=options.data, out=folder / "full", seed=options.seed, quiet=True, **overrides)
    target = {"macs": options.macs} if options.macs else {"ratio": options.ratio}
    small = zoo.compress.prune_channels(run.model, **target, scope=options.scope, round_to=options.round_to)
    pruned = judge(run.signature, run.data.test.y, answers(small, run.signature, run.data.test.x), "test").score.score
    tuned = tune(run, small, out=folder / "small", epochs=options.tune_epochs, quiet=True)

    models = {"full": run.model, "small": tuned.model}
    paths = {
        name: export.to_onnx(model, folder / f"{name}.onnx", signature=run.signature) for name, model in models.items()
    }
    row = {name: values[:1] for name, values in run.data.test.x.items()}
    times = milliseconds(list(paths.values()), row, threads=options.threads, repeats=options.runs, seconds=10)
    latency = dict(zip(paths, times, strict=True))
    size = {name: path.stat().st_size for name, path in paths.items()}
    return {
        "threads": options.threads,
        "model": options.model,
        "data": options.data,
        "seed": options.seed,
        "ratio": "" if options.macs else options.ratio,
        "scope": options.scope,
        "round_to": options.round_to,
        "epochs": run.recipe.epochs,
        "tune_epochs": options.tune_epochs,
        "accuracy": round(run.metrics["test"], 4),
        "accuracy_pruned": round(pruned, 4),
        "accuracy_tuned": round(tuned.metrics["test"], 4),
        "parameters": run.model.count_params(),
        "parameters_small": tuned.model.count_params(),
        "macs": zoo.compress.macs(run.model),
        "macs_small": zoo.compress.macs(tuned.model),
        "onnx_bytes": size["full"],
        "onnx_bytes_small": size["small"],
        "smaller": round(size["full"] / size["small"], 2),
        "milliseconds": round(latency["full"], 4),
        "milliseconds_small": round(latency["small"], 4),
        "faster": round(latency["full"] / latency["small"], 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the channels to remove")
    parser.add_argument("--macs", type=float, default=0.0, help="share of the arithmetic to keep, in place of --ratio")
    parser.add_argument("--latency", action="store_true", help="ResNet-50 at half of its arithmetic, latency alone")
    parser.add_argument("--scope", default="layer", choices=("layer", "global"))
    parser.add_argument("--round-to", type=int, default=1, help="keep multiples of this many channels")
    parser.add_argument("--epochs", type=int, default=0, help="of training; the recipe's own if 0")
    parser.add_argument("--tune-epochs", type=int, default=10, help="of fine-tuning")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=500, help="timed runs of each file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.latency:
            return int(latency_at_half(options, Path(folder)))
        row = measure(options, Path(folder))
    append("pruning", row)

    lost = (row["accuracy"] - row["accuracy_tuned"]) * 100
    print(
        f"accuracy  {row['accuracy']:.2%} -> pruned {row['accuracy_pruned']:.2%} -> tuned {row['accuracy_tuned']:.2%}"
    )
    print(
        f"ONNX file {row['onnx_bytes'] / 1e6:.2f} MB -> {row['onnx_bytes_small'] / 1e6:.2f} MB, {row['smaller']}x smaller"
    )
    print(f"latency   {row['milliseconds']} ms -> {row['milliseconds_small']} ms, {row['faster']}x faster")
    points = POINTS / 2 if options.macs else POINTS
    missed = {f"at most {points} points lost": lost > points}
    if not options.macs:
        missed |= {
            f"at least {SMALLER}x smaller": row["smaller"] < SMALLER,
            f"at least {FASTER}x faster": row["faster"] < FASTER,
        }
    for target, failed in missed.items():
        print(f"{'missed' if failed else 'met'}: {target}")
    return int(any(missed.values()))


if __name__ == "__main__":
    sys.exit(main())
