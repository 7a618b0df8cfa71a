"""A user's own files: a folder of images, a table, or arrays."""

from pathlib import Path

import numpy as np

from zoo.data import coco, corpus, hiding, identities, images, masks, tagging, text_files
from zoo.data.rows import OPEN, PARTS, Rows
from zoo.data.targets import KINDS
from zoo.registry import suggest


def read(path: Path, input_shape: tuple[int, ...] | None, target: str | None, task: str | None, text: str = "") -> Rows:
    """Rows of a folder, `.csv`, `.parquet`, `.npz`, `.txt` or COCO `.json`; the arguments are those of `zoo.data.load`.

    Raises:
        ValueError: another kind of file, or something in it that cannot be used.
    """
    kind = "folder" if path.is_dir() else path.suffix.lower()
    if text and kind not in (".csv", ".tsv", ".parquet"):
        raise ValueError(f"text={text!r} names a column, but {path} has none; leave it out")
    asked = task == corpus.TASK
    if asked or task == hiding.TASK:  # of whatever has texts
        if kind in (".csv", ".tsv", ".parquet"):
            from zoo.data import tables

            return tables.unlabelled(path, target, text)
        task = None
    if kind == ".txt" or (kind == "folder" and task is None and corpus.is_folder(path, asked)):
        if task is not None:
            raise ValueError(f"{path} holds running text, which is for {corpus.TASK}, got task={task!r}; leave it out")
        if target is not None:
            raise ValueError(f"target={target!r} names a column, but {path} has none; leave it out")
        return corpus.read(path)
    if kind == "folder" and task in (None, "embedding") and (task or (path / identities.PAIRS).is_file()):
        if target is not None:
            raise ValueError(f"target={target!r} names a column, but {path} has none; leave it out")
        return identities.read_folder(path, input_shape)
    if kind == "folder" and task in (None, "segmentation") and masks.parts_in(path):
        if target is not None:
            raise ValueError(f"target={target!r} names a column, but {path} has none; leave it out")
        return masks.read(path, input_shape)
    if kind == "folder" and task in (None, "classification", "text-classification") and text_files.is_folder(path):
        if target is not None:
            raise ValueError(f"target={target!r} names a column, but {path} has none; leave it out")
        return text_files.read_folder(path)
    if task in (None, tagging.TASK) and (kind == tagging.SUFFIX or (kind == "folder" and tagging.is_folder(path))):
        if target is not None:
            raise ValueError(f"target={target!r} names a column, but {path} has none; leave it out")
        return tagging.read(path)
    if kind in (".csv", ".tsv", ".parquet") and task == "forecasting":
        from zoo.data import series

        return series.read(path, target)
    if kind in (".csv", ".tsv", ".parquet") and task in ("speech-recognition", "image-text", "text-to-text"):
        from zoo.data import tables

        return tables.read(path, target, task, text, input_shape)
    if task not in (None, *(f"{of}classification" for of in ("", "image-", "series-", "text-")), "regression"):
        raise ValueError(
            f"{path} is not read for task={task!r}; tasks are {', '.join(KINDS)}, and a folder or file must be of the form that "
            "the task asks for"
        )
    if kind in (".csv", ".tsv", ".parquet"):
        from zoo.data import tables

        return tables.read(path, target, task, text, input_shape)
    if target is not None:
        raise ValueError(f"target={target!r} names a column, but {path} has none; leave it out")
    if kind == ".json" or (kind == "folder" and coco.files_in(path)):
        if task is not None:
            raise ValueError(f"{path} holds boxes, which are for detection, got task={task!r}; leave it out")
        return coco.read(path, input_shape)
    if kind == ".npz":
        return read_npz(path, task)
    if kind == "folder":
        if task == "regression":
            raise ValueError(f"{path} is a folder of images per class, got task='regression'; leave it out")
        return images.read_folder(path, input_shape)
    raise ValueError(
        f"{path} is of no known kind; give a folder of images per class, a .txt file or a folder of these, or a .csv, .parquet, "
        ".npz or COCO .json file"
    )


def read_npz(path: Path, task: str | None = None) -> Rows:
    """Rows of arrays `x, y`, or `x_train, y_train` and any of `x_validation, y_validation, x_test, y_test`.

    Inputs are uint8 `(rows, height, width[, channels])` for images, numbers `(rows, columns)` with NaN where missing, or
    floats `(rows, time, columns)` for series, NaN behind the end of those that are shorter. Targets are class indices or names, floats to regress, or for images masks `(rows, height, width)` of class
    indices, 255 where nobody knows them. `labels` and `columns` may hold names.

    Raises:
        ValueError: the file is damaged, or an array is missing or of another shape or type.
    """
    with path.open("rb") as file:
        if file.read(2) != b"PK":  # numpy takes anything else for a pickle, and says so
            raise ValueError(f"{path} is no .npz file; save it with numpy.savez(path, x=..., y=...)")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except Exception as error:  # zipfile, zlib and numpy raise many kinds for a damaged file
        raise ValueError(
            f"{path} cannot be read as .npz: {error}; save it with numpy.savez(path, x=..., y=...)"
        ) from error
    pairs = {"": OPEN} if "x" in arrays else PARTS
    keys = [(f"x_{part}" if part else "x", f"y_{part}" if part else "y", split) for part, split in pairs.items()]
    keys = [key for key in keys if key[0] in arrays or key[1] in arrays]
    if not keys:
        raise ValueError(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}, and neither x nor x_train; save it with numpy.savez(path, x=..., y=...)"
        )
    for x, y, _ in keys:
        for absent in {x, y} - set(arrays):
            raise ValueError(f"{path} has no array {absent!r} (it holds {sorted(arrays)}).{suggest(absent, arrays)}")
        if arrays[x].ndim < 1 or arrays[y].ndim < 1 or len(arrays[x]) != len(arrays[y]):
            raise ValueError(f"{path}: {x!r} {arrays[x].shape} and {y!r} {arrays[y].shape} must have as many rows")
    if len({arrays[x].shape[1:] for x, _, _ in keys}) > 1:
        raise ValueError(
            f"{path}: inputs differ in shape: {', '.join(f'{x} {arrays[x].shape}' for x, _, _ in keys)}; make them equal"
        )
    x = np.concatenate([arrays[key] for key, _, _ in keys])
    y = np.concatenate([arrays[key] for _, key, _ in keys])
    if not y.size:
        raise ValueError(f"{path} has no rows; give it at least a few dozen")
    given = tuple(map(str, arrays["labels"].tolist())) if "labels" in arrays else ()
    part = np.concatenate([np.full(len(arrays[key]), split, np.int8) for key, _, split in keys])
    if y.ndim == 3 and x.ndim in (3, 4) and task is None:
        raw, _ = _inputs(path, x, arrays)
        y, labels = masks.checked(str(path), raw["image"], y, given)
        return Rows(path.stem, "segmentation", raw, y, labels, source=path.name, part=part)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise ValueError(
            f"{path}: y must be (rows,), one class or one value each, got {y.shape}; use numpy.argmax for one-hot rows"
        )
    if x.ndim == 3 and x.dtype.kind == "f":
        from zoo.data import series

        raw, columns = series.checked(path, x, arrays, asked=task == "series-classification")
        kind = "series-"
    else:
        raw, columns = _inputs(path, x, arrays)
        kind = "image-" if "image" in raw else ""
    plain = "classification" if task is not None and task == f"{kind}classification" else task
    chosen, indices, labels = targets(y, plain, str(path), "y", given or None)
    if chosen == "classification":
        chosen = f"{kind}{chosen}"
    return Rows(path.stem, chosen, raw, indices, labels, source=path.name, numbers=columns, part=part)


def _inputs(path: Path, x: np.ndarray, arrays: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    if x.ndim in (3, 4):
        images_ = x[..., None] if x.ndim == 3 else x
        if x.dtype.kind not in "iu" or (x.size and (x.min() < 0 or x.max() > 255)):
            raise ValueError(
                f"{path}: images must be whole numbers in 0 … 255, got {x.dtype} {_range(x)}; "
                f"store (255 * x).round().astype('uint8') if they are in 0 … 1"
            )
        if images_.shape[-1] not in images.MODES:
            raise ValueError(f"{path}: images must be (rows, height, width[, 1, 3 or 4 channels]), got {x.shape}")
        return {"image": images_.astype(np.uint8)}, ()
    if x.ndim != 2 or x.dtype.kind not in "biuf" or not x.shape[1]:
        raise ValueError(
            f"{path}: x must be uint8 images (rows, height, width, channels) or numbers (rows, columns), got {x.dtype} {x.shape}"
        )
    numbers = x.astype(np.float32)
    endless = np.argwhere(np.isinf(numbers))
    if len(endless):
        row, column = endless[0]
        raise ValueError(
            f"{path}: x has the value {x[row, column].item()!r} in row {row + 1}, column {column + 1}; replace it, NaN if unknown"
        )
    columns = (
        tuple(map(str, arrays["columns"].tolist()))
        if "columns" in arrays
        else tuple(f"x{i}" for i in range(x.shape[1]))
    )
    if len(columns) != x.shape[1]:
        raise ValueError(f"{path}: columns names {len(columns)} columns, x has {x.shape[1]}")
    return {"numbers": numbers}, columns


def _range(x: np.ndarray) -> str:
    return f"in {x.min():.4g} … {x.max():.4g}" if x.size and x.dtype.kind in "biuf" else f"{x.shape}"


def targets(
    values: np.ndarray, task: str | None, where: str, name: str, labels: tuple[str, ...] | None = None
) -> tuple[str, np.ndarray, tuple[str, ...]]:
    """Task, targets and labels of a column of classes or values.

    Args:
        values: text, true/false, integers or floats `(rows,)`; white space around text does not count.
        task: "classification", "regression", or None to go by the type and the number of different values.
        where: file, for messages.
        name: name of the column.
        labels: class names, where `values` are indices into them.

    Raises:
        ValueError: a target is missing or not a number; the message names the row.
    """
    text = values.dtype.kind in "US"
    if not text and values.dtype.kind not in "biuf":
        raise ValueError(f"{where}: target {name!r} has type {values.dtype}; use text, true/false, integers or floats")
    if text:
        values = np.char.strip(values)  # "ham " looks like "ham", and is
    bad = values == "" if text else ~np.isfinite(values.astype(np.float64))
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"{where}: target {name!r} is missing or not finite in row {row + 1}, got {values[row].item()!r}; fill or remove the row"
        )
    known, indices = np.unique(values, return_inverse=True)
    if task is None:
        whole = text or values.dtype.kind == "b" or (values.dtype.kind in "iu" and len(known) <= 20)
        task = "classification" if whole or labels else "regression"
    if task == "regression":
        if text:
            raise ValueError(
                f"{where}: target {name!r} holds text such as {values[0].item()!r} in row 1, which has no value to regress"
            )
        if len(known) < 2:
            raise ValueError(f"{where}: target {name!r} is {known[0]:g} in every row; there is nothing to learn")
        return task, values.astype(np.float32), (name,)
    if labels:
        if values.dtype.kind not in "iu" or known[0] < 0 or known[-1] >= len(labels):
            row = int(((values < 0) | (values >= len(labels))).argmax()) if values.dtype.kind in "iuf" else 0
            raise ValueError(
                f"{where}: {name!r} must be indices of the {len(labels)} labels, got {values[row].item()!r} in row {row + 1}"
            )
        return "classification", values.astype(np.int64), labels
    if values.dtype.kind == "f" and (known % 1 != 0).any():
        row = int((values % 1 != 0).argmax())
        raise ValueError(
            f"{where}: target {name!r} has the value {values[row]:g} in row {row + 1}, which is no class; use task='regression'"
        )
    if len(known) < 2:
        raise ValueError(
            f"{where}: target {name!r} has one class only, {_label(known[0])!r}; classification needs at least two"
        )
    return "classification", indices.reshape(-1).astype(np.int64), tuple(map(_label, known))


def _label(value) -> str:
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value)).lower()
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)
