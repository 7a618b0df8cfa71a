"""Tests that may be looked at after every observation: evidence against "no difference" and intervals that stay true.

Each kind of evidence is the wealth of a gambler who starts with 1 and bets against the null hypothesis at odds that are
fair under it. Under the null the wealth ever reaches 1 / alpha with probability at most alpha (Ville's inequality), at
every sample size and however often somebody looks, so that an experiment may end the moment it does.

Sources: Shafer, "Testing by betting", JRSS A 184 (2021) 407-431, for the reading; Waudby-Smith and Ramdas, "Estimating
means of bounded random variables by betting", JRSS B 86 (2024) 1-27, for the bets of `Bet` (their capital process, the
stake being the one that grows fastest for the rates seen so far) and for outcomes between 0 and 1; Turner, Ly and
Grünwald, "Generic E-variables for exact sequential k-sample tests", J. Stat. Plan. Inference 230 (2024), for the
likelihood ratio against the pooled rate; Wasserman, Ramdas and Balakrishnan, "Universal inference", PNAS 117 (2020)
16880-16890, for `differs`; Robbins, Ann. Math. Stat. 41 (1970) 1397-1409, for mixtures and `interval`. No normal
approximation is used, as the mixture SPRT of Johari, Koomen, Pekelis and Walsh, "Always valid inference", Operations
Research 70 (2022), does for two rates: rates of failures are small. `benchmarks/sequential.py` compares the two.
"""

from dataclasses import dataclass
from math import exp, inf, lgamma, log, log1p

PRIOR = 100.0  # outcomes of an arm after which its own rate counts as much as the common one; 50 to 200 are alike
# a prior moves evidence and widths, never their validity
RARE = (0.5, 20.0)  # Beta prior of rates of failure: near 0, with every rate possible
EVEN = (0.5, 0.5)  # Beta prior of rates of any size (Krichevsky and Trofimov)
LONGEST = 700.0  # exp() of more is no float


@dataclass(slots=True)
class Arm:
    """Outcomes of one version: how many, and their sum, each outcome in [0, 1]."""

    count: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float | None:
        """Mean outcome in [0, 1], None before the first."""
        return self.total / self.count if self.count else None


@dataclass(slots=True)
class Bet:
    """Wealth of betting that the outcomes of two arms differ, when the arms are drawn at random.

    The null hypothesis is that an outcome does not depend on the arm that its unit was given. Outcomes may otherwise be
    of any distribution in [0, 1], which may change over time, as that of a day's traffic does.

    Attributes:
        share: probability of the second arm, in (0, 1), the same for every unit.
        first, second: outcomes so far.
        wealth: natural logarithm of the wealth; 0 at the start.
        highest: its highest value so far, which is what counts.
    """

    share: float
    first: Arm
    second: Arm
    wealth: float = 0.0
    highest: float = 0.0

    def add(self, second: bool, outcome: float) -> None:
        """Settle the bet on one outcome.

        Args:
            second: whether its unit was given the second arm.
            outcome: in [0, 1].
        """
        a, b = self.first, self.second
        common = (a.total + b.total + 0.5) / (a.count + b.count + 1)
        rate_a = (a.total + PRIOR * common) / (a.count + PRIOR)
        rate_b = (b.total + PRIOR * common) / (b.count + PRIOR)
        expected = (1 - self.share) * rate_a + self.share * rate_b
        arm, rate = (b, rate_b) if second else (a, rate_a)
        self.wealth += log1p((rate - expected) * (outcome - expected) / (expected * (1 - expected)))
        self.highest = max(self.highest, self.wealth)
        arm.count += 1
        arm.total += outcome

    @property
    def p(self) -> float:
        """Always-valid p-value: under the null, ever below alpha with probability at most alpha."""
        return exp(-min(self.highest, LONGEST))

    @property
    def difference(self) -> float | None:
        """Mean of the second arm minus that of the first, None before both have one."""
        if not (self.first.count and self.second.count):
            return None
        return self.second.total / self.second.count - self.first.total / self.first.count


def exceeds(total: float, count: float, limit: float) -> float:
    """Evidence, as a natural logarithm, that a rate lies above a known limit.

    Args:
        total: sum of the outcomes, each in [0, 1].
        count: how many there are.
        limit: in (0, 1).
    """
    if total <= limit * count:
        return 0.0
    return _marginal(total, count, RARE) - _likelihood(total, count, limit)


def differs(arm: Arm, other: Arm) -> float:
    """Evidence, as a natural logarithm, that two rates differ, whatever decided which arm each outcome went to.

    It needs fewer assumptions than `Bet`, at the price of needing more outcomes: no random draw, and the outcomes of
    one arm may all lie before those of the other; but all are independent and the two rates do not change.
    """
    total, count = arm.total + other.total, arm.count + other.count
    if not (arm.count and other.count):
        return 0.0
    separate = _marginal(arm.total, arm.count, RARE) + _marginal(other.total, other.count, RARE)
    return max(0.0, separate - _likelihood(total, count, total / count))


def interval(arm: Arm, alpha: float) -> tuple[float, float]:
    """Bounds that hold the mean of an arm's outcomes at every moment together, with probability at least 1 - alpha.

    Args:
        arm: outcomes in [0, 1], independent and of one mean.
        alpha: in (0, 1).
    """
    if not arm.count:
        return 0.0, 1.0
    total, count = arm.total, arm.count
    most = _marginal(total, count, EVEN) + log(alpha)  # a mean is out if its likelihood is below this

    def edge(inside: float, outside: float) -> float:
        if _likelihood(total, count, outside) >= most:
            return outside
        for _ in range(50):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if _likelihood(total, count, middle) >= most else (inside, middle)
        return outside

    mean = total / count
    return edge(mean, 0.0), edge(mean, 1.0)


def _marginal(total: float, count: float, prior: tuple[float, float]) -> float:
    """Logarithm of the likelihood, averaged over a Beta prior of the rate."""
    a, b = prior
    failed = count - total
    return lgamma(total + a) + lgamma(failed + b) - lgamma(count + a + b) - (lgamma(a) + lgamma(b) - lgamma(a + b))


def _likelihood(total: float, count: float, rate: float) -> float:
    """Logarithm of the likelihood of one rate; -inf if the rate makes the outcomes impossible."""
    failed = count - total
    if (rate <= 0 and total > 0) or (rate >= 1 and failed > 0):
        return -inf
    return (total * log(rate) if total > 0 else 0.0) + (failed * log1p(-rate) if failed > 0 else 0.0)
