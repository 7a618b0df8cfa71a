"""The one result of every explanation: numbers with named axes, how far to trust them, JSON, HTML and pictures."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

FORMAT = 1  # of the JSON
PICTURES = (".png", ".svg", ".pdf")
WIDTH = 8.4  # inches of a picture
_ROUNDING = 1e-9  # of an answer
_UNITS = {"pair": "similarity", "detection": "score of the box"}


@dataclass(frozen=True)
class Side:
    """One of the two inputs that a pair compares.

    Attributes:
        kind: "image", "text", "table" or "series".
        inputs: what the kind calls an input -> its name among the pair's inputs, such as {"text": "left_text"}.
        shape: of the attributions of one row of this side.
        axes: name of each axis of `shape`, without the batch.
        columns, names: as in `Explanation`.
    """

    kind: str
    inputs: dict[str, str]
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    columns: tuple[str, ...] = ()
    names: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class Explanation:
    """How much each part of the input moved each answer.

    Attributes:
        name: of the explained model.
        kind: "image", "detection", "segmentation", "table", "text", "series", "graph" or "pair".
        task: of the model.
        inputs: raw inputs, one row of the batch each: `image`; `numbers` and `categories`; `text` (batch,) or `tokens`
            (batch, length); `series` (batch, time, channels); `nodes` (batch, nodes, features); either side's for a
            pair.
        attributions: (batch, ...) in `unit`, laid out as `axes` says: ("batch", "height", "width"[, "channels"]),
            ("batch", "columns"), ("batch", "tokens"), ("batch", "time"[, "channels"]), ("batch", "nodes"), ("batch",
            "edges"), and for a pair ("batch", "features"), one side's after the other's, each flat. A pixel's
            contribution is shared evenly by its channels, and a tile's by its pixels. What a shorter row lacks is zero.
        axes: name of each axis of `attributions`.
        columns: names that all rows share: a table's columns, the channels of a series; else empty.
        labels: class names, or the target's name.
        base: the answer with everything left out (batch,); None for a method that has none.
        prediction: the answer that is explained (batch,), in `answer_unit`.
        target: index of the explained output (batch,).
        method, why: what was used and the reason for it.
        settings: figures it was used with.
        background_sha256: hash of the background rows; "" for a method that needs none.
        additivity_error: largest |base + sum of attributions - prediction| of a row; None for a method whose values are
            not meant to add up.
        seconds: time taken.
        calls: model rows evaluated.
        names: each row's own names of its parts, along the second axis: words or tokens, nodes or edges; as long as the
            row is. Empty if they have none.
        about: what the answer is about, where the label does not tell, one row of the batch each. Detection: `box`
            (batch, 4) as left, top, right, bottom in pixels, and `others` (batch, boxes, 4), NaN where there are fewer.
            Segmentation: `region` bool (batch, height, width). Graph: `edges` int (batch, edges, 2), -1 where there are
            fewer. Series, if known: `times` (batch, time) in seconds.
        sides: of a pair.
        standard_error: of `attributions`, in their shape, where they were sampled.
        faithfulness: `deletion` and `insertion`, the mean answer while parts are taken out or put in, most important
            first, `deletion_random` and `insertion_random` for random orders. Low deletion and high insertion are good.
        stability: how alike the attributions stay when the input changes a little: rank correlation, 1 is the same.
        complete: False if the time budget ended it; the values are then the best so far.
        unit: of the attributions and the base; the settings' "unit", or what kind and task say, if "".
    """

    name: str
    kind: str
    task: str
    inputs: dict[str, np.ndarray] = field(repr=False)
    attributions: np.ndarray = field(repr=False)
    axes: tuple[str, ...]
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    base: np.ndarray | None
    prediction: np.ndarray
    target: np.ndarray
    method: str
    why: str
    settings: dict[str, Any]
    background_sha256: str
    additivity_error: float | None
    seconds: float
    calls: int
    names: tuple[tuple[str, ...], ...] = field(default=(), repr=False)
    about: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    sides: tuple[Side, ...] = field(default=(), repr=False)
    standard_error: np.ndarray | None = field(default=None, repr=False)
    faithfulness: dict[str, float] | None = None
    stability: float | None = None
    complete: bool = True
    unit: str = ""

    def __post_init__(self) -> None:
        shape = np.shape(self.attributions)
        if len(shape) != len(self.axes) or not self.axes or self.axes[0] != "batch":
            raise ValueError(f"attributions of shape {shape} need as many axes, the first 'batch', got {self.axes}")
        if not len(self.prediction) == len(self.target) == shape[0]:
            raise ValueError(
                f"attributions are of {shape[0]} rows, prediction of {len(self.prediction)} and target of {len(self.target)}"
            )
        if self.standard_error is not None and np.shape(self.standard_error) != shape:
            raise ValueError(f"standard_error must be {shape} as attributions, got {np.shape(self.standard_error)}")
        if not self.unit:
            inner = self.settings.get("unit", "answer")
            object.__setattr__(self, "unit", self.answer_unit if inner == "answer" else str(inner))

    @property
    def answer_unit(self) -> str:
        """What `prediction` is measured in; some methods share out the network's own output instead, see `unit`."""
        return _UNITS.get(self.kind, "target unit" if self.task == "regression" else "probability")

    def __len__(self) -> int:
        return len(self.prediction)

    def label(self, row: int) -> str:
        """Name of the output explained in a row."""
        index = int(self.target[row])
        return self.labels[index] if 0 <= index < len(self.labels) else self.unit

    def answer(self, row: int) -> str:
        """The explained answer of a row in words, such as `“seven” 98.3%`."""
        value = float(self.prediction[row])
        if self.answer_unit == "similarity" or self.unit == "similarity":
            return f"similarity {value:.3f}"
        if self.answer_unit == "probability" or self.kind == "detection":
            return f"“{self.label(row)}” {value:.1%}"
        if self.task == "regression":
            return f"{self.label(row)} = {value:.4g}"
        return f"“{self.label(row)}” {value:.4g}"

    def amount(self, value: float) -> str:
        """A base or a sum in `unit` as text: a percentage for probabilities, else four digits."""
        share = self.unit in ("probability", _UNITS["detection"])
        return f"{value:.1%}" if share else f"{value:.4g}".replace("-", "−")

    def rounding(self, row: int) -> float:
        """Size below which a contribution is the answer's rounding and nothing else."""
        base = 0.0 if self.base is None else abs(float(self.base[row]))
        return _ROUNDING * max(base, abs(float(self.prediction[row])))

    def way(self, row: int) -> str:
        """From what the contributions start and where they end, in words; empty without a base."""
        if self.base is None:
            return ""
        start = self.amount(float(self.base[row]))
        if self.unit == self.answer_unit:
            return f"from {start} for the background"
        end = self.amount(float(self.base[row] + self.attributions[row].sum()))
        return f"{self.unit} {end}, from {start} for the background"

    def parts(self, row: int) -> np.ndarray:
        """Attributions of a row without what it lacks: `(names,)` if parts have names, else as in `attributions`."""
        values = self.attributions[row]
        return values[: len(self.names[row])] if self.names else values

    def side(self, index: int) -> "Explanation":
        """One side of a pair as an explanation of its own kind; the base and the answer stay the pair's."""
        one = self.sides[index]
        start = sum(int(np.prod(side.shape)) for side in self.sides[:index])
        size = int(np.prod(one.shape))

        def cut(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[:, start : start + size].reshape(len(values), *one.shape)

        return replace(
            self,
            kind=one.kind,
            inputs={kind: self.inputs[name] for kind, name in one.inputs.items()},
            attributions=cut(self.attributions),
            standard_error=cut(self.standard_error),
            axes=("batch", *one.axes),
            columns=one.columns,
            names=one.names,
            sides=(),
        )

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.method} ({self.why})"]
        for row in range(len(self)):
            total, value = float(self.attributions[row].sum()), float(self.prediction[row])
            equals = "" if self.base is None else f" = base {self.base[row]:.4f} {total:+.4f}"
            if equals and self.unit != self.answer_unit:
                equals = f", {self.unit} {self.base[row] + total:.4f}{equals}"
            lines.append(f"  row {row}: {self.label(row)} {value:.4f}{equals}{self._leading(row)}")
        lines.append(f"  {'; '.join(self.trust())}")
        return "\n".join(lines)

    def trust(self) -> list[str]:
        """What the figures say of themselves, in short texts: completeness, errors, faithfulness, stability, cost."""
        told = []
        if not self.complete:
            told.append("stopped by the time budget, the best so far")
        if self.additivity_error is not None:
            told.append(f"additivity error {self.additivity_error:.1e}")
        if self.standard_error is not None:
            told.append(f"standard error {self.sampling()}")
        for what in ("deletion", "insertion"):
            if self.faithfulness and what in self.faithfulness:
                random = self.faithfulness.get(f"{what}_random")
                against = "" if random is None else f" (random order {random:.3f})"
                told.append(f"{what} {self.faithfulness[what]:.3f}{against}")
        if self.stability is not None:
            told.append(f"stability {self.stability:.2f}")
        return [*told, f"{self.calls:,} model rows", f"{self.seconds:.2f} s"]

    def sampling(self) -> str:
        """The largest standard error in words; empty where nothing was sampled."""
        if self.standard_error is None:
            return ""
        most = float(np.abs(self.standard_error).max(initial=0))
        return f"{most:.1e} at most" if np.isfinite(most) else "unknown, too little was evaluated"

    def _leading(self, row: int) -> str:
        """The three parts that count most, where parts have names."""
        values = self.parts(row)
        if values.ndim > 1 or not (self.names or self.columns):
            return ""
        names = self.names[row] if self.names else self.columns
        order = np.argsort(-np.abs(values), kind="stable")[:3]
        return ", most by " + ", ".join(f"{names[i]} {values[i]:+.4f}" for i in order)

    def to_dict(self, inputs: bool = True) -> dict[str, Any]:
        """Everything in JSON types.

        Args:
            inputs: whether the raw inputs are in it; without them `from_json` reads figures but cannot draw.
        """
        told = {
            "format": FORMAT,
            "model": self.name,
            "kind": self.kind,
            "task": self.task,
            "method": self.method,
            "why": self.why,
            "unit": self.unit,
            "axes": list(self.axes),
            "columns": list(self.columns),
            "names": [list(row) for row in self.names],
            "labels": list(self.labels),
            "target": [{"index": int(at), "label": self.label(row)} for row, at in enumerate(self.target)],
            "prediction": _listed(self.prediction),
            "base": _listed(self.base),
            "attributions": _listed(self.attributions),
            "standard_error": _listed(self.standard_error),
            "additivity_error": _number(self.additivity_error),
            "faithfulness": _plain(self.faithfulness),
            "stability": _number(self.stability),
            "complete": bool(self.complete),
            "settings": _plain(self.settings),
            "background_sha256": self.background_sha256,
            "model_rows": int(self.calls),
            "seconds": float(self.seconds),
            "about": {key: _stored(values) for key, values in self.about.items()},
            "sides": [{entry.name: _plain(getattr(side, entry.name)) for entry in fields(side)} for side in self.sides],
        }
        if inputs:
            told["inputs"] = {key: _stored(values) for key, values in self.inputs.items()}
        return told

    def to_json(self, inputs: bool = True) -> str:
        """`to_dict` as text; missing numbers are null."""
        return json.dumps(self.to_dict(inputs), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Explanation":
        """Read what `to_json` wrote.

        Raises:
            ValueError: not an explanation, or one of another format.
        """
        raw = _parsed(text, "Explanation")
        same = ("kind", "task", "method", "why", "settings", "background_sha256", "seconds", "complete", "unit")
        same = (*same, "additivity_error", "faithfulness", "stability")
        try:
            return cls(
                name=raw["model"],
                inputs={key: _read(stored) for key, stored in raw.get("inputs", {}).items()},
                attributions=np.asarray(raw["attributions"], np.float64),
                axes=tuple(raw["axes"]),
                columns=tuple(raw["columns"]),
                labels=tuple(raw["labels"]),
                base=_array(raw["base"]),
                prediction=np.asarray(raw["prediction"], np.float64),
                target=np.array([target["index"] for target in raw["target"]], np.int64),
                calls=raw["model_rows"],
                names=tuple(map(tuple, raw["names"])),
                about={key: _read(stored) for key, stored in raw["about"].items()},
                sides=tuple(_side(side) for side in raw["sides"]),
                standard_error=_array(raw["standard_error"]),
                **{key: raw[key] for key in same},
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no explanation: {error!r}; give what Explanation.to_json wrote") from None

    def to_html(self, rows: int = 4) -> str:
        """A page of its own, without anything from elsewhere, for the first rows of the batch."""
        from zoo.explain.html import page

        return page(self, rows)

    def save(self, path: str | Path, rows: int = 4, style: str | None = None) -> Path:
        """Write to a file what its suffix says: .json everything, .html a page, .png, .svg or .pdf a picture.

        Args:
            path: file to write.
            rows: rows of the batch on the page or picture, from the first.
            style: of the picture, see `plot`.

        Raises:
            ValueError: another suffix.
        """
        return _written(Path(path), self.to_json, lambda: self.to_html(rows), lambda path: self.plot(path, rows, style))

    def plot(
        self,
        path: str | Path | IO[bytes] | None = None,
        rows: int = 4,
        style: str | None = None,
        dark: bool = False,
        width: float = WIDTH,
    ) -> Any:
        """Draw the input with its attributions.

        Args:
            path: picture file (PNG, or by its suffix .svg or .pdf) or open binary file to write; None writes nothing.
            rows: rows of the batch to draw, from the first.
            style: "overlay" or "map" for images; "bar" or "waterfall" for tables; "colour" or "bar" for texts; the
                first if None.
            dark: colours for a dark page.
            width: inches, 4 … 20; letters keep their size, so a narrow picture can be read where there is little room.

        Returns:
            The matplotlib figure.

        Raises:
            ValueError: `rows` is not 1 … 64, `width` not 4 … 20, no such style, or the explanation was read without its
                inputs.
        """
        from zoo.explain.pictures import draw

        return _pictured(draw(self, rows, style, dark, width), path, max(1.0, WIDTH / width))


def _written(path: Path, text: Callable[[], str], page: Callable[[], str], picture: Callable[[Path], Any]) -> Path:
    """Write what the suffix of a path says, by one of three functions."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        path.write_text(text() + "\n", encoding="utf-8")
    elif suffix in (".html", ".htm"):
        path.write_text(page(), encoding="utf-8")
    elif suffix in PICTURES:
        picture(path)
    else:
        raise ValueError(f"cannot tell from {path.name!r} what to write; end it in .json, .html, .png, .svg or .pdf")
    return path


def _pictured(figure: Any, path: str | Path | IO[bytes] | None, scale: float = 1.0) -> Any:
    """A figure, which is also written to a path or open file if there is one."""
    if path is not None:
        suffix = Path(path).suffix.lower() if isinstance(path, str | Path) else ""
        form = suffix[1:] if suffix in PICTURES else "png"
        figure.savefig(path, format=form, dpi=120 * scale, facecolor=figure.get_facecolor())
    return figure


def _parsed(text: str, kind: str) -> dict[str, Any]:
    """The fields of an Explanation or a Summary in JSON."""
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise ValueError(f"this is no JSON: {error}; give what {kind}.to_json wrote") from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        got = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
        raise ValueError(f"this is no {kind.lower()} of format {FORMAT}, got {got!r}; give what {kind}.to_json wrote")
    return raw


def _side(raw: dict[str, Any]) -> Side:
    tuples = {key: tuple(raw[key]) for key in ("shape", "axes", "columns")}
    return Side(**{**raw, **tuples, "names": tuple(map(tuple, raw["names"]))})


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _listed(values: np.ndarray | None) -> Any:
    """Nested lists, null for what is no number."""
    if values is None:
        return None
    values = np.asarray(values)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return np.where(np.isfinite(values), values, None).tolist()
    return values.tolist()


def _array(values: Any) -> np.ndarray | None:
    return None if values is None else np.asarray(values, np.float64)


def _plain(value: Any) -> Any:
    """A setting in JSON types."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.ndarray):
        return _listed(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return _number(value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _stored(values: np.ndarray) -> dict[str, Any]:
    """An input with its type: bytes as base64, all else as nested lists."""
    values = np.asarray(values)
    if values.dtype in (np.uint8, np.bool_):
        packed = base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
        return {"dtype": values.dtype.name, "shape": list(values.shape), "base64": packed}
    text = values.dtype.kind in "UO"
    return {
        "dtype": "text" if text else values.dtype.name,
        "shape": list(values.shape),
        "values": values.astype(str).tolist() if text else _listed(values),
    }


def _read(stored: dict[str, Any]) -> np.ndarray:
    shape = tuple(stored["shape"])
    if "base64" in stored:
        return np.frombuffer(base64.b64decode(stored["base64"]), np.dtype(stored["dtype"])).reshape(shape).copy()
    dtype: Any = str if stored["dtype"] == "text" else np.dtype(stored["dtype"])
    return np.asarray(stored["values"], dtype).reshape(shape)
