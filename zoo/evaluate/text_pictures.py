"""Pictures of texts: hidden tokens by how common they are, and texts with the labels of their words."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from zoo.data import tagging
from zoo.data.targets import NOTHING

_COLOUR, _OTHER = "#3182bd", "#e6550d"
_GROUPS = 8
_KINDS = ("#a6cee3", "#b2df8a", "#fdbf6f", "#cab2d6", "#fb9a99", "#ffff99", "#d9d9d9", "#8dd3c7")
_TEXTS, _LINE = 8, 112  # texts of a picture, and characters of a line


def by_commonness(tokens: np.ndarray, found: np.ndarray, path: str | Path) -> Path:
    """Share of hidden tokens that were found, from the commonest to the rarest; each bar has about as many places.

    Args:
        tokens: numbers of the hidden tokens `(places,)`.
        found: whether each was found, bool `(places,)`.
        path: of the picture.
    """
    kinds, own, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    rank = np.empty(len(kinds), int)
    rank[order] = np.arange(len(kinds))
    ranks = rank[own]
    edges = np.unique(np.quantile(ranks, np.linspace(0, 1, _GROUPS + 1)).astype(int))
    group = np.clip(np.searchsorted(edges, ranks, "right") - 1, 0, max(0, len(edges) - 2))
    figure = Figure(figsize=(6.4, 3.8), dpi=110, layout="constrained")
    axis = figure.subplots()
    for place in np.unique(group):
        inside = group == place
        axis.bar(place, found[inside].mean(), 0.8, color=_COLOUR)
    names = []
    for place in np.unique(group):
        low, high = ranks[group == place].min() + 1, ranks[group == place].max() + 1
        names.append(f"{low}" if low == high else f"{low}-{high}")
    axis.set_xticks(np.unique(group), names, fontsize=8)
    axis.axhline(found.mean(), color="grey", linewidth=1, linestyle="--", label="of all")
    axis.legend(fontsize=8)
    axis.set(xlabel="tokens, the commonest first", ylabel="share found", ylim=(0, 1))
    axis.set_title(f"{found.sum():,} of {len(found):,} hidden tokens found", fontsize=11)
    axis.grid(alpha=0.3, axis="y")
    figure.savefig(path)
    return Path(path)


def marked(report, path: str | Path) -> Path:
    """Some texts, those with the most wrong words first; marked parts are coloured as answered, what is wrong is framed.

    Args:
        report: `zoo.evaluate.Report` of a token classification, with its texts.
        path: of the picture.
    """
    kinds = tagging.kinds_of(report.signature.labels)
    rows = [*report.worst(_TEXTS // 2), *range(len(report.y))]
    rows = list(dict.fromkeys(int(row) for row in rows))[:_TEXTS]
    texts = [] if report.x is None else [str(text) for text in report.x["text"][rows]]
    lines = [
        _laid_out(text, own) for text, own in zip(texts, tagging.words(report.signature.preprocess, texts), strict=True)
    ]
    height = sum(1 + max((line for line, _, _ in own), default=0) + 0.7 for own in lines) + 1.5
    figure = Figure(figsize=(9, max(1.5, 0.3 * height)), dpi=110, layout="constrained")
    axis = figure.subplots()
    axis.set(xlim=(0, _LINE), ylim=(height, 0))
    axis.axis("off")
    for kind, name in enumerate(kinds):
        axis.text(
            kind * _LINE / max(4, len(kinds)),
            0.4,
            name,
            fontsize=9,
            bbox={"color": _KINDS[kind % len(_KINDS)], "pad": 2},
        )
    axis.text(_LINE, 0.4, "framed: another label was right", fontsize=9, ha="right", color=_OTHER)
    top = 1.8
    for row, text, own in zip(rows, texts, lines, strict=True):
        for line, left, word in own:
            said, truth = int(report.answers[row][word.place, 0]), int(report.y[row][word.place])
            style = {
                "facecolor": _KINDS[(said - 1) // 2 % len(_KINDS)] if said else "white",
                "pad": 1.2,
                "linewidth": 0,
            }
            if truth not in (said, NOTHING):
                style |= {"edgecolor": _OTHER, "linewidth": 1.4}
            shown = text[word.start : word.end].strip().replace("$", r"\$")
            axis.text(left, top + line, shown, fontsize=8.5, family="monospace", va="center", bbox=style)
        top += max((line for line, _, _ in own), default=0) + 1.7
    figure.savefig(path)
    return Path(path)


def _laid_out(text: str, words: list[tagging.Word]) -> list[tuple[int, float, tagging.Word]]:
    """Line and first column of each word, with lines broken where they are full."""
    found, line, begin = [], 0, 0
    for word in words:
        if word.end - begin > _LINE:
            line, begin = line + 1, word.start
        found.append((line, word.start - begin, word))
    return found
