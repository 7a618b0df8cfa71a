"""Embedding: rows of one identity near, rows of two far; judged on pairs of identities that training never saw."""

import re

import numpy as np

from zoo.recipes import MIXING
from zoo.tasks import Output, Task, baselines

_FORMS = {"arcface": ("margin", "scale"), "triplet": ("margin",), "semi_hard_triplet": ("margin",)}
_COMPONENTS = 128  # principal components that the baseline looks at
_TOGETHER = 4  # rows of one identity that stand side by side in an epoch, as triplets need them


class Embedding(Task):
    """Triplets or class centres while training; unit vectors out; verification accuracy over ten folds of pairs.

    Scored answers are the embeddings themselves, float32 `(rows, length)`; targets are those of `Identities`.
    """

    metric = "verification_accuracy"
    monitor = "val_pair_auc"
    mode = "max"
    output = "embedding"
    baseline_name = "a logistic regression's scores of the training identities"
    picture = "False and true acceptance"

    def raw_shape(self, signature):
        return None

    def loss(self, name, label_smoothing):
        """The loss of that name: "arcface:MARGIN:SCALE", "triplet:MARGIN" or "semi_hard_triplet:MARGIN".

        Figures may be left out: 0.5 and 64 for ArcFace, 0.2 for triplets. "" is "triplet".

        Raises:
            ValueError: another name, or figures that it does not take.
        """
        if label_smoothing:
            raise ValueError(
                f"an embedding has no labels to smooth, got label_smoothing={label_smoothing}; leave it out"
            )
        from zoo.tasks import embedding_losses

        form, *figures = (name or "triplet").split(":")
        fitting = form in _FORMS and len(figures) <= len(_FORMS[form])
        if not fitting or not all(re.fullmatch(r"\d+\.?\d*", figure) for figure in figures):
            raise ValueError(
                "loss must be arcface[:MARGIN[:SCALE]], triplet[:MARGIN] or semi_hard_triplet[:MARGIN], such as "
                f"arcface:0.5:64, got {name!r}"
            )
        options = dict(zip(_FORMS[form], map(float, figures), strict=False))
        if form == "arcface":
            return embedding_losses.ArcFace(**options)
        return embedding_losses.Triplet(**options, mining="semi_hard" if form.startswith("semi") else "hard")

    def metrics(self):
        from zoo.tasks.embedding_losses import PairArea

        return [PairArea()]

    def learner(self, network, data, recipe):
        """The network with a centre of each training identity behind it where the loss is ArcFace's.

        Raises:
            ValueError: an augmentation that mixes identities.
        """
        mixing = [entry for entry in recipe.augment if entry.partition(":")[0] in MIXING]
        if mixing:
            raise ValueError(f"{mixing[0]} mixes the targets of two rows, and identities cannot be mixed; leave it out")
        if not recipe.loss.startswith("arcface"):
            return network
        import keras

        from zoo.tasks.embedding_losses import ClassCentres

        identities = int(data.train.y[:, 0].max()) + 1
        cosines = ClassCentres(identities, name="class_centres")(network.output)
        return keras.Model(network.input, cosines, name=network.name)

    def order(self, targets, generator):
        """Rows in random order, but four of one identity side by side, so that every batch has pairs of one."""
        shuffled = generator.permutation(len(targets))
        by_identity = shuffled[np.argsort(targets[shuffled], kind="stable")]
        groups = []
        for rows in np.split(by_identity, np.flatnonzero(np.diff(targets[by_identity])) + 1):
            groups += np.split(rows, range(_TOGETHER, len(rows), _TOGETHER))
        return np.concatenate([groups[place] for place in generator.permutation(len(groups))])

    def encode(self, targets, outputs):
        return np.asarray(targets, np.float32).reshape(-1, 1)

    def outputs(self, signature):
        return (Output(self.output, "FP32", (-1,), ("length",), range=(-1, 1), unit="coordinate on the unit sphere"),)

    def decode(self, raw, signature):
        return {self.output: raw}

    def measures(self, y, scored):
        from zoo.evaluate import verification

        return verification.measures(scored, y[:, 0], verification.given(y))

    def losses(self, y, scored):
        """How far, in similarity, the worst of a row's pairs lies beyond the threshold of its fold."""
        judged = _judged(y, scored)
        beyond = np.where(judged.verdicts == judged.pairs.same, 0.0, np.abs(judged.similarity - judged.limits))
        found = np.zeros(len(y))
        for side in (judged.pairs.left, judged.pairs.right):
            np.maximum.at(found, side, beyond)
        return found

    def wrong(self, y, scored):
        return self.losses(y, scored) > 0

    def constant(self, known, rows, outputs):
        return np.ones((rows, 1), np.float32)

    def baseline(self, data):
        from sklearn.decomposition import PCA

        (train, known), test = baselines.learned(data), baselines.flat(data.test, data.signature)
        if train.shape[1] > _COMPONENTS:
            axes = PCA(min(_COMPONENTS, len(train)), svd_solver="randomized", random_state=0).fit(train)
            train, test = axes.transform(train), axes.transform(test)
        return self.score(data.test.y, baselines.linear(train, known[:, 0], test, scores=True))

    def tables(self, y, scored, labels):
        """Pairs by truth and verdict; of either kind the share judged rightly, its similarity and the threshold."""
        judged = _judged(y, scored)
        matrix = np.zeros((2, 2), np.int64)
        np.add.at(matrix, (judged.pairs.same.astype(int), judged.verdicts.astype(int)), 1)
        rows = {}
        for kind, name in ((True, "pairs of one identity"), (False, "pairs of two identities")):
            own = judged.pairs.same == kind
            rows[name] = {
                "right": float(np.mean(judged.verdicts[own] == kind)),
                "similarity": float(np.mean(judged.similarity[own])),
                "threshold": judged.threshold,
                "rows": int(own.sum()),
            }
        return matrix, rows

    def told(self, y, scored, labels):
        return {"identity": int(y[0])}

    def worst_rows(self, report, count):
        """The pairs that were judged wrongly, those farthest beyond the threshold first."""
        judged = _judged(report.y, report.answers)
        pairs = judged.pairs
        return [
            {
                "row": int(pairs.left[place]),
                "other_row": int(pairs.right[place]),
                "true": "one identity" if pairs.same[place] else "two identities",
                "answer": "one identity" if judged.verdicts[place] else "two identities",
                "similarity": float(judged.similarity[place]),
                "threshold": float(judged.limits[place]),
                "fold": int(pairs.fold[place]),
            }
            for place in judged.worst(count)
        ]

    def plot(self, report, path):
        from zoo.evaluate import verification_pictures

        return verification_pictures.curve(_judged(report.y, report.answers), report.score, path)

    def show(self, report, rows, path):
        """The pairs judged worst, side by side; `rows` says how many."""
        from zoo.evaluate import verification_pictures

        return verification_pictures.pairs(self.worst_rows(report, len(rows)), report.x["image"], path)


def _judged(y, scored):
    from zoo.evaluate import verification

    return verification.verify(scored, y[:, 0], verification.given(y))


TASK = Embedding()
