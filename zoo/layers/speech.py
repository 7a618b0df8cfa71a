"""Speech recognition: from a waveform to the frames a network reads, steps that are only padding, and the answer."""

import functools
import itertools
import math

import keras
from keras import layers, ops

IMPOSSIBLE = (
    -3e4
)  # logit of a symbol that cannot be; the exponential of the difference is 0, and float16 still holds it


@functools.cache
def mel_filters(rate: int, bins: int, mels: int) -> tuple[tuple[float, ...], ...]:
    """Weight of each frequency in each of `mels` triangular bands, equally wide on the mel scale from 0 Hz to `rate` / 2.

    Source: Davis & Mermelstein 1980, figure 1; mel(f) = 2595 log10(1 + f / 700), O'Shaughnessy 1987.

    Args:
        rate: samples per second.
        bins: frequencies, equally far apart from 0 Hz to `rate` / 2.
        mels: bands.

    Returns:
        `bins` lines of `mels` weights in [0, 1].
    """
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = [700 * (10 ** (top * place / (mels + 1) / 2595) - 1) for place in range(mels + 2)]
    lines = []
    for place in range(bins):
        hertz = rate / 2 * place / (bins - 1)
        rising = [(hertz - low) / (middle - low) for low, middle in itertools.pairwise(edges[:-1])]
        falling = [(high - hertz) / (high - middle) for middle, high in itertools.pairwise(edges[1:])]
        lines.append(tuple(max(0.0, min(pair)) for pair in zip(rising, falling, strict=True)))
    return tuple(lines)


@functools.cache
def waves(size: int, points: int) -> tuple:
    """Cosines, then sines, of a Fourier transform of `points` under a Hann window: `(size, 1, 2 * (points // 2 + 1))`."""
    turns = [2 * math.pi * place / points for place in range(points)]
    lines = []
    for n in range(size):
        weight = 0.5 - 0.5 * math.cos(2 * math.pi * n / size)
        places = [n * k % points for k in range(points // 2 + 1)]
        lines.append((tuple(weight * f(turns[place]) for f in (math.cos, math.sin) for place in places),))
    return tuple(lines)


@keras.saving.register_keras_serializable("zoo")
class LogMel(layers.Layer):
    """Loudness of frequency bands over time: audio (batch, samples) -> frames (batch, frames, mels), mask (batch, frames).

    A frame every `hop` seconds is as long as the window, is weighted by a Hann window, and takes part in a Fourier
    transform of the next power of 2; of the power in each mel band it has the natural logarithm, and at least that of
    `floor`. Samples after a row's end are NaN. A frame that reaches beyond the end is 0, and false in the mask; it says
    nothing, so that a row has the same frames whatever is padded behind it.

    Args:
        rate: samples per second.
        window, hop: seconds.
        mels: bands from 0 Hz to half the rate.
        floor: least power.
    """

    def __init__(
        self,
        rate: int = 16_000,
        window: float = 0.025,
        hop: float = 0.01,
        mels: int = 80,
        floor: float = 1e-10,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.rate, self.window, self.hop, self.mels, self.floor = rate, window, hop, mels, floor
        self.size, self.step = round(rate * window), round(rate * hop)  # in samples
        if self.step < 1 or self.size < self.step or mels < 1 or floor <= 0:
            raise ValueError(
                "hop must be at least one sample, window at least the hop, mels at least 1 and floor above 0, got "
                f"rate={rate}, window={window}, hop={hop}, mels={mels}, floor={floor}"
            )

    def frames(self, samples):
        """How many whole frames so many samples have, one number or an array; 0 or less where there are too few."""
        return (samples - self.size) // self.step + 1

    def call(self, audio):
        points = 2 ** math.ceil(math.log2(self.size))
        bins = points // 2 + 1
        mask = ops.logical_not(ops.isnan(audio[:, self.size - 1 :: self.step]))  # of the last sample of each frame
        heard = ops.where(ops.isnan(audio), 0.0, audio)
        kernel = ops.convert_to_tensor(waves(self.size, points), heard.dtype)
        seen = ops.conv(ops.expand_dims(heard, -1), kernel, self.step, "valid")  # (batch, frames, 2 * bins)
        power = ops.square(seen[..., :bins]) + ops.square(seen[..., bins:])
        filters = ops.convert_to_tensor(mel_filters(self.rate, bins, self.mels), heard.dtype)
        frames = ops.log(ops.maximum(ops.matmul(power, filters), self.floor))
        return ops.where(ops.expand_dims(mask, -1), frames, 0.0), mask

    def get_config(self):
        own = {name: getattr(self, name) for name in ("rate", "window", "hop", "mels", "floor")}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("zoo")
class EvenFrames(layers.Layer):
    """Frames (batch, steps, bands) of a row moved and scaled to mean 0 and variance 1 over its steps in the mask.

    A row is then read alike however loud it is. Steps out of the mask (batch, steps) become 0.
    """

    def call(self, frames, mask):
        shown = ops.cast(ops.expand_dims(mask, -1), frames.dtype)
        count = ops.maximum(ops.sum(shown, axis=(1, 2), keepdims=True), 1.0) * frames.shape[-1]
        centred = (frames - ops.sum(frames * shown, axis=(1, 2), keepdims=True) / count) * shown
        variance = ops.sum(ops.square(centred), axis=(1, 2), keepdims=True) / count
        return centred / ops.sqrt(variance + 1e-5)


@keras.saving.register_keras_serializable("zoo")
class ClearPadding(layers.Layer):
    """Sets steps out of the mask (batch, steps) to 0: (batch, steps, ...) in and out."""

    def call(self, x, mask):
        for _ in range(len(x.shape) - 2):
            mask = ops.expand_dims(mask, -1)
        return ops.where(mask, x, 0.0)

    def compute_mask(self, x, previous=None):
        return None  # who needs it is given it


@keras.saving.register_keras_serializable("zoo")
class BlankPadding(layers.Layer):
    """Logits (batch, steps, symbols) that say blank with certainty at steps out of the mask (batch, steps).

    Loss and decoding then need no lengths: a blank more at the end changes neither.

    Args:
        blank: the symbol that means none.
    """

    def __init__(self, blank: int = 0, **kwargs) -> None:
        super().__init__(**kwargs)
        self.blank = blank

    def call(self, logits, mask):
        certain = [0.0 if symbol == self.blank else IMPOSSIBLE for symbol in range(logits.shape[-1])]
        return ops.where(ops.expand_dims(mask, -1), logits, ops.convert_to_tensor(certain, logits.dtype))

    def get_config(self):
        return {**super().get_config(), "blank": self.blank}


@keras.saving.register_keras_serializable("zoo")
class CTCGreedyDecode(layers.Layer):
    """The most likely symbol of each step, repeats joined and blanks left out.

    Call it with logits or probabilities (batch, steps, symbols), and with the number of steps of each row (batch,)
    where they differ. It gives symbols (batch, steps) as int32, filled up with -1.

    Source: Graves et al. 2006, "Connectionist Temporal Classification", section 3.2, best path decoding.

    Args:
        blank: the symbol that means none.
    """

    def __init__(self, blank: int = 0, **kwargs) -> None:
        super().__init__(**kwargs)
        if blank < 0:
            raise ValueError(f"blank must be at least 0, got blank={blank}")
        self.blank = blank

    def call(self, scores, lengths=None):
        best = ops.cast(ops.argmax(scores, axis=-1), "int32")
        before = ops.pad(best[:, :-1], [[0, 0], [1, 0]], constant_values=-1)
        kept = ops.logical_and(ops.not_equal(best, self.blank), ops.not_equal(best, before))
        steps = ops.arange(ops.shape(scores)[1])
        if lengths is not None:
            kept = ops.logical_and(kept, ops.less(steps, ops.cast(lengths, "int32")[:, None]))
        order = ops.argsort(ops.where(kept, steps, steps + ops.shape(scores)[1]), axis=1)  # what is kept comes first
        count = ops.sum(ops.cast(kept, "int32"), axis=1, keepdims=True)
        return ops.where(ops.less(steps, count), ops.take_along_axis(best, order, axis=1), -1)

    def compute_output_spec(self, scores, lengths=None):
        return keras.KerasTensor(scores.shape[:2], "int32")

    def get_config(self):
        return {**super().get_config(), "blank": self.blank}
