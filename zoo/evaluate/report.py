"""Scores of a model, a run or a bundle on a split, with what is needed to act on them."""

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from zoo import tasks
from zoo.data import Data, hiding, load, names
from zoo.data.rows import digests
from zoo.data.signature import Signature
from zoo.data.texts import TextPreprocess
from zoo.evaluate import conformal, metrics
from zoo.machine import cores
from zoo.tasks import Interval

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Attributes:
        task: task name.
        split: which rows: "train", "validation" or "test".
        rows: how many.
        metric: name of `score`, larger is better.
        score: on the split, with a 95 % bootstrap interval.
        labels: class names, or the target's name.
        confusion: `(classes, classes)` counts, true class by row; None where the task has none, as regression.
        per_class: precision, recall, F1 and rows of each class; for regression the errors by name; what else the task
            has.
        answers: probabilities `(rows, classes)`, values `(rows, 1)` in the target's unit, masks uint8 `(rows, height,
            width)`, or what else the task scores.
        y: true targets.
        signature: task, labels and preprocessing of the rows.
        x: raw inputs of the rows, None where they were not at hand.
        name: what was judged.
        history: one row per epoch of the run that was judged; empty where there is none.
        intervals: of a regression, how often intervals set on the validation rows hold the target of these rows.
        written: of texts that are answered by texts, what the model wrote for the first rows; empty where it did not.
    """

    task: str
    split: str
    rows: int
    metric: str
    score: Interval
    labels: tuple[str, ...]
    confusion: np.ndarray | None
    per_class: dict[str, dict[str, float]]
    answers: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    signature: Signature = field(repr=False)
    x: dict[str, np.ndarray] | None = field(default=None, repr=False)
    name: str = "model"
    history: list[dict[str, float]] = field(default_factory=list, repr=False)
    intervals: "conformal.Coverage | None" = None
    written: tuple[str, ...] = field(default=(), repr=False)

    @cached_property
    def metrics(self) -> dict[str, Interval]:
        """Every metric of the task with its 95 % bootstrap interval, see `zoo.evaluate.metrics.measures`."""
        return metrics.intervals(self.task, self.y, self.answers)

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal sha256 of the rows' inputs and targets in their order; "" where the inputs were not at hand."""
        if self.x is None:
            return ""
        total = hashlib.sha256(b"".join(digests(self.x)))
        total.update(np.ascontiguousarray(self.y).tobytes())
        return total.hexdigest()

    def __str__(self) -> str:
        lines = [f"{self.metric} on {self.rows} {self.split} rows: {self.score}, 95 % interval"]
        others = {name: interval for name, interval in self.metrics.items() if name != self.metric}
        width = max(map(len, others))
        form = tasks.get(self.task).form
        lines += [f"  {name:<{width}}  {_shown(interval, form)}" for name, interval in others.items()]
        if self.intervals is not None:
            lines.append(f"  {self.intervals}")
        for title, table in {"": self.per_class, **tasks.get(self.task).further(self)}.items():
            lines += ["", *_table(title, table, form)]
        return "\n".join(lines)

    def to_json(self) -> str:
        """Figures without the single answers, as JSON text; what is not defined is null."""
        figures = {
            "name": self.name,
            "task": self.task,
            "split": self.split,
            "rows": self.rows,
            self.metric: vars(self.score),
            "metrics": {name: vars(interval) for name, interval in self.metrics.items()},
            "per_class": self.per_class,
            "confusion": None if self.confusion is None else self.confusion.tolist(),
        }
        if further := tasks.get(self.task).further(self):
            figures["further"] = further
        if self.intervals is not None:
            figures["intervals"] = self.intervals.described()
        return json.dumps(defined(figures), indent=2, allow_nan=False) + "\n"

    def worst(self, count: int = 16) -> np.ndarray:
        """Places of the rows with the worst answers, worst first: the least probability of the true class, or the
        largest error; of classes and masks only rows in which something was answered wrongly.
        """
        task = tasks.get(self.task)
        order = np.argsort(-task.losses(self.y, self.answers), kind="stable")
        return order[task.wrong(self.y, self.answers)[order]][:count]

    def worst_rows(self, count: int = 16) -> list[dict]:
        """The rows with the worst answers: place in the split, truth, answer and, for tables, every column."""
        task = tasks.get(self.task)
        found = task.worst_rows(self, count)
        if found is not None:
            return found
        return [
            {"row": int(row), **task.told(self.y[row], self.answers[row], self.labels), **self._columns(row)}
            for row in self.worst(count)
        ]

    def _columns(self, row: int) -> dict:
        step = self.signature.preprocess
        if self.x is None or step.kind in ("image", "series"):
            return {}
        if step.kind == "text":
            return {name: str(self.x[name][row]) for name in ("text", "second") if name in self.x}
        found = dict(zip(step.numbers, self.x["numbers"][row].tolist(), strict=True)) if step.numbers else {}
        if step.categories:
            found |= zip(step.categories, self.x["categories"][row].tolist(), strict=True)
        return found

    def plot(self, path: str | Path) -> Path:
        """Picture of the confusion matrix, of predicted against true values, or what else the task has."""
        return tasks.get(self.task).plot(self, path)

    def save(self, folder: str | Path, worst: int = 16) -> Path:
        """Write `report.md` with its pictures and tables; files of that name are replaced.

        Args:
            folder: where to.
            worst: how many of the worst answers to show.

        Returns:
            The path of `report.md`.
        """
        from zoo.evaluate import folder as written

        return written.save(self, Path(folder), worst)


def _table(title: str, rows: dict[str, dict[str, float]], form: str) -> list[str]:
    """Lines of a table of figures."""
    columns = list(next(iter(rows.values())))
    width = max(map(len, [title, *rows]))
    wide = {name: max(9, len(name)) for name in columns}
    lines = [f"{title:<{width}}  " + "  ".join(f"{name:>{wide[name]}}" for name in columns)]
    for name, row in rows.items():
        figures = (f"{row[c]:>{wide[c]}}" if c == "rows" else f"{row[c]:>{wide[c]}{form}}" for c in columns)
        lines.append(f"{name:<{width}}  " + "  ".join(figures))
    return lines


def _shown(interval: Interval, form: str) -> str:
    return f"{interval.score:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def defined(figures: Any) -> Any:
    """The same structure with None where a number is NaN or infinite, which JSON has not."""
    if isinstance(figures, dict):
        return {key: defined(value) for key, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [defined(value) for value in figures]
    return None if isinstance(figures, float) and not np.isfinite(figures) else figures


def evaluate(
    model,
    data=None,
    *,
    split: str = "test",
    precision: str | None = None,
    target: str | None = None,
    beams: int = 1,
) -> Report:
    """Score a model, a run or a bundle.

    Args:
        model: Keras model, `zoo.training.Run`, a bundle, or the path of a run folder or bundle.
        data: data set, its name or a path; a run knows its own. A name or a path is split by the seed that the model's
            own data was, so that rows of its training stay out of the test.
        split: "test" (held out), "validation" or "train".
        precision: form of a bundle, such as "fp32" or "int8", its default if None.
        target: target column of a table; a run and a bundle know the one they were trained on.
        beams: answers that are followed at once, for the likeliest of them: of a recording, see `serve.beam_search`; of a
            bundle that answers texts with texts, those that it writes.

    Returns:
        The report. That of a regression on the test split also tells how often 90 % intervals, set on the validation
        split, hold the true value.

    Raises:
        ValueError: model and data do not fit together, the split does not exist or has no rows, or beams are of no use.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be 'train', 'validation' or 'test', got {split!r}")
    candidate = Candidate.of(model, data, precision=precision, target=target, beams=beams)
    part = getattr(candidate.data, split)
    if not len(part):
        raise ValueError(f"data {candidate.data.name!r} has no {split} rows; choose another split")
    found = candidate.answers(split)
    coverage = None
    validation = candidate.data.validation
    if candidate.data.signature.task == "regression" and split == "test" and conformal.needed(0.9) <= len(validation):
        fitted = conformal.fit(validation.y, candidate.answers("validation"), level=0.9, method="residual")
        coverage = conformal.measure(fitted, part.y, found)
    written: list[str] = []
    if candidate.data.signature.task == "text-to-text":
        from zoo.evaluate import translations

        written = translations.completed(
            candidate.model, candidate.data.signature, part.y, found, part.x, candidate.precision, beams
        )
    return judge(
        candidate.data.signature,
        part.y,
        found,
        split,
        x=part.x,
        name=candidate.name,
        history=candidate.history,
        intervals=coverage,
        written=tuple(written),
    )


@dataclass(frozen=True)
class Candidate:
    """A model in any form, with the data it is judged on.

    Attributes:
        predict: `(raw inputs, signature) -> answers`.
        data: splits.
        name: of the model, to print.
        history: of a run.
        model, precision: what answers, opened.
    """

    predict: Callable[[dict[str, np.ndarray], Signature], np.ndarray]
    data: Data
    name: str
    history: list = field(default_factory=list)
    model: Any = None
    precision: str | None = None

    @classmethod
    def of(
        cls, model, data=None, *, precision: str | None = None, target: str | None = None, beams: int = 1
    ) -> "Candidate":
        """Open a model and its data; the arguments are those of `evaluate`."""
        if beams < 1:
            raise ValueError(f"beams must be at least 1, got beams={beams!r}")
        name = str(model) if isinstance(model, str | Path) else ""
        if isinstance(model, str | Path) and (Path(model) / "recipe.json").exists():
            from zoo.training import load as load_run
            from zoo.training import load_data

            model = load_run(model)
            data = load_data(model) if data is None else data
        if data is None:
            data = getattr(model, "data", None)
            if data is None:
                raise ValueError(
                    "evaluate needs data: give a name such as 'digits', a path, or a run that knows its data"
                )
        if isinstance(model, str | Path):
            model = opened(model)
        if precision is not None and (hasattr(model, "signature") or hasattr(model, "predict_on_batch")):
            raise ValueError(
                f"a precision is one of a bundle's forms, got precision={precision!r} for {name or 'a model'}; leave it out"
            )
        predict, shape = predictor(model, precision, beams)
        known = knowledge(model)
        text = ""
        if not isinstance(data, Data) and str(data) not in names():
            target, text = target or known.get("target") or None, known.get("text") or ""
        image = shape if shape and (len(shape) == 3 or known.get("rate")) else None
        drawn = not isinstance(data, Data)
        try:
            data = load(
                data,
                input_shape=image,
                target=target,
                text=text,
                tokenizer=known.get("tokenizer") or "",
                rate=known.get("rate") or 0,
                seed=known.get("seed") or 0,
                **known.get("windows", {}),
            )
        except ValueError as error:
            if image is None or "is a table" not in str(error):
                raise
            raise ValueError(
                f"{name or 'the model'} takes images, and data {str(data)!r} is a table; give data like that it was "
                "trained on"
            ) from None
        check_fit(data, known)
        sizes = {split: len(part) for split, part in data.splits.items()}
        if drawn and known.get("sha256") == data.sha256 and known["rows"] not in (None, sizes):
            raise ValueError(
                f"the model was trained on splits of {data.name!r} with other shares, {known['rows']} rows and not {sizes}, "
                "so its training rows may be among the test rows; give its own splits as a zoo.data.Data"
            )
        if not name:
            name = str(getattr(model, "folder", None) or getattr(model, "name", "") or type(model).__name__)
        told = ", ".join([*([precision] if precision else []), *([f"{beams} beams"] if beams > 1 else [])])
        shown = f"{name} ({told})" if told else name
        return cls(predict, data, shown, getattr(model, "history", None) or [], model, precision)

    def answers(self, split: str) -> np.ndarray:
        """Answers on a split as the task scores them, such as probabilities `(rows, classes)` or values `(rows, 1)`.

        Raises:
            ValueError: some are NaN or infinite.
        """
        found = self.predict(getattr(self.data, split).x, self.data.signature)
        wrong = ~np.isfinite(found.reshape(len(found), -1)).all(axis=1)
        if wrong.any():
            raise ValueError(
                f"{self.name} answers NaN or infinity to {wrong.sum():,} of {len(found):,} {split} rows, row "
                f"{wrong.argmax()} the first; there is nothing to judge"
            )
        return found


def opened(bundle):
    """A bundle as it is, or read and verified from its path."""
    from serve.manifest import Bundle, read

    return bundle if isinstance(bundle, Bundle) else read(bundle)


def knowledge(model) -> dict:
    """What a run or a bundle says of its data; nothing for a Keras model.

    Returns:
        `labels`, `columns`, `target`, the column of `text`, the `rate` of recordings, the `time` and `windows` of a
        forecast, the `seed` of its splits and, of a bundle, the hash of all rows and the size of each split.
    """
    if hasattr(model, "model") and hasattr(model, "signature"):  # a run
        step = model.signature.preprocess
        columns = () if step.kind == "image" else (*step.numbers, *step.categories)
        known = {"labels": model.signature.labels, "columns": columns, "rate": getattr(step, "rate", 0)}
        known["time"] = getattr(step, "time", {})
        season = model.recipe.season
        known |= {"windows": _windows(model.signature, step.shape, season), **model.recipe.data_options}
        return {**known, "tokenizer": step if step.kind == "text" else ""}
    if hasattr(model, "predict_on_batch"):
        return {}
    manifest = opened(model).manifest
    columns = tuple(column for port in manifest.inputs for column in port.columns)
    recipe = manifest.training.get("recipe", {})
    seed = recipe.get("split_seed")
    seed = recipe.get("seed") if seed is None else seed  # a bundle of before the two were told apart
    return {
        "labels": manifest.labels,
        "columns": columns,
        "target": recipe.get("target"),
        "text": recipe.get("text"),
        "rate": manifest.preprocess.get("rate"),
        "time": manifest.preprocess.get("time"),
        "tokenizer": _tokenizer(model) if manifest.kind == "text" else "",
        "windows": _windows(manifest, manifest.inputs[0].shape[1:], recipe.get("season", 0)),
        "seed": seed if isinstance(seed, int) else None,
        **{key: manifest.training.get("data", {}).get(key) for key in ("sha256", "rows")},
    }


def _tokenizer(bundle) -> TextPreprocess:
    """The step from texts to tokens that a bundle was made with."""
    given = opened(bundle).manifest.preprocess
    content = (opened(bundle).folder / given["tokenizer"]).read_text(encoding="utf-8")
    return TextPreprocess(**{**given, "tokenizer": content})


def _windows(model, shape: tuple[int, ...], season: int) -> dict:
    """How `zoo.data.load` cuts a long series for a forecasting model, and what else texts are read for; nothing for others."""
    if model.task in ("text-to-text", "text-to-image", hiding.TASK):
        return {"task": model.task}
    if model.task != "forecasting":
        return {}
    return {"task": model.task, "context": shape[0], "horizon": len(model.labels), "season": season}


def check_fit(data: Data, known: dict) -> None:
    """Refuse data whose classes, columns or step of time are not those that `knowledge` tells of the model's training.

    Raises:
        ValueError: they differ.
    """
    step = data.signature.preprocess
    columns = () if step.kind == "image" else (*step.numbers, *step.categories)
    for what, own, there in (
        ("labels", known.get("labels"), data.signature.labels),
        ("columns", known.get("columns"), columns),
    ):
        if own is not None and tuple(own) != tuple(there):
            raise ValueError(
                f"the model was trained for the {what} {_listed(own)}, data {data.name!r} has {_listed(there)}; "
                f"give data like that it was trained on"
            )
    own, there = known.get("time"), getattr(step, "time", {})
    if not own or not there:
        return
    if own["unit"] != there["unit"] or not math.isclose(own["step"], there["step"], rel_tol=1e-6):
        from serve import times

        apart = [times.span(each["step"], each["unit"]) for each in (own, there)]
        raise ValueError(
            f"the model was trained on rows {apart[0]} apart, data {data.name!r} has rows {apart[1]} apart; give data "
            "like that it was trained on"
        )


def _listed(words) -> str:
    return ", ".join(words[:12]) + (f" and {len(words) - 12} more" if len(words) > 12 else "") if words else "none"


def judge(signature: Signature, y: np.ndarray, answers: np.ndarray, split: str, **known) -> Report:
    """The report of answers against true targets.

    Args:
        signature: task and labels.
        y: true targets.
        answers: as the task scores them, such as probabilities `(rows, classes)`.
        split: which rows these are.
        known: further attributes of the report: `x`, `name`, `history`, `intervals`.
    """
    task = tasks.get(signature.task)
    metric = task.metric
    matrix, per_class = task.tables(y, answers, signature.labels)
    score = metrics.intervals(signature.task, y, answers, (metric,))[metric]
    return Report(
        signature.task,
        split,
        len(y),
        metric,
        score,
        signature.labels,
        matrix,
        per_class,
        answers,
        y,
        signature,
        **known,
    )


def predictor(model, precision=None, beams=1):
    """A function `(raw inputs, signature) -> answers` and the model's input shape if it is known."""
    if hasattr(model, "model") and hasattr(model, "signature"):  # a run
        signature, keras_model = model.signature, model.model
        _task(signature, beams)  # before anything is read
        return lambda x, _: answers(keras_model, signature, x, beams=beams), signature.preprocess.shape
    if hasattr(model, "predict_on_batch"):
        return lambda x, signature: answers(model, signature, x, beams=beams), tasks.main_shape(model)
    if opened(model).manifest.task in ("text-to-text", "text-to-image"):
        (port,) = opened(model).manifest.outputs
        return _told(opened(model), precision), port.shape[1:] or None
    from serve.runtime import Model

    task = _task(opened(model).manifest, beams)
    runtime = Model(opened(model), precision=precision)
    port, batch = runtime.manifest.inputs[0], runtime.max_batch

    def predict(x, signature):
        rows = len(next(iter(x.values())))
        chunks = ({name: v[i : i + batch] for name, v in x.items()} for i in range(0, rows, batch))
        return np.concatenate([_kept(task, runtime, chunk, signature) for chunk in chunks])

    return predict, port.shape[1:] if port.name in ("image", "audio") else None


def _task(described, beams):
    """The task of a signature or a manifest, which follows so many answers at once."""
    task = tasks.get(described.task)
    return task.searching(beams) if beams > 1 else task


def _told(bundle, precision):
    """Answers of the file that is told the true answer; what a server answers is written, or painted, by other files."""
    from serve.session import open_session

    session, task = open_session(bundle.model(precision), "onnxruntime", cores()), tasks.get(bundle.manifest.task)
    names, batch = list(session.outputs), min(128, bundle.manifest.max_batch or 128)

    def predict(x, signature):
        parts = []
        for start in range(0, len(x["text"]), batch):
            shown = signature.fed({name: values[start : start + batch] for name, values in x.items()})
            found = dict(zip(names, session.run(names, shown), strict=True))
            parts.append(task.judged(task.scored(found), shown))
        return np.concatenate(parts)

    return predict


def _kept(task, runtime, raw, signature) -> np.ndarray:
    """What is judged of a bundle's answers to raw inputs, of which some tokens may be hidden."""
    if "tokens" not in raw:
        return task.scored(runtime.predict(raw))
    shown = {"tokens": raw["tokens"]}
    return task.judged(task.scored(runtime.run(runtime.wanted(None), shown)), task.whole(raw, shown, signature))


def answers(model, signature, x, batch=128, beams=1) -> np.ndarray:
    """A Keras model's answers to raw inputs, preprocessed batch by batch; `beams` is that of `evaluate`.

    Raises:
        ValueError: the model was built for other inputs or outputs than the data has.
    """
    from keras import tree

    tasks.check_model(model, signature, "give the data the model was trained on")
    task, batch = _task(signature, beams), tasks.together(model, batch)
    rows = len(next(iter(x.values())))
    parts = []
    for start in range(0, rows, batch):
        some = {name: values[start : start + batch] for name, values in x.items()}
        inputs = signature.inputs(some)
        count = min(batch, rows - start)

        def filled(part, missing=batch - count):
            return np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])

        # one shape for all batches of all splits, so that the model is traced once
        raw = model.predict_on_batch(tree.map_structure(filled, inputs))
        given = [part[:count] for part in raw] if isinstance(raw, list) else np.asarray(raw)[:count]
        parts.append(task.judged(task.answer(given, signature), task.whole(some, inputs, signature)))
    return np.concatenate(parts)


def latency(bundle, precision: str | None = None, rows: int = 1, repeats: int = 200) -> float:
    """Median milliseconds of one answer in this process, after warm-up.

    Args:
        bundle: a bundle or the path of one.
        precision: stored form, the bundle's default if None.
        rows: rows per request.
        repeats: requests timed.
    """
    from serve.runtime import Model

    runtime = Model(opened(bundle), precision=precision)
    x = {name: np.resize(values, (rows, *values.shape[1:])) for name, values in runtime.examples.items()}
    times = []
    for _ in range(repeats + 20):
        started = time.perf_counter()
        runtime.predict(x)
        times.append(time.perf_counter() - started)
    return 1000 * float(np.median(times[20:]))
