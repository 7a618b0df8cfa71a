"""Classification of tables and images: one class of several, softmax over logits."""

import keras
import numpy as np

from zoo.data.signature import softmax
from zoo.tasks import losses


class Classification:
    """Cross-entropy on logits, accuracy, probabilities out."""

    metric = "accuracy"
    monitor = "val_accuracy"
    mode = "max"
    output = "probabilities"

    def loss(self, name, label_smoothing):
        return losses.get(name or "cross_entropy", label_smoothing)

    def metrics(self):
        return [keras.metrics.CategoricalAccuracy(name="accuracy")]

    def encode(self, targets, outputs):
        return np.eye(outputs, dtype=np.float32)[targets]

    def answer(self, raw, signature):
        return signature.calibration(raw) if signature.calibration else softmax(raw)

    def score(self, y, answer):
        return float(np.mean(answer.argmax(axis=-1) == y))


TASK = Classification()
