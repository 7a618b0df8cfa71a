"""Generated texts that have one right answer each: dates as people write them, and sums."""

from datetime import date, timedelta

import numpy as np

_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_FORMS = """
{day} {month} {year}
{day} {short} {year}
{nth} of {month} {year}
the {nth} of {month}, {year}
{nth} {month} {year}
{month} {day}, {year}
{short} {day}, {year}
{month} {nth}, {year}
{weekday}, {month} {day}, {year}
{weekday} {day} {month} {year}
{wd} {day} {short} {year}
{wd}, {nth} of {month} {year}
{day}-{short}-{year}
{year}, {month} {day}
{year}/{mm}/{dd}
"""  # none of which means one day to some and another to others, as 08/12/06 does
_FIRST, _LAST = date(1900, 1, 1), date(2099, 12, 31)


def dates(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """So many different dates of the years 1900 … 2099 in fifteen forms, and each in that of ISO 8601.

    One in ten is in capitals, one in ten in small letters.

    Args:
        count: of dates.
        seed: the same seed gives the same dates.

    Returns:
        Texts such as "3rd of March 1987" and answers such as "1987-03-03", `(count,)` each.
    """
    random = np.random.default_rng(seed)
    forms = _FORMS.strip().splitlines()
    found: dict[str, str] = {}
    while len(found) < count:
        day = _FIRST + timedelta(days=int(random.integers((_LAST - _FIRST).days + 1)))
        text = _written(day, forms[int(random.integers(len(forms)))])
        case = random.random()
        found.setdefault(text.upper() if case < 0.1 else text.lower() if case < 0.2 else text, day.isoformat())
    return np.array(list(found)), np.array(list(found.values()))


def _written(day: date, form: str) -> str:
    month, weekday = _MONTHS[day.month - 1], _DAYS[day.weekday()]
    ending = "th" if 11 <= day.day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th")
    return form.format(
        day=day.day,
        dd=f"{day.day:02}",
        nth=f"{day.day}{ending}",
        month=month,
        short=month[:3],
        mm=f"{day.month:02}",
        weekday=weekday,
        wd=weekday[:3],
        year=day.year,
    )


def sums(count: int, seed: int, largest: int = 99) -> tuple[np.ndarray, np.ndarray]:
    """So many different sums and differences of two numbers from 0 to `largest`, and what they make.

    Args:
        count: of sums.
        seed: the same seed gives the same sums.
        largest: number.

    Returns:
        Texts such as "7+58=" or "7-58=" and answers such as "65" or "-51", `(count,)` each.

    Raises:
        ValueError: there are not as many.
    """
    every = 2 * (largest + 1) ** 2
    if count > every:
        raise ValueError(
            f"there are {every:,} different sums of numbers to {largest}, got count={count:,}; ask for fewer"
        )
    chosen = np.random.default_rng(seed).permutation(every)[:count]
    minus, pairs = np.divmod(chosen, (largest + 1) ** 2)
    one, other = np.divmod(pairs, largest + 1)
    made = np.where(minus, one - other, one + other)
    texts = [f"{a}{'-' if m else '+'}{b}=" for a, b, m in zip(one, other, minus, strict=True)]
    return np.array(texts), made.astype(np.str_)
