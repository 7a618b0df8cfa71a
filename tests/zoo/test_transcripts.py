"""Errors in words and characters against jiwer; beam search and the path of a text against every path there is."""

import itertools
import math

import jiwer
import numpy as np
import pytest

from serve import beam_search
from zoo.data.targets import Symbols
from zoo.evaluate import transcripts

LABELS = ("blank", " ", "a", "b", "c")


def padded(texts):
    return Symbols.padded([[LABELS.index(letter) for letter in text] for text in texts])


def path_of(texts):
    """Best paths that say these texts: a blank behind each symbol."""
    y = padded(texts)
    best = np.zeros((len(y), 2 * y.shape[1]), int)
    best[:, ::2] = np.maximum(y, 0)
    return best


def drawn(random, count):
    return [
        " ".join("".join(random.choice(list("abc"), random.integers(1, 5))) for _ in range(random.integers(1, 6)))
        for _ in range(count)
    ]


def test_rates_are_those_of_jiwer():
    random = np.random.default_rng(0)
    truth, said = drawn(random, 60), drawn(random, 60)
    said[:5] = truth[:5]
    found = transcripts.counted(padded(truth), path_of(said))
    for unit, process, rate in (("words", jiwer.process_words, "wer"), ("characters", jiwer.process_characters, "cer")):
        expected = process(truth, said)
        total = found[unit].sum(axis=0)
        assert total[:3].sum() / total[3] == pytest.approx(getattr(expected, rate))
        assert total[3] == expected.hits + expected.substitutions + expected.deletions
        for row, (one, other) in enumerate(zip(truth, said, strict=True)):
            assert found[unit][row, :3].sum() / found[unit][row, 3] == pytest.approx(getattr(process(one, other), rate))
    assert (found["words"][:5, :3] == 0).all() and found["words"][5:, :3].sum() > 0


def test_edits_tell_what_was_done():
    assert transcripts.edits("kitten", "sitting") == (2, 0, 1)
    assert transcripts.edits("abc", "") == (0, 3, 0) and transcripts.edits("", "ab") == (0, 0, 2)
    assert transcripts.edits([1, 2], [1, 2]).count == 0


def test_repeats_are_joined_and_blanks_left_out():
    assert transcripts.collapsed(np.array([2, 2, 0, 2, 3, 3, 0, 0])) == [2, 2, 3]
    assert transcripts.collapsed(np.array([0, 0])) == []
    assert transcripts.words([1, 2, 3, 1, 1, 4, 1]) == [(2, 3), (4,)]
    assert transcripts.spelled([1, 2, 1, 1, 3], LABELS) == "a b"


def every_text(shares):
    """Probability of each text, by adding up all paths."""
    found = {}
    for path in itertools.product(range(shares.shape[1]), repeat=len(shares)):
        text = tuple(transcripts.collapsed(np.array(path)))
        found[text] = found.get(text, 0.0) + math.prod(shares[step, symbol] for step, symbol in enumerate(path))
    return found


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6])
def test_a_wide_beam_finds_the_probability_of_every_text(steps):
    shares = np.random.default_rng(steps).dirichlet(np.full(4, 0.7), steps)
    truth = every_text(shares)
    found = beam_search.search(shares, width=10_000, least=0.0)
    assert {each.symbols for each in found} == set(truth)
    assert found[0].symbols == max(truth, key=truth.get)
    for each in found:
        assert math.exp(each.score) == pytest.approx(truth[each.symbols], rel=1e-9)
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


def test_a_text_may_be_likelier_than_the_best_path():
    shares = np.array([[0.6, 0.0, 0.4], [0.6, 0.0, 0.4]])  # Graves et al. 2006, figure 2
    assert transcripts.collapsed(shares.argmax(axis=1)) == []
    best, second = beam_search.search(shares, width=2)[:2]
    assert best.symbols == (2,) and math.exp(best.score) == pytest.approx(0.64)
    assert second.symbols == () and math.exp(second.score) == pytest.approx(0.36)


@pytest.mark.parametrize("text", [(), (2,), (2, 3), (2, 2), (3, 1, 3)])
def test_the_path_of_a_text_is_the_likeliest_that_says_it(text):
    shares = np.random.default_rng(len(text)).dirichlet(np.full(4, 0.7), 6)
    found = beam_search.path(shares, text)
    saying = [
        path
        for path in itertools.product(range(4), repeat=6)
        if tuple(transcripts.collapsed(np.array(path))) == text
    ]  # fmt: skip
    assert tuple(found) == max(saying, key=lambda path: shares[range(6), path].prod())


def test_a_text_that_needs_more_steps_has_no_path():
    with pytest.raises(ValueError, match="a text of 2 symbols cannot be said in 2 steps"):
        beam_search.path(np.full((2, 4), 0.25), (2, 2))  # a blank between is wanted


def test_one_beam_is_the_best_path_and_several_say_the_likeliest_text():
    shares = np.random.default_rng(3).dirichlet(np.full(4, 0.7), (5, 6))
    np.testing.assert_array_equal(beam_search.paths(shares), shares.argmax(axis=-1))
    for row, path in zip(shares, beam_search.paths(shares, 50), strict=True):
        truth = every_text(row)
        assert tuple(transcripts.collapsed(path)) == max(truth, key=truth.get)
    assert (beam_search.paths(np.full((1, 3, 4), np.nan), 4) == 0).all()


def test_a_narrow_beam_keeps_few_and_the_best():
    shares = np.random.default_rng(1).dirichlet(np.full(5, 0.5), 8)
    wide, narrow = beam_search.search(shares, width=2000, least=0.0), beam_search.search(shares, width=8)
    assert len(narrow) == 8 and narrow[0].symbols == wide[0].symbols
    assert narrow[0].score <= wide[0].score + 1e-12


def test_known_words_and_likely_letters_are_preferred():
    shares = np.full((4, 5), 0.02)
    for step, (one, other) in enumerate([(2, 2), (3, 4), (1, 1), (2, 2)]):  # a, then b or c, a space, a
        shares[step, [one, other]] = (0.44, 0.5) if one != other else 0.92
    shares /= shares.sum(axis=1, keepdims=True)
    assert transcripts.spelled(beam_search.search(shares)[0].symbols, LABELS) == "ac a"
    words = beam_search.of_words(["ab"], LABELS, bonus=1.0)
    assert transcripts.spelled(beam_search.search(shares, bonus=words)[0].symbols, LABELS) == "ab a"
    letters = beam_search.search(shares, bonus=lambda prefix: -3.0 if prefix[-1] == 4 else 0.0)
    assert transcripts.spelled(letters[0].symbols, LABELS) == "ab a"


def test_what_is_no_answer_is_refused():
    with pytest.raises(ValueError, match=r"probabilities must be \(steps, symbols\) and width at least 1"):
        beam_search.search(np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match="width at least 1, got"):
        beam_search.search(np.ones((2, 3)), width=0)
