"""The bundle writer: a model and its data become `store/<name>/<version>/`, whole or not at all."""

import contextlib
import dataclasses
import json
import platform
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from export import ExportError, baseline, card, continuing, files, maps, parity, trust
from export import int8 as quantization
from export import sign as signing
from export.convert import OPSET, check, in_float32, to_onnx
from export.devices import write_devices
from export.forms import FILES, GOLDEN, learnt_ranges, measured, shown_rows, wanted, write_others
from serve.manifest import MANIFEST, Bundle, Manifest, Port, read, seal
from zoo import registry, tasks
from zoo.data.audio import AudioPreprocess
from zoo.data.signature import TOKENIZER, CaptionedPreprocess, ImagePreprocess, Signature, text_of
from zoo.data.texts import TextPreprocess
from zoo.evaluate.report import defined
from zoo.machine import versions

BACKGROUND = 100  # rows of the training split that stand for "unknown" in explanations
PAINTED = 8  # golden pictures, each of which takes as many steps as it has codes
RUNNER = "run.py"
_ROWS, _ROOM = 1024, 2**30  # of one run of a server, and bytes that its answers take at most
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PACKAGES = ("zooroad", "keras", "onnx", "onnxruntime", "numpy")


def to_bundle(
    model: Any,
    folder: str | Path,
    *,
    data: Any = None,
    run: Any = None,
    int8: bool = True,
    float16: bool = False,
    weight_bits: int | Sequence[int] | None = None,
    litert: bool = False,
    ort: bool = False,
    runner: bool = True,
    precision: str | None = None,
    calibrate: str | None = None,
    conformal: float | None = None,
    activation_map: bool | str = False,
    architecture: str = "",
    training: dict[str, Any] | None = None,
    licence: str = "",
    max_drop: float | None = None,
    tolerance: float | None = None,
    opset: int = OPSET,
    external_above: int = files.EXTERNAL_ABOVE,
    sign: str | Path | None = None,
) -> Bundle:
    """Write everything a server, a device or an explainer needs, and read it back verified.

    Every form beside the float one is kept if it loses at most `max_drop` of the validation score; otherwise the
    manifest says why not, with figures.

    Args:
        model: functional Keras model giving logits, on any Keras backend; or the `zoo.training.Run` that holds it; or
            what `zoo.compress.fit` returned, whose precision is then stored and is what a server uses.
        folder: `store/<name>/<version>` with a whole number as version; it must not exist.
        data: `zoo.data.Data`, or a name or path for `zoo.data.load`. The signature and the calibration and background
            rows come from its training split, the gates and the drift baseline from validation, scores from test.
            None takes the run's.
        run: `zoo.training.Run` the model comes from; its recipe, seed and scores go into the manifest.
        int8: also a static INT8 file; its ranges are those of quantization-aware training where the run had it.
        float16: also a file with weights in 16-bit floats, half the size.
        weight_bits: 8, 4 or both: also files whose large matrices are stored in so many bits, for transformers.
        litert: also LiteRT files for devices, in float and in the forms asked for; see `export.to_litert`.
        ort: also files in ONNX Runtime's own format, for its minimal builds; see `export.to_ort`.
        runner: also `run.py`, which checks, runs and times the bundle with numpy and onnxruntime alone.
        precision: form that a server uses when none is asked for, among those stored: "fp32", "fp16", "int8", "w8" or
            "w4". It is stored as if its option had been given.
        calibrate: "temperature" or "platt": probabilities in every file are scaled to be right as often as they say, by
            constants from the validation split; see `zoo.evaluate.calibrate`.
        conformal: share of rows, in (0, 1), whose set of labels (or interval) should hold the truth; thresholds from
            the validation split, which `/predict` answers by.
        activation_map: also the output `activation_map` in every ONNX file: True or "top" for the map of the most
            probable class, "all" for those of all classes; see `export.to_onnx`.
        architecture: public name of the model; taken from `run`, or the Keras model's own name.
        training: further facts on how the model was trained, which must be JSON.
        licence: terms of the model's weights, as text; where they began as published ones, those of these if not given.
        tolerance: largest difference of the float file from Keras, see `export.to_onnx`; what the architecture's entry
            declares if None.
        max_drop: largest loss of the score (accuracy, R2, mean IoU) that another form may have; 0.003 if None, or what
            `zoo.compress.fit` was allowed.
        opset: version of the ONNX operator set.
        external_above: bytes of weights from which the float file has them in a file of their own beside it.
        sign: file of a private key to sign the bundle with; see `export.sign`.

    Returns:
        The bundle as `serve.read` gives it. A model that scores no better than an answer that never changes is stored
        with a warning, which the card repeats.

    Raises:
        ExportError: the folder is taken or misnamed, the data is not the run's, the precision asked for did not pass,
            nothing can be written there, the key to sign with cannot be used, or the export failed a gate; nothing is
            left behind.
    """
    if hasattr(model, "precision") and hasattr(model, "run"):  # what zoo.compress.fit found
        limits = getattr(model, "limits", None)
        precision = precision or model.precision
        max_drop = limits.drop if max_drop is None and limits is not None else max_drop
        model, run = model.model, model.run
    if hasattr(model, "recipe"):
        model, run = model.model, model
    name, number = _name(Path(folder))
    check(model, None)
    key = None if sign is None else signing.load_key(sign)
    max_drop = quantization.MAX_DROP if max_drop is None else max_drop
    parity.check_numbers(max_drop=max_drop)
    asked = wanted(int8, float16, weight_bits, precision)
    classes = maps.wanted(activation_map)
    splits = _splits(model, data, run)
    signature: Signature = splits.signature
    architecture = architecture or (run.recipe.model if run else model.name)
    model = in_float32(model)
    calibration: dict[str, Any] = {}
    if calibrate is not None:
        splits, calibration = trust.calibrated(model, splits, calibrate)
        signature = splits.signature
    with _draft(Path(folder)) as draft:
        golden, background = shown_rows(splits, "test", GOLDEN), shown_rows(splits, "train", BACKGROUND)
        given, fed = _fed(splits), signature.fed(golden)
        source = to_onnx(
            model,
            draft / FILES["fp32"],
            signature=signature,
            opset=opset,
            golden=fed,
            tolerance=registry.tolerance(architecture) if tolerance is None else tolerance,
            external_above=external_above,
            activation_map=classes,
        )
        validated = parity.run(parity.session(source), given.validation.x)
        idle = _idle(validated, splits)
        if idle:
            warnings.warn(idle, stacklevel=2)
        refused: dict[str, str] = {}
        kept_float = write_others(source, asked, given, validated, max_drop, learnt_ranges(run), refused)
        if precision in refused:
            raise ExportError(
                f"precision {precision!r} was chosen for this bundle and did not pass: {refused[precision]}; "
                "choose another precision, or allow more with max_drop="
            )
        expected = parity.keras_answers(model, signature, fed)
        shown = {maps.NAME: maps.truth(model, signature, fed, classes)} if classes else {}
        precisions = measured(draft, given, fed, expected, shown, kept_float)
        sets = {}
        if conformal is not None:
            sets = trust.conformal_sets(
                {key: draft / found.file for key, found in precisions.items()}, given, conformal
            )
        verdicts = {}
        if signature.task == "embedding":
            verdicts = trust.verification({key: draft / found.file for key, found in precisions.items()}, splits)
        asked_of, task = _asked_of(signature), tasks.get(signature.task)
        preprocess = _preprocess(asked_of, draft)
        writing: dict[str, Any] = {}
        if task.writes or task.paints:
            limit = {} if tolerance is None else {"tolerance": tolerance}
            writing = continuing.write(
                model, signature, draft, fed, precisions, opset=opset, external_above=external_above, **limit
            )
        manifest = Manifest(
            name=name,
            version=number,
            architecture=architecture,
            task=signature.task,
            kind=asked_of.preprocess.kind,
            inputs=_inputs(asked_of),
            outputs=(*_outputs(signature, validated), *([maps.port(model, classes)] if classes else [])),
            labels=signature.labels,
            metric=task.metric,
            precisions=precisions,
            default=precision or "fp32",
            choices={} if isinstance(signature.preprocess, ImagePreprocess) else dict(signature.preprocess.categories),
            edge=write_devices(
                model,
                draft,
                given,
                asked if litert else None,
                {key: form.others for key, form in precisions.items()} if ort else {},
                max_drop,
                refused,
            ),
            refused=refused,
            training=_provenance(splits, run, training),
            preprocess=preprocess,
            calibration=calibration,
            conformal=sets,
            verification=verdicts,
            generation=writing,
            max_batch=most if (most := tasks.together(model, _ROWS, _ROOM)) < _ROWS else 0,
        )
        port = manifest.outputs[0]
        if task.paints or port.dtype == "BYTES":  # a picture or a text is all that its users get
            if task.paints:
                expected = {port.name: continuing.painted(draft, manifest, golden["text"][:PAINTED])}
                golden = {name: rows[:PAINTED] for name, rows in golden.items()}
            else:
                expected = {port.name: continuing.written(draft, manifest, golden["text"], signature.preprocess)}
            given_names = [port.name for port in manifest.inputs]  # the true answers are no input
            golden, background = ({name: rows[name] for name in given_names} for rows in (golden, background))
        _save_arrays(draft / "golden.npz", input=golden, output=expected | shown)
        _save_arrays(draft / "background.npz", input=background)
        _save_json(draft / "drift.json", baseline.describe(validated, given))
        if runner:
            shutil.copyfile(Path(__file__).with_name("edge_runner.py"), draft / RUNNER)
        (draft / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        (draft / "README.md").write_text(card.write(manifest, splits, runner, idle), encoding="utf-8")
        terms = licence or _inherited(model, run)
        (draft / "LICENSES").write_text(card.licences(manifest, splits, terms), encoding="utf-8")
        seal(draft)
        if key is not None:
            signing.sign(draft, key)
        manifest = read(draft).manifest
    return Bundle(Path(folder), manifest)


def _fed(splits: Any) -> Any:
    """The splits with what an exported file takes in place of raw inputs, where that differs."""
    parts = {name: dataclasses.replace(part, x=splits.signature.fed(part.x)) for name, part in splits.splits.items()}
    return dataclasses.replace(splits, **parts)


def _asked_of(signature: Signature) -> Signature:
    """The signature without what users of a bundle do not give: the picture, where that is to be painted."""
    if tasks.get(signature.task).paints:
        assert signature.text is not None
        return dataclasses.replace(signature, preprocess=signature.text)
    return signature


def _preprocess(signature: Signature, folder: Path) -> dict[str, Any]:
    """What the manifest says of the preprocessing; a tokenizer goes to a file of its own."""
    described = dataclasses.asdict(signature.preprocess)
    if text := text_of(described):
        (folder / TOKENIZER).write_text(text["tokenizer"], encoding="utf-8")
        text["tokenizer"] = described["tokenizer"] = TOKENIZER
    return described


def _idle(validated: parity.Arrays, splits: Any) -> str:
    """A sentence on a model that has learnt nothing; "" if it has."""
    task, part = tasks.get(splits.signature.task), splits.validation
    found, least = task.score(part.y, task.scored(validated)), tasks.idle(splits.signature, splits.train.y, part.y)
    if found > least:
        return ""
    return (
        f"the model scores {found:.4f} on the validation rows, no better than always the same answer ({least:.4f}); "
        "train it before anybody relies on it"
    )


def _splits(model: Any, data: Any, run: Any) -> Any:
    """The data of a bundle, checked."""
    from zoo.data import load, scaled

    data = run.data if data is None and run is not None else data
    if data is None:
        raise ExportError(
            "a bundle needs data for its calibration, golden and background rows; give data=, such as 'digits'"
        )
    try:
        splits = data
        if isinstance(data, str | Path):
            splits = scaled(load(data, input_shape=_fixed_shape(model)), _scaling(model, run))
    except ValueError as error:
        shape = tuple(tasks.main_input(model).shape)
        raise ExportError(f"data {str(data)!r} is not for {model.name!r}, which takes {shape}: {error}") from error
    if run is not None and run.signature != splits.signature:
        raise ExportError(
            f"data {splits.name!r} is not what the run was trained on: its scaling or labels differ; give the run's"
        )
    empty = [key for key, split in splits.splits.items() if not len(split)]
    if empty:
        raise ExportError(
            f"data {splits.name!r} has no rows for {', '.join(empty)}; a bundle needs train, validation and test"
        )
    return splits


def _inherited(model: Any, run: Any) -> str:
    """Terms of the published weights that a model began with; "" where there are none, or nobody says."""
    if run is None or not getattr(run.recipe, "weights", ""):
        terms = getattr(getattr(model, "pretrained", None), "licence", "")
    else:
        known = registry.entries().get(run.recipe.model)
        terms = known.weights.get(run.recipe.weights, {}).get("licence", "") if known else ""
    return f"trained from published weights, whose licence is: {terms}" if terms else ""


def _scaling(model: Any, run: Any) -> str:
    """How images are scaled that a run, or the pretrained weights of a model, were trained on; "" where nobody says."""
    if run is not None:
        return getattr(run.signature.preprocess, "scaling", "")
    return getattr(getattr(model, "pretrained", None), "scaling", "")


def _fixed_shape(model: Any) -> tuple[int, ...] | None:
    main = tasks.main_input(model)
    shape = tuple(main.shape[1:])
    return shape if len(shape) == 3 or "int" in main.dtype else None


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
    with files.beside(folder) as draft:
        yield draft
        draft.chmod(0o755)  # a server may run as another user
        draft.rename(folder)


def _inputs(signature: Signature) -> tuple[Port, ...]:
    step = signature.preprocess
    if isinstance(step, ImagePreprocess):
        axes = ("batch", "height", "width", "channels")
        return (Port("image", "UINT8", (-1, *step.shape), axes, range=(0, 255), unit="pixel value"),)
    if isinstance(step, AudioPreprocess):
        unit = f"amplitude, {step.rate} a second, NaN behind the end"
        return (Port("audio", "FP32", (-1, step.samples), ("batch", "samples"), range=(-1, 1), unit=unit),)
    if step.kind == "series":
        unit = "unit of each column in the training data, NaN where missing or ended"
        shape = (-1, *step.shape)
        return (Port("series", "FP32", shape, ("batch", "time", "columns"), unit=unit, columns=step.numbers),)
    if isinstance(step, CaptionedPreprocess):
        parts = (dataclasses.replace(signature, preprocess=part) for part in (step.image, step.text))
        return tuple(port for part in parts for port in _inputs(part))
    if isinstance(step, TextPreprocess):
        names = ("text", "second") if step.pair else ("text",)
        unit = f"text, cut behind {step.length} tokens{' of both' * step.pair}"
        return tuple(Port(name, "BYTES", (-1,), ("batch",), unit=unit) for name in names)
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


def _outputs(signature: Signature, answers: parity.Arrays) -> tuple[Port, ...]:
    """Ports of the answer; a size that the task leaves to the architecture, as an embedding's length, is that of answers."""
    if places := getattr(signature.preprocess, "answer", 0):
        return (Port("answer", "BYTES", (-1,), ("batch",), unit=f"text, of at most {places} tokens"),)
    if isinstance(signature.preprocess, CaptionedPreprocess) and tasks.get(signature.task).paints:
        return _inputs(dataclasses.replace(signature, preprocess=signature.preprocess.image))
    ports = []
    for each in tasks.get(signature.task).outputs(signature):
        own = answers[each.name].shape[1:]
        shape = tuple(own[place] if size < 0 else size for place, size in enumerate(each.shape))
        axes = ("batch", *each.axes)
        ports.append(Port(each.name, each.dtype, (-1, *shape), axes, range=each.range, unit=each.unit))
    return tuple(ports)


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
        "backend": keras.config.backend(),
        "versions": {"python": platform.python_version(), **versions(*_PACKAGES, keras.config.backend())},
    }
    if run is not None:
        recipe = dataclasses.asdict(run.recipe)
        facts |= {"recipe": recipe, "seed": recipe.get("seed"), "metrics": defined(run.metrics)}
    facts |= training or {}
    try:
        return json.loads(json.dumps(facts, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ExportError(f"training must hold JSON values only: {error}") from error


def _save_arrays(path: Path, **groups: parity.Arrays) -> None:
    arrays = {f"{group}/{name}": values for group, tensors in groups.items() for name, values in tensors.items()}
    if any(values.dtype.hasobject for values in arrays.values()):
        raise ExportError(
            f"text columns must be numpy string arrays, not objects, to be stored in {path.name} without pickle"
        )
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # its stub takes no names of unknown number


def _save_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
