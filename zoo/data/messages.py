"""Generated short messages, unwanted ones among them, whose labels are known exactly.

A message is one to three sentences. Both kinds speak of prizes, links, accounts and money; some sentences have a twin with
the same words in another order and the opposite meaning, so that counting words is good and not enough. People mistype.
"""

import re

import numpy as np

LABELS = ("ham", "spam")
_TWINS = 0.5  # share of the messages whose deciding sentence has a twin
_TYPOS = 0.05  # share of the longer words that are misspelt

_WORDS = {
    "friend": ["mum", "dad", "anna", "ben", "clara", "david", "emma", "felix", "grandma", "the team", "my boss"],
    "day": ["today", "tonight", "tomorrow", "on monday", "on friday", "on sunday", "this weekend", "next week"],
    "time": ["at six", "at seven", "at noon", "after work", "in an hour", "before lunch", "later"],
    "prize": ["prize", "voucher", "holiday", "phone", "gift card", "tablet", "reward", "ticket"],
    "money": ["100 euros", "250 dollars", "500 pounds", "1000 euros", "50 dollars", "2000 pounds"],
    "number": ["0800 555", "0900 123", "555 0199", "the number below", "this number"],
    "secret": ["password", "pin", "card number", "bank details", "account name"],
    "place": ["the station", "the office", "school", "the cinema", "the shop", "the gym", "home"],
    "thing": ["keys", "tickets", "report", "photos", "book", "recipe", "notes", "parcel"],
    "shop": ["the bank", "the shop", "customer service", "our team", "the lottery office", "the post"],
}

# what either kind may say; of two twins both have the same words
_HAM = """
hi {friend} , are you free {day} {time} ?
i will be at {place} {time} , see you there
can you bring the {thing} {day} ?
thanks for the {thing} , i will call you {time}
did you get the {thing} from {shop} ?
the parcel from {shop} comes {day} , please be at {place}
i won the game {day} , the prize was a {prize} !
my account at {shop} is open again , no need to call
we pay {money} for the holiday , is that ok for you ?
please call {friend} {time} , it is urgent
the link to the {thing} is in my last message
{friend} lost the {thing} , can you look at {place} ?
lunch {day} ? i can get a table {time}
do you still want the {thing} ? i can get it for {money}
happy birthday {friend} , your gift is at {place}
i send you the {money} {day} , thank you for waiting
"""
_SPAM = """
congratulations , you have won a {prize} , call {number} now
your account at {shop} is locked , click the link and enter your {secret}
urgent : claim your {prize} {day} or lose it
get {money} {day} , no questions , text yes to {number}
you are chosen for a free {prize} , reply with your {secret}
last chance : the {prize} is yours , click the link
{shop} owes you {money} , send your {secret} to get it
work at {place} and earn {money} a day , call {number}
your parcel waits at {shop} , pay the fee with the link
cheap {thing} and a free {prize} , only {day} , visit the link
"""
_TWIN_SENTENCES = """
wait , do not call {number} and claim your {prize} | do not wait , call {number} and claim your {prize}
you won no {prize} , this is a joke | you won a {prize} , this is no joke
never send {shop} your {secret} , we always call you | always send {shop} your {secret} , we never call you
i can pay you {money} , you need not click the link | you can click the link , i need not pay you {money}
the link is not safe , your account at {shop} is | your account at {shop} is not safe , the link is
you get no {money} , ask for your {prize} | you get your {prize} , ask for no {money}
this is from {friend} and not from {shop} , open the link | this is from {shop} and not from {friend} , open the link
stop , before you give your {secret} call {shop} | before you call {shop} stop , give your {secret}
"""


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def messages(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """So many messages.

    Args:
        count: of messages.
        seed: the same seed gives the same messages.

    Returns:
        Texts `(count,)`, and indices of their `LABELS`, int64 `(count,)`.
    """
    random = np.random.default_rng(seed)
    twins = [tuple(map(str.strip, line.split("|"))) for line in _lines(_TWIN_SENTENCES)]
    usual = (_lines(_HAM), _lines(_SPAM))
    labels = (random.random(count) < 0.4).astype(np.int64)
    texts = []
    for label in labels.tolist():
        twin = random.random() < _TWINS
        deciding = _any(random, twins)[label] if twin else _any(random, usual[label])
        around = [_any(random, usual[0]) for _ in range(int(random.integers(0, 3)))]
        around.insert(int(random.integers(0, len(around) + 1)), deciding)
        sentences = " . ".join(_filled(sentence, random) for sentence in around)
        words = [misspelt(word, random) if random.random() < _TYPOS else word for word in sentences.split()]
        texts.append(_tidy(" ".join(words), random))
    return np.array(texts), labels


def _any(random: np.random.Generator, choices: list):
    return choices[int(random.integers(len(choices)))]


def _filled(sentence: str, random: np.random.Generator) -> str:
    return re.sub(r"\{(\w+)\}", lambda place: _any(random, _WORDS[place[1]]), sentence)


def misspelt(word: str, random: np.random.Generator) -> str:
    """A word with two letters in the wrong order, one too many or one too few; short ones and numbers as they are."""
    if len(word) < 4 or not word.isalpha():
        return word
    place = int(random.integers(1, len(word) - 1))
    before, letter, after = word[:place], word[place], word[place + 1 :]
    return _any(random, [before + after, before + 2 * letter + after, before + after[0] + letter + after[1:]])


def _tidy(text: str, random: np.random.Generator) -> str:
    """Marks next to their words; some messages with capitals, as either kind may have them."""
    text = re.sub(r" ([,.?!:])", r"\1", text).replace("?.", "?").replace("!.", "!")
    text = re.sub(r"(^|[.?!] )([a-z])", lambda start: start[1] + start[2].upper(), text)
    return text.upper() if random.random() < 0.05 else text
