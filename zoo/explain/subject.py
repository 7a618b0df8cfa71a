"""What is explained: a predict function over raw inputs, with its background, from a bundle or a Keras model."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

Raw = dict[str, np.ndarray]


@dataclass(frozen=True)
class Subject:
    """A model as an explainer sees it.

    Attributes:
        kind: "image" or "table".
        shape: `(height, width, channels)` of an image, else empty.
        numbers, categories: columns of a table.
        predict: raw inputs -> answers (batch, outputs), probabilities or a value.
        background: raw rows that replace what is left out; one mean image for images.
        background_source: where they come from.
    """

    name: str
    kind: str
    task: str
    labels: tuple[str, ...]
    shape: tuple[int, ...]
    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    predict: Callable[[Raw], np.ndarray]
    background: Raw
    background_source: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the explained columns, empty for an image."""
        return (*self.numbers, *self.categories)

    def check(self, x: Any) -> Raw:
        """Raw inputs in the types that the model takes.

        Raises:
            ValueError: a name, shape or type does not fit; the message says what is expected.
        """
        expected = (
            ["image"]
            if self.kind == "image"
            else [*["numbers"] * bool(self.numbers), *["categories"] * bool(self.categories)]
        )
        if not isinstance(x, dict):
            if len(expected) > 1:
                raise ValueError(
                    f'{self.name!r} takes numbers and categories; give {{"numbers": …, "categories": …}}, got a bare array'
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
        return raw

    def _array(self, name: str, values: Any) -> np.ndarray:
        shape = {"image": self.shape, "numbers": (len(self.numbers),), "categories": (len(self.categories),)}[name]
        array = np.asarray(values)
        if array.shape == shape:
            array = array[None]
        if array.shape[1:] != shape:
            text = ", ".join(map(str, shape))
            raise ValueError(f"input {name!r} of {self.name!r} must be (batch, {text}), got {array.shape}")
        if name == "image":
            if array.dtype != np.uint8:
                raise ValueError(
                    f"input 'image' of {self.name!r} must be uint8 pixels, 0 … 255, got {array.dtype}; scale and convert them"
                )
            return array
        if name == "categories":
            if array.dtype.kind not in "US" and not all(isinstance(value, str) for value in array.flat):
                raise ValueError(
                    f"input 'categories' of {self.name!r} must be text, got {array.dtype}; missing values are ''"
                )
            return array.astype(str)
        try:
            array = array.astype(np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"input 'numbers' of {self.name!r} must be numbers, got {array.dtype}: {error}") from None
        if np.isinf(array).any():
            raise ValueError(f"input 'numbers' of {self.name!r} holds infinity; a missing number is NaN")
        return array


def subject_of(model: Any, signature: Any, background: Raw | None, precision: str | None) -> Subject:
    """The subject behind a bundle, a bundle's folder, a run or a Keras model.

    Raises:
        ValueError: a Keras model without signature, or a background that does not fit.
    """
    if isinstance(model, str | Path):
        from serve.manifest import read

        model = read(model)
    if hasattr(model, "manifest"):
        return _of_bundle(model, background, precision)
    if hasattr(model, "model") and hasattr(model, "signature"):  # a run
        model, signature = model.model, signature or model.signature
    if signature is None:
        raise ValueError(
            f"a {type(model).__name__} can only be explained with its signature; "
            "give signature=, such as a run's or data's, or explain its bundle"
        )
    return _of_keras(model, signature, background)


def _of_bundle(bundle: Any, background: Raw | None, precision: str | None) -> Subject:
    manifest = bundle.manifest
    ports = {port.name: port for port in manifest.inputs}
    path = bundle.model(precision)
    live = _session(str(path), path.stat().st_mtime_ns)
    output = manifest.outputs[0].name

    def predict(raw: Raw) -> np.ndarray:
        wire = {name: values.astype(object) if values.dtype.kind == "U" else values for name, values in raw.items()}
        return live.run([output], wire)[0]

    source = "given"
    if background is None:
        source = "rows of the training split, in the bundle"
        background = _stored(bundle, "background.npz")
    return _finish(
        name=manifest.name,
        kind=manifest.kind,
        task=manifest.task,
        labels=manifest.labels,
        shape=tuple(ports["image"].shape[1:]) if "image" in ports else (),
        numbers=ports["numbers"].columns if "numbers" in ports else (),
        categories=ports["categories"].columns if "categories" in ports else (),
        predict=predict,
        background=background,
        background_source=source,
    )


@lru_cache(maxsize=4)
def _session(path: str, _changed: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _of_keras(model: Any, signature: Any, background: Raw | None) -> Subject:
    def predict(raw: Raw) -> np.ndarray:
        from zoo import tasks

        logits = model.predict_on_batch(signature.inputs(raw))
        return tasks.get(signature.task).answer(logits, signature)

    return subject_with(model.name, signature, predict, background)


def subject_with(
    name: str, signature: Any, predict: Callable[[Raw], np.ndarray], background: Raw | None = None
) -> Subject:
    """The subject behind a function from raw inputs to answers.

    Args:
        name: what it is called in messages.
        signature: `zoo.data.Signature` of its inputs and answers.
        predict: raw inputs -> answers (batch, outputs).
        background: raw rows that stand for "unknown"; the training mean of the signature if None.

    Raises:
        ValueError: the background does not fit.
    """
    step = signature.preprocess
    image = step.kind == "image"
    source = "given"
    if background is None:
        source = "training mean of the signature"
        if image:
            pixels = np.clip(np.rint(step.mean), 0, 255).astype(np.uint8)
            background = {"image": np.broadcast_to(pixels, (1, *step.shape)).copy()}
        else:
            background = {"numbers": np.asarray([step.mean], np.float32)} if step.numbers else {}
            if step.categories:
                background["categories"] = np.full((1, len(step.categories)), "")
    return _finish(
        name=name,
        kind=step.kind,
        task=signature.task,
        labels=signature.labels,
        shape=step.shape if image else (),
        numbers=() if image else step.numbers,
        categories=() if image else tuple(step.categories),
        predict=predict,
        background=background,
        background_source=source,
    )


def _finish(**facts: Any) -> Subject:
    """The subject with its background checked, for images averaged to one."""
    subject = Subject(**facts)
    try:
        background = subject.check(subject.background)
    except ValueError as error:
        raise ValueError(f"the background does not fit: {error}") from None
    if subject.kind == "table":
        return replace(subject, background=background)
    mean = np.rint(background["image"].mean(axis=0, keepdims=True)).astype(np.uint8)
    return replace(
        subject, background={"image": mean}, background_source=f"{subject.background_source}, averaged to one image"
    )


def examples(bundle: Any, image: str | Path | None = None, rows: int = 4) -> Raw:
    """Raw inputs to try an explanation on.

    Args:
        bundle: whose model is to be explained.
        image: picture file, turned upright and brought to the model's size; the bundle's golden rows if None.
        rows: number of golden rows, from the first.

    Raises:
        ValueError: the model takes no image, or the file is none.
    """
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got rows={rows}")
    if image is None:
        return {name: values[:rows] for name, values in _stored(bundle, "golden.npz").items()}
    if bundle.manifest.kind != "image":
        raise ValueError(f"{bundle.manifest.name!r} takes no image but a {bundle.manifest.kind}; leave the image out")
    from zoo.data.images import open_image

    [port] = bundle.manifest.inputs
    return {port.name: open_image(Path(image), tuple(port.shape[1:]))[None]}


def _stored(bundle: Any, file: str) -> Raw:
    """Input rows that a bundle carries.

    Raises:
        ValueError: it carries none.
    """
    path = bundle.folder / file
    if not path.is_file():
        raise ValueError(f"bundle {bundle.manifest.name!r} has no {file}; export it again, or give the rows yourself")
    with np.load(path, allow_pickle=False) as arrays:
        return {name.removeprefix("input/"): arrays[name] for name in arrays.files if name.startswith("input/")}


def fingerprint(raw: Raw) -> str:
    """SHA-256 over names, shapes and values of raw rows, in hexadecimal."""
    sha = hashlib.sha256()
    for name, values in sorted(raw.items()):
        text = values.dtype.kind == "U"
        sha.update(f"{name} {values.shape} {'text' if text else values.dtype}\n".encode())
        sha.update("\0".join(values.ravel().tolist()).encode() if text else np.ascontiguousarray(values).tobytes())
    return sha.hexdigest()
