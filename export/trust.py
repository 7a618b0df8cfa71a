"""Constants by which a bundle's answers can be trusted: calibrated probabilities, and sets that hold the truth."""

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from export import ExportError, parity
from zoo import tasks


def calibrated(model: Any, splits: Any, method: str) -> tuple[Any, dict[str, Any]]:
    """Fit a calibration on the validation split.

    Args:
        model: Keras model giving logits.
        splits: `zoo.data.Data`.
        method: "temperature" or "platt", see `zoo.evaluate.calibrate`.

    Returns:
        The splits with a signature that holds the calibration, and what the manifest says of it: the constants,
        the validation rows, and the expected calibration error on the test split before and after. Where that grows,
        a warning says so.

    Raises:
        ExportError: the task has no probabilities, or the validation rows do not tell the constants.
    """
    from zoo.evaluate import calibration

    signature = splits.signature
    if signature.task == "regression":
        raise ExportError("a regression has no probabilities to calibrate; leave out calibrate=, or give conformal=0.9")
    if not signature.one_label:
        raise ExportError(f"a {signature.task} has no probabilities of one label to calibrate; leave out calibrate=")
    name = tasks.get(signature.task).output
    held, test = (parity.keras_answers(model, signature, part.x)[name] for part in (splits.validation, splits.test))
    try:
        found = calibration.fit(method, splits.validation.y, held)
    except ValueError as error:
        raise ExportError(f"cannot calibrate: {error}") from error
    after = found(calibration.to_logits(test))
    was, now = (calibration.reliability(splits.test.y, answers).ece.score for answers in (test, after))
    if now > was:
        warnings.warn(
            f"{method} scaling raises the expected calibration error on the test split from {was:.4f} to {now:.4f}; "
            "leave it out, or take another method",
            stacklevel=3,
        )
    told = {
        **dataclasses.asdict(found),
        "rows": len(splits.validation),
        "ece_before": round(was, 6),
        "ece_after": round(now, 6),
    }
    return dataclasses.replace(splits, signature=dataclasses.replace(signature, calibration=found)), told


def conformal_sets(paths: Mapping[str, Path], splits: Any, level: float) -> dict[str, Any]:
    """Thresholds of conformal sets or intervals for each form, set on the validation split, measured on the test split.

    Args:
        paths: ONNX file by precision.
        splits: `zoo.data.Data`.
        level: share of rows whose set should hold the truth, in (0, 1).

    Raises:
        ExportError: the level is out of range, or there are too few validation rows for it.
    """
    from zoo.evaluate import conformal

    task = splits.signature.task
    if not splits.signature.one_number:
        raise ExportError(f"conformal sets hold labels or values, and the task is {task}; leave out conformal=")
    method = "residual" if task == "regression" else "aps"
    name = tasks.get(task).output
    thresholds, coverage, size = {}, {}, {}
    for key, path in paths.items():
        live = parity.session(path)
        held, test = (parity.run(live, part.x)[name] for part in (splits.validation, splits.test))
        try:
            found = conformal.fit(splits.validation.y, held, level=level, method=method)
        except ValueError as error:
            raise ExportError(f"cannot set conformal thresholds: {error}") from error
        measured = conformal.measure(found, splits.test.y, test)
        thresholds[key] = found.threshold
        coverage[key], size[key] = round(measured.coverage.score, 6), round(measured.size, 6)
    return {
        "method": method,
        "level": level,
        "thresholds": thresholds,
        "rows": len(splits.validation),
        "coverage": coverage,
        "size": size,
    }


def verification(paths: Mapping[str, Path], splits: Any) -> dict[str, Any]:
    """When two embeddings are of one identity: thresholds by form, set on the validation split, measured on the test split.

    Args:
        paths: ONNX file by precision.
        splits: `zoo.data.Data` of embeddings.

    Raises:
        ExportError: a split has no pairs of one identity and of two.
    """
    from zoo.evaluate import verification as pairs

    task = tasks.get(splits.signature.task)
    found: dict[str, Any] = {"measure": "cosine", "thresholds": {}}
    figures: dict[str, dict[str, float]] = {"accuracy": {}, "false_acceptance": {}, "false_rejection": {}}
    for key, path in paths.items():
        live = parity.session(path)
        try:
            held, test = (
                pairs.verify(task.scored(parity.run(live, part.x)), part.y[:, 0], pairs.given(part.y))
                for part in (splits.validation, splits.test)
            )
        except ValueError as error:
            raise ExportError(f"cannot set the threshold of verification: {error}") from error
        limit = round(held.threshold, 6)
        found["thresholds"][key], found["pairs"] = limit, len(held.pairs)
        accepted, same = test.similarity > limit, test.pairs.same
        figures["accuracy"][key] = round(float(np.mean(accepted == same)), 6)
        figures["false_acceptance"][key] = round(float(np.mean(accepted[~same])), 6)
        figures["false_rejection"][key] = round(float(np.mean(~accepted[same])), 6)
    return found | figures


def described(calibration: Mapping[str, Any], conformal: Mapping[str, Any], precisions: Iterable[str]) -> list[str]:
    """Sentences for the model card."""
    lines = []
    if calibration:
        constant = f" by {1 / calibration['scale'][0]:.4f}" if calibration["method"] == "temperature" else ""
        lines.append(
            f"Probabilities are calibrated ({calibration['method']} scaling{constant}, from {calibration['rows']:,} "
            f"validation rows): expected calibration error on the test split {calibration['ece_before']:.4f} before, "
            f"{calibration['ece_after']:.4f} after."
        )
    if conformal:
        what = "wide on average, in the target's unit" if conformal["method"] == "residual" else "labels on average"
        figures = "; ".join(
            f"{key} {conformal['coverage'][key]:.1%}, {conformal['size'][key]:.4g} {what}" for key in precisions
        )
        lines.append(
            f"`/predict` also answers a set or an interval made to hold the truth for {conformal['level']:.0%} of rows "
            f"like these ({conformal['method']}, from {conformal['rows']:,} validation rows). On the test split: {figures}."
        )
    return lines


def verdicts(verification: Mapping[str, Any]) -> list[str]:
    """Sentences for the model card on when two embeddings are of one identity."""
    if not verification:
        return []
    figures = "; ".join(
        f"{key} above {limit:.4f}, which is right for {verification['accuracy'][key]:.2%} of the test split's pairs "
        f"({verification['false_acceptance'][key]:.2%} of pairs of two identities accepted, "
        f"{verification['false_rejection'][key]:.2%} of pairs of one refused)"
        for key, limit in verification["thresholds"].items()
    )
    return [
        f"Two rows count as one identity where the cosine of their embeddings lies above a threshold from "
        f"{verification['pairs']:,} pairs of the validation split: {figures}."
    ]
