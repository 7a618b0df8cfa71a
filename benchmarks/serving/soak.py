"""Minutes at 80 % of peak, while versions change, workers are killed and explanations run.

Each minute the peak is measured anew, at 64 connections and in peace, since a shared machine is faster in one minute than
in another. Then requests are due at 80 % of it; every 5 s a new version appears and the one before the last is removed;
every 20 s a worker gets SIGKILL; explanations are asked one after another. Every answer is compared with what the version
that it names must answer. Memory of all processes is sampled, and must stay flat.
"""

import json
import os
import shutil
import signal
import statistics
import tempfile
import threading
import urllib.error
import urllib.request
from argparse import ArgumentParser, Namespace
from collections import Counter, deque
from pathlib import Path

from benchmarks.record import append
from benchmarks.serving import bundles, ours
from benchmarks.serving.load import Drive, Figures
from benchmarks.serving.machine import Server, free_port, resident_mb, serving
from serve.manifest import read

MODEL = "mlp"
SWITCH, KILL, SAMPLE = 5.0, 20.0, 2.0  # seconds
SHARE = 0.8
PEAK, TURN = 5.0, 60.0  # seconds of measuring the peak, and of asking at a share of it
SEEN = 0.9  # of the new versions must have answered before the next came
GROWTH = 1.10  # last fifth of the memory samples against the second fifth
WARM = 20  # explanations after which the explainer's memory is what it stays
KEPT = 3  # versions in the store at a time


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=10.0, help="default: %(default)s")
    parser.add_argument("--share", type=float, default=SHARE, help="of the peak (default: %(default)s)")
    parser.add_argument("--no-explain", action="store_true", help="no explanations beside")
    parser.add_argument("--keep", action="store_true", help="append a row to benchmarks/results/serving_soak.csv")


class Trouble:
    """What happens to the server while it is asked, on threads of its own within each `with`."""

    def __init__(self, server: Server, staged: list[Path], store: Path, explain: bool) -> None:
        self.server, self.staged, self.store = server, deque(staged), store
        self.stop = threading.Event()
        self.switched = self.killed = 0
        self.explained: Counter[str] = Counter()
        self.memory: dict[str, list[float]] = {"front": [], "workers": [], "explainer": []}
        self.jobs = [self._versions, self._kills, self._samples, *([self._explanations] if explain else [])]

    def __enter__(self) -> "Trouble":
        self.stop.clear()
        self.threads = [threading.Thread(target=job, daemon=True) for job in self.jobs]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(60)

    def _versions(self) -> None:
        present = sorted((self.store / MODEL).iterdir(), key=lambda folder: int(folder.name))
        while self.staged and not self.stop.wait(SWITCH):
            bundle = self.staged.popleft()
            present.append(bundle.rename(self.store / MODEL / bundle.name))
            self.switched += 1
            while len(present) > KEPT:
                gone = present.pop(0)
                shutil.rmtree(gone.rename(self.store.parent / f"gone-{gone.name}"))

    def _kills(self) -> None:
        while not self.stop.wait(KILL):
            workers = self.server.workers
            if workers:
                os.kill(workers[self.killed % len(workers)], signal.SIGKILL)
                self.killed += 1

    def _samples(self) -> None:
        while not self.stop.wait(SAMPLE):
            front, workers = self.server.process.pid, self.server.workers
            others = [process for process in self.server.processes if process not in (front, *workers)]
            for part, processes in zip(self.memory, ([front], workers, others), strict=True):
                self.memory[part].append(resident_mb(processes))

    def _explanations(self) -> None:
        while not self.stop.wait(1.0):
            self.explain()

    def explain(self) -> None:
        """Ask for one explanation and count how it ended."""
        row = {f"x{number}": 0.1 * number for number in range(bundles.FEATURES)}
        url = f"http://127.0.0.1:{self.server.port}/explain/{MODEL}"
        asked = urllib.request.Request(url, json.dumps(row).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                told = json.load(answer)
                self.explained["answered" if told.get("model") == MODEL else f"wrong: {told}"] += 1
        except urllib.error.HTTPError as error:
            if error.code != 503:  # else the version was removed meanwhile; the answer says to ask again
                self.explained[f"status {error.code}: {error.read()[:200].decode(errors='replace')}"] += 1
        except OSError as error:
            self.explained[f"no answer: {error}"] += 1


def main(given: Namespace) -> int:
    seconds = 60 * given.minutes
    with tempfile.TemporaryDirectory() as name:
        store, stage = Path(name) / "store", Path(name) / "stage"
        first = bundles.make(MODEL, store, version=1, seed=1)
        staged = [bundles.make(MODEL, stage, version=2 + n, seed=2 + n) for n in range(int(seconds / SWITCH))]
        inputs = bundles.rows(MODEL)
        answers = {folder.name: bundles.expected(folder, inputs) for folder in [first, *staged]}
        seen: set[str] = set()
        asked = ours.versioned(read(first).manifest, inputs, answers, seen)
        port = free_port()
        with serving(ours.command(store, port), port, Path(name) / "log", ready=ours.READY) as server:
            Drive(port, asked, 64).run(2)
            trouble = Trouble(server, staged, store, explain=not given.no_explain)
            for _ in range(0 if given.no_explain else WARM):
                trouble.explain()
            found, peaks = Figures(), []
            while found.seconds < seconds - 1:
                peaks.append(Drive(port, asked, 64).run(PEAK).rate)
                with trouble:
                    drive = Drive(port, asked, 256, check_every=1)
                    now = drive.run(min(TURN, seconds), rate=given.share * peaks[-1], backlog=30.0)
                print(f"peak {peaks[-1]:.0f}/s; at {given.share:.0%}: {now}", flush=True)
                found += now
            alive = server.process.poll() is None
            printed = server.printed()
    print(f"at {given.share:.0%}: {found}; versions {trouble.switched}, {len(seen)} answered, killed {trouble.killed}")
    print(f"explanations: {dict(trouble.explained)}")
    growth = {part: _growth(samples) for part, samples in trouble.memory.items()}
    for part, samples in trouble.memory.items():
        fifths = " ".join(f"{value:.0f}" for value in _fifths(samples))
        print(f"memory of {part}: {fifths} MB in each fifth of the time, last to second {growth[part]:.3f}")
    failures = []
    if not found.clean or found.unasked:
        failures.append(f"not every request was answered rightly: {found}; {found.first_wrong}")
    if len(seen) < SEEN * trouble.switched:
        failures.append(f"of {trouble.switched} new versions only {len(seen) - 1} ever answered; it printed: {printed}")
    if not alive:
        failures.append(f"the server ended; it printed: {printed}")
    failures += [
        f"memory of {part} grew to {ratio:.2f} of what it was, at most {GROWTH} is expected"
        for part, ratio in growth.items()
        if ratio > GROWTH
    ]
    if not given.no_explain and set(trouble.explained) != {"answered"}:
        failures.append(f"explanations: {dict(trouble.explained)}")
    if given.keep:
        row = {
            "minutes": f"{given.minutes:g}",
            "peak_per_s": f"{statistics.median(peaks):.0f}",
            "share": f"{given.share:g}",
            "answers": found.answers,
            "checked": found.checked,
            "wrong": found.wrong,
            "lost": found.lost + found.unasked,
            "refused": found.answers - found.statuses[200],
            "p50_ms": f"{1000 * found.latency(0.5):.2f}",
            "p99_ms": f"{1000 * found.latency(0.99):.2f}",
            "new_versions": trouble.switched,
            "versions_that_answered": len(seen),
            "workers_killed": trouble.killed,
            "explanations": trouble.explained["answered"],
            "memory_mb": " ".join(f"{part}={_fifths(samples)[-1]:.0f}" for part, samples in trouble.memory.items()),
            "memory_growth": " ".join(f"{part}={ratio:.3f}" for part, ratio in growth.items()),
        }
        append("serving_soak", row, packages=("zooroad", "onnxruntime", "numpy"))
    return ours.report(failures)


def _fifths(samples: list[float]) -> list[float]:
    """Median of the samples in each fifth of the time, without those of a process that is not there."""
    size = max(1, len(samples) // 5)
    parts = ([sample for sample in samples[start : start + size] if sample] for start in range(0, 5 * size, size))
    return [statistics.median(part) if part else 0.0 for part in parts]


def _growth(samples: list[float]) -> float:
    """Memory in the last fifth of the time against the second, in which everything is warm; 1 for what was never there."""
    _, second, *_, last = _fifths(samples)
    return last / second if second else 1.0
