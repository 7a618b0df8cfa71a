"""The model card and the licence file of a bundle, written from its manifest and data."""

import json
import math
from typing import Any

import numpy as np

from serve.manifest import Manifest
from zoo.data.signature import ImagePreprocess

_PRECISIONS = {"fp32": "float", "int8": "INT8"}


def write(manifest: Manifest, splits: Any) -> str:
    """The model card: what it is, what it was trained on, how good it is, what it cannot do, how to ask it."""
    parts = [
        f"# {manifest.name} {manifest.version}",
        _what(manifest),
        "## Data",
        *_data(manifest, splits),
        "## Scores",
        _scores(manifest),
        *_notes(manifest, splits),
        "## Limits",
        _limits(manifest, splits),
        "## How to ask it",
        _query(manifest, splits),
    ]
    return "\n\n".join(parts) + "\n"


def _what(manifest: Manifest) -> str:
    inputs = "; ".join(f"`{port.name}` {port.dtype} {port.sizes} ({port.unit})" for port in manifest.inputs)
    output = manifest.outputs[0]
    kind = "value" if manifest.task == "regression" else f"probabilities of {len(manifest.labels)} classes"
    return (
        f"Architecture `{manifest.architecture}`, task {manifest.task}. It takes {inputs}, and answers the {kind} as "
        f"`{output.name}` {output.dtype} {output.sizes}. Scaling of the inputs and decoding of the answer are inside the ONNX file."
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
        f"| precision | {manifest.metric} on the test split | largest difference from Keras | bytes |",
        "|---|---|---|---|",
    ]
    for key, precision in manifest.precisions.items():
        lines.append(
            f"| {_PRECISIONS[key]} | {_figure(precision.score)} | {precision.parity:.2g} | {precision.bytes:,} |"
        )
    return "\n".join(lines)


def _figure(score: float | None) -> str:
    return "not defined" if score is None else f"{score:.4f}"


def _notes(manifest: Manifest, splits: Any) -> list[str]:
    notes = []
    if manifest.task == "regression":
        notes.append("For comparison: answering the mean of the test split every time has an r2 of 0.")
    else:
        share = np.bincount(splits.test.y).max() / len(splits.test.y)
        notes.append(f"For comparison: answering the commonest class every time has an accuracy of {share:.4f}.")
    notes.append(
        "The difference from Keras is the largest of any answer on the rows of `golden.npz`, alone and as a batch."
    )
    for key, precision in manifest.precisions.items():
        if precision.kept_float:
            notes.append(
                f"Layers left in float in the {_PRECISIONS[key]} file beyond the output head: {', '.join(precision.kept_float)}."
            )
    sizes = {key: precision.bytes for key, precision in manifest.precisions.items()}
    if sizes.get("int8", 0) > sizes["fp32"]:
        notes.append(
            "The INT8 file is larger than the float one: with so few weights the scales outweigh what they save."
        )
    notes += [f"No {_PRECISIONS.get(key, key)} file: {reason}." for key, reason in manifest.refused.items()]
    if manifest.edge:
        notes.append(_edge(manifest))
    return notes


def _edge(manifest: Manifest) -> str:
    lines = [
        "| file for devices | agreement with Keras on the test split | largest difference | bytes |",
        "|---|---|---|---|",
    ]
    for name, figures in manifest.edge.items():
        lines.append(f"| {name} | {figures['agreement']:.4f} | {figures['difference']:.2g} | {figures['bytes']:,} |")
    return "\n".join(lines)


def _limits(manifest: Manifest, splits: Any) -> str:
    lines = [
        f"- The score holds for rows like those of `{splits.name}`; on others the model answers all the same, and may be wrong. "
        "`drift.json` has the baseline to compare with.",
    ]
    if manifest.task != "regression":
        lines.append(
            f"- It knows {', '.join(manifest.labels)} and nothing else; every input gets one of these. Probabilities were not calibrated."
        )
    else:
        low, high = float(splits.train.y.min()), float(splits.train.y.max())
        lines.append(
            f"- Training targets lie between {low:.4g} and {high:.4g}; beyond that the answer is extrapolated."
        )
    if isinstance(splits.signature.preprocess, ImagePreprocess):
        lines.append("- Images must have the stated size; the file does not resize.")
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
    row: dict[str, Any] = {}
    for port in manifest.inputs:
        for column, value in zip(port.columns, splits.test.x[port.name][0].tolist(), strict=True):
            if value != "" and not (isinstance(value, float) and math.isnan(value)):
                row[column] = float(f"{value:.6g}") if isinstance(value, float) else value
    body = json.dumps(row, ensure_ascii=False).replace("'", "'\\''")
    return f"{start}\n\n```sh\ncurl -H 'Content-Type: application/json' -d '{body}' {url}\n```"


def licences(manifest: Manifest, splits: Any, licence: str) -> str:
    """Terms of the weights and of the data they were learned from."""
    weights = licence or "not stated by whoever exported it; ask before you pass it on"
    return (
        f"Model {manifest.name} {manifest.version} (architecture {manifest.architecture})\n  Licence of the weights: {weights}\n\n"
        f"Data {splits.name}\n  Source: {splits.source}\n  Licence: {splits.licence}\n"
        f"  golden.npz and background.npz hold rows of this data, under its licence.\n"
    )
