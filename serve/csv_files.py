"""CSV files as people have them: the header row, the separator, the cells; messages name the line and the column."""

import csv
import io
import math
from collections.abc import Iterator
from itertools import islice

import numpy as np

from serve.errors import RequestError, did_you_mean, shown

LARGEST = float(np.finfo(np.float32).max)
SEPARATORS = ",;\t"  # the one that gives the most known columns is taken
LONGEST_CELL = csv.field_size_limit()  # characters
MOST_UNKNOWN = 200  # columns that are left out with a note


def decoded(body: bytes, what: str) -> str:
    """A body as text, UTF-8 without its mark; the message of a failure names the line and `what` it is."""
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        message = f"{what} is not UTF-8: byte 0x{error.object[error.start]:02x} in line {line}; save it as UTF-8"
        raise RequestError("bad_encoding", message) from None


def header_of(text: str, known: list[str]) -> tuple[list[str], str, list[str]]:
    """What the first line says: column names, the separator, and notes on columns that are not used.

    Args:
        text: the file.
        known: the model's columns.

    Raises:
        RequestError: the line names none of them, one twice, or one almost.
    """
    candidates = [_candidate(text, separator, known) for separator in SEPARATORS]
    fits, header, separator = max(candidates, key=lambda candidate: candidate[0])
    if not fits:
        message = (
            f"the first line of the CSV file names no column of the model; it must name some of {', '.join(known[:20])}"
        )
        raise RequestError("bad_csv", message)
    twice = next((column for column in known if header.count(column) > 1), None)
    if twice is not None:
        raise RequestError("bad_csv", f"line 1: column {twice!r} is given twice; give each column once")
    unknown = [column for column in header if column not in known]
    absent = [column for column in known if column not in header]
    if len(unknown) > MOST_UNKNOWN:
        message = f"line 1 has {len(unknown)} columns that the model does not know, at most {MOST_UNKNOWN} are left out"
        raise RequestError("bad_csv", message)
    for column in unknown:
        if hint := did_you_mean(column, absent):
            raise unknown_column("line 1: ", column, known, hint)
    named = ", ".join(column[:60] for column in unknown[:20])
    return header, separator, [f"not used, since the model has no such columns: {named}"] if unknown else []


def unknown_column(where: str, column: str, known: list[str], hint: str) -> RequestError:
    """The error for a column that the model does not have."""
    message = (
        f"{where}no column is called {shown(column)}; {len(known)} are known, such as {', '.join(known[:5])}.{hint}"
    )
    return RequestError("unknown_column", message)


def _candidate(text: str, separator: str, known: list[str]) -> tuple[int, list[str], str]:
    """How many known columns the first line names if this separates them, and its cells."""
    try:
        _, cells = next(_lines(text, separator), (1, []))
    except RequestError:  # such as a quoted cell that ends before another separator
        return 0, [], separator
    header = [cell.strip() for cell in cells]
    return len({*header} & {*known}), header, separator


def _lines(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Records that are not blank, each with the number of its first line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        message = f"line {line}: the CSV file cannot be read: {error}; a cell holds at most {LONGEST_CELL} characters"
        raise RequestError("bad_csv", message) from None


def records(text: str, separator: str, header: list[str]) -> Iterator[tuple[int, list[str]]]:
    """The rows below the header, each with the number of its line.

    Raises:
        RequestError: a row has more or fewer cells than the header.
    """
    for line, cells in islice(_lines(text, separator), 1, None):
        if len(cells) != len(header):
            message = (
                f"line {line} has {len(cells)} cells, the header has {len(header)}; quote cells that hold {separator!r}"
            )
            raise RequestError("bad_csv", message)
        yield line, cells


def cell_value(line: int, column: str, cell: str, number: bool) -> float | str | None:
    """One cell as its JSON value, None where it is empty.

    Raises:
        RequestError: it should be a number and is none, or none within float32.
    """
    if not number:
        return cell or None
    cell = cell.strip()
    if not cell:
        return None
    try:
        value = float(cell) if cell.isascii() and "_" not in cell else math.nan
    except ValueError:
        value = math.nan
    if not abs(value) <= LARGEST:  # also what is not a number
        wanted = "a number or empty" if math.isnan(value) else f"within ±{LARGEST:.4g}"
        raise RequestError("bad_value", f"line {line}, column {column!r} must be {wanted}, got {shown(cell)}")
    return value
