"""Texts in data sets: built-in ones, columns of tables, folders; and what is learned from the training split alone."""

from pathlib import Path

import numpy as np
import pytest

from zoo import tasks
from zoo.data import Data, load, messages, tokens
from zoo.data.docstrings import TOPICS
from zoo.tasks import baselines

WORDS = ["ham", "spam", "eggs", "bacon", "toast", "beans", "sausage", "tomato"]


def _texts(rows=40, seed=0):
    """Rows of five words, of which no two are alike, and their labels."""
    random = np.random.default_rng(seed)
    texts = [f"{' '.join(random.choice(WORDS, 5))} number{row}" for row in range(rows)]
    return texts, ["yes" if row % 2 else "no" for row in range(rows)]


def _csv(path: Path, columns: dict[str, list]) -> Path:
    file = path / "messages.csv"
    rows = zip(*columns.values(), strict=True)
    lines = [",".join(columns), *(",".join(f'"{cell}"' for cell in row) for row in rows)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_a_column_of_texts_beside_the_target_is_the_input(tmp_path):
    texts, labels = _texts()
    data = load(_csv(tmp_path, {"message": texts, "label": labels}))
    assert (data.signature.task, data.signature.labels) == ("text-classification", ("no", "yes"))
    every = [text for split in data.splits.values() for text in split.x["text"].tolist()]
    assert sorted(every) == sorted(texts)
    of = dict(zip(texts, labels, strict=True))
    for split in data.splits.values():
        told = [data.signature.labels[label] for label in split.y]
        assert told == [of[text] for text in split.x["text"].tolist()]


def test_the_summary_tells_what_is_cut_and_unknown(tmp_path):
    texts, labels = _texts()
    file = _csv(tmp_path, {"message": [*texts[1:], "ham"], "label": labels})
    assert "  cut: 39 of 40 texts, to 1 token; unknown: " in load(file, tokens=1).summary()
    known = load(file, tokens=40, tokenizer="bpe:300").summary()
    assert "cut:" not in known and "unknown:" not in known
    (tmp_path / "tokenizer.json").write_text(tokens.train("words", ["eggs"], 8), encoding="utf-8")
    file = _csv(tmp_path, {"message": [f"eggs eggs word{row}" for row in range(40)], "label": labels})
    strange = load(file, tokenizer=str(tmp_path / "tokenizer.json")).summary()
    assert "  unknown: 33.3% of the tokens" in strange and "cut:" not in strange


def test_words_for_missing_values_are_texts_and_labels(tmp_path):
    texts, _ = _texts()
    texts[:4] = ["NA", "null", "?", "None"]
    labels = ["NA" if row % 2 else "null" for row in range(40)]
    data = load(_csv(tmp_path, {"message": texts, "label": labels}))
    assert data.signature.labels == ("NA", "null")
    assert {"NA", "null", "?", "None"} <= {text for split in data.splits.values() for text in split.x["text"].tolist()}
    data = load(_csv(tmp_path, {"message": texts, "answer": labels}), task="text-to-text")
    assert set(data.train.x["answer"].tolist()) == {"NA", "null"}
    with pytest.raises(ValueError, match="target 'label' is missing in row 2"):
        load(_csv(tmp_path, {"message": texts, "label": ["NA", "", *labels[2:]]}))
    with pytest.raises(ValueError, match="the text in row 1 is empty"):
        load(_csv(tmp_path, {"message": ["", *texts[1:]], "label": labels}))


def test_white_space_around_labels_makes_no_other_class(tmp_path):
    texts, labels = _texts()
    told = [f" {label}" if row < 10 else f"{label} " if row < 20 else label for row, label in enumerate(labels)]
    assert load(_csv(tmp_path, {"message": texts, "label": told})).signature.labels == ("no", "yes")
    with pytest.raises(ValueError, match="target 'label' is missing or not finite in row 40"):
        load(_csv(tmp_path, {"message": texts, "label": [*told[:-1], "  "]}))


def test_other_columns_need_the_name_of_the_texts(tmp_path):
    texts, labels = _texts()
    file = _csv(tmp_path, {"message": texts, "length": [len(text) for text in texts], "label": labels})
    with pytest.raises(
        ValueError, match="column 'message' holds texts, and there are other columns; say text='message'"
    ):
        load(file)
    data = load(file, text="message")
    assert list(data.train.x) == ["text"] and data.source == "messages.csv; columns not used: length"
    with pytest.raises(ValueError, match=r"has no column 'mesage' besides its target. Did you mean 'message'\?"):
        load(file, text="mesage")
    with pytest.raises(ValueError, match="column 'length' holds no texts"):
        load(file, text="length")


def test_a_few_words_that_come_again_are_a_category(tmp_path):
    towns = [("Bonn am Rhein", "Trier an der Mosel")[row % 2] for row in range(40)]
    data = load(_csv(tmp_path, {"town": towns, "age": list(range(40)), "label": _texts()[1]}))
    assert data.signature.task == "classification" and "categories" in data.train.x


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"m": ["  "], "label": ["no"]}, {}, "the text in row 41 is empty"),
        ({"m": ["some more words here"], "label": [7.5]}, {"target": "label"}, "texts are for classification"),
    ],
)
def test_what_no_text_data_can_be(tmp_path, columns, options, message):
    texts, labels = _texts()
    if options:
        labels = [row / 7 for row in range(40)]
    file = _csv(tmp_path, {"m": [*texts, *columns["m"]], "label": [*labels, *columns["label"]]})
    with pytest.raises(ValueError, match=message):
        load(file, **options)


def test_names_of_data_sets_take_no_column():
    with pytest.raises(ValueError, match="'spam' has no columns of text to choose from, got text='message'"):
        load("spam", text="message")


def test_a_folder_with_a_folder_of_texts_for_each_class(tmp_path):
    texts, labels = _texts()
    for row, (text, label) in enumerate(zip(texts, labels, strict=True)):
        (tmp_path / "notes" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "notes" / label / f"{row:02}.txt").write_text(text, encoding="utf-8")
    data = load(tmp_path / "notes")
    assert data.signature.labels == ("no", "yes") and sum(map(len, data.splits.values())) == 40
    (tmp_path / "notes" / "no" / "00.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"00.txt is empty; write its text, or remove it"):
        load(tmp_path / "notes")
    (tmp_path / "notes" / "no" / "00.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"00.txt is not UTF-8"):
        load(tmp_path / "notes")


def test_folders_that_say_what_is_for_training(tmp_path):
    texts, labels = _texts()
    for row, (text, label) in enumerate(zip(texts, labels, strict=True)):
        place = tmp_path / "notes" / ("test" if row < 10 else "train") / label
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{row:02}.txt").write_text(text, encoding="utf-8")
    data = load(tmp_path / "notes")
    assert sorted(data.test.x["text"].tolist()) == sorted(texts[:10])


def _told_apart(tmp_path) -> tuple[Data, Data]:
    """The same training rows beside held-out ones of words that no training row has, and beside usual ones."""
    texts, labels = _texts(60)
    found = []
    for name in ("usual", "other"):
        for row, (text, label) in enumerate(zip(texts, labels, strict=True)):
            part = ("train", "validation", "test")[min(row // 30, 1) + (row >= 45)]
            place = tmp_path / name / part / label
            place.mkdir(parents=True, exist_ok=True)
            other = f"zzz{row} yyy{row} ham" if name == "other" and part != "train" else text
            (place / f"{row:02}.txt").write_text(other, encoding="utf-8")
        found.append(load(tmp_path / name))
    return found[0], found[1]


def test_the_vocabulary_is_learned_from_the_training_split_alone(tmp_path):
    usual, other = _told_apart(tmp_path)
    assert usual.signature == other.signature
    step = other.signature.preprocess
    vocabulary = step._opened.get_vocab()
    assert {word for text in other.train.x["text"] for word in text.split()} <= vocabulary.keys()
    assert not any(word.startswith(("zzz", "yyy")) for word in vocabulary)
    tokens = other.signature.inputs(other.test.x)
    assert (tokens[:, :3] == [1, 1, vocabulary["ham"]]).all() and (tokens[:, 3:] == 0).all()


def test_other_training_rows_make_another_vocabulary(tmp_path):
    from zoo.evaluate.validate import _with_train

    texts, labels = _texts(80)
    data = load(_csv(tmp_path, {"message": texts, "label": labels}), tokenizer="words:500", tokens=5)
    chosen = np.arange(0, len(data.train), 2)
    some = _with_train(data, chosen)
    assert some.signature.preprocess.shape == (5,) and some.signature.preprocess.asked == "words:500"
    known = set(some.signature.preprocess._opened.get_vocab()) - {"[PAD]", "[UNK]"}
    assert known == {word for text in data.train.x["text"][chosen] for word in text.split()}


def test_the_baseline_knows_no_word_of_the_test_split(tmp_path):
    _, other = _told_apart(tmp_path)
    train, y, test = baselines.words(other)
    assert train.shape == (30, test.shape[1]) and len(y) == 30
    assert (test != 0).sum() == len(other.test)  # of three words "ham" alone is known


def test_generated_messages_have_labels_that_words_alone_do_not_tell():
    data = load("spam")
    assert data.generated and data.signature.labels == messages.LABELS and not data.leaks()
    scored = tasks.get("text-classification").baseline(data)
    assert 0.7 < scored < 0.9
    again, _ = messages.messages(50, seed=0)
    other, _ = messages.messages(50, seed=1)
    np.testing.assert_array_equal(again, messages.messages(50, seed=0)[0])
    assert not np.array_equal(again, other)
    for line in messages._TWIN_SENTENCES.strip().splitlines():
        ham, spam = (sorted(part.split()) for part in line.split("|"))
        assert ham == spam, line


def test_documentation_strings_are_told_apart_by_their_topic():
    data = load("stdlib_docs")
    assert data.signature.labels == tuple(TOPICS) and "Python 3." in data.source
    assert sum(map(len, data.splits.values())) > 2_000
    assert 0.6 < tasks.get("text-classification").baseline(data) < 0.95
