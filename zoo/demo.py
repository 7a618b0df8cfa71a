"""`zoo demo`: the whole road on real handwritten digits, with one table of what each stage gave."""

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

console = Console(highlight=False)
NAME = "digits"


def run(model: str, out: Path, epochs: int | None = None) -> None:
    """Train, report, prune, quantise, bundle, explain and serve a model on digits, and print what each stage gave.

    Args:
        model: public name of an image model.
        out: folder for the runs, the store and the pictures; an older demo's folder is replaced.
        epochs: training epochs, the recipe's if None; fine-tuning takes half of them.

    Raises:
        FileExistsError: `out` holds something else than an older demo.
    """
    from PIL import Image

    import export
    import zoo
    from zoo.compress import compressed_bytes, shrink

    _clear(out)
    settings = {} if epochs is None else {"epochs": epochs}
    stages: list[dict[str, Any]] = []

    _say("1", f"train {model} on {NAME}: 1,797 real handwritten digits of 8x8 pixels")
    whole = zoo.train(model, data=NAME, out=out / "run", **settings)
    with console.status("exporting …"):
        bundle = export.to_bundle(whole, out / "store" / NAME / "1", int8=False)
    stages.append(_stage("trained, FP32", bundle, "fp32"))

    half = max(1, whole.recipe.epochs // 2)
    _say("2", "set half of the weights to zero while fine-tuning: a smaller compressed file, the same latency")
    with console.status(f"fine-tuning {half} epochs …"):
        zeros = shrink(whole, out / "run-zeros", zeros=0.5, epochs=half, quiet=True)
    with console.status("exporting …"):
        bundle = export.to_bundle(zeros, out / "zeros" / NAME / "1", int8=False)
    stages.append(_stage("half the weights zero, FP32", bundle, "fp32"))
    ratio = compressed_bytes(whole.model) / compressed_bytes(zeros.model)
    console.print(f"  accuracy {zeros.metrics['test']:.4f}; the weights compress {ratio:.2f} times better")

    _say("3", "remove half of the channels, then fine-tune: a smaller file and a lower latency")
    with console.status(f"fine-tuning {half} epochs …"):
        small = shrink(whole, out / "run-small", channels=0.5, epochs=half, quiet=True)
    console.print(
        f"  accuracy {small.metrics['test']:.4f}; {whole.model.count_params():,} -> {small.model.count_params():,} parameters"
    )

    _say("4", "export the smaller model as FP32 and INT8, with preprocessing and softmax inside the files")
    with console.status("exporting, calibrating and checking …"):
        bundle = export.to_bundle(small, out / "store" / NAME / "2")
    for precision in bundle.manifest.precisions:
        stages.append(_stage(f"half the channels, {precision.upper()}", bundle, precision))
    for precision, reason in bundle.manifest.refused.items():
        console.print(f"  {precision} was refused: {reason}")

    _say("5", "check, replay and time it as a device does: run.py with numpy and onnxruntime alone")
    command = [sys.executable, str(out / "store" / NAME / "2" / "run.py")]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    console.print("\n".join(f"  {line}" for line in report.splitlines()), markup=False)

    _say("6", "explain four answers of the bundle by Shapley values, without TensorFlow")
    rows = {name: values[:4] for name, values in whole.data.test.x.items()}
    with console.status("explaining …"):
        why = zoo.explain(bundle, rows)
    why.plot(out / "explanation.png")
    console.print(f"  {why.method}, additivity error {why.additivity_error:.1e}, {why.seconds:.1f} s")

    _say("7", "serve the store and ask for one digit over HTTP")
    picture = out / "digit.png"
    Image.fromarray(whole.data.test.x["image"][0].squeeze()).save(picture)
    with server(out / "store") as (url, ready):
        answer, _, seconds = post(f"{url}/predict/{NAME}", picture.read_bytes(), {"Content-Type": "image/png"})
    best = json.loads(answer)["predictions"][0]
    truth = whole.data.signature.labels[int(whole.data.test.y[0])]
    console.print(
        f"  ready after {ready:.1f} s; answered in {1000 * seconds:.1f} ms: {best['label']} with probability "
        f"{best['probability']:.3f} (the picture shows a {truth})"
    )

    _table(stages, whole)
    console.print("\nPictures")
    for picture in sorted(out.rglob("*.png")):
        console.print(f"  {picture}")
    console.print(f"\nReport {out / 'run' / 'report.md'}; try the page: zoo serve {out / 'store'}")


def _clear(out: Path) -> None:
    """An empty folder for the demo; only an older demo's folder is replaced."""
    marker = out / ".zoo-demo"
    if out.exists() and any(out.iterdir()) and not marker.exists():
        raise FileExistsError(f"{out} is not empty and no older demo's folder; choose another with --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    marker.touch()


def _say(number: str, text: str) -> None:
    console.print(f"\n[bold]{number}. {text}[/bold]")


def _stage(name: str, bundle: Any, precision: str) -> dict[str, Any]:
    """Figures of one stored form: accuracy, size, parity error and the median latency of one row."""
    from zoo.evaluate import latency

    facts = bundle.manifest.precisions[precision]
    return {
        "stage": name,
        "accuracy": facts.score,
        "bytes": facts.bytes,
        "parity": facts.parity,
        "ms": latency(bundle, precision),
    }


def _table(stages: list[dict[str, Any]], whole: Any) -> None:
    table = Table(title=f"{whole.recipe.model} on {NAME}, {len(whole.data.test)} held-out rows", title_justify="left")
    for column in ("stage", "accuracy", "file KB", "latency ms", "parity error"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    table.add_row("logistic regression", f"{whole.metrics['baseline']:.4f}", "", "", "")
    for s in stages:
        table.add_row(
            s["stage"], f"{s['accuracy']:.4f}", f"{s['bytes'] / 1024:,.0f}", f"{s['ms']:.3f}", f"{s['parity']:.1e}"
        )
    console.print()
    console.print(table)
    console.print("latency: median of one row in ONNX Runtime on this machine; parity: largest difference from Keras")


@contextmanager
def server(store: Path) -> Iterator[tuple[str, float]]:
    """A real server process on a free port of this machine: its address and the seconds until it was ready."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "serve", str(store), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            if found:
                break
        else:
            raise OSError(f"the server did not start: {''.join(printed)}")
        while True:
            try:
                urllib.request.urlopen(f"{found[0]}/v2/health/ready", timeout=5).close()
                break
            except urllib.error.URLError:
                if time.perf_counter() - started > 30:
                    raise OSError(f"the server at {found[0]} was not ready within 30 s") from None
                time.sleep(0.02)
        yield found[0], time.perf_counter() - started
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def post(url: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[bytes, Any, float]:
    """POST a body, or GET without one: the answer's body and headers, and the seconds it took."""
    request = urllib.request.Request(url, body, headers or {})
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=30) as response:
        answer = response.read()
    return answer, response.headers, time.perf_counter() - started
