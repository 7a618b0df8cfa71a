"""What people send and read: image and sound files, JSON rows, CSV files and text in; labels with probabilities out."""

import csv
import io
import math
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from serve import (
    audio,
    boxes,
    continuations,
    embeddings,
    fillings,
    forecasts,
    masks,
    matches,
    series,
    sets,
    tags,
    texts,
    transcripts,
)
from serve.csv_files import LARGEST, cell_value, decoded, header_of, records, unknown_column
from serve.errors import RequestError, did_you_mean, shown
from serve.manifest import Manifest, Port
from serve.tensors import to_array

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
TOGETHER = 4  # times the pixels of the largest image allowed, for all images that are decoded at once
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
MOST_NOTES = 20
Inputs = dict[str, np.ndarray]
# tasks whose answers are more than a label or a value, each with the module for it
READERS = {
    "segmentation": masks,
    "detection": boxes,
    "embedding": embeddings,
    "forecasting": forecasts,
    "speech-recognition": transcripts,
    "image-text": matches,
    "token-classification": tags,
    "masked-language-modelling": fillings,
}


WORDED = ("token-classification", "masked-language-modelling")  # whose answers are about the words of a text
SEARCHED = ("speech-recognition",)  # whose answers are looked for among several


class Batch:
    """The rows of one body, decoded in order and a few at a time, so that many rows need little memory.

    Attributes:
        count: rows in all.
        bytes: what the rows hold before they are decoded, about.
    """

    def __init__(self, count: int, size: int, read: Callable[[int, int], tuple[Inputs, list[str]]]) -> None:
        """Wrap a reader.

        Args:
            count: rows in all.
            size: bytes of the body.
            read: gives rows `first` to `stop` (not included) as raw inputs and notes; called in order, each row once.
        """
        self.count = count
        self.bytes = size
        self._read = read
        self._next = 0

    @property
    def left(self) -> int:
        """Rows not taken yet."""
        return self.count - self._next

    def take(self, rows: int | None = None) -> tuple[Inputs, list[str]]:
        """The next rows, at most so many, all that are left if None.

        Returns:
            Raw inputs with a leading batch axis, and notes on values that the model will not understand.

        Raises:
            RequestError: a row that cannot be read; the message says which.
        """
        first = self._next
        self._next = self.count if rows is None else min(self.count, first + rows)
        return self._read(first, self._next)


def read_image(body: bytes, shape: tuple[int, ...], *, max_pixels: int) -> np.ndarray:
    """Decode an image file to a model's size, by the same steps as the training data was read.

    Open, turn upright by EXIF, convert to grey or RGB, resize bilinearly without keeping the aspect.

    Args:
        body: the file; the first frame of an animation is used.
        shape: `(height, width, channels)`; -1 keeps the file's own size.
        max_pixels: most pixels a file may declare; checked before anything is decoded.

    Returns:
        `(height, width, channels)` uint8.

    Raises:
        RequestError: not an image, too many pixels, or damaged.
    """
    height, width, channels = shape
    if channels not in MODES:
        message = f"the model takes {channels} channels, which no image file has; send a tensor to the v2 infer route"
        raise RequestError("bad_image", message)
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise RequestError(
                    "too_many_pixels",
                    f"the image is {image.width}x{image.height} pixels, the limit is {max_pixels}; send it smaller",
                    413,
                )
            if image.mode.startswith(("I", "F")):  # converting these clips at 255 instead of scaling
                message = f"the image has pixels of mode {image.mode!r}; save it with 8 bits per channel"
                raise RequestError("bad_image", message)
            upright = ImageOps.exif_transpose(image)
            if upright.mode == "P":  # as training reads it; only this mode keeps transparent colours of a palette
                upright = upright.convert("RGBA")
            upright = upright.convert(MODES[channels])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise RequestError(
            "too_many_pixels", f"the image has far more than {max_pixels} pixels; send it smaller", 413
        ) from None
    except UnidentifiedImageError:
        message = f"the body is not an image that can be read; send one of {', '.join(FORMATS)}"
        raise RequestError("bad_image", message) from None
    except RequestError:
        raise
    except Exception as error:  # damaged files raise OSError, SyntaxError, struct.error and more, by format
        message = f"the image is damaged and cannot be decoded ({type(error).__name__}); save it again"
        raise RequestError("bad_image", message) from None
    size = (upright.width if width < 0 else width, upright.height if height < 0 else height)
    if upright.size != size:
        upright = upright.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(upright, np.uint8).reshape(size[1], size[0], channels)


def image_batch(bodies: list[bytes], manifest: Manifest, *, max_pixels: int) -> Batch:
    """Image files as a model's raw input, `{"image": (batch, height, width, channels)}`, decoded when they are taken.

    Raises:
        RequestError: the model takes no image, or there is none.
    """
    port = _image_port(manifest)
    if not bodies:
        raise RequestError("bad_request", "the form holds no file; send one, as with curl -F image=@picture.png", 400)

    def read(first: int, stop: int) -> tuple[Inputs, list[str]]:
        declared = sum(map(_declared, bodies[first:stop])) if stop - first > 1 else 0
        if declared > TOGETHER * max_pixels:
            message = f"the images have {declared} pixels together, the limit is {TOGETHER * max_pixels}; send fewer"
            raise RequestError("too_many_pixels", message, 413)
        images = [read_image(body, port.shape[1:], max_pixels=max_pixels) for body in bodies[first:stop]]
        if len({image.shape for image in images}) > 1:
            message = f"{manifest.name!r} takes images of any size, but those of one request must be of one size"
            raise RequestError("bad_shape", message)
        return {port.name: np.stack(images)}, []

    return Batch(len(bodies), sum(map(len, bodies)), read)


def audio_batch(bodies: list[bytes], manifest: Manifest) -> Batch:
    """Sound files as a model's raw input, `{"audio": (batch, samples)}`, decoded when they are taken.

    Raises:
        RequestError: the model takes no recordings, or there is none.
    """
    if manifest.kind != "audio":
        raise RequestError("unsupported_media", f"{manifest.name!r} takes no recordings; {_cure(manifest)}", 415)
    if not bodies:
        raise RequestError("bad_request", "the form holds no file; send one, as with curl -F audio=@speech.wav", 400)

    def read(first: int, stop: int) -> tuple[Inputs, list[str]]:
        found = [audio.read(body, manifest) for body in bodies[first:stop]]
        notes = dict.fromkeys(note for _, own in found for note in own)
        return {manifest.inputs[0].name: np.stack([wave for wave, _ in found])}, list(notes)

    return Batch(len(bodies), sum(map(len, bodies)), read)


def _declared(body: bytes) -> int:
    """Pixels that an image file says it has; 0 for what `read_image` will refuse."""
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as image:
            return image.width * image.height
    except Exception:  # as many kinds as there are formats
        return 0


def _image_port(manifest: Manifest) -> Port:
    if manifest.kind != "image":
        raise RequestError("unsupported_media", f"{manifest.name!r} takes no image; {_cure(manifest)}", 415)
    return manifest.inputs[0]


def _cure(manifest: Manifest) -> str:
    """What to send instead, by the kind of the model."""
    if manifest.kind == "image":
        return "send an image file, as with curl -F image=@picture.png"
    if manifest.kind == "text":
        if len(manifest.inputs) > 1:
            return f"send {_example_of(port.name for port in manifest.inputs)} as JSON"
        return f'send plain text (Content-Type: text/plain), or {{"{manifest.inputs[0].name}": …}} as JSON'
    if manifest.kind == "audio":
        return "send a sound file, as with curl -F audio=@speech.wav"
    if manifest.kind == "series":
        return series.cure(manifest)
    if manifest.kind == "table":
        return f"send its columns as JSON, such as {_example(manifest)}, or a CSV file with a header row (text/csv)"
    if manifest.kind == "captioned":
        return 'send {"image": [[pixel, …], …], "text": "…"} as JSON, or use the v2 infer route'
    return "use the v2 infer route"


def _example(manifest: Manifest) -> str:
    columns = [column for port in manifest.inputs for column in port.columns][:2]
    return _example_of(columns)


def _example_of(names: Iterable[str]) -> str:
    return "{" + ", ".join(f'"{name}": …' for name in names) + "}"


def json_batch(body: Any, manifest: Manifest, size: int = 0) -> Batch:
    """Rows of parsed JSON, converted when they are taken.

    Args:
        body: for tables, an object column -> value, or a list of them; a missing key or null is a missing value.
            For images, `{"image": pixels}` with pixels nested as (height, width), (height, width, channels) or (batch,
            height, width, channels), 0 … 255. For text, `{"text": "…"}`, by the name of the input, or a list of them. For recordings `{"audio": amplitudes}`, or
            a list of them. For an image with a text see `serve.matches.read`.
        manifest: the model's.
        size: bytes of the body.

    Raises:
        RequestError: not rows at all, or pixels of the wrong shape; when taken, an unknown column or a value of the
            wrong kind.
    """
    if manifest.kind == "image":
        image = _pixels(body, manifest)
        (pixels,) = image.values()
        return Batch(len(pixels), size, lambda first, stop: ({manifest.inputs[0].name: pixels[first:stop]}, []))
    if manifest.kind == "audio":
        waves = _waves(body, manifest)
        return Batch(len(waves), size, lambda first, stop: ({manifest.inputs[0].name: waves[first:stop]}, []))
    if manifest.kind == "series":
        steps, told = series.read(body, manifest)
        name = manifest.inputs[0].name
        return Batch(len(steps), size, lambda first, stop: ({name: steps[first:stop]}, told))
    if manifest.kind == "captioned":
        pairs = matches.read(body, manifest)
        chosen = pairs.items()
        return Batch(len(pairs["text"]), size, lambda first, stop: ({k: v[first:stop] for k, v in chosen}, []))
    if manifest.kind not in ("table", "text"):
        message = f"{manifest.name!r} takes {manifest.kind!r} inputs, which have no simple form; use the v2 infer route"
        raise RequestError("unsupported_media", message, 415)
    rows = body if isinstance(body, list) else [body]
    if not rows or not all(isinstance(row, dict) for row in rows):
        if manifest.kind == "text":
            raise RequestError("bad_request", _cure(manifest), 400)
        message = f"send one object per row, such as {_example(manifest)}, or a list of such objects"
        raise RequestError("bad_request", message, 400)
    several = len(rows) > 1

    def read(first: int, stop: int) -> tuple[Inputs, list[str]]:
        named = [(f"row {first + at}: " if several else "", row) for at, row in enumerate(rows[first:stop], 1)]
        return _texts(named, manifest) if manifest.kind == "text" else _rows(named, manifest)

    return Batch(len(rows), size, read)


def text_batch(body: bytes, manifest: Manifest) -> Batch:
    """A plain text, one row.

    Raises:
        RequestError: the model takes no text, or the body is not UTF-8.
    """
    if manifest.kind != "text":
        raise RequestError("unsupported_media", f"{manifest.name!r} takes no text; {_cure(manifest)}", 415)
    if len(manifest.inputs) > 1:
        raise RequestError("unsupported_media", f"{manifest.name!r} takes two texts; {_cure(manifest)}", 415)
    text = decoded(body, "the text")
    return json_batch({manifest.inputs[0].name: text}, manifest, len(body))


def _texts(named: list[tuple[str, dict[str, Any]]], manifest: Manifest) -> tuple[Inputs, list[str]]:
    """Rows `{<port>: text}` of a text model, which may have several ports."""
    names = [port.name for port in manifest.inputs]
    for where, row in named:
        if set(row) != set(names) or not all(isinstance(text, str) for text in row.values()):
            asked = ", ".join(f'"{name}": "some text"' for name in names)
            raise RequestError("bad_value", f"{where}send {{{asked}}}, got {shown(row)}")
        for name in names:
            if not row[name].strip():
                raise RequestError("bad_value", f"{where}{name!r} is empty; write something")
    arrays = {port.name: np.array([row[port.name] for _, row in named], dtype=object) for port in manifest.inputs}
    shaped = [arrays[port.name].reshape(-1, *[1] * (len(port.shape) - 1)) for port in manifest.inputs]
    return dict(zip(names, shaped, strict=True)), []  # (batch,) or (batch, 1) each


def csv_batch(body: bytes, manifest: Manifest) -> Batch:
    """A CSV file: a header row with column names, then one row per line; an empty cell is a missing value.

    Commas, semicolons or tabs separate, double quotes enclose. Columns may stand in any order. A column that the model
    does not know, such as the answer or a number of the row, is left out with a note, unless it looks like a misspelt
    one. For a series the lines are its steps, all of one row; where the column of times is among them, they must follow
    each other as in training.

    Raises:
        RequestError: the model has no columns, the header fits none of them, or a row has more or fewer cells.
    """
    if manifest.kind not in ("table", "text", "series"):
        message = f"{manifest.name!r} has no columns that a CSV file could fill; {_cure(manifest)}"
        raise RequestError("unsupported_media", message, 415)
    text = decoded(body, "the CSV file")
    known = [column for port in manifest.inputs for column in port.columns or (port.name,)]
    times = [manifest.preprocess["time"]["column"]] if manifest.preprocess.get("time") else []
    header, separator, notes = header_of(text, [*known, *times])
    count = sum(1 for _ in records(text, separator, header))
    if not count:
        raise RequestError("bad_csv", "the CSV file has a header row but no rows below it; add at least one")
    lines = records(text, separator, header)
    numbers = {column for port in manifest.inputs if port.dtype != "BYTES" for column in port.columns}

    if manifest.kind == "series":
        (port,) = manifest.inputs
        place = {column: header.index(column) for column in port.columns if column in header}
        if absent := [column for column in port.columns if column not in place]:
            raise RequestError(
                "bad_csv", f"the CSV file has no column {', '.join(absent[:5])}; a series needs all of them"
            )
        kept = list(lines)
        if times and times[0] in header:
            at = header.index(times[0])
            series.check_times([cells[at] for _, cells in kept], [line for line, _ in kept], manifest)
        values = [[cell_value(line, name, cells[at], True) for name, at in place.items()] for line, cells in kept]
        steps, told = series.fitted(to_array(values, port.dtype, "the series"), manifest)
        return Batch(1, len(body), lambda first, stop: ({port.name: steps[None]}, notes + told))

    def read(first: int, stop: int) -> tuple[Inputs, list[str]]:
        named = []
        for line, cells in islice(lines, stop - first):
            row = {
                column: cell_value(line, column, cell, column in numbers)
                for column, cell in zip(header, cells, strict=True)
                if column in known
            }
            named.append((f"line {line}: ", row))
        inputs, told = _texts(named, manifest) if manifest.kind == "text" else _rows(named, manifest)
        return inputs, notes + told

    return Batch(count, len(body), read)


def _pixels(body: Any, manifest: Manifest) -> dict[str, np.ndarray]:
    port = _image_port(manifest)
    if not isinstance(body, dict) or list(body) != [port.name]:
        raise RequestError("bad_request", f'send {{"{port.name}": [[pixel, …], …]}} or an image file', 400)
    if not isinstance(body[port.name], list):
        raise RequestError("bad_data", f"{port.name!r} must be nested lists of pixels, 0 … 255")
    image = to_array(body[port.name], port.dtype, f"{port.name!r}")
    if image.ndim == 2:
        image = image[..., None]  # (height, width) -> (height, width, 1)
    return {port.name: image[None] if image.ndim == 3 else image}


def _waves(body: Any, manifest: Manifest) -> np.ndarray:
    """Amplitudes of one object or a list of them, (batch, samples)."""
    port, found = manifest.inputs[0], []
    for each in body if isinstance(body, list) else [body]:
        if not isinstance(each, dict) or list(each) != [port.name] or not isinstance(each[port.name], list):
            raise RequestError("bad_request", f'send {{"{port.name}": [amplitude, …]}} or a sound file', 400)
        wave = to_array(each[port.name], port.dtype, f"{port.name!r}")
        if wave.ndim != 1:
            raise RequestError("bad_shape", f"{port.name!r} must be (samples,), got {wave.shape}; send one channel")
        found.append(audio.row(wave, manifest, f"{port.name!r}"))
    if not found:
        raise RequestError("bad_request", _cure(manifest), 400)
    return np.stack(found)


def _rows(named: list[tuple[str, dict[str, Any]]], manifest: Manifest) -> tuple[Inputs, list[str]]:
    """Rows of a table, each with what a message calls it."""
    rows = [row for _, row in named]
    known = [column for port in manifest.inputs for column in port.columns]
    notes: list[str] = []
    absent = [column for column in known if any(column not in row for row in rows)]
    if absent and any(rows):
        notes.append(f"not sent, so taken as missing: {', '.join(absent[:20])}")
    columns = frozenset(known)
    for where, row in named:
        for column in row:
            if column not in columns:
                raise unknown_column(where, column, known, did_you_mean(column, known))
        if all(row.get(column) is None for column in known):
            notes.append("every value of a row is missing; its answer is that of an average row")
    inputs = {}
    for port in manifest.inputs:
        cell = _category if port.dtype == "BYTES" else _number
        data = [[cell(where, column, row.get(column)) for column in port.columns] for where, row in named]
        inputs[port.name] = to_array(data, port.dtype, f"{port.name!r}")
    for column, values in manifest.choices.items():
        for value in sorted({str(row[column]) for row in rows if row.get(column) is not None} - {*values, ""}):
            notes.append(f"column {column!r}: {shown(value)} was not seen in training and counts as missing")
    return inputs, list(dict.fromkeys(notes))[:MOST_NOTES]


def _number(where: str, column: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST:
        return float(value)
    raise RequestError(
        "bad_value", f"{where}column {column!r} must be a number within FP32 or null, got {shown(value)}"
    )


def _category(where: str, column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str) or (type(value) is int and abs(value) <= LARGEST):
        return str(value)
    raise RequestError("bad_value", f"{where}column {column!r} must be text or null, got {shown(value)}")


def to_row(inputs: dict[str, np.ndarray], row: int, manifest: Manifest) -> dict[str, Any]:
    """The JSON form of one row of raw inputs: what `json_batch` reads back, missing values as null."""
    if manifest.kind == "image":
        return {manifest.inputs[0].name: inputs[manifest.inputs[0].name][row].tolist()}
    if manifest.kind == "audio":
        wave = inputs[manifest.inputs[0].name][row]
        return {manifest.inputs[0].name: [float(f"{value:.5f}") for value in wave[~np.isnan(wave)].tolist()]}
    if manifest.kind == "series":
        steps = inputs[manifest.inputs[0].name][row]
        steps = steps[: len(steps) - int((~np.isnan(steps).all(axis=1))[::-1].argmax())]
        known = [[None if math.isnan(v) else float(str(np.float32(v))) for v in step] for step in steps.tolist()]
        return {manifest.inputs[0].name: [step[0] for step in known] if len(manifest.inputs[0].columns) == 1 else known}
    if manifest.kind == "captioned":
        return {"image": inputs["image"][row].tolist(), "text": str(inputs["text"][row])}
    if manifest.kind == "text":
        return {port.name: str(inputs[port.name][row].flat[0]) for port in manifest.inputs}
    cells: dict[str, Any] = {}
    for port in manifest.inputs:
        for column, value in zip(port.columns, inputs[port.name][row].tolist(), strict=True):
            if isinstance(value, float):  # the shortest decimal that gives the same float32
                cells[column] = None if math.isnan(value) else float(str(np.float32(value)))
            else:
                cells[column] = value or None
    return cells


def needed(manifest: Manifest) -> list[str] | None:
    """Outputs that `answers` reads; None for all."""
    reader = READERS.get(manifest.task)
    return None if reader is None else list(reader.NEEDED)


def forms(manifest: Manifest) -> tuple[str, ...]:
    """Forms in which `answers` can give what is neither label nor value, the usual one first; empty without any."""
    reader = READERS.get(manifest.task)
    return () if reader is None else reader.FORMS


def read(folder: Path, manifest: Manifest, inputs: Inputs) -> list[texts.Read] | None:
    """What the tokenizer makes of texts, where `answers` tells of their words; else None.

    Args:
        folder: of the bundle.
        manifest: the model's.
        inputs: raw inputs by name.
    """
    if manifest.task not in WORDED:
        return None
    (rows,) = inputs.values()
    return texts.read(folder, manifest, [str(text) for text in rows.ravel()])


def answers(
    outputs: dict[str, np.ndarray],
    manifest: Manifest,
    *,
    top: int,
    precision: str | None = None,
    form: str = "",
    read: list[texts.Read] | None = None,
    beams: int = 1,
) -> list[dict[str, Any]]:
    """Outputs as people read them, one per row.

    Args:
        outputs: `probabilities` (batch, classes) or `value` (batch, 1), or those that `needed` names.
        manifest: the model's.
        top: how many labels to give, most probable first.
        precision: stored form that answered, whose conformal threshold is taken; the manifest's default if None.
        form: one of `forms`, the usual one if empty.
        read: what `read` gives of the inputs.
        beams: answers that are followed at once, of a task in `SEARCHED`.

    Returns:
        `{"label", "probability", "top": [{"label", "probability"}, …]}`, or `{"value", "target"}` for regression. A
        bundle with conformal thresholds adds `"set"`, labels, most probable first, or `"low"` and `"high"`. Of a
        segmentation see `serve.masks.answers`.
    """
    reader = READERS.get(manifest.task)
    if reader is not None:
        more = [read] if read is not None else [beams] if manifest.task in SEARCHED else []
        return reader.answers(outputs, manifest, form or reader.FORMS[0], *more)
    (values,) = (outputs[port.name] for port in manifest.outputs[:1])
    limit = sets.threshold(manifest, precision)
    if manifest.task == "regression":
        around = [
            {} if limit is None else {"low": float(row[0]) - limit, "high": float(row[0]) + limit} for row in values
        ]
        target = {"target": manifest.labels[0]}
        return [{"value": float(row[0]), **target, **ends} for row, ends in zip(values, around, strict=True)]
    given = []
    inside = None if limit is None else sets.members(values, limit)
    for place, row in enumerate(values):
        order = np.argsort(-row, kind="stable")
        ranked = [{"label": manifest.labels[i], "probability": round(float(row[i]), 6)} for i in order[:top]]
        told: dict[str, Any] = {**ranked[0], "top": ranked}
        if inside is not None:
            told["set"] = [manifest.labels[i] for i in order if inside[place, i]]
        given.append(told)
    return given


def answers_csv(predictions: list[dict[str, Any]], manifest: Manifest) -> str:
    """Predictions as a CSV file with a header row.

    Args:
        predictions: what `answers` gives.
        manifest: the model's.

    Returns:
        Columns label, probability, label_2, probability_2 … or the target's name, one line per row. Of a segmentation
        the share that each label covers.
    """
    reader = READERS.get(manifest.task)
    if manifest.generation:
        return csv_of(continuations.table(predictions))
    if reader is not None:
        return csv_of(reader.table(predictions, manifest))
    if manifest.task == "regression":
        return csv_of([[*manifest.labels[:1]], *([row["value"]] for row in predictions)])
    ranks = len(predictions[0]["top"])
    ends = ["", *(f"_{rank}" for rank in range(2, ranks + 1))]
    header = [name + end for end in ends for name in ("label", "probability")]
    rows = [[cell for one in row["top"] for cell in (one["label"], one["probability"])] for row in predictions]
    return csv_of([header, *rows])


def csv_of(lines: Iterable[list[Any]]) -> str:
    """Lines of a table as a CSV file."""
    file = io.StringIO(newline="")
    csv.writer(file).writerows(lines)
    return file.getvalue()
