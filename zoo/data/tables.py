"""CSV and Parquet files with a target column."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zoo.data import captions, recordings, text_files
from zoo.data.files import targets
from zoo.data.rows import Rows
from zoo.registry import suggest

USUAL = ("target", "label", "class", "y")  # columns taken as the target when none is named
MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "?")


def read(
    path: Path, target: str | None, task: str | None, text: str = "", input_shape: tuple[int, ...] | None = None
) -> Rows:
    """Rows of a `.csv` (comma, semicolon or tab, with a header) or `.parquet` file.

    Text and true/false columns are categories, number columns are numbers; empty cells and the words in `MISSING` are
    missing values. A column of texts, which are several words long and hardly ever the same, is the input alone where it
    is the only one besides the target, or where `text` names it; in texts and labels only empty cells are missing. Columns
    called audio and text hold the names of recordings and what is said in them, see `zoo.data.recordings`; columns called
    image and caption those of pictures and what they show, see `zoo.data.captions`.

    Raises:
        ValueError: the file is empty or damaged, the target is unknown or missing, or a column is of another type.
    """
    if task == "text-to-text":
        return _answered(path, target, text)
    table = opened(path)
    names = table.column_names
    if recordings.is_table(names, target) and not text and task in (None, "speech-recognition"):
        return recordings.read(path, *_as_texts(path, recordings.COLUMN, recordings.TEXT))
    if captions.is_table(names, target) and not text and task in (None, "image-text"):
        return captions.read(path, *_as_texts(path, captions.COLUMN, captions.TEXT), input_shape)
    if task == "image-text":
        raise ValueError(
            f"{path} needs a column {captions.COLUMN!r} of image files and a column {captions.TEXT!r} of what they show, its "
            f"columns are {', '.join(map(repr, names))}"
        )
    if task == "speech-recognition":
        raise ValueError(
            f"{path} needs a column {recordings.COLUMN!r} of sound files and a column {recordings.TEXT!r} of what is said in "
            f"them, its columns are {', '.join(map(repr, names))}"
        )
    target = target_column(path, names, target)
    if len(names) < 2:
        raise ValueError(f"{path} has no column besides the target {target!r}; add columns to predict it from")
    others = [name for name in names if name != target]
    prose = text_files.column_of(path, {name: _texts(path, name, table[name]) for name in others}, task, text)
    if prose and task is not None:
        task = task.removeprefix("text-")
    column = table[target]
    if str(column.type) in ("string", "null"):  # NA and null are labels, too
        column = opened(path, [target])[target]
    chosen, y, labels = targets(target_values(path, target, column), task, str(path), target)
    if prose:
        read_in = [prose] if prose in others else prose.split(",")
        others = [name for name in others if name not in read_in]
        first, *more = _as_texts(path, *read_in)
        return text_files.of_column(path, first, chosen, y, labels, others, *more)
    numbers: dict[str, np.ndarray] = {}
    categories: dict[str, np.ndarray] = {}
    for name in names:
        if name != target:
            values = column_values(path, name, table[name])
            (categories if values.dtype.kind == "U" else numbers)[name] = values
    x = {}
    if numbers:
        x["numbers"] = np.stack(list(numbers.values()), axis=1)
    if categories:
        x["categories"] = np.stack(list(categories.values()), axis=1)
    return Rows(path.stem, chosen, x, y, labels, source=path.name, numbers=tuple(numbers), categories=tuple(categories))


def unlabelled(path: Path, target: str | None, text: str) -> Rows:
    """Rows of a column of texts alone, for a task that makes its own targets of them; a target is left aside.

    Raises:
        ValueError: there is no such column, several could be meant, or a text is missing.
    """
    table = opened(path)
    names = table.column_names
    if target is not None or (not text and len(names) > 1 and any(name in names for name in USUAL)):
        target = target_column(path, names, target)
    columns = {name: _texts(path, name, table[name]) for name in names if name != target}
    chosen = text_files.column_of(path, columns, "text-classification", text)
    if chosen not in columns:
        raise ValueError(f"{path}: texts to learn from stand in one column, got text={text!r}; name one")
    return text_files.of_texts(path, *_as_texts(path, chosen), [name for name in names if name != chosen])


def _answered(path: Path, target: str | None, text: str) -> Rows:
    """Rows of a column of texts and one of what they are answered by, "answer" where none is named."""
    names = opened(path).column_names
    target = target_column(path, names, target or ("answer" if "answer" in names else None))
    table = opened(path, names)  # 007 is an answer and no number
    columns = {name: _texts(path, name, table[name]) for name in names if name != target}
    chosen = text_files.column_of(path, columns, "text-classification", text)
    if chosen not in columns:
        raise ValueError(f"{path}: texts to be answered stand in one column, got text={text!r}; name one")
    (said,) = _as_texts(path, target)
    return text_files.answered(path, columns[chosen], said, [name for name in columns if name != chosen])


def opened(path: Path, texts: Sequence[str] = ()):
    """The pyarrow table in a `.csv` or `.parquet` file, with at least one row.

    Args:
        path: file.
        texts: columns to read alone; cells of a CSV file are then texts, whatever they look like, and only empty ones are
            missing.

    Raises:
        ValueError: it is empty, damaged, or has two columns of one name.
    """
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty; it needs a header and rows")
    table = (_parquet if path.suffix.lower() == ".parquet" else _csv)(path, texts)
    names = table.column_names
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{path} has several columns called {sorted(twice)[0]!r}; rename all but one")
    if not table.num_rows:
        raise ValueError(f"{path} has a header and no rows; add rows")
    return table


def _texts(path: Path, name: str, column) -> list | None:
    """Values of a column of text, None for one of another type."""
    column = _decoded(column)
    return column.to_pylist() if _kind(path, name, column) == "text" else None


def _as_texts(path: Path, *names: str) -> list[list[str | None]]:
    """Cells of columns as they are written, None where they are empty."""
    table = opened(path, tuple(dict.fromkeys(names)))
    return [_decoded(table[name]).cast("string").to_pylist() for name in names]


def _csv(path: Path, texts: Sequence[str]):
    from pyarrow import ArrowInvalid, csv, string

    text = path.read_bytes()
    header = text.partition(b"\n")[0]
    _check_encoding(path, text)
    delimiter = max(b",;\t", key=header.count)
    _check_quotes(path, text, chr(delimiter).encode())
    ragged = []

    def remember(row):
        ragged.append(row)
        return "error"

    try:
        return csv.read_csv(
            path,
            read_options=csv.ReadOptions(
                use_threads=False, block_size=min(len(text) + 1, 2**31 - 1)
            ),  # types from the whole file
            parse_options=csv.ParseOptions(
                delimiter=chr(delimiter), newlines_in_values=True, invalid_row_handler=remember
            ),
            convert_options=csv.ConvertOptions(
                null_values=[""] if texts else MISSING,
                strings_can_be_null=True,
                column_types=dict.fromkeys(texts, string()),
                include_columns=list(texts),
            ),
        )
    except ArrowInvalid as error:
        if ragged:
            row = ragged[0]
            raise ValueError(
                f"{path}: row {row.number - 1} has {row.actual_columns} cells, the header has {row.expected_columns}: "
                f"{row.text[:60]!r}; repair the row, and quote cells that contain {chr(delimiter)!r}"
            ) from None
        raise ValueError(f"{path} cannot be read as CSV: {error}") from error


def _check_quotes(path: Path, text: bytes, delimiter: bytes) -> None:
    """Refuse a quote that opens a cell and swallows the lines behind it: nothing closes it, or a later cell's quote does."""
    cells = rb"(?:\A(?:\xef\xbb\xbf)?|[\r\n" + delimiter + rb'])(")[^"]*(?:""[^"]*)*("?)'
    for cell in re.finditer(cells, text):
        start, end = cell.start(1), cell.end()
        if cell[2] and (text[end : end + 1] in (b"", b"\r", b"\n", delimiter) or text.find(b"\n", start, end) < 0):
            continue
        shown = text[start : start + 60].splitlines()[0].decode("utf-8", errors="ignore")
        opened_in, closed_in = (1 + text.count(b"\n", 0, place) for place in (start, end))
        wrong = f"is closed in the middle of a cell of line {closed_in}" if cell[2] else "is never closed"
        raise ValueError(
            f"{path}: the quote in line {opened_in} that opens the cell {shown!r} {wrong}; close it, or double it and quote "
            "the cell where it is part of the text"
        )


def _check_encoding(path: Path, text: bytes) -> None:
    """Refuse what is no UTF-8 text, naming the first line that is not."""
    if b"\0" in text[:4096]:
        raise ValueError(f"{path} is no text file; save it as CSV in UTF-8")
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        start = text.rfind(b"\n", 0, error.start) + 1
        shown = text[start : error.end].decode("utf-8", errors="replace")[-40:]
        raise ValueError(f"{path} is not UTF-8 text, see line {line} after {shown!r}; save the file as UTF-8") from None


def _parquet(path: Path, texts: Sequence[str]):
    from pyarrow import ArrowException, parquet

    try:
        return parquet.read_table(path, columns=list(texts) or None)
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}; write it again") from error


def target_column(path: Path, names: list[str], target: str | None) -> str:
    """The column asked for, or the one of a usual name."""
    if target is None:
        usual = [name for name in USUAL if name in names]
        if len(usual) != 1:
            raise ValueError(
                f"which column of {path} is the target? Name it with target=... (--target on the command line); its columns are {', '.join(map(repr, names))}"
            )
        return usual[0]
    if target not in names:
        raise ValueError(
            f"{path} has no column {target!r}.{suggest(target, names)} Its columns are {', '.join(map(repr, names))}"
        )
    return target


def _decoded(column):
    """The column without dictionary encoding, as Parquet stores pandas categories."""
    from pyarrow import types

    return column.cast(column.type.value_type) if types.is_dictionary(column.type) else column


def _kind(path: Path, name: str, column) -> str:
    from pyarrow import types

    kind = column.type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "text"
    if types.is_boolean(kind):
        return "bool"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "number"
    if types.is_null(kind):
        raise ValueError(f"{path}: column {name!r} has no value in any row; remove the column")
    if types.is_binary(kind):
        raise ValueError(f"{path}: column {name!r} is not UTF-8 text; save the file as UTF-8")
    series = "; or forecast the table as a series: --task forecasting" if types.is_temporal(kind) else ""
    raise ValueError(
        f"{path}: column {name!r} has the type {kind}; turn it into numbers or text, or remove the column{series}"
    )


def target_values(path: Path, name: str, column) -> np.ndarray:
    """Text or numbers of the target, of which none may be missing."""
    column = _decoded(column)
    kind = _kind(path, name, column)
    if column.null_count:
        row = int(column.is_null().to_numpy().argmax())
        raise ValueError(f"{path}: target {name!r} is missing in row {row + 1}; fill or remove the row")
    if kind == "text":
        return np.array(column.to_pylist(), np.str_)
    return column.cast("float64").to_numpy() if "decimal" in str(column.type) else column.to_numpy()


def column_values(path: Path, name: str, column) -> np.ndarray:
    """A category column as text with "" for missing, or a number column as float32 with NaN for missing."""
    column = _decoded(column)
    kind = _kind(path, name, column)
    if kind == "bool":
        return np.array([{True: "true", False: "false", None: ""}[value] for value in column.to_pylist()], np.str_)
    if kind == "text":
        values = np.array([value or "" for value in column.to_pylist()], np.str_)
        _check_text(path, name, values)
        return values
    values = column.cast("float64", safe=False).fill_null(np.nan).to_numpy()
    if np.isnan(values).all():
        raise ValueError(f"{path}: column {name!r} has no value in any row; remove the column")
    too_large = np.abs(values) > np.finfo(np.float32).max
    if too_large.any():
        row = int(too_large.argmax())
        raise ValueError(
            f"{path}: column {name!r} has the value {values[row]} in row {row + 1}, beyond float32; correct it"
        )
    return values.astype(np.float32)


def _check_text(path: Path, name: str, values: np.ndarray) -> None:
    """Refuse text that is numbers in disguise, or that names each row."""
    filled = np.flatnonzero(values != "")
    texts = values[filled].tolist()
    if not texts:
        raise ValueError(f"{path}: column {name!r} has no value in any row; remove the column")
    numeric = np.array([_is_number(text) for text in texts])
    if not numeric.any() and all(_is_number(text.replace(",", ".")) for text in texts):
        raise ValueError(
            f"{path}: column {name!r} has numbers with a decimal comma, such as {texts[0]!r}; write a point"
        )
    if 0.9 * len(texts) <= numeric.sum() < len(texts):
        odd = int(numeric.argmin())
        raise ValueError(
            f"{path}: column {name!r} holds numbers, but {texts[odd]!r} in row {filled[odd] + 1}; "
            f"correct it, or leave it empty if unknown"
        )
    different = len(set(texts))
    if different > max(20, len(texts) / 2):
        raise ValueError(
            f"{path}: column {name!r} has {different} different texts in {len(texts)} rows, so it tells rows apart "
            f"rather than groups them; remove the column"
        )


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False
