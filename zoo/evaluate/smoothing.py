"""Randomized smoothing: a classifier whose answer is certain not to change within a radius, whatever the attack.

The smoothed classifier answers the class that the base classifier gives most often to the row with Gaussian noise on
it. From counts of answers follows, with a stated confidence, a Euclidean radius around the row within which that answer
stays the same. Only a predict function is needed, so a bundle is certified through its ONNX session.

Cohen, Rosenfeld & Kolter, "Certified Adversarial Robustness via Randomized Smoothing" (ICML 2019, arXiv:1902.02918),
algorithms PREDICT and CERTIFY in section 3.2. Noise and radius are in the raw input's own unit: pixel values of 0 …
255 for images (255 times the radius where a paper scales pixels to 0 … 1), standard deviations of each column
for the numbers of a table, whose categories and gaps stay. Noisy pixels are rounded and cut to 0 … 255 before the model
sees them, which makes rounding and cutting a part of the base classifier: the certificate holds for any real-valued
change of the pixels, and so for whole ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Raw = dict[str, np.ndarray]

ABSTAIN = -1  # in place of a class


@dataclass(frozen=True)
class Certificates:
    """What is certain of each row.

    Attributes:
        classes: the smoothed answer, -1 where it abstains.
        radii: within which it does not change, 0 where it abstains.
        bounds: lower bound of the probability of that answer under noise.
    """

    classes: np.ndarray
    radii: np.ndarray
    bounds: np.ndarray

    def right(self, y: np.ndarray, radius: float) -> np.ndarray:
        """Rows whose answer is right and certain within a radius."""
        return (self.classes == y) & (self.radii >= radius)


class Smoothed:
    """The smoothed form of a classifier.

    Args:
        predict: raw rows -> probabilities `(batch, classes)`; only the largest is read.
        signature: `zoo.data.Signature` of its raw inputs.
        sigma: standard deviation of the noise, in raw units.
        batch: noisy rows per call.

    Raises:
        ValueError: there are no classes, no numbers, or sigma is not above 0.
    """

    def __init__(self, predict: Callable[[Raw], np.ndarray], signature: Any, sigma: float, batch: int = 1024) -> None:
        step = signature.preprocess
        if not signature.one_label:
            raise ValueError(f"randomized smoothing certifies classes of rows, and the task is {signature.task}")
        if step.kind not in ("image", "table") or (step.kind == "table" and not step.numbers):
            raise ValueError(
                "randomized smoothing puts noise on the pixels of images or the numbers of tables; there are none"
            )
        if not 0 < sigma < np.inf:
            raise ValueError(
                f"sigma must be above 0, got sigma={sigma!r}; 32 pixel values or half a standard deviation are usual"
            )
        self.predict, self.signature, self.sigma, self.batch = predict, signature, float(sigma), batch

    def counts(self, x: Raw, draws: int, generator: np.random.Generator) -> np.ndarray:
        """How often each class is answered to one raw row under noise, `(classes,)`."""
        found = np.zeros(self.signature.outputs, np.int64)
        for start in range(0, draws, self.batch):
            rows = min(self.batch, draws - start)
            answers = self.predict(self._noisy(x, rows, generator))
            found += np.bincount(np.argmax(answers, axis=-1), minlength=len(found))
        return found

    def _noisy(self, x: Raw, rows: int, generator: np.random.Generator) -> Raw:
        step = self.signature.preprocess
        if step.kind == "image":
            noise = self.sigma * generator.standard_normal((rows, *step.shape), np.float32)
            return {"image": np.clip(np.rint(x["image"] + noise), 0, 255).astype(np.uint8)}
        repeated = {name: np.repeat(values, rows, axis=0) for name, values in x.items()}
        noise = self.sigma * generator.standard_normal((rows, len(step.numbers)), np.float32)
        return {**repeated, "numbers": repeated["numbers"] + noise * np.asarray(step.std, np.float32)}

    def answer(self, x: Raw, draws: int = 1000, alpha: float = 0.001, seed: int = 0) -> np.ndarray:
        """The smoothed answer to each row, -1 where the two commonest classes cannot be told apart.

        Args:
            x: raw rows.
            draws: noisy copies of each.
            alpha: probability that an answer which is given differs from that of endless draws, at most.
            seed: of the noise; a row's depends on its place too.
        """
        from scipy import stats

        _check(draws, alpha)
        classes = np.full(_length(x), ABSTAIN)
        for row in range(len(classes)):
            counts = self.counts(_row(x, row), draws, np.random.default_rng([seed, row]))
            second, first = np.sort(counts)[-2:]
            if stats.binomtest(int(first), int(first + second), 0.5).pvalue <= alpha:
                classes[row] = counts.argmax()
        return classes

    def certify(self, x: Raw, draws: int = 1000, first: int = 100, alpha: float = 0.001, seed: int = 0) -> Certificates:
        """The smoothed answer to each row with the radius within which it stays.

        Args:
            x: raw rows.
            draws: noisy copies of each that the bound is estimated from; the largest radius that can be shown grows
                with them, see `largest_radius`.
            first: further copies that the class is chosen by.
            alpha: probability that a certificate is wrong, at most, for each row.
            seed: of the noise; a row's depends on its place too.
        """
        from scipy import stats

        _check(draws, alpha)
        _check(first, alpha)
        classes, bounds = np.full(_length(x), ABSTAIN), np.zeros(_length(x))
        for row in range(len(classes)):
            generator, one = np.random.default_rng([seed, row]), _row(x, row)
            guess = int(self.counts(one, first, generator).argmax())
            bounds[row] = lower_bound(int(self.counts(one, draws, generator)[guess]), draws, alpha)
            if bounds[row] > 0.5:
                classes[row] = guess
        certain = classes != ABSTAIN
        radii = np.where(certain, self.sigma * stats.norm.ppf(np.where(certain, bounds, 0.5)), 0.0)
        return Certificates(classes, radii, bounds)


def lower_bound(hits: int, draws: int, alpha: float) -> float:
    """Lower end of the one-sided confidence interval of a probability, level `1 - alpha` (Clopper & Pearson 1934)."""
    from scipy import stats

    return float(stats.beta.ppf(alpha, hits, draws - hits + 1)) if hits else 0.0


def largest_radius(sigma: float, draws: int, alpha: float) -> float:
    """The radius of a row to whose every noisy copy the same class was answered; more cannot be shown."""
    from scipy import stats

    return float(sigma * stats.norm.ppf(lower_bound(draws, draws, alpha)))


def _check(draws: int, alpha: float) -> None:
    if draws < 1 or not 0 < alpha < 0.5:
        raise ValueError(f"draws must be at least 1 and alpha in (0, 0.5), got draws={draws!r}, alpha={alpha!r}")


def _length(x: Raw) -> int:
    return len(next(iter(x.values())))


def _row(x: Raw, row: int) -> Raw:
    return {name: values[row : row + 1] for name, values in x.items()}
