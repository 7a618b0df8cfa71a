"""Ablation: the base and each variant of a recipe trained with the same seeds on the same splits; what a part is worth.

A difference is judged with both sources of chance in it: other seeds (weights, order, augmentation) and other test
rows, as Bouthillier et al., "Accounting for Variance in Machine Learning Benchmarks" (MLSys 2021), ask for. Its
standard error is sqrt(s^2 / n + v) with s the spread of the n differences seed by seed and v the bootstrap variance
over rows, both paired; Student's t with the degrees of freedom of Satterthwaite (Biometrics Bulletin 2 (1946) 110-114)
gives interval and p, and Holm (Scandinavian Journal of Statistics 6 (1979) 65-70) corrects p for the number of
variants.
"""

import csv
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo import data as datasets
from zoo import recipes, registry
from zoo.data import Data
from zoo.evaluate import metrics
from zoo.evaluate.findings import table
from zoo.evaluate.report import defined
from zoo.recipes import Recipe

OFF: dict[str, Any] = {  # what a setting is when it does nothing
    "augment": (),
    "averaging": 0.0,
    "class_weights": False,
    "clip_norm": None,
    "dropout": 0.0,
    "l1": 0.0,
    "l2": 0.0,
    "label_smoothing": 0.0,
    "loss": "",
    "patience": 0,
    "precision": "float32",
    "schedule": "constant",
    "warmup": 0.0,
    "weight_decay": 0.0,
}
BASE = "base"
_RESAMPLES = 1000


@dataclass(frozen=True)
class Variant:
    """One line of the table.

    Attributes:
        name: "base", or what is changed.
        changes: settings and arguments that differ from the base.
        scores: of each seed.
        mean, low, high: mean score with a 95 % interval over seeds and rows.
        difference, difference_low, difference_high: mean - mean of the base with a 95 % interval; 0 for the base.
        p: chance of a difference at least so large if the change did nothing, corrected by Holm; 1 for the base.
        parameters: trainable weights.
        seconds: of one training, on average.
    """

    name: str
    changes: dict[str, Any]
    scores: tuple[float, ...]
    mean: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    p: float
    parameters: int
    seconds: float

    @property
    def advice(self) -> str:
        """What to do about it."""
        if self.name == BASE:
            return "what the others are compared with"
        if self.p < 0.05:
            return "worse: keep the base" if self.difference < 0 else "better: take it over"
        most = max(abs(self.difference_low), abs(self.difference_high))
        return f"no difference shown, at most {most:.3g}: take the simpler, or more seeds if that matters"


@dataclass(frozen=True)
class Ablation:
    """What each part of a recipe is worth.

    Attributes:
        model, data: what was trained on what.
        metric: the task's own, larger is better.
        split: rows that were judged on.
        rows: how many.
        seeds: of every line.
        variants: the base first.
    """

    model: str
    data: str
    metric: str
    split: str
    rows: int
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]

    def __str__(self) -> str:
        rows = [("variant", self.metric, "95 % interval", "difference", "95 % interval", "p", "weights", "s", "")]
        for own in self.variants:
            base = own.name == BASE
            rows.append(
                (
                    own.name,
                    f"{own.mean:.4f}",
                    f"[{own.low:.4f}, {own.high:.4f}]",
                    "" if base else f"{own.difference:+.4f}",
                    "" if base else f"[{own.difference_low:+.4f}, {own.difference_high:+.4f}]",
                    "" if base else f"{own.p:.2g}",
                    f"{own.parameters:,}",
                    f"{own.seconds:.1f}",
                    "",
                )
            )
        lines = table(rows).splitlines()
        lines = [
            lines[0].rstrip(),
            *(f"{line}{own.advice}" for line, own in zip(lines[1:], self.variants, strict=True)),
        ]
        many = (
            f"{len(self.seeds)} seeds" if len(self.seeds) > 1 else "1 seed, so that chance of other seeds is not in it"
        )
        head = f"{self.model} on {self.data}: {self.metric} on the same {self.rows} {self.split} rows, {many}"
        return "\n".join([head, *lines])

    def save(self, folder: str | Path) -> Path:
        """Write `ablation.csv`, `ablation.json` and `ablation.png`; returns the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "ablation.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            figures = [key for key in Variant.__dataclass_fields__ if key not in ("name", "changes", "scores")]
            writer.writerow(["variant", "changes", *figures, *(f"seed_{seed}" for seed in self.seeds), "advice"])
            for own in self.variants:
                changes = " ".join(f"{key}={value}" for key, value in own.changes.items())
                row = [own.name, changes, *(getattr(own, key) for key in figures), *own.scores, own.advice]
                writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in row])
        (folder / "ablation.json").write_text(self.to_json(), encoding="utf-8")
        self.plot(folder / "ablation.png")
        return folder

    def to_json(self) -> str:
        """All figures as JSON text."""
        lines = [{**vars(own), "advice": own.advice} for own in self.variants]
        return json.dumps(defined({**vars(self), "variants": lines}), indent=2) + "\n"

    def plot(self, path: str | Path) -> Path:
        """Picture of scores and differences with their intervals."""
        from zoo.evaluate import check_pictures

        return check_pictures.ablation(self, path)


def ablate(
    model: Any,
    data: Any = None,
    *,
    out: str | Path,
    drop: Iterable[str] = (),
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    seeds: int | Iterable[int] = 3,
    split: str = "test",
    quiet: bool = False,
    **overrides: Any,
) -> Ablation:
    """Train a recipe and its variants with several seeds on the same splits, and compare.

    What is finished in `out` is not trained again, and a killed training goes on where it was, so that the same call
    can be repeated, and variants and seeds can be added. `answers.npz` in each run holds what it answered to validation
    and test rows.

    Args:
        model: public name, run, run folder, or the path of a `recipe.json`.
        data: name, path or `zoo.data.Data`; what the model knows if None.
        out: folder of the table and of all runs.
        drop: settings to turn off, each a variant of its own: a key of `OFF`, an argument that is a bool or a share, or
            one of the base's augmentations by name.
        variants: name -> settings and arguments that differ.
        seeds: how many, or which; of weights, order and augmentation. The splits keep the recipe's.
        split: rows to judge on: "test"; "validation" where the result decides what is tried next.
        quiet: print nothing.
        overrides: settings and arguments of the base and all variants.

    Returns:
        The table; it is also written to `out`.

    Raises:
        TypeError: no such setting or argument.
        ValueError: a variant that changes nothing, or `out` holds another ablation.
    """
    if split not in ("test", "validation"):
        raise ValueError(f"split must be 'test' or 'validation', got {split!r}")
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"seeds must be a number of at least 1, or different seeds, got {seeds!r}")
    recipe, splits, source = _base(model, data, overrides)
    entry = registry.entry(recipe.model)
    given = _given(recipe)
    wanted: dict[str, dict[str, Any]] = {BASE: {}}
    for name in drop:
        wanted[f"no {name}"] = _without(name, recipe, entry)
    for name, changes in (variants or {}).items():
        wanted[name] = _checked(name, dict(changes), given, entry)
    if len(wanted) < 2:
        raise ValueError("an ablation needs a variant: give drop=('dropout',) or variants={'narrow': {'width': (16,)}}")
    if not len(getattr(splits, split)):
        raise ValueError(f"data {splits.name!r} has no {split} rows to judge on")
    out = Path(out)
    _agree(out, recipe, given, splits, wanted)

    found: dict[str, list[dict[str, Any]]] = {name: [] for name in wanted}
    jobs = [(name, seed) for seed in chosen for name in wanted]  # seed by seed, so that a part is a fair table
    trained, started = 0, time.perf_counter()
    for place, (name, seed) in enumerate(jobs, start=1):
        folder = out / "runs" / _slug(name) / f"seed{seed}"
        done = (folder / "answers.npz").exists()
        if not done:
            own = _splits(wanted[name], splits, source, recipe)
            _train(recipe.model, own, folder, {**given, **wanted[name], "seed": seed})
            trained += 1
        found[name].append(_read(folder, split))
        if not quiet:
            score = _measure(splits, split, found[name][-1]["answers"])(np.ones((1, len(getattr(splits, split)))))[0]
            left = (time.perf_counter() - started) / max(trained, 1) * _missing(out, jobs[place:])
            told = "done before" if done else f"{found[name][-1]['seconds']:.0f} s, about {left:.0f} s left"
            print(f"{place}/{len(jobs)} {name}, seed {seed}: {score:.4f} ({told})", flush=True)
    result = Ablation(
        recipe.model,
        splits.name,
        next(iter(metrics.measures(splits.signature.task, *_any(found, splits, split)))),
        split,
        len(getattr(splits, split)),
        chosen,
        tuple(_judge(found, wanted, splits, split)),
    )
    result.save(out)
    return result


def _base(model: Any, data: Any, overrides: dict[str, Any]) -> tuple[Recipe, Data, Any]:
    """The base's recipe, its splits, and where these can be read again."""
    path = Path(model) if isinstance(model, str | Path) else None
    if path is not None and path.suffix == ".json":
        known = Recipe.load(path)
        source = data if data is not None else known.data
    elif path is not None and not path.is_dir() and "/" not in str(path):
        entry = registry.entry(str(path))
        source = data if data is not None else entry.data
        known = recipes.find(entry.name, source.name if isinstance(source, Data) else str(source), entry.recipe)
    else:
        from zoo.training import as_run

        run = as_run(model, data)
        known, source = run.recipe, run.data
    entry = registry.entry(known.model)
    arguments = {key: value for key, value in overrides.items() if key in entry.signature}
    recipe = known.override(**{key: value for key, value in overrides.items() if key not in arguments})
    merged = {**recipe.arguments, **arguments}
    if not isinstance(source, Data):
        shape = merged.get("input_shape")
        splits = datasets.load(source, input_shape=shape, **recipe.data_options)
    else:
        splits = source
    kept = {key: value for key, value in merged.items() if key not in recipes.FOLLOWING}
    return Recipe(**{**vars(recipe), "data": splits.name, "arguments": kept}), splits, source


def _given(recipe: Recipe) -> dict[str, Any]:
    """All settings and arguments of the base, as `zoo.train` takes them."""
    left_out = ("target", "expected", "seed", "split_seed")
    return recipe.arguments | {key: getattr(recipe, key) for key in recipes.SETTINGS if key not in left_out}


def _without(name: str, recipe: Recipe, entry: Any) -> dict[str, Any]:
    """The changes that turn a part of the base off."""
    if name in recipe.augment:
        return {"augment": tuple(own for own in recipe.augment if own != name)}
    known = {**_defaults(entry), **_given(recipe)}
    if name not in known:
        raise TypeError(
            f"there is nothing called {name!r} to drop from {recipe.model!r}.{registry.suggest(name, known)} "
            f"It has {', '.join(sorted({*OFF, *recipe.augment} & {*known, *recipe.augment}))}"
        )
    if name not in OFF and not isinstance(known[name], bool):
        raise ValueError(f"{name}={known[name]!r} cannot be turned off; say what it should be: a variant {name}=...")
    off = OFF.get(name, False)
    if known[name] == off:
        raise ValueError(f"{name} is {off!r} in the base already, so that dropping it changes nothing; leave it out")
    return {name: off}


def _defaults(entry: Any) -> dict[str, Any]:
    """The builder's defaults, read from the registry."""
    import ast

    found = {}
    for name, text in entry.signature.items():
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return {**found, **entry.arguments}


def _checked(name: str, changes: dict[str, Any], given: dict[str, Any], entry: Any) -> dict[str, Any]:
    """A variant's changes, read as settings are; refuses names that mean nothing and changes that are none."""
    if name == BASE or not changes:
        raise ValueError(f"variant {name!r} needs a name other than {BASE!r} and at least one change, got {changes!r}")
    known = {**_defaults(entry), **given}
    for key, value in changes.items():
        if key in ("classes", "seed", "split_seed", "target", "model", "data"):
            raise TypeError(f"a variant cannot change {key}, which is the same for all; start another ablation")
        if key not in entry.signature:
            changes[key] = recipes.parse(key, value)
    if all(known.get(key) == value for key, value in changes.items()):
        raise ValueError(f"variant {name!r} is the base itself: {changes}; leave it out")
    return changes


def _agree(out: Path, recipe: Recipe, given: dict[str, Any], splits: Data, wanted: dict[str, dict[str, Any]]) -> None:
    """Write the plan, or refuse a folder that holds another one."""
    path = out / "plan.json"
    plan = {
        "model": recipe.model,
        "data": splits.name,
        "sha256": splits.sha256,
        "split_seed": recipe.data_options["seed"],
        "base": given,
        "variants": wanted,
    }
    plan = json.loads(json.dumps(plan))  # tuples as lists, as in the file
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise FileExistsError(f"{out} holds something else than an ablation; choose another folder")
        out.mkdir(parents=True, exist_ok=True)
    else:
        old = json.loads(path.read_text(encoding="utf-8"))
        for key in ("model", "data", "sha256", "split_seed", "base"):
            if old[key] != plan[key]:
                differing = key
                if key == "base":
                    pairs = {name: (old[key].get(name), value) for name, value in plan[key].items()}
                    differing = ", ".join(
                        f"{n} {was!r} and now {now!r}" for n, (was, now) in pairs.items() if was != now
                    )
                raise ValueError(f"{out} holds an ablation of another base ({differing}); choose another folder")
        for name, changes in plan["variants"].items():
            if old["variants"].get(name, changes) != changes:
                raise ValueError(
                    f"{out} holds a variant {name!r} with {old['variants'][name]}, now {changes}; give it another name"
                )
        plan["variants"] = {**old["variants"], **plan["variants"]}
    path.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")


def _slug(name: str) -> str:
    return re.sub(r"[^\w.=,-]+", "_", name).strip("_.") or "variant"


def _splits(changes: dict[str, Any], splits: Data, source: Any, recipe: Recipe) -> Data:
    """The base's splits, or the same rows in another size where a variant asks for one."""
    shape = changes.get("input_shape")
    if shape is None or tuple(shape) == splits.signature.preprocess.shape:
        return splits
    if isinstance(source, Data):
        raise ValueError("a variant of another input_shape needs data that can be read again: give its name or path")
    again = datasets.load(source, input_shape=tuple(shape), **recipe.data_options)
    for name, part in splits.splits.items():
        if not np.array_equal(part.y, again.splits[name].y):
            raise ValueError(f"input_shape={tuple(shape)} makes rows equal that were not, which changes the splits")
    return again


def _train(model: str, splits: Data, folder: Path, settings: dict[str, Any]) -> None:
    """Train, or go on with, one run, and keep its answers."""
    from zoo.evaluate import evaluate
    from zoo.training import load, train

    settings = {**settings, "input_shape": splits.signature.preprocess.shape}
    if (folder / "metrics.json").exists():
        run = load(folder)
    elif (folder / "state.npz").exists():
        run = train(model, splits, out=folder, resume=True, quiet=True)
    else:
        run = train(model, splits, out=folder, overwrite=True, quiet=True, **settings)
    kept: dict[str, Any] = {}
    for name in ("validation", "test"):
        if len(getattr(splits, name)):
            kept[name] = evaluate(run, splits, split=name).answers
    parameters = sum(int(np.prod(weight.shape)) for weight in run.model.trainable_weights)
    temporary = folder / "answers.tmp"
    with temporary.open("wb") as file:
        np.savez(file, parameters=parameters, seconds=run.metrics["seconds"], **kept)
    temporary.replace(folder / "answers.npz")


def _read(folder: Path, split: str) -> dict[str, Any]:
    with np.load(folder / "answers.npz", allow_pickle=False) as kept:
        return {
            "answers": kept[split],
            "parameters": int(kept["parameters"]),
            "seconds": float(kept["seconds"]),
        }


def _missing(out: Path, jobs: list[tuple[str, int]]) -> int:
    return sum(not (out / "runs" / _slug(name) / f"seed{seed}" / "answers.npz").exists() for name, seed in jobs)


def _any(found: dict[str, list[dict[str, Any]]], splits: Data, split: str) -> tuple[np.ndarray, np.ndarray]:
    return getattr(splits, split).y, found[BASE][0]["answers"]


def _measure(splits: Data, split: str, answers: np.ndarray) -> metrics.Measure:
    """The task's own metric of some answers."""
    return next(iter(metrics.measures(splits.signature.task, getattr(splits, split).y, answers).values()))


def _judge(
    found: dict[str, list[dict[str, Any]]], wanted: dict[str, dict[str, Any]], splits: Data, split: str
) -> list[Variant]:
    rows = len(getattr(splits, split))
    whole = np.ones((1, rows))
    scores, drawn = {}, {}
    for name, runs in found.items():
        own = {str(index): _measure(splits, split, run["answers"]) for index, run in enumerate(runs)}
        scores[name] = np.array([float(measure(whole)[0]) for measure in own.values()])
        drawn[name] = np.mean(list(metrics.replicates(own, rows, _RESAMPLES, 0).values()), axis=0)
    tested = {
        name: _interval(scores[name] - scores[BASE], drawn[name] - drawn[BASE]) for name in wanted if name != BASE
    }
    corrected = _holm({name: p for name, (_, _, p) in tested.items()})
    least = -np.inf if splits.signature.task == "regression" else 0.0  # R2 and accuracy are at most 1
    lines = []
    for name, changes in wanted.items():
        low, high, _ = _interval(scores[name], drawn[name])
        low, high = max(low, least), min(high, 1.0)
        ends = tested.get(name, (0.0, 0.0, 1.0))
        lines.append(
            Variant(
                name,
                changes,
                tuple(scores[name].tolist()),
                float(scores[name].mean()),
                low,
                high,
                float((scores[name] - scores[BASE]).mean()),
                *ends[:2],
                corrected.get(name, 1.0),
                found[name][0]["parameters"],
                float(np.mean([run["seconds"] for run in found[name]])),
            )
        )
    return lines


def _interval(values: np.ndarray, drawn: np.ndarray) -> tuple[float, float, float]:
    """95 % interval of the mean of some values over seeds, and p of its being zero.

    Args:
        values: one per seed.
        drawn: their mean on bootstrap samples of the rows.
    """
    from scipy.stats import t

    mean, count = float(values.mean()), len(values)
    of_seeds = float(values.var(ddof=1)) / count if count > 1 else 0.0
    of_rows = float(np.nanvar(drawn))
    error = np.sqrt(of_seeds + of_rows)
    if not error:
        return mean, mean, 1.0 if mean == 0 else 0.0
    freedom = (count - 1) * (of_seeds + of_rows) ** 2 / of_seeds**2 if of_seeds else 1e9
    half = float(t.ppf(0.975, freedom)) * error
    return mean - half, mean + half, float(2 * t.sf(abs(mean) / error, freedom))


def _holm(chances: dict[str, float]) -> dict[str, float]:
    """Each p corrected for the number of them."""
    found, highest = {}, 0.0
    for place, (name, p) in enumerate(sorted(chances.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, p * (len(chances) - place)))
        found[name] = highest
    return found
