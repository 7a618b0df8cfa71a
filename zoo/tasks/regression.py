"""Regression of one value; the model works on the standardised target, answers are in the target's unit."""

import keras
import numpy as np

from zoo.tasks import losses


class Regression:
    """Squared error, coefficient of determination."""

    metric = "r2"
    monitor = "val_rmse"
    mode = "min"
    output = "value"

    def loss(self, name, label_smoothing):
        return losses.get(name or "mean_squared_error")

    def metrics(self):
        return [keras.metrics.RootMeanSquaredError(name="rmse")]

    def encode(self, targets, outputs):
        return targets

    def answer(self, raw, signature):
        return np.asarray(raw, np.float32) * np.float32(signature.target_std) + np.float32(signature.target_mean)

    def score(self, y, answer):
        y, answer = np.ravel(y), np.ravel(answer)
        spread = np.sum((y - y.mean()) ** 2)
        return float(1 - np.sum((y - answer) ** 2) / spread) if spread else float("nan")


TASK = Regression()
