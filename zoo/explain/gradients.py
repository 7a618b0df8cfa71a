"""Attributions from gradients: integrated gradients, expected gradients, gradient times input.

All of them explain the answer a client gets, a probability or a value in the target's unit, and work on what the model
reads behind the preprocessing; a table's one-hot features are added up to their column, an embedding's to its token.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.explain.network import Attributed, Network
from zoo.explain.probes import Arrays
from zoo.explain.subject import Raw, Subject

TOLERANCE = 1e-3  # of the output range
STEPS = 500  # gradients per row at most
SAMPLES = 200  # gradients per row; what shap's GradientExplainer takes
GOLDEN = (math.sqrt(5) - 1) / 2
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
    """Integrated gradients averaged over background rows, each row seen from points on the lines to them, (batch, ...).

    Background rows are taken in the order of their distance from the row, evenly, and the points that go with them lie on
    a lattice: near background rows are seen from points far apart, and each n-th part of the way has one point.

    How far a sample's background row is from the mean of all, and what its contributions sum to, are known on average:
    contributions are corrected by both (control variates), which makes them less noisy, their sum right, and linear
    models exact. `sampling_error` in the settings is what the sum missed before.

    Args:
        subject: with a Keras model.
        raw: rows to explain.
        targets: index of the explained output (batch,).
        seed: of the points.
        clock: stops between batches; the first is always finished.
        samples: gradients per row; background rows beyond twice as many are left out.
        adjust: whether to correct the contributions.

    Raises:
        ValueError: the model has no gradients, or fewer than 2 samples.

    Source: Erion, Janizek, Sturmfels, Lundberg & Lee 2021 (arXiv:1906.10670), section 3; Lundberg & Lee 2017 for the
        relation to Shapley values; Owen, "Monte Carlo theory, methods and examples" 2013, chapters 8.9 and 16, for
        control variates and lattices.
    """
    if samples < 2:
        raise ValueError(f"expected_gradients needs at least 2 samples, got samples={samples!r}")
    network = Network(subject, raw, "expected_gradients")
    points, given = network.start(raw)
    references = network.references(points, raw)
    chosen = np.sort(np.random.default_rng(seed).permutation(references[0].shape[1])[: 2 * samples])
    references = [values[:, chosen] for values in references]
    rows = len(targets)
    base = base_of(network, references, given, targets)
    means = [b.mean(axis=1) for b in references]
    who, along = _lattice(points, references, samples, seed)
    gradients, sums = network.gradients(), _Sums(rows)
    calls = math.ceil((1 + samples) / max(2, network.chunk // rows))
    block, used, change = math.ceil((1 + samples) / calls), 0, np.zeros(rows)
    while used < samples and not (used and clock.over):
        first = used == 0  # the rows themselves go with their first points
        some = slice(used, min(used + block - first, samples))
        place = np.repeat(np.arange(rows), some.stop - used)
        moved, gaps, offsets = [], [], []
        for x, b, mean in zip(points, references, means, strict=True):
            start = b[place % len(b), who[:, some].ravel()]
            gaps.append(x[place] - start)
            offsets.append(mean[place % len(b)] - start)
            moved.append(start + _column(along[:, some].ravel(), x) * gaps[-1])
        if first:
            place = np.concatenate([place, np.arange(rows)])
            moved = [np.concatenate(pair) for pair in zip(moved, points, strict=True)]
        answers, slopes = gradients(moved, [g[place] for g in given], targets[place])
        if first:
            change = answers[-rows:] - base
            slopes = [slope[:-rows] for slope in slopes]
        parts = [slope * gap for slope, gap in zip(slopes, gaps, strict=True)]
        found = network.spread(parts)
        sums.add(found, parts, offsets)
        used = some.stop
        clock.tell(used, samples)
    settings = {
        "samples": used,
        "background_rows": len(chosen),
        "sampling_error": float(np.abs(change - sums.whole).max()),
        "unit": network.unit,
    }
    shape = (rows, *found.shape[1:])
    values, error = sums.mean, sums.error(adjust)
    if adjust:
        values = sums.adjusted(change, network.spread(sums.shifts()))
    return Attributed(
        values.reshape(shape),
        base,
        settings,
        other_unit(network, base + change),
        network.calls,
        used == samples,
        error.reshape(shape),
    )


def _lattice(points: Arrays, references: Arrays, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of background rows, and points on the way from them, 0 … 1, both (rows, samples), in a random order.

    Every background row, and any point with it, is as likely as the others. What a row gets depends on the row and the
    seed alone.

    Args:
        points: values of the rows (rows, ...), for each thing that is differentiated.
        references: background rows (1 or rows, references, ...) for each of them.
    """
    generator = np.random.default_rng([seed, 1])
    count, nth = references[0].shape[1], np.arange(samples)
    order = generator.permutation(samples)
    step = max(1, round(GOLDEN * samples))
    while math.gcd(step, samples) > 1:
        step += 1
    evenly = np.minimum(count * (nth + generator.random()) / samples, count - 1).astype(int)
    along = ((nth * step + generator.integers(samples)) % samples + generator.random(samples)) / samples
    distance = np.zeros((len(points[0]), count))  # squared, but for what all background rows have in common
    for x, b in zip(points, references, strict=True):
        flat = b.reshape(*b.shape[:2], -1)
        distance += np.square(flat).sum(axis=2) - 2 * np.einsum("rcf,rf->rc", flat, x.reshape(len(x), -1))
    who = np.argsort(distance, axis=1, kind="stable")[:, evenly[order]]
    return who, np.tile(along[order], (len(who), 1))


class _Sums:
    """Moments of contributions (rows, features) and of each sample's sum of them, added up over samples."""

    def __init__(self, rows: int) -> None:
        self.number, self.rows = 0, rows
        self.moments: list[np.ndarray] = []  # contributions, their squares, contributions times their sum
        self.wholes = np.zeros((2, rows))  # the sums of contributions, and their squares
        self.ways: list[np.ndarray] = []  # of each point: contributions, offsets, both's product, offsets' squares

    def add(self, found: np.ndarray, parts: Arrays, offsets: Arrays) -> None:
        """Add samples.

        Args:
            found: contributions (rows * samples, ...).
            parts: contributions for each point (rows * samples, ...).
            offsets: how far each sample's gap to its background row is above the mean gap, in the shapes of the parts.
        """
        samples = len(found) // self.rows

        def split(values: np.ndarray) -> np.ndarray:
            return values.reshape(self.rows, samples, -1)

        def total(one: np.ndarray, other: np.ndarray) -> np.ndarray:
            """Sums of products over samples, in float64 as they may be large beside their differences."""
            return np.einsum("rsf,rsf->rf", one, other, dtype=np.float64)

        found = split(found)
        whole = found.sum(axis=2, dtype=np.float64)
        together = np.einsum("rs,rsf->rf", whole, found)  # threads of a BLAS would spin beside those of the model
        moments = [found.sum(axis=1, dtype=np.float64), total(found, found), together]
        ways = []
        for part, offset in zip(map(split, parts), map(split, offsets), strict=True):
            means = (each.sum(axis=1, dtype=np.float64) for each in (part, offset))
            ways.append(np.stack([*means, total(part, offset), total(offset, offset)]))
        if self.moments:
            moments = [a + b for a, b in zip(self.moments, moments, strict=True)]
            ways = [a + b for a, b in zip(self.ways, ways, strict=True)]
        self.moments, self.ways = moments, ways
        self.shapes = [part.shape[1:] for part in parts]
        self.number += samples
        self.wholes += [whole.sum(axis=1), np.square(whole).sum(axis=1)]

    @property
    def mean(self) -> np.ndarray:
        return self.moments[0] / self.number

    @property
    def whole(self) -> np.ndarray:
        """Mean sum of a sample's contributions (rows,)."""
        return self.wholes[0] / self.number

    @property
    def variance(self) -> np.ndarray:
        """Of the sum of a sample's contributions (rows,)."""
        return self.wholes[1] / self.number - self.whole**2

    def slope(self) -> np.ndarray:
        """How a contribution moves with the sum of its sample: covariance over variance, 0 where the sum is steady."""
        together = self.moments[2] / self.number - self.mean * self.whole[:, None]
        steady = self.variance <= 1e-12 * np.maximum(self.whole**2, 1e-12)
        return np.where(steady[:, None], 0.0, together / np.where(steady, 1.0, self.variance)[:, None])

    def shifts(self) -> Arrays:
        """What moves contributions for each point to where the mean offset would have been 0 (rows, ...)."""
        shifts = []
        for way, shape in zip(self.ways, self.shapes, strict=True):
            part, offset, product, square = way / self.number
            variance = square - offset**2
            steady = variance <= 1e-6 * square
            slope = np.where(steady, 0.0, (product - part * offset) / np.where(steady, 1.0, variance))
            shifts.append((-slope * offset).reshape(-1, *shape))
        return shifts

    def adjusted(self, change: np.ndarray, shifts: np.ndarray) -> np.ndarray:
        """Means, shifted, and moved along with their sum until that is the change (rows,)."""
        mean = self.mean + shifts.reshape(self.mean.shape)
        return mean + self.slope() * (change - mean.sum(axis=1))[:, None]

    def error(self, adjust: bool) -> np.ndarray:
        """Standard error of each contribution as if samples were drawn independently, which is no less than it is."""
        variance = self.moments[1] / self.number - self.mean**2
        if adjust:
            variance = variance - self.slope() ** 2 * self.variance[:, None]
        return np.sqrt(np.maximum(variance, 0) / self.number)


def base_of(network: Network, references: Arrays, given: Arrays, targets: np.ndarray) -> np.ndarray:
    """Mean answer to the references (rows,), each in the place of what is differentiated in a row."""
    rows = np.arange(len(targets))
    shared, count = references[0].shape[:2]
    if shared == 1 and len(network.points) == len(given) and all(layer is None for _, layer in network.points):
        return network.usual([values[0] for values in references])[targets]  # nothing of a row stays
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
