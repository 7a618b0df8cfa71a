"""Token classification: which kind of thing each word of a text is part of, from logits `(batch, places, labels)`."""

from collections import Counter, defaultdict
from functools import partial
from typing import ClassVar

import numpy as np

from zoo.data import tagging
from zoo.data.targets import NOTHING
from zoo.tasks import Output, Task, check_loss
from zoo.tasks.language import next_token_loss


class TokenClassification(Task):
    """Cross-entropy on the label of each word, at its first token; probabilities of all labels at all places out.

    Targets are those of `Tags`. Scored answers are float32 `(rows, places, 2)`: the likeliest label and its probability. What
    is judged are marked parts: one is right if kind, first and last word are. Those in what is cut of a text are missed.
    """

    metric = "f1"
    output = "probabilities"
    baseline_name = "each word's commonest label"
    picture = "Texts with their labels"
    arguments: ClassVar = {"head": "tokens"}

    def raw_shape(self, signature):
        return (signature.preprocess.length, signature.outputs)

    def loss(self, name, label_smoothing):
        """Mean over all words of a batch.

        Raises:
            ValueError: another loss, or smoothed labels.
        """
        check_loss("token classification has", "cross_entropy", name, label_smoothing)
        return next_token_loss

    def outputs(self, signature):
        shape = (signature.preprocess.length, signature.outputs)
        return (Output(self.output, "FP32", shape, ("places", "labels"), (0, 1), "probability"),)

    def decode(self, raw, signature):
        from keras import ops

        return {self.output: ops.softmax(raw, axis=-1)}

    def scored(self, answers):
        shares = answers[self.output]
        return np.stack([shares.argmax(axis=-1), shares.max(axis=-1)], axis=-1).astype(np.float32)

    def measures(self, y, scored):
        """F1, precision and recall over all marked parts, F1 as the mean of the kinds', and the share of words labelled rightly.

        Source: Sang & De Meulder 2003 (arXiv:cs/0306050), section 2.4; the mean of kinds as seqeval has it.
        """
        right, said, there = _counted(y, scored)
        words, hits = _words(y, scored)
        every = [part.sum(axis=1) for part in (right, said, there)]

        def f1(weights):
            return _f1(*(weights @ part for part in every))

        def of_kinds(weights):
            return np.mean(
                [_f1(*(weights @ part[:, kind] for part in (right, said, there))) for kind in _seen(said, there)],
                axis=0,
            )

        def share(one, other, weights):
            return (weights @ one) / np.maximum(weights @ other, 1)

        return {
            "f1": f1,
            "macro_f1": of_kinds,
            "precision": partial(share, every[0], every[1]),
            "recall": partial(share, every[0], every[2]),
            "word_accuracy": partial(share, hits, words),
        }

    def losses(self, y, scored):
        """Share of a row's words with a wrong label."""
        words, hits = _words(y, scored)
        return 1 - hits / np.maximum(words, 1)

    def wrong(self, y, scored):
        return self.losses(y, scored) > 0

    def constant(self, known, rows, outputs):
        commonest = np.bincount(known[known != NOTHING], minlength=outputs).argmax()
        return _said(np.full((rows, known.shape[1]), commonest))

    def baseline(self, data):
        """Of words that training did not have, the label outside."""
        seen: dict[str, Counter] = defaultdict(Counter)
        step = data.signature.preprocess
        for word, label, _, _ in _spelled(step, data.train):
            seen[word][label] += 1
        said = np.zeros(data.test.y.shape, int)
        for word, _, row, place in _spelled(step, data.test):
            said[row, place] = seen[word].most_common(1)[0][0] if word in seen else 0
        return self.score(data.test.y, _said(said))

    def tables(self, y, scored, labels):
        counted = [part.sum(axis=0) for part in _counted(y, scored, len(labels) // 2)]
        table = {}
        for kind, right, said, there in zip(tagging.kinds_of(labels), *counted, strict=True):
            table[kind] = {
                "precision": float(right / max(said, 1)),
                "recall": float(right / max(there, 1)),
                "f1": float(_f1(right, said, there)),
                "rows": int(there),
            }
        return None, table

    def told(self, y, scored, labels):
        words, hits = (int(part[0]) for part in _words(y[None], scored[None]))
        right, said, there = (int(part.sum()) for part in _counted(y[None], scored[None]))
        return {"words": words, "wrong_words": words - hits, "marked": there, "answered": said, "right": right}

    def plot(self, report, path):
        from zoo.evaluate import text_pictures

        return text_pictures.marked(report, path)


def _said(labels):
    """Scored answers that say these labels."""
    return np.stack([labels, np.ones(labels.shape)], axis=-1).astype(np.float32)


def _spelled(step, part):
    """Each word of a split in lower case, with its label, row and place."""
    for row, (text, own) in enumerate(zip(part.x["text"], tagging.words(step, part.x["text"]), strict=True)):
        for word in own:
            yield str(text[word.start : word.end]).strip().lower(), int(part.y[row, word.place]), row, word.place


def _labelled(y, scored):
    """Labels that are answered, at the places of `y`: words that are cut are taken to be outside."""
    said = np.zeros(y.shape, int)
    said[:, : scored.shape[1]] = scored[..., 0]
    return said


def _words(y, scored):
    """How many words each row has, and how many of them are labelled rightly; (rows,) each."""
    known = y != NOTHING
    return known.sum(axis=1), (known & (_labelled(y, scored) == y)).sum(axis=1)


def _counted(y, scored, kinds=0):
    """Marked parts that were found, were answered and are there; int64 (rows, kinds) each."""
    answers = _labelled(y, scored)
    kinds = kinds or (max(int(y.max(initial=0)), int(answers.max(initial=0))) + 1) // 2
    found = np.zeros((3, len(y), kinds), np.int64)
    for row, (own, said) in enumerate(zip(y, answers, strict=True)):
        known = own != NOTHING
        truth, answer = (tagging.entities(part[known].tolist()) for part in (own, said))
        for count, parts in zip(found, (truth & answer, answer, truth), strict=True):
            for label, _, _ in parts:
                count[row, label // 2] += 1
    return found


def _seen(said, there):
    """Kinds that are there or are answered, all of them where there are none at all."""
    kinds = np.flatnonzero((said + there).sum(axis=0))
    return kinds if len(kinds) else np.arange(said.shape[1])


def _f1(right, said, there):
    return 2 * right / np.maximum(said + there, 1)


TASK = TokenClassification()
