"""Attributions from gradients: integrated gradients, expected gradients, gradient times input.

All of them explain the answer a client gets, a probability or a value in the target's unit, and work on what the model
reads behind the preprocessing; a table's one-hot features are added up to their column, an embedding's to its token.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.explain.network import Attributed, Network
from zoo.explain.probes import Arrays
from zoo.explain.subject import Raw, Subject

TOLERANCE = 1e-3  # of the output range
STEPS = 500  # gradients per row at most
SAMPLES = 200  # gradients per row; what shap's GradientExplainer takes
_NODES = 5  # of each interval's quadrature; odd, so that one of them is the middle, where it may be cut


def gradient_times_input(subject: Subject, raw: Raw, targets: np.ndarray, *, seed: int = 0, clock: Any) -> Attributed:
    """The answer's gradient times the distance from the background's mean, (batch, ...).

    It is the first step of the Taylor series from the input: exact for linear models, and adds up to nothing elsewhere.

    Source: Shrikumar, Greenside, Shcherbina & Kundaje 2016 (arXiv:1605.01713), section 2.
    """
    network = Network(subject, raw, "gradient_times_input")
    points, given = network.start(raw)
    background = network.background(points, raw)
    _, slopes = network.gradients()(points, given, targets)
    values = [slope * (x - b) for slope, x, b in zip(slopes, points, background, strict=True)]
    return Attributed(network.spread(values), None, {"unit": network.unit}, calls=network.calls)


def integrated_gradients(
    subject: Subject,
    raw: Raw,
    targets: np.ndarray,
    *,
    seed: int = 0,
    clock: Any,
    tolerance: float = TOLERANCE,
    steps: int = STEPS,
) -> Attributed:
    """Gradients integrated along the straight line from the background's mean to the input, (batch, ...).

    The line is cut where the integral misses the answer's change, which is known, until what is missed is small enough:
    steep places get many gradients, flat ones few.

    Args:
        subject: with a Keras model.
        raw: rows to explain.
        targets: index of the explained output (batch,).
        seed: not used, nothing is drawn.
        clock: stops between rounds; the first is always finished.
        tolerance: error of the sum allowed, as a share of the output range: 1 for probabilities, else the largest
            change among the rows.
        steps: gradients per row at most.

    Raises:
        ValueError: the model has no gradients, or `tolerance` or `steps` cannot be met at all.

    Source: Sundararajan, Taly & Yan 2017 (arXiv:1703.01365), section 3; completeness is its proposition 1.
    """
    if not tolerance > 0 or steps < 2 + _NODES:
        raise ValueError(
            f"integrated_gradients needs a tolerance above 0 and at least {2 + _NODES} steps, "
            f"got tolerance={tolerance!r}, steps={steps!r}"
        )
    network = Network(subject, raw, "integrated_gradients")
    points, given = network.start(raw)
    background = [np.broadcast_to(b, x.shape) for b, x in zip(network.background(points, raw), points, strict=True)]
    gradients, rows = network.gradients(), len(targets)
    ends, _ = gradients(
        [np.concatenate(pair) for pair in zip(points, background, strict=True)],
        [np.concatenate([values, values]) for values in given],
        np.concatenate([targets, targets]),
    )
    answers, base = ends[:rows], ends[rows:]
    gaps = [x - b for x, b in zip(points, background, strict=True)]
    change = float(np.abs(answers - base).max())
    allowed = tolerance * (1.0 if network.bounded or not change else change)
    lines = [[_Piece(0.0, 1.0, base[row], answers[row])] for row in range(rows)]
    spent, open_ = np.full(rows, 2), [(row, line[0]) for row, line in enumerate(lines)]
    complete = True
    abscissas, weights = np.polynomial.legendre.leggauss(_NODES)
    while open_:
        place = np.repeat([row for row, _ in open_], _NODES)
        along = np.concatenate([p.low + (p.high - p.low) * (abscissas + 1) / 2 for _, p in open_])
        moved = [b[place] + _column(along, b) * gap[place] for b, gap in zip(background, gaps, strict=True)]
        values, slopes = gradients(moved, [g[place] for g in given], targets[place])
        for number, (row, piece) in enumerate(open_):
            own = slice(number * _NODES, (number + 1) * _NODES)
            share = (piece.high - piece.low) / 2 * weights
            piece.found = [np.tensordot(share, s[own], 1) * gap[row] for s, gap in zip(slopes, gaps, strict=True)]
            piece.middle = float(values[own][_NODES // 2])
            piece.error = piece.end - piece.start - sum(float(part.sum()) for part in piece.found)
            spent[row] += _NODES
        missed = [sum(abs(piece.error) for piece in line) for line in lines]
        wanting = [row for row in range(rows) if missed[row] > allowed]
        clock.tell(rows - len(wanting), rows)
        if clock.over and wanting:
            complete = False
            break
        open_ = []
        for row in wanting:
            room = int(steps - spent[row]) // (2 * _NODES)
            complete &= room > 0
            for piece in _worst(lines[row], missed[row] - allowed / 2)[:room]:
                halves = piece.halves()
                lines[row].remove(piece)
                lines[row] += halves
                open_ += [(row, half) for half in halves]
    parts = [np.stack([sum(piece.found[k] for piece in line) for line in lines]) for k in range(len(points))]
    total = sum(part.reshape(rows, -1).sum(axis=1) for part in parts)
    settings = {
        "gradients": int(spent.max()),
        "intervals": max(len(line) for line in lines),
        "tolerance": tolerance,
        "completeness_error": float(np.abs(answers - base - total).max()),
        "unit": network.unit,
    }
    return Attributed(network.spread(parts), base, settings, other_unit(network, answers), network.calls, complete)


@dataclass(eq=False)
class _Piece:
    """A part of a line from the background to a row, between two shares of the way, with the answers at its ends."""

    low: float
    high: float
    start: float
    end: float
    middle: float = 0.0
    error: float = 0.0
    found: Any = ()

    def halves(self) -> list["_Piece"]:
        cut = (self.low + self.high) / 2
        return [_Piece(self.low, cut, self.start, self.middle), _Piece(cut, self.high, self.middle, self.end)]


def _worst(line: list[_Piece], excess: float) -> list[_Piece]:
    """The fewest pieces that together miss at least so much, the worst first."""
    ranked = sorted(line, key=lambda piece: -abs(piece.error))
    reached = np.cumsum([abs(piece.error) for piece in ranked])
    return ranked[: int(np.searchsorted(reached, excess)) + 1]


def expected_gradients(
    subject: Subject,
    raw: Raw,
    targets: np.ndarray,
    *,
    seed: int = 0,
    clock: Any,
    samples: int = SAMPLES,
    adjust: bool = True,
) -> Attributed:
    """Integrated gradients averaged over background rows, each seen from a few points of its line, (batch, ...).

    The points are spread evenly over the way (one in each of `samples` equal parts), evenly over the background rows,
    and come in pairs that mirror each other. What a sample of contributions sums to is known on average, as the change
    of the answer: each contribution is corrected by how it moves with that sum (a control variate), which makes it less
    noisy and the sum right. `sampling_error` in the settings is what was missed before.

    Args:
        subject: with a Keras model.
        raw: rows to explain.
        targets: index of the explained output (batch,).
        seed: of the points.
        clock: stops between batches; the first is always finished.
        samples: gradients per row; background rows beyond half as many are left out.
        adjust: whether to correct the contributions by their sum.

    Raises:
        ValueError: the model has no gradients, or fewer than 2 samples.

    Source: Erion, Janizek, Sturmfels, Lundberg & Lee 2021 (arXiv:1906.10670), section 3; Lundberg & Lee 2017 for the
        relation to Shapley values; Owen, "Monte Carlo theory, methods and examples" 2013, chapters 8.2, 8.9 and 10.1,
        for the sampling.
    """
    if samples < 2:
        raise ValueError(f"expected_gradients needs at least 2 samples, got samples={samples!r}")
    network = Network(subject, raw, "expected_gradients")
    points, given = network.start(raw)
    references = network.references(points, raw)
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(references[0].shape[1])[: samples // 2]
    references = [values[:, chosen] for values in references]
    rows, count = len(targets), len(chosen)
    answers = _answers(network, points, given, targets)
    base = base_of(network, references, given, targets)
    who, along = _paired(count, samples, generator)
    gradients, sums = network.gradients(), _Sums()
    block, used = max(1, network.chunk // rows), 0
    while used < len(who) and not (used and clock.over):
        some = slice(used, used + block)
        size = len(who[some])
        place = np.repeat(np.arange(rows), size)
        moved, gaps = [], []
        for x, b in zip(points, references, strict=True):
            start = b[place % len(b), np.tile(who[some], rows)]
            gaps.append(x[place] - start)
            moved.append(start + _column(np.tile(along[some], rows), x) * gaps[-1])
        _, slopes = gradients(moved, [g[place] for g in given], targets[place])
        found = network.spread([slope * gap for slope, gap in zip(slopes, gaps, strict=True)])
        sums.add(found.reshape(rows, size, *found.shape[1:]))
        used += size
        clock.tell(used, len(who))
    change = answers - base
    settings = {
        "samples": used,
        "background_rows": count,
        "sampling_error": float(np.abs(change - sums.whole / used).max()),
        "unit": network.unit,
    }
    return Attributed(
        sums.adjusted(change) if adjust else sums.mean,
        base,
        settings,
        other_unit(network, answers),
        network.calls,
        used == len(who),
        sums.error(adjust),
    )


def _paired(count: int, samples: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Which background row each sample starts from and how far along its line it is, in a random order of pairs."""
    repeats = max(1, samples // (2 * count))
    half = repeats * count
    orders = np.stack([generator.permutation(count) for _ in range(repeats)])  # of the rows among equal parts
    parts = (np.arange(repeats)[:, None] * count + orders).ravel()
    along = (parts + generator.random(half)) / (2 * half)
    who = np.tile(np.arange(count), repeats)
    order = generator.permutation(half)
    return np.repeat(who[order], 2), np.stack([along[order], 1 - along[order]], axis=1).ravel()


class _Sums:
    """Moments of contributions (rows, samples, ...) and of each sample's sum of them, added up over the samples."""

    def __init__(self) -> None:
        self.count = 0
        self.first = self.second = self.cross = self.whole = self.whole_squared = np.zeros(())

    def add(self, found: np.ndarray) -> None:
        whole = found.reshape(*found.shape[:2], -1).sum(axis=2, dtype=np.float64)
        if not self.count:
            self.first, self.second, self.cross = (np.zeros((len(found), *found.shape[2:])) for _ in range(3))
            self.whole, self.whole_squared = np.zeros(len(found)), np.zeros(len(found))
        self.count += found.shape[1]
        self.first += found.sum(axis=1, dtype=np.float64)
        self.second += np.square(found, dtype=np.float64).sum(axis=1)
        self.cross += np.einsum("rs...,rs->r...", found, whole)
        self.whole += whole.sum(axis=1)
        self.whole_squared += np.square(whole).sum(axis=1)

    @property
    def mean(self) -> np.ndarray:
        return self.first / self.count

    def slope(self) -> np.ndarray:
        """How a contribution moves with the sum of its sample: covariance over variance, 0 where the sum is steady."""
        shape = (-1, *[1] * (self.first.ndim - 1))
        whole = self.whole / self.count
        variance = self.whole_squared / self.count - whole**2
        together = self.cross / self.count - self.mean * whole.reshape(shape)
        steady = variance <= 1e-12 * np.maximum(whole**2, 1e-12)
        return np.where(steady.reshape(shape), 0.0, together / np.where(steady, 1.0, variance).reshape(shape))

    def adjusted(self, change: np.ndarray) -> np.ndarray:
        """Means, moved along with their sum until that is what it has to be."""
        missed = change - self.whole / self.count
        return self.mean + self.slope() * missed.reshape(-1, *[1] * (self.first.ndim - 1))

    def error(self, adjust: bool) -> np.ndarray:
        """Standard error of each contribution as if samples were drawn independently, which is no less than it is."""
        variance = self.second / self.count - self.mean**2
        if adjust:
            shape = (-1, *[1] * (self.first.ndim - 1))
            whole = self.whole_squared / self.count - (self.whole / self.count) ** 2
            variance = variance - self.slope() ** 2 * whole.reshape(shape)
        return np.sqrt(np.maximum(variance, 0) / self.count)


def _answers(network: Network, points: Arrays, given: Arrays, targets: np.ndarray) -> np.ndarray:
    return network.answers(points, given)[np.arange(len(targets)), targets]


def base_of(network: Network, references: Arrays, given: Arrays, targets: np.ndarray) -> np.ndarray:
    """Mean answer to the references (rows,), each in the place of what is differentiated in a row."""
    rows = np.arange(len(targets))
    shared, count = references[0].shape[:2]
    if shared == 1 and len(network.points) == len(given) and all(layer is None for _, layer in network.points):
        own = [values[0] for values in references]
        return network.answers(own, own).mean(axis=0)[targets]  # nothing of a row stays
    found = []
    for row in rows:
        around = [np.repeat(values[row : row + 1], count, axis=0) for values in given]
        found.append(network.answers([values[row % shared] for values in references], around).mean(axis=0))
    return np.stack(found)[rows, targets]


def _column(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Numbers (rows,) that multiply rows of this shape, float32."""
    return values.reshape(-1, *[1] * (like.ndim - 1)).astype(np.float32)


def other_unit(network: Network, answers: np.ndarray) -> np.ndarray | None:
    return None if network.unit == "answer" else answers
