"""Settings from measurements: which workers, threads, engine and depth of queue answer one model fastest here.

Each setting is served by a fleet of its own, and asked by loops that each wait for their answer before they ask again:
few of them show the time of one answer, many of them the most that can be answered.
"""

import asyncio
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from serve.calls import Answer, Call
from serve.fleet import Fleet
from serve.manifest import MANIFEST, Bundle, BundleError, read
from serve.protocol import pack
from serve.runtime import cores, golden_rows
from serve.session import ENGINES

FILE = "serving.json"
LOADS = (1, 8, 64)  # calls on their way at a time
CLOSE = 0.95  # settings with this share of the best rate count as equal; the quickest single answer decides among them
AGAIN = 3  # of the best settings are measured a second time, since one measurement may be luck
PATIENCE = 60.0  # seconds for one answer


@dataclass(frozen=True)
class Setting:
    """What a server can be told of its workers.

    Attributes:
        workers: processes that compute.
        threads: threads of the engine in each of them.
        engine: "onnxruntime" or "openvino".
        ahead: batches a worker is given before it has answered the first.
    """

    workers: int
    threads: int
    engine: str = "onnxruntime"
    ahead: int = 1


@dataclass(frozen=True)
class Point:
    """One point of a setting's curve.

    Attributes:
        load: calls on their way at a time.
        rate: answers per second.
        median_ms, p99_ms: milliseconds from a call to its answer.
    """

    load: int
    rate: float
    median_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Measured:
    """A setting and its curve, or why it cannot be used."""

    setting: Setting
    points: tuple[Point, ...] = ()
    refused: str = ""

    @property
    def best_rate(self) -> float:
        """Most answers per second, 0 if it was refused."""
        return max((point.rate for point in self.points), default=0.0)


def candidates(available: int, engines: Sequence[str]) -> list[Setting]:
    """Settings worth measuring: workers x threads never above the cores, one core left free among them.

    Args:
        available: processor cores, at least 1.
        engines: installed engines.
    """
    counts = {1, available, max(1, available - 1), *(2**power for power in range(int(math.log2(available)) + 1))}
    shapes = sorted({(workers, threads) for workers in counts for threads in {1, available // workers}})
    return [Setting(*shape, engine, ahead) for engine in engines for shape in shapes for ahead in (1, 2)]


def best(curves: Sequence[Measured]) -> Measured:
    """The setting with the highest rate; among nearly equal ones that with the quickest single answer.

    Raises:
        BundleError: none of them could be measured.
    """
    usable = [each for each in curves if each.points]
    if not usable:
        reasons = "; ".join(sorted({each.refused for each in curves})) or "no setting was tried"
        raise BundleError(f"the model cannot be measured: {reasons}")
    top = max(each.best_rate for each in usable)
    near = [each for each in usable if each.best_rate >= CLOSE * top]
    return min(near, key=lambda each: (each.points[0].median_ms, each.setting.workers * each.setting.threads))


def slower(one: Measured, other: Measured) -> Measured:
    """At each load the slower of two measurements of a setting; the refused one if one was."""
    if not (one.points and other.points):
        return other if one.points else one
    points = tuple(min(pair, key=lambda point: point.rate) for pair in zip(one.points, other.points, strict=True))
    return Measured(one.setting, points)


def tune(
    model: str | Path,
    *,
    precision: str | None = None,
    seconds: float = 1.0,
    loads: Sequence[int] = LOADS,
    settings: Sequence[Setting] | None = None,
    tell: Callable[[str], None] = print,
) -> Measured:
    """Measure settings on a model's latest version, and write the best beside the models of its store.

    Args:
        model: folder `store/<name>`, or `store/<name>/<version>` for another version than the latest.
        precision: stored form to measure; the bundle's default if None.
        seconds: of each measurement; there are `len(loads)` of them for each setting.
        loads: calls on their way at a time, fewest first.
        settings: what to compare; what suits the cores and engines of this machine if None.
        tell: receives each line of the table.

    Returns:
        The setting that was written, with its curve.

    Raises:
        BundleError: the folder holds no bundle that can be served, or its bundle has no golden rows to ask with.
        OSError: the file cannot be written.
        ValueError: seconds or a load is not above 0.
    """
    if seconds <= 0 or not loads or min(loads) < 1:
        raise ValueError(f"seconds must be above 0 and loads at least 1, got seconds={seconds} and loads={loads}")
    bundle = _bundle(Path(model))
    requests = _requests(bundle)
    engines = [engine for engine in ("onnxruntime", "openvino") if find_spec(engine) is not None]
    tell(f"{bundle.manifest.name} version {bundle.manifest.version} on {_machine()}")
    tell(_line("engine", "workers", "threads", "ahead", *(f"{load} at a time" for load in loads)))
    curves = []

    def look(setting: Setting) -> Measured:
        found = _measure(bundle, setting, precision, requests, seconds, loads)
        cells = [f"{point.rate:.0f}/s ({point.p99_ms:.1f} ms)" for point in found.points]
        told = cells or [f"cannot be used: {found.refused}"]
        tell(_line(setting.engine, setting.workers, setting.threads, setting.ahead, *told))
        return found

    for setting in candidates(cores(), engines) if settings is None else settings:
        curves.append(look(setting))
    first = sorted((each for each in curves if each.points), key=lambda each: each.best_rate, reverse=True)[:AGAIN]
    if len(first) > 1:
        tell("the best once more, of which the slower time counts:")
        curves = [slower(each, look(each.setting)) for each in first]
    chosen = best(curves)
    path = bundle.folder.parent.parent / FILE
    _write(path, bundle, chosen)
    tell(f"best: {_described(chosen.setting)}; written to {path}, which the server reads when it starts")
    return chosen


def remembered(store: str | Path) -> dict[str, Any]:
    """Settings that `tune` wrote for a store on this machine.

    Returns:
        `workers`, `threads`, `engine` and `ahead`; empty if none were written, or on another machine.

    Raises:
        ValueError: the file cannot be read.
    """
    path = Path(store) / FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}; remove it, or tune again") from None
    try:
        setting = Setting(**stored["settings"])
        machine = stored["machine"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no settings: {error!r}; remove it, or tune again") from None
    numbers = setting.workers, setting.threads, setting.ahead
    if setting.engine not in ENGINES or not all(type(each) is int and each >= 1 for each in numbers):
        raise ValueError(f"{path} holds settings that cannot be used: {asdict(setting)}; remove it, or tune again")
    return asdict(setting) if machine == _machine() else {}


def chosen(store: str | Path, workers: int | None, threads: int | None, engine: str | None) -> dict[str, Any]:
    """Settings for a `Fleet`: what was asked for; if nothing was, what `tune` wrote for this machine; or defaults.

    Raises:
        ValueError: nothing was asked for, and the file of the store cannot be read.
    """
    if (workers, threads, engine) == (None, None, None):
        return remembered(store)
    return {"workers": workers, "threads": threads, "engine": engine or ENGINES[0]}


def _machine() -> str:
    """What a measurement holds for: the processor, and how many cores this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{name or platform.processor() or platform.machine()}, {cores()} cores"


def _bundle(folder: Path) -> Bundle:
    """The bundle in a folder, or in the latest version below it."""
    if not (folder / MANIFEST).is_file():
        versions = [each for each in folder.iterdir() if each.name.isdigit()] if folder.is_dir() else []
        if not versions:
            raise BundleError(f"{str(folder)!r} holds no version of a model; give the folder store/<name>")
        folder = max(versions, key=lambda each: int(each.name))
    return read(folder.resolve())


def _requests(bundle: Bundle) -> list[tuple[bytes, int]]:
    """Golden rows as binary requests of one row each."""
    golden = golden_rows(bundle)
    if not golden:
        raise BundleError(f"{bundle.folder} has no golden.npz, whose rows are asked; export the bundle again")
    ports = [port.name for port in bundle.manifest.inputs]
    rows = len(golden[f"input/{ports[0]}"])
    return [pack({name: golden[f"input/{name}"][row : row + 1] for name in ports}) for row in range(rows)]


def _measure(
    bundle: Bundle,
    setting: Setting,
    precision: str | None,
    requests: list[tuple[bytes, int]],
    seconds: float,
    loads: Sequence[int],
) -> Measured:
    """The curve of one setting, on a fleet that serves this bundle alone."""
    manifest = bundle.manifest

    async def curve(store: Path) -> tuple[Point, ...]:
        fleet = Fleet(store, precision=precision, watch=0, **asdict(setting))
        await fleet.start()
        try:
            if refused := fleet.refused.get((manifest.name, manifest.version)):
                raise BundleError(refused)
            await _drive(
                fleet, bundle, requests, min(0.3, seconds), max(loads)
            )  # the first batches of each size are slow
            return tuple([await _drive(fleet, bundle, requests, seconds, load) for load in loads])
        finally:
            await fleet.stop(5.0)

    from serve.host import event_loop

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / manifest.name).mkdir()
        (Path(folder) / manifest.name / manifest.version).symlink_to(bundle.folder, target_is_directory=True)
        try:
            with asyncio.Runner(loop_factory=event_loop) as runner:
                return Measured(setting, runner.run(curve(Path(folder))))
        except (ValueError, OSError) as error:
            return Measured(setting, refused=str(error))


async def _drive(fleet: Fleet, bundle: Bundle, requests: list[tuple[bytes, int]], seconds: float, load: int) -> Point:
    """Keep so many calls on their way for a while; the calls under way at the end are waited for, and count."""
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()
    manifest, times, turn, under_way = bundle.manifest, [], 0, 0
    began = time.monotonic()
    end = began + seconds

    def ask() -> None:
        nonlocal turn, under_way
        body, header_length = requests[turn % len(requests)]
        turn += 1
        under_way += 1
        now = time.monotonic()

        def done(answer: Answer) -> None:
            nonlocal under_way
            under_way -= 1
            after = time.monotonic()
            times.append(after - now)
            if answer.status != 200 and not finished.done():
                finished.set_exception(BundleError(answer.body.decode(errors="replace")[:300]))
            elif after < end and not finished.done():
                ask()
            elif not under_way and not finished.done():
                finished.set_result(None)

        fleet.submit(Call(manifest.name, manifest.version, body, header_length, "v2", now + PATIENCE, done))

    for _ in range(load):
        ask()
    await finished
    taken = time.monotonic() - began
    p99 = sorted(times)[min(len(times) - 1, int(0.99 * len(times)))]
    return Point(load, len(times) / taken, 1000 * statistics.median(times), 1000 * p99)


def _line(*cells: object) -> str:
    widths = (12, 8, 8, 6)
    return "".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=False)) + "".join(
        f"{cell:>22}" for cell in cells[len(widths) :]
    )


def _described(setting: Setting) -> str:
    return f"{setting.workers} workers of {setting.threads} threads on {setting.engine}, {setting.ahead} batches each"


def _write(path: Path, bundle: Bundle, chosen: Measured) -> None:
    """Replace the file at once, so that a server never reads half of it."""
    manifest = bundle.manifest
    content = {
        "machine": _machine(),
        "model": f"{manifest.name}/{manifest.version}",
        "settings": asdict(chosen.setting),
        "measured": [asdict(point) for point in chosen.points],
    }
    draft = path.with_name(f".{FILE}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OSError(f"the settings cannot be written to {path}: {error.strerror or error}") from error
