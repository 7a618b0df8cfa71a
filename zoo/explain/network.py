"""A Keras model behind a subject: its inputs and answers as tensors, and what rows are compared with."""

import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.explain.probes import PASSES, Arrays, Change, called, changed, differentiable, first_of, kept, layers_of
from zoo.explain.subject import Raw, Subject

BYTES = 2**30  # of activations held at once
REMEMBERED = 8  # backgrounds of a model whose mean answers are kept
ALIKE = 1e-3  # of the largest answer, by which a model's answers may miss those of the subject


@dataclass(frozen=True)
class Attributed:
    """What a method that looks into the model found for a batch.

    Attributes:
        values: (batch, ...) in the shape of the raw numeric input, a table's columns as (batch, columns), tokens as
            (batch, length); maps as (batch, height, width), or (batch, time) of a series.
        base: what the values start from (batch,); None for maps and other values that add up to nothing.
        settings: figures it was found with, JSON types.
        prediction: what base and values add up to (batch,) where that is not an answer of `Subject.predict`, as for
            logits; None where it is.
        calls: model rows evaluated, forwards and backwards counted as one.
        complete: False when the time or the number of evaluations ended it before the tolerance was met.
        standard_error: of the values, in their shape; None where nothing is sampled.
    """

    values: np.ndarray
    base: np.ndarray | None
    settings: dict[str, Any]
    prediction: np.ndarray | None = None
    calls: int = 0
    complete: bool = True
    standard_error: np.ndarray | None = None


class Network:
    """The model of a subject, fed with what gradients can be taken for.

    Attributes:
        model: Keras model.
        points: for each thing that is differentiated, the place of its model input, and the embedding layer whose
            result stands for it where the input is integers.
        unit: "answer" if values are those of `Subject.predict`, "model output" if no reading of the model's output
            gives these.
        bounded: whether the answers are probabilities.
        chunk: rows that are run at once.
        calls: model rows evaluated so far.
    """

    def __init__(self, subject: Subject, raw: Raw, method: str, *, logits: bool = False) -> None:
        """Find out how the model takes its inputs and how its output becomes the subject's answer.

        Args:
            subject: has a Keras model.
            raw: rows to look at it with.
            method: name for messages.
            logits: take the model's output as it is.

        Raises:
            ValueError: there is no Keras model, or its integer input goes to no embedding.
        """
        self.model = subject.model
        if self.model is None:
            raise ValueError(
                f"{method} looks into a Keras model, and {subject.name!r} has only its answers; "
                "explain the run or the Keras model instead of its bundle, or take another method"
            )
        self.subject, self.method = subject, method
        self.calls = 0
        self._kept = kept(self.model)
        given = self.inputs(raw)
        self.points: list[tuple[int, Any]] = []
        for place, values in enumerate(given):
            if values.dtype.kind == "f":
                if not (subject.kind == "graph" and place):  # edges stay as they are
                    self.points.append((place, None))
            elif values.dtype.kind in "iu":
                self.points += [(place, layer) for layer in self._embeddings(given, place)]
            else:
                raise ValueError(
                    f"{method} needs numbers, {subject.name!r} takes {values.dtype}; explain the model behind its "
                    "text preprocessing, or take a method that needs predictions only"
                )
        if not self.points:
            raise ValueError(f"{method} needs an input with gradients; {subject.name!r} takes none")
        self._floats = self._kept.get(("floats", *(x.shape[1:] for x in given)), lambda: _floats(self.model, given))
        self.chunk = int(np.clip(BYTES // (8 * self._floats), 1, 256))
        self._raw, outputs = raw, None
        known, reading = vars(subject).get("_zoo_reading", (None, ()))
        if logits or known is not self._kept:  # it is another one when a layer has become another
            outputs = self._outputs(self.start(raw)[0], given)
            reading = self._read_as(outputs, raw, logits)
            if not logits and reading[2] == "answer":
                vars(subject)["_zoo_reading"] = self._kept, reading
        self._reading, self._read, self.unit, self.bounded = reading
        if outputs is not None:
            self.answered = self._numbers(outputs)

    @functools.cached_property
    def answered(self) -> np.ndarray:
        """Every answer to the rows it was made with (rows, outputs)."""
        return self.answers(*self.start(self._raw))

    def inputs(self, raw: Raw) -> Arrays:
        """The model's own inputs in its order."""
        found = self.subject.inputs(raw)
        if isinstance(found, Mapping):
            found = [found[tensor.name] for tensor in self.model.inputs]
        arrays = [np.asarray(values) for values in (found if isinstance(found, list | tuple) else [found])]
        return [values.astype(np.float32) if values.dtype.kind == "f" else values for values in arrays]

    def run(self, tensors: Sequence[Any]) -> Any:
        """The model's output for its inputs in its order, in inference mode."""
        return called(self.model, tensors)

    def answer(self, output: Any, targets: Any) -> Any:
        """The explained answer of each row, from the model's output (rows, outputs) and the targets (rows,)."""
        return _answer(self._read, output, targets)

    def read(self, output: Any) -> Any:
        """Every answer (rows, outputs), from the model's output."""
        return self._read(first_of(output))

    def start(self, raw: Raw) -> tuple[Arrays, Arrays]:
        """Values of the points (rows, ...), with integers embedded, and the model's own inputs."""
        import keras

        given = self.inputs(raw)
        found = [given[place] if layer is None else None for place, layer in self.points]
        if any(values is None for values in found):
            for place, (source, layer) in enumerate(self.points):
                if layer is not None:
                    ids = keras.ops.convert_to_tensor(given[source])
                    found[place] = keras.ops.convert_to_numpy(layer(ids)).astype(np.float32)
        return [values for values in found if values is not None], given

    def forward(self, points: list[Any], given: list[Any]) -> Any:
        """The model's output with these tensors in place of the points."""
        return _forward(self.model, self.points, points, given)

    def gradients(self) -> Callable[[Arrays, Arrays, np.ndarray], tuple[np.ndarray, Arrays]]:
        """The function (points, model inputs, targets) -> (answers (rows,), gradient for each point), for any rows."""

        model, places, read = self.model, tuple(self.points), self._read

        def run(points: list[Any], fixed: list[Any]) -> tuple[Any, list[Any]]:
            *given, targets = fixed
            return _answer(read, _forward(model, places, points, given), targets), []

        key = "gradients", places, self._reading
        function = self._kept.get(key, lambda: differentiable(model, run, reused=True))

        def all_rows(points: Arrays, given: Arrays, targets: np.ndarray) -> tuple[np.ndarray, Arrays]:
            answers, slopes, _ = self.in_chunks(function, points, [*given, targets.astype(np.int32)])
            return answers.astype(np.float64), slopes

        return all_rows

    def answers(self, points: Arrays, given: Arrays) -> np.ndarray:
        """Every answer (rows, outputs) with these values in place of the points, without gradients."""
        return self._numbers(self._outputs(points, given))

    def usual(self, rows: Arrays) -> np.ndarray:
        """Mean of every answer (outputs,) to rows that are all that the model takes.

        It is remembered as long as all weights are the same, which takes less time to see than to answer unless the
        weights are more than what the rows become inside the model.
        """
        from keras import ops

        from zoo.training.gradients import compiled

        weights = self.model.variables
        if sum(math.prod(weight.shape) for weight in weights) > len(rows[0]) * self._floats:
            return self.answers(rows, rows).mean(axis=0)

        def read() -> list[Any]:  # all in one call, as each would take as long as some layers
            return [ops.convert_to_tensor(weight) for weight in weights]

        together = self._kept.get("weights", lambda: compiled(read, self.model, after=PASSES))
        seen = hashlib.sha256()
        for values in (*map(ops.convert_to_numpy, together()), *rows):
            seen.update(values.tobytes())
        known = self._kept.get(("usual", tuple(self.points), self._reading), dict)
        key = seen.digest()
        if key not in known:
            if len(known) >= REMEMBERED:
                known.clear()
            known[key] = self.answers(rows, rows).mean(axis=0)
        return known[key]

    def _outputs(self, points: Arrays, given: Arrays) -> np.ndarray:
        """The model's output (rows, ...) with these values in place of the points."""
        import keras

        from zoo.training.gradients import compiled

        model, places = self.model, tuple(self.points)

        def run(points: list[Any], given: list[Any]) -> Any:
            points, given = keras.tree.map_structure(keras.ops.convert_to_tensor, (points, given))
            return first_of(_forward(model, places, points, given))

        function = self._kept.get(("outputs", places), lambda: compiled(run, model, after=PASSES))
        return self.in_chunks(lambda *arrays: (keras.ops.convert_to_numpy(function(*arrays)), [], []), points, given)[0]

    def _numbers(self, outputs: np.ndarray) -> np.ndarray:
        from keras import ops

        return ops.convert_to_numpy(self._read(ops.convert_to_tensor(outputs))).astype(np.float64)

    def in_chunks(
        self, function: Callable[[Arrays, Arrays], tuple[np.ndarray, Arrays, Arrays]], points: Arrays, fixed: Arrays
    ) -> tuple[np.ndarray, Arrays, Arrays]:
        """What `differentiable` gives, for any number of rows.

        Each part but a lone one has the same size, so that it is compiled once.
        """
        rows = len(points[0])
        parts = []
        for start in range(0, rows, self.chunk):
            count = min(self.chunk, rows - start)
            place = np.arange(start, start + count)
            if rows > self.chunk and count < self.chunk:
                place = np.concatenate([place, np.full(self.chunk - count, start)])
            answers, slopes, seen = function([p[place] for p in points], [f[place] for f in fixed])
            parts.append((answers[:count], [s[:count] for s in slopes], [s[:count] for s in seen]))
        self.calls += rows
        answers, slopes, seen = zip(*parts, strict=True)
        return (
            np.concatenate(answers),
            [np.concatenate(each) for each in zip(*slopes, strict=True)],
            [np.concatenate(each) for each in zip(*seen, strict=True)],
        )

    def references(self, points: Arrays, raw: Raw) -> Arrays:
        """What each row is compared with: (1 or rows, references, ...) for each point, 1 where all rows share them.

        Raises:
            ValueError: the background has another shape than the rows that are explained.
        """
        rows = self.subject.references or self.subject.background
        return self._like(rows, points) if rows else [b[:, None] for b in self._unknown(points, raw)]

    def background(self, points: Arrays, raw: Raw) -> Arrays:
        """The one thing each row is compared with: (1 or rows, ...) for each point.

        It is what masks put in place; a row's own mean of each channel, the token that stands for a gap, or zeros for
        graphs, where the subject has no background.

        Raises:
            ValueError: the background has another shape than the rows that are explained.
        """
        rows = self.subject.background
        if not rows or (self.subject.kind == "text" and self.subject.gap is not None):
            return self._unknown(points, raw)
        return [found.mean(axis=1) for found in self._like(rows, points)]

    def _like(self, rows: Raw, points: Arrays) -> Arrays:
        found, _ = self.start(rows)
        for ours, theirs in zip(found, points, strict=True):
            if ours.shape[1:] != theirs.shape[1:]:
                raise ValueError(
                    f"{self.method} needs background rows in the shape of the explained ones, {theirs.shape[1:]}, "
                    f"got {ours.shape[1:]}; give background= rows of that shape"
                )
        return [values[None] for values in found]

    def _unknown(self, points: Arrays, raw: Raw) -> Arrays:
        if self.subject.kind == "graph":
            return [np.zeros_like(x) for x in points]
        gap, padding = self.subject.gap, self.subject.padding
        swapped = {
            name: np.where(values == padding, padding, padding if gap is None else gap).astype(values.dtype)
            for name, values in raw.items()
            if values.dtype.kind in "iu"
        }
        embedded = self.start({**raw, **swapped})[0] if any(layer is not None for _, layer in self.points) else points
        return [
            np.broadcast_to(x.mean(axis=tuple(range(1, x.ndim - 1)), keepdims=True), x.shape) if layer is None else e
            for x, e, (_, layer) in zip(points, embedded, self.points, strict=True)
        ]

    def spread(self, values: Arrays) -> np.ndarray:
        """Contributions of the points in the shape of the raw input (batch, ...).

        Raises:
            ValueError: they cannot be traced back to columns.
        """
        by_input: dict[int, np.ndarray] = {}
        for (place, layer), found in zip(self.points, values, strict=True):
            own = found if layer is None else found.sum(axis=-1)
            by_input[place] = by_input[place] + own if place in by_input else own
        sides = list(by_input.values())
        if self.subject.kind == "pair":
            return np.stack(sides, axis=1)
        if len(sides) > 1:
            raise ValueError(f"{self.method} explains one input, {self.subject.name!r} has {len(sides)}")
        [only] = sides
        if self.subject.kind == "graph":
            return only.sum(axis=-1)
        if self.subject.kind == "table":
            return self._columns(only)
        step = getattr(self.subject.signature, "preprocess", None)
        return step.unordered(only) if hasattr(step, "unordered") else only

    def _columns(self, features: np.ndarray) -> np.ndarray:
        """Sums over the features that one column became."""
        columns = len(self.subject.columns)
        step = getattr(self.subject.signature, "preprocess", None)
        sizes = [1] * columns
        if step is not None:
            sizes = [*[1] * len(step.numbers), *(len(values) for values in step.categories.values())]
        if sum(sizes) != features.shape[1]:
            raise ValueError(
                f"{self.method} cannot trace {features.shape[1]} model features back to {columns} columns of "
                f"{self.subject.name!r}; give its signature, or take another method"
            )
        owner = np.repeat(np.arange(len(sizes)), sizes)
        found = np.zeros((len(features), len(sizes)))
        np.add.at(found, (slice(None), owner), features)
        return found

    def _embeddings(self, given: Arrays, place: int) -> list[Any]:
        """Embedding layers that read one of the inputs.

        Raises:
            ValueError: there are none.
        """
        import keras

        found: list[Any] = []

        def noticing(layer: Any) -> Change:
            def notice(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
                ids = keras.ops.convert_to_numpy(args[0] if args else next(iter(kwargs.values())))
                if ids.shape == given[place].shape and (ids == given[place]).all() and layer not in found:
                    found.append(layer)
                return call(*args, **kwargs)

            return notice

        layers = [layer for layer in layers_of(self.model) if isinstance(layer, keras.layers.Embedding)]
        with changed({layer: noticing(layer) for layer in layers}):
            self.run([keras.ops.convert_to_tensor(values) for values in given])
        if not found:
            raise ValueError(
                f"{self.method} needs gradients, and no keras.layers.Embedding of {self.subject.name!r} reads its input "
                f"{place} of {given[place].dtype} numbers; take a method that needs predictions only"
            )
        return found

    def _read_as(self, outputs: np.ndarray, raw: Raw, logits: bool) -> tuple[str, Callable[[Any], Any], str, bool]:
        """How the model's output becomes the answer, found by comparing the two on these rows; `unit` and `bounded`.

        Its name comes first, which is the same for the same function.
        """
        from keras import ops

        output = ops.convert_to_tensor(outputs[: self.chunk])
        few = len(outputs[: self.chunk])
        if outputs.ndim != 2:
            raise ValueError(
                f"{self.method} explains outputs (batch, outputs), {self.subject.name!r} gives {outputs.shape}; "
                "take a method that needs predictions only"
            )
        if logits:
            return "output", _as_it_is, "model output", False
        classifies = self.subject.task.endswith("classification")
        std, mean = (
            getattr(self.subject.signature, key, usual) for key, usual in (("target_std", 1), ("target_mean", 0))
        )
        readings: list[tuple[str, Callable[[Any], Any], bool]] = [
            ("output", _as_it_is, classifies),
            (f"{std} {mean}", lambda x: x * std + mean, False),
            ("sigmoid", ops.sigmoid, True),
        ]
        if outputs.shape[1] == 1:
            both = lambda x: ops.concatenate([1 - ops.sigmoid(x), ops.sigmoid(x)], axis=-1)  # noqa: E731
            readings.append(("sigmoids", both, True))
        else:
            calibration = getattr(self.subject.signature, "calibration", None)
            readings.append(("softmax", ops.softmax, True))
            readings.append((repr(calibration), functools.partial(_calibrated, calibration), True))
        expected = np.asarray(self.subject.predict({name: values[:few] for name, values in raw.items()}))
        close = ALIKE * max(float(np.abs(expected).max()), 1e-6)
        for name, read, bounded in readings:
            found = ops.convert_to_numpy(read(output))
            if found.shape == expected.shape and np.abs(found - expected).max() <= close:
                return name, read, "answer", bounded
        return "output", _as_it_is, "model output", False


def _forward(model: Any, places: Sequence[tuple[int, Any]], points: list[Any], given: list[Any]) -> Any:
    """The model's output with these tensors in place of the points, which are as in `Network.points`."""
    tensors = list(given)
    changes: dict[Any, Change] = {}
    for point, (place, layer) in zip(points, places, strict=True):
        if layer is None:
            tensors[place] = point
        else:
            changes[layer] = _constant(point)
    with changed(changes):
        return called(model, tensors)


def _answer(read: Callable[[Any], Any], output: Any, targets: Any) -> Any:
    from keras import ops

    answers = read(first_of(output))
    return ops.squeeze(ops.take_along_axis(answers, ops.expand_dims(targets, 1), axis=1), 1)


def _as_it_is(output: Any) -> Any:
    return output


def _calibrated(calibration: Any, logits: Any) -> Any:
    """Logits to probabilities as `zoo.data.signature.Calibration` has them; plain probabilities for None."""
    from keras import ops

    from zoo.data.signature import EDGE

    likely = ops.softmax(logits, axis=-1)
    if calibration is None:
        return likely
    if calibration.method == "temperature":
        return ops.softmax(logits * calibration.scale[0], axis=-1)
    within = ops.clip(likely, EDGE, 1 - EDGE)
    odds = ops.log(within) - ops.log(1 - within)
    alone = ops.sigmoid(odds * np.asarray(calibration.scale, np.float32) + np.asarray(calibration.bias, np.float32))
    return alone / ops.sum(alone, axis=-1, keepdims=True)


def _constant(value: Any) -> Change:
    return lambda call, *args, **kwargs: value


def _floats(model: Any, given: Arrays) -> int:
    """Numbers that one row takes in all layers together, roughly."""
    total = sum(int(np.prod(values.shape[1:])) for values in given)
    for layer in layers_of(model):
        try:
            shape = layer.output.shape
        except (AttributeError, ValueError):  # a layer without a graph, or called several times
            shape = ()
        total += int(np.prod([size or 64 for size in shape[1:]])) if shape else 0
    return max(total, 1)
