"""Text to text as a task: its loss and figures against plain numpy, and what exactly right means."""

import math
from collections import Counter
from dataclasses import replace

import keras
import numpy as np
import pytest

import zoo
from zoo import tasks
from zoo.data import TextPreprocess, load
from zoo.data.signature import Signature
from zoo.data.targets import NOTHING
from zoo.evaluate import translations
from zoo.evaluate.report import answers, judge
from zoo.explain import crossings, explain
from zoo.tasks.language import next_token_loss
from zoo.tasks.translation import right

TASK = tasks.get("text-to-text")
TEXTS = np.array([f"{a}+{b}=" for a in range(6) for b in range(6)])


@pytest.fixture(scope="module")
def own():
    """A network with weights at random, and the answers that it writes itself, by hand, place by place."""
    keras.utils.set_random_seed(4)
    step = TextPreprocess.fit(TEXTS.tolist(), "characters", answers=[str(number) for number in range(100, 140)])
    signature = Signature("text-to-text", tuple(map(str, range(step.vocabulary))), step)
    sizes = {"vocabulary": step.vocabulary, "input_shape": (step.length,), "places": step.answer, "dropout": 0.0}
    network = zoo.get("transformer", width=12, depth=1, heads=3, **sizes)
    for weight in network.weights:
        weight.assign(np.random.RandomState(1).uniform(-0.8, 0.8, weight.shape))
    inputs = step({"text": TEXTS})
    for place in range(1, step.answer):
        logits = keras.ops.convert_to_numpy(network(inputs, training=False))
        inputs["answer"][:, place] = logits[:, place - 1].argmax(axis=-1)
    said = np.full((len(TEXTS), 1 + step.answer), NOTHING, np.int32)
    said[:, 0] = 1
    for row, found in zip(said, inputs["answer"][:, 1:], strict=True):
        count = found.tolist().index(step.end) + 1 if step.end in found else len(found)
        row[1 : 1 + count] = found[:count]
    return network, signature, said


def scored_of(network, signature, y):
    """Scores of rows whose true answers are the tokens `y`."""
    step = signature.preprocess
    begun = np.where(y[:, 1:] == NOTHING, step.pad, y[:, 1:])
    told = np.concatenate([np.full((len(y), 1), step.start), begun[:, :-1]], axis=1).astype(np.int32)
    return answers(network, signature, {"text": TEXTS, "answer": told})


def test_an_answer_is_right_if_and_only_if_it_is_written_greedily(own):
    network, signature, said = own
    other = said.copy()
    random = np.random.RandomState(0)
    for row in range(0, len(other), 2):  # one token of every other true answer is another one
        place = random.randint(0, (other[row, 1:] != NOTHING).sum())
        other[row, 1 + place] = (other[row, 1 + place] + random.randint(1, 5)) % signature.preprocess.vocabulary
    expected = (other == said).all(axis=1)
    assert 0 < expected.sum() < len(expected)
    assert np.array_equal(right(other, scored_of(network, signature, other)), expected)
    assert len(np.unique(said, axis=0)) > 1


def test_what_is_written_is_what_the_loop_by_hand_writes(own):
    network, signature, said = own
    step = signature.preprocess
    assert translations.written(network, signature, TEXTS) == [step.written(row[1:]) for row in said]


def test_what_is_exactly_right_is_not_written_again_and_reads_as_it_is_written(own, monkeypatch):
    network, signature, said = own
    scored = scored_of(network, signature, said)
    capitals = TextPreprocess.fit(TEXTS, "wordpiece:100", answers=[f"On {row} May" for row in range(len(TEXTS))])
    signature = replace(signature, preprocess=capitals)  # which reads small letters
    x = {"text": TEXTS, "answer": np.array([f"true {row}" for row in range(len(TEXTS))])}
    asked = []
    monkeypatch.setattr(translations, "written", lambda *given: asked.extend(given[2]) or ["new"] * len(given[2]))
    y = said.copy()
    y[3, 0] = 0  # cut
    y[5, 1] = (y[5, 1] + 1) % 5
    found = translations.completed(network, signature, y, scored, x, None)
    assert asked == [TEXTS[3], TEXTS[5]] and found[3] == found[5] == "new" and found[4] == capitals.written(y[4, 1:])
    asked.clear()
    assert translations.completed(network, signature, y, scored, x, None, 4) == ["new"] * len(TEXTS)  # may be others
    assert asked == TEXTS.tolist()


def test_files_answer_for_the_token_that_follows_alone(own):
    network, signature, said = own
    step = signature.preprocess
    inputs = step({"text": TEXTS, "answer": np.array([step.written(row[1:]) for row in said])})
    logits = keras.ops.convert_to_numpy(network(inputs, training=False))
    found = TASK.answers_of(logits, inputs, signature)
    rows = (len(TEXTS), step.answer)
    assert {name: (values.shape, values.dtype.str) for name, values in found.items()} == {
        "log_probability": (rows, "<f4"),
        "likeliest": (rows, "<i4"),
    }
    assert [(one.name, one.dtype, one.shape) for one in TASK.outputs(signature)] == [
        ("log_probability", "FP32", rows[1:]),
        ("likeliest", "INT32", rows[1:]),
    ]
    np.testing.assert_allclose(TASK.scored(found), TASK.judged(TASK.answer(logits, signature), inputs), atol=1e-5)


def drawn(rows=5, places=6, tokens=9):
    random = np.random.default_rng(0)
    y = random.integers(0, tokens, (rows, 1 + places)).astype(np.int32)
    y[:, 0] = 1
    for row in range(rows):
        y[row, 2 + row :] = NOTHING
    return y, random.standard_normal((rows, places, tokens)).astype(np.float32)


def plain_nats(y, logits, smoothing=0.0):
    """Of each known token, by rows."""
    logs = logits.astype(np.float64)
    logs = logs - np.log(np.exp(logs).sum(axis=-1, keepdims=True))
    found = []
    for row, own in zip(y[:, 1:], logs, strict=True):
        known = [(token, log) for token, log in zip(row, own, strict=True) if token != NOTHING]
        found.append([-(1 - smoothing) * log[token] - smoothing * log.mean() for token, log in known])
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_mean_over_known_tokens(smoothing):
    y, logits = drawn()
    expected = np.mean(np.concatenate(plain_nats(y, logits, smoothing)))
    found = TASK.loss("", smoothing)(TASK.encode(y[:, 1:], 9), logits)
    assert found.shape == (5,) and float(np.mean(found)) == pytest.approx(expected, rel=1e-5)
    assert float(np.mean(next_token_loss(y[:, 1:].astype(np.float32), logits))) == pytest.approx(
        np.mean(np.concatenate(plain_nats(y, logits))), rel=1e-5
    )


def test_figures_are_those_of_plain_numpy():
    y, logits = drawn()
    scored = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    best = logits.argmax(axis=-1)
    y[1, 1:3], y[3, 1:5] = best[1, :2], best[3, :4]  # two rows that are right, one of which was cut
    y[3, 0] = 0
    hits = [
        token == likely for row, own in zip(y[:, 1:], best, strict=True) for token, likely in zip(row, own, strict=True)
    ]
    nats = plain_nats(y, logits)
    known = int((y[:, 1:] != NOTHING).sum())
    everywhere = np.ones((1, len(y)))
    told = {"answer": np.concatenate([np.zeros((5, 1), int), np.maximum(y[:, 1:-1], 0)], axis=1)}
    picked = TASK.judged(scored, told)
    assert picked.shape == (5, 6, 2)
    picked[4, -1, 0] = scored[4, -1, y[4, -1]]  # what follows the last place is no input
    for given in (scored, picked):
        figures = {name: measure(everywhere)[0] for name, measure in TASK.measures(y, given).items()}
        assert figures["exact_match"] == 1 / 5
        assert figures["token_accuracy"] == sum(hits) / known
        assert figures["perplexity"] == pytest.approx(math.exp(sum(map(sum, nats)) / known), rel=1e-5)
        np.testing.assert_allclose(TASK.losses(y, given), [np.mean(own) for own in nats], rtol=1e-5)
        assert TASK.wrong(y, given).tolist() == [True, False, True, True, True]
    weights = np.array([[0, 3, 0, 0, 1.0]])
    assert TASK.measures(y, scored)["exact_match"](weights)[0] == 3 / 4


def test_the_commonest_answer_is_the_constant():
    y, _ = drawn()
    y[3:] = y[2]
    assert TASK.score(y, TASK.constant(y, 5, 9)) == 3 / 5
    assert np.isfinite(TASK.constant(y, 5, 9)).all()


def test_the_baseline_answers_as_to_the_most_similar_text():
    data = load("arithmetic", tokenizer="characters")
    few = replace(
        data,
        train=replace(
            data.train, x={name: values[:300] for name, values in data.train.x.items()}, y=data.train.y[:300]
        ),
    )
    twice = replace(few, test=few.train)  # of its own rows each is the most similar one
    assert TASK.baseline(twice) == 1
    assert TASK.baseline(few) < 0.2


def test_tables_and_worst_rows_speak_in_texts(own, tmp_path):
    network, signature, said = own
    y = said.copy()
    y[0, 1] = (y[0, 1] + 1) % 5
    x = {"text": TEXTS, "answer": np.array([signature.preprocess.written(row[1:]) for row in y])}
    report = judge(signature, y, scored_of(network, signature, y), "test", x=x)
    assert report.score.score == right(y, report.answers).mean() and report.per_class["all"]["rows"] == 36
    worst = report.worst_rows(3)
    assert worst[0]["row"] == 0 and worst[0]["text"] == "0+0=" and worst[0]["true"] == x["answer"][0]
    assert "exact_match" in str(report) and "written" not in str(report)
    told = replace(report, written=tuple(x["answer"]))
    assert "bleu" in str(told) and told.worst_rows(1)[0]["written"] == x["answer"][0]
    assert report.plot(tmp_path / "places.png").stat().st_size > 1000


def plain_bleu(said, true):
    """BLEU-4 of one pair of sentences of at least four words (Papineni et al. 2002), by hand."""
    said, true = said.split(), true.split()
    logs = 0.0
    for size in range(1, 5):
        counts = [
            Counter(tuple(words[at : at + size]) for at in range(len(words) - size + 1)) for words in (said, true)
        ]
        logs += math.log(sum((counts[0] & counts[1]).values()) / sum(counts[0].values())) / 4
    return 100 * math.exp(logs + min(0.0, 1 - len(true) / len(said)))


def test_bleu_and_chrf_are_counted():
    true = ["the cat sat on the mat today", "a dog runs in the green park"]
    said = ["the cat sat on the mat now", true[1]]
    found = translations.scores(said, true)
    assert found["exact_match"] == 0.5 and found["rows"] == 2 and 50 < found["chrf"] < 100
    assert translations.scores(said[:1], true[:1])["bleu"] == pytest.approx(plain_bleu(said[0], true[0]), abs=1e-6)
    assert translations.scores(true, true) == {"bleu": pytest.approx(100), "chrf": 100, "exact_match": 1, "rows": 2}
    with pytest.raises(ValueError, match="as many written as true answers are needed, at least one, got 1 and 2"):
        translations.scores(said[:1], true)


@pytest.mark.parametrize("name", ["transformer", "t5_small", "seq2seq"])
def test_attention_to_the_text_is_found_and_drawn(name, own, tmp_path):
    signature = own[1]
    step = signature.preprocess
    sizes = {
        "vocabulary": step.vocabulary,
        "input_shape": (step.length,),
        "places": step.answer,
        "width": 12,
        "depth": 2,
    }
    network = zoo.get(name, **sizes, **({} if name == "seq2seq" else {"heads": 3}))
    calls = crossings.crossing(network)
    assert [layer.name for layer, _ in calls] == (
        ["attention"] if name == "seq2seq" else [f"decoder_block{block}_cross_attention" for block in range(2)]
    )
    rows = crossings.looked(network, signature, {"text": TEXTS[:2]})
    assert [len(row.text) for row in rows] == [5, 5]  # with the token that ends it, and without padding
    for row, text in zip(rows, translations.written(network, signature, TEXTS[:2]), strict=True):
        assert row.written == text and row.weights.shape == (len(row.answer), 5)
        np.testing.assert_allclose(row.weights.sum(axis=1), 1, atol=1e-5)
    assert crossings.draw(rows, tmp_path / "attention.png").stat().st_size > 1000


def test_attention_is_that_of_plain_numpy(own):
    network, signature, _ = own
    step = signature.preprocess
    (row,) = crossings.looked(network, signature, {"text": TEXTS[7:8]})
    inputs = step({"text": TEXTS[7:8], "answer": np.array([row.written])})
    layers = [network.get_layer(f"decoder_block0_cross_{part}").output for part in ("query", "key")]
    query, key = keras.Model(network.inputs, layers).predict_on_batch(inputs)
    weights = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        scores = query[0, :, part] @ key[0, :, part].T / 2
        scores = np.where(inputs["tokens"] == step.pad, -np.inf, scores)
        weights.append(np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True))
    there = inputs["tokens"][0] != step.pad
    np.testing.assert_allclose(row.weights, np.mean(weights, axis=0)[: len(row.answer)][:, there], atol=1e-5)


def test_what_cannot_be_done_is_refused(own):
    network, signature, _ = own
    with pytest.raises(ValueError, match="text to text has the loss 'cross_entropy', got loss='focal'; leave it out"):
        TASK.loss("focal", 0.0)
    with pytest.raises(ValueError, match="answers with a text, and explanations share out one figure"):
        explain(network, {"text": TEXTS[:1]}, signature=signature)
    bare = zoo.get("seq2seq", attention="none", width=4, depth=1, vocabulary=signature.preprocess.vocabulary,
                   input_shape=(signature.preprocess.length,), places=signature.preprocess.answer)  # fmt: skip
    with pytest.raises(ValueError, match="no attention of 'seq2seq' reads the text for an answer"):
        crossings.looked(bare, signature, {"text": TEXTS[:1]})
