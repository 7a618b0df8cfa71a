"""Owen values: Shapley's sum over those orders of the players that keep the branches of a tree together.

An inner node of the tree stands for all players below it. In a context S, a set of whole branches beside the path to
the node, the node as a whole adds D(S) = v(S + both children) - v(S), and its children differ by
d(S) = v(S + left) - v(S + right). Half of D + d is the left child's, half of D - d the right child's. The Owen value
of a node is the mean over all contexts, of which there are 2 to the power of its depth; they are expanded one by one,
where it pays, and the sums stay exact whichever are.
"""

import math
from functools import lru_cache

import numpy as np

from zoo.explain.clock import Clock
from zoo.explain.players import Game
from zoo.explain.solving import Asked, Solved

PARTITION_EVALS = 500
ROUND = 32  # evaluations between two looks at where the next ones pay; later a fifth of those made
NEAREST = 1e-4  # distance from the background, of the largest; sums of smaller ones would drown in rounding
# Measured on a LeNet and a ResNet-18, on digits, as the error against 100 random contexts of every node:
PRIOR = 0.25  # contexts' worth of belief that children differ as their distances from the background do
SPLIT = 0.3  # square of what the children of a node that was never expanded differ by beyond that, relative to it
SCATTER = 0.1  # of d / D, squared, as long as nothing else is known
CAUTION = 3.0  # times the scatter of d / D that is expected of contexts that were not expanded


def partition(game: Game, *, max_evals: int | None, seed: int, clock: Clock) -> Solved:
    """Owen values by best-first expansion.

    A round expands the contexts that promise the largest drop of the squared error, all in one call of the model. What
    the contexts of a node that are not expanded would say is extrapolated: there, d is taken to be the same share of D
    as in those that were. A node that was never expanded is shared among its players by their distance from the
    background, as in a linear model of equal weights.

    Args:
        game: with a grid or a linkage as its tree.
        max_evals: evaluations at most, 500 if None.
        seed: not used; nothing is drawn.
        clock: stops between two rounds.

    Returns:
        Values that add up exactly. Their standard errors are estimates from the scatter of d / D between contexts, None
        once every context was expanded.

    Raises:
        ValueError: the game has no tree, the tree does not fit, or `max_evals` is below 2.

    Source: Owen, "Values of Games with a Priori Unions", 1977, applied at every branching of the tree; the recursion in
    contexts is that of Lundberg's partition explainer, whose contexts that are not expanded share evenly.
    """
    asked = Asked(game, max_evals, clock)
    trivial = asked.trivial()
    if trivial is not None:
        return trivial
    limit = max_evals or PARTITION_EVALS
    search = _Search(_Tree(linkage_of(game), game.distance), asked)
    while asked.evaluations + 2 <= limit and search.open and not clock.over:
        wanted = min(limit - asked.evaluations, max(ROUND, asked.evaluations // 5))
        search.expand(max(1, clock.portion(wanted) // 2), limit)
    values, error = search.result()
    everything = not search.open
    complete = everything or asked.evaluations + 2 > limit
    settings = {"nodes": len(search.tree.start), "nodes_expanded": int((search.count > 0).sum())}
    return asked.solved(values, None if everything else error, complete, **settings)


def linkage_of(game: Game) -> np.ndarray:
    """The tree of a game as a linkage matrix (players - 1, 2 or more).

    Raises:
        ValueError: there is none, or it is not one of these players.
    """
    if game.tree is None:
        raise ValueError("partition needs players with an order, these have none; use method='permutation'")
    if isinstance(game.tree, tuple):
        rows, columns = game.tree
        if rows * columns != game.players:
            raise ValueError(f"the tree is a grid of {rows} x {columns}, the game has {game.players} players")
        return halves(rows, columns)
    tree = np.asarray(game.tree)
    if tree.ndim != 2 or tree.shape[0] != game.players - 1 or tree.shape[1] < 2:
        raise ValueError(f"a tree of {game.players} players is a ({game.players - 1}, 4) linkage, got {tree.shape}")
    joined = np.sort(tree[:, :2].ravel())
    if not np.array_equal(joined, np.arange(2 * game.players - 2)):
        raise ValueError("the tree must join every player and every branch but the last exactly once")
    return tree


@lru_cache(maxsize=8)
def halves(rows: int, columns: int) -> np.ndarray:
    """Tree over the tiles of a grid that halves the longer side, as a linkage matrix (tiles - 1, 4) as of scipy.

    It is shared between calls and cannot be written to.
    """
    links: list[tuple[float, float, float, float]] = []

    def cut(top: int, bottom: int, left: int, right: int) -> int:
        height, width = bottom - top, right - left
        if height == width == 1:
            return top * columns + left
        if height >= width:
            middle = top + height // 2
            parts = cut(top, middle, left, right), cut(middle, bottom, left, right)
        else:
            middle = left + width // 2
            parts = cut(top, bottom, left, middle), cut(top, bottom, middle, right)
        links.append((*parts, height * width, height * width))
        return rows * columns + len(links) - 1

    cut(0, rows, 0, columns)
    found = np.array(links, np.float64).reshape(-1, 4)
    found.flags.writeable = False
    return found


class _Tree:
    """Inner nodes above the players that vary, parents first; the players of a node are a stretch of `leaf`.

    Attributes:
        leaf: places of the varying players in the order of the tree (leaves,).
        far: their distances from the background, as shares of the largest, in that order (leaves,).
        left, right: distances of the two children's players together (nodes,).
        start, middle, end: stretches [start, middle) and [middle, end) of the two children (nodes,).
        child: node numbers of the children, -1 for a single player (nodes, 2).
        levels: node numbers, one array for each depth.
    """

    def __init__(self, links: np.ndarray, distance: np.ndarray):
        players, varying = len(distance), distance > 0
        branches = [(-1, -1)] * players + [tuple(pair) for pair in links[:, :2].astype(int).tolist()]
        count = varying.astype(int).tolist()
        for left, right in branches[players:]:
            count.append(count[left] + count[right])
        place = (np.cumsum(varying) - 1).tolist()  # among those that vary
        leaf = [0] * count[-1]
        start, middle, end, child, depth = [], [], [], [], []
        waiting = [(len(count) - 1, 0, -1, 0, 0)]  # cluster, first leaf, parent, which child, depth
        while waiting:
            cluster, first, parent, side, deep = waiting.pop()
            left, right = branches[cluster]
            while cluster >= players and not (count[left] and count[right]):
                cluster = left if count[left] else right  # the other branch does not vary
                left, right = branches[cluster]
            if cluster < players:
                leaf[first] = place[cluster]
                continue
            node = len(start)
            if parent >= 0:
                child[parent][side] = node
            waiting.append((right, first + count[left], node, 1, deep + 1))
            waiting.append((left, first, node, 0, deep + 1))
            start.append(first)
            middle.append(first + count[left])
            end.append(first + count[cluster])
            child.append([-1, -1])
            depth.append(deep)
        self.leaf, self.start, self.middle, self.end = map(np.array, (leaf, start, middle, end))
        self.child, depths = np.array(child), np.array(depth)
        own = distance[varying].astype(np.float64)
        self.far = np.maximum(own / own.max(), NEAREST)[self.leaf]
        self.left, self.right = self.stretches(self.far)
        self.levels = np.split(np.argsort(depths, kind="stable"), np.cumsum(np.bincount(depths))[:-1])

    def stretches(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums of leaves' values (leaves,) over the left and the right child of each node (nodes,)."""
        sums = np.concatenate([[0], np.cumsum(values)])
        return sums[self.middle] - sums[self.start], sums[self.end] - sums[self.middle]


class _Search:
    """Contexts known so far, and what follows from those that were expanded.

    A context is a row of the table: its node, its weight in the mean, v(S), v(S + node), and the number of the packed
    mask S. `difference` holds d once it is expanded, NaN before.
    """

    def __init__(self, tree: _Tree, asked: Asked):
        self.tree, self.asked = tree, asked
        self.node, self.mask = np.array([0]), np.array([0])
        self.weight, self.low, self.high = np.ones(1), np.array([asked.base]), np.array([asked.full])
        self.difference = np.full(1, np.nan)
        self.masks = np.packbits(np.zeros((1, asked.players), bool), axis=1)
        left, right = tree.stretches(tree.far**2)
        self.spread = (left / tree.left**2 + right / tree.right**2) / 4  # players' squared error for one unit in d
        self.expected = (tree.left - tree.right) / (tree.left + tree.right)  # d / D of a linear model
        self.weigh()

    @property
    def open(self) -> bool:
        """Whether any context is left to expand."""
        return bool(np.isnan(self.difference).any())

    def weigh(self) -> None:
        """Values of all nodes, and the scatter of d / D."""
        tree, nodes = self.tree, len(self.tree.start)
        done = ~np.isnan(self.difference)
        node, w, d = self.node[done], self.weight[done], self.difference[done]
        whole = self.high - self.low  # D
        big = whole[done]

        def summed(values: np.ndarray, of: np.ndarray = node) -> np.ndarray:
            return np.bincount(of, values, minlength=nodes)

        self.count = np.bincount(node, minlength=nodes)
        square = summed(w * big * big)
        share = np.divide(summed(w * d * big), square, out=np.zeros(nodes), where=square > 0)
        self.share = (np.clip(share, -1, 1) * self.count + PRIOR * self.expected) / (self.count + PRIOR)
        expanded, differing = summed(w * big), summed(w * d)
        self.unknown = summed((self.weight * np.abs(whole))[~done], self.node[~done])
        self.value, self.delta = np.zeros(nodes), np.zeros(nodes)
        self.value[0] = self.asked.difference
        for level in tree.levels:
            rest = self.value[level] - expanded[level]
            self.delta[level] = differing[level] + self.share[level] * rest
            self.unknown[level] = np.maximum(self.unknown[level], np.abs(rest))
            for side, sign in ((0, 1), (1, -1)):
                below = tree.child[level, side]
                inner = below >= 0
                self.value[below[inner]] = (self.value[level] + sign * self.delta[level])[inner] / 2
        several = self.count > 1
        missed = summed(w * (d - self.share[node] * big) ** 2)
        missed = missed[several] * self.count[several] / (self.count[several] - 1)
        self.scatter = (missed.sum() + SCATTER * square[0]) / max(square[several].sum() + square[0], 1e-300)

    def expand(self, most: int, planned: int) -> None:
        """Expand up to `most` contexts, at most one of a node, in one call."""
        tree = self.tree
        waiting = np.flatnonzero(np.isnan(self.difference))
        size = self.weight[waiting] * np.abs(self.high - self.low)[waiting]
        order = np.lexsort((-size, self.node[waiting]))
        first = np.unique(self.node[waiting][order], return_index=True)[1]
        best, size = waiting[order][first], size[order][first]  # the largest context of each node
        node = self.node[best]
        unknown = self.unknown[node]
        part = np.divide(size, unknown, out=np.zeros(len(best)), where=unknown > 0)
        again = CAUTION * self.scatter * unknown**2 * np.minimum(part, 1)
        gain = np.where(self.count[node] == 0, SPLIT * self.value[node] ** 2, again) * self.spread[node]
        chosen = best[np.argsort(-gain, kind="stable")[:most]]

        node = self.node[chosen]
        context = np.unpackbits(self.masks[self.mask[chosen]], axis=1, count=self.asked.players).view(bool)
        place = np.arange(self.asked.players)
        middle = tree.middle[node, None]
        left = context | ((place >= tree.start[node, None]) & (place < middle))
        right = context | ((place >= middle) & (place < tree.end[node, None]))
        both = np.concatenate([left, right])
        masks = np.empty_like(both)
        masks[:, tree.leaf] = both
        answers = self.asked.ask(masks, planned).reshape(2, -1)
        self.difference[chosen] = answers[0] - answers[1]

        number = len(self.masks) + np.arange(len(both)).reshape(2, -1)
        self.masks = np.concatenate([self.masks, np.packbits(both, axis=1)])
        weight, low, high, base = self.weight[chosen] / 2, self.low[chosen], self.high[chosen], self.mask[chosen]
        rows = []
        for side in (0, 1):
            below, own, other = tree.child[node, side], answers[side], answers[1 - side]
            inner = below >= 0
            rows.append([a[inner] for a in (below, weight, low, own, base)])  # without the other child
            rows.append([a[inner] for a in (below, weight, other, high, number[1 - side])])  # with it
        new = [np.concatenate(column) for column in zip(*rows, strict=True)]
        self.node, self.weight, self.low, self.high, self.mask = (
            np.concatenate(pair)
            for pair in zip((self.node, self.weight, self.low, self.high, self.mask), new, strict=True)
        )
        self.difference = np.concatenate([self.difference, np.full(len(new[0]), np.nan)])
        self.weigh()

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Values and standard errors of the varying players, in their own order."""
        tree = self.tree
        values, error = np.zeros(self.asked.players), np.zeros(self.asked.players)
        seen = self.count > 0
        square = (self.value[seen] ** 2).sum()
        beyond = ((self.delta - self.expected * self.value)[seen] ** 2).sum()
        split = min(beyond / square, 1.0) if square > 0 else 1.0
        doubt = np.zeros(len(seen))  # variance of the nodes' values
        reached = np.zeros(len(seen), bool)
        reached[0] = True
        for node in np.concatenate(tree.levels).tolist():
            if not reached[node]:
                continue
            start, middle, end = tree.start[node], tree.middle[node], tree.end[node]
            if not seen[node]:
                part = tree.far[start:end] / (tree.left[node] + tree.right[node])
                values[start:end] = self.value[node] * part
                depth = math.log2(end - start)
                own = self.value[node] ** 2 * ((1 + split) ** depth - 1)
                error[start:end] = math.sqrt(own + doubt[node]) * part
                continue
            fault = self.scatter * self.unknown[node] ** 2
            for side, sign, at in ((0, 1, start), (1, -1, middle)):
                below = tree.child[node, side]
                variance = ((1 + sign * self.share[node]) ** 2 * doubt[node] + fault) / 4
                if below >= 0:
                    reached[below], doubt[below] = True, variance
                else:
                    values[at] = (self.value[node] + sign * self.delta[node]) / 2
                    error[at] = math.sqrt(variance)
        placed, placed_error = np.empty_like(values), np.empty_like(error)
        placed[tree.leaf], placed_error[tree.leaf] = values, error
        return placed, placed_error
