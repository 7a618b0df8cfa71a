"""Graphs with their nodes or edges coloured, laid out by forces between them.

Fruchterman & Reingold, "Graph Drawing by Force-directed Placement", Software: Practice and Experience 21 (1991)
1129-1164.
"""

from typing import Any

import numpy as np
from matplotlib.collections import LineCollection

from zoo.explain.pictures.theme import Theme, bare, full, heading, literal, reading, scale, short
from zoo.explain.players import edges_of

STYLES = ("graph",)
MOST_NAMES = 60  # nodes that are named, the ones that count most


def height(explanation: Any, row: int, width: float, style: str) -> float:
    """Inches that a row needs."""
    return 4.6


def pairs_of(explanation: Any, row: int) -> np.ndarray:
    """Edges of a row's graph as node indices, (edges, 2), in the order of edge attributions."""
    edges = explanation.about.get("edges", explanation.inputs.get("edges"))
    if edges is not None:
        found = np.asarray(edges[row])
        if found.shape[-1] != 2:
            found = found.T
        return found[(found >= 0).all(axis=1)].astype(int)
    links = explanation.inputs.get("adjacency")
    return np.zeros((0, 2), int) if links is None else edges_of(links[row])[0]


def panel(figure: Any, explanation: Any, row: int, width: float, style: str, theme: Theme) -> None:
    """Draw one row."""
    axis = figure.subplots()
    edges, values = pairs_of(explanation, row), explanation.parts(row)
    of_edges = explanation.axes[1] == "edges"
    count = max(_nodes(explanation, row), int(edges.max(initial=-1)) + 1)
    places = layout(count, edges)
    bare(axis, theme)
    for spine in axis.spines.values():
        spine.set_visible(False)
    limit = full(explanation, row, values, 1.0)
    lines = LineCollection(list(places[edges]), zorder=1, capstyle="round")  # (edges, 2 ends, 2 coordinates)
    if of_edges:
        shares = values[: len(edges)]
        order = np.argsort(np.abs(shares))  # strong ones above
        strength = np.abs(shares[order]) / limit
        lines.set_segments(list(places[edges[order]]))
        lines.set_linewidths(1.0 + 5 * strength)
        shades = theme.colours(0.5 + 0.5 * np.clip(shares[order] / limit, -1, 1))
        lines.set_colors(shades)
        axis.add_collection(LineCollection(list(places[edges]), colors=theme.line, linewidths=1.3, zorder=0))
    else:
        lines.set_linewidths(1.3)
        lines.set_colors(theme.line)
    axis.add_collection(lines)
    sizes = np.full(count, min(420.0, 9000.0 / max(count, 1)))
    strength = (
        np.zeros(count) if of_edges else np.r_[np.abs(values) / limit, np.zeros(max(count - len(values), 0))][:count]
    )
    shades = [theme.ground if of_edges else theme.colours(0.5)] * count
    if not of_edges:
        shades = theme.colours(0.5 + 0.5 * np.clip(np.r_[values, np.zeros(count)][:count] / limit, -1, 1))
    axis.scatter(*places.T, s=sizes * (0.75 + 0.6 * strength), c=shades, edgecolors=theme.quiet, linewidths=1, zorder=2)
    names = None if of_edges or not explanation.names else explanation.names[row]
    if count <= MOST_NAMES or names is not None:
        for at in np.argsort(-strength, kind="stable")[:MOST_NAMES]:
            axis.text(
                *places[at],
                literal(short(names[at] if names is not None and at < len(names) else str(at), 10)),
                ha="center",
                va="center",
                fontsize=8 if count <= 30 else 6.5,
                color=theme.ground if strength[at] > 0.6 else theme.ink,
                zorder=3,
            )
    axis.margins(0.08)
    axis.set_aspect("equal", adjustable="datalim")
    parts = "edges" if of_edges else "nodes"
    told = f"model says {explanation.answer(row)}: {reading(explanation, values, limit, parts)}"
    heading(figure, told, width, theme)
    scale(figure, axis, limit, f"{explanation.unit}, per {parts[:-1]}", theme, shrink=0.9)


def _nodes(explanation: Any, row: int) -> int:
    if explanation.axes[1] == "nodes":
        return len(explanation.parts(row))
    nodes = explanation.inputs.get("nodes")
    return 0 if nodes is None else len(nodes[row])


def layout(count: int, edges: np.ndarray, rounds: int = 200) -> np.ndarray:
    """Places of nodes (count, 2) within the unit square: all push each other away, edges pull their ends together.

    The same graph always gets the same places. `Source:` section "The algorithm" of the paper, forces k^2 / d and d^2 /
    k.
    """
    if count < 2:
        return np.full((count, 2), 0.5)
    turn = np.arange(count) * 2.399963  # golden angle, radians: neighbours in number start apart, none on another
    places = 0.5 + 0.5 * np.sqrt((np.arange(count) + 0.5) / count)[:, None] * np.stack([np.cos(turn), np.sin(turn)], 1)
    links = edges[edges[:, 0] != edges[:, 1]] if len(edges) else edges
    ideal = np.sqrt(1 / count)
    for heat in np.linspace(0.12, 0.002, rounds if count <= 300 else rounds // 4):
        gap = places[:, None] - places[None]  # (count, count, 2)
        distance = np.maximum(np.linalg.norm(gap, axis=-1), 1e-4)
        moves = (gap * (ideal**2 / distance**2)[..., None]).sum(axis=1)
        if len(links):
            pull = places[links[:, 0]] - places[links[:, 1]]
            pull *= (np.linalg.norm(pull, axis=-1) / ideal)[:, None]
            np.add.at(moves, links[:, 0], -pull)
            np.add.at(moves, links[:, 1], pull)
        moves -= (places - places.mean(axis=0)) * 0.6  # parts without edges between them stay in view
        length = np.maximum(np.linalg.norm(moves, axis=1, keepdims=True), 1e-12)
        places = places + moves / length * np.minimum(length, heat)
    _, _, turned = np.linalg.svd(places - places.mean(axis=0), full_matrices=False)
    places = places @ (turned.T if len(turned) == 2 else np.eye(2))  # longest across
    low, high = places.min(axis=0), places.max(axis=0)
    return (places - low) / max(float((high - low).max()), 1e-12)
