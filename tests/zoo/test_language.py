"""Language modelling: targets, loss, figures, baseline and data against what is computed by hand."""

from collections import Counter, defaultdict

import keras
import numpy as np
import pytest

from zoo import data, tasks
from zoo.data import corpus
from zoo.data.targets import NOTHING
from zoo.data.texts import TextPreprocess
from zoo.evaluate.report import answers
from zoo.tasks.language import next_token_loss, witten_bell

TASK_NAME = "language-modelling"
TASK = tasks.get(TASK_NAME)
TEXTS = ["abc abd", "ab", "naïve ab", "abcabcabcabc"]


@pytest.fixture(scope="module")
def step():
    return TextPreprocess.fit(TEXTS, "bpe:257", 9)


def test_targets_are_the_tokens_that_follow(step):
    y, inputs = corpus.followed(step, TEXTS), step({"text": np.array(TEXTS)})
    assert y.shape == (4, 10) and y.dtype == np.int32
    for row, count in enumerate((7, 2, 9, 9)):
        assert y[row, 1:count].tolist() == inputs[row, 1:count].tolist()
        assert (y[row, count:] == NOTHING).all()
    assert y[:, 0].tolist() == [6, 1, 7, 8]  # characters: of "naïve ab" without the first, though ï is two tokens
    assert corpus.spelled(step)[inputs[0, 0]] == "a"
    ended = TextPreprocess.fit(TEXTS, "bpe:257", 12, answers=["a"])  # with a token behind each text
    assert corpus.followed(ended, TEXTS)[:, 0].tolist() == [6, 1, 7, 10]  # the last is cut
    lossy = TextPreprocess.fit(TEXTS, "words", 9)
    with pytest.raises(ValueError, match="needs a tokenizer that knows every text, such as bpe:1000"):
        corpus.followed(lossy, TEXTS)


def plain(y, logits):
    """Nats of each token that follows, NaN where none does."""
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    found = np.full(y.shape, np.nan)
    for row, place in np.ndindex(y.shape):
        if y[row, place] != NOTHING:
            found[row, place] = -np.log(shares[row, place, y[row, place]])
    return found


def test_loss_and_figures_are_means_over_the_tokens_there_are():
    random = np.random.RandomState(0)
    logits = random.normal(size=(3, 5, 7)).astype(np.float32)
    following = np.array(
        [[1, 2, 3, 4, NOTHING], [6, NOTHING, NOTHING, NOTHING, NOTHING], [0, 5, 0, 2, NOTHING]], np.int32
    )
    nats = plain(following, logits)
    loss = keras.ops.convert_to_numpy(next_token_loss(TASK.encode(following, 7), logits))
    assert np.mean(loss) == pytest.approx(np.nanmean(nats), rel=1e-6)
    letters = np.array([9, 1, 5])
    y = np.concatenate([letters[:, None], following], axis=1)
    scored = keras.ops.convert_to_numpy(keras.ops.log_softmax(logits))
    bits = np.nansum(nats) / np.log(2)
    tokens = np.concatenate([np.full((3, 1), 2), following[:, :-1]], axis=1)  # what the model was given
    for form in (scored, TASK.judged(scored, tokens)):
        found = {name: float(measure(np.ones((1, 3)))[0]) for name, measure in TASK.measures(y, form).items()}
        assert found["bits_per_character"] == pytest.approx(bits / 15, rel=1e-5)
        assert found["minus_bits_per_character"] == -found["bits_per_character"] == TASK.score(y, form)
        assert found["perplexity"] == pytest.approx(np.exp(np.nanmean(nats)), rel=1e-5)
        right = (logits.argmax(-1) == following).sum() / (following != NOTHING).sum()
        assert found["next_token_accuracy"] == pytest.approx(right)
        np.testing.assert_allclose(TASK.losses(y, form), np.nansum(nats, axis=1) / np.log(2) / letters, rtol=1e-5)
    told = TASK.told(y[0], scored[0], tuple("abcdefg"))
    assert told["its_place"] == int(np.nanargmax(nats[0])) + 1


def test_files_answer_for_the_token_that_follows_alone(step):
    random = np.random.RandomState(1)
    logits = random.normal(size=(4, 9, step.vocabulary)).astype(np.float32)
    tokens = step({"text": np.array(TEXTS)})
    signature = data.Signature(TASK_NAME, ("a",) * step.vocabulary, step)
    found = TASK.answers_of(logits, tokens, signature)
    assert {name: (values.shape, values.dtype.str) for name, values in found.items()} == {
        "log_probability": ((4, 9), "<f4"),
        "likeliest": ((4, 9), "|b1"),
    }
    assert [(one.name, one.shape) for one in TASK.outputs(signature)] == [
        ("log_probability", (9,)),
        ("likeliest", (9,)),
    ]
    whole = TASK.judged(TASK.answer(logits, signature), tokens)
    np.testing.assert_allclose(TASK.scored(found), whole, atol=1e-5)


def by_hand(rows, new, vocabulary, order):
    """Witten & Bell, one context after the other."""
    counts = defaultdict(Counter)
    for row in rows:
        for place in range(1, len(row)):
            for length in range(min(order, place + 1)):
                counts[tuple(row[place - length : place])][row[place]] += 1

    def chance(context, token):
        if context is None:
            return 1 / vocabulary
        less = chance(context[1:] if context else None, token)
        seen = counts.get(context)
        return less if not seen else (seen[token] + len(seen) * less) / (sum(seen.values()) + len(seen))

    return [
        [chance(tuple(row[max(0, place - order + 1) : place]), row[place]) for place in range(1, len(row))]
        for row in new
    ]


@pytest.mark.parametrize("order", [1, 3, 5])
def test_the_baseline_is_that_of_witten_and_bell(order):
    random = np.random.RandomState(0)
    rows, new = random.randint(0, 4, (20, 8)), random.randint(0, 5, (6, 8))

    def following(tokens):
        return np.concatenate([tokens[:, 1:], np.full((len(tokens), 1), NOTHING)], axis=1)

    found = witten_bell(rows, following(rows), new, following(new), 5, order)
    np.testing.assert_allclose(found[:, :-1], by_hand(rows.tolist(), new.tolist(), 5, order), rtol=1e-9)
    assert (found[:, -1] == 1).all()


def test_its_probabilities_of_all_tokens_sum_to_one():
    random = np.random.RandomState(1)
    rows = random.randint(0, 3, (30, 10))
    following = np.concatenate([rows[:, 1:], np.full((30, 1), NOTHING)], axis=1)
    new = np.tile(random.randint(0, 3, (1, 10)), (3, 1))
    wanted = np.repeat(np.arange(3)[:, None], 10, axis=1)
    np.testing.assert_allclose(witten_bell(rows, following, new, wanted, 3).sum(axis=0), 1, rtol=1e-9)


def test_texts_shorter_than_what_the_baseline_looks_at_have_one():
    tokens, following = np.array([[1, 2, 0, 0]]), np.array([[2, NOTHING, NOTHING, NOTHING]])
    one = witten_bell(tokens, following, tokens, following, 5, 2)
    assert one[0, 0] == pytest.approx((1 + (1 + 1 / 5) / 2) / 2)  # seen once, and so was what stands in front of it
    np.testing.assert_array_equal(witten_bell(tokens, following, tokens, following, 5, 5), one)


def test_pieces_of_a_file_are_in_one_split():
    texts, files, _ = corpus.library(8_000)
    assert {len(text) for text in texts} == {256} and len(set(texts)) == len(texts)
    part = corpus.dealt(files)
    assert set(part) == {0, 1, 2}
    assert all(len(set(part[files == file])) == 1 for file in set(files))


def novel(seed, length=6_000):
    random = np.random.RandomState(seed)
    return "".join(random.choice(list("abc déf\n"), length))


def marked(splits, books):
    """The number of the book that each piece is from, by split; and that each is a whole one, there once."""
    starts = {text[at : at + 256]: number for number, text in books.items() for at in range(0, len(text), 256)}
    assert sum(map(len, splits.values())) == sum(max(1, len(text) // 256) for text in books.values())
    return {name: [starts[text] for text in split.x["text"].tolist()] for name, split in splits.items()}


def test_a_folder_of_files_is_running_text_and_pieces_of_a_file_are_in_one_split(tmp_path):
    books = {number: novel(number, 6_000 if number < 8 else 100) for number in range(9)}
    for number, text in books.items():
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    for options in ({}, {"task": TASK_NAME}, {"task": "masked-language-modelling", "tokenizer": "wordpiece:60"}):
        splits = data.load(tmp_path, **options)
        assert splits.signature.task == options.get("task", TASK_NAME)
        found = marked(splits.splits, books)
        assert sorted(number for numbers in found.values() for number in set(numbers)) == list(books)
        assert all(found.values())
    assert data.load(tmp_path, tokenizer="bpe:257").signature.outputs == 257
    (tmp_path / "notes.md").write_text("not meant")
    assert len(data.load(tmp_path, task=TASK_NAME).train)
    with pytest.raises(ValueError, match="stands beside the folders of the classes"):
        data.load(tmp_path)


def test_one_file_is_cut_into_stretches_that_are_in_one_split(tmp_path):
    file, text = tmp_path / "book.txt", novel(0, 256 * 100)
    file.write_text("\ufeff" + text, encoding="utf-8")
    splits = data.load(file, tokenizer="bpe:257").splits
    stretches = {number: text[number * 1280 : (number + 1) * 1280] for number in range(20)}
    found = marked(splits, stretches)
    assert sorted(number for numbers in found.values() for number in set(numbers)) == list(range(20))
    assert {name: len(numbers) for name, numbers in found.items()} == {"train": 65, "validation": 15, "test": 20}


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", {}, "book.txt is empty"),
        (b" \n" * 900, {}, "book.txt is empty"),
        (b"\xff\xfea\x00", {}, "book.txt is not UTF-8 text; save it as UTF-8"),
        (b"a\x00b\x00", {}, "book.txt holds a character NUL"),
        (b"too short", {}, "has only 1 file or stretch of text, which cannot be split"),
        (
            b"a text",
            {"task": "classification"},
            "running text, which is for language-modelling, got task='classification'",
        ),
        (b"a text", {"target": "label"}, "target='label' names a column"),
    ],
)
def test_files_that_are_no_running_text_are_refused(tmp_path, content, options, message):
    (tmp_path / "book.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.load(tmp_path / "book.txt", **options)


def test_texts_of_a_table_are_rows_of_their_own(tmp_path):
    file = tmp_path / "notes.csv"
    notes = ["NA", *(f"note {number} about something" for number in range(29))]
    file.write_text("label,size,note\n" + "".join(f"x,{len(note)},{note}\n" for note in notes))
    for options in ({}, {"target": "label"}, {"text": "note"}):
        splits = data.load(file, task=TASK_NAME, **options).splits
        assert sorted(text for split in splits.values() for text in split.x["text"].tolist()) == sorted(notes)
    assert data.load(file, task=TASK_NAME).source == "notes.csv; columns not used: label, size"
    file.write_text("note\n" + "".join(f"{note}\n" for note in notes))  # and nothing else
    assert len(data.load(file, task=TASK_NAME).train) == 20
    pairs = data.load("entailment", task=TASK_NAME)
    assert list(pairs.train.x) == ["text"] and pairs.signature.task == TASK_NAME
    with pytest.raises(ValueError, match="texts to learn from stand in one column, got text='note,label'"):
        data.load(_two(file), task=TASK_NAME, text="note,label")
    with pytest.raises(ValueError, match="language-modelling is learned from texts, and 'iris' has none"):
        data.load("iris", task=TASK_NAME)


def _two(file):
    file.write_text("note,label\na b,c d\n")
    return file


def test_adapters_learn_from_a_file_on_weights_that_are_there(tmp_path):
    import zoo

    file, sizes = tmp_path / "book.txt", {"width": 8, "depth": 1, "heads": 2, "tokenizer": "bpe:257", "tokens": 32}
    file.write_text(novel(0), encoding="utf-8")
    first = zoo.train("gpt_nano", data=str(file), out=tmp_path / "first", epochs=1, quiet=True, **sizes)
    assert first.metrics["test"] < 0
    weights = str(tmp_path / "first" / "model.keras")
    tuned = zoo.train(
        "gpt_nano", data=str(file), out=tmp_path / "lora", epochs=1, quiet=True, weights=weights, lora=2, **sizes
    )
    assert tuned.metrics["test"] >= first.metrics["test"]


def test_a_model_learns_from_text(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus.library, "__defaults__", (8_000,))
    import zoo

    sizes = {"width": 8, "depth": 1, "heads": 2}
    run = zoo.train(
        "gpt_nano",
        data="stdlib_text",
        out=tmp_path / "run",
        epochs=1,
        tokenizer="bpe:257",
        tokens=32,
        quiet=True,
        **sizes,
    )
    assert run.model.output_shape == (None, 32, 257)
    assert run.metrics["baseline"] < 0 and np.isfinite(run.metrics["test"])
    assert run.metrics["test"] < 0
    for name in ("report.md", "confusion.png"):
        assert any(tmp_path.rglob(name))
    row = 4 * 32 * 257  # bytes of an answer
    assert [tasks.together(run.model, 9, room) for room in (9 * row, 3 * row, 1)] == [9, 3, 1]
    some = {"text": run.data.test.x["text"][:5]}
    whole = answers(run.model, run.signature, some)
    monkeypatch.setattr(tasks, "together", lambda model, most: 2)
    np.testing.assert_allclose(answers(run.model, run.signature, some), whole, atol=1e-5)
    again = data.load("stdlib_text", tokenizer="bpe:257", tokens=32)
    assert again.signature.outputs == 257 and again.leaks() == []
