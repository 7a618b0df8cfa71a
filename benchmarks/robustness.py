"""What attacks take from a model on digits, what adversarial training wins back, and what smoothing makes certain.

Trains a model plainly, on rows attacked by FGSM and by PGD, and on noisy rows; attacks the first three with PGD of more
steps than they were trained with, on the loss and on the logits' margin, and certifies the last by randomized smoothing.
Run `python benchmarks/robustness.py`; `--keep` appends rows to `benchmarks/results/robustness.csv` and
`robustness_certificates.csv`. Ends with status 1 when a target below is missed.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from record import append

LIMIT = 16.0  # epsilon, pixel values of 0 … 255
WON_BACK = 0.5  # of the accuracy that the worst attack at that limit takes
PRICE = 3.0  # points of accuracy on unchanged rows that it may cost
RADIUS, CERTAIN = 64.0, 0.85  # certified accuracy at that Euclidean radius, in pixel values


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--epochs", type=int, default=0, help="of training; the recipe's own if 0")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[4.0, 8.0, 16.0, 32.0])
    parser.add_argument("--steps", type=int, default=40, help="of PGD")
    parser.add_argument("--sigma", type=float, default=48.0, help="of the noise that certificates rest on")
    parser.add_argument("--draws", type=int, default=10_000, help="noisy copies of each row")
    parser.add_argument("--rows", type=int, default=360, help="test rows that are attacked and certified")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="append the rows to the results")
    options = parser.parse_args()

    import zoo
    from zoo.evaluate import robustness

    def keep(name: str, row: dict[str, object]) -> None:
        if options.keep:
            append(name, row)
        else:
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)

    overrides = {"epochs": options.epochs} if options.epochs else {}
    common = {"model": options.model, "data": "digits", "seed": options.seed}
    limits = tuple(sorted({*options.epsilons, LIMIT}))
    scores = {}
    with tempfile.TemporaryDirectory() as folder:

        def trained(adversarial: str) -> object:
            out = Path(folder) / (adversarial.replace(":", "-") or "plain")
            return zoo.train(
                options.model,
                data="digits",
                out=out,
                seed=options.seed,
                adversarial=adversarial,
                quiet=True,
                **overrides,
            )

        for adversarial in ("", f"fgsm:{LIMIT:g}", f"pgd:{LIMIT:g}"):
            run = trained(adversarial)
            found = robustness.attacked(run, epsilons=limits, steps=options.steps, rows=options.rows)
            for finding in found.findings:
                print(f"doubt: {adversarial or 'plain'}: {finding}")
            for epsilon in limits:
                keep(
                    "robustness",
                    {
                        **common,
                        "epochs": run.recipe.epochs,
                        "trained_on": adversarial or "plain",
                        "train_seconds": round(run.metrics["seconds"], 1),
                        "rows": found.rows,
                        "epsilon": epsilon,
                        "steps": options.steps,
                        "accuracy": round(found.clean.score, 4),
                        **{kind: round(found.score(kind, epsilon).score, 4) for kind in found.kinds},
                        "worst_low": round(found.score("worst", epsilon).low, 4),
                        "worst_high": round(found.score("worst", epsilon).high, 4),
                        "doubts": len(found.findings),
                    },
                )
            scores[adversarial] = found.clean.score, found.score("worst", LIMIT).score

        run = trained(f"gaussian:{options.sigma:g}")
        radii = (0.0, 16.0, 32.0, RADIUS, 96.0, 128.0, 144.0)
        found = robustness.certified(run, sigmas=(options.sigma,), radii=radii, draws=options.draws, rows=options.rows)
        [kind] = found.kinds
        for point in found.curve(kind):
            keep(
                "robustness_certificates",
                {
                    **common,
                    "epochs": run.recipe.epochs,
                    "sigma": options.sigma,
                    "draws": options.draws,
                    "alpha": found.settings["alpha"],
                    "rows": found.rows,
                    "accuracy": round(found.clean.score, 4),
                    "abstained": round(next(iter(found.settings["abstained"].values())), 4),
                    "radius": point.strength,
                    "certified": round(point.score.score, 4),
                    "certified_low": round(point.score.low, 4),
                    "certified_high": round(point.score.high, 4),
                    "seconds": round(found.seconds, 1),
                },
            )

    (clean, broken), (price, hard) = scores[""], scores[f"pgd:{LIMIT:g}"]
    share = (hard - broken) / (clean - broken) if clean > broken else 1.0
    certain = found.score(kind, RADIUS).score
    print(f"at epsilon {LIMIT:g}: {clean:.2%} -> {broken:.2%} under attack; trained on PGD {price:.2%} -> {hard:.2%}")
    missed = {
        f"adversarial training wins back {WON_BACK:.0%} of what the attack takes: {share:.0%}": share < WON_BACK,
        f"at most {PRICE:g} points on unchanged rows: {100 * (clean - price):.1f}": 100 * (clean - price) > PRICE,
        f"certified accuracy of {CERTAIN:.0%} at radius {RADIUS:g}: {certain:.1%}": certain < CERTAIN,
    }
    for target, failed in missed.items():
        print(f"{'missed' if failed else 'met'}: {target}")
    return int(any(missed.values()))


if __name__ == "__main__":
    sys.exit(main())
