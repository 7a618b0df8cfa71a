"""Forecasting: the next values of a series, all steps at once; answers are in the target's unit.

Rows are windows of one long series (`zoo.data.series`). Those of validation and test stand in order of time, each a step
behind the one before it: judging them walks forward over that part, origin by origin, without learning from it.
"""

import numpy as np

from zoo.data.series import simple
from zoo.tasks import Output
from zoo.tasks.regression import Regression

_LISTED = 24  # origins that a report names, evenly chosen from more


class Forecasting(Regression):
    """Squared error over all steps, coefficient of determination over all values."""

    output = "forecast"
    baseline_name = "naive or seasonal-naive forecast, the better,"
    picture = "Forecast against truth"

    def outputs(self, signature):
        unit = f"unit of {signature.forecast.target} in the training data"
        return (Output(self.output, "FP32", (signature.outputs,), ("steps",), unit=unit),)

    def decode(self, raw, signature):
        return {self.output: raw * signature.target_std + signature.target_mean}

    def losses(self, y, scored):
        """The mean absolute error over the steps."""
        return np.abs(scored.astype(np.float64) - y).mean(axis=1)

    def constant(self, known, rows, outputs):
        return np.full((rows, outputs), np.mean(known), np.float32)

    def baseline(self, data):
        return max(self.score(data.test.y, each) for each in simple(data.test.x, data.signature).values())

    def tables(self, y, scored, labels):
        gap = scored.astype(np.float64) - y
        return None, {label: _errors(gap[:, step]) for step, label in enumerate(labels)}

    def told(self, y, scored, labels):
        return {
            **{f"true {label}": float(value) for label, value in zip(labels, y, strict=True)},
            **{label: float(value) for label, value in zip(labels, scored, strict=True)},
            "error": float(self.losses(y[None], scored[None])[0]),
        }

    def further(self, report):
        scale = report.signature.forecast.scale
        rivals = {} if report.x is None else simple(report.x, report.signature)
        answers = {"this model": report.answers, **rivals}
        gaps = {name: each.astype(np.float64) - report.y for name, each in answers.items()}
        compared = {
            name: {"r2": self.score(report.y, each), **_errors(gaps[name]), "mase": _mae(gaps[name]) / scale}
            for name, each in answers.items()
        }
        gap = gaps["this model"]
        steps = {label: {"mase": _mae(gap[:, step]) / scale} for step, label in enumerate(report.labels)}
        for name in rivals:
            for step, label in enumerate(report.labels):
                steps[label][f"mase {name}"] = _mae(gaps[name][:, step]) / scale
        found = {f"all {len(report.labels)} steps": compared, "by step": steps}
        if report.split != "train":  # whose windows are in no order
            found["by origin"] = {
                str(place): {**_errors(gap[place]), "mase": _mae(gap[place]) / scale}
                for place in np.unique(np.linspace(0, report.rows - 1, _LISTED).round().astype(int)).tolist()
            }
        return found

    def plot(self, report, path):
        from zoo.evaluate import pictures

        rivals = {} if report.x is None else simple(report.x, report.signature)
        return pictures.forecasts(report, rivals, path)


def _errors(gap: np.ndarray) -> dict[str, float]:
    return {
        "rmse": float(np.sqrt(np.mean(gap**2))),
        "mae": _mae(gap),
        "bias": float(np.mean(gap)),
        "rows": len(gap),
    }


def _mae(gap: np.ndarray) -> float:
    return float(np.mean(np.abs(gap)))


TASK = Forecasting()
