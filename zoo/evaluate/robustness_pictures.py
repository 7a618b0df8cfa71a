"""Pictures of robustness: score against strength with intervals, and what the rows look like at each strength."""

from pathlib import Path

import numpy as np

from zoo.evaluate.pictures import _figure

_MOST_BARS = 30  # columns of a table
_WIDE = 3  # panels side by side
_PANEL = 2.9  # inches of a panel's height, without examples
_LEAST = 4  # places on an axis of strengths, so that the images below few of them are not huge
_HALF, _GAP = 0.45, 0.06  # half the width of an image and the gap below it, where places on the axis are 1 apart


def draw(found, path: str | Path) -> Path:
    """The picture of a `zoo.evaluate.robustness.Robustness`, by what it is about."""
    {"corruptions": _corruptions, "attacks": _attacks, "transformations": _bars, "certificates": _certificates}[
        found.what
    ](found, path)
    return Path(path)


def _corruptions(found, path):
    """A panel for each corruption: its curve, and below it one row at each strength; then a table's columns."""
    kinds = [kind for kind in found.kinds if kind != "without"]
    wide = min(_WIDE, len(kinds))
    high = -(-len(kinds) // max(wide, 1))
    width = 5.6 if wide == 1 else 4.3 * max(wide, 2)
    inner = width / max(wide, 1) - 0.6  # inches of a panel's axis
    strips = max((_inches(images[:, :1], inner) for images in found.examples.values()), default=0)
    columns = min(_MOST_BARS, len(found.curve("without")))
    heights = [(_PANEL + strips) * high, (0.9 + 0.2 * columns) * bool(columns)]
    figure = _figure(width, sum(heights))
    figure.suptitle(_title(found), fontsize=11)
    above, below = figure.subfigures(2, 1, height_ratios=[max(height, 1e-3) for height in heights])
    if columns:
        _without(below.subplots(), found)
    if not kinds:
        figure.savefig(path)
        return
    for kind, panel in zip(kinds, above.subfigures(high, wide, squeeze=False).ravel(), strict=False):
        curve = found.curve(kind)
        if kind in found.examples:
            axes, strip = panel.subplots(2, 1, height_ratios=(_PANEL - 0.8, strips))
            _strip(strip, found.examples[kind][:, :1])
        else:
            axes = panel.subplots()
        _line(axes, [point.score for point in curve], kind, marker="o")
        axes.axhline(found.clean.score, color="grey", linewidth=1, linestyle="--")
        _scale(axes, found)
        axes.set_xticks(range(len(curve)), [f"{point.strength:g}" for point in curve], fontsize=8)
        axes.set_xlim(_ends(len(curve)))
        axes.set_title(kind, fontsize=10)
        axes.set_xlabel(found.units[kind], fontsize=8)
    figure.savefig(path)


def _without(axes, found):
    """Scores without each column, the worst above."""
    points = sorted(found.curve("without"), key=lambda point: point.score.score)[:_MOST_BARS]
    places = range(len(points))
    scores = [point.score for point in points]
    gaps = [[s.score - s.low for s in scores], [s.high - s.score for s in scores]]
    axes.errorbar([s.score for s in scores], places, xerr=gaps, fmt="o", markersize=4, elinewidth=1, capsize=2)
    axes.axvline(found.clean.score, color="grey", linewidth=1, linestyle="--")
    axes.set_yticks(places, [point.label for point in points], fontsize=7)
    axes.set_ylim(len(points) - 0.4, -0.6)
    axes.grid(alpha=0.3)
    axes.set_title("without one column", fontsize=10)
    axes.set_xlabel(found.metric, fontsize=9)


def _attacks(found, path):
    """Curves of all attacks over the limit, and below them what the strongest made of some rows."""
    kinds = found.kinds
    limits = list(dict.fromkeys(point.strength for point in found.points))
    shown = next((found.examples[kind] for kind in ("pgd", "margin", "fgsm", "random") if kind in found.examples), None)
    strip = 0 if shown is None else _inches(shown, 5.9)
    figure = _figure(6.6, 4.4 + strip)
    if shown is None:
        axes = figure.subplots()
    else:
        axes, below = figure.subplots(2, 1, height_ratios=(3.6, strip))
        _strip(below, shown)
    for kind in kinds:
        style = (
            {"color": "black", "linestyle": "--", "marker": "."}
            if kind == "worst"
            else {"marker": "o", "markersize": 4}
        )
        _line(axes, [point.score for point in found.curve(kind)], kind, **style)
    axes.axhline(found.clean.score, color="grey", linewidth=1, label="unchanged")
    _scale(axes, found)
    axes.set_xticks(range(len(limits)), [f"{limit:g}" for limit in limits])
    axes.set_xlim(_ends(len(limits)))
    axes.set_xlabel(f"epsilon: {found.units['epsilon']}", fontsize=9)
    axes.set_title(f"under attack: {_title(found)}", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(path)


def _certificates(found, path):
    """Certified accuracy by radius, a curve for each sigma."""
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    for place, kind in enumerate(found.kinds):
        curve = found.curve(kind)
        radii, colour = [point.strength for point in curve], f"C{place}"
        axes.plot(radii, [point.score.score for point in curve], marker="o", markersize=4, color=colour, label=kind)
        axes.fill_between(
            radii, [p.score.low for p in curve], [p.score.high for p in curve], color=colour, alpha=0.15, linewidth=0
        )
    axes.axhline(found.clean.score, color="grey", linewidth=1, linestyle="--", label="not smoothed")
    _scale(axes, found)
    axes.set_ylabel("certified accuracy")
    axes.set_xlabel(f"radius: {found.units['radius']}", fontsize=9)
    axes.set_title(f"{_title(found)}, each with confidence {1 - found.settings['alpha']:g}", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(path)


def _bars(found, path):
    """Three bars for each transformation: rows unchanged, attacked unaware of it, attacked aware of it."""
    kinds = found.kinds
    figure = _figure(max(5.0, 1.6 + 0.95 * len(kinds)), 4.0)
    axes = figure.subplots()
    for place, (label, colour) in enumerate((("unchanged", "tab:grey"), ("unaware", "tab:blue"), ("aware", "tab:red"))):
        points = [
            (kinds.index(point.kind) + 0.27 * (place - 1), point.score)
            for point in found.points
            if point.label == label
        ]
        where, scores = [x for x, _ in points], [score for _, score in points]
        middle = [score.score for score in scores]
        gaps = [[s.score - s.low for s in scores], [s.high - s.score for s in scores]]
        named = label if label == "unchanged" else f"attacked, {label}"
        axes.bar(where, middle, 0.25, color=colour, alpha=0.8, label=named)
        axes.errorbar(where, middle, gaps, fmt="none", ecolor="black", elinewidth=1, capsize=2)
    axes.set_xticks(range(len(kinds)), kinds)
    _scale(axes, found)
    axes.set_title(f"{_title(found)}, epsilon {found.points[0].strength:g}", fontsize=10)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    figure.savefig(path)


def _line(axes, scores, label, **style):
    """A curve over places 0, 1, 2 … with its intervals as a band."""
    places = range(len(scores))
    (line,) = axes.plot(places, [score.score for score in scores], label=label, **style)
    lows, highs = [score.low for score in scores], [score.high for score in scores]
    axes.fill_between(places, lows, highs, color=line.get_color(), alpha=0.15, linewidth=0)


def _scale(axes, found):
    axes.set_ylabel(found.metric, fontsize=9)
    axes.grid(alpha=0.3)
    if found.metric == "accuracy":
        axes.set_ylim(-0.02, 1.04)


def _strip(axes, images):
    """Images `(strengths, count, height, width, channels)`, each column below its place on the axis above."""
    strengths, count = images.shape[:2]
    tall = _tall(images)
    for place, row in np.ndindex(strengths, count):
        image = images[place, row]
        top = -row * (tall + _GAP)
        axes.imshow(
            image[..., 0] if image.shape[-1] == 1 else image[..., :3],
            cmap="gray", vmin=0, vmax=255, interpolation="nearest",
            extent=(place - _HALF, place + _HALF, top - tall, top),
        )  # fmt: skip
    axes.set_xlim(_ends(strengths))
    axes.set_ylim(-count * (tall + _GAP), 0)
    axes.set_anchor("N")
    axes.axis("off")


def _tall(images):
    """Height of an image, where places are 1 apart."""
    return 2 * _HALF * images.shape[2] / images.shape[3]


def _ends(strengths):
    """Where an axis of so many strengths begins and ends."""
    middle, half = (strengths - 1) / 2, max(strengths, _LEAST) / 2
    return middle - half, middle + half


def _inches(images, width):
    """Height of a strip as wide as the axis above it."""
    return 1.1 * images.shape[1] * (_tall(images) + _GAP) * width / max(_LEAST, images.shape[0])


def _title(found):
    parts = Path(found.name).parts[-2:]  # of a bundle its name and version, else the folder's own name
    name = "/".join(parts if parts[-1].isdecimal() else parts[-1:])
    return f"{name}, {found.rows} {found.split} rows"
