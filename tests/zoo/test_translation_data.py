"""Texts with answers: what is generated, what is read from tables, and which tokens a model is given and foretells."""

import csv
from datetime import datetime

import numpy as np
import pytest

from zoo.data import TextPreprocess, load, tokens
from zoo.data.answers import dates, sums
from zoo.data.signature import Signature
from zoo.data.targets import NOTHING

PAIRS = [("one two", "1 2"), ("two", "2"), ("three one two", "3 1 2"), ("one", "1")]
TEXTS, ANSWERS = [text for text, _ in PAIRS], [answer for _, answer in PAIRS]
FORMS = (
    "%d %B %Y", "%d %b %Y", "%dth of %B %Y", "the %dth of %B, %Y", "%dth %B %Y", "%B %d, %Y", "%b %d, %Y", "%B %dth, %Y",
    "%A, %B %d, %Y", "%A %d %B %Y", "%a %d %b %Y", "%a, %dth of %B %Y", "%d-%b-%Y", "%Y, %B %d", "%Y/%m/%d",
)  # fmt: skip


def forms_of(text):
    """Days that a text may mean, by the forms that fit it, as Python reads them; its weekday must be the day's."""
    plain = text.lower()
    for ending in ("st", "nd", "rd"):
        for day in range(1, 32):
            plain = plain.replace(f"{day}{ending} ", f"{day}th ").replace(f"{day}{ending},", f"{day}th,")
    found = {}
    for form in FORMS:
        try:
            day = datetime.strptime(plain, form)
        except ValueError:
            continue
        if "%a" not in form.lower() or day.strftime("%A").lower().startswith(plain.split()[0].strip(",")[:3]):
            found[form] = day.date().isoformat()
    return found


def test_dates_are_what_python_reads_in_every_form():
    texts, answers = dates(600, seed=3)
    seen = set()
    for text, answer in zip(texts.tolist(), answers.tolist(), strict=True):
        found = forms_of(text)
        assert set(found.values()) == {answer}, text
        seen |= set(found)
    assert seen == set(FORMS)
    assert len(set(texts.tolist())) == 600
    again = dates(600, seed=3)
    assert np.array_equal(again[0], texts) and not np.array_equal(dates(600, seed=4)[0], texts)


def test_sums_are_right():
    texts, answers = sums(500, seed=1)
    assert [str(eval(text[:-1])) for text in texts.tolist()] == answers.tolist()
    assert len(set(texts.tolist())) == 500 and any("-" in text for text in texts.tolist())
    with pytest.raises(ValueError, match="there are 8 different sums of numbers to 1, got count=9; ask for fewer"):
        sums(9, seed=0, largest=1)


@pytest.mark.parametrize("kind", list(tokens.KINDS))
def test_both_sides_end_with_a_token_and_answers_start_with_one(kind):
    step = TextPreprocess.fit(TEXTS, f"{kind}:300", answers=ANSWERS)
    found = step({"text": np.array(TEXTS), "answer": np.array(ANSWERS)})
    y = step.following(ANSWERS)
    assert {name: values.shape[1:] for name, values in found.items()} == step.shapes
    assert found["tokens"].dtype == found["answer"].dtype == y.dtype == np.int32
    for row, own in zip(found["tokens"], found["answer"], strict=True):
        assert step.end in row[row != step.pad][-1:]
        assert own[0] == step.start
    assert (y[:, 0] == 1).all()
    for own, said in zip(found["answer"], y[:, 1:], strict=True):
        count = int((said != NOTHING).sum())
        assert said[count - 1] == step.end and (said[count:] == NOTHING).all()
        assert np.array_equal(own[1 : 1 + count], said[:count]) and (own[1 + count :] == step.pad).all()
    if kind in ("bpe", "characters"):  # others say how a text is written, not what stood between its words
        assert [step.written(row) for row in y[:, 1:]] == ANSWERS
    longest = (y[:, 1:] != NOTHING).sum(axis=1).max()
    assert step.answer == longest + 1  # the token that ends the longest is read, too


def test_an_answer_that_is_cut_or_not_known_is_never_right():
    step = TextPreprocess.fit(TEXTS, "characters", answers=ANSWERS)
    y = step.following(["3 1 2", "3 1 2 1", "4", "3 1 "])
    assert y[:, 0].tolist() == [1, 0, 0, 1]
    assert (y[1, 1:] == step.end).sum() == 0 and y[1, -1] == NOTHING


def test_what_is_not_said_yet_is_the_start_alone():
    step = TextPreprocess.fit(TEXTS, "characters", answers=ANSWERS)
    found = step({"text": np.array(["one"])})
    assert found["answer"].tolist() == [[step.start] + [step.pad] * (step.answer - 1)]
    given = step({"tokens": found["tokens"], "answer": found["answer"]})
    assert np.array_equal(given["answer"], found["answer"]) and np.array_equal(given["tokens"], found["tokens"])


def test_texts_without_answers_are_as_they_were():
    plain = TextPreprocess.fit(TEXTS, "characters")
    assert plain.answer == 0 and plain.end is None and plain({"text": TEXTS}).shape == (4, plain.length)
    assert TextPreprocess.fit(TEXTS, "", answers=ANSWERS).unknown is None  # bpe, which can write every text


def test_a_tokenizer_that_ends_no_text_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(tokens.make("characters", TEXTS), encoding="utf-8")
    with pytest.raises(ValueError, match=r"puts no token behind a text, such as </s> or \[SEP\], by which an answer"):
        TextPreprocess.fit(TEXTS, str(path), answers=ANSWERS)
    path.write_text(tokens.ended(tokens.make("characters", TEXTS)), encoding="utf-8")
    assert TextPreprocess.fit(TEXTS, str(path), answers=ANSWERS).end is not None


def test_the_signature_keeps_it(tmp_path):
    data = load("dates", tokenizer="characters", tokens=32)
    step = data.signature.preprocess
    assert data.signature.shapes == {"tokens": (32,), "answer": (step.answer,)} and step.answer == 12
    assert data.signature.labels[step.end] == "[END]" and len(data.signature.labels) == step.vocabulary
    data.signature.save(tmp_path / "signature.json")
    again = Signature.load(tmp_path / "signature.json")
    assert again == data.signature
    raw = {name: values[:5] for name, values in data.test.x.items()}
    for name, values in again.inputs(raw).items():
        np.testing.assert_array_equal(values, data.signature.inputs(raw)[name])
    np.testing.assert_array_equal(data.test.y[:5], again.preprocess.following(raw["answer"]))
    assert "with answers of up to 10, text-to-text" in data.summary() and not data.leaks()


def table(folder, head, rows):
    path = folder / "pairs.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def test_two_columns_of_a_table_are_read(tmp_path):
    texts, answers = sums(60, seed=0)
    rows = [(text, answer.zfill(4), "x") for text, answer in zip(texts, answers, strict=True)]
    path = table(tmp_path, ("source", "answer", "note"), rows)
    data = load(path, task="text-to-text", text="source", tokenizer="characters")
    assert data.signature.task == "text-to-text" and data.source == "pairs.csv; columns not used: note"
    read = {text: said for part in data.splits.values() for text, said in zip(*part.x.values(), strict=True)}
    assert read == {text: said for text, said, _ in rows}  # 0065 is an answer, and no number
    named = table(tmp_path, ("a", "b"), [row[:2] for row in rows])
    assert len(load(named, task="text-to-text", target="b", tokenizer="characters").train) == 39


def test_a_text_with_several_answers_is_in_one_split(tmp_path):
    path = tmp_path / "many.csv"
    path.write_text("source,target\n" + "".join(f"s{row},t{row}{way}\n" for row in range(100) for way in "abc"))
    data = load(path, task="text-to-text", text="source", tokenizer="characters")
    texts = [set(split.x["text"].tolist()) for split in data.splits.values()]
    assert not set.intersection(*texts) and len(set.union(*texts)) == sum(map(len, texts)) == 100
    assert not data.leaks()
    data.test.x["text"][0] = data.train.x["text"][0]
    assert data.leaks() == [("test", 0, "train", 0)]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([("a", "")], {}, "the answer in row 41 is empty; fill or remove the row"),
        ([("", "b")], {}, "the text in row 41 is empty"),
        ([], {"text": "sourc"}, "no column 'sourc' besides its target. Did you mean 'source'"),
        ([], {"target": "said"}, "has no column 'said'"),
        ([], {"text": "source,note"}, "has no column 'note'"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, rows, options, message):
    path = table(tmp_path, ("source", "answer"), [*[(f"text {row}", str(row)) for row in range(40)], *rows])
    with pytest.raises(ValueError, match=message):
        load(path, task="text-to-text", **options)
