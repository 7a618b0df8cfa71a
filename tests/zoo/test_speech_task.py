"""The loss of speech recognition against the sum over all paths, torch, and by hand; its answers and scores."""

import itertools
import math
from dataclasses import replace

import keras
import numpy as np
import pytest
import references

from zoo import tasks
from zoo.data import AudioPreprocess, Data, Signature, Split
from zoo.data.audio import rows_of
from zoo.data.targets import NOTHING, Symbols
from zoo.evaluate import transcripts
from zoo.layers.speech import IMPOSSIBLE
from zoo.recipes import Recipe
from zoo.tasks.speech import _said

LABELS = ("blank", " ", "a", "b")
TASK = tasks.get("speech-recognition")
SIGNATURE = Signature("speech-recognition", LABELS, AudioPreprocess(8000, 800))


def forward(shares, text):
    """Probability of a text, by the forward algorithm (Graves et al. 2006, equations 6 and 7)."""
    symbols = [0, *itertools.chain.from_iterable((symbol, 0) for symbol in text)]
    now = [shares[0][symbols[0]], shares[0][symbols[1]] if len(symbols) > 1 else 0.0, *[0.0] * (len(symbols) - 2)]
    for line in shares[1:]:
        before = now
        now = []
        for place, symbol in enumerate(symbols):
            total = before[place] + (before[place - 1] if place else 0.0)
            if place > 1 and symbol and symbol != symbols[place - 2]:
                total += before[place - 2]
            now.append(total * line[symbol])
    return sum(now[-2:])


def every_path(shares, text):
    return sum(
        math.prod(line[symbol] for line, symbol in zip(shares, path, strict=True))
        for path in itertools.product(range(len(shares[0])), repeat=len(shares))
        if transcripts.collapsed(np.array(path)) == list(text)
    )


def shares_of(logits):
    logits = logits.astype(np.float64)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


TEXTS = [(2,), (2, 3), (2, 2), (3, 1, 2)]


def test_the_forward_algorithm_is_the_sum_over_all_paths():
    shares = shares_of(np.random.default_rng(0).normal(size=(5, 4))).tolist()
    for text in TEXTS:
        assert forward(shares, text) == pytest.approx(every_path(shares, text), rel=1e-12)


def test_the_loss_is_that_of_the_forward_algorithm():
    logits = np.random.default_rng(0).normal(size=(len(TEXTS), 9, 4)).astype("float32")
    y = TASK.encode(Symbols.padded(list(map(list, TEXTS))), 4)
    loss = TASK.loss("", 0.0)
    each = [float(loss(y[row : row + 1], logits[row : row + 1])) for row in range(len(TEXTS))]
    expected = [-math.log(forward(shares_of(own).tolist(), text)) for own, text in zip(logits, TEXTS, strict=True)]
    np.testing.assert_allclose(each, expected, rtol=1e-5)
    assert float(loss(y, logits)) == pytest.approx(np.mean(expected), rel=1e-5)


def test_certain_blanks_behind_the_end_cost_nothing_however_unlikely_the_text():
    logits = 30 * np.random.default_rng(0).normal(size=(1, 40, 4)).astype("float32")
    more = np.tile(np.array([0, *[IMPOSSIBLE] * 3], "float32"), (1, 25, 1))
    y = TASK.encode(np.array([[2, 2, 3, 1, 2, 3, 3, NOTHING]]), 4)
    loss = TASK.loss("ctc", 0.0)
    alone = float(loss(y, logits))
    assert alone > 300
    assert float(loss(y, np.concatenate([logits, more], axis=1))) == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
def test_the_loss_is_that_of_torch():
    if not references.installed("torch"):
        pytest.skip("compares with torch itself, which is not installed")
    import torch

    random = np.random.default_rng(0)
    logits = random.normal(size=(6, 30, 9)).astype("float32")
    texts = [random.integers(1, 9, length).tolist() for length in (1, 3, 8, 10, 5, 12)]
    y = TASK.encode(Symbols.padded(texts), 9)
    shares = torch.log_softmax(torch.from_numpy(logits).transpose(0, 1), -1)
    lengths = torch.tensor([len(text) for text in texts])
    expected = torch.nn.functional.ctc_loss(
        shares, torch.from_numpy(y).long(), torch.full((6,), 30), lengths, blank=0, reduction="none"
    )
    found = [float(TASK.loss("", 0.0)(y[row : row + 1], logits[row : row + 1])) for row in range(6)]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)


def test_another_loss_is_refused():
    for name, smoothing in (("cross_entropy", 0.0), ("", 0.1)):
        with pytest.raises(ValueError, match="speech recognition has the loss 'ctc' without label_smoothing"):
            TASK.loss(name, smoothing)


def test_answers_are_the_best_path_and_its_probability():
    best = np.array([[0, 2, 2, 0, 2, 3, 0], [0, 0, 0, 0, 0, 0, 0]])
    logits = (3.0 * np.eye(4)[best]).astype("float32")
    found = TASK.answers(logits, SIGNATURE)
    np.testing.assert_array_equal(found["symbols"], [[2, 2, 3, -1, -1, -1, -1], [-1] * 7])
    sure = math.exp(3) / (math.exp(3) + 3)
    np.testing.assert_allclose(found["path_probability"], [[sure ** (7 / 3)], [sure**7]], rtol=1e-5)
    np.testing.assert_allclose(found["probabilities"], shares_of(logits), atol=1e-6)
    scored = TASK.scored(found)
    np.testing.assert_array_equal(scored[..., 0], best)
    np.testing.assert_allclose(scored[..., 1], sure, rtol=1e-5)


def test_scores_count_words_of_all_rows_together():
    y = Symbols.padded([[2, 1, 3, 1, 2, 3], [3]])  # a b ab, b
    said = _said(Symbols.padded([[2, 1, 2, 1, 2, 3], [2, 1, 3, 1, 3]]))
    assert TASK.score(y, said) == pytest.approx(1 - 3 / 4)
    whole = {name: float(measure(np.ones((1, 2)))[0]) for name, measure in TASK.measures(y, said).items()}
    assert whole["character_accuracy"] == pytest.approx(1 - 5 / 7) and whole["exact"] == 0
    np.testing.assert_allclose(TASK.losses(y, said), [1 / 6, 4])
    assert TASK.wrong(y, said).all()
    assert TASK.told(y[0], said[0], LABELS) == {
        "true": "a b ab", "answer": "a a ab", "wrong_words": 1, "wrong_characters": 1
    }  # fmt: skip
    table = TASK.tables(y, said, LABELS)[1]
    assert table["words"] == {"error_rate": 0.75, "replaced": 0.25, "left_out": 0.0, "put_in": 0.5, "rows": 4}
    twice = TASK.constant(np.concatenate([y, y[1:]]), 2, 4)
    assert TASK.score(y, twice) == pytest.approx(2 / 4)


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_a_text_that_is_too_long_for_its_recording_is_named_in_every_split(name):
    step = AudioPreprocess(8000, 800)
    whole = Split({"audio": np.zeros((2, 800), np.float32)}, Symbols.padded([[2, 3], [2, 1, 3]]))
    short = replace(whole, x={"audio": rows_of([np.zeros(800), np.zeros(200)])})
    parts = {split: short if split == name else whole for split in ("train", "validation", "test")}
    data = Data("said", Signature("speech-recognition", LABELS, step), **parts, source="", licence="", sha256="")
    model = keras.Sequential([keras.Input((800,)), keras.layers.Reshape((8, 100)), keras.layers.Dense(4)])
    message = rf"row 1 of {name} has 2 steps for a text of 3, 'a b'; correct the text"
    with pytest.raises(ValueError, match=message):
        TASK.learner(model, data, Recipe("speech_ctc", "said"))
