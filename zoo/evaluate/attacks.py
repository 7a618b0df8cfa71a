"""Attacks on inputs: what a model answers to rows that were changed against it, within a stated limit.

White box, through the gradients of a Keras model: FGSM (Goodfellow, Shlens & Szegedy, "Explaining and Harnessing
Adversarial Examples", ICLR 2015, arXiv:1412.6572) and PGD (Madry et al., ICLR 2018, arXiv:1706.06083) on the loss, and
PGD on the margin between the best wrong and the true logit, which has a gradient where the loss has none left (Carlini
& Wagner, "Towards Evaluating the Robustness of Neural Networks", 2017, arXiv:1608.04644, section V-A). Black box,
through answers alone: random changes of the same size.

The limit epsilon is in the raw input's own unit: pixel values of 0 … 255 for images, standard deviations of each column
for the numbers of a table, whose categories and gaps stay. Attacked rows are raw rows such as a client could send:
whole pixels from 0 to 255.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Raw = dict[str, np.ndarray]

WHITE_BOX = ("fgsm", "pgd", "margin")
METHODS = (*WHITE_BOX, "random")
NORMS = ("linf", "l2")


class Region(NamedTuple):
    """Where a model input may be moved to; the arrays broadcast over `(batch, ...)`.

    Attributes:
        unit: length in the model's input of one unit of the raw input; 0 for what may not change.
        low, high: ends of the valid range in the model's input.
    """

    unit: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, signature) -> "Region":
        """The region of a `zoo.data.Signature`: pixels in 0 … 255; a table's numbers, in their standard deviations."""
        step = signature.preprocess
        if step.kind == "image":
            mean, std = np.asarray(step.mean, np.float32), np.asarray(step.std, np.float32)
            return cls(*map(step.ordered, (1 / std, (0 - mean) / std, (255 - mean) / std)))
        unit = np.zeros(step.shape, np.float32)
        unit[: len(step.numbers)] = 1  # categories stay as they are
        return cls(unit, np.float32(-np.inf), np.float32(np.inf))


@dataclass(frozen=True)
class Attacked:
    """Rows after an attack.

    Attributes:
        raw: raw inputs as a client would send them.
        before, after: loss of each row, cross-entropy or squared error in standard deviations of the target.
        wrong: whether each row's class is missed now; None for regression.
    """

    raw: Raw
    before: np.ndarray
    after: np.ndarray
    wrong: np.ndarray | None


def check(method: str, epsilon: float, norm: str, signature: Any) -> None:
    """Refuse what is no attack.

    Raises:
        ValueError: method, epsilon or norm is none, or the inputs cannot be changed by so little.
    """
    if method not in METHODS:
        raise ValueError(f"attack must be one of {', '.join(METHODS)}, got {method!r}")
    if norm not in NORMS:
        raise ValueError(f"norm must be linf or l2, got {norm!r}")
    step = signature.preprocess
    if step.kind not in ("image", "table"):
        raise ValueError(f"attacks are for images and tables, got {step.kind} inputs")
    if not 0 < epsilon < np.inf:
        raise ValueError(f"epsilon must be above 0, got epsilon={epsilon!r}")
    if step.kind == "image" and epsilon < 1:
        raise ValueError(
            f"epsilon counts pixel values of 0 … 255, of which only whole ones can be sent, so it must be at least 1, "
            f"got epsilon={epsilon!r}; 8/255 in a paper is epsilon=8 here"
        )
    if step.kind == "table" and not step.numbers:
        raise ValueError("attacks change numbers, and this table has categories only")
    if not signature.one_number:
        raise ValueError(
            f"attacks are on answers of one label or value, and the task is {signature.task}; zoo.evaluate.robustness."
            "corrupted takes any"
        )
    if method == "margin" and signature.task == "regression":
        raise ValueError("a margin is between classes, and the task is regression; take fgsm or pgd")


class Attacker:
    """White-box attacks on one model; what is compiled serves every strength.

    Args:
        model: Keras model giving logits, or standardised values for regression.
        signature: `zoo.data.Signature` of its raw inputs.
        norm: "linf" limits the change of each value, "l2" the Euclidean length of a row's change.
        transform: raw -> raw, done to every row before the model sees it. The attack knows it and takes its gradient
            for one (BPDA: Athalye, Carlini & Wagner, ICML 2018, arXiv:1802.00420, section 4.1).
        batch: rows per call of the model.
    """

    def __init__(
        self,
        model: Any,
        signature: Any,
        norm: str = "linf",
        transform: Callable[[Raw], Raw] | None = None,
        batch: int = 128,
    ) -> None:
        from zoo import tasks

        if not hasattr(model, "predict_on_batch"):
            raise TypeError(
                f"gradients need a Keras model or a run, got a {type(model).__name__}; attack the run it was exported from "
                "and judge the bundle with against="
            )
        self.model, self.signature, self.norm, self.transform, self.batch = model, signature, norm, transform, batch
        self.region = Region.of(signature)
        self.task = tasks.get(signature.task)
        self._compiled: dict[str, Any] = {}

    def __call__(
        self,
        x: Raw,
        y: np.ndarray,
        method: str = "pgd",
        epsilon: float = 8.0,
        *,
        steps: int = 20,
        restarts: int = 2,
        step_size: float | None = None,
        seed: int = 0,
    ) -> Attacked:
        """Attack rows.

        Args:
            x: raw rows.
            y: their true targets.
            method: "fgsm" is one step of length epsilon from the row itself; "pgd" climbs the loss and keeps of
                each row the worst point it has seen; "margin" does so on the margin.
            epsilon: limit of the change, see the module.
            steps: of each climb.
            restarts: climbs; the second begins at the row itself, all others at random points of the ball.
            step_size: length of a step in units of epsilon's; 2.5 * epsilon / steps if None (Madry et al. 2018).
            seed: of the random points; a row's depend on its place among `x` too.

        Raises:
            ValueError: an argument is out of range.
        """
        check(method, epsilon, self.norm, self.signature)
        if method == "random":
            raise ValueError("random changes need no gradient; see zoo.evaluate.attacks.blind")
        if steps < 1 or restarts < 1 or (step_size is not None and not step_size > 0):
            raise ValueError(
                f"steps and restarts must be at least 1 and step_size above 0, got {steps!r}, {restarts!r}, {step_size!r}"
            )
        if method == "fgsm":
            steps, restarts, step_size = 1, 1, epsilon
        size = step_size if step_size is not None else 2.5 * epsilon / steps
        parts = [
            self._batch(_rows(x, start, start + self.batch), y[start : start + self.batch], method, epsilon, size,
                        steps, restarts, [seed, start])
            for start in range(0, len(y), self.batch)
        ]  # fmt: skip
        raw = {name: np.concatenate([part.raw[name] for part in parts]) for name in x}
        before, after = (np.concatenate([getattr(part, name) for part in parts]) for name in ("before", "after"))
        wrong = None if parts[0].wrong is None else np.concatenate([part.wrong for part in parts])
        return Attacked(raw, before, after, wrong)

    def _batch(self, x, y, method, epsilon, size, steps, restarts, seed):
        from zoo.training.adversarial import scatter

        rows = len(y)
        start, unit = self._padded(self.signature.inputs(x)), self._padded(self._unit(x))
        targets = self._padded(self.task.encode(self.signature.targets(y), self.signature.outputs))
        climb = self._function(method)
        limits = np.float32(size), np.float32(epsilon)
        kept, before, wrong = x, *self._measure(x, targets, y)
        after = before
        for restart in range(restarts):
            generator = np.random.default_rng([*seed, restart])
            at = start
            if method != "fgsm" and restart != 1:
                region = self.region._replace(unit=unit)
                uniform, normal = (
                    lambda shape, draw=draw: draw(shape, np.float32)
                    for draw in (generator.random, generator.standard_normal)
                )
                at = np.asarray(scatter(start, region, limits[1], self.norm, uniform, normal))
            best, highest = at, np.full(len(start), -np.inf, np.float32)
            for _ in range(steps):
                values, moved = climb(at, self._seen(at, x, epsilon), targets, start, unit, *limits)
                best, highest = _higher(best, highest, at, np.asarray(values))
                at = np.asarray(moved)
            if method == "fgsm":
                best = at
            else:
                values, _ = climb(at, self._seen(at, x, epsilon), targets, start, unit, *limits)
                best, _ = _higher(best, highest, at, np.asarray(values))
            found = deliver(best[:rows], x, self.signature, epsilon, self.norm)
            loss, missed = self._measure(found, targets, y)
            better = np.full(rows, True) if method == "fgsm" else _worse(loss, missed, after, wrong)
            kept = {name: _where(better, found[name], kept[name]) for name in x}
            after = np.where(better, loss, after)
            wrong = None if wrong is None else np.where(better, missed, wrong)
        return Attacked(kept, before, after, wrong)

    def _function(self, method):
        """One step of a climb: `(at, seen, targets, start, unit, size, epsilon) -> (objective, moved)`."""
        if method not in self._compiled:
            from zoo.training.adversarial import climb
            from zoo.training.gradients import compiled, input_gradients

            regression = self.signature.task == "regression"
            objective = _squared if regression else _margin if method == "margin" else _cross_entropy

            def step(at, seen, targets, start, unit, size, epsilon):
                def judged(x):
                    return objective(targets, self.model(x, training=False)), None

                values, slopes, _ = input_gradients(self.model, judged, seen)
                return values, climb(at, slopes, start, self.region._replace(unit=unit), size, epsilon, self.norm)

            self._compiled[method] = compiled(step, self.model)
        return self._compiled[method]

    def _measure(self, x, targets, y):
        """Loss of raw rows, and whether their class is missed."""
        seen = self.signature.inputs(self.transform(x) if self.transform else x)
        outputs = np.asarray(self.model.predict_on_batch(self._padded(seen)), np.float64)[: len(y)]
        targets = targets[: len(y)]
        if self.signature.task == "regression":
            return np.mean((outputs - targets) ** 2, axis=-1), None
        top = outputs.max(axis=-1, keepdims=True)
        loss = top[:, 0] + np.log(np.exp(outputs - top).sum(axis=-1)) - (outputs * targets).sum(axis=-1)
        return loss, outputs.argmax(axis=-1) != y

    def _seen(self, at, x, epsilon):
        """What the model sees of rows on the way."""
        if self.transform is None:
            return at
        rows = len(next(iter(x.values())))
        sent = deliver(at[:rows], x, self.signature, epsilon, self.norm)
        return self._padded(self.signature.inputs(self.transform(sent)))

    def _unit(self, x):
        """Raw units in the model's input; 0 for numbers that are missing."""
        unit = np.broadcast_to(self.region.unit, (len(next(iter(x.values()))), *self.signature.preprocess.shape)).copy()
        if "numbers" in x:
            unit[:, : x["numbers"].shape[1]][np.isnan(x["numbers"].astype(np.float32))] = 0
        return unit

    def _padded(self, values):
        """The last row repeated up to a whole batch, so that the model is compiled once."""
        return np.concatenate([values, np.repeat(values[-1:], self.batch - len(values), axis=0)]).astype(np.float32)


def blind(
    predict: Callable[[Raw], np.ndarray],
    signature: Any,
    x: Raw,
    y: np.ndarray,
    epsilon: float,
    *,
    norm: str = "linf",
    draws: int = 20,
    seed: int = 0,
) -> Attacked:
    """The worst of random changes of the full size: corners of the cube, or points of the sphere.

    Args:
        predict: raw rows -> answers, probabilities or values in the target's unit.
        signature: `zoo.data.Signature`.
        x: raw rows.
        y: their true targets.
        epsilon: limit of the change, see the module.
        norm: "linf" or "l2".
        draws: changes tried on each row.
        seed: of the changes.
    """
    check("random", epsilon, norm, signature)
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got draws={draws!r}")
    before, wrong = _judged(predict(x), y, signature)
    kept, after = x, before
    start = signature.inputs(x)
    unit = Region.of(signature).unit
    for draw in range(draws):
        generator = np.random.default_rng([seed, draw])
        if norm == "linf":
            move = generator.choice(np.float32([-1, 1]), start.shape)
        else:
            move = generator.standard_normal(start.shape, np.float32) * (unit > 0)
            axes = tuple(range(1, start.ndim))
            move /= np.sqrt(np.sum(np.square(move), axis=axes, keepdims=True))
        found = deliver(start + np.float32(epsilon) * move * unit, x, signature, epsilon, norm)
        loss, missed = _judged(predict(found), y, signature)
        better = _worse(loss, missed, after, wrong)
        kept = {name: _where(better, found[name], kept[name]) for name in x}
        after = np.where(better, loss, after)
        wrong = None if wrong is None else np.where(better, missed, wrong)
    return Attacked(kept, before, after, wrong)


def deliver(inputs: np.ndarray, raw: Raw, signature: Any, epsilon: float, norm: str) -> Raw:
    """Model inputs near raw rows, as raw rows that a client can send, no farther than epsilon from these.

    Args:
        inputs: model inputs `(batch, ...)`.
        raw: rows from which they were moved.
        signature: `zoo.data.Signature`.
        epsilon: limit in raw units.
        norm: "linf" or "l2".
    """
    step = signature.preprocess
    if step.kind == "image":
        start = raw["image"].astype(np.float32)
        move = step.pixels(inputs) - start
        whole = np.rint(move)
        if norm == "linf":
            whole = np.clip(whole, -np.floor(epsilon), np.floor(epsilon))
        else:  # rounding may have led out of the ball; rounding towards the row cannot
            axes = tuple(range(1, move.ndim))
            far = np.sum(np.square(whole), axis=axes, keepdims=True) > epsilon**2
            whole = np.where(far, np.trunc(move), whole)
        return {"image": np.clip(start + whole, 0, 255).astype(np.uint8)}
    count = len(step.numbers)
    moved = inputs[:, :count] * np.asarray(step.std, np.float32) + np.asarray(step.mean, np.float32)
    return {**raw, "numbers": np.where(np.isnan(raw["numbers"]), np.float32(np.nan), moved.astype(np.float32))}


def _cross_entropy(targets, outputs):
    from keras import ops

    # in this form the gradient of a sure answer is small; in that of log_softmax float32 rounds it to 0 from a lead of
    # 17
    others = ops.logsumexp(outputs - 1e9 * targets, axis=-1)
    return ops.softplus(others - ops.sum(outputs * targets, axis=-1))


def _margin(targets, outputs):
    from keras import ops

    return ops.max(outputs - 1e9 * targets, axis=-1) - ops.sum(outputs * targets, axis=-1)


def _squared(targets, outputs):
    from keras import ops

    return ops.mean(ops.square(outputs - targets), axis=-1)


def _judged(answers, y, signature):
    """Loss of each row by its answers, and whether its class is missed."""
    if signature.task == "regression":
        return np.mean(
            np.square((answers.reshape(len(y), -1) - y.reshape(len(y), -1)) / signature.target_std), -1
        ), None
    return -np.log(np.maximum(answers[np.arange(len(y)), y], 1e-30)), answers.argmax(axis=-1) != y


def _higher(best, highest, at, values):
    better = values > highest
    return _where(better, at, best), np.where(better, values, highest)


def _worse(loss, missed, after, wrong):
    """Rows that are worse than what is kept: their class is missed now, or the loss is higher and no hit was gained."""
    if missed is None:
        return loss > after
    return (missed & ~wrong) | ((missed == wrong) & (loss > after))


def _where(chosen, one, other):
    return np.where(chosen.reshape(-1, *[1] * (one.ndim - 1)), one, other)


def _rows(x, start, stop):
    return {name: values[start:stop] for name, values in x.items()}
