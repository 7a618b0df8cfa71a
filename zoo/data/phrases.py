"""Generated pairs of statements about a time, and whether the second follows from the first.

What happens on 3 May happens in May, and not the other way round. Each pair has a twin of the same two statements in the other order
and with the other label, so nobody who counts the words of both together can do better than guess.
"""

import numpy as np

LABELS = ("does not follow", "follows")

_SEASONS = {
    "spring": ("march", "april", "may"),
    "summer": ("june", "july", "august"),
    "autumn": ("september", "october", "november"),
    "winter": ("december", "january", "february"),
}
_WHAT = ("we meet", "it rains", "the shop is closed", "the train is late", "she calls", "the bill is due")
# each follows from those before it
_TIMES = ("at {hour} on {day} {month}", "on {day} {month}", "in {month}", "in {season}")


def pairs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """So many pairs, half of which follow.

    Args:
        count: of pairs, an even number.
        seed: the same seed gives the same pairs.

    Returns:
        First and second statements `(count,)`, and indices of their `LABELS`, int64 `(count,)`.
    """
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count // 2):
        season = str(random.choice(list(_SEASONS)))
        facts = {
            "season": season,
            "month": str(random.choice(_SEASONS[season])),
            "day": int(random.integers(1, 29)),
            "hour": int(random.integers(1, 13)),
        }
        what = _WHAT[int(random.integers(len(_WHAT)))]
        exact, wide = sorted(random.choice(len(_TIMES), 2, replace=False).tolist())
        told = [f"{what} {_TIMES[place].format(**facts)}" for place in (exact, wide)]
        found += [(*told, 1), (*told[::-1], 0)]
    order = random.permutation(len(found))
    first, second, labels = (np.array(column)[order] for column in zip(*found, strict=True))
    return first, second, labels.astype(np.int64)
