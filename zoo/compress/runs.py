"""Shrink a run: prune its model, fine-tune it on the same splits, write a new run folder."""

from pathlib import Path
from typing import Any

from zoo.compress.channels import prune_channels
from zoo.compress.magnitude import MagnitudePruning
from zoo.training import Run, tune


def shrink(
    run: Run,
    out: str | Path,
    *,
    channels: float | None = None,
    zeros: float | None = None,
    epochs: int = 10,
    overwrite: bool = False,
    quiet: bool = False,
    **overrides: Any,
) -> Run:
    """A smaller version of a run's model, fine-tuned with the run's own recipe.

    Args:
        run: a finished run; it stays as it is.
        out: folder of the new run.
        channels: share of the channels to remove, in (0, 1): fewer parameters, smaller file, lower latency.
        zeros: share of the weights to set to zero, in (0, 1): a smaller compressed file, the same latency.
        epochs: epochs of fine-tuning.
        overwrite: replace a run folder that is there.
        quiet: no progress bar and no lines.
        overrides: settings of `zoo.recipes.Recipe` for the fine-tuning.

    Returns:
        The new run, with its scores.

    Raises:
        TypeError: `run` is no run.
        ValueError: neither or both of `channels` and `zeros` are given, or a share is out of range.
    """
    if not hasattr(run, "recipe"):
        raise TypeError(
            f"shrink takes a run, got a {type(run).__name__}; read one from its folder with zoo.load(folder)"
        )
    if (channels is None) == (zeros is None):
        raise ValueError(
            "shrink takes either channels or zeros, a share in (0, 1); channels=0.5 removes half of the channels"
        )
    settings = {"epochs": epochs, **overrides}
    if channels is not None:
        small = prune_channels(run.model, channels)
        return tune(run, small, out=out, overwrite=overwrite, quiet=quiet, **settings)
    pruning = MagnitudePruning(zeros)
    # an earlier epoch may have the better score only because it has fewer zeros, so the last one counts
    return tune(run, out=out, overwrite=overwrite, quiet=quiet, callbacks=(pruning,), keep="last", **settings)
