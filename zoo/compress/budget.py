"""A model for a budget: pruned, quantized and measured until it fits, or a refusal that says what came closest.

Each candidate is a share of the model's multiply-accumulates, reached by removing channels and training again with the
original as teacher, in each stored form (32 and 16 bit floats, 8-bit integers, 8- and 4-bit weights). Where the
integers lose too much, the candidate is trained under quantization. Scores are on the validation split, sizes those
of the ONNX files, latencies those in ONNX Runtime on this machine.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from zoo import tasks
from zoo.compress.awareness import RANGES, tune_quantized
from zoo.compress.channels import prune_channels
from zoo.compress.costs import macs
from zoo.compress.distillation import distill
from zoo.training import Run, as_run, check_trained

PRECISIONS = ("fp32", "fp16", "int8", "w8", "w4")
_CALIBRATION = 256  # rows that set the INT8 ranges
_SMALLEST = 0.02  # share of the arithmetic below which nothing is tried
_CLOSE = 1.2  # two shares nearer than this are not worth another training


@dataclass(frozen=True)
class Point:
    """One way to ship the model.

    Attributes:
        share: of the original's multiply-accumulates, in (0, 1].
        precision: one of `PRECISIONS`.
        score: on the validation split.
        drop: score of the original in 32 bits less this one.
        size: of the ONNX file, in bytes.
        ms: milliseconds of one request.
        file: ONNX file.
        kept_float: layers left in float.
    """

    share: float
    precision: str
    score: float
    drop: float
    size: int
    ms: float
    file: Path
    kept_float: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.share:.0%} of the arithmetic in {self.precision}"


@dataclass(frozen=True)
class Limits:
    """What the user asked for; None is no limit.

    Attributes:
        drop: largest loss of the validation score, in its own unit.
        size: bytes of the ONNX file.
        ms: milliseconds of one request.
    """

    drop: float
    size: float | None = None
    ms: float | None = None

    def excess(self, point: Point) -> float:
        """The largest of size and latency in units of its limit; above 1 is too much."""
        return max([point.size / self.size if self.size else 0.0, point.ms / self.ms if self.ms else 0.0])

    def broken(self, point: Point) -> list[str]:
        """What speaks against a point, in words."""
        checks = {
            "loses too much": point.drop > self.drop,
            "too large": self.size is not None and point.size > self.size,
            "too slow": self.ms is not None and point.ms > self.ms,
        }
        return [word for word, holds in checks.items() if holds]

    def holds(self, point: Point) -> bool:
        return not self.broken(point)

    def distance(self, point: Point) -> float:
        """How far a point is from the limits: the worst excess, one percent of score counting as ten of size."""
        return max(0.0, self.excess(point) - 1) + max(0.0, point.drop - self.drop) * 10

    def __str__(self) -> str:
        asked = [f"a drop of at most {self.drop:.4f}"]
        asked += [f"at most {self.size:,.0f} bytes"] if self.size else []
        asked += [f"at most {self.ms:g} ms"] if self.ms else []
        return ", ".join(asked)


class BudgetError(ValueError):
    """No candidate is within the limits.

    Attributes:
        points: everything that was measured.
        closest: the candidate nearest to the limits.
    """

    def __init__(self, message: str, points: tuple[Point, ...], closest: Point) -> None:
        super().__init__(message)
        self.points = points
        self.closest = closest


@dataclass(frozen=True)
class Fitted:
    """A model within its budget, which `export.to_bundle` takes as it is.

    Attributes:
        run: the chosen model as a training run, with its scores on all splits.
        point: what was measured of the chosen form.
        points: everything that was measured.
        limits: what was asked for.
        folder: holds `front.png`, `points.json`, the ONNX files and the run folders.
    """

    run: Run
    point: Point
    points: tuple[Point, ...]
    limits: Limits
    folder: Path = field(repr=False)

    @property
    def model(self) -> Any:
        """The chosen Keras model, to be exported in `precision`."""
        return self.run.model

    @property
    def precision(self) -> str:
        return self.point.precision

    def __str__(self) -> str:
        return f"{table(self.points, self.limits, self.point)}\nchosen: {self.point}, within {self.limits}"

    def plot(self, path: str | Path) -> Path:
        """Picture of all points, score over latency, the front drawn and the chosen one marked."""
        return picture(self.points, self.limits, self.point, path)


def fit(
    model: Any,
    data: Any = None,
    *,
    max_drop: float = 0.01,
    max_size: float | None = None,
    max_ms: float | None = None,
    out: str | Path | None = None,
    precisions: tuple[str, ...] | list[str] = PRECISIONS,
    epochs: int = 10,
    trials: int = 4,
    rows: int = 1,
    threads: int = 1,
    importance: str = "magnitude",
    overwrite: bool = False,
    quiet: bool = False,
) -> Fitted:
    """Search for the best form of a model within a budget.

    With a size or latency limit that is the highest validation score within the limits (of equal scores the faster);
    without one it is the fastest form within `max_drop`.

    Args:
        model: run, run folder, or trained Keras model, which stays as it is.
        data: data of a Keras model: a name, a path or `zoo.data.Data`; a run knows its own.
        max_drop: largest loss of the validation score (accuracy, or R2), 0.01 being one percent point.
        max_size: bytes of the ONNX file.
        max_ms: milliseconds of one request in ONNX Runtime on this machine.
        out: folder for everything that is made; `runs/<model>-<data>-fit` if None.
        precisions: stored forms to consider, of `PRECISIONS`.
        epochs: epochs of training after each pruning.
        trials: how many pruned models to train at most.
        rows: rows of a request when the latency is taken.
        threads: threads of a request when the latency is taken.
        importance: how channels are ranked, see `prune_channels`.
        overwrite: replace what a former search left in `out`.
        quiet: print nothing.

    Returns:
        The chosen form with everything that was measured.

    Raises:
        BudgetError: nothing fits; the message and `closest` say what came nearest, `points` has everything.
        ValueError: a limit is out of range, or the model was never trained.
        FileExistsError: `out` has content.
    """
    limits = _limits(max_drop, max_size, max_ms)
    unknown = [name for name in precisions if name not in PRECISIONS]
    if unknown or not precisions:
        raise ValueError(f"precisions must be among {', '.join(PRECISIONS)}, got {tuple(precisions)!r}")
    if trials < 0 or epochs < 1 or rows < 1 or threads < 1:
        raise ValueError(
            f"trials must be at least 0, epochs, rows and threads at least 1, got {trials}, {epochs}, {rows}, {threads}"
        )
    run = as_run(model, data)
    folder = Path(out) if out else Path("runs") / f"{run.recipe.model}-{Path(run.recipe.data).stem}-fit"
    _check_folder(folder, overwrite)
    bench = _Bench(run, folder, limits, tuple(precisions), epochs, rows, threads, (lambda *_: None) if quiet else print)
    check_trained(run)
    folder.mkdir(parents=True, exist_ok=True)
    bench.add(1.0, run)
    for _ in range(trials):
        share = next_share(bench.points, limits)
        if share is None:
            break
        bench.say(f"training a model with {share:.0%} of the arithmetic, {epochs} epochs")
        rows_for = run.data if importance == "taylor" else None
        try:
            small = prune_channels(run.model, macs=share, importance=importance, data=rows_for)
        except ValueError as error:
            bench.say(f"no such model: {error}")
            break
        place = folder / f"share-{share:.3f}"
        pruned = replace(run, model=small)
        bench.add(
            macs(small) / bench.macs, distill(run, pruned, out=place, epochs=epochs, overwrite=overwrite, quiet=True)
        )
    return bench.conclude()


def next_share(points: list[Point], limits: Limits) -> float | None:
    """Share of the arithmetic to try next, None where no further training promises anything.

    Args:
        points: what was measured; the original is among them.
        limits: what is asked for.
    """
    shares = sorted({point.share for point in points})
    lossless = [s for s in shares if any(p.share == s and p.drop <= limits.drop for p in points)]
    lossy = [s for s in shares if s not in lossless]
    if limits.size is None and limits.ms is None:  # as small as the drop allows
        return _between(max(lossy, default=min(lossless) / 4), min(lossless))
    fits = [s for s in lossless if any(p.share == s and limits.holds(p) for p in points)]
    if 1.0 in fits or any(p.drop <= 0 and limits.holds(p) for p in points):
        return None
    if any(all(limits.excess(p) > 1 for p in points if p.share == s) for s in lossy):
        return None  # what loses too much is still too large, so nothing above it fits
    large = min(s for s in lossless if s not in fits)  # 1.0 at least
    if fits or [s for s in lossy if s < large]:  # as large as size and latency allow
        return _between(max([*fits, *(s for s in lossy if s < large)]), large)
    excess = min(limits.excess(p) for p in points if p.share == large and p.drop <= limits.drop)
    # a file has parts that do not shrink with the arithmetic, so a guess that was not enough is followed by a bold one
    return max(_SMALLEST, large * min(0.95 / excess, 1.0 if large == 1.0 else 0.7))


def _between(low: float, high: float) -> float | None:
    return math.sqrt(low * high) if high / low > _CLOSE else None


def choose(fitting: list[Point], limits: Limits) -> Point:
    """The best of the points within the limits; latencies within 5 % of each other count as equal."""
    if limits.size is None and limits.ms is None:
        fastest = min(point.ms for point in fitting)
        return min((point for point in fitting if point.ms <= 1.05 * fastest), key=lambda point: point.size)
    return min(fitting, key=lambda point: (-point.score, point.ms))


def front(points: tuple[Point, ...] | list[Point]) -> list[Point]:
    """Points that no other one beats in score, size and latency at once."""

    def beats(one: Point, other: Point) -> bool:
        gains = (one.score - other.score, other.size - one.size, other.ms - one.ms)
        return min(gains) >= 0 and max(gains) > 0

    return [point for point in points if not any(beats(other, point) for other in points)]


def table(points: tuple[Point, ...] | list[Point], limits: Limits, chosen: Point | None = None) -> str:
    """What was measured, fastest first; `*` marks the front, `>` the chosen one."""
    best = front(points)
    lines = [f"   {'MACs':>6}  {'form':<5} {'score':>7} {'drop':>8} {'size':>12} {'ms':>8}"]
    for point in sorted(points, key=lambda p: p.ms):
        mark = ("*" if point in best else " ") + (">" if point is chosen else " ")
        broken = limits.broken(point)
        held = f"  {' and '.join(broken)}" if broken else ""
        lines.append(
            f"{mark} {point.share:>6.0%}  {point.precision:<5} {point.score:>7.4f} {point.drop:>+8.4f} "
            f"{point.size / 1024:>9,.0f} KB {point.ms:>8.3f}{held}"
        )
    return "\n".join(lines)


def picture(points: tuple[Point, ...] | list[Point], limits: Limits, chosen: Point | None, path: str | Path) -> Path:
    """Score over latency and over size, with the front of each; numbers are shares of the arithmetic."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    figure, panels = plt.subplots(1, 2, figsize=(11, 5), sharey=True, layout="constrained")
    reference = max(point.score + point.drop for point in points)
    named: dict[str, Any] = {}
    for axes, cost, unit, label, limit in (
        (panels[0], lambda point: point.ms, "ms", "milliseconds of a request", limits.ms),
        (panels[1], lambda point: point.size / 1024, "KB", "KB of the file", limits.size and limits.size / 1024),
    ):
        for precision in PRECISIONS:
            some = [point for point in points if point.precision == precision]
            if some:
                axes.scatter([cost(p) for p in some], [p.score for p in some], s=45, alpha=0.8, label=precision)
        line = sorted(points, key=lambda p: (cost(p), -p.score))
        line = [p for place, p in enumerate(line) if all(p.score > before.score for before in line[:place])]
        axes.step([cost(p) for p in line], [p.score for p in line], where="post", color="grey", lw=1, zorder=0)
        for point in line:
            text = f"{point.share:.0%} {point.precision}"
            axes.annotate(text, (cost(point), point.score), (0, 7), textcoords="offset points", fontsize=8, ha="center")
        axes.axhline(reference - limits.drop, color="tab:red", lw=1, ls="--", label=f"largest drop, {limits.drop:g}")
        if limit:
            axes.axvline(limit, color="tab:red", lw=1, ls=":", label=f"limit, {limit:g} {unit}")
        if chosen is not None:
            name = f"chosen, {chosen.share:.0%} {chosen.precision}"  # a point on the same spot may be the one annotated
            axes.scatter([cost(chosen)], [chosen.score], s=160, facecolors="none", edgecolors="black", label=name)
        axes.set(xscale="log", xlabel=label)
        axes.margins(0.12)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        handles, names = axes.get_legend_handles_labels()
        named |= dict(zip(names, handles, strict=True))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), fontsize=8)
    panels[0].set_ylabel("validation score")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return Path(path)


class _Bench:
    """Measures candidates and remembers them."""

    def __init__(
        self,
        run: Run,
        folder: Path,
        limits: Limits,
        precisions: tuple[str, ...],
        epochs: int,
        rows: int,
        threads: int,
        say: Callable[..., None],
    ) -> None:
        self.run, self.folder, self.limits, self.precisions = run, folder, limits, precisions
        self.epochs, self.rows, self.threads, self.say = epochs, rows, threads, say
        self.splits = run.data
        self.task = tasks.get(run.signature.task)
        self.macs = macs(run.model)
        self.points: list[Point] = []
        self.runs: dict[Point, Run] = {}
        self.reference: float | None = None

    def score(self, answers: dict[str, np.ndarray]) -> float:
        return self.task.score(self.splits.validation.y, self.task.scored(answers))

    def add(self, share: float, run: Run) -> None:
        """Measure a run's model in each form; where 8-bit integers alone lose too much, train it under quantization."""
        place = self.folder / f"share-{share:.3f}-onnx"
        self.measure(share, run, place, self.precisions)
        held = {p.precision for p in self.points if p.share == share and p.drop <= self.limits.drop}
        if "int8" in self.precisions and "fp32" in held and "int8" not in held:
            self.say(f"training the model with {share:.0%} of the arithmetic under quantization")
            folder = self.folder / f"share-{share:.3f}-int8"
            try:
                aware = tune_quantized(run, folder, epochs=max(1, self.epochs // 2), overwrite=True, quiet=True)
            except ValueError as error:
                self.say(f"  int8: {error}")
                return
            ranges = json.loads((folder / RANGES).read_text(encoding="utf-8"))
            self.measure(share, aware, folder / "onnx", ("int8",), ranges)

    def measure(
        self, share: float, run: Run, place: Path, precisions: tuple[str, ...], ranges: dict[str, Any] | None = None
    ) -> None:
        """Export a run's model in some forms, and take score, size and latency."""
        from export import ExportError, int8, lowbit, parity, to_onnx
        from export.timing import milliseconds

        place.mkdir(parents=True, exist_ok=True)
        fed = run.signature.fed  # what a file takes: tokens in place of texts
        validation = fed(self.splits.validation.x)
        golden = fed({name: values[:16] for name, values in self.splits.test.x.items()})
        source = to_onnx(run.model, place / "model.onnx", signature=run.signature, golden=golden)
        files, kept = {"fp32": source}, {}

        def quantized(path: Path) -> None:
            rows = fed({name: values[:_CALIBRATION] for name, values in self.splits.train.x.items()})
            made = int8.quantize(
                source,
                path,
                calibration=rows,
                validation=validation,
                score=self.score,
                max_drop=self.limits.drop,
                ranges=ranges,
            )
            kept["int8"] = made.kept_float

        writers: dict[str, Callable[[Path], Any]] = {
            "fp16": lambda path: lowbit.to_float16(source, path),
            "int8": quantized,
            "w8": lambda path: lowbit.to_low_bit(source, path, bits=8),
            "w4": lambda path: lowbit.to_low_bit(source, path, bits=4),
        }
        for precision in precisions:
            path = place / f"model.{precision}.onnx"
            try:
                if precision in writers:
                    writers[precision](path)
                    files[precision] = path
            except ExportError as error:
                self.say(f"  {precision}: {error}")
        times = milliseconds(list(files.values()), golden, rows=self.rows, threads=self.threads)
        for (precision, path), ms in zip(files.items(), times, strict=True):
            score = self.score(parity.run(parity.session(path), validation))
            if self.reference is None:  # the original in 32 bits comes first
                self.reference = score
            if precision in precisions:
                drop = self.reference - score
                point = Point(share, precision, score, drop, path.stat().st_size, ms, path, kept.get(precision, ()))
                self.points.append(point)
                self.runs[point] = run
                self.say(f"  {point}: score {score:.4f}, {point.size / 1024:,.0f} KB, {ms:.3f} ms")

    def conclude(self) -> Fitted:
        """The chosen point, with table and picture written; or the refusal."""
        points, limits = tuple(self.points), self.limits
        fitting = [point for point in points if limits.holds(point)]
        chosen = choose(fitting, limits) if fitting else None
        rows = [{**asdict(p), "file": str(p.file.relative_to(self.folder)), "fits": limits.holds(p)} for p in points]
        (self.folder / "points.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        picture(points, limits, chosen, self.folder / "front.png")
        self.say(f"\n{table(points, limits, chosen)}\npicture: {self.folder / 'front.png'}")
        if chosen is None:
            closest = min(points, key=limits.distance)
            raise BudgetError(
                f"nothing is within {limits}. {closest} came closest: a drop of {closest.drop:.4f}, {closest.size:,} bytes, "
                f"{closest.ms:.3f} ms ({' and '.join(limits.broken(closest))}). Allow more, or train for more epochs after pruning",
                points,
                closest,
            )
        self.say(f"chosen: {chosen}, within {limits}")
        return Fitted(self.runs[chosen], chosen, points, limits, self.folder)


def _limits(drop: float, size: float | None, ms: float | None) -> Limits:
    if not 0 <= drop < 1:
        raise ValueError(
            f"max_drop must be a loss of score in [0, 1), got max_drop={drop!r}; 0.01 is one percent point"
        )
    for name, value, unit in (("max_size", size, "bytes"), ("max_ms", ms, "milliseconds")):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0 {unit}, got {name}={value!r}")
    return Limits(drop, size, ms)


def _check_folder(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; choose another folder")
    if folder.exists() and any(folder.iterdir()) and not (overwrite and (folder / "points.json").exists()):
        raise FileExistsError(
            f"{folder} is not empty; choose another folder"
            + (", or overwrite the search that is there" if (folder / "points.json").exists() else "")
        )
