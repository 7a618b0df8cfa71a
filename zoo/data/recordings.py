"""Files of recordings and the texts that are spoken in them."""

import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.audio import resample, rows_of
from zoo.data.rows import Rows
from zoo.data.targets import Symbols

COLUMN, TEXT = "audio", "text"  # columns of a table of recordings
BLANK = "blank"  # name of the symbol that means none
SHORTEST = 0.1  # seconds
QUIET = 1e-3  # largest amplitude up to which a recording is silent
LEAST, MOST = 1_000, 384_000  # samples per second that a file may have
UNKNOWN = 0x7FFF0000  # bytes in the header of a WAV file, or more, whose length was not known when it was written


def open_audio(file: Path, rate: int | None) -> np.ndarray | int:
    """One recording at a rate, mono, float32 `(samples,)`; its own rate alone if `rate` is None.

    Raises:
        ValueError: it is no readable sound, cut off, too short or silent.
    """
    import soundfile

    try:
        with soundfile.SoundFile(file) as sound:
            own = sound.samplerate
            if not LEAST <= own <= MOST:
                raise ValueError(f"it has {own} samples per second, which is not within {LEAST} … {MOST}")
            cut = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, re.M)  # as libsndfile tells it
            if cut and int(cut[1]) < UNKNOWN:
                raise ValueError(f"it is cut off: {int(cut[2]):,} of {int(cut[1]):,} bytes of sound are there")
            if rate is None:
                return own
            channels = sound.read(dtype="float32", always_2d=True)
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # soundfile's own are RuntimeErrors
        raise ValueError(f"cannot read the recording {file}: {error}; repair or remove it") from error
    if not np.isfinite(channels).all():
        raise ValueError(f"the recording {file} holds NaN or infinity; repair or remove it")
    mono = channels.mean(axis=1)
    if len(mono) < SHORTEST * own:
        raise ValueError(f"the recording {file} has {len(mono) / own:.2f} s, the least is {SHORTEST:g} s; remove it")
    if np.abs(mono).max() <= QUIET:
        raise ValueError(f"the recording {file} is silent; repair or remove it")
    return np.clip(resample(mono, own, rate), -1, 1)


def is_table(names: list[str], target: str | None) -> bool:
    """Whether a table with these columns is one of recordings and their texts."""
    return COLUMN in names and TEXT in names and target in (None, TEXT)


def read(path: Path, files: list[Any], texts: list[Any]) -> Rows:
    """Rows of a table with a file and a text in each line.

    Files at another rate than most are converted to it; several channels become their mean.

    Args:
        path: the table; files are looked for beside it.
        files: names of sound files, such as 16-bit WAV or FLAC.
        texts: what is said in them; cases and spaces do not count.

    Raises:
        ValueError: a file is missing or cannot be read, or a text is; the message names the line.
    """
    found = []
    for row, (file, text) in enumerate(zip(files, texts, strict=True), 1):
        if not isinstance(file, str) or not (path.parent / file).is_file():
            raise ValueError(
                f"{path}: row {row} names the recording {file!r}, and there is no such file; correct the name"
            )
        if not normal(text):
            raise ValueError(f"{path}: row {row} has no text for {file!r}; fill or remove the row")
        found.append(path.parent / file)
    rates = [open_audio(file, None) for file in found]
    rate = Counter(rates).most_common(1)[0][0]
    converted = sum(own != rate for own in rates)
    told = f", {converted} of {len(found)} recordings converted to {rate} Hz" if converted else ""
    y, labels = spelled(list(map(normal, texts)))
    return Rows(
        name=path.stem,
        task="speech-recognition",
        x={"audio": rows_of([open_audio(file, rate) for file in found])},
        y=y,
        labels=labels,
        source=f"{path.name}{told}",
        rate=rate,
    )


def normal(text: Any) -> str:
    """A text in small letters, composed as Unicode has it (NFC), with single spaces."""
    return " ".join(unicodedata.normalize("NFC", str(text or "")).lower().split())


def spelled(texts: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Targets of texts, see `zoo.data.targets.Symbols`, and the symbols: the blank, the space, and every other letter."""
    labels = (BLANK, " ", *sorted(set("".join(texts)) - {" "}))
    places = {letter: place for place, letter in enumerate(labels)}
    return Symbols.padded([[places[letter] for letter in text] for text in texts]), labels
