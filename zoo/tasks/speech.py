"""Speech recognition: what is said in a recording, from logits `(batch, steps, symbols)` of which the first is a blank.

The loss sums the probability of all ways in which a text may be timed (Graves et al. 2006, "Connectionist Temporal
Classification"). Answers are read along the best path, or along that of the likeliest text, see `serve.beam_search`.
"""

import copy
from collections import Counter

import numpy as np

from zoo.data.targets import NOTHING
from zoo.recipes import MIXING
from zoo.tasks import Output, Task, baselines, check_loss

_SLICES = 12  # stretches of a recording that the baseline looks at
_BANDS = 20  # and bands of each


class SpeechRecognition(Task):
    """Connectionist temporal classification; symbols, the best path's probability and those of each step out.

    Scored answers are float32 `(rows, steps, 2)`: the likeliest symbol of each step, and its probability; with several
    beams those of the likeliest text's path. Targets are those of `Symbols`: the first label is the blank, the second the
    space.
    """

    metric = "word_accuracy"
    output = "probabilities"
    baseline_name = "the text of the most similar training recording"
    picture = "Errors by length"
    pictorial = True
    beams = 1

    def raw_shape(self, signature):
        return None

    def loss(self, name, label_smoothing):
        """The CTC loss of Keras, whose targets are filled up with the blank, which is symbol 0.

        Raises:
            ValueError: another loss, or smoothed labels.
        """
        check_loss("speech recognition has", "ctc", name, label_smoothing)
        import keras

        return keras.losses.CTC()

    def learner(self, model, data, recipe):
        """The model itself, if each text can be said in the steps that it has for the recording.

        Raises:
            ValueError: a text is longer than that, or an augmentation mixes texts.
        """
        mixing = [entry for entry in recipe.augment if entry.partition(":")[0] in MIXING]
        if mixing:
            raise ValueError(f"{mixing[0]} mixes the targets of two rows, and texts cannot be mixed; leave it out")
        from zoo.data.audio import lengths
        from zoo.evaluate import transcripts
        from zoo.layers.speech import LogMel

        signature = data.signature
        frames = next((layer.frames for layer in model.layers if isinstance(layer, LogMel)), np.asarray)
        size = np.ceil(frames(signature.preprocess.samples) / model.output_shape[1])  # frames of a step
        for name, split in data.splits.items():
            y = split.y
            # a symbol twice in a row needs a blank between
            twice = (y[:, 1:] == y[:, :-1]) & (y[:, 1:] != NOTHING)
            needed = (y != NOTHING).sum(axis=1) + twice.sum(axis=1)
            room = np.ceil(np.maximum(frames(lengths(split.x["audio"])), 0) / size)
            if (needed > room).any():
                row = int((needed - room).argmax())
                said = transcripts.spelled(transcripts.symbols(y[row]), signature.labels)
                raise ValueError(
                    f"row {row} of {name} has {int(room[row])} steps for a text of {int(needed[row])}, {said!r:.60}; correct "
                    "the text, take a smaller hop, or a recording that is not spoken so fast"
                )
        return model

    def encode(self, targets, outputs):
        return np.where(targets == NOTHING, 0, targets).astype(np.float32)

    def outputs(self, signature):
        last = signature.outputs - 1
        return (
            Output("symbols", "INT32", (-1,), ("steps",), (-1, last), "index of the label, -1 behind the end"),
            Output("path_probability", "FP32", (1,), ("one",), (0, 1), "probability of the best path, for each symbol"),
            Output("probabilities", "FP32", (-1, last + 1), ("steps", "symbols"), (0, 1), "probability"),
        )

    def decode(self, raw, signature):
        """The best path; its probability is that of its steps multiplied, and of that the root over the symbols."""
        from keras import ops

        from zoo.layers.speech import CTCGreedyDecode

        symbols = CTCGreedyDecode()(raw)
        shares = ops.softmax(raw, axis=-1)
        path = ops.sum(ops.log(ops.max(shares, axis=-1)), axis=-1, keepdims=True)
        count = ops.sum(ops.cast(symbols != NOTHING, path.dtype), axis=-1, keepdims=True)
        return {
            "symbols": symbols,
            "path_probability": ops.exp(path / ops.maximum(count, 1.0)),
            "probabilities": shares,
        }

    def scored(self, answers):
        from zoo.evaluate import transcripts

        shares = answers["probabilities"]
        best = transcripts.paths(shares, self.beams)
        sure = np.take_along_axis(shares, best[..., None], axis=-1)[..., 0]
        return np.stack([best, sure], axis=-1).astype(np.float32)

    def searching(self, beams):
        found = copy.copy(self)
        found.beams = beams
        return found

    def measures(self, y, scored):
        """One minus the errors in words over the words there are, and the same of characters; whole texts that are right.

        Errors are the least replaced, left out and added (the word error rate); several recordings count by their words.
        """
        from zoo.evaluate import transcripts

        counted = transcripts.counted(y, scored[..., 0])

        def right(unit):
            errors, there = counted[unit][:, :3].sum(axis=1), counted[unit][:, 3]
            return lambda weights: 1 - (weights @ errors) / np.maximum(weights @ there, 1)

        exact = (counted["characters"][:, :3].sum(axis=1) == 0).astype(np.float64)
        return {
            "word_accuracy": right("words"),
            "character_accuracy": right("characters"),
            "exact": lambda weights: (weights @ exact) / weights.sum(axis=1),
        }

    def losses(self, y, scored):
        """Errors in characters over the characters there are."""
        from zoo.evaluate import transcripts

        counted = transcripts.counted(y, scored[..., 0])["characters"]
        return counted[:, :3].sum(axis=1) / np.maximum(counted[:, 3], 1)

    def wrong(self, y, scored):
        return self.losses(y, scored) > 0

    def constant(self, known, rows, outputs):
        commonest = Counter(map(tuple, known)).most_common(1)[0][0]
        return _said(np.tile(commonest, (rows, 1)))

    def baseline(self, data):
        """Of at most 10,000 training recordings the one whose loudness in 20 bands over 12 stretches of time is nearest."""
        from sklearn.neighbors import NearestNeighbors

        rows = np.random.default_rng(0).permutation(len(data.train))[: baselines.MOST]
        seen = [_stretches(audio, data.signature) for audio in (data.train.x["audio"][rows], data.test.x["audio"])]
        nearest = NearestNeighbors(n_neighbors=1).fit(seen[0]).kneighbors(seen[1], return_distance=False)
        return self.score(data.test.y, _said(data.train.y[rows][nearest[:, 0]]))

    def tables(self, y, scored, labels):
        """Of words and of characters the shares replaced, left out and put in."""
        from zoo.evaluate import transcripts

        table = {}
        for unit, counted in transcripts.counted(y, scored[..., 0]).items():
            replaced, left_out, put_in, there = counted.sum(axis=0)
            table[unit] = {
                "error_rate": float((replaced + left_out + put_in) / max(there, 1)),
                "replaced": float(replaced / max(there, 1)),
                "left_out": float(left_out / max(there, 1)),
                "put_in": float(put_in / max(there, 1)),
                "rows": int(there),
            }
        return None, table

    def told(self, y, scored, labels):
        from zoo.evaluate import transcripts

        errors = {
            unit: int(found[0, :3].sum()) for unit, found in transcripts.counted(y[None], scored[None, :, 0]).items()
        }
        return {
            "true": transcripts.spelled(transcripts.symbols(y), labels),
            "answer": transcripts.spelled(transcripts.collapsed(scored[:, 0]), labels),
            "wrong_words": errors["words"],
            "wrong_characters": errors["characters"],
        }

    def plot(self, report, path):
        from zoo.evaluate import transcript_pictures

        return transcript_pictures.by_length(report, path)

    def show(self, report, rows, path):
        from zoo.evaluate import transcript_pictures

        return transcript_pictures.shown(report, rows, path)


def _said(y):
    """Scored answers that say these targets: a blank behind each symbol, so that repeats stay."""
    scored = np.zeros((len(y), 2 * y.shape[1], 2), np.float32)
    scored[:, ::2, 0] = np.where(y == NOTHING, 0, y)
    scored[..., 1] = 1
    return scored


def _stretches(audio, signature):
    """Mean frames of equally long stretches of each recording, and how long it is, `(rows, features)`."""
    import keras

    from zoo.layers.speech import LogMel

    layer, found = LogMel(signature.preprocess.rate, mels=_BANDS), []
    for start in range(0, len(audio), 64):
        frames, masks = map(keras.ops.convert_to_numpy, layer(signature.inputs({"audio": audio[start : start + 64]})))
        for own, mask in zip(frames, masks, strict=True):
            parts = np.array_split(own[mask], _SLICES)
            means = [part.mean(axis=0) if len(part) else np.zeros(_BANDS) for part in parts]
            found.append(np.concatenate([np.ravel(means) - np.mean(means), [mask.sum() / 10]]))
    return np.array(found)


TASK = SpeechRecognition()
