"""What a bundle says of itself, and the reader that trusts nothing it has not hashed. Standard library only.

A bundle is the folder `store/<name>/<version>/`. `SHA256SUMS` lists every other file; a file that is missing,
changed or not listed refuses the whole bundle. Files are hashed in blocks, once, so that they may be of any size.
`SIGNATURE` may stand beside them: signatures over `SHA256SUMS`, and so over every file, by those who vouch for the
bundle.
"""

import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from serve import archives
from serve.references import referenced

FORMAT = 6
# 2 added files beside an ONNX file, times, changes, what device files are; 3 calibration; 4 verification; 5 generation;
# 6 decoders that give their caches whole
_READ = (1, 2, 3, 4, 5, 6)
SUMS = "SHA256SUMS"
SIGNATURE = "SIGNATURE"
MANIFEST = "model.json"
SIGNED = b"zooroad bundle 1\n"  # stands before the content of SHA256SUMS in what is signed
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # of models and versions
_SUM = re.compile(r"([0-9a-f]{64})  ([^\0\r\n\\]{1,1024})")
_SIGNATURE = re.compile(r"ed25519 ([0-9a-f]{16}) ([0-9a-f]{128})")
_HALVES = ("decoder", "encoder", "drawer")  # files by which a text is written, or a picture painted
_WRITING = (*_HALVES, *(f"{what}_weights" for what in _HALVES))
_PICTURE = ("text", "padding", "pad", "places")
_SMALL = 16 * 2**20  # bytes that a manifest or a list of hashes may have
_YOUNG = 2.0  # seconds within which a clock may give two writes one time

Trust = tuple[bytes, ...]  # raw Ed25519 public keys, of which one must have signed; none asks for no signature


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
        others: `parity` of each further output, such as "activation_map", by its name.
    """

    file: str
    bytes: int
    parity: float
    score: float | None = None
    kept_float: tuple[str, ...] = ()
    weights: str = ""
    ms: float | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    others: dict[str, float] = field(default_factory=dict)


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
        others: `difference` of each further output on the golden rows, by its name.
    """

    format: str
    precision: str
    bytes: int
    difference: float
    agreement: float
    inputs: tuple[str, ...] = ()
    score: float | None = None
    ms: float | None = None
    others: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """Everything a server, device or explainer needs to know of a model.

    Attributes:
        kind: how an answer is asked for: "image" (one UINT8 image port), "table" (`numbers` and `categories`), "audio" (one
            FP32 port of amplitudes, NaN behind a row's end; `preprocess["rate"]` of them a second) or "text" (one
            BYTES port; the ONNX file takes the `tokens` that the file `preprocess["tokenizer"]` makes of it).
        labels: class names in output order; for regression the target's name.
        metric: name of the score, such as "accuracy" or "r2".
        choices: known values by categorical column.
        default: precision a server uses when none is asked for.
        refused: precision -> why it was not stored, with figures.
        training: provenance: data name and hash, seed, versions, licence.
        edge: files for devices, by name.
        preprocess: what turns raw inputs into the model's own; ONNX files do this themselves. Of a forecast `time` may
            have the column of times and its step, see `serve.times.checked`.
        calibration: how logits become probabilities where that is more than a softmax: method, scale, bias, and the
            expected calibration error before and after; ONNX files do this themselves.
        conformal: sets or intervals that `/predict` answers: method, level, thresholds by precision, and the coverage
            and size measured on the held-out split.
        verification: of an embedding, when two rows are one identity: the `measure` ("cosine"), `thresholds` by
            precision, chosen on pairs of the validation split, and on those of the held-out split the shares of pairs
            judged rightly (`accuracy`), of two identities taken for one (`false_acceptance`) and of one taken for two
            (`false_rejection`), each by precision.
        generation: of a model that writes texts: by precision the `files` of its decoder, and of the encoder in front of it
            where it has one, with their size and the largest difference of logits from Keras (`parity`); names and shapes
            of the decoder's `caches` and `states` and of what is `crossing` from the encoder; what the encoder reads
            (`source`); tokens that `start` a text and that `end` it (-1 for none); most places (`length`, 0 for any
            number); and why a precision has the float decoder (`refused`). Of a model that paints the files have a `drawer`,
            and `picture` says how many codes there are, which have the first numbers (`text`), the number of the first
            token for padding (`padding`), that of padding in the tokenizer (`pad`) and the codes of a picture (`places`).
            See `serve.generation` and `serve.painting`. Else empty.
        max_batch: most rows of one run whose answers within the file take 1 GB at most, 0 where 1,024 do.
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
    calibration: dict[str, Any] = field(default_factory=dict)
    conformal: dict[str, Any] = field(default_factory=dict)
    verification: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    max_batch: int = 0
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
            if raw.get("generation") and raw["format"] < 6:
                raise BundleError(f"{MANIFEST} has format {raw['format']}, whose decoders cannot be run; export again")
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
            _check_types(manifest)
        except BundleError:
            raise
        except (TypeError, KeyError, AttributeError, ValueError, RecursionError) as error:
            raise BundleError(f"{MANIFEST} cannot be read: {error!r}; export the bundle again") from error
        if manifest.default not in manifest.precisions:
            raise BundleError(
                f"{MANIFEST}: default precision {manifest.default!r} is not among {sorted(manifest.precisions)}"
            )
        return manifest


def _check_types(manifest: Manifest) -> None:
    """Refuse values of a kind that later code would stumble over, or that could name a place outside the bundle."""
    for what, text in (("name", manifest.name), ("version", manifest.version)):
        if not (isinstance(text, str) and NAME.fullmatch(text)):
            raise ValueError(f"{what} must be letters, digits, '.', '_' and '-', got {text!r:.80}")
    texts = [manifest.architecture, manifest.task, manifest.kind, manifest.metric, manifest.default, *manifest.labels]
    texts += [value for values in manifest.choices.values() for value in values]
    for port in (*manifest.inputs, *manifest.outputs):
        texts += [port.name, port.dtype, port.unit, *port.axes, *port.columns]
        if len(port.shape) != len(port.axes) or not all(type(size) is int and size >= -1 for size in port.shape):
            raise ValueError(f"{port.name!r:.80} has shape {port.shape!r:.80} and axes {port.axes!r:.80}")
        if port.range is not None and not (
            len(port.range) == 2 and all(type(end) in (int, float) for end in port.range)
        ):
            raise ValueError(f"{port.name!r:.80} has range {port.range!r:.80}, which is not two numbers")
    for key, precision in manifest.precisions.items():
        texts += [precision.file, precision.weights]
        if type(precision.bytes) is not int or type(precision.parity) not in (int, float):
            raise ValueError(f"precision {key!r:.80} has bytes or parity that is no number")
        if not all(type(value) in (int, float) for value in precision.others.values()):
            raise ValueError(f"precision {key!r:.80} has a parity of a further output that is no number")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a name, label, unit or file is not text")
    tables: tuple[Any, ...] = (manifest.refused, manifest.training, manifest.edge, manifest.preprocess)
    tables = (*tables, manifest.calibration, manifest.conformal, manifest.verification, manifest.generation)
    if not all(isinstance(table, dict) for table in tables):
        raise ValueError(
            "refused, training, edge, preprocess, calibration, conformal, verification and generation are objects"
        )
    if not isinstance(manifest.preprocess.get("tokenizer", ""), str):
        raise ValueError("the name of the tokenizer is no text")
    if time := manifest.preprocess.get("time"):
        texts = [time[what] for what in ("column", "unit")]
        if not all(isinstance(text, str) for text in texts) or type(time["step"]) not in (int, float):
            raise ValueError("preprocess has a time whose column or unit is no text, or whose step is no number")
    if manifest.generation:
        _check_generation(manifest.generation)
    if manifest.verification:
        limits = manifest.verification.get("thresholds")
        if not isinstance(limits, dict) or not all(type(limit) in (int, float) for limit in limits.values()):
            raise ValueError("verification has no thresholds, or one that is no number")
    if manifest.conformal:
        thresholds = manifest.conformal.get("thresholds")
        known = {"regression": ("residual",)}.get(manifest.task, ("aps",))
        if manifest.conformal.get("method") not in known or not isinstance(thresholds, dict):
            raise ValueError(f"conformal of a {manifest.task} has a method among {known} and thresholds")
        if not all(type(limit) in (int, float) for limit in thresholds.values()):
            raise ValueError("a conformal threshold is no number")


def _check_generation(block: dict[str, Any]) -> None:
    """Refuse a decoder that is not described as `serve.generation` needs it."""
    if not isinstance(block.get("files"), dict) or "fp32" not in block["files"]:
        raise ValueError("generation has no files of a decoder in fp32")
    for form in block["files"].values():
        if not all(isinstance(form.get(what, ""), str) for what in _WRITING) or not form["decoder"]:
            raise ValueError("generation names a file by what is no text, or no decoder")
        if "picture" in block and not form.get("drawer"):
            raise ValueError("generation names no file that makes pictures of codes")
    whole = [block.get("length"), block.get("end"), *block.get("start", [None])]
    if "picture" in block:
        whole += [block["picture"].get(what) for what in _PICTURE]
    if not all(type(number) is int and -1 <= number < 2**31 for number in whole):
        raise ValueError(
            "generation has a length, start or end that is no whole number, or a picture has such a number"
        )
    if not isinstance(block.get("source"), str) or not all(isinstance(name, str) for name in block["crossing"]):
        raise ValueError("generation names a tensor by what is no text")
    for one, sizes in [*((one, 3) for one in block["caches"]), *((one, 1) for one in block["states"])]:
        shape = one.get("shape")
        if not isinstance(one.get("name"), str) or not isinstance(shape, list) or len(shape) != sizes:
            raise ValueError("generation has a cache without name or shape")
        if not all(type(size) is int and (size > 0 or size == -1) for size in shape):
            raise ValueError(f"generation has a cache of shape {shape!r:.80}")
    if not all(isinstance(one.get("first"), str) for one in block["states"]):
        raise ValueError("generation has a state that does not say what it begins with")


def _port(raw: dict[str, Any]) -> Port:
    tuples = {key: tuple(raw[key]) for key in ("shape", "axes", "columns")}
    return Port(**{**raw, **tuples, "range": tuple(raw["range"]) if raw["range"] else None})


def _edge(name: str, raw: dict[str, Any]) -> Edge:
    """A file for devices; in format 1 there were LiteRT files only, and their names said the precision."""
    former = {"format": "tflite", "precision": "int8" if ".int8." in name else "fp32"}
    return Edge(**{**former, **raw, "inputs": tuple(raw.get("inputs", ()))})


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk.

    Attributes:
        folder: where it is.
        manifest: what it says of itself.
        digest: SHA-256 of `SHA256SUMS`, which stands for every byte of the bundle; "" for one that was just written.
        signers: ids of the trusted keys that signed it, empty where no signature was asked for.
    """

    folder: Path
    manifest: Manifest
    digest: str = ""
    signers: tuple[str, ...] = ()
    _seen: dict[str, "_Seen"] = field(default_factory=dict, repr=False, compare=False)

    def confirm(self) -> None:
        """Make sure, after its files were loaded, that they are those that were verified.

        Raises:
            BundleError: a file was written to, replaced or removed since.
        """
        for name, seen in self._seen.items():
            path = self.folder / name
            try:
                same = _stamp(path.lstat()) == seen.stamp and (not seen.young or digest(path) == seen.sha)
            except OSError:
                same = False
            if not same:
                raise BundleError(
                    f"{self.folder}: {name!r} changed while it was loaded; load it again once it is whole"
                )

    def model(self, precision: str | None = None) -> Path:
        """Path of the ONNX file for a precision, the manifest's default if None."""
        precision = precision or self.manifest.default
        if precision not in self.manifest.precisions:
            raise BundleError(
                f"{self.folder} has no precision {precision!r}; it has {', '.join(self.manifest.precisions)}"
            )
        return self.folder / self.manifest.precisions[precision].file


@dataclass(frozen=True)
class _Seen:
    """A file as it was when its hash was taken."""

    stamp: tuple[int, ...]
    young: bool  # written so shortly before that a later write could leave the same times
    sha: str


def _stamp(state: os.stat_result) -> tuple[int, ...]:
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path) -> None:
    """Write `SHA256SUMS` over every other file of a folder, in `sha256sum` format; a signature over older sums goes."""
    (folder / SIGNATURE).unlink(missing_ok=True)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SUMS)
    lines = [f"{digest(p)}  {p.relative_to(folder).as_posix()}\n" for p in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def key_id(key: bytes) -> str:
    """Short name of a raw public key: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(key).hexdigest()[:16]


def load_trust(path: str | Path) -> Trust:
    """Public keys whose signature makes a bundle trusted.

    Args:
        path: a PEM file with an Ed25519 public key, or a folder with such files named `*.pub`.

    Raises:
        FileNotFoundError: no such file, or a folder without keys.
        ValueError: a file that is no Ed25519 public key.
        ImportError: `cryptography` is not installed.
    """
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    path = Path(path)
    files = sorted(path.glob("*.pub")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path} has no file *.pub; put the signers' public keys there")
    keys = []
    for file in files:
        try:
            key = load_pem_public_key(file.read_bytes())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ValueError(f"{file} is no public key in PEM; make a pair with: zoo sign --new-key NAME") from error
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError(f"{file} holds a key of another kind than Ed25519; make one with: zoo sign --new-key NAME")
        keys.append(key.public_bytes_raw())
    return tuple(keys)


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "signatures need cryptography, which is not installed; run: pip install cryptography"
        ) from error


def read(folder: str | Path, *, trust: Trust = ()) -> Bundle:
    """Verify and read a bundle.

    Args:
        folder: `store/<name>/<version>`.
        trust: public keys, of which one must have signed the bundle; see `load_trust`. Without any, no signature is
            asked for, and one that is there is not looked at.

    Raises:
        BundleError: no such folder; a file missing, changed, not listed, or no plain file; no signature by a trusted
            key; a manifest this reader does not know; an ONNX file that reads files outside the bundle; or an archive
            that unpacks to too much.
    """
    folder = Path(folder)
    sums = folder / SUMS
    if not sums.is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {SUMS}; give a folder such as store/<name>/<version>")
    found = {path.relative_to(folder).as_posix(): state for path, state in _plain_files(folder, folder)}
    content = _small(folder, SUMS)
    signers = _signers(folder, content, trust) if trust else ()
    listed = _listed(sums, content)
    found.pop(SUMS)
    found.pop(SIGNATURE, None)
    for name in sorted(listed.keys() ^ found.keys()):
        state = "listed but missing" if name in listed else "present but not listed"
        raise BundleError(f"{folder}: {name!r} is {state} in {SUMS}; the bundle is damaged, export it again")
    seen = {}
    for name, state_of in found.items():
        if digest(folder / name) != listed[name]:
            raise BundleError(
                f"{folder}: {name!r} does not match its hash in {SUMS}; the bundle was changed, export it again"
            )
        young = time.time() - max(state_of.st_mtime, state_of.st_ctime) < _YOUNG
        seen[name] = _Seen(_stamp(state_of), young, listed[name])
    if MANIFEST not in listed:
        raise BundleError(f"{folder} has no {MANIFEST}; export the bundle again")
    try:
        manifest = Manifest.from_json(_small(folder, MANIFEST).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BundleError(f"{folder}: {MANIFEST} is not UTF-8 text; export the bundle again") from error
    for key, precision in manifest.precisions.items():
        for name in (precision.file, *([precision.weights] if precision.weights else [])):
            if name not in listed:
                raise BundleError(f"{folder}: precision {key!r} names {name!r}, which the bundle does not hold")
    for key, form in manifest.generation.get("files", {}).items():
        for name in filter(None, (form.get(what) for what in _WRITING)):
            if name not in listed:
                raise BundleError(f"{folder}: the decoder in {key!r} needs {name!r}, which the bundle does not hold")
    for name in manifest.edge:
        if name not in listed:
            raise BundleError(f"{folder}: {MANIFEST} names {name!r} for devices, which the bundle does not hold")
    if (tokenizer := manifest.preprocess.get("tokenizer")) is not None and tokenizer not in listed:
        raise BundleError(f"{folder}: {MANIFEST} names the tokenizer {tokenizer!r:.80}, which the bundle does not hold")
    _check_references(folder, manifest, listed)
    for name in listed:
        if name.endswith(".npz"):
            try:
                archives.check(folder / name)
            except ValueError as error:
                raise BundleError(f"{folder}: {name!r} is refused: {error}; export the bundle again") from error
    return Bundle(folder, manifest, hashlib.sha256(content).hexdigest(), signers, seen)


def _plain_files(folder: Path, top: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every file below a folder, as it is now; a link, a pipe or a device is no part of a bundle."""
    with os.scandir(folder) as entries:
        for entry in entries:
            state = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(state.st_mode):
                yield from _plain_files(Path(entry.path), top)
            elif stat.S_ISREG(state.st_mode):
                yield Path(entry.path), state
            else:
                kind = "a link" if stat.S_ISLNK(state.st_mode) else "no plain file"
                name = Path(entry.path).relative_to(top).as_posix()
                raise BundleError(f"{top}: {name!r} is {kind}; a bundle holds its files itself, copy them into it")


def _small(folder: Path, name: str) -> bytes:
    with (folder / name).open("rb") as file:
        content = file.read(_SMALL + 1)
    if len(content) > _SMALL:
        raise BundleError(f"{folder}: {name!r} is larger than {_SMALL} bytes; export the bundle again")
    return content


def _listed(sums: Path, content: bytes) -> dict[str, str]:
    """Hashes by file name. Only the one form that `seal` writes is read, so that no other byte passes for it."""
    lines = content.decode("utf-8", "surrogateescape").split("\n")
    listed: dict[str, str] = {}
    for number, line in enumerate(lines[:-1], 1):
        match = _SUM.fullmatch(line)
        if match is None or match[2] in listed:
            raise BundleError(
                f"{sums}, line {number} is not '<sha256>  <file>'; the bundle is damaged, export it again"
            )
        listed[match[2]] = match[1]
    if lines[-1]:
        raise BundleError(f"{sums} ends within a line; the bundle is damaged, export it again")
    return listed


def _signers(folder: Path, sums: bytes, trust: Trust) -> tuple[str, ...]:
    """Ids of the trusted keys that signed these sums; one at least."""
    if not (folder / SIGNATURE).is_file():
        raise BundleError(f"{folder} is not signed, and only signed bundles are trusted here; sign it with: zoo sign")
    _need_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    known = {key_id(key): key for key in trust}
    content = _small(folder, SIGNATURE).decode("ascii", "replace")
    lines = content.split("\n")
    found, others = [], []
    for line in lines[:-1]:
        match = _SIGNATURE.fullmatch(line)
        if match is None:
            raise BundleError(f"{folder}: {SIGNATURE} is damaged; sign the bundle again with: zoo sign")
        if match[1] not in known:
            others.append(match[1])
            continue
        try:
            Ed25519PublicKey.from_public_bytes(known[match[1]]).verify(bytes.fromhex(match[2]), SIGNED + sums)
        except InvalidSignature:
            raise BundleError(
                f"{folder}: the signature by key {match[1]} is not over these files; "
                "the bundle was changed after it was signed, or the signature is another bundle's"
            ) from None
        found.append(match[1])
    if lines[-1] or not found:
        by = f"signed by {', '.join(others)}" if others else "signed by nobody"
        raise BundleError(f"{folder} is {by}, trusted are {', '.join(known)}; sign it with a trusted key: zoo sign")
    return tuple(found)


def _check_references(folder: Path, manifest: Manifest, listed: dict[str, str]) -> None:
    """Refuse ONNX files whose weights lie anywhere but in the file beside them that the manifest names."""
    beside = {precision.file: precision.weights for precision in manifest.precisions.values()}
    for form in manifest.generation.get("files", {}).values():
        beside |= {form[what]: form.get(f"{what}_weights", "") for what in _HALVES if form.get(what)}
    for name in listed.keys() | beside.keys():
        if name not in beside and not name.endswith(".onnx"):
            continue
        try:
            outside = referenced(folder / name)
        except ValueError as error:
            raise BundleError(f"{folder}: {name!r} is no ONNX file: {error}; export the bundle again") from error
        allowed = beside.get(name, "")
        for place in sorted(outside):
            if not place or place != allowed or "/" in place or "/" in name:
                raise BundleError(
                    f"{folder}: {name!r} reads its weights from {place!r:.200}, which is not the file that {MANIFEST} names; "
                    "only a file beside it, named in the bundle, is read"
                )
