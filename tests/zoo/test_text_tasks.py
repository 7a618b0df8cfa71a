"""Hidden words, labels of words and pairs of texts: data, targets and figures against what is computed by hand."""

from dataclasses import replace

import keras
import numpy as np
import pytest

import zoo
from zoo import data, tasks
from zoo.data import Split, corpus, hiding, memos, phrases, tagging
from zoo.data.targets import NOTHING, Tags
from zoo.data.texts import TextPreprocess
from zoo.evaluate import cross_validate, text_pictures

HIDDEN, LABELS = tasks.get("masked-language-modelling"), tasks.get("token-classification")
TEXTS = ["the cat sat on the mat", "a dog ran over the long road to the sea", "one"]
SIZES = {"width": 8, "depth": 1, "heads": 2, "dropout": 0.0}


@pytest.fixture(scope="module")
def step():
    return TextPreprocess.fit(TEXTS, "wordpiece:60", 14)


def few(splits, count=48):
    """The first rows of each split."""
    parts = {
        name: Split({key: x[:count] for key, x in part.x.items()}, part.y[:count])
        for name, part in splits.splits.items()
    }
    return replace(splits, **parts)


# ---- hidden words


def test_tokens_are_hidden_as_the_paper_says(step):
    whole = np.tile(step({"text": np.array(TEXTS)}), (2000, 1))
    shown, asked = hiding.hidden(step, whole, np.random.default_rng(0))
    hidden = asked != NOTHING
    there = ~np.isin(whole, step.special)
    assert not (hidden & ~there).any() and (asked[hidden] == whole[hidden]).all()
    assert (shown[~hidden] == whole[~hidden]).all()
    count = np.maximum(1, np.rint(0.15 * there.sum(axis=1)))
    assert (hidden.sum(axis=1) == count).all()
    masked, same = (shown == step.mask)[hidden].mean(), (shown == whole)[hidden].mean()
    assert masked == pytest.approx(0.8, abs=0.02)
    ordinary = step.vocabulary - len(step.special)
    assert same == pytest.approx(0.1 + 0.1 / ordinary, abs=0.015)
    others = shown[hidden & (shown != step.mask)]
    assert not np.isin(others, step.special).any()
    place = hidden[0::3].mean(axis=0)[1:-1]
    assert np.ptp(place[: int(there[0].sum())]) < 0.06  # no place is hidden more often than another


def test_what_is_hidden_follows_from_seed_epoch_and_batch():
    splits = few(data.load("memos", task="masked-language-modelling", tokenizer="wordpiece:200", tokens=12))
    again = few(data.load("memos", task="masked-language-modelling", tokenizer="wordpiece:200", tokens=12))
    from zoo.recipes import Recipe
    from zoo.training.fit import Batches

    np.testing.assert_array_equal(splits.test.x["tokens"], again.test.x["tokens"])
    np.testing.assert_array_equal(splits.test.y, again.test.y)
    recipe = Recipe("bert_tiny", "memos", batch_size=16)

    def batch(epoch, index, seed=0):
        return Batches(splits, replace(recipe, seed=seed), epoch)[index]

    for one, other in zip(batch(1, 2), batch(1, 2), strict=True):
        np.testing.assert_array_equal(one, other)
    x, y = batch(0, 0)
    assert (x == splits.signature.preprocess.mask).any() and x.shape == y.shape == (16, 12)
    assert (x != batch(1, 0)[0]).any() and (x != batch(0, 0, seed=1)[0]).any()
    whole = splits.signature.inputs({"text": splits.train.x["text"]})
    truth = np.where(splits.train.y != NOTHING, splits.train.y, splits.train.x["tokens"])
    np.testing.assert_array_equal(truth, whole)
    assert splits.leaks() == [] and splits.signature.outputs == splits.signature.preprocess.vocabulary


def test_a_tokenizer_without_a_mask_is_refused():
    with pytest.raises(
        ValueError, match=r"needs a tokenizer with a token for what is hidden, .* tokenizer=wordpiece:8000"
    ):
        data.load("memos", task="masked-language-modelling", tokenizer="words:100")
    with pytest.raises(ValueError, match="is learned from texts, and 'iris' has none"):
        data.load("iris", task="masked-language-modelling")


def test_a_mask_in_a_text_is_the_token_only_where_words_are_hidden(step):
    marks = replace(step, marks=True)
    assert (
        step.mask in marks({"text": ["the [MASK] sat"]})[0] and step.mask not in step({"text": ["the [MASK] sat"]})[0]
    )


def test_figures_of_hidden_words_are_over_the_hidden_ones():
    random = np.random.RandomState(0)
    logits = random.normal(size=(3, 5, 7)).astype(np.float32)
    y = np.full((3, 5), NOTHING, np.int32)
    y[0, 1], y[0, 4], y[2, 0] = 3, 6, logits[2, 0].argmax()
    logs = keras.ops.convert_to_numpy(keras.ops.log_softmax(logits))
    nats = -np.array([logs[0, 1, 3], logs[0, 4, 6], logs[2, 0, y[2, 0]]])
    loss = keras.ops.convert_to_numpy(HIDDEN.loss("", 0)(HIDDEN.encode(y, 7), logits))
    assert loss.mean() == pytest.approx(nats.mean(), rel=1e-5)
    tokens = np.where(y == NOTHING, 2, y)
    hits = np.mean([logs[0, 1].argmax() == 3, logs[0, 4].argmax() == 6, True])
    for form in (logs, HIDDEN.judged(logs, tokens)):
        found = {name: measure(np.ones((1, 3)))[0] for name, measure in HIDDEN.measures(y, form).items()}
        assert found["perplexity"] == pytest.approx(np.exp(nats.mean()), rel=1e-5)
        assert found["masked_token_accuracy"] == pytest.approx(hits) == HIDDEN.score(y, form)
        np.testing.assert_allclose(
            HIDDEN.losses(y, form), [nats[:2].mean() / np.log(2), 0, nats[2] / np.log(2)], rtol=1e-5
        )
    known = np.array([[1, NOTHING], [1, 2]], np.int32)
    said = HIDDEN.constant(known, 1, 3)[0, 0]
    np.testing.assert_allclose(np.exp(said), [1 / 6, 3 / 6, 2 / 6], rtol=1e-6)


# ---- labels of words


def by_hand(tags):
    """Marked parts of labels in words, by what conlleval says begins and ends one (Sang & Buchholz 2000)."""
    found, start = set(), None
    padded = ["O", *tags, "O"]
    for place in range(1, len(padded)):
        (before, kind), (now, own) = (
            tuple(tag.split("-")) if "-" in tag else ("O", "") for tag in padded[place - 1 : place + 1]
        )
        ends = before != "O" and (now in "BO" or kind != own)
        begins = now == "B" or (now == "I" and (before == "O" or kind != own))
        if ends:
            found.add((kind, start, place - 1))
        if begins:
            start = place - 1
    return found


def test_marked_parts_are_those_of_conlleval():
    labels = tagging.tags_of(("a", "b"))
    assert labels == ("O", "B-a", "I-a", "B-b", "I-b") and tagging.kinds_of(labels) == ["a", "b"]
    random = np.random.RandomState(0)
    for row in random.randint(0, 5, (400, 7)):
        found = {(labels[kind][2:], start, end) for kind, start, end in tagging.entities(row.tolist())}
        assert found == by_hand([labels[label] for label in row])


@pytest.mark.slow
def test_figures_are_those_of_seqeval():
    seqeval = pytest.importorskip("seqeval.metrics", reason="pip install seqeval")
    labels = tagging.tags_of(("a", "b", "c"))
    random = np.random.RandomState(1)
    y, said = random.randint(0, 7, (2, 60, 9))
    found = {name: measure(np.ones((1, 60)))[0] for name, measure in LABELS.measures(y, scored(said)).items()}
    truth, answers = ([[labels[label] for label in row] for row in part] for part in (y, said))
    assert found["f1"] == pytest.approx(seqeval.f1_score(truth, answers))
    assert found["macro_f1"] == pytest.approx(seqeval.f1_score(truth, answers, average="macro"))
    assert found["precision"] == pytest.approx(seqeval.precision_score(truth, answers))
    assert found["recall"] == pytest.approx(seqeval.recall_score(truth, answers))
    assert found["word_accuracy"] == pytest.approx(seqeval.accuracy_score(truth, answers))


def scored(labels):
    return np.stack([labels, np.full(labels.shape, 0.9)], axis=-1).astype(np.float32)


def test_figures_of_labels_are_over_marked_parts():
    y = np.array([[1, 2, 0, 3, NOTHING], [0, 1, 1, 0, 0]])
    said = np.array(
        [[1, 2, 0, 1, 4], [0, 1, 2, 0, 3]]
    )  # one part of two right; of two one, and it is too long; one too many
    found = {name: measure(np.ones((1, 2)))[0] for name, measure in LABELS.measures(y, scored(said)).items()}
    assert (
        found["precision"] == 1 / 4
        and found["recall"] == 1 / 4
        and found["f1"] == 1 / 4 == LABELS.score(y, scored(said))
    )
    assert found["macro_f1"] == pytest.approx(np.mean([2 * 1 / (3 + 3), 0]))
    assert found["word_accuracy"] == 6 / 9
    _, table = LABELS.tables(y, scored(said), tagging.tags_of(("a", "b", "c")))
    assert table["a"] == {"precision": 1 / 3, "recall": 1 / 3, "f1": pytest.approx(1 / 3), "rows": 3}
    assert table["c"]["rows"] == 0 and table["c"]["f1"] == 0
    told = LABELS.told(y[1], scored(said)[1], ())
    assert told == {"words": 5, "wrong_words": 2, "marked": 2, "answered": 2, "right": 0}


def test_words_get_the_label_of_the_part_they_are_in():
    text = "Dr Kim-Berg paid $20.50 on May 3, 2024 to kim"
    parts = [(0, 11, 3), (17, 23, 1), (27, 38, 5)]
    spans = Tags.padded([parts, []])
    step = TextPreprocess.fit([text] * 3, "wordpiece:60", 40)
    y = tagging.tagged(step, [text, "nothing here"], spans)
    own = tagging.words(step, [text, "nothing here"])
    told = [(text[word.start : word.end], int(y[0, word.place])) for word in own[0]]
    assert told[:6] == [("Dr", 3), ("Kim", 4), ("-", 4), ("Berg", 4), ("paid", 0), ("$", 1)]
    assert told[6:9] == [("20", 2), (".", 2), ("50", 2)]
    assert told[-6:] == [("May", 5), ("3", 6), (",", 6), ("2024", 6), ("to", 0), ("kim", 0)]
    assert (y != NOTHING).sum(axis=1).tolist() == [len(own[0]), 2]
    pieces = TextPreprocess.fit(["ab"] * 3, "wordpiece:9", 12)  # in which a long word has several
    y = tagging.tagged(pieces, ["abab b"], Tags.padded([[(0, 4, 1)]]))
    assert (y[0] != NOTHING).sum() == 2 and y[0][y[0] != NOTHING].tolist() == [1, 0]


def test_parts_that_are_cut_count_as_missed(tmp_path):
    text = "Anna paid 20 euros to Kim Berg"
    short = TextPreprocess.fit([text] * 3, "words", 3)
    spans = Tags.padded([[(0, 4, 1), (10, 18, 3), (22, 30, 1)], []])
    y = tagging.tagged(short, [text, "one two"], spans)
    assert y.tolist() == [[1, 0, 3, 4, 0, 1, 2], [0, 0, *[NOTHING] * 5]]
    said = np.zeros((2, 3, 2), np.float32)
    said[0, :, 0] = 1, 0, 3  # all that the model is shown is right, and the second part goes on behind it
    right = {name: measure(np.ones(2)) for name, measure in LABELS.measures(y, said).items()}
    assert right["precision"] == 0.5 and right["recall"] == pytest.approx(1 / 3)
    assert right["word_accuracy"] == pytest.approx(6 / 9)
    file = tmp_path / "notes.conll"
    file.write_text("\n".join(f"paid O\n{n} B-amount\nto O\nKim B-name\n" for n in range(40)), encoding="utf-8")
    splits = data.load(file, tokens=2)
    assert [part.y.shape[1] for part in splits.splits.values()] == [4, 4, 4]
    assert splits.signature.targets(splits.train.y).shape == (len(splits.train), 2)  # of what is learned


def test_columns_of_conll_are_read(tmp_path):
    file = tmp_path / "notes.conll"
    file.write_text(
        "-DOCSTART- -X- O\n\nAnna NNP B-name\nBerg NNP I-name\npaid VBD O\n\nin IN O\nMay NNP I-date\nJune NNP B-date\n",
        encoding="utf-8",
    )
    rows = tagging.read(file)
    assert rows.x["text"].tolist() == ["Anna Berg paid", "in May June"]
    assert rows.labels == ("O", "B-date", "I-date", "B-name", "I-name")
    assert rows.y.tolist() == [[[0, 9, 3], [NOTHING] * 3], [[3, 6, 1], [7, 11, 1]]]
    folder = tmp_path / "split"
    folder.mkdir()
    for name in ("train", "dev", "test"):
        (folder / f"{name}.conll").write_text(
            "Anna\tB-name\nsat\tO\n\n" * (30 if name == "train" else 3), encoding="utf-8"
        )
    splits = data.load(folder)
    assert [len(part) for part in splits.splits.values()] == [
        30,
        3,
        3,
    ] and splits.signature.task == "token-classification"
    for label in ("X-name", "BI-name", "-name"):
        file.write_text(f"Anna B-name\nBerg {label}\n", encoding="utf-8")
        with pytest.raises(ValueError, match=f"line 2: 'Berg {label}' must be a word and its label"):
            tagging.read(file)
    file.write_text("Anna O\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no word with another label than O"):
        tagging.read(file)


def test_a_label_too_rare_to_split_is_named(tmp_path):
    file = tmp_path / "notes.conll"
    texts = [f"Anna B-name\npaid O\n{n} {'B-rare' if n == 5 else 'B-amount'}\n" for n in range(40)]
    file.write_text("\n".join(texts), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"label 'B-rare' has only 1 different row, which cannot be split .*; add rows of"
    ):
        data.load(file)


def test_generated_messages_mark_what_they_say():
    texts, marked = memos.memos(200, 3)
    assert (texts, marked) == memos.memos(200, 3) and texts != memos.memos(200, 4)[0]
    for text, own in zip(texts, marked, strict=True):
        for start, end, kind in own:
            word = text[start:end]
            assert word == word.strip() and kind in memos.KINDS
            assert kind != "amount" or any(letter.isdigit() for letter in word)


# ---- pairs


def test_nobody_can_tell_pairs_by_their_words():
    first, second, labels = phrases.pairs(400, 0)
    assert labels.mean() == 0.5
    told = {(one, other): label for one, other, label in zip(first, second, labels, strict=True)}
    assert all(told[other, one] == 1 - label for (one, other), label in told.items())
    splits = data.load("entailment", tokenizer="wordpiece:200")
    assert abs(tasks.get("text-classification").baseline(splits) - 0.5) < 0.06
    assert splits.leaks() == [] and splits.signature.preprocess.pair


def test_pairs_are_put_one_behind_the_other(step):
    made = TextPreprocess.fit(TEXTS, "wordpiece:60", second=["the sea", "mat", "dog"])
    numbers = made({"text": np.array(["the cat", "sea"]), "second": np.array(["mat", "the"])})
    for row, one, other in zip(numbers, ("the cat", "sea"), ("mat", "the"), strict=True):
        alone = [[t for t in made._opened.encode(text).ids if t not in made.special] for text in (one, other)]
        start, end = made.special[2], made.separator
        assert [t for t in row if t != made.pad] == [start, *alone[0], end, *alone[1], end]
    with pytest.raises(ValueError, match="tokenizer='words' puts no token between the texts of a pair; take wordpiece"):
        TextPreprocess.fit(TEXTS, "words", second=TEXTS)


def test_two_columns_are_a_pair(tmp_path):
    file = tmp_path / "asked.csv"
    lines = [f"what is {n} and {n}?,it is {2 * n} of them,{'yes' if n % 2 else 'no'},{n}" for n in range(60)]
    file.write_text("\n".join(["question,answer,label,number", *lines]), encoding="utf-8")
    splits = data.load(file, target="label", text="question,answer", tokenizer="wordpiece:80")
    assert set(splits.train.x) == {"text", "second"} and splits.signature.labels == ("no", "yes")
    assert "columns not used: number" in splits.source
    assert (
        "cut: 60 of 60 texts, to 6 tokens"
        in data.load(file, target="label", text="question,answer", tokenizer="wordpiece:80", tokens=6).summary()
    )
    with pytest.raises(ValueError, match="has no column 'reply' besides its target"):
        data.load(file, target="label", text="question,reply")


# ---- learning


@pytest.fixture(scope="module")
def eager():
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`:UserWarning")
def test_from_hidden_words_to_labels(eager, tmp_path):
    """A model that learned from texts alone goes on to labels of words and of texts; its head is replaced."""
    settings = {"tokenizer": "wordpiece:200", "tokens": 16}
    first = zoo.train(
        "bert_tiny",
        few(data.load("memos", task="masked-language-modelling", **settings)),
        out=tmp_path / "first", epochs=1, quiet=True, **SIZES,
    )  # fmt: skip
    assert first.recipe.arguments["head"] == "vocabulary" and np.isfinite(first.metrics["test"])
    assert first.model.output_shape == (None, 16, first.signature.outputs)
    weights, tokenizer = first.folder / "model.keras", str(first.folder / "tokenizer.json")
    network = {layer.name: layer.get_weights() for layer in first.model.layers}
    for source, head in (("memos", "tokens"), ("spam", "classification")):
        splits = few(data.load(source, tokenizer=tokenizer, tokens=16))
        run = zoo.train(
            "bert_tiny",
            splits,
            out=tmp_path / source,
            weights=str(weights),
            epochs=1,
            learning_rate=1e-9,
            quiet=True,
            **SIZES,
        )
        own = {layer.name: layer.get_weights() for layer in run.model.layers}
        for name in ("words", "positions", "segments", "block0_query", "block0_output"):
            for one, other in zip(network[name], own[name], strict=True):
                np.testing.assert_allclose(one, other, atol=1e-6)
        assert run.model.output_shape[-1] == splits.signature.outputs
        assert any("is fresh" in note or "are fresh" in note for note in run.model.pretrained.notes)
        assert run.model.output_shape == ((None, 16, 7) if head == "tokens" else (None, 2))
        weights = run.folder / "model.keras"  # from one head to the next


def test_pictures_are_drawn(tmp_path):
    random = np.random.RandomState(0)
    tokens = random.zipf(1.5, 500) % 90
    assert text_pictures.by_commonness(tokens, random.rand(500) < 0.4, tmp_path / "common.png").stat().st_size > 5000
    splits = few(data.load("memos", tokenizer="wordpiece:300"))
    from zoo.evaluate.report import judge

    part = splits.test
    answers = scored(np.where(random.rand(*part.y.shape) < 0.2, 1, np.maximum(part.y, 0)))
    report = judge(splits.signature, part.y, answers, "test", x=part.x)
    assert report.plot(tmp_path / "marked.png").stat().st_size > 20_000
    assert "amount" in str(report) and report.worst_rows(2)[0]["text"]


def test_other_words_are_no_corruption_of_what_is_judged_at_tokens():
    from zoo.evaluate.report import Candidate
    from zoo.evaluate.robustness import corrupted

    splits = few(data.load("memos", tokenizer="wordpiece:300"))
    candidate = Candidate(
        lambda x, signature: scored(np.zeros((len(x["text"]), signature.preprocess.length))), splits, "none"
    )
    with pytest.raises(ValueError, match="token-classification is judged at each token of a text"):
        corrupted(candidate)


@pytest.mark.parametrize(
    ("model", "own", "message"),
    [
        ("bert_tiny", "memos", "the labels of 'memos' are those of the tokens of one tokenizer"),
        ("gpt_nano", "stdlib_text", "folds would part what is of one file"),
    ],
)
def test_folds_that_would_not_be_of_whole_rows_are_refused(model, own, message, monkeypatch):
    monkeypatch.setattr(corpus.library, "__defaults__", (8_000,))
    with pytest.raises(ValueError, match=f"{message}.*train with several seeds instead"):
        cross_validate(model, own, folds=2, quiet=True)
