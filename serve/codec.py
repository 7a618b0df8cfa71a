"""What people send and read: image files, JSON rows and nested lists in; labels with probabilities out."""

import io
import math
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from serve.errors import RequestError, did_you_mean, shown
from serve.manifest import Manifest, Port
from serve.protocol import to_array

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
LARGEST = float(np.finfo(np.float32).max)
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


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


def read_images(bodies: list[bytes], manifest: Manifest, *, max_pixels: int) -> dict[str, np.ndarray]:
    """Decode image files into a model's raw input, `{"image": (batch, height, width, channels)}`.

    Raises:
        RequestError: the model takes no image, or a file cannot be read.
    """
    port = _image_port(manifest)
    if not bodies:
        raise RequestError("bad_request", "the form holds no file; send one, as with curl -F image=@picture.png", 400)
    images = [read_image(body, port.shape[1:], max_pixels=max_pixels) for body in bodies]
    if len({image.shape for image in images}) > 1:
        message = f"{manifest.name!r} takes images of any size, but those of one request must be of one size"
        raise RequestError("bad_shape", message)
    return {port.name: np.stack(images)}


def _image_port(manifest: Manifest) -> Port:
    if manifest.kind != "image":
        message = f"{manifest.name!r} takes no image; send its columns as JSON, such as {_example(manifest)}"
        raise RequestError("unsupported_media", message, 415)
    return manifest.inputs[0]


def _example(manifest: Manifest) -> str:
    columns = [column for port in manifest.inputs for column in port.columns][:2]
    return "{" + ", ".join(f'"{column}": …' for column in columns) + "}"


def read_json(body: Any, manifest: Manifest) -> tuple[dict[str, np.ndarray], list[str]]:
    """Turn parsed JSON into a model's raw inputs.

    Args:
        body: for tables, an object column -> value, or a list of them; a missing key or null is a missing value.
            For images, `{"image": pixels}` with pixels nested as (height, width), (height, width, channels) or (batch,
            height, width, channels), 0 … 255.
        manifest: the model's.

    Returns:
        Raw inputs with a leading batch axis, and notes on values that the model will not understand.

    Raises:
        RequestError: an unknown column, a value of the wrong kind, or pixels of the wrong shape.
    """
    if manifest.kind == "image":
        return _pixels(body, manifest), []
    if manifest.kind == "table":
        return _rows(body, manifest)
    message = f"{manifest.name!r} takes {manifest.kind!r} inputs, which have no simple form; use the v2 infer route"
    raise RequestError("unsupported_media", message, 415)


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


def _rows(body: Any, manifest: Manifest) -> tuple[dict[str, np.ndarray], list[str]]:
    rows = body if isinstance(body, list) else [body]
    if not rows or not all(isinstance(row, dict) for row in rows):
        message = f"send one object per row, such as {_example(manifest)}, or a list of such objects"
        raise RequestError("bad_request", message, 400)
    known = [column for port in manifest.inputs for column in port.columns]
    notes: list[str] = []
    absent = [column for column in known if any(column not in row for row in rows)]
    if absent and any(rows):
        notes.append(f"not sent, so taken as missing: {', '.join(absent[:20])}")
    columns = frozenset(known)
    for row in rows:
        for column in row:
            if column not in columns:
                message = f"no column is called {column!r} ({len(known)} are known).{did_you_mean(column, known)}"
                raise RequestError("unknown_column", message)
        if all(row.get(column) is None for column in known):
            notes.append("every value of a row is missing; its answer is that of an average row")
    inputs = {}
    for port in manifest.inputs:
        cell = _category if port.dtype == "BYTES" else _number
        data = [[cell(column, row.get(column)) for column in port.columns] for row in rows]
        inputs[port.name] = to_array(data, port.dtype, f"{port.name!r}")
    for column, values in manifest.choices.items():
        for value in sorted({str(row[column]) for row in rows if row.get(column) is not None} - {*values, ""}):
            notes.append(f"column {column!r}: {value!r} was not seen in training and counts as missing")
    return inputs, list(dict.fromkeys(notes))


def _number(column: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST:
        return float(value)
    raise RequestError("bad_value", f"column {column!r} must be a number within FP32 or null, got {shown(value)}")


def _category(column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str) or (type(value) is int and abs(value) <= LARGEST):
        return str(value)
    raise RequestError("bad_value", f"column {column!r} must be text or null, got {shown(value)}")


def to_row(inputs: dict[str, np.ndarray], row: int, manifest: Manifest) -> dict[str, Any]:
    """The JSON form of one row of raw inputs: what `read_json` reads back, missing values as null."""
    if manifest.kind == "image":
        return {manifest.inputs[0].name: inputs[manifest.inputs[0].name][row].tolist()}
    cells: dict[str, Any] = {}
    for port in manifest.inputs:
        for column, value in zip(port.columns, inputs[port.name][row].tolist(), strict=True):
            if isinstance(value, float):  # the shortest decimal that gives the same float32
                cells[column] = None if math.isnan(value) else float(str(np.float32(value)))
            else:
                cells[column] = value or None
    return cells


def answers(outputs: dict[str, np.ndarray], manifest: Manifest, *, top: int) -> list[dict[str, Any]]:
    """Outputs as people read them, one per row.

    Args:
        outputs: `probabilities` (batch, classes) or `value` (batch, 1).
        manifest: the model's.
        top: how many labels to give, most probable first.

    Returns:
        `{"label", "probability", "top": [{"label", "probability"}, …]}`, or `{"value", "target"}` for regression.
    """
    (values,) = (outputs[port.name] for port in manifest.outputs[:1])
    if manifest.task == "regression":
        return [{"value": float(row[0]), "target": manifest.labels[0]} for row in values]
    given = []
    for row in values:
        best = np.argsort(-row, kind="stable")[:top]
        ranked = [{"label": manifest.labels[i], "probability": round(float(row[i]), 6)} for i in best]
        given.append({**ranked[0], "top": ranked})
    return given
