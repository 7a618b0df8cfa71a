"""What a bundle says of itself, and the reader that trusts nothing it has not hashed. Standard library only.

A bundle is the folder `store/<name>/<version>/`. `SHA256SUMS` lists every other file; a file that is missing,
changed or not listed refuses the whole bundle. Files are hashed in blocks, once, so that they may be of any size.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 2
_READ = (1, 2)  # 2 added files beside an ONNX file, times and changes, and what device files are
SUMS = "SHA256SUMS"
MANIFEST = "model.json"


class BundleError(ValueError):
    """The folder is not a bundle that may be loaded; the message says which file and why."""


@dataclass(frozen=True)
class Port:
    """A named tensor at the edge of the model.

    Attributes:
        name: tensor name, the same in the ONNX file, the protocol and this manifest.
        dtype: Open Inference Protocol datatype: UINT8, FP32, INT64, BYTES …
        shape: sizes, -1 where free; the first axis is the batch.
        axes: a name for each size.
        range: smallest and largest meaningful value, None if unbounded.
        unit: what a value means.
        columns: names along the last axis, for tables.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    range: tuple[float, float] | None = None
    unit: str = ""
    columns: tuple[str, ...] = ()

    @property
    def sizes(self) -> str:
        """`(batch, 8, 8, 1)`: fixed sizes as numbers, free ones by the name of their axis."""
        sizes = [axis if size < 0 else str(size) for axis, size in zip(self.axes, self.shape, strict=True)]
        return f"({', '.join(sizes)})"


@dataclass(frozen=True)
class Precision:
    """One stored form of the model.

    Attributes:
        file: ONNX file inside the bundle.
        bytes: its size, with that of the weights beside it.
        parity: largest absolute difference from the Keras model's output on the golden rows.
        score: the task's metric on the held-out split, None if no data was given.
        kept_float: Keras layers left in float, for an INT8 file.
        weights: file that holds the weights of an ONNX file too large for one, such as "model.onnx.data"; else "".
        ms: median milliseconds of one row on the machine that exported it, None if not measured.
        changes: what differs from the "fp32" file on the held-out split, for every other precision; see the card.
    """

    file: str
    bytes: int
    parity: float
    score: float | None = None
    kept_float: tuple[str, ...] = ()
    weights: str = ""
    ms: float | None = None
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Edge:
    """A file for devices.

    Attributes:
        format: "tflite" (LiteRT) or "ort" (ONNX Runtime's own).
        precision: "fp32", "fp16", "w8" or "int8".
        bytes: its size.
        difference: largest absolute difference from Keras on the held-out split.
        agreement: share of held-out rows with Keras' answer; for values, the share of their variance explained.
        inputs: names of what it takes: the bundle's own inputs, or "features", which `Manifest.preprocess` gives.
        score: the task's metric on the held-out split.
        ms: median milliseconds of one row on the machine that exported it.
    """

    format: str
    precision: str
    bytes: int
    difference: float
    agreement: float
    inputs: tuple[str, ...] = ()
    score: float | None = None
    ms: float | None = None


@dataclass(frozen=True)
class Manifest:
    """Everything a server, device or explainer needs to know of a model.

    Attributes:
        kind: how an answer is asked for: "image" (one UINT8 image port) or "table" (`numbers` and `categories`).
        labels: class names in output order; for regression the target's name.
        metric: name of the score, such as "accuracy" or "r2".
        choices: known values by categorical column.
        default: precision a server uses when none is asked for.
        refused: precision -> why it was not stored, with figures.
        training: provenance: data name and hash, seed, versions, licence.
        edge: files for devices, by name.
        preprocess: what turns raw inputs into the model's own; ONNX files do this themselves.
    """

    name: str
    version: str
    architecture: str
    task: str
    kind: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    labels: tuple[str, ...]
    metric: str
    precisions: dict[str, Precision]
    default: str = "fp32"
    choices: dict[str, tuple[str, ...]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    edge: dict[str, Edge] = field(default_factory=dict)
    preprocess: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Parse `model.json`.

        Raises:
            BundleError: not JSON, another format version, or a missing or unknown field.
        """
        try:
            raw = json.loads(text)
            if raw.get("format") not in _READ:
                raise BundleError(
                    f"{MANIFEST} has format {raw.get('format')!r}, this reader knows {FORMAT}; update zooroad or export again"
                )
            inputs = tuple(_port(p) for p in raw.pop("inputs"))
            outputs = tuple(_port(p) for p in raw.pop("outputs"))
            precisions = {
                key: Precision(**{**p, "kept_float": tuple(p["kept_float"])})
                for key, p in raw.pop("precisions").items()
            }
            choices = {key: tuple(values) for key, values in raw.pop("choices").items()}
            labels = tuple(raw.pop("labels"))
            edge = {name: _edge(name, e) for name, e in raw.pop("edge").items()}
            known: dict[str, Any] = dict(precisions=precisions, choices=choices, labels=labels, edge=edge)
            manifest = cls(inputs=inputs, outputs=outputs, **known, **raw)
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise BundleError(f"{MANIFEST} cannot be read: {error!r}; export the bundle again") from error
        if manifest.default not in manifest.precisions:
            raise BundleError(
                f"{MANIFEST}: default precision {manifest.default!r} is not among {sorted(manifest.precisions)}"
            )
        return manifest


def _port(raw: dict[str, Any]) -> Port:
    tuples = {key: tuple(raw[key]) for key in ("shape", "axes", "columns")}
    return Port(**{**raw, **tuples, "range": tuple(raw["range"]) if raw["range"] else None})


def _edge(name: str, raw: dict[str, Any]) -> Edge:
    """A file for devices; in format 1 there were LiteRT files only, and their names said the precision."""
    former = {"format": "tflite", "precision": "int8" if ".int8." in name else "fp32"}
    return Edge(**{**former, **raw, "inputs": tuple(raw.get("inputs", ()))})


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    folder: Path
    manifest: Manifest

    def model(self, precision: str | None = None) -> Path:
        """Path of the ONNX file for a precision, the manifest's default if None."""
        precision = precision or self.manifest.default
        if precision not in self.manifest.precisions:
            raise BundleError(
                f"{self.folder} has no precision {precision!r}; it has {', '.join(self.manifest.precisions)}"
            )
        return self.folder / self.manifest.precisions[precision].file


def digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path) -> None:
    """Write `SHA256SUMS` over every other file of a folder, in `sha256sum` format."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SUMS)
    lines = [f"{digest(p)}  {p.relative_to(folder).as_posix()}\n" for p in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def read(folder: str | Path) -> Bundle:
    """Verify and read a bundle.

    Raises:
        BundleError: no such folder, a file missing, changed or not listed, or a manifest this reader does not know.
    """
    folder = Path(folder)
    sums = folder / SUMS
    if not sums.is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {SUMS}; give a folder such as store/<name>/<version>")
    listed: dict[str, str] = {}
    for number, line in enumerate(sums.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        sha, separator, name = line.partition("  ")
        if not separator or len(sha) != 64:
            raise BundleError(
                f"{sums}, line {number} is not '<sha256>  <file>'; the bundle is damaged, export it again"
            )
        listed[name] = sha
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file() and p != sums}
    for name in sorted(listed.keys() ^ found.keys()):
        state = "listed but missing" if name in listed else "present but not listed"
        raise BundleError(f"{folder}: {name!r} is {state} in {SUMS}; the bundle is damaged, export it again")
    for name, path in found.items():
        if digest(path) != listed[name]:
            raise BundleError(
                f"{folder}: {name!r} does not match its hash in {SUMS}; the bundle was changed, export it again"
            )
    if MANIFEST not in listed:
        raise BundleError(f"{folder} has no {MANIFEST}; export the bundle again")
    manifest = Manifest.from_json((folder / MANIFEST).read_text(encoding="utf-8"))
    for key, precision in manifest.precisions.items():
        for name in (precision.file, *([precision.weights] if precision.weights else [])):
            if name not in listed:
                raise BundleError(f"{folder}: precision {key!r} names {name!r}, which the bundle does not hold")
    for name in manifest.edge:
        if name not in listed:
            raise BundleError(f"{folder}: {MANIFEST} names {name!r} for devices, which the bundle does not hold")
    return Bundle(folder, manifest)
