"""Faults: a full disk, changed bundle bytes, slow clients, half-closed sockets, 2,000 connections, overload at 3x peak.

Each fault is made while ordinary clients ask, whose answers are compared; the server must serve them through it and be
sound after it.
"""

import contextlib
import json
import resource
import shutil
import socket
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.record import append
from benchmarks.serving import bundles, forms, ours
from benchmarks.serving.load import Drive, Figures, whole
from benchmarks.serving.machine import Server, files, free_port, serving
from serve.manifest import BundleError, read
from serve.runtime import Model

OVERLOAD, GOODPUT = 3.0, 0.8
TIMEOUTS = {"resnet50": 2.0, "cnn": 0.1, "mlp": 0.1}  # seconds a client of the overload asks for
PATIENCE = 1.25  # times as long it waits
LIMITED = """
import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
from serve.__main__ import main
sys.exit(main())
"""


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=tuple(FAULTS), help="which (default: all)")
    parser.add_argument("--short", action="store_true", help="100 changed bytes, 5 s of each load")
    parser.add_argument("--overload", choices=bundles.MODELS, default="resnet50", help="model (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="append rows to benchmarks/results/serving_faults.csv")


def main(given: Namespace) -> int:
    failures = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder:
            found, told = FAULTS[name](Path(folder), given)
        print(f"{name}: {told}", flush=True)
        failures += [f"{name}: {line}" for line in found]
        if given.keep:
            row = {"fault": name, "found": told, "passed": "no" if found else "yes"}
            append("serving_faults", row, packages=("zooroad", "onnxruntime", "numpy"))
    return ours.report(failures)


def full_disk(folder: Path, given: Namespace) -> tuple[list[str], str]:
    """Every write of a log line fails, and no file can grow beyond 1 kB, so that traffic rules cannot be saved."""
    bundle = bundles.make("mlp", bundles.cache() / "benchmark-store")
    store, port = ours.link(bundle, folder / "store"), free_port()
    keys, token = ours.key(folder)
    command = [sys.executable, "-c", LIMITED, 1024, store, "--port", port, "--keys", keys, "--state", folder / "state"]
    allowed = {"Authorization": f"Bearer {token}"}
    with serving(command, port, folder / "log", ready=ours.READY) as server:
        asked = ours.questions(bundle, headers=allowed)
        found = Drive(port, asked, 8, check_every=1).run(2 if given.short else 10)
        told = [
            _ask(server, method, path, body, allowed)
            for method, path, body in (
                ("PUT", "/admin/traffic/mlp/pin", b'{"version": "1"}'),
                ("GET", "/admin/traffic/mlp", b""),
                ("GET", "/metrics", b""),
                ("GET", "/models", b""),
            )
        ]
        saved = json.loads(_ask(server, "GET", "/admin/workers", b"", allowed)[1])["state"]
        after = Drive(port, asked, 8, check_every=1).run(1)
        alive = server.process.poll() is None
    failures = [f"{each}; {each.first_wrong}" for each in (found, after) if not each.clean]
    failures += [f"answered {status}: {body[:200]!r}" for status, body in told if status not in (200, 503, 507)]
    failures += [] if saved["problem"] else ["the server does not say that its rules are not saved"]
    return failures + (
        [] if alive else ["the server ended"]
    ), f"{found}; statuses {[status for status, _ in told]}; rules saved: {saved['saved']}"


def changed_bytes(folder: Path, given: Namespace) -> tuple[list[str], str]:
    """Single bytes of a bundle changed: each is refused or harmless; some of them also in front of a live server."""
    source = bundles.make("mlp", bundles.cache() / "benchmark-store")
    inputs = bundles.rows("mlp")
    right = bundles.expected(source, inputs)
    copy = folder / "copy" / "mlp" / "1"
    shutil.copytree(source, copy)
    parts = sorted(path for path in copy.iterdir() if path.is_file())
    random, outcome, failures = np.random.default_rng(5), Counter[str](), []
    for _ in range(100 if given.short else 1000):
        part = parts[random.integers(len(parts))]
        whole_file = part.read_bytes()
        _flip(part, random)
        try:
            answer = Model(read(copy), threads=1).predict({"numbers": inputs})["probabilities"]
        except BundleError:
            outcome["refused"] += 1
        except Exception as error:  # any other end of the loader is what is looked for
            failures.append(f"a changed byte in {part.name} ended in {type(error).__name__}: {error}")
        else:
            outcome["harmless"] += 1
            if np.abs(answer - right).max() > forms.TOLERANCE:
                failures.append(f"a changed byte in {part.name} changed the answers")
        part.write_bytes(whole_file)
    store, port = folder / "store", free_port()
    shutil.copytree(source, store / "mlp" / "1")
    with serving(ours.command(store, port), port, folder / "log", ready=ours.READY) as server:
        with _asking(server, ours.questions(source)) as healthy:
            for version in range(2, 12):
                made = bundles.make("mlp", folder / "stage", version=version)
                _flip(sorted(made.iterdir())[version % len(list(made.iterdir()))], random)
                made.rename(store / "mlp" / str(version))
                time.sleep(0.3)
            time.sleep(2)
        index = json.loads(_ask(server, "POST", "/v2/repository/index", b"{}", {})[1])
    ready = sorted(int(entry["version"]) for entry in index if entry["state"] == "READY")
    found = healthy()
    failures += [] if found.clean else [f"clients beside: {found}; {found.first_wrong}"]
    if ready != [1]:
        failures.append(f"versions {ready} are served, of which only 1 is whole")
    return failures, f"{dict(outcome)}; live: {found}, versions served {ready}"


def _flip(path: Path, random: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    data[random.integers(len(data))] ^= int(random.integers(1, 256))
    path.write_bytes(data)


def slow_clients(folder: Path, given: Namespace) -> tuple[list[str], str]:
    """300 clients that send a byte a second, or do not read; ordinary ones must not notice."""
    with _one_model(folder) as (server, asked):
        alone = Drive(server.port, asked, 8).run(3)
        before = files(server.process.pid)
        slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(300)]
        stop = threading.Event()
        raw = asked[0].raw
        head = raw.index(b"\r\n\r\n") + 4

        def dawdle() -> None:
            place = 0
            for number, each in enumerate(slow):
                each.setblocking(False)
                if number % 3 == 0:  # the whole head at once, then the body by bytes
                    each.send(raw[:head])
                if number % 3 == 2:  # many requests, and no answer is read
                    with contextlib.suppress(OSError):
                        each.send(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
            while not stop.wait(1.0):
                for number, each in enumerate(slow):
                    with contextlib.suppress(OSError):
                        start = place + (head if number % 3 == 0 else 0)
                        if number % 3 != 2:
                            each.send(raw[start : start + 1])
                place += 1

        thread = threading.Thread(target=dawdle, daemon=True)
        thread.start()
        time.sleep(1)
        beside = Drive(server.port, asked, 8, check_every=1).run(5 if given.short else 15)
        after_probe = server.get(ours.READY)[0]
        stop.set()
        thread.join()
        for each in slow:
            each.close()
        left = _settled(lambda: files(server.process.pid), before)
    failures = [] if beside.clean else [f"clients beside: {beside}; {beside.first_wrong}"]
    if beside.rate < 0.5 * alone.rate:
        failures.append(f"clients beside had {beside.rate:.0f}/s, alone {alone.rate:.0f}/s")
    if after_probe != 200:
        failures.append(f"not ready: {after_probe}")
    if left > before + 5:
        failures.append(f"{left} files are open after it, {before} before")
    return failures, f"alone {alone}; beside {beside}; files {before} -> {left}"


def half_closed(folder: Path, given: Namespace) -> tuple[list[str], str]:
    """Clients that end their sending side: whole requests are answered, parts of requests are let go."""
    failures, outcome = [], Counter[str]()
    with _one_model(folder) as (server, asked):
        before = files(server.process.pid)
        for number in range(100 if given.short else 500):
            question = asked[number % len(asked)]
            cut = len(question.raw) if number % 2 == 0 else 1 + number * 7919 % (len(question.raw) - 1)
            with socket.create_connection(("127.0.0.1", server.port), timeout=15) as client:
                client.sendall(question.raw[:cut])
                client.shutdown(socket.SHUT_WR)
                received = b""
                try:
                    while data := client.recv(65536):
                        received += data
                except TimeoutError:
                    failures.append(f"{cut} of {len(question.raw)} bytes, then silence for 15 s")
                    continue
                except ConnectionResetError:
                    outcome["reset"] += 1
            answer = whole(received)
            outcome["nothing" if answer is None else f"status {answer[0]}"] += 1
            if cut == len(question.raw) and not (answer and answer[0] == 200 and question.right(*answer[1:3])):
                failures.append(f"a whole request was answered with {received[:100]!r}")
            if cut < len(question.raw) and answer and answer[0] not in (400, 408):
                failures.append(f"a part of a request was answered with {received[:100]!r}")
        found = Drive(server.port, asked, 8, check_every=1).run(2)
        left = _settled(lambda: files(server.process.pid), before)
    failures += [] if found.clean else [f"afterwards: {found}"]
    failures += [f"{left} files are open after it, {before} before"] if left > before + 5 else []
    return failures[:5], f"{dict(outcome)}; files {before} -> {left}"


def connections(folder: Path, given: Namespace) -> tuple[list[str], str]:
    """2,000 kept connections that all ask."""
    with _one_model(folder) as (server, asked):
        found = Drive(server.port, asked, 2000, check_every=1).run(5 if given.short else 20)
    return [] if found.clean else [f"{found}; {found.first_wrong}"], str(found)


def overload(folder: Path, given: Namespace) -> tuple[list[str], str]:
    """Three times the peak: answers that clients still wait for must not become fewer than 80 % of the peak."""
    bundle = bundles.make(given.overload, bundles.cache() / "benchmark-store")
    store, port = ours.link(bundle, folder / "store"), free_port()
    timeout = TIMEOUTS[given.overload]
    asked = ours.questions(bundle, "v2-binary", headers={"X-Request-Timeout": f"{timeout:g}"})
    with serving(ours.command(store, port), port, folder / "log", ready=ours.READY) as server:
        Drive(port, asked, 64).run(1)
        peak = Drive(port, asked, 64).run(5)
        seconds = 8 if given.short else 30
        drive = Drive(port, asked, 2000, late=PATIENCE * timeout, check_every=1)
        found = drive.run(seconds, rate=OVERLOAD * peak.rate)
        after = Drive(port, asked, 4, check_every=1).run(3)
        status = server.get(ours.READY)[0]
    share = found.rate / peak.rate
    failures = [f"goodput {share:.2f} of peak, at least {GOODPUT} is expected"] if share < GOODPUT else []
    due = found.answers + found.lost + found.unasked
    if found.unasked > 0.1 * due:
        failures.append(f"{found.unasked} of {due} requests could not be asked, so it was no overload of {OVERLOAD:g}")
    refused = {code for code in found.statuses if code not in (200, 429, 503, 504)}
    if refused or found.wrong or found.lost:
        failures.append(f"answers other than 200, 429, 503 and 504: {found}; {found.first_wrong}")
    if not after.clean or status != 200:
        failures.append(f"afterwards: {after}, ready {status}")
    return failures, f"peak {peak.rate:.1f}/s; offered {OVERLOAD * peak.rate:.1f}/s: good {share:.2f} of peak; {found}"


FAULTS: dict[str, Callable[[Path, Namespace], tuple[list[str], str]]] = {
    "full_disk": full_disk,
    "changed_bytes": changed_bytes,
    "slow_clients": slow_clients,
    "half_closed": half_closed,
    "connections": connections,
    "overload": overload,
}


@contextlib.contextmanager
def _one_model(folder: Path):
    """The small MLP served, and questions to it."""
    bundle = bundles.make("mlp", bundles.cache() / "benchmark-store")
    store, port = ours.link(bundle, folder / "store"), free_port()
    with serving(ours.command(store, port), port, folder / "log", ready=ours.READY) as server:
        asked = ours.questions(bundle)
        Drive(port, asked, 8).run(1)
        yield server, asked


@contextlib.contextmanager
def _asking(server: Server, asked: list):
    """Ask at 200/s until the block ends; gives a function that then returns the figures."""
    ended: list[Figures] = []
    drive = Drive(server.port, asked, 8, check_every=1)
    drive_seconds = threading.Event()
    finished = threading.Event()

    def go() -> None:
        total = Figures()
        while not drive_seconds.is_set():
            part = drive.run(1.0, rate=200)
            total.seconds += part.seconds
            total.good += part.good
            total.checked += part.checked
            total.wrong += part.wrong
            total.lost += part.lost
            total.statuses += part.statuses
            total.counts += part.counts
            total.first_wrong = total.first_wrong or part.first_wrong
        ended.append(total)
        finished.set()

    threading.Thread(target=go, daemon=True).start()
    try:
        yield lambda: ended[0]
    finally:
        drive_seconds.set()
        finished.wait(60)


def _settled(measure: Callable[[], int], goal: int, seconds: float = 15.0) -> int:
    """A figure once it has come down to the goal, or after some time."""
    end = time.monotonic() + seconds
    while (now := measure()) > goal and time.monotonic() < end:
        time.sleep(0.2)
    return now


def _ask(server: Server, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    """Status and body of an answer."""
    raw = forms.raw_request(path, body, {"Content-Type": "application/json", "Connection": "close", **headers})
    with socket.create_connection(("127.0.0.1", server.port), timeout=15) as client:
        client.sendall(raw.replace(b"POST", method.encode(), 1))
        received = b""
        while data := client.recv(65536):
            received += data
    answer = whole(received)
    return (answer[0], answer[2]) if answer else (0, received)
