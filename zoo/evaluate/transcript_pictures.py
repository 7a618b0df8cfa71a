"""Pictures of transcripts: loudness of the bands over time with the symbols that were read there; errors by length."""

from pathlib import Path

import numpy as np

from zoo.data.audio import lengths
from zoo.evaluate import transcripts

_COLOUR, _OTHER = "#3182bd", "#e6550d"


def shown(report, rows: list[int], path: str | Path) -> Path:
    """Of each row its frames, the likeliest symbol of each step with its probability, what was said and what was read.

    Args:
        report: `zoo.evaluate.Report` of recordings.
        rows: places in the split.
        path: of the picture.
    """
    from matplotlib.figure import Figure

    rows = rows[:8]
    columns = min(2, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(6.2 * columns, 2.7 * lines), dpi=110, layout="constrained")
    places = figure.subplots(2 * lines, columns, squeeze=False, height_ratios=[3, 2] * lines)
    for axis in places.ravel():
        axis.axis("off")
    step = report.signature.preprocess
    seconds = lengths(report.x["audio"][rows]) / step.rate
    for place, (row, end) in enumerate(zip(rows, seconds, strict=True)):
        line, column = divmod(place, columns)
        above, below = places[2 * line, column], places[2 * line + 1, column]
        told = report.signature.labels
        truth = transcripts.spelled(transcripts.symbols(report.y[row]), told)
        best, sure = report.answers[row].T
        answer = transcripts.spelled(transcripts.collapsed(best), told)
        frames = _frames(report.x["audio"][row], step)
        above.imshow(frames.T, origin="lower", aspect="auto", cmap="magma", extent=(0, end, 0, frames.shape[1]))
        above.axis("on")
        above.set(xticks=[], ylabel="mel band", xlim=(0, end))
        verdict = "right" if truth == answer else f"read: {answer or 'nothing'}"
        above.set_title(f"row {row}, said: {truth}\n{verdict}", fontsize=9, loc="left")
        times = np.arange(len(best)) * step.samples / step.rate / len(best)
        _letters(below, times, best.astype(int), sure, told, end)
    figure.savefig(path)
    return Path(path)


def _letters(axis, times, best, sure, labels, end) -> None:
    """Probabilities of what is read at each step, with the letter where one begins."""
    spoken = (best != transcripts.BLANK) & (times < end)
    axis.axis("on")
    axis.vlines(times[spoken], 0, sure[spoken], color=_COLOUR, linewidth=2)
    begins = spoken & np.concatenate([[True], best[1:] != best[:-1]])
    for time, symbol, height in zip(times[begins], best[begins], sure[begins], strict=True):
        axis.text(time, height + 0.04, labels[symbol].replace(" ", "␣"), ha="center", va="bottom", fontsize=9)
    axis.set(xlim=(0, end), ylim=(0, 1.35), yticks=[0, 1], xlabel="seconds", ylabel="probability")
    axis.spines[["top", "right"]].set_visible(False)


def _frames(audio: np.ndarray, step) -> np.ndarray:
    """Frames of one recording, (frames, bands), every 10 ms."""
    import keras

    from zoo.layers.speech import LogMel

    known = audio[~np.isnan(audio)]
    layer = LogMel(step.rate, mels=40)
    frames, _ = layer(np.pad(known, (0, max(0, layer.size - len(known))))[None])
    return np.maximum(keras.ops.convert_to_numpy(frames)[0], -12)


def by_length(report, path: str | Path) -> Path:
    """Share of wrong words and of wrong characters by the number of words in a recording."""
    from matplotlib.figure import Figure

    counted = transcripts.counted(report.y, report.answers[..., 0])
    words = counted["words"][:, 3].astype(int)
    groups = np.unique(words)
    if len(groups) > 12:
        edges = np.unique(np.quantile(words, np.linspace(0, 1, 9)).astype(int))
        groups, words = edges[:-1], edges[np.clip(np.searchsorted(edges, words, "right") - 1, 0, len(edges) - 2)]
    figure = Figure(figsize=(5.2, 3.6), dpi=110, layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(groups))
    for side, (unit, colour) in enumerate((("words", _COLOUR), ("characters", _OTHER))):
        rates = [_rate(counted[unit][words == group]) for group in groups]
        axis.bar(places + 0.4 * side - 0.2, rates, 0.38, color=colour, label=unit)
    axis.set_xticks(places, [f"{group}\n{(words == group).sum()} rows" for group in groups], fontsize=8)
    axis.set(xlabel="words in a recording", ylabel="errors / there are")
    axis.set_ylim(0, max(0.02, axis.get_ylim()[1]))
    axis.grid(alpha=0.3, axis="y")
    axis.legend(frameon=False, fontsize=9)
    figure.savefig(path)
    return Path(path)


def _rate(counted: np.ndarray) -> float:
    return float(counted[:, :3].sum() / max(1, counted[:, 3].sum()))
