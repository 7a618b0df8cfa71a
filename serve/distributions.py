"""Whether two lists of counts, or of shares, are of one distribution: sizes of a difference and tests of it."""

import math

import numpy as np


def stability(expected: np.ndarray, observed: np.ndarray) -> float:
    """Population stability index of two lists of shares; shares of 0 count as 0.0001."""
    p, q = expected.clip(1e-4), observed.clip(1e-4)
    return float(((q - p) * np.log(q / p)).sum())


def psi(expected: np.ndarray, observed: np.ndarray) -> float:
    """Population stability index of two lists of counts, less what chance alone adds on average, at least 0.

    Bins that would hold fewer than 5 rows on either side are taken together. Chance adds `(bins - 1) (1/n + 1/m)` for n
    and m rows: Yurdakul and Naranjo, "Statistical properties of the population stability index" (2020).
    """
    expected, observed = _grouped(expected, observed)
    n, m, bins = expected.sum(), observed.sum(), len(expected)
    if bins < 2 or not n or not m:
        return 0.0
    p, q = (expected + 0.5) / (n + bins / 2), (observed + 0.5) / (m + bins / 2)
    return max(0.0, float(((q - p) * np.log(q / p)).sum() - (bins - 1) * (1 / n + 1 / m)))


def kolmogorov_smirnov(expected: np.ndarray, observed: np.ndarray) -> tuple[float, float]:
    """Largest gap between two cumulated lists of counts, and its p-value by Kolmogorov's limiting distribution.

    Source: the finite-size term is of Stephens, Journal of the Royal Statistical Society B 32 (1970) 115-122.
    """
    n, m = expected.sum(), observed.sum()
    if not n or not m:
        return 0.0, 1.0
    gap = float(np.abs(np.cumsum(expected) / n - np.cumsum(observed) / m).max())
    root = math.sqrt(n * m / (n + m))
    return gap, kolmogorov((root + 0.12 + 0.11 / root) * gap)


def kolmogorov(x: float) -> float:
    """Chance that Kolmogorov's distribution gives more than x."""
    if x < 0.2:  # the sum below needs many terms here, and the answer is 1 to fifteen digits
        return 1.0
    terms = np.arange(1, 101)
    return float(np.clip(2 * ((-1.0) ** (terms - 1) * np.exp(-2 * terms**2 * x * x)).sum(), 0, 1))


def chi_squared(expected: np.ndarray, observed: np.ndarray) -> tuple[float, float]:
    """Chi-squared statistic of two lists of counts being of one distribution, and its p-value."""
    expected, observed = _grouped(expected, observed)
    n, m = expected.sum(), observed.sum()
    if len(expected) < 2 or not n or not m:
        return 0.0, 1.0
    both = (expected + observed) / (n + m)
    statistic = float((((expected - n * both) ** 2 / n + (observed - m * both) ** 2 / m) / both).sum())
    return statistic, upper_gamma((len(expected) - 1) / 2, statistic / 2)


def _grouped(expected: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both lists, with bins that would hold fewer than 5 rows on either side, were they alike, taken together."""
    n, m = expected.sum(), observed.sum()
    small = (expected + observed) * min(n, m) < 5 * (n + m)
    if not small.any():
        return expected, observed
    sides = [np.append(side[~small], side[small].sum()) for side in (expected, observed)]
    kept = sides[0] + sides[1] > 0
    return sides[0][kept], sides[1][kept]


def upper_gamma(a: float, x: float) -> float:
    """Regularised upper incomplete gamma function: the chance of more than 2x in chi-squared with 2a degrees.

    By its series below a + 1 and by Lentz' continued fraction above: Press et al., "Numerical Recipes", section 6.2.
    """
    if x <= 0:
        return 1.0
    scale = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1:
        term = total = 1 / a
        step = a
        while term > total * 1e-15:
            step += 1
            term *= x / step
            total += term
        return max(0.0, 1 - scale * total)
    tiny = 1e-300
    b = x + 1 - a
    c, d = 1 / tiny, 1 / b
    fraction = d
    for i in range(1, 10_000):
        factor = -i * (i - a)
        b += 2
        d = factor * d + b
        d = 1 / (d if abs(d) > tiny else tiny)
        c = b + factor / c
        c = c if abs(c) > tiny else tiny
        fraction *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return min(1.0, scale * fraction)


def holm(p_values: list[float]) -> list[float]:
    """P-values corrected for their number: Holm, Scandinavian Journal of Statistics 6 (1979) 65-70."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
