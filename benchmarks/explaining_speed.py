"""Time per explanation against shap on the same model in the same run: the part `speed` of `explaining.py`.

Everybody gets the same predict function, ONNX session or Keras model, runs in turn, and is warmed up first. Errors are
against a long reference run by code of this file or of shap, relative to its length. Ours counts with the fewest
evaluations whose mean error over all rows is no larger than the rival's. Gradients are taken for one row in a call and
for several, both for us and for shap; times are per row.
"""

import argparse
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from record import append

FASTER = 3.0  # times
ROUNDING = 2e-6  # of float32 answers to batches of different sizes; an additivity error below is none
BUDGETS = {
    "partition": (60, 80, 100, 125, 150, 200, 250, 300, 400, 500, 1000),
    "kernel": (61, 119, 177, 235, 293, 409, 583, 873, 1163, 1743, 2323),  # whole walks of 30 columns
    "gradient": (20, 40, 50, 60, 70, 80, 90, 100, 120, 140, 160, 200, 400),
}
PACKAGES = ("zooroad", "shap", "keras", "tensorflow", "onnxruntime", "numpy")

Solver = Callable[[], tuple[np.ndarray, Any]]  # contributions and their base; with a first axis of rows where several


def speed(options: argparse.Namespace) -> bool:
    """Rows of all comparisons; whether a target is missed."""
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        for name, model in (
            ("partition", "lenet"),
            ("partition", "resnet18"),
            ("kernel", "mlp"),
            ("gradient", "lenet"),
        ):
            if options.only in (None, name) and options.model in (None, model):
                cases = {"partition": _images, "kernel": _columns, "gradient": _gradients}[name]
                found = list(cases(model, Path(folder), options))
                for together in sorted({len(np.atleast_1d(case["answer"])) for case in found}):
                    alike = [case for case in found if len(np.atleast_1d(case["answer"])) == together]
                    missed |= _compared(name, model, alike, options)
    return missed


def _trained(model: str, data: Any, folder: Path, options: argparse.Namespace) -> Any:
    """A run, kept in the folder for the next part."""
    import zoo

    shape = {"lenet": (32, 32, 1), "resnet18": (options.size, options.size, 3)}.get(model)
    rows = zoo.data.load(data, input_shape=shape)
    epochs = options.epochs or {"lenet": 10, "resnet18": 3, "mlp": 30}[model]
    run = zoo.train(model, data=rows, out=folder / model, epochs=epochs, seed=options.seed, quiet=True, overwrite=True)
    print(f"{model} on {data}: {run.metrics['test']:.3f} after {epochs} epochs", flush=True)
    return run


def _images(model: str, folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Partition on images, both on a tree of halves down to pixels or tiles; errors by squares of the reference."""
    import shap

    import export
    from zoo.explain.clock import Clock
    from zoo.explain.owen import partition
    from zoo.explain.players import game
    from zoo.explain.sources import subject_of

    run = _trained(model, "digits", folder, options)
    bundle = export.to_bundle(run.model, folder / "store" / model / "1", data=run.data, int8=False)
    subject = subject_of(bundle, None, None, None)
    mean = subject.background["image"][0]
    side = mean.shape[0]
    cells = min(options.cells, side)
    owner = (np.arange(side)[:, None] * cells // side) * cells + np.arange(side)[None] * cells // side

    def pooled(values: np.ndarray) -> np.ndarray:
        return np.bincount(owner.ravel(), values.reshape(side, side, -1).sum(axis=2).ravel())

    for row in range(options.rows):
        raw = {"image": run.data.test.x["image"][row : row + 1]}
        image = raw["image"][0]
        target = int(subject.predict(raw)[0].argmax())

        def predict(images: np.ndarray, target: int = target) -> np.ndarray:
            return subject.predict({"image": images})[:, target]

        def play(masks: np.ndarray, image: np.ndarray = image, predict: Any = predict) -> np.ndarray:
            return predict(np.where(masks[:, owner][..., None], image, mean)).astype(np.float64)

        def stock(batch: int | str, raw: Any = raw, predict: Any = predict) -> Solver:
            explainer = shap.explainers.Partition(predict, shap.maskers.Image(mean, mean.shape))

            def solve() -> tuple[np.ndarray, float]:
                found = explainer(raw["image"], max_evals=500, batch_size=batch, silent=True)
                return found.values[0], float(np.ravel(found.base_values)[0])

            return solve

        def ours(evals: int, raw: Any = raw, target: int = target) -> Solver:
            def solve() -> tuple[np.ndarray, float]:
                made = game(subject, raw, target, evals)
                found = partition(made, max_evals=evals, seed=options.seed, clock=Clock())
                return made.spread(found.values), found.base

            return solve

        orders = (_halving(cells, cells, np.random.default_rng([options.seed, each])) for each in range(options.orders))
        truth, error = _walked(play, cells**2, orders)
        yield {
            "truth": truth,
            "truth_error": error,
            "pooled": pooled,
            "answer": float(predict(raw["image"])[0]),
            "rivals": {"shap Partition": stock("auto"), "shap Partition, batches of 64": stock(64)},
            "ours": ours,
        }


def _columns(model: str, folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Kernel on the columns of a table, ours by what `auto` takes."""
    import shap

    import export
    from zoo.explain.clock import Clock
    from zoo.explain.players import game
    from zoo.explain.shapley import permutation
    from zoo.explain.sources import subject_of

    run = _trained(model, "breast_cancer", folder, options)
    bundle = export.to_bundle(run.model, folder / "store" / model / "1", data=run.data, int8=False)
    subject = subject_of(bundle, None, None, None)
    background = subject.background["numbers"]

    for row in range(2 * options.rows):
        raw = {"numbers": run.data.test.x["numbers"][row : row + 1]}
        target = int(subject.predict(raw)[0].argmax())

        def predict(numbers: np.ndarray, target: int = target) -> np.ndarray:
            return subject.predict({"numbers": numbers.astype(np.float32)})[:, target]

        def play(masks: np.ndarray, raw: Any = raw, predict: Any = predict) -> np.ndarray:
            rows = np.where(masks[:, None], raw["numbers"], background).reshape(-1, background.shape[1])
            return predict(rows).reshape(len(masks), -1).mean(axis=1, dtype=np.float64)

        def stock(l1_reg: str | bool, raw: Any = raw, predict: Any = predict) -> Solver:
            explainer = shap.KernelExplainer(predict, background)

            def solve() -> tuple[np.ndarray, float]:
                found = explainer.shap_values(raw["numbers"], silent=True, l1_reg=l1_reg)[0]
                return found, float(explainer.expected_value)

            return solve

        def ours(evals: int, raw: Any = raw, target: int = target) -> Solver:
            def solve() -> tuple[np.ndarray, float]:
                made = game(subject, raw, target, evals)
                found = permutation(made, max_evals=evals, seed=options.seed, clock=Clock())
                return found.values, found.base

            return solve

        players = background.shape[1]
        random = np.random.default_rng([options.seed, row])
        truth, error = _walked(play, players, (random.permutation(players) for _ in range(4 * options.orders)))
        yield {
            "truth": truth,
            "truth_error": error,
            "pooled": np.ravel,
            "answer": float(predict(raw["numbers"])[0]),
            "rivals": {"shap Kernel": stock("num_features(10)"), "shap Kernel, no l1": stock(False)},
            "ours": ours,
        }


def _gradients(model: str, folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Gradient on images: the probability of the model's own class, which is its only output, from preprocessed pixels."""
    import keras
    import shap

    from zoo.explain.clock import Clock
    from zoo.explain.gradients import expected_gradients
    from zoo.explain.sources import subject_of

    run = _trained(model, "digits", folder, options)
    background = {"image": run.data.train.x["image"][:100]}
    subject = subject_of(run.model, run.signature, background, None)
    prepared = run.signature.inputs(background)
    rows = {"image": run.data.test.x["image"][: max(options.rows, options.together)]}
    x = run.signature.inputs(rows)
    answers = subject.predict(rows)
    targets = answers.argmax(axis=1)
    whole = keras.Model(run.model.input, keras.layers.Softmax()(run.model.output))
    bases = whole.predict(prepared, verbose=0).mean(axis=0)
    explainers = {}
    for target in np.unique(
        targets
    ).tolist():  # shap reads the outputs off the last layer, so each has a model of its own
        one = keras.layers.Lambda(keras.ops.take, output_shape=(1,), arguments={"indices": [target], "axis": 1})
        explainers[target] = shap.GradientExplainer(keras.Model(run.model.input, one(whole.output)), prepared)
    several = shap.GradientExplainer(whole, prepared)

    def alone(row: int, samples: int = 200, seed: int = options.seed) -> np.ndarray:
        return explainers[int(targets[row])].shap_values(x[row : row + 1], nsamples=samples, rseed=seed)[..., 0]

    def together(count: int) -> np.ndarray:
        """Each row's most probable class, as shap finds it."""
        return several.shap_values(x[:count], nsamples=200, rseed=options.seed, ranked_outputs=1)[0][..., 0]

    def ours(some: slice, samples: int) -> Solver:
        raw = {"image": rows["image"][some]}

        def solve() -> tuple[np.ndarray, np.ndarray]:
            found = expected_gradients(subject, raw, targets[some], seed=options.seed, clock=Clock(), samples=samples)
            return found.values, found.base

        return solve

    truths, errors = [], []
    for row in range(len(targets)):
        many = [alone(row, 4000, 1000 + each).ravel() for each in range(max(2, options.orders // 8))]
        truths.append(np.mean(many, axis=0))
        errors.append(np.std(many, axis=0, ddof=1) / np.sqrt(len(many)))

    def case(some: slice, name: str, stock: Callable[[], np.ndarray]) -> dict[str, Any]:
        return {
            "truth": np.stack(truths[some]),
            "truth_error": np.stack(errors[some]),
            "pooled": lambda values: values.reshape(len(values), -1),
            "answer": answers.max(axis=1)[some],
            "rivals": {name: lambda: (stock(), bases[targets[some]])},
            "ours": functools.partial(ours, some),
        }

    for row in range(options.rows):
        yield case(slice(row, row + 1), "shap Gradient", functools.partial(alone, row))
    if options.together > 1:
        count = options.together
        yield case(slice(0, count), f"shap Gradient, {count} rows a call", functools.partial(together, count))


def _halving(rows: int, columns: int, random: np.random.Generator) -> np.ndarray:
    """An order of the cells of a grid in which every half, of halves, stays together."""

    def cut(top: int, bottom: int, left: int, right: int) -> list[int]:
        height, width = bottom - top, right - left
        if height == width == 1:
            return [top * columns + left]
        middle = (top + height // 2) if height >= width else (left + width // 2)
        parts = (
            [cut(top, middle, left, right), cut(middle, bottom, left, right)]
            if height >= width
            else [cut(top, bottom, left, middle), cut(top, bottom, middle, right)]
        )
        first = int(random.integers(2))
        return parts[first] + parts[1 - first]

    return np.array(cut(0, rows, 0, columns))


def _walked(play: Callable, players: int, orders: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean contributions when players enter in given orders and in their reverse, and standard errors."""
    found = []
    for order in orders:
        both = np.zeros(players)
        for entering in (order, order[::-1]):
            masks = np.zeros((players + 1, players), bool)
            for step, player in enumerate(entering.tolist()):
                masks[step + 1 :, player] = True
            answers = np.concatenate([play(masks[at : at + 64]) for at in range(0, players + 1, 64)])
            both[entering] += np.diff(answers) / 2
        found.append(both)
    return np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / np.sqrt(len(found))


def _compared(name: str, model: str, cases: list[dict[str, Any]], options: argparse.Namespace) -> bool:
    """Print and keep what everybody needs on the same rows; whether a target is missed."""
    budgets = BUDGETS[name]
    tried: dict[Any, list[list[float]]] = {}  # milliseconds, error, additivity error of each row
    doubts = []
    for case in cases:
        solvers = {**case["rivals"], **{budget: case["ours"](budget) for budget in budgets}}
        times: dict[Any, list[float]] = {key: [] for key in solvers}
        found = {}
        for turn in range(options.repeats + 1):  # the first one warms up
            for key, solve in solvers.items():
                started = time.perf_counter()
                found[key] = solve()
                if turn:
                    times[key].append(time.perf_counter() - started)
        answer = np.atleast_1d(case["answer"])
        truth = case["truth"].reshape(len(answer), -1)
        length = np.linalg.norm(truth, axis=1)
        doubts += (np.linalg.norm(case["truth_error"].reshape(truth.shape), axis=1) / length).tolist()
        for key, (values, base) in found.items():
            miss = np.linalg.norm(case["pooled"](values).reshape(truth.shape) - truth, axis=1) / length
            adds = np.abs(base + np.asarray(values).reshape(len(answer), -1).sum(axis=1) - answer)
            spent = 1000 * float(np.median(times[key])) / len(answer)
            tried.setdefault(key, []).extend([spent, *row] for row in zip(miss.tolist(), adds.tolist(), strict=True))
    mean = {key: np.mean(found, axis=0) for key, found in tried.items()}
    largest = {key: max(row[2] for row in found) for key, found in tried.items()}
    doubt, rows = float(np.mean(doubts)), len(doubts)
    print(f"\n{name} on {model}, {rows} rows; standard error of the reference {doubt:.3f} of its length")
    for key in solvers:
        print(f"  {key!s:<32}{mean[key][0]:>10.1f} ms   error {mean[key][1]:.3f}   additivity {largest[key]:.1e}")
    missed = False
    for rival in cases[0]["rivals"]:
        enough = [budget for budget in budgets if mean[budget][1] <= mean[rival][1]]
        own = enough[0] if enough else budgets[-1]
        faster = mean[rival][0] / mean[own][0]
        fault = not enough or faster < FASTER or largest[own] > max(largest[rival], ROUNDING)
        missed |= fault
        row = {
            "method": name,
            "model": model,
            "rows": rows,
            "rival": rival,
            "rival_ms": round(mean[rival][0], 2),
            "rival_error": round(mean[rival][1], 4),
            "rival_additivity": float(f"{largest[rival]:.2e}"),
            "evaluations": own,
            "ms": round(mean[own][0], 2),
            "error": round(mean[own][1], 4),
            "additivity": float(f"{largest[own]:.2e}"),
            "reference_error": round(doubt, 4),
            "faster": round(faster, 2),
        }
        print(
            f"{'missed' if fault else 'met'}: {FASTER:g}x faster than {rival} at no larger errors: {faster:.1f}x",
            flush=True,
        )
        if options.keep:
            append("explaining_speed", row, packages=PACKAGES)
    return missed
