"""An explanation as one page: nothing from elsewhere, readable by day, by night, and without seeing the colours."""

import base64
import io
from collections.abc import Iterator
from html import escape
from typing import Any

import numpy as np

PARTS = 100  # rows of a table of figures, the ones that count most
REGIONS = 4  # an image's figures are told by so many rows and columns of regions
STRETCHES = 10  # and a series' by so many stretches of time

_STYLE = """
:root { --ground: #f4f5f3; --card: #fff; --text: #1d2422; --quiet: #5b6663; --line: #d9dedb; --for: #c2272d; --against: #2166ac;
  --most: 62%; --warn: #8a4b08; --warn-ground: #fdf1e0; color-scheme: light dark;
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #141817; --card: #1d2321; --text: #e7ecea; --quiet: #9eaaa6; --line: #35403d; --for: #ff7468;
    --against: #63b0f4; --most: 48%; --warn: #f5c07a; --warn-ground: #33260f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 58rem; background: var(--ground); color: var(--text); }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 0 0 .2rem; }
p { margin: .3rem 0; } .quiet, figcaption, caption { color: var(--quiet); font-size: .9rem; }
article, section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1.1rem 1.2rem; margin: 1rem 0; }
figure { margin: .6rem 0; } img { display: block; width: 100%; height: auto; border-radius: .3rem; }
.warn { background: var(--warn-ground); color: var(--warn); border-radius: .4rem; padding: .5rem .8rem; }
.key span, .words span { border-radius: .3rem; padding: .12rem .3rem; border-bottom: 2px solid transparent; }
.key span { color: var(--text); }
.words { line-height: 2.1; font-size: 1.08rem; margin: .6rem 0; overflow-wrap: anywhere; }
.f { background: color-mix(in srgb, var(--for) calc(var(--s) * var(--most)), transparent); }
.a { background: color-mix(in srgb, var(--against) calc(var(--s) * var(--most)), transparent); }
.words .strong.f, .key .f { border-bottom-color: var(--for); }
.words .strong.a, .key .a { border-bottom: 2px dashed var(--against); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; } caption { text-align: left; padding: .2rem 0; }
th, td { text-align: left; padding: .2rem .5rem .2rem 0; border-bottom: 1px solid var(--line); font-weight: normal; vertical-align: middle; }
thead th { color: var(--quiet); font-size: .88rem; } .n { text-align: right; white-space: nowrap; }
.grid th { white-space: nowrap; }
.bars th { min-width: 5.5rem; max-width: 16rem; overflow-wrap: break-word; } .bars td.track { width: 45%; padding: 0 .5rem; }
.track div { position: relative; height: 1.05rem; } .track i { position: absolute; top: 0; bottom: 0; border-radius: .15rem; min-width: 1px; }
.track .for { background: var(--for); } .track .against { background: var(--against); }
.track b { position: absolute; top: -.25rem; bottom: -.25rem; width: 1px; background: var(--quiet); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.2rem; margin: .5rem 0; } dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } pre { white-space: pre-wrap; margin: 0; } summary { cursor: pointer; margin-top: .5rem; } details[open] summary { margin-bottom: .4rem; }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; } .bars { font-size: .92rem; } .bars td.track { width: 26%; padding: 0 0 0 .4rem; } .bars .track div { min-width: 2.5rem; } .n { white-space: normal; } }
"""


def page(explanation: Any, rows: int = 4) -> str:
    """The page of an explanation's first rows.

    Raises:
        ValueError: `rows` is below 1, or the explanation was read without its inputs.
    """
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got rows={rows}")
    if not explanation.inputs:
        raise ValueError(
            "the explanation was read without its inputs, so it cannot be shown; write it with inputs=True"
        )
    shown = min(rows, len(explanation))
    heading = f"Why {explanation.name} answers as it does"
    partial = (
        ""
        if explanation.complete
        else '<p class="warn">The time budget ended it: these are the best figures so far.</p>'
    )
    body = [
        f"<header><h1>{escape(heading)}</h1>",
        f'<p class="quiet">{escape(explanation.method)}: {escape(explanation.why)}</p>{partial}</header>',
        "<main>",
        *(_article(explanation, row) for row in range(shown)),
        _trust(explanation),
        "</main>",
    ]
    more = len(explanation) - shown
    if more:
        body.insert(-2, f'<p class="quiet">{more} more rows are explained and not shown here.</p>')
    return _document(heading, "\n".join(body))


def _document(heading: str, body: str) -> str:
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(heading)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _article(explanation: Any, row: int) -> str:
    """One row: the answer in words, the input with its colours, and the figures."""
    start = ""
    if explanation.base is not None:
        total = float(explanation.attributions[row].sum())
        base = float(explanation.base[row])
        start = (
            f"{explanation.unit} {explanation.amount(base)} with everything left out, {_signed(total)} by what is there: "
            f"{explanation.amount(base + total)}."
        )
    return (
        f'<article aria-labelledby="row{row}"><h2 id="row{row}">{escape(explanation.answer(row))}</h2>'
        f'<p class="quiet">{escape(start)}</p>{_KINDS[explanation.kind](explanation, row)}</article>'
    )


def _table(explanation: Any, row: int) -> str:
    from zoo.explain.pictures.tables import cells

    given = cells(explanation, row)
    values = explanation.attributions[row]
    named = [
        (column, _value(given[at]) if at < len(given) else "", float(values[at]))
        for at, column in enumerate(explanation.columns)
    ]
    errors = None if explanation.standard_error is None else explanation.standard_error[row]
    return _bars(named, errors, ("column", "value"), explanation.unit)


def _bars(named: list[tuple[str, str, float]], errors: np.ndarray | None, heads: tuple[str, str], unit: str) -> str:
    """A table with a bar in each row, largest first."""
    order = sorted(range(len(named)), key=lambda at: -abs(named[at][2]))[:PARTS]
    low = min(0.0, *(named[at][2] for at in order)) if order else 0.0
    high = max(0.0, *(named[at][2] for at in order)) if order else 0.0
    span = max(high - low, 1e-12)
    zero = -low / span
    lines = []
    for at in order:
        name, value, share = named[at]
        left, wide = (zero, share / span) if share >= 0 else (zero + share / span, -share / span)
        side = "for" if share >= 0 else "against"
        spread = "" if errors is None or np.isnan(errors[at]) else f" ± {1.96 * errors[at]:.2g}"
        bar = f'<i class="{side}" style="left:{100 * left:.1f}%;width:{100 * wide:.1f}%"></i><b style="left:{100 * zero:.1f}%"></b>'
        middle = f"<td>{escape(value)}</td>" if heads[1] else ""
        lines.append(
            f'<tr><th scope="row">{escape(name).replace("_", "_<wbr>")}</th>{middle}<td class="n">{_signed(share)}{spread}</td>'
            f'<td class="track" aria-hidden="true"><div>{bar}</div></td></tr>'
        )
    rest = len(named) - len(order)
    note = f" The {rest} smallest are left out." if rest else ""
    interval = "" if errors is None or np.isnan(errors).all() else "; ± is a 95 % interval of the sampling"
    middle = f'<th scope="col">{heads[1]}</th>' if heads[1] else ""
    return (
        f'<table class="bars"><caption>Contribution to the {escape(unit)}, largest first; plus speaks for the answer, '
        f"minus against it{interval}.{note}</caption>"
        f'<thead><tr><th scope="col">{heads[0]}</th>{middle}<th scope="col" class="n">contribution</th>'
        f'<td aria-hidden="true"></td></tr></thead><tbody>{"".join(lines)}</tbody></table>'
    )


def _text(explanation: Any, row: int) -> str:
    from zoo.explain.pictures.texts import words

    values, read = explanation.parts(row), words(explanation, row)
    limit = max(float(np.abs(values).max(initial=0)), explanation.rounding(row), 1e-12)
    return _coloured(read, values, explanation.unit, limit) + _details(
        _bars([(word, "", float(value)) for word, value in zip(read, values, strict=True)],
              None if explanation.standard_error is None else explanation.standard_error[row],
              ("word", ""), explanation.unit)
    )  # fmt: skip


def _coloured(read: tuple[str, ...], values: np.ndarray, unit: str, limit: float) -> str:
    """A text whose words lie on the colour of their contribution, strong ones underlined as well."""
    spans = []
    for word, value in zip(read, values, strict=True):
        share = min(abs(float(value)) / limit, 1.0)
        kind = ("f" if value >= 0 else "a") + (" strong" if share >= 0.25 else "")
        spans.append(
            f'<span class="{kind}" style="--s:{share:.2f}" title="{_signed(float(value))}">{escape(word)}</span>'
        )
    key = '<span class="f" style="--s:1">speaks for it</span> <span class="a" style="--s:1">speaks against it</span>'
    return (
        f'<p class="words">{" ".join(spans)}</p>'
        f'<p class="key quiet">{key} full colour: {_signed(limit)[1:]} of {escape(unit)}</p>'
    )


def _drawn(explanation: Any, row: int, table: str) -> str:
    """The picture for a bright and a dark page, and its figures as a table."""
    from zoo.explain.pictures import assemble, chosen
    from zoo.explain.pictures.theme import DARK, LIGHT

    sources = []
    for theme in (LIGHT, DARK):
        figure = assemble(explanation, [row], chosen(explanation.kind, None), theme, [])
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=130, facecolor=theme.ground)
        sources.append(f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}")
    alt = f"{explanation.answer(row)}: the input with what speaks for the answer in red and against it in blue; the table below has the figures"
    return (
        f'<figure><picture><source srcset="{sources[1]}" media="(prefers-color-scheme: dark)">'
        f'<img src="{sources[0]}" alt="{escape(alt)}"></picture></figure>{_details(table)}'
    )


def _image(explanation: Any, row: int) -> str:
    from zoo.explain.pictures.images import flat

    values = flat(explanation, row)
    heads = ["left", *[""] * (REGIONS - 2), "right"]
    sides = ["top", *[""] * (REGIONS - 2), "bottom"]
    cells = [
        [float(part.sum()) for part in np.array_split(band, REGIONS, axis=1)]
        for band in np.array_split(values, REGIONS)
    ]
    return _drawn(
        explanation, row, _grid(f"Sum of the contributions by region, {explanation.unit}", heads, sides, cells)
    )


def _series(explanation: Any, row: int) -> str:
    from zoo.explain.pictures.series import channel_values

    values = channel_values(explanation, row)  # (time, channels)
    parts = np.array_split(np.arange(len(values)), min(STRETCHES, len(values)))
    times = explanation.about["times"][row] if "times" in explanation.about else np.arange(len(values))
    heads = [f"{times[part[0]]:.4g} – {times[part[-1]]:.4g}" for part in parts]
    names = explanation.columns or tuple(f"channel {at}" for at in range(values.shape[1]))
    sides = list(names) if len(names) == values.shape[1] else ["all channels"]
    cells = [[float(values[part, channel].sum()) for part in parts] for channel in range(values.shape[1])]
    what = "seconds" if "times" in explanation.about else "steps"
    return _drawn(
        explanation,
        row,
        _grid(f"Sum of the contributions by stretch of time in {what}, {explanation.unit}", heads, sides, cells),
    )


def _graph(explanation: Any, row: int) -> str:
    from zoo.explain.pictures.graphs import pairs_of

    values, kind = explanation.parts(row), explanation.axes[1]
    if explanation.names:
        names = list(explanation.names[row])
    elif kind == "edges":
        names = [f"{one} – {other}" for one, other in pairs_of(explanation, row).tolist()]
    else:
        names = [str(at) for at in range(len(values))]
    numbers = kind == "nodes" and any(name != str(at) for at, name in enumerate(names))
    named = [
        (name, str(at) if numbers else "", float(value))
        for at, (name, value) in enumerate(zip(names, values, strict=False))
    ]
    errors = None if explanation.standard_error is None else explanation.standard_error[row]
    return _drawn(explanation, row, _bars(named, errors, (kind[:-1], "number" if numbers else ""), explanation.unit))


def _pair(explanation: Any, row: int) -> str:
    sides = [explanation.side(index) for index in range(len(explanation.sides))]
    if any(side.kind != "text" for side in sides):
        tables = "".join(
            f"<h3>{which} side</h3>{_figures(side, row)}"
            for which, side in zip(("First", "Second"), sides, strict=True)
        )
        return _drawn(explanation, row, tables)
    from zoo.explain.pictures.texts import words

    limit = max(float(np.abs(explanation.attributions[row]).max()), explanation.rounding(row), 1e-12)
    texts = "".join(_coloured(words(side, row), side.parts(row), side.unit, limit) for side in sides)
    named = [(word, which, float(value)) for which, side in zip(("first", "second"), sides, strict=True)
             for word, value in zip(words(side, row), side.parts(row), strict=True)]  # fmt: skip
    return texts + _details(_bars(named, None, ("word", "side"), explanation.unit))


def _figures(side: Any, row: int) -> str:
    """The table of one side of a pair, without its picture."""
    if side.kind == "table":
        return _table(side, row)
    values = side.attributions[row]
    values = (
        values.reshape(len(values), -1) if side.kind != "image" else values.reshape(*values.shape[:2], -1).sum(axis=-1)
    )
    bands = np.array_split(values, min(REGIONS, len(values)))
    cells = [
        [float(part.sum()) for part in np.array_split(band, min(REGIONS, values.shape[1]), axis=1)] for band in bands
    ]
    heads = [f"part {at + 1}" for at in range(len(cells[0]))]
    return _grid(
        f"Sum of the contributions by part, {side.unit}", heads, [f"part {at + 1}" for at in range(len(cells))], cells
    )


_KINDS = {
    "image": _image,
    "detection": _image,
    "segmentation": _image,
    "table": _table,
    "text": _text,
    "series": _series,
    "graph": _graph,
    "pair": _pair,
}


def _details(table: str) -> str:
    return f'<details><summary>The figures</summary><div class="scroll">{table}</div></details>'


def _grid(caption: str, heads: list[str], sides: list[str], cells: list[list[float]]) -> str:
    """Sums by place, each on its colour."""
    limit = max((abs(value) for line in cells for value in line), default=0.0) or 1e-12
    lines = []
    for side, line in zip(sides, cells, strict=True):
        shown = "".join(
            f'<td class="n {"f" if value >= 0 else "a"}" style="--s:{abs(value) / limit:.2f}">{_signed(value)}</td>'
            for value in line
        )
        lines.append(f'<tr><th scope="row">{escape(side)}</th>{shown}</tr>')
    top = "".join(f'<th scope="col" class="n">{escape(head)}</th>' for head in heads)
    return (
        f'<table class="grid"><caption>{escape(caption)}</caption>'
        f"<thead><tr><td></td>{top}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def _trust(explanation: Any) -> str:
    """How far the figures can be trusted, and what they were made with."""
    told = [f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in _figures_of_trust(explanation)]
    made = {**_flat(explanation.settings), "background SHA-256": explanation.background_sha256 or "none needed"}
    settings = [
        f"<dt>{escape(str(key).replace('_', ' '))}</dt><dd>{escape(str(value))}</dd>" for key, value in made.items()
    ]
    return (
        f'<section aria-labelledby="trust"><h2 id="trust">How far to trust it</h2><dl>{"".join(told)}</dl>'
        f"<details><summary>Settings</summary><dl>{''.join(settings)}</dl></details></section>"
    )


def _figures_of_trust(explanation: Any) -> Iterator[tuple[str, str]]:
    if explanation.additivity_error is None:
        yield "additivity", f"the values of {explanation.method} are not meant to add up to the answer"
    else:
        yield (
            "additivity error",
            f"{explanation.additivity_error:.1e}: base and contributions miss the answer by this at most",
        )
    if explanation.standard_error is not None:
        yield "standard error", f"{explanation.sampling()}; the contributions were sampled"
    found = explanation.faithfulness or {}
    for what, doing in (("deletion", "taken out"), ("insertion", "put in")):
        if what in found:
            random = found.get(f"{what}_random")
            spread = found.get(f"{what}_random_spread")
            wide = "" if spread is None else f" ± {spread:.3f}"
            against = "" if random is None else f"; {random:.3f}{wide} in random orders"
            better = "lower" if what == "deletion" else "higher"
            yield (
                what,
                f"{found[what]:.3f} on average while parts are {doing}, most important first{against} ({better} is better)",
            )
    unknown = (explanation.settings.get("quality") or {}).get("stability")
    if explanation.stability is None and isinstance(unknown, str):
        yield "stability", f"not known: {unknown}"
    if explanation.stability is not None:
        yield (
            "stability",
            f"{explanation.stability:.2f} rank correlation when the input changes a little (1 is the same)",
        )
    yield "cost", f"{explanation.calls:,} model rows in {explanation.seconds:.2f} s"


def _flat(settings: dict[str, Any], before: str = "") -> dict[str, str]:
    """Settings within settings as `outer inner`."""
    found = {}
    for key, value in settings.items():
        inner = isinstance(value, dict)
        found.update(_flat(value, f"{before}{key} ") if inner else {f"{before}{key}": _setting(value)})
    return found


def _setting(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, np.ndarray | list | tuple) and len(value) > 12:
        return f"{len(value)} values"
    return str(value)


def _value(value: Any) -> str:
    if value == "" or (isinstance(value, float) and np.isnan(value)):
        return "missing"
    return value if isinstance(value, str) else f"{value:.4g}".replace("-", "−")


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")
