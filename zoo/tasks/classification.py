"""Classification of tables and images: one class of several, softmax over logits."""

from typing import ClassVar

import numpy as np

from zoo.data.signature import softmax
from zoo.tasks import Output, Task, baselines, log_shares


class Classification(Task):
    """Cross-entropy on logits, accuracy, probabilities out."""

    metric = "accuracy"
    monitor = "val_accuracy"
    mode = "max"
    output = "probabilities"
    baseline_name = "logistic regression"
    picture = "Confusion"
    arguments: ClassVar = {"head": "classification"}

    def loss(self, name, label_smoothing):
        from zoo.tasks import losses

        return losses.get(name or "cross_entropy", label_smoothing)

    def idle_raw(self, y):
        return log_shares(y)

    def metrics(self):
        import keras

        return [keras.metrics.CategoricalAccuracy(name="accuracy")]

    def encode(self, targets, outputs):
        return np.eye(outputs, dtype=np.float32)[targets]

    def outputs(self, signature):
        return (Output(self.output, "FP32", (signature.outputs,), ("classes",), range=(0, 1), unit="probability"),)

    def answers(self, raw, signature):
        return {self.output: signature.calibration(raw) if signature.calibration else softmax(raw)}

    def measures(self, y, scored):
        from zoo.evaluate import metrics

        return metrics.of_classes(y, scored)

    def score(self, y, scored):
        return float(np.mean(scored.argmax(axis=-1) == y))

    def losses(self, y, scored):
        """Minus the logarithm of the true class' probability."""
        least = float(np.finfo(np.float32).eps)
        return -np.log(np.maximum(scored[np.arange(len(y)), y].astype(np.float64), least))

    def wrong(self, y, scored):
        return scored.argmax(axis=1) != y

    def constant(self, known, rows, outputs):
        return np.tile(np.bincount(known, minlength=outputs), (rows, 1))

    def baseline(self, data):
        if data.signature.preprocess.kind == "text":
            guessed = baselines.linear(*baselines.words(data))
        else:
            guessed = baselines.linear(*baselines.learned(data), baselines.flat(data.test, data.signature))
        return self.score(data.test.y, np.eye(data.signature.outputs)[guessed])

    def tables(self, y, scored, labels):
        matrix = np.zeros((len(labels), len(labels)), np.int64)
        np.add.at(matrix, (y, scored.argmax(axis=-1)), 1)
        return matrix, per_class(matrix, labels)

    def told(self, y, scored, labels):
        best, truth = int(scored.argmax()), int(y)
        return {
            "true": labels[truth],
            "answer": labels[best],
            "probability": float(scored[best]),
            "probability_of_true": float(scored[truth]),
        }

    def plot(self, report, path):
        from zoo.evaluate import pictures

        return pictures.confusion(report.confusion, report.labels, path)

    def show(self, report, rows, path):
        from zoo.evaluate import pictures

        told = [{"row": row, **self.told(report.y[row], report.answers[row], report.labels)} for row in rows]
        return pictures.worst(told, report.x["image"][rows], path)


def per_class(matrix: np.ndarray, labels: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and rows of each class, from a confusion matrix."""
    hits, true, guessed = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    recall, precision = hits / np.maximum(true, 1), hits / np.maximum(guessed, 1)
    f1 = 2 * recall * precision / np.maximum(recall + precision, 1e-12)
    rows = zip(labels, precision, recall, f1, true, strict=True)
    return {
        label: {"precision": float(p), "recall": float(r), "f1": float(f), "rows": int(n)} for label, p, r, f, n in rows
    }


TASK = Classification()
