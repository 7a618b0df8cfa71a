"""Continued texts against the whole model without a cache, against brute force, and against the text itself."""

import itertools
import json
from dataclasses import asdict
from pathlib import Path

import keras
import numpy as np
import pytest
import small_writers
from tokenizers import Tokenizer
from typer.testing import CliRunner

import zoo
from export import edge_runner
from serve.errors import UnreadError
from serve.generation import Piece, Running, Text, generate
from serve.manifest import BundleError, Manifest
from serve.sampling import Ask, Beams, drawn
from zoo.cli import app as commands
from zoo.data.texts import TextPreprocess
from zoo.generation import pieces as continued

STEP = small_writers.step()


@pytest.fixture(scope="module")
def model():
    return small_writers.language_model(STEP)


@pytest.fixture(scope="module")
def place(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("writer")
    return folder, small_writers.folder_of(model, STEP, folder, ("fp32", "w8"))


@pytest.fixture
def running(place):
    return Running(*place, "fp32", threads=1)


@pytest.fixture(scope="module")
def read():
    found = Tokenizer.from_str(STEP.tokenizer)
    found.no_padding()
    found.no_truncation()
    return found


def said(read, before, tokens):
    """Characters of tokens behind others, as far as they are whole."""
    return read.decode([*before, *tokens])[len(read.decode(before)) :].rstrip("\ufffd")


def finished(running, pieces=()):
    """Text and last piece of every row, by its number."""
    texts, last = {}, {}
    pieces = list(pieces)
    while pieces or not running.idle:
        for number, piece in pieces:
            texts[number] = texts.get(number, "") + piece.text
            last[number] = piece
        pieces = [] if running.idle else running.step()
    return texts, last


def test_rows_that_come_and_go_are_continued_as_the_whole_model_does(running, model, read):
    expected, pieces = {}, []

    def add(text, most):
        tokens = read.encode(text).ids
        number = running.add(text, Ask(most=most))
        expected[number] = said(read, tokens, small_writers.greedy(model, tokens, most))
        return number

    add("the cat", 12)
    add("a naïve", 3)
    add("dogs", 9)
    pieces += running.step()
    add("x = [1, ", 5)
    add("the dog", 9)  # as long as the first
    leaves = add("cats", 12)
    pieces += running.step() + running.step()
    running.drop(leaves)
    add("on", 4)
    texts, last = finished(running, pieces)
    for number, text in expected.items():
        assert text.startswith(texts[number]) if number == leaves else texts[number] == text
    assert {last[number].done for number in expected if number != leaves} == {"length"}
    assert last[leaves].done == "" and len(set(expected.values())) > 4
    assert last[1].tokens == 12 and running.idle


def test_a_file_in_8_bits_writes_too(place):
    assert place[1].generation["files"]["w8"]["decoder"] == "decoder.w8.onnx"
    assert Running(*place, "w8").precision == "w8"
    _, last = finished_one(Running(*place, "w8", threads=1), "the cat", Ask(most=5))
    assert (last.tokens, last.done) == (5, "length")


def test_the_end_token_ends_a_text_and_is_none_of_it(model, read, tmp_path):
    tokens = read.encode("the cat").ids
    plain = small_writers.greedy(model, tokens, 12)
    end = plain[4]
    manifest = small_writers.folder_of(model, STEP, tmp_path, end=end)
    texts, last = finished_one(Running(tmp_path, manifest, threads=1), "the cat", Ask(most=12))
    count = plain.index(end)
    assert (last.done, last.tokens) == ("end", count)
    assert texts == said(read, tokens, plain[:count])


def finished_one(running, text, ask):
    number = running.add(text, ask)
    texts, last = finished(running)
    return texts[number], last[number]


def test_a_seed_gives_a_text_whatever_else_is_in_the_batch(running):
    ask = Ask(most=10, temperature=1.5, top_k=50, seed=7)
    alone, _ = finished_one(running, "the cat", ask)
    others = [running.add(text, Ask(most=6, temperature=2.0)) for text in ("dogs", "a b c", "on the")]
    running.step()
    own = running.add("the cat", ask)
    texts, _ = finished(running)
    assert texts[own] == alone and len(set(texts.values())) == 1 + len(others)
    assert alone != finished_one(running, "the cat", Ask(most=10, temperature=1.5, top_k=50, seed=8))[0]


@pytest.mark.parametrize("beams", [2, 4])
def test_beams_share_a_batch_with_other_rows(running, model, read, beams):
    """Beam search over whole texts without a cache, by the same rule and other code."""
    tokens = read.encode("dogs and").ids

    def logs(rows):
        padded = np.zeros((len(rows), small_writers.PLACES), np.int32)
        for row, given in enumerate(rows):
            padded[row, : len(given)] = given
        logits = keras.ops.convert_to_numpy(keras.ops.log_softmax(model(padded, training=False)))
        return [logits[row, len(given) - 1] for row, given in enumerate(rows)]

    kept = [(0.0, [])]
    for _ in range(6):
        found = []
        for (score, made), own in zip(kept, logs([tokens + made for _, made in kept]), strict=True):
            found += [(score + float(own[token]), [*made, token]) for token in range(len(own))]
        kept = sorted(found, key=lambda one: -one[0])[:beams]
    running.add("the cat", Ask(most=9))
    running.step()
    number = running.add("dogs and", Ask(most=6, beams=beams))
    other = running.add("a naïve", Ask(most=4))
    texts, last = finished(running)
    assert texts[number] == said(read, tokens, kept[0][1])
    assert (last[number].done, last[number].tokens) == ("length", 6)
    before = read.encode("a naïve").ids
    assert texts[other] == said(read, before, small_writers.greedy(model, before, 4))


def tree(vocabulary, most, seed):
    """Logits that depend on everything written so far."""
    cache = {}

    def logits(made):
        if made not in cache:
            cache[made] = np.random.default_rng([seed, *made, len(made)]).normal(scale=2, size=vocabulary)
        return cache[made]

    return logits


@pytest.mark.parametrize("end", [-1, 0])
def test_wide_beams_find_the_likeliest_of_all_texts(end):
    vocabulary, most = 3, 4
    logits = tree(vocabulary, most, 5 + end)

    def log(made):
        own = logits(made)
        return own - np.log(np.exp(own).sum())

    scores = {}
    for size in range(1, most + 1):
        for made in itertools.product(range(vocabulary), repeat=size):
            ends = made[-1] == end or size == most
            if ends and end not in made[:-1]:
                scores[made] = sum(log(made[:at])[token] for at, token in enumerate(made)) / size
    beams, rows = Beams(vocabulary**most, most, end), [()]
    while rows:
        parents, tokens = beams.advance(np.array([logits(made) for made in rows]))
        rows = [(*rows[parent], token) for parent, token in zip(parents, tokens, strict=True)]
    assert tuple(beams.answer) == max(scores, key=scores.get)


def test_a_narrow_search_ends_when_nothing_better_can_come():
    beams = Beams(2, 50, 0)
    first = np.log(np.array([[0.5, 0.3, 0.2]]))
    assert beams.advance(first) == ([0, 0], [1, 2])  # the end itself is the best, yet one more must end
    parents, tokens = beams.advance(np.log(np.array([[0.9, 0.05, 0.05], [0.9, 0.05, 0.05]])))
    assert (parents, tokens) == ([], []) and beams.answer == [1, 0]  # log(0.27) / 2 is more than log(0.5)


def plainly(logits, ask):
    """Probabilities of all tokens by whole sorts, as `Ask` describes them."""
    shares = np.exp(logits / ask.temperature - (logits / ask.temperature).max())
    if ask.top_k:
        shares[np.argsort(-shares, kind="stable")[ask.top_k :]] = 0
    shares /= shares.sum()
    order = np.argsort(-shares, kind="stable")
    before = np.cumsum(shares[order]) - shares[order]
    shares[order[before >= ask.top_p]] = 0
    return shares / shares.sum()


class Given:
    """Numbers in place of a generator."""

    def __init__(self, numbers):
        self.numbers = iter(numbers)

    def random(self):
        return next(self.numbers)


@pytest.mark.parametrize(
    "ask",
    [
        Ask(temperature=1.0),
        Ask(temperature=0.3),
        Ask(temperature=2.5, top_k=7),
        Ask(temperature=1.0, top_p=0.8),
        Ask(temperature=0.9, top_p=0.05),
        Ask(temperature=1.3, top_k=20, top_p=0.6),
        Ask(temperature=1.0, top_k=1),
    ],
    ids=str,
)
def test_tokens_are_drawn_with_the_probabilities_they_have_left(ask):
    logits = np.random.default_rng(2).normal(scale=2, size=60).astype(np.float32)
    count = 20_000
    found = [drawn(logits, ask, Given([(n + 0.5) / count])) for n in range(count)]
    shares = np.bincount(found, minlength=60) / count
    np.testing.assert_allclose(shares, plainly(logits.astype(np.float64), ask), atol=2 / count)


WRONG = {
    "most must be a whole number from 1": {"most": 0},
    "temperature must be a number from 0 to 100": {"temperature": float("nan")},
    "top_k must be a whole number from 0": {"top_k": True},
    "top_p must be a number above 0": {"top_p": 0},
    "beams must be a whole number from 1": {"beams": 1.5},
    "beams follow the likeliest answers and draw nothing": {"beams": 2, "temperature": 1.0},
    "stop must be texts that are not empty": {"stop": ("",)},
    "seed must be a whole number": {"seed": -1},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_meant_is_refused(message):
    with pytest.raises(ValueError, match=message):
        Ask(**WRONG[message])


def pieces_of(read, text, stop=(), before=()):
    """What comes out as each token of a text comes in, until it stops."""
    held, found = Text(read, list(before), stop), []
    for token in read.encode(text).ids:
        piece, stopped = held.add(token)
        found.append(piece)
        if stopped:
            return found, True
    return [*found, held.rest()], False


LETTERS = Tokenizer.from_str(small_writers.step("bpe:257").tokenizer)
LETTERS.no_padding()
LETTERS.no_truncation()


@pytest.mark.parametrize("ask", [Ask(temperature=1.0), Ask(temperature=1.0, top_k=2)])
def test_nothing_is_drawn_from_what_is_no_number(ask):
    with pytest.raises(FloatingPointError, match="the model gave a logit that is not a number"):
        drawn(np.array([1, 2, np.nan], np.float32), ask, np.random.default_rng(0))


def test_characters_come_whole():
    text = "naïve café, 3 € each 🙂, 漢字" * 3
    found, _ = pieces_of(LETTERS, text)
    assert "".join(found) == text and "\ufffd" not in "".join(found)
    assert len(found) == len(text.encode()) + 1 and found[2:4] == ["", "ï"]
    cut, _ = pieces_of(LETTERS, "a €")
    held = Text(LETTERS, [], ())
    assert [held.add(token)[0] for token in LETTERS.encode("a €").ids[:-1]] == ["a", " ", "", ""]
    assert held.rest() == "" and "".join(cut) == "a €"


STOPS = {
    "ends": (("END",), "abEND cd", "ab"),
    "a part comes first": (("END",), "aEaENaEND", "aEaENa"),
    "the first of several": (("two", "one"), "zero one two", "zero "),
    "at once": (("a",), "abc", ""),
    "never": (("xyz",), "ab xy", "ab xy"),
    "two that overlap": (("abcd", "bc"), "1abcd", "1a"),
}


@pytest.mark.parametrize("name", STOPS)
def test_texts_end_before_what_stops_them(name):
    stop, text, expected = STOPS[name]
    found, stopped = pieces_of(LETTERS, text, stop)
    assert "".join(found) == expected and stopped == (name != "never")


@pytest.mark.parametrize("kind", ["words", "wordpiece:200", "unigram:60", "characters", "bpe:300"])
def test_an_answer_joins_the_text_as_the_tokenizer_joins_words(kind):
    read = Tokenizer.from_str(small_writers.step(kind).tokenizer)
    read.no_padding()
    read.no_truncation()
    tokens = read.encode("the cat sat on the mat and the dogs and the cats", add_special_tokens=False).ids
    for cut in (1, 3, len(tokens) - 2):
        held = Text(read, tokens[:cut], ())
        found = "".join(held.add(token)[0] for token in tokens[cut:])
        assert read.decode(tokens[:cut]) + found == read.decode(tokens)


def test_stops_and_the_places_of_the_model_end_a_text(running, model, read):
    whole, last = finished_one(running, "the cat", Ask(most=500))
    tokens = read.encode("the cat").ids
    count = small_writers.PLACES - len(tokens[-12:]) + 1  # half of the places are for what is asked for
    assert (last.done, last.tokens) == ("length", count)
    assert whole == said(read, tokens, small_writers.greedy(model, tokens, count))
    letter = whole.strip()[3]
    text, last = finished_one(running, "the cat", Ask(most=20, stop=(letter,)))
    assert last.done == "stop" and text == whole[: whole.index(letter)]


def test_of_a_long_text_the_end_is_read(running, model, read):
    text = "the cat sat on the mat. " * 6
    number = running.add(text, Ask(most=5))
    first = running.step()
    tokens = read.encode(text).ids
    kept = small_writers.PLACES - 5
    assert first[0][1].note == (
        f"only the last {kept} of the text's {len(tokens)} tokens were read, so that 5 fit behind them"
    )
    texts, last = finished(running, first)
    assert texts[number] == said(read, tokens[-kept:], small_writers.greedy(model, tokens[-kept:], 5))
    assert last[number].note == ""


def test_a_text_without_tokens_needs_a_token_to_begin_with(place, model, read):
    running = Running(*place, threads=1)
    with pytest.raises(ValueError, match="the text is empty, and this model has no token to begin with"):
        running.add("")
    assert running.idle
    running.drop(running.add(" "))  # which is a token
    running.block = {**running.block, "start": [5]}
    expected = said(read, [5], small_writers.greedy(model, [5], 3))
    assert generate(running, "", Ask(most=3)) == expected


def test_a_folder_without_such_a_decoder_is_refused(place):
    folder, manifest = place
    with pytest.raises(BundleError, match="'gpt' has no decoder in 'w4'; it has fp32, w8"):
        Running(folder, manifest, "w4")
    with pytest.raises(BundleError, match=r"decoder\.onnx does not load in ONNX Runtime"):
        Running(folder / "nowhere", manifest)


def test_a_dropped_row_may_wait_be_gone_or_never_have_been(running):
    waits = running.add("the cat", Ask(most=3))
    running.drop(waits)
    assert running.idle and running.step() == []
    running.drop(99)
    goes = running.add("the cat", Ask(most=5))
    running.step()
    assert running.rows == [goes]
    running.drop(goes)
    assert running.idle


def test_a_text_that_cannot_be_read_is_gone_and_the_others_lose_nothing(running, monkeypatch):
    expected, _ = finished_one(running, "the cat", Ask(most=6))
    first = running.add("the cat", Ask(most=6))
    pieces, begin = running.step(), running._begin

    def failing(group):
        if group[0].ask.seed:
            raise MemoryError("too long")
        return begin(group)

    monkeypatch.setattr(running, "_begin", failing)
    other, lost = running.add("dogs and cats", Ask(most=2)), running.add("on", Ask(most=2, seed=1))
    with pytest.raises(UnreadError, match="the text could not be read: MemoryError: too long") as caught:
        running.step()
    assert caught.value.rows == [lost] and running.rows == [first, other]
    left = running.add("dogs and cats", Ask(most=2))
    texts, last = finished(running, pieces + running.step())
    assert texts[first] == expected and texts[other] == texts[left] and last.keys() == {first, other, left}
    monkeypatch.undo()
    gone = running.add("the cat", Ask(most=6))
    running.step()
    monkeypatch.setattr(running, "_begin", failing)
    running.add("on", Ask(most=2, seed=1))
    with pytest.raises(UnreadError):
        running.step()
    running.drop(gone)
    assert running.step() == [] and running.idle  # nor does anything come of a row that left


def test_who_reads_no_further_leaves_no_row_behind(running):
    assert next(continued(running, "the cat", most=40)).tokens == 1
    assert running.idle


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        (5, {}, "the text must be a str, got 5"),
        ("a\udc80", {}, r"the text is no Unicode, got 'a\\udc80'; read it as UTF-8"),
        ("a", {"max_tokens": 5}, "there is no argument 'max_tokens'; there are most, temperature, top_k"),
    ],
)
def test_what_is_no_text_or_no_argument_is_named(running, text, given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        zoo.generate(running, text, **given)


def test_the_command_tells_the_text_and_what_there_is_to_know(running, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.commands.generate.quiet_backend", lambda: None)
    monkeypatch.setattr("zoo.generation.opened", lambda *_: running)
    expected = zoo.generate(running, "the cat", most=9, stop="e")

    def told(*more):
        return CliRunner().invoke(commands, ["generate", str(tmp_path), "--most", "9", *more])

    plain = told("--text", "the cat", "--stop", "e", "--seed", "4")
    assert plain.stdout.strip() == expected.strip() and "nothing is drawn at temperature 0" in plain.stderr
    long = json.loads(told("--json", "--text", "the cat " * 50).stdout)
    assert long["tokens"] == 9 and "of the text's" in long["notes"][0]


def test_pieces_say_how_far_a_row_is(running):
    number = running.add("dogs", Ask(most=2))
    (first,), (second,) = running.step(), running.step()
    assert first[0] == second[0] == number
    assert isinstance(first[1], Piece) and (first[1].tokens, first[1].done) == (1, "")
    assert (second[1].tokens, second[1].done) == (2, "length")


def test_an_encoder_and_a_decoder_answer_as_the_whole_model_does(tmp_path):
    """The recurrent pair and the transformer of the tests of steps, with a tokenizer of their vocabulary."""
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "export"))
    from test_stepwise import PLACES, VOCABULARY, pair

    texts = ["abc abd", "bad cab", "a", "dab cad ab"]
    preprocess = TextPreprocess.fit(texts, "characters", 7)
    assert preprocess.vocabulary <= VOCABULARY
    for kind in ("transformer", "lstm"):
        model = pair(kind)
        manifest = small_writers.pair_of(model, preprocess, tmp_path / kind)
        running, expected, pieces = Running(tmp_path / kind, manifest, threads=1), {}, []
        read = Tokenizer.from_str(preprocess.tokenizer)
        for text in texts:
            source = np.array([read.encode(text).ids], np.int32)
            made = small_writers.greedy(model, [1], PLACES - 1, others={"tokens": source})
            expected[running.add(text, Ask(most=PLACES - 1))] = read.decode(made)
            pieces += running.step()  # each joins while the others are being answered
        notes = running.add("a text that is longer", Ask(most=2, beams=2))
        found, last = finished(running, pieces)
        assert {number: "".join(found[number].split()) for number in expected} == {
            number: "".join(text.split()) for number, text in expected.items()
        }
        assert last[notes].tokens == 2
        with pytest.raises(ValueError, match="the text is blank; write something"):
            running.add("  ")


BROKEN = {
    "no files of a decoder in fp32": lambda block: block["files"].pop("fp32"),
    "a length, start or end that is no whole number": lambda block: block.update(end="</s>"),
    "a cache without name or shape": lambda block: block["caches"][0].pop("shape"),
    "a cache of shape": lambda block: block["caches"][0].update(shape=[3, -1, 0]),
    "names a file by what is no text": lambda block: block["files"]["fp32"].update(decoder=None),
    "names a tensor by what is no text": lambda block: block.update(crossing=[1]),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_manifest_that_would_trip_the_decoder_is_refused(place, reason):
    content = json.loads(place[1].to_json())
    assert Manifest.from_json(json.dumps(content)).generation == place[1].generation
    BROKEN[reason](content["generation"])
    with pytest.raises(BundleError, match=reason):
        Manifest.from_json(json.dumps(content))


def test_decoders_of_the_form_before_are_refused_and_other_bundles_of_then_are_read(place):
    content = json.loads(place[1].to_json()) | {"format": 5}
    with pytest.raises(BundleError, match=r"format 5, whose decoders cannot be run; export again"):
        Manifest.from_json(json.dumps(content))
    assert Manifest.from_json(json.dumps(content | {"generation": {}})).generation == {}


@pytest.mark.slow
def test_tokens_are_those_of_transformers_live(tmp_path):
    import references

    if not references.installed("torch", "transformers"):
        pytest.skip("compares with torch and transformers themselves, which are not installed")
    references.torchvision()
    import torch
    import transformers

    torch.manual_seed(3)
    sizes = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 40, "initializer_range": 0.4}
    config = transformers.GPT2Config(vocab_size=STEP.vocabulary, bos_token_id=1, eos_token_id=None, **sizes)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path / "hf")
    model = zoo.get("gpt2", weights=tmp_path / "hf", width=24, depth=2, heads=3, input_shape=(40,), dropout=0.0)
    read = Tokenizer.from_str(STEP.tokenizer)
    read.no_padding()
    read.no_truncation()
    asked = {"max_new_tokens": 15, "do_sample": False, "pad_token_id": 0}
    end = int(theirs.generate(torch.tensor([read.encode("the cat").ids]), **asked)[0, -5])  # a token that comes
    manifest = small_writers.folder_of(model, STEP, tmp_path / "ours", end=end)
    ended = 0
    for beams in (1, 3, 5):
        running, expected = Running(tmp_path / "ours", manifest, threads=1), {}
        for text in ("the cat", "a", "dogs and cats", "x = [1,", "on the mat", "naïve"):
            tokens = read.encode(text).ids
            found = theirs.generate(torch.tensor([tokens]), num_beams=beams, eos_token_id=end, **asked)
            made = found[0, len(tokens) :].tolist()
            made = made[: made.index(end)] if end in made else made
            ended += len(made) < 15
            expected[running.add(text, Ask(most=15, beams=beams))] = said(read, tokens, made)
        assert finished(running)[0] == expected
    assert ended


@pytest.fixture
def runner(place):
    """What `run.py` writes with."""
    folder, manifest = place
    return edge_runner.Writer(folder, asdict(manifest), "fp32", 1)


@pytest.mark.parametrize(
    ("temperature", "seed", "message"),
    [
        (1.0, -1, r"--seed must be a whole number from 0 to 2\^63 - 1, got -1"),
        (1.0, 2**63, "--seed must be a whole number"),
        (float("nan"), 1, "--temperature must be a number from 0 to 100, got nan"),
        (101.0, 1, "--temperature must be a number from 0 to 100, got 101"),
    ],
)
def test_the_runner_refuses_what_cannot_be_meant(runner, temperature, seed, message):
    with pytest.raises(edge_runner.Refusal, match=message):
        runner.draws(temperature, seed)
    for top_k, top_p in ((-1, 1.0), (0, 0.0), (0, 1.5), (0, float("nan"))):
        with pytest.raises(edge_runner.Refusal, match="--top-k must be at least 0, --top-p above 0 and up to 1, got"):
            runner.draws(1.0, 1, top_k, top_p)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.7), (8, 0.6)])
def test_the_runner_draws_what_a_server_draws(running, runner, top_k, top_p):
    for seed in range(4):
        runner.draws(1.5, seed, top_k, top_p)
        text, _ = runner("the cat", 10)
        ask = Ask(most=10, temperature=1.5, top_k=top_k, top_p=top_p, seed=seed)
        assert text.rstrip("\ufffd") == finished_one(running, "the cat", ask)[0]
    logits = np.array([1.0, 2.0, 2.0, 0.0], np.float32)  # two that are equally likely both stay
    runner.draws(1.0, 0, 1)
    assert {runner.drawn(logits) for _ in range(50)} == {1, 2}


def test_the_runner_ends_before_what_stops_it(running, runner):
    whole, count = runner("the cat", 12)
    for stop in ((whole[3:5],), (whole[6:8], "never", whole[2:4]), ("never",)):
        text, made = runner("the cat", 12, stop)
        assert text.rstrip("\ufffd") == finished_one(running, "the cat", Ask(most=12, stop=stop))[0]
        assert made < count or stop == ("never",)
