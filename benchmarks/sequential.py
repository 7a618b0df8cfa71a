"""Tests that may be looked at at any time: how often they call two equal versions different, and how soon they find a difference.

    python benchmarks/sequential.py [--runs 400]

Every run is an experiment of `count` requests that are drawn between two versions; each test is looked at after every ten
of them and stops at its first decision, at alpha 0.05. Compared are the server's (`serve.evidence.Bet`), its stricter one
for rollbacks (`differs`), the mixture SPRT for two rates with a normal approximation (Johari, Koomen, Pekelis and Walsh,
"Always valid inference", Operations Research 70 (2022), section 5; variance of the mixture 0.02 squared) and the usual
z-test. Appends a row for each case and test to benchmarks/results/sequential.csv, and ends with status 1 when the server's
test calls equal versions different more often than alpha allows, by more than the error of so many runs.
"""

import argparse
import math
import random
import statistics
import sys

from record import append

from serve.evidence import Arm, Bet, differs

ALPHA = 0.05
MIXTURE = 0.02**2
CASES = [  # rate of the control, of the treatment, share of the treatment, requests
    (0.5, 0.5, 0.5, 4000),
    (0.1, 0.1, 0.5, 4000),
    (0.01, 0.01, 0.1, 4000),
    (0.1, 0.14, 0.5, 10_000),
    (0.5, 0.55, 0.5, 10_000),
    (0.02, 0.03, 0.5, 20_000),
    (0.1, 0.14, 0.1, 20_000),
]
Z = statistics.NormalDist().inv_cdf(1 - ALPHA / 2)


def mixture(first: Arm, second: Arm) -> float:
    """Logarithm of the mixture SPRT's likelihood ratio; 0 while the approximation has nothing to go on."""
    rate = (first.total + second.total) / (first.count + second.count)
    if min(first.count, second.count) < 10 or not 0 < rate < 1:
        return 0.0
    variance = rate * (1 - rate) * (1 / first.count + 1 / second.count)
    gap = second.total / second.count - first.total / first.count
    spread = variance + MIXTURE
    return 0.5 * math.log(variance / spread) + gap**2 * MIXTURE / (2 * variance * spread)


def usual(first: Arm, second: Arm) -> float:
    """The z-test's statistic, as it is misused: looked at again and again."""
    rate = (first.total + second.total) / (first.count + second.count)
    if min(first.count, second.count) < 10 or not 0 < rate < 1:
        return 0.0
    error = math.sqrt(rate * (1 - rate) * (1 / first.count + 1 / second.count))
    return abs(second.total / second.count - first.total / first.count) / error


def run(rates: tuple[float, float], share: float, count: int, seed: int) -> dict[str, float]:
    """Requests until each test decided, infinite where it did not."""
    draw = random.Random(seed).random
    bet = Bet(share, Arm(), Arm())
    needed = math.log(1 / ALPHA)
    found = dict.fromkeys(("betting", "universal", "mixture SPRT", "z-test"), math.inf)
    for number in range(1, count + 1):
        second = draw() < share
        bet.add(second, float(draw() < rates[second]))
        if number % 10:
            continue
        first, other = bet.first, bet.second
        decided = {
            "betting": bet.highest >= needed,
            "universal": differs(first, other) >= needed,
            "mixture SPRT": mixture(first, other) >= needed,
            "z-test": usual(first, other) > Z,
        }
        for test, is_decided in decided.items():
            if is_decided and found[test] == math.inf:
                found[test] = number
        if math.inf not in found.values():
            break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=400, help="experiments of each case")
    runs = parser.parse_args().runs
    failed = False
    for control, treatment, share, count in CASES:
        results = [run((control, treatment), share, count, seed) for seed in range(runs)]
        for test in results[0]:
            decided = sum(result[test] < math.inf for result in results) / runs
            median = statistics.median(result[test] for result in results)
            append(
                "sequential",
                {
                    "test": test,
                    "control": control,
                    "treatment": treatment,
                    "share": share,
                    "requests": count,
                    "runs": runs,
                    "alpha": ALPHA,
                    "decided": f"{decided:.3f}",
                    "median_requests": "" if median == math.inf else f"{median:.0f}",
                },
                packages=("zooroad",),
            )
            allowed = ALPHA + 2.5 * math.sqrt(ALPHA * (1 - ALPHA) / runs)
            failed |= test == "betting" and control == treatment and decided > allowed
    sys.exit("the server's test calls equal versions different too often" if failed else 0)


if __name__ == "__main__":
    main()
