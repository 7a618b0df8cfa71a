"""Sound as rows of amplitudes, and at another number of samples per second."""

from dataclasses import dataclass
from math import gcd

import numpy as np

ZEROS = 10  # zero crossings of the resampling filter on either side


@dataclass(frozen=True)
class AudioPreprocess:
    """Amplitudes as they are; rows that are shorter than the longest have NaN behind their end.

    Attributes:
        rate: samples per second.
        samples: of the longest training row.
        kind: "audio".
    """

    rate: int
    samples: int
    kind: str = "audio"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one model input, `(samples,)`."""
        return (self.samples,)

    @property
    def numbers(self) -> tuple[str, ...]:
        """None: a recording has no columns."""
        return ()

    @property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """None: a recording has no columns."""
        return {}

    def __call__(self, raw: dict[str, np.ndarray]) -> np.ndarray:
        return padded(raw["audio"], self.samples)


def padded(audio: np.ndarray, samples: int) -> np.ndarray:
    """Rows `(rows, any)` as float32 `(rows, samples)`, with NaN behind those that are shorter.

    Raises:
        ValueError: a row is longer.
    """
    audio = np.asarray(audio, np.float32)
    ends = lengths(audio[:, samples:])
    if ends.any():
        row = int(ends.argmax())
        raise ValueError(
            f"row {row + 1} has {samples + ends[row]:,} samples, the longest training row had {samples:,}; cut it into parts"
        )
    room = max(0, samples - audio.shape[1])
    return np.pad(audio[:, :samples], ((0, 0), (0, room)), constant_values=np.nan)


def lengths(audio: np.ndarray) -> np.ndarray:
    """Samples of each row before its padding, int64 `(rows,)`."""
    places = np.arange(1, audio.shape[1] + 1)
    return np.where(np.isnan(audio), 0, places).max(axis=1, initial=0)


def rows_of(waves: list[np.ndarray]) -> np.ndarray:
    """Recordings `(samples,)` of different lengths as rows, float32 `(rows, longest)`, NaN behind their ends."""
    found = np.full((len(waves), max(map(len, waves), default=0)), np.nan, np.float32)
    for row, wave in zip(found, waves, strict=True):
        row[: len(wave)] = wave
    return found


def resample(audio: np.ndarray, was: int, now: int) -> np.ndarray:
    """Samples `(samples,)` of one rate at another, float32, by a polyphase filter: a sinc under a Kaiser window of 5.0.

    What lies beyond the ends is taken for 0. These are the values of `scipy.signal.resample_poly`.

    Source: Crochiere & Rabiner 1983, "Multirate Digital Signal Processing", section 3.3.

    Args:
        audio: amplitudes.
        was, now: samples per second.
    """
    if was == now:
        return np.asarray(audio, np.float32)
    up, down = now // gcd(was, now), was // gcd(was, now)
    half = ZEROS * max(up, down)
    places = np.arange(-half, half + 1)
    taps = np.sinc(places / max(up, down)) * np.kaiser(len(places), 5.0)
    taps *= up / taps.sum()
    width = -(-len(taps) // up)  # samples under the filter
    phases = np.pad(taps, (0, width * up - len(taps))).reshape(width, up).T  # (up, width)
    count = -(-len(audio) * up // down)
    room = np.pad(np.asarray(audio, np.float64), (width, width))
    found = np.empty(count, np.float32)
    for start in range(0, count, 2**14):
        centre = np.arange(start, min(count, start + 2**14)) * down + half  # in steps of 1 / (was * up) seconds
        last = centre // up  # the latest sample under the filter
        under = room[last[:, None] + width - np.arange(width)]  # later than the last sample is 0 too
        found[start : start + len(centre)] = (under * phases[centre % up]).sum(axis=1)
    return found
