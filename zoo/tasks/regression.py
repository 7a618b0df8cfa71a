"""Regression of one value; the model works on the standardised target, answers are in the target's unit."""

import numpy as np

from zoo.tasks import Output, Task, baselines


class Regression(Task):
    """Squared error, coefficient of determination."""

    metric = "r2"
    monitor = "val_rmse"
    mode = "min"
    output = "value"
    baseline_name = "ridge regression"
    picture = "Predicted against true"
    form = ".4g"  # errors have a unit

    def loss(self, name, label_smoothing):
        from zoo.tasks import losses

        return losses.get(name or "mean_squared_error")

    def metrics(self):
        import keras

        return [keras.metrics.RootMeanSquaredError(name="rmse")]

    def idle_raw(self, y):
        return np.repeat(y.mean(axis=0, keepdims=True), len(y), axis=0)

    def outputs(self, signature):
        return (
            Output(self.output, "FP32", (1,), ("targets",), unit=f"unit of {signature.labels[0]} in the training data"),
        )

    def answers(self, raw, signature):
        scaled = np.asarray(raw, np.float32) * np.float32(signature.target_std)
        return {self.output: scaled + np.float32(signature.target_mean)}

    def measures(self, y, scored):
        from zoo.evaluate import metrics

        return metrics.of_values(y, scored)

    def score(self, y, scored):
        y, scored = np.ravel(y).astype(np.float64), np.ravel(scored)  # squares of 1e20 are beyond float32
        spread = np.sum((y - y.mean()) ** 2)
        return float(1 - np.sum((y - scored) ** 2) / spread) if spread else float("nan")

    def losses(self, y, scored):
        """The absolute error."""
        return np.abs(np.ravel(scored).astype(np.float64) - np.ravel(y))

    def constant(self, known, rows, outputs):
        return np.full((rows, 1), np.mean(known))

    def baseline(self, data):
        (inputs, values), new = baselines.learned(data), baselines.flat(data.test, data.signature)
        return self.score(data.test.y, baselines.linear(inputs, np.ravel(values), new, values=True))

    def tables(self, y, scored, labels):
        gap = np.ravel(scored).astype(np.float64) - np.ravel(y)
        errors = {
            "rmse": float(np.sqrt(np.mean(gap**2))),
            "mae": float(np.mean(np.abs(gap))),
            "bias": float(np.mean(gap)),
            "rows": len(gap),
        }
        return None, {labels[0]: errors}

    def told(self, y, scored, labels):
        true, answer = float(np.ravel(y)[0]), float(np.ravel(scored)[0])
        return {"true": true, "answer": answer, "error": answer - true}

    def plot(self, report, path):
        from zoo.evaluate import pictures

        return pictures.scatter(report.y, report.answers, report.labels[0], path)


TASK = Regression()
