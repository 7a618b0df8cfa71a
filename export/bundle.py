"""The bundle writer: a model and its data become `store/<name>/<version>/`, whole or not at all."""

import contextlib
import dataclasses
import json
import math
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from export import ExportError, baseline, card, int8, parity
from export.convert import OPSET, check, to_onnx
from serve.manifest import MANIFEST, Bundle, Manifest, Port, Precision, read, seal
from zoo import tasks
from zoo.data.signature import ImagePreprocess, Signature

GOLDEN = 16  # rows of the test split that every later reader can replay
BACKGROUND = 100  # rows of the training split that stand for "unknown" in explanations
CALIBRATION = 256  # rows of the training split that set the INT8 ranges
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PACKAGES = ("zooroad", "keras", "tensorflow", "tf2onnx", "onnx", "onnxruntime", "numpy")


def to_bundle(
    model: Any,
    folder: str | Path,
    *,
    data: Any = None,
    int8: bool = True,
    litert: bool = False,
    architecture: str = "",
    run: Any = None,
    training: dict[str, Any] | None = None,
    licence: str = "",
    max_drop: float = int8.MAX_DROP,
    opset: int = OPSET,
) -> Bundle:
    """Write everything a server, a device or an explainer needs, and read it back verified.

    Args:
        model: functional Keras model giving logits, on any Keras backend; or the `zoo.training.Run` that holds it.
        folder: `store/<name>/<version>` with a whole number as version; it must not exist.
        data: `zoo.data.Data`, or a name or path for `zoo.data.load`. The signature and the calibration and background
            rows come from its training split, the INT8 gate and the drift baseline from validation, scores from test.
            None takes the run's.
        int8: also try a static INT8 file; it is kept if it loses at most `max_drop`, else the manifest says why not.
        litert: also write LiteRT files for devices, in float and, with `int8`, in 8 bits; see `export.to_litert`.
        architecture: public name of the model; taken from `run`, or the Keras model's own name.
        run: `zoo.training.Run` the model comes from; its recipe, seed and scores go into the manifest.
        training: further facts on how the model was trained, which must be JSON.
        licence: terms of the model's weights, as text.
        max_drop: largest loss of the score (accuracy, or R2) that the INT8 file may have.
        opset: version of the ONNX operator set.

    Returns:
        The bundle as `serve.read` gives it.

    Raises:
        ExportError: the folder is taken or misnamed, the data is not the run's, or the export failed a gate; nothing is
            left behind.
    """
    from zoo.data import load

    if hasattr(model, "recipe"):
        model, run = model.model, model
    name, number = _name(Path(folder))
    check(model, None)
    data = run.data if data is None and run is not None else data
    if data is None:
        raise ExportError(
            "a bundle needs data for its calibration, golden and background rows; give data=, such as 'digits'"
        )
    splits = load(data, input_shape=_image_shape(model)) if isinstance(data, str | Path) else data
    signature: Signature = splits.signature
    if run is not None and run.signature != signature:
        raise ExportError(
            f"data {splits.name!r} is not what the run was trained on: its scaling or labels differ; give the run's"
        )
    empty = [key for key, split in splits.splits.items() if not len(split)]
    if empty:
        raise ExportError(
            f"data {splits.name!r} has no rows for {', '.join(empty)}; a bundle needs train, validation and test"
        )
    with _draft(Path(folder)) as draft:
        golden = _rows(splits.test, GOLDEN)
        files = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
        source = to_onnx(model, draft / files["fp32"], signature=signature, opset=opset, golden=golden)
        expected = parity.keras_answers(model, signature, golden)
        refused: dict[str, str] = {}
        kept: tuple[str, ...] = ()
        if int8:
            try:
                kept = _quantize(source, draft / files["int8"], splits, max_drop)
            except ExportError as error:
                refused["int8"] = str(error)
        edge = _edge(model, draft, splits, int8, refused) if litert else {}
        precisions = {
            key: _measure(draft / file, golden, expected, splits, kept if key == "int8" else ())
            for key, file in files.items()
            if (draft / file).exists()
        }
        manifest = Manifest(
            name=name,
            version=number,
            architecture=architecture or (run.recipe.model if run else model.name),
            task=signature.task,
            kind=signature.preprocess.kind,
            inputs=_inputs(signature),
            outputs=(_output(signature),),
            labels=signature.labels,
            metric=tasks.get(signature.task).metric,
            precisions=precisions,
            choices={} if isinstance(signature.preprocess, ImagePreprocess) else dict(signature.preprocess.categories),
            refused=refused,
            training=_provenance(splits, run, training),
            edge=edge,
        )
        _save_arrays(draft / "golden.npz", input=golden, output=expected)
        _save_arrays(draft / "background.npz", input=_rows(splits.train, BACKGROUND))
        _save_json(draft / "drift.json", baseline.describe(source, splits))
        (draft / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        (draft / "README.md").write_text(card.write(manifest, splits), encoding="utf-8")
        (draft / "LICENSES").write_text(card.licences(manifest, splits, licence), encoding="utf-8")
        seal(draft)
        read(draft)
    return read(folder)


def _image_shape(model: Any) -> tuple[int, ...] | None:
    shape = tuple(model.inputs[0].shape[1:])
    return shape if len(shape) == 3 else None


def _name(folder: Path) -> tuple[str, str]:
    """Name and version that a bundle folder stands for."""
    name, number = folder.parent.name, folder.name
    if not _NAME.fullmatch(name) or not number.isdecimal():
        raise ExportError(
            f"a bundle goes to <store>/<name>/<version> with a whole number as version, got {str(folder)!r}; "
            f"try {str(folder / '1') if _NAME.fullmatch(folder.name) and len(folder.parts) > 1 else 'store/digits/1'!r}"
        )
    if folder.exists():
        taken = [int(path.name) for path in folder.parent.iterdir() if path.name.isdecimal()]
        raise ExportError(
            f"{folder} exists and versions are never overwritten; the next free one is {folder.with_name(str(max(taken) + 1))}"
        )
    return name, number


@contextlib.contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    """A folder beside the version's that becomes it when all went well, and is removed otherwise."""
    created = not folder.parent.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder.parent))
    try:
        yield draft
        draft.chmod(0o755)  # a server may run as another user
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        if created:
            with contextlib.suppress(OSError):  # somebody else has written there meanwhile
                folder.parent.rmdir()
        raise


def _rows(split: Any, count: int) -> parity.Arrays:
    return {name: values[:count] for name, values in split.x.items()}


def _quantize(source: Path, path: Path, splits: Any, max_drop: float) -> tuple[str, ...]:
    task = tasks.get(splits.signature.task)
    result = int8.quantize(
        source,
        path,
        calibration=_rows(splits.train, CALIBRATION),
        validation=splits.validation.x,
        score=lambda answers: task.score(splits.validation.y, answers[task.output]),
        max_drop=max_drop,
    )
    return result.kept_float


def _measure(
    path: Path, golden: parity.Arrays, expected: parity.Arrays, splits: Any, kept: tuple[str, ...]
) -> Precision:
    live = parity.session(path)
    task = tasks.get(splits.signature.task)
    score = task.score(splits.test.y, parity.run(live, splits.test.x)[task.output])
    return Precision(
        file=path.name,
        bytes=path.stat().st_size,
        parity=parity.difference(live, golden, expected),
        score=score if math.isfinite(score) else None,
        kept_float=kept,
    )


def _edge(model: Any, draft: Path, splits: Any, int8: bool, refused: dict[str, str]) -> dict[str, dict[str, float]]:
    """Write LiteRT files and compare them with Keras on the test split; a refusal is noted in `refused`."""
    from export.litert import compare, to_litert

    found = {}
    rows = _rows(splits.train, CALIBRATION)
    for name, integers in {"model.tflite": False, **({"model.int8.tflite": True} if int8 else {})}.items():
        try:
            path = to_litert(model, draft / name, signature=splits.signature, int8=integers, calibration=rows)
        except ExportError as error:
            refused[name] = str(error)
            continue
        figures = compare(model, splits.signature, path, splits.test.x)
        found[name] = {"bytes": path.stat().st_size, **dataclasses.asdict(figures)}
    return found


def _inputs(signature: Signature) -> tuple[Port, ...]:
    step = signature.preprocess
    if isinstance(step, ImagePreprocess):
        axes = ("batch", "height", "width", "channels")
        return (Port("image", "UINT8", (-1, *step.shape), axes, range=(0, 255), unit="pixel value"),)
    ports = []
    if step.numbers:
        unit = "unit of each column in the training data, NaN where missing"
        ports.append(
            Port("numbers", "FP32", (-1, len(step.numbers)), ("batch", "columns"), unit=unit, columns=step.numbers)
        )
    if step.categories:
        columns = tuple(step.categories)
        unit = "text, empty where missing"
        ports.append(Port("categories", "BYTES", (-1, len(columns)), ("batch", "columns"), unit=unit, columns=columns))
    return tuple(ports)


def _output(signature: Signature) -> Port:
    name = tasks.get(signature.task).output
    if signature.task == "regression":
        return Port(
            name, "FP32", (-1, 1), ("batch", "targets"), unit=f"unit of {signature.labels[0]} in the training data"
        )
    return Port(name, "FP32", (-1, signature.outputs), ("batch", "classes"), range=(0, 1), unit="probability")


def _provenance(splits: Any, run: Any, training: dict[str, Any] | None) -> dict[str, Any]:
    """What is known of how the model came to be; what is not known is left out."""
    facts: dict[str, Any] = {
        "data": {
            "name": splits.name,
            "source": splits.source,
            "licence": splits.licence,
            "sha256": splits.sha256,
            "generated": splits.generated,
            "rows": {key: len(getattr(splits, key)) for key in ("train", "validation", "test")},
        },
        "versions": {"python": platform.python_version(), **_versions()},
    }
    if run is not None:
        recipe = dataclasses.asdict(run.recipe)
        facts |= {"recipe": recipe, "seed": recipe.get("seed"), "metrics": dict(run.metrics)}
    facts |= training or {}
    try:
        return json.loads(json.dumps(facts, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ExportError(f"training must hold JSON values only: {error}") from error


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _save_arrays(path: Path, **groups: parity.Arrays) -> None:
    arrays = {f"{group}/{name}": values for group, tensors in groups.items() for name, values in tensors.items()}
    if any(values.dtype.hasobject for values in arrays.values()):
        raise ExportError(
            f"text columns must be numpy string arrays, not objects, to be stored in {path.name} without pickle"
        )
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # its stub takes no names of unknown number


def _save_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(
        json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
