"""Masked language modelling: which token is hidden at some places of a text, from logits `(batch, places, tokens)`."""

from functools import partial
from typing import ClassVar

import numpy as np

from zoo.data import hiding
from zoo.data.targets import NOTHING
from zoo.tasks.language import LanguageModelling, picked


class MaskedLanguageModelling(LanguageModelling):
    """Cross-entropy of the tokens that are hidden; logarithms of the probabilities of all tokens at all places out.

    What is hidden is drawn anew for each training batch, see `zoo.data.hiding`, and is fixed in the rows of all splits.
    Targets are those of `Hidden`; scored answers are as of a language model. The score is the share of the hidden tokens that
    are found.
    """

    metric = "masked_token_accuracy"
    baseline_name = "the commonest token"
    picture = "Found by how common a token is"
    arguments: ClassVar = {"head": "vocabulary"}

    def drawn(self, raw, signature, generator):
        shown, asked = hiding.hidden(signature.preprocess, self.whole(raw, None, signature), generator)
        return shown, self.encode(asked, signature.outputs)

    def whole(self, raw, inputs, signature):
        return signature.inputs({"text": raw["text"]}) if "text" in raw else inputs

    def judged(self, scored, inputs):
        return picked(inputs, scored)

    def measures(self, y, scored):
        """Hidden tokens found; perplexity and bits of a hidden token."""
        asked, nats, hits = _asked(y, scored)
        total, bits, right = asked.sum(axis=1), (nats * asked).sum(axis=1) / np.log(2), (hits * asked).sum(axis=1)

        def share(one, weights):
            return (weights @ one) / np.maximum(weights @ total, 1)

        return {
            "masked_token_accuracy": partial(share, right),
            "perplexity": lambda weights: 2 ** share(bits, weights),
            "bits_per_token": partial(share, bits),
        }

    def losses(self, y, scored):
        """Mean bits of a row's hidden tokens."""
        asked, nats, _ = _asked(y, scored)
        return (nats * asked).sum(axis=1) / np.log(2) / np.maximum(asked.sum(axis=1), 1)

    def constant(self, known, rows, outputs):
        counts = np.bincount(known[known != NOTHING], minlength=outputs) + 1.0
        said = np.log(counts / counts.sum()).astype(np.float32)
        return np.broadcast_to(said, (rows, known.shape[1], outputs))

    def baseline(self, data):
        known, y = data.train.y, data.test.y
        said = self.constant(known, 1, data.signature.outputs)[0, 0]
        own = said[np.maximum(y, 0)]
        return self.score(y, np.stack([own, y == said.argmax()], axis=-1))

    def told(self, y, scored, labels):
        """How many tokens were hidden and found, and which one was expected least."""
        asked, nats, hits = (part[0] for part in _asked(y[None], scored[None]))
        hardest = int((nats * asked).argmax())
        return {
            "hidden": int(asked.sum()),
            "found": int((hits * asked).sum()),
            "hardest_token": labels[y[hardest]] if asked.any() else "",
            "its_place": hardest,
            "its_bits": float(nats[hardest] * asked[hardest] / np.log(2)),
        }

    def plot(self, report, path):
        from zoo.evaluate import text_pictures

        asked, _, hits = _asked(report.y, report.answers)
        return text_pictures.by_commonness(report.y[asked], hits[asked] > 0, path)


def _asked(y, scored):
    """Which places are hidden, the nats of their tokens, and whether each was found; (rows, places) each."""
    own = picked(y, scored).astype(np.float64)
    return y != NOTHING, -own[..., 0], own[..., 1]


TASK = MaskedLanguageModelling()
