"""The result of an explanation: numbers, the error they carry, text, JSON and a picture."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np


@dataclass(frozen=True)
class Explanation:
    """How much each column or pixel moved each answer.

    Attributes:
        name, kind, task: of the explained model.
        attributions: (batch, height, width, channels) or (batch, columns), in probability or in the target's unit. A
            pixel's contribution is shared evenly by its channels, and a tile's by its pixels.
        axes: names of the axes of `attributions`.
        columns: column names, empty for images.
        labels: class names, or the target's name.
        base: answer to the background alone (batch,).
        prediction: the model's answer that is explained (batch,).
        target: index of the explained output (batch,).
        method, why: what was used and the reason for it.
        settings: figures it was used with.
        background_sha256: hash of the background rows.
        additivity_error: largest |base + sum of attributions - prediction| of a row.
        seconds: time taken.
        calls: model rows evaluated.
    """

    name: str
    kind: str
    task: str
    inputs: dict[str, np.ndarray] = field(repr=False)
    attributions: np.ndarray = field(repr=False)
    axes: tuple[str, ...]
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    base: np.ndarray
    prediction: np.ndarray
    target: np.ndarray
    method: str
    why: str
    settings: dict[str, Any]
    background_sha256: str
    additivity_error: float
    seconds: float
    calls: int

    @property
    def unit(self) -> str:
        """What the contributions are measured in."""
        return "target unit" if self.task == "regression" else "probability"

    def label(self, row: int) -> str:
        """Name of the output explained in a row."""
        return self.labels[int(self.target[row])]

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.method} ({self.why})"]
        for row in range(len(self.prediction)):
            lines.append(
                f"  row {row}: {self.label(row)} {self.prediction[row]:.4f} = base {self.base[row]:.4f} "
                f"{self.attributions[row].sum():+.4f}{self._leading(row)}"
            )
        lines.append(f"  additivity error {self.additivity_error:.1e}, {self.calls:,} model rows, {self.seconds:.2f} s")
        return "\n".join(lines)

    def _leading(self, row: int) -> str:
        if not self.columns:
            return ""
        order = np.argsort(-np.abs(self.attributions[row]))[:3]
        return ", most by " + ", ".join(f"{self.columns[i]} {self.attributions[row, i]:+.4f}" for i in order)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the inputs, in JSON types."""
        return {
            "model": self.name,
            "task": self.task,
            "method": self.method,
            "why": self.why,
            "unit": self.unit,
            "axes": list(self.axes),
            "columns": list(self.columns),
            "target": [{"index": int(index), "label": self.labels[int(index)]} for index in self.target],
            "prediction": self.prediction.tolist(),
            "base": self.base.tolist(),
            "attributions": self.attributions.tolist(),
            "additivity_error": self.additivity_error,
            "settings": self.settings,
            "background_sha256": self.background_sha256,
            "model_rows": self.calls,
            "seconds": self.seconds,
        }

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    def save(self, path: str | Path) -> Path:
        """Write the JSON to a file."""
        path = Path(path)
        path.write_text(self.to_json() + "\n", encoding="utf-8")
        return path

    def plot(self, path: str | Path | IO[bytes] | None = None, rows: int = 4) -> Any:
        """Draw images with their contributions, or bars for columns.

        Args:
            path: PNG file or open binary file to write; None writes nothing.
            rows: rows of the batch to draw, from the first.

        Returns:
            The matplotlib figure.
        """
        from zoo.explain.pictures import draw

        figure = draw(self, min(rows, len(self.prediction)))
        if path is not None:
            figure.savefig(path, format="png", dpi=120)
        return figure
