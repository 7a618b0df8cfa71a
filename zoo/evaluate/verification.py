"""Verification: whether two embeddings are of one identity, judged on pairs as the LFW protocol does.

Huang, Ramesh, Berg & Learned-Miller, "Labeled Faces in the Wild", technical report 07-49, University of Massachusetts
2007: ten folds; the threshold is chosen on nine and judged on the tenth. Similarity is the cosine of two embeddings.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from zoo.data.targets import Identities

FOLDS = 10
PAIRS = 150  # of one identity, and as many of two, in each fold; LFW has 300
RATES = (0.1, 0.01, 0.001)  # shares of false acceptance at which the share of true acceptance is told
_LEAST = 10  # pairs of different identities that must stand behind a share of false acceptance

Measure = Callable[[np.ndarray], np.ndarray]  # weights (samples, rows) -> (samples,)


class Pairs(NamedTuple):
    """Pairs of rows.

    Attributes:
        left, right: rows, int64 `(pairs,)`.
        same: whether both are of one identity, bool `(pairs,)`.
        fold: which part of the protocol each pair belongs to, int64 `(pairs,)`.
    """

    left: np.ndarray
    right: np.ndarray
    same: np.ndarray
    fold: np.ndarray

    def __len__(self) -> int:
        return len(self.left)


def draw(identities: np.ndarray, folds: int = FOLDS, count: int = PAIRS, seed: int = 0) -> Pairs:
    """Draw pairs of rows, in every fold as many of one identity as of two.

    No row is in two folds, and no identity where there are at least four for each fold.

    Args:
        identities: of each row, int64 `(rows,)`.
        folds: parts of the protocol.
        count: most pairs of either kind in a fold.
        seed: the same seed draws the same pairs.

    Returns:
        The pairs; none where no fold has two rows of one identity and two identities.
    """
    random = np.random.default_rng(seed)
    identities = np.asarray(identities)
    names, index = np.unique(identities, return_inverse=True)
    if len(names) >= 4 * folds:
        fold_of = (random.permutation(len(names)) % folds)[index]
    else:
        fold_of = np.empty(len(identities), np.int64)
        for label in range(len(names)):
            rows = np.flatnonzero(index == label)
            fold_of[random.permutation(rows)] = np.arange(len(rows)) % folds
    parts = [_drawn(np.flatnonzero(fold_of == fold), index, fold, count, random) for fold in range(folds)]
    return Pairs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def given(y: np.ndarray) -> Pairs | None:
    """Pairs that targets of the kind `zoo.data.targets.Identities` name; None where they name none."""
    rows, fold = Identities.pairs(y)
    if not len(rows):
        return None
    left, right = rows.T
    return Pairs(left, right, y[left, 0] == y[right, 0], fold)


def _drawn(rows: np.ndarray, index: np.ndarray, fold: int, count: int, random: np.random.Generator) -> Pairs:
    """Balanced pairs among the rows of one fold."""
    left, right = (rows[side] for side in np.triu_indices(len(rows), 1))
    same = index[left] == index[right]
    kinds = [np.flatnonzero(same), np.flatnonzero(~same)]
    size = min(count, *map(len, kinds))
    chosen = np.concatenate([random.permutation(kind)[:size] for kind in kinds])
    return Pairs(left[chosen], right[chosen], same[chosen], np.full(len(chosen), fold, np.int64))


def similarities(embeddings: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Cosine of the angle between the two embeddings of each pair, float64 `(pairs,)`, 0 for one of length 0."""
    embeddings = np.asarray(embeddings, np.float64)
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / np.where(length > 0, length, 1)
    return np.einsum("ij,ij->i", unit[pairs.left], unit[pairs.right])


def threshold(similarity: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The similarity above which two rows count as one identity, so that most pairs are judged rightly.

    Args:
        similarity: of each pair.
        same: the truth.
        weights: of the pairs, 1 each if None.

    Returns:
        Midway between two pairs; of several that are as good, the lowest.

    Raises:
        ValueError: there are no pairs.
    """
    if not len(similarity):
        raise ValueError("a threshold needs pairs of one identity and of two; give more rows or identities")
    order, ends, cuts = _sorted(similarity)
    weights = np.ones(len(order)) if weights is None else weights
    return float(cuts[_gains((weights * np.where(same, -1.0, 1.0))[None, order], ends).argmax()])


def _sorted(similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order of the pairs; how many lie below each possible cut; and the cuts themselves."""
    order = np.argsort(similarity, kind="stable")
    ordered = similarity[order]
    ends = np.concatenate([[0], np.flatnonzero(np.diff(ordered)) + 1, [len(ordered)]])
    middle = (ordered[ends[1:-1] - 1] + ordered[ends[1:-1]]) / 2
    return order, ends, np.concatenate([[ordered[0] - 1e-3], middle, [ordered[-1] + 1e-3]])


def _gains(signed: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Weight of pairs judged rightly at each cut, up to a constant: `(samples, pairs)` -> `(samples, cuts)`."""
    total = np.cumsum(signed, axis=1)
    return np.concatenate([np.zeros((len(signed), 1)), total], axis=1)[:, ends]


def _best(gains: np.ndarray) -> np.ndarray:
    """The first best cut of each sample, or the middle one of those alike behind it, between which no pair counts."""
    first = gains.argmax(axis=1)[:, None]
    worse = (gains != np.take_along_axis(gains, first, axis=1)) & (np.arange(gains.shape[1]) > first)
    end = np.where(worse.any(axis=1), worse.argmax(axis=1), gains.shape[1])
    return (first[:, 0] + end - 1) // 2


@dataclass(frozen=True)
class Verification:
    """How well embeddings tell identities apart.

    Attributes:
        pairs: what was compared.
        similarity: cosine of each pair.
        thresholds: of each fold, chosen on the other folds.
        accuracies: share of right verdicts in each fold.
        threshold: chosen on all pairs.
        roc: shares of false and of true acceptance, and the similarity from which they hold, `(3, points)`.
    """

    pairs: Pairs = field(repr=False)
    similarity: np.ndarray = field(repr=False)
    thresholds: np.ndarray
    accuracies: np.ndarray
    threshold: float
    roc: np.ndarray = field(repr=False)

    @property
    def accuracy(self) -> float:
        """Mean share of right verdicts over the folds, the score that LFW ranks by."""
        return float(np.mean(self.accuracies))

    @property
    def limits(self) -> np.ndarray:
        """The threshold of each pair's fold, `(pairs,)`."""
        return self.thresholds[np.searchsorted(np.unique(self.pairs.fold), self.pairs.fold)]

    @property
    def verdicts(self) -> np.ndarray:
        """Whether each pair counts as one identity at its fold's threshold, bool `(pairs,)`."""
        return self.similarity > self.limits

    def accuracy_at(self, threshold: float) -> float:
        """Share of right verdicts of all pairs at a threshold that was chosen elsewhere."""
        return float(np.mean((self.similarity > threshold) == self.pairs.same))

    def worst(self, count: int = 16) -> np.ndarray:
        """Pairs that were judged wrongly, those farthest beyond the threshold first."""
        wrong = np.flatnonzero(self.verdicts != self.pairs.same)
        beyond = np.abs(self.similarity - self.limits)[wrong]
        return wrong[np.argsort(-beyond, kind="stable")][:count]


def verify(embeddings: np.ndarray, identities: np.ndarray, pairs: Pairs | None = None, seed: int = 0) -> Verification:
    """Judge embeddings on pairs.

    Args:
        embeddings: `(rows, length)`.
        identities: of each row, int64 `(rows,)`.
        pairs: to compare; drawn by `seed` if None.
        seed: of the pairs.

    Raises:
        ValueError: the rows give no pairs of both kinds in at least two folds.
    """
    pairs = draw(identities, seed=seed) if pairs is None else pairs
    folds = np.unique(pairs.fold)
    if len(folds) < 2 or pairs.same.all() or not pairs.same.any():
        raise ValueError(
            f"verification needs pairs of one identity and of two in at least two folds; {len(identities)} rows of "
            f"{len(np.unique(identities))} identities give {len(pairs)} in {len(folds)}; give more rows of more identities"
        )
    found = similarities(embeddings, pairs)
    limits, shares = [], []
    for fold in folds:
        inside = pairs.fold == fold
        limits.append(threshold(found[~inside], pairs.same[~inside]))
        shares.append(np.mean((found[inside] > limits[-1]) == pairs.same[inside]))
    return Verification(
        pairs, found, np.array(limits), np.array(shares), threshold(found, pairs.same), _roc(found, pairs.same)
    )


def _roc(similarity: np.ndarray, same: np.ndarray) -> np.ndarray:
    """False and true acceptance at each similarity, from the strictest, `(3, points)`."""
    order, ends, cuts = _sorted(similarity)
    accepted = np.concatenate([np.cumsum(same[order][::-1])[::-1], [0]])[ends]
    total = len(order) - ends
    false, true = (total - accepted) / (~same).sum(), accepted / same.sum()
    return np.stack([false, true, cuts])[:, ::-1]


def measures(embeddings: np.ndarray, identities: np.ndarray, pairs: Pairs | None = None) -> dict[str, Measure]:
    """The figures of a verification on bootstrap samples of the rows: a pair weighs what its two rows weigh together.

    "verification_accuracy" is the mean over folds; "roc_auc" the chance that a pair of one identity is more similar than
    one of two; "equal_error_rate" the error where false acceptance and false rejection are equal; "tar_at_far_…" the
    share of true acceptance where so many of the pairs of two identities are accepted falsely, told where at least 10
    of them stand behind it.

    Source of the weights: Bolle, Ratha & Pankanti, "Error analysis of pattern recognition systems: the subsets
    bootstrap", Computer Vision and Image Understanding 93 (2004), section 5: pairs of one row are not independent.

    Args:
        embeddings: `(rows, length)`.
        identities: of each row, int64 `(rows,)`.
        pairs: to compare; drawn if None.

    Raises:
        ValueError: as `verify`.
    """
    judged = verify(embeddings, identities, pairs)
    pairs = judged.pairs
    order, ends, _ = _sorted(judged.similarity)
    left, right, same, fold = (column[order] for column in pairs)

    def weighed(weights: np.ndarray) -> np.ndarray:
        return weights[:, left] * weights[:, right]

    def accuracy(weights: np.ndarray) -> np.ndarray:
        if len(weights) == 1 and (weights == 1).all():  # the rows themselves: thresholds lie midway between pairs
            return np.array([judged.accuracy])
        heavy = weighed(weights)
        signed = heavy * np.where(same, -1.0, 1.0)
        whole, shares = _gains(signed, ends), []
        for each in np.unique(fold):
            inside = np.where(fold == each, signed, 0.0)
            own = _gains(inside, ends)
            best = _best(whole - own)
            right_ones = own[np.arange(len(own)), best] + (heavy * (same & (fold == each))).sum(axis=1)
            total = (heavy * (fold == each)).sum(axis=1)
            shares.append(np.where(total > 0, right_ones / np.maximum(total, 1e-300), np.nan))
        return np.nanmean(shares, axis=0)

    def rates(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """False and true acceptance at each cut, from the loosest, `(samples, cuts)` each."""
        heavy = weighed(weights)
        found = []
        for kind in (~same, same):
            below = _gains(heavy * kind, ends)
            found.append(1 - below / np.maximum(below[:, -1:], 1e-300))
        return found[0], found[1]

    def area(weights: np.ndarray) -> np.ndarray:
        false, true = rates(weights)
        return -np.sum(np.diff(false, axis=1) * (true[:, 1:] + true[:, :-1]) / 2, axis=1)

    def equal_error(weights: np.ndarray) -> np.ndarray:
        false, true = rates(weights)
        nearest = np.abs(false - (1 - true)).argmin(axis=1)
        places = np.arange(len(false)), nearest
        return (false[places] + 1 - true[places]) / 2

    def accepted(rate: float) -> Measure:
        def at(weights: np.ndarray) -> np.ndarray:
            false, true = rates(weights)
            strict = (false <= rate + 1e-12).argmax(axis=1)
            return true[np.arange(len(true)), strict]

        return at

    different = int((~pairs.same).sum())
    told = {f"tar_at_far_{rate:g}": accepted(rate) for rate in RATES if rate * different >= _LEAST}
    return {"verification_accuracy": accuracy, "roc_auc": area, "equal_error_rate": equal_error, **told}
