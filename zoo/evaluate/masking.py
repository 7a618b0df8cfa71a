"""Whether an attack works: signs that a model's gradient is hidden rather than the model robust.

The signs are those of Athalye, Carlini & Wagner (ICML 2018, arXiv:1802.00420, section 3.1) and of Carlini et al., "On
Evaluating Adversarial Robustness" (arXiv:1902.06705, 2019): the loss does not rise, one step does more harm than many,
random changes more than the gradient, a stronger attacker less than a weaker one, and one without limit does not win.
"""

import numpy as np

from zoo.evaluate.findings import Finding


def still(losses, limits):
    """Attacks that do not even raise the loss they climb.

    Args:
        losses: by method, mean loss before and after at each limit.
        limits: epsilons.
    """
    found = []
    for method, pairs in losses.items():
        if method in ("fgsm", "pgd"):
            for epsilon, (before, after) in zip(limits, pairs, strict=True):
                if after <= before:
                    found.append(
                        Finding(
                            method,
                            f"at epsilon {epsilon:g} the mean loss goes from {before:.4g} to {after:.4g}",
                            "the gradient leads nowhere: it vanishes or is hidden; do not take the score for robustness",
                        )
                    )
                    break
    return found


def doubts(points, rows):
    """Signs that an attack fails rather than the model stands.

    Args:
        points: `zoo.evaluate.robustness.Point` by method, at the same strengths.
        rows: that were attacked.
    """
    scores = {kind: [(point.strength, point.score.score) for point in curve] for kind, curve in points.items()}
    found = []
    slack = max(2, 0.01 * rows) / rows  # what a draw may decide
    weaker = {
        ("random", "pgd"): "random changes do more harm than the gradient",
        ("random", "margin"): "random changes do more harm than the gradient",
        ("fgsm", "pgd"): "one step does more harm than many",
    }
    for (simple, strong), what in weaker.items():
        if simple in scores and strong in scores:
            for (epsilon, easy), (_, hard) in zip(scores[simple], scores[strong], strict=True):
                if easy < hard - slack:
                    found.append(
                        Finding(
                            strong,
                            f"{what}: at epsilon {epsilon:g} {simple} leaves {easy:.3f} right, {strong} {hard:.3f}",
                            "the gradient is masked or the climb too short; raise steps and restarts, read the row worst",
                        )
                    )
                    break
    if "margin" in scores and "pgd" in scores:
        gaps = [
            (hard - easy, epsilon) for (epsilon, easy), (_, hard) in zip(scores["margin"], scores["pgd"], strict=True)
        ]
        gap, epsilon = max(gaps)
        if gap > max(slack, 0.05):
            found.append(
                Finding(
                    "pgd",
                    f"at epsilon {epsilon:g} the margin breaks {gap:.3f} more rows than the loss",
                    "the softmax is saturated, so the loss has no gradient there; read margin and worst",
                )
            )
    for method in {"pgd", "margin"} & set(scores):
        for (weak, before), (strong, after) in zip(scores[method], scores[method][1:], strict=False):
            if after > before + slack:
                found.append(
                    Finding(
                        method,
                        f"epsilon {strong:g} leaves {after:.3f} right, the smaller {weak:g} only {before:.3f}",
                        "a stronger attacker cannot do worse; raise steps and restarts",
                    )
                )
                break
    return found


def unbounded(attacker, answer, x, y, methods, steps, norm):
    """An attacker who may change everything must always win."""
    strongest = next((method for method in ("margin", "pgd") if method in methods), None)
    if strongest is None:
        return []
    step = attacker.signature.preprocess
    if step.kind == "table" and step.categories:  # which may decide, and cannot be changed
        return []
    limit = 255.0 if step.kind == "image" else 100.0
    if norm == "l2":
        limit *= float(np.sqrt(np.prod(step.shape)))
    found = attacker(x, y, strongest, limit, steps=steps, restarts=1)
    left = float(np.mean(answer(found.raw).argmax(axis=-1) == y))
    if left <= 0.05:
        return []
    return [
        Finding(
            strongest,
            f"with no limit at all it leaves {left:.3f} of the rows right",
            "the attack fails, so the scores say nothing of the model; look for a part without a useful gradient",
        )
    ]
