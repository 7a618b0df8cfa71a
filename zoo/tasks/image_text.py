"""Pictures and texts in one space: which text belongs to a picture, and which picture to a text."""

import numpy as np

from zoo.tasks import Output, Task, check_loss

NEAR = 5  # answers among which the right one may be, in the wider of the two figures
_WAYS = ("image_to_text", "text_to_image")


class ImageText(Task):
    """Cross-entropy within the batch, both ways; unit vectors of pictures and texts out; recall of either by the other.

    Targets are those of `Captions`. Scored answers are float32 `(rows, 2, length)`: the vector of each row's picture, and that
    of its text. A picture is asked for among all different ones of a split, and a text among all different ones: a text that
    many rows have is one candidate, and a picture that several texts tell of is right for each of them.
    """

    metric = "recall_at_1"
    output = "image_embedding"
    baseline_name = "chance"
    picture = "Similarity of pictures and texts"
    pictorial = True

    def raw_shape(self, signature):
        return None

    def loss(self, name, label_smoothing):
        """The mean of both ways' cross-entropies, see `contrastive_loss`.

        Raises:
            ValueError: another loss, or smoothed labels.
        """
        check_loss("pictures and texts have", "contrastive", name, label_smoothing)
        return contrastive_loss

    def learner(self, model, data, recipe):
        """The model itself.

        Raises:
            ValueError: pictures are to be changed, of which the texts then may be wrong.
        """
        if recipe.augment:
            raise ValueError(
                f"augment {recipe.augment[0]!r} changes pictures, and what their texts tell of them does not change with it; "
                "leave it out"
            )
        return model

    def outputs(self, signature):
        unit = "coordinate on the unit sphere"
        ports = [Output(f"{part}_embedding", "FP32", (-1,), ("length",), (-1, 1), unit) for part in ("image", "text")]
        return (*ports, Output("logit", "FP32", (), (), unit="how well the row's text fits its picture"))

    def decode(self, raw, signature):
        from keras import ops

        image, text = raw[:, 0], raw[:, 1]
        return {
            "image_embedding": ops.normalize(image, axis=-1),
            "text_embedding": text,
            "logit": ops.sum(image * text, axis=-1),
        }

    def scored(self, answers):
        return np.stack([answers["image_embedding"], answers["text_embedding"]], axis=1)

    def measures(self, y, scored):
        """Recall at 1 in the mean of both ways; then of either way, at 1 and at 5; all are shares of rows."""
        places = ranks(y, scored)
        hits = {
            f"{way}_at_{most}": found < most for way, found in zip(_WAYS, places, strict=True) for most in (1, NEAR)
        }
        both = np.mean([found < 1 for found in places], axis=0)

        def share(values):
            return lambda weights: weights @ values / weights.sum(axis=1)

        return {self.metric: share(both), **{name: share(hit.astype(float)) for name, hit in hits.items()}}

    def losses(self, y, scored):
        """Wrong answers in front of the right one, in the mean of both ways."""
        return np.mean(ranks(y, scored), axis=0)

    def wrong(self, y, scored):
        return self.losses(y, scored) > 0

    def constant(self, known, rows, outputs):
        return np.ones((rows, 2, 1), np.float32)

    def baseline(self, data):
        """What the same answer to everything would score if its order were drawn: the share of right candidates."""
        right, pictures, texts = matches(data.test.y)
        return float((right[:, texts].mean() + right[pictures].mean()) / 2)

    def tables(self, y, scored, labels):
        rows = {}
        _, pictures, texts = matches(y)
        for way, found, among in zip(_WAYS, ranks(y, scored), (texts, pictures), strict=True):
            figures = {f"at {most}": float(np.mean(found < most)) for most in (1, NEAR)}
            name = way.replace("_", " ")
            rows[name] = {**figures, "median place": float(np.median(found) + 1), "candidates": float(len(among))}
            rows[name]["rows"] = len(y)
        return None, rows

    def told(self, y, scored, labels):
        return {"similarity": float(scored[0] @ scored[1])}

    def worst_rows(self, report, count):
        """Rows by how many wrong texts are nearer to the picture than its own."""
        places = ranks(report.y, report.answers)[0]
        right, _, texts = matches(report.y)
        found = []
        for row in [int(row) for row in np.argsort(-places, kind="stable") if places[row]][:count]:
            similarity = report.answers[texts, 1] @ report.answers[row, 0]
            best = int(texts[np.where(right[row, texts], -np.inf, similarity).argmax()])
            told = {"row": row, "answer_row": best, "similarity": float(similarity.max())}
            told["own_similarity"] = float(report.answers[row, 0] @ report.answers[row, 1])
            told["place"] = int(places[row]) + 1
            if report.x is not None:
                told |= {"true": str(report.x["text"][row]), "answer": str(report.x["text"][best])}
            found.append(told)
        return found

    def plot(self, report, path):
        from zoo.evaluate import caption_pictures

        return caption_pictures.similarity(report, path)

    def show(self, report, rows, path):
        from zoo.evaluate import caption_pictures

        return caption_pictures.shown(report, rows, path)


def contrastive_loss(y, pairs):
    """Cross-entropy of each picture's texts among those of the batch, and of each text's pictures; their mean, `(rows,)`.

    Where several are right, as of two rows that say the same, each is asked for alike; where all differ it is the loss of
    Radford et al. 2021 (arXiv:2103.00020), figure 3.

    Args:
        y: numbers of the row's picture and text (rows, 2) as floats, equal where they are the same.
        pairs: vectors of pictures, times the factor of the logits, and of texts (rows, 2, length).
    """
    from keras import ops

    y, pairs = ops.cast(y, "float32"), ops.cast(pairs, "float32")
    logits = ops.matmul(pairs[:, 0], ops.transpose(pairs[:, 1]))  # (pictures, texts)
    same = ops.any(ops.equal(y[:, None], y[None]), axis=-1)  # (rows, rows), the picture or the text
    right = ops.cast(same, "float32")
    right = right / ops.sum(right, axis=1, keepdims=True)  # it is symmetric, so columns are rows
    ways = [ops.sum(right * ops.log_softmax(each, axis=1), axis=1) for each in (logits, ops.transpose(logits))]
    return -(ways[0] + ways[1]) / 2


def matches(y):
    """Which pictures and texts of rows belong together, and one row of each different picture, and of each text.

    Returns:
        bool (rows, rows), pictures by row and texts by column; and rows (pictures,) and (texts,).
    """
    right = (y[:, None] == y[None]).any(axis=-1)
    return right, *(np.unique(y[:, side], return_index=True)[1] for side in (0, 1))


def ranks(y, scored):
    """How many wrong texts are at least as near to each row's picture as the nearest right one, and the other way round.

    Returns:
        Whole numbers (rows,) and (rows,).
    """
    right, pictures, texts = matches(y)
    similarity = scored[:, 0].astype(np.float64) @ scored[:, 1].astype(np.float64).T
    found = []
    for near, fits in ((similarity[:, texts], right[:, texts]), (similarity[pictures].T, right[pictures].T)):
        best = np.where(fits, near, -np.inf).max(axis=1, keepdims=True)
        found.append(((near >= best) & ~fits).sum(axis=1))
    return found


TASK = ImageText()
