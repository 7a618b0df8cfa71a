"""Requests per second and 99th percentile at 1, 8 and 64 kept connections, against other servers.

ResNet-50 is compared with ONNX Runtime called in a loop instead, in turns with it, so that both see the same machine.

Every server serves one model at a time and is asked the same rows by the same generator on the same cores, in the setting
that is best for it: where two are tried, each figure is the better one. Answers are compared with ONNX Runtime's.
"""

import math
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.record import append
from benchmarks.serving import bundles, forms, ours
from benchmarks.serving.load import Drive, Figures
from benchmarks.serving.machine import NotStarted, Server, cpu_seconds, free_port, resident_mb, serving
from benchmarks.serving.peers import PEERS, SPREAD, WIDE, Setting, launch
from serve.manifest import Manifest, read

CONNECTIONS = (1, 8, 64)
OURS = "zooroad"
ALONE = Setting(1, 1)  # what `zoo serve --tune` often finds for small models: it leaves a core to the connections
PORTS = 3  # MLServer takes the two after its own for gRPC and metrics
KINDS = {"json": "v2", "binary": "v2-binary"}
MOST_AT_64, MOST_AT_1, SHORTER, RESNET = (
    5.0,
    3.0,
    0.5,
    0.95,
)  # targets: times as many, share of p99, share of the bare loop


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", choices=bundles.MODELS, default=bundles.MODELS)
    parser.add_argument("--servers", nargs="+", choices=(OURS, *PEERS), default=(OURS, *PEERS))
    parser.add_argument("--connections", nargs="+", type=int, default=CONNECTIONS)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--short", action="store_true", help="1 s of each, one setting of each peer")
    parser.add_argument("--venvs", type=Path, default=bundles.cache() / "peers", help="environments of the peers")
    parser.add_argument("--keep", action="store_true", help="append the rows to benchmarks/results/serving.csv")


def bare(model: Path, inputs: np.ndarray, seconds: float, setting: Setting) -> float:
    """Rows per second of ONNX Runtime called in loops, one process per worker, one row at a time, without HTTP."""
    script = (
        "import sys, time, numpy as np, onnxruntime as ort\n"
        "options = ort.SessionOptions()\n"
        "options.intra_op_num_threads = int(sys.argv[3])\n"
        "session = ort.InferenceSession(sys.argv[1], options, providers=['CPUExecutionProvider'])\n"
        "rows, port = np.load(sys.argv[2]), session.get_inputs()[0].name\n"
        "for row in rows: session.run(None, {port: row[None]})\n"
        "sys.stdout.write('ready\\n'); sys.stdout.flush(); sys.stdin.readline()\n"
        "count, began = 0, time.perf_counter()\n"
        "while time.perf_counter() - began < float(sys.argv[4]):\n"
        "    session.run(None, {port: rows[count % len(rows)][None]}); count += 1\n"
        "print(count / (time.perf_counter() - began))\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "rows.npy", inputs)
        command = [sys.executable, "-c", script, model, Path(folder) / "rows.npy", setting.threads, seconds]
        loops = [
            subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(setting.workers)
        ]
        for loop in loops:
            loop.stdout.readline()
        for loop in loops:
            loop.stdin.write("go\n")
            loop.stdin.flush()
        return sum(float(loop.communicate()[0]) for loop in loops)


@dataclass(frozen=True)
class Result:
    """One measurement of a server.

    Attributes:
        cores: processor cores that the server used.
        memory: MB of all its processes afterwards.
        loop: rows per second of ONNX Runtime in a loop, before and after.
    """

    figures: Figures
    setting: Setting
    cores: float
    memory: float
    loop: float


Table = dict[tuple[str, str, str, int], Result]  # by model, form, server and connections


def main(given: Namespace) -> int:
    seconds = 1.0 if given.short else given.seconds
    store = bundles.cache() / "benchmark-store"
    table: Table = {}
    absent: dict[str, str] = {}
    for name in given.models:
        bundle = bundles.make(name, store)
        manifest, inputs = read(bundle).manifest, bundles.rows(name)
        answers = bundles.expected(bundle, inputs)
        tries = {setting: bare(bundle / "model.onnx", inputs, seconds, setting) for setting in (SPREAD, WIDE)}
        best_loop = max(tries, key=tries.__getitem__)
        told = ", ".join(f"{setting} {rate:.1f}/s" for setting, rate in tries.items())
        print(f"{name}: ONNX Runtime in a loop: {told}", flush=True)
        for server in given.servers:
            if server in absent:
                continue
            turns = server == OURS and name == "resnet50"
            loop = partial(bare, bundle / "model.onnx", inputs, seconds, best_loop) if turns else None
            for setting in _settings(server, given.short):
                try:
                    found = _measure(server, setting, bundle, manifest, inputs, answers, given, seconds, loop)
                except (NotStarted, RuntimeError) as error:
                    print(f"{name} on {server} {setting}: NOT MEASURED: {error}", flush=True)
                    absent[server] = str(error)
                    break
                for (kind, connections), result in found.items():
                    print(
                        f"{name} {kind} on {server} {setting}, {connections} connections: {result.figures}", flush=True
                    )
                    key = name, kind, server, connections
                    if key not in table or result.figures.rate > table[key].figures.rate:
                        table[key] = result
    return _report(given, table, absent)


def _settings(server: str, short: bool) -> Sequence[Setting]:
    known = (SPREAD, ALONE) if server == OURS else PEERS[server].settings
    return known[:1] if short else known


def _measure(
    server: str,
    setting: Setting,
    bundle: Path,
    manifest: Manifest,
    inputs: np.ndarray,
    answers: np.ndarray,
    given: Namespace,
    seconds: float,
    loop: Callable[[], float] | None,
) -> dict[tuple[str, int], Result]:
    """Results by form and connections, of one server in one setting."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        scratch, port = Path(name), free_port(PORTS)
        if server == OURS:
            chosen = ("--workers", setting.workers, "--threads", setting.threads)
            command = ours.command(ours.link(bundle, scratch / "store"), port, *chosen)
            environment, ready = {}, ours.READY
            paths = {kind: (form, f"/v2/models/{manifest.name}/infer") for kind, form in KINDS.items()}
        else:
            peer = PEERS[server]
            python = peer.python(given.venvs)
            command, environment = launch(peer, python, port, setting, bundle / "model.onnx", scratch)
            ready, paths = peer.ready, peer.forms
        with serving(command, port, scratch / "log", environment=environment, ready=ready, seconds=90) as live:
            for kind, (form, path) in paths.items():
                asked = forms.questions(form, path, manifest, inputs, answers)
                _first_answer(live, asked)
                for connections in given.connections:
                    Drive(port, asked, connections, check_every=10).run(min(1.0, seconds / 2))
                    loops = [loop()] if loop else []
                    before, began = cpu_seconds(live.processes), time.perf_counter()
                    figures = Drive(port, asked, connections).run(seconds)
                    cores = (cpu_seconds(live.processes) - before) / (time.perf_counter() - began)
                    loops += [loop()] if loop else []
                    mean = statistics.fmean(loops) if loops else math.nan
                    found[kind, connections] = Result(figures, setting, cores, resident_mb(live.processes), mean)
                    if figures.wrong or not figures.good:
                        raise RuntimeError(
                            f"gives wrong answers: {figures.first_wrong or figures}; {live.printed(500)}"
                        )
    return found


def _first_answer(live: Server, asked: list, seconds: float = 60.0) -> None:
    """Ask until there is a good answer; some servers say they are ready before they can answer."""
    end = time.monotonic() + seconds
    figures = Figures()
    while time.monotonic() < end:
        try:
            figures = Drive(live.port, asked, 1, check_every=1, patience=20).run(10, most=2)
        except OSError as error:
            figures.first_wrong = str(error)
        if figures.good:
            return
        time.sleep(0.3)
    raise NotStarted(f"no good answer in {seconds:g} s: {figures}; {figures.first_wrong}; {live.printed()}")


def _report(given: Namespace, table: Table, absent: dict[str, str]) -> int:
    """Print tables, append rows if asked to, and judge; 1 where a target is missed."""
    missed = [f"{server} could not be measured: {reason[:200]}" for server, reason in absent.items()]
    for (name, kind, server, connections), result in table.items():
        figures = result.figures
        row = {
            "model": name,
            "form": kind,
            "server": server,
            "version": "" if server == OURS else PEERS[server].version(),
            "setting": str(result.setting),
            "connections": connections,
            "per_s": f"{figures.rate:.1f}",
            "p50_ms": f"{1000 * figures.latency(0.5):.2f}",
            "p99_ms": f"{1000 * figures.latency(0.99):.2f}",
            "server_cores": f"{result.cores:.2f}",
            "generator_cores": f"{figures.own_cores:.2f}",
            "memory_mb": f"{result.memory:.0f}",
            "bare_loop_per_s": "" if math.isnan(result.loop) else f"{result.loop:.1f}",
        }
        if given.keep:
            append("serving", row, packages=("zooroad", "onnxruntime", "numpy"))
        if not figures.clean:
            missed.append(f"{name} {kind} on {server}, {connections} connections: {figures} {figures.first_wrong}")
    for name in given.models:
        _print_table(name, given, table)
        missed += _judge(name, given, table)
    return ours.report(missed)


def _print_table(name: str, given: Namespace, table: Table) -> None:
    columns = [(kind, connections) for kind in KINDS for connections in given.connections]
    print(f"\n{name}: requests per second (p99 in ms)")
    print(" " * 14 + "".join(f"{f'{kind} {connections}':>20}" for kind, connections in columns))
    for server in given.servers:
        found = [table.get((name, kind, server, connections)) for kind, connections in columns]
        cells = [
            f"{each.figures.rate:.0f} ({1000 * each.figures.latency(0.99):.1f})" if each else "-" for each in found
        ]
        print(f"{server:<14}" + "".join(f"{cell:>20}" for cell in cells))


def _judge(name: str, given: Namespace, table: Table) -> list[str]:
    """What was missed for one model: against the best documented peer, in any form of body; the others are only told of."""
    missed = []

    def judge(what: str, ratio: float, target: float, reached: bool) -> None:
        line = f"{name} {what}: {ratio:.2f}, target {target:g}"
        print(("reached: " if reached else "missed: ") + line)
        if not reached:
            missed.append(line)

    for kind, connections in [(kind, connections) for kind in KINDS for connections in given.connections]:
        own = table.get((name, kind, OURS, connections))
        if own is None:
            continue
        place = f"{kind}, {connections} connections"
        if name == "resnet50":
            if connections > 1:
                share = own.figures.rate / own.loop
                judge(f"{place}, of ONNX Runtime in a loop", share, RESNET, share >= RESNET)
            continue
        for documented in (True, False):
            others = [
                (result.figures, server)
                for (model, _, server, number), result in table.items()
                if (model, number) == (name, connections) and server != OURS and PEERS[server].documented is documented
            ]
            if not others:
                continue
            most, by = max(others, key=lambda each: each[0].rate)
            soonest, first = min(others, key=lambda each: each[0].latency(0.99))
            times = own.figures.rate / most.rate
            share = own.figures.latency(0.99) / soonest.latency(0.99)
            if not documented:
                print(f"told only: {name} {place}: {times:.2f} times {by}, {share:.2f} of the p99 of {first}")
                continue
            target = {1: MOST_AT_1, 64: MOST_AT_64}.get(connections)
            if target:
                judge(f"{place}, times {by}", times, target, times >= target)
            if connections == 64:
                judge(f"{place}, of the p99 of {first}", share, SHORTER, share <= SHORTER)
    return missed
