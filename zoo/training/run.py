"""From a name to a run folder: build, train, judge, compare with the baseline, write everything down."""

import contextlib
import csv
import dataclasses
import json
import platform
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from zoo import data as datasets
from zoo import recipes, registry, tasks
from zoo.data import Data, Split, lazy
from zoo.data.signature import Signature
from zoo.evaluate import pictures
from zoo.evaluate.report import Report, answers, defined, judge
from zoo.machine import cores, processor, versions
from zoo.recipes import Recipe, literature
from zoo.training.fit import Method, fit
from zoo.training.lora import Adapters

JUDGED = 50_000  # training rows that the training score is of, at most


@dataclass(frozen=True)
class Run:
    """A trained model with all that is known of how it came to be.

    Attributes:
        model: Keras model with the weights of its best epoch, float32.
        signature: meaning of its raw inputs and outputs.
        recipe: what was asked for.
        folder: where it was written, None if nowhere.
        history: one row per epoch.
        metrics: scores by name: `train`, `validation`, `test`, `baseline`, `gap`, `seconds`.
        data: the splits it was trained on; None for a loaded run whose data is not at hand.
    """

    model: Any
    signature: Signature
    recipe: Recipe
    folder: Path | None
    history: list[dict[str, float]]
    metrics: dict[str, float]
    data: Data | None = field(default=None, repr=False)


def train(
    model: str,
    data: Any = None,
    *,
    recipe: str = "",
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    weights: str | None = None,
    callbacks: tuple = (),
    tensorboard: bool = False,
    diagnose: bool = False,
    save_every: int = 0,
    method: Method | None = None,
    **overrides: Any,
) -> Run:
    """Train a model by name and write a run folder.

    Args:
        model: public name, see `zoo.names()`.
        data: data set name, path or `zoo.data.Data`; the model's default data if None.
        recipe: name of a recipe of the literature, such as "imagenet", for data of your own; `zoo.show` lists a model's.
        out: run folder, `runs/<model>-<data>` if None.
        resume: go on with the killed run in `out`, exactly where its last saved state is.
        overwrite: replace a run folder that is there.
        quiet: no progress bar and no lines.
        weights: pretrained weights, as in `zoo.get`; images are then scaled as these expect, unless `scaling` says
            otherwise.
        callbacks: further Keras callbacks.
        tensorboard: also write TensorBoard logs to `out/tensorboard`.
        diagnose: measure gradient norms and dead units after each epoch, with a picture.
        save_every: batches between two saves inside an epoch; each epoch's end is always saved.
        method: how it learns, such as `zoo.compress.distill` asks for; plainly from the true targets if None.
        overrides: settings of `zoo.recipes.Recipe`, or arguments of the model's builder.

    Returns:
        The run; its folder holds `model.keras`, `signature.json`, `recipe.json`, `history.csv`, `metrics.json`,
        `environment.json`, `learning_curve.png`, `confusion.png` and `report.md`.

    Raises:
        KeyError: no such model.
        TypeError: neither a training setting nor an argument of the model.
        ValueError: model and data do not fit, or a value is out of range.
        FileExistsError: the folder holds a run already.
        FloatingPointError: the loss is not a number any more.
    """
    entry = registry.entry(model)
    source = data if data is not None else _default(entry, recipe)
    folder = Path(out) if out else Path("runs") / f"{entry.name}-{Path(_name(source)).stem}"
    settings = _recipe(entry, _name(source), folder if resume else None, overrides, recipe)
    if weights and not resume:
        settings = dataclasses.replace(settings, weights=str(weights))
    network, splits, settings = _built(entry, source, settings, fresh=resume)
    return _carry_out(
        network,
        splits,
        settings,
        folder,
        resume,
        overwrite,
        quiet,
        callbacks,
        tensorboard,
        diagnose,
        save_every,
        method=method,
    )


def tune(
    run: Run,
    network: Any = None,
    *,
    out: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    callbacks: tuple = (),
    save_every: int = 0,
    keep: str = "best",
    method: Method | None = None,
    **overrides: Any,
) -> Run:
    """Train a run's model further, or a smaller version of it, on the same splits.

    Args:
        run: where data and recipe come from.
        network: model to train in place, a copy of the run's own if None.
        out: folder of the new run.
        resume: go on with the killed run in `out`; the model must be as it was when that began.
        overwrite: replace a run folder that is there.
        quiet: no progress bar and no lines.
        callbacks: Keras callbacks, such as `zoo.compress.MagnitudePruning`.
        save_every: batches between two saves inside an epoch; each epoch's end is always saved.
        keep: whose weights the model ends with, the "best" epoch's or the "last" one's.
        method: how it learns, plainly from the true targets if None.
        overrides: settings of `zoo.recipes.Recipe`.

    Returns:
        The new run; the old one is unchanged.
    """
    check_folder(out, resume=resume, overwrite=overwrite, source=run)
    if network is None:
        network = keras.models.clone_model(run.model)
        network.set_weights(run.model.get_weights())
    splits = run.data or load_data(run)
    if overrides.get("precision", "float32") != "float32":
        raise ValueError(
            f"a finished model is tuned in float32, got precision={overrides['precision']!r}; leave it out"
        )
    alone = {} if resume else {"freeze": "", "unfreeze_every": 0, "lora": 0}  # of what began with pretrained weights
    settings = {**alone, **overrides, "precision": "float32"}
    recipe = (_resumed(Path(out)) if resume else run.recipe).override(**settings)
    keras.utils.set_random_seed(recipe.seed)
    return _carry_out(
        network,
        splits,
        recipe,
        Path(out),
        resume,
        overwrite,
        quiet,
        callbacks,
        save_every=save_every,
        keep=keep,
        method=method,
    )


def load_data(run: Run, source: str | Path | None = None) -> Data:
    """The splits a run was trained on, loaded again.

    Args:
        run: a run.
        source: where the data is now, if it has moved.

    Raises:
        ValueError: the data is not there, or has changed since.
    """
    preprocess = run.signature.preprocess
    shape = preprocess.shape if preprocess.kind in ("image", "audio", "captioned") else None
    source = source or run.recipe.data
    if source == run.recipe.data and source not in datasets.names() and not Path(source).expanduser().exists():
        raise ValueError(
            f"{run.folder} was trained on {source!r}, which is not in this folder; "
            f"go where it was trained, or say where the data is (--data on the command line)"
        )
    options = dict(run.recipe.data_options)
    text = run.signature.text
    if text:  # as it was made, wherever a file that it was read from is now
        options["tokenizer"] = text
    if preprocess.kind == "audio":
        options["rate"] = preprocess.rate
    splits = datasets.load(source, input_shape=shape, **options)
    splits = datasets.scaled(splits, getattr(preprocess, "scaling", ""))
    if splits.signature != run.signature or (text and splits.sha256 != _sha256(run)):
        raise ValueError(f"data {str(source)!r} differs from what {run.folder} was trained on; train again")
    return splits


def _sha256(run: Run) -> str:
    """Hash of the rows that a run was trained on, from its folder."""
    written = json.loads((run.folder / "environment.json").read_text(encoding="utf-8"))
    return written["data"]["sha256"]


def as_run(model: Any, data: Any = None) -> Run:
    """A model as a run with its splits, whatever form it is given in.

    Args:
        model: run, run folder or Keras model.
        data: its data: a name, a path or `zoo.data.Data`; a run knows its own.

    Returns:
        A run with data; that of a Keras model has no folder, history or scores.

    Raises:
        TypeError: `model` is none of these.
        ValueError: a Keras model without data, or data that is not there.
    """
    if isinstance(model, str | Path):
        model = load(model)
    if hasattr(model, "recipe"):
        if data is None:
            splits = model.data or load_data(model)
        else:
            splits = data if isinstance(data, Data) else load_data(model, data)
        return dataclasses.replace(model, data=splits)
    if not hasattr(model, "predict_on_batch"):
        raise TypeError(f"a run, a run folder or a Keras model is needed, got a {type(model).__name__}")
    if data is None:
        raise ValueError("a Keras model needs its data: give data=, such as 'digits', or the run it comes from")
    main = tasks.main_input(model)
    shape = tuple(main.shape[1:])
    fixed = len(shape) == 3 or "int" in main.dtype
    splits = datasets.load(data, input_shape=shape if fixed else None)
    if not isinstance(data, Data) and hasattr(model, "pretrained"):
        splits = datasets.scaled(splits, model.pretrained.scaling)
    known = model.name in registry.names()
    recipe = recipes.find(model.name, _name(data), registry.entry(model.name).recipe if known else {})
    return Run(model, splits.signature, recipe, None, [], {}, splits)


def untrained(model: str, data: Any = None, *, recipe: str = "", **overrides: Any) -> Run:
    """What `train` would begin with: a model by name with fresh weights, its splits and its recipe.

    Args:
        model, data, recipe, overrides: as of `train`.

    Raises:
        KeyError, TypeError, ValueError: as of `train`.
    """
    entry = registry.entry(model)
    source = data if data is not None else _default(entry, recipe)
    network, splits, settings = _built(entry, source, _recipe(entry, _name(source), None, overrides, recipe))
    return Run(network, splits.signature, settings, None, [], {}, splits)


def check_trained(run: Run) -> None:
    """Refuse a model that is no better on the validation rows than an answer that never changes.

    Raises:
        ValueError: it is not, or there are no such rows.
    """
    part, task = run.data.validation, tasks.get(run.signature.task)
    if not len(part) or not len(run.data.train):
        raise ValueError(f"data {run.data.name!r} has no rows for training or validation; both are needed")
    found = task.score(part.y, answers(run.model, run.signature, part.x))
    idle = tasks.idle(run.signature, run.data.train.y, part.y)
    if not found > idle:
        raise ValueError(
            f"the model scores {found:.4f} on the validation rows, no better than always the same answer ({idle:.4f}); "
            "train it first"
        )


def _name(source: Any) -> str:
    return source.name if isinstance(source, Data) else str(source)


def _default(entry: registry.Entry, published: str) -> str:
    """Data to train on where none are given."""
    if not published:
        return entry.data
    found = literature.find(entry.name, published)
    if not found.known:
        raise ValueError(f"recipe {published!r} is for data of your own, {found.data}; say where they are with data=")
    return found.known


def _recipe(
    entry: registry.Entry, data: str, resumed: Path | None, overrides: dict[str, Any], published: str = ""
) -> Recipe:
    """The recipe of a new run, or of the one to resume, with the caller's overrides."""
    arguments = {key: value for key, value in overrides.items() if key in entry.signature}
    settings = {key: value for key, value in overrides.items() if key not in arguments}
    for key in settings:
        if key not in recipes.SETTINGS:
            hint = registry.suggest(key, [*recipes.SETTINGS, *entry.signature])
            known = f"; it takes {', '.join(entry.signature)}, settings are {', '.join(recipes.SETTINGS)}"
            raise TypeError(
                f"{key!r} is neither a training setting nor an argument of {entry.name!r}{f'.{hint}' if hint else known}"
            )
    if "classes" in arguments:
        raise TypeError(f"classes follows from the data, got classes={arguments['classes']!r}; leave it out")
    if "vocabulary" in arguments:
        raise TypeError(
            f"vocabulary follows from the texts, got vocabulary={arguments['vocabulary']!r}; say how large it may be with "
            "tokenizer=..., such as words:5000"
        )
    if "places" in arguments:
        raise TypeError(f"places follows from the longest answer, got places={arguments['places']!r}; leave it out")
    if resumed is None:
        recipe = recipes.find(entry.name, data, entry.recipe, published).override(**settings)
        return dataclasses.replace(recipe, arguments={**recipe.arguments, **arguments})
    recipe = _resumed(resumed)
    if published not in ("", recipe.literature):
        raise ValueError(f"{resumed} holds a run by {recipe.literature or 'no'} recipe of the literature; leave it out")
    if recipe.model != entry.name or arguments:
        raise ValueError(f"{resumed} holds a run of {recipe.model!r}; resume it by that name and without arguments")
    known, asked = recipe.data_options, recipe.override(**settings).data_options
    if asked != known:  # test rows of another split have been learned from
        differ = [key for key in {**known, **asked} if known.get(key) != asked.get(key)]
        told = ", ".join(f"{key}={known.get(key)!r}, got {asked.get(key)!r}" for key in differ)
        raise ValueError(f"{resumed} holds a run on the split of {told}; resume it without that")
    return recipe.override(**settings)


def _built(entry: registry.Entry, source: Any, recipe: Recipe, fresh: bool = False) -> tuple[Any, Data, Recipe]:
    """The network and the splits that a recipe asks for, and the recipe with what follows from splits and weights.

    Where the weights are set by a saved state, `fresh` says that they need not be read before.
    """
    given = {name: recipe.arguments[name] for name in ("input_shape", "rate") if name in recipe.arguments}
    splits = datasets.load(source, **given, **recipe.data_options)
    signature = splits.signature
    if signature.task not in entry.tasks:
        fitting = ", ".join(registry.names(task=signature.task)[:8])
        raise ValueError(
            f"{entry.name!r} is for {', '.join(entry.tasks)}, data {splits.name!r} is {signature.task}; try {fitting}"
        )
    _check_kind(entry, splits)
    arguments = {**recipe.arguments, "input_shape": signature.preprocess.shape}
    if "classes" in entry.signature:  # of which an embedding has none
        arguments["classes"] = signature.outputs
    arguments |= _of_tokens(entry, signature)
    follows = tasks.get(signature.task).arguments
    arguments |= {name: value for name, value in follows.items() if name in entry.signature}
    if "rate" in entry.signature:
        arguments["rate"] = signature.preprocess.rate
    keras.utils.set_random_seed(recipe.seed)
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(recipe.precision)
    try:
        network = registry.get(entry.name, weights=None if fresh else recipe.weights or None, **arguments)
    finally:
        keras.config.set_dtype_policy(previous)
    scaling = recipe.scaling
    if hasattr(network, "pretrained"):
        arguments = {**network.pretrained.arguments, **arguments}
        scaling = scaling or network.pretrained.scaling
    splits = datasets.scaled(splits, scaling)
    scaling = getattr(splits.signature.preprocess, "scaling", "") or recipe.scaling
    return network, splits, dataclasses.replace(recipe, arguments=arguments, scaling=scaling)


def _check_kind(entry: registry.Entry, splits: Data) -> None:
    """Refuse data that a model of sequences cannot read, or a sequence for a model of something else."""
    sequences = {"series": "series", "tokens": "text", "audio": "audio"}
    read = [sequences.get(name, "") for name in (*entry.inputs, *entry.alternatives)]
    kind = splits.signature.preprocess.kind
    if (kind if kind in sequences.values() else "") not in read:
        cure = ""
        if "series" in read and kind == "table":
            cure = "; if its rows follow each other in time, say task=forecasting (--task on the command line)"
        raise ValueError(
            f"{entry.name!r} takes {' or '.join([*entry.inputs, *entry.alternatives])}, data {splits.name!r} is {kind}{cure}"
        )


def _of_tokens(entry: registry.Entry, signature: Signature) -> dict[str, int]:
    """Arguments of a builder that follow from a tokenizer; none where inputs are no texts."""
    step = signature.text
    if step is None:
        return {}
    separator = -1 if step.separator is None else step.separator
    found = {"vocabulary": step.vocabulary, "pad": step.pad, "separator": separator, "end": separator}
    if step.answer:
        found["places"] = step.answer
    if signature.preprocess.kind == "captioned":  # `input_shape` is that of the pictures
        found["length"] = step.length
    return {name: value for name, value in found.items() if name in entry.signature}


def _resumed(folder: Path) -> Recipe:
    """The recipe of a killed run."""
    if (folder / "metrics.json").exists():
        raise ValueError(f"the run in {folder} is finished, there is nothing to resume; train again with overwrite")
    if not (folder / "state.npz").exists():
        raise ValueError(f"there is no run to resume in {folder}: it has no state.npz; start without resume")
    return Recipe.load(folder / "recipe.json")


def _carry_out(
    network: Any,
    splits: Data,
    recipe: Recipe,
    folder: Path,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    callbacks: tuple = (),
    tensorboard: bool = False,
    diagnose: bool = False,
    save_every: int = 0,
    keep: str = "best",
    method: Method | None = None,
) -> Run:
    """Train a built network and write its run folder."""
    adapters = Adapters() if recipe.lora and method is None else None
    method = method or adapters
    if method:
        method.check(network, splits, recipe)
    _prepare(folder, resume, overwrite)
    recipe = dataclasses.replace(recipe, split_seed=splits.seed)
    recipe.save(folder / "recipe.json")
    splits.signature.save(folder / "signature.json")
    (folder / "environment.json").write_text(json.dumps(environment(splits), indent=2) + "\n", encoding="utf-8")
    if tensorboard:
        callbacks = (*callbacks, keras.callbacks.TensorBoard(str(folder / "tensorboard")))
    if not quiet:
        print(splits.summary())
        loaded = network.pretrained.notes if hasattr(network, "pretrained") else ()
        for note in (*loaded, *(adapters.told if adapters else ())):
            print(note)
    health: list = []
    started = time.perf_counter()
    history = fit(
        network,
        splits,
        recipe,
        folder=folder,
        resume=resume,
        callbacks=callbacks,
        quiet=quiet,
        save_every=save_every,
        diagnose=health if diagnose else None,
        keep=keep,
        method=method,
    )
    seconds = time.perf_counter() - started
    if adapters:
        adapters.save(folder)
    if recipe.precision != "float32":
        network = _in_float32(network, recipe)
    network.save(folder / "model.keras")

    run = Run(network, splits.signature, recipe, folder, history, {}, splits)
    reports = {part: _report(run, part) for part in ("train", "validation", "test")}
    scores = {part: report.score.score for part, report in reports.items()}
    scores["gap"] = scores["train"] - scores["test"]
    scores["baseline"] = baseline(splits)
    scores["seconds"] = round(seconds, 2)
    run.metrics.update(scores)
    (folder / "metrics.json").write_text(json.dumps(defined(scores), indent=2) + "\n", encoding="utf-8")
    verdict = _verdict(scores, reports["test"].score)
    _write_report(run, reports["test"], verdict, health)
    for scratch in ("state.npz", "best.npz"):
        (folder / scratch).unlink(missing_ok=True)
    if not quiet:
        print(f"\n{reports['test']}\n\nbaseline {scores['baseline']:.4f}, gap {scores['gap']:+.4f}")
        print(verdict)
        print(f"report in {folder / 'report.md'}")
    return run


def _in_float32(network: Any, recipe: Recipe) -> Any:
    """The same network with float32 computation; the weights of a mixed-precision model are float32 already."""
    exact = registry.get(recipe.model, **recipe.arguments)
    exact.set_weights(network.get_weights())
    return exact


def load(folder: str | Path) -> Run:
    """Read a run folder.

    Raises:
        FileNotFoundError: the folder holds no finished run.
    """
    folder = Path(folder)
    missing = [
        name
        for name in ("model.keras", "signature.json", "recipe.json", "metrics.json")
        if not (folder / name).is_file()
    ]
    if missing:
        raise FileNotFoundError(
            f"{folder} holds no finished run: {missing[0]} is missing; give the folder that a training wrote"
        )
    with (folder / "history.csv").open(newline="", encoding="utf-8") as file:
        history = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    recipe = Recipe.load(folder / "recipe.json")
    with contextlib.suppress(registry.UnknownModelError):  # a model of the user's own has no entry
        registry.import_architecture(recipe.model)
    network = keras.saving.load_model(folder / "model.keras", compile=False, safe_mode=True)
    scores = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    metrics = {name: float("nan") if score is None else score for name, score in scores.items()}
    return Run(network, Signature.load(folder / "signature.json"), recipe, folder, history, metrics)


def check_folder(
    folder: str | Path, *, resume: bool = False, overwrite: bool = False, source: Run | None = None
) -> None:
    """Refuse a folder before any work is done for the run that is to be written there.

    Args:
        folder: of the run.
        resume: go on with the killed run in it.
        overwrite: replace a run that is there.
        source: run that the new one is made from, whose own folder stays.

    Raises:
        NotADirectoryError: it is a file.
        FileExistsError: it holds something that must not be replaced.
        ValueError: it holds no killed run to resume, or it is the source's.
    """
    folder = Path(folder)
    if source is not None and source.folder is not None and folder.resolve() == source.folder.resolve():
        raise ValueError(f"{folder} holds the run itself, which stays as it is; choose another folder")
    if resume:
        _resumed(folder)
        return
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; choose another folder for the run")
    if folder.exists() and any(folder.iterdir()):
        is_run = (folder / "recipe.json").exists()
        learnt = any((folder / name).exists() for name in ("state.npz", "metrics.json"))
        if not is_run or (learnt and not overwrite):  # a run that failed before its first epoch is in nobody's way
            killed = is_run and not (folder / "metrics.json").exists()
            cure = ("resume it, " if killed else "") + ("overwrite it, " if is_run else "")
            flags = "".join(f"--{flag}, " for flag, fits in (("resume", killed), ("overwrite", is_run)) if fits)
            raise FileExistsError(
                f"{folder} is not empty; {cure}{'or ' if cure else ''}choose another folder "
                f"(on the command line {flags}{'or ' if flags else ''}--out)"
            )


def _prepare(folder: Path, resume: bool, overwrite: bool) -> None:
    """Make the folder of a new run, empty; that of a resumed one stays as it is."""
    check_folder(folder, resume=resume, overwrite=overwrite)
    if resume:
        return
    if folder.exists() and any(folder.iterdir()):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _report(run: Run, split: str) -> Report:
    part = getattr(run.data, split)
    if split == "train":  # in seeded order, so the first rows are any
        part = Split({name: lazy.pick(values, slice(JUDGED)) for name, values in part.x.items()}, part.y[:JUDGED])
    return judge(run.signature, part.y, answers(run.model, run.signature, part.x), split, x=part.x)


def baseline(data: Data) -> float:
    """Held-out score of the task's baseline, such as scikit-learn's logistic regression, on the same training rows."""
    return tasks.get(data.signature.task).baseline(datasets.scaled(data, "fitted"))


def environment(data: Data) -> dict[str, Any]:
    """Versions, hardware and data a run depends on."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": cores(),
        "backend": keras.backend.backend(),
        "packages": versions("zooroad", "keras", "tensorflow", "jax", "torch", "numpy"),
        "data": {
            "name": data.name,
            "sha256": data.sha256,
            "source": data.source,
            "licence": data.licence,
            "generated": data.generated,
        },
    }


def _write_report(run: Run, report: Report, verdict: str, health: list) -> None:
    folder, scores = run.folder, run.metrics
    task = tasks.get(run.signature.task)
    monitored = task.monitor.removeprefix("val_")
    pictures.curves(run.history, monitored, folder / "learning_curve.png")
    report.plot(folder / "confusion.png")
    better = scores["test"] - scores["baseline"]
    unit = ""
    if run.signature.valued:
        unit = f"\nLoss and rmse are in standard deviations of the target, {run.signature.target_std:.4g}.\n"
    gradient = ""
    if health:
        pictures.gradient_flow(health[0].rows, folder / "gradients.png")
        dead = {layer: share for layer, share in health[0].dead.items() if share > 0}
        listed = ", ".join(f"{layer} {share:.0%}" for layer, share in dead.items()) or "none"
        gradient = (
            f"\n## Gradient\n\n![gradient norms](gradients.png)\n\nUnits that are zero for a whole batch: {listed}.\n"
        )
    metric = report.metric
    text = f"""# {run.recipe.model} on {run.data.name}

| {metric} | score |
|---|---|
| held-out test rows, with 95 % interval | {report.score} |
| validation | {scores["validation"]:.4f} |
| training | {scores["train"]:.4f} |
| generalisation gap (training - test) | {scores["gap"]:+.4f} |
| baseline, {task.baseline_name} on the same splits | {scores["baseline"]:.4f} |
| better than the baseline by | {better:+.4f} |

{verdict}

## Learning curve

![learning curve](learning_curve.png)
{unit}
## {task.picture}

![{task.picture.lower() if report.confusion is None else "confusion matrix"}](confusion.png)

```
{report}
```
{gradient}
## Data

```
{run.data.summary()}
```

## Run

{len(run.history)} epochs in {scores["seconds"]} s, seed {run.recipe.seed}. Settings are in recipe.json, versions in
environment.json.
"""
    (folder / "report.md").write_text(text, encoding="utf-8")


def _verdict(scores, test):
    if scores["test"] < scores["baseline"]:
        return "The baseline is better: train longer, change the learning rate, or ship the baseline."
    if test.low <= scores["baseline"]:
        return "The model is not clearly better than the baseline, whose score lies within its interval."
    if scores["gap"] > 0.05:
        return "The model fits its training rows much better than new ones: try augmentation, dropout or more data."
    return "The model beats the baseline and holds on new rows."
