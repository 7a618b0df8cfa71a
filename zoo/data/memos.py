"""Generated short messages with the dates, amounts and names in them marked.

Which of these a word belongs to is often said by the words around it alone: a month may be a name and a name a verb, and
numbers are parts of dates and amounts, or of neither.
"""

import re

import numpy as np

KINDS = ("amount", "date", "name")

_FIRST = [
    "anna", "ben", "clara", "david", "emma", "felix", "grace", "henry", "ida", "jonas", "mary", "noah", "olive",
    "peter", "ruth", "tom",
]  # fmt: skip
_TWOFOLD = [  # words of other uses too
    "april", "august", "bill", "june", "mark", "may", "rose", "summer", "will", "frank", "art", "jack",
]  # fmt: skip
_LAST = [
    "berg", "brown", "dunn", "fischer", "garcia", "hill", "kim", "lopez", "march", "meyer", "novak", "penny",
    "price", "stone", "weber", "young",
]  # fmt: skip
_MONTHS = [
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
]  # fmt: skip
_DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_MONEY = ["euros", "dollars", "pounds", "francs"]
_THINGS = ["report", "invoice", "contract", "printer", "parcel", "ticket", "keys", "room", "plan", "order"]

_SENTENCES = """
{name} paid {amount} on {date}
please send {amount} to {name} by {date}
the {thing} from {name} is due on {date}
{name} will call {name} about {thing} {number}
on {date} we owe {name} {amount}
may i bring {number} people on {date} ?
mark the {thing} with {number} , the price was {amount}
i will be in room {number} with {name} from {date}
the bill is {amount} , {number} copies are with {name}
in {date} the {thing} was {amount} , now it costs {amount}
thank you {name} , the {thing} number {number} is here
can you rose up the {thing} to {number} ?
we march in with {number} people and {name} at noon
{name} and {name} share {amount}
the {thing} was never paid , frank words from {name}
there are {number} seats , each is {amount}
call {number} {number} and ask for {name}
this summer the {thing} has {number} pages
no {thing} was sent on {date} , {name} may ask why
a penny for the {thing} , said {name}
"""


def memos(count: int, seed: int) -> tuple[list[str], list[list[tuple[int, int, str]]]]:
    """So many messages.

    Args:
        count: of messages.
        seed: the same seed gives the same messages.

    Returns:
        Texts, and of each its marked parts: first character, the one behind the last, and which of `KINDS` it is.
    """
    random = np.random.default_rng(seed)
    sentences = [line.strip() for line in _SENTENCES.strip().splitlines()]
    texts, marked = [], []
    for _ in range(count):
        text, own = "", []
        for sentence in [_any(random, sentences) for _ in range(int(random.integers(1, 3)))]:
            text = _add(text, sentence, own, random)
        texts.append(text)
        marked.append(own)
    return texts, marked


def _add(text: str, sentence: str, own: list[tuple[int, int, str]], random: np.random.Generator) -> str:
    """A text with one more sentence, whose marked parts are added to `own`."""
    text += " " * bool(text)
    begin, ended = len(text), False
    for part in sentence.split():
        kind = part.strip("{}") if part.startswith("{") else ""
        word = _FILLED[kind](random) if kind else part
        mark = part in (",", "?")
        text += ("" if mark or len(text) == begin else " ") + word
        ended = part == "?"
        if kind in KINDS:
            own.append((len(text) - len(word), len(text), kind))
    return text[:begin] + text[begin : begin + 1].upper() + text[begin + 1 :] + ("" if ended else ".")


def _any(random: np.random.Generator, choices: list) -> str:
    return choices[int(random.integers(len(choices)))]


def _number(random: np.random.Generator) -> str:
    return str(int(random.integers(2, 2100)))


def _name(random: np.random.Generator) -> str:
    first = _any(random, _TWOFOLD if random.random() < 0.4 else _FIRST)
    forms = (first, f"{first} {_any(random, _LAST)}", f"{_any(random, ['dr', 'mr', 'ms'])} {_any(random, _LAST)}")
    named = forms[int(random.choice(3, p=[0.5, 0.35, 0.15]))]
    return named if random.random() < 0.3 else named.title()  # as people type


def _amount(random: np.random.Generator) -> str:
    figure = _number(random)
    forms = (f"{figure} {_any(random, _MONEY)}", f"{figure}.50 {_any(random, _MONEY)}", f"${figure}", f"EUR {figure}")
    return _any(random, list(forms))


def _date(random: np.random.Generator) -> str:
    day, month, year = int(random.integers(1, 29)), _any(random, _MONTHS), int(random.integers(2019, 2027))
    forms = (
        f"{day} {month}",
        f"{month} {day}, {year}",
        month,
        f"next {_any(random, _DAYS)}",
        f"{year}-{_MONTHS.index(month) + 1:02}-{day:02}",
    )
    said = _any(random, list(forms))
    return said if random.random() < 0.3 else re.sub(r"\b([a-z])(?!ext\b)", lambda found: found[1].upper(), said)


_FILLED = {
    "name": _name,
    "amount": _amount,
    "date": _date,
    "number": _number,
    "thing": lambda random: _any(random, _THINGS),
}
