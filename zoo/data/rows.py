"""Rows as a reader found them, before they are split; and the hashes that tell equal rows apart."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zoo.data.lazy import Pictures
from zoo.data.signature import Forecast

TRAIN, VALIDATION, TEST, OPEN = 0, 1, 2, -1  # which split a row belongs to; OPEN rows are still to be dealt out
PARTS = {"train": TRAIN, "validation": VALIDATION, "val": VALIDATION, "test": TEST}  # as files and folders name them


@dataclass
class Rows:
    """What a reader returns.

    Attributes:
        name: name of the data set.
        task: "image-classification", "classification", "regression", "segmentation" …, see `zoo.tasks`.
        x: raw inputs, see `zoo.data.signature`; pictures may be in files still, see `zoo.data.lazy`.
        y: class indices int64 `(rows,)`, regression targets float32 `(rows,)`, or what else `zoo.data.targets` has.
        labels: class names in the order of the indices; for regression the target's name.
        numbers, categories: column names of a table; of a series the former.
        part: the split the source itself assigns to each row, `OPEN` where it does not.
        source: where the rows come from.
        licence: terms of the source.
        generated: the rows were computed, not observed.
        forecast: what is forecast, of windows of a series.
        rate: samples per second, of recordings.
        time: of a series, its column of times and their step, see `serve.times.checked`; empty where not known.
    """

    name: str
    task: str
    x: dict[str, np.ndarray | Pictures]
    y: np.ndarray
    labels: tuple[str, ...]
    source: str
    licence: str = "not stated; the owner of the file decides"
    numbers: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    part: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int8))
    generated: bool = False
    forecast: Forecast | None = None
    rate: int = 0
    time: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.part):
            self.part = np.full(len(self.y), OPEN, np.int8)


def digests(x: dict[str, np.ndarray | Pictures]) -> list[bytes]:
    """16-byte hash of each raw input row; equal rows have equal hashes, whatever the array's memory layout."""
    if (
        "text" in x
    ):  # beside which tokens are made of it, drawn anew for each split, or it has an answer, which is the target
        x = {name: values for name, values in x.items() if name not in ("tokens", "answer")}
    return _digests(x)


def _digests(x: dict[str, np.ndarray | Pictures]) -> list[bytes]:
    if len(x) == 1 and isinstance(pictures := next(iter(x.values())), Pictures):
        return pictures.digests()
    return [
        hashlib.blake2b(b"".join(parts), digest_size=16).digest()
        for parts in zip(*map(_bytes, x.values()), strict=True)
    ]


def _bytes(values: np.ndarray) -> Iterator[bytes]:
    if values.dtype.kind == "U":
        return (json.dumps(row).encode() for row in values.tolist())
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), np.float32(np.nan), values + np.float32(0))  # one NaN, and no minus zero
    return (np.ascontiguousarray(row).tobytes() for row in values)


def fingerprint(rows: Rows) -> str:
    """Hexadecimal sha256 of all rows in the source's order, with their targets and labels."""
    total = hashlib.sha256(json.dumps([list(rows.labels), list(rows.numbers), list(rows.categories)]).encode())
    for key, values in rows.x.items():
        total.update(f"{key}{values.shape}".encode())
    for digest in _digests({name: values for name, values in rows.x.items() if name != "tokens"}):
        total.update(digest)
    total.update(np.ascontiguousarray(rows.y).tobytes())
    return total.hexdigest()
