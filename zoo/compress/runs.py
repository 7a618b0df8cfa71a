"""Shrink a run: prune its model, fine-tune it on the same splits, write a new run folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.compress.channels import prune_channels
from zoo.compress.costs import macs as multiply_accumulates
from zoo.compress.magnitude import MagnitudePruning, compressed_bytes, sparsity, zeros_report
from zoo.evaluate.report import defined
from zoo.training import Run, check_folder, load_data, tune
from zoo.training.fit import fit


def shrink(
    run: Run,
    out: str | Path,
    *,
    channels: float | None = None,
    macs: float | None = None,
    zeros: float | None = None,
    importance: str | Callable[[Any], Any] = "magnitude",
    scope: str = "layer",
    round_to: int = 1,
    steps: int = 1,
    epochs: int = 10,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **overrides: Any,
) -> Run:
    """A smaller version of a run's model, fine-tuned with the run's own recipe.

    Args:
        run: a finished run; it stays as it is.
        out: folder of the new run.
        channels: share of the channels to remove, in (0, 1): fewer parameters, smaller file, lower latency.
        macs: in place of `channels`, multiply-accumulates to keep, as a share in (0, 1] or as a number above 1.
        zeros: share of the weights to set to zero, in (0, 1): a smaller compressed file, the same latency.
        importance: how channels are ranked, see `prune_channels`; "taylor" takes the run's own training rows.
        scope: "layer" or "global", see `prune_channels`.
        round_to: multiple of channels that stays in each layer.
        steps: in how many equal parts channels are removed, each followed by its share of the epochs.
        epochs: epochs of fine-tuning, all steps together.
        resume: go on with the killed run in `out`, given the same arguments; steps before the last one are repeated.
        overwrite: replace a run folder that is there.
        quiet: no progress bar and no lines.
        overrides: settings of `zoo.recipes.Recipe` for the fine-tuning.

    Returns:
        The new run, with its scores. Those of `zeros` also hold the share of all kernels that is zero, and the bytes of
        all weights after deflate, before and after: what zeros save, since the latency stays.

    Raises:
        TypeError: `run` is no run.
        ValueError: not exactly one of `channels`, `macs` and `zeros` is given, a share is out of range, there are fewer
            epochs than steps, the run was never trained, or `out` is its own folder or has no run to resume.
        FileExistsError: the folder holds a run already.
    """
    if not hasattr(run, "recipe"):
        raise TypeError(
            f"shrink takes a run, got a {type(run).__name__}; read one from its folder with zoo.load(folder)"
        )
    if sum(share is not None for share in (channels, macs, zeros)) != 1:
        raise ValueError(
            "shrink takes either channels or macs or zeros, a share in (0, 1); channels=0.5 removes half of the channels"
        )
    if not run.history:
        raise ValueError("the run was never trained, so no weight matters more than another; train it first")
    if not 1 <= steps <= max(epochs, 1) or (zeros is not None and steps > 1):
        raise ValueError(
            f"steps must be at least 1 and at most epochs={epochs!r}, and 1 for zeros, which has a schedule of its own; "
            f"got steps={steps!r}"
        )
    check_folder(out, resume=resume, overwrite=overwrite, source=run)
    target = {"out": out, "resume": resume, "overwrite": overwrite, "quiet": quiet}
    settings = {"epochs": epochs, **overrides}
    if zeros is not None:
        pruning = MagnitudePruning(zeros)
        # an earlier epoch may have the better score only because it has fewer zeros, so the last one counts
        small = tune(run, **target, callbacks=(pruning,), keep="last", **settings)
        small.metrics["zeros"] = sparsity(small.model)[-1].share
        small.metrics["compressed_bytes"] = compressed_bytes(small.model)
        small.metrics["compressed_bytes_before"] = compressed_bytes(run.model)
        (Path(out) / "metrics.json").write_text(json.dumps(defined(small.metrics), indent=2) + "\n", encoding="utf-8")
        if not quiet:
            print(zeros_report(small.model, run.model))
        return small

    splits = run.data or load_data(run)
    options = {"importance": importance, "scope": scope, "round_to": round_to}
    if importance == "taylor":
        options["data"] = splits
    whole = multiply_accumulates(run.model)
    if macs is not None and macs > 1:
        macs /= whole
    small = prune_channels(run.model, channels, macs=macs, **options)  # refuses what cannot be reached before training
    if steps > 1:
        small = run.model
        recipe = run.recipe.override(**{**overrides, "precision": "float32"})
        for step in range(1, steps + 1):
            if channels is not None:  # the same share of what is left each time
                small = prune_channels(small, 1 - (1 - channels) ** (1 / steps), **options)
            else:
                small = prune_channels(small, macs=max(2, round(whole * macs ** (step / steps))), **options)
            part = epochs * step // steps - epochs * (step - 1) // steps
            if step < steps:
                if not quiet:
                    print(
                        f"step {step} of {steps}: {multiply_accumulates(small) / whole:.0%} of the arithmetic is left"
                    )
                fit(small, splits, recipe.override(epochs=part), quiet=quiet)
        settings["epochs"] = part
    return tune(run, small, **target, **settings)
