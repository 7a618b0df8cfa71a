"""Text to image: how likely a picture is behind its text, as codes of a discrete autoencoder that a transformer foretells."""

from itertools import pairwise

import numpy as np

from zoo.tasks import Output, Task

TEXT, IMAGE = 1 / 8, 7 / 8  # weights of the two cross-entropies, Ramesh et al. 2021 (arXiv:2102.12092), section 2.2
_REST = 3  # figures of a whole picture
_KEPT = 2  # of these, those that are scored


class TextToImage(Task):
    """Nats of the text's tokens, the codes and the picture given its codes; all of them are the model's own output.

    Scored answers are float32 `(rows, 2 * places + 2)`: nats of each code of a picture, given the text and the codes in front;
    the codes; nats of a value given the codes; and the mean absolute error of what is drawn of them, in pixel values.

    Bits of a code depend on what the codes are: where all pictures get the same ones they are 0. The score is therefore the
    share that text and codes in front save of the bits that the codes' own frequencies would cost.
    """

    metric = "bits_saved"
    output = "code_nats"
    baseline_name = "each code as likely as it is common"
    picture = "Bits of the codes by place"
    pictorial = True
    paints = True

    def raw_shape(self, signature):
        return None

    def loss(self, name, label_smoothing):
        """None: it depends on the model, see `loss_for`.

        Raises:
            ValueError: another loss, or smoothed labels.
        """
        if name or label_smoothing:
            raise ValueError(
                f"an image of a text has one loss, without label_smoothing, got loss={name!r}, "
                f"label_smoothing={label_smoothing!r}; leave them out"
            )

    def loss_for(self, model, name, label_smoothing):
        """Nats of a value given its codes, divergence, and the weighted nats of text and codes for each value of the picture.

        So the transformer's part counts as it does in the bound of the picture's likelihood; no weight learns from both parts.
        """
        self.loss(name, label_smoothing)
        from math import prod

        shapes = {tensor.name: tensor.shape[1:] for tensor in model.inputs}
        (length,), values = shapes["tokens"], prod(shapes["image"])

        def loss(y, figures):
            from keras import ops

            text, nats, _, rest = parts(figures, length)
            codes = TEXT * ops.mean(text, axis=1) + IMAGE * ops.mean(nats, axis=1)
            return rest[:, 0] + rest[:, 2] + codes * (nats.shape[1] / values)

        return loss

    def learner(self, model, data, recipe):
        """The model itself.

        Raises:
            ValueError: pictures are to be changed, of which the texts then may be wrong, or are no pixels in [0, 1].
        """
        if recipe.augment:
            raise ValueError(
                f"augment {recipe.augment[0]!r} changes pictures, and what their texts tell of them does not change with it; "
                "leave it out"
            )
        image = data.signature.preprocess.image
        if set(image.mean) != {0.0} or set(image.std) != {255.0}:
            raise ValueError(
                f"pictures must be drawn from pixels in [0, 1], got scaling={image.scaling!r}; leave scaling at 0/255"
            )
        return model

    def outputs(self, signature):
        return (
            Output("text_nats", "FP32", (-1,), ("token",), unit="nats"),
            Output("code_nats", "FP32", (-1,), ("place",), unit="nats"),
            Output("codes", "FP32", (-1,), ("place",), unit="number of a code"),
            Output("value_nats", "FP32", (), (), unit="nats of a value given the codes"),
            Output("error", "FP32", (), (), (0, 255), "pixel values"),
        )

    def decode(self, raw, signature):
        text, nats, codes, rest = parts(raw, signature.text.length)
        return {
            "text_nats": text,
            "code_nats": nats,
            "codes": codes,
            "value_nats": rest[:, 0],
            "error": 255.0 * rest[:, 1],
        }

    def scored(self, answers):
        rest = np.stack([answers["value_nats"], answers["error"]], axis=1)
        return np.concatenate([answers["code_nats"], answers["codes"], rest], axis=1).astype(np.float32)

    def measures(self, y, scored):
        """Share of the codes' bits that is saved; bits of a code; error in pixel values; bits of a value given its codes."""
        nats, codes, values, errors = _apart(scored)
        bits, alone = nats.mean(axis=1) / np.log(2), _by_frequency(codes).mean(axis=1)

        def mean(each):
            return lambda weights: weights @ each / weights.sum(axis=1)

        def saved(weights):
            whole = weights @ alone
            return np.where(whole > 0, 1 - weights @ bits / np.where(whole > 0, whole, 1.0), 0.0)

        return {
            self.metric: saved,
            "bits_per_code": mean(bits),
            "reconstruction_error": mean(errors),
            "bits_per_value": mean(values / np.log(2)),
        }

    def losses(self, y, scored):
        """Mean bits of a row's codes."""
        return _apart(scored)[0].mean(axis=1) / np.log(2)

    def constant(self, known, rows, outputs):
        return np.zeros((rows, 2 + _KEPT), np.float32)  # one place, whose code is always the same

    def baseline(self, data):
        """0: the score is what is saved of it."""
        return 0.0

    def tables(self, y, scored, labels):
        """Of all places, and of those written first and last: bits, what they would cost by frequency, and different codes."""
        nats, codes, _, _ = _apart(scored)
        alone, rows = _by_frequency(codes), {}
        half = -(-nats.shape[1] // 2)
        for name, part in (("all", slice(None)), ("first half", slice(half)), ("second half", slice(-half, None))):
            rows[name] = {
                "bits": float(nats[:, part].mean() / np.log(2)),
                "bits by frequency": float(alone[:, part].mean()),
            }
            rows[name] |= {"codes in use": float(len(np.unique(codes[:, part]))), "rows": len(nats)}
        return None, rows

    def told(self, y, scored, labels):
        nats, _, _, error = (each[0] for each in _apart(scored[None]))
        return {"bits_per_code": float(nats.mean() / np.log(2)), "error": float(error)}

    def plot(self, report, path):
        from zoo.evaluate import painted_pictures

        return painted_pictures.by_place(report, path)

    def show(self, report, rows, path):
        from zoo.evaluate import painted_pictures

        return painted_pictures.shown(report, rows, path)


def parts(raw, length):
    """Nats of the text's tokens, nats of the codes, the codes, and the figures of a picture, of a model's output.

    Args:
        raw: (rows, length - 1 + 2 * places + 3).
        length: tokens of a text.
    """
    places = (raw.shape[1] - length + 1 - _REST) // 2
    ends = (0, length - 1, length - 1 + places, length - 1 + 2 * places, raw.shape[1])
    return tuple(raw[:, start:end] for start, end in pairwise(ends))


def bits_of_places(scored):
    """Bits of each code, (rows, places)."""
    return _apart(scored)[0] / np.log(2)


def _apart(scored):
    """Nats (rows, places), codes (rows, places), nats of a value (rows,) and errors (rows,) of scored answers."""
    places = (scored.shape[1] - _KEPT) // 2
    nats, codes, rest = np.split(scored.astype(np.float64), [places, 2 * places], axis=1)
    return nats, codes, rest[:, 0], rest[:, 1]


def _by_frequency(codes):
    """Bits of each code where it is as likely as it is common among these; the same shape."""
    _, which, counts = np.unique(codes, return_inverse=True, return_counts=True)
    return -np.log2(counts / counts.sum())[which.reshape(codes.shape)]


TASK = TextToImage()
