"""Tokenizers: how a text becomes whole numbers. Made from texts, or read from a Hugging Face `tokenizer.json`.

A tokenizer is the content of such a file, as text: normalisation, vocabulary, special tokens, where to cut and how to fill
up are all in it, so that whoever has the file and the library `tokenizers` gets the same numbers. It is data alone; nothing
of it is ever run.

The kinds, each with the size that its vocabulary has if none is given:

- wordpiece: pieces of words in lower case, `[CLS]` before and `[SEP]` behind each text (Devlin et al. 2019, section 3)
- bpe: pairs of bytes joined as often as they occur; no text has a part that it does not know (Radford et al. 2019, section
  2.2)
- unigram: pieces by their probability (Kudo 2018)
- words: whole words in lower case, and marks
- characters

The first token of each is `[PAD]`, number 0, and `[UNK]` stands for what is not known.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

KINDS = {"wordpiece": 8_000, "bpe": 8_000, "unigram": 8_000, "words": 10_000, "characters": 1_000}
USUAL = "words"
PAD, UNKNOWN, CLASS, SEPARATOR, MASK, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[END]"
_PADS = (
    PAD,
    "<pad>",
    "<|pad|>",
    "<|endoftext|>",
    "</s>",
    "<eos>",
)  # as published files name it, or what stands in for it
_SEPARATORS = (SEPARATOR, "</s>", "<|endoftext|>")
_MASKS = (MASK, "<mask>")
_BYTES = 256
_NEVER = -1e4  # score of a piece that no text is made of
_LARGEST = 64 * 2**20  # bytes of a tokenizer.json
_RARE = "\ue000"  # a letter for private use, which vocabularies do not have


def make(setting: str, texts: Sequence[str]) -> str:
    """The tokenizer that a setting asks for.

    Args:
        setting: `KIND` or `KIND:SIZE`, such as "bpe:4000", to make one from the texts; the path of a `tokenizer.json`; "" for
            plain words.
        texts: to make it from, training texts alone.

    Returns:
        Content of a `tokenizer.json`, the same for the same texts.

    Raises:
        ValueError: neither a kind nor a file, or a size that is too small.
    """
    kind, _, size = (setting or USUAL).partition(":")
    if kind not in KINDS:
        if setting.endswith(".json") or Path(setting).expanduser().is_file():
            return read(setting)
        raise ValueError(
            f"tokenizer must be one of {', '.join(KINDS)}, with a size behind a colon such as bpe:4000, or the path of a "
            f"tokenizer.json, got {setting!r}"
        )
    if size and not (size.isascii() and size.isdigit()):
        raise ValueError(f"the size of a tokenizer is a whole number, such as {kind}:{KINDS[kind]}, got {setting!r}")
    return train(kind, texts, int(size) if size else KINDS[kind])


def train(kind: str, texts: Sequence[str], size: int) -> str:
    """A tokenizer of a vocabulary of at most so many tokens, see `make`."""
    least = {"bpe": _BYTES + 1}.get(kind, 8)
    if size < least:
        raise ValueError(f"a vocabulary of {kind} has at least {least} tokens, got {kind}:{size}")
    if not len(texts):
        raise ValueError("a tokenizer is made from texts, got none; give it the training split")
    texts = [str(text) for text in texts]
    if not any(texts):
        raise ValueError(f"a tokenizer is made from texts, got {len(texts):,} that are empty; give it others")
    makers = {"wordpiece": _wordpiece, "bpe": _bpe, "unigram": _unigram, "words": _words, "characters": _characters}
    return makers[kind](_library(), texts, size).to_str()


def read(path: str | Path) -> str:
    """Content of a `tokenizer.json` of Hugging Face, which is checked by loading it.

    Raises:
        ValueError: no such file, none that the library can read, or one that has no number for some text or gives one that
            no token has; the message says why.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no tokenizer at {str(path)!r}; give the path of a tokenizer.json")
    if path.stat().st_size > _LARGEST:
        raise ValueError(
            f"{path} has {path.stat().st_size:,} bytes, a tokenizer.json at most {_LARGEST:,}; give another"
        )
    try:
        content = path.read_text(encoding="utf-8")
        json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}; give a tokenizer.json as Hugging Face writes it") from None
    _check(opened(content, str(path)), path)
    return content


def _check(tokenizer: Any, path: Path) -> None:
    """Refuse a tokenizer that has no number for what it does not know, or gives numbers that no token has."""
    kind = type(tokenizer.model).__name__
    try:  # of bytes nothing is unknown, and those are made in front of a BPE model; others fail at any letter they lack
        (tokenizer.encode if kind == "BPE" else tokenizer.model.tokenize)(_RARE)
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(
            f"{path} has no token for what is not in its vocabulary, so it cannot read every text ({error}); give its "
            f"{kind} model an unknown token, such as {UNKNOWN}, that is in the vocabulary"
        ) from None
    padding = tokenizer.padding
    tokenizer.no_padding()
    tokenizer.no_truncation()
    around = {*tokenizer.encode("").ids, *tokenizer.encode("", "").ids}
    for what, given in (("padding", {padding["pad_id"]} if padding else set()), ("post_processor", around)):
        beyond = sorted(number for number in given if tokenizer.id_to_token(number) is None)
        if beyond:
            raise ValueError(
                f"the {what} of {path} gives the number {beyond[0]}, which none of its {tokenizer.get_vocab_size():,} tokens "
                "has; correct it, or take another tokenizer.json"
            )


def opened(content: str, where: str = "the tokenizer") -> Any:
    """The `tokenizers.Tokenizer` of a content.

    Raises:
        ValueError: the library cannot read it.
    """
    try:
        tokenizer = _library().Tokenizer.from_str(content)
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(
            f"{where} cannot be read as a tokenizer: {error}; give a tokenizer.json as Hugging Face writes it"
        ) from None
    tokenizer.encode_special_tokens = True  # who writes "[PAD]" means these letters
    return tokenizer


def ended(content: str) -> str:
    """The same tokenizer, with the token `[END]` behind every text, where it has no tokens of its own there."""
    tokenizer = opened(content)
    if tokenizer.num_special_tokens_to_add(False):
        return content
    tokenizer.add_special_tokens([END])
    tokenizer.post_processor = _library().processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return tokenizer.to_str()


def borders(content: str) -> list[int]:
    """Numbers of the special tokens around every text: before and behind it, or behind it alone, or none."""
    tokenizer = opened(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer.encode("").ids


def fixed(content: str, length: int) -> str:
    """The same tokenizer, which cuts a text behind `length` tokens and fills a shorter one up to as many.

    Special tokens, such as the last one, are kept when a text is cut.

    Raises:
        ValueError: there is no token to fill up with.
    """
    tokenizer = opened(content)
    pad = padding(tokenizer)
    least = tokenizer.num_special_tokens_to_add(False) + 1
    if length < least:
        raise ValueError(f"tokens must be at least {least}, of which {least - 1} are special ones, got tokens={length}")
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=pad, pad_token=tokenizer.id_to_token(pad))
    return tokenizer.to_str()


def padding(tokenizer: Any) -> int:
    """Number of the token that fills texts up: the file's own, a token of a usual name, or that of a text's end."""
    if tokenizer.padding:
        return tokenizer.padding["pad_id"]
    known = [tokenizer.token_to_id(name) for name in _PADS]
    found = next((number for number in known if number is not None), None)
    if found is None:
        raise ValueError(
            f"the tokenizer has no token to fill short texts up with, such as {', '.join(_PADS[:2])}; add one"
        )
    return found


def separator(tokenizer: Any) -> int | None:
    """Number of the token between two texts and behind them, None where there is none."""
    known = (tokenizer.token_to_id(name) for name in _SEPARATORS)
    return next((number for number in known if number is not None), None)


def mask(tokenizer: Any) -> int | None:
    """Number of the token that stands for one that is hidden, None where there is none."""
    known = (tokenizer.token_to_id(name) for name in _MASKS)
    return next((number for number in known if number is not None), None)


def special(tokenizer: Any) -> tuple[int, ...]:
    """Numbers of the tokens that no text is made of, such as padding and start."""
    return tuple(number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special)


def unknown(tokenizer: Any) -> int | None:
    """Number of the token that stands for what is not known, None where nothing is unknown."""
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("unk_id") is not None:
        return model["unk_id"]
    return tokenizer.token_to_id(model["unk_token"]) if model.get("unk_token") else None


def numbers(tokenizer: Any, texts: Iterable[str], second: Iterable[str] = ()) -> np.ndarray:
    """Tokens of texts, or of pairs with their second text, int32 `(texts, length)`, by a tokenizer that `fixed` gave."""
    return np.array([each.ids for each in tokenizer.encode_batch_fast(_paired(texts, second))], np.int32)


def _paired(texts: Iterable[str], second: Iterable[str]) -> list[Any]:
    others = list(second)
    return list(zip(texts, others, strict=True)) if others else list(texts)


def check_pairs(content: str, name: str) -> None:
    """Refuse a tokenizer that puts no token between two texts, so that nobody could tell where the second begins.

    Raises:
        ValueError: it does not.
    """
    tokenizer = opened(content)
    tokenizer.no_padding()
    between = separator(tokenizer)
    first, both = tokenizer.encode("a").ids, tokenizer.encode("a", "a").ids
    if between is None or both.count(between) <= first.count(between) or both[len(first) - 1] != between:
        raise ValueError(
            f"tokenizer={name!r} puts no token between the texts of a pair; take wordpiece:8000, or a tokenizer.json that does"
        )


def counts(content: str, texts: Sequence[str], second: Sequence[str] = ()) -> np.ndarray:
    """How many tokens each text, or pair with its second text, has, special ones included, before anything is cut; `(texts,)`."""
    tokenizer = opened(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return np.array([len(each.ids) for each in tokenizer.encode_batch_fast(_paired(map(str, texts), map(str, second)))])


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ImportError(
            "texts need the library tokenizers, which is not installed; run: pip install 'zooroad[train]'"
        ) from None
    return tokenizers


def _wordpiece(library: Any, texts: list[str], size: int) -> Any:
    tokenizer = library.Tokenizer(library.models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = library.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    special = [PAD, UNKNOWN, CLASS, SEPARATOR, MASK]
    letters = sorted(_letters(tokenizer, texts))
    # the trainer numbers the letters inside words as a hash table gives them, and equal counts are decided by number:
    # given as special tokens they have the same numbers each time
    inside = [f"##{letter}" for letter in letters]
    trainer = library.trainers.WordPieceTrainer(
        vocab_size=max(size, len(special) + 2 * len(letters)),
        special_tokens=[*special, *inside],
        initial_alphabet=letters,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    again = library.Tokenizer(library.models.WordPiece(vocabulary, unk_token=UNKNOWN))
    again.normalizer, again.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    again.decoder = library.decoders.WordPiece()
    again.add_special_tokens(special)
    again.post_processor = library.processors.TemplateProcessing(
        single=f"{CLASS} $A {SEPARATOR}",
        pair=f"{CLASS} $A {SEPARATOR} $B:1 {SEPARATOR}:1",
        special_tokens=[(name, vocabulary[name]) for name in (CLASS, SEPARATOR)],
    )
    return again


def _bpe(library: Any, texts: list[str], size: int) -> Any:
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _letters(tokenizer: Any, texts: list[str]) -> set[str]:
    """What the words of the texts are made of, behind the tokenizer's normalisation."""
    return {
        letter
        for text in texts
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
        for letter in word
    }


def _unigram(library: Any, texts: list[str], size: int) -> Any:
    tokenizer = library.Tokenizer(library.models.Unigram())
    tokenizer.normalizer = library.normalizers.NFKC()
    tokenizer.pre_tokenizer = library.pre_tokenizers.Metaspace()
    letters = len(_letters(tokenizer, texts))
    if size < letters + 3:  # with one less the trainer keeps more pieces than asked for, with still less it fails
        raise ValueError(
            f"a vocabulary of unigram has a token for each of the {letters:,} letters of its texts, and three more, got "
            f"unigram:{size}; take at least unigram:{letters + 3}, unigram:{KINDS['unigram']} is usual"
        )
    trainer = library.trainers.UnigramTrainer(
        vocab_size=size, special_tokens=[PAD, UNKNOWN], unk_token=UNKNOWN, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"][2:]
    # the trainer gives letters that are no piece of their own the least score and a ten-thousandth more each, in the order of
    # a hash table, and its sums differ in their last digits: such letters get the least score here, and scores are rounded
    least = min(score for _, score in pieces)
    among = least + 1e-4 * sum(len(piece) == 1 for piece, _ in pieces)
    scores = {piece: round(least if len(piece) == 1 and score < among else score, 6) for piece, score in pieces}
    ordered = sorted(scores.items(), key=lambda entry: (-entry[1], entry[0]))
    again = library.Tokenizer(library.models.Unigram([(PAD, _NEVER), (UNKNOWN, _NEVER), *ordered], unk_id=1))
    again.normalizer, again.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    again.decoder = library.decoders.Metaspace()
    again.add_special_tokens([PAD, UNKNOWN])
    return again


def _words(library: Any, texts: list[str], size: int) -> Any:
    normalizers = library.normalizers
    normaliser = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    return _whole(library, texts, size, normaliser, library.pre_tokenizers.Whitespace())


def _characters(library: Any, texts: list[str], size: int) -> Any:
    splitter = library.pre_tokenizers.Split(library.Regex(r"[\s\S]"), "isolated")
    tokenizer = _whole(library, texts, size, library.normalizers.NFC(), splitter)
    tokenizer.decoder = library.decoders.Fuse()
    return tokenizer


def _whole(library: Any, texts: list[str], size: int, normaliser: Any, splitter: Any) -> Any:
    """A tokenizer whose tokens are what `splitter` gives, the most frequent of them."""
    tokenizer = library.Tokenizer(library.models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normaliser, splitter
    trainer = library.trainers.WordLevelTrainer(vocab_size=size, special_tokens=[PAD, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
