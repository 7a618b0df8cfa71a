"""What counts over a whole data set: mean absolute attributions with bootstrap intervals, mean pictures by class."""

import base64
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import IO, Any

import numpy as np

from zoo.explain.explanation import FORMAT, Explanation, _array, _listed, _parsed, _pictured, _plain, _written

DRAWS = 1000  # bootstrap samples
BLOCK = 4096  # parts whose samples are in memory at once
SHOWN = 10  # parts that the text names


@dataclass(frozen=True, eq=False)
class ClassMean:
    """The mean of all rows whose explained answer is one class.

    Attributes:
        rows: their number.
        attributions: mean (height, width), signed.
        image: mean (height, width, channels), 0 … 255.
    """

    rows: int
    attributions: np.ndarray
    image: np.ndarray


@dataclass(frozen=True, eq=False)
class Summary:
    """How much each part counts over many rows.

    Attributes:
        name, kind, task, unit, method: as in `Explanation`.
        rows: explained rows.
        axes: of `importance`: ("columns",), ("words",), ("tokens",), ("nodes",), ("edges",), ("height", "width") or
            ("time", "channels").
        names: of the parts along the first axis; empty for pixels, positions and time.
        columns: names of a series' channels.
        importance: mean absolute attribution, in `unit`; of a word or a named node, over the rows that have it.
        low, high: 95 % bootstrap interval of `importance` over the rows; NaN where fewer than two rows have the part.
        direction: mean signed attribution.
        counts: rows that have the part.
        points: attributions of all rows (rows, columns), for tables.
        cells: rank of each row's value within its column, 0 the lowest and 1 the highest, NaN for texts and what is
            missing (rows, columns), for tables.
        classes: label -> mean picture, for images.
        times: (time,) in seconds, for a series whose times are known.
        faithfulness: mean of the explanations' own, where all have one.
        complete: whether every explanation is.
        seconds, calls: of all explanations together.
    """

    name: str
    kind: str
    task: str
    unit: str
    method: str
    rows: int
    axes: tuple[str, ...]
    names: tuple[str, ...]
    columns: tuple[str, ...]
    importance: np.ndarray = field(repr=False)
    low: np.ndarray = field(repr=False)
    high: np.ndarray = field(repr=False)
    direction: np.ndarray = field(repr=False)
    counts: np.ndarray = field(repr=False)
    points: np.ndarray | None = field(default=None, repr=False)
    cells: np.ndarray | None = field(default=None, repr=False)
    classes: dict[str, ClassMean] = field(default_factory=dict, repr=False)
    times: np.ndarray | None = field(default=None, repr=False)
    faithfulness: dict[str, float] | None = None
    complete: bool = True
    seconds: float = 0.0
    calls: int = 0

    def order(self) -> np.ndarray:
        """Indices of named parts, most important first; those with an interval before those in a single row."""
        return np.lexsort((-self.importance, np.isnan(self.low))) if self.importance.ndim == 1 else np.zeros(0, int)

    def __str__(self) -> str:
        lines = [
            f"{self.name}: what counts over {self.rows:,} rows, mean absolute contribution to the {self.unit} ({self.method})"
        ]
        if self.names:
            wide = max(len(self.names[at]) for at in self.order()[:SHOWN])
            lines += [f"  {self.names[at]:<{wide}}  {self._figures(at)}" for at in self.order()[:SHOWN]]
            rest = len(self.names) - SHOWN
            if rest > 0:
                lines.append(f"  and {rest:,} more")
        for label, found in self.classes.items():
            sizes = np.abs(found.attributions)
            row, column = np.unravel_index(int(sizes.argmax()), sizes.shape)
            lines.append(f"  “{label}”: {found.rows:,} rows, strongest at row {row}, column {column} of the image")
        if not self.names and not self.classes:
            place = np.unravel_index(int(self.importance.argmax()), self.importance.shape)
            where = ", ".join(f"{axis.removesuffix('s')} {at}" for axis, at in zip(self.axes, place, strict=True))
            lines.append(f"  strongest at {where}: {self._figures(place)}")
        given = self.faithfulness or {}
        told = [
            f"{what} {given[what]:.3f} (random order {given.get(f'{what}_random', float('nan')):.3f})"
            for what in ("deletion", "insertion")
            if what in given
        ]
        cost = [f"{self.calls:,} model rows", f"{self.seconds:.1f} s"]
        lines.append(
            "  " + "; ".join([*([] if self.complete else ["some rows were cut by the time budget"]), *told, *cost])
        )
        return "\n".join(lines)

    def _figures(self, at: Any) -> str:
        interval = f" ({self.low[at]:.4g} … {self.high[at]:.4g})" if np.isfinite(self.low[at]) else " (one row)"
        return f"{self.importance[at]:.4g}{interval}, mean {self.direction[at]:+.3g}"

    def to_dict(self) -> dict[str, Any]:
        """Everything in JSON types."""
        return {
            "format": FORMAT,
            "model": self.name,
            "kind": self.kind,
            "task": self.task,
            "unit": self.unit,
            "method": self.method,
            "rows": self.rows,
            "axes": list(self.axes),
            "names": list(self.names),
            "columns": list(self.columns),
            "importance": _listed(self.importance),
            "low": _listed(self.low),
            "high": _listed(self.high),
            "direction": _listed(self.direction),
            "counts": _listed(self.counts),
            "points": _listed(self.points),
            "cells": _listed(self.cells),
            "classes": {
                label: {"rows": mean.rows, "attributions": _listed(mean.attributions), "image": _listed(mean.image)}
                for label, mean in self.classes.items()
            },
            "times": _listed(self.times),
            "faithfulness": _plain(self.faithfulness),
            "complete": self.complete,
            "seconds": self.seconds,
            "model_rows": self.calls,
        }

    def to_json(self) -> str:
        """`to_dict` as text; missing numbers are null."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Summary":
        """Read what `to_json` wrote.

        Raises:
            ValueError: not a summary, or one of another format.
        """
        raw = _parsed(text, "Summary")
        same = ("kind", "task", "unit", "method", "rows", "faithfulness", "complete", "seconds")
        try:
            return cls(
                name=raw["model"],
                calls=raw["model_rows"],
                counts=np.asarray(raw["counts"], np.int64),
                classes={
                    label: ClassMean(mean["rows"], *(np.asarray(mean[key], float) for key in ("attributions", "image")))
                    for label, mean in raw["classes"].items()
                },
                **{key: tuple(raw[key]) for key in ("axes", "names", "columns")},
                **{key: np.asarray(raw[key], np.float64) for key in ("importance", "low", "high", "direction")},
                **{key: _array(raw[key]) for key in ("points", "cells", "times")},
                **{key: raw[key] for key in same},
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no summary: {error!r}; give what Summary.to_json wrote") from None

    def plot(self, path: str | Path | IO[bytes] | None = None, dark: bool = False) -> Any:
        """Draw it: a beeswarm beside the importance of columns, mean pictures by class, bars of words, lines over time.

        Args:
            path: picture file (PNG, or by its suffix .svg or .pdf) or open binary file to write; None writes nothing.
            dark: colours for a dark page.

        Returns:
            The matplotlib figure.
        """
        from zoo.explain.pictures.summaries import draw

        return _pictured(draw(self, dark), path)

    def to_html(self) -> str:
        """A page of its own, without anything from elsewhere."""
        from zoo.explain.html import _document

        sources = []
        for dark in (False, True):
            file = io.BytesIO()
            self.plot(file, dark)
            sources.append(f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}")
        heading = f"What counts for {self.name}"
        rows = "".join(
            f'<tr><th scope="row">{escape(self.names[at])}</th><td class="n">{self.importance[at]:.4g}</td>'
            f'<td class="n">{"" if np.isnan(self.low[at]) else f"{self.low[at]:.4g} … {self.high[at]:.4g}"}</td>'
            f'<td class="n">{self.direction[at]:+.3g}</td><td class="n">{int(self.counts[at])}</td></tr>'
            for at in self.order()
            if self.names
        )
        heads = (self.axes[0].removesuffix("s"), "importance", "95 % interval", "mean", "rows")
        top = "".join(f'<th scope="col"{"" if at == 0 else " class=n"}>{head}</th>' for at, head in enumerate(heads))
        table = (
            f"<table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table>"
            if rows
            else f"<pre>{escape(str(self))}</pre>"
        )
        body = (
            f'<header><h1>{escape(heading)}</h1><p class="quiet">Mean absolute contribution to the {escape(self.unit)} over '
            f"{self.rows:,} rows, by {escape(self.method)}.</p></header><main><article><figure><picture>"
            f'<source srcset="{sources[1]}" media="(prefers-color-scheme: dark)"><img src="{sources[0]}" '
            f'alt="{escape(heading)}; the figures are below"></picture></figure></article>'
            f'<section aria-label="The figures"><div class="scroll">{table}</div></section></main>'
        )
        return _document(heading, body)

    def save(self, path: str | Path) -> Path:
        """Write to a file what its suffix says: .json everything, .html a page, .png, .svg or .pdf a picture.

        Raises:
            ValueError: another suffix.
        """
        return _written(Path(path), self.to_json, self.to_html, self.plot)


def summarise(explanations: Explanation | Iterable[Explanation], seed: int = 0) -> Summary:
    """What counts over all rows of one or many explanations of the same model.

    Intervals are percentiles over resampled rows: they say how far the importance would differ on other rows of the
    same kind, not how exactly each row was explained.

    Args:
        explanations: one, or several such as one per batch of a data set.
        seed: of the resampling.

    Raises:
        ValueError: none is given, or they differ in model, kind, unit, axes or size; or they are of pairs.

    Source: percentile bootstrap, Efron & Tibshirani 1993, section 13.3.
    """
    many = [explanations] if isinstance(explanations, Explanation) else list(explanations)
    if not many:
        raise ValueError("a summary needs at least one explanation, got none")
    first = many[0]
    if first.kind == "pair":
        raise ValueError(
            "a summary of pairs would mix both sides; summarise explanation.side(0) and explanation.side(1)"
        )
    for other in many[1:]:
        for fact in ("name", "kind", "unit", "axes", "columns"):
            if getattr(other, fact) != getattr(first, fact):
                raise ValueError(
                    f"a summary needs explanations of one model, got {fact} {getattr(first, fact)!r} and {getattr(other, fact)!r}"
                )
    if first.names:
        parts = _named(many)
    else:
        shapes = {one.attributions.shape[1:] for one in many}
        if len(shapes) > 1:
            raise ValueError(f"a summary needs rows of one size, got {' and '.join(map(str, sorted(shapes)))}")
        parts = _placed(many)
    values, present, axes, names = parts
    flat = values.reshape(len(values), -1)
    there = present.reshape(len(values), -1)
    counts = there.sum(axis=0)
    sizes = np.abs(flat)
    low, high = _intervals(sizes, there, seed)
    shape = values.shape[1:]
    methods = sorted({one.method for one in many})
    plain = Summary(
        name=first.name,
        kind=first.kind,
        task=first.task,
        unit=first.unit,
        method=", ".join(methods),
        rows=len(values),
        axes=axes,
        names=names,
        columns=first.columns if first.kind == "series" else (),
        importance=(sizes.sum(axis=0) / counts).reshape(shape),
        low=low.reshape(shape),
        high=high.reshape(shape),
        direction=(flat.sum(axis=0) / counts).reshape(shape),
        counts=counts.reshape(shape),
        faithfulness=_mean_faithfulness(many),
        complete=all(one.complete for one in many),
        seconds=sum(one.seconds for one in many),
        calls=sum(one.calls for one in many),
    )
    if first.kind == "table":
        return replace(plain, points=values, cells=_ranks(many))
    if axes == ("height", "width"):
        return replace(plain, classes=_classes(many, values))
    if first.kind == "series" and "times" in first.about:
        return replace(plain, times=first.about["times"][0])
    return plain


def _placed(many: list[Explanation]) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """Values of parts that every row has in the same place; the channels of an image are added up."""
    values = np.concatenate([one.attributions for one in many]).astype(np.float64)
    axes = many[0].axes[1:]
    if axes[:2] == ("height", "width") and values.ndim == 4:
        values, axes = values.sum(axis=-1), axes[:2]
    names = many[0].columns if axes == ("columns",) else ()
    return values, np.ones(values.shape, bool), axes, names


def _named(many: list[Explanation]) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """Values of parts by name, the same name in a row added up; of texts in lower case."""
    text = many[0].kind == "text"
    rows = [(one.names[row], one.parts(row)) for one in many for row in range(len(one))]
    keys = [[name.strip().lower() if text else name for name in names] for names, _ in rows]
    names = tuple(dict.fromkeys(name for row in keys for name in row))
    place = {name: at for at, name in enumerate(names)}
    values, present = np.zeros((len(rows), len(names))), np.zeros((len(rows), len(names)), bool)
    for row, (found, (_, shares)) in enumerate(zip(keys, rows, strict=True)):
        at = [place[name] for name in found]
        np.add.at(values[row], at, shares)
        present[row, at] = True
    return values, present, ("words" if text else many[0].axes[1],), names


def _intervals(sizes: np.ndarray, present: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """2.5 and 97.5 % points of each part's mean over resampled rows: (rows, parts) -> two (parts,)."""
    rows, parts = sizes.shape
    low, high = np.full(parts, np.nan), np.full(parts, np.nan)
    if rows < 2:
        return low, high
    weights = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), DRAWS).astype(np.float64)
    enough = np.flatnonzero(present.sum(axis=0) > 1)
    for start in range(0, len(enough), BLOCK):
        block = enough[start : start + BLOCK]
        drawn = weights @ present[:, block]  # (draws, parts): rows that have the part
        means = np.where(drawn > 0, weights @ sizes[:, block] / np.maximum(drawn, 1), np.nan)
        low[block], high[block] = np.nanpercentile(means, (2.5, 97.5), axis=0)
    return low, high


def _ranks(many: list[Explanation]) -> np.ndarray:
    """Mid-ranks of numbers within their column, in 0 … 1; NaN for texts and missing numbers (rows, columns)."""
    count = many[0].attributions.shape[1]
    ranks = np.full((sum(map(len, many)), count), np.nan)
    if not all("numbers" in one.inputs for one in many):
        return ranks
    numbers = np.concatenate([one.inputs["numbers"] for one in many]).astype(np.float64)
    for column in range(numbers.shape[1]):
        known = np.isfinite(numbers[:, column])
        _, places, counts = np.unique(numbers[known, column], return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        middle = ends - (counts + 1) / 2  # ranks from 0
        ranks[known, column] = middle[places] / max(known.sum() - 1, 1)
    return ranks


def _classes(many: list[Explanation], values: np.ndarray) -> dict[str, ClassMean]:
    """Mean attributions and image of each explained class, in the order of the labels."""
    labels = np.array([one.label(row) for one in many for row in range(len(one))])
    images = (
        np.concatenate([one.inputs["image"] for one in many]) if all("image" in one.inputs for one in many) else None
    )
    found = {}
    for label in dict.fromkeys([*many[0].labels, *labels.tolist()]):
        own = labels == label
        if own.any():
            image = np.zeros((*values.shape[1:], 1)) if images is None else images[own].mean(axis=0)
            found[label] = ClassMean(int(own.sum()), values[own].mean(axis=0), image)
    return found


def _mean_faithfulness(many: list[Explanation]) -> dict[str, float] | None:
    """Mean over the rows of all explanations, of the figures that each has."""
    if not all(one.faithfulness for one in many):
        return None
    shared = [
        key
        for key in many[0].faithfulness or {}
        if all(isinstance((one.faithfulness or {}).get(key), int | float) for one in many)
    ]
    weights = [len(one) for one in many]
    return {key: float(np.average([(one.faithfulness or {})[key] for one in many], weights=weights)) for key in shared}
