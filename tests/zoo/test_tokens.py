"""Tokenizers: what they make of texts, that they are the same each time, and what is refused."""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import tokenizers

from zoo.data import TextPreprocess, tokens
from zoo.data.signature import Signature

TEXTS = ["The cat sat on the mat.", "A dog and a cat, on a mat!", "Dogs bark; cats don't.", "The dog's mat"] * 3


@pytest.mark.parametrize("kind", tokens.KINDS)
def test_padding_is_0_and_the_size_is_kept(kind):
    made = tokens.opened(tokens.make(f"{kind}:{300 if kind == 'bpe' else 60}", TEXTS))
    assert made.token_to_id("[PAD]") == 0
    assert made.get_vocab_size() <= (300 if kind == "bpe" else 60)
    assert sorted(made.get_vocab().values()) == list(range(made.get_vocab_size()))


def test_words_are_numbered_by_how_often_they_are_there():
    counts = Counter(re.findall(r"\w+|[^\w\s]+", " ".join(TEXTS).lower()))
    expected = ["[PAD]", "[UNK]", *sorted(counts, key=lambda word: (-counts[word], word))]
    vocabulary = tokens.opened(tokens.make("words", TEXTS)).get_vocab()
    assert sorted(vocabulary, key=vocabulary.get) == expected
    found = tokens.opened(tokens.make("words:9", TEXTS)).encode("MAT unseen dog").tokens
    assert found == [word if word in expected[:9] else "[UNK]" for word in ("mat", "unseen", "dog")]


def test_wordpiece_is_what_the_library_has_for_bert():
    content = tokens.make("wordpiece:70", TEXTS)
    vocabulary = json.loads(content)["model"]["vocab"]
    reference = tokenizers.BertWordPieceTokenizer(vocabulary, lowercase=True)
    for text in ("The cats sat, and dogs don't!", "zebra Mat mats"):
        assert tokens.opened(content).encode(text).ids == reference.encode(text).ids


def test_bytes_lose_nothing():
    made = tokens.opened(tokens.make("bpe:270", TEXTS))
    for text in ("Ünïcode → 猫", "tab\tand\nline"):
        assert made.decode(made.encode(text).ids) == text


def test_the_same_in_another_process():
    settings = ["wordpiece:60", "bpe:300", "unigram:60", "words:20", "characters"]
    code = (
        "import hashlib, json, sys; from zoo.data import tokens; texts, settings = json.load(sys.stdin); "
        "print(*[hashlib.sha256(tokens.make(s, texts).encode()).hexdigest() for s in settings])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps([TEXTS, settings]), capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [hashlib.sha256(tokens.make(each, TEXTS).encode()).hexdigest() for each in settings]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sentences", "tokenizer must be one of wordpiece, bpe"),
        ("bpe:many", "a whole number, such as bpe:8000, got 'bpe:many'"),
        ("bpe:200", "bpe has at least 257 tokens, got bpe:200"),
        ("words:3", "words has at least 8 tokens"),
        ("nothing/tokenizer.json", "there is no tokenizer at 'nothing/tokenizer.json'"),
    ],
)
def test_a_setting_that_is_none(setting, message):
    with pytest.raises(ValueError, match=message):
        tokens.make(setting, TEXTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is no JSON"), ("{}", "cannot be read as a tokenizer"), ('{"model": {"type": "Odd"}}', "cannot be read")],
)
def test_a_broken_file(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        tokens.make(str(path), TEXTS)


def test_unigram_has_a_place_for_each_letter():
    texts = ["语言处理模型", "词典分词"]  # 9 letters, and what stands for a space
    with pytest.raises(ValueError, match=r"each of the 10 letters .* got unigram:12; take at least unigram:13"):
        tokens.make("unigram:12", texts)
    assert tokens.opened(tokens.make("unigram:13", texts)).get_vocab_size() <= 13


def test_empty_texts_make_no_tokenizer():
    with pytest.raises(ValueError, match="made from texts, got 2 that are empty"):
        tokens.make("unigram", ["", ""])


MODELS = tokenizers.models


@pytest.mark.parametrize(
    "model",
    [
        MODELS.WordPiece({"cat": 0}, unk_token="[UNK]"),
        MODELS.WordLevel({"cat": 0}, "<unk>"),
        MODELS.Unigram([("cat", -1.0)], None),
        MODELS.BPE({"c": 0}, [], unk_token="<unk>"),
    ],
)
def test_a_file_without_the_unknown_token_it_needs(tmp_path, model):
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(model).save(str(path))
    kind = type(model).__name__
    with pytest.raises(
        ValueError, match=rf"no token for what is not in its vocabulary.*; give its {kind} model an unknown"
    ):
        tokens.read(path)


def test_bytes_and_what_drops_need_no_unknown_token(tmp_path):
    path = tmp_path / "tokenizer.json"
    letters = {letter: number for number, letter in enumerate(tokenizers.pre_tokenizers.ByteLevel.alphabet())}
    made = tokenizers.Tokenizer(MODELS.BPE(letters, [], unk_token="<none>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    for each in (made, tokenizers.Tokenizer(MODELS.BPE({"c": 0}, []))):
        each.save(str(path))
        assert tokens.read(path) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"padding": {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 999,
                      "pad_type_id": 0, "pad_token": "[PAD]"}}, "padding"),
        ({"post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 999], "cls": ["[UNK]", 0]}}, "post_processor"),
    ],
)  # fmt: skip
def test_a_file_that_gives_numbers_beyond_its_vocabulary(tmp_path, change, part):
    path = tmp_path / "tokenizer.json"
    made = tokenizers.Tokenizer(MODELS.WordLevel({"[UNK]": 0, "cat": 1}, "[UNK]"))
    path.write_text(json.dumps({**json.loads(made.to_str()), **change}))
    with pytest.raises(ValueError, match=f"the {part} of .* gives the number 999, which none of its 2 tokens has"):
        tokens.read(path)


def test_a_file_keeps_its_own_tokens(tmp_path):
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3, "cat": 4}, "<unk>")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    step = TextPreprocess.fit(TEXTS, str(tmp_path / "tokenizer.json"), length=6)
    assert (step.pad, step.separator, step.unknown, step.vocabulary) == (2, 1, 3, 5)
    found = step({"text": np.array(["cat dog", "cat " * 9])})
    assert found.tolist() == [[0, 4, 3, 1, 2, 2], [0, 4, 4, 4, 4, 1]]  # cut, and its last token kept
    assert found.dtype == np.int32


def test_a_file_without_padding_takes_the_end_of_a_text(tmp_path):
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"cat": 0, "<|endoftext|>": 1}, "cat"))
    made.save(str(tmp_path / "tokenizer.json"))
    assert TextPreprocess.fit(TEXTS, str(tmp_path / "tokenizer.json"), length=3).pad == 1
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"cat": 0}, "cat"))
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="no token to fill short texts up with"):
        TextPreprocess.fit(TEXTS, str(tmp_path / "tokenizer.json"), length=3)


@pytest.mark.parametrize("kind", tokens.KINDS)
def test_nobody_writes_a_special_token(kind):
    step = TextPreprocess.fit([*TEXTS, "[ PAD SEP CLS ] pad sep cls"], f"{kind}:300", length=40)
    found = step({"text": np.array(["a [PAD] cat [SEP] [CLS]"])})[0]
    there = found[: int((found != 0).sum())]
    assert (found[len(there) :] == 0).all()
    special = [step._opened.token_to_id(name) for name in ("[SEP]", "[CLS]")]
    assert [int((there == number).sum()) for number in special if number is not None] in ([], [1, 1])


def test_the_length_covers_nearly_all_texts():
    texts = [" ".join(["cat"] * size) for size in range(1, 101)]
    assert TextPreprocess.fit(texts).length == 99  # 98 of 100 texts are shorter; of a quantile the higher
    assert TextPreprocess.fit(["cat " * 999] * 9).length == 256
    assert TextPreprocess.fit(texts, length=7).shape == (7,)
    with pytest.raises(ValueError, match="tokens must be at least 3, of which 2 are special ones, got tokens=2"):
        TextPreprocess.fit(texts, "wordpiece", length=2)


def test_a_signature_keeps_its_tokenizer_in_a_file_of_its_own(tmp_path):
    signature = Signature("text-classification", ("ham", "spam"), TextPreprocess.fit(TEXTS))
    signature.save(tmp_path / "signature.json")
    assert json.loads((tmp_path / "signature.json").read_text())["preprocess"]["tokenizer"] == "tokenizer.json"
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("a cat").ids
    assert Signature.load(tmp_path / "signature.json") == signature
    raw = {"text": np.array(["a cat", "dogs"])}
    np.testing.assert_array_equal(signature.inputs(signature.fed(raw)), signature.inputs(raw))
