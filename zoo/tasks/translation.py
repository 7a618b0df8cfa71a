"""Text to text: what a text is answered by, one token after the other, from logits `(batch, places, tokens)`.

The model is told the answer so far: while it learns, and while it is scored, that is the true one (teacher forcing). Whole
answers are judged all the same: the likeliest token at every place is the true one if and only if an answer that is written
greedily, the likeliest token after the likeliest token, is the true answer. So that score needs no answer to be written.
"""

import numpy as np

from zoo.data.targets import NOTHING
from zoo.tasks import Task, baselines
from zoo.tasks.language import Followed, next_token_loss


class TextToText(Followed, Task):
    """Cross-entropy of each token of an answer; logarithms of the probabilities of all tokens at all places out.

    Targets are those of `Answers`. Scored answers are float32 `(rows, places, 2)`: the logarithm of the true token's
    probability, and the likeliest token; or all logarithms `(rows, places, tokens)`.
    """

    metric = "exact_match"
    output = "log_probabilities"
    baseline_name = "the answer to the most similar training text"
    picture = "Bits by place"

    def raw_shape(self, signature):
        return (signature.preprocess.answer, signature.outputs)

    def loss(self, name, label_smoothing):
        """Mean over all tokens of a batch that there are.

        Raises:
            ValueError: another loss.
        """
        if name not in ("", "cross_entropy"):
            raise ValueError(f"text to text has the loss 'cross_entropy', got loss={name!r}; leave it out")

        def loss(y, logits):
            return next_token_loss(y, logits, label_smoothing)

        return loss

    def decode(self, raw, signature):
        from keras import ops

        return {self.output: ops.log_softmax(raw, axis=-1)}

    def judged(self, scored, inputs):
        following = np.concatenate([inputs["answer"][:, 1:], inputs["answer"][:, :1]], axis=1)
        return _picked(following, scored)

    def measures(self, y, scored):
        """Whole answers that are right, of greedy writing; tokens that are; and perplexity of a token, both behind the true ones.

        An answer that was cut, or has parts that the tokenizer does not know, is never right.
        """
        known, nats, hits = _known(y, scored)
        exact = right(y, scored).astype(np.float64)
        counts, found, spent = known.sum(axis=1), (hits & known).sum(axis=1), (nats * known).sum(axis=1)

        def share(part):
            return lambda weights: (weights @ part) / np.maximum(weights @ counts, 1)

        of_token = share(spent)
        return {
            "exact_match": lambda weights: (weights @ exact) / weights.sum(axis=1),
            "token_accuracy": share(found),
            "perplexity": lambda weights: np.exp(of_token(weights)),
        }

    def losses(self, y, scored):
        """Nats of each answer, for each of its tokens."""
        known, nats, _ = _known(y, scored)
        return (nats * known).sum(axis=1) / np.maximum(known.sum(axis=1), 1)

    def wrong(self, y, scored):
        return ~right(y, scored)

    def constant(self, known, rows, outputs):
        answers, counts = np.unique(known, axis=0, return_counts=True)
        return _said(np.tile(answers[counts.argmax()], (rows, 1)))

    def baseline(self, data):
        """Of at most 10,000 training texts the one that has most runs of one to three characters in common."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.neighbors import NearestNeighbors

        rows = np.random.default_rng(0).permutation(len(data.train))[: baselines.MOST]
        step = TfidfVectorizer(analyzer="char", ngram_range=(1, 3))
        known = step.fit_transform(data.train.x["text"][rows])
        nearest = NearestNeighbors(n_neighbors=1, metric="cosine").fit(known)
        found = nearest.kneighbors(step.transform(data.test.x["text"]), return_distance=False)[:, 0]
        return self.score(data.test.y, _said(data.train.y[rows][found]))

    def tables(self, y, scored, labels):
        """The figures of all rows, and of rows by the length of their answers."""
        sizes = (y[:, 1:] != NOTHING).sum(axis=1)
        middle = int(np.median(sizes))
        table = {"all": np.ones(len(y), bool)}
        if (sizes > middle).any():
            table |= {f"of up to {middle} tokens": sizes <= middle, "of more": sizes > middle}
        return None, {name: self._figures(y[some], scored[some]) for name, some in table.items()}

    def _figures(self, y, scored):
        figures = {name: float(found(np.ones((1, len(y))))[0]) for name, found in self.measures(y, scored).items()}
        return {**figures, "rows": len(y)}

    def further(self, report):
        """BLEU and chrF of answers that were written, where they were."""
        if not report.written:
            return {}
        from zoo.evaluate import translations

        return {"written": {"all": translations.scores(report.written, report.x["answer"][: len(report.written)])}}

    def told(self, y, scored, labels):
        """Both answers, token by token; the model's is told the true one up to each place."""
        known, _, hits = (part[0] for part in _known(y[None], scored[None]))
        return {
            "true": " ".join(labels[token] for token in y[1:][known]),
            "answer": " ".join(labels[int(token)] for token in _likeliest(scored)[known]),
            "wrong_tokens": int((known & ~hits).sum()),
            "nats": float(self.losses(y[None], scored[None])[0]),
        }

    def worst_rows(self, report, count):
        """As `told`, with texts in place of tokens."""
        step, rows = report.signature.preprocess, []
        for row in report.worst(count):
            known, _, _ = _known(report.y[row][None], report.answers[row][None])
            told = self.told(report.y[row], report.answers[row], report.labels)
            told["true"] = step.written(report.y[row][1:][known[0]])
            told["answer"] = step.written(_likeliest(report.answers[row])[known[0]])
            text = {} if report.x is None else {"text": str(report.x["text"][row])}
            if report.written:
                told["written"] = report.written[row] if row < len(report.written) else ""
            rows.append({"row": int(row), **text, **told})
        return rows

    def plot(self, report, path):
        from zoo.evaluate import pictures

        known, nats, _ = _known(report.y, report.answers)
        bits = (nats * known).sum(axis=0) / np.maximum(known.sum(axis=0), 1) / np.log(2)
        return pictures.by_place(bits[known.any(axis=0)], path)


def right(y, scored):
    """Which answers are right as a whole, bool (rows,)."""
    known, _, hits = _known(y, scored)
    return (hits | ~known).all(axis=1) & (y[:, 0] > 0)


def _likeliest(scored):
    """The likeliest token of each place, whole numbers (…, places)."""
    return scored[..., 1].astype(np.int64) if scored.shape[-1] == 2 else scored.argmax(axis=-1)


def _picked(tokens, scored):
    """Of all logarithms those of some tokens (rows, places), and the likeliest token; float32 (…, 2)."""
    if scored.shape[-1] == 2:
        return scored
    own = np.take_along_axis(scored, np.maximum(tokens, 0)[..., None], axis=-1)[..., 0]
    return np.stack([own, _likeliest(scored)], axis=-1).astype(np.float32)


def _known(y, scored):
    """Which places have a token that follows, its nats, and whether it is the likeliest; (rows, places) each."""
    own = _picked(y[:, 1:], scored)
    return y[:, 1:] != NOTHING, -own[..., 0].astype(np.float64), own[..., 1] == y[:, 1:]


def _said(y):
    """Scored answers that say these targets, whatever is true, as if each token were likely by e to 1."""
    said = y[:, 1:].astype(np.float32)
    return np.stack([np.full_like(said, -1.0), said], axis=-1)


TASK = TextToText()
