"""Sentences of digits, spoken by a machine: tones at the formants of vowels, noise for the rest, at 8000 Hz.

Formants are means of 33 men: Peterson & Barney 1952, "Control methods used in a study of the vowels", table II.
"""

import numpy as np

RATE = 8000  # samples per second
LONGEST = 2.0  # seconds of a sentence
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# sound -> first, second and third formant in Hz, loudness of the voice and of noise, how high the noise is, in [0, 1], seconds
_SOUNDS: dict[str, tuple[float, float, float, float, float, float, float]] = {
    "iy": (270, 2290, 3010, 1.0, 0.0, 0.0, 0.10),
    "ih": (390, 1990, 2550, 1.0, 0.0, 0.0, 0.07),
    "eh": (530, 1840, 2480, 1.0, 0.0, 0.0, 0.09),
    "ah": (640, 1190, 2390, 1.0, 0.0, 0.0, 0.08),
    "aa": (730, 1090, 2440, 1.0, 0.0, 0.0, 0.08),
    "ao": (570, 840, 2410, 1.0, 0.0, 0.0, 0.10),
    "uh": (440, 1020, 2240, 1.0, 0.0, 0.0, 0.06),
    "uw": (300, 870, 2240, 1.0, 0.0, 0.0, 0.11),
    "r": (490, 1350, 1690, 0.7, 0.0, 0.0, 0.07),
    "w": (300, 610, 2200, 0.6, 0.0, 0.0, 0.06),
    "n": (250, 1400, 2300, 0.4, 0.0, 0.0, 0.08),
    "v": (280, 1100, 2100, 0.3, 0.15, 0.5, 0.06),
    "z": (270, 1700, 2500, 0.3, 0.40, 1.0, 0.08),
    "s": (270, 1700, 2500, 0.0, 0.60, 1.0, 0.10),
    "f": (400, 1100, 2100, 0.0, 0.25, 0.4, 0.09),
    "th": (400, 1500, 2500, 0.0, 0.18, 0.8, 0.08),
    "-": (400, 1500, 2500, 0.0, 0.0, 0.0, 0.04),
    "t": (400, 1800, 2600, 0.0, 0.70, 0.9, 0.02),
    "k": (400, 1600, 2300, 0.0, 0.50, 0.3, 0.03),
}
_SPOKEN = {
    "zero": "z ih r ao uw",
    "one": "w ah n",
    "two": "- t uw",
    "three": "th r iy",
    "four": "f ao r",
    "five": "f aa ih v",
    "six": "s ih - k s",
    "seven": "s eh v ah n",
    "eight": "eh ih - t",
    "nine": "n aa ih n",
}


def sentences(count: int, seed: int = 0, most: int = 4) -> tuple[list[np.ndarray], list[str]]:
    """Sentences of one to `most` digits, all numbers and digits equally often.

    Pitch, speed, loudness, the length of gaps and of the throat, and the noise in the room differ.

    Args:
        count: sentences.
        seed: the same seed gives the same sentences.
        most: words of a sentence.

    Returns:
        Recordings, float32 `(samples,)` in [-1, 1], none longer than two seconds; and what is said, such as "one four".
    """
    random = np.random.default_rng(seed)
    waves, texts = [], []
    for _ in range(count):
        words = [WORDS[place] for place in random.integers(0, len(WORDS), random.integers(1, most + 1))]
        waves.append(_say(words, random))
        texts.append(" ".join(words))
    return waves, texts


def _say(words: list[str], random: np.random.Generator) -> np.ndarray:
    sounds, seconds = ["-"], [random.uniform(0.03, 0.15)]
    speed = random.uniform(0.8, 1.25)
    for word in words:
        for sound in _SPOKEN[word].split():
            sounds.append(sound)
            seconds.append(_SOUNDS[sound][6] * speed * random.uniform(0.85, 1.15))
        sounds.append("-")
        seconds.append(random.uniform(0.03, 0.12))
    lasting = np.array(seconds) * min(1.0, LONGEST / sum(seconds))
    ends = np.cumsum(lasting)
    time = np.arange(int(ends[-1] * RATE)) / RATE
    targets = np.array([_SOUNDS[sound][:6] for sound in sounds])
    targets[:, :3] *= random.uniform(0.88, 1.12)  # shorter and longer throats
    # a sound holds for most of its time and glides into the next one
    starts, glide = ends - lasting, 0.25 * lasting
    points = np.stack([starts + glide, ends - glide], axis=1).ravel()
    first, second, third, voice, hiss, height = (np.interp(time, points, np.repeat(line, 2)) for line in targets.T)
    pitch = random.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * (random.uniform(0.5, 2) * time + random.random())))
    throat = 0.6 + 0.4 * np.cos(_turns(pitch))
    tones = sum(share * np.sin(_turns(hertz)) for share, hertz in ((1.0, first), (0.6, second), (0.3, third)))
    rush = random.standard_normal(len(time) + 1)
    rough = (1 - height) * rush[1:] + height * (rush[1:] - rush[:-1])
    wave = voice * throat * tones + hiss * rough + random.uniform(0.002, 0.05) * random.standard_normal(len(time))
    return (wave * random.uniform(0.05, 0.9) / np.abs(wave).max()).astype(np.float32)


def _turns(hertz: np.ndarray) -> np.ndarray:
    """Phase in radians of a wave of changing frequency."""
    return 2 * np.pi * np.cumsum(hertz) / RATE
