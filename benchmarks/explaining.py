"""What explanations hold: every registered model, known truths, and time against shap.

`python benchmarks/explaining.py coverage` trains every entry briefly on data that is at hand, for each of its tasks, and
explains test rows with `method="auto"`: it must answer, add up to 1e-3 of the output range where its method promises
that, and name parts whose deletion lowers the answer sooner than that of random ones. It prints a table, appends it to
`benchmarks/results/explaining_coverage.csv` with `--keep`, and ends with status 1 when a target is missed.

`python benchmarks/explaining.py truths` explains what has a known answer, see `explaining_truths.py`.

`python benchmarks/explaining.py speed` times explanations against shap, see `explaining_speed.py`; `--keep` appends to
`benchmarks/results/explaining_speed.csv`.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
from record import append

DATA = {"classification": "breast_cancer", "image-classification": "digits", "regression": "diabetes"}
ADDITIVITY = 1e-3  # of the output range
MODEST = 1_000_000  # parameters up to which an entry is trained as it is; above it narrow, for a third of the epochs


def coverage(options: argparse.Namespace) -> bool:
    """Rows of all entries; whether a target is missed."""
    from zoo import registry

    missed = False
    head = f"{'model':<20} {'task':<21} {'score':>6}  {'method':<19} {'additivity':>10} {'deletion':>9} {'random':>15}"
    print(f"{head} {'insertion':>9} {'random':>15} {'stability':>9} {'seconds':>8}")
    for name in registry.names(options.models):
        with ProcessPoolExecutor(1, get_context("spawn")) as own:  # an entry that crashes takes no other along
            for task in registry.entry(name).tasks:
                try:
                    row = own.submit(_covered, name, task, options).result()
                except Exception as error:  # of any kind, the end of its process included
                    print(f"{name:<20} {task:<21} missed: {type(error).__name__}: {error}", flush=True)
                    missed = True
                    continue
                faults = _faults(row)
                missed |= bool(faults)
                _show(row, faults)
                if options.keep:
                    append("explaining_coverage", row)
    print(f"{'missed' if missed else 'met'}: every entry and task answers, adds up and beats random orders")
    return missed


def _show(row: dict[str, Any], faults: list[str]) -> None:
    figures = {
        part: f"{row[part]:.3f} ± {row[f'{part}_spread']:.3f}" for part in ("deletion_random", "insertion_random")
    }
    print(
        f"{row['model']:<20} {row['task']:<21} {row['score']:>6.3f}  {row['method']:<19} "
        f"{row['additivity_share']:>10.1e} {row['deletion']:>9.3f} {figures['deletion_random']:>15} "
        f"{row['insertion']:>9.3f} {figures['insertion_random']:>15} {row['stability']:>9.3f} {row['seconds']:>8.2f}"
        f"{'  missed: ' + ', '.join(faults) if faults else ''}",
        flush=True,
    )


def _covered(name: str, task: str, options: argparse.Namespace) -> dict[str, Any]:
    """What `auto` gives for one entry, trained for one task.

    Raises:
        ValueError: there is no data at hand for the task.
    """
    if task not in DATA:
        raise ValueError(f"there is no data at hand for {task!r}")
    # oneDNN as TensorFlow 2.21 has it corrupts its memory when it trains convolutions of four channels
    os.environ |= {"ONEDNN_MAX_CPU_ISA": "AVX2", "TF_CPP_MIN_LOG_LEVEL": "3"}
    import keras

    import zoo
    from zoo import registry, tasks
    from zoo.data import load
    from zoo.explain.methods import METHODS
    from zoo.explain.sources import subject_of
    from zoo.recipes import Recipe
    from zoo.training import fit

    keras.utils.set_random_seed(options.seed)
    entry = registry.entry(name)
    shape = entry.tiny.get("input_shape", ())
    image = (options.side, options.side, shape[-1] if len(shape) == 3 else 1) if task.startswith("image") else None
    data = load(DATA[task], input_shape=image, seed=options.seed)
    step = data.signature.preprocess
    narrow = entry.params > MODEST
    small = {key: value for key, value in entry.tiny.items() if narrow and key not in (*entry.arguments, "depth")}
    model = entry.build(**{**small, "input_shape": step.shape, "classes": data.signature.outputs})
    _begin_as_identity(model)
    epochs = max(1, options.epochs // 3) if narrow else options.epochs
    settings = {key: value for key, value in entry.recipe.items() if key != "epochs"}
    fit(
        model,
        data,
        Recipe(entry.name, data.name, epochs=epochs, seed=options.seed).override(**settings),
        quiet=True,
    )
    subject = subject_of(model, data.signature, None, None)
    answers = subject.predict(data.test.x)
    score = tasks.get(task).score(data.test.y, answers)
    chosen = np.random.default_rng(options.seed).choice(len(data.train), min(100, len(data.train)), replace=False)
    background = {key: values[chosen] for key, values in data.train.x.items()}
    rows = {key: values[: options.rows] for key, values in data.test.x.items()}
    started = time.perf_counter()
    found = zoo.explain(model, rows, signature=data.signature, background=background, seed=options.seed)
    seconds = time.perf_counter() - started
    reach = float(np.ptp(answers)) if task == "regression" else 1.0
    judged = [each for each in found.settings["quality"]["rows"] if each is not None]
    own = found.faithfulness or {}
    return {
        "model": entry.name,
        "task": task,
        "data": data.name,
        "parameters": model.count_params(),
        "epochs": epochs,
        "seed": options.seed,
        "score": round(score, 4),
        "rows": len(found),
        "method": found.method,
        "promised": METHODS[found.method].additive,
        "additivity_share": float(f"{(found.additivity_error or 0) / reach:.2e}"),
        "deletion": round(own.get("deletion", np.nan), 4),
        "deletion_random": round(own.get("deletion_random", np.nan), 4),
        "deletion_random_spread": round(own.get("deletion_random_spread", np.nan), 4),
        "insertion": round(own.get("insertion", np.nan), 4),
        "insertion_random": round(own.get("insertion_random", np.nan), 4),
        "insertion_random_spread": round(own.get("insertion_random_spread", np.nan), 4),
        "rows_better": sum(each["deletion"] < each["deletion_random"] for each in judged),
        "stability": round(np.nan if found.stability is None else found.stability, 4),
        "calls": found.calls,
        "seconds": round(seconds, 3),
    }


def _begin_as_identity(model: Any) -> None:
    """Residual blocks that add nothing at first, so that 50 of them learn within a few epochs.

    Source: Goyal et al. 2017 (arXiv:1706.02677), section 5.1.
    """
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.layers.Add):
            last = layer.input[1]._keras_history.operation
            weight = last.gamma if isinstance(last, keras.layers.BatchNormalization) else last.kernel
            weight.assign(keras.ops.zeros_like(weight))


def _faults(row: dict[str, Any]) -> list[str]:
    faults = []
    if row["promised"] and row["additivity_share"] > ADDITIVITY:
        faults.append(f"misses the answer by more than {ADDITIVITY:g} of the range")
    if not row["deletion"] < row["deletion_random"]:
        faults.append("deletion is no better than random")
    return faults


def _speed(options: argparse.Namespace) -> bool:
    from explaining_speed import speed

    return speed(options)


def _truths(options: argparse.Namespace) -> bool:
    from explaining_truths import truths

    return truths(options)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    covered = parts.add_parser("coverage", help="every registered entry and its tasks")
    covered.add_argument("--models", default="*", help="names as a shell pattern")
    covered.add_argument("--epochs", type=int, default=15, help="of training; a third of them for the ResNets")
    covered.add_argument("--rows", type=int, default=8, help="test rows explained")
    covered.add_argument("--side", type=int, default=16, help="pixels a side of the images")
    covered.set_defaults(run=coverage)
    timed = parts.add_parser("speed", help="time against shap at no larger errors")
    timed.add_argument("--only", choices=("partition", "kernel", "gradient"), help="one comparison alone")
    timed.add_argument("--model", help="one of its models alone")
    timed.add_argument("--rows", type=int, default=3, help="images explained; twice as many rows of a table")
    timed.add_argument("--together", type=int, default=16, help="images in one call of the gradients, 1 for none")
    timed.add_argument("--repeats", type=int, default=3, help="timed turns of each solver on each row")
    timed.add_argument("--size", type=int, default=64, help="pixels a side of ResNet-18's images")
    timed.add_argument("--cells", type=int, default=16, help="squares a side at which errors on images are taken")
    timed.add_argument("--orders", type=int, default=100, help="orders of the reference run")
    timed.add_argument("--epochs", type=int, default=0, help="of training, 0 for each model's own number")
    timed.set_defaults(run=_speed)
    known = parts.add_parser("truths", help="linear models, interactions, a planted pixel")
    known.add_argument("--epochs", type=int, default=15, help="of the network that is taught by a pixel")
    known.add_argument("--rows", type=int, default=20, help="images explained")
    known.set_defaults(run=_truths)
    for part in (covered, timed, known):
        part.add_argument("--seed", type=int, default=0)
        part.add_argument("--keep", action="store_true", help="append the rows to the results")
    options = parser.parse_args()
    return int(options.run(options))


if __name__ == "__main__":
    sys.exit(main())
