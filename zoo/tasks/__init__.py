"""Tasks: what a model is trained for decides its loss, its metric, how its output is read and how it is judged.

A task object answers for every model that is trained for it; architecture files know nothing of losses or metrics, and
whoever trains, judges, exports or explains asks the task and does not look at its name. What true targets look like
before any model sees them is in `zoo.data.targets`; what people get from a server is in `serve.codec`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

ROOM = 2**28  # bytes that the answers of a batch take at most where they are judged
_FILES = {
    "classification": "classification",
    "image-classification": "classification",
    "series-classification": "classification",
    "text-classification": "classification",
    "regression": "regression",
    "forecasting": "forecasting",
    "segmentation": "segmentation",
    "embedding": "embedding",
    "detection": "detection",
    "speech-recognition": "speech",
    "language-modelling": "language",
    "text-to-text": "translation",
    "image-text": "image_text",
    "text-to-image": "text_to_image",
    "masked-language-modelling": "masked_language",
    "token-classification": "token_classification",
}


@dataclass(frozen=True)
class Output:
    """One named tensor of an answer.

    Attributes:
        name: the same in the ONNX file, the manifest and the protocol.
        dtype: Open Inference Protocol datatype, such as "FP32", "UINT8", "INT32" or "BOOL".
        shape: sizes after the batch, -1 where free.
        axes: a name for each.
        range: smallest and largest meaningful value, None if unbounded.
        unit: what a value means.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    range: tuple[float, float] | None = None
    unit: str = ""


class Task(Protocol):
    """What training, evaluation, export and explanation ask of a task.

    Its file loads Keras inside the functions that need it, since a bundle is judged without Keras.

    Three forms of an answer occur: **raw**, what the model gives (logits; one tensor, or a list where it gives several);
    **answers**, named tensors as a file or a server gives them; and **scored**, the one array with a row for each row
    of the data that figures are made from. A task whose answer is one array need only say its name as `output`.

    Attributes:
        metric: name of the score, larger is better; the first of `measures`.
        monitor: Keras metric followed while training.
        mode: "max" or "min", the better direction of `monitor`.
        output: name of the tensor that is scored, where it is one.
        baseline_name: what `baseline` trains.
        picture: title of what `plot` draws.
        form: how a figure is printed.
        pictorial: whether answers are best looked at; a report then shows the first rows too.
        arguments: of builders, that follow from the task where a builder has them.
        writes: whether the model can be asked for a text, token by token; its bundle then holds a decoder.
        paints: the same of a picture, code by code.
        smooth: whether the gradient says all of how the loss answers to a weight; not so where training chooses by the
            weights what answers for what, and passes no gradient through that choice.
    """

    metric: str
    monitor: str = "val_loss"
    mode: str = "min"
    output: str
    baseline_name: str
    picture: str
    form: str = ".4f"
    pictorial: bool = False
    arguments: ClassVar[dict[str, Any]] = {}
    smooth: bool = True
    writes: bool = False
    paints: bool = False

    # ---- training

    def raw_shape(self, signature: Any) -> tuple[int, ...] | None:
        """Shape of the model's one raw output without the batch; None where the architecture decides it."""
        return (signature.outputs,)

    def loss(self, name: str, label_smoothing: float) -> Any:
        """Keras loss on `(encoded targets, raw outputs)`; `name` is "" for the task's own."""

    def loss_for(self, model: Any, name: str, label_smoothing: float) -> Any:
        """The same for a model at hand; to be replaced where a loss must know more of it than its outputs.

        None for a model that computes its loss itself.
        """
        return self.loss(name, label_smoothing)

    def idle_raw(self, y: np.ndarray) -> np.ndarray | None:
        """Raw outputs for encoded targets that never change, with the least loss; None where there are none to give."""
        return None

    def learner(self, model: Any, data: Any, recipe: Any) -> Any:
        """The model to train: the given one, with what only training needs behind it; it shares all layers."""
        return model

    def order(self, targets: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """In which order an epoch takes the rows of training targets, as `Signature.targets` gives them."""
        return generator.permutation(len(targets))

    def drawn(
        self, raw: dict[str, np.ndarray], signature: Any, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Model input and encoded targets of a training batch, where they are drawn anew each time; None elsewhere.

        Args:
            raw: inputs of the rows.
            signature: `zoo.data.Signature`.
            generator: which follows from seed, epoch and batch.
        """
        return None

    def metrics(self) -> list[Any]:
        """Fresh Keras metrics on the same; none where the loss says enough while training."""
        return []

    def encode(self, targets: np.ndarray, outputs: int) -> np.ndarray:
        """Targets of a batch, as `Signature.targets` gives them, as the loss wants them; float32, batch first."""
        return np.asarray(targets, np.float32)

    # ---- answers

    def outputs(self, signature: Any) -> tuple[Output, ...]:
        """Tensors of an answer, in the order of the file."""

    def decode(self, raw: Any, signature: Any) -> dict[str, Any] | None:
        """Raw outputs to answers, written in `keras.ops`: it becomes a part of every exported file.

        None where `export.edges` writes the ONNX nodes itself.
        """
        return None

    def answers(self, raw: Any, signature: Any) -> dict[str, np.ndarray]:
        """The same as arrays. A task without `decode` computes them here."""
        import keras

        return {name: keras.ops.convert_to_numpy(value) for name, value in self.decode(raw, signature).items()}

    def decode_of(self, raw: Any, inputs: Any, signature: Any) -> dict[str, Any] | None:
        """`decode` by whoever has the model's own inputs; to be replaced where answers are about these."""
        return self.decode(raw, signature)

    def answers_of(self, raw: Any, inputs: Any, signature: Any) -> dict[str, np.ndarray]:
        """`answers`, as `decode_of`."""
        return self.answers(raw, signature)

    def scored(self, answers: dict[str, np.ndarray]) -> np.ndarray:
        """What figures are made from, a row for each row: one of the answers, or several packed into one array."""
        return answers[self.output]

    def answer(self, raw: Any, signature: Any) -> np.ndarray:
        """`scored` of raw outputs; to be replaced where that needs less than all answers."""
        return self.scored(self.answers(raw, signature))

    def searching(self, beams: int) -> "Task":
        """The task where so many answers are followed at once, for the likeliest of them.

        Args:
            beams: at least 2.

        Raises:
            ValueError: its answers are not put together from parts.
        """
        raise ValueError(
            "beams are for models that write down speech, and for bundles that answer texts with texts, "
            f"got beams={beams}; leave it out"
        )

    def judged(self, scored: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """What is kept of scored answers until they are judged; to be replaced where they are large.

        Args:
            scored: as `scored` gives them.
            inputs: the model's, of the same rows, with nothing hidden.
        """
        return scored

    def whole(self, raw: dict[str, np.ndarray], inputs: Any, signature: Any) -> Any:
        """The model's inputs of rows, with what a task hides in them; `inputs` themselves where it hides nothing."""
        return inputs

    # ---- judging

    def measures(self, y: np.ndarray, scored: np.ndarray) -> dict[str, Any]:
        """Metrics by name, the task's own first: functions of bootstrap weights, see `zoo.evaluate.metrics`."""

    def score(self, y: np.ndarray, scored: np.ndarray) -> float:
        """The task's score of answers against true targets."""
        return float(self.measures(y, scored)[self.metric](np.ones((1, len(y))))[0])

    def losses(self, y: np.ndarray, scored: np.ndarray) -> np.ndarray:
        """How wrong each row is, `(rows,)`, 0 where it is right."""

    def wrong(self, y: np.ndarray, scored: np.ndarray) -> np.ndarray:
        """Rows that may be shown among the worst, bool `(rows,)`."""
        return np.ones(len(y), bool)

    def constant(self, known: np.ndarray, rows: int, outputs: int) -> np.ndarray:
        """Scored answers for so many rows that never change: the best that can be said without looking at a row.

        Args:
            known: training targets.
            rows: how many.
            outputs: labels that there are.
        """

    def baseline(self, data: Any) -> float:
        """Held-out score of something simple that learned from the same training rows."""

    def tables(
        self, y: np.ndarray, scored: np.ndarray, labels: tuple[str, ...]
    ) -> tuple[np.ndarray | None, dict[str, dict[str, float]]]:
        """Confusion matrix, counts `(labels, labels)` with the true one by row, None where there is none; and for each
        label (or the target) its figures by name, "rows" being counts.
        """

    def further(self, report: Any) -> dict[str, dict[str, dict[str, float]]]:
        """Further tables of a `zoo.evaluate.Report` by title: rows by name, and of each its figures by name."""
        return {}

    def told(self, y: np.ndarray, scored: np.ndarray, labels: tuple[str, ...]) -> dict[str, Any]:
        """Truth and answer of one row in words and figures, the same keys for every row."""

    def worst_rows(self, report: Any, count: int) -> list[dict[str, Any]] | None:
        """What a `zoo.evaluate.Report` shows as its worst, where that is no list of single rows; None where it is."""
        return None

    def plot(self, report: Any, path: str | Path) -> Path:
        """Picture of a whole `zoo.evaluate.Report`."""

    def show(self, report: Any, rows: list[int], path: str | Path) -> Path:
        """Picture of some rows whose inputs are images, with truth and answer."""


@dataclass(frozen=True)
class Interval:
    """A score with a 95 % interval."""

    score: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.score:.4f} [{self.low:.4f}, {self.high:.4f}]"


def get(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: no such task.
    """
    if name not in _FILES:
        raise ValueError(f"there is no task {name!r}; tasks are {', '.join(_FILES)}")
    return import_module(f"zoo.tasks.{_FILES[name]}").TASK


def decodes(task: Task) -> bool:
    """Whether the task writes its `decode` in `keras.ops`."""
    return type(task).decode is not Task.decode


def log_shares(y: np.ndarray) -> np.ndarray:
    """Logarithm of the share of each class among one-hot targets (rows, …, classes), for each row."""
    return np.repeat(np.log(np.maximum(y.mean(axis=0, keepdims=True), 1e-7)), len(y), axis=0)


def check_loss(what: str, own: str, name: str, label_smoothing: float) -> None:
    """Refuse another loss than the one a task has, and smoothed labels where that has none.

    Args:
        what: the task and "has", for the message.
        own: name of its loss.
        name, label_smoothing: what is asked for.

    Raises:
        ValueError: they are others.
    """
    if name not in ("", own) or label_smoothing:
        raise ValueError(
            f"{what} the loss {own!r} without label_smoothing, got loss={name!r}, label_smoothing={label_smoothing!r}; "
            "leave them out"
        )


def check_model(model: Any, signature: Any, advice: str) -> None:
    """Refuse a model whose input is not the data's, or whose output is not what the task needs.

    Args:
        model: Keras model.
        signature: `zoo.data.Signature`.
        advice: end of the message.

    Raises:
        ValueError: it does not fit.
    """
    given, wanted = signature.shapes, get(signature.task).raw_shape(signature)
    found = model.output_shape
    every = list(found.values()) if isinstance(found, dict) else found if isinstance(found, list) else [found]
    shapes = [tuple(shape[1:]) for shape in every]
    own = input_shapes(model)
    if own != given or (wanted is not None and shapes != [wanted]):
        raise ValueError(
            f"the model maps {shapes_told(own)} to {', '.join(map(str, shapes))}, {signature.task} of the data "
            f"maps {shapes_told(given)}{f' to {wanted}' if wanted else ''}; {advice}"
        )


def input_shapes(model: Any) -> dict[str, tuple[int | None, ...]]:
    """Shape of each input of a Keras model without the batch, by name; the name is "" where there is one input alone."""
    found = model.input_shape
    if isinstance(found, dict | list) and len(model.inputs) > 1:
        return {tensor.name: tuple(tensor.shape[1:]) for tensor in model.inputs}
    [shape] = found.values() if isinstance(found, dict) else found if isinstance(found, list) else [found]
    return {"": tuple(shape[1:])}


def main_shape(model: Any) -> tuple[int | None, ...]:
    """Shape without the batch of the only input, or of the image, or else of the tokens: the builder's `input_shape`."""
    shapes = input_shapes(model)
    return next(shapes[name] for name in ("", "image", "tokens", *shapes) if name in shapes)


def together(model: Any, most: int, room: int = ROOM) -> int:
    """Rows of a batch, at least one and at most `most`, whose answers take no more than `room` bytes.

    A language model answers with a number for each token of its vocabulary at each place: 200 MB for a text of 1,024 places.
    """
    outputs = getattr(model, "outputs", ())  # what only answers has none, and is asked for as many rows as wanted
    values = sum(math.prod(size or 1 for size in output.shape[1:]) for output in outputs)
    return max(1, min(most, room // (4 * max(1, values))))


def main_input(model: Any) -> Any:
    """The tensor of which `main_shape` is the shape."""
    named = {tensor.name: tensor for tensor in model.inputs}
    return named.get("image", named.get("tokens", model.inputs[0]))


def shapes_told(shapes: Mapping[str, tuple[int | None, ...]]) -> str:
    """Shapes of inputs in words."""
    return " and ".join(f"{name} {shape}" if name else str(shape) for name, shape in shapes.items())


def idle(signature: Any, known: np.ndarray, y: np.ndarray) -> float:
    """Score of an answer that never changes.

    Args:
        signature: `zoo.data.Signature`, with task and labels.
        known: training targets.
        y: targets to be scored on.
    """
    task = get(signature.task)
    return task.score(y, task.constant(known, len(y), signature.outputs))


def interval(task: Task, y: np.ndarray, answer: np.ndarray, resamples: int = 1000, seed: int = 0) -> Interval:
    """Score with a percentile bootstrap interval over rows (Efron & Tibshirani 1993, chapter 13)."""
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, len(y), (resamples, len(y)))
    scores = [task.score(y[rows], answer[rows]) for rows in draws]
    low, high = np.nanpercentile(scores, [2.5, 97.5])
    return Interval(task.score(y, answer), float(low), float(high))
