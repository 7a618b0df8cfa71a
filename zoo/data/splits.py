"""Which rows are for training, validation and test: seeded, stratified, and equal rows never on two sides."""

from collections.abc import Callable
from functools import partial

import numpy as np

from zoo.data import lazy, targets
from zoo.data.rows import OPEN, TEST, TRAIN, VALIDATION, Rows, digests

NAMES = {TRAIN: "train", VALIDATION: "validation", TEST: "test"}


def check_shares(validation: float, test: float) -> None:
    """Refuse shares of the rows that are out of range or leave none for training.

    Raises:
        ValueError: they do.
    """
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise ValueError(
            f"validation and test are shares in [0, 1) that leave rows for training, got validation={validation}, test={test}"
        )


def assign(rows: Rows, validation: float, test: float, seed: int) -> np.ndarray:
    """Give each row a split.

    Rows that the source assigns stay where they are, except that validation rows are taken from its training rows
    when it has none, and test rows when it has none. Equal rows count as one, so they end up together, and so do the
    rows of one identity.

    Args:
        rows: what was read.
        validation, test: shares of the rows, in [0, 1).
        seed: the same seed gives the same splits.

    Returns:
        `TRAIN`, `VALIDATION` or `TEST` for each row, int8 `(rows,)`.

    Raises:
        ValueError: a share is out of range, or a class has too few different rows.
    """
    check_shares(validation, test)
    part = rows.part.copy()
    shares = {VALIDATION: validation, TEST: test}
    wanted = {split: share for split, share in shares.items() if share and not (part == split).any()}
    free = np.flatnonzero((part == OPEN) | (part == TRAIN))
    part[free] = TRAIN
    random = np.random.default_rng(seed)
    kind = targets.of(rows.task)
    strata = kind.strata(rows.y, len(rows.labels))
    whole = kind.whole(rows.y)
    group = _groups(rows, free, whole)
    unit = ("different row", "different rows") if whole is None else kind.together
    for label in range(len(rows.labels)) if kind.each else np.unique(strata[free]):
        stratum = free[strata[free] == label]
        what = partial(named, rows, kind, stratum, label)
        own = stratum[strata[group[stratum]] == label]
        _deal(part, own, group, wanted, random, what, unit)
    part[free] = part[group[free]]  # equal rows of another class follow the first of them
    learned = kind.present(rows.y[part == TRAIN], len(rows.labels)).any(axis=0)
    if learned.size and not kind.each and not learned.any():
        raise ValueError(
            f"{rows.source}: no row for training shows anything of {', '.join(rows.labels[:5])}; label some"
        )
    for label in np.flatnonzero(~learned):
        raise ValueError(
            f"{rows.source}: class {rows.labels[label]!r} has no row left for training; add rows of this class"
        )
    return part


def named(rows: Rows, kind: targets.Kind, stratum: np.ndarray, label: int) -> str:
    """Rows that are dealt out together, for messages: their class, or the rarest label of each."""
    if kind.each:
        return f"{rows.source}: class {rows.labels[label]!r}"
    present = kind.present(rows.y, len(rows.labels))
    rarity = np.where(present, present.sum(axis=0), len(present) + 1)[stratum]
    rarest = {rows.labels[own.argmin()] for own in rarity if own.size and own.min() <= len(present)}
    return f"{rows.source}: " + (f"label {' or '.join(map(repr, sorted(rarest)))}" if rarest else "the data")


def _groups(rows: Rows, free: np.ndarray, whole: np.ndarray | None = None) -> np.ndarray:
    """For each free row the index of the first row that belongs together with it; the rest point at themselves.

    Equal rows belong together, and those with one number in `whole`.
    """
    group = np.arange(len(rows.y))
    first: dict[bytes, int] = {}
    found = digests({key: lazy.pick(values, free) for key, values in rows.x.items()})
    for row, digest in zip(free.tolist(), found, strict=True):
        group[row] = first.setdefault(digest, row)
    if whole is not None:
        group[free] = free[_joined(whole[free], group[free])]
    return group


def _joined(*codes: np.ndarray) -> np.ndarray:
    """For each row the first row that is linked with it by an equal code of either kind, directly or through others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(codes[0])
    firsts = [np.unique(code, return_index=True, return_inverse=True) for code in codes]
    ends = np.concatenate([first[index] for _, first, index in firsts])
    rows = np.tile(np.arange(count), len(codes))
    _, parts = connected_components(coo_array((np.ones(len(rows)), (rows, ends)), (count, count)), directed=False)
    _, first, index = np.unique(parts, return_index=True, return_inverse=True)
    return first[index]


def _deal(
    part: np.ndarray,
    stratum: np.ndarray,
    group: np.ndarray,
    wanted: dict,
    random: np.random.Generator,
    what: Callable[[], str],
    unit: tuple[str, str],
) -> None:
    """Deal the groups of one class to the splits, each time to the split that lacks most rows."""
    heads, sizes = np.unique(group[stratum], return_counts=True)
    if len(heads) < len(wanted) + 1:
        names = ", ".join(NAMES[split] for split in (TRAIN, *wanted))
        raise ValueError(
            f"{what()} has only {len(heads)} {unit[len(heads) != 1]}, which cannot be split into {names}; "
            "add rows of it, or leave it out"
        )
    lack = {split: max(1, round(len(stratum) * share)) for split, share in wanted.items()}
    lack[TRAIN] = max(1, len(stratum) - sum(lack.values()))
    order = random.permutation(len(heads))
    order = order[np.argsort(-sizes[order], kind="stable")]  # large groups first, while every split can still take them
    empty = set(lack)
    for left, index in zip(range(len(order), 0, -1), order, strict=True):
        split = max(empty if left == len(empty) else lack, key=lambda name: (lack[name], -name))
        empty.discard(split)
        part[heads[index]] = split
        lack[split] -= int(sizes[index])
