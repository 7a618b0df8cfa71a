"""Distillation: a student learns from a teacher's answers, and on request from its inner features, beside the labels.

Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531) for soft labels; Romero et
al., "FitNets: Hints for Thin Deep Nets" (ICLR 2015, arXiv:1412.6550) for features. Departures from the latter: hints
and labels are learnt together rather than in two stages, and the teacher's features are scaled to unit mean square, so
that one weight suits any layer. As Beyer et al. (arXiv:2106.05237) found to matter, the teacher sees the very rows
that the student sees, augmentation included.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from zoo import data as datasets
from zoo import registry, tasks
from zoo.data import images
from zoo.evaluate.report import opened, predictor
from zoo.training import Run, as_run, check_folder, load, train, tune
from zoo.training.fit import Method
from zoo.training.learners import alike

CACHE_BYTES = 2**30  # teacher outputs kept in memory at most; beyond, they are computed batch by batch
_CHUNK = 128  # rows per teacher call
_LEAST = 1e-30  # probabilities below count as this, so that their logarithm is finite
SETTINGS = "distillation.json"  # beside recipe.json in the run folder


def distill(
    teacher: Any,
    student: Any,
    data: Any = None,
    *,
    out: str | Path,
    temperature: float = 4.0,
    alpha: float = 0.9,
    features: bool | Mapping[str, str] | Iterable[str] = False,
    feature_weight: float = 1.0,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    callbacks: tuple = (),
    save_every: int = 0,
    **overrides: Any,
) -> Run:
    """Train a student from a teacher and write an ordinary run folder.

    Classification: the loss is `alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T))` plus `1 - alpha` times
    the recipe's own loss on the labels. Regression: `alpha` times the squared distance to the teacher's answer, in
    standard deviations of the target, plus `1 - alpha` times the recipe's loss. What the teacher says is computed once
    where there is no augmentation, else for each augmented batch. Teacher and student may read images of different
    sizes: each gets the rows in its own.

    Args:
        teacher: run, run folder, bundle, its folder, or trained Keras model giving logits. A Keras model reads rows as
            the data's signature prepares them.
        student: name of an entry; run, run folder or Keras model to train further, of which a copy is trained.
        data: data set, its name or a path; that of the teacher's run if None.
        out: folder of the new run.
        temperature: softens both answers, above 0; without use for regression.
        alpha: weight of the teacher against the labels, in [0, 1].
        features: layers whose outputs are matched: True for the landmark `features` of both, names that both have, or
            `{teacher layer: student layer}`. The student's are brought to the teacher's number of channels by a
            learned 1x1 map, which is dropped afterwards. The teacher must be a Keras model for this.
        feature_weight: weight of the mean squared difference of features, at least 0.
        resume: go on with the killed run in `out`, exactly where its last saved state is, given the same arguments.
        overwrite: replace a run folder that is there.
        quiet: no progress bar and no lines.
        callbacks: Keras callbacks.
        save_every: batches between two saves inside an epoch; each epoch's end is always saved.
        overrides: settings of `zoo.recipes.Recipe`, or arguments of the student's builder where it is an entry.

    Returns:
        The student's run; its folder also holds `distillation.json`.

    Raises:
        KeyError: no such student.
        TypeError: teacher or student is none of these.
        ValueError: teacher and data do not fit, the teacher was never trained or answers NaN, a layer is not there,
            a value is out of range, or `out` is the teacher's own folder or has no run to resume.
        FileExistsError: the folder holds a run already.

    Source: Hinton et al. 2015, section 2; Romero et al. 2014, equation 3.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got temperature={temperature!r}; 2 to 8 are usual")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be a weight in [0, 1], got alpha={alpha!r}; 0.9 mostly follows the teacher")
    if not feature_weight >= 0:
        raise ValueError(f"feature_weight must be at least 0, got feature_weight={feature_weight!r}")
    known = Teacher(teacher)
    by_name = isinstance(student, str) and not (Path(student) / "recipe.json").exists()
    if by_name:
        registry.entry(student)  # a misspelt name is told before any data is read
    settings = {
        "temperature": temperature,
        "alpha": alpha,
        "features": _pairs(features),
        "feature_weight": feature_weight,
    }
    lesson = Distillation(known, **settings)
    check_folder(out, resume=resume, overwrite=overwrite, source=known.run)
    if resume:
        lesson.check_same(Path(out) / SETTINGS)
    common = dict(out=out, resume=resume, overwrite=overwrite, quiet=quiet, save_every=save_every, method=lesson)
    callbacks = (*callbacks, _Note(lesson, Path(out) / SETTINGS))
    source = known.recipe.get("data") if data is None else data
    if by_name:
        own = {} if resume else {name: known.recipe[name] for name in ("target", "seed") if known.recipe.get(name)}
        return train(student, source, callbacks=callbacks, **common, **{**own, **overrides})
    run = as_run(student, data if hasattr(student, "recipe") or isinstance(student, str | Path) else source)
    check_folder(out, resume=resume, overwrite=overwrite, source=run)
    network = keras.models.clone_model(run.model)
    network.set_weights(run.model.get_weights())
    return tune(run, network, callbacks=callbacks, **common, **overrides)


def _pairs(features):
    """`{teacher layer: student layer}`."""
    if features is True:
        return {"features": "features"}
    if isinstance(features, str):
        return {features: features}
    if isinstance(features, Mapping):
        return dict(features)
    return {name: name for name in features or ()}


class Teacher:
    """Who is asked: a Keras model with or without its signature, or a bundle.

    Attributes:
        run: the run, if it is one.
        network: Keras model giving logits or standardised values, None for a bundle.
        signature: the teacher's own, None where only a Keras model was given.
        recipe: what is known of its training, `data`, `target` and `seed` among it.
        labels: names of the outputs, None where unknown.
        task: what it was trained for, None where unknown.
    """

    def __init__(self, teacher):
        if isinstance(teacher, str | Path) and (Path(teacher) / "recipe.json").exists():
            teacher = load(teacher)
        if isinstance(teacher, str | Path):
            teacher = opened(teacher)
        self.run = self.network = self.signature = self.bundle = self.labels = self.task = None
        self.recipe = {}
        if hasattr(teacher, "model") and hasattr(teacher, "signature"):  # a run
            self.run, self.network, self.signature = teacher, teacher.model, teacher.signature
            self.recipe = dataclasses.asdict(teacher.recipe)
            self.labels, self.task = self.signature.labels, self.signature.task
            self.name = str(teacher.folder or teacher.recipe.model)
        elif hasattr(teacher, "predict_on_batch"):
            self.network, self.name = teacher, teacher.name
        elif hasattr(teacher, "manifest"):
            self.bundle, manifest = teacher, teacher.manifest
            self.recipe = manifest.training.get("recipe", {})
            self.labels, self.task, self.name = manifest.labels, manifest.task, str(teacher.folder)
        else:
            raise TypeError(
                f"teacher must be a run, a run folder, a bundle or a Keras model, got a {type(teacher).__name__}"
            )

    def fingerprint(self):
        """SHA-256 of the weights, in hexadecimal."""
        sha = hashlib.sha256()
        if self.bundle is not None:
            sha.update(self.bundle.model("fp32").read_bytes())
        else:
            for weight in self.network.get_weights():
                sha.update(np.ascontiguousarray(weight).tobytes())
        return sha.hexdigest()

    def attend(self, data, pairs, shapes):
        """Make ready for the student's data.

        Args:
            data: `zoo.data.Data` as the student reads it.
            pairs: names of the layers whose output is wanted.
            shapes: `(…, channels)` of the student's layer for each of them.

        Raises:
            ValueError: the teacher was made for other data, or lacks a layer.
        """
        here = data.signature
        if self.task is not None and self.task != here.task:
            raise ValueError(
                f"the teacher {self.name!r} was trained for {self.task}, data {data.name!r} is {here.task}"
            )
        if self.labels is not None and tuple(self.labels) != tuple(here.labels):
            raise ValueError(
                f"the teacher {self.name!r} knows the labels {_listed(self.labels)}, data {data.name!r} has "
                f"{_listed(here.labels)}; give data like that it was trained on"
            )
        if pairs and self.network is None:
            raise ValueError(f"the features of the bundle {self.name!r} are out of reach; give its run or Keras model")
        self.here = here
        if self.network is None:
            self._ask, self.shape = predictor(self.bundle)
            return
        self.shape = tuple(self.network.input_shape[1:])
        if self.network.output_shape[-1] != here.outputs:
            raise ValueError(
                f"the teacher {self.name!r} has {self.network.output_shape[-1]} outputs, data {data.name!r} has "
                f"{here.outputs}; give a teacher of the same task"
            )
        if self.signature is None:
            self.signature = _at(here, self.shape, self.name)
        theirs, ours = self.signature.preprocess, here.preprocess
        if theirs.kind != ours.kind or (ours.kind == "table" and theirs.features != ours.features):
            raise ValueError(f"the teacher {self.name!r} reads other columns than data {data.name!r} has")
        outputs = [
            _fitted(name, _layer(self.network, name, "teacher").output, shape)
            for name, shape in zip(pairs, shapes, strict=True)
        ]
        self._stage = keras.Model(self.network.input, [self.network.output, *outputs]) if pairs else self.network

    def raw(self, x):
        """Raw rows for the teacher from raw rows of the student's data."""
        if "image" in x and self.shape is not None:
            return {**x, "image": images.resize(x["image"], self.shape)}
        return x

    def of_inputs(self, x):
        """What the teacher says of rows in the student's own input, which augmentation may have changed."""
        if self.network is not None and self.signature.preprocess == self.here.preprocess:
            return self._predict(x)
        step = self.here.preprocess
        if step.kind != "image":
            raise ValueError(
                f"augmented rows of a table cannot be shown to {self.name!r}, which was trained on other rows; "
                "leave augment out"
            )
        return self.of_raw(self.raw({"image": np.clip(np.rint(step.pixels(x)), 0, 255).astype(np.uint8)}))

    def of_raw(self, x):
        """Logits, or values standardised as the student's; then features. `x` is raw, in the teacher's size."""
        if self.network is not None:
            return self._predict(self.signature.inputs(x))
        answers = self._ask(x, self.here)
        if self.here.task == "regression":
            return [self.here.targets(answers)]
        return [np.log(np.maximum(answers, _LEAST))]  # the same as logits but for a constant, which softmax drops

    def _predict(self, inputs):
        parts = []
        for start in range(0, len(inputs), _CHUNK):
            some = inputs[start : start + _CHUNK]
            # one shape for all calls, so that the model is traced once
            padded = np.concatenate([some, np.zeros((_CHUNK - len(some), *some.shape[1:]), np.float32)])
            found = keras.tree.flatten(self._stage.predict_on_batch(padded))
            parts.append([np.asarray(part, np.float32)[: len(some)] for part in found])
        found = [np.concatenate(part) for part in zip(*parts, strict=True)]
        if self.here.task == "regression":
            found[0] = self.here.targets(tasks.get("regression").answer(found[0], self.signature))
        return found


def _at(signature, shape, name):
    """A data signature for a model that reads images of another size."""
    step = signature.preprocess
    if step.shape == shape:
        return signature
    if step.kind != "image" or len(shape) != 3 or shape[-1] != step.shape[-1]:
        raise ValueError(
            f"the teacher {name!r} reads {shape}, the data has {step.shape}; give it as a run, which knows its preprocessing"
        )
    return dataclasses.replace(signature, preprocess=dataclasses.replace(step, height=shape[0], width=shape[1]))


def _layer(model, name, role):
    names = [layer.name for layer in model.layers]
    if name not in names:
        hint = registry.suggest(name, names) or f" It has {_listed(names)}."
        raise ValueError(f"features: the {role} {model.name!r} has no layer {name!r}.{hint}")
    layer = model.get_layer(name)
    if isinstance(layer.output, list | tuple | dict):
        raise ValueError(
            f"features: the layer {name!r} of the {role} has several outputs; name one with a single output"
        )
    return layer


def _listed(words):
    return ", ".join(map(str, words[:12])) + (f" and {len(words) - 12} more" if len(words) > 12 else "")


def _fitted(name, tensor, shape):
    """The teacher's feature in the student's places: maps resized, anything else averaged where places differ."""
    places = tuple(tensor.shape[1:-1])
    if places == tuple(shape[:-1]):
        return tensor
    if len(places) == len(shape[:-1]) == 2:
        return layers.Resizing(*shape[:-1], name=f"{name}_resized")(tensor)
    return _pooled(tensor, name)


def _pooled(tensor, name):
    """Channels averaged over all places."""
    pools = {3: layers.GlobalAveragePooling1D, 4: layers.GlobalAveragePooling2D, 5: layers.GlobalAveragePooling3D}
    rank = len(tensor.shape)
    return pools[rank](name=f"{name}_pooled")(tensor) if rank in pools else tensor


class Distillation(Method):
    """Learning from a teacher: its answers stand beside the labels in the targets, its features behind them.

    Targets are `(batch, 2 * outputs + features)`: the task's own, the teacher's, and each matched layer, flattened.
    The trained model gives the student's outputs, then its matched layers after their maps.
    """

    def __init__(self, teacher, temperature, alpha, features, feature_weight):
        self.teacher = teacher
        self.temperature, self.alpha, self.pairs, self.weight = temperature, alpha, features, feature_weight
        self.kept = {}
        self.sizes = []  # values of each matched layer

    def settings(self):
        """What decides the run beside its recipe."""
        return {
            "teacher": self.teacher.name,
            "teacher_sha256": self.teacher.fingerprint(),
            "temperature": self.temperature,
            "alpha": self.alpha,
            "features": self.pairs,
            "feature_weight": self.weight,
        }

    def check_same(self, path):
        """Refuse to resume a run with another teacher or other weights of the parts of the loss."""
        if path.is_file():
            before, now = json.loads(path.read_text(encoding="utf-8")), self.settings()
            other = [key for key in now if key != "teacher" and now[key] != before.get(key)]
            if other:
                raise ValueError(
                    f"{path.parent} was distilled with another {' and '.join(other)}; resume it with the same arguments"
                )

    def check(self, network, data, recipe):
        if not data.signature.one_number:
            raise ValueError(
                f"a teacher's answers are one label or value for each row, and the task is {data.signature.task}; "
                "train the smaller model from the labels"
            )
        if not len(data.train) or not len(data.validation):
            raise ValueError(f"data {data.name!r} has no rows for training or validation; distillation needs both")
        shapes = [tuple(_layer(network, name, "student").output.shape[1:]) for name in self.pairs.values()]
        self.teacher.attend(data, list(self.pairs), shapes)
        self.data, self.outputs = data, data.signature.outputs
        self.sources = self._sources(data, recipe)
        self.scales = [1.0] * len(self.pairs)
        if self.pairs:
            _, *found = self.teacher.of_raw(self._raw("train", np.arange(min(256, len(data.train)))))
            self.scales = [float(np.sqrt(np.mean(np.square(part)))) or 1.0 for part in found]
        self.kept["validation"] = self._say("validation", np.arange(len(data.validation)))
        self._judge(self.kept["validation"][:, : self.outputs])

    def _judge(self, raw):
        """Refuse a teacher that has learnt nothing."""
        signature, part = self.data.signature, self.data.validation
        if not np.isfinite(raw).all():
            raise ValueError(
                f"the teacher {self.teacher.name!r} answers NaN or infinity for {int((~np.isfinite(raw)).any(1).sum())} of "
                f"{len(raw)} validation rows; train it again with a lower learning rate"
            )
        task = tasks.get(signature.task)
        found = task.score(part.y, task.answer(raw, signature))
        idle = tasks.idle(signature, self.data.train.y, part.y)
        if not found > idle:
            raise ValueError(
                f"the teacher {self.teacher.name!r} scores {found:.4f} on the validation rows, no better than always the "
                f"same answer ({idle:.4f}); train it first"
            )

    def _sources(self, data, recipe):
        """Raw rows for the teacher by split: read again in the teacher's size where the source is at hand."""
        own = {"train": data.train.x, "validation": data.validation.x}
        shape, step = self.teacher.shape, data.signature.preprocess
        if step.kind != "image" or shape is None or shape == step.shape:
            return own
        if recipe.data in datasets.names() or Path(recipe.data).expanduser().exists():
            with contextlib.suppress(ValueError, OSError):
                larger = datasets.load(recipe.data, input_shape=shape, **recipe.data_options)
                if all(np.array_equal(getattr(larger, part).y, getattr(data, part).y) for part in own):
                    return {part: getattr(larger, part).x for part in own}
        return own

    def _raw(self, split, rows):
        return self.teacher.raw({name: values[rows] for name, values in self.sources[split].items()})

    def _say(self, split, rows):
        """What the teacher says of rows of a split, `(rows, outputs + features)`."""
        parts = [
            self._row(self.teacher.of_raw(self._raw(split, rows[start : start + _CHUNK])))
            for start in range(0, len(rows), _CHUNK)
        ]
        return np.concatenate(parts)

    def _row(self, found):
        answers, *features = found
        scaled = [part / scale for part, scale in zip(features, self.scales, strict=True)]
        return np.concatenate([answers, *(part.reshape(len(part), -1) for part in scaled)], axis=1)

    def begin(self, network, data, recipe):
        if not self.kept:
            self.check(network, data, recipe)
        self.augments = bool(recipe.augment)
        mapped = []
        for (theirs, ours), tensor in zip(self.pairs.items(), self._stage_outputs(), strict=True):
            feature = network.get_layer(ours).output
            if len(tensor.shape) != len(feature.shape):
                feature = _pooled(feature, ours)
            # one dense layer in every place is a 1x1 convolution
            feature = layers.Dense(tensor.shape[-1], name=f"{ours}_as_{theirs}")(feature)
            mapped.append(layers.Flatten(name=f"{ours}_as_{theirs}_flat")(feature))
        self.sizes = [feature.shape[-1] for feature in mapped]
        width = self.outputs + sum(self.sizes)
        if not recipe.augment and len(data.train) * width * 4 <= CACHE_BYTES:
            self.kept["train"] = self._say("train", np.arange(len(data.train)))
        if not mapped:
            return network
        return alike(network, layers.Concatenate(name="taught")([network.output, *mapped]))

    def _stage_outputs(self):
        return self.teacher._stage.outputs[1:] if self.pairs else []

    def targets(self, split, rows, x, y):
        if split in self.kept:
            said = self.kept[split][rows]
        elif self.augments:
            said = self._row(self.teacher.of_inputs(x))
        else:
            said = self._say(split, rows)
        return np.concatenate([y, said], axis=1)

    def loss(self, loss):
        regression = self.data.signature.task == "regression"
        temperature = None if regression else self.temperature
        return TaughtLoss(loss, self.outputs, temperature, self.alpha, tuple(self.sizes), self.weight)

    def metrics(self, metrics):
        return [_OwnPart(metric, self.outputs) for metric in metrics]


class TaughtLoss(keras.losses.Loss):
    """The recipe's loss on the labels, the teacher's answers and the teacher's features, weighed.

    Args:
        hard: Keras loss on `(labels, outputs)`.
        outputs: width of labels, of the teacher's answers and of the student's.
        temperature: of both answers; None for regression.
        alpha: weight of the teacher's answers against the labels.
        sizes: values of each matched feature.
        weight: of the mean squared difference of each feature.
    """

    def __init__(self, hard, outputs, temperature, alpha, sizes=(), weight=0.0):
        super().__init__(name="taught")
        self.hard, self.outputs, self.temperature, self.alpha = hard, outputs, temperature, alpha
        self.sizes, self.weight = sizes, weight

    def call(self, y_true, y_pred):
        n = self.outputs
        answers, teacher = y_pred[:, :n], y_true[:, n : 2 * n]
        if self.temperature is None:
            soft = ops.mean(ops.square(teacher - answers), axis=-1)
        else:
            theirs = ops.log_softmax(teacher / self.temperature)
            ours = ops.log_softmax(answers / self.temperature)
            soft = self.temperature**2 * ops.sum(ops.exp(theirs) * (theirs - ours), axis=-1)
        total = self.alpha * soft
        if self.alpha < 1:
            total = total + (1 - self.alpha) * self.hard.call(y_true[:, :n], answers)
        start = n
        for size in self.sizes:
            gap = y_true[:, n + start : n + start + size] - y_pred[:, start : start + size]
            total = total + self.weight * ops.mean(ops.square(gap), axis=-1)
            start += size
        return total  # (batch,)


class _OwnPart(keras.metrics.Metric):
    """A task's metric on the labels and the student's outputs, without what the teacher says."""

    def __init__(self, metric, outputs):
        super().__init__(name=metric.name)
        self.metric, self.outputs = metric, outputs

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.metric.update_state(y_true[:, : self.outputs], y_pred[:, : self.outputs], sample_weight)

    def result(self):
        return self.metric.result()

    def reset_state(self):
        self.metric.reset_state()


class _Note(keras.callbacks.Callback):
    """Writes down in the run folder what was distilled from whom."""

    def __init__(self, lesson, path):
        super().__init__()
        self.lesson, self.file = lesson, path

    def on_train_begin(self, logs=None):
        self.file.write_text(json.dumps(self.lesson.settings(), indent=2) + "\n", encoding="utf-8")
