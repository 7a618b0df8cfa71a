"""Which rows are for training, validation and test: seeded, stratified, and equal rows never on two sides."""

import numpy as np

from zoo.data.rows import OPEN, TEST, TRAIN, VALIDATION, Rows, digests

NAMES = {TRAIN: "train", VALIDATION: "validation", TEST: "test"}


def assign(rows: Rows, validation: float, test: float, seed: int) -> np.ndarray:
    """Give each row a split.

    Rows that the source assigns stay where they are, except that validation rows are taken from its training rows
    when it has none, and test rows when it has none. Equal rows count as one, so they end up together.

    Args:
        rows: what was read.
        validation, test: shares of the rows, in [0, 1).
        seed: the same seed gives the same splits.

    Returns:
        `TRAIN`, `VALIDATION` or `TEST` for each row, int8 `(rows,)`.

    Raises:
        ValueError: a share is out of range, or a class has too few different rows.
    """
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise ValueError(
            f"validation and test are shares in [0, 1) that leave rows for training, got validation={validation}, test={test}"
        )
    part = rows.part.copy()
    shares = {VALIDATION: validation, TEST: test}
    wanted = {split: share for split, share in shares.items() if share and not (part == split).any()}
    free = np.flatnonzero((part == OPEN) | (part == TRAIN))
    part[free] = TRAIN
    random = np.random.default_rng(seed)
    strata = [free] if rows.task == "regression" else [free[rows.y[free] == label] for label in range(len(rows.labels))]
    group = _groups(rows, free)
    for label, stratum in enumerate(strata):
        what = f"class {rows.labels[label]!r}" if rows.task != "regression" else "the data"
        own = stratum[rows.y[group[stratum]] == rows.y[stratum]] if rows.task != "regression" else stratum
        _deal(part, own, group, wanted, random, f"{rows.source}: {what}")
    part[free] = part[group[free]]  # equal rows of another class follow the first of them
    for label in range(len(rows.labels)) if rows.task != "regression" else ():
        if not ((part == TRAIN) & (rows.y == label)).any():
            raise ValueError(
                f"{rows.source}: class {rows.labels[label]!r} has no row left for training; add rows of this class"
            )
    return part


def _groups(rows: Rows, free: np.ndarray) -> np.ndarray:
    """For each free row the index of the first row equal to it; the rest point at themselves."""
    group = np.arange(len(rows.y))
    first: dict[bytes, int] = {}
    found = digests({key: values[free] for key, values in rows.x.items()})
    for row, digest in zip(free.tolist(), found, strict=True):
        group[row] = first.setdefault(digest, row)
    return group


def _count(rows: int) -> str:
    return f"only {rows} different row{'s' * (rows != 1)}"


def _deal(
    part: np.ndarray, stratum: np.ndarray, group: np.ndarray, wanted: dict, random: np.random.Generator, what: str
) -> None:
    """Deal the groups of one class to the splits, each time to the split that lacks most rows."""
    heads, sizes = np.unique(group[stratum], return_counts=True)
    if len(heads) < len(wanted) + 1:
        names = ", ".join(NAMES[split] for split in (TRAIN, *wanted))
        raise ValueError(
            f"{what} has {_count(len(heads))}, which cannot be split into {names}; add rows of it, or leave it out"
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
