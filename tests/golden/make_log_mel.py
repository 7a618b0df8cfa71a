"""Write log_mel.npz: what transformers answers for waves that a seed gives, by its own mel filters and spectrogram.

python tests/golden/make_log_mel.py        (needs transformers; nothing of this package)
"""

from pathlib import Path

import numpy as np

PLACE = Path(__file__).with_name("log_mel.npz")
# rate, window and hop in seconds, bands, samples
KINDS = {"telephone": (8000, 0.025, 0.01, 20, 1600), "wide": (16000, 0.02, 0.0125, 24, 2000)}


def waves(samples):
    """Two waves, float32 (2, samples): noise over a tone, and a quiet tone."""
    random = np.random.RandomState(0)
    time = np.arange(samples)
    loud = 0.3 * random.standard_normal(samples) + 0.5 * np.sin(0.4 * time)
    return np.stack([loud, 0.001 * np.sin(0.05 * time)]).astype(np.float32)


def frames(rate, window, hop, mels, samples):
    """Frames of each wave, (2, frames, mels)."""
    from transformers import audio_utils

    size, step = round(rate * window), round(rate * hop)
    points = audio_utils.optimal_fft_length(size)
    filters = audio_utils.mel_filter_bank(points // 2 + 1, mels, 0, rate / 2, rate, mel_scale="htk")
    options = dict(fft_length=points, power=2.0, center=False, mel_filters=filters, mel_floor=1e-10, log_mel="log")
    hann = audio_utils.window_function(size, "hann")
    return np.stack([audio_utils.spectrogram(wave, hann, size, step, **options).T for wave in waves(samples)])


if __name__ == "__main__":
    np.savez_compressed(PLACE, **{kind: frames(*figures).astype(np.float32) for kind, figures in KINDS.items()})
    print(f"{PLACE.name}: {PLACE.stat().st_size:,} bytes")
