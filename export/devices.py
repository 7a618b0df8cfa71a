"""Files for devices beside a bundle's ONNX files: LiteRT, and ONNX Runtime's own format."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export import ExportError, parity
from export.forms import CALIBRATION, FILES, GOLDEN, finite, first_rows
from export.litert import AGREEMENT, PRECISIONS, Comparison, agreement_of, compare, inputs_of, to_litert
from export.ort import to_ort, write_operators
from export.timing import milliseconds
from serve.manifest import Edge
from zoo import tasks
from zoo.data.signature import Signature


def write_devices(
    model: Any,
    draft: Path,
    splits: Any,
    litert: Sequence[str] | None,
    ort: Mapping[str, dict[str, float]],
    max_drop: float,
    refused: dict[str, str],
) -> dict[str, Edge]:
    """Write files for devices and compare them with Keras on the test split; a refusal is noted in `refused`.

    Args:
        model: functional Keras model.
        draft: folder that holds the ONNX files.
        splits: `zoo.data.Data`.
        litert: forms to write as LiteRT beside the float one; None for no LiteRT file at all.
        ort: ONNX forms to write in ONNX Runtime's own format, each with how far its further outputs are from Keras.
        max_drop: largest loss of the validation score that a form may have.
        refused: file -> why it was not kept.

    Returns:
        What is known of each file, by its name.
    """
    if litert is None and not ort:
        return {}
    truth = parity.keras_answers(model, splits.signature, splits.test.x)
    found = {} if litert is None else _litert_files(model, draft, splits, litert, truth, max_drop, refused)
    return found | _ort_files(draft, splits, ort, truth, refused)


def _litert_files(
    model: Any,
    draft: Path,
    splits: Any,
    forms: Sequence[str],
    truth: parity.Arrays,
    max_drop: float,
    refused: dict[str, str],
) -> dict[str, Edge]:
    task = tasks.get(splits.signature.task)
    found: dict[str, Edge] = {}
    for key in ("fp32", *(key for key in forms if key in PRECISIONS)):
        name = "model.tflite" if key == "fp32" else f"model.{key}.tflite"
        try:
            path = to_litert(
                model,
                draft / name,
                signature=splits.signature,
                precision=key,
                calibration=first_rows(splits.train, CALIBRATION),
                validation=splits.validation.x,
                score=lambda answers: task.score(splits.validation.y, task.scored(answers)),
                max_drop=max_drop,
            )
        except ExportError as error:
            refused[name] = str(error)
            continue
        figures = compare(
            model,
            splits.signature,
            path,
            splits.test.x,
            truth=truth,
            score=lambda answers: task.score(splits.test.y, task.scored(answers)),
            threads=1,
        )
        if key == "int8" and (reason := _useless(figures, found.get("model.tflite"), splits.signature, max_drop)):
            refused[name] = reason
            path.unlink()
            continue
        found[name] = Edge(
            format="tflite",
            precision=key,
            bytes=figures.bytes,
            difference=figures.difference,
            agreement=figures.agreement,
            inputs=inputs_of(path),
            score=finite(figures.score if figures.score is not None else math.nan),
            ms=round(figures.ms, 4),
        )
    return found


def _useless(figures: Comparison, whole: Edge | None, signature: Signature, max_drop: float) -> str:
    """Why an INT8 file is not worth having, though its score is no worse; "" if it is.

    Of a model that has learnt little, other answers than its own may be right as often. It need not agree on more rows than
    `max_drop` would have it.
    """
    if whole is not None and figures.bytes > whole.bytes:
        return f"it has {figures.bytes:,} bytes, the float file has {whole.bytes:,}; take that"
    least = min(AGREEMENT, 1 - max_drop)
    if signature.one_number and not figures.agreement >= least:
        return f"its agreement with Keras is {figures.agreement:.3f}, at least {least:.4g} is asked for; choose 'w8'"
    return ""


def _ort_files(
    draft: Path, splits: Any, forms: Mapping[str, dict[str, float]], truth: parity.Arrays, refused: dict[str, str]
) -> dict[str, Edge]:
    task = tasks.get(splits.signature.task)
    found: dict[str, Edge] = {}
    golden = first_rows(splits.test, GOLDEN)
    for key in forms:
        if key == "fp16":  # its weights would be widened in the file
            continue
        name = FILES[key].replace(".onnx", ".ort")
        try:
            path = to_ort(draft / FILES[key], draft / name, golden=golden)
        except ExportError as error:
            refused[name] = str(error)
            continue
        live = parity.session(path)
        answers = parity.run(live, splits.test.x)
        found[name] = Edge(
            format="ort",
            precision=key,
            bytes=path.stat().st_size,
            difference=max(parity.distance(answers[name], truth[name]) for name in truth),
            agreement=min(agreement_of(answers[name], truth[name]) for name in truth),
            inputs=tuple(port.name for port in live.get_inputs()),
            others=dict(forms[key]),
            score=finite(task.score(splits.test.y, task.scored(answers))),
            ms=round(milliseconds([path], golden, repeats=3, seconds=0.05)[0], 4),
        )
    if found:
        write_operators([draft / name for name in found], draft / "operators.config")
    return found
