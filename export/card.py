"""The model card and the licence file of a bundle, written from its manifest and data."""

import json
import math
from typing import Any

import numpy as np

from export import trust
from serve.drift import BASELINE
from serve.manifest import Manifest, Precision
from zoo import tasks
from zoo.data.signature import ImagePreprocess

_PRECISIONS = {
    "fp32": "float",
    "fp16": "16-bit weights",
    "int8": "INT8",
    "w8": "8-bit weights",
    "w4": "4-bit weights",
}


def write(manifest: Manifest, splits: Any, runner: bool = False, idle: str = "") -> str:
    """The model card: what it is, what it was trained on, how good it is, what it cannot do, how to ask it.

    Args:
        manifest: the bundle's.
        splits: `zoo.data.Data`.
        runner: whether the bundle holds `run.py`.
        idle: sentence on a model that has learnt nothing.
    """
    parts = [
        f"# {manifest.name} {manifest.version}",
        _what(manifest),
        "## Data",
        *_data(manifest, splits),
        "## Scores",
        _scores(manifest),
        *([f"**{idle[0].upper()}{idle[1:]}.**"] if idle else []),
        *_notes(manifest, splits),
        "## Limits",
        _limits(manifest, splits),
        "## How to ask it",
        _query(manifest, splits),
        *([_RUNNER] if runner else []),
    ]
    return "\n\n".join(parts) + "\n"


_INSIDE = {  # what is in the ONNX file and what is not, by kind of input
    "": "Scaling of the inputs and decoding of the answer are inside the ONNX file.",
    "captioned": "`tokenizer.json` makes tokens of a text, which the ONNX file takes as `tokens`; scaling of the image is inside.",
    "text": "`tokenizer.json` makes tokens of a text, which the ONNX file takes as `tokens`; decoding of the answer is inside.",
}


def _what(manifest: Manifest) -> str:
    inputs = "; ".join(f"`{port.name}` {port.dtype} {port.sizes} ({port.unit})" for port in manifest.inputs)
    output = manifest.outputs[0]
    kind = output.unit or "answer"
    if output.axes == ("batch", "classes"):
        kind = f"probabilities of {len(manifest.labels)} classes"
    kind = {"regression": "value", "forecasting": "next values"}.get(manifest.task, kind)
    return (
        f"Architecture `{manifest.architecture}`, task {manifest.task}. It takes {inputs}, and answers the {kind} as "
        f"`{output.name}` {output.dtype} {output.sizes}. {_INSIDE.get(manifest.kind, _INSIDE[''])}"
        + "".join(
            f" Beside it, `{port.name}` {port.dtype} {port.sizes} is the {port.unit}." for port in manifest.outputs[1:]
        )
    )


def _data(manifest: Manifest, splits: Any) -> list[str]:
    rows = manifest.training["data"]["rows"]
    seed = manifest.training.get("seed")
    generated = " The rows were generated, not observed." if splits.generated else ""
    leaks = len(splits.leaks())
    found = (
        "No row of one split stands in another."
        if not leaks
        else f"**{leaks} rows stand in two splits**, so the scores are optimistic."
    )
    return [
        f"`{splits.name}` from {splits.source}, licence: {splits.licence}.{generated} SHA-256 of the rows: `{splits.sha256}`.",
        f"Rows: {rows['train']:,} for training, {rows['validation']:,} for validation, {rows['test']:,} for the scores below. {found}"
        + (f" Seed {seed}." if seed is not None else ""),
    ]


def _scores(manifest: Manifest) -> str:
    lines = [
        f"| precision | {manifest.metric} on the test split | largest difference from Keras | bytes | ms |",
        "|---|---|---|---|---|",
    ]
    for key, precision in manifest.precisions.items():
        lines.append(
            f"| {_PRECISIONS.get(key, key)} | {_figure(precision.score)} | {precision.parity:.2g} | {precision.bytes:,} | "
            f"{'' if precision.ms is None else f'{precision.ms:.3f}'} |"
        )
    return "\n".join(lines)


def _changes(precision: Precision, rows: int) -> str:
    """What a smaller form changed, in a sentence."""
    found = precision.changes
    if "share_changed" in found:
        return f"answers {found['share_changed']:.2%} of what is scored in the test rows otherwise"
    if "flips" not in found:
        return f"changes answers by {found['mean_change']:.3g} on average, at most by {found['largest_change']:.3g}"
    worst, fall = min(found["per_class"].items(), key=lambda item: item[1])
    classes = f"; of the classes {worst} loses most, {-100 * fall:.1f} points" if fall < 0 else "; no class loses"
    return (
        f"answers {found['flips']} of {rows:,} test rows otherwise ({found['lost']} right before and wrong now, "
        f"{found['won']} the reverse){classes}"
    )


def _figure(score: float | None) -> str:
    return "not defined" if score is None else f"{score:.4f}"


def _notes(manifest: Manifest, splits: Any) -> list[str]:
    notes = []
    if manifest.task == "regression":
        notes.append("For comparison: answering the mean of the test split every time has an r2 of 0.")
    elif splits.signature.one_label:
        share = np.bincount(splits.test.y).max() / len(splits.test.y)
        notes.append(f"For comparison: answering the commonest class every time has an accuracy of {share:.4f}.")
    else:
        least = tasks.idle(splits.signature, splits.train.y, splits.test.y)
        notes.append(f"For comparison: the same answer every time has a {manifest.metric} of {least:.4f}.")
    notes.append(
        "The difference from Keras is the largest of any answer on the rows of `golden.npz`, alone and as a batch. "
        "Milliseconds are those of one row on one thread of the machine that exported it."
    )
    changed = {key: precision for key, precision in manifest.precisions.items() if precision.changes}
    if changed:
        lines = [
            f"- {_PRECISIONS.get(key, key)} {_changes(precision, len(splits.test))}."
            for key, precision in changed.items()
        ]
        notes.append("\n".join(["What the smaller forms change against the float file:", "", *lines]))
    for key, precision in manifest.precisions.items():
        if precision.kept_float:
            notes.append(
                f"Layers left in float in the {_PRECISIONS.get(key, key)} file: {', '.join(precision.kept_float)}."
            )
    larger = [
        key for key, precision in manifest.precisions.items() if precision.bytes > manifest.precisions["fp32"].bytes
    ]
    if larger:
        notes.append(
            f"Larger than the float file: {', '.join(_PRECISIONS.get(key, key) for key in larger)}; with so few weights the "
            "scales outweigh what they save."
        )
    notes += trust.described(manifest.calibration, manifest.conformal, manifest.precisions)
    notes += trust.verdicts(manifest.verification)
    notes += [f"No {_PRECISIONS.get(key, key)} file: {reason}." for key, reason in manifest.refused.items()]
    if manifest.edge:
        notes.append(_edge(manifest))
    return notes


def _edge(manifest: Manifest) -> str:
    lines = [
        f"| file for devices | {manifest.metric} on the test split | agreement with Keras | largest difference | bytes | ms |",
        "|---|---|---|---|---|---|",
    ]
    for name, edge in manifest.edge.items():
        ms = "" if edge.ms is None else f"{edge.ms:.3f}"
        lines.append(
            f"| {name} | {_figure(edge.score)} | {edge.agreement:.4f} | {edge.difference:.2g} | {edge.bytes:,} | {ms} |"
        )
    if any(edge.format == "ort" for edge in manifest.edge.values()):
        lines += ["", "`operators.config` lists what a build of ONNX Runtime for the `.ort` files must hold."]
    return "\n".join(lines)


_RUNNER = """On a device with Python, numpy and onnxruntime alone, `run.py` checks the hashes, replays `golden.npz`, answers and
times itself:

```sh
python run.py
python run.py --help
```"""


def _drift(rows: int) -> str:
    if rows >= BASELINE:
        return "`drift.json` has the baseline to compare with."
    return (
        f"A server does not notice: of {rows} validation rows there are too few to compare with, at least {BASELINE} are "
        "needed."
    )


def _limits(manifest: Manifest, splits: Any) -> str:
    lines = [
        f"- The score holds for rows like those of `{splits.name}`; on others the model answers all the same, and may be wrong. "
        + _drift(len(splits.validation)),
    ]
    if manifest.task == "embedding":
        lines.append(
            "- It compares, and knows nobody. The threshold holds for rows like those it was chosen on; of other people, "
            "cameras or ages more pairs may be judged wrongly, and not of all groups of people alike."
        )
    elif manifest.task == "forecasting":
        forecast = splits.signature.forecast
        lines.append(
            f"- It was judged on the last {len(splits.test)} windows of the one series that it learned from, forecasting "
            f"{forecast.target} {len(manifest.labels)} steps ahead; of other series it knows nothing, and what has never "
            "happened before it does not foresee."
        )
    elif manifest.task == "speech-recognition":
        lines.append(
            f"- It writes with {', '.join(manifest.labels[1:])} and nothing else, and was judged on voices, rooms and words like "
            "those of its training; what it takes for speech it writes down, whatever it was."
        )
    elif manifest.task == "image-text":
        lines.append(
            "- It says how near a text is to an image, beside other texts; that the nearest of some texts is true it does not say. "
            "Images and words unlike those of its training have vectors, too, which mean nothing."
        )
    elif manifest.task == "text-to-image":
        lines.append(
            "- It paints what words of its training stood for, as far as it learned that; the score says how well it foretells the "
            "codes of an image behind its text, and not whether people see in a picture what was asked for."
        )
    elif manifest.task != "regression":
        every = "input gets one of these" if splits.signature.one_label else "answer is made of these"
        lines.append(
            f"- It knows {', '.join(manifest.labels)} and nothing else; every {every}."
            + ("" if manifest.calibration else " Probabilities were not calibrated.")
        )
    else:
        low, high = float(splits.train.y.min()), float(splits.train.y.max())
        lines.append(
            f"- Training targets lie between {low:.4g} and {high:.4g}; beyond that the answer is extrapolated."
        )
    if isinstance(splits.signature.preprocess, ImagePreprocess):
        lines.append("- Images must have the stated size; the file does not resize.")
    elif manifest.kind == "series":
        lines.append(
            "- A missing value counts as the mean of its column over the training rows. What stands behind a row's end, NaN in "
            "every column, changes nothing."
        )
    elif manifest.kind == "audio":
        step = splits.signature.preprocess
        lines.append(
            f"- A recording must have {step.rate} samples per second, one channel and at most {step.samples / step.rate:.2f} s; "
            "the file converts none. Samples behind its end are NaN and change nothing."
        )
    elif manifest.kind in ("text", "captioned"):
        step = splits.signature.text
        if manifest.kind == "captioned":
            lines.append("- Images must have the stated size; the file does not resize.")
        lines.append(
            f"- A text is cut behind {step.length} tokens. `tokenizer.json` makes them, by the library tokenizers; it was "
            "made before training, and a word that it does not know says nothing."
        )
    else:
        lines.append(
            "- A missing number counts as the training mean; a missing or unknown category as none of the known ones."
        )
    if "int8" in manifest.precisions:
        lines.append(
            "- INT8 was measured on the machine that exported it; on processors without 8-bit dot products sums may saturate."
        )
    return "\n".join(lines)


def _query(manifest: Manifest, splits: Any) -> str:
    url = f"http://localhost:8000/predict/{manifest.name}"
    start = "Start a server on the folder that holds this one's parent, `zoo serve <store>`, then:"
    if manifest.kind == "image":
        return f"{start}\n\n```sh\ncurl -F image=@picture.png {url}\n```"
    if manifest.kind == "audio":
        return f"{start}\n\n```sh\ncurl -F audio=@speech.wav {url}\n```"
    if manifest.kind == "captioned":
        more = " `zoo zero-shot` makes a classifier of it, which image files can be sent to."
        return (
            f"{start.removesuffix(', then:')}. Its v2 infer route, `/v2/models/{manifest.name}/infer`, takes `image` and `text`."
            + more * (manifest.task == "image-text")
        )
    row: dict[str, Any] = {}
    accepted = ""
    if manifest.task == "text-to-image":
        accepted = " -H 'Accept: image/png' -o picture.png"
    if manifest.kind == "text":
        row = {port.name: str(splits.test.x[port.name][0]) for port in manifest.inputs}
    if manifest.kind == "series":
        steps = [[float(f"{value:.6g}") for value in step] for step in splits.test.x["series"][0].tolist()]
        known = [[None if math.isnan(value) else value for value in step] for step in steps]
        row = {"series": [step for step in known if step != [None] * len(step)]}
    for port in manifest.inputs if not row else ():
        for column, value in zip(port.columns, splits.test.x[port.name][0].tolist(), strict=True):
            if value != "" and not (isinstance(value, float) and math.isnan(value)):
                row[column] = float(f"{value:.6g}") if isinstance(value, float) else value
    body = json.dumps(row, ensure_ascii=False).replace("'", "'\\''")
    return f"{start}\n\n```sh\ncurl -H 'Content-Type: application/json'{accepted} -d '{body}' {url}\n```"


def licences(manifest: Manifest, splits: Any, licence: str) -> str:
    """Terms of the weights and of the data they were learned from."""
    weights = licence or "not stated by whoever exported it; ask before you pass it on"
    return (
        f"Model {manifest.name} {manifest.version} (architecture {manifest.architecture})\n  Licence of the weights: {weights}\n\n"
        f"Data {splits.name}\n  Source: {splits.source}\n  Licence: {splits.licence}\n"
        f"  golden.npz and background.npz hold rows of this data, under its licence.\n"
    )
