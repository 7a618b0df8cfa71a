"""Language modelling: which token comes next, for every place of a text, from logits `(batch, places, tokens)`."""

import numpy as np

from zoo.data.targets import NOTHING
from zoo.tasks import Output, Task, check_loss

ORDER = 5  # tokens that the baseline knows together, the foretold one included


class Followed:
    """What files and bundles say of each place of a text: of the token that follows in the row alone.

    A vocabulary of numbers for each place would be hundreds of megabytes for a few hundred rows. Of the last place, which
    nothing follows, answers say something of the row's first token; nobody counts that.

    Attributes:
        likeliest: datatype and meaning of the answer of that name, which `likeliest_of` gives.
    """

    writes = True
    likeliest = ("INT32", "number of the token that was expected most")

    def likeliest_of(self, token, following):
        """What is said of the tokens that were expected most, and of those that follow, int32 (batch, places) each."""
        return token

    def outputs(self, signature):
        step = signature.preprocess
        (dtype, what), shape = self.likeliest, (step.answer or step.length,)
        unit = "natural logarithm of the probability of the token that follows"
        return (
            Output("log_probability", "FP32", shape, ("places",), unit=unit),
            Output("likeliest", dtype, shape, ("places",), unit=what),
        )

    def decode_of(self, raw, inputs, signature):
        from keras import ops

        tokens = ops.cast(inputs["answer"] if isinstance(inputs, dict) else inputs, "int32")
        following = ops.concatenate([tokens[:, 1:], tokens[:, :1]], axis=1)
        own = ops.take_along_axis(raw, following[..., None], axis=-1)[..., 0]
        return {
            "log_probability": own - ops.logsumexp(raw, axis=-1),
            "likeliest": self.likeliest_of(ops.cast(ops.argmax(raw, axis=-1), "int32"), following),
        }

    def answers_of(self, raw, inputs, signature):
        from keras import ops, tree

        given = tree.map_structure(ops.convert_to_tensor, inputs)
        made = self.decode_of(ops.convert_to_tensor(raw), given, signature)
        return {name: ops.convert_to_numpy(value) for name, value in made.items()}

    def scored(self, answers):
        if self.output in answers:
            return answers[self.output]
        return np.stack([answers["log_probability"], answers["likeliest"]], axis=-1).astype(np.float32)


class LanguageModelling(Task):
    """Cross-entropy of each token that follows; logarithms of the probabilities of all tokens at all places out.

    Targets are those of `Following`. Scored answers are float32 `(rows, places, 2)`: the logarithm of the true token's
    probability, and whether it is the likeliest; or all logarithms `(rows, places, tokens)`. The score is minus bits per
    character, which does not depend on how a text is cut into tokens.
    """

    metric = "minus_bits_per_character"
    output = "log_probabilities"
    baseline_name = f"{ORDER}-gram with Witten-Bell smoothing"
    picture = "Bits by place"

    def raw_shape(self, signature):
        return (signature.preprocess.length, signature.outputs)

    def loss(self, name, label_smoothing):
        """Mean over all tokens of a batch that there are.

        Raises:
            ValueError: another loss, or smoothed labels.
        """
        check_loss("language modelling has", "cross_entropy", name, label_smoothing)
        return next_token_loss

    def outputs(self, signature):
        shape = (signature.preprocess.length, signature.outputs)
        return (Output(self.output, "FP32", shape, ("places", "tokens"), unit="natural logarithm of the probability"),)

    def decode(self, raw, signature):
        from keras import ops

        return {self.output: ops.log_softmax(raw, axis=-1)}

    def judged(self, scored, inputs):
        following = np.concatenate([inputs[:, 1:], inputs[:, :1]], axis=1)
        return picked(following, scored)

    def measures(self, y, scored):
        """Minus bits per character; the same without its sign; perplexity of a token; tokens foretold rightly."""
        known, nats, hits = _known(y, scored)
        bits, counts, right = (nats * known).sum(axis=1) / np.log(2), known.sum(axis=1), (hits * known).sum(axis=1)
        letters = y[:, 0].astype(np.float64)

        def share(one, other):
            return lambda weights: (weights @ one) / np.maximum(weights @ other, 1)

        spent, of_token = share(bits, letters), share(bits, counts)
        return {
            "minus_bits_per_character": lambda weights: -spent(weights),
            "bits_per_character": spent,
            "perplexity": lambda weights: 2 ** of_token(weights),
            "next_token_accuracy": share(right, counts),
        }

    def losses(self, y, scored):
        """Bits per character of each row."""
        known, nats, _ = _known(y, scored)
        return (nats * known).sum(axis=1) / np.log(2) / np.maximum(y[:, 0], 1)

    def constant(self, known, rows, outputs):
        counts = np.bincount(known[:, 1:][known[:, 1:] != NOTHING], minlength=outputs) + 1.0
        said = np.log(counts / counts.sum()).astype(np.float32)
        return np.broadcast_to(said, (rows, known.shape[1] - 1, outputs))

    def baseline(self, data):
        step = data.signature.inputs
        chances = witten_bell(
            step(data.train.x), data.train.y[:, 1:], step(data.test.x), data.test.y[:, 1:], data.signature.outputs
        )
        nats = np.log(np.maximum(chances, np.finfo(np.float32).tiny))
        return self.score(data.test.y, np.stack([nats, np.zeros_like(nats)], axis=-1))

    def tables(self, y, scored, labels):
        figures = {name: float(measure(np.ones((1, len(y))))[0]) for name, measure in self.measures(y, scored).items()}
        figures.pop(self.metric)
        return None, {"all": {**figures, "rows": len(y)}}

    def told(self, y, scored, labels):
        """Bits per character, and the token that was expected least."""
        known, nats, _ = _known(y[None], scored[None])
        hardest = int((nats * known)[0].argmax())
        token = int(y[1 + hardest])
        return {
            "bits_per_character": float(self.losses(y[None], scored[None])[0]),
            "hardest_token": labels[token] if token != NOTHING else "",
            "its_place": hardest + 1,
            "its_bits": float(nats[0, hardest] / np.log(2)),
        }

    def plot(self, report, path):
        from zoo.evaluate import pictures

        known, nats, _ = _known(report.y, report.answers)
        bits = (nats * known).sum(axis=0) / np.maximum(known.sum(axis=0), 1) / np.log(2)
        return pictures.by_place(bits[known.any(axis=0)], path)


def next_token_loss(y, logits, smoothing=0.0):
    """Minus the logarithm of each following token's probability, so that the mean over rows is that over known tokens.

    Args:
        y: numbers of tokens (batch, places) as floats, `NOTHING` where there is none.
        logits: (batch, places, tokens).
        smoothing: share of the target that is spread over all tokens.
    """
    from keras import ops

    known = ops.cast(y > NOTHING, "float32")
    tokens = ops.cast(ops.maximum(y, 0), "int32")
    logits = ops.cast(logits, "float32")
    nats = ops.sparse_categorical_crossentropy(tokens, logits, from_logits=True)
    if smoothing:
        nats = (1 - smoothing) * nats - smoothing * ops.mean(ops.log_softmax(logits, axis=-1), axis=-1)
    nats = nats * known
    rows = ops.cast(ops.shape(known)[0], "float32")
    return ops.sum(nats, axis=1) * rows / ops.maximum(ops.sum(known), 1.0)


def picked(tokens, scored):
    """Of all logarithms those of some tokens (rows, places), and whether each is the likeliest; float32 (…, 2).

    What was picked before stays as it is.
    """
    if scored.shape[-1] == 2:
        return scored
    own = np.take_along_axis(scored, np.maximum(tokens, 0)[..., None], axis=-1)[..., 0]
    return np.stack([own, scored.argmax(axis=-1) == tokens], axis=-1).astype(np.float32)


def _known(y, scored):
    """Which places have a token that follows, its nats, and whether it was foretold; (rows, places) each."""
    own = picked(y[:, 1:], scored).astype(np.float64)
    return y[:, 1:] != NOTHING, -own[..., 0], own[..., 1]


def witten_bell(inputs, following, new, wanted, vocabulary, order=ORDER):
    """Probabilities of tokens by those in front of them, of which no more than `order - 1` count, within a row.

    What was seen behind the same tokens is mixed with what was seen behind one less, by how many different tokens follow;
    behind none it is mixed with all tokens being equally likely.

    Args:
        inputs, following: training tokens (rows, places), and those behind them, `NOTHING` where there is none.
        new, wanted: the same of other rows; `wanted` are the tokens whose probability is asked for.
        vocabulary: tokens that there are.
        order: tokens that count, the foretold one included.

    Returns:
        float64 (rows, places), 1 where nothing is wanted.

    Source: Witten & Bell 1991, "The zero-frequency problem", method C, interpolated as in Chen & Goodman 1998 (TR-10-98),
    section 2.7.
    """
    known = following != NOTHING
    contexts, others = np.zeros(inputs.shape, np.int64), np.zeros(new.shape, np.int64)
    chances = np.full(new.shape, 1 / vocabulary)
    for length in range(order):
        if length:
            contexts, others = _longer(contexts, inputs, others, new, length, vocabulary)
        pairs, counts = np.unique((contexts * vocabulary + following)[known & (contexts >= 0)], return_counts=True)
        if not len(pairs):  # no row has so many tokens
            break
        heads = pairs // vocabulary
        size = int(heads.max()) + 1
        total, kinds = np.bincount(heads, counts, size), np.bincount(heads, minlength=size)
        seen = (others >= 0) & (others < size)
        own = np.where(seen, others, 0)
        place = np.minimum(np.searchsorted(pairs, own * vocabulary + wanted), len(pairs) - 1)
        hits = np.where(pairs[place] == own * vocabulary + wanted, counts[place], 0)
        mixed = (hits + kinds[own] * chances) / np.maximum(total[own] + kinds[own], 1)
        chances = np.where(seen & (total[own] > 0), mixed, chances)
    return np.where(wanted == NOTHING, 1.0, chances)


def _longer(contexts, inputs, others, new, length, vocabulary):
    """Numbers of contexts of `length` tokens, from those of one less; -1 where a row begins later or none such was seen."""

    def keys(shorter, tokens):
        before = np.concatenate([np.full((len(shorter), 1), -1 if length > 1 else 0), shorter[:, :-1]], axis=1)
        return np.where(before >= 0, before * vocabulary + tokens, -1)

    own, found = keys(contexts, inputs), keys(others, new)
    names = np.unique(own[own >= 0])
    if not len(names):
        return np.full_like(own, -1), np.full_like(found, -1)
    made = np.where(own >= 0, np.searchsorted(names, own), -1)
    place = np.minimum(np.searchsorted(names, found), len(names) - 1)
    return made, np.where((found >= 0) & (names[place] == found), place, -1)


class NextToken(Followed, LanguageModelling):
    """Language modelling in files and bundles."""

    likeliest = ("BOOL", "whether that token was expected most")

    def likeliest_of(self, token, following):
        from keras import ops

        return ops.equal(token, following)


TASK = NextToken()
