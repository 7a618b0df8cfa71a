"""Recordings to the amplitudes that a model takes, by the same steps as the training data was read."""

import io
import re
from math import gcd

import numpy as np

from serve.errors import RequestError
from serve.manifest import Manifest

SUFFIXES = (".wav", ".flac")
LEAST, MOST = 1_000, 384_000  # samples per second that a file may have
UNKNOWN = 0x7FFF0000  # bytes in the header of a WAV file, or more, whose length was not known when it was written
SHORTEST = 0.1  # seconds
QUIET = 1e-3  # largest amplitude up to which a recording is silent
ZEROS = 10  # zero crossings of the resampling filter on either side


def read(body: bytes, manifest: Manifest) -> tuple[np.ndarray, list[str]]:
    """Decode a sound file to a model's rate and length.

    Several channels become their mean; another rate is converted.

    Args:
        body: the file, such as 16-bit WAV or FLAC.
        manifest: the model's; its preprocessing has the rate.

    Returns:
        float32 `(samples,)` with NaN behind the end, and notes on what was converted or clipped.

    Raises:
        RequestError: not a sound file, damaged, cut off, empty, not finite, silent, too short or too long.
    """
    rate, samples = int(manifest.preprocess["rate"]), manifest.inputs[0].shape[1]
    try:
        import soundfile
    except ImportError:
        message = "sound files need the library soundfile on the server; send amplitudes as JSON"
        raise RequestError("unsupported_media", message, 415) from None
    try:
        with soundfile.SoundFile(io.BytesIO(body)) as sound:
            own, count = sound.samplerate, sound.frames
            if not LEAST <= own <= MOST:
                raise RequestError("bad_audio", f"the recording has {own} samples per second, not {LEAST} … {MOST}")
            cut = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, re.M)  # as libsndfile tells it
            if cut and int(cut[1]) < UNKNOWN:
                message = f"{int(cut[2]):,} of {int(cut[1]):,} bytes of sound are there; send the whole file"
                raise RequestError("bad_audio", f"the recording is cut off: {message}")
            if count / own > samples / rate + 1 / own:  # before anything is decoded
                raise _too_long(count / own, samples / rate)
            channels = sound.read(dtype="float32", always_2d=True)
    except RequestError:
        raise
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, OSError, MemoryError):
        message = "the body is not a sound file that can be read; send 16-bit WAV or FLAC"
        raise RequestError("bad_audio", message) from None
    if not np.isfinite(channels).all():
        raise RequestError("not_finite", "the recording holds NaN or infinity; send finite amplitudes")
    mono = channels.mean(axis=1)
    wave = np.clip(resample(mono, own, rate), -1, 1)[:samples]
    notes = [f"converted from {own} to {rate} samples per second"] if own != rate else []
    if channels.shape[1] > 1:
        notes.append(f"the mean of {channels.shape[1]} channels was taken")
    loud = int((np.abs(mono) > 1).sum())
    if loud:
        notes.append(f"{loud:,} of {len(mono):,} samples were beyond -1 … 1 and were clipped")
    return row(wave, manifest, "the recording"), notes


def row(wave: np.ndarray, manifest: Manifest, what: str) -> np.ndarray:
    """Amplitudes `(samples,)` filled up to what the model takes.

    Raises:
        RequestError: they are none that a model could hear anything in, or too many.
    """
    rate, samples = int(manifest.preprocess["rate"]), manifest.inputs[0].shape[1]
    if len(wave) > samples:
        raise _too_long(len(wave) / rate, samples / rate)
    check(wave[None], rate, what)
    return np.pad(wave.astype(np.float32), (0, samples - len(wave)), constant_values=np.nan)


def check(rows: np.ndarray, rate: int, what: str) -> None:
    """Refuse rows `(batch, samples)` that are too short, silent, or not known somewhere before their end.

    Raises:
        RequestError: one is.
    """
    for wave in rows:
        gaps = np.isnan(wave)
        count = len(wave) - int(gaps[::-1].argmin()) if not gaps.all() else 0
        if gaps[:count].any():
            raise RequestError("not_finite", f"{what} has missing values before its end; send finite amplitudes")
        if count < SHORTEST * rate:
            message = f"{what} has {count / rate:.2f} s, the least is {SHORTEST:g} s; send a longer one"
            raise RequestError("too_short", message)
        if np.abs(wave[:count]).max() <= QUIET:
            raise RequestError("silent", f"{what} is silent; check the microphone and send it again")


def _too_long(seconds: float, most: float) -> RequestError:
    message = f"the recording has {seconds:.2f} s, the model takes at most {most:.2f} s; cut it into parts"
    return RequestError("too_long", message)


def resample(wave: np.ndarray, was: int, now: int) -> np.ndarray:
    """Samples of one rate at another, float32; the filter is that of `zoo.data.audio.resample`."""
    if was == now:
        return wave
    up, down = now // gcd(was, now), was // gcd(was, now)
    half = ZEROS * max(up, down)
    places = np.arange(-half, half + 1)
    taps = np.sinc(places / max(up, down)) * np.kaiser(len(places), 5.0)
    taps *= up / taps.sum()
    width = -(-len(taps) // up)  # samples under the filter
    phases = np.pad(taps, (0, width * up - len(taps))).reshape(width, up).T  # (up, width)
    count = -(-len(wave) * up // down)
    room = np.pad(wave.astype(np.float64), (width, width))
    found = np.empty(count, np.float32)
    for start in range(0, count, 2**14):
        centre = np.arange(start, min(count, start + 2**14)) * down + half
        under = room[(centre // up)[:, None] + width - np.arange(width)]
        found[start : start + len(centre)] = (under * phases[centre % up]).sum(axis=1)
    return found
