"""Texts that the server writes: time to the first token and tokens a second, many at once against one at a time.

    python benchmarks/streaming.py [--models nano medium] [--clients 1 8 32] [--seconds 10] [--keep]

Exports GPTs with random weights, whose speed is that of trained ones, and serves each twice: with `--texts 32`, so that texts
share their steps, and with `--texts 1`, so that each waits for the one before. Clients read server-sent events of up to 48
tokens, one request after the other, from both servers in turns of so many seconds. A row for each model and number of clients;
`--keep` appends it. Ends with status 1 where 32 clients do not get `MORE` times the tokens of one text at a time.
"""

import argparse
import asyncio
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

from record import append

MORE = 2.0
TOGETHER = 32
ROUNDS = 3
TOKENS = 48
PROMPT = "import os\nimport sys\n\n\ndef main(names: list[str]) -> int:\n    "
MODELS = {
    "nano": dict(width=48, depth=3, heads=3),
    "medium": dict(width=256, depth=6, heads=4),
}
PLACES = 128


def export(store: Path, name: str) -> int:
    """Write a bundle with random weights; returns its parameters."""
    import keras

    import zoo
    from export.bundle import to_bundle
    from zoo import data
    from zoo.data import corpus

    corpus.library.__defaults__ = (10_000,)  # characters that the tokenizer is made from, and figures of the bundle
    splits = data.load("stdlib_text", tokenizer="bpe:1000", tokens=PLACES)
    keras.utils.set_random_seed(0)
    step = splits.signature.preprocess
    model = zoo.get(
        "gpt_nano", input_shape=(PLACES,), length=PLACES, vocabulary=step.vocabulary, dropout=0.0, **MODELS[name]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it learned nothing
        to_bundle(model, store / name / "1", data=splits, architecture="gpt_nano", int8=False, runner=False)
    return int(model.count_params())


@contextmanager
def serving(store: Path, texts: int):
    """Port of a server that writes so many texts at a time."""
    command = [sys.executable, "-m", "serve", store, "--port", 0, "--workers", 1, "--texts", texts, "--no-access-log"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                yield int(found[1])
                break
        else:
            raise RuntimeError("the server did not start")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


class Seen:
    """What clients saw: tokens, and seconds to the first one of each request, at least so many where none came."""

    def __init__(self) -> None:
        self.tokens, self.first = 0, []


async def read(port: int, model: str, seen: Seen) -> None:
    """Ask again and again, until it is cancelled."""
    body = json.dumps({"text_input": PROMPT, "parameters": {"max_tokens": TOKENS}}).encode()
    head = f"POST /v2/models/{model}/generate_stream HTTP/1.1\r\nHost: x\r\nX-Request-Timeout: 600\r\n"
    raw = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    begun, unseen = 0.0, False
    try:
        while True:
            begun, unseen = time.perf_counter(), True
            writer.write(raw)
            if b" 200 " not in await reader.readline():
                raise RuntimeError("the server refused a request")
            while await reader.readline() != b"\r\n":
                pass
            while size := int(await reader.readline(), 16):
                await reader.readexactly(size + 2)
                if unseen:
                    seen.first.append(time.perf_counter() - begun)
                    unseen = False
                seen.tokens += 1
            await reader.readline()
    finally:
        if unseen:
            seen.first.append(time.perf_counter() - begun)
        writer.close()


async def drive(port: int, model: str, clients: int, seconds: float, seen: Seen) -> None:
    """So many clients for so long."""
    tasks = [asyncio.ensure_future(read(port, model, seen)) for _ in range(clients)]
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
    await asyncio.sleep(0.3)  # until the server has seen that they left


def figures(seen: Seen, seconds: float) -> dict[str, float]:
    first = sorted(seen.first)
    return {
        "tokens_s": round(seen.tokens / seconds, 1),
        "first_ms": round(statistics.median(first) * 1000, 1),
        "first_p90_ms": round(first[int(0.9 * (len(first) - 1))] * 1000, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        for name in given.models:
            parameters = export(store, name)
            with serving(store, TOGETHER) as many, serving(store, 1) as one:
                ports = {TOGETHER: many, 1: one}
                asyncio.run(drive(many, name, 1, 1.0, Seen()))
                for clients in given.clients:
                    seen = {texts: Seen() for texts in ports}
                    for _ in range(ROUNDS):  # in turns, so that a busy machine is busy for both
                        for texts, port in ports.items():
                            asyncio.run(drive(port, name, clients, given.seconds, seen[texts]))
                    by = {texts: figures(each, ROUNDS * given.seconds) for texts, each in seen.items()}
                    missed |= report(name, parameters, clients, by, given.keep)
    return int(missed)


def report(name: str, parameters: int, clients: int, by: dict[int, dict[str, float]], keep: bool) -> bool:
    """Print or keep a row; whether it misses the target."""
    gain = by[TOGETHER]["tokens_s"] / max(by[1]["tokens_s"], 0.1)
    row: dict[str, object] = {"model": name, "parameters": parameters, "clients": clients, "tokens": TOKENS}
    row |= {f"together_{key}": value for key, value in by[TOGETHER].items()}
    row |= {f"alone_{key}": value for key, value in by[1].items()}
    row["gain"] = round(gain, 2)
    if keep:
        append("streaming", row, packages=("zooroad", "onnxruntime", "numpy", "uvloop"))
    else:
        print(row, flush=True)
    return clients >= TOGETHER and gain < MORE


if __name__ == "__main__":
    sys.exit(main())
