"""Recordings as data: files with their texts, another rate, padding, and what is refused."""

import re
from dataclasses import asdict
from math import gcd

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from zoo import data
from zoo.data import AudioPreprocess, Signature, audio, recordings, spoken
from zoo.data.targets import NOTHING

RATE = 8000


def tone(seconds, rate=RATE, hertz=440):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype("float32")


@pytest.fixture
def folder(tmp_path):
    """30 recordings, of which one is FLAC in stereo at twice the rate."""
    lines = ["audio,text"]
    for row in range(30):
        text = ("Yes", "no", "yes  no")[row % 3]
        name = f"{row}.flac" if row == 4 else f"{row}.wav"
        wave = tone(0.2 + 0.01 * row, hertz=200 + row)
        if row == 4:
            high = tone(0.24, 2 * RATE, 204)
            soundfile.write(tmp_path / name, np.stack([high, 0 * high], axis=1), 2 * RATE)
        else:
            soundfile.write(tmp_path / name, wave, RATE, subtype="PCM_16")
        lines.append(f"{name},{text}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("was", "now"), [(8000, 16_000), (44_100, 8000), (8000, 11_025), (48_000, 8000), (16_000, 8000)]
)
def test_another_rate_is_that_of_scipy(was, now):
    wave = np.random.default_rng(0).normal(size=3001)
    expected = resample_poly(wave, now // gcd(was, now), was // gcd(was, now))
    np.testing.assert_allclose(audio.resample(wave, was, now), expected, atol=1e-6)


def test_a_long_recording_is_converted_in_parts_to_the_same():
    wave = np.random.default_rng(0).normal(size=40_000)
    np.testing.assert_allclose(audio.resample(wave, 8000, 11_025), resample_poly(wave, 441, 320), atol=1e-6)


def test_a_table_of_recordings_is_read(folder):
    found = data.load(folder / "table.csv")
    assert found.signature == Signature(
        "speech-recognition", ("blank", " ", "e", "n", "o", "s", "y"), AudioPreprocess(RATE, round(0.49 * RATE))
    )
    assert found.source == "table.csv, 1 of 30 recordings converted to 8000 Hz"
    rows = np.concatenate([split.x["audio"] for split in found.splits.values()])
    texts = np.concatenate([split.y for split in found.splits.values()])
    order = np.argsort(audio.lengths(rows))
    np.testing.assert_array_equal(audio.lengths(rows[order]), [round((0.2 + 0.01 * row) * RATE) for row in range(30)])
    np.testing.assert_allclose(rows[order[1]][:1680], tone(0.21, hertz=201), atol=1 / 2**15)
    middle = slice(200, 1700)  # beyond the ends the filter reads silence
    np.testing.assert_allclose(rows[order[4]][middle], 0.5 * tone(0.24, hertz=204)[middle], atol=2e-3)
    yes_no = [found.signature.labels.index(letter) for letter in "yes no"]
    np.testing.assert_array_equal(texts[order[2]], yes_no)
    np.testing.assert_array_equal(texts[order[0]], [*yes_no[:3], *[NOTHING] * 3])
    assert "recordings of up to 0.49 s at 8000 Hz" in found.summary()
    loaded = Signature.from_dict(asdict(found.signature))
    assert loaded == found.signature


def test_parquet_is_read_as_csv_is(folder):
    from pyarrow import csv, parquet

    parquet.write_table(csv.read_csv(folder / "table.csv"), folder / "table.parquet")
    one, other = data.load(folder / "table.csv"), data.load(folder / "table.parquet")
    assert one.sha256 == other.sha256


def test_all_recordings_are_brought_to_a_rate(folder):
    found = data.load(folder / "table.csv", rate=4000, input_shape=(2400,))
    assert found.signature.preprocess == AudioPreprocess(4000, 2400)
    with pytest.raises(
        ValueError, match=r"samples, the longest training row had 100; cut it into parts; or give a larger"
    ):
        data.load(folder / "table.csv", input_shape=(100,))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no sound", r"cannot read the recording .*0\.wav: .*repair or remove it"),
        (np.zeros(2000), r"the recording .*0\.wav is silent"),
        (np.full(2000, 5e-4), r"the recording .*0\.wav is silent"),
        (np.zeros(0), r"the recording .*0\.wav has 0\.00 s, the least is 0\.1 s"),
        (tone(0.05), r"the recording .*0\.wav has 0\.05 s, the least is 0\.1 s"),
        (np.full(2000, np.nan, "float32"), r"the recording .*0\.wav holds NaN or infinity"),
        (None, r"row 1 names the recording '0\.wav', and there is no such file"),
    ],
)
def test_a_bad_recording_is_named(folder, content, message):
    file = folder / "0.wav"
    file.unlink()
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        soundfile.write(file, content, RATE, subtype="FLOAT" if np.isnan(content).any() else "PCM_16")
    with pytest.raises(ValueError, match=message):
        data.load(folder / "table.csv")


def test_a_file_that_was_cut_off_is_refused_or_read_as_far_as_it_goes(folder):
    whole = (folder / "4.flac").read_bytes()
    (folder / "4.flac").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cannot read the recording .*4\.flac"):
        data.load(folder / "table.csv")


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 0])
def test_a_wav_file_is_as_long_as_it_says_unless_it_was_written_to_a_pipe(folder, size):
    whole = bytearray((folder / "5.wav").read_bytes())
    assert whole[36:44] == b"data" + (4000).to_bytes(4, "little")
    (folder / "5.wav").write_bytes(whole[:2044])
    with pytest.raises(ValueError, match=r"5\.wav: it is cut off: 2,000 of 4,000 bytes of sound are there; repair or"):
        data.load(folder / "table.csv")
    whole[4:8] = (size or 8).to_bytes(4, "little")
    whole[40:44] = size.to_bytes(4, "little")
    (folder / "5.wav").write_bytes(whole[:2044])
    assert len(recordings.open_audio(folder / "5.wav", RATE)) == 1000


def test_rates_beyond_reason_and_missing_texts_are_refused(folder):
    soundfile.write(folder / "1.wav", tone(0.3), 500)
    with pytest.raises(ValueError, match=r"1\.wav: it has 500 samples per second, which is not within 1000 … 384000"):
        data.load(folder / "table.csv")
    text = (folder / "table.csv").read_text().replace("2.wav,yes  no", "2.wav,")
    (folder / "table.csv").write_text(text)
    with pytest.raises(ValueError, match=r"row 3 has no text for '2\.wav'"):
        data.load(folder / "table.csv")
    (folder / "other.csv").write_text("file,text\n0.wav,yes\n")
    with pytest.raises(ValueError, match="needs a column 'audio' of sound files and a column 'text'"):
        data.load(folder / "other.csv", task="speech-recognition")


def test_a_longer_row_is_refused_and_a_shorter_filled_up():
    step = AudioPreprocess(RATE, 5)
    given = np.array([[1, 2, 3], [1, np.nan, np.nan]], "float32") / 4
    found = step({"audio": given})
    np.testing.assert_array_equal(audio.lengths(found), [3, 1])
    assert found.shape == (2, 5) and found.dtype == np.float32
    np.testing.assert_array_equal(found[:, :3], given)
    with pytest.raises(ValueError, match="row 2 has 7 samples, the longest training row had 5"):
        step({"audio": np.array([[1] * 5 + [np.nan] * 2, [1] * 7])})


def test_sentences_are_the_same_for_a_seed_and_within_bounds():
    waves, texts = spoken.sentences(40, seed=3)
    again, _ = spoken.sentences(40, seed=3)
    other, _ = spoken.sentences(40, seed=4)
    assert all(np.array_equal(one, two) for one, two in zip(waves, again, strict=True))
    assert not any(np.array_equal(one, two) for one, two in zip(waves, other, strict=True))
    assert {word for text in texts for word in text.split()} == set(spoken.WORDS)
    assert {len(text.split()) for text in texts} == {1, 2, 3, 4}
    assert max(map(len, waves)) <= spoken.LONGEST * spoken.RATE and min(map(len, waves)) > 0.1 * spoken.RATE
    assert all(0.04 < np.abs(wave).max() <= 0.9 for wave in waves)


def test_texts_are_spelled_alike():
    assert recordings.normal("  Cafe\u0301  NOIR\n") == "café noir"
    y, labels = recordings.spelled(["ba", "a b"])
    assert labels == ("blank", " ", "a", "b")
    np.testing.assert_array_equal(y, [[3, 2, NOTHING], [2, 1, 3]])


def test_every_recording_of_the_built_in_data_is_split_once():
    found = data.load("spoken_digits")
    assert found.generated and found.signature.preprocess == AudioPreprocess(8000, 16_000)
    assert sum(map(len, found.splits.values())) == 1200 and not found.leaks()
    assert re.search(r"1,200 generated recordings of up to 2\.00 s at 8000 Hz", found.summary())
