"""Nonsense: Schemathesis over the OpenAPI document, and 100,000 mutated bodies. No 5xx, no hang, no growth.

Schemathesis has an environment of its own. Mutated bodies begin as requests that are right, in every form the server takes, and
are changed by bytes, by JSON values and by their headers; the server must answer each with 200 or a 4xx, and right
requests afterwards as before.
"""

import re
import subprocess
import tempfile
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.record import append
from benchmarks.serving import bundles, forms, ours
from benchmarks.serving.load import Drive, Question
from benchmarks.serving.machine import Server, files, free_port, resident_mb, serving
from benchmarks.serving.peers import environment
from serve.manifest import read

CHUNK = 2000  # bodies at a time
SILENCE = 20.0  # seconds without an answer that count as a hang
GROWTH = 1.10
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
PATIENT = (
    '[parameters]\n"header.X-Request-Timeout" = "30"\n'  # else it finds that no time is too little time, which is a 504
)
PINNED = PATIENT + '"path.model" = "mlp"\n"path.version" = "1"\n'
NASTY = (
    None, True, -1, 0, 1e308, -0.0, 2**31, 2**63, 2**64, -(2**63) - 1, 10**40, "", "NaN", "\u0000", "🦊" * 50, [], {}, [[]],
    [None], [1, [2]], {"a": 1}, "../../etc/passwd", [0] * 1000, "x" * 5000,
)  # fmt: skip
TEXTS = (
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"[" * 3000,
    b'{"a":' * 500,
    b"\xff\xfe",
    b"\x00",
    b"\\ud800",
    b"",
    b",",
    b"0" * 400,
)

Valid = tuple[str, dict[str, str], bytes]


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--bodies", type=int, default=100_000, help="mutated bodies (default: %(default)s)")
    parser.add_argument(
        "--examples", type=int, default=100, help="of Schemathesis for each route (default: %(default)s)"
    )
    parser.add_argument("--short", action="store_true", help="4,000 bodies, 10 examples")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--venvs", type=Path, default=bundles.cache() / "peers", help="environment of Schemathesis")
    parser.add_argument("--keep", action="store_true", help="append a row to benchmarks/results/serving_fuzz.csv")


def main(given: Namespace) -> int:
    bodies, examples = (4000, 10) if given.short else (given.bodies, given.examples)
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        store = Path(name) / "store"
        made = [bundles.make(model, bundles.cache() / "benchmark-store") for model in ("mlp", "cnn")]
        for bundle in made:
            ours.link(bundle, store)
        keys, token = ours.key(Path(name))
        passes = (["--keys", keys], token, PINNED, "examples,coverage,fuzzing"), ([], "", PATIENT, "coverage")
        told = []
        for extra, sent, config, phases in passes:  # with every right and real models; as a stranger with any names
            port = free_port()
            with serving(ours.command(store, port, *extra), port, Path(name) / "log", ready=ours.READY) as server:
                told.append(_schemathesis(server, given, examples, sent, config, phases, failures))
                if server.process.poll() is not None:
                    failures.append(f"the server ended: {server.printed()}")
        port = free_port()
        with serving(ours.command(store, port), port, Path(name) / "log", ready=ours.READY) as server:
            right = [question for bundle in made for question in ours.questions(bundle)]
            statuses, growth = _mutated(server, _valid(made), bodies, given.seed, failures)
            after = Drive(port, right, 8, check_every=1).run(2)
            if not after.clean or server.process.poll() is not None:
                failures.append(f"right requests afterwards: {after}; {after.first_wrong}; {server.printed()}")
    print(f"schemathesis: {told}\nmutated bodies: {statuses}, memory {growth:.3f} of what it was")
    if given.keep:
        row = {
            "bodies": bodies,
            "statuses": " ".join(f"{status}={count}" for status, count in sorted(statuses.items())),
            "memory_growth": f"{growth:.3f}",
            "schemathesis": "; ".join(told),
            "passed": "no" if failures else "yes",
        }
        append("serving_fuzz", row, packages=("zooroad", "onnxruntime", "numpy"))
    return ours.report(failures)


def _schemathesis(
    server: Server, given: Namespace, examples: int, token: str, config: str, phases: str, failures: list[str]
) -> str:
    """Its last line; what it found goes to `failures`."""
    try:
        python = environment(given.venvs / "fuzz", Path(__file__).with_name("fuzz-requirements.txt"))
    except RuntimeError as error:
        failures.append(f"schemathesis was not run: {error}")
        return "not run"
    command = [python.with_name("schemathesis"), "run", f"http://127.0.0.1:{server.port}/openapi.json"]
    chosen = ["--checks", CHECKS, "--phases", phases, "--max-examples", examples]
    chosen += ["--header", f"Authorization: Bearer {token}"] if token else []
    bounds = ["--continue-on-failure", "--seed", given.seed, "--request-timeout", SILENCE, "--no-color"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "schemathesis.toml").write_text(config)
        done = subprocess.run(
            [str(part) for part in (*command, *chosen, *bounds)],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            timeout=3600,
        )
    if done.returncode:
        parts = re.split(r"^_{5,} (.+?) _{5,}$", done.stdout.partition("= FAILURES =")[2], flags=re.MULTILINE)
        failures += [
            f"schemathesis: {route}: {' '.join(text.split())[:700]}"
            for route, text in zip(parts[1::2], parts[2::2], strict=False)
        ]
        failures += [] if parts[1:] else [f"schemathesis ended with {done.returncode}: {done.stdout[-800:]}"]
    told = re.findall(r"^\s*(\d+ generated.*)$", done.stdout, re.MULTILINE)
    return told[-1] if told else f"{done.stdout[-300:]} {done.stderr[-300:]}"


def _valid(made: list[Path]) -> list[Valid]:
    """(path, headers, body) of right requests in every form."""
    found: list[Valid] = []
    for bundle in made:
        manifest = read(bundle).manifest
        rows = bundles.rows(manifest.name, 3)
        for form in ("v2", "v2-binary"):
            body, headers = forms.FORMS[form].build(manifest, rows)
            found.append((f"/v2/models/{manifest.name}/infer", headers, body))
        instances = msgspec.json.encode({"instances": rows.tolist()})
        found.append((f"/v1/models/{manifest.name}:predict", {"Content-Type": "application/json"}, instances))
    row = {f"x{number}": 0.5 for number in range(bundles.FEATURES)}
    found.append(("/predict/mlp?top=3", {"Content-Type": "application/json"}, msgspec.json.encode([row, row])))
    found.append(("/v2/repository/index", {"Content-Type": "application/json"}, b'{"ready": true}'))
    return found


def _mutated(
    server: Server, valid: list[Valid], bodies: int, seed: int, failures: list[str]
) -> tuple[Counter[int], float]:
    """Statuses of mutated bodies, and memory at the end against that after the first tenth."""
    random = np.random.default_rng(seed)
    statuses: Counter[int] = Counter()
    memory, opened = 0.0, 0
    for start in range(0, bodies, CHUNK):
        asked = [_mutate(*valid[random.integers(len(valid))], random) for _ in range(min(CHUNK, bodies - start))]
        found = Drive(server.port, asked, 8, patience=SILENCE).run(600, most=len(asked))
        statuses += found.statuses
        for status, question in found.first_of.items():
            if status >= 500:
                failures.append(f"status {status} for {asked[question].raw[:1500]!r}")
        if found.lost:
            failures.append(f"{found.lost} of the bodies {start} to {start + len(asked)} had no answer")
        if start <= bodies // 10:
            memory, opened = resident_mb(server.processes), files(server.process.pid)
    growth = resident_mb(server.processes) / memory
    if growth > GROWTH:
        failures.append(f"memory grew to {growth:.2f} of what it was")
    if files(server.process.pid) > opened + 16:
        failures.append(f"{files(server.process.pid)} files are open, {opened} were")
    return statuses, growth


def _mutate(path: str, headers: dict[str, str], body: bytes, random: np.random.Generator) -> Question:
    """A request that is wrong in one or a few places, in HTTP that is right."""
    headers = dict(headers)
    for _ in range(1 + int(random.integers(3))):
        body = MUTATIONS[random.integers(len(MUTATIONS))](body, headers, random)
    return Question(forms.raw_request(path, body, headers), lambda head, body: True)


def _bytes(body: bytes, headers: dict[str, str], random: np.random.Generator) -> bytes:
    data = bytearray(body)
    for _ in range(1 + int(random.integers(8))):
        if data:
            data[random.integers(len(data))] = int(random.integers(256))
    return bytes(data)


def _cut(body: bytes, headers: dict[str, str], random: np.random.Generator) -> bytes:
    return body[: random.integers(len(body) + 1)]


def _repeated(body: bytes, headers: dict[str, str], random: np.random.Generator) -> bytes:
    start, end = sorted(random.integers(len(body) + 1, size=2))
    return body[:end] + body[start:end] + body[end:]


def _inserted(body: bytes, headers: dict[str, str], random: np.random.Generator) -> bytes:
    place = int(random.integers(len(body) + 1))
    skipped = int(random.integers(4))
    return body[:place] + TEXTS[random.integers(len(TEXTS))] + body[place + skipped :]


def _value(body: bytes, headers: dict[str, str], random: np.random.Generator) -> bytes:
    """Another value at a random place of the JSON, or a key less, or more."""
    length = headers.get("Inference-Header-Content-Length")
    end = int(length) if length is not None and length.isdigit() else len(body)
    try:
        root = msgspec.json.decode(body[:end])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body
    value = NASTY[random.integers(len(NASTY))]
    place = root
    while isinstance(place, (dict, list)) and place:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = keys[random.integers(len(keys))]
        inner = place[key]
        if not isinstance(inner, (dict, list)) or not inner or random.random() < 0.25:
            if random.random() < 0.2:
                del place[key]
            else:
                place[key] = value
            break
        place = inner
    else:
        root = value
    try:
        header = msgspec.json.encode(root)
    except (OverflowError, RecursionError):
        return body
    if length is not None and length.isdigit() and random.random() < 0.8:
        headers["Inference-Header-Content-Length"] = str(len(header))
    return header + body[end:]


def _header(body: bytes, headers: dict[str, str], random: np.random.Generator) -> bytes:
    """Another header; framing stays right."""
    name, values = HEADERS[random.integers(len(HEADERS))]
    headers[name] = values[random.integers(len(values))]
    return body


HEADERS = (
    ("Inference-Header-Content-Length", ("0", "1", "-1", "99999999999", "x", "", "10", "1.5", "٣")),
    (
        "Content-Type",
        ("text/plain", "image/png", "application/octet-stream", "multipart/form-data; boundary=x", "", "\xff"),
    ),
    ("Content-Encoding", ("gzip", "deflate", "br", "identity", "gzip, gzip", "")),
    ("X-Request-Timeout", ("0", "-1", "nan", "inf", "1e99", "x", "30")),
    ("X-Request-Id", ("a" * 300, "%00", "<script>", "é", "")),
    ("Accept-Encoding", ("gzip", "gzip;q=0", "*", ",,,", "x;q=y")),
    ("Accept", ("text/html", "*/*", "x", "")),
)
MUTATIONS: tuple[Callable[[bytes, dict[str, str], np.random.Generator], bytes], ...] = (
    _bytes, _cut, _repeated, _inserted, _value, _value, _value, _header,
)  # fmt: skip
