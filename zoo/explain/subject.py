"""What is explained: a predict function over raw inputs, and what stands for "unknown" in them."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

Raw = dict[str, np.ndarray]

KINDS = {
    "image": (("image",),),
    "table": (("numbers",), ("categories",), ("numbers", "categories")),
    "text": (("text",), ("tokens",), ("text", "second")),
    "series": (("series",),),
    "graph": (("nodes", "adjacency"),),
    "pair": (("left", "right"),),
}
"""Raw inputs that each kind may take."""

ANSWERS = {"detection": "image", "segmentation": "image"}
"""Kinds that are named after their answer, and the kind of their input."""

_AXES = {
    "image": ("height", "width", "channels"),
    "numbers": ("columns",),
    "categories": ("columns",),
    "text": (),
    "second": (),
    "tokens": ("length",),
    "series": ("time", "channels"),
    "nodes": ("nodes", "features"),
    "adjacency": ("nodes", "nodes"),
}
BATCH_BYTES = 32 * 2**20  # that the rows of one batch take inside the model: more leaves the processor's cache
LEAST_ROWS, MOST_BYTES = 16, 512 * 2**20  # fewer rows waste calls, unless they take more memory than that
INSIDE = 64  # times its input that a row takes inside a model of which nothing else is known


@dataclass(frozen=True)
class Subject:
    """A model as an explainer sees it.

    Raw inputs by kind: image `{"image": (batch, height, width, channels)}`; table `{"numbers": float32 (batch,
    columns), "categories": str (batch, columns)}`, either or both; text `{"text": str (batch,)}`, with `second` where texts
    are pairs, or `{"tokens": int (batch, length)}`; series `{"series": float32 (batch, time, channels)}`; graph `{"nodes": float32 (batch, nodes,
    features), "adjacency": float32 (batch, nodes, nodes)}`; pair `{"left": …, "right": …}`, each what `of` takes.

    Attributes:
        kind: form of the raw inputs: "image", "table", "text", "series", "graph" or "pair".
        task: meaning of the answer: "classification", "regression", "detection", "segmentation", "similarity" …; empty
            where only the answers can tell.
        labels: names of the outputs; empty where only the answers can tell their number.
        shape: of one row without the batch: `(height, width, channels)` of an image, `(time, channels)` of a series;
            empty where any size is taken.
        numbers, categories: columns of a table; channels of a series have their names in `numbers`.
        predict: raw inputs -> answers (batch, outputs), probabilities or a value. A detector answers boxes (batch,
            count, 4) as left, top, right, bottom and scores (batch, count, classes), as dictionary or tuple; or those
            of `zoo.layers.detection.NonMaxSuppression`. A segmentation answers probabilities (batch, height, width,
            classes); a graph's nodes may answer each (batch, nodes, outputs).
        background: raw rows that replace what is left out; one mean image for images. Empty: see `players`.
        background_source: where they come from.
        model: the Keras model, where there is one.
        signature: `zoo.data.Signature` that turns raw inputs into the model's, where there is one.
        references: all background rows as they were given, images not averaged.
        pixels: whether images must be uint8.
        gap: what stands in place of a word or token that is left out; None leaves a word out altogether.
        padding: token that fills short rows.
        split: text -> pieces that joined give the text; words and marks if None.
        explained: of a graph, whether "nodes" or "edges" get shares.
        of: of a pair, the subject that embeds either side.
        row_bytes: memory one row takes inside the model, roughly.
        maps: raw inputs -> class activation maps that a bundle's file gives, of the most probable class (batch, height,
            width) or of all (batch, height, width, classes); None where it gives none.
        gaps: whether a series may hold NaN: a missing value, and in all columns what stands behind a row's end.
        paired: whether a text is two, `text` and `second`, whose words share one answer.
    """

    name: str
    kind: str
    task: str
    labels: tuple[str, ...]
    shape: tuple[int, ...]
    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    predict: Callable[[Raw], Any]
    background: Raw
    background_source: str
    model: Any = None
    signature: Any = None
    references: Raw = field(default_factory=dict)
    pixels: bool = True
    gap: Any = None
    padding: int = 0
    split: Callable[[str], list[str]] | None = None
    explained: str = "nodes"
    of: Self | None = None
    row_bytes: int = 0
    maps: Callable[[Raw], np.ndarray] | None = None
    gaps: bool = False
    paired: bool = False

    @classmethod
    def of_function(cls, predict: Callable[..., Any], kind: str, **facts: Any) -> Self:
        """The subject behind any function, see `zoo.explain.sources.of_function`."""
        from zoo.explain.sources import of_function

        return of_function(predict, kind, **facts)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the explained columns, empty for other kinds than tables."""
        return (*self.numbers, *self.categories) if self.kind == "table" else ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the raw inputs."""
        if self.kind == "table":
            return (*["numbers"] * bool(self.numbers), *["categories"] * bool(self.categories))
        if self.kind == "text":
            if self.paired:
                return ("text", "second")
            return ("tokens",) if self.shape or isinstance(self.gap, int) else ("text",)
        return KINDS[self.kind][0]

    def inputs(self, raw: Raw) -> Any:
        """What the Keras model takes, from raw inputs: one array, or a list where it has several inputs."""
        if self.signature is not None:
            return self.signature.inputs(raw)
        arrays = [raw[name] for name in self.names]
        return arrays[0] if len(arrays) == 1 else arrays

    def check(self, x: Any) -> Raw:
        """Raw inputs in the types that the model takes.

        Raises:
            ValueError: a name, shape or type does not fit; the message says what is expected.
        """
        expected = self.names
        if not isinstance(x, dict):
            if len(expected) > 1:
                form = ", ".join(f'"{name}": …' for name in expected)
                raise ValueError(
                    f"{self.name!r} takes {' and '.join(expected)}; give {{{form}}}, got {'a bare array' if isinstance(x, np.ndarray) else article(type(x).__name__)}"
                )
            x = {expected[0]: x}
        if sorted(x) != sorted(expected):
            raise ValueError(
                f"{self.name!r} takes the inputs {', '.join(map(repr, expected))}, got {', '.join(map(repr, x)) or 'none'}"
            )
        raw = {name: self._array(name, x[name]) for name in expected}
        counts = {name: len(values) for name, values in raw.items()}
        if min(counts.values()) < 1 or len(set(counts.values())) > 1:
            raise ValueError(f"every input needs the same number of rows, at least one, got {counts}")
        if self.kind == "graph":
            nodes, across, down = raw["nodes"].shape[1], *raw["adjacency"].shape[1:]
            if not nodes == across == down:
                raise ValueError(
                    f"'adjacency' of {self.name!r} must be (batch, {nodes}, {nodes}) for {nodes} nodes, "
                    f"got {raw['adjacency'].shape}"
                )
        return raw

    def batches(self, raw: Raw) -> Iterator[Raw]:
        """The rows in batches that fit into memory."""
        size = self.batch(raw)
        for start in range(0, len(next(iter(raw.values()))), size):
            yield {name: values[start : start + size] for name, values in raw.items()}

    def batch(self, raw: Raw) -> int:
        """Rows that the model takes at once, by the memory that they need inside it.

        Args:
            raw: rows like those that it will take; one is enough.
        """
        given = sum(values[:1].nbytes for values in raw.values() if values.dtype != object)
        each = max(self.row_bytes or INSIDE * given, 1024)
        return max(1, BATCH_BYTES // each, min(LEAST_ROWS, MOST_BYTES // each))

    def _array(self, name: str, values: Any) -> np.ndarray:
        if self.of is not None:
            try:
                [array] = self.of.check(values).values()
            except ValueError as error:
                raise ValueError(f"the {name} side does not fit: {error}") from None
            return array
        try:
            array = np.asarray(values)
        except ValueError as error:
            raise ValueError(f"input {name!r} of {self.name!r} must have rows of one shape: {error}") from None
        array = self._of_shape(name, array)
        if name == "image":
            return self._image(array)
        if name in ("text", "second", "categories"):
            if array.dtype.kind not in "US" and not all(isinstance(value, str) for value in array.flat):
                missing = "; missing values are ''" if name == "categories" else ""
                raise ValueError(f"input {name!r} of {self.name!r} must be text, got {array.dtype}{missing}")
            return array.astype(str)
        if name == "tokens":
            if array.dtype.kind not in "iu":
                raise ValueError(f"input 'tokens' of {self.name!r} must be whole numbers, got {array.dtype}")
            return array
        try:
            array = array.astype(np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"input {name!r} of {self.name!r} must be numbers, got {array.dtype}: {error}") from None
        if np.isinf(array).any():
            missing = "; a missing number is NaN" if name == "numbers" else ""
            raise ValueError(f"input {name!r} of {self.name!r} holds infinity{missing}")
        if name == "series" and self.gaps:  # NaN is a missing value, or behind the end of a row
            return array
        if name != "numbers":
            self._no_nan(name, array)
        return array

    def _of_shape(self, name: str, array: np.ndarray) -> np.ndarray:
        """The array with a batch axis; a single row may come without."""
        axes = _AXES[name]
        sizes = {"numbers": (len(self.numbers),), "categories": (len(self.categories),)}.get(name, self.shape)
        if self.kind == "graph" and name == "adjacency":
            sizes = sizes[:1] * 2
        whole = array[None] if array.ndim == len(axes) else array
        if whole.ndim != len(axes) + 1 or (sizes and whole.shape[1:] != sizes):
            text = ", ".join(["batch", *(map(str, sizes) if sizes else axes)])
            raise ValueError(f"input {name!r} of {self.name!r} must be ({text}), got {array.shape}")
        return whole

    def _image(self, array: np.ndarray) -> np.ndarray:
        if self.pixels and array.dtype != np.uint8:
            raise ValueError(
                f"input 'image' of {self.name!r} must be uint8 pixels, 0 … 255, got {array.dtype}; scale and convert them"
            )
        if array.dtype.kind not in "iuf":
            raise ValueError(f"input 'image' of {self.name!r} must be numbers, got {array.dtype}")
        if array.dtype.kind == "f":
            self._no_nan("image", array)
        return array

    def _no_nan(self, name: str, array: np.ndarray) -> None:
        failed = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
        if len(failed):
            raise ValueError(
                f"input {name!r} of {self.name!r} holds NaN or infinity in row {failed[0]}; fill the gaps first"
            )


def article(word: str) -> str:
    """The word with "a" or "an" before it."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def fingerprint(raw: Raw) -> str:
    """SHA-256 over names, shapes and values of raw rows, in hexadecimal."""
    sha = hashlib.sha256()
    for name, values in sorted(raw.items()):
        text = values.dtype.kind == "U"
        sha.update(f"{name} {values.shape} {'text' if text else values.dtype}\n".encode())
        sha.update("\0".join(values.ravel().tolist()).encode() if text else np.ascontiguousarray(values).tobytes())
    return sha.hexdigest()
