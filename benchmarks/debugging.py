"""How often the debugging tools find what was planted, and how often they raise an alarm where nothing is wrong.

Sound models: every registered builder learns a batch by heart and passes the gradient check, without a finding. Sound data:
every built-in data set under many splits, without a finding. Planted: copies with noise, brightness or as mirror images in
the test rows of digits; wrong labels in four data sets. Run `python benchmarks/debugging.py`; with `--keep` it appends to
`benchmarks/results/debugging.csv`. It ends with status 1 when a target below is missed. `--quick` does a part of it.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Iterator

import numpy as np
from record import append

ALARMS = 0  # on sound models and data
COPIES = 0.95  # of the planted copies, at least
LABELS = 0.6  # of the planted wrong labels, at least
MODEST = 1_000_000  # parameters up to which a builder learns by heart as it is, above it with a width of NARROW
NARROW = 16

Row = tuple[dict[str, object], bool]  # what was measured, and whether its target was met


def told(check: str, subject: str, cases: int, planted: int, found: int, alarms: int, started: float, met: bool) -> Row:
    """One row, printed."""
    row = {
        "check": check,
        "subject": subject,
        "cases": cases,
        "planted": planted,
        "found": found,
        "alarms": alarms,
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(
        f"{check:<12} {subject:<36} {f'{found} of {planted} found, ' if planted else ''}{alarms} false alarms in {cases} "
        f"cases, {row['seconds']:.1f} s{'' if met else '  missed'}",
        flush=True,
    )
    return row, met


def sound_models(quick: bool) -> Iterator[Row]:
    """Every builder, small, on data of its first task."""
    from zoo import registry
    from zoo.evaluate.debugging import check_gradients, overfit

    families = {entry.family: name for name, entry in reversed(registry.entries().items())}
    for name in sorted(families.values())[: 2 if quick else None]:
        entry = registry.entry(name)
        images = "height" in next(iter(entry.inputs.values())).axes
        data = "digits" if images else "wine" if "classification" in entry.tasks else "diabetes"
        tiny = {key: value for key, value in entry.tiny.items() if key not in ("input_shape", "classes")}
        narrow = {"width": NARROW} if entry.params > MODEST else {}
        for check, tool, arguments in (("gradients", check_gradients, tiny), ("overfit", overfit, narrow)):
            started = time.perf_counter()
            found = tool(name, data, **arguments)
            alarms = len(found.findings)
            if alarms:
                print(found)
            yield told(check, name, 1, 0, 0, alarms, started, alarms <= ALARMS)


def sound_data(quick: bool) -> Iterator[Row]:
    """Built-in data sets under many splits."""
    from zoo.evaluate.leakage import leakage

    for name, splits in (("iris", 20), ("wine", 20), ("breast_cancer", 20), ("diabetes", 20), ("circles", 20),
                         ("spirals", 20), ("digits", 5)):  # fmt: skip
        cases = 2 if quick else splits
        started = time.perf_counter()
        alarms = sum(len(leakage(name, seed=seed).findings) for seed in range(cases))
        yield told("leakage", name, cases, 0, 0, alarms, started, alarms <= ALARMS)


def copies(quick: bool) -> Iterator[Row]:
    """Changed copies of training images among the test images of digits."""
    from zoo import data
    from zoo.data import Split
    from zoo.evaluate.leakage import leakage

    changes = {
        "copies with noise of 6 of 255": lambda image, random: image + random.normal(0, 6, image.shape),
        "copies with noise of 12 of 255": lambda image, random: image + random.normal(0, 12, image.shape),
        "copies that are brighter and paler": lambda image, random: image * 0.8 + 20,
        "mirrored copies": lambda image, random: image[:, ::-1],
    }
    for subject, change in changes.items():
        started = time.perf_counter()
        planted = found = alarms = 0
        for seed in range(1 if quick else 5):
            random = np.random.default_rng(seed)
            splits = data.load("digits", seed=seed)
            images = splits.test.x["image"].copy()
            taken = random.choice(len(splits.train), 40, replace=False)
            for row, source in enumerate(taken):
                image = splits.train.x["image"][source].astype(float)
                images[row] = np.clip(change(image, random), 0, 255)
            near = leakage(dataclasses.replace(splits, test=Split({"image": images}, splits.test.y))).near
            right = {(row, source) for row, source in enumerate(taken.tolist())}
            hits = {(copy.row, copy.there) for copy in near if copy.split == "test"}
            planted += len(right)
            found += len(right & hits)
            alarms += len(hits - right)
        hard = "12 of 255" in subject  # beyond what small images tell apart; on the record without a target
        met = alarms <= ALARMS and (hard or found >= COPIES * planted)
        yield told("near copies", subject, 1 if quick else 5, planted, found, alarms, started, met)


def labels(quick: bool) -> Iterator[Row]:
    """One label in forty made wrong, and the rows listed."""
    from zoo import data
    from zoo.data import Split
    from zoo.evaluate.labels import doubtful_labels

    for name in ("digits", "breast_cancer", "wine", "iris"):
        started = time.perf_counter()
        planted = found = alarms = 0
        for seed in range(1 if quick else 5):
            random = np.random.default_rng(seed)
            splits = data.load(name, seed=seed)
            y, outputs = splits.train.y.copy(), splits.signature.outputs
            wrong = random.choice(len(y), max(3, len(y) // 40), replace=False)
            y[wrong] = (y[wrong] + random.integers(1, outputs, len(wrong))) % outputs
            doubts = doubtful_labels(dataclasses.replace(splits, train=Split(splits.train.x, y))).doubts
            listed = {doubt.row for doubt in doubts if doubt.split == "train"}
            planted += len(wrong)
            found += len(listed & set(wrong.tolist()))
            alarms += len(doubts) - len(listed & set(wrong.tolist()))
        yield told("labels", name, 1 if quick else 5, planted, found, alarms, started, found >= LABELS * planted)


def main() -> int:
    """Run all checks."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="few splits and models")
    options.add_argument("--only", choices=("models", "data", "copies", "labels"), help="one part alone")
    options.add_argument("--keep", action="store_true", help="append the rows to the results")
    given = options.parse_args()
    # oneDNN as TensorFlow 2.21 has it corrupts its memory when it trains convolutions of four channels
    os.environ |= {"ONEDNN_MAX_CPU_ISA": "AVX2", "TF_CPP_MIN_LOG_LEVEL": "3"}
    parts = {"models": sound_models, "data": sound_data, "copies": copies, "labels": labels}
    missed = False
    for name in [given.only] if given.only else list(parts):
        for row, met in parts[name](given.quick):
            missed |= not met
            if given.keep:
                append("debugging", row)
    print(f"{'missed' if missed else 'met'}: what was planted is found, and nothing else")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
